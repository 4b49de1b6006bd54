//! An agent whose every word a test chooses: the honest steps one by one, and evidence with one thing changed.
//!
//! It says nothing by itself, does not reconnect, keeps no payload. The TPM behind it is [`super::tpm`]'s; a test may
//! run it without one as long as it proves nothing.

use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use protocol::bytes::{Array, Bytes};
use protocol::coap::frame::Code;
use protocol::coap::route::Route;
use protocol::crypto::manifest::{VerifiedManifest, manifest_digest};
use protocol::crypto::payload::PayloadReceiver;
use protocol::crypto::secret::PayloadKeys;
use protocol::crypto::share::{Release, SealedShare, open_u, open_v};
use protocol::crypto::{JoinToken, Nk, ShareU, ShareV, TenantPublicKey, bind, sha256};
use protocol::id::{NodeId, Role, SealingId};
use protocol::limits;
use protocol::message::attest::{Challenge, Evidence, PcrValue, PcrValueList, Purpose, Selection};
use protocol::message::enrol::{Activate, Enrol, EnrolAnswer, Hello, HelloAnswer, JoinProof, Wants};
use protocol::message::provision::{Confirm, Report, ReportKind, Share, SignedManifest};
use protocol::message::{self, VERSION};
use protocol::tpm::alg::HashAlg;
use protocol::tpm::attest::TpmsAttest;
use protocol::tpm::pcr::{PcrSelection, PcrSelectionList, PcrValues};
use rand_core::{OsRng, RngCore};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::tpm::{Identity, KeySpec, RawQuote, RogueTpm};
use super::{Peer, Request, handshake};

/// An agent's end of a connection. It is a [`Peer`], and knows which certificate it was shown.
#[derive(Debug)]
pub struct RogueAgent {
    peer: Peer,
    server_certificate: [u8; 32],
}

impl Deref for RogueAgent {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.peer
    }
}

impl DerefMut for RogueAgent {
    fn deref_mut(&mut self) -> &mut Peer {
        &mut self.peer
    }
}

