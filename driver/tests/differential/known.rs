//! What the frame before this one leaves behind: a flow, a datagram in fragments.

use std::net::IpAddr;

use etherparse::{EtherType, Ethernet2HeaderSlice, IpNumber};
use netferry_common::Direction;

use super::oracle::owns;
use super::parse::{self, Datagram, Means, Part, Transport};
use super::world::Setting;

/// A side of a flow: address and port.
type Side = (IpAddr, u16);

/// A flow of the pod, as it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    protocol: IpNumber,
    opener: Side,
    other: Side,
    direction: Direction,
    /// Whether the receiver was judged too: not for fragments and datagrams with options.
    delivered: bool,
}

/// A datagram whose first fragment was let through.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fragments {
    direction: Direction,
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    /// Part of the identity over IPv4 alone.
    protocol: Option<IpNumber>,
}

impl Fragments {
    fn of(direction: Direction, ip: &Datagram<'_>) -> Self {
        let protocol = ip.is_v4().then_some(ip.protocol);
        Self { direction, source: ip.source, destination: ip.destination, id: ip.id, protocol }
    }
}

/// All that is remembered.
#[derive(Clone, Debug, Default)]
pub struct Known {
    flow: Option<Flow>,
    fragments: Option<Fragments>,
}

impl Known {
    /// What is known after a frame was let through.
    pub fn after(setting: Setting, direction: Direction, bytes: &[u8]) -> Self {
        let Ok(eth) = Ethernet2HeaderSlice::from_slice(bytes) else { return Self::default() };
        let ip = match eth.ether_type() {
            EtherType::IPV4 => parse::ipv4(&bytes[14..]),
            EtherType::IPV6 => parse::ipv6(&bytes[14..]),
            _ => return Self::default(),
        };
        let Ok(ip) = ip else { return Self::default() };
        let Some(transport) = parse::transport(&ip) else { return Self::default() };
        if !setting.tracked() || transport.means != Means::Opens || ip.part == Part::Later {
            return Self::default();
        }
        let flow = Flow {
            protocol: ip.protocol,
            opener: (ip.source, transport.from),
            other: (ip.destination, transport.to),
            direction,
            delivered: direction == Direction::FromPod && ip.part == Part::Whole && !ip.options,
        };
        Self {
            flow: (!ip.is_for_group()).then_some(flow),
            fragments: (ip.part == Part::First).then(|| Fragments::of(direction, &ip)),
        }
    }

    /// Whether both sides are the pod: it then depends on who asks.
    pub fn is_of_the_pod_alone(&self) -> bool {
        self.flow.as_ref().is_some_and(|flow| owns(flow.opener.0) && owns(flow.other.0))
    }

    /// Whether the flow is one its receiver on the node agreed to.
    pub fn was_delivered(&self) -> bool {
        self.flow.as_ref().is_some_and(|flow| flow.delivered)
    }

    /// Whether a later fragment belongs to a first one.
    pub fn continues(&self, direction: Direction, ip: &Datagram<'_>) -> bool {
        self.fragments.as_ref() == Some(&Fragments::of(direction, ip))
    }

    /// Whether the flow's sides are named alike, and the datagram would be a request of the one that was asked, or its own
    /// reply to the one that asked: ICMP with an identifier of 0.
    fn confuses(&self, direction: Direction, ip: &Datagram<'_>, transport: &Transport) -> bool {
        let Some(flow) = self.flow.as_ref() else { return false };
        let by_opener = direction == flow.direction;
        let (from, to) = ((ip.source, transport.from), (ip.destination, transport.to));
        let sides = if by_opener { (from, to) } else { (to, from) };
        flow.protocol == ip.protocol
            && sides == (flow.opener, flow.other)
            && matches!(ip.protocol, IpNumber::ICMP | IpNumber::IPV6_ICMP)
            && by_opener != (transport.means == Means::Opens)
    }

    /// If a datagram belongs to the flow: whether its sender opened it.
    pub fn belongs(&self, direction: Direction, ip: &Datagram<'_>, transport: &Transport) -> Option<bool> {
        let flow = self.flow.as_ref()?;
        if flow.protocol != ip.protocol
            || ip.is_for_group()
            || !transport.may_belong
            || self.confuses(direction, ip, transport)
        {
            return None;
        }
        let (from, to) = ((ip.source, transport.from), (ip.destination, transport.to));
        if (from, to) == (flow.opener, flow.other) && direction == flow.direction {
            return Some(true);
        }
        ((to, from) == (flow.opener, flow.other) && direction != flow.direction).then_some(false)
    }

    /// Whether an error that goes that way is about the flow, and goes to the host that sent what it quotes.
    pub fn concerns(&self, direction: Direction, ip: &Datagram<'_>) -> bool {
        let Some((flow, inner)) = self.flow.as_ref().zip(parse::quoted(ip)) else { return false };
        let quoted = ((inner.source, inner.from), (inner.destination, inner.to));
        // What it quotes went the other way.
        let by_opener = direction != flow.direction;
        let expected = if by_opener { (flow.opener, flow.other) } else { (flow.other, flow.opener) };
        flow.protocol == inner.protocol && inner.source == ip.destination && quoted == expected
    }
}
