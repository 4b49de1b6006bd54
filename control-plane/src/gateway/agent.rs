//! A connected agent as the roles see it: whom it claims to be, and a way to ask it.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use protocol::{
    coap::{
        block::{Block, Fetch, FetchError, Part, Szx},
        frame::Code,
        route::Route,
    },
    id::{NodeId, Role},
    limits,
    message::{self, enrol::Hello},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::store::AkName;

/// Why an agent did not answer as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum AgentError {
    #[error("the connection ended")]
    Gone,
    #[error("the agent did not answer within {} s", limits::REQUEST_TIMEOUT_MS / 1000)]
    NoAnswer,
    #[error("the agent refused: {code} {text}")]
    Refused { code: Code, text: String },
    #[error("the agent's answer is malformed")]
    Malformed,
    #[error("the agent's log could not be fetched: {0}")]
    Fetch(String),
}

/// What the session is asked to do.
pub(super) enum Command {
    /// Send a request and give its answer back.
    Request { route: Route, block: Option<Block>, body: Vec<u8>, reply: oneshot::Sender<Result<Reply, AgentError>> },
    /// End the connection, with a word to the agent.
    Close(String),
}

/// An answer with what a block-wise fetch needs.
pub(super) struct Reply {
    pub(super) code: Code,
    pub(super) part: Part,
    pub(super) payload: Vec<u8>,
}

/// One connection of one agent.
pub struct Agent {
    /// Number of the connection, ascending within this process.
    pub connection: u64,
    /// Where it came from.
    pub peer: SocketAddr,
    /// Its `hello`: a claim.
    pub hello: Hello,
    /// SHA-256 of the certificate that the gateway showed it.
    pub server_certificate: [u8; 32],
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) proven: watch::Sender<bool>,
    /// A role wants its loop on this connection to look again: verifier, tenant.
    wake: [Notify; 2],
    /// Shares did not fit: both roles start the bootstrap again.
    again: [std::sync::atomic::AtomicBool; 2],
}

impl Agent {
    pub(super) fn new(
        connection: u64,
        peer: SocketAddr,
        hello: Hello,
        server_certificate: [u8; 32],
        commands: mpsc::Sender<Command>,
    ) -> Arc<Self> {
        let (proven, _) = watch::channel(false);
        Arc::new(Self {
            connection,
            peer,
            hello,
            server_certificate,
            commands,
            proven,
            wake: Default::default(),
            again: Default::default(),
        })
    }

    /// Whom it claims to be.
    pub fn node_id(&self) -> NodeId {
        self.hello.node_id
    }

    /// The AK it claims.
    pub fn ak_name(&self) -> AkName {
        self.hello.ak_name
    }

    /// Whether a quote verified under a pinned AK on this connection.
    pub fn is_proven(&self) -> bool {
        *self.proven.borrow()
    }

    /// Waits until the connection is proven; `false` if that does not come in time.
    pub async fn proven_within(&self, time: std::time::Duration) -> bool {
        let mut proven = self.proven.subscribe();
        tokio::time::timeout(time, proven.wait_for(|proven| *proven)).await.is_ok_and(|proven| proven.is_ok())
    }

    /// Lets a role's loop look again at once.
    pub fn wake(&self, role: Role) {
        self.wake[slot(role)].notify_one();
    }

    /// Waits until somebody wakes this role's loop.
    pub async fn woken(&self, role: Role) {
        self.wake[slot(role)].notified().await;
    }

    /// The shares did not fit each other: both roles shall challenge for bootstrap again.
    pub fn bootstrap_again(&self) {
        for role in [Role::Verifier, Role::Tenant] {
            self.again[slot(role)].store(true, std::sync::atomic::Ordering::Release);
            self.wake(role);
        }
    }

    /// Whether a role shall begin its bootstrap again; asks once.
    pub fn takes_again(&self, role: Role) -> bool {
        self.again[slot(role)].swap(false, std::sync::atomic::Ordering::AcqRel)
    }

    /// Whether the connection has ended.
    pub fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }

    /// Waits for the connection's end.
    pub async fn gone(&self) {
        self.commands.closed().await;
    }

    /// Ends the connection with a reason for the agent's log.
    pub async fn close(&self, why: impl Into<String>) {
        // A connection that is gone already is closed.
        _ = self.commands.send(Command::Close(why.into())).await;
    }

    /// Sends a message of `role` and decodes the answer.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn ask<Q: Serialize, A: DeserializeOwned + Serialize>(
        &self,
        role: Role,
        route: Route,
        question: &Q,
    ) -> Result<A, AgentError> {
        let reply = self.post(role, route, question).await?;
        message::decode(&reply).map_err(|_| AgentError::Malformed)
    }

    /// Sends a message of `role` and gives the answer's payload.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn post<Q: Serialize>(&self, role: Role, route: Route, question: &Q) -> Result<Vec<u8>, AgentError> {
        let body = message::to_vec(question).map_err(|_| AgentError::Malformed)?;
        self.step(role, route, "begin", body.len(), 0, 0.0);
        let (began, down) = (Instant::now(), body.len());
        let reply = self.request(route, None, body).await?;
        if !reply.code.is_success() {
            let text = String::from_utf8_lossy(&reply.payload).chars().take(256).collect();
            return Err(AgentError::Refused { code: reply.code, text });
        }
        self.step(role, route, "end", down, reply.payload.len(), began.elapsed().as_secs_f64() * 1e3);
        Ok(reply.payload)
    }

    /// Fetches a body of at most `limit` bytes block by block.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn fetch(&self, role: Role, route: Route, limit: usize) -> Result<Vec<u8>, AgentError> {
        let body = self.fetch_if_any(role, route, limit).await?;
        body.ok_or_else(|| AgentError::Fetch(FetchError::Refused(Code::NOT_FOUND).to_string()))
    }

    /// Like [`fetch`](Self::fetch); `None` if the agent answers that there is no such thing (4.04).
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn fetch_if_any(&self, role: Role, route: Route, limit: usize) -> Result<Option<Vec<u8>>, AgentError> {
        let began = Instant::now();
        self.step(role, route, "begin", 0, 0, 0.0);
        let mut body = Vec::new();
        let mut fetch = Fetch::new(limit, Szx::BERT);
        loop {
            let ask = fetch.ask().map_err(|error| AgentError::Fetch(error.to_string()))?;
            let reply = self.request(route, Some(ask), Vec::new()).await?;
            if reply.code == Code::NOT_FOUND && body.is_empty() {
                return Ok(None);
            }
            let chunk = fetch
                .accept_part(reply.code, reply.part, &reply.payload)
                .map_err(|error| AgentError::Fetch(error.to_string()))?;
            body.extend_from_slice(chunk.bytes);
            if chunk.last {
                self.step(role, route, "end", 0, body.len(), began.elapsed().as_secs_f64() * 1e3);
                return Ok(Some(body));
            }
        }
    }

    async fn request(&self, route: Route, block: Option<Block>, body: Vec<u8>) -> Result<Reply, AgentError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Request { route, block, body, reply };
        self.commands.send(command).await.map_err(|_| AgentError::Gone)?;
        answer.await.map_err(|_| AgentError::Gone)?
    }

    fn step(&self, role: Role, route: Route, phase: &str, down: usize, up: usize, ms: f64) {
        tracing::debug!(
            step = route.name().name(),
            phase,
            from = role.name(),
            to = "agent",
            node = %self.node_id(),
            up,
            down,
            ms,
        );
    }
}

const fn slot(role: Role) -> usize {
    match role {
        Role::Verifier => 0,
        _ => 1,
    }
}
