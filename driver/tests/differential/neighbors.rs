//! The rules of ARP, neighbour discovery and multicast listening.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType, IpNumber};
use netferry_common::Reason;

use super::frames::{self, POD};
use super::oracle::{Expected, Frame, member, owns};
use super::parse::{Datagram, Part, Reasons};

fn drop(reason: Reason) -> Expected {
    Expected::Drop(Reasons::from([reason]))
}

pub fn arp(frame: &Frame<'_>, payload: &[u8]) -> Expected {
    let Ok(packet) = ArpPacketSlice::from_slice(payload) else { return drop(Reason::MalformedArp) };
    let is_request = packet.operation() == ArpOperation::REQUEST;
    let halves = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok();
    let sound = packet.hw_addr_type() == ArpHardwareId::ETHERNET
        && packet.proto_addr_type() == EtherType::IPV4
        && packet.hw_addr_size() == 6
        && (is_request || packet.operation() == ArpOperation::REPLY);
    let (true, Some(sender), Some(target)) =
        (sound, halves(packet.sender_protocol_addr()), halves(packet.target_protocol_addr()))
    else {
        return drop(Reason::MalformedArp);
    };
    let sender_mac = packet.sender_hw_addr();
    let mut reasons = Reasons::new();
    if frame.is_from_pod() {
        let probe = sender == [0; 4] && is_request && owns(target.into());
        if sender_mac != POD.mac || !(owns(sender.into()) || probe) {
            reasons.insert(Reason::ArpSender);
        }
        if frame.answered() {
            if !is_request || owns(target.into()) {
                reasons.insert(Reason::NoReceiver);
            } else if member(target.into()).is_none() {
                reasons.insert(Reason::NotMember);
            }
        }
    } else {
        if sender_mac == POD.mac {
            reasons.insert(Reason::OwnMac);
        }
        if owns(sender.into()) {
            reasons.insert(Reason::OwnAddress);
        }
        if frame.setting.isolated() && member(sender.into()).is_none_or(|host| host.mac != sender_mac) {
            reasons.insert(Reason::NotMember);
        }
    }
    match member(target.into()) {
        _ if !reasons.is_empty() => Expected::Drop(reasons),
        Some(host) if frame.answered() => {
            Expected::Redirect(frames::arp(host.mac, POD.mac, true, (host.mac, target), sender))
        }
        _ => Expected::Pass,
    }
}

const MLD_QUERY: u8 = 130;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// The rules of a message of the link; `None` if it is not one.
pub fn link_message(frame: &Frame<'_>, ip: &Datagram<'_>) -> Option<Expected> {
    if ip.is_v4() || ip.protocol != IpNumber::IPV6_ICMP || ip.part == Part::Later {
        return None;
    }
    let Some([kind, code, ..]) = ip.payload.first_chunk::<4>().copied() else {
        return Some(Expected::Drop(Reasons::from([Reason::MalformedIpv6, Reason::MalformedTransport])));
    };
    let length = match kind {
        ROUTER_SOLICITATION | MLD_QUERY..=132 | 143 => 8,
        ROUTER_ADVERTISEMENT => 16,
        SOLICITATION | ADVERTISEMENT => 24,
        REDIRECT => 40,
        _ => return None,
    };
    let listening = matches!(kind, MLD_QUERY..=132 | 143);
    let from_nobody = ip.source.is_unspecified();
    let mut reasons = Reasons::new();
    if frame.is_from_pod() {
        // A host without an address may ask whether one is free, and say which groups it hears.
        let may_be_nobody = kind == SOLICITATION || (listening && kind != MLD_QUERY);
        if !(owns(ip.source) || from_nobody && may_be_nobody) {
            reasons.insert(Reason::SourceIpv6);
        }
        if matches!(kind, ROUTER_ADVERTISEMENT | REDIRECT) {
            reasons.insert(Reason::NdRouter);
        }
    } else {
        if owns(ip.source) {
            reasons.insert(Reason::OwnAddress);
        }
        if !ip.is_for_group() && !owns(ip.destination) {
            reasons.insert(Reason::DestinationAddress);
        }
    }
    if ip.payload.len() < length || (!listening && (ip.hop_limit != 255 || code != 0 || ip.fragment)) {
        reasons.insert(Reason::MalformedNd);
    }
    let target = ip.payload.get(8..24).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let target = target.map_or(IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from);
    // Who speaks for an address on an isolated network is the member that has it, under its own hardware address.
    let speaker = if kind == ADVERTISEMENT { target } else { ip.source };
    let isolated_in = frame.setting.isolated() && !frame.is_from_pod();
    if isolated_in && member(speaker).is_none_or(|host| host.mac != frame.source()) {
        reasons.insert(Reason::NotMember);
    }
    match (kind, owns(target), frame.is_from_pod()) {
        (ADVERTISEMENT, false, true) => {
            reasons.insert(Reason::NdSender);
        }
        (ADVERTISEMENT, true, false) => {
            reasons.insert(Reason::OwnAddress);
        }
        (SOLICITATION, false, true) if from_nobody => {
            reasons.insert(Reason::NdSender);
        }
        _ => {}
    }
    let rest = ip.payload.get(length..).unwrap_or_default();
    if frame.is_from_pod() && !listening {
        reasons.extend(options(rest, POD.mac, Reason::NdSender, from_nobody));
    } else if isolated_in && !listening {
        reasons.extend(options(rest, frame.source(), Reason::NotMember, false));
    }
    if !frame.answered() {
        return Some(if reasons.is_empty() { Expected::Pass } else { Expected::Drop(reasons) });
    }
    if kind != SOLICITATION || from_nobody || owns(target) {
        reasons.insert(Reason::NoReceiver);
    } else if member(target).is_none() {
        reasons.insert(Reason::NotMember);
    }
    match member(target) {
        Some(host) if reasons.is_empty() => {
            let (IpAddr::V6(source), IpAddr::V6(target)) = (ip.source, target) else { return None };
            let (mut from, mut to) = (host, POD);
            (from.v6, to.v6) = (target.octets(), source.octets());
            Some(Expected::Redirect(frames::neighbor(from, to, ADVERTISEMENT, from.v6, Some(host.mac))))
        }
        _ => Some(Expected::Drop(reasons)),
    }
}

/// What is wrong with the options of a message, whose link-layer addresses are its sender's.
fn options(mut rest: &[u8], mac: [u8; 6], forged: Reason, from_nobody: bool) -> Reasons {
    let mut reasons = Reasons::new();
    for seen in 0.. {
        let Some((kind, length)) = rest.first().zip(rest.get(1)) else { break };
        let bytes = usize::from(*length) * 8;
        // Not more than four are looked at.
        if seen == 4 || bytes == 0 || bytes > rest.len() {
            reasons.insert(Reason::MalformedNd);
            return reasons;
        }
        if matches!(kind, 1 | 2) {
            if bytes != 8 || from_nobody {
                reasons.insert(Reason::MalformedNd);
            }
            if rest[2..8] != mac {
                reasons.insert(forged);
            }
        }
        rest = &rest[bytes..];
    }
    if !rest.is_empty() {
        reasons.insert(Reason::MalformedNd);
    }
    reasons
}
