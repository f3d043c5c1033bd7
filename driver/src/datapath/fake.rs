//! A datapath without a kernel, for tests of what calls it: it keeps the state a real one would have, and
//! fails where it is told to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    AttachedProgram, Datapath, DatapathError, EndpointId, EndpointSpec, EndpointStats, ForeignProgram,
    limits::Limits,
    not_protected,
    policy::{Policy, Resolved},
    refuse_foreign,
    state::{MapPart, Wanted},
};

/// One verb of [`Datapath`], to say where to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// [`Datapath::foreign_programs`].
    ForeignPrograms,
    /// [`Datapath::attach`].
    Attach,
    /// [`Datapath::verify`].
    Verify,
    /// [`Datapath::set_policy`].
    SetPolicy,
    /// [`Datapath::set_limits`].
    SetLimits,
    /// [`Datapath::guard_link`].
    GuardLink,
    /// [`Datapath::guard_pod`].
    GuardPod,
    /// [`Datapath::set_ready`].
    SetReady,
    /// [`Datapath::attached_ifindex`].
    AttachedIfindex,
    /// [`Datapath::detach`].
    Detach,
    /// [`Datapath::endpoints`] and [`Datapath::last_endpoint`].
    Endpoints,
    /// [`Datapath::stats`].
    Stats,
}

/// What the fake holds for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeEndpoint {
    /// As given to attach.
    pub spec: EndpointSpec,
    /// The policy in force.
    pub policy: Option<Policy>,
    /// The limits in force.
    pub limits: Option<Limits>,
    /// The pod's cgroup, once it is guarded.
    pub guarded: Option<PathBuf>,
    /// Whether the gate is open.
    pub ready: bool,
    /// Where its programs are attached: `None` once the device is gone.
    pub ifindex: Option<u32>,
}

/// What the kernel's tables would say.
const UNKNOWN: &str = "it is not in the map of endpoints";

#[derive(Default)]
struct State {
    endpoints: BTreeMap<EndpointId, FakeEndpoint>,
    last: EndpointId,
    foreign: BTreeMap<u32, Vec<ForeignProgram>>,
    stats: BTreeMap<EndpointId, EndpointStats>,
    /// Successful calls to let through before the failures, and how many failures.
    failures: BTreeMap<Verb, (u32, u32)>,
    calls: Vec<(Verb, Option<EndpointId>)>,
}

/// See the module.
#[derive(Default)]
pub struct FakeDatapath {
    state: Mutex<State>,
}

impl FakeDatapath {
    /// An empty datapath on which everything works.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Let the next `times` calls of a verb fail, without effect.
    pub fn fail(&self, verb: Verb, times: u32) {
        self.fail_after(verb, 0, times);
    }

    /// Let `successes` calls of a verb work, and the `times` calls after them fail.
    pub fn fail_after(&self, verb: Verb, successes: u32, times: u32) {
        self.state().failures.insert(verb, (successes, times));
    }

    /// Put programs of somebody else on a host link.
    pub fn set_foreign(&self, ifindex: u32, programs: Vec<ForeignProgram>) {
        self.state().foreign.insert(ifindex, programs);
    }

    /// Tell the endpoint's programs that their device has another index now (it moved), or is gone.
    pub fn device_is_at(&self, id: EndpointId, ifindex: Option<u32>) {
        if let Some(endpoint) = self.state().endpoints.get_mut(&id) {
            endpoint.ifindex = ifindex;
        }
    }

    /// What [`Datapath::stats`] is to answer.
    pub fn set_stats(&self, id: EndpointId, stats: EndpointStats) {
        self.state().stats.insert(id, stats);
    }

    /// What is held for an endpoint.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<FakeEndpoint> {
        self.state().endpoints.get(&id).cloned()
    }

    /// Every call so far, failed ones included, with the endpoint it was about.
    #[must_use]
    pub fn calls(&self) -> Vec<(Verb, Option<EndpointId>)> {
        self.state().calls.clone()
    }

    fn enter(&self, verb: Verb, id: Option<EndpointId>) -> Result<MutexGuard<'_, State>, DatapathError> {
        let mut state = self.state();
        state.calls.push((verb, id));
        if let Some((successes, times)) = state.failures.get_mut(&verb) {
            if *successes > 0 {
                *successes -= 1;
            } else if *times > 0 {
                *times -= 1;
                return Err(DatapathError::Bpf {
                    action: format!("{verb:?} (failure asked for by the test)"),
                    source: std::io::Error::from_raw_os_error(libc::EIO).into(),
                });
            }
        }
        Ok(state)
    }
}

