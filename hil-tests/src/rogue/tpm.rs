//! A TPM told what to do, command by command: keys of any template in any hierarchy, quotes over anything, signatures
//! over what only looks like a quote. What an honest agent would never ask of its TPM.
//!
//! Commands are those of [`protocol::tpm::command`]; what it does not make, because nobody honest sends it, is made here.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use protocol::crypto::secret::CredentialSecret;
use protocol::crypto::{Nk, node_id};
use protocol::id::NodeId;
use protocol::message::enrol::Credential;
use protocol::tpm::alg::{Digest, HashAlg, TPM_ALG_ECDSA, TPM_ALG_NULL, TPM_ALG_RSASSA, TpmRc};
use protocol::tpm::command::{
    self, Auth, CreatedPrimary, Entity, FIRST_LOADED_SESSION, FIRST_SAVED_SESSION, FIRST_TRANSIENT, MAX_NV_READ_LEN,
    NvPublic, PcrRead, Quoted, Response, ResponseError, TPM_RH_ENDORSEMENT, TPM_RH_NULL,
};
use protocol::tpm::pcr::{PcrSelectionList, PcrValues};
use protocol::tpm::public::{KeyPublic, Name, ObjectAttributes, Scheme, TpmtPublic};
use protocol::tpm::template::{AkKind, EkAuth, EkTemplate};
use rand_core::{OsRng, RngCore};

use crate::swtpm::Swtpm;

/// A key as it is asked of the TPM: which hierarchy, which template. Primary keys are made anew each time and are the
/// same each time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeySpec {
    /// TPM_RH_ENDORSEMENT, TPM_RH_OWNER, or TPM_RH_NULL.
    pub hierarchy: u32,
    /// `inPublic`.
    pub template: TpmtPublic,
}

impl KeySpec {
    /// The EK of a template.
    pub fn ek(template: EkTemplate) -> Self {
        Self { hierarchy: TPM_RH_ENDORSEMENT, template: template.public() }
    }

    /// The AK as an honest agent makes it.
    pub fn ak(kind: AkKind) -> Self {
        Self { hierarchy: TPM_RH_ENDORSEMENT, template: kind.template() }
    }

    /// The same under another hierarchy.
    #[must_use]
    pub fn in_hierarchy(mut self, hierarchy: u32) -> Self {
        self.hierarchy = hierarchy;
        self
    }

    /// The same with these attribute bits cleared: unrestricted, not fixedTPM, …
    #[must_use]
    pub fn without(mut self, bits: u32) -> Self {
        self.template.attributes = ObjectAttributes(self.template.attributes.0 & !bits);
        self
    }

    /// The same with these attribute bits set.
    #[must_use]
    pub fn with(mut self, bits: u32) -> Self {
        self.template.attributes = ObjectAttributes(self.template.attributes.0 | bits);
        self
    }

    /// The same with another `unique` (at most 48 bytes), so another key; empty is what other software uses by default.
    ///
    /// # Errors
    /// When it is too long.
    pub fn unique(mut self, unique: &[u8]) -> Result<Self> {
        let too_long = |_| anyhow!("`unique` of {} bytes", unique.len());
        match &mut self.template.key {
            KeyPublic::Ecc { x, y, .. } => {
                *x = heapless::Vec::from_slice(unique).map_err(too_long)?;
                y.clear();
            }
            KeyPublic::Rsa { modulus, .. } => *modulus = heapless::Vec::from_slice(unique).map_err(too_long)?,
        }
        Ok(self)
    }

    /// The same with another signing scheme.
    #[must_use]
    pub fn scheme(mut self, new: Scheme) -> Self {
        let (KeyPublic::Ecc { scheme, .. } | KeyPublic::Rsa { scheme, .. }) = &mut self.template.key;
        *scheme = new;
        self
    }
}

/// What a node says it is: the public halves of its keys and the certificate beside them. Every field may be changed.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Digest of the EK.
    pub node_id: NodeId,
    /// How the EK is made.
    pub ek: KeySpec,
    /// TPMT_PUBLIC of the EK.
    pub ek_public: Vec<u8>,
    /// Its certificate, if the TPM holds one; DER.
    pub ek_chain: Vec<Vec<u8>>,
    /// How the AK is made.
    pub ak: KeySpec,
    /// TPMT_PUBLIC of the AK.
    pub ak_public: Vec<u8>,
    /// Name of the AK.
    pub ak_name: [u8; 34],
}

