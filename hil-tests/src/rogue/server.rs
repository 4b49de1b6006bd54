//! A gateway with all three roles behind it, whose every word a test chooses: honest by default, one thing changed at a time.
//!
//! It takes one agent at a time and does nothing between calls: while a test waits for something, what the agent asks is
//! answered from the [`Desk`], and all of it is written down in the [`Record`]. Nothing is judged here: a node gets its
//! shares because the test sends them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};
use protocol::bytes::{Array, Bytes};
use protocol::coap;
use protocol::coap::frame::{Code, OutMessage, format};
use protocol::coap::route::{Route, RouteName, Side};
use protocol::crypto::container::{File, write_container};
use protocol::crypto::manifest::manifest_digest;
use protocol::crypto::payload::{CHUNK_LEN, PayloadSealer, chunk_count, ciphertext_len};
use protocol::crypto::role_key::open_v_at_rest;
use protocol::crypto::seal::{SealKeys, SealOptions, seal};
use protocol::crypto::secret::CredentialSecret;
use protocol::crypto::share::{Release, SealedShare, seal_u, seal_v};
use protocol::crypto::{
    ConfirmKey, Kb, Manifest, Nk, RolePrivateKey, SIGNATURE_LEN, ShareU, ShareV, TenantHolding, TenantSigningKey, bind,
    node_id, sha256,
};
use protocol::id::{EnrolmentId, NodeId, Role, SealingId, Subject};
use protocol::limits;
use protocol::message;
use protocol::message::attest::{BankSelection, Challenge, Evidence, Purpose, Selection};
use protocol::message::enrol::{Activate, Credential, Enrol, EnrolAnswer, Hello, HelloAnswer};
use protocol::message::provision::{Confirm, Report, Share, SignedManifest};
use protocol::tpm::alg::HashAlg;
use protocol::tpm::attest::TpmsAttest;
use protocol::tpm::credential::make_credential;
use protocol::tpm::public::{Name, TpmtPublic};
use rand_core::{OsRng, RngCore};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

use super::client::provider;
use super::tpm::Identity;
use super::{Peer, Reply, Request, Ticket, handshake};

/// A server CA of a test's own.
pub struct RogueCa {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for RogueCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RogueCa")
    }
}

impl RogueCa {
    /// A new self-signed CA of this name, P-256.
    ///
    /// # Errors
    /// None that can occur.
    pub fn new(common_name: &str) -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = issuer_params(common_name, true);
        let certificate = params.self_signed(&key)?;
        let (pem, certificate) = (certificate.pem(), certificate.der().clone());
        Ok(Self { certificate, pem, issuer: Issuer::new(params, key) })
    }

    /// An issuer below this one: an intermediate, or with `is_ca` false a mere server that plays one.
    ///
    /// # Errors
    /// None that can occur.
    pub fn subordinate(&self, common_name: &str, is_ca: bool) -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = issuer_params(common_name, is_ca);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let (pem, certificate) = (certificate.pem(), certificate.der().clone());
        Ok(Self { certificate, pem, issuer: Issuer::new(params, key) })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate for an agent's `ca` setting.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_pem(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join("ca.pem");
        fs::write(&path, &self.pem)?;
        Ok(path)
    }
}

fn issuer_params(common_name: &str, is_ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2060, 1, 1));
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    } else {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }
    params
}

/// What the server's certificate says. By default what an agent accepts.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Subject alternative names: DNS names and IP addresses.
    pub names: Vec<String>,
    /// The subject's common name, which no one should look at.
    pub common_name: String,
    /// Extended key usage serverAuth; clientAuth otherwise.
    pub server_auth: bool,
    /// CA:TRUE.
    pub is_ca: bool,
    /// First day: year, month, day.
    pub not_before: (i32, u8, u8),
    /// Last day.
    pub not_after: (i32, u8, u8),
    /// Sends the issuer's certificate behind its own.
    pub with_issuer: bool,
}

impl Default for Certificate {
    fn default() -> Self {
        Self {
            names: vec!["127.0.0.1".into(), "localhost".into()],
            common_name: "rogue gateway".into(),
            server_auth: true,
            is_ca: false,
            not_before: (2020, 1, 1),
            not_after: (2060, 1, 1),
            with_issuer: false,
        }
    }
}

/// What the registrar learned of a node.
#[derive(Clone, Debug)]
pub struct BoundNode {
    /// Its EK.
    pub ek_public: TpmtPublic,
    /// Name of its AK.
    pub ak_name: Name,
}

type BoundNodes = Arc<Mutex<BTreeMap<NodeId, BoundNode>>>;

/// A listening gateway.
pub struct RogueGateway {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    server_certificate: [u8; 32],
    bound: BoundNodes,
}

