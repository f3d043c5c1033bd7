//! `cargo xtask lint`: formatting, clippy, licences and sources, file sizes, the chart, names and words.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build_ebpf, chart,
    command::{self, cargo, foreign, output, root, which},
};

/// The longest a source file may be: what is longer has more than one purpose.
const LINES: usize = 450;
/// The `main.rs` of a program only puts the parts together.
const MAIN_LINES: usize = 80;
/// Names that tell nothing of a file's purpose.
const NAMES: [&str; 6] = ["common.rs", "helper.rs", "helpers.rs", "manager.rs", "util.rs", "utils.rs"];
/// Marks of unfinished work. Written in two halves, so that this file has none.
const WORDS: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("unimple", "mented!("),
    concat!("/wo", "rk/"),
];
/// The cargo-deny that is installed if none is there.
const DENY: &str = "0.20.2";

/// Options of `lint`.
#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// Install cargo-deny if it is missing, instead of going on without it.
    #[arg(long)]
    install_deny: bool,
}

/// Runs all checks; every one is run even if another failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    // The driver does not compile without the object that it embeds.
    build_ebpf::run(&build_ebpf::Options::default())?;
    let checks: [(&str, Result<()>); 6] = [
        ("files", files()),
        ("Helm chart", chart::check()),
        ("formatting", command::run(cargo().args(["fmt", "--all", "--check"]))),
        ("clippy", clippy()),
        ("clippy of the eBPF programs", clippy_ebpf()),
        ("licences and sources", deny(options.install_deny)),
    ];
    let mut failed = Vec::new();
    for (name, outcome) in checks {
        if let Err(error) = outcome {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    println!("lint: all is well");
    Ok(())
}

fn clippy() -> Result<()> {
    command::run(
        cargo()
            .args(["clippy", "--locked", "--workspace", "--exclude", "netferry-ebpf", "--all-targets"])
            .args(["--features", "netferry/failpoints", "--", "-D", "warnings"]),
    )
}

/// As far as the programs compile for the host.
fn clippy_ebpf() -> Result<()> {
    command::run(
        cargo()
            .args(["clippy", "--locked", "--package", "netferry-ebpf", "--all-targets"])
            .args(["--", "-D", "warnings"]),
    )
}

fn deny(install: bool) -> Result<()> {
    let tools = root().join("target/tools/cargo-deny");
    let ours = tools.join("bin/cargo-deny");
    let mut found = which("cargo-deny").or_else(|| ours.is_file().then(|| ours.clone()));
    if found.is_none() && install {
        command::run(
            foreign("cargo")
                .args(["install", "cargo-deny", "--version", DENY, "--locked", "--root"])
                .arg(&tools),
        )?;
        found = Some(ours);
    }
    let Some(deny) = found else {
        println!("cargo-deny is not installed: licences and sources were not checked (--install-deny does)");
        return Ok(());
    };
    // Advisories change by the day: they are looked at when dependencies are updated, not at each build.
    command::run(Command::new(deny).current_dir(root()).args([
        "--all-features",
        "check",
        "--show-stats",
        "bans",
        "licenses",
        "sources",
    ]))
}

fn files() -> Result<()> {
    let mut faults = Vec::new();
    for file in sources()? {
        // A file that was deleted and not yet committed is still listed.
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        faults.extend(judge(&file, &text));
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    if faults.is_empty() { Ok(()) } else { bail!("{} faults", faults.len()) }
}

fn judge(file: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let rust = file.extension().is_some_and(|extension| extension == "rs");
    if rust {
        let starts = ["driver/src/main.rs", "xtask/src/main.rs"].iter().any(|main| file == Path::new(main));
        let limit = if starts { MAIN_LINES } else { LINES };
        let lines = text.lines().count();
        if lines > limit {
            faults.push(format!("{}: {lines} lines, {limit} are allowed", file.display()));
        }
        if NAMES.contains(&name.as_ref()) {
            faults.push(format!("{}: the name tells no purpose", file.display()));
        }
    }
    for (number, line) in text.lines().enumerate() {
        for word in WORDS.iter().filter(|word| line.contains(**word)) {
            faults.push(format!("{}:{}: `{word}`", file.display(), number + 1));
        }
    }
    faults
}

/// Every text file under version control, or about to be.
fn sources() -> Result<Vec<PathBuf>> {
    let list = output(Command::new("git").current_dir(root()).args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("git cannot list the files")?;
    let texts = ["rs", "md", "toml", "yaml", "yml", "proto", "sh"];
    Ok(list
        .lines()
        .map(PathBuf::from)
        .filter(|file| {
            let extension = file.extension().unwrap_or_default().to_string_lossy();
            texts.contains(&extension.as_ref()) || file.starts_with(".ci")
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_bad_names_and_unfinished_work_are_found() {
        let long = "\n".repeat(LINES + 1);
        assert_eq!(judge(Path::new("driver/src/a.rs"), &long).len(), 1);
        assert!(judge(Path::new("driver/src/a.rs"), &"\n".repeat(LINES)).is_empty());
        assert_eq!(judge(Path::new("driver/src/main.rs"), &"\n".repeat(MAIN_LINES + 1)).len(), 1);
        assert_eq!(judge(Path::new("driver/src/utils.rs"), "").len(), 1);
        let unfinished = format!("fn a() {{}} // {}: later", WORDS[0]);
        assert_eq!(
            judge(Path::new("driver/src/a.rs"), &unfinished),
            [format!("driver/src/a.rs:1: `{}`", WORDS[0])]
        );
        assert!(judge(Path::new("driver/examples/demo/main.rs"), &"\n".repeat(MAIN_LINES + 1)).is_empty());
        assert!(judge(Path::new("docs/a.md"), &long).is_empty(), "prose may be long");
    }
}
