//! The order of evaluation, as one piece of code: the programs run it on frames, the daemon to explain.

use super::{ALLOW, DENY_FROM_POD, DENY_TO_POD, Peer, PeerKey, Rule, RuleKey};
use crate::endpoint::NETWORK_WIRE;
use crate::{Addr, Direction, Endpoint, Member, MemberKey, Reason};

/// The maps that policy looks things up in. In the kernel a look-up cannot fail, from user space it can.
pub trait Lookups {
    /// Why a look-up failed.
    type Error;
    /// The class of an address: longest prefix.
    fn peer(&self, key: PeerKey) -> Result<Option<Peer>, Self::Error>;
    /// The rule for a port: longest prefix.
    fn rule(&self, key: RuleKey) -> Result<Option<Rule>, Self::Error>;
    /// Who has an address on a network.
    fn member(&self, key: &MemberKey) -> Result<Option<Member>, Self::Error>;
}

/// A flow as policy sees it, from one of its endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Who opens it: the pod, or the peer.
    pub direction: Direction,
    /// The other side.
    pub peer: Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port of the first frame; for ICMP its type × 256 + code. As a number.
    pub port: u16,
}

/// What policy says, and which rule made it say so (0: the default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why not; `None` if the flow may open.
    pub denied: Option<Reason>,
    /// Number of the rule.
    pub rule: u32,
}

/// Decides whether a flow of `endpoint` may open. Fails only where a look-up does.
#[allow(clippy::inline_always, reason = "the verifier follows values through registers")]
#[inline(always)]
pub fn decide<L: Lookups>(maps: &L, endpoint: &Endpoint, question: &Question) -> Result<Decision, L::Error> {
    let direction = question.direction.number();
    if endpoint.policy != 0 {
        let key = PeerKey { policy: endpoint.policy, direction, addr: question.peer };
        if let Some(peer) = maps.peer(key)? {
            let key = RuleKey {
                policy: endpoint.policy,
                class: peer.class,
                direction: question.direction.byte(),
                protocol: question.protocol,
                port: question.port.to_be_bytes(),
            };
            if let Some(rule) = maps.rule(key)? {
                let denied = if rule.action == ALLOW { None } else { Some(Reason::PolicyDenied) };
                return Ok(Decision { denied, rule: rule.rule });
            }
        }
    }
    let default_deny = match question.direction {
        Direction::FromPod => DENY_FROM_POD,
        Direction::ToPod => DENY_TO_POD,
    };
    let denied = if endpoint.flags & default_deny != 0 {
        Some(Reason::PolicyDefault)
    } else if endpoint.network == NETWORK_WIRE
        || maps.member(&MemberKey { network: endpoint.network, addr: question.peer })?.is_some()
    {
        None
    } else {
        Some(Reason::NotMember)
    };
    Ok(Decision { denied, rule: 0 })
}
