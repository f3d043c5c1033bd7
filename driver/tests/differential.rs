//! Differential fuzz: random and mutated frames through the real programs in the real kernel, against an oracle that
//! parses with another implementation and states the documented rules.
//!
//! `NETFERRY_FUZZ_PACKETS` and `NETFERRY_FUZZ_SEED` say how many frames the long run sends and where it starts
//! (`cargo xtask fuzz`). Needs root and an object built by `cargo xtask build-ebpf`.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "vectors/bench.rs"]
#[allow(dead_code, reason = "shared with the vectors")]
mod bench;
#[path = "vectors/frames.rs"]
#[allow(dead_code, reason = "shared with the vectors")]
mod frames;
#[path = "differential/generate.rs"]
mod generate;
#[path = "differential/known.rs"]
mod known;
#[path = "differential/neighbors.rs"]
mod neighbors;
#[path = "differential/oracle.rs"]
mod oracle;
#[path = "differential/parse.rs"]
mod parse;
#[path = "differential/regressions.rs"]
mod regressions;
#[path = "vectors/table.rs"]
#[allow(dead_code, reason = "shared with the vectors")]
mod table;
#[path = "differential/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use bench::Outcome;
use generate::{Random, Source, pair};
use known::Known;
use netferry_common::Direction;
use world::{Setting, World};

/// Frames sent before the setting changes: changing it writes maps.
const BLOCK: u64 = 256;
/// Disagreements after which a run ends.
const ENOUGH: usize = 20;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Runs a frame and compares. An error is a disagreement, told so that it can be run again.
fn compare(
    world: &mut World,
    direction: Direction,
    frame: &[u8],
    known: &Known,
) -> Result<Option<Outcome>, String> {
    let expected = oracle::expect(world.setting, direction, frame, known);
    let Some(found) = world.run(direction, frame) else { return Ok(None) };
    if expected.agrees(&found) {
        return Ok(Some(found));
    }
    let shown = match &found {
        Outcome::Redirect(frame) => format!("Redirect({})", hex(frame)),
        other => format!("{other:?}"),
    };
    Err(format!(
        "{:?} {}: program {shown}, oracle {}, after {known:?}\n  {}",
        world.setting,
        direction.name(),
        expected.shown(),
        hex(frame)
    ))
}

fn name(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Redirect(_) => "redirect".into(),
        Outcome::Pass => "pass".into(),
        Outcome::Drop(reason) => format!("drop {}", reason.name()),
        Outcome::Refuse(reason, _) => format!("refuse {}", reason.name()),
    }
}

fn fuzz(packets: u64, seed: u64) {
    let begin = Instant::now();
    let mut world = World::new();
    let source = Source::new();
    let mut disagreements = Vec::new();
    let mut verdicts = BTreeMap::<String, u64>::new();
    let (first, mut seed, mut sent) = (seed, seed, 0);
    while sent < packets {
        let mut random = Random::new(seed);
        // By the seed alone, so that a frame can be run again by itself.
        let setting = Setting::ALL[usize::try_from(seed / BLOCK).unwrap() % Setting::ALL.len()];
        if setting != world.setting {
            world.set(setting);
        }
        let frames = if setting.tracked() && random.chance(3) {
            pair(&mut random).to_vec()
        } else {
            vec![source.frame(&mut random)]
        };
        let mut known = Known::default();
        for (direction, frame) in frames {
            match compare(&mut world, direction, &frame, &known) {
                Ok(None) => *verdicts.entry("refused by the kernel".into()).or_default() += 1,
                Ok(Some(outcome)) => {
                    sent += 1;
                    *verdicts.entry(name(&outcome)).or_default() += 1;
                    if matches!(outcome, Outcome::Drop(_)) {
                        world.forget();
                    } else {
                        known = Known::after(setting, direction, &frame);
                    }
                }
                Err(text) => disagreements.push(format!("seed {seed}: {text}")),
            }
            if known.is_of_the_pod_alone() {
                break;
            }
        }
        world.forget();
        seed = seed.wrapping_add(1);
        if disagreements.len() >= ENOUGH {
            break;
        }
    }
    println!(
        "{sent} frames in {:.1} s from seed {first} to {seed}: {verdicts:#?}",
        begin.elapsed().as_secs_f32()
    );
    assert!(disagreements.is_empty(), "{} disagreements:\n{}", disagreements.len(), disagreements.join("\n"));
    // A generator that only makes garbage would agree on everything.
    for (common, of) in [("pass", 10), ("redirect", 200)] {
        assert!(verdicts.get(common).is_some_and(|count| *count > packets / of), "few frames {common}");
    }
}

/// A short run; `cargo xtask fuzz` makes it as long as is asked.
#[test]
fn programs_and_oracle_agree() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).map_or(otherwise, |value| {
            value.parse().unwrap_or_else(|_| panic!("{name}: {value} is not a number"))
        })
    };
    fuzz(number("NETFERRY_FUZZ_PACKETS", 20_000), number("NETFERRY_FUZZ_SEED", 1));
}

#[test]
fn past_disagreements_stay_settled() {
    let mut world = World::new();
    for (name, setting, direction, frame, outcome) in regressions::all() {
        world.set(setting);
        world.forget();
        match compare(&mut world, direction, &frame, &Known::default()) {
            Ok(Some(found)) => assert_eq!(found, outcome, "{name}"),
            Ok(None) => panic!("{name}: the kernel does not run it"),
            Err(text) => panic!("{name}: {text}"),
        }
    }
}