impl RogueAgent {
    /// Connects to a gateway whose certificate one of these CAs issued for its address.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn connect(address: SocketAddr, ca_pem: &[u8]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self::connect_with(address, config)
    }

    /// Connects to whatever answers, whoever it says it is.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn connect_trusting_anything(address: SocketAddr) -> Result<Self> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
            .with_no_client_auth();
        Self::connect_with(address, config)
    }

    fn connect_with(address: SocketAddr, mut config: ClientConfig) -> Result<Self> {
        config.alpn_protocols = vec![b"coap".to_vec()];
        let tls = ClientConnection::new(Arc::new(config), ServerName::from(address.ip()))?;
        let (tls, stream) = handshake(tls.into(), TcpStream::connect(address)?)?;
        let certificate = tls.peer_certificates().and_then(|chain| chain.first()).context("no server certificate")?;
        let server_certificate = sha256(&[certificate]);
        Ok(Self { peer: Peer::new(tls, stream)?, server_certificate })
    }

    /// SHA-256 of the certificate that the server proved itself by.
    pub fn server_certificate(&self) -> [u8; 32] {
        self.server_certificate
    }

    /// `hello` as this node, honestly.
    ///
    /// # Errors
    /// [`Refused`](super::Refused); also when the connection ends.
    pub fn hello(&mut self, identity: &Identity, wants: Wants) -> Result<HelloAnswer> {
        self.hello_with(&Hello {
            version: VERSION,
            node_id: identity.node_id,
            ak_name: Array(identity.ak_name),
            wants,
            has_boot_log: false,
            has_ima_log: false,
        })
    }

    /// `hello`, whatever it says.
    ///
    /// # Errors
    /// As [`RogueAgent::hello`].
    pub fn hello_with(&mut self, hello: &Hello) -> Result<HelloAnswer> {
        self.post(Route::Hello, hello)?.message()
    }

    /// The proofs of a join token for this identity on this connection.
    pub fn join_proof(&self, token: &JoinToken, identity: &Identity) -> JoinProof {
        let proof = |role| Array(token.key(role).proof(identity.node_id, &identity.ak_name, &self.server_certificate));
        JoinProof { join_id: token.id(), registrar: proof(Role::Registrar), tenant: proof(Role::Tenant) }
    }

    /// `enrol` with what the identity says.
    ///
    /// # Errors
    /// As [`RogueAgent::hello`]; also when a field of the identity is longer than the message takes.
    pub fn enrol(&mut self, identity: &Identity, join: Option<JoinProof>) -> Result<EnrolAnswer> {
        let mut ek_chain = heapless::Vec::new();
        for certificate in &identity.ek_chain {
            ek_chain.push(Bytes::new(certificate)?).map_err(|_| anyhow!("more certificates than a message takes"))?;
        }
        let enrol = Enrol {
            ek_public: Bytes::new(&identity.ek_public)?,
            ek_chain,
            ak_public: Bytes::new(&identity.ak_public)?,
            join,
        };
        self.post(Route::Enrol, &enrol)?.message()
    }

    /// `activate` after the TPM opened the credential.
    ///
    /// # Errors
    /// As [`RogueAgent::hello`]; also when the TPM does not open it.
    pub fn activate(&mut self, tpm: &RogueTpm, identity: &Identity, answer: &EnrolAnswer) -> Result<()> {
        let secret = tpm.activate(identity, &answer.credential)?;
        let certificate = &self.server_certificate;
        let proof =
            bind::activate_proof(&secret, answer.enrolment_id, identity.node_id, certificate, &identity.ak_name);
        self.activate_with(&Activate { enrolment_id: answer.enrolment_id, proof: Array(proof) })
    }

    /// `activate`, whatever it says.
    ///
    /// # Errors
    /// As [`RogueAgent::hello`].
    pub fn activate_with(&mut self, activate: &Activate) -> Result<()> {
        self.post(Route::Activate, activate)?.accepted().map(drop)
    }

    /// `hello`, and `enrol` and `activate` if the gateway asks for them: afterwards the node is bound.
    ///
    /// # Errors
    /// As its steps.
    pub fn bind(
        &mut self,
        tpm: &RogueTpm,
        identity: &Identity,
        wants: Wants,
        join: Option<&JoinToken>,
    ) -> Result<HelloAnswer> {
        let answer = self.hello(identity, wants)?;
        if answer == HelloAnswer::Enrol {
            let join = join.map(|token| self.join_proof(token, identity));
            let answer = self.enrol(identity, join)?;
            self.activate(tpm, identity, &answer)?;
        }
        Ok(answer)
    }

    /// The evidence an honest agent answers with. `nk_public` counts only for purpose bootstrap.
    ///
    /// # Errors
    /// When the TPM refuses.
    pub fn honest_evidence(
        &self,
        tpm: &RogueTpm,
        identity: &Identity,
        challenge: &Challenge,
        nk: &Nk,
    ) -> Result<Evidence> {
        self.evidence(tpm, identity, challenge, nk, EvidenceHacks::default())
    }

    /// The same with something changed.
    ///
    /// # Errors
    /// When the TPM refuses, or a change does not fit the message.
    pub fn evidence(
        &self,
        tpm: &RogueTpm,
        identity: &Identity,
        challenge: &Challenge,
        nk: &Nk,
        hacks: EvidenceHacks<'_>,
    ) -> Result<Evidence> {
        let quoting = hacks.tpm.unwrap_or(tpm);
        let purpose = hacks.purpose.unwrap_or(challenge.purpose);
        let nk_public = (purpose == Purpose::Bootstrap).then_some(nk.public());
        let nonces = [(challenge.role, hacks.nonce.unwrap_or(challenge.nonce.0))];
        let bound = bind::qualifying_data(
            purpose as u8,
            hacks.node_id.unwrap_or(identity.node_id),
            nk_public,
            &hacks.server_certificate.unwrap_or(self.server_certificate),
            &nonces,
        )?;
        let qualifying_data = hacks.qualifying_data.unwrap_or(bound);
        let selection = match hacks.selection {
            Some(selection) => selection,
            None => selection_list(&challenge.selection)?,
        };
        let signer = hacks.signer.unwrap_or_else(|| identity.ak.clone());
        let (mut quote, values) = quoting.quote(&signer, &qualifying_data, &selection)?;
        if let Some(forge) = hacks.forge {
            let mut attest = TpmsAttest::decode(&quote.attested)?;
            forge(&mut attest);
            let mut batch = quoting.open()?;
            let key = batch.create(&signer)?;
            let attested = attest.encode();
            quote = RawQuote { signature: batch.sign(&key, &attested)?, attested };
            batch.flush(key.handle)?;
        }
        if hacks.flip_signature
            && let Some(last) = quote.signature.last_mut()
        {
            *last ^= 1;
        }
        let credential_answer = match &challenge.credential {
            Some(credential) => {
                let secret = tpm.activate(identity, credential)?;
                Some(Array(bind::credential_answer(&secret, &qualifying_data)))
            }
            None => None,
        };
        let mut evidence = Evidence {
            attested: Bytes::new(&quote.attested)?,
            signature: Bytes::new(&quote.signature)?,
            nk_public: hacks.sent_nk.or(nk_public.copied()).map(Array),
            other_nonce: None,
            pcrs_from_base: false,
            pcrs: value_list(&values)?,
            boot_log: None,
            ima: None,
            credential_answer,
        };
        if let Some(edit) = hacks.edit {
            edit(&mut evidence);
        }
        Ok(evidence)
    }

    /// Plays a whole honest agent until both shares have come and opened.
    ///
    /// # Errors
    /// [`Refused`](super::Refused) by enrolment; also when the shares do not come within `timeout`, with what came.
    pub fn bootstrap(
        &mut self,
        tpm: &RogueTpm,
        identity: &Identity,
        join: Option<&JoinToken>,
        timeout: Duration,
    ) -> Result<Opened> {
        self.bind(tpm, identity, Wants::Payload, join)?;
        let mut bootstrap = Bootstrap::new(identity.node_id);
        bootstrap.run(self, tpm, identity, timeout, |_| EvidenceHacks::default())?;
        bootstrap.open()
    }

    /// The manifest of a sealing.
    ///
    /// # Errors
    /// As [`RogueAgent::hello`].
    pub fn manifest(&mut self, sealing_id: SealingId) -> Result<SignedManifest> {
        self.request(Route::Manifest(sealing_id), &[])?.message()
    }

    /// The ciphertext of a sealing, block by block.
    ///
    /// # Errors
    /// As [`Peer::get`].
    pub fn ciphertext(&mut self, sealing_id: SealingId) -> Result<Vec<u8>> {
        // Room for a tag per chunk.
        let limit = usize::try_from(limits::MAX_PAYLOAD_LEN)? + (1 << 20);
        self.get(Route::Payload(sealing_id), limit)
    }

    /// `confirm` with what the shares gave.
    ///
    /// # Errors
    /// As [`RogueAgent::hello`].
    pub fn confirm(&mut self, confirm: &Confirm) -> Result<()> {
        self.post(Route::Confirm, confirm)?.accepted().map(drop)
    }

    /// `report`.
    ///
    /// # Errors
    /// As [`RogueAgent::hello`].
    pub fn report(&mut self, sealing_id: SealingId, kind: ReportKind, code: i32, text: &str) -> Result<()> {
        let report = Report { sealing_id, kind, code, text: Bytes::new(text.as_bytes())? };
        self.post(Route::Report, &report)?.accepted().map(drop)
    }

    /// Answers a challenge with this evidence.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn answer_challenge(&mut self, request: &Request, evidence: &Evidence) -> Result<()> {
        let payload = message::to_vec(evidence)?;
        self.respond(request.token, Code::CONTENT, &payload)
    }

    /// Waits for a challenge of this role, and refuses nothing else meanwhile: other requests stay in the inbox.
    ///
    /// # Errors
    /// When none comes in time, or the connection ends.
    pub fn next_challenge(&mut self, role: Role, timeout: Duration) -> Result<(Request, Challenge)> {
        let deadline = Instant::now() + timeout;
        let mut others = Vec::new();
        let found = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(request) = self.next_request(left)? else { break None };
            if request.is(Route::Challenge) {
                let challenge: Challenge = request.message()?;
                if challenge.role == role {
                    break Some((request, challenge));
                }
            }
            others.push(request);
        };
        others.into_iter().rev().for_each(|request| self.put_back(request));
        found.ok_or_else(|| anyhow!("no challenge of the {role} within {timeout:?}: {:?}", self.closed()))
    }
}

