//! [`Datapath`] on the kernel: tcx links, pinned, and the shared maps.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Ebpf;

use super::block::BlockTable;
use super::fallback::{unpin_filter, within};
use super::features::Features;
use super::foreign::{self, TcxProgram};
use super::guard::CgroupPrograms;
use super::load::{Programs, update};
use super::object::{ProgramLoader, check_pinned, program_name};
use super::pins::Pins;
use super::policy::{Policy, PolicyTables, Resolved};
use super::state::{MapPart, Wanted};
use super::sys::{self, Hook};
use super::tables::Tables;
use super::verify::Order;
use super::{
    AttachedProgram, Datapath, DatapathError, EndpointId, EndpointSpec, EndpointStats, ForeignProgram,
    Placement, bpf_error, limits::Limits, not_protected, refuse_foreign,
};
use crate::keyed::Keyed;

/// The programs and maps of this host, found again by their pins after a restart.
pub struct AyaDatapath {
    pub(super) pins: Pins,
    pub(super) programs: ProgramLoader,
    features: Features,
    pub(super) cgroup_programs: CgroupPrograms,
    /// Verbs about one endpoint take turns: they wait for the kernel's verifier, and for grace periods.
    pub(super) turns: Keyed<EndpointId>,
    /// Never held over a wait: all endpoints have these tables.
    written: Mutex<Written>,
}

pub(super) struct Written {
    pub(super) tables: Tables,
    pub(super) policies: PolicyTables,
    pub(super) blocked: BlockTable,
    /// Whether `policies` knows what an earlier process left.
    pub(super) recovered: bool,
    /// Programs loaded ahead for endpoints that are not attached yet.
    pub(super) preloaded: BTreeMap<EndpointId, Programs>,
    /// What the maps were taken from. Its programs serve no endpoint: the flow sweeper has one of them.
    pub(super) nobodys: Option<Ebpf>,
    /// Programs this process has attached: they are of this version, on these maps, and may stay.
    pub(super) attached: BTreeMap<u32, (EndpointId, &'static str)>,
}

impl AyaDatapath {
    /// Opens the pins under `root` ([`super::DEFAULT_ROOT`] on a host), or makes them. Mounts nothing: fails if
    /// the root is not on a bpf file system, or if a pinned map has another layout.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        Self::open_sized(root, Features::probe(), None)
    }

    /// As [`Self::open`], with the features of the kernel as given: for a kernel to be used as one that has less.
    pub fn open_with(root: &Path, features: Features) -> Result<Self, DatapathError> {
        Self::open_sized(root, features, None)
    }

    /// Likewise, with room for that many flows if the maps are made now; a table that is pinned keeps its size.
    pub fn open_sized(root: &Path, features: Features, flows: Option<u32>) -> Result<Self, DatapathError> {
        features.require()?;
        Self::with_pins(Pins::create(root)?, features, flows)
    }

    /// Opens the pins that a daemon has made under `root`. Makes nothing: where none are, it fails with
    /// [`DatapathError::Absent`].
    pub fn open_existing(root: &Path) -> Result<Self, DatapathError> {
        let pins = Pins::existing(root)?;
        let features = Features::probe();
        features.require()?;
        Self::with_pins(pins, features, None)
    }

    fn with_pins(pins: Pins, features: Features, flows: Option<u32>) -> Result<Self, DatapathError> {
        check_pinned(&pins.maps())?;
        let programs = ProgramLoader::new(&pins, features, flows)?;
        // Endpoint 0 is nobody's.
        let mut object = programs.prepare(0)?;
        let tables = Tables::take(&mut object)?;
        let policies = PolicyTables::take(&mut object, &pins.maps())?;
        let blocked = BlockTable::take(&mut object)?;
        Ok(Self {
            pins,
            programs,
            features,
            cgroup_programs: CgroupPrograms::default(),
            turns: Keyed::default(),
            written: Mutex::new(Written {
                tables,
                policies,
                blocked,
                recovered: false,
                preloaded: BTreeMap::new(),
                nobodys: Some(object),
                attached: BTreeMap::new(),
            }),
        })
    }

    /// What this kernel can do.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    pub(super) fn written(&self) -> MutexGuard<'_, Written> {
        // A panic between two map writes leaves what a kill would leave, and the verbs repair that.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Programs on a link: those of others, and which of our endpoints the rest belong to.
    pub(super) fn survey(
        &self,
        ifindex: u32,
    ) -> Result<(Vec<ForeignProgram>, Vec<EndpointId>), DatapathError> {
        let tcx = foreign::tcx_programs(ifindex)?;
        let others = foreign::netlink_programs(ifindex)?;
        let ids = tcx.iter().map(|program| program.id).chain(others.iter().map(|program| program.id));
        let owners = self.owners(&ids.collect::<Vec<_>>())?;
        let (mut foreign, mut ours) = (Vec::new(), Vec::new());
        for TcxProgram { hook, id } in tcx {
            match owners.iter().find(|(program, _)| *program == id) {
                Some((_, endpoint)) => ours.push(*endpoint),
                None => foreign.push(foreign::describe(hook.name(), id)),
            }
        }
        for program in others {
            match owners.iter().find(|(id, _)| *id == program.id) {
                Some((_, endpoint)) => ours.push(*endpoint),
                None if program.id != 0 && self.is_guard(program.id)? => {}
                None => foreign.push(program),
            }
        }
        Ok((foreign, ours))
    }

