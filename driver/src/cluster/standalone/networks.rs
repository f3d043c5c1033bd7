//! Networks and namespaces of the folder.

use std::{collections::BTreeMap, time::Duration};

use futures::stream::{self, BoxStream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::{Shared, Standalone, claims, folder::Folder, unavailable, written};
use crate::{
    cluster::ClusterError,
    network::{
        Declared, NetworkRef,
        spec::{self, NetworkObject, NetworkStatus},
    },
};

/// How often the folder is looked at: an edit by hand counts within that time.
const LOOK: Duration = Duration::from_secs(1);
/// The label that an API server gives each namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Every network, now and after each change.
pub(super) fn watch(cluster: Standalone) -> BoxStream<'static, Result<Vec<Declared>, ClusterError>> {
    let start = (cluster, None::<Vec<Declared>>, None);
    stream::unfold(start, |(cluster, before, mut stamp)| async move {
        loop {
            if before.is_some() {
                tokio::time::sleep(LOOK).await;
            }
            match cluster.turn_if_changed(stamp, Shared::networks).await {
                Ok((Some(now), stamp)) if before.as_ref() != Some(&now) => {
                    return Some((Ok(now.clone()), (cluster, Some(now), stamp)));
                }
                Ok((_, read)) => stamp = read,
                Err(error) => {
                    tokio::time::sleep(LOOK).await;
                    return Some((Err(error), (cluster, before, None)));
                }
            }
        }
    })
    .boxed()
}

impl Shared {
    /// Labels of a namespace: those of its document, if there is one, and its name.
    pub(super) fn namespace_labels(&self, name: &str) -> BTreeMap<String, String> {
        let mut folder = Folder::read(&self.root);
        let labels = folder.namespaces.remove(name).and_then(|namespace| namespace.metadata.labels);
        let mut labels = labels.unwrap_or_default();
        labels.insert(NAME_LABEL.to_owned(), name.to_owned());
        labels
    }

    pub(super) fn networks(&self) -> Result<Vec<Declared>, ClusterError> {
        let folder = Folder::read(&self.root);
        folder.networks.into_values().map(|network| self.with_status(network)).collect()
    }

    /// With a UID, and with the status from the status file, if that is this network's.
    fn with_status(&self, mut network: Declared) -> Result<Declared, ClusterError> {
        if network.reference.uid.is_empty() {
            network.reference.uid = claims::uid(&format!("network/{}", network.reference.name));
        }
        let file = written::network_status_file(&self.root, &network.reference.name);
        let stored: Option<NetworkObject> = match written::read(&file) {
            // It only says what is judged anew anyway, and is written anew.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
            read => read.map_err(|error| unavailable(&format!("read {}", file.display()), error))?,
        };
        let ours = stored.filter(|stored| stored.metadata.uid.as_ref() == Some(&network.reference.uid));
        network.status = ours.and_then(|stored| stored.status).unwrap_or_default();
        Ok(network)
    }

    /// Write the status file of a network, as the `status` subresource would.
    pub(super) fn change_network_status(
        &self,
        reference: &NetworkRef,
        change: impl FnOnce(&mut NetworkStatus),
    ) -> Result<(), ClusterError> {
        let name = reference.name.clone();
        let networks = self.networks()?;
        let Some(mut network) = networks.into_iter().find(|network| network.reference.name == name) else {
            return Err(ClusterError::NotFound { kind: spec::KIND, name });
        };
        if network.reference.uid != reference.uid {
            let (meant, is) = (&reference.uid, &network.reference.uid);
            let message = format!("metadata.uid: {meant:?} was meant, but it is {is:?} now");
            return Err(ClusterError::Conflict { kind: spec::KIND, name, message });
        }
        change(&mut network.status);
        let metadata =
            ObjectMeta { name: Some(name), uid: Some(reference.uid.clone()), ..ObjectMeta::default() };
        let file = written::network_status_file(&self.root, &reference.name);
        let object = json!({
            "apiVersion": spec::API_VERSION, "kind": spec::KIND,
            "metadata": metadata, "spec": network.spec, "status": network.status,
        });
        written::write(&file, &object)
            .map_err(|error| unavailable(&format!("write {}", file.display()), error))
    }
}
