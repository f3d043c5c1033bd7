//! How the demo talks.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// A headline.
pub(crate) fn step(text: &str) {
    print(&format!("\n== {}", folded(text, WIDTH - 3).join("\n")));
}

/// One sentence.
pub(crate) fn say(text: &str) {
    for part in folded(text, WIDTH - 3) {
        print(&format!("   {part}"));
    }
}

/// What a command printed.
pub(crate) fn indent(text: &str) {
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        for part in folded(line.trim_end(), WIDTH - 5) {
            print(&format!("   | {part}"));
        }
    }
}

/// Columns of a terminal that is not wide.
const WIDTH: usize = 100;

/// A line in parts of at most so many columns, cut between words where there are any; a part that goes on is indented.
fn folded(line: &str, width: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest: Vec<char> = line.chars().collect();
    while rest.len() > width {
        let least = rest.iter().take_while(|c| **c == ' ').count() + 5;
        let cut = (least..=width).rev().find(|at| rest[*at] == ' ').unwrap_or(width);
        let after = rest.split_off(cut);
        parts.push(rest.into_iter().collect::<String>().trim_end().to_owned());
        let text: String = after.into_iter().collect();
        rest = format!("    {}", text.trim_start()).chars().collect();
    }
    parts.push(rest.into_iter().collect());
    parts
}

/// A terminal that is closed ends the demo by its signal, not here.
fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
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
