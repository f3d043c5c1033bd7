//! A pod each on two nodes that are joined by a wire, through VXLAN.

use std::any::Any;

use anyhow::{Context as _, Result, ensure};
use netferry::datapath::networks::{TunnelEnds, overlay_mtu};
use netferry::datapath::{Datapath as _, NetworkMember, NetworkUplink, Transport};
use netferry::network::transport::Headers;

use super::netns::Netns;
use super::ours::{Endpoint, Node};
use super::paths::{Evidence, Parts, Pods, address, mac};

/// The network's number in the tunnels.
const VNI: u32 = 0x4e46;
/// Number of the network on the nodes.
const NETWORK: u32 = 1;
/// MTU of the wire.
const WIRE: u32 = 1500;

/// Netferry's programs at the pods and at the device that tunnels start from and end at.
pub(crate) fn ours(headers: Headers, rules: Option<u32>) -> Result<Parts> {
    let (pods, other) = nodes()?;
    let mut nodes = Vec::new();
    let mut evidences: Vec<Evidence> = Vec::new();
    for (host, pod) in [(&pods.host, 1), (&other, 2)] {
        host.ip("link add vx0 type vxlan external dstport 4789")?;
        host.ip("link set vx0 up")?;
        let node = Node::open()?;
        let id = u32::from(pod);
        node.protect(host, &Endpoint { id, network: NETWORK, pod, mtu: overlay_mtu(WIRE, false) }, rules)?;
        let datapath = node.datapath();
        host.run(|| {
            let ifindex = nix::net::if_::if_nametoindex("vx0")?;
            let transport = Transport::Overlay { vni: VNI };
            datapath
                .set_uplink(NETWORK, &NetworkUplink { ifindex, mtu: overlay_mtu(WIRE, false), transport })?;
            datapath.attach_overlay(ifindex)?;
            if headers == Headers::Programs {
                let link = nix::net::if_::if_nametoindex("u0")?;
                let address = host_address(pod).parse()?;
                std::fs::write("/proc/sys/net/ipv4/conf/vx0/forwarding", "1")?;
                datapath.attach_underlay(link)?;
                datapath.set_tunnel_ends(Some(&TunnelEnds { device: ifindex, link, address, port: 4789 }))?;
            }
            Ok(())
        })?;
        let far = 3 - pod;
        datapath.set_member(&NetworkMember {
            network: NETWORK,
            address: address(far).into(),
            endpoint: None,
            node: Some(host_address(far).parse()?),
            mac: mac(far).parse().map_err(anyhow::Error::msg)?,
        })?;
        evidences.push(Box::new(move || {
            let stats = datapath.stats(id)?;
            let (out, back) = (stats.from_pod.overlay, stats.to_pod.overlay);
            ensure!(
                out >= 100 && back >= 100,
                "{out} frames of node {id} went into a tunnel, {back} came back"
            );
            Ok(())
        }));
        nodes.push(node);
    }
    pods.one_subnet()?;
    let evidence = move || evidences.iter().try_for_each(|evidence| evidence());
    Ok((pods, Box::new(evidence), keep(other, nodes)))
}

/// The kernel's own: on each node a bridge with the pod and a VXLAN device, which is told who is where.
pub(crate) fn kernel() -> Result<Parts> {
    let (pods, other) = nodes()?;
    for (host, pod) in [(&pods.host, 1), (&other, 2)] {
        let far = 3 - pod;
        let (near_address, far_address) = (host_address(pod), host_address(far));
        host.ip(&format!(
            "link add vx0 type vxlan id {VNI} dstport 4789 local {near_address} dev u0 nolearning"
        ))?;
        host.ip("link add br0 type bridge")?;
        host.sysctl("bridge/bridge-nf-call-iptables", "0")?;
        for link in ["vx0", &format!("h{pod}")] {
            host.ip(&format!("link set {link} master br0"))?;
            host.ip(&format!("link set {link} up"))?;
        }
        host.ip("link set br0 up")?;
        for dst in ["00:00:00:00:00:00", &mac(far)] {
            host.exec(&format!("bridge fdb append {dst} dev vx0 dst {far_address} self permanent"), "")?;
        }
    }
    pods.one_subnet()?;
    let (near, far) = (pods.host.clone(), other.clone());
    let evidence = move || {
        for host in [&near, &far] {
            let sent = host.sent("vx0")?;
            ensure!(sent >= 100, "only {sent} frames went into a tunnel");
        }
        Ok(())
    };
    Ok((pods, Box::new(evidence), keep(other, ())))
}

/// What must live as long as the path.
fn keep(other: Netns, more: impl Any) -> Vec<Box<dyn Any>> {
    vec![Box::new(other), Box::new(more)]
}

/// Address of a node on the wire.
fn host_address(pod: u8) -> String {
    format!("10.99.0.{pod}")
}

/// Two nodes, joined by a wire, with a pod each: the client's on the first, the server's on the other.
fn nodes() -> Result<(Pods, Netns)> {
    let pods = Pods::new()?;
    let other = Netns::new()?;
    pods.host
        .ip(&format!("link add u0 mtu {WIRE} type veth peer name u0 mtu {WIRE} netns {}", other.path()))?;
    for (host, pod, netns) in [(&pods.host, 1, &pods.client), (&other, 2, &pods.server)] {
        host.ip(&format!("addr add {}/24 dev u0", host_address(pod)))?;
        host.ip("link set u0 up")?;
        Pods::veth(host, pod, netns, overlay_mtu(WIRE, false)).context("a pod of a node")?;
    }
    Ok((pods, other))
}
