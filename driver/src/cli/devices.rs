//! `netferry devices`.

use anyhow::{Context as _, Result, bail};

use super::show;
use crate::{
    claim::store::Store,
    config::DevicesArgs,
    device::{discover::discover, rule::Rule, sysfs::Sysfs},
    network::identity::{Identities, Numbered},
    query::{
        self,
        client::{NoAnswer, ask},
        report::{DeviceType, Devices, Shown, Source, User},
    },
    telemetry::chain,
};

/// Print what the running daemon publishes, or would publish without one, and why the rest is left out.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let report = if args.preview {
        eprintln!(
            "netferry: what a daemon with these settings would publish; the running daemon is not asked"
        );
        preview(args)?
    } else {
        asked(args)?
    };
    for problem in &report.problems {
        eprintln!("netferry: not published: {problem}");
    }
    let header =
        ["DEVICE", "TYPE", "LINK", "KIND", "MAC", "MTU", "STATE", "ADDRESSES", "PUBLISHED", "USED BY"];
    show::print(args.output, &report, header, report.devices.iter().map(row))
}

fn asked(args: &DevicesArgs) -> Result<Devices> {
    match ask::<Devices>(&args.state.query_socket(), query::DEVICES) {
        Ok(report) => {
            refuse_other_rule(args, &report)?;
            eprintln!("netferry: as the running daemon says");
            Ok(report)
        }
        Err(error @ NoAnswer::Unusable { .. }) => Err(error.into()),
        Err(error) => {
            eprintln!(
                "netferry: {error}; shown is what a daemon with the settings of this command would publish"
            );
            preview(args)
        }
    }
}

/// A rule that is not the daemon's says nothing about what it publishes. That of the environment is not checked: in the
/// daemon's container it is the daemon's.
fn refuse_other_rule(args: &DevicesArgs, report: &Devices) -> Result<()> {
    let publishing = &args.publishing;
    let given = |value: &Option<String>, variable: &str| {
        value.clone().filter(|value| std::env::var(variable).ok().as_ref() != Some(value))
    };
    let publish = given(&publishing.publish, "NETFERRY_PUBLISH").is_some_and(|it| it != report.rule.publish);
    let share = given(&publishing.share, "NETFERRY_SHARE").is_some_and(|it| Some(it) != report.rule.share);
    if publish || share || (publishing.allow_default_route && !report.rule.allow_default_route) {
        bail!(
            "the running daemon has another rule than this command; --preview shows what this one would publish"
        );
    }
    Ok(())
}

/// By looking at the links, and at what a daemon has left on the disk.
fn preview(args: &DevicesArgs) -> Result<Devices> {
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
    let mut problems = Vec::new();
    let networks = Identities::read(&args.state.networks_file()).unwrap_or_else(|error| {
        problems.push(format!("networks are left out: {}", chain(&error)));
        Numbered::default()
    });
    let checkpoints = Store::read(&args.state.claims_dir()).unwrap_or_else(|error| {
        problems.push(format!("claims are left out: {}", chain(&error)));
        Vec::new()
    });
    let networks: Vec<_> = networks.networks.into_iter().map(std::sync::Arc::new).collect();
    let mut report = Devices::decide(Source::Discovery, &inventory, &networks, &rule, &checkpoints);
    report.problems.extend(problems);
    Ok(report)
}

fn row(shown: &Shown) -> [String; 10] {
    let Shown { name, if_name, kind, mac, mtu, oper_state, addresses, users, network, .. } = shown;
    [
        name.clone(),
        match shown.of {
            DeviceType::Link => "link".to_owned(),
            DeviceType::Port => "port".to_owned(),
        },
        show::list(if_name),
        show::list(kind.as_ref().or(network.as_ref())),
        show::list(mac),
        show::list(mtu),
        show::list(oper_state),
        show::list(addresses),
        match (&shown.reason, shown.published, shown.shared) {
            (_, true, true) => "yes, shared".to_owned(),
            (_, true, false) => "yes".to_owned(),
            (Some(reason), false, _) => format!("no: {reason}"),
            (None, false, _) => "no".to_owned(),
        },
        show::list(users.iter().map(user)),
    ]
}

fn user(user: &User) -> String {
    match &user.pod {
        Some(pod) => format!("pod {pod} as {}", user.interface),
        None => format!("claim {}", user.claim),
    }
}
