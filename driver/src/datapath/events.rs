//! Flow events from the kernel's ring buffer, and the flow table.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, PerCpuArray, RingBuf};
use futures::Stream;
use netferry_common::{Addr, Direction, Event, Flow, FlowKey, Reason, event, flow, maps};
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::{DatapathError, EndpointId, bpf_error, sys};

/// How long the reader that was woken waits for more events.
const GATHER: Duration = Duration::from_millis(maps::EVENTS_EVERY);
/// How long it waits for a wake-up: programs of an earlier version wake it only when the ring is a quarter full.
const UNWOKEN: Duration = Duration::from_secs(5);

/// Something that happened to a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowEvent {
    /// Nanoseconds since the machine started, on a clock of some milliseconds a step.
    pub time: u64,
    /// `open`, `close` or `deny`.
    pub kind: &'static str,
    /// The endpoint that judged.
    pub endpoint: EndpointId,
    /// `from_pod` or `to_pod`.
    pub direction: &'static str,
    /// Why a frame was dropped, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Number of the rule that decided, see [`super::policy::Policy::rule_name`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// Source address, where the frame had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Destination address, where the frame had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number; 0 if it is not IP.
    pub protocol: u32,
}

impl From<&Event> for FlowEvent {
    fn from(event: &Event) -> Self {
        let address = |addr: Addr| (addr != Addr::UNSPECIFIED).then(|| addr.into());
        Self {
            time: event.time,
            kind: match event.kind {
                event::OPEN => "open",
                event::CLOSE => "close",
                event::DENY => "deny",
                _ => "unknown",
            },
            endpoint: event.endpoint,
            direction: direction(event.direction),
            reason: (event.kind == event::DENY)
                .then(|| Reason::from_number(event.reason).map_or("unknown", Reason::name)),
            rule: (event.rule > 0).then_some(event.rule),
            source: address(event.source),
            destination: address(event.destination),
            source_port: u16::from_be_bytes(event.source_port),
            destination_port: u16::from_be_bytes(event.destination_port),
            protocol: event.protocol,
        }
    }
}

fn direction(number: u32) -> &'static str {
    Direction::ALL.into_iter().find(|known| known.number() == number).map_or("unknown", Direction::name)
}

/// Reads events. An event goes to one reader only: the daemon reads, and hands on.
pub struct FlowEvents {
    ring: AsyncFd<RingBuf<MapData>>,
    /// When to read what has woken the reader: the programs do not wake it again for a few more events.
    read_at: Option<Instant>,
    lost: PerCpuArray<MapData, u64>,
}

