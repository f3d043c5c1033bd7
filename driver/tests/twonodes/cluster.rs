//! Two nodes, a wire between them, an API server that both reach, networks, and the scheduler's part.

use std::{
    collections::BTreeSet,
    iter,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;
use netferry::{DRIVER_NAME, claim::ClaimRef, cluster::versions::ApiVersion};
use serde_json::{Value, json};

use crate::{
    random::Random,
    support::{apiserver::ApiServer, netns::NetNs},
};

pub(crate) const NAMESPACE: &str = "team";
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];

/// The scheduler takes one of so many free addresses: few, so that networks with one subnet have the same ones.
const CHOICE: usize = 16;

/// How a network goes on beyond a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Local,
    Overlay,
    /// Each node routes, over the wire between them. There is one, as its frames have no tag.
    Routed,
}

/// A network as it is declared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Net {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// One of each family that it has.
    subnets: Vec<IpNetwork>,
    vni: u32,
    /// Whether each node has blocks of its own.
    pub(crate) blocks: bool,
}

impl Net {
    /// Of four that follow each other, all have the same subnets, as far as they have their families: of eight, two have IPv4,
    /// two IPv6, and four both. Every other is an overlay.
    fn new(number: u32) -> Self {
        let kind = match number {
            3 => Kind::Routed,
            _ if number.is_multiple_of(2) => Kind::Overlay,
            _ => Kind::Local,
        };
        let v4 = format!("10.{}.0.0/24", number / 4);
        let v6 = format!("fd00:{:x}::/64", number / 4);
        let subnets = match number / 2 % 4 {
            0 => vec![v4],
            2 => vec![v6],
            _ => vec![v4, v6],
        };
        let subnets: Vec<IpNetwork> = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
        // An overlay with both families.
        let blocks = number % 4 == 2 && subnets.len() == 2;
        Self { name: format!("net{number}"), kind, subnets, vni: 1000 + number, blocks }
    }

    /// Whether its members on different nodes reach each other.
    pub(crate) fn is_wide(&self) -> bool {
        self.kind != Kind::Local
    }

    /// The pool that ports on a node have their addresses from.
    pub(crate) fn pool(&self, node: &str) -> String {
        if self.blocks { format!("networks/{}/{node}", self.name) } else { format!("networks/{}", self.name) }
    }

