//! The parts of the daemon that run at the same time, and their end.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{readiness::Readiness, telemetry::chain};

/// Tasks that run as long as the daemon. The end of one before the stop is the end of all: the kubelet or the
/// service manager starts a whole daemon again, which a part cannot do for itself.
pub(super) struct Tasks {
    pub(super) readiness: Arc<Readiness>,
    pub(super) set: JoinSet<&'static str>,
}

impl Tasks {
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    pub(super) async fn until(mut self, stop: &CancellationToken) -> Result<()> {
        let mut result = Ok(());
        tokio::select! {
            // A part that stops because it was told to may be seen before the telling is.
            biased;
            () = stop.cancelled() => {}
            Some(ended) = self.set.join_next() => {
                let what = match ended {
                    Ok(name) => format!("{name} ended"),
                    Err(error) => format!("a part failed: {error}"),
                };
                self.readiness.task_ended("the daemon", &what);
                result = Err(anyhow::anyhow!("{what} before the daemon was told to stop"));
                stop.cancel();
            }
        }
        // The HTTP server answers until the end; everything else drains.
        let drained = async {
            while let Some(ended) = self.set.join_next().await {
                if let Err(error) = ended {
                    warn!("{}", chain(&error));
                }
                if self.set.len() <= 1 {
                    break;
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(15), drained).await.is_err() {
            warn!("some parts did not stop in time");
        }
        self.set.abort_all();
        result
    }
}
