//! The cluster as a folder of YAML objects: `netferry run --standalone DIR`.
//!
//! The user's side is ResourceClaims, DeviceClasses, Networks and Namespaces (for their labels) in any `*.yaml` below DIR, several documents a file. It
//! is read at each call, so an edit counts at once. The driver's side is `DIR/status/<namespace>/<claim>.yaml`,
//! `DIR/slices/` and `DIR/events.yaml`; those names at the top of DIR are not read as the user's.
//!
//! A claim without `status.allocation` is allocated here as the scheduler would do it, once: the result is kept
//! in its status file. A claim without `metadata.uid` gets one made from namespace and name. The pods it is
//! reserved for come from `status.reservedFor` in the user's file, or from the annotation
//! `netferry.dev/reserved-for: <pod>=<uid>[,<pod>=<uid>…]`.

mod allocate;
mod claims;
pub(crate) mod document;
mod folder;
mod in_use;
mod lease;
mod networks;
mod pools;
mod stamp;
mod watch;
mod written;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    resource::v1::{AllocatedDeviceStatus, ResourceClaim, ResourceSlice},
};

use super::{Cluster, ClusterError, Event, NodeRef, event_object};
use crate::{
    claim::{ClaimRef, PodRef},
    network::{Declared, NetworkRef, spec::NetworkStatus},
};
use folder::Folder;
use stamp::Stamp;

pub use claims::{RESERVED_FOR, derived_uid};

/// A folder in place of an API server.
#[derive(Clone)]
pub struct Standalone {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    driver: String,
    node: String,
    /// One call at a time: an allocation must see the one before it, and a resourceVersion must be compared and
    /// written in one go. Only one daemon runs on a folder, as on a node.
    turn: Mutex<()>,
    /// Whether the folder may have changed.
    stamps: stamp::Stamps,
    /// By name.
    leases: Mutex<BTreeMap<String, Lease>>,
}

impl Standalone {
    /// Use the folder at `root`, which must exist. `driver` and `node` are what the driver's slices carry.
    pub fn open(root: &Path, driver: &str, node: &str) -> Result<Self, ClusterError> {
        if !root.is_dir() {
            let error = io::Error::new(io::ErrorKind::NotADirectory, "it is no directory");
            return Err(unavailable(&format!("use the folder {}", root.display()), error));
        }
        let (driver, node, root) = (driver.to_owned(), node.to_owned(), root.to_owned());
        let cluster = Self {
            shared: Arc::new(Shared {
                root,
                driver,
                node,
                turn: Mutex::new(()),
                stamps: stamp::Stamps::default(),
                leases: Mutex::default(),
            }),
        };
        for problem in cluster.problems() {
            tracing::warn!("{problem}");
        }
        Ok(cluster)
    }

    /// What in the folder cannot be used now, each naming file, document, field, value and what is allowed.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        Folder::read(&self.shared.root).problems.iter().map(ToString::to_string).collect()
    }

    /// Every claim in the folder, as [`Cluster::claim`] gives it; those that cannot be allocated come without
    /// an allocation.
    pub async fn claims(&self) -> Result<Vec<ResourceClaim>, ClusterError> {
        self.turn(Shared::claims).await
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<String, Lease>> {
        self.shared.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Like a turn, unless nothing in the folder can have changed since `before`; with the stamp to compare next.
    async fn turn_if_changed<T: Send + 'static>(
        &self,
        before: Option<Stamp>,
        work: impl FnOnce(&Shared) -> Result<T, ClusterError> + Send + 'static,
    ) -> Result<(Option<T>, Option<Stamp>), ClusterError> {
        self.turn(move |shared| {
            let now = shared.stamps.take(&shared.root);
            if now.is_some() && now == before {
                return Ok((None, now));
            }
            work(shared).map(|found| (Some(found), now))
        })
        .await
    }

    /// Files are read and synced off the async threads.
    async fn turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, ClusterError> + Send + 'static,
    ) -> Result<T, ClusterError> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || {
            let _turn = shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
            work(&shared)
        });
        done.await.map_err(|error| unavailable("use the folder", io::Error::other(error)))?
    }
}

