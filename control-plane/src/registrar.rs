//! The registrar: binds an AK to an EK, on proof that one TPM holds both. It says who is who, never who is good.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use protocol::{
    bytes::Bytes,
    crypto::{
        bind,
        role_key::{RolePrivateKey, open_join_key},
        secret::CredentialSecret,
        share::SealedShare,
    },
    id::{EnrolmentId, NodeId, Role},
    message::enrol::{Activate, Credential, Enrol, EnrolAnswer, JoinProof},
    tpm::{credential::make_credential, public::TpmtPublic},
};
use rand_core::{OsRng, RngCore};

use crate::{
    appraisal::quote::AkPublic,
    ek::{EkError, EkPath, EkRoots, EkTrust},
    gateway::Agent,
    link::{self, LinkError, LinkMethod, RegistrarLink},
    refusal::{Refusal, chain},
    store::{
        AkName, Conflict, EventStore, NewEvent, RegistrarStore, StoreError,
        registrar::{Binding, Hardware, JoinAdmission, JoinEvidence, Quarantined},
    },
};

/// How long an enrolment may be activated.
const ENROLMENT_LIFETIME: Duration = Duration::from_secs(60);

/// Nodes that wait in quarantine.
pub const MAX_QUARANTINED: u32 = 1000;
/// Bindings judged anew between two looks at the database.
const BINDINGS_PAGE: u32 = 100;

/// The registrar role.
pub struct Registrar {
    store: Arc<dyn RegistrarStore>,
    key: RolePrivateKey,
    ek_trust: Arc<EkTrust>,
    quarantine: bool,
}

/// An enrolment that waits for its activation, in the memory of its connection only. One try.
pub struct PendingEnrolment {
    id: EnrolmentId,
    secret: CredentialSecret,
    made: Instant,
    /// Its hardware is not judged before the TPM has proven itself.
    binding: Binding,
}

impl Registrar {
    /// The role on this store, with its private key and the manufacturers it trusts.
    pub fn new(store: Arc<dyn RegistrarStore>, key: RolePrivateKey, ek_trust: Arc<EkTrust>) -> Self {
        Self { store, key, ek_trust, quarantine: true }
    }

    /// The same, keeping strangers in quarantine or not; unless told otherwise they are kept.
    #[must_use]
    pub const fn keeping_strangers(mut self, keep: bool) -> Self {
        self.quarantine = keep;
        self
    }

    /// The manufacturers it trusts.
    pub const fn ek_trust(&self) -> &Arc<EkTrust> {
        &self.ek_trust
    }

    /// Its store.
    pub fn store(&self) -> &Arc<dyn RegistrarStore> {
        &self.store
    }

