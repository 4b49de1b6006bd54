//! Sealing a payload: the library that runs where the operator is.
//!
//! K_b is made here, used here and wiped here. What leaves is ciphertext, the signed manifest, and U and V sealed to
//! their roles' pinned public keys. Gathering the files is [`container`](super::container)'s, sending is the caller's.

use alloc::vec::Vec;
use core::num::NonZeroU64;

use rand_core::CryptoRngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::hash::sha256;
use super::manifest::{MANIFEST_LEN, Manifest, ManifestError, SIGNATURE_LEN, TenantSigningKey};
use super::payload::{CHUNK_LEN, PayloadError, PayloadSealer, SEALED_CHUNK_LEN, chunk_count, ciphertext_len};
use super::role_key::{RolePublicKey, TenantHolding, seal_v_at_rest};
use super::secret::Kb;
use super::share::{SealedShare, ShareError};
use crate::id::{SealingId, Subject};
use crate::limits::MAX_PAYLOAD_LEN;

/// What is to be sealed, for whom, and how the manifest describes it.
#[derive(Clone, Copy, Debug)]
pub struct SealOptions {
    /// Whom the payload is for.
    pub subject: Subject,
    /// Which payload it is, across sealings and versions.
    pub payload_id: [u8; 16],
    /// Which version of it, ascending.
    pub version: u64,
    /// Whether its `autorun` is to be run.
    pub autorun: bool,
    /// After this second since 1970 it is not to be accepted; none for ever.
    pub not_after: Option<NonZeroU64>,
}

/// The operator's keys: its own that signs, and those of the two roles, pinned.
#[derive(Clone, Copy, Debug)]
pub struct SealKeys<'a> {
    /// Signs the manifest.
    pub signing: &'a TenantSigningKey,
    /// Gets U.
    pub tenant: &'a RolePublicKey,
    /// Gets V.
    pub verifier: &'a RolePublicKey,
}

/// A finished sealing, without the ciphertext, which went out chunk by chunk. Nothing here is secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sealing {
    /// Its id.
    pub sealing_id: SealingId,
    /// The manifest's bytes.
    pub manifest: [u8; MANIFEST_LEN],
    /// The tenant's signature over them, r ‖ s.
    pub signature: [u8; SIGNATURE_LEN],
    /// U, confirm key, key tag and manifest digest, sealed to the tenant role.
    pub u_sealed: SealedShare,
    /// V, sealed to the verifier role.
    pub v_sealed: SealedShare,
}

/// Why a payload was not sealed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum SealError<E: core::error::Error + 'static> {
    #[error("the payload could not be encrypted")]
    Payload(#[from] PayloadError),
    #[error("the manifest could not be made")]
    Manifest(#[from] ManifestError),
    #[error("a share could not be sealed to its role")]
    Share(#[from] ShareError),
    #[error("the ciphertext was not taken")]
    Sink(#[source] E),
}

/// Seals one payload under a new K_b and a new sealing id.
///
/// `chunk` gets the ciphertext in order, each piece [`SEALED_CHUNK_LEN`] bytes and the last what is left: one row each.
///
/// # Errors
/// [`PayloadError::TooLong`] above [`MAX_PAYLOAD_LEN`], before anything is done; what `chunk` returns; the others are
/// excluded by checked keys.
pub fn seal<E: core::error::Error + 'static>(
    options: &SealOptions,
    plaintext: &[u8],
    keys: &SealKeys<'_>,
    rng: &mut impl CryptoRngCore,
    mut chunk: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Sealing, SealError<E>> {
    let plaintext_len = plaintext.len() as u64;
    if plaintext_len > MAX_PAYLOAD_LEN {
        return Err(PayloadError::TooLong.into());
    }
    let SealOptions { subject, payload_id, version, autorun, not_after } = *options;
    let mut sealing_id = SealingId([0; 16]);
    rng.fill_bytes(&mut sealing_id.0);
    let kb = Kb::generate(rng);

    let mut sealer = PayloadSealer::new(&kb.payload_key(subject, sealing_id), subject, sealing_id);
    let mut digest = Sha256::new();
    let mut buffer = Zeroizing::new(Vec::with_capacity(SEALED_CHUNK_LEN.min(plaintext.len().saturating_add(64))));
    let mut rest = plaintext;
    for left in (0..chunk_count(plaintext_len)).rev() {
        let (head, tail) = rest.split_at_checked(CHUNK_LEN).unwrap_or((rest, &[]));
        rest = tail;
        buffer.clear();
        buffer.extend_from_slice(head);
        sealer.seal_chunk(&mut buffer, left == 0)?;
        digest.update(&*buffer);
        chunk(&buffer).map_err(SealError::Sink)?;
    }

    let key_tag = kb.key_tag(subject, sealing_id);
    let manifest = Manifest {
        subject,
        payload_id,
        version,
        sealing_id,
        ciphertext_len: ciphertext_len(plaintext_len),
        ciphertext_digest: digest.finalize().into(),
        plaintext_len,
        key_tag,
        autorun,
        not_after,
    }
    .encode()?;

    let (u, v) = kb.split(rng);
    let holding = TenantHolding {
        u,
        confirm_key: kb.confirm_key(subject, sealing_id),
        key_tag,
        manifest_digest: sha256(&[&manifest]),
    };
    Ok(Sealing {
        sealing_id,
        signature: keys.signing.sign(&manifest),
        manifest,
        u_sealed: holding.seal(keys.tenant, subject, sealing_id, rng)?,
        v_sealed: seal_v_at_rest(keys.verifier, subject, sealing_id, &v, rng)?,
    })
}
