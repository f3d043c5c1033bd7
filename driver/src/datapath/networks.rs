//! The ways of networks beyond the node: uplinks, tunnels, and the programs on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;

use netferry_common::uplink::{BRIDGED, OVERLAY, ROUTED};
use netferry_common::{Addr, Tunnel, Uplink, WireKey};

use super::Upgrade;
use super::kernel::{AyaDatapath, Written};
use super::load::load;
use super::sys::{self, Hook};
use super::{DatapathError, bpf_error};
use crate::link::MacAddr;

/// How a network goes on beyond the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// As one Ethernet over an uplink. The link has to take frames for the members' hardware addresses (promiscuous mode,
    /// where a device filters them).
    Bridged {
        /// VLAN id of its frames, put on and taken off by the programs; 0 for none, and then what is for no member is the
        /// host's.
        vlan: u16,
    },
    /// The node is the gateway, and routes by the host's routes over the uplink. VLANs are had with a VLAN link as the
    /// uplink.
    Routed {
        /// Hardware address of the gateway, the same on every node.
        mac: MacAddr,
        /// Its IPv4 address in the network.
        v4: Option<Ipv4Addr>,
        /// Its IPv6 address in the network.
        v6: Option<Ipv6Addr>,
    },
    /// Through VXLAN tunnels to the nodes of the members, from a device that takes its keys from us (`external`).
    Overlay {
        /// The network's number in the tunnels.
        vni: u32,
    },
}

/// The way of a network beyond the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkUplink {
    /// Index of the uplink, or of the tunnel device, in the host's namespace.
    pub ifindex: u32,
    /// The largest datagram that fits, in bytes: of a tunnel, see [`overlay_mtu`].
    pub mtu: u32,
    /// How.
    pub transport: Transport,
}

/// Where tunnels over IPv4 start and end on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelEnds {
    /// Index of the tunnel device.
    pub device: u32,
    /// Index of the link between the nodes. What routes send over another is left to the device.
    pub link: u32,
    /// Address of this node.
    pub address: Ipv4Addr,
    /// UDP port of tunnels on all nodes.
    pub port: u16,
}

impl TunnelEnds {
    const fn record(&self) -> Tunnel {
        let Self { device, link, address, port } = *self;
        Tunnel { device, link, address: address.octets(), port: port.to_be_bytes(), pad: [0; 2] }
    }

    fn from_record(record: &Tunnel) -> Option<Self> {
        let Tunnel { device, link, address, port, .. } = *record;
        let ends = Self { device, link, address: address.into(), port: u16::from_be_bytes(port) };
        (device != 0).then_some(ends)
    }
}

/// The largest datagram that fits a tunnel between nodes over a link of this MTU: less an Ethernet, a VXLAN, a UDP, and
/// an IP header (RFC 7348).
#[must_use]
pub const fn overlay_mtu(link: u32, over_ipv6: bool) -> u32 {
    link.saturating_sub(14 + 8 + 8 + if over_ipv6 { 40 } else { 20 })
}

/// The least MTU of IPv4 (RFC 791).
const LEAST_MTU: u32 = 68;
const MOST_VLAN: u16 = 4094;
const MOST_VNI: u32 = 0xff_ffff;

impl NetworkUplink {
    /// What is wrong with it.
    fn problem(&self) -> Option<String> {
        let Self { ifindex, mtu, transport } = self;
        if *ifindex == 0 {
            return Some("interface index 0 is no link".to_owned());
        }
        if *mtu < LEAST_MTU {
            return Some(format!("an MTU of {mtu} is below {LEAST_MTU}, the least of IPv4"));
        }
        match transport {
            Transport::Bridged { vlan } if *vlan > MOST_VLAN => {
                Some(format!("VLAN id {vlan} is not among 0 to {MOST_VLAN}"))
            }
            Transport::Routed { v4: None, v6: None, .. } => {
                Some("a gateway needs an IPv4 or an IPv6 address".to_owned())
            }
            Transport::Overlay { vni } if !(1..=MOST_VNI).contains(vni) => {
                Some(format!("VNI {vni} is not among 1 to {MOST_VNI}"))
            }
            _ => None,
        }
    }

