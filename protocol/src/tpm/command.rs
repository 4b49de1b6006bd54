//! The TPM commands this project sends, as bytes, and the answers, parsed. Nothing is sent from here.
//!
//! A function per command makes a [`Command`]; [`Command::plain`], [`Command::authorized`] or
//! [`Session::protect`](super::session::Session::protect) gives its bytes. What comes back is parsed by the type of
//! the answer, or by [`parse_done`] where nothing in it is of interest. All are in TPM 2.0 Part 3 under their names.

use alloc::{borrow::ToOwned, vec::Vec};
use core::fmt;

use zeroize::Zeroizing;

pub use super::template::TPM_RH_ENDORSEMENT;
use super::{
    alg::{self, Digest, HashAlg, TpmRc},
    attest::{ClockInfo, MAX_EXTRA_DATA_LEN},
    pcr::{PcrError, PcrSelection, PcrSelectionList, PcrValues},
    public::{Name, PublicError, TpmtPublic},
    wire::Out,
};
use crate::{
    codec::{CodecError, Reader},
    limits,
};

/// The longest command made here, in bytes.
pub const MAX_COMMAND_LEN: usize = 1024;
/// The longest response accepted, in bytes: the buffer of the kernel's driver.
pub const MAX_RESPONSE_LEN: usize = 4096;
/// The most bytes of one TPM2_NV_Read; every TPM allows as many (TPM_PT_NV_BUFFER_MAX is 512 or more).
pub const MAX_NV_READ_LEN: u16 = 512;
/// The most bytes of one TPM2_GetRandom: what fits a digest of any TPM.
pub const MAX_RANDOM_LEN: u16 = 32;
/// The longest data of a TPM2_PCR_Event made here, so that the command stays in its bound.
pub const MAX_EVENT_LEN: usize = 900;

/// TPM_RH_OWNER.
pub const TPM_RH_OWNER: u32 = 0x4000_0001;
/// TPM_RH_NULL.
pub const TPM_RH_NULL: u32 = 0x4000_0007;
/// TPM_RS_PW.
const TPM_RS_PW: u32 = 0x4000_0009;
/// TPM_RH_LOCKOUT.
pub const TPM_RH_LOCKOUT: u32 = 0x4000_000a;

/// First NV index: [`handles`] from here lists NV indices.
pub const FIRST_NV_INDEX: u32 = 0x0100_0000;
/// First handle of loaded HMAC and policy sessions.
pub const FIRST_LOADED_SESSION: u32 = 0x0200_0000;
/// First handle of saved sessions, and of policy sessions.
pub const FIRST_SAVED_SESSION: u32 = 0x0300_0000;
/// First transient object.
pub const FIRST_TRANSIENT: u32 = 0x8000_0000;
/// First persistent object.
pub const FIRST_PERSISTENT: u32 = 0x8100_0000;

/// TPM_PT_MANUFACTURER: four characters.
pub const TPM_PT_MANUFACTURER: u32 = 0x0000_0105;
/// TPM_PT_FIRMWARE_VERSION_1.
pub const TPM_PT_FIRMWARE_VERSION_1: u32 = 0x0000_010b;
/// TPM_PT_FIRMWARE_VERSION_2.
pub const TPM_PT_FIRMWARE_VERSION_2: u32 = 0x0000_010c;
/// TPM_PT_NV_BUFFER_MAX.
pub const TPM_PT_NV_BUFFER_MAX: u32 = 0x0000_012c;

const TPM_ST_NO_SESSIONS: u16 = 0x8001;
const TPM_ST_SESSIONS: u16 = 0x8002;

