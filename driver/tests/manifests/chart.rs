//! The chart as Helm would render it, by another implementation of its template language: each object is one that the API
//! server knows, and with no values set they are those of the base.

use std::{collections::BTreeMap, fs};

use gtmpl::{Context, FuncError, Template, Value as Templated};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use super::{documents, files, folder, unknown_fields};

/// Labels that a chart gives all of its objects; the kustomization of the base gives some of them its own way.
const ADDED_LABELS: [&str; 4] =
    ["helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/name", "app.kubernetes.io/part-of"];

type Answer = Result<Templated, FuncError>;

fn templated(value: &Value) -> Templated {
    match value {
        Value::Null => Templated::Nil,
        Value::Bool(it) => Templated::Bool(*it),
        Value::Number(it) if it.is_f64() => it.as_f64().expect("a number").into(),
        Value::Number(it) => it.as_i64().expect("a whole number").into(),
        Value::String(it) => Templated::String(it.clone()),
        Value::Array(it) => Templated::Array(it.iter().map(templated).collect()),
        // A map and no object: what is not there is empty, and no error.
        Value::Object(it) => {
            Templated::Map(it.iter().map(|(key, it)| (key.clone(), templated(it))).collect())
        }
    }
}

fn plain(value: &Templated) -> Value {
    match value {
        Templated::Bool(it) => json!(it),
        Templated::String(it) => json!(it),
        Templated::Number(it) => it.as_i64().map_or_else(|| json!(it.as_f64()), |it| json!(it)),
        Templated::Array(it) => it.iter().map(plain).collect(),
        Templated::Map(it) | Templated::Object(it) => {
            Value::Object(it.iter().map(|(key, it)| (key.clone(), plain(it))).collect::<Map<_, _>>())
        }
        Templated::NoValue | Templated::Nil | Templated::Function(_) => Value::Null,
    }
}

