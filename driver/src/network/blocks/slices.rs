//! A node's blocks → specs of its slices, without reading or writing anything.

use k8s_openapi::api::resource::v1::{Device, ResourcePool, ResourceSliceSpec};

use super::{BLOCK, Block, Content};
use crate::{
    network::{addresses, window::Subnet},
    publish::slices::MAX_DEVICES,
};

/// Blocks of a slice.
const PER_SLICE: usize = MAX_DEVICES / BLOCK as usize;

/// Where blocks are published.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The network.
    pub network: &'a str,
    /// The node, which alone can have the addresses.
    pub node: &'a str,
    /// Its pool of blocks of the network.
    pub pool: &'a str,
    /// This driver's name.
    pub driver: &'a str,
}

/// The slices of a node's pool; none without blocks. The first block of each subnet comes first, so that a node with
/// one of each family has one slice. The generation is the publisher's.
#[must_use]
pub fn slices(subnets: &[Subnet], content: &Content, place: &Place<'_>) -> Vec<ResourceSliceSpec> {
    let mut ordered: Vec<(usize, Block, u64)> = Vec::new();
    for (block, mask) in content {
        let before = ordered.iter().filter(|(_, other, _)| other.subnet == block.subnet).count();
        ordered.push((before, *block, *mask));
    }
    ordered.sort_unstable();
    let chunks: Vec<Vec<Device>> = ordered
        .chunks(PER_SLICE)
        .map(|blocks| {
            blocks.iter().flat_map(|(_, block, mask)| devices(subnets, *block, *mask, place)).collect()
        })
        .collect();
    let count = i64::try_from(chunks.len()).unwrap_or(i64::MAX);
    let pool = ResourcePool { name: place.pool.to_owned(), generation: 0, resource_slice_count: count };
    let slice = |devices| ResourceSliceSpec {
        driver: place.driver.to_owned(),
        node_name: Some(place.node.to_owned()),
        pool: pool.clone(),
        devices: Some(devices),
        ..ResourceSliceSpec::default()
    };
    chunks.into_iter().map(slice).collect()
}

fn devices<'a>(
    subnets: &'a [Subnet],
    block: Block,
    mask: u64,
    place: &'a Place<'_>,
) -> impl Iterator<Item = Device> + 'a {
    let subnet = subnets.get(block.subnet).map(|subnet| subnet.network);
    let device = move |address| Some(addresses::device(place.network, subnet?, address));
    block.addresses(subnets, mask).filter_map(device)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn two_blocks_are_a_slice_of_their_node() {
        let subnet =
            |text: &str| Subnet { network: text.parse().expect("a prefix"), excluded: BTreeSet::new() };
        let subnets = [subnet("10.1.0.0/16"), subnet("fd00::/64")];
        let content: Content =
            [(0, 3), (0, 5), (1, 2)].map(|(subnet, number)| (Block { subnet, number }, u64::MAX)).into();
        let place = Place { network: "blue", node: "n1", pool: "networks/blue/n1", driver: "netferry.dev" };
        let made = slices(&subnets, &content, &place);
        let shown: Vec<_> = made
            .iter()
            .map(|slice| {
                assert_eq!((slice.node_name.as_deref(), slice.all_nodes), (Some("n1"), None));
                assert_eq!((slice.pool.name.as_str(), slice.pool.resource_slice_count), (place.pool, 2));
                let devices = slice.devices.as_ref().expect("devices");
                (devices.len(), devices[0].name.as_str(), devices[devices.len() - 1].name.as_str())
            })
            .collect();
        assert_eq!(
            shown,
            [(128, "ip-10-1-0-192", "ip-fd00-0-0-0-0-0-0-bf"), (64, "ip-10-1-1-64", "ip-10-1-1-127")]
        );
        let attributes =
            made[1].devices.as_ref().expect("devices")[0].attributes.as_ref().expect("attributes");
        assert_eq!(attributes["address"].string.as_deref(), Some("10.1.1.64/16"));
        assert_eq!(slices(&subnets, &Content::new(), &place), []);
    }
}