const EVICT_CONTROL: u32 = 0x0000_0120;
const CLEAR: u32 = 0x0000_0126;
const CREATE_PRIMARY: u32 = 0x0000_0131;
const PCR_EVENT: u32 = 0x0000_013c;
const STARTUP: u32 = 0x0000_0144;
const ACTIVATE_CREDENTIAL: u32 = 0x0000_0147;
const NV_READ: u32 = 0x0000_014e;
const POLICY_SECRET: u32 = 0x0000_0151;
const QUOTE: u32 = 0x0000_0158;
const FLUSH_CONTEXT: u32 = 0x0000_0165;
const NV_READ_PUBLIC: u32 = 0x0000_0169;
const READ_PUBLIC: u32 = 0x0000_0173;
pub(crate) const START_AUTH_SESSION: u32 = 0x0000_0176;
const GET_CAPABILITY: u32 = 0x0000_017a;
const GET_RANDOM: u32 = 0x0000_017b;
const PCR_READ: u32 = 0x0000_017e;
const READ_CLOCK: u32 = 0x0000_0181;
const PCR_EXTEND: u32 = 0x0000_0182;

const TPM_CAP_HANDLES: u32 = 1;
const TPM_CAP_PCRS: u32 = 5;
const TPM_CAP_TPM_PROPERTIES: u32 = 6;
const TPM_SE_POLICY: u8 = 0x01;
const TPM_SU_CLEAR: u16 = 0x0000;

/// Why an answer was not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ResponseError {
    #[error("TPM refused: {0}")]
    Tpm(TpmRc),
    #[error("malformed TPM response")]
    Malformed(#[from] CodecError),
    #[error("TPM response has the tag 0x{0:04x}")]
    BadTag(u16),
    #[error("unusable public area in TPM response")]
    Public(#[from] PublicError),
    #[error("the Name in the response is not that of the public area beside it")]
    WrongName,
    #[error("unusable PCR values in TPM response")]
    Pcr(#[from] PcrError),
}

/// A secret that came from a TPM: wiped on drop, never printed.
pub struct TpmSecret(Zeroizing<Vec<u8>>);

impl TpmSecret {
    /// Its bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for TpmSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TpmSecret")
    }
}

/// A handle of a command, with the Name that a session's HMAC covers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entity {
    handle: u32,
    name: Option<Name>,
}

impl Entity {
    /// A PCR, session or permanent handle, whose Name is the handle; or anything else in a command without a session.
    pub const fn handle(handle: u32) -> Self {
        Self { handle, name: None }
    }

    /// A loaded or persistent object, or an NV index.
    pub const fn named(handle: u32, name: Name) -> Self {
        Self { handle, name: Some(name) }
    }

    /// `None` where a Name is needed and not known (TPM 2.0 Part 1, Names).
    pub(crate) fn name_bytes(&self) -> Option<heapless::Vec<u8, { limits::MAX_NAME_LEN }>> {
        match (self.name, self.handle.to_be_bytes()) {
            (Some(name), _) => heapless::Vec::from_slice(&name).ok(),
            (None, handle @ [0x00 | 0x02 | 0x03 | 0x40, ..]) => heapless::Vec::from_slice(&handle).ok(),
            _ => None,
        }
    }
}

/// One authorisation of a command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Auth {
    /// The empty password.
    EmptyPassword,
    /// A policy session that needs no HMAC. The TPM flushes it if the command succeeds.
    Policy(u32),
}

pub(crate) fn put_auth(area: &mut Out, auth: Auth) {
    match auth {
        Auth::EmptyPassword => area.u32(TPM_RS_PW).tpm2b(&[]).u8(1).tpm2b(&[]),
        Auth::Policy(session) => area.u32(session).tpm2b(&[]).u8(0).tpm2b(&[]),
    };
}

/// A command before its authorisations.
#[derive(Clone)]
pub struct Command {
    code: u32,
    handles: heapless::Vec<Entity, 3>,
    parameters: Vec<u8>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Parameters may hold what is none of a log's business.
        f.debug_struct("Command").field("code", &self.code).field("handles", &self.handles).finish_non_exhaustive()
    }
}

impl Command {
    pub(crate) fn new(code: u32, handles: &[Entity], parameters: Out) -> Self {
        // No command of ours has more than three handles.
        let handles = handles.iter().take(3).copied().collect();
        Self { code, handles, parameters: parameters.into_vec() }
    }

