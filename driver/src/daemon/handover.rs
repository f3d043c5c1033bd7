//! Two instances of the driver on one node: one is active, the other stands by and takes over when the first ends.
//!
//! An update of the DaemonSet starts the new pod before it ends the old one. The new instance registers sockets of its own
//! with the kubelet, which calls the instance that was registered last; it forwards calls to the active one, and takes over
//! state, runtime, slices and port when that has let go of the state folder's lock.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::lock::{StateLock, active_socket, others_wait};
use crate::{
    config::RunConfig,
    dra::{
        Dra, Sockets,
        refusals::LastRefusal,
        registration::RegistrationState,
        switch::{Active, Switch},
    },
};

/// The kubelet's plugin manager looks for sockets that are gone once a second. So long an instance that stops goes on serving
/// after its registration socket is gone, if another is there to be called instead.
const LEAVE: Duration = Duration::from_millis(1200);

/// When this instance stops.
#[derive(Clone)]
pub(super) struct Stop {
    /// It asks not to be called any more.
    pub(super) leaving: CancellationToken,
    /// It ends.
    pub(super) now: CancellationToken,
}

impl Stop {
    pub(super) fn new() -> Self {
        let now = CancellationToken::new();
        Self { leaving: now.child_token(), now }
    }

    /// Begin to stop: at once, or, if another instance is there, when the kubelet calls that one.
    pub(super) async fn begin(&self, state_dir: &std::path::Path) {
        self.leaving.cancel();
        if others_wait(state_dir) {
            info!("another instance is there; the kubelet is given the time to call it");
            tokio::select! {
                () = sleep(LEAVE) => {}
                () = self.now.cancelled() => {}
            }
        }
        self.now.cancel();
    }
}

/// Begin to stop with SIGTERM or SIGINT.
pub(super) fn stop_on_signal(config: &RunConfig) -> Result<Stop> {
    let (stop, state_dir) = (Stop::new(), config.state.state_dir.clone());
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        info!("stopping; links stay in their pods");
        token.begin(&state_dir).await;
    });
    Ok(stop)
}

/// The kubelet's side of this instance, active or not.
pub(super) struct Handover {
    switch: Arc<Switch>,
    /// Where the kubelet finds this instance.
    pub(super) sockets: Sockets,
    /// The last call of the kubelet that was refused before it reached a service.
    pub(super) refused: LastRefusal,
    /// What the kubelet said of the registration.
    pub(super) registered: watch::Receiver<RegistrationState>,
    /// Not served yet, as long as the instance neither stands by nor is active.
    waiting: Option<Dra>,
    serving: Option<JoinHandle<()>>,
    /// Whether this instance does what it is there for: an answer for [`crate::cli::probe`].
    up: watch::Sender<bool>,
}

/// The lock of the state folder, once this process has it: until its end, whatever still runs then.
static LOCK: OnceLock<StateLock> = OnceLock::new();

impl Handover {
    /// Become the active instance. If another one is, stand by until it has ended; `None` if this one was stopped before.
    pub(super) async fn begin(config: &RunConfig, stop: &Stop) -> Result<Option<Self>> {
        let state_dir = &config.state.state_dir;
        let sockets =
            Sockets::of(&config.kubelet_root_dir, &config.driver_name, config.instance.name.as_deref());
        let (dir, own) = (state_dir.clone(), sockets.plugin.clone());
        // Never itself: while it takes over, its own socket is in the lock's file already.
        let other = move || active_socket(&dir).filter(|socket| *socket != own);
        let switch = Arc::new(Switch::new(other));
        let refused = LastRefusal::default();
        let (state, registered) = watch::channel(RegistrationState::default());
        let dra = Dra {
            driver: config.driver_name.clone(),
            sockets: sockets.clone(),
            claims: Arc::clone(&switch) as _,
            health: switch.active(),
            state,
            refused: refused.clone(),
        };
        let (up, is_up) = watch::channel(false);
        if let Some(socket) = config.instance.probe_socket(&config.state.run_dir) {
            probes(&socket, is_up, stop.now.clone())
                .with_context(|| format!("socket {}", socket.display()))?;
        }
        let mut this = Self { switch, sockets, refused, registered, waiting: Some(dra), serving: None, up };
        let what = || format!("cannot lock the state folder {}", state_dir.display());
        let mut lock = StateLock::try_take(state_dir).with_context(what)?;
        if lock.is_none() {
            info!("another instance is active on this node; standing by");
            if config.instance.name.is_some() {
                this.serve(stop)?;
                tokio::spawn(up_when_registered(this.registered.clone(), this.up.clone()));
            }
            lock = tokio::select! {
                lock = StateLock::wait(state_dir) => Some(lock.with_context(what)?),
                () = stop.now.cancelled() => None,
            };
            if lock.is_some() {
                info!("the other instance has ended; taking over");
            }
        }
        let Some(mut lock) = lock else {
            this.ended().await;
            return Ok(None);
        };
        lock.announce(&this.sockets.plugin).with_context(what)?;
        let _ = LOCK.set(lock);
        this.sockets.remove_dead();
        Ok(Some(this))
    }

    fn serve(&mut self, stop: &Stop) -> Result<()> {
        let Some(dra) = self.waiting.take() else { return Ok(()) };
        let serving = dra.bind()?;
        let (leaving, now) = (stop.leaving.clone(), stop.now.clone());
        self.serving = Some(tokio::spawn(serving.serve(leaving, now)));
        Ok(())
    }

    /// Serve what this instance does; ends with it.
    pub(super) fn activate(&mut self, active: Active, stop: &Stop) -> impl Future<Output = ()> + use<> {
        self.switch.activate(active);
        self.up.send_replace(true);
        let bound = self.serve(stop);
        let serving = self.serving.take();
        async move {
            if let Err(error) = bound {
                error!("cannot listen for the kubelet: {error:#}");
                return;
            }
            if let Some(serving) = serving {
                let _ = serving.await;
            }
        }
    }

    async fn ended(&mut self) {
        if let Some(serving) = self.serving.take()
            && timeout(Duration::from_secs(5), serving).await.is_err()
        {
            warn!("calls of the kubelet were cut off");
        }
    }
}

async fn up_when_registered(mut registered: watch::Receiver<RegistrationState>, up: watch::Sender<bool>) {
    if registered.wait_for(|state| *state == RegistrationState::Registered).await.is_ok() {
        up.send_replace(true);
    }
}

/// Answer each connection with whether this instance is up.
fn probes(socket: &PathBuf, up: watch::Receiver<bool>, stop: CancellationToken) -> std::io::Result<()> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    let socket = socket.clone();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            if let Ok((mut stream, _)) = accepted {
                let answer: &[u8] = if *up.borrow() { b"up\n" } else { b"not up yet\n" };
                let _ = timeout(Duration::from_secs(1), stream.write_all(answer)).await;
            }
        }
        let _ = std::fs::remove_file(&socket);
    });
    Ok(())
}
