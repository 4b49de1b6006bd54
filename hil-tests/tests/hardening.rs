//! What the agent gives up before it hears the network, and what its payload's `autorun` is kept from: the real agent, its
//! processes as the kernel shows them, and programs that try what they must not.
//!
//! With `TREFOIL_AGENT_STATIC` it is the agent as it is shipped, else the one that the other scenarios run.

mod fleet;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::Ipv6Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, Result, ensure};
use fleet::{Fleet, Line, Node, SOON};
use hil_tests::netns::has_ipv6;
use hil_tests::rig::{self, Agent, NodeAdd, Options};
use hil_tests::scratch::Scratch;
use hil_tests::swtpm::EkKind;
use hil_tests::sys;

/// A control plane, and the agent that this file is about.
struct Site {
    fleet: Fleet,
    bin: Scratch,
}

impl Site {
    fn new() -> Result<Self> {
        Self::with(&[])
    }

    /// With more arguments of `trefoil init`.
    fn with(init: &[&str]) -> Result<Self> {
        let bin = Scratch::new("hardening-bin")?;
        let agent = match env::var_os("TREFOIL_AGENT_STATIC") {
            Some(agent) if env::var_os("TREFOIL_AGENT").is_none() => PathBuf::from(agent),
            _ => rig::agent_binary()?,
        };
        symlink(rig::binary("trefoil")?, bin.path().join("trefoil"))?;
        symlink(fs::canonicalize(agent)?, bin.path().join("trefoil-agent"))?;
        let fleet = Fleet::new(Options {
            bin_dir: Some(bin.path().to_owned()),
            init: init.iter().map(|&argument| argument.into()).collect(),
            ..Options::default()
        })?;
        Ok(Self { fleet, bin })
    }

    /// What the agent's `--check` says of the kernel and of itself.
    fn confinement(&self, node: &Node) -> Result<String> {
        let config = self.fleet.rig.agent_config(&node.name)?;
        let output = self.fleet.rig.agent_command(&node.tpm.tcti(), &config)?.arg("--check").output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().find(|line| line.contains("confinement: ")).context(said.clone())?;
        Ok(line.to_owned())
    }

    /// A node whose payload has this `autorun`, with what its history says came of that.
    fn autorun(&self, name: &str, script: &str, extra: &[&str]) -> Result<(Node, Agent, String)> {
        let payload = self.fleet.rig.payload(name, &[("autorun", script.as_bytes()), ("data", b"of the payload\n")])?;
        fs::set_permissions(payload.join("autorun"), fs::Permissions::from_mode(0o755))?;
        let tpm = self.fleet.tpm(EkKind::P256)?;
        self.fleet.add(name, NodeAdd::id(self.fleet.rig.node_id(&tpm)?).payload(&payload).arg("--autorun"))?;
        let agent = self.fleet.rig.agent(&tpm, name, extra)?;
        let told = self.fleet.rig.wait_event(name, "autorun", SOON)?;
        self.fleet.rig.wait_trust(name, "good", SOON)?;
        Ok((Node { name: name.into(), agent: None, tpm }, agent, told.detail))
    }
}

/// One line of /proc/PID/status, without its name.
fn status(pid: u32, name: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name} in {text}"))?.trim().to_owned())
}

fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn worker_has_no_privileges_a_filter_and_locked_memory_and_neither_process_leaves_a_core() -> Result<()> {
    need_tpm!();
    let site = Site::new()?;
    let node = site.fleet.node("bare")?;
    let confinement = site.confinement(&node)?;
    let agent = node.agent()?;
    let worker = agent.worker_pid().context("there is no worker")?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"] {
        // Who is not root has no right to shrink the set that bounds it, and nothing that it could bound.
        if set != "CapBnd" || rig::is_root() {
            ensure!(status(worker, set)? == "0000000000000000", "{set} {}", status(worker, set)?);
        }
    }
    ensure!(status(worker, "NoNewPrivs")? == "1", "privileges can be gained");
    let said =
        agent.lines().into_iter().find(|line| line.contains("privileges are dropped")).context("it says nothing")?;
    let before_the_network =
        agent.lines().iter().position(|line| line.contains("privileges are dropped")) < first_step(agent);
    ensure!(before_the_network, "it heard the network with its privileges");
    if confinement.contains("not used") {
        ensure!(status(worker, "Seccomp")? == "0" && said.contains("not confined, for the TSS"), "{said}");
    } else {
        let filter = if confinement.contains("system call filter yes") { "2" } else { "0" };
        ensure!(status(worker, "Seccomp")? == filter, "{confinement}\n{said}");
        ensure!(
            said.contains("files and ports are those of the settings") != confinement.contains("Landlock none"),
            "{said}"
        );
    }
    for pid in [worker, agent.pid()] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit")?;
        ensure!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
    }
    if agent.lines().iter().any(|line| line.contains("memory cannot be locked")) {
        println!("skipped: this user may not lock memory");
    } else {
        let locked: u64 = status(worker, "VmLck")?.trim_end_matches(" kB").parse()?;
        ensure!(locked > 0, "no memory is locked");
    }
    // It goes on as before.
    site.fleet.judged_anew("bare", "good")?;
    Ok(())
}

fn first_step(agent: &Agent) -> Option<usize> {
    agent.lines().iter().position(|line| line.contains("\"step\":"))
}

#[test]
fn no_system_call_of_a_whole_life_is_refused() -> Result<()> {
    need_tpm!();
    if let Some(why) = hil_tests::rig::missing(&[Tool::Strace]) {
        println!("{why}");
        return Ok(());
    }
    let site = Site::with(&["--name", "::1"])?;
    let fleet = &site.fleet;
    let tpm = fleet.tpm(EkKind::P256)?;
    fleet.add("watched", NodeAdd::id(fleet.rig.node_id(&tpm)?))?;
    // A name, so that the resolver is asked; a line that can be cut, so that the agent comes back.
    let line = Line::lay(fleet.rig.gateway())?;
    let config = fleet.rig.agent_config("watched")?;
    let text = fs::read_to_string(&config)?;
    let named = format!("localhost:{}", line.address().port());
    let mut text = text.replace(&fleet.rig.gateway().to_string(), &named);
    // The second server, by the other kind of address.
    let other = has_ipv6().then(|| Line::lay_from((Ipv6Addr::LOCALHOST, 0).into(), fleet.rig.gateway())).transpose()?;
    if let Some(other) = &other {
        text.push_str(&format!("server = {}\n", other.address()));
    }
    fs::write(&config, text)?;
    // The agent's place is taken by one that is traced.
    let trace = fleet.rig.dir().join("trace");
    let traced = fs::canonicalize(site.bin.path().join("trefoil-agent"))?;
    fs::remove_file(site.bin.path().join("trefoil-agent"))?;
    let script = format!("#!/bin/sh\nexec strace -f -qq -o {} {} \"$@\"\n", trace.display(), traced.display());
    let path = site.bin.path().join("trefoil-agent");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    let agent = fleet.rig.agent_with(&tpm, "watched", &config, &[])?;
    if let Err(why) = fleet.rig.wait_phase("watched", "delivered", SOON) {
        let untraceable = agent.lines().iter().any(|line| line.contains("ptrace") || line.contains("PTRACE"));
        ensure!(untraceable, "{why:#}");
        println!("skipped: programs cannot be traced here");
        return Ok(());
    }
    fleet.rig.wait_trust("watched", "good", SOON)?;
    let steps = agent.step_count();
    ensure!(line.cut() > 0, "there was no connection to cut");
    agent.wait_for_step(steps, SOON, |step| step.step == "hello" && step.text("phase") == "end")?;
    fleet.judged_anew("watched", "good")?;
    if let Some(other) = &other {
        // The next server was tried at once; now it is the first one's turn again.
        let steps = agent.step_count();
        ensure!(other.cut() > 0, "it did not come by the other address");
        agent.wait_for_step(steps, SOON, |step| step.step == "hello" && step.text("phase") == "end")?;
        fleet.judged_anew("watched", "good")?;
    }
    // The tracer is deaf to signals, and ends with what it traces.
    sys::signal(agent.worker_pid().context("nothing is traced")?, sys::SIGTERM)?;
    agent.wait_exit(SOON)?;
    let (mut filtered, mut calls) = (None, 0);
    for line in BufReader::new(File::open(&trace)?).lines() {
        let line = line?;
        let (pid, call) = line.split_once(' ').unwrap_or_default();
        if call.contains("seccomp(SECCOMP_SET_MODE_FILTER") {
            filtered = Some(pid.to_owned());
        } else if filtered.as_deref() == Some(pid) {
            calls += 1;
            ensure!(!call.contains("= -1 EPERM") && !call.contains("= -1 EACCES"), "{line}");
            ensure!(!call.contains("SIGSYS"), "{line}");
        }
    }
    if filtered.is_none() {
        println!("skipped: this agent, or this kernel, filters no system calls");
        return Ok(());
    }
    ensure!(calls > 100, "only {calls} calls were seen behind the filter");
    Ok(())
}

