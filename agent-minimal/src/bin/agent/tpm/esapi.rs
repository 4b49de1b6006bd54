//! The TPM reached by the system's TSS (libtss2, through tss-esapi): the kernel's resource manager, tabrmd, simulators.
//!
//! It keeps the promises of [`direct`](super::direct) by code that shares nothing with it but key templates and public
//! areas, so each is the other's oracle. A context of the TSS is made for every use and closed after it. Salts and
//! nonces of its sessions come from the TSS's own generator, which waits for the kernel's pool where that is not ready
//! yet. The TSS writes its complaints to standard error (variable `TSS2_LOG`): what may be absent is looked up, not
//! tried.

use std::{
    fs::File,
    io,
    net::TcpStream,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    str::FromStr as _,
    thread,
    time::{Duration, Instant},
};

use protocol::{
    codec::CodecError,
    crypto::{bind, secret::CredentialSecret},
    limits,
    tpm::{
        alg::{Digest, HashAlg, TpmRc},
        attest::TpmsAttest,
        command::{self, ResponseError},
        pcr::{self, PcrSelection, PcrSelectionList, PcrValues, digest_over},
        public::{KeyPublic, TpmtPublic},
        template::{AkKind, EkAuth, EkTemplate},
    },
};
use tss_esapi::{
    Context, Error, WrapperErrorKind,
    attributes::SessionAttributesBuilder,
    constants::{CapabilityType, PropertyTag, SessionType, response_code::Tss2ResponseCode},
    handles::{AuthHandle, KeyHandle, NvIndexHandle, ObjectHandle, PcrHandle, TpmHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        resource_handles::{Hierarchy, NvAuth},
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        CapabilityData, Data, Digest as TssDigest, DigestValues, EncryptedSecret, IdObject, Nonce,
        PcrSelectionList as TssSelectionList, Public, SignatureScheme, SymmetricDefinition,
    },
    tcti_ldr::{DeviceConfig, NetworkTPMConfig, TctiNameConf},
    traits::{Marshall as _, UnMarshall as _},
    tss2_esys::{TPML_PCR_SELECTION, TPMS_PCR_SELECTION},
};
use zeroize::Zeroizing;

use super::{About, Identity, Quote, Tpm, TpmError};
use crate::{config::Tcti, log};

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
/// How many handles are asked for at a time; fewer than fit into an answer.
const MAX_HANDLES: u32 = 64;
/// Random bytes that are asked for at a time: one SHA-256, which every TPM gives.
const RANDOM_LEN: usize = 32;

/// A TPM behind the system's TSS.
pub(crate) struct Esapi {
    tcti: Tcti,
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

impl Esapi {
    /// Names the TPM; it is not touched yet.
    pub(crate) const fn new(tcti: Tcti) -> Self {
        Self { tcti, spent: Duration::ZERO, flushed: false, keys: None }
    }

    /// Connects, works, and leaves nothing behind. Slots that somebody else left taken are freed once.
    fn batch<T>(&mut self, work: impl Fn(&mut Batch) -> Result<T, TpmError>) -> Result<T, TpmError> {
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

    fn attempt<T>(&mut self, work: &impl Fn(&mut Batch) -> Result<T, TpmError>) -> Result<T, TpmError> {
        let mut batch = Batch { context: connect(&self.tcti)? };
        // Behind a resource manager there is nobody else's: it keeps its users apart, and frees what is theirs.
        if !self.flushed && !is_managed(&self.tcti) {
            batch.flush_leftovers()?;
        }
        self.flushed = true;
        // The context flushes what was made through it when it is dropped.
        work(&mut batch)
    }

    fn keys(&self) -> Result<Keys, TpmError> {
        self.keys.clone().ok_or(TpmError::NoIdentity)
    }
}

impl Tpm for Esapi {
    fn identity(&mut self, ek: Option<EkTemplate>) -> Result<Identity, TpmError> {
        let (keys, identity) = self.batch(|batch| {
            let found = batch.find_ek(ek)?;
            let (kind, ak) = batch.create_ak(None)?;
            let spki = found.public.spki_der().map_err(|why| TpmError::Answer { what: "EK", why: why.into() })?;
            // The TSS computed this Name itself, from the public area it was given.
            let ak_name = batch.name(ak.handle)?.as_slice().try_into().map_err(|_| TpmError::NoAttestationKey)?;
            let identity = Identity {
                node_id: bind::node_id(&spki),
                ek: found.template,
                ek_public: found.public.encode(),
                ek_chain: found.chain,
                ak_public: ak.public.encode(),
                ak_name,
            };
            let keys = Keys { ek: found.template, ek_public: found.public, ek_persistent: found.persistent, ak: kind };
            Ok((keys, identity))
        })?;
        self.keys = Some(keys);
        Ok(identity)
    }

