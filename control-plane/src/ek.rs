//! Is it a real TPM: paths from an endorsement key's certificate to a vendor's, which the operator trusts. Whether it is
//! *our* TPM is another question, and not asked here.
//!
//! Own path validation after RFC 5280 §6, cut down to what endorsement keys need: general-purpose validators refuse
//! real EK certificates (P-521 signatures, critical certificatePolicies, empty subjects). Revocation is not checked.

pub(crate) mod certificate;

use std::{
    collections::HashMap,
    fs, io,
    ops::Deref,
    path::{Path, PathBuf},
};

use protocol::{limits, tpm::public::TpmtPublic};

use self::certificate::{
    Certificate, KEY_AGREEMENT, KEY_CERT_SIGN, KEY_ENCIPHERMENT, SignatureFailure, name_text, oid_text,
};
pub use certificate::CertificateError;

/// One file of roots; the bundle of all vendors is a tenth of it.
const MAX_FILE_LEN: u64 = 4 * 1024 * 1024;
/// Signatures verified for one enrolment: one a certificate, and as many again for issuers that share a name.
const MAX_SIGNATURE_CHECKS: usize = 2 * limits::MAX_EK_CHAIN;

/// Why roots could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum EkRootsError {
    #[error("cannot read {path}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is larger than {MAX_FILE_LEN} bytes", path = path.display())]
    TooLarge { path: PathBuf },
    #[error("{path} holds no certificate", path = path.display())]
    NoCertificate { path: PathBuf },
    #[error("{path}: PEM that does not parse", path = path.display())]
    BadPem { path: PathBuf },
    #[error("{path}: certificate {number}: {source}", path = path.display())]
    BadCertificate { path: PathBuf, number: usize, source: CertificateError },
}

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
}

impl EkError {
    /// The short name that stands in a node's history.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_ek_certificate",
            Self::UntrustedIssuer { .. } => "ek_untrusted",
            Self::OtherKey => "ek_certificate_of_other_key",
            _ => "ek_certificate_invalid",
        }
    }
}

/// A path was found: a trusted certificate vouches for the EK.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub struct EkEndorsement {
    issuer: String,
}

impl EkEndorsement {
    /// The issuer of the EK certificate, for a person.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }
}

/// The certificates an operator trusts to vouch for TPMs: roots and, if he likes, intermediates.
#[derive(Clone, Debug, Default)]
pub struct EkRoots {
    /// By subject, as DER.
    by_subject: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    count: usize,
}

impl EkRoots {
    /// No roots: nothing validates.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Loads every file of a directory, PEM (any number of certificates) or DER (one). Hidden files and directories are
    /// left out. Every certificate found is trusted as it is.
    ///
    /// # Errors
    /// [`EkRootsError`], naming the file: a root that was meant to be there and is not would only show at the node it
    /// was meant for.
    pub fn load_dir(path: &Path) -> Result<Self, EkRootsError> {
        let io_error = |source| EkRootsError::Io { path: path.to_owned(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(io_error)? {
            let entry = entry.map_err(io_error)?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                files.push(entry.path());
            }
        }
        files.sort();
        let mut roots = Self::empty();
        for file in files {
            roots.load_file(&file)?;
        }
        Ok(roots)
    }

    fn load_file(&mut self, path: &Path) -> Result<(), EkRootsError> {
        let io_error = |source| EkRootsError::Io { path: path.to_owned(), source };
        // Follows links: certificate directories are full of them.
        let metadata = fs::metadata(path).map_err(io_error)?;
        if metadata.is_dir() {
            return Ok(());
        }
        if metadata.len() > MAX_FILE_LEN {
            return Err(EkRootsError::TooLarge { path: path.to_owned() });
        }
        let bytes = fs::read(path).map_err(io_error)?;
        let is_pem = bytes.windows(10).any(|window| window == b"-----BEGIN");
        let certificates = if is_pem {
            rustls_pemfile::certs(&mut bytes.as_slice())
                .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| EkRootsError::BadPem { path: path.to_owned() })?
        } else {
            vec![bytes]
        };
        if certificates.is_empty() {
            return Err(EkRootsError::NoCertificate { path: path.to_owned() });
        }
        for (at, certificate) in certificates.into_iter().enumerate() {
            self.add(certificate).map_err(|source| EkRootsError::BadCertificate {
                path: path.to_owned(),
                number: at + 1,
                source,
            })?;
        }
        Ok(())
    }

