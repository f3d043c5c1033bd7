//! Which of the declared networks are accepted: pure, and on every node the same answer for the same objects.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{
    NetworkRef,
    spec::{NetworkSpec, NetworkStatus},
    validate::{self, conflict, parse, validate},
};
use crate::claim::config::FieldError;

/// A Network as the cluster has it, valid or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// Which.
    pub reference: NetworkRef,
    /// When it was made; `None` where nobody says.
    pub created: Option<Timestamp>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `spec` as it was written.
    pub spec: Value,
    /// `status` as it is.
    pub status: NetworkStatus,
    /// Somebody has deleted it, and it stays until its finalizers are gone. Nothing new may join it.
    pub deleting: bool,
    /// Its finalizers.
    pub finalizers: Vec<String>,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
}

impl Declared {
    /// From an object's metadata and the rest of it. A status that cannot be read is as none: it is written anew.
    #[must_use]
    pub fn new(metadata: &ObjectMeta, object: &Value) -> Self {
        Self {
            reference: NetworkRef {
                name: metadata.name.clone().unwrap_or_default(),
                uid: metadata.uid.clone().unwrap_or_default(),
            },
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            generation: metadata.generation,
            spec: object.get("spec").cloned().unwrap_or_default(),
            status: object
                .get("status")
                .and_then(|status| serde_json::from_value(status.clone()).ok())
                .unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone(),
        }
    }
}

/// Why a network is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is wrong by itself.
    Invalid(Vec<FieldError>),
    /// An older one has what it wants.
    Conflict(FieldError),
}

impl Problem {
    /// CamelCase reason of the condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "Invalid",
            Self::Conflict(_) => "Conflict",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(errors) => {
                for (at, error) in errors.iter().enumerate() {
                    write!(f, "{}{error}", if at == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
            Self::Conflict(error) => error.fmt(f),
        }
    }
}

/// The decision about one network.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Which.
    pub reference: NetworkRef,
    /// What is wrong with what is written.
    pub problem: Option<Problem>,
    /// What counts on this node: what is written if it is accepted; what was last accepted if it has become
    /// invalid; nothing if an older network has its VNI or VLAN.
    pub in_force: Option<NetworkSpec>,
}

/// Judge every network. `former` has the specs, by UID, that were last in force. Of two networks that want the same,
/// the older wins; where no time tells, the one that is in force, then the first by name.
#[must_use]
pub fn judge(declared: &[Declared], former: &BTreeMap<String, NetworkSpec>) -> Vec<Judged> {
    let mut sorted: Vec<&Declared> = declared.iter().collect();
    sorted.sort_by_key(|network| {
        // What is in force differs from node to node: it may only decide where no server keeps the time.
        let stranger = network.created.is_none() && !former.contains_key(&network.reference.uid);
        (network.created.unwrap_or(Timestamp::MAX), stranger, &network.reference)
    });
    let mut judged: Vec<Judged> = Vec::new();
    for network in sorted {
        let former = former.get(&network.reference.uid);
        let (spec, mut problem) = match check(network, former) {
            Ok(spec) => (Some(spec), None),
            Err(errors) => (former.cloned(), Some(Problem::Invalid(errors))),
        };
        let mut older = judged
            .iter()
            .filter_map(|judged| Some((judged.reference.name.as_str(), judged.in_force.as_ref()?)));
        let conflict =
            spec.as_ref().and_then(|spec| older.find_map(|(name, older)| conflict(spec, name, older)));
        let in_force = if conflict.is_some() { None } else { spec };
        problem = problem.or(conflict.map(Problem::Conflict));
        judged.push(Judged { reference: network.reference.clone(), problem, in_force });
    }
    judged
}

fn check(network: &Declared, former: Option<&NetworkSpec>) -> Result<NetworkSpec, Vec<FieldError>> {
    let spec = parse(&network.spec).map_err(|error| vec![error])?;
    let mut errors = validate(&network.reference.name, &spec);
    errors.extend(former.into_iter().flat_map(|former| validate::changed(&spec, former)));
    if errors.is_empty() { Ok(spec) } else { Err(errors) }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]
mod tests {
    use serde_json::json;

    use super::*;

    fn declared(name: &str, created: Option<&str>, transport: Value) -> Declared {
        Declared {
            reference: NetworkRef { name: name.to_owned(), uid: format!("uid-{name}") },
            created: created.map(|time| time.parse().expect("a time")),
            spec: json!({"subnets": ["10.1.0.0/16"], "transport": transport}),
            ..Declared::default()
        }
    }

    fn outcome(judged: &[Judged], name: &str) -> (Option<&'static str>, bool) {
        let judged = judged.iter().find(|judged| judged.reference.name == name).expect("judged");
        (judged.problem.as_ref().map(Problem::reason), judged.in_force.is_some())
    }

