use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;

const OWN: &str = "n0";

fn name(number: u8) -> Arc<str> {
    format!("n{number}").into()
}

fn begins(number: u8) -> NodeNeed {
    NodeNeed::Begins(name(number))
}

/// A schedule on a clock that stands still until it is told.
struct Clock {
    schedule: Schedule,
    now: Instant,
    pace: NodePace,
}

impl Clock {
    fn new(pace: NodePace) -> Self {
        let now = Instant::now();
        Self { schedule: Schedule::new(OWN, pace, now), now, pace }
    }

    fn need(&mut self, need: NodeNeed) {
        self.schedule.need(need, self.now);
    }

    /// Everybody who may be asked now.
    fn all(&mut self) -> Vec<(String, bool)> {
        let asked = std::iter::from_fn(|| self.schedule.next(self.now));
        asked.map(|question| (question.name.to_string(), question.fresh)).collect()
    }

    fn asks(&mut self, expected: &[(&str, bool)]) {
        let expected: Vec<_> = expected.iter().map(|(name, fresh)| ((*name).to_owned(), *fresh)).collect();
        assert_eq!(self.all(), expected);
    }

    fn answer(&mut self, number: u8) {
        assert_eq!(self.schedule.answered(&name(number), false, self.now), (0, true));
    }

    /// Go on to when somebody may be asked next. Returns how long that is.
    fn skip(&mut self) -> Duration {
        let due = self.schedule.due(self.now).expect("somebody to ask");
        let waited = due.saturating_duration_since(self.now);
        self.now += waited;
        waited
    }

    /// Everything is answered at once, until nobody is to be asked before `time` has passed. Returns the questions.
    fn run(&mut self, time: Duration) -> Vec<(Duration, String)> {
        let (start, mut asked) = (self.now, Vec::new());
        loop {
            while let Some(question) = self.schedule.next(self.now) {
                asked.push((self.now - start, question.name.to_string()));
                self.schedule.answered(&question.name, false, self.now);
            }
            match self.schedule.due(self.now) {
                Some(due) if due <= start + time => self.now = due,
                _ => break,
            }
        }
        self.now = start + time;
        asked
    }
}

fn within(time: Duration, of: Duration) -> bool {
    time >= of.mul_f64(0.75) && time <= of.mul_f64(1.25)
}

#[test]
fn a_node_is_asked_for_once_and_again_after_a_while() {
    let mut clock = Clock::new(NodePace { own: Duration::from_hours(9), ..NodePace::default() });
    clock.need(begins(1));
    clock.need(begins(1));
    clock.asks(&[("n0", false), ("n1", false)]);
    clock.answer(0);
    clock.answer(1);
    clock.need(begins(1));
    clock.asks(&[]);
    let waited = clock.skip();
    assert!(within(waited, clock.pace.refresh), "{waited:?}");
    clock.asks(&[("n1", false)]);
    // While it is asked for, nobody asks again.
    assert_eq!(clock.schedule.due(clock.now).map(|due| due > clock.now + clock.pace.refresh), Some(true));
}

#[test]
fn the_own_node_is_asked_for_more_often_and_never_forgotten() {
    let mut clock = Clock::new(NodePace::default());
    clock.need(NodeNeed::Ends(name(0)));
    clock.asks(&[("n0", false)]);
    clock.answer(0);
    let waited = clock.skip();
    assert!(within(waited, clock.pace.own), "{waited:?}");
    clock.asks(&[("n0", false)]);
}

#[test]
fn nobody_asks_for_a_node_without_members() {
    let mut clock = Clock::new(NodePace::default());
    clock.need(begins(1));
    clock.need(begins(2));
    clock.need(NodeNeed::Ends(name(2)));
    clock.asks(&[("n0", false), ("n1", false)]);
    clock.need(NodeNeed::Ends(name(1)));
    assert_eq!(clock.schedule.answered(&name(1), false, clock.now), (0, false), "too late");
    clock.answer(0);
    let asked = clock.run(Duration::from_hours(3));
    assert!(asked.iter().all(|(_, name)| name == OWN), "{asked:?}");
    // The answer to the first question is not that to the second.
    clock.need(begins(1));
    clock.asks(&[("n1", false)]);
    clock.need(NodeNeed::Ends(name(1)));
    clock.need(begins(1));
    assert_eq!(clock.schedule.answered(&name(1), false, clock.now), (0, false));
    clock.asks(&[("n1", false)]);
    clock.answer(1);
}

