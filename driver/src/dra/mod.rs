//! The kubelet's side of the wire: plugin registration, DRA v1 and v1beta1, DRA health.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use netferry_proto::dra::{
    health::dra_resource_health_server::DraResourceHealthServer,
    registration::registration_server::RegistrationServer,
    v1::dra_plugin_server::DraPluginServer as V1Server,
    v1beta1::dra_plugin_server::DraPluginServer as V1Beta1Server,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

mod authority;
mod caller;
mod filtered;
mod frame;
pub mod health;
pub mod plugin;
mod refusals;
pub mod registration;
mod socket;

use health::Health;
use plugin::{ClaimService, Plugin};
use registration::{Registration, RegistrationState};

/// Where the kubelet looks for us and we listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// `<kubelet-root>/plugins_registry/<driver>-reg.sock`.
    pub registration: PathBuf,
    /// `<kubelet-root>/plugins/<driver>/dra.sock`.
    pub plugin: PathBuf,
}

impl Sockets {
    /// Below the kubelet's root folder (`--root-dir`, usually `/var/lib/kubelet`). The path must be the same
    /// for us and for the kubelet: it is told the plugin socket's.
    #[must_use]
    pub fn below(kubelet_root: &Path, driver: &str) -> Self {
        Self {
            registration: kubelet_root.join("plugins_registry").join(format!("{driver}-reg.sock")),
            plugin: kubelet_root.join("plugins").join(driver).join("dra.sock"),
        }
    }
}

/// What serves the kubelet.
pub struct Dra {
    /// This driver's name.
    pub driver: String,
    /// The sockets.
    pub sockets: Sockets,
    /// Prepares and unprepares claims.
    pub claims: Arc<dyn ClaimService>,
    /// Tells the devices' health.
    pub health: Health,
    /// Where the state of the registration is written.
    pub state: watch::Sender<RegistrationState>,
}

impl Dra {
    /// Serve until `stop`, then let running calls end and remove the sockets. Fails at once if a socket cannot
    /// be had at the start; later it is bound again for as long as it takes.
    pub async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        let Self { driver, sockets, claims, health, state } = self;
        let plugin = Arc::new(Plugin::new(claims, stop.clone()));
        let services = Routes::new(V1Server::from_arc(Arc::clone(&plugin)))
            .add_service(V1Beta1Server::from_arc(plugin))
            .add_service(DraResourceHealthServer::new(health.until(stop.clone())));
        let again = Arc::new(Notify::new());
        let registration =
            Registration::new(driver, sockets.plugin.clone(), state, Arc::clone(&again), stop.clone());
        // The kubelet checks the plugin socket as soon as it sees the registration socket.
        let plugin_socket = socket::Socket::bind(&sockets.plugin)?;
        let registration_socket = socket::Socket::bind(&sockets.registration)?;
        tokio::join!(
            plugin_socket.serve(services, Arc::default(), stop.clone()),
            registration_socket.serve(Routes::new(RegistrationServer::new(registration)), again, stop),
        );
        Ok(())
    }
}
