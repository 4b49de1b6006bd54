//! TPMT_PUBLIC of the keys this project meets, their Names, and the same keys as X.509 writes them.
//!
//! A template for TPM2_CreatePrimary is the same structure with a `unique` that is no key; what accepts which key is
//! in [`template`](super::template) and [`credential`](super::credential).

use alloc::vec::Vec;

use super::{
    alg::{self, Digest, EccCurve, HashAlg},
    wire::Out,
};
use crate::{
    codec::{CodecError, Reader},
    limits,
};

/// The largest RSA modulus decoded, in bytes (RSA-3072).
pub const MAX_MODULUS_LEN: usize = 384;
/// The largest coordinate decoded, in bytes (P-384).
pub const MAX_COORDINATE_LEN: usize = 48;
/// The RSA exponent that a TPM writes as zero.
pub const DEFAULT_EXPONENT: u32 = 65537;

/// Why a public area was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum PublicError {
    #[error("malformed TPMT_PUBLIC")]
    Malformed(#[from] CodecError),
    #[error("neither an RSA nor an ECC key: type 0x{0:04x}")]
    UnknownType(u16),
    #[error("unknown or unsupported algorithm 0x{0:04x} in TPMT_PUBLIC")]
    UnknownAlgorithm(u16),
    #[error("unsupported curve 0x{0:04x}: only P-256 and P-384 are accepted")]
    UnsupportedCurve(u16),
    #[error("unsupported RSA key size of {0} bits: only 2048 and 3072 are accepted")]
    UnsupportedKeyBits(u16),
    #[error("`unique` holds no public key of this type and size")]
    NotAKey,
}

alg::short_bytes! {
    /// The Name of an object or NV index: its nameAlg and the digest of its public area (TPM 2.0 Part 1, Names).
    Name, limits::MAX_NAME_LEN
}

impl Name {
    /// A Name from outside: an algorithm of ours and a digest of its length. Handles and empty Names are refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let alg = HashAlg::decode(&mut reader)?;
        alg.read_digest(reader.rest())?;
        Self::from_slice(bytes)
    }

    /// `alg` ‖ H(`parts`).
    pub fn over(alg: HashAlg, parts: &[&[u8]]) -> Self {
        let digest = alg.digest(parts);
        let mut out = Out::new();
        out.u16(alg.id()).put(&digest);
        // 2 and at most 64 bytes: never too long.
        Self::from_slice(out.as_slice()).unwrap_or(Self { bytes: [0; limits::MAX_NAME_LEN], len: 0 })
    }

    /// The algorithm that made it.
    pub fn alg(&self) -> Option<HashAlg> {
        Reader::new(self).u16().ok().and_then(HashAlg::from_id)
    }
}

/// The Qualified Name of a primary object: nameAlg ‖ H(hierarchy handle ‖ Name) (TPM 2.0 Part 1, Qualified Names).
///
/// `None` if `name` does not begin with an algorithm of ours. A quote names its signer like this.
pub fn qualified_name(hierarchy: u32, name: &Name) -> Option<Name> {
    Some(Name::over(name.alg()?, &[&hierarchy.to_be_bytes(), name]))
}

/// TPMA_OBJECT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ObjectAttributes(pub u32);

impl ObjectAttributes {
    /// fixedTPM.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// fixedParent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// sensitiveDataOrigin.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// userWithAuth.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// adminWithPolicy.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// noDA.
    pub const NO_DA: u32 = 1 << 10;
    /// restricted.
    pub const RESTRICTED: u32 = 1 << 16;
    /// decrypt.
    pub const DECRYPT: u32 = 1 << 17;
    /// sign.
    pub const SIGN: u32 = 1 << 18;

    /// Whether every bit of `bits` is set.
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

/// TPMT_SYM_DEF_OBJECT: how a storage key protects what is under it. Only CFB mode exists there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Symmetric {
    /// TPM_ALG_NULL: not a storage key.
    Null,
    /// AES-128 in CFB mode.
    Aes128Cfb,
    /// AES-256 in CFB mode.
    Aes256Cfb,
}

impl Symmetric {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, PublicError> {
        match reader.u16()? {
            alg::TPM_ALG_NULL => Ok(Self::Null),
            alg::TPM_ALG_AES => match (reader.u16()?, reader.u16()?) {
                (128, alg::TPM_ALG_CFB) => Ok(Self::Aes128Cfb),
                (256, alg::TPM_ALG_CFB) => Ok(Self::Aes256Cfb),
                (_, alg::TPM_ALG_CFB) => Err(CodecError::BadValue.into()),
                (_, mode) => Err(PublicError::UnknownAlgorithm(mode)),
            },
            other => Err(PublicError::UnknownAlgorithm(other)),
        }
    }

