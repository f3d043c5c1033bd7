//! A folder's claims and nodes. It is looked at every second, and read again if a file has changed: an edit counts as fast
//! as with a watch.
//!
//! Members on other nodes are claims in the folder with an allocation to them and with `status.devices`, and `Node`
//! objects with an `InternalIP`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::Hash,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use k8s_openapi::{
    Resource as _,
    api::{
        core::v1::{Namespace, Node, Pod},
        resource::v1::ResourceSlice,
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::debug;

use super::{
    Shared, Standalone, document,
    folder::{self, Folder},
    unavailable, written,
};
use crate::{
    cluster::{
        ClusterError,
        reach::{Addresses, Reach, internal},
        watch::{SliceVersion, SlicesOf, Watch},
    },
    network::{
        facts::{self, ClaimFacts, NamespaceFacts, NodeFacts, PodFacts, Seen},
        nodes::Needs,
        published::{self, SliceFacts},
        scope::Scope,
    },
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

impl Watch for Standalone {
    // A folder is read whole, whatever of it is wanted.
    fn narrows(&self) -> bool {
        false
    }

    fn claims(self: Arc<Self>, scope: &Scope) -> BoxStream<'static, Seen<ClaimFacts, String>> {
        let scope = scope.clone();
        let driver = self.shared.driver.clone();
        let read = move |shared: &Shared| {
            // As they are: only who asks for a claim has it allocated. One that is broken has no members.
            let folder = Folder::read(&shared.root);
            let claims = folder.claims.values().filter_map(|claim| shared.merged(claim).ok());
            let facts = claims.map(|claim| facts::claim(&claim.metadata, claim.status.as_ref(), &driver));
            let covered = facts.filter(|facts| scope.covers(facts.namespace()));
            Ok(covered.map(|facts| (facts.uid.clone(), facts)).collect())
        };
        looked(self, read)
    }

    fn pods(self: Arc<Self>, scope: &Scope) -> BoxStream<'static, Seen<PodFacts, String>> {
        let scope = scope.clone();
        looked(self, move |shared| {
            let pods = objects::<Pod>(shared, Pod::KIND);
            let facts = pods.iter().map(|pod| facts::pod(&pod.metadata));
            let covered = facts.filter(|facts| scope.covers(facts.namespace()));
            Ok(covered.map(|facts| (facts.name.clone(), facts)).collect())
        })
    }

    fn namespaces(self: Arc<Self>) -> BoxStream<'static, Seen<NamespaceFacts, String>> {
        looked(self, |shared| {
            let namespaces = objects::<Namespace>(shared, Namespace::KIND);
            let facts = namespaces.iter().map(|namespace| facts::namespace(&namespace.metadata));
            Ok(facts.map(|facts| (facts.name.clone(), facts)).collect())
        })
    }

    fn slices(self: Arc<Self>) -> BoxStream<'static, Seen<SliceFacts, String>> {
        looked(self, |shared| {
            let all: Vec<ResourceSlice> =
                written::slices(&shared.root).map_err(|error| unavailable("read the slices", error))?;
            let ours = all.iter().filter(|slice| slice.spec.driver == shared.driver);
            Ok(ours.map(published::whole_slice).map(|facts| (facts.name.clone(), facts)).collect())
        })
    }

    fn slice_versions(self: Arc<Self>, of: SlicesOf) -> BoxStream<'static, Seen<SliceVersion, String>> {
        looked(self, move |shared| {
            let node = (of == SlicesOf::ThisNode).then_some(shared.node.as_str());
            let version = |slice: ResourceSlice| SliceVersion {
                name: slice.metadata.name.unwrap_or_default(),
                version: slice.metadata.resource_version.unwrap_or_default(),
                pool: slice.spec.pool.name,
            };
            let versions = shared.slices_of(node)?.into_iter().map(version);
            Ok(versions.map(|version| (version.name.clone(), version)).collect())
        })
    }

    fn nodes(self: Arc<Self>, _: Needs) -> BoxStream<'static, Seen<NodeFacts, String>> {
        looked(self, |shared| {
            let mut nodes = nodes(shared);
            // This node is there, also where nobody wrote it down.
            let name = shared.node.clone();
            nodes.entry(name.clone()).or_insert(NodeFacts { name, address: None });
            Ok(nodes)
        })
    }
}