#[test]
fn news_have_a_node_asked_for_past_the_caches() {
    let mut clock = Clock::new(NodePace { own: Duration::from_hours(9), ..NodePace::default() });
    clock.need(begins(1));
    clock.asks(&[("n0", false), ("n1", false)]);
    // It is being asked for.
    clock.need(NodeNeed::News(name(1)));
    clock.answer(0);
    clock.answer(1);
    clock.now += Duration::from_secs(10);
    clock.asks(&[]);
    // Its answer is young.
    clock.need(NodeNeed::News(name(1)));
    clock.need(NodeNeed::News(name(1)));
    clock.asks(&[]);
    assert_eq!(clock.skip(), clock.pace.fresh.checked_sub(Duration::from_secs(10)).unwrap());
    clock.asks(&[("n1", true)]);
    // It was asked before that happened: the answer may be of before, too.
    clock.now += Duration::from_secs(1);
    clock.need(NodeNeed::News(name(1)));
    clock.answer(1);
    assert_eq!(clock.skip(), clock.pace.fresh);
    clock.asks(&[("n1", true)]);
    clock.answer(1);
    // The answer is old.
    clock.now += Duration::from_mins(1);
    clock.need(NodeNeed::News(name(1)));
    clock.asks(&[("n1", true)]);
    clock.answer(1);
    assert!(within(clock.skip(), clock.pace.refresh));
    clock.need(NodeNeed::News(name(7)));
    clock.asks(&[("n1", false)]);
}

#[test]
fn a_node_that_is_gone_is_asked_for_again() {
    let mut clock = Clock::new(NodePace { own: Duration::from_hours(9), ..NodePace::default() });
    clock.need(begins(1));
    clock.all();
    clock.answer(0);
    assert_eq!(clock.schedule.answered(&name(1), true, clock.now), (0, true));
    let waited = clock.skip();
    assert!(within(waited, clock.pace.gone), "{waited:?}");
    clock.asks(&[("n1", false)]);
}

#[test]
fn many_nodes_are_asked_for_in_a_burst_and_then_one_after_the_other() {
    let mut clock = Clock::new(NodePace { own: Duration::from_hours(99), ..NodePace::default() });
    for number in 1..=4000_u16 {
        clock.need(NodeNeed::Begins(format!("n{number}").into()));
    }
    let asked = clock.run(Duration::from_secs(100));
    let at_once = asked.iter().filter(|(at, _)| at.is_zero()).count();
    assert_eq!(at_once, clock.pace.burst as usize);
    assert_eq!(asked.len(), 4001);
    let last = asked[4000].0;
    assert_eq!(last, clock.pace.spacing * (4001 - clock.pace.burst));
    // Later one each five seconds, on average.
    clock.run(Duration::from_hours(24));
    let day = clock.run(Duration::from_hours(24));
    let rate = clock.pace.each.as_secs_f64() * f64::from(u32::try_from(day.len()).unwrap()) / (24.0 * 3600.0);
    assert!((0.85..1.15).contains(&rate), "{rate}");
}

#[test]
fn after_failures_everybody_waits_longer_each_time() {
    let mut clock = Clock::new(NodePace { open: 1, ..NodePace::default() });
    clock.need(begins(1));
    let mut expected = clock.pace.retry;
    for failures in 1..12 {
        let question = clock.schedule.next(clock.now).expect("somebody");
        assert_eq!(clock.schedule.next(clock.now), None, "one at a time");
        assert_eq!(clock.schedule.failed(&question.name, clock.now), failures);
        assert_eq!(clock.schedule.next(clock.now), None);
        let waited = clock.skip();
        assert!(waited >= expected.mul_f64(0.75), "{failures}: {waited:?}");
        // A node's own pause and that of all are spread apart.
        assert!(waited <= clock.pace.longest.mul_f64(1.25), "{failures}: {waited:?}");
        expected = (expected * 2).min(clock.pace.longest);
    }
    let question = clock.schedule.next(clock.now).expect("somebody");
    assert_eq!(clock.schedule.answered(&question.name, false, clock.now), (11, true));
}

#[test]
fn one_that_fails_for_itself_keeps_nobody_else_waiting() {
    let mut clock = Clock::new(NodePace { own: Duration::from_hours(9), ..NodePace::default() });
    clock.need(begins(1));
    clock.asks(&[("n0", false), ("n1", false)]);
    clock.schedule.failed(&name(1), clock.now);
    assert_eq!(clock.schedule.answered(&name(0), false, clock.now), (1, true));
    clock.need(begins(2));
    clock.asks(&[("n2", false)]);
    clock.answer(2);
    assert!(within(clock.skip(), clock.pace.retry));
    clock.asks(&[("n1", false)]);
    clock.answer(1);
    // News do not shorten its pause.
    clock.now += Duration::from_mins(1);
    clock.need(NodeNeed::News(name(1)));
    clock.asks(&[("n1", true)]);
    clock.schedule.failed(&name(1), clock.now);
    assert_eq!(clock.schedule.answered(&name(7), false, clock.now), (1, false));
    clock.need(NodeNeed::News(name(1)));
    clock.asks(&[]);
    assert!(within(clock.skip(), clock.pace.retry));
    clock.asks(&[("n1", true)]);
}

#[derive(Clone, Debug)]
enum Step {
    Need(u8, u8),
    Wait(u64),
    Answer(usize, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u8, 0..12_u8).prop_map(|(kind, number)| Step::Need(kind, number)),
        6 => prop_oneof![0..50_u64, 0..120_000_u64].prop_map(Step::Wait),
        8 => (0..4_usize, 0..3_u8).prop_map(|(which, how)| Step::Answer(which, how)),
    ]
}

