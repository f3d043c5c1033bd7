//! What holds for whatever an attach makes or moves: a failure leaves nothing behind.

use super::*;

/// Each change of a link, and each call of the programs, fails once: all is home as before, and the next attach succeeds.
pub(super) async fn every_failure_is_undone(claims: fn(&World)) {
    let mut failures = 0;
    loop {
        let world = World::new();
        claims(&world);
        let before = world.links.links_in(&Namespace::Host);
        world.links.fail_change(failures);
        if world.attacher.attach(&sandbox("s1", "web")).await.is_ok() {
            break;
        }
        world.assert_all_home(&before, &format!("change {failures} failed"));
        world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
        failures += 1;
    }
    assert!(failures > 30, "only {failures} changes were tried");
    for verb in [Verb::Endpoints, Verb::Attach, Verb::Verify, Verb::SetReady] {
        // Numbers are read from the datapath once, by two calls.
        for nth in 0..if verb == Verb::Endpoints { 2 } else { 4 } {
            let world = World::new();
            claims(&world);
            let before = world.links.links_in(&Namespace::Host);
            world.datapath.fail_after(verb, nth, 1);
            world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err();
            world.assert_all_home(&before, &format!("call {nth} of {verb:?} failed"));
        }
    }
}
