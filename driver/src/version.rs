//! Which build this is.

use std::sync::LazyLock;

use crate::datapath::programs_digest;

/// Version of the release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from; `unknown` for a build without a repository that was told none by `NETFERRY_COMMIT`.
pub const COMMIT: &str = env!("NETFERRY_COMMIT");

/// Version, commit and digest of the eBPF programs on one line, as `netferry --version` prints them.
#[must_use]
pub fn long() -> &'static str {
    static LONG: LazyLock<String> =
        LazyLock::new(|| format!("{VERSION} (commit {COMMIT}, programs {})", programs_digest()));
    &LONG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_says_what_it_is() {
        let text = long();
        let (version, rest) = text.split_once(" (commit ").unwrap();
        let (commit, programs) = rest.split_once(", programs ").unwrap();
        assert_eq!(version, VERSION);
        assert!(commit == "unknown" || commit.len() >= 7, "{text}");
        let programs = programs.strip_suffix(')').unwrap();
        assert!(programs.len() == 12 && programs.bytes().all(|digit| digit.is_ascii_hexdigit()), "{text}");
    }
}
