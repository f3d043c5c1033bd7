//! The cluster side against an API server stand-in, and against a folder.

#[path = "cluster/kube.rs"]
mod kube;
#[path = "cluster/objects.rs"]
mod objects;
#[path = "cluster/reporter.rs"]
mod reporter;
#[path = "cluster/standalone.rs"]
mod standalone;
mod support;
