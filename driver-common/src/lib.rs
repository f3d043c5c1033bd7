//! The map ABI that Netferry's eBPF programs and its daemon share.
//!
//! Every type here is laid out the same in the kernel and in user space: `#[repr(C)]`, padding spelled out,
//! sizes asserted, no `bool` and no `enum`. Addresses and ports are in network byte order (the bytes of the
//! packet); all other integers are in the byte order of the machine.
//!
//! A change of a size or of the meaning of a field needs a new [`ABI`].
#![no_std]

pub mod addr;
pub mod block;
pub mod budget;
pub mod counters;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod limit;
pub mod maps;
pub mod member;
pub mod policy;
pub mod slot;
pub mod tunnel;
pub mod uplink;
pub mod verdict;

#[cfg(feature = "user")]
mod user;

pub use addr::Addr;
pub use block::{Block, BlockKey};
pub use budget::Budget;
pub use counters::{CounterKey, Drops, Traffic};
pub use endpoint::{Address, AddressKey, Endpoint};
pub use event::Event;
pub use flow::{Flow, FlowKey, Fragment, FragmentKey, Side};
pub use limit::{Limit, LimitKey};
pub use member::{Member, MemberKey};
pub use policy::{Peer, PeerKey, Rule, RuleKey};
pub use slot::{Fast, Slot};
pub use tunnel::{Route, Tunnel, Way};
pub use uplink::{Uplink, Wire, WireKey};
pub use verdict::{Direction, Reason};

/// Version of the layouts in this crate; the folder under the bpffs root is `v<ABI>`.
pub const ABI: u32 = 1;

/// Symbol of the endpoint id in the programs' read-only data: a `u32`, set by the loader before the load.
/// A program whose id was never set (0) drops everything.
pub const ENDPOINT_GLOBAL: &str = "ENDPOINT";

/// Symbol of a `u32` in the programs' read-only data: 1 if the kernel has `bpf_redirect_peer`, set by the loader. 0 sends
/// frames through the host end of their receiver, whose own program then judges them.
pub const PEER_GLOBAL: &str = "REDIRECT_PEER";
