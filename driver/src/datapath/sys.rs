//! The bpf system calls that aya keeps to itself: links by interface index, their kernel information, and
//! synchronous detach; what waits for descriptors; and what tells namespaces apart. The only file of the driver with `unsafe` in it.
//!
//! Attributes are the leading fields of `union bpf_attr` (include/uapi/linux/bpf.h), one struct a command: the
//! kernel takes the fields it is not given as zero.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use bytemuck::{Pod, Zeroable};
use socket2::Socket;
use tokio::io::unix::AsyncFd;

const BPF_OBJ_PIN: i64 = 6;
const BPF_OBJ_GET: i64 = 7;
const BPF_PROG_GET_FD_BY_ID: i64 = 13;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_PROG_QUERY: i64 = 16;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_UPDATE: i64 = 29;
const BPF_LINK_DETACH: i64 = 34;

const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// `BPF_XDP` of `enum bpf_attach_type`.
const BPF_XDP: u32 = 37;
/// linux/if_link.h: by the driver, or not at all.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Which way through a device, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// Frames the device receives.
    Ingress,
    /// Frames the device sends.
    Egress,
}

impl Hook {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }

    /// File name of its pin.
    pub(super) const fn pin(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Name in output, where a filter of a clsact qdisc stands in for a tcx link.
    pub(super) const fn clsact_name(self) -> &'static str {
        match self {
            Self::Ingress => "clsact/ingress",
            Self::Egress => "clsact/egress",
        }
    }

    /// Name in output.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "tcx/ingress",
            Self::Egress => "tcx/egress",
        }
    }
}

/// What the kernel says about a tcx link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcxInfo {
    /// Id of the program it runs.
    pub(super) program: u32,
    /// Index of the device in whatever namespace it is; 0 once it is gone or the link is detached.
    pub(super) ifindex: u32,
    /// `None` if the pin is some other kind of link.
    pub(super) hook: Option<Hook>,
}

/// # Safety
/// Every pointer inside `attr` is valid for what `command` does with it, for the length given beside it.
unsafe fn bpf<T: Pod>(command: i64, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is an exclusive reference to plain data of the size given; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd =
        i32::try_from(fd).map_err(|_| io::Error::other("the kernel returned a descriptor out of range"))?;
    // SAFETY: called only with a descriptor that a bpf call has just made for us, open with close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    of.cast::<u8>() as u64
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens what is pinned at a path.
pub(super) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: address(path.as_ptr()), bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    owned(unsafe { bpf(BPF_OBJ_GET, &mut attr) }?)
}

/// Pins a link, program or map.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: address(path.as_ptr()), bpf_fd: number(object), file_flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program to a device (index in the caller's namespace), before every program that is there.
/// The link lasts as long as the descriptor, or its pin.
pub(super) fn attach_first(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: number(program),
        target_ifindex: ifindex,
        attach_type: hook.attach_type(),
        flags: BPF_F_BEFORE,
        ..LinkCreateAttr::zeroed()
    };
    // SAFETY: no pointers in this attribute.
    owned(unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?)
}

/// Attaches an XDP program to a device (index in the caller's namespace), in its driver. `EOPNOTSUPP` if the driver
/// cannot, `EBUSY` or `EEXIST` if there is another.
pub(super) fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: number(program),
        target_ifindex: ifindex,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
        ..LinkCreateAttr::zeroed()
    };
    // SAFETY: no pointers in this attribute.
    owned(unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?)
}

/// A hook of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CgroupHook {
    /// `BPF_CGROUP_SETSOCKOPT`.
    SetSockopt,
    /// `BPF_LSM_CGROUP`; which hook is the program's own.
    Lsm,
}

/// Attaches a program to a cgroup, beside those that are there.
pub(super) fn attach_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: number(program),
        target_ifindex: number(cgroup),
        attach_type: match hook {
            CgroupHook::SetSockopt => 22,
            CgroupHook::Lsm => 43,
        },
        ..LinkCreateAttr::zeroed()
    };
    // SAFETY: no pointers in this attribute.
    owned(unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link; no frame sees neither or both. `ENOLINK` if the device is gone.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link_fd: number(link), new_prog_fd: number(program), ..LinkUpdateAttr::zeroed() };
    // SAFETY: no pointers in this attribute.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link now. Closing its last descriptor would do the same, but some time later.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = number(link);
    // SAFETY: no pointers in this attribute.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The leading fields of `struct bpf_link_info`, with those of its tcx part.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
}

