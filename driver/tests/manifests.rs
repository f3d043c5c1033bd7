//! `manifests/`, read as the API server would: every field must be one that Kubernetes 1.36 knows, and the
//! objects must agree with each other and with the daemon.

#![expect(clippy::unwrap_used, reason = "a test may stop where it cannot go on")]

#[path = "manifests/alerts.rs"]
mod alerts;
#[path = "manifests/chart.rs"]
mod chart;
#[path = "manifests/monitoring.rs"]
mod monitoring;
#[path = "manifests/operator.rs"]
mod operator;
#[path = "manifests/rights.rs"]
mod rights;
#[path = "support/skip.rs"]
mod skip;
#[path = "manifests/types.rs"]
mod types;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Container, Namespace, Pod, Probe, ServiceAccount, Volume},
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use netferry::{
    DRIVER_NAME,
    claim::config::InterfaceConfig,
    config::{Arguments, Command, RunConfig},
    network::validate,
    selector::{Devices, Selector},
};
use serde::{Deserialize as _, Serialize, de::DeserializeOwned};
use serde_json::Value;
use types::unknown_fields;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // The chart has templates, which `cargo xtask lint` compares with the base.
            if !path.ends_with("manifests/chart") {
                found.extend(files(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| {
            Value::deserialize(document).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        })
        .collect()
}

fn all() -> Vec<(PathBuf, Value)> {
    let objects: Vec<_> = files(&folder())
        .into_iter()
        // Neither is an object of the cluster.
        .filter(|file| !file.ends_with("kustomization.yaml") && !file.ends_with("monitoring/alerts.yaml"))
        .flat_map(|file| documents(&file).into_iter().map(move |object| (file.clone(), object)))
        .collect();
    assert!(objects.len() > 10, "only {} objects", objects.len());
    objects
}

/// What `written` has and `read` lost: the fields that the type does not know.
fn lost(path: &str, written: &Value, read: &Value, found: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                let path = format!("{path}.{name}");
                match read.get(name) {
                    Some(read) => lost(&path, value, read, found),
                    None => found.push(format!("{path} is unknown")),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                lost(&format!("{path}[{index}]"), written, read, found);
            }
        }
        (written, read) if written == read => {}
        (written, read) => found.push(format!("{path}: {written} is read as {read}")),
    }
}

fn strict<T: DeserializeOwned + Serialize>(object: &Value) -> Result<T, Vec<String>> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|error| vec![error.to_string()])?;
    let mut found = Vec::new();
    lost("", object, &serde_json::to_value(&typed).unwrap(), &mut found);
    if found.is_empty() { Ok(typed) } else { Err(found) }
}

/// The one object of its type in the base, but for what is admitted about networks.
fn one<T: DeserializeOwned + Serialize>(kind: &str) -> T {
    let mut objects: Vec<_> = files(&folder().join("base"))
        .iter()
        .flat_map(|file| documents(file))
        .filter(|object| object["kind"] == kind)
        .filter(|object| {
            !matches!(
                object["metadata"]["name"].as_str(),
                Some("netferry-networks" | "netferry-network-finalizer")
            )
        })
        .collect();
    assert_eq!(objects.len(), 1, "{kind}");
    strict(&objects.remove(0)).unwrap_or_else(|errors| panic!("{kind}: {errors:#?}"))
}

#[test]
fn every_field_is_known() {
    for (file, object) in all() {
        let name = format!("{}: {} {}", file.display(), object["kind"], object["metadata"]["name"]);
        assert_eq!(unknown_fields(&object), None, "{name}");
    }
}

#[test]
fn an_unknown_field_is_found() {
    let misspelt = serde_json::json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "a", "lables": {}}, "spec": {"finalizers": []}});
    assert_eq!(strict::<Namespace>(&misspelt).unwrap_err(), [".metadata.lables is unknown"]);
    let wrong = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": 1}});
    assert!(strict::<Namespace>(&wrong).is_err());
}

