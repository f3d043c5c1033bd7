//! One node is elected to publish what belongs to no node, by a Lease as client-go's leader election keeps it
//! (`k8s.io/client-go/tools/leaderelection`).
//!
//! The time of a Lease is never compared with this node's clock to take it: a Lease is free when the node has seen it
//! unchanged for its whole duration. Who leads renews it, and stops leading before others may take it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    cluster::{ClusterError, lease::Leases},
    publish::publisher::jittered,
};

/// Name of the Lease of the nodes that publish networks' addresses.
pub const ADDRESSES: &str = "netferry-addresses";

/// How an election is paced.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A Lease that was not renewed for this long is free.
    pub duration: Duration,
    /// The holder renews it this often.
    pub renew: Duration,
    /// The holder that could not renew it for this long stops leading; less than `duration`.
    pub give_up: Duration,
    /// The others look at it this often.
    pub look: Duration,
}

impl Default for Timing {
    /// A minute without a leader is no harm: what is published stays, with free addresses in it. Thousands of nodes
    /// look at the Lease, so they look seldom; many of them together still see a free one soon.
    fn default() -> Self {
        Self {
            duration: Duration::from_mins(1),
            renew: Duration::from_secs(15),
            give_up: Duration::from_secs(40),
            look: Duration::from_mins(2),
        }
    }
}

/// What a candidate knows. Without clock and cluster of its own.
#[derive(Debug)]
pub struct Candidate {
    name: String,
    identity: String,
    timing: Timing,
    /// The Lease as it was last seen to change, and when.
    observed: Option<(LeaseSpec, Instant)>,
    /// When this candidate last held the Lease for certain: the time before the write was sent.
    renewed: Option<Instant>,
}

/// What a candidate does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write this Lease, to lead or go on leading.
    Write(Box<Lease>),
    /// Somebody else holds it: look again after this time.
    Wait(Duration),
}

impl Candidate {
    /// A candidate for the Lease `name`, told from the others by `identity`.
    #[must_use]
    pub fn new(name: &str, identity: &str, timing: Timing) -> Self {
        let (name, identity) = (name.to_owned(), identity.to_owned());
        Self { name, identity, timing, observed: None, renewed: None }
    }

    /// Whether this candidate leads.
    #[must_use]
    pub fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|renewed| now.saturating_duration_since(renewed) < self.timing.give_up)
    }

    /// Take in the Lease as it is and say what to do.
    pub fn look(&mut self, lease: Option<&Lease>, now: Instant, clock: Timestamp) -> Step {
        let spec = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let since = match &self.observed {
            Some((seen, since)) if *seen == spec => *since,
            _ => now,
        };
        self.observed = Some((spec.clone(), since));
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity {
            self.renewed = None;
        }
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(self.timing.duration, Duration::from_secs);
        let unchanged = now.saturating_duration_since(since);
        if !holder.is_empty() && holder != self.identity && unchanged < duration {
            // The clock only says when to look, never whether it is free.
            let stale = spec.renew_time.as_ref().is_none_or(|renewed| {
                clock.duration_since(renewed.0) > duration.try_into().unwrap_or(jiff::SignedDuration::MAX)
            });
            return Step::Wait(if stale { duration.saturating_sub(unchanged) } else { self.timing.look });
        }
        Step::Write(Box::new(self.mine(lease, &spec, clock)))
    }

    /// The write went through; it was sent at `sent`.
    pub fn won(&mut self, lease: &Lease, sent: Instant) {
        self.observed = Some((lease.spec.clone().unwrap_or_default(), sent));
        self.renewed = Some(sent);
    }

    /// The Lease given back, if this candidate holds it: the next one need not wait.
    #[must_use]
    pub fn released(&self, lease: &Lease, clock: Timestamp) -> Option<Lease> {
        let spec = lease.spec.clone()?;
        (spec.holder_identity.as_ref() == Some(&self.identity)).then(|| {
            let released = LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                renew_time: Some(MicroTime(clock)),
                ..spec
            };
            Lease { spec: Some(released), ..lease.clone() }
        })
    }

    fn mine(&self, lease: Option<&Lease>, spec: &LeaseSpec, clock: Timestamp) -> Lease {
        let holds = spec.holder_identity.as_ref() == Some(&self.identity);
        let acquired = spec.acquire_time.clone().filter(|_| holds);
        let transitions = spec.lease_transitions.unwrap_or(0);
        let metadata = lease.map_or_else(
            || ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        );
        let seconds = i32::try_from(self.timing.duration.as_secs()).unwrap_or(i32::MAX).max(1);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(seconds),
            acquire_time: Some(acquired.unwrap_or(MicroTime(clock))),
            renew_time: Some(MicroTime(clock)),
            // As client-go counts: the first holder is no transition.
            lease_transitions: Some(transitions + i32::from(!holds && lease.is_some())),
            ..spec.clone()
        };
        Lease { metadata, spec: Some(spec) }
    }
}

