//! Runs programs as children, reads what they print line by line, and ends them, with all that they started.
//!
//! Knows the one convention of our own programs: with `log = json:debug` each protocol step is one line, a JSON object
//! with `at_ms` and `step`. What the steps mean is the scenarios' business.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::scratch::{self, Undo};
use crate::sys;

/// One protocol step, as a program wrote it.
#[derive(Clone, Debug)]
pub struct Step {
    /// The name the program was started under, for example `agent edge-1`.
    pub program: String,
    /// When, milliseconds since 1970 by the program's clock.
    pub at_ms: f64,
    /// `hello`, `enrol`, `activate`, `challenge`, `agree`, `share`, `payload`, `confirm`, ….
    pub step: String,
    /// The whole line.
    pub fields: Value,
}

impl Step {
    /// A field as text; empty if it is missing or not text.
    pub fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// A field as a number.
    pub fn number(&self, field: &str) -> Option<f64> {
        self.fields.get(field).and_then(Value::as_f64)
    }

    fn parse(program: &str, line: &str) -> Option<Self> {
        if !line.starts_with('{') {
            return None;
        }
        let fields: Value = serde_json::from_str(line).ok()?;
        let step = fields.get("step")?.as_str()?.to_owned();
        let at_ms = fields.get("at_ms").and_then(Value::as_f64)?;
        Some(Self { program: program.to_owned(), at_ms, step, fields })
    }
}

/// What [`Program::kill_on`] ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kill {
    /// The program and all that it started.
    Everything,
    /// Only the newest child: the agent's worker.
    Worker,
}

/// How a program is started.
pub struct Launch<'a> {
    /// What error messages and steps call it.
    pub name: &'a str,
    /// What is run. Standard input is closed, standard output and error are captured.
    pub command: Command,
    /// Everything it prints also goes to this file, appended.
    pub log: Option<&'a Path>,
    /// Gets every step as it happens.
    pub steps: Option<Sender<Step>>,
    /// The signal that [`Program`] sends when it is dropped, and the kernel if the harness dies.
    pub end_signal: i32,
}

impl<'a> Launch<'a> {
    /// A launch without log file and listener that ends by SIGKILL.
    pub fn new(name: &'a str, command: Command) -> Self {
        Self { name, command, log: None, steps: None, end_signal: sys::SIGKILL }
    }
}

/// A running (or ended) child process, the leader of a process group of its own. Dropping it ends the group.
#[derive(Debug)]
pub struct Program {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    end_signal: i32,
    undo: u64,
}

