//! What the runtime's hooks wait for, and what they answer.

use std::{path::Path, time::Duration};

use netferry::nri::{PodSandbox, SessionStatus};
use tokio::time::{sleep, timeout};

use crate::{
    Dir, Driver, SOON, api, connect, pod,
    support::runtime::{ContainerSpec, EventError, Generation, PodSandboxSpec, Runtime},
};

#[tokio::test]
async fn a_container_is_refused_in_the_driver_s_words() {
    for generation in [Generation::StateChange, Generation::OwnCalls] {
        let dir = Dir::new();
        let (_runtime, driver, plugin) = connect(&dir, generation).await;
        *driver.events.refusal.lock().unwrap() = Some("link eth9 is gone".into());
        plugin.run_pod_sandbox(&pod(1)).await.expect("a sandbox is never refused");
        for container in [ContainerSpec::new(&pod(1), "main"), ContainerSpec::new(&pod(1), "main").again()] {
            let error = plugin.create_container(&pod(1), &container).await.unwrap_err();
            let why = "netferry: pod default/pod-1 waits for its network interfaces: link eth9 is gone";
            assert_eq!(error, EventError::Refused(why.into()));
        }
        // The session lives on, and the pod as soon as the reason is gone.
        *driver.events.refusal.lock().unwrap() = None;
        plugin.create_container(&pod(1), &ContainerSpec::new(&pod(1), "main")).await.unwrap();
        driver.stop().await;
    }
}

#[tokio::test]
async fn what_names_no_pod_is_refused_at_its_containers_with_the_field() {
    let dir = Dir::new();
    let (_runtime, driver, plugin) = connect(&dir, Generation::OwnCalls).await;
    let nameless = PodSandboxSpec { uid: String::new(), ..pod(1) };
    plugin.run_pod_sandbox(&nameless).await.expect("a sandbox is never refused");
    let container = ContainerSpec::new(&nameless, "main");
    let error = plugin.create_container(&nameless, &container).await.unwrap_err();
    assert!(matches!(&error, EventError::Refused(why) if why.contains("pod.uid is empty")), "{error:?}");
    assert_eq!(driver.events.events(), ["synchronize"]);
    driver.stop().await;
}

