//! From the watches over claims that are open to those that are wanted, without a gap.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::scope::Scope;

/// How it is paced.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A watch over the cluster that is not needed any more is kept for so long: a list of all claims is what costs
    /// most.
    pub linger: Duration,
    /// A watch whose place another has taken is kept for so long after the other's list is whole. Either may be behind:
    /// one still has to tell what was deleted before the list, the other what was made after it.
    pub settle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { linger: Duration::from_mins(5), settle: Duration::from_secs(30) }
    }
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Watches to begin.
    pub open: Vec<Scope>,
    /// Watches to end, after that.
    pub close: Vec<Scope>,
}

/// The watches that are open.
#[derive(Debug, Default)]
pub struct Watches {
    open: BTreeSet<Scope>,
    /// When one over the cluster was last wanted.
    cluster: Option<Instant>,
    /// Since when the lists of those that take another's place are whole.
    whole: Option<Instant>,
}

impl Watches {
    /// The next steps towards `wanted`. `listed` says of which watches the list is whole.
    pub fn step(
        &mut self,
        wanted: &BTreeSet<Scope>,
        listed: impl Fn(&Scope) -> bool,
        now: Instant,
        pace: Pace,
    ) -> Steps {
        if wanted.contains(&Scope::Cluster) {
            self.cluster = Some(now);
        }
        let lingers = self.open.contains(&Scope::Cluster)
            && self.cluster.is_some_and(|last| now.saturating_duration_since(last) < pace.linger);
        let cluster = BTreeSet::from([Scope::Cluster]);
        let goal = if lingers { &cluster } else { wanted };
        let open: Vec<Scope> = goal.difference(&self.open).cloned().collect();
        self.open.extend(open.iter().cloned());

        let rest: Vec<Scope> = self.open.difference(goal).cloned().collect();
        let (replaced, over): (Vec<Scope>, Vec<Scope>) =
            rest.into_iter().partition(|scope| goal.iter().any(|other| other.overlaps(scope)));
        let whole = !replaced.is_empty() && goal.iter().all(listed);
        self.whole = whole.then(|| self.whole.unwrap_or(now));
        let settled = self.whole.is_some_and(|since| now.saturating_duration_since(since) >= pace.settle);
        let mut close = over;
        if settled {
            self.whole = None;
            close.extend(replaced);
        }
        for scope in &close {
            self.open.remove(scope);
        }
        Steps { open, close }
    }
}
