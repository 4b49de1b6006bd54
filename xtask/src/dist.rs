//! `cargo xtask dist`: the static agent for both processors and the control plane's binary, in `TARGET/dist`, with what
//! the agent weighs and needs beside its budget.

mod bare;
mod build;
mod elf;
mod measure;
mod reproducible;
mod sizes;

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use hil_tests::apt::Tool;
use hil_tests::scratch::Scratch;
use hil_tests::{apt, spawn, sys};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::build::{ARCHES, NAME, Target, Tree};
use self::elf::Elf;
use self::measure::Measured;
use crate::tools::{self, Counts};

pub(crate) use self::bare::check as check_bare;

/// Builds what is shipped, the static agent and the control plane, into TARGET/dist, with sizes.
///
/// The agent is one static file for each of x86_64 and aarch64, built for musl (or, where that target cannot be had, for
/// glibc), and proves it by running in an empty root directory: the other machine's under qemu-user, where that is
/// installed. The control plane, `trefoil`, is server and command line in one.
///
/// Then the agent is measured on an emulated TPM: memory while it fetches a payload of 16 MiB, CPU time of an
/// attestation. Exit 1 if anything is over its budget.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Only the agent, and only its size
    #[arg(long)]
    agent_only: bool,
    /// Writes the agent's figures to FILE as one JSON object
    #[arg(long, value_name = "FILE", conflicts_with = "agent_only")]
    json: Option<PathBuf>,
    /// Prints what the agent's size is made of, and builds nothing else
    #[arg(long, conflicts_with_all = ["agent_only", "json"])]
    sizes: bool,
    /// Builds the agent once more, from a copy of the sources elsewhere, and compares; builds nothing else
    #[arg(long, conflicts_with_all = ["agent_only", "json", "sizes"])]
    check_reproducible: bool,
}

/// What the agent may weigh on the musl targets, bytes: it lives in every initramfs.
const MAX_AGENT_LEN: u64 = 800_000;

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.sizes {
        return sizes::run().map(|()| ExitCode::SUCCESS);
    }
    if arguments.check_reproducible {
        return reproducible::check().map(|counts| exit(counts.failed == 0));
    }
    let agents = agents()?;
    let mut kept = true;
    if !arguments.agent_only {
        let control_plane = control_plane()?;
        println!("{:>12} bytes  {}", fs::metadata(&control_plane)?.len(), control_plane.display());
        let measured = match apt::ensure(&MEASURED_WITH) {
            Ok(()) => Some(measure::run(&native(&agents)?.path, &control_plane).context("measuring the agent")?),
            Err(why) if arguments.json.is_some() => return Err(why.context("measuring the agent")),
            Err(why) => {
                println!("skipped: measuring the agent: {}", one_line(&why));
                None
            }
        };
        if let Some(measured) = &measured {
            kept &= measured.print();
            bootstrap_others(&agents, &control_plane)?;
        }
        if let (Some(file), Some(measured)) = (&arguments.json, &measured) {
            let text = serde_json::to_string_pretty(&figures(&agents, measured))?;
            fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    for agent in &agents {
        kept &= agent.print();
    }
    Ok(exit(kept))
}

/// What `cargo xtask test` asks of the static agent: both build, are static, keep to their budgets, and get a node its
/// payload. `control_plane` is the server to try them with.
///
/// # Errors
/// When something does not compile or run.
pub(crate) fn check(control_plane: &Path) -> Result<Counts> {
    let agents = agents()?;
    let mut counts = Counts::default();
    let mut add = |kept: bool| counts += if kept { Counts::PASSED } else { Counts::FAILED };
    for agent in &agents {
        add(agent.print());
    }
    add(measure::run(&native(&agents)?.path, control_plane).context("measuring the agent")?.print());
    counts += bootstrap_others(&agents, control_plane)?;
    Ok(counts)
}

/// A node's bootstrap with each agent that this machine has to emulate.
fn bootstrap_others(agents: &[Agent], control_plane: &Path) -> Result<Counts> {
    let mut counts = Counts::default();
    for arch in ARCHES.into_iter().filter(|&arch| arch != ARCH) {
        counts += match agents.iter().find(|agent| agent.target.arch == arch) {
            // That it was not built has been said.
            None => Counts::SKIPPED,
            Some(agent) => measure::bootstrap_emulated(agent, control_plane)
                .with_context(|| format!("the agent for {arch} under qemu-user"))?,
        };
    }
    Ok(counts)
}

/// Two builds in two directories, for `cargo xtask test`.
///
/// # Errors
/// When one does not compile.
pub(crate) fn check_reproducible() -> Result<Counts> {
    reproducible::check()
}

/// A built agent, in `TARGET/dist`.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// `TARGET/dist/trefoil-agent-ARCH`.
    pub(crate) path: PathBuf,
    /// Bytes.
    pub(crate) len: u64,
    /// What it was built for.
    pub(crate) target: Target,
    sha256: String,
}

