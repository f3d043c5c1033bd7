//! What the maps say about a flow, without a frame: for `netferry policy explain`.

use std::net::IpAddr;

use netferry_common::endpoint::READY;
use netferry_common::policy::{ALLOW, DENY_FROM_POD, DENY_TO_POD};
use netferry_common::{Direction, Reason};
use serde::Serialize;

use super::kernel::AyaDatapath;
use super::{DatapathError, EndpointId, not_protected};

/// What one endpoint says about a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The endpoint that was asked.
    pub endpoint: EndpointId,
    /// `from_pod` if it would open the flow, `to_pod` if the peer would.
    pub direction: &'static str,
    /// Version of its policy; 0 for none.
    pub policy: u32,
    /// Number of the rule that decides, see [`super::policy::Policy::rule_name`]; `None` for the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// Why the flow may not open, by name; `None` if it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denied: Option<&'static str>,
}

impl AyaDatapath {
    /// Asks every endpoint on this node that has one of the two addresses. The flow opens if none denies it. A port
    /// is the destination port; for ICMP its type × 256 + code.
    pub fn explain_flow(
        &self,
        from: IpAddr,
        to: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Result<Vec<Explanation>, DatapathError> {
        let (senders, receivers) = {
            let written = self.written();
            (written.tables.owners(from)?, written.tables.owners(to)?)
        };
        let mut said = Vec::new();
        for id in senders {
            said.push(self.explain(id, Direction::FromPod, to, protocol, port)?);
        }
        for id in receivers {
            said.push(self.explain(id, Direction::ToPod, from, protocol, port)?);
        }
        Ok(said)
    }

    /// Asks one endpoint about a flow with a peer, in the order of [`netferry_common::policy`] and by the same
    /// look-ups, in the maps as they are now.
    pub fn explain(
        &self,
        id: EndpointId,
        direction: Direction,
        peer: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Result<Explanation, DatapathError> {
        let written = self.written();
        let endpoint = written
            .tables
            .record(id)?
            .ok_or_else(|| not_protected(id, "it is not in the map of endpoints"))?;
        let say = |rule, denied: Option<Reason>| Explanation {
            endpoint: id,
            direction: direction.name(),
            policy: endpoint.policy,
            rule,
            denied: denied.map(Reason::name),
        };
        if endpoint.flags & READY == 0 {
            return Ok(say(None, Some(Reason::NotReady)));
        }
        if endpoint.policy != 0
            && let Some(rule) =
                written.policies.rule(endpoint.policy, direction, peer.into(), protocol, port)?
        {
            let denied = (rule.action != ALLOW).then_some(Reason::PolicyDenied);
            return Ok(say((rule.rule > 0).then_some(rule.rule), denied));
        }
        let default_deny = match direction {
            Direction::FromPod => DENY_FROM_POD,
            Direction::ToPod => DENY_TO_POD,
        };
        let denied = if endpoint.flags & default_deny != 0 {
            Some(Reason::PolicyDefault)
        } else if endpoint.network == 0 || written.tables.is_member(endpoint.network, peer)? {
            None
        } else {
            Some(Reason::NotMember)
        };
        Ok(say(None, denied))
    }
}
