//! `policy`, `limits` and `subInterface`: read by their types, with errors that name the path, the value and what is allowed.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use serde_path_to_error::Segment;

use super::{FieldError, Limits, Policy, unknown_name};
use crate::{
    datapath::policy::PolicyError,
    link::{Ipvlan, Macvlan, SubInterface, Vlan},
};

pub(super) fn policy(value: &Value) -> Result<Policy, Vec<FieldError>> {
    let policy: Policy = read("policy", value).map_err(|error| vec![error])?;
    policy.validate().map_err(|error| {
        vec![
            match error {
                PolicyError::Invalid { field, value, allowed } => FieldError::new(field, value, allowed),
                other @ PolicyError::TooLarge { .. } => FieldError::new("", "this policy", other.to_string()),
            }
            .under("policy"),
        ]
    })?;
    Ok(policy)
}

pub(super) fn limits(value: &Value) -> Result<Limits, Vec<FieldError>> {
    let limits: Limits = read("limits", value).map_err(|error| vec![error])?;
    limits
        .validate()
        .map_err(|error| vec![FieldError::new(error.field, error.value, error.allowed).under("limits")])?;
    Ok(limits)
}

/// Exactly one of these.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Choice {
    macvlan: Option<Macvlan>,
    ipvlan: Option<Ipvlan>,
    vlan: Option<Vlan>,
}

pub(super) fn sub_interface(value: &Value) -> Result<SubInterface, Vec<FieldError>> {
    let choice: Choice = read("subInterface", value).map_err(|error| vec![error])?;
    match choice {
        Choice { macvlan: Some(macvlan), ipvlan: None, vlan: None } => Ok(SubInterface::Macvlan(macvlan)),
        Choice { macvlan: None, ipvlan: Some(ipvlan), vlan: None } => Ok(SubInterface::Ipvlan(ipvlan)),
        Choice { macvlan: None, ipvlan: None, vlan: Some(vlan) } if (1..=4094).contains(&vlan.id) => {
            Ok(SubInterface::Vlan(vlan))
        }
        Choice { macvlan: None, ipvlan: None, vlan: Some(vlan) } => {
            Err(vec![FieldError::new("subInterface.vlan.id", vlan.id, "1 to 4094")])
        }
        _ => Err(vec![FieldError::new("subInterface", value, "exactly one of macvlan, ipvlan, vlan")]),
    }
}

/// Read a value by its type. Errors name the path below `field` and the value there; they come one at a time, as what follows
/// the first is not read. A field that is `null` is refused: left out it would mean something else.
pub fn read<T: DeserializeOwned>(field: &str, value: &Value) -> Result<T, FieldError> {
    shape(field, value, true)?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, found) = locate(field, value, error.path().iter());
        explain(path, found, &error.inner().to_string())
    })
}

/// Refuses what the types would take for something else: `null` for a field left out (`peers:` with nothing after
/// it would be every peer), a list for an object without its names.
fn shape(path: &str, value: &Value, object: bool) -> Result<(), FieldError> {
    match value {
        Value::Null => Err(FieldError::new(path, "null", "a value, or leave the field out")),
        Value::Array(_) if object => Err(FieldError::new(path, value, "an object")),
        Value::Array(items) => (0..)
            .zip(items)
            .try_for_each(|(index, item): (usize, _)| shape(&format!("{path}[{index}]"), item, true)),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let object = matches!(name.as_str(), "ingress" | "egress");
            shape(&format!("{path}.{}", unknown_name(name)), value, object)
        }),
        _ => Ok(()),
    }
}

/// Where an error is, and what is there.
fn locate<'a, 'v>(
    field: &str,
    value: &'v Value,
    segments: impl Iterator<Item = &'a Segment>,
) -> (String, Option<&'v Value>) {
    let (mut path, mut found) = (field.to_owned(), Some(value));
    for segment in segments {
        match segment {
            Segment::Seq { index } => {
                path = format!("{path}[{index}]");
                found = found.and_then(|value| value.get(*index));
            }
            Segment::Map { key } => {
                path = format!("{path}.{}", unknown_name(key));
                found = found.and_then(|value| value.get(key));
            }
            // The value of an enum, not a field.
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    (path, found)
}

/// serde's words in ours.
fn explain(path: String, found: Option<&Value>, said: &str) -> FieldError {
    // What was found comes first and may hold anything; what is expected comes from the types.
    let expected = said.rsplit_once(", expected ").map(|(_, expected)| expected);
    if let Some(name) = said.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return FieldError::missing(format!("{path}.{name}"), "it is required");
    }
    let expected = expected.map(|expected| expected.trim_start_matches("one of "));
    match expected {
        Some(expected) if said.starts_with("unknown field") => {
            let known = expected.replace(" or ", ", ").replace('`', "");
            FieldError::new(path, "this field", known)
        }
        expected => {
            let allowed = match expected {
                Some("u16") => "a whole number from 0 to 65535".to_owned(),
                Some("u64") => "a whole number".to_owned(),
                Some("string or map") => "a string".to_owned(),
                Some("a sequence") => "a list".to_owned(),
                Some("a map") => "an object".to_owned(),
                Some(known) if known.starts_with("struct ") => "an object".to_owned(),
                Some(known) => known.replace('`', "\""),
                None => said.to_owned(),
            };
            match found {
                Some(value) => FieldError::new(path, value, allowed),
                None => FieldError::new(path, "this value", allowed),
            }
        }
    }
}

#[cfg(test)]
mod tests;
