//! Two veth pairs and a program that redirects every frame and looks at nothing: the ceiling for ours.

use std::any::Any;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::TcAttachType;

use super::paths::{Parts, Pods, address, mac};
use crate::assembled::{self, EXIT, call};

/// How it redirects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jump {
    /// `bpf_redirect_peer`: straight into the receiver's namespace.
    Peer,
    /// `bpf_redirect`: out of the receiver's host end.
    Device,
}

/// `bpf_skb_change_type`, `bpf_redirect_peer` and `bpf_redirect`.
const CHANGE_TYPE: i32 = 32;
const REDIRECT_PEER: i32 = 155;
const REDIRECT: i32 = 23;

fn program(jump: Jump, ifindex: u32) -> Result<Ebpf> {
    let ifindex = i32::try_from(ifindex)?;
    let target = [(0xb7, 1, 0, 0, ifindex), (0xb7, 2, 0, 0, 0)]; // r1 = ifindex, r2 = flags
    match jump {
        // For somebody else's address until it is said that it is for the receiver: r2 = PACKET_HOST, r1 = context.
        Jump::Peer => assembled::load(&[
            (0xb7, 2, 0, 0, 0),
            call(CHANGE_TYPE),
            target[0],
            target[1],
            call(REDIRECT_PEER),
            EXIT,
        ]),
        Jump::Device => assembled::load(&[target[0], target[1], call(REDIRECT), EXIT]),
    }
}

/// The path.
pub(crate) fn path(jump: Jump) -> Result<Parts> {
    let pods = Pods::veths()?;
    let mut keep: Vec<Box<dyn Any>> = Vec::new();
    for (from, to) in [("h1", "h2"), ("h2", "h1")] {
        let ebpf = pods.host.run(|| {
            let target = nix::net::if_::if_nametoindex(to).context(to)?;
            let mut ebpf = program(jump, target)?;
            assembled::program(&mut ebpf)?.attach(from, TcAttachType::Ingress)?;
            Ok(ebpf)
        })?;
        keep.push(Box::new(ebpf));
    }
    pods.one_subnet()?;
    // Nobody answers ARP where everything is redirected to the one other pod: say who it is.
    for (netns, other) in [(&pods.client, 2), (&pods.server, 1)] {
        let (address, mac) = (address(other), mac(other));
        netns.ip(&format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent"))?;
    }
    let host = pods.host.clone();
    let evidence = move || {
        let sent = host.sent("h2")?;
        ensure!((sent < 50) == (jump == Jump::Peer), "{sent} frames went through the host's end");
        Ok(())
    };
    Ok((pods, Box::new(evidence), keep))
}
