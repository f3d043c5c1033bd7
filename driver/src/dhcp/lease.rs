//! What a server has granted, and for how long.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::wire::Grant;
use crate::link::MacAddr;

/// No lease is renewed more often than this, in seconds, while a server does not answer.
const LEAST_WAIT: i64 = 5;

/// An address of a server, and what came with it. Times are the host's clock, so that they outlive the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the subnet mask (option 1), if the server has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<u8>,
    /// The first router (option 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Ipv4Addr>,
    /// MTU in bytes (option 26).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The server (option 54).
    pub server: Ipv4Addr,
    /// Hardware address that the server's answers come from: its own, or its relay's.
    pub server_mac: MacAddr,
    /// When it was granted.
    pub granted: Timestamp,
    /// When it ends, and is asked to be renewed before; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Times>,
}

/// Times of a lease (RFC 2131, section 4.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// T1: from now on its server is asked.
    pub renew: Timestamp,
    /// T2: from now on every server is asked.
    pub rebind: Timestamp,
    /// The address is somebody else's.
    pub expires: Timestamp,
}

/// How far a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// There is nothing to do.
    Bound,
    /// After T1.
    Renewing,
    /// After T2.
    Rebinding,
    /// Over.
    Expired,
}

impl Lease {
    /// From what a server granted at this moment.
    #[must_use]
    pub fn new(grant: &Grant, now: Timestamp) -> Self {
        let after =
            |seconds: u32| now.saturating_add(SignedDuration::from_secs(seconds.into())).unwrap_or(now);
        let times = grant.seconds.map(|seconds| {
            // A server may set both; what does not go in order is not taken (section 4.4.5 has the fractions).
            let rebind = grant.t2.filter(|t2| *t2 < seconds).unwrap_or(seconds / 8 * 7 + seconds % 8 * 7 / 8);
            let renew = grant.t1.filter(|t1| *t1 <= rebind).unwrap_or((seconds / 2).min(rebind));
            Times { renew: after(renew), rebind: after(rebind), expires: after(seconds) }
        });
        Self {
            address: grant.address,
            prefix: grant.prefix,
            router: grant.router,
            mtu: grant.mtu,
            server: grant.server,
            server_mac: grant.server_mac,
            granted: now,
            times,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self, now: Timestamp) -> Phase {
        match self.times {
            Some(times) if now >= times.expires => Phase::Expired,
            Some(times) if now >= times.rebind => Phase::Rebinding,
            Some(times) if now >= times.renew => Phase::Renewing,
            // A clock that was set back says nothing about the server's.
            Some(times) if now < self.granted && times.expires > self.granted => Phase::Renewing,
            _ => Phase::Bound,
        }
    }

    /// When to ask again if nobody answers: after half of what is left of the phase (RFC 2131, section 4.4.5, without its
    /// minute, which short leases do not have).
    #[must_use]
    pub fn again(&self, now: Timestamp) -> Timestamp {
        let Some(times) = self.times else { return Timestamp::MAX };
        let end = if now < times.rebind { times.rebind } else { times.expires };
        let half = SignedDuration::from_secs((end.duration_since(now).as_secs() / 2).max(LEAST_WAIT));
        now.saturating_add(half).map_or(end, |at| at.min(end))
    }

    /// The address with the prefix length that the server has told, or else `prefix`.
    #[must_use]
    pub fn network(&self, prefix: u8) -> Option<IpNetwork> {
        IpNetwork::new(IpAddr::V4(self.address), self.prefix.unwrap_or(prefix)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Phase::{Bound, Expired, Rebinding, Renewing},
        *,
    };

    fn grant(seconds: Option<u32>, t1: Option<u32>, t2: Option<u32>) -> Grant {
        Grant {
            address: Ipv4Addr::new(10, 9, 0, 7),
            prefix: Some(24),
            router: None,
            mtu: None,
            server: Ipv4Addr::new(10, 9, 0, 1),
            server_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            seconds,
            t1,
            t2,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn times_are_the_server_s_or_the_usual_fractions() {
        let times = |seconds, t1, t2| {
            let times = Lease::new(&grant(Some(seconds), t1, t2), at(1000)).times.expect("it ends");
            [times.renew, times.rebind, times.expires].map(|time| time.as_second() - 1000)
        };
        assert_eq!(times(120, None, None), [60, 105, 120]);
        assert_eq!(times(120, Some(3), Some(110)), [3, 110, 120]);
        // What is not in order.
        assert_eq!(times(120, Some(119), Some(500)), [60, 105, 120]);
        assert_eq!(times(120, Some(100), Some(50)), [50, 50, 120]);
        assert_eq!(times(u32::MAX - 1, None, None)[2], i64::from(u32::MAX - 1));
        assert_eq!(Lease::new(&grant(None, Some(5), None), at(1000)).times, None);
    }

    #[test]
    fn a_lease_is_renewed_then_rebound_then_over() {
        let lease = Lease::new(&grant(Some(120), None, None), at(1000));
        let phases = [1000, 1059, 1060, 1104, 1105, 1119, 1120, 9999].map(|second| lease.phase(at(second)));
        assert_eq!(phases, [Bound, Bound, Renewing, Renewing, Rebinding, Rebinding, Expired, Expired]);
        assert_eq!(lease.phase(at(900)), Renewing, "the clock was set back");
        let waits = [1060, 1100, 1104, 1105, 1119].map(|second| lease.again(at(second)).as_second());
        assert_eq!(waits, [1082, 1105, 1105, 1112, 1120]);
        let forever = Lease::new(&grant(None, None, None), at(1000));
        assert_eq!((forever.phase(at(i64::from(u32::MAX))), forever.again(at(0))), (Bound, Timestamp::MAX));
    }

    #[test]
    fn it_is_the_same_from_disk() {
        for grant in [grant(Some(120), None, None), grant(None, None, None)] {
            let lease = Lease::new(&grant, at(1000));
            let text = serde_json::to_string(&lease).expect("JSON");
            assert_eq!(serde_json::from_str::<Lease>(&text).expect("a lease"), lease);
        }
    }
}
