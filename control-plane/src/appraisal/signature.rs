//! TPM signatures of any scheme over any bytes, by keys that need not be ours: ECDSA on P-256, P-384 and P-521, RSASSA
//! and RSAPSS of 2048, 3072 and 4096 bits.
//!
//! ring verifies what it can. Left to others here are ECDSA with a hash of another length than the curve's, P-521, and
//! RSAPSS: TPMs make its salt as long as fits, or as long as the hash, so a salt of any length is right. Our own nodes'
//! quotes take the shorter way of [`quote`](super::quote), by the exact template; what a key may be used for is judged
//! elsewhere too.

pub mod key;

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use protocol::{
    codec::{CodecError, Reader},
    tpm::{
        alg::{self, HashAlg},
        rsa,
    },
};
use ring::signature;

pub use key::{AttestationKey, Curve, KeyError, PublicArea};
use key::{Key, RsaKey};

/// The longest number of an ECDSA signature that is read, in bytes: TPM2B_ECC_PARAMETER of the largest TPMs. Whether it
/// fits the curve is judged when it is verified.
const MAX_NUMBER_LEN: usize = 128;
/// The longest RSA signature: 4096 bits.
const MAX_RSA_LEN: usize = 512;

/// A signature scheme of a TPM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// TPM_ALG_ECDSA.
    Ecdsa,
    /// TPM_ALG_RSASSA, PKCS #1 v1.5.
    Rsassa,
    /// TPM_ALG_RSAPSS.
    Rsapss,
}

impl Scheme {
    /// Its name, as tools write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ecdsa => "ecdsa",
            Self::Rsassa => "rsassa",
            Self::Rsapss => "rsapss",
        }
    }

    /// The scheme with this TPM_ALG_ID.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            alg::TPM_ALG_ECDSA => Some(Self::Ecdsa),
            alg::TPM_ALG_RSASSA => Some(Self::Rsassa),
            alg::TPM_ALG_RSAPSS => Some(Self::Rsapss),
            _ => None,
        }
    }
}

/// Why bytes are no TPMT_SIGNATURE that is read here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum FormError {
    #[error("malformed TPMT_SIGNATURE")]
    Malformed(#[from] CodecError),
    #[error("signature algorithm 0x{0:04x} is none of ECDSA, RSASSA, RSAPSS")]
    UnknownAlgorithm(u16),
    #[error("hash algorithm 0x{0:04x} of the signature is none of SHA-1, SHA-256, SHA-384, SHA-512")]
    UnknownHash(u16),
}

impl FormError {
    /// Its short name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(CodecError::Truncated) => "signature_truncated",
            Self::Malformed(CodecError::TrailingBytes) => "signature_trailing_bytes",
            Self::Malformed(CodecError::TooLong) => "signature_too_long",
            Self::Malformed(_) => "signature_malformed",
            Self::UnknownAlgorithm(_) => "signature_unknown_algorithm",
            Self::UnknownHash(_) => "signature_unknown_hash",
        }
    }
}

/// Why a signature does not verify.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum VerifyError {
    #[error("a signature by {scheme} of a key of another type", scheme = .0.name())]
    KeyType(Scheme),
    #[error(
        "the key signs by {} with {} only, and this is {} with {}",
        fixed.0.name(), fixed.1, found.0.name(), found.1
    )]
    OtherScheme { fixed: (Scheme, HashAlg), found: (Scheme, HashAlg) },
    #[error("what was signed is hashed with SHA-1")]
    Sha1,
    #[error("a number of the signature is zero, or not below the order of the curve")]
    OutOfRange,
    #[error("the signature has {found} bytes, and the key's modulus {modulus}")]
    Length { modulus: usize, found: usize },
    #[error("the signature does not verify")]
    Bad,
}

impl VerifyError {
    /// Its short name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::KeyType(_) => "signature_key_type",
            Self::OtherScheme { .. } => "signature_scheme_mismatch",
            Self::Sha1 => "signature_sha1",
            Self::OutOfRange => "signature_out_of_range",
            Self::Length { .. } => "signature_length",
            Self::Bad => "bad_signature",
        }
    }
}

/// TPMT_SIGNATURE (TPM 2.0 Part 2), borrowed from its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TpmSignature<'a> {
    scheme: Scheme,
    hash: HashAlg,
    /// r and s; or the RSA signature, and nothing.
    numbers: (&'a [u8], &'a [u8]),
}

