//! `netferry pods`.

use anyhow::{Context as _, Result};

use netferry_common::verdict::Reason;

use super::show;
use crate::{
    claim::{Step, store::Store},
    config::PodsArgs,
    datapath::{AyaDatapath, EndpointStats, Isolation},
    holdings::{Holding, holdings},
};

/// Drops that every pod causes by itself and that mean nothing: its kernel asks for routers and joins groups that nobody
/// on an isolated network answers. JSON has them.
const UNREMARKABLE: &str = Reason::NoReceiver.name();

/// Print who holds what.
pub fn run(args: &PodsArgs) -> Result<()> {
    let datapath =
        AyaDatapath::open_existing(&args.state.pin_root()).context("cannot open the pinned maps")?;
    let checkpoints = Store::read(&args.state.claims_dir()).context("cannot read the checkpoints")?;
    let holdings = holdings(&checkpoints, &datapath);
    let header = [
        "POD",
        "INTERFACE",
        "DEVICE",
        "CLAIM",
        "ADDRESSES",
        "STATE",
        "GUARDS",
        "TO POD",
        "FROM POD",
        "DROPS",
    ];
    show::print(args.output, &holdings, header, holdings.iter().map(row))
}

fn row(holding: &Holding) -> [String; 10] {
    let stats = holding.stats.as_ref();
    let packets = |pick: fn(&EndpointStats) -> u64| stats.map_or("-".to_owned(), |s| pick(s).to_string());
    let progress = match (holding.step, holding.isolation) {
        (Step::Attaching, _) => "attaching",
        (Step::Returning, _) => "returning",
        (Step::Attached, Isolation::Strict) => "protected",
        (Step::Attached, Isolation::BestEffort) => "best effort",
        (Step::Attached, Isolation::Off) => "unprotected",
    };
    let drops = stats.into_iter().flat_map(|s| &s.drops);
    let drops =
        drops.filter(|(reason, _)| *reason != UNREMARKABLE).map(|(reason, n)| format!("{reason}={n}"));
    [
        holding.pod.to_string(),
        holding.interface.clone(),
        holding.device.clone(),
        holding.claim.to_string(),
        show::list(&holding.addresses),
        progress.to_owned(),
        show::list(&holding.guards),
        packets(|s| s.to_pod.packets),
        packets(|s| s.from_pod.packets),
        show::list(drops),
    ]
}
