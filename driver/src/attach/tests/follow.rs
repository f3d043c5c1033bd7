//! Ports in pods follow their networks; a daemon that stops between goes on with it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{port::port, *};
use crate::{
    attach::follow::Followed,
    network::{Network, NetworkRef, known::ByUid, validate::parse},
};

#[expect(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]
fn blue(more: Value) -> Arc<ByUid> {
    let mut spec = json!({"subnets": ["192.0.2.0/24", "2001:db8::/64"], "transport": {"local": {}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reference = NetworkRef { name: "blue".into(), uid: "uid-blue".into() };
    let network = Network { reference, id: 7, spec: parse(&spec).unwrap() };
    Arc::new(BTreeMap::from([("uid-blue".to_owned(), Arc::new(network))]))
}

/// A port whose claim asks for a route to everywhere, and nothing else.
fn asking(claim: &str, share: &str, name: &str) -> InterfacePlan {
    let mut plan = port(claim, share, name);
    let mut route = plan.routes[0].clone();
    (route.gateway, route.scope) = (None, Scope::Link);
    if let Some(crate::claim::Made::Port(port)) = &mut plan.made {
        port.asked = Some(Box::new(crate::claim::Asked { routes: vec![route], ..Default::default() }));
    }
    plan
}

fn record(world: &World, claim: &str) -> InterfaceRecord {
    world.store.get(claim).unwrap().interfaces.remove(0)
}

fn problems(followed: &Followed) -> Vec<String> {
    followed.networks.values().flatten().cloned().collect()
}

fn denied(world: &World, id: u32) -> bool {
    let policy = world.datapath.endpoint(id).unwrap().policy;
    policy.is_some_and(|policy| policy.ingress.otherwise() == crate::datapath::policy::Otherwise::Deny)
}

fn deny() -> Value {
    json!({"policy": {"ingress": {"otherwise": "deny"}}, "limits": {"openFlows": 7}})
}

#[tokio::test]
async fn ports_in_pods_have_what_their_network_says_now() {
    let world = World::new();
    world.claim("c1", "web", vec![asking("c1", "s1", "net1")]);
    world.claim("c2", "db", vec![port("c2", "s2", "net1")]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let id = record(&world, "c1").attachment.unwrap().endpoint.unwrap();
    let gateway = json!({"gateways": ["192.0.2.1"]});
    let same = world.attacher.follow(&blue(gateway.clone())).await;
    assert_eq!((same.changed, problems(&same)), (0, vec![]), "{same:?}");

    let followed = world.attacher.follow(&blue(deny())).await;
    assert_eq!((followed.changed, followed.again, problems(&followed)), (1, false, vec![]));
    assert!(denied(&world, id));
    assert_eq!(world.datapath.endpoint(id).unwrap().limits.unwrap().open_flows, Some(7));
    // One that is in no pod has it when it is attached.
    assert_eq!(record(&world, "c2").plan.limits.unwrap().open_flows, Some(7));
    world.attacher.attach(&sandbox("s2", "db")).await.unwrap();
    assert!(denied(&world, record(&world, "c2").attachment.unwrap().endpoint.unwrap()));
    let again = world.attacher.follow(&blue(deny())).await;
    assert_eq!(again.changed, 0, "nothing is set twice");

    let moved = world.attacher.follow(&blue(json!({"gateways": ["192.0.2.99"]}))).await;
    assert_eq!((moved.changed, problems(&moved)), (2, vec![]));
    assert!(!denied(&world, id), "what the network does not say any more is gone");
    let routes = world.links.links_in(&inside("s1"))[0].home.routes.clone();
    assert_eq!(routes.len(), 1, "{routes:?}");
    assert_eq!(routes[0].gateway, Some("192.0.2.99".parse().unwrap()));
}

#[tokio::test]
async fn what_could_not_be_set_is_tried_again_also_by_the_next_daemon() {
    let mut world = World::new();
    world.claim("c1", "web", vec![asking("c1", "s1", "net1")]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let id = record(&world, "c1").attachment.unwrap().endpoint.unwrap();
    world.datapath.fail(Verb::SetLimits, 1);
    let failed = world.attacher.follow(&blue(deny())).await;
    assert!(failed.again && problems(&failed)[0].contains("claim default/c1, request net"), "{failed:?}");
    assert!(record(&world, "c1").plan.port().unwrap().unapplied, "the checkpoint says so");
    world.restart();
    let after = world.attacher.follow(&blue(deny())).await;
    assert_eq!((after.changed, after.again), (1, false));
    assert_eq!(world.datapath.endpoint(id).unwrap().limits.unwrap().open_flows, Some(7));
    assert!(!record(&world, "c1").plan.port().unwrap().unapplied);
    // A network that is not known says nothing.
    let unknown = world.attacher.follow(&Arc::default()).await;
    assert_eq!(unknown.changed, 0);
    assert!(denied(&world, id));
}

#[tokio::test]
async fn a_port_of_which_nothing_is_known_is_said_to_stay_as_it_is() {
    let world = World::new();
    let mut plan = port("c1", "s1", "net1");
    if let Some(crate::claim::Made::Port(port)) = &mut plan.made {
        port.asked = None;
    }
    world.claim("c1", "web", vec![plan]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let followed = world.attacher.follow(&blue(deny())).await;
    assert_eq!((followed.changed, followed.again), (0, false));
    assert!(problems(&followed)[0].contains("follows no change"), "{followed:?}");
}
