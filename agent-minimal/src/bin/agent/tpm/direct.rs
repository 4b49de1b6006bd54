//! The TPM reached by its own commands: over a character device, or over the command port of a software TPM.
//!
//! Commands and answers are the protocol crate's bytes; here they travel, are repeated where the TPM asks for it, and
//! what they leave in the TPM is flushed.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use protocol::{
    crypto::{bind, secret::CredentialSecret},
    limits,
    tpm::{
        alg::TpmRc,
        attest::TpmsAttest,
        command::{
            self, Auth, Command, CreatedPrimary, Entity, NvPublic, ObjectPublic, PcrRead, Quoted, ResponseError,
        },
        pcr::{PcrSelectionList, PcrValues, digest_over},
        public::{KeyPublic, TpmtPublic},
        session::{Protect, Session, SessionError, StartingSession},
        template::{AkKind, EkAuth, EkTemplate},
    },
};
use rand_core::RngCore as _;
use zeroize::Zeroizing;

use super::{About, Identity, Quote, Tpm, TpmError};
use crate::{config::Tcti, entropy::Rng, log};

/// How long an answer over TCP may take. Real TPMs need a minute for nothing but an RSA key, and are not on TCP.
const SOCKET_LIMIT: Duration = Duration::from_secs(60);
/// How long a TPM that asks for a repetition is obeyed: self-tests end within seconds.
const RETRY_LIMIT: Duration = Duration::from_secs(20);
/// The longest pause between repetitions.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often quote and values are asked for until they belong together.
const QUOTE_TRIES: u32 = 8;
/// Where TPMs keep the rest of the EK certificates' chain (TCG EK Credential Profile, "EK Certificate Chain").
const CHAIN_INDICES: std::ops::Range<u32> = 0x01c0_0100..0x01c0_0200;
/// What is read of that range: four certificates of the largest kind.
const MAX_CHAIN_LEN: usize = limits::MAX_EK_CHAIN * limits::MAX_CERTIFICATE_LEN;

/// A TPM behind a device or a socket.
pub(crate) struct Direct {
    tcti: Tcti,
    rng: Rng,
    spent: Duration,
    /// Whether what an earlier program left in the TPM was flushed.
    flushed: bool,
    keys: Option<Keys>,
}

/// The keys that [`Tpm::identity`] settled on.
#[derive(Clone)]
struct Keys {
    ek: EkTemplate,
    ek_public: TpmtPublic,
    /// The persistent handle that holds this very key.
    ek_persistent: Option<u32>,
    ak: AkKind,
}

impl Direct {
    /// Names the TPM; it is not touched yet. `rng` makes the sessions' salts and nonces.
    pub(crate) const fn new(tcti: Tcti, rng: Rng) -> Self {
        Self { tcti, rng, spent: Duration::ZERO, flushed: false, keys: None }
    }

