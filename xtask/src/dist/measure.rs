//! The agent at work, measured: on an emulated TPM, against a real control plane. Memory of the worker while it fetches a
//! large payload, CPU time of an attestation; and, for the other processor, whether it gets there at all.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hil_tests::apt;
use hil_tests::rig::{NodeAdd, Options, Rig, Store};
use hil_tests::scratch::Scratch;
use hil_tests::spawn::{self, Launch, Program, Step};
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use serde_json::{Value, json};

use super::Agent;
use super::build::NAME;
use crate::tools::Counts;

/// What the worker may have in memory at any time, kB (VmHWM), the program's own pages included.
const MAX_PEAK_KB: u64 = 1000;
/// What of it may be anonymous, kB: its stack and heap, which no other process shares.
const MAX_ANONYMOUS_KB: u64 = 300;
/// The payload while memory is watched: large enough that holding it, or a tenth of it, would show.
const PAYLOAD_FILES: usize = 16;
const PAYLOAD_FILE_LEN: usize = 1 << 20;
/// Over so many attestations CPU time is averaged.
const ROUNDS: usize = 200;
/// As often as the control plane challenges.
const INTERVAL: &str = "100ms";
/// Longer than any of it takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What an agent needed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// The worker's peak resident memory, kB.
    peak_kb: u64,
    /// The most of it that was anonymous, kB.
    anonymous_kb: u64,
    /// CPU time of an attestation, milliseconds.
    cpu_ms: f64,
    /// How many attestations that is the mean of.
    rounds: usize,
}

impl Measured {
    /// Prints the figures beside their budgets; whether they keep to them.
    pub(crate) fn print(&self) -> bool {
        let Self { peak_kb, anonymous_kb, cpu_ms, rounds } = *self;
        let verdict = |kept: bool| if kept { "" } else { "  MISSED" };
        let (peak, anonymous) = (peak_kb <= MAX_PEAK_KB, anonymous_kb <= MAX_ANONYMOUS_KB);
        let mib = (PAYLOAD_FILES * PAYLOAD_FILE_LEN) >> 20;
        println!("{peak_kb:>12} kB     peak memory with a payload of {mib} MiB (limit {MAX_PEAK_KB}){}", verdict(peak));
        println!("{anonymous_kb:>12} kB     of it anonymous, at most (limit {MAX_ANONYMOUS_KB}){}", verdict(anonymous));
        println!(
            "{cpu_ms:>12.3} ms     CPU time of an attestation, mean of {rounds}, talking to the emulated TPM's socket included"
        );
        peak && anonymous
    }

    /// As `--json` has it.
    pub(crate) fn json(&self) -> [(String, Value); 2] {
        let cpu_ms = (self.cpu_ms * 1000.0).round() / 1000.0;
        [
            ("agent_peak_rss_kb".to_owned(), json!(self.peak_kb)),
            ("agent_cpu_ms_per_attestation".to_owned(), json!(cpu_ms)),
        ]
    }
}

