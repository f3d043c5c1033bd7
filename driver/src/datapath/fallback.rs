//! The datapath on kernels without tcx: filters of a clsact qdisc run the programs, and the programs are pinned.
//!
//! On the host's end of a veth pair that protects as well as tcx: the pod cannot reach it. On a moved link the filters
//! can only be put on inside the pod, as the qdisc does not travel, and a pod with `CAP_NET_ADMIN` can take them off.
//! The drift watch puts them back.

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::clsact::{self, Filter};
use super::kernel::{AyaDatapath, Written};
use super::load::Programs;
use super::object::program_name;
use super::pins::PinnedProgram;
use super::sys::Hook;
use super::verify::Order;
use super::{
    AttachedProgram, DatapathError, EndpointId, EndpointSpec, bpf_error, not_protected, refuse_foreign,
};

/// Whether an upgrade has reached the filters of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    Updated,
    /// They are in another namespace.
    Elsewhere,
}

/// Do some work on a thread of its own in the namespace at `netns`.
pub(super) fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> Result<T, DatapathError> {
    let entered = |source: std::io::Error| {
        bpf_error(format!("enter the network namespace {}", netns.display()), source)
    };
    let file = File::open(netns).map_err(entered)?;
    std::thread::scope(|scope| {
        let inside = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| entered(error.into()))?;
            Ok(work())
        });
        match inside.map_err(entered)?.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

impl AyaDatapath {
    /// As [`super::Datapath::attach`], by filters, on a device of the calling thread's namespace.
    pub(super) fn attach_filters(
        &self,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        let _turn = self.turns.lock(&spec.id);
        let (foreign, ours) = self.survey(ifindex)?;
        refuse_foreign(ifindex, &foreign)?;
        if let Some(other) = ours.iter().find(|other| **other != spec.id) {
            return Err(not_protected(
                spec.id,
                format!("the link still carries the programs of endpoint {other}"),
            ));
        }
        let attached = self.try_attach_filters(&mut self.written(), ifindex, spec);
        let checked = attached.and_then(|()| self.check(spec.id, ifindex, Order::Seen));
        checked.inspect_err(|_| {
            if let Err(error) = self.remove(spec.id) {
                tracing::error!(endpoint = spec.id, %error, "a failed attach could not be undone; it drops everything");
            }
        })
    }

    /// As [`Self::attach_filters`], on a device in the namespace at `netns`.
    pub(super) fn attach_filters_in(
        &self,
        netns: &Path,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        within(netns, || self.attach_filters(ifindex, spec))?
    }

