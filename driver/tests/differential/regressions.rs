//! Frames the programs and the oracle once disagreed about.

use etherparse::{IpNumber, Ipv6Extensions};
use netferry_common::{Direction, Reason};

use super::bench::Outcome::{self, Drop};
use super::frames::*;
use super::world::Setting;

use Direction::{FromPod, ToPod};

/// Name, setting, direction, frame, and what is right.
pub type Regression = (&'static str, Setting, Direction, Vec<u8>, Outcome);

/// What starts with an extension header, and is UDP in the end.
fn extended(first: IpNumber, headers: &[[u8; 8]]) -> Vec<u8> {
    let udp = [0x0f, 0xa0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
    extended6(POD, PEER, Ipv6Extensions::default(), first, &[headers.as_flattened(), &udp].concat())
}

pub fn all() -> Vec<Regression> {
    [headers(), flows(), neighbors()].into_iter().flatten().collect()
}

fn headers() -> Vec<Regression> {
    let length6 = |frame, length| patched(frame, at::IP + 4, &[0, length]);
    let malformed = || Drop(Reason::MalformedIpv6);
    let mut seven = [[60, 0, 1, 4, 0, 0, 0, 0]; 7];
    seven[5][0] = 44;
    seven[6] = [17, 0, 0, 80, 0, 0, 0, 1];
    vec![
        (
            "extension header longer than its datagram",
            Setting::Wire,
            FromPod,
            patched(udp6(POD, PEER), at::IP + 6, &[51]),
            malformed(),
        ),
        (
            "routing header in what pads the frame",
            Setting::Isolated,
            FromPod,
            length6(patched(udp6(POD, PEER), at::IP + 6, &[43]), 1),
            malformed(),
        ),
        (
            "authentication header of two words",
            Setting::Wire,
            FromPod,
            extended(IpNumber::AUTHENTICATION_HEADER, &[[17, 0, 0, 0, 0, 0, 0, 0]]),
            malformed(),
        ),
        (
            "seventh extension header, of a later fragment",
            Setting::Wire,
            FromPod,
            extended(IpNumber::IPV6_DESTINATION_OPTIONS, &seven),
            Drop(Reason::ExtensionHeader),
        ),
        (
            "ICMPv6 in what pads the frame",
            Setting::WireTracked,
            FromPod,
            length6(neighbor(POD, PEER, 136, POD.v6, None), 0),
            malformed(),
        ),
    ]
}

fn flows() -> Vec<Regression> {
    let everybody = Host { mac: BROADCAST, v4: [255; 4], v6: ALL_NODES };
    let error4 = unreachable(PEER, POD, &udp4(POD, PEER));
    let error6 = unreachable(PEER, POD, &udp6(POD, PEER));
    let malformed = || Drop(Reason::MalformedTransport);
    vec![
        (
            "RST to a group",
            Setting::WireTracked,
            FromPod,
            tcp_flags(tcp4(POD, everybody), 4),
            Drop(Reason::NoFlow),
        ),
        (
            "ICMP in IPv6, to a group",
            Setting::WireTracked,
            FromPod,
            patched(udp6(POD, everybody), at::IP + 6, &[1]),
            Drop(Reason::NoFlow),
        ),
        (
            "error about what pads the frame, v4",
            Setting::WireTracked,
            ToPod,
            patched(error4.clone(), at::IP + 2, &[0, 36]),
            malformed(),
        ),
        (
            "error about what pads the frame, v6",
            Setting::Isolated,
            ToPod,
            patched(error6, at::IP + 4, &[0, 8]),
            malformed(),
        ),
        (
            "error about a header of 16 bytes",
            Setting::WireTracked,
            ToPod,
            patched(error4, at::IP + 28, &[0x44]),
            malformed(),
        ),
        ("from the pod to itself", Setting::Isolated, FromPod, udp4(POD, POD), Drop(Reason::NoRoute)),
    ]
}

fn neighbors() -> Vec<Regression> {
    let nobody = Host { v6: UNSPECIFIED, ..POD };
    let cut = neighbor(POD, PEER, 135, PEER.v6, Some(OTHER.mac));
    vec![
        (
            "advertisement from nobody",
            Setting::Wire,
            FromPod,
            neighbor(nobody, PEER, 136, POD.v6, None),
            Drop(Reason::SourceIpv6),
        ),
        (
            "solicitation for the pod's own address",
            Setting::Isolated,
            FromPod,
            neighbor(POD, PEER, 135, POD.v6, None),
            Drop(Reason::NoReceiver),
        ),
        (
            "option that ends in what pads the frame",
            Setting::Wire,
            FromPod,
            patched(cut, at::IP + 4, &[0, 28]),
            Drop(Reason::MalformedNd),
        ),
    ]
}
