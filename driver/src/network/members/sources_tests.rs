//! The table behind watches that lag, break, begin and end, as a node's plan wants them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use netferry_common::Addr;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::network::{
    NetworkRef,
    changeover::{Pace, Watches},
    facts::{ClaimFacts, NodeFacts, PortFacts, Seen},
    scope::{Namespaces, Scope, Situation, plan},
    validate::parse,
};

const PACE: Pace = Pace { linger: Duration::from_secs(20), settle: Duration::from_secs(5) };
/// Networks `net0` and `net1` take the namespaces with a label of their name, `net2` takes all.
const NETWORKS: u8 = 3;
const SPACES: u8 = 4;

fn network(number: u8) -> Arc<Network> {
    let selector = if number == 2 { json!({}) } else { json!({"matchLabels": {format!("net{number}"): ""}}) };
    let spec = json!({"subnets": ["10.0.0.0/24"], "namespaceSelector": selector,
        "transport": {"overlay": {"vni": u32::from(number) + 1}}});
    let reference = NetworkRef { name: format!("net{number}"), uid: format!("u{number}") };
    Arc::new(Network { reference, id: u32::from(number) + 1, spec: parse(&spec).expect("a network") })
}

fn space(number: u8) -> String {
    format!("ns{number}")
}

/// A state of a claim. It is on another node in each.
#[derive(Clone, Debug)]
struct State {
    serial: u8,
    version: u64,
    space: u8,
    net: u8,
    host: u8,
}

impl State {
    fn uid(&self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.serial)
    }

    fn mac(&self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, self.serial])
    }

    fn node(&self) -> u64 {
        self.version
    }

    fn facts(&self) -> ClaimFacts {
        ClaimFacts {
            pod: None,
            uid: self.uid(),
            name: format!("{}/c{}", space(self.space), self.host),
            version: self.version,
            since: i64::from(self.serial),
            block_node: None,
            addresses: vec![],
            ports: vec![PortFacts {
                network: format!("net{}", self.net),
                node: format!("n{}", self.node()),
                told: Some((self.mac(), vec![IpAddr::from([10, 0, 0, self.serial])])),
            }],
        }
    }

    /// Its entries in the map.
    fn entries(&self) -> Members {
        let remote = (self.mac(), self.node());
        let addresses = [IpAddr::from([10, 0, 0, self.serial]), Addr::link_local(self.mac().0).into()];
        addresses.into_iter().map(|address| ((u32::from(self.net) + 1, address), remote)).collect()
    }
}

type Members = BTreeMap<(NetworkId, IpAddr), (MacAddr, u64)>;

/// A watch that the server has open.
#[derive(Default)]
struct Stream {
    /// What is on its way, and how much of the log it has behind it; `None` before the list.
    position: Option<usize>,
    sent: VecDeque<(Seen<ClaimFacts, String>, u64)>,
}

#[derive(Default)]
struct Server {
    version: u64,
    serial: u8,
    claims: BTreeMap<u8, State>,
    log: Vec<(u8, Seen<ClaimFacts, String>, u64)>,
    streams: BTreeMap<Scope, Stream>,
}

impl Server {
    /// No address is used again: who has it then is asked elsewhere.
    fn put(&mut self, host: u8, space: u8, net: u8) {
        self.version += 1;
        let version = self.version;
        let serial = self.serial + 1;
        let state = self.claims.entry(host).or_insert(State { serial, version, space, net, host });
        self.serial = self.serial.max(state.serial);
        state.version = version;
        self.log.push((state.space, Seen::Is(state.facts()), version));
    }

    fn delete(&mut self, host: u8) {
        let Some(state) = self.claims.remove(&host) else { return };
        self.version += 1;
        self.log.push((state.space, Seen::Gone(state.uid()), self.version));
    }

    /// The next thing that a watch says.
    fn next(&mut self, scope: &Scope) -> Option<(Seen<ClaimFacts, String>, u64)> {
        let stream = self.streams.get_mut(scope)?;
        let from = stream.position.unwrap_or_else(|| {
            stream.sent.push_back((Seen::Listing, 0));
            let covered = self.claims.values().filter(|state| scope.covers(&space(state.space)));
            stream.sent.extend(covered.map(|state| (Seen::Is(state.facts()), state.version)));
            stream.sent.push_back((Seen::Listed, 0));
            self.log.len()
        });
        let news = self.log[from..].iter().filter(|(of, ..)| scope.covers(&space(*of)));
        stream.sent.extend(news.map(|(_, seen, version)| (seen.clone(), *version)));
        stream.position = Some(self.log.len());
        stream.sent.pop_front()
    }
}

