//! `cargo xtask test`: everything that CI runs, one step after the other; a failed step does not stop the others.
//!
//! The last line is `N passed, N failed, N skipped`: tests as their binaries count them, each lint and build as one,
//! each `skipped: …` line as one skipped (and the test that said it not as passed).

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use hil_tests::apt::{self, Tool};
use hil_tests::postgres::Postgres;

use crate::hil::{self, Suite};
use crate::package;
use crate::tools::{self, Counts};
use crate::{dist, vm};

/// Everything that CI runs, after installing what it needs.
///
/// About half an hour on two cores from a clean checkout.
///
/// Lints, dependency policy, the no_std build, unit and store tests (SQLite and Postgres), the fuzz targets over their
/// seeds and some thousand mutations, hardware-in-loop scenarios on both stores and both TPM backends, the static agent
/// with its size, memory and reproducibility, packages, whole machines under QEMU. Closes with one line of counts; exit 0
/// if none failed.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Only formatting, clippy, and the tests that start no TPM: what one runs before each commit
    #[arg(long)]
    quick: bool,
}

/// Scenario files that also run on Postgres: those whose point is what the control plane remembers.
const ON_POSTGRES: [&str; 7] =
    ["quarantine", "refused_enrol", "refused_release", "restarts", "signed_policies", "try_policy", "works"];

/// Scenario files in which the agent is played by the test, or that are about the network: another TPM backend changes
/// nothing in them.
const ANY_BACKEND: [&str; 4] = ["networks", "refused_attest", "refused_enrol", "refused_release"];

/// The fuzz targets' own workspace, which `--workspace` does not reach.
const FUZZ: &str = "fuzz/Cargo.toml";

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut report = Report::default();
    if arguments.quick {
        quick(&mut report);
    } else {
        apt::ensure(&Tool::ALL)?;
        full(&mut report);
    }
    Ok(report.close())
}

fn quick(report: &mut Report) {
    lints(report);
    report.step("unit tests", || tools::run_tests(&mut unit_tests()));
}

fn full(report: &mut Report) {
    lints(report);
    report.step("clippy, agent with tss-esapi", || {
        done(tools::cargo(&[
            "clippy",
            "--package",
            "agent-minimal",
            "--all-targets",
            "--features",
            "tss-esapi",
            "--",
            "-D",
            "warnings",
        ]))
    });
    report.step("dependencies: bans, licences, sources", dependencies);
    report.step("protocol and the agent's core without std", dist::check_bare);
    report.step("unit and store tests", || {
        let postgres = Postgres::start()?;
        let mut command = unit_tests();
        command.env("TREFOIL_TEST_POSTGRES", postgres.url("postgres"));
        tools::run_tests(&mut command)
    });
    report.step("fuzz targets, formatting and clippy", || {
        tools::run(&mut tools::cargo(&["fmt", "--manifest-path", FUZZ, "--check"]))?;
        done(tools::cargo(&["clippy", "--manifest-path", FUZZ, "--all-targets", "--", "-D", "warnings"]))
    });
    report.step("fuzz targets, smoke", || {
        tools::run_tests(&mut tools::cargo(&["test", "--manifest-path", FUZZ, "--lib", "--", "--show-output"]))
    });
    // The agent with the other backend first: the ordinary build then puts the ordinary agent back in place.
    let mut esapi = None;
    report.step("build, agent with tss-esapi", || {
        esapi = Some(hil::build_esapi_agent()?);
        Ok(Counts::PASSED)
    });
    let built = report.step("build", || hil::build_programs().map(|()| Counts::PASSED));
    if built {
        report.step("the negative corpus", corpus);
        scenarios(report, esapi);
    }
    if built {
        report.step("the static agent", || dist::check(&tools::target_dir().join("debug/trefoil")));
        // The agent as it is shipped makes other system calls than one with another C library.
        report.step("confinement of the static agent", || {
            let mut suite = Suite { files: vec!["hardening".into()], ..Suite::default() };
            suite.environment.insert("TREFOIL_AGENT_STATIC", dist::dir().join("trefoil-agent").into());
            suite.run()
        });
    }
    report.step("the static agent, built in two places", dist::check_reproducible);
    if built {
        report.step("packages", package::check);
    }
    if built {
        report.step("whole machines under QEMU", || vm::scenarios(None, false));
    }
}

