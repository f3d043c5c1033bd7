//! The maps in the kernel.
//!
//! Macros take names as literals only; a test of the loaded object compares them with `netferry_common::maps`.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ringbuf_query};
use aya_ebpf::macros::btf_map;
use netferry_common::block::BLOCK_BITS_ALL;
use netferry_common::counters::path;
use netferry_common::event::DENY;
use netferry_common::limit::{self, DENIES};
use netferry_common::maps::{
    EVENT_BYTES, EVENTS_WAIT, LOST_FULL, LOST_HELD, MAX_ADDRESSES, MAX_BLOCKED, MAX_COUNTERS, MAX_ENDPOINTS,
    MAX_FLOWS, MAX_FRAGMENTS, MAX_LIMITS, MAX_MEMBERS, MAX_PEERS, MAX_ROUTES, MAX_RULES, MAX_UPLINKS,
    MAX_WAYS,
};
use netferry_common::policy::{PEER_BITS_ALL, RULE_BITS_ALL};
use netferry_common::slot;
use netferry_common::tunnel::{route_of, way_of_network, way_of_vni};
use netferry_common::{
    Addr, Address, AddressKey, Block, BlockKey, Budget, CounterKey, Direction, Drops, Endpoint, Event, Fast,
    Flow, FlowKey, Fragment, FragmentKey, Limit, LimitKey, Member, MemberKey, Peer, PeerKey, Reason, Route,
    Rule, RuleKey, Slot, Traffic, Tunnel, Uplink, Way, Wire, WireKey,
};

use crate::atomic::Word;
use crate::budget;
use crate::flows::SharedFlow;
use crate::guard::BlockList;
use crate::judge::Scratch;
use crate::opaque::hide;
use crate::tables::Tables;
use crate::vxlan::QUEUED;

#[btf_map(name = "nf_endpoints")]
static ENDPOINTS: HashMap<u32, Endpoint, MAX_ENDPOINTS> = HashMap::new();

#[btf_map(name = "nf_slots")]
static SLOTS: Array<Slot, MAX_ENDPOINTS> = Array::new();

#[btf_map(name = "nf_fast")]
static FAST: PerCpuArray<Fast, MAX_ENDPOINTS> = PerCpuArray::new();

#[btf_map(name = "nf_addresses")]
static ADDRESSES: HashMap<AddressKey, Address, MAX_ADDRESSES> = HashMap::new();

#[btf_map(name = "nf_members")]
static MEMBERS: HashMap<MemberKey, Member, MAX_MEMBERS> = HashMap::new();

#[btf_map(name = "nf_peers")]
static PEERS: LpmTrie<PeerKey, Peer, MAX_PEERS> = LpmTrie::new();

#[btf_map(name = "nf_rules")]
static RULES: LpmTrie<RuleKey, Rule, MAX_RULES> = LpmTrie::new();

#[btf_map(name = "nf_limits")]
static LIMITS: HashMap<LimitKey, Limit, MAX_LIMITS> = HashMap::new();

#[btf_map(name = "nf_flows")]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow, MAX_FLOWS> = LruHashMap::new();

#[btf_map(name = "nf_budgets")]
pub(crate) static BUDGETS: HashMap<u32, Budget, MAX_ENDPOINTS> = HashMap::new();

#[btf_map(name = "nf_fragments")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, Fragment, MAX_FRAGMENTS> = LruHashMap::new();

#[btf_map(name = "nf_uplinks")]
static UPLINKS: HashMap<u32, Uplink, MAX_UPLINKS> = HashMap::new();

#[btf_map(name = "nf_wires")]
static WIRES: HashMap<WireKey, Wire, MAX_UPLINKS> = HashMap::new();

#[btf_map(name = "nf_errors")]
static ERRORS: LruHashMap<CounterKey, u64, MAX_COUNTERS> = LruHashMap::new();

#[btf_map(name = "nf_events")]
static EVENTS: RingBuf<(), EVENT_BYTES> = RingBuf::new();

#[btf_map(name = "nf_lost")]
static LOST: PerCpuArray<u64, 2> = PerCpuArray::new();