#[test]
fn every_file_of_the_base_is_listed() {
    let listed = |file: &Path| -> Vec<String> {
        let list = documents(file).remove(0);
        list["resources"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&folder().join("kustomization.yaml")), ["base"]);
    let base = folder().join("base");
    let mut names = listed(&base.join("kustomization.yaml"));
    names.sort();
    let present: Vec<_> = files(&base)
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "kustomization.yaml")
        .collect();
    assert_eq!(names, present);
}

#[test]
fn the_image_is_a_parameter() {
    let kustomization = documents(&folder().join("kustomization.yaml")).remove(0);
    let image = &kustomization["images"][0];
    assert_eq!(image["newTag"], env!("CARGO_PKG_VERSION"));
    let pod = one::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap();
    for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
        assert_eq!(container.image.as_deref(), image["name"].as_str(), "{}", container.name);
    }
}

#[test]
fn objects_name_each_other() {
    let account = one::<ServiceAccount>("ServiceAccount").metadata;
    let namespace = one::<Namespace>("Namespace").metadata.name;
    assert_eq!(account.namespace, namespace);
    let daemons = one::<DaemonSet>("DaemonSet");
    assert_eq!(daemons.metadata.namespace, namespace);
    let spec = daemons.spec.unwrap();
    let template = spec.template;
    assert_eq!(template.spec.unwrap().service_account_name, account.name);
    let labels = template.metadata.unwrap().labels.unwrap();
    for (name, value) in spec.selector.match_labels.unwrap() {
        assert_eq!(labels.get(&name), Some(&value), "{name}");
    }

    let binding = one::<ClusterRoleBinding>("ClusterRoleBinding");
    assert_eq!(Some(binding.role_ref.name), one::<ClusterRole>("ClusterRole").metadata.name);
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!((&subject.namespace, Some(&subject.name)), (&namespace, account.name.as_ref()));

    let binding = one::<RoleBinding>("RoleBinding");
    let role = one::<Role>("Role");
    assert_eq!((Some(binding.role_ref.name), &binding.metadata.namespace), (role.metadata.name, &namespace));
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!((&subject.namespace, Some(&subject.name)), (&namespace, account.name.as_ref()));
    // The election, and a report of each node, whose name no rule can tell beforehand.
    let rules = role.rules.unwrap();
    assert_eq!((rules.len(), rules[0].verbs.join(" ")), (1, "create get list update".to_owned()));

    let policy = one::<ValidatingAdmissionPolicy>("ValidatingAdmissionPolicy");
    let user = format!("system:serviceaccount:{}:{}", namespace.unwrap(), account.name.unwrap());
    let conditions = policy.spec.unwrap().match_conditions.unwrap();
    assert!(conditions[0].expression.contains(&format!("\"{user}\"")), "{}", conditions[0].expression);
    let bound = one::<ValidatingAdmissionPolicyBinding>("ValidatingAdmissionPolicyBinding").spec;
    assert_eq!(Some(bound.policy_name), policy.metadata.name);
}

#[test]
fn the_driver_is_named_alike_everywhere() {
    let quoted = format!("\"{DRIVER_NAME}\"");
    let class = serde_json::to_string(&one::<DeviceClass>("DeviceClass").spec).unwrap();
    assert!(class.contains(&quoted.replace('"', "\\\"")), "{class}");
    let policy = one::<ValidatingAdmissionPolicy>("ValidatingAdmissionPolicy").spec.unwrap();
    assert!(policy.validations.unwrap().iter().any(|validation| validation.expression.contains(&quoted)));
    let rules = one::<ClusterRole>("ClusterRole").rules.unwrap();
    let status =
        rules.iter().find(|rule| rule.resources.iter().flatten().any(|r| r == "resourceclaims/driver"));
    assert_eq!(status.unwrap().resource_names, Some(vec![DRIVER_NAME.to_owned()]));
    for rule in &rules {
        assert!(!rule.verbs.iter().any(|verb| verb == "*"), "{rule:?}");
        assert!(!rule.resources.iter().flatten().any(|resource| resource == "*"), "{rule:?}");
    }
}

