//! One Node, as the API server has it.

use k8s_openapi::api::core::v1::{Node as Whole, NodeStatus};
use kube::{
    Api,
    api::{ApiResource, GetParams},
    core::Object,
};

use super::{KubeCluster, errors, watch::Unread};
use crate::{
    cluster::ClusterError,
    network::{
        facts::{self, NodeFacts},
        nodes::Question,
    },
};

type Node = Object<Unread, NodeStatus>;

impl KubeCluster {
    /// What a node says of itself. The server may answer from its cache (resource version 0), unless there is news of
    /// the node. That a node is not there is believed of the store alone: a cache may be behind.
    pub(super) async fn node_facts(&self, question: &Question) -> Result<NodeFacts, ClusterError> {
        let object = errors::Object::new("Node", &*question.name, "read");
        let api = Api::<Node>::all_with(self.client.clone(), &ApiResource::erase::<Whole>(&()));
        let mut node = None;
        if !question.fresh {
            match self.request(&object, api.get_with(&question.name, &GetParams::any())).await {
                Err(ClusterError::NotFound { .. }) => {}
                answer => node = Some(answer?),
            }
        }
        let node = match node {
            Some(node) => node,
            None => self.request(&object, api.get(&question.name)).await?,
        };
        Ok(facts::node(&node.metadata, node.status.as_ref()))
    }
}
