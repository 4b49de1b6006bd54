//! Attestation keys as they come in files: PEM or DER of a SubjectPublicKeyInfo or certificate, TPM2B_PUBLIC or
//! TPMT_PUBLIC. Read wider than our own template, since the key may be anybody's; what it has to be is judged by others.

use protocol::{
    codec::{CodecError, Reader},
    tpm::{
        alg::{self, HashAlg},
        public::{DEFAULT_EXPONENT, Name, ObjectAttributes, qualified_name},
    },
};
use x509_cert::der::{
    Decode,
    asn1::{AnyRef, ObjectIdentifier, UintRef},
};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::Scheme;
use crate::ek::{CertificateError, certificate_spki};

/// The longest file of a key: a certificate with much in it.
const MAX_LEN: usize = 16 * 1024;
/// The longest TPM2B field of a public area: an RSA-4096 modulus.
const MAX_FIELD_LEN: usize = 512;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");

/// Why bytes are no attestation key that is read here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum KeyError {
    #[error("malformed public area")]
    Malformed(#[from] CodecError),
    #[error("no PUBLIC KEY and no CERTIFICATE in the PEM")]
    BadPem,
    #[error("malformed SubjectPublicKeyInfo")]
    BadSpki,
    #[error("unreadable certificate")]
    BadCertificate(#[from] CertificateError),
    #[error("object type 0x{0:04x} is neither RSA nor ECC")]
    UnknownType(u16),
    #[error("unsupported algorithm 0x{0:04x} in the public area")]
    UnknownAlgorithm(u16),
    #[error("unsupported curve: only P-256, P-384 and P-521 are")]
    UnsupportedCurve,
    #[error("unsupported RSA key of {0} bits: only 2048, 3072 and 4096 are")]
    UnsupportedKeyBits(usize),
    #[error("the public area holds no key")]
    NotAKey,
    #[error("the point is not on the curve")]
    NotOnCurve,
    #[error("neither an RSA nor an EC key")]
    UnsupportedKey,
}

impl KeyError {
    /// Its short name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(CodecError::Truncated) => "ak_truncated",
            Self::Malformed(CodecError::TrailingBytes) => "ak_trailing_bytes",
            Self::Malformed(CodecError::TooLong) => "ak_too_long",
            Self::Malformed(_) => "ak_malformed",
            Self::BadPem => "ak_bad_pem",
            Self::BadSpki => "ak_bad_spki",
            Self::BadCertificate(_) => "ak_bad_certificate",
            Self::UnknownType(_) => "ak_unknown_type",
            Self::UnknownAlgorithm(_) => "ak_unknown_algorithm",
            Self::UnsupportedCurve => "ak_unsupported_curve",
            Self::UnsupportedKeyBits(_) => "ak_unsupported_size",
            Self::NotAKey => "ak_not_a_key",
            Self::NotOnCurve => "ak_not_on_curve",
            Self::UnsupportedKey => "ak_unsupported_key",
        }
    }
}

/// A curve of a key that is read here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

impl Curve {
    /// Length of a coordinate, and of a number of a signature, in bytes.
    pub const fn field_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The curve with this TPM_ECC_CURVE.
    const fn from_id(id: u16) -> Option<Self> {
        match id {
            3 => Some(Self::P256),
            4 => Some(Self::P384),
            5 => Some(Self::P521),
            _ => None,
        }
    }

    /// The uncompressed form of a SEC1 point that lies on the curve.
    fn point(self, sec1: &[u8]) -> Result<Vec<u8>, KeyError> {
        macro_rules! on {
            ($curve:ident) => {
                $curve::ecdsa::VerifyingKey::from_sec1_bytes(sec1)
                    .map(|key| key.to_encoded_point(false).as_bytes().to_vec())
            };
        }
        match self {
            Self::P256 => on!(p256),
            Self::P384 => on!(p384),
            Self::P521 => on!(p521),
        }
        .map_err(|_| KeyError::NotOnCurve)
    }
}