    fn try_attach_filters(
        &self,
        written: &mut Written,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<(), DatapathError> {
        // What an earlier try has left on another device is for nothing: a filter does not travel.
        for pinned in self.pins.programs_of(spec.id)? {
            if pinned.ifindex != ifindex {
                unpin_filter(&pinned)?;
            }
        }
        written.forget(spec.id)?;
        written.tables.write(ifindex, spec)?;
        let mut object = match written.take_preloaded(spec.id, spec.placement) {
            Some(programs) => programs,
            None => Programs::Object(self.programs.prepare(spec.id)?),
        };
        clsact::add_qdisc(ifindex)
            .map_err(|source| bpf_error(format!("add a clsact qdisc to interface {ifindex}"), source))?;
        for hook in Hook::BOTH {
            let name = program_name(spec.placement, hook);
            self.put_filter(written, &mut object, (spec.id, ifindex), hook, name)?;
        }
        Ok(())
    }

    /// Runs a program of this process in the filter of a hook: in the place of the one that is there and first, else in
    /// a new one before all others.
    fn put_filter(
        &self,
        written: &mut Written,
        programs: &mut Programs,
        (id, ifindex): (EndpointId, u32),
        hook: Hook,
        name: &'static str,
    ) -> Result<(), DatapathError> {
        let failed = |source| {
            let to = format!("{} of interface {ifindex}", hook.clsact_name());
            bpf_error(format!("attach the program {name} of endpoint {id} to {to}"), source)
        };
        let pinned = self.pins.programs_of(id)?;
        let old: Vec<u32> =
            pinned.iter().filter(|program| program.hook == hook).map(|program| program.id).collect();
        let there = clsact::filters(ifindex, hook).map_err(failed)?;
        let ours = there.iter().position(|filter| old.contains(&filter.program));
        let program = programs.get(name, id)?;
        // Pinned before it runs: a filter that no pin knows would be somebody else's after a crash.
        let fresh = self.pins.pin_program(id, ifindex, hook, program)?;
        match ours {
            Some(0) => clsact::replace(&there[0], program, name, ifindex, hook).map_err(failed)?,
            ours => {
                clsact::attach_first(program, name, ifindex, hook).map_err(failed)?;
                if let Some(behind) = ours {
                    clsact::remove(&there[behind], ifindex, hook).map_err(failed)?;
                }
            }
        }
        written.attached.retain(|program, _| !old.contains(program));
        written.attached.insert(fresh.id, (id, name));
        fresh.settle()
    }

    /// As `check`, for an endpoint that has filters.
    pub(super) fn check_filters(
        &self,
        id: EndpointId,
        ifindex: u32,
        order: Order,
        pinned: Vec<PinnedProgram>,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        for hook in Hook::BOTH {
            let name = hook.clsact_name();
            let Some(program) = pinned.iter().find(|program| program.hook == hook) else {
                return Err(not_protected(id, format!("its {name} program is not pinned")));
            };
            if program.ifindex != ifindex {
                let at = program.ifindex;
                return Err(not_protected(
                    id,
                    format!("its {name} program is on interface {at}, not {ifindex}"),
                ));
            }
            if order == Order::IfVisible && !self.is_host_end(id)? {
                continue;
            }
            let running = clsact::filters(ifindex, hook)
                .map_err(|source| bpf_error(format!("list the filters of interface {ifindex}"), source))?;
            match running.iter().position(|filter| filter.program == program.id) {
                Some(0) => {}
                Some(place) => {
                    let problem = format!("{place} filters of others run before its {name} program");
                    return Err(not_protected(id, problem));
                }
                None => {
                    let problem = format!("interface {ifindex} here does not run its {name} program");
                    return Err(not_protected(id, problem));
                }
            }
        }
        Ok(pinned.into_iter().map(AttachedProgram::from).collect())
    }

    /// As [`Self::repair_inside`], for an endpoint that has filters: the qdisc and the filters are put back.
    pub(super) fn repair_filters(
        &self,
        written: &mut Written,
        id: EndpointId,
        ifindex: u32,
        pinned: &[PinnedProgram],
    ) -> Result<(), DatapathError> {
        let lost = |source| not_protected(id, format!("its filters cannot be put back: {source}"));
        clsact::add_qdisc(ifindex).map_err(lost)?;
        let mut object = None;
        for program in pinned.iter().filter(|program| program.ifindex == ifindex) {
            let running = clsact::filters(ifindex, program.hook).map_err(lost)?;
            if running.first().is_some_and(|first| first.program == program.id) {
                continue;
            }
            let name = program.name(id)?;
            let object = match &mut object {
                Some(object) => object,
                none => none.insert(Programs::Object(self.programs.prepare(id)?)),
            };
            self.put_filter(written, object, (id, ifindex), program.hook, name)
                .map_err(|error| not_protected(id, format!("its filters cannot be put back: {error}")))?;
        }
        Ok(())
    }

    /// Gives filters the programs of this process, where they are on a device of this thread's namespace.
    pub(super) fn upgrade_filters(
        &self,
        written: &mut Written,
        id: EndpointId,
        pinned: &[PinnedProgram],
    ) -> Result<Reached, DatapathError> {
        let mut reached = Reached::Elsewhere;
        let mut object = None;
        for program in pinned {
            let running = clsact::filters(program.ifindex, program.hook).unwrap_or_default();
            if !running.iter().any(|filter| filter.program == program.id) {
                continue;
            }
            let name = program.name(id)?;
            let object = match &mut object {
                Some(object) => object,
                none => none.insert(Programs::Object(self.programs.prepare(id)?)),
            };
            self.put_filter(written, object, (id, program.ifindex), program.hook, name)?;
            reached = Reached::Updated;
        }
        Ok(reached)
    }

    /// Gives an endpoint whose filters are in this thread's namespace the programs of this process, if it runs those
    /// of an earlier one. Does nothing for tcx links, which [`Self::upgrade`] reaches wherever they are.
    pub fn upgrade_inside(&self, id: EndpointId) -> Result<(), DatapathError> {
        let _turn = self.turns.lock(&id);
        let mut pinned = self.pins.programs_of(id)?;
        if pinned.is_empty() {
            return Ok(());
        }
        let mut written = self.written();
        pinned.retain(|program| !written.attached.contains_key(&program.id));
        self.upgrade_filters(&mut written, id, &pinned).map(drop)
    }

    /// Where the device of filters is. Nothing follows it but its index, and only at home that is to be trusted.
    pub(super) fn filter_ifindex(&self, id: EndpointId, ifindex: u32) -> Result<Option<u32>, DatapathError> {
        if !self.is_host_end(id)? {
            return Err(not_protected(
                id,
                "its programs are filters in a pod, which do not tell where they are",
            ));
        }
        Ok(nix::net::if_::if_indextoname(ifindex).is_ok().then_some(ifindex))
    }

    fn is_host_end(&self, id: EndpointId) -> Result<bool, DatapathError> {
        Ok(self.written().tables.record(id)?.is_some_and(|record| record.ifindex != 0))
    }
}

/// Takes the filter of a pinned program off its device, if that is in this thread's namespace, and unpins it.
pub(super) fn unpin_filter(pinned: &PinnedProgram) -> Result<(), DatapathError> {
    let PinnedProgram { ifindex, hook, id, .. } = pinned;
    let take_off = || {
        let running = clsact::filters(*ifindex, *hook)?;
        let Some(filter) = running.iter().find(|filter: &&Filter| filter.program == *id) else {
            return Ok(());
        };
        clsact::remove(filter, *ifindex, *hook)?;
        clsact::remove_idle_qdisc(*ifindex)
    };
    take_off().map_err(|source| {
        bpf_error(format!("remove the {} filter of interface {ifindex}", hook.clsact_name()), source)
    })?;
    pinned.unpin()
}
