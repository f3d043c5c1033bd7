//! One file a command. The commands read the same checkpoints and pins as the daemon and need no daemon.

pub mod devices;
pub mod doctor;
pub mod pods;
mod show;
pub mod validate;
