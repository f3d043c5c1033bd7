//! The kubelet's side of the wire: plugin registration, DRA v1 and v1beta1, DRA health.
