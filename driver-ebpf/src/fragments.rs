//! Fragments: later ones have no ports, so they go the way of the first.

use netferry_common::flow::FRAGMENT_LIFETIME;
use netferry_common::{Fragment, FragmentKey, Reason};

use crate::datagram::Datagram;
use crate::judge::Case;
use crate::packet::Packet;
use crate::tables::Tables;

#[inline(always)]
fn key<P: Packet, T: Tables>(case: &Case<'_, P, T>, ip: &Datagram) -> FragmentKey {
    FragmentKey {
        endpoint: case.id,
        direction: case.direction.number(),
        source: ip.source,
        destination: ip.destination,
        id: ip.id,
        // IPv6 fragments of one datagram may name different protocols; the identification alone counts.
        protocol: if ip.v4 { u32::from(ip.protocol) } else { 0 },
    }
}

/// Lets the later fragments of a datagram through whose first fragment was let through.
#[inline(never)]
pub fn remember<P: Packet, T: Tables>(case: &Case<'_, P, T>, ip: &Datagram, now: u64) {
    let fragment = Fragment { seen: now, policy: case.endpoint.policy, pad: 0 };
    case.tables.add_fragment(&key(case, ip), &fragment);
}

/// Checks that the first fragment was let through, under the policy in force.
#[inline(never)]
pub fn check<P: Packet, T: Tables>(case: &Case<'_, P, T>, ip: &Datagram, now: u64) -> Result<(), Reason> {
    match case.tables.fragment(&key(case, ip)) {
        Some(first)
            if first.policy == case.endpoint.policy
                && now.saturating_sub(first.seen) <= FRAGMENT_LIFETIME =>
        {
            Ok(())
        }
        _ => Err(Reason::Fragment),
    }
}
