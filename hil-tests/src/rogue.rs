//! Programmable peers for hostile scenarios: an agent and a gateway that are honest until a test changes one thing.
//!
//! [`client`] is the agent's side of a connection, [`server`] the gateway's with all three roles behind it, [`tpm`] a TPM
//! that is told what to do command by command. This file has what both ends share: [`Peer`], one blocking connection of
//! CoAP over TLS. Which scenario expects what is the tests' business.

pub mod client;
pub mod server;
pub mod tpm;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use protocol::coap::CoapOption;
use protocol::coap::block::{Block, Fetch, Part, slice_for};
use protocol::coap::exchange::{Closing, Event, Exchange};
use protocol::coap::frame::{Code, Message, OutMessage, Token, format};
use protocol::coap::route::{Route, RouteError};
use protocol::{limits, message};
use rustls::Connection;
use serde::{Serialize, de::DeserializeOwned};

/// How long a request waits for its answer unless a test says otherwise: longer than either program's own patience.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// How long a single read waits: what a loop around [`Peer::pump`] may sleep at most.
const TICK: Duration = Duration::from_millis(20);

/// The other end said no.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("refused: {code} {text}")]
pub struct Refused {
    /// Its code, of class 4 or 5.
    pub code: Code,
    /// Its reason in words.
    pub text: String,
}

/// A response, copied out of the receive buffer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What came of the request.
    pub code: Code,
    /// Which part of a body it is.
    pub part: Part,
    /// The body, or the reason in words.
    pub payload: Vec<u8>,
}

impl Reply {
    /// Its payload as text: for refusals.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// Takes a refusal for an error.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn accepted(self) -> Result<Self> {
        if self.code.is_success() { Ok(self) } else { Err(Refused { code: self.code, text: self.text() }.into()) }
    }

    /// The message in a successful response.
    ///
    /// # Errors
    /// [`Refused`]; also when the body is no such message.
    pub fn message<T: DeserializeOwned + Serialize>(self) -> Result<T> {
        message::decode(&self.accepted()?.payload).context("the answer is malformed")
    }
}

/// A request of the other end, copied out of the receive buffer.
#[derive(Clone, Debug)]
pub struct Request {
    /// To be given back with the answer.
    pub token: Token,
    /// Its method.
    pub code: Code,
    /// What it asks for.
    pub route: Result<Route, RouteError>,
    /// Which block of the answer it wants.
    pub block: Option<Block>,
    /// Its body.
    pub payload: Vec<u8>,
}

impl Request {
    fn of(token: Token, message: &Message<'_>) -> Self {
        let (path, query) = (message.options.all(CoapOption::UriPath), message.options.all(CoapOption::UriQuery));
        Self {
            token,
            code: message.code,
            route: Route::parse(message.code.to_byte(), path, query),
            block: message.options.block2().unwrap_or_default(),
            payload: message.payload.to_vec(),
        }
    }

    /// Whether it asks for this route.
    pub fn is(&self, route: Route) -> bool {
        self.route == Ok(route)
    }

    /// The message in its body.
    ///
    /// # Errors
    /// When the body is no such message.
    pub fn message<T: DeserializeOwned + Serialize>(&self) -> Result<T> {
        message::decode(&self.payload).with_context(|| format!("the body of {:?} is malformed", self.route))
    }
}

/// A request that was sent: what its answer is collected with.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

/// One end of one connection, driven by whoever calls it: nothing happens between calls.
pub struct Peer {
    tls: Connection,
    stream: TcpStream,
    exchange: Exchange<Ticket>,
    began: Instant,
    last_ticket: u64,
    answers: BTreeMap<Ticket, Option<Reply>>,
    inbox: VecDeque<Request>,
    /// Why the connection is over, once it is.
    closed: Option<String>,
    released: bool,
    patience: Duration,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("closed", &self.closed).field("inbox", &self.inbox.len()).finish_non_exhaustive()
    }
}