impl<'a> TpmSignature<'a> {
    /// Decodes a whole TPMT_SIGNATURE; every byte must be used.
    ///
    /// # Errors
    /// [`FormError`], and the offset in bytes at which the reading stopped.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, (FormError, usize)> {
        let mut reader = Reader::new(bytes);
        Self::read(&mut reader).map_err(|error| (error, bytes.len().saturating_sub(reader.remaining())))
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, FormError> {
        // An error names the offset of its field, not of what follows it.
        let id = peek(reader)?;
        let scheme = Scheme::from_id(id).ok_or(FormError::UnknownAlgorithm(id))?;
        reader.u16()?;
        let id = peek(reader)?;
        let hash = HashAlg::from_id(id).ok_or(FormError::UnknownHash(id))?;
        reader.u16()?;
        let numbers = match scheme {
            Scheme::Ecdsa => (sized(reader, MAX_NUMBER_LEN)?, sized(reader, MAX_NUMBER_LEN)?),
            Scheme::Rsassa | Scheme::Rsapss => (sized(reader, MAX_RSA_LEN)?, &[][..]),
        };
        reader.finish()?;
        Ok(Self { scheme, hash, numbers })
    }

    /// Its scheme.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The hash of what was signed; a quote's PCR digest is made with the same.
    pub const fn hash(&self) -> HashAlg {
        self.hash
    }
}

/// Two bytes that stay where they are.
fn peek(reader: &Reader<'_>) -> Result<u16, CodecError> {
    let mut ahead = *reader;
    ahead.u16()
}

/// A TPM2B, read whole or not at all.
fn sized<'a>(reader: &mut Reader<'a>, max: usize) -> Result<&'a [u8], CodecError> {
    let mut ahead = *reader;
    let value = ahead.tpm2b(max)?;
    *reader = ahead;
    Ok(value)
}

impl AttestationKey {
    /// Verifies a signature over `message`.
    ///
    /// A key whose scheme is fixed in its public area signs by that alone; a SHA-1 signature counts only with
    /// `allow_sha1`. ECDSA signatures with a large s are as good as their twins: TPMs make both.
    ///
    /// # Errors
    /// [`VerifyError`].
    ///
    /// FIPS 186-5 §6.4.2; RFC 8017 §8.1.2, §8.2.2.
    pub fn verify(&self, message: &[u8], signature: &TpmSignature<'_>, allow_sha1: bool) -> Result<(), VerifyError> {
        let found = (signature.scheme, signature.hash);
        match (self.key(), signature.scheme) {
            (Key::Ecc { .. }, Scheme::Ecdsa) | (Key::Rsa(_), Scheme::Rsassa | Scheme::Rsapss) => {}
            _ => return Err(VerifyError::KeyType(signature.scheme)),
        }
        if let Some(fixed) = self.area().and_then(PublicArea::scheme)
            && fixed != found
        {
            return Err(VerifyError::OtherScheme { fixed, found });
        }
        if signature.hash == HashAlg::Sha1 && !allow_sha1 {
            return Err(VerifyError::Sha1);
        }
        match self.key() {
            Key::Ecc { curve, point } => ecdsa(*curve, point, message, signature),
            Key::Rsa(key) => {
                let (bytes, _) = signature.numbers;
                if bytes.len() != key.modulus.len() {
                    return Err(VerifyError::Length { modulus: key.modulus.len(), found: bytes.len() });
                }
                if signature.scheme == Scheme::Rsapss {
                    rsapss(key, message, signature.hash, bytes)
                } else {
                    rsassa(key, message, signature.hash, bytes)
                }
            }
        }
    }
}

fn rsassa(key: &RsaKey, message: &[u8], hash: HashAlg, bytes: &[u8]) -> Result<(), VerifyError> {
    let algorithm = match hash {
        HashAlg::Sha1 => &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        HashAlg::Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        HashAlg::Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        HashAlg::Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
    };
    let exponent = key.exponent.to_be_bytes();
    let exponent = exponent.iter().position(|byte| *byte != 0).and_then(|at| exponent.get(at..)).unwrap_or_default();
    signature::RsaPublicKeyComponents { n: key.modulus.as_slice(), e: exponent }
        .verify(algorithm, message, bytes)
        .map_err(|_| VerifyError::Bad)
}

