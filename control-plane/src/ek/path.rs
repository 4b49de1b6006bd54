//! Paths: from an EK certificate over others to a trusted one, and what is remembered of the path that was found.
//!
//! The search goes back where a way ends, and verifies a handful of signatures at most. What the certificates are is
//! [`certificate`](super::certificate)'s, which are trusted [`bundle`](super::bundle)'s.
//!
//! RFC 5280 §6, without revocation and policies; TCG EK Credential Profile §3.

use std::sync::Arc;

use protocol::{id, limits};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    EkError,
    bundle::{Anchor, EkRoots, Provenance},
    certificate::{Certificate, KEY_CERT_SIGN, SignatureFailure, name_text, oid_text},
};

/// Signatures verified for one EK: one a certificate, and as many again for issuers that share a name.
pub(super) const MAX_SIGNATURE_CHECKS: usize = 2 * limits::MAX_EK_CHAIN;

/// A path was found: a trusted certificate vouches for the EK.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[must_use]
pub struct EkPath {
    /// From the EK certificate to the trusted one.
    pub certificates: Vec<EkPathCertificate>,
    /// What the EK certificate says of its TPM.
    pub tpm: TpmIdentity,
    /// What was not checked: `revocation` always; `extended_key_usage`, `key_usage`, `tpm_identity` where the EK
    /// certificate does not say them.
    pub not_checked: Vec<String>,
}

impl EkPath {
    /// The issuer of the EK certificate, for a person.
    pub fn issuer(&self) -> &str {
        self.certificates.first().map_or("", |certificate| &certificate.issuer)
    }
}

/// One certificate, for a person.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct EkPathCertificate {
    /// Subject: `CN=…, O=…`, at most 200 characters.
    pub subject: String,
    /// Issuer, likewise.
    pub issuer: String,
    /// Serial number, hex.
    pub serial: String,
    /// SHA-256 of the certificate, hex.
    pub sha256: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// The key: `RSA 2048`, `P-256`, ….
    pub key: String,
    /// Where it came from.
    pub source: EkSource,
}

/// Where a certificate came from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum EkSource {
    /// The node sent it.
    Node {
        /// 1 is the EK's.
        number: usize,
    },
    /// The operator trusts it.
    Bundle {
        /// The file's name in the bundle.
        file: String,
        /// What the bundle says of it.
        provenance: Option<Provenance>,
    },
}

/// What an EK certificate says of its TPM; claims of its issuer, and nothing that is relied on.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct TpmIdentity {
    /// Manufacturer: `id:` and the four bytes of TPM_PT_MANUFACTURER in hex (2.23.133.2.1).
    pub manufacturer: Option<String>,
    /// Model (2.23.133.2.2).
    pub model: Option<String>,
    /// Firmware version (2.23.133.2.3).
    pub version: Option<String>,
}

impl TpmIdentity {
    pub(super) fn of(certificate: &Certificate<'_>) -> Self {
        let [manufacturer, model, version] = certificate.tpm_attributes();
        Self { manufacturer, model, version }
    }

    /// The manufacturer's letters, where the attribute is `id:` and printable ASCII in hex: `IFX`, `STM`, `NTC`.
    pub fn vendor(&self) -> Option<String> {
        let hex = self.manufacturer.as_deref()?.strip_prefix("id:")?;
        let bytes: [u8; 4] = id::hex_array(hex)?;
        let text: String = bytes.iter().filter(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
        let text = text.trim_end().to_owned();
        (!text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())).then_some(text)
    }
}

impl EkPathCertificate {
    pub(super) fn of(der: &[u8], certificate: &Certificate<'_>, source: EkSource) -> Self {
        Self {
            subject: name_text(certificate.subject),
            issuer: name_text(certificate.issuer),
            serial: hex::encode(certificate.serial),
            sha256: hex::encode(Sha256::digest(der)),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            key: certificate.key_kind(),
            source,
        }
    }

    pub(super) fn of_anchor(anchor: &Anchor, certificate: &Certificate<'_>) -> Self {
        let source =
            EkSource::Bundle { file: anchor.file.to_string(), provenance: anchor.provenance.as_deref().cloned() };
        Self::of(&anchor.der, certificate, source)
    }
}

/// A certificate that the node sent beside its EK's.
struct Intermediate<'a> {
    number: usize,
    der: &'a [u8],
    certificate: Certificate<'a>,
    used: bool,
}

/// One search.
pub(super) struct Search<'a> {
    roots: &'a EkRoots,
    now: i64,
    signatures: usize,
    intermediates: Vec<Intermediate<'a>>,
    path: Vec<EkPathCertificate>,
}

impl<'a> Search<'a> {
    pub(super) fn new(roots: &'a EkRoots, now: i64, others: impl Iterator<Item = (&'a [u8], Certificate<'a>)>) -> Self {
        let intermediates = others
            .enumerate()
            .map(|(at, (der, certificate))| Intermediate { number: at + 2, der, certificate, used: false })
            .collect();
        Self { roots, now, signatures: MAX_SIGNATURE_CHECKS, intermediates, path: Vec::new() }
    }

    /// Finds the path of a leaf.
    pub(super) fn run(mut self, der: &[u8], leaf: &Certificate<'a>) -> Result<Vec<EkPathCertificate>, EkError> {
        self.path.push(EkPathCertificate::of(der, leaf, EkSource::Node { number: 1 }));
        check_in_path(leaf, der, self.roots, self.now)?;
        self.extend(leaf, 0)?;
        Ok(self.path)
    }

