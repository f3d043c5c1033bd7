//! What a Network's status says about the blocks of its subnets: pure.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{blocks, ledger::Step};
use crate::network::{addresses, window::Subnet};

/// Nodes that are named in a message.
const NAMED: usize = 3;

/// What became of a network's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The subnets.
    pub subnets: Vec<Subnet>,
    /// The last look at them.
    pub step: Step,
    /// Nodes with ports whose pool would have too long a name.
    pub unnamed: BTreeSet<Arc<str>>,
}

/// The condition. `previous` keeps its time as long as the status is the same.
#[must_use]
pub fn condition(
    outcome: &Outcome,
    quarantine: Duration,
    previous: Option<&Condition>,
    now: Timestamp,
) -> Condition {
    let (status, reason, message) = if !outcome.step.short.is_empty() {
        ("False", "SubnetExhausted", short(outcome, quarantine))
    } else if !outcome.unnamed.is_empty() {
        let nodes = named(outcome.unnamed.iter());
        let message =
            format!("no pool can be named for {nodes}: its name would be longer than a pool's may be");
        ("False", "PoolNameTooLong", message)
    } else {
        // Only what changes with blocks: the status is not written for each pod.
        let one = |(subnet, (given, _)): (&Subnet, &(usize, usize))| {
            format!("{}: nodes have {given} of {} blocks", subnet.network, blocks(subnet))
        };
        let all: Vec<_> = outcome.subnets.iter().zip(&outcome.step.counts).map(one).collect();
        ("True", "Available", all.join("; "))
    };
    addresses::told(status, reason, message, previous, now)
}

fn short(outcome: &Outcome, quarantine: Duration) -> String {
    let mut message = String::new();
    for (at, subnet) in outcome.subnets.iter().enumerate() {
        let nodes: Vec<_> =
            outcome.step.short.iter().filter(|it| it.subnet == at).map(|it| &it.node).collect();
        if nodes.is_empty() {
            continue;
        }
        let gap = if message.is_empty() { "" } else { "; " };
        let (given, waiting) = outcome.step.counts.get(at).copied().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(
            message,
            "{gap}{}: no block is left for {}, where no address is free; nodes have {given} of {} blocks",
            subnet.network,
            named(nodes.into_iter()),
            blocks(subnet)
        );
        if waiting > 0 {
            let minutes = quarantine.as_secs().div_ceil(60);
            let _ = write!(message, ", {waiting} that were taken back can be given within {minutes} min");
        }
    }
    message
}

fn named<'a>(nodes: impl ExactSizeIterator<Item = &'a Arc<str>>) -> String {
    let all = nodes.len();
    let first: Vec<&str> = nodes.take(NAMED).map(AsRef::as_ref).collect();
    let more = if all > NAMED { format!(" and {} more", all - NAMED) } else { String::new() };
    format!("{} {}{more}", if all == 1 { "node" } else { "nodes" }, first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::blocks::ledger::Short;

    #[test]
    fn subnet_and_node_are_named() {
        let subnet =
            |text: &str| Subnet { network: text.parse().expect("a prefix"), excluded: BTreeSet::new() };
        let mut outcome = Outcome {
            subnets: vec![subnet("10.1.0.0/24"), subnet("fd00::/64")],
            step: Step { counts: vec![(4, 0), (4, 0)], ..Step::default() },
            unnamed: BTreeSet::new(),
        };
        let at = |second| Timestamp::from_second(second).expect("a time");
        let told = |outcome: &Outcome, previous, second| {
            condition(outcome, Duration::from_mins(30), previous, at(second))
        };
        let good = told(&outcome, None, 1);
        assert_eq!((good.status.as_str(), good.reason.as_str()), ("True", "Available"));
        assert_eq!(
            good.message,
            format!(
                "10.1.0.0/24: nodes have 4 of 4 blocks; fd00::/64: nodes have 4 of {} blocks",
                1_u64 << 58
            )
        );
        for node in ["n5", "n6", "n7", "n8", "n9"] {
            outcome.step.short.push(Short { node: node.into(), subnet: 0 });
        }
        outcome.step.counts[0] = (3, 1);
        let bad = told(&outcome, Some(&good), 2);
        assert_eq!((bad.status.as_str(), bad.reason.as_str()), ("False", "SubnetExhausted"));
        assert_eq!(
            bad.message,
            "10.1.0.0/24: no block is left for nodes n5, n6, n7 and 2 more, where no address is free; nodes have 3 of 4 \
             blocks, 1 that were taken back can be given within 30 min"
        );
        assert_eq!(bad.last_transition_time.0, at(2));
        outcome.step.short.truncate(1);
        let still = told(&outcome, Some(&bad), 3);
        assert!(still.message.contains("for node n5, where"), "{}", still.message);
        assert_eq!(still.last_transition_time.0, at(2));
        outcome.step.short.clear();
        outcome.unnamed.insert("n1".into());
        assert_eq!(told(&outcome, None, 4).reason, "PoolNameTooLong");
    }
}