impl FlowEvents {
    /// Opens the ring under the root of a datapath that is or was open. Needs a Tokio runtime with time and I/O.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        let ring = RingBuf::try_from(Map::RingBuf(pinned(root, maps::EVENTS)?))
            .map_err(|source| bpf_error("use the ring of events", source))?;
        let lost = PerCpuArray::try_from(Map::PerCpuArray(pinned(root, maps::LOST)?))
            .map_err(|source| bpf_error("use the counter of lost events", source))?;
        let ring = sys::watch(ring).map_err(|source| bpf_error("wait for events", source))?;
        Ok(Self { ring, read_at: None, lost })
    }

    /// The next event, when there is one: at most [`maps::EVENTS_EVERY`] after it happened. Cancel safe.
    pub async fn next(&mut self) -> Result<FlowEvent, DatapathError> {
        loop {
            // Where events never end, others have their turn too.
            tokio::task::consume_budget().await;
            if self.read_at.is_none_or(|at| at <= Instant::now()) {
                while let Some(item) = self.ring.get_mut().next() {
                    // Another size would be another version's event.
                    if let Ok(event) = bytemuck::try_pod_read_unaligned::<Event>(&item) {
                        return Ok(FlowEvent::from(&event));
                    }
                }
                self.read_at = None;
            }
            let at = self.read_at.unwrap_or_else(|| Instant::now() + UNWOKEN);
            tokio::select! {
                ready = self.ring.readable_mut() => {
                    // What comes from now on, before the ring is read, is read with it.
                    ready.map_err(|source| bpf_error("wait for events", source))?.clear_ready();
                    // Woken before that time, the ring fills faster than it is read.
                    let gather = if self.read_at.is_none() { GATHER } else { Duration::ZERO };
                    self.read_at = Some(Instant::now() + gather);
                }
                () = sleep_until(at) => {}
            }
        }
    }

    /// All events from now on. Ends after an error.
    pub fn stream(self) -> impl Stream<Item = Result<FlowEvent, DatapathError>> {
        futures::stream::unfold(Some(self), |events| async {
            let mut events = events?;
            match events.next().await {
                Ok(event) => Some((Ok(event), Some(events))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Events that found no room in the ring since the maps were made.
    pub fn lost(&self) -> Result<u64, DatapathError> {
        self.untold(maps::LOST_FULL)
    }

    /// Events about dropped frames that were not told, as their endpoint had too many of them, since the maps were made.
    pub fn held(&self) -> Result<u64, DatapathError> {
        self.untold(maps::LOST_HELD)
    }

    fn untold(&self, how: u32) -> Result<u64, DatapathError> {
        let cpus =
            self.lost.get(&how, 0).map_err(|source| bpf_error("read the counter of lost events", source))?;
        Ok(cpus.iter().sum())
    }
}

/// One flow in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRecord {
    /// Network of the flow; `None` for a flow on the wire of one endpoint.
    pub network: Option<u32>,
    /// IP protocol number.
    pub protocol: u32,
    /// The side that sent the first frame, with its port.
    pub opener: (IpAddr, u16),
    /// The other side, with its port.
    pub responder: (IpAddr, u16),
    /// Endpoints on this node that judged the flow.
    pub endpoints: Vec<EndpointId>,
    /// Number of the rule that let it open; `None` for the default.
    pub rule: Option<u32>,
    /// Whether both sides have spoken.
    pub answered: bool,
    /// Whether it is over, by its own end or by its age.
    pub ended: bool,
    /// Nanoseconds since the machine started, at a recent frame.
    pub seen: u64,
}

impl FlowRecord {
    fn new(key: &FlowKey, value: &Flow, now: u64) -> Self {
        let low = (key.low.into(), u16::from_be_bytes(key.low_port));
        let high = (key.high.into(), u16::from_be_bytes(key.high_port));
        let (opener, responder) =
            if value.state & flow::HIGH_OPENED == 0 { (low, high) } else { (high, low) };
        let both = |bits: u32| value.state & bits == bits;
        let mut endpoints: Vec<EndpointId> =
            [value.low.endpoint, value.high.endpoint].into_iter().filter(|id| *id > 0).collect();
        endpoints.dedup();
        Self {
            network: (key.scope & flow::SCOPE_ENDPOINT == 0).then_some(key.scope),
            protocol: key.protocol,
            opener,
            responder,
            endpoints,
            rule: (value.rule > 0).then_some(value.rule),
            answered: both(flow::LOW_SENT | flow::HIGH_SENT),
            ended: value.state & flow::RESET != 0
                || both(flow::LOW_CLOSED | flow::HIGH_CLOSED)
                || is_over(key, value, now),
            seen: value.seen,
        }
    }
}

/// The table of flows.
pub struct Flows(HashMap<MapData, FlowKey, Flow>);

impl Flows {
    /// Opens the table under the root of a datapath that is or was open.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        HashMap::try_from(Map::LruHashMap(pinned(root, maps::FLOWS)?))
            .map(Self)
            .map_err(|source| bpf_error("use the table of flows", source))
    }

    /// Every flow, as it is while the table is read.
    pub fn list(&self) -> Result<Vec<FlowRecord>, DatapathError> {
        let now = now();
        let entries = self.0.iter().filter_map(|entry| match entry {
            Ok((key, value)) => Some(Ok(FlowRecord::new(&key, &value, now))),
            // Gone since its key was read.
            Err(aya::maps::MapError::KeyNotFound) => None,
            Err(source) => Some(Err(bpf_error("read the table of flows", source))),
        });
        entries.collect()
    }
}

/// Whether a flow is over by its age.
fn is_over(key: &FlowKey, value: &Flow, now: u64) -> bool {
    flow::expired(u8::try_from(key.protocol).unwrap_or(u8::MAX), value, now)
}

/// Nanoseconds on the programs' clock.
pub(crate) fn now() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |now| {
        u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
    })
}

fn pinned(root: &Path, name: &str) -> Result<MapData, DatapathError> {
    let pin = root.join("maps").join(name);
    match pin.try_exists() {
        Ok(true) => {}
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(DatapathError::NotPermitted);
        }
        Ok(false) | Err(_) => return Err(DatapathError::Absent { root: root.to_owned() }),
    }
    MapData::from_pin(&pin)
        .map_err(|source| bpf_error(format!("open the pinned map {}", pin.display()), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_by_names() {
        let event = Event {
            kind: event::DENY,
            endpoint: 3,
            direction: Direction::ToPod.number(),
            reason: Reason::SourceMac.number(),
            source: Addr::v4([192, 0, 2, 1]),
            source_port: [0x1f, 0x90],
            protocol: 6,
            ..Event::default()
        };
        let told = FlowEvent::from(&event);
        assert_eq!((told.kind, told.direction, told.reason), ("deny", "to_pod", Some("source_mac")));
        assert_eq!((told.source, told.destination), (Some([192, 0, 2, 1].into()), None));
        assert_eq!((told.source_port, told.rule), (8080, None));
    }

    #[test]
    fn a_flow_has_an_opener() {
        let key = FlowKey {
            scope: flow::SCOPE_ENDPOINT | 3,
            low: Addr::v4([192, 0, 2, 1]),
            high: Addr::v4([192, 0, 2, 2]),
            low_port: [0, 80],
            high_port: [0x80, 0],
            protocol: 6,
        };
        let value = Flow { state: flow::HIGH_OPENED | flow::HIGH_SENT, seen: 5, ..Flow::default() };
        let record = FlowRecord::new(&key, &value, 5);
        assert_eq!(record.opener, ([192, 0, 2, 2].into(), 0x8000));
        assert_eq!((record.network, record.answered, record.ended), (None, false, false));
        assert!(FlowRecord::new(&key, &value, 5 + flow::lifetime(6, value.state) + 1).ended);
    }
}
