//! What is published of networks in the whole cluster: which nodes have ports, and who publishes which addresses.
//!
//! Only the elected node looks, by a watch over the driver's slices, and only where networks have blocks. Of each slice
//! it keeps what counts here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::resource::v1::{ResourcePool, ResourceSlice},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::{
    blocks::{Block, Content},
    facts::Seen,
    names::{device_address, network_of_port, pool_of},
    window::Subnet,
};

/// Annotation of the slice of a network's own pool: how far into each subnet blocks were ever given, `10.1.0.0/16=7` for
/// the first seven, with commas between subnets.
pub const GIVEN: &str = "netferry.dev/blocks-given";

/// What is kept of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    /// Its name.
    pub name: String,
    /// What it publishes.
    pub of: SliceOf,
}

/// What a slice publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceOf {
    /// Devices of a node, ports of these networks among them.
    Node {
        /// The node.
        node: Arc<str>,
        /// The networks.
        ports: BTreeSet<String>,
    },
    /// Addresses of a node's blocks.
    Blocks {
        /// The network.
        network: String,
        /// The node.
        node: Arc<str>,
        /// The addresses.
        addresses: Vec<IpAddr>,
        /// Generation of the pool, and its number of slices.
        pool: (i64, i64),
    },
    /// A network's own pool.
    Network {
        /// The network.
        network: String,
        /// [`GIVEN`].
        given: Option<String>,
    },
    /// Nothing of this.
    Nothing,
}

/// What is kept of a slice of this driver.
#[must_use]
pub fn slice<'a>(
    metadata: &ObjectMeta,
    node: Option<&str>,
    pool: &ResourcePool,
    devices: impl Iterator<Item = &'a str>,
) -> SliceFacts {
    let of = match (pool_of(&pool.name), node) {
        // Only a node's own slices are of its blocks, whatever a pool is called.
        (Some(of), Some(node)) if of.node == Some(node) => SliceOf::Blocks {
            network: of.network.to_owned(),
            node: node.into(),
            addresses: devices.filter_map(device_address).collect(),
            pool: (pool.generation, pool.resource_slice_count),
        },
        (Some(of), None) if of.node.is_none() => SliceOf::Network {
            network: of.network.to_owned(),
            given: metadata.annotations.as_ref().and_then(|all| all.get(GIVEN)).cloned(),
        },
        (None, Some(node)) => SliceOf::Node {
            node: node.into(),
            ports: devices.filter_map(network_of_port).map(str::to_owned).collect(),
        },
        _ => SliceOf::Nothing,
    };
    SliceFacts { name: metadata.name.clone().unwrap_or_default(), of }
}

/// The same of a whole object.
#[must_use]
pub fn whole_slice(slice: &ResourceSlice) -> SliceFacts {
    let devices = slice.spec.devices.iter().flatten().map(|device| device.name.as_str());
    self::slice(&slice.metadata, slice.spec.node_name.as_deref(), &slice.spec.pool, devices)
}

/// [`GIVEN`] for these marks.
#[must_use]
pub fn given(subnets: &[Subnet], marks: &[u128]) -> String {
    let one = |(subnet, mark): (&Subnet, &u128)| format!("{}={mark}", subnet.network);
    subnets.iter().zip(marks).map(one).collect::<Vec<_>>().join(",")
}

fn marks(subnets: &[Subnet], given: &str) -> Option<Vec<u128>> {
    let all: Option<BTreeMap<&str, u128>> = given
        .split(',')
        .map(|one| one.split_once('=').and_then(|(subnet, mark)| Some((subnet, mark.parse().ok()?))))
        .collect();
    let all = all?;
    subnets.iter().map(|subnet| all.get(subnet.network.to_string().as_str()).copied()).collect()
}

/// A node's pool of blocks of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockPool {
    /// What it publishes, in whichever generation.
    pub content: Content,
    /// Whether all of its slices are there and of one generation: else the scheduler waits.
    pub whole: bool,
}

/// The slices of this driver, as they are seen.
#[derive(Debug, Default)]
pub struct PublishedSlices {
    slices: HashMap<String, (SliceOf, u8)>,
    round: u8,
    listed: bool,
    /// Counts the changes.
    version: u64,
}

