//! One cell after the other: sent, awaited, compared with what is expected, and put down for the table.

use std::time::{Duration, Instant};

use netferry::datapath::{AyaDatapath, Datapath as _};

use crate::frames::{frames, is_answer, is_of};
use crate::oracle::{Destination, Expected, Kind, Sender};
use crate::tap::Tap;
use crate::world::{NOBODY, Node, POD, station_at};

/// How long is waited for what must happen.
const PATIENCE: Duration = Duration::from_secs(5);
/// Times a cell is sent of which too little is heard: where a frame waits for its CPU there is room for a thousand of all
/// namespaces, and the rest is lost before any program.
const ATTEMPTS: usize = 4;

pub(crate) struct Matrix<'a> {
    node: &'a Node,
    datapath: &'a AyaDatapath,
    sender: u32,
    from: &'a [Tap; 2],
    cells: u32,
    rows: Vec<(String, Vec<String>)>,
}

/// Waits until `done`; whether it came to that.
pub(crate) fn waited(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

impl<'a> Matrix<'a> {
    pub(crate) fn new(node: &'a Node, datapath: &'a AyaDatapath, sender: u32, from: &'a [Tap; 2]) -> Self {
        Self { node, datapath, sender, from, cells: 0, rows: Vec::new() }
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.datapath.stats(self.sender).expect("stats").drops.get(reason).copied().unwrap_or(0)
    }

    /// Sends the frames of a cell and asserts what becomes of them.
    pub(crate) fn check(
        &mut self,
        to: Destination,
        v4: bool,
        kind: Kind,
        sender: Sender,
        expected: Expected,
    ) {
        self.cells += 1;
        let mut outcome = Ok(());
        for _ in 0..ATTEMPTS {
            outcome = self.attempt(to, v4, kind, sender, expected);
            if outcome.is_ok() {
                break;
            }
        }
        outcome.unwrap_or_else(|what| panic!("{what}"));
        let family = if v4 { "IPv4" } else { "IPv6" };
        let outcome = match expected {
            Expected::Arrives => "arrives",
            Expected::PassesUnseen => "UNSEEN",
            Expected::Answered => "answered",
            Expected::Dropped(reasons) => reasons[0],
        };
        self.note(format!("{family} {:<13} {sender:?}", to.name()), outcome.to_owned());
    }

    /// Panics at what must not be; fails if something has not happened.
    fn attempt(
        &self,
        to: Destination,
        v4: bool,
        kind: Kind,
        sender: Sender,
        expected: Expected,
    ) -> Result<(), String> {
        let cell = self.cells;
        let (target, family) = (station_at(to), if v4 { "IPv4" } else { "IPv6" });
        let what = format!("{} {family} {kind:?} {sender:?}", to.name());
        let mut from = POD;
        match sender {
            Sender::Honest => {}
            Sender::SpoofedMac => from.mac = NOBODY.mac,
            Sender::SpoofedIp => (from.v4, from.v6) = (NOBODY.v4, NOBODY.v6),
        }
        let frames = frames(kind, v4, cell, &from, &target);
        let wanted = |frame: &[u8]| is_of(kind, cell, &from, &target, frame);
        let place = self.node.taps.iter().position(|(at, _)| *at == to).unwrap_or(0);
        for (_, tap) in &self.node.taps {
            tap.seen(|_| false);
        }
        let mut seen = vec![0; self.node.taps.len()];
        let mut look = || {
            for (count, (_, tap)) in seen.iter_mut().zip(&self.node.taps) {
                *count += tap.seen(wanted);
            }
            seen.clone()
        };
        self.from[0].seen(|_| false);
        let drops = || self.datapath.stats(self.sender).expect("stats").drops;
        let before = drops();
        let counted = || self.datapath.paths(self.sender).expect("counters").packets;
        let passed = counted();
        let by = &self.from[usize::from(kind == Kind::RawBypass)];
        for frame in &frames {
            by.send(frame);
        }
        match expected {
            Expected::Arrives | Expected::PassesUnseen => {
                if !waited(|| look()[place] >= frames.len()) {
                    return Err(format!("{what}: does not arrive"));
                }
            }
            Expected::Answered => {
                let mut answers = 0;
                let answered = waited(|| {
                    answers += self.from[0].seen(|frame| is_answer(&POD, &target, frame));
                    answers > 0
                });
                if !answered {
                    return Err(format!("{what}: there is no answer"));
                }
            }
            Expected::Dropped(reasons) => {
                for reason in reasons {
                    let times = reasons.iter().filter(|other| *other == reason).count() as u64;
                    let counted = || self.dropped(reason) - before.get(*reason).copied().unwrap_or(0);
                    if !waited(|| counted() >= times) {
                        let (counted, drops) = (counted(), drops());
                        return Err(format!(
                            "{what}: {counted} for {reason}, not {times}; {drops:?} were {before:?}"
                        ));
                    }
                }
            }
        }
        let seen = look();
        let arrives = matches!(expected, Expected::Arrives | Expected::PassesUnseen);
        for (at, (count, (there, _))) in seen.iter().zip(&self.node.taps).enumerate() {
            let right = if arrives && at == place { frames.len() } else { 0 };
            assert_eq!(*count, right, "{what}: frames at {}", there.name());
        }
        if expected == Expected::PassesUnseen {
            assert_eq!(counted(), passed, "{what}: the program at egress saw it");
        }
        let mut raised = drops();
        raised.retain(|reason, count| *count > before.get(reason).copied().unwrap_or(0));
        let reasons: Vec<&str> =
            if let Expected::Dropped(reasons) = expected { reasons.to_vec() } else { Vec::new() };
        assert!(raised.keys().all(|reason| reasons.contains(&reason.as_str())), "{what}: {raised:?}");
        for reason in &reasons {
            let times = reasons.iter().filter(|other| *other == reason).count() as u64;
            assert_eq!(
                raised[*reason] - before.get(*reason).copied().unwrap_or(0),
                times,
                "{what}: {reason}"
            );
        }
        Ok(())
    }

    fn note(&mut self, row: String, outcome: String) {
        match self.rows.iter_mut().find(|(name, _)| *name == row) {
            Some((_, outcomes)) => outcomes.push(outcome),
            None => self.rows.push((row, vec![outcome])),
        }
    }

    /// Prints the table; there must be that many cells.
    pub(crate) fn finish(self, title: &str, cells: u32) {
        assert_eq!(self.cells, cells);
        println!("{title}: {cells} cells, all as expected");
        let kinds = Kind::ALL.map(|kind| format!("{:<12}", format!("{kind:?}"))).join(" ");
        println!("{:<30} {kinds}", "");
        for (row, outcomes) in &self.rows {
            let outcomes: Vec<String> = outcomes.iter().map(|outcome| format!("{outcome:<12}")).collect();
            println!("{row:<30} {}", outcomes.join(" "));
        }
    }
}

/// A UDP datagram to the router, as a host sends it, arrives where it is meant for.
pub(crate) fn reaches_without_programs(node: &Node, from: &Tap, to: Destination, v4: bool) {
    let cell = 1000 + u32::from(v4);
    let target = station_at(to);
    let mut next_hop = target;
    next_hop.mac = station_at(Destination::Host).mac;
    let (_, tap) = node.taps.iter().find(|(at, _)| *at == to).expect("a tap");
    tap.seen(|_| false);
    let frame = &frames(Kind::Udp, v4, cell, &POD, &next_hop)[0];
    let arrived = waited(|| {
        from.send(frame);
        std::thread::sleep(Duration::from_millis(5));
        tap.seen(|seen| is_of(Kind::Udp, cell, &POD, &target, seen)) > 0
    });
    assert!(arrived, "{} cannot be reached even without programs", to.name());
}
