//! The tables: medians, how far they spread, and how paths compare round by round.

use super::load::{Sample, Test};

/// Samples by path and load.
pub(crate) struct Results {
    paths: Vec<String>,
    samples: Vec<(String, Test, u32, Sample)>,
}

/// Paths that others are compared with.
const BASES: [&str; 4] = ["direct", "bridge", "bridge-nft", "vxlan-bridge"];

impl Results {
    pub(crate) fn new(paths: Vec<String>) -> Self {
        Self { paths, samples: Vec::new() }
    }

    pub(crate) fn add(&mut self, path: &str, test: Test, round: u32, sample: Sample) {
        self.samples.push((path.to_owned(), test, round, sample));
    }

    /// A Markdown table for each load.
    pub(crate) fn print(&self, tests: &[Test]) {
        for test in tests {
            let (title, unit) = match test {
                Test::Rr => ("TCP_RR: transactions over one connection", "1,000/s"),
                Test::Crr => ("TCP_CRR: transactions over a connection each", "1,000/s"),
                Test::Stream => ("TCP stream", "Gbit/s"),
                Test::Udp => ("UDP, frames of 60 bytes that arrive", "1,000/s"),
            };
            println!("\n{title}: median (least to most); ratios are medians of the rounds' ratios\n");
            let mut header = format!("| path | {unit} |");
            let mut rule = String::from("|---|---|");
            let bases: Vec<_> =
                BASES.into_iter().filter(|base| self.paths.iter().any(|path| path == base)).collect();
            for base in &bases {
                header.extend([" of ", *base, " |"]);
                rule += "---|";
            }
            match test {
                Test::Stream => header += " CPU s/GB |",
                Test::Udp => header += " lost |",
                Test::Rr | Test::Crr => header += " CPU µs each |",
            }
            println!("{header}\n{rule}---|");
            for path in &self.paths {
                self.print_row(path, *test, &bases);
            }
        }
    }

    fn print_row(&self, path: &str, test: Test, bases: &[&str]) {
        let scale = if test == Test::Stream { 8e-9 } else { 1e-3 };
        let rates = self.of(path, test).map(|(_, sample)| sample.rate() * scale);
        let mut row = format!("| {path} | {} |", spread(rates.collect()));
        for base in bases {
            let ratios = self.of(path, test).filter_map(|(round, sample)| {
                let (_, other) = self.of(base, test).find(|(at, _)| *at == round)?;
                Some(sample.rate() / other.rate())
            });
            row.extend([format!(" {:.3} |", median(ratios.collect()))]);
        }
        let cost = match test {
            Test::Stream => spread(self.of(path, test).map(|(_, sample)| sample.cpu_of_billion()).collect()),
            Test::Rr | Test::Crr => {
                spread(self.of(path, test).map(|(_, sample)| sample.cpu_of_billion() / 1e3).collect())
            }
            Test::Udp => {
                let lost = self.of(path, test).map(|(_, sample)| lost(&sample));
                format!("{:.1} %", median(lost.collect()) * 100.0)
            }
        };
        println!("{row} {cost} |");
    }

    fn of(&self, path: &str, test: Test) -> impl Iterator<Item = (u32, Sample)> {
        self.samples
            .iter()
            .filter(move |(had, of, ..)| *had == path && *of == test)
            .map(|(_, _, round, sample)| (*round, *sample))
    }
}

/// Part of what was sent that did not arrive. What is on its way at both ends of the time can make it look less
/// than nothing.
#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn lost(sample: &Sample) -> f64 {
    (1.0 - sample.count as f64 / sample.sent.max(1) as f64).max(0.0)
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn median(values: Vec<f64>) -> f64 {
    let values = sorted(values);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

fn spread(values: Vec<f64>) -> String {
    let values = sorted(values);
    let (Some(least), Some(most)) = (values.first().copied(), values.last().copied()) else {
        return "-".to_owned();
    };
    let middle = median(values);
    let digits = if middle >= 100.0 {
        0
    } else if middle >= 10.0 {
        1
    } else {
        2
    };
    format!("{middle:.digits$} ({least:.digits$} to {most:.digits$})")
}
