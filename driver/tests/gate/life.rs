//! Restarts of runtime and daemon in any order, with dead sandboxes about.

use super::{
    Cable, Duration, Node, RunningPod, Series, able, create, create_soon, end, inside, number, put_claim,
    sleep, spec, until, wait_ready, world::ip,
};

/// What may start again.
#[derive(Clone, Copy, Debug)]
enum Restart {
    Daemon,
    DaemonKilled,
    Runtime,
    RuntimeKilled,
}

async fn restart(node: &mut Node, what: Restart) {
    match what {
        Restart::Daemon => {
            node.stop_daemon();
            node.start_daemon();
        }
        Restart::DaemonKilled => {
            node.daemon.take().expect("a daemon").kill();
            node.start_daemon();
        }
        Restart::Runtime => node.containerd.restart().await.unwrap(),
        Restart::RuntimeKilled => node.containerd.crash().await.unwrap(),
    }
    wait_ready(node);
}

/// The kubelet's answer to a dead pause container.
async fn again(node: &Node, pod: &RunningPod) -> RunningPod {
    node.containerd.kill_pause(pod).await.unwrap();
    node.containerd.stop_pod(&pod.id).await.unwrap();
    node.containerd.run(&pod.spec.again()).await.unwrap()
}

async fn no_restart_takes_links_away(series: Series) {
    if !able("restarts", series) {
        return;
    }
    let numbers = [number(series, 10), number(series, 11)];
    let cables = numbers.map(Cable::new);
    let [one, two] = &cables;
    let mut node = Node::start(series, &[one, two]).await;
    let looks = cables.each_ref().map(Cable::look);
    let claims = [
        put_claim(&node, "a", &["a"], (one, numbers[0]), "net1", true),
        put_claim(&node, "b", &["b"], (two, numbers[1]), "net1", true),
    ];
    for claim in &claims {
        node.prepare(claim).await.unwrap();
    }
    let mut pods = Vec::new();
    let mut dead = Vec::new();
    for name in ["a", "b"] {
        let pod = node.containerd.run(&spec(name)).await.unwrap();
        create_soon(&node, &pod, 0).await.unwrap();
        // Both have a dead sandbox, which stays in the runtime's list.
        let next = again(&node, &pod).await;
        create_soon(&node, &next, 0).await.unwrap();
        dead.push(pod);
        pods.push(next);
    }
    let index = |pod: &RunningPod| inside(pod).ifindex("net1");
    let before: Vec<u32> = pods.iter().map(index).collect();
    let all = [Restart::Daemon, Restart::DaemonKilled, Restart::Runtime, Restart::RuntimeKilled];
    for first in all {
        for second in all {
            restart(&mut node, first).await;
            restart(&mut node, second).await;
            let now: Vec<u32> = pods.iter().map(index).collect();
            assert_eq!(now, before, "{first:?}, {second:?}: nothing was moved");
            for (pod, number) in pods.iter().zip(numbers) {
                create_soon(&node, pod, 0).await.unwrap();
                inside(pod).exec(&format!("ping -q -c 1 -W 2 10.78.{number}.2"));
            }
        }
    }

    // containerd reports no stop of what is older than its start: the links come home all the same.
    restart(&mut node, Restart::Runtime).await;
    for pod in &pods {
        node.containerd.stop_pod(&pod.id).await.unwrap();
    }
    until("links at home", || cables.iter().all(Cable::is_home)).await;
    until("nothing held", || node.home.holds().is_empty()).await;
    let pods: Vec<&RunningPod> = pods.iter().chain(&dead).collect();
    end(&mut node, &pods, &claims, &[one, two]).await;
    assert_eq!(cables.each_ref().map(Cable::look), looks);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_restart_takes_links_away_on_containerd_2_1() {
    no_restart_takes_links_away(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_restart_takes_links_away_on_containerd_1_7() {
    no_restart_takes_links_away(Series::V1_7).await;
}

async fn sandboxes_made_without_the_daemon_are_attached_by_the_next(series: Series) {
    if !able("daemon away", series) {
        return;
    }
    let numbers = [number(series, 14), number(series, 15)];
    let cables = numbers.map(Cable::new);
    let [one, two] = &cables;
    let mut node = Node::start(series, &[one, two]).await;
    let claims = [
        put_claim(&node, "a", &["a"], (one, numbers[0]), "net1", true),
        put_claim(&node, "b", &["b"], (two, numbers[1]), "net1", true),
    ];
    for claim in &claims {
        node.prepare(claim).await.unwrap();
    }
    node.daemon.take().expect("a daemon").kill();
    let lucky = node.containerd.run(&spec("a")).await.unwrap();
    let unlucky = node.containerd.run(&spec("b")).await.unwrap();
    // Nobody holds it back: its containers run without the interface.
    create(&node, &unlucky, 0).await.unwrap();
    ip(&format!("link delete {}", two.link));
    node.start_daemon();
    until("the link in the pod", || inside(&lucky).links().contains(&"net1".to_owned())).await;
    create_soon(&node, &lucky, 0).await.unwrap();
    let why = create(&node, &unlucky, 1).await.unwrap_err();
    assert!(why.contains(&format!("no link {}", two.link)), "{why}");
    node.until_event("Pod", "AttachFailed").await;
    node.until_ready(&claims[1], "False", "AttachFailed").await;
    end(&mut node, &[&lucky, &unlucky], &claims, &[one]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_made_without_the_daemon_are_attached_on_containerd_2_1() {
    sandboxes_made_without_the_daemon_are_attached_by_the_next(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_made_without_the_daemon_are_attached_on_containerd_1_7() {
    sandboxes_made_without_the_daemon_are_attached_by_the_next(Series::V1_7).await;
}

/// Addresses of ended pods are given again at once, and nothing of them stays.
#[tokio::test(flavor = "multi_thread")]
async fn many_pods_leave_nothing() {
    let series = Series::V2_1;
    if !able("many pods", series) {
        return;
    }
    let number = number(series, 16);
    let cable = Cable::new(number);
    let mut node = Node::start(series, &[&cable]).await;
    let look = cable.look();
    let before = node.containerd.leftovers();
    for round in 0..25 {
        let name = format!("p{round}");
        let claim = put_claim(&node, &name, &[&name], (&cable, number), "net1", true);
        node.prepare(&claim).await.unwrap();
        let pod = node.containerd.run(&spec(&name)).await.unwrap();
        create_soon(&node, &pod, 0).await.unwrap();
        end(&mut node, &[&pod], &[claim], &[&cable]).await;
    }
    assert_eq!(cable.look(), look);
    assert_eq!(node.containerd.leftovers().namespaces, before.namespaces);
    sleep(Duration::from_millis(1)).await;
}
