//! A socket buffer as [`Packet`].

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_push,
};
use bytemuck::{AnyBitPattern, Pod};
use core::mem::MaybeUninit;
use core::ptr;
use netferry_common::{Direction, Endpoint, Reason};

use crate::datagram::Datagram;
use crate::flows::SharedFlow;
use crate::ipv6::{self, Upper};
use crate::judge::{Case, Note, Scratch};
use crate::maps::{Maps, scratch};
use crate::packet::{Ethernet, HEAD_LEN, HEAD_LEN_V4, Packet, ethertype, hook};
use crate::tables::Tables;
use crate::{admit, answer, beyond, deliver, nd, rate, related};

/// `PACKET_HOST` of linux/if_packet.h: taken for the host by the device that received it.
pub const PACKET_HOST: u32 = 0;

/// The frame of a TC program.
pub struct Skb<const HOOK: u32> {
    skb: *mut __sk_buff,
}

impl<const HOOK: u32> Skb<HOOK> {
    /// Wraps the context of a program, with the headers made linear: a driver may leave them in page fragments,
    /// where direct access does not reach.
    #[inline(always)]
    #[must_use]
    pub fn new(skb: *mut __sk_buff) -> Self {
        let packet = Self { skb };
        let raw = packet.raw();
        // No more than is needed: of a TCP segment with data, which the sender keeps a clone of, a pull copies the head.
        // A sender that tells the kernel another protocol than its frame has its frame read as cut short at the worst.
        let v4 = raw.protocol == u32::from(ethertype::IPV4);
        let needed = if v4 { HEAD_LEN_V4 } else { HEAD_LEN } as u32;
        if raw.data_end - raw.data < needed && raw.len > raw.data_end - raw.data {
            // Failing leaves a frame that reads as cut short, and is dropped as such.
            // SAFETY: the context is valid; pointers into the packet are taken anew at each access.
            unsafe { bpf_skb_pull_data(skb, raw.len.min(HEAD_LEN as u32)) };
        }
        packet
    }

    /// Wraps it as it is, its headers linear already.
    #[inline(always)]
    pub(crate) fn again(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// The context of the program.
    #[inline(always)]
    #[must_use]
    pub fn context(&self) -> *mut __sk_buff {
        self.skb
    }

    /// Index of the interface it is at.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.raw().ifindex
    }

    #[inline(always)]
    fn raw(&self) -> &__sk_buff {
        // SAFETY: the kernel hands a valid context to the program for its whole run.
        unsafe { &*self.skb }
    }
}

impl<const HOOK: u32> Packet for Skb<HOOK> {
    const HOOK: u32 = HOOK;

    #[inline(always)]
    fn len(&self) -> usize {
        self.raw().len as usize
    }

    #[inline(always)]
    fn vlan_tagged(&self) -> bool {
        // The tag of an uplink was looked at: it says which network the frame is of.
        HOOK != hook::WIRE && self.raw().vlan_present != 0
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        self.raw().gso_size
    }

