//! Test support: kubelet.
