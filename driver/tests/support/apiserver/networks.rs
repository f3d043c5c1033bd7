//! Networks, as the server of their CustomResourceDefinition keeps them.

use serde_json::json;

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
            ("PATCH", [name, "status"]) => self.apply_network(name, request),
            _ => return None,
        })
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
            object["status"][field] = value.clone();
        }
        Ok((200, self.replace("networks", name, object)))
    }
}
