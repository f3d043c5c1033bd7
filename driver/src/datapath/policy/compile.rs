//! From flat rules to the entries of the policy maps, as [`netferry_common::policy`] says they decide.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use super::flat::FlatRule;
use super::ports::{Block, Decided, blocks};
use super::prefix::Prefix;
use super::{Action, PolicyError};

/// The entries of one direction. Classes are numbered from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Compiled {
    /// Class of the addresses in a prefix, by longest prefix.
    pub peers: Vec<(Prefix, u32)>,
    /// What a class may do, by longest match.
    pub rules: Vec<RuleEntry>,
}

/// What a block of ports of a protocol decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleEntry {
    /// The class it is for.
    pub class: u32,
    /// IP protocol and the block: its first port, and how many of 16 bits are fixed. `None` for any protocol.
    pub block: Option<(u8, u16, u8)>,
    /// What is done.
    pub action: Action,
    /// Number of the rule that decides.
    pub rule: u32,
}

/// Entries that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// For prefixes.
    pub peers: usize,
    /// For blocks.
    pub rules: usize,
}

/// A rule but for its peer.
type Body<'a> = (Option<u8>, &'a RangeInclusive<u16>, Decided);
/// The entries of a class but for its number, sorted.
type Blocks = Vec<(Option<(u8, Block)>, Decided)>;

/// Compiles the rules of one direction. Fails, before it takes more memory than the entries would, if they do not
/// fit.
pub fn compile(rules: &[FlatRule], room: Room) -> Result<Compiled, PolicyError> {
    let mut classes = Classes::new(room);
    let mut by_peer = BTreeMap::<Option<Prefix>, Vec<Body<'_>>>::new();
    for rule in rules {
        let body = (rule.protocol, &rule.ports, (rule.action, rule.rule));
        by_peer.entry(rule.peer).or_default().push(body);
    }
    // `None` is every peer, of both families; `::/0` is IPv6 only.
    let everyone = by_peer.remove(&None).unwrap_or_default();
    let everyone = classes.add(None, everyone)?;
    let (v4, v6): (Vec<_>, Vec<_>) = by_peer
        .into_iter()
        .filter_map(|(prefix, bodies)| Some((prefix?, bodies)))
        .partition(|(prefix, _)| prefix.is_v4());
    let mut found = BTreeMap::from([(Prefix::ALL, classes.number(everyone))]);
    if v6.iter().any(|(prefix, _)| prefix.covers(Prefix::V4)) {
        found.insert(Prefix::V4, classes.number(everyone));
    }
    // A family at a time: an IPv6 prefix around the mapped addresses says nothing about IPv4.
    for family in [v6, v4] {
        let mut around: Vec<(Prefix, SetId)> = Vec::new();
        for (prefix, bodies) in family {
            while around.last().is_some_and(|(outer, _)| !outer.covers(prefix)) {
                around.pop();
            }
            let set = classes.add(Some(around.last().map_or(everyone, |(_, set)| *set)), bodies)?;
            around.push((prefix, set));
            found.insert(prefix, classes.number(set));
        }
    }
    let peers = without_repeats(merged(found));
    if peers.len() > room.peers {
        return Err(PolicyError::TooLarge { what: "peer entries", needed: peers.len(), free: room.peers });
    }
    Ok(classes.finish(peers))
}

/// Class of an address with no rules, which needs no entry unless it is inside another class.
const NOBODY: u32 = 0;

type SetId = usize;

