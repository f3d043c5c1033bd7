use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::{
    cluster::watch::{SliceVersion, SlicesOf},
    link::MacAddr,
    network::{
        Network, NetworkId, NetworkRef,
        demand::Ports,
        facts::{ClaimFacts, NamespaceFacts, NodeFacts, PodFacts, PortFacts, Seen},
        members::Remote,
        nodes::Needs,
        published::SliceFacts,
        scope::Scope,
        spec::{AddressSource, NetworkSpec, Overlay, Transport},
    },
};

/// A node's map with room for some members.
struct Map {
    entries: Mutex<BTreeMap<(NetworkId, IpAddr), Option<Remote>>>,
    /// Addresses of this node's own ports.
    own: Mutex<Vec<(NetworkId, IpAddr)>>,
    room: usize,
}

impl Map {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), own: Mutex::default(), room })
    }

    fn has(&self, host: u8) -> bool {
        self.entries.lock().expect("entries").contains_key(&(1, ip(host)))
    }
}

impl Members for Map {
    fn put(&self, change: &Change) -> Result<bool, DatapathError> {
        let key = (change.network, change.address);
        if self.own.lock().expect("own").contains(&key) {
            return Ok(false);
        }
        let mut entries = self.entries.lock().expect("entries");
        if change.member.is_none() {
            entries.remove(&key);
        } else if entries.len() < self.room || entries.contains_key(&key) {
            entries.insert(key, change.member);
        } else {
            let source = "no room".into();
            return Err(DatapathError::Bpf { action: "write a member".to_owned(), source });
        }
        Ok(true)
    }

    fn remote(&self) -> Result<Vec<Change>, DatapathError> {
        let entries = self.entries.lock().expect("entries");
        let change = |(key, member): (&(NetworkId, IpAddr), &Option<Remote>)| Change {
            network: key.0,
            address: key.1,
            member: *member,
        };
        Ok(entries.iter().map(change).collect())
    }
}

/// A cluster whose events come when they are sent.
struct Told {
    claims: Mutex<Option<mpsc::UnboundedReceiver<Seen<ClaimFacts, String>>>>,
}

impl Watch for Told {
    fn narrows(&self) -> bool {
        false
    }

    fn namespaces(self: Arc<Self>) -> BoxStream<'static, Seen<NamespaceFacts, String>> {
        stream::pending().boxed()
    }

    fn claims(self: Arc<Self>, _: &Scope) -> BoxStream<'static, Seen<ClaimFacts, String>> {
        let receiver = self.claims.lock().expect("claims").take().expect("watched once");
        UnboundedReceiverStream::new(receiver).boxed()
    }

    fn pods(self: Arc<Self>, _: &Scope) -> BoxStream<'static, Seen<PodFacts, String>> {
        stream::pending().boxed()
    }

    fn slice_versions(self: Arc<Self>, _: SlicesOf) -> BoxStream<'static, Seen<SliceVersion, String>> {
        stream::pending().boxed()
    }

    fn slices(self: Arc<Self>) -> BoxStream<'static, Seen<SliceFacts, String>> {
        stream::pending().boxed()
    }

    fn nodes(self: Arc<Self>, _: Needs) -> BoxStream<'static, Seen<NodeFacts, String>> {
        let node = |number: u8| NodeFacts {
            name: format!("n{number}"),
            address: Some(IpAddr::from([192, 0, 2, number])),
        };
        let events = [Seen::Listing, Seen::Is(node(0)), Seen::Is(node(1)), Seen::Listed];
        stream::iter(events).chain(stream::pending()).boxed()
    }
}