/// An RSA key: 2048, 3072 or 4096 bits, an odd exponent of at least 3.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct RsaKey {
    pub(super) modulus: Vec<u8>,
    pub(super) exponent: u32,
}

impl RsaKey {
    fn new(modulus: &[u8], exponent: u32) -> Result<Self, KeyError> {
        if !matches!(modulus.len(), 256 | 384 | 512) {
            return Err(KeyError::UnsupportedKeyBits(modulus.len().saturating_mul(8)));
        }
        let top_and_odd = modulus.first().is_some_and(|b| b & 0x80 != 0) && modulus.last().is_some_and(|b| b & 1 == 1);
        if !top_and_odd || exponent < 3 || exponent & 1 == 0 {
            return Err(KeyError::NotAKey);
        }
        Ok(Self { modulus: modulus.to_vec(), exponent })
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Key {
    /// The point in SEC1, uncompressed.
    Ecc {
        curve: Curve,
        point: Vec<u8>,
    },
    Rsa(RsaKey),
}

/// What a TPM says of a key beside the key itself: its TPMT_PUBLIC.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicArea {
    bytes: Vec<u8>,
    name_alg: HashAlg,
    attributes: ObjectAttributes,
    scheme: Option<(Scheme, HashAlg)>,
}

impl PublicArea {
    /// The TPMT_PUBLIC as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its objectAttributes.
    pub const fn attributes(&self) -> ObjectAttributes {
        self.attributes
    }

    /// The scheme it signs by, if that is fixed.
    pub const fn scheme(&self) -> Option<(Scheme, HashAlg)> {
        self.scheme
    }

    /// The key's Name.
    pub fn name(&self) -> Name {
        Name::over(self.name_alg, &[&self.bytes])
    }

    /// Its Qualified Name if it is a primary key of `hierarchy`.
    pub fn qualified_name(&self, hierarchy: u32) -> Option<Name> {
        qualified_name(hierarchy, &self.name())
    }
}

/// A key that quotes are verified with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttestationKey {
    key: Key,
    area: Option<PublicArea>,
}

