//! Where things are pinned: `<root>/maps/<name>`, `<root>/links/<endpoint>/{ingress,egress}` and
//! `<root>/uplinks/{uplink,overlay}-<ifindex>`. Without tcx there are programs instead of links:
//! `<root>/links/<endpoint>/clsact_<interface>_{ingress,egress}`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use netferry_common::maps;

use super::sys::{self, Hook, TcxInfo};
use super::{AttachedProgram, DatapathError, EndpointId, bpf_error};

/// The root of this version's pins on a host.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/netferry/v1";

const _: () = assert!(netferry_common::ABI == 1, "the folder in DEFAULT_ROOT carries the version");

/// A folder on a bpf file system.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

const CLSACT: &str = "clsact";
const NEW: &str = "new";

/// Interface index and hook in the name of a program's pin.
fn of_filter(name: &str) -> Option<(u32, Hook)> {
    let mut parts = name.strip_prefix(CLSACT)?.strip_prefix('_')?.split('_');
    let (ifindex, hook) = (parts.next()?.parse().ok()?, parts.next()?);
    let hook = Hook::BOTH.into_iter().find(|known| known.pin() == hook)?;
    matches!((parts.next(), parts.next()), (None | Some(NEW), None)).then_some((ifindex, hook))
}

/// A pinned program that a filter runs.
pub(super) struct PinnedProgram {
    pub(super) hook: Hook,
    pub(super) path: PathBuf,
    /// The kernel's id of the program.
    pub(super) id: u32,
    /// The device, as numbered in the namespace it is in.
    pub(super) ifindex: u32,
}

impl PinnedProgram {
    /// What it is called in the eBPF object.
    pub(super) fn name(&self, endpoint: EndpointId) -> Result<&'static str, DatapathError> {
        super::object::known_name(self.id, endpoint)
    }

    pub(super) fn unpin(&self) -> Result<(), DatapathError> {
        absent(std::fs::remove_file(&self.path))
            .map_err(|source| bpf_error(format!("unpin the program {}", self.path.display()), source))
    }
}

impl From<PinnedProgram> for AttachedProgram {
    fn from(program: PinnedProgram) -> Self {
        Self {
            hook: program.hook.clsact_name().to_owned(),
            id: program.id,
            name: sys::program_name(program.id).unwrap_or_default(),
            pin: program.path,
            ifindex: program.ifindex,
        }
    }
}

/// A program that is pinned beside the one it takes the place of.
pub(super) struct FreshProgram {
    pub(super) id: u32,
    beside: PathBuf,
    path: PathBuf,
}

impl FreshProgram {
    /// Its filter runs: the pin takes its place.
    pub(super) fn settle(self) -> Result<(), DatapathError> {
        std::fs::rename(&self.beside, &self.path)
            .map_err(|source| bpf_error(format!("pin the program {}", self.path.display()), source))
    }
}

/// A pinned link and what the kernel says about it.
pub(super) struct PinnedLink {
    pub(super) hook: Hook,
    pub(super) path: PathBuf,
    pub(super) fd: OwnedFd,
    pub(super) info: TcxInfo,
}

impl PinnedLink {
    /// Pins a link in the place of this one, which is then detached. The pin is there all the time.
    pub(super) fn replace(&self, new: &OwnedFd) -> Result<(), DatapathError> {
        // bpffs takes no dots in names.
        let beside = self.path.with_file_name(format!("{}_new", self.hook.pin()));
        let swap = || {
            absent(std::fs::remove_file(&beside))?;
            sys::pin(new.as_fd(), &beside)?;
            std::fs::rename(&beside, &self.path)
        };
        swap().map_err(|source| bpf_error(format!("pin the link {} anew", self.path.display()), source))?;
        sys::detach(self.fd.as_fd())
            .map_err(|source| bpf_error(format!("detach the old link {}", self.path.display()), source))
    }

    /// Whether the device is in the caller's namespace: there, the list of its programs has this link's. The
    /// same index elsewhere is another device.
    pub(super) fn runs_here(&self) -> bool {
        sys::query(self.info.ifindex, self.hook).is_ok_and(|programs| programs.contains(&self.info.program))
    }

    /// Detaches and unpins the link.
    pub(super) fn remove(&self) -> Result<(), DatapathError> {
        match sys::detach(self.fd.as_fd()) {
            // Already detached, or the device is gone; a kernel that cannot detach at once does it on unpin.
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ENOLINK | libc::ENODEV | libc::EOPNOTSUPP | libc::EINVAL)
                ) =>
            {
                return Err(bpf_error(format!("detach the link {}", self.path.display()), error));
            }
            _ => {}
        }
        absent(std::fs::remove_file(&self.path))
            .map_err(|source| bpf_error(format!("unpin the link {}", self.path.display()), source))
    }
}

