//! Delivery between two endpoints of a node: straight from the sender's program to the receiver.

use netferry_common::counters::path;
use netferry_common::{Direction, Member, MemberKey, Reason};

use crate::datagram::Part;
use crate::flows::{SharedFlow, agreed, question};
use crate::judge::{Case, Scratch};
use crate::packet::{self, Packet};
use crate::policy::decide;
use crate::tables::Tables;
use crate::transport::ERROR;

/// Where a datagram that was let through goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Interface index of the receiver's host end; 0: on through the host.
    pub ifindex: u32,
    /// `netferry_common::counters::path`. On the fast one it goes straight into the receiver's namespace, as its endpoint
    /// has judged it here already.
    pub path: u32,
}

impl Target {
    /// On through the host.
    pub const HOST: Self = Self { ifindex: 0, path: path::HOST };
}

/// [`Target::path`] of a datagram for nobody on this node: where it goes, [`crate::depart`] finds out.
pub const BEYOND: u32 = u32::MAX;

/// Finds where a datagram of the pod goes that the sender's side let through. Fragments, errors and datagrams with
/// options go through the receiver's own program; all others are judged for it here. `known` is the datagram's flow where it
/// was looked up already.
#[inline(always)]
pub fn deliver<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    known: Option<&SharedFlow>,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    let Scratch { note, ip, place, segment, target, .. } = scratch;
    let key = MemberKey { network: case.endpoint.network, addr: ip.destination };
    let Some(member) = case.tables.member(&key).filter(Member::is_endpoint) else {
        target.path = BEYOND;
        return Ok(());
    };
    // The sender itself: what comes from its own address is never let in.
    if member.endpoint == case.id {
        return Err(Reason::NoRoute);
    }
    let receiver = case.tables.endpoint(member.endpoint).ok_or(Reason::TargetNotReady)?;
    if !receiver.is_ready() || receiver.network != case.endpoint.network {
        return Err(Reason::TargetNotReady);
    }
    if receiver.ifindex == 0 {
        return Err(Reason::NoRoute);
    }
    if case.eth.dst != packet::mac(receiver.mac) && !case.packet.set_destination(receiver.mac) {
        return Err(Reason::NoRoute);
    }
    if note.size > receiver.mtu {
        note.mtu = receiver.mtu;
        return Err(Reason::MtuExceeded);
    }
    target.ifindex = receiver.ifindex;
    if ip.part != Part::Whole {
        target.path = path::FRAGMENT;
        return Ok(());
    }
    if ip.options {
        target.path = path::OPTIONS;
        return Ok(());
    }
    if segment.means & ERROR != 0 {
        target.path = path::ERROR;
        return Ok(());
    }
    if !case.tables.redirects_to_peer() {
        target.path = path::NO_PEER;
        return Ok(());
    }
    // What is written into a flow is written after a look-up of its own: the element may be another flow's by now.
    if !known.is_some_and(|flow| flow.allowed(place, false, member.endpoint, receiver.policy)) {
        let flow = case.tables.flow(&place.key).ok_or(Reason::NoFlow)?;
        if !flow.allowed(place, false, member.endpoint, receiver.policy) {
            let asked = question(ip, segment, false, flow.opened_by_sender(place));
            if let Err(reason) = agreed(decide(case.tables, receiver, &asked), &mut note.rule) {
                case.tables.forget_flow(&place.key);
                return Err(reason);
            }
            flow.allow(place, false, member.endpoint, receiver.policy);
        }
    }
    case.packet.charge(case.tables, member.endpoint, Direction::ToPod, receiver.flags, note)?;
    case.tables.passed(member.endpoint, Direction::ToPod, note.frames, note.bytes, path::HOST);
    target.path = path::FAST;
    Ok(())
}
