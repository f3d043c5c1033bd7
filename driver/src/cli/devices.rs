//! `netferry devices`.

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::show;
use crate::{
    config::DevicesArgs,
    device::{
        Device,
        discover::discover,
        rule::{Rule, decide},
        sysfs::Sysfs,
    },
};

/// A link of this node, and whether it would be published.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(flatten)]
    device: Device,
    published: bool,
    /// Why not; empty if it is.
    reason: String,
}

/// Print what would be published from this machine, and why the rest is not.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let rule = Rule::choose(
        &args.driver_name,
        args.publishing.publish.as_deref(),
        args.publishing.allow_default_route,
    )
    .context("--publish")?
    .sharing(args.publishing.share.as_deref())
    .context("--share")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let inventory =
        runtime.block_on(discover(&Sysfs::default())).context("cannot read this machine's links")?;
    let mut all: Vec<Shown> = decide(&inventory, &rule)
        .into_iter()
        .map(|(device, verdict)| Shown {
            device,
            published: verdict.is_ok(),
            reason: verdict.err().map(|reason| reason.to_string()).unwrap_or_default(),
        })
        .collect();
    all.sort_by_key(|shown| !shown.published);
    let header = ["DEVICE", "LINK", "KIND", "MAC", "MTU", "STATE", "ADDRESSES", "PUBLISHED"];
    show::print(args.output, &all, header, all.iter().map(row))
}

fn row(shown: &Shown) -> [String; 8] {
    let Device { name, ifname, kind, driver, mac, mtu, oper_state, addresses, .. } = &shown.device;
    let kind = kind.as_ref().or(driver.as_ref());
    [
        name.clone(),
        ifname.clone(),
        show::list(kind),
        show::list(mac),
        mtu.to_string(),
        oper_state.clone(),
        show::list(addresses),
        match (shown.published, shown.device.shared) {
            (true, true) => "yes, shared".to_owned(),
            (true, false) => "yes".to_owned(),
            (false, _) => format!("no: {}", shown.reason),
        },
    ]
}
