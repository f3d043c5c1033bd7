//! `cargo xtask e2e`: stories on a cluster that exists and has the driver, with the rights of kubectl.

mod cases;
mod interrupt;
mod kubectl;
mod links;
mod node;
mod objects;
mod options;
mod ping;
mod report;
mod runner;
mod story;
mod wait;
mod world;

use std::{process, time::SystemTime};

use anyhow::{Result, bail};

pub(crate) use options::Options;

/// Runs the cases that the options choose, prints the table and removes what was made.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        for case in cases::ALL {
            println!("{:24}{}{}", case.name, case.about, case.mode.note());
        }
        return Ok(());
    }
    let chosen = cases::chosen(&options.only)?;
    interrupt::watch()?;
    let kubectl = world::kubectl(options);
    if options.clean {
        return world::remove(&kubectl, None);
    }
    let run = run_name();
    let world = world::World::start(options, &run);
    let outcome = world.and_then(|world| {
        println!("{}\nrun {run}: {} cases", world::versions(&world), chosen.len());
        let lines = runner::run(&world, &chosen, options);
        println!("{}", report::table(&lines));
        if let Some(file) = &options.junit {
            report::junit(file, &lines)?;
        }
        match report::failed(&lines) {
            0 if interrupt::interrupted() => bail!("interrupted"),
            0 => Ok(()),
            failed => bail!("{failed} cases failed"),
        }
    });
    if options.keep {
        println!(
            "left: everything with the label {}={run}; `cargo xtask e2e --clean` removes it",
            world::LABEL
        );
        return outcome;
    }
    let removed = world::remove(&kubectl, Some(&run));
    outcome.and(removed)
}

/// A name that two runs at a time do not share.
fn run_name() -> String {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    format!("{:04x}", (time ^ process::id().rotate_left(7)) & 0xffff)
}