fn ip(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

fn claim(number: u8, node: u8) -> ClaimFacts {
    ClaimFacts {
        pod: None,
        uid: format!("u{number}"),
        name: format!("a/c{number}"),
        version: 0,
        since: 0,
        block_node: None,
        addresses: vec![],
        ports: vec![PortFacts {
            network: "blue".to_owned(),
            node: format!("n{node}"),
            told: Some((MacAddr([2, 0, 0, 0, 0, number]), vec![ip(number)])),
        }],
    }
}

struct World {
    events: mpsc::UnboundedSender<Seen<ClaimFacts, String>>,
    networks: Arc<Networks>,
    stats: Arc<FollowStats>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    fn start(map: &Arc<Map>) -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        let networks = Arc::new(Networks::default());
        let (stats, stop) = (Arc::new(FollowStats::default()), CancellationToken::new());
        let follow = Follow {
            watch: Arc::new(Told { claims: Mutex::new(Some(receiver)) }),
            networks: Arc::clone(&networks),
            table: Arc::new(Mutex::new(MemberTable::new("n0"))),
            members: Arc::clone(map) as _,
            ports: Box::new(Ports::default),
            demand: Arc::default(),
            leading: watch::channel(false).1,
            stats: Arc::clone(&stats),
        };
        let options = FollowOptions {
            networks: Duration::from_millis(5),
            compare: Duration::from_millis(20),
            ..FollowOptions::default()
        };
        let task = tokio::spawn(follow.run(options, stop.clone()));
        Self { events, networks, stats, stop, task }
    }

    fn tell(&self, seen: Seen<ClaimFacts, String>) {
        self.events.send(seen).expect("the follower listens");
    }

    fn declare(&self) {
        self.networks.replace([Network {
            reference: NetworkRef { name: "blue".to_owned(), uid: "u".to_owned() },
            id: 1,
            spec: NetworkSpec {
                subnets: vec!["10.0.0.0/24".parse().expect("a prefix")],
                gateways: vec![],
                mtu: None,
                addresses: AddressSource::Allocated,
                transport: Transport { overlay: Some(Overlay { vni: 7 }), ..Transport::default() },
                namespace_selector: None,
                policy: None,
                limits: None,
            },
        }]);
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("ended");
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn follows_the_cluster_and_removes_what_an_earlier_process_left() {
    let map = Map::new(100);
    let stale = Remote { mac: MacAddr([2, 0, 0, 0, 0, 99]), node: None };
    map.put(&Change { network: 1, address: ip(99), member: Some(stale) }).expect("put");
    let world = World::start(&map);
    world.declare();
    world.tell(Seen::Listing);
    world.tell(Seen::Is(claim(2, 0)));
    world.tell(Seen::Is(claim(3, 1)));
    eventually("the member on the other node", || map.has(3)).await;
    assert!(map.has(99), "nothing goes before every claim has come");
    world.tell(Seen::Listed);
    eventually("the old entry is gone", || !map.has(99)).await;
    assert!(map.has(3) && !map.has(2));
    world.tell(Seen::Gone("u3".to_owned()));
    eventually("the claim's end", || !map.has(3)).await;
    world.end().await;
}

#[tokio::test]
async fn a_port_of_this_node_is_left_alone_and_what_it_hid_comes_back() {
    let map = Map::new(100);
    map.own.lock().expect("own").push((1, ip(3)));
    let world = World::start(&map);
    world.declare();
    for seen in
        [Seen::Listing, Seen::Is(claim(2, 0)), Seen::Is(claim(3, 1)), Seen::Is(claim(4, 1)), Seen::Listed]
    {
        world.tell(seen);
    }
    eventually("another member", || map.has(4)).await;
    assert!(!map.has(3));
    map.own.lock().expect("own").clear();
    eventually("the member that was hidden", || map.has(3)).await;
    world.end().await;
}

#[tokio::test]
async fn what_a_full_map_refused_is_written_when_there_is_room() {
    // Two entries a member: its address and its link-local one.
    let map = Map::new(2);
    let world = World::start(&map);
    world.declare();
    for seen in [Seen::Listing, Seen::Is(claim(2, 0)), Seen::Is(claim(3, 1)), Seen::Listed] {
        world.tell(seen);
    }
    eventually("the first member", || map.entries.lock().expect("entries").len() == 2).await;
    world.tell(Seen::Is(claim(4, 1)));
    eventually("a refusal", || world.stats.failures.load(Ordering::Relaxed) >= 2).await;
    world.tell(Seen::Gone("u3".to_owned()));
    eventually("the other member", || map.has(4) && !map.has(3)).await;
    world.end().await;
}
