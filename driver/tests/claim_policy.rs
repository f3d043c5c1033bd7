//! From the text of a claim to what passes on the wire: policy and limits on a real kernel.

#[path = "attach/interrupted.rs"]
mod interrupted;
mod support;
#[path = "attach/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use interrupted::Interrupted;
use k8s_openapi::api::resource::v1::ResourceClaim;
use netferry::{
    DRIVER_NAME,
    attach::Attacher,
    claim::{
        Checkpoint, ClaimRef, InterfaceRecord, Step,
        plan::{Place, plan},
    },
    datapath::{Datapath as _, EndpointId},
    device::{Device, Inventory},
    network::access::NoNetworks,
};
use serde_json::{Value, json};
use world::World;

const PEER_V4: &str = "198.51.100.1";
const PEER_V6: &str = "2001:db8:7::1";
const OTHER_V4: &str = "198.51.100.2";
const OTHER_V6: &str = "2001:db8:7::2";

/// Plans the claim with these fields as the kubelet's prepare does, and writes it down.
fn prepare(world: &World, fields: &Value) {
    let mut parameters = json!({
        "apiVersion": "netferry.dev/v1alpha1", "kind": "InterfaceConfig", "name": "net1",
        "addresses": ["198.51.100.7/24", "2001:db8:7::7/64"],
    });
    parameters.as_object_mut().expect("fields").extend(fields.as_object().expect("fields").clone());
    let claim: ResourceClaim = serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "c7", "uid": "c7"},
        "spec": {},
        "status": {
            "allocation": {"devices": {
                "results": [{"request": "nic", "driver": DRIVER_NAME, "pool": "node", "device": "eth7"}],
                "config": [{
                    "source": "FromClaim", "requests": ["nic"],
                    "opaque": {"driver": DRIVER_NAME, "parameters": parameters},
                }],
            }},
            "reservedFor": [{"resource": "pods", "name": "web", "uid": "uid-web"}],
        },
    }))
    .expect("a claim");
    let asked = ClaimRef { namespace: "default".into(), name: "c7".into(), uid: "c7".into() };
    let device = Device { name: "eth7".into(), ifname: "eth7".into(), ..Device::default() };
    let inventory = Inventory { devices: [("eth7".to_owned(), device)].into() };
    let place = Place {
        driver: DRIVER_NAME,
        pool: "node",
        inventory: &inventory,
        prepared: &[],
        networks: &BTreeMap::new(),
        uplinks: &BTreeMap::new(),
        members: &NoNetworks,
        leases: &BTreeMap::new(),
    };
    let plan = plan(&claim, &asked, &place).expect("a plan");
    let interfaces = plan.interfaces.into_iter().map(InterfaceRecord::planned);
    let checkpoint = Checkpoint::new(plan.claim, plan.pods, interfaces.collect());
    world.places.store().put(checkpoint).expect("checkpoint");
}

/// TCP port 8080 of one address of each family, and nothing else.
fn policy_and_limits() -> Value {
    json!({
        "policy": {"egress": {"otherwise": "deny", "rules": [{
            "action": "allow",
            "peers": [{"cidr": format!("{PEER_V4}/32")}, {"cidr": format!("{PEER_V6}/128")}],
            "ports": [{"protocol": "TCP", "port": 8080}],
        }]}},
        "limits": {"egress": {"bitsPerSecond": 100_000_000}},
    })
}

/// Entries of a pinned map.
fn entries(world: &World, map: &str) -> usize {
    let path = world.places.pins.join("maps").join(map);
    let dump = world.host.exec(&format!("bpftool -j map dump pinned {}", path.display()));
    let dump: Value = serde_json::from_str(&dump).expect("JSON");
    dump.as_array().expect("an array").len()
}

fn assert_no_entries(world: &World, when: &str) {
    for map in ["nf_peers", "nf_rules", "nf_limits"] {
        assert_eq!(entries(world, map), 0, "{when}: {map}");
    }
}

/// Opens a connection from the pod, and closes it.
fn connect(world: &World, address: &str, port: u16) -> io::Result<()> {
    let to = SocketAddr::new(address.parse().expect("an address"), port);
    world.pod.run(move || TcpStream::connect_timeout(&to, Duration::from_millis(700)).map(drop))
}

