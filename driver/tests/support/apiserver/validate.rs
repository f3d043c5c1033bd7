//! Rules of the real server (kubernetes `pkg/apis/resource/validation`, `pkg/apis/core/validation/events.go`).

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use k8s_openapi::api::{
    events::v1::Event,
    resource::{v1, v1beta1, v1beta2},
};
use netferry::cluster::versions::ApiVersion;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::routes::Failure;

type Checked = Result<(), Failure>;

fn invalid(field: impl std::fmt::Display, why: impl std::fmt::Display) -> Failure {
    Failure::new(422, "Invalid", format!("{field}: Invalid value: {why}"))
}

fn require(holds: bool, field: impl std::fmt::Display, why: impl std::fmt::Display) -> Checked {
    if holds { Ok(()) } else { Err(invalid(field, why)) }
}

/// The body has the shape of the version it claims, and no field beside.
fn strict<T: DeserializeOwned + Serialize>(body: &Value) -> Checked {
    fn lost(sent: &Value, known: &Value, path: &str) -> Option<String> {
        match (sent, known) {
            (Value::Object(sent), Value::Object(known)) => sent.iter().find_map(|(name, value)| {
                let path = format!("{path}.{name}");
                known.get(name).map_or(Some(path.clone()), |known| lost(value, known, &path))
            }),
            (Value::Array(sent), Value::Array(known)) => {
                sent.iter().zip(known).find_map(|(sent, known)| lost(sent, known, path))
            }
            _ => None,
        }
    }
    let bad = |error: serde_json::Error| Failure::new(400, "BadRequest", error.to_string());
    let typed: T = serde_json::from_value(body.clone()).map_err(bad)?;
    match lost(body, &serde_json::to_value(&typed).map_err(bad)?, "") {
        Some(field) => {
            Err(Failure::new(400, "BadRequest", format!("strict decoding: unknown field {field}")))
        }
        None => Ok(()),
    }
}

