//! Runs cases: those that disturb nothing side by side, the others one after another.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    cases::{Case, Mode, Skip},
    interrupt::interrupted,
    options::Options,
    report::{Line, Outcome},
    story::Story,
    world::World,
};

/// Runs the cases, and returns their lines in the order of the cases.
pub(crate) fn run(world: &World, cases: &[&'static Case], options: &Options) -> Vec<Line> {
    let (together, apart): (Vec<_>, Vec<_>) =
        cases.iter().copied().enumerate().partition(|(_, case)| case.mode == Mode::Together);
    let queue = Mutex::new(VecDeque::from(together));
    let lines = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let add =
        |number: usize, line: Line| lines.lock().unwrap_or_else(PoisonError::into_inner).push((number, line));
    thread::scope(|scope| {
        for _ in 0..options.parallel.max(1) {
            scope.spawn(|| {
                while let Some((number, case)) = next() {
                    add(number, one(world, case));
                }
            });
        }
    });
    for (number, case) in apart {
        let line = if case.mode == Mode::Disruptive && !options.disruptive {
            skipped(case, "disturbs the cluster: --disruptive runs it")
        } else {
            one(world, case)
        };
        add(number, line);
    }
    let mut lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
    lines.sort_by_key(|(number, _)| *number);
    lines.into_iter().map(|(_, line)| line).collect()
}

fn skipped(case: &Case, why: &str) -> Line {
    Line { name: case.name, outcome: Outcome::Skipped(why.into()), seconds: 0.0 }
}

fn one(world: &World, case: &Case) -> Line {
    if interrupted() {
        return skipped(case, "interrupted");
    }
    println!("… {}", case.name);
    let start = Instant::now();
    let outcome = match told(world, case) {
        Ok(measured) => Outcome::Passed(measured),
        Err(_) if interrupted() => Outcome::Skipped("interrupted".into()),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(why)) => Outcome::Skipped(why.clone()),
            None => Outcome::Failed(format!("{error:#}")),
        },
    };
    let line = Line { name: case.name, outcome, seconds: start.elapsed().as_secs_f64() };
    println!("{}", super::report::row(&line));
    line
}

/// One case from its namespace to the end of what it made.
fn told(world: &World, case: &Case) -> Result<String> {
    if case.links > 0
        && let Some(why) = &world.unpublished
    {
        anyhow::bail!("{why}");
    }
    // What a case before this one disturbed is back.
    world.node.ready(world.limit)?;
    let links = world.links.take(case.links)?;
    let story = Story::start(world, case.name, links.clone());
    let outcome = story.and_then(|story| {
        let outcome = (case.run)(&story);
        let ended = if world.keep { Ok(()) } else { story.end().context("while the case was removed") };
        // The case's own error says more than that of the removal.
        outcome.and_then(|measured| ended.map(|()| measured))
    });
    world.links.put(links);
    outcome
}
