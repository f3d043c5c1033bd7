//! The driver's standing with the runtime: connect, register, serve, and begin again when it ends.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use netferry_proto::nri as api;
use tokio::{
    io::DuplexStream,
    net::UnixStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, info, warn};
use ttrpc::{
    r#async::{
        Client, Server,
        transport::{Listener, Socket},
    },
    context,
};

use super::{
    PodEvents,
    dispatch::Dispatch,
    mux::{self, MuxError},
    plugin::{Plugin, Progress, RuntimeInfo},
};

/// Where NRI listens by default (`DefaultSocketPath` in containerd/nri).
pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";

/// How to reach the runtime, and as whom.
#[derive(Clone, Debug)]
pub struct NriConfig {
    /// The runtime's NRI socket.
    pub socket: PathBuf,
    /// Name under which the driver registers: letters, digits and `_.+-`.
    pub plugin_name: String,
    /// Two digits: the runtime calls its plugins in this order.
    pub plugin_index: String,
    /// How long to wait for the runtime's answer to the registration, and again for its configuration.
    pub registration_timeout: Duration,
    /// First pause before connecting again; doubled at each failure. A runtime that starts pods before the driver is
    /// back starts them without their links, hence short.
    pub reconnect_min: Duration,
    /// Longest pause.
    pub reconnect_max: Duration,
    /// How long a stopping driver waits for the events it is handling.
    pub drain_timeout: Duration,
}

impl Default for NriConfig {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            plugin_name: "netferry".into(),
            plugin_index: "10".into(),
            registration_timeout: Duration::from_secs(5),
            reconnect_min: Duration::from_millis(50),
            reconnect_max: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl NriConfig {
    /// Check what the runtime would refuse (`CheckPluginName`, `CheckPluginIndex` in containerd/nri).
    ///
    /// # Errors
    ///
    /// Names the field, its value, and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        let Self { plugin_name: name, plugin_index: index, .. } = self;
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_.+-".contains(c)) {
            return Err(format!("NRI plugin name {name:?}: must be letters, digits and any of _ . + -"));
        }
        if index.len() != 2 || !index.bytes().all(|c| c.is_ascii_digit()) {
            return Err(format!("NRI plugin index {index:?}: must be two digits, 00 to 99"));
        }
        Ok(())
    }
}

/// The driver's standing with the runtime, for readiness and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// The runtime, once it is synchronized: events flow. `None` otherwise.
    pub runtime: Option<RuntimeInfo>,
    /// Sessions that came as far as that, since the start.
    pub sessions: u64,
    /// Attempts and sessions that ended, other than by the driver's own stop.
    pub failures: u64,
    /// Why the last one ended.
    pub last_error: Option<String>,
}

