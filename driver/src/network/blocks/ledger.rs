//! Who has which block: pure.
//!
//! Nothing is written down but the addresses that are published, and how far into each subnet blocks were ever given
//! (the *mark*). Who takes over goes on from that and from the claims. A block that may have been another node's before
//! is not given on at once: a scheduler may just be writing down an address of it, chosen by what it saw earlier. Below
//! the mark that is every block that nobody has, counted from the moment in which this ledger began, whatever became of
//! the node's slices; from the mark on it is none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Block, Content, Uses, blocks};
use crate::network::window::Subnet;

/// A node with fewer free addresses in a subnet is given another block.
pub const MIN_FREE: u32 = 16;
/// A block with nothing in use is taken back if so many free addresses are left to its node.
pub const ENOUGH: u32 = 48;
/// Blocks below the mark of which a ledger that takes over keeps account one by one.
const MOST_KNOWN: u128 = 1 << 20;

/// How blocks change hands.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A block that its node does not need is taken back after this long.
    pub linger: Duration,
    /// What was taken back is given to another node after this long.
    pub quarantine: Duration,
}

impl Default for Pace {
    /// Between the choice of a device and its writing down in the claim, a scheduler waits for plugins: at most 15 min
    /// for permission (`maxTimeout` in `pkg/scheduler/framework/runtime`), at most 10 min for volumes (`bindTimeout` of
    /// its volume binding).
    fn default() -> Self {
        Self { linger: Duration::from_mins(5), quarantine: Duration::from_mins(30) }
    }
}

#[derive(Debug)]
struct Owned {
    node: Arc<str>,
    /// Since when the node does not need it.
    spare: Option<Instant>,
}

#[derive(Debug)]
struct Returned {
    at: Instant,
    /// Whose it was, if this ledger took it back.
    of: Option<Arc<str>>,
}

/// The blocks of a subnet.
#[derive(Debug, Default)]
struct Territory {
    owned: BTreeMap<u128, Owned>,
    /// From here on no block was ever given, but for those that are in one of the maps.
    fresh: u128,
    /// Nobody's, and not to be given to another node yet.
    returned: BTreeMap<u128, Returned>,
    /// Of those, what this ledger took back from a node.
    of_node: HashMap<Arc<str>, BTreeSet<u128>>,
    /// Nobody's for long enough.
    clean: BTreeSet<u128>,
}

/// A node that has no free address and gets none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// The node.
    pub node: Arc<str>,
    /// The subnet.
    pub subnet: usize,
}

/// What a look comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What each node is to publish.
    pub content: BTreeMap<Arc<str>, Content>,
    /// For each subnet the number from which on no block was ever given. It has to be on record before more is
    /// published.
    pub marks: Vec<u128>,
    /// For each subnet the blocks that nodes have, and those that wait until they may be given again.
    pub counts: Vec<(usize, usize)>,
    /// Nodes that have no free address.
    pub short: Vec<Short>,
}

/// The blocks of a network.
#[derive(Debug)]
pub struct Ledger {
    pace: Pace,
    subnets: Vec<Subnet>,
    territories: Vec<Territory>,
}

impl Ledger {
    /// Go on from what nodes publish. `marks` are those on record, `None` where there are none.
    #[must_use]
    pub fn take_over(
        subnets: Vec<Subnet>,
        published: &BTreeMap<Arc<str>, Content>,
        marks: Option<&[u128]>,
        uses: &Uses,
        pace: Pace,
        now: Instant,
    ) -> Self {
        let mut territories: Vec<Territory> = subnets.iter().map(|_| Territory::default()).collect();
        for (node, content) in published {
            for block in content.keys() {
                let Some(owned) = territories.get_mut(block.subnet).map(|of| &mut of.owned) else { continue };
                let count = |node: &str| uses.get(*block).map_or(0, |of| of.of(node).count_ones());
                // Two have it only if two have led at once. Who uses it keeps it.
                let keeps = owned.get(&block.number).is_some_and(|it| count(&it.node) >= count(node));
                if !keeps {
                    owned.insert(block.number, Owned { node: Arc::clone(node), spare: None });
                }
            }
        }
        for (at, (territory, subnet)) in territories.iter_mut().zip(&subnets).enumerate() {
            let last = territory.owned.keys().next_back().map_or(0, |last| last.saturating_add(1));
            let mark = marks.and_then(|marks| marks.get(at)).copied().unwrap_or(last);
            territory.fresh = mark.min(blocks(subnet));
            let unknown =
                (0..territory.fresh.min(MOST_KNOWN)).filter(|number| !territory.owned.contains_key(number));
            territory.returned = unknown.map(|number| (number, Returned { at: now, of: None })).collect();
        }
        Self { pace, subnets, territories }
    }