    /// Goes on from `current`, which is in order itself. `below` counts the CAs between the issuer that is looked for and
    /// the EK certificate; self-issued ones do not count.
    ///
    /// The error is the first that a way with a good signature ended in, else what was wrong with the signatures, else
    /// that nobody is the issuer.
    fn extend(&mut self, current: &Certificate<'a>, below: u32) -> Result<(), EkError> {
        let (mut ended, mut tried) = (None, None);
        let roots = self.roots;
        for anchor in roots.of_subject(current.issuer) {
            // It parsed when it was loaded.
            let Ok(certificate) = Certificate::parse(&anchor.der) else { continue };
            if !current.names_issuer(&certificate) {
                continue;
            }
            if let Err(failure) = self.verify(current, &certificate)? {
                tried = tried.or(Some(failure));
                continue;
            }
            let good = check_in_path(&certificate, &anchor.der, roots, self.now)
                .and_then(|()| check_issuer(&certificate, below));
            match good {
                Ok(()) => {
                    self.path.push(EkPathCertificate::of_anchor(anchor, &certificate));
                    return Ok(());
                }
                Err(error) => ended = ended.or(Some(error)),
            }
        }
        for at in 0..self.intermediates.len() {
            let Some(Intermediate { number, der, certificate, used: false }) = self.intermediates.get(at) else {
                continue;
            };
            let (number, der, certificate) = (*number, *der, certificate.clone());
            if !current.names_issuer(&certificate) {
                continue;
            }
            if let Err(failure) = self.verify(current, &certificate)? {
                tried = tried.or(Some(failure));
                continue;
            }
            self.set_used(at, true);
            self.path.push(EkPathCertificate::of(der, &certificate, EkSource::Node { number }));
            let above = below.saturating_add(u32::from(!certificate.is_self_issued()));
            let way = check_issuer(&certificate, below)
                .and_then(|()| check_in_path(&certificate, der, roots, self.now))
                .and_then(|()| self.extend(&certificate, above));
            match way {
                Ok(()) => return Ok(()),
                Err(EkError::TooManySignatures) => return Err(EkError::TooManySignatures),
                Err(error) => ended = ended.or(Some(error)),
            }
            self.path.pop();
            self.set_used(at, false);
        }
        Err(ended.unwrap_or_else(|| no_issuer(current, tried)))
    }

    fn set_used(&mut self, at: usize, used: bool) {
        if let Some(intermediate) = self.intermediates.get_mut(at) {
            intermediate.used = used;
        }
    }

    /// Verifies a signature; bounds the work that one stranger can ask for.
    fn verify(
        &mut self,
        certificate: &Certificate<'_>,
        issuer: &Certificate<'_>,
    ) -> Result<Result<(), SignatureFailure>, EkError> {
        self.signatures = self.signatures.checked_sub(1).ok_or(EkError::TooManySignatures)?;
        Ok(certificate.verify_signature(issuer))
    }
}

fn no_issuer(certificate: &Certificate<'_>, tried: Option<SignatureFailure>) -> EkError {
    let name = name_text(certificate.subject);
    let issuer = name_text(certificate.issuer);
    match tried {
        None => EkError::UntrustedIssuer { name, issuer },
        Some(SignatureFailure::Bad) => EkError::BadSignature { name, issuer },
        Some(SignatureFailure::Sha1) => EkError::Sha1Signature { name },
        Some(SignatureFailure::Unsupported) => {
            EkError::UnsupportedSignature { name, algorithm: certificate.signature_algorithm() }
        }
    }
}

fn check_in_path(certificate: &Certificate<'_>, der: &[u8], roots: &EkRoots, now: i64) -> Result<(), EkError> {
    let name = || name_text(certificate.subject);
    if certificate.has_disordered_set && !roots.excepts_set_order(&Sha256::digest(der).into()) {
        return Err(EkError::NotDer { name: name(), sha256: hex::encode(Sha256::digest(der)) });
    }
    if certificate.issuer == EMPTY_NAME {
        return Err(EkError::NoIssuerName { name: name() });
    }
    if now < certificate.not_before {
        return Err(EkError::NotYetValid { name: name() });
    }
    if now > certificate.not_after {
        return Err(EkError::Expired { name: name() });
    }
    if let Some(oid) = certificate.unknown_critical {
        return Err(EkError::UnknownCriticalExtension { name: name(), oid: oid_text(oid) });
    }
    Ok(())
}

pub(super) fn check_issuer(issuer: &Certificate<'_>, below: u32) -> Result<(), EkError> {
    let name = || name_text(issuer.subject);
    let Some((true, path_len)) = issuer.basic_constraints else { return Err(EkError::NotACa { name: name() }) };
    if path_len.is_some_and(|max| below > max) {
        return Err(EkError::PathTooLong { name: name() });
    }
    if issuer.key_usage.is_some_and(|usages| usages & KEY_CERT_SIGN == 0) {
        return Err(EkError::NoCertSign { name: name() });
    }
    Ok(())
}

/// The Name without a part.
pub(super) const EMPTY_NAME: &[u8] = &[0x30, 0];

/// A file's name, shared by its certificates.
pub(super) type FileName = Arc<str>;
