//! A layer: files as a tarball whose bytes depend on nothing but names, modes, contents and one time.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
};

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};

/// Files to be, by path, without a leading slash.
pub(crate) struct Layer {
    files: BTreeMap<String, (u32, Vec<u8>)>,
    time: u64,
}

/// A layer that is written.
pub(crate) struct Packed {
    /// The compressed tarball.
    pub(crate) gzip: Vec<u8>,
    /// The digest of what is compressed.
    pub(crate) diff_id: String,
}

impl Layer {
    /// Without files; all are of this time.
    pub(crate) fn new(time: u64) -> Self {
        Self { files: BTreeMap::new(), time }
    }

    /// Adds a file; its folders are there by themselves.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.files.insert(path.trim_start_matches('/').to_owned(), (mode, bytes));
    }

    /// Writes the tarball.
    pub(crate) fn pack(&self) -> Result<Packed> {
        let folders: BTreeSet<String> = self
            .files
            .keys()
            .flat_map(|path| Path::new(path).ancestors().skip(1))
            .filter(|folder| !folder.as_os_str().is_empty())
            .map(|folder| format!("{}/", folder.display()))
            .collect();
        let mut entries: Vec<(&str, u32, &[u8])> =
            folders.iter().map(|folder| (folder.as_str(), 0o755, &[] as &[u8])).collect();
        entries
            .extend(self.files.iter().map(|(path, (mode, bytes))| (path.as_str(), *mode, bytes.as_slice())));
        // A folder is before what is in it.
        entries.sort_unstable();
        let tarball = tarball(&entries, self.time)?;
        // Level 6 of one implementation, no name, no time.
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
        gzip.write_all(&tarball)?;
        Ok(Packed { gzip: gzip.finish()?, diff_id: digest(&tarball) })
    }
}

/// A tarball of files and folders (whose names end with a slash), all of the user 0.
pub(crate) fn tarball(entries: &[(&str, u32, &[u8])], time: u64) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(if path.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        header.set_size(bytes.len().try_into()?);
        builder.append_data(&mut header, path, *bytes)?;
    }
    Ok(builder.into_inner()?)
}

/// As OCI writes it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_depends_on_its_contents_alone() {
        let pack = |names: &[&str], time| {
            let mut layer = Layer::new(time);
            for name in names {
                layer.file(name, 0o755, name.trim_start_matches('/').as_bytes().to_vec());
            }
            layer.pack().expect("a layer")
        };
        let (one, other) = (pack(&["usr/bin/a", "etc/b"], 7), pack(&["/etc/b", "/usr/bin/a"], 7));
        assert_eq!(one.gzip, other.gzip);
        assert_eq!(one.diff_id, other.diff_id);
        assert_ne!(one.diff_id, pack(&["usr/bin/a", "etc/b"], 8).diff_id);
    }

    #[test]
    fn entries_are_sorted_and_of_root() {
        let mut layer = Layer::new(1_700_000_000);
        layer.file("usr/bin/a", 0o755, b"program".to_vec());
        layer.file("etc/b", 0o644, Vec::new());
        let packed = layer.pack().expect("a layer");
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.gzip.as_slice()));
        let mut seen = Vec::new();
        for entry in archive.entries().expect("entries") {
            let entry = entry.expect("entry");
            let header = entry.header();
            assert_eq!((header.uid().ok(), header.gid().ok()), (Some(0), Some(0)));
            assert_eq!(header.mtime().ok(), Some(1_700_000_000));
            seen.push((entry.path().expect("path").display().to_string(), header.mode().expect("mode")));
        }
        let expected =
            [("etc/", 0o755), ("etc/b", 0o644), ("usr/", 0o755), ("usr/bin/", 0o755), ("usr/bin/a", 0o755)];
        assert_eq!(seen, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn digests_are_those_of_sha256() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
