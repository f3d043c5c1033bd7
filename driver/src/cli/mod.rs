//! One file a command. The commands read the same checkpoints and pins as the daemon and need no daemon, but
//! for `flows --follow`.

pub mod block;
pub mod devices;
pub mod doctor;
pub mod flows;
pub mod networks;
pub mod pods;
pub mod policy;
pub mod probe;
mod show;
pub mod validate;
