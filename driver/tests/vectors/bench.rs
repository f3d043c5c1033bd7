//! The real object in the real kernel, run on one frame at a time.

use std::path::PathBuf;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use netferry_common::endpoint::{ADDR_BROADCAST, ADDR_OWN, READY};
use netferry_common::policy::PEER_BITS;
use netferry_common::{
    Addr, Address, AddressKey, CounterKey, Direction, Drops, ENDPOINT_GLOBAL, Endpoint, Event, Fast, Flow,
    FlowKey, Limit, LimitKey, Member, MemberKey, Peer, PeerKey, Reason, Rule, RuleKey, Slot, Traffic, maps,
    slot,
};

use super::frames::POD;

/// Id of the endpoint under test.
pub const ID: u32 = 7;

/// What the kernel did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Let through, unchanged.
    Pass,
    /// Sent on to an interface as this frame.
    Redirect(Vec<u8>),
    /// Dropped, and counted for this reason alone.
    Drop(Reason),
    /// Likewise, and this error sent back about it.
    Refuse(Reason, Vec<u8>),
}

/// The programs of one way a frame can go.
pub fn programs(direction: Direction) -> [&'static str; 2] {
    match direction {
        Direction::FromPod => ["from_pod", "link_egress"],
        Direction::ToPod => ["to_pod", "link_ingress"],
    }
}

/// The clock of the programs: since boot.
pub fn uptime() -> std::time::Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock").into()
}

/// Where `cargo xtask build-ebpf` puts the object.
pub fn object() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/netferry.o");
    assert!(path.exists(), "{} is missing: run `cargo xtask build-ebpf`", path.display());
    path
}

/// All programs, for one endpoint with maps of their own. Each is loaded when it is first run.
pub struct Bench {
    pub ebpf: Ebpf,
}

/// Has the kernel look at a program, if it did not yet.
pub fn load(program: &mut Program, name: &str) {
    if program.fd().is_ok() {
        return;
    }
    let result = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        // Needs the kernel's type information, and is loaded where it is used.
        Program::LsmCgroup(_) => Ok(()),
        _ => panic!("{name}: a program of another kind"),
    };
    result.unwrap_or_else(|error| panic!("{name}: {error:?}"));
}

impl Bench {
    /// Makes the maps; the endpoint is in none of them yet.
    pub fn load() -> Self {
        Self::load_with(&mut EbpfLoader::new())
    }

    /// Likewise, by a loader that was told more.
    pub fn load_with(loader: &mut EbpfLoader<'_>) -> Self {
        let loader = loader.override_global(ENDPOINT_GLOBAL, &ID, true);
        Self { ebpf: loader.load_file(object()).expect("the object loads") }
    }

    /// Likewise, with the pod's endpoint ready.
    pub fn ready() -> Self {
        let mut bench = Self::load();
        bench.set_ready();
        bench
    }

    /// Makes the pod's endpoint ready, with its addresses.
    pub fn set_ready(&mut self) {
        self.set_endpoint(READY);
        self.own(Addr::v4(POD.v4), ADDR_OWN);
        self.own(Addr::v4([192, 0, 2, 255]), ADDR_BROADCAST);
        self.own(Addr::v6(POD.v6), ADDR_OWN);
        self.own(Addr::link_local(POD.mac), ADDR_OWN);
    }

    /// Writes the endpoint's record.
    pub fn set_endpoint(&mut self, flags: u32) {
        self.write(Endpoint { flags, ..Endpoint::default() });
    }

    /// Writes one of the endpoint's addresses.
    pub fn own(&mut self, addr: Addr, flags: u32) {
        let mut map =
            HashMap::<_, AddressKey, Address>::try_from(self.map(maps::ADDRESSES)).expect("a hash map");
        map.insert(AddressKey { endpoint: ID, addr }, Address { flags, prefix: 24 }, 0).expect("room");
    }

    /// Writes the endpoint's record as given.
    pub fn write(&mut self, endpoint: Endpoint) {
        self.write_other(ID, Endpoint { mac: POD.mac, mtu: 1500, ..endpoint });
    }

    /// Writes the record of another endpoint.
    pub fn write_other(&mut self, id: u32, endpoint: Endpoint) {
        let mut map = HashMap::<_, u32, Endpoint>::try_from(self.map(maps::ENDPOINTS)).expect("a hash map");
        map.insert(id, endpoint, 0).expect("room for an endpoint");
        let mut map = Array::<_, Slot>::try_from(self.map(maps::SLOTS)).expect("an array");
        map.set(slot::of(id), Slot::new(id, &endpoint), 0).expect("a slot of its own");
    }

