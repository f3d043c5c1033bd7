//! What nodes share: lists of claims and nodes, and Leases.

use netferry::cluster::versions::{self, ApiVersion};
use serde_json::{Value, json};

use super::{
    State,
    routes::{Answer, Failure, Request},
    watch::metadata_of,
};

impl State {
    /// Everything of a resource, in pages as the client asks for them.
    pub(super) fn list(
        &self,
        resource: &str,
        api: (&str, &str),
        version: Option<ApiVersion>,
        request: &Request<'_>,
    ) -> (u16, Value) {
        self.list_within(resource, None, api, version, request)
    }

    /// The same, of a namespace.
    pub(super) fn list_within(
        &self,
        resource: &str,
        namespace: Option<&str>,
        api: (&str, &str),
        version: Option<ApiVersion>,
        request: &Request<'_>,
    ) -> (u16, Value) {
        let number = |name: &str| request.query.get(name).and_then(|text| text.parse::<usize>().ok());
        let within =
            |object: &Value| namespace.is_none_or(|namespace| object["metadata"]["namespace"] == namespace);
        let all: Vec<_> =
            self.objects.iter().filter(|((kind, _), object)| *kind == resource && within(object)).collect();
        let (start, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
        let page = all.iter().skip(start).take(limit).map(|(_, object)| {
            if request.metadata {
                return metadata_of(object);
            }
            version.map_or_else(|| (*object).clone(), |version| versions::to_wire(version, (*object).clone()))
        });
        let items: Vec<Value> = page.collect();
        let next = start + items.len();
        let token = if next < all.len() { next.to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": token});
        let (kind, api_version) =
            if request.metadata { ("PartialObjectMetadataList", "meta.k8s.io/v1") } else { api };
        (200, json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items}))
    }

    /// Leases of a namespace. A write of an old one is refused.
    pub(super) fn leases(&mut self, namespace: &str, rest: &[&str], request: &Request<'_>) -> Option<Answer> {
        let body = request.body;
        Some(match (request.method, rest) {
            ("GET", []) => {
                let (code, mut all) = self.list_within(
                    "leases",
                    Some(namespace),
                    ("LeaseList", "coordination.k8s.io/v1"),
                    None,
                    request,
                );
                let selector = request.query.get("labelSelector").map(String::as_str).unwrap_or_default();
                if let Some((label, value)) = selector.split_once('=') {
                    let items = all["items"].as_array_mut().expect("items");
                    items.retain(|lease| lease["metadata"]["labels"][label] == value);
                }
                Ok((code, all))
            }
            ("GET", [name]) => self.read("leases", &format!("{namespace}/{name}"), None),
            ("POST", []) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let key = format!("{namespace}/{name}");
                if self.find("leases", &key).is_ok() {
                    let message = format!("leases {name:?} already exists");
                    return Some(Err(Failure::new(409, "AlreadyExists", message)));
                }
                Ok((201, self.store_lease(namespace, key, body)))
            }
            ("PUT", [name]) => {
                let key = format!("{namespace}/{name}");
                match self.find("leases", &key) {
                    Err(missing) => Err(missing),
                    Ok(stored)
                        if stored["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] =>
                    {
                        Err(Failure::new(409, "Conflict", "the object has been modified"))
                    }
                    Ok(_) => Ok((200, self.store_lease(namespace, key, body))),
                }
            }
            _ => return None,
        })
    }

    fn store_lease(&mut self, namespace: &str, key: String, body: &Value) -> Value {
        self.version += 1;
        let mut lease = body.clone();
        lease["metadata"]["namespace"] = namespace.into();
        lease["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(("leases", key), lease.clone());
        lease
    }
}