impl std::fmt::Debug for RogueGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RogueGateway").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl RogueGateway {
    /// Listens on a free port of 127.0.0.1 with a certificate issued by `ca`.
    ///
    /// # Errors
    /// When no port is free, or a name is none.
    pub fn start(ca: &RogueCa, certificate: &Certificate) -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(certificate.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, certificate.common_name.as_str());
        params.is_ca = if certificate.is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if certificate.server_auth {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        let day = |(year, month, day)| date_time_ymd(year, month, day);
        (params.not_before, params.not_after) = (day(certificate.not_before), day(certificate.not_after));
        let leaf = params.signed_by(&key, &ca.issuer)?.der().clone();
        let server_certificate = sha256(&[&leaf]);
        let mut chain = vec![leaf];
        if certificate.with_issuer {
            chain.push(ca.certificate.clone());
        }
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"coap".to_vec()];
        config.send_tls13_tickets = 0;
        config.max_fragment_size = Some(limits::MAX_RECORD_LEN);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, config: Arc::new(config), server_certificate, bound: Arc::default() })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// None that can occur.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// SHA-256 of its certificate.
    pub fn server_certificate(&self) -> [u8; 32] {
        self.server_certificate
    }

    /// Makes a node known, as if its AK had been bound before.
    ///
    /// # Errors
    /// When a key of the identity is malformed.
    pub fn bind(&self, identity: &Identity) -> Result<()> {
        let node = BoundNode {
            ek_public: TpmtPublic::decode(&identity.ek_public)?,
            ak_name: Name::decode(&identity.ak_name)?,
        };
        lock(&self.bound).insert(identity.node_id, node);
        Ok(())
    }

    /// Forgets every node.
    pub fn forget_nodes(&self) {
        lock(&self.bound).clear();
    }

    /// Waits for an agent and finishes TLS with it.
    ///
    /// # Errors
    /// When none comes, or it does not accept the certificate.
    pub fn accept(&self, timeout: Duration) -> Result<RogueSession> {
        let deadline = Instant::now() + timeout;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    ensure!(Instant::now() < deadline, "no agent connected within {timeout:?}");
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error.into()),
            }
        };
        stream.set_nonblocking(false)?;
        let (tls, stream) = handshake(ServerConnection::new(Arc::clone(&self.config))?.into(), stream)?;
        Ok(RogueSession {
            peer: Peer::new(tls, stream)?,
            server_certificate: self.server_certificate,
            bound: Arc::clone(&self.bound),
            pending: None,
            desk: Desk::default(),
            record: Record::default(),
        })
    }
}

fn lock(bound: &BoundNodes) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, BoundNode>> {
    bound.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is answered instead of the honest answer.
#[derive(Clone, Debug)]
pub enum Canned {
    /// This.
    Answer(Code, Vec<u8>),
    /// The part of this body that was asked for.
    Body(Vec<u8>),
    /// Nothing: the agent waits.
    Silence,
    /// These bytes, which need not be a message.
    Bytes(Vec<u8>),
    /// The connection is cut.
    Cut,
}

/// Looks at each request of the agent first; `None` leaves it to the honest answer.
pub type Intercept = Box<dyn FnMut(&Request) -> Option<Canned> + Send>;

/// What the agent's requests are answered from.
#[derive(Default)]
pub struct Desk {
    /// The answer to `hello`; by default what is true.
    pub hello: Option<HelloAnswer>,
    /// What manifests and payloads are served of.
    pub sealings: BTreeMap<SealingId, RogueSealing>,
    /// Asked before anything is answered.
    pub intercept: Option<Intercept>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("hello", &self.hello).field("sealings", &self.sealings).finish_non_exhaustive()
    }
}

/// A `confirm`, and whether its HMAC is the one that the last release to this node asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Confirmed {
    /// The message.
    pub confirm: Confirm,
    /// Whether it proves anything.
    pub is_right: bool,
}

/// What the agent said on one connection, in order.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Every request, blocks of a payload one by one.
    pub asked: Vec<RouteName>,
    /// Requests that name no route.
    pub unknown: usize,
    /// `hello`.
    pub hellos: Vec<Hello>,
    /// `enrol`.
    pub enrols: Vec<Enrol>,
    /// `activate`, and whether its proof was right.
    pub activations: Vec<(Activate, bool)>,
    /// `confirm`.
    pub confirms: Vec<Confirmed>,
    /// `report`.
    pub reports: Vec<Report>,
    /// Whether the node is bound on this connection: known, or activated.
    pub is_bound: bool,
    /// What U was released on: the NK's digest and the tenant's nonce.
    released: BTreeMap<SealingId, ([u8; 32], [u8; 32])>,
}

impl Record {
    /// How often the agent asked for this.
    pub fn count(&self, route: RouteName) -> usize {
        self.asked.iter().filter(|asked| **asked == route).count()
    }
}