/// EMSA-PSS-VERIFY (RFC 8017 §9.1.2) with MGF1 of the same hash and a salt of any length, as a modulus of whole bytes has
/// it.
fn rsapss(key: &RsaKey, message: &[u8], hash: HashAlg, bytes: &[u8]) -> Result<(), VerifyError> {
    let encoded = rsa::public_operation(&key.modulus, key.exponent, bytes).ok_or(VerifyError::Bad)?;
    if is_pss_of(&encoded, &hash.digest(&[message]), hash) { Ok(()) } else { Err(VerifyError::Bad) }
}

fn is_pss_of(encoded: &[u8], digest: &[u8], hash: HashAlg) -> bool {
    let Some((0xbc, encoded)) = encoded.split_last() else { return false };
    let Some((masked, seal)) = encoded.len().checked_sub(hash.digest_len()).and_then(|at| encoded.split_at_checked(at))
    else {
        return false;
    };
    // A modulus of 8·k bits leaves one bit of the first byte unused.
    if masked.first().is_none_or(|first| first & 0x80 != 0) {
        return false;
    }
    let mut block = masked.to_vec();
    for (counter, chunk) in (0u32..).zip(block.chunks_mut(hash.digest_len())) {
        let mask = hash.digest(&[seal, &counter.to_be_bytes()]);
        chunk.iter_mut().zip(mask.iter()).for_each(|(byte, mask)| *byte ^= mask);
    }
    if let Some(first) = block.first_mut() {
        *first &= 0x7f;
    }
    let zeros = block.iter().take_while(|byte| **byte == 0).count();
    let Some((1, salt)) = block.get(zeros..).and_then(<[u8]>::split_first) else { return false };
    hash.digest(&[&[0; 8], digest, salt]).as_bytes() == seal
}

fn ecdsa(curve: Curve, point: &[u8], message: &[u8], signed: &TpmSignature<'_>) -> Result<(), VerifyError> {
    let len = curve.field_len();
    let (r, s) = signed.numbers;
    let fixed = [padded(r, len)?, padded(s, len)?].concat();
    let with_ring = ring_algorithm(curve, signed.hash);
    // The range is told apart from a wrong signature by whoever knows the order; ring does not.
    macro_rules! by_crate {
        ($curve:ident) => {{
            let numbers = $curve::ecdsa::Signature::from_slice(&fixed).map_err(|_| VerifyError::OutOfRange)?;
            match with_ring {
                Some(algorithm) => signature::UnparsedPublicKey::new(algorithm, point)
                    .verify(message, &fixed)
                    .map_err(|_| VerifyError::Bad),
                None => $curve::ecdsa::VerifyingKey::from_sec1_bytes(point)
                    .and_then(|key| key.verify_prehash(&prehash(message, signed.hash, len), &numbers))
                    .map_err(|_| VerifyError::Bad),
            }
        }};
    }
    match curve {
        Curve::P256 => by_crate!(p256),
        Curve::P384 => by_crate!(p384),
        Curve::P521 => by_crate!(p521),
    }
}

/// The digest as the number that ECDSA signs: its leftmost bits, as long as the field where it is shorter (a short digest
/// is a small number; the crates ask for half a field at least).
fn prehash(message: &[u8], hash: HashAlg, field_len: usize) -> Vec<u8> {
    let digest = hash.digest(&[message]);
    let mut prehash = vec![0; field_len.saturating_sub(digest.len())];
    prehash.extend_from_slice(&digest);
    prehash
}

fn ring_algorithm(curve: Curve, hash: HashAlg) -> Option<&'static dyn signature::VerificationAlgorithm> {
    match (curve, hash) {
        (Curve::P256, HashAlg::Sha256) => Some(&signature::ECDSA_P256_SHA256_FIXED),
        (Curve::P384, HashAlg::Sha384) => Some(&signature::ECDSA_P384_SHA384_FIXED),
        _ => None,
    }
}

/// A number at the length of the field, whatever zeros it began with.
fn padded(number: &[u8], len: usize) -> Result<Vec<u8>, VerifyError> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let number = number.get(zeros..).unwrap_or_default();
    let mut fixed = vec![0; len.checked_sub(number.len()).ok_or(VerifyError::OutOfRange)?];
    fixed.extend_from_slice(number);
    Ok(fixed)
}

#[cfg(test)]
mod tests;
