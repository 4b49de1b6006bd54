//! The lines between the harness and an emulated machine: its console, the command channel, and QEMU's monitor. Each is
//! a UNIX socket that the harness listens at and QEMU connects to, so that nothing said early is lost.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A socket that waits for QEMU.
#[derive(Debug)]
pub(crate) struct Waiting {
    name: &'static str,
    listener: UnixListener,
}

impl Waiting {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub(crate) fn bind(name: &'static str, path: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| format!("listening at {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { name, listener })
    }

    /// Takes the connection; `alive` says whether QEMU still runs.
    ///
    /// # Errors
    /// When it does not come within `timeout`, or QEMU ended.
    pub(crate) fn accept(&self, timeout: Duration, alive: impl Fn() -> bool) -> Result<Port> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Port::new(self.name, stream);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context(self.name),
            }
            if Instant::now() >= deadline || !alive() {
                bail!("QEMU does not connect its {}", self.name);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A connected line: what came is kept, what is to be said is written at once.
#[derive(Debug)]
pub(crate) struct Port {
    name: &'static str,
    stream: UnixStream,
    heard: Arc<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

impl Port {
    fn new(name: &'static str, stream: UnixStream) -> Result<Self> {
        let heard = Arc::new(Heard::default());
        let (mut reader, to) = (stream.try_clone()?, Arc::clone(&heard));
        // It ends with the connection, which ends with QEMU or with the port.
        thread::spawn(move || {
            let mut piece = [0u8; 4096];
            while let Ok(len @ 1..) = reader.read(&mut piece) {
                to.lock().bytes.extend_from_slice(piece.get(..len).unwrap_or_default());
                to.changed.notify_all();
            }
            to.lock().closed = true;
            to.changed.notify_all();
        });
        Ok(Self { name, stream, heard })
    }

    /// How much has come so far, bytes; waiting can begin there.
    pub(crate) fn position(&self) -> usize {
        self.heard.lock().bytes.len()
    }

    /// Everything that came from `from` on, as text.
    pub(crate) fn text_from(&self, from: usize) -> String {
        String::from_utf8_lossy(self.heard.lock().bytes.get(from..).unwrap_or_default()).into_owned()
    }

    /// Says something.
    ///
    /// # Errors
    /// When the line is closed.
    pub(crate) fn say(&self, text: &str) -> Result<()> {
        (&self.stream).write_all(text.as_bytes()).with_context(|| format!("writing to the {}", self.name))
    }

    /// Waits until `look` finds something in what came from `from` on.
    ///
    /// # Errors
    /// When the time is over or the line was closed: the end of what came is in the message.
    pub(crate) fn wait<T>(
        &self,
        from: usize,
        timeout: Duration,
        what: &str,
        mut look: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.heard.lock();
        loop {
            let heard = state.bytes.get(from..).unwrap_or_default();
            if let Some(found) = look(heard) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                let why = if state.closed { "was closed" } else { "did not say it in time" };
                let tail = tail(&state.bytes, 40);
                drop(state);
                bail!("waiting for {what}: the {} {why}; its last lines:\n{tail}", self.name);
            }
            state = self.heard.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The last `count` lines.
    pub(crate) fn tail(&self, count: usize) -> String {
        tail(&self.heard.lock().bytes, count)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // So that the reading thread ends.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last lines without what moves cursors and colours.
fn tail(bytes: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    let shown = lines.get(from..).unwrap_or_default().iter();
    shown.map(|line| format!("  {}\n", plain(line))).collect()
}

/// A line without control characters and sequences (ESC `[` … a letter).
fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(next) = rest.next() {
        if next == '\u{1b}' {
            if rest.next() == Some('[') {
                let _ = rest.find(|c| ('@'..='~').contains(c));
            }
        } else if !next.is_control() {
            plain.push(next);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn what_came_early_is_waited_for_and_a_closed_line_says_so() {
        let scratch = Scratch::new("port").unwrap();
        let path = scratch.path().join("line");
        let waiting = Waiting::bind("console", &path).unwrap();
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(b"first\nsec").unwrap();
        let port = waiting.accept(Duration::from_secs(5), || true).unwrap();
        let has =
            |text: &'static [u8]| move |heard: &[u8]| heard.windows(text.len()).any(|part| part == text).then_some(());
        port.wait(0, Duration::from_secs(5), "first", has(b"first")).unwrap();
        peer.write_all(b"ond\n").unwrap();
        port.wait(6, Duration::from_secs(5), "second", has(b"second")).unwrap();
        assert!(port.wait(6, Duration::from_millis(20), "first", has(b"first")).is_err());
        port.say("hello").unwrap();
        let mut answer = [0u8; 5];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        drop(peer);
        let error = port.wait(0, Duration::from_secs(5), "third", has(b"third")).unwrap_err().to_string();
        assert!(error.contains("waiting for third: the console was closed") && error.contains("  second"), "{error}");
    }

    #[test]
    fn what_moves_the_cursor_is_left_out() {
        assert_eq!(tail(b"old\n\x1b[2J\x1b[01;01H\x1b[=3hvm: \tup\r\n", 1), "  vm: up\n");
        assert_eq!(plain("ends early \u{1b}[2"), "ends early ");
        assert_eq!(plain("\u{1b}"), "");
    }

    #[test]
    fn nobody_waits_for_a_machine_that_ended() {
        let scratch = Scratch::new("port").unwrap();
        let waiting = Waiting::bind("monitor", &scratch.path().join("line")).unwrap();
        let begun = Instant::now();
        assert!(waiting.accept(Duration::from_secs(60), || false).is_err());
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
