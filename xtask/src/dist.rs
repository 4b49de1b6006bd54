//! `cargo xtask dist`: the static agent and the control plane's binary, in `TARGET/dist`.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hil_tests::scratch::Scratch;
use hil_tests::{apt, spawn, sys};

use crate::tools;

/// Builds what is shipped, the static agent and the control plane, into TARGET/dist, with sizes.
///
/// The agent is one static file, built for musl (or, where that target cannot be had, for glibc), and proves it by
/// running in an empty root directory. The control plane, `trefoil`, is server and command line in one.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Only the agent
    #[arg(long)]
    agent_only: bool,
}

/// What the agent may weigh on the musl target, bytes: it lives in every initramfs.
const MAX_AGENT_LEN: u64 = 800_000;

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut built = vec![agent()?.path];
    if !arguments.agent_only {
        built.push(control_plane()?);
    }
    for path in &built {
        println!("{:>12} bytes  {}", fs::metadata(path)?.len(), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// A built agent.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// In `TARGET/dist`.
    pub(crate) path: PathBuf,
    /// Bytes.
    pub(crate) len: u64,
    /// Whether it is the build that is measured: musl, which carries less of a C library.
    pub(crate) is_musl: bool,
}

/// Builds the static agent, checks that it is static, and copies it to `TARGET/dist`.
///
/// # Errors
/// When it does not compile, or is not static.
pub(crate) fn agent() -> Result<Agent> {
    let musl = format!("{ARCH}-unknown-linux-musl");
    let gnu = format!("{ARCH}-unknown-linux-gnu");
    let is_musl = tools::ensure_rust_target(&musl);
    let target = if is_musl {
        &musl
    } else {
        println!("the Rust target {musl} cannot be added; building for {gnu} with a static C library, which is larger");
        &gnu
    };
    let mut build = tools::cargo(&["build", "--profile", "agent", "--package", "agent-minimal", "--bin", NAME]);
    build.args(["--target", target]);
    let variable = |what: &str| format!("CARGO_TARGET_{}_{what}", target.to_uppercase().replace('-', "_"));
    if !is_musl {
        // Without a file system there is no /dev/urandom to fall back to, so the system call is the only source.
        let flags = "-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"";
        build.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env(variable("RUSTFLAGS"), flags);
    } else if ARCH == "aarch64" {
        build.env(variable("LINKER"), "rust-lld");
    }
    tools::run(&mut build)?;
    let built = tools::target_dir().join(target).join("agent").join(NAME);
    check_static(&built)?;
    let path = to_dist(&built)?;
    let len = fs::metadata(&path)?.len();
    Ok(Agent { path, len, is_musl })
}

/// Builds the agent and compares its size with what it may weigh.
///
/// # Errors
/// As [`agent`]; also when it is too large.
pub(crate) fn check_agent() -> Result<()> {
    let agent = agent()?;
    println!("{} bytes (limit {MAX_AGENT_LEN})  {}", agent.len, agent.path.display());
    if agent.is_musl && agent.len > MAX_AGENT_LEN {
        bail!("the agent has {} bytes, {} more than it may", agent.len, agent.len - MAX_AGENT_LEN);
    }
    Ok(())
}

/// Builds the control plane with optimisations and copies it to `TARGET/dist`.
///
/// # Errors
/// When it does not compile.
pub(crate) fn control_plane() -> Result<PathBuf> {
    apt::ensure(&[apt::Tool::CCompiler])?;
    tools::run(&mut tools::cargo(&["build", "--release", "--package", "control-plane", "--bin", "trefoil"]))?;
    to_dist(&tools::target_dir().join("release/trefoil"))
}

/// Where finished programs are.
pub(crate) fn dir() -> PathBuf {
    tools::target_dir().join("dist")
}

fn to_dist(built: &Path) -> Result<PathBuf> {
    let dir = dir();
    fs::create_dir_all(&dir)?;
    let path = dir.join(built.file_name().unwrap_or_default());
    // A new file: the old one may be running.
    let _ = fs::remove_file(&path);
    fs::copy(built, &path).with_context(|| format!("copying {}", built.display()))?;
    Ok(path)
}

/// Asks for no interpreter, and runs where there is no file but itself.
fn check_static(path: &Path) -> Result<()> {
    if has_interpreter(&fs::read(path)?)? {
        bail!("{} is not static: it names a dynamic loader", path.display());
    }
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
    command.arg(&empty).arg(format!("/{NAME}")).arg("--version");
    match spawn::run(&mut command) {
        Ok(version) => {
            println!("static: {} runs in an empty root directory", version.trim());
            Ok(())
        }
        Err(_) if !sys::is_root() => {
            println!("skipped: running the agent in an empty root directory takes root or user namespaces");
            Ok(())
        }
        Err(error) => Err(error.context("the agent does not run in an empty root directory")),
    }
}

/// Whether an ELF file (64 bits, little-endian) has a PT_INTERP segment.
fn has_interpreter(file: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let malformed = || anyhow!("not a 64-bit little-endian ELF file");
    if file.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return Err(malformed());
    }
    let bytes = |at: usize, len: usize| file.get(at..at.checked_add(len)?);
    let u16_at = |at: usize| bytes(at, 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let u32_at = |at: usize| bytes(at, 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |at: usize| bytes(at, 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let table = u64_at(0x20).and_then(|at| usize::try_from(at).ok()).ok_or_else(malformed)?;
    let entry_len = usize::from(u16_at(0x36).ok_or_else(malformed)?);
    let count = usize::from(u16_at(0x38).ok_or_else(malformed)?);
    for index in 0..count {
        let at = index.checked_mul(entry_len).and_then(|offset| table.checked_add(offset)).ok_or_else(malformed)?;
        if u32_at(at).ok_or_else(malformed)? == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

const NAME: &str = "trefoil-agent";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_seen_to_be_one() {
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&this).unwrap());
        assert!(has_interpreter(&this[..0x38]).is_err());
        assert!(has_interpreter(b"#!/bin/sh\n").is_err());
    }
}
