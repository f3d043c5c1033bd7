//! Ctrl-C and SIGTERM: the run stops, and what it made is removed.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Takes SIGINT and SIGTERM for this process and every thread that is started from now on. Children inherit
/// the mask: they end when their own work ends, or when they are killed.
pub(crate) fn watch() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot block SIGINT and SIGTERM")?;
    thread::spawn(move || {
        let mut first: Option<Instant> = None;
        while signals.wait().is_ok() {
            // `timeout` sends one signal to the process and one to its group.
            if first.is_some_and(|first| first.elapsed() < Duration::from_secs(1)) {
                continue;
            }
            first.get_or_insert_with(Instant::now);
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                eprintln!("interrupted again: what was made is left; `cargo xtask e2e --clean` removes it");
                process::exit(130);
            }
            eprintln!("interrupted: removing what was made");
        }
    });
    Ok(())
}

/// Whether the run is to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
