//! Waiting for the cluster to reach a state.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::interrupt::interrupted;

/// Pause between two looks at the cluster.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks until the answer is `Ok`, and returns it with the seconds that it took. The last error says why the
/// state was not reached in time.
pub(crate) fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<(T, f64)> {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok((answer, start.elapsed().as_secs_f64())),
            Err(_) if interrupted() => bail!("interrupted"),
            Err(error) if start.elapsed() >= limit => {
                bail!("{what}: not within {} s: {error:#}", limit.as_secs())
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Sleeps, unless the run is interrupted.
pub(crate) fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if interrupted() {
            bail!("interrupted");
        }
        thread::sleep(left.min(PAUSE));
    }
    Ok(())
}
