//! The Helm chart, made from `manifests/base`: the base is the one source, and where a value may differ the chart has a
//! template expression in its place. Its defaults are what the base says.

mod daemonset;
mod monitoring;
mod template;
mod values;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize as _;
use serde_yaml_ng::{Deserializer, Mapping, Value};

use self::template::Template;
use crate::command::root;

/// The namespace in the base.
const NAMESPACE: &str = "netferry-system";
const HEAD: &str = "Made by `cargo xtask codegen` from manifests/base.";

/// Writes the files that differ.
pub(crate) fn write() -> Result<()> {
    for (path, text) in files()? {
        let file = root().join(&path);
        if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
            fs::create_dir_all(file.parent().context("a file has a folder")?)?;
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            println!("{}", file.display());
        }
    }
    Ok(())
}

/// Fails if a file is not what the base would give.
pub(crate) fn check() -> Result<()> {
    let files = files()?;
    let mut stale: Vec<String> = files
        .iter()
        .filter(|(path, text)| fs::read_to_string(root().join(path)).ok().as_ref() != Some(text))
        .map(|(path, _)| path.display().to_string())
        .collect();
    for entry in fs::read_dir(root().join("manifests/chart/templates"))? {
        let path = Path::new("manifests/chart/templates").join(entry?.file_name());
        if !files.contains_key(&path) {
            stale.push(format!("{} (nothing makes it)", path.display()));
        }
    }
    if !stale.is_empty() {
        bail!("not as manifests/base has it: {}; run `cargo xtask codegen`", stale.join(", "));
    }
    Ok(())
}

/// Everything that is made, by its path in the repository.
fn files() -> Result<BTreeMap<PathBuf, String>> {
    let mut made = BTreeMap::new();
    let mut daemons = None;
    for name in base()? {
        let file = root().join("manifests/base").join(&name);
        let mut template = Template::default();
        for mut object in documents(&file)? {
            match object["kind"].as_str().unwrap_or_default() {
                // `helm install --create-namespace` makes it.
                "Namespace" => continue,
                "DaemonSet" => {
                    daemons = Some(object.clone());
                    daemonset::edit(&mut object, &mut template)?;
                }
                "CustomResourceDefinition" => {
                    // Else every Network would go with the release.
                    put(&mut object, &["metadata", "annotations", "helm.sh/resource-policy"], "keep".into())?;
                }
                "DeviceClass" => template.only_if(".Values.defaultDeviceClass"),
                _ => {}
            }
            finish(&mut object)?;
            template.object(&object)?;
        }
        if !template.is_empty() {
            made.insert(Path::new("manifests/chart/templates").join(&name), template.text(HEAD)?);
        }
    }
    let daemons = daemons.context("manifests/base has no DaemonSet")?;
    made.insert("manifests/chart/values.yaml".into(), values::values(&daemons)?);
    made.insert("manifests/chart/values.schema.json".into(), values::schema()?);
    made.insert("manifests/chart/Chart.yaml".into(), values::chart());
    made.insert("manifests/chart/templates/deviceclasses.yaml".into(), values::CLASSES.into());
    made.insert("manifests/chart/templates/openshift.yaml".into(), values::OPENSHIFT.into());
    made.extend(monitoring::files()?);
    Ok(made)
}

/// The files of the base, as its kustomization lists them.
fn base() -> Result<Vec<String>> {
    let list = documents(&root().join("manifests/base/kustomization.yaml"))?;
    let names = list.first().and_then(|list| list["resources"].as_sequence()).context("no resources")?;
    Ok(names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn documents(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).with_context(|| file.display().to_string()))
        .collect()
}

/// What every object of the chart has: the release's namespace, and labels.
fn finish(object: &mut Value) -> Result<()> {
    strings(object, &|text| text.replace(NAMESPACE, "{{ .Release.Namespace }}"));
    for (label, value) in [
        ("app.kubernetes.io/name", "netferry"),
        ("app.kubernetes.io/part-of", "netferry"),
        ("app.kubernetes.io/managed-by", "{{ .Release.Service }}"),
        ("helm.sh/chart", "{{ .Chart.Name }}-{{ .Chart.Version }}"),
    ] {
        put(object, &["metadata", "labels", label], value.into())?;
    }
    Ok(())
}

/// Changes every string, but no key.
fn strings(value: &mut Value, change: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Sequence(items) => items.iter_mut().for_each(|item| strings(item, change)),
        Value::Mapping(fields) => fields.values_mut().for_each(|field| strings(field, change)),
        _ => {}
    }
}

/// Sets a field, with the maps on the way to it.
fn put(value: &mut Value, path: &[&str], to: Value) -> Result<()> {
    let (last, way) = path.split_last().context("an empty path")?;
    let mut place = value;
    for name in way {
        let fields = place.as_mapping_mut().with_context(|| format!("{} is no map", path.join(".")))?;
        place = fields.entry((*name).into()).or_insert_with(|| Value::Mapping(Mapping::new()));
    }
    let fields = place.as_mapping_mut().with_context(|| format!("{} is no map", path.join(".")))?;
    fields.insert((*last).into(), to);
    Ok(())
}

/// What a path leads to.
fn get<'a>(value: &'a Value, path: &[&str]) -> Result<&'a Value> {
    path.iter()
        .try_fold(value, |value, name| value.get(*name))
        .with_context(|| format!("no {}", path.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_is_what_the_base_gives() {
        check().expect("the chart");
    }

    #[test]
    fn what_the_base_names_is_in_the_chart() {
        let files = files().expect("files");
        for name in base().expect("a list") {
            let path = Path::new("manifests/chart/templates").join(&name);
            assert_eq!(files.contains_key(&path), name != "namespace.yaml", "{name}");
        }
        let daemons = &files[Path::new("manifests/chart/templates/daemonset.yaml")];
        for part in ["{{ .Values.kubeletRootDir }}/plugins_registry", "dir .Values.nriSocket", "--publish=%s"]
        {
            assert!(daemons.contains(part), "{part}:\n{daemons}");
        }
        assert!(!daemons.contains("/var/lib/kubelet/"), "{daemons}");
        for (path, text) in &files {
            assert!(
                !text.contains(NAMESPACE) || path.starts_with("manifests/monitoring"),
                "{}",
                path.display()
            );
            assert!(!text.contains("BLOCK-"), "{}", path.display());
        }
    }
}
