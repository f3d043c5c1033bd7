//! Datagrams that go no further, and the ICMP errors about them.

use etherparse::{PacketHeaders, TransportHeader};
use netferry_common::endpoint::READY;
use netferry_common::{Direction, Endpoint, Reason};

use super::bench::Outcome::{Drop, Pass, Redirect, Refuse};
use super::bench::{Bench, Context};
use super::frames::*;
use super::network::{PEER_ID, pair, record};

use Direction::{FromPod, ToPod};

/// Reasons that the tests of this file run into, each under its own name.
pub const SHOWN: [Reason; 1] = [Reason::MtuExceeded];

/// What an ICMP error says, after a look at all of its checksums.
#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: u8,
    pub code: u8,
    pub mtu: u16,
    /// Who says so.
    pub source: Vec<u8>,
    /// The datagram it is about, as far as it is quoted.
    pub quote: Vec<u8>,
}

/// Reads an error to `to` back to the host it is for, from the hardware address `router`.
pub fn error(frame: &[u8], router: [u8; 6], to: Host) -> Error {
    assert_eq!((&frame[..6], &frame[6..12]), (&to.mac[..], &router[..]));
    let headers = PacketHeaders::from_ethernet_slice(frame).expect("it parses");
    let v4 = frame[at::ETHERTYPE] == 0x08;
    let (source, header) = if v4 { (at::IP + 12, 20) } else { (at::IP + 8, 40) };
    let length = if v4 { 4 } else { 16 };
    let message = &frame[at::IP + header..];
    let addresses = &frame[source..source + 2 * length];
    assert_eq!(&addresses[length..], if v4 { &to.v4[..] } else { &to.v6[..] });
    if v4 {
        assert_eq!(checksum(&frame[at::IP..at::IP + 20], 0), 0, "of the header");
        assert_eq!(checksum(message, 0), 0, "of the message");
        assert!(matches!(headers.transport, Some(TransportHeader::Icmpv4(_))));
    } else {
        let pseudo = [addresses, message].concat();
        assert_eq!(checksum(&pseudo, u32::try_from(message.len()).unwrap() + 58), 0, "of the message");
        assert!(matches!(headers.transport, Some(TransportHeader::Icmpv6(_))));
    }
    Error {
        kind: message[0],
        code: message[1],
        mtu: u16::from_be_bytes([message[6], message[7]]),
        source: addresses[..length].to_vec(),
        quote: message[8..].to_vec(),
    }
}

fn small_peer() -> Bench {
    let mut bench = pair();
    bench.write_other(PEER_ID, Endpoint { mtu: 1280, ..record(PEER, READY, 0) });
    bench
}

#[test]
fn a_datagram_too_big_for_its_receiver_is_refused() {
    let mut bench = small_peer();
    for v4 in [true, false] {
        let headers = if v4 { 28 } else { 48 };
        let fits = large(POD, PEER, v4, 1280 - headers);
        bench.expect_at_host_end(FromPod, &fits, &Redirect(fits.clone()));
        let frame = large(POD, PEER, v4, 1281 - headers);
        let Refuse(Reason::MtuExceeded, answer) = bench.run("from_pod", FromPod, &frame) else {
            panic!("not refused");
        };
        let error = error(&answer, PEER.mac, POD);
        assert_eq!((error.kind, error.code, error.mtu), if v4 { (3, 4, 1280) } else { (2, 0, 1280) });
        assert_eq!(error.source, if v4 { PEER.v4.to_vec() } else { PEER.v6.to_vec() });
        assert_eq!(error.quote, frame[at::IP..at::IP + 504]);
        bench.expect_at_host_end(ToPod, &answer, &Pass);
    }
    let cut = may_fragment(large(POD, PEER, true, 1400));
    bench.expect_at_host_end(FromPod, &cut, &Drop(Reason::MtuExceeded));
}

#[test]
fn segments_count_and_not_the_frame_that_carries_them() {
    let mut bench = small_peer();
    for v4 in [true, false] {
        let headers = if v4 { 28 } else { 48 };
        let frame = large(POD, PEER, v4, 3000);
        let fits = Context { gso_size: 1280 - headers };
        let outcome = bench.run_on("from_pod", FromPod, &frame, fits);
        assert_eq!(outcome, Redirect(frame.clone()));
        let exceeds = Context { gso_size: 1281 - headers };
        let Refuse(Reason::MtuExceeded, answer) = bench.run_on("from_pod", FromPod, &frame, exceeds) else {
            panic!("not refused");
        };
        assert_eq!(error(&answer, PEER.mac, POD).mtu, 1280);
    }
}

#[test]
fn errors_are_rare_and_never_about_errors() {
    let mut bench = small_peer();
    let about = large(PEER, POD, true, 1300);
    bench.expect_at_host_end(ToPod, &about, &Pass);
    let mut unreachable = unreachable(POD, PEER, &about);
    unreachable.resize(1400, 0);
    unreachable[at::IP + 2..at::IP + 4].copy_from_slice(&1386_u16.to_be_bytes());
    bench.expect_at_host_end(FromPod, &summed4(unreachable), &Drop(Reason::MtuExceeded));

    let frame = large(POD, PEER, false, 1400);
    let outcomes: Vec<_> = (0..40).map(|_| bench.run("from_pod", FromPod, &frame)).collect();
    assert!(matches!(outcomes[0], Refuse(..)));
    assert!(outcomes.contains(&Drop(Reason::MtuExceeded)), "40 at once are too many");
}