    /// Which endpoints run these programs. Those of this process are known; for others all pins are read.
    fn owners(&self, programs: &[u32]) -> Result<Vec<(u32, EndpointId)>, DatapathError> {
        let (mut owners, mut unknown) = (Vec::new(), Vec::new());
        {
            let written = self.written();
            for program in programs.iter().filter(|program| **program != 0) {
                match written.attached.get(program) {
                    Some((endpoint, _)) => owners.push((*program, *endpoint)),
                    None => unknown.push(*program),
                }
            }
        }
        owners.extend(self.pins.owners(&unknown)?);
        Ok(owners)
    }

    /// Looks for what an earlier attach has left: links on this device are kept, to be updated in place; links
    /// of a device that is gone are removed; links in use on another device are a refusal.
    fn sort_leftovers(
        &self,
        id: EndpointId,
        ifindex: u32,
        on_link: &[EndpointId],
    ) -> Result<(), DatapathError> {
        if let Some(other) = on_link.iter().find(|other| **other != id) {
            return Err(not_protected(
                id,
                format!("the link still carries the programs of endpoint {other}"),
            ));
        }
        for link in self.pins.links_of(id)? {
            match link.info.ifindex {
                0 => link.remove()?,
                at if at == ifindex && link.runs_here() => {}
                at => {
                    let problem = format!("its programs are on another device (index {at} in its namespace)");
                    return Err(not_protected(id, problem));
                }
            }
        }
        Ok(())
    }

    fn attach_hook(
        &self,
        object: &mut Option<Programs>,
        ifindex: u32,
        spec: &EndpointSpec,
        hook: Hook,
    ) -> Result<(), DatapathError> {
        let name = program_name(spec.placement, hook);
        let there = self.pins.link(spec.id, hook)?;
        if there
            .as_ref()
            .is_some_and(|link| self.written().attached.get(&link.info.program) == Some(&(spec.id, name)))
        {
            return Ok(());
        }
        if object.is_none() {
            let preloaded = self.written().take_preloaded(spec.id, spec.placement);
            let prepare = || self.programs.prepare(spec.id).map(Programs::Object);
            *object = Some(preloaded.map_or_else(prepare, Ok)?);
        }
        let Some(object) = object else { return Ok(()) };
        if let Some(link) = there {
            return update(&link, object.get(name, spec.id)?, name, spec.id, &mut self.written());
        }
        let program = object.get(name, spec.id)?;
        let failed =
            |doing| format!("{doing} the program {name} of endpoint {} to interface {ifindex}", spec.id);
        let link = sys::attach_first(program, ifindex, hook)
            .map_err(|source| bpf_error(failed("attach"), source))?;
        self.pins.pin(spec.id, hook, &link)?;
        self.written().remember(&link, spec.id, name)
    }

    fn try_attach(&self, ifindex: u32, spec: &EndpointSpec) -> Result<Vec<AttachedProgram>, DatapathError> {
        {
            let mut written = self.written();
            written.forget(spec.id)?;
            written.tables.write(ifindex, spec)?;
        }
        fail_point("datapath::attach::written")?;
        let mut object = None;
        self.attach_hook(&mut object, ifindex, spec, Hook::Ingress)?;
        fail_point("datapath::attach::ingress")?;
        self.attach_hook(&mut object, ifindex, spec, Hook::Egress)?;
        fail_point("datapath::attach::egress")?;
        self.check(spec.id, ifindex, Order::Seen)
    }

    /// Detach, unpin and forget. The caller has the endpoint's turn.
    pub(super) fn remove(&self, id: EndpointId) -> Result<(), DatapathError> {
        self.written().tables.set_ready(id, false)?;
        self.remove_guards(id)?;
        for filter in self.pins.programs_of(id)? {
            unpin_filter(&filter)?;
        }
        self.pins.remove(id)?;
        let mut written = self.written();
        written.attached.retain(|_, (endpoint, _)| *endpoint != id);
        written.preloaded.remove(&id);
        written.forget(id)
    }
}

/// A place at which a test can make an attach fail, or kill the process.
#[cfg_attr(
    not(feature = "failpoints"),
    allow(unused_variables, reason = "the point is not there without the feature")
)]
fn fail_point(name: &'static str) -> Result<(), DatapathError> {
    fail::fail_point!(name, |argument| {
        if argument.as_deref() == Some("abort") {
            std::process::abort();
        }
        Err(bpf_error(format!("pass {name}"), "failure asked for by the test"))
    });
    let _ = name;
    Ok(())
}

