//! Next hops that are objects of their own (`ip nexthop`), which the netlink decoder does not know.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

/// `RTM_NEWNEXTHOP` and `RTM_GETNEXTHOP` (`linux/rtnetlink.h`).
const NEW: u16 = 104;
const GET: u16 = 106;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `sizeof(struct nhmsg)`.
const HEADER: usize = 8;
/// Attributes (`linux/nexthop.h`).
const ID: u16 = 1;
const GROUP: u16 = 2;
const OIF: u16 = 5;

/// What one object says: its members, or its link.
#[derive(Debug, Default, PartialEq, Eq)]
struct Object {
    members: Vec<u32>,
    link: Option<u32>,
}

/// Links of a next hop: its own, or those of a group's members.
pub(super) async fn links(id: u32) -> io::Result<BTreeSet<u32>> {
    let objects = dump().await?;
    let own = objects.get(&id).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let members = own.members.iter().filter_map(|member| objects.get(member)?.link);
    Ok(own.link.into_iter().chain(members).collect())
}

async fn dump() -> io::Result<BTreeMap<u32, Object>> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind_auto()?;
    let length = 16 + HEADER;
    let mut request = Vec::with_capacity(length);
    request.extend(u32::try_from(length).unwrap_or(0).to_ne_bytes());
    request.extend(GET.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.resize(length, 0);
    socket.send_to(&request, &SocketAddr::new(0, 0)).await?;
    let mut objects = BTreeMap::new();
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        buffer.clear();
        socket.recv_from(&mut buffer).await?;
        let mut rest = buffer.as_slice();
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            match message.message_type() {
                NEW => objects.extend(object(message.payload())),
                ERROR => {
                    let code = message.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(-code));
                }
                DONE => return Ok(objects),
                _ => {}
            }
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// Number and content of one object.
fn object(message: &[u8]) -> Option<(u32, Object)> {
    let mut rest = message.get(HEADER..)?;
    let (mut id, mut object) = (None, Object::default());
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(4..length)?;
        let number = || value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        // The two high bits are flags.
        match u16::from_ne_bytes([head[2], head[3]]) & 0x3fff {
            ID => id = number(),
            OIF => object.link = number(),
            // `struct nexthop_grp`: the number, and four bytes of weights.
            GROUP => {
                let members = value.chunks_exact(8).filter_map(|member| member.first_chunk());
                object.members = members.map(|bytes| u32::from_ne_bytes(*bytes)).collect();
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((id?, object))
}
