//! The NRI session against a real containerd, of each series.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "containerd/messages.rs"]
mod messages;
#[path = "containerd/refusals.rs"]
mod refusals;
mod support;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use netferry::nri::{self, NriConfig, PodEvents, PodSandbox, SessionStatus};
use support::containerd::{ContainerSpec, Containerd, Series, prerequisites};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Synchronize(Vec<PodSandbox>),
    /// And whether the netns was there.
    Run(PodSandbox, bool),
    /// And whether the netns of its run event was there still.
    Stop(PodSandbox, bool),
    Remove(PodSandbox),
    /// And the container's name.
    Create(PodSandbox, String),
}

/// A namespace is mounted there: the file is there before and after.
fn is_mounted(netns: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == netns))
}

#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<Seen>>,
    netns: Mutex<HashMap<String, PathBuf>>,
    refusal: Mutex<Option<String>>,
    run_takes: Mutex<Duration>,
}

impl Recorder {
    fn record(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
    }

    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

#[async_trait]
impl PodEvents for Recorder {
    async fn synchronize(&self, sandboxes: Vec<PodSandbox>) {
        self.record(Seen::Synchronize(sandboxes));
    }

    async fn run_pod_sandbox(&self, sandbox: PodSandbox) {
        let there = sandbox.netns.as_ref().is_some_and(|netns| is_mounted(netns));
        if let Some(netns) = &sandbox.netns {
            self.netns.lock().unwrap().insert(sandbox.id.clone(), netns.clone());
        }
        self.record(Seen::Run(sandbox, there));
        let takes = *self.run_takes.lock().unwrap();
        tokio::time::sleep(takes).await;
    }

    fn is_free(&self, _: &PodSandbox) -> bool {
        false
    }

