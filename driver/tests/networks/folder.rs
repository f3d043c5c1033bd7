//! Networks of a folder: from a YAML file to an allocated port.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use futures::StreamExt as _;
use netferry::{
    DRIVER_NAME,
    cluster::{Cluster, pools::Pools, standalone::Standalone},
    device::{Inventory, rule::Rule},
    network::{
        Network, Networks,
        block_pools::BlockPools,
        facts::Seen,
        identity::Identities,
        offer::Offers,
        published::{PublishedSlices, whole_slice},
        validate,
        watch::NetworkWatch,
    },
    publish::publisher::{PublishStats, Publisher},
};
use tokio_util::sync::CancellationToken;

const BLUE: &str = "
apiVersion: netferry.dev/v1alpha1
kind: Network
metadata: {name: blue}
spec:
  subnets: [10.1.0.0/16]
  transport: {local: {}}
  namespaceSelector: {matchLabels: {team: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: netferry-network-blue}
spec:
  selectors: [{cel: {expression: \"device.attributes['netferry.dev'].network == 'blue'\"}}]
";

fn claim(name: &str) -> String {
    format!(
        "
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {{name: {name}, namespace: shop}}
spec:
  devices:
    requests: [{{name: port, exactly: {{deviceClassName: netferry-network-blue}}}}]
"
    )
}

fn open(dir: &Path) -> Arc<Standalone> {
    Arc::new(Standalone::open(dir, DRIVER_NAME, "node-1").expect("open"))
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1200 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not within 30 s: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_file_to_allocated_ports() {
    let (dir, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let file = dir.path().join("objects.yaml");
    fs::write(&file, format!("{BLUE}{}{}", claim("a"), claim("b"))).expect("objects");
    let cluster = open(dir.path());
    assert_eq!(cluster.problems(), [""; 0]);
    let networks = Arc::new(Networks::default());
    let stop = CancellationToken::new();
    let watch = NetworkWatch {
        addresses: tokio::sync::watch::channel(BTreeMap::new()).1,
        cluster: Arc::clone(&cluster) as Arc<dyn Cluster>,
        networks: Arc::clone(&networks),
        identities: Identities::open(&state.path().join("networks.json")).expect("numbers"),
        held: Box::new(|_| false),
        counts: Box::new(|_| Some((1, 2))),
        spread: Duration::ZERO,
    };
    let task = tokio::spawn(watch.run(stop.clone()));
    eventually("blue is known", || networks.get("blue").is_some()).await;

    let rule = Arc::new(Rule::standard(DRIVER_NAME, false).expect("a rule"));
    let mut publisher =
        Publisher::new(Arc::clone(&cluster) as Arc<dyn Cluster>, rule, Arc::new(PublishStats::default()))
            .with_networks(Arc::clone(&networks));
    publisher.sync(&Inventory::default()).await.expect("published");
    let mut shares = BTreeMap::new();
    for name in ["a", "b"] {
        let claim = cluster.claim("shop", name).await.expect("allocated");
        let devices = claim.status.and_then(|status| status.allocation).and_then(|given| given.devices);
        let result = devices.and_then(|devices| devices.results).expect("results").remove(0);
        assert_eq!((result.pool.as_str(), result.device.as_str()), ("node-1", "port-blue"));
        shares.insert(result.share_id.expect("a share"), name);
    }
    assert_eq!(shares.len(), 2, "each claim has its own");

    let status = dir.path().join("status/_networks/blue.yaml");
    let says = |words: &str| fs::read_to_string(&status).is_ok_and(|text| text.contains(words));
    eventually("the status says so", || says("reason: Published")).await;
    // At the next tick.
    eventually("the counts are there", || says("nodes: 1") && says("members: 2")).await;
    assert!(says("reason: Published"), "the conditions stay");
    let labels = cluster.namespace_labels("shop").await.expect("labels");
    assert_eq!(labels.get("team").map(String::as_str), Some("shop"));
    let labels = cluster.namespace_labels("other").await.expect("a namespace without a document");
    assert_eq!(labels, BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), "other".to_owned())]));

    let (_, inventory) = tokio::sync::watch::channel(Arc::new(Inventory::default()));
    let cluster_too = Arc::clone(&cluster) as Arc<dyn Cluster>;
    let driver = DRIVER_NAME.to_owned();
    let offers = Offers {
        networks: Arc::clone(&networks),
        cluster: cluster_too,
        inventory,
        members: crate::no_members(),
        demand: None,
        driver,
    };
    let offer = offers.of("blue", "shop").await.expect("known");
    assert_eq!((offer.refused, offer.mtu), (None, 1500));
    let refused = offers.of("blue", "other").await.expect("known").refused.expect("no such label");
    assert!(refused.contains("namespace \"other\" has no label team"), "{refused}");
    assert!(offers.of("red", "shop").await.is_none());

    // An edit that is not allowed is told, and changes nothing.
    let text = fs::read_to_string(&file).expect("objects");
    fs::write(&file, text.replace("10.1.0.0/16", "10.2.0.0/16")).expect("edit");
    eventually("refused", || says("reason: Invalid") && says("spec.subnets")).await;
    let blue = networks.get("blue").expect("still known");
    assert_eq!(blue.spec.subnets[0].to_string(), "10.1.0.0/16");
    let events = fs::read_to_string(dir.path().join("events.yaml")).expect("events");
    assert!(events.contains("NetworkNotAccepted"), "{events}");
    fs::remove_file(&file).expect("remove");
    eventually("blue is gone", || networks.get("blue").is_none()).await;
    stop.cancel();
    task.await.expect("ends in order");
}

#[tokio::test]
async fn a_claim_has_an_address_of_its_node_s_block() {
    let dir = tempfile::tempdir().expect("a folder");
    let both = "
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: both, namespace: shop}
spec:
  devices:
    requests:
      - {name: port, exactly: {deviceClassName: netferry-network-blue, selectors: [{cel: {expression: \"device.attributes['netferry.dev'].type == 'port'\"}}]}}
      - {name: address, exactly: {deviceClassName: netferry-network-blue, selectors: [{cel: {expression: \"device.attributes['netferry.dev'].type == 'address'\"}}]}}
    constraints: [{requests: [port, address], matchAttribute: netferry.dev/network}]
";
    let blue = BLUE.replace("  transport:", "  addresses: blocks\n  transport:");
    fs::write(dir.path().join("objects.yaml"), format!("{blue}{both}")).expect("objects");
    let cluster = open(dir.path());
    assert_eq!(cluster.problems(), [""; 0]);
    let declared = cluster.networks().next().await.expect("a set").expect("read").remove(0);
    let spec = validate::parse(&declared.spec).expect("a spec");
    let network = Network { reference: declared.reference, id: 1, spec };
    let networks = Arc::new(Networks::default());
    networks.replace([network]);
    let rule = Arc::new(Rule::standard(DRIVER_NAME, false).expect("a rule"));
    let stats = Arc::new(PublishStats::default());
    let mut publisher = Publisher::new(Arc::clone(&cluster) as Arc<dyn Cluster>, rule, Arc::clone(&stats))
        .with_networks(Arc::clone(&networks));
    publisher.sync(&Inventory::default()).await.expect("published");

    let (writes, lists) = (Arc::clone(&cluster) as Arc<dyn Cluster>, Arc::clone(&cluster) as Arc<dyn Pools>);
    let mut blocks = BlockPools::new(writes, lists, DRIVER_NAME, stats);
    let mut seen = PublishedSlices::default();
    seen.apply(Seen::Listing);
    for slice in cluster.slices().await.expect("slices") {
        seen.apply(Seen::Is(whole_slice(&slice)));
    }
    seen.apply(Seen::Listed);
    let now = std::time::Instant::now();
    let round = blocks.round(&networks.list(), &seen, &BTreeMap::new(), now, &|| true).await;
    assert!(round.failed.is_none(), "{:?}", round.failed);

    let claim = cluster.claim("shop", "both").await.expect("allocated");
    let devices = claim.status.and_then(|status| status.allocation).and_then(|given| given.devices);
    let results = devices.and_then(|devices| devices.results).expect("results");
    let results: Vec<_> = results.iter().map(|it| (it.pool.as_str(), it.device.as_str())).collect();
    assert_eq!(results, [("node-1", "port-blue"), ("networks/blue/node-1", "ip-10-1-0-1")]);
    // The node's own publisher has nothing to do with its blocks.
    let before = cluster.slices().await.expect("slices");
    publisher.sync(&Inventory::default()).await.expect("published");
    assert_eq!((before.len(), cluster.slices().await.expect("slices")), (2, before));
}

#[tokio::test]
async fn each_change_of_the_folder_is_one_set() {
    let dir = tempfile::tempdir().expect("a folder");
    let cluster = open(dir.path());
    let mut stream = cluster.networks();
    assert_eq!(stream.next().await.expect("a set").expect("read"), []);
    fs::write(dir.path().join("blue.yaml"), BLUE).expect("write");
    let set = stream.next().await.expect("a set").expect("read");
    assert_eq!(set.len(), 1);
    assert_eq!((set[0].reference.name.as_str(), set[0].reference.uid.len()), ("blue", 36));
    // Twice in the folder: the second is a problem, and hides nothing.
    fs::write(dir.path().join("more.yaml"), format!("{BLUE}{}", claim("a"))).expect("write");
    let problems = cluster.problems();
    assert!(
        problems.iter().any(|problem| problem.contains("Network blue is in the folder twice")),
        "{problems:?}"
    );
    fs::write(dir.path().join("typo.yaml"), BLUE.replace("spec:\n  subnets", "spec2:\n  subnets"))
        .expect("write");
    let problems = cluster.problems();
    assert!(problems.iter().any(|problem| problem.contains("spec2: unknown field")), "{problems:?}");
    let error = cluster.claim("shop", "none").await.expect_err("there is none").to_string();
    assert!(!error.contains("spec2"), "a broken network hides no claim: {error}");
}
