//! The line between the worker and its parent: a pair of sockets, the worker's end being its standard input.
//!
//! One message is one datagram, kind first, so that nothing has to be framed or parsed. The worker says how far it came;
//! what the parent makes of it at the end is [`Standing::verdict`].

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    process::Stdio,
    sync::OnceLock,
    time::Duration,
};

use crate::{autorun::Outcome, sys};

/// Longer words are cut: they are for one line of a console.
const MAX_WORDS: usize = 512;
/// Messages that are taken together: more than the kernel keeps, so that all is heard of a worker that has ended, and no
/// other keeps the parent listening.
const MAX_HEARD: usize = 4096;

/// What the worker says about how far it came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum News {
    /// Something of this machine keeps it from going on.
    Fault = b'f',
    /// This machine is ready, whatever kept it before.
    Ready = b'k',
    /// A gateway could not be had, or its connection broke.
    Unreached = b'u',
    /// A gateway has proven itself and answered `hello`.
    Answered = b'a',
    /// A gateway that has proven itself said no, or what it gave was refused.
    Refused = b'r',
    /// The payload is in place, and the phase PCR says so.
    Delivered = b'd',
}

impl News {
    const ALL: [Self; 6] = [Self::Fault, Self::Ready, Self::Unreached, Self::Answered, Self::Refused, Self::Delivered];
}

/// The worker asks for autorun; what comes back is an [`Outcome`].
const ASK_AUTORUN: u8 = b'x';

/// The worker's end; unset in every other process.
static TO_PARENT: OnceLock<UnixDatagram> = OnceLock::new();

/// Takes standard input for the line.
///
/// # Errors
/// The system's.
pub(crate) fn open_to_parent() -> io::Result<()> {
    let line = io::stdin().as_fd().try_clone_to_owned()?;
    // Set once, at the worker's start.
    _ = TO_PARENT.set(UnixDatagram::from(line));
    Ok(())
}

/// Tells the parent; in a process that is no worker, nobody. A parent that is gone ends its worker anyway.
pub(crate) fn tell(news: News, words: &str) {
    let Some(line) = TO_PARENT.get() else { return };
    let end = words.floor_char_boundary(MAX_WORDS);
    let mut message = Vec::with_capacity(1 + end);
    message.push(news as u8);
    message.extend_from_slice(words.get(..end).unwrap_or_default().as_bytes());
    _ = line.send(&message);
}

/// Asks the parent to run the payload's autorun.
///
/// # Errors
/// The system's; `NotConnected` in a process that is no worker.
pub(crate) fn ask_autorun() -> io::Result<()> {
    to_parent()?.send(&[ASK_AUTORUN]).map(drop)
}

/// What came of autorun, if the parent has said so by now.
///
/// # Errors
/// As [`ask_autorun`]; `InvalidData` for a message that is none.
pub(crate) fn autorun_outcome() -> io::Result<Option<Outcome>> {
    let line = to_parent()?;
    if !sys::wait_readable(line, Some(Duration::ZERO))? {
        return Ok(None);
    }
    let mut message = [0; Outcome::MAX_LEN + 1];
    let len = line.recv(&mut message)?;
    let outcome = message.get(..len).and_then(Outcome::decode);
    outcome.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn to_parent() -> io::Result<&'static UnixDatagram> {
    TO_PARENT.get().ok_or_else(|| io::ErrorKind::NotConnected.into())
}

/// The parent's end.
#[derive(Debug)]
pub(crate) struct ToWorker(UnixDatagram);

impl ToWorker {
    /// A new line: the parent's end, and what becomes the worker's standard input.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new() -> io::Result<(Self, Stdio)> {
        let (parent, worker) = UnixDatagram::pair()?;
        parent.set_nonblocking(true)?;
        Ok((Self(parent), OwnedFd::from(worker).into()))
    }

    /// Takes what the worker has said since.
    pub(crate) fn hear(&self, standing: &mut Standing) {
        let mut buf = [0; 1 + MAX_WORDS];
        for _ in 0..MAX_HEARD {
            // An error is the end of what is there; the worker's own end is known by its signal.
            let Ok(len) = self.0.recv(&mut buf) else { break };
            let Some((kind, words)) = buf.get(..len).and_then(<[u8]>::split_first) else { continue };
            standing.wants_autorun |= *kind == ASK_AUTORUN;
            if let Some(news) = News::ALL.into_iter().find(|news| *news as u8 == *kind) {
                standing.take(news, &String::from_utf8_lossy(words));
            }
        }
    }
}

impl ToWorker {
    /// Tells the worker what came of autorun.
    ///
    /// # Errors
    /// The system's: above all that this worker is gone.
    pub(crate) fn answer(&self, outcome: &Outcome) -> io::Result<()> {
        self.0.send(&outcome.encode()).map(drop)
    }
}

