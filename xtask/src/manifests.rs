//! `cargo xtask manifests`: the test that reads `manifests/` the way the API server would, and the record of requests that it
//! compares the roles with.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::{cargo, root, run as run_command};

/// Namespace of the driver's account in `manifests/base`.
const NAMESPACE: &str = "netferry-system";
const RECORD: &str = "driver/tests/manifests/requests.txt";

/// Checks every manifest.
pub(crate) fn run() -> Result<()> {
    run_command(cargo().args(["test", "--locked", "--package", "netferry", "--test", "manifests"]))
}

/// Writes down which requests the driver made, of an API server's audit log (JSON lines, level `Metadata` at least).
pub(crate) fn record(log: &Path) -> Result<()> {
    let file = fs::File::open(log).with_context(|| format!("cannot read {}", log.display()))?;
    let mut requests = BTreeSet::new();
    for line in BufReader::new(file).lines() {
        requests.extend(request(&line?));
    }
    ensure!(!requests.is_empty(), "{} has no request of {NAMESPACE}", log.display());
    let mut text = String::from(
        "# Made by `cargo xtask manifests --record AUDIT_LOG`: verb, API group, resource, object where a rule names one, and\n\
         # whether it is in the driver's own namespace, in another, or in none.\n",
    );
    for request in &requests {
        text.push_str(request);
        text.push('\n');
    }
    fs::write(root().join(RECORD), text).with_context(|| format!("cannot write {RECORD}"))?;
    println!("{} kinds of requests in {RECORD}", requests.len());
    Ok(())
}

/// A line of the record; none for requests of others, for paths that are no objects, and for what is still under way.
fn request(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let account = format!("system:serviceaccount:{NAMESPACE}:");
    event["user"]["username"].as_str().filter(|user| user.starts_with(&account))?;
    let object = event.get("objectRef")?;
    let part = |name: &str| object[name].as_str().unwrap_or_default();
    let slash = if part("subresource").is_empty() { "" } else { "/" };
    let resource = format!("{}{slash}{}", part("resource"), part("subresource"));
    // Names are those of one run, but for the one Service that every cluster has.
    let name = if part("name") == "kubernetes" { "kubernetes" } else { "" };
    let place = match part("namespace") {
        "" => "none",
        NAMESPACE => "own",
        _ => "other",
    };
    Some([event["verb"].as_str()?, part("apiGroup"), &resource, name, place].join("\t"))
}

#[cfg(test)]
mod tests {
    use super::request;

    #[test]
    fn a_request_is_told_by_what_a_role_grants() {
        let event = |user: &str| {
            format!(
                r#"{{"verb": "patch", "user": {{"username": "system:serviceaccount:{user}"}}, "objectRef": {{"resource":
                "resourceclaims", "subresource": "status", "apiGroup": "resource.k8s.io", "namespace": "default", "name": "c"}}}}"#
            )
        };
        let told = request(&event("netferry-system:netferry"));
        assert_eq!(told.as_deref(), Some("patch\tresource.k8s.io\tresourceclaims/status\t\tother"));
        assert_eq!(request(&event("kube-system:other")), None);
        assert_eq!(request("{"), None);
    }
}
