//! Neighbour discovery and multicast listener messages (RFC 4861, RFC 3810): nobody speaks for another.

use bytemuck::{Pod, Zeroable};
use netferry_common::{Addr, MemberKey, Reason};

use crate::answer;
use crate::ipv6::is_multicast;
use crate::judge::Case;
use crate::packet::{ETH_LEN, Ipv6, Mac, Packet, mac};
use crate::tables::Tables;

/// ICMPv6 types.
mod icmp {
    pub(super) const MLD_QUERY: u8 = 130;
    pub(super) const MLD_DONE: u8 = 132;
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

/// Checks an ICMPv6 message that starts at `offset`, is not a later fragment, and ends at `end`. `fragment` tells of
/// a fragment header, be it around the whole message. Answers whether it is of the link (and no flow's): neighbour
/// discovery or multicast listening.
#[inline(always)]
pub(crate) fn check<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    offset: usize,
    end: usize,
    fragment: bool,
) -> Result<bool, Reason> {
    let ip: Ipv6 = case.packet.head(ETH_LEN).ok_or(Reason::MalformedIpv6)?;
    let header: [u8; 4] = case.packet.load(offset).ok_or(Reason::MalformedIpv6)?;
    if offset + 4 > end {
        return Err(Reason::MalformedIpv6);
    }
    let [kind, code, ..] = header;
    let (length, listening) = match kind {
        icmp::ROUTER_SOLICITATION => (8, false),
        icmp::ROUTER_ADVERTISEMENT => (16, false),
        icmp::NEIGHBOR_SOLICITATION | icmp::NEIGHBOR_ADVERTISEMENT => (size_of::<Neighbor>(), false),
        icmp::REDIRECT => (40, false),
        icmp::MLD_QUERY..=icmp::MLD_DONE | icmp::MLD2_REPORT => (8, true),
        _ => return Ok(false),
    };
    // A host without an address may ask whether one is free, and say which groups it hears.
    let may_be_nobody = kind == icmp::NEIGHBOR_SOLICITATION || (listening && kind != icmp::MLD_QUERY);
    let from_nobody = may_be_nobody && ip.src == [0; 4] && case.from_pod();
    if !from_nobody {
        let own_source = case.owns(Addr::from_words(ip.src));
        if case.from_pod() && !own_source {
            return Err(Reason::SourceIpv6);
        }
        if !case.from_pod() && own_source {
            return Err(Reason::OwnAddress);
        }
    }
    if !case.from_pod() && !is_multicast(ip.dst) && !case.owns(Addr::from_words(ip.dst)) {
        return Err(Reason::DestinationAddress);
    }
    let options = offset + length;
    let mut speaker = Addr::from_words(ip.src);
    // What RFC 4861 and RFC 6980 ask of every such message: not forwarded, not fragmented, code 0.
    if options > end || (!listening && (ip.hop_limit != 255 || code != 0 || fragment)) {
        return Err(Reason::MalformedNd);
    }
    match kind {
        icmp::ROUTER_ADVERTISEMENT | icmp::REDIRECT if case.from_pod() => return Err(Reason::NdRouter),
        icmp::NEIGHBOR_SOLICITATION | icmp::NEIGHBOR_ADVERTISEMENT => {
            let message: Neighbor = case.packet.load(offset).ok_or(Reason::MalformedNd)?;
            let own = case.owns(Addr::from_words(message.target));
            if kind == icmp::NEIGHBOR_ADVERTISEMENT {
                speaker = Addr::from_words(message.target);
                if own != case.from_pod() {
                    return Err(if own { Reason::OwnAddress } else { Reason::NdSender });
                }
            } else if from_nobody && !own {
                // Solicited from nobody: a probe that would keep another host from using its own address.
                return Err(Reason::NdSender);
            }
        }
        _ => {}
    }
    if case.from_pod() {
        return if listening {
            Ok(true)
        } else {
            check_options(case, options, end, case.mac, from_nobody).map(|()| true)
        };
    }
    if case.endpoint.network != 0 {
        let neighbor = matches!(kind, icmp::NEIGHBOR_SOLICITATION | icmp::NEIGHBOR_ADVERTISEMENT);
        let mac = member_mac(case, speaker, neighbor)?;
        if !listening {
            check_options(case, options, end, mac, false)?;
        }
    }
    Ok(true)
}

/// On an isolated network, who speaks for an address must be the member that has it, under its own hardware address.
/// Where the network goes on over an uplink, a neighbour may also be no member at all.
#[inline(always)]
fn member_mac<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    speaker: Addr,
    neighbor: bool,
) -> Result<Mac, Reason> {
    let key = MemberKey { network: case.endpoint.network, addr: speaker };
    match case.tables.member(&key) {
        Some(member) if mac(member.mac) == case.eth.src => Ok(case.eth.src),
        None if neighbor && answer::wire(case).is_some() => Ok(case.eth.src),
        _ => Err(Reason::NotMember),
    }
}

/// Link-layer address options must carry the address of the sender.
#[inline(always)]
fn check_options<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    mut at: usize,
    end: usize,
    mac: Mac,
    unspecified: bool,
) -> Result<(), Reason> {
    let forged = if case.from_pod() { Reason::NdSender } else { Reason::NotMember };
    for _ in 0..MAX_OPTIONS {
        if at == end {
            return Ok(());
        }
        let option: LinkOption = case.packet.load(at).ok_or(Reason::MalformedNd)?;
        at += usize::from(option.length) * 8;
        if option.length == 0 || at > end {
            return Err(Reason::MalformedNd);
        }
        if option.kind == SOURCE_LINK_ADDRESS || option.kind == TARGET_LINK_ADDRESS {
            if option.length != 1 || unspecified {
                return Err(Reason::MalformedNd);
            }
            if option.mac != mac {
                return Err(forged);
            }
        }
    }
    if at == end { Ok(()) } else { Err(Reason::MalformedNd) }
}
