//! One connection to a gateway, from `hello` on: bytes and finished work go in, bytes and work to do come out.
//!
//! Three things happen side by side on a connection, one file each: [`enrol`] makes the node known, [`attest`] answers
//! challenges, [`provision`] turns two shares into the payload in place. The machine belongs to one connection; what
//! outlives it (keys in the TPM, the placed payload) is the driver's.

mod attest;
mod enrol;
mod provision;
#[cfg(test)]
mod tests;

use alloc::{
    boxed::Box,
    collections::VecDeque,
    string::{String, ToString as _},
    vec::Vec,
};

use protocol::{
    bytes::Array,
    coap::{
        block::{Block, Fetch, Slice, slice_for},
        exchange::{self, Closing, Event, Exchange},
        frame::{Code, Message, OutMessage, Token, format},
        route::{Route, RouteError, RouteName, Side},
    },
    codec::CodecError,
    crypto::{join::JoinToken, manifest::TenantPublicKey, nk::Nk, payload::Plaintext, secret::CredentialSecret},
    id::{NodeId, Role, SealingId},
    limits,
    message::{
        self,
        attest::{BootLogState, Challenge, ImaPart, PcrValueList, Selection},
        enrol::{Credential, Wants},
        provision::{Report, ReportKind},
    },
};

use self::{attest::Attestation, enrol::Enrolment, provision::Provision};

/// What the driver knows before it connects; fixed for the connection.
#[derive(Debug)]
pub struct Facts {
    /// Digest of the EK.
    pub node_id: NodeId,
    /// TPMT_PUBLIC of the EK.
    pub ek_public: Vec<u8>,
    /// DER, leaf first; empty without a certificate.
    pub ek_chain: Vec<Vec<u8>>,
    /// TPMT_PUBLIC of the AK.
    pub ak_public: Vec<u8>,
    /// Name of the AK.
    pub ak_name: [u8; 34],
    /// SHA-256 of the certificate by which the server proved itself.
    pub server_certificate: [u8; 32],
    /// The configured join token.
    pub join: Option<JoinToken>,
    /// The tenant keys pinned by the image; at least one, or no payload is taken.
    pub tenant_keys: Vec<TenantPublicKey>,
    /// Whether the image allows autorun.
    pub autorun: bool,
    /// What to ask for.
    pub wants: Wants,
    /// The firmware left a boot log.
    pub has_boot_log: bool,
    /// The kernel keeps an IMA list.
    pub has_ima_log: bool,
    /// A payload placed in this boot whose confirmation has no answer yet.
    pub unconfirmed: Option<Unconfirmed>,
}

