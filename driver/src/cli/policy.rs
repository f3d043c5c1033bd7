//! `netferry policy`.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::{running, show};
use crate::{
    claim::{Checkpoint, ClaimRef, InterfaceRecord},
    config::{ExplainArgs, PodName, PolicyCommand, ShowPolicyArgs},
    datapath::{
        AyaDatapath, EndpointId, Explanation, Isolation,
        limits::{Limits, RateLimit},
        policy::{Action, Name, Otherwise, Peer, Policy, Port, Protocol, Rule},
    },
    holdings::{Holder, holders, holdings},
    network::peers::Told,
    query::report::Claims,
};

/// Print what policy says.
pub fn run(command: &PolicyCommand) -> Result<()> {
    match command {
        PolicyCommand::Show(args) => show_policy(args),
        PolicyCommand::Explain(args) => explain(args),
    }
}

/// What an interface in a pod may do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InForce<'a> {
    interface: &'a str,
    claim: &'a ClaimRef,
    isolation: Isolation,
    /// The network it is a port of, whose members alone may talk to it unless a rule says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a Policy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    /// Who the peers with names are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    peers: Vec<Told>,
}

fn show_policy(args: &ShowPolicyArgs) -> Result<()> {
    let Claims { claims: checkpoints, peers } = running::claims(&args.state)?;
    let of_pod = in_force(&checkpoints, &args.pod, &peers);
    if of_pod.is_empty() {
        bail!("{}", no_interface(&args.pod));
    }
    let header = ["INTERFACE", "DIRECTION", "RULE", "ACTION", "PEERS", "PORTS OR LIMIT"];
    show::print(args.output, &of_pod, header, of_pod.iter().flat_map(rules))
}

fn no_interface(pod: &PodName) -> String {
    format!("pod {pod} holds no interface on this node: see `netferry pods`")
}

/// The pod's interfaces that are in it, by name.
fn in_force<'a>(checkpoints: &'a [Checkpoint], pod: &PodName, peers: &[Told]) -> Vec<InForce<'a>> {
    let interfaces = checkpoints.iter().flat_map(|it| it.interfaces.iter().map(|record| (&it.claim, record)));
    let mut all: Vec<_> = interfaces
        .filter(|(_, record)| record.attachment.as_ref().is_some_and(|it| pod.is(&it.sandbox.pod)))
        .map(|(claim, InterfaceRecord { plan, attachment, .. })| InForce {
            peers: of_endpoint(peers, attachment.as_ref().and_then(|attachment| attachment.endpoint)),
            interface: &plan.name,
            claim,
            isolation: plan.isolation,
            network: plan.port().map(|port| port.network.name.as_str()),
            policy: plan.policy.as_ref(),
            limits: plan.limits,
        })
        .collect();
    all.sort_by_key(|it| it.interface);
    all
}

fn of_endpoint(peers: &[Told], endpoint: Option<EndpointId>) -> Vec<Told> {
    peers.iter().filter(|told| Some(told.endpoint) == endpoint).cloned().collect()
}

/// A row for each rule, for what no rule matches, and for each limit.
fn rules(of: &InForce<'_>) -> Vec<[String; 6]> {
    let everything = Policy::default();
    let policy = of.policy.unwrap_or(&everything);
    let mut rows = Vec::new();
    for (direction, side) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
        let row = |rule: String, action: &str, peers: String, ports: String| {
            [of.interface.to_owned(), direction.to_owned(), rule, action.to_owned(), peers, ports]
        };
        for (nth, rule) in side.rules.iter().enumerate() {
            let action = match rule.action {
                Action::Allow => "allow",
                Action::Deny => "deny",
            };
            let peers = peers_of(rule, &of.peers);
            let ports = rule.ports.as_ref().map(|ports| show::list(ports.iter().map(port)));
            let all = || "all".to_owned();
            rows.push(row(format!("{direction}.rules[{nth}]"), action, peers, ports.unwrap_or_else(all)));
        }
        // Of the rows of what no rule matches, the first that matches decides.
        let (default, all) = (format!("{direction}.otherwise"), || "all".to_owned());
        match (of.isolation, side.otherwise(), of.network) {
            (Isolation::Strict | Isolation::BestEffort, Otherwise::Deny, _) => {
                rows.push(row(default, "deny", all(), all()));
            }
            (Isolation::Strict | Isolation::BestEffort, Otherwise::Network, Some(network)) => {
                rows.push(row(default.clone(), "allow", format!("members of network {network}"), all()));
                rows.push(row(default, "deny", "all others".to_owned(), all()));
            }
            // On the wire of a moved link, everybody is in the network.
            _ => rows.push(row(default, "allow", all(), all())),
        }
        let limit =
            of.limits.and_then(|limits| if direction == "ingress" { limits.ingress } else { limits.egress });
        rows.extend(
            limit
                .into_iter()
                .flat_map(rates)
                .map(|(name, rate)| row(format!("limits.{direction}.{name}"), "limit", all(), rate)),
        );
    }
    if let Some(flows) = of.limits.and_then(|limits| limits.open_flows) {
        let cells = [of.interface, "both", "limits.openFlows", "limit", "all"].map(str::to_owned);
        let [interface, direction, rule, action, peers] = cells;
        rows.push([interface, direction, rule, action, peers, format!("{flows} flows")]);
    }
    rows
}

