//! Server-side apply of `status.devices`, with an owner for every field (KEP-555): the list is a map by driver,
//! pool, device and share; its conditions are a map by type.

use std::collections::{BTreeMap, BTreeSet};

use netferry::cluster::versions::{self, ApiVersion};
use serde_json::{Map, Value, json};

use super::{
    State,
    routes::{Answer, Failure, Request},
    validate,
};

/// A field of a device's status: device key, then the way to the field.
type Path = (String, Vec<String>);
type Fields = BTreeMap<Path, Value>;

/// Who applied which fields of one claim's device status.
#[derive(Default)]
pub(crate) struct Ownership(BTreeMap<String, BTreeSet<Path>>);

const KEYS: [&str; 4] = ["driver", "pool", "device", "shareID"];

/// From the list to its fields. `ips` is one field (an atomic list); the keys themselves are a field as well.
fn fields(devices: &Value) -> Result<Fields, Failure> {
    let mut fields = Fields::new();
    for device in devices.as_array().into_iter().flatten() {
        let key: Map<String, Value> =
            KEYS.iter().filter_map(|name| Some(((*name).to_owned(), device.get(name)?.clone()))).collect();
        let key = Value::Object(key).to_string();
        if fields.insert((key.clone(), Vec::new()), Value::Null).is_some() {
            return Err(Failure::new(400, "BadRequest", format!("duplicate entries for key {key}")));
        }
        for condition in device["conditions"].as_array().into_iter().flatten() {
            let type_ = condition["type"].as_str().unwrap_or_default();
            for (name, value) in condition.as_object().into_iter().flatten() {
                let path = ["conditions", type_, name].map(str::to_owned).to_vec();
                fields.insert((key.clone(), path), value.clone());
            }
        }
        for (name, value) in device["networkData"].as_object().into_iter().flatten() {
            fields.insert((key.clone(), vec!["networkData".to_owned(), name.clone()]), value.clone());
        }
        if let Some(data) = device.get("data") {
            fields.insert((key.clone(), vec!["data".to_owned()]), data.clone());
        }
    }
    Ok(fields)
}

/// From the fields to the list.
fn list(fields: &Fields) -> Vec<Value> {
    let mut devices: BTreeMap<&str, Value> = BTreeMap::new();
    for ((key, path), value) in fields {
        let device = devices.entry(key).or_insert_with(|| serde_json::from_str(key).expect("a key is JSON"));
        match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["conditions", type_, name] => {
                let conditions = device.as_object_mut().expect("object").entry("conditions");
                let conditions = conditions.or_insert_with(|| json!([])).as_array_mut().expect("array");
                let at = conditions.iter().position(|condition| condition["type"] == type_);
                let at = at.unwrap_or_else(|| {
                    conditions.push(json!({"type": type_}));
                    conditions.len() - 1
                });
                conditions[at][name] = value.clone();
            }
            ["networkData", name] => device["networkData"][name] = value.clone(),
            ["data"] => device["data"] = value.clone(),
            _ => {}
        }
    }
    devices.into_values().collect()
}

impl State {
    pub(super) fn patch_status(&mut self, version: ApiVersion, name: &str, request: &Request<'_>) -> Answer {
        if request.content_type != "application/apply-patch+yaml" {
            let message = format!("{} is not played here; only server-side apply", request.content_type);
            return Err(Failure::new(415, "UnsupportedMediaType", message));
        }
        let manager = request.query.get("fieldManager").filter(|manager| !manager.is_empty());
        let manager = manager.ok_or_else(|| {
            Failure::new(422, "Invalid", "fieldManager: Required value: is required for apply patch")
        })?;
        if request.body["apiVersion"] != version.api_version() {
            let message = format!("apiVersion {} does not match the request's", request.body["apiVersion"]);
            return Err(Failure::new(400, "BadRequest", message));
        }
        let force = request.query.get("force").is_some_and(|force| force == "true");
        let body = versions::from_wire(version, request.body.clone());
        let stored = self.apply(manager, force, name, &body)?;
        Ok((200, versions::to_wire(version, stored)))
    }

    pub(super) fn apply(
        &mut self,
        manager: &str,
        force: bool,
        name: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let uid = &body["metadata"]["uid"];
        let mut claim = self.find("resourceclaims", name).map_err(|failure| {
            if uid.is_null() {
                return failure;
            }
            let message = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            Failure::new(409, "Conflict", message)
        })?;
        if !uid.is_null() && *uid != claim["metadata"]["uid"] {
            let message = format!("metadata.uid: Invalid value: {uid}: field is immutable");
            return Err(Failure::new(422, "Invalid", message));
        }
        if body["kind"] != "ResourceClaim" || body["metadata"]["name"] != claim["metadata"]["name"] {
            return Err(Failure::new(400, "BadRequest", "kind or name does not match the request's"));
        }
        if let Some(field) = body["status"].as_object().and_then(|s| s.keys().find(|key| *key != "devices")) {
            let message = format!("status.{field}: a driver may write status.devices only");
            return Err(Failure::new(403, "Forbidden", message));
        }
        let applied = fields(&body["status"]["devices"])?;
        let mut now = fields(&claim["status"]["devices"])?;
        let owners = &mut self.ownership.entry(name.to_owned()).or_default().0;
        for (path, value) in &applied {
            let differs = now.get(path).is_some_and(|known| known != value);
            let others = owners.iter_mut().filter(|(owner, owned)| *owner != manager && owned.contains(path));
            for (owner, owned) in others {
                if differs && !force {
                    let message = format!("Apply failed with 1 conflict: conflict with {owner:?}: {path:?}");
                    return Err(Failure::new(409, "Conflict", message));
                }
                if differs {
                    owned.remove(path);
                }
            }
        }
        // What this manager applied before and no longer does is removed, unless it is somebody else's too.
        let before = owners.insert(manager.to_owned(), applied.keys().cloned().collect()).unwrap_or_default();
        for path in before.iter().filter(|path| !applied.contains_key(path)) {
            if !owners.values().any(|owned| owned.contains(path)) {
                now.remove(path);
            }
        }
        now.extend(applied);
        let managed_fields: Vec<Value> = owners
            .iter()
            .filter(|(_, owned)| !owned.is_empty())
            .map(|(manager, owned)| {
                let devices: Map<String, Value> =
                    owned.iter().map(|(key, _)| (format!("k:{key}"), json!({}))).collect();
                json!({"manager": manager, "operation": "Apply", "apiVersion": "resource.k8s.io/v1",
                    "subresource": "status", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:status": {"f:devices": devices}}})
            })
            .collect();
        let devices = list(&now);
        validate::devices(&claim, &devices)?;
        if claim["status"].is_null() {
            claim["status"] = json!({});
        }
        claim["status"]["devices"] = devices.into();
        claim["metadata"]["managedFields"] = managed_fields.into();
        Ok(self.replace("resourceclaims", name, claim))
    }
}