    #[inline(always)]
    fn head<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let start = self.raw().data as usize + offset;
        if start + size_of::<T>() > self.raw().data_end as usize {
            return None;
        }
        // SAFETY: the bytes are inside the packet, and any bytes are a `T`. Headers are not aligned for a `T`
        // in memory; BPF loads need no alignment on machines where the kernel says so (all we build for), and
        // the verifier refuses the program elsewhere.
        Some(unsafe { *(start as *const T) })
    }

    #[inline(always)]
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper fills all of `value`, or says that it did not; any bytes are a `T`.
        unsafe {
            let done = bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            );
            if done == 0 { Some(value.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn extensions(&self, next: u8, offset: usize, end: usize) -> Result<Upper, Reason> {
        Upper::unpack(nf_extensions(self.skb, u32::from(next), offset as u32, end as u32))
    }

    #[inline(always)]
    fn datagram(&self, v4: bool, ip: &mut Datagram) -> Result<(), Reason> {
        match nf_datagram(self.skb, u32::from(v4), ip) {
            PASS => Ok(()),
            code => Err(reason(code)),
        }
    }

    #[inline(always)]
    fn link_scope<T: Tables>(&self, case: &Case<'_, Self, T>, ip: &Datagram) -> Result<bool, Reason> {
        let places = ip.offset & 0xffff | ip.end << 16;
        match nf_link_scope(self.skb, case.id, case.direction.number(), places, u32::from(ip.fragment)) {
            LINK => Ok(true),
            NOT_LINK => Ok(false),
            code => Err(reason(code)),
        }
    }

    #[inline(always)]
    fn related<T: Tables>(&self, case: &Case<'_, Self, T>, ip: &Datagram) -> Result<(), Reason> {
        let places = ip.offset & 0xffff | ip.end << 16;
        match nf_related(self.skb, case.id, case.direction.number(), places, u32::from(ip.v4)) {
            PASS => Ok(()),
            code => Err(reason(code)),
        }
    }

    #[inline(always)]
    fn reconsider<T: Tables>(&self, case: &Case<'_, Self, T>, scratch: &mut Scratch) -> Result<(), Reason> {
        match nf_reconsider(self.skb, case.id, case.direction.number(), scratch) {
            PASS => Ok(()),
            code => Err(reason(code)),
        }
    }

    #[inline(always)]
    fn answer_arp<T: Tables>(&self, case: &Case<'_, Self, T>, scratch: &mut Scratch) -> Result<(), Reason> {
        passed(nf_answer_arp(self.skb, case.id, scratch))
    }

    #[inline(always)]
    fn answer_neighbor<T: Tables>(
        &self,
        case: &Case<'_, Self, T>,
        scratch: &mut Scratch,
    ) -> Result<(), Reason> {
        passed(nf_answer_nd(self.skb, case.id, scratch))
    }

    #[inline(always)]
    fn deliver<T: Tables>(
        &self,
        case: &Case<'_, Self, T>,
        known: Option<&SharedFlow>,
        scratch: &mut Scratch,
    ) -> Result<(), Reason> {
        let known = known.map_or(ptr::null(), ptr::from_ref);
        passed(nf_deliver(self.skb, case.id, scratch, case.endpoint, known))
    }

    #[inline(always)]
    fn depart<T: Tables>(&self, case: &Case<'_, Self, T>, scratch: &mut Scratch) -> Result<(), Reason> {
        passed(beyond::nf_depart(self.skb, case.id, scratch))
    }

    #[inline(always)]
    fn arrive<T: Tables>(&self, case: &Case<'_, Self, T>, scratch: &mut Scratch) -> Result<(), Reason> {
        passed(beyond::nf_arrive(self.skb, case.id, HOOK, scratch))
    }

    #[inline(always)]
    fn charge<T: Tables>(
        &self,
        _: &T,
        endpoint: u32,
        direction: Direction,
        flags: u32,
        note: &Note,
    ) -> Result<(), Reason> {
        if rate::is_limited(flags, direction) {
            return passed(nf_charge(endpoint, direction.number(), note.frames, note.bytes));
        }
        Ok(())
    }

    #[inline(always)]
    fn refuse(&self, id: u32, direction: Direction, reason: Reason, scratch: &mut Scratch) -> bool {
        beyond::nf_refuse(self.skb, id, direction.number(), reason.number(), scratch) == PASS
    }

    #[inline(always)]
    fn replace<T: Pod>(&self, frame: &T) -> bool {
        let length = size_of::<T>() as u32;
        // SAFETY: the helpers check lengths against the frame, and read `length` bytes of a `T`.
        unsafe {
            (self.raw().len == length || bpf_skb_change_tail(self.skb, length, 0) == 0)
                && bpf_skb_store_bytes(self.skb.cast(), 0, ptr::from_ref(frame).cast(), length, 0) == 0
        }
    }

    #[inline(always)]
    fn set_destination(&self, mac: [u8; 6]) -> bool {
        // SAFETY: the helper reads six bytes.
        unsafe { bpf_skb_store_bytes(self.skb.cast(), 0, mac.as_ptr().cast(), 6, 0) == 0 }
    }

    #[inline(always)]
    fn set_link(&self, header: &Ethernet) -> bool {
        // SAFETY: the helper reads that many bytes.
        unsafe {
            let length = size_of::<Ethernet>() as u32;
            bpf_skb_store_bytes(self.skb.cast(), 0, ptr::from_ref(header).cast(), length, 0) == 0
        }
    }

    #[inline(always)]
    fn store<T: Pod>(&self, offset: usize, bytes: &T) -> bool {
        let length = size_of::<T>() as u32;
        // SAFETY: the helper reads that many bytes, and checks the frame's length.
        unsafe {
            let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
            bpf_skb_store_bytes(self.skb.cast(), offset as u32, ptr::from_ref(bytes).cast(), length, flags)
                == 0
        }
    }

    #[inline(always)]
    fn tag(&self, vlan: u32) -> bool {
        // SAFETY: the helper takes numbers.
        vlan == 0 || unsafe { bpf_skb_vlan_push(self.skb, ethertype::VLAN, vlan as u16) == 0 }
    }

    #[inline(always)]
    fn is_to_host(&self) -> bool {
        self.raw().pkt_type == PACKET_HOST
    }
}

// Global functions: the verifier looks at each once with arguments it knows nothing of, not again for each way that
// leads there. They take and return plain numbers.

/// The frame in a global function, which is the same for all hooks.
pub(crate) type Inner = Skb<{ hook::PAIR }>;

pub(crate) const PASS: u32 = 0x100;
const LINK: u32 = 0x101;
const NOT_LINK: u32 = 0x102;

#[inline(always)]
fn passed(code: u32) -> Result<(), Reason> {
    if code == PASS { Ok(()) } else { Err(reason(code)) }
}

#[inline(always)]
pub(crate) fn code(result: Result<(), Reason>) -> u32 {
    match result {
        Ok(()) => PASS,
        Err(reason) => reason.number(),
    }
}

#[inline(always)]
pub(crate) fn reason(code: u32) -> Reason {
    if code as usize >= Reason::ALL.len() {
        return Reason::NoEndpoint;
    }
    // SAFETY: reasons are numbered from 0 without gaps (asserted where they are listed). Looking it up in the list would
    // be an access the verifier does not follow.
    unsafe { core::mem::transmute::<u32, Reason>(code) }
}

#[inline(always)]
pub(crate) fn direction(number: u32) -> Direction {
    if number == Direction::FromPod.number() { Direction::FromPod } else { Direction::ToPod }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_extensions(skb: *mut __sk_buff, next: u32, offset: u32, end: u32) -> u64 {
    Upper::pack(ipv6::walk(&Inner { skb }, next as u8, offset as usize, end as usize))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_link_scope(skb: *mut __sk_buff, id: u32, way: u32, places: u32, fragment: u32) -> u32 {
    let packet = Inner { skb };
    let Some(case) = Case::again(&packet, &Maps, id, direction(way)) else {
        return Reason::NoEndpoint.number();
    };
    let (offset, end) = ((places & 0xffff) as usize, (places >> 16) as usize);
    match nd::check(&case, offset, end, fragment != 0) {
        Ok(true) => LINK,
        Ok(false) => NOT_LINK,
        Err(reason) => reason.number(),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_related(skb: *mut __sk_buff, id: u32, way: u32, places: u32, v4: u32) -> u32 {
    let packet = Inner { skb };
    let Some(case) = Case::again(&packet, &Maps, id, direction(way)) else {
        return Reason::NoEndpoint.number();
    };
    let (offset, end) = ((places & 0xffff) as usize, (places >> 16) as usize);
    match related::check(&case, offset, end, v4 != 0) {
        Ok(()) => PASS,
        Err(reason) => reason.number(),
    }
}

/// The scratch a function was given, as an element of its map. Verifiers of Linux 6.1 and before take a key of a map
/// from there, but not from an argument.
#[inline(always)]
fn again(given: *mut Scratch) -> Option<&'static mut Scratch> {
    #[cfg(target_arch = "bpf")]
    // SAFETY: copies a register. The compiler is not told that no memory is touched, and so expects the caller's scratch
    // to be changed by what comes.
    unsafe {
        core::arch::asm!("{0} = {0}", in(reg) given);
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = given;
    scratch()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_reconsider(skb: *mut __sk_buff, id: u32, way: u32, scratch: *mut Scratch) -> u32 {
    let Some(scratch) = again(scratch) else {
        return Reason::NoEndpoint.number();
    };
    let packet = Inner { skb };
    let Some(case) = Case::again(&packet, &Maps, id, direction(way)) else {
        return Reason::NoEndpoint.number();
    };
    match admit::reconsider(&case, scratch) {
        Ok(()) => PASS,
        Err(reason) => reason.number(),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_datagram(skb: *mut __sk_buff, v4: u32, ip: *mut Datagram) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(place) = (unsafe { ip.as_mut() }) else {
        return Reason::NoEndpoint.number();
    };
    match Datagram::read(&Inner { skb }, v4 != 0) {
        Ok(ip) => {
            *place = ip;
            PASS
        }
        Err(reason) => reason.number(),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_answer_arp(skb: *mut __sk_buff, id: u32, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return Reason::NoEndpoint.number();
    };
    let packet = Inner { skb };
    let Some(case) = Case::again(&packet, &Maps, id, Direction::FromPod) else {
        return Reason::NoEndpoint.number();
    };
    code(answer::arp(&case, &mut scratch.target))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_answer_nd(skb: *mut __sk_buff, id: u32, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return Reason::NoEndpoint.number();
    };
    let packet = Inner { skb };
    let Some(case) = Case::again(&packet, &Maps, id, Direction::FromPod) else {
        return Reason::NoEndpoint.number();
    };
    code(answer::neighbor(&case, scratch.ip.offset as usize, &mut scratch.target))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_deliver(
    skb: *mut __sk_buff,
    id: u32,
    scratch: *mut Scratch,
    endpoint: *const Endpoint,
    known: *const SharedFlow,
) -> u32 {
    // SAFETY: the verifier makes sure that each is null or points to that much memory.
    let (endpoint, known) = unsafe { (endpoint.as_ref(), known.as_ref()) };
    let (Some(scratch), Some(endpoint)) = (again(scratch), endpoint) else {
        return Reason::NoEndpoint.number();
    };
    let packet = Inner { skb };
    let Some(case) = Case::of(&packet, &Maps, id, endpoint, Direction::FromPod) else {
        return Reason::NoEndpoint.number();
    };
    code(deliver::deliver(&case, known, scratch))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nf_charge(endpoint: u32, way: u32, frames: u64, bytes: u64) -> u32 {
    if rate::charge(&Maps, endpoint, way, frames, bytes) { PASS } else { Reason::RateLimit.number() }
}
