//! One YAML document: from text to an object of resource.k8s.io/v1, or to an error that names file, document
//! and field.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::{
        core::v1::Namespace,
        resource::v1::{DeviceClass, ResourceClaim},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    cluster::versions::{self, ApiVersion},
    network::{Declared, spec},
};

/// An object read from the folder.
#[derive(Debug)]
pub(super) enum Object {
    /// A claim.
    Claim(Box<ResourceClaim>),
    /// A class.
    Class(Box<DeviceClass>),
    /// A network, whatever its spec is.
    Network(Box<Declared>),
    /// A namespace.
    Namespace(Box<Namespace>),
}

/// Something in the folder that cannot be used. The rest of the folder can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Which file.
    pub(super) file: PathBuf,
    /// Which document in it, from 1; `None` is the file as a whole.
    pub(super) document: Option<usize>,
    /// `namespace/name` where it could be told and it is a claim's.
    pub(super) claim: Option<String>,
    /// Field, value, what is allowed.
    pub(super) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(document) = self.document {
            write!(f, ", document {document}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Split a file at its document markers. A marker stands at the start of a line and can be nothing else there
/// (YAML 1.2, 9.1.2), so one broken document does not take the next ones with it.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") || line.starts_with("---\t") {
            documents.push(format!("{}\n", &line[3..]));
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    // What stands before a first marker is a document only if it says something.
    let silent = |line: &str| line.trim().is_empty() || line.starts_with(['#', '%']);
    if documents.len() > 1 && documents[0].lines().all(silent) {
        documents.remove(0);
    }
    documents
}

/// Read the YAML of one document. `None` is an empty one. A key that is there twice is refused: one of the two values would be
/// as if it were not there.
pub(crate) fn yaml(text: &str) -> Result<Option<Value>, String> {
    let value: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(text).map_err(|error| format!("not YAML: {error}"))?;
    if value.is_null() {
        return Ok(None);
    }
    serde_json::to_value(value).map(Some).map_err(|error| format!("not an object of Kubernetes: {error}"))
}

/// Read one document. `None` is an empty one, or an object of a group that is not ours to read.
pub(super) fn read(file: &Path, document: usize, text: &str) -> Result<Option<Object>, Problem> {
    let problem = |claim: Option<String>, message: String| Problem {
        file: file.to_owned(),
        document: Some(document),
        claim,
        message,
    };
    let Some(value) = yaml(text).map_err(|message| problem(None, message))? else { return Ok(None) };
    let text_of = |field: &str| value.pointer(field).and_then(Value::as_str);
    let Some(api_version) = text_of("/apiVersion") else {
        return Err(problem(None, "apiVersion: missing; an object has apiVersion and kind".to_owned()));
    };
    let kind = text_of("/kind").unwrap_or_default().to_owned();
    // Whose they are is in the message; a claim is not hidden by them.
    let other = |message: String| problem(Some(String::new()), message);
    match (api_version, kind.as_str()) {
        ("v1", "Namespace") => {
            let namespace = typed(&value).and_then(checked_namespace).map_err(other)?;
            return Ok(Some(Object::Namespace(Box::new(namespace))));
        }
        (spec::API_VERSION, spec::KIND) => {
            let network = declared(&value).map_err(other)?;
            return Ok(Some(Object::Network(Box::new(network))));
        }
        _ if api_version.starts_with(&format!("{}/", spec::GROUP)) => {
            let message = format!(
                "{api_version} {kind}: not read here; allowed: kind {} of {}",
                spec::KIND,
                spec::API_VERSION
            );
            return Err(other(message));
        }
        _ => {}
    }
    let Some(version) = api_version.strip_prefix(versions::GROUP).and_then(|rest| rest.strip_prefix('/'))
    else {
        return Ok(None);
    };
    let identity = (kind == "ResourceClaim").then(|| {
        let namespace = text_of("/metadata/namespace").unwrap_or("default");
        format!("{namespace}/{}", text_of("/metadata/name").unwrap_or_default())
    });
    let Some(version) = ApiVersion::parse(version) else {
        let message = format!("apiVersion: {api_version:?} is not read; allowed: v1, v1beta2, v1beta1");
        return Err(problem(identity, message));
    };
    let object = versions::from_wire(version, value);
    match kind.as_str() {
        "ResourceClaim" => typed(&object).and_then(checked_claim).map(|claim| Object::Claim(Box::new(claim))),
        "DeviceClass" => typed(&object).and_then(checked_class).map(|class| Object::Class(Box::new(class))),
        _ => Err(format!("kind: {kind:?} is not read here; allowed: ResourceClaim, DeviceClass")),
    }
    .map(Some)
    .map_err(|message| problem(identity, message))
}

/// Into a type, refusing what the type does not know.
pub(crate) fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> Result<T, String> {
    let typed: T = serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if path == "." { inner.to_string() } else { format!("{path}: {inner}") }
    })?;
    let known = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    match unknown_field(object, &known, "") {
        Some(path) => Err(format!("{path}: unknown field")),
        None => Ok(typed),
    }
}

