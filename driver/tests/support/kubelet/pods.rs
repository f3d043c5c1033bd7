//! The claims of pods as the kubelet's DRA manager treats them (`pkg/kubelet/cm/dra/manager.go`).
//!
//! A claim is prepared once, for the first pod that has it; a further pod makes no call. It is unprepared when
//! its last pod ends. What failed is tried again at the pod's next sync. The cache outlives the kubelet, but not
//! the knowledge that a claim is prepared: after a restart each is prepared again at a sync of its pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context as _, bail};
use netferry::claim::ClaimRef;
use serde::{Deserialize, Serialize};
use tokio::time::{self, Instant};

use super::{DriverHandle, Kubelet};

/// The shortest time between two syncs of a pod (60 to 90 s: `workerResyncIntervalJitterFactor` in
/// `pkg/kubelet/kubelet.go`). A prepare that failed counts as a sync that went well, and is not tried earlier.
pub const RESYNC: Duration = Duration::from_mins(1);

/// The claims of the node's pods.
pub(super) struct Claims {
    checkpoint: PathBuf,
    infos: Mutex<BTreeMap<String, ClaimInfo>>,
    calls: Mutex<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct ClaimInfo {
    uid: String,
    pods: BTreeSet<String>,
    #[serde(skip)]
    prepared: bool,
}

fn key(claim: &ClaimRef) -> String {
    format!("{}/{}", claim.namespace, claim.name)
}

impl Claims {
    pub(super) fn open(root: &Path) -> Self {
        let checkpoint = root.join("dra_manager_state");
        let infos = fs::read(&checkpoint).map(|bytes| serde_json::from_slice(&bytes).expect("its own file"));
        Self { checkpoint, infos: Mutex::new(infos.unwrap_or_default()), calls: Mutex::default() }
    }

    fn infos(&self) -> MutexGuard<'_, BTreeMap<String, ClaimInfo>> {
        self.infos.lock().expect("no test panics with it")
    }

    fn save(&self, infos: &BTreeMap<String, ClaimInfo>) -> anyhow::Result<()> {
        Ok(fs::write(&self.checkpoint, serde_json::to_vec(infos)?)?)
    }

    fn called(&self, verb: &str, claims: &[ClaimRef]) {
        let names: Vec<_> = claims.iter().map(|claim| claim.name.as_str()).collect();
        self.calls.lock().expect("no test panics with it").push(format!("{verb} {}", names.join(" ")));
    }
}

impl Kubelet {
    /// The same kubelet with another time between two syncs of a pod.
    #[must_use]
    pub fn with_resync(mut self, resync: Duration) -> Self {
        self.resync = resync;
        self
    }

    /// The calls that were made for pods, such as `prepare NAME NAME`.
    pub fn calls(&self) -> Vec<String> {
        self.claims.calls.lock().expect("no test panics with it").clone()
    }

    fn driver(&self, name: &str) -> anyhow::Result<DriverHandle> {
        let found = self.drivers.borrow().get(name).and_then(|instances| instances.last()).cloned();
        found.with_context(|| format!("DRA driver {name} is not registered"))
    }

    /// One sync of a pod that runs or starts, as far as its claims go: those that are not prepared are, in
    /// one call.
    pub async fn sync_pod(&self, driver: &str, pod: &str, claims: &[ClaimRef]) -> anyhow::Result<()> {
        // Without the driver nothing enters the cache, and a pod of prepared claims does not start either.
        let driver = self.driver(driver)?;
        let mut wanted = Vec::new();
        {
            let mut infos = self.claims.infos();
            for claim in claims {
                let info = infos.entry(key(claim)).or_insert_with(|| ClaimInfo {
                    uid: claim.uid.clone(),
                    pods: BTreeSet::new(),
                    prepared: false,
                });
                if info.uid != claim.uid {
                    bail!(
                        "old ResourceClaim with same name {} and different UID {} still exists",
                        claim.name,
                        info.uid
                    );
                }
                info.pods.insert(pod.to_owned());
                if !info.prepared {
                    wanted.push(claim.clone());
                }
            }
            self.claims.save(&infos)?;
        }
        if wanted.is_empty() {
            return Ok(());
        }
        self.claims.called("prepare", &wanted);
        let mut outcomes = driver.prepare(&wanted).await?;
        // One that failed fails them all: none of the call counts as prepared.
        for claim in &wanted {
            if let Some(Err(error)) = outcomes.remove(&claim.uid) {
                bail!("NodePrepareResources failed for ResourceClaim {}: {error}", claim.name);
            }
        }
        let mut infos = self.claims.infos();
        for claim in &wanted {
            infos.get_mut(&key(claim)).context("the claim left the cache")?.prepared = true;
        }
        Ok(())
    }

    /// Sync a pod until its claims are prepared, for as long as `patience`: at once, and then at each resync.
    /// Returns the errors of the syncs before.
    pub async fn start_pod(
        &self,
        driver: &str,
        pod: &str,
        claims: &[ClaimRef],
        patience: Duration,
    ) -> anyhow::Result<Vec<String>> {
        let (end, mut errors) = (Instant::now() + patience, Vec::new());
        loop {
            let Err(error) = self.sync_pod(driver, pod, claims).await else { return Ok(errors) };
            if Instant::now() + self.resync > end {
                return Err(error.context(format!("pod {pod} did not start; before: {errors:?}")));
            }
            errors.push(format!("{error:#}"));
            time::sleep(self.resync).await;
        }
    }

    /// One attempt to end a pod, as far as its claims go: those that no other pod has are unprepared, in one
    /// call. `claims` are those of the pod's spec, which count if the cache does not know the pod: then a
    /// claim is unprepared even under another pod that runs, as the kubelet does it.
    pub async fn end_pod(&self, driver: &str, pod: &str, claims: &[ClaimRef]) -> anyhow::Result<()> {
        let mut wanted = Vec::new();
        {
            let mut infos = self.claims.infos();
            let known = infos.values().any(|info| info.pods.contains(pod));
            for claim in claims {
                let Some(info) = infos.get_mut(&key(claim)) else { continue };
                if known && !info.pods.contains(pod) {
                    continue;
                }
                if info.pods.len() > 1 {
                    info.pods.remove(pod);
                } else {
                    wanted.push(ClaimRef { uid: info.uid.clone(), ..claim.clone() });
                }
            }
        }
        if !wanted.is_empty() {
            self.claims.called("unprepare", &wanted);
            let mut outcomes = self.driver(driver)?.unprepare(&wanted).await?;
            for claim in &wanted {
                if let Some(Err(error)) = outcomes.remove(&claim.uid) {
                    bail!("NodeUnprepareResources failed for ResourceClaim {}: {error}", claim.name);
                }
            }
        }
        let mut infos = self.claims.infos();
        for claim in &wanted {
            infos.remove(&key(claim));
        }
        self.claims.save(&infos)
    }
}