struct PendingEnrolment {
    enrolment_id: EnrolmentId,
    secret: CredentialSecret,
    node_id: NodeId,
    node: BoundNode,
}

/// One agent's connection. It is a [`Peer`], and answers what the agent asks while it is waited for something else.
pub struct RogueSession {
    peer: Peer,
    server_certificate: [u8; 32],
    bound: BoundNodes,
    pending: Option<PendingEnrolment>,
    /// What is answered.
    pub desk: Desk,
    /// What was asked.
    pub record: Record,
}

impl std::fmt::Debug for RogueSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RogueSession").field("peer", &self.peer).field("record", &self.record).finish_non_exhaustive()
    }
}

impl Deref for RogueSession {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.peer
    }
}

impl DerefMut for RogueSession {
    fn deref_mut(&mut self) -> &mut Peer {
        &mut self.peer
    }
}

/// A challenge to be made.
#[derive(Clone, Debug)]
pub struct ChallengeSpec {
    /// Who asks.
    pub role: Role,
    /// What for.
    pub purpose: Purpose,
    /// What to quote.
    pub selection: Selection,
    /// A nonce of the test's choice; by default a new one.
    pub nonce: Option<[u8; 32]>,
    /// With a credential for the AK that the registrar knows.
    pub credential: bool,
    /// The boot log that this role claims to hold.
    pub boot_log: Option<[u8; 32]>,
    /// The first IMA entry wanted.
    pub ima_from: u64,
}

impl ChallengeSpec {
    /// A challenge over the SHA-256 bank's PCRs 0 to 7, without credential.
    pub fn new(role: Role, purpose: Purpose) -> Self {
        Self {
            role,
            purpose,
            selection: selection(&[(HashAlg::Sha256, 0xff)]),
            nonce: None,
            credential: false,
            boot_log: None,
            ima_from: 0,
        }
    }

    /// The same over other PCRs.
    #[must_use]
    pub fn over(mut self, banks: &[(HashAlg, u32)]) -> Self {
        self.selection = selection(banks);
        self
    }

    /// The same with this nonce.
    #[must_use]
    pub fn nonce(mut self, nonce: [u8; 32]) -> Self {
        self.nonce = Some(nonce);
        self
    }

    /// The same with a credential.
    #[must_use]
    pub fn with_credential(mut self) -> Self {
        self.credential = true;
        self
    }
}

/// A selection of at most four banks: what is more is left out.
pub fn selection(banks: &[(HashAlg, u32)]) -> Selection {
    banks
        .iter()
        .take(limits::MAX_PCR_BANKS)
        .map(|(bank, mask)| BankSelection { bank: bank.id(), mask: *mask })
        .collect()
}

/// A challenge that was sent.
#[derive(Debug)]
pub struct Sent {
    ticket: Ticket,
    challenge: Challenge,
    credential_secret: Option<CredentialSecret>,
}

/// An answered challenge, with what is known about the answer. The signature is not verified here.
#[derive(Debug)]
pub struct Answered {
    /// What was asked.
    pub challenge: Challenge,
    /// What was answered.
    pub evidence: Evidence,
    /// The quote, if it is one.
    pub attest: Option<TpmsAttest>,
    /// Whether the quote's qualifying data is what binds this challenge, node, NK and server.
    pub binds: bool,
    /// Whether the credential's answer is right; `None` without a credential.
    pub credential_fits: Option<bool>,
    /// Whom a share resting on this goes to.
    pub target: Target,
}

/// Whom a share is for. Every field may be changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    /// The node.
    pub node_id: NodeId,
    /// SHA-256 of the TPMS_ATTEST bytes that the release rests on.
    pub attest_digest: [u8; 32],
    /// The NK it is sealed to.
    pub nk_public: [u8; 65],
}