impl Agent {
    /// Prints its size beside the budget, with its digest; whether it keeps to it.
    fn print(&self) -> bool {
        let Self { path, len, sha256, target } = self;
        // Only the build that is shipped has a budget: glibc is larger.
        let kept = !target.is_musl || *len <= MAX_AGENT_LEN;
        println!("{len:>12} bytes  {}", path.display());
        println!("{:>12} sha256 {sha256}", "");
        if !kept {
            println!("MISSED: the agent for {} has {} bytes more than it may", target.arch, len - MAX_AGENT_LEN);
        }
        kept
    }
}

/// Builds the static agent for this machine, checks that it is static, and copies it to `TARGET/dist/trefoil-agent` (and
/// to its name with the processor).
///
/// # Errors
/// When it does not compile, or is not static.
pub(crate) fn agent() -> Result<Agent> {
    let arch = ARCHES.into_iter().find(|&arch| arch == ARCH);
    let arch =
        arch.with_context(|| format!("the agent is built for x86_64 and aarch64, and this machine is {ARCH}"))?;
    let agent = agent_for(arch)?.context("the Rust toolchain has no target that makes static programs")?;
    copy(&agent.path, &dir().join(NAME))?;
    Ok(agent)
}

/// Builds the static agent for one of [`ARCHES`] and copies it to `TARGET/dist/trefoil-agent-ARCH`. `None` where that
/// target cannot be had, with a line that says so.
///
/// # Errors
/// As [`agent`].
pub(crate) fn agent_for(arch: &'static str) -> Result<Option<Agent>> {
    let Some(target) = Target::find(arch) else {
        println!("skipped: the agent for {arch}: its Rust target cannot be added (no rustup, or no network)");
        return Ok(None);
    };
    let built = Tree::here().agent(&target)?;
    check_static(&built, &target)?;
    let path = dir().join(format!("{NAME}-{arch}"));
    copy(&built, &path)?;
    let file = fs::read(&path)?;
    Ok(Some(Agent { path, len: file.len() as u64, target, sha256: hex::encode(Sha256::digest(&file)) }))
}

/// This machine's agent first.
fn agents() -> Result<Vec<Agent>> {
    let mut agents = vec![agent()?];
    for arch in ARCHES.into_iter().filter(|&arch| arch != ARCH) {
        agents.extend(agent_for(arch)?);
    }
    Ok(agents)
}

fn native(agents: &[Agent]) -> Result<&Agent> {
    agents.iter().find(|agent| agent.target.is_native()).context("no agent for this machine")
}

/// Builds the control plane with optimisations and copies it to `TARGET/dist`.
///
/// # Errors
/// When it does not compile.
pub(crate) fn control_plane() -> Result<PathBuf> {
    apt::ensure(&[Tool::CCompiler])?;
    tools::run(&mut tools::cargo(&["build", "--release", "--package", "control-plane", "--bin", "trefoil"]))?;
    let path = dir().join("trefoil");
    copy(&tools::target_dir().join("release/trefoil"), &path)?;
    Ok(path)
}

/// Where finished programs are.
pub(crate) fn dir() -> PathBuf {
    tools::target_dir().join("dist")
}

