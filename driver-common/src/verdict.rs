//! Directions and drop reasons: the one list that programs, command line, metrics and documentation share.

use bytemuck::{Pod, Zeroable};

/// Which way a frame goes, seen from the pod.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Sent by the pod.
    FromPod = 0,
    /// Sent to the pod.
    ToPod = 1,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::FromPod, Self::ToPod];

    /// Number in map keys.
    #[must_use]
    #[inline]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// Likewise, where the key has a byte for it.
    #[must_use]
    #[inline]
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// Name in output: `from_pod` or `to_pod`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
        }
    }
}

/// Places for counters in [`Drops`]: new reasons take a spare one, and the layout stays.
pub const REASON_SLOTS: usize = 64;

macro_rules! reasons {
    ($($number:literal $variant:ident $name:ident $meaning:literal;)+) => {
        /// Why a frame was dropped. Numbers never change their meaning.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $variant = $number,)+
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name in output, metrics and documentation.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($name),)+
                }
            }

            /// What happened, in one line.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                }
            }
        }

        impl Drops {
            /// Nothing dropped.
            pub const ZERO: Self =
                Self { $($name: 0,)+ spare: [0; REASON_SLOTS - Reason::ALL.len()] };
        }

        /// Dropped frames by reason, one named field each so that `bpftool map dump` reads as a table.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
        pub struct Drops {
            $(#[doc = $meaning] pub $name: u64,)+
            /// Room for reasons to come; always 0.
            pub spare: [u64; REASON_SLOTS - Reason::ALL.len()],
        }
    };
}

reasons! {
    0 NoEndpoint no_endpoint "the program's endpoint is not in the map: it was removed, or never written";
    1 NotReady not_ready "the endpoint is not ready: its attach has not finished, or its return has begun";
    2 MalformedEthernet malformed_ethernet "shorter than an Ethernet header, or sent from a group address";
    3 VlanTagged vlan_tagged "carries an 802.1Q or 802.1ad tag";
    4 Ethertype ethertype "neither IPv4 nor IPv6 nor ARP";
    5 SourceMac source_mac "from the pod, with a source MAC that is not the endpoint's";
    6 MalformedIpv4 malformed_ipv4 "an IPv4 header that is cut short or contradicts itself";
    7 MalformedIpv6 malformed_ipv6 "an IPv6 header that is cut short or contradicts itself";
    8 SourceIpv4 source_ipv4 "from the pod, with an IPv4 source that is not the endpoint's";
    9 SourceIpv6 source_ipv6 "from the pod, with an IPv6 source that is not the endpoint's";
    10 MalformedArp malformed_arp "ARP that is cut short, or not for IPv4 over Ethernet";
    11 ArpSender arp_sender "from the pod, ARP in the name of another MAC or IPv4 address";
    12 MalformedNd malformed_nd "neighbour discovery that is cut short, was forwarded, or has broken options";
    13 NdSender nd_sender "from the pod, neighbour discovery in the name of another MAC or IPv6 address";
    14 NdRouter nd_router "from the pod, a router advertisement or a redirect";
    15 NotForUs not_for_us "to the pod, with a unicast destination MAC that is not the endpoint's";
    16 DestinationAddress destination_address "to the pod, for an address that is not the endpoint's";
    17 OwnMac own_mac "to the pod, with the endpoint's own MAC as source";
    18 OwnAddress own_address "to the pod, from or claiming one of the endpoint's own addresses";
    19 ExtensionHeader extension_header "IPv6 extension headers that reroute, or more of them than are looked at";
    20 MalformedTransport malformed_transport "a TCP, UDP, SCTP or ICMP header that is cut short or contradicts itself";
    21 NoFlow no_flow "an answer or an error, but no flow it belongs to";
    22 PolicyDenied policy_denied "a rule denies the flow";
    23 PolicyDefault policy_default "no rule allows the flow, and the default is to deny";
    24 NotMember not_member "the peer is not a member of the endpoint's network, and no rule allows it";
    25 FlowLimit flow_limit "the endpoint opens flows too fast, or there is no room for one more";
    26 Fragment fragment "a later fragment of a datagram whose first fragment was not let through";
    27 RateLimit rate_limit "more bytes or frames than the endpoint's limit";
    28 TargetNotReady target_not_ready "the member it is for is not ready on this node";
    29 NoReceiver no_receiver "a group, or a message of the link that nobody answers, on an isolated network";
    30 NoRoute no_route "the member it is for cannot be reached from this endpoint";
    31 MtuExceeded mtu_exceeded "larger than the MTU on its way; the sender is told, unless it allowed fragments over IPv4";
    32 HopLimit hop_limit "its hops are used up where the node routes it; the sender is told";
    33 WireSource wire_source "from an uplink or a tunnel, in the name of a member of this node or under another's MAC";
    34 OuterSource outer_source "from a tunnel, from another node than the one its sender is on";
    35 UnknownNetwork unknown_network "from a tunnel, with a VNI that is no network of this node";
    36 Nobody nobody "from an uplink or a tunnel, for an address that no member on this node has";
    37 Blocked blocked "to the pod, from an address on the node's block list";
}

const _: () = {
    let mut at = 0;
    while at < Reason::ALL.len() {
        assert!(Reason::ALL[at] as usize == at, "reasons are numbered in order");
        at += 1;
    }
    assert!(size_of::<Drops>() == REASON_SLOTS * 8);
};

impl Reason {
    /// Number in map values and events, and the place in [`Drops::counts`].
    #[must_use]
    #[inline]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The reason of a number, `None` for one this version does not know.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

impl Drops {
    /// The counts by [`Reason::number`].
    #[must_use]
    pub fn counts(&self) -> &[u64; REASON_SLOTS] {
        bytemuck::cast_ref(self)
    }

    /// The count of one reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.counts()[reason.number() as usize]
    }

    /// Reason and count of each that is above 0.
    pub fn nonzero(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.iter().map(|&reason| (reason, self.of(reason))).filter(|&(_, count)| count > 0)
    }
}

impl Default for Drops {
    fn default() -> Self {
        Self::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_counts_its_own_reason() {
        let drops = Drops { own_address: 7, no_endpoint: 1, ..Drops::default() };
        assert_eq!(drops.of(Reason::OwnAddress), 7);
        assert!(drops.nonzero().eq([(Reason::NoEndpoint, 1), (Reason::OwnAddress, 7)]));
    }

    #[test]
    fn names_are_snake_case_and_distinct() {
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            assert!(Reason::ALL[at + 1..].iter().all(|other| other.name() != reason.name()));
            assert_eq!(Reason::from_number(reason.number()), Some(*reason));
        }
    }
}