/// A finished `confirm` that waits for its answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unconfirmed {
    /// Which sealing is in place.
    pub sealing_id: SealingId,
    /// The HMAC under the confirm key, which itself is gone.
    pub proof: [u8; 32],
    /// The manifest asks for autorun.
    pub autorun: bool,
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Input<'a> {
    /// Bytes from the peer.
    Bytes(&'a [u8]),
    /// Only time passed.
    Tick,
    /// Nothing was heard for long: ask for a sign of life.
    Silence,
    /// Answers [`Output::Seed`]: a key pair from bytes that no one can guess, of this boot and this machine only.
    Nk(Nk),
    /// Answers [`Output::Activate`].
    Activated(CredentialSecret),
    /// Answers [`Output::Quote`].
    Quoted(Box<Quoted>),
    /// Answers [`Output::Quote`]: the TPM did not do it, in words for the peer.
    QuoteFailed(&'a str),
    /// Answers [`Output::ReadLog`]: the part, cut by [`Machine::slice`].
    Log {
        /// From [`Output::ReadLog`].
        token: Token,
        /// Which part, and how long the whole is.
        slice: Slice,
        /// The part's bytes.
        bytes: &'a [u8],
    },
    /// Answers [`Output::ReadLog`]: there is none, or no such part.
    NoLog {
        /// From [`Output::ReadLog`].
        token: Token,
        /// In words for the peer.
        why: &'a str,
    },
    /// Answers [`PayloadWork::Place`]. Begin, Write and Abandon need no answer when they succeed.
    Placed,
    /// Answers [`PayloadWork::ExtendDelivered`].
    DeliveredExtended,
    /// Answers any [`Output::Payload`]: what was refused or failed, in words for the operator.
    PayloadFailed {
        /// Whose fault: the payload's, or the machine's it was to be placed on.
        kind: ReportKind,
        /// One sentence.
        why: &'a str,
    },
    /// Autorun, started at [`Output::Autorun`], has ended.
    AutorunEnded {
        /// Its exit status.
        code: i32,
        /// The end of its output.
        text: &'a [u8],
    },
}

/// A quote and what was read with it.
#[derive(Debug)]
pub struct Quoted {
    /// TPMS_ATTEST as the TPM signed it.
    pub attested: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// Values that hash to the quoted digest.
    pub pcrs: PcrValueList,
    /// The boot log, if there is one.
    pub boot_log: Option<BootLogState>,
    /// One per [`QuoteOrder::ima_from`]: new entries, read after the quote.
    pub ima: heapless::Vec<Option<ImaPart>, { limits::MAX_NONCES }>,
    /// What the credential of the order held.
    pub credential_secret: Option<CredentialSecret>,
}

/// What the TPM is to sign, and what to read after it.
#[derive(Debug)]
pub struct QuoteOrder {
    /// PCRs.
    pub selection: Selection,
    /// Made here, never by a peer.
    pub qualifying_data: [u8; 32],
    /// To be activated in the same batch.
    pub credential: Option<Credential>,
    /// IMA entries wanted, per challenge that the quote answers.
    pub ima_from: heapless::Vec<u64, { limits::MAX_NONCES }>,
}

/// What the driver is to do; every one is answered by its input before the next is taken, but for `Autorun`.
#[derive(Debug)]
pub enum Output {
    /// Something worth a line in the log.
    Note(Note),
    /// Make a new NK.
    Seed,
    /// TPM2_ActivateCredential.
    Activate(Credential),
    /// TPM2_Quote, and the reading that belongs to it.
    Quote(QuoteOrder),
    /// Read a part of a log.
    ReadLog {
        /// To be given back.
        token: Token,
        /// Which.
        log: Log,
        /// What was asked for.
        block: Option<Block>,
    },
    /// Work on the payload directory.
    Payload(PayloadWork),
    /// The payload is in place and confirmed, and its manifest asks for autorun: start it, if there is one.
    Autorun,
    /// The confirmation was answered: it need not be kept any longer.
    Confirmed(SealingId),
    /// The tenant knows no such release: the placed payload is of no use to it.
    ConfirmRefused(SealingId),
    /// Close the connection after what waits was sent.
    Close(CloseReason),
}

/// Work on the payload directory, in this order.
#[derive(Debug)]
pub enum PayloadWork {
    /// Make a hidden directory for a plaintext of so many bytes.
    Begin {
        /// Which sealing.
        sealing_id: SealingId,
        /// Bytes of plaintext, container and all.
        plaintext_len: u64,
    },
    /// The next plaintext.
    Write(Plaintext),
    /// All is there and proven: store the confirmation beside it, and rename.
    Place(Unconfirmed),
    /// Extend "delivered" into the phase PCR.
    ExtendDelivered,
    /// Remove the hidden directory.
    Abandon,
}

/// Which log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Log {
    /// The firmware's.
    Boot,
    /// The kernel's list, from an entry on.
    Ima {
        /// The first entry wanted.
        from: u64,
    },
    /// The kernel's command line, without its newline.
    CommandLine,
    /// What userspace measured after the firmware's log ended.
    Userspace,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloseReason {
    /// The peer said no to something that nothing goes on without.
    Refused(RouteName),
    /// The peer did not answer in time.
    NoAnswer(RouteName),
    /// The peer is about to end: come back.
    Released,
    /// The payload cannot be had on this connection.
    PayloadFailed,
}

/// A line for the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Note {
    /// A step of the protocol was taken.
    Step(Step),
    /// The peer refused a request of ours, in its words.
    Refused {
        /// Which.
        route: RouteName,
        /// With this code.
        code: Code,
        /// At most 256 characters.
        text: String,
    },
    /// A share did not open, or belongs to another sealing than the other one.
    ShareRefused {
        /// Whose.
        role: Role,
        /// Why.
        why: &'static str,
    },
    /// The shares make another key than this sealing's.
    TagMismatch,
    /// Manifest or payload is not acceptable, or could not be put in place.
    PayloadRefused {
        /// One sentence.
        why: String,
    },
}