impl Shared {
    fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        self.slices_of(Some(&self.node))
    }

    /// This driver's slices of a node, or of none.
    fn slices_of(&self, node: Option<&str>) -> Result<Vec<ResourceSlice>, ClusterError> {
        let all: Vec<ResourceSlice> =
            written::slices(&self.root).map_err(|error| unavailable("read the slices", error))?;
        let ours = |slice: &ResourceSlice| {
            slice.spec.driver == self.driver && slice.spec.node_name.as_deref() == node
        };
        Ok(all.into_iter().filter(ours).collect())
    }

    /// All slices of this driver.
    fn every_slice(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        let all: Vec<ResourceSlice> =
            written::slices(&self.root).map_err(|error| unavailable("read the slices", error))?;
        Ok(all.into_iter().filter(|slice| slice.spec.driver == self.driver).collect())
    }

    /// Slices that a claim on this node may be given devices of.
    fn allocatable(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        let all: Vec<ResourceSlice> =
            written::slices(&self.root).map_err(|error| unavailable("read the slices", error))?;
        let here = |slice: &ResourceSlice| {
            slice.spec.driver == self.driver
                && (slice.spec.all_nodes == Some(true) || slice.spec.node_name.as_deref() == Some(&self.node))
        };
        Ok(all.into_iter().filter(here).collect())
    }

    fn create_slice(&self, mut slice: ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let name = match (&slice.metadata.name, &slice.metadata.generate_name) {
            (Some(name), _) => name.clone(),
            (None, Some(prefix)) => self.free_name(prefix)?,
            (None, None) => return Err(refused("", "metadata.name: missing; or set metadata.generateName")),
        };
        let file = self.slice_file(&name)?;
        if file.exists() {
            return Err(conflict(&name, "it exists already"));
        }
        slice.metadata.name = Some(name.clone());
        slice.metadata.uid = Some(claims::uid(&format!("slice/{name}/{}", Timestamp::now())));
        slice.metadata.generation = Some(1);
        slice.metadata.resource_version = Some("1".to_owned());
        write_slice(&file, slice)
    }

    fn update_slice(&self, mut slice: ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let name = slice.metadata.name.clone().unwrap_or_default();
        let file = self.slice_file(&name)?;
        let stored: Option<ResourceSlice> = written::read(&file)
            .map_err(|error| unavailable(&format!("read ResourceSlice {name}"), error))?;
        let Some(stored) = stored else {
            return Err(ClusterError::NotFound { kind: "ResourceSlice", name });
        };
        if slice.metadata.resource_version.is_none() {
            return Err(refused(&name, "metadata.resourceVersion: must be set"));
        }
        // A slice made again under the same name begins with version 1 as well; its uid tells it apart.
        let other = slice.metadata.uid.is_some() && slice.metadata.uid != stored.metadata.uid;
        if other || slice.metadata.resource_version != stored.metadata.resource_version {
            return Err(conflict(&name, "metadata.resourceVersion is not the current one"));
        }
        let version = stored.metadata.resource_version.as_deref().unwrap_or_default();
        slice.metadata.resource_version = Some(claims::next_version(version));
        slice.metadata.uid = stored.metadata.uid;
        let changed = i64::from(slice.spec != stored.spec);
        slice.metadata.generation = Some(stored.metadata.generation.unwrap_or(1) + changed);
        write_slice(&file, slice)
    }

    fn delete_slice(&self, name: &str) -> Result<(), ClusterError> {
        let file = self.slice_file(name)?;
        written::remove(&file).map_err(|error| unavailable(&format!("remove {}", file.display()), error))
    }

    fn slice_file(&self, name: &str) -> Result<PathBuf, ClusterError> {
        written::slice_file(&self.root, name)
            .ok_or_else(|| refused(name, &format!("metadata.name: {name:?} cannot be a file name")))
    }

    fn free_name(&self, prefix: &str) -> Result<String, ClusterError> {
        for number in 0_u32.. {
            let name = format!("{prefix}{number}");
            if !self.slice_file(&name)?.exists() {
                return Ok(name);
            }
        }
        Err(refused(prefix, "metadata.generateName: no number is free"))
    }
}

