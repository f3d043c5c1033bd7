//! Wire formats: only the messages and fields Netferry uses, each with its source.

#[cfg(feature = "cri")]
pub mod cri;
pub mod dra;
pub mod nri;