fn text(value: &Templated) -> String {
    match plain(value) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn to_yaml(given: &[Templated]) -> Answer {
    let yaml =
        serde_yaml_ng::to_string(&plain(&given[0])).map_err(|error| FuncError::Generic(error.to_string()))?;
    Ok(yaml.trim_end().into())
}

#[expect(clippy::unnecessary_wraps, reason = "functions of templates may fail")]
fn nindent(given: &[Templated]) -> Answer {
    let width = plain(&given[0]).as_u64().and_then(|width| usize::try_from(width).ok()).expect("a width");
    let margin = format!("\n{}", " ".repeat(width));
    let given = text(&given[1]);
    let lines = given.lines().flat_map(|line| [margin.as_str(), line]).collect::<String>();
    Ok(lines.into())
}

#[expect(clippy::unnecessary_wraps, reason = "functions of templates may fail")]
fn quote(given: &[Templated]) -> Answer {
    Ok(Value::String(text(&given[0])).to_string().into())
}

#[expect(clippy::unnecessary_wraps, reason = "functions of templates may fail")]
fn default(given: &[Templated]) -> Answer {
    let empty = matches!(plain(&given[1]), Value::Null) || text(&given[1]).is_empty();
    Ok(given[usize::from(!empty)].clone())
}

#[expect(clippy::unnecessary_wraps, reason = "functions of templates may fail")]
fn dir(given: &[Templated]) -> Answer {
    let path = text(&given[0]);
    Ok(path.rsplit_once('/').map_or(".", |(folder, _)| folder).into())
}

/// Values over those of `values.yaml`, as Helm lays them.
fn merged(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, over) in over {
                merged(under.entry(key.clone()).or_insert(Value::Null), over);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

fn rendered(over: &Value) -> Vec<Value> {
    let chart = folder().join("chart");
    let read = |name: &str| documents(&chart.join(name)).remove(0);
    let (mut values, about) = (read("values.yaml"), read("Chart.yaml"));
    merged(&mut values, over);
    let context = json!({
        "Values": values,
        "Chart": {"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
        "Release": {"Name": "netferry", "Namespace": "netferry-system", "Service": "Helm"},
    });
    let mut objects = Vec::new();
    for file in files(&chart.join("templates")) {
        let mut template = Template::default();
        for (name, function) in [
            ("toYaml", to_yaml as gtmpl::Func),
            ("nindent", nindent),
            ("quote", quote),
            ("default", default),
            ("dir", dir),
        ] {
            template.add_func(name, function);
        }
        let name = file.display();
        template.parse(fs::read_to_string(&file).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let text = template.render(&Context::from(templated(&context)));
        let text = text.unwrap_or_else(|error| panic!("{name}: {error}"));
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let object =
                Value::deserialize(document).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
            if !object.is_null() {
                objects.push(object);
            }
        }
    }
    objects
}

/// By kind and name, without what a chart adds for Helm.
fn by_name(objects: Vec<Value>) -> BTreeMap<(String, String), Value> {
    let mut named = BTreeMap::new();
    for mut object in objects {
        for (part, added) in [("labels", &ADDED_LABELS[..]), ("annotations", &["helm.sh/resource-policy"])] {
            let metadata = object["metadata"].as_object_mut().expect("metadata");
            if let Some(words) = metadata.get_mut(part).and_then(Value::as_object_mut) {
                words.retain(|key, _| !added.contains(&key.as_str()));
                if words.is_empty() {
                    metadata.remove(part);
                }
            }
        }
        let of = |name: &str| object.pointer(name).and_then(Value::as_str).expect(name).to_owned();
        named.insert((of("/kind"), of("/metadata/name")), object);
    }
    named
}

#[test]
fn with_no_values_the_chart_is_the_base() {
    let chart = by_name(rendered(&json!({})));
    let base = files(&folder().join("base"))
        .iter()
        .filter(|file| !file.ends_with("kustomization.yaml"))
        .flat_map(|file| documents(file))
        .collect();
    let mut base = by_name(base);
    // Helm makes it where it is asked to.
    base.remove(&("Namespace".to_owned(), "netferry-system".to_owned())).expect("the namespace");
    assert_eq!(chart.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>());
    // The tag is the kustomization's affair.
    let image = format!(r#""image":"netferry:{}""#, env!("CARGO_PKG_VERSION"));
    for (name, object) in base {
        let object = object.to_string().replace(r#""image":"netferry""#, &image);
        assert_eq!(chart[&name].to_string(), object, "{name:?}");
    }
}

#[test]
fn every_field_of_the_chart_is_known() {
    let everything = json!({
        "image": {"digest": "sha256:00"}, "imagePullSecrets": [{"name": "pull"}],
        "kubeletRootDir": "/var/lib/k0s/kubelet", "nriSocket": "/run/k3s/nri/nri.sock",
        "publish": "device.attributes[\"netferry.dev\"].ifName.startsWith(\"ens\")", "share": "true",
        "extraArgs": ["--ports=netkit"], "extraEnv": [{"name": "RUST_LOG", "value": "debug"}],
        "deviceClasses": [{"name": "fast", "spec": {"selectors": [{"cel": {"expression": "true"}}]}}],
        "podMonitor": {"enabled": true, "interval": "30s", "labels": {"release": "p"}},
        "prometheusRule": {"enabled": true, "labels": {"release": "p"}},
        "openshift": {"privilegedSCC": true}, "podAnnotations": {"a": "b"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
        "resources": {"limits": {"memory": "1Gi"}}, "tolerations": [{"key": "k", "operator": "Exists"}],
        "nodeSelector": {"a": "b"}, "httpPort": 19177,
    });
    for (values, least) in [(json!({}), 14), (everything, 18)] {
        let objects = rendered(&values);
        assert!(objects.len() >= least, "{} objects", objects.len());
        for object in &objects {
            assert_eq!(unknown_fields(object), None, "{} {}", object["kind"], object["metadata"]["name"]);
        }
        let daemons = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
        let daemons = daemons.to_string();
        for (path, value) in [("/nriSocket", "--nri-socket="), ("/kubeletRootDir", "--kubelet-root-dir=")] {
            let given = values.pointer(path).and_then(Value::as_str);
            assert_eq!(
                given.is_some_and(|given| daemons.contains(&format!("{value}{given}"))),
                given.is_some()
            );
        }
    }
}
