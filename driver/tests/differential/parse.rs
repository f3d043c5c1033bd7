//! What a frame says, by etherparse and no code of ours.

use std::collections::BTreeSet;
use std::net::IpAddr;

use etherparse::{
    IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
};
use netferry_common::Reason;

/// Every reason that is right for a frame that breaks several rules at once.
pub type Reasons = BTreeSet<Reason>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

/// An IP datagram, as far as it goes.
#[derive(Debug)]
pub struct Datagram<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: IpNumber,
    pub hop_limit: u8,
    pub part: Part,
    /// Identification among the fragments of datagrams.
    pub id: u32,
    /// IPv4 options, or extension headers other than one fragment header.
    pub options: bool,
    /// An IPv6 fragment header.
    pub fragment: bool,
    /// What follows the headers, without what pads the frame.
    pub payload: &'a [u8],
}

impl Datagram<'_> {
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// For a multicast address, or for everybody.
    pub fn is_for_group(&self) -> bool {
        match self.destination {
            IpAddr::V4(to) => to.is_multicast() || to.is_broadcast(),
            IpAddr::V6(to) => to.is_multicast(),
        }
    }
}

pub fn ipv4(bytes: &[u8]) -> Result<Datagram<'_>, Reasons> {
    let malformed = || Reasons::from([Reason::MalformedIpv4]);
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| malformed())?;
    let total = usize::from(header.total_len());
    let (source, destination) = (header.source_addr(), header.destination_addr());
    if total < header.slice().len() || total > bytes.len() || source.is_multicast() || source.is_broadcast() {
        return Err(malformed());
    }
    Ok(Datagram {
        source: source.into(),
        destination: destination.into(),
        protocol: header.protocol(),
        hop_limit: header.ttl(),
        part: match (header.fragments_offset().value(), header.more_fragments()) {
            (0, false) => Part::Whole,
            (0, true) => Part::First,
            _ => Part::Later,
        },
        id: header.identification().into(),
        options: !header.options().is_empty(),
        fragment: false,
        payload: &bytes[header.slice().len()..total],
    })
}

pub fn ipv6(bytes: &[u8]) -> Result<Datagram<'_>, Reasons> {
    let malformed = || Reasons::from([Reason::MalformedIpv6]);
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| malformed())?;
    let rest = &bytes[header.slice().len()..];
    let payload = rest.get(..usize::from(header.payload_length())).ok_or_else(malformed)?;
    let (source, destination) = (header.source_addr(), header.destination_addr());
    if source.is_multicast() || source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
        return Err(malformed());
    }
    let upper = Upper::walk(header.next_header(), payload)?;
    Ok(Datagram {
        source: source.into(),
        destination: destination.into(),
        protocol: upper.protocol,
        hop_limit: header.hop_limit(),
        part: upper.part,
        id: upper.id,
        options: upper.others,
        fragment: upper.fragment,
        payload: upper.payload,
    })
}

/// What is behind the extension headers.
struct Upper<'a> {
    protocol: IpNumber,
    part: Part,
    id: u32,
    fragment: bool,
    others: bool,
    payload: &'a [u8],
}

impl<'a> Upper<'a> {
    fn walk(mut next: IpNumber, mut rest: &'a [u8]) -> Result<Self, Reasons> {
        let (mut part, mut id, mut fragment, mut others) = (Part::Whole, 0, false, false);
        for seen in 1.. {
            let wrong = |reason| {
                let many = (seen > 6).then_some(Reason::ExtensionHeader);
                many.into_iter().chain([reason]).collect::<Reasons>()
            };
            let malformed = || wrong(Reason::MalformedIpv6);
            let length = match next {
                IpNumber::IPV6_FRAGMENTATION_HEADER => {
                    let header = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| malformed())?;
                    others |= fragment;
                    fragment = true;
                    next = header.next_header();
                    id = header.identification();
                    if header.fragment_offset().value() != 0 {
                        part = Part::Later;
                    } else if header.more_fragments() {
                        part = Part::First;
                    }
                    header.slice().len()
                }
                IpNumber::AUTHENTICATION_HEADER => {
                    let header = IpAuthHeaderSlice::from_slice(rest).map_err(|_| malformed())?;
                    others = true;
                    next = header.next_header();
                    header.slice().len()
                }
                IpNumber::IPV6_HEADER_HOP_BY_HOP
                | IpNumber::IPV6_ROUTE_HEADER
                | IpNumber::IPV6_DESTINATION_OPTIONS
                | IpNumber::MOBILITY_HEADER => {
                    let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| {
                        // What reroutes may be told from its first bytes.
                        let mut wrong = malformed();
                        if next == IpNumber::IPV6_ROUTE_HEADER && rest.get(3).is_some_and(|left| *left != 0) {
                            wrong.insert(Reason::ExtensionHeader);
                        }
                        wrong
                    })?;
                    if next == IpNumber::IPV6_ROUTE_HEADER && header.payload()[1] != 0 {
                        return Err(wrong(Reason::ExtensionHeader));
                    }
                    others = true;
                    next = header.next_header();
                    header.slice().len()
                }
                _ => break,
            };
            if seen > 6 {
                return Err(Reasons::from([Reason::ExtensionHeader]));
            }
            rest = &rest[length..];
            if part == Part::Later {
                break;
            }
        }
        Ok(Self { protocol: next, part, id, fragment, others, payload: rest })
    }
}

