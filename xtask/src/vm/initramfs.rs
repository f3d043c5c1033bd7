//! The root file system of a virtual machine: a cpio archive in the format `newc`, of which the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{debian::Kernel, machine::SAYS, modules};
use crate::{
    build_ebpf,
    command::{foreign, root, which},
};

/// Programs of this machine that tests start; busybox has less able ones of some names.
const PROGRAMS: [&str; 8] = ["bpftool", "ethtool", "ip", "nsenter", "ping", "setpriv", "tc", "unshare"];

/// What `init` does before the tests: everything a booted machine has that tests look for. Nothing is mounted over a folder
/// that the archive has files in: the workspace may be anywhere, also below `/run`, `/tmp` or `/var/tmp`.
const BEGIN: &str = r#"#!/bin/busybox sh
export PATH=/usr/bin:/bin HOME=/ TMPDIR=/tmp RUST_BACKTRACE=1 NETFERRY_SKIP_LOG=/skips
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
[ -n "$(ls -A /run)" ] || mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /run /var/run
for module in /modules/*; do insmod $module || echo module $module is refused; done
ip link set lo up
"#;

/// What goes into the archive.
pub(crate) struct Contents {
    entries: BTreeMap<PathBuf, Entry>,
    libraries: BTreeSet<PathBuf>,
    init: String,
}

enum Entry {
    Folder,
    File(Vec<u8>),
}

impl Contents {
    /// A system without tests yet.
    pub(crate) fn new(kernel: &Kernel) -> Result<Self> {
        let mut contents =
            Self { entries: BTreeMap::new(), libraries: BTreeSet::new(), init: BEGIN.to_owned() };
        for folder in ["dev", "proc", "sys", "tmp", "run", "var", "bin"] {
            contents.folder(Path::new(folder));
        }
        let busybox = which("busybox").context("busybox is missing")?;
        contents.file(Path::new("bin/busybox"), fs::read(busybox)?);
        for program in PROGRAMS {
            let found = which(program).with_context(|| format!("{program} is missing"))?;
            contents.libraries_of(&found)?;
            contents.file(&Path::new("usr/bin").join(program), fs::read(found)?);
        }
        for (place, module) in modules::load_order(&kernel.modules)?.into_iter().enumerate() {
            contents.file(Path::new(&format!("modules/{place:02}-{}.ko", module.name)), module.bytes);
        }
        // Where the tests look for it.
        let object = build_ebpf::object();
        contents.file(object.strip_prefix("/")?, fs::read(&object)?);
        contents.folder(root().join("driver").strip_prefix("/")?);
        Ok(contents)
    }

    /// Adds a test binary, to be run with arguments and variables of its environment.
    pub(crate) fn run(
        &mut self,
        name: &str,
        binary: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<()> {
        let inside = Path::new("tests").join(name);
        if !self.entries.contains_key(&inside) {
            self.libraries_of(binary)?;
            self.file(&inside, without_debug(binary)?);
        }
        let arguments: Vec<String> = arguments.iter().map(|word| format!("'{word}'")).collect();
        let arguments = arguments.join(" ");
        let variables =
            variables.iter().fold(String::new(), |before, (name, value)| before + name + "='" + value + "' ");
        let _ = writeln!(self.init, "echo '{SAYS} run {name}'; {variables}/tests/{name} {arguments}");
        let _ = writeln!(self.init, "echo \"{SAYS} end {name} $?\"");
        Ok(())
    }

    /// Writes the archive.
    pub(crate) fn write(mut self, image: &Path) -> Result<()> {
        for library in std::mem::take(&mut self.libraries) {
            self.file(library.strip_prefix("/")?, fs::read(&library)?);
        }
        let end =
            format!("while read -r line; do echo \"{SAYS} skip $line\"; done </skips\necho '{SAYS} done'\n");
        let init = format!("{}touch /skips\n{end}poweroff -f\n", self.init);
        self.file(Path::new("init"), init.into_bytes());
        let mut archive = Vec::new();
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let name = path.to_str().with_context(|| format!("the name {}", path.display()))?;
            match entry {
                Entry::Folder => member(&mut archive, inode, 0o040_755, name, &[]),
                Entry::File(bytes) => member(&mut archive, inode, 0o100_755, name, bytes),
            }
        }
        member(&mut archive, 0, 0, "TRAILER!!!", &[]);
        fs::write(image, archive).with_context(|| format!("write {}", image.display()))
    }

    fn folder(&mut self, path: &Path) {
        for folder in path.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
            self.entries.entry(folder.to_owned()).or_insert(Entry::Folder);
        }
    }

    fn file(&mut self, path: &Path, bytes: Vec<u8>) {
        if let Some(folder) = path.parent() {
            self.folder(folder);
        }
        self.entries.insert(path.to_owned(), Entry::File(bytes));
    }

    /// Notes the shared libraries of a program, as the dynamic loader finds them here.
    fn libraries_of(&mut self, program: &Path) -> Result<()> {
        let output = foreign("ldd").arg(program).output().context("start ldd")?;
        ensure!(output.status.success(), "ldd {}: not a dynamic program", program.display());
        self.libraries.extend(libraries(&String::from_utf8_lossy(&output.stdout)));
        Ok(())
    }
}

/// The files in the output of ldd.
fn libraries(listed: &str) -> impl Iterator<Item = PathBuf> {
    listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from)
}

/// A program without debug information: less to unpack for an emulated processor.
fn without_debug(binary: &Path) -> Result<Vec<u8>> {
    let stripped = binary.with_extension("stripped");
    crate::command::run(foreign("objcopy").arg("--strip-debug").arg(binary).arg(&stripped))?;
    let bytes = fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))?;
    fs::remove_file(&stripped)?;
    Ok(bytes)
}

/// Appends one member. Numbers are eight hexadecimal digits; name and data are padded to four bytes.
fn member(archive: &mut Vec<u8>, inode: usize, mode: u32, name: &str, data: &[u8]) {
    let mut header = String::from("070701");
    let (links, name_length) = (1, name.len() + 1);
    // inode, mode, uid, gid, links, mtime, size, device (2), device it stands for (2), length of name, checksum
    let fields = [inode, mode as usize, 0, 0, links, 0, data.len(), 0, 0, 0, 0, name_length, 0];
    for field in fields {
        let _ = write!(header, "{field:08x}");
    }
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned() {
        let mut archive = Vec::new();
        member(&mut archive, 7, 0o100_755, "init", b"echo");
        assert!(archive.starts_with(b"07070100000007000081ed"));
        assert_eq!(archive.len(), 110 + 6 + 4);
        assert!(archive.ends_with(b"init\0\0echo"));
        member(&mut archive, 8, 0, "ab", b"c");
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn no_mount_hides_the_workspace() {
        for line in BEGIN.lines().filter(|line| line.contains("mount -t")) {
            let target = line.rsplit(' ').next().expect("a folder");
            // What belongs to the kernel has no workspace.
            let kernel = ["/proc", "/sys", "/dev"].iter().any(|folder| target.starts_with(folder));
            assert!(kernel || line.starts_with(&format!("[ -n \"$(ls -A {target})\" ] || ")), "{line}");
        }
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let listed =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(
            libraries(listed).collect::<Vec<_>>(),
            ["/lib/x/libc.so.6", "/lib64/ld.so.2"].map(PathBuf::from)
        );
    }
}
