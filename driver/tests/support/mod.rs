//! What the tests and the demo play with: namespaces, and the other side of every wire.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod apiserver;
pub mod containerd;
pub mod daemon;
pub mod kubelet;
pub mod netns;
pub mod plugin;
pub mod runtime;
mod skip;

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub(crate) use skip::skip;
