//! Signatures in a file's `security.ima`, as IMA lists carry them, against given keys. Which keys are trusted is the
//! policy's business.
//!
//! The attribute is: its type (3: a signature over the file's digest; 6: over the digest of an fs-verity file), version
//! (2 and 3), the hash algorithm as the kernel counts them, four bytes that name the key, length u16 big-endian, and the
//! signature: RSASSA-PKCS1-v1_5 or ECDSA in DER. (Linux, security/integrity/integrity.h and digsig_asymmetric.c.)

use protocol::tpm::{alg::HashAlg, rsa};
use x509_cert::{
    Certificate,
    der::{
        Decode, Encode,
        asn1::{AnyRef, ObjectIdentifier, UintRef},
    },
    ext::pkix::SubjectKeyIdentifier,
    spki::SubjectPublicKeyInfoRef,
};

/// The longest key or certificate that is read, in bytes.
pub const MAX_KEY_LEN: usize = 16 * 1024;

/// EVM_IMA_XATTR_DIGSIG.
const TYPE_DIGEST: u8 = 3;
/// IMA_VERITY_DIGSIG.
const TYPE_VERITY: u8 = 6;
/// Type, version, hash, key id, length.
const HEADER_LEN: usize = 9;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Why bytes are no key that file signatures are verified with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum KeyError {
    #[error("the key is longer than {MAX_KEY_LEN} bytes")]
    TooLong,
    #[error("no PUBLIC KEY and no CERTIFICATE in the PEM, or more than one")]
    BadPem,
    #[error("malformed certificate")]
    BadCertificate,
    #[error("malformed SubjectPublicKeyInfo")]
    BadSpki,
    #[error("neither RSA with 2048, 3072 or 4096 bits nor ECDSA on P-256 or P-384")]
    Unsupported,
}

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum SignatureError {
    #[error("malformed signature attribute")]
    Malformed,
    #[error("type {0} of the attribute is no signature over a digest of this kind")]
    Type(u8),
    #[error("version {0} of the signature's header is not known")]
    Version(u8),
    #[error("hash algorithm {0} of the signature is not known")]
    UnknownHash(u8),
    #[error("the signature is made with {signature} and the entry's digest with {digest}")]
    OtherHash { signature: HashAlg, digest: HashAlg },
    #[error("signed by key {id:08x}, which is none of the policy's", id = .0)]
    UnknownKey(u32),
    #[error("the signature does not verify under key {id:08x}", id = .0)]
    Bad(u32),
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Key {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    Rsa { modulus: Vec<u8>, exponent: u32 },
}

/// A key that file signatures are verified with, and the name they call it by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignatureKey {
    id: u32,
    spki: Vec<u8>,
    key: Key,
}

