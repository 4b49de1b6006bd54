//! The parent process: starts a worker that holds the sessions, and starts it again when it dies.
//!
//! A fault in the worker costs its session and nothing else. The parent parses nothing from outside and holds no
//! secret; it waits for signals, passes them on, and ends as the worker ended. It keeps the time that `once` has
//! altogether, over all workers, and says at its end what they came to ([`line`]).

use std::{
    env,
    ffi::OsString,
    io,
    os::{
        fd::AsFd,
        unix::process::{ExitStatusExt as _, parent_id},
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use crate::{
    autorun::Runner,
    harden,
    line::{self, Standing, ToWorker, Verdict},
    log,
    sys::{self, RandomFlags},
};

/// A worker that lived so long was healthy: the next failure waits as short as the first.
const HEALTHY: Duration = Duration::from_secs(60);
/// What a worker may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);
/// The status of a program that panicked and unwound; built for images it aborts instead.
const PANIC_STATUS: i32 = 101;
/// The status of a worker that wants to be replaced by a new one, which then may read what has changed its place.
pub(crate) const RENEW_STATUS: u8 = 75;

/// Waiting times after failures: from half a second, doubling to a minute, each drawn from its full range.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST_MS: u64 = 500;
    const MOST_MS: u64 = 60_000;

    /// Starts anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after another failure.
    pub(crate) fn next(&mut self) -> Duration {
        let most = (Self::FIRST_MS << self.failures.min(7)).min(Self::MOST_MS);
        self.failures = self.failures.saturating_add(1);
        let mut random = [0; 8];
        // Jitter needs no quality; without any, the longest wait is taken.
        match sys::random(&mut random, RandomFlags::Insecure) {
            Ok(()) => Duration::from_millis(u64::from_ne_bytes(random) % (most + 1)),
            Err(_) => Duration::from_millis(most),
        }
    }
}

/// Runs workers until one ends by itself, or a signal asks for the end. `args` are this process's own, without the
/// program's name; `limit` is for all workers together. `clean` is called after each worker's end: what it may have left
/// half-done. Returns the exit status.
///
/// # Errors
/// The system's, if no worker can be started or waited for.
pub(crate) fn run(
    args: &[OsString],
    limit: Option<Duration>,
    mut autorun: Runner,
    mut clean: impl FnMut(),
) -> io::Result<i32> {
    sys::hold_signals()?;
    if let Err(why) = sys::adopt_orphans() {
        // Every kernel of today can; an emulator of another processor may not.
        log::warn!("what autorun leaves behind cannot be ended: {why}");
    }
    let signals = sys::signals()?;
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut backoff = Backoff::default();
    let mut standing = Standing::default();
    loop {
        let start = Instant::now();
        let (mut worker, line) = start_worker(args)?;
        autorun.new_worker();
        let end = watch(&mut worker, &signals, &line, &mut standing, &mut autorun, deadline)?;
        clean();
        let status = match end {
            End::Itself(status) => status,
            End::Asked(signal) => return Ok(128 + signal),
            End::TooLate => return Ok(too_late(standing)),
        };
        match status.code() {
            Some(code) if code != PANIC_STATUS && code != i32::from(RENEW_STATUS) => {
                // The worker that asked for autorun waits for it; one that came after it knows of none.
                let asked = if code == 0 { await_autorun(&signals, &mut autorun, deadline)? } else { None };
                return Ok(asked.map_or(code, |signal| 128 + signal));
            }
            _ => {}
        }
        if start.elapsed() >= HEALTHY {
            backoff.reset();
        }
        let delay = backoff.next();
        let wait = delay.as_millis();
        match (status.signal(), status.code()) {
            (Some(signal), _) => log::warn!("the worker was ended by signal {signal}; starting it again in {wait} ms"),
            (None, Some(PANIC_STATUS)) => log::warn!("the worker was ended by a panic; starting it again in {wait} ms"),
            // Waited for all the same: files that change all the time would have it start all the time.
            _ => log::info!("the worker has to be replaced; starting another in {wait} ms"),
        }
        if let Some(signal) = rest(delay, deadline)? {
            return Ok(128 + signal);
        }
    }
}

/// What a worker does first: ends with its parent, whatever happens to that one.
///
/// # Errors
/// The system's, or `NotFound` if the parent is gone already.
pub(crate) fn become_worker(parent: u32) -> io::Result<()> {
    sys::die_with_parent()?;
    // It may have died before the kernel was asked.
    if parent_id() != parent {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the supervising process is gone"));
    }
    harden::hide_memory()?;
    harden::lock_memory();
    line::open_to_parent()?;
    // The parent holds signals back and passes them on: here they end the process, as they do any other.
    sys::release_signals()
}

enum End {
    Itself(ExitStatus),
    Asked(i32),
    TooLate,
}

fn start_worker(args: &[OsString]) -> io::Result<(Child, ToWorker)> {
    let start = |program: &Path| -> io::Result<(Child, ToWorker)> {
        let (line, stdin) = ToWorker::new()?;
        let worker =
            Command::new(program).args(args).arg(format!("--worker={}", process::id())).stdin(stdin).spawn()?;
        Ok((worker, line))
    };
    let name = || PathBuf::from(env::args_os().next().unwrap_or_default());
    // The same file even if its name was replaced meanwhile; without /proc, by its name.
    let itself = Path::new("/proc/self/exe");
    match if itself.exists() { start(itself) } else { start(&name()) } {
        // On an emulated processor: this kernel cannot start the file, but perhaps what it was started by.
        Err(why) if why.raw_os_error() == Some(libc::ENOEXEC) => start(&name()),
        started => started,
    }
}

fn watch(
    worker: &mut Child,
    signals: &impl AsFd,
    line: &ToWorker,
    standing: &mut Standing,
    autorun: &mut Runner,
    deadline: Option<Instant>,
) -> io::Result<End> {
    loop {
        // Asked first: its end may have been signalled while something else was waited for.
        let ended = worker.try_wait()?;
        line.hear(standing);
        if let Some(status) = ended {
            return Ok(End::Itself(status));
        }
        let asked = std::mem::take(&mut standing.wants_autorun);
        let refused = if asked { autorun.start() } else { None };
        if let Some(outcome) = refused.or_else(|| autorun.poll(worker.id()))
            && let Err(why) = line.answer(&outcome)
        {
            log::warn!("the worker cannot be told what came of autorun: {why}");
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Whatever there is to read: who always has something to say gets no more time for it.
        if left.is_some_and(|left| left.is_zero()) {
            stop(worker)?;
            line.hear(standing);
            return Ok(End::TooLate);
        }
        let wait = [left, autorun.left()].into_iter().flatten().min();
        sys::wait_readable_any([Some(signals.as_fd()), Some(line.as_fd()), autorun.output()], wait)?;
        match sys::wait_signal(Some(Duration::ZERO))? {
            Some(libc::SIGCHLD) | None => {}
            Some(signal) => {
                log::info!("asked to end by signal {signal}");
                stop(worker)?;
                return Ok(End::Asked(signal));
            }
        }
    }
}

/// Waits for a running autorun, as long as it may take; a signal that asks for the end is given back.
fn await_autorun(signals: &impl AsFd, autorun: &mut Runner, deadline: Option<Instant>) -> io::Result<Option<i32>> {
    while let (None, Some(may_take)) = (autorun.poll(0), autorun.left()) {
        let left = deadline.map_or(may_take, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() && deadline.is_some() {
            break;
        }
        sys::wait_readable_any([Some(signals.as_fd()), autorun.output(), None], Some(left.min(may_take)))?;
        match sys::wait_signal(Some(Duration::ZERO))? {
            Some(libc::SIGCHLD) | None => {}
            asked => return Ok(asked),
        }
    }
    Ok(None)
}

/// Says what came of it all, and gives the exit code that `--help` has for it.
fn too_late(standing: Standing) -> i32 {
    match standing.verdict() {
        Verdict::Unconfirmed => {
            log::warn!("time is up; the payload is in place, and its confirmation is left to the next start");
            0
        }
        Verdict::Fault(why) => {
            log::error!("time is up, and this machine is not ready: {why}");
            1
        }
        Verdict::NotReached(why) => {
            log::error!("time is up, and no gateway was reached: {why}");
            3
        }
        Verdict::Refused(why) => {
            log::error!("time is up, and the payload is refused: {why}");
            4
        }
    }
}

fn stop(worker: &mut Child) -> io::Result<()> {
    let _ = sys::signal(worker.id(), libc::SIGTERM);
    let deadline = Instant::now() + GRACE;
    while worker.try_wait()?.is_none() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            worker.kill()?;
            worker.wait()?;
            break;
        }
        let _ = sys::wait_signal(Some(left))?;
    }
    Ok(())
}

/// Waits; a signal other than a child's ends it, and so does the deadline, which the next worker's watch then sees.
fn rest(delay: Duration, deadline: Option<Instant>) -> io::Result<Option<i32>> {
    let mut end = Instant::now() + delay;
    if let Some(deadline) = deadline {
        end = end.min(deadline);
    }
    loop {
        match sys::wait_signal(Some(end.saturating_duration_since(Instant::now())))? {
            Some(libc::SIGCHLD) => {}
            other => return Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_a_minute_and_starts_anew() {
        let mut backoff = Backoff::default();
        for most in [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            assert!(backoff.next() <= Duration::from_millis(most));
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(500));
    }

    #[test]
    fn a_fleet_whose_gateway_is_away_does_not_come_back_in_step() {
        const AGENTS: usize = 500;
        let (from, to) = (Duration::from_secs(300), Duration::from_secs(600));
        let mut tries = vec![0usize; 300];
        for _ in 0..AGENTS {
            let (mut at, mut backoff) = (Duration::ZERO, Backoff::default());
            while at < to {
                at += backoff.next();
                if let Some(second) = at.checked_sub(from)
                    && let Some(count) = tries.get_mut(second.as_secs() as usize)
                {
                    *count += 1;
                }
            }
        }
        // 30 s between two tries on average: 17 a second.
        let (sum, most) = (tries.iter().sum::<usize>(), tries.iter().copied().max().unwrap());
        assert!((3_000..8_000).contains(&sum), "{sum}");
        assert!(most < 60, "{most} in one second");
    }

    fn watched(script: &str, limit: Option<Duration>) -> (End, Standing) {
        let (line, stdin) = ToWorker::new().unwrap();
        let mut worker = Command::new("/bin/sh").args(["-c", script]).stdin(stdin).spawn().unwrap();
        let (mut standing, mut autorun) =
            (Standing::default(), Runner::new(Path::new("/nonexistent"), true, Duration::from_secs(1)));
        let deadline = limit.map(|limit| Instant::now() + limit);
        let end = watch(&mut worker, &sys::signals().unwrap(), &line, &mut standing, &mut autorun, deadline).unwrap();
        assert!(worker.try_wait().unwrap().is_some(), "it lives on");
        (end, standing)
    }

    #[test]
    fn a_worker_that_never_stops_talking_gets_no_more_time() {
        let (end, standing) = watched("while :; do echo ubusy >&0; done", Some(Duration::from_millis(300)));
        assert!(matches!(end, End::TooLate));
        assert!(matches!(standing.verdict(), Verdict::NotReached(why) if why == "busy\n"));
    }

    #[test]
    fn a_worker_that_says_nothing_is_ended_when_time_is_up() {
        let (end, _) = watched("exec sleep 1000", Some(Duration::from_millis(50)));
        assert!(matches!(end, End::TooLate));
    }

    #[test]
    fn what_a_worker_said_before_its_end_is_heard() {
        // The signal that it has ended is another thread's here: it is found out when time is up, and counts.
        let (end, standing) = watched("echo rno >&0; exit 7", Some(Duration::from_secs(3)));
        assert!(matches!(end, End::Itself(status) if status.code() == Some(7)));
        assert!(matches!(standing.verdict(), Verdict::Refused(why) if why == "no\n"));
    }

    #[test]
    fn backoff_is_spread_over_its_range() {
        let drawn: Vec<_> = (0..64)
            .map(|_| {
                let mut backoff = Backoff { failures: 7 };
                backoff.next()
            })
            .collect();
        let mean = drawn.iter().sum::<Duration>() / 64;
        assert!(mean > Duration::from_secs(15) && mean < Duration::from_secs(45), "{mean:?}");
    }
}