// Counters take memory as they are needed: for all endpoints that may be, on each of many CPUs, they would be hundreds
// of megabytes. User space makes those of an endpoint with the endpoint, so that no frame has to.
#[btf_map(name = "nf_traffic")]
static TRAFFIC: PerCpuHashMap<CounterKey, Traffic, MAX_COUNTERS, ON_DEMAND> = PerCpuHashMap::new();

#[btf_map(name = "nf_drops")]
static DROPS: PerCpuHashMap<CounterKey, Drops, MAX_COUNTERS, ON_DEMAND> = PerCpuHashMap::new();

#[btf_map(name = "nf_blocked")]
static BLOCKED: LpmTrie<BlockKey, Block, MAX_BLOCKED> = LpmTrie::new();

#[btf_map(name = "nf_tunnel")]
static TUNNEL: Array<Tunnel, 1> = Array::new();

#[btf_map(name = "nf_ways")]
static WAYS: Array<Way, MAX_WAYS> = Array::new();

#[btf_map(name = "nf_routes")]
static ROUTES: PerCpuArray<Route, MAX_ROUTES> = PerCpuArray::new();

#[btf_map(name = "nf_scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Whether the kernel has `bpf_redirect_peer`; set by the loader.
#[unsafe(no_mangle)]
static REDIRECT_PEER: Global<u32> = Global::new(1);

/// This CPU's scratch. A program runs to its end before another of its kind starts on the CPU, and nothing in it is
/// read that the same run did not write.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: each program takes it once, at its entry; see above.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// The network whose frames come in there, if it is one's.
#[inline(always)]
pub fn network_of(key: &WireKey) -> Option<u32> {
    // SAFETY: programs never write wires, and user space replaces an element instead of changing it.
    unsafe { WIRES.get(key) }.map(|wire| wire.network)
}

/// Where this CPU keeps the route to a node, whose address is a word in memory order.
#[inline(always)]
pub fn route(node: u32) -> Option<&'static mut Route> {
    // SAFETY: as for the scratch.
    ROUTES.get_ptr_mut(route_of(node)).map(|route| unsafe { &mut *route })
}

