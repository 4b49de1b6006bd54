//! The verifier: holds V, attests every node it was given, for ever, and lets V go to a good node once the tenant agrees.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use protocol::{
    crypto::{
        role_key::{RolePrivateKey, open_v_at_rest},
        share::{self, SealedShare},
    },
    id::{NodeId, Role, SealingId, Subject as SealedFor},
    limits,
    message::{attest::Purpose, enrol::Wants},
};
use rand_core::OsRng;

use crate::{
    appraisal::{
        policy::{Policy, PolicyTrust},
        quote::AkPublic,
        verdict::Verdict,
    },
    appraiser::{Appraiser, Attending, Judged, NotReleased, Subject, remembered_hardware},
    gateway::{Agent, AgentError, Registry},
    link::{self, LinkError, LinkMethod, RegistrarLink, VerifierLink},
    round::RoundError,
    store::{AkName, StoreError, VerifierStore, verifier::VerifierNode},
};

/// How long a loop sleeps when only somebody else can change its lot; it is woken then.
const LONG: Duration = Duration::from_secs(60);
/// How long a node's settings are taken as read: whoever changes them wakes the loop, this is for what is missed.
const NODE_LIFETIME: Duration = Duration::from_secs(10);

/// The verifier role.
pub struct Verifier {
    store: Arc<dyn VerifierStore>,
    key: RolePrivateKey,
    registrar: Arc<dyn RegistrarLink>,
    registry: Arc<Registry>,
    appraiser: Appraiser,
}

/// An AK this role has reason to challenge.
struct KnownAk {
    ak: AkPublic,
    public: Vec<u8>,
    hardware: crate::appraisal::verdict::Hardware,
}

impl Verifier {
    /// The role on this store, with its private key; it judges by policies that `policies` trusts.
    pub fn new(
        store: Arc<dyn VerifierStore>,
        key: RolePrivateKey,
        registrar: Arc<dyn RegistrarLink>,
        registry: Arc<Registry>,
        policies: PolicyTrust,
    ) -> Self {
        let appraiser = Appraiser::new(Role::Verifier, store.clone(), registry.clone(), policies);
        Self { store, key, registrar, registry, appraiser }
    }

    /// The same, keeping nodes' IMA lists with their evidence or not; unless told otherwise they are kept.
    #[must_use]
    pub fn keeping_ima(mut self, keep: bool) -> Self {
        self.appraiser.keep_ima = keep;
        self
    }

    /// Its store.
    pub fn store(&self) -> &Arc<dyn VerifierStore> {
        &self.store
    }

    /// Whose policies it judges by.
    pub const fn policy_trust(&self) -> &PolicyTrust {
        self.appraiser.policy_trust()
    }

    /// Looks after one connection until it ends: bootstrap if the node came for its payload, then a round every interval.
    pub async fn attend(&self, agent: Arc<Agent>) {
        let mut state = Attending::default();
        let mut wants = agent.hello.wants == Wants::Payload;
        let mut known = None;
        let mut node = None;
        loop {
            wants |= agent.takes_again(Role::Verifier);
            if node.as_ref().is_none_or(|(read, _): &(Instant, _)| read.elapsed() >= NODE_LIFETIME) {
                node = match self.store.node(agent.node_id()).await {
                    Ok(node) => node.map(|node| (Instant::now(), node)),
                    Err(error) => {
                        tracing::error!(node = %agent.node_id(), error = %crate::refusal::chain(&error), "verifier");
                        None
                    }
                };
            }
            let node_now = node.as_ref().map(|(_, node)| node);
            let pause = match self.step(&agent, &mut state, node_now, &mut known, &mut wants).await {
                Ok(Some(pause)) => pause,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(node = %agent.node_id(), error = %crate::refusal::chain(&error), "verifier");
                    Duration::from_secs(5)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = agent.woken(Role::Verifier) => {
                    state.reload();
                    node = None;
                    // What is thought of its hardware may be another by now.
                    known = None;
                }
                () = agent.gone() => return,
            }
        }
    }

