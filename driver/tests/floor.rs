//! A kernel that is too old is refused by the name of what it lacks. Every kernel is treated as one here;
//! `cargo xtask vm --kernel 5.10` runs this on one that is.
#![allow(missing_docs, reason = "a test binary")]

#[path = "datapath/world.rs"]
mod world;

use std::path::Path;

use netferry::datapath::{AyaDatapath, DatapathError, Features};
use world::{Root, able};

fn refused(root: &Path, features: Features) {
    let Err(error) = AyaDatapath::open_with(root, features) else { panic!("opened") };
    assert!(matches!(error, DatapathError::Unsupported { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("lacks bpf_ktime_get_coarse_ns (upstream since Linux 5.11)"), "{text}");
    assert!(text.contains("use Linux 5.15 or later"), "{text}");
    assert!(!root.exists(), "it left something");
}

#[test]
fn what_is_missing_is_named() {
    if !able("what_is_missing_is_named") {
        return;
    }
    let root = Root(format!("/sys/fs/bpf/nf-floor-{}", std::process::id()).into());
    let features = Features::probe();
    println!("{features:?}");
    refused(&root.0, Features { coarse_clock: false, ..features });
    let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
    if release.starts_with("5.10.") {
        assert!(!features.coarse_clock && !features.tcx, "{features:?}");
        refused(&root.0, features);
        let lacking: Vec<_> = features.each().into_iter().filter(|(_, there, _)| !there).collect();
        assert!(lacking.contains(&("coarse clock", false, "the programs do not load")), "{lacking:?}");
    } else {
        assert!(features.coarse_clock, "{release}");
        AyaDatapath::open_with(&root.0, features).expect("a kernel above the floor");
    }
}