    /// Its TPM_CC.
    pub const fn code(&self) -> u32 {
        self.code
    }

    pub(crate) fn handles(&self) -> &[Entity] {
        &self.handles
    }

    pub(crate) fn parameters(&self) -> &[u8] {
        &self.parameters
    }

    /// Whether the answer begins with a handle.
    pub(crate) const fn returns_handle(&self) -> bool {
        matches!(self.code, CREATE_PRIMARY | START_AUTH_SESSION)
    }

    /// Its bytes without any authorisation.
    pub fn plain(&self) -> Vec<u8> {
        self.assemble(TPM_ST_NO_SESSIONS, None, &self.parameters)
    }

    /// Its bytes with one authorisation for each handle that needs one, in their order.
    pub fn authorized(&self, auths: &[Auth]) -> Vec<u8> {
        let mut area = Out::new();
        auths.iter().for_each(|auth| put_auth(&mut area, *auth));
        self.with_auth_area(area.as_slice(), &self.parameters)
    }

    pub(crate) fn with_auth_area(&self, area: &[u8], parameters: &[u8]) -> Vec<u8> {
        self.assemble(TPM_ST_SESSIONS, Some(area), parameters)
    }

    fn assemble(&self, tag: u16, area: Option<&[u8]>, parameters: &[u8]) -> Vec<u8> {
        let mut body = Out::new();
        for entity in &self.handles {
            body.u32(entity.handle);
        }
        if let Some(area) = area {
            body.u32(u32::try_from(area.len()).unwrap_or(u32::MAX)).put(area);
        }
        body.put(parameters);
        let mut out = Out::new();
        let len = body.as_slice().len().saturating_add(10);
        out.u16(tag).u32(u32::try_from(len).unwrap_or(u32::MAX)).u32(self.code).put(body.as_slice());
        out.into_vec()
    }
}

/// A successful answer, in its parts.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// The handle, for commands that return one.
    pub handle: Option<u32>,
    /// The parameters, perhaps encrypted.
    pub parameters: &'a [u8],
    /// The authorisations of the answer; empty for a command without any.
    pub auths: &'a [u8],
}

impl<'a> Response<'a> {
    /// Splits a whole response. `has_handle` is a property of the command.
    ///
    /// # Errors
    /// [`ResponseError::Tpm`] for a refusal; [`ResponseError::BadTag`] and [`ResponseError::Malformed`] for bytes that
    /// are no response, above [`MAX_RESPONSE_LEN`], or of another length than they say.
    pub fn parse(bytes: &'a [u8], has_handle: bool) -> Result<Self, ResponseError> {
        if bytes.len() > MAX_RESPONSE_LEN {
            return Err(CodecError::TooLong.into());
        }
        let mut reader = Reader::new(bytes);
        let (tag, len, code) = (reader.u16()?, reader.u32()?, TpmRc(reader.u32()?));
        match usize::try_from(len).map_err(|_| CodecError::TooLong)? {
            len if len > bytes.len() => return Err(CodecError::Truncated.into()),
            len if len < bytes.len() => return Err(CodecError::TrailingBytes.into()),
            _ => {}
        }
        if code != TpmRc::SUCCESS {
            return Err(ResponseError::Tpm(code));
        }
        let handle = if has_handle { Some(reader.u32()?) } else { None };
        match tag {
            TPM_ST_NO_SESSIONS => Ok(Self { handle, parameters: reader.rest(), auths: &[] }),
            TPM_ST_SESSIONS => {
                let len = usize::try_from(reader.u32()?).map_err(|_| CodecError::TooLong)?;
                let parameters = reader.take(len)?;
                Ok(Self { handle, parameters, auths: reader.rest() })
            }
            other => Err(ResponseError::BadTag(other)),
        }
    }
}

/// Checks that a command succeeded, for answers in which nothing else is of interest.
///
/// # Errors
/// As [`Response::parse`].
pub fn parse_done(response: &[u8]) -> Result<(), ResponseError> {
    Response::parse(response, false).map(|_| ())
}