impl RogueSession {
    /// Answers the agent until `done`, looking at the record after each request.
    ///
    /// # Errors
    /// When it is not done within `timeout`, or the connection ends before.
    pub fn serve_until(&mut self, timeout: Duration, mut done: impl FnMut(&Record) -> bool) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !done(&self.record) {
            if !self.serve_next(deadline.saturating_duration_since(Instant::now()))? {
                bail!("not within {timeout:?}; connection: {:?}; asked: {:?}", self.peer.closed(), self.record.asked);
            }
        }
        Ok(())
    }

    /// Answers the agent for so long, or until the connection ends: to show that something does not happen.
    ///
    /// # Errors
    /// When this end cannot write.
    pub fn serve_for(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while self.serve_next(deadline.saturating_duration_since(Instant::now()))? {}
        Ok(())
    }

    /// Answers until the node is bound, and says who it is.
    ///
    /// # Errors
    /// As [`RogueSession::serve_until`].
    pub fn wait_bound(&mut self, timeout: Duration) -> Result<NodeId> {
        self.serve_until(timeout, |record| record.is_bound)?;
        self.node_id()
    }

    /// Answers until the next `confirm` (the first that is not in the record yet).
    ///
    /// # Errors
    /// As [`RogueSession::serve_until`].
    pub fn wait_confirm(&mut self, timeout: Duration) -> Result<Confirmed> {
        let before = self.record.confirms.len();
        self.serve_until(timeout, |record| record.confirms.len() > before)?;
        self.record.confirms.last().cloned().context("no confirm")
    }

    /// Answers until the next `report`.
    ///
    /// # Errors
    /// As [`RogueSession::serve_until`].
    pub fn wait_report(&mut self, timeout: Duration) -> Result<Report> {
        let before = self.record.reports.len();
        self.serve_until(timeout, |record| record.reports.len() > before)?;
        self.record.reports.last().cloned().context("no report")
    }

    /// Whom the agent says it is.
    ///
    /// # Errors
    /// When it has not said so yet.
    pub fn node_id(&self) -> Result<NodeId> {
        self.record.hellos.last().map(|hello| hello.node_id).context("no hello yet")
    }

    /// Sends a challenge and waits for its evidence.
    ///
    /// # Errors
    /// [`Refused`](super::Refused) by the agent; also when it does not answer, or not with evidence.
    pub fn challenge(&mut self, spec: &ChallengeSpec) -> Result<Answered> {
        let sent = self.send_challenge(spec)?;
        self.evidence(sent)
    }

    /// Sends verifier's and tenant's challenge at once, as honest roles do, and waits for both: verifier's first.
    ///
    /// # Errors
    /// As [`RogueSession::challenge`].
    pub fn challenge_both(&mut self, verifier: &ChallengeSpec, tenant: &ChallengeSpec) -> Result<[Answered; 2]> {
        let (first, second) = (self.send_challenge(verifier)?, self.send_challenge(tenant)?);
        Ok([self.evidence(first)?, self.evidence(second)?])
    }

    /// Sends a challenge and does not wait.
    ///
    /// # Errors
    /// When a credential is wanted for a node that is not bound, or the connection is over.
    pub fn send_challenge(&mut self, spec: &ChallengeSpec) -> Result<Sent> {
        let mut credential_secret = None;
        let mut credential = None;
        if spec.credential {
            let node_id = self.node_id()?;
            let node = lock(&self.bound).get(&node_id).cloned().context("the node is not bound")?;
            let (made, secret) = new_credential(&node)?;
            (credential, credential_secret) = (Some(made), Some(secret));
        }
        let challenge = Challenge {
            role: spec.role,
            purpose: spec.purpose,
            nonce: Array(spec.nonce.unwrap_or_else(random)),
            selection: spec.selection.clone(),
            pcr_base: None,
            boot_log: spec.boot_log.map(Array),
            ima_from: spec.ima_from,
            credential,
        };
        let ticket = self.peer.begin(Route::Challenge, None, &message::to_vec(&challenge)?)?;
        Ok(Sent { ticket, challenge, credential_secret })
    }

    /// Waits for the evidence to a challenge.
    ///
    /// # Errors
    /// As [`RogueSession::challenge`].
    pub fn evidence(&mut self, sent: Sent) -> Result<Answered> {
        let Sent { ticket, challenge, credential_secret } = sent;
        let evidence: Evidence = self.await_reply(ticket)?.message()?;
        let node_id = self.node_id()?;
        let attest = TpmsAttest::decode(&evidence.attested).ok();
        let other = match challenge.role {
            Role::Verifier => Role::Tenant,
            _ => Role::Verifier,
        };
        let mut nonces = vec![(challenge.role, challenge.nonce.0)];
        nonces.extend(evidence.other_nonce.map(|nonce| (other, nonce.0)));
        nonces.sort_unstable_by_key(|(role, _)| *role);
        let nk_public = evidence.nk_public.map(|nk| nk.0);
        let bound = bind::qualifying_data(
            challenge.purpose as u8,
            node_id,
            nk_public.as_ref(),
            &self.server_certificate,
            &nonces,
        );
        let binds =
            matches!((&attest, bound), (Some(attest), Ok(bound)) if attest.extra_data.as_slice() == bound.as_slice());
        let credential_fits = credential_secret.map(|secret| {
            matches!((bound, evidence.credential_answer), (Ok(bound), Some(answer))
                if bind::verify_credential_answer(&secret, &bound, &answer.0).is_ok())
        });
        let target =
            Target { node_id, attest_digest: sha256(&[&evidence.attested]), nk_public: nk_public.unwrap_or([0; 65]) };
        Ok(Answered { challenge, evidence, attest, binds, credential_fits, target })
    }

    /// Sends a share and gives the agent's answer, a refusal included.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn send_share(&mut self, share: &Share) -> Result<Reply> {
        let ticket = self.peer.begin(Route::Share, None, &message::to_vec(share)?)?;
        self.await_reply(ticket)
    }

    /// Sends U of a sealing as it should be, on the tenant's answered challenge, and notes what `confirm` has to rest on.
    ///
    /// # Errors
    /// As [`RogueSession::send_share`].
    pub fn send_u(&mut self, sealing: &RogueSealing, answered: &Answered) -> Result<Reply> {
        let basis = (sha256(&[&answered.target.nk_public]), answered.challenge.nonce.0);
        self.record.released.insert(sealing.sealing_id, basis);
        let share = sealing.share_u(&answered.target)?;
        self.send_share(&share)
    }

    /// Sends V of a sealing as it should be, on the verifier's answered challenge.
    ///
    /// # Errors
    /// As [`RogueSession::send_share`].
    pub fn send_v(&mut self, sealing: &RogueSealing, answered: &Answered) -> Result<Reply> {
        let share = sealing.share_v(&answered.target)?;
        self.send_share(&share)
    }

    /// Does everything honest roles do for a bound node: both challenges, both shares, and the payload on the desk.
    /// `confirm` is to be waited for.
    ///
    /// # Errors
    /// When the agent refuses any of it.
    pub fn deliver(&mut self, sealing: &RogueSealing) -> Result<()> {
        self.desk.sealings.insert(sealing.sealing_id, sealing.clone());
        let spec = |role| ChallengeSpec::new(role, Purpose::Bootstrap);
        let [verifier, tenant] = self.challenge_both(&spec(Role::Verifier), &spec(Role::Tenant).with_credential())?;
        ensure!(verifier.binds && tenant.binds, "the quotes do not bind what they should");
        ensure!(tenant.credential_fits == Some(true), "the tenant's credential was not answered");
        self.send_v(sealing, &verifier)?.accepted()?;
        self.send_u(sealing, &tenant)?.accepted()?;
        Ok(())
    }

    /// Fetches one of the agent's logs.
    ///
    /// # Errors
    /// [`Refused`](super::Refused); also when the blocks are no whole body. Requests of the agent wait meanwhile.
    pub fn log(&mut self, route: Route) -> Result<Vec<u8>> {
        self.peer.get(route, limits::MAX_IMA_LOG_LEN)
    }

    fn await_reply(&mut self, ticket: Ticket) -> Result<Reply> {
        let deadline = Instant::now() + self.peer.patience();
        loop {
            if let Some(reply) = self.peer.answer(ticket) {
                return Ok(reply);
            }
            // What came before the connection ended is still looked at.
            if let Some(why) = self.peer.closed() {
                bail!("the connection is over: {why}");
            }
            ensure!(Instant::now() < deadline, "the agent does not answer; it asked {:?}", self.record.asked);
            self.serve_next(Duration::from_millis(1))?;
        }
    }

    /// Answers the next request; `false` if none came in time.
    fn serve_next(&mut self, timeout: Duration) -> Result<bool> {
        let Some(request) = self.peer.next_request(timeout)? else { return Ok(false) };
        self.serve(&request)?;
        Ok(true)
    }

    fn serve(&mut self, request: &Request) -> Result<()> {
        match request.route {
            Ok(route) => self.record.asked.push(route.name()),
            Err(_) => self.record.unknown += 1,
        }
        let canned = self.desk.intercept.as_mut().and_then(|intercept| intercept(request));
        match canned {
            None => {}
            Some(Canned::Answer(code, payload)) => {
                self.note(request)?;
                return self.peer.respond(request.token, code, &payload);
            }
            Some(Canned::Body(body)) => return self.peer.respond_part(request, &body),
            Some(Canned::Silence) => return self.note(request),
            Some(Canned::Bytes(bytes)) => return self.peer.send_bytes(&bytes),
            Some(Canned::Cut) => {
                self.note(request)?;
                self.peer.cut();
                return Ok(());
            }
        }
        let (code, payload) = match request.route {
            Ok(Route::Hello) => self.hello(request)?,
            Ok(Route::Enrol) => self.enrol(request)?,
            Ok(Route::Activate) => self.activate(request)?,
            Ok(Route::Manifest(sealing_id)) => match self.desk.sealings.get(&sealing_id) {
                Some(sealing) => (Code::CONTENT, message::to_vec(&sealing.signed_manifest()?)?),
                None => (Code::NOT_FOUND, Vec::new()),
            },
            Ok(Route::Payload(sealing_id)) => match self.desk.sealings.get(&sealing_id) {
                Some(sealing) => return self.peer.respond_part(request, &sealing.ciphertext),
                None => (Code::NOT_FOUND, Vec::new()),
            },
            Ok(Route::Confirm | Route::Report) => {
                self.note(request)?;
                (Code::CHANGED, Vec::new())
            }
            Ok(Route::WellKnownCore) => {
                let mut text = String::new();
                let routes = RouteName::ALL.into_iter().filter(|name| name.parts().2 == Side::ControlPlane);
                coap::write_routes(routes, &mut text)?;
                let message = OutMessage::new(Code::CONTENT).content_format(format::LINK).payload(text.as_bytes());
                return self.peer.respond_message(request.token, &message);
            }
            Ok(_) | Err(_) => (Code::NOT_FOUND, Vec::new()),
        };
        self.peer.respond(request.token, code, &payload)
    }

    /// Writes down what needs no answer to be understood.
    fn note(&mut self, request: &Request) -> Result<()> {
        match request.route {
            Ok(Route::Confirm) => {
                let confirm: Confirm = request.message()?;
                let is_right = self.confirm_is_right(&confirm)?;
                self.record.confirms.push(Confirmed { confirm, is_right });
            }
            Ok(Route::Report) => self.record.reports.push(request.message()?),
            _ => {}
        }
        Ok(())
    }

    fn confirm_is_right(&self, confirm: &Confirm) -> Result<bool> {
        let sealing = self.desk.sealings.get(&confirm.sealing_id);
        let (Some(sealing), Some((nk, nonce))) = (sealing, self.record.released.get(&confirm.sealing_id)) else {
            return Ok(false);
        };
        let (node, key) = (self.node_id()?, sealing.confirm_key());
        Ok(bind::verify_confirm_mac(&key, node, confirm.sealing_id, nk, nonce, &confirm.proof.0).is_ok())
    }

    fn hello(&mut self, request: &Request) -> Result<(Code, Vec<u8>)> {
        let hello: Hello = request.message()?;
        let is_known = lock(&self.bound).get(&hello.node_id).is_some_and(|node| *node.ak_name == hello.ak_name.0);
        self.record.hellos.push(hello);
        let honest = if is_known { HelloAnswer::Known } else { HelloAnswer::Enrol };
        let answer = self.desk.hello.unwrap_or(honest);
        self.record.is_bound = answer == HelloAnswer::Known;
        Ok((Code::CONTENT, message::to_vec(&answer)?))
    }

    fn enrol(&mut self, request: &Request) -> Result<(Code, Vec<u8>)> {
        let enrol: Enrol = request.message()?;
        let ek_public = TpmtPublic::decode(&enrol.ek_public)?;
        let ak_name = TpmtPublic::decode(&enrol.ak_public)?.name();
        let id = node_id(&ek_public.spki_der()?);
        self.record.enrols.push(enrol);
        let node = BoundNode { ek_public, ak_name };
        let (credential, secret) = new_credential(&node)?;
        let enrolment_id = EnrolmentId(random());
        self.pending = Some(PendingEnrolment { enrolment_id, secret, node_id: id, node });
        Ok((Code::CONTENT, message::to_vec(&EnrolAnswer { enrolment_id, credential })?))
    }

    fn activate(&mut self, request: &Request) -> Result<(Code, Vec<u8>)> {
        let activate: Activate = request.message()?;
        let pending = self.pending.take();
        let is_right = pending.as_ref().is_some_and(|pending| {
            activate.enrolment_id == pending.enrolment_id
                && bind::verify_activate_proof(
                    &pending.secret,
                    pending.enrolment_id,
                    pending.node_id,
                    &self.server_certificate,
                    &pending.node.ak_name,
                    &activate.proof.0,
                )
                .is_ok()
        });
        self.record.activations.push((activate, is_right));
        match pending {
            Some(PendingEnrolment { node_id, node, .. }) if is_right => {
                lock(&self.bound).insert(node_id, node);
                self.record.is_bound = true;
                Ok((Code::CHANGED, Vec::new()))
            }
            _ => Ok((Code::FORBIDDEN, b"the activation proves nothing".to_vec())),
        }
    }
}

