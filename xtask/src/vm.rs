//! `cargo xtask vm`: the static agent in an initramfs, on whole machines under QEMU whose firmware and kernel measure.

use std::env;
use std::env::consts::ARCH;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, bail};
use clap::Args;
use hil_tests::apt::{self, Tool};
use hil_tests::vm::TOOLS;

use crate::tools::{self, Counts};
use crate::{dist, hil};

/// Boots machines under QEMU (OVMF, swtpm, Debian's kernel, IMA on) with the static agent, and attests them.
///
/// Good boots get their payload; other command lines, initramfs files, firmware settings and programs are refused with
/// the event named. Everything is emulated, without KVM; two machines run side by side.
///
/// Examples:
///   cargo xtask vm --list                          what there is
///   cargo xtask vm                                 all of it
///   cargo xtask vm --scenario secure_boot          those whose name contains this
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Only scenarios whose name contains NAME
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Leaves the machines' directories (consoles, disks, control plane) for a person to look at; the next run removes
    /// them
    #[arg(long)]
    keep: bool,
    /// Prints the scenarios' names and runs none
    #[arg(long)]
    list: bool,
}

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        return list();
    }
    let mut tools = vec![Tool::CCompiler, Tool::Sbsign, Tool::Mtools, Tool::Mmdebstrap];
    tools.extend(TOOLS);
    apt::ensure(&tools)?;
    hil::build_programs()?;
    let counts = scenarios(arguments.scenario.as_deref(), arguments.keep)?;
    if arguments.keep {
        println!("kept: {}, and what else begins so", env::temp_dir().join("trefoil-scratch-*-vm").display());
    }
    println!("{counts}");
    if counts.passed + counts.failed + counts.skipped == 0 {
        bail!("no scenario has that in its name; cargo xtask vm --list prints them");
    }
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the static agent and runs the scenarios with it; both programs have been built.
///
/// # Errors
/// When the agent does not compile or cargo cannot be run; failures are in the counts.
pub(crate) fn scenarios(filter: Option<&str>, keep: bool) -> Result<Counts> {
    if ARCH != "x86_64" {
        println!("skipped: whole machines are x86-64 ones, with this machine's own agent and busybox in them");
        return Ok(Counts::SKIPPED);
    }
    let agent = dist::agent()?;
    let mut command = test();
    command.args(["--no-fail-fast", "--"]).args(filter).args(["--show-output", "--test-threads", "2"]);
    command.env("TREFOIL_AGENT_STATIC", &agent.path);
    if env::var_os("TREFOIL_BIN_DIR").is_none() {
        command.env("TREFOIL_BIN_DIR", tools::target_dir().join("debug"));
    }
    if keep {
        command.env("TREFOIL_KEEP", "1");
    }
    tools::run_tests(&mut command)
}

/// The scenarios' file in `hil-tests/tests`, without `.rs`.
pub(crate) const FILE: &str = "vm";

fn test() -> Command {
    tools::cargo(&["test", "--package", "hil-tests", "--test", FILE])
}

fn list() -> Result<ExitCode> {
    let output = test().args(["--quiet", "--", "--list"]).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("hil-tests/tests/{FILE}.rs does not compile");
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(name) = line.strip_suffix(": test") {
            println!("{name}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
