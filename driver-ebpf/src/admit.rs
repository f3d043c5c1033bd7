//! Admission of an IP datagram: its flow, policy, fragments.

use netferry_common::event;
use netferry_common::flow::TRACK;
use netferry_common::limit::FLOWS;
use netferry_common::policy::{DENY_FROM_POD, DENY_TO_POD};
use netferry_common::{Direction, Endpoint, LimitKey, Reason};

use crate::datagram::{Datagram, Part, check_addresses};
use crate::flows::{self, Between, Place, SharedFlow, agreed, question};
use crate::fragments;
use crate::judge::{Case, Note, Scratch};
use crate::opaque::reread;
use crate::packet::Packet;
use crate::policy::decide;
use crate::tables::Tables;
use crate::transport::{self, ALONE, ERROR, OPENS, Segment};

/// Whether the endpoint's traffic is more than checked for its addresses.
#[inline(always)]
pub fn is_tracked(endpoint: &Endpoint) -> bool {
    endpoint.network != 0
        || endpoint.policy != 0
        || endpoint.flags & (TRACK | DENY_FROM_POD | DENY_TO_POD) != 0
}

/// Decides about a datagram of a tracked endpoint. What most frames need is here: a flow that was allowed, which is
/// returned so that it need not be looked up again.
#[inline(always)]
pub fn admit<'a, P: Packet, T: Tables>(
    case: &Case<'a, P, T>,
    scratch: &mut Scratch,
) -> Result<Option<&'a SharedFlow>, Reason> {
    let Scratch { note, ip, place, segment, .. } = scratch;
    if ip.part != Part::Whole {
        return case.packet.reconsider(case, scratch).map(|()| None);
    }
    *segment = transport::read(case.packet, ip)?;
    let segment = reread(segment);
    note.source_port = segment.source_port;
    note.destination_port = segment.destination_port;
    if segment.means & (ERROR | ALONE) != 0 {
        check_addresses(case, ip)?;
        if segment.means & ALONE != 0 {
            return Err(Reason::NoFlow);
        }
        return case.packet.related(case, ip).map(|()| None);
    }
    if ip.group {
        if case.endpoint.network != 0 {
            return Err(Reason::NoReceiver);
        }
        return case.packet.reconsider(case, scratch).map(|()| None);
    }
    place.find(flows::scope(case.endpoint, case.id), &Between::of(ip, &segment));
    let now = case.tables.now();
    match case.tables.flow(&place.key) {
        Some(flow)
            if flow.lives(place, &segment, now)
                && flow.allowed(place, case.from_pod(), case.id, case.endpoint.policy) =>
        {
            if flow.touch(place, &segment, now) {
                note.event = event::CLOSE;
            }
            Ok(Some(flow))
        }
        _ => case.packet.reconsider(case, scratch).map(|()| None),
    }
}

/// Decides about everything else: a flow that is new or was judged by another policy, fragments, groups.
#[inline(always)]
pub fn reconsider<P: Packet, T: Tables>(case: &Case<'_, P, T>, scratch: &mut Scratch) -> Result<(), Reason> {
    let Scratch { note, ip, place, segment, .. } = scratch;
    let now = case.tables.now();
    if ip.part == Part::Later {
        return fragments::check(case, ip, now);
    }
    *segment = transport::read(case.packet, ip)?;
    let segment = reread(segment);
    note.source_port = segment.source_port;
    note.destination_port = segment.destination_port;
    check_addresses(case, ip)?;
    if segment.means & (ERROR | ALONE) != 0 {
        // An error is shorter than the least MTU: nobody sends one in fragments.
        return Err(Reason::NoFlow);
    }
    if ip.group && case.endpoint.network != 0 {
        return Err(Reason::NoReceiver);
    }
    if ip.group {
        // Answers come from hosts, not from the group: there is no flow to keep, and none to belong to.
        if segment.means & OPENS == 0 {
            return Err(Reason::NoFlow);
        }
        let asked = question(ip, &segment, case.from_pod(), true);
        agreed(decide(case.tables, case.endpoint, &asked), &mut note.rule)?;
    } else {
        track(case, ip, &segment, place, now, note)?;
    }
    if ip.part == Part::First {
        fragments::remember(case, ip, now);
    }
    Ok(())
}

#[inline(always)]
fn track<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    ip: &Datagram,
    segment: &Segment,
    place: &mut Place,
    now: u64,
    note: &mut Note,
) -> Result<(), Reason> {
    place.find(flows::scope(case.endpoint, case.id), &Between::of(ip, segment));
    let sender = case.from_pod();
    let policy = case.endpoint.policy;
    let known = case.tables.flow(&place.key);
    let living = known.filter(|flow| flow.lives(place, segment, now));
    if living.is_none() && segment.means & OPENS == 0 {
        return Err(Reason::NoFlow);
    }
    let opened_by_sender = living.is_none_or(|flow| flow.opened_by_sender(place));
    let asked = question(ip, segment, sender, opened_by_sender);
    if let Err(reason) = agreed(decide(case.tables, case.endpoint, &asked), &mut note.rule) {
        // If there was a flow, it is revoked, for both of its sides.
        case.tables.forget_flow(&place.key);
        return Err(reason);
    }
    if let Some(flow) = living {
        flow.allow(place, sender, case.id, policy);
        if flow.touch(place, segment, now) {
            note.event = event::CLOSE;
        }
        return Ok(());
    }
    if known.is_some() {
        case.tables.forget_flow(&place.key);
    }
    // Here and not in `start`: its stack has to stay within 64 bytes, in steps of which older verifiers count.
    is_slow_enough(case, now)?;
    start(case, segment, place, now, note)
}

/// Takes a new flow out of the endpoint's limit of them. Apart from `start` for the sake of the stack, as that is.
#[inline(never)]
fn is_slow_enough<P: Packet, T: Tables>(case: &Case<'_, P, T>, now: u64) -> Result<(), Reason> {
    let budget = LimitKey { endpoint: case.id, direction: Direction::number(case.direction), kind: FLOWS };
    if case.tables.take(&budget, now, 1) == Some(false) { Err(Reason::FlowLimit) } else { Ok(()) }
}

/// Opens a flow that policy allows.
#[inline(never)]
fn start<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    segment: &Segment,
    place: &Place,
    now: u64,
    note: &mut Note,
) -> Result<(), Reason> {
    let mut flow = place.open(segment, now, note.rule);
    place.allow(&mut flow, case.from_pod(), case.id, case.endpoint.policy);
    if !case.tables.open_flow(&place.key, &flow) {
        return Err(Reason::FlowLimit);
    }
    note.event = event::OPEN;
    Ok(())
}
