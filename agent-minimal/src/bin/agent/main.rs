//! trefoil-agent: proves with the TPM what this machine booted, fetches its payload, and goes on proving.
//!
//! Arguments and exit codes are here. Reading order: [`config`], [`boot`] (what is done once), [`drive`] (a connection
//! at a time), and the parts they use.

mod boot;
mod check;
mod config;
mod drive;
mod entropy;
mod log;
mod logs;
mod payload;
mod supervise;
mod sys;
mod tls;
mod tpm;
mod x509;

use std::{env, process::ExitCode};

use config::{Command, Settings};
use payload::PayloadDir;

fn main() -> ExitCode {
    let started = std::time::Instant::now();
    let command = match config::from_system(env::args().skip(1)) {
        Ok(command) => command,
        Err(why) => {
            eprintln!("trefoil-agent: {why}");
            return ExitCode::from(2);
        }
    };
    match command {
        Command::Help => {
            print!("{}", config::HELP);
            ExitCode::SUCCESS
        }
        Command::Version => {
            println!("trefoil-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Command::Check { settings, json } => {
            let (report, complete) = check::run(&settings, json);
            print!("{report}");
            ExitCode::from(u8::from(!complete))
        }
        Command::Run(settings) => parent(&settings),
        Command::Worker { settings, parent } => {
            log::init(settings.log);
            if let Err(why) = supervise::become_worker(parent) {
                log::error!("the worker cannot begin: {why}");
                return ExitCode::FAILURE;
            }
            drive::run(settings, started)
        }
    }
}

/// Keeps a worker running; see [`supervise`].
fn parent(settings: &Settings) -> ExitCode {
    log::init(settings.log);
    let args: Vec<_> = env::args_os().skip(1).collect();
    let home = PayloadDir::new(&settings.payload_dir);
    match supervise::run(&args, settings.timeout, || home.clean()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(why) => {
            log::error!("the worker cannot be started: {why}");
            ExitCode::FAILURE
        }
    }
}
