//! Policy as the programs read it, and the order in which it decides.
//!
//! A *policy version* is a number that was never used before on this node ([`crate::Endpoint::policy`], 0 for
//! none). Its entries are written first, then the endpoint is switched to it by one write of its record, then the
//! entries of the old version are deleted in slices: a program sees one version whole or the other.
//!
//! Only the first frame of a flow is looked up here, seen from the endpoint: the direction is
//! [`crate::Direction::FromPod`] if the pod opened the flow, the peer is the other address, and the port is the
//! destination port of the first frame (for ICMP and ICMPv6: type × 256 + code; for protocols without ports: 0).
//!
//! The order is that of [`decide`]:
//!
//! 1. [`PeerKey`] {version, direction, peer address}, longest prefix → [`Peer::class`]. No match: go to 3.
//! 2. [`RuleKey`] {version, class, direction, protocol, port}, longest prefix → [`Rule`]. No match: go to 3.
//!    Match: [`ALLOW`] or [`DENY`] decides.
//! 3. The default: [`DENY_FROM_POD`] / [`DENY_TO_POD`] in the endpoint's flags deny that direction. Without it, on
//!    an isolated network its members are allowed and everybody else is denied; on the wire everybody is allowed.
//!
//! **Deny wins** is the compiler's work, as a longest prefix alone does not know it:
//! - A class stands for the set of rules whose CIDR covers an address. Every CIDR of any rule gets an entry whose
//!   class holds *all* rules with that CIDR or a wider one. Equal sets share a class; a CIDR with the same
//!   set as the next wider one may be left out.
//! - Within a class, ports are cut into prefix blocks, each with the action that results from all rules of the class
//!   covering the block: deny if any denies. A block inside a wider one decides alone.
//! - Rules for any protocol are entries that stop before the protocol ([`RULE_BITS_ANY`]); they are also folded
//!   into the blocks of each protocol that the class has entries for, as those hide them.
//!
//! IPv4 prefixes are mapped: 10.0.0.0/8 is `::ffff:10.0.0.0` with 96 + 8 address bits. A rule for every peer needs
//! `::/0` (0 address bits), which covers IPv4 too.

mod decide;

use bytemuck::{Pod, Zeroable};

pub use decide::{Decision, Lookups, Question, decide};

use crate::Addr;

/// [`crate::Endpoint::flags`]: flows the pod opens are denied unless a rule allows them.
pub const DENY_FROM_POD: u32 = 2;
/// [`crate::Endpoint::flags`]: flows to the pod are denied unless a rule allows them.
pub const DENY_TO_POD: u32 = 4;

/// Step 1: whose address is it? Data of the key of a longest-prefix map.
///
/// The prefix length of the key counts [`PEER_BITS`] and the bits of the (mapped) address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PeerKey {
    /// Policy version, in the machine's byte order: all its bits count, so the order does not matter.
    pub policy: u32,
    /// A [`crate::Direction`] as number; all its bits count.
    pub direction: u32,
    /// Address of the peer; bits beyond the prefix are 0.
    pub addr: Addr,
}

const _: () = assert!(size_of::<PeerKey>() == 24);

/// Bits of a [`PeerKey`] before the address.
pub const PEER_BITS: u32 = 64;
/// All bits of a [`PeerKey`].
pub const PEER_BITS_ALL: u32 = PEER_BITS + 128;

/// The rules that apply to an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Peer {
    /// Number of the set of rules; its meaning is the version's own. Any number but 0.
    pub class: u32,
}

const _: () = assert!(size_of::<Peer>() == 4);

/// Step 2: what may it do? Data of the key of a longest-prefix map.
///
/// The prefix length of the key is [`RULE_BITS_ANY`] for any protocol, or [`RULE_BITS_PROTOCOL`] and 0 to 16 bits
/// of the port for one protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct RuleKey {
    /// Policy version.
    pub policy: u32,
    /// Class of the peer.
    pub class: u32,
    /// A [`crate::Direction`] as number.
    pub direction: u8,
    /// IP protocol number; 0 in an entry for any protocol.
    pub protocol: u8,
    /// Port, big endian; bits beyond the prefix are 0.
    pub port: [u8; 2],
}

const _: () = assert!(size_of::<RuleKey>() == 12);

/// Bits of a [`RuleKey`] before the protocol.
pub const RULE_BITS_ANY: u32 = 72;
/// Bits of a [`RuleKey`] before the port.
pub const RULE_BITS_PROTOCOL: u32 = 80;
/// All bits of a [`RuleKey`].
pub const RULE_BITS_ALL: u32 = 96;

/// [`Rule::action`]: let the flow open.
pub const ALLOW: u32 = 1;
/// [`Rule::action`]: drop it.
pub const DENY: u32 = 2;

/// What a block of ports decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Rule {
    /// [`ALLOW`] or [`DENY`]; anything else denies.
    pub action: u32,
    /// Number of the declared rule that decides, for events and `policy explain`; 0 is the default.
    pub rule: u32,
}

const _: () = assert!(size_of::<Rule>() == 8);