/// What about an evidence is not as an honest agent has it. Each field changes one thing; by default nothing.
#[derive(Default)]
pub struct EvidenceHacks<'a> {
    /// Quotes and sends these PCRs instead of those asked for: others, or of another bank.
    pub selection: Option<PcrSelectionList>,
    /// Binds another nonce: an old one, an invented one.
    pub nonce: Option<[u8; 32]>,
    /// Quotes for another purpose.
    pub purpose: Option<Purpose>,
    /// Binds another node's id.
    pub node_id: Option<NodeId>,
    /// Binds another server certificate's digest: somebody sits between.
    pub server_certificate: Option<[u8; 32]>,
    /// Gives the TPM this in place of what binds anything.
    pub qualifying_data: Option<[u8; 32]>,
    /// Sends this NK, though the quote names the given one.
    pub sent_nk: Option<[u8; 65]>,
    /// Quotes by another key.
    pub signer: Option<KeySpec>,
    /// Quotes on another TPM; credentials are still opened by the first.
    pub tpm: Option<&'a RogueTpm>,
    /// Changes the quote after the TPM made it, and signs it again: possible where the signer is unrestricted.
    #[expect(clippy::type_complexity, reason = "a closure with one argument, named nowhere else")]
    pub forge: Option<Box<dyn FnOnce(&mut TpmsAttest) + 'a>>,
    /// Inverts one bit of the signature.
    pub flip_signature: bool,
    /// Changes the finished message: values, logs, answers.
    #[expect(clippy::type_complexity, reason = "a closure with one argument, named nowhere else")]
    pub edit: Option<Box<dyn FnOnce(&mut Evidence) + 'a>>,
}