/// A credential for a node's AK beside its EK, and the secret in it.
fn new_credential(node: &BoundNode) -> Result<(Credential, CredentialSecret)> {
    let secret = CredentialSecret::generate(&mut OsRng);
    let made = make_credential(&node.ek_public, &node.ak_name, secret.expose(), &mut OsRng)?;
    let credential =
        Credential { id_object: Bytes::new(&made.id_object)?, encrypted_secret: Bytes::new(&made.encrypted_secret)? };
    Ok((credential, secret))
}

/// A sealing of which everything is known, and of which everything may be changed.
#[derive(Clone)]
pub struct RogueSealing {
    /// Its id.
    pub sealing_id: SealingId,
    /// Whom it is for.
    pub subject: Subject,
    /// The manifest as it is served.
    pub manifest: Vec<u8>,
    /// The signature as it is served.
    pub signature: [u8; SIGNATURE_LEN],
    /// The ciphertext as it is served.
    pub ciphertext: Vec<u8>,
    /// The manifest's digest as it is announced with U.
    pub announced: [u8; 32],
    u: [u8; 32],
    v: [u8; 32],
}

impl std::fmt::Debug for RogueSealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RogueSealing({}, {} bytes)", self.sealing_id, self.ciphertext.len())
    }
}

/// What happens to the manifest when a payload is encrypted again.
#[derive(Clone, Copy, Debug)]
pub enum Resealed<'a> {
    /// It stays: its digest no longer fits.
    ManifestKept,
    /// It fits, and still carries the old signature.
    SignatureKept,
    /// It fits, and this key signs it.
    SignedBy(&'a TenantSigningKey),
}

