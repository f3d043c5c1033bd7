//! NRI `nri.pkg.api.v1alpha1`: messages, the runtime's client and the plugin's server trait, over ttrpc.

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    reason = "generated"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/nri/bindings.rs"));
}

pub use generated::{nri::*, nri_ttrpc::*};
