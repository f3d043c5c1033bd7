//! Frames from beyond the node through the programs that serve all networks.

use aya::maps::{HashMap, PerCpuHashMap};
use aya::programs::{TestRun as _, TestRunOptions};
use netferry_common::{CounterKey, Direction, Drops, Reason, Uplink, Wire, WireKey, counters, maps};

use super::bench::{Bench, ID};

/// What became of a frame from beyond the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Left to the host, unchanged.
    Host,
    /// Sent to an endpoint as this frame.
    In(Vec<u8>),
    /// Sent back as this frame.
    Back(Vec<u8>),
    /// Likewise, as the error about what was dropped.
    Refused(Reason, Vec<u8>),
    /// Dropped, and counted for this reason alone: at this key.
    Drop(Reason, u32),
}

/// Drops of an endpoint, of the network, and of none.
const PLACES: [u32; 3] = [ID, super::network::NETWORK | counters::NETWORK, counters::NETWORK];

impl Bench {
    /// Writes the way of a network beyond the node, and that frames on the loopback interface are of the network.
    pub fn uplink(&mut self, network: u32, uplink: Uplink) {
        let mut map = HashMap::<_, u32, Uplink>::try_from(self.map(maps::UPLINKS)).expect("a hash map");
        map.insert(network, uplink, 0).expect("room for an uplink");
        let mut map = HashMap::<_, WireKey, Wire>::try_from(self.map(maps::WIRES)).expect("a hash map");
        map.insert(WireKey { ifindex: 1, tag: 0 }, Wire { network }, 0).expect("room for a wire");
    }

    fn dropped_at(&mut self, endpoint: u32) -> Vec<u64> {
        let map = PerCpuHashMap::<_, CounterKey, Drops>::try_from(self.map(maps::DROPS)).expect("per CPU");
        let key = CounterKey { endpoint, direction: Direction::ToPod.number() };
        let values = map.get(&key, 0).map(|values| values.to_vec()).unwrap_or_default();
        (0..netferry_common::verdict::REASON_SLOTS)
            .map(|place| values.iter().map(|one| one.counts()[place]).sum())
            .collect()
    }

    /// Runs a frame from beyond the node through a program.
    pub fn enter(&mut self, program: &str, frame: &[u8]) -> Entry {
        let before = (self.traffic(Direction::ToPod), PLACES.map(|place| self.dropped_at(place)));
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = self.program(program).test_run(options).expect("it runs");
        out.truncate(result.data_size_out as usize);
        let after = (self.traffic(Direction::ToPod), PLACES.map(|place| self.dropped_at(place)));
        let mut drops = Vec::new();
        for (at, place) in PLACES.into_iter().enumerate() {
            for reason in Reason::ALL {
                let number = reason.number() as usize;
                if after.1[at][number] != before.1[at][number] {
                    assert_eq!(after.1[at][number], before.1[at][number] + 1);
                    drops.push((*reason, place));
                }
            }
        }
        let passed = after.0.packets - before.0.packets;
        assert!(drops.len() <= 1, "one drop has one reason, got {drops:?}");
        match (result.return_value.cast_signed(), drops.first(), passed) {
            (-1, None, 0) => {
                assert_eq!(out, frame, "what is left to the host is not changed");
                Entry::Host
            }
            (7, None, 1) => Entry::In(out),
            (7, None, 0) => Entry::Back(out),
            (7, Some((reason, ID)), 0) => Entry::Refused(*reason, out),
            (2, Some((reason, place)), 0) => Entry::Drop(*reason, *place),
            other => panic!("{program} did {other:?}"),
        }
    }
}