impl RogueSealing {
    /// Seals these files for `subject` under a new K_b, signed by `signing`; without autorun, valid for ever.
    ///
    /// # Errors
    /// When the files are no payload.
    pub fn new(subject: Subject, signing: &TenantSigningKey, files: &[(&str, &[u8])]) -> Result<Self> {
        Self::with(subject, signing, files, false, None)
    }

    /// As [`RogueSealing::new`], with autorun asked for, or an end (seconds since 1970).
    ///
    /// # Errors
    /// As [`RogueSealing::new`].
    pub fn with(
        subject: Subject,
        signing: &TenantSigningKey,
        files: &[(&str, &[u8])],
        autorun: bool,
        not_after: Option<NonZeroU64>,
    ) -> Result<Self> {
        Self::of_container(subject, signing, &container(files)?, autorun, not_after)
    }

    /// Seals a plaintext as it is, which need not be a container.
    ///
    /// # Errors
    /// When it is longer than a payload may be.
    pub fn of_container(
        subject: Subject,
        signing: &TenantSigningKey,
        plaintext: &[u8],
        autorun: bool,
        not_after: Option<NonZeroU64>,
    ) -> Result<Self> {
        let (tenant, verifier) = (RolePrivateKey::generate(&mut OsRng), RolePrivateKey::generate(&mut OsRng));
        let options = SealOptions { subject, payload_id: random(), version: 1, autorun, not_after };
        let keys = SealKeys { signing, tenant: &tenant.public(), verifier: &verifier.public() };
        let mut ciphertext = Vec::new();
        let sealing = seal(&options, plaintext, &keys, &mut OsRng, |chunk| {
            ciphertext.extend_from_slice(chunk);
            Ok::<_, Infallible>(())
        })?;
        let holding = TenantHolding::open(&tenant, subject, sealing.sealing_id, &sealing.u_sealed)?;
        let v = open_v_at_rest(&verifier, subject, sealing.sealing_id, &sealing.v_sealed)?;
        Ok(Self {
            sealing_id: sealing.sealing_id,
            subject,
            manifest: sealing.manifest.to_vec(),
            signature: sealing.signature,
            ciphertext,
            announced: holding.manifest_digest,
            u: *holding.u.expose(),
            v: *v.expose(),
        })
    }

