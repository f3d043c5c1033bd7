//! The API server: reach, versions, rights, features.

use super::{Check, State};
use crate::{
    cluster::kube::{KubeCluster, examine::Examination},
    config::DoctorArgs,
    network::spec::{API_VERSION, GROUP},
    query::report::Status,
    telemetry::chain,
};

const REACH: &str = "API server";

/// Ask it with the kubeconfig, or with the service account in a pod.
pub(super) fn checks(args: &DoctorArgs, status: Option<&Status>) -> Vec<Check> {
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if args.kubeconfig.is_none() && !in_pod {
        let found = Err("not asked: this is no pod, and there is no --kubeconfig".to_owned());
        return vec![Check::of(
            REACH,
            State::Warn,
            found,
            "run this in the daemon's container, or give --kubeconfig",
        )];
    }
    let (node, driver) = match status {
        Some(status) => (status.node.clone(), status.driver.clone()),
        None => (std::env::var("NODE_NAME").unwrap_or_default(), crate::DRIVER_NAME.to_owned()),
    };
    let asked = || -> anyhow::Result<Examination> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let cluster = KubeCluster::connect(args.kubeconfig.as_deref(), &driver, &node).await?;
            Ok(cluster.examine().await?)
        })
    };
    match asked() {
        Err(error) => {
            let cure =
                "the daemon serves prepared claims meanwhile; look at the node's way to the API server";
            vec![Check::of(REACH, State::Fail, Err(format!("{error:#}")), cure)]
        }
        Ok(examination) => results(examination),
    }
}

fn results(of: Examination) -> Vec<Check> {
    let networks = if of.networks.iter().any(|served| format!("{GROUP}/{served}") == API_VERSION) {
        Ok(API_VERSION.to_owned())
    } else if of.networks.is_empty() {
        Err(format!("{GROUP} is not served"))
    } else {
        Err(format!("{GROUP} is served as {} only", of.networks.join(", ")))
    };
    let rights = match of.denied {
        Ok(denied) if denied.is_empty() => Ok("all that are needed".to_owned()),
        Ok(denied) => Err(format!("missing: {}", denied.join(", "))),
        Err(error) => Err(chain(&error)),
    };
    let shares = match of.shares {
        Some(true) => Ok("on".to_owned()),
        Some(false) => {
            Err("off: the server drops its fields, and each network has one port a node".to_owned())
        }
        None => Ok("not known: no network is published here".to_owned()),
    };
    vec![
        Check::of(REACH, State::Fail, Ok(of.version), ""),
        Check::of(
            "resource.k8s.io",
            State::Fail,
            of.dra.map_err(|error| chain(&error)),
            "Kubernetes 1.34 or later, or the feature gate DynamicResourceAllocation with the beta APIs",
        ),
        Check::of("networks", State::Warn, networks, "kubectl apply -f manifests/base/crd.yaml"),
        Check::of("rights", State::Fail, rights, "kubectl apply -k manifests"),
        Check::of(
            "DRAConsumableCapacity",
            State::Warn,
            shares,
            "turn the feature gate on in API server, scheduler and kubelet (on by default from Kubernetes 1.36)",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lack_has_a_cure() {
        let lacking = Examination {
            version: "v1.36.2".to_owned(),
            dra: Ok("resource.k8s.io/v1".to_owned()),
            networks: vec!["v0".to_owned()],
            denied: Ok(vec!["watch pods".to_owned()]),
            shares: Some(false),
        };
        let checks = results(lacking);
        let states: Vec<_> = checks.iter().map(|check| check.state).collect();
        assert_eq!(states, [State::Ok, State::Ok, State::Warn, State::Fail, State::Warn]);
        assert!(checks.iter().all(|check| check.state == State::Ok || !check.cure.is_empty()), "{checks:?}");
        assert_eq!(checks[3].found, "missing: watch pods");
    }
}