    fn encode(self, out: &mut Out) {
        match self {
            Self::Null => out.u16(alg::TPM_ALG_NULL),
            Self::Aes128Cfb => out.u16(alg::TPM_ALG_AES).u16(128).u16(alg::TPM_ALG_CFB),
            Self::Aes256Cfb => out.u16(alg::TPM_ALG_AES).u16(256).u16(alg::TPM_ALG_CFB),
        };
    }
}

/// TPMT_RSA_SCHEME or TPMT_ECC_SCHEME, of the schemes that take at most a hash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// TPM_ALG_NULL: named at each use.
    Null,
    /// RSASSA-PKCS1-v1_5.
    Rsassa(HashAlg),
    /// RSAPSS.
    Rsapss(HashAlg),
    /// RSAES-OAEP.
    Oaep(HashAlg),
    /// RSAES-PKCS1-v1_5.
    Rsaes,
    /// ECDSA.
    Ecdsa(HashAlg),
    /// ECDH.
    Ecdh(HashAlg),
}

impl Scheme {
    fn decode_rsa(reader: &mut Reader<'_>) -> Result<Self, PublicError> {
        match reader.u16()? {
            alg::TPM_ALG_NULL => Ok(Self::Null),
            alg::TPM_ALG_RSASSA => Ok(Self::Rsassa(hash(reader)?)),
            alg::TPM_ALG_RSAPSS => Ok(Self::Rsapss(hash(reader)?)),
            alg::TPM_ALG_OAEP => Ok(Self::Oaep(hash(reader)?)),
            alg::TPM_ALG_RSAES => Ok(Self::Rsaes),
            other => Err(PublicError::UnknownAlgorithm(other)),
        }
    }

    fn decode_ecc(reader: &mut Reader<'_>) -> Result<Self, PublicError> {
        match reader.u16()? {
            alg::TPM_ALG_NULL => Ok(Self::Null),
            alg::TPM_ALG_ECDSA => Ok(Self::Ecdsa(hash(reader)?)),
            alg::TPM_ALG_ECDH => Ok(Self::Ecdh(hash(reader)?)),
            other => Err(PublicError::UnknownAlgorithm(other)),
        }
    }

    fn encode(self, out: &mut Out) {
        match self {
            Self::Null => out.u16(alg::TPM_ALG_NULL),
            Self::Rsassa(hash) => out.u16(alg::TPM_ALG_RSASSA).u16(hash.id()),
            Self::Rsapss(hash) => out.u16(alg::TPM_ALG_RSAPSS).u16(hash.id()),
            Self::Oaep(hash) => out.u16(alg::TPM_ALG_OAEP).u16(hash.id()),
            Self::Rsaes => out.u16(alg::TPM_ALG_RSAES),
            Self::Ecdsa(hash) => out.u16(alg::TPM_ALG_ECDSA).u16(hash.id()),
            Self::Ecdh(hash) => out.u16(alg::TPM_ALG_ECDH).u16(hash.id()),
        };
    }
}

fn hash(reader: &mut Reader<'_>) -> Result<HashAlg, PublicError> {
    let id = reader.u16()?;
    HashAlg::from_id(id).ok_or(PublicError::UnknownAlgorithm(id))
}

/// The key itself: TPMU_PUBLIC_PARMS and TPMU_PUBLIC_ID together.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a few are alive at a time; a Box would only move the modulus")]
pub enum KeyPublic {
    /// TPMS_RSA_PARMS and TPM2B_PUBLIC_KEY_RSA.
    Rsa {
        /// Protection of children.
        symmetric: Symmetric,
        /// Scheme, if fixed.
        scheme: Scheme,
        /// 2048 or 3072.
        key_bits: u16,
        /// Zero means 65537.
        exponent: u32,
        /// `unique`: the modulus, big-endian; in a template, anything.
        modulus: heapless::Vec<u8, MAX_MODULUS_LEN>,
    },
    /// TPMS_ECC_PARMS and TPMS_ECC_POINT. The KDF scheme is always TPM_ALG_NULL: no TPM uses another.
    Ecc {
        /// Protection of children.
        symmetric: Symmetric,
        /// Scheme, if fixed.
        scheme: Scheme,
        /// The curve.
        curve: EccCurve,
        /// `unique.x`, big-endian; in a template, anything.
        x: heapless::Vec<u8, MAX_COORDINATE_LEN>,
        /// `unique.y`.
        y: heapless::Vec<u8, MAX_COORDINATE_LEN>,
    },
}