impl AttestationKey {
    /// Reads a key in any of the forms that tools write: PEM (`PUBLIC KEY`, `CERTIFICATE`), DER of the same,
    /// TPM2B_PUBLIC, TPMT_PUBLIC.
    ///
    /// # Errors
    /// [`KeyError`], and the offset in bytes at which the reading stopped.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, (KeyError, usize)> {
        if bytes.len() > MAX_LEN {
            return Err((CodecError::TooLong.into(), MAX_LEN));
        }
        if let Some(at) = bytes.windows(11).position(|window| window == b"-----BEGIN ") {
            return Self::from_pem(bytes).map_err(|error| (error, at));
        }
        // DER of a key or certificate is a SEQUENCE of more than 127 bytes, or a P-256 key.
        if matches!(bytes, [0x30, 0x59 | 0x76 | 0x81 | 0x82, ..]) && !is_tpm2b(bytes) {
            let spki = Self::from_spki(bytes);
            return spki.or_else(|error| Self::from_certificate(bytes).map_err(|_| error)).map_err(|error| (error, 0));
        }
        let is_tpmt = matches!(bytes, [0, 1 | 0x23, 0, hash, ..] if HashAlg::from_id(u16::from(*hash)).is_some());
        if is_tpmt {
            return Self::from_tpmt(bytes);
        }
        let mut reader = Reader::new(bytes);
        let Ok(len) = reader.u16() else { return Err((CodecError::Truncated.into(), 0)) };
        match usize::from(len) {
            len if len > reader.remaining() => Err((CodecError::Truncated.into(), bytes.len())),
            len if len < reader.remaining() => Err((CodecError::TrailingBytes.into(), len.saturating_add(2))),
            _ => Self::from_tpmt(reader.rest()).map_err(|(error, at)| (error, at.saturating_add(2))),
        }
    }

    fn from_pem(bytes: &[u8]) -> Result<Self, KeyError> {
        use rustls_pemfile::Item;
        match rustls_pemfile::read_one_from_slice(bytes) {
            Ok(Some((Item::SubjectPublicKeyInfo(spki), _))) => Self::from_spki(&spki),
            Ok(Some((Item::X509Certificate(certificate), _))) => Self::from_certificate(&certificate),
            _ => Err(KeyError::BadPem),
        }
    }

    fn from_certificate(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_spki(&certificate_spki(der)?)
    }

    /// From a SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let spki = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| KeyError::BadSpki)?;
        let bits = spki.subject_public_key.as_bytes().ok_or(KeyError::BadSpki)?;
        let key = match spki.algorithm.oid {
            RSA => {
                let read = |any: AnyRef<'_>| {
                    any.sequence(|reader| {
                        let (n, e) = (UintRef::decode(reader)?, UintRef::decode(reader)?);
                        Ok((n.as_bytes().to_vec(), e.as_bytes().to_vec()))
                    })
                };
                let (modulus, exponent) = AnyRef::from_der(bits).and_then(read).map_err(|_| KeyError::BadSpki)?;
                if exponent.len() > 4 {
                    return Err(KeyError::NotAKey);
                }
                let exponent = exponent.iter().fold(0u32, |number, byte| (number << 8) | u32::from(*byte));
                Key::Rsa(RsaKey::new(&modulus, exponent)?)
            }
            EC => {
                let curve = match spki.algorithm.parameters_oid().map_err(|_| KeyError::BadSpki)? {
                    P256 => Curve::P256,
                    P384 => Curve::P384,
                    P521 => Curve::P521,
                    _ => return Err(KeyError::UnsupportedCurve),
                };
                Key::Ecc { curve, point: curve.point(bits)? }
            }
            _ => return Err(KeyError::UnsupportedKey),
        };
        Ok(Self { key, area: None })
    }

    /// From a TPMT_PUBLIC, every byte of it.
    ///
    /// # Errors
    /// [`KeyError`], and the offset in bytes at which the reading stopped.
    pub fn from_tpmt(bytes: &[u8]) -> Result<Self, (KeyError, usize)> {
        let mut reader = Reader::new(bytes);
        Self::read_tpmt(bytes, &mut reader).map_err(|error| (error, bytes.len().saturating_sub(reader.remaining())))
    }

    fn read_tpmt(bytes: &[u8], reader: &mut Reader<'_>) -> Result<Self, KeyError> {
        let kind = reader.u16()?;
        if !matches!(kind, alg::TPM_ALG_RSA | alg::TPM_ALG_ECC) {
            return Err(KeyError::UnknownType(kind));
        }
        let name_alg = hash(reader)?;
        let attributes = ObjectAttributes(reader.u32()?);
        let policy = reader.tpm2b(64)?;
        if !policy.is_empty() && policy.len() != name_alg.digest_len() {
            return Err(CodecError::BadValue.into());
        }
        // TPMT_SYM_DEF_OBJECT: key bits and mode follow an algorithm.
        match reader.u16()? {
            alg::TPM_ALG_NULL => {}
            alg::TPM_ALG_AES => {
                reader.u32()?;
            }
            other => return Err(KeyError::UnknownAlgorithm(other)),
        }
        let scheme = match reader.u16()? {
            alg::TPM_ALG_NULL => None,
            // Schemes of decryption sign nothing; their hash is there all the same, but for RSAES.
            alg::TPM_ALG_RSAES => None,
            alg::TPM_ALG_OAEP | alg::TPM_ALG_ECDH => {
                hash(reader)?;
                None
            }
            id => {
                let scheme = Scheme::from_id(id).ok_or(KeyError::UnknownAlgorithm(id))?;
                if (scheme == Scheme::Ecdsa) != (kind == alg::TPM_ALG_ECC) {
                    return Err(KeyError::UnknownAlgorithm(id));
                }
                Some((scheme, hash(reader)?))
            }
        };
        let key = if kind == alg::TPM_ALG_RSA { rsa_unique(reader) } else { ecc_unique(reader) }?;
        reader.finish()?;
        let area = PublicArea { bytes: bytes.to_vec(), name_alg, attributes, scheme };
        Ok(Self { key: key.finish()?, area: Some(area) })
    }

    /// What its TPM says of it, if it came in a TPM's form.
    pub const fn area(&self) -> Option<&PublicArea> {
        self.area.as_ref()
    }

    /// What it is, for a person: `ECC P-256`, `RSA 2048`.
    pub fn kind(&self) -> String {
        match &self.key {
            Key::Ecc { curve: Curve::P256, .. } => "ECC P-256".to_owned(),
            Key::Ecc { curve: Curve::P384, .. } => "ECC P-384".to_owned(),
            Key::Ecc { curve: Curve::P521, .. } => "ECC P-521".to_owned(),
            Key::Rsa(key) => format!("RSA {}", key.modulus.len().saturating_mul(8)),
        }
    }

    pub(super) const fn key(&self) -> &Key {
        &self.key
    }
}

