//! The key templates: the TCG's for endorsement keys, ours for attestation keys, and the check that an AK is ours.

use alloc::vec::Vec;

use super::{
    alg::{Digest, EccCurve, HashAlg},
    public::{KeyPublic, Name, ObjectAttributes, Scheme, Symmetric, TpmtPublic, qualified_name},
};

/// TPM_RH_ENDORSEMENT: the hierarchy of EK and AK.
pub const TPM_RH_ENDORSEMENT: u32 = 0x4000_000b;

/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const EK_LOW_ATTRIBUTES: ObjectAttributes = ObjectAttributes(0x0003_00b2);
/// The same with userWithAuth.
const EK_HIGH_ATTRIBUTES: ObjectAttributes = ObjectAttributes(0x0003_00f2);
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign. Without noDA somebody else's
/// dictionary lockout would stop attestation.
pub const AK_ATTRIBUTES: ObjectAttributes = ObjectAttributes(0x0005_0472);

/// What the `unique` of our AK templates is the SHA-256 of: the same key at every boot, nothing to store.
const AK_UNIQUE_LABEL: &[u8] = b"trefoil AK v1";

/// PolicyA, SHA-256: TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
/// PolicyB, SHA-384: PolicyA or a policy in NV.
const POLICY_B_SHA384: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a, 0x07, 0x41, 0x48,
    0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca, 0xcb, 0x47, 0xba, 0x09, 0x69, 0x96,
    0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];

/// How an EK of a template authorises TPM2_ActivateCredential.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EkAuth {
    /// A policy session after TPM2_PolicySecret(endorsement): the low range.
    PolicySecret,
    /// Its empty authorisation value (userWithAuth is set): the high range.
    EmptyPassword,
}

/// An endorsement key template (TCG EK Credential Profile for TPM Family 2.0, templates L-1, L-2 and H-3).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EkTemplate {
    /// L-2: ECC P-256, SHA-256 Name, AES-128.
    P256,
    /// H-3: ECC P-384, SHA-384 Name, AES-256.
    P384,
    /// L-1: RSA 2048, SHA-256 Name, AES-128.
    Rsa2048,
}

impl EkTemplate {
    /// In the order in which an agent looks for a certificate: the fastest key first.
    pub const TRIED: [Self; 3] = [Self::P256, Self::P384, Self::Rsa2048];

    /// The NV index that holds the certificate.
    pub const fn certificate_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01c0_0002,
            Self::P256 => 0x01c0_000a,
            Self::P384 => 0x01c0_0016,
        }
    }

    /// The persistent handle where such a key may be found (TCG Registry of Reserved TPM 2.0 Handles); it is this EK
    /// only if its public key is the certificate's.
    pub const fn persistent_handle(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x8101_0001,
            Self::P256 => 0x8101_0002,
            Self::P384 => 0x8101_0016,
        }
    }

    /// How to authorise it.
    pub const fn auth(self) -> EkAuth {
        match self {
            Self::Rsa2048 | Self::P256 => EkAuth::PolicySecret,
            Self::P384 => EkAuth::EmptyPassword,
        }
    }

    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Rsa2048 => "rsa2048",
        }
    }

    /// The template with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::TRIED.into_iter().find(|template| template.name() == name)
    }

    /// The template itself: `inPublic` of TPM2_CreatePrimary under the endorsement hierarchy.
    pub fn public(self) -> TpmtPublic {
        let ecc = |symmetric, curve, unique: &[u8]| KeyPublic::Ecc {
            symmetric,
            scheme: Scheme::Null,
            curve,
            x: bounded(unique),
            y: bounded(unique),
        };
        match self {
            Self::Rsa2048 => TpmtPublic {
                name_alg: HashAlg::Sha256,
                attributes: EK_LOW_ATTRIBUTES,
                auth_policy: digest(&POLICY_A_SHA256),
                key: KeyPublic::Rsa {
                    symmetric: Symmetric::Aes128Cfb,
                    scheme: Scheme::Null,
                    key_bits: 2048,
                    exponent: 0,
                    modulus: bounded(&[0; 256]),
                },
            },
            Self::P256 => TpmtPublic {
                name_alg: HashAlg::Sha256,
                attributes: EK_LOW_ATTRIBUTES,
                auth_policy: digest(&POLICY_A_SHA256),
                key: ecc(Symmetric::Aes128Cfb, EccCurve::P256, &[0; 32]),
            },
            Self::P384 => TpmtPublic {
                name_alg: HashAlg::Sha384,
                attributes: EK_HIGH_ATTRIBUTES,
                auth_policy: digest(&POLICY_B_SHA384),
                key: ecc(Symmetric::Aes256Cfb, EccCurve::P384, &[]),
            },
        }
    }

    /// How to authorise a key, judged by its own public area: a policy session where userWithAuth is clear.
    pub const fn auth_of(public: &TpmtPublic) -> EkAuth {
        if public.attributes.has(ObjectAttributes::USER_WITH_AUTH) {
            EkAuth::EmptyPassword
        } else {
            EkAuth::PolicySecret
        }
    }
}

/// The three attestation keys. All have a SHA-256 Name and differ in nothing but type and scheme.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AkKind {
    /// ECDSA P-256 with SHA-256: the default.
    P256,
    /// ECDSA P-384 with SHA-384.
    P384,
    /// RSASSA 2048 with SHA-256.
    Rsa2048,
}