    /// One turn; how long to wait for the next, or `None` when the connection is of no use.
    async fn step(
        &self,
        agent: &Arc<Agent>,
        state: &mut Attending,
        node: Option<&VerifierNode>,
        known: &mut Option<KnownAk>,
        wants: &mut bool,
    ) -> Result<Option<Duration>, StoreError> {
        let Some(node) = node.filter(|node| !node.stopped) else { return Ok(Some(LONG)) };
        if known.is_none() {
            *known = self.find_ak(agent).await?;
        }
        let Some(KnownAk { ak, public, hardware }) = known else {
            let detail = "this AK is not the one bound and pinned for the node";
            self.appraiser.tell(agent, state, Some(&node.name), "wrong_ak", detail).await;
            agent.close(detail).await;
            return Ok(None);
        };
        let interval = Duration::from_millis(u64::try_from(node.interval_ms).unwrap_or(1000));
        let bootstrap = *wants && node.sealing.is_some();
        let purpose = if bootstrap { Purpose::Bootstrap } else { Purpose::Attest };
        let subject = Subject {
            name: &node.name,
            ak,
            ak_public: public,
            policy: node.policy,
            pins: &node.pins,
            hardware: *hardware,
            interval_ms: node.interval_ms,
            credential: None,
        };
        let judged = match self.appraiser.round(agent, state, purpose, &subject).await {
            Ok(judged) => judged,
            Err(RoundError::Agent(AgentError::Gone)) => return Ok(None),
            // The agent has what it came for, or gave up on it: attest it.
            Err(RoundError::Agent(AgentError::Refused { .. })) if bootstrap => {
                *wants = false;
                return Ok(Some(Duration::from_millis(100)));
            }
            Err(RoundError::Store(error)) => return self.pin_refused(agent, state, node, error).await,
            Err(error) => {
                let ends = self.appraiser.refuse(agent, state, Some(&node.name), &error).await;
                return Ok((!ends).then_some(interval));
            }
        };
        if bootstrap && let Verdict::Good(_) = &judged.verdict {
            let released = self.release(agent, state, &judged).await;
            // What it was woken by while it waited may have been another thought of the hardware, or a resume.
            state.reload();
            *known = None;
            match released {
                Ok(true) => *wants = false,
                Ok(false) => return Ok(Some(Duration::ZERO)),
                Err(NotReleased::Agent(AgentError::Gone)) => return Ok(None),
                Err(error) => self.appraiser.withhold(agent, state, &node.name, &error).await,
            }
        }
        Ok(Some(interval.saturating_sub(judged.made.elapsed())))
    }

    async fn pin_refused(
        &self,
        agent: &Agent,
        state: &mut Attending,
        node: &VerifierNode,
        error: StoreError,
    ) -> Result<Option<Duration>, StoreError> {
        let StoreError::Conflict(conflict) = error else { return Err(error) };
        self.appraiser.tell(agent, state, Some(&node.name), conflict.code(), &conflict.to_string()).await;
        agent.close(conflict.to_string()).await;
        Ok(None)
    }

    /// The AK to challenge: the pinned one, else the one the registrar bound. It has to be the one `hello` named.
    async fn find_ak(&self, agent: &Agent) -> Result<Option<KnownAk>, StoreError> {
        let attestation = self.store.attestation(agent.node_id()).await?;
        let pinned = attestation.as_ref().and_then(|attestation| attestation.ak.clone());
        let remembered = remembered_hardware(attestation.as_ref());
        // The registrar knows what is thought of the hardware now; without it, what is remembered stands.
        let binding = match self.registrar.binding(agent.node_id()).await {
            Ok(binding) => binding,
            Err(LinkError::Store(error)) if pinned.is_some() && remembered.is_some() => {
                let error = crate::refusal::chain(&error);
                tracing::warn!(node = %agent.node_id(), error, "verifier: the registrar does not say the hardware");
                None
            }
            Err(LinkError::Store(error)) => return Err(error),
        };
        let (name, public, hardware) = match (pinned, remembered, binding) {
            (pinned, _, Some(binding)) => {
                let hardware = (&binding.hardware).into();
                let (name, public) = pinned.unwrap_or((binding.ak_name, binding.ak_public));
                (name, public, hardware)
            }
            (Some((name, public)), Some(hardware), None) => (name, public, hardware),
            _ => return Ok(None),
        };
        if name != agent.ak_name() {
            return Ok(None);
        }
        match AkPublic::from_tpmt(&public) {
            Ok(ak) if ak.name().as_bytes() == name.0 => Ok(Some(KnownAk { ak, public, hardware })),
            _ => Ok(None),
        }
    }

