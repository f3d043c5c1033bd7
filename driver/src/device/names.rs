//! Interface name → device name.
//!
//! A device name in a ResourceSlice is a DNS label (RFC 1123: `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63
//! bytes); an interface name is any 1 to 15 bytes without `/`, `:` and white space. The mapping has to be
//! injective, or a claim on one link could be given another, and must not depend on which other links exist.

use std::fmt::Write;

/// Longest name the kernel gives an interface (`IFNAMSIZ` - 1), in bytes.
pub const MAX_INTERFACE_NAME: usize = 15;

/// Stands between the readable part of an escaped name and the hexadecimal bytes of the interface name.
const MARK: &str = "-x";

/// The device name of the interface called `ifname`.
///
/// A name that is a DNS label is kept. Any other becomes its readable part, `-x`, and the hexadecimal bytes of
/// the whole interface name (`Eth0.100` → `eth0-100-x457468302e313030`). A legal name that could itself be
/// read as an escaped one is escaped too, which makes the mapping injective by construction.
#[must_use]
pub fn device_name(ifname: &str) -> String {
    if is_dns_label(ifname) && !looks_escaped(ifname) {
        return ifname.to_owned();
    }
    let mut name: String = ifname
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => c,
            _ => '-',
        })
        .take(MAX_INTERFACE_NAME)
        .collect();
    name.truncate(name.trim_end_matches('-').len());
    name.drain(..name.len() - name.trim_start_matches('-').len());
    if name.is_empty() {
        name.push_str("link");
    }
    name.push_str(MARK);
    for byte in ifname.bytes() {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// An RFC 1123 label, as the API server checks device names.
#[must_use]
pub fn is_dns_label(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Ends in the mark and hexadecimal digits, as only escaped names may.
fn looks_escaped(name: &str) -> bool {
    name.rsplit_once(MARK).is_some_and(|(_, tail)| {
        !tail.is_empty() && tail.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keeps_legal_names_and_escapes_others() {
        for legal in ["eth0", "enp3s0f1np1", "a", "0", "bond0", "veth-x", "net1-xyz"] {
            assert_eq!(device_name(legal), legal);
        }
        assert_eq!(device_name("eth0.100"), "eth0-100-x657468302e313030");
        assert_eq!(device_name("ETH_0"), "eth-0-x4554485f30");
        assert_eq!(device_name("-"), "link-x2d");
        assert_eq!(device_name("ü"), "link-xc3bc");
        assert_eq!(device_name("a-x41"), "a-x41-x612d783431");
        // The name it would otherwise collide with.
        assert_eq!(device_name("A"), "a-x41");
        // The longest result, from the longest name.
        assert_eq!(device_name("ABCDEFGHIJKLMNO").len(), 47);
    }

    /// Names the kernel takes, with those that could collide made likely.
    fn interface_name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z0-9-]{1,15}",
            "[aA.x4_-]{1,4}",
            "a-x[0-9a-f]{1,6}",
            "[^/:\\s]{1,15}".prop_filter("at most 15 bytes", |name| name.len() <= MAX_INTERFACE_NAME),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn every_name_is_a_label(name in interface_name()) {
            let device = device_name(&name);
            prop_assert!(is_dns_label(&device), "{name:?} → {device:?}");
        }

        #[test]
        fn distinct_names_stay_distinct(names in proptest::collection::btree_set(interface_name(), 1..64)) {
            let devices: std::collections::BTreeSet<_> = names.iter().map(|name| device_name(name)).collect();
            prop_assert_eq!(devices.len(), names.len());
        }
    }
}
