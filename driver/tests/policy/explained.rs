//! What `policy explain` says of a flow, and what the programs do with its first frame: the same rule and the same reason, for
//! random policies on the same maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::{HashMap, MapData, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use etherparse::{IpNumber, PacketBuilder};
use ipnetwork::IpNetwork;
use netferry::datapath::policy::{
    Action, CompiledPolicy, Otherwise, Peer, Policy, Port, Protocol, Rule, Rules,
};
use netferry::datapath::{AyaDatapath, Datapath as _, EndpointSpec, NetworkMember};
use netferry_common::event::{DENY, OPEN};
use netferry_common::{Direction, ENDPOINT_GLOBAL, Event, Limit, LimitKey, Reason, limit, maps};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::world::{LINK, LINK_MAC, POD_V4, POD_V6, WIRE_MAC, World, able, ifindex, spec};
use super::{Arc, Nobody};

const ID: u32 = 5;

#[derive(Clone, Debug)]
struct Asked {
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    port: u16,
}

#[derive(Clone, Debug)]
struct Case {
    policy: Option<Policy>,
    ready: bool,
    isolated: bool,
    members: Vec<IpAddr>,
    asked: Vec<Asked>,
}

/// Few addresses and few ports, so that rules meet flows.
fn some_v4() -> impl Strategy<Value = Ipv4Addr> {
    (0_u32..8).prop_map(|low| Ipv4Addr::from_bits(0x0a00_0100 | low))
}

fn some_v6() -> impl Strategy<Value = Ipv6Addr> {
    (0_u128..8).prop_map(|low| Ipv6Addr::from_bits(0x2001_0db8 << 96 | 0x100 | low))
}

fn some_peer() -> impl Strategy<Value = IpAddr> {
    prop_oneof![some_v4().prop_map(IpAddr::V4), some_v6().prop_map(IpAddr::V6)]
}

fn some_cidr() -> impl Strategy<Value = IpNetwork> {
    let v4 = (some_v4(), prop_oneof![Just(0_u8), Just(24), 29_u8..=32]);
    let v6 = (some_v6(), prop_oneof![Just(0_u8), Just(64), 125_u8..=128]);
    let masked = |ip: IpAddr, bits| {
        let prefix = IpNetwork::new(ip, bits).expect("a prefix");
        IpNetwork::new(prefix.network(), bits).expect("a prefix")
    };
    prop_oneof![
        v4.prop_map(move |(ip, bits)| masked(ip.into(), bits)),
        v6.prop_map(move |(ip, bits)| masked(ip.into(), bits))
    ]
}

fn some_port() -> impl Strategy<Value = Port> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let ports = (protocol, 79_u16..84, 0_u16..4).prop_map(|(protocol, port, more)| Port {
        protocol,
        port: Some(port),
        end_port: (more > 0).then(|| port + more),
    });
    let whole = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Icmp), Just(Protocol::Any)];
    prop_oneof![2 => ports, 1 => whole.prop_map(|protocol| Port { protocol, port: None, end_port: None })]
}

fn some_rules() -> impl Strategy<Value = Rules> {
    let peers = prop::option::of(prop::collection::vec(
        some_cidr().prop_map(|cidr| Peer { cidr: Some(cidr), ..Peer::default() }),
        1..3,
    ));
    let ports = prop::option::of(prop::collection::vec(some_port(), 1..3));
    let rule = (any::<bool>(), peers, ports).prop_map(|(deny, peers, ports)| Rule {
        action: if deny { Action::Deny } else { Action::Allow },
        peers,
        ports,
    });
    let otherwise = prop::option::of(prop_oneof![Just(Otherwise::Network), Just(Otherwise::Deny)]);
    (otherwise, prop::collection::vec(rule, 0..6)).prop_map(|(otherwise, rules)| Rules { otherwise, rules })
}

