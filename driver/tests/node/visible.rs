//! What the daemon shows of the datapath, and how it keeps it clean: a stand-in runtime, all else as on a node.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use aya::{
    maps::{HashMap, Map, MapData},
    programs::{
        LinkOrder,
        tc::{SchedClassifier, TcAttachOptions, TcAttachType},
    },
};
use netferry::{
    claim::ClaimRef,
    cluster::versions::ApiVersion,
    datapath::{AyaDatapath, Datapath as _, policy::Policy},
};
use netferry_common::{
    Flow, FlowKey,
    flow::{LOW_SENT, SCOPE_ENDPOINT},
    maps,
};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::{
    support::{
        self,
        apiserver::ApiServer,
        daemon::{ClusterArgs, Daemon, Home},
        kubelet::{DriverHandle, Kubelet},
        netns::NetNs,
        runtime::{Generation, Plugin, PodSandboxSpec, Runtime},
    },
    world::{BINARY, Cable, NAMESPACE},
};

struct Stand {
    daemon: Option<Daemon>,
    plugin: Plugin,
    driver: DriverHandle,
    pod: NetNs,
    number: u8,
    cable: Cable,
    server: ApiServer,
    home: Home,
    _kubelet: Kubelet,
    _runtime: Runtime,
}

impl Stand {
    /// A pod `web` that holds the cable's link as `net1`, with a policy if it is not null.
    async fn start(number: u8, policy: Value) -> Self {
        let cable = Cable::new(number);
        let server = ApiServer::start(&[ApiVersion::V1]).await;
        server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
        let mut home = Home::new();
        home.cluster = ClusterArgs::Kubeconfig(server.kubeconfig(home.folder()));
        let rule = format!(r#"device.attributes["netferry.dev"].ifName == "{}""#, cable.link);
        home.arguments = ["--publish", &rule, "--check-programs", "1"].map(String::from).to_vec();
        let runtime = Runtime::listen(home.nri_socket(), Generation::OwnCalls).unwrap();
        let kubelet = Kubelet::new(&home.kubelet_root());
        let mut daemon = home.start(Path::new(BINARY));
        let plugin = runtime.accept().await.unwrap();
        block_in_place(|| daemon.wait_ready());
        let driver = kubelet.wait_for_driver(netferry::DRIVER_NAME).await;
        let pod = NetNs::new();
        let stand = Self {
            daemon: Some(daemon),
            plugin,
            driver,
            pod,
            number,
            cable,
            server,
            home,
            _kubelet: kubelet,
            _runtime: runtime,
        };
        let claim = stand.claim(policy);
        let outcomes = stand.driver.prepare(std::slice::from_ref(&claim)).await.unwrap();
        assert!(outcomes[&claim.uid].is_ok(), "{outcomes:?}");
        let sandbox = PodSandboxSpec::new(NAMESPACE, "web", "pod-web", Some(&stand.pod.path));
        stand.plugin.start_pod(&sandbox).await.unwrap();
        stand
    }

    fn claim(&self, policy: Value) -> ClaimRef {
        let slices = self.server.all("resourceslices");
        let device = &slices[0]["spec"]["devices"][0]["name"];
        let mut parameters = json!({
            "apiVersion": "netferry.dev/v1alpha1", "kind": "InterfaceConfig", "name": "net1",
            "addresses": [format!("10.78.{}.1/24", self.number)]});
        if !policy.is_null() {
            parameters["policy"] = policy;
        }
        let stored = self.server.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"namespace": NAMESPACE, "name": "web"},
            "spec": {"devices": {"requests": [{"name": "nic", "exactly": {"deviceClassName": "netferry.dev"}}]}},
            "status": {
                "allocation": {"devices": {
                    "results": [
                        {"request": "nic", "driver": "netferry.dev", "pool": "node-1", "device": device}],
                    "config": [{"source": "FromClaim", "requests": ["nic"],
                        "opaque": {"driver": "netferry.dev", "parameters": parameters}}]}},
                "reservedFor": [{"resource": "pods", "name": "web", "uid": "pod-web"}]
            }
        }));
        let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
        ClaimRef { namespace: NAMESPACE.into(), name: "web".into(), uid }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(words).arg("--bpffs").arg(self.home.bpffs());
        command.arg("--state-dir").arg(self.home.state_dir());
        command
    }

    fn json(&self, words: &[&str]) -> Value {
        let out = self.command(words).args(["-o", "json"]).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    fn datapath(&self) -> AyaDatapath {
        AyaDatapath::open(&self.home.bpffs().join("v1")).unwrap()
    }

    fn endpoint(&self) -> u32 {
        let pods = self.json(&["pods"]);
        u32::try_from(pods[0]["endpoint"].as_u64().unwrap_or_else(|| panic!("{pods}"))).unwrap()
    }

    fn set_policy(&self, text: &str) {
        let datapath = self.datapath();
        let policy: Policy = serde_yaml_ng::from_str(text).unwrap();
        datapath.set_policy(self.endpoint(), &policy).unwrap();
    }

    /// As a frame a minute ago would have left it.
    fn add_a_flow_that_is_over(&self) {
        let map = MapData::from_pin(self.home.bpffs().join("v1/maps").join(maps::FLOWS)).unwrap();
        let mut flows = HashMap::<_, FlowKey, Flow>::try_from(Map::LruHashMap(map)).unwrap();
        let key = FlowKey { scope: SCOPE_ENDPOINT | self.endpoint(), protocol: 17, ..FlowKey::default() };
        flows.insert(key, Flow { state: LOW_SENT, seen: 1, ..Flow::default() }, 0).unwrap();
    }

    /// How many readers of flow events were too slow so far.
    fn readers_dropped(&self) -> u64 {
        let (_, text) = block_in_place(|| self.daemon.as_ref().unwrap().get("/metrics")).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix("netferry_flow_readers_dropped_total "));
        value.unwrap_or_else(|| panic!("no such metric in {text}")).parse().unwrap()
    }

    async fn until_metric(&self, wanted: &str) {
        let start = Instant::now();
        loop {
            let (_, text) = block_in_place(|| self.daemon.as_ref().unwrap().get("/metrics")).unwrap();
            if text.contains(wanted) {
                return;
            }
            assert!(start.elapsed() < Duration::from_mins(1), "no {wanted} in {text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn until_event(&self, kind: &str, reason: &str, note: &str) {
        let is = |server: &ApiServer| {
            server.all("events").iter().any(|event| {
                event["reason"] == reason
                    && event["type"] == "Warning"
                    && event["regarding"]["kind"] == kind
                    && event["note"].as_str().is_some_and(|text| text.contains(note))
            })
        };
        self.server.until(&format!("Event {reason} on a {kind}: {note}"), is).await;
    }
}

/// `netferry flows --follow`, killed when dropped.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Follower {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (to, lines) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Self { child, lines }
    }

    /// The first line that has all of these words.
    fn until(&self, words: &[&str]) -> String {
        self.until_while(words, || {})
    }

    /// The same, with the event caused again each second: whoever connects late has missed the first.
    fn until_while(&self, words: &[&str], cause: impl Fn()) -> String {
        let mut seen = Vec::new();
        let start = Instant::now();
        while start.elapsed() < Duration::from_mins(1) {
            cause();
            while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
                if words.iter().all(|word| line.contains(word)) {
                    return line;
                }
                seen.push(line);
            }
        }
        panic!("no line with {words:?} in {seen:#?}");
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn able(test: &str) -> bool {
    if !support::netns::may_make_namespaces() {
        support::skip(test, "needs root");
        return false;
    }
    true
}

