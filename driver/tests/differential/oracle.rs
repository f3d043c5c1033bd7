//! The documented rules (the reasons of `netferry_common::verdict`, the order of `netferry_common::policy`), applied to
//! what another implementation reads from a frame.

use std::net::IpAddr;

use etherparse::{EtherType, Ethernet2HeaderSlice, IpNumber};
use netferry::datapath::policy::{Action, Decision, Otherwise, evaluate};
use netferry_common::{Addr, Direction, Reason};

use super::bench::Outcome;
use super::frames::{Host, OTHER, PEER, POD};
use super::known::Known;
use super::neighbors;
use super::parse::{self, Datagram, Means, Part, Reasons};
use super::world::{MEMBERS, Setting, UNREADY};

/// What should become of a frame.
#[derive(Debug)]
pub enum Expected {
    Pass,
    Redirect(Vec<u8>),
    /// For one of these reasons.
    Drop(Reasons),
}

impl Expected {
    pub fn agrees(&self, found: &Outcome) -> bool {
        match (self, found) {
            (Self::Pass, Outcome::Pass) => true,
            (Self::Redirect(expected), Outcome::Redirect(found)) => expected == found,
            (Self::Drop(reasons), Outcome::Drop(reason)) => reasons.contains(reason),
            _ => false,
        }
    }

    pub fn shown(&self) -> String {
        match self {
            Self::Redirect(frame) => format!("Redirect({})", super::hex(frame)),
            other => format!("{other:?}"),
        }
    }
}

/// A frame at an endpoint.
pub struct Frame<'a> {
    pub setting: Setting,
    pub direction: Direction,
    pub bytes: &'a [u8],
    pub known: &'a Known,
}

impl Frame<'_> {
    pub fn is_from_pod(&self) -> bool {
        self.direction == Direction::FromPod
    }

    /// Its source hardware address.
    pub fn source(&self) -> [u8; 6] {
        self.bytes[6..12].try_into().expect("an Ethernet header")
    }

    /// What an isolated network's frames of the pod meet: a program that can answer and deliver.
    pub fn answered(&self) -> bool {
        self.setting.isolated() && self.is_from_pod()
    }
}

/// Whether the pod may use an address.
pub fn owns(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets() == POD.v4,
        IpAddr::V6(ip) => ip.octets() == POD.v6 || ip.octets() == Addr::link_local(POD.mac).bytes,
    }
}

/// Who has an address on the isolated network.
pub fn member(ip: IpAddr) -> Option<Host> {
    let has = |host: &Host| match ip {
        IpAddr::V4(ip) => ip.octets() == host.v4,
        IpAddr::V6(ip) => ip.octets() == host.v6,
    };
    MEMBERS.map(|(host, _)| host).into_iter().find(has)
}

/// Whether a hardware address is a group's.
fn is_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0
}

pub fn expect(setting: Setting, direction: Direction, bytes: &[u8], known: &Known) -> Expected {
    let frame = Frame { setting, direction, bytes, known };
    let Ok(eth) = Ethernet2HeaderSlice::from_slice(bytes) else {
        return Expected::Drop(Reasons::from([Reason::MalformedEthernet]));
    };
    let (from, to) = (eth.source(), eth.destination());
    let mut reasons = Reasons::new();
    let mut rule = |broken: bool, reason| {
        if broken {
            reasons.insert(reason);
        }
    };
    rule(is_group(from), Reason::MalformedEthernet);
    if frame.is_from_pod() {
        rule(from != POD.mac, Reason::SourceMac);
    } else {
        rule(from == POD.mac, Reason::OwnMac);
        rule(!is_group(to) && to != POD.mac, Reason::NotForUs);
    }
    let payload = &bytes[14..];
    let inner = match eth.ether_type() {
        EtherType::ARP => neighbors::arp(&frame, payload),
        EtherType::IPV4 => parse::ipv4(payload).map_or_else(Expected::Drop, |ip| datagram(&frame, &ip)),
        EtherType::IPV6 => parse::ipv6(payload).map_or_else(Expected::Drop, |ip| datagram(&frame, &ip)),
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING => {
            Expected::Drop(Reasons::from([Reason::VlanTagged]))
        }
        _ => Expected::Drop(Reasons::from([Reason::Ethertype])),
    };
    match inner {
        Expected::Drop(inner) => Expected::Drop(&reasons | &inner),
        inner if reasons.is_empty() => inner,
        _ => Expected::Drop(reasons),
    }
}