    async fn create_container(&self, sandbox: PodSandbox, container: &str) -> Result<(), String> {
        self.record(Seen::Create(sandbox, container.to_owned()));
        self.refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn held_by(&self, _: &PodSandbox) -> Option<String> {
        None
    }

    async fn stop_pod_sandbox(&self, sandbox: PodSandbox) {
        let netns = self.netns.lock().unwrap().get(&sandbox.id).cloned();
        self.record(Seen::Stop(sandbox, netns.is_some_and(|netns| is_mounted(&netns))));
    }

    async fn remove_pod_sandbox(&self, sandbox: PodSandbox) {
        self.record(Seen::Remove(sandbox));
    }
}

struct Driver {
    events: Arc<Recorder>,
    status: watch::Receiver<SessionStatus>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Driver {
    fn start(socket: PathBuf) -> Self {
        let events = Arc::new(Recorder::default());
        let (status, watched) = watch::channel(SessionStatus::default());
        let shutdown = CancellationToken::new();
        let config = NriConfig { socket, ..NriConfig::default() };
        let task = tokio::spawn(nri::run(config, Arc::clone(&events) as _, status, shutdown.clone()));
        Self { events, status: watched, shutdown, task }
    }

    async fn sessions(&mut self, number: u64) -> SessionStatus {
        let ready = |status: &SessionStatus| status.is_ready() && status.sessions == number;
        timeout(SOON, self.status.wait_for(ready)).await.expect("no session").expect("session").clone()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(SOON, self.task).await.expect("the session does not stop").expect("the session panics");
    }
}

async fn pod_events_of(series: Series) {
    let test = format!("containerd {series:?}");
    if let Err(why) = prerequisites() {
        return support::skip(&test, &why);
    }
    let mut containerd = Containerd::start(series).await.unwrap();
    eprintln!("{}", containerd.version().await.unwrap());
    let before = containerd.run_pod("default", "before", "uid-before", false).await.unwrap();

    let mut driver = Driver::start(containerd.nri_socket());
    let status = driver.sessions(1).await;
    assert_eq!(status.runtime.as_ref().unwrap().name, "containerd");
    assert_eq!(status.runtime.unwrap().request_timeout, Duration::from_secs(2));
    match &driver.events.take()[..] {
        [Seen::Synchronize(sandboxes)] => {
            assert_eq!(sandboxes.len(), 1);
            assert_eq!(sandboxes[0].id, before.id);
            assert_eq!(sandboxes[0].netns, before.netns);
            assert!(before.netns.is_some());
        }
        seen => panic!("{seen:?}"),
    }

    // A pod's life.
    let pod = containerd.run_pod("team-a", "web", "uid-web", false).await.unwrap();
    match &driver.events.take()[..] {
        [Seen::Run(sandbox, true)] => {
            assert_eq!(sandbox.id, pod.id);
            assert_eq!(sandbox.pod.to_string(), "team-a/web");
            assert_eq!(sandbox.pod.uid, "uid-web");
            assert_eq!(sandbox.netns, pod.netns);
            let cgroup = sandbox.cgroup_parent.as_deref().unwrap();
            assert!(cgroup.ends_with("/poduid-web"), "{cgroup}");
        }
        seen => panic!("{seen:?}"),
    }
    containerd.stop_pod(&pod.id).await.unwrap();
    let stops = driver.events.take();
    // The namespace is still there, also where the event does not name it.
    let named = if series == Series::V1_7 { None } else { pod.netns.clone() };
    assert!(
        matches!(&stops[..], [Seen::Stop(sandbox, true)] if sandbox.id == pod.id && sandbox.netns == named),
        "{stops:?}"
    );
    containerd.remove_pod(&pod.id).await.unwrap();
    let removes = driver.events.take();
    assert!(matches!(removes.last(), Some(Seen::Remove(sandbox)) if sandbox.id == pod.id), "{removes:?}");

    // A host-network pod has no namespace of its own.
    let host = containerd.run_pod("default", "host", "uid-host", true).await.unwrap();
    let seen = driver.events.take();
    assert!(matches!(&seen[..], [Seen::Run(sandbox, false)] if sandbox.netns.is_none()), "{seen:?}");

    // A refusal fails the container, in the driver's words; tried again it is made.
    *driver.events.refusal.lock().unwrap() = Some("claim team-a/net: link eth9 is gone".into());
    let refused = containerd.run_pod("team-a", "refused", "uid-refused", false).await.unwrap();
    let container = ContainerSpec::sleeping("main");
    let error = containerd.create_container(&refused, &container).await.unwrap_err();
    assert!(format!("{error:#}").contains("claim team-a/net: link eth9 is gone"), "{error:#}");
    *driver.events.refusal.lock().unwrap() = None;
    let made = containerd.create_container(&refused, &container).await.unwrap();
    containerd.start_container(&made).await.unwrap();
    let seen = driver.events.take();
    let [Seen::Run(..), Seen::Create(sandbox, name), Seen::Create(..)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!((&sandbox.id, &sandbox.netns, name.as_str()), (&refused.id, &refused.netns, "main"));

    // A driver that is slow is waited for a little.
    *driver.events.run_takes.lock().unwrap() = Duration::from_millis(2500);
    let slow = containerd.run_pod("team-a", "slow", "uid-slow", false).await.unwrap();
    let error = containerd.create_container(&slow, &container).await.unwrap_err();
    assert!(format!("{error:#}").contains("being attached still"), "{error:#}");
    *driver.events.run_takes.lock().unwrap() = Duration::ZERO;
    assert!(driver.status.borrow().is_ready());

    // Stopped and started, and killed: the driver is back, and knows what runs.
    containerd.restart().await.unwrap();
    driver.sessions(2).await;
    containerd.kill();
    timeout(SOON, driver.status.wait_for(|status| !status.is_ready())).await.unwrap().unwrap();
    containerd.launch().await.unwrap();
    driver.sessions(3).await;
    let seen = driver.events.take();
    match seen.last() {
        Some(Seen::Synchronize(sandboxes)) => {
            let find =
                |id: &str| sandboxes.iter().find(|sandbox| sandbox.id == id).expect("a running sandbox");
            assert_eq!(find(&before.id).netns, before.netns);
            assert_eq!(find(&host.id).netns, None);
            // Which have containers decides whether a pod may go on without an interface.
            assert_eq!((&find(&refused.id).netns, find(&refused.id).has_containers), (&refused.netns, true));
            assert_eq!((&find(&slow.id).netns, find(&slow.id).has_containers), (&slow.netns, false));
        }
        _ => panic!("{seen:?}"),
    }
    let after = containerd.run_pod("default", "after", "uid-after", false).await.unwrap();
    assert!(matches!(&driver.events.take()[..], [Seen::Run(sandbox, true)] if sandbox.id == after.id));
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_events_of_containerd_2_1() {
    pod_events_of(Series::V2_1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_events_of_containerd_1_7() {
    pod_events_of(Series::V1_7).await;
}
