//! The tenant: knows which nodes are ours, proves each AK itself, releases U, serves manifest and payload, and hears the
//! confirmation. It takes nobody's word: not the registrar's for an AK, not the node's for a delivery.

mod fleet;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use protocol::{
    bytes::{Array, Bytes},
    crypto::{
        bind,
        payload::SEALED_CHUNK_LEN,
        role_key::{RolePrivateKey, TenantHolding, open_join_key},
        secret::CredentialSecret,
        share::{self, SealedShare},
    },
    id::{NodeId, Role, SealingId, Subject as SealedFor},
    message::{
        attest::Purpose,
        enrol::Wants,
        provision::{Confirm, Report, ReportKind, SignedManifest},
    },
    tpm::public::TpmtPublic,
};
use rand_core::OsRng;

use crate::{
    appraisal::{
        policy::PolicyTrust,
        quote::AkPublic,
        verdict::{Hardware, Verdict},
    },
    appraiser::{Appraiser, Attending, Judged, NotReleased, Subject, remembered_hardware},
    ek::EkTrust,
    gateway::{Agent, AgentError, Registry},
    link::{LinkError, RegistrarLink, VerifierLink},
    refusal::{Refusal, chain},
    registrar::{certify, credential},
    round::RoundError,
    store::{
        NewEvent, StoreError, TenantStore,
        registrar::Binding,
        tenant::{SealingRow, TenantNode},
    },
};

/// How long a loop sleeps when only somebody else can change its lot; it is woken then.
const LONG: Duration = Duration::from_secs(60);
/// Releases among which a confirmation's nonce is looked for: a node that starts over and over leaves some behind.
const MAX_OPEN_RELEASES: u32 = 16;

/// The tenant role.
pub struct Tenant {
    store: Arc<dyn TenantStore>,
    key: RolePrivateKey,
    ek_trust: Arc<EkTrust>,
    registrar: Arc<dyn RegistrarLink>,
    verifier: Arc<dyn VerifierLink>,
    registry: Arc<Registry>,
    appraiser: Appraiser,
    /// The chunks served last, so that nine blocks of one are one read.
    chunks: Mutex<Vec<HeldChunk>>,
}

/// A chunk of ciphertext in memory.
struct HeldChunk {
    sealing_id: SealingId,
    index: u32,
    bytes: Arc<Vec<u8>>,
}

/// An AK that the tenant challenges, and what it makes of its TPM.
struct Candidate {
    ak: AkPublic,
    ak_public: Vec<u8>,
    hardware: Hardware,
    /// Unless it was proven before: the EK to make a credential for.
    unproven_ek: Option<TpmtPublic>,
}

impl Tenant {
    /// The role on this store, with its private key, the manufacturers it trusts, and its links.
    pub fn new(
        store: Arc<dyn TenantStore>,
        key: RolePrivateKey,
        ek_trust: Arc<EkTrust>,
        registrar: Arc<dyn RegistrarLink>,
        verifier: Arc<dyn VerifierLink>,
        registry: Arc<Registry>,
        policies: PolicyTrust,
    ) -> Self {
        let appraiser = Appraiser::new(Role::Tenant, store.clone(), registry.clone(), policies);
        Self { store, key, ek_trust, registrar, verifier, registry, appraiser, chunks: Mutex::default() }
    }

    /// The same, keeping nodes' IMA lists with their evidence or not; unless told otherwise they are kept.
    #[must_use]
    pub fn keeping_ima(mut self, keep: bool) -> Self {
        self.appraiser.keep_ima = keep;
        self
    }

    /// Its store.
    pub fn store(&self) -> &Arc<dyn TenantStore> {
        &self.store
    }

    /// Whose policies it judges by.
    pub const fn policy_trust(&self) -> &PolicyTrust {
        self.appraiser.policy_trust()
    }

    /// The manufacturers it trusts.
    pub const fn ek_trust(&self) -> &Arc<EkTrust> {
        &self.ek_trust
    }

    /// Writes down that a changed bundle of its roots could not be loaded.
    pub async fn ek_roots_unreadable(&self, detail: &str) {
        self.appraiser.event(None, None, "ek_roots_unreadable", detail).await;
    }

    /// Looks after one connection until it ends: admits the node, and bootstraps it if it came for its payload.
    pub async fn attend(&self, agent: Arc<Agent>) {
        let mut state = Attending::default();
        let mut wants = agent.hello.wants == Wants::Payload;
        loop {
            wants |= agent.takes_again(Role::Tenant);
            let pause = match self.step(&agent, &mut state, &mut wants).await {
                Ok(Some(pause)) => pause,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(node = %agent.node_id(), error = %chain(&error), "tenant");
                    Duration::from_secs(5)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = agent.woken(Role::Tenant) => state.reload(),
                () = agent.gone() => return,
            }
        }
    }

