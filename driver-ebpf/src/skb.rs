//! A socket buffer as [`Packet`].

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use bytemuck::AnyBitPattern;

use crate::packet::{HEAD_LEN, Packet};

/// The frame of a TC program.
pub struct Skb<'a> {
    context: &'a TcContext,
}

impl<'a> Skb<'a> {
    /// Wraps the context, with the headers made linear: a driver may leave them in page fragments, where direct
    /// access does not reach.
    #[inline(always)]
    #[must_use]
    pub fn new(context: &'a TcContext) -> Self {
        let linear = context.data_end() - context.data();
        let wanted = HEAD_LEN.min(context.len() as usize);
        if linear < wanted {
            // Failing leaves a frame that reads as cut short, and is dropped as such.
            let _ = context.pull_data(wanted as u32);
        }
        Self { context }
    }

    #[inline(always)]
    fn raw(&self) -> &__sk_buff {
        // SAFETY: the kernel hands a valid context to the program for its whole run.
        unsafe { &*self.context.as_ptr().cast() }
    }
}

impl Packet for Skb<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.context.len() as usize
    }

    #[inline(always)]
    fn vlan_tagged(&self) -> bool {
        self.raw().vlan_present != 0
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        self.raw().gso_size != 0
    }

    #[inline(always)]
    fn head<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let start = self.context.data() + offset;
        if start + size_of::<T>() > self.context.data_end() {
            return None;
        }
        // SAFETY: the bytes are inside the packet, and any bytes are a `T`. Headers are not aligned for a `T`
        // in memory; BPF loads need no alignment on machines where the kernel says so (all we build for), and
        // the verifier refuses the program elsewhere.
        Some(unsafe { *(start as *const T) })
    }

    #[inline(always)]
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        self.context.load(offset).ok()
    }
}
