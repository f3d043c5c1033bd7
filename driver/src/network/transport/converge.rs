//! Makes the kernel have what is wanted. Everything is found again from what is pinned and from the links themselves, so
//! a run needs no run before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

use super::{Problems, TUNNEL, TUNNEL_MAC, TunnelDevice, Wanted, Way, promiscuous::Promiscuous};
use crate::{
    datapath::{AyaDatapath, DatapathError, NetworkUplink, Transport},
    link::{
        Link, LinkError, LinkRef, Namespace,
        underlay::{Tunnel, Underlay},
    },
    network::NetworkRef,
    telemetry::chain,
};

/// Why a link cannot be a network's way.
enum Trouble {
    /// It is not there, or somebody else's: what was set up over it goes.
    NotThere(String),
    /// Something failed; what was set up over it stays.
    Failed(String),
    /// It is set up, but carries nothing yet.
    Idle(String),
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::NotFound { .. } => Self::NotThere(error.to_string()),
            _ => Self::Failed(chain(&error)),
        }
    }
}

impl From<DatapathError> for Trouble {
    fn from(error: DatapathError) -> Self {
        Self::Failed(chain(&error))
    }
}

/// Notes the first error that no network is to blame for.
#[derive(Default)]
pub(super) struct Rest(Option<String>);

impl Rest {
    pub(super) fn note<T, E: std::error::Error + 'static>(&mut self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(error) => {
                self.0.get_or_insert_with(|| chain(&error));
                None
            }
        }
    }
}

/// What was found out by a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Networks that are not as they are to be.
    pub problems: Problems,
    /// What could not be removed, read, or left to programs: no network's problem.
    pub rest: Option<String>,
}

/// See the module.
pub struct Converger<L> {
    pub(super) links: L,
    pub(super) datapath: Arc<AyaDatapath>,
    promiscuous: Promiscuous,
}

impl<L: Underlay> Converger<L> {
    /// One that works on these, and writes into this file which links it made promiscuous.
    pub fn open(links: L, datapath: Arc<AyaDatapath>, promiscuous: &Path) -> io::Result<Self> {
        Ok(Self { links, datapath, promiscuous: Promiscuous::open(promiscuous)? })
    }

    /// Make the kernel have what is wanted.
    pub async fn converge(&mut self, wanted: &Wanted) -> Outcome {
        let mut rest = Rest::default();
        let mut problems = wanted.problems.clone();
        let mut say = |network: &NetworkRef, problem: String| {
            problems.entry(network.clone()).or_insert(problem);
        };
        let there = rest.note(self.datapath.uplinks()).unwrap_or_default();
        let tunnel = match wanted.tunnel {
            Some(device) => Some((device, self.tunnel(device).await)),
            None => None,
        };
        if let Some((device, Ok(ifindex))) = &tunnel {
            self.headers(*ifindex, device, &mut rest).await;
        }
        let mut links = BTreeMap::new();
        for (_, way) in wanted.ways.values() {
            if let Way::Uplink { ifindex, ifname, .. } = way
                && !links.contains_key(ifindex)
            {
                let bridged = wanted.ways.values().any(|(_, way)| way.bridges() == Some(*ifindex));
                links.insert(*ifindex, self.uplink(*ifindex, ifname, bridged).await);
            }
        }

        let (mut meant, mut kept) = (BTreeMap::new(), BTreeSet::new());
        for (id, (network, way)) in &wanted.ways {
            let (there, way) = match (way, &tunnel) {
                (Way::Overlay { vni }, Some((device, there))) => {
                    let transport = Transport::Overlay { vni: *vni };
                    let index = there.as_ref().map(|ifindex| NetworkUplink {
                        ifindex: *ifindex,
                        mtu: device.mtu,
                        transport,
                    });
                    (index.is_ok(), index)
                }
                (Way::Overlay { .. }, None) => continue,
                (Way::Uplink { ifindex, mtu, how, .. }, _) => {
                    let way = NetworkUplink { ifindex: *ifindex, mtu: *mtu, transport: *how };
                    match links.get(ifindex) {
                        Some(Err(Trouble::Idle(problem))) => {
                            say(network, problem.clone());
                            (true, Ok(way))
                        }
                        Some(Err(trouble)) => (false, Err(trouble)),
                        _ => (true, Ok(way)),
                    }
                }
            };
            match way {
                Ok(way) if there => {
                    meant.insert(*id, way);
                }
                Ok(_) => {}
                Err(Trouble::NotThere(problem) | Trouble::Idle(problem)) => say(network, problem.clone()),
                Err(Trouble::Failed(problem)) => {
                    say(network, problem.clone());
                    kept.insert(*id);
                }
            }
        }

        // What goes comes first: two networks may have changed places.
        for (id, now) in &there {
            let goes = match meant.get(id) {
                Some(way) => (way.ifindex, way.transport) != (now.ifindex, now.transport),
                None => !kept.contains(id),
            };
            if goes {
                rest.note(self.datapath.remove_uplink(*id));
            }
        }
        for (id, way) in &meant {
            if there.get(id) != Some(way)
                && let Err(error) = self.datapath.set_uplink(*id, way)
                && let Some((network, _)) = wanted.ways.get(id)
            {
                say(network, chain(&error));
            }
        }

        let in_use: Vec<&NetworkUplink> =
            meant.values().chain(kept.iter().filter_map(|id| there.get(id))).collect();
        self.take_down(wanted.tunnel.is_some(), &in_use, &mut rest).await;
        Outcome { problems, rest: rest.0 }
    }