/// The leading fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

fn info<T: Pod>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut answer = T::zeroed();
    let mut attr = InfoAttr {
        bpf_fd: number(object),
        // At most some hundred bytes.
        info_len: u32::try_from(size_of::<T>()).unwrap_or(0),
        info: address(std::ptr::from_mut(&mut answer)),
    };
    // SAFETY: `answer` is plain data of `info_len` bytes; its inner pointers are null with zero lengths.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(answer)
}

/// Asks about a tcx link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<TcxInfo> {
    let info: LinkInfo = info(link)?;
    let hook = Hook::BOTH
        .into_iter()
        .find(|hook| info.kind == BPF_LINK_TYPE_TCX && info.attach_type == hook.attach_type());
    Ok(TcxInfo { program: info.prog_id, ifindex: if hook.is_some() { info.ifindex } else { 0 }, hook })
}

/// What the kernel says about a link of the guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GuardInfo {
    /// Id of the program it runs.
    pub(super) program: u32,
    /// Index of the device in whatever namespace it is, or id of the cgroup; 0 once it is gone or the link is detached.
    pub(super) at: u64,
}

/// The leading fields of `struct bpf_link_info`, with those of its cgroup part.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    end: u32,
}

/// Asks about an XDP or a cgroup link. `EINVAL` if it is another kind of link.
pub(super) fn guard_info(link: BorrowedFd<'_>) -> io::Result<GuardInfo> {
    let plain: LinkInfo = info(link)?;
    let at = match plain.kind {
        BPF_LINK_TYPE_XDP => plain.ifindex.into(),
        BPF_LINK_TYPE_CGROUP => info::<CgroupLinkInfo>(link)?.cgroup_id,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    Ok(GuardInfo { program: plain.prog_id, at })
}

/// Name of a program by id. `ENOENT` if it is gone.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    let mut attr = [id, 0, 0];
    // SAFETY: no pointers in this attribute.
    let program = owned(unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) }?)?;
    let info: ProgInfo = info(std::os::fd::AsFd::as_fd(&program))?;
    Ok(String::from_utf8_lossy(info.name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned())
}

/// Id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(info::<ProgInfo>(program)?.id)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the tcx programs of a device (index in the caller's namespace), in the order they run. `EINVAL` if
/// the kernel has no tcx, `ENODEV` if there is no such device.
pub(super) fn query(ifindex: u32, hook: Hook) -> io::Result<Vec<u32>> {
    // The kernel's own limit for one hook (BPF_MPROG_MAX).
    let mut ids = [0_u32; 64];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: hook.attach_type(),
        prog_ids: address(ids.as_mut_ptr()),
        count: 64,
        ..QueryAttr::zeroed()
    };
    // SAFETY: `ids` is the array that `prog_ids` and `count` describe, and outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    Ok(ids[..(attr.count as usize).min(ids.len())].to_vec())
}

/// Waits for a ring buffer with the Tokio runtime of the caller.
pub(super) fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its descriptor, always returns the same, and closes it only when it is dropped.
    unsafe { AsyncFd::register(ring) }.map_err(io::Error::from)
}

/// Waits for a socket with the Tokio runtime of the caller.
pub(crate) fn watch_socket(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor, always returns the same, and closes it only when it is dropped.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

/// Waits until every program that runs now has finished: an RCU grace period, some milliseconds.
pub(super) fn grace_period() -> io::Result<()> {
    // SAFETY: no pointers in this call. MEMBARRIER_CMD_GLOBAL is the kernel's synchronize_rcu().
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Type of a namespace, a `CLONE_NEW*` flag (`ns_ioctl`, fs/nsfs.c; Linux 4.11). The caller has made sure that the file
/// is of nsfs: to a device the same number may be another call.
pub(crate) fn namespace_type(namespace: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: the descriptor is open for the time of the call, which has no argument and writes nowhere.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Cookie of the network namespace of a socket (`SO_NETNS_COOKIE`, Linux 5.14). `ENOPROTOOPT` on an older kernel.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: `cookie` has the `length` bytes that the kernel may write, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
