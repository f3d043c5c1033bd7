//! What the running daemon says about itself: read-only HTTP over a unix socket for root, asked by the sub-commands.
//!
//! [`report`] has the answers, [`server`] gives them, [`client`] asks.

pub mod client;
pub mod report;
pub mod server;

/// Path of [`report::Status`].
pub const STATUS: &str = "/v1/status";
/// Path of [`report::Devices`].
pub const DEVICES: &str = "/v1/devices";
/// Path of [`report::Claims`].
pub const CLAIMS: &str = "/v1/claims";