/// How long a response says it is, from its first ten bytes: over a stream, read until then. At least ten.
///
/// # Errors
/// [`CodecError::TooLong`] above [`MAX_RESPONSE_LEN`], [`CodecError::BadValue`] below the header's length.
pub fn response_len(header: &[u8; 10]) -> Result<usize, CodecError> {
    let mut reader = Reader::new(header);
    reader.u16()?;
    match usize::try_from(reader.u32()?) {
        Ok(len) if len < header.len() => Err(CodecError::BadValue),
        Ok(len) if len <= MAX_RESPONSE_LEN => Ok(len),
        _ => Err(CodecError::TooLong),
    }
}

// Starting, listing, flushing.

/// TPM2_Startup(CLEAR), where no firmware does it. [`TpmRc::INITIALIZE`] in the answer: it was done before.
pub fn startup() -> Command {
    let mut parameters = Out::new();
    parameters.u16(TPM_SU_CLEAR);
    Command::new(STARTUP, &[], parameters)
}

/// TPM2_Clear, with the empty lockout authorisation. Destroys what the TPM holds for its owner.
pub fn clear() -> Command {
    Command::new(CLEAR, &[Entity::handle(TPM_RH_LOCKOUT)], Out::new())
}

fn capability(capability: u32, property: u32, count: u32) -> Command {
    let mut parameters = Out::new();
    parameters.u32(capability).u32(property).u32(count);
    Command::new(GET_CAPABILITY, &[], parameters)
}

/// TPM2_GetCapability(TPM_CAP_HANDLES): handles in use from `first` on, of its kind.
pub fn handles(first: u32) -> Command {
    capability(TPM_CAP_HANDLES, first, 64)
}

/// TPM2_GetCapability(TPM_CAP_PCRS): which PCRs each bank has.
pub fn pcr_banks() -> Command {
    capability(TPM_CAP_PCRS, 0, 1)
}

/// TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES): at most `count` properties from `first` on.
pub fn properties(first: u32, count: u32) -> Command {
    capability(TPM_CAP_TPM_PROPERTIES, first, count)
}

fn capability_data<'a>(response: &'a [u8], expected: u32) -> Result<(bool, Reader<'a>), ResponseError> {
    let mut reader = Reader::new(Response::parse(response, false)?.parameters);
    let more = reader.u8()? != 0;
    if reader.u32()? != expected {
        return Err(CodecError::BadValue.into());
    }
    Ok((more, reader))
}

/// The handles that [`handles`] listed, and whether there are more behind the last.
///
/// # Errors
/// As [`Response::parse`].
pub fn parse_handles(response: &[u8]) -> Result<(Vec<u32>, bool), ResponseError> {
    let (more, mut reader) = capability_data(response, TPM_CAP_HANDLES)?;
    let count = reader.u32()?;
    let handles = (0..count).map(|_| reader.u32()).collect::<Result<Vec<_>, _>>()?;
    reader.finish()?;
    Ok((handles, more))
}

/// The banks that [`pcr_banks`] listed. A bank of a hash unknown here is left out, and so is one without PCRs.
///
/// # Errors
/// As [`Response::parse`].
pub fn parse_pcr_banks(response: &[u8]) -> Result<Vec<PcrSelection>, ResponseError> {
    let (_, mut reader) = capability_data(response, TPM_CAP_PCRS)?;
    let count = reader.u32()?;
    let mut banks = Vec::new();
    for _ in 0..count {
        let (id, select_len) = (reader.u16()?, usize::from(reader.u8()?));
        let select = reader.take(select_len)?;
        // PCRs above 23 are none of ours.
        let mut mask = [0; 4];
        mask.iter_mut().zip(select).take(3).for_each(|(to, from)| *to = *from);
        let selection = HashAlg::from_id(id).and_then(|bank| PcrSelection::new(bank, u32::from_le_bytes(mask)));
        banks.extend(selection.filter(|selection| selection.mask() != 0));
    }
    reader.finish()?;
    Ok(banks)
}

