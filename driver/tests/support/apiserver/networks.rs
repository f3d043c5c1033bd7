//! Networks, as the server of their CustomResourceDefinition keeps them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    State,
    routes::{Answer, Failure, Request},
};

impl State {
    pub(super) fn networks(&mut self, rest: &[&str], request: &Request<'_>) -> Option<Answer> {
        if !self.networks_served {
            return None;
        }
        Some(match (request.method, rest) {
            ("GET", []) => {
                let all = self.objects.iter().filter(|((kind, _), _)| *kind == "networks");
                let items: Vec<_> = all.map(|(_, object)| object.clone()).collect();
                Ok((
                    200,
                    json!({"kind": "NetworkList", "apiVersion": "netferry.dev/v1alpha1",
                        "metadata": {"resourceVersion": self.version.to_string()}, "items": items}),
                ))
            }
            ("GET", [name]) => self.read("networks", name, None),
            ("PATCH", [name]) => self.patch_network(name, request),
            ("PATCH", [name, "status"]) => self.apply_network(name, request),
            _ => return None,
        })
    }

    /// A merge patch of metadata, as the driver's admission policy lets it write.
    fn patch_network(&mut self, name: &str, request: &Request<'_>) -> Answer {
        if request.content_type != "application/merge-patch+json" {
            return Err(Failure::new(415, "UnsupportedMediaType", "only a merge patch is played here"));
        }
        let mut object = self.find("networks", name)?;
        if request.body.as_object().is_none_or(|body| body.keys().any(|field| field != "metadata")) {
            return Err(Failure::new(403, "Forbidden", "the driver may change the finalizers only"));
        }
        let sent = &request.body["metadata"];
        for field in ["uid", "resourceVersion"] {
            if !sent[field].is_null() && sent[field] != object["metadata"][field] {
                return Err(Failure::new(
                    409,
                    "Conflict",
                    format!("metadata.{field}: the object has been modified"),
                ));
            }
        }
        let finalizers = sent["finalizers"].as_array().cloned().unwrap_or_default();
        let before = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let deleting = !object["metadata"]["deletionTimestamp"].is_null();
        if deleting && finalizers.iter().any(|finalizer| !before.contains(finalizer)) {
            let message =
                "metadata.finalizers: no new finalizers can be added if the object is being deleted";
            return Err(Failure::new(422, "Invalid", message));
        }
        object["metadata"]["finalizers"] = finalizers.clone().into();
        let stored = self.replace("networks", name, object);
        if deleting && finalizers.is_empty() {
            self.take_away("networks", name);
        }
        Ok((200, stored))
    }

    /// Delete a network as a user does: it stays until its finalizers are gone.
    pub(super) fn delete_network(&mut self, name: &str) {
        let mut object = self.find("networks", name).expect("a network");
        if object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
            self.take_away("networks", name);
        } else {
            object["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z".into();
            object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
            // The server counts the generation on (`BeforeDelete` in k8s.io/apiserver).
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(1);
            object["metadata"]["generation"] = (generation + 1).into();
            self.replace("networks", name, object);
        }
    }

    fn apply_network(&mut self, name: &str, request: &Request<'_>) -> Answer {
        if request.content_type != "application/apply-patch+yaml" {
            return Err(Failure::new(415, "UnsupportedMediaType", "only server-side apply is played here"));
        }
        if request.query.get("fieldManager").is_none_or(String::is_empty) {
            return Err(Failure::new(422, "Invalid", "fieldManager: Required value"));
        }
        let mut object = self.find("networks", name)?;
        let uid = &request.body["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return Err(Failure::new(422, "Invalid", "metadata.uid: Invalid value: field is immutable"));
        }
        for condition in request.body["status"]["conditions"].as_array().into_iter().flatten() {
            for field in ["type", "status", "reason", "message", "lastTransitionTime"] {
                if condition[field].as_str().is_none_or(|text| text.is_empty() && field != "message") {
                    return Err(Failure::new(
                        422,
                        "Invalid",
                        format!("status.conditions.{field}: Required value"),
                    ));
                }
            }
        }
        for (field, value) in request.body["status"].as_object().into_iter().flatten() {
            if field != "conditions" {
                object["status"][field] = value.clone();
            }
        }
        // A map by type: what this manager applied before and does not now goes, and nothing of others.
        let manager = request.query.get("fieldManager").cloned().unwrap_or_default();
        let applied = request.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let kind_of = |condition: &Value| condition["type"].as_str().unwrap_or_default().to_owned();
        let types: BTreeSet<String> = applied.iter().map(kind_of).collect();
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let before = self.condition_owners.insert((uid, manager), types.clone()).unwrap_or_default();
        let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| {
            !before.contains(&kind_of(condition)) && !types.contains(&kind_of(condition))
        });
        conditions.extend(applied);
        if !conditions.is_empty() {
            object["status"]["conditions"] = conditions.into();
        }
        Ok((200, self.replace("networks", name, object)))
    }
}
