//! The `netferry` command.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use netferry::{
    cli, config,
    config::{Arguments, Command},
    daemon, telemetry,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netferry: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(config) => {
            telemetry::start(config.log_format);
            run_daemon(*config)?;
        }
        Command::Devices(args) => cli::devices::run(&args)?,
        Command::Pods(args) => cli::pods::run(&args)?,
        Command::Networks(args) => cli::networks::run(&args)?,
        Command::Flows(args) => cli::flows::run(&args)?,
        Command::Policy(command) => cli::policy::run(&command)?,
        Command::Block(command) => cli::block::run(&command)?,
        Command::Doctor(args) => return cli::doctor::run(&args),
        Command::Probe(args) => return cli::probe::run(&args),
        Command::MountBpffs => cli::mount_bpffs::run()?,
        Command::Validate(args) => return cli::validate::run(&args),
    }
    Ok(ExitCode::SUCCESS)
}

fn run_daemon(config: config::RunConfig) -> Result<()> {
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(daemon::run(config));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