/// The (TPM_PT, value) pairs that [`properties`] listed.
///
/// # Errors
/// As [`Response::parse`].
pub fn parse_properties(response: &[u8]) -> Result<Vec<(u32, u32)>, ResponseError> {
    let (_, mut reader) = capability_data(response, TPM_CAP_TPM_PROPERTIES)?;
    let count = reader.u32()?;
    let pair = |_| Ok::<_, CodecError>((reader.u32()?, reader.u32()?));
    let properties = (0..count).map(pair).collect::<Result<Vec<_>, _>>()?;
    reader.finish()?;
    Ok(properties)
}

/// TPM2_FlushContext of a transient object or a session.
pub fn flush_context(handle: u32) -> Command {
    // The handle is a parameter here: it takes no Name and no authorisation.
    let mut parameters = Out::new();
    parameters.u32(handle);
    Command::new(FLUSH_CONTEXT, &[], parameters)
}

/// TPM2_ReadClock.
pub fn read_clock() -> Command {
    Command::new(READ_CLOCK, &[], Out::new())
}

/// TPMS_TIME_INFO.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TimeInfo {
    /// Milliseconds since the TPM was powered.
    pub time: u64,
    /// Clock and counters.
    pub clock_info: ClockInfo,
}

impl TimeInfo {
    /// The answer to [`read_clock`].
    ///
    /// # Errors
    /// As [`Response::parse`].
    pub fn parse(response: &[u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(Response::parse(response, false)?.parameters);
        let time = reader.u64()?;
        let clock_info = ClockInfo::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self { time, clock_info })
    }
}

/// TPM2_GetRandom of `len` bytes, at most [`MAX_RANDOM_LEN`]; the TPM may return fewer.
pub fn get_random(len: u16) -> Command {
    let mut parameters = Out::new();
    parameters.u16(len.min(MAX_RANDOM_LEN));
    Command::new(GET_RANDOM, &[], parameters)
}

/// The one TPM2B that the decrypted parameters of TPM2_GetRandom or TPM2_ActivateCredential consist of.
///
/// # Errors
/// [`ResponseError::Malformed`] for anything else.
pub fn secret_parameter(parameters: &[u8]) -> Result<TpmSecret, ResponseError> {
    let mut reader = Reader::new(parameters);
    let secret = TpmSecret(Zeroizing::new(reader.tpm2b(Digest::MAX_LEN)?.to_owned()));
    reader.finish()?;
    Ok(secret)
}

/// The same from a whole response that was not encrypted.
///
/// # Errors
/// As [`Response::parse`].
pub fn parse_secret(response: &[u8]) -> Result<TpmSecret, ResponseError> {
    secret_parameter(Response::parse(response, false)?.parameters)
}

// Keys.

/// TPM2_ReadPublic of a loaded or persistent object.
pub fn read_public(handle: u32) -> Command {
    Command::new(READ_PUBLIC, &[Entity::handle(handle)], Out::new())
}

/// What TPM2_ReadPublic returns.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ObjectPublic {
    /// The public area.
    pub public: TpmtPublic,
    /// Its Name, checked.
    pub name: Name,
    /// Its Qualified Name.
    pub qualified_name: Name,
}

