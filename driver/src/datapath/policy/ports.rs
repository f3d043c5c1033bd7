//! From rules that cover ranges of ports to blocks that a longest-prefix match finds.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::Action;

/// What decides: the action, and the number of the rule that is named for it.
pub(super) type Decided = (Action, u32);

/// An aligned block of ports: the first `len` bits of 16 are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Block {
    pub(super) first: u16,
    pub(super) len: u8,
}

/// Blocks and what decides in them, so that the longest block with a port in it tells what the rules do. A port
/// that no rule covers is in no block. `above` decides where there is no block.
pub(super) fn blocks<'a>(
    rules: impl Iterator<Item = (&'a RangeInclusive<u16>, Decided)>,
    above: Option<Decided>,
) -> Vec<(Block, Decided)> {
    let mut blocks = Vec::new();
    split(&steps(rules), Block { first: 0, len: 0 }, above, &mut blocks);
    blocks
}

/// A step of the rules' decisions: from a port up to the next step.
type Step = (u16, Option<Decided>);

/// The decisions as steps; the first begins at 0. Deny wins, and of rules that decide alike the first is named.
fn steps<'a>(rules: impl Iterator<Item = (&'a RangeInclusive<u16>, Decided)>) -> Vec<Step> {
    // Between bounds, the set of rules does not change. `false`, an end, comes before `true`.
    let mut bounds: Vec<(u32, bool, Decided)> = rules
        .flat_map(|(ports, decided)| {
            [(u32::from(*ports.start()), true, decided), (u32::from(*ports.end()) + 1, false, decided)]
        })
        .collect();
    bounds.sort_unstable_by_key(|bound| bound.0);
    // How many times each is in force; the first key decides.
    let mut in_force = BTreeMap::<(Reverse<Action>, u32), u32>::new();
    let mut steps: Vec<Step> = vec![(0, None)];
    for at_one_port in bounds.chunk_by(|one, other| one.0 == other.0) {
        for &(_, begins, (action, rule)) in at_one_port {
            let count = in_force.entry((Reverse(action), rule)).or_default();
            // Two ranges of one rule may meet here, and the end be seen before the begin.
            *count = if begins { count.wrapping_add(1) } else { count.wrapping_sub(1) };
        }
        in_force.retain(|_, count| *count != 0);
        let Ok(port) = u16::try_from(at_one_port[0].0) else { break };
        let decided = in_force.keys().next().map(|(action, rule)| (action.0, *rule));
        match steps.last_mut() {
            Some(last) if last.0 == port => last.1 = decided,
            Some(last) if last.1 == decided => {}
            _ => steps.push((port, decided)),
        }
    }
    steps
}

/// Emits what differs from the block above.
fn split(steps: &[Step], block: Block, above: Option<Decided>, out: &mut Vec<(Block, Decided)>) {
    let end = u32::from(block.first) + (1 << (16 - block.len));
    let from = steps.partition_point(|(start, _)| *start <= block.first).saturating_sub(1);
    let to = steps.partition_point(|(start, _)| u32::from(*start) < end);
    let within = &steps[from..to];
    let own = match within {
        // No entry says "no rule", so nothing may be above such ports: `above` is `None` here.
        [(_, None)] => return,
        [(_, decided)] => *decided,
        _ if within.iter().any(|(_, decided)| decided.is_none()) => above,
        _ => most(within, block.first, end, above),
    };
    if let Some(own) = own
        && above != Some(own)
    {
        out.push((block, own));
    }
    if within.len() > 1 {
        let len = block.len + 1;
        split(steps, Block { first: block.first, len }, own, out);
        split(steps, Block { first: block.first | (1 << (16 - len)), len }, own, out);
    }
}

/// What decides for most ports of a block: a few ports in a wide range then cost a few blocks. What is above
/// costs no block itself, and wins a draw.
fn most(within: &[Step], first: u16, end: u32, above: Option<Decided>) -> Option<Decided> {
    let mut weights: Vec<(Option<Decided>, u32)> = vec![(above, 0)];
    for (at, (start, decided)) in within.iter().enumerate() {
        let stop = within.get(at + 1).map_or(end, |next| u32::from(next.0));
        let weight = stop - u32::from((*start).max(first));
        match weights.iter_mut().find(|(known, _)| known == decided) {
            Some((_, sum)) => *sum += weight,
            None => weights.push((*decided, weight)),
        }
    }
    weights.into_iter().rev().max_by_key(|(_, weight)| *weight).and_then(|(decided, _)| decided)
}
