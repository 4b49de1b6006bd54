//! A salted HMAC session with parameter encryption: what a secret needs on its way between a TPM and this program.
//!
//! It protects only if the salt went to a key whose certificate or identity was checked. It authorises nothing: it is
//! added behind the passwords and policies of a command, to encrypt parameters and to authenticate the answer.

use alloc::vec::Vec;

use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    alg::{self, Digest, HashAlg},
    command::{Auth, Command, Entity, Response, ResponseError, TPM_RH_NULL, put_auth},
    kdf::{Direction, aes_cfb, kdfa},
    public::TpmtPublic,
    seed::{self, Purpose, SeedError},
    wire::Out,
};
use crate::codec::{CodecError, Reader};

/// Hash of every session here.
const SESSION_HASH: HashAlg = HashAlg::Sha256;
/// Length of its digests, its key, and the nonces we make.
const SESSION_LEN: usize = 32;
/// AES-128 key and initialisation vector.
const CIPHER_LEN: usize = 16 + 16;

/// TPM_SE_HMAC.
const TPM_SE_HMAC: u8 = 0x00;
/// TPMA_SESSION: continueSession, decrypt (command parameter), encrypt (response parameter).
const CONTINUE: u8 = 0x01;
const DECRYPT: u8 = 0x20;
const ENCRYPT: u8 = 0x40;

/// Why a session could not be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum SessionError {
    #[error("the key for the salt cannot be used")]
    Key(#[from] SeedError),
    #[error(transparent)]
    Response(#[from] ResponseError),
    #[error("the answer's HMAC is wrong: it was changed on its way, or is not from the TPM that holds the key")]
    BadHmac,
    #[error("the answer's session attributes are not those asked for")]
    BadAttributes,
    #[error("the Name of a handle is needed in a session and was not given")]
    NameUnknown,
    #[error("the first parameter has no length and cannot be encrypted")]
    NotEncryptable,
    #[error("no command of this session waits for an answer")]
    OutOfOrder,
    #[error("too many authorisations for one command")]
    TooManyAuths,
}

impl From<CodecError> for SessionError {
    fn from(error: CodecError) -> Self {
        Self::Response(ResponseError::Malformed(error))
    }
}

/// What a session does for one command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Protect {
    /// Encrypt the first parameter of the command; it must be a TPM2B.
    pub command: bool,
    /// Have the first parameter of the answer encrypted; it must be a TPM2B.
    pub response: bool,
    /// Keep the session afterwards; otherwise the TPM flushes it if the command succeeds.
    pub keep: bool,
}

impl Protect {
    /// Encrypted answer, session kept.
    pub const RESPONSE: Self = Self { command: false, response: true, keep: true };

    const fn attributes(self) -> u8 {
        (if self.keep { CONTINUE } else { 0 })
            | (if self.command { DECRYPT } else { 0 })
            | (if self.response { ENCRYPT } else { 0 })
    }
}

/// A session that the TPM has not answered yet.
pub struct StartingSession {
    salt: seed::SharedSeed,
    nonce_caller: [u8; SESSION_LEN],
}

/// A started session. Its key is wiped on drop; [`handle`](Self::handle) stays taken in the TPM until it is flushed.
pub struct Session {
    handle: u32,
    key: Zeroizing<[u8; SESSION_LEN]>,
    nonce_caller: [u8; SESSION_LEN],
    nonce_tpm: Digest,
    pending: Option<Pending>,
}

/// The command that waits for its answer.
#[derive(Clone, Copy)]
struct Pending {
    code: u32,
    has_handle: bool,
    auth_count: usize,
    attributes: u8,
}

/// Most authorisations of one command, ours included (TPM 2.0 Part 1: MAX_SESSION_NUM).
const MAX_AUTHS: usize = 3;

impl StartingSession {
    /// Makes TPM2_StartAuthSession for an HMAC session salted to `key`, which is loaded at `key_handle`: SHA-256,
    /// AES-128-CFB, not bound to anything.
    ///
    /// # Errors
    /// [`SeedError`] for a key that is no storage key or cannot be used.
    ///
    /// TPM 2.0 Part 1, "Session-Based Authorizations"; Part 3, TPM2_StartAuthSession.
    pub fn new(key: &TpmtPublic, key_handle: u32, rng: &mut impl CryptoRngCore) -> Result<(Self, Command), SeedError> {
        let salt = seed::share(key, Purpose::SessionSalt, rng)?;
        let mut nonce_caller = [0; SESSION_LEN];
        rng.fill_bytes(&mut nonce_caller);
        let mut parameters = Out::new();
        parameters.tpm2b(&nonce_caller).tpm2b(&salt.encrypted).u8(TPM_SE_HMAC);
        parameters.u16(alg::TPM_ALG_AES).u16(128).u16(alg::TPM_ALG_CFB).u16(SESSION_HASH.id());
        let handles = [Entity::handle(key_handle), Entity::handle(TPM_RH_NULL)];
        let command = Command::new(super::command::START_AUTH_SESSION, &handles, parameters);
        Ok((Self { salt, nonce_caller }, command))
    }

    /// Takes the TPM's answer.
    ///
    /// # Errors
    /// [`ResponseError`], if the TPM refused or answered what is no answer.
    pub fn finish(self, response: &[u8]) -> Result<Session, ResponseError> {
        let (handle, nonce_tpm) = super::command::parse_started_session(response)?;
        let mut key = Zeroizing::new([0; SESSION_LEN]);
        kdfa(SESSION_HASH, self.salt.expose(), b"ATH", &nonce_tpm, &self.nonce_caller, key.as_mut_slice());
        Ok(Session { handle, key, nonce_caller: self.nonce_caller, nonce_tpm, pending: None })
    }
}

