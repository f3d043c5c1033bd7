//! What the driver may ask of an API server: the list that `netferry doctor` asks the server about, and that the
//! manifests' roles grant.

/// Verbs on one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Resource.
    pub resource: &'static str,
    /// Subresource; empty for the resource itself.
    pub subresource: &'static str,
    /// The one object it is restricted to; empty for all.
    pub name: &'static str,
    /// Whether it is for the driver's own namespace alone.
    pub own_namespace: bool,
    /// Verbs.
    pub verbs: &'static [&'static str],
}

const fn all(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Right {
    Right { group, resource, subresource: "", name: "", own_namespace: false, verbs }
}

/// Every right that the driver needs.
pub const RIGHTS: &[Right] = &[
    all("", "nodes", &["get"]),
    all("", "pods", &["get", "list", "watch"]),
    all("", "namespaces", &["get", "list", "watch"]),
    all("resource.k8s.io", "resourceslices", &["list", "watch", "create", "update", "delete"]),
    all("resource.k8s.io", "resourceclaims", &["get", "list", "watch"]),
    Right { subresource: "status", ..all("resource.k8s.io", "resourceclaims", &["patch"]) },
    Right {
        subresource: "driver",
        name: crate::DRIVER_NAME,
        ..all("resource.k8s.io", "resourceclaims", &["associated-node:patch", "associated-node:update"])
    },
    Right { name: "kubernetes", ..all("discovery.k8s.io", "endpointslices", &["get"]) },
    all("netferry.dev", "networks", &["list", "watch", "patch"]),
    Right { subresource: "status", ..all("netferry.dev", "networks", &["patch"]) },
    all("events.k8s.io", "events", &["create", "patch"]),
    Right {
        own_namespace: true,
        ..all("coordination.k8s.io", "leases", &["create", "get", "list", "update"])
    },
];
