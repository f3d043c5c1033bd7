//! A daemon's DRA side over a cluster in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, ResourceClaim, ResourceSlice};
use netferry::{
    claim::{
        Checkpoint, ClaimRef, InterfacePlan, PodRef,
        config::API_VERSION,
        service::{Claims, Release, Reporter},
        store::Store,
        wait::LONGEST,
    },
    cluster::{Cluster, ClusterError, Event, NodeRef},
    device::{Device, Inventory},
    dhcp::NoLeases,
    dra::{
        Dra, Sockets, health::Health, plugin::ClaimService, refusals::LastRefusal,
        registration::RegistrationState, switch::Active,
    },
    findings::Findings,
    network::{
        Network, NetworkRef,
        access::{Access, Members},
        offer::Offer,
    },
};
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle, time};
use tokio_util::sync::CancellationToken;

pub(crate) const DRIVER: &str = "netferry.dev";

/// Network `blue`, which namespace `default` may join, and `red`, which nobody may.
#[derive(Debug)]
struct Networks;

impl Members for Networks {
    fn holder(&self, _: &NetworkRef, _: IpAddr, _: &ClaimRef) -> Option<String> {
        None
    }
}

#[async_trait]
impl Access for Networks {
    async fn ask(&self, network: &str, namespace: &str) -> Option<Offer> {
        let spec = json!({"subnets": ["10.0.0.0/24"], "transport": {"local": {}}});
        let network = Network {
            reference: NetworkRef { name: network.into(), uid: format!("uid-{network}") },
            id: 7,
            spec: serde_json::from_value(spec).unwrap(),
        };
        let refused = match (network.reference.name.as_str(), namespace) {
            ("blue", "default") => None,
            ("red", _) => Some("it lets nobody in".to_owned()),
            _ => return None,
        };
        Some(Offer { network: Arc::new(network), refused, mtu: 1500 })
    }

    fn uplinks(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn changes(&self) -> watch::Receiver<()> {
        watch::channel(()).1
    }
}

/// Claims by name; every read is counted, and takes a while.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) claims: Mutex<BTreeMap<String, ResourceClaim>>,
    pub(crate) reads: AtomicUsize,
    pub(crate) delay: Duration,
    pub(crate) reading: AtomicUsize,
    /// Most reads there were at once.
    pub(crate) busiest: AtomicUsize,
    /// Longest wait for another claim's device; the driver's own if there is none.
    pub(crate) wait: Option<Duration>,
    /// UIDs of pods that are being deleted.
    pub(crate) leaving: Mutex<BTreeSet<String>>,
}

#[async_trait]
impl Cluster for Objects {
    async fn node(&self) -> Result<NodeRef, ClusterError> {
        Ok(NodeRef { name: "node-1".into(), uid: None })
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, ClusterError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let now = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
        self.busiest.fetch_max(now, Ordering::SeqCst);
        time::sleep(self.delay).await;
        self.reading.fetch_sub(1, Ordering::SeqCst);
        let found = self.claims.lock().unwrap().get(name).cloned();
        found.ok_or_else(|| ClusterError::NotFound {
            kind: "ResourceClaim",
            name: format!("{namespace}/{name}"),
        })
    }

    async fn uses_host_network(&self, _: &PodRef) -> Result<bool, ClusterError> {
        Ok(false)
    }
    async fn is_leaving(&self, pod: &PodRef) -> Result<bool, ClusterError> {
        Ok(self.leaving.lock().unwrap().contains(&pod.uid))
    }
    async fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        Ok(Vec::new())
    }

    async fn create_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        Ok(slice.clone())
    }

    async fn update_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        Ok(slice.clone())
    }

    async fn delete_slice(&self, _: &str) -> Result<(), ClusterError> {
        Ok(())
    }

    async fn apply_device_status(
        &self,
        _: &ClaimRef,
        _: &[AllocatedDeviceStatus],
    ) -> Result<(), ClusterError> {
        Ok(())
    }

    async fn event(&self, _: &Event) -> Result<(), ClusterError> {
        Ok(())
    }
}

/// Takes links home by forgetting the attachment, unless it is told to fail.
pub(crate) struct Home {
    pub(crate) store: Arc<Store>,
    pub(crate) broken: Mutex<Option<String>>,
    /// Why links cannot be moved, by name.
    pub(crate) stuck: Mutex<BTreeMap<String, String>>,
}

#[async_trait]
impl Release for Home {
    async fn release(&self, claim_uid: &str) -> Result<(), String> {
        if let Some(why) = self.broken.lock().unwrap().clone() {
            return Err(why);
        }
        let home = |checkpoint: &mut Checkpoint| {
            checkpoint.interfaces.iter_mut().for_each(|interface| interface.attachment = None);
        };
        self.store.update(claim_uid, home).map(drop).map_err(|error| error.to_string())
    }

    fn unattachable(&self, _: &InterfacePlan) -> Option<String> {
        None
    }

    async fn not_movable_now(&self, plan: &InterfacePlan) -> Option<String> {
        self.stuck.lock().unwrap().get(&plan.host_link).cloned()
    }
}

#[derive(Default)]
pub(crate) struct Reports(pub(crate) Mutex<Vec<String>>);