    /// Addresses of the gateway that the node is.
    pub(super) fn gateways(&self) -> Vec<(IpAddr, [u8; 6])> {
        let Transport::Routed { mac, v4, v6 } = self.transport else { return Vec::new() };
        let link_local = Ipv6Addr::from(Addr::link_local(mac.0).bytes);
        let v6 = v6.map(|v6| [IpAddr::V6(v6), IpAddr::V6(link_local)]);
        let addresses = v4.map(IpAddr::V4).into_iter().chain(v6.into_iter().flatten());
        addresses.map(|address| (address, mac.0)).collect()
    }

    pub(super) fn record(&self) -> Uplink {
        let plain = Uplink { ifindex: self.ifindex, mtu: self.mtu, ..Uplink::default() };
        match self.transport {
            Transport::Bridged { vlan } => Uplink { flags: BRIDGED, tag: vlan.into(), ..plain },
            Transport::Routed { mac, v4, v6 } => Uplink {
                flags: ROUTED,
                mac: mac.0,
                gateway_v4: v4.map_or([0; 4], |v4| v4.octets()),
                gateway_v6: v6.map_or(Addr::UNSPECIFIED, |v6| Addr::v6(v6.octets())),
                ..plain
            },
            Transport::Overlay { vni } => Uplink { flags: OVERLAY, tag: vni, ..plain },
        }
    }

    /// `None` for a record of another version.
    fn from_record(record: &Uplink) -> Option<Self> {
        let transport = match record.flags {
            BRIDGED => Transport::Bridged { vlan: u16::try_from(record.tag).ok()? },
            ROUTED => Transport::Routed {
                mac: MacAddr(record.mac),
                v4: (record.gateway_v4 != [0; 4]).then(|| record.gateway_v4.into()),
                v6: (record.gateway_v6 != Addr::UNSPECIFIED).then(|| record.gateway_v6.bytes.into()),
            },
            OVERLAY => Transport::Overlay { vni: record.tag },
            _ => return None,
        };
        Some(Self { ifindex: record.ifindex, mtu: record.mtu, transport })
    }

    pub(super) fn wire(&self) -> WireKey {
        let record = self.record();
        WireKey { ifindex: record.ifindex, tag: record.tag }
    }
}

/// A program at the border of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Border {
    Uplink,
    Overlay,
    Underlay,
}

/// Links and devices, by index, that have a program of this driver at the border of the node, or had one before they went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Borders {
    /// Uplinks.
    pub uplinks: BTreeSet<u32>,
    /// Devices that tunnels end at.
    pub tunnels: BTreeSet<u32>,
    /// Links between nodes that tunnels come over.
    pub underlays: BTreeSet<u32>,
}

impl Border {
    const ALL: [Self; 3] = [Self::Uplink, Self::Overlay, Self::Underlay];

    const fn program(self) -> &'static str {
        match self {
            Self::Uplink => "uplink_ingress",
            Self::Overlay => "overlay_ingress",
            Self::Underlay => "underlay_ingress",
        }
    }

    /// Name of its pin.
    fn pin(self, ifindex: u32) -> String {
        match self {
            Self::Uplink => format!("uplink-{ifindex}"),
            Self::Overlay => format!("overlay-{ifindex}"),
            Self::Underlay => format!("underlay-{ifindex}"),
        }
    }

    fn of_pin(name: &str) -> Option<(Self, u32)> {
        let (_, ifindex) = name.rsplit_once('-')?;
        let ifindex = ifindex.parse().ok()?;
        Self::ALL.into_iter().find(|border| border.pin(ifindex) == name).map(|border| (border, ifindex))
    }
}

