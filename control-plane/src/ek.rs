//! Is it a real TPM: paths from an endorsement key's certificate to a vendor's, which the operator trusts. Whether it is
//! *our* TPM is another question, and not asked here.
//!
//! Own path validation after RFC 5280 §6, cut down to what endorsement keys need: general-purpose validators refuse
//! real EK certificates (P-521 signatures, critical certificatePolicies, empty subjects). Revocation is not checked.

pub mod bundle;
pub(crate) mod certificate;
pub mod path;
pub mod trust;

use std::ops::Deref;

use protocol::{limits, tpm::public::TpmtPublic};

use self::{
    certificate::{Certificate, KEY_AGREEMENT, KEY_ENCIPHERMENT},
    path::{EMPTY_NAME, Search},
};
pub use bundle::{BundleCertificate, EkRoots, EkRootsError, Provenance};
pub use certificate::CertificateError;
pub use path::{EkPath, EkPathCertificate, EkSource, TpmIdentity};
pub use trust::EkTrust;

/// Why an EK is not endorsed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum EkError {
    #[error("the node sent no EK certificate")]
    NoCertificate,
    #[error("the node sent {0} certificates, more than {max}", max = limits::MAX_EK_CHAIN)]
    TooManyCertificates(usize),
    #[error("certificate {number} of the node: {source}")]
    BadCertificate { number: usize, source: CertificateError },
    #[error("the EK's public area holds no key")]
    NotAKey,
    #[error("the certificate is for another key than the node's EK")]
    OtherKey,
    #[error("the EK certificate is a CA's")]
    LeafIsCa,
    #[error("the EK certificate's keyUsage does not allow {0}")]
    LeafKeyUsage(&'static str),
    #[error("the EK certificate's extended key usage is not tcg-kp-EKCertificate (2.23.133.8.1)")]
    LeafExtendedKeyUsage,
    #[error("the certificate of {name} is not valid yet")]
    NotYetValid { name: String },
    #[error("the certificate of {name} has expired")]
    Expired { name: String },
    #[error("the certificate of {name} has a critical extension {oid} that is not understood here")]
    UnknownCriticalExtension { name: String, oid: String },
    #[error("no trusted certificate is {issuer}'s, who issued that of {name}")]
    UntrustedIssuer { name: String, issuer: String },
    #[error("the certificate of {name} is not signed by {issuer}")]
    BadSignature { name: String, issuer: String },
    #[error("the certificate of {name} is signed with SHA-1")]
    Sha1Signature { name: String },
    #[error("the certificate of {name} is signed with {algorithm}, or by a key, that is not supported")]
    UnsupportedSignature { name: String, algorithm: String },
    #[error("{name} issued a certificate and is no CA")]
    NotACa { name: String },
    #[error("{name} issued a certificate and its keyUsage does not allow that")]
    NoCertSign { name: String },
    #[error("the path below {name} is longer than its pathLenConstraint")]
    PathTooLong { name: String },
    #[error("too many issuers of one name")]
    TooManySignatures,
    #[error("the certificate of {name} is not DER: a SET is out of order (sha256 {sha256} has no exception set-order)")]
    NotDer { name: String, sha256: String },
    #[error("the certificate of {name} names no issuer")]
    NoIssuerName { name: String },
    #[error("the EK certificate has an empty subject and no critical subjectAltName in its place")]
    NoSubject,
    #[error("the EK certificate's critical subjectAltName has no directoryName")]
    NoDirectoryName,
}

impl EkError {
    /// The short name that stands in a node's history; each variant has its own.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_ek_certificate",
            Self::TooManyCertificates(_) => "ek_too_many_certificates",
            Self::BadCertificate { source, .. } => source.code(),
            Self::NotAKey => "ek_not_a_key",
            Self::OtherKey => "ek_certificate_of_other_key",
            Self::LeafIsCa => "ek_leaf_is_ca",
            Self::LeafKeyUsage(_) => "ek_key_usage",
            Self::LeafExtendedKeyUsage => "ek_extended_key_usage",
            Self::NotYetValid { .. } => "ek_not_yet_valid",
            Self::Expired { .. } => "ek_expired",
            Self::UnknownCriticalExtension { .. } => "ek_unknown_critical",
            Self::UntrustedIssuer { .. } => "ek_untrusted",
            Self::BadSignature { .. } => "ek_bad_signature",
            Self::Sha1Signature { .. } => "ek_sha1_signature",
            Self::UnsupportedSignature { .. } => "ek_unsupported_signature",
            Self::NotACa { .. } => "ek_not_a_ca",
            Self::NoCertSign { .. } => "ek_no_cert_sign",
            Self::PathTooLong { .. } => "ek_path_too_long",
            Self::TooManySignatures => "ek_too_many_signatures",
            Self::NotDer { .. } => "ek_not_der",
            Self::NoIssuerName { .. } => "ek_no_issuer_name",
            Self::NoSubject => "ek_no_subject",
            Self::NoDirectoryName => "ek_no_directory_name",
        }
    }

    /// What a person can do about it.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::NoCertificate => {
                "The TPM has no EK certificate: admit the node by its id, or let its policy accept hardware-unproven."
            }
            Self::UntrustedIssuer { .. } => {
                "Get the issuer's certificate from the TPM's vendor and put it into the bundle (ek_roots), with its \
                 provenance; or admit the node by its id."
            }
            Self::NotDer { .. } => {
                "If the certificate is the vendor's own, name it in the bundle's provenance.toml with \
                 exceptions = [\"set-order\"]."
            }
            Self::Expired { .. } | Self::NotYetValid { .. } => {
                "Look for a newer certificate of the same key in the vendor's bundle, and at the server's clock."
            }
            Self::OtherKey | Self::BadSignature { .. } => {
                "Do not trust this node before you know why: the certificate is not this TPM's, or not its issuer's."
            }
            _ => "The certificate cannot be used: if the machine itself is trusted, admit the node by its id.",
        }
    }
}