proptest! {
    /// Whatever comes in whatever order: who is needed is asked for in the end, nobody else is, and never too many at a
    /// time.
    #[test]
    fn who_is_needed_is_asked_for(steps in prop::collection::vec(step(), 1..200)) {
        let pace = NodePace { burst: 3, open: 2, ..NodePace::default() };
        let mut clock = Clock::new(pace);
        let mut needed = std::collections::BTreeSet::from([name(0)]);
        let (mut open, mut asked) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Need(0, number) => {
                    needed.insert(name(number));
                    clock.need(begins(number));
                }
                Step::Need(1, number) => clock.need(NodeNeed::News(name(number))),
                Step::Need(_, number) => {
                    if number != 0 {
                        needed.remove(&name(number));
                    }
                    clock.need(NodeNeed::Ends(name(number)));
                }
                Step::Wait(millis) => clock.now += Duration::from_millis(millis),
                Step::Answer(which, how) if which < open.len() => {
                    let name: Arc<str> = open.swap_remove(which);
                    match how {
                        0 => drop(clock.schedule.failed(&name, clock.now)),
                        how => drop(clock.schedule.answered(&name, how == 1, clock.now)),
                    }
                }
                Step::Answer(..) => {}
            }
            while let Some(question) = clock.schedule.next(clock.now) {
                prop_assert!(needed.contains(&question.name));
                open.push(question.name);
                asked.push(clock.now);
            }
            prop_assert!(open.len() <= pace.open);
        }
        for (first, at) in asked.iter().enumerate() {
            for (many, later) in asked[first..].iter().enumerate() {
                let allowed = (*later - *at).as_millis() / pace.spacing.as_millis() + u128::from(pace.burst);
                prop_assert!(many as u128 <= allowed, "{many} questions at a time");
            }
        }
        for name in open {
            clock.schedule.answered(&name, false, clock.now);
        }
        let names: std::collections::BTreeSet<Arc<str>> =
            clock.run(Duration::from_hours(1)).into_iter().map(|(_, name)| name.into()).collect();
        prop_assert_eq!(names, needed);
    }
}

type Answers = Arc<Mutex<BTreeMap<String, Result<u8, ClusterError>>>>;

fn unavailable() -> ClusterError {
    ClusterError::Unavailable { action: "read".to_owned(), source: "injected".into() }
}

/// Answers what is in the table; about others it says that they are not there.
fn ask(answers: &Answers) -> Ask {
    let answers = Arc::clone(answers);
    Box::new(move |question| {
        let name = question.name.to_string();
        let answer = match answers.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            Some(Ok(last)) => Ok(NodeFacts { name, address: Some(IpAddr::from([192, 0, 2, *last])) }),
            Some(Err(_)) => Err(unavailable()),
            None => Err(ClusterError::NotFound { kind: "Node", name }),
        };
        std::future::ready(answer).boxed()
    })
}

async fn next(stream: &mut BoxStream<'static, Seen<NodeFacts, String>>) -> (String, Option<u8>) {
    let seen = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
    match seen.expect("within 20 s").expect("it goes on") {
        Seen::Is(NodeFacts { name, address: Some(IpAddr::V4(address)) }) => (name, Some(address.octets()[3])),
        Seen::Gone(name) => (name, None),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_nodes_say_comes_and_an_error_says_nothing() {
    let answers: Answers = Arc::default();
    let set = |name: &str, answer| drop(answers.lock().expect("answers").insert(name.to_owned(), answer));
    set("n0", Ok(10));
    set("n1", Err(unavailable()));
    set("n2", Ok(12));
    let (needs, needed) = mpsc::unbounded_channel();
    let pace = NodePace {
        own: Duration::from_hours(1),
        refresh: Duration::from_hours(1),
        fresh: Duration::ZERO,
        retry: Duration::from_millis(1),
        ..NodePace::default()
    };
    let mut stream = asked(OWN, needed, ask(&answers), pace);
    assert_eq!(next(&mut stream).await, ("n0".to_owned(), Some(10)));
    for number in 1..4 {
        needs.send(begins(number)).expect("it listens");
    }
    // The first one fails, and is not heard of.
    let both = BTreeMap::from([next(&mut stream).await, next(&mut stream).await]);
    assert_eq!(both, BTreeMap::from([("n2".to_owned(), Some(12)), ("n3".to_owned(), None)]));
    set("n1", Ok(11));
    assert_eq!(next(&mut stream).await, ("n1".to_owned(), Some(11)));
    set("n2", Ok(99));
    needs.send(NodeNeed::News(name(2))).expect("it listens");
    assert_eq!(next(&mut stream).await, ("n2".to_owned(), Some(99)));
    // Nobody needs others any more: that is no end.
    drop(needs);
    assert!(tokio::time::timeout(Duration::from_millis(50), stream.next()).await.is_err());
}