impl PublishedSlices {
    /// Take in what the watch sees.
    pub fn apply(&mut self, seen: Seen<SliceFacts, String>) {
        match seen {
            Seen::Listing => self.round = self.round.wrapping_add(1),
            Seen::Is(SliceFacts { name, of }) => {
                let before = self.slices.insert(name, (of.clone(), self.round));
                self.version += u64::from(before.is_none_or(|(before, _)| before != of));
            }
            Seen::Gone(name) => self.version += u64::from(self.slices.remove(&name).is_some()),
            Seen::Listed => {
                let round = self.round;
                self.slices.retain(|_, (_, seen)| *seen == round);
                self.listed = true;
                self.version += 1;
            }
        }
    }

    /// Whether all have come once.
    #[must_use]
    pub const fn is_listed(&self) -> bool {
        self.listed
    }

    /// Another number after each change.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Nodes that publish ports of a network.
    #[must_use]
    pub fn ports(&self, network: &str) -> BTreeSet<Arc<str>> {
        let has = |of: &SliceOf| match of {
            SliceOf::Node { node, ports } if ports.contains(network) => Some(Arc::clone(node)),
            _ => None,
        };
        self.slices.values().filter_map(|(of, _)| has(of)).collect()
    }

    /// What nodes publish of a network's blocks.
    #[must_use]
    pub fn blocks(&self, network: &str, subnets: &[Subnet]) -> BTreeMap<Arc<str>, BlockPool> {
        let mut contents: BTreeMap<Arc<str>, Content> = BTreeMap::new();
        let mut pools: BTreeMap<&str, Vec<(i64, i64)>> = BTreeMap::new();
        for (of, _) in self.slices.values() {
            let SliceOf::Blocks { network: of, node, addresses, pool } = of else { continue };
            if of != network {
                continue;
            }
            let content = contents.entry(Arc::clone(node)).or_default();
            for (block, bit) in addresses.iter().filter_map(|address| Block::of(subnets, *address)) {
                *content.entry(block).or_default() |= bit;
            }
            pools.entry(node).or_default().push(*pool);
        }
        let whole = |node: &str| {
            let slices = &pools[node];
            let count = i64::try_from(slices.len()).unwrap_or(i64::MAX);
            slices.iter().all(|of| *of == slices[0] && of.1 == count)
        };
        let judged = |(node, content): (Arc<str>, Content)| {
            let whole = whole(&node);
            (node, BlockPool { content, whole })
        };
        contents.into_iter().map(judged).collect()
    }

    /// The marks that are on record for a network's subnets.
    #[must_use]
    pub fn marks(&self, network: &str, subnets: &[Subnet]) -> Option<Vec<u128>> {
        let of_network = |of: &SliceOf| match of {
            SliceOf::Network { network: of, given } if of == network => marks(subnets, given.as_deref()?),
            _ => None,
        };
        // Should there be two, neither is forgotten.
        self.slices.values().filter_map(|(of, _)| of_network(of)).reduce(|mut one, other| {
            one.iter_mut().zip(other).for_each(|(one, other)| *one = (*one).max(other));
            one
        })
    }
}