impl Identity {
    /// An identity without a TPM, for what never gets as far as a proof: a point that is on the curve, and nobody's AK.
    ///
    /// # Errors
    /// None that can occur.
    pub fn without_tpm() -> Result<Self> {
        let mut seeds = [[0; 32]; 2];
        seeds.iter_mut().for_each(|seed| OsRng.fill_bytes(seed));
        let (ek, ak) = (KeySpec::ek(EkTemplate::P256), KeySpec::ak(AkKind::P256));
        let at_point = |spec: &KeySpec, point: &[u8; 65]| -> Result<TpmtPublic> {
            let mut public = spec.template.clone();
            if let KeyPublic::Ecc { x, y, .. } = &mut public.key {
                let (new_x, new_y) = point[1..].split_at(32);
                *x = heapless::Vec::from_slice(new_x).map_err(|_| anyhow!("coordinate"))?;
                *y = heapless::Vec::from_slice(new_y).map_err(|_| anyhow!("coordinate"))?;
            }
            Ok(public)
        };
        let ek_public = at_point(&ek, Nk::from_seeds(&seeds[0], &seeds[1]).public())?;
        let ak_public = at_point(&ak, Nk::from_seeds(&seeds[1], &seeds[0]).public())?;
        Self::new(ek, &ek_public, Vec::new(), ak, &ak_public)
    }

    fn new(
        ek: KeySpec,
        ek_public: &TpmtPublic,
        ek_chain: Vec<Vec<u8>>,
        ak: KeySpec,
        ak_public: &TpmtPublic,
    ) -> Result<Self> {
        let name = ak_public.name();
        Ok(Self {
            node_id: node_id(&ek_public.spki_der()?),
            ek,
            ek_public: ek_public.encode(),
            ek_chain,
            ak,
            ak_public: ak_public.encode(),
            ak_name: (*name).try_into().context("the AK's Name is not a SHA-256's")?,
        })
    }
}

/// A loaded key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its transient handle.
    pub handle: u32,
    /// Its public area.
    pub public: TpmtPublic,
    /// Its Name.
    pub name: Name,
}

impl Key {
    fn entity(&self) -> Entity {
        Entity::named(self.handle, self.name)
    }
}

/// A quote as the TPM gave it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RawQuote {
    /// TPMS_ATTEST.
    pub attested: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

/// Where a TPM is. No connection is held: swtpm takes one client at a time, and the agent under test wants it too.
#[derive(Clone, Copy, Debug)]
pub struct RogueTpm {
    address: SocketAddr,
}

impl RogueTpm {
    /// The TPM that answers raw commands at this address.
    pub fn at(address: SocketAddr) -> Self {
        Self { address }
    }

    /// This TPM.
    pub fn of(tpm: &Swtpm) -> Self {
        Self::at(tpm.address())
    }

    /// Connects for a batch of commands, and flushes what earlier clients have left. Everybody else waits until the
    /// batch is dropped.
    ///
    /// # Errors
    /// When the TPM does not answer.
    pub fn open(&self) -> Result<Batch> {
        let stream = TcpStream::connect(self.address).context("connecting to the TPM")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut batch = Batch { link: Link::Socket(stream), harmless: false };
        batch.flush_all()?;
        Ok(batch)
    }

    /// The identity with this EK and this AK.
    ///
    /// # Errors
    /// When the TPM refuses one of them.
    pub fn identity(&self, ek: EkTemplate, ak: &KeySpec) -> Result<Identity> {
        let mut batch = self.open()?;
        let chain = batch.ek_certificate(ek)?.into_iter().collect();
        let spec = KeySpec::ek(ek);
        let ek = batch.create(&spec)?;
        batch.flush(ek.handle)?;
        let created = batch.create(ak)?;
        batch.flush(created.handle)?;
        Identity::new(spec, &ek.public, chain, ak.clone(), &created.public)
    }

    /// Opens a credential with the identity's keys: TPM2_ActivateCredential.
    ///
    /// # Errors
    /// When the TPM refuses it: it was made for another EK, or another Name.
    pub fn activate(&self, identity: &Identity, credential: &Credential) -> Result<CredentialSecret> {
        let mut batch = self.open()?;
        let ek = batch.create(&identity.ek)?;
        let ak = batch.create(&identity.ak)?;
        batch.activate_credential(&ak, &ek, credential)
    }