/// Stand for election until `stop`, and say through `leading` whether this node leads. A holder that stops gives the
/// Lease back.
pub async fn run(
    leases: &dyn Leases,
    mut candidate: Candidate,
    leading: &watch::Sender<bool>,
    stop: &CancellationToken,
) {
    let timing = candidate.timing;
    let mut failures = 0;
    loop {
        let round = tokio::select! {
            round = timeout(timing.renew, round(leases, &mut candidate)) => round,
            () = stop.cancelled() => break,
        };
        let wait = match round {
            Ok(Ok(wait)) => {
                failures = 0;
                // A tenth of the nodes' looks fall together otherwise.
                if candidate.leads(Instant::now()) { wait } else { jittered(wait, 1.0, 1.2) }
            }
            failed => {
                let error = failed.map_or_else(
                    |_| "no answer".to_owned(),
                    |failed| failed.err().map(|error| error.to_string()).unwrap_or_default(),
                );
                debug!(%error, "the Lease could not be read or written");
                failures += 1;
                jittered(timing.renew.mul_f64(0.2 * f64::from(failures.min(5))), 0.5, 1.0)
            }
        };
        tell(leading, candidate.leads(Instant::now()), &candidate.identity);
        // A holder that cannot renew stops leading in time, whatever it waits for.
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => break,
        }
        tell(leading, candidate.leads(Instant::now()), &candidate.identity);
    }
    let led = leading.send_replace(false);
    if led {
        let release = async {
            let held = leases.lease(&candidate.name).await?;
            match held.and_then(|held| candidate.released(&held, Timestamp::now())) {
                Some(released) => leases.write_lease(&released).await.map(drop),
                None => Ok(()),
            }
        };
        if let Ok(Err(error)) = timeout(Duration::from_secs(2), release).await {
            debug!(%error, "the Lease could not be given back; it runs out");
        }
    }
}

fn tell(leading: &watch::Sender<bool>, now: bool, identity: &str) {
    let changed = leading.send_if_modified(|before| std::mem::replace(before, now) != now);
    if changed {
        info!(identity, leading = now, "election for the addresses of networks");
    }
}

/// Look, and write if that is to be done. Returns how long to wait.
async fn round(leases: &dyn Leases, candidate: &mut Candidate) -> Result<Duration, ClusterError> {
    let lease = leases.lease(&candidate.name).await?;
    let sent = Instant::now();
    match candidate.look(lease.as_ref(), sent, Timestamp::now()) {
        Step::Wait(wait) => Ok(wait),
        Step::Write(lease) => match leases.write_lease(&lease).await {
            Ok(written) => {
                candidate.won(&written, sent);
                Ok(candidate.timing.renew)
            }
            // Another was quicker, or took it from us: the next look tells.
            Err(ClusterError::Conflict { .. }) => Ok(Duration::ZERO),
            Err(error) => Err(error),
        },
    }
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
