//! System calls that a hostile process makes and no crate offers.
#![allow(unsafe_code, reason = "what is tested is what the kernel makes of such calls")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use bytemuck::Pod;

fn outcome(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// setsockopt(2) with any option.
pub(crate) fn setsockopt<T: Pod>(
    socket: BorrowedFd<'_>,
    level: i32,
    option: i32,
    value: &T,
) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).expect("a short value");
    // SAFETY: the value is plain data of the length given, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length)
    };
    outcome(result.into())
}

/// Likewise with a value of any length.
pub(crate) fn setsockopt_bytes(
    socket: BorrowedFd<'_>,
    level: i32,
    option: i32,
    value: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(value.len()).expect("a short value");
    // SAFETY: the kernel only reads the slice.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    outcome(result.into())
}

/// Likewise as a process of 32 bits would call it. `None` if the machine takes no such calls.
#[cfg(target_arch = "x86_64")]
pub(crate) fn setsockopt_32(
    socket: BorrowedFd<'_>,
    level: i32,
    option: i32,
    value: i32,
) -> Option<io::Result<()>> {
    /// Number of setsockopt in arch/x86/entry/syscalls/syscall_32.tbl.
    const SETSOCKOPT: i64 = 366;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    // SAFETY: a fresh mapping that nothing else knows of; its address has to fit 32 bits.
    let place =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_ne!(place, libc::MAP_FAILED, "mmap");
    let mut result = SETSOCKOPT;
    // SAFETY: the mapping holds an i32; the call reads it and changes no other memory. rbx is kept for the compiler.
    unsafe {
        place.cast::<i32>().write(value);
        std::arch::asm!(
            "xchg {socket}, rbx",
            "int 0x80",
            "xchg {socket}, rbx",
            socket = inout(reg) i64::from(socket.as_raw_fd()) => _,
            inout("rax") result,
            in("rcx") i64::from(level),
            in("rdx") i64::from(option),
            in("rsi") place,
            in("rdi") 4_i64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
        libc::munmap(place, 4096);
    }
    // The kernel's answer has 32 bits.
    let result = i32::from_ne_bytes(result.to_ne_bytes()[..4].try_into().expect("four bytes"));
    match -result {
        0 => Some(Ok(())),
        libc::ENOSYS => None,
        errno => Some(Err(io::Error::from_raw_os_error(errno))),
    }
}

/// No such calls here.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn setsockopt_32(_: BorrowedFd<'_>, _: i32, _: i32, _: i32) -> Option<io::Result<()>> {
    None
}

/// bpf(2). The attribute may have addresses of what outlives the call in it.
pub(crate) fn bpf<T: Pod>(command: i64, attribute: &mut T) -> io::Result<()> {
    // SAFETY: the attribute is plain data of the size given; callers keep what it points to alive, and give no address
    // that is written to.
    outcome(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) })
}

/// Puts a frame into a packet socket's ring of one page, as the first to be sent (`TPACKET_V1`).
pub(crate) fn fill_ring(socket: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    /// `TP_STATUS_SEND_REQUEST` of linux/if_packet.h.
    const SEND: u64 = 1;
    /// Where status, length and data are in a slot.
    const LENGTH_AT: usize = 8;
    const DATA_AT: usize = 32;
    // SAFETY: the ring has a page, which is mapped whole; the frame is copied into it within its bounds. It stays mapped.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let ring =
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, socket.as_raw_fd(), 0);
        if ring == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        assert!(DATA_AT + frame.len() <= 2048, "a short frame");
        ring.byte_add(DATA_AT).cast::<u8>().copy_from_nonoverlapping(frame.as_ptr(), frame.len());
        ring.byte_add(LENGTH_AT).cast::<u32>().write(u32::try_from(frame.len()).expect("a short frame"));
        ring.cast::<u64>().write_volatile(SEND);
    }
    Ok(())
}

/// socket(2) of a family that nix does not know.
pub(crate) fn socket(family: i32, kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers in this call.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    outcome(fd.into())?;
    // SAFETY: a descriptor that was just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
