//! What verifier and tenant do alike: keep policies parsed, run a round, write its verdict down, and let a share leave
//! only with the right to it on record.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use protocol::{
    bytes::{Array, Bytes},
    coap::route::Route,
    crypto::{nk::nk_digest, secret::CredentialSecret, share::SealedShare},
    id::{NodeId, Role, SealingId},
    message::{attest::Purpose, enrol::Credential, provision::Share},
};

use crate::{
    appraisal::{
        policy::{Policy, PolicyError, PolicyTrust},
        quote::AkPublic,
        verdict::{
            GoodVerdict, Hardware, PhaseEvents, ReleaseConditions, ReleaseRefused, ReleaseRight, Verdict, release_right,
        },
    },
    evidence::{self, Kept, Whose},
    gateway::{Agent, AgentError, Registry},
    registrar::record,
    round::{Round, RoundError},
    store::{
        AppraiserStore, Attestation, Checkpoint, NewEvent, Outcome, PolicyId, Release, StoreError, Trust, VerdictRow,
        Written, registrar::Hardware as BoundHardware, verifier::Pins,
    },
};

/// How old the reading of the database's clock may be.
const CLOCK_LIFETIME: Duration = Duration::from_secs(10);

/// One appraising role.
pub(crate) struct Appraiser {
    pub(crate) role: Role,
    pub(crate) store: Arc<dyn AppraiserStore>,
    registry: Arc<Registry>,
    policies: Mutex<HashMap<PolicyId, Policy>>,
    /// Held while one is read and parsed: a thousand nodes that come at once share one copy.
    loading: tokio::sync::Mutex<()>,
    policy_trust: PolicyTrust,
    clock: Mutex<Option<(Instant, i64)>>,
    /// Whether IMA lists are kept with the evidence.
    pub(crate) keep_ima: bool,
}

/// What a role remembers of one connection.
#[derive(Default)]
pub(crate) struct Attending {
    fence: Option<i64>,
    counter: i64,
    checkpoint: Option<Checkpoint>,
    outcome: Option<Outcome>,
    loaded: bool,
    /// The evidence that is known to be in the store.
    kept: Option<Kept>,
    /// The refusal told last: the same again is not an event.
    told: Option<&'static str>,
    /// The same for shares that were withheld, in rounds that went well otherwise.
    withheld: Option<&'static str>,
}

impl Attending {
    /// The stored state may have changed: read it before the next round.
    pub(crate) const fn reload(&mut self) {
        self.loaded = false;
    }
}

/// Who is looked at, and by what it is judged.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a str,
    pub(crate) ak: &'a AkPublic,
    pub(crate) ak_public: &'a [u8],
    pub(crate) policy: Option<PolicyId>,
    pub(crate) pins: &'a Pins,
    pub(crate) hardware: Hardware,
    pub(crate) interval_ms: i64,
    pub(crate) credential: Option<(Credential, &'a CredentialSecret)>,
}

/// A round with its verdict written.
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    pub(crate) written: Written,
    pub(crate) nk_public: Option<[u8; 65]>,
    pub(crate) nonce: [u8; 32],
    pub(crate) made: Instant,
    pub(crate) nonce_ms: i64,
}

/// Why a share did not leave.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReleased {
    #[error(transparent)]
    Refused(#[from] ReleaseRefused),
    #[error("the quote names no NK")]
    NoNk,
    #[error("the stored share does not open for this node and sealing: it was moved or altered")]
    StoredShare,
    #[error("the share could not be sealed to NK: {0}")]
    Seal(#[from] protocol::crypto::share::ShareError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl NotReleased {
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Refused(refused) => refused.code(),
            Self::NoNk => "no_nk",
            Self::StoredShare => "stored_share_refused",
            Self::Seal(_) => "bad_nk",
            Self::Agent(AgentError::Refused { .. }) => "share_refused",
            Self::Agent(_) => "agent_silent",
            Self::Store(StoreError::Conflict(conflict)) => conflict.code(),
            Self::Store(_) => "internal",
        }
    }
}

impl Appraiser {
    pub(crate) fn new(
        role: Role,
        store: Arc<dyn AppraiserStore>,
        registry: Arc<Registry>,
        policy_trust: PolicyTrust,
    ) -> Self {
        Self {
            role,
            store,
            registry,
            policies: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            policy_trust,
            clock: Mutex::default(),
            keep_ima: true,
        }
    }

    /// Whose policies it judges by.
    pub(crate) const fn policy_trust(&self) -> &PolicyTrust {
        &self.policy_trust
    }

