//! The payload's `autorun`: started by the parent, since the worker has no right to run a program any more, and confined;
//! its output kept to a bounded end; ended with all it started when it ends itself or its time is up.
//!
//! The worker asks for it by one message ([`line`](crate::line)) and gets one back, an [`Outcome`].

use std::{
    fs,
    io::{self, PipeReader, Read as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use protocol::limits;

use crate::{
    harden::rules,
    log,
    sys::{self, Confinement},
};

/// How long autorun may take.
pub(crate) const AUTORUN_LIMIT: Duration = Duration::from_secs(60);
/// The largest file it may write, in bytes: what it works on is a payload, and memory is where that lies.
const FILE_LIMIT: u64 = 4 * limits::MAX_PAYLOAD_LEN;
/// Files each of its processes may have open.
const OPEN_FILES: u64 = 1024;
/// Processes its user may have, unless that is root.
const PROCESSES: u64 = 512;
/// Where it finds programs.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a payload's autorun is called.
const AUTORUN: &str = "autorun";
/// What is kept of its output, in bytes: the control plane's history puts words of its own before it, and has room for one
/// report altogether.
const TAIL_LEN: usize = limits::MAX_REPORT_LEN - 64;
/// How often what it left running is looked for and ended, and the pause between. Killed processes are gone at once,
/// unless a device keeps them.
const SWEEPS: u32 = 100;
const SWEEP_PAUSE: Duration = Duration::from_millis(10);

/// What came of autorun, as the parent tells the worker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// The payload has none.
    None,
    /// It ended, was ended, or could not be started.
    Ended {
        /// Its exit status; 128 and the signal's number if a signal ended it; 125 if it was lost sight of; 126 if it could
        /// not be started.
        code: i32,
        /// The end of what it wrote, or why it could not be started; at most [`limits::MAX_REPORT_LEN`] bytes.
        tail: Vec<u8>,
    },
}

impl Outcome {
    /// The longest encoding: kind, code, tail.
    pub(crate) const MAX_LEN: usize = 1 + 4 + limits::MAX_REPORT_LEN;

    /// Why it could not be started.
    fn not_started(why: &dyn std::fmt::Display) -> Self {
        let mut tail = why.to_string().into_bytes();
        tail.truncate(limits::MAX_REPORT_LEN);
        Self::Ended { code: 126, tail }
    }

    /// One message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::None => vec![b'n'],
            Self::Ended { code, tail } => [&b"e"[..], &code.to_be_bytes(), tail].concat(),
        }
    }

    /// Reads one message; `None` if it is none of these.
    pub(crate) fn decode(message: &[u8]) -> Option<Self> {
        match message.split_first()? {
            (b'n', []) => Some(Self::None),
            (b'e', rest) => {
                let (code, tail) = rest.split_first_chunk()?;
                let short = tail.len() <= limits::MAX_REPORT_LEN;
                short.then(|| Self::Ended { code: i32::from_be_bytes(*code), tail: tail.to_vec() })
            }
            _ => None,
        }
    }
}

/// A running autorun.
#[derive(Debug)]
struct Autorun {
    child: Child,
    output: Option<PipeReader>,
    tail: Vec<u8>,
    deadline: Instant,
}

impl Autorun {
    /// Starts the payload's `autorun` in the payload's directory. `None` if the payload has none.
    ///
    /// # Errors
    /// What kept it from being started.
    fn start(directory: &Path, limit: Duration) -> io::Result<Option<Self>> {
        let program = directory.join(AUTORUN);
        match fs::symlink_metadata(&program) {
            Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o100 != 0 => {}
            Ok(_) => return Err(io::Error::new(io::ErrorKind::PermissionDenied, "autorun is not an executable file")),
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(why),
        }
        let rules = rules::for_autorun().inspect_err(|why| log::info!("autorun is not kept from the TPM: {why}")).ok();
        let (output, writer) = io::pipe()?;
        let mut command = Command::new(program);
        command
            .current_dir(directory)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("TREFOIL_PAYLOAD", directory)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let confinement = Confinement { rules, file_len: FILE_LIMIT, files: OPEN_FILES, processes: PROCESSES };
        sys::confine(&mut command, confinement);
        let child = command.spawn()?;
        Ok(Some(Self { child, output: Some(output), tail: Vec::new(), deadline: Instant::now() + limit }))
    }

