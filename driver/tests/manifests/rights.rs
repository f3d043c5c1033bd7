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

#[test]
fn doctor_asks_for_what_the_roles_grant() {
    let mut roles = granted(one::<ClusterRole>("ClusterRole").rules.unwrap(), false);
    roles.extend(granted(one::<Role>("Role").rules.unwrap(), true));
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