    fn object(&self) -> Value {
        let transport = match self.kind {
            Kind::Local => json!({"local": {}}),
            Kind::Overlay => json!({"overlay": {"vni": self.vni}}),
            Kind::Routed => json!({"uplink": {
                "selector": r#"device.attributes["netferry.dev"].ifName == "wire0""#, "mode": "routed"}}),
        };
        let gateways: Vec<_> = match self.kind {
            Kind::Routed => self.subnets.iter().filter_map(|subnet| subnet.iter().nth(1)).collect(),
            _ => Vec::new(),
        };
        let addresses = if self.blocks { "blocks" } else { "allocated" };
        json!({
            "apiVersion": "netferry.dev/v1alpha1", "kind": "Network", "metadata": {"name": self.name},
            "spec": {"subnets": self.subnets, "gateways": gateways, "transport": transport, "addresses": addresses,
                "namespaceSelector": {"matchLabels": {"team": NAMESPACE}}},
        })
    }
}

/// The namespaces die with it. What is on the nodes goes first.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) nodes: [NetNs; 2],
    pub(crate) networks: Vec<Net>,
    /// Held while devices are chosen and written: there is one scheduler.
    scheduler: Mutex<Random>,
    _control: NetNs,
}

impl Cluster {
    pub(crate) fn start(networks: u32, seed: u64) -> Arc<Self> {
        let (control, nodes) = (NetNs::new(), [NetNs::new(), NetNs::new()]);
        control.ip("link add br0 type bridge");
        control.ip("link set br0 up");
        control.ip("address add 203.0.113.1/24 dev br0");
        nodes[0].ip(&format!("link add wire0 type veth peer name wire0 netns {}", nodes[1].name));
        for (number, node) in nodes.iter().enumerate() {
            let host = number + 1;
            node.ip(&format!("link add control0 type veth peer name to{host} netns {}", control.name));
            control.ip(&format!("link set to{host} master br0 up"));
            node.ip(&format!("address add 203.0.113.{}/24 dev control0", 10 + host));
            node.ip("link set control0 up");
            let [v4, v6] = Self::on_wire(number);
            node.ip(&format!("address add {v4}/24 dev wire0"));
            node.ip(&format!("address add {v6}/64 dev wire0 nodad"));
            node.ip("link set wire0 up");
        }
        let listener = control.scoped(|| std::net::TcpListener::bind("203.0.113.1:0").unwrap());
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let server = ApiServer::start_on(listener, &[ApiVersion::V1]);
        server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE,
            "labels": {"team": NAMESPACE}}}));
        for (number, name) in NODES.iter().enumerate() {
            let address = json!({"type": "InternalIP", "address": Self::end(number).to_string()});
            server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {},
                "status": {"addresses": [address]}}));
        }
        let networks: Vec<_> = (0..networks).map(Net::new).collect();
        for network in &networks {
            server.put(network.object());
        }
        Arc::new(Self {
            server,
            nodes,
            networks,
            scheduler: Mutex::new(Random::new(seed)),
            _control: control,
        })
    }

    /// A node's addresses on the wire, one of each family.
    fn on_wire(node: usize) -> [IpAddr; 2] {
        let last = u8::try_from(node).unwrap() + 1;
        [[192, 0, 2, last].into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()]
    }

    /// Where it takes tunnelled frames.
    pub(crate) fn end(node: usize) -> IpAddr {
        Self::on_wire(node)[0]
    }

    /// Have the other node's host know that an address is at this one, as whoever runs the wire has to.
    pub(crate) fn route(&self, address: IpAddr, node: usize) {
        let via = Self::on_wire(node)[usize::from(address.is_ipv6())];
        self.nodes[1 - node].ip(&format!("route replace {address} via {via} dev wire0"));
    }

    /// Make a claim for a pod of the same name and allocate it, as soon as the slices have what it wants.
    pub(crate) async fn claim(&self, name: &str, network: &Net, node: usize) -> (ClaimRef, Vec<IpAddr>) {
        let request = |name: &str| json!({"name": name, "exactly": {"deviceClassName": "netferry.dev"}});
        let requests: Vec<_> = iter::once(request("port"))
            .chain((0..network.subnets.len()).map(|nth| request(&format!("address{nth}"))))
            .collect();
        let stored = self.server.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"namespace": NAMESPACE, "name": name},
            "spec": {"devices": {"requests": requests,
                "constraints": [{"matchAttribute": "netferry.dev/network"}]}},
        }));
        let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
        let claim = ClaimRef { namespace: NAMESPACE.into(), name: name.into(), uid };
        let start = Instant::now();
        loop {
            if let Some(addresses) = self.schedule(&stored, network, node) {
                return (claim, addresses);
            }
            assert!(start.elapsed() < Duration::from_mins(2), "{claim} cannot be allocated from {network:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn schedule(&self, claim: &Value, network: &Net, node: usize) -> Option<Vec<IpAddr>> {
        let mut random = self.scheduler.lock().unwrap();
        let port = format!("port-{}", network.name);
        let ports = self.pool(NODES[node])?;
        let port = ports.iter().find(|device| device["name"] == *port)?;
        assert_eq!(port["allowMultipleAllocations"], true, "{port}");
        let pool = network.pool(NODES[node]);
        let taken = self.taken(&pool);
        let free: Vec<_> = self.pool(&pool)?.into_iter().filter(|it| !taken.contains(&name(it))).collect();
        let (mut addresses, mut results) = (Vec::new(), Vec::new());
        for (nth, subnet) in network.subnets.iter().enumerate() {
            let free: Vec<_> = free.iter().filter(|it| subnet.contains(address(it))).collect();
            let device = free.get(random.below(free.len().clamp(1, CHOICE)))?;
            addresses.push(address(device));
            results.push(json!({"request": format!("address{nth}"), "driver": DRIVER_NAME, "pool": pool,
                "device": device["name"]}));
        }
        let share = format!("{:08x}-0000-4000-8000-{:012x}", random.next() >> 32, random.next() >> 16);
        let mut allocated = claim.clone();
        let pod = claim["metadata"]["name"].as_str().unwrap();
        let config =
            json!({"apiVersion": "netferry.dev/v1alpha1", "kind": "InterfaceConfig", "name": "net1"});
        results.push(
            json!({"request": "port", "driver": DRIVER_NAME, "pool": NODES[node], "device": port["name"],
            "shareID": share, "consumedCapacity": {"ports": "1"}}),
        );
        allocated["status"] = json!({
            "allocation": {"devices": {
                "results": results,
                "config": [{"source": "FromClaim", "requests": ["port"],
                    "opaque": {"driver": DRIVER_NAME, "parameters": config}}]}},
            "reservedFor": [{"resource": "pods", "name": pod, "uid": format!("pod-{pod}")}],
        });
        self.server.put(allocated);
        Some(addresses)
    }

    /// The devices of a pool, if it is whole.
    fn pool(&self, pool: &str) -> Option<Vec<Value>> {
        let mut slices = self.server.all("resourceslices");
        slices.retain(|slice| slice["spec"]["pool"]["name"] == pool);
        let generation = |slice: &Value| slice["spec"]["pool"]["generation"].as_u64();
        let newest = slices.iter().map(generation).max()?;
        slices.retain(|slice| generation(slice) == newest);
        let whole =
            u64::try_from(slices.len()).ok() == slices[0]["spec"]["pool"]["resourceSliceCount"].as_u64();
        let devices = |slice: &Value| slice["spec"]["devices"].as_array().cloned().unwrap_or_default();
        whole.then(|| slices.iter().flat_map(devices).collect())
    }

    /// Names of a pool's devices that are allocated.
    fn taken(&self, pool: &str) -> BTreeSet<String> {
        let claims = self.server.all("resourceclaims");
        let results =
            claims.iter().filter_map(|claim| claim["status"]["allocation"]["devices"]["results"].as_array());
        let of_pool = results.flatten().filter(|result| result["pool"] == pool);
        of_pool.map(|result| result["device"].as_str().unwrap().to_owned()).collect()
    }

    /// What a claim's status says of its port: whether it is attached, and the hardware address.
    pub(crate) fn told(&self, claim: &ClaimRef) -> (bool, Option<String>) {
        let stored = self.server.get("resourceclaims", &claim.to_string()).unwrap_or_default();
        let devices = stored["status"]["devices"].as_array().cloned().unwrap_or_default();
        let Some(port) = devices.iter().find(|it| name_of(&it["device"]).starts_with("port-")) else {
            return (false, None);
        };
        let ready =
            |it: &Value| it["type"] == "Ready" && it["status"] == "True" && it["reason"] == "Attached";
        let attached = port["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(ready));
        (attached, port["networkData"]["hardwareAddress"].as_str().map(str::to_owned))
    }
}

/// The address that a device of a network's pool stands for.
fn address(device: &Value) -> IpAddr {
    let text = ["address", "netferry.dev/address"].map(|key| &device["attributes"][key]["string"]);
    let text = text.into_iter().find_map(Value::as_str).unwrap();
    text.split('/').next().unwrap().parse().unwrap()
}

fn name_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(device: &Value) -> String {
    name_of(&device["name"]).to_owned()
}
