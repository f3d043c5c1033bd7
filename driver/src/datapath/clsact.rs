//! Direct-action filters of a clsact qdisc: where programs sit on kernels without tcx. All by rtnetlink, in the
//! namespace of the calling thread. No bpf link holds them: who may change the device may remove them.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::foreign::Rtnetlink;
use super::sys::Hook;

/// Ours run before those of any other priority: it is the first there is.
const PRIORITY: u16 = 1;
/// `ETH_P_ALL` (linux/if_ether.h).
const ALL_PROTOCOLS: u16 = 3;

/// A filter of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Id of the program it runs; 0 if it is no bpf filter.
    pub(super) program: u32,
    priority: u16,
    handle: u32,
}

/// The side of a clsact qdisc.
const fn parent(hook: Hook) -> TcHandle {
    let minor = match hook {
        Hook::Ingress => TcHandle::MIN_INGRESS,
        Hook::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: u16::MAX, minor }
}

fn message(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message
}

/// The filters of a hook in the order they run. None without the qdisc, or without the device.
pub(super) fn filters(ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    let mut query = message(ifindex);
    query.header.parent = parent(hook);
    let answers = match Rtnetlink::open()?.request(RouteNetlinkMessage::GetTrafficFilter(query), NLM_F_DUMP) {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENODEV)) =>
        {
            return Ok(Vec::new());
        }
        answers => answers?,
    };
    let mut filters: Vec<Filter> = answers.iter().filter_map(filter).collect();
    // The kernel tells them priority by priority, and within one in their order.
    filters.sort_by_key(|filter| filter.priority);
    Ok(filters)
}

fn filter(answer: &RouteNetlinkMessage) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return None };
    // The head of a priority has the handle 0 and is no filter.
    let handle = u32::from(message.header.handle);
    let program = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        }),
        _ => None,
    });
    let priority = u16::try_from(message.header.info >> 16).unwrap_or(u16::MAX);
    (handle != 0).then_some(Filter { program: program.unwrap_or(0), priority, handle })
}

/// Makes the qdisc, if it is not there.
pub(super) fn add_qdisc(ifindex: u32) -> io::Result<()> {
    let mut qdisc = message(ifindex);
    qdisc.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    qdisc.header.parent = TcHandle::CLSACT;
    qdisc.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match Rtnetlink::open()?.request(RouteNetlinkMessage::NewQueueDiscipline(qdisc), flags) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done.map(drop),
    }
}

/// Removes the qdisc, if neither side has a filter.
pub(super) fn remove_idle_qdisc(ifindex: u32) -> io::Result<()> {
    for hook in Hook::BOTH {
        if !filters(ifindex, hook)?.is_empty() {
            return Ok(());
        }
    }
    let mut qdisc = message(ifindex);
    qdisc.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    qdisc.header.parent = TcHandle::CLSACT;
    absent(Rtnetlink::open()?.request(RouteNetlinkMessage::DelQueueDiscipline(qdisc), NLM_F_ACK))
}

/// Puts a program before all others of a hook.
pub(super) fn attach_first(program: BorrowedFd<'_>, name: &str, ifindex: u32, hook: Hook) -> io::Result<()> {
    let there = filters(ifindex, hook)?;
    // Within a priority, the newest bpf filter comes first (`cls_bpf_change`, net/sched/cls_bpf.c).
    let taken = |handle: &u32| there.iter().any(|it| it.priority == PRIORITY && it.handle == *handle);
    let free = (1..=u32::MAX).find(|handle| !taken(handle)).unwrap_or(u32::MAX);
    change(program, name, ifindex, hook, free)
}

/// Puts a program in the place of what a filter runs; no frame sees neither or both.
pub(super) fn replace(
    filter: &Filter,
    program: BorrowedFd<'_>,
    name: &str,
    ifindex: u32,
    hook: Hook,
) -> io::Result<()> {
    change(program, name, ifindex, hook, filter.handle)
}

fn change(program: BorrowedFd<'_>, name: &str, ifindex: u32, hook: Hook, handle: u32) -> io::Result<()> {
    let mut filter = address(ifindex, hook, handle);
    filter.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    let flags = NLM_F_ACK | NLM_F_CREATE;
    Rtnetlink::open()?.request(RouteNetlinkMessage::NewTrafficFilter(filter), flags).map(drop)
}

/// Removes a filter. Succeeds if it, its qdisc or its device is gone.
pub(super) fn remove(filter: &Filter, ifindex: u32, hook: Hook) -> io::Result<()> {
    let mut gone = address(ifindex, hook, filter.handle);
    gone.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    absent(Rtnetlink::open()?.request(RouteNetlinkMessage::DelTrafficFilter(gone), NLM_F_ACK))
}

fn address(ifindex: u32, hook: Hook, handle: u32) -> TcMessage {
    let mut filter = message(ifindex);
    filter.header.parent = parent(hook);
    filter.header.handle = handle.into();
    filter.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS.to_be());
    filter
}

fn absent<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Ok(())
        }
        result => result.map(drop),
    }
}
