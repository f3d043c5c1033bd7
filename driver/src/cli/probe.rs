//! `netferry probe`: whether the instance of this container is up, for its startup probe.
//!
//! HTTP is no answer there: while one instance replaces another, the port is still the other's.

use std::{io::Read as _, os::unix::net::UnixStream, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};

use crate::config::ProbeArgs;

/// Ask the instance. It is up when it is active, or stands by and is registered with the kubelet.
pub fn run(args: &ProbeArgs) -> Result<ExitCode> {
    let socket = args.instance.probe_socket(&args.state.run_dir).context("--instance: missing")?;
    let what = || format!("the instance does not answer at {}", socket.display());
    let mut stream = UnixStream::connect(&socket).with_context(what)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(what)?;
    print!("{answer}");
    Ok(if answer == "up\n" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