    /// Connects, works, and leaves nothing behind. Slots that somebody else left taken are freed once.
    fn batch<T>(&mut self, work: impl Fn(&mut Batch<'_>) -> Result<T, TpmError>) -> Result<T, TpmError> {
        let start = Instant::now();
        let mut result = self.attempt(&work);
        if let Err(why) = &result
            && let Some(TpmRc::OBJECT_MEMORY | TpmRc::SESSION_MEMORY | TpmRc::SESSION_HANDLES) = why.rc()
        {
            self.flushed = false;
            result = self.attempt(&work);
        }
        self.spent += start.elapsed();
        result
    }

    fn attempt<T>(&mut self, work: &impl Fn(&mut Batch<'_>) -> Result<T, TpmError>) -> Result<T, TpmError> {
        let link = Link::connect(&self.tcti)?;
        let mut batch = Batch { link, rng: &mut self.rng, made: heapless::Vec::new() };
        // Behind a resource manager there is nobody else's: it keeps its users apart, and frees what is theirs.
        if !self.flushed && !batch.link.is_managed() {
            batch.flush_leftovers()?;
        }
        self.flushed = true;
        let result = work(&mut batch);
        if !batch.link.is_managed() {
            batch.flush_made();
        }
        result
    }

    fn keys(&self) -> Result<Keys, TpmError> {
        self.keys.clone().ok_or(TpmError::NoIdentity)
    }
}

impl Tpm for Direct {
    fn identity(&mut self, ek: Option<EkTemplate>) -> Result<Identity, TpmError> {
        let (keys, identity) = self.batch(|batch| {
            let found = batch.find_ek(ek)?;
            let (ak, ak_created) = batch.create_ak(None)?;
            let spki = found.public.spki_der().map_err(|why| TpmError::Answer { what: "EK", why: why.into() })?;
            let ak_name: [u8; 34] = ak_created.name[..].try_into().map_err(|_| TpmError::NoAttestationKey)?;
            let identity = Identity {
                node_id: bind::node_id(&spki),
                ek: found.template,
                ek_public: found.public.encode(),
                ek_chain: found.chain,
                ak_public: ak_created.public.encode(),
                ak_name,
            };
            let keys = Keys { ek: found.template, ek_public: found.public, ek_persistent: found.persistent, ak };
            Ok((keys, identity))
        })?;
        self.keys = Some(keys);
        Ok(identity)
    }

    fn activate(&mut self, id_object: &[u8], encrypted_secret: &[u8]) -> Result<CredentialSecret, TpmError> {
        let keys = self.keys()?;
        self.batch(|batch| {
            let ek = batch.load_ek(&keys)?;
            let (_, ak) = batch.create_ak(Some(keys.ak))?;
            let mut session = batch.start_session(&keys, ek)?;
            let ek_auth = batch.ek_auth(&keys.ek_public)?;
            let ak = Entity::named(ak.handle, ak.name);
            let ek = Entity::named(ek, keys.ek_public.name());
            let what = "TPM2_ActivateCredential";
            let command = command::activate_credential(ak, ek, id_object, encrypted_secret)
                .map_err(|_| TpmError::TooLong(what))?;
            let auths = [Auth::EmptyPassword, ek_auth];
            let parameters = batch.run_in(&mut session, what, &command, &auths).map_err(|why| match why {
                // What was made for another EK opens to nothing that fits, or is no point or ciphertext at all.
                TpmError::Refused { rc, .. }
                    if matches!(rc.base(), TpmRc::INTEGRITY | TpmRc(0x084 | 0x095 | 0x09a | 0x0a7)) =>
                {
                    TpmError::NotForUs
                }
                other => other,
            })?;
            let secret = command::secret_parameter(&parameters).map_err(|why| TpmError::Answer { what, why })?;
            // The registrar's and the tenant's secrets have 32 bytes; any other was not made by them.
            CredentialSecret::from_slice(secret.expose()).ok_or(TpmError::NotForUs)
        })
    }

    fn quote(&mut self, selection: &PcrSelectionList, qualifying_data: &[u8; 32]) -> Result<Quote, TpmError> {
        let keys = self.keys()?;
        self.batch(|batch| {
            let (_, ak) = batch.create_ak(Some(keys.ak))?;
            let what = "TPM2_Quote";
            let command = command::quote(Entity::named(ak.handle, ak.name), qualifying_data, selection)
                .map_err(|_| TpmError::TooLong(what))?
                .authorized(&[Auth::EmptyPassword]);
            for _ in 0..QUOTE_TRIES {
                let answer = batch.run(what, &command)?;
                let quoted = Quoted::parse(&answer).map_err(|why| TpmError::Answer { what, why })?;
                let values = batch.pcr_read(selection)?;
                let Ok(attest) = TpmsAttest::decode(quoted.attested) else {
                    return Err(TpmError::Answer { what, why: protocol::codec::CodecError::BadValue.into() });
                };
                let digest = digest_over(selection, &values, keys.ak.signature_hash());
                if digest.is_ok_and(|digest| digest == attest.pcr_digest) {
                    return Ok(Quote {
                        attested: quoted.attested.to_vec(),
                        signature: quoted.signature.to_vec(),
                        values,
                    });
                }
            }
            Err(TpmError::Unstable)
        })
    }

    fn pcr_read(&mut self, selection: &PcrSelectionList) -> Result<PcrValues, TpmError> {
        self.batch(|batch| batch.pcr_read(selection))
    }

    fn pcr_event(&mut self, index: u8, data: &[u8]) -> Result<(), TpmError> {
        let what = "TPM2_PCR_Event";
        let command = command::pcr_event(index, data).map_err(|_| TpmError::TooLong(what))?;
        self.batch(|batch| batch.run(what, &command.authorized(&[Auth::EmptyPassword])).map(|_| ()))
    }

    fn random(&mut self) -> Result<Zeroizing<[u8; 32]>, TpmError> {
        let keys = self.keys()?;
        self.batch(|batch| {
            let ek = batch.load_ek(&keys)?;
            let mut session = batch.start_session(&keys, ek)?;
            let what = "TPM2_GetRandom";
            let parameters = batch.run_in(&mut session, what, &command::get_random(32), &[])?;
            let bytes = command::secret_parameter(&parameters).map_err(|why| TpmError::Answer { what, why })?;
            let mut random = Zeroizing::new([0; 32]);
            if bytes.expose().len() != random.len() {
                return Err(TpmError::TooFewRandomBytes);
            }
            random.copy_from_slice(bytes.expose());
            Ok(random)
        })
    }

    fn about(&mut self) -> Result<About, TpmError> {
        self.batch(|batch| {
            let what = "TPM2_GetCapability";
            let property = |batch: &mut Batch<'_>, property| {
                let answer = batch.run(what, &command::properties(property, 1).plain())?;
                let found = command::parse_properties(&answer).map_err(|why| TpmError::Answer { what, why })?;
                Ok::<u32, TpmError>(found.first().filter(|(name, _)| *name == property).map_or(0, |(_, value)| *value))
            };
            let manufacturer = property(batch, command::TPM_PT_MANUFACTURER)?.to_be_bytes();
            let high = property(batch, command::TPM_PT_FIRMWARE_VERSION_1)?;
            let low = property(batch, command::TPM_PT_FIRMWARE_VERSION_2)?;
            let answer = batch.run(what, &command::pcr_banks().plain())?;
            let mut banks = PcrSelectionList::new();
            for bank in command::parse_pcr_banks(&answer).map_err(|why| TpmError::Answer { what, why })? {
                banks.push(bank).map_err(|why| TpmError::Answer { what, why: why.into() })?;
            }
            Ok(About { manufacturer, firmware_version: u64::from(high) << 32 | u64::from(low), banks })
        })
    }

    fn set_rng(&mut self, rng: Rng) {
        self.rng = rng;
    }

    fn spent(&self) -> Duration {
        self.spent
    }
}

/// An EK as it was found.
struct FoundEk {
    template: EkTemplate,
    public: TpmtPublic,
    persistent: Option<u32>,
    chain: Vec<Vec<u8>>,
}

/// One connection, and what was made in the TPM through it.
struct Batch<'a> {
    link: Link,
    rng: &'a mut Rng,
    made: heapless::Vec<u32, 8>,
}

