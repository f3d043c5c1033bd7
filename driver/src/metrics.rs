//! Numbers for Prometheus. Names and meanings are listed in `docs/operations.md`.

pub mod format;
mod process;
mod sources;

use std::{fmt, sync::atomic::Ordering, time::Duration};

use netferry_common::verdict::{Direction, Reason};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

pub use self::sources::{NetworkDrops, Sources};
use self::{format::Format, process::ProcessCollector};
use crate::{attach::Deviation, datapath::programs_digest, version};

/// How something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

impl Outcome {
    const fn of(ok: bool) -> Self {
        Self { result: if ok { "ok" } else { "error" } }
    }
}

/// What was told of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlowKind {
    kind: &'static str,
    direction: &'static str,
    /// Empty unless `kind` is `deny`.
    reason: &'static str,
}

/// What was not as it was made, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Drift {
    item: &'static str,
    result: &'static str,
}

/// What became of an address by DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DhcpOutcome {
    /// It was leased for a claim.
    Leased,
    /// Its lease goes on.
    Renewed,
    /// It was given back.
    Released,
    /// Its lease ended, or a server refused it: its port is closed.
    Lost,
    /// It was lost, and is its port's again.
    Regained,
    /// No server answered, or none could be asked.
    Failed,
}

impl DhcpOutcome {
    const ALL: [Self; 6] =
        [Self::Leased, Self::Renewed, Self::Released, Self::Lost, Self::Regained, Self::Failed];

    const fn name(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::Renewed => "renewed",
            Self::Released => "released",
            Self::Lost => "lost",
            Self::Regained => "regained",
            Self::Failed => "failed",
        }
    }
}

/// The daemon's numbers.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    prepares: Family<Outcome, Counter>,
    prepare_time: Histogram,
    attaches: Family<Outcome, Counter>,
    attach_time: Histogram,
    returns: Family<Outcome, Counter>,
    flow_events: Family<FlowKind, Counter>,
    flow_events_lost: Counter,
    flow_events_held: Counter,
    flow_readers_dropped: Counter,
    flows_cleaned: Counter,
    programs_drifted: Family<Outcome, Counter>,
    drift: Family<Drift, Counter>,
    dhcp: Family<Outcome, Counter>,
}

