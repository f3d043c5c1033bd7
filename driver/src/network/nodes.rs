//! Nodes one by one: a node is asked for when the first member on it is learnt, and again while members are on it.
//!
//! [`Schedule`] is pure and says whom to ask, and when; [`asked`] asks. An answer that is neither the node nor "not
//! found" says nothing: what is known stays.

mod schedule;

use std::{sync::Arc, time::Instant};

use futures::{
    StreamExt as _,
    future::{BoxFuture, pending},
    stream::{self, BoxStream, FuturesUnordered},
};
use tokio::{
    sync::mpsc,
    time::{Instant as Timer, sleep_until},
};
use tracing::{debug, info, warn};

use super::facts::{NodeFacts, Seen};
use crate::{cluster::ClusterError, telemetry::chain};

pub use schedule::{NodePace, Question, Schedule};

/// What the table of members needs of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeNeed {
    /// A member is on it, the first one.
    Begins(Arc<str>),
    /// Another member is on it, or one that was there is other than it was. The node may be other, too.
    News(Arc<str>),
    /// No member is on it any more.
    Ends(Arc<str>),
}

/// Needs, as they come.
pub type Needs = mpsc::UnboundedReceiver<NodeNeed>;

/// What the cluster answers.
pub type Answer = Result<NodeFacts, ClusterError>;

/// Asks the cluster.
pub type Ask = Box<dyn Fn(Question) -> BoxFuture<'static, Answer> + Send>;

/// Failures in a row that somebody should know of.
const NOTABLE: u32 = 3;

struct Asked {
    schedule: Schedule,
    /// `None` when there will be no more.
    needs: Option<Needs>,
    ask: Ask,
    open: FuturesUnordered<BoxFuture<'static, (Arc<str>, Answer)>>,
}

/// What the nodes say that are needed, and the node `own`, which always is.
#[must_use]
pub fn asked(
    own: &str,
    needs: Needs,
    ask: Ask,
    pace: NodePace,
) -> BoxStream<'static, Seen<NodeFacts, String>> {
    let schedule = Schedule::new(own, pace, Instant::now());
    let asked = Asked { schedule, needs: Some(needs), ask, open: FuturesUnordered::new() };
    stream::unfold(asked, |mut asked| async move {
        let seen = asked.next().await;
        Some((seen, asked))
    })
    .boxed()
}

impl Asked {
    async fn next(&mut self) -> Seen<NodeFacts, String> {
        loop {
            while let Some(question) = self.schedule.next(Instant::now()) {
                let (name, answer) = (Arc::clone(&question.name), (self.ask)(question));
                self.open.push(Box::pin(async move { (name, answer.await) }));
            }
            let due = self.schedule.due(Instant::now());
            let timer = async {
                match due {
                    Some(due) => sleep_until(Timer::from_std(due)).await,
                    None => pending().await,
                }
            };
            let need = async {
                match &mut self.needs {
                    Some(needs) => needs.recv().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                // A need that is over saves a question.
                biased;
                need = need => match need {
                    Some(need) => self.schedule.need(need, Instant::now()),
                    None => self.needs = None,
                },
                Some((name, answer)) = self.open.next(), if !self.open.is_empty() => {
                    if let Some(seen) = self.take_in(&name, answer) {
                        return seen;
                    }
                }
                () = timer => {}
            }
        }
    }

    fn take_in(&mut self, name: &Arc<str>, answer: Answer) -> Option<Seen<NodeFacts, String>> {
        let now = Instant::now();
        let seen = match answer {
            Ok(facts) => Seen::Is(NodeFacts { name: name.to_string(), ..facts }),
            Err(ClusterError::NotFound { .. }) => Seen::Gone(name.to_string()),
            Err(error) => {
                if self.schedule.failed(name, now) == NOTABLE {
                    warn!(
                        "nodes cannot be read, what is known of them stays; trying again: {}",
                        chain(&error)
                    );
                } else {
                    debug!(%name, "a node cannot be read: {}", chain(&error));
                }
                return None;
            }
        };
        let (failures, is_needed) = self.schedule.answered(name, matches!(seen, Seen::Gone(_)), now);
        if failures >= NOTABLE {
            info!("nodes can be read again");
        }
        is_needed.then_some(seen)
    }
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
