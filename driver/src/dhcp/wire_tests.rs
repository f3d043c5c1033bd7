use dhcproto::{Decodable as _, Decoder};
use proptest::prelude::*;

use super::*;

const MAC: MacAddr = MacAddr([2, 0x4e, 0x46, 0, 0, 7]);
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 7);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

fn lease() -> Lease {
    let grant = Grant {
        address: ADDRESS,
        prefix: Some(24),
        router: None,
        mtu: None,
        server: SERVER,
        server_mac: MacAddr(SERVER_MAC),
        seconds: Some(600),
        t1: None,
        t2: None,
    };
    Lease::new(&grant, jiff::Timestamp::UNIX_EPOCH)
}

/// What a frame of the client says: destination MAC, VLAN, addresses, and the message.
fn read(frame: &[u8]) -> ([u8; 6], Option<u16>, [Ipv4Addr; 2], Message) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link else { panic!("{packet:?}") };
    assert_eq!(ethernet.source(), MAC.0);
    let vlan = packet.vlan().map(|vlan| match vlan.to_header() {
        etherparse::VlanHeader::Single(vlan) => vlan.vlan_id.value(),
        etherparse::VlanHeader::Double(_) => panic!("one tag"),
    });
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("{packet:?}") };
    assert_eq!((udp.source_port(), udp.destination_port()), (68, 67));
    let (header, checksum) = (ip.header(), udp.to_header().checksum);
    assert_eq!(
        udp.to_header().calc_checksum_ipv4_raw(header.source(), header.destination(), udp.payload()).unwrap(),
        checksum
    );
    assert!(udp.payload().len() >= 300);
    let message = Message::decode(&mut Decoder::new(udp.payload())).unwrap();
    let addresses = [header.source_addr(), header.destination_addr()];
    (ethernet.destination(), vlan, addresses, message)
}

#[test]
fn each_message_has_what_its_state_asks_for() {
    let none = Ipv4Addr::UNSPECIFIED;
    let everybody = Ipv4Addr::BROADCAST;
    let lease = lease();
    let requested = DhcpOption::RequestedIpAddress(ADDRESS);
    let server = DhcpOption::ServerIdentifier(SERVER);
    let select = Say::Select { address: ADDRESS, server: SERVER };
    // RFC 2131, tables 4 and 5: message, ciaddr, requested address, server, and where it goes.
    let cases = [
        (Say::Discover(None), MessageType::Discover, none, false, false, (BROADCAST, none, everybody)),
        (
            Say::Discover(Some(ADDRESS)),
            MessageType::Discover,
            none,
            true,
            false,
            (BROADCAST, none, everybody),
        ),
        (select, MessageType::Request, none, true, true, (BROADCAST, none, everybody)),
        (Say::Confirm(ADDRESS), MessageType::Request, none, true, false, (BROADCAST, none, everybody)),
        (Say::Renew(&lease), MessageType::Request, ADDRESS, false, false, (SERVER_MAC, ADDRESS, SERVER)),
        (Say::Rebind(&lease), MessageType::Request, ADDRESS, false, false, (BROADCAST, ADDRESS, everybody)),
        (Say::Release(&lease), MessageType::Release, ADDRESS, false, true, (SERVER_MAC, ADDRESS, SERVER)),
    ];
    for (say, kind, ciaddr, names_address, names_server, way) in cases {
        for vlan in [0, 7] {
            let (to, tag, [from, destination], message) = read(&frame(say, MAC, vlan, 99).unwrap());
            assert_eq!((to, from, destination), way, "{say:?}");
            assert_eq!(tag, (vlan != 0).then_some(vlan), "{say:?}");
            assert_eq!(
                (message.xid(), message.ciaddr(), message.chaddr()),
                (99, ciaddr, &MAC.0[..]),
                "{say:?}"
            );
            assert_eq!(message.flags().broadcast(), ciaddr == none, "{say:?}");
            let options = message.opts();
            assert_eq!(options.get(OptionCode::MessageType), Some(&DhcpOption::MessageType(kind)), "{say:?}");
            let identity = DhcpOption::ClientIdentifier(vec![1, 2, 0x4e, 0x46, 0, 0, 7]);
            assert_eq!(options.get(OptionCode::ClientIdentifier), Some(&identity), "{say:?}");
            let named = options.get(OptionCode::RequestedIpAddress);
            assert_eq!(named, names_address.then_some(&requested), "{say:?}");
            assert_eq!(options.get(OptionCode::ServerIdentifier), names_server.then_some(&server), "{say:?}");
        }
    }
    assert!(frame(Say::Discover(None), MAC, 4096, 1).is_err());
}

/// An answer of the server, changed.
fn answer(kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(99, none, ADDRESS, none, none, &MAC.0);
    message.set_opcode(Opcode::BootReply);
    for option in [
        DhcpOption::MessageType(kind),
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::AddressLeaseTime(600),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::Router(vec![SERVER, ADDRESS]),
        DhcpOption::InterfaceMtu(1400),
        DhcpOption::Renewal(30),
        DhcpOption::Rebinding(500),
    ] {
        message.opts_mut().insert(option);
    }
    change(&mut message);
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(SERVER_MAC, BROADCAST).ipv4(SERVER.octets(), [255; 4], 64);
    builder.udp(67, 68).write(&mut frame, &message.to_vec().unwrap()).unwrap();
    frame
}

