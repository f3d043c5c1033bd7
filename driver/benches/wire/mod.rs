//! What two pods of a node get from each other, by the way they are connected.

mod bare;
mod cpu;
mod external;
mod load;
mod netns;
mod options;
mod ours;
mod overlay;
mod paths;
mod table;
mod tcp;
mod udp;

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

pub(crate) use netns::isolate;
pub(crate) use options::Options;

use external::External;
use load::{Run, Sample, Test};
use ours::Node;
use paths::Path;
use table::Results;

/// Measures every path with every load, by turns, and prints the tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (tests, names) = options.wire()?;
    if tests.is_empty() {
        return Ok(());
    }
    let (client, server) = match options.cpus[..] {
        [] => (cpu::last()?, cpu::last()?),
        [both] => (both, both),
        [client, server, ..] => (client, server),
    };
    let mut raw = options.raw.as_ref().map(File::create).transpose().context("--raw")?;
    let mut node = Node::open()?;
    let mut paths = Vec::new();
    for name in names {
        println!("making the path {name}");
        paths.push(match options.externals.iter().find(|path| path.name == name) {
            Some(external) => Path::external(external)?,
            None => Path::new(&name, &mut node)?,
        });
    }
    let meter = cpu::Meter::new(&[client, server])?;
    let run = |test, seconds| Run {
        test,
        time: Duration::from_secs_f64(seconds),
        client,
        server,
        meter: meter.clone(),
    };
    if tests.contains(&Test::Crr) {
        options.externals.iter().try_for_each(External::takes_connections)?;
    }
    for path in &paths {
        load::put(&path.pods.ends(), &run(Test::Rr, 0.1))
            .and_then(|_| (path.evidence)())
            .with_context(|| format!("traffic on the path {}", path.name))?;
    }
    let mut results = Results::new(paths.iter().map(|path| path.name.clone()).collect());
    let start = Instant::now();
    for round in 0..options.rounds {
        for test in &tests {
            let run = run(*test, options.seconds);
            // Each round begins with another path, so that none always follows the same.
            let first = round as usize % paths.len();
            for path in paths[first..].iter().chain(&paths[..first]) {
                let sample = load::put(&path.pods.ends(), &run)
                    .with_context(|| format!("{} on the path {}, round {round}", test.name(), path.name))?;
                results.add(&path.name, *test, round, sample);
                if let Some(raw) = &mut raw {
                    writeln!(raw, "{}", line(&path.name, *test, round, &sample)).context("--raw")?;
                }
            }
        }
        let (done, all) = (round + 1, options.rounds);
        println!("round {done} of {all}, {:.0} s", start.elapsed().as_secs_f64());
    }
    results.print(&tests);
    Ok(())
}

fn line(path: &str, test: Test, round: u32, sample: &Sample) -> serde_json::Value {
    json!({
        "path": path,
        "test": test.name(),
        "round": round,
        "count": sample.count,
        "sent": sample.sent,
        "seconds": sample.took.as_secs_f64(),
        "cpuSeconds": sample.cpu.as_secs_f64(),
    })
}