impl SignatureKey {
    /// From PEM: one `PUBLIC KEY` or `CERTIFICATE`.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        use rustls_pemfile::Item;
        if pem.len() > MAX_KEY_LEN {
            return Err(KeyError::TooLong);
        }
        let (item, rest) =
            rustls_pemfile::read_one_from_slice(pem.as_bytes()).ok().flatten().ok_or(KeyError::BadPem)?;
        if !matches!(rustls_pemfile::read_one_from_slice(rest), Ok(None)) {
            return Err(KeyError::BadPem);
        }
        match item {
            Item::SubjectPublicKeyInfo(spki) => Self::from_spki(&spki),
            Item::X509Certificate(certificate) => Self::from_certificate(&certificate),
            _ => Err(KeyError::BadPem),
        }
    }

    /// From a certificate in DER, as it stands in a keyring's entry. Nothing about the certificate is checked; the key's
    /// name is its SubjectKeyIdentifier's end, as the kernel has it, if it has one.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_certificate(der: &[u8]) -> Result<Self, KeyError> {
        if der.len() > MAX_KEY_LEN {
            return Err(KeyError::TooLong);
        }
        let certificate = Certificate::from_der(der).map_err(|_| KeyError::BadCertificate)?.tbs_certificate;
        let spki = certificate.subject_public_key_info.to_der().map_err(|_| KeyError::BadCertificate)?;
        let mut key = Self::from_spki(&spki)?;
        if let Ok(Some((_, named))) = certificate.get::<SubjectKeyIdentifier>()
            && let Some(id) = named.0.as_bytes().last_chunk::<4>()
        {
            key.id = u32::from_be_bytes(*id);
        }
        Ok(key)
    }

    /// From a SubjectPublicKeyInfo in DER. The key's name is the end of the SHA-1 of its bits.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        if der.len() > MAX_KEY_LEN {
            return Err(KeyError::TooLong);
        }
        let spki = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| KeyError::BadSpki)?;
        let bits = spki.subject_public_key.as_bytes().ok_or(KeyError::BadSpki)?;
        let key = match spki.algorithm.oid {
            RSA => rsa_key(bits)?,
            EC => match spki.algorithm.parameters_oid().map_err(|_| KeyError::BadSpki)? {
                P256 => Key::P256(p256::ecdsa::VerifyingKey::from_sec1_bytes(bits).map_err(|_| KeyError::BadSpki)?),
                P384 => Key::P384(p384::ecdsa::VerifyingKey::from_sec1_bytes(bits).map_err(|_| KeyError::BadSpki)?),
                _ => return Err(KeyError::Unsupported),
            },
            _ => return Err(KeyError::Unsupported),
        };
        let hash = HashAlg::Sha1.digest(&[bits]);
        let id = hash.last_chunk::<4>().map_or(0, |id| u32::from_be_bytes(*id));
        Ok(Self { id, spki: der.to_vec(), key })
    }

    /// The form in which it is remembered: its name, big-endian, and the SubjectPublicKeyInfo.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.id.to_be_bytes()[..], &self.spki].concat()
    }

    /// From the form in which it is remembered.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let (id, spki) = bytes.split_first_chunk::<4>().ok_or(KeyError::BadSpki)?;
        Ok(Self { id: u32::from_be_bytes(*id), ..Self::from_spki(spki)? })
    }

    /// What signatures call it by.
    pub const fn id(&self) -> u32 {
        self.id
    }

    fn verifies(&self, hash: HashAlg, digest: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Key::P256(key) => {
                use p256::ecdsa::{Signature, signature::hazmat::PrehashVerifier};
                Signature::from_der(signature)
                    .is_ok_and(|signature| key.verify_prehash(&prehash(digest, 32), &signature).is_ok())
            }
            Key::P384(key) => {
                use p384::ecdsa::{Signature, signature::hazmat::PrehashVerifier};
                Signature::from_der(signature)
                    .is_ok_and(|signature| key.verify_prehash(&prehash(digest, 48), &signature).is_ok())
            }
            Key::Rsa { modulus, exponent } => rsa::public_operation(modulus, *exponent, signature)
                .is_some_and(|encoded| encoded == pkcs1_encoding(modulus.len(), hash, digest)),
        }
    }
}

fn rsa_key(bits: &[u8]) -> Result<Key, KeyError> {
    let read = |any: AnyRef<'_>| {
        any.sequence(|reader| {
            let (n, e) = (UintRef::decode(reader)?, UintRef::decode(reader)?);
            Ok((n.as_bytes().to_vec(), e.as_bytes().to_vec()))
        })
    };
    let (modulus, exponent) = AnyRef::from_der(bits).and_then(read).map_err(|_| KeyError::BadSpki)?;
    let top_and_odd = modulus.first().is_some_and(|b| b & 0x80 != 0) && modulus.last().is_some_and(|b| b & 1 == 1);
    if !matches!(modulus.len(), 256 | 384 | 512) || !top_and_odd || exponent.len() > 4 {
        return Err(KeyError::Unsupported);
    }
    let exponent = exponent.iter().fold(0u32, |number, byte| (number << 8) | u32::from(*byte));
    if exponent < 3 || exponent & 1 == 0 {
        return Err(KeyError::Unsupported);
    }
    Ok(Key::Rsa { modulus, exponent })
}

