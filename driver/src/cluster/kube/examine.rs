//! What `netferry doctor` asks the API server. It writes nothing: access reviews are not stored.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, api::PostParams};

use super::{KubeCluster, errors::Object};
use crate::{
    cluster::{
        Cluster as _, ClusterError,
        rights::{RIGHTS, Right},
    },
    network::spec::GROUP,
};

/// What was found of a server that answers.
#[derive(Debug)]
pub struct Examination {
    /// Version of Kubernetes.
    pub version: String,
    /// The version of resource.k8s.io that is spoken.
    pub dra: Result<String, ClusterError>,
    /// The versions in which Networks are served.
    pub networks: Vec<String>,
    /// Rights that are missing, as `verb resource.group`.
    pub denied: Result<Vec<String>, ClusterError>,
    /// Whether devices can be shared (DRAConsumableCapacity); `None` if no network is published that shows it.
    pub shares: Option<bool>,
}

impl KubeCluster {
    /// Ask. Fails if the server cannot be reached.
    pub async fn examine(&self) -> Result<Examination, ClusterError> {
        let object = Object::new("API server", "version", "read the");
        let version = self.request(&object, self.client.apiserver_version()).await?.git_version;
        let object = Object::new("APIGroup", GROUP, "discover the versions of");
        let groups = self.request(&object, self.client.list_api_groups()).await?;
        let networks = groups.groups.into_iter().filter(|group| group.name == GROUP);
        Ok(Examination {
            version,
            dra: self.version().await.map(|version| version.api_version().to_owned()),
            networks: networks.flat_map(|group| group.versions).map(|version| version.version).collect(),
            denied: self.denied().await,
            shares: self.shares().await,
        })
    }

    async fn denied(&self) -> Result<Vec<String>, ClusterError> {
        let mut denied = Vec::new();
        for right in RIGHTS {
            for verb in right.verbs {
                if !self.may(right, verb).await? {
                    denied.push(words(right, verb));
                }
            }
        }
        Ok(denied)
    }

    async fn may(&self, right: &Right, verb: &str) -> Result<bool, ClusterError> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let namespace = right.own_namespace.then(|| self.client.default_namespace().to_owned());
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: some(right.group),
                    resource: some(right.resource),
                    subresource: some(right.subresource),
                    name: some(right.name),
                    namespace,
                    verb: some(verb),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let object = Object::new("SelfSubjectAccessReview", right.resource, "create");
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = self.request(&object, api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// A server without the feature drops the field from the slices of this node.
    async fn shares(&self) -> Option<bool> {
        let slices = self.slices().await.ok()?;
        let devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
        let mut ports = devices.filter(|device| {
            device.attributes.as_ref().is_some_and(|attributes| attributes.contains_key("network"))
        });
        let first = ports.next()?;
        Some(first.allow_multiple_allocations == Some(true))
    }
}

fn words(right: &Right, verb: &str) -> String {
    let group = if right.group.is_empty() { String::new() } else { format!(".{}", right.group) };
    let part = if right.subresource.is_empty() { String::new() } else { format!("/{}", right.subresource) };
    format!("{verb} {}{part}{group}", right.resource)
}
