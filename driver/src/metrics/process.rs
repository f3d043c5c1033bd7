//! The daemon's process, under the names that every Prometheus client library uses.

use std::fmt;

use procfs::{ProcResult, WithCurrentSystemInfo as _, process::Process};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Reads `/proc/self` at each scrape.
#[derive(Debug)]
pub(super) struct ProcessCollector;

/// What is read.
struct Numbers {
    cpu_seconds: f64,
    start_seconds: f64,
    resident: u64,
    virtual_size: u64,
    open_files: usize,
    most_files: Option<u64>,
}

impl Numbers {
    #[expect(clippy::cast_precision_loss, reason = "seconds with a fraction")]
    fn read() -> ProcResult<Self> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Ok(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            start_seconds: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
            resident: stat.rss_bytes().get(),
            virtual_size: stat.vsize,
            open_files: process.fd_count()?,
            most_files: match process.limits()?.max_open_files.soft_limit {
                procfs::process::LimitValue::Value(most) => Some(most),
                procfs::process::LimitValue::Unlimited => None,
            },
        })
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A scrape without them is better than none.
        let Ok(numbers) = Numbers::read() else { return Ok(()) };
        let help = "Total user and system CPU time spent in seconds";
        write(&mut encoder, "process_cpu_seconds", help, &ConstCounter::new(numbers.cpu_seconds))?;
        let help = "Start time of the process since unix epoch in seconds";
        write(&mut encoder, "process_start_time_seconds", help, &ConstGauge::new(numbers.start_seconds))?;
        let integers = [
            ("process_resident_memory_bytes", "Resident memory size in bytes", Some(numbers.resident)),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes", Some(numbers.virtual_size)),
            ("process_open_fds", "Number of open file descriptors", Some(numbers.open_files as u64)),
            ("process_max_fds", "Maximum number of open file descriptors", numbers.most_files),
        ];
        for (name, help, value) in integers {
            let Some(value) = value else { continue };
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            write(&mut encoder, name, help, &ConstGauge::new(value))?;
        }
        Ok(())
    }
}

fn write(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