/// [`Tables`] on the maps of this object.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper reads a clock. It moves in ticks, and costs a tenth of the exact one.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn endpoint(&self, id: u32) -> Option<&Endpoint> {
        // SAFETY: programs never write endpoints, and user space replaces an element instead of changing it.
        unsafe { ENDPOINTS.get(id) }
    }

    #[inline(always)]
    fn slot(&self, endpoint: u32) -> Option<&Slot> {
        SLOTS.get(slot::of(endpoint)).filter(|slot| slot.endpoint == endpoint)
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<Address> {
        // SAFETY: as for endpoints; the value is copied at once.
        unsafe { ADDRESSES.get(key) }.copied()
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<Member> {
        // SAFETY: as for endpoints; the value is copied at once.
        unsafe { MEMBERS.get(key) }.copied()
    }

    #[inline(always)]
    fn uplink(&self, network: u32) -> Option<&Uplink> {
        // SAFETY: as for endpoints.
        unsafe { UPLINKS.get(network) }
    }

    #[inline(always)]
    fn way(&self, network: u32) -> Option<&Way> {
        WAYS.get(way_of_network(network)).filter(|way| way.network == network)
    }

    #[inline(always)]
    fn way_of_vni(&self, vni: u32) -> Option<&Way> {
        WAYS.get(way_of_vni(vni)).filter(|way| way.vni == vni)
    }

    #[inline(always)]
    fn tunnel(&self) -> Option<&Tunnel> {
        TUNNEL.get(0).filter(|tunnel| tunnel.device != 0)
    }

    #[inline(always)]
    fn peer(&self, key: PeerKey) -> Option<Peer> {
        PEERS.get(&Key::new(PEER_BITS_ALL, key)).copied()
    }

    #[inline(always)]
    fn rule(&self, key: RuleKey) -> Option<Rule> {
        RULES.get(&Key::new(RULE_BITS_ALL, key)).copied()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&SharedFlow> {
        let flow = FLOWS.get_ptr_mut(key)?;
        // SAFETY: the layouts are the same, and all of a `SharedFlow` is atomic. If the element is given to another
        // flow meanwhile, this frame may leave a bit or a time in that one's state: never a verdict for it, as a
        // verdict is read from the element at its own look-up and bound to endpoint and policy version.
        Some(unsafe { &*flow.cast::<SharedFlow>() })
    }

    #[inline(always)]
    fn open_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        if !budget::take(flow) {
            return false;
        }
        if FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok() {
            return true;
        }
        budget::give_back(netferry_common::budget::payer(flow));
        // A flow that is there now was opened by another CPU, by the same rules.
        FLOWS.get_ptr_mut(key).is_some()
    }

    #[inline(always)]
    fn forget_flow(&self, key: &FlowKey) {
        let Some(flow) = FLOWS.get_ptr_mut(key) else { return };
        // SAFETY: a copy of plain words; a change of policy meanwhile leaves the payer what it is.
        let payer = netferry_common::budget::payer(unsafe { &*flow });
        if FLOWS.remove(key).is_ok() {
            budget::give_back(payer);
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: as for endpoints; the value is copied at once, and both of its fields err to a drop.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn add_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn redirects_to_peer(&self) -> bool {
        REDIRECT_PEER.load() != 0
    }

    #[inline(always)]
    fn may_refuse(&self, key: CounterKey, now: u64) -> bool {
        if let Some(paid_at) = ERRORS.get_ptr_mut(key) {
            // SAFETY: the element is only touched atomically. An error too many or too few does no harm.
            let state = unsafe { &*paid_at.cast::<Word>() };
            let before = state.load();
            return limit::ERRORS.take(before, now, 1).is_some_and(|after| state.exchange(before, after));
        }
        let _ = ERRORS.insert(key, now, u64::from(BPF_NOEXIST));
        true
    }

    #[inline(always)]
    fn take(&self, key: &LimitKey, now: u64, units: u64) -> Option<bool> {
        let limit = LIMITS.get_ptr_mut(key)?;
        // SAFETY: the state is only touched atomically; rate and burst do not change while the element lives.
        let (state, limit) = unsafe { (&*(&raw const (*limit).paid_at).cast::<Word>(), &*limit) };
        for _ in 0..TAKE_TRIES {
            let paid_at = state.load();
            let Some(next) = limit.take(paid_at, now, units) else { return Some(false) };
            if state.exchange(paid_at, next) {
                return Some(true);
            }
        }
        // So many CPUs at once: refusing keeps the limit exact.
        Some(false)
    }

    #[inline(always)]
    fn report(&self, event: &Event) {
        if event.kind == DENY && is_held(event) {
            lost(LOST_HELD);
            return;
        }
        match EVENTS.reserve_untyped::<Event>(0) {
            Some(mut place) => {
                place.write(*event);
                place.submit(wake());
            }
            None => lost(LOST_FULL),
        }
    }

    #[inline(always)]
    fn passed(&self, endpoint: u32, direction: Direction, packets: u64, bytes: u64, way: u32) {
        if let Some(traffic) = traffic(endpoint, direction) {
            // SAFETY: the element is this CPU's own, and a program is not interrupted by another of its kind.
            unsafe {
                (*traffic).packets += packets;
                (*traffic).bytes += bytes;
                match way {
                    path::HOST => {}
                    path::FAST => (*traffic).fast += packets,
                    path::FRAGMENT => (*traffic).slow_fragment += packets,
                    path::OPTIONS => (*traffic).slow_options += packets,
                    path::ERROR => (*traffic).slow_error += packets,
                    path::NO_PEER => (*traffic).slow_no_peer += packets,
                    path::OVERLAY | path::ENCAPSULATED => (*traffic).overlay += packets,
                    _ => (*traffic).uplink += packets,
                }
            }
        }
    }

    #[inline(always)]
    fn went_fast(&self, sender: u32, receiver: u32, bytes: u64) {
        if let Some(fast) = FAST.get_ptr_mut(slot::of(receiver)) {
            // SAFETY: as in `passed`.
            unsafe {
                (*fast).received += 1;
                (*fast).received_bytes += bytes;
            }
        }
        if let Some(fast) = FAST.get_ptr_mut(slot::of(sender)) {
            // SAFETY: as in `passed`.
            unsafe {
                (*fast).sent += 1;
                (*fast).sent_bytes += bytes;
            }
        }
    }

    #[inline(always)]
    fn left(&self, sender: u32, bytes: u64) {
        if let Some(fast) = FAST.get_ptr_mut(slot::of(sender)) {
            // SAFETY: as in `passed`.
            unsafe {
                (*fast).left += 1;
                (*fast).left_bytes += bytes;
            }
        }
    }

    #[inline(always)]
    fn entered(&self, receiver: u32, bytes: u64) {
        if let Some(fast) = FAST.get_ptr_mut(slot::of(receiver)) {
            // SAFETY: as in `passed`.
            unsafe {
                (*fast).entered += 1;
                (*fast).entered_bytes += bytes;
            }
        }
    }

    #[inline(always)]
    fn queued(&self, receiver: u32, now: u64) {
        if let Some(fast) = FAST.get_ptr_mut(slot::of(receiver)) {
            // SAFETY: as in `passed`.
            unsafe { (*fast).queued = now };
        }
    }

    #[inline(always)]
    fn waits(&self, receiver: u32, now: u64) -> bool {
        // SAFETY: as in `passed`.
        FAST.get_ptr_mut(slot::of(receiver))
            .is_none_or(|fast| now.wrapping_sub(unsafe { (*fast).queued }) < QUEUED)
    }

    #[inline(always)]
    fn dropped(&self, endpoint: u32, direction: Direction, reason: Reason) {
        let key = CounterKey { endpoint, direction: direction.number() };
        if let Some(traffic) = traffic(endpoint, direction) {
            // SAFETY: as in `passed`.
            unsafe { (*traffic).dropped += 1 };
        }
        let mut drops = DROPS.get_ptr_mut(key);
        if drops.is_none() {
            let _ = DROPS.insert(key, &NO_DROPS, u64::from(BPF_NOEXIST));
            drops = DROPS.get_ptr_mut(key);
        }
        if let Some(drops) = drops {
            let place = hide(reason.number()) as usize;
            if place < netferry_common::verdict::REASON_SLOTS {
                // SAFETY: `Drops` is that many u64 and nothing else, asserted where it is defined.
                unsafe { *drops.cast::<u64>().add(place) += 1 };
            }
        }
    }
}

impl BlockList for Maps {
    #[inline(always)]
    fn blocked(&self, addr: Addr) -> bool {
        BLOCKED.get(&Key::new(BLOCK_BITS_ALL, BlockKey { addr })).is_some()
    }
}

/// Whether an endpoint had more frames dropped than are told of: one that is flooded must not fill the ring of all.
#[inline(always)]
fn is_held(event: &Event) -> bool {
    let key = LimitKey { endpoint: event.endpoint, direction: event.direction, kind: DENIES };
    Maps.take(&key, event.time, 1) == Some(false)
}

/// How the reader is woken for an event. Waking it costs more than all else about a short connection, so the kernel does so
/// (with no flag) only for the first event after the reader has read all others; the reader then waits for more before it
/// reads. It is woken out of this wait if the ring fills faster than that.
#[inline(always)]
fn wake() -> u64 {
    // SAFETY: the helper reads two counters of the map.
    let waiting =
        unsafe { bpf_ringbuf_query((&raw const EVENTS).cast_mut().cast(), u64::from(BPF_RB_AVAIL_DATA)) };
    if waiting < EVENTS_WAIT { 0 } else { u64::from(BPF_RB_FORCE_WAKEUP) }
}

#[inline(always)]
fn lost(how: u32) {
    if let Some(lost) = LOST.get_ptr_mut(how) {
        // SAFETY: the element is this CPU's own.
        unsafe { *lost += 1 };
    }
}

#[inline(always)]
fn traffic(endpoint: u32, direction: Direction) -> Option<*mut Traffic> {
    let key = CounterKey { endpoint, direction: direction.number() };
    if let Some(traffic) = TRAFFIC.get_ptr_mut(key) {
        return Some(traffic);
    }
    // Two CPUs may both find nothing: the loser's insert fails, and both find the winner's.
    let _ = TRAFFIC.insert(key, &NO_TRAFFIC, u64::from(BPF_NOEXIST));
    TRAFFIC.get_ptr_mut(key)
}

/// Tries at a limit that other CPUs take from at the same time.
const TAKE_TRIES: usize = 4;

// In read-only data, as a zero value built on the stack becomes a call of `memset`, a function of its own that
// loaders other than aya refuse.
static NO_TRAFFIC: Traffic = Traffic::ZERO;
static NO_DROPS: Drops = Drops::ZERO;
