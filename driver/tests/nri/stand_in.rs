//! The stand-in for the runtime is as unkind as the real ones: with the driver's session, and with a bare plugin.

use std::time::Duration;

use netferry_proto::nri as api;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Dir, Driver, SOON, connect, pod,
    support::{
        plugin::{Answer, BarePlugin, Received},
        runtime::{Behavior, ContainerSpec, EventError, Generation, Namespace, PodSandboxSpec, Runtime},
    },
};

#[tokio::test]
async fn a_hook_that_waits_holds_up_every_event_of_the_node() {
    let dir = Dir::new();
    let (_runtime, driver, plugin) = connect(&dir, Generation::OwnCalls).await;
    *driver.events.run_takes.lock().unwrap() = Duration::from_millis(300);
    let started = Instant::now();
    let pods: Vec<_> = (0..4).map(pod).collect();
    let runs = pods.iter().map(|sandbox| plugin.run_pod_sandbox(sandbox));
    for result in futures::future::join_all(runs).await {
        result.unwrap();
    }
    // Each is answered after a tenth of a second, and the attaches go on side by side.
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
    let began = driver.events.events();
    assert_eq!(began.iter().filter(|event| **event == "run").count(), 4, "{began:?}");
    driver.stop().await;
}

#[tokio::test]
async fn only_sandboxes_that_are_not_older_than_the_runtime_are_told_to_stop() {
    for behavior in [Behavior::default(), Behavior::crio()] {
        let dir = Dir::new();
        let mut runtime = Runtime::listen(dir.socket(), Generation::StateChange).unwrap();
        runtime.behavior = Behavior { namespace: Namespace::Left, ..behavior };
        let mut driver = Driver::start(&dir.socket());
        let plugin = runtime.accept().await.unwrap();
        for number in 0..3 {
            plugin.run_pod_sandbox(&pod(number)).await.unwrap();
        }
        plugin.store.died("sandbox-uid-1");
        runtime.store.restart();
        driver.wait("not ready", |status| !status.is_ready()).await;
        let plugin = timeout(SOON, runtime.accept()).await.unwrap().unwrap();
        driver.wait("synchronized again", |status| status.sessions == 2).await;
        let mut listed: Vec<_> = driver.events.last().1.into_iter().map(|sandbox| sandbox.id).collect();
        listed.sort();
        assert_eq!(listed, ["sandbox-uid-0", "sandbox-uid-1", "sandbox-uid-2"], "dead ones too");

        driver.events.seen.lock().unwrap().clear();
        plugin.stop_pod_sandbox(&pod(0)).await.unwrap();
        plugin.remove_pod_sandbox(&pod(0)).await.unwrap();
        let told: &[_] = if behavior.tells_older { &["stop", "remove"] } else { &[] };
        assert_eq!(driver.events.events(), told);
        plugin.run_pod_sandbox(&pod(7)).await.unwrap();
        plugin.stop_pod_sandbox(&pod(7)).await.unwrap();
        plugin.stop_pod_sandbox(&pod(7)).await.unwrap();
        assert_eq!(driver.events.events()[told.len()..], ["run", "ran", "stop"], "stopped once");
        driver.stop().await;
    }
}

#[tokio::test]
async fn a_refused_container_leaves_the_session_and_a_silent_plugin_loses_it() {
    for generation in [Generation::StateChange, Generation::OwnCalls] {
        let dir = Dir::new();
        let mut runtime = Runtime::listen(dir.socket(), generation).unwrap();
        runtime.request_timeout = Duration::from_millis(500);
        let events = [api::Event::RUN_POD_SANDBOX, api::Event::CREATE_CONTAINER];
        let socket = dir.socket();
        let bare = BarePlugin::connect(&socket, "bare", &events);
        let (plugin, bare) = tokio::join!(runtime.accept(), bare);
        let (plugin, bare) = (plugin.unwrap(), bare.unwrap());
        let sandbox = PodSandboxSpec { is_static: true, pid: 42, ..pod(1) };
        plugin.run_pod_sandbox(&sandbox).await.unwrap();

        let refusal = Some("no interface yet".to_owned());
        bare.answer(api::Event::CREATE_CONTAINER, Answer { refusal, ..Answer::default() });
        let init = ContainerSpec::new(&sandbox, "init");
        let refused = plugin.create_container(&sandbox, &init).await.unwrap_err();
        assert_eq!(refused, EventError::Refused("no interface yet".into()));
        bare.answer(api::Event::CREATE_CONTAINER, Answer::default());
        plugin.create_container(&sandbox, &init.again()).await.unwrap();
        match &bare.take()[..] {
            [Received::Synchronize(..), Received::Pod(..), _, Received::CreateContainer(pod, container)] => {
                assert_eq!((&*pod.id, pod.pid), (&*sandbox.id, 42));
                assert_eq!(pod.annotations["kubernetes.io/config.source"], "file");
                assert!(pod.linux.namespaces.iter().any(|namespace| namespace.type_ == "network"));
                assert_eq!((&*container.name, &*container.pod_sandbox_id), ("init", &*sandbox.id));
                assert_ne!(container.id, init.id);
                assert_eq!(container.annotations["io.kubernetes.container.restartCount"], "1");
            }
            seen => panic!("{seen:?}"),
        }

        let after = Duration::from_secs(5);
        bare.answer(api::Event::CREATE_CONTAINER, Answer { after, refusal: None });
        let main = ContainerSpec::new(&sandbox, "main");
        let lost = plugin.create_container(&sandbox, &main).await.unwrap_err();
        assert!(matches!(lost, EventError::PluginLost(_)), "{lost:?}");
        timeout(SOON, bare.closed()).await.expect("a plugin that does not answer is dropped");
    }
}

#[tokio::test]
async fn the_namespace_goes_before_or_after_the_stop_is_told() {
    for behavior in [Behavior::containerd_2_1(), Behavior::crio()] {
        let dir = Dir::new();
        let mut runtime = Runtime::listen(dir.socket(), Generation::OwnCalls).unwrap();
        runtime.behavior = behavior;
        let events = [api::Event::STOP_POD_SANDBOX];
        let socket = dir.socket();
        let (plugin, bare) = tokio::join!(runtime.accept(), BarePlugin::connect(&socket, "bare", &events));
        let (plugin, bare) = (plugin.unwrap(), bare.unwrap());
        let netns = dir.0.path().join("netns");
        std::fs::write(&netns, "").unwrap();
        let sandbox = PodSandboxSpec { netns: Some(netns.clone()), ..pod(1) };
        plugin.run_pod_sandbox(&sandbox).await.unwrap();
        let after = Duration::from_millis(300);
        bare.answer(api::Event::STOP_POD_SANDBOX, Answer { after, refusal: None });
        let during = async {
            sleep(after / 3).await;
            netns.exists()
        };
        let (stopped, was_there) = tokio::join!(plugin.stop_pod_sandbox(&sandbox), during);
        stopped.unwrap();
        assert_eq!(was_there, behavior.namespace == Namespace::RemovedAfterStop, "{behavior:?}");
        assert!(!netns.exists());
    }
}
