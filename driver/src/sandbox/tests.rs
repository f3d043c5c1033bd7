//! The gate, and every order of what happens to sandboxes, on models of kernel, runtime and cluster.

mod cluster;
mod gate;
mod orders;
mod world;
