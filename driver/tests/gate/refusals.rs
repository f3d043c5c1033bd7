//! Refusals break neither the runtime nor other pods.

use std::{process::Command, time::Instant};

use super::{
    Cable, ContainerSpec, Duration, Node, RunningPod, Series, able, create, create_soon, end, inside, number,
    put_claim, spec, until, wait_ready, world::ip,
};

const TIMES: u32 = 20;

/// Containers are refused so often with a reason; the sandbox runs on.
async fn refused(node: &Node, pod: &RunningPod, reason: &str) {
    for attempt in 0..TIMES {
        let why = create(node, pod, attempt).await.expect_err(reason);
        assert!(why.contains(reason), "{why}");
    }
}

fn tc(words: &[&str]) {
    assert!(Command::new("tc").args(words).status().unwrap().success(), "tc {words:?}");
}

async fn refusals_leave_the_runtime_whole(series: Series) {
    if !able("refusals", series) {
        return;
    }
    let numbers = [number(series, 0), number(series, 1), number(series, 2), number(series, 4)];
    let cables = numbers.map(Cable::new);
    let [one, two, three, four] = &cables;
    let mut node = Node::start(series, &[one, two, three, four]).await;
    let looks = cables.each_ref().map(Cable::look);

    // The name is taken in the sandbox: the claim is prepared late, so that there is time to take it.
    let taken = node.containerd.run(&spec("taken")).await.unwrap();
    inside(&taken).ip("link add net1 type veth peer name other");
    let claim_taken = put_claim(&node, "taken", &["taken"], (one, numbers[0]), "net1", true);
    node.prepare(&claim_taken).await.unwrap();
    refused(&node, &taken, "already exists in network namespace").await;

    // The link is gone from the node.
    let claim_gone = put_claim(&node, "gone", &["gone"], (two, numbers[1]), "net1", true);
    node.prepare(&claim_gone).await.unwrap();
    ip(&format!("link delete {}", two.link));
    let gone = node.containerd.run(&spec("gone")).await.unwrap();
    refused(&node, &gone, &format!("no link {}", two.link)).await;

    // Somebody else's program is on the link.
    let claim_foreign = put_claim(&node, "foreign", &["foreign"], (four, numbers[3]), "net1", true);
    node.prepare(&claim_foreign).await.unwrap();
    tc(&["qdisc", "add", "dev", &four.link, "clsact"]);
    tc(&["filter", "add", "dev", &four.link, "egress", "bpf", "bytecode", "1,6 0 0 0"]);
    let foreign = node.containerd.run(&spec("foreign")).await.unwrap();
    refused(&node, &foreign, "carries programs that are not ours").await;

    // Another pod has the claim.
    let claim_shared = put_claim(&node, "shared", &["first", "second"], (three, numbers[2]), "net1", false);
    node.prepare(&claim_shared).await.unwrap();
    let first = node.containerd.run(&spec("first")).await.unwrap();
    create_soon(&node, &first, 0).await.unwrap();
    let second = node.containerd.run(&spec("second")).await.unwrap();
    refused(&node, &second, "is in pod team-a/first").await;
    node.until_event("Pod", "AttachFailed").await;
    node.until_event("ResourceClaim", "AttachFailed").await;

    // It starts again, and so does everything.
    node.containerd.restart().await.unwrap();
    wait_ready(&mut node);
    node.containerd.crash().await.unwrap();
    wait_ready(&mut node);
    assert!(inside(&first).links().contains(&"net1".to_owned()));
    refused(&node, &second, "is in pod team-a/first").await;

    // Each has its links as soon as the reason is gone.
    inside(&taken).ip("link delete net1");
    create_soon(&node, &taken, 100).await.unwrap();
    ip(&format!("link add {} type veth peer name far2 netns {}", two.link, two.far.name));
    create_soon(&node, &gone, 100).await.unwrap();
    tc(&["qdisc", "delete", "dev", &four.link, "clsact"]);
    create_soon(&node, &foreign, 100).await.unwrap();
    node.containerd.stop_pod(&first.id).await.unwrap();
    create_soon(&node, &second, 100).await.unwrap();
    for pod in [&taken, &gone, &foreign, &second] {
        assert!(inside(pod).links().contains(&"net1".to_owned()), "{pod:?}");
    }

    let claims = [claim_taken, claim_gone, claim_foreign, claim_shared];
    let pods = [&taken, &gone, &foreign, &first, &second];
    end(&mut node, &pods, &claims, &[one, two, three, four]).await;
    let [first, _, third, fourth] = looks;
    assert_eq!([one.look(), three.look(), four.look()], [first, third, fourth]);
    until("no pause container", || node.containerd.leftovers().pauses == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_leave_containerd_2_1_whole() {
    refusals_leave_the_runtime_whole(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_leave_containerd_1_7_whole() {
    refusals_leave_the_runtime_whole(Series::V1_7).await;
}

/// How long a pod without claims takes, at the median of several.
async fn plain_pods(node: &Node, name: &str) -> Duration {
    let mut took = Vec::new();
    for count in 0..7 {
        let began = Instant::now();
        let pod = node.containerd.run(&spec(&format!("{name}-{count}"))).await.unwrap();
        let container =
            node.containerd.create_container(&pod, &ContainerSpec::sleeping("main")).await.unwrap();
        node.containerd.start_container(&container).await.unwrap();
        took.push(began.elapsed());
        node.containerd.stop_container(&container, 0).await.unwrap();
        node.containerd.stop_pod(&pod.id).await.unwrap();
        node.containerd.remove_pod(&pod.id).await.unwrap();
    }
    took.sort();
    took[took.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_wait_keep_no_other_waiting() {
    let series = Series::V2_1;
    if !able("waiting pods", series) {
        return;
    }
    let number = number(series, 3);
    let cable = Cable::new(number);
    let mut node = Node::start(series, &[&cable]).await;
    let names: Vec<String> = (0..11).map(|count| format!("held-{count}")).collect();
    let consumers: Vec<&str> = names.iter().map(String::as_str).collect();
    let claim = put_claim(&node, "shared", &consumers, (&cable, number), "net1", false);
    node.prepare(&claim).await.unwrap();
    let alone = plain_pods(&node, "alone").await;
    let mut pods = Vec::new();
    for name in &consumers {
        pods.push(node.containerd.run(&spec(name)).await.unwrap());
    }
    create_soon(&node, &pods[0], 0).await.unwrap();
    for pod in &pods[1..] {
        create(&node, pod, 0).await.unwrap_err();
    }
    let beside = plain_pods(&node, "beside").await;
    eprintln!("a plain pod takes {alone:?} alone, and {beside:?} beside 10 that are held back");
    // A hook that waited would hold it up by its half second.
    assert!(beside < alone * 2 + Duration::from_millis(300), "{beside:?} and {alone:?}");
    let pods: Vec<&RunningPod> = pods.iter().collect();
    end(&mut node, &pods, &[claim], &[&cable]).await;
}