#[test]
fn worker_whose_files_are_replaced_is_replaced_by_one_that_may_read_them() -> Result<()> {
    need_tpm!();
    let site = Site::new()?;
    let fleet = &site.fleet;
    let node = fleet.expected("moved", EkKind::P256)?;
    let line = Line::lay(fleet.rig.gateway())?;
    let config = fleet.rig.agent_config("moved")?;
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace(&fleet.rig.gateway().to_string(), &line.address().to_string()))?;
    let log = fleet.rig.dir().join("measured.log");
    fs::write(&log, "")?;
    let flag = format!("--userspace-log={}", log.display());
    let agent = fleet.rig.agent_with(&node.tpm, "moved", &config, &[&flag])?;
    fleet.rig.wait_phase("moved", "delivered", SOON)?;
    fleet.rig.wait_trust("moved", "good", SOON)?;
    let before = agent.worker_pid().context("there is no worker")?;
    let other = fleet.rig.dir().join("measured.new");
    fs::write(&other, "")?;
    fs::rename(&other, &log)?;
    ensure!(line.cut() > 0, "there was no connection to cut");
    if site.confinement(&node)?.contains("Landlock none") || site.confinement(&node)?.contains("not used") {
        println!("skipped: without Landlock no worker depends on which file has a name");
    } else {
        agent.wait_for_line(SOON, |line| line.contains("another process begins anew"))?;
        let deadline = Instant::now() + SOON;
        while agent.worker_pid().is_none_or(|after| after == before) {
            ensure!(Instant::now() < deadline, "there is no other worker\n{}", agent.tail(10));
            thread::sleep(Duration::from_millis(20));
        }
    }
    fleet.judged_anew("moved", "good")?;
    ensure!(agent.is_running(), "the agent has ended");
    Ok(())
}

#[test]
fn autorun_reaches_neither_tpm_nor_kernel_and_gains_nothing() -> Result<()> {
    need_tpm!();
    let site = Site::new()?;
    // Each line says what was possible that must not be.
    let script = r#"#!/bin/sh
grep -q '^NoNewPrivs:.1$' /proc/self/status || echo privileges
for device in /dev/tpm* /dev/mem /dev/kmem /dev/port; do
  [ -e $device ] && ( exec 3<$device ) 2>/dev/null && echo opened $device
done
mknod ./tpm c 10 224 2>/dev/null && echo made a device
mount -t devtmpfs none /mnt 2>/dev/null && echo mounted
[ -n "$(env | grep -v -E '^(PATH|TREFOIL_PAYLOAD|PWD|OLDPWD|SHLVL|_)=')" ] && echo environment
[ "$(ulimit -c)" = 0 ] || echo core
[ "$(umask)" = 0077 ] || echo umask
cat data; cat "$TREFOIL_PAYLOAD/data"; id -u; echo kept > result && cat result; echo > /dev/null
sed -n 's/^CapEff:.//p' /proc/self/status
"#;
    // A TPM by its name, with nothing behind it that could be harmed: the null device.
    let _device = Device::make("/dev/tpm77");
    let (node, _agent, told) = site.autorun("contained", script, &[])?;
    ensure!(told.contains("status 0"), "{told}");
    ensure!(told.matches("of the payload").count() == 2 && told.contains("kept"), "{told}");
    let mut escapes = vec!["privileges", "environment", "core", "umask"];
    if site.confinement(&node)?.contains("Landlock none") {
        println!("skipped: the kernel has no Landlock that would keep autorun from the TPM");
    } else {
        escapes.extend(["opened", "made a device", "mounted"]);
    }
    for escape in escapes {
        ensure!(!told.contains(escape), "{told}");
    }
    if rig::is_root() {
        let sets = told.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 16).context(told.clone())?;
        let effective = u64::from_str_radix(sets, 16)?;
        ensure!(effective != 0, "it has no privileges at all: {told}");
        for gone in [16, 17, 19, 22, 32, 33, 38, 39] {
            ensure!(effective >> gone & 1 == 0, "capability {gone}: {told}");
        }
    }
    Ok(())
}