impl AsFd for ToWorker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How far the workers of this run came altogether.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// The machine's own fault, until it is ready or a gateway says no for another reason.
    fault: Option<String>,
    unreached: Option<String>,
    answered: bool,
    refused: Option<String>,
    delivered: bool,
    /// The worker has asked for autorun, and nobody has seen to it yet.
    pub(crate) wants_autorun: bool,
}

/// What came of a run whose time is up: the exit codes of `--help`.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Exit code 0: the payload is in place, only its confirmation has no answer yet.
    Unconfirmed,
    /// Exit code 1.
    Fault(String),
    /// Exit code 3.
    NotReached(String),
    /// Exit code 4.
    Refused(String),
}

impl Standing {
    /// Takes one piece of news.
    pub(crate) fn take(&mut self, news: News, words: &str) {
        match news {
            News::Fault => self.fault = Some(words.to_owned()),
            News::Ready => self.fault = None,
            News::Unreached => self.unreached = Some(words.to_owned()),
            News::Answered => self.answered = true,
            News::Refused => {
                self.answered = true;
                self.fault = None;
                self.refused = Some(words.to_owned());
            }
            News::Delivered => self.delivered = true,
        }
    }

    /// What to say when time is up.
    pub(crate) fn verdict(self) -> Verdict {
        match self {
            Self { delivered: true, .. } => Verdict::Unconfirmed,
            Self { fault: Some(why), .. } => Verdict::Fault(why),
            Self { refused: Some(why), .. } => Verdict::Refused(why),
            Self { answered: true, .. } => Verdict::Refused(
                "the gateway was reached and evidence was given, but no payload was released; `trefoil node events NAME` says why"
                    .into(),
            ),
            Self { unreached, .. } => Verdict::NotReached(unreached.unwrap_or_else(|| "there was no time to try".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(news: &[(News, &str)]) -> Verdict {
        let mut standing = Standing::default();
        for (news, words) in news {
            standing.take(*news, words);
        }
        standing.verdict()
    }

    #[test]
    fn a_gateway_that_never_answered_was_not_reached() {
        assert_eq!(verdict(&[]), Verdict::NotReached("there was no time to try".into()));
        assert_eq!(
            verdict(&[(News::Unreached, "a: no route"), (News::Unreached, "b: wrong certificate")]),
            Verdict::NotReached("b: wrong certificate".into())
        );
    }

    #[test]
    fn a_gateway_that_answered_has_refused_whatever_broke_afterwards() {
        assert!(matches!(verdict(&[(News::Answered, "")]), Verdict::Refused(why) if why.contains("node events")));
        let news = [(News::Refused, "not_admitted"), (News::Unreached, "closed"), (News::Answered, "")];
        assert_eq!(verdict(&news), Verdict::Refused("not_admitted".into()));
    }

    #[test]
    fn a_fault_counts_until_the_machine_is_ready_or_a_gateway_says_no() {
        let news = [(News::Answered, ""), (News::Fault, "no TPM"), (News::Unreached, "closed"), (News::Answered, "")];
        assert_eq!(verdict(&news), Verdict::Fault("no TPM".into()));
        assert_eq!(
            verdict(&[(News::Fault, "no TPM"), (News::Ready, ""), (News::Unreached, "no route")]),
            Verdict::NotReached("no route".into())
        );
        assert_eq!(verdict(&[(News::Fault, "full"), (News::Refused, "stopped")]), Verdict::Refused("stopped".into()));
    }

    #[test]
    fn a_payload_in_place_is_delivered_whatever_comes_later() {
        let news = [(News::Delivered, ""), (News::Fault, "no TPM"), (News::Refused, "confirm")];
        assert_eq!(verdict(&news), Verdict::Unconfirmed);
        assert_eq!(verdict(&[(News::Delivered, ""), (News::Fault, "no TPM")]), Verdict::Unconfirmed);
    }

    #[test]
    fn news_arrives_whole_and_unknown_kinds_are_nothing() {
        let (parent, worker) = UnixDatagram::pair().unwrap();
        parent.set_nonblocking(true).unwrap();
        let parent = ToWorker(parent);
        worker.send(b"runreadable: \xff").unwrap();
        worker.send(b"?what").unwrap();
        worker.send(b"").unwrap();
        worker.send(b"unobody").unwrap();
        let mut standing = Standing::default();
        parent.hear(&mut standing);
        assert_eq!(standing.refused.as_deref(), Some("unreadable: \u{fffd}"));
        assert_eq!(standing.unreached.as_deref(), Some("nobody"));
        parent.hear(&mut standing);
        assert_eq!(standing.verdict(), Verdict::Refused("unreadable: \u{fffd}".into()));
    }
}
