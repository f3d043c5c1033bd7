//! Test binaries by name, as `cargo test` builds them, to be run elsewhere.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::{cargo, line};

/// The packages and features of a whole test run. Everybody who builds tests takes these: with others, cargo would
/// build the dependencies again.
pub(crate) fn of_host() -> Command {
    let mut test = cargo();
    test.args(["test", "--locked", "--no-fail-fast", "--workspace", "--exclude", "netferry-ebpf"]);
    test.args(["--features", "netferry/failpoints"]);
    test
}

/// Builds test binaries; the file of each.
pub(crate) fn build(names: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let mut build = of_host();
    build.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    for name in names {
        build.args(["--test", name]);
    }
    println!("$ {}", line(&build));
    let output =
        build.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo test")?;
    if !output.status.success() {
        bail!("the tests cannot be built");
    }
    Ok(files(&String::from_utf8_lossy(&output.stdout)))
}

/// A message of cargo, as far as it matters.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn files(messages: &str) -> BTreeMap<String, PathBuf> {
    let mut files = BTreeMap::new();
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok()) {
        if let Message { target: Some(target), executable: Some(file) } = message
            && target.kind.iter().any(|kind| kind == "test")
        {
            files.insert(target.name, file);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_binaries_are_taken() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"x","kind":["lib"]},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"a","kind":["test"]},"executable":"/t/a-1"}
            {"reason":"compiler-artifact","target":{"name":"netferry","kind":["bin"]},"executable":"/t/netferry"}
            {"reason":"build-finished","success":true}"#;
        assert_eq!(files(messages), BTreeMap::from([("a".to_owned(), PathBuf::from("/t/a-1"))]));
    }
}