    /// A policy, parsed once for all nodes that use it. Whoever put it into the database: its signature is looked at here
    /// again, and without the right one there is no policy, so no verdict.
    pub(crate) async fn policy(&self, id: PolicyId) -> Result<Policy, RoundError> {
        if let Some(policy) = self.parsed_policy(id) {
            return Ok(policy);
        }
        let _loading = self.loading.lock().await;
        if let Some(policy) = self.parsed_policy(id) {
            return Ok(policy);
        }
        let row = self.store.policy(id).await?.ok_or(StoreError::NotFound("policy"))?;
        let trust = self.policy_trust.clone();
        // Long ones take their time, which is not the executor's.
        let opened = tokio::task::spawn_blocking(move || Policy::open(&row.body, &trust)).await;
        let policy = match opened {
            Ok(Ok(policy)) if policy.id() == id.0 => policy,
            Ok(Err(error @ (PolicyError::Unsigned | PolicyError::Signature(_)))) => {
                return Err(RoundError::Policy(error));
            }
            Ok(_) | Err(_) => return Err(StoreError::Corrupt("policy").into()),
        };
        self.policies.lock().unwrap_or_else(PoisonError::into_inner).insert(id, policy.clone());
        Ok(policy)
    }

    fn parsed_policy(&self, id: PolicyId) -> Option<Policy> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Runs one round and writes its verdict.
    pub(crate) async fn round(
        &self,
        agent: &Arc<Agent>,
        state: &mut Attending,
        purpose: Purpose,
        subject: &Subject<'_>,
    ) -> Result<Judged, RoundError> {
        let node_id = agent.node_id();
        if !state.loaded {
            let attestation = self.store.attestation(node_id).await?;
            state.outcome = attestation.as_ref().and_then(known_outcome);
            state.checkpoint = attestation.and_then(|attestation| attestation.checkpoint);
            state.loaded = true;
        }
        let policy = match subject.policy {
            Some(id) => Some(self.policy(id).await?),
            None => None,
        };
        let phase = PhaseEvents::from_pins(subject.pins).ok();
        let checkpoint = state.checkpoint.take();
        let round = Round {
            role: self.role,
            purpose,
            ak: subject.ak,
            policy: policy.as_ref(),
            hardware: subject.hardware,
            phase: phase.as_ref(),
            checkpoint: checkpoint.as_ref(),
            texts_wanted: state.kept.is_none(),
            credential: subject.credential.clone(),
        };
        let fence = &mut state.fence;
        let outcome = round
            .run(agent, &self.store, async || {
                if fence.is_none() {
                    self.store.pin_ak(node_id, agent.ak_name(), subject.ak_public).await?;
                    *fence = Some(self.store.take_fence(node_id).await?);
                    self.prove(agent, subject.name).await;
                }
                Ok(())
            })
            .await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                // The agent's own record of what it sent is of no use after a refusal: ask for everything.
                state.checkpoint = checkpoint;
                return Err(error);
            }
        };
        state.counter += 1;
        let nonce_ms = self.now_ms().await? - i64::try_from(outcome.made.elapsed().as_millis()).unwrap_or(i64::MAX);
        let good = outcome.verdict.outcome() == Outcome::Good;
        let row = VerdictRow {
            id: 0,
            node_id,
            nonce_ms,
            valid_ms: if good { subject.interval_ms.saturating_mul(3) } else { 0 },
            outcome: outcome.verdict.outcome(),
            purpose: evidence::purpose_name(purpose).into(),
            policy: subject.policy,
            explanation: outcome.verdict.to_json(),
            fence: state.fence.unwrap_or_default(),
            counter: state.counter,
        };
        let written = self.store.write_verdict(&row, outcome.verdict.checkpoint()).await?;
        tracing::debug!(
            step = "verdict",
            phase = "end",
            from = self.role.name(),
            to = "store",
            node = %node_id,
            outcome = ?row.outcome,
            epoch = outcome.verdict.explanation().epoch.map(|epoch| epoch.name()),
            why = outcome.verdict.summary(),
            up = 0,
            down = 0,
            ms = outcome.made.elapsed().as_secs_f64() * 1e3,
        );
        state.checkpoint = outcome.verdict.checkpoint().filter(|_| written == Written::Applied).cloned().or(checkpoint);
        if state.outcome != Some(row.outcome) && written == Written::Applied {
            state.outcome = Some(row.outcome);
            let kind = match &outcome.verdict {
                Verdict::Good(_) => "trusted",
                Verdict::Bad(bad) => bad.code(),
                Verdict::Unjudged(_) => "no_policy",
            };
            self.event(Some(node_id), Some(subject.name), kind, outcome.verdict.summary()).await;
        }
        let whose = Whose { node_id, ak_name: agent.ak_name(), purpose, hardware: subject.hardware };
        let kept = evidence::keep(&*self.store, &mut state.kept, &whose, &outcome.shown, self.keep_ima).await;
        if let Err(error) = kept {
            // Nothing rests on it; the next round tries again.
            tracing::warn!(node = %node_id, error = %crate::refusal::chain(&error), "the evidence was not kept");
        }
        state.told = None;
        Ok(Judged {
            verdict: outcome.verdict,
            written,
            nk_public: outcome.nk_public,
            nonce: outcome.nonce,
            made: outcome.made,
            nonce_ms,
        })
    }

    /// Decides whether a share may leave on this verdict, as things are now.
    pub(crate) async fn right(
        &self,
        agent: &Agent,
        judged: &Judged,
        good: &GoodVerdict,
        policy: Option<PolicyId>,
        stopped: bool,
    ) -> Result<ReleaseRight, NotReleased> {
        let attestation = self.store.attestation(agent.node_id()).await?;
        let stands = judged.written == Written::Applied
            && attestation.as_ref().is_some_and(|attestation| attestation.trust == Trust::Good);
        let conditions = ReleaseConditions {
            nonce_ms: judged.nonce_ms,
            now_ms: attestation.map_or(i64::MAX, |attestation| attestation.now_ms),
            policy: policy.map(|policy| policy.0),
            stopped,
            stands,
        };
        Ok(release_right(good, &conditions)?)
    }

    /// Puts a release on record and then sends the share: in this order, so that no share leaves unrecorded.
    pub(crate) async fn send_share(
        &self,
        agent: &Agent,
        judged: &Judged,
        right: ReleaseRight,
        sealing_id: SealingId,
        seal: impl FnOnce(&[u8; 65], [u8; 32]) -> Result<SealedShare, NotReleased>,
    ) -> Result<(), NotReleased> {
        let nk_public = judged.nk_public.as_ref().ok_or(NotReleased::NoNk)?;
        let (reset_count, restart_count) = right.epoch();
        let sealed = seal(nk_public, right.quote_digest())?;
        self.store
            .add_release(&Release {
                id: 0,
                node_id: agent.node_id(),
                sealing_id,
                nk_digest: nk_digest(nk_public),
                quote_digest: right.quote_digest(),
                nonce: judged.nonce,
                reset_count,
                restart_count,
                at_ms: 0,
                confirmed_ms: None,
            })
            .await?;
        let ciphertext = Bytes::new(&sealed.ciphertext).map_err(|_| protocol::crypto::share::ShareError::BadLength)?;
        let share = Share { role: self.role, sealing_id, enc: Array(sealed.enc), ciphertext };
        agent.post(self.role, Route::Share, &share).await?;
        Ok(())
    }

    /// A round came to nothing. What the peer showed was refused: told once, and its connection ends.
    pub(crate) async fn refuse(
        &self,
        agent: &Agent,
        state: &mut Attending,
        name: Option<&str>,
        error: &RoundError,
    ) -> bool {
        let detail = crate::refusal::chain(error);
        self.tell(agent, state, name, error.code(), &detail).await;
        if error.is_refusal() {
            agent.close(format!("{}: {detail}", error.code())).await;
        }
        error.is_refusal()
    }

    /// Writes an event, unless it says the same as the last one on this connection.
    pub(crate) async fn tell(
        &self,
        agent: &Agent,
        state: &mut Attending,
        name: Option<&str>,
        kind: &'static str,
        detail: &str,
    ) {
        if state.told != Some(kind) {
            state.told = Some(kind);
            self.event(Some(agent.node_id()), name, kind, detail).await;
        }
    }

    /// Writes why a share was withheld, unless it was for the same reason as the last time on this connection: a failed
    /// node asks again with every round.
    pub(crate) async fn withhold(&self, agent: &Agent, state: &mut Attending, name: &str, error: &NotReleased) {
        let kind = error.code();
        if state.withheld != Some(kind) {
            state.withheld = Some(kind);
            self.event(Some(agent.node_id()), Some(name), kind, &crate::refusal::chain(error)).await;
        }
    }

    pub(crate) async fn event(&self, node_id: Option<NodeId>, name: Option<&str>, kind: &'static str, detail: &str) {
        tracing::info!(role = self.role.name(), node = node_id.map(|id| id.to_string()), name, kind, detail);
        let event = NewEvent { node_id, name: name.map(str::to_owned), kind, detail: detail.to_owned() };
        record(&*self.store, event).await;
    }

    /// The connection is the node's; an older one ends.
    async fn prove(&self, agent: &Arc<Agent>, name: &str) {
        if agent.is_proven() {
            return;
        }
        let Some(old) = self.registry.prove(agent) else { return };
        if Arc::ptr_eq(&old, agent) {
            agent.close("a newer connection of this node has proven itself").await;
            return;
        }
        let detail = format!("a new connection from {} has proven itself; the one from {} ends", agent.peer, old.peer);
        self.event(Some(agent.node_id()), Some(name), "connection_taken_over", &detail).await;
        old.close("a newer connection of this node has proven itself").await;
    }

    /// The database's clock, read at most every 10 s.
    async fn now_ms(&self) -> Result<i64, StoreError> {
        let known = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, ms)) = known
            && at.elapsed() < CLOCK_LIFETIME
        {
            return Ok(ms + i64::try_from(at.elapsed().as_millis()).unwrap_or_default());
        }
        let ms = self.store.now_ms().await?;
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), ms));
        Ok(ms)
    }
}

