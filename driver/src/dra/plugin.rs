//! NodePrepareResources and NodeUnprepareResources, in both versions, over one [`ClaimService`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
};

use async_trait::async_trait;
use futures::future::join_all;
use netferry_proto::dra::{
    v1::{
        Claim, Device, NodePrepareResourceResponse, NodePrepareResourcesRequest,
        NodePrepareResourcesResponse, NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest,
        NodeUnprepareResourcesResponse, dra_plugin_server::DraPlugin as V1,
    },
    v1beta1::dra_plugin_server::DraPlugin as V1Beta1,
};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

pub use super::caller::Caller;
use crate::claim::ClaimRef;

/// Claims worked on at once, over all calls.
const PARALLEL: usize = 16;

/// A device made ready for a pod, as the kubelet is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedDevice {
    /// Requests of the claim it was allocated for.
    pub requests: Vec<String>,
    /// Its pool.
    pub pool: String,
    /// Its name.
    pub device: String,
    /// CDI devices the runtime must add to containers; empty for a link, which needs none.
    pub cdi_ids: Vec<String>,
}

/// What is done for one claim. Both verbs can be called again after any outcome, and never run twice at once
/// for one claim.
#[async_trait]
pub trait ClaimService: Send + Sync {
    /// Make the claim's devices ready. When this returns, a restart knows of it. It may wait, by [`Caller::wait`], for what
    /// others are about to give back.
    async fn prepare(&self, claim: &ClaimRef, caller: &mut Caller) -> Result<Vec<PreparedDevice>, String>;
    /// Undo that; the claim object may be gone. A claim that is not prepared is no error.
    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), String>;
}

/// The service on the plugin socket.
pub(super) struct Plugin {
    service: Arc<dyn ClaimService>,
    locks: Arc<ClaimLocks>,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
}

/// One lock for each claim that is being worked on.
#[derive(Default)]
struct ClaimLocks(StdMutex<HashMap<String, Arc<Mutex<()>>>>);

impl ClaimLocks {
    async fn lock(&self, uid: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(uid.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}

impl Plugin {
    /// Calls that wait end with `stop`.
    pub(super) fn new(service: Arc<dyn ClaimService>, stop: CancellationToken) -> Self {
        Self { service, locks: Arc::default(), slots: Arc::new(Semaphore::new(PARALLEL)), stop }
    }

    /// Do `work` for every claim, in parallel, and collect what came of each by its UID.
    ///
    /// Each runs in a task of its own: the kubelet hanging up does not stop it half-way, but ends what it waits for.
    async fn each<T, F>(
        &self,
        claims: Vec<Claim>,
        work: impl Fn(Arc<dyn ClaimService>, ClaimRef, Caller) -> F + Clone + Send + 'static,
    ) -> HashMap<String, Result<T, String>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        let ended = self.stop.child_token();
        // Dropped with the call.
        let _call = ended.clone().drop_guard();
        let tasks = claims.into_iter().map(|Claim { namespace, uid, name }| {
            let claim = ClaimRef { namespace, name, uid: uid.clone() };
            let checked = checked(&claim);
            let mut caller = Caller::new(ended.clone(), Arc::clone(&self.slots));
            let (locks, service, work) = (Arc::clone(&self.locks), Arc::clone(&self.service), work.clone());
            let key = uid.clone();
            let task = tokio::spawn(async move {
                checked?;
                // The claim's lock first: a call that waits for another takes no slot.
                let _claim = locks.lock(&uid).await;
                caller.begin().await?;
                work(service, claim, caller).await
            });
            async move {
                let outcome = task.await.unwrap_or_else(|error| Err(format!("internal error: {error}")));
                (key, outcome)
            }
        });
        join_all(tasks).await.into_iter().collect()
    }

    /// A call that the stop of the daemon has cut off has no answer: whoever forwarded it asks the next instance.
    fn answered<T, A>(
        &self,
        outcomes: HashMap<String, Result<T, String>>,
        answer: impl FnOnce(HashMap<String, Result<T, String>>) -> A,
    ) -> Result<Response<A>, Status> {
        if self.stop.is_cancelled() && outcomes.values().any(Result::is_err) {
            return Err(Status::unavailable("the driver stops"));
        }
        Ok(Response::new(answer(outcomes)))
    }

    async fn prepare_each(
        &self,
        request: NodePrepareResourcesRequest,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let work = |service: Arc<dyn ClaimService>, claim, mut caller| async move {
            service.prepare(&claim, &mut caller).await
        };
        let response = |outcome| match outcome {
            Ok(devices) => NodePrepareResourceResponse { devices, error: String::new() },
            Err(error) => NodePrepareResourceResponse { devices: Vec::new(), error },
        };
        let outcomes = self.each(request.claims, work).await;
        self.answered(outcomes, |outcomes| {
            let claims = outcomes.into_iter().map(|(uid, outcome)| {
                let devices =
                    outcome.map(|devices: Vec<PreparedDevice>| devices.into_iter().map(on_wire).collect());
                (uid, response(devices))
            });
            NodePrepareResourcesResponse { claims: claims.collect() }
        })
    }

    async fn unprepare_each(
        &self,
        request: NodeUnprepareResourcesRequest,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let work = |service: Arc<dyn ClaimService>, claim, caller| async move {
            // It has its slot until it is done.
            let done = service.unprepare(&claim).await;
            drop(caller);
            done
        };
        let outcomes = self.each(request.claims, work).await;
        self.answered(outcomes, |outcomes| {
            let claims = outcomes.into_iter().map(|(uid, outcome): (_, Result<(), String>)| {
                (uid, NodeUnprepareResourceResponse { error: outcome.err().unwrap_or_default() })
            });
            NodeUnprepareResourcesResponse { claims: claims.collect() }
        })
    }
}

/// The API requires all three fields (dra/v1/api.proto, `Claim`).
fn checked(claim: &ClaimRef) -> Result<(), String> {
    for (field, value) in [("namespace", &claim.namespace), ("name", &claim.name), ("uid", &claim.uid)] {
        if value.is_empty() {
            return Err(format!("claim {claim}: {field} is missing"));
        }
    }
    Ok(())
}

fn on_wire(device: PreparedDevice) -> Device {
    Device {
        request_names: device.requests,
        pool_name: device.pool,
        device_name: device.device,
        cdi_device_ids: device.cdi_ids,
    }
}

#[tonic::async_trait]
impl V1 for Plugin {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        self.prepare_each(request.into_inner()).await
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        self.unprepare_each(request.into_inner()).await
    }
}

#[tonic::async_trait]
impl V1Beta1 for Plugin {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        self.prepare_each(request.into_inner()).await
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        self.unprepare_each(request.into_inner()).await
    }
}
