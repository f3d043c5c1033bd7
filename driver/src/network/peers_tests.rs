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
    network::facts::{ClaimFacts, PortFacts},
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
    let resolved = policy.resolve(&Seeing { table, checkpoints: &[], network: Some("blue") });
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