/// One step, as DESIGN's table counts them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// The message.
    pub name: RouteName,
    /// The other end.
    pub peer: &'static str,
    /// The agent asked (else it answered).
    pub outbound: bool,
    /// The step begins (a request was sent or came in); else it is finished.
    pub begins: bool,
}

/// Why a machine is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum Error {
    #[error("the connection broke CoAP's rules: {0}")]
    Exchange(#[from] exchange::Error),
    #[error("a message could not be sent: {0}")]
    Send(#[from] exchange::SendError),
    #[error("a message does not fit its own limits: {0}")]
    Codec(#[from] CodecError),
    #[error("{state} does not expect this input")]
    OutOfOrder { state: &'static str },
    #[error("the machine is closed")]
    Closed,
}

/// What a pending request of ours was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Asked(RouteName);

/// The agent's end of one connection.
#[derive(Debug)]
pub struct Machine<'f> {
    link: Link<'f>,
    enrolment: Enrolment,
    attestation: Attestation,
    provision: Provision,
    closed: bool,
}

/// What every state needs to act: the facts, the exchange, and the queue of outputs.
#[derive(Debug)]
struct Link<'f> {
    facts: &'f Facts,
    exchange: Exchange<Asked>,
    outputs: VecDeque<Output>,
    now_ms: u64,
    unix_s: Option<u64>,
}

impl<'f> Machine<'f> {
    /// Begins a connection: CSM and `hello` wait in [`outgoing`](Self::outgoing).
    ///
    /// # Errors
    /// As [`handle_input`](Self::handle_input).
    pub fn new(facts: &'f Facts, now_ms: u64) -> Result<Self, Error> {
        let exchange = Exchange::new(limits::MAX_MESSAGE_LEN);
        let mut link = Link { facts, exchange, outputs: VecDeque::new(), now_ms, unix_s: None };
        let enrolment = Enrolment::begin(&mut link)?;
        Ok(Self {
            enrolment,
            attestation: Attestation::default(),
            provision: Provision::begin(&mut link),
            link,
            closed: false,
        })
    }

    /// Takes one input. `now_ms` is any clock that does not go back; `unix_s` the wall clock, where it is plausible.
    ///
    /// # Errors
    /// [`Error`]; the machine is closed then and stays closed. [`outgoing`](Self::outgoing) may still hold an Abort.
    pub fn handle_input(&mut self, now_ms: u64, unix_s: Option<u64>, input: Input<'_>) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        self.link.now_ms = now_ms;
        self.link.unix_s = unix_s;
        self.dispatch(input).inspect_err(|_| self.closed = true)
    }

    /// What to do next. Send [`outgoing`](Self::outgoing) first.
    pub fn poll_output(&mut self, now_ms: u64) -> Option<Output> {
        self.link.now_ms = now_ms;
        if self.link.outputs.is_empty() && !self.closed {
            self.attestation.poll(&mut self.link, &self.provision);
        }
        self.link.outputs.pop_front()
    }

    /// When [`Input::Tick`] is due, if nothing else comes.
    pub fn poll_timeout(&self) -> Option<u64> {
        [self.link.exchange.next_deadline(), self.attestation.gather_deadline()].into_iter().flatten().min()
    }

    /// Bytes for the peer.
    pub fn outgoing(&self) -> &[u8] {
        self.link.exchange.outgoing()
    }

    /// The first `len` bytes of [`outgoing`](Self::outgoing) were sent.
    pub fn sent(&mut self, len: usize) {
        self.link.exchange.sent(len);
    }

    /// Cuts the part of a log of `body_len` bytes that answers `asked`; `None` if there is no such part.
    pub fn slice(&self, asked: Option<Block>, body_len: usize) -> Option<Slice> {
        let room = self.link.exchange.block_room().at_most(limits::MAX_BLOCK_PAYLOAD);
        slice_for(asked, body_len, room).ok()
    }

    /// Whether the node is bound: enrolment is over.
    pub const fn is_bound(&self) -> bool {
        matches!(self.enrolment, Enrolment::Bound)
    }

    fn dispatch(&mut self, input: Input<'_>) -> Result<(), Error> {
        let link = &mut self.link;
        match input {
            Input::Bytes(bytes) => return self.receive(bytes),
            Input::Tick => {
                if let Some(Asked(route)) = link.exchange.expire(link.now_ms) {
                    link.outputs.push_back(Output::Close(CloseReason::NoAnswer(route)));
                }
            }
            Input::Silence => link.exchange.ping()?,
            Input::Nk(nk) => self.provision.nk_made(nk)?,
            Input::Activated(secret) => self.enrolment.activated(link, &secret)?,
            Input::Quoted(quoted) => self.attestation.quoted(link, &mut self.provision, quoted)?,
            Input::QuoteFailed(why) => self.attestation.failed(link, why)?,
            Input::Log { token, slice, bytes } => {
                let message = slice.response(bytes).content_format(format::OCTET_STREAM);
                link.exchange.respond(token, &message)?;
            }
            Input::NoLog { token, why } => {
                link.exchange.respond(token, &OutMessage::diagnostic(Code::NOT_FOUND, why))?;
            }
            Input::Placed => self.provision.placed(link)?,
            Input::DeliveredExtended => self.provision.extended(link)?,
            Input::PayloadFailed { kind, why } => self.provision.payload_failed(link, kind, why)?,
            Input::AutorunEnded { code, text } => self.provision.autorun_ended(link, code, text)?,
        }
        Ok(())
    }

    // Not inlined, as others here and in the states: in one frame all their messages would lie side by side, and that
    // frame is on the stack whatever comes.
    #[inline(never)]
    fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        loop {
            let used = self.link.exchange.feed(bytes);
            bytes = bytes.get(used..).unwrap_or_default();
            while let Some(event) =
                Received::next(&mut self.link.exchange, self.provision.fetch_mut(), self.link.now_ms)?
            {
                self.handle_received(event)?;
            }
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    #[inline(never)]
    fn handle_received(&mut self, received: Received) -> Result<(), Error> {
        let link = &mut self.link;
        match received {
            Received::Request { token, request } => self.handle_request(token, request),
            Received::Response { route, answer } => {
                if let Answer::Refused { code, text } = answer {
                    link.note(Note::Refused { route, code, text });
                    return match route {
                        RouteName::Hello | RouteName::Enrol | RouteName::Activate => {
                            link.outputs.push_back(Output::Close(CloseReason::Refused(route)));
                            Ok(())
                        }
                        _ => self.provision.refused(link, route),
                    };
                }
                if route != RouteName::Payload {
                    link.finished(route, true);
                }
                match (route, answer) {
                    (RouteName::Payload, Answer::BadPart(why)) => self.provision.part_refused(link, &why),
                    (RouteName::Hello, Answer::Hello(answer)) => self.enrolment.hello_answered(link, answer),
                    (RouteName::Enrol, Answer::Enrol(answer)) => self.enrolment.enrol_answered(link, *answer),
                    (RouteName::Activate, Answer::Empty) => self.enrolment.bound(),
                    (RouteName::Manifest, Answer::Manifest(manifest)) => self.provision.manifest(link, &manifest),
                    (RouteName::Payload, Answer::Part { bytes, last }) => self.provision.part(link, &bytes, last),
                    (RouteName::Confirm, Answer::Empty) => self.provision.confirmed(link),
                    (RouteName::Report, _) => Ok(()),
                    _ => Err(Error::OutOfOrder { state: "Machine" }),
                }
            }
            Received::Released => {
                link.outputs.push_back(Output::Close(CloseReason::Released));
                Ok(())
            }
        }
    }

    #[inline(never)]
    fn handle_request(&mut self, token: Token, request: Request) -> Result<(), Error> {
        let link = &mut self.link;
        match request {
            Request::Challenge(challenge) => self.attestation.challenged(link, &self.provision, token, challenge),
            Request::Share(share) => {
                link.begins(RouteName::Share, role_name(share.role), false);
                self.provision.share(link, token, &share)
            }
            Request::ReadLog { log, block } => {
                link.outputs.push_back(Output::ReadLog { token, log, block });
                Ok(())
            }
            Request::WellKnownCore => {
                let mut text = String::new();
                let links = RouteName::ALL.into_iter().filter(|name| name.parts().2 == Side::Agent);
                if protocol::coap::write_routes(links, &mut text).is_err() {
                    text.clear(); // a String takes all that is written
                }
                let message = OutMessage::new(Code::CONTENT).content_format(format::LINK).payload(text.as_bytes());
                Ok(link.exchange.respond(token, &message)?)
            }
            Request::Refused { code, why } => Ok(link.exchange.respond(token, &OutMessage::diagnostic(code, why))?),
        }
    }
}

impl Link<'_> {
    fn note(&mut self, note: Note) {
        self.outputs.push_back(Output::Note(note));
    }

    fn begins(&mut self, name: RouteName, peer: &'static str, outbound: bool) {
        self.note(Note::Step(Step { name, peer, outbound, begins: true }));
    }

    fn finished(&mut self, name: RouteName, outbound: bool) {
        self.note(Note::Step(Step { name, peer: answerer(name), outbound, begins: false }));
    }

    /// Sends a request of ours.
    fn ask(&mut self, route: Route, block: Option<Block>, payload: &[u8]) -> Result<(), Error> {
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
        let deadline = self.now_ms.saturating_add(limits::REQUEST_TIMEOUT_MS);
        self.exchange.request(&message, Asked(route.name()), deadline)?;
        if block.is_none_or(|block| block.num() == 0) {
            self.begins(route.name(), answerer(route.name()), true);
        }
        Ok(())
    }

    fn post<T: serde::Serialize>(&mut self, route: Route, body: &T) -> Result<(), Error> {
        let payload = message::to_vec(body)?;
        self.ask(route, None, &payload)
    }

    fn report(&mut self, sealing_id: SealingId, kind: ReportKind, code: i32, text: &[u8]) -> Result<(), Error> {
        let tail = text.len().saturating_sub(limits::MAX_REPORT_LEN);
        let text = protocol::bytes::Bytes::new(text.get(tail..).unwrap_or_default())?;
        self.post(Route::Report, &Report { sealing_id, kind, code, text })
    }
}

const fn answerer(route: RouteName) -> &'static str {
    match route {
        RouteName::Hello => "gateway",
        RouteName::Enrol | RouteName::Activate => "registrar",
        _ => "tenant",
    }
}