    async fn step(
        &self,
        agent: &Arc<Agent>,
        state: &mut Attending,
        wants: &mut bool,
    ) -> Result<Option<Duration>, StoreError> {
        let node_id = agent.node_id();
        let mut binding = None;
        let node = match self.store.node_by_id(node_id).await? {
            Some(node) => node,
            None => {
                binding = self.binding(node_id).await?;
                match self.join(agent, binding.as_ref()).await {
                    Ok(node) => node,
                    Err(refusal) => {
                        self.appraiser.tell(agent, state, None, refusal.kind, &refusal.detail).await;
                        return Ok(Some(LONG));
                    }
                }
            }
        };
        if node.revision != node.synced {
            self.sync(&node).await?;
        }
        let Some(sealing_id) = node.sealing_id.filter(|_| *wants && !node.stopped) else { return Ok(Some(LONG)) };
        let attestation = self.store.attestation(node_id).await?;
        let pinned = attestation.as_ref().and_then(|attestation| attestation.ak.clone());
        let remembered = remembered_hardware(attestation.as_ref());
        // The EK of a known node is judged again, by the roots of now; without the registrar, what is remembered stands.
        if binding.is_none() {
            binding = match self.binding(node_id).await {
                Err(error) if pinned.is_some() => {
                    tracing::warn!(node = %node_id, error = %chain(&error), "tenant: the registrar does not say the EK");
                    None
                }
                binding => binding?,
            };
        }
        let candidate = match self.candidate(agent, &node, pinned, remembered, binding.as_ref()) {
            Ok(candidate) => candidate,
            Err(refusal) => {
                self.appraiser.tell(agent, state, Some(&node.name), refusal.kind, &refusal.detail).await;
                agent.close(format!("{}: {}", refusal.kind, refusal.detail)).await;
                return Ok(None);
            }
        };
        let secret = CredentialSecret::generate(&mut OsRng);
        let credential = match &candidate.unproven_ek {
            Some(ek) => match credential(ek, &candidate.ak, &secret) {
                Ok(credential) => Some((credential, &secret)),
                Err(refusal) => {
                    self.appraiser.tell(agent, state, Some(&node.name), refusal.kind, &refusal.detail).await;
                    return Ok(Some(LONG));
                }
            },
            None => None,
        };
        let interval = Duration::from_millis(u64::try_from(node.interval_ms).unwrap_or(1000));
        let subject = Subject {
            name: &node.name,
            ak: &candidate.ak,
            ak_public: &candidate.ak_public,
            policy: node.policy,
            pins: &node.pins,
            hardware: candidate.hardware,
            interval_ms: node.interval_ms,
            credential,
        };
        let judged = match self.appraiser.round(agent, state, Purpose::Bootstrap, &subject).await {
            Ok(judged) => judged,
            Err(RoundError::Agent(AgentError::Gone)) => return Ok(None),
            // The agent has what it came for, or gave up on it.
            Err(RoundError::Agent(AgentError::Refused { .. })) => {
                *wants = false;
                return Ok(Some(LONG));
            }
            Err(RoundError::Store(StoreError::Conflict(conflict))) => {
                self.appraiser.tell(agent, state, Some(&node.name), conflict.code(), &conflict.to_string()).await;
                agent.close(conflict.to_string()).await;
                return Ok(None);
            }
            Err(error) => {
                let ends = self.appraiser.refuse(agent, state, Some(&node.name), &error).await;
                return Ok((!ends).then_some(interval));
            }
        };
        if let Verdict::Good(_) = &judged.verdict {
            match self.release(agent, &judged, sealing_id).await {
                Ok(()) => {
                    *wants = false;
                    return Ok(Some(LONG));
                }
                Err(NotReleased::Agent(AgentError::Gone)) => return Ok(None),
                Err(error) => self.appraiser.withhold(agent, state, &node.name, &error).await,
            }
        }
        Ok(Some(interval.saturating_sub(judged.made.elapsed())))
    }

    /// What the registrar says; not believed before it is proven.
    async fn binding(&self, node_id: NodeId) -> Result<Option<Binding>, StoreError> {
        self.registrar.binding(node_id).await.map_err(|LinkError::Store(error)| error)
    }