/// The digest at the field's length at least: a shorter one is the same number, and the crates want it longer.
fn prehash(digest: &[u8], field_len: usize) -> Vec<u8> {
    let mut prehash = vec![0; field_len.saturating_sub(digest.len())];
    prehash.extend_from_slice(digest);
    prehash
}

/// EMSA-PKCS1-v1_5 (RFC 8017 §9.2): 00 01 ff… 00 DigestInfo, of which there is one way to write it.
fn pkcs1_encoding(len: usize, hash: HashAlg, digest: &[u8]) -> Vec<u8> {
    let prefix: &[u8] = match hash {
        HashAlg::Sha1 => &[0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14],
        HashAlg::Sha256 => &[
            0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04,
            0x20,
        ],
        HashAlg::Sha384 => &[
            0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04,
            0x30,
        ],
        HashAlg::Sha512 => &[
            0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04,
            0x40,
        ],
    };
    let mut encoded = vec![0, 1];
    encoded.resize(len.saturating_sub(prefix.len() + digest.len() + 1), 0xff);
    encoded.push(0);
    encoded.extend_from_slice(prefix);
    encoded.extend_from_slice(digest);
    encoded
}

/// The kernel's number of a hash algorithm (enum hash_algo, include/uapi/linux/hash_info.h).
const fn kernel_hash(number: u8) -> Option<HashAlg> {
    match number {
        2 => Some(HashAlg::Sha1),
        4 => Some(HashAlg::Sha256),
        5 => Some(HashAlg::Sha384),
        6 => Some(HashAlg::Sha512),
        _ => None,
    }
}

const fn kernel_number(hash: HashAlg) -> u8 {
    match hash {
        HashAlg::Sha1 => 2,
        HashAlg::Sha256 => 4,
        HashAlg::Sha384 => 5,
        HashAlg::Sha512 => 6,
    }
}

/// Verifies a signature attribute over a file's digest by one of `keys`.
///
/// `is_verity`: the digest is that of an fs-verity file; what is signed then is a hash over type, algorithm and digest.
/// A key is taken by the name in the signature, and what it signed has to be hashed as the entry's digest is.
///
/// # Errors
/// [`SignatureError`].
pub fn verify<'k>(
    keys: impl IntoIterator<Item = &'k SignatureKey>,
    attribute: &[u8],
    is_verity: bool,
    hash: HashAlg,
    digest: &[u8],
) -> Result<(), SignatureError> {
    let (header, signature) = attribute.split_first_chunk::<HEADER_LEN>().ok_or(SignatureError::Malformed)?;
    let [kind, version, number, i, j, k, l, high, low] = *header;
    let expected = if is_verity { (TYPE_VERITY, 3) } else { (TYPE_DIGEST, 2) };
    if kind != expected.0 {
        return Err(SignatureError::Type(kind));
    }
    if version != expected.1 {
        return Err(SignatureError::Version(version));
    }
    if usize::from(u16::from_be_bytes([high, low])) != signature.len() {
        return Err(SignatureError::Malformed);
    }
    let signed_hash = kernel_hash(number).ok_or(SignatureError::UnknownHash(number))?;
    if signed_hash != hash {
        return Err(SignatureError::OtherHash { signature: signed_hash, digest: hash });
    }
    let of_verity;
    let signed = if is_verity {
        // struct ima_file_id.
        of_verity = hash.digest(&[&[TYPE_VERITY, kernel_number(hash)], digest]);
        of_verity.as_bytes()
    } else {
        digest
    };
    let id = u32::from_be_bytes([i, j, k, l]);
    let mut result = Err(SignatureError::UnknownKey(id));
    for key in keys.into_iter().filter(|key| key.id == id) {
        if key.verifies(hash, signed, signature) {
            return Ok(());
        }
        result = Err(SignatureError::Bad(id));
    }
    result
}

#[cfg(test)]
pub(crate) mod tests;
