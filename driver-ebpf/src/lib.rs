//! What Netferry's programs decide about a frame.
//!
//! [`judge::judge`] is written against two narrow traits, [`packet::Packet`] and [`tables::Tables`]. In the
//! kernel they are a socket buffer and BPF maps; in the unit tests a byte slice and hash maps. Everything is
//! monomorphised and inlined into the entry points of `main.rs`.
#![cfg_attr(target_arch = "bpf", no_std)]
// The verifier follows values through registers: a call that is not inlined loses what it knows of them.
#![allow(clippy::inline_always)]

pub mod arp;
pub mod ipv4;
pub mod ipv6;
pub mod judge;
pub mod nd;
pub mod packet;
pub mod tables;

#[cfg(target_arch = "bpf")]
pub mod maps;
#[cfg(target_arch = "bpf")]
pub mod skb;

#[cfg(test)]
mod tests;
