//! What nodes cost the API servers that are read one by one, those with members: by the schedule that the daemon asks
//! by, and next to watches.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::Arc,
    time::{Duration, Instant},
};

use netferry::network::nodes::{NodeNeed, NodePace, Schedule};

use crate::{NODES, bytes, bytes_a_second, event, objects, size};

/// Nodes that members of a node's networks are on.
const MANY: [u32; 4] = [20, 200, 1_600, 4_999];
/// An API server takes so long to answer.
const ANSWER: Duration = Duration::from_millis(10);
const DAY: Duration = Duration::from_hours(24);
/// Kubelet writes a node's status at least this often (`nodeStatusReportFrequency`), and when it changes.
const STATUS: u32 = 300;
const ALL: u64 = NODES as u64;

/// One node's questions.
struct Asker {
    schedule: Schedule,
    now: Instant,
    asked: u64,
    answers: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
}

impl Asker {
    fn new(many: u32) -> Self {
        let now = Instant::now();
        let mut schedule = Schedule::new("n0", NodePace::default(), now);
        for number in 1..=many {
            schedule.need(NodeNeed::Begins(format!("n{number}").into()), now);
        }
        Self { schedule, now, asked: 0, answers: BinaryHeap::new() }
    }

    /// Go on for a while, or until so many are answered. Returns how long that took, and how many questions.
    fn run(&mut self, time: Duration, until: u64) -> (Duration, u64) {
        let (start, before, mut answered) = (self.now, self.asked, 0);
        while self.now < start + time && answered < until {
            while let Some(question) = self.schedule.next(self.now) {
                self.asked += 1;
                self.answers.push(Reverse((self.now + ANSWER, question.name)));
            }
            let answer = self.answers.peek().map(|Reverse((at, _))| *at);
            let next = [answer, self.schedule.due(self.now)].into_iter().flatten().min();
            self.now = next.expect("the own node is asked for again");
            if answer.is_some_and(|at| at <= self.now)
                && let Some(Reverse((at, name))) = self.answers.pop()
            {
                self.schedule.answered(&name, false, at);
                answered += 1;
            }
        }
        (self.now - start, self.asked - before)
    }
}

/// Prints it.
pub(crate) fn traffic() {
    let object = objects::node(4_711);
    let (whole, read) = (event(&object) as u64, bytes(&object).len() as u64);
    let metadata = serde_json::json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"]});
    let metadata = event(&metadata) as u64;
    println!();
    println!("a node, in bytes: read {read}, an event {whole}, an event of metadata {metadata}");
    for (what, event) in [("whole", whole), ("metadata alone", metadata)] {
        let one = event * ALL / u64::from(STATUS);
        println!(
            "every node watches all, {what}: {} to one, {} to all; {NODES} watches; first list {} to one",
            rate(one),
            rate(one * ALL),
            size(usize::try_from(event * ALL).expect("bytes"))
        );
    }
    for many in MANY {
        println!("members on {many} other nodes");
        let one = whole * u64::from(many) / u64::from(STATUS);
        println!(
            "  a watch for each: {} to one, {} to all; {} watches",
            rate(one),
            rate(one * ALL),
            u64::from(many) * ALL
        );
        let mut node = Asker::new(many);
        let (first, asked) = node.run(DAY, u64::from(many) + 1);
        // The first times are spread by when each was learnt: let them go by.
        node.run(2 * DAY, u64::MAX);
        let (time, asked_a_day) = node.run(DAY, u64::MAX);
        let (day, own) = (time.as_secs(), time.as_secs() / NodePace::default().own.as_secs());
        println!(
            "  read one by one: {} to one, {} to all; {} reads a second of all nodes; each is read again after {} s \
             on average",
            rate(asked_a_day * read / day),
            rate(asked_a_day * read * ALL / day),
            asked_a_day * ALL / day,
            u64::from(many) * day / (asked_a_day - own).max(1)
        );
        println!(
            "    first time: {asked} reads, {} to one, done after {:.1} s",
            size(usize::try_from(asked * read).expect("bytes")),
            first.as_secs_f64()
        );
    }
}

fn rate(bytes: u64) -> String {
    bytes_a_second(usize::try_from(bytes).expect("bytes"))
}
