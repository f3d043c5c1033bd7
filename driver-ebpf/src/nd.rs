//! Neighbour discovery and multicast listener messages (RFC 4861, RFC 3810): nobody speaks for another.

use bytemuck::{Pod, Zeroable};
use netferry_common::{Addr, Reason};

use crate::ipv6::Upper;
use crate::judge::Case;
use crate::packet::{Ipv6, Mac, Packet};
use crate::tables::Tables;

/// ICMPv6 types.
mod icmp {
    pub(super) const MLD_REPORT: u8 = 131;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    pub(super) const MLD2_REPORT: u8 = 143;
}

/// Options looked at in one message; Linux sends one.
const MAX_OPTIONS: usize = 4;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// Neighbour solicitation or advertisement.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Neighbor {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: u32,
    target: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkOption {
    kind: u8,
    length: u8,
    mac: Mac,
}

/// Checks an ICMPv6 message that starts at `upper.offset`, in a datagram that ends at `end`.
#[inline(always)]
pub(crate) fn check<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    ip: &Ipv6,
    upper: Upper,
    end: usize,
) -> Result<(), Reason> {
    let kind: [u8; 4] = case.packet.load(upper.offset).ok_or(Reason::MalformedIpv6)?;
    let [kind, code, ..] = kind;
    let unspecified = ip.src == [0; 4];
    let options = match kind {
        icmp::ROUTER_SOLICITATION => upper.offset + 8,
        icmp::NEIGHBOR_SOLICITATION | icmp::NEIGHBOR_ADVERTISEMENT => upper.offset + size_of::<Neighbor>(),
        icmp::ROUTER_ADVERTISEMENT | icmp::REDIRECT => {
            return if case.from_pod() { Err(Reason::NdRouter) } else { genuine(ip, upper, code) };
        }
        icmp::MLD_REPORT | icmp::MLD2_REPORT => return Ok(()),
        _ if case.from_pod() && unspecified => return Err(Reason::SourceIpv6),
        _ => return Ok(()),
    };
    genuine(ip, upper, code)?;
    if options > end {
        return Err(Reason::MalformedNd);
    }
    if kind != icmp::ROUTER_SOLICITATION {
        let message: Neighbor = case.packet.load(upper.offset).ok_or(Reason::MalformedNd)?;
        let own = case.owns(Addr::from_words(message.target));
        if kind == icmp::NEIGHBOR_ADVERTISEMENT {
            if own != case.from_pod() {
                return Err(if own { Reason::OwnAddress } else { Reason::NdSender });
            }
        } else if case.from_pod() && unspecified && !own {
            // Solicited from nobody: a probe that would keep another host from using its own address.
            return Err(Reason::NdSender);
        }
    } else if case.from_pod() && unspecified {
        return Err(Reason::SourceIpv6);
    }
    if case.from_pod() { check_options(case, options, end, unspecified) } else { Ok(()) }
}

/// What RFC 4861 and RFC 6980 ask of every such message: not forwarded, not fragmented, code 0.
#[inline(always)]
fn genuine(ip: &Ipv6, upper: Upper, code: u8) -> Result<(), Reason> {
    if ip.hop_limit == 255 && code == 0 && !upper.fragment { Ok(()) } else { Err(Reason::MalformedNd) }
}

/// Link-layer address options of the pod must carry its own address.
#[inline(always)]
fn check_options<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    mut at: usize,
    end: usize,
    unspecified: bool,
) -> Result<(), Reason> {
    for _ in 0..MAX_OPTIONS {
        if at == end {
            return Ok(());
        }
        let option: LinkOption = case.packet.load(at).ok_or(Reason::MalformedNd)?;
        if option.kind == SOURCE_LINK_ADDRESS || option.kind == TARGET_LINK_ADDRESS {
            if option.length != 1 || unspecified {
                return Err(Reason::MalformedNd);
            }
            if option.mac != case.mac {
                return Err(Reason::NdSender);
            }
        }
        at += usize::from(option.length) * 8;
        if option.length == 0 || at > end {
            return Err(Reason::MalformedNd);
        }
    }
    if at == end { Ok(()) } else { Err(Reason::MalformedNd) }
}
