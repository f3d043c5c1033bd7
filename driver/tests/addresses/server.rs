//! Watches, Leases and pools of an API server, over HTTP, against a server that lists in pages and ends watches.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::StreamExt as _;
use netferry::{
    DRIVER_NAME,
    cluster::{ClusterError, kube::KubeCluster, lease::Leases, pools::Pools, watch::Watch},
    network::{
        facts::Seen,
        leader::{Candidate, Step, Timing},
        published::{SliceFacts, SliceOf},
        scope::Scope,
    },
};
use serde_json::{Value, json};

fn answer(code: StatusCode, body: &Value) -> Response {
    (code, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// Parameters as they stand in the URI; nothing in them that matters here is escaped but `=` and `,`.
fn parameters(uri: &Uri) -> HashMap<String, String> {
    let plain = |text: &str| text.replace("%3D", "=").replace("%2C", ",");
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), plain(value))).collect()
}

#[derive(Default)]
struct Content {
    /// Objects by plural.
    objects: BTreeMap<&'static str, Vec<Value>>,
    /// What each next watch says before it ends; without more it stays open.
    watches: BTreeMap<&'static str, VecDeque<Vec<Value>>>,
    lease: Option<Value>,
    asked: Vec<String>,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Content>>);

impl Server {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("content")
    }

    fn list(&self, plural: &'static str, query: &HashMap<String, String>) -> Response {
        let mut content = self.content();
        content.asked.push(format!("{plural} {query:?}"));
        if query.contains_key("watch") {
            let said = content.watches.get_mut(plural).and_then(VecDeque::pop_front);
            let open = said.is_none();
            let lines: Vec<Result<String, std::io::Error>> =
                said.unwrap_or_default().into_iter().map(|event| Ok(format!("{event}\n"))).collect();
            let lines = futures::stream::iter(lines);
            let body = if open {
                Body::from_stream(lines.chain(futures::stream::pending()))
            } else {
                Body::from_stream(lines)
            };
            return body.into_response();
        }
        let all = content.objects.get(plural).cloned().unwrap_or_default();
        let start: usize = query.get("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
        let page: Vec<_> = all.iter().skip(start).take(2).cloned().collect();
        let next = start + page.len();
        let token = if next < all.len() { next.to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": "7", "continue": token});
        answer(
            StatusCode::OK,
            &json!({"kind": "List", "apiVersion": "v1", "items": page, "metadata": metadata}),
        )
    }

    /// Create, or replace what has the resource version that was sent.
    fn write_lease(&self, mut sent: Value) -> Response {
        let mut content = self.content();
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
        let stored = content.lease.as_ref().map_or(Value::Null, version);
        if version(&sent) != stored {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "reason": "Conflict", "message": "the object has been modified", "code": 409});
            return answer(StatusCode::CONFLICT, &status);
        }
        let next = stored.as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1;
        sent["metadata"]["resourceVersion"] = next.to_string().into();
        content.lease = Some(sent.clone());
        answer(StatusCode::OK, &sent)
    }

    async fn start(self, version: &'static str) -> Arc<KubeCluster> {
        let groups = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": "resource.k8s.io",
            "versions": [{"groupVersion": format!("resource.k8s.io/{version}"), "version": version}],
            "preferredVersion": {"groupVersion": format!("resource.k8s.io/{version}"), "version": version}}]});
        let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
        let get_lease = |State(server): State<Self>, Path(name): Path<String>| async move {
            let lease =
                server.content().lease.clone().filter(|lease| lease["metadata"]["name"] == name.as_str());
            let missing = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "reason": "NotFound", "message": "not found", "code": 404});
            lease.map_or_else(
                || answer(StatusCode::NOT_FOUND, &missing),
                |lease| answer(StatusCode::OK, &lease),
            )
        };
        let write = |State(server): State<Self>, body: Bytes| async move {
            server.write_lease(serde_json::from_slice(&body).expect("JSON"))
        };
        let listed = |plural: &'static str| {
            get(
                move |State(server): State<Self>, uri: Uri| async move { server.list(plural, &parameters(&uri)) },
            )
        };
        let group = format!("/apis/resource.k8s.io/{version}");
        let router = Router::new()
            .route("/apis", get(|| async move { answer(StatusCode::OK, &groups) }))
            .route(&format!("{group}/resourceclaims"), listed("resourceclaims"))
            .route(&format!("{group}/resourceslices"), listed("resourceslices"))
            .route(leases, axum::routing::post(write))
            .route(&format!("{leases}/{{name}}"), get(get_lease).put(write))
            .with_state(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
        let config = kube::Config::new(format!("http://{address}").parse().expect("a URL"));
        Arc::new(KubeCluster::with_config(config, DRIVER_NAME, "n0").expect("a cluster"))
    }
}

