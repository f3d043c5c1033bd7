//! The one decision about a frame, whatever hook it came through.

use netferry_common::endpoint::{ADDR_OWN, SHARED_MAC};
use netferry_common::event::{self, Event};
use netferry_common::{Addr, Direction, Endpoint, Reason};

use crate::admit::{admit, is_tracked};
use crate::arrive::way;
use crate::datagram::{Datagram, Part, check_addresses, wire};

use crate::deliver::{BEYOND, Target};
use crate::flows::Place;
use crate::opaque::reread;
use crate::packet::{self, Ethernet, Mac, Packet, ethertype};
use crate::tables::{Tables, address_flags};
use crate::transport::Segment;
use crate::transport::protocol::ICMPV6;
use crate::{arp, opaque};

/// What becomes of a frame.
#[must_use = "a verdict that is not returned lets the frame through"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program, and then to where it was going.
    Pass,
    /// To another endpoint of the node.
    Redirect(Target),
    /// Back to where it came from: it is the answer now.
    Bounce,
    /// Likewise, as the ICMP error about what was dropped.
    Refuse(Reason),
    /// Nowhere.
    Drop(Reason),
}

/// What every check needs to know about the frame at hand.
pub struct Case<'a, P, T> {
    /// The frame.
    pub packet: &'a P,
    /// The maps.
    pub tables: &'a T,
    /// Id of the endpoint.
    pub id: u32,
    /// Its record.
    pub endpoint: &'a Endpoint,
    /// Its hardware address.
    pub mac: Mac,
    /// Which way the frame goes.
    pub direction: Direction,
    /// The Ethernet header.
    pub eth: Ethernet,
}

impl<'a, P: Packet, T: Tables> Case<'a, P, T> {
    /// The same case, found again in a function that was not handed it.
    #[inline(always)]
    pub fn again(packet: &'a P, tables: &'a T, id: u32, direction: Direction) -> Option<Self> {
        Self::of(packet, tables, id, tables.endpoint(id)?, direction)
    }

    /// Likewise, with the endpoint's record at hand.
    #[inline(always)]
    pub fn of(
        packet: &'a P,
        tables: &'a T,
        id: u32,
        endpoint: &'a Endpoint,
        direction: Direction,
    ) -> Option<Self> {
        let mac = packet::mac(endpoint.mac);
        Some(Self { packet, tables, id, endpoint, mac, direction, eth: packet.head(0)? })
    }

    /// Whether the frame was sent by the pod.
    #[inline(always)]
    #[must_use]
    pub fn from_pod(&self) -> bool {
        matches!(self.direction, Direction::FromPod)
    }

    /// Whether an address is one the pod may send from.
    #[inline(always)]
    #[must_use]
    pub fn owns(&self, addr: Addr) -> bool {
        self.flags(addr) & ADDR_OWN != 0
    }

    /// Flags of an address for this endpoint.
    #[inline(always)]
    #[must_use]
    pub fn flags(&self, addr: Addr) -> u32 {
        address_flags(self.tables, self.id, addr)
    }
}

/// What is worth telling about a frame, filled in as it becomes known. Without padding, as [`Datagram`].
#[repr(C)]
pub struct Note {
    /// Frames on the wire.
    pub frames: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Number of the rule that decided.
    pub rule: u32,
    /// Source port, memory order.
    pub source_port: u16,
    /// Destination port, memory order.
    pub destination_port: u16,
    /// What happened to the flow: 0, [`event::OPEN`] or [`event::CLOSE`].
    pub event: u32,
    /// Not 0 once it was reported.
    pub reported: u32,
    /// Bytes of the largest datagram on the wire.
    pub size: u32,
    /// The MTU it exceeds, if it does.
    pub mtu: u32,
}

const _: () = assert!(size_of::<Note>() == 40);