/// A device's name for a test, gone with it. Without the right to make one there is none.
struct Device(Option<PathBuf>);

impl Device {
    fn make(path: &str) -> Self {
        let made = std::process::Command::new("mknod").args([path, "c", "1", "3"]).output();
        Self(made.is_ok_and(|made| made.status.success()).then(|| path.into()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            _ = fs::remove_file(path);
        }
    }
}

#[test]
fn autorun_that_forks_away_and_never_ends_is_ended_with_all_it_started() -> Result<()> {
    need_tpm!();
    let site = Site::new()?;
    // One in its own group, one in a session of its own, one whose parent is gone besides, and one that is deaf.
    let script = "#!/bin/sh
sleep 1000 & echo $! >> pids
setsid sleep 1000 & echo $! >> pids
( setsid sh -c 'echo $$ >> pids; exec sleep 1000' & ) &
setsid sh -c 'trap \"\" TERM HUP INT; echo $$ >> pids; while :; do sleep 1; done' &
echo begun
while :; do sleep 1; done
";
    let (_node, agent, told) = site.autorun("endless", script, &["--autorun-limit=3"])?;
    ensure!(told.contains("status 137") && told.contains("begun") && told.contains("took too long"), "{told}");
    all_have_ended(&agent.payload_dir().join("pids"), 4)?;
    ensure!(agent.is_running() && agent.worker_pid().is_some(), "the agent has ended");
    site.fleet.judged_anew("endless", "good")?;
    Ok(())
}

#[test]
fn what_autorun_leaves_running_ends_with_it() -> Result<()> {
    need_tpm!();
    let site = Site::new()?;
    let script = "#!/bin/sh
: > pids
setsid sh -c 'echo $$ >> pids; exec sleep 1000' &
( setsid sh -c 'echo $$ >> pids; exec sleep 1000' & ) &
while [ \"$(wc -l < pids)\" -lt 2 ]; do sleep 0.1; done
exit 5
";
    let (_node, agent, told) = site.autorun("daemons", script, &[])?;
    ensure!(told.contains("status 5"), "{told}");
    all_have_ended(&agent.payload_dir().join("pids"), 2)
}

/// Waits until the processes that a file names have ended.
fn all_have_ended(file: &Path, count: usize) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let pids: Vec<u32> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(pids.len() == count, "{pids:?}");
    let deadline = Instant::now() + SOON;
    while let Some(pid) = pids.iter().find(|pid| is_running(**pid)) {
        ensure!(Instant::now() < deadline, "process {pid} of {pids:?} runs on");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn autorun_that_writes_a_hundred_megabytes_is_reported_by_its_last_words() -> Result<()> {
    need_tpm!();
    let site = Site::new()?;
    let script = "#!/bin/sh\nhead -c 100000000 /dev/zero | tr '\\0' 'x'\necho; echo the last words\nexit 9\n";
    let (_node, agent, told) = site.autorun("talker", script, &[])?;
    ensure!(told.contains("status 9") && told.contains("the last words"), "{told}");
    ensure!(told.len() < 2048, "{} bytes are reported", told.len());
    // Neither process keeps what it passes over.
    let (parent, worker) = (agent.peak_kb()?, agent.worker_peak_kb()?);
    ensure!(parent < 20_000 && worker < 20_000, "{parent} kB and {worker} kB");
    Ok(())
}
