use std::sync::Arc;

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    datapath::{
        fake::FakeDatapath,
        policy::{Decision, evaluate, flatten},
    },
    network::{
        facts::{ClaimFacts, PodFacts, PortFacts, Seen},
        scope::{Admits, Need, Scope},
    },
};
use netferry_common::Direction;

fn claim(number: u8, network: &str) -> ClaimFacts {
    let told = crate::link::MacAddr([2, 0, 0, 0, 0, number]);
    ClaimFacts {
        pod: Some(format!("a/p{number}")),
        uid: format!("u{number}"),
        name: format!("a/c{number}"),
        version: 0,
        since: 0,
        block_node: None,
        addresses: vec![],
        ports: vec![PortFacts {
            network: network.to_owned(),
            node: "n1".to_owned(),
            told: Some((told, vec![ip(number)])),
        }],
    }
}

fn ip(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

fn pod(number: u8, role: &str) -> PodFacts {
    let metadata = json!({"namespace": "a", "name": format!("p{number}"), "labels": {"role": role}});
    super::super::facts::pod(&serde_json::from_value(metadata).expect("metadata"))
}

fn decided(table: &MemberTable, action: &str, peer: IpAddr) -> Decision {
    let rule = json!({"action": action, "peers": [{"podSelector": {"role": "db"}}]});
    let policy: Policy = serde_json::from_value(json!({"ingress": {"rules": [rule]}})).expect("a policy");
    let resolved = policy.resolve(&Seeing { table, checkpoints: &[], network: Some(("blue", 7)) });
    let (rules, otherwise) = flatten(&policy, Direction::ToPod, &resolved).expect("rules");
    evaluate(&rules, otherwise, peer, 6, 80)
}

proptest! {
    /// In any order of events a rule that allows is for those alone that are known to have the label, and one that
    /// denies for all that are not known not to have it.
    #[test]
    fn who_is_not_known_is_kept_out(
        events in prop::collection::vec((0..4_u8, 0..5_u8), 0..40),
    ) {
        let mut table = MemberTable::new("n0");
        let (mut listed, mut pods_listed) = (false, false);
        let mut claims = BTreeSet::new();
        let mut roles = BTreeMap::new();
        for (number, what) in events {
            match what {
                0 => {
                    table.apply(Seen::Is(claim(number, "blue")));
                    claims.insert(number);
                }
                1 => {
                    table.apply(Seen::Gone(format!("u{number}")));
                    claims.remove(&number);
                }
                2 => {
                    let role = if number % 2 == 0 { "db" } else { "web" };
                    table.apply_pod(Seen::Is(pod(number, role)));
                    roles.insert(number, role);
                }
                3 => {
                    table.apply_pod(Seen::Gone(format!("a/p{number}")));
                    roles.remove(&number);
                }
                _ if number < 2 => {
                    table.apply(Seen::Listed);
                    listed = true;
                }
                _ => {
                    table.apply_pod(Seen::Listed);
                    pods_listed = true;
                }
            }
            let known = listed && pods_listed;
            for number in 0..4 {
                let member = claims.contains(&number);
                let role = roles.get(&number).copied();
                let allowed = decided(&table, "allow", ip(number)) == Decision::Rule(Action::Allow, 1);
                prop_assert_eq!(allowed, known && member && role == Some("db"));
                let denied = decided(&table, "deny", ip(number)) == Decision::Rule(Action::Deny, 1);
                prop_assert_eq!(denied, !known || (member && role != Some("web")));
            }
        }
    }
}

#[test]
fn a_network_is_its_members_and_the_namespace_is_a_label() {
    let mut table = MemberTable::new("n0");
    for (number, network) in [(1, "blue"), (2, "red")] {
        table.apply(Seen::Is(claim(number, network)));
        table.apply_pod(Seen::Is(pod(number, "db")));
    }
    assert_eq!(table.addresses("blue", true), None, "others may come");
    table.apply(Seen::Listed);
    assert_eq!(table.addresses("blue", false), Some(vec![ip(1)]));
    assert_eq!(table.addresses("blue", true).expect("known").len(), 2, "and its link-local one");
    assert_eq!(table.addresses("green", true), Some(vec![]));
    assert_eq!((table.counts("blue"), table.counts("green")), ((1, 1), (0, 0)));
    table.apply_pod(Seen::Listed);
    for (namespace, found) in [("a", 2), ("b", 0)] {
        let labels = [("io.kubernetes.pod.namespace".to_owned(), namespace.to_owned())].into();
        let selected = table.selected("blue", &labels, Action::Allow);
        assert_eq!(selected.expect("known").len(), found);
    }
}

#[test]
fn without_endpoints_nothing_is_set() {
    let dir = tempfile::tempdir().expect("folder");
    let (store, _) = Store::open(&dir.path().join("claims")).expect("store");
    let table = Arc::new(Mutex::new(MemberTable::new("n0")));
    let file = dir.path().join("peers.json");
    let peers = PolicyPeers::new(table, Arc::new(store), Arc::new(FakeDatapath::new()), file.clone());
    assert_eq!((peers.refresh(), told(&file)), (0, vec![]));
    let policy: Policy = serde_json::from_value(
        json!({"ingress": {"rules": [{"action": "deny", "peers": [{"network": "blue"}]}]}}),
    )
    .expect("a policy");
    assert!(peers.set(3, &policy, None).is_err(), "there is no endpoint");
    assert_eq!(peers.in_force().len(), 0);
}

fn within(names: &[&str]) -> Admits {
    Admits::Only(names.iter().map(|name| (*name).to_owned()).collect())
}

fn scopes(names: &[&str]) -> BTreeSet<Scope> {
    names.iter().map(|name| Scope::Namespace((*name).to_owned())).collect()
}

#[test]
fn pods_of_the_namespaces_that_may_join_are_needed_and_stay_known() {
    let mut table = MemberTable::new("n0");
    let need = |table: &mut MemberTable, admits| {
        table.set_needs(&BTreeMap::from([("blue".to_owned(), Need { here: true, admits })]));
    };
    let blue = BTreeSet::from(["blue".to_owned()]);
    let db = |table: &MemberTable, action| {
        table.selected("blue", &[("role".to_owned(), "db".to_owned())].into(), action).map(|all| all.len())
    };
    let come = |table: &mut MemberTable, scope: &Scope, pods: &[PodFacts]| {
        table.apply_pod_from(scope, Seen::Listing);
        for pod in pods {
            table.apply_pod_from(scope, Seen::Is(pod.clone()));
        }
        table.apply_pod_from(scope, Seen::Listed);
    };
    table.apply(Seen::Listing);
    table.apply(Seen::Is(claim(1, "blue")));
    table.apply(Seen::Listed);
    need(&mut table, within(&["a"]));
    assert_eq!(table.select_pods(&BTreeSet::new()), scopes(&[]), "no policy selects pods");
    assert_eq!(table.select_pods(&blue), scopes(&["a"]));
    let (a, b) = (Scope::Namespace("a".to_owned()), Scope::Namespace("b".to_owned()));
    table.apply_pod_from(&b, Seen::Is(pod(1, "db")));
    assert_eq!(db(&table, Action::Allow), None, "nobody watches b, and a has not come");
    come(&mut table, &a, &[pod(1, "db")]);
    // Each port has two addresses, one of them link-local.
    assert_eq!(db(&table, Action::Allow), Some(2));

    // Another namespace may join: of its pods nothing is known, and of the others all that was.
    need(&mut table, within(&["a", "b"]));
    assert_eq!(table.select_pods(&blue), scopes(&["a", "b"]));
    let late = ClaimFacts { name: "b/c2".to_owned(), pod: Some("b/p2".to_owned()), ..claim(2, "blue") };
    table.apply(Seen::Is(late));
    assert_eq!((db(&table, Action::Allow), db(&table, Action::Deny)), (Some(2), Some(4)));
    come(&mut table, &b, &[]);
    assert_eq!((db(&table, Action::Allow), db(&table, Action::Deny)), (Some(2), Some(4)));

    // One watch over all takes their place, and they its: a label that changed meanwhile counts with the list.
    need(&mut table, Admits::All);
    let all = BTreeSet::from([Scope::Cluster]);
    assert_eq!(table.select_pods(&blue), all);
    table.apply_pod_from(&a, Seen::Gone("a/p1".to_owned()));
    assert_eq!(db(&table, Action::Allow), Some(2), "that watch is over");
    come(&mut table, &Scope::Cluster, &[pod(1, "web")]);
    assert_eq!(db(&table, Action::Allow), Some(0));
    need(&mut table, within(&["a"]));
    assert_eq!(table.select_pods(&blue), scopes(&["a"]));
    assert_eq!(db(&table, Action::Deny), Some(0), "what was known stays");
    come(&mut table, &a, &[]);
    assert_eq!(db(&table, Action::Deny), Some(2), "and goes with a list that lacks it");

    // Selected again after a while, all have to come again.
    assert_eq!(table.select_pods(&BTreeSet::new()), scopes(&[]));
    assert_eq!(table.select_pods(&blue), scopes(&["a"]));
    assert_eq!(db(&table, Action::Allow), None);
}

#[test]
fn very_many_namespaces_are_one_watch() {
    let mut table = MemberTable::new("n0");
    let names: Vec<String> = (0..40).map(|number| format!("ns{number}")).collect();
    let admits = Admits::Only(names.iter().cloned().collect());
    table.set_needs(&BTreeMap::from([("blue".to_owned(), Need { here: true, admits })]));
    let blue = BTreeSet::from(["blue".to_owned()]);
    assert_eq!(table.select_pods(&blue), BTreeSet::from([Scope::Cluster]));
}
