//! The alerts fire: promtool runs the rules over series in which something happens for the first time.

use std::{fs, process::Command};

use serde_json::{Value, json};

use super::{documents, folder, skip::skip};

/// An alert, the series that make it fire, the labels of what fires, and when it is looked for.
struct Case {
    alert: &'static str,
    series: &'static [(&'static str, &'static str)],
    labels: &'static [(&'static str, &'static str)],
    at: &'static str,
}

const fn case(
    alert: &'static str,
    series: &'static [(&'static str, &'static str)],
    labels: &'static [(&'static str, &'static str)],
    at: &'static str,
) -> Case {
    Case { alert, series, labels, at }
}

const NODE: (&str, &str) = ("instance", "n1");

/// A counter is 0 for five minutes, and then 1.
const FIRST: &str = "0x5 1x30";

const CASES: &[Case] = &[
    case(
        "NetferryPartNotReady",
        &[(r#"netferry_ready{instance="n1",part="kubelet"}"#, "1x5 0x30")],
        &[NODE, ("part", "kubelet")],
        "12m",
    ),
    case(
        "NetferryClaimsNotPrepared",
        &[(r#"netferry_claims_prepared_total{instance="n1",result="error"}"#, FIRST)],
        &[NODE, ("result", "error")],
        "12m",
    ),
    case(
        "NetferryAttachFailing",
        &[(r#"netferry_attaches_total{instance="n1",result="error"}"#, FIRST)],
        &[NODE, ("result", "error")],
        "12m",
    ),
    case(
        "NetferryAttachSlow",
        &[
            (r#"netferry_attach_seconds_bucket{instance="n1",le="1.024"}"#, "0x35"),
            (r#"netferry_attach_seconds_bucket{instance="n1",le="2.048"}"#, "0+1x35"),
            (r#"netferry_attach_seconds_bucket{instance="n1",le="+Inf"}"#, "0+1x35"),
        ],
        &[NODE],
        "20m",
    ),
    case("NetferryPodsWaiting", &[(r#"netferry_pods_waiting{instance="n1"}"#, "0x5 1x30")], &[NODE], "12m"),
    case(
        "NetferryNamespacesHeld",
        &[
            (r#"netferry_namespaces_held{instance="n1"}"#, "0x5 1x30"),
            (r#"netferry_interfaces_held{instance="n1"}"#, "0x35"),
        ],
        &[NODE],
        "20m",
    ),
    case(
        "NetferryReturnFailing",
        &[(r#"netferry_returns_total{instance="n1",result="error"}"#, FIRST)],
        &[NODE, ("result", "error")],
        "8m",
    ),
    case(
        "NetferryLeaseLost",
        &[(r#"netferry_dhcp_total{instance="n1",result="lost"}"#, FIRST)],
        &[NODE, ("result", "lost")],
        "8m",
    ),
    case(
        "NetferryProgramsDrifted",
        &[(r#"netferry_programs_drifted_total{instance="n1",result="ok"}"#, FIRST)],
        &[NODE, ("result", "ok")],
        "8m",
    ),
    case(
        "NetferrySlicesNotWritten",
        &[(r#"netferry_slice_writes_total{instance="n1",kind="failure"}"#, FIRST)],
        &[NODE, ("kind", "failure")],
        "12m",
    ),
    case(
        "NetferryForgedFrames",
        &[(
            r#"netferry_interface_drops_total{instance="n1",namespace="a",pod="p",interface="net1",reason="source_mac"}"#,
            "0+600x35",
        )],
        &[NODE, ("namespace", "a"), ("pod", "p")],
        "15m",
    ),
    case(
        "NetferryFlowLimit",
        &[(
            r#"netferry_interface_drops_total{instance="n1",namespace="a",pod="p",interface="net1",reason="flow_limit"}"#,
            "0+600x35",
        )],
        &[NODE, ("namespace", "a"), ("pod", "p")],
        "20m",
    ),
];

#[test]
fn every_alert_fires_at_its_first_event_and_not_before() {
    let rules = folder().join("monitoring/alerts.yaml");
    let file = documents(&rules).remove(0);
    let known = file["groups"][0]["rules"].as_array().unwrap();
    let names: Vec<_> = known.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(names, CASES.iter().map(|case| case.alert).collect::<Vec<_>>(), "a case for each alert");
    if Command::new("promtool").arg("--version").output().is_err() {
        skip(
            "every_alert_fires_at_its_first_event_and_not_before",
            "there is no promtool (Debian: prometheus)",
        );
        return;
    }
    let tests: Vec<Value> = CASES.iter().map(|case| test(case, known)).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tests.yaml");
    let text =
        json!({"rule_files": [rules.canonicalize().unwrap()], "evaluation_interval": "1m", "tests": tests});
    fs::write(&path, text.to_string()).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn test(case: &Case, known: &[Value]) -> Value {
    let rule = known.iter().find(|rule| rule["alert"] == case.alert).unwrap();
    let fill = |text: &Value| {
        let mut text = text.as_str().unwrap().to_owned();
        for (label, value) in case.labels {
            text = text.replace(&format!("{{{{ $labels.{label} }}}}"), value);
        }
        text
    };
    let mut labels: serde_json::Map<String, Value> =
        case.labels.iter().map(|(label, value)| ((*label).to_owned(), json!(value))).collect();
    labels.insert("severity".to_owned(), rule["labels"]["severity"].clone());
    let annotations: serde_json::Map<String, Value> = rule["annotations"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, text)| (name.clone(), json!(fill(text))))
        .collect();
    let series: Vec<Value> =
        case.series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect();
    json!({
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": [
            {"eval_time": "4m", "alertname": case.alert, "exp_alerts": []},
            {"eval_time": case.at, "alertname": case.alert,
             "exp_alerts": [{"exp_labels": labels, "exp_annotations": annotations}]},
        ],
    })
}
