//! TPM2_MakeCredential in software: a secret that only a TPM holding both an EK and the object of a given Name learns.
//!
//! Whose EK it is, and which Name, is for the caller to know. Opening is TPM2_ActivateCredential, in
//! [`command`](super::command).

use alloc::vec::Vec;

use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

pub use super::seed::SeedError;
use super::{
    kdf::{Direction, aes_cfb, kdfa},
    public::{Name, Symmetric, TpmtPublic},
    seed::{self, Purpose, SharedSeed},
    wire::Out,
};

/// Why no credential could be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum CredentialError {
    #[error("the endorsement key cannot be used")]
    Key(#[from] SeedError),
    #[error("the secret is longer than a digest of the endorsement key's nameAlg")]
    SecretTooLong,
}

/// What TPM2_MakeCredential returns, without the lengths that its two TPM2B begin with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Credential {
    /// Contents of the TPM2B_ID_OBJECT: integrity HMAC (itself a TPM2B) and encrypted secret.
    pub id_object: Vec<u8>,
    /// Contents of the TPM2B_ENCRYPTED_SECRET: an OAEP ciphertext, or an ephemeral point.
    pub encrypted_secret: Vec<u8>,
}

/// Makes a credential for the object named `object_name` beside the key `ek`. `secret` has at most as many bytes as a
/// digest of the EK's nameAlg; 32 always fit.
///
/// # Errors
/// [`CredentialError::Key`] for a key that is no storage key, not on its curve, or RSA of another size than 2048 bits;
/// [`CredentialError::SecretTooLong`].
///
/// TPM 2.0 Part 1, "Credential Protection"; Part 3, TPM2_MakeCredential.
pub fn make_credential(
    ek: &TpmtPublic,
    object_name: &Name,
    secret: &[u8],
    rng: &mut impl CryptoRngCore,
) -> Result<Credential, CredentialError> {
    wrap(ek, object_name, secret, seed::share(ek, Purpose::Identity, rng)?)
}

fn wrap(ek: &TpmtPublic, object_name: &Name, secret: &[u8], seed: SharedSeed) -> Result<Credential, CredentialError> {
    if secret.len() > ek.name_alg.digest_len() {
        return Err(CredentialError::SecretTooLong);
    }
    let keys = BlobKeys::derive(ek, object_name, seed.expose())?;
    let mut identity = Out::new();
    identity.tpm2b(secret);
    let mut identity = identity.into_vec();
    if !aes_cfb(Direction::Encrypt, keys.symmetric(), &[0; 16], &mut identity) {
        return Err(SeedError::NotAStorageKey.into());
    }
    let integrity = ek.name_alg.hmac(keys.hmac(), &[&identity, object_name]);
    let mut id_object = Out::new();
    id_object.tpm2b(&integrity).put(&identity);
    Ok(Credential { id_object: id_object.into_vec(), encrypted_secret: seed.encrypted })
}

/// The two keys of one blob.
struct BlobKeys {
    buf: Zeroizing<[u8; 32 + 64]>,
    symmetric_len: usize,
    hmac_len: usize,
}

impl BlobKeys {
    fn derive(ek: &TpmtPublic, object_name: &Name, seed: &[u8]) -> Result<Self, SeedError> {
        let symmetric_len = match ek.symmetric() {
            Symmetric::Aes128Cfb => 16,
            Symmetric::Aes256Cfb => 32,
            Symmetric::Null => return Err(SeedError::NotAStorageKey),
        };
        let hmac_len = ek.name_alg.digest_len();
        let mut keys = Self { buf: Zeroizing::new([0; 96]), symmetric_len, hmac_len };
        let (symmetric, hmac) = keys.buf.split_at_mut(32);
        let symmetric = symmetric.get_mut(..symmetric_len).unwrap_or_default();
        let hmac = hmac.get_mut(..hmac_len).unwrap_or_default();
        kdfa(ek.name_alg, seed, b"STORAGE", object_name, &[], symmetric);
        kdfa(ek.name_alg, seed, b"INTEGRITY", &[], &[], hmac);
        Ok(keys)
    }

    fn symmetric(&self) -> &[u8] {
        self.buf.get(..self.symmetric_len).unwrap_or_default()
    }

    fn hmac(&self) -> &[u8] {
        self.buf.split_at(32).1.get(..self.hmac_len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
