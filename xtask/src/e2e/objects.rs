//! The objects that cases apply.

use serde_json::{Value, json};

/// The driver, as in claims.
pub(crate) const DRIVER: &str = "netferry.dev";
/// The name of claimed interfaces in pods.
pub(crate) const INTERFACE: &str = "net1";
const API: &str = "netferry.dev/v1alpha1";
/// Ends at once when it is told to, as a shell that waits for a child does.
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// Where the devices of a pod come from.
pub(crate) enum Source<'a> {
    /// A ResourceClaim that outlives the pod.
    Claim(&'a str),
    /// A ResourceClaimTemplate: the claim ends with the pod.
    Template(&'a str),
}

/// The claim of one link by its name on the node.
pub(crate) fn link_request(request: &str, link: &str) -> Value {
    json!({"name": request, "exactly": {"deviceClassName": DRIVER, "selectors": [{"cel": {"expression":
        format!("device.attributes[\"{DRIVER}\"].ifName == \"{link}\"")}}]}})
}

fn config(request: &str, name: &str, addresses: &[String]) -> Value {
    let mut parameters = json!({"apiVersion": API, "kind": "InterfaceConfig", "name": name});
    if !addresses.is_empty() {
        parameters["addresses"] = json!(addresses);
    }
    json!({"requests": [request], "opaque": {"driver": DRIVER, "parameters": parameters}})
}

/// Devices of a claim for links: link, interface, address.
pub(crate) fn links(links: &[(&str, &str, String)]) -> Value {
    let names: Vec<_> = (0..links.len()).map(|number| format!("nic{number}")).collect();
    let requests: Vec<_> = names.iter().zip(links).map(|(name, link)| link_request(name, link.0)).collect();
    let configs: Vec<_> = names
        .iter()
        .zip(links)
        .map(|(name, link)| config(name, link.1, std::slice::from_ref(&link.2)))
        .collect();
    json!({"devices": {"requests": requests, "config": configs}})
}

/// Devices of a claim for a port of a network, with a fixed address or one that the scheduler chooses.
pub(crate) fn port(network: &str, address: Option<&str>) -> Value {
    let request = |name: &str, kind: &str| {
        json!({"name": name, "exactly": {"deviceClassName": format!("netferry-network-{network}"), "selectors":
            [{"cel": {"expression": format!("device.attributes[\"{DRIVER}\"].type == \"{kind}\"")}}]}})
    };
    let fixed: Vec<String> = address.into_iter().map(str::to_owned).collect();
    let config = config("port", INTERFACE, &fixed);
    if address.is_some() {
        return json!({"devices": {"requests": [request("port", "port")], "config": [config]}});
    }
    json!({"devices": {
        "requests": [request("port", "port"), request("address", "address")],
        "constraints": [{"requests": ["port", "address"], "matchAttribute": format!("{DRIVER}/network")}],
        "config": [config]}})
}

/// A ResourceClaim.
pub(crate) fn claim(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name}, "spec": spec})
}

/// A ResourceClaimTemplate.
pub(crate) fn template(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": name},
        "spec": {"spec": spec}})
}

/// A network that ends at its node, and the class of its ports and addresses.
pub(crate) fn network(name: &str, namespace: &str, subnet: &str, fields: &Value) -> Vec<Value> {
    let mut network = json!({"apiVersion": API, "kind": "Network", "metadata": {"name": name}, "spec": {
        "subnets": [subnet], "transport": {"local": {}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}});
    for (field, value) in fields.as_object().into_iter().flatten() {
        network["spec"][field] = value.clone();
    }
    let attribute = format!("device.attributes[\"{DRIVER}\"]");
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
        "metadata": {"name": format!("netferry-network-{name}")},
        "spec": {"selectors": [{"cel": {"expression": format!(
            "device.driver == \"{DRIVER}\" && \"network\" in {attribute} && {attribute}.network == \"{name}\"")}}]}});
    vec![network, class]
}

/// What a pod is, for `pod`, `deployment` and `job`.
pub(crate) fn pod_spec(image: &str, node: &str, sources: &[Source<'_>], command: Option<&str>) -> Value {
    let names: Vec<_> = (0..sources.len()).map(|number| format!("c{number}")).collect();
    let claims: Vec<_> = names
        .iter()
        .zip(sources)
        .map(|(name, source)| match source {
            Source::Claim(claim) => json!({"name": name, "resourceClaimName": claim}),
            Source::Template(template) => json!({"name": name, "resourceClaimTemplateName": template}),
        })
        .collect();
    let used: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    json!({
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        // The scheduler places the pod, and allocates its devices; the node is given.
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
            [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}},
        "tolerations": [{"operator": "Exists"}],
        "resourceClaims": claims,
        "containers": [{
            "name": "c", "image": image, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", command.unwrap_or(IDLE)],
            "resources": {"claims": used}}]})
}

/// A pod.
pub(crate) fn pod(name: &str, labels: &Value, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

/// A Deployment with one replica.
pub(crate) fn deployment(name: &str, strategy: &str, spec: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": name}}, "strategy": {"type": strategy},
        "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}})
}

/// A Job with one pod, that is not tried again.
pub(crate) fn job(name: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["restartPolicy"] = json!("Never");
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}})
}