impl ObjectPublic {
    /// The answer to [`read_public`].
    ///
    /// # Errors
    /// As [`Response::parse`]; [`ResponseError::Public`] for a key that is none of ours; [`ResponseError::WrongName`].
    pub fn parse(response: &[u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(Response::parse(response, false)?.parameters);
        let public = TpmtPublic::decode(reader.tpm2b(limits::MAX_PUBLIC_LEN)?)?;
        let name = checked_name(&public, &mut reader)?;
        let qualified_name = Name::decode(reader.tpm2b(Name::MAX_LEN)?)?;
        reader.finish()?;
        Ok(Self { public, name, qualified_name })
    }
}

fn checked_name(public: &TpmtPublic, reader: &mut Reader<'_>) -> Result<Name, ResponseError> {
    let name = Name::decode(reader.tpm2b(Name::MAX_LEN)?)?;
    if name == public.name() { Ok(name) } else { Err(ResponseError::WrongName) }
}

/// TPM2_CreatePrimary under `hierarchy` (one authorisation, its empty password), with an empty authorisation value.
pub fn create_primary(hierarchy: u32, template: &TpmtPublic) -> Command {
    let mut parameters = Out::new();
    // TPM2B_SENSITIVE_CREATE with empty userAuth and data; the template; no outsideInfo; no creationPCR.
    parameters.u16(4).u16(0).u16(0).tpm2b(&template.encode()).u16(0).u32(0);
    Command::new(CREATE_PRIMARY, &[Entity::handle(hierarchy)], parameters)
}

/// A primary key that the TPM has just made; it stays loaded until it is flushed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CreatedPrimary {
    /// Its transient handle.
    pub handle: u32,
    /// The public area.
    pub public: TpmtPublic,
    /// Its Name, checked.
    pub name: Name,
}

impl CreatedPrimary {
    /// The answer to [`create_primary`].
    ///
    /// # Errors
    /// As [`ObjectPublic::parse`].
    pub fn parse(response: &[u8]) -> Result<Self, ResponseError> {
        let response = Response::parse(response, true)?;
        let mut reader = Reader::new(response.parameters);
        let public = TpmtPublic::decode(reader.tpm2b(limits::MAX_PUBLIC_LEN)?)?;
        // creationData, creationHash and the ticket (tag, hierarchy, digest) say nothing that we would rely on.
        reader.tpm2b(MAX_RESPONSE_LEN)?;
        reader.tpm2b(Digest::MAX_LEN)?;
        reader.u16()?;
        reader.u32()?;
        reader.tpm2b(Digest::MAX_LEN)?;
        let name = checked_name(&public, &mut reader)?;
        reader.finish()?;
        let handle = response.handle.ok_or(CodecError::Truncated)?;
        Ok(Self { handle, public, name })
    }
}

/// TPM2_EvictControl (one authorisation, the owner's): makes a transient object persistent, or removes a persistent
/// one, where `object` is `persistent` itself.
pub fn evict_control(object: u32, persistent: u32) -> Command {
    let mut parameters = Out::new();
    parameters.u32(persistent);
    Command::new(EVICT_CONTROL, &[Entity::handle(TPM_RH_OWNER), Entity::handle(object)], parameters)
}

// Credentials and policies.

/// TPM2_StartAuthSession of a policy session without salt, binding or encryption. `nonce` is random.
pub fn start_policy_session(nonce: &[u8; 32]) -> Command {
    let mut parameters = Out::new();
    parameters.tpm2b(nonce).tpm2b(&[]).u8(TPM_SE_POLICY).u16(alg::TPM_ALG_NULL).u16(HashAlg::Sha256.id());
    Command::new(START_AUTH_SESSION, &[Entity::handle(TPM_RH_NULL), Entity::handle(TPM_RH_NULL)], parameters)
}

/// The handle and nonce of a started session.
///
/// # Errors
/// As [`Response::parse`].
pub fn parse_started_session(response: &[u8]) -> Result<(u32, Digest), ResponseError> {
    let response = Response::parse(response, true)?;
    let mut reader = Reader::new(response.parameters);
    let nonce = Digest::new(reader.tpm2b(Digest::MAX_LEN)?)?;
    reader.finish()?;
    Ok((response.handle.ok_or(CodecError::Truncated)?, nonce))
}

/// TPM2_PolicySecret of `policy_session` by the endorsement hierarchy (one authorisation, its empty password).
pub fn policy_secret_endorsement(policy_session: u32) -> Command {
    let mut parameters = Out::new();
    // No nonceTPM, cpHashA, policyRef; no expiration.
    parameters.u16(0).u16(0).u16(0).u32(0);
    Command::new(POLICY_SECRET, &[Entity::handle(TPM_RH_ENDORSEMENT), Entity::handle(policy_session)], parameters)
}