    /// Trusts one certificate, given in DER; the same again changes nothing.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn add(&mut self, der: Vec<u8>) -> Result<(), CertificateError> {
        let subject = Certificate::parse(&der)?.subject.to_vec();
        let same_name = self.by_subject.entry(subject).or_default();
        if !same_name.contains(&der) {
            same_name.push(der);
            self.count += 1;
        }
        Ok(())
    }

    /// How many certificates are trusted.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Looks for a path from the EK certificate, which comes first in `chain`, over the others of `chain` in any order,
    /// to a trusted certificate; `now` is in seconds since 1970.
    ///
    /// The EK certificate must be for `ek_public` and no CA's; keyUsage and extended key usage, where there, must be an
    /// EK's. Each certificate of the path, the trusted one too, must be valid now and have no critical extension that is
    /// not understood; each issuer must be a CA that may sign certificates and allows the length of the path.
    ///
    /// # Errors
    /// [`EkError`], naming the certificate and what is wrong with it. At most a handful of signatures are verified,
    /// whatever the node sends.
    pub fn validate<C: Deref<Target = [u8]>>(
        &self,
        chain: &[C],
        ek_public: &TpmtPublic,
        now: i64,
    ) -> Result<EkEndorsement, EkError> {
        if chain.len() > limits::MAX_EK_CHAIN {
            return Err(EkError::TooManyCertificates(chain.len()));
        }
        let parse = |(at, der): (usize, &'_ C)| -> Result<(), EkError> {
            Certificate::parse(der).map(|_| ()).map_err(|source| EkError::BadCertificate { number: at + 1, source })
        };
        chain.iter().enumerate().try_for_each(parse)?;
        let mut certificates = chain.iter().filter_map(|der| Certificate::parse(der).ok());
        let leaf = certificates.next().ok_or(EkError::NoCertificate)?;
        let mut intermediates: Vec<_> = certificates.collect();
        check_leaf(&leaf, ek_public)?;

        let issuer_name = name_text(leaf.issuer);
        let mut signatures = SignatureBudget(MAX_SIGNATURE_CHECKS);
        let mut current = leaf;
        // CAs of the path between the issuer that is looked for and the EK certificate; self-issued ones do not count.
        let mut below = 0;
        loop {
            check_in_path(&current, now)?;
            let mut tried = None;
            for der in self.by_subject.get(current.issuer).into_iter().flatten() {
                // It parsed when it was loaded.
                let Ok(anchor) = Certificate::parse(der) else { continue };
                if current.names_issuer(&anchor) {
                    match signatures.check(&current, &anchor)? {
                        Ok(()) => {
                            check_in_path(&anchor, now)?;
                            check_issuer(&anchor, below)?;
                            return Ok(EkEndorsement { issuer: issuer_name });
                        }
                        Err(failure) => tried = Some(failure),
                    }
                }
            }
            let mut next = None;
            for (at, candidate) in intermediates.iter().enumerate() {
                if current.names_issuer(candidate) {
                    match signatures.check(&current, candidate)? {
                        Ok(()) => {
                            next = Some(at);
                            break;
                        }
                        Err(failure) => tried = Some(failure),
                    }
                }
            }
            let Some(at) = next else { return Err(no_issuer(&current, tried)) };
            let issuer = intermediates.swap_remove(at);
            check_issuer(&issuer, below)?;
            if !issuer.is_self_issued() {
                below += 1;
            }
            current = issuer;
        }
    }
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

/// Bounds the work that one stranger can ask for.
struct SignatureBudget(usize);

impl SignatureBudget {
    fn check(
        &mut self,
        certificate: &Certificate<'_>,
        issuer: &Certificate<'_>,
    ) -> Result<Result<(), SignatureFailure>, EkError> {
        self.0 = self.0.checked_sub(1).ok_or(EkError::TooManySignatures)?;
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

fn check_leaf(leaf: &Certificate<'_>, ek_public: &TpmtPublic) -> Result<(), EkError> {
    let spki = ek_public.spki_der().map_err(|_| EkError::NotAKey)?;
    if !leaf.has_key(&spki) {
        return Err(EkError::OtherKey);
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
    Ok(())
}

fn check_in_path(certificate: &Certificate<'_>, now: i64) -> Result<(), EkError> {
    let name = || name_text(certificate.subject);
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

fn check_issuer(issuer: &Certificate<'_>, below: u32) -> Result<(), EkError> {
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

#[cfg(test)]
mod tests;