/// The daemon's container and volumes, and the settings that its arguments give.
fn daemon() -> (Container, BTreeMap<String, Volume>, Box<RunConfig>) {
    let pod = one::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap();
    let container = pod.containers.into_iter().next().unwrap();
    let line = ["netferry".to_owned()].into_iter().chain(container.args.clone().unwrap());
    let Command::Run(config) = Arguments::try_parse_from(line).unwrap().command else { panic!("not `run`") };
    let volumes = pod.volumes.unwrap().into_iter().map(|volume| (volume.name.clone(), volume)).collect();
    (container, volumes, config)
}

#[test]
fn the_daemon_finds_its_folders_where_the_host_has_them() {
    let (container, volumes, config) = daemon();
    let mounts = container.volume_mounts.unwrap();
    for mount in &mounts {
        // Kubelet and runtime are told paths, and tell paths: they must be the same on both sides.
        let host = volumes[&mount.name].host_path.as_ref().unwrap();
        assert_eq!(host.path, mount.mount_path, "{}", mount.name);
        assert_eq!(mount.read_only, None, "{}", mount.name);
    }
    let mounted = |path: &Path| mounts.iter().any(|mount| path.starts_with(&mount.mount_path));
    for needed in [
        config.kubelet_root_dir.join("plugins"),
        config.kubelet_root_dir.join("plugins_registry"),
        config.nri_socket.clone(),
        config.state.bpffs.clone(),
        config.guards.cgroup_root.clone(),
        config.state.state_dir.clone(),
        "/var/run/netns/cni-1".into(),
    ] {
        assert!(mounted(&needed), "{} is not mounted", needed.display());
    }
    let netns = mounts.iter().find(|mount| mount.mount_path == "/var/run/netns").unwrap();
    assert_eq!(netns.mount_propagation.as_deref(), Some("HostToContainer"));
}

#[test]
fn the_probes_ask_where_the_daemon_listens() {
    let (container, _, config) = daemon();
    let address = config.http_address.0.unwrap();
    // Two pods of the host's network that declare one port are not put on one node.
    assert_eq!(container.ports, None);
    let path = |probe: Option<Probe>| {
        let get = probe.unwrap().http_get.unwrap();
        assert_eq!(serde_json::to_value(&get.port).unwrap(), address.port());
        // The node may have no IPv4 address but this one, and the daemon may listen there only.
        assert_eq!(get.host.as_deref(), Some("127.0.0.1"));
        get.path.unwrap()
    };
    // While one instance replaces another, the port is the other's.
    let probe = container.startup_probe.unwrap().exec.unwrap().command.unwrap();
    let probe = Arguments::try_parse_from(probe).unwrap().command;
    assert!(matches!(probe, Command::Probe(_)));
    assert_eq!(path(container.liveness_probe), "/healthz");
    assert_eq!(path(container.readiness_probe), "/readyz");
}

#[test]
fn the_next_daemon_starts_before_this_one_ends() {
    let spec = one::<DaemonSet>("DaemonSet").spec.unwrap();
    let rolling = spec.update_strategy.unwrap().rolling_update.unwrap();
    let count = |value| serde_json::to_value(value).unwrap();
    assert_eq!((count(rolling.max_surge), count(rolling.max_unavailable)), (1.into(), 0.into()));
    let (container, ..) = daemon();
    let instance = container.env.unwrap().into_iter().find(|it| it.name == "NETFERRY_INSTANCE").unwrap();
    assert_eq!(instance.value_from.unwrap().field_ref.unwrap().field_path, "metadata.uid");
}

#[test]
fn only_privileged_containers_mount_into_the_host() {
    // The API server refuses the pod otherwise.
    let pod = one::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap();
    for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
        let privileged = container.security_context.as_ref().and_then(|context| context.privileged);
        for mount in container.volume_mounts.iter().flatten() {
            if mount.mount_propagation.as_deref() == Some("Bidirectional") {
                assert_eq!(privileged, Some(true), "{}", container.name);
            }
        }
    }
    assert_eq!(pod.host_network, Some(true), "the host's links are seen from its own namespace");
}

