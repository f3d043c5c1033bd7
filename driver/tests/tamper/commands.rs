//! What a hostile process tries with `ip` and `tc`. Each of these is refused, or it is let be and changes nothing.

use crate::attack::{self, FORGED, FRAMES, LINK, PEER};
use crate::pod::{Pod, Said};

/// Runs a command in the pod; whether the kernel let it be.
fn try_command(pod: &Pod, command: &str) -> Result<(), String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = pod.process(&words);
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[track_caller]
fn refused(pod: &Pod, command: &str, with: &str) {
    let said = try_command(pod, command).expect_err(command);
    assert!(said.contains(with), "{command}: {said}");
}

#[track_caller]
fn done(pod: &Pod, command: &str) {
    try_command(pod, command).unwrap_or_else(|said| panic!("{command}: {said}"));
}

/// Forged frames by a packet socket are dropped and counted, whatever was done to the link before.
#[track_caller]
fn still_judged(pod: &Pod, when: &str) {
    assert_eq!(counted(pod, when), FRAMES as u64, "{when}");
}

/// Sends forged frames, of which none may arrive; how many were dropped meanwhile for their MAC.
#[track_caller]
fn counted(pod: &Pod, when: &str) -> u64 {
    let before = pod.drops("source_mac");
    assert_eq!(pod.attack("packet forged MAC"), Said::Done, "{when}");
    let dropped = pod.drops("source_mac") - before;
    pod.expect_arrived(0, when);
    dropped
}

#[tokio::test]
async fn programs_cannot_be_taken_off_or_exchanged() {
    let Some(pod) = Pod::new("programs_cannot_be_taken_off_or_exchanged").await else { return };
    assert!(pod.guards().contains(&"xdp".to_owned()), "{:?}", pod.guards());
    refused(&pod, &format!("ip link set dev {LINK} xdp off"), "Can't replace active BPF XDP link");
    // There is no generic one to take off.
    done(&pod, &format!("ip link set dev {LINK} xdpgeneric off"));
    assert!(pod.guards().contains(&"xdp".to_owned()), "{:?}", pod.guards());
    for program in
        ["bpftool net detach tcx_ingress", "bpftool net detach tcx_egress", "bpftool net detach xdp"]
    {
        refused(&pod, &format!("{program} dev {LINK}"), "");
    }
    for pins in ["ls /sys/fs/bpf/netferry", "bpftool link show", "bpftool prog show"] {
        let seen = pod.process(&pins.split_whitespace().collect::<Vec<_>>());
        let text = String::from_utf8_lossy(&seen.stdout);
        assert!(!text.contains("link_egress") && !text.contains("tcx"), "{pins}: {text}");
    }
    pod.assert_protected("after the detaches");
    pod.assert_unharmed("after the detaches").await;
}

/// Filters of the pod come after the programs, in both directions; queues come after them too.
#[tokio::test]
async fn filters_and_queues_come_after_the_programs() {
    let Some(pod) = Pod::new("filters_and_queues_come_after_the_programs").await else { return };
    done(&pod, &format!("tc qdisc add dev {LINK} clsact"));
    // Everything is let pass, before any other filter of this kind.
    let filter = ["tc", "filter", "add", "dev", LINK, "egress", "prio", "1", "bpf", "bytecode"];
    // `ret #0xffffffff`: every frame is of class 1:1.
    let words: Vec<&str> = filter.into_iter().chain(["1,6 0 0 4294967295,", "flowid", "1:1"]).collect();
    pod.exec(&words);
    still_judged(&pod, "with a filter that lets pass");
    pod.assert_protected("with a filter that lets pass");
    // What another device sends is sent by the link instead: that is the link's egress.
    done(&pod, "tc qdisc add dev lo clsact");
    done(
        &pod,
        &format!(
            "tc filter add dev lo egress prio 1 u32 match u32 0 0 action mirred egress redirect dev {LINK}"
        ),
    );
    let before = pod.drops("source_mac");
    let _ = try_command(&pod, "ping -c 3 -i 0.2 -W 1 127.0.0.1");
    assert!(pod.drops("source_mac") > before, "frames of lo have no MAC address");
    pod.expect_arrived(0, "frames redirected from lo");
    done(&pod, "tc qdisc del dev lo clsact");
    done(&pod, &format!("tc qdisc del dev {LINK} clsact"));
    still_judged(&pod, "after clsact was deleted");
    done(&pod, &format!("tc qdisc replace dev {LINK} root handle 1: htb default 1"));
    done(&pod, &format!("tc class add dev {LINK} parent 1: classid 1:1 htb rate 1gbit"));
    still_judged(&pod, "with a queue of the pod");
    pod.assert_protected("with a queue of the pod");
    done(&pod, &format!("tc qdisc del dev {LINK} root"));
    pod.assert_unharmed("after the queues").await;
}