    /// The device of all tunnels: programs first, then up.
    async fn tunnel(&self, wanted: TunnelDevice) -> Result<u32, Trouble> {
        let device = Tunnel { name: TUNNEL.to_owned(), port: wanted.port, mac: TUNNEL_MAC, mtu: wanted.mtu };
        let (ifindex, up) = match self.links.get(&Namespace::Host, &LinkRef::Name(TUNNEL.to_owned())).await {
            Ok(link) => match self.links.tunnel(link.ifindex).await? {
                Some(found) if found.mac != TUNNEL_MAC => return Err(not_ours()),
                None => return Err(not_ours()),
                Some(found) if found.port != wanted.port => {
                    self.links.remove(&Namespace::Host, link.ifindex).await?;
                    (self.make(&device).await?, false)
                }
                Some(found) => {
                    if found.mtu != wanted.mtu {
                        self.links.set_mtu(&Namespace::Host, link.ifindex, wanted.mtu).await?;
                    }
                    (link.ifindex, link.up)
                }
            },
            Err(LinkError::NotFound { .. }) => (self.make(&device).await?, false),
            Err(error) => return Err(error.into()),
        };
        self.attach(ifindex, AyaDatapath::attach_overlay).await?;
        if !up {
            // No address of its own, and nothing the kernel would send by itself.
            let sysctls = BTreeMap::from([("ipv6/disable_ipv6".to_owned(), "1".to_owned())]);
            self.links.set_sysctls(&Namespace::Host, ifindex, &sysctls).await?;
            self.links
                .set_up(&Namespace::Host, ifindex, true)
                .await
                .map_err(|error| port_taken(error, wanted.port))?;
        }
        Ok(ifindex)
    }

    async fn make(&self, device: &Tunnel) -> Result<u32, Trouble> {
        self.links.make_tunnel(device).await.map_err(|error| port_taken(error, device.port))
    }

    /// A link that networks go on over. What is bridged there is for hardware addresses that are not its own.
    async fn uplink(&mut self, ifindex: u32, ifname: &str, bridged: bool) -> Result<(), Trouble> {
        let link: Link = self.links.get(&Namespace::Host, &LinkRef::Index(ifindex)).await.map_err(
            |error| match error {
                LinkError::NotFound { .. } => {
                    Trouble::NotThere(format!("link {ifname} is not in the node's network namespace"))
                }
                other => other.into(),
            },
        )?;
        if link.name != ifname {
            return Err(Trouble::NotThere(format!(
                "link {ifname} is not where it was found; {} is there",
                link.name
            )));
        }
        self.attach(ifindex, AyaDatapath::attach_uplink).await?;
        if bridged && !self.links.is_promiscuous(ifindex).await? {
            let written = self.promiscuous.add(ifindex, ifname);
            written.map_err(|error| {
                Trouble::Failed(format!("cannot write down that {ifname} is promiscuous: {error}"))
            })?;
            self.links.set_promiscuous(ifindex, true).await?;
        }
        if link.up { Ok(()) } else { Err(Trouble::Idle(format!("link {ifname} is down; needed: up"))) }
    }