fn some_case() -> impl Strategy<Value = Case> {
    let policy = (some_rules(), some_rules()).prop_map(|(ingress, egress)| Policy { ingress, egress });
    let protocol = prop_oneof![Just(6_u8), Just(17), Just(132), Just(1)];
    let asked =
        (any::<bool>(), some_peer(), protocol, 78_u16..86).prop_map(|(from_pod, peer, protocol, port)| {
            let direction = if from_pod { Direction::FromPod } else { Direction::ToPod };
            match (protocol, peer) {
                (1, IpAddr::V4(_)) => Asked { direction, peer, protocol: 1, port: 8 << 8 },
                (1, IpAddr::V6(_)) => Asked { direction, peer, protocol: 58, port: 128 << 8 },
                _ => Asked { direction, peer, protocol, port },
            }
        });
    (
        prop::option::weighted(0.9, policy),
        prop::bool::weighted(0.9),
        any::<bool>(),
        prop::collection::vec(some_peer(), 0..8),
        prop::collection::vec(asked, 24),
    )
        .prop_map(|(policy, ready, isolated, members, asked)| Case {
            policy,
            ready,
            isolated,
            members,
            asked,
        })
}

/// The first frame of a flow that was never seen: `nth` is its source port, or the id of its echoes.
fn frame(asked: &Asked, nth: u16) -> Vec<u8> {
    let from_pod = asked.direction == Direction::FromPod;
    let macs = if from_pod { (LINK_MAC, WIRE_MAC) } else { (WIRE_MAC, LINK_MAC) };
    let link = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    let ip = match asked.peer {
        IpAddr::V4(peer) => {
            let pod: Ipv4Addr = POD_V4.parse().expect("an address");
            let (from, to) = if from_pod { (pod, peer) } else { (peer, pod) };
            link.ipv4(from.octets(), to.octets(), 64)
        }
        IpAddr::V6(peer) => {
            let pod: Ipv6Addr = POD_V6.parse().expect("an address");
            let (from, to) = if from_pod { (pod, peer) } else { (peer, pod) };
            link.ipv6(from.octets(), to.octets(), 64)
        }
    };
    let mut frame = Vec::new();
    let written = match asked.protocol {
        6 => ip.tcp(nth, asked.port, 1, 1024).syn().write(&mut frame, &[]),
        17 => ip.udp(nth, asked.port).write(&mut frame, b"nfry"),
        1 => ip.icmpv4_echo_request(nth, 1).write(&mut frame, b"nfry"),
        58 => ip.icmpv6_echo_request(nth, 1).write(&mut frame, b"nfry"),
        _ => {
            // RFC 9260: the common header, and an INIT chunk of 20 bytes.
            let mut sctp = [nth.to_be_bytes(), asked.port.to_be_bytes()].concat();
            sctp.extend([0; 8]);
            sctp.extend([1, 0, 0, 20]);
            sctp.extend([1; 16]);
            return {
                ip.write(&mut frame, IpNumber::SCTP, &sctp).expect("a frame");
                frame
            };
        }
    };
    written.expect("a frame");
    frame
}

/// The programs of the endpoint once more, on the maps that the daemon has pinned.
struct Programs {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
}

impl Programs {
    fn load(world: &World) -> Self {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/netferry.o");
        let mut loader = EbpfLoader::new();
        loader.override_global(ENDPOINT_GLOBAL, &ID, true);
        for &name in maps::ALL {
            loader.map_pin_path(name, world.root.join("maps").join(name));
        }
        let mut ebpf = loader.load_file(object).expect("the object of `cargo xtask build-ebpf`");
        for name in ["link_egress", "link_ingress"] {
            let program = ebpf.program_mut(name).expect(name);
            <&mut SchedClassifier>::try_from(program).expect(name).load().expect(name);
        }
        let events = RingBuf::try_from(ebpf.take_map(maps::EVENTS).expect("the ring")).expect("a ring");
        Self { ebpf, events }
    }