impl Program {
    /// Starts a program.
    ///
    /// # Errors
    /// When it cannot be run at all, or its log file cannot be opened.
    pub fn start(launch: Launch<'_>) -> Result<Self> {
        let Launch { name, mut command, log, steps, end_signal } = launch;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        sys::die_with_parent(&mut command, end_signal);
        sys::keep_network(&mut command).context("finding the network namespace")?;
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = spawn_from_lasting_thread(command).with_context(|| format!("cannot run {program} ({name})"))?;
        let pid = child.id();
        let undo = scratch::remember(Undo::Group { pid, signal: end_signal });
        let log = log
            .map(|path| File::options().create(true).append(true).open(path))
            .transpose()
            .with_context(|| format!("cannot open the log file of {name}"))?;
        let output = Arc::new(Output {
            name: name.to_owned(),
            pid,
            state: Mutex::new(State { steps_to: steps, log, open: 2, ..State::default() }),
            changed: Condvar::new(),
        });
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(read_lines(stdout, Arc::clone(&output)));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(read_lines(stderr, Arc::clone(&output)));
        }
        Ok(Self { name: name.to_owned(), pid, child: Mutex::new(child), output, readers, end_signal, undo })
    }

    /// Its name, as given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, valid until [`Program::wait_exit`] has returned its status.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The newest process it has started itself that still runs: the agent's worker.
    pub fn worker_pid(&self) -> Option<u32> {
        newest_child(self.pid)
    }

    /// Every line it printed so far, standard output and error in the order they were read.
    pub fn lines(&self) -> Vec<String> {
        self.output.lock().lines.clone()
    }

    /// How many lines it has printed so far; waiting can begin there.
    pub fn line_count(&self) -> usize {
        self.output.lock().lines.len()
    }

    /// Every step so far.
    pub fn steps(&self) -> Vec<Step> {
        self.output.lock().steps.clone()
    }

    /// How many steps it has taken so far; waiting can begin there.
    pub fn step_count(&self) -> usize {
        self.output.lock().steps.len()
    }

    /// Waits for a line that `wanted` accepts, among all it ever printed.
    ///
    /// # Errors
    /// When the time is over, or the program ended without such a line; its last lines are in the message.
    pub fn wait_for_line(&self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_for_line_from(0, timeout, wanted)
    }

    /// As [`Program::wait_for_line`], among the lines from number `from` on.
    ///
    /// # Errors
    /// As [`Program::wait_for_line`].
    pub fn wait_for_line_from(&self, from: usize, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut next = from;
        self.wait(timeout, |state| {
            let found = state.lines.iter().skip(next).find(|line| wanted(line)).cloned();
            next = state.lines.len().max(next);
            found
        })
    }

    /// Waits for a step that `wanted` accepts, among those from number `from` on.
    ///
    /// # Errors
    /// As [`Program::wait_for_line`].
    pub fn wait_for_step(&self, from: usize, timeout: Duration, wanted: impl Fn(&Step) -> bool) -> Result<Step> {
        let mut next = from;
        self.wait(timeout, |state| {
            let found = state.steps.iter().skip(next).find(|step| wanted(step)).cloned();
            next = state.steps.len().max(next);
            found
        })
    }

    /// Ends the program, or its worker, with SIGKILL the moment its first step that `wanted` accepts has been read, on
    /// the reading thread itself. One at a time: another call replaces what was waiting. `wanted` must not ask the
    /// program anything.
    pub fn kill_on(&self, what: Kill, wanted: impl FnMut(&Step) -> bool + Send + 'static) {
        self.output.lock().trap = Some(Trap { what, wanted: Box::new(wanted) });
    }

    /// Whether a trap set by [`Program::kill_on`] is still waiting.
    pub fn trap_is_set(&self) -> bool {
        self.output.lock().trap.is_some()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Waits until it has ended and everything it printed has been read.
    ///
    /// # Errors
    /// When the time is over.
    pub fn wait_exit(&self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.child().try_wait().with_context(|| format!("waiting for {}", self.name))?;
            if let Some(status) = status {
                // A grandchild may hold the pipes open; what it prints is not waited for.
                let grace = Instant::now() + Duration::from_millis(200);
                while self.output.lock().open > 0 && Instant::now() < grace {
                    thread::sleep(Duration::from_millis(2));
                }
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {timeout:?}\n{}", self.name, self.tail(20));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it and all that it started with SIGKILL, and waits for it.
    ///
    /// # Errors
    /// When it does not end within five seconds.
    pub fn kill(&self) -> Result<()> {
        let _ = sys::signal_group(self.pid, sys::SIGKILL);
        self.wait_exit(Duration::from_secs(5)).map(drop)
    }

    /// Ends the newest child it has started with SIGKILL and gives its process id.
    ///
    /// # Errors
    /// When there is none, or it just ended.
    pub fn kill_worker(&self) -> Result<u32> {
        let pid = self.worker_pid().ok_or_else(|| anyhow!("{} has no worker", self.name))?;
        sys::signal(pid, sys::SIGKILL).with_context(|| format!("killing the worker of {}", self.name))?;
        Ok(pid)
    }

    /// Sends a signal to the program alone.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::signal(self.pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Asks it to stop (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// When it is still there after `timeout`.
    pub fn stop(&self, timeout: Duration) -> Result<ExitStatus> {
        if self.is_running() {
            let _ = sys::signal(self.pid, sys::SIGTERM);
        }
        self.wait_exit(timeout)
    }

    /// Peak resident memory of the program itself, kB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak_kb(&self) -> Result<u64> {
        peak_kb(self.pid)
    }

    /// CPU time of the program itself, user and system, to the kernel's tick (10 ms as a rule).
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid)
    }

    /// Its last `count` lines, for messages.
    pub fn tail(&self, count: usize) -> String {
        let state = self.output.lock();
        let from = state.lines.len().saturating_sub(count);
        let mut text = format!("last lines of {}:", self.name);
        for line in state.lines.iter().skip(from) {
            text.push_str("\n  ");
            text.push_str(line);
        }
        text
    }

    fn wait<T>(&self, timeout: Duration, mut look: impl FnMut(&State) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.output.lock();
        loop {
            if let Some(found) = look(&state) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                bail!("{} did not say it within {timeout:?}\n{}", self.name, self.tail(20));
            }
            if state.open == 0 {
                drop(state);
                bail!("{} ended without saying it\n{}", self.name, self.tail(20));
            }
            state = self.output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        scratch::forget(self.undo);
        if self.is_running() {
            let _ = sys::signal_group(self.pid, self.end_signal);
            if self.end_signal != sys::SIGKILL {
                let _ = self.wait_exit(Duration::from_secs(5));
            }
        }
        // Also where the leader has ended: a worker may be left in its group.
        let _ = sys::signal_group(self.pid, sys::SIGKILL);
        let _ = self.child().wait();
        for reader in self.readers.drain(..) {
            // A process that left the group may hold a pipe; its reader ends when it does.
            let grace = Instant::now() + Duration::from_millis(500);
            while !reader.is_finished() && Instant::now() < grace {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Runs a command to its end with its output captured.
///
/// # Errors
/// When it cannot be run, or does not exit with 0: what it printed is in the message.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    bail!("{shown}: {}\n{}{}", output.status, stdout, String::from_utf8_lossy(&output.stderr))
}

/// A command as a person would type it, for messages.
pub fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Peak resident memory (VmHWM) of a process, kB.
///
/// # Errors
/// When there is no such process.
pub fn peak_kb(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    value
        .and_then(|value| value.trim().trim_end_matches("kB").trim().parse().ok())
        .ok_or_else(|| anyhow!("no VmHWM of process {pid}"))
}

/// CPU time of a process, user and system, all its threads, to the kernel's tick.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // utime and stime, fields 14 and 15; counted behind the name, which may hold anything.
    let (_, rest) = stat.rsplit_once(')').ok_or_else(|| anyhow!("malformed stat of process {pid}"))?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).ok_or_else(|| anyhow!("malformed stat of process {pid}"))?;
    Ok(Duration::from_micros((user + system).saturating_mul(1_000_000) / sys::clock_ticks()))
}

