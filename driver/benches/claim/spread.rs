//! Durations by name, printed as medians and tails.

use std::{collections::BTreeMap, time::Duration};

/// In the order in which names were first seen.
#[derive(Default)]
pub(crate) struct Spread {
    rows: Vec<(&'static str, Vec<Duration>)>,
}

impl Spread {
    pub(crate) fn add(&mut self, name: &'static str, took: Duration) {
        match self.rows.iter_mut().find(|(had, _)| *had == name) {
            Some((_, times)) => times.push(took),
            None => self.rows.push((name, vec![took])),
        }
    }

    /// Adds up the steps of one run, so that a step that is taken twice counts as one.
    pub(crate) fn add_run(&mut self, steps: &[(&'static str, Duration)]) {
        let mut sums: BTreeMap<&'static str, Duration> = BTreeMap::new();
        for (name, took) in steps {
            *sums.entry(name).or_default() += *took;
        }
        let mut names: Vec<&'static str> = Vec::new();
        for (name, _) in steps {
            if !names.contains(name) {
                names.push(name);
                self.add(name, sums[name]);
            }
        }
    }

    /// Of the times by this name, in percent of them: the nearest rank.
    pub(crate) fn at(&self, name: &str, percent: usize) -> Duration {
        let times = self.rows.iter().find(|(had, _)| *had == name).map(|(_, times)| times.clone());
        let mut times = times.unwrap_or_default();
        times.sort_unstable();
        times.get((times.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or_default()
    }

    /// How many times the one takes the other, at the median and at 99 %.
    pub(crate) fn print_ratio(&self, name: &str, over: &str) {
        let ratio = |percent| self.at(name, percent).as_secs_f64() / self.at(over, percent).as_secs_f64();
        println!("{name} / {over}: {:.2} at the median, {:.2} at 99 %", ratio(50), ratio(99));
    }

    pub(crate) fn print(&self, title: &str) {
        println!("\n{title}");
        println!("{:<28}{:>7}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "runs", "min", "p50", "p90", "p99", "max");
        for (name, times) in &self.rows {
            let mut times = times.clone();
            times.sort_unstable();
            // Nearest rank.
            let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
            let shown = [times[0], at(50), at(90), at(99), at(100)]
                .map(|time| format!("{:>10}", format!("{:.2} ms", time.as_secs_f64() * 1e3)));
            println!("{name:<28}{:>7}{}", times.len(), shown.concat());
        }
    }
}
