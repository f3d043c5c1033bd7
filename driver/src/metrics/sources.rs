//! What is read at each scrape, where it is kept.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use netferry_common::verdict::Reason;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use crate::{
    datapath::Traffic, holdings::Holding, network::follow::FollowStats, publish::publisher::PublishStats,
    readiness::Readiness,
};

/// The networks, each with its drops by the name of their reason; those that never happened may be left out.
pub type NetworkDrops = Box<dyn Fn() -> Vec<(String, BTreeMap<String, u64>)> + Send + Sync>;

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
            let Some(stats) = &holding.stats else { continue };
            for reason in Reason::ALL.iter().map(|reason| reason.name()) {
                let dropped = stats.drops.get(reason).copied().unwrap_or(0);
                count(&mut drops, holding, ("reason", reason), dropped)?;
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
        for (network, drops) in (self.network_drops)() {
            for reason in Reason::ALL.iter().map(|reason| reason.name()) {
                let labels = [("network", network.as_str()), ("reason", reason)];
                let count = ConstCounter::new(drops.get(reason).copied().unwrap_or(0));
                count.encode(family.encode_family(&labels)?)?;
            }
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
