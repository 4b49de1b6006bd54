//! One agent's connection, driven: bytes in and out, requests of the agent to the role that answers, requests of the roles
//! to the agent. What they mean is the roles' business.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use protocol::{
    coap::{
        CoapOption,
        block::{Block, Part, slice_for},
        exchange::{Closing, Event, Exchange},
        frame::{Code, Message, OutMessage, Token, format},
        route::{Route, RouteError, RouteName, Side},
    },
    id::Role,
    limits,
    message::{
        self,
        enrol::{Hello, HelloAnswer},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_rustls::server::TlsStream;

use super::{
    agent::{Agent, AgentError, Command, Reply},
    listener::Gateway,
};
use crate::{refusal::Refusal, registrar::PendingEnrolment, store::StoreError};

/// Requests of one agent that may be under way at once.
const MAX_UNANSWERED: usize = 4;
/// How long a request that needs a proven connection waits for the proof.
const PROOF_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests in a row that an agent leaves unanswered, saying nothing else, before its connection is of no use. Its machine
/// still acknowledges them, or the connection would have ended before.
const MAX_SILENT: u32 = 2;
/// How long an agent may say nothing at all: three times what it may be silent for.
const SILENCE_LIMIT: Duration = Duration::from_millis(3 * limits::MAX_QUIET_MS);
/// How long a write to an agent that does not read may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

type Pending = oneshot::Sender<Result<Reply, AgentError>>;

/// The answer to one request of the agent.
struct Answer {
    token: Token,
    route: RouteName,
    began: Instant,
    up: usize,
    asked: Option<Block>,
    result: Result<Body, Refusal>,
}

/// What answers.
enum Body {
    Changed,
    Content(Vec<u8>),
    /// A part of a body of `len` bytes that begins at `offset`.
    Part {
        offset: usize,
        len: usize,
        bytes: Vec<u8>,
    },
    Links(String),
}

struct Session {
    gateway: Arc<Gateway>,
    peer: SocketAddr,
    connection: u64,
    exchange: Exchange<Pending>,
    commands: mpsc::Sender<Command>,
    answers: mpsc::Sender<Answer>,
    agent: Option<Arc<Agent>>,
    enrolment: Arc<Mutex<Option<PendingEnrolment>>>,
    began: Instant,
    heard: Instant,
    /// Requests that went unanswered since then.
    silent: u32,
    tasks: JoinSet<()>,
    /// Held while the connection counts as a stranger's.
    permit: Option<OwnedSemaphorePermit>,
    attended: bool,
}

/// Why a session ends.
enum End {
    Closed,
    Told(String),
}

pub(super) async fn run(
    gateway: Arc<Gateway>,
    mut stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    connection: u64,
    permit: OwnedSemaphorePermit,
    mut shutdown: watch::Receiver<bool>,
) {
    let (commands, mut orders) = mpsc::channel(8);
    let (answers, mut answered) = mpsc::channel(MAX_UNANSWERED);
    let mut session = Session {
        gateway,
        peer,
        connection,
        exchange: Exchange::new(limits::MAX_MESSAGE_LEN),
        commands,
        answers,
        agent: None,
        enrolment: Arc::default(),
        began: Instant::now(),
        heard: Instant::now(),
        silent: 0,
        tasks: JoinSet::new(),
        permit: Some(permit),
        attended: false,
    };
    let mut buf = [0; 2048];
    let mut releasing = false;
    let end = loop {
        if let Err(end) = session.flush(&mut stream).await {
            break end;
        }
        if session.exchange.is_drained() {
            break End::Closed;
        }
        if session.agent.as_ref().is_some_and(|agent| agent.is_proven()) {
            session.permit = None; // no stranger any more
        }
        let deadline = session.next_deadline();
        let step = tokio::select! {
            read = stream.read(&mut buf) => match read {
                Ok(0) | Err(_) => Err(End::Closed),
                Ok(len) => session.received(&buf[..len]),
            },
            Some(order) = orders.recv() => session.order(order),
            Some(answer) = answered.recv() => session.answer(answer),
            Some(_) = session.tasks.join_next() => Ok(()),
            () = tokio::time::sleep_until(deadline.into()) => session.expire(),
            _ = shutdown.wait_for(|shutdown| *shutdown), if !releasing => {
                releasing = true;
                // A peer that is gone already needs no leave.
                session.exchange.release(None).map_err(|_| End::Closed)
            }
        };
        if let Err(end) = step {
            break end;
        }
    };
    if let End::Told(why) = end {
        session.exchange.abort(&why);
    }
    // Whatever still waits, the Abort at least; a peer that is gone does not take it, and need not.
    _ = session.flush(&mut stream).await;
    _ = tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await;
    orders.close();
    if let Some(agent) = session.agent.take() {
        session.gateway.registry.leave(&agent);
        tracing::debug!(node = %agent.node_id(), %peer, connection, "agent left");
    }
}

impl Session {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next_deadline(&self) -> Instant {
        let requests = self.exchange.next_deadline().map(|ms| self.began + Duration::from_millis(ms));
        let unproven = self.permit.is_some().then(|| self.began + Duration::from_millis(limits::UNPROVEN_LIFETIME_MS));
        [requests, unproven].into_iter().flatten().fold(self.heard + SILENCE_LIMIT, Instant::min)
    }

    async fn flush(&mut self, stream: &mut TlsStream<TcpStream>) -> Result<(), End> {
        while !self.exchange.outgoing().is_empty() {
            let bytes = self.exchange.take_outgoing();
            let write = async {
                stream.write_all(&bytes).await?;
                stream.flush().await
            };
            match tokio::time::timeout(WRITE_TIMEOUT, write).await {
                Ok(Ok(())) => {}
                _ => return Err(End::Closed),
            }
        }
        Ok(())
    }

    fn received(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        (self.heard, self.silent) = (Instant::now(), 0);
        loop {
            let used = self.exchange.feed(bytes);
            bytes = &bytes[used..];
            loop {
                let now_ms = self.now_ms();
                match self.exchange.next_event(now_ms) {
                    Ok(None) => break,
                    // The Abort with its reason waits to be sent.
                    Err(error) => {
                        tracing::debug!(peer = %self.peer, %error, "the connection broke CoAP's rules");
                        self.stranger_event("bad_frame", &error.to_string());
                        return Err(End::Closed);
                    }
                    Ok(Some(Event::Request { token, message })) => {
                        let request = Incoming::decode(token, &message);
                        self.requested(request)?;
                    }
                    Ok(Some(Event::Response { context, message })) => {
                        let reply = Reply {
                            code: message.code,
                            // A malformed one is no part of anything: who fetches refuses it.
                            part: Part::of(&message.options).unwrap_or_default(),
                            payload: message.payload.to_vec(),
                        };
                        // Who asked may have given up.
                        _ = context.send(Ok(reply));
                    }
                    Ok(Some(Event::Closing(Closing::Abort(abort)))) => {
                        let why = String::from_utf8_lossy(abort.diagnostic).into_owned();
                        tracing::debug!(peer = %self.peer, why, "the agent aborted the connection");
                    }
                    Ok(Some(Event::Closing(Closing::Release(_)) | Event::Stray | Event::Pong)) => {}
                }
            }
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    fn requested(&mut self, incoming: Incoming) -> Result<(), End> {
        let Incoming { token, route, payload, asked } = incoming;
        let began = Instant::now();
        let up = payload.len();
        let answer = move |route, result| Answer { token, route, began, up, asked, result };
        let route = match route {
            Ok(route) => route,
            Err(refusal) => return self.answer(answer(RouteName::WellKnownCore, Err(refusal))),
        };
        let name = route.name();
        self.step(name, "begin", up, 0, 0.0);
        if self.exchange.unanswered_count() > MAX_UNANSWERED {
            let refusal = Refusal::too_many("too_many_requests", "too many requests of this connection are under way");
            return self.answer(answer(name, Err(refusal)));
        }
        let gateway = self.gateway.clone();
        match (route, self.agent.clone()) {
            (Route::WellKnownCore, _) => {
                let mut text = String::new();
                let routes = RouteName::ALL.into_iter().filter(|name| name.parts().2 == Side::ControlPlane);
                let result = protocol::coap::write_routes(routes, &mut text)
                    .map(|()| Body::Links(text))
                    .map_err(|error| Refusal::internal(&error));
                self.answer(answer(name, result))
            }
            (Route::Hello, None) => {
                let agent = match self.hello(&payload) {
                    Ok(agent) => agent,
                    Err(refusal) => return self.answer(answer(name, Err(refusal))),
                };
                self.agent = Some(agent.clone());
                self.spawn(async move {
                    let result = is_known(&gateway, &agent)
                        .await
                        .map_err(Refusal::from)
                        .and_then(|known| content(&if known { HelloAnswer::Known } else { HelloAnswer::Enrol }));
                    answer(name, result)
                });
                Ok(())
            }
            (Route::Hello, Some(_)) => {
                let refusal = Refusal::bad_request("second_hello", "a connection says hello once");
                self.answer(answer(name, Err(refusal)))
            }
            (_, None) => {
                let refusal = Refusal::forbidden("no_hello", "a connection begins with hello");
                self.answer(answer(name, Err(refusal)))
            }
            (Route::Enrol, Some(agent)) => {
                let enrolment = self.enrolment.clone();
                self.spawn(async move {
                    let result = match message::decode(&payload) {
                        Ok(enrol) => gateway.registrar.enrol(&agent, &enrol).await.and_then(|(reply, pending)| {
                            *enrolment.lock().unwrap_or_else(PoisonError::into_inner) = Some(pending);
                            content(&reply)
                        }),
                        Err(_) => Err(malformed()),
                    };
                    answer(name, result)
                });
                Ok(())
            }
            (Route::Activate, Some(agent)) => {
                // One try: whatever comes of it, the secret is gone.
                let pending = self.enrolment.lock().unwrap_or_else(PoisonError::into_inner).take();
                self.spawn(async move {
                    let result = match message::decode(&payload) {
                        Ok(activate) => {
                            gateway.registrar.activate(&agent, pending, &activate).await.map(|()| Body::Changed)
                        }
                        Err(_) => Err(malformed()),
                    };
                    answer(name, result)
                });
                Ok(())
            }
            (Route::Manifest(_) | Route::Payload(_) | Route::Confirm | Route::Report, Some(agent)) => {
                self.spawn(async move {
                    let result = if agent.proven_within(PROOF_TIMEOUT).await {
                        serve_tenant(&gateway, &agent, route, asked, &payload).await
                    } else {
                        Err(Refusal::forbidden("not_proven", "no quote of this connection has verified"))
                    };
                    answer(name, result)
                });
                Ok(())
            }
            (
                Route::Challenge
                | Route::LogBoot
                | Route::LogIma { .. }
                | Route::LogCommandLine
                | Route::LogUserspace
                | Route::Share
                | Route::Revocation,
                Some(_),
            ) => {
                let refusal = Refusal::not_found("wrong_side", "the control plane asks this, the agent answers");
                self.answer(answer(name, Err(refusal)))
            }
        }
    }

    fn hello(&mut self, payload: &[u8]) -> Result<Arc<Agent>, Refusal> {
        let hello: Hello = message::decode(payload).map_err(|_| malformed())?;
        if hello.version != message::VERSION {
            return Err(Refusal::bad_request(
                "unknown_version",
                format!("this gateway speaks version {}", message::VERSION),
            ));
        }
        let certificate = self.gateway.server_certificate;
        let agent = Agent::new(self.connection, self.peer, hello, certificate, self.commands.clone());
        if !self.gateway.registry.claim(&agent) {
            return Err(Refusal::too_many(
                "too_many_unproven",
                "two connections claim this node and have not proven it yet",
            ));
        }
        Ok(agent)
    }

    /// Runs a request of the agent beside the connection, so that the connection goes on.
    fn spawn(&mut self, work: impl Future<Output = Answer> + Send + 'static) {
        let answers = self.answers.clone();
        self.tasks.spawn(async move {
            // A closed channel means that the connection is gone.
            _ = answers.send(work.await).await;
        });
    }

    fn answer(&mut self, answer: Answer) -> Result<(), End> {
        let Answer { token, route, began, up, asked, result } = answer;
        let opened = matches!((route, &result), (RouteName::Activate, Ok(_)))
            || matches!((route, &result), (RouteName::Hello, Ok(Body::Content(body))) if *body == known());
        let sent = match &result {
            Ok(Body::Changed) => self.exchange.respond(token, &OutMessage::new(Code::CHANGED)),
            Ok(Body::Content(body)) => {
                let message = OutMessage::new(Code::CONTENT).content_format(format::OCTET_STREAM).payload(body);
                self.exchange.respond(token, &message)
            }
            Ok(Body::Links(text)) => {
                let message = OutMessage::new(Code::CONTENT).content_format(format::LINK).payload(text.as_bytes());
                self.exchange.respond(token, &message)
            }
            Ok(Body::Part { offset, len, bytes }) => match slice_for(asked, *len, self.room()) {
                Ok(slice) if slice.offset >= *offset && slice.offset - *offset + slice.len <= bytes.len() => {
                    let from = slice.offset - *offset;
                    self.exchange.respond(token, &slice.response(&bytes[from..from + slice.len]))
                }
                Ok(_) => self.exchange.respond(token, &OutMessage::new(Code::INTERNAL_SERVER_ERROR)),
                Err(error) => self.exchange.respond(token, &OutMessage::new(error.code())),
            },
            Err(refusal) => {
                tracing::debug!(peer = %self.peer, route = route.name(), kind = refusal.kind, detail = refusal.detail, "refused");
                let mut text = format!("{}: {}", refusal.kind, refusal.detail);
                text.truncate(text.floor_char_boundary(512));
                self.exchange.respond(token, &OutMessage::diagnostic(refusal.code, &text))
            }
        };
        sent.map_err(|error| End::Told(error.to_string()))?;
        if result.is_ok() {
            let down = match &result {
                Ok(Body::Content(body)) => body.len(),
                Ok(Body::Part { bytes, .. }) => bytes.len(),
                _ => 0,
            };
            self.step(route, "end", up, down, began.elapsed().as_secs_f64() * 1e3);
        }
        if opened && !self.attended {
            self.attended = true;
            self.attend();
        }
        Ok(())
    }

    /// The node is bound: both roles begin to look at it, each in its own time.
    fn attend(&mut self) {
        let Some(agent) = self.agent.clone() else { return };
        let (verifier, tenant) = (self.gateway.verifier.clone(), self.gateway.tenant.clone());
        let other = agent.clone();
        self.tasks.spawn(async move { verifier.attend(agent).await });
        self.tasks.spawn(async move { tenant.attend(other).await });
    }

    fn order(&mut self, command: Command) -> Result<(), End> {
        match command {
            Command::Request { route, block, body, reply } => {
                let (method, path, query) = route.to_parts();
                let mut message = OutMessage::new(Code::from_byte(method as u8)).payload(&body);
                for segment in &path {
                    message = message.segment(segment);
                }
                if let Some(query) = &query {
                    message = message.query(query);
                }
                if let Some(block) = block {
                    message = message.block2(block);
                }
                let deadline = self.now_ms() + limits::REQUEST_TIMEOUT_MS;
                // On an error the reply's sender is dropped, which is the answer `Gone`.
                self.exchange.request(&message, reply, deadline).map_err(|error| End::Told(error.to_string()))
            }
            Command::Close(why) => Err(End::Told(why)),
        }
    }

    fn expire(&mut self) -> Result<(), End> {
        let now_ms = self.now_ms();
        while let Some(reply) = self.exchange.expire(now_ms) {
            // Who asked may have given up.
            _ = reply.send(Err(AgentError::NoAnswer));
            self.silent += 1;
        }
        if self.silent >= MAX_SILENT || self.heard.elapsed() >= SILENCE_LIMIT {
            return Err(End::Told("nothing was heard for too long".into()));
        }
        let proven = self.agent.as_ref().is_some_and(|agent| agent.is_proven());
        if self.permit.is_some() && !proven && now_ms >= limits::UNPROVEN_LIFETIME_MS {
            return Err(End::Told("no quote of this connection has verified within 60 s".into()));
        }
        Ok(())
    }

    fn room(&self) -> protocol::coap::block::Room {
        self.exchange.block_room().at_most(limits::MAX_BLOCK_PAYLOAD)
    }

    fn stranger_event(&self, kind: &'static str, detail: &str) {
        if let Some(agent) = self.agent.clone() {
            let (registrar, detail) = (self.gateway.registrar.clone(), detail.to_owned());
            tokio::spawn(async move { registrar.record(Some(agent.node_id()), kind, detail).await });
        }
    }

    fn step(&self, route: RouteName, phase: &str, up: usize, down: usize, ms: f64) {
        let to = match route {
            RouteName::Hello | RouteName::WellKnownCore => "gateway",
            RouteName::Enrol | RouteName::Activate => Role::Registrar.name(),
            _ => Role::Tenant.name(),
        };
        let node = self.agent.as_ref().map(|agent| agent.node_id().to_string());
        tracing::debug!(step = route.name(), phase, from = "agent", to, node, up, down, ms);
    }
}

/// A request of the agent, copied out of the receive buffer.
struct Incoming {
    token: Token,
    route: Result<Route, Refusal>,
    payload: Vec<u8>,
    asked: Option<Block>,
}

impl Incoming {
    fn decode(token: Token, message: &Message<'_>) -> Self {
        let route = if message.options.unknown_critical().is_some() {
            Err(Refusal {
                code: Code::BAD_OPTION,
                kind: "bad_option",
                detail: "a critical option is not understood".into(),
            })
        } else {
            let path = message.options.all(CoapOption::UriPath);
            let query = message.options.all(CoapOption::UriQuery);
            Route::parse(message.code.to_byte(), path, query).map_err(|error| Refusal {
                code: match error {
                    RouteError::NotFound => Code::NOT_FOUND,
                    RouteError::MethodNotAllowed => Code::METHOD_NOT_ALLOWED,
                    RouteError::BadParameter => Code::BAD_REQUEST,
                },
                kind: "bad_path",
                detail: error.to_string(),
            })
        };
        let (route, asked) = match message.options.block2() {
            Ok(asked) => (route, asked),
            Err(error) => (Err(Refusal { code: error.code(), kind: "bad_block", detail: error.to_string() }), None),
        };
        Self { token, route, payload: message.payload.to_vec(), asked }
    }
}

/// Whether the AK need not be enrolled: the verifier has pinned it, or the registrar has bound it. Nothing rests on this
/// but what is asked for next.
async fn is_known(gateway: &Gateway, agent: &Agent) -> Result<bool, StoreError> {
    let attestation = gateway.verifier.store().attestation(agent.node_id()).await?;
    let pinned = attestation.and_then(|attestation| attestation.ak).map(|(name, _)| name);
    match pinned {
        Some(name) => Ok(name == agent.ak_name()),
        None => gateway.registrar.knows(agent.node_id(), agent.ak_name()).await,
    }
}

async fn serve_tenant(
    gateway: &Gateway,
    agent: &Arc<Agent>,
    route: Route,
    asked: Option<Block>,
    payload: &[u8],
) -> Result<Body, Refusal> {
    match route {
        Route::Manifest(sealing_id) => content(&gateway.tenant.manifest(agent, sealing_id).await?),
        Route::Payload(sealing_id) => {
            let offset = asked.map_or(0, Block::offset);
            let (len, bytes) = gateway.tenant.ciphertext(agent, sealing_id, offset, limits::MAX_BLOCK_PAYLOAD).await?;
            Ok(Body::Part { offset, len, bytes })
        }
        Route::Confirm => {
            let confirm = message::decode(payload).map_err(|_| malformed())?;
            gateway.tenant.confirm(agent, &confirm).await.map(|()| Body::Changed)
        }
        _ => {
            let report = message::decode(payload).map_err(|_| malformed())?;
            gateway.tenant.report(agent, &report).await.map(|()| Body::Changed)
        }
    }
}

fn content<T: serde::Serialize>(body: &T) -> Result<Body, Refusal> {
    message::to_vec(body).map(Body::Content).map_err(|error| Refusal::internal(&error))
}

fn known() -> Vec<u8> {
    message::to_vec(&HelloAnswer::Known).unwrap_or_default()
}

fn malformed() -> Refusal {
    Refusal::bad_request("malformed", "the body is not a message of this version")
}