/// Metadata of a slice of a network's own pool, with marks on record.
#[must_use]
pub fn with_marks(metadata: ObjectMeta, given: &str, owner: Option<OwnerReference>) -> ObjectMeta {
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    annotations.insert(GIVEN.to_owned(), given.to_owned());
    let owners = owner.map(|owner| vec![owner]).or_else(|| metadata.owner_references.clone());
    ObjectMeta { annotations: Some(annotations), owner_references: owners, ..metadata }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn subnets() -> Vec<Subnet> {
        let subnet =
            |text: &str| Subnet { network: text.parse().expect("a prefix"), excluded: BTreeSet::new() };
        vec![subnet("10.1.0.0/16"), subnet("fd00:1::/64")]
    }

    fn pool(name: &str) -> ResourcePool {
        ResourcePool { name: name.to_owned(), generation: 3, resource_slice_count: 2 }
    }

    fn facts(name: &str, node: Option<&str>, pool_name: &str, devices: &[&str]) -> SliceFacts {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        slice(&metadata, node, &pool(pool_name), devices.iter().copied())
    }

    #[test]
    fn a_slice_is_told_by_its_pool_and_node() {
        let of = |node, pool: &str, devices: &[&str]| facts("s", node, pool, devices).of;
        let node = of(Some("n1"), "n1", &["eth1", "port-blue", "port-red"]);
        let ports = ["blue", "red"].map(str::to_owned).into();
        assert_eq!(node, SliceOf::Node { node: "n1".into(), ports });
        let addresses = vec!["10.1.0.7".parse().expect("an address")];
        assert_eq!(
            of(Some("n1"), "networks/blue/n1", &["ip-10-1-0-7", "port-blue"]),
            SliceOf::Blocks { network: "blue".to_owned(), node: "n1".into(), addresses, pool: (3, 2) }
        );
        // In the name of another node, and of none.
        assert_eq!(of(Some("n1"), "networks/blue/n2", &["ip-10-1-0-7"]), SliceOf::Nothing);
        assert_eq!(of(None, "networks/blue/n1", &["ip-10-1-0-7"]), SliceOf::Nothing);
    }

    #[test]
    fn slices_are_followed_and_a_list_takes_away_what_is_gone() {
        let mut seen = PublishedSlices::default();
        seen.apply(Seen::Listing);
        seen.apply(Seen::Is(facts("a", Some("n1"), "n1", &["port-blue"])));
        seen.apply(Seen::Is(facts("b", Some("n1"), "networks/blue/n1", &["ip-10-1-0-7"])));
        seen.apply(Seen::Is(facts("c", Some("n1"), "networks/blue/n1", &["ip-10-1-0-8", "ip-10-1-1-0"])));
        assert!(!seen.is_listed());
        seen.apply(Seen::Listed);
        assert!(seen.is_listed());
        assert_eq!(seen.ports("blue"), BTreeSet::from([Arc::from("n1")]));
        assert_eq!(seen.ports("red"), BTreeSet::new());
        let first = Block { subnet: 0, number: 0 };
        let content = Content::from([(first, 1 << 7 | 1 << 8), (Block { number: 4, ..first }, 1)]);
        let blocks = BlockPool { content, whole: true };
        assert_eq!(seen.blocks("blue", &subnets()), BTreeMap::from([(Arc::from("n1"), blocks)]));
        let mut less = facts("d", Some("n1"), "networks/blue/n1", &[]);
        seen.apply(Seen::Is(less.clone()));
        assert!(!seen.blocks("blue", &subnets())[&Arc::from("n1")].whole, "one too many");
        seen.apply(Seen::Gone("c".to_owned()));
        assert!(seen.blocks("blue", &subnets())[&Arc::from("n1")].whole);
        if let SliceOf::Blocks { pool, .. } = &mut less.of {
            pool.0 = 4;
        }
        seen.apply(Seen::Is(less));
        assert!(!seen.blocks("blue", &subnets())[&Arc::from("n1")].whole, "of two generations");
        let version = seen.version();
        seen.apply(Seen::Is(facts("a", Some("n1"), "n1", &["port-blue"])));
        assert_eq!(seen.version(), version, "nothing is other");
        seen.apply(Seen::Listing);
        seen.apply(Seen::Is(facts("a", Some("n1"), "n1", &[])));
        seen.apply(Seen::Listed);
        assert_eq!((seen.ports("blue").len(), seen.blocks("blue", &subnets()).len()), (0, 0));
        assert_ne!(seen.version(), version);
    }

    #[test]
    fn marks_come_back_from_their_annotation() {
        let text = given(&subnets(), &[7, 1 << 40]);
        assert_eq!(text, "10.1.0.0/16=7,fd00:1::/64=1099511627776");
        let mut seen = PublishedSlices::default();
        assert_eq!(seen.marks("blue", &subnets()), None);
        let metadata = ObjectMeta { name: Some("s".to_owned()), ..ObjectMeta::default() };
        let metadata = with_marks(metadata, &text, None);
        seen.apply(Seen::Is(slice(&metadata, None, &pool("networks/blue"), std::iter::empty())));
        assert_eq!(seen.marks("blue", &subnets()), Some(vec![7, 1 << 40]));
        for broken in ["", "10.1.0.0/16=7", "10.1.0.0/16=x,fd00:1::/64=1"] {
            assert_eq!(marks(&subnets(), broken), None, "{broken:?}");
        }
    }
}
