//! How the demo talks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A headline.
pub(crate) fn step(text: &str) {
    println!("\n== {text}");
}

/// One sentence.
pub(crate) fn say(text: &str) {
    println!("   {text}");
}

/// What a command printed.
pub(crate) fn indent(text: &str) {
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        println!("   | {}", line.trim_end());
    }
}

/// Every file below a folder, in order.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { all.extend(files(&path)?) } else { all.push(path) }
    }
    all.sort();
    Ok(all)
}

/// The lines of `ping -q` that tell the result.
pub(crate) fn middle(text: &str) -> String {
    text.lines()
        .filter(|line| line.starts_with("PING") || line.contains("packets"))
        .collect::<Vec<_>>()
        .join("\n")
}
