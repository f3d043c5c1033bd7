//! Words of the command line that have parts.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::claim::PodRef;

/// A pod, as `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl PodName {
    /// Whether it is this one.
    #[must_use]
    pub fn is(&self, pod: &PodRef) -> bool {
        self.namespace == pod.namespace && self.name == pod.name
    }
}

impl FromStr for PodName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("NAMESPACE/NAME is allowed"),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Protocol and destination port of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowPort {
    /// TCP (6), UDP (17) or SCTP (132), and a port.
    Port(u8, u16),
    /// ICMP or ICMPv6, with type and code.
    Icmp(u8, u8),
}

impl FlowPort {
    /// IP protocol number and port, as the maps have them, for a flow to this address: of ICMP, the port is
    /// type × 256 + code.
    #[must_use]
    pub fn numbers(self, to: IpAddr) -> (u8, u16) {
        match (self, to) {
            (Self::Port(protocol, port), _) => (protocol, port),
            (Self::Icmp(kind, code), IpAddr::V4(_)) => (1, u16::from_be_bytes([kind, code])),
            (Self::Icmp(kind, code), IpAddr::V6(_)) => (58, u16::from_be_bytes([kind, code])),
        }
    }
}

impl FromStr for FlowPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<_> = text.split('/').collect();
        let parsed = match *words.as_slice() {
            ["tcp", port] => port.parse().ok().map(|port| Self::Port(6, port)),
            ["udp", port] => port.parse().ok().map(|port| Self::Port(17, port)),
            ["sctp", port] => port.parse().ok().map(|port| Self::Port(132, port)),
            ["icmp", kind, code] => kind.parse().ok().zip(code.parse().ok()).map(|(k, c)| Self::Icmp(k, c)),
            _ => None,
        };
        parsed.ok_or("tcp/PORT, udp/PORT, sctp/PORT and icmp/TYPE/CODE are allowed")
    }
}

/// The name of a protocol, or its number.
#[must_use]
pub fn protocol_name(number: u32) -> String {
    match number {
        0 => "-".to_owned(),
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_two_parts() {
        let pod: PodName = "team-a/web".parse().unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("team-a", "web"));
        for bad in ["web", "/web", "team-a/", "a/b/c", ""] {
            assert!(bad.parse::<PodName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_have_a_protocol() {
        let to = "192.0.2.1".parse().unwrap();
        let numbers = |text: &str| text.parse::<FlowPort>().map(|port| port.numbers(to));
        assert_eq!(numbers("tcp/8080"), Ok((6, 8080)));
        assert_eq!(numbers("icmp/8/0"), Ok((1, 0x0800)));
        assert_eq!("icmp/128/0".parse::<FlowPort>().unwrap().numbers("::1".parse().unwrap()), (58, 0x8000));
        for bad in ["tcp", "tcp/", "tcp/65536", "8080", "icmp/8", "tcp/1/2"] {
            assert!(numbers(bad).is_err(), "{bad}");
        }
    }
}