fn copy(built: &Path, path: &Path) -> Result<()> {
    fs::create_dir_all(dir())?;
    // A new file: the old one may be running.
    let _ = fs::remove_file(path);
    fs::copy(built, path).with_context(|| format!("copying {}", built.display()))?;
    Ok(())
}

fn figures(agents: &[Agent], measured: &Measured) -> Value {
    let mut all = Map::new();
    for agent in agents {
        let mut figures = Map::from_iter([("agent_bytes".to_owned(), json!(agent.len))]);
        if agent.target.is_native() {
            figures.extend(measured.json());
        }
        all.insert(agent.target.triple.clone(), Value::Object(figures));
    }
    Value::Object(all)
}

/// Asks for no interpreter and no library, and runs where there is no file but itself.
fn check_static(path: &Path, target: &Target) -> Result<()> {
    let elf = Elf::parse(&fs::read(path)?)?;
    if !elf.is_static() {
        bail!("{} is not static: it names a dynamic loader or a library", path.display());
    }
    // The compiler makes no such programs for aarch64-unknown-linux-musl.
    if target.arch == "x86_64" && !elf.is_position_independent() {
        bail!("{} is not position-independent: it would lie at the same addresses in each boot", path.display());
    }
    if !elf.is_laid_out_for(target.page_len()) {
        bail!("{}: a page of memory would hold parts with different rights", path.display());
    }
    let emulator = if target.is_native() {
        None
    } else {
        match measure::emulator(target.arch) {
            Some(emulator) => Some(emulator),
            None => {
                println!("skipped: running the agent for {}: qemu-user is not installed", target.arch);
                return Ok(());
            }
        }
    };
    let scratch = Scratch::new("chroot")?;
    let empty = scratch.path().join("root");
    fs::create_dir(&empty)?;
    fs::copy(path, empty.join(NAME))?;
    let mut command = if sys::is_root() {
        Command::new("chroot")
    } else {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "chroot"]);
        unshare
    };
    command.arg(&empty);
    if let Some(emulator) = &emulator {
        // Static, as Debian makes it.
        fs::copy(emulator, empty.join("emulator"))?;
        command.arg("/emulator");
    }
    command.arg(format!("/{NAME}")).arg("--version");
    match spawn::run(&mut command) {
        Ok(version) => {
            let how = if emulator.is_some() { " under qemu-user" } else { "" };
            println!("static: {} ({}) runs in an empty root directory{how}", version.trim(), target.arch);
            Ok(())
        }
        Err(_) if !sys::is_root() => {
            println!("skipped: running the agent in an empty root directory takes root or user namespaces");
            Ok(())
        }
        Err(error) => Err(error.context("the agent does not run in an empty root directory")),
    }
}

fn exit(kept: bool) -> ExitCode {
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// What measuring takes besides our own programs.
const MEASURED_WITH: [Tool; 3] = [Tool::Swtpm, Tool::Tpm2Tools, Tool::Openssl];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_time_are_told_of_this_machines_own_kind_only() {
        let agent = |arch: &'static str, len| Agent {
            path: PathBuf::new(),
            len,
            target: Target { arch, triple: format!("{arch}-unknown-linux-musl"), is_musl: true },
            sha256: String::new(),
        };
        let agents = ARCHES.map(|arch| agent(arch, 7));
        let measured = Measured::default();
        let told = figures(&agents, &measured);
        for arch in ARCHES {
            let figures = told[format!("{arch}-unknown-linux-musl")].as_object().unwrap();
            assert_eq!(figures["agent_bytes"], 7);
            assert_eq!(figures.contains_key("agent_peak_rss_kb"), arch == ARCH, "{told}");
            assert_eq!(figures.contains_key("agent_cpu_ms_per_attestation"), arch == ARCH, "{told}");
            assert_eq!(figures.len(), if arch == ARCH { 3 } else { 1 });
        }
    }

    #[test]
    fn an_agent_over_its_budget_is_told_apart() {
        let target = Target { arch: ARCHES[0], triple: String::new(), is_musl: true };
        let mut agent = Agent { path: PathBuf::new(), len: MAX_AGENT_LEN, target, sha256: String::new() };
        assert!(agent.print());
        agent.len += 1;
        assert!(!agent.print());
    }
}
