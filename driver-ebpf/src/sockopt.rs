//! Socket options that let a process send around the programs on a link.
//!
//! tcx runs where frames are queued (`__dev_queue_xmit`). Two kinds of socket send past that, by
//! `__dev_direct_xmit`: packet sockets with `PACKET_QDISC_BYPASS`, and AF_XDP sockets, in zero-copy mode even past the
//! stack.

/// `SOL_PACKET` (linux/socket.h).
const SOL_PACKET: i32 = 263;
/// `SOL_XDP` (linux/socket.h).
const SOL_XDP: i32 = 283;
/// Linux/if_packet.h.
const PACKET_QDISC_BYPASS: i32 = 20;

/// More than this the hook does not see of a value, on machines with pages of 4 KiB.
pub const SEEN: i32 = 4096;

/// Whether an option leads around the programs. Of AF_XDP each one does: without rings and memory, which are options,
/// such a socket cannot be bound.
#[inline(always)]
pub const fn bypasses(level: i32, option: i32) -> bool {
    level == SOL_XDP || level == SOL_PACKET && option == PACKET_QDISC_BYPASS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_around_the_programs_is_refused() {
        assert!(bypasses(SOL_PACKET, PACKET_QDISC_BYPASS));
        assert!((1..=9).all(|option| bypasses(SOL_XDP, option)));
        let others = (0..=40).filter(|option| *option != PACKET_QDISC_BYPASS);
        assert!(others.clone().all(|option| !bypasses(SOL_PACKET, option)));
        // The same number at other levels: SOL_SOCKET, SOL_IP, SOL_TCP, SOL_IPV6.
        assert!([1, 0, 6, 41].into_iter().all(|level| !bypasses(level, PACKET_QDISC_BYPASS)));
    }
}
