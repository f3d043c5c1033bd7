//! What a Network's status says: pure.
//!
//! Every node comes to the same `Accepted`, so whichever writes first has written for all, and the others find
//! nothing to change. `Ready` turns true with the first node that publishes ports, and false when the object is no
//! longer accepted, or a node that has ports of it cannot let it go on beyond itself.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    accept::{Declared, Judged, Problem},
    conditions::Conditions,
    spec::NetworkStatus,
    transport::Troubles,
};

/// The object is valid, and in conflict with no older one.
pub const ACCEPTED: &str = "Accepted";
/// A node publishes ports of it.
pub const READY: &str = "Ready";

const NOT_ACCEPTED: &str = "NotAccepted";
/// Addresses of it are free; said by the node that is elected to publish them.
pub const ADDRESSES: &str = "AddressesAvailable";

/// Longest message of a condition (`maxLength` in its schema is 32768; people read less).
const MAX_MESSAGE: usize = 4096;

/// The status the object is to have, as far as this node can tell. `published` has the names of the networks that it
/// publishes ports of.
#[must_use]
pub fn wanted(
    declared: &Declared,
    judged: &Judged,
    published: &BTreeSet<String>,
    addresses: &Conditions,
    now: Timestamp,
) -> NetworkStatus {
    let former = |name: &str| declared.status.conditions.iter().find(|condition| condition.type_ == name);
    let condition = |name: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let since = former(name).filter(|former| former.status == status);
        Condition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message[..message.floor_char_boundary(MAX_MESSAGE)].to_owned(),
            observed_generation: declared.generation,
            last_transition_time: since.map_or(Time(now), |former| former.last_transition_time.clone()),
        }
    };
    let conditions = if let Some(problem) = &judged.problem {
        vec![
            condition(ACCEPTED, false, problem.reason(), &format!("{problem}{}", kept(declared, judged))),
            condition(READY, false, NOT_ACCEPTED, "the network is not accepted"),
        ]
    } else {
        let ready = published.contains(&declared.reference.name)
            || former(READY).is_some_and(|former| former.status == "True");
        vec![
            condition(ACCEPTED, true, "Valid", "the network is valid"),
            if declared.deleting {
                condition(READY, false, "Deleting", "it is being deleted: no other claim can have a port")
            } else if ready {
                condition(READY, true, "Published", "ports of it are published")
            } else {
                condition(READY, false, "NoNode", "no node has published ports of it yet")
            },
        ]
    };
    // Who is not elected leaves what the elected node said.
    let told = addresses.get(&declared.reference.name).map(|told| {
        let since = former(&told.type_).filter(|former| former.status == told.status);
        let last_transition_time = since.unwrap_or(told).last_transition_time.clone();
        Condition { last_transition_time, observed_generation: declared.generation, ..told.clone() }
    });
    let mut conditions = conditions;
    conditions.extend(told.or_else(|| former(ADDRESSES).cloned()));
    NetworkStatus { observed_generation: declared.generation, conditions, ..declared.status.clone() }
}

/// Whether something that was accepted may still count: every node comes to the same answer by the object alone, where
/// there are several.
fn kept(declared: &Declared, judged: &Judged) -> &'static str {
    let changed = declared.generation.map_or(judged.in_force.is_some(), |generation| generation > 1);
    match &judged.problem {
        Some(Problem::Invalid(_)) if changed => "; what was accepted last stays in force",
        _ => "",
    }
}

/// Whether a status says all of `wanted`, and nothing else of what [`wanted`] speaks of. Others add conditions of their own.
#[must_use]
pub fn is_said(wanted: &NetworkStatus, status: &NetworkStatus) -> bool {
    let ours = |condition: &&Condition| [ACCEPTED, READY, ADDRESSES].contains(&condition.type_.as_str());
    wanted.observed_generation == status.observed_generation
        && wanted.conditions.iter().all(|condition| status.conditions.contains(condition))
        && status.conditions.iter().filter(ours).count() == wanted.conditions.len()
}

/// `Ready` is false for this reason where a node cannot let an accepted network go on beyond it.
const TRANSPORT_FAILED: &str = "TransportFailed";

/// For so long nodes without such trouble leave alone what another has said of its own: the node may be gone.
const OTHERS_TROUBLE: SignedDuration = SignedDuration::from_mins(10);