fn claim(number: u32, allocated: bool) -> Value {
    let results = json!([{"request": "ip", "driver": DRIVER_NAME, "pool": "networks/blue",
        "device": format!("ip-10-0-0-{number}")}]);
    let status = if allocated { json!({"allocation": {"devices": {"results": results}}}) } else { json!({}) };
    json!({"metadata": {"namespace": "a", "name": format!("c{number}"), "uid": format!("u{number}"),
            "resourceVersion": number.to_string(), "managedFields": [{"manager": "x", "fieldsV1": {"f:a": {}}}]},
        // Requests look otherwise in each version of the API; nobody here reads them.
        "spec": {"devices": {"requests": [{"name": "ip", "deviceClassName": "x"}]}}, "status": status})
}

fn event(kind: &str, mut object: Value, of: &str, api_version: &str) -> Value {
    object["kind"] = of.into();
    object["apiVersion"] = api_version.into();
    json!({"type": kind, "object": object})
}

async fn next<T>(stream: &mut (impl futures::Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(Duration::from_secs(30), stream.next())
        .await
        .expect("within 30 s")
        .expect("an event")
}

#[tokio::test]
async fn claims_are_listed_watched_and_listed_again() {
    for version in ["v1", "v1beta2", "v1beta1"] {
        let server = Server::default();
        let api_version = format!("resource.k8s.io/{version}");
        let of = |kind, object| event(kind, object, "ResourceClaim", &api_version);
        let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "reason": "Expired", "message": "too old resource version", "code": 410}});
        server
            .content()
            .objects
            .insert("resourceclaims", vec![claim(2, true), claim(3, true), claim(4, false)]);
        server.content().watches.insert(
            "resourceclaims",
            VecDeque::from([vec![of("MODIFIED", claim(4, true)), of("DELETED", claim(2, true)), gone]]),
        );
        let mut claims = server.clone().start(version).await.claims(&Scope::Cluster);
        assert_eq!(next(&mut claims).await, Seen::Listing);
        for (number, addresses) in [(2, 1), (3, 1), (4, 0)] {
            let Seen::Is(facts) = next(&mut claims).await else { panic!("{version}: no claim") };
            assert_eq!((facts.uid, facts.addresses.len()), (format!("u{number}"), addresses), "{version}");
        }
        assert_eq!(next(&mut claims).await, Seen::Listed);
        let Seen::Is(facts) = next(&mut claims).await else { panic!("{version}: no change") };
        let address = "10.0.0.4".parse().expect("an address");
        assert_eq!(facts.addresses, [("blue".to_owned(), address)]);
        assert_eq!(next(&mut claims).await, Seen::Gone("u2".to_owned()));
        // The server has forgotten where the watch was.
        server.content().objects.insert("resourceclaims", vec![claim(3, true)]);
        assert_eq!(next(&mut claims).await, Seen::Listing);
        assert!(matches!(next(&mut claims).await, Seen::Is(facts) if facts.uid == "u3"));
        assert_eq!(next(&mut claims).await, Seen::Listed);
    }
}