pub(super) fn slice_shape(version: ApiVersion, body: &Value) -> Checked {
    match version {
        ApiVersion::V1 => strict::<v1::ResourceSlice>(body),
        ApiVersion::V1beta2 => strict::<v1beta2::ResourceSlice>(body),
        ApiVersion::V1beta1 => {
            for device in body["spec"]["devices"].as_array().into_iter().flatten() {
                require(device["basic"].is_object(), "spec.devices.basic", "required")?;
            }
            strict::<v1beta1::ResourceSlice>(body)
        }
    }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_subdomain(text: &str, max: usize) -> bool {
    text.len() <= max && text.split('.').all(is_label)
}

fn is_identifier(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.len() <= 32 && text.starts_with(first) && text.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// `id`, or `domain/id`.
fn is_qualified(text: &str) -> bool {
    text.split_once('/')
        .map_or_else(|| is_identifier(text), |(domain, id)| is_subdomain(domain, 63) && is_identifier(id))
}

/// A slice in the v1 shape.
pub(super) fn slice(slice: &Value) -> Checked {
    let spec = &slice["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    require(is_subdomain(&text(&spec["driver"]), 63), "spec.driver", &spec["driver"])?;
    let pool = &spec["pool"];
    let name = text(&pool["name"]);
    require(
        name.len() <= 253 && name.split('/').all(|part| is_subdomain(part, 253)),
        "spec.pool.name",
        &name,
    )?;
    require(pool["generation"].as_i64().is_some_and(|n| n >= 0), "spec.pool.generation", "must be ≥ 0")?;
    require(
        pool["resourceSliceCount"].as_i64().is_some_and(|n| n > 0),
        "spec.pool.resourceSliceCount",
        "must be > 0",
    )?;
    let places = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let set = places.iter().filter(|field| !spec[**field].is_null()).count();
    require(set == 1, "spec", "exactly one of `nodeName`, `nodeSelector`, `allNodes`, … is required")?;
    let none = Vec::new();
    let devices = spec["devices"].as_array().unwrap_or(&none);
    let heavy =
        devices.iter().any(|device| !device["taints"].is_null() || !device["consumesCounters"].is_null());
    let most = if heavy { 64 } else { 128 };
    require(devices.len() <= most, "spec.devices", format!("must have at most {most} items"))?;
    let mut names = BTreeSet::new();
    for (index, device) in devices.iter().enumerate() {
        let field = format!("spec.devices[{index}]");
        let name = text(&device["name"]);
        require(is_label(&name), format!("{field}.name"), format!("{name:?} is not a DNS label"))?;
        require(names.insert(name.clone()), format!("{field}.name"), format!("{name:?} is there twice"))?;
        device_facts(&field, device)?;
    }
    Ok(())
}

fn device_facts(field: &str, device: &Value) -> Checked {
    let size = |name: &str| device[name].as_object().map_or(0, serde_json::Map::len);
    require(size("attributes") + size("capacity") <= 32, field, "at most 32 attributes and capacities")?;
    for (name, value) in device["attributes"].as_object().into_iter().flatten() {
        let field = format!("{field}.attributes[{name}]");
        require(is_qualified(name), &field, "not a qualified name (C identifier ≤ 32, domain ≤ 63)")?;
        let value = value.as_object().filter(|value| value.len() == 1);
        let value = value.ok_or_else(|| invalid(&field, "exactly one value must be specified"))?;
        for kind in ["string", "version"] {
            if let Some(text) = value.get(kind).and_then(Value::as_str) {
                require(text.len() <= 64, format!("{field}.{kind}"), "must be at most 64 bytes")?;
            }
        }
    }
    for (name, capacity) in device["capacity"].as_object().into_iter().flatten() {
        let field = format!("{field}.capacity[{name}]");
        require(is_qualified(name), &field, "not a qualified name")?;
        let policy = &capacity["requestPolicy"];
        if policy.is_null() {
            continue;
        }
        require(
            device["allowMultipleAllocations"] == true,
            format!("{field}.requestPolicy"),
            "allowMultipleAllocations must be true",
        )?;
        if let Some(values) = policy["validValues"].as_array() {
            let default = values.contains(&policy["default"]);
            require(
                default && values.len() <= 10,
                format!("{field}.requestPolicy.default"),
                "in validValues",
            )?;
        }
    }
    Ok(())
}

/// Device statuses of a claim.
pub(super) fn devices(claim: &Value, devices: &[Value]) -> Checked {
    for (index, device) in devices.iter().enumerate() {
        let field = format!("status.devices[{index}]");
        let same = |result: &Value| {
            ["driver", "pool", "device", "shareID"].iter().all(|key| result[*key] == device[*key])
        };
        let results = claim["status"]["allocation"]["devices"]["results"].as_array();
        require(results.into_iter().flatten().any(same), &field, "must be an allocated device in the claim")?;
        let conditions = device["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        require(conditions.len() <= 8, format!("{field}.conditions"), "must have at most 8 items")?;
        for condition in conditions {
            let text = |name: &str| condition[name].as_str().unwrap_or_default();
            let field = format!("{field}.conditions[{}]", text("type"));
            require(["True", "False", "Unknown"].contains(&text("status")), &field, "status")?;
            let word = |c: char| c.is_ascii_alphanumeric() || ",:_".contains(c);
            let reason = text("reason");
            let named = reason.starts_with(|c: char| c.is_ascii_alphabetic()) && reason.chars().all(word);
            require(named && reason.len() <= 1024, &field, "reason")?;
            require(text("message").len() <= 32_768, &field, "message")?;
            require(text("lastTransitionTime").ends_with('Z'), &field, "lastTransitionTime: must be set")?;
        }
        let network = &device["networkData"];
        let length = |name: &str| network[name].as_str().map_or(0, str::len);
        require(length("interfaceName") <= 256, &field, "interfaceName: may not be longer than 256")?;
        require(length("hardwareAddress") <= 128, &field, "hardwareAddress: may not be longer than 128")?;
        let mut seen = BTreeSet::new();
        for ip in network["ips"].as_array().into_iter().flatten() {
            let text = ip.as_str().unwrap_or_default();
            let canonical = text.parse::<IpNetwork>().is_ok_and(|network| network.to_string() == text);
            require(
                canonical && text.contains('/'),
                format!("{field}.networkData.ips"),
                "not a canonical CIDR",
            )?;
            require(seen.insert(text), format!("{field}.networkData.ips"), "Duplicate value")?;
        }
        require(seen.len() <= 16, format!("{field}.networkData.ips"), "must have at most 16 items")?;
    }
    Ok(())
}

/// A new Event of events.k8s.io/v1.
pub(super) fn event(namespace: &str, body: &Value) -> Checked {
    strict::<Event>(body)?;
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    let regarding = body["regarding"]["namespace"].as_str();
    require(body["metadata"]["namespace"] == namespace, "metadata.namespace", "not the request's")?;
    let right =
        regarding.map_or(namespace == "default" || namespace == "kube-system", |own| own == namespace);
    require(right, "regarding.namespace", "does not match event.namespace")?;
    require(is_subdomain_name(body["metadata"]["name"].as_str().unwrap_or_default()), "metadata.name", "")?;
    require(!text("eventTime").is_empty(), "eventTime", "required")?;
    require(is_qualified_controller(text("reportingController")), "reportingController", "")?;
    for (field, most) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        require((1..=most).contains(&text(field).len()), field, format!("1 to {most} bytes"))?;
    }
    require(text("note").len() <= 1024, "note", "can have at most 1024 characters")?;
    require(["Normal", "Warning"].contains(&text("type")), "type", text("type"))
}

fn is_subdomain_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    (1..=253).contains(&text.len()) && text.chars().all(inner)
}

fn is_qualified_controller(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._/".contains(c))
}
