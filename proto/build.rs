//! Generates Rust from `proto/*.proto`, with no protoc. One room for each family of wire formats.

#[path = "build/cri.rs"]
mod cri;
#[path = "build/dra.rs"]
mod dra;
#[path = "build/nri.rs"]
mod nri;

fn main() -> anyhow::Result<()> {
    dra::generate()?;
    nri::generate()?;
    cri::generate()
}