    fn activate(&mut self, id_object: &[u8], encrypted_secret: &[u8]) -> Result<CredentialSecret, TpmError> {
        let keys = self.keys()?;
        let what = "TPM2_ActivateCredential";
        if id_object.len() > limits::MAX_ID_OBJECT_LEN || encrypted_secret.len() > limits::MAX_ENCRYPTED_SECRET_LEN {
            return Err(TpmError::TooLong(what));
        }
        let id_object = IdObject::try_from(id_object).map_err(|_| TpmError::TooLong(what))?;
        let encrypted_secret = EncryptedSecret::try_from(encrypted_secret).map_err(|_| TpmError::TooLong(what))?;
        self.batch(|batch| {
            let ek = batch.load_ek(&keys)?;
            let (_, ak) = batch.create_ak(Some(keys.ak))?;
            let encrypted = batch.start_encrypted_session(ek)?;
            let ek_auth = batch.ek_auth(&keys.ek_public)?;
            let sessions = (Some(AuthSession::Password), Some(ek_auth), Some(encrypted));
            let secret = batch
                .run(what, |context| {
                    context.execute_with_sessions(sessions, |context| {
                        context.activate_credential(ak.handle, ek, id_object.clone(), encrypted_secret.clone())
                    })
                })
                .map_err(|why| match why {
                    // What was made for another EK opens to nothing that fits, or is no point or ciphertext at all:
                    // INTEGRITY, VALUE, SIZE, INSUFFICIENT, ECC_POINT.
                    TpmError::Refused { rc, .. }
                        if matches!(rc.base(), TpmRc::INTEGRITY | TpmRc(0x084 | 0x095 | 0x09a | 0x0a7)) =>
                    {
                        TpmError::NotForUs
                    }
                    other => other,
                })?;
            // The registrar's and the tenant's secrets have 32 bytes; any other was not made by them.
            CredentialSecret::from_slice(secret.value()).ok_or(TpmError::NotForUs)
        })
    }

    fn quote(&mut self, selection: &PcrSelectionList, qualifying_data: &[u8; 32]) -> Result<Quote, TpmError> {
        let keys = self.keys()?;
        let what = "TPM2_Quote";
        let wanted = selection_to_tss(what, selection)?;
        let data = Data::try_from(qualifying_data.as_slice()).map_err(|_| TpmError::TooLong(what))?;
        self.batch(|batch| {
            let (_, ak) = batch.create_ak(Some(keys.ak))?;
            for _ in 0..QUOTE_TRIES {
                let (quoted, signature) = batch.authorized(what, |context| {
                    context.quote(ak.handle, data.clone(), SignatureScheme::Null, wanted.clone())
                })?;
                // The TSS gives the quote parsed; it has one encoding only, so these are the bytes that were signed.
                let attested = quoted.marshall().map_err(|why| failed(what, why))?;
                let values = batch.pcr_read(selection)?;
                let Ok(attest) = TpmsAttest::decode(&attested) else {
                    return Err(TpmError::Answer { what, why: CodecError::BadValue.into() });
                };
                let digest = digest_over(selection, &values, keys.ak.signature_hash());
                if digest.is_ok_and(|digest| digest == attest.pcr_digest) {
                    let signature = signature.marshall().map_err(|why| failed(what, why))?;
                    return Ok(Quote { attested, signature, values });
                }
            }
            Err(TpmError::Unstable)
        })
    }

