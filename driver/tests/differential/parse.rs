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
        options: upper.others,
        fragment: upper.fragment,
        payload: upper.payload,
    })
}

/// What is behind the extension headers.
struct Upper<'a> {
    protocol: IpNumber,
    part: Part,
    fragment: bool,
    others: bool,
    payload: &'a [u8],
}

impl<'a> Upper<'a> {
    fn walk(mut next: IpNumber, mut rest: &'a [u8]) -> Result<Self, Reasons> {
        let (mut part, mut fragment, mut others) = (Part::Whole, false, false);
        for seen in 1.. {
            let wrong = |reason| {
                let many = (seen > 6).then_some(Reason::ExtensionHeader);
                Reasons::from_iter(many.into_iter().chain([reason]))
            };
            let malformed = || wrong(Reason::MalformedIpv6);
            let length = match next {
                IpNumber::IPV6_FRAGMENTATION_HEADER => {
                    let header = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| malformed())?;
                    others |= fragment;
                    fragment = true;
                    next = header.next_header();
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
        Ok(Self { protocol: next, part, fragment, others, payload: rest })
    }
}

/// What a transport header means for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    Opens,
    Answers,
    Error,
}

/// The port that policy is asked about, and what the datagram means. `None`: cut short, or contradicts itself.
pub fn transport(ip: &Datagram<'_>) -> Option<(u16, Means)> {
    let bytes = ip.payload;
    match ip.protocol {
        IpNumber::TCP => {
            let header = TcpHeaderSlice::from_slice(bytes).ok()?;
            let opens = !header.rst() && (header.syn() != header.ack());
            Some((header.destination_port(), if opens { Means::Opens } else { Means::Answers }))
        }
        IpNumber::UDP => {
            UdpHeaderSlice::from_slice(bytes).ok().map(|udp| (udp.destination_port(), Means::Opens))
        }
        IpNumber::SCTP => {
            // A common header and the head of a chunk; etherparse does not know SCTP.
            let head: &[u8; 16] = bytes.first_chunk()?;
            // INIT ACK, ABORT, SHUTDOWN, SHUTDOWN ACK, COOKIE ACK, SHUTDOWN COMPLETE.
            let answers = matches!(head[12], 2 | 6 | 7 | 8 | 11 | 14);
            let port = u16::from_be_bytes([head[2], head[3]]);
            Some((port, if answers { Means::Answers } else { Means::Opens }))
        }
        IpNumber::ICMP | IpNumber::IPV6_ICMP => {
            let head: &[u8; 8] = bytes.first_chunk()?;
            let means = match (ip.protocol, head[0]) {
                (IpNumber::ICMP, 8 | 13) | (IpNumber::IPV6_ICMP, 128) => Means::Opens,
                (IpNumber::ICMP, 3 | 4 | 5 | 11 | 12) | (IpNumber::IPV6_ICMP, 0..128) => Means::Error,
                _ => Means::Answers,
            };
            Some((u16::from_be_bytes([head[0], head[1]]), means))
        }
        _ => Some((0, Means::Opens)),
    }
}

/// Whether an ICMP error carries the IP header it must and 8 bytes after it.
pub fn quotes_a_datagram(error: &Datagram<'_>) -> bool {
    let Some(inner) = error.payload.get(8..) else { return false };
    if error.is_v4() {
        Ipv4HeaderSlice::from_slice(inner).is_ok_and(|header| {
            header.fragments_offset().value() == 0 && inner.len() >= header.slice().len() + 8
        })
    } else {
        Ipv6HeaderSlice::from_slice(inner).is_ok_and(|header| {
            Upper::walk(header.next_header(), &inner[40..])
                .is_ok_and(|upper| upper.part != Part::Later && upper.payload.len() >= 8)
        })
    }
}
