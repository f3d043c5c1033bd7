//! Follows the addresses by which the node is reached, for discovery.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    cluster::{WholeCluster, reach::Addresses},
    device::management::Management,
    publish::publisher::jittered,
    telemetry::chain,
};

/// API servers may come and go, which nothing reports.
const REFRESH: Duration = Duration::from_mins(10);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Reads the addresses now, when the node's own changes, and from time to time. What was read last stays in force while the
/// API server is away.
pub(super) async fn follow(
    cluster: Arc<dyn WholeCluster>,
    underlay: Option<IpAddr>,
    mut own_address: watch::Receiver<Option<IpAddr>>,
    sender: watch::Sender<Management>,
    stop: CancellationToken,
) {
    let mut failed = false;
    loop {
        let wait = match cluster.addresses().await {
            Ok(Addresses { node, api_servers }) => {
                failed = false;
                let now = Management { node, api_servers, underlay: underlay.into_iter().collect() };
                let changed = sender.send_if_modified(|before| {
                    let changed = *before != now;
                    before.clone_from(&now);
                    changed
                });
                if changed {
                    info!(node = ?now.node, api_servers = ?now.api_servers, "links with these addresses stay on the host");
                }
                jittered(REFRESH, 0.75, 1.25)
            }
            Err(error) => {
                if !failed {
                    warn!("which links the node is reached by is not known: {}", chain(&error));
                }
                failed = true;
                jittered(RETRY, 0.5, 1.5)
            }
        };
        let due = Instant::now() + wait;
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(due) => {}
            Ok(()) = own_address.changed() => {}
        }
    }
}