    /// Whether this AK is bound to this node.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn knows(&self, node_id: NodeId, ak_name: AkName) -> Result<bool, StoreError> {
        Ok(self.store.binding(node_id).await?.is_some_and(|binding| binding.ak_name == ak_name))
    }

    /// Step 1: looks at an EK and an AK and challenges their TPM with a credential.
    ///
    /// # Errors
    /// [`Refusal`], which is in the history too.
    pub async fn enrol(&self, agent: &Agent, enrol: &Enrol) -> Result<(EnrolAnswer, PendingEnrolment), Refusal> {
        let result = self.look(agent, enrol).await;
        if let Err(refusal) = &result {
            self.record(Some(agent.node_id()), refusal.kind, refusal.detail.clone()).await;
        }
        result
    }

    async fn look(&self, agent: &Agent, enrol: &Enrol) -> Result<(EnrolAnswer, PendingEnrolment), Refusal> {
        let ek_public = TpmtPublic::decode(&enrol.ek_public)
            .map_err(|error| Refusal::bad_request("bad_ek", format!("the EK's public area: {error}")))?;
        let spki = ek_public
            .spki_der()
            .map_err(|error| Refusal::bad_request("bad_ek", format!("the EK's public key: {error}")))?;
        let node_id = bind::node_id(&spki);
        if node_id != agent.node_id() {
            return Err(Refusal::forbidden("wrong_node_id", "the EK is not the one that this node id is a digest of"));
        }
        let ak = AkPublic::from_tpmt(&enrol.ak_public)
            .map_err(|error| Refusal::forbidden(error.code(), format!("the AK is refused: {}", chain(&error))))?;
        if ak.name().as_bytes() != agent.ak_name().0 {
            return Err(Refusal::forbidden("wrong_ak_name", "the AK is not the one that hello named"));
        }
        let admitted = self.store.admitted_name(node_id).await?;
        let join = match (&admitted, &enrol.join) {
            (Some(_), _) => None,
            (None, Some(proof)) => Some(self.check_join(agent, proof).await?),
            // What is bound already does not wait for being bound: that pair is known, or it is another's.
            (None, None) if !self.quarantine || self.store.binding(node_id).await?.is_some() => {
                return Err(not_admitted(node_id));
            }
            (None, None) => None,
        };
        let secret = CredentialSecret::generate(&mut OsRng);
        let credential = credential(&ek_public, &ak, &secret)?;
        let mut id = [0; 16];
        OsRng.fill_bytes(&mut id);
        let id = EnrolmentId(id);
        let binding = Binding {
            node_id,
            ek_public: enrol.ek_public.to_vec(),
            ek_chain: enrol.ek_chain.iter().map(|certificate| certificate.to_vec()).collect(),
            ak_public: enrol.ak_public.to_vec(),
            ak_name: agent.ak_name(),
            hardware: Hardware::Unproven,
            join,
            bound_ms: 0,
        };
        let pending = PendingEnrolment { id, secret, made: Instant::now(), binding };
        Ok((EnrolAnswer { enrolment_id: id, credential }, pending))
    }

    /// Step 2: the TPM has opened the credential; only now is the AK bound.
    ///
    /// # Errors
    /// [`Refusal`], which is in the history too. Nothing that was bound before changes by it.
    pub async fn activate(
        &self,
        agent: &Agent,
        pending: Option<PendingEnrolment>,
        activate: &Activate,
    ) -> Result<(), Refusal> {
        let result = self.bind(agent, pending, activate).await;
        match &result {
            Ok(Some(doubt)) => {
                let detail = format!("AK {:?} is bound; the hardware is not proven: {doubt}", agent.ak_name());
                self.record(Some(agent.node_id()), "bound", detail).await;
            }
            Ok(None) => {
                self.record(Some(agent.node_id()), "bound", format!("AK {:?} is bound", agent.ak_name())).await;
            }
            Err(refusal) => self.record(Some(agent.node_id()), refusal.kind, refusal.detail.clone()).await,
        }
        result.map(|_| ())
    }

    async fn bind(
        &self,
        agent: &Agent,
        pending: Option<PendingEnrolment>,
        activate: &Activate,
    ) -> Result<Option<String>, Refusal> {
        let Some(pending) = pending.filter(|pending| pending.id == activate.enrolment_id) else {
            return Err(Refusal::forbidden(
                "no_enrolment",
                "this connection has no such enrolment waiting; enrol again",
            ));
        };
        if pending.made.elapsed() > ENROLMENT_LIFETIME {
            return Err(Refusal::forbidden("enrolment_expired", "the enrolment is older than 60 s; enrol again"));
        }
        bind::verify_activate_proof(
            &pending.secret,
            pending.id,
            agent.node_id(),
            &agent.server_certificate,
            &agent.ak_name().0,
            &activate.proof.0,
        )
        .map_err(|_| {
            Refusal::forbidden(
                "bad_activation",
                "the credential was not activated by the TPM that holds this EK and AK",
            )
        })?;
        let binding = pending.binding;
        self.bind_proven(agent.peer, binding).await
    }

    /// Binds what one TPM was proven to hold, or lets it wait. Roots and admissions count as they are now: they may have
    /// changed since the enrolment began. If it is bound with hardware that is not proven, says why not.
    async fn bind_proven(&self, peer: SocketAddr, mut binding: Binding) -> Result<Option<String>, Refusal> {
        let admitted = self.store.admitted_name(binding.node_id).await?.is_some();
        let (hardware, reason) =
            judge_hardware(&self.ek_trust.roots(), &binding.ek_public, &binding.ek_chain, admitted);
        binding.hardware = hardware;
        if !admitted && binding.join.is_none() {
            return Err(match self.quarantine {
                true => self.keep(peer, binding).await?,
                false => not_admitted(binding.node_id),
            });
        }
        self.store.bind(&binding).await.map_err(|error| match error {
            StoreError::Conflict(conflict @ (Conflict::NodeBoundToOtherAk | Conflict::AkBoundToOtherNode)) => {
                let detail = format!(
                    "{conflict}; the new pair is proven but waits for an operator: trefoil node remove, then add"
                );
                Refusal::conflict(conflict.code(), detail)
            }
            error => error.into(),
        })?;
        Ok((binding.hardware == Hardware::Unproven).then_some(reason))
    }

    /// Lets a node that proved its TPM wait for an operator. Nothing else that is on record changes.
    async fn keep(&self, peer: SocketAddr, binding: Binding) -> Result<Refusal, StoreError> {
        let Binding { node_id, ek_public, ek_chain, ak_public, ak_name, hardware, .. } = binding;
        let peer = peer.ip().to_canonical().to_string();
        let unproven = hardware == Hardware::Unproven;
        let waiting =
            Quarantined { node_id, ek_public, ek_chain, ak_public, ak_name, hardware, peer, first_ms: 0, last_ms: 0 };
        self.store.quarantine(&waiting, MAX_QUARANTINED).await?;
        Ok(quarantined(node_id, unproven))
    }

    /// Judges the hardware of everybody on record by the roots as they are now; gives the nodes of which something else
    /// is to be thought than before, with an event each. Nodes in quarantine are judged too, without an event.
    ///
    /// # Errors
    /// [`StoreError`]; what was judged before it stands.
    pub async fn judge_hardware_anew(&self) -> Result<Vec<NodeId>, StoreError> {
        let roots = self.ek_trust.roots();
        let (mut changed, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.bindings(after, BINDINGS_PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.node_id);
            for binding in page {
                let node_id = binding.node_id;
                let admitted = self.store.admitted_name(node_id).await?.is_some();
                let (now, reason) = judge_hardware(&roots, &binding.ek_public, &binding.ek_chain, admitted);
                if now != binding.hardware {
                    self.store.set_hardware(node_id, &binding.hardware, &now).await?;
                    let kind = match (&binding.hardware, &now) {
                        (_, Hardware::Unproven) => "hardware_unproven",
                        (Hardware::Unproven, _) => "hardware_proven",
                        _ => "hardware_changed",
                    };
                    self.record(Some(node_id), kind, reason).await;
                    changed.push(node_id);
                }
                // Signatures keep a thread busy: others shall have their turn.
                tokio::task::yield_now().await;
            }
        }
        for waiting in self.store.quarantined(MAX_QUARANTINED).await? {
            let (now, _) = judge_hardware(&roots, &waiting.ek_public, &waiting.ek_chain, false);
            if now != waiting.hardware {
                self.store.set_hardware(waiting.node_id, &waiting.hardware, &now).await?;
            }
            tokio::task::yield_now().await;
        }
        Ok(changed)
    }

    async fn check_join(&self, agent: &Agent, proof: &JoinProof) -> Result<JoinEvidence, Refusal> {
        let unknown = || {
            Refusal::forbidden(
                "unknown_join",
                "this join token was not made here, has expired or was revoked; make one: trefoil node add NAME --join",
            )
        };
        let join = self.store.join(proof.join_id).await?.ok_or_else(unknown)?;
        if join.revoked || self.store.now_ms().await? > join.expires_ms {
            return Err(unknown());
        }
        if join.used_by.is_some_and(|user| user != agent.node_id()) {
            return Err(Refusal::forbidden("join_used", "this join token was used by another node; each admits one"));
        }
        let sealed = SealedShare::from_bytes(&join.sealed_key).map_err(|error| Refusal::internal(&error))?;
        let key = open_join_key(&self.key, Role::Registrar, proof.join_id, &sealed)
            .map_err(|error| Refusal::internal(&error))?;
        key.verify(agent.node_id(), &agent.ak_name().0, &agent.server_certificate, &proof.registrar.0).map_err(
            |_| {
                Refusal::forbidden(
                    "bad_join_proof",
                    "the proof of the join token is not for this node, AK and server certificate",
                )
            },
        )?;
        Ok(JoinEvidence {
            join_id: proof.join_id,
            tenant_proof: proof.tenant.0,
            server_certificate: agent.server_certificate,
        })
    }

    /// Writes into the history; a store that fails is logged.
    pub async fn record(&self, node_id: Option<NodeId>, kind: &'static str, detail: String) {
        tracing::info!(node = node_id.map(|id| id.to_string()), kind, detail, "registrar");
        let name = match node_id {
            Some(node_id) => self.store.admitted_name(node_id).await.ok().flatten(),
            None => None,
        };
        record(&*self.store, NewEvent { node_id, name, kind, detail }).await;
    }
}