    /// The subnets, with what no pod can have of them now.
    pub fn set_subnets(&mut self, subnets: Vec<Subnet>) {
        self.subnets = subnets;
    }

    /// Look at what nodes publish. What one still publishes that is not its own is given to nobody yet: a write has failed,
    /// or the watch is behind, or two have led for a moment.
    pub fn see<'a>(&mut self, published: impl Iterator<Item = (&'a Arc<str>, &'a Content)>, now: Instant) {
        for (node, content) in published {
            for block in content.keys() {
                let Some(territory) = self.territories.get_mut(block.subnet) else { continue };
                if territory.owned.contains_key(&block.number) {
                    continue;
                }
                let of = territory.returned.get(&block.number).and_then(|it| it.of.clone());
                let of = of.filter(|of| of == node);
                territory.forget(block.number);
                territory.keep(block.number, of, now);
            }
        }
    }

    /// Look at what is in use, and at who publishes ports: take blocks back and give others.
    pub fn step(&mut self, uses: &Uses, ports: &BTreeSet<Arc<str>>, now: Instant) -> Step {
        let mut step = Step::default();
        self.adopt(uses);
        for subnet in 0..self.territories.len() {
            self.release(subnet, now);
            let mut free = self.free(subnet, uses);
            self.take_back(subnet, uses, ports, &mut free, now);
            self.give(subnet, uses, ports, &free, now, &mut step.short);
        }
        for (subnet, territory) in self.territories.iter().enumerate() {
            for (number, owned) in &territory.owned {
                let block = Block { subnet, number: *number };
                let barred = uses.get(block).map_or(0, |of| of.barred(&owned.node));
                let mask = block.usable(&self.subnets) & !barred;
                if mask != 0 {
                    step.content.entry(Arc::clone(&owned.node)).or_default().insert(block, mask);
                }
            }
            step.marks.push(territory.fresh);
            step.counts.push((territory.owned.len(), territory.returned.len()));
        }
        step
    }

    /// A block of which claims have addresses is their node's, whatever is published.
    fn adopt(&mut self, uses: &Uses) {
        for (block, of) in uses.iter() {
            let Some(territory) = self.territories.get_mut(block.subnet) else { continue };
            if territory.owned.contains_key(&block.number) {
                continue;
            }
            let nodes = of.by.iter().filter_map(|(node, mask)| Some((node.as_ref()?, mask.count_ones())));
            // The one with most of it; of several the first by name.
            let best = nodes.max_by(|(a, many), (b, more)| many.cmp(more).then_with(|| b.cmp(a)));
            if let Some((node, _)) = best {
                territory.forget(block.number);
                territory.owned.insert(block.number, Owned { node: Arc::clone(node), spare: None });
            }
        }
    }

    /// What was taken back long ago may be given to everybody.
    fn release(&mut self, subnet: usize, now: Instant) {
        let territory = &mut self.territories[subnet];
        let over =
            |(_, it): &(&u128, &Returned)| now.saturating_duration_since(it.at) >= self.pace.quarantine;
        let clean: Vec<u128> = territory.returned.iter().filter(over).map(|(number, _)| *number).collect();
        for number in clean {
            territory.forget(number);
            territory.clean.insert(number);
        }
    }

    /// Free addresses that nodes have in a subnet.
    fn free(&self, subnet: usize, uses: &Uses) -> HashMap<Arc<str>, u32> {
        let mut free = HashMap::new();
        for (number, owned) in &self.territories[subnet].owned {
            let available = self.available(Block { subnet, number: *number }, uses);
            *free.entry(Arc::clone(&owned.node)).or_default() += available;
        }
        free
    }

    fn available(&self, block: Block, uses: &Uses) -> u32 {
        let taken = uses.get(block).map_or(0, |of| of.allocated() | of.fixed);
        (block.usable(&self.subnets) & !taken).count_ones()
    }

    fn take_back(
        &mut self,
        subnet: usize,
        uses: &Uses,
        ports: &BTreeSet<Arc<str>>,
        free: &mut HashMap<Arc<str>, u32>,
        now: Instant,
    ) {
        let mut spare = BTreeMap::new();
        // What is left to a node if all that it can spare goes, the highest first.
        let mut left = free.clone();
        for (number, owned) in self.territories[subnet].owned.iter().rev() {
            let block = Block { subnet, number: *number };
            if uses.allocated(block) != 0 {
                continue;
            }
            let available = self.available(block, uses);
            let Some(left) = left.get_mut(&owned.node) else { continue };
            if !ports.contains(&owned.node) || left.saturating_sub(available) >= ENOUGH {
                *left = left.saturating_sub(available);
                spare.insert(*number, available);
            }
        }
        let territory = &mut self.territories[subnet];
        let mut over = Vec::new();
        for (number, owned) in &mut territory.owned {
            let available = spare.get(number).copied();
            let since = available.map(|_| owned.spare.unwrap_or(now));
            owned.spare = since;
            if since.is_some_and(|since| now.saturating_duration_since(since) >= self.pace.linger) {
                over.push((*number, available.unwrap_or(0)));
            }
        }
        for (number, available) in over {
            if let Some(owned) = territory.owned.remove(&number) {
                if let Some(free) = free.get_mut(&owned.node) {
                    *free = free.saturating_sub(available);
                }
                territory.keep(number, Some(owned.node), now);
            }
        }
    }

    fn give(
        &mut self,
        subnet: usize,
        uses: &Uses,
        ports: &BTreeSet<Arc<str>>,
        free: &HashMap<Arc<str>, u32>,
        now: Instant,
        short: &mut Vec<Short>,
    ) {
        let has = |node: &Arc<str>| free.get(node).copied().unwrap_or(0);
        let mut wanting: Vec<(u32, &Arc<str>)> =
            ports.iter().map(|node| (has(node), node)).filter(|(has, _)| *has < MIN_FREE).collect();
        // Who has least comes first, where there is not enough for all.
        wanting.sort_unstable();
        for (mut has, node) in wanting {
            while has < MIN_FREE {
                let territory = &mut self.territories[subnet];
                let unused = |number: u128| uses.allocated(Block { subnet, number }) == 0;
                let Some(number) = territory.next(node, blocks(&self.subnets[subnet]), unused, now) else {
                    break;
                };
                territory.owned.insert(number, Owned { node: Arc::clone(node), spare: None });
                has += self.available(Block { subnet, number }, uses);
            }
            if has == 0 {
                short.push(Short { node: Arc::clone(node), subnet });
            }
        }
    }
}