/// Frames dropped because no rule allows them.
fn denied(world: &World, id: EndpointId) -> u64 {
    let stats = world.places.datapath().stats(id).expect("stats");
    stats.drops.get("policy_default").copied().unwrap_or(0)
}

fn assert_policy_in_force(world: &World, id: EndpointId, when: &str) {
    for (allowed, other) in [(PEER_V4, OTHER_V4), (PEER_V6, OTHER_V6)] {
        connect(world, allowed, 8080).unwrap_or_else(|error| panic!("{when}: {allowed}: {error}"));
        for (address, port) in [(allowed, 8081), (other, 8080)] {
            let before = denied(world, id);
            connect(world, address, port).expect_err(when);
            assert!(denied(world, id) > before, "{when}: {address} port {port} did not fail for the policy");
        }
    }
}

#[tokio::test]
async fn a_claim_reaches_what_its_policy_allows_and_nothing_else() {
    let Some(world) = World::new("a_claim_reaches_what_its_policy_allows_and_nothing_else") else { return };
    world.peer.ip(&format!("addr add {OTHER_V4}/24 dev far7"));
    world.peer.ip(&format!("addr add {OTHER_V6}/64 dev far7 nodad"));
    // Open to everybody: what does not come through is stopped on the way.
    let _listening =
        world.peer.run(|| [8080, 8081].map(|port| TcpListener::bind(("::", port)).expect("listen")));
    prepare(&world, &policy_and_limits());
    let attacher = world.places.attacher();
    attacher.protect("c7").await;
    let interfaces = attacher.attach(&world.places.sandbox()).await.expect("attach").attached;
    let id = interfaces[0].endpoint.expect("an endpoint");
    assert_policy_in_force(&world, id, "after the attach");
    assert_eq!(entries(&world, "nf_limits"), 5, "new flows and told drops both ways, and the claim's");

    // The daemon is gone: the kernel has the policy.
    drop(attacher);
    assert_policy_in_force(&world, id, "without a daemon");
    let attacher = world.places.attacher();
    let outcome = attacher.recover(&[world.places.sandbox()]).await;
    assert_eq!((outcome.attached, outcome.problems), (interfaces, vec![]));
    assert_policy_in_force(&world, id, "after a restart");
    assert_eq!(entries(&world, "nf_limits"), 5);

    let returned = attacher.give_back("s1").await;
    assert_eq!(returned.problems, []);
    world.assert_home("after the return");
    assert_no_entries(&world, "after the return");

    // Cut off on the way in, with all of it written: another process clears it up.
    attacher.attach(&world.places.sandbox()).await.expect("attach");
    drop(attacher);
    let cut_off = |checkpoint: &mut Checkpoint| {
        checkpoint.interfaces[0].attachment.as_mut().expect("attached").step = Step::Attaching;
    };
    world.places.store().update("c7", cut_off).expect("checkpoint");
    let outcome = world.places.attacher().recover(&[]).await;
    assert_eq!(outcome.problems, []);
    world.assert_home("after a crash");
    assert_no_entries(&world, "after a crash");
}

#[tokio::test]
async fn new_flows_are_limited_without_a_policy_too() {
    let Some(world) = World::new("new_flows_are_limited_without_a_policy_too") else { return };
    prepare(&world, &json!({"limits": {"egress": {"newFlowsPerSecond": 5}}}));
    let attached = world.places.attacher().attach(&world.places.sandbox()).await.expect("attach").attached;
    let id = attached[0].endpoint.expect("an endpoint");
    for peer in [PEER_V4, PEER_V6] {
        let to = SocketAddr::new(peer.parse().expect("an address"), 4000);
        let receiver = world.peer.run(move || UdpSocket::bind(to).expect("bind"));
        receiver.set_read_timeout(Some(Duration::from_millis(400))).expect("timeout");
        let took = world.pod.run(move || {
            let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
            // Bound together: a port that is used again would be a flow that is open.
            let sockets: Vec<_> = (0..100).map(|_| UdpSocket::bind((any, 0)).expect("bind")).collect();
            let start = Instant::now();
            for socket in &sockets {
                let _ = socket.send_to(b"first", to);
            }
            start.elapsed().as_secs_f64()
        });
        let came = std::iter::from_fn(|| receiver.recv(&mut [0; 64]).ok()).take(100).count();
        println!("{peer}: {came} of 100 flows in {took} s");
        // A second's worth at once, and the last may overdraw.
        assert!(
            came > 0 && f64::from(u32::try_from(came).expect("few")) <= 5.0 * (took + 1.0) + 1.0,
            "{came}"
        );
        thread::sleep(Duration::from_secs(1));
    }
    let stats = world.places.datapath().stats(id).expect("stats");
    assert!(stats.drops["flow_limit"] > 0, "{stats:?}");
}