impl std::fmt::Debug for EvidenceHacks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EvidenceHacks").finish_non_exhaustive()
    }
}

/// A quote that an NK was bound by.
#[derive(Clone, Copy, Debug)]
struct BoundQuote {
    attest_digest: [u8; 32],
    nonce: [u8; 32],
}

/// An agent's bootstrap under way: one NK, the quotes that bound it, and the shares that came.
#[derive(Debug)]
pub struct Bootstrap {
    node_id: NodeId,
    nk: Nk,
    quotes: [Option<BoundQuote>; 2],
    /// Every share as it came, in order, whether it opens or not.
    pub shares: Vec<Share>,
    v: Option<(SealingId, ShareV)>,
    u: Option<(SealingId, ShareU, [u8; 32])>,
}

impl Bootstrap {
    /// A new NK, and nothing yet.
    pub fn new(node_id: NodeId) -> Self {
        let mut seeds = [[0; 32]; 2];
        seeds.iter_mut().for_each(|seed| OsRng.fill_bytes(seed));
        let nk = Nk::from_seeds(&seeds[0], &seeds[1]);
        Self { node_id, nk, quotes: [None; 2], shares: Vec::new(), v: None, u: None }
    }

    /// The NK.
    pub fn nk(&self) -> &Nk {
        &self.nk
    }

