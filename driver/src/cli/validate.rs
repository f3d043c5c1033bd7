//! `netferry validate`: check interface configurations and networks before the cluster sees them.

use std::{fs, io::Read as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use super::show;
use crate::{
    claim::config::{FieldError, InterfaceConfig},
    config::{Output, ValidateArgs},
    network::{self, spec},
};

/// One configuration that was found, and what is wrong with it.
#[derive(Debug, Serialize)]
struct Finding {
    file: String,
    /// Number of the YAML document in the file, from 1.
    document: usize,
    /// Where in the document: `spec.devices.config[0].opaque.parameters`, or empty for the document itself.
    at: String,
    /// Each names field, value and what is allowed. Empty is valid.
    errors: Vec<String>,
}

/// Check every file. Fails if anything in them is wrong, or if there was nothing to check.
pub fn run(args: &ValidateArgs) -> Result<ExitCode> {
    let mut findings = Vec::new();
    for file in &args.files {
        let text = read(file).with_context(|| format!("cannot read {}", file.display()))?;
        findings.extend(check(&file.display().to_string(), &text, &args.driver_name));
    }
    let wrong = findings.iter().filter(|finding| !finding.errors.is_empty()).count();
    match args.output {
        Output::Json => show::print_line(&serde_json::to_string_pretty(&findings)?)?,
        Output::Table => {
            for finding in findings.iter().filter(|finding| !finding.errors.is_empty()) {
                for error in &finding.errors {
                    let Finding { file, document, at, .. } = finding;
                    show::print_line(&format!("{file}: document {document}: {at}: {error}"))?;
                }
            }
            show::print_line(&format!("{} configurations checked, {wrong} wrong", findings.len()))?;
        }
    }
    Ok(if wrong == 0 && !findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(file: &Path) -> std::io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        return std::io::stdin().read_to_string(&mut text).map(|_| text);
    }
    fs::read_to_string(file)
}

fn check(file: &str, text: &str, driver: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let finding = |at: String, errors| Finding { file: file.to_owned(), document: index + 1, at, errors };
        match Value::deserialize(document) {
            Ok(Value::Null) => {}
            Ok(value) => {
                let found = configurations(&value, driver);
                findings.extend(found.into_iter().map(|(at, parameters)| finding(at, problems(parameters))));
            }
            Err(error) => {
                findings.push(finding(String::new(), vec![format!("not YAML: {error}")]));
                // The parser cannot find the next document after a syntax error.
                break;
            }
        }
    }
    findings
}

fn problems(parameters: &Value) -> Vec<String> {
    if parameters.get("kind").is_some_and(|kind| kind == spec::KIND) {
        return network_problems(parameters);
    }
    match InterfaceConfig::parse(parameters) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn network_problems(network: &Value) -> Vec<String> {
    let text = |pointer: &str| network.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let version = text("/apiVersion");
    if version != spec::API_VERSION {
        return vec![FieldError::new("apiVersion", version, spec::API_VERSION).to_string()];
    }
    let errors = match network::validate::parse(network.get("spec").unwrap_or(&Value::Null)) {
        Ok(spec) => network::validate::validate(text("/metadata/name"), &spec),
        Err(error) => vec![error],
    };
    errors.iter().map(ToString::to_string).collect()
}

/// The document itself if it is of our API group, else every opaque configuration for this driver in it:
/// claims, templates and classes have them at different depths.
fn configurations<'a>(document: &'a Value, driver: &str) -> Vec<(String, &'a Value)> {
    let api = document.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if api.split('/').next() == Some(crate::DRIVER_NAME) {
        return vec![(String::new(), document)];
    }
    let mut found = Vec::new();
    descend(document, driver, "", &mut found);
    found
}

fn descend<'a>(value: &'a Value, driver: &str, path: &str, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(fields) => {
            if let Some(opaque) =
                fields.get("opaque").filter(|o| o.get("driver").is_some_and(|d| d == driver))
            {
                let at = format!("{path}.opaque.parameters").trim_start_matches('.').to_owned();
                found.push((at, opaque.get("parameters").unwrap_or(&Value::Null)));
                return;
            }
            for (name, inner) in fields {
                descend(inner, driver, format!("{path}.{name}").trim_start_matches('.'), found);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                descend(inner, driver, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_searched_for_this_drivers_configurations() {
        let text = "
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
spec:
  spec:
    devices:
      config:
      - opaque: {driver: other.example, parameters: {nonsense: 1}}
      - opaque:
          driver: netferry.dev
          parameters: {apiVersion: netferry.dev/v1alpha1, kind: InterfaceConfig, mtu: 40}
---
apiVersion: netferry.dev/v1alpha1
kind: InterfaceConfig
name: net1
";
        let findings = check("f.yaml", text, "netferry.dev");
        assert_eq!(findings.len(), 2);
        assert_eq!(findings[0].at, "spec.spec.devices.config[1].opaque.parameters");
        assert!(findings[0].errors[0].contains("mtu"), "{:?}", findings[0].errors);
        assert_eq!((findings[1].document, findings[1].errors.len()), (2, 0));
    }

    #[test]
    fn a_rule_that_is_wrong_is_named_by_its_path() {
        let text = "
apiVersion: netferry.dev/v1alpha1
kind: InterfaceConfig
policy: {egress: {rules: [{action: allow, ports: [{protocol: TCP, port: 99999}]}]}}
limits: {egress: {bitsPerSecond: 10}}
";
        let findings = check("f.yaml", text, "netferry.dev");
        assert_eq!(
            findings[0].errors,
            [
                "limits.egress.bitsPerSecond: 10 is not allowed; 8000 to 10000000000000",
                "policy.egress.rules[0].ports[0].port: 99999 is not allowed; a whole number from 0 to 65535",
            ]
        );
    }

    #[test]
    fn broken_yaml_is_a_finding() {
        let findings = check("f.yaml", "a: [", "netferry.dev");
        assert!(findings[0].errors[0].starts_with("not YAML"));
    }

    #[test]
    fn networks_are_checked_too() {
        let network = |version: &str, mtu: u32| {
            format!(
                "apiVersion: netferry.dev/{version}\nkind: Network\nmetadata: {{name: blue}}\n\
                 spec: {{subnets: [10.1.0.0/16], mtu: {mtu}, transport: {{local: {{}}}}}}\n"
            )
        };
        let errors = |text: &str| check("f", text, crate::DRIVER_NAME).remove(0).errors;
        assert_eq!(errors(&network("v1alpha1", 1500)), [""; 0]);
        assert!(errors(&network("v1alpha1", 1))[0].contains("spec.mtu"));
        assert!(errors(&network("v9", 1500))[0].contains("netferry.dev/v1alpha1"));
    }
}
