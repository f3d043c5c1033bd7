//! What a table was measured on: its numbers mean little elsewhere.

use std::{collections::BTreeMap, fs};

/// Print the processor, the kernel, and what the kernel does against the processor's weaknesses.
pub(crate) fn print() {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "{} x {}, Linux {}",
        count,
        model.map_or("unknown processor", |(_, model)| model),
        release.trim()
    );
    let virtual_machine = cpus
        .lines()
        .any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor"));
    println!("{}", if virtual_machine { "a virtual machine" } else { "no hypervisor is seen" });
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load when this began: {}", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    let mut by_state: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten() {
        let state = fs::read_to_string(entry.path()).unwrap_or_default().trim().to_owned();
        by_state.entry(state).or_default().push(entry.file_name().to_string_lossy().into_owned());
    }
    for (state, mut names) in by_state {
        names.sort_unstable();
        println!("{}: {state}", names.join(", "));
    }
}
