//! CRI `runtime.v1`: messages and the client, for tests against a real runtime.

#![allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]

tonic::include_proto!("runtime.v1");
