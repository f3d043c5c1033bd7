//! May a flow open? [`netferry_common::policy::decide`] says, here on the programs' maps.

use core::convert::Infallible;

use netferry_common::policy::{self, Lookups};
pub use netferry_common::policy::{Decision, Question};
use netferry_common::{Endpoint, Member, MemberKey, Peer, PeerKey, Rule, RuleKey};

use crate::tables::Tables;

/// The part of the maps that policy sees.
struct Seen<'a, T>(&'a T);

impl<T: Tables> Lookups for Seen<'_, T> {
    type Error = Infallible;

    #[inline(always)]
    fn peer(&self, key: PeerKey) -> Result<Option<Peer>, Infallible> {
        Ok(self.0.peer(key))
    }

    #[inline(always)]
    fn rule(&self, key: RuleKey) -> Result<Option<Rule>, Infallible> {
        Ok(self.0.rule(key))
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Result<Option<Member>, Infallible> {
        Ok(self.0.member(key))
    }
}

/// Decides whether a flow of `endpoint` may open.
#[inline(never)]
pub fn decide<T: Tables>(tables: &T, endpoint: &Endpoint, question: &Question) -> Decision {
    let Ok(decision) = policy::decide(&Seen(tables), endpoint, question);
    decision
}