/// Endpoints whose programs are held loaded ahead of their attach: about 100 kB of kernel memory each.
const MOST_PRELOADED: usize = 256;

impl Datapath for AyaDatapath {
    fn foreign_programs(&self, ifindex: u32) -> Result<Vec<ForeignProgram>, DatapathError> {
        Ok(self.survey(ifindex)?.0)
    }

    fn attach(&self, ifindex: u32, spec: &EndpointSpec) -> Result<Vec<AttachedProgram>, DatapathError> {
        if spec.id == 0 {
            return Err(not_protected(0, "0 is no endpoint id"));
        }
        if !self.features.tcx && spec.placement == Placement::HostVeth {
            return self.attach_filters(ifindex, spec);
        }
        if !self.features.tcx {
            return Err(DatapathError::Unsupported {
                feature: "tcx (upstream since Linux 6.6)",
                consequence: "a pod could remove the programs of a moved link, so isolation strict is refused (best-effort \
                              is possible)",
            });
        }
        let _turn = self.turns.lock(&spec.id);
        let (foreign, ours) = self.survey(ifindex)?;
        refuse_foreign(ifindex, &foreign)?;
        self.sort_leftovers(spec.id, ifindex, &ours)?;
        self.try_attach(ifindex, spec).inspect_err(|_| {
            if let Err(error) = self.remove(spec.id) {
                tracing::error!(endpoint = spec.id, %error, "a failed attach could not be undone; it drops everything");
            }
        })
    }

    fn travels(&self) -> bool {
        self.features.tcx
    }

    fn attach_inside(
        &self,
        netns: &Path,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        if spec.id == 0 {
            return Err(not_protected(0, "0 is no endpoint id"));
        }
        self.attach_filters_in(netns, ifindex, spec)
    }

    fn preload(&self, spec: &EndpointSpec) -> Result<(), DatapathError> {
        let names = Hook::BOTH.map(|hook| program_name(spec.placement, hook));
        let loaded = Programs::load(self.programs.prepare(spec.id)?, names, spec.id)?;
        let mut written = self.written();
        if written.preloaded.len() >= MOST_PRELOADED {
            written.preloaded.pop_first();
        }
        written.preloaded.insert(spec.id, loaded);
        Ok(())
    }

    fn verify(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.check(id, ifindex, Order::IfVisible)
    }

    fn verify_inside(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.check(id, ifindex, Order::Seen)
    }

    fn serves(&self, id: EndpointId, netns: &Path, ifindex: u32) -> Result<bool, DatapathError> {
        Ok(within(netns, || self.check(id, ifindex, Order::Seen))?.is_ok())
    }

    fn set_policy(&self, id: EndpointId, policy: &Policy) -> Result<(), DatapathError> {
        self.set_policy_for(id, policy, &Resolved::default())
    }

    fn set_policy_for(&self, id: EndpointId, policy: &Policy, peers: &Resolved) -> Result<(), DatapathError> {
        self.compile_and_set(id, policy, peers)
    }

    fn set_limits(&self, id: EndpointId, limits: &Limits) -> Result<(), DatapathError> {
        self.write_limits(id, limits)
    }

    fn guard_link(&self, id: EndpointId, ifindex: u32) -> Result<Option<String>, DatapathError> {
        self.guard_device(id, ifindex)
    }

    fn guard_pod(&self, id: EndpointId, cgroup: &Path) -> Result<(), DatapathError> {
        self.guard_cgroup(id, cgroup)
    }

    fn guards(&self, id: EndpointId) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.list_guards(id)
    }

    fn compare(&self, wanted: &[Wanted]) -> Result<BTreeMap<EndpointId, Vec<MapPart>>, DatapathError> {
        self.compare_with(wanted)
    }

    fn mend(&self, wanted: &Wanted) -> Result<(), DatapathError> {
        self.mend_maps(wanted)
    }

    fn set_ready(&self, id: EndpointId, ready: bool) -> Result<(), DatapathError> {
        self.written().tables.set_ready(id, ready)
    }

    fn attached_ifindex(&self, id: EndpointId) -> Result<Option<u32>, DatapathError> {
        let links = self.pins.links_of(id)?;
        if let Some(filter) = self.pins.programs_of(id)?.first() {
            return self.filter_ifindex(id, filter.ifindex);
        }
        Ok(links.iter().map(|link| link.info.ifindex).find(|ifindex| *ifindex != 0))
    }

    fn detach(&self, id: EndpointId) -> Result<(), DatapathError> {
        {
            let _turn = self.turns.lock(&id);
            self.remove(id)?;
        }
        self.reclaim()
    }

    fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        let mut ids = self.pins.endpoints()?;
        ids.extend(self.written().tables.endpoints()?);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn last_endpoint(&self) -> Result<EndpointId, DatapathError> {
        self.written().tables.last_endpoint().map_err(|source| bpf_error("read the slots", source))
    }

    fn stats(&self, id: EndpointId) -> Result<EndpointStats, DatapathError> {
        self.written().tables.stats(id)
    }
}