/// The first field that did not survive the way through the type.
fn unknown_field(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match known.get(key) {
                Some(known) => unknown_field(value, known, &path),
                None if value.is_null() => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) => given
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(index, (given, known))| unknown_field(given, known, &format!("{path}[{index}]"))),
        _ => None,
    }
}

fn checked_claim(mut claim: ResourceClaim) -> Result<ResourceClaim, String> {
    check_name("metadata.name", claim.metadata.name.as_deref())?;
    let namespace = claim.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    check_name("metadata.namespace", Some(namespace))?;
    let requests = claim.spec.devices.as_ref().and_then(|devices| devices.requests.as_ref());
    for (index, request) in requests.into_iter().flatten().enumerate() {
        let field = format!("spec.devices.requests[{index}]");
        check_name(&format!("{field}.name"), Some(&request.name))?;
        if request.exactly.is_some() == request.first_available.is_some() {
            return Err(format!("{field}: exactly one of `exactly` and `firstAvailable` must be set"));
        }
    }
    Ok(claim)
}

fn checked_namespace(namespace: Namespace) -> Result<Namespace, String> {
    check_name("metadata.name", namespace.metadata.name.as_deref())?;
    Ok(namespace)
}

/// A network is judged with the others, so its spec is taken as it is.
pub(crate) fn declared(object: &Value) -> Result<Declared, String> {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    if let Some(field) = object
        .as_object()
        .into_iter()
        .flat_map(|object| object.keys())
        .find(|key| !known.contains(&key.as_str()))
    {
        return Err(format!("{field}: unknown field"));
    }
    let metadata: ObjectMeta = typed(object.get("metadata").unwrap_or(&Value::Null))
        .map_err(|message| format!("metadata: {message}"))?;
    check_name("metadata.name", metadata.name.as_deref())?;
    Ok(Declared::new(&metadata, object))
}

fn checked_class(class: DeviceClass) -> Result<DeviceClass, String> {
    check_name("metadata.name", class.metadata.name.as_deref())?;
    Ok(class)
}

/// A DNS subdomain (RFC 1123), as the API server wants it. Names become file names, so this also keeps them in
/// the folder.
pub(crate) fn check_name(field: &str, name: Option<&str>) -> Result<(), String> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Err(format!("{field}: missing"));
    };
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
    };
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(());
    }
    Err(format!(
        "{field}: {name:?} is not a DNS subdomain (lower-case letters, digits, '-', '.'; at most 253)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        read(Path::new("f.yaml"), 2, text).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_error_names_file_document_and_field() {
        let claim = "apiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {name: a}\n";
        let cases = [
            (
                "spec: {devices: {requests: [{name: r, exactly: {count: many}}]}}",
                "spec.devices.requests[0].exactly.count: invalid type",
            ),
            (
                "spec: {devices: {requests: [{name: r, exactly: {deviceClassName: x, colour: red}}]}}",
                "spec.devices.requests[0].exactly.colour: unknown field",
            ),
            ("spec: {devices: {requests: [{name: r}]}}", "spec.devices.requests[0]: exactly one of"),
            (
                "spec: {devices: {requests: [{name: ../r, exactly: {deviceClassName: x}}]}}",
                "spec.devices.requests[0].name: \"../r\"",
            ),
        ];
        for (spec, wanted) in cases {
            let message = message(&format!("{claim}{spec}"));
            assert!(message.starts_with("f.yaml, document 2: ") && message.contains(wanted), "{message}");
        }
        assert!(message("a: [").contains("not YAML"));
        let twice = message("apiVersion: v1\nkind: Pod\nkind: Namespace\n");
        assert!(twice.contains("duplicate entry with key \"kind\""), "{twice}");
        assert!(message("a: 1").contains("apiVersion: missing"));
        assert!(message("apiVersion: resource.k8s.io/v1\nkind: ResourceClaimTemplate").contains("kind: "));
        assert!(message("apiVersion: resource.k8s.io/v9\nkind: ResourceClaim").contains("apiVersion: "));
    }

    #[test]
    fn other_groups_and_empty_documents_are_left_alone() {
        for text in ["", "# nothing", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}"] {
            assert!(read(Path::new("f"), 1, text).expect("left alone").is_none());
        }
    }

    #[test]
    fn markers_split_and_text_inside_does_not() {
        let documents = split("a: 1\n---\nb: |\n  ---\n  x\n--- {c: 3}\n");
        assert_eq!(documents, ["a: 1\n", "\nb: |\n  ---\n  x\n", " {c: 3}\n"].map(str::to_owned));
        assert_eq!(split("# first\n---\na: 1\n").len(), 1, "document 1 is the one that a reader counts as 1");
    }
}
