//! Ports through every death of the daemon.

use netferry::{attach::FAILPOINTS, nri::PodSandbox};

use crate::{
    dies,
    pods::{BLUE, Node, RED, pod_ref, port, v4, v6},
    points,
    world::Places,
};

/// The sandbox of the pod whose daemon dies, for a process that knows the places only.
pub(crate) fn port_sandbox(places: &Places) -> PodSandbox {
    PodSandbox {
        id: "s0".into(),
        pod: pod_ref(0),
        netns: Some(places.pod.clone()),
        cgroup_parent: None,
        pid: Some(1),
        is_static: false,
        has_containers: false,
    }
}

/// Two pods; the first has two ports in one claim and one in another, the second one to talk to.
fn two_pods(test: &str) -> Option<Node> {
    let pods = Node::new(test, 2)?;
    pods.claim("c7", 0, vec![port("c7", BLUE, 7, "net1"), port("c7", BLUE, 8, "net2")]);
    pods.claim("c8", 0, vec![port("c8", RED, 7, "red0")]);
    pods.claim("c9", 1, vec![port("c9", BLUE, 9, "net1")]);
    Some(pods)
}

/// Everything is in the pods, and works.
fn assert_attached(pods: &Node, when: &str) {
    assert_eq!(pods.pods[0].links().len(), 3, "{when}");
    assert_eq!(pods.host.links().len(), 4, "{when}");
    for address in [v4(7), v6(8)] {
        assert!(pods.reaches(1, &address), "{when}: {address}");
    }
}

#[tokio::test]
async fn a_death_while_ports_are_made_is_cleared_up_or_finished() {
    let Some(pods) = two_pods("a_death_while_ports_are_made_is_cleared_up_or_finished") else { return };
    let mut deaths = 0;
    for point in points("attach") {
        deaths += u32::from(dies(&pods.places, "attach port", &point));
        // The sandbox died with the daemon.
        let outcome = pods.places.attacher().recover(&[]).await;
        assert_eq!(outcome.problems, [], "{point}");
        assert_eq!(pods.pods[0].links(), Vec::<String>::new(), "{point}");
        pods.assert_nothing_left(&point);

        dies(&pods.places, "attach port", &point);
        // The sandbox lives.
        let outcome = pods.places.attacher().recover(&pods.sandboxes()).await;
        assert_eq!((outcome.problems, outcome.attached.len()), (vec![], 4), "{point}");
        assert_attached(&pods, &point);
        assert_eq!(pods.places.attacher().recover(&[]).await.problems, [], "{point}");
        pods.assert_nothing_left(&point);
    }
    assert!(deaths >= 14, "only {deaths} deaths");
}

#[tokio::test]
async fn a_death_while_ports_are_deleted_is_finished() {
    let Some(pods) = two_pods("a_death_while_ports_are_deleted_is_finished") else { return };
    let mut deaths = 0;
    // Nothing is restored of a port, and so nothing stops in the middle of it.
    for point in points("return") {
        pods.places.attacher().attach(&pods.sandbox(0)).await.expect("attach");
        deaths += u32::from(dies(&pods.places, "return port", &point));
        let outcome = pods.places.attacher().recover(&[]).await;
        assert_eq!(outcome.problems, [], "{point}");
        pods.assert_nothing_left(&point);
    }
    assert!(deaths >= 14, "only {deaths} deaths");
}

#[tokio::test]
async fn a_death_in_the_recovery_of_ports_is_recovered_from() {
    let Some(pods) = two_pods("a_death_in_the_recovery_of_ports_is_recovered_from") else { return };
    for point in FAILPOINTS.map(|name| format!("{name}=return(abort)")) {
        assert!(dies(&pods.places, "attach port", "attach-after-ready=return(abort)"), "{point}");
        assert!(dies(&pods.places, "recover port", &point), "{point}");
        let outcome = pods.places.attacher().recover(&pods.sandboxes()).await;
        assert_eq!((outcome.problems, outcome.attached.len()), (vec![], 4), "{point}");
        assert_attached(&pods, &point);
        assert_eq!(pods.places.attacher().recover(&[]).await.problems, [], "{point}");
        pods.assert_nothing_left(&point);
    }
}

/// Endpoints that are reserved between prepare and the sandbox, or until unprepare.
#[tokio::test]
async fn a_death_while_ports_are_prepared_is_cleared_up() {
    let Some(pods) = two_pods("a_death_while_ports_are_prepared_is_cleared_up") else { return };
    let mut deaths = 0;
    for point in ["store-before-write", "store-after-write"].map(|name| format!("{name}=return(abort)")) {
        for part in ["protect", "unprotect"] {
            if part == "unprotect" {
                pods.places.attacher().protect("c7").await;
            }
            deaths += u32::from(dies(&pods.places, part, &point));
            let outcome = pods.places.attacher().recover(&pods.sandboxes()).await;
            assert_eq!((outcome.problems, outcome.attached.len()), (vec![], 4), "{part} {point}");
            assert_attached(&pods, &point);
            assert_eq!(pods.places.attacher().recover(&[]).await.problems, [], "{part} {point}");
            dies(&pods.places, "protect", &point);
            assert_eq!(pods.places.attacher().give_back_claim("c7").await.problems, [], "{part} {point}");
            pods.places.store().update("c7", |it| assert!(it.interfaces[0].reserved.is_none())).expect("c7");
            pods.assert_nothing_left(&point);
        }
    }
    assert_eq!(deaths, 4);
}