#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
#[tokio::test(flavor = "multi_thread")]
async fn flows_and_drops_are_told_as_they_happen() {
    if !able("flows_and_drops_are_told_as_they_happen") {
        return;
    }
    let mut stand = Stand::start(8, Value::Null).await;
    let socket = stand.home.state_dir().join("flows.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let follow = ["flows", "--follow"];
    let json = Follower::start({
        let mut command = stand.command(&follow);
        command.args(["--pod", "team-a/web", "-o", "json"]);
        command
    });
    let other = Follower::start({
        let mut command = stand.command(&follow);
        command.args(["--pod", "team-a/other", "-o", "json"]);
        command
    });
    let drops = Follower::start({
        let mut command = stand.command(&follow);
        command.arg("--drops");
        command
    });
    drops.until(&["TIME", "REASON"]);

    let (pod, far) = (&stand.pod, "10.78.8.2");
    pod.ip("address add 10.78.8.66/24 dev net1");
    let forge = || drop(pod.try_exec(&format!("ping -q -c 1 -W 1 -I 10.78.8.66 {far}")));
    // A follower is there when it has its connection; the table's header comes after it, JSON has none.
    let line = json.until_while(&[r#""kind":"deny""#, r#""direction":"from_pod""#], forge);
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["pod"], json!({"namespace": "team-a", "name": "web", "uid": "pod-web"}), "{event}");
    assert_eq!(event["interface"], "net1");
    assert!(event["reason"] == "arp_sender" || event["reason"] == "source_ipv4", "{event}");
    drops.until(&["team-a/web", "net1", "from_pod", "deny"]);
    pod.ip("address del 10.78.8.66/24 dev net1");

    // The wire of a link without policy is not tracked. With one, flows open.
    assert_eq!(stand.json(&follow[..1]), json!([]));
    let explain = |port: &str, from: &str| {
        stand.json(&["policy", "explain", "--from", from, "--to", far, "--port", port])
    };
    let said = explain("tcp/80", "team-a/web");
    assert_eq!((said.as_array().unwrap().len(), &said[0]["denied"]), (1, &Value::Null), "{said}");
    stand.set_policy(&format!(
        "{{ingress: {{rules: [{{action: allow, ports: [{{protocol: TCP, port: 4000}}]}}]}}, egress: {{rules: [{{action: allow, peers: [{{cidr: {far}/32}}], \
         ports: [{{protocol: ICMP}}]}}]}}}}"
    ));
    pod.exec(&format!("ping -q -c 1 -W 1 {far}"));
    let line = json.until(&[r#""kind":"open""#]);
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&event["destination"], &event["protocol"], &event["rule"]),
        (&json!(far), &json!(1), &json!(2))
    );
    let flows = stand.json(&["flows", "--pod", "team-a/web"]);
    assert_eq!(flows.as_array().unwrap().len(), 1, "{flows}");
    assert_eq!(flows[0]["holders"][0]["interface"], "net1");
    assert_eq!((&flows[0]["responder"][0], &flows[0]["answered"]), (&json!(far), &json!(true)));
    assert_eq!(stand.json(&["flows", "--pod", "team-a/other"]), json!([]));
    let table = String::from_utf8(stand.command(&["flows"]).output().unwrap().stdout).unwrap();
    assert!(
        ["team-a/web", "net1", "icmp", far, "answered"].iter().all(|word| table.contains(word)),
        "{table}"
    );
    let said = explain("tcp/80", "team-a/web");
    assert_eq!(
        (&said[0]["interface"], &said[0]["denied"]),
        (&json!("net1"), &json!("policy_default")),
        "{said}"
    );
    let said = explain("icmp/8/0", "team-a/web");
    assert_eq!((&said[0]["rule"], &said[0]["denied"]), (&json!(2), &Value::Null), "{said}");
    let refused =
        stand.command(&["policy", "explain", "--from", "team-a/x", "--to", far, "--port", "tcp/1"]).output();
    assert!(String::from_utf8_lossy(&refused.unwrap().stderr).contains("holds no interface"));

    stand.add_a_flow_that_is_over();

    // One who does not read is dropped, however many events it takes: new flows are all reported, of drops only some.
    let mut idle = UnixStream::connect(&socket).unwrap();
    let start = Instant::now();
    while stand.readers_dropped() == 0 {
        assert!(start.elapsed() < Duration::from_mins(2), "a reader that does not read is still there");
        stand.cable.far.run(|| {
            let socket = std::net::UdpSocket::bind("10.78.8.2:4000").unwrap();
            let to = "10.78.8.1:4000".parse().unwrap();
            for nth in 0..1024 {
                let _ = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1));
                if nth % 64 == 63 {
                    let _ = socket.send_to(b"dropped", to);
                }
            }
        });
    }
    idle.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut rest = String::new();
    // It ends, with what was written to it before.
    idle.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("policy_default"));
    // On a busy machine the others may have been too slow as well: the next readers begin now.
    let json = Follower::start({
        let mut command = stand.command(&follow);
        command.args(["--pod", "team-a/web", "-o", "json"]);
        command
    });
    let drops = Follower::start({
        let mut command = stand.command(&follow);
        command.arg("--drops");
        command
    });
    drops.until(&["TIME", "REASON"]);
    let ping = || stand.cable.far.try_exec("ping -q -c 1 -W 1 10.78.8.1");
    drops.until_while(&["to_pod", "deny", "icmp", "policy_default"], || drop(ping()));
    json.until_while(&["policy_default", r#""protocol":1"#], || drop(ping()));
    let metric = r#"netferry_flow_events_total{kind="deny",direction="to_pod",reason="policy_default"}"#;
    stand.until_metric(metric).await;
    stand.until_metric("netferry_flow_events_lost_total ").await;
    stand.until_metric("netferry_flows_cleaned_total 1\n").await;
    let flows = stand.json(&["flows"]);
    assert!(flows.as_array().unwrap().iter().all(|flow| flow["protocol"] != 17), "{flows}");
    assert!(other.lines.try_recv().is_err(), "another pod's events were told");

    assert!(block_in_place(|| stand.daemon.take().unwrap().stop()).success());
    let out = stand.command(&follow).output().unwrap();
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && why.contains("cannot reach the daemon"), "{why}");
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_drifted_are_put_right_or_the_link_is_taken_out() {
    if !able("programs_that_drifted_are_put_right_or_the_link_is_taken_out") {
        return;
    }
    let policy = json!({"egress": {"rules": [
        {"action": "allow", "peers": [{"cidr": "10.78.9.2/32"}], "ports": [{"protocol": "ICMP"}]}]}});
    let stand = Stand::start(9, policy.clone()).await;
    let shown = stand.json(&["policy", "show", "team-a/web"]);
    assert_eq!(
        (&shown[0]["interface"], &shown[0]["policy"]["egress"]["rules"]),
        (&json!("net1"), &policy["egress"]["rules"])
    );
    let explain = ["policy", "explain", "--from", "team-a/web", "--to", "10.78.9.2", "--port", "icmp/8/0"];
    let said = stand.json(&explain);
    assert_eq!(
        (&said[0]["ruleName"], &said[0]["denied"]),
        (&json!("egress.rules[0]"), &Value::Null),
        "{said}"
    );
    let table = stand.command(&["policy", "show", "team-a/web"]).output().unwrap().stdout;
    let table = String::from_utf8(table).unwrap();
    assert!(table.contains("egress.rules[0]") && table.contains("10.78.9.2/32"), "{table}");
    let id = stand.endpoint();
    let index = stand.pod.ifindex("net1");
    let datapath = Arc::new(stand.datapath());
    let verify = |stand: &Stand| {
        let datapath = Arc::clone(&datapath);
        stand.pod.run(move || datapath.verify_inside(id, index).map_err(|error| error.to_string()))
    };
    let ours = verify(&stand).unwrap();

    // Any program will do for somebody else's: the one that runs here, under another pin.
    let theirs = stand.home.bpffs().join("theirs");
    let pinned =
        Command::new("bpftool").args(["prog", "pin", "id", &ours[1].id.to_string()]).arg(&theirs).status();
    assert!(pinned.unwrap().success());
    let pin = theirs.clone();
    let (program, link) = stand.pod.run(move || {
        let mut program = SchedClassifier::from_pin(&pin).unwrap();
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program.attach_with_options("net1", TcAttachType::Ingress, first).unwrap();
        (program, link)
    });
    stand.until_event("ResourceClaim", "ProgramsDrifted", "first again").await;
    stand.until_event("Pod", "ProgramsDrifted", "net1").await;
    stand.until_metric(r#"netferry_programs_drifted_total{result="ok"} 1"#).await;
    let again = verify(&stand).unwrap();
    assert_ne!(again[0].id, ours[0].id);
    // It is told once: what comes after ours is nobody's business.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    stand.until_metric(r#"netferry_programs_drifted_total{result="ok"} 1"#).await;
    drop((program, link));
    stand.pod.exec("ping -q -c 1 -W 1 10.78.9.2");

    // Without its pins a program is detached: there is nothing to put first.
    for program in &again {
        std::fs::remove_file(&program.pin).unwrap();
    }
    stand.until_event("ResourceClaim", "ProgramsDrifted", "could not be put right").await;
    stand.until_metric(r#"netferry_programs_drifted_total{result="error"} 1"#).await;
    // It is taken out of the pod, and goes in again whole, with programs of its own.
    let attached_anew = |_: &ApiServer| {
        let pods = stand.json(&["pods"]);
        pods[0]["step"] == "attached" && pods[0]["endpoint"] != json!(id)
    };
    stand.server.until("the link in the pod with other programs", attached_anew).await;
    stand.pod.exec("ping -q -c 1 -W 1 10.78.9.2");
}
