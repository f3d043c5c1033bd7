//! Policy and limits of a plan.

use super::*;

/// A plan with policy and limits.
fn restricted(device: &str, name: &str) -> InterfacePlan {
    let policy = "egress: {rules: [{action: allow, peers: [{cidr: 192.0.2.0/24}]}]}";
    InterfacePlan {
        policy: Some(serde_yaml_ng::from_str(policy).unwrap()),
        limits: Some(serde_yaml_ng::from_str("egress: {packetsPerSecond: 1000}").unwrap()),
        ..plan(device, name)
    }
}

#[tokio::test]
async fn policy_and_limits_are_in_force_before_the_gate_opens() {
    let mut world = World::new();
    world.claim("c1", "web", vec![restricted("ens5", "net1"), plan("ens6", "net2")]);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    let [with, without] = [&attached[0], &attached[1]].map(|interface| interface.endpoint.unwrap());
    let verbs = |id| -> Vec<Verb> {
        let calls = world.datapath.calls().into_iter();
        calls.filter(|(_, of)| *of == Some(id)).map(|(verb, _)| verb).collect()
    };
    assert_eq!(verbs(with), [Verb::Attach, Verb::SetPolicy, Verb::SetLimits, Verb::Verify, Verb::SetReady]);
    assert_eq!(verbs(without), [Verb::Attach, Verb::Verify, Verb::SetReady]);
    let asked = restricted("ens5", "net1");
    let in_force = world.datapath.endpoint(with).unwrap();
    assert_eq!((in_force.policy, in_force.limits), (asked.policy, asked.limits));

    // The gate stays closed until the sandbox is there, so the policy can wait for it too.
    world.attacher.give_back("s1").await;
    world.attacher.protect("c1").await;
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    let with = attached[0].endpoint.unwrap();
    assert!(world.datapath.endpoint(with).unwrap().policy.is_some());

    // A restart leaves them alone; programs made anew get them again.
    world.restart();
    world.attacher.recover(&[sandbox("s1", "web")]).await;
    assert!(world.datapath.endpoint(with).unwrap().policy.is_some());
    world.datapath.detach(with).unwrap();
    let again = world.attacher.recover(&[sandbox("s1", "web")]).await.attached;
    let id = again.iter().find(|interface| interface.name == "net1").unwrap().endpoint.unwrap();
    assert_ne!(id, with);
    assert!(world.datapath.endpoint(id).unwrap().policy.is_some());
}

#[tokio::test]
async fn a_failure_of_policy_or_limits_undoes_everything() {
    for verb in [Verb::SetPolicy, Verb::SetLimits] {
        for nth in 0..2 {
            let world = World::new();
            world.claim("c1", "web", vec![restricted("ens5", "net1"), restricted("ens6", "net2")]);
            let before = world.links.links_in(&Namespace::Host);
            world.datapath.fail_after(verb, nth, 1);
            let failed = world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err();
            assert!(failed.to_string().contains(&format!("{verb:?}")), "{failed}");
            world.assert_all_home(&before, &format!("call {nth} of {verb:?} failed"));
            world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
        }
    }
}
