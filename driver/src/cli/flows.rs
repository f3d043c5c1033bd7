//! `netferry flows`.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, ErrorKind, Write},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::{running, show};
use crate::{
    claim::store::Store,
    config::{FlowsArgs, Output, PodName, protocol_name},
    datapath::{
        EndpointId,
        events::{self, FlowRecord, Flows},
    },
    flow_log::{Decision, FlowLine},
    holdings::{Holder, holders},
};

/// Print the tracked flows, or what happens to flows.
pub fn run(args: &FlowsArgs) -> Result<()> {
    if args.follow {
        return follow(args, &mut std::io::stdout());
    }
    running::require_state(&args.state)?;
    let checkpoints = Store::read(&args.state.claims_dir()).context("cannot read the checkpoints")?;
    let flows = Flows::open(&args.state.pin_root()).and_then(|flows| flows.list());
    let flows = held(flows.context("cannot read the table of flows")?, &holders(&checkpoints));
    let wanted = |flow: &HeldFlow| {
        args.pod.as_ref().is_none_or(|pod| flow.holders.iter().any(|holder| pod.is(&holder.pod)))
    };
    let flows: Vec<_> = flows.into_iter().filter(wanted).collect();
    let header = ["POD", "INTERFACE", "PROTOCOL", "OPENER", "RESPONDER", "STATE", "RULE", "LAST FRAME"];
    let now = events::now();
    show::print(args.output, &flows, header, flows.iter().map(|flow| row(flow, now)))
}

/// A tracked flow, and who on this node takes part in it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HeldFlow {
    holders: Vec<Holder>,
    #[serde(flatten)]
    flow: FlowRecord,
}

/// Flows in the order of their holders.
fn held(flows: Vec<FlowRecord>, holders: &BTreeMap<EndpointId, Holder>) -> Vec<HeldFlow> {
    let of = |flow: &FlowRecord| flow.endpoints.iter().filter_map(|id| holders.get(id).cloned()).collect();
    let mut all: Vec<_> = flows.into_iter().map(|flow| HeldFlow { holders: of(&flow), flow }).collect();
    all.sort_by(|a, b| {
        let place = |held: &HeldFlow| {
            (
                held.holders.first().map(|h| (h.pod.clone(), h.interface.clone())),
                held.flow.opener,
                held.flow.responder,
            )
        };
        place(a).cmp(&place(b))
    });
    all
}

fn row(held: &HeldFlow, now: u64) -> [String; 8] {
    let HeldFlow { holders, flow } = held;
    let state = match (flow.ended, flow.answered) {
        (true, _) => "ended",
        (false, true) => "answered",
        (false, false) => "opened",
    };
    let idle = Duration::from_nanos(now.saturating_sub(flow.seen)).as_secs();
    [
        show::list(holders.iter().map(|holder| &holder.pod)),
        show::list(holders.iter().map(|holder| &holder.interface)),
        protocol_name(flow.protocol),
        side(Some(flow.opener.0), flow.opener.1),
        side(Some(flow.responder.0), flow.responder.1),
        state.to_owned(),
        show::list(flow.rule),
        format!("{idle} s ago"),
    ]
}

/// An address, with the port if there is one.
fn side(address: Option<IpAddr>, port: u16) -> String {
    match (address, port) {
        (None, _) => "-".to_owned(),
        (Some(address), 0) => address.to_string(),
        (Some(address), port) => SocketAddr::new(address, port).to_string(),
    }
}

fn follow(args: &FlowsArgs, out: &mut dyn Write) -> Result<()> {
    let socket = args.state.flows_socket();
    let stream = connect(&socket)?;
    // A closed pipe is the reader's wish to end.
    let ended = |error: &std::io::Error| error.kind() == ErrorKind::BrokenPipe;
    if args.output == Output::Table
        && let Err(error) = writeln!(out, "{}", line(&HEADER.map(str::to_owned)))
    {
        return if ended(&error) { Ok(()) } else { Err(error.into()) };
    }
    for text in BufReader::new(stream).lines() {
        let text = text.context("cannot read from the daemon")?;
        let event: FlowLine = serde_json::from_str(&text).with_context(|| {
            format!("the daemon speaks otherwise than this version of netferry: {text:?}")
        })?;
        if !wanted(&event, args.pod.as_ref(), args.drops) {
            continue;
        }
        let text = match args.output {
            Output::Json => text,
            Output::Table => line(&columns(&event)),
        };
        if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
            return if ended(&error) { Ok(()) } else { Err(error.into()) };
        }
    }
    bail!("the daemon ended the stream: it has stopped, has too many readers, or this reader was too slow")
}

