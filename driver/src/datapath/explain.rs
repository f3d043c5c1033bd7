//! What the maps say about a flow, without a frame: for `netferry policy explain`.

use std::net::IpAddr;

use netferry_common::policy::{Decision, Lookups, Question, decide};
use netferry_common::{Direction, Member, MemberKey, Peer, PeerKey, Reason, Rule, RuleKey};
use serde::Serialize;

use super::kernel::{AyaDatapath, Written};
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
    /// is the destination port; for ICMP its type × 256 + code. With a `sender`, only endpoints of its network are asked:
    /// another network may have the same addresses, and none of its endpoints would see the flow.
    pub fn explain_flow(
        &self,
        sender: Option<EndpointId>,
        from: IpAddr,
        to: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Result<Vec<Explanation>, DatapathError> {
        let (senders, receivers) = {
            let written = self.written();
            let network = |id| Ok(written.tables.record(id)?.map(|endpoint| endpoint.network));
            let (mut senders, mut receivers) = (written.tables.owners(from)?, written.tables.owners(to)?);
            if let Some(sender) = sender {
                let of_sender: Option<u32> = network(sender)?;
                senders.retain(|id| *id == sender);
                let mut beside = Vec::new();
                for id in receivers {
                    let of_receiver: Result<_, DatapathError> = network(id);
                    if of_receiver? == of_sender {
                        beside.push(id);
                    }
                }
                receivers = beside;
            }
            (senders, receivers)
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

    /// Asks one endpoint about a flow with a peer: the programs' own [`decide`], on the maps as they are now.
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
        let said = |rule, denied: Option<Reason>| Explanation {
            endpoint: id,
            direction: direction.name(),
            policy: endpoint.policy,
            rule,
            denied: denied.map(Reason::name),
        };
        if !endpoint.is_ready() {
            return Ok(said(None, Some(Reason::NotReady)));
        }
        let question = Question { direction, peer: peer.into(), protocol, port };
        let Decision { denied, rule } = decide(&*written, &endpoint, &question)?;
        Ok(said((rule > 0).then_some(rule), denied))
    }
}

/// The pinned maps, as the programs look things up in them.
impl Lookups for Written {
    type Error = DatapathError;

    fn peer(&self, key: PeerKey) -> Result<Option<Peer>, DatapathError> {
        self.policies.peer(key)
    }

    fn rule(&self, key: RuleKey) -> Result<Option<Rule>, DatapathError> {
        self.policies.rule(key)
    }

    fn member(&self, key: &MemberKey) -> Result<Option<Member>, DatapathError> {
        self.tables.member(key.network, key.addr.into())
    }
}