/// A `unique` that is read and not yet judged: the whole structure comes first.
enum Unique {
    Rsa(Vec<u8>, u32, u16),
    Ecc(Curve, Vec<u8>, Vec<u8>),
}

impl Unique {
    fn finish(self) -> Result<Key, KeyError> {
        match self {
            Self::Rsa(modulus, exponent, bits) => {
                if modulus.len().saturating_mul(8) != usize::from(bits) {
                    return Err(KeyError::NotAKey);
                }
                let exponent = if exponent == 0 { DEFAULT_EXPONENT } else { exponent };
                RsaKey::new(&modulus, exponent).map(Key::Rsa)
            }
            Self::Ecc(curve, x, y) => {
                let mut sec1 = vec![4];
                for coordinate in [x, y] {
                    let zeros = coordinate.iter().take_while(|byte| **byte == 0).count();
                    let number = coordinate.get(zeros..).unwrap_or_default();
                    let pad = curve.field_len().checked_sub(number.len()).ok_or(KeyError::NotAKey)?;
                    if number.is_empty() {
                        return Err(KeyError::NotAKey);
                    }
                    sec1.resize(sec1.len().saturating_add(pad), 0);
                    sec1.extend_from_slice(number);
                }
                Ok(Key::Ecc { curve, point: curve.point(&sec1)? })
            }
        }
    }
}

fn rsa_unique(reader: &mut Reader<'_>) -> Result<Unique, KeyError> {
    let bits = reader.u16()?;
    if !matches!(bits, 2048 | 3072 | 4096) {
        return Err(KeyError::UnsupportedKeyBits(usize::from(bits)));
    }
    let exponent = reader.u32()?;
    Ok(Unique::Rsa(reader.tpm2b(MAX_FIELD_LEN)?.to_vec(), exponent, bits))
}

fn ecc_unique(reader: &mut Reader<'_>) -> Result<Unique, KeyError> {
    let curve = Curve::from_id(reader.u16()?).ok_or(KeyError::UnsupportedCurve)?;
    match reader.u16()? {
        alg::TPM_ALG_NULL => {}
        other => return Err(KeyError::UnknownAlgorithm(other)),
    }
    Ok(Unique::Ecc(curve, reader.tpm2b(MAX_FIELD_LEN)?.to_vec(), reader.tpm2b(MAX_FIELD_LEN)?.to_vec()))
}

fn hash(reader: &mut Reader<'_>) -> Result<HashAlg, KeyError> {
    let id = reader.u16()?;
    HashAlg::from_id(id).ok_or(KeyError::UnknownAlgorithm(id))
}

/// Whether the first two bytes are the length of the rest.
fn is_tpm2b(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    reader.u16().is_ok_and(|len| usize::from(len) == reader.remaining())
}