#[async_trait]
impl RegistrarLink for Registrar {
    async fn binding(&self, node_id: NodeId) -> Result<Option<Binding>, LinkError> {
        link::step(LinkMethod::Binding, "role", "registrar", Some(node_id));
        let mut binding = self.store.binding(node_id).await?;
        // A manufacturer may have come to the roots since the node was bound.
        if let Some(Binding { hardware: hardware @ Hardware::Unproven, ek_chain, ek_public, .. }) = &mut binding
            && let Ok(ek_public) = TpmtPublic::decode(ek_public)
            && let Ok(path) = certify(&self.ek_trust.roots(), ek_chain, &ek_public)
        {
            *hardware = Hardware::Certified { issuer: path.issuer().to_owned() };
        }
        Ok(binding)
    }

    async fn admit_node(&self, node_id: NodeId, name: &str) -> Result<(), LinkError> {
        link::step(LinkMethod::AdmitNode, "tenant", "registrar", Some(node_id));
        Ok(self.store.admit_node(node_id, name).await?)
    }

    async fn admit_join(&self, join: &JoinAdmission) -> Result<(), LinkError> {
        link::step(LinkMethod::AdmitJoin, "tenant", "registrar", None);
        Ok(self.store.admit_join(join).await?)
    }

    async fn forget(&self, node_id: Option<NodeId>, name: &str) -> Result<(), LinkError> {
        link::step(LinkMethod::Forget, "tenant", "registrar", node_id);
        Ok(self.store.forget(node_id, name).await?)
    }
}