    /// A quote and the values that it covers, read until they fit it.
    ///
    /// # Errors
    /// When the TPM refuses, or its PCRs do not hold still.
    pub fn quote(
        &self,
        signer: &KeySpec,
        qualifying_data: &[u8],
        selection: &PcrSelectionList,
    ) -> Result<(RawQuote, PcrValues)> {
        let mut batch = self.open()?;
        let key = batch.create(signer)?;
        for _ in 0..5 {
            let before = batch.pcr_read(selection)?;
            let quote = batch.quote(&key, qualifying_data, selection)?;
            if batch.pcr_read(selection)? == before {
                batch.flush(key.handle)?;
                return Ok((quote, before));
            }
        }
        bail!("the PCRs change faster than they are quoted")
    }
}

/// One connection to the TPM. Handles are good until it is dropped and somebody else flushes them.
#[derive(Debug)]
pub struct Batch {
    link: Link,
    /// Whether only [`HARMLESS`] commands go out.
    harmless: bool,
}

/// The way to a TPM.
#[derive(Debug)]
enum Link {
    /// Raw commands over TCP: swtpm.
    Socket(TcpStream),
    /// The kernel's device with its resource manager: what is made through it is gone when it is closed.
    Device(File),
}

impl Link {
    fn transmit(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Socket(stream) => {
                stream.write_all(command)?;
                let mut header = [0; 10];
                stream.read_exact(&mut header).context("no response from the TPM")?;
                let mut response = header.to_vec();
                response.resize(command::response_len(&header)?, 0);
                stream.read_exact(response.get_mut(header.len()..).unwrap_or_default())?;
                Ok(response)
            }
            Self::Device(device) => {
                device.write_all(command)?;
                // The driver gives the whole response to one read.
                let mut response = vec![0; command::MAX_RESPONSE_LEN];
                let len = device.read(&mut response).context("no response from the TPM")?;
                response.truncate(len);
                Ok(response)
            }
        }
    }
}

impl Batch {
    /// Connects to a TPM that somebody needs after this: `tcti` is the agent's setting (`device:/dev/tpmrm0` or
    /// `swtpm:host=…,port=…`), a device has to be the resource manager's, and a command that could leave a trace in the
    /// TPM is refused here.
    ///
    /// # Errors
    /// When it is none of these, or cannot be opened.
    pub fn harmless(tcti: &str) -> Result<Self> {
        let (kind, rest) = tcti.split_once(':').unwrap_or((tcti, ""));
        let link = match kind {
            "device" => {
                let path = Path::new(if rest.is_empty() { "/dev/tpmrm0" } else { rest });
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                // Without it, what other programs have in the TPM would be in the way, and ours would stay.
                ensure!(
                    name.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with("rm"),
                    "{} has no resource manager: name /dev/tpmrm0",
                    path.display()
                );
                let device = OpenOptions::new().read(true).write(true).open(path);
                Link::Device(device.with_context(|| format!("opening {}", path.display()))?)
            }
            "swtpm" => {
                let field = |name: &str| rest.split(',').find_map(|part| part.strip_prefix(name));
                let (host, port) = (field("host=").unwrap_or("127.0.0.1"), field("port=").unwrap_or("2321"));
                let stream = TcpStream::connect((host, port.parse::<u16>()?)).context("connecting to the TPM")?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                Link::Socket(stream)
            }
            _ => bail!("`{tcti}` is not device:/dev/tpmrm0 or swtpm:host=HOST,port=PORT"),
        };
        let has_manager = matches!(link, Link::Device(_));
        let mut batch = Self { link, harmless: true };
        if !has_manager {
            batch.flush_all()?;
        }
        Ok(batch)
    }

    /// Sends a command and gives the response, whatever it says; sends it again while the TPM only asks for that, as it
    /// does at the first use of a key that dictionary attack protection covers.
    ///
    /// # Errors
    /// When nothing, or no response, comes.
    pub fn raw(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        for attempt in 0..MAX_RETRIES {
            let response = self.raw_once(command)?;
            let [_, _, _, _, _, _, code @ ..] = response.first_chunk::<10>().context("half a response")?;
            if !TpmRc(u32::from_be_bytes(*code)).is_retry() {
                return Ok(response);
            }
            // A real one may test itself for a second or two first.
            thread::sleep(Duration::from_millis(5 << attempt.min(6)));
        }
        self.raw_once(command)
    }

