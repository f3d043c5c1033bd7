//! `manifests/monitoring/`: every metric and label it asks for is one that a scrape has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
};

use netferry::{
    claim::{ClaimRef, PodRef, Step},
    datapath::{EndpointStats, Isolation},
    holdings::Holding,
    metrics::{Metrics, Sources, format::Format},
    readiness::Readiness,
};
use netferry_common::verdict::Reason;
use serde_json::Value;

use super::{documents, folder};

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

/// Names of the samples in a scrape before anything has happened, and their labels.
fn samples() -> BTreeMap<String, BTreeSet<String>> {
    let metrics = Metrics::new(Sources {
        readiness: Arc::new(Readiness::new()),
        publisher: Arc::default(),
        followed: Arc::default(),
        network_drops: Box::new(Vec::new),
        pods_waiting: Box::new(|| 0),
        namespaces_held: Box::new(|| 0),
        holdings: Box::new(|| vec![holding()]),
    });
    let text = metrics.encode(Format::OpenMetrics).unwrap();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        found.entry(name.to_owned()).or_default().extend(matchers(line).into_keys());
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

/// Label and value of `{label="value",…}` at the start of what follows a metric's name; any operator.
fn matchers(after: &str) -> BTreeMap<String, String> {
    let Some((_, rest)) = after.split_once('{') else { return BTreeMap::new() };
    let parts: Vec<&str> = rest.split('}').next().unwrap().split('"').collect();
    let label = |text: &str| text.trim_matches([',', '=', '~', '!', ' ']).to_owned();
    parts.chunks_exact(2).map(|pair| (label(pair[0]), pair[1].to_owned())).collect()
}

/// What is wrong in an expression.
fn wrong(expression: &str, samples: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    let mut labels: BTreeSet<String> = ["instance", "le"].map(str::to_owned).into();
    for part in expression.split("netferry_").skip(1) {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let name = format!("netferry_{}", &part[..end]);
        let Some(known) = samples.get(&name) else {
            found.push(format!("{name} is no metric"));
            continue;
        };
        labels.extend(known.iter().cloned());
        if !part[end..].starts_with('{') {
            continue;
        }
        for (label, value) in matchers(&part[end..]) {
            if label != "instance" && !known.contains(&label) {
                found.push(format!("{name} has no label {label}"));
            }
            let known = |reason: &str| Reason::ALL.iter().any(|known| known.name() == reason);
            if label == "reason" && !value.split('|').all(known) {
                found.push(format!("{value} are no drop reasons"));
            }
        }
    }
    for list in expression.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        let unknown = list.split(", ").filter(|label| !labels.contains(*label));
        found.extend(unknown.map(|label| format!("grouped by {label}, which is no label")));
    }
    if expression.matches('(').count() != expression.matches(')').count() {
        found.push("its parentheses do not match".to_owned());
    }
    if !expression.contains("netferry_") {
        found.push("it asks for no metric of ours".to_owned());
    }
    found
}

#[test]
fn what_is_no_metric_is_found() {
    let samples = samples();
    for (expression, what) in [
        ("rate(netferry_attach_total[5m])", "netferry_attach_total is no metric"),
        (r#"netferry_ready{component="x"}"#, "netferry_ready has no label component"),
        (
            r#"netferry_interface_drops_total{reason=~"source_mac|typo"}"#,
            "source_mac|typo are no drop reasons",
        ),
        ("sum by (node) (netferry_ready)", "grouped by node, which is no label"),
        ("sum(netferry_ready", "its parentheses do not match"),
        ("up == 0", "it asks for no metric of ours"),
    ] {
        assert_eq!(wrong(expression, &samples), [what], "{expression}");
    }
    assert_eq!(wrong(r#"sum by (part) (netferry_ready{part="nri"}) > 0"#, &samples), [""; 0]);
}

#[test]
fn alerts_ask_for_metrics_that_exist() {
    let samples = samples();
    let file = documents(&folder().join("monitoring/alerts.yaml")).remove(0);
    let rules = file["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 5);
    let mut names = BTreeSet::new();
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} is there twice");
        assert_eq!(wrong(rule["expr"].as_str().unwrap(), &samples), [""; 0], "{name}");
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(rule["for"].as_str().unwrap().ends_with('m'), "{name}");
        let expression = rule["expr"].as_str().unwrap();
        for text in ["summary", "description"] {
            let text = rule["annotations"][text].as_str().unwrap();
            for label in text.split("$labels.").skip(1).map(|rest| rest.split(' ').next().unwrap()) {
                let known =
                    samples.iter().any(|(name, has)| expression.contains(name) && has.contains(label));
                assert!(label == "instance" || known, "{name}: {text}");
            }
        }
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let samples = samples();
    let text = fs::read_to_string(folder().join("monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 8);
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(wrong(target["expr"].as_str().unwrap(), &samples), [""; 0], "{}", panel["title"]);
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let query = variables.iter().find(|variable| variable["name"] == "instance").unwrap()["query"].as_str();
    assert_eq!(wrong(query.unwrap(), &samples), [""; 0]);
}