impl Session {
    /// The session's handle, for TPM2_FlushContext.
    pub const fn handle(&self) -> u32 {
        self.handle
    }

    /// The command's bytes, with `auths` for its handles in order and this session behind them.
    ///
    /// If the TPM refuses the command, the session stays as it was and may protect another one.
    ///
    /// # Errors
    /// [`SessionError::NameUnknown`] if a handle of the command needs a Name and has none,
    /// [`SessionError::NotEncryptable`] if the first parameter is no TPM2B, [`SessionError::TooManyAuths`] above two.
    pub fn protect(
        &mut self,
        command: &Command,
        auths: &[Auth],
        protect: Protect,
        rng: &mut impl CryptoRngCore,
    ) -> Result<Vec<u8>, SessionError> {
        let auth_count = auths.len().saturating_add(1);
        if auth_count > MAX_AUTHS {
            return Err(SessionError::TooManyAuths);
        }
        rng.fill_bytes(&mut self.nonce_caller);
        let mut parameters = Zeroizing::new(command.parameters().to_vec());
        if protect.command {
            let first = first_parameter(&mut parameters).ok_or(SessionError::NotEncryptable)?;
            self.cipher(Direction::Encrypt, &self.nonce_caller, &self.nonce_tpm, first);
        }
        let attributes = protect.attributes();
        let mut hashed = Out::new();
        hashed.u32(command.code());
        for entity in command.handles() {
            hashed.put(&entity.name_bytes().ok_or(SessionError::NameUnknown)?);
        }
        hashed.put(&parameters);
        let cp_hash = SESSION_HASH.digest(&[hashed.as_slice()]);
        let hmac = self.hmac(&cp_hash, &self.nonce_caller, &self.nonce_tpm, attributes);

        let mut area = Out::new();
        auths.iter().for_each(|auth| put_auth(&mut area, *auth));
        area.u32(self.handle).tpm2b(&self.nonce_caller).u8(attributes).tpm2b(&hmac);
        self.pending =
            Some(Pending { code: command.code(), has_handle: command.returns_handle(), auth_count, attributes });
        Ok(command.with_auth_area(area.as_slice(), &parameters))
    }

    /// The decrypted parameters of the answer to the command that was protected last.
    ///
    /// # Errors
    /// [`SessionError::Response`] if the TPM refused (the session may be used again);
    /// [`SessionError::BadHmac`] if the answer is not from the TPM that holds the key; [`SessionError::BadAttributes`].
    pub fn open(&mut self, response: &[u8]) -> Result<Zeroizing<Vec<u8>>, SessionError> {
        let pending = self.pending.take().ok_or(SessionError::OutOfOrder)?;
        let response = Response::parse(response, pending.has_handle)?;
        let mut reader = Reader::new(response.auths);
        let mut ours = None;
        for _ in 0..pending.auth_count {
            let nonce = Digest::new(reader.tpm2b(Digest::MAX_LEN)?)?;
            let attributes = reader.u8()?;
            ours = Some((nonce, attributes, reader.tpm2b(Digest::MAX_LEN)?));
        }
        reader.finish()?;
        let (nonce_tpm, attributes, hmac) = ours.ok_or(SessionError::OutOfOrder)?;

        let code = pending.code.to_be_bytes();
        let rp_hash = SESSION_HASH.digest(&[&0u32.to_be_bytes(), &code, response.parameters]);
        let expected = self.hmac(&rp_hash, &nonce_tpm, &self.nonce_caller, attributes);
        if !bool::from(expected.as_bytes().ct_eq(hmac)) {
            return Err(SessionError::BadHmac);
        }
        if attributes != pending.attributes {
            return Err(SessionError::BadAttributes);
        }
        self.nonce_tpm = nonce_tpm;
        let mut parameters = Zeroizing::new(response.parameters.to_vec());
        if attributes & ENCRYPT != 0 {
            let first = first_parameter(&mut parameters).ok_or(CodecError::Truncated)?;
            self.cipher(Direction::Decrypt, &self.nonce_tpm, &self.nonce_caller, first);
        }
        Ok(parameters)
    }

    fn hmac(&self, parameter_hash: &[u8], nonce_newer: &[u8], nonce_older: &[u8], attributes: u8) -> Digest {
        SESSION_HASH.hmac(&*self.key, &[parameter_hash, nonce_newer, nonce_older, &[attributes]])
    }

    /// TPM 2.0 Part 1, "CFB Mode Parameter Encryption".
    fn cipher(&self, direction: Direction, nonce_newer: &[u8], nonce_older: &[u8], data: &mut [u8]) {
        let mut secret = Zeroizing::new([0u8; CIPHER_LEN]);
        kdfa(SESSION_HASH, &*self.key, b"CFB", nonce_newer, nonce_older, secret.as_mut_slice());
        let (key, iv) = secret.split_at(16);
        let mut iv_array = [0; 16];
        iv_array.copy_from_slice(iv);
        // The key has 16 bytes: this is never refused.
        let done = aes_cfb(direction, key, &iv_array, data);
        debug_assert!(done);
    }
}

/// Contents of the TPM2B that `parameters` begins with.
fn first_parameter(parameters: &mut [u8]) -> Option<&mut [u8]> {
    let (len, rest) = parameters.split_first_chunk_mut::<2>()?;
    rest.get_mut(..usize::from(u16::from_be_bytes(*len)))
}