impl AyaDatapath {
    /// Says how a network goes on beyond the node, in the place of what was said before. Frames come in by it once a
    /// program is attached to the link ([`Self::attach_uplink`], [`Self::attach_overlay`]). Each network has an interface
    /// and a VLAN id or VNI of its own: of another's, the call is refused.
    pub fn set_uplink(&self, network: u32, uplink: &NetworkUplink) -> Result<(), DatapathError> {
        let refused = |problem: String| bpf_error(format!("set the uplink of network {network}"), problem);
        if network == 0 || network >= netferry_common::counters::NETWORK {
            return Err(refused("a network is a number from 1 to 2147483647".to_owned()));
        }
        if let Some(problem) = uplink.problem() {
            return Err(refused(problem));
        }
        let mut written = self.written();
        let key = uplink.wire();
        let owner =
            written.tables.wires()?.into_iter().find(|(wire, other)| *wire == key && *other != network);
        if let Some((WireKey { ifindex, tag }, other)) = owner {
            let problem =
                format!("frames with tag {tag} on interface {ifindex} are those of network {other}");
            return Err(refused(problem));
        }
        written.tables.set_uplink(network, uplink)
    }

    /// Closes the way of a network beyond the node. Succeeds if there is none.
    pub fn remove_uplink(&self, network: u32) -> Result<(), DatapathError> {
        self.written().tables.remove_uplink(network)
    }

    /// Ways of all networks beyond the node, by network.
    pub fn uplinks(&self) -> Result<BTreeMap<u32, NetworkUplink>, DatapathError> {
        let records = self.written().tables.uplinks()?;
        Ok(records
            .iter()
            .filter_map(|(network, record)| Some((*network, NetworkUplink::from_record(record)?)))
            .collect())
    }

    /// What was dropped on its way in from an uplink or a tunnel before it was known for which endpoint it was, by the name
    /// of the reason. Network 0 stands for what came with a VNI that is no network's.
    pub fn network_drops(&self, network: u32) -> Result<BTreeMap<String, u64>, DatapathError> {
        self.written().tables.network_drops(network)
    }

    /// Puts the program for what comes in on an uplink first on it, or this version's in the place of an older one. Links
    /// are named by index in the namespace of the daemon, the host's.
    pub fn attach_uplink(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach_border(Border::Uplink, ifindex)
    }

    /// Likewise for what comes out of a tunnel device.
    pub fn attach_overlay(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach_border(Border::Overlay, ifindex)
    }

    /// Likewise for what comes through tunnels over the link between the nodes. It does nothing before
    /// [`Self::set_tunnel_ends`].
    pub fn attach_underlay(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.attach_border(Border::Underlay, ifindex)
    }

    /// Says where tunnels start and end, so that programs put their headers on and take them off themselves; `None`: the
    /// device does. Networks that are not where programs find them without a search are put there. The device needs `forwarding` for IPv4, or routes are not found.
    pub fn set_tunnel_ends(&self, ends: Option<&TunnelEnds>) -> Result<(), DatapathError> {
        let mut written = self.written();
        written.tables.fill_ways()?;
        written.tables.set_tunnel(&ends.map_or_else(Tunnel::default, TunnelEnds::record))
    }

    /// Where they do.
    pub fn tunnel_ends(&self) -> Result<Option<TunnelEnds>, DatapathError> {
        Ok(TunnelEnds::from_record(&self.written().tables.tunnel()?))
    }

    /// Takes the program off an uplink. Succeeds if there is none.
    pub fn detach_uplink(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach_border(Border::Uplink, ifindex)
    }

    /// Takes the program off a tunnel device. Succeeds if there is none.
    pub fn detach_overlay(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach_border(Border::Overlay, ifindex)
    }

    /// Where there are programs at the border of the node.
    pub fn borders(&self) -> Result<Borders, DatapathError> {
        let mut all = Borders::default();
        for (border, ifindex) in self.pins.borders()?.iter().filter_map(|name| Border::of_pin(name)) {
            match border {
                Border::Uplink => all.uplinks.insert(ifindex),
                Border::Overlay => all.tunnels.insert(ifindex),
                Border::Underlay => all.underlays.insert(ifindex),
            };
        }
        Ok(all)
    }

    fn attach_border(&self, border: Border, ifindex: u32) -> Result<(), DatapathError> {
        if !self.features().tcx {
            return Err(DatapathError::Unsupported {
                feature: "tcx (upstream since Linux 6.6)",
                consequence: "networks end at the node",
            });
        }
        let mut written = self.written();
        if let Some(link) = self.pins.border(&border.pin(ifindex))? {
            if link.info.ifindex == ifindex && link.runs_here() {
                return self.update_border(&mut written, border, &link);
            }
            // Of a device that is gone, whose index another has now.
            link.remove()?;
        }
        let name = border.program();
        let mut object = self.programs.prepare(0)?;
        let program = load(&mut object, name, 0)?;
        let link = sys::attach_first(program, ifindex, Hook::Ingress).map_err(|source| {
            bpf_error(format!("attach the program {name} to interface {ifindex}"), source)
        })?;
        self.pins.pin_border(&border.pin(ifindex), &link)?;
        written.remember(&link, 0, name)
    }