fn hear(frame: &[u8]) -> Option<Heard> {
    heard(frame, MAC, 99)
}

#[test]
fn an_answer_is_read() {
    let granted = Grant {
        address: ADDRESS,
        prefix: Some(24),
        router: Some(SERVER),
        mtu: Some(1400),
        server: SERVER,
        server_mac: MacAddr(SERVER_MAC),
        seconds: Some(600),
        t1: Some(30),
        t2: Some(500),
    };
    assert_eq!(hear(&answer(MessageType::Offer, |_| {})), Some(Heard::Offer(granted.clone())));
    assert_eq!(hear(&answer(MessageType::Ack, |_| {})), Some(Heard::Ack(granted)));
    let nak = answer(MessageType::Nak, |message| {
        message.opts_mut().insert(DhcpOption::Message("wrong\n network".into()));
    });
    assert_eq!(hear(&nak), Some(Heard::Nak("wrong network".into())));
    let bare = answer(MessageType::Ack, |message| {
        for code in [OptionCode::SubnetMask, OptionCode::Router, OptionCode::InterfaceMtu] {
            message.opts_mut().remove(code);
        }
        message.opts_mut().insert(DhcpOption::AddressLeaseTime(u32::MAX));
    });
    let Some(Heard::Ack(bare)) = hear(&bare) else { panic!("an answer") };
    assert_eq!((bare.prefix, bare.router, bare.mtu, bare.seconds), (None, None, None, None));
}

#[test]
fn what_is_not_for_us_or_cannot_be_used_is_not_heard() {
    type Change = fn(&mut Message);
    let change: [(&str, Change); 8] = [
        ("another exchange", |message| {
            let _ = message.set_xid(98);
        }),
        ("another port", |message| {
            let _ = message.set_chaddr(&[2, 0, 0, 0, 0, 9]);
        }),
        ("a request", |message| {
            let _ = message.set_opcode(Opcode::BootRequest);
        }),
        ("no address", |message| {
            let _ = message.set_yiaddr(Ipv4Addr::UNSPECIFIED);
        }),
        ("no time", |message| drop(message.opts_mut().remove(OptionCode::AddressLeaseTime))),
        ("no time at all", |message| drop(message.opts_mut().insert(DhcpOption::AddressLeaseTime(0)))),
        ("nobody's", |message| drop(message.opts_mut().remove(OptionCode::ServerIdentifier))),
        ("a mask with holes", |message| {
            drop(message.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0))));
        }),
    ];
    for (what, change) in change {
        assert_eq!(hear(&answer(MessageType::Ack, change)), None, "{what}");
    }
    assert_eq!(hear(&answer(MessageType::Inform, |_| {})), None);
    let mut long = answer(MessageType::Ack, |_| {});
    // `hlen`, behind Ethernet, IPv4 and UDP headers.
    long[14 + 20 + 8 + 2] = 255;
    assert_eq!(hear(&long), None, "a hardware address that is longer than its field");
    // Options that are not as long as they are to be.
    for (code, data) in [(1, vec![255; 3]), (54, vec![10, 9]), (51, vec![0; 9]), (53, vec![5, 5])] {
        let odd = answer(MessageType::Ack, |message| {
            let option = dhcproto::v4::UnknownOption::new(code.into(), data.clone());
            message.opts_mut().remove(code.into());
            message.opts_mut().insert(DhcpOption::Unknown(option));
        });
        assert_eq!(hear(&odd), None, "option {code}");
    }
    let odd = answer(MessageType::Ack, |message| {
        let route = dhcproto::v4::UnknownOption::new(121.into(), vec![200, 1, 1, 1, 1, 1, 1, 1, 1]);
        message.opts_mut().insert(DhcpOption::Unknown(route));
    });
    assert!(matches!(hear(&odd), Some(Heard::Ack(_))), "a route to a prefix of 200 bits is nothing to us");
    let whole = answer(MessageType::Ack, |_| {});
    for length in 0..240 {
        assert_eq!(hear(&whole[..length]), None, "{length} bytes");
    }
}

proptest! {
    /// A server, or who speaks in its name, can say anything.
    #[test]
    fn nothing_that_is_heard_is_a_danger(
        changes in proptest::collection::vec((0_usize..700, any::<u8>()), 0..12),
        length in prop_oneof![3 => Just(700), 1 => 0_usize..700],
        kind in prop_oneof![Just(MessageType::Offer), Just(MessageType::Ack), Just(MessageType::Nak)],
    ) {
        let mut frame = answer(kind, |_| {});
        for (at, byte) in changes {
            if let Some(there) = frame.get_mut(at) {
                *there = byte;
            }
        }
        frame.truncate(length);
        if let Some(Heard::Ack(grant) | Heard::Offer(grant)) = hear(&frame) {
            prop_assert!(!grant.address.is_unspecified() && grant.seconds != Some(0));
            let lease = Lease::new(&grant, jiff::Timestamp::UNIX_EPOCH);
            if let Some(times) = lease.times {
                prop_assert!(times.renew <= times.rebind && times.rebind <= times.expires);
            }
        }
    }
}
