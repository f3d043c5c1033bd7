//! Slices that somebody else has changed or deleted: seen by a watch, told from the echo of the driver's own writes.

use std::collections::{BTreeMap, BTreeSet};

use crate::{cluster::watch::SliceVersion, network::facts::Seen};

/// The slices of a pool, or of several, as they were last written or read.
#[derive(Debug, Default)]
pub struct OwnSlices {
    versions: BTreeMap<String, String>,
    /// What a list that is under way has named.
    listing: Option<BTreeSet<String>>,
}

impl OwnSlices {
    /// These are the slices now, by name with their resource versions.
    pub fn set(&mut self, versions: BTreeMap<String, String>) {
        self.versions = versions;
    }

    /// Take in what the watch sees. Returns whether the slices are other than they were written: one was changed, deleted or
    /// made by somebody else.
    pub fn is_news(&mut self, seen: Seen<SliceVersion, String>) -> bool {
        match seen {
            Seen::Listing => {
                self.listing = Some(BTreeSet::new());
                false
            }
            Seen::Is(slice) => {
                let other = self.versions.get(&slice.name).is_none_or(|own| is_newer(&slice.version, own));
                if let Some(listing) = &mut self.listing {
                    listing.insert(slice.name);
                }
                other
            }
            Seen::Gone(name) => self.versions.contains_key(&name),
            Seen::Listed => {
                let listed = self.listing.take().unwrap_or_default();
                self.versions.keys().any(|name| !listed.contains(name))
            }
        }
    }
}

/// Of one object the larger resource version is the newer one. The echo of an earlier write of this process is older than
/// its last one. Versions that are no numbers are only compared.
fn is_newer(seen: &str, own: &str) -> bool {
    match (seen.parse::<u64>(), own.parse::<u64>()) {
        (Ok(seen), Ok(own)) => seen > own,
        _ => seen != own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(name: &str, version: &str) -> Seen<SliceVersion, String> {
        let (name, version) = (name.to_owned(), version.to_owned());
        Seen::Is(SliceVersion { name, version, pool: "node-1".to_owned() })
    }

    #[test]
    fn the_echo_of_own_writes_is_no_news() {
        let mut own = OwnSlices::default();
        own.set(BTreeMap::from([("a".to_owned(), "12".to_owned()), ("b".to_owned(), "9".to_owned())]));
        for seen in [Seen::Listing, is("a", "12"), is("b", "9"), Seen::Listed] {
            assert!(!own.is_news(seen));
        }
        // An earlier write of its own, and a slice that it deleted.
        assert!(!own.is_news(is("a", "10")));
        assert!(!own.is_news(Seen::Gone("c".to_owned())));
        // Others' writes.
        assert!(own.is_news(is("a", "13")));
        assert!(own.is_news(is("by-hand", "14")));
        assert!(own.is_news(Seen::Gone("b".to_owned())));
    }

    #[test]
    fn a_list_without_a_slice_is_news() {
        let mut own = OwnSlices::default();
        own.set(BTreeMap::from([("a".to_owned(), "12".to_owned()), ("b".to_owned(), "9".to_owned())]));
        assert!(!own.is_news(Seen::Listing));
        assert!(!own.is_news(is("a", "12")));
        assert!(own.is_news(Seen::Listed));
    }
}