/// A credential for the TPM that holds both keys; registrar and tenant each make their own.
pub(crate) fn credential(ek: &TpmtPublic, ak: &AkPublic, secret: &CredentialSecret) -> Result<Credential, Refusal> {
    let made = make_credential(ek, ak.name(), secret.expose(), &mut OsRng)
        .map_err(|error| Refusal::forbidden("bad_ek", format!("no credential can be made for this EK: {error}")))?;
    let too_long = |error| Refusal::internal(&error);
    Ok(Credential {
        id_object: Bytes::new(&made.id_object).map_err(too_long)?,
        encrypted_secret: Bytes::new(&made.encrypted_secret).map_err(too_long)?,
    })
}

/// Who certified an EK, or why nobody trusted did.
pub(crate) fn certify(roots: &EkRoots, chain: &[Vec<u8>], ek_public: &TpmtPublic) -> Result<EkPath, EkError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    roots.validate(chain, ek_public, now)
}

/// What is to be thought of a TPM now, and why, for a person.
fn judge_hardware(roots: &EkRoots, ek_public: &[u8], ek_chain: &[Vec<u8>], admitted: bool) -> (Hardware, String) {
    let judged = match TpmtPublic::decode(ek_public) {
        Ok(ek_public) => certify(roots, ek_chain, &ek_public),
        Err(_) => Err(EkError::NotAKey),
    };
    match judged {
        Ok(path) => {
            let issuer = path.issuer().to_owned();
            (
                Hardware::Certified { issuer: issuer.clone() },
                format!("certified by {issuer}, whom a trusted root vouches for"),
            )
        }
        Err(error) if admitted => {
            (Hardware::AllowListed, format!("named by the operator; {}: {}", error.code(), doubt(&error)))
        }
        Err(error) => (Hardware::Unproven, format!("{}: {}", error.code(), doubt(&error))),
    }
}

