//! The NRI session against a stand-in for the runtime, over a real socket.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "nri/hooks.rs"]
mod hooks;
#[path = "nri/stand_in.rs"]
mod stand_in;
mod support;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use netferry::nri::{self, NriConfig, PodEvents, PodSandbox, SessionStatus};
use netferry_proto::nri as api;
use support::runtime::{ContainerSpec, EventError, Generation, Plugin, PodSandboxSpec, Runtime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(10);

/// Records what the driver is told, and answers as a test wants.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<(&'static str, Vec<PodSandbox>)>>,
    refusal: Mutex<Option<String>>,
    held_by: Mutex<Option<String>>,
    run_takes: Mutex<Duration>,
    synchronize_takes: Mutex<Duration>,
    panics: Mutex<bool>,
}

impl Recorder {
    fn record(&self, event: &'static str, sandboxes: Vec<PodSandbox>) {
        self.seen.lock().unwrap().push((event, sandboxes));
    }

    fn events(&self) -> Vec<&'static str> {
        self.seen.lock().unwrap().iter().map(|(event, _)| *event).collect()
    }

    fn last(&self) -> (&'static str, Vec<PodSandbox>) {
        self.seen.lock().unwrap().last().expect("an event").clone()
    }
}

#[async_trait]
impl PodEvents for Recorder {
    async fn synchronize(&self, sandboxes: Vec<PodSandbox>) {
        let takes = *self.synchronize_takes.lock().unwrap();
        sleep(takes).await;
        assert!(!*self.panics.lock().unwrap(), "as the test wants");
        self.record("synchronize", sandboxes);
    }

    async fn run_pod_sandbox(&self, sandbox: PodSandbox) {
        self.record("run", vec![sandbox]);
        let takes = *self.run_takes.lock().unwrap();
        sleep(takes).await;
        assert!(!*self.panics.lock().unwrap(), "as the test wants");
        self.record("ran", vec![]);
    }

    fn is_free(&self, sandbox: &PodSandbox) -> bool {
        sandbox.pod.name.starts_with("free")
    }

