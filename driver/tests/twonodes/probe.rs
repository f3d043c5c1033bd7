//! The reachability matrix: every pod sends a datagram to the address of every port of the cluster, and every pod says
//! what came.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{cluster::Kind, node::Pod, random::Random};

/// All pods send from it and receive at it.
pub(crate) const PORT: u16 = 7878;

/// Most pairs whose neighbour the kernel has to find. The table of neighbours is the whole machine's, with 1024 places
/// by default; the others get theirs by hand, as a pod that wants to reach what it may not would do it.
const RESOLVED: usize = 150;
/// What is not there by then does not come.
const PATIENCE: Duration = Duration::from_mins(1);
/// A datagram may be lost; what should have come is sent again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long something unexpected may take after the last that was expected.
const SETTLE: Duration = Duration::from_millis(500);

/// One moment's matrix.
#[derive(Debug)]
#[expect(dead_code, reason = "it is printed")]
pub(crate) struct Measured {
    /// Datagrams sent, one for each pod and address.
    pub(crate) probes: usize,
    /// Pods and addresses of other pods that they reach, in IPv4 and in IPv6.
    pub(crate) reachable: [usize; 2],
    /// Of these, on different nodes.
    pub(crate) across: [usize; 2],
    /// Of those, by the nodes' routes.
    pub(crate) routed: usize,
    /// Addresses that several pods have, in different networks.
    pub(crate) shared: usize,
    /// Datagrams that were sent again.
    pub(crate) again: usize,
}

/// Whether a datagram to an address of `to` reaches it, as the networks are declared.
fn reaches(from: &Pod, to: &Pod) -> bool {
    from.network == to.network && (from.network.is_wide() || from.node == to.node)
}

/// Sender and receiver, and the address of the receiver that was written to.
type Pair = (u32, u32, IpAddr);

struct Matrix<'a> {
    pods: &'a [(&'a Pod, String)],
    moment: u32,
    /// How often each address was written to by each pod.
    sent: BTreeMap<(u32, IpAddr), usize>,
    arrived: BTreeMap<Pair, usize>,
}

