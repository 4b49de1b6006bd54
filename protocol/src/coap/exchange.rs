//! One connection seen from one end: matches responses to requests by token, hands out the peer's requests, and settles
//! the signals (RFC 8323 §3.3, §4, §5).
//!
//! Both ends use the same [`Exchange`]. It has no socket, clock or random number: received bytes go in by
//! [`feed`](Exchange::feed), bytes to be sent come out of [`outgoing`](Exchange::outgoing), time is an argument in
//! milliseconds of any clock that does not go back. What a request means is left to the caller.
//!
//! The caller's loop around a read of `bytes`:
//!
//! ```
//! # use protocol::coap::exchange::{Error, Event, Exchange};
//! # fn handle(_: Event<'_, u8>) {}
//! # fn step(exchange: &mut Exchange<u8>, mut bytes: &[u8], now_ms: u64) -> Result<(), Error> {
//! loop {
//!     let used = exchange.feed(bytes);
//!     bytes = bytes.get(used..).unwrap_or_default();
//!     while let Some(event) = exchange.next_event(now_ms)? {
//!         handle(event);
//!     }
//!     if bytes.is_empty() {
//!         break Ok(());
//!     }
//! }
//! # }
//! ```
//!
//! After an error `outgoing` still holds what is to be sent before the connection is closed: the Abort.

use alloc::{string::ToString, vec::Vec};
use core::{fmt, mem};

use super::{
    block::{BLOCK_HEADROOM, Room},
    frame::{self, Code, EncodeError, FrameError, Message, OutMessage, Token},
    signal::{Abort, Csm, DEFAULT_MAX_MESSAGE_LEN, Release, Signal, SignalError},
};

/// Most requests of one end that wait for their response: the agent has one, a gateway two challenges and a few blocks.
pub const MAX_PENDING: usize = 8;
/// Least that an end takes as its longest message, bytes: every signal fits, and every header.
pub const MIN_MESSAGE_LEN: usize = 64;
/// Most bytes that may wait to be sent when a Ping asks for more: a peer that asks and does not read is cut off.
pub const MAX_PONG_BACKLOG_LEN: usize = 64 * 1024;

