//! trefoil-agent: proves with the TPM what this machine booted, fetches its payload, and goes on proving.
//!
//! Arguments and exit codes are here. Reading order: [`config`], [`boot`] (what is done once), [`drive`] (a connection
//! at a time), and the parts they use.

mod autorun;
mod boot;
mod check;
mod config;
mod dial;
mod drive;
mod entropy;
mod harden;
mod keepalive;
mod line;
mod log;
mod logs;
mod payload;
mod supervise;
mod sys;
mod tls;
mod tpm;
mod x509;

use std::{env, fs::File, io, os::fd::AsFd as _, process::ExitCode};

use autorun::Runner;
use config::{Command, Settings};
use payload::PayloadDir;

fn main() -> ExitCode {
    let started = std::time::Instant::now();
    // An argument that is no text is no setting either: it is refused like any other that is not known.
    let args = env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let command = match config::from_system(args) {
        Ok(command) => command,
        Err(why) => {
            eprintln!("trefoil-agent: {why}");
            return ExitCode::from(2);
        }
    };
    match command {
        Command::Print { home, file } => print(&home, &file),
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

/// Writes one file of the payload in place, and nothing else, to standard output.
fn print(home: &PayloadDir, file: &str) -> ExitCode {
    // Not by the standard library's own handle, which would keep a copy of the key in its buffer.
    let out = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    match out.and_then(|mut out| home.print(file, &mut out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("trefoil-agent: {} of the payload at {}: {why}", file.escape_debug(), home.path().display());
            ExitCode::FAILURE
        }
    }
}

/// Keeps a worker running; see [`supervise`].
fn parent(settings: &Settings) -> ExitCode {
    log::init(settings.log);
    let args: Vec<_> = env::args_os().skip(1).collect();
    let home = settings.payload_home();
    let autorun = Runner::new(&settings.payload_dir, settings.autorun, settings.autorun_limit);
    if let Err(why) = harden::hide_memory() {
        log::warn!("memory can be read by other processes of this user: {why}");
    }
    match supervise::run(&args, settings.timeout, autorun, || home.clean()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(why) => {
            log::error!("the worker cannot be started: {why}");
            ExitCode::FAILURE
        }
    }
}