/// Sets of rules, and the classes of those that decide alike.
struct Classes<'a> {
    room: Room,
    sets: Vec<(Vec<Body<'a>>, u32)>,
    /// By the set around and the rules added.
    known: HashMap<(Option<SetId>, Vec<Body<'a>>), SetId>,
    numbers: HashMap<Blocks, u32>,
    entries: usize,
}

impl<'a> Classes<'a> {
    fn new(room: Room) -> Self {
        let numbers = HashMap::from([(Blocks::new(), NOBODY)]);
        Self { room, sets: Vec::new(), known: HashMap::new(), numbers, entries: 0 }
    }

    /// The set of the rules of `around` and these.
    fn add(&mut self, around: Option<SetId>, mut bodies: Vec<Body<'a>>) -> Result<SetId, PolicyError> {
        bodies.sort_unstable_by_key(order);
        bodies.dedup();
        let key = (around, bodies);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let mut all = around.map_or_else(Vec::new, |around| self.sets[around].0.clone());
        all.extend(key.1.iter().copied());
        all.sort_unstable_by_key(order);
        all.dedup();
        let blocks = decide(&all);
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        let size = blocks.len();
        let number = *self.numbers.entry(blocks).or_insert(next);
        if number == next {
            self.entries += size;
            if self.entries > self.room.rules {
                let (needed, free) = (self.entries, self.room.rules);
                return Err(PolicyError::TooLarge { what: "rule entries or more", needed, free });
            }
        }
        self.sets.push((all, number));
        self.known.insert(key, self.sets.len() - 1);
        Ok(self.sets.len() - 1)
    }

    fn number(&self, set: SetId) -> u32 {
        self.sets[set].1
    }

    /// Entries of the classes in use, numbered from 1.
    fn finish(self, mut peers: Vec<(Prefix, u32)>) -> Compiled {
        let mut numbers = BTreeMap::<u32, u32>::new();
        for (_, class) in &mut peers {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX).saturating_add(1);
            *class = *numbers.entry(*class).or_insert(next);
        }
        let mut rules = Vec::with_capacity(self.entries);
        for (blocks, number) in self.numbers {
            let Some(&class) = numbers.get(&number) else { continue };
            rules.extend(blocks.into_iter().map(|(block, (action, rule))| RuleEntry {
                class,
                block: block.map(|(protocol, Block { first, len })| (protocol, first, len)),
                action,
                rule,
            }));
        }
        rules.sort_unstable();
        Compiled { peers, rules }
    }
}

fn order(body: &Body<'_>) -> (Option<u8>, u16, u16, Decided) {
    (body.0, *body.1.start(), *body.1.end(), body.2)
}

/// The entries of a set of rules.
fn decide(all: &[Body<'_>]) -> Blocks {
    let any = all.iter().filter(|body| body.0.is_none());
    let above = any.map(|body| body.2).min_by_key(|(action, rule)| (std::cmp::Reverse(*action), *rule));
    let mut entries: Blocks = above.map(|decided| (None, decided)).into_iter().collect();
    let protocols: BTreeSet<u8> = all.iter().filter_map(|body| body.0).collect();
    for protocol in protocols {
        let apply = all.iter().filter(|body| body.0.is_none_or(|own| own == protocol));
        let found = blocks(apply.map(|body| (body.1, body.2)), above);
        entries.extend(found.into_iter().map(|(block, decided)| (Some((protocol, block)), decided)));
    }
    entries
}

/// Puts one prefix in the place of two halves of the same class.
fn merged(found: BTreeMap<Prefix, u32>) -> BTreeMap<Prefix, u32> {
    let mut by_length: Vec<HashMap<Prefix, u32>> = vec![HashMap::new(); 129];
    for (prefix, class) in found {
        by_length[usize::from(prefix.length())].insert(prefix, class);
    }
    for length in (1..=128).rev() {
        let (shorter, here) = by_length.split_at_mut(length);
        let (shorter, here) = (&mut shorter[length - 1], &mut here[0]);
        let pairs: Vec<(Prefix, Prefix, u32, Prefix)> = here
            .iter()
            .filter_map(|(prefix, class)| {
                let (sibling, parent) = prefix.sibling()?;
                (sibling > *prefix && here.get(&sibling) == Some(class))
                    .then_some((*prefix, sibling, *class, parent))
            })
            .collect();
        for (one, other, class, parent) in pairs {
            here.remove(&one);
            here.remove(&other);
            // What it said before was hidden by the two.
            shorter.insert(parent, class);
        }
    }
    by_length.into_iter().flatten().collect()
}

/// Leaves out prefixes that say what the next wider one says.
fn without_repeats(found: BTreeMap<Prefix, u32>) -> Vec<(Prefix, u32)> {
    let mut kept: Vec<(Prefix, u32)> = Vec::new();
    let mut around: Vec<(Prefix, u32)> = Vec::new();
    for (prefix, class) in found {
        while around.last().is_some_and(|(outer, _)| !outer.covers(prefix)) {
            around.pop();
        }
        if around.last().map_or(NOBODY, |(_, class)| *class) != class {
            kept.push((prefix, class));
            around.push((prefix, class));
        }
    }
    kept
}
