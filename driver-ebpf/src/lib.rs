//! What Netferry's programs decide about a frame.
//!
//! [`judge::judge`] is written against two narrow traits, [`packet::Packet`] and [`tables::Tables`]. In the
//! kernel they are a socket buffer and BPF maps; in the unit tests a byte slice and hash maps. Everything is
//! monomorphised and inlined into the entry points of `main.rs`.
#![cfg_attr(target_arch = "bpf", no_std, feature(asm_experimental_arch))]
// The verifier follows values through registers: a call that is not inlined loses what it knows of them.
#![allow(clippy::inline_always)]
// References stay references when everything is inlined.
#![allow(clippy::trivially_copy_pass_by_ref)]
// Lengths and offsets in a frame have 16 bits, numbers in a packed word their place; the checks are next to the casts.
#![allow(clippy::cast_possible_truncation)]
// Only verdicts must not be lost, and those say so.
#![allow(clippy::must_use_candidate)]

pub mod admit;
pub mod answer;
pub mod arp;
pub mod arrive;
pub mod atomic;
pub mod datagram;
pub mod deliver;
pub mod depart;
pub mod established;
pub mod flows;
pub mod forward;
pub mod fragments;
pub mod guard;
pub mod ipv4;
pub mod ipv6;
pub mod judge;
pub mod nd;
pub mod opaque;
pub mod owed;
pub mod packet;
pub mod policy;
pub mod rate;
pub mod related;
pub mod sockopt;
pub mod tables;
pub mod transport;
pub mod vxlan;

#[cfg(target_arch = "bpf")]
pub mod beyond;
#[cfg(target_arch = "bpf")]
mod budget;
#[cfg(target_arch = "bpf")]
pub mod maps;
#[cfg(target_arch = "bpf")]
mod refuse;
#[cfg(target_arch = "bpf")]
pub mod short;
#[cfg(target_arch = "bpf")]
pub mod skb;
#[cfg(target_arch = "bpf")]
pub mod sweep;
#[cfg(target_arch = "bpf")]
pub mod tunnel;
#[cfg(target_arch = "bpf")]
pub mod xdp;

#[cfg(test)]
mod tests;
