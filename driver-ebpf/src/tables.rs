//! The maps, as the decisions see them.

use netferry_common::{
    Addr, Address, AddressKey, CounterKey, Direction, Endpoint, Event, Flow, FlowKey, Fragment, FragmentKey,
    LimitKey, Member, MemberKey, Peer, PeerKey, Reason, Rule, RuleKey, Slot, Tunnel, Uplink, Way,
};

use crate::flows::SharedFlow;

/// Look-ups and counters. A look-up that fails is a `None`, and every `None` ends in a drop.
pub trait Tables {
    /// Coarse monotonic time, nanoseconds since boot.
    fn now(&self) -> u64;
    /// The endpoint of an id.
    fn endpoint(&self, id: u32) -> Option<&Endpoint>;
    /// The endpoint of an id where it is found without a search. `None`: ask for [`Self::endpoint`].
    fn slot(&self, endpoint: u32) -> Option<&Slot>;
    /// What an endpoint may do with an address.
    fn address(&self, key: &AddressKey) -> Option<Address>;
    /// Who has an address on a network.
    fn member(&self, key: &MemberKey) -> Option<Member>;
    /// How a network goes on beyond the node.
    fn uplink(&self, network: u32) -> Option<&Uplink>;
    /// The way of a network through tunnels. `None`: ask for [`Self::uplink`].
    fn way(&self, network: u32) -> Option<&Way>;
    /// Whose VNI that is. `None`: it may be somebody's all the same.
    fn way_of_vni(&self, vni: u32) -> Option<&Way>;
    /// Where tunnels start and end. `None`: all their headers are left to the device.
    fn tunnel(&self) -> Option<&Tunnel>;
    /// The class of an address: longest prefix.
    fn peer(&self, key: PeerKey) -> Option<Peer>;
    /// The rule for a port: longest prefix.
    fn rule(&self, key: RuleKey) -> Option<Rule>;
    /// A flow.
    fn flow(&self, key: &FlowKey) -> Option<&SharedFlow>;
    /// Adds a flow, unless it is there already. `false`: there is no room.
    fn open_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Removes a flow.
    fn forget_flow(&self, key: &FlowKey);
    /// A datagram in fragments.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Adds a datagram in fragments. Later fragments are dropped if there is no room.
    fn add_fragment(&self, key: &FragmentKey, fragment: &Fragment);
    /// Whether the kernel can send a frame straight into the namespace of its receiver.
    fn redirects_to_peer(&self) -> bool;
    /// Whether one more ICMP error may be sent about frames of this endpoint and direction now.
    fn may_refuse(&self, key: CounterKey, now: u64) -> bool;
    /// Takes units out of a limit. `None`: there is no such limit.
    fn take(&self, key: &LimitKey, now: u64, units: u64) -> Option<bool>;
    /// Reports an event, or counts it as lost.
    fn report(&self, event: &Event);
    /// Counts a frame that passed, and which way it went on (`netferry_common::counters::path`).
    fn passed(&self, endpoint: u32, direction: Direction, packets: u64, bytes: u64, path: u32);
    /// Counts a frame for the endpoint that it went straight to, and for the one it came from; both have slots.
    fn went_fast(&self, sender: u32, receiver: u32, bytes: u64);
    /// Counts a frame that left through a tunnel the short way, for an endpoint that has a slot.
    fn left(&self, sender: u32, bytes: u64);
    /// Counts a frame that came through a tunnel the short way, likewise.
    fn entered(&self, receiver: u32, bytes: u64);
    /// Notes that a frame to an endpoint waits, on this CPU, for the device that tunnels end at.
    fn queued(&self, receiver: u32, now: u64);
    /// Whether one may wait still.
    fn waits(&self, receiver: u32, now: u64) -> bool;
    /// Counts a frame that was dropped.
    fn dropped(&self, endpoint: u32, direction: Direction, reason: Reason);
}

/// Flags of an address for an endpoint, 0 if it is not one of its own.
#[inline(always)]
pub fn address_flags<T: Tables>(tables: &T, endpoint: u32, addr: Addr) -> u32 {
    match tables.address(&AddressKey { endpoint, addr }) {
        Some(address) => address.flags,
        None => 0,
    }
}
