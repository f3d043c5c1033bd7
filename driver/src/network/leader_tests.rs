use super::*;

const TIMING: Timing = Timing {
    duration: Duration::from_mins(1),
    renew: Duration::from_secs(15),
    give_up: Duration::from_secs(40),
    look: Duration::from_mins(2),
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

/// Take the Lease, as a server would store it.
fn write(candidate: &mut Candidate, lease: Option<&Lease>, now: Instant, clock: Timestamp) -> Lease {
    match candidate.look(lease, now, clock) {
        Step::Write(lease) => {
            candidate.won(&lease, now);
            *lease
        }
        Step::Wait(wait) => panic!("{} waits {wait:?}", candidate.identity),
    }
}

fn waits(candidate: &mut Candidate, lease: &Lease, now: Instant, clock: Timestamp) -> Duration {
    match candidate.look(Some(lease), now, clock) {
        Step::Wait(wait) => wait,
        Step::Write(_) => panic!("{} takes a Lease that is held", candidate.identity),
    }
}

#[test]
fn a_lease_is_taken_when_it_was_seen_unchanged_for_its_duration() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let (mut a, mut b) = (Candidate::new("l", "a", TIMING), Candidate::new("l", "b", TIMING));
    let first = write(&mut a, None, start, at(0));
    let spec = first.spec.clone().expect("a spec");
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("a"), Some(60)));
    assert_eq!((spec.lease_transitions, spec.acquire_time), (Some(0), Some(MicroTime(at(0)))));

    assert_eq!(waits(&mut b, &first, start, at(1)), TIMING.look);
    let second = write(&mut a, Some(&first), after(15), at(15));
    let spec = second.spec.clone().expect("a spec");
    assert_eq!((spec.acquire_time, spec.renew_time), (Some(MicroTime(at(0))), Some(MicroTime(at(15)))));
    // It has changed since b looked; b's own clock is an hour ahead, which takes nothing from anybody.
    assert_eq!(waits(&mut b, &second, after(70), at(3600)), TIMING.duration);
    assert!(a.leads(after(50)) && !a.leads(after(55)), "a stops before others may begin");
    assert_eq!(waits(&mut b, &second, after(129), at(129)), Duration::from_secs(1));
    let third = write(&mut b, Some(&second), after(130), at(130));
    assert_eq!(third.spec.as_ref().and_then(|spec| spec.lease_transitions), Some(1));
    assert!(b.leads(after(130)));
    // The former holder sees it, and waits.
    a.renewed = Some(after(129));
    assert_eq!(waits(&mut a, &third, after(131), at(131)), TIMING.look);
    assert!(!a.leads(after(131)));
}

#[test]
fn a_lease_that_is_given_back_is_free_at_once() {
    let start = Instant::now();
    let (mut a, mut b) = (Candidate::new("l", "a", TIMING), Candidate::new("l", "b", TIMING));
    let held = write(&mut a, None, start, at(0));
    assert_eq!(b.released(&held, at(1)), None);
    let released = a.released(&held, at(1)).expect("released");
    let taken = write(&mut b, Some(&released), start, at(2));
    assert_eq!(taken.spec.expect("a spec").lease_transitions, Some(1));
}

#[test]
fn a_restarted_holder_goes_on() {
    let start = Instant::now();
    let held = write(&mut Candidate::new("l", "a", TIMING), None, start, at(0));
    let mut again = Candidate::new("l", "a", TIMING);
    let renewed = write(&mut again, Some(&held), start, at(5)).spec.expect("a spec");
    assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(0), Some(MicroTime(at(0)))));
}