    fn pcr_read(&mut self, selection: &PcrSelectionList) -> Result<PcrValues, TpmError> {
        self.batch(|batch| batch.pcr_read(selection))
    }

    /// What TPM2_PCR_Event does, by one TPM2_PCR_Extend over all banks: tss-esapi has no PCR_Event. A bank whose hash
    /// is not known here stays as it was; nobody judges one.
    fn pcr_event(&mut self, index: u8, data: &[u8]) -> Result<(), TpmError> {
        let what = "TPM2_PCR_Extend";
        if data.len() > command::MAX_EVENT_LEN {
            return Err(TpmError::TooLong(what));
        }
        let unknown = || TpmError::Answer { what, why: CodecError::BadValue.into() };
        let handle = PcrHandle::try_from(u32::from(index)).map_err(|why| failed(what, why))?;
        self.batch(|batch| {
            let banks = batch.banks()?;
            let mut digests = DigestValues::new();
            for bank in HashAlg::ALL.into_iter().filter(|bank| banks.contains(*bank, index)) {
                let digest = pcr::event_digest(bank, data);
                let digest = TssDigest::try_from(digest.as_bytes()).map_err(|why| failed(what, why))?;
                digests.set(HashingAlgorithm::try_from(bank.id()).map_err(|_| unknown())?, digest);
            }
            batch.authorized(what, |context| context.pcr_extend(handle, digests.clone()))
        })
    }

    fn random(&mut self) -> Result<Zeroizing<[u8; 32]>, TpmError> {
        let keys = self.keys()?;
        self.batch(|batch| {
            let ek = batch.load_ek(&keys)?;
            let session = batch.start_encrypted_session(ek)?;
            let bytes = batch.run("TPM2_GetRandom", |context| {
                context.execute_with_session(Some(session), |context| context.get_random(RANDOM_LEN))
            })?;
            let mut random = Zeroizing::new([0; RANDOM_LEN]);
            if bytes.value().len() != random.len() {
                return Err(TpmError::TooFewRandomBytes);
            }
            random.copy_from_slice(bytes.value());
            Ok(random)
        })
    }

    fn about(&mut self) -> Result<About, TpmError> {
        self.batch(|batch| {
            let manufacturer = batch.property(PropertyTag::Manufacturer)?.to_be_bytes();
            let high = batch.property(PropertyTag::FirmwareVersion1)?;
            let low = batch.property(PropertyTag::FirmwareVersion2)?;
            let banks = batch.banks()?;
            Ok(About { manufacturer, firmware_version: u64::from(high) << 32 | u64::from(low), banks })
        })
    }