/// What is known of the frame at hand, kept beside the program's small stack.
#[repr(C)]
pub struct Scratch {
    /// What is worth telling.
    pub note: Note,
    /// The IP header.
    pub ip: Datagram,
    /// Its flow.
    pub place: Place,
    /// The transport header.
    pub segment: Segment,
    /// Where it goes.
    pub target: Target,
    /// Where it came from, through a tunnel.
    pub outer: Outer,
    /// The ICMP error about it.
    pub message: [u32; 130],
}

/// The other end of a tunnel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// The network's number in the tunnel.
    pub vni: u32,
    /// The other node.
    pub node: Addr,
}

impl Scratch {
    /// Of no frame.
    #[must_use]
    pub const fn new() -> Self {
        let note = Note {
            frames: 0,
            bytes: 0,
            rule: 0,
            source_port: 0,
            destination_port: 0,
            event: 0,
            reported: 0,
            size: 0,
            mtu: 0,
        };
        Self {
            note,
            ip: Datagram::UNREAD,
            place: Place::NONE,
            segment: Segment::NONE,
            target: Target::HOST,
            outer: Outer { vni: 0, node: Addr::UNSPECIFIED },
            message: [0; 130],
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Decides about a frame of endpoint `id`, counts it and reports what is worth it.
#[inline(always)]
pub fn judge<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
    id: u32,
    direction: Direction,
) -> Verdict {
    let note = &mut scratch.note;
    let zero = opaque::zero();
    note.frames = 1;
    note.bytes = packet.len() as u64;
    note.rule = zero;
    note.source_port = zero as u16;
    note.destination_port = zero as u16;
    note.event = zero;
    note.reported = zero;
    scratch.target.ifindex = zero;
    scratch.target.path = zero;
    match inspect(packet, tables, id, direction, scratch) {
        Ok(verdict) => {
            let path = scratch.target.path;
            tables.passed(id, direction, scratch.note.frames, scratch.note.bytes, path);
            verdict
        }
        Err(reason) => {
            if scratch.note.reported == 0 {
                report(tables, (id, direction), Err(reason), &NOT_READ, &scratch.note);
            }
            tables.dropped(id, direction, reason);
            if (P::OUTSIDE || P::HOST_END && matches!(direction, Direction::FromPod))
                && matches!(reason, Reason::MtuExceeded | Reason::HopLimit)
                && packet.refuse(id, direction, reason, scratch)
            {
                return Verdict::Refuse(reason);
            }
            Verdict::Drop(reason)
        }
    }
}

/// Stands for a datagram that could not be read.
static NOT_READ: Datagram = Datagram::UNREAD;

#[inline(never)]
fn report<T: Tables>(
    tables: &T,
    // One argument for two, as five are allowed; named, as BTF refuses a pattern without a name.
    way: (u32, Direction),
    outcome: Result<(), Reason>,
    ip: &Datagram,
    note: &Note,
) {
    let (id, direction) = way;
    let (kind, reason) = match outcome {
        Err(reason) => (event::DENY, reason.number()),
        Ok(()) => (note.event, 0),
    };
    tables.report(&Event {
        time: tables.now(),
        kind,
        endpoint: id,
        direction: direction.number(),
        reason,
        rule: note.rule,
        source: ip.source,
        destination: ip.destination,
        source_port: note.source_port.to_ne_bytes(),
        destination_port: note.destination_port.to_ne_bytes(),
        protocol: u32::from(ip.protocol),
        pad: 0,
    });
}

#[inline(always)]
fn inspect<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    id: u32,
    direction: Direction,
    scratch: &mut Scratch,
) -> Result<Verdict, Reason> {
    let endpoint = tables.endpoint(id).ok_or(Reason::NoEndpoint)?;
    if !endpoint.is_ready() {
        return Err(Reason::NotReady);
    }
    let eth: Ethernet = packet.head(0).ok_or(Reason::MalformedEthernet)?;
    if packet.vlan_tagged() || eth.ethertype == ethertype::VLAN || eth.ethertype == ethertype::QINQ {
        return Err(Reason::VlanTagged);
    }
    if packet::is_group(eth.src) {
        return Err(Reason::MalformedEthernet);
    }
    let mac = packet::mac(endpoint.mac);
    let own_source = eth.src == mac;
    match direction {
        Direction::FromPod if !own_source => return Err(Reason::SourceMac),
        Direction::ToPod if own_source && endpoint.flags & SHARED_MAC == 0 => return Err(Reason::OwnMac),
        // From beyond the node, it may be for the node as a router: that was found out with the endpoint.
        Direction::ToPod if !P::OUTSIDE && !packet::is_group(eth.dst) && eth.dst != mac => {
            return Err(Reason::NotForUs);
        }
        _ => {}
    }
    let case = Case { packet, tables, id, endpoint, mac, direction, eth };
    match eth.ethertype {
        ethertype::IPV4 | ethertype::IPV6 => {}
        ethertype::ARP => {
            arp::check(&case)?;
            if endpoint.network == 0 {
                return Ok(Verdict::Pass);
            }
            if P::HOST_END && case.from_pod() {
                packet.answer_arp(&case, scratch)?;
                return Ok(onward(&scratch.target, Verdict::Bounce));
            }
            if !case.from_pod() {
                arp::check_member(&case)?;
            }
            return Ok(of_the_link(&case, &mut scratch.target));
        }
        _ => return Err(Reason::Ethertype),
    }
    packet.datagram(eth.ethertype == ethertype::IPV4, &mut scratch.ip)?;
    let Scratch { note, ip, .. } = scratch;
    if ip.protocol == ICMPV6 && !ip.v4 && ip.part != Part::Later && packet.link_scope(&case, ip)? {
        if endpoint.network == 0 {
            return Ok(Verdict::Pass);
        }
        if P::HOST_END && case.from_pod() {
            packet.answer_neighbor(&case, scratch)?;
            return Ok(onward(&scratch.target, Verdict::Bounce));
        }
        return Ok(of_the_link(&case, &mut scratch.target));
    }
    (note.frames, note.bytes, note.size) = wire(packet, ip);
    let outcome = settle(&case, scratch);
    let Scratch { note, ip, .. } = scratch;
    if outcome.is_err() || note.event != 0 {
        report(tables, (id, direction), outcome, ip, note);
        note.reported = 1;
    }
    outcome?;
    Ok(onward(&scratch.target, Verdict::Pass))
}

/// To the target, if there is one.
#[inline(always)]
fn onward(target: &Target, otherwise: Verdict) -> Verdict {
    let target = reread(target);
    if target.ifindex == 0 { otherwise } else { Verdict::Redirect(target) }
}

/// A message of the link that may go to the pod.
#[inline(always)]
fn of_the_link<P: Packet, T: Tables>(case: &Case<'_, P, T>, target: &mut Target) -> Verdict {
    if P::OUTSIDE {
        *target = Target { ifindex: case.endpoint.ifindex, path: way(P::HOOK) };
    }
    onward(target, Verdict::Pass)
}

/// Everything that is decided about a datagram.
#[inline(always)]
fn settle<P: Packet, T: Tables>(case: &Case<'_, P, T>, scratch: &mut Scratch) -> Result<(), Reason> {
    let flow = if is_tracked(case.endpoint) {
        admit(case, scratch)?
    } else {
        check_addresses(case, &scratch.ip)?;
        None
    };
    case.packet.charge(case.tables, case.id, case.direction, case.endpoint.flags, &scratch.note)?;
    if P::HOST_END && case.from_pod() && case.endpoint.network != 0 && case.endpoint.ifindex != 0 {
        case.packet.deliver(case, flow, scratch)?;
        if reread(&scratch.target.path) == BEYOND {
            case.packet.depart(case, scratch)?;
        }
    }
    if P::OUTSIDE {
        case.packet.arrive(case, scratch)?;
    }
    Ok(())
}