    /// Admits a node by the tenant's half of its join proof.
    async fn join(&self, agent: &Agent, binding: Option<&Binding>) -> Result<TenantNode, Refusal> {
        let evidence = binding
            .filter(|binding| binding.node_id == agent.node_id() && binding.ak_name == agent.ak_name())
            .and_then(|binding| binding.join.as_ref())
            .ok_or_else(|| {
                Refusal::forbidden("not_admitted", "no node of ours has this node id, and it proved no join token")
            })?;
        let row = self.store.join(evidence.join_id).await?.ok_or_else(|| {
            Refusal::forbidden(
                "unknown_join",
                "the join token that this node proved to the registrar is not one of ours",
            )
        })?;
        let sealed = SealedShare::from_bytes(&row.join.tenant_key).map_err(|error| Refusal::internal(&error))?;
        let key = open_join_key(&self.key, Role::Tenant, evidence.join_id, &sealed)
            .map_err(|error| Refusal::internal(&error))?;
        key.verify(agent.node_id(), &agent.ak_name().0, &evidence.server_certificate, &evidence.tenant_proof).map_err(
            |_| Refusal::forbidden("bad_join_proof", "the tenant's half of the join proof is not for this node and AK"),
        )?;
        let node = self.store.join_node(evidence.join_id, agent.node_id()).await?;
        let detail = format!("the join token made for {} is used up: its node id is {}", node.name, agent.node_id());
        self.appraiser.event(Some(agent.node_id()), Some(&node.name), "joined", &detail).await;
        Ok(node)
    }

    /// The AK to challenge: the one pinned by a proof of our own, else the registrar's, to be proven now.
    fn candidate(
        &self,
        agent: &Agent,
        node: &TenantNode,
        pinned: Option<(crate::store::AkName, Vec<u8>)>,
        remembered: Option<Hardware>,
        binding: Option<&Binding>,
    ) -> Result<Candidate, Refusal> {
        let wrong_ak = || Refusal::forbidden("wrong_ak", "this AK is not the one pinned for the node");
        let take = |public: &[u8]| {
            AkPublic::from_tpmt(public)
                .map_err(|error| Refusal::forbidden(error.code(), format!("the AK is refused: {}", chain(&error))))
                .and_then(|ak| if ak.name().as_bytes() == agent.ak_name().0 { Ok(ak) } else { Err(wrong_ak()) })
        };
        // A node that is proven does not hang on what the registrar says of another EK.
        let names_ek = |binding: &&Binding| {
            let spki = TpmtPublic::decode(&binding.ek_public).ok().and_then(|ek| ek.spki_der().ok());
            spki.is_some_and(|spki| bind::node_id(&spki) == agent.node_id())
        };
        let binding = binding.filter(|binding| pinned.is_none() || names_ek(binding));
        if let (Some((_, ak_public)), Some(hardware), None) = (&pinned, remembered, binding) {
            return Ok(Candidate { ak: take(ak_public)?, ak_public: ak_public.clone(), hardware, unproven_ek: None });
        }
        let binding = match (binding, &pinned) {
            (Some(binding), _) => binding,
            (None, Some((_, ak_public))) => {
                let (ak, ak_public) = (take(ak_public)?, ak_public.clone());
                let hardware = if node.join_id.is_none() { Hardware::AllowListed } else { Hardware::Unproven };
                return Ok(Candidate { ak, ak_public, hardware, unproven_ek: None });
            }
            (None, None) => {
                return Err(Refusal::forbidden("not_bound", "the registrar knows no AK of this node; enrol first"));
            }
        };
        let ek = TpmtPublic::decode(&binding.ek_public)
            .map_err(|error| Refusal::forbidden("bad_ek", format!("the registrar's EK: {error}")))?;
        let spki =
            ek.spki_der().map_err(|error| Refusal::forbidden("bad_ek", format!("the registrar's EK: {error}")))?;
        if bind::node_id(&spki) != agent.node_id() {
            return Err(Refusal::forbidden("wrong_node_id", "the EK that the registrar names is not this node's"));
        }
        // Ours by its id: that names this very EK. Else a manufacturer has to vouch for it.
        let hardware = match certify(&self.ek_trust.roots(), &binding.ek_chain, &ek) {
            Ok(_) => Hardware::Certified,
            Err(_) if node.join_id.is_none() => Hardware::AllowListed,
            Err(_) => Hardware::Unproven,
        };
        let ak_public = pinned.as_ref().map_or(&binding.ak_public, |(_, pinned)| pinned).clone();
        let ak = take(&ak_public)?;
        Ok(Candidate { ak, ak_public, hardware, unproven_ek: pinned.is_none().then_some(ek) })
    }

