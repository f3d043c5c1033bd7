//! What a real containerd tells a plugin, as it came: the stand-in is built after it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use netferry_proto::nri::{Event, PodSandbox};

use crate::support::{
    self,
    containerd::{ContainerSpec, Containerd, Leftovers, PodSpec, Series, prerequisites},
    plugin::{BarePlugin, Received},
};

const EVENTS: [Event; 4] =
    [Event::RUN_POD_SANDBOX, Event::STOP_POD_SANDBOX, Event::REMOVE_POD_SANDBOX, Event::CREATE_CONTAINER];
const SOURCE: &str = "kubernetes.io/config.source";

fn netns(pod: &PodSandbox) -> Option<PathBuf> {
    let mut namespaces = pod.linux.namespaces.iter();
    namespaces.find(|namespace| namespace.type_ == "network").map(|namespace| PathBuf::from(&namespace.path))
}

/// What is of interest in a description of a sandbox.
fn words(pod: &PodSandbox) -> String {
    let netns = netns(pod);
    let there = netns.as_deref().is_some_and(Path::exists);
    let source = pod.annotations.get(SOURCE);
    let namespaces = pod.linux.namespaces.len();
    format!(
        "{}: pid {}, netns {netns:?} (there at the end: {there}) of {namespaces} namespaces, config.source {source:?}, {} \
         annotations, {} labels, ips {:?}, cgroup {:?}",
        pod.name,
        pod.pid,
        pod.annotations.len(),
        pod.labels.len(),
        pod.ips,
        pod.linux.cgroup_parent
    )
}

fn print(version: &str, received: &[Received]) {
    for event in received {
        match event {
            Received::Synchronize(pods, containers) => {
                eprintln!("{version}: Synchronize, {} containers", containers.len());
                for pod in pods {
                    eprintln!("    {}", words(pod));
                }
            }
            Received::Pod(event, pod) => eprintln!("{version}: {event:?} {}", words(pod)),
            Received::CreateContainer(pod, container) => {
                eprintln!("{version}: CREATE_CONTAINER {}", words(pod));
                let (state, pid) = (container.state, container.pid);
                eprintln!("    {} {state:?} pid {pid}, {:?}", container.name, container.args);
                eprintln!("    labels {:?}", container.labels);
                eprintln!("    annotations {:?}", container.annotations);
            }
        }
    }
}

