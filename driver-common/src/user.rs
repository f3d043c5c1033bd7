//! What user space needs to hand the types to aya.

use crate::{
    Addr, Address, AddressKey, Block, BlockKey, Budget, CounterKey, Drops, Endpoint, Event, Fast, Flow,
    FlowKey, Fragment, FragmentKey, Limit, LimitKey, Member, MemberKey, Peer, PeerKey, Rule, RuleKey, Side,
    Slot, Traffic, Tunnel, Uplink, Way, Wire, WireKey,
};

macro_rules! pod {
    ($($name:ty),+ $(,)?) => {
        $(
            const _: () = {
                const fn is_pod<T: bytemuck::Pod>() {}
                is_pod::<$name>();
            };
            // SAFETY: bytemuck's derive proved above that every bit pattern is valid and that there is no
            // padding, which is what aya asks for.
            #[allow(unsafe_code)]
            unsafe impl aya::Pod for $name {}
        )+
    };
}

pod!(
    Addr,
    Address,
    AddressKey,
    Block,
    BlockKey,
    Budget,
    CounterKey,
    Drops,
    Endpoint,
    Event,
    Fast,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    Limit,
    LimitKey,
    Member,
    MemberKey,
    Peer,
    PeerKey,
    Rule,
    RuleKey,
    Side,
    Slot,
    Traffic,
    Tunnel,
    Uplink,
    Way,
    Wire,
    WireKey,
);