    /// How long it may still run.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Takes what it has written; its end, once it has ended. Ends it, and its session, when its time is up.
    ///
    /// # Errors
    /// The system's; autorun is then lost sight of.
    fn poll(&mut self) -> io::Result<Option<Outcome>> {
        let late = self.left().is_zero();
        if late && self.child.try_wait()?.is_none() {
            self.end()?;
        }
        // Asked before the pipe is emptied: what it wrote before its end is in the pipe then.
        let status = self.child.try_wait()?;
        self.drain()?;
        let Some(status) = status else { return Ok(None) };
        // What it has left running in its group ends with it.
        _ = sys::signal_group(self.child.id(), libc::SIGKILL);
        if late {
            self.keep(b"\n(stopped: it took too long)");
        }
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Some(Outcome::Ended { code, tail: std::mem::take(&mut self.tail) }))
    }

    /// Ends it and its group.
    ///
    /// # Errors
    /// The system's.
    fn end(&mut self) -> io::Result<()> {
        _ = sys::signal_group(self.child.id(), libc::SIGKILL);
        self.child.wait().map(drop)
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut buf = [0; 1024];
        // Bounded: what writes without an end is read on at the next call.
        for _ in 0..256 {
            let Some(output) = &mut self.output else { break };
            if !sys::wait_readable(output, Some(Duration::ZERO))? {
                break;
            }
            match output.read(&mut buf)? {
                0 => self.output = None,
                len => self.keep(buf.get(..len).unwrap_or_default()),
            }
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let excess = self.tail.len().saturating_sub(TAIL_LEN);
        self.tail.drain(..excess);
    }
}

/// The parent's part: runs autorun for its workers, where the settings allow it, once for each of them.
#[derive(Debug)]
pub(crate) struct Runner {
    directory: PathBuf,
    allowed: bool,
    limit: Duration,
    running: Option<Autorun>,
    /// The worker there is now has asked.
    asked: bool,
    /// The worker there is now started what runs, and is owed what comes of it.
    owed: bool,
}

impl Runner {
    /// Nothing runs yet.
    pub(crate) fn new(directory: &Path, allowed: bool, limit: Duration) -> Self {
        Self { directory: directory.to_owned(), allowed, limit, running: None, asked: false, owed: false }
    }

    /// From here on another worker asks. What runs for the one before runs on, and is told nobody.
    pub(crate) fn new_worker(&mut self) {
        self.asked = false;
        self.owed = false;
    }

    /// Starts autorun, or says why not.
    pub(crate) fn start(&mut self) -> Option<Outcome> {
        let refused = match (self.allowed, std::mem::replace(&mut self.asked, true), &self.running) {
            (false, ..) => Some("the settings do not allow it"),
            (_, true, _) => Some("it was asked for already"),
            (.., Some(_)) => Some("the one before is still running"),
            _ => None,
        };
        if let Some(why) = refused {
            log::error!("autorun cannot be started: {why}");
            return Some(Outcome::not_started(&why));
        }
        match Autorun::start(&self.directory, self.limit) {
            Ok(None) => Some(Outcome::None),
            Ok(Some(autorun)) => {
                log::info!("autorun has started");
                self.running = Some(autorun);
                self.owed = true;
                None
            }
            Err(why) => {
                log::error!("autorun cannot be started: {why}");
                Some(Outcome::not_started(&why))
            }
        }
    }

    /// What becomes readable when autorun writes.
    pub(crate) fn output(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref()?.output.as_ref().map(AsFd::as_fd)
    }

    /// How long a running autorun has left.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.running.as_ref().map(Autorun::left)
    }

    /// Looks after a running autorun; what came of it, once that is known and somebody waits for it. `worker` is the other
    /// child of this process.
    pub(crate) fn poll(&mut self, worker: u32) -> Option<Outcome> {
        let autorun = self.running.as_mut()?;
        while sys::bury_orphan(&[worker, autorun.child.id()]) {}
        let ended = self.ended()?;
        finish(worker);
        ended
    }

    /// `None` while it runs; else what the worker there is now has to be told.
    fn ended(&mut self) -> Option<Option<Outcome>> {
        let outcome = match self.running.as_mut()?.poll() {
            Ok(outcome) => outcome?,
            Err(why) => {
                log::error!("autorun is lost sight of: {why}");
                Outcome::Ended { code: 125, tail: why.to_string().into_bytes() }
            }
        };
        self.running = None;
        if std::mem::take(&mut self.owed) {
            return Some(Some(outcome));
        }
        // Another worker, which would take it for the outcome of one that it asks for later.
        if let Outcome::Ended { code, .. } = outcome {
            log::warn!("autorun has ended with status {code}; the worker that asked for it is gone, so nobody is told");
        }
        Some(None)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // The last worker is gone by now.
        if let Some(mut autorun) = self.running.take() {
            log::warn!("autorun is still running, and is ended");
            if let Err(why) = autorun.end() {
                log::warn!("autorun cannot be ended: {why}");
            }
            finish(0);
        }
    }
}

fn finish(worker: u32) {
    if !end_what_is_left(worker) {
        log::warn!("something that autorun started cannot be ended");
    }
}