/// What about an AK is not the template's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum AkTemplateError {
    #[error("AK attributes are 0x{found:08x}, not 0x00050472")]
    Attributes { found: u32 },
    #[error("AK nameAlg is {found}, not sha256")]
    NameAlg { found: HashAlg },
    #[error("AK has an authPolicy")]
    AuthPolicy,
    #[error("AK has a symmetric cipher")]
    Symmetric,
    #[error("AK signing scheme is not the one fixed for its type")]
    Scheme,
    #[error("AK is RSA of {found} bits, not 2048")]
    KeyBits { found: u16 },
    #[error("AK has the RSA exponent {found}, not the default")]
    Exponent { found: u32 },
    #[error("AK `unique` is no public key")]
    Unique,
}

impl AkKind {
    /// All kinds, the default first.
    pub const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Rsa2048];

    /// The template: `inPublic` of TPM2_CreatePrimary under the endorsement hierarchy.
    pub fn template(self) -> TpmtPublic {
        let unique = HashAlg::Sha256.digest(&[AK_UNIQUE_LABEL]);
        let key = match self {
            Self::P256 | Self::P384 => {
                let (curve, hash) = match self {
                    Self::P384 => (EccCurve::P384, HashAlg::Sha384),
                    _ => (EccCurve::P256, HashAlg::Sha256),
                };
                KeyPublic::Ecc {
                    symmetric: Symmetric::Null,
                    scheme: Scheme::Ecdsa(hash),
                    curve,
                    x: bounded(&unique),
                    y: heapless::Vec::new(),
                }
            }
            Self::Rsa2048 => KeyPublic::Rsa {
                symmetric: Symmetric::Null,
                scheme: Scheme::Rsassa(HashAlg::Sha256),
                key_bits: 2048,
                exponent: 0,
                modulus: bounded(&unique),
            },
        };
        TpmtPublic { name_alg: HashAlg::Sha256, attributes: AK_ATTRIBUTES, auth_policy: Digest::EMPTY, key }
    }

    /// The bytes of [`template`](Self::template), as the contents of a TPM2B_PUBLIC.
    pub fn in_public(self) -> Vec<u8> {
        self.template().encode()
    }

    /// Hash of what its quotes sign.
    pub const fn signature_hash(self) -> HashAlg {
        match self {
            Self::P256 | Self::Rsa2048 => HashAlg::Sha256,
            Self::P384 => HashAlg::Sha384,
        }
    }
}

/// Accepts an AK if everything but `unique` equals one of the three templates bit by bit, and `unique` holds a key.
///
/// Neither the `unique` that the template began with nor the hierarchy can be told from a created key: a key of the
/// same attributes under another seed passes here. The TPM vouches for fixedTPM and restricted by opening a credential
/// for this Name; the endorsement hierarchy shows in a quote's qualified signer ([`ak_qualified_name`]).
///
/// # Errors
/// [`AkTemplateError`], by the first field that differs.
pub fn check_ak(public: &TpmtPublic) -> Result<AkKind, AkTemplateError> {
    if public.attributes != AK_ATTRIBUTES {
        return Err(AkTemplateError::Attributes { found: public.attributes.0 });
    }
    if public.name_alg != HashAlg::Sha256 {
        return Err(AkTemplateError::NameAlg { found: public.name_alg });
    }
    if !public.auth_policy.is_empty() {
        return Err(AkTemplateError::AuthPolicy);
    }
    if public.symmetric() != Symmetric::Null {
        return Err(AkTemplateError::Symmetric);
    }
    let kind = match &public.key {
        KeyPublic::Ecc { scheme, curve, .. } => match (curve, scheme) {
            (EccCurve::P256, Scheme::Ecdsa(HashAlg::Sha256)) => AkKind::P256,
            (EccCurve::P384, Scheme::Ecdsa(HashAlg::Sha384)) => AkKind::P384,
            _ => return Err(AkTemplateError::Scheme),
        },
        KeyPublic::Rsa { scheme, key_bits, exponent, .. } => {
            if *key_bits != 2048 {
                return Err(AkTemplateError::KeyBits { found: *key_bits });
            }
            if *exponent != 0 {
                return Err(AkTemplateError::Exponent { found: *exponent });
            }
            if *scheme != Scheme::Rsassa(HashAlg::Sha256) {
                return Err(AkTemplateError::Scheme);
            }
            AkKind::Rsa2048
        }
    };
    public.spki_der().map_err(|_| AkTemplateError::Unique)?;
    Ok(kind)
}

/// The qualified signer of this AK's quotes: SHA-256(4000000B ‖ Name) behind the algorithm's identifier.
///
/// A quote by a key of the same template in another hierarchy (whose counters are obfuscated) names another one.
/// `None` if `ak_name` does not begin with an algorithm of ours.
pub fn ak_qualified_name(ak_name: &Name) -> Option<Name> {
    qualified_name(TPM_RH_ENDORSEMENT, ak_name)
}

/// Constants of this module fit their fields: tests encode every template.
fn bounded<const N: usize>(bytes: &[u8]) -> heapless::Vec<u8, N> {
    heapless::Vec::from_slice(bytes).unwrap_or_default()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::new(bytes).unwrap_or(Digest::EMPTY)
}
