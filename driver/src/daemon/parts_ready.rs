//! What readiness hears of the daemon's parts.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;
use tracing::warn;

use super::runtime_note::RuntimeNote;
use crate::{
    dra::registration::RegistrationState,
    nri::session::SessionStatus,
    publish::publisher::{PublishStats, Standing},
    readiness::{Part, Readiness},
};

/// The slices are ready while they are as they should be.
pub(super) async fn tell_publisher(readiness: Arc<Readiness>, stats: Arc<PublishStats>) {
    let mut standing = stats.standing.subscribe();
    loop {
        match standing.borrow_and_update().clone() {
            Standing::NotYet => readiness.set_waiting(Part::Slices, "not published yet"),
            Standing::InPlace => readiness.set_ready(Part::Slices),
            Standing::Other(why) => readiness.set_waiting(Part::Slices, why),
        }
        if standing.changed().await.is_err() {
            return;
        }
    }
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
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            RegistrationState::Registered => readiness.set_ready(Part::Kubelet),
            RegistrationState::Waiting => readiness.set_waiting(Part::Kubelet, "not registered"),
            RegistrationState::Failed(why) => readiness.set_waiting(Part::Kubelet, why),
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}
