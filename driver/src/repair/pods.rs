//! Tells when something has changed inside of pods: one socket in the namespace of each pod that has an interface of ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    claim::{Step, store::Store},
    link::{Namespace, kernel::KernelLinks},
    telemetry::chain,
};

/// What belongs together comes within this time: a link that goes up brings addresses and routes.
const GATHER: Duration = Duration::from_millis(50);
/// Longest pause between two looks at a pod that changes its interfaces all the time.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A pod that was quiet for this long is looked at at once again.
const QUIET: Duration = Duration::from_secs(30);
/// Pause before a namespace that cannot be listened to is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// Listens in the namespaces of pods.
pub struct PodEvents {
    /// To enter them.
    pub links: KernelLinks,
    /// Which pods have interfaces.
    pub store: Arc<Store>,
}

/// Ends its task, and with it the socket, which would keep the namespace of a pod that has ended.
struct Listener(AbortHandle);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PodEvents {
    /// Send the hold of each namespace in which links, addresses or routes have changed, until `stop`. A pod that changes
    /// them without end is told of ever less often, and no other pod waits for it.
    pub async fn watch(self, changed: mpsc::Sender<PathBuf>, stop: CancellationToken) {
        let mut records = self.store.changes();
        let mut listeners: BTreeMap<PathBuf, Listener> = BTreeMap::new();
        loop {
            records.mark_unchanged();
            let holds = self.holds();
            listeners.retain(|hold, _| holds.contains(hold));
            for hold in holds {
                listeners.entry(hold).or_insert_with_key(|hold| {
                    let task = listen(self.links.clone(), hold.clone(), changed.clone());
                    Listener(tokio::spawn(task).abort_handle())
                });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = records.changed() => {}
            }
        }
    }

    /// The namespaces that have an attached interface.
    fn holds(&self) -> BTreeSet<PathBuf> {
        self.store.look(|claims| {
            let interfaces = claims.values().flat_map(|checkpoint| &checkpoint.interfaces);
            let attached = interfaces.filter_map(|it| it.attachment.as_ref());
            attached.filter(|it| it.step == Step::Attached).map(|it| it.sandbox.hold.clone()).collect()
        })
    }
}

async fn listen(links: KernelLinks, hold: PathBuf, changed: mpsc::Sender<PathBuf>) {
    loop {
        if let Err(error) = tell(&links, &hold, &changed).await {
            debug!(namespace = %hold.display(), "changes are not listened to: {error}");
        }
        sleep(AGAIN).await;
    }
}

/// Until the socket fails.
async fn tell(links: &KernelLinks, hold: &Path, changed: &mpsc::Sender<PathBuf>) -> Result<(), String> {
    let opened = links.events(&Namespace::at(hold)).await;
    let mut events = opened.map_err(|error| chain(&error))?;
    let mut pause = GATHER;
    loop {
        let event = if let Ok(event) = timeout(QUIET, events.changed()).await {
            event
        } else {
            pause = GATHER;
            events.changed().await
        };
        event.map_err(|error| error.to_string())?;
        // Events of the pause come to wait in the socket, where the next look takes all of them for one: the kernel drops what
        // does not fit, and says so.
        sleep(pause).await;
        if changed.send(hold.to_owned()).await.is_err() {
            return Ok(());
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
