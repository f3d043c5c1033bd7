//! Programs on a host link, ours or not: tcx by bpf query, clsact filters and XDP by rtnetlink.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::sys::{self, Hook};
use super::{DatapathError, ForeignProgram, bpf_error};

/// A tcx program of a link.
pub(super) struct TcxProgram {
    pub(super) hook: Hook,
    pub(super) id: u32,
}

/// The tcx programs of a link, in the order they run. None on a kernel without tcx.
pub(super) fn tcx_programs(ifindex: u32) -> Result<Vec<TcxProgram>, DatapathError> {
    let mut programs = Vec::new();
    for hook in Hook::BOTH {
        match sys::query(ifindex, hook) {
            Ok(ids) => programs.extend(ids.into_iter().map(|id| TcxProgram { hook, id })),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(source) => {
                return Err(bpf_error(
                    format!("list {} programs of interface {ifindex}", hook.name()),
                    source,
                ));
            }
        }
    }
    Ok(programs)
}

/// Describes a program by id.
pub(super) fn describe(hook: impl Into<String>, id: u32) -> ForeignProgram {
    // A program that has just gone has no name any more.
    ForeignProgram { hook: hook.into(), id, name: sys::program_name(id).unwrap_or_default() }
}

/// XDP programs and clsact filters of a link. An XDP program may be our guard, and the filters may be ours where there is no
/// tcx; the caller knows.
pub(super) fn netlink_programs(ifindex: u32) -> Result<Vec<ForeignProgram>, DatapathError> {
    let list = || {
        let socket = Rtnetlink::open()?;
        let mut programs = xdp(&socket, ifindex)?;
        programs.extend(filters(&socket, ifindex)?);
        Ok::<_, io::Error>(programs)
    };
    list()
        .map_err(|source| bpf_error(format!("list XDP programs and filters of interface {ifindex}"), source))
}

fn xdp(socket: &Rtnetlink, ifindex: u32) -> io::Result<Vec<ForeignProgram>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let mut programs = Vec::new();
    for answer in socket.request(RouteNetlinkMessage::GetLink(message), 0)? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        for attribute in link.attributes {
            let LinkAttribute::Xdp(xdp) = attribute else { continue };
            let attached =
                xdp.iter().any(|nla| matches!(nla, LinkXdp::Attached(how) if *how != XdpAttached::None));
            let mut ids: Vec<u32> = xdp
                .iter()
                .filter_map(|nla| match nla {
                    LinkXdp::ProgId(id)
                    | LinkXdp::DrvProgId(id)
                    | LinkXdp::SkbProgId(id)
                    | LinkXdp::HwProgId(id) => Some(*id),
                    _ => None,
                })
                .collect();
            ids.sort_unstable();
            ids.dedup();
            if attached && ids.is_empty() {
                programs.push(ForeignProgram { hook: "xdp".into(), id: 0, name: String::new() });
            }
            programs.extend(ids.into_iter().map(|id| describe("xdp", id)));
        }
    }
    Ok(programs)
}

fn filters(socket: &Rtnetlink, ifindex: u32) -> io::Result<Vec<ForeignProgram>> {
    let mut query = TcMessage::default();
    query.header.index = ifindex.cast_signed();
    let qdiscs = socket.request(RouteNetlinkMessage::GetQueueDiscipline(query.clone()), NLM_F_DUMP)?;
    // Kernels list the qdiscs of every link here, whatever index is asked for.
    let classifies = qdiscs.iter().any(|answer| {
        let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer else { return false };
        qdisc.header.index == ifindex.cast_signed()
            && qdisc
                .attributes
                .iter()
                .any(|nla| matches!(nla, TcAttribute::Kind(kind) if kind == "clsact" || kind == "ingress"))
    });
    let mut programs = Vec::new();
    if !classifies {
        return Ok(programs);
    }
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        query.header.parent = TcHandle { major: u16::MAX, minor };
        let answers = match socket.request(RouteNetlinkMessage::GetTrafficFilter(query.clone()), NLM_F_DUMP) {
            // An `ingress` qdisc has no egress side; a kernel may have no filters at all.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => continue,
            answers => answers?,
        };
        for answer in answers {
            let RouteNetlinkMessage::NewTrafficFilter(filter) = answer else { continue };
            programs.extend(filter_program(&filter));
        }
    }
    Ok(programs)
}

/// `None` for the head of a priority, which carries no filter itself (its handle is 0).
fn filter_program(filter: &TcMessage) -> Option<ForeignProgram> {
    if filter.header.handle == TcHandle::UNSPEC {
        return None;
    }
    let mut program = ForeignProgram { hook: "clsact".into(), id: 0, name: String::new() };
    for attribute in &filter.attributes {
        match attribute {
            TcAttribute::Kind(kind) if program.name.is_empty() => program.name.clone_from(kind),
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program.id = *id,
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => program.name.clone_from(name),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(program)
}

/// A blocking rtnetlink socket in the namespace of the calling thread.
pub(super) struct Rtnetlink(Socket);

impl Rtnetlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends one request and collects the answers: up to the end of a dump, or the one message.
    pub(super) fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                // Messages are aligned to 4 bytes.
                let length = (answer.header.length as usize).next_multiple_of(4).min(rest.len());
                if length == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a netlink message without length",
                    ));
                }
                rest = &rest[length..];
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
            if flags & NLM_F_DUMP != NLM_F_DUMP {
                return Ok(answers);
            }
        }
    }
}
