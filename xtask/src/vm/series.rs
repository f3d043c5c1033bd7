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

/// Every kind of sub-interface; the kernels of the distribution have all of them.
const SUBINTERFACES: Run =
    Run { variables: &[("NETFERRY_SUBINTERFACES", "macvlan,ipvlan,vlan")], ..all("subinterface") };

/// Ports as the machine that builds has them. A failure of each step is most of the time, and no other on another kernel.
const VETH_PORTS: Run = some("port", &["--skip", "a_failure_of_any_step"]);

/// All tests of ports, with pairs that the machine that builds may not have.
const NETKIT_PORTS: Run = Run { variables: &[("NETFERRY_PORTS", "netkit")], ..all("port") };

/// Tunnels whose headers programs put on: the helpers for that differ between kernels.
const TUNNELS: Run = some("transport", &["headers"]);

/// What is run where there is tcx.
const fn with_tcx(netkit_ports: Run) -> [Run; 11] {
    [
        all("vectors"),
        REAL_LINKS,
        all("kinds"),
        SUBINTERFACES,
        VETH_PORTS,
        netkit_ports,
        all("netkit"),
        all("uplink"),
        TUNNELS,
        Run { variables: NETKIT_PORTS.variables, ..TUNNELS },
        all("tamper"),
    ]
}

const STABLE: [Run; 11] = with_tcx(NETKIT_PORTS);
const NEWEST: [Run; 11] = with_tcx(Run { arguments: VETH_PORTS.arguments, ..NETKIT_PORTS });

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
    Series { name: "6.12", suite: "trixie", runs: &STABLE },
    Series { name: "newest", suite: "forky", runs: &NEWEST },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_name_on_the_command_line() {
        assert_eq!(SERIES.map(|series| series.name), NAMES);
    }
}
