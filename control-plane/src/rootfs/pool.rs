//! Threads that hash what a reader hands them: one per core, a bounded queue before them.

use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Jobs that wait for each thread.
const QUEUE_LEN: usize = 4;
/// Threads at most: reading a disk does not get faster by more.
const MAX_THREADS: usize = 32;

/// Runs `feed`, which sends jobs, while every core does `work` on them; the answers, in no order.
///
/// # Errors
/// `feed`'s.
pub(super) fn run<J: Send, A: Send, E>(
    work: impl Fn(J, &mut Vec<u8>) -> A + Sync,
    feed: impl FnOnce(&SyncSender<J>) -> Result<(), E>,
) -> Result<Vec<A>, E> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let (jobs, queue) = mpsc::sync_channel::<J>(threads * QUEUE_LEN);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| drain(&queue, &work))).collect();
        let fed = feed(&jobs);
        // The queue's end: no sender is left.
        drop(jobs);
        let mut answers = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(some) => answers.extend(some),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        fed.map(|()| answers)
    })
}

fn drain<J, A>(queue: &Mutex<Receiver<J>>, work: impl Fn(J, &mut Vec<u8>) -> A) -> Vec<A> {
    let mut buffer = vec![0; super::CHUNK_LEN];
    let mut answers = Vec::new();
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => answers.push(work(job, &mut buffer)),
            Err(_) => return answers,
        }
    }
}

/// Sends a job; that nobody takes it means that a thread panicked, which [`run`] passes on.
pub(super) fn send<J>(jobs: &SyncSender<J>, job: J) -> io::Result<()> {
    jobs.send(job).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_answered_once() {
        let mut answers = run(
            |job: u32, _| job * 2,
            |jobs| {
                for job in 0..1000 {
                    send(jobs, job)?;
                }
                Ok::<_, io::Error>(())
            },
        )
        .unwrap();
        answers.sort_unstable();
        assert_eq!(answers, (0..1000).map(|job| job * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_feeders_error_ends_it() {
        assert_eq!(run(|_: u32, _| (), |_| Err("no")), Err("no"));
    }
}