    /// Writes a prefix of a policy.
    pub fn peer(&mut self, policy: u32, direction: Direction, addr: Addr, bits: u32, class: u32) {
        let mut map = LpmTrie::<_, PeerKey, Peer>::try_from(self.map(maps::PEERS)).expect("a trie");
        let key = PeerKey { policy, direction: direction.number(), addr };
        map.insert(&Key::new(PEER_BITS + bits, key), Peer { class }, 0).expect("room for a prefix");
    }

    /// Writes a block of ports of a policy.
    pub fn rule(&mut self, bits: u32, key: RuleKey, action: u32, rule: u32) {
        let mut map = LpmTrie::<_, RuleKey, Rule>::try_from(self.map(maps::RULES)).expect("a trie");
        map.insert(&Key::new(bits, key), Rule { action, rule }, 0).expect("room for a rule");
    }

    /// Writes an address of a network.
    pub fn member(&mut self, network: u32, addr: Addr, member: Member) {
        let mut map = HashMap::<_, MemberKey, Member>::try_from(self.map(maps::MEMBERS)).expect("a hash map");
        map.insert(MemberKey { network, addr }, member, 0).expect("room for a member");
    }

    /// Writes a limit.
    pub fn limit(&mut self, direction: Direction, kind: u32, limit: Limit) {
        let mut map = HashMap::<_, LimitKey, Limit>::try_from(self.map(maps::LIMITS)).expect("a hash map");
        map.insert(LimitKey { endpoint: ID, direction: direction.number(), kind }, limit, 0).expect("room");
    }

    /// All flows.
    pub fn flows(&mut self) -> Vec<(FlowKey, Flow)> {
        let map = HashMap::<_, FlowKey, Flow>::try_from(self.map(maps::FLOWS)).expect("a hash map");
        map.iter().map(|entry| entry.expect("a flow")).collect()
    }

    /// Replaces a flow.
    pub fn set_flow(&mut self, key: FlowKey, flow: Flow) {
        let mut map = HashMap::<_, FlowKey, Flow>::try_from(self.map(maps::FLOWS)).expect("a hash map");
        map.insert(key, flow, 0).expect("room for a flow");
    }

