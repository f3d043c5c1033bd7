//! The claims of an instance of the driver that may not be the active one.
//!
//! While another instance of the node is active, calls are forwarded to its plugin socket; while there is none, they wait for
//! this one to become it. Both verbs can be called again after any outcome, so a call that the other instance did not
//! answer is made once more.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use netferry_proto::dra::v1::{
    Claim, NodePrepareResourcesRequest, NodeUnprepareResourcesRequest, dra_plugin_client::DraPluginClient,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::debug;

use super::{
    health::Health,
    plugin::{Caller, ClaimService, PreparedDevice},
};
use crate::claim::ClaimRef;

/// Longest wait for an instance that answers; the kubelet gives up a call after 45 s.
const LONGEST: Duration = Duration::from_secs(40);
/// Before the other instance is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// What an active instance does.
#[derive(Clone)]
pub struct Active {
    /// Prepares and unprepares claims.
    pub claims: Arc<dyn ClaimService>,
    /// Tells the devices' health.
    pub health: Health,
}

/// See the module.
pub struct Switch {
    active: watch::Sender<Option<Active>>,
    /// The plugin socket of the instance that is active now, as far as it has said.
    other: Box<dyn Fn() -> Option<PathBuf> + Send + Sync>,
}

impl Switch {
    /// An instance that is not active. `other` names the plugin socket of the one that is.
    #[must_use]
    pub fn new(other: impl Fn() -> Option<PathBuf> + Send + Sync + 'static) -> Self {
        Self { active: watch::Sender::new(None), other: Box::new(other) }
    }

    /// This instance is the active one from now on.
    pub fn activate(&self, active: Active) {
        self.active.send_replace(Some(active));
    }

    /// What this instance does once it is active.
    #[must_use]
    pub fn active(&self) -> watch::Receiver<Option<Active>> {
        self.active.subscribe()
    }

    /// Have this instance do `own`, or another one `there`, whichever is active. `there` fails if it was not answered.
    async fn either<T, Own, There>(
        &self,
        own: impl Fn(Arc<dyn ClaimService>) -> Own,
        there: impl Fn(DraPluginClient<Channel>) -> There,
    ) -> Result<T, String>
    where
        Own: Future<Output = Result<T, String>>,
        There: Future<Output = Result<Result<T, String>, tonic::Status>>,
    {
        let deadline = Instant::now() + LONGEST;
        let mut active = self.active.subscribe();
        loop {
            let this = active.borrow_and_update().clone();
            if let Some(active) = this {
                return own(active.claims).await;
            }
            if let Some(socket) = (self.other)() {
                let asked = async { there(DraPluginClient::new(connect(socket).await?)).await };
                match timeout_at(deadline, asked).await {
                    Ok(Ok(outcome)) => return outcome,
                    Ok(Err(status)) => debug!(%status, "the active instance does not answer"),
                    Err(_) => {}
                }
            }
            if Instant::now() >= deadline {
                let waited = LONGEST.as_secs();
                return Err(format!("no instance of the driver has become active within {waited} s"));
            }
            tokio::select! {
                _ = active.changed() => {}
                () = sleep(PAUSE) => {}
            }
        }
    }
}

async fn connect(socket: PathBuf) -> Result<Channel, tonic::Status> {
    let unavailable = |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(unavailable)?;
    endpoint.origin(Uri::from_static("http://localhost")).connect().await.map_err(unavailable)
}

fn on_wire(claim: &ClaimRef) -> Vec<Claim> {
    let ClaimRef { namespace, name, uid } = claim.clone();
    vec![Claim { namespace, uid, name }]
}

fn unanswered() -> tonic::Status {
    tonic::Status::internal("no answer for the claim")
}

#[async_trait]
impl ClaimService for Switch {
    async fn prepare(&self, claim: &ClaimRef, caller: &mut Caller) -> Result<Vec<PreparedDevice>, String> {
        let caller = tokio::sync::Mutex::new(caller);
        let own = |claims: Arc<dyn ClaimService>| {
            let caller = &caller;
            async move { claims.prepare(claim, &mut **caller.lock().await).await }
        };
        let there = |mut client: DraPluginClient<Channel>| {
            let caller = &caller;
            async move {
                let request = NodePrepareResourcesRequest { claims: on_wire(claim) };
                let asked = async { client.node_prepare_resources(request).await };
                // The other instance works, not this one.
                let answer = caller.lock().await.wait(asked).await;
                let Some(answer) = answer else {
                    return Ok(Err("the kubelet does not wait for it any more".to_owned()));
                };
                let mut answer = answer?.into_inner();
                let answer = answer.claims.remove(&claim.uid).ok_or_else(unanswered)?;
                if !answer.error.is_empty() {
                    return Ok(Err(answer.error));
                }
                let device = |device: netferry_proto::dra::v1::Device| PreparedDevice {
                    requests: device.request_names,
                    pool: device.pool_name,
                    device: device.device_name,
                    cdi_ids: device.cdi_device_ids,
                };
                Ok(Ok(answer.devices.into_iter().map(device).collect()))
            }
        };
        self.either(own, there).await
    }

    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), String> {
        let own = |claims: Arc<dyn ClaimService>| async move { claims.unprepare(claim).await };
        let there = |mut client: DraPluginClient<Channel>| async move {
            let request = NodeUnprepareResourcesRequest { claims: on_wire(claim) };
            let mut answer = client.node_unprepare_resources(request).await?.into_inner();
            let answer = answer.claims.remove(&claim.uid).ok_or_else(unanswered)?;
            Ok(if answer.error.is_empty() { Ok(()) } else { Err(answer.error) })
        };
        self.either(own, there).await
    }
}
