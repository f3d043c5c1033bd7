//! Rate limits of an endpoint, as people write them.

use netferry_common::limit::{BYTES, DENIES, FLOWS, FRAMES};
use netferry_common::{Direction, Limit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limits for both directions. What is left out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Limits {
    /// What is sent to the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<RateLimit>,
    /// What the pod sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<RateLimit>,
    /// Flows that may be in the table at a time, whoever opened them. Left out: half of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_flows: Option<u64>,
}

/// Limits for one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct RateLimit {
    /// Bits a second as on the wire, Ethernet header included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 8_000, max = 10_000_000_000_000_i64))]
    pub bits_per_second: Option<u64>,
    /// Bytes that may pass at once after a pause. Left out: what 200 ms allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 10_000_000_000_i64))]
    pub burst_bytes: Option<u64>,
    /// Frames a second as on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000_000))]
    pub packets_per_second: Option<u64>,
    /// New flows a second. Left out: [`NEW_FLOWS`] where flows are followed, as for a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 10_000_000))]
    #[schemars(
        description = "New flows a second. Left out: 10000 where flows are followed, as for a policy."
    )]
    pub new_flows_per_second: Option<u64>,
}

/// New flows a second that an endpoint may have opened in each direction unless its limits say otherwise: one
/// endpoint's scan or flood does not fill the table of all.
pub const NEW_FLOWS: u64 = 10_000;

/// Dropped frames of an endpoint a second and direction that are told as events, in the long run.
const TOLD_DENIES: u64 = 100;

/// The limit of events about dropped frames.
fn told_denies() -> Limit {
    Limit::new(TOLD_DENIES, 2 * TOLD_DENIES)
}

/// A limit that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not allowed; {allowed}")]
pub struct LimitError {
    /// Path of the field.
    pub field: String,
    /// What was given.
    pub value: String,
    /// What may be given.
    pub allowed: &'static str,
}

impl Limits {
    /// Checks what the types do not.
    pub fn validate(&self) -> Result<(), LimitError> {
        const EMPTY: &str = "one limit or more, or leave the field out for none";
        let empty =
            |field: &str| LimitError { field: field.to_owned(), value: "{}".to_owned(), allowed: EMPTY };
        if *self == Self::default() {
            return Err(empty(""));
        }
        for (name, limit) in [("ingress", self.ingress), ("egress", self.egress)] {
            if limit == Some(RateLimit::default()) {
                return Err(empty(name));
            }
        }
        self.in_range()
    }

    /// Whether every limit that there is, is one that can be enforced. There may be none.
    pub(super) fn in_range(&self) -> Result<(), LimitError> {
        if let Some(value) = self.open_flows
            && !(1..=10_000_000).contains(&value)
        {
            let (field, value) = ("openFlows".to_owned(), value.to_string());
            return Err(LimitError { field, value, allowed: "1 to 10000000" });
        }
        for (name, limit) in [("ingress", self.ingress), ("egress", self.egress)] {
            let Some(limit) = limit else { continue };
            let fields = [
                (
                    "bitsPerSecond",
                    limit.bits_per_second,
                    8_000..=10_000_000_000_000,
                    "8000 to 10000000000000",
                ),
                ("burstBytes", limit.burst_bytes, 1..=10_000_000_000, "1 to 10000000000"),
                ("packetsPerSecond", limit.packets_per_second, 1..=1_000_000_000, "1 to 1000000000"),
                ("newFlowsPerSecond", limit.new_flows_per_second, 1..=10_000_000, "1 to 10000000"),
            ];
            for (field, value, range, allowed) in fields {
                if let Some(value) = value
                    && !range.contains(&value)
                {
                    let (field, value) = (format!("{name}.{field}"), value.to_string());
                    return Err(LimitError { field, value, allowed });
                }
            }
            if let (Some(value), None) = (limit.burst_bytes, limit.bits_per_second) {
                let (field, value) = (format!("{name}.burstBytes"), value.to_string());
                return Err(LimitError { field, value, allowed: "it goes with bitsPerSecond only" });
            }
        }
        Ok(())
    }

    /// What the maps hold for a direction: the kind of limit, and the limit; `None` if there is none.
    pub(super) fn entries(&self, direction: Direction) -> [(u32, Option<Limit>); 4] {
        let limit = match direction {
            Direction::FromPod => self.egress,
            Direction::ToPod => self.ingress,
        }
        .unwrap_or_default();
        let bytes = limit.bits_per_second.map(|bits| bits / 8);
        let flows = limit.new_flows_per_second.unwrap_or(NEW_FLOWS);
        [
            (
                BYTES,
                bytes.map(|rate| limit.burst_bytes.map_or(Limit::usual(rate), |it| Limit::new(rate, it))),
            ),
            (FRAMES, limit.packets_per_second.map(Limit::usual)),
            (FLOWS, Some(Limit::new(flows, flows))),
            (DENIES, Some(told_denies())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_named() {
        let refused =
            |text: &str| serde_yaml_ng::from_str::<Limits>(text).unwrap().validate().unwrap_err().to_string();
        assert!(
            refused("ingress: {bitsPerSecond: 1}")
                .starts_with("ingress.bitsPerSecond: 1 is not allowed; 8000")
        );
        assert!(refused("egress: {burstBytes: 9}").contains("egress.burstBytes: 9"));
        assert!(refused("egress: {packetsPerSecond: 0}").contains("1 to 1000000000"));
        assert_eq!(refused("{}"), ": {} is not allowed; one limit or more, or leave the field out for none");
        assert!(refused("ingress: {}").starts_with("ingress: {} is not allowed"));
        assert!(refused("openFlows: 0").contains("openFlows: 0"));
        assert!(serde_yaml_ng::from_str::<Limits>("egress: {bps: 1}").is_err());
    }

    #[test]
    fn bits_become_bytes_and_new_flows_are_always_limited() {
        let limits: Limits = serde_yaml_ng::from_str("egress: {bitsPerSecond: 8000000}").unwrap();
        limits.validate().unwrap();
        let [bytes, frames, flows, _] = limits.entries(Direction::FromPod);
        assert_eq!(bytes, (BYTES, Some(Limit::new(1_000_000, 200_000))));
        assert_eq!(frames, (FRAMES, None));
        assert_eq!(flows, (FLOWS, Some(Limit::new(NEW_FLOWS, NEW_FLOWS))));
        assert_eq!(limits.entries(Direction::ToPod)[0], (BYTES, None));
    }
}