    /// Without its limit, every drop is told of.
    fn tell_all(&mut self) {
        let limits = self.ebpf.map_mut(maps::LIMITS).expect("the limits");
        let mut limits = HashMap::<_, LimitKey, Limit>::try_from(limits).expect("a hash map");
        for direction in Direction::ALL {
            for kind in [limit::DENIES, limit::FLOWS] {
                let _ = limits.remove(&LimitKey { endpoint: ID, direction: direction.number(), kind });
            }
        }
    }

    /// Whether a frame may pass, and what was told about it.
    fn run(&mut self, asked: &Asked, frame: &[u8]) -> (bool, Vec<Event>) {
        let name = if asked.direction == Direction::FromPod { "link_egress" } else { "link_ingress" };
        let program: &SchedClassifier = self.ebpf.program(name).expect(name).try_into().expect(name);
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let answer = program.test_run(options).expect("a test run").return_value.cast_signed();
        assert!(matches!(answer, -1 | 2), "{asked:?}: {answer}");
        let mut events = Vec::new();
        while let Some(event) = self.events.next() {
            events.push(bytemuck::pod_read_unaligned(&event));
        }
        (answer == -1, events)
    }
}

fn check(programs: &mut Programs, datapath: &AyaDatapath, case: &Case, first: u16) {
    let network = if case.isolated { 7 } else { 0 };
    datapath.attach(ifindex(LINK), &EndpointSpec { network, ..spec(ID) }).expect("attach");
    for &address in &case.members {
        let member = NetworkMember { network: 7, address, endpoint: None, node: None, mac: WIRE_MAC };
        datapath.set_member(&member).expect("a member");
    }
    if let Some(policy) = &case.policy {
        let room = datapath.policy_room().expect("room");
        let policy = CompiledPolicy::new(policy, &Nobody, room).expect("a policy that fits");
        datapath.set_compiled(ID, &Arc::new(policy)).expect("a policy");
    }
    datapath.set_ready(ID, case.ready).expect("ready");
    programs.tell_all();
    for (nth, asked) in case.asked.iter().enumerate() {
        let said = datapath
            .explain(ID, asked.direction, asked.peer, asked.protocol, asked.port)
            .expect("an explanation");
        let nth = first + u16::try_from(nth).expect("few");
        let (passed, events) = programs.run(asked, &frame(asked, nth));
        let about = format!("{asked:?}: {said:?}, and {events:?}");
        assert_eq!(passed, said.denied.is_none(), "{about}");
        // An endpoint without policy on a wire follows no flows, and tells of none that passes.
        let follows = case.isolated || said.policy != 0 || said.denied.is_some();
        assert_eq!(events.len(), usize::from(follows), "{about}");
        for event in events {
            let reason = Reason::ALL.iter().find(|reason| reason.number() == event.reason);
            let denied = (event.kind == DENY).then(|| reason.map(|reason| reason.name())).flatten();
            assert!(matches!(event.kind, OPEN | DENY), "{about}");
            assert_eq!((denied, event.rule), (said.denied, said.rule.unwrap_or(0)), "{about}");
        }
    }
    for &address in &case.members {
        datapath.remove_member(7, address).expect("remove a member");
    }
    datapath.detach(ID).expect("detach");
}

#[test]
fn what_explain_says_is_what_the_programs_do() {
    if !able("what_explain_says_is_what_the_programs_do") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let cases = std::cell::Cell::new(0_u16);
    let programs = std::cell::RefCell::new(Programs::load(&world));
    TestRunner::new(config)
        .run(&some_case(), |case| {
            let nth = cases.replace(cases.get().wrapping_add(1));
            // Ports of flows are never used again, also while a failure is made smaller.
            check(&mut programs.borrow_mut(), &datapath, &case, 1024 + nth % 2048 * 24);
            Ok(())
        })
        .expect("both say the same");
}
