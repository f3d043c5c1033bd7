//! Numbers for Prometheus. Names and meanings are listed in `docs/operations.md`.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{
    datapath::Traffic, holdings::Holding, network::follow::FollowStats, publish::publisher::PublishStats,
    readiness::Readiness,
};

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

/// Drops by network and reason.
pub type NetworkDrops = Box<dyn Fn() -> Vec<(String, String, u64)> + Send + Sync>;

/// What is read at each scrape.
pub struct Sources {
    /// State of the parts.
    pub readiness: Arc<Readiness>,
    /// What the publisher has done.
    pub publisher: Arc<PublishStats>,
    /// What following the members of networks came to.
    pub followed: Arc<FollowStats>,
    /// Drops that no interface can be named for.
    pub network_drops: NetworkDrops,
    /// Living sandboxes whose containers wait for their interfaces.
    pub pods_waiting: Box<dyn Fn() -> usize + Send + Sync>,
    /// Network namespaces that are held.
    pub namespaces_held: Box<dyn Fn() -> usize + Send + Sync>,
    /// Interfaces in pods and their counters.
    pub holdings: Box<dyn Fn() -> Vec<Holding> + Send + Sync>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Register everything.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        let mut registry = Registry::with_prefix("netferry");
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
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the driver", build);
        registry.register("claims_prepared", "Claims the kubelet had prepared", metrics.prepares.clone());
        let help = "Time to prepare a claim, API call included";
        registry.register_with_unit("prepare", help, Unit::Seconds, metrics.prepare_time.clone());
        registry.register("attaches", "Pods whose claimed links were attached", metrics.attaches.clone());
        let help = "Time to attach a pod's links, in the runtime's hook";
        registry.register_with_unit("attach", help, Unit::Seconds, metrics.attach_time.clone());
        registry.register("returns", "Pods whose links were taken home", metrics.returns.clone());
        metrics.register_flows(&mut registry);
        registry.register_collector(Box::new(sources));
        Self { registry, ..metrics }
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
        let result = match outcome {
            DhcpOutcome::Leased => "leased",
            DhcpOutcome::Renewed => "renewed",
            DhcpOutcome::Released => "released",
            DhcpOutcome::Lost => "lost",
            DhcpOutcome::Regained => "regained",
            DhcpOutcome::Failed => "failed",
        };
        self.dhcp.get_or_create(&Outcome { result }).inc();
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// One number of a [`Traffic`].
type Pick = fn(&Traffic) -> u64;

/// One reading of one counter, made at scrape time.
type Reading<'a> = (&'a Holding, &'static str, Traffic);

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether a part of the driver works";
        let mut parts =
            encoder.encode_descriptor("ready", help, None, ConstGauge::new(0i64).metric_type())?;
        for (part, ready) in self.readiness.parts() {
            ConstGauge::new(i64::from(ready)).encode(parts.encode_family(&[("part", part)])?)?;
        }
        let stats = &self.publisher;
        let gauge = |value: &AtomicU64| ConstGauge::new(value.load(Ordering::Relaxed).cast_signed());
        let gauges = [
            ("devices_published", "Devices in this node's slices", gauge(&stats.devices)),
            ("slices", "This node's slices", gauge(&stats.slices)),
        ];
        for (name, help, gauge) in gauges {
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counts = [
            ("pods_waiting", "Pods whose containers wait for their interfaces", (self.pods_waiting)()),
            (
                "namespaces_held",
                "Network namespaces of pods that are held for their links",
                (self.namespaces_held)(),
            ),
        ];
        for (name, help, count) in counts {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let writes = [
            ("create", &stats.creates),
            ("update", &stats.updates),
            ("delete", &stats.deletes),
            ("conflict", &stats.conflicts),
            ("failure", &stats.failures),
        ];
        let help = "Slices created, updated and deleted, and attempts that conflicted or failed";
        let mut family =
            encoder.encode_descriptor("slice_writes", help, None, ConstCounter::new(0u64).metric_type())?;
        for (kind, count) in writes {
            let counter = ConstCounter::new(count.load(Ordering::Relaxed));
            counter.encode(family.encode_family(&[("kind", kind)])?)?;
        }
        self.encode_networks(&mut encoder)?;
        let holdings = (self.holdings)();
        let help = "Interfaces that are in pods";
        let gauge = ConstGauge::new(i64::try_from(holdings.len()).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor("interfaces_held", help, None, gauge.metric_type())?)?;

        let readings: Vec<Reading<'_>> = holdings
            .iter()
            .filter_map(|holding| holding.stats.as_ref().map(|stats| (holding, stats)))
            .flat_map(|(h, stats)| [(h, "from_pod", stats.from_pod), (h, "to_pod", stats.to_pod)])
            .collect();
        let kinds: [(&str, &str, Pick); 2] = [
            ("interface_packets", "Frames let through", |traffic| traffic.packets),
            ("interface_bytes", "Bytes let through, Ethernet header included", |traffic| traffic.bytes),
        ];
        for (name, help, value) in kinds {
            let mut family =
                encoder.encode_descriptor(name, help, None, ConstCounter::new(0u64).metric_type())?;
            for (holding, direction, traffic) in &readings {
                count(&mut family, holding, ("direction", direction), value(traffic))?;
            }
        }
        let help = "Frames dropped, by reason";
        let mut drops = encoder.encode_descriptor(
            "interface_drops",
            help,
            None,
            ConstCounter::new(0u64).metric_type(),
        )?;
        for holding in &holdings {
            for (reason, dropped) in holding.stats.iter().flat_map(|stats| &stats.drops) {
                count(&mut drops, holding, ("reason", reason), *dropped)?;
            }
        }
        Ok(())
    }
}

impl Sources {
    fn encode_networks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counter = |value: &AtomicU64| ConstCounter::new(value.load(Ordering::Relaxed));
        let followed = &self.followed;
        let kinds = [
            ("change", &followed.changes),
            ("failure", &followed.failures),
            ("conflict", &followed.conflicts),
            ("repair", &followed.repairs),
        ];
        let help =
            "Members on other nodes: changes written, not written, addresses that two claims say, repairs";
        let none = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor("member_changes", help, None, none)?;
        for (kind, count) in kinds {
            counter(count).encode(family.encode_family(&[("kind", kind)])?)?;
        }
        let help =
            "Frames from uplinks and tunnels that were dropped before their receiver was known, by reason";
        let none = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor("network_drops", help, None, none)?;
        for (network, reason, count) in (self.network_drops)() {
            let labels = [("network", network.as_str()), ("reason", reason.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Writes one counter of a holding, with its last label.
fn count(family: &mut MetricEncoder<'_>, holding: &Holding, last: (&str, &str), value: u64) -> fmt::Result {
    let labels = [
        ("namespace", holding.pod.namespace.as_str()),
        ("pod", holding.pod.name.as_str()),
        ("interface", holding.interface.as_str()),
        last,
    ];
    ConstCounter::new(value).encode(family.encode_family(&labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        claim::{ClaimRef, PodRef, Step},
        datapath::{EndpointStats, Isolation},
    };

    #[test]
    fn a_scrape_shows_the_reason_of_each_drop() {
        let holding = || Holding {
            pod: PodRef { namespace: "ns".into(), name: "pod".into(), uid: "u".into() },
            claim: ClaimRef { namespace: "ns".into(), name: "claim".into(), uid: "c".into() },
            request: "nic".into(),
            device: "eth7".into(),
            host_link: "eth7".into(),
            network: None,
            interface: "net1".into(),
            addresses: Vec::new(),
            isolation: Isolation::Strict,
            step: Step::Attached,
            endpoint: Some(1),
            guards: Vec::new(),
            stats: Some(EndpointStats {
                drops: [("spoofed_ip".to_owned(), 7)].into(),
                ..EndpointStats::default()
            }),
        };
        let sources = Sources {
            readiness: Arc::new(Readiness::new()),
            publisher: Arc::default(),
            followed: Arc::default(),
            network_drops: Box::new(|| vec![("blue".to_owned(), "nobody".to_owned(), 3)]),
            pods_waiting: Box::new(|| 0),
            namespaces_held: Box::new(|| 0),
            holdings: Box::new(move || vec![holding()]),
        };
        let metrics = Metrics::new(sources);
        metrics.attached(true, Duration::from_millis(3));
        let text = metrics.encode().unwrap();
        let drops = r#"netferry_interface_drops_total{namespace="ns",pod="pod",interface="net1",reason="spoofed_ip"} 7"#;
        assert!(text.contains(drops), "{text}");
        assert!(text.contains(r#"netferry_attaches_total{result="ok"} 1"#), "{text}");
        assert!(text.contains(r#"netferry_ready{part="kubelet"} 0"#), "{text}");
        let lost = r#"netferry_network_drops_total{network="blue",reason="nobody"} 3"#;
        assert!(text.contains(lost), "{text}");
        assert!(text.contains(r#"netferry_member_changes_total{kind="conflict"} 0"#), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
