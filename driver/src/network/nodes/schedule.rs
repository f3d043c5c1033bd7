//! Whom to ask, and when: pure.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::NodeNeed;
use crate::publish::publisher::jittered;

/// How it is paced. Times between questions are spread by a quarter.
#[derive(Clone, Copy, Debug)]
pub struct NodePace {
    /// A node that has answered is asked again after this long.
    pub refresh: Duration,
    /// With many nodes that is later: of all together, one is asked again each time this long has passed.
    pub each: Duration,
    /// The same for the own node, whose address tunnels leave from.
    pub own: Duration,
    /// News of a node have it asked again, unless its last answer is younger; then when it is as old.
    pub fresh: Duration,
    /// A node that is not there is asked for again after this long.
    pub gone: Duration,
    /// Questions that may follow each other at once, after a time without any.
    pub burst: u32,
    /// After these, one each time this long has passed.
    pub spacing: Duration,
    /// Questions without an answer at a time. Each is a connection.
    pub open: usize,
    /// Pause after a failure, doubled with each that follows.
    pub retry: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Default for NodePace {
    fn default() -> Self {
        Self {
            refresh: Duration::from_mins(10),
            each: Duration::from_secs(5),
            own: Duration::from_secs(30),
            fresh: Duration::from_secs(30),
            gone: Duration::from_mins(1),
            burst: 200,
            spacing: Duration::from_millis(20),
            open: 4,
            retry: Duration::from_secs(1),
            longest: Duration::from_mins(1),
        }
    }
}

impl NodePace {
    /// The pause after so many failures.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.retry.saturating_mul(1 << failures.saturating_sub(1).min(16));
        spread(doubled.min(self.longest))
    }
}

fn spread(time: Duration) -> Duration {
    jittered(time, 0.75, 1.25)
}

/// A node to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its name.
    pub name: Arc<str>,
    /// Whether an answer from a cache will not do: there is news of the node.
    pub fresh: bool,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// When it is to be asked for; `None` while it is.
    due: Option<Instant>,
    /// When it last answered.
    answered: Option<Instant>,
    /// Whether there was news since it was last asked for.
    news: bool,
    failures: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Schedule {
    own: Arc<str>,
    pace: NodePace,
    nodes: HashMap<Arc<str>, Node>,
    /// Those that have never answered, which come first, and the others.
    queues: [BTreeSet<(Instant, Arc<str>)>; 2],
    /// Questions without an answer.
    open: usize,
    /// When the questions of a burst are all paid for.
    paid: Instant,
    /// Failures since the last answer, and until when nobody is asked for that.
    failures: u32,
    pause: Option<Instant>,
}

impl Schedule {
    /// The own node is needed from the first moment on.
    #[must_use]
    pub fn new(own: &str, pace: NodePace, now: Instant) -> Self {
        let own: Arc<str> = own.into();
        let mut schedule = Self {
            own: Arc::clone(&own),
            pace,
            nodes: HashMap::new(),
            queues: [BTreeSet::new(), BTreeSet::new()],
            open: 0,
            paid: now,
            failures: 0,
            pause: None,
        };
        schedule.need(NodeNeed::Begins(own), now);
        schedule
    }

    /// Take in a need.
    pub fn need(&mut self, need: NodeNeed, now: Instant) {
        match need {
            NodeNeed::Begins(name) if !self.nodes.contains_key(&name) => {
                let node = Node { due: None, answered: None, news: false, failures: 0 };
                self.nodes.insert(Arc::clone(&name), node);
                self.set_due(&name, now);
            }
            NodeNeed::Begins(_) => {}
            NodeNeed::News(name) => {
                let Some(node) = self.nodes.get_mut(&name) else { return };
                // What never answered is asked for as it is.
                let Some(answered) = node.answered else { return };
                let due = now.max(answered + self.pace.fresh);
                node.news = true;
                // A pause after a failure is kept.
                if node.failures == 0 && node.due.is_some_and(|before| before > due) {
                    self.set_due(&name, due);
                }
            }
            NodeNeed::Ends(name) => {
                if name != self.own
                    && let Some(node) = self.nodes.remove(&name)
                    && let Some(due) = node.due
                {
                    self.queues[usize::from(node.answered.is_some())].remove(&(due, name));
                }
            }
        }
    }

    /// The next node to ask for now.
    pub fn next(&mut self, now: Instant) -> Option<Question> {
        if self.may_ask(now).is_none_or(|at| at > now) {
            return None;
        }
        let first = self.queues.iter().find_map(|queue| queue.first().filter(|(due, _)| *due <= now));
        let (due, name) = first.cloned()?;
        let node = self.nodes.get_mut(&name)?;
        let fresh = std::mem::take(&mut node.news);
        node.due = None;
        self.queues[usize::from(node.answered.is_some())].remove(&(due, Arc::clone(&name)));
        self.open += 1;
        self.paid = self.paid.max(now) + self.pace.spacing;
        Some(Question { name, fresh })
    }

    /// When there may be a next one, if there will be one without further ado.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let first = self.queues.iter().filter_map(|queue| queue.first()).map(|(due, _)| *due).min()?;
        Some(self.may_ask(now)?.max(first))
    }

    /// When somebody may be asked for; `None` before an answer comes.
    fn may_ask(&self, now: Instant) -> Option<Instant> {
        if self.open >= self.pace.open {
            return None;
        }
        let ahead = self.pace.spacing * self.pace.burst.saturating_sub(1);
        let paid = self.paid.checked_sub(ahead).unwrap_or(now);
        Some(paid.max(self.pause.unwrap_or(now)).max(now))
    }

    /// A node has answered, or is `gone`. Returns how many failures came before, and whether it is still needed.
    pub fn answered(&mut self, name: &Arc<str>, gone: bool, now: Instant) -> (u32, bool) {
        self.pause = None;
        let failures = std::mem::take(&mut self.failures);
        let many = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let pace = self.pace;
        let Some(node) = self.closed(name) else { return (failures, false) };
        (node.answered, node.failures) = (Some(now), 0);
        let due = if node.news {
            pace.fresh
        } else if *name == self.own {
            spread(pace.own)
        } else if gone {
            spread(pace.gone)
        } else {
            spread(pace.refresh.max(pace.each.saturating_mul(many)))
        };
        self.set_due(name, now + due);
        (failures, true)
    }

    /// A node could not be asked for. Returns how many failures there were since the last answer.
    pub fn failed(&mut self, name: &Arc<str>, now: Instant) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.pause = Some(now + self.pace.pause(self.failures));
        let pace = self.pace;
        if let Some(node) = self.closed(name) {
            node.failures = node.failures.saturating_add(1);
            let due = now + pace.pause(node.failures);
            self.set_due(name, due);
        }
        self.failures
    }

    /// A question is closed. Returns its node, unless that was forgotten since, and perhaps learnt anew.
    fn closed(&mut self, name: &Arc<str>) -> Option<&mut Node> {
        self.open = self.open.saturating_sub(1);
        self.nodes.get_mut(name).filter(|node| node.due.is_none())
    }

    fn set_due(&mut self, name: &Arc<str>, due: Instant) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let before = node.due.replace(due);
        let known = usize::from(node.answered.is_some());
        if let Some(before) = before {
            self.queues[known].remove(&(before, Arc::clone(name)));
        }
        self.queues[known].insert((due, Arc::clone(name)));
    }
}
