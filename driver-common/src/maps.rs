//! Names and sizes of the maps. The kernel keeps 15 characters of a name; more would be cut in `bpftool`.

/// [`crate::Endpoint`] by endpoint id (`u32`). Written by user space.
pub const ENDPOINTS: &str = "nf_endpoints";
/// [`crate::Slot`] by [`crate::slot::of`] an endpoint's id (`u32`). Written by user space.
pub const SLOTS: &str = "nf_slots";
/// [`crate::Fast`] by [`crate::slot::of`] an endpoint's id (`u32`), per CPU.
pub const FAST: &str = "nf_fast";
/// [`crate::Address`] by [`crate::AddressKey`]. Written by user space.
pub const ADDRESSES: &str = "nf_addresses";
/// [`crate::Traffic`] by [`crate::CounterKey`], per CPU. Entries are made by the programs at the first frame.
pub const TRAFFIC: &str = "nf_traffic";
/// [`crate::Drops`] by [`crate::CounterKey`], per CPU. Entries are made by the programs at the first drop.
pub const DROPS: &str = "nf_drops";
/// [`crate::Member`] by [`crate::MemberKey`]. Written by user space.
pub const MEMBERS: &str = "nf_members";
/// Longest prefix: [`crate::Peer`] by [`crate::PeerKey`]. Written by user space.
pub const PEERS: &str = "nf_peers";
/// Longest prefix: [`crate::Rule`] by [`crate::RuleKey`]. Written by user space.
pub const RULES: &str = "nf_rules";
/// [`crate::Limit`] by [`crate::LimitKey`]. Written by user space, state kept by the programs.
pub const LIMITS: &str = "nf_limits";
/// [`crate::Flow`] by [`crate::FlowKey`]; the least recently used make room.
pub const FLOWS: &str = "nf_flows";
/// [`crate::Budget`] by endpoint id (`u32`). Written by user space, counts kept by the programs.
pub const BUDGETS: &str = "nf_budgets";
/// [`crate::Fragment`] by [`crate::FragmentKey`]; the least recently used make room.
pub const FRAGMENTS: &str = "nf_fragments";
/// [`crate::Uplink`] by network id (`u32`). Written by user space.
pub const UPLINKS: &str = "nf_uplinks";
/// [`crate::Wire`] by [`crate::WireKey`]. Written by user space.
pub const WIRES: &str = "nf_wires";
/// When the last ICMP errors owed to a sender are paid back (`u64`, see [`crate::limit`]) by [`crate::CounterKey`]: the
/// endpoint, and which way the frames went that the errors are about. Kept by the programs alone.
pub const ERRORS: &str = "nf_errors";
/// Ring buffer of [`crate::Event`].
pub const EVENTS: &str = "nf_events";
/// `u64` at [`LOST_FULL`] and [`LOST_HELD`], per CPU: events that were not told.
pub const LOST: &str = "nf_lost";
/// Index in [`LOST`]: events that did not fit the ring.
pub const LOST_FULL: u32 = 0;
/// Index in [`LOST`]: events about drops of an endpoint that had more of them than are told.
pub const LOST_HELD: u32 = 1;
/// Longest prefix: [`crate::Block`] by [`crate::BlockKey`]. Written by user space.
pub const BLOCKED: &str = "nf_blocked";
/// [`crate::Tunnel`], alone at 0. Written by user space.
pub const TUNNEL: &str = "nf_tunnel";
/// [`crate::Way`] by [`crate::tunnel::way_of_network`] or [`crate::tunnel::way_of_vni`] (`u32`). Written by user space.
pub const WAYS: &str = "nf_ways";
/// [`crate::Route`] by [`crate::tunnel::route_of`] (`u32`), per CPU. Kept by the programs alone.
pub const ROUTES: &str = "nf_routes";
/// What a program knows of the frame at hand, per CPU. Of no use to anybody else.
pub const SCRATCH: &str = "nf_scratch";

/// Every map of this version.
pub const ALL: &[&str] = &[
    ENDPOINTS, ADDRESSES, TRAFFIC, DROPS, MEMBERS, PEERS, RULES, LIMITS, FLOWS, FRAGMENTS, UPLINKS, WIRES,
    ERRORS, BUDGETS, EVENTS, LOST, SCRATCH, BLOCKED, SLOTS, FAST, TUNNEL, WAYS, ROUTES,
];

/// Endpoints a node can have at a time.
pub const MAX_ENDPOINTS: usize = 4096;
/// Own addresses of all endpoints together: 16 each on average.
pub const MAX_ADDRESSES: usize = 16 * MAX_ENDPOINTS;
/// Networks with a way beyond the node.
pub const MAX_UPLINKS: usize = 4096;
/// Places for ways through tunnels: one by network and one by VNI for each network.
pub const MAX_WAYS: usize = 2 * MAX_UPLINKS;
/// Routes to other nodes that are kept.
pub const MAX_ROUTES: usize = 256;
/// Counter entries: two directions an endpoint, and one a network.
pub const MAX_COUNTERS: usize = 2 * MAX_ENDPOINTS + MAX_UPLINKS;
/// Addresses of all members of all networks, on all nodes.
pub const MAX_MEMBERS: usize = 65_536;
/// Prefixes of all policies, two versions of one at the time of a switch.
pub const MAX_PEERS: usize = 262_144;
/// Port blocks of all policies.
pub const MAX_RULES: usize = 262_144;
/// Limits: two directions of four kinds an endpoint.
pub const MAX_LIMITS: usize = 8 * MAX_ENDPOINTS;
/// Flows tracked at a time. The loader may set another size before the maps are made.
pub const MAX_FLOWS: usize = 131_072;
/// Datagrams in fragments at a time.
pub const MAX_FRAGMENTS: usize = 8192;
/// Prefixes of the block list.
pub const MAX_BLOCKED: usize = 65_536;
/// Bytes of the ring of events: a power of 2 and of whole pages.
pub const EVENT_BYTES: usize = 1 << 19;
/// Bytes of events that wait for the reader, which is woken by the first of them. Beyond, it is woken at each event.
pub const EVENTS_WAIT: u64 = EVENT_BYTES as u64 / 4;
/// Milliseconds for which the reader that was woken waits for more events before it reads.
pub const EVENTS_EVERY: u64 = 50;

const _: () = {
    let mut at = 0;
    while at < ALL.len() {
        assert!(ALL[at].len() <= 15, "a map name is cut after 15 characters");
        at += 1;
    }
};
