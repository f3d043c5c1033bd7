//! What is asked for on the command line.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use super::{external::External, load::Test, paths};

/// Options of the benchmark, after `--`.
#[derive(Parser)]
#[command(about = "What the datapath costs, beside other ways to connect two pods")]
pub(crate) struct Options {
    /// Rounds; in each, every path is measured once with every load.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Seconds of one measurement, warm-up not included.
    #[arg(long, default_value_t = 0.7)]
    pub(crate) seconds: f64,
    /// Parts to run, by name and separated by commas: `programs`, paths and loads.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// A path that is there already, as a CNI plugin made it: the network namespaces of two pods, by name below /run/netns or
    /// by path, and the address of the second. It is measured in turn with the others. Can be given several times.
    #[arg(long = "extern", value_name = "NAME=CLIENT_NETNS,SERVER_NETNS,ADDRESS")]
    pub(crate) externals: Vec<External>,
    /// CPU of the client and of the server; one for both if one is given. The last CPU if left out: between two
    /// CPUs of a virtual machine, wake-ups decide, not the path.
    #[arg(long, value_delimiter = ',', num_args = 1..=2)]
    pub(crate) cpus: Vec<usize>,
    /// A file for each measurement as a line of JSON.
    #[arg(long)]
    pub(crate) raw: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Whether a part is asked for: it is named, or nothing is.
    pub(crate) fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == part)
    }

    /// The loads and the paths to measure. Naming a load alone asks for all paths, and the other way round.
    pub(crate) fn wire(&self) -> Result<(Vec<Test>, Vec<String>)> {
        let external = |name: &str| self.externals.iter().any(|path| path.name == name);
        if let Some(twice) = self.externals.iter().enumerate().find_map(|(nth, path)| {
            self.externals[..nth].iter().any(|other| other.name == path.name).then_some(&path.name)
        }) {
            bail!("--extern: two paths are named {twice:?}; each needs a name of its own");
        }
        let known = |name: &str| {
            name == "programs"
                || paths::NAMES.contains(&name)
                || external(name)
                || Test::ALL.iter().any(|it| it.name() == name)
        };
        if let Some(name) = self.only.iter().find(|name| !known(name)) {
            let tests: Vec<&str> = Test::ALL.iter().map(|test| test.name()).collect();
            let (tests, paths) = (tests.join(", "), paths::NAMES.join(", "));
            bail!("--only: {name:?} is not allowed; programs, {tests}, {paths}");
        }
        for path in &self.externals {
            if paths::NAMES.contains(&path.name.as_str()) || Test::ALL.iter().any(|it| it.name() == path.name)
            {
                bail!(
                    "--extern: {:?} is the name of a path or load of the benchmark; choose another",
                    path.name
                );
            }
        }
        if self.seconds.is_nan() || !(0.05..=600.0).contains(&self.seconds) {
            bail!("--seconds: {} is not allowed; 0.05 to 600", self.seconds);
        }
        let tests: Vec<Test> = Test::ALL.into_iter().filter(|test| self.named(test.name())).collect();
        let all = paths::NAMES.into_iter().map(str::to_owned);
        let all: Vec<String> = all.chain(self.externals.iter().map(|path| path.name.clone())).collect();
        let paths: Vec<String> = all.iter().filter(|name| self.named(name)).cloned().collect();
        Ok(match (tests.is_empty(), paths.is_empty()) {
            (true, true) if !self.only.is_empty() => (tests, paths),
            (no_tests, no_paths) => {
                (if no_tests { Test::ALL.to_vec() } else { tests }, if no_paths { all } else { paths })
            }
        })
    }

    fn named(&self, name: &str) -> bool {
        self.only.iter().any(|only| only == name)
    }
}
