//! `cargo xtask package`: the Debian packages of agent and control plane, in `TARGET/dist`, looked into and installed for
//! a test.
//!
//! What is in them is in `[package.metadata.deb]` of the two crates and under `image/`; that they install, start nothing
//! and are what the manual says is asked by the scenarios of `hil-tests/tests/packages.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use hil_tests::apt;
use hil_tests::spawn;
use sha2::{Digest as _, Sha256};

use crate::dist;
use crate::hil::Suite;
use crate::tools::{self, Counts};

/// Builds the Debian packages of agent (amd64, arm64) and control plane into TARGET/dist, with sizes and hashes.
///
/// Needs cargo-deb, and installs it. The packages are then unpacked, installed into a copy of this system that nobody
/// else sees, and their units and the container recipe tried.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Only build them
    #[arg(long)]
    no_test: bool,
}

/// The scenarios about what is shipped; they need the packages, so that they have a step of their own.
pub(crate) const SCENARIOS: &str = "packages";

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    tools::run(Command::new(std::env::current_exe()?).arg("dist"))?;
    let counts = if arguments.no_test { build()?.map_or(Counts::SKIPPED, |_| Counts::PASSED) } else { check()? };
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the packages from what is in `TARGET/dist`, and runs the scenarios about them.
///
/// # Errors
/// When a package cannot be built; what the scenarios find is in the counts.
pub(crate) fn check() -> Result<Counts> {
    let mut counts = Counts::default();
    let mut suite = Suite { files: vec![SCENARIOS.into()], ..Suite::default() };
    suite.environment.insert("TREFOIL_AGENT_STATIC", dist::dir().join(AGENT).into());
    match build()? {
        Some(packages) => {
            counts += Counts::PASSED;
            suite.environment.insert("TREFOIL_PACKAGES", dist::dir().into());
            for package in &packages {
                lint(package)?;
            }
        }
        None => counts += Counts::SKIPPED,
    }
    counts += suite.run()?;
    Ok(counts)
}

/// Builds the packages; `None`, and a line that says why, without cargo-deb.
fn build() -> Result<Option<Vec<PathBuf>>> {
    if !ensure_cargo_deb() {
        println!("skipped: Debian packages: cargo-deb cannot be installed (no network?)");
        return Ok(None);
    }
    let released = release_time()?;
    // Of another version, they would be taken for what is made here.
    for entry in fs::read_dir(dist::dir())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            fs::remove_file(path)?;
        }
    }
    let mut packages = Vec::new();
    for (arch, target) in AGENT_TARGETS {
        let name = if arch == std::env::consts::ARCH { AGENT.to_owned() } else { format!("{AGENT}-{arch}") };
        let built = dist::dir().join(name);
        if !built.is_file() {
            println!("skipped: agent package for {arch}: {} is not there", built.display());
            continue;
        }
        // Where cargo-deb looks for it: what is shipped is what `dist` made, to the byte.
        put(&built, &tools::target_dir().join(target).join("agent").join(AGENT))?;
        packages.push(deb("agent-minimal", released, &["--profile", "agent", "--target", target, "--no-strip"])?);
    }
    let control_plane = dist::dir().join(CONTROL_PLANE);
    put(&control_plane, &tools::target_dir().join("release").join(CONTROL_PLANE))?;
    let man = tools::target_dir().join("release/man");
    // Pages of commands that are gone would be packaged too.
    if man.exists() {
        fs::remove_dir_all(&man)?;
    }
    let date = spawn::run(Command::new("date").args(["--utc", "+%F", "--date", &format!("@{released}")]))?;
    spawn::run(Command::new(&control_plane).arg("man").arg(&man).args(["--date", date.trim()]))?;
    let pages = fs::read_dir(&man)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    spawn::run(Command::new("gzip").args(["--best", "--no-name"]).args(pages))?;
    packages.push(deb("control-plane", released, &[])?);
    for package in &packages {
        let bytes = fs::read(package)?;
        println!("{:>12} bytes  {}  {}", bytes.len(), hex::encode(Sha256::digest(&bytes)), package.display());
    }
    Ok(Some(packages))
}