impl Metrics {
    /// Register everything.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        let mut all = Registry::default();
        all.register_collector(Box::new(ProcessCollector));
        let registry = all.sub_registry_with_prefix("netferry");
        let time = || Histogram::new(exponential_buckets(0.001, 2.0, 12));
        let metrics = Self {
            prepares: Family::default(),
            prepare_time: time(),
            attaches: Family::default(),
            attach_time: time(),
            returns: Family::default(),
            flow_events: Family::default(),
            flow_events_lost: Counter::default(),
            flow_events_held: Counter::default(),
            flow_readers_dropped: Counter::default(),
            flows_cleaned: Counter::default(),
            programs_drifted: Family::default(),
            drift: Family::default(),
            dhcp: Family::default(),
            registry: Registry::default(),
        };
        let build = Info::new(vec![
            ("version", version::VERSION.to_owned()),
            ("commit", version::COMMIT.to_owned()),
            ("programs", programs_digest()),
        ]);
        registry.register("build", "Version, commit and digest of the eBPF programs", build);
        registry.register("claims_prepared", "Claims the kubelet had prepared", metrics.prepares.clone());
        let help = "Time to prepare a claim, API call included";
        registry.register_with_unit("prepare", help, Unit::Seconds, metrics.prepare_time.clone());
        registry.register("attaches", "Pods whose claimed links were attached", metrics.attaches.clone());
        let help = "Time to attach a pod's links, in the runtime's hook";
        registry.register_with_unit("attach", help, Unit::Seconds, metrics.attach_time.clone());
        registry.register("returns", "Pods whose links were taken home", metrics.returns.clone());
        metrics.register_flows(registry);
        registry.register_collector(Box::new(sources));
        metrics.begin_at_zero();
        Self { registry: all, ..metrics }
    }

    /// Every counter is there from the start: one that appears with 1 is no increase to Prometheus.
    fn begin_at_zero(&self) {
        for ok in [true, false] {
            for family in [&self.prepares, &self.attaches, &self.returns, &self.programs_drifted] {
                drop(family.get_or_create(&Outcome::of(ok)));
            }
        }
        for outcome in DhcpOutcome::ALL {
            drop(self.dhcp.get_or_create(&Outcome { result: outcome.name() }));
        }
        for item in Deviation::ITEMS {
            for result in ["repaired", "failed", "left"] {
                drop(self.drift.get_or_create(&Drift { item, result }));
            }
        }
        for direction in Direction::ALL.map(Direction::name) {
            for kind in ["open", "close"] {
                drop(self.flow_events.get_or_create(&FlowKind { kind, direction, reason: "" }));
            }
            for reason in Reason::ALL.iter().map(|reason| reason.name()) {
                drop(self.flow_events.get_or_create(&FlowKind { kind: "deny", direction, reason }));
            }
        }
    }

    fn register_flows(&self, registry: &mut Registry) {
        let help = "Flows opened and closed, and frames dropped, as they were told";
        registry.register("flow_events", help, self.flow_events.clone());
        let help = "Flow events that found no room in the ring since the maps were made";
        registry.register("flow_events_lost", help, self.flow_events_lost.clone());
        let help = "Drops that were counted but not told, as their interface had too many of them";
        registry.register("flow_events_held", help, self.flow_events_held.clone());
        let help = "Readers of flow events that were too slow";
        registry.register("flow_readers_dropped", help, self.flow_readers_dropped.clone());
        registry.register("flows_cleaned", "Flows taken out of the table", self.flows_cleaned.clone());
        let help = "Interfaces whose programs were not where they must be; ok means put right";
        registry.register("programs_drifted", help, self.programs_drifted.clone());
        let help = "Parts of attached interfaces that were not as they were made";
        registry.register("drift", help, self.drift.clone());
        registry.register("dhcp", "What became of addresses by DHCP", self.dhcp.clone());
    }

    /// A claim was prepared, or not.
    pub fn prepared(&self, ok: bool, took: Duration) {
        self.prepares.get_or_create(&Outcome::of(ok)).inc();
        self.prepare_time.observe(took.as_secs_f64());
    }

    /// A pod's links were attached, or not.
    pub fn attached(&self, ok: bool, took: Duration) {
        self.attaches.get_or_create(&Outcome::of(ok)).inc();
        self.attach_time.observe(took.as_secs_f64());
    }

    /// A pod's links were taken home; `ok` means as they were.
    pub fn returned(&self, ok: bool) {
        self.returns.get_or_create(&Outcome::of(ok)).inc();
    }

    /// Something was told of a flow.
    pub fn flow_event(&self, kind: &'static str, direction: &'static str, reason: Option<&'static str>) {
        let reason = reason.unwrap_or_default();
        self.flow_events.get_or_create(&FlowKind { kind, direction, reason }).inc();
    }

    /// The kernel's counts of flow events that found no room, and of those held back.
    pub fn flow_events_untold(&self, lost: u64, held: u64) {
        self.flow_events_lost.inner().store(lost, Ordering::Relaxed);
        self.flow_events_held.inner().store(held, Ordering::Relaxed);
    }

    /// A reader of flow events was too slow.
    pub fn flow_reader_dropped(&self) {
        self.flow_readers_dropped.inc();
    }

    /// So many flows were over and are out of the table.
    pub fn flows_cleaned(&self, flows: usize) {
        self.flows_cleaned.inc_by(u64::try_from(flows).unwrap_or(u64::MAX));
    }

    /// The programs of an interface were not where they must be; `ok` means they are now.
    pub fn drifted(&self, ok: bool) {
        self.programs_drifted.get_or_create(&Outcome::of(ok)).inc();
    }

    /// A part of an attached interface was not as it was made; `result` is `repaired`, `failed` or `left`.
    pub fn deviated(&self, item: &'static str, result: &'static str) {
        self.drift.get_or_create(&Drift { item, result }).inc();
    }

    /// Something became of an address by DHCP.
    pub fn dhcp(&self, outcome: DhcpOutcome) {
        self.dhcp.get_or_create(&Outcome { result: outcome.name() }).inc();
    }

    /// Everything, as it is now.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        let mut open = String::new();
        text::encode(&mut open, &self.registry)?;
        match format {
            Format::OpenMetrics => Ok(open),
            Format::Text => format::text_of(&open),
        }
    }
}

#[cfg(test)]
mod tests;