/// What a transport header means for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    Opens,
    Answers,
    Error,
}

/// What a transport header says.
pub struct Transport {
    /// Port of the sender, as it names the flow: for ICMP the identifier of a request, on the side that asked.
    pub from: u16,
    /// Port of the receiver, likewise.
    pub to: u16,
    /// What policy is asked about, if the datagram opens a flow.
    pub port: u16,
    pub means: Means,
    /// Whether there is a flow it could be a part of.
    pub may_belong: bool,
}

fn port(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Names of the two sides in a flow, from at least 8 bytes of a transport header.
fn names(protocol: IpNumber, bytes: &[u8]) -> Option<(u16, u16)> {
    let identifier = port(bytes, 4)?;
    Some(match (protocol, bytes[0]) {
        (IpNumber::TCP | IpNumber::UDP | IpNumber::SCTP, _) => (port(bytes, 0)?, port(bytes, 2)?),
        (IpNumber::ICMP, 8) | (IpNumber::IPV6_ICMP, 128) => (identifier, 0),
        (IpNumber::ICMP, 0) | (IpNumber::IPV6_ICMP, 129) => (0, identifier),
        (IpNumber::ICMP, 13) => (identifier, 13),
        (IpNumber::ICMP, 14) => (13, identifier),
        _ => (0, 0),
    })
}

/// Reads a transport header. `None`: cut short, or contradicts itself.
pub fn transport(ip: &Datagram<'_>) -> Option<Transport> {
    let bytes = ip.payload;
    let (port, means, may_belong) = match ip.protocol {
        IpNumber::TCP => {
            let header = TcpHeaderSlice::from_slice(bytes).ok()?;
            let opens = !header.rst() && (header.syn() != header.ack());
            (header.destination_port(), if opens { Means::Opens } else { Means::Answers }, true)
        }
        IpNumber::UDP => (UdpHeaderSlice::from_slice(bytes).ok()?.destination_port(), Means::Opens, true),
        IpNumber::SCTP => {
            // A common header and the head of a chunk; etherparse does not know SCTP.
            let head: &[u8; 16] = bytes.first_chunk()?;
            // INIT ACK, ABORT, SHUTDOWN, SHUTDOWN ACK, COOKIE ACK, SHUTDOWN COMPLETE.
            let answers = matches!(head[12], 2 | 6 | 7 | 8 | 11 | 14);
            (port(head, 2)?, if answers { Means::Answers } else { Means::Opens }, true)
        }
        IpNumber::ICMP | IpNumber::IPV6_ICMP => {
            let head: &[u8; 8] = bytes.first_chunk()?;
            let (means, may_belong) = match (ip.protocol, head[0]) {
                (IpNumber::ICMP, 8 | 13) | (IpNumber::IPV6_ICMP, 128) => (Means::Opens, true),
                (IpNumber::ICMP, 3 | 4 | 5 | 11 | 12) | (IpNumber::IPV6_ICMP, 0..128) => {
                    (Means::Error, false)
                }
                (IpNumber::ICMP, 0 | 14) | (IpNumber::IPV6_ICMP, 129) => (Means::Answers, true),
                _ => (Means::Answers, false),
            };
            (port(head, 0)?, means, may_belong)
        }
        _ => return Some(Transport { from: 0, to: 0, port: 0, means: Means::Opens, may_belong: true }),
    };
    let (from, to) = names(ip.protocol, bytes)?;
    Some(Transport { from, to, port, means, may_belong })
}

/// The datagram an ICMP error carries.
pub struct Quoted {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: IpNumber,
    pub from: u16,
    pub to: u16,
}

/// Reads what an ICMP error carries: the IP header it must, and 8 bytes after it. `None`: it does not.
pub fn quoted(error: &Datagram<'_>) -> Option<Quoted> {
    let inner = error.payload.get(8..)?;
    let (source, destination, protocol, rest): (IpAddr, IpAddr, _, _) = if error.is_v4() {
        let header = Ipv4HeaderSlice::from_slice(inner).ok()?;
        if header.fragments_offset().value() != 0 {
            return None;
        }
        let rest = &inner[header.slice().len()..];
        (header.source_addr().into(), header.destination_addr().into(), header.protocol(), rest)
    } else {
        let header = Ipv6HeaderSlice::from_slice(inner).ok()?;
        let upper = Upper::walk(header.next_header(), &inner[40..]).ok()?;
        if upper.part == Part::Later {
            return None;
        }
        (header.source_addr().into(), header.destination_addr().into(), upper.protocol, upper.payload)
    };
    let (from, to) = names(protocol, rest.get(..8)?)?;
    Some(Quoted { source, destination, protocol, from, to })
}
