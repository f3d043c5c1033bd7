//! Counts what `cargo test` reports while passing its output through.

use std::{
    fmt, fs,
    io::{BufRead, BufReader, Write as _, stdout},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::command::line;

/// Outcomes summed over test binaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that ran and held.
    pub(crate) passed: u64,
    /// Tests that did not hold.
    pub(crate) failed: u64,
    /// Tests that did not run: marked `ignore`, or that said themselves why they cannot.
    pub(crate) skipped: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Tally {
    /// Adds a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …`.
    pub(crate) fn read(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Moves the tests that skipped themselves, which the harness counts as passed. A test may give several
    /// reasons; it is one skip.
    pub(crate) fn take_skips(&mut self, log: &Path) -> Result<Vec<String>> {
        let log = match fs::read_to_string(log) {
            Ok(log) => log,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", log.display())),
        };
        let mut skips: Vec<String> = log.lines().map(str::to_owned).collect();
        skips.sort();
        skips.dedup_by_key(|skip| skip.split(": ").next().map(str::to_owned));
        let number = skips.len() as u64;
        self.passed = self.passed.saturating_sub(number);
        self.skipped += number;
        Ok(skips)
    }
}

/// Runs one `cargo test`, adds its counts, and tells whether all of it succeeded: a binary that does not
/// compile or that dies reports no counts.
pub(crate) fn run(cargo: &mut Command, tally: &mut Tally) -> Result<bool> {
    println!("$ {}", line(cargo));
    let mut child =
        cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        // A test may print anything: bytes go through as they are.
        while output.read_until(b'\n', &mut bytes).context("cargo test's output")? > 0 {
            stdout().write_all(&bytes).context("standard output")?;
            tally.read(String::from_utf8_lossy(&bytes).trim_end());
            bytes.clear();
        }
    }
    Ok(child.wait().context("cargo test")?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_binaries() {
        let mut tally = Tally::default();
        tally.read("running 3 tests");
        tally.read(
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        );
        tally.read(
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        assert_eq!(tally, Tally { passed: 7, failed: 3, skipped: 1 });
    }

    #[test]
    fn a_test_that_skips_itself_has_not_passed() {
        let log = std::env::temp_dir().join(format!("nf-skips-{}", std::process::id()));
        fs::write(&log, "b: no kernel\na: no runtime\na: no runtime either\n").unwrap();
        let mut tally = Tally { passed: 5, failed: 0, skipped: 1 };
        let skips = tally.take_skips(&log).unwrap();
        fs::remove_file(&log).unwrap();
        assert_eq!(skips, ["a: no runtime", "b: no kernel"]);
        assert_eq!(tally, Tally { passed: 3, failed: 0, skipped: 3 });
    }

    #[test]
    fn no_log_is_no_skip() {
        let mut tally = Tally::default();
        assert!(tally.take_skips(Path::new("/nonexistent/skips")).unwrap().is_empty());
    }
}
