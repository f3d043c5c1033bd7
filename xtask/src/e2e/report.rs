//! What came of the cases: a table, and a file for machines.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

/// What came of one case.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It held; the number that was measured.
    Passed(String),
    /// It did not, and why.
    Failed(String),
    /// It was not run, and why.
    Skipped(String),
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The case's name.
    pub(crate) name: &'static str,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// Seconds, its cleaning up included.
    pub(crate) seconds: f64,
}

impl Line {
    fn words(&self) -> (&'static str, &str) {
        match &self.outcome {
            Outcome::Passed(text) => ("ok", text),
            Outcome::Failed(text) => ("FAILED", text),
            Outcome::Skipped(text) => ("skipped", text),
        }
    }
}

/// One line by itself, while others run.
pub(crate) fn row(line: &Line) -> String {
    let (result, text) = line.words();
    format!("{result:7} {} ({:.1} s): {text}", line.name, line.seconds)
}

/// How many cases failed.
pub(crate) fn failed(lines: &[Line]) -> usize {
    lines.iter().filter(|line| matches!(line.outcome, Outcome::Failed(_))).count()
}

/// The table, in the order of the cases.
pub(crate) fn table(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0).max(4);
    let mut table = format!("\n{:width$}  result   seconds  measured\n", "case");
    for line in lines {
        let (result, text) = line.words();
        let text = text.replace('\n', " ");
        let _ = writeln!(table, "{:width$}  {result:7}  {:7.1}  {text}", line.name, line.seconds);
    }
    let skipped = lines.iter().filter(|line| matches!(line.outcome, Outcome::Skipped(_))).count();
    let failed = failed(lines);
    let _ = write!(table, "\n{} passed, {failed} failed, {skipped} skipped", lines.len() - failed - skipped);
    table
}

/// Writes the report as JUnit XML.
pub(crate) fn junit(file: &Path, lines: &[Line]) -> Result<()> {
    fs::write(file, junit_text(lines)).with_context(|| format!("cannot write {}", file.display()))
}

fn junit_text(lines: &[Line]) -> String {
    let skipped = lines.iter().filter(|line| matches!(line.outcome, Outcome::Skipped(_))).count();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"netferry-e2e\" tests=\"{}\" failures=\"{}\" skipped=\"{skipped}\">\n",
        lines.len(),
        failed(lines),
    );
    for line in lines {
        let _ =
            write!(xml, "  <testcase classname=\"e2e\" name=\"{}\" time=\"{:.3}\">", line.name, line.seconds);
        let _ = match &line.outcome {
            Outcome::Passed(text) => write!(xml, "<system-out>{}</system-out>", escaped(text)),
            Outcome::Failed(text) => write!(xml, "<failure message=\"{}\"/>", escaped(text)),
            Outcome::Skipped(text) => write!(xml, "<skipped message=\"{}\"/>", escaped(text)),
        };
        xml += "</testcase>\n";
    }
    xml + "</testsuite>\n"
}

fn escaped(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control() || *letter == '\n')
        .flat_map(|letter| match letter {
            '&' => "&amp;".chars().collect::<Vec<_>>(),
            '<' => "&lt;".chars().collect(),
            '>' => "&gt;".chars().collect(),
            '"' => "&quot;".chars().collect(),
            '\n' => "&#10;".chars().collect(),
            other => vec![other],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        vec![
            Line { name: "a", outcome: Outcome::Passed("back in 3.1 s".into()), seconds: 4.0 },
            Line { name: "longer", outcome: Outcome::Failed("<\"x\" & \u{1b}y>".into()), seconds: 1.25 },
            Line { name: "c", outcome: Outcome::Skipped("no node".into()), seconds: 0.0 },
        ]
    }

    #[test]
    fn the_table_has_each_case_and_the_sum() {
        let table = table(&lines());
        assert!(table.contains("a       ok           4.0  back in 3.1 s"), "{table}");
        assert!(table.ends_with("1 passed, 1 failed, 1 skipped"), "{table}");
    }

    #[test]
    fn junit_is_escaped() {
        let xml = junit_text(&lines());
        assert!(xml.contains("tests=\"3\" failures=\"1\" skipped=\"1\""), "{xml}");
        assert!(xml.contains("message=\"&lt;&quot;x&quot; &amp; y&gt;\""), "{xml}");
    }
}