    fn raw_once(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        if self.harmless {
            let code = command.get(6..).and_then(<[u8]>::first_chunk).map(|code| u32::from_be_bytes(*code));
            ensure!(
                code.is_some_and(|code| HARMLESS.contains(&code)),
                "command {code:x?} might leave a trace in the TPM"
            );
        }
        let response = self.link.transmit(command)?;
        let header = response.first_chunk().context("half a response")?;
        ensure!(command::response_len(header)? == response.len(), "a response of another length than it says");
        Ok(response)
    }

    /// Makes a primary key; its hierarchy's authorisation is empty.
    ///
    /// # Errors
    /// [`ResponseError`] when the TPM refuses the template.
    pub fn create(&mut self, spec: &KeySpec) -> Result<Key> {
        let command = command::create_primary(spec.hierarchy, &spec.template);
        let response = self.raw(&command.authorized(&[Auth::EmptyPassword]))?;
        let CreatedPrimary { handle, public, name } = CreatedPrimary::parse(&response).context("TPM2_CreatePrimary")?;
        Ok(Key { handle, public, name })
    }

    /// Flushes an object or session.
    ///
    /// # Errors
    /// [`ResponseError`] when there is none.
    pub fn flush(&mut self, handle: u32) -> Result<()> {
        let response = self.raw(&command::flush_context(handle).plain())?;
        command::parse_done(&response).context("TPM2_FlushContext")
    }

    /// Flushes every transient object and session.
    ///
    /// # Errors
    /// When the TPM does not answer.
    pub fn flush_all(&mut self) -> Result<()> {
        for first in [FIRST_TRANSIENT, FIRST_LOADED_SESSION, FIRST_SAVED_SESSION] {
            let response = self.raw(&command::handles(first).plain())?;
            let (handles, _) = command::parse_handles(&response).context("TPM2_GetCapability")?;
            for handle in handles.into_iter().filter(|handle| handle >> 24 == first >> 24) {
                self.flush(handle)?;
            }
        }
        Ok(())
    }

    /// The EK certificate that the TPM holds for a template; DER, without what fills up its NV index.
    ///
    /// # Errors
    /// When the index is there and cannot be read.
    pub fn ek_certificate(&mut self, template: EkTemplate) -> Result<Option<Vec<u8>>> {
        let index = template.certificate_index();
        let response = self.raw(&command::nv_read_public(index).plain())?;
        let public = match NvPublic::parse(&response) {
            Ok(public) => public,
            Err(ResponseError::Tpm(code)) if code.base() == TpmRc::HANDLE => return Ok(None),
            Err(error) => return Err(error).context("TPM2_NV_ReadPublic"),
        };
        // One that is read in vain where that counts towards a lockout would leave a trace.
        ensure!(
            !self.harmless || public.attributes & NV_NO_DA != 0,
            "NV index 0x{index:08x} counts failed authorisations"
        );
        let mut bytes = Vec::new();
        while bytes.len() < usize::from(public.data_len) {
            let offset = u16::try_from(bytes.len())?;
            let len = (public.data_len - offset).min(MAX_NV_READ_LEN);
            let command = command::nv_read(Entity::named(index, public.name), offset, len);
            let response = self.raw(&command.authorized(&[Auth::EmptyPassword]))?;
            let read = command::parse_nv_data(&response).context("TPM2_NV_Read")?;
            ensure!(!read.is_empty(), "TPM2_NV_Read gave nothing");
            bytes.extend_from_slice(read);
        }
        if let [0x30, 0x82, high, low, ..] = bytes[..] {
            bytes.truncate(usize::from(u16::from_be_bytes([high, low])) + 4);
        }
        Ok(Some(bytes))
    }

    /// TPM2_ActivateCredential, with the EK authorised as its template has it.
    ///
    /// # Errors
    /// [`ResponseError`] when the credential is not for these keys.
    pub fn activate_credential(&mut self, ak: &Key, ek: &Key, credential: &Credential) -> Result<CredentialSecret> {
        let ek_auth = match EkTemplate::auth_of(&ek.public) {
            EkAuth::EmptyPassword => Auth::EmptyPassword,
            EkAuth::PolicySecret => Auth::Policy(self.endorsement_policy()?),
        };
        let Credential { id_object, encrypted_secret } = credential;
        let command = command::activate_credential(ak.entity(), ek.entity(), id_object, encrypted_secret)?;
        let response = self.raw(&command.authorized(&[Auth::EmptyPassword, ek_auth]))?;
        let secret = command::parse_secret(&response).context("TPM2_ActivateCredential")?;
        CredentialSecret::from_slice(secret.expose()).ok_or_else(|| anyhow!("a secret of another length"))
    }