#[tokio::test]
async fn slices_of_this_driver_are_watched_in_every_version() {
    for version in ["v1", "v1beta2", "v1beta1"] {
        let server = Server::default();
        let slice = |name: &str, node: &str, pool: &str, device: &str| {
            // What is beside a device's name differs by version.
            json!({"metadata": {"name": name, "resourceVersion": "1"}, "spec": {"driver": DRIVER_NAME, "nodeName": node,
                "pool": {"name": pool, "generation": 4, "resourceSliceCount": 1},
                "devices": [{"name": device, "basic": {}}]}})
        };
        let ports = slice("a", "n1", "n1", "port-blue");
        let blocks = slice("b", "n1", "networks/blue/n1", "ip-10-0-0-7");
        server.content().objects.insert("resourceslices", vec![ports, blocks.clone()]);
        let gone = event("DELETED", blocks, "ResourceSlice", &format!("resource.k8s.io/{version}"));
        server.content().watches.insert("resourceslices", VecDeque::from([vec![gone]]));
        let mut slices = server.clone().start(version).await.slices();
        assert_eq!(next(&mut slices).await, Seen::Listing);
        let of = SliceOf::Node { node: "n1".into(), ports: ["blue".to_owned()].into() };
        assert_eq!(next(&mut slices).await, Seen::Is(SliceFacts { name: "a".to_owned(), of }), "{version}");
        let addresses = vec!["10.0.0.7".parse().expect("an address")];
        let of = SliceOf::Blocks { network: "blue".to_owned(), node: "n1".into(), addresses, pool: (4, 1) };
        assert_eq!(next(&mut slices).await, Seen::Is(SliceFacts { name: "b".to_owned(), of }), "{version}");
        assert_eq!(next(&mut slices).await, Seen::Listed);
        assert_eq!(next(&mut slices).await, Seen::Gone("b".to_owned()));
        let asked = server.content().asked.join("\n");
        assert!(asked.lines().all(|line| line.contains("spec.driver=netferry.dev")), "{asked}");
    }
}

#[tokio::test]
async fn a_lease_is_created_renewed_and_never_taken_by_an_old_write() {
    let server = Server::default();
    let cluster = server.clone().start("v1").await;
    assert_eq!(cluster.lease("l").await.expect("an answer"), None);
    let mut candidate = Candidate::new("l", "n0", Timing::default());
    let look = |candidate: &mut Candidate, lease: Option<&_>| {
        let step = candidate.look(lease, std::time::Instant::now(), jiff::Timestamp::now());
        let Step::Write(lease) = step else { panic!("it is free") };
        *lease
    };
    let first = cluster.write_lease(&look(&mut candidate, None)).await.expect("created");
    let read = cluster.lease("l").await.expect("an answer");
    assert_eq!(read.as_ref(), Some(&first));
    let renewed = cluster.write_lease(&look(&mut candidate, read.as_ref())).await.expect("renewed");
    assert_ne!(renewed.metadata.resource_version, first.metadata.resource_version);
    assert!(matches!(cluster.write_lease(&first).await, Err(ClusterError::Conflict { .. })));
}

#[tokio::test]
async fn pools_of_no_node_are_selected() {
    let server = Server::default();
    let slice = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"driver": DRIVER_NAME, "allNodes": true,
            "pool": {"name": "networks/blue", "generation": 1, "resourceSliceCount": 3}}})
    };
    server.content().objects.insert("resourceslices", ["a", "b", "c"].map(slice).to_vec());
    let cluster = server.clone().start("v1").await;
    let slices = cluster.pool_slices().await.expect("slices");
    assert_eq!(slices.len(), 3, "all pages");
    let asked = server.content().asked.join("\n");
    assert!(asked.contains("spec.driver=netferry.dev,spec.nodeName="), "{asked}");
    assert!(!asked.contains("nodeName=n0"), "{asked}");
    server.content().asked.clear();
    cluster.slices_of_node("n7").await.expect("slices");
    let asked = server.content().asked.join("\n");
    assert!(asked.contains("spec.driver=netferry.dev,spec.nodeName=n7"), "{asked}");
}
