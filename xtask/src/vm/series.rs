//! Which kernels are booted, and what is run on each.

/// A series of kernels.
pub(crate) struct Series {
    /// How its versions begin; `newest` takes what the suite has.
    pub(crate) name: &'static str,
    /// The Debian suite that has it.
    pub(crate) suite: &'static str,
    /// What is run.
    pub(crate) runs: &'static [Run],
}

/// One test binary and its arguments.
pub(crate) struct Run {
    /// Name of the test binary: of a file in `driver/tests/`.
    pub(crate) binary: &'static str,
    /// Arguments: names of tests, or options of the harness.
    pub(crate) arguments: &'static [&'static str],
    /// Variables of its environment.
    pub(crate) variables: &'static [(&'static str, &'static str)],
}

const fn all(binary: &'static str) -> Run {
    some(binary, &[])
}

const fn some(binary: &'static str, arguments: &'static [&'static str]) -> Run {
    Run { binary, arguments, variables: &[] }
}

/// Programs on real links.
const REAL_LINKS: Run = all("datapath");

/// Every kind of sub-interface; the kernels of the distribution have all of them. Others of its tests take minutes there.
const SUBINTERFACES: Run = Run {
    binary: "subinterface",
    arguments: &["sub_interfaces_go_with_their_namespace", "a_parent_that_is_down_is_told"],
    variables: &[("NETFERRY_SUBINTERFACES", "macvlan,ipvlan,vlan")],
};

/// The tests of ports again, with pairs of netkit.
const NETKIT_PORTS: Run = Run { variables: &[("NETFERRY_PORTS", "netkit")], ..all("port") };

/// What is run where there is tcx.
const TCX: [Run; 7] =
    [all("vectors"), REAL_LINKS, all("kinds"), SUBINTERFACES, all("port"), all("netkit"), NETKIT_PORTS];

/// The names, for the command line.
pub(crate) const NAMES: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];

/// Oldest first.
pub(crate) const SERIES: [Series; 4] = [
    // Below the floor: it has to be refused in clear words.
    Series { name: "5.10", suite: "bullseye", runs: &[all("floor")] },
    // No tcx.
    Series {
        name: "6.1",
        suite: "bookworm",
        runs: &[all("vectors"), all("clsact"), all("floor"), some("attach", &["without_tcx"])],
    },
    Series { name: "6.12", suite: "trixie", runs: &TCX },
    Series { name: "newest", suite: "forky", runs: &TCX },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_name_on_the_command_line() {
        assert_eq!(SERIES.map(|series| series.name), NAMES);
    }
}
