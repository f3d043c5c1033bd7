//! An image built by hand, for sandboxes and for containers: busybox in an OCI image layout.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::private_apt::run;

/// The image's name in the runtime. Its domain is not one of a registry's: nothing pulls it.
pub const PAUSE: &str = "pause.netferry.test/pause:1";

const BUSYBOX: &str = "/bin/busybox";

/// What it runs where nothing else is asked for.
pub const ENTRYPOINT: [&str; 3] = [BUSYBOX, "sleep", "2147483647"];

/// Programs of busybox that containers find by name.
const APPLETS: [&str; 12] =
    ["sh", "sleep", "true", "false", "cat", "ls", "ip", "ping", "nc", "wget", "httpd", "kill"];

/// Write the image as an OCI layout tarball to `to`, with `work` for the pieces.
pub fn write_pause_image(work: &Path, to: &Path) -> anyhow::Result<()> {
    let rootfs = work.join("rootfs");
    for folder in ["bin", "dev", "proc", "sys", "etc", "tmp"] {
        fs::create_dir_all(rootfs.join(folder))?;
    }
    fs::copy(BUSYBOX, rootfs.join("bin/busybox")).with_context(|| format!("copy {BUSYBOX}"))?;
    fs::set_permissions(rootfs.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    for applet in APPLETS {
        let link = rootfs.join("bin").join(applet);
        symlink("busybox", &link).with_context(|| format!("make {}", link.display()))?;
    }
    let layer = work.join("layer.tar");
    run(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&layer).arg("."))?;

    let layout = work.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let platform = json!({"architecture": architecture, "os": "linux"});
    let layer = add(&layout, &layer, "application/vnd.oci.image.layer.v1.tar")?;
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ENTRYPOINT},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = add_json(&layout, work, &config, "application/vnd.oci.image.config.v1+json")?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    let mut manifest = add_json(&layout, work, &manifest, media_type)?;
    // containerd takes only manifests of its own platform, and the name from here.
    manifest["platform"] = platform;
    manifest["annotations"] =
        json!({"io.containerd.image.name": PAUSE, "org.opencontainers.image.ref.name": "1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    run(Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(to).args([
        "oci-layout",
        "index.json",
        "blobs",
    ]))?;
    Ok(())
}

fn add_json(layout: &Path, work: &Path, content: &Value, media_type: &str) -> anyhow::Result<Value> {
    let file = work.join("blob");
    fs::write(&file, content.to_string())?;
    add(layout, &file, media_type)
}

/// Move `file` into the layout; its descriptor.
fn add(layout: &Path, file: &Path, media_type: &str) -> anyhow::Result<Value> {
    let sum = run(Command::new("sha256sum").arg(file))?;
    let sum = sum.split_whitespace().next().context("sha256sum said nothing")?;
    let size = fs::metadata(file)?.len();
    fs::rename(file, layout.join("blobs/sha256").join(sum))?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{sum}"), "size": size}))
}