    /// Inverts one bit of the ciphertext.
    ///
    /// # Errors
    /// When there is no such byte.
    pub fn flip_ciphertext(&mut self, at: usize) -> Result<()> {
        *self.ciphertext.get_mut(at).context("no such byte of the ciphertext")? ^= 1;
        Ok(())
    }

    /// Changes what the manifest says and leaves the signature as it was. The old digest stays announced: see
    /// [`RogueSealing::announce`].
    ///
    /// # Errors
    /// When the result is no manifest.
    pub fn alter_manifest(&mut self, edit: impl FnOnce(&mut Manifest)) -> Result<()> {
        let mut manifest = Manifest::decode(&self.manifest)?;
        edit(&mut manifest);
        self.manifest = manifest.encode()?.to_vec();
        Ok(())
    }

    /// Signs the manifest as it stands by this key, and announces it.
    pub fn sign_by(&mut self, signing: &TenantSigningKey) {
        self.signature = signing.sign(&self.manifest);
        self.announce();
    }

    /// Announces the manifest as it stands: what a tenant role does that was taken over.
    pub fn announce(&mut self) {
        self.announced = manifest_digest(&self.manifest);
    }

    /// Encrypts other files under the right K_b, as one who came by both shares can.
    ///
    /// # Errors
    /// When the files are no payload.
    pub fn reencrypt(&mut self, files: &[(&str, &[u8])], manifest: Resealed<'_>) -> Result<()> {
        let plaintext = container(files)?;
        let key = self.kb()?.payload_key(self.subject, self.sealing_id);
        let mut sealer = PayloadSealer::new(&key, self.subject, self.sealing_id);
        let plaintext_len = u64::try_from(plaintext.len())?;
        self.ciphertext.clear();
        let mut rest = plaintext.as_slice();
        for left in (0..chunk_count(plaintext_len)).rev() {
            let (head, tail) = rest.split_at(rest.len().min(CHUNK_LEN));
            rest = tail;
            let mut chunk = head.to_vec();
            sealer.seal_chunk(&mut chunk, left == 0)?;
            self.ciphertext.extend_from_slice(&chunk);
        }
        if matches!(manifest, Resealed::ManifestKept) {
            return Ok(());
        }
        let digest = sha256(&[&self.ciphertext]);
        self.alter_manifest(|manifest| {
            manifest.ciphertext_digest = digest;
            manifest.ciphertext_len = ciphertext_len(plaintext_len);
            manifest.plaintext_len = plaintext_len;
        })?;
        match manifest {
            Resealed::SignedBy(signing) => self.sign_by(signing),
            _ => self.announce(),
        }
        Ok(())
    }

