//! The kubelet's side of the wire: plugin registration, DRA v1 and v1beta1, DRA health.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use netferry_proto::dra::{
    health::dra_resource_health_server::DraResourceHealthServer as HealthV1Alpha1Server,
    health_v1::dra_resource_health_server::DraResourceHealthServer as HealthV1Server,
    health_v1beta1::dra_resource_health_server::DraResourceHealthServer as HealthV1Beta1Server,
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
mod health_stream;
pub mod plugin;
pub mod refusals;
pub mod registration;
mod socket;
pub mod switch;

use health_stream::HealthService;
use plugin::{ClaimService, Plugin};
use refusals::LastRefusal;
use registration::{Registration, RegistrationState};
use switch::Active;

/// Where the kubelet looks for us and we listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// `<kubelet-root>/plugins_registry/<driver>-reg.sock`.
    ///
    /// Of an instance with a name `<driver>-<name>-reg.sock`.
    pub registration: PathBuf,
    /// `<kubelet-root>/plugins/<driver>/dra.sock`; of an instance with a name `dra-<name>.sock`.
    pub plugin: PathBuf,
}

impl Sockets {
    /// Below the kubelet's root folder (`--root-dir`, usually `/var/lib/kubelet`). The path must be the same
    /// for us and for the kubelet: it is told the plugin socket's.
    #[must_use]
    pub fn below(kubelet_root: &Path, driver: &str) -> Self {
        Self::of(kubelet_root, driver, None)
    }

    /// Those of an instance with a name, which are beside the others' on the node.
    #[must_use]
    pub fn of(kubelet_root: &Path, driver: &str, instance: Option<&str>) -> Self {
        let suffix = instance.map(|name| format!("-{name}")).unwrap_or_default();
        Self {
            registration: kubelet_root.join("plugins_registry").join(format!("{driver}{suffix}-reg.sock")),
            plugin: kubelet_root.join("plugins").join(driver).join(format!("dra{suffix}.sock")),
        }
    }

    /// Remove the sockets of other instances that nobody serves any more: the kubelet forgets an instance whose registration
    /// socket is gone.
    pub fn remove_dead(&self) {
        let (Some(plugins), Some(registry)) = (self.plugin.parent(), self.registration.parent()) else {
            return;
        };
        let driver = plugins.file_name().unwrap_or_default().to_string_lossy();
        for entry in std::fs::read_dir(plugins).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(suffix) = name.strip_prefix("dra").and_then(|rest| rest.strip_suffix(".sock")) else {
                continue;
            };
            let (plugin, registration) = (entry.path(), registry.join(format!("{driver}{suffix}-reg.sock")));
            if plugin == self.plugin || !socket::is_dead(&plugin) {
                continue;
            }
            for socket in [registration, plugin] {
                if socket::is_dead(&socket) && std::fs::remove_file(&socket).is_ok() {
                    tracing::info!(socket = %socket.display(), "removed the socket of an instance that is gone");
                }
            }
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
    /// Tells the devices' health, once this instance is the active one.
    pub health: watch::Receiver<Option<Active>>,
    /// Where the state of the registration is written.
    pub state: watch::Sender<RegistrationState>,
    /// Where calls are written that were refused before they reached a service.
    pub refused: LastRefusal,
}

/// What serves the kubelet, with its sockets bound.
pub struct Bound {
    dra: Dra,
    plugin: socket::Socket,
    registration: socket::Socket,
}

impl Dra {
    /// Bind the sockets. Fails if one cannot be had; later they are bound again for as long as it takes.
    pub fn bind(self) -> io::Result<Bound> {
        // The kubelet checks the plugin socket as soon as it sees the registration socket.
        let plugin = socket::Socket::bind(&self.sockets.plugin)?;
        let registration = socket::Socket::bind(&self.sockets.registration)?;
        Ok(Bound { dra: self, plugin, registration })
    }

    /// Bind the sockets, and serve until `stop`; then let running calls end and remove the sockets.
    pub async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        self.bind()?.serve(stop.clone(), stop).await;
        Ok(())
    }
}

impl Bound {
    /// Serve until `stop`, then let running calls end and remove the sockets. With `leaving` the registration socket goes,
    /// so that the kubelet calls another instance from then on.
    pub async fn serve(self, leaving: CancellationToken, stop: CancellationToken) {
        let Self { dra: Dra { driver, sockets, claims, health, state, refused }, plugin, registration } =
            self;
        let service = Arc::new(Plugin::new(claims, stop.clone()));
        let health = HealthService::new(health, stop.clone());
        let services = Routes::new(V1Server::from_arc(Arc::clone(&service)))
            .add_service(V1Beta1Server::from_arc(service))
            .add_service(HealthV1Server::new(health.clone()))
            .add_service(HealthV1Beta1Server::new(health.clone()))
            .add_service(HealthV1Alpha1Server::new(health));
        let again = Arc::new(Notify::new());
        let registrar =
            Registration::new(driver, sockets.plugin.clone(), state, Arc::clone(&again), leaving.clone());
        tokio::join!(
            plugin.serve(services, Arc::default(), refused.clone(), stop),
            registration.serve(Routes::new(RegistrationServer::new(registrar)), again, refused, leaving),
        );
    }
}
