//! May a flow open? The order of evaluation is written down in `netferry_common::policy`.

use netferry_common::policy::{ALLOW, DENY_FROM_POD, DENY_TO_POD};
use netferry_common::{Addr, Direction, Endpoint, MemberKey, PeerKey, Reason, RuleKey};

use crate::tables::Tables;

/// What policy says, and which rule made it say so (0: the default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why not; `None` if the flow may open.
    pub denied: Option<Reason>,
    /// Number of the rule.
    pub rule: u32,
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

/// Decides whether a flow of `endpoint` may open.
#[inline(never)]
pub fn decide<T: Tables>(tables: &T, endpoint: &Endpoint, question: &Question) -> Decision {
    let direction = question.direction.number();
    if endpoint.policy != 0 {
        let key = PeerKey { policy: endpoint.policy, direction, addr: question.peer };
        if let Some(peer) = tables.peer(key) {
            let key = RuleKey {
                policy: endpoint.policy,
                class: peer.class,
                direction: direction as u8,
                protocol: question.protocol,
                port: question.port.to_be_bytes(),
            };
            if let Some(rule) = tables.rule(key) {
                let denied = if rule.action == ALLOW { None } else { Some(Reason::PolicyDenied) };
                return Decision { denied, rule: rule.rule };
            }
        }
    }
    let default_deny = match question.direction {
        Direction::FromPod => DENY_FROM_POD,
        Direction::ToPod => DENY_TO_POD,
    };
    let denied = if endpoint.flags & default_deny != 0 {
        Some(Reason::PolicyDefault)
    } else if endpoint.network == 0
        || tables.member(&MemberKey { network: endpoint.network, addr: question.peer }).is_some()
    {
        None
    } else {
        Some(Reason::NotMember)
    };
    Decision { denied, rule: 0 }
}
