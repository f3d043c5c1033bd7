//! What happens to flows, as it happens: the one reader of the kernel's ring of events counts them and hands them
//! on to whoever listens at a socket. And the broom of the flow table.

mod ends;
mod socket;

use std::{
    borrow::Cow,
    io,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::broadcast,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::{
    ends::{Denies, Ends},
    socket::Readers,
};
use crate::{
    claim::store::Store,
    datapath::{
        AyaDatapath, DatapathError, EndpointId,
        events::{FlowEvent, FlowEvents},
        sweep::FlowSweeper,
    },
    holdings::Holder,
    local_socket::LocalSocket,
    metrics::Metrics,
    telemetry::chain,
};

/// Events that a reader may be behind before it is dropped.
const BACKLOG: usize = 4096;
/// How often the kernel's count of lost events is read.
const LOST: Duration = Duration::from_secs(5);
/// How often flows that are over are taken out of the table.
const CLEAN: Duration = Duration::from_secs(10);
/// How old the names of endpoints may be: an id is not used again while the daemon lives, but a new one is.
const NAMES: Duration = Duration::from_secs(1);
const NAMES_OF_UNKNOWN: Duration = Duration::from_millis(50);

/// One line of the socket: an event, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLine {
    /// When the daemon read it.
    pub at: Timestamp,
    /// `open`, `close` or `deny`.
    pub kind: Cow<'static, str>,
    /// Pod and interface; `None` for an endpoint that no checkpoint knows.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Pod and interface that sent the frame, where they are on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Holder>,
    /// Pod and interface that it is for, where they are on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Holder>,
    /// Who dropped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The endpoint whose program saw the frame. Between two pods of a node that is the sender's, also for what the receiver's
    /// policy denies.
    pub endpoint: EndpointId,
    /// `from_pod` or `to_pod`: which way the frame went.
    pub direction: Cow<'static, str>,
    /// Why the frame was dropped, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// Number of the rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// Source address of the frame, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Its source port.
    pub source_port: u16,
    /// Its destination address, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
    /// Its destination port.
    pub destination_port: u16,
    /// IP protocol number; 0 if it is not IP.
    pub protocol: u32,
}

/// Who decided that a frame was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `egress policy` and `egress membership` of the sender, `ingress policy` and `ingress membership` of the receiver, or
    /// `checks of the sender` and `checks of the receiver`, which are not for policy to say.
    pub by: String,
    /// Whose.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// The rule by its name, as in `policy show` and `policy explain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

impl FlowLine {
    fn new(event: &FlowEvent, ends: &Ends, denies: &Denies) -> Self {
        let [from, to] = ends.both(event).map(|end| end.and_then(|id| ends.holder(id)));
        Self {
            at: Timestamp::now(),
            kind: event.kind.into(),
            holder: ends.holder(event.endpoint),
            from,
            to,
            decision: ends.decision(event, denies),
            endpoint: event.endpoint,
            direction: event.direction.into(),
            reason: event.reason.map(Into::into),
            rule: event.rule,
            source: event.source,
            source_port: event.source_port,
            destination: event.destination,
            destination_port: event.destination_port,
            protocol: event.protocol,
        }
    }
}

/// Who holds which endpoint, read again when it is old.
struct Names {
    store: Arc<Store>,
    known: Ends,
    read: Option<Instant>,
}

impl Names {
    fn of(&mut self, id: EndpointId) -> &Ends {
        let limit = if self.known.has(id) { NAMES } else { NAMES_OF_UNKNOWN };
        if self.read.is_none_or(|read| read.elapsed() > limit) {
            self.known = Ends::of(&self.store.all());
            self.read = Some(Instant::now());
        }
        &self.known
    }
}

/// Reads events; see [`FlowLog::run`].
pub struct FlowLog {
    events: FlowEvents,
    listener: LocalSocket,
    names: Names,
    denies: Denies,
    metrics: Arc<Metrics>,
}

/// Why there is no flow log.
#[derive(Debug, thiserror::Error)]
pub enum FlowLogError {
    /// The ring cannot be read.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The socket cannot be bound.
    #[error("cannot listen at {path}")]
    Socket {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FlowLog {
    /// Open the ring below the pins at `root` and bind `socket` for readers. Needs a Tokio runtime.
    pub fn open(
        root: &Path,
        socket: &Path,
        store: Arc<Store>,
        datapath: Arc<AyaDatapath>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, FlowLogError> {
        let listener = LocalSocket::bind(socket)
            .map_err(|source| FlowLogError::Socket { path: socket.display().to_string(), source })?;
        let names = Names { store, known: Ends::default(), read: None };
        let denies: Denies = Box::new(move |id, direction, peer, protocol, port| {
            Some(datapath.explain(id, direction, peer, protocol, port).ok()?.denied.is_some())
        });
        Ok(Self { events: FlowEvents::open(root)?, listener, names, denies, metrics })
    }

    /// Count every event and tell it to every reader, until `stop`. Ends before only if the ring fails.
    pub async fn run(mut self, stop: CancellationToken) {
        let (lines, _) = broadcast::channel::<Arc<str>>(BACKLOG);
        let readers = Readers::new(lines.clone(), Arc::clone(&self.metrics), stop.clone());
        let mut serving = tokio::spawn(socket::serve(self.listener, readers));
        let mut lost = interval(LOST);
        lost.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => break,
                _ = &mut serving => break,
                _ = lost.tick() => {
                    match self.events.lost().and_then(|lost| Ok((lost, self.events.held()?))) {
                        Ok((lost, held)) => self.metrics.flow_events_untold(lost, held),
                        Err(error) => warn!("{}", chain(&error)),
                    }
                    continue;
                }
                event = self.events.next() => event,
            };
            match event {
                Ok(event) => {
                    self.metrics.flow_event(event.kind, event.direction, event.reason);
                    if lines.receiver_count() > 0 {
                        tell(&lines, &FlowLine::new(&event, self.names.of(event.endpoint), &self.denies));
                    }
                }
                Err(error) => {
                    warn!("flow events: {}", chain(&error));
                    break;
                }
            }
        }
        serving.abort();
    }
}

fn tell(lines: &broadcast::Sender<Arc<str>>, line: &FlowLine) {
    match serde_json::to_string(line) {
        Ok(mut text) => {
            text.push('\n');
            // Fails only if the last reader has just left.
            let _ = lines.send(text.into());
        }
        Err(error) => warn!("cannot write an event: {error}"),
    }
}

/// Take flows that are over out of the table below the pins at `root`, from time to time, until `stop`.
pub async fn clean_until(mut sweeper: FlowSweeper, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut ticks = interval(CLEAN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // A full table takes a while to walk.
        let cleaned = tokio::task::spawn_blocking(move || {
            let removed = sweeper.sweep();
            (sweeper, removed)
        });
        match cleaned.await {
            Ok((same, removed)) => {
                sweeper = same;
                match removed {
                    Ok(0) => {}
                    Ok(removed) => {
                        debug!(removed, "flows that are over are out of the table");
                        metrics.flows_cleaned(removed);
                    }
                    Err(error) => warn!("cannot clean the table of flows: {}", chain(&error)),
                }
            }
            Err(error) => {
                warn!("the cleaner of flows failed: {error}");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
