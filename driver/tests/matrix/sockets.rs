//! What an honest pod does with ordinary sockets, end to end.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netferry::datapath::{AyaDatapath, Datapath as _};

use crate::cells::waited;
use crate::oracle::Destination;
use crate::world::{Node, POD, SENDER, station_at};

/// A connection, a datagram and an echo to a destination: all get through and are answered, or none of them does and the
/// programs count it.
pub(crate) fn check(node: &Node, datapath: &AyaDatapath, to: Destination, v4: bool, passes: bool) {
    let address = |station: crate::frames::Station| -> IpAddr {
        if v4 { station.v4.into() } else { station.v6.into() }
    };
    let (own, target) = (address(POD), address(station_at(to)));
    let listen = move || {
        let tcp = TcpListener::bind((target, 0)).expect("listen");
        let udp = UdpSocket::bind((target, tcp.local_addr().expect("an address").port())).expect("bind");
        udp.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        (tcp, udp)
    };
    let (tcp, udp) = match to {
        Destination::Host => listen(),
        Destination::Same => node.within("peer", listen),
        Destination::Other => node.within("other", listen),
        Destination::Uplink => node.within("uplink", listen),
        Destination::Outside => node.within("outside", listen),
    };
    let there = tcp.local_addr().expect("an address");
    let dropped = || {
        let drops = datapath.stats(SENDER).expect("stats").drops;
        drops.get("not_member").copied().unwrap_or(0)
    };
    let before = dropped();
    let what = format!("sockets to {}, {target}", to.name());
    if passes {
        let server = std::thread::spawn(move || {
            let (mut stream, _) = tcp.accept().expect("accept");
            let mut data = [0; 5];
            stream.read_exact(&mut data).expect("read");
            stream.write_all(&data).expect("write");
            let (length, from) = udp.recv_from(&mut data).expect("a datagram");
            udp.send_to(&data[..length], from).expect("answer");
        });
        node.within("pod", move || converse(own, there));
        server.join().expect("the server");
        let echo = format!("ping -n -c 1 -w 20 {target}");
        run_in_pod(node, &echo).unwrap_or_else(|said| panic!("{what}: {said}"));
        assert_eq!(dropped(), before, "{what}");
        return;
    }
    let connected = node.within("pod", move || {
        let udp = UdpSocket::bind((own, 0)).expect("bind");
        udp.send_to(b"hello", there).expect("send");
        TcpStream::connect_timeout(&there, Duration::from_millis(20)).is_ok()
    });
    assert!(!connected, "{what}: a connection was made");
    assert!(
        run_in_pod(node, &format!("ping -n -c 1 -W 0.02 {target}")).is_err(),
        "{what}: an echo came back"
    );
    assert!(waited(|| dropped() >= before + 3), "{what}: {} drops are counted", dropped() - before);
    tcp.set_nonblocking(true).expect("nonblocking");
    udp.set_nonblocking(true).expect("nonblocking");
    assert!(tcp.accept().is_err() && udp.recv(&mut [0; 8]).is_err(), "{what}: something came");
}

fn converse(own: IpAddr, there: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&there, Duration::from_secs(20)).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    stream.write_all(b"hello").expect("write");
    let mut data = [0; 5];
    stream.read_exact(&mut data).expect("read");
    let udp = UdpSocket::bind((own, 0)).expect("bind");
    udp.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    udp.send_to(b"hello", there).expect("send");
    assert_eq!(udp.recv(&mut data).expect("an answer"), 5);
}

fn run_in_pod(node: &Node, command: &str) -> Result<(), String> {
    let command = format!("ip netns exec {} {command}", node.space("pod"));
    let mut words = command.split_whitespace();
    let output =
        std::process::Command::new(words.next().expect("a word")).args(words).output().expect("iproute2");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into_owned()) }
}
