//! QEMU: this machine's own, or a newer one of the distribution's backports, unpacked beside the system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::private_apt::{self, run};
use crate::command::{foreign, root};

/// The first version that emulates several CPUs at once soundly. Before it one CPU may run what another has changed as it
/// was: a kernel that turns a static key dies of a breakpoint that it had set and taken away (`Oops: int3`, mostly in
/// `netif_rx_internal`; QEMU's commit deba78709a, "accel/tcg: Always lock pages before translation").
const SOUND: (u32, u32) = (8, 1);

/// The emulator, and the firmware it is to load. What it depends on comes with the package of this machine.
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// A QEMU that can be run.
pub(crate) struct Emulator {
    program: PathBuf,
    /// Where its firmware is, if elsewhere than it looks.
    firmware: Vec<PathBuf>,
    /// Whether its CPUs may run at once.
    at_once: bool,
}

impl Emulator {
    /// This machine's if it is new enough, else a newer one, downloaded at the first call; if there is none, this machine's
    /// all the same, with one CPU after the other. That takes twice as long.
    pub(crate) fn find() -> Result<Self> {
        let program = PathBuf::from("qemu-system-x86_64");
        let own = version(&program)?;
        if own >= SOUND {
            return Ok(Self { program, firmware: Vec::new(), at_once: true });
        }
        newer().or_else(|error| {
            let (major, minor) = own;
            println!(
                "QEMU {major}.{minor} is run with one CPU at a time, as there is no newer one: {error:#}"
            );
            Ok(Self { program, firmware: Vec::new(), at_once: false })
        })
    }

    /// The command, with how CPUs are emulated and where firmware is.
    pub(crate) fn command(&self) -> Command {
        let mut command = foreign(&self.program);
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        // The kernel of this machine may not be able to run another one: always emulate.
        let threads = if self.at_once { "multi" } else { "single" };
        command.args(["-accel", &format!("tcg,thread={threads}")]);
        command
    }
}

/// The one in the backports of this machine's distribution.
fn newer() -> Result<Emulator> {
    let home = root().join("target/tools/qemu");
    let suite = backports(&fs::read_to_string("/etc/os-release").context("/etc/os-release")?)?;
    private_apt::keep(&home, &suite, |_| Ok(PACKAGES.map(str::to_owned).to_vec()))?;
    let program = home.join("usr/bin/qemu-system-x86_64");
    let (major, minor) = version(&program)?;
    ensure!((major, minor) >= SOUND, "that of the backports is {major}.{minor}");
    let firmware = ["qemu", "seabios"].map(|folder| home.join("usr/share").join(folder)).to_vec();
    Ok(Emulator { program, firmware, at_once: true })
}

/// The suite of backports of the distribution that `/etc/os-release` tells of.
fn backports(release: &str) -> Result<String> {
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.context("/etc/os-release: no VERSION_CODENAME")?.trim_matches('"');
    Ok(format!("{name}-backports"))
}

fn version(program: &Path) -> Result<(u32, u32)> {
    let said = run(foreign(program).arg("--version"))?;
    parse(&said).with_context(|| format!("{} --version: {said:?}", program.display()))
}

/// Major and minor version in `QEMU emulator version 7.2.22 (Debian …)`.
fn parse(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_suites_are_read() {
        let said = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022";
        assert_eq!(parse(said), Some((7, 2)));
        assert_eq!(
            parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)"),
            Some((10, 0))
        );
        assert!(parse("no such thing").is_none());
        assert!([(7, 2), (8, 0)].iter().all(|old| *old < SOUND) && (10, 0) > SOUND);
        assert_eq!(
            backports("ID=debian\nVERSION_CODENAME=bookworm\n").expect("a suite"),
            "bookworm-backports"
        );
        assert!(backports("ID=debian\n").is_err());
    }
}
