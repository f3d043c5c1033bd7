//! What the programs are told: networks, members, policies. The oracle reads the same constants.

use aya::EbpfLoader;
use aya::maps::HashMap;
use aya::programs::{TestRun as _, TestRunOptions};
use netferry::datapath::policy::{Action, FlatRule, Otherwise, Prefix, Room, compile};
use netferry_common::endpoint::READY;
use netferry_common::flow::TRACK;
use netferry_common::policy::{ALLOW, DENY, DENY_FROM_POD, DENY_TO_POD, RULE_BITS_ANY, RULE_BITS_PROTOCOL};
use netferry_common::{
    Addr, CounterKey, Direction, Drops, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Member, Reason,
    RuleKey, maps,
};

use super::bench::{Bench, ID, Outcome, programs};
use super::frames::{Host, OTHER, PEER, POD};

/// The isolated network.
pub const NETWORK: u32 = 5;
/// The policy of the pod, where it has one.
pub const POD_POLICY: u32 = 21;
/// The policy of the peer, likewise.
pub const PEER_POLICY: u32 = 22;

/// A member whose endpoint is not ready.
pub const UNREADY: Host = Host { mac: [2, 0, 0, 0, 0, 13], v4: [192, 0, 2, 13], v6: at(13) };
/// On no network.
pub const STRANGER: Host = Host { mac: [2, 0, 0, 0, 0, 77], v4: [192, 0, 2, 77], v6: at(77) };

const fn at(last: u8) -> [u8; 16] {
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// Members and their endpoints; [`OTHER`] is on another node.
pub const MEMBERS: [(Host, u32); 4] = [(POD, ID), (PEER, 9), (OTHER, 0), (UNREADY, 13)];

/// What the endpoint under test is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A moved link, addresses checked and no more.
    Wire,
    /// A host end, likewise.
    WireHostEnd,
    /// A moved link, flows tracked, everything may open.
    WireTracked,
    /// A moved link with policy.
    WirePolicy,
    /// On the isolated network.
    Isolated,
    /// Likewise, with policy on both sides.
    IsolatedPolicy,
}

impl Setting {
    pub const ALL: [Self; 6] = [
        Self::Wire,
        Self::WireHostEnd,
        Self::WireTracked,
        Self::WirePolicy,
        Self::Isolated,
        Self::IsolatedPolicy,
    ];

    pub fn isolated(self) -> bool {
        matches!(self, Self::Isolated | Self::IsolatedPolicy)
    }

    pub fn host_end(self) -> bool {
        self.isolated() || self == Self::WireHostEnd
    }

    pub fn tracked(self) -> bool {
        !matches!(self, Self::Wire | Self::WireHostEnd)
    }

    pub fn policy(self) -> bool {
        matches!(self, Self::WirePolicy | Self::IsolatedPolicy)
    }

    /// Rules and default for flows of that direction, as the pod's (or else the peer's) endpoint sees it.
    pub fn rules(self, of_pod: bool, direction: Direction) -> (Vec<FlatRule>, Otherwise) {
        if !self.policy() {
            return (Vec::new(), Otherwise::Network);
        }
        let rule = |rule, action, peer: Option<&str>, protocol, ports| FlatRule {
            rule,
            action,
            peer: peer.map(|peer| Prefix::from(peer.parse::<ipnetwork::IpNetwork>().unwrap())),
            protocol,
            ports,
        };
        let every = || 0..=u16::MAX;
        match (of_pod, direction) {
            (true, Direction::FromPod) => (
                vec![
                    rule(1, Action::Allow, Some("192.0.2.0/24"), Some(6), 1..=1023),
                    rule(2, Action::Deny, Some("192.0.2.9/32"), Some(6), 443..=450),
                    rule(3, Action::Allow, Some("2001:db8::/32"), None, every()),
                    rule(4, Action::Deny, Some("2001:db8::8/125"), Some(17), 53..=53),
                    rule(5, Action::Allow, None, Some(1), 0x0800..=0x08ff),
                    rule(6, Action::Allow, Some("192.0.2.77/32"), Some(17), every()),
                    rule(7, Action::Deny, None, Some(58), 0x8001..=0x80ff),
                    rule(8, Action::Allow, Some("224.0.0.0/4"), None, every()),
                ],
                Otherwise::Deny,
            ),
            (true, Direction::ToPod) => (
                vec![
                    rule(9, Action::Deny, Some("192.0.2.11/32"), None, every()),
                    rule(10, Action::Allow, Some("192.0.2.64/26"), Some(6), 80..=80),
                    rule(11, Action::Deny, Some("2001:db8::9/128"), Some(6), 1000..=2000),
                    rule(12, Action::Deny, None, Some(132), every()),
                ],
                Otherwise::Network,
            ),
            (false, Direction::ToPod) => (
                vec![
                    rule(1, Action::Allow, Some("192.0.2.7/32"), Some(6), 0..=500),
                    rule(2, Action::Allow, Some("2001:db8::7/128"), None, every()),
                    rule(3, Action::Deny, None, Some(17), 4000..=4095),
                    rule(4, Action::Deny, Some("2001:db8::/64"), Some(132), every()),
                ],
                Otherwise::Deny,
            ),
            (false, Direction::FromPod) => (Vec::new(), Otherwise::Deny),
        }
    }
}

/// The programs, and the setting they are in.
pub struct World {
    bench: Bench,
    pub setting: Setting,
    drops: [u64; 2],
    by_reason: [Vec<u64>; 2],
}