#[tokio::test]
async fn a_failure_on_the_way_leaves_neither_policy_nor_limits() {
    let Some(world) = World::new("a_failure_on_the_way_leaves_neither_policy_nor_limits") else { return };
    prepare(&world, &policy_and_limits());
    let mut failed = Vec::new();
    loop {
        let nth = u32::try_from(failed.len()).expect("few steps");
        let datapath = Arc::new(Interrupted::new(world.places.datapath(), nth));
        let attacher = Attacher::new(
            Arc::new(world.places.links()),
            Arc::new(world.places.namespaces()),
            datapath,
            world.places.store(),
        );
        let Err(error) = attacher.attach(&world.places.sandbox()).await else { break };
        world.assert_home(&error.to_string());
        assert_no_entries(&world, &error.to_string());
        failed.push(error.to_string());
    }
    assert_eq!(
        failed.len(),
        8,
        "foreign programs, endpoints, last endpoint, attach, policy, limits, verify, ready: {failed:?}"
    );
    assert!(failed[4].contains("set_policy") && failed[5].contains("set_limits"), "{failed:?}");
}

#[tokio::test]
async fn a_pod_sends_no_faster_than_its_limit() {
    const BYTES_PER_SECOND: f64 = 1_000_000.0;
    let Some(world) = World::new("a_pod_sends_no_faster_than_its_limit") else { return };
    prepare(&world, &json!({"limits": {"egress": {"bitsPerSecond": 8_000_000}}}));
    let attached = world.places.attacher().attach(&world.places.sandbox()).await.expect("attach").attached;
    for peer in [PEER_V4, PEER_V6] {
        let to = SocketAddr::new(peer.parse().expect("an address"), 4000);
        let receiver = world.peer.run(move || UdpSocket::bind(to).expect("bind"));
        receiver.set_read_timeout(Some(Duration::from_millis(400))).expect("timeout");
        let counted = thread::spawn(move || {
            let (mut data, mut frames) = ([0; 2048], 0_u32);
            while receiver.recv(&mut data).is_ok() {
                frames += 1;
            }
            frames
        });
        let (sent, took) = world.pod.run(move || {
            let sender = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).expect("bind");
            let (start, mut sent) = (Instant::now(), 0_u32);
            while start.elapsed() < Duration::from_secs(1) {
                // A dropped frame is an error of the sender's, and what this is about.
                sent += u32::from(sender.send_to(&[0; 1000], to).is_ok());
                thread::sleep(Duration::from_micros(100));
            }
            (sent, start.elapsed().as_secs_f64())
        });
        // Ethernet, IP and UDP headers count.
        let frame = f64::from(1000 + 8 + 14 + if to.is_ipv4() { 20 } else { 40 });
        let bytes = f64::from(counted.join().expect("the receiver")) * frame;
        println!("{peer}: {sent} frames sent; {:.0} bytes a second came", bytes / took);
        // Its burst is what 200 ms allow; the last frame may overdraw, and the clock is coarse.
        assert!(bytes <= BYTES_PER_SECOND * (took + 0.25), "{peer}: {bytes} bytes in {took} s");
        assert!(bytes >= BYTES_PER_SECOND * took * 0.5, "{peer}: {bytes} bytes in {took} s");
    }
    let id = attached[0].endpoint.expect("an endpoint");
    let stats = world.places.datapath().stats(id).expect("stats");
    assert!(stats.drops["rate_limit"] > 0, "{stats:?}");
}
