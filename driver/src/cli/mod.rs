//! One file a command. The commands ask the running daemon where only it knows, and else read the same checkpoints and
//! pins; but for `block`, they write nothing.

pub mod block;
pub mod devices;
pub mod doctor;
pub mod flows;
pub mod mount_bpffs;
pub mod networks;
pub mod pods;
pub mod policy;
pub mod probe;
mod running;
mod show;
pub mod validate;
