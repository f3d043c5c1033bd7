//! A pod that fights its isolation: a process with NET_ADMIN and NET_RAW, and nothing else, in the network namespace and
//! the cgroup of a pod with a moved link under strict isolation. Whatever it does, nothing that the programs did not judge
//! leaves the link, and the programs stay.

#[path = "tamper/attack.rs"]
mod attack;
#[path = "tamper/commands.rs"]
mod commands;
#[path = "tamper/pod.rs"]
mod pod;
mod support;
#[path = "tamper/sys.rs"]
mod sys;
#[path = "attach/world.rs"]
mod world;

use std::env;

use attack::FRAMES;
use netferry::link::MacAddr;
use pod::{Pod, Said};

/// The hostile process: what the other tests run as a child, and nothing to do without them.
#[test]
fn process_in_the_pod() {
    let Ok(name) = env::var(pod::ATTACK) else { return };
    let mac = |name: &str| -> MacAddr { env::var(name).expect(name).parse().expect("a hardware address") };
    match attack::run(&name, mac(pod::OWN_MAC), mac(pod::PEER_MAC)) {
        Ok(()) => println!("{}done", pod::SAID),
        Err(error) => println!("{}{}", pod::SAID, error.raw_os_error().expect("an error of the kernel")),
    }
}

/// Sent, and none of it arrived, and each frame was counted.
#[tokio::test]
async fn sockets_send_nothing_that_was_not_judged() {
    let Some(pod) = Pod::new("sockets_send_nothing_that_was_not_judged").await else { return };
    assert_eq!(pod.attack("packet honest"), Said::Done);
    pod.expect_arrived(FRAMES, "honest frames");
    for (name, frames, reason) in [
        ("packet forged MAC", FRAMES, "source_mac"),
        ("packet forged address", FRAMES, "source_ipv4"),
        ("packet VLAN", FRAMES, "vlan_tagged"),
        ("packet ring", 1, "source_mac"),
        ("raw IP", FRAMES, "source_ipv4"),
    ] {
        let before = pod.drops(reason);
        assert_eq!(pod.attack(name), Said::Done, "{name}");
        assert_eq!(pod.drops(reason) - before, frames as u64, "{name}");
        pod.expect_arrived(0, name);
    }
    pod.assert_unharmed("after the sockets").await;
}

/// What sends around the programs is refused, and the socket goes on sending through them.
#[tokio::test]
async fn sockets_cannot_go_around_the_programs() {
    let Some(pod) = Pod::guarded("sockets_cannot_go_around_the_programs").await else { return };
    for (name, frames) in [("bypass", FRAMES), ("bypass by ring", 1)] {
        let before = pod.drops("source_mac");
        assert_eq!(pod.attack(name), Said::Error(libc::EPERM), "{name}");
        assert_eq!(pod.drops("source_mac") - before, frames as u64, "{name}");
        pod.expect_arrived(0, name);
    }
    assert_eq!(pod.attack("AF_XDP"), Said::Error(libc::EPERM));
    assert_eq!(pod.attack("other options"), Said::Done);
    pod.assert_unharmed("after the bypasses").await;
}

/// The hook for socket options is not called for these, that of the BPF security module is. Without it they are through:
/// README says so.
#[tokio::test]
async fn system_calls_of_32_bits_are_refused_by_the_security_module_alone() {
    let test = "system_calls_of_32_bits_are_refused_by_the_security_module_alone";
    let Some(pod) = Pod::guarded(test).await else { return };
    // Also absent where the kernel has the module, but takes no programs for it.
    let guarded = pod.guards().contains(&"cgroup/lsm".to_owned());
    match pod.attack("bypass by 32 bits") {
        Said::Error(libc::ENOSYS) => support::skip(test, "this machine takes no system calls of 32 bits"),
        Said::Error(libc::EPERM) => {
            assert!(guarded && pod::bpf_is_a_security_module(), "nothing else refuses it");
            pod.expect_arrived(0, "after a refusal");
        }
        Said::Done => {
            assert!(!guarded || !pod::bpf_is_a_security_module(), "the security module did not refuse it");
            pod.expect_arrived(FRAMES, "what README says gets through");
        }
        other @ Said::Error(_) => panic!("{other:?}"),
    }
    pod.assert_unharmed("after the bypass").await;
}

#[tokio::test]
async fn bpf_calls_reach_none_of_the_programs() {
    let Some(pod) = Pod::new("bpf_calls_reach_none_of_the_programs").await else { return };
    for name in ["bpf: detach the first program", "bpf: open links", "bpf: load a program"] {
        assert!(matches!(pod.attack(name), Said::Error(_)), "{name}");
    }
    assert_eq!(pod.attack("bpf: load a program"), Said::Error(libc::EPERM));
    pod.assert_unharmed("after bpf(2)").await;
}

/// Without a guard the bypass works: this is what the guard is for, and what the other tests would see if it failed.
#[tokio::test]
async fn without_the_guard_the_bypass_works() {
    let Some(pod) = Pod::new("without_the_guard_the_bypass_works").await else { return };
    pod.remove_guards();
    assert_eq!(pod.attack("bypass"), Said::Done);
    pod.expect_arrived(FRAMES, "frames around the programs");
}