/// An EK that nobody vouches for, in words.
fn doubt(error: &EkError) -> String {
    match error {
        EkError::NoCertificate => "the TPM has no EK certificate".into(),
        error => format!("the EK certificate is not trusted: {}", chain(error)),
    }
}

/// Writes an event; a store that fails is logged, the refusal or step itself stands.
pub(crate) async fn record<S: EventStore + ?Sized>(store: &S, event: NewEvent) {
    if let Err(error) = store.add_event(&event).await {
        tracing::error!(error = %chain(&error), kind = event.kind, "an event could not be written");
    }
}

fn quarantined(node_id: NodeId, unproven: bool) -> Refusal {
    let doubt = if unproven { ", and no trusted manufacturer vouches for its TPM" } else { "" };
    Refusal::forbidden(
        "quarantined",
        format!(
            "nobody has admitted this node{doubt}; it waits for an operator: `trefoil node approve {node_id} --name NAME \
             --reason TEXT` admits it, `trefoil node reject {node_id} --reason TEXT` takes it off the list"
        ),
    )
}

fn not_admitted(node_id: NodeId) -> Refusal {
    Refusal::forbidden(
        "not_admitted",
        format!(
            "nobody has admitted this node: `trefoil node add NAME --id {node_id}` admits it by its id, or \
             `trefoil node add NAME --join` makes a token for the agent's configuration"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    /// As it was enrolled when some root still certified it.
    fn enrolled(number: u8) -> Binding {
        Binding {
            node_id: NodeId([number; 32]),
            ek_public: vec![1],
            ek_chain: vec![vec![1]],
            ak_public: vec![1],
            ak_name: protocol::bytes::Array([number; 34]),
            hardware: Hardware::Certified { issuer: "CN=gone".into() },
            join: None,
            bound_ms: 0,
        }
    }

    #[tokio::test]
    async fn roots_and_admission_count_as_they_are_when_the_tpm_has_proven_itself() {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open_registrar(&format!("sqlite:{}/r.db", dir.path().display())).await.unwrap();
        store.migrate().await.unwrap();
        let registrar = || Registrar::new(store.clone(), RolePrivateKey::generate(&mut OsRng), Arc::default());

        store.admit_node(NodeId([1; 32]), "edge-1").await.unwrap();
        assert_eq!(registrar().bind_proven(PEER, enrolled(1)).await.unwrap(), None);
        let bound = store.binding(NodeId([1; 32])).await.unwrap().unwrap();
        assert_eq!(bound.hardware, Hardware::AllowListed);

        // Removed between enrolment and activation.
        let refusal = registrar().keeping_strangers(false).bind_proven(PEER, enrolled(2)).await.unwrap_err();
        assert_eq!(refusal.kind, "not_admitted");
        let refusal = registrar().bind_proven(PEER, enrolled(2)).await.unwrap_err();
        assert_eq!(refusal.kind, "quarantined");
        assert_eq!(store.binding(NodeId([2; 32])).await.unwrap(), None);
        let waiting = store.quarantined_node(NodeId([2; 32])).await.unwrap().unwrap();
        assert_eq!((waiting.hardware, waiting.peer.as_str()), (Hardware::Unproven, "127.0.0.1"));
    }
}