#[tokio::test]
async fn another_identity_is_of_no_use() {
    let Some(pod) = Pod::new("another_identity_is_of_no_use").await else { return };
    let own = crate::world::MAC;
    for command in [
        format!("ip link set {LINK} down"),
        format!("ip link set {LINK} up"),
        format!("ip link set {LINK} alias hostile"),
        format!("ip link set {LINK} promisc on"),
        format!("ip addr add {FORGED}/24 dev {LINK}"),
    ] {
        done(&pod, &command);
    }
    done(&pod, &format!("ip neigh replace {PEER} lladdr {} dev {LINK} nud permanent", pod.peer));
    let before = pod.drops("source_ipv4");
    let _ = try_command(&pod, &format!("ping -c 3 -i 0.2 -W 1 -I {FORGED} {PEER}"));
    assert!(pod.drops("source_ipv4") >= before + 3, "the address that the pod gave itself");
    pod.assert_protected("with another address");
    done(&pod, &format!("ip link set {LINK} address {}", attack::FORGED_MAC));
    let before = pod.drops("source_mac");
    // Its neighbours are asked for anew, in the name of the other MAC; a busy machine may take a while.
    let mut tries = 0;
    while pod.drops("source_mac") == before {
        let said = try_command(&pod, &format!("ping -c 3 -i 0.2 -W 1 {PEER}"));
        tries += 1;
        assert!(tries < 10, "the MAC that the pod gave itself is not dropped: {said:?}");
    }
    // What the kernel itself sends under the other MAC meanwhile (ARP asked again, reports of groups) is dropped as well.
    let dropped = counted(&pod, "with another MAC");
    assert!(dropped >= FRAMES as u64, "with another MAC: {dropped} dropped");
    done(&pod, &format!("ip link set {LINK} address {own}"));
    pod.assert_unharmed("after the identities").await;
}

/// Devices on top of the link send by it. Without the modules of this machine some cannot be made, which is no less safe.
#[tokio::test]
async fn devices_on_top_of_the_link_send_through_its_programs() {
    let Some(pod) = Pod::new("devices_on_top_of_the_link_send_through_its_programs").await else { return };
    for (kind, attack, reason) in [
        ("macvlan mode bridge", "packet forged MAC", "source_mac"),
        ("macvlan mode private", "packet forged MAC", "source_mac"),
        ("ipvlan mode l2", "packet forged address", "source_ipv4"),
        ("vlan id 5", "packet honest", "vlan_tagged"),
    ] {
        let made = try_command(&pod, &format!("ip link add link {LINK} name top type {kind}"));
        if let Err(said) = made {
            assert!(said.contains("not supported") || said.contains("Unknown device type"), "{kind}: {said}");
            println!("{kind}: this kernel has none");
            continue;
        }
        done(&pod, "ip link set top up");
        dropped_on(&pod, "top", attack, reason);
        pod.assert_protected(kind);
        done(&pod, "ip link del top");
    }
    // A bridge forwards what comes in at another port, here from the pod's own end of a pair.
    done(&pod, "ip link add br0 type bridge");
    done(&pod, "ip link add pair0 type veth peer name pair1");
    done(&pod, "ip link set pair1 master br0");
    done(&pod, &format!("ip link set {LINK} master br0"));
    for device in ["br0", "pair0", "pair1"] {
        done(&pod, &format!("ip link set {device} up"));
    }
    // A port forwards once it has learnt, which takes a forward delay.
    done(&pod, "ip link set br0 type bridge forward_delay 0 stp_state 0");
    dropped_on(&pod, "pair0", "packet forged MAC", "source_mac");
    done(&pod, "ip link del br0");
    done(&pod, "ip link del pair0");
    pod.assert_unharmed("after the devices on top").await;
}

/// Frames sent by another device come to the link, and are dropped there.
#[track_caller]
fn dropped_on(pod: &Pod, device: &str, attack: &str, reason: &str) {
    let before = pod.drops(reason);
    assert_eq!(pod.attack_on(device, attack), Said::Done, "{device}: {attack}");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while pod.drops(reason) < before + FRAMES as u64 {
        assert!(std::time::Instant::now() < end, "{device}: {attack}: not dropped for {reason}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    pod.expect_arrived(0, device);
}

/// Programs travel with the link to wherever the pod moves it.
#[tokio::test]
async fn another_namespace_of_the_pod_is_no_way_out() {
    let Some(pod) = Pod::new("another_namespace_of_the_pod_is_no_way_out").await else { return };
    // A process without privileges may make a user namespace, and network namespaces in it.
    let script = format!(
        "exec 9<&0; unshare --user --map-root-user --net sleep 30 <&9 & child=$!; sleep 1; \
         ip link set {LINK} netns $child || exit 3; \
         nsenter --user --net --preserve-credentials --target $child ip link set {LINK} up; \
         nsenter --user --net --preserve-credentials --target $child tc qdisc add dev {LINK} clsact; \
         nsenter --user --net --preserve-credentials --target $child ip link set dev {LINK} xdp off; \
         kill $child"
    );
    let output = pod.process(&["sh", "-c", &script]);
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) {
        assert!(!said.is_empty());
        pod.assert_unharmed("after a move that was refused").await;
        return;
    }
    assert!(said.contains("Can't replace active BPF XDP link"), "{said}");
    // The namespace is gone, and with it a made link; a hardware link would be at home.
    let outcome = pod.world.places.attacher().give_back("s1").await;
    assert!(outcome.problems.iter().all(|it| it.reason == netferry::attach::Reason::LinkGone), "{outcome:?}");
    pod.world.assert_nothing_left("after the namespace");
}