    /// Steps 4c and 5b: the verifier is told what this role agrees to, and U goes.
    async fn release(&self, agent: &Arc<Agent>, judged: &Judged, sealing_id: SealingId) -> Result<(), NotReleased> {
        let Verdict::Good(good) = &judged.verdict else { return Err(NotReleased::NoNk) };
        let node = self.store.node_by_id(agent.node_id()).await?.ok_or(StoreError::NotFound("node"))?;
        if node.sealing_id != Some(sealing_id) {
            return Err(StoreError::NotFound("sealing in force; it was changed meanwhile").into());
        }
        let right = self.appraiser.right(agent, judged, good, node.policy, node.stopped).await?;
        let sealing = self.store.sealing(sealing_id).await?.ok_or(StoreError::NotFound("sealing"))?;
        // A row that names another node's sealing opens: what it was sealed for has to be this node.
        if !is_sealed_for(&node, &sealing, agent.node_id()) {
            return Err(NotReleased::StoredShare);
        }
        // Nothing is agreed to that does not open. It is opened again where U is sealed: no secret outlives a wait.
        drop(self.holding(&sealing)?);
        self.verifier
            .agree(agent.node_id(), agent.ak_name(), sealing_id)
            .await
            .map_err(|LinkError::Store(error)| error)?;
        let send = self.appraiser.send_share(agent, judged, right, sealing_id, |nk_public, attest_digest| {
            let holding = self.holding(&sealing)?;
            let release = share::Release { node_id: agent.node_id(), sealing_id, attest_digest };
            Ok(share::seal_u(&release, nk_public, &holding.u, &holding.manifest_digest, &mut OsRng)?)
        });
        send.await
    }

    fn holding(&self, sealing: &SealingRow) -> Result<TenantHolding, NotReleased> {
        let sealed = SealedShare::from_bytes(&sealing.u_sealed).map_err(|_| NotReleased::StoredShare)?;
        TenantHolding::open(&self.key, sealing.subject, sealing.sealing_id, &sealed)
            .map_err(|_| NotReleased::StoredShare)
    }

    /// The sealing, if it is one of this agent's node.
    async fn sealing_of(&self, agent: &Agent, sealing_id: SealingId) -> Result<(TenantNode, SealingRow), Refusal> {
        let unknown = || Refusal::not_found("unknown_sealing", "there is no such sealing for this node");
        let node = self.store.node_by_id(agent.node_id()).await?.ok_or_else(unknown)?;
        let sealing = self.store.sealing(sealing_id).await?.filter(|row| row.complete).ok_or_else(unknown)?;
        if is_sealed_for(&node, &sealing, agent.node_id()) { Ok((node, sealing)) } else { Err(unknown()) }
    }