    async fn create_container(&self, sandbox: PodSandbox, container: &str) -> Result<(), String> {
        assert_eq!(container, "main");
        self.record("create", vec![sandbox]);
        assert!(!*self.panics.lock().unwrap(), "as the test wants");
        self.refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn held_by(&self, _: &PodSandbox) -> Option<String> {
        self.held_by.lock().unwrap().clone()
    }

    async fn stop_pod_sandbox(&self, sandbox: PodSandbox) {
        self.record("stop", vec![sandbox]);
    }

    async fn remove_pod_sandbox(&self, sandbox: PodSandbox) {
        self.record("remove", vec![sandbox]);
    }
}

/// A driver's session, and what is needed to watch and stop it.
struct Driver {
    events: Arc<Recorder>,
    status: watch::Receiver<SessionStatus>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Driver {
    fn start(socket: &Path) -> Self {
        let config = NriConfig {
            socket: socket.into(),
            registration_timeout: Duration::from_millis(500),
            ..NriConfig::default()
        };
        let events = Arc::new(Recorder::default());
        let (status, watched) = watch::channel(SessionStatus::default());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(nri::run(config, Arc::clone(&events) as _, status, shutdown.clone()));
        Self { events, status: watched, shutdown, task }
    }

    async fn wait(&mut self, what: &str, condition: impl Fn(&SessionStatus) -> bool) -> SessionStatus {
        let found = timeout(SOON, self.status.wait_for(|status| condition(status))).await;
        found.unwrap_or_else(|_| panic!("waited in vain for: {what}")).expect("session").clone()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(SOON, self.task).await.expect("the session does not stop").expect("the session panics");
    }
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("nf-nri-").tempdir().unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("nri.sock")
    }
}

async fn connect(dir: &Dir, generation: Generation) -> (Runtime, Driver, Plugin) {
    let runtime = Runtime::listen(dir.socket(), generation).unwrap();
    let mut driver = Driver::start(&dir.socket());
    let plugin = timeout(SOON, runtime.accept()).await.unwrap().unwrap();
    driver.wait("synchronized", SessionStatus::is_ready).await;
    (runtime, driver, plugin)
}

fn pod(n: u32) -> PodSandboxSpec {
    PodSandboxSpec::new(
        "default",
        &format!("pod-{n}"),
        &format!("uid-{n}"),
        Some(Path::new("/run/netns/nf-x")),
    )
}

#[tokio::test]
async fn pod_events_come_in_both_generations() {
    for generation in [Generation::StateChange, Generation::OwnCalls] {
        let dir = Dir::new();
        let (_runtime, driver, plugin) = connect(&dir, generation).await;
        assert_eq!((&*plugin.registered.plugin_idx, &*plugin.registered.plugin_name), ("10", "netferry"));
        let events = [
            api::Event::RUN_POD_SANDBOX,
            api::Event::STOP_POD_SANDBOX,
            api::Event::REMOVE_POD_SANDBOX,
            api::Event::CREATE_CONTAINER,
        ];
        assert_eq!(plugin.events, events.iter().fold(0, |mask, event| mask | 1 << (*event as i32 - 1)));
        assert_eq!(driver.status.borrow().runtime.as_ref().unwrap().name, "stand-in");

        plugin.run_pod_sandbox(&pod(1)).await.unwrap();
        let (event, sandboxes) = driver.events.seen.lock().unwrap()[1].clone();
        assert_eq!(event, "run");
        let sandbox = &sandboxes[0];
        assert_eq!(sandbox.id, "sandbox-uid-1");
        assert_eq!(sandbox.pod.to_string(), "default/pod-1");
        assert_eq!(sandbox.pod.uid, "uid-1");
        assert_eq!(sandbox.netns.as_deref(), Some(Path::new("/run/netns/nf-x")));
        assert_eq!(sandbox.cgroup_parent.as_deref(), Some("/kubepods/poduid-1"));
        plugin.stop_pod_sandbox(&pod(1)).await.unwrap();
        plugin.remove_pod_sandbox(&pod(1)).await.unwrap();
        assert_eq!(driver.events.events(), ["synchronize", "run", "ran", "stop", "remove"], "{generation:?}");

        let host = PodSandboxSpec { netns: None, ..pod(2) };
        plugin.run_pod_sandbox(&host).await.unwrap();
        assert_eq!(driver.events.seen.lock().unwrap()[5].1[0].netns, None);
        driver.stop().await;
    }
}

#[tokio::test]
async fn synchronization_comes_in_parts() {
    let dir = Dir::new();
    let mut runtime =
        Runtime::listen(dir.socket(), Generation::StateChange).unwrap().with_sandboxes((0..25).map(pod));
    runtime.part = 10;
    let mut driver = Driver::start(&dir.socket());
    let plugin = runtime.accept().await.unwrap();
    driver.wait("synchronized", SessionStatus::is_ready).await;
    assert_eq!(driver.events.events(), ["synchronize"], "once, whatever the number of parts");
    let told = driver.events.last().1;
    let mut expected: Vec<_> = plugin.sandboxes().into_iter().map(|sandbox| sandbox.id).collect();
    expected.sort();
    let mut ids: Vec<_> = told.iter().map(|sandbox| sandbox.id.clone()).collect();
    assert_ne!(ids, expected, "a runtime lists them in any order");
    ids.sort();
    assert_eq!(ids, expected);
    assert_eq!(told.len(), 25);
    driver.stop().await;
}

#[tokio::test]
async fn messages_of_megabytes_pass() {
    let dir = Dir::new();
    let large = |n: u32| {
        let mut sandbox = pod(n);
        sandbox.annotations.insert("large".into(), "x".repeat(1 << 20));
        sandbox
    };
    let runtime =
        Runtime::listen(dir.socket(), Generation::OwnCalls).unwrap().with_sandboxes((0..3).map(large));
    let mut driver = Driver::start(&dir.socket());
    let plugin = runtime.accept().await.unwrap();
    driver.wait("synchronized", SessionStatus::is_ready).await;
    assert_eq!(driver.events.last().1.len(), 3);
    plugin.run_pod_sandbox(&large(7)).await.unwrap();
    // Also towards the runtime.
    let words = "no ".repeat(300_000);
    *driver.events.refusal.lock().unwrap() = Some(words.clone());
    let error = plugin.create_container(&large(7), &ContainerSpec::new(&large(7), "main")).await.unwrap_err();
    assert!(matches!(&error, EventError::Refused(why) if why.ends_with(&words)));
    driver.stop().await;
}

#[tokio::test]
async fn a_panic_in_the_synchronization_is_followed_by_another() {
    let dir = Dir::new();
    let runtime = Runtime::listen(dir.socket(), Generation::OwnCalls).unwrap();
    let mut driver = Driver::start(&dir.socket());
    *driver.events.panics.lock().unwrap() = true;
    let mut plugin = runtime.accept_registration().await.unwrap();
    plugin.configure().await.unwrap();
    let _ = plugin.synchronize(usize::MAX).await;
    timeout(SOON, plugin.closed()).await.expect("left open");
    let status = driver.wait("left", |status| status.failures == 1).await;
    assert!(!status.is_ready());
    assert!(status.last_error.unwrap().contains("list of sandboxes"));
    *driver.events.panics.lock().unwrap() = false;
    runtime.accept().await.unwrap();
    driver.wait("synchronized", SessionStatus::is_ready).await;
    driver.stop().await;
}

#[tokio::test]
async fn a_connection_lost_in_a_call_neither_cuts_the_attach_short_nor_takes_it_back() {
    let dir = Dir::new();
    let (runtime, mut driver, plugin) = connect(&dir, Generation::StateChange).await;
    *driver.events.run_takes.lock().unwrap() = Duration::from_millis(300);
    let sandbox = pod(1);
    let call = plugin.run_pod_sandbox(&sandbox);
    let kill = async {
        sleep(Duration::from_millis(30)).await;
        plugin.kill();
    };
    let (lost, ()) = tokio::join!(call, kill);
    assert!(matches!(lost, Err(EventError::PluginLost(_))), "{lost:?}");
    // A runtime starts the pod all the same, and tells so at the next synchronization, which waits for the attach.
    let again = runtime.accept().await.unwrap();
    driver.wait("synchronized again", |status| status.sessions == 2).await;
    assert_eq!(driver.events.events(), ["synchronize", "run", "ran", "synchronize"]);
    assert_eq!(driver.events.last().1[0].id, sandbox.id);
    again.remove_pod_sandbox(&sandbox).await.unwrap();
    driver.stop().await;
}

#[tokio::test]
async fn the_driver_comes_back_after_a_restart_of_the_runtime() {
    let dir = Dir::new();
    let (runtime, mut driver, plugin) = connect(&dir, Generation::StateChange).await;
    plugin.run_pod_sandbox(&pod(1)).await.unwrap();
    let sandboxes = plugin.sandboxes();
    plugin.shutdown().await.unwrap();
    drop((plugin, runtime));
    let lost = driver.wait("not ready", |status| !status.is_ready()).await;
    assert!(lost.failures >= 1);
    // Some attempts at a socket that is not there.
    driver.wait("failed attempts", |status| status.failures >= 3).await;

    let runtime = Runtime::listen(dir.socket(), Generation::OwnCalls).unwrap().with_sandboxes(sandboxes);
    let plugin = timeout(SOON, runtime.accept()).await.unwrap().unwrap();
    driver.wait("synchronized again", |status| status.sessions == 2).await;
    assert_eq!(driver.events.last().0, "synchronize");
    assert_eq!(driver.events.last().1[0].pod.name, "pod-1");
    plugin.run_pod_sandbox(&pod(2)).await.unwrap();
    driver.stop().await;
}

#[tokio::test]
async fn a_runtime_that_breaks_the_protocol_is_left() {
    let dir = Dir::new();
    let runtime = Runtime::listen(dir.socket(), Generation::StateChange).unwrap();
    let mut driver = Driver::start(&dir.socket());
    let mut raw = runtime.accept_raw().await.unwrap();
    raw.write_all(&[0, 0, 0, 9, 0, 0, 0, 1, 0]).await.unwrap();
    let mut rest = Vec::new();
    timeout(SOON, raw.read_to_end(&mut rest)).await.expect("left open").unwrap();
    let status = driver.wait("left", |status| status.failures == 1).await;
    assert_eq!(status.last_error.unwrap(), "frame for unknown connection 9");

    // A runtime that takes the registration and stays silent.
    let mut plugin = runtime.accept_registration().await.unwrap();
    timeout(SOON, plugin.closed()).await.expect("left open");
    let status = driver.wait("left", |status| status.failures == 2).await;
    assert!(status.last_error.unwrap().contains("did not configure"));

    runtime.accept().await.unwrap();
    driver.wait("synchronized", SessionStatus::is_ready).await;
    driver.stop().await;
}

#[tokio::test]
async fn a_stopping_driver_answers_what_is_under_way() {
    let dir = Dir::new();
    let (_runtime, driver, plugin) = connect(&dir, Generation::OwnCalls).await;
    *driver.events.run_takes.lock().unwrap() = Duration::from_millis(500);
    let sandbox = pod(1);
    let events = Arc::clone(&driver.events);
    let stop = async {
        sleep(Duration::from_millis(100)).await;
        driver.stop().await;
    };
    let (answered, ()) = tokio::join!(plugin.run_pod_sandbox(&sandbox), stop);
    answered.unwrap();
    assert_eq!(events.events(), ["synchronize", "run", "ran"]);
}