/// A pinned bpf link and what the kernel says of it, if something is pinned there.
pub(super) fn read_pinned<T>(
    path: &Path,
    info: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> Result<Option<(OwnedFd, T)>, DatapathError> {
    let read = || {
        let fd = sys::get_pinned(path)?;
        let info = info(fd.as_fd())?;
        Ok::<_, io::Error>((fd, info))
    };
    match read() {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(bpf_error(format!("read the pinned link {}", path.display()), source)),
    }
}

impl Pins {
    /// Checks that the root is on a bpf file system, and makes its folders.
    pub(super) fn create(root: &Path) -> Result<Self, DatapathError> {
        check_bpffs(root)?;
        let pins = Self { root: root.to_owned() };
        for folder in [pins.maps(), pins.links(), pins.uplinks()] {
            std::fs::create_dir_all(&folder)
                .map_err(|source| bpf_error(format!("make the folder {}", folder.display()), source))?;
        }
        Ok(pins)
    }

    /// The pins that a daemon has made; makes nothing.
    pub(super) fn existing(root: &Path) -> Result<Self, DatapathError> {
        let pins = Self { root: root.to_owned() };
        let there = |path: PathBuf| match path.try_exists() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(DatapathError::NotPermitted),
            found => Ok(found.unwrap_or(false)),
        };
        let mut missing = Vec::new();
        for &name in maps::ALL {
            if !there(pins.maps().join(name))? {
                missing.push(name);
            }
        }
        if missing.len() == maps::ALL.len() || !there(pins.links())? || !there(pins.uplinks())? {
            return Err(DatapathError::Absent { root: root.to_owned() });
        }
        if !missing.is_empty() {
            let problem = format!("without {}: another version has made it", missing.join(", "));
            return Err(bpf_error(format!("use the maps below {}", root.display()), problem));
        }
        Ok(pins)
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn uplinks(&self) -> PathBuf {
        self.root.join("uplinks")
    }

    /// Pins the link of a program on an uplink or a tunnel device.
    pub(super) fn pin_border(&self, name: &str, link: &OwnedFd) -> Result<(), DatapathError> {
        let path = self.uplinks().join(name);
        sys::pin(link.as_fd(), &path)
            .map_err(|source| bpf_error(format!("pin the link {}", path.display()), source))
    }

    /// That link, if it is pinned.
    pub(super) fn border(&self, name: &str) -> Result<Option<PinnedLink>, DatapathError> {
        Self::read(Hook::Ingress, self.uplinks().join(name))
    }

    /// Names of all of these pins.
    pub(super) fn borders(&self) -> Result<Vec<String>, DatapathError> {
        let folder = self.uplinks();
        let list = || {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&folder)? {
                names.extend(entry?.file_name().into_string());
            }
            Ok::<_, io::Error>(names)
        };
        list().map_err(|source| bpf_error(format!("list the pins in {}", folder.display()), source))
    }

    pub(super) fn folder(&self, id: EndpointId) -> PathBuf {
        self.links().join(id.to_string())
    }

    /// Pins a link of an endpoint.
    pub(super) fn pin(&self, id: EndpointId, hook: Hook, link: &OwnedFd) -> Result<PathBuf, DatapathError> {
        let folder = self.folder(id);
        let path = folder.join(hook.pin());
        let pin = || {
            match std::fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            sys::pin(link.as_fd(), &path)
        };
        pin().map_err(|source| bpf_error(format!("pin the link {}", path.display()), source))?;
        Ok(path)
    }

    /// One pinned link of an endpoint, if there is one.
    pub(super) fn link(&self, id: EndpointId, hook: Hook) -> Result<Option<PinnedLink>, DatapathError> {
        Self::read(hook, self.folder(id).join(hook.pin()))
    }

    fn read(hook: Hook, path: PathBuf) -> Result<Option<PinnedLink>, DatapathError> {
        let found = read_pinned(&path, sys::link_info)?;
        Ok(found.map(|(fd, info)| PinnedLink { hook, path, fd, info }))
    }

    /// The pinned links of an endpoint, ingress first.
    pub(super) fn links_of(&self, id: EndpointId) -> Result<Vec<PinnedLink>, DatapathError> {
        let mut links = Vec::with_capacity(2);
        for hook in Hook::BOTH {
            links.extend(self.link(id, hook)?);
        }
        Ok(links)
    }

    /// Pins a program of an endpoint that a filter is to run, beside the one that it runs now.
    pub(super) fn pin_program(
        &self,
        id: EndpointId,
        ifindex: u32,
        hook: Hook,
        program: BorrowedFd<'_>,
    ) -> Result<FreshProgram, DatapathError> {
        let folder = self.folder(id);
        let path = folder.join(format!("{CLSACT}_{ifindex}_{}", hook.pin()));
        let beside = path.with_file_name(format!("{CLSACT}_{ifindex}_{}_{NEW}", hook.pin()));
        let pin = || {
            match std::fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            absent(std::fs::remove_file(&beside))?;
            sys::pin(program, &beside)?;
            sys::program_id(program)
        };
        let id =
            pin().map_err(|source| bpf_error(format!("pin the program {}", beside.display()), source))?;
        Ok(FreshProgram { id, beside, path })
    }

    /// The pinned programs of an endpoint whose filters run, or may run, them: ingress first, and of two for one hook
    /// the one that was settled.
    pub(super) fn programs_of(&self, id: EndpointId) -> Result<Vec<PinnedProgram>, DatapathError> {
        let folder = self.folder(id);
        let list = || {
            let mut found = Vec::new();
            let entries = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
                entries => entries?,
            };
            for entry in entries {
                let path = entry?.path();
                let Some((ifindex, hook)) = path.file_name().and_then(|name| of_filter(name.to_str()?))
                else {
                    continue;
                };
                let program = sys::get_pinned(&path)?;
                found.push(PinnedProgram { hook, id: sys::program_id(program.as_fd())?, ifindex, path });
            }
            found.sort_by(|one, other| (one.hook, &one.path).cmp(&(other.hook, &other.path)));
            Ok::<_, io::Error>(found)
        };
        list().map_err(|source| bpf_error(format!("read the pins in {}", folder.display()), source))
    }

    /// Detaches and unpins the links of an endpoint. Whatever else is in its folder goes too.
    pub(super) fn remove(&self, id: EndpointId) -> Result<(), DatapathError> {
        for link in self.links_of(id)? {
            link.remove()?;
        }
        let folder = self.folder(id);
        absent(std::fs::remove_dir_all(&folder))
            .map_err(|source| bpf_error(format!("remove the pins in {}", folder.display()), source))
    }

    /// Ids of all endpoints with a folder.
    pub(super) fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        let folder = self.links();
        let list = || {
            let mut ids = Vec::new();
            for entry in std::fs::read_dir(&folder)? {
                ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<EndpointId>().ok()));
            }
            Ok::<_, io::Error>(ids)
        };
        list().map_err(|source| bpf_error(format!("list the pins in {}", folder.display()), source))
    }

    /// Which endpoint's pinned link runs which program, for the given programs.
    pub(super) fn owners(&self, programs: &[u32]) -> Result<Vec<(u32, EndpointId)>, DatapathError> {
        let mut owners = Vec::new();
        if programs.is_empty() {
            return Ok(owners);
        }
        for id in self.endpoints()? {
            let links = self.links_of(id)?;
            owners.extend(
                links
                    .iter()
                    .map(|link| (link.info.program, id))
                    .filter(|(program, _)| programs.contains(program)),
            );
            let pinned = self.programs_of(id)?;
            owners.extend(
                pinned
                    .iter()
                    .map(|program| (program.id, id))
                    .filter(|(program, _)| programs.contains(program)),
            );
        }
        Ok(owners)
    }
}

/// A removal of what is not there has succeeded.
fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn check_bpffs(root: &Path) -> Result<(), DatapathError> {
    let existing = root.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let on = nix::sys::statfs::statfs(existing)
        .map_err(|source| bpf_error(format!("look at the file system of {}", existing.display()), source))?;
    if on.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    Err(bpf_error(
        format!("use {} for pins", root.display()),
        io::Error::other("it is not on a bpf file system; run: mount -t bpf bpf /sys/fs/bpf"),
    ))
}

impl From<PinnedLink> for AttachedProgram {
    fn from(link: PinnedLink) -> Self {
        Self {
            hook: link.hook.name().to_owned(),
            id: link.info.program,
            name: sys::program_name(link.info.program).unwrap_or_default(),
            pin: link.path,
            ifindex: link.info.ifindex,
        }
    }
}
