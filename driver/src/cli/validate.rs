//! `netferry validate`: check networks, classes, claims and what pods ask of them, before the cluster sees them.
//!
//! What a single field may be, what fields may be to each other and what networks may not both have is decided by the same
//! functions as at prepare and in the condition `Accepted`. Beside that, objects of all files are checked against each other.

mod claims;
mod objects;
mod pods;

use std::{collections::BTreeMap, fs, io::Read as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use serde::Serialize;

use self::objects::{Kind, Object};
use super::show;
use crate::{
    claim::config::FieldError,
    config::{Output, ValidateArgs},
    network::accept,
};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// It will be refused, or can never do what it says.
    Error,
    /// It is probably not what was meant.
    Warning,
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Problem {
    severity: Severity,
    /// Path of the field in the object.
    field: String,
    /// What it has; `null` if it is missing.
    value: Option<String>,
    /// What is allowed.
    allowed: String,
    /// All of this in a sentence.
    message: String,
}

impl Problem {
    fn new(severity: Severity, error: FieldError) -> Self {
        let message = error.to_string();
        Self { severity, field: error.field, value: error.value, allowed: error.allowed, message }
    }

    fn error(error: FieldError) -> Self {
        Self::new(Severity::Error, error)
    }

    /// Something of the document as a whole.
    fn plain(message: String) -> Self {
        let severity = Severity::Error;
        Self { severity, field: String::new(), value: None, allowed: String::new(), message }
    }
}

/// An object that was checked.
#[derive(Debug, Serialize)]
struct Finding {
    file: String,
    /// Number of the YAML document in the file, from 1.
    document: usize,
    kind: String,
    /// `name` or `namespace/name`; empty if it has none.
    name: String,
    problems: Vec<Problem>,
}

/// Check every file. Fails if there is an error in them, or if there was nothing to check.
pub fn run(args: &ValidateArgs) -> Result<ExitCode> {
    let mut files = Vec::new();
    for file in &args.files {
        let text = read(file).with_context(|| format!("cannot read {}", file.display()))?;
        files.push((file.display().to_string(), text));
    }
    let findings = check(&files, &args.driver_name);
    let problems = || findings.iter().flat_map(|finding| &finding.problems);
    let errors = problems().filter(|problem| problem.severity == Severity::Error).count();
    match args.output {
        Output::Json => show::print_line(&serde_json::to_string_pretty(&findings)?)?,
        Output::Table => {
            for line in findings.iter().flat_map(lines) {
                show::print_line(&line)?;
            }
            let warnings = problems().count() - errors;
            show::print_line(&format!(
                "{} objects checked: {errors} errors, {warnings} warnings",
                findings.len()
            ))?;
        }
    }
    Ok(if errors == 0 && !findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn lines(finding: &Finding) -> impl Iterator<Item = String> {
    let Finding { file, document, kind, name, problems } = finding;
    let object = [kind.as_str(), name.as_str()].into_iter().filter(|part| !part.is_empty());
    let object = object.collect::<Vec<_>>().join(" ");
    let object = if object.is_empty() { object } else { format!("{object}: ") };
    problems.iter().map(move |problem| {
        let severity = if problem.severity == Severity::Warning { "warning: " } else { "" };
        format!("{file}: document {document}: {object}{severity}{}", problem.message)
    })
}

fn read(file: &Path) -> std::io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        return std::io::stdin().read_to_string(&mut text).map(|_| text);
    }
    fs::read_to_string(file)
}

/// Check the objects of all files, each by itself and with the others.
fn check(files: &[(String, String)], driver: &str) -> Vec<Finding> {
    let mut objects: Vec<Object> = files.iter().flat_map(|(file, text)| objects::read(file, text)).collect();
    objects::refuse_twice(&mut objects);
    networks(&mut objects);
    let all = claims::All::of(&objects, driver);
    let problems: Vec<Vec<Problem>> = objects.iter().map(|object| claims::check(object, &all)).collect();
    for (object, problems) in objects.iter_mut().zip(problems) {
        object.problems.extend(problems);
    }
    let findings =
        objects.into_iter().filter(|object| object.kind != Kind::Other || !object.problems.is_empty());
    findings
        .map(|object| Finding {
            file: object.file.clone(),
            document: object.document,
            kind: object.kind_name(),
            name: object.name(),
            problems: object.problems,
        })
        .collect()
}

/// Networks are judged together, as every node does: two that want one VNI are in conflict.
fn networks(objects: &mut [Object]) {
    let mut declared = Vec::new();
    for object in objects.iter_mut().filter(|object| object.kind == Kind::Network) {
        match object.network() {
            // Their names are their identities here: two of one name are reported as such.
            Ok(network)
                if declared
                    .iter()
                    .any(|other: &accept::Declared| other.reference.name == network.reference.name) => {}
            Ok(mut network) => {
                network.reference.uid.clone_from(&network.reference.name);
                declared.push(network);
            }
            Err(message) => object.problems.push(Problem::plain(message)),
        }
    }
    let judged = accept::judge(&declared, &BTreeMap::new());
    for judged in judged {
        let errors = match judged.problem {
            None => continue,
            Some(accept::Problem::Invalid(errors)) => errors,
            Some(accept::Problem::Conflict(error)) => vec![error],
        };
        let of =
            |object: &&mut Object| object.kind == Kind::Network && object.name() == judged.reference.name;
        // A second object of the name is reported already.
        if let Some(object) = objects.iter_mut().find(of)
            && object.problems.is_empty()
        {
            object.problems.extend(errors.into_iter().map(Problem::error));
        }
    }
}

#[cfg(test)]
mod tests;
