//! The roles of the manifests grant what the driver needs, and nothing else.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use netferry::cluster::rights::RIGHTS;

use super::one;

/// Group, resource with subresource, object, verb, and whether it is for the driver's own namespace.
type One = (String, String, String, String, bool);

fn granted(rules: Vec<PolicyRule>, own_namespace: bool) -> BTreeSet<One> {
    let mut all = BTreeSet::new();
    for rule in rules {
        let names = rule.resource_names.unwrap_or_else(|| vec![String::new()]);
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.as_ref().unwrap() {
                for name in &names {
                    for verb in &rule.verbs {
                        all.insert((
                            group.clone(),
                            resource.clone(),
                            name.clone(),
                            verb.clone(),
                            own_namespace,
                        ));
                    }
                }
            }
        }
    }
    all
}

fn roles() -> BTreeSet<One> {
    let mut roles = granted(one::<ClusterRole>("ClusterRole").rules.unwrap(), false);
    roles.extend(granted(one::<Role>("Role").rules.unwrap(), true));
    roles
}

/// Rights that no audit log shows: verbs that the API server asks the authorizer about while it serves another request.
const WITHIN_REQUESTS: [&str; 2] = ["associated-node:patch", "associated-node:update"];

/// What the driver asked of a real API server in a run of `cargo xtask e2e --disruptive`, made of its audit log by
/// `cargo xtask manifests --record`: each is granted, and nothing is granted that was not asked for.
#[test]
fn the_roles_grant_what_was_asked_for_and_no_more() {
    let roles = roles();
    let mut used = BTreeSet::new();
    for line in include_str!("requests.txt").lines().filter(|line| !line.starts_with('#')) {
        let [verb, group, resource, name, place] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line:?} has other columns");
        };
        // A rule that names an object allows that one, one that names none all; a Role its own namespace alone.
        let grants: Vec<&One> = roles
            .iter()
            .filter(|(to_group, to_resource, to_name, to_verb, own)| {
                (to_group.as_str(), to_resource.as_str(), to_verb.as_str()) == (group, resource, verb)
                    && (to_name.is_empty() || to_name == name)
                    && (!own || place == "own")
            })
            .collect();
        assert!(!grants.is_empty(), "not granted: {line}");
        used.extend(grants);
    }
    let unused: Vec<&One> = roles
        .iter()
        .filter(|right| !used.contains(right) && !WITHIN_REQUESTS.contains(&right.3.as_str()))
        .collect();
    assert_eq!(unused, Vec::<&One>::new(), "granted, and never asked for");
}

#[test]
fn doctor_asks_for_what_the_roles_grant() {
    let roles = roles();
    let needed: BTreeSet<One> = RIGHTS
        .iter()
        .flat_map(|right| {
            let slash = if right.subresource.is_empty() { "" } else { "/" };
            let resource = format!("{}{slash}{}", right.resource, right.subresource);
            right.verbs.iter().map(move |verb| {
                (
                    right.group.to_owned(),
                    resource.clone(),
                    right.name.to_owned(),
                    (*verb).to_owned(),
                    right.own_namespace,
                )
            })
        })
        .collect();
    assert_eq!(needed, roles);
}
