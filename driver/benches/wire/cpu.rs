//! CPUs: where threads run, and what they use.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The last CPU of the machine.
pub(crate) fn last() -> Result<usize> {
    let present = fs::read_to_string("/sys/devices/system/cpu/online").context("the CPUs that are online")?;
    let last = present.trim().rsplit([',', '-']).next().unwrap_or_default();
    last.parse().with_context(|| format!("/sys/devices/system/cpu/online: {present:?}"))
}

/// Keeps the calling thread on a CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("pin to CPU {cpu}"))
}

/// What measures the CPU time of a path: of the process, kernel included, and of the kernel's threads that do
/// the network's work on these CPUs when it is too much for the moment.
#[derive(Clone)]
pub(crate) struct Meter {
    soft: Vec<String>,
}

impl Meter {
    /// For these CPUs.
    pub(crate) fn new(cpus: &[usize]) -> Result<Self> {
        let names: Vec<String> = cpus.iter().map(|cpu| format!("ksoftirqd/{cpu}")).collect();
        let mut soft = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let folder = entry?.path();
            let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            if names.iter().any(|known| *known == name.trim()) {
                soft.push(folder.join("schedstat").to_string_lossy().into_owned());
            }
        }
        Ok(Self { soft })
    }

    /// CPU time until now.
    pub(crate) fn read(&self) -> Result<Duration> {
        let own = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("the CPU time of the process")?;
        let mut sum = Duration::from(own);
        for path in &self.soft {
            let text = fs::read_to_string(path).with_context(|| path.clone())?;
            let nanoseconds = text.split(' ').next().unwrap_or_default();
            sum += Duration::from_nanos(nanoseconds.parse().with_context(|| path.clone())?);
        }
        Ok(sum)
    }
}
