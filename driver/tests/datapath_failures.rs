//! Failures injected into the datapath. A binary of its own: fail points are the whole process's.
#![cfg(feature = "failpoints")]
#![allow(missing_docs, reason = "a test binary")]

#[path = "datapath/world.rs"]
mod world;

use netferry::datapath::Datapath as _;
use world::{LINK, World, able, ifindex, spec};

#[test]
fn a_failure_at_any_step_of_attach_is_undone() {
    if !able("a_failure_at_any_step_of_attach_is_undone") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let here = ifindex(LINK);
    for step in ["written", "ingress", "egress"] {
        let point = format!("datapath::attach::{step}");
        let scenario = fail::FailScenario::setup();
        fail::cfg(&point, "return").unwrap();
        let failed = datapath.attach(here, &spec(5)).unwrap_err().to_string();
        scenario.teardown();
        assert!(failed.contains(step), "{failed}");
        assert_eq!(datapath.endpoints().unwrap(), [0_u32; 0], "{step}");
        assert_eq!(datapath.foreign_programs(here).unwrap(), [], "{step}");
        assert!(!world.root.join("links/5").exists(), "{step}");
    }
    datapath.attach(here, &spec(5)).unwrap();
}