struct World {
    server: Server,
    table: MemberTable,
    map: Members,
    watches: Watches,
    now: Instant,
    here: BTreeSet<String>,
    namespaces: Namespaces,
    leads: bool,
    /// States that claims had since everything was quiet.
    states: Vec<State>,
    /// Claims, by UID, that were in the map as they are, and had no reason to go since.
    shown: BTreeSet<String>,
    /// The newest that came of each claim, by any watch; the largest number for one that is gone.
    came: HashMap<String, u64>,
    networks: Vec<Arc<Network>>,
}

impl World {
    fn new() -> Self {
        let mut table = MemberTable::new("n0");
        table.apply_node(Seen::Listing);
        for number in 1..=200_u8 {
            let address = Some(IpAddr::from([192, 0, 2, number]));
            table.apply_node(Seen::Is(NodeFacts { name: format!("n{number}"), address }));
        }
        table.apply_node(Seen::Listed);
        let networks: Vec<_> = (0..NETWORKS).map(network).collect();
        table.set_networks(&networks);
        let mut world = Self {
            server: Server::default(),
            table,
            map: Members::new(),
            watches: Watches::default(),
            now: Instant::now(),
            here: BTreeSet::new(),
            namespaces: (0..SPACES).map(|number| (space(number), BTreeMap::new())).collect(),
            leads: false,
            states: Vec::new(),
            shown: BTreeSet::new(),
            came: HashMap::new(),
            networks,
        };
        world.adapt();
        world
    }

    fn write(&mut self, outcome: Outcome) {
        for change in outcome.changes {
            let key = (change.network, change.address);
            let last = |address: IpAddr| match address {
                IpAddr::V4(address) => u64::from(address.octets()[3]),
                IpAddr::V6(_) => 0,
            };
            match change.member {
                Some(remote) => self.map.insert(key, (remote.mac, remote.node.map_or(0, last))),
                None => self.map.remove(&key),
            };
        }
    }

    fn put(&mut self, host: u8, space: u8, net: u8) {
        self.server.put(host, space, net);
        let state = self.server.claims[&host].clone();
        self.shown.remove(&state.uid());
        self.states.push(state);
    }

    /// As the follower does.
    fn adapt(&mut self) {
        let plan = plan(&Situation {
            networks: self.networks.clone(),
            here: self.here.clone(),
            also: BTreeSet::new(),
            namespaces: Some(Arc::new(self.namespaces.clone())),
            leads: self.leads,
        });
        let outcome = self.table.set_needs(&plan.needs);
        self.write(outcome);
        let steps = self.watches.step(&plan.claims, |scope| self.table.is_listed(scope), self.now, PACE);
        for scope in steps.open {
            self.table.open(&scope);
            self.server.streams.insert(scope, Stream::default());
        }
        for scope in steps.close {
            self.server.streams.remove(&scope);
            let outcome = self.table.close(&scope);
            self.write(outcome);
        }
    }

    /// Whether claims of a namespace are members of a network that is here.
    fn is_within(&self, number: u8, net: u8) -> bool {
        let name = format!("net{net}");
        self.here.contains(&name) && (net == 2 || self.namespaces[&space(number)].contains_key(&name))
    }

    fn deliver(&mut self, scope: &Scope, most: usize) {
        for _ in 0..most {
            let Some((seen, version)) = self.server.next(scope) else { return };
            match &seen {
                Seen::Is(facts) => {
                    let came = self.came.entry(facts.uid.clone()).or_default();
                    *came = version.max(*came);
                }
                Seen::Gone(uid) => drop(self.came.insert(uid.clone(), u64::MAX)),
                Seen::Listing | Seen::Listed => {}
            }
            let outcome = self.table.apply_from(scope, seen);
            self.write(outcome);
            self.check();
        }
    }

    /// Nobody is lost who was there and has not changed, and nobody is there who never was, or is as he was before.
    fn check(&mut self) {
        let is_there =
            |state: &State| state.entries().iter().all(|(key, place)| self.map.get(key) == Some(place));
        let within = |state: &&State| self.is_within(state.space, state.net);
        let live: BTreeMap<String, &State> =
            self.server.claims.values().filter(within).map(|state| (state.uid(), state)).collect();
        self.shown.retain(|uid| live.contains_key(uid));
        let lost: Vec<_> = self.shown.iter().map(|uid| live[uid]).filter(|state| !is_there(state)).collect();
        assert!(lost.is_empty(), "lost: {lost:?}; there: {:?}", self.map);
        self.shown = live.into_iter().filter(|(_, state)| is_there(state)).map(|(uid, _)| uid).collect();
        let mut possible = HashSet::new();
        for state in &self.states {
            let newest = self.came.get(&state.uid()).copied().unwrap_or(0);
            if state.version >= newest && self.is_within(state.space, state.net) {
                possible.extend(state.entries());
            }
        }
        let invented: Vec<_> =
            self.map.iter().filter(|(key, place)| !possible.contains(&(**key, **place))).collect();
        assert!(invented.is_empty(), "invented: {invented:?}");
    }