    /// Whether V has come and opened.
    pub fn has_v(&self) -> bool {
        self.v.is_some()
    }

    /// Whether U has come and opened.
    pub fn has_u(&self) -> bool {
        self.u.is_some()
    }

    /// Answers requests until both shares are here. `hacks` says for each challenge what is to be wrong with its evidence.
    ///
    /// # Errors
    /// When they are not here within `timeout`, or the connection ends.
    pub fn run<'a>(
        &mut self,
        agent: &mut RogueAgent,
        tpm: &RogueTpm,
        identity: &Identity,
        timeout: Duration,
        mut hacks: impl FnMut(&Challenge) -> EvidenceHacks<'a>,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !(self.has_u() && self.has_v()) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(request) = agent.next_request(left)? else {
                bail!(
                    "no two shares within {timeout:?}: V {}, U {}, {} came, connection: {:?}",
                    self.has_v(),
                    self.has_u(),
                    self.shares.len(),
                    agent.closed(),
                );
            };
            self.answer(agent, tpm, identity, &request, &mut hacks)?;
        }
        Ok(())
    }

    /// Answers one request as an agent in its bootstrap does.
    ///
    /// # Errors
    /// When the TPM refuses, or the connection is over.
    pub fn answer<'a>(
        &mut self,
        agent: &mut RogueAgent,
        tpm: &RogueTpm,
        identity: &Identity,
        request: &Request,
        mut hacks: impl FnMut(&Challenge) -> EvidenceHacks<'a>,
    ) -> Result<()> {
        match request.route {
            Ok(Route::Challenge) => {
                let challenge: Challenge = request.message()?;
                let evidence = agent.evidence(tpm, identity, &challenge, &self.nk, hacks(&challenge))?;
                self.quoted(&challenge, &evidence);
                agent.answer_challenge(request, &evidence)
            }
            Ok(Route::Share) => {
                let share: Share = request.message()?;
                let opened = self.take(&share);
                match opened {
                    Ok(()) => agent.respond(request.token, Code::CHANGED, &[]),
                    Err(error) => {
                        agent.respond(request.token, Code::UNPROCESSABLE_ENTITY, format!("{error:#}").as_bytes())
                    }
                }
            }
            _ => agent.respond(request.token, Code::NOT_FOUND, b"there is no such log"),
        }
    }

    /// Remembers that this evidence was sent: shares may rest on it.
    pub fn quoted(&mut self, challenge: &Challenge, evidence: &Evidence) {
        let quote = BoundQuote { attest_digest: sha256(&[&evidence.attested]), nonce: challenge.nonce.0 };
        self.quotes[slot(challenge.role)] = Some(quote);
    }

    /// Opens a share and keeps it.
    ///
    /// # Errors
    /// When it does not open under this NK for this node and the quote its role was given.
    pub fn take(&mut self, share: &Share) -> Result<()> {
        self.shares.push(share.clone());
        let quote = self.quotes[slot(share.role)].context("no quote was made for this role")?;
        let release =
            Release { node_id: self.node_id, sealing_id: share.sealing_id, attest_digest: quote.attest_digest };
        let sealed = SealedShare::new(share.enc.0, &share.ciphertext)?;
        match share.role {
            Role::Verifier => self.v = Some((share.sealing_id, open_v(&release, &self.nk, &sealed)?)),
            Role::Tenant => {
                let (u, manifest_digest) = open_u(&release, &self.nk, &sealed)?;
                self.u = Some((share.sealing_id, u, manifest_digest));
            }
            Role::Registrar => bail!("the registrar has no share"),
        }
        Ok(())
    }

    /// The two shares together.
    ///
    /// # Errors
    /// When one is missing, or they are of two sealings.
    pub fn open(self) -> Result<Opened> {
        let (sealing_id, v) = self.v.context("V has not come")?;
        let (other, u, manifest_digest) = self.u.context("U has not come")?;
        if other != sealing_id {
            bail!("V is of sealing {sealing_id}, U of {other}");
        }
        let tenant_nonce = self.quotes[slot(Role::Tenant)].context("no quote for the tenant")?.nonce;
        Ok(Opened { node_id: self.node_id, sealing_id, nk: self.nk, u, v, manifest_digest, tenant_nonce })
    }
}