    /// The events reported since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        let mut ring = RingBuf::try_from(self.map(maps::EVENTS)).expect("a ring");
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            events.push(bytemuck::pod_read_unaligned(&item));
        }
        events
    }

    /// Runs a frame through both programs of its way and checks what they do. Both see the same maps, so what the
    /// first lets open is open for the second.
    #[track_caller]
    pub fn expect(&mut self, direction: Direction, frame: &[u8], outcome: &Outcome) {
        for program in programs(direction) {
            assert_eq!(&self.run(program, direction, frame), outcome, "{program}");
        }
    }

    /// Likewise for the host end of a pair alone, from where a frame can be sent elsewhere.
    #[track_caller]
    pub fn expect_at_host_end(&mut self, direction: Direction, frame: &[u8], outcome: &Outcome) {
        assert_eq!(&self.run(programs(direction)[0], direction, frame), outcome);
    }

    /// A map by its name.
    pub fn map(&mut self, name: &str) -> &mut Map {
        self.ebpf.map_mut(name).unwrap_or_else(|| panic!("the object has no map {name}"))
    }

    /// A loaded program by its name.
    pub fn program(&mut self, name: &str) -> &SchedClassifier {
        let program = self.loaded(name);
        program.try_into().expect("a classifier")
    }

    /// Likewise, of any kind.
    pub fn loaded(&mut self, name: &str) -> &Program {
        let program =
            self.ebpf.program_mut(name).unwrap_or_else(|| panic!("the object has no program {name}"));
        load(program, name);
        program
    }

    /// Counters of a direction, summed over the CPUs.
    pub fn traffic(&mut self, direction: Direction) -> Traffic {
        self.traffic_of(ID, direction)
    }

    /// What of an endpoint took the short way, summed over the CPUs.
    pub fn fast(&mut self, endpoint: u32) -> Fast {
        let map = PerCpuArray::<_, Fast>::try_from(self.map(maps::FAST)).expect("per CPU");
        let cpus = map.get(&slot::of(endpoint), 0).expect("a slot");
        cpus.iter().fold(Fast::ZERO, Fast::and)
    }

    /// Counters of any endpoint.
    pub fn traffic_of(&mut self, endpoint: u32, direction: Direction) -> Traffic {
        let short = self.fast(endpoint);
        let mut sum = match direction {
            Direction::FromPod => Traffic {
                packets: short.sent + short.left,
                bytes: short.sent_bytes + short.left_bytes,
                fast: short.sent,
                overlay: short.left,
                ..Traffic::ZERO
            },
            Direction::ToPod => Traffic {
                packets: short.received + short.entered,
                bytes: short.received_bytes + short.entered_bytes,
                overlay: short.entered,
                ..Traffic::ZERO
            },
        };
        let map =
            PerCpuHashMap::<_, CounterKey, Traffic>::try_from(self.map(maps::TRAFFIC)).expect("per CPU");
        if let Ok(values) = map.get(&CounterKey { endpoint, direction: direction.number() }, 0) {
            for one in values.iter() {
                sum.packets += one.packets;
                sum.bytes += one.bytes;
                sum.dropped += one.dropped;
                sum.fast += one.fast;
                sum.slow_fragment += one.slow_fragment;
                sum.slow_options += one.slow_options;
                sum.slow_error += one.slow_error;
                sum.slow_no_peer += one.slow_no_peer;
                sum.uplink += one.uplink;
                sum.overlay += one.overlay;
            }
        }
        sum
    }

    /// Drops of a direction by reason number, summed over the CPUs.
    pub fn drops(&mut self, direction: Direction) -> Vec<u64> {
        let map = PerCpuHashMap::<_, CounterKey, Drops>::try_from(self.map(maps::DROPS)).expect("per CPU");
        let mut sum = vec![0; netferry_common::verdict::REASON_SLOTS];
        if let Ok(values) = map.get(&key(direction), 0) {
            for one in values.iter() {
                sum.iter_mut().zip(one.counts()).for_each(|(sum, count)| *sum += count);
            }
        }
        sum
    }

    /// Runs one program on a frame and reads what it did from its answer and from the counters, which must
    /// agree.
    pub fn run(&mut self, program: &str, direction: Direction, frame: &[u8]) -> Outcome {
        self.run_on(program, direction, frame, Context::default())
    }

    /// Likewise, with something said about the frame beside it.
    pub fn run_on(&mut self, program: &str, direction: Direction, frame: &[u8], context: Context) -> Outcome {
        let (traffic, drops) = (self.traffic(direction), self.drops(direction));
        let mut out = vec![0; frame.len() + 256];
        let beside = context.bytes();
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&beside),
            ..TestRunOptions::default()
        };
        let result = self
            .program(program)
            .test_run(options)
            .unwrap_or_else(|error| panic!("{program} on {frame:02x?}: {error:?}"));
        out.truncate(result.data_size_out as usize);
        let (after, drops_after) = (self.traffic(direction), self.drops(direction));
        let counted: Vec<Reason> = Reason::ALL
            .iter()
            .copied()
            .filter(|reason| drops_after[reason.number() as usize] != drops[reason.number() as usize])
            .collect();
        let raised: u64 = drops_after.iter().sum::<u64>() - drops.iter().sum::<u64>();
        // TC_ACT_UNSPEC lets the next program decide, TC_ACT_SHOT drops.
        match result.return_value.cast_signed() {
            -1 => {
                assert_eq!(out, frame, "a frame that passes is not changed");
                assert_eq!(counted, [], "a frame that passes is no drop");
                assert_eq!(after.packets, traffic.packets + 1);
                assert_eq!(after.bytes, traffic.bytes + frame.len() as u64);
                assert_eq!(after.dropped, traffic.dropped);
                Outcome::Pass
            }
            // TC_ACT_REDIRECT
            7 if raised > 0 => {
                assert_eq!((raised, counted.len()), (1, 1), "one drop has one reason, got {counted:?}");
                assert_eq!((after.packets, after.dropped), (traffic.packets, traffic.dropped + 1));
                Outcome::Refuse(counted[0], out)
            }
            7 => {
                assert_eq!(counted, [], "a frame that is redirected is no drop");
                if context.gso_size == 0 {
                    assert_eq!(
                        (after.packets, after.bytes),
                        (traffic.packets + 1, traffic.bytes + frame.len() as u64)
                    );
                }
                Outcome::Redirect(out)
            }
            2 => {
                assert_eq!((raised, counted.len()), (1, 1), "one drop has one reason, got {counted:?}");
                assert_eq!((after.packets, after.bytes), (traffic.packets, traffic.bytes));
                assert_eq!(after.dropped, traffic.dropped + 1);
                Outcome::Drop(counted[0])
            }
            other => panic!("{program} returned {other}"),
        }
    }
}

/// What the kernel says about a frame beside it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// Payload of each segment of a GSO frame.
    pub gso_size: u32,
}

impl Context {
    /// As `struct __sk_buff` of linux/bpf.h.
    fn bytes(self) -> [u8; 192] {
        let mut bytes = [0; 192];
        bytes[176..180].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes
    }
}

fn key(direction: Direction) -> CounterKey {
    CounterKey { endpoint: ID, direction: direction.number() }
}