impl Territory {
    /// A block that a node may have: one that was its own, one that has been nobody's for long, or one that never was
    /// anybody's. It is in none of the maps any more.
    fn next(
        &mut self,
        node: &Arc<str>,
        end: u128,
        unused: impl Fn(u128) -> bool,
        now: Instant,
    ) -> Option<u128> {
        let own = self.of_node.get(node).and_then(|own| own.iter().copied().find(|number| unused(*number)));
        if let Some(number) = own {
            self.forget(number);
            return Some(number);
        }
        let clean = self.clean.iter().copied().find(|number| unused(*number));
        if let Some(number) = clean {
            self.clean.remove(&number);
            return Some(number);
        }
        while self.fresh < end {
            let number = self.fresh;
            self.fresh += 1;
            let known = self.owned.contains_key(&number)
                || self.returned.contains_key(&number)
                || self.clean.contains(&number);
            if known {
                continue;
            }
            if unused(number) {
                return Some(number);
            }
            // Claims of nobody knows which node have it.
            self.keep(number, None, now);
        }
        None
    }

    /// Keep a block from other nodes from now on.
    fn keep(&mut self, number: u128, of: Option<Arc<str>>, now: Instant) {
        if let Some(node) = &of {
            self.of_node.entry(Arc::clone(node)).or_default().insert(number);
        }
        self.returned.insert(number, Returned { at: now, of });
    }

    /// Take a block out of those that are nobody's.
    fn forget(&mut self, number: u128) {
        self.clean.remove(&number);
        if let Some(Returned { of: Some(node), .. }) = self.returned.remove(&number)
            && let Some(own) = self.of_node.get_mut(&node)
        {
            own.remove(&number);
            if own.is_empty() {
                self.of_node.remove(&node);
            }
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