/// A status with the troubles of this node's transports. What another node has said of its own is kept for a while.
#[must_use]
pub fn with_troubles(
    mut status: NetworkStatus,
    declared: &Declared,
    troubles: &Troubles,
    now: Timestamp,
) -> NetworkStatus {
    let former = declared.status.conditions.iter().find(|condition| condition.type_ == READY);
    let Some(ready) = status.conditions.iter_mut().find(|condition| condition.type_ == READY) else {
        return status;
    };
    if ready.reason == NOT_ACCEPTED || declared.deleting {
        return status;
    }
    let node = format!("node {}: ", troubles.node);
    if let Some(problem) = troubles.problems.get(&declared.reference) {
        let message = format!("{node}{problem}");
        let since = former.filter(|former| former.status == "False");
        *ready = Condition {
            status: "False".to_owned(),
            reason: TRANSPORT_FAILED.to_owned(),
            message: message[..message.floor_char_boundary(MAX_MESSAGE)].to_owned(),
            last_transition_time: since.map_or(Time(now), |former| former.last_transition_time.clone()),
            ..ready.clone()
        };
    } else if let Some(former) = former.filter(|former| former.reason == TRANSPORT_FAILED)
        && !former.message.starts_with(&node)
        && now.duration_since(former.last_transition_time.0) < OTHERS_TROUBLE
    {
        *ready = Condition { observed_generation: ready.observed_generation, ..former.clone() };
    }
    status
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::network::{NetworkRef, accept::judge};

    #[test]
    fn the_elected_node_speaks_of_addresses_and_others_leave_it() {
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (first, later) = (time("2026-01-01T00:00:00Z"), time("2026-01-02T00:00:00Z"));
        let mut declared = Declared {
            reference: NetworkRef { name: "blue".to_owned(), uid: "1".to_owned() },
            generation: Some(3),
            spec: json!({"subnets": ["10.1.0.0/16"], "transport": {"local": {}}}),
            ..Declared::default()
        };
        let told = |status: &str, at| Condition {
            type_: ADDRESSES.to_owned(),
            status: status.to_owned(),
            reason: "Because".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(at),
        };
        let mut steps = Vec::new();
        for (said, at) in [
            (None, first),
            (Some("True"), first),
            (Some("True"), later),
            (None, later),
            (Some("False"), later),
        ] {
            let judged = judge(std::slice::from_ref(&declared), &BTreeMap::default()).remove(0);
            let addresses = said.map(|status| ("blue".to_owned(), told(status, at))).into_iter().collect();
            declared.status = wanted(&declared, &judged, &BTreeSet::new(), &addresses, at);
            let found = declared.status.conditions.iter().find(|it| it.type_ == ADDRESSES);
            steps.push(found.map(|it| (it.status.clone(), it.last_transition_time.0 == first)));
        }
        let row = |status: &str, first| Some((status.to_owned(), first));
        let expected = [None, row("True", true), row("True", true), row("True", true), row("False", false)];
        assert_eq!(steps, expected);
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (first, later) = (time("2026-01-01T00:00:00Z"), time("2026-01-02T00:00:00Z"));
        let mut declared = Declared {
            reference: NetworkRef { name: "blue".to_owned(), uid: "1".to_owned() },
            generation: Some(1),
            spec: json!({"subnets": ["10.1.0.0/16"], "transport": {"local": {}}}),
            ..Declared::default()
        };
        let status = |declared: &mut Declared, published: &[&str], now| {
            let judged = judge(std::slice::from_ref(declared), &BTreeMap::default()).remove(0);
            let published = published.iter().map(|name| (*name).to_owned()).collect();
            declared.status = wanted(declared, &judged, &published, &Conditions::new(), now);
            declared
                .status
                .conditions
                .iter()
                .map(|c| {
                    (c.type_.clone(), c.status.clone(), c.reason.clone(), c.last_transition_time.0 == first)
                })
                .collect::<Vec<_>>()
        };
        let row = |name: &str, status: &str, reason: &str, first: bool| {
            (name.to_owned(), status.to_owned(), reason.to_owned(), first)
        };
        assert_eq!(
            status(&mut declared, &[], first),
            [row(ACCEPTED, "True", "Valid", true), row(READY, "False", "NoNode", true)]
        );
        assert_eq!(
            status(&mut declared, &["blue"], later),
            [row(ACCEPTED, "True", "Valid", true), row(READY, "True", "Published", false)]
        );
        // A node without ports does not take it back.
        let before = declared.status.clone();
        status(&mut declared, &[], later);
        assert_eq!(declared.status, before);
        declared.spec["mtu"] = 1.into();
        assert_eq!(
            status(&mut declared, &["blue"], later),
            [row(ACCEPTED, "False", "Invalid", false), row(READY, "False", "NotAccepted", false)]
        );
        assert!(declared.status.conditions[0].message.contains("spec.mtu"), "{:?}", declared.status);
    }

    #[test]
    fn trouble_is_the_nodes_own_to_say_and_to_take_back() {
        let mut now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let mut declared = Declared {
            reference: NetworkRef { name: "blue".to_owned(), uid: "1".to_owned() },
            generation: Some(1),
            spec: json!({"subnets": ["10.1.0.0/16"], "transport": {"overlay": {"vni": 7}}}),
            ..Declared::default()
        };
        let mut at = |node: &str, problem: Option<&str>, minutes: i64| {
            now += SignedDuration::from_mins(minutes);
            let judged = judge(std::slice::from_ref(&declared), &BTreeMap::default()).remove(0);
            let published = BTreeSet::from(["blue".to_owned()]);
            let status = wanted(&declared, &judged, &published, &Conditions::default(), now);
            let problems = problem.map(|problem| (declared.reference.clone(), problem.to_owned()));
            let troubles = Troubles { node: node.to_owned(), problems: problems.into_iter().collect() };
            declared.status = with_troubles(status, &declared, &troubles, now);
            let ready = &declared.status.conditions[1];
            assert_eq!(ready.type_, READY);
            format!("{} {}", ready.reason, ready.message)
        };
        assert!(at("n1", None, 0).starts_with("Published"));
        assert_eq!(at("n1", Some("no link"), 1), "TransportFailed node n1: no link");
        assert_eq!(at("n2", None, 1), "TransportFailed node n1: no link", "another node's is left alone");
        assert!(at("n1", None, 1).starts_with("Published"), "it is taken back by the node itself");
        assert_eq!(at("n1", Some("no link"), 1), "TransportFailed node n1: no link");
        assert!(at("n2", None, 10).starts_with("Published"), "or by another, if the node is not heard of");
    }
}