impl Peer {
    /// Takes a connection whose TLS handshake is done. The CSM goes out with the first bytes that are sent.
    fn new(mut tls: Connection, stream: TcpStream) -> Result<Self> {
        tls.set_buffer_limit(None);
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self {
            tls,
            stream,
            exchange: Exchange::new(limits::MAX_MESSAGE_LEN),
            began: Instant::now(),
            last_ticket: 0,
            answers: BTreeMap::new(),
            inbox: VecDeque::new(),
            closed: None,
            released: false,
            patience: ANSWER_TIMEOUT,
        })
    }

    /// How long requests and answers are waited for from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// How long requests and answers are waited for.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Why the connection is over; `None` while it lives.
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Whether the other end asked for the connection to end in good order.
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// Sends bytes as they are, inside TLS but outside of CoAP's rules; what waits to be sent goes first.
    ///
    /// # Errors
    /// When the connection does not take them.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.flush()?;
        self.tls.writer().write_all(bytes)?;
        self.write_records()
    }

    /// Sends bytes as they are below TLS: no record of this connection.
    ///
    /// # Errors
    /// When the connection does not take them.
    pub fn send_below_tls(&mut self, bytes: &[u8]) -> Result<()> {
        self.flush()?;
        self.stream.write_all(bytes)?;
        Ok(())
    }

    /// Sends a request and does not wait. Collect the answer with [`Peer::wait`] or [`Peer::answer`].
    ///
    /// # Errors
    /// When the connection is over, or too many requests wait.
    pub fn begin(&mut self, route: Route, block: Option<Block>, payload: &[u8]) -> Result<Ticket> {
        let (method, path, query) = route.to_parts();
        let mut message = OutMessage::new(Code::from_byte(method as u8)).payload(payload);
        for segment in &path {
            message = message.segment(segment);
        }
        if let Some(query) = &query {
            message = message.query(query);
        }
        if let Some(block) = block {
            message = message.block2(block);
        }
        self.begin_message(&message)
    }

    /// As [`Peer::begin`], for any message: other paths, other options.
    ///
    /// # Errors
    /// As [`Peer::begin`].
    pub fn begin_message(&mut self, message: &OutMessage<'_>) -> Result<Ticket> {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        // Waiting is limited by the caller; the exchange itself keeps a request for ever.
        self.exchange.request(message, ticket, u64::MAX)?;
        self.answers.insert(ticket, None);
        self.flush()?;
        Ok(ticket)
    }

    /// The answer to a request, if it is here; it is handed out once.
    pub fn answer(&mut self, ticket: Ticket) -> Option<Reply> {
        self.answers.get(&ticket)?.as_ref()?;
        self.answers.remove(&ticket).flatten()
    }

    /// Waits for the answer to a request. Requests of the other end are kept meanwhile.
    ///
    /// # Errors
    /// When the connection ends before, or nothing comes within [`Peer::patience`].
    pub fn wait(&mut self, ticket: Ticket) -> Result<Reply> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(reply) = self.answer(ticket) {
                return Ok(reply);
            }
            self.check_alive()?;
            if Instant::now() >= deadline {
                bail!("no answer within {:?}", self.patience);
            }
            self.pump(TICK)?;
        }
    }

    /// Sends a request and waits for its answer, refusals included.
    ///
    /// # Errors
    /// As [`Peer::wait`].
    pub fn request(&mut self, route: Route, payload: &[u8]) -> Result<Reply> {
        let ticket = self.begin(route, None, payload)?;
        self.wait(ticket).with_context(|| format!("waiting for the answer to {}", route.name().name()))
    }

    /// As [`Peer::request`], with a message as its body.
    ///
    /// # Errors
    /// As [`Peer::request`].
    pub fn post<T: Serialize>(&mut self, route: Route, body: &T) -> Result<Reply> {
        let payload = message::to_vec(body)?;
        self.request(route, &payload)
    }

    /// Fetches a body of at most `limit` bytes, block by block.
    ///
    /// # Errors
    /// [`Refused`]; also when the blocks are no whole body, and as [`Peer::wait`].
    pub fn get(&mut self, route: Route, limit: usize) -> Result<Vec<u8>> {
        self.pump_until_ready()?;
        let mut fetch = Fetch::new(limit, self.exchange.fetch_room().szx()?);
        let mut body = Vec::new();
        loop {
            let ticket = self.begin(route, Some(fetch.ask()?), &[])?;
            let reply = self.wait(ticket)?.accepted()?;
            let chunk = fetch.accept_part(reply.code, reply.part, &reply.payload)?;
            body.extend_from_slice(chunk.bytes);
            if chunk.last {
                return Ok(body);
            }
        }
    }

    /// The next request of the other end; `None` if none comes in time, or the connection ends.
    ///
    /// # Errors
    /// When this end cannot write.
    pub fn next_request(&mut self, timeout: Duration) -> Result<Option<Request>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(request) = self.inbox.pop_front() {
                return Ok(Some(request));
            }
            if self.closed.is_some() || Instant::now() >= deadline {
                return Ok(None);
            }
            self.pump(TICK)?;
        }
    }

    /// Puts a request back, to be handed out again first.
    pub fn put_back(&mut self, request: Request) {
        self.inbox.push_front(request);
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn respond(&mut self, token: Token, code: Code, payload: &[u8]) -> Result<()> {
        let message = OutMessage::new(code).payload(payload);
        let is_message = code.is_success() && !payload.is_empty();
        let message = if is_message { message.content_format(format::OCTET_STREAM) } else { message };
        self.respond_message(token, &message)
    }

    /// Answers a request with any message.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn respond_message(&mut self, token: Token, message: &OutMessage<'_>) -> Result<()> {
        self.exchange.respond(token, message)?;
        self.flush()
    }

    /// Answers a request with the part of `body` that it asks for.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn respond_part(&mut self, request: &Request, body: &[u8]) -> Result<()> {
        let room = self.exchange.block_room().at_most(limits::MAX_BLOCK_PAYLOAD);
        match slice_for(request.block, body.len(), room) {
            Ok(slice) => {
                let message = slice.response(slice.of(body)).content_format(format::OCTET_STREAM);
                self.respond_message(request.token, &message)
            }
            Err(error) => self.respond_message(request.token, &OutMessage::new(error.code())),
        }
    }

    /// Ends the connection in good order from this side.
    ///
    /// # Errors
    /// When it is over.
    pub fn release(&mut self) -> Result<()> {
        self.exchange.release(None)?;
        self.flush()
    }

    /// Ends the connection at once, as a cable does: no Abort, no close_notify.
    pub fn cut(&mut self) {
        // A connection that is gone cannot be cut any more.
        _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.closed.get_or_insert_with(|| "cut here".into());
    }

    /// Waits for the other end to close the connection, and gives its reason; `None` if it does not.
    ///
    /// # Errors
    /// When this end cannot write.
    pub fn wait_closed(&mut self, timeout: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + timeout;
        while self.closed.is_none() && Instant::now() < deadline {
            self.pump(TICK)?;
        }
        Ok(self.closed.clone())
    }

    /// Sends what waits, reads what comes within `timeout`, and sorts it: answers to their tickets, requests to the inbox.
    ///
    /// # Errors
    /// When this end cannot write. An end by the other side is no error: see [`Peer::closed`].
    pub fn pump(&mut self, timeout: Duration) -> Result<()> {
        self.flush()?;
        // What came together with the last of the handshake, or before an end, is here already: no read would bring it.
        if self.drain() {
            return self.flush();
        }
        if self.closed.is_some() {
            return Ok(());
        }
        self.stream.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        let ended = match self.tls.read_tls(&mut self.stream) {
            Ok(0) => Some("the other end closed the connection".to_owned()),
            Ok(_) => None,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(error) => Some(error.to_string()),
        };
        let broken = self.tls.process_new_packets().err();
        // First what was said, then how it ended: an Abort names the reason better.
        self.drain();
        if let Some(error) = broken {
            // The alert that tells the other end is worth a try.
            _ = self.write_records();
            self.close(&format!("TLS: {error}"));
        }
        if let Some(why) = ended {
            self.close(&why);
        }
        self.flush()
    }

    /// Takes what is decrypted already; `true` if there was something.
    fn drain(&mut self) -> bool {
        let mut buf = [0; 16 * 1024];
        let mut any = false;
        loop {
            match self.tls.reader().read(&mut buf) {
                Ok(0) => {
                    self.close("the other end closed TLS");
                    return any;
                }
                Ok(len) => {
                    any = true;
                    self.take(buf.get(..len).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
                Err(error) => {
                    self.close(&error.to_string());
                    return any;
                }
            }
        }
    }

    fn pump_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        while !self.exchange.is_ready() {
            self.check_alive()?;
            if Instant::now() >= deadline {
                bail!("no CSM within {:?}", self.patience);
            }
            self.pump(TICK)?;
        }
        Ok(())
    }

    fn check_alive(&self) -> Result<()> {
        match &self.closed {
            Some(why) => Err(anyhow!("the connection is over: {why}")),
            None => Ok(()),
        }
    }

    /// The first reason stays: what follows from it says less.
    fn close(&mut self, why: &str) {
        self.closed.get_or_insert_with(|| why.to_owned());
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, mut bytes: &[u8]) {
        loop {
            let used = self.exchange.feed(bytes);
            bytes = bytes.get(used..).unwrap_or_default();
            let now_ms = self.now_ms();
            loop {
                match self.exchange.next_event(now_ms) {
                    Ok(None) => break,
                    Ok(Some(Event::Request { token, message })) => self.inbox.push_back(Request::of(token, &message)),
                    Ok(Some(Event::Response { context, message })) => {
                        let reply = Reply {
                            code: message.code,
                            // A malformed one is no part of anything: who fetches refuses it.
                            part: Part::of(&message.options).unwrap_or_default(),
                            payload: message.payload.to_vec(),
                        };
                        self.answers.insert(context, Some(reply));
                    }
                    Ok(Some(Event::Closing(Closing::Abort(abort)))) => {
                        let why = format!("aborted: {}", String::from_utf8_lossy(abort.diagnostic));
                        self.closed.get_or_insert(why);
                    }
                    Ok(Some(Event::Closing(Closing::Release(_)))) => self.released = true,
                    Ok(Some(Event::Stray | Event::Pong)) => {}
                    Err(error) => {
                        self.closed.get_or_insert_with(|| error.to_string());
                        break;
                    }
                }
            }
            if bytes.is_empty() {
                return;
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        let bytes = self.exchange.take_outgoing();
        if bytes.is_empty() && !self.tls.wants_write() {
            return Ok(());
        }
        let written = self.tls.writer().write_all(&bytes).map_err(Into::into).and_then(|()| self.write_records());
        match written {
            // What this end still had to say to a connection that is over is of no interest.
            Err(_) if self.closed.is_some() => Ok(()),
            Err(error) => {
                // The reason may be on its way: an Abort that was sent before the other end closed.
                self.read_last_words();
                self.close(&format!("{error:#}"));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn read_last_words(&mut self) {
        while self.closed.is_none() && matches!(self.tls.read_tls(&mut self.stream), Ok(len) if len > 0) {
            let broken = self.tls.process_new_packets().is_err();
            self.drain();
            if broken {
                return;
            }
        }
    }

    fn write_records(&mut self) -> Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream)?;
        }
        Ok(())
    }
}

/// Finishes a TLS handshake within ten seconds.
fn handshake(mut tls: Connection, mut stream: TcpStream) -> Result<(Connection, TcpStream)> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).context("TLS handshake")?;
    }
    Ok((tls, stream))
}