impl Reporter for Reports {
    fn claim_changed(&self, claim: &ClaimRef) {
        self.0.lock().unwrap().push(format!("{claim} changed"));
    }

    fn prepare_failed(&self, claim: &ClaimRef, why: &str) {
        self.0.lock().unwrap().push(format!("{claim} failed: {why}"));
    }
}

/// A daemon's DRA side over a kubelet root folder and a state folder.
pub(crate) struct Daemon {
    pub(crate) cluster: Arc<Objects>,
    pub(crate) store: Arc<Store>,
    pub(crate) home: Arc<Home>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) inventory: watch::Sender<Arc<Inventory>>,
    pub(crate) findings: Arc<Findings>,
    pub(crate) networks: Arc<netferry::network::Networks>,
    pub(crate) state: watch::Receiver<RegistrationState>,
    pub(crate) stop: CancellationToken,
    sockets: Sockets,
    pub(crate) served: JoinHandle<std::io::Result<()>>,
}

impl Daemon {
    pub(crate) fn start(root: &Path) -> Self {
        Self::over(root, Arc::new(Objects::default()))
    }

    pub(crate) fn over(root: &Path, cluster: Arc<Objects>) -> Self {
        let (store, problems) = Store::open(&root.join("claims")).unwrap();
        assert_eq!(problems, []);
        let store = Arc::new(store);
        let names = ["ens5", "ens6", "ens7", "ens8"];
        let devices = names.map(|name| (name.to_owned(), device(name, "up")));
        let (inventory, receiver) = watch::channel(Arc::new(Inventory { devices: devices.into() }));
        let (sender, state) = watch::channel(RegistrationState::default());
        let home =
            Arc::new(Home { store: Arc::clone(&store), broken: Mutex::default(), stuck: Mutex::default() });
        let reports = Arc::new(Reports::default());
        let claims = Claims {
            driver: DRIVER.into(),
            pool: "node-1".into(),
            cluster: Arc::clone(&cluster) as Arc<dyn Cluster>,
            store: Arc::clone(&store),
            inventory: receiver.clone(),
            networks: Arc::new(Networks),
            leases: Arc::new(NoLeases),
            release: Arc::clone(&home) as Arc<dyn Release>,
            reporter: Arc::clone(&reports) as Arc<dyn Reporter>,
            planning: Arc::default(),
            wait: cluster.wait.unwrap_or(LONGEST),
        };
        let findings = Arc::new(Findings::new(Arc::clone(&store)));
        let networks = Arc::new(netferry::network::Networks::default());
        let claims: Arc<dyn ClaimService> = Arc::new(claims);
        let dra = Dra {
            driver: DRIVER.into(),
            sockets: Sockets::below(root, DRIVER),
            claims: Arc::clone(&claims),
            health: watch::channel(Some(Active {
                claims,
                health: Health {
                    pool: "node-1".into(),
                    inventory: receiver,
                    store: Arc::clone(&store),
                    sandboxes: Arc::default(),
                    findings: Arc::clone(&findings),
                    networks: Arc::clone(&networks),
                },
            }))
            .1,
            state: sender,
            refused: LastRefusal::default(),
        };
        let sockets = dra.sockets.clone();
        let stop = CancellationToken::new();
        let served = tokio::spawn(dra.serve(stop.clone()));
        Self { cluster, store, home, reports, inventory, findings, networks, state, stop, sockets, served }
    }

    pub(crate) fn add(&self, name: &str, uid: &str, device: &str, fields: &serde_json::Value) -> ClaimRef {
        self.cluster.claims.lock().unwrap().insert(name.into(), allocated(name, uid, device, fields));
        ClaimRef { namespace: "default".into(), name: name.into(), uid: uid.into() }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        time::timeout(Duration::from_secs(5), self.served).await.expect("stops").unwrap().unwrap();
    }

    /// As kill -9 leaves it: nobody listens, the socket files stay.
    pub(crate) async fn kill(self) {
        self.served.abort();
        let _ = self.served.await;
        // Aborted tasks give up their listeners a moment later.
        let Sockets { registration, plugin } = self.sockets;
        while UnixStream::connect(&registration).is_ok() || UnixStream::connect(&plugin).is_ok() {
            time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn reads(&self) -> usize {
        self.cluster.reads.load(Ordering::SeqCst)
    }
}

pub(crate) fn device(name: &str, oper_state: &str) -> Device {
    serde_json::from_value(json!({
        "name": name, "ifname": name, "ifindex": 2, "mtu": 1500, "oper_state": oper_state,
        "addresses": [], "is_virtual": false, "default_route": false, "gateways": [],
    }))
    .unwrap()
}

pub(crate) fn allocated(name: &str, uid: &str, device: &str, fields: &serde_json::Value) -> ResourceClaim {
    let mut parameters = json!({"apiVersion": API_VERSION, "kind": "InterfaceConfig"});
    parameters.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"namespace": "default", "name": name, "uid": uid},
        "spec": {},
        "status": {
            "allocation": {"devices": {
                "results": [{"request": "nic", "driver": DRIVER, "pool": "node-1", "device": device}],
                "config": [{"source": "FromClaim", "opaque": {"driver": DRIVER, "parameters": parameters}}],
            }},
            "reservedFor": [{"resource": "pods", "name": "web", "uid": "p1"}],
        },
    }))
    .unwrap()
}