/// Runs cargo-deb for a crate whose program is built; gives the package's path.
fn deb(package: &str, released: u64, arguments: &[&str]) -> Result<PathBuf> {
    let mut command = tools::cargo(&["deb", "--no-build", "--quiet", "--package", package, "--output"]);
    command.arg(dist::dir().join("")).args(arguments);
    // Times of files in the package: the same package from the same files.
    command.env("SOURCE_DATE_EPOCH", released.to_string());
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo deb")?;
    ensure!(output.status.success(), "{}: {}", spawn::show(&command), output.status);
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    ensure!(path.is_file(), "cargo deb made no package: {}", path.display());
    // What a person would look at; fails for what is no package.
    spawn::run(Command::new("dpkg-deb").arg("--info").arg(&path))?;
    Ok(path)
}

/// Shows what lintian has to say; its errors fail, except those about what is meant so.
fn lint(package: &Path) -> Result<()> {
    if apt::find_program("lintian").is_none() {
        return Ok(());
    }
    let mut command = Command::new("lintian");
    command.args(["--no-cfg", "--allow-root", "--fail-on", "error", "--suppress-tags", &MEANT_SO.join(",")]);
    let output = command.arg(package).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    if !output.status.success() {
        bail!("lintian finds errors in {}\n{}", package.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// When the newest entry of the packages' change log was written, seconds since 1970.
fn release_time() -> Result<u64> {
    let path = tools::root().join("image/debian/changelog");
    let text = fs::read_to_string(&path)?;
    let date = trailer_date(&text).with_context(|| format!("{} has no date", path.display()))?;
    let seconds = spawn::run(Command::new("date").args(["--utc", "+%s", "--date", date]))?;
    seconds.trim().parse().with_context(|| format!("{date} is no date"))
}

/// The date of the first entry: ` -- NAME <MAIL>  DATE`.
fn trailer_date(changelog: &str) -> Option<&str> {
    changelog.lines().find_map(|line| line.strip_prefix(" -- ")?.split_once(">  ").map(|(_, date)| date))
}

/// Copies a file, unless it is there already: under a new name first, since the old one may be running.
fn put(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    fs::create_dir_all(to.parent().ok_or_else(|| anyhow!("{} has no directory", to.display()))?)?;
    let _ = fs::remove_file(to);
    fs::copy(from, to).with_context(|| format!("writing {}", to.display()))?;
    Ok(())
}

fn ensure_cargo_deb() -> bool {
    let there = || {
        let mut version = tools::cargo(&["deb", "--version"]);
        version.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !there() {
        eprintln!("installing cargo-deb (a few minutes, once) …");
        let _ = tools::run(&mut tools::cargo(&["install", "cargo-deb", "--locked", "--quiet"]));
    }
    there()
}

const AGENT: &str = "trefoil-agent";
const CONTROL_PLANE: &str = "trefoil";
/// Machines that there is an agent package for, and the targets that `dist` builds for them.
const AGENT_TARGETS: [(&str, &str); 2] =
    [("x86_64", "x86_64-unknown-linux-musl"), ("aarch64", "aarch64-unknown-linux-musl")];
/// Lintian tags about decisions: the agent depends on nothing and is static, so that it runs in an initramfs, and
/// position-independent; there is no bug to close, and no mail to write to.
const MEANT_SO: [&str; 6] = [
    "empty-field",
    "statically-linked-binary",
    "shared-library-lacks-prerequisites",
    "initial-upload-closes-no-bugs",
    "bogus-mail-host",
    "bogus-mail-host-in-debian-changelog",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_change_log_of_the_packages_begins_with_this_version() {
        let text = fs::read_to_string(tools::root().join("image/debian/changelog")).unwrap();
        assert!(text.starts_with(concat!("trefoil (", env!("CARGO_PKG_VERSION"), "-1) ")), "{text}");
        assert_eq!(
            trailer_date(" -- A <a@b>  Mon, 02 Nov 2026 09:00:00 +0000\n"),
            Some("Mon, 02 Nov 2026 09:00:00 +0000")
        );
        assert_eq!(trailer_date("trefoil\n"), None);
        assert!(release_time().unwrap() > 1_700_000_000);
    }
}
