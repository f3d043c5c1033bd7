//! One run of QEMU: the console is read line by line until the machine is off.

use std::{
    io::{BufRead as _, BufReader, Write as _, stdout},
    path::Path,
    process::Stdio,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::emulator::Emulator;
use crate::{command::line, tally::Tally};

/// What `init` begins those lines with that are meant for us.
pub(crate) const SAYS: &str = "netferry-vm:";
/// A machine that takes longer is stuck.
const LIMIT: Duration = Duration::from_mins(20);

/// How a run ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// All binaries ended well, and the machine said that it was done.
    pub(crate) good: bool,
    /// Lines of the log of skips.
    pub(crate) skips: Vec<String>,
}

/// Boots a kernel and counts what its tests report.
pub(crate) fn run(
    emulator: &Emulator,
    kernel: &Path,
    initramfs: &Path,
    tally: &mut Tally,
) -> Result<Outcome> {
    let begin = Instant::now();
    let mut qemu = emulator.command();
    qemu.args(["-cpu", "max", "-smp", "2", "-m", "2G", "-no-reboot"])
        .args(["-display", "none", "-vga", "none", "-audiodev", "none,id=none"])
        .args(["-monitor", "none", "-nic", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        // A panic ends the machine. Messages of the kernel would break the lines of the tests.
        .args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off"]);
    println!("$ {}", line(&qemu));
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
    let console = child.stdout.take().context("QEMU has no console")?;
    let (lines, read) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut bytes = Vec::new();
        // A test may print anything.
        while console.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if lines.send(line).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    let mut report = Report::default();
    let stuck = loop {
        match read.recv_timeout(LIMIT.saturating_sub(begin.elapsed())) {
            Ok(line) => {
                writeln!(stdout(), "{line}").context("standard output")?;
                report.read(&line, tally);
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if stuck {
        child.kill().context("kill QEMU")?;
    }
    let status = child.wait().context("QEMU")?;
    drop(read);
    let _ = reader.join();
    println!("the machine was on for {:.0} s", begin.elapsed().as_secs_f32());
    if stuck {
        bail!("the machine was not done after {LIMIT:?}");
    }
    if !status.success() {
        bail!("QEMU failed ({status})");
    }
    Ok(report.end())
}

/// What the console has told so far.
#[derive(Default)]
struct Report {
    running: Option<String>,
    bad: bool,
    done: bool,
    skips: Vec<String>,
}

impl Report {
    fn read(&mut self, line: &str, tally: &mut Tally) {
        tally.read(line);
        let Some(told) = line.strip_prefix(SAYS) else { return };
        match told.trim().split_once(' ').unwrap_or((told.trim(), "")) {
            ("run", name) => self.running = Some(name.to_owned()),
            ("end", rest) => {
                self.bad |= self.running.take().is_none_or(|name| rest != format!("{name} 0"));
            }
            ("skip", skip) => self.skips.push(skip.to_owned()),
            ("done", _) => self.done = true,
            _ => {}
        }
    }

    fn end(self) -> Outcome {
        Outcome { good: self.done && !self.bad && self.running.is_none(), skips: self.skips }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> (Outcome, Tally) {
        let (mut report, mut tally) = (Report::default(), Tally::default());
        for line in lines {
            report.read(line, &mut tally);
        }
        (report.end(), tally)
    }

    const RESULT: &str = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn a_run_to_the_end_is_good() {
        let (outcome, tally) = read(&[
            "netferry-vm: run vectors",
            RESULT,
            "netferry-vm: end vectors 0",
            "netferry-vm: skip a: why",
            "netferry-vm: done",
        ]);
        assert_eq!(outcome, Outcome { good: true, skips: vec!["a: why".to_owned()] });
        assert_eq!(tally, Tally { passed: 2, failed: 0, skipped: 0 });
    }

    #[test]
    fn every_other_end_is_not() {
        let begin = "netferry-vm: run vectors";
        for lines in [
            vec![begin, RESULT, "netferry-vm: end vectors 0"],
            vec![begin, "netferry-vm: end vectors 101", "netferry-vm: done"],
            vec![begin, RESULT, "netferry-vm: done"],
            vec!["Kernel panic - not syncing"],
        ] {
            assert!(!read(&lines).0.good, "{lines:?}");
        }
    }
}