/// TPMT_PUBLIC of an RSA or ECC key (TPM 2.0 Part 2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TpmtPublic {
    /// Hash of its Name and of its credential blobs.
    pub name_alg: HashAlg,
    /// objectAttributes.
    pub attributes: ObjectAttributes,
    /// authPolicy: empty, or a digest of `name_alg`.
    pub auth_policy: Digest,
    /// Type, parameters and unique.
    pub key: KeyPublic,
}

impl TpmtPublic {
    /// Decodes a whole TPMT_PUBLIC (without the length that a TPM2B_PUBLIC begins with).
    ///
    /// What it returns encodes to the same bytes. The key is not checked: `unique` may hold what a template holds.
    ///
    /// # Errors
    /// [`PublicError`], by what was wrong; every byte must be used.
    pub fn decode(bytes: &[u8]) -> Result<Self, PublicError> {
        if bytes.len() > limits::MAX_PUBLIC_LEN {
            return Err(CodecError::TooLong.into());
        }
        let mut reader = Reader::new(bytes);
        let kind = reader.u16()?;
        if !matches!(kind, alg::TPM_ALG_RSA | alg::TPM_ALG_ECC) {
            return Err(PublicError::UnknownType(kind));
        }
        let name_alg = hash(&mut reader)?;
        let attributes = ObjectAttributes(reader.u32()?);
        let auth_policy = Digest::from_slice(reader.tpm2b(Digest::MAX_LEN)?)?;
        if !auth_policy.is_empty() && auth_policy.len() != name_alg.digest_len() {
            return Err(CodecError::BadValue.into());
        }
        let key = if kind == alg::TPM_ALG_RSA {
            KeyPublic::decode_rsa(&mut reader)
        } else {
            KeyPublic::decode_ecc(&mut reader)
        }?;
        reader.finish()?;
        Ok(Self { name_alg, attributes, auth_policy, key })
    }

    /// Its bytes: at most [`limits::MAX_PUBLIC_LEN`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out::new();
        let kind = match self.key {
            KeyPublic::Rsa { .. } => alg::TPM_ALG_RSA,
            KeyPublic::Ecc { .. } => alg::TPM_ALG_ECC,
        };
        out.u16(kind).u16(self.name_alg.id()).u32(self.attributes.0).tpm2b(&self.auth_policy);
        match &self.key {
            KeyPublic::Rsa { symmetric, scheme, key_bits, exponent, modulus } => {
                symmetric.encode(&mut out);
                scheme.encode(&mut out);
                out.u16(*key_bits).u32(*exponent).tpm2b(modulus);
            }
            KeyPublic::Ecc { symmetric, scheme, curve, x, y } => {
                symmetric.encode(&mut out);
                scheme.encode(&mut out);
                out.u16(curve.id()).u16(alg::TPM_ALG_NULL).tpm2b(x).tpm2b(y);
            }
        }
        out.into_vec()
    }

    /// Its Name: nameAlg ‖ H(TPMT_PUBLIC).
    pub fn name(&self) -> Name {
        Name::over(self.name_alg, &[&self.encode()])
    }

    /// Whether it is a storage key: restricted, decrypts, does not sign, and has a symmetric cipher for its children.
    /// Only such a key takes part in TPM2_ActivateCredential.
    pub const fn is_storage_key(&self) -> bool {
        let (KeyPublic::Rsa { symmetric, .. } | KeyPublic::Ecc { symmetric, .. }) = &self.key;
        self.attributes.has(ObjectAttributes::RESTRICTED | ObjectAttributes::DECRYPT)
            && !self.attributes.has(ObjectAttributes::SIGN)
            && !matches!(symmetric, Symmetric::Null)
    }

    /// The symmetric cipher for its children.
    pub const fn symmetric(&self) -> Symmetric {
        let (KeyPublic::Rsa { symmetric, .. } | KeyPublic::Ecc { symmetric, .. }) = &self.key;
        *symmetric
    }

    /// The key as an X.509 SubjectPublicKeyInfo in DER: the one form a certificate for this key holds.
    ///
    /// rsaEncryption with NULL parameters (RFC 3279 §2.3.1), or id-ecPublicKey with a named curve and an uncompressed
    /// point (RFC 5480 §2). A point is not checked to lie on its curve.
    ///
    /// # Errors
    /// [`PublicError::NotAKey`] where `unique` is a template's, not a key's.
    pub fn spki_der(&self) -> Result<Vec<u8>, PublicError> {
        let (algorithm, key) = match &self.key {
            KeyPublic::Rsa { key_bits, exponent, modulus, .. } => {
                let exponent = if *exponent == 0 { DEFAULT_EXPONENT } else { *exponent };
                let full = modulus.len() == usize::from(*key_bits).div_ceil(8);
                let top_and_odd =
                    modulus.first().is_some_and(|b| b & 0x80 != 0) && modulus.last().is_some_and(|b| b & 1 == 1);
                if !full || !top_and_odd {
                    return Err(PublicError::NotAKey);
                }
                let integers = [der_uint(modulus), der_uint(&exponent.to_be_bytes())].concat();
                (der(0x30, &[OID_RSA, &[0x05, 0x00]]), der(0x30, &[&integers]))
            }
            KeyPublic::Ecc { curve, .. } => {
                let oid = match curve {
                    EccCurve::P256 => OID_P256,
                    EccCurve::P384 => OID_P384,
                };
                (der(0x30, &[OID_EC, oid]), self.sec1_point()?)
            }
        };
        Ok(der(0x30, &[&algorithm, &der(0x03, &[&[0], &key])]))
    }

    /// An ECC key as an uncompressed SEC1 point (04 ‖ x ‖ y), coordinates padded to the field's length.
    ///
    /// # Errors
    /// [`PublicError::NotAKey`] for an RSA key, and where `unique` is a template's.
    pub fn sec1_point(&self) -> Result<Vec<u8>, PublicError> {
        let KeyPublic::Ecc { curve, x, y, .. } = &self.key else { return Err(PublicError::NotAKey) };
        let mut point = Vec::with_capacity(97);
        point.push(4);
        for coordinate in [x, y] {
            let number = alg::trim_zeros(coordinate);
            // An empty coordinate is a template's; zero itself does not occur on a point of these curves' groups
            // that anybody's key is.
            let pad = curve.field_len().checked_sub(number.len()).ok_or(PublicError::NotAKey)?;
            if number.is_empty() {
                return Err(PublicError::NotAKey);
            }
            point.resize(point.len().saturating_add(pad), 0);
            point.extend_from_slice(number);
        }
        Ok(point)
    }
}

