//! What the server keeps: creating, reading, replacing and removing objects.

use netferry::cluster::versions::{self, ApiVersion};
use serde_json::{Value, json};

use super::{
    State,
    routes::{Answer, Failure, Request},
    validate,
};

fn resource(kind: &str) -> &'static str {
    match kind {
        "Node" => "nodes",
        "Pod" => "pods",
        "Namespace" => "namespaces",
        "Network" => "networks",
        "ResourceClaim" => "resourceclaims",
        "ResourceSlice" => "resourceslices",
        "DeviceClass" => "deviceclasses",
        other => panic!("kind {other} is not kept here"),
    }
}

fn key(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().expect("metadata.name");
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

fn not_found(resource: &str, name: &str) -> Failure {
    Failure::new(404, "NotFound", format!("{resource} {name:?} not found"))
}

impl State {
    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    pub(super) fn put(&mut self, mut object: Value) -> Value {
        self.names += 1;
        let version = self.next_version();
        let names = self.names;
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        let uid = format!("00000000-0000-4000-8000-{names:012}");
        metadata.entry("uid").or_insert_with(|| uid.into());
        metadata.entry("creationTimestamp").or_insert_with(|| "2026-01-01T00:00:00Z".into());
        metadata.insert("resourceVersion".to_owned(), version.into());
        let kind = object["kind"].as_str().expect("kind").to_owned();
        let key = (resource(&kind), key(&object));
        let before = self.objects.get(&key);
        if kind == "Network" {
            let generation =
                before.map_or(0, |before| before["metadata"]["generation"].as_i64().unwrap_or(0));
            let changed = before.is_none_or(|before| before["spec"] != object["spec"]);
            object["metadata"]["generation"] = (generation + i64::from(changed)).into();
        }
        let event = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.log(key.0, event, &object);
        self.objects.insert(key, object.clone());
        object
    }

    /// Store a changed object; a write that changes nothing keeps its resource version, as in the real server.
    pub(super) fn replace(&mut self, resource: &'static str, name: &str, mut object: Value) -> Value {
        let key = (resource, name.to_owned());
        if self.objects.get(&key) != Some(&object) {
            object["metadata"]["resourceVersion"] = self.next_version().into();
            self.log(resource, "MODIFIED", &object);
            self.objects.insert(key, object.clone());
        }
        object
    }

    pub(super) fn find(&self, resource: &'static str, name: &str) -> Result<Value, Failure> {
        self.objects.get(&(resource, name.to_owned())).cloned().ok_or_else(|| not_found(resource, name))
    }

    pub(super) fn read(&self, resource: &'static str, name: &str, version: Option<ApiVersion>) -> Answer {
        let object = self.find(resource, name)?;
        Ok((200, version.map_or(object.clone(), |version| versions::to_wire(version, object))))
    }

    pub(super) fn list_slices(&self, version: ApiVersion, request: &Request<'_>) -> Answer {
        let selector = request.query.get("fieldSelector").map(String::as_str).unwrap_or_default();
        let mut wanted = Vec::new();
        for term in selector.split(',').filter(|term| !term.is_empty()) {
            let (field, value) = term.split_once('=').unwrap_or((term, ""));
            let pointer = match field {
                "metadata.name" => "/metadata/name",
                "spec.driver" => "/spec/driver",
                "spec.nodeName" => "/spec/nodeName",
                _ => {
                    let message = format!("field label not supported: {field}");
                    return Err(Failure::new(400, "BadRequest", message));
                }
            };
            wanted.push((pointer, value.trim_start_matches('=')));
        }
        let matches = |object: &&Value| {
            wanted
                .iter()
                // A field that is not set is selected by an empty value.
                .all(|(pointer, value)| {
                    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default() == *value
                })
        };
        let all: Vec<_> = self
            .objects
            .iter()
            .filter(|((kind, _), _)| *kind == "resourceslices")
            .map(|(_, object)| object)
            .filter(matches)
            .collect();
        let number = |name: &str| request.query.get(name).and_then(|text| text.parse::<usize>().ok());
        let (start, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
        // Pages of at most two, so that every client that lists must follow `continue`.
        let limit = limit.min(2);
        let page: Vec<Value> = all
            .iter()
            .skip(start)
            .take(limit)
            .map(|object| {
                let mut item = versions::to_wire(version, (*object).clone());
                // Items of a list come without type.
                item.as_object_mut().map(|item| (item.remove("kind"), item.remove("apiVersion")));
                item
            })
            .collect();
        let token =
            if start + page.len() < all.len() { (start + page.len()).to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": token});
        Ok((
            200,
            json!({"kind": "ResourceSliceList", "apiVersion": version.api_version(),
            "metadata": metadata, "items": page}),
        ))
    }

    fn slice_body(&self, version: ApiVersion, request: &Request<'_>) -> Result<Value, Failure> {
        validate::slice_shape(version, request.body)?;
        let mut object = versions::from_wire(version, request.body.clone());
        if self.no_shared_devices {
            // `dropDisabledFields` of pkg/registry/resource/resourceslice.
            for device in object["spec"]["devices"].as_array_mut().into_iter().flatten() {
                device.as_object_mut().map(|device| device.remove("allowMultipleAllocations"));
                for capacity in device["capacity"].as_object_mut().into_iter().flatten() {
                    capacity.1.as_object_mut().map(|capacity| capacity.remove("requestPolicy"));
                }
            }
        }
        validate::slice(&object)?;
        Ok(object)
    }

    pub(super) fn create_slice(&mut self, version: ApiVersion, request: &Request<'_>) -> Answer {
        let mut object = self.slice_body(version, request)?;
        if object["metadata"]["name"].is_null() {
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default();
            if prefix.is_empty() {
                return Err(Failure::new(422, "Invalid", "metadata.name: Required value"));
            }
            object["metadata"]["name"] = format!("{prefix}{:05}", self.names + 1).into();
        }
        if object["metadata"].get("resourceVersion").is_some() {
            return Err(Failure::new(
                400,
                "BadRequest",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let name = key(&object);
        if self.find("resourceslices", &name).is_ok() {
            return Err(Failure::new(
                409,
                "AlreadyExists",
                format!("resourceslices {name:?} already exists"),
            ));
        }
        object["metadata"]["generation"] = 1.into();
        Ok((201, versions::to_wire(version, self.put(object))))
    }

    pub(super) fn update_slice(&mut self, version: ApiVersion, name: &str, request: &Request<'_>) -> Answer {
        let mut object = self.slice_body(version, request)?;
        let stored = self.find("resourceslices", name)?;
        let sent = &object["metadata"]["resourceVersion"];
        if !sent.is_null() && *sent != stored["metadata"]["resourceVersion"] {
            let message = "the object has been modified; please apply your changes to the latest version";
            return Err(Failure::new(409, "Conflict", message));
        }
        for field in ["/spec/driver", "/spec/nodeName", "/spec/pool/name"] {
            if object.pointer(field) != stored.pointer(field) {
                return Err(Failure::new(422, "Invalid", format!("{field}: field is immutable")));
            }
        }
        for field in ["uid", "creationTimestamp", "resourceVersion", "generation"] {
            object["metadata"][field] = stored["metadata"][field].clone();
        }
        if object["spec"] != stored["spec"] {
            let generation = stored["metadata"]["generation"].as_i64().unwrap_or(1);
            object["metadata"]["generation"] = (generation + 1).into();
        }
        Ok((200, versions::to_wire(version, self.replace("resourceslices", name, object))))
    }

    pub(super) fn delete_slice(&mut self, name: &str) -> Answer {
        let removed = self.objects.remove(&("resourceslices", name.to_owned()));
        let removed = removed.ok_or_else(|| not_found("resourceslices", name))?;
        self.next_version();
        self.log("resourceslices", "DELETED", &removed);
        Ok((200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})))
    }

    pub(super) fn create_event(&mut self, namespace: &str, request: &Request<'_>) -> Answer {
        if request.method != "POST" {
            return Err(Failure::new(405, "MethodNotAllowed", "only POST"));
        }
        validate::event(namespace, request.body)?;
        let name = key(request.body);
        let mut object = request.body.clone();
        object["metadata"]["resourceVersion"] = self.next_version().into();
        let stored = self.objects.insert(("events", name.clone()), object.clone());
        if stored.is_some() {
            return Err(Failure::new(409, "AlreadyExists", format!("events {name:?} already exists")));
        }
        Ok((201, object))
    }

    pub(super) fn patch_event(&mut self, name: &str, request: &Request<'_>) -> Answer {
        let mut object = self.find("events", name)?;
        if request.method != "PATCH" || request.content_type != "application/merge-patch+json" {
            return Err(Failure::new(415, "UnsupportedMediaType", "only a JSON merge patch"));
        }
        let patch = request.body.as_object().cloned().unwrap_or_default();
        if patch.keys().any(|field| field != "series") {
            return Err(Failure::new(422, "Invalid", "only series may be changed: field is immutable"));
        }
        if patch["series"]["count"].as_i64().is_none_or(|count| count < 2) {
            return Err(Failure::new(422, "Invalid", "series.count: should be at least 2"));
        }
        object["series"] = patch["series"].clone();
        Ok((200, self.replace("events", name, object)))
    }
}