/// TPM2_ActivateCredential (two authorisations: the AK's, the EK's). `id_object` and `encrypted_secret` are contents,
/// without the lengths of their TPM2B.
///
/// # Errors
/// [`CodecError::TooLong`] above [`limits::MAX_ID_OBJECT_LEN`] or [`limits::MAX_ENCRYPTED_SECRET_LEN`].
pub fn activate_credential(
    ak: Entity,
    ek: Entity,
    id_object: &[u8],
    encrypted_secret: &[u8],
) -> Result<Command, CodecError> {
    let mut parameters = Out::new();
    parameters.tpm2b(bounded(id_object, limits::MAX_ID_OBJECT_LEN)?);
    parameters.tpm2b(bounded(encrypted_secret, limits::MAX_ENCRYPTED_SECRET_LEN)?);
    Ok(Command::new(ACTIVATE_CREDENTIAL, &[ak, ek], parameters))
}

fn bounded(bytes: &[u8], max: usize) -> Result<&[u8], CodecError> {
    if bytes.len() <= max { Ok(bytes) } else { Err(CodecError::TooLong) }
}

// PCRs and quotes.

/// TPM2_Quote (one authorisation, the AK's) with the AK's own scheme.
///
/// # Errors
/// [`CodecError::TooLong`] if `qualifying_data` has more than 66 bytes; TPMs take at least as many as a SHA-256.
pub fn quote(ak: Entity, qualifying_data: &[u8], selection: &PcrSelectionList) -> Result<Command, CodecError> {
    let mut parameters = Out::new();
    parameters.tpm2b(bounded(qualifying_data, MAX_EXTRA_DATA_LEN)?).u16(alg::TPM_ALG_NULL);
    selection.encode_to(&mut parameters);
    Ok(Command::new(QUOTE, &[ak], parameters))
}

/// What TPM2_Quote returns, as the bytes that were signed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quoted<'a> {
    /// TPMS_ATTEST.
    pub attested: &'a [u8],
    /// TPMT_SIGNATURE over it.
    pub signature: &'a [u8],
}

impl<'a> Quoted<'a> {
    /// The answer to [`quote`]. Neither part is looked into.
    ///
    /// # Errors
    /// As [`Response::parse`]; [`CodecError::TooLong`] for parts that no message could carry.
    pub fn parse(response: &'a [u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(Response::parse(response, false)?.parameters);
        let attested = reader.tpm2b(limits::MAX_ATTEST_LEN)?;
        let signature = bounded(reader.rest(), limits::MAX_SIGNATURE_LEN)?;
        Ok(Self { attested, signature })
    }
}

/// TPM2_PCR_Read of as many PCRs as the TPM returns at once, usually eight.
pub fn pcr_read(selection: &PcrSelectionList) -> Command {
    let mut parameters = Out::new();
    selection.encode_to(&mut parameters);
    Command::new(PCR_READ, &[], parameters)
}

/// What TPM2_PCR_Read returns. Ask again for [`PcrSelectionList::without`] what is in `selection` until nothing is
/// left; a TPM that returns an empty selection does not have the rest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PcrRead {
    /// Changes whenever a PCR does (but for some that change at will): values of two reads belong together if equal.
    pub update_counter: u32,
    /// The PCRs that were read.
    pub selection: PcrSelectionList,
    /// Their values.
    pub values: PcrValues,
}

