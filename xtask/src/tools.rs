//! What several commands need: cargo and rustup as children, their output counted while it streams by.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fmt};

use anyhow::{Context, Result, bail};
use hil_tests::rig;

/// What ran, added up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// One thing that succeeded.
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    /// One thing that failed.
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    /// One thing that this machine cannot do.
    pub(crate) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Reads the output of `cargo test -- --show-output` line by line: adds up what the test binaries report, and says which
/// lines a person wants to see.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: Counts,
    /// Inside what passing tests printed.
    in_successes: bool,
    /// The test whose output this is has said that it skipped something.
    test_skipped: bool,
    /// Tests that libtest counts as passed and that skipped something.
    not_passed: u64,
}

impl Tally {
    /// Takes a line; `true` if it should be shown. Of what passing tests print only the `skipped: …` lines are.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.in_successes = false;
            self.test_skipped = false;
            let (passed, failed, ignored) = read_result(result);
            self.counts.passed += passed;
            self.counts.failed += failed;
            self.counts.skipped += ignored;
            return true;
        }
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ => {}
        }
        if line.starts_with("---- ") && line.ends_with(" ----") {
            self.test_skipped = false;
        }
        if line.starts_with("skipped: ") {
            self.counts.skipped += 1;
            if self.in_successes && !self.test_skipped {
                // libtest will count it among the passed; it did not do all of its work.
                self.test_skipped = true;
                self.not_passed += 1;
            }
            return true;
        }
        !self.in_successes
    }

    /// What was counted, given whether the command itself succeeded: one that failed without a failed test (it did not
    /// compile, a test binary crashed) is one failure.
    pub(crate) fn finish(self, success: bool) -> Counts {
        let mut counts = self.counts;
        counts.passed = counts.passed.saturating_sub(self.not_passed);
        if !success && counts.failed == 0 {
            counts.failed = 1;
        }
        counts
    }
}

/// `ok. 9 passed; 0 failed; 1 ignored; …` as (passed, failed, ignored).
fn read_result(text: &str) -> (u64, u64, u64) {
    let number = |what: &str| {
        let part = text.split([';', '.']).map(str::trim).find(|part| part.ends_with(what));
        part.and_then(|part| part.split(' ').next()).and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    (number(" passed"), number(" failed"), number(" ignored"))
}

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's target directory.
pub(crate) fn target_dir() -> PathBuf {
    rig::target_dir()
}

/// The cargo that runs us, in the workspace, with the target directory that the harness looks into and no input.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.args(arguments).current_dir(root()).env("CARGO_TARGET_DIR", target_dir()).stdin(Stdio::null());
    // What cargo sets for xtask itself must not reach build scripts as if it were theirs.
    for (name, _) in env::vars_os() {
        let inherited = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"].contains(&name)
        });
        if inherited {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command, its output where the person sees it.
///
/// # Errors
/// When it cannot be run or does not succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = hil_tests::spawn::show(command);
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a `cargo test`, showing and counting its output.
///
/// # Errors
/// When it cannot be run; that tests fail is in the counts.
pub(crate) fn run_tests(command: &mut Command) -> Result<Counts> {
    count_tests(command, |line| println!("{line}"))
}

/// As [`run_tests`]; what a person wants to see is given to `show`, line by line.
///
/// # Errors
/// As [`run_tests`].
pub(crate) fn count_tests(command: &mut Command, mut show: impl FnMut(&str)) -> Result<Counts> {
    let shown = hil_tests::spawn::show(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {shown}"))?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            if tally.line(text) {
                show(text);
            }
            line.clear();
        }
    }
    let success = child.wait()?.success();
    Ok(tally.finish(success))
}

/// Makes sure that the toolchain has a target; `false` if it has not and cannot get it (no rustup, no network).
pub(crate) fn ensure_rust_target(target: &str) -> bool {
    if rust_targets().contains(target) {
        return true;
    }
    eprintln!("adding the Rust target {target} …");
    let added = Command::new("rustup")
        .args(["target", "add", target])
        .current_dir(root())
        .stdin(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    added && rust_targets().contains(target)
}

/// The targets whose standard (or core) library is installed: also where there is no rustup.
fn rust_targets() -> BTreeSet<String> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()).output();
    let Ok(output) = sysroot else { return BTreeSet::new() };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Ok(entries) = std::fs::read_dir(sysroot.join("lib/rustlib")) else { return BTreeSet::new() };
    entries
        .flatten()
        .filter(|entry| entry.path().join("lib").is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &str, success: bool) -> (Counts, Vec<&str>) {
        let mut tally = Tally::default();
        let shown = lines.lines().filter(|line| tally.line(line)).collect();
        (tally.finish(success), shown)
    }

    #[test]
    fn results_of_several_binaries_add_up() {
        let (counts, _) = tally(
            "test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.39s\n\
             test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.00s",
            false,
        );
        assert_eq!(counts, Counts { passed: 11, failed: 3, skipped: 1 });
    }

    #[test]
    fn a_test_that_skipped_its_work_is_not_counted_as_passed() {
        let (counts, shown) = tally(
            "test a ... ok\n\nsuccesses:\n\n---- a stdout ----\nchatter\nskipped: no TPM\nskipped: no disk\n\n\
             successes:\n    a\n\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured",
            true,
        );
        assert_eq!(counts, Counts { passed: 1, failed: 0, skipped: 2 });
        assert!(shown.contains(&"skipped: no TPM") && !shown.contains(&"chatter"));
    }

    #[test]
    fn what_does_not_compile_is_one_failure() {
        assert_eq!(tally("", false).0, Counts::FAILED);
        assert_eq!(tally("", true).0, Counts::default());
    }

    #[test]
    fn the_closing_line_is_plain() {
        assert_eq!(Counts { passed: 3, failed: 0, skipped: 1 }.to_string(), "3 passed, 0 failed, 1 skipped");
    }
}
