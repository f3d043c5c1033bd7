//! IPsec policies of a namespace, which rtnetlink knows nothing of.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};

/// `NLM_F_REQUEST` of linux/netlink.h.
const REQUEST: u16 = 1;
/// `NLMSG_ERROR` of linux/netlink.h.
const ERROR: u16 = 2;
/// `XFRM_MSG_NEWSPDINFO`, `XFRM_MSG_GETSPDINFO` and `XFRMA_SPD_INFO` of linux/xfrm.h.
const NEW_INFO: u16 = 0x24;
const GET_INFO: u16 = 0x25;
const INFO: u16 = 1;
/// Bytes of a message's header, and of the flags in front of its attributes.
const HEADER: usize = 16;
const FLAGS: usize = 4;
/// Bytes of the question, which has no attributes.
const LENGTH: u32 = 20;

/// How many policies the namespace of this thread has for packets in, out and forwarded. A kernel without IPsec has none.
pub(super) fn policies() -> io::Result<u32> {
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(0),
        opened => opened?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&question(), 0)?;
    // The kernel has answered when the call is back.
    let (answer, _) = socket.recv_from_full()?;
    count(&answer)
}

fn question() -> Vec<u8> {
    let mut message = LENGTH.to_ne_bytes().to_vec();
    message.extend(GET_INFO.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence number, port, and all flags.
    message.extend([0; 8]);
    message.extend([0xff; FLAGS]);
    message
}

fn count(answer: &[u8]) -> io::Result<u32> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "the answer about IPsec policies is cut short");
    let half = |at: usize| answer.get(at..at + 2).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes);
    let word =
        |at: usize| answer.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_ne_bytes);
    let kind = half(4).ok_or_else(cut)?;
    if kind == ERROR {
        let errno = word(HEADER).ok_or_else(cut)?.cast_signed();
        return Err(io::Error::from_raw_os_error(-errno));
    }
    if kind != NEW_INFO {
        return Err(cut());
    }
    let mut at = HEADER + FLAGS;
    loop {
        let length = usize::from(half(at).ok_or_else(cut)?);
        if half(at + 2) == Some(INFO) {
            let counts = (0..3).map(|nth| word(at + 4 + 4 * nth));
            return counts.sum::<Option<u32>>().ok_or_else(cut);
        }
        if length < 4 {
            return Err(cut());
        }
        at += length.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_of_all_ways_are_counted() {
        let mut answer = vec![0; 4];
        answer.extend(NEW_INFO.to_ne_bytes());
        answer.resize(HEADER + FLAGS, 0);
        // Another attribute comes first.
        answer.extend([6_u16.to_ne_bytes(), 3_u16.to_ne_bytes(), [32, 0], [0, 0]].concat());
        answer.extend([28_u16.to_ne_bytes(), INFO.to_ne_bytes()].concat());
        answer.extend([1_u32, 2, 4, 100, 100, 100].iter().flat_map(|count| count.to_ne_bytes()));
        assert_eq!(count(&answer).expect("whole"), 7);
        for length in 0..40 {
            assert!(count(&answer[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn an_error_is_the_kernels() {
        let mut answer = vec![0; 4];
        answer.extend(ERROR.to_ne_bytes());
        answer.resize(HEADER, 0);
        answer.extend((-libc::EPERM).to_ne_bytes());
        assert_eq!(count(&answer).expect_err("refused").raw_os_error(), Some(libc::EPERM));
    }
}