async fn messages(series: Series) {
    if let Err(why) = prerequisites() {
        return support::skip(&format!("messages of containerd, {series:?}"), &why);
    }
    let mut containerd = Containerd::start(series).await.unwrap();
    let version = containerd.version().await.unwrap();
    let connect = async |containerd: &Containerd| {
        BarePlugin::connect(&containerd.nri_socket(), "bare", &EVENTS).await.unwrap()
    };
    let plugin = connect(&containerd).await;
    plugin.take();

    let static_pod = PodSpec { is_static: true, ..PodSpec::new("kube-system", "static", "uid-static") };
    let fixed = containerd.run(&static_pod).await.unwrap();
    let spec = PodSpec::new("team-a", "web", "uid-web");
    let web = containerd.run(&spec).await.unwrap();
    let main = containerd.create_container(&web, &ContainerSpec::sleeping("main")).await.unwrap();
    containerd.start_container(&main).await.unwrap();
    let seen = plugin.take();
    print(&version, &seen);
    match &seen[..] {
        [
            Received::Pod(Event::RUN_POD_SANDBOX, first),
            Received::Pod(Event::RUN_POD_SANDBOX, second),
            Received::CreateContainer(pod, container),
        ] => {
            assert_eq!((&*first.annotations[SOURCE], &*second.annotations[SOURCE]), ("file", "api"));
            assert_eq!((first.pid, second.pid, pod.pid), (fixed.pid, web.pid, web.pid));
            assert_eq!((netns(first), netns(second)), (fixed.netns.clone(), web.netns.clone()));
            assert_eq!(netns(pod), web.netns);
            assert_eq!(pod.annotations[SOURCE], "api");
            assert_eq!((&*container.name, &*container.pod_sandbox_id), ("main", &*web.id));
        }
        seen => panic!("{seen:?}"),
    }

    // The pause container dies; the pod gets another sandbox, and the first is still listed.
    containerd.kill_pause(&web).await.unwrap();
    let again = containerd.run(&spec.again()).await.unwrap();
    drop(plugin);
    let plugin = connect(&containerd).await;
    let seen = plugin.take();
    print(&version, &seen);
    match &seen[..] {
        [Received::Synchronize(pods, _)] => {
            let dead = pods.iter().find(|pod| pod.id == web.id).expect("a dead sandbox is listed");
            assert_eq!(dead.pid, 0);
            assert_eq!(netns(dead), if series == Series::V1_7 { None } else { web.netns.clone() });
            assert_eq!(pods.iter().find(|pod| pod.id == again.id).map(netns), Some(again.netns.clone()));
        }
        seen => panic!("{seen:?}"),
    }
    containerd.stop_pod(&web.id).await.unwrap();
    containerd.stop_pod(&web.id).await.unwrap();
    let seen = plugin.take();
    print(&version, &seen);
    assert!(matches!(&seen[..], [Received::Pod(Event::STOP_POD_SANDBOX, pod)] if pod.id == web.id), "once");

    // Of sandboxes that are older than containerd's start, nothing is told.
    containerd.restart().await.unwrap();
    let plugin = connect(&containerd).await;
    let seen = plugin.take();
    print(&version, &seen);
    let ids = |pods: &[PodSandbox]| pods.iter().map(|pod| pod.id.clone()).collect::<Vec<_>>();
    assert!(
        matches!(&seen[..], [Received::Synchronize(pods, _)] if ids(pods).contains(&web.id)),
        "stopped, too"
    );
    containerd.stop_pod(&again.id).await.unwrap();
    containerd.remove_pod(&again.id).await.unwrap();
    let seen = plugin.take();
    eprintln!("{version}: stop and removal of a sandbox older than containerd's start: told {}", seen.len());
    assert!(seen.is_empty(), "{seen:?}");
    containerd.remove_pod(&web.id).await.unwrap();
    containerd.stop_pod(&fixed.id).await.unwrap();
    containerd.remove_pod(&fixed.id).await.unwrap();
    // containerd 2.1 keeps the shim of a sandbox that died with a container in it and was stopped before the restart.
    let left = containerd.leftovers();
    eprintln!("{version}: left in the end: {left:?}");
    assert_eq!(Leftovers { shims: 0, ..left }, Leftovers::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_containerd_2_1() {
    messages(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_containerd_1_7() {
    messages(Series::V1_7).await;
}

/// How long the operations of a scenario take, on one containerd that is never made anew.
async fn times(series: Series) {
    const ROUNDS: u32 = 5;
    if let Err(why) = prerequisites() {
        return support::skip(&format!("times of containerd, {series:?}"), &why);
    }
    let began = Instant::now();
    let mut containerd = Containerd::start(series).await.unwrap();
    let version = containerd.version().await.unwrap();
    eprintln!("{version}: first start with the image: {:?}", began.elapsed());
    let mut times: Vec<(&str, Duration)> = Vec::new();
    macro_rules! time {
        ($what:literal, $work:expr) => {{
            let began = Instant::now();
            let done = $work.await.unwrap();
            times.push(($what, began.elapsed()));
            done
        }};
    }
    for round in 0..ROUNDS {
        let spec = PodSpec::new("default", "web", &format!("uid-{round}"));
        let pod = time!("run", containerd.run(&spec));
        let main =
            time!("create container", containerd.create_container(&pod, &ContainerSpec::sleeping("main")));
        time!("start container", containerd.start_container(&main));
        time!("exec", containerd.exec(&main, &["true"]));
        time!("stop container", containerd.stop_container(&main, 0));
        time!("remove container", containerd.remove_container(&main));
        time!("list", containerd.list_pods());
        time!("kill pause", containerd.kill_pause(&pod));
        let next = time!("run again", containerd.run(&spec.again()));
        time!("restart by SIGTERM", containerd.restart());
        time!("restart by SIGKILL", containerd.crash());
        time!("stop dead", containerd.stop_pod(&pod.id));
        time!("remove dead", containerd.remove_pod(&pod.id));
        time!("stop", containerd.stop_pod(&next.id));
        time!("remove", containerd.remove_pod(&next.id));
        containerd.wait_for_leftovers(Leftovers::default()).await.unwrap();
    }
    let mut names: Vec<_> = times.iter().map(|(what, _)| *what).collect();
    names.truncate(times.len() / ROUNDS as usize);
    for name in names {
        let mut took: Vec<_> =
            times.iter().filter(|(what, _)| *what == name).map(|(_, took)| *took).collect();
        took.sort();
        eprintln!("{version}: {name}: median {:?}, longest {:?}", took[took.len() / 2], took[took.len() - 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_containerd_2_1() {
    times(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_containerd_1_7() {
    times(Series::V1_7).await;
}