impl SessionStatus {
    /// Events flow.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.runtime.is_some()
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("connect to {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("serve the plugin: {0}")]
    Serve(ttrpc::Error),
    #[error("register with the runtime: {0}")]
    Register(ttrpc::Error),
    #[error("the runtime did not configure the plugin within {0:?} after its registration")]
    NotConfigured(Duration),
    #[error(transparent)]
    Mux(#[from] MuxError),
    #[error("the task that moves the connection's bytes failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the driver failed to take the runtime's list of sandboxes")]
    NotSynchronized,
    #[error("the runtime shuts down")]
    RuntimeShutdown,
    #[error("the driver stops")]
    Stopped,
}

/// Keep the driver connected to the runtime until `shutdown`, and hand it the runtime's pod events.
///
/// Each session begins with [`PodEvents::synchronize`]. At the end, events under way are waited for and answered, at
/// most for [`NriConfig::drain_timeout`].
pub async fn run(
    config: NriConfig,
    events: Arc<dyn PodEvents>,
    status: watch::Sender<SessionStatus>,
    shutdown: CancellationToken,
) {
    let dispatch = Dispatch::new(events);
    let mut failed_in_a_row = 0;
    loop {
        let end = tokio::select! {
            end = session(&config, &dispatch, &status, &shutdown) => end,
        };
        let was_ready = status.borrow().is_ready();
        if matches!(end, SessionEnd::Stopped) {
            status.send_modify(|status| status.runtime = None);
            break;
        }
        status.send_modify(|status| {
            status.runtime = None;
            status.failures += 1;
            status.last_error = Some(end.to_string());
        });
        failed_in_a_row = if was_ready { 0 } else { failed_in_a_row + 1 };
        // Once for a lost session and once for a runtime that is not there, not at every attempt.
        if failed_in_a_row <= 1 {
            warn!(error = %end, socket = %config.socket.display(), "no session with the runtime, trying again");
        } else {
            debug!(error = %end, failed_in_a_row, "no session with the runtime, trying again");
        }
        let pause = pause(&config, failed_in_a_row, RandomState::new().hash_one(failed_in_a_row));
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.cancelled() => break,
        }
    }
    if !dispatch.drain(config.drain_timeout).await {
        warn!(limit = ?config.drain_timeout, "pod events are still being handled");
    }
}

/// Pause before the next attempt: doubled at each failure up to the longest, of which a random half is left out, so
/// that the drivers of many nodes do not come in step.
fn pause(config: &NriConfig, failed_in_a_row: u32, random: u64) -> Duration {
    let doubled = config.reconnect_min.saturating_mul(1 << failed_in_a_row.min(16));
    let longest = doubled.min(config.reconnect_max);
    let half = longest / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
    half + Duration::from_nanos(random % (nanos + 1))
}

async fn session(
    config: &NriConfig,
    dispatch: &Dispatch,
    status: &watch::Sender<SessionStatus>,
    shutdown: &CancellationToken,
) -> SessionEnd {
    let trunk = match UnixStream::connect(&config.socket).await {
        Ok(trunk) => trunk,
        Err(source) => return SessionEnd::Connect { path: config.socket.clone(), source },
    };
    let (mux, [plugin_end, runtime_end]) = mux::open(trunk, [mux::PLUGIN, mux::RUNTIME]);
    let mut mux = AbortOnDropHandle::new(tokio::spawn(mux));
    let (plugin, progress) = Plugin::new(dispatch.clone());
    // Served before the registration: the runtime configures as soon as it has the request.
    let mut server =
        Server::new().add_listener(only(plugin_end)).register_service(api::create_plugin(Arc::new(plugin)));
    if let Err(error) = server.start().await {
        return SessionEnd::Serve(error);
    }
    let runtime = api::RuntimeClient::new(Client::new(Socket::new(runtime_end)));
    let end = tokio::select! {
        end = &mut mux => return end.map_or_else(Into::into, Into::into),
        end = serve(config, &runtime, progress, status) => end,
        () = shutdown.cancelled() => SessionEnd::Stopped,
    };
    // Handlers finish and their answers leave before the connection is closed.
    let leave = async { tokio::join!(server.shutdown(), &mut mux) };
    if timeout(config.drain_timeout, leave).await.is_err() {
        warn!("closed the connection with answers still due");
    }
    end
}

/// Register, then follow the session's progress until the runtime shuts down.
async fn serve(
    config: &NriConfig,
    runtime: &api::RuntimeClient,
    mut progress: watch::Receiver<Progress>,
    status: &watch::Sender<SessionStatus>,
) -> SessionEnd {
    let limit = config.registration_timeout;
    let request = api::RegisterPluginRequest {
        plugin_name: config.plugin_name.clone(),
        plugin_idx: config.plugin_index.clone(),
        ..Default::default()
    };
    if let Err(error) = runtime.register_plugin(context::with_duration(limit), &request).await {
        return SessionEnd::Register(error);
    }
    debug!(name = config.plugin_name, index = config.plugin_index, "registered with the runtime");
    if timeout(limit, progress.wait_for(|progress| *progress != Progress::Connected)).await.is_err() {
        return SessionEnd::NotConfigured(limit);
    }
    loop {
        let reached = progress.borrow_and_update().clone();
        match reached {
            Progress::Synchronized(runtime) => {
                info!(runtime = runtime.name, version = runtime.version, "synchronized with the runtime");
                status.send_modify(|status| {
                    status.runtime = Some(runtime);
                    status.sessions += 1;
                    status.last_error = None;
                });
            }
            Progress::NotSynchronized => return SessionEnd::NotSynchronized,
            Progress::ShutDown => return SessionEnd::RuntimeShutdown,
            Progress::Connected | Progress::Configured(_) => {}
        }
        // The server keeps the sender for as long as it serves; without it, the mux tells the end.
        if progress.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A listener that accepts one connection and then none, without ending: the server stops listening by itself.
fn only(connection: DuplexStream) -> Listener {
    Listener::new(stream::iter([Ok(connection)]).chain(stream::pending()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread() {
        let config = NriConfig::default();
        assert_eq!(pause(&config, 0, 0), Duration::from_millis(25));
        assert_eq!(pause(&config, 1, 0), Duration::from_millis(50));
        for failed in 0..100 {
            for random in [0, 1, u64::MAX / 3, u64::MAX] {
                let pause = pause(&config, failed, random);
                assert!(pause >= config.reconnect_min / 2 && pause <= config.reconnect_max, "{pause:?}");
            }
        }
        assert!(pause(&config, 90, 1) != pause(&config, 90, u64::MAX / 3));
    }

    #[test]
    fn names_and_indexes_are_those_the_runtime_takes() {
        let valid = NriConfig::default();
        assert_eq!(valid.validate(), Ok(()));
        for name in ["", "net ferry", "net/ferry"] {
            let error = NriConfig { plugin_name: name.into(), ..valid.clone() }.validate().unwrap_err();
            assert!(error.contains(&format!("{name:?}")) && error.contains("letters"), "{error}");
        }
        for index in ["", "1", "100", "1a"] {
            let error = NriConfig { plugin_index: index.into(), ..valid.clone() }.validate().unwrap_err();
            assert!(error.contains(&format!("{index:?}")) && error.contains("two digits"), "{error}");
        }
    }
}
