//! `cargo xtask image`: the container image as an OCI image layout in a tarball, made without a container engine.
//!
//! The same commit, compiler and folder give the same bytes: every time is the commit's, every list is sorted.

mod binary;
mod check;
mod layer;
mod layout;
mod sbom;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::{
    binary::Arch,
    layer::Layer,
    layout::{Image, Labels},
};
use crate::{
    build_ebpf,
    command::{output, root},
};

/// Options of `image`.
#[derive(Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Where to write the tarball; the bill of materials is written beside it. [default: target/image/netferry-VERSION.tar]
    #[arg(long, value_name = "FILE.tar")]
    output: Option<PathBuf>,
    /// The processor; given twice, the image is for both.
    #[arg(long, value_enum, default_values = ["amd64"])]
    arch: Vec<Arch>,
    /// The image's name. [default: netferry:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    tag: Option<String>,
    /// The cargo profile of the binary; `dev` is built faster.
    #[arg(long, value_name = "NAME", default_value = "release")]
    profile: String,
    /// Take this program, with the shared libraries it needs on this machine, instead of building a static one.
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    binary: Option<PathBuf>,
    /// Import the image into a containerd of its own and run it.
    #[arg(long)]
    check: bool,
    /// The eBPF toolchain.
    #[command(flatten)]
    ebpf: build_ebpf::Options,
}

/// What is read of the version control, so that it is the same in every run.
pub(crate) struct Source {
    /// Seconds since 1970: the time of everything in the image.
    pub(crate) time: u64,
    /// The commit, with `-dirty` if files differ from it.
    revision: Option<String>,
}

/// Makes the image.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.binary.is_none() {
        build_ebpf::run(&options.ebpf)?;
    }
    let output = make(options)?;
    if options.check {
        check::run(&output, &name(options), &labels(&source()?)?)?;
    }
    Ok(())
}

fn make(options: &Options) -> Result<PathBuf> {
    let source = source()?;
    let mut images = Vec::new();
    let mut arches = options.arch.clone();
    arches.sort_unstable();
    arches.dedup();
    ensure!(options.binary.is_none() || arches.len() == 1, "--binary is for one --arch");
    let bill = serde_json::to_vec_pretty(&sbom::of_netferry(&source)?)?;
    for arch in arches {
        let mut layer = Layer::new(source.time);
        match &options.binary {
            Some(file) => binary::add_dynamic(&mut layer, file)?,
            None => binary::add_static(&mut layer, arch, &options.profile)?,
        }
        for licence in ["LICENSE", "LICENSE-GPL-2.0", "LICENSE-MIT"] {
            let text = fs::read(root().join(licence)).with_context(|| licence.to_owned())?;
            layer.file(&format!("usr/share/doc/netferry/{licence}"), 0o644, text);
        }
        layer.file("usr/share/doc/netferry/sbom.spdx.json", 0o644, bill.clone());
        images.push(Image { arch, layer });
    }
    let tarball = options.output.clone().map_or_else(
        || root().join(format!("target/image/netferry-{}.tar", env!("CARGO_PKG_VERSION"))),
        |file| env::current_dir().unwrap_or_default().join(file),
    );
    let folder = tarball.parent().context("the tarball has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (bytes, digest) = layout::write(images, &full_name(&name(options)), &labels(&source)?, source.time)?;
    write(&tarball, &bytes)?;
    let beside = tarball.with_extension("spdx.json");
    write(&beside, &bill)?;
    println!("image: {} ({} bytes, {})\n  digest {digest}", tarball.display(), bytes.len(), name(options));
    println!("bill of materials: {}", beside.display());
    Ok(tarball)
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

fn name(options: &Options) -> String {
    options.tag.clone().unwrap_or_else(|| format!("netferry:{}", env!("CARGO_PKG_VERSION")))
}

/// The name as the kubelet asks a runtime for it: with a registry.
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

/// `SOURCE_DATE_EPOCH`, or the time of the commit.
fn source() -> Result<Source> {
    let git = |words: &[&str]| {
        output(Command::new("git").current_dir(root()).args(["-c", "safe.directory=*"]).args(words))
    };
    let time = match env::var("SOURCE_DATE_EPOCH") {
        Ok(time) => time,
        Err(_) => git(&["log", "-1", "--format=%ct"])
            .context("no commit gives the image its time: set SOURCE_DATE_EPOCH to seconds since 1970")?,
    };
    let time =
        time.parse().with_context(|| format!("SOURCE_DATE_EPOCH: {time:?} is no number of seconds"))?;
    let dirty =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    let revision = git(&["rev-parse", "HEAD"]).map(|commit| commit + if dirty { "-dirty" } else { "" });
    Ok(Source { time, revision })
}

impl Source {
    /// The time as OCI and SPDX write it.
    pub(crate) fn timestamp(&self) -> Result<String> {
        Ok(jiff::Timestamp::from_second(self.time.try_into()?)?.to_string())
    }
}

/// The image's labels, by the names of the OCI image specification.
fn labels(source: &Source) -> Result<Labels> {
    let mut labels: Labels = [
        ("title", "netferry"),
        ("description", "Kubernetes network driver: DRA claims, NRI attach, eBPF isolation"),
        ("licenses", "Apache-2.0 AND (MIT OR GPL-2.0-only)"),
        ("source", env!("CARGO_PKG_REPOSITORY")),
        ("version", env!("CARGO_PKG_VERSION")),
    ]
    .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value.to_owned()))
    .into();
    labels.insert("org.opencontainers.image.created".into(), source.timestamp()?);
    if let Some(revision) = &source.revision {
        labels.insert("org.opencontainers.image.revision".into(), revision.clone());
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_the_kubelet_writes_them() {
        for (short, full) in [
            ("netferry:1", "docker.io/library/netferry:1"),
            ("team/netferry:1", "docker.io/team/netferry:1"),
            ("localhost/netferry:1", "localhost/netferry:1"),
            ("quay.io/team/netferry:1", "quay.io/team/netferry:1"),
        ] {
            assert_eq!(full_name(short), full);
        }
    }

    /// From the program to the answer of a container: some ten seconds, of which most is the import.
    #[test]
    fn containerd_runs_the_image() {
        if !crate::command::is_root() || !crate::apt::is_debian() {
            println!("only root can run containerd, which is Debian's");
            return;
        }
        let binary = binary::of_tests().expect("the program");
        let folder = tempfile::Builder::new().prefix("nf-image-").tempdir().expect("a folder");
        let options = Options {
            output: Some(folder.path().join("image.tar")),
            arch: vec![Arch::of_host().expect("a processor that images are made for")],
            tag: Some("image.netferry.test/netferry:1".into()),
            profile: "dev".into(),
            binary: Some(binary),
            check: true,
            ebpf: build_ebpf::Options::default(),
        };
        run(&options).expect("an image that runs");
        let first = fs::read(folder.path().join("image.tar")).expect("image");
        make(&options).expect("the image again");
        assert!(first == fs::read(folder.path().join("image.tar")).expect("image"), "two runs differ");
    }
}