impl PcrRead {
    /// The answer to [`pcr_read`].
    ///
    /// # Errors
    /// As [`Response::parse`]; [`ResponseError::Pcr`] if the values do not fit the selection.
    pub fn parse(response: &[u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(Response::parse(response, false)?.parameters);
        let update_counter = reader.u32()?;
        let selection = PcrSelectionList::decode(&mut reader)?;
        let count = reader.u32()?;
        let mut values = PcrValues::new();
        let mut pcrs = selection.pcrs();
        for _ in 0..count {
            let (bank, index) = pcrs.next().ok_or(CodecError::BadValue)?;
            values.set(bank, index, Digest::new(reader.tpm2b(Digest::MAX_LEN)?)?)?;
        }
        if let Some((bank, index)) = pcrs.next() {
            return Err(PcrError::Missing { bank, index }.into());
        }
        drop(pcrs);
        reader.finish()?;
        Ok(Self { update_counter, selection, values })
    }
}

/// TPM2_PCR_Event (one authorisation, the empty password): extends every bank of the PCR by its hash of `data`.
///
/// # Errors
/// [`CodecError::TooLong`] above [`MAX_EVENT_LEN`].
pub fn pcr_event(pcr: u8, data: &[u8]) -> Result<Command, CodecError> {
    let mut parameters = Out::new();
    parameters.tpm2b(bounded(data, MAX_EVENT_LEN)?);
    Ok(Command::new(PCR_EVENT, &[Entity::handle(u32::from(pcr))], parameters))
}

/// TPM2_PCR_Extend (one authorisation, the empty password) of one bank.
///
/// # Errors
/// [`CodecError::BadValue`] if the digest has not the bank's length.
pub fn pcr_extend(pcr: u8, bank: HashAlg, digest: &Digest) -> Result<Command, CodecError> {
    bank.read_digest(digest)?;
    let mut parameters = Out::new();
    parameters.u32(1).u16(bank.id()).put(digest);
    Ok(Command::new(PCR_EXTEND, &[Entity::handle(u32::from(pcr))], parameters))
}

// NV.

/// TPM2_NV_ReadPublic.
pub fn nv_read_public(index: u32) -> Command {
    Command::new(NV_READ_PUBLIC, &[Entity::handle(index)], Out::new())
}

/// TPMS_NV_PUBLIC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NvPublic {
    /// The index.
    pub index: u32,
    /// Hash of its Name.
    pub name_alg: HashAlg,
    /// TPMA_NV.
    pub attributes: u32,
    /// Bytes it holds.
    pub data_len: u16,
    /// Its Name, checked.
    pub name: Name,
}

impl NvPublic {
    /// TPMA_NV_AUTHREAD: readable with the index's own, usually empty, authorisation.
    pub const AUTH_READ: u32 = 1 << 18;
    /// TPMA_NV_WRITTEN.
    pub const WRITTEN: u32 = 1 << 29;

    /// The answer to [`nv_read_public`].
    ///
    /// # Errors
    /// As [`Response::parse`]; [`ResponseError::WrongName`].
    pub fn parse(response: &[u8]) -> Result<Self, ResponseError> {
        let mut reader = Reader::new(Response::parse(response, false)?.parameters);
        let public = reader.tpm2b(MAX_RESPONSE_LEN)?;
        let name = Name::decode(reader.tpm2b(Name::MAX_LEN)?)?;
        reader.finish()?;
        let mut reader = Reader::new(public);
        let (index, name_alg, attributes) = (reader.u32()?, HashAlg::decode(&mut reader)?, reader.u32()?);
        reader.tpm2b(Digest::MAX_LEN)?;
        let data_len = reader.u16()?;
        reader.finish()?;
        if name != Name::over(name_alg, &[public]) {
            return Err(ResponseError::WrongName);
        }
        Ok(Self { index, name_alg, attributes, data_len, name })
    }
}

/// TPM2_NV_Read of `len` bytes (at most [`MAX_NV_READ_LEN`]) from `offset`, authorised by the index itself (one
/// authorisation).
pub fn nv_read(index: Entity, offset: u16, len: u16) -> Command {
    let mut parameters = Out::new();
    parameters.u16(len.min(MAX_NV_READ_LEN)).u16(offset);
    Command::new(NV_READ, &[index, index], parameters)
}

/// The bytes that [`nv_read`] read.
///
/// # Errors
/// As [`Response::parse`].
pub fn parse_nv_data(response: &[u8]) -> Result<&[u8], ResponseError> {
    let mut reader = Reader::new(Response::parse(response, false)?.parameters);
    let data = reader.tpm2b(usize::from(MAX_NV_READ_LEN))?;
    reader.finish()?;
    Ok(data)
}
