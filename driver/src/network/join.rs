//! Which namespaces' claims may have a port on a network.

use std::collections::BTreeMap;

use super::spec::NetworkSpec;
use crate::claim::config::FieldError;

pub(super) const IN: &str = "In";
pub(super) const NOT_IN: &str = "NotIn";
pub(super) const EXISTS: &str = "Exists";
pub(super) const DOES_NOT_EXIST: &str = "DoesNotExist";

/// Whether claims of `namespace`, which has these labels, may have a port on the network. All conditions of the
/// selector must hold; no selector lets nobody in, an empty one everybody.
///
/// The error names the condition that does not hold, as a field of the Network.
pub fn may_join(
    network: &NetworkSpec,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(), FieldError> {
    const FIELD: &str = "spec.namespaceSelector";
    let Some(selector) = &network.namespace_selector else {
        let allowed =
            format!("a selector that lets namespace {namespace:?} in; without one no claim may have a port");
        return Err(FieldError::missing(FIELD, allowed));
    };
    let has = |key: &str| match labels.get(key) {
        Some(value) => format!("namespace {namespace:?} has {key}={value}"),
        None => format!("namespace {namespace:?} has no label {key}"),
    };
    for (key, value) in selector.match_labels.iter().flatten() {
        if labels.get(key) != Some(value) {
            return Err(FieldError::new(format!("{FIELD}.matchLabels[{key}]"), value, has(key)));
        }
    }
    for (at, entry) in selector.match_expressions.iter().flatten().enumerate() {
        let values = entry.values.as_deref().unwrap_or_default();
        let value = labels.get(&entry.key);
        let holds = match entry.operator.as_str() {
            IN => value.is_some_and(|value| values.contains(value)),
            // As in Kubernetes, a namespace without the label is not in the list.
            NOT_IN => value.is_none_or(|value| !values.contains(value)),
            EXISTS => value.is_some(),
            DOES_NOT_EXIST => value.is_none(),
            // Validation refuses others.
            _ => false,
        };
        if !holds {
            let wanted = format!("{} {} [{}]", entry.key, entry.operator, values.join(", "));
            return Err(FieldError::new(format!("{FIELD}.matchExpressions[{at}]"), wanted, has(&entry.key)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::network::validate::parse;

    fn network(selector: &serde_json::Value) -> NetworkSpec {
        parse(&json!({
            "subnets": ["10.1.0.0/16"], "transport": {"local": {}}, "namespaceSelector": selector,
        }))
        .expect("a network")
    }

    fn joins(selector: &serde_json::Value, labels: &[(&str, &str)]) -> Result<(), String> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        may_join(&network(selector), "shop", &labels).map_err(|error| error.to_string())
    }

    #[test]
    fn every_condition_must_hold() {
        let selector = json!({
            "matchLabels": {"team": "shop"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "zone", "operator": "NotIn", "values": ["dmz"]},
                {"key": "net", "operator": "Exists"},
                {"key": "frozen", "operator": "DoesNotExist"},
            ],
        });
        let good = [("team", "shop"), ("tier", "b"), ("net", "")];
        assert_eq!(joins(&selector, &good), Ok(()));
        for (key, value, wanted) in [
            ("team", "other", "spec.namespaceSelector.matchLabels[team]"),
            ("tier", "c", "spec.namespaceSelector.matchExpressions[0]"),
            ("zone", "dmz", "spec.namespaceSelector.matchExpressions[1]"),
            ("frozen", "", "spec.namespaceSelector.matchExpressions[3]"),
        ] {
            let labels: Vec<_> =
                good.into_iter().filter(|(other, _)| *other != key).chain([(key, value)]).collect();
            let refused = joins(&selector, &labels).expect_err(key);
            assert!(refused.contains(wanted), "{refused}");
            assert!(refused.contains(&format!("namespace \"shop\" has {key}={value}")), "{refused}");
        }
        let refused = joins(&selector, &good[..2]).expect_err("net is missing");
        assert!(refused.contains("has no label net"), "{refused}");
    }

    #[test]
    fn no_selector_lets_nobody_in_and_an_empty_one_everybody() {
        let mut spec = network(&json!({}));
        assert_eq!(may_join(&spec, "shop", &BTreeMap::new()), Ok(()));
        spec.namespace_selector = None;
        assert!(may_join(&spec, "shop", &BTreeMap::new()).is_err());
    }
}
