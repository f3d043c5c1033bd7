//! Endpoints once more, where a program finds them without a search: most frames need no more of them than is here.

use bytemuck::{Pod, Zeroable};

use crate::Endpoint;
use crate::maps::MAX_ENDPOINTS;

/// An endpoint's [`Endpoint`] in the array [`crate::maps::SLOTS`], at [`of`] its id.
///
/// User space closes it before it changes the endpoint and fills it after: so it says less than [`Endpoint`] at times, never
/// more. One of another endpoint, or one that is closed, sends a frame the long way, over [`Endpoint`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Slot {
    /// Whose it is, or was last: ids are not used again as long as the maps live.
    pub endpoint: u32,
    /// [`Endpoint::flags`]; 0 while it is closed.
    pub flags: u32,
    /// [`Endpoint::network`].
    pub network: u32,
    /// [`Endpoint::policy`].
    pub policy: u32,
    /// [`Endpoint::ifindex`].
    pub ifindex: u32,
    /// [`Endpoint::mtu`].
    pub mtu: u32,
    /// [`Endpoint::mac`].
    pub mac: [u8; 6],
    /// Always 0.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Slot>() == 32);
/// As many slots as endpoints.
const SLOTS: u32 = 4096;
const _: () = assert!(SLOTS as usize == MAX_ENDPOINTS && SLOTS.is_power_of_two());

impl Slot {
    /// The slot of an endpoint.
    #[must_use]
    pub const fn new(endpoint: u32, record: &Endpoint) -> Self {
        let Endpoint { flags, network, mtu, policy, ifindex, mac, .. } = *record;
        Self { endpoint, flags, network, policy, ifindex, mtu, mac, pad: [0; 2] }
    }

    /// The same, through which nothing goes.
    #[must_use]
    pub const fn closed(&self) -> Self {
        Self { flags: 0, ..*self }
    }
}

/// Where an endpoint's [`Slot`] and [`Fast`] are.
#[must_use]
#[inline]
pub const fn of(endpoint: u32) -> u32 {
    endpoint & (SLOTS - 1)
}

/// Frames that took the short way, each counted for its sender and for its receiver, in the array [`crate::maps::FAST`] at
/// [`of`] the endpoint's id. They are part of no [`crate::Traffic`]: the reader adds them. Per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Fast {
    /// Frames from the pod.
    pub sent: u64,
    /// Their bytes, Ethernet header included.
    pub sent_bytes: u64,
    /// Frames to the pod.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames from the pod that left through a tunnel, in none of the above.
    pub left: u64,
    /// Their bytes, without the tunnel's headers.
    pub left_bytes: u64,
    /// Frames to the pod that came through a tunnel, likewise.
    pub entered: u64,
    /// Their bytes, likewise.
    pub entered_bytes: u64,
    /// When a frame to the pod was last left to the device that tunnels end at, in coarse nanoseconds since boot: what came
    /// after it on this CPU must not overtake it.
    pub queued: u64,
}

const _: () = assert!(size_of::<Fast>() == 72);

impl Fast {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        sent: 0,
        sent_bytes: 0,
        received: 0,
        received_bytes: 0,
        left: 0,
        left_bytes: 0,
        entered: 0,
        entered_bytes: 0,
        queued: 0,
    };

    /// What two CPUs have counted, together.
    #[must_use]
    pub const fn and(self, other: &Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            received: self.received + other.received,
            received_bytes: self.received_bytes + other.received_bytes,
            left: self.left + other.left,
            left_bytes: self.left_bytes + other.left_bytes,
            entered: self.entered + other.entered,
            entered_bytes: self.entered_bytes + other.entered_bytes,
            queued: if self.queued < other.queued { other.queued } else { self.queued },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_endpoints_in_a_row_as_there_can_be_have_slots_of_their_own() {
        let mut taken = [false; MAX_ENDPOINTS];
        for id in 9000..9000 + SLOTS {
            assert!(!core::mem::replace(&mut taken[of(id) as usize], true), "{id}");
        }
    }

    #[test]
    fn a_closed_slot_keeps_its_owner() {
        let record = Endpoint { flags: 1, network: 3, policy: 4, ..Endpoint::default() };
        let slot = Slot::new(7, &record);
        assert_eq!(slot.closed(), Slot { flags: 0, ..slot });
    }
}
