//! A frame as the driver has it, as [`Packet`]: before the kernel has a socket buffer for it, and perhaps in several
//! buffers.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use bytemuck::{AnyBitPattern, Pod};
use core::mem::MaybeUninit;
use netferry_common::Reason;

use crate::datagram::Datagram;
use crate::ipv6::{self, Upper};
use crate::packet::{Ethernet, Packet, hook};

/// The frame of an XDP program.
pub struct Buffer {
    context: *mut xdp_md,
}

impl Buffer {
    /// Wraps the context of a program.
    #[inline(always)]
    #[must_use]
    pub fn new(context: *mut xdp_md) -> Self {
        Self { context }
    }
}

impl Packet for Buffer {
    const HOOK: u32 = hook::LINK;

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the kernel hands a valid context to the program for its whole run.
        unsafe { bpf_xdp_get_buff_len(self.context) as usize }
    }

    /// What the hardware took out of the frame is told to the socket buffer only.
    #[inline(always)]
    fn vlan_tagged(&self) -> bool {
        false
    }

    /// Frames are merged later.
    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    /// From the first buffer if the header is in it; a driver may have split it.
    #[inline(always)]
    fn head<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        // SAFETY: as for `len`.
        let (start, end) = unsafe { ((*self.context).data as usize, (*self.context).data_end as usize) };
        let start = start + offset;
        if start + size_of::<T>() > end {
            return self.load(offset);
        }
        // SAFETY: as in `crate::skb`: the bytes are inside the buffer, and any bytes are a `T`.
        Some(unsafe { *(start as *const T) })
    }

    #[inline(always)]
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper fills all of `value` from whatever buffers it lies in, or says that it did not; any bytes are
        // a `T`.
        unsafe {
            let size = size_of::<T>() as u32;
            let done = bpf_xdp_load_bytes(self.context, offset as u32, value.as_mut_ptr().cast(), size);
            if done == 0 { Some(value.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn extensions(&self, next: u8, offset: usize, end: usize) -> Result<Upper, Reason> {
        Upper::unpack(nf_xdp_extensions(self.context, u32::from(next), offset as u32, end as u32))
    }

    #[inline(always)]
    fn datagram(&self, v4: bool, ip: &mut Datagram) -> Result<(), Reason> {
        *ip = Datagram::read(self, v4)?;
        Ok(())
    }

    #[inline(always)]
    fn replace<T: Pod>(&self, _: &T) -> bool {
        false
    }

    #[inline(always)]
    fn set_destination(&self, _: [u8; 6]) -> bool {
        false
    }

    #[inline(always)]
    fn set_link(&self, _: &Ethernet) -> bool {
        false
    }

    #[inline(always)]
    fn store<T: Pod>(&self, _: usize, _: &T) -> bool {
        false
    }

    #[inline(always)]
    fn tag(&self, _: u32) -> bool {
        false
    }

    /// Known to the socket buffer only.
    #[inline(always)]
    fn is_to_host(&self) -> bool {
        false
    }
}

/// Looked at once by the verifier, as those of `crate::skb`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_xdp_extensions(context: *mut xdp_md, next: u32, offset: u32, end: u32) -> u64 {
    Upper::pack(ipv6::walk(&Buffer { context }, next as u8, offset as usize, end as usize))
}
