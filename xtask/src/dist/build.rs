//! Builds the static agent so that the same sources give the same bytes, wherever they lie.

use std::env::consts::ARCH;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::tools;

/// The program.
pub(crate) const NAME: &str = "trefoil-agent";
/// Leaves out what a program that never unwinds has no use for.
const LINK_SCRIPT: &str = "agent-minimal/static.x";
/// What it is built for.
pub(crate) const ARCHES: [&str; 2] = ["x86_64", "aarch64"];

/// A Rust target that makes static programs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    /// The processor, as in [`ARCHES`].
    pub(crate) arch: &'static str,
    /// The target's name.
    pub(crate) triple: String,
    /// Whether its C library is musl: the build that is shipped and measured.
    pub(crate) is_musl: bool,
}

impl Target {
    /// The target for `arch`, its standard library installed: musl, or, for this machine's own kind only, glibc, and a
    /// line that says so. `None` if neither can be had.
    pub(crate) fn find(arch: &'static str) -> Option<Self> {
        let musl = format!("{arch}-unknown-linux-musl");
        if tools::ensure_rust_target(&musl) {
            return Some(Self { arch, triple: musl, is_musl: true });
        }
        if arch != ARCH {
            return None;
        }
        let gnu = format!("{arch}-unknown-linux-gnu");
        println!("the Rust target {musl} cannot be added; building for {gnu} with a static C library, which is larger");
        Some(Self { arch, triple: gnu, is_musl: false })
    }

    /// The largest page of memory that its kernels use, bytes.
    pub(crate) fn page_len(&self) -> u64 {
        if self.arch == "aarch64" { 65_536 } else { 4096 }
    }

    /// Whether its programs run on this machine.
    pub(crate) fn is_native(&self) -> bool {
        self.arch == ARCH
    }
}

/// Where sources are, and where what is built of them goes.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// The workspace's root.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target_dir: PathBuf,
    /// Keeps the names of functions in the program, to count its bytes by.
    pub(crate) symbols: bool,
}

impl Tree {
    /// This workspace and its target directory.
    pub(crate) fn here() -> Self {
        Self { root: tools::root().to_owned(), target_dir: tools::target_dir(), symbols: false }
    }

    /// Builds the agent and says where it is.
    ///
    /// Flags of the surroundings (`RUSTFLAGS`) are left out: they would change what is shipped. `SOURCE_DATE_EPOCH` is an
    /// input: the date before which the agent believes no clock.
    ///
    /// # Errors
    /// When it does not compile.
    pub(crate) fn agent(&self, target: &Target) -> Result<PathBuf> {
        let mut build = tools::cargo(&["build", "--profile", "agent", "--package", "agent-minimal", "--bin", NAME]);
        build.args(["--locked", "--target", &target.triple]);
        build.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target_dir);
        if self.symbols {
            build.args(["--config", "profile.agent.strip=false"]);
        }
        build.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", self.flags(target)?.join("\x1f"));
        tools::run(&mut build)?;
        Ok(self.target_dir.join(&target.triple).join("agent").join(NAME))
    }

    fn flags(&self, target: &Target) -> Result<Vec<String>> {
        let mut flags = Vec::new();
        // Of several that fit a path, the last counts: the general ones first.
        let mut remap = |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        remap(&self.root, "/trefoil");
        remap(&self.target_dir, "/target");
        let cargo_home = cargo_home().context("neither CARGO_HOME nor HOME says where cargo keeps crates")?;
        remap(&cargo_home, "/cargo");
        // One directory for each registry; its name depends on the mirror that is used.
        let registries = fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten();
        for registry in registries {
            remap(&registry?.path(), "/crates");
        }
        // Paths into the standard library read so where its sources are not installed.
        let (sysroot, commit) = compiler()?;
        remap(&sysroot.join("lib/rustlib/src/rust"), &format!("/rustc/{commit}"));
        if target.is_musl {
            // The toolchain's own linker, for every target: no C compiler is needed, and no version of one matters.
            flags.push("-Clinker=rust-lld".into());
            // Relative to the root, where the linker runs: flags take part in the names of symbols.
            flags.push(format!("-Clink-arg=-T{LINK_SCRIPT}"));
            flags.push("-Clink-arg=--no-eh-frame-hdr".into());
        } else {
            flags.push("-Ctarget-feature=+crt-static".into());
            // Without a file system there is no /dev/urandom to fall back to, so the system call is the only source.
            flags.push("--cfg=getrandom_backend=\"linux_getrandom\"".into());
        }
        Ok(flags)
    }
}

fn cargo_home() -> Option<PathBuf> {
    let named = env::var_os("CARGO_HOME").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

/// Where the compiler lives, and of which commit it is.
fn compiler() -> Result<(PathBuf, String)> {
    let ask = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("rustc").args(arguments).current_dir(tools::root()).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("rustc {}: {}", arguments.join(" "), output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    };
    let sysroot = ask(&["--print", "sysroot"]).context("asking rustc for its sysroot")?;
    let version = ask(&["-vV"]).context("asking rustc for its version")?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: ")).unwrap_or("unknown");
    Ok((PathBuf::from(sysroot.trim()), commit.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_special_path_is_remapped_last() {
        let tree = Tree { root: "/a".into(), target_dir: "/a/target".into(), symbols: false };
        let target = Target { arch: "aarch64", triple: "aarch64-unknown-linux-musl".into(), is_musl: true };
        let flags = tree.flags(&target).unwrap();
        let at = |start: &str| flags.iter().position(|flag| flag.starts_with(start)).unwrap();
        assert!(at("--remap-path-prefix=/a=/trefoil") < at("--remap-path-prefix=/a/target=/target"));
        assert!(flags.iter().any(|flag| flag.ends_with("=/cargo")));
        assert!(flags.contains(&"-Clinker=rust-lld".to_owned()));
        assert!(tools::root().join(LINK_SCRIPT).is_file());
        let glibc = Target { arch: ARCH, triple: "x86_64-unknown-linux-gnu".into(), is_musl: false };
        assert!(tree.flags(&glibc).unwrap().contains(&"-Ctarget-feature=+crt-static".to_owned()));
    }
}
