//! The cases, and what each needs.

mod apiserver;
mod claims;
mod many;
mod networks;
mod policy;
mod power;
mod restarts;
mod rollout;
mod sandbox;
mod shared;
mod slices;
mod uninstall;

use std::fmt;

use anyhow::{Result, bail};

use super::story::Story;

/// What a case does to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Others may run at the same time.
    Together,
    /// It measures, or touches what others use.
    Alone,
    /// It restarts, stops or removes parts of the cluster.
    Disruptive,
}

impl Mode {
    /// The mode for the list of cases.
    pub(crate) fn note(self) -> &'static str {
        match self {
            Mode::Together => "",
            Mode::Alone => " (alone)",
            Mode::Disruptive => " (--disruptive)",
        }
    }
}

/// A story and what it needs.
pub(crate) struct Case {
    /// Its name on the command line, in the report and in its namespace.
    pub(crate) name: &'static str,
    /// What it is about.
    pub(crate) about: &'static str,
    /// What it does to others.
    pub(crate) mode: Mode,
    /// How many links of the node it needs.
    pub(crate) links: usize,
    /// The story; it returns what was measured.
    pub(crate) run: fn(&Story<'_>) -> Result<String>,
}

/// An error that says that the case cannot run here.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl fmt::Display for Skip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

const fn case(
    name: &'static str,
    mode: Mode,
    links: usize,
    run: fn(&Story<'_>) -> Result<String>,
    about: &'static str,
) -> Case {
    Case { name, about, mode, links, run }
}

/// Every case, in the order of the report.
pub(crate) const ALL: &[Case] = &[
    case("claim", Mode::Together, 1, claims::claim, "a link by a ResourceClaim, there and home"),
    case("template", Mode::Together, 1, claims::template, "a link by a ResourceClaimTemplate"),
    case("two-interfaces", Mode::Together, 2, claims::two, "two claims, two links in one pod"),
    case("job", Mode::Together, 1, claims::job, "a Job; the link is home when it is complete"),
    case("force-delete", Mode::Together, 1, claims::force, "force delete and recreate, within 5 s"),
    case("recreate", Mode::Together, 1, shared::recreate, "one claim, Deployment with strategy Recreate"),
    case(
        "rolling-update",
        Mode::Together,
        1,
        shared::rolling,
        "one claim, default strategy: held, with the cure in Events",
    ),
    case(
        "one-subnet",
        Mode::Together,
        0,
        networks::one_subnet,
        "two networks with one subnet, apart both ways",
    ),
    case("blocks", Mode::Together, 0, networks::blocks, "a network whose nodes have blocks of addresses"),
    case("network-deleted", Mode::Together, 0, networks::deleted, "a network deleted while pods use it"),
    case("policy-labels", Mode::Together, 0, policy::labels, "a policy by pod labels that change"),
    case(
        "policy-change",
        Mode::Together,
        0,
        policy::change,
        "a policy changed under traffic, in force within 2 s",
    ),
    case("slices-deleted", Mode::Alone, 1, slices::deleted, "the node's slices deleted: back within 2 s"),
    case("pods-50", Mode::Alone, 0, many::fifty, "50 pods at once, beside 50 plain ones"),
    case("pods-100", Mode::Alone, 0, many::hundred, "100 pods at once, beside 100 plain ones"),
    case("sandbox-killed", Mode::Disruptive, 1, sandbox::killed, "the sandbox's process killed"),
    case(
        "daemon-restart",
        Mode::Disruptive,
        3,
        restarts::daemon,
        "the daemon's pod deleted, dead sandboxes about",
    ),
    case("daemon-kill", Mode::Disruptive, 3, restarts::daemon_kill, "the daemon killed"),
    case(
        "kubelet-restart",
        Mode::Disruptive,
        2,
        restarts::kubelet,
        "the kubelet restarted, dead sandboxes about",
    ),
    case("kubelet-kill", Mode::Disruptive, 2, restarts::kubelet_kill, "the kubelet killed"),
    case(
        "runtime-restart",
        Mode::Disruptive,
        2,
        restarts::runtime,
        "the runtime restarted, dead sandboxes about",
    ),
    case("runtime-kill", Mode::Disruptive, 2, restarts::runtime_kill, "the runtime killed"),
    case("rollout", Mode::Disruptive, 2, rollout::rollout, "rollout of the DaemonSet under traffic"),
    case("api-server-down", Mode::Disruptive, 3, apiserver::down, "no API server while pods start and stop"),
    case(
        "power-cut",
        Mode::Disruptive,
        1,
        power::cut,
        "the node loses its power; then the daemon restarts twice",
    ),
    case(
        "uninstall-driver-first",
        Mode::Disruptive,
        1,
        uninstall::driver_first,
        "driver, then networks; and installed again",
    ),
    case(
        "uninstall-networks-first",
        Mode::Disruptive,
        1,
        uninstall::networks_first,
        "networks, then driver; and installed again",
    ),
];

/// The cases with these names; all without names.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|case| case.name != name.as_str())) {
        let known: Vec<_> = ALL.iter().map(|case| case.name).collect();
        bail!("--only: no case `{unknown}`; there are {}", known.join(", "));
    }
    let wanted = |case: &&Case| names.is_empty() || names.iter().any(|name| name == case.name);
    Ok(ALL.iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_and_fit() {
        let mut names: Vec<_> = ALL.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        // In the name of a network: `nfe2e-abcd-NAME-a`, at most 58 characters.
        assert!(names.iter().all(|name| name.len() <= 40));
        assert_eq!(chosen(&["claim".into()]).unwrap().len(), 1);
        assert!(chosen(&["clam".into()]).is_err());
    }
}