impl FakeEndpoint {
    fn programs(&self) -> Vec<AttachedProgram> {
        ["ingress", "egress"]
            .into_iter()
            .zip(1..)
            .map(|(hook, nth)| AttachedProgram {
                hook: format!("tcx/{hook}"),
                id: self.spec.id * 2 + nth,
                name: format!("link_{hook}"),
                pin: PathBuf::from(format!("/fake/links/{}/{hook}", self.spec.id)),
                ifindex: self.ifindex.unwrap_or(0),
            })
            .collect()
    }
}

impl Datapath for FakeDatapath {
    fn foreign_programs(&self, ifindex: u32) -> Result<Vec<ForeignProgram>, DatapathError> {
        let state = self.enter(Verb::ForeignPrograms, None)?;
        Ok(state.foreign.get(&ifindex).cloned().unwrap_or_default())
    }

    fn attach(&self, ifindex: u32, spec: &EndpointSpec) -> Result<Vec<AttachedProgram>, DatapathError> {
        let mut state = self.enter(Verb::Attach, Some(spec.id))?;
        refuse_foreign(ifindex, state.foreign.get(&ifindex).map_or(&[], Vec::as_slice))?;
        let endpoint = FakeEndpoint {
            spec: spec.clone(),
            policy: None,
            limits: None,
            guarded: None,
            ready: false,
            ifindex: Some(ifindex),
        };
        let programs = endpoint.programs();
        state.endpoints.insert(spec.id, endpoint);
        state.last = state.last.max(spec.id);
        Ok(programs)
    }

    fn preload(&self, _: &EndpointSpec) -> Result<(), DatapathError> {
        Ok(())
    }

    fn travels(&self) -> bool {
        true
    }

    fn attach_inside(
        &self,
        _: &Path,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.attach(ifindex, spec)
    }

    fn verify(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        let state = self.enter(Verb::Verify, Some(id))?;
        let endpoint =
            state.endpoints.get(&id).ok_or_else(|| not_protected(id, "its links are not pinned"))?;
        match endpoint.ifindex {
            Some(at) if at == ifindex => Ok(endpoint.programs()),
            Some(at) => Err(not_protected(id, format!("its programs are on interface {at}, not {ifindex}"))),
            None => Err(not_protected(id, "the device its programs were on is gone")),
        }
    }

    fn verify_inside(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.verify(id, ifindex)
    }

    fn serves(&self, id: EndpointId, _: &Path, ifindex: u32) -> Result<bool, DatapathError> {
        Ok(self.state().endpoints.get(&id).is_some_and(|endpoint| endpoint.ifindex == Some(ifindex)))
    }

    fn set_policy(&self, id: EndpointId, policy: &Policy) -> Result<(), DatapathError> {
        self.set_policy_for(id, policy, &Resolved::default())
    }

    fn set_policy_for(&self, id: EndpointId, policy: &Policy, _: &Resolved) -> Result<(), DatapathError> {
        let mut state = self.enter(Verb::SetPolicy, Some(id))?;
        let Some(endpoint) = state.endpoints.get_mut(&id) else { return Err(not_protected(id, UNKNOWN)) };
        endpoint.policy = Some(policy.clone());
        Ok(())
    }

    fn set_limits(&self, id: EndpointId, limits: &Limits) -> Result<(), DatapathError> {
        let mut state = self.enter(Verb::SetLimits, Some(id))?;
        let Some(endpoint) = state.endpoints.get_mut(&id) else { return Err(not_protected(id, UNKNOWN)) };
        endpoint.limits = Some(*limits);
        Ok(())
    }

    fn guard_link(&self, id: EndpointId, _: u32) -> Result<Option<String>, DatapathError> {
        let state = self.enter(Verb::GuardLink, Some(id))?;
        if state.endpoints.contains_key(&id) { Ok(None) } else { Err(not_protected(id, UNKNOWN)) }
    }

