//! `netferry networks`.

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{running, show};
use crate::{
    claim::store::Store,
    config::NetworksArgs,
    network::{
        NetworkId, NetworkRef,
        identity::Identities,
        names::port_device,
        spec::{AddressSource, NetworkSpec},
    },
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    name: String,
    uid: String,
    id: NetworkId,
    /// The object is gone, and pods still have ports.
    deleted: bool,
    /// Interfaces of prepared claims.
    ports: usize,
    spec: NetworkSpec,
}

/// Print the networks that this node has given numbers to, as they were when they were last valid.
pub fn run(args: &NetworksArgs) -> Result<()> {
    running::require_state(&args.state)?;
    let numbered =
        Identities::read(&args.state.networks_file()).context("cannot read the numbers of networks")?;
    let checkpoints = Store::read(&args.state.claims_dir()).context("cannot read the checkpoints")?;
    let (networks, retired) = (numbered.networks.into_iter(), numbered.retired.into_iter());
    let all = networks.map(|network| (network, false)).chain(retired.map(|network| (network, true)));
    let shown: Vec<Shown> = all
        .map(|(network, deleted)| {
            let device = port_device(&network.reference.name);
            let interfaces = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
            let ports = interfaces.filter(|interface| interface.plan.device == device).count();
            let NetworkRef { name, uid } = network.reference;
            Shown { name, uid, id: network.id, deleted, ports, spec: network.spec }
        })
        .collect();
    let header = ["NETWORK", "ID", "TRANSPORT", "SUBNETS", "GATEWAYS", "ADDRESSES", "PORTS"];
    show::print(args.output, &shown, header, shown.iter().map(row))
}

fn row(shown: &Shown) -> [String; 7] {
    let transport = &shown.spec.transport;
    let transport = match (&transport.uplink, transport.overlay) {
        (Some(uplink), _) => match uplink.vlan {
            Some(vlan) => format!("uplink, VLAN {vlan}"),
            None if uplink.is_routed() => "uplink, routed".to_owned(),
            None => "uplink".to_owned(),
        },
        (None, Some(overlay)) => format!("overlay, VNI {}", overlay.vni),
        (None, None) => "local".to_owned(),
    };
    [
        if shown.deleted { format!("{} (deleted)", shown.name) } else { shown.name.clone() },
        shown.id.to_string(),
        transport,
        show::list(&shown.spec.subnets),
        show::list(&shown.spec.gateways),
        match shown.spec.addresses {
            AddressSource::Allocated => "allocated",
            AddressSource::Dhcp => "dhcp",
            AddressSource::Blocks => "blocks",
        }
        .to_owned(),
        shown.ports.to_string(),
    ]
}