    /// The kernel's verifier takes its time.
    pub(super) async fn attach(
        &self,
        ifindex: u32,
        attach: fn(&AyaDatapath, u32) -> Result<(), DatapathError>,
    ) -> Result<(), DatapathError> {
        let datapath = Arc::clone(&self.datapath);
        let attached = tokio::task::spawn_blocking(move || attach(&datapath, ifindex)).await;
        attached.unwrap_or_else(|error| {
            Err(DatapathError::Bpf { action: format!("attach to interface {ifindex}"), source: error.into() })
        })
    }

    /// Take away what is not in use: the device of tunnels before its program, and promiscuous mode after it.
    async fn take_down(&mut self, tunnels: bool, ways: &[&NetworkUplink], rest: &mut Rest) {
        let in_use: BTreeSet<u32> = ways.iter().map(|way| way.ifindex).collect();
        let bridged = |way: &&&NetworkUplink| matches!(way.transport, Transport::Bridged { .. });
        let promiscuous: BTreeSet<u32> = ways.iter().filter(bridged).map(|way| way.ifindex).collect();
        if !tunnels {
            let named = self.links.get(&Namespace::Host, &LinkRef::Name(TUNNEL.to_owned())).await;
            let named =
                if matches!(named, Err(LinkError::NotFound { .. })) { None } else { rest.note(named) };
            if let Some(link) = named
                && rest
                    .note(self.links.tunnel(link.ifindex).await)
                    .flatten()
                    .is_some_and(|found| found.mac == TUNNEL_MAC)
            {
                rest.note(self.links.remove(&Namespace::Host, link.ifindex).await);
            }
        }
        if !tunnels {
            rest.note(self.datapath.set_tunnel_ends(None));
        }
        let there = rest.note(self.datapath.borders()).unwrap_or_default();
        let between = rest.note(self.datapath.tunnel_ends()).flatten().map(|ends| ends.link);
        for ifindex in there.underlays.iter().filter(|ifindex| Some(**ifindex) != between) {
            rest.note(self.datapath.detach_underlay(*ifindex));
        }
        for ifindex in there.uplinks.difference(&in_use) {
            rest.note(self.datapath.detach_uplink(*ifindex));
        }
        // One that is wanted and cannot be had now keeps its program: without, its frames would be the host's.
        let gone = async |ifindex: u32| {
            matches!(
                self.links.get(&Namespace::Host, &LinkRef::Index(ifindex)).await,
                Err(LinkError::NotFound { .. })
            )
        };
        for ifindex in there.tunnels.difference(&in_use) {
            if !tunnels || gone(*ifindex).await {
                rest.note(self.datapath.detach_overlay(*ifindex));
            }
        }
        let ours = self.promiscuous.links().clone();
        for (ifindex, name) in ours.iter().filter(|(ifindex, _)| !promiscuous.contains(ifindex)) {
            rest.note(self.not_promiscuous(*ifindex, name).await);
        }
    }

    async fn not_promiscuous(&mut self, ifindex: u32, name: &str) -> io::Result<()> {
        match self.links.get(&Namespace::Host, &LinkRef::Index(ifindex)).await {
            // Another link has its index now.
            Ok(link) if link.name != name => {}
            Ok(_) => self.links.set_promiscuous(ifindex, false).await.map_err(io::Error::other)?,
            Err(LinkError::NotFound { .. }) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
        self.promiscuous.remove(ifindex)
    }
}

fn not_ours() -> Trouble {
    Trouble::NotThere(format!(
        "a link named {TUNNEL} is there that this driver has not made, or that was changed; it is left alone, and no tunnel \
         can be had before it is deleted"
    ))
}

/// What the kernel says if another VXLAN device, or a socket, has the port.
fn port_taken(error: LinkError, port: u16) -> Trouble {
    let taken = |source: &io::Error| {
        [io::ErrorKind::AlreadyExists, io::ErrorKind::AddrInUse].contains(&source.kind())
    };
    match &error {
        LinkError::Kernel { source, .. } if taken(source) => Trouble::Failed(format!(
            "UDP port {port} is taken on this node, most often by a VXLAN device of the cluster's own network; allowed: a \
             port that is free on all nodes (--overlay-port)"
        )),
        _ => error.into(),
    }
}