fn datagram(frame: &Frame<'_>, ip: &Datagram<'_>) -> Expected {
    if let Some(expected) = neighbors::link_message(frame, ip) {
        return expected;
    }
    let mut reasons = addresses(frame, ip);
    if !frame.setting.tracked() {
        return passed_unless(reasons);
    }
    if ip.part == Part::Later {
        if !frame.known.continues(frame.direction, ip) {
            reasons.insert(Reason::Fragment);
        }
        return delivered_unless(reasons, frame, ip, None);
    }
    let Some(transport) = parse::transport(ip) else {
        reasons.insert(Reason::MalformedTransport);
        return Expected::Drop(reasons);
    };
    let belongs = frame.known.belongs(frame.direction, ip, &transport);
    match transport.means {
        Means::Error if ip.part == Part::Whole && parse::quoted(ip).is_none() => {
            reasons.insert(Reason::MalformedTransport);
        }
        _ if belongs.is_some() => {}
        Means::Error if ip.part == Part::Whole && frame.known.concerns(frame.direction, ip) => {}
        Means::Error | Means::Answers => {
            reasons.insert(Reason::NoFlow);
        }
        Means::Opens => {
            let peer = if frame.is_from_pod() { ip.destination } else { ip.source };
            let flow = (peer, ip.protocol, transport.port);
            reasons.extend(denied(frame.setting, true, frame.direction, flow));
        }
    }
    if transport.means != Means::Error && ip.is_for_group() && frame.setting.isolated() {
        reasons.insert(Reason::NoReceiver);
    }
    // What belongs to a flow that was delivered is judged already.
    let judged = transport.means != Means::Error
        && ip.part == Part::Whole
        && !ip.options
        && !(belongs == Some(true) && frame.known.was_delivered());
    delivered_unless(reasons, frame, ip, judged.then_some((transport.port, belongs.unwrap_or(true))))
}

fn passed_unless(reasons: Reasons) -> Expected {
    if reasons.is_empty() { Expected::Pass } else { Expected::Drop(reasons) }
}

/// Whose addresses a datagram may carry.
fn addresses(frame: &Frame<'_>, ip: &Datagram<'_>) -> Reasons {
    let mut reasons = Reasons::new();
    if frame.is_from_pod() {
        if !owns(ip.source) {
            reasons.insert(if ip.is_v4() { Reason::SourceIpv4 } else { Reason::SourceIpv6 });
        }
        return reasons;
    }
    if owns(ip.source) {
        reasons.insert(Reason::OwnAddress);
    }
    let subnet = IpAddr::from([192, 0, 2, 255]);
    if !owns(ip.destination) && !ip.is_for_group() && ip.destination != subnet {
        reasons.insert(Reason::DestinationAddress);
    }
    reasons
}

/// Why policy of the pod (or else of the peer) denies a flow, if it does.
fn denied(
    setting: Setting,
    of_pod: bool,
    direction: Direction,
    (peer, protocol, port): (IpAddr, IpNumber, u16),
) -> Option<Reason> {
    let (rules, otherwise) = setting.rules(of_pod, direction);
    match evaluate(&rules, otherwise, peer, protocol.0, port) {
        Decision::Rule(Action::Allow, _) => None,
        Decision::Rule(Action::Deny, _) => Some(Reason::PolicyDenied),
        Decision::Otherwise(Otherwise::Deny) => Some(Reason::PolicyDefault),
        Decision::Otherwise(Otherwise::Network) => {
            (setting.isolated() && member(peer).is_none()).then_some(Reason::NotMember)
        }
    }
}

/// Where a datagram goes that the pod's side lets through. The receiver's side is judged here for a flow to that port,
/// opened by this sender or not; the rest (`None`) is left to the receiver's own program.
fn delivered_unless(
    mut reasons: Reasons,
    frame: &Frame<'_>,
    ip: &Datagram<'_>,
    judged: Option<(u16, bool)>,
) -> Expected {
    let host = member(ip.destination);
    let Some(host) = host.filter(|_| reasons.is_empty() && frame.answered()) else {
        return passed_unless(reasons);
    };
    if host.mac == OTHER.mac || host.mac == POD.mac {
        reasons.insert(Reason::NoRoute);
    } else if host.mac == UNREADY.mac {
        reasons.insert(Reason::TargetNotReady);
    } else if let Some((port, by_sender)) = judged {
        // The peer has no rules about flows of its own, so the port does not matter there.
        let direction = if by_sender { Direction::ToPod } else { Direction::FromPod };
        reasons.extend(denied(frame.setting, false, direction, (ip.source, ip.protocol, port)));
    }
    if !reasons.is_empty() {
        return Expected::Drop(reasons);
    }
    let mut delivered = frame.bytes.to_vec();
    delivered[..6].copy_from_slice(&PEER.mac);
    Expected::Redirect(delivered)
}