/// The `Node` in the folder, if it is there. There is no API server.
#[async_trait]
impl Reach for Standalone {
    async fn addresses(&self) -> Result<Addresses, ClusterError> {
        let own = |shared: &Shared| {
            let nodes = objects::<Node>(shared, Node::KIND);
            let own = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(shared.node.as_str()));
            let node = own.map(|node| internal(node.status.as_ref())).unwrap_or_default();
            Ok(Addresses { node, api_servers: BTreeSet::new() })
        };
        self.turn(own).await
    }

    fn api_servers_by_configuration(&self) -> BTreeSet<IpAddr> {
        BTreeSet::new()
    }
}

type Facts<T> = BTreeMap<String, T>;

/// Differences between one look and the next; the first one is a list.
fn looked<T: Clone + PartialEq + Send + 'static>(
    cluster: Arc<Standalone>,
    read: impl Fn(&Shared) -> Result<Facts<T>, ClusterError> + Clone + Send + 'static,
) -> BoxStream<'static, Seen<T, String>> {
    let looks = stream::unfold((None::<Facts<T>>, None), move |(before, mut stamp)| {
        let (cluster, read) = (Arc::clone(&cluster), read.clone());
        async move {
            if before.is_some() {
                tokio::time::sleep(LOOK).await;
            }
            loop {
                match cluster.turn_if_changed(stamp, read.clone()).await {
                    Ok((Some(now), stamp)) => {
                        let news = stream::iter(difference(before.as_ref(), &now));
                        return Some((news, (Some(now), stamp)));
                    }
                    Ok((None, same)) => stamp = same,
                    Err(error) => debug!(%error, "the folder cannot be read now"),
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    });
    looks.flatten().boxed()
}

fn difference<K: Clone + Hash + Ord, T: Clone + PartialEq>(
    before: Option<&BTreeMap<K, T>>,
    now: &BTreeMap<K, T>,
) -> Vec<Seen<T, K>> {
    let Some(before) = before else {
        let all = now.values().cloned().map(Seen::Is);
        return [Seen::Listing].into_iter().chain(all).chain([Seen::Listed]).collect();
    };
    let gone = before.keys().filter(|key| !now.contains_key(*key)).cloned().map(Seen::Gone);
    let changed = now.iter().filter(|(key, facts)| before.get(*key) != Some(*facts));
    gone.chain(changed.map(|(_, facts)| Seen::Is(facts.clone()))).collect()
}

fn nodes(shared: &Shared) -> Facts<NodeFacts> {
    let nodes = objects::<Node>(shared, Node::KIND);
    let facts = nodes.iter().map(|node| facts::node(&node.metadata, node.status.as_ref()));
    facts.map(|facts| (facts.name.clone(), facts)).collect()
}

/// The objects of a kind of the core group in the folder.
fn objects<T: DeserializeOwned>(shared: &Shared, kind: &str) -> Vec<T> {
    let mut found = Vec::new();
    for file in folder::files(&shared.root) {
        let Ok(text) = fs::read_to_string(file) else { continue };
        for text in document::split(&text) {
            let value = serde_yaml_ng::from_str::<Value>(&text).unwrap_or_default();
            if value["kind"] != kind || value["apiVersion"] != Node::API_VERSION {
                continue;
            }
            match serde_json::from_value(value) {
                Ok(object) => found.push(object),
                Err(error) => debug!(%error, kind, "an object in the folder cannot be read"),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_tells_what_is_other() {
        let look = |pairs: &[(&'static str, u8)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
        let first = look(&[("a", 1), ("b", 2)]);
        assert_eq!(difference(None, &first), [Seen::Listing, Seen::Is(1), Seen::Is(2), Seen::Listed]);
        assert_eq!(
            difference(Some(&first), &look(&[("b", 3), ("c", 4)])),
            [Seen::Gone("a"), Seen::Is(3), Seen::Is(4)]
        );
        assert_eq!(difference(Some(&first), &first), []);
    }
}
