//! Follows the addresses by which the node is reached, for discovery.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

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
/// How long the start waits for the first answer, so that links are not published in one way and a moment later in another.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// Version of the file's layout.
const VERSION: u32 = 1;

/// The addresses as the API server reported them last.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OnDisk {
    version: u32,
    node: BTreeSet<IpAddr>,
    api_servers: BTreeSet<IpAddr>,
}

/// What is known at the start, before the API server is asked: what it reported to an earlier run (`file`), and what the
/// configuration says. Without an earlier run the node's own addresses are unknown.
pub(super) fn at_start(
    by_configuration: BTreeSet<IpAddr>,
    underlay: Option<IpAddr>,
    file: &Path,
) -> Management {
    let known = read(file);
    let unknown = known.is_none();
    let (node, mut api_servers) = known.map(|it| (it.node, it.api_servers)).unwrap_or_default();
    api_servers.extend(by_configuration);
    Management { node, api_servers, underlay: underlay.into_iter().collect(), unknown }
}

/// A file that cannot be used is set aside as `<file>.bad`: the addresses are then unknown until the API server is reached.
fn read(file: &Path) -> Option<OnDisk> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                error!(path = %file.display(), %error, "cannot be read");
            }
            return None;
        }
    };
    let problem = match serde_json::from_slice::<OnDisk>(&text) {
        Ok(known) if known.version == VERSION => return Some(known),
        Ok(known) => format!("version {}; this build reads {VERSION}", known.version),
        Err(error) => error.to_string(),
    };
    let bad = file.with_extension("json.bad");
    let renamed = fs::rename(file, &bad);
    error!(path = %file.display(), bad = %bad.display(), ?renamed, "set aside: {problem}");
    None
}

fn write(file: &Path, known: &OnDisk) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new().prefix(".management-").tempfile_in(folder)?;
    serde_json::to_writer_pretty(&mut temporary, known)?;
    temporary.write_all(b"\n")?;
    temporary.as_file().sync_all()?;
    temporary.persist(file).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Wait a moment for the first answer of the API server.
pub(super) async fn first_answer(management: &watch::Receiver<Management>) {
    let mut management = management.clone();
    let known = timeout(FIRST_ANSWER, management.wait_for(|it| !it.unknown)).await;
    if !matches!(known, Ok(Ok(_))) {
        warn!(
            "until the node's addresses are known, no link with an address or a default route is moved into a pod"
        );
    }
}

/// Reads the addresses now, when the node's own changes, and from time to time. What was read last stays in force while the
/// API server is away, and is written to `file` for the next start.
pub(super) async fn follow(
    cluster: Arc<dyn WholeCluster>,
    underlay: Option<IpAddr>,
    mut own_address: watch::Receiver<Option<IpAddr>>,
    sender: watch::Sender<Management>,
    file: PathBuf,
    stop: CancellationToken,
) {
    let mut failed = false;
    let mut written = None;
    loop {
        let wait = match cluster.addresses().await {
            Ok(Addresses { node, api_servers }) => {
                failed = false;
                let known = OnDisk { version: VERSION, node: node.clone(), api_servers: api_servers.clone() };
                let underlay = underlay.into_iter().collect();
                let now = Management { node, api_servers, underlay, unknown: false };
                let changed = sender.send_if_modified(|before| {
                    let changed = *before != now;
                    before.clone_from(&now);
                    changed
                });
                if changed {
                    info!(node = ?now.node, api_servers = ?now.api_servers, "links with these addresses stay on the host");
                }
                if written.as_ref() != Some(&known) {
                    match write(&file, &known) {
                        Ok(()) => written = Some(known),
                        Err(error) => {
                            warn!(path = %file.display(), %error, "the node's addresses cannot be saved");
                        }
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> BTreeSet<IpAddr> {
        [text.parse().expect("an IP address")].into()
    }

    #[test]
    fn the_addresses_of_the_last_run_hold_at_the_next_start() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("management.json");
        let start = || at_start(ip("198.51.100.1"), "203.0.113.7".parse().ok(), &file);
        let (node, api_servers, underlay) = (BTreeSet::new(), ip("198.51.100.1"), ip("203.0.113.7"));
        let first = Management { node, api_servers, underlay, unknown: true };
        assert_eq!(start(), first, "what the configuration says holds before anything was learnt");

        let known = OnDisk { version: VERSION, node: ip("192.0.2.7"), api_servers: ip("198.51.100.2") };
        write(&file, &known).expect("written");
        let management = start();
        assert!(!management.unknown);
        assert_eq!(management.node, ip("192.0.2.7"));
        assert_eq!(management.api_servers, &ip("198.51.100.1") | &ip("198.51.100.2"));

        for damaged in ["", "{", r#"{"version":9,"node":[],"apiServers":[]}"#] {
            fs::write(&file, damaged).expect("written");
            assert_eq!(start(), first, "{damaged:?}");
            assert_eq!(
                fs::read_to_string(dir.path().join("management.json.bad")).expect("set aside"),
                damaged
            );
        }
    }
}