const fn role_name(role: Role) -> &'static str {
    role.name()
}

/// An event of the exchange, decoded so far that it borrows nothing.
enum Received {
    Request { token: Token, request: Request },
    Response { route: RouteName, answer: Answer },
    Released,
}

enum Request {
    Challenge(Box<Challenge>),
    Share(Box<message::provision::Share>),
    ReadLog { log: Log, block: Option<Block> },
    WellKnownCore,
    Refused { code: Code, why: &'static str },
}

enum Answer {
    Empty,
    Hello(message::enrol::HelloAnswer),
    Enrol(Box<message::enrol::EnrolAnswer>),
    Manifest(Box<message::provision::SignedManifest>),
    /// A block of the payload, accepted by the fetch and copied out of the receive buffer.
    Part {
        bytes: Vec<u8>,
        last: bool,
    },
    /// A block that is not the next one of this body.
    BadPart(String),
    Refused {
        code: Code,
        text: String,
    },
}

impl Received {
    #[inline(never)]
    fn next(exchange: &mut Exchange<Asked>, mut fetch: Option<&mut Fetch>, now_ms: u64) -> Result<Option<Self>, Error> {
        loop {
            let Some(event) = exchange.next_event(now_ms)? else { return Ok(None) };
            return Ok(Some(match event {
                Event::Request { token, message } => Self::Request { token, request: Request::decode(&message) },
                Event::Response { context: Asked(route), message } => {
                    Self::Response { route, answer: Answer::decode(route, &message, fetch.take())? }
                }
                Event::Closing(Closing::Release(_)) => Self::Released,
                Event::Closing(Closing::Abort(_)) | Event::Stray | Event::Pong => continue,
            }));
        }
    }
}

impl Request {
    #[inline(never)]
    fn decode(message: &Message<'_>) -> Self {
        if message.options.unknown_critical().is_some() {
            return Self::Refused { code: Code::BAD_OPTION, why: "a critical option is not understood" };
        }
        let path = message.options.all(protocol::coap::CoapOption::UriPath);
        let query = message.options.all(protocol::coap::CoapOption::UriQuery);
        let route = match Route::parse(message.code.to_byte(), path, query) {
            Ok(route) => route,
            Err(RouteError::NotFound) => return Self::Refused { code: Code::NOT_FOUND, why: "no such path" },
            Err(RouteError::MethodNotAllowed) => {
                return Self::Refused { code: Code::METHOD_NOT_ALLOWED, why: "this path takes another method" };
            }
            Err(RouteError::BadParameter) => {
                return Self::Refused { code: Code::BAD_REQUEST, why: "a parameter is malformed" };
            }
        };
        let malformed = Self::Refused { code: Code::BAD_REQUEST, why: "the body is malformed" };
        let block = match message.options.block2() {
            Ok(block) => block,
            Err(_) => return Self::Refused { code: Code::BAD_REQUEST, why: "the Block2 option is malformed" },
        };
        match route {
            Route::Challenge => {
                message::decode(message.payload).map_or(malformed, |challenge| Self::Challenge(Box::new(challenge)))
            }
            Route::Share => message::decode(message.payload).map_or(malformed, |share| Self::Share(Box::new(share))),
            Route::LogBoot => Self::ReadLog { log: Log::Boot, block },
            Route::LogCommandLine => Self::ReadLog { log: Log::CommandLine, block },
            Route::LogUserspace => Self::ReadLog { log: Log::Userspace, block },
            Route::LogIma { from } => Self::ReadLog { log: Log::Ima { from }, block },
            Route::WellKnownCore => Self::WellKnownCore,
            Route::Revocation => {
                Self::Refused { code: Code::NOT_IMPLEMENTED, why: "this agent does not take revocations yet" }
            }
            _ => Self::Refused { code: Code::NOT_FOUND, why: "the agent does not answer this path" },
        }
    }
}

impl Answer {
    #[inline(never)]
    fn decode(route: RouteName, message: &Message<'_>, fetch: Option<&mut Fetch>) -> Result<Self, Error> {
        if !message.code.is_success() {
            let text = String::from_utf8_lossy(message.payload.get(..256).unwrap_or(message.payload)).into_owned();
            return Ok(Self::Refused { code: message.code, text });
        }
        Ok(match route {
            RouteName::Hello => Self::Hello(message::decode(message.payload)?),
            RouteName::Enrol => Self::Enrol(Box::new(message::decode(message.payload)?)),
            RouteName::Manifest => Self::Manifest(Box::new(message::decode(message.payload)?)),
            RouteName::Payload => match fetch.map(|fetch| fetch.accept(message)) {
                Some(Ok(chunk)) => Self::Part { bytes: chunk.bytes.to_vec(), last: chunk.last },
                Some(Err(error)) => Self::BadPart(error.to_string()),
                None => Self::Empty,
            },
            _ => Self::Empty,
        })
    }
}

/// The nonces a quote answers, roles ascending.
type Nonces = heapless::Vec<(Role, [u8; 32]), { limits::MAX_NONCES }>;

/// NK's public point, as messages carry it.
type NkPublic = Array<65>;
