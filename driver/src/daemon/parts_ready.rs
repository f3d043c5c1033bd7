//! What readiness hears of the daemon's parts.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;
use tracing::warn;

use super::runtime_note::RuntimeNote;
use crate::{
    dra::registration::RegistrationState,
    nri::session::SessionStatus,
    publish::publisher::PublishStats,
    readiness::{Part, Readiness},
};

/// The slices are ready once they have been right; from then on the publisher keeps them so.
pub(super) async fn tell_publisher(readiness: Arc<Readiness>, stats: Arc<PublishStats>) {
    readiness.set_waiting(Part::Slices, "not published yet");
    while stats.last_success.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    readiness.set_ready(Part::Slices);
}

pub(super) async fn tell_runtime(
    readiness: Arc<Readiness>,
    mut status: watch::Receiver<SessionStatus>,
    run_dir: PathBuf,
) {
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        if now.is_ready() {
            readiness.set_ready(Part::Runtime);
            let note =
                now.runtime.map(|runtime| RuntimeNote { name: runtime.name, version: runtime.version });
            if let Some(Err(error)) = note.map(|note| note.write(&run_dir)) {
                warn!(%error, "cannot write the runtime's version for netferry doctor");
            }
        } else {
            readiness
                .set_waiting(Part::Runtime, now.last_error.unwrap_or_else(|| "not connected".to_owned()));
        }
    }
}

pub(super) async fn tell_kubelet(readiness: Arc<Readiness>, mut state: watch::Receiver<RegistrationState>) {
    while state.changed().await.is_ok() {
        let now = state.borrow_and_update().clone();
        match now {
            RegistrationState::Registered => readiness.set_ready(Part::Kubelet),
            RegistrationState::Waiting => readiness.set_waiting(Part::Kubelet, "not registered"),
            RegistrationState::Failed(why) => readiness.set_waiting(Part::Kubelet, why),
        }
    }
}
