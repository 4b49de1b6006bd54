//! `cargo xtask`: one command for each thing that people and CI do with this repository.
//!
//! The commands only put together what the crates and the harness in `hil-tests` offer; each installs what it lacks, or
//! names it and stops.

mod bench;
mod corpus;
mod demo;
mod dist;
mod hil;
mod image;
mod package;
mod test;
mod tools;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Drives this repository: see it run, test it, build what is shipped.
///
/// New here? `cargo xtask demo` takes a fresh machine to a delivered payload in one command.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
// What each is about stands at its arguments, in its file.
enum Command {
    Demo(demo::Arguments),
    Test(test::Arguments),
    Hil(hil::Arguments),
    Dist(dist::Arguments),
    Package(package::Arguments),
    Image(image::Arguments),
    Bench(bench::Arguments),
    Vm(vm::Arguments),
    Corpus(corpus::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Hil(arguments) => hil::run(&arguments),
        Command::Dist(arguments) => dist::run(&arguments),
        Command::Package(arguments) => package::run(&arguments),
        Command::Image(arguments) => image::run(&arguments),
        Command::Vm(arguments) => vm::run(&arguments),
        Command::Corpus(arguments) => corpus::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nfailed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