    #[test]
    fn the_older_one_keeps_its_vni() {
        let vni = |vni: u32| json!({"overlay": {"vni": vni}});
        let networks = [
            declared("a", Some("2026-01-02T00:00:00Z"), vni(7)),
            declared("b", Some("2026-01-01T00:00:00Z"), vni(7)),
            declared("c", Some("2026-01-03T00:00:00Z"), vni(8)),
        ];
        let judged = judge(&networks, &BTreeMap::new());
        assert_eq!(outcome(&judged, "a"), (Some("Conflict"), false));
        assert_eq!(outcome(&judged, "b"), (None, true));
        assert_eq!(outcome(&judged, "c"), (None, true));
        let message =
            judged.iter().find_map(|judged| judged.problem.clone()).expect("a conflict").to_string();
        assert!(message.contains("spec.transport.overlay.vni") && message.contains("\"b\""), "{message}");
    }

    #[test]
    fn a_vlan_is_one_networks_on_its_uplink() {
        let uplink = |selector: &str, vlan: Option<u16>| match vlan {
            Some(vlan) => json!({"uplink": {"selector": selector, "vlan": vlan}}),
            None => json!({"uplink": {"selector": selector}}),
        };
        let one = "device.attributes[\"netferry.dev\"].ifName == \"eth1\"";
        let networks = [
            declared("a", None, uplink(one, Some(7))),
            declared("b", None, uplink(one, Some(7))),
            declared("c", None, uplink(one, Some(8))),
            declared("d", None, uplink(one, None)),
            declared("e", None, uplink("true", Some(7))),
            declared("f", None, uplink(one, None)),
        ];
        let judged = judge(&networks, &BTreeMap::new());
        let outcomes: Vec<_> = ["a", "b", "c", "d", "e", "f"].map(|name| outcome(&judged, name).1).to_vec();
        assert_eq!(outcomes, [true, false, true, true, true, false]);
    }

    #[test]
    fn a_selector_that_can_never_select_is_not_accepted() {
        for (selector, wanted) in [
            ("1+1", "line 1, column 2: it gives an int; allowed: true or false"),
            (
                "device.attributes[\"netferry.dev\"].ifNam == \"eth1\"",
                "has no attribute \"ifNam\" (did you mean",
            ),
            ("device.atributes[\"netferry.dev\"].mtu > 1", "a device has no field \"atributes\""),
            ("device.attributes[\"netferry.dev\"].mtu == \"9000\"", "an int is never equal to a string"),
            ("device.attributes[\"netferry.de\"].mtu == 9000", "unknown domain \"netferry.de\""),
            (
                "device.driver.lowerAscii() == \"x\"",
                "lowerAscii() is a function that the scheduler of Kubernetes",
            ),
        ] {
            let network = declared("a", None, json!({"uplink": {"selector": selector}}));
            let judged = judge(&[network], &BTreeMap::new());
            let problem = judged[0].problem.as_ref().expect(selector);
            assert_eq!(problem.reason(), "Invalid");
            let message = problem.to_string();
            assert!(
                message.starts_with("spec.transport.uplink.selector: ") && message.contains(wanted),
                "{message}"
            );
        }
    }

    #[test]
    fn the_one_in_force_is_older_than_one_without_a_time() {
        let networks = [
            declared("a", None, json!({"overlay": {"vni": 7}})),
            declared("b", None, json!({"overlay": {"vni": 7}})),
        ];
        let former = BTreeMap::from([("uid-b".to_owned(), parse(&networks[1].spec).expect("valid"))]);
        let judged = judge(&networks, &former);
        assert_eq!((outcome(&judged, "a").1, outcome(&judged, "b").1), (false, true));
    }

    #[test]
    fn what_was_valid_stays_in_force() {
        let good = declared("a", None, json!({"overlay": {"vni": 7}}));
        let former = BTreeMap::from([("uid-a".to_owned(), parse(&good.spec).expect("valid"))]);
        let mut misspelt = good.clone();
        misspelt.spec["mtuu"] = 9000.into();
        let moved = declared("a", None, json!({"overlay": {"vni": 8}}));
        for (bad, wanted) in [(misspelt, "mtuu"), (moved, "spec.transport: {\"overlay\":{\"vni\":8}}")] {
            let judged = judge(std::slice::from_ref(&bad), &former);
            assert_eq!(judged[0].in_force.as_ref(), former.get("uid-a"));
            let message = judged[0].problem.as_ref().expect("a problem").to_string();
            assert!(message.contains(wanted), "{message}");
            // A node that has not seen the valid one has nothing.
            let judged = judge(&[bad], &BTreeMap::new());
            assert_eq!(judged[0].in_force.is_none(), wanted == "mtuu");
        }
        // Its VNI stays taken meanwhile.
        let mut broken = good;
        broken.spec = json!({});
        let judged = judge(&[broken, declared("b", None, json!({"overlay": {"vni": 7}}))], &former);
        assert_eq!(outcome(&judged, "b"), (Some("Conflict"), false));
    }
}