/// CPU time of those threads of a process that still run, to the nanosecond; zero where the kernel does not count it.
///
/// # Errors
/// When there is no such process.
pub fn threads_cpu_time(pid: u32) -> Result<Duration> {
    let mut total = 0u64;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let spent = text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
        total = total.saturating_add(spent.unwrap_or_default());
    }
    Ok(Duration::from_nanos(total))
}

/// What a program printed, filled by its two reading threads.
#[derive(Debug)]
struct Output {
    name: String,
    pid: u32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    steps: Vec<Step>,
    steps_to: Option<Sender<Step>>,
    log: Option<File>,
    trap: Option<Trap>,
    /// How many of the two pipes are open.
    open: u8,
}

struct Trap {
    what: Kill,
    wanted: Box<dyn FnMut(&Step) -> bool + Send>,
}

impl std::fmt::Debug for Trap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trap({:?})", self.what)
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, line: String) {
        let step = Step::parse(&self.name, &line);
        let mut state = self.lock();
        if let Some(step) = step {
            if state.trap.as_mut().is_some_and(|trap| (trap.wanted)(&step)) {
                // At once, before anything else: the point is to hit the program where it stands.
                match state.trap.take().map(|trap| trap.what) {
                    Some(Kill::Worker) => {
                        if let Some(worker) = newest_child(self.pid) {
                            let _ = sys::signal(worker, sys::SIGKILL);
                        }
                    }
                    Some(Kill::Everything) | None => {
                        let _ = sys::signal_group(self.pid, sys::SIGKILL);
                    }
                }
            }
            if let Some(listener) = &state.steps_to {
                let _ = listener.send(step.clone());
            }
            state.steps.push(step);
        }
        if let Some(log) = &mut state.log {
            let _ = writeln!(log, "{line}");
        }
        state.lines.push(line);
        drop(state);
        self.changed.notify_all();
    }

    fn close(&self) {
        let mut state = self.lock();
        state.open = state.open.saturating_sub(1);
        if state.open == 0 {
            state.steps_to = None;
        }
        drop(state);
        self.changed.notify_all();
    }
}