/// Every opaque configuration in an object, wherever it is.
fn configurations<'a>(object: &'a Value, found: &mut Vec<&'a Value>) {
    match object {
        Value::Object(fields) => {
            if let Some(opaque) = fields.get("opaque") {
                assert_eq!(opaque["driver"], DRIVER_NAME);
                found.push(&opaque["parameters"]);
            }
            fields.values().for_each(|field| configurations(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| configurations(item, found)),
        _ => {}
    }
}

/// Objects of the blocks of YAML in the documentation.
fn documented() -> Vec<Value> {
    let docs = folder().join("..");
    let mut objects = Vec::new();
    for page in ["README.md", "docs/configuration.md"] {
        let text = fs::read_to_string(docs.join(page)).unwrap();
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("```"));
        for (block, _) in blocks {
            let documents = serde_yaml_ng::Deserializer::from_str(block);
            objects.extend(documents.map(|document| Value::deserialize(document).unwrap()));
        }
    }
    assert!(!objects.is_empty(), "no block of YAML in the documentation");
    objects
}

/// Every CEL selector in an object.
fn selectors<'a>(object: &'a Value, found: &mut Vec<&'a str>) {
    match object {
        Value::Object(fields) => {
            if let Some(expression) = fields.get("cel").and_then(|cel| cel["expression"].as_str()) {
                found.push(expression);
            }
            fields.values().for_each(|field| selectors(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| selectors(item, found)),
        _ => {}
    }
}

#[test]
fn selectors_compile() {
    let objects: Vec<_> = all().into_iter().map(|(_, object)| object).chain(documented()).collect();
    let mut found = Vec::new();
    for object in &objects {
        selectors(object, &mut found);
    }
    assert!(found.len() >= 10, "only {} selectors", found.len());
    for expression in found {
        Selector::compile(DRIVER_NAME, Devices::All, expression).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A class that is asked for is in the same example or in the base, and no other gives what it should.
#[test]
fn examples_ask_for_classes_that_exist() {
    for file in files(&folder().join("examples")) {
        let objects = documents(&file);
        let mut classes: Vec<_> = objects
            .iter()
            .filter(|object| object["kind"] == "DeviceClass")
            .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        classes.extend(one::<DeviceClass>("DeviceClass").metadata.name);
        for object in &objects {
            let spec = &object["spec"];
            let devices =
                if object["kind"] == "ResourceClaim" { &spec["devices"] } else { &spec["spec"]["devices"] };
            for request in devices["requests"].as_array().into_iter().flatten() {
                let class = request["exactly"]["deviceClassName"].as_str().unwrap();
                assert!(classes.iter().any(|known| known == class), "{}: {class}", file.display());
            }
        }
    }
}

#[test]
fn the_driver_accepts_the_configurations_of_examples_and_documentation() {
    let mut objects: Vec<_> = all().into_iter().map(|(_, object)| object).collect();
    objects.extend(documented());
    let mut found = Vec::new();
    for object in &objects {
        configurations(object, &mut found);
    }
    assert!(found.len() >= 5, "only {} configurations", found.len());
    for parameters in found {
        let config =
            InterfaceConfig::parse(parameters).unwrap_or_else(|errors| panic!("{parameters}: {errors:?}"));
        assert_eq!(config.check(), [], "{parameters}");
    }
}

#[test]
fn every_drop_reason_is_in_the_documentation() {
    let page = fs::read_to_string(folder().join("../docs/operations.md")).unwrap();
    let expected: Vec<_> = netferry_common::verdict::Reason::ALL
        .iter()
        .map(|reason| format!("| `{}` | {} |", reason.name(), reason.meaning()))
        .collect();
    let section = page.split("## Drop reasons").nth(1).unwrap().split("\n## ").next().unwrap();
    let written: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(written, expected);
}
