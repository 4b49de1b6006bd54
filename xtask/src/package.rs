//! `cargo xtask package`: the Debian packages of agent and control plane, in `TARGET/dist`, looked into and installed for
//! a test.
//!
//! What is in them is in `[package.metadata.deb]` of the two crates and under `image/`; that they install, start nothing
//! and are what the manual says is asked by the scenarios of `hil-tests/tests/packages.rs`.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use hil_tests::apt::{self, Tool};
use hil_tests::spawn;
use sha2::{Digest as _, Sha256};

use crate::dist;
use crate::hil::{self, Suite};
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
    /// What `cargo xtask test` does: the control plane without optimisations, the agent as `dist` last left it, packages
    /// in TARGET/package/tried
    #[arg(long, conflicts_with = "no_test")]
    quick: bool,
}

/// The scenarios about what is shipped; they need the packages, so that they have a step of their own.
pub(crate) const SCENARIOS: &str = "packages";

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    apt::ensure(&TOOLS)?;
    if !arguments.quick {
        tools::run(Command::new(std::env::current_exe()?).arg("dist"))?;
    }
    let what = What { control_plane: dist::dir().join(CONTROL_PLANE), to: dist::dir(), fast: false };
    let counts = if arguments.no_test {
        build(&what)?.map_or(Counts::SKIPPED, |_| Counts::PASSED)
    } else {
        hil::build_programs()?;
        if arguments.quick { check()? } else { try_out(&what)? }
    };
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The step of `cargo xtask test`: packages of the agent in `TARGET/dist` and of the control plane as it was built for
/// the tests, and the scenarios about them.
///
/// # Errors
/// When a package cannot be built; what the scenarios find is in the counts.
pub(crate) fn check() -> Result<Counts> {
    let to = staging().join("tried");
    fs::create_dir_all(&to)?;
    try_out(&What { control_plane: tools::target_dir().join("debug").join(CONTROL_PLANE), to, fast: true })
}

/// What is packed.
struct What {
    control_plane: PathBuf,
    /// The packages' directory.
    to: PathBuf,
    /// Whether time counts more than size.
    fast: bool,
}

fn try_out(what: &What) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut suite = Suite { files: vec![SCENARIOS.into()], ..Suite::default() };
    suite.environment.insert("TREFOIL_AGENT_STATIC", dist::dir().join(AGENT).into());
    match build(what)? {
        Some(packages) => {
            counts += Counts::PASSED;
            suite.environment.insert("TREFOIL_PACKAGES", what.to.clone().into());
            for package in &packages {
                lint(package)?;
            }
        }
        None => counts += Counts::SKIPPED,
    }
    counts += units()?;
    counts += suite.run()?;
    Ok(counts)
}

/// Builds the packages; `None`, and a line that says why, without cargo-deb.
fn build(what: &What) -> Result<Option<Vec<PathBuf>>> {
    if !ensure_cargo_deb() {
        println!("skipped: Debian packages: cargo-deb cannot be installed (no network?)");
        return Ok(None);
    }
    let released = release_time()?;
    // Of another version, they would be taken for what is made here.
    for entry in fs::read_dir(&what.to)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            fs::remove_file(path)?;
        }
    }
    let mut packages = Vec::new();
    for (arch, target) in AGENT_TARGETS {
        let name = if arch == ARCH { AGENT.to_owned() } else { format!("{AGENT}-{arch}") };
        let built = dist::dir().join(name);
        if !built.is_file() {
            println!("skipped: agent package for {arch}: {} is not there", built.display());
            continue;
        }
        // What is shipped is what `dist` made, to the byte.
        put(&built, &staging().join(target).join("agent").join(AGENT))?;
        packages.push(deb("agent-minimal", what, released, &["--profile", "agent", "--target", target, "--no-strip"])?);
    }
    put(&what.control_plane, &staging().join("release").join(CONTROL_PLANE))?;
    manual(&what.control_plane, released)?;
    packages.push(deb("control-plane", what, released, &[])?);
    for package in &packages {
        let bytes = fs::read(package)?;
        println!("{:>12} bytes  {}  {}", bytes.len(), hex::encode(Sha256::digest(&bytes)), package.display());
    }
    Ok(Some(packages))
}

