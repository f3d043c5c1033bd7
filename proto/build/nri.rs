//! The runtime's ttrpc services.

use std::{env, fs, path::PathBuf};

use anyhow::Context as _;
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

/// Generate messages, clients and server traits from `proto/nri.proto`.
pub(crate) fn generate() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=proto/nri.proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("nri");
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    Codegen::new()
        .out_dir(&out)
        .include("proto")
        .input("proto/nri.proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Customize::default() })
        .run()
        .context("generate proto/nri.proto")?;
    // The generator's own mod.rs starts with an inner attribute, which `include!` does not allow.
    fs::write(out.join("bindings.rs"), "pub mod nri;\npub mod nri_ttrpc;\n").context("write bindings.rs")
}