    fn endorsement_policy(&mut self) -> Result<u32> {
        let mut nonce = [0; 32];
        OsRng.fill_bytes(&mut nonce);
        let response = self.raw(&command::start_policy_session(&nonce).plain())?;
        let (session, _) = command::parse_started_session(&response).context("TPM2_StartAuthSession")?;
        let command = command::policy_secret_endorsement(session);
        let response = self.raw(&command.authorized(&[Auth::EmptyPassword]))?;
        command::parse_done(&response).context("TPM2_PolicySecret")?;
        Ok(session)
    }

    /// TPM2_Quote under any signing key, with any qualifying data over any PCRs. A key without a scheme of its own signs
    /// with SHA-256.
    ///
    /// # Errors
    /// [`ResponseError`] when the TPM refuses.
    pub fn quote(&mut self, key: &Key, qualifying_data: &[u8], selection: &PcrSelectionList) -> Result<RawQuote> {
        let command = [&tpm2b(qualifying_data)?, &use_scheme(&key.public), &selection.encode()[..]].concat();
        let response = self.raw(&with_password(TPM_CC_QUOTE, key.handle, &command)?)?;
        let Quoted { attested, signature } = Quoted::parse(&response).context("TPM2_Quote")?;
        Ok(RawQuote { attested: attested.to_vec(), signature: signature.to_vec() })
    }

    /// Signs `bytes`, whatever they look like, as an unrestricted key lets one: hashed here, with an empty ticket. The
    /// result is a TPMT_SIGNATURE.
    ///
    /// # Errors
    /// [`ResponseError`] when the key is restricted.
    pub fn sign(&mut self, key: &Key, bytes: &[u8]) -> Result<Vec<u8>> {
        let digest = signing_hash(&key.public).digest(&[bytes]);
        let ticket = [&TPM_ST_HASHCHECK.to_be_bytes()[..], &TPM_RH_NULL.to_be_bytes(), &[0, 0]].concat();
        self.sign_digest(key, &digest, &ticket)
    }

    /// TPM2_Hash and TPM2_Sign: what a restricted key signs too, unless `bytes` begin with TPM_GENERATED_VALUE. At most
    /// 512 bytes.
    ///
    /// # Errors
    /// [`ResponseError`] when the TPM gives no ticket for these bytes.
    pub fn hash_and_sign(&mut self, key: &Key, bytes: &[u8]) -> Result<Vec<u8>> {
        let hash = signing_hash(&key.public).id().to_be_bytes();
        let parameters = [&tpm2b(bytes)?[..], &hash, &TPM_RH_ENDORSEMENT.to_be_bytes()].concat();
        let response = self.raw(&plain(TPM_CC_HASH, &parameters)?)?;
        let parameters = Response::parse(&response, false).context("TPM2_Hash")?.parameters;
        let (len, rest) = parameters.split_first_chunk::<2>().context("no digest")?;
        let (digest, ticket) =
            rest.split_at_checked(u16::from_be_bytes(*len).into()).context("TPM2_Hash gave half a digest")?;
        self.sign_digest(key, digest, ticket)
    }

    fn sign_digest(&mut self, key: &Key, digest: &[u8], ticket: &[u8]) -> Result<Vec<u8>> {
        let parameters = [&tpm2b(digest)?, &use_scheme(&key.public), ticket].concat();
        let response = self.raw(&with_password(TPM_CC_SIGN, key.handle, &parameters)?)?;
        Ok(Response::parse(&response, false).context("TPM2_Sign")?.parameters.to_vec())
    }

    /// Values of PCRs, as many reads as it takes.
    ///
    /// # Errors
    /// When the TPM does not have one of them.
    pub fn pcr_read(&mut self, selection: &PcrSelectionList) -> Result<PcrValues> {
        let mut values = PcrValues::new();
        let mut rest = selection.clone();
        while !rest.is_empty() {
            let response = self.raw(&command::pcr_read(&rest).plain())?;
            let read = PcrRead::parse(&response).context("TPM2_PCR_Read")?;
            ensure!(!read.selection.is_empty(), "the TPM does not have all of these PCRs");
            for (bank, index, value) in read.values.iter() {
                values.set(bank, index, *value)?;
            }
            rest = rest.without(&read.selection);
        }
        Ok(values)
    }

