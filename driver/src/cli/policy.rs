//! `netferry policy`.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::show;
use crate::{
    claim::store::Store,
    config::{ExplainArgs, PolicyCommand},
    datapath::{AyaDatapath, EndpointId, Explanation},
    holdings::{Holder, holders, holdings},
};

/// Print what policy says.
pub fn run(command: &PolicyCommand) -> Result<()> {
    match command {
        PolicyCommand::Explain(args) => explain(args),
    }
}

/// What one endpoint says about the flow, and whose endpoint it is.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    holder: Option<Holder>,
    #[serde(flatten)]
    explanation: Explanation,
}

fn explain(args: &ExplainArgs) -> Result<()> {
    let checkpoints = Store::read(&args.state.claims_dir()).context("cannot read the checkpoints")?;
    let datapath = AyaDatapath::open(&args.state.pin_root()).context("cannot open the pinned maps")?;
    let held: Vec<_> =
        holdings(&checkpoints, &datapath).into_iter().filter(|held| args.from.is(&held.pod)).collect();
    if held.is_empty() {
        bail!("pod {} holds no interface on this node: see `netferry pods`", args.from);
    }
    let (protocol, port) = args.port.numbers(args.to);
    let mut said = Vec::new();
    for holding in &held {
        let Some(endpoint) = holding.endpoint else {
            eprintln!("netferry: interface {} has no isolation: everything may pass", holding.interface);
            continue;
        };
        let sources = holding.addresses.iter().map(ipnetwork::IpNetwork::ip);
        for from in sources.filter(|source| source.is_ipv4() == args.to.is_ipv4()) {
            let all = datapath.explain_flow(from, args.to, protocol, port).context("cannot read the maps")?;
            merge(&mut said, endpoint, all);
        }
    }
    if said.is_empty() && held.iter().any(|holding| holding.endpoint.is_some()) {
        bail!("pod {} has no address of the family of {} under isolation", args.from, args.to);
    }
    let holders = holders(&checkpoints);
    let verdicts: Vec<_> = said
        .into_iter()
        .map(|explanation| Verdict { holder: holders.get(&explanation.endpoint).cloned(), explanation })
        .collect();
    let header = ["POD", "INTERFACE", "DIRECTION", "VERDICT", "REASON", "RULE"];
    show::print(args.output, &verdicts, header, verdicts.iter().map(row))
}

/// Another wire may have the same address as sender: that is another flow.
fn merge(said: &mut Vec<Explanation>, sender: EndpointId, all: Vec<Explanation>) {
    for explanation in all {
        let concerned = explanation.endpoint == sender || explanation.direction == "to_pod";
        if concerned && !said.contains(&explanation) {
            said.push(explanation);
        }
    }
}

fn row(verdict: &Verdict) -> [String; 6] {
    let Verdict { holder, explanation } = verdict;
    [
        holder.as_ref().map_or_else(|| "-".to_owned(), |holder| holder.pod.to_string()),
        holder.as_ref().map_or_else(|| format!("endpoint {}", explanation.endpoint), |h| h.interface.clone()),
        explanation.direction.to_owned(),
        if explanation.denied.is_some() { "denied" } else { "allowed" }.to_owned(),
        explanation.denied.unwrap_or("-").to_owned(),
        explanation.rule.map_or_else(|| "-".to_owned(), |rule| rule.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_sender_with_the_same_address_is_left_out() {
        let say =
            |endpoint, direction| Explanation { endpoint, direction, policy: 0, rule: None, denied: None };
        let mut said = Vec::new();
        for _ in 0..2 {
            merge(&mut said, 3, vec![say(3, "from_pod"), say(4, "from_pod"), say(5, "to_pod")]);
        }
        assert_eq!(said, [say(3, "from_pod"), say(5, "to_pod")]);
    }
}
