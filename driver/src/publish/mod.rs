//! From the inventory to ResourceSlices: a pure mapping ([`slices`]), what has to be written ([`pool`]), and
//! the publisher that writes it ([`publisher`], through [`writer`]).

pub mod pool;
pub mod publisher;
pub mod slices;
pub mod writer;