/// The limits of a direction by the names of their fields, with their units.
fn rates(limit: RateLimit) -> impl Iterator<Item = (&'static str, String)> {
    let all = [
        ("bitsPerSecond", limit.bits_per_second, "bit/s"),
        ("burstBytes", limit.burst_bytes, "bytes"),
        ("packetsPerSecond", limit.packets_per_second, "frames/s"),
        ("newFlowsPerSecond", limit.new_flows_per_second, "flows/s"),
    ];
    all.into_iter().filter_map(|(name, value, unit)| Some((name, format!("{} {unit}", value?))))
}

/// Addresses of a name that are shown.
const SHOWN: usize = 8;

/// The peers of a rule as they are written, those with names with their addresses.
fn peers_of(rule: &Rule, told: &[Told]) -> String {
    let Some(peers) = &rule.peers else { return "all".to_owned() };
    show::list(peers.iter().map(|it| {
        let Some(name) = Name::of(it, rule.action) else { return peer(it) };
        let addresses = told.iter().find(|told| told.name == name).and_then(|told| told.addresses.as_ref());
        let who = match addresses {
            None => "not known yet".to_owned(),
            Some(none) if none.is_empty() => "nobody".to_owned(),
            Some(all) => {
                let shown: Vec<_> = all.iter().take(SHOWN).map(ToString::to_string).collect();
                let more = all.len() - shown.len();
                shown.join(" ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
            }
        };
        format!("{} ({who})", peer(it))
    }))
}

fn peer(peer: &Peer) -> String {
    let network = peer.network.iter().map(|name| format!("network {name}"));
    let pods = peer.pod_selector.iter().map(|labels| {
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("pods {}", labels.join("+"))
    });
    peer.cidr.iter().map(ToString::to_string).chain(network).chain(pods).collect()
}

fn port(port: &Port) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
        Protocol::Icmp => "icmp",
        Protocol::Any => "any",
    };
    match (port.port, port.end_port) {
        (None, _) => protocol.to_owned(),
        (Some(first), None) => format!("{protocol}/{first}"),
        (Some(first), Some(last)) => format!("{protocol}/{first}-{last}"),
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
    /// Where the rule is in the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_name: Option<String>,
    /// The peers it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<String>,
}

fn explain(args: &ExplainArgs) -> Result<()> {
    let datapath =
        AyaDatapath::open_existing(&args.state.pin_root()).context("cannot open the pinned maps")?;
    let Claims { claims: checkpoints, peers: told } = running::claims(&args.state)?;
    let held: Vec<_> =
        holdings(&checkpoints, &datapath).into_iter().filter(|held| args.from.is(&held.pod)).collect();
    if held.is_empty() {
        bail!("{}", no_interface(&args.from));
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
            let all = datapath
                .explain_flow(Some(endpoint), from, args.to, protocol, port)
                .context("cannot read the maps")?;
            merge(&mut said, endpoint, all);
        }
    }
    if said.is_empty() && held.iter().any(|holding| holding.endpoint.is_some()) {
        bail!("pod {} has no address of the family of {} under isolation", args.from, args.to);
    }
    let holders = holders(&checkpoints);
    let verdicts: Vec<_> = said
        .into_iter()
        .map(|explanation| Verdict {
            holder: holders.get(&explanation.endpoint).cloned(),
            rule_name: match explanation.rule {
                Some(rule) => rule_name(&checkpoints, explanation.endpoint, rule),
                None => default_name(explanation.direction, explanation.denied),
            },
            peers: explanation.rule.and_then(|rule| {
                let policy = policy_of(&checkpoints, explanation.endpoint)?;
                Some(peers_of(policy.rule(rule)?, &of_endpoint(&told, Some(explanation.endpoint))))
            }),
            explanation,
        })
        .collect();
    let header = ["POD", "INTERFACE", "DIRECTION", "VERDICT", "REASON", "RULE", "PEERS"];
    show::print(args.output, &verdicts, header, verdicts.iter().map(row))
}