    /// Let everything come, and compare with what the whole cluster says.
    fn quiet(&mut self) {
        for _ in 0..4 {
            let scopes: Vec<Scope> = self.server.streams.keys().cloned().collect();
            for scope in scopes {
                self.deliver(&scope, usize::MAX);
            }
            self.now += PACE.linger;
            self.adapt();
        }
        let within = self.server.claims.values().filter(|state| self.is_within(state.space, state.net));
        let all: Members = within.flat_map(State::entries).collect();
        assert_eq!(self.map, all);
        assert!(self.table.is_complete());
        let whole = self.leads || self.here.contains("net2");
        assert_eq!(self.server.streams.contains_key(&Scope::Cluster), whole);
        assert!(!whole || self.server.streams.len() == 1, "one takes the place of all");
        self.states = self.server.claims.values().cloned().collect();
    }
}

#[derive(Clone, Debug)]
enum Event {
    Put(u8, u8, u8),
    Delete(u8),
    Here(u8, bool),
    Label(u8, u8, bool),
    Lead(bool),
    Deliver(usize, usize),
    Break(usize),
    Wait(u64),
    Quiet,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => (1..9_u8, 0..SPACES, 0..NETWORKS).prop_map(|(host, space, net)| Event::Put(host, space, net)),
        4 => (1..9_u8).prop_map(Event::Delete),
        3 => (0..NETWORKS, any::<bool>()).prop_map(|(net, here)| Event::Here(net, here)),
        3 => (0..SPACES, 0..2_u8, any::<bool>()).prop_map(|(space, net, has)| Event::Label(space, net, has)),
        3 => any::<bool>().prop_map(Event::Lead),
        12 => (0..6_usize, 1..6_usize).prop_map(|(which, most)| Event::Deliver(which, most)),
        1 => (0..6_usize).prop_map(Event::Break),
        8 => (1..8_u64).prop_map(Event::Wait),
        1 => Just(Event::Quiet),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// After any events the members are those of the whole cluster's claims that belong to the networks here, and on
    /// the way there none is lost or invented.
    #[test]
    fn members_are_those_of_a_whole_table(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        world.here = (0..2).map(|net| format!("net{net}")).collect();
        for (number, labels) in (0..).zip(world.namespaces.values_mut()) {
            labels.extend((0..2).filter(|net| number != *net).map(|net| (format!("net{net}"), String::new())));
        }
        world.adapt();
        for host in 1..5 {
            world.put(host, host % SPACES, host % 2);
        }
        world.quiet();
        for event in events {
            match event {
                Event::Put(host, space, net) => world.put(host, space, net),
                Event::Delete(host) => world.server.delete(host),
                Event::Here(net, true) => drop(world.here.insert(format!("net{net}"))),
                Event::Here(net, false) => drop(world.here.remove(&format!("net{net}"))),
                Event::Label(number, net, has) => {
                    let labels = world.namespaces.get_mut(&space(number)).expect("a namespace");
                    if has {
                        labels.insert(format!("net{net}"), String::new());
                    } else {
                        labels.remove(&format!("net{net}"));
                    }
                }
                Event::Lead(leads) => world.leads = leads,
                Event::Deliver(which, most) => {
                    let scope = world.server.streams.keys().nth(which).cloned();
                    if let Some(scope) = scope {
                        world.deliver(&scope, most);
                    }
                }
                Event::Break(which) => {
                    // What was on its way is lost, and a list comes again.
                    if let Some(stream) = world.server.streams.values_mut().nth(which) {
                        *stream = Stream::default();
                    }
                }
                Event::Wait(seconds) => {
                    // A watch that has begun is less behind than what a changeover waits for, also if it breaks.
                    let table = &world.table;
                    let begun = world.server.streams.iter().filter(|(scope, stream)| {
                        stream.position.is_some() || table.is_listed(scope)
                    });
                    for scope in begun.map(|(scope, _)| scope.clone()).collect::<Vec<_>>() {
                        world.deliver(&scope, usize::MAX);
                    }
                    world.now += Duration::from_secs(seconds);
                }
                Event::Quiet => world.quiet(),
            }
            world.adapt();
            world.check();
        }
        world.quiet();
    }
}