    /// TPM2_PCR_Event: extends every bank by its hash of `data`.
    ///
    /// # Errors
    /// [`ResponseError`] when the PCR may not be extended.
    pub fn pcr_event(&mut self, pcr: u8, data: &[u8]) -> Result<()> {
        let response = self.raw(&command::pcr_event(pcr, data)?.authorized(&[Auth::EmptyPassword]))?;
        // The answer holds the digests: nothing of interest.
        Response::parse(&response, false).map(drop).context("TPM2_PCR_Event")
    }

    /// TPM2_PCR_Extend of one bank.
    ///
    /// # Errors
    /// [`ResponseError`] when the PCR may not be extended.
    pub fn pcr_extend(&mut self, pcr: u8, bank: HashAlg, digest: &Digest) -> Result<()> {
        let response = self.raw(&command::pcr_extend(pcr, bank, digest)?.authorized(&[Auth::EmptyPassword]))?;
        command::parse_done(&response).context("TPM2_PCR_Extend")
    }
}

/// The hash that a key signs with.
fn signing_hash(public: &TpmtPublic) -> HashAlg {
    let (KeyPublic::Ecc { scheme, .. } | KeyPublic::Rsa { scheme, .. }) = &public.key;
    match scheme {
        Scheme::Rsassa(hash) | Scheme::Rsapss(hash) | Scheme::Ecdsa(hash) => *hash,
        _ => HashAlg::Sha256,
    }
}

/// TPMT_SIG_SCHEME for one use of a key: its own, or for a key without one the usual of its type.
fn use_scheme(public: &TpmtPublic) -> Vec<u8> {
    let usual = match &public.key {
        KeyPublic::Ecc { scheme: Scheme::Null, .. } => TPM_ALG_ECDSA,
        KeyPublic::Rsa { scheme: Scheme::Null, .. } => TPM_ALG_RSASSA,
        _ => return TPM_ALG_NULL.to_be_bytes().to_vec(),
    };
    [usual.to_be_bytes(), HashAlg::Sha256.id().to_be_bytes()].concat()
}

fn tpm2b(bytes: &[u8]) -> Result<Vec<u8>> {
    Ok([&u16::try_from(bytes.len())?.to_be_bytes()[..], bytes].concat())
}

fn plain(code: u32, parameters: &[u8]) -> Result<Vec<u8>> {
    assemble(TPM_ST_NO_SESSIONS, code, parameters)
}

/// A command about one handle, authorised by the empty password.
fn with_password(code: u32, handle: u32, parameters: &[u8]) -> Result<Vec<u8>> {
    // Length of the area, TPM_RS_PW, no nonce, continueSession, no password.
    const PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 1, 0, 0];
    assemble(TPM_ST_SESSIONS, code, &[&handle.to_be_bytes()[..], &PASSWORD, parameters].concat())
}

fn assemble(tag: u16, code: u32, body: &[u8]) -> Result<Vec<u8>> {
    let len = u32::try_from(body.len() + 10)?;
    Ok([&tag.to_be_bytes()[..], &len.to_be_bytes(), &code.to_be_bytes(), body].concat())
}

/// What leaves nothing in a TPM but transient objects and sessions (TPM 2.0 Part 2, TPM_CC): CreatePrimary,
/// ActivateCredential, NV_Read, PolicySecret, Quote, FlushContext, NV_ReadPublic, ReadPublic, StartAuthSession,
/// GetCapability, GetRandom, PCR_Read, ReadClock.
const HARMLESS: [u32; 13] = [0x131, 0x147, 0x14e, 0x151, 0x158, 0x165, 0x169, 0x173, 0x176, 0x17a, 0x17b, 0x17e, 0x181];

/// How often a command is sent again on the TPM's own wish.
const MAX_RETRIES: u32 = 20;

/// TPM 2.0 Part 2, TPMA_NV_NO_DA.
const NV_NO_DA: u32 = 1 << 25;
/// TPM 2.0 Part 2, TPM_ST.
const TPM_ST_NO_SESSIONS: u16 = 0x8001;
const TPM_ST_SESSIONS: u16 = 0x8002;
const TPM_ST_HASHCHECK: u16 = 0x8024;
/// TPM 2.0 Part 2, TPM_CC.
const TPM_CC_QUOTE: u32 = 0x0000_0158;
const TPM_CC_SIGN: u32 = 0x0000_015d;
const TPM_CC_HASH: u32 = 0x0000_017d;
