//! The quote: its signature and what it is bound to. Says nothing of whether the node is good.
//!
//! ring verifies, over the bytes as they came; [`protocol::tpm`] parses. Our own nodes' AKs are of the exact template
//! ([`AkPublic`]); quotes of anybody's keys are verified too, with less promised ([`VerifiedQuote::verify_foreign`]).

use protocol::{
    codec::CodecError,
    tpm::{
        alg::{EccCurve, HashAlg},
        attest::{AttestError, TpmsAttest},
        pcr::{PcrError, PcrSelectionList},
        public::{KeyPublic, Name, PublicError, TpmtPublic},
        signature::{SignatureError, TpmtSignature},
        template::{AkKind, AkTemplateError, ak_qualified_name, check_ak},
    },
};
use ring::{digest, signature};

use super::signature::{AttestationKey, FormError, TpmSignature, VerifyError};

/// Why an AK or a quote was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum QuoteError {
    #[error("the AK's public area is malformed")]
    BadAk(#[from] PublicError),
    #[error("the AK is not made from the template")]
    AkTemplate(#[from] AkTemplateError),
    #[error("malformed signature")]
    MalformedSignature(#[from] SignatureError),
    #[error("the signature does not verify under the bound AK")]
    BadSignature,
    #[error("what was signed is not a quote made by a TPM")]
    NotAQuote(#[from] AttestError),
    #[error("the quote's qualified signer is not the bound AK in the endorsement hierarchy")]
    WrongSigner,
    #[error("the quote is bound to another challenge, node, NK or server certificate")]
    WrongBinding,
    #[error("the quote covers other PCRs than were asked for")]
    WrongSelection,
    #[error("the evidence counts on PCR values that are not remembered here")]
    NoBase,
    #[error("the evidence names a PCR bank of an unknown algorithm 0x{0:04x}")]
    UnknownBank(u16),
    #[error("the evidence gives two values for PCR {index} of bank {bank}")]
    DuplicateValue { bank: HashAlg, index: u8 },
    #[error("the evidence's PCR values do not fit the quote")]
    WrongPcrs(#[from] PcrError),
    #[error("a PCR value is malformed")]
    MalformedPcr(#[from] CodecError),
    #[error("the PCR values do not hash to the quoted digest")]
    WrongPcrDigest,
}

impl QuoteError {
    /// The short name that stands in a node's history.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadAk(_) => "bad_ak",
            Self::AkTemplate(_) => "wrong_ak_template",
            Self::MalformedSignature(_) | Self::BadSignature => "bad_signature",
            Self::NotAQuote(_) => "not_a_quote",
            Self::WrongSigner => "wrong_signer",
            Self::WrongBinding => "wrong_binding",
            Self::WrongSelection => "wrong_selection",
            Self::NoBase => "no_pcr_base",
            Self::UnknownBank(_) | Self::DuplicateValue { .. } | Self::WrongPcrs(_) | Self::MalformedPcr(_) => {
                "wrong_pcrs"
            }
            Self::WrongPcrDigest => "wrong_pcr_digest",
        }
    }
}

/// An AK that is the template bit by bit, in the form that ring verifies with. Cheap to keep with a connection.
#[derive(Clone, Debug)]
pub struct AkPublic {
    name: Name,
    qualified_name: Name,
    kind: AkKind,
    /// The point, SEC1 uncompressed; or the DER of RSAPublicKey.
    key: Vec<u8>,
}

impl AkPublic {
    /// Checks a TPMT_PUBLIC against the AK template and takes its key.
    ///
    /// # Errors
    /// [`QuoteError::BadAk`] for what is no public area; [`QuoteError::AkTemplate`] by the first field that differs.
    pub fn from_tpmt(bytes: &[u8]) -> Result<Self, QuoteError> {
        let public = TpmtPublic::decode(bytes)?;
        let kind = check_ak(&public)?;
        let name = public.name();
        let qualified_name = ak_qualified_name(&name).ok_or(QuoteError::WrongSigner)?;
        let key = match &public.key {
            KeyPublic::Ecc { curve, x, y, .. } => {
                let len = curve.field_len();
                let mut point = vec![4];
                for coordinate in [x, y] {
                    let pad = len.checked_sub(coordinate.len()).ok_or(PublicError::NotAKey)?;
                    point.resize(point.len() + pad, 0);
                    point.extend_from_slice(coordinate);
                }
                point
            }
            // `check_ak` made sure that the exponent is the default.
            KeyPublic::Rsa { modulus, .. } => rsa_public_key_der(modulus),
        };
        Ok(Self { name, qualified_name, kind, key })
    }

    /// Its Name.
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// Which of the three templates.
    pub const fn kind(&self) -> AkKind {
        self.kind
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), QuoteError> {
        let signature = TpmtSignature::decode(signature)?;
        if signature.hash() != self.kind.signature_hash() {
            return Err(QuoteError::BadSignature);
        }
        let ecdsa = |alg, curve| {
            let fixed = signature.ecdsa_fixed(curve)?;
            let key = signature::UnparsedPublicKey::new(alg, &self.key);
            key.verify(message, &fixed).map_err(|_| QuoteError::BadSignature)
        };
        match self.kind {
            AkKind::P256 => ecdsa(&signature::ECDSA_P256_SHA256_FIXED, EccCurve::P256),
            AkKind::P384 => ecdsa(&signature::ECDSA_P384_SHA384_FIXED, EccCurve::P384),
            AkKind::Rsa2048 => {
                let TpmtSignature::Rsassa { signature, .. } = &signature else { return Err(QuoteError::BadSignature) };
                signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, &self.key)
                    .verify(message, signature)
                    .map_err(|_| QuoteError::BadSignature)
            }
        }
    }
}

/// RSAPublicKey (RFC 8017 A.1.1) of a 2048-bit modulus whose top bit is set, with the exponent 65537.
fn rsa_public_key_der(modulus: &[u8]) -> Vec<u8> {
    let mut integer = vec![0];
    integer.extend_from_slice(modulus);
    let mut body = vec![2, 0x82];
    // A modulus is at most 384 bytes.
    body.extend_from_slice(&u16::try_from(integer.len()).unwrap_or(u16::MAX).to_be_bytes());
    body.extend_from_slice(&integer);
    body.extend_from_slice(&[2, 3, 1, 0, 1]);
    let mut der = vec![0x30, 0x82];
    der.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    der.extend_from_slice(&body);
    der
}

/// Why a quote of a key that need not be ours was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ForeignQuoteError {
    #[error("malformed signature, at byte {1}")]
    MalformedSignature(#[source] FormError, usize),
    #[error("the signature is not good")]
    Signature(#[from] VerifyError),
    #[error("what was signed is no quote, at byte {1}")]
    NotAQuote(#[source] AttestError, usize),
    #[error("the quote is bound to other qualifying data")]
    WrongBinding,
}

impl ForeignQuoteError {
    /// Its short name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::MalformedSignature(error, _) => error.code(),
            Self::Signature(error) => error.code(),
            Self::NotAQuote(error, _) => attest_code(error),
            Self::WrongBinding => "wrong_binding",
        }
    }
}

/// The short name of what is wrong with a TPMS_ATTEST.
pub const fn attest_code(error: &AttestError) -> &'static str {
    match error {
        AttestError::NotMadeByTpm(_) => "wrong_magic",
        AttestError::NotAQuote(_) => "not_a_quote",
        AttestError::Malformed(CodecError::Truncated) => "quote_truncated",
        AttestError::Malformed(CodecError::TrailingBytes) => "quote_trailing_bytes",
        AttestError::Malformed(CodecError::TooLong) => "quote_too_long",
        _ => "quote_malformed",
    }
}

/// A quote whose signature, signer, binding and PCR selection were checked, by [`verify`](Self::verify); or, by
/// [`verify_foreign`](Self::verify_foreign), signature and binding only. Nothing else makes one.
#[derive(Clone, Debug)]
pub struct VerifiedQuote {
    attest: TpmsAttest,
    digest: [u8; 32],
    pcr_hash: HashAlg,
}

impl VerifiedQuote {
    /// Checks, in this order: the signature over `attested` as received; that it parses, is a TPM's and a quote; that
    /// its qualified signer is `ak` in the endorsement hierarchy; its qualifying data; and that it covers exactly
    /// `selection`, bank by bank.
    ///
    /// # Errors
    /// [`QuoteError`], by the first check that failed.
    ///
    /// TPM 2.0 Part 3, TPM2_Quote; Part 2, TPMS_ATTEST.
    pub fn verify(
        ak: &AkPublic,
        attested: &[u8],
        signature: &[u8],
        qualifying_data: &[u8; 32],
        selection: &PcrSelectionList,
    ) -> Result<Self, QuoteError> {
        ak.verify(attested, signature)?;
        let attest = TpmsAttest::decode(attested)?;
        if attest.qualified_signer != ak.qualified_name {
            return Err(QuoteError::WrongSigner);
        }
        if attest.extra_data.as_slice() != qualifying_data {
            return Err(QuoteError::WrongBinding);
        }
        if !attest.pcr_select.same_as(selection) {
            return Err(QuoteError::WrongSelection);
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, attested).as_ref());
        Ok(Self { attest, digest: hash, pcr_hash: ak.kind.signature_hash() })
    }

    /// Checks the signature over `attested` as received, by any key and scheme; that it parses, is a TPM's and a quote;
    /// and its qualifying data, if that is known. What only our own nodes have to meet (template, qualified signer,
    /// selection) is left to the caller, who has the public area or not. SHA-1 signatures count with `allow_sha1`.
    ///
    /// A quote's magic says that a TPM made it only if the key is restricted.
    ///
    /// # Errors
    /// [`ForeignQuoteError`], by the first check that failed.
    pub fn verify_foreign(
        key: &AttestationKey,
        attested: &[u8],
        signature: &[u8],
        qualifying_data: Option<&[u8]>,
        allow_sha1: bool,
    ) -> Result<Self, ForeignQuoteError> {
        let signature =
            TpmSignature::decode(signature).map_err(|(error, at)| ForeignQuoteError::MalformedSignature(error, at))?;
        key.verify(attested, &signature, allow_sha1)?;
        let attest = TpmsAttest::decode_at(attested).map_err(|(error, at)| ForeignQuoteError::NotAQuote(error, at))?;
        if qualifying_data.is_some_and(|expected| attest.extra_data.as_slice() != expected) {
            return Err(ForeignQuoteError::WrongBinding);
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, attested).as_ref());
        Ok(Self { attest, digest: hash, pcr_hash: signature.hash() })
    }

    /// What the TPM signed.
    pub const fn attest(&self) -> &TpmsAttest {
        &self.attest
    }

    /// SHA-256 of the TPMS_ATTEST as it was sent: what a share is bound to.
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The hash that makes the quote's PCR digest: that of the AK's scheme.
    pub(crate) const fn pcr_hash(&self) -> HashAlg {
        self.pcr_hash
    }
}

#[cfg(test)]
pub(crate) mod tests;