fn connect(socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).with_context(|| {
        let socket = socket.display();
        format!("cannot reach the daemon at {socket}: is it running on this node, with this --state-dir?")
    })
}

fn wanted(event: &FlowLine, pod: Option<&PodName>, drops: bool) -> bool {
    let mut ends = [&event.holder, &event.from, &event.to].into_iter().flatten();
    let of_pod = pod.is_none_or(|pod| ends.any(|holder| pod.is(&holder.pod)));
    of_pod && (!drops || event.kind == "deny")
}

const HEADER: [&str; 10] = [
    "TIME",
    "POD",
    "INTERFACE",
    "DIRECTION",
    "EVENT",
    "PROTOCOL",
    "SOURCE",
    "DESTINATION",
    "PEER POD",
    "REASON",
];
/// A line is printed before the next is known, so columns have a width; what is longer moves the rest.
const WIDTHS: [usize; 10] = [12, 24, 15, 9, 5, 8, 22, 22, 24, 0];

fn line(columns: &[String; 10]) -> String {
    let cells = columns.iter().zip(WIDTHS).map(|(text, width)| format!("{text:<width$}"));
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn columns(event: &FlowLine) -> [String; 10] {
    let holder = event.holder.as_ref();
    let decision = event.decision.as_ref();
    let rule =
        decision.and_then(|decision| decision.rule.clone()).or(event.rule.map(|rule| format!("rule {rule}")));
    let by = decision.map(|Decision { by, holder, .. }| match holder {
        Some(holder) => format!("{by} of {}", holder.pod),
        None => by.clone(),
    });
    let why: Vec<_> = event.reason.iter().map(ToString::to_string).chain(rule).chain(by).collect();
    let peer = if event.direction == "from_pod" { &event.to } else { &event.from };
    [
        event.at.strftime("%H:%M:%S%.3f").to_string(),
        holder.map_or_else(|| format!("endpoint {}", event.endpoint), |holder| holder.pod.to_string()),
        holder.map_or("-", |holder| &holder.interface).to_owned(),
        event.direction.to_string(),
        event.kind.to_string(),
        protocol_name(event.protocol),
        side(event.source, event.source_port),
        side(event.destination, event.destination_port),
        peer.as_ref().map_or_else(|| "-".to_owned(), |peer| peer.pod.to_string()),
        if why.is_empty() { "-".to_owned() } else { why.join(", ") },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::PodRef;

    const EVENT: &str = r#"{"at":"2026-01-02T03:04:05.678Z","kind":"deny",
        "pod":{"namespace":"team-a","name":"web","uid":"u"},"interface":"net1","endpoint":3,
        "direction":"from_pod","reason":"source_ipv4","source":"192.0.2.66","sourcePort":4000,
        "destination":"2001:db8::2","destinationPort":53,"protocol":17}"#;

    #[test]
    fn an_event_is_a_line() {
        let event: FlowLine = serde_json::from_str(EVENT).unwrap();
        let line = line(&columns(&event));
        let words: Vec<_> = line.split_whitespace().collect();
        let expected = [
            "03:04:05.678",
            "team-a/web",
            "net1",
            "from_pod",
            "deny",
            "udp",
            "192.0.2.66:4000",
            "[2001:db8::2]:53",
            "-",
            "source_ipv4",
        ];
        assert_eq!(words, expected);
        let again = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<FlowLine>(&again).unwrap(), event);
    }

    #[test]
    fn events_are_chosen_by_pod_and_kind() {
        let mut event: FlowLine = serde_json::from_str(EVENT).unwrap();
        let (web, db): (PodName, PodName) = ("team-a/web".parse().unwrap(), "team-a/db".parse().unwrap());
        assert!(wanted(&event, Some(&web), true));
        assert!(!wanted(&event, Some(&db), false));
        // Told at the sender, and about the receiver.
        event.to = Some(Holder {
            pod: PodRef { namespace: "team-a".into(), name: "db".into(), uid: "v".into() },
            interface: "net1".into(),
        });
        assert!(wanted(&event, Some(&db), true) && wanted(&event, Some(&web), true));
        event.to = None;
        event.kind = "open".into();
        assert!(wanted(&event, None, false) && !wanted(&event, None, true));
        event.holder = None;
        assert!(wanted(&event, None, false) && !wanted(&event, Some(&web), false));
    }

    #[test]
    fn without_a_daemon_the_error_names_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let error = connect(&folder.path().join("flows.sock")).unwrap_err().to_string();
        assert!(error.contains("flows.sock") && error.contains("--state-dir"), "{error}");
    }
}