fn corpus() -> Result<Counts> {
    let dir = tools::target_dir().join("corpus");
    crate::corpus::test(&dir)
}

fn scenarios(report: &mut Report, esapi: Option<std::path::PathBuf>) {
    report.step("the harness itself", || {
        let mut command = tools::cargo(&["test", "--package", "hil-tests", "--no-fail-fast", "--lib"]);
        command.args(["--test", hil::HARNESS, "--", "--show-output"]);
        tools::run_tests(&mut command)
    });
    let files = match hil::files() {
        Ok(files) if !files.is_empty() => files,
        _ => {
            report.step("scenarios", || Ok(skipped("there are no scenarios in hil-tests/tests")));
            return;
        }
    };
    report.step("scenarios on SQLite", || Suite { files: files.clone(), ..Suite::default() }.run());
    let on_postgres: Vec<String> = files.iter().filter(|file| ON_POSTGRES.contains(&file.as_str())).cloned().collect();
    if on_postgres.is_empty() {
        report.step("scenarios on Postgres", || Ok(skipped("no scenario is about the store")));
    } else {
        report.step("scenarios on Postgres", || {
            let postgres = Postgres::start()?;
            let mut suite = Suite { files: on_postgres, store: hil::Store::Postgres, ..Suite::default() };
            suite.environment.insert("TREFOIL_TEST_POSTGRES", postgres.url("postgres").into());
            suite.run()
        });
    }
    if let Some(agent) = esapi {
        let files = files.into_iter().filter(|file| !ANY_BACKEND.contains(&file.as_str())).collect();
        report.step("scenarios with tss-esapi", || Suite { files, agent: Some(agent), ..Suite::default() }.run());
    }
}

fn lints(report: &mut Report) {
    report.step("formatting", || done(tools::cargo(&["fmt", "--all", "--check"])));
    report.step("clippy", || done(tools::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])));
}

fn unit_tests() -> Command {
    let mut command = tools::cargo(&["test", "--workspace", "--exclude", "hil-tests", "--no-fail-fast"]);
    command.args(["--", "--show-output"]);
    command
}

fn dependencies() -> Result<Counts> {
    let there = || {
        let mut version = tools::cargo(&["deny", "--version"]);
        version.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !there() {
        eprintln!("installing cargo-deny (a few minutes, once) …");
        let _ = tools::run(&mut tools::cargo(&["install", "cargo-deny", "--locked", "--quiet"]));
        if !there() {
            return Ok(skipped("dependency policy: cargo-deny cannot be installed (no network?)"));
        }
    }
    done(tools::cargo(&["deny", "--workspace", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

fn done(mut command: Command) -> Result<Counts> {
    tools::run(&mut command).map(|()| Counts::PASSED)
}

fn skipped(why: &str) -> Counts {
    println!("skipped: {why}");
    Counts::SKIPPED
}

/// What the steps came to.
#[derive(Debug, Default)]
struct Report {
    total: Counts,
    failed: Vec<String>,
}

impl Report {
    /// Runs one step; `true` if nothing in it failed.
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<Counts>) -> bool {
        println!("\n== {name}");
        let begun = Instant::now();
        let counts = work().unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            Counts::FAILED
        });
        self.total += counts;
        if counts.failed > 0 {
            self.failed.push(name.to_owned());
        }
        println!("== {name}: {counts} ({:.0} s)", begun.elapsed().as_secs_f64());
        counts.failed == 0
    }

    /// Prints what failed and the closing line.
    fn close(self) -> ExitCode {
        println!();
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("{}", self.total);
        if self.total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