impl EkRoots {
    /// Looks for a path from the EK certificate, which comes first in `chain`, over the others of `chain` in any order,
    /// to a trusted certificate; `now` is in seconds since 1970.
    ///
    /// The EK certificate must be for `ek_public`; for the rest see
    /// [`validate_certificate`](Self::validate_certificate).
    ///
    /// # Errors
    /// [`EkError`], naming the certificate and what is wrong with it. At most a handful of signatures are verified,
    /// whatever the node sends.
    pub fn validate<C: Deref<Target = [u8]>>(
        &self,
        chain: &[C],
        ek_public: &TpmtPublic,
        now: i64,
    ) -> Result<EkPath, EkError> {
        self.search(chain, Some(ek_public), now)
    }

    /// The same for a certificate whose key nobody has shown.
    ///
    /// The EK certificate must be no CA's; keyUsage and extended key usage, where there, must be an EK's; an empty subject
    /// needs a critical subjectAltName, and a critical subjectAltName a directoryName. Each certificate of the path, the
    /// trusted one too, must be DER (but for a SET's order, where the bundle excepts it), valid now and without a critical
    /// extension that is not understood; each issuer must be a CA that may sign certificates and allows the length of the
    /// path.
    ///
    /// # Errors
    /// [`EkError`].
    pub fn validate_certificate<C: Deref<Target = [u8]>>(&self, chain: &[C], now: i64) -> Result<EkPath, EkError> {
        self.search(chain, None, now)
    }

    fn search<C: Deref<Target = [u8]>>(
        &self,
        chain: &[C],
        ek_public: Option<&TpmtPublic>,
        now: i64,
    ) -> Result<EkPath, EkError> {
        if chain.len() > limits::MAX_EK_CHAIN {
            return Err(EkError::TooManyCertificates(chain.len()));
        }
        let mut certificates = Vec::with_capacity(chain.len());
        for (at, der) in chain.iter().enumerate() {
            let certificate =
                Certificate::parse(der).map_err(|source| EkError::BadCertificate { number: at + 1, source })?;
            certificates.push((&**der, certificate));
        }
        let mut certificates = certificates.into_iter();
        let (der, leaf) = certificates.next().ok_or(EkError::NoCertificate)?;
        check_leaf(&leaf, ek_public)?;
        let mut not_checked = vec!["revocation".to_owned()];
        let tpm = TpmIdentity::of(&leaf);
        for (said, what) in [
            (leaf.key_usage.is_some(), "key_usage"),
            (leaf.is_ek_usage.is_some(), "extended_key_usage"),
            (tpm != TpmIdentity::default(), "tpm_identity"),
        ] {
            if !said {
                not_checked.push(what.to_owned());
            }
        }
        let certificates = Search::new(self, now, certificates).run(der, &leaf)?;
        Ok(EkPath { certificates, tpm, not_checked })
    }
}

/// What a certificate says for a person, without any check: `number` counts from 1 in what the node sent.
///
/// # Errors
/// [`CertificateError`].
pub fn describe(der: &[u8], number: usize) -> Result<(EkPathCertificate, TpmIdentity), CertificateError> {
    let certificate = Certificate::parse(der)?;
    let identity = TpmIdentity::of(&certificate);
    Ok((EkPathCertificate::of(der, &certificate, EkSource::Node { number }), identity))
}

/// The subject of any certificate, for a person; `None` if it cannot be read.
pub(crate) fn certificate_subject(der: &[u8]) -> Option<String> {
    Certificate::parse(der).ok().map(|certificate| certificate::name_text(certificate.subject))
}

/// The SubjectPublicKeyInfo of an EK certificate, in the form that a node id is made of.
///
/// Nothing about the certificate is checked: for an operator who names a node by it.
///
/// # Errors
/// [`CertificateError`].
pub fn certificate_spki(der: &[u8]) -> Result<Vec<u8>, CertificateError> {
    Certificate::parse(der).map(|certificate| certificate.canonical_spki())
}

fn check_leaf(leaf: &Certificate<'_>, ek_public: Option<&TpmtPublic>) -> Result<(), EkError> {
    if let Some(ek_public) = ek_public {
        let spki = ek_public.spki_der().map_err(|_| EkError::NotAKey)?;
        if !leaf.has_key(&spki) {
            return Err(EkError::OtherKey);
        }
    }
    if leaf.basic_constraints.is_some_and(|(ca, _)| ca) {
        return Err(EkError::LeafIsCa);
    }
    // TCG EK Credential Profile: an RSA EK deciphers keys, an ECC EK agrees on them.
    let (bit, usage) =
        if leaf.is_rsa() { (KEY_ENCIPHERMENT, "keyEncipherment") } else { (KEY_AGREEMENT, "keyAgreement") };
    if leaf.key_usage.is_some_and(|usages| usages & bit == 0) {
        return Err(EkError::LeafKeyUsage(usage));
    }
    if leaf.is_ek_usage == Some(false) {
        return Err(EkError::LeafExtendedKeyUsage);
    }
    // RFC 5280 §4.2.1.6, and the profile's: what stands in for the subject names the TPM.
    let critical = leaf.alternative_name.filter(|(critical, _)| *critical);
    if leaf.subject == EMPTY_NAME && critical.is_none() {
        return Err(EkError::NoSubject);
    }
    if critical.is_some_and(|(_, directory_name)| directory_name.is_none()) {
        return Err(EkError::NoDirectoryName);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