/// Where a rule is in the policy of an endpoint.
fn rule_name(checkpoints: &[Checkpoint], endpoint: EndpointId, rule: u32) -> Option<String> {
    policy_of(checkpoints, endpoint)?.rule_name(rule)
}

/// The name of what decides where no rule does.
fn default_name(direction: &str, denied: Option<&str>) -> Option<String> {
    let of_policy = matches!(denied, None | Some("policy_default" | "not_member"));
    let side = if direction == "to_pod" { "ingress" } else { "egress" };
    of_policy.then(|| format!("{side}.otherwise"))
}

fn policy_of(checkpoints: &[Checkpoint], endpoint: EndpointId) -> Option<&Policy> {
    let mut records = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
    let of = |record: &&InterfaceRecord| {
        record.attachment.as_ref().is_some_and(|attachment| attachment.endpoint == Some(endpoint))
    };
    records.find(of)?.plan.policy.as_ref()
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

fn row(verdict: &Verdict) -> [String; 7] {
    let Verdict { holder, explanation, rule_name, peers } = verdict;
    [
        holder.as_ref().map_or_else(|| "-".to_owned(), |holder| holder.pod.to_string()),
        holder.as_ref().map_or_else(|| format!("endpoint {}", explanation.endpoint), |h| h.interface.clone()),
        explanation.direction.to_owned(),
        if explanation.denied.is_some() { "denied" } else { "allowed" }.to_owned(),
        explanation.denied.unwrap_or("-").to_owned(),
        match (rule_name, explanation.rule) {
            (Some(name), _) => name.clone(),
            (None, Some(rule)) => rule.to_string(),
            (None, None) => "-".to_owned(),
        },
        peers.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shown_as_they_are_written() {
        let text = "{ingress: {rules: [{action: deny, peers: [{cidr: 192.0.2.0/24}, {podSelector: {app: web}}]}]}, \
                    egress: {rules: [{action: allow, ports: [{protocol: TCP, port: 80, endPort: 90}, {protocol: ICMP}]}]}}";
        let policy: Policy = serde_yaml_ng::from_str(text).unwrap();
        let claim = ClaimRef { namespace: "ns".into(), name: "c".into(), uid: "u".into() };
        let mut of = InForce {
            interface: "net1",
            claim: &claim,
            isolation: Isolation::Strict,
            network: None,
            policy: Some(&policy),
            limits: None,
            peers: vec![Told {
                endpoint: 1,
                name: Name::Pods {
                    labels: [("app".to_owned(), "web".to_owned())].into(),
                    action: Action::Deny,
                },
                addresses: Some(vec!["10.0.0.7".parse().unwrap(), "10.0.0.8".parse().unwrap()]),
            }],
        };
        let lines: Vec<_> = rules(&of).iter().map(|row| row[1..].join(" ")).collect();
        let expected = [
            "ingress ingress.rules[0] deny 192.0.2.0/24,pods app=web (10.0.0.7 10.0.0.8) all",
            "ingress ingress.otherwise allow all all",
            "egress egress.rules[0] allow all tcp/80-90,icmp",
            "egress egress.otherwise deny all all",
        ];
        assert_eq!(lines, expected);
        of.peers.clear();
        assert!(rules(&of)[0][4].ends_with("pods app=web (not known yet)"));
        of.policy = None;
        let lines: Vec<_> = rules(&of).iter().map(|row| row[1..].join(" ")).collect();
        assert_eq!(
            lines,
            ["ingress ingress.otherwise allow all all", "egress egress.otherwise allow all all"]
        );
    }

    #[test]
    fn a_port_is_open_to_members_and_limits_are_shown() {
        let claim = ClaimRef { namespace: "ns".into(), name: "c".into(), uid: "u".into() };
        let limits = "{egress: {bitsPerSecond: 1000000, newFlowsPerSecond: 5}, openFlows: 100}";
        let of = InForce {
            interface: "blue",
            claim: &claim,
            isolation: Isolation::Strict,
            network: Some("blue"),
            policy: None,
            limits: Some(serde_yaml_ng::from_str(limits).unwrap()),
            peers: Vec::new(),
        };
        let lines: Vec<_> = rules(&of).iter().map(|row| row[1..].join(" ")).collect();
        let expected = [
            "ingress ingress.otherwise allow members of network blue all",
            "ingress ingress.otherwise deny all others all",
            "egress egress.otherwise allow members of network blue all",
            "egress egress.otherwise deny all others all",
            "egress limits.egress.bitsPerSecond limit all 1000000 bit/s",
            "egress limits.egress.newFlowsPerSecond limit all 5 flows/s",
            "both limits.openFlows limit all 100 flows",
        ];
        assert_eq!(lines, expected);
    }

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