impl Batch<'_> {
    /// Sends a command and returns the answer, whose code is success. Repeats it as long as the TPM asks for that.
    fn run(&mut self, what: &'static str, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        let deadline = Instant::now() + RETRY_LIMIT;
        let mut pause = Duration::ZERO;
        loop {
            let answer = self.link.transmit(command)?;
            let rc = match answer.get(6..).and_then(<[u8]>::first_chunk::<4>) {
                Some(code) => TpmRc(u32::from_be_bytes(*code)),
                None => return Err(TpmError::Answer { what, why: protocol::codec::CodecError::Truncated.into() }),
            };
            match rc {
                TpmRc::SUCCESS => return Ok(answer),
                rc if rc.is_retry() && Instant::now() < deadline => {}
                TpmRc::INITIALIZE => return Err(TpmError::NotStarted),
                TpmRc::LOCKOUT => return Err(TpmError::LockedOut),
                rc => return Err(TpmError::Refused { what, rc }),
            }
            // The first repetition is often all that is needed, and at once.
            thread::sleep(pause);
            pause = (pause * 2).clamp(Duration::from_millis(1), RETRY_PAUSE);
        }
    }

    /// The same for a command whose answer is encrypted; the session ends with it.
    fn run_in(
        &mut self,
        session: &mut Session,
        what: &'static str,
        command: &Command,
        auths: &[Auth],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let protect = Protect { command: false, response: true, keep: false };
        let bytes = session.protect(command, auths, protect, self.rng).map_err(TpmError::Session)?;
        let answer = Zeroizing::new(self.run(what, &bytes)?);
        let parameters = session.open(&answer).map_err(TpmError::Session)?;
        // Done with success: the TPM has flushed this session, and any policy session that authorised the command.
        self.made.retain(|handle| handle >> 24 == 0x80);
        Ok(parameters)
    }

    fn remember(&mut self, handle: u32) {
        // More than eight are never made; what is not remembered is freed as a leftover.
        let _ = self.made.push(handle);
    }

    fn create(&mut self, what: &'static str, template: &TpmtPublic) -> Result<CreatedPrimary, TpmError> {
        let command = command::create_primary(command::TPM_RH_ENDORSEMENT, template);
        let answer = self.run(what, &command.authorized(&[Auth::EmptyPassword]))?;
        let created = CreatedPrimary::parse(&answer).map_err(|why| TpmError::Answer { what, why })?;
        self.remember(created.handle);
        Ok(created)
    }

    /// The AK of one kind, else of the first kind that this TPM makes.
    fn create_ak(&mut self, kind: Option<AkKind>) -> Result<(AkKind, CreatedPrimary), TpmError> {
        let what = "TPM2_CreatePrimary of the AK";
        for candidate in AkKind::ALL.into_iter().filter(|candidate| kind.is_none_or(|kind| kind == *candidate)) {
            match self.create(what, &candidate.template()) {
                Ok(created) => return Ok((candidate, created)),
                Err(TpmError::Refused { rc, .. }) if kind.is_none() && is_unsupported(rc) => {}
                Err(why) => return Err(why),
            }
        }
        Err(TpmError::NoAttestationKey)
    }

    fn find_ek(&mut self, wanted: Option<EkTemplate>) -> Result<FoundEk, TpmError> {
        for template in EkTemplate::TRIED.into_iter().filter(|template| wanted.is_none_or(|wanted| wanted == *template))
        {
            let Some(certificate) = self.nv_certificate(template.certificate_index())? else { continue };
            let holds = |public: &TpmtPublic| holds_key_of(&certificate, public);
            let persistent = template.persistent_handle();
            if let Some(object) = self.read_public(persistent)?
                && holds(&object)
            {
                let chain = self.chain(certificate)?;
                return Ok(FoundEk { template, public: object, persistent: Some(persistent), chain });
            }
            let created = self.create("TPM2_CreatePrimary of the EK", &template.public())?;
            self.flush(created.handle);
            if holds(&created.public) {
                let chain = self.chain(certificate)?;
                return Ok(FoundEk { template, public: created.public, persistent: None, chain });
            }
            log::warn!("the {} EK certificate in the TPM is for another key than the template makes", template.name());
        }
        let template = wanted.unwrap_or(EkTemplate::P256);
        let created = self.create("TPM2_CreatePrimary of the EK", &template.public())?;
        self.flush(created.handle);
        Ok(FoundEk { template, public: created.public, persistent: None, chain: Vec::new() })
    }

    /// Handle of the EK that was found before.
    fn load_ek(&mut self, keys: &Keys) -> Result<u32, TpmError> {
        if let Some(persistent) = keys.ek_persistent {
            return Ok(persistent);
        }
        Ok(self.create("TPM2_CreatePrimary of the EK", &keys.ek.public())?.handle)
    }

    fn ek_auth(&mut self, public: &TpmtPublic) -> Result<Auth, TpmError> {
        if EkTemplate::auth_of(public) == EkAuth::EmptyPassword {
            return Ok(Auth::EmptyPassword);
        }
        let what = "TPM2_StartAuthSession";
        let mut nonce = [0; 32];
        self.rng.fill_bytes(&mut nonce);
        let answer = self.run(what, &command::start_policy_session(&nonce).plain())?;
        let (session, _) = command::parse_started_session(&answer).map_err(|why| TpmError::Answer { what, why })?;
        self.remember(session);
        let command = command::policy_secret_endorsement(session);
        self.run("TPM2_PolicySecret", &command.authorized(&[Auth::EmptyPassword]))?;
        Ok(Auth::Policy(session))
    }

    /// A session salted to the EK: what is read through it, only this TPM and this program know.
    fn start_session(&mut self, keys: &Keys, ek: u32) -> Result<Session, TpmError> {
        let what = "TPM2_StartAuthSession";
        let (starting, command) = StartingSession::new(&keys.ek_public, ek, self.rng)
            .map_err(|why| TpmError::Session(SessionError::Key(why)))?;
        let answer = self.run(what, &command.plain())?;
        let session = starting.finish(&answer).map_err(|why| TpmError::Answer { what, why })?;
        self.remember(session.handle());
        Ok(session)
    }

    fn pcr_read(&mut self, selection: &PcrSelectionList) -> Result<PcrValues, TpmError> {
        let what = "TPM2_PCR_Read";
        let mut values = PcrValues::new();
        let mut left = selection.clone();
        // A TPM returns at most eight at a time, and nothing for PCRs or banks it does not have.
        while !left.is_empty() {
            let answer = self.run(what, &command::pcr_read(&left).plain())?;
            let read = PcrRead::parse(&answer).map_err(|why| TpmError::Answer { what, why })?;
            if read.values.is_empty() {
                break;
            }
            for (bank, index, value) in read.values.iter() {
                values.set(bank, index, *value).map_err(|why| TpmError::Answer { what, why: why.into() })?;
            }
            left = left.without(&read.selection);
        }
        Ok(values)
    }

    /// The public area at a persistent handle; `None` if there is none, or none that is known here.
    fn read_public(&mut self, handle: u32) -> Result<Option<TpmtPublic>, TpmError> {
        match self.run("TPM2_ReadPublic", &command::read_public(handle).plain()) {
            Ok(answer) => Ok(ObjectPublic::parse(&answer).ok().map(|object| object.public)),
            Err(TpmError::Refused { .. }) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// The certificate in an NV index, cut to its own length; `None` if there is none.
    fn nv_certificate(&mut self, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
        let Some(mut data) = self.nv_read(index, limits::MAX_CERTIFICATE_LEN)? else { return Ok(None) };
        let Some(len) = der_len(&data) else {
            log::warn!("NV index 0x{index:08x} holds no certificate in DER");
            return Ok(None);
        };
        data.truncate(len);
        Ok(Some(data))
    }

    /// What an NV index holds; `None` if there is no such index, nothing was written to it, or it is larger than `max`.
    fn nv_read(&mut self, index: u32, max: usize) -> Result<Option<Vec<u8>>, TpmError> {
        let what = "TPM2_NV_ReadPublic";
        let answer = match self.run(what, &command::nv_read_public(index).plain()) {
            Ok(answer) => answer,
            Err(TpmError::Refused { .. }) => return Ok(None),
            Err(why) => return Err(why),
        };
        let public = NvPublic::parse(&answer).map_err(|why| TpmError::Answer { what, why })?;
        let len = public.data_len;
        if public.attributes & NvPublic::WRITTEN == 0 || usize::from(len) > max {
            return Ok(None);
        }
        let what = "TPM2_NV_Read";
        let mut data = Vec::with_capacity(len.into());
        while let Ok(offset) = u16::try_from(data.len())
            && offset < len
        {
            let command = command::nv_read(Entity::named(index, public.name), offset, len - offset);
            let answer = match self.run(what, &command.authorized(&[Auth::EmptyPassword])) {
                Ok(answer) => answer,
                // It is there, and not for us.
                Err(TpmError::Refused { rc, .. }) => {
                    log::debug!("NV index 0x{index:08x} cannot be read: {rc}");
                    return Ok(None);
                }
                Err(why) => return Err(why),
            };
            let part = command::parse_nv_data(&answer).map_err(|why| TpmError::Answer { what, why })?;
            if part.is_empty() {
                return Ok(None);
            }
            data.extend_from_slice(part);
        }
        Ok(Some(data))
    }

    /// The EK's certificate, and behind it what the TPM holds of its chain: one or more DER certificates in a row of
    /// indices. What does not fit the limits is left out: the registrar has issuers of its own.
    fn chain(&mut self, certificate: Vec<u8>) -> Result<Vec<Vec<u8>>, TpmError> {
        let mut chain = vec![certificate];
        let what = "TPM2_GetCapability";
        let answer = self.run(what, &command::handles(CHAIN_INDICES.start).plain())?;
        let (handles, _) = command::parse_handles(&answer).map_err(|why| TpmError::Answer { what, why })?;
        let mut data = Vec::new();
        for index in handles.into_iter().filter(|index| CHAIN_INDICES.contains(index)) {
            let Some(part) = self.nv_read(index, MAX_CHAIN_LEN - data.len())? else { break };
            data.extend_from_slice(&part);
        }
        let mut rest = data.as_slice();
        while chain.len() < limits::MAX_EK_CHAIN
            && let Some(len) = der_len(rest)
            && let Some((next, tail)) = rest.split_at_checked(len)
        {
            if len <= limits::MAX_CERTIFICATE_LEN {
                chain.push(next.to_vec());
            }
            rest = tail;
        }
        Ok(chain)
    }

    fn flush(&mut self, handle: u32) {
        // Where this fails, the slot is freed as a leftover later.
        if self.link.transmit(&command::flush_context(handle).plain()).is_ok() {
            self.made.retain(|made| *made != handle);
        }
    }

    fn flush_made(&mut self) {
        while let Some(handle) = self.made.pop() {
            self.flush(handle);
        }
    }

    /// Frees what a program left in the TPM that ended without doing so.
    fn flush_leftovers(&mut self) -> Result<(), TpmError> {
        let what = "TPM2_GetCapability";
        for first in [command::FIRST_TRANSIENT, command::FIRST_LOADED_SESSION, command::FIRST_SAVED_SESSION] {
            let answer = self.run(what, &command::handles(first).plain())?;
            let (handles, _) = command::parse_handles(&answer).map_err(|why| TpmError::Answer { what, why })?;
            // Sessions are listed by their own kind, HMAC (02) or policy (03), loaded or saved.
            let is_asked_for = |handle: &u32| match first {
                command::FIRST_TRANSIENT => handle >> 24 == first >> 24,
                _ => matches!(handle >> 24, 0x02 | 0x03),
            };
            for handle in handles.into_iter().filter(is_asked_for) {
                self.flush(handle);
            }
        }
        Ok(())
    }
}

/// Codes with which a TPM says that it does not have such keys.
const fn is_unsupported(rc: TpmRc) -> bool {
    // ASYMMETRIC, HASH, VALUE, KEY_SIZE, SCHEME, SYMMETRIC, CURVE.
    matches!(rc.base().0, 0x081 | 0x083 | 0x084 | 0x087 | 0x092 | 0x096 | 0x0a6)
}

/// Whether a certificate is for this key: a modulus, or a point, stands in it once and as a whole.
fn holds_key_of(certificate: &[u8], public: &TpmtPublic) -> bool {
    let contains = |key: &[u8]| key.len() >= 64 && certificate.windows(key.len()).any(|window| window == key);
    match &public.key {
        KeyPublic::Rsa { modulus, .. } => contains(modulus),
        KeyPublic::Ecc { .. } => public.sec1_point().is_ok_and(|point| contains(&point)),
    }
}

/// The length of the DER SEQUENCE that `bytes` begin with, header and all; `None` if they do not, or end before it.
fn der_len(bytes: &[u8]) -> Option<usize> {
    let len = match bytes {
        [0x30, len @ 0..=0x7f, ..] => 2 + usize::from(*len),
        [0x30, 0x81, len, ..] => 3 + usize::from(*len),
        [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => return None,
    };
    (len <= bytes.len()).then_some(len)
}

/// The way to the TPM.
enum Link {
    Device { file: File, managed: bool },
    Socket(TcpStream),
}

impl Link {
    fn connect(tcti: &Tcti) -> Result<Self, TpmError> {
        match tcti {
            Tcti::Device(path) => match File::options().read(true).write(true).open(path) {
                Ok(file) => Ok(Self::Device { file, managed: is_managed(path) }),
                Err(why) => Err(match why.kind() {
                    io::ErrorKind::NotFound => TpmError::Missing(path.clone()),
                    io::ErrorKind::PermissionDenied => TpmError::NotAllowed(path.clone()),
                    io::ErrorKind::ResourceBusy => TpmError::Busy,
                    _ => TpmError::Broken(why),
                }),
            },
            Tcti::Swtpm { host, port } => {
                let connect = || {
                    let addresses: Vec<_> = match host.parse() {
                        Ok(ip) => vec![std::net::SocketAddr::new(ip, *port)],
                        Err(_) => (host.as_str(), *port).to_socket_addrs()?.collect(),
                    };
                    let stream = TcpStream::connect(addresses.as_slice())?;
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(SOCKET_LIMIT))?;
                    stream.set_write_timeout(Some(SOCKET_LIMIT))?;
                    Ok(stream)
                };
                connect().map(Self::Socket).map_err(|why| TpmError::Unreachable(format!("{host}:{port}"), why))
            }
            #[cfg(feature = "tss-esapi")]
            Tcti::Other(name) => Err(TpmError::Missing(name.into())),
        }
    }

    const fn is_managed(&self) -> bool {
        matches!(self, Self::Device { managed: true, .. })
    }

    /// One command, one answer.
    fn transmit(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        match self {
            Self::Device { file, .. } => {
                // The driver wants a command in one write, and gives an answer in one read.
                let written = file.write(command)?;
                if written != command.len() {
                    return Err(io::Error::from(io::ErrorKind::WriteZero).into());
                }
                let mut answer = vec![0; command::MAX_RESPONSE_LEN];
                let len = file.read(&mut answer)?;
                answer.truncate(len);
                Ok(answer)
            }
            Self::Socket(stream) => {
                stream.write_all(command)?;
                let mut header = [0; 10];
                stream.read_exact(&mut header).map_err(|why| match why.kind() {
                    // It takes one client at a time, and lets the next one wait.
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TpmError::Busy,
                    _ => TpmError::Broken(why),
                })?;
                let len = command::response_len(&header)
                    .map_err(|why| TpmError::Answer { what: "the answer's length", why: ResponseError::from(why) })?;
                let mut answer = header.to_vec();
                answer.resize(len, 0);
                stream.read_exact(answer.get_mut(header.len()..).unwrap_or_default())?;
                Ok(answer)
            }
        }
    }
}

/// Whether a device is the kernel's resource manager.
fn is_managed(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"tpmrm"))
}

#[cfg(test)]
pub(crate) mod tests;