/// Why the connection is over. The peer has been told by Abort, unless it was the one who said so.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum Error {
    #[error("malformed message")]
    Frame(#[from] FrameError),
    #[error("bad signal")]
    Signal(#[from] SignalError),
    #[error("first message is not CSM")]
    NoCsm,
    #[error("reserved message code {0}")]
    ReservedCode(Code),
    #[error("peer asks for more than it reads")]
    Flooded,
    #[error("peer has aborted the connection")]
    Aborted,
    #[error("connection was aborted here")]
    Closed,
}

/// Why something could not be sent. Nothing was sent then, and the connection goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum SendError {
    #[error("too many requests wait for a response")]
    TooManyPending,
    #[error("connection is being released")]
    Closing,
    #[error("connection is over: {0}")]
    Over(Error),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// What a peer did.
#[derive(Debug)]
pub enum Event<'a, T> {
    /// It asks; [`Exchange::respond`] with this token. Critical options are not looked at yet.
    Request {
        /// The peer's token, in the peer's token space.
        token: Token,
        /// The request.
        message: Message<'a>,
    },
    /// It answered a request of ours in time.
    Response {
        /// What was given to [`Exchange::request`].
        context: T,
        /// The response.
        message: Message<'a>,
    },
    /// It answered nothing that still waits: ignored.
    Stray,
    /// It answered a Ping.
    Pong,
    /// It wants the connection to end. After Abort the next call returns [`Error::Aborted`]; after Release the connection
    /// lives until [`Exchange::is_drained`].
    Closing(Closing<'a>),
}

/// How a peer ends a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closing<'a> {
    /// In good order: pending requests are still answered, new ones not made.
    Release(Release<'a>),
    /// At once.
    Abort(Abort<'a>),
}

/// One end of one connection. `T` is what the caller remembers with each of its requests.
pub struct Exchange<T> {
    max_message_len: usize,
    peer: Peer,
    pending: heapless::Vec<Pending<T>, MAX_PENDING>,
    last_token: u32,
    unanswered: usize,
    stray: u64,
    closing: bool,
    over: Option<Error>,
    received: Vec<u8>,
    /// How much of `received` is used up.
    used: usize,
    outgoing: Vec<u8>,
}

/// What the peer's CSM said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Peer {
    ready: bool,
    max_message_len: usize,
    block_wise: bool,
}

struct Pending<T> {
    token: Token,
    deadline_ms: u64,
    context: T,
}

/// What [`Exchange::advance`] found, with the bytes of the message.
struct Found<T> {
    start: usize,
    end: usize,
    what: What<T>,
}

enum What<T> {
    Request,
    Response(T),
    Stray,
    Signal,
}

impl<T> Exchange<T> {
    /// A new connection that takes messages of at most `max_message_len` bytes, header included, and at least
    /// [`MIN_MESSAGE_LEN`]. The CSM waits in [`outgoing`](Self::outgoing) at once; what is sent next may travel with it.
    ///
    /// RFC 8323 §5.3.
    pub fn new(max_message_len: usize) -> Self {
        let mut exchange = Self {
            max_message_len: max_message_len.max(MIN_MESSAGE_LEN),
            peer: Peer { ready: false, max_message_len: DEFAULT_MAX_MESSAGE_LEN, block_wise: false },
            pending: heapless::Vec::new(),
            last_token: 0,
            unanswered: 0,
            stray: 0,
            closing: false,
            over: None,
            received: Vec::new(),
            used: 0,
            outgoing: Vec::new(),
        };
        exchange.send_csm();
        exchange
    }

    /// Takes longer messages from now on, and tells the peer. A shorter maximum is ignored: what is under way may be longer.
    pub fn raise_max_message_len(&mut self, max_message_len: usize) {
        if max_message_len > self.max_message_len && self.over.is_none() {
            self.max_message_len = max_message_len;
            self.send_csm();
        }
    }

    /// Longest message that is taken, bytes.
    pub const fn max_message_len(&self) -> usize {
        self.max_message_len
    }

    /// Longest message that the peer takes, bytes; 1152 until its CSM is here.
    pub const fn peer_max_message_len(&self) -> usize {
        self.peer.max_message_len
    }

    /// Whether the peer's CSM is here.
    pub const fn is_ready(&self) -> bool {
        self.peer.ready
    }

    /// How much of a body one message to the peer may carry: for [`slice_for`](super::block::slice_for).
    ///
    /// BERT needs block-wise transfer and more than 1152 bytes of the peer (RFC 8323 §5.3.2, §6).
    pub const fn block_room(&self) -> Room {
        Room {
            payload_len: self.peer.max_message_len.saturating_sub(BLOCK_HEADROOM),
            bert: self.peer.block_wise && self.peer.max_message_len > DEFAULT_MAX_MESSAGE_LEN,
        }
    }

    /// How much of a body one message from the peer may carry: its [`szx`](Room::szx) is for
    /// [`Fetch`](super::block::Fetch).
    pub const fn fetch_room(&self) -> Room {
        Room {
            payload_len: self.max_message_len.saturating_sub(BLOCK_HEADROOM),
            bert: self.peer.block_wise && self.max_message_len > DEFAULT_MAX_MESSAGE_LEN,
        }
    }

    /// Takes received bytes, as many as there is room for, and returns how many. Then
    /// [`next_event`](Self::next_event) until there is none; then the rest.
    ///
    /// No more than the longest message is held. After the end of the connection everything is taken and dropped.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        if self.over.is_some() {
            return bytes.len();
        }
        self.tidy();
        let room = self.max_message_len.saturating_sub(self.received.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        let len = self.received.len();
        let needed = len.saturating_add(taken.len());
        if needed > self.received.capacity() {
            // Doubled, so that a long message costs few moves, but never past the longest message.
            let grown = self.received.capacity().saturating_mul(2).min(self.max_message_len).max(needed);
            self.received.reserve_exact(grown.saturating_sub(len));
        }
        self.received.extend_from_slice(taken);
        taken.len()
    }

    /// The next thing the peer did; `None` if more bytes are needed for it. Signals are answered on the way.
    ///
    /// # Errors
    /// All of [`Error`]. The connection is over after any of them, and the same error is returned ever after.
    ///
    /// RFC 8323 §3.3, §3.4, §5.
    pub fn next_event(&mut self, now_ms: u64) -> Result<Option<Event<'_, T>>, Error> {
        let Some(Found { start, end, what }) = self.advance(now_ms)? else {
            self.tidy();
            return Ok(None);
        };
        let frame = self.received.get(start..end).unwrap_or_default();
        let Some((message, _)) = frame::decode(frame, self.max_message_len)? else {
            return Ok(None);
        };
        Ok(Some(match what {
            What::Request => Event::Request { token: message.token, message },
            What::Response(context) => Event::Response { context, message },
            What::Stray => Event::Stray,
            What::Signal => match Signal::decode(&message)? {
                Signal::Release(release) => Event::Closing(Closing::Release(release)),
                Signal::Abort(abort) => Event::Closing(Closing::Abort(abort)),
                Signal::Pong { .. } | Signal::Ping { .. } | Signal::Csm(_) => Event::Pong,
            },
        }))
    }

    /// Sends a request. `context` comes back with its response, or from [`expire`](Self::expire) once `deadline_ms` has
    /// come; exactly one of them.
    ///
    /// # Errors
    /// All of [`SendError`]; `context` is dropped then.
    pub fn request(&mut self, message: &OutMessage<'_>, context: T, deadline_ms: u64) -> Result<(), SendError> {
        self.check_open()?;
        if self.closing {
            return Err(SendError::Closing);
        }
        if self.pending.is_full() {
            return Err(SendError::TooManyPending);
        }
        // Zero would be the empty token. After 2^32 requests the numbers begin again; none of the first waits any more.
        let counter = self.last_token.checked_add(1).unwrap_or(1);
        let token = Token::from_counter(counter);
        message.encode(token, self.peer.max_message_len, &mut self.outgoing)?;
        self.last_token = counter;
        self.pending.push(Pending { token, deadline_ms, context }).map_err(|_| SendError::TooManyPending)
    }

    /// Sends the response to the request with that token.
    ///
    /// # Errors
    /// [`SendError::Over`], [`SendError::Encode`]. A response too long for the peer can still be replaced by another.
    pub fn respond(&mut self, token: Token, message: &OutMessage<'_>) -> Result<(), SendError> {
        self.check_open()?;
        message.encode(token, self.peer.max_message_len, &mut self.outgoing)?;
        self.unanswered = self.unanswered.saturating_sub(1);
        Ok(())
    }

    /// Asks for a sign of life: [`Event::Pong`].
    ///
    /// # Errors
    /// [`SendError::Over`], [`SendError::Encode`].
    pub fn ping(&mut self) -> Result<(), SendError> {
        self.check_open()?;
        self.send_signal(Token::EMPTY, &Signal::Ping { custody: false })
    }

    /// Asks the peer to end the connection in good order, and not to come back for `hold_off_s` seconds. No request can be
    /// sent afterwards.
    ///
    /// # Errors
    /// [`SendError::Over`], [`SendError::Encode`].
    pub fn release(&mut self, hold_off_s: Option<u32>) -> Result<(), SendError> {
        self.check_open()?;
        self.send_signal(Token::EMPTY, &Signal::Release(Release { alternative: None, hold_off_s }))?;
        self.closing = true;
        Ok(())
    }

    /// Ends the connection, giving the reason in words. Afterwards everything returns [`Error::Closed`].
    pub fn abort(&mut self, diagnostic: &str) {
        if self.over.is_none() {
            self.end(Error::Closed, None, diagnostic);
        }
    }

    /// Whether nothing is left to do on a connection that either end wants to release: no request waits, in either
    /// direction, and all bytes are sent.
    pub fn is_drained(&self) -> bool {
        self.closing && self.pending.is_empty() && self.unanswered == 0 && self.outgoing.is_empty()
    }

    /// Why the connection is over, if it is.
    pub const fn error(&self) -> Option<Error> {
        self.over
    }

    /// Bytes to be sent; then [`sent`](Self::sent), with how many were.
    pub fn outgoing(&self) -> &[u8] {
        &self.outgoing
    }

    /// Forgets the first `len` bytes to be sent.
    pub fn sent(&mut self, len: usize) {
        if len >= self.outgoing.len() {
            self.outgoing.clear();
            forget_large(&mut self.outgoing);
        } else {
            self.outgoing.drain(..len);
        }
    }

    /// All bytes to be sent, for who sends from elsewhere.
    pub fn take_outgoing(&mut self) -> Vec<u8> {
        mem::take(&mut self.outgoing)
    }

    /// How many requests wait for the peer's response.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// How many of the peer's requests were handed out and not answered yet. Who answers later bounds it.
    pub const fn unanswered_count(&self) -> usize {
        self.unanswered
    }

    /// How many responses came that nothing waited for.
    pub const fn stray_count(&self) -> u64 {
        self.stray
    }

    /// The earliest time at which [`expire`](Self::expire) has something to say.
    pub fn next_deadline(&self) -> Option<u64> {
        self.pending.iter().map(|pending| pending.deadline_ms).min()
    }

    /// Gives up one request whose deadline has come; again until there is none. Its response, should it still come, is
    /// [`Event::Stray`].
    pub fn expire(&mut self, now_ms: u64) -> Option<T> {
        let at = self.pending.iter().position(|pending| pending.deadline_ms <= now_ms)?;
        Some(self.pending.swap_remove(at).context)
    }

    /// Gives up one request, whatever its deadline; again until there is none. For the end of a connection.
    pub fn give_up(&mut self) -> Option<T> {
        self.pending.pop().map(|pending| pending.context)
    }

    /// Finds the next message that concerns the caller, and settles what comes before it.
    fn advance(&mut self, now_ms: u64) -> Result<Option<Found<T>>, Error> {
        loop {
            if let Some(error) = self.over {
                return Err(error);
            }
            let start = self.used;
            let rest = self.received.get(start..).unwrap_or_default();
            let (message, len) = match frame::decode(rest, self.max_message_len) {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.fail(error.into())),
            };
            let (code, token) = (message.code, message.token);
            let signal = if code.is_signal() { Some(Signal::decode(&message)) } else { None };
            // Only what outlives the buffer's borrow goes on from here.
            let signal = match signal {
                None => None,
                Some(Ok(Signal::Csm(csm))) => Some(Settled::Csm(csm)),
                Some(Ok(Signal::Ping { custody })) => Some(Settled::Ping { custody }),
                Some(Ok(Signal::Pong { .. })) => Some(Settled::Pong),
                Some(Ok(Signal::Release(_))) => Some(Settled::Release),
                Some(Ok(Signal::Abort(_))) => Some(Settled::Abort),
                Some(Err(error)) => Some(Settled::Bad(error)),
            };
            self.used = start.saturating_add(len);
            let found = |what| Ok(Some(Found { start, end: start.saturating_add(len), what }));
            match signal {
                // May come at any time, as a sign of life, and is ignored (RFC 8323 §3.4).
                None if code == Code::EMPTY => {}
                Some(Settled::Csm(csm)) => self.peer.learn(csm),
                Some(Settled::Bad(error)) => return Err(self.fail(error.into())),
                Some(Settled::Abort) => {
                    self.over = Some(Error::Aborted);
                    return found(What::Signal);
                }
                _ if !self.peer.ready => return Err(self.fail(Error::NoCsm)),
                Some(Settled::Ping { custody }) => self.pong(token, custody)?,
                Some(Settled::Pong) => return found(What::Signal),
                Some(Settled::Release) => {
                    self.closing = true;
                    return found(What::Signal);
                }
                None if code.is_request() => {
                    self.unanswered = self.unanswered.saturating_add(1);
                    return found(What::Request);
                }
                None if code.is_response() => {
                    let at =
                        self.pending.iter().position(|pending| pending.token == token && pending.deadline_ms > now_ms);
                    if let Some(at) = at {
                        return found(What::Response(self.pending.swap_remove(at).context));
                    }
                    self.stray = self.stray.saturating_add(1);
                    return found(What::Stray);
                }
                None => return Err(self.fail(Error::ReservedCode(code))),
            }
        }
    }

    /// Answers a Ping; with custody only if every request before it was answered.
    fn pong(&mut self, token: Token, custody: bool) -> Result<(), Error> {
        if self.outgoing.len() >= MAX_PONG_BACKLOG_LEN {
            return Err(self.fail(Error::Flooded));
        }
        let custody = custody && self.unanswered == 0;
        // A peer whose maximum is too small for a Pong does not want one.
        let _ = self.send_signal(token, &Signal::Pong { custody });
        Ok(())
    }

    /// Ends the connection because of what the peer did, and tells it.
    fn fail(&mut self, error: Error) -> Error {
        let bad_csm_option = match error {
            Error::Signal(SignalError::CriticalOption { code: Code::CSM, option }) => Some(option),
            _ => None,
        };
        // The peer is told the cause, not its kind.
        let diagnostic = match error {
            Error::Frame(cause) => cause.to_string(),
            Error::Signal(cause) => cause.to_string(),
            _ => error.to_string(),
        };
        self.end(error, bad_csm_option, &diagnostic);
        error
    }

    fn end(&mut self, error: Error, bad_csm_option: Option<u16>, diagnostic: &str) {
        let abort = Abort { bad_csm_option, diagnostic: diagnostic.as_bytes() };
        if self.send_signal(Token::EMPTY, &Signal::Abort(abort)).is_err() {
            // The reason does not fit into what the peer takes; should the bare signal not fit either, it gets none.
            let _ = self.send_signal(Token::EMPTY, &Signal::Abort(Abort { bad_csm_option, diagnostic: &[] }));
        }
        self.over = Some(error);
        self.received = Vec::new();
        self.used = 0;
    }

    fn send_csm(&mut self) {
        let csm =
            Csm { max_message_len: Some(u32::try_from(self.max_message_len).unwrap_or(u32::MAX)), block_wise: true };
        // Twelve bytes at most: nothing but a peer that takes no message at all refuses them.
        let _ = self.send_signal(Token::EMPTY, &Signal::Csm(csm));
    }

    fn send_signal(&mut self, token: Token, signal: &Signal<'_>) -> Result<(), SendError> {
        Ok(signal.encode().encode(token, self.peer.max_message_len, &mut self.outgoing)?)
    }

    const fn check_open(&self) -> Result<(), SendError> {
        match self.over {
            Some(error) => Err(SendError::Over(error)),
            None => Ok(()),
        }
    }

    /// Moves what is not used yet to the front, and gives back the room of a large message.
    fn tidy(&mut self) {
        if self.used > 0 {
            let used = self.used.min(self.received.len());
            self.received.drain(..used);
            self.used = 0;
        }
        if self.received.is_empty() {
            forget_large(&mut self.received);
        }
    }
}

/// A signal without its borrowed parts.
enum Settled {
    Csm(Csm),
    Ping { custody: bool },
    Pong,
    Release,
    Abort,
    Bad(SignalError),
}

/// Neither bytes nor contexts are shown.
impl<T> fmt::Debug for Exchange<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("peer", &self.peer)
            .field("pending_count", &self.pending.len())
            .field("unanswered_count", &self.unanswered)
            .field("received_len", &self.received.len())
            .field("outgoing_len", &self.outgoing.len())
            .field("closing", &self.closing)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Peer {
    fn learn(&mut self, csm: Csm) {
        self.ready = true;
        if let Some(len) = csm.max_message_len {
            self.max_message_len = usize::try_from(len).unwrap_or(usize::MAX);
        }
        self.block_wise |= csm.block_wise;
    }
}

/// An idle connection keeps room for small messages only.
fn forget_large(buf: &mut Vec<u8>) {
    if buf.capacity() > KEPT_BUFFER_LEN {
        *buf = Vec::new();
    }
}

/// Room that stays allocated between messages, bytes: a steady round of attestation fits.
const KEPT_BUFFER_LEN: usize = 1024;

#[cfg(test)]
mod tests;