/// What the newest applied verdict said.
fn known_outcome(attestation: &Attestation) -> Option<Outcome> {
    attestation.verdict.as_ref().map(|verdict| verdict.outcome)
}

/// What earlier verdicts know of the TPM, so that a known node needs no registrar.
pub(crate) fn remembered_hardware(attestation: Option<&Attestation>) -> Option<Hardware> {
    match attestation?.verdict.as_ref()?.explanation.get("hardware")?.as_str()? {
        "certified" => Some(Hardware::Certified),
        "allow_listed" => Some(Hardware::AllowListed),
        _ => None,
    }
}

impl From<&BoundHardware> for Hardware {
    fn from(hardware: &BoundHardware) -> Self {
        match hardware {
            BoundHardware::Certified { .. } => Self::Certified,
            BoundHardware::AllowListed => Self::AllowListed,
            BoundHardware::Unproven => Self::Unproven,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        appraisal::policy::{PAYLOAD_TYPE, dsse},
        store,
    };

    const POLICY: &[u8] = b"version = 1\nname = \"p\"\n[release]\nphase_pcr = 13\n";

    #[tokio::test]
    async fn nodes_that_come_at_once_share_one_copy_of_their_policy() {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open_verifier(&format!("sqlite:{}/v.db", dir.path().display())).await.unwrap();
        store.migrate().await.unwrap();
        let id = Array(Policy::parse(POLICY).unwrap().id());
        store.put_policy(id, "p", POLICY).await.unwrap();
        let appraiser = Arc::new(Appraiser::new(Role::Verifier, store, Arc::default(), PolicyTrust::Any));
        let ask = |_| {
            let appraiser = appraiser.clone();
            tokio::spawn(async move { appraiser.policy(id).await.unwrap() })
        };
        let asked: Vec<_> = (0..16).map(ask).collect();
        let mut copies = Vec::new();
        for policy in asked {
            copies.push(policy.await.unwrap());
        }
        let first = copies[0].name().as_ptr();
        assert!(copies.iter().all(|policy| std::ptr::eq(policy.name().as_ptr(), first)));
    }

    #[tokio::test]
    async fn a_stored_policy_is_used_only_with_the_signature_that_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open_verifier(&format!("sqlite:{}/v.db", dir.path().display())).await.unwrap();
        store.migrate().await.unwrap();
        let key = |byte: u8| p256::ecdsa::SigningKey::from_slice(&[byte; 32]).unwrap();
        let public = |byte| {
            let point = key(byte).verifying_key().to_encoded_point(false);
            dsse::P256Key::from_sec1(point.as_bytes()).unwrap()
        };
        let wanted = PolicyTrust::Signed(vec![public(1)]);
        let appraiser = |trust| Appraiser::new(Role::Verifier, store.clone(), Arc::default(), trust);
        let put = async |body: Vec<u8>| {
            let id = Array(Policy::parse(&body).unwrap().id());
            store.put_policy(id, "p", &body).await.unwrap();
            id
        };
        let unsigned = put(POLICY.to_vec()).await;
        let wrong = put(dsse::sign(POLICY, PAYLOAD_TYPE, &key(2))).await;
        let right = put(dsse::sign(POLICY, PAYLOAD_TYPE, &key(1))).await;

        let strict = appraiser(wanted);
        let code = async |id| strict.policy(id).await.unwrap_err().code();
        assert_eq!((code(unsigned).await, code(wrong).await), ("policy_unsigned", "policy_signature_bad"));
        assert!(!strict.policy(unsigned).await.unwrap_err().is_refusal(), "it is not the node's fault");
        assert_eq!(strict.policy(right).await.unwrap().id(), right.0);
        // Held now, and the others still are not.
        assert_eq!(strict.policy(right).await.unwrap().id(), right.0);
        assert_eq!(code(unsigned).await, "policy_unsigned");

        let anybodys = appraiser(PolicyTrust::Any);
        for id in [unsigned, wrong, right] {
            assert_eq!(anybodys.policy(id).await.unwrap().id(), id.0);
        }
        // Bytes that are not those of the id are no policy under it, signed or not.
        let moved = Array([9; 32]);
        store.put_policy(moved, "p", &dsse::sign(POLICY, PAYLOAD_TYPE, &key(1))).await.unwrap();
        assert_eq!(code(moved).await, "internal");
    }
}
