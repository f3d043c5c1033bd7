//! What must become of each cell, as a table of what the documentation promises; nothing here is taken from the programs.

/// Where a frame is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Another pod on the same isolated network; for a moved link, the host on its wire.
    Same,
    /// A pod on another isolated network.
    Other,
    /// The node itself.
    Host,
    /// A machine on the node's uplink.
    Uplink,
    /// A machine beyond it.
    Outside,
}

impl Destination {
    pub(crate) const ALL: [Self; 5] = [Self::Same, Self::Other, Self::Host, Self::Uplink, Self::Outside];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Same => "same network",
            Self::Other => "other network",
            Self::Host => "host",
            Self::Uplink => "uplink",
            Self::Outside => "outside",
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Icmp,
    /// An ARP request, or a neighbour solicitation.
    Neighbor,
    /// A datagram in two fragments.
    Fragments,
    /// A UDP datagram with an 802.1Q tag.
    Vlan,
    /// A UDP datagram from a packet socket, through the queueing discipline.
    Raw,
    /// Likewise, with `PACKET_QDISC_BYPASS`.
    RawBypass,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Tcp,
        Self::Udp,
        Self::Icmp,
        Self::Neighbor,
        Self::Fragments,
        Self::Vlan,
        Self::Raw,
        Self::RawBypass,
    ];
}

/// Who the sender says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Honest,
    SpoofedMac,
    SpoofedIp,
}

impl Sender {
    pub(crate) const ALL: [Self; 3] = [Self::Honest, Self::SpoofedMac, Self::SpoofedIp];
}

/// What must become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Each frame is seen at the destination, and nowhere else.
    Arrives,
    /// It is seen nowhere, and the pod gets an answer from the programs.
    Answered,
    /// It is seen nowhere, and each frame is counted under its reason.
    Dropped(&'static [&'static str]),
    /// It is seen at the destination, and no program saw it: a hole that is known.
    PassesUnseen,
}

/// A pod whose endpoint is on the host end of a pair, on an isolated network without rules.
pub(crate) fn on_a_network(to: Destination, v4: bool, kind: Kind, sender: Sender) -> Expected {
    use Expected::{Answered, Arrives, Dropped};
    match (kind, sender) {
        (Kind::Vlan, _) => return Dropped(&["vlan_tagged"]),
        (Kind::Fragments, Sender::SpoofedMac) => return Dropped(&["source_mac", "source_mac"]),
        (_, Sender::SpoofedMac) => return Dropped(&["source_mac"]),
        (Kind::Neighbor, Sender::SpoofedIp) if v4 => return Dropped(&["arp_sender"]),
        // A later fragment is known by its first only, which was not let through.
        (Kind::Fragments, Sender::SpoofedIp) => {
            return Dropped(if v4 { &["source_ipv4", "fragment"] } else { &["source_ipv6", "fragment"] });
        }
        (_, Sender::SpoofedIp) => return Dropped(if v4 { &["source_ipv4"] } else { &["source_ipv6"] }),
        (_, Sender::Honest) => {}
    }
    match (to, kind) {
        (Destination::Same, Kind::Neighbor) => Answered,
        (Destination::Same, _) => Arrives,
        (_, Kind::Fragments) => Dropped(&["not_member", "fragment"]),
        (_, _) => Dropped(&["not_member"]),
    }
}

/// A pod that was given a link of the host, without policy: it may speak to whoever the wire leads to, in its own name.
pub(crate) fn on_a_wire(v4: bool, kind: Kind, sender: Sender) -> Expected {
    use Expected::{Arrives, Dropped, PassesUnseen};
    match (kind, sender) {
        // A packet socket may go around the queueing discipline and so around the program at the link's egress, where the
        // programs of a pod with CAP_NET_RAW cannot be elsewhere. What closes this is a guard on the pod's cgroup that
        // refuses the socket option; where it is in force these cells become those of `Kind::Raw`.
        (Kind::RawBypass, _) => PassesUnseen,
        (Kind::Vlan, _) => Dropped(&["vlan_tagged"]),
        (Kind::Fragments, Sender::SpoofedMac) => Dropped(&["source_mac", "source_mac"]),
        (_, Sender::SpoofedMac) => Dropped(&["source_mac"]),
        (Kind::Neighbor, Sender::SpoofedIp) if v4 => Dropped(&["arp_sender"]),
        // Flows are not followed where nothing asks for it, so each fragment is judged by its own addresses.
        (Kind::Fragments, Sender::SpoofedIp) => {
            Dropped(if v4 { &["source_ipv4", "source_ipv4"] } else { &["source_ipv6", "source_ipv6"] })
        }
        (_, Sender::SpoofedIp) => Dropped(if v4 { &["source_ipv4"] } else { &["source_ipv6"] }),
        (_, Sender::Honest) => Arrives,
    }
}