    /// Manifest and signature as they are served.
    ///
    /// # Errors
    /// When the manifest is longer than the message takes.
    pub fn signed_manifest(&self) -> Result<SignedManifest> {
        Ok(SignedManifest { manifest: Bytes::new(&self.manifest)?, signature: Array(self.signature) })
    }

    /// The tenant's share: U and the announced digest, sealed to `target`.
    ///
    /// # Errors
    /// When the target's NK is no point.
    pub fn share_u(&self, target: &Target) -> Result<Share> {
        let release = self.release(target);
        let u = ShareU::from_slice(&self.u).context("U")?;
        self.message(Role::Tenant, &seal_u(&release, &target.nk_public, &u, &self.announced, &mut OsRng)?)
    }

    /// The verifier's share: V, sealed to `target`.
    ///
    /// # Errors
    /// When the target's NK is no point.
    pub fn share_v(&self, target: &Target) -> Result<Share> {
        let release = self.release(target);
        let v = ShareV::from_slice(&self.v).context("V")?;
        self.message(Role::Verifier, &seal_v(&release, &target.nk_public, &v, &mut OsRng)?)
    }

    /// A share that opens and holds random bytes: only the key tag tells.
    ///
    /// # Errors
    /// When the target's NK is no point.
    pub fn wrong_share(&self, role: Role, target: &Target) -> Result<Share> {
        let mut other = self.clone();
        (other.u, other.v) = (random(), random());
        if role == Role::Tenant { other.share_u(target) } else { other.share_v(target) }
    }

    /// U, for who looks for it where it must not be.
    pub fn u(&self) -> &[u8; 32] {
        &self.u
    }

    /// V.
    pub fn v(&self) -> &[u8; 32] {
        &self.v
    }

    fn kb(&self) -> Result<Kb> {
        let (u, v) = (ShareU::from_slice(&self.u), ShareV::from_slice(&self.v));
        Ok(u.context("U")?.combine(&v.context("V")?))
    }

    fn confirm_key(&self) -> ConfirmKey {
        // Shares have 32 bytes: `kb` does not fail.
        let kb = self.kb().unwrap_or_else(|_| Kb::generate(&mut OsRng));
        kb.confirm_key(self.subject, self.sealing_id)
    }

    fn release(&self, target: &Target) -> Release {
        Release { node_id: target.node_id, sealing_id: self.sealing_id, attest_digest: target.attest_digest }
    }

    fn message(&self, role: Role, sealed: &SealedShare) -> Result<Share> {
        let ciphertext = Bytes::new(&sealed.ciphertext)?;
        Ok(Share { role, sealing_id: self.sealing_id, enc: Array(sealed.enc), ciphertext })
    }
}

/// A share of random bytes that nobody's key opens, of the right length and with a key that is a point.
///
/// # Errors
/// None that can occur.
pub fn junk_share(role: Role, sealing_id: SealingId) -> Result<Share> {
    let mut ciphertext = vec![0; if role == Role::Tenant { 80 } else { 48 }];
    OsRng.fill_bytes(&mut ciphertext);
    let point = *Nk::from_seeds(&random(), &random()).public();
    Ok(Share { role, sealing_id, enc: Array(point), ciphertext: Bytes::new(&ciphertext)? })
}

fn container(files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let files: Vec<File<'_>> =
        files.iter().map(|(path, bytes)| File { path, executable: *path == "autorun", bytes }).collect();
    write_container(&files).map(|container| container.to_vec()).map_err(|error| anyhow!(error))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng.fill_bytes(&mut bytes);
    bytes
}
