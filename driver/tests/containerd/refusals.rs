//! What it costs a real containerd that a plugin refuses.

use std::time::{Duration, Instant};

use netferry_proto::nri::Event;

use crate::support::{
    self,
    containerd::{ContainerSpec, Containerd, Leftovers, PodSpec, RunningPod, Series, prerequisites},
    plugin::{Answer, BarePlugin, Received},
};

const EVENTS: [Event; 4] =
    [Event::RUN_POD_SANDBOX, Event::STOP_POD_SANDBOX, Event::REMOVE_POD_SANDBOX, Event::CREATE_CONTAINER];
const REASON: &str = "claim team-a/net: link eth9 is gone";

fn refuse() -> Answer {
    Answer { refusal: Some(REASON.into()), ..Answer::default() }
}

async fn connect(containerd: &Containerd) -> BarePlugin {
    BarePlugin::connect(&containerd.nri_socket(), "bare", &EVENTS).await.unwrap()
}

/// Whether containerd is as good as new: a pod with a container runs, and leaves nothing.
async fn works(containerd: &Containerd, name: &str) {
    let before = containerd.leftovers();
    let pod = containerd.run_pod("default", name, &format!("uid-{name}"), false).await.unwrap();
    let main = containerd.create_container(&pod, &ContainerSpec::sleeping("main")).await.unwrap();
    containerd.start_container(&main).await.unwrap();
    assert_eq!(containerd.running_containers(&pod).await.unwrap(), [main]);
    gone(containerd, &pod).await;
    containerd.wait_for_leftovers(before).await.unwrap();
}

async fn gone(containerd: &Containerd, pod: &RunningPod) {
    containerd.stop_pod(&pod.id).await.unwrap();
    containerd.remove_pod(&pod.id).await.unwrap();
}