impl World {
    pub fn new() -> Self {
        let mut loader = EbpfLoader::new();
        // Small, as they are emptied after each frame.
        let mut bench =
            Bench::load_with(loader.map_max_entries(maps::FLOWS, 64).map_max_entries(maps::FRAGMENTS, 64));
        bench.set_ready();
        for (host, endpoint) in MEMBERS {
            let member = Member::new(endpoint, host.mac);
            bench.member(NETWORK, Addr::v4(host.v4), member);
            bench.member(NETWORK, Addr::v6(host.v6), member);
        }
        for (of_pod, policy) in [(true, POD_POLICY), (false, PEER_POLICY)] {
            for direction in Direction::ALL {
                install(&mut bench, policy, direction, &Setting::WirePolicy.rules(of_pod, direction).0);
            }
        }
        let by_reason = Direction::ALL.map(|direction| bench.drops(direction));
        let mut world = Self { bench, setting: Setting::Wire, drops: [0; 2], by_reason };
        world.set(Setting::Wire);
        world
    }

    /// Puts the endpoint into a setting.
    pub fn set(&mut self, setting: Setting) {
        self.setting = setting;
        let denies = |of_pod| {
            let denies = |direction| setting.rules(of_pod, direction).1 == Otherwise::Deny;
            let from = if denies(Direction::FromPod) { DENY_FROM_POD } else { 0 };
            from | if denies(Direction::ToPod) { DENY_TO_POD } else { 0 }
        };
        let track = if setting == Setting::WireTracked { TRACK } else { 0 };
        let record = |host: Host, flags, policy| Endpoint {
            flags,
            network: if setting.isolated() { NETWORK } else { 0 },
            mtu: 1500,
            policy: if setting.policy() { policy } else { 0 },
            // The test run looks no interface up, but 0 is none.
            ifindex: 1,
            mac: host.mac,
            pad: [0; 2],
        };
        self.bench.write(record(POD, READY | track | denies(true), POD_POLICY));
        self.bench.write_other(9, record(PEER, READY | denies(false), PEER_POLICY));
        self.bench.write_other(13, record(UNREADY, 0, 0));
    }

    /// Runs a frame. Flows and fragments stay until [`Self::forget`]. `None`: the kernel does not run such a short one.
    pub fn run(&mut self, direction: Direction, frame: &[u8]) -> Option<Outcome> {
        let program = programs(direction)[usize::from(!self.setting.host_end())];
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = match self.bench.program(program).test_run(options) {
            Ok(result) => result,
            Err(_) if is_refused(frame) => return None,
            Err(error) => panic!("{program} on {}: {error:?}", super::hex(frame)),
        };
        out.truncate(result.data_size_out as usize);
        let outcome = match result.return_value.cast_signed() {
            -1 => {
                assert_eq!(out, frame, "a frame that passes is not changed");
                Outcome::Pass
            }
            7 => Outcome::Redirect(out),
            2 => Outcome::Drop(self.dropped(direction)),
            other => panic!("{program} returned {other} on {}", super::hex(frame)),
        };
        Some(outcome)
    }

    fn dropped(&mut self, direction: Direction) -> Reason {
        let before = &self.by_reason[direction.number() as usize];
        let map = aya::maps::PerCpuHashMap::<_, CounterKey, Drops>::try_from(self.bench.map(maps::DROPS));
        let key = CounterKey { endpoint: ID, direction: direction.number() };
        let mut sum = vec![0; before.len()];
        for one in map.unwrap().get(&key, 0).unwrap().iter() {
            sum.iter_mut().zip(one.counts()).for_each(|(sum, count)| *sum += count);
        }
        let raised: Vec<u32> = (0u32..)
            .zip(sum.iter().zip(before))
            .filter(|(_, (new, old))| new != old)
            .map(|(at, _)| at)
            .collect();
        self.drops[direction.number() as usize] += 1;
        assert_eq!(
            sum.iter().sum::<u64>(),
            self.drops[direction.number() as usize],
            "a drop is counted once"
        );
        assert_eq!(raised.len(), 1, "one drop has one reason");
        self.by_reason[direction.number() as usize] = sum;
        Reason::from_number(raised[0]).unwrap()
    }

    /// Removes all flows and fragments.
    pub fn forget(&mut self) {
        if !self.setting.tracked() {
            return;
        }
        let mut flows = HashMap::<_, FlowKey, Flow>::try_from(self.bench.map(maps::FLOWS)).unwrap();
        for key in flows.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            flows.remove(&key).unwrap();
        }
        let mut parts =
            HashMap::<_, FragmentKey, Fragment>::try_from(self.bench.map(maps::FRAGMENTS)).unwrap();
        for key in parts.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            parts.remove(&key).unwrap();
        }
    }
}

/// Whether the kernel refuses to run it: less than the header its ethertype says.
fn is_refused(frame: &[u8]) -> bool {
    let header = match frame.get(12..14) {
        Some([0x08, 0]) => 20,
        Some([0x86, 0xdd]) => 40,
        // It wants one byte after the Ethernet header.
        _ => 1,
    };
    frame.len() < 14 + header
}

fn install(bench: &mut Bench, policy: u32, direction: Direction, rules: &[FlatRule]) {
    let compiled = compile(rules, Room { peers: 1000, rules: 1000 }).unwrap();
    for (prefix, class) in compiled.peers {
        bench.peer(policy, direction, Addr::v6(prefix.octets()), prefix.length().into(), class);
    }
    for entry in compiled.rules {
        let (protocol, port, bits) = entry.block.map_or((0, 0, RULE_BITS_ANY), |(protocol, port, bits)| {
            (protocol, port, RULE_BITS_PROTOCOL + u32::from(bits))
        });
        let direction = u8::try_from(direction.number()).unwrap();
        let key = RuleKey { policy, class: entry.class, direction, protocol, port: port.to_be_bytes() };
        bench.rule(bits, key, if entry.action == Action::Allow { ALLOW } else { DENY }, entry.rule);
    }
}
