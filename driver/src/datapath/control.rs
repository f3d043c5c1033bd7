//! What is changed for endpoints while they run: policy, limits, members.

use std::net::IpAddr;
use std::sync::Arc;

use netferry_common::flow::TRACK;
use netferry_common::limit::{LIMIT_FROM_POD, LIMIT_TO_POD};
use netferry_common::member::GATEWAY;
use netferry_common::policy::{DENY_FROM_POD, DENY_TO_POD};
use netferry_common::{Addr, Member};

use super::kernel::{AyaDatapath, Written};
use super::limits::Limits;
use super::load::load;
use super::object::running_name;
use super::policy::{CompiledPolicy, Otherwise, Peers, Policy, Room};
use super::{AttachedProgram, Datapath as _, DatapathError, EndpointId, bpf_error, not_protected, sys};
use crate::link::MacAddr;

/// Entries of an old policy that are deleted at a time, before other verbs have their turn.
const SLICE: usize = 1024;

/// An address on an isolated network, and who has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkMember {
    /// The network.
    pub network: u32,
    /// The address.
    pub address: IpAddr,
    /// Endpoint on this node; `None` for a member on another node.
    pub endpoint: Option<EndpointId>,
    /// Where its node takes tunnelled frames; `None` for a member that is reached without a tunnel.
    pub node: Option<IpAddr>,
    /// Its hardware address.
    pub mac: MacAddr,
}

impl AyaDatapath {
    /// Compiles a policy and puts it in force, see [`Self::set_compiled`].
    pub(super) fn compile_and_set(
        &self,
        id: EndpointId,
        policy: &Policy,
        peers: &dyn Peers,
    ) -> Result<(), DatapathError> {
        let refused = |source| bpf_error(format!("compile the policy of endpoint {id}"), source);
        let compiled = CompiledPolicy::new(policy, peers, self.policy_capacity()?).map_err(refused)?;
        self.set_compiled(id, &Arc::new(compiled))?;
        Ok(())
    }

    /// Entries that all policies together may have. One that is alike to another in force needs none of its own, so that
    /// what is free is asked when it is written.
    fn policy_capacity(&self) -> Result<Room, DatapathError> {
        let mut written = self.written();
        written.recover()?;
        Ok(written.policies.capacity())
    }

    /// Entries that are free for a policy now.
    pub fn policy_room(&self) -> Result<Room, DatapathError> {
        let mut written = self.written();
        written.recover()?;
        Ok(written.policies.room())
    }

    /// Puts a policy in force for an endpoint: all of its entries are written first, then one write switches the
    /// endpoint, then the old ones are deleted. Open flows are judged again by their next frame. Fails before the
    /// first write if the entries do not fit. Returns the version.
    pub fn set_compiled(&self, id: EndpointId, policy: &Arc<CompiledPolicy>) -> Result<u32, DatapathError> {
        let version = self.switch_policy(id, policy)?;
        self.reclaim()?;
        Ok(version)
    }

    fn switch_policy(&self, id: EndpointId, policy: &Arc<CompiledPolicy>) -> Result<u32, DatapathError> {
        let mut written = self.written();
        written.recover()?;
        let before = written.tables.record(id)?.ok_or_else(|| {
            not_protected(id, "it is not in the map of endpoints, so it can have no policy")
        })?;
        let version = written.policies.write(id, policy)?;
        let denies = |otherwise, flag| if otherwise == Otherwise::Deny { flag } else { 0 };
        let set =
            denies(policy.from_pod_otherwise, DENY_FROM_POD) | denies(policy.to_pod_otherwise, DENY_TO_POD);
        let switched = written.tables.change(id, DENY_FROM_POD | DENY_TO_POD, set, Some(version));
        let in_force = if switched.is_ok() { version } else { before.policy };
        written.policies.release(id, in_force);
        switched.map(|()| version)
    }

    /// Deletes the entries of policies that nobody uses any more, in slices, once every frame has been judged that
    /// may have begun before they were out of use.
    pub fn reclaim(&self) -> Result<(), DatapathError> {
        let epoch = {
            let mut written = self.written();
            written.recover()?;
            written.policies.advance()
        };
        let Some(epoch) = epoch else { return Ok(()) };
        sys::grace_period().map_err(|source| bpf_error("wait for the programs to finish", source))?;
        while !self.written().policies.reclaim(epoch, SLICE)? {
            std::thread::yield_now();
        }
        Ok(())
    }

    pub(super) fn write_limits(&self, id: EndpointId, limits: &Limits) -> Result<(), DatapathError> {
        limits.in_range().map_err(|source| bpf_error(format!("set the limits of endpoint {id}"), source))?;
        let mut written = self.written();
        if written.tables.record(id)?.is_none() {
            return Err(not_protected(id, "it is not in the map of endpoints, so it can have no limits"));
        }
        let flags = written.tables.write_limits(id, limits)?;
        written.tables.change(id, LIMIT_FROM_POD | LIMIT_TO_POD | TRACK, flags, None)
    }