fn read_lines(pipe: impl Read + Send + 'static, output: Arc<Output>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match pipe.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    output.line(String::from_utf8_lossy(&line).into_owned());
                }
            }
        }
        output.close();
    })
}

/// Starts every child from one thread that lives as long as the process: the parent-death signal follows the thread
/// that forked, and tests and set-ups run on threads that end earlier than what they started.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    let gone = || io::Error::other("the spawning thread has ended");
    let (answer, child) = mpsc::channel();
    spawner().lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

type Order = (Command, Sender<io::Result<Child>>);

/// The thread that starts children. It is where it was made: before anything changes its network namespace, it is asked
/// for.
pub(crate) fn spawner() -> &'static Mutex<Sender<Order>> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (orders, incoming) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in incoming {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    })
}

/// The child of `parent` that was started last, by `/proc`.
fn newest_child(parent: u32) -> Option<u32> {
    let mut newest: Option<(u64, u32)> = None;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        // State, ppid, … and field 22, the start time.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let is_child = fields.get(1).and_then(|field| field.parse::<u32>().ok()) == Some(parent);
        let is_zombie = fields.first() == Some(&"Z");
        let Some(started) = fields.get(19).and_then(|field| field.parse::<u64>().ok()) else { continue };
        if is_child && !is_zombie && newest.is_none_or(|best| best < (started, pid)) {
            newest = Some((started, pid));
        }
    }
    newest.map(|(_, pid)| pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Program::start(Launch::new("shell", command)).unwrap()
    }

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn lines_of_both_streams_are_read_and_waited_for() {
        let program = shell("echo one; echo two >&2; sleep 60");
        program.wait_for_line(SOON, |line| line == "one").unwrap();
        program.wait_for_line(SOON, |line| line == "two").unwrap();
        let late = program.wait_for_line(Duration::from_millis(30), |line| line == "three").unwrap_err();
        assert!(late.to_string().contains("last lines of shell"), "{late}");
        assert!(program.peak_kb().unwrap() > 0);
        program.cpu_time().unwrap();
    }

    #[test]
    fn waiting_for_a_program_that_ended_fails_at_once() {
        let program = shell("echo done");
        let begun = Instant::now();
        assert!(program.wait_for_line(Duration::from_secs(60), |line| line == "more").is_err());
        assert!(begun.elapsed() < SOON);
        assert!(program.wait_exit(SOON).unwrap().success());
    }

    #[test]
    fn a_step_line_is_parsed_and_springs_the_trap() {
        let script = r#"sleep 0.2; echo '{"at_ms":12.5,"step":"hello","up":7}'; sleep 60; echo alive"#;
        let program = shell(script);
        program.kill_on(Kill::Everything, |step| step.step == "hello");
        let step = program.wait_for_step(0, SOON, |step| step.step == "hello").unwrap();
        assert_eq!((step.at_ms, step.number("up"), step.text("from")), (12.5, Some(7.0), ""));
        assert!(!program.wait_exit(SOON).unwrap().success());
        assert!(!program.trap_is_set());
    }

    #[test]
    fn dropping_a_program_ends_all_it_started() {
        let program = shell("sleep 61 & echo $!; sleep 60");
        let pid: u32 = program.wait_for_line(SOON, |_| true).unwrap().parse().unwrap();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(program);
        let ended =
            |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        let deadline = Instant::now() + SOON;
        while !ended(pid) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(ended(pid));
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let program = thread::spawn(|| shell("sleep 0.3; echo survived")).join().unwrap();
        program.wait_for_line(SOON, |line| line == "survived").unwrap();
    }

    #[test]
    fn the_worker_is_the_newest_child() {
        let program = shell("sleep 62 & sleep 0.1; sleep 63 & echo $!; wait");
        let pid: u32 = program.wait_for_line(SOON, |_| true).unwrap().parse().unwrap();
        assert_eq!(program.worker_pid(), Some(pid));
        assert_eq!(program.kill_worker().unwrap(), pid);
    }
}