    fn update_border(
        &self,
        written: &mut Written,
        border: Border,
        link: &super::pins::PinnedLink,
    ) -> Result<(), DatapathError> {
        let name = border.program();
        if written.attached.get(&link.info.program) == Some(&(0, name)) {
            return Ok(());
        }
        let mut object = self.programs.prepare(0)?;
        let program = load(&mut object, name, 0)?;
        sys::update(link.fd.as_fd(), program)
            .map_err(|source| bpf_error(format!("update the link {}", link.path.display()), source))?;
        written.remember(&link.fd, 0, name)
    }

    fn detach_border(&self, border: Border, ifindex: u32) -> Result<(), DatapathError> {
        let mut written = self.written();
        let Some(link) = self.pins.border(&border.pin(ifindex))? else { return Ok(()) };
        link.remove()?;
        written.attached.remove(&link.info.program);
        Ok(())
    }

    /// Takes the program off a link between nodes. Succeeds if there is none.
    pub fn detach_underlay(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.detach_border(Border::Underlay, ifindex)
    }

    /// Gives every uplink and tunnel device the programs of this process, in place.
    pub(super) fn upgrade_borders(
        &self,
        written: &mut Written,
        upgrade: &mut Upgrade,
    ) -> Result<(), DatapathError> {
        for name in self.pins.borders()? {
            let Some((border, _)) = Border::of_pin(&name) else { continue };
            let Some(link) = self.pins.border(&name)? else { continue };
            let updated = match link.info.ifindex {
                0 => link.remove(),
                _ => self.update_border(written, border, &link),
            };
            if let Err(error) = updated {
                upgrade.failed.push((0, error));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_named_and_found_again() {
        for (border, ifindex) in [(Border::Uplink, 7), (Border::Overlay, 4_000_000_000)] {
            assert_eq!(Border::of_pin(&border.pin(ifindex)), Some((border, ifindex)));
        }
        for other in ["uplink", "uplink-", "uplink-x", "up-7", "uplink-07"] {
            assert_eq!(Border::of_pin(other), None, "{other}");
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let gateway = |v4, v6| Transport::Routed { mac, v4, v6 };
        let v6 = "2001:db8::1".parse().ok();
        for transport in [
            Transport::Bridged { vlan: 0 },
            Transport::Bridged { vlan: 4094 },
            gateway(Some(Ipv4Addr::new(10, 0, 0, 1)), None),
            gateway(None, v6),
            Transport::Overlay { vni: MOST_VNI },
        ] {
            let uplink = NetworkUplink { ifindex: 3, mtu: 1500, transport };
            assert_eq!(uplink.problem(), None);
            assert_eq!(NetworkUplink::from_record(&uplink.record()), Some(uplink));
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        let good = NetworkUplink { ifindex: 3, mtu: 1500, transport: Transport::Bridged { vlan: 1 } };
        let routed = Transport::Routed { mac: MacAddr([2; 6]), v4: None, v6: None };
        for (bad, said) in [
            (NetworkUplink { ifindex: 0, ..good }, "index 0"),
            (NetworkUplink { mtu: 67, ..good }, "MTU of 67"),
            (NetworkUplink { transport: Transport::Bridged { vlan: 4095 }, ..good }, "VLAN id 4095"),
            (NetworkUplink { transport: Transport::Overlay { vni: 0 }, ..good }, "VNI 0"),
            (NetworkUplink { transport: routed, ..good }, "a gateway needs"),
        ] {
            assert!(bad.problem().is_some_and(|problem| problem.contains(said)), "{said}");
        }
        assert_eq!((overlay_mtu(1500, false), overlay_mtu(1500, true)), (1450, 1430));
    }
}