impl KeyPublic {
    fn decode_rsa(reader: &mut Reader<'_>) -> Result<Self, PublicError> {
        let symmetric = Symmetric::decode(reader)?;
        let scheme = Scheme::decode_rsa(reader)?;
        let key_bits = reader.u16()?;
        if !matches!(key_bits, 2048 | 3072) {
            return Err(PublicError::UnsupportedKeyBits(key_bits));
        }
        let exponent = reader.u32()?;
        let modulus = field(reader)?;
        Ok(Self::Rsa { symmetric, scheme, key_bits, exponent, modulus })
    }

    fn decode_ecc(reader: &mut Reader<'_>) -> Result<Self, PublicError> {
        let symmetric = Symmetric::decode(reader)?;
        let scheme = Scheme::decode_ecc(reader)?;
        let curve_id = reader.u16()?;
        let curve = EccCurve::from_id(curve_id).ok_or(PublicError::UnsupportedCurve(curve_id))?;
        match reader.u16()? {
            alg::TPM_ALG_NULL => {}
            other => return Err(PublicError::UnknownAlgorithm(other)),
        }
        let (x, y) = (field(reader)?, field(reader)?);
        Ok(Self::Ecc { symmetric, scheme, curve, x, y })
    }
}

fn field<const N: usize>(reader: &mut Reader<'_>) -> Result<heapless::Vec<u8, N>, CodecError> {
    heapless::Vec::from_slice(reader.tpm2b(N)?).map_err(|_| CodecError::TooLong)
}

/// rsaEncryption, 1.2.840.113549.1.1.1.
const OID_RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// id-ecPublicKey, 1.2.840.10045.2.1.
const OID_EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// secp256r1, 1.2.840.10045.3.1.7.
const OID_P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// secp384r1, 1.3.132.0.34.
const OID_P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// One DER element. Contents here stay under 64 KiB.
fn der(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let contents = contents.concat();
    let [high, low] = u16::try_from(contents.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut element = match (high, low) {
        (0, 0..0x80) => alloc::vec![tag, low],
        (0, _) => alloc::vec![tag, 0x81, low],
        _ => alloc::vec![tag, 0x82, high, low],
    };
    element.extend_from_slice(&contents);
    element
}

/// An unsigned number as a DER INTEGER.
fn der_uint(number: &[u8]) -> Vec<u8> {
    let number = alg::trim_zeros(number);
    let sign: &[u8] = if number.first().is_none_or(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
    der(0x02, &[sign, number])
}