/// A pod whose containers are refused is an ordinary pod: it is stopped and removed without a trace, containerd starts
/// again with it and without it, and it runs as soon as its containers are let.
async fn refused_containers(series: Series) {
    if let Err(why) = prerequisites() {
        return support::skip(&format!("refused containers, {series:?}"), &why);
    }
    let mut containerd = Containerd::start(series).await.unwrap();
    let version = containerd.version().await.unwrap();
    let plugin = connect(&containerd).await;
    plugin.answer(Event::CREATE_CONTAINER, refuse());
    let main = ContainerSpec::sleeping("main");
    let mut pods = Vec::new();
    let started = Instant::now();
    for number in 0..10 {
        let uid = format!("uid-{number}");
        let pod = containerd.run_pod("team-a", &format!("web-{number}"), &uid, false).await.unwrap();
        // The kubelet tries again under the same name.
        for _ in 0..2 {
            let error = containerd.create_container(&pod, &main).await.unwrap_err();
            assert!(format!("{error:#}").contains(REASON), "{error:#}");
            if number == 0 {
                eprintln!("{version}: the CRI client reads: {error:#}");
            }
        }
        assert!(containerd.running_containers(&pod).await.unwrap().is_empty());
        pods.push(pod);
    }
    eprintln!("{version}: 10 pods, 20 refusals in {:?}: {:?}", started.elapsed(), containerd.leftovers());
    assert!(plugin.is_connected(), "a refusal is not fatal");
    let asked = plugin.take();
    assert_eq!(asked.iter().filter(|event| matches!(event, Received::CreateContainer(..))).count(), 20);

    // Restarted in between, containerd keeps them.
    containerd.restart().await.unwrap();
    containerd.crash().await.unwrap();
    let listed = containerd.list_pods().await.unwrap();
    assert_eq!(listed.iter().filter(|pod| pod.ready).count(), pods.len());
    let plugin = connect(&containerd).await;
    plugin.answer(Event::CREATE_CONTAINER, refuse());
    let error = containerd.create_container(&pods[0], &main).await.unwrap_err();
    assert!(format!("{error:#}").contains(REASON), "{error:#}");
    plugin.answer(Event::CREATE_CONTAINER, Answer::default());
    let id = containerd.create_container(&pods[0], &main).await.unwrap();
    containerd.start_container(&id).await.unwrap();
    assert_eq!(containerd.exec(&id, &["cat", "/proc/1/comm"]).await.unwrap().trim(), "busybox");

    for pod in &pods {
        gone(&containerd, pod).await;
    }
    containerd.wait_for_leftovers(Leftovers::default()).await.unwrap();
    assert!(containerd.list_pods().await.unwrap().is_empty());
    containerd.restart().await.unwrap();
    works(&containerd, "stopped").await;
    containerd.crash().await.unwrap();
    works(&containerd, "killed").await;
    eprintln!("{version}: after all of that, stopped and started, killed and started: pods run");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_containers_of_containerd_2_1() {
    refused_containers(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_containers_of_containerd_1_7() {
    refused_containers(Series::V1_7).await;
}

/// Why the driver refuses no sandboxes. What is left of them is printed and not asserted: it is containerd's fault to mend
/// (issue 13609).
async fn refused_sandboxes(series: Series) {
    if let Err(why) = prerequisites() {
        return support::skip(&format!("refused sandboxes, {series:?}"), &why);
    }
    let mut containerd = Containerd::start(series).await.unwrap();
    let version = containerd.version().await.unwrap();
    let plugin = connect(&containerd).await;
    plugin.answer(Event::RUN_POD_SANDBOX, refuse());
    for attempt in 0..3 {
        let error = containerd.run_pod("team-a", "web", "uid-web", false).await.unwrap_err();
        assert!(format!("{error:#}").contains(REASON), "attempt {attempt}: {error:#}");
    }
    let listed = containerd.list_pods().await.unwrap();
    eprintln!("{version}: 3 refusals of one sandbox: {:?}, listed: {listed:?}", containerd.leftovers());
    match containerd.restart().await {
        Ok(()) => eprintln!("{version}: starts again, lists {:?}", containerd.list_pods().await.unwrap()),
        Err(error) => {
            let error = format!("{error:#}");
            let first = error.lines().next().unwrap_or_default();
            let why = error.lines().find(|line| line.contains("is reserved for")).unwrap_or_default();
            eprintln!("{version}: does not start again: {first}: {why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_sandboxes_of_containerd_2_1() {
    refused_sandboxes(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_sandboxes_of_containerd_1_7() {
    refused_sandboxes(Series::V1_7).await;
}

/// A hook that waits holds up every other event of the node.
async fn one_lock(series: Series) {
    const WAIT: Duration = Duration::from_millis(1500);
    if let Err(why) = prerequisites() {
        return support::skip(&format!("one lock, {series:?}"), &why);
    }
    let containerd = Containerd::start(series).await.unwrap();
    let version = containerd.version().await.unwrap();
    let plugin = connect(&containerd).await;
    let timed = async |name: &str| {
        let began = Instant::now();
        let pod = containerd.run(&PodSpec::new("default", name, &format!("uid-{name}"))).await.unwrap();
        (pod, began.elapsed())
    };
    let (waiting, alone) = timed("first").await;
    let (other, _) = timed("other").await;
    plugin.answer(Event::CREATE_CONTAINER, Answer { after: WAIT, refusal: None });
    let began = Instant::now();
    let main = ContainerSpec::sleeping("main");
    let create = containerd.create_container(&waiting, &main);
    let ((_, run), stopped, created) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            timed("second").await
        },
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            containerd.stop_pod(&other.id).await.unwrap();
            began.elapsed()
        },
        create,
    );
    created.unwrap();
    eprintln!(
        "{version}: while CreateContainer of one pod waits {WAIT:?}: RunPodSandbox of another takes {run:?} (alone \
         {alone:?}), StopPodSandbox of a third is done after {stopped:?}"
    );
    assert!(run + Duration::from_millis(200) >= WAIT && stopped >= WAIT);
    // Three sandboxes whose hooks wait come one after the other.
    plugin.answer(Event::RUN_POD_SANDBOX, Answer { after: WAIT, refusal: None });
    let runs = tokio::join!(timed("third"), timed("fourth"), timed("fifth"));
    let mut took = [runs.0.1, runs.1.1, runs.2.1];
    took.sort();
    eprintln!("{version}: three sandboxes at once, each hook waits {WAIT:?}: {took:?}");
    assert!(took[2] >= 3 * WAIT);
    // A plugin that does not answer holds the node up for the whole limit, once: it loses its session.
    plugin.answer(Event::RUN_POD_SANDBOX, Answer { after: 10 * WAIT, refusal: None });
    let runs = tokio::join!(timed("sixth"), timed("seventh"));
    let mut took = [runs.0.1, runs.1.1];
    took.sort();
    eprintln!("{version}: two sandboxes at once, no hook answers: {took:?}, started all the same");
    assert!(!plugin.is_connected());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lock_of_containerd_2_1() {
    one_lock(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lock_of_containerd_1_7() {
    one_lock(Series::V1_7).await;
}