/// Ends every descendant of this process but `spared` and its own: what autorun started and left, also where that has left
/// autorun's session, for this process adopts orphans. `false` if some live on.
fn end_what_is_left(spared: u32) -> bool {
    for _ in 0..SWEEPS {
        while sys::bury_orphan(&[spared]) {}
        let left = descendants(&running(), process::id(), spared);
        if left.is_empty() {
            return true;
        }
        for pid in left {
            _ = sys::signal(pid, libc::SIGKILL);
        }
        thread::sleep(SWEEP_PAUSE);
    }
    false
}

/// Every process that runs, with its parent. None where there is no /proc.
fn running() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let parent = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        parse_stat(&fs::read_to_string(entry.path().join("stat")).ok()?).map(|parent| (pid, parent))
    };
    entries.flatten().filter_map(parent).collect()
}

/// The parent in a line of /proc/PID/stat, whose second field is a name with anything in it; `None` for one that has ended.
fn parse_stat(line: &str) -> Option<u32> {
    let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

fn descendants(running: &[(u32, u32)], of: u32, spared: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for (pid, _) in running.iter().filter(|(pid, of)| *of == parent && *pid != spared) {
            // A list that was read while it changed may go round in a circle.
            if !found.contains(pid) {
                found.push(*pid);
                parents.push(*pid);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> (i32, String) {
        let scratch = tempfile::tempdir().unwrap();
        let program = scratch.path().join("autorun");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        // A file that was just written may be busy for a moment, when another test forks meanwhile.
        let mut autorun = loop {
            match Autorun::start(scratch.path(), limit) {
                Err(why) if why.kind() == io::ErrorKind::ExecutableFileBusy => thread::yield_now(),
                started => break started.unwrap().unwrap(),
            }
        };
        loop {
            match autorun.poll().unwrap() {
                Some(Outcome::Ended { code, tail }) => {
                    assert!(tail.len() <= TAIL_LEN);
                    return (code, String::from_utf8(tail).unwrap());
                }
                Some(Outcome::None) => panic!("there was one"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    #[test]
    fn autorun_gives_its_status_and_the_end_of_its_output() {
        let (code, tail) = run(
            "#!/bin/sh\ni=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo last >&2; exit 3\n",
            AUTORUN_LIMIT,
        );
        assert_eq!((code, tail.len()), (3, TAIL_LEN));
        assert!(tail.ends_with("line 1999\nlast\n"));
    }

    #[test]
    fn autorun_that_takes_too_long_is_stopped_with_its_children() {
        let start = Instant::now();
        let (code, tail) = run("#!/bin/sh\necho begun; sleep 100\n", Duration::from_secs(3));
        assert_eq!(code, 128 + libc::SIGKILL);
        assert!(tail.starts_with("begun\n\n(stopped"), "{tail}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    fn ended(runner: &mut Runner) -> Option<Outcome> {
        loop {
            match runner.ended() {
                Some(told) => return told,
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    #[test]
    fn outcome_is_told_to_the_worker_that_asked_and_to_none_after_it() {
        let scratch = tempfile::tempdir().unwrap();
        let program = scratch.path().join("autorun");
        fs::write(&program, "#!/bin/sh\nexit 3\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let start = |runner: &mut Runner| {
            // As above: busy for a moment.
            while let Some(Outcome::Ended { code: 126, tail }) = runner.start() {
                assert!(String::from_utf8_lossy(&tail).contains("busy"), "{tail:?}");
                runner.new_worker();
            }
        };
        let mut runner = Runner::new(scratch.path(), true, AUTORUN_LIMIT);
        start(&mut runner);
        runner.new_worker();
        assert_eq!(ended(&mut runner), None);
        start(&mut runner);
        runner.new_worker();
        assert!(matches!(runner.start(), Some(Outcome::Ended { code: 126, .. })), "one runs still");
        assert_eq!(ended(&mut runner), None);
        runner.new_worker();
        start(&mut runner);
        assert_eq!(ended(&mut runner), Some(Outcome::Ended { code: 3, tail: Vec::new() }));
        assert!(matches!(runner.start(), Some(Outcome::Ended { code: 126, .. })), "it was asked for already");
    }

    #[test]
    fn autorun_that_the_settings_forbid_is_not_started() {
        let scratch = tempfile::tempdir().unwrap();
        let program = scratch.path().join("autorun");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let mut runner = Runner::new(scratch.path(), false, AUTORUN_LIMIT);
        assert!(matches!(runner.start(), Some(Outcome::Ended { code: 126, .. })));
        assert!(runner.left().is_none() && runner.output().is_none());
    }

    #[test]
    fn payload_without_autorun_starts_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(Autorun::start(scratch.path(), AUTORUN_LIMIT).unwrap().is_none());
        fs::write(scratch.path().join("autorun"), "").unwrap();
        assert!(Autorun::start(scratch.path(), AUTORUN_LIMIT).is_err());
    }

    #[test]
    fn autorun_has_a_clean_environment_a_private_umask_and_no_way_to_the_kernel() {
        let script =
            "#!/bin/sh\numask; ulimit -c; ulimit -f; cat /proc/self/environ | tr '\\0' '\\n' | cut -d= -f1 | sort
            grep -E '^(CapBnd|NoNewPrivs)' /proc/self/status; readlink /proc/self/fd/0
            [ $(cut -d' ' -f6 /proc/self/stat) = $$ ] && echo session
            echo files $(ulimit -H -n); mknod null c 1 3 && echo device; :\n";
        let (code, tail) = run(script, AUTORUN_LIMIT);
        let lines: Vec<_> = tail.lines().collect();
        assert_eq!(code, 0, "{tail}");
        assert_eq!(lines[..2], ["0077", "0"]);
        // In blocks, by POSIX of 512 bytes, by others of 1,024.
        let blocks: u64 = lines[2].parse().unwrap();
        assert!([512, 1024].iter().any(|block| blocks * block == FILE_LIMIT), "{tail}");
        let shell_adds = ["OLDPWD", "PWD", "SHLVL", "_"];
        let names: Vec<_> = lines[3..].iter().take_while(|line| !line.contains(':')).collect();
        assert!(
            names.iter().all(|name| shell_adds.contains(name) || ["PATH", "TREFOIL_PAYLOAD"].contains(name)),
            "{tail}"
        );
        assert!(names.contains(&&"PATH") && names.contains(&&"TREFOIL_PAYLOAD"), "{tail}");
        assert!(lines.contains(&"NoNewPrivs:\t1"), "{tail}");
        assert!(lines.contains(&"/dev/null") && lines.contains(&"session"), "{tail}");
        let files = lines.iter().find_map(|line| line.strip_prefix("files ")).unwrap();
        assert!(files.parse::<u64>().is_ok_and(|files| files <= OPEN_FILES), "{tail}");
        if sys::landlock_version().is_ok() {
            assert!(!lines.contains(&"device"), "{tail}");
        }
        let bound = lines.iter().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        if sys::is_root() {
            let bound = u64::from_str_radix(bound, 16).unwrap();
            assert_ne!(bound, 0);
            for gone in [16, 17, 19, 22, 32, 33, 38, 39] {
                assert_eq!(bound >> gone & 1, 0, "capability {gone}: {tail}");
            }
        }
    }

    #[test]
    fn signals_that_the_parent_holds_back_reach_autorun() {
        sys::hold_signals().unwrap();
        // No shell, which would let them through itself.
        let (code, tail) = run("#!/usr/bin/env -S grep -h ^SigBlk /proc/self/status\n", AUTORUN_LIMIT);
        sys::release_signals().unwrap();
        assert_eq!((code, tail.as_str()), (0, "SigBlk:\t0000000000000000\n"));
    }

    #[test]
    fn outcome_is_read_back_and_anything_else_is_none() {
        let ended = Outcome::Ended { code: -3, tail: b"text".to_vec() };
        for outcome in [Outcome::None, ended.clone(), Outcome::Ended { code: 0, tail: vec![7; limits::MAX_REPORT_LEN] }]
        {
            let message = outcome.encode();
            assert!(message.len() <= Outcome::MAX_LEN);
            assert_eq!(Outcome::decode(&message), Some(outcome));
        }
        let message = ended.encode();
        for len in 0..5 {
            assert_eq!(Outcome::decode(&message[..len]), None);
        }
        assert_eq!(Outcome::decode(b"nx"), None);
        assert_eq!(Outcome::decode(b"x0000"), None);
        assert_eq!(Outcome::decode(&[&b"e0000"[..], &[7; limits::MAX_REPORT_LEN + 1]].concat()), None);
        let long = Outcome::not_started(&"x".repeat(5000));
        assert_eq!(long.encode().len(), Outcome::MAX_LEN);
    }

    #[test]
    fn descendants_are_found_over_generations_and_the_spared_ones_are_not() {
        let running = [(2, 1), (10, 2), (11, 10), (12, 11), (20, 2), (21, 20), (30, 1)];
        assert_eq!(descendants(&running, 2, 20), [10, 11, 12]);
        assert_eq!(descendants(&running, 2, 0).len(), 5);
        assert_eq!(descendants(&[(3, 4), (4, 3)], 3, 0), [4, 3]);
        assert_eq!(descendants(&running, 99, 0), [0; 0]);
    }

    #[test]
    fn stat_is_read_behind_any_name() {
        assert_eq!(parse_stat("7 (a) b) S 5 7 7 0"), Some(5));
        assert_eq!(parse_stat("7 (a) Z 5 7 7 0"), None);
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(parse_stat("7 (a) S"), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(parse_stat(&own), Some(std::os::unix::process::parent_id()));
    }
}
