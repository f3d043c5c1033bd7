//! Slices that somebody else deletes or edits: the kubelet deletes all of its node's when it starts.

use std::path::Path;

use netferry::cluster::versions::ApiVersion;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::{
    support::{
        self,
        apiserver::{ApiServer, Fault},
        daemon::{ClusterArgs, Daemon, Home},
        netns::may_make_namespaces,
    },
    world::{BINARY, Cable},
};

const READY: &str = r#"netferry_ready{part="slices"} 1"#;
const NOT_READY: &str = r#"netferry_ready{part="slices"} 0"#;

fn has_metric(daemon: &Daemon, line: &str) -> bool {
    let metrics = block_in_place(|| daemon.get("/metrics"));
    metrics.is_ok_and(|(_, text)| text.lines().any(|found| found == line))
}

fn of_pool(server: &ApiServer, pool: &str) -> Vec<Value> {
    let mut slices = server.all("resourceslices");
    slices.retain(|slice| slice["spec"]["pool"]["name"] == pool);
    slices
}

fn delete(server: &ApiServer, slices: &[Value]) {
    for slice in slices {
        server.remove("resourceslices", slice["metadata"]["name"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_that_others_delete_or_edit_come_back_at_once() {
    if !may_make_namespaces() {
        return support::skip("slices deleted by others", "needs root");
    }
    let cable = Cable::new(61);
    let mut home = Home::new();
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    home.cluster = ClusterArgs::Kubeconfig(server.kubeconfig(home.folder()));
    let rule = format!(r#"device.attributes["netferry.dev"].ifName == "{}""#, cable.link);
    home.arguments = vec!["--publish".into(), rule];
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    server.put(json!({
        "apiVersion": "netferry.dev/v1alpha1", "kind": "Network", "metadata": {"name": "blue"},
        "spec": {"subnets": ["10.61.0.0/24"], "transport": {"local": {}}, "namespaceSelector": {}},
    }));
    let daemon = home.start(Path::new(BINARY));
    let whole = |server: &ApiServer, pool: &str, devices: usize| {
        let slices = of_pool(server, pool);
        let published: usize =
            slices.iter().map(|slice| slice["spec"]["devices"].as_array().map_or(0, Vec::len)).sum();
        !slices.is_empty() && published == devices
    };
    // The link and a port of the network; the network's addresses.
    server.until("the node's devices", |server| whole(server, "node-1", 2)).await;
    server.until("readiness", |_| has_metric(&daemon, READY)).await;
    server.until("the network's addresses", |server| !of_pool(server, "networks/blue").is_empty()).await;
    let addresses: usize = of_pool(&server, "networks/blue")
        .iter()
        .map(|slice| slice["spec"]["devices"].as_array().map_or(0, Vec::len))
        .sum();

    // What a kubelet does at its start, while the server takes no new ones for a moment.
    server.fail_next("POST", "/resourceslices", usize::MAX, Fault::Status(503));
    delete(&server, &of_pool(&server, "node-1"));
    server.until("no readiness", |_| has_metric(&daemon, NOT_READY)).await;
    let (code, missing) = block_in_place(|| daemon.get("/readyz")).unwrap();
    assert!(code != 200 && missing.contains("slices"), "{code} {missing}");
    server.heal();
    server.until("the node's devices again", |server| whole(server, "node-1", 2)).await;
    server.until("readiness again", |_| has_metric(&daemon, READY)).await;

    // Without trouble, and several times.
    for _ in 0..3 {
        delete(&server, &of_pool(&server, "node-1"));
        server.until("the node's devices again", |server| whole(server, "node-1", 2)).await;
        server.until("readiness again", |_| has_metric(&daemon, READY)).await;
    }
    // Somebody edits them.
    let mut edited = of_pool(&server, "node-1").remove(0);
    edited["spec"]["devices"].as_array_mut().unwrap().pop();
    server.put(edited);
    server.until("the node's devices as they were", |server| whole(server, "node-1", 2)).await;

    // The elected node's pools.
    delete(&server, &of_pool(&server, "networks/blue"));
    server.until("the network's addresses again", |server| whole(server, "networks/blue", addresses)).await;

    // Nobody lists them again without a reason: the watch alone says what happens.
    let lists = |server: &ApiServer| {
        let asked = server.asked("GET", "/resourceslices");
        asked.into_iter().filter(|request| !request.query.contains_key("watch")).count()
    };
    server.until("readiness", |_| has_metric(&daemon, READY)).await;
    // A link of this machine that comes or goes meanwhile is a reason.
    let mut quiet = false;
    for _ in 0..10 {
        let before = lists(&server);
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        quiet = lists(&server) == before;
        if quiet {
            break;
        }
    }
    assert!(quiet, "the slices are listed again and again");
    assert!(block_in_place(|| daemon.stop()).success());
}
