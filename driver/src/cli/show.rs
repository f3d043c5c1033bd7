//! Tables and JSON.

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, TableStyle};
use serde::Serialize;

use crate::config::Output;

/// Print `rows` under `header`, or `value` as JSON.
pub(super) fn print<T: Serialize, const N: usize>(
    output: Output,
    value: &T,
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<()> {
    let text = match output {
        Output::Json => serde_json::to_string_pretty(value)?,
        Output::Table => table(header, rows),
    };
    print_line(&text)
}

fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// A closed pipe (`netferry pods | head -1`) is the reader's wish, not an error.
pub(super) fn print_line(text: &str) -> Result<()> {
    use std::io::{ErrorKind, Write as _};
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Several values in one cell; `-` for none.
pub(super) fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}