/// Both shares of one sealing, opened.
#[derive(Debug)]
pub struct Opened {
    /// Whose bootstrap it was.
    pub node_id: NodeId,
    /// Which sealing.
    pub sealing_id: SealingId,
    /// The NK that opened them.
    pub nk: Nk,
    /// The tenant's share.
    pub u: ShareU,
    /// The verifier's share.
    pub v: ShareV,
    /// What the tenant announced.
    pub manifest_digest: [u8; 32],
    /// The tenant's nonce.
    pub tenant_nonce: [u8; 32],
}

impl Opened {
    /// The payload's and the confirm key, if the shares fit the manifest's tag; the manifest is verified against `pins`.
    ///
    /// # Errors
    /// When the manifest is not the announced one, not signed by a pin, or its tag does not fit.
    pub fn keys(&self, signed: &SignedManifest, pins: &[TenantPublicKey]) -> Result<(VerifiedManifest, PayloadKeys)> {
        if manifest_digest(&signed.manifest) != self.manifest_digest {
            bail!("the manifest is not the announced one");
        }
        let verified = VerifiedManifest::verify(&signed.manifest, &signed.signature.0, pins)?;
        let manifest = verified.manifest();
        let keys = self.u.combine(&self.v).into_keys(manifest.subject, self.sealing_id, &manifest.key_tag)?;
        Ok((verified, keys))
    }

    /// The container in a ciphertext.
    ///
    /// # Errors
    /// When it does not decrypt to what the manifest says.
    pub fn decrypt(&self, keys: &PayloadKeys, manifest: &VerifiedManifest, ciphertext: &[u8]) -> Result<Vec<u8>> {
        let mut receiver = PayloadReceiver::new(&keys.payload_key, manifest);
        let mut container = Vec::new();
        receiver.push(ciphertext, |plaintext| {
            container.extend_from_slice(plaintext);
            Ok::<_, std::convert::Infallible>(())
        })?;
        receiver.finish()?;
        Ok(container)
    }

    /// The honest `confirm`.
    pub fn confirmation(&self, keys: &PayloadKeys) -> Confirm {
        let (node, nk) = (self.node_id, self.nk.digest());
        let proof = bind::confirm_mac(&keys.confirm_key, node, self.sealing_id, &nk, &self.tenant_nonce);
        Confirm { sealing_id: self.sealing_id, proof: Array(proof) }
    }
}

/// A challenge's selection as the TPM takes it.
///
/// # Errors
/// For banks and PCRs that there are not.
pub fn selection_list(selection: &Selection) -> Result<PcrSelectionList> {
    let mut list = PcrSelectionList::new();
    for entry in selection {
        let bank = HashAlg::from_id(entry.bank).with_context(|| format!("bank 0x{:04x}", entry.bank))?;
        list.push(PcrSelection::new(bank, entry.mask).context("there is no such PCR")?)?;
    }
    Ok(list)
}

/// PCR values as evidence carries them.
///
/// # Errors
/// When there are more than a message takes.
pub fn value_list(values: &PcrValues) -> Result<PcrValueList> {
    let mut list = PcrValueList::new();
    for (bank, index, digest) in values.iter() {
        let value = PcrValue { bank: bank.id(), index, digest: Bytes::new(digest)? };
        list.push(value).map_err(|_| anyhow!("more PCR values than a message takes"))?;
    }
    Ok(list)
}

const fn slot(role: Role) -> usize {
    match role {
        Role::Verifier => 0,
        _ => 1,
    }
}

/// rustls without a process-wide provider: programs that use this library may have another.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Accepts any certificate; the server still has to hold its key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
