//! The node's block list.

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netferry_common::{Addr, Block, BlockKey, maps};

use super::kernel::AyaDatapath;
use super::tables::{gone, take};
use super::{DatapathError, bpf_error};

/// Bits before an IPv4 address in a mapped one.
const MAPPED: u32 = 96;

/// The pinned list.
pub(super) struct BlockTable(LpmTrie<MapData, BlockKey, Block>);

impl BlockTable {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, DatapathError> {
        take(object, maps::BLOCKED).map(Self)
    }
}

impl AyaDatapath {
    /// Blocks what an address or a prefix sends: frames from it are dropped at every link that has the early drop, from
    /// now on, flows that are open among them. The list is the node's, and lasts until it is taken back or the node
    /// starts anew.
    pub fn block(&self, prefix: IpNetwork) -> Result<(), DatapathError> {
        let mut written = self.written();
        written.blocked.0.insert(&key(prefix), Block::default(), 0).map_err(|source| {
            let most = maps::MAX_BLOCKED;
            bpf_error(format!("block {prefix} (the list holds {most} prefixes)"), source)
        })
    }

    /// Takes a prefix off the list. Whether it was on it.
    pub fn unblock(&self, prefix: IpNetwork) -> Result<bool, DatapathError> {
        let mut written = self.written();
        let failed = |source| bpf_error(format!("unblock {prefix}"), source);
        let key = key(prefix);
        let there = written.blocked.0.keys().any(|found| found.is_ok_and(|found| same(&found, &key)));
        gone(written.blocked.0.remove(&key)).map_err(failed)?;
        Ok(there)
    }

    /// The list, sorted.
    pub fn blocked(&self) -> Result<Vec<IpNetwork>, DatapathError> {
        let written = self.written();
        let keys: Result<Vec<_>, MapError> = written.blocked.0.keys().collect();
        let keys = keys.map_err(|source| bpf_error("list what is blocked", source))?;
        let mut prefixes: Vec<IpNetwork> = keys.iter().filter_map(prefix).collect();
        prefixes.sort_unstable();
        Ok(prefixes)
    }
}

fn same(one: &Key<BlockKey>, other: &Key<BlockKey>) -> bool {
    one.prefix_len() == other.prefix_len() && one.data() == other.data()
}

fn key(prefix: IpNetwork) -> Key<BlockKey> {
    let before = if prefix.is_ipv4() { MAPPED } else { 0 };
    Key::new(before + u32::from(prefix.prefix()), BlockKey { addr: Addr::from(prefix.network()) })
}

fn prefix(key: &Key<BlockKey>) -> Option<IpNetwork> {
    let bits = key.prefix_len();
    match key.data().addr.as_v4() {
        Some(octets) if bits >= MAPPED => {
            Ipv4Network::new(octets.into(), u8::try_from(bits - MAPPED).ok()?).ok().map(IpNetwork::V4)
        }
        _ => {
            let bytes = key.data().addr.bytes;
            Ipv6Network::new(bytes.into(), u8::try_from(bits).ok()?).ok().map(IpNetwork::V6)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_same_after_the_map() {
        for text in ["192.0.2.7/32", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "2001:db8::7/128", "::/0"] {
            let network: IpNetwork = text.parse().unwrap();
            assert_eq!(prefix(&key(network)), Some(network));
        }
    }

    #[test]
    fn bits_beyond_the_prefix_do_not_count() {
        assert!(same(&key("10.1.2.3/8".parse().unwrap()), &key("10.0.0.0/8".parse().unwrap())));
        assert!(!same(&key("10.0.0.0/8".parse().unwrap()), &key("10.0.0.0/9".parse().unwrap())));
    }
}
