//! What a scrape shows.

use std::sync::Arc;

use super::*;
use crate::{
    claim::{ClaimRef, PodRef, Step},
    datapath::{EndpointStats, Isolation},
    holdings::Holding,
    readiness::Readiness,
};

fn holding() -> Holding {
    Holding {
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
            drops: [("source_mac".to_owned(), 7)].into(),
            ..EndpointStats::default()
        }),
    }
}

fn metrics() -> Metrics {
    Metrics::new(Sources {
        readiness: Arc::new(Readiness::new()),
        publisher: Arc::default(),
        followed: Arc::default(),
        network_drops: Box::new(|| vec![("blue".to_owned(), [("nobody".to_owned(), 3)].into())]),
        pods_waiting: Box::new(|| 0),
        namespaces_held: Box::new(|| 0),
        holdings: Box::new(|| vec![holding()]),
    })
}

#[test]
fn a_scrape_shows_the_reason_of_each_drop() {
    let metrics = metrics();
    metrics.attached(true, Duration::from_millis(3));
    let text = metrics.encode(Format::OpenMetrics).unwrap();
    let drops =
        r#"netferry_interface_drops_total{namespace="ns",pod="pod",interface="net1",reason="source_mac"} 7"#;
    assert!(text.contains(drops), "{text}");
    assert!(text.contains(r#"netferry_attaches_total{result="ok"} 1"#), "{text}");
    assert!(text.contains(r#"netferry_ready{part="kubelet"} 0"#), "{text}");
    let lost = r#"netferry_network_drops_total{network="blue",reason="nobody"} 3"#;
    assert!(text.contains(lost), "{text}");
    assert!(text.contains(r#"netferry_member_changes_total{kind="conflict"} 0"#), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn every_counter_is_there_before_its_first_event() {
    let text = metrics().encode(Format::Text).unwrap();
    for line in [
        r#"netferry_attaches_total{result="error"} 0"#,
        r#"netferry_claims_prepared_total{result="error"} 0"#,
        r#"netferry_returns_total{result="error"} 0"#,
        r#"netferry_programs_drifted_total{result="ok"} 0"#,
        r#"netferry_drift_total{item="gate",result="failed"} 0"#,
        r#"netferry_dhcp_total{result="lost"} 0"#,
        r#"netferry_flow_events_total{kind="open",direction="to_pod",reason=""} 0"#,
        r#"netferry_flow_events_total{kind="deny",direction="from_pod",reason="source_mac"} 0"#,
        r#"netferry_network_drops_total{network="blue",reason="wire_source"} 0"#,
        r#"netferry_interface_drops_total{namespace="ns",pod="pod",interface="net1",reason="flow_limit"} 0"#,
        r#"netferry_slice_writes_total{kind="failure"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn the_process_is_measured_under_everybodys_names() {
    let metrics = metrics();
    let text = metrics.encode(Format::Text).unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    };
    assert!(value("process_cpu_seconds_total") >= 0.0);
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
    let now = jiff::Timestamp::now().as_second();
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let age = now as f64 - value("process_start_time_seconds");
    assert!((-5.0..86_400.0 * 30.0).contains(&age), "{age}");
    assert!(
        text.contains("\n# TYPE process_cpu_seconds_total counter\n") && !text.contains("# EOF"),
        "{text}"
    );
    assert!(text.contains(&format!(r#"commit="{}""#, version::COMMIT)), "{text}");
}