/// Where cargo-deb finds programs and pages: a target directory that no build writes to.
fn staging() -> PathBuf {
    tools::target_dir().join("package")
}

/// Has the control plane write its manual pages.
fn manual(program: &Path, released: u64) -> Result<()> {
    let dir = staging().join("release/man");
    // Pages of commands that are gone would be packaged too.
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let date = spawn::run(Command::new("date").args(["--utc", "+%F", "--date", &format!("@{released}")]))?;
    spawn::run(Command::new(program).arg("man").arg(&dir).args(["--date", date.trim()]))?;
    let pages = fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    spawn::run(Command::new("gzip").args(["--best", "--no-name"]).args(pages))?;
    Ok(())
}

/// Runs cargo-deb for a crate whose program is staged; gives the package's path.
fn deb(package: &str, what: &What, released: u64, arguments: &[&str]) -> Result<PathBuf> {
    let mut command = tools::cargo(&["deb", "--no-build", "--quiet", "--package", package]);
    // A directory is told from a file by its last sign.
    command.arg("--output").arg(what.to.join("")).args(arguments).args(what.fast.then_some("--fast"));
    // Times of files in the package: the same package from the same files.
    command.env("CARGO_TARGET_DIR", staging()).env("SOURCE_DATE_EPOCH", released.to_string());
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo deb")?;
    ensure!(output.status.success(), "{}: {}", spawn::show(&command), output.status);
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    ensure!(path.is_file(), "cargo deb made no package: {}", path.display());
    // What a person would look at; fails for what is no package.
    spawn::run(Command::new("dpkg-deb").arg("--info").arg(&path))?;
    Ok(path)
}

/// Prints how exposed the services are by systemd's own measure (0 to 10), and fails above their bounds.
fn units() -> Result<Counts> {
    if apt::find_program("systemd-analyze").is_none() {
        println!("skipped: exposure of the units: systemd-analyze is not installed");
        return Ok(Counts::SKIPPED);
    }
    let mut counts = Counts::PASSED;
    for (unit, bound) in EXPOSURE {
        let path = tools::root().join("image/systemd").join(unit);
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager"]).arg(path);
        let said = spawn::run(&mut command)?;
        let exposure = exposure(&said).with_context(|| format!("systemd-analyze said: {said}"))?;
        println!("{unit}: exposure {exposure} (bound {bound})");
        if exposure > bound {
            counts = Counts::FAILED;
        }
    }
    Ok(counts)
}

/// The number in `→ Overall exposure level for x.service: 2.5 OK`.
fn exposure(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains("Overall exposure level"))?;
    line.rsplit_once(": ")?.1.split_whitespace().next()?.parse().ok()
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

/// What building and trying takes; lintian is used where it is.
const TOOLS: [Tool; 5] = [Tool::CCompiler, Tool::Swtpm, Tool::Tpm2Tools, Tool::Strace, Tool::Systemd];
const AGENT: &str = "trefoil-agent";
const CONTROL_PLANE: &str = "trefoil";
/// How exposed the services may be. The agent's part is that it is root, reaches a device and the network.
const EXPOSURE: [(&str, f64); 2] = [("trefoil-agent.service", 3.0), ("trefoil.service", 2.0)];
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
    fn exposure_is_read_from_the_last_line() {
        let said = "✗ PrivateNetwork=  …  0.5\n\n→ Overall exposure level for trefoil.service: 1.1 OK 🙂\n";
        assert_eq!(exposure(said), Some(1.1));
        assert_eq!(exposure("nothing"), None);
    }

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