    /// Steps 4c and 5a: waits for the tenant's word on this AK and sealing, then lets V go. `false` if the verdict grew too
    /// old over it.
    async fn release(&self, agent: &Arc<Agent>, state: &mut Attending, judged: &Judged) -> Result<bool, NotReleased> {
        let deadline = judged.made + Duration::from_millis(limits::RELEASE_VERDICT_MAX_AGE_MS);
        loop {
            let node = self.store.node(agent.node_id()).await?.ok_or(StoreError::NotFound("node"))?;
            let Some((sealing_id, v_sealed)) = &node.sealing else { return Ok(false) };
            if node.agreed != Some((agent.ak_name(), *sealing_id)) {
                tokio::select! {
                    () = agent.woken(Role::Verifier) => continue,
                    () = agent.gone() => return Err(AgentError::Gone.into()),
                    () = tokio::time::sleep_until(deadline.into()) => {
                        let detail = "the tenant has not agreed to this AK and sealing within 30 s; V stays";
                        self.appraiser.tell(agent, state, Some(&node.name), "not_agreed", detail).await;
                        return Ok(false);
                    }
                }
            }
            let Verdict::Good(good) = &judged.verdict else { return Ok(false) };
            let right = self.appraiser.right(agent, judged, good, node.policy, node.stopped).await?;
            let subject = node.sealing_subject.ok_or(NotReleased::StoredShare)?;
            if !self.is_sealed_for(subject, agent.node_id()).await? {
                return Err(NotReleased::StoredShare);
            }
            let send = self.appraiser.send_share(agent, judged, right, *sealing_id, |nk_public, attest_digest| {
                let sealed = SealedShare::from_bytes(v_sealed).map_err(|_| NotReleased::StoredShare)?;
                let v =
                    open_v_at_rest(&self.key, subject, *sealing_id, &sealed).map_err(|_| NotReleased::StoredShare)?;
                let release = share::Release { node_id: agent.node_id(), sealing_id: *sealing_id, attest_digest };
                Ok(share::seal_v(&release, nk_public, &v, &mut OsRng)?)
            });
            send.await?;
            return Ok(true);
        }
    }

    /// Whether a share's subject is this node: its id, or the join token that it proved to the registrar. The tenant's
    /// record alone does not say so: a writer in its database could name another node's sealing, and have V sent here.
    async fn is_sealed_for(&self, subject: SealedFor, node_id: NodeId) -> Result<bool, StoreError> {
        match subject {
            SealedFor::Node(subject) => Ok(subject == node_id),
            SealedFor::Join(join_id) => {
                let binding = self.registrar.binding(node_id).await.map_err(|LinkError::Store(error)| error)?;
                Ok(binding.and_then(|binding| binding.join).is_some_and(|join| join.join_id == join_id))
            }
        }
    }

    /// Lets a failed or rolled-back node end that by its next good verdict.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resume(&self, node_id: NodeId) -> Result<(), StoreError> {
        self.store.resume(node_id).await?;
        self.wake(node_id);
        Ok(())
    }

    /// Whether a proven connection of this node is here.
    pub fn is_connected(&self, node_id: NodeId) -> bool {
        self.registry.proven(node_id).is_some()
    }

    fn wake(&self, node_id: NodeId) {
        for agent in self.registry.all(node_id) {
            agent.wake(Role::Verifier);
        }
    }
}

#[async_trait]
impl VerifierLink for Verifier {
    async fn add(&self, node: &VerifierNode) -> Result<(), LinkError> {
        self.store.put_node(node).await?;
        link::step(LinkMethod::Add, "tenant", "verifier", node.node_id);
        if let Some(node_id) = node.node_id {
            self.wake(node_id);
        }
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), LinkError> {
        let node = self.store.node_by_name(name).await?;
        self.store.remove_node(name).await?;
        if let Some(node_id) = node.and_then(|node| node.node_id) {
            self.store.forget_node(node_id).await?;
            link::step(LinkMethod::Remove, "tenant", "verifier", Some(node_id));
            for agent in self.registry.all(node_id) {
                agent.close("the node was removed").await;
            }
        }
        Ok(())
    }

    async fn agree(&self, node_id: NodeId, ak_name: AkName, sealing_id: SealingId) -> Result<(), LinkError> {
        self.store.agree(node_id, ak_name, sealing_id).await?;
        link::step(LinkMethod::Agree, "tenant", "verifier", Some(node_id));
        self.wake(node_id);
        Ok(())
    }

    async fn delivered(&self, node_id: NodeId, sealing_id: SealingId, reset_count: u32) -> Result<(), LinkError> {
        self.store.confirm_release(node_id, sealing_id, reset_count).await?;
        link::step(LinkMethod::Delivered, "tenant", "verifier", Some(node_id));
        Ok(())
    }

    async fn policy(&self, name: &str, body: &[u8]) -> Result<(), LinkError> {
        let id = Policy::parse(body).map_err(|_| StoreError::Corrupt("policy"))?.id();
        self.store.put_policy(protocol::bytes::Array(id), name, body).await?;
        Ok(())
    }
}