/// Measures an agent that runs on this machine. `control_plane` is the server's program.
///
/// # Errors
/// When a program fails, or the node does not get its payload.
pub(crate) fn run(agent: &Path, control_plane: &Path) -> Result<Measured> {
    let bench = Bench::new(control_plane, |to| Ok(symlink(agent, to)?))?;
    let contents: Vec<Vec<u8>> = (0..PAYLOAD_FILES).map(content).collect();
    let names: Vec<String> = (0..PAYLOAD_FILES).map(|index| format!("part-{index}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    let running = bench.start(&files)?;
    let worker = running.worker()?;
    let most = most_memory(worker, || bench.rig.wait_phase(NODE, "delivered", TIMEOUT).map(drop))?;
    // The kernel's own peak may miss some pages, and what was seen may miss a moment.
    let peak_kb = spawn::peak_kb(worker)?.max(most.resident);
    bench.is_in_place(&files)?;
    bench.rig.wait_trust(NODE, "good", TIMEOUT)?;

    let server = bench.rig.server()?;
    let (before, cpu) = (rounds(&server), spawn::threads_cpu_time(worker)?);
    let deadline = Instant::now() + TIMEOUT;
    let made = loop {
        let made = rounds(&server) - before;
        if made >= ROUNDS {
            break made;
        }
        ensure!(Instant::now() < deadline, "only {made} of {ROUNDS} attestations in {TIMEOUT:?}\n{}", server.tail(20));
        thread::sleep(Duration::from_millis(5));
    };
    let spent = spawn::threads_cpu_time(worker)?.saturating_sub(cpu);
    ensure!(!spent.is_zero(), "this kernel does not count the CPU time of threads (no schedstat)");
    ensure!(running.worker()? == worker, "the worker was started again meanwhile\n{}", running.program.tail(20));
    bench.rig.wait_trust(NODE, "good", TIMEOUT)?;
    Ok(Measured {
        peak_kb,
        anonymous_kb: most.anonymous,
        cpu_ms: spent.as_secs_f64() * 1e3 / made as f64,
        rounds: made,
    })
}

/// Gets a node its payload, and attests it, with an agent for another processor, under qemu-user.
///
/// # Errors
/// When a program fails, or the node does not get its payload.
pub(crate) fn bootstrap_emulated(agent: &Agent, control_plane: &Path) -> Result<Counts> {
    let arch = agent.target.arch;
    let Some(emulator) = emulator(arch) else {
        println!("skipped: a node's bootstrap with the agent for {arch}: qemu-user is not installed");
        return Ok(Counts::SKIPPED);
    };
    // The agent starts itself again as its worker: where the kernel does not know the format, by the name it was started
    // under, and that is this script's.
    let bench = Bench::new(control_plane, |to| {
        let script = format!("#!/bin/sh\nexec '{}' -0 \"$0\" '{}' \"$@\"\n", emulator.display(), agent.path.display());
        fs::write(to, script)?;
        Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
    })?;
    let content = content(0);
    let files: [(&str, &[u8]); 2] = [("app.toml", b"answer = 42\n"), ("keys/large", &content)];
    let _running = bench.start(&files)?;
    bench.rig.wait_phase(NODE, "delivered", TIMEOUT)?;
    bench.is_in_place(&files)?;
    let at_ms = |node: &Value| node["last_verdict"]["at_ms"].as_i64();
    let first = at_ms(&bench.rig.wait_trust(NODE, "good", TIMEOUT)?);
    bench
        .rig
        .wait_node(NODE, "another good verdict", TIMEOUT, |node| node["trust"] == "good" && at_ms(node) > first)?;
    println!("the agent for {arch} under qemu-user: payload delivered, node attested");
    Ok(Counts::PASSED)
}

/// The program that runs static programs of another processor.
pub(crate) fn emulator(arch: &str) -> Option<PathBuf> {
    apt::find_program(&format!("qemu-{arch}-static")).or_else(|| apt::find_program(&format!("qemu-{arch}")))
}

const NODE: &str = "measured";

/// A control plane and a TPM; ends what it started when it is dropped.
struct Bench {
    rig: Rig,
    tpm: Swtpm,
    // Last: programs are started from it.
    _programs: Scratch,
}

impl Bench {
    /// `place` puts the agent at a path.
    fn new(control_plane: &Path, place: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let programs = Scratch::new("programs")?;
        symlink(control_plane, programs.path().join("trefoil"))?;
        place(&programs.path().join(NAME))?;
        let ca = SwtpmCa::new()?;
        let tpm = Swtpm::start_with(EkKind::P384AndRsa, &ca)?;
        tpm.play_firmware()?;
        let bin_dir = Some(programs.path().to_owned());
        let rig = Rig::new(Options { store: Store::Sqlite, ca: Some(Arc::clone(&ca)), bin_dir, ..Options::default() })?;
        Ok(Self { rig, tpm, _programs: programs })
    }

    /// Adds the node and starts its agent, which says no more than it would in an image.
    fn start(&self, files: &[(&str, &[u8])]) -> Result<Running> {
        let payload = self.rig.payload(NODE, files)?;
        let policy = self.rig.policy(NODE, &self.tpm, &[7], "[release]\nphase_pcr = 13\n")?;
        let node = NodeAdd::join().payload(payload).policy(policy).arg("--interval").arg(INTERVAL);
        self.rig.node_add(NODE, &node)?;
        let config = self.rig.agent_config(NODE)?;
        let dir = self.payload_dir()?;
        let parent = dir.parent().context("the payload directory has no parent")?;
        fs::create_dir_all(parent)?;
        fs::set_permissions(parent, fs::Permissions::from_mode(0o700))?;
        let mut command = self.rig.agent_command(&self.tpm.tcti(), &config)?;
        command.arg("--payload-dir").arg(&dir).args(["--log", "info"]);
        // Not this machine's own.
        command.arg("--cryptsetup-keys-dir").arg(parent.join("disk-keys"));
        Ok(Running { program: Program::start(Launch::new("the agent", command))? })
    }

    fn payload_dir(&self) -> Result<PathBuf> {
        Ok(self.rig.memory()?.join(NODE).join("payload"))
    }

    fn is_in_place(&self, files: &[(&str, &[u8])]) -> Result<()> {
        for (name, content) in files {
            let found = fs::read(self.payload_dir()?.join(name)).with_context(|| format!("the payload's {name}"))?;
            ensure!(found == *content, "{name} is not what was sealed");
        }
        Ok(())
    }
}

/// A running agent.
struct Running {
    program: Program,
}

impl Running {
    /// Its worker's process id, as soon as there is one.
    fn worker(&self) -> Result<u32> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(pid) = self.program.worker_pid() {
                return Ok(pid);
            }
            if !self.program.is_running() || Instant::now() > deadline {
                bail!("the agent has no worker\n{}", self.program.tail(20));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Memory of a process, kB.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Memory {
    resident: u64,
    anonymous: u64,
}

/// The most memory that a process was seen with while `work` was done, each figure by itself.
fn most_memory(pid: u32, work: impl FnOnce() -> Result<()>) -> Result<Memory> {
    let done = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = Memory::default();
            while !done.load(Ordering::Relaxed) {
                if let Some(Memory { resident, anonymous }) = memory(pid) {
                    most.resident = most.resident.max(resident);
                    most.anonymous = most.anonymous.max(anonymous);
                }
                thread::sleep(Duration::from_micros(500));
            }
            most
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        let most = watching.join().map_err(|_| anyhow!("watching process {pid} failed"))?;
        result.map(|()| most)
    })?;
    ensure!(most.anonymous > 0, "no anonymous memory was seen of process {pid}");
    Ok(most)
}

/// By its pages where this user may see them; otherwise by the kernel's counters, which lag behind by some pages.
fn memory(pid: u32) -> Option<Memory> {
    if let Ok(pages) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        return Some(Memory { resident: kb(&pages, "Rss:")?, anonymous: kb(&pages, "Anonymous:")? });
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Memory { resident: kb(&status, "VmRSS:")?, anonymous: kb(&status, "RssAnon:")? })
}

fn kb(text: &str, field: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().trim_end_matches("kB").trim().parse().ok()
}

/// How many challenges of the verifier have been answered.
fn rounds(server: &Program) -> usize {
    let is_round =
        |step: &Step| step.step == "challenge" && step.text("phase") == "end" && step.text("from") == "verifier";
    server.steps().iter().filter(|step| is_round(step)).count()
}

/// A file that does not compress, and is another for each index.
fn content(index: usize) -> Vec<u8> {
    let mut state = index as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..PAYLOAD_FILE_LEN).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_over_its_limit_is_a_failure() {
        let kept = Measured { peak_kb: MAX_PEAK_KB, anonymous_kb: MAX_ANONYMOUS_KB, cpu_ms: 9.0, rounds: ROUNDS };
        assert!(kept.print());
        assert!(!Measured { peak_kb: MAX_PEAK_KB + 1, ..kept }.print());
        assert!(!Measured { anonymous_kb: MAX_ANONYMOUS_KB + 1, ..kept }.print());
    }

    #[test]
    fn memory_that_is_used_meanwhile_is_seen() {
        let pid = std::process::id();
        let before = memory(pid).unwrap();
        let most = most_memory(pid, || {
            let block = vec![1u8; 64 << 20];
            thread::sleep(Duration::from_millis(200));
            drop(std::hint::black_box(block));
            Ok(())
        });
        let most = most.unwrap();
        assert!(most.anonymous >= before.anonymous + (60 << 10) && most.resident > most.anonymous);
        assert!(most_memory(u32::MAX, || Ok(())).is_err());
    }
}