/// The longest that a hook may take here: half a second is the driver's own limit, and the machine may be busy.
const HOOK: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn a_slow_attach_holds_back_its_pod_and_no_other() {
    for tells in [true, false] {
        let dir = Dir::new();
        let mut runtime = Runtime::listen(dir.socket(), Generation::StateChange).unwrap();
        runtime.tells_request_timeout = tells;
        let mut driver = Driver::start(&dir.socket());
        let plugin = runtime.accept().await.unwrap();
        driver.wait("synchronized", SessionStatus::is_ready).await;
        *driver.events.run_takes.lock().unwrap() = Duration::from_secs(4);

        timeout(HOOK, plugin.run_pod_sandbox(&pod(1))).await.expect("in time").unwrap();
        assert_eq!(driver.events.events(), ["synchronize", "run"], "it goes on");
        let container = ContainerSpec::new(&pod(1), "main");
        for (held_by, expected) in
            [(None, "are being attached still"), (Some("eth9 is away"), "eth9 is away")]
        {
            *driver.events.held_by.lock().unwrap() = held_by.map(str::to_owned);
            let refused = timeout(HOOK, plugin.create_container(&pod(1), &container)).await.expect("in time");
            let why = refused.unwrap_err();
            assert!(matches!(&why, EventError::Refused(why) if why.contains(expected)), "{why:?}");
        }
        // A pod that nothing of the driver concerns waits for nobody.
        let free = PodSandboxSpec::new("default", "free", "uid-free", Some(Path::new("/run/netns/nf-y")));
        plugin.run_pod_sandbox(&free).await.unwrap();
        let main = ContainerSpec::new(&free, "main");
        timeout(HOOK, plugin.create_container(&free, &main)).await.expect("in time").unwrap();
        // The stop waits for its turn, and is answered all the same.
        timeout(HOOK, plugin.stop_pod_sandbox(&pod(1))).await.expect("in time").unwrap();
        timeout(SOON, async {
            while driver.events.events().iter().all(|event| *event != "stop") {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the stop is not handled");
        let of_pod = |(event, sandboxes): &(&'static str, Vec<PodSandbox>)| {
            sandboxes.first().is_some_and(|sandbox| sandbox.pod.name == "pod-1").then_some(*event)
        };
        let seen: Vec<_> = driver.events.seen.lock().unwrap().iter().filter_map(of_pod).collect();
        assert_eq!(seen, ["run", "create", "create", "stop"], "in order, and not taken back by itself");
        driver.stop().await;
    }
}

#[tokio::test]
async fn a_panic_in_the_attach_holds_back_the_pod() {
    let dir = Dir::new();
    let (_runtime, driver, plugin) = connect(&dir, Generation::OwnCalls).await;
    *driver.events.panics.lock().unwrap() = true;
    plugin.run_pod_sandbox(&pod(1)).await.unwrap();
    let container = ContainerSpec::new(&pod(1), "main");
    let error = plugin.create_container(&pod(1), &container).await.unwrap_err();
    assert!(matches!(&error, EventError::Refused(why) if why.contains("failed unexpectedly")), "{error:?}");
    *driver.events.panics.lock().unwrap() = false;
    plugin.create_container(&pod(1), &container).await.unwrap();
    driver.stop().await;
}

#[tokio::test]
async fn pods_are_held_back_until_the_driver_is_synchronized() {
    let dir = Dir::new();
    let mut runtime = Runtime::listen(dir.socket(), Generation::StateChange).unwrap();
    runtime.request_timeout = Duration::from_secs(1);
    let mut driver = Driver::start(&dir.socket());
    *driver.events.synchronize_takes.lock().unwrap() = Duration::from_secs(3);
    let plugin = runtime.accept().await.unwrap();
    assert!(!driver.status.borrow().is_ready());
    plugin.run_pod_sandbox(&pod(1)).await.unwrap();
    let container = ContainerSpec::new(&pod(1), "main");
    let error = plugin.create_container(&pod(1), &container).await.unwrap_err();
    assert!(matches!(&error, EventError::Refused(_)), "{error:?}");
    driver.wait("synchronized", SessionStatus::is_ready).await;
    plugin.create_container(&pod(1), &container).await.unwrap();
    // What had its answer before its turn is done all the same.
    assert_eq!(driver.events.events(), ["synchronize", "run", "ran", "create", "create"]);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn events_of_a_sandbox_that_waited_for_the_synchronization_stay_in_order() {
    const PODS: u32 = 12;
    let dir = Dir::new();
    let runtime = Runtime::listen(dir.socket(), Generation::OwnCalls).unwrap();
    let mut driver = Driver::start(&dir.socket());
    *driver.events.synchronize_takes.lock().unwrap() = Duration::from_secs(3);
    let plugin = runtime.accept().await.unwrap();
    // Without the runtime's lock, which would make a queue of the pods.
    let call = async |number: u32| {
        let limit = || ttrpc::context::with_duration(Duration::from_secs(2));
        let message = || protobuf::MessageField::some(pod(number).message());
        let request = api::RunPodSandboxRequest { pod: message(), ..Default::default() };
        plugin.client.run_pod_sandbox(limit(), &request).await.unwrap();
        let request = api::StopPodSandboxRequest { pod: message(), ..Default::default() };
        plugin.client.stop_pod_sandbox(limit(), &request).await.unwrap();
        let request = api::RemovePodSandboxRequest { pod: message(), ..Default::default() };
        plugin.client.remove_pod_sandbox(limit(), &request).await.unwrap();
    };
    timeout(SOON, futures::future::join_all((0..PODS).map(call))).await.unwrap();
    driver.wait("synchronized", SessionStatus::is_ready).await;
    let all_seen = async {
        while driver.events.events().iter().filter(|event| **event == "remove").count() < PODS as usize {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, all_seen).await.expect("all removed");
    let seen = driver.events.seen.lock().unwrap().clone();
    for number in 0..PODS {
        let id = pod(number).id;
        let of_it = seen.iter().filter(|(_, sandboxes)| sandboxes.iter().any(|sandbox| sandbox.id == id));
        let of_it: Vec<_> = of_it.map(|(event, _)| *event).filter(|event| *event != "synchronize").collect();
        assert_eq!(of_it, ["run", "stop", "remove"], "{id}");
    }
    driver.stop().await;
}