    fn guard_pod(&self, id: EndpointId, cgroup: &Path) -> Result<(), DatapathError> {
        let mut state = self.enter(Verb::GuardPod, Some(id))?;
        let Some(endpoint) = state.endpoints.get_mut(&id) else { return Err(not_protected(id, UNKNOWN)) };
        endpoint.guarded = Some(cgroup.to_owned());
        Ok(())
    }

    fn guards(&self, _: EndpointId) -> Result<Vec<AttachedProgram>, DatapathError> {
        Ok(Vec::new())
    }

    /// Its maps are always as wanted.
    fn compare(&self, _: &[Wanted]) -> Result<BTreeMap<EndpointId, Vec<MapPart>>, DatapathError> {
        Ok(BTreeMap::new())
    }

    fn mend(&self, wanted: &Wanted) -> Result<(), DatapathError> {
        self.set_ready(wanted.spec.id, wanted.open)
    }

    fn set_ready(&self, id: EndpointId, ready: bool) -> Result<(), DatapathError> {
        let mut state = self.enter(Verb::SetReady, Some(id))?;
        match state.endpoints.get_mut(&id) {
            Some(endpoint) => endpoint.ready = ready,
            None if ready => return Err(not_protected(id, UNKNOWN)),
            None => {}
        }
        Ok(())
    }

    fn attached_ifindex(&self, id: EndpointId) -> Result<Option<u32>, DatapathError> {
        let state = self.enter(Verb::AttachedIfindex, Some(id))?;
        Ok(state.endpoints.get(&id).and_then(|endpoint| endpoint.ifindex))
    }

    fn detach(&self, id: EndpointId) -> Result<(), DatapathError> {
        let mut state = self.enter(Verb::Detach, Some(id))?;
        state.endpoints.remove(&id);
        state.stats.remove(&id);
        Ok(())
    }

    fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        Ok(self.enter(Verb::Endpoints, None)?.endpoints.keys().copied().collect())
    }

    fn last_endpoint(&self) -> Result<EndpointId, DatapathError> {
        Ok(self.enter(Verb::Endpoints, None)?.last)
    }

    fn stats(&self, id: EndpointId) -> Result<EndpointStats, DatapathError> {
        Ok(self.enter(Verb::Stats, Some(id))?.stats.get(&id).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Placement;

    fn spec(id: EndpointId) -> EndpointSpec {
        EndpointSpec {
            id,
            placement: Placement::MovedLink,
            network: 0,
            mac: crate::link::MacAddr([2, 0, 0, 0, 0, 1]),
            addresses: vec![],
            mtu: 1500,
        }
    }

    #[test]
    fn keeps_state_as_the_kernel_would() {
        let fake = FakeDatapath::new();
        fake.attach(7, &spec(3)).unwrap();
        assert_eq!(fake.endpoints().unwrap(), [3]);
        assert!(!fake.endpoint(3).unwrap().ready);
        fake.device_is_at(3, Some(2));
        assert_eq!(fake.attached_ifindex(3).unwrap(), Some(2));
        assert!(fake.verify(3, 7).is_err());
        fake.verify(3, 2).unwrap();
        fake.set_ready(3, true).unwrap();
        assert!(fake.endpoint(3).unwrap().ready);
        fake.detach(3).unwrap();
        fake.detach(3).unwrap();
        assert!(fake.set_ready(3, true).is_err());
        assert!(fake.verify(3, 2).is_err());
    }

    #[test]
    fn fails_when_told_and_without_effect() {
        let fake = FakeDatapath::new();
        fake.fail_after(Verb::Attach, 1, 1);
        fake.attach(7, &spec(3)).unwrap();
        fake.attach(8, &spec(4)).unwrap_err();
        assert!(fake.endpoint(4).is_none());
        fake.attach(8, &spec(4)).unwrap();
        assert_eq!(fake.calls().len(), 3);
    }

    #[test]
    fn foreign_programs_refuse_an_attach() {
        let fake = FakeDatapath::new();
        fake.set_foreign(7, vec![ForeignProgram { hook: "xdp".into(), id: 9, name: "guard".into() }]);
        let refused = fake.attach(7, &spec(3)).unwrap_err().to_string();
        assert!(refused.contains("xdp") && refused.contains("guard"), "{refused}");
    }
}