    /// GET manifest.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn manifest(&self, agent: &Agent, sealing_id: SealingId) -> Result<SignedManifest, Refusal> {
        let (_, sealing) = self.sealing_of(agent, sealing_id).await?;
        let manifest = Bytes::new(&sealing.manifest).map_err(|error| Refusal::internal(&error))?;
        Ok(SignedManifest { manifest, signature: Array(sealing.signature) })
    }

    /// A part of the ciphertext: its whole length, and at least `len` bytes from `offset` unless it ends before.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn ciphertext(
        &self,
        agent: &Agent,
        sealing_id: SealingId,
        offset: usize,
        len: usize,
    ) -> Result<(usize, Vec<u8>), Refusal> {
        let (_, sealing) = self.sealing_of(agent, sealing_id).await?;
        let total = usize::try_from(sealing.ciphertext_len).map_err(|error| Refusal::internal(&error))?;
        if offset >= total && total > 0 {
            return Err(Refusal::bad_request("bad_block", "the block begins behind the end of the payload"));
        }
        let end = total.min(offset + len);
        let mut bytes = Vec::with_capacity(end - offset);
        while offset + bytes.len() < end {
            let at = offset + bytes.len();
            let index = u32::try_from(at / SEALED_CHUNK_LEN).map_err(|error| Refusal::internal(&error))?;
            let chunk = self.chunk(sealing_id, index).await?;
            let from = at % SEALED_CHUNK_LEN;
            let part = chunk.get(from..chunk.len().min(from + end - at)).unwrap_or_default();
            if part.is_empty() {
                return Err(Refusal::internal(&StoreError::Corrupt("payload chunk")));
            }
            bytes.extend_from_slice(part);
        }
        Ok((total, bytes))
    }

    async fn chunk(&self, sealing_id: SealingId, index: u32) -> Result<Arc<Vec<u8>>, Refusal> {
        let held = |chunk: &&HeldChunk| (chunk.sealing_id, chunk.index) == (sealing_id, index);
        if let Some(chunk) = self.chunks.lock().unwrap_or_else(PoisonError::into_inner).iter().find(held) {
            return Ok(chunk.bytes.clone());
        }
        let chunk = self.store.chunk(sealing_id, index).await?.ok_or(StoreError::Corrupt("payload chunk"))?;
        let chunk = Arc::new(chunk);
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if chunks.len() >= MAX_HELD_CHUNKS {
            chunks.remove(0);
        }
        chunks.push(HeldChunk { sealing_id, index, bytes: chunk.clone() });
        Ok(chunk)
    }

    /// Step 7: only this makes a node delivered. Again changes nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn confirm(&self, agent: &Agent, confirm: &Confirm) -> Result<(), Refusal> {
        let result = self.check_confirm(agent, confirm).await;
        if let Err(refusal) = &result {
            let name = self.name_of(agent.node_id()).await;
            self.appraiser.event(Some(agent.node_id()), name.as_deref(), refusal.kind, &refusal.detail).await;
        }
        result
    }

    async fn check_confirm(&self, agent: &Agent, confirm: &Confirm) -> Result<(), Refusal> {
        let (node, sealing) = self.sealing_of(agent, confirm.sealing_id).await?;
        let TenantHolding { confirm_key, .. } = self.holding(&sealing).map_err(|error| Refusal::internal(&error))?;
        let releases = self.store.releases(agent.node_id(), MAX_OPEN_RELEASES).await?;
        let release = releases.into_iter().filter(|release| release.sealing_id == confirm.sealing_id).find(|release| {
            bind::verify_confirm_mac(
                &confirm_key,
                agent.node_id(),
                confirm.sealing_id,
                &release.nk_digest,
                &release.nonce,
                &confirm.proof.0,
            )
            .is_ok()
        });
        let Some(release) = release else {
            return Err(Refusal::forbidden(
                "bad_confirm",
                "the confirmation is for no release of this sealing to this node",
            ));
        };
        if release.confirmed_ms.is_some() {
            return Ok(());
        }
        // In this order: a confirmation that is cut short anywhere is sent again, and then does the whole of it.
        let told = self.verifier.delivered(agent.node_id(), confirm.sealing_id, release.reset_count).await;
        if let Err(LinkError::Store(error)) = told {
            // The verifier's own phase PCR rule stands in for it.
            tracing::error!(error = %chain(&error), "the verifier could not be told of a delivery");
        }
        let event = NewEvent {
            node_id: Some(agent.node_id()),
            name: Some(node.name),
            kind: "delivered",
            detail: format!("the payload of sealing {} is in place", confirm.sealing_id),
        };
        let (node_id, sealing_id) = (agent.node_id(), confirm.sealing_id);
        if self.store.confirm_delivery(node_id, sealing_id, release.reset_count, &event).await? {
            tracing::info!(role = "tenant", node = %node_id, name = event.name, kind = event.kind, detail = event.detail);
        }
        Ok(())
    }

    /// What an agent tells of a payload: shown, and, where shares did not fit, begun again.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn report(&self, agent: &Agent, report: &Report) -> Result<(), Refusal> {
        let (node, _) = self.sealing_of(agent, report.sealing_id).await?;
        let text = String::from_utf8_lossy(&report.text).replace(|c: char| c.is_control() && c != '\n', " ");
        let (kind, detail) = match report.kind {
            ReportKind::TagMismatch => ("tag_mismatch", text),
            ReportKind::ShareRefused => ("share_refused", text),
            ReportKind::ManifestRefused => ("manifest_refused", text),
            ReportKind::PayloadRefused => ("payload_refused", text),
            ReportKind::PayloadNotStored => ("payload_not_stored", text),
            ReportKind::Autorun => ("autorun", format!("autorun ended with status {}: {text}", report.code)),
        };
        self.appraiser.event(Some(agent.node_id()), Some(&node.name), kind, &detail).await;
        if matches!(report.kind, ReportKind::TagMismatch | ReportKind::ShareRefused) {
            agent.bootstrap_again();
        }
        Ok(())
    }

    async fn name_of(&self, node_id: NodeId) -> Option<String> {
        self.store.node_by_id(node_id).await.ok().flatten().map(|node| node.name)
    }
}

/// Whether a sealing was made for this node: by its id, or by the join token it came with.
fn is_sealed_for(node: &TenantNode, sealing: &SealingRow, node_id: NodeId) -> bool {
    match sealing.subject {
        SealedFor::Node(subject) => subject == node_id,
        SealedFor::Join(join_id) => node.join_id == Some(join_id),
    }
}

/// Chunks kept for who fetches right now: 2 MiB in all.
const MAX_HELD_CHUNKS: usize = 32;
