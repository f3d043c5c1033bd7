//! Plugin registration: the kubelet finds our socket, asks who we are and tells what became of it.
//!
//! The kubelet watches its `plugins_registry` folder (`pkg/kubelet/pluginmanager/pluginwatcher`), and walks it
//! when it starts; so a restarted kubelet comes back by itself as long as the socket is there. It does not after
//! a registration that failed late: by then it counts the socket as known (`operation_generator.go` calls
//! `AddPlugin` before `RegisterPlugin`), and only a new one makes it try again.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use netferry_proto::dra::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::Registration as RegistrationService,
};
use tokio::{
    sync::{Notify, watch},
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{error, info};

/// `PluginInfo.type` of DRA drivers (pluginregistration/v1/constants.go, `DRAPlugin`).
pub const PLUGIN_TYPE: &str = "DRAPlugin";

/// The services behind the plugin socket, newest first: the kubelet takes the first it knows
/// (`validateSupportedServices`), and finds the optional ones by name (`types.go` of each version of dra and dra-health). Of
/// health, kubelets from 1.34 to 1.36 know v1alpha1, and later ones v1 before v1alpha1.
pub const SERVICES: [&str; 5] = [
    "v1.DRAPlugin",
    "v1beta1.DRAPlugin",
    "v1.DRAResourceHealth",
    "v1beta1.DRAResourceHealth",
    "v1alpha1.DRAResourceHealth",
];

/// First wait before a failed registration is tried again; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const RETRY_DOUBLINGS: u32 = 6;

/// What the kubelet said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RegistrationState {
    /// Nothing yet.
    #[default]
    Waiting,
    /// The kubelet uses us.
    Registered,
    /// The kubelet refused us, for this reason. It is asked again from time to time.
    Failed(String),
}

/// The service on the registration socket.
pub(super) struct Registration {
    driver: String,
    endpoint: PathBuf,
    state: watch::Sender<RegistrationState>,
    /// Makes the socket anew, which makes the kubelet register us anew.
    again: Arc<Notify>,
    failures: AtomicU32,
    stop: CancellationToken,
}

impl Registration {
    pub(super) fn new(
        driver: String,
        endpoint: PathBuf,
        state: watch::Sender<RegistrationState>,
        again: Arc<Notify>,
        stop: CancellationToken,
    ) -> Self {
        Self { driver, endpoint, state, again, failures: AtomicU32::new(0), stop }
    }

    fn try_again_later(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(RETRY_DOUBLINGS);
        let (again, stop) = (Arc::clone(&self.again), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = time::sleep(FIRST_RETRY * 2_u32.pow(failures)) => again.notify_one(),
            }
        });
    }
}

#[tonic::async_trait]
impl RegistrationService for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: PLUGIN_TYPE.to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: SERVICES.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = status.into_inner();
        if plugin_registered {
            info!(driver = self.driver, "registered with the kubelet");
            self.failures.store(0, Ordering::Relaxed);
            self.state.send_replace(RegistrationState::Registered);
        } else {
            error!(driver = self.driver, error, "the kubelet refuses the registration");
            self.state.send_replace(RegistrationState::Failed(error));
            self.try_again_later();
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
