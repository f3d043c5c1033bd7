//! What blocks of addresses cost: the API servers in bytes, and the elected node in memory and time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use k8s_openapi::api::resource::v1::{ResourceSlice, ResourceSliceSpec};
use netferry::{
    DRIVER_NAME,
    device::Inventory,
    network::{
        addresses,
        block_pools::uses,
        blocks::{
            Uses,
            ledger::{Ledger, Pace},
            slices::{Place, slices},
        },
        facts::Seen,
        members::MemberTable,
        names::block_pool,
        published::{PublishedSlices, whole_slice},
        spec::AddressSource,
    },
    publish::{ports::ports, slices::slices_of},
};
use serde_json::json;

use crate::{
    CLAIMS, NODES, bytes, declared, event,
    objects::{network_name, node_name},
    read_claim, resident, size,
};

/// Networks with ports on a node, as its own slices have them.
const NETWORKS: u32 = 20;

/// A slice as an API server sends it.
fn object(number: u32, spec: &ResourceSliceSpec, owner: &str) -> serde_json::Value {
    let node = spec.node_name.as_deref().unwrap_or_default();
    json!({"kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1",
        "metadata": {"name": format!("00000-{DRIVER_NAME}-{node}-{number:05x}"),
            "generateName": format!("00000-{DRIVER_NAME}-{node}-"),
            "uid": format!("7c2b1a90-5d3e-4f68-9b21-{number:012x}"), "resourceVersion": "700000001", "generation": 1,
            "creationTimestamp": "2026-11-01T08:15:42Z",
            "ownerReferences": [{"apiVersion": "netferry.dev/v1alpha1", "kind": owner, "name": network_name(0),
                "uid": "2b1a7c1d-93e4-4f52-8d21-000000000001", "controller": true}],
            "managedFields": [{"manager": DRIVER_NAME, "operation": "Update", "apiVersion": "resource.k8s.io/v1",
                "time": "2026-11-01T08:15:42Z", "fieldsType": "FieldsV1", "fieldsV1": {
                    "f:metadata": {"f:generateName": {}, "f:ownerReferences": {".": {},
                        "k:{\"uid\":\"2b1a7c1d-93e4-4f52-8d21-000000000001\"}": {}}},
                    "f:spec": {"f:devices": {}, "f:driver": {}, "f:nodeName": {}, "f:pool": {"f:generation": {},
                        "f:name": {}, "f:resourceSliceCount": {}}}}}]},
        "spec": spec})
}

/// One network of both families, whose nodes have a block of each; the claims of the whole cluster are on it.
pub(crate) fn simulate() {
    let mut network = (*declared(1)[0]).clone();
    network.spec.addresses = AddressSource::Blocks;
    network.spec.subnets.push("fd00::/64".parse().expect("a prefix"));
    let network = Arc::new(network);
    let name = network.reference.name.as_str();
    let subnets = addresses::subnets(&network.spec);
    let nodes: BTreeSet<Arc<str>> = (0..NODES).map(|node| node_name(node).into()).collect();
    let start = Instant::now();
    let mut ledger = Ledger::take_over(
        subnets.clone(),
        &BTreeMap::new(),
        None,
        &Uses::default(),
        Pace::default(),
        Instant::now(),
    );
    let step = ledger.step(&Uses::default(), &nodes, Instant::now());
    println!("blocks of one network, {NODES} nodes");
    println!("  the first blocks of all nodes: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);

    let (ports, _) = ports(&declared(NETWORKS), &Inventory::default(), DRIVER_NAME);
    let ports: Vec<_> = ports.into_iter().map(|(_, device)| device).collect();
    let (mut sent, mut list, mut sizes) = (Vec::new(), 0, [0, 0]);
    for (number, node) in (0..).zip(&nodes) {
        let own = slices_of(ports.clone(), node, DRIVER_NAME);
        let pool = block_pool(name, node).expect("a name");
        let place = Place { network: name, node, pool: &pool, driver: DRIVER_NAME };
        let blocks = slices(&subnets, &step.content[node], &place);
        assert_eq!((own.len(), blocks.len()), (1, 1));
        let own = object(number, &own[0], "Node");
        let blocks = object(NODES + number, &blocks[0], "Network");
        sizes = [event(&own), event(&blocks)];
        list += sizes[0] + sizes[1];
        sent.extend([bytes(&own), bytes(&blocks)]);
    }
    println!(
        "  a slice, in bytes: {NETWORKS} ports of a node {}, a block of each family {}",
        sizes[0], sizes[1]
    );
    println!("  first list of slices to the elected node: {}", size(list));

    let before = resident();
    let start = Instant::now();
    let mut seen = PublishedSlices::default();
    seen.apply(Seen::Listing);
    for bytes in &sent {
        let slice: ResourceSlice = serde_json::from_slice(bytes).expect("a slice");
        seen.apply(Seen::Is(whole_slice(&slice)));
    }
    seen.apply(Seen::Listed);
    println!("  read and taken in within {:.2} s", start.elapsed().as_secs_f64());
    println!("  kept of them: {:.1} MB resident", f64::from(resident().saturating_sub(before)) / 1024.0);
    drop(sent);

    let mut table = MemberTable::new(&node_name(0));
    table.set_networks(std::slice::from_ref(&network));
    table.apply(Seen::Listing);
    for claim in 0..CLAIMS {
        let node = claim % NODES;
        let host = 64 * node + 1 + claim / NODES;
        let place = crate::Place { claim, node, network: 0, host };
        table.apply(Seen::Is(read_claim(&bytes(&crate::objects::claim(place, crate::Stage::Told)))));
    }
    table.apply(Seen::Listed);
    let mut times = [0.0; 3];
    let start = Instant::now();
    let used = uses(&table, std::slice::from_ref(&network));
    times[0] = start.elapsed().as_secs_f64() * 1e3;
    let start = Instant::now();
    let published = seen.blocks(name, &subnets);
    let with_ports = seen.ports(name);
    times[1] = start.elapsed().as_secs_f64() * 1e3;
    assert_eq!((published.len(), with_ports.len()), (NODES as usize, NODES as usize));
    let start = Instant::now();
    ledger.see(published.iter().map(|(node, pool)| (node, &pool.content)), Instant::now());
    let after = ledger.step(&used[name], &with_ports, Instant::now());
    times[2] = start.elapsed().as_secs_f64() * 1e3;
    assert_eq!(after.content, step.content, "20 claims a node need no more");
    println!(
        "  a look, with {CLAIMS} claims: {:.1} ms for what is in use, {:.1} ms for what is published, {:.1} ms to decide",
        times[0], times[1], times[2]
    );
}