/// Send all, wait for what is to arrive, and panic if anything else did.
pub(crate) fn check(pods: &[(&Pod, String)], moment: u32, random: &mut Random) -> Measured {
    let mut holders: BTreeMap<IpAddr, Vec<&(&Pod, String)>> = BTreeMap::new();
    for pod in pods {
        for address in &pod.0.addresses {
            holders.entry(*address).or_default().push(pod);
        }
    }
    let all = || pods.iter().flat_map(|(from, _)| pods.iter().map(move |(to, _)| (*from, *to)));
    let expected: Vec<_> = all()
        .filter(|(from, to)| from.id != to.id && reaches(from, to))
        .flat_map(|(from, to)| to.addresses.iter().map(move |address| (from, to, *address)))
        .collect();
    let pair = |(from, to, address): &(&Pod, &Pod, IpAddr)| (from.id, to.id, *address);
    let pairs: BTreeSet<Pair> = expected.iter().map(pair).collect();
    let one_in = (expected.len() / RESOLVED).max(1);
    let resolved: BTreeSet<Pair> = pairs.iter().filter(|_| random.once_in(one_in)).copied().collect();
    for (from, _) in pods {
        let neighbours = holders.iter().filter_map(|(address, holders)| {
            let own = holders.iter().find(|(to, _)| to.network == from.network);
            let chosen = own.unwrap_or_else(|| &holders[random.below(holders.len())]);
            (!resolved.contains(&(from.id, chosen.0.id, *address))).then_some((*address, chosen.1.as_str()))
        });
        prepare(from, &neighbours.collect::<Vec<_>>());
    }

    let mut matrix = Matrix { pods, moment, sent: BTreeMap::new(), arrived: BTreeMap::new() };
    for (from, _) in pods {
        // To its own addresses it would speak to itself.
        for address in holders.keys().filter(|address| !from.addresses.contains(address)) {
            matrix.send(from, *address);
        }
        matrix.receive();
    }
    let probes = matrix.sent.len();
    let across: Vec<_> = expected.iter().filter(|(from, to, _)| from.node != to.node).collect();
    let (start, mut last, mut again) = (Instant::now(), Instant::now(), 0);
    loop {
        matrix.receive();
        let missing: Vec<_> = expected.iter().filter(|it| !matrix.arrived.contains_key(&pair(it))).collect();
        if missing.is_empty() {
            break;
        }
        if start.elapsed() > PATIENCE {
            let first: Vec<_> =
                missing.iter().take(8).map(|(from, to, address)| tell(from, to, *address)).collect();
            panic!(
                "moment {moment}: {} of {} pairs do not reach each other: {first:#?}",
                missing.len(),
                pairs.len()
            );
        }
        if last.elapsed() > AGAIN {
            for (from, _, address) in missing {
                matrix.send(from, *address);
                again += 1;
            }
            last = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(SETTLE);
    matrix.receive();
    matrix.assert_is(&pairs);
    Measured {
        probes,
        reachable: of_families(&expected.iter().collect::<Vec<_>>()),
        across: of_families(&across),
        routed: across.iter().filter(|(from, ..)| from.network.kind == Kind::Routed).count(),
        shared: holders.values().filter(|holders| holders.len() > 1).count(),
        again,
    }
}

/// How many are about an IPv4 and an IPv6 address.
fn of_families(pairs: &[&(&Pod, &Pod, IpAddr)]) -> [usize; 2] {
    let v4 = pairs.iter().filter(|(.., address)| address.is_ipv4()).count();
    [v4, pairs.len() - v4]
}

fn tell(from: &Pod, to: &Pod, address: IpAddr) -> String {
    let one = |pod: &Pod| {
        format!("{} (node {}, {}, {:?})", pod.claim.name, pod.node, pod.network.name, pod.addresses)
    };
    format!("{} to {} at {address}", one(from), one(to))
}

/// As a socket of both families writes it.
fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A route to every address there is, and hardware addresses for those that the pod is not to ask for.
fn prepare(pod: &Pod, neighbours: &[(IpAddr, &str)]) {
    let mut batch = String::from(
        "route replace 10.0.0.0/8 dev net1\nroute replace fd00::/8 dev net1\nneigh flush dev net1 nud all\n",
    );
    for (address, mac) in neighbours {
        writeln!(batch, "neigh replace {address} lladdr {mac} dev net1 nud permanent").unwrap();
    }
    let out = pod.netns.scoped(|| {
        let mut ip = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
        ip.wait_with_output().unwrap()
    });
    assert!(out.status.success(), "{}: {}", pod.claim, String::from_utf8_lossy(&out.stderr));
}

impl Matrix<'_> {
    fn send(&mut self, from: &Pod, address: IpAddr) {
        let mapped = mapped(address);
        let mut words = [self.moment.to_be_bytes(), from.id.to_be_bytes()].concat();
        words.extend(mapped.octets());
        // That it is refused here at once is one way of not arriving.
        let _ = from.socket.send_to(&words, (mapped, PORT));
        *self.sent.entry((from.id, address)).or_default() += 1;
    }

    fn receive(&mut self) {
        let mut buffer = [0; 64];
        for (to, _) in self.pods {
            while let Ok((length, sender)) = to.socket.recv_from(&mut buffer) {
                self.take(to, &buffer[..length], sender);
            }
        }
    }

    fn take(&mut self, to: &Pod, datagram: &[u8], sender: SocketAddr) {
        let word = |at: usize| -> [u8; 4] { datagram[at..at + 4].try_into().unwrap() };
        assert_eq!(datagram.len(), 24, "{}: {datagram:?} from {sender}", to.claim);
        let (moment, from) = (u32::from_be_bytes(word(0)), u32::from_be_bytes(word(4)));
        assert_eq!(moment, self.moment, "{}: a datagram of an earlier moment from {sender}", to.claim);
        let (from, _) = self.pods.iter().find(|(pod, _)| pod.id == from).expect("a pod that is there");
        let octets: [u8; 16] = datagram[8..].try_into().unwrap();
        let address = IpAddr::from(octets).to_canonical();
        assert!(to.addresses.contains(&address), "{}: for {address}, from {sender}", to.claim);
        let source = from.addresses.iter().find(|source| source.is_ipv4() == address.is_ipv4());
        let (seen, port) = (sender.ip().to_canonical(), sender.port());
        assert_eq!((Some(&seen), port), (source, PORT), "{}", tell(from, to, address));
        *self.arrived.entry((from.id, to.id, address)).or_default() += 1;
    }

    fn assert_is(&self, pairs: &BTreeSet<Pair>) {
        let by_id = |id: u32| self.pods.iter().find(|(pod, _)| pod.id == id).unwrap().0;
        let wrong: Vec<_> = self
            .arrived
            .keys()
            .filter(|pair| !pairs.contains(pair))
            .map(|(from, to, address)| tell(by_id(*from), by_id(*to), *address))
            .collect();
        assert!(wrong.is_empty(), "moment {}: what must not be reached is: {wrong:#?}", self.moment);
        for ((from, to, address), times) in &self.arrived {
            let sent = self.sent[&(*from, *address)];
            assert!(*times <= sent, "{}: {times} came of {sent}", tell(by_id(*from), by_id(*to), *address));
        }
    }
}