    /// Says who has an address of an isolated network. Members on this node are written when they are attached;
    /// this is for those on other nodes. Network 0 has no members. The address of a gateway that the node is stays its.
    pub fn set_member(&self, member: &NetworkMember) -> Result<(), DatapathError> {
        let NetworkMember { network, address, .. } = *member;
        self.not_gateway(network, address)?;
        let node = member.node.map_or(Addr::UNSPECIFIED, Addr::from);
        let value = Member { node, ..Member::new(member.endpoint.unwrap_or(0), member.mac.0) };
        self.written().tables.set_member(member.network, member.address, Some(value))
    }

    /// Forgets an address of a network. Succeeds if it is not known.
    pub fn remove_member(&self, network: u32, address: IpAddr) -> Result<(), DatapathError> {
        self.not_gateway(network, address)?;
        self.written().tables.set_member(network, address, None)
    }

    /// What an endpoint's pod has sent, with the share that went straight to a receiver on this node, and why the rest
    /// did not.
    pub fn paths(&self, id: EndpointId) -> Result<netferry_common::Traffic, DatapathError> {
        self.written().tables.paths(id)
    }

    fn not_gateway(&self, network: u32, address: IpAddr) -> Result<(), DatapathError> {
        let member = self.written().tables.member(network, address)?;
        if member.is_some_and(|member| member.endpoint == GATEWAY) {
            let action = format!("write the member {address} of network {network}");
            return Err(bpf_error(action, "it is the address of the network's gateway, which this node is"));
        }
        Ok(())
    }

    /// Members of all networks, sorted, without the gateways that the node is ([`super::networks`]).
    pub fn members(&self) -> Result<Vec<NetworkMember>, DatapathError> {
        let mut members: Vec<NetworkMember> = self
            .written()
            .tables
            .members()?
            .into_iter()
            .filter(|(_, member)| member.endpoint != GATEWAY)
            .map(|(key, member)| NetworkMember {
                network: key.network,
                address: key.addr.into(),
                endpoint: (member.endpoint > 0).then_some(member.endpoint),
                node: (member.node != Addr::UNSPECIFIED).then(|| member.node.into()),
                mac: MacAddr(member.mac),
            })
            .collect();
        members.sort_unstable();
        Ok(members)
    }

    /// Endpoints whose protection is not what it was at attach: a link unpinned or detached, a device gone, or, for
    /// a device in this thread's namespace, a program before ours. In a pod's namespace, ask
    /// [`super::Datapath::verify_inside`].
    pub fn drifted(&self) -> Result<Vec<(EndpointId, DatapathError)>, DatapathError> {
        let mut drifted = Vec::new();
        for id in self.endpoints()? {
            let ifindex = self.attached_ifindex(id)?.unwrap_or(0);
            if let Err(error) = self.verify(id, ifindex) {
                drifted.push((id, error));
            }
        }
        Ok(drifted)
    }
}

impl AyaDatapath {
    /// Puts the programs of an endpoint first again, from a thread in the namespace the link is in. A second copy
    /// is attached first before the one that had come behind is detached: no frame passes unjudged.
    pub fn repair_inside(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        let _turn = self.turns.lock(&id);
        let mut object = None;
        let filters = self.pins.programs_of(id)?;
        if !filters.is_empty() {
            self.repair_filters(&mut self.written(), id, ifindex, &filters)?;
        }
        for link in self.pins.links_of(id)? {
            let running = sys::query(ifindex, link.hook)
                .map_err(|source| bpf_error(format!("list the programs of interface {ifindex}"), source))?;
            if link.info.ifindex != ifindex || running.first() == Some(&link.info.program) {
                continue;
            }
            if object.is_none() {
                object = Some(self.programs.prepare(id)?);
            }
            let Some(object) = &mut object else { continue };
            let name = running_name(&link, id)?;
            let program = load(object, name, id)?;
            let first = sys::attach_first(program, ifindex, link.hook)
                .map_err(|source| bpf_error(format!("attach the program {name} of endpoint {id}"), source))?;
            link.replace(&first)?;
            let mut written = self.written();
            written.attached.remove(&link.info.program);
            written.remember(&first, id, name)?;
        }
        self.verify_inside(id, ifindex)
    }
}

impl Written {
    /// Once, before the first use of the policies: finds what an earlier process left.
    pub(super) fn recover(&mut self) -> Result<(), DatapathError> {
        if !self.recovered {
            self.policies.recover(self.tables.policies()?)?;
            self.recovered = true;
        }
        Ok(())
    }

    /// Forgets every map entry of an endpoint.
    pub(super) fn forget(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        self.tables.forget(id)?;
        self.policies.release(id, 0);
        Ok(())
    }
}