    fn set_rng(&mut self, _rng: crate::entropy::Rng) {
        // The TSS has its own.
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

/// A key that was just made.
struct Created {
    handle: KeyHandle,
    public: TpmtPublic,
}

/// One context of the TSS, which flushes what was made through it when it is dropped.
struct Batch {
    context: Context,
}

impl Batch {
    /// Runs a command, again as long as the TPM asks for that.
    fn run<T>(
        &mut self,
        what: &'static str,
        mut command: impl FnMut(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, TpmError> {
        let deadline = Instant::now() + RETRY_LIMIT;
        let mut pause = Duration::ZERO;
        loop {
            match command(&mut self.context).map_err(|why| failed(what, why)) {
                Err(TpmError::Refused { rc, .. }) if rc.is_retry() && Instant::now() < deadline => {}
                result => return result,
            }
            // The TSS has repeated it a few times already, at once.
            pause = (pause * 2).clamp(Duration::from_millis(1), RETRY_PAUSE);
            thread::sleep(pause);
        }
    }

    /// The same, authorised by an empty password.
    fn authorized<T>(
        &mut self,
        what: &'static str,
        mut command: impl FnMut(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, TpmError> {
        self.run(what, |context| context.execute_with_session(Some(AuthSession::Password), &mut command))
    }

    fn create(&mut self, what: &'static str, template: &TpmtPublic) -> Result<Created, TpmError> {
        let template = Public::unmarshall(&template.encode()).map_err(|why| failed(what, why))?;
        let created = self.authorized(what, |context| {
            context.create_primary(Hierarchy::Endorsement, template.clone(), None, None, None, None)
        })?;
        Ok(Created { handle: created.key_handle, public: public_from_tss(what, &created.out_public)? })
    }

    /// The AK of one kind, else of the first kind that this TPM makes.
    fn create_ak(&mut self, kind: Option<AkKind>) -> Result<(AkKind, Created), TpmError> {
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
            let public = self.try_ek(template)?;
            if holds(&public) {
                let chain = self.chain(certificate)?;
                return Ok(FoundEk { template, public, persistent: None, chain });
            }
            log::warn!("the {} EK certificate in the TPM is for another key than the template makes", template.name());
        }
        let template = wanted.unwrap_or(EkTemplate::P256);
        let public = self.try_ek(template)?;
        Ok(FoundEk { template, public, persistent: None, chain: Vec::new() })
    }

    /// What a template makes. It is flushed again: a TPM without resource manager holds three objects.
    fn try_ek(&mut self, template: EkTemplate) -> Result<TpmtPublic, TpmError> {
        let created = self.create("TPM2_CreatePrimary of the EK", &template.public())?;
        self.run("TPM2_FlushContext", |context| context.flush_context(created.handle.into()))?;
        Ok(created.public)
    }

    /// The EK that was found before. What the TSS salts its sessions to is this very key, whatever the TPM, or somebody
    /// on the way to it, says is at the handle now.
    fn load_ek(&mut self, keys: &Keys) -> Result<KeyHandle, TpmError> {
        let handle = match keys.ek_persistent {
            Some(handle) => KeyHandle::from(self.object(handle)?),
            None => self.create("TPM2_CreatePrimary of the EK", &keys.ek.public())?.handle,
        };
        if self.name(handle)?.as_slice() != keys.ek_public.name().as_ref() {
            return Err(TpmError::Answer { what: "EK", why: CodecError::BadValue.into() });
        }
        Ok(handle)
    }

    /// Name of a loaded key. The TSS has checked that it is the Name of the public area that it knows for the key.
    fn name(&mut self, key: KeyHandle) -> Result<Vec<u8>, TpmError> {
        let name = self.run("the key's Name", |context| context.tr_get_name(key.into()))?;
        Ok(name.value().to_vec())
    }

    fn ek_auth(&mut self, public: &TpmtPublic) -> Result<AuthSession, TpmError> {
        if EkTemplate::auth_of(public) == EkAuth::EmptyPassword {
            return Ok(AuthSession::Password);
        }
        let what = "TPM2_PolicySecret";
        let session = self.start_session(SessionType::Policy, None)?;
        let policy = PolicySession::try_from(session).map_err(|why| failed(what, why))?;
        self.authorized(what, |context| {
            let (nonce, reference) = (Nonce::default(), Nonce::default());
            context.policy_secret(policy, AuthHandle::Endorsement, nonce, TssDigest::default(), reference, None)
        })?;
        Ok(session)
    }

    /// A session salted to the EK: what is read through it, only this TPM and this program know.
    fn start_encrypted_session(&mut self, ek: KeyHandle) -> Result<AuthSession, TpmError> {
        let session = self.start_session(SessionType::Hmac, Some(ek))?;
        let (attributes, mask) = SessionAttributesBuilder::new().with_encrypt(true).build();
        self.run("the session's attributes", |context| context.tr_sess_set_attributes(session, attributes, mask))?;
        Ok(session)
    }

    fn start_session(&mut self, kind: SessionType, salt: Option<KeyHandle>) -> Result<AuthSession, TpmError> {
        let what = "TPM2_StartAuthSession";
        let session = self.run(what, |context| {
            let symmetric = SymmetricDefinition::AES_128_CFB;
            context.start_auth_session(salt, None, None, kind, symmetric, HashingAlgorithm::Sha256)
        })?;
        session.ok_or_else(|| failed(what, Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)))
    }

    fn pcr_read(&mut self, selection: &PcrSelectionList) -> Result<PcrValues, TpmError> {
        let what = "TPM2_PCR_Read";
        let wrong = || TpmError::Answer { what, why: CodecError::BadValue.into() };
        let mut values = PcrValues::new();
        let mut left = selection.clone();
        // A TPM returns at most eight at a time, and nothing for PCRs or banks it does not have.
        while !left.is_empty() {
            let wanted = selection_to_tss(what, &left)?;
            let (_, read, digests) = self.run(what, |context| context.pcr_read(wanted.clone()))?;
            let mut read_now = PcrSelectionList::new();
            for bank in selection_from_tss(read) {
                read_now.push(bank?).map_err(|why| TpmError::Answer { what, why: why.into() })?;
            }
            if digests.value().len() != read_now.count() {
                return Err(wrong());
            }
            if digests.value().is_empty() {
                break;
            }
            for ((bank, index), digest) in read_now.pcrs().zip(digests.value()) {
                if !left.contains(bank, index) {
                    return Err(wrong());
                }
                let digest = Digest::new(digest.value()).map_err(|_| wrong())?;
                values.set(bank, index, digest).map_err(|why| TpmError::Answer { what, why: why.into() })?;
            }
            left = left.without(&read_now);
        }
        Ok(values)
    }

    /// Handles in use from `first` on, of its kind.
    fn handles(&mut self, first: u32, count: u32) -> Result<Vec<u32>, TpmError> {
        let what = "TPM2_GetCapability";
        let (data, _) =
            self.run(what, |context| context.get_capability(CapabilityType::Handles, first, count.min(MAX_HANDLES)))?;
        match data {
            CapabilityData::Handles(handles) => Ok(handles.iter().map(|handle| u32::from(*handle)).collect()),
            _ => Err(TpmError::Answer { what, why: CodecError::BadValue.into() }),
        }
    }

    fn exists(&mut self, handle: u32) -> Result<bool, TpmError> {
        Ok(self.handles(handle, 1)?.first() == Some(&handle))
    }

    /// A property; zero where the TPM does not say.
    fn property(&mut self, tag: PropertyTag) -> Result<u32, TpmError> {
        let what = "TPM2_GetCapability";
        let (data, _) =
            self.run(what, |context| context.get_capability(CapabilityType::TpmProperties, tag.into(), 1))?;
        match data {
            CapabilityData::TpmProperties(found) => Ok(found.find(tag).map_or(0, |found| found.value())),
            _ => Err(TpmError::Answer { what, why: CodecError::BadValue.into() }),
        }
    }

    /// Banks with the PCRs that are allocated in them; banks that are not known here are left out.
    fn banks(&mut self) -> Result<PcrSelectionList, TpmError> {
        let what = "TPM2_GetCapability";
        let (data, _) = self.run(what, |context| context.get_capability(CapabilityType::AssignedPcr, 0, 1))?;
        let CapabilityData::AssignedPcr(found) = data else {
            return Err(TpmError::Answer { what, why: CodecError::BadValue.into() });
        };
        let mut banks = PcrSelectionList::new();
        for bank in selection_from_tss(found).filter_map(Result::ok).filter(|bank| bank.mask() != 0) {
            banks.push(bank).map_err(|why| TpmError::Answer { what, why: why.into() })?;
        }
        Ok(banks)
    }

    /// The TSS's name for something that is in the TPM already. Keys and NV indices have to exist.
    fn object(&mut self, handle: u32) -> Result<ObjectHandle, TpmError> {
        let what = "TPM2_ReadPublic";
        let handle = TpmHandle::try_from(handle).map_err(|why| failed(what, why))?;
        self.run(what, |context| context.tr_from_tpm_public(handle))
    }

    /// The public area at a persistent handle; `None` if there is none, or none that is known here.
    fn read_public(&mut self, handle: u32) -> Result<Option<TpmtPublic>, TpmError> {
        if !self.exists(handle)? {
            return Ok(None);
        }
        let what = "TPM2_ReadPublic";
        let object = KeyHandle::from(self.object(handle)?);
        match self.run(what, |context| context.read_public(object)) {
            Ok((public, ..)) => Ok(public_from_tss(what, &public).ok()),
            Err(TpmError::Refused { .. } | TpmError::Wrapper { .. }) => Ok(None),
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
        if !self.exists(index)? {
            return Ok(None);
        }
        let what = "TPM2_NV_ReadPublic";
        let object = match self.object(index) {
            Ok(object) => object,
            Err(TpmError::Refused { .. }) => return Ok(None),
            Err(why) => return Err(why),
        };
        let handle = NvIndexHandle::from(object);
        let public = match self.run(what, |context| context.nv_read_public(handle)) {
            Ok((public, _)) => public,
            Err(TpmError::Refused { .. }) => return Ok(None),
            Err(why) => return Err(why),
        };
        let len = public.data_size();
        if !public.attributes().written() || len > max {
            return Ok(None);
        }
        let what = "TPM2_NV_Read";
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let part_len = u16::try_from(len - data.len()).unwrap_or(u16::MAX).min(command::MAX_NV_READ_LEN);
            let Ok(offset) = u16::try_from(data.len()) else { return Ok(None) };
            let read =
                self.authorized(what, |context| context.nv_read(NvAuth::NvIndex(handle), handle, part_len, offset));
            let part = match read {
                Ok(part) => part,
                // It is there, and not for us.
                Err(TpmError::Refused { rc, .. }) => {
                    log::debug!("NV index 0x{index:08x} cannot be read: {rc}");
                    return Ok(None);
                }
                Err(why) => return Err(why),
            };
            if part.is_empty() {
                return Ok(None);
            }
            data.extend_from_slice(part.value());
        }
        Ok(Some(data))
    }

    /// The EK's certificate, and behind it what the TPM holds of its chain: one or more DER certificates in a row of
    /// indices. What does not fit the limits is left out: the registrar has issuers of its own.
    fn chain(&mut self, certificate: Vec<u8>) -> Result<Vec<Vec<u8>>, TpmError> {
        let mut chain = vec![certificate];
        let handles = self.handles(CHAIN_INDICES.start, MAX_HANDLES)?;
        let mut data = Vec::new();
        for index in handles.into_iter().filter(|index| CHAIN_INDICES.contains(index)) {
            let Some(part) = self.nv_read(index, MAX_CHAIN_LEN.saturating_sub(data.len()))? else { break };
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

    /// Frees what a program left in the TPM that ended without doing so.
    fn flush_leftovers(&mut self) -> Result<(), TpmError> {
        for first in [command::FIRST_TRANSIENT, command::FIRST_LOADED_SESSION, command::FIRST_SAVED_SESSION] {
            for handle in self.handles(first, MAX_HANDLES)? {
                // What cannot be freed is in the way later, and named then.
                if let Ok(object) = self.object(handle) {
                    let _ = self.context.flush_context(object);
                }
            }
        }
        Ok(())
    }
}

/// A context of the TSS.
fn connect(tcti: &Tcti) -> Result<Context, TpmError> {
    let what = "connecting";
    let config = |text: Option<String>| text.ok_or(Error::WrapperError(WrapperErrorKind::InvalidParam));
    let name = match tcti {
        Tcti::Device(path) => config(path.to_str().map(str::to_owned))
            .and_then(|path| DeviceConfig::from_str(&path))
            .map(TctiNameConf::Device),
        Tcti::Swtpm { host, port } => {
            NetworkTPMConfig::from_str(&format!("host={host},port={port}")).map(TctiNameConf::Swtpm)
        }
        Tcti::Other(text) => TctiNameConf::from_str(text),
    };
    let name = name.map_err(|why| match tcti {
        Tcti::Other(text) => TpmError::UnknownTcti(text.clone()),
        _ => failed(what, why),
    })?;
    Context::new(name).map_err(|why| diagnose(tcti).unwrap_or_else(|| failed(what, why)))
}

/// Why a TPM could not be reached, in words of its own: the TSS has one code for everything.
fn diagnose(tcti: &Tcti) -> Option<TpmError> {
    match tcti {
        Tcti::Device(path) => match File::options().read(true).write(true).open(path) {
            Ok(_) => None,
            Err(why) => Some(match why.kind() {
                io::ErrorKind::NotFound => TpmError::Missing(path.clone()),
                io::ErrorKind::PermissionDenied => TpmError::NotAllowed(path.clone()),
                io::ErrorKind::ResourceBusy => TpmError::Busy,
                _ => TpmError::Broken(why),
            }),
        },
        Tcti::Swtpm { host, port } => match TcpStream::connect((host.as_str(), *port)) {
            Ok(_) => None,
            Err(why) => Some(TpmError::Unreachable(format!("{host}:{port}"), why)),
        },
        Tcti::Other(_) => None,
    }
}

/// Whether a resource manager keeps this program's objects and sessions apart from others'.
fn is_managed(tcti: &Tcti) -> bool {
    match tcti {
        Tcti::Device(path) => is_managed_device(path),
        Tcti::Swtpm { .. } => false,
        Tcti::Other(name) => name.starts_with("tabrmd"),
    }
}

fn is_managed_device(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"tpmrm"))
}

/// Whose error it is: the TPM's (which a resource manager may pass on), or the TSS's.
fn failed(what: &'static str, why: Error) -> TpmError {
    /// TSS2_RESMGR_TPM_RC_LAYER: a code of the TPM's kind, by the resource manager.
    const RESOURCE_MANAGER: u32 = 11;
    let code = match why {
        Error::WrapperError(kind) => return TpmError::Wrapper { what, kind },
        Error::Tss2Error(code) => number(code),
    };
    match (code >> 16, TpmRc(code & 0xffff)) {
        (0 | RESOURCE_MANAGER, TpmRc::INITIALIZE) => TpmError::NotStarted,
        (0 | RESOURCE_MANAGER, TpmRc::LOCKOUT) => TpmError::LockedOut,
        (0 | RESOURCE_MANAGER, rc) => TpmError::Refused { what, rc },
        _ => TpmError::Stack { what, code },
    }
}

/// The number of a response code. tss-esapi gives it in the text only, behind the last `0x`.
fn number(code: Tss2ResponseCode) -> u32 {
    let text = match code {
        Tss2ResponseCode::Success => return 0,
        Tss2ResponseCode::FormatZero(code) => code.to_string(),
        Tss2ResponseCode::FormatOne(code) => code.to_string(),
    };
    let digits = text.rsplit_once("0x").map_or("", |(_, digits)| digits);
    u32::from_str_radix(digits, 16).unwrap_or(u32::MAX)
}

fn public_from_tss(what: &'static str, public: &Public) -> Result<TpmtPublic, TpmError> {
    let bytes = public.marshall().map_err(|why| failed(what, why))?;
    TpmtPublic::decode(&bytes).map_err(|why| TpmError::Answer { what, why: why.into() })
}

/// A selection for the TSS, in this order (which its own builder does not keep).
fn selection_to_tss(what: &'static str, list: &PcrSelectionList) -> Result<TssSelectionList, TpmError> {
    let mut out = TPML_PCR_SELECTION::default();
    for (to, from) in out.pcrSelections.iter_mut().zip(list.iter()) {
        *to = TPMS_PCR_SELECTION { hash: from.bank.id(), sizeofSelect: 3, pcrSelect: from.mask().to_le_bytes() };
        out.count += 1;
    }
    TssSelectionList::try_from(out).map_err(|why| failed(what, why))
}

/// The banks of a selection; an error for one that is not known here, or with PCRs that no TPM of ours has.
fn selection_from_tss(list: TssSelectionList) -> impl Iterator<Item = Result<PcrSelection, TpmError>> {
    let list = TPML_PCR_SELECTION::from(list);
    let count = usize::try_from(list.count).unwrap_or(usize::MAX);
    list.pcrSelections.into_iter().take(count).map(|bank| {
        HashAlg::from_id(bank.hash)
            .and_then(|hash| PcrSelection::new(hash, u32::from_le_bytes(bank.pcrSelect)))
            .ok_or(TpmError::Answer { what: "PCR selection", why: ResponseError::from(CodecError::BadValue) })
    })
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

#[cfg(test)]
mod tests;
