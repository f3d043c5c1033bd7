//! The objects of files.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Problem;
use crate::{
    claim::config::FieldError,
    cluster::{
        standalone::document::{declared, split, yaml},
        versions::{self, ApiVersion},
    },
    network::{Declared, spec},
    selector::known::nearest,
};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    InterfaceConfig,
    Network,
    DeviceClass,
    ResourceClaim,
    ResourceClaimTemplate,
    /// A Pod, or what makes pods.
    Pod,
    /// Nothing to check.
    Other,
}

/// An object as it is written.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) file: String,
    /// Number of its document, from 1.
    pub(super) document: usize,
    pub(super) kind: Kind,
    /// Claims and classes in the form of resource.k8s.io/v1.
    pub(super) value: Value,
    pub(super) problems: Vec<Problem>,
}

impl Object {
    pub(super) fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn kind_name(&self) -> String {
        self.text("/kind").to_owned()
    }

    pub(super) fn namespace(&self) -> &str {
        Some(self.text("/metadata/namespace")).filter(|it| !it.is_empty()).unwrap_or("default")
    }

    /// `name`, or `namespace/name` of what is in a namespace.
    pub(super) fn name(&self) -> String {
        let name = self.text("/metadata/name");
        let namespaced = matches!(self.kind, Kind::ResourceClaim | Kind::ResourceClaimTemplate | Kind::Pod);
        if namespaced && !name.is_empty() { format!("{}/{name}", self.namespace()) } else { name.to_owned() }
    }

    pub(super) fn network(&self) -> Result<Declared, String> {
        declared(&self.value)
    }
}

/// The objects of a file. A document that cannot be read is one with a problem.
pub(super) fn read(file: &str, text: &str) -> Vec<Object> {
    let mut objects = Vec::new();
    for (index, text) in split(text).iter().enumerate() {
        let object = |value: Value, kind, problems| Object {
            file: file.to_owned(),
            document: index + 1,
            kind,
            value,
            problems,
        };
        match yaml(text) {
            Ok(None) => {}
            Ok(Some(Value::Object(mut list))) if list.get("kind").is_some_and(|kind| kind == "List") => {
                let Some(Value::Array(items)) = list.remove("items") else { continue };
                objects.extend(items.into_iter().map(|value| {
                    let (value, kind, problems) = classify(value);
                    object(value, kind, problems)
                }));
            }
            Ok(Some(value)) => {
                let (value, kind, problems) = classify(value);
                objects.push(object(value, kind, problems));
            }
            Err(message) => objects.push(object(Value::Null, Kind::Other, vec![Problem::plain(message)])),
        }
    }
    objects
}

fn classify(value: Value) -> (Value, Kind, Vec<Problem>) {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let wrong = |error: FieldError| vec![Problem::error(error)];
    if !value.is_object() {
        return (value, Kind::Other, vec![Problem::plain("not an object of Kubernetes".to_owned())]);
    }
    if api_version.is_empty() || kind.is_empty() {
        let field = if api_version.is_empty() { "apiVersion" } else { "kind" };
        let error = FieldError::missing(field, "an object has apiVersion and kind");
        return (value, Kind::Other, wrong(error));
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let kinds = ["InterfaceConfig", "Network"];
    let ours =
        group == spec::GROUP || (kinds.contains(&kind.as_str()) && nearest(group, [spec::GROUP]).is_some());
    if ours {
        if api_version != spec::API_VERSION {
            let error = FieldError::new("apiVersion", api_version, spec::API_VERSION);
            return (value, Kind::Other, wrong(error));
        }
        return match kind.as_str() {
            "InterfaceConfig" => (value, Kind::InterfaceConfig, Vec::new()),
            "Network" => (value, Kind::Network, Vec::new()),
            _ => (value, Kind::Other, wrong(FieldError::new("kind", kind, kinds.join(", ")))),
        };
    }
    let known = match (group, kind.as_str()) {
        (versions::GROUP, "DeviceClass") => Kind::DeviceClass,
        (versions::GROUP, "ResourceClaim") => Kind::ResourceClaim,
        (versions::GROUP, "ResourceClaimTemplate") => Kind::ResourceClaimTemplate,
        ("", "Pod") | ("apps" | "batch", _) => return (value, Kind::Pod, Vec::new()),
        _ => return (value, Kind::Other, Vec::new()),
    };
    if let Some(version) = ApiVersion::parse(version) {
        return (versions::from_wire(version, value), known, Vec::new());
    }
    let allowed = "resource.k8s.io/v1, resource.k8s.io/v1beta2, resource.k8s.io/v1beta1";
    (value, Kind::Other, wrong(FieldError::new("apiVersion", api_version, allowed)))
}

/// Of two objects of one kind and name, the later would replace the earlier.
pub(super) fn refuse_twice(objects: &mut [Object]) {
    let mut seen: BTreeMap<(Kind, String, String), String> = BTreeMap::new();
    for object in objects.iter_mut().filter(|object| object.kind != Kind::Other && !object.name().is_empty())
    {
        let place = format!("{}, document {}", object.file, object.document);
        let key = (object.kind, object.kind_name(), object.name());
        if let Some(first) = seen.get(&key) {
            let allowed = format!("each name once; {first} has it, too");
            let error = FieldError::new("metadata.name", object.name(), allowed);
            object.problems.push(Problem::error(error));
        } else {
            seen.insert(key, place);
        }
    }
}
