//! The OCI image layout: blobs by digest, and an index that names the image.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    binary::Arch,
    layer::{Layer, digest, tarball},
};

/// Labels by name.
pub(crate) type Labels = BTreeMap<String, String>;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// One processor's image.
pub(crate) struct Image {
    /// The processor.
    pub(crate) arch: Arch,
    /// Its files.
    pub(crate) layer: Layer,
}

/// Blobs by the name of their file.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds a blob; its descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.0.insert(format!("blobs/{}", digest.replace(':', "/")), bytes);
        descriptor
    }

    fn add_json(&mut self, media_type: &str, value: &Value) -> Value {
        self.add(media_type, value.to_string().into_bytes())
    }
}

/// The layout's tarball, and the digest of the image.
pub(crate) fn write(images: Vec<Image>, name: &str, labels: &Labels, time: u64) -> Result<(Vec<u8>, String)> {
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    for image in images {
        manifests.push(add_image(&mut blobs, &image, labels)?);
    }
    let mut named = if manifests.len() == 1 {
        manifests.remove(0)
    } else {
        let index =
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, "annotations": labels});
        blobs.add_json(INDEX, &index)
    };
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    // containerd takes the first for the name, others the second.
    named["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    let digest = named["digest"].as_str().unwrap_or_default().to_owned();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]});
    let mut files = blobs.0;
    files.insert("index.json".into(), index.to_string().into_bytes());
    files.insert("oci-layout".into(), json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes());
    let folders = ["blobs/", "blobs/sha256/"].map(|folder| (folder, 0o755, &[] as &[u8]));
    let mut entries = Vec::from(folders);
    entries.extend(files.iter().map(|(path, bytes)| (path.as_str(), 0o644, bytes.as_slice())));
    entries.sort_unstable();
    Ok((tarball(&entries, time)?, digest))
}

/// Adds an image's blobs; the descriptor of its manifest.
fn add_image(blobs: &mut Blobs, image: &Image, labels: &Labels) -> Result<Value> {
    let packed = image.layer.pack()?;
    let layer = blobs.add(LAYER, packed.gzip);
    let platform = json!({"architecture": image.arch.name(), "os": "linux"});
    let config = json!({
        "created": labels.get("org.opencontainers.image.created"),
        "architecture": image.arch.name(),
        "os": "linux",
        "config": {
            "User": "0",
            "Env": ["PATH=/usr/local/bin"],
            "Entrypoint": ["/usr/local/bin/netferry"],
            "Cmd": ["run"],
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [packed.diff_id]},
    });
    let config = blobs.add_json(CONFIG, &config);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        "annotations": labels});
    let mut manifest = blobs.add_json(MANIFEST, &manifest);
    manifest["platform"] = platform;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image(arch: Arch) -> Image {
        let mut layer = Layer::new(7);
        layer.file("usr/local/bin/netferry", 0o755, arch.name().into());
        Image { arch, layer }
    }

    fn files(tarball: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(tarball).entries().expect("entries") {
            let mut entry = entry.expect("entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("bytes");
            files.insert(entry.path().expect("path").display().to_string(), bytes);
        }
        files
    }

    fn blob(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
        let digest = descriptor["digest"].as_str().expect("digest").replace(':', "/");
        let bytes = &files[&format!("blobs/{digest}")];
        assert_eq!(descriptor["size"], bytes.len());
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn every_descriptor_leads_to_its_blob_and_names_its_platform() {
        let labels: Labels = [("org.opencontainers.image.version".to_owned(), "1".to_owned())].into();
        let both = || vec![image(Arch::Amd64), image(Arch::Arm64)];
        let (tarball, digest) = write(both(), "example.com/netferry:1", &labels, 7).expect("layout");
        assert_eq!(write(both(), "example.com/netferry:1", &labels, 7).expect("layout").0, tarball);
        let files = files(&tarball);
        let index: Value = serde_json::from_slice(&files["index.json"]).expect("JSON");
        let named = &index["manifests"][0];
        assert_eq!(named["digest"], digest);
        assert_eq!(named["annotations"]["io.containerd.image.name"], "example.com/netferry:1");
        assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1");
        for (nth, arch) in ["amd64", "arm64"].iter().enumerate() {
            let manifest = &blob(&files, named)["manifests"][nth];
            assert_eq!(manifest["platform"], json!({"architecture": arch, "os": "linux"}));
            let manifest = blob(&files, manifest);
            let config = blob(&files, &manifest["config"]);
            assert_eq!((&config["architecture"], &config["config"]["User"]), (&json!(arch), &json!("0")));
            assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "1");
        }
        let (tarball, _) = write(vec![image(Arch::Arm64)], "netferry", &labels, 7).expect("layout");
        let index: Value = serde_json::from_slice(&self::files(&tarball)["index.json"]).expect("JSON");
        assert_eq!(index["manifests"][0]["platform"]["architecture"], "arm64");
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "latest");
    }
}
