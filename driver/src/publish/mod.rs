//! From the inventory to ResourceSlices: pure mappings ([`slices`], [`ports`]), what is published ([`view`]), what has to be written ([`pool`]), and
//! the publisher that writes it ([`publisher`], through [`writer`]).

pub mod own;
pub mod pool;
pub mod ports;
pub mod publisher;
pub mod slices;
pub mod view;
pub mod writer;