#[async_trait]
impl Cluster for Standalone {
    async fn node(&self) -> Result<NodeRef, ClusterError> {
        Ok(NodeRef { name: self.shared.node.clone(), uid: None })
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, ClusterError> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.turn(move |shared| shared.claim(&namespace, &name)).await
    }

    /// The folder has no pods.
    async fn uses_host_network(&self, _: &PodRef) -> Result<bool, ClusterError> {
        Ok(false)
    }

    async fn is_leaving(&self, _: &PodRef) -> Result<bool, ClusterError> {
        Ok(false)
    }

    async fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        self.turn(Shared::slices).await
    }

    async fn create_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let slice = slice.clone();
        self.turn(move |shared| shared.create_slice(slice)).await
    }

    async fn update_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let slice = slice.clone();
        self.turn(move |shared| shared.update_slice(slice)).await
    }

    async fn delete_slice(&self, name: &str) -> Result<(), ClusterError> {
        let name = name.to_owned();
        self.turn(move |shared| shared.delete_slice(&name)).await
    }

    async fn apply_device_status(
        &self,
        claim: &ClaimRef,
        devices: &[AllocatedDeviceStatus],
    ) -> Result<(), ClusterError> {
        let (claim, devices) = (claim.clone(), devices.to_vec());
        self.turn(move |shared| shared.apply(&claim, devices)).await
    }

    async fn event(&self, event: &Event) -> Result<(), ClusterError> {
        let event = event.clone();
        self.turn(move |shared| {
            let object = event_object::object(&event, &shared.driver, &shared.node, Timestamp::now());
            written::append_event(&shared.root, &object)
                .map_err(|error| unavailable("write the Event", error))
        })
        .await
    }

    async fn namespace_labels(&self, name: &str) -> Result<BTreeMap<String, String>, ClusterError> {
        let name = name.to_owned();
        self.turn(move |shared| Ok(shared.namespace_labels(&name))).await
    }

    fn networks(&self) -> BoxStream<'static, Result<Vec<Declared>, ClusterError>> {
        networks::watch(self.clone())
    }

    async fn apply_network_status(
        &self,
        network: &NetworkRef,
        status: &NetworkStatus,
    ) -> Result<(), ClusterError> {
        let (network, new) = (network.clone(), status.clone());
        let change = move |status: &mut NetworkStatus| {
            (status.observed_generation, status.conditions) = (new.observed_generation, new.conditions);
        };
        self.turn(move |shared| shared.change_network_status(&network, change)).await
    }

    async fn apply_network_counts(
        &self,
        network: &NetworkRef,
        nodes: u32,
        members: u32,
    ) -> Result<(), ClusterError> {
        let network = network.clone();
        let change = move |status: &mut NetworkStatus| {
            (status.nodes, status.members) = (Some(nodes), Some(members));
        };
        self.turn(move |shared| shared.change_network_status(&network, change)).await
    }
}

fn write_slice(file: &Path, slice: ResourceSlice) -> Result<ResourceSlice, ClusterError> {
    written::write(file, &slice).map_err(|error| unavailable(&format!("write {}", file.display()), error))?;
    Ok(slice)
}

fn unavailable(action: &str, error: io::Error) -> ClusterError {
    ClusterError::Unavailable { action: action.to_owned(), source: Box::new(error) }
}

fn refused(name: &str, message: &str) -> ClusterError {
    let (kind, name, message) = ("ResourceSlice", name.to_owned(), message.to_owned());
    ClusterError::Refused { kind, name, code: 422, message }
}

fn conflict(name: &str, message: &str) -> ClusterError {
    let (kind, name, message) = ("ResourceSlice", name.to_owned(), message.to_owned());
    ClusterError::Conflict { kind, name, message }
}
