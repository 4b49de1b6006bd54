//! One X.509 certificate as bytes: cut into the parts that a path needs, nothing re-encoded. Signatures are verified
//! over the slice that was signed: some TPM vendors' certificates are not DER to the last bit (SETs out of order), and
//! would not come out of an encoder as they went in. That is noticed here; whether it is let pass, and paths, are
//! [`ek`](super)'s.
//!
//! RFC 5280 §4; TCG EK Credential Profile for what subjectAltName says of the TPM.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use protocol::limits;
use ring::{digest, signature};

/// Why bytes are no certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum CertificateError {
    #[error("malformed certificate at {0}")]
    Malformed(&'static str),
    #[error("a certificate of another version than 3")]
    NotVersion3,
    #[error("the certificate names two different signature algorithms")]
    AlgorithmMismatch,
    #[error("the certificate has an extension twice")]
    DoubledExtension,
    #[error("the certificate is longer than {max} bytes", max = MAX_LEN)]
    TooLong,
    #[error("bytes are left over after the certificate")]
    TrailingBytes,
}

impl CertificateError {
    /// The short name of what is wrong.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed(_) => "ek_malformed",
            Self::NotVersion3 => "ek_not_version_3",
            Self::AlgorithmMismatch => "ek_algorithm_mismatch",
            Self::DoubledExtension => "ek_doubled_extension",
            Self::TooLong => "ek_too_long",
            Self::TrailingBytes => "ek_trailing_bytes",
        }
    }
}

/// How a certificate's signature failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SignatureFailure {
    /// It is made with SHA-1.
    Sha1,
    /// Its algorithm, or the issuer's key, is none of those verified here.
    Unsupported,
    /// It does not verify.
    Bad,
}

/// Constructed values within each other that are looked into; certificates have eight or so.
const MAX_DEPTH: usize = 16;
/// RFC 5280 §4.1.2.2 allows 20 bytes; a byte more for issuers that set the top bit.
const MAX_SERIAL_LEN: usize = 21;
/// Characters of a TPM's attribute that are kept.
const MAX_ATTRIBUTE_CHARS: usize = 64;

/// Operators' roots may be larger than what TPMs hold.
const MAX_LEN: usize = 4 * limits::MAX_CERTIFICATE_LEN;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const RSAES_OAEP: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const P521: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];
/// 1.2.840.113549.1.1, before the last arc of an RSA signature algorithm.
const PKCS1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
const RSASSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
/// 2.16.840.1.101.3.4.2, before the last arc of SHA-2.
const SHA2: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
/// 1.2.840.10045.4.3, before the last arc of ecdsa-with-SHA2.
const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];

/// id-ce, before the last arc of a standard extension.
const ID_CE: &[u8] = &[0x55, 0x1d];
/// tcg-kp-EKCertificate, 2.23.133.8.1 (TCG EK Credential Profile).
const TCG_KP_EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

/// 2.23.133.2, before the last arc of a TPM's attribute: manufacturer, model, version.
const TCG_ATTRIBUTE: &[u8] = &[0x67, 0x81, 0x05, 0x02];

/// keyUsage bits (RFC 5280 §4.2.1.3), in the first byte of the bit string.
pub(crate) const KEY_ENCIPHERMENT: u8 = 0x20;
pub(crate) const KEY_AGREEMENT: u8 = 0x08;
pub(crate) const KEY_CERT_SIGN: u8 = 0x04;

/// A certificate's parts, borrowed from its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Certificate<'a> {
    /// What was signed.
    tbs: &'a [u8],
    signature_algorithm: &'a [u8],
    signature_parameters: Option<Tlv<'a>>,
    signature: &'a [u8],
    /// The INTEGER's bytes, as they are.
    pub(crate) serial: &'a [u8],
    /// Issuer and subject with their headers: names are compared as bytes.
    pub(crate) issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// SubjectPublicKeyInfo with its header.
    pub(crate) spki: &'a [u8],
    key: Key<'a>,
    /// basicConstraints: CA, and pathLenConstraint.
    pub(crate) basic_constraints: Option<(bool, Option<u32>)>,
    /// keyUsage: the first eight bits.
    pub(crate) key_usage: Option<u8>,
    /// extKeyUsage is there: whether it has tcg-kp-EKCertificate.
    pub(crate) is_ek_usage: Option<bool>,
    /// subjectAltName: whether it is critical, and the directoryName in it, with its header.
    pub(crate) alternative_name: Option<(bool, Option<&'a [u8]>)>,
    /// Some SET is not in the order of DER.
    pub(crate) has_disordered_set: bool,
    subject_key_id: Option<&'a [u8]>,
    authority_key_id: Option<&'a [u8]>,
    /// The first critical extension that is not processed here.
    pub(crate) unknown_critical: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug)]
struct Key<'a> {
    algorithm: &'a [u8],
    parameters: Option<Tlv<'a>>,
    bits: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Cuts a certificate into its parts. Every byte has to be used.
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_LEN {
            return Err(CertificateError::TooLong);
        }
        let mut rest = der;
        let mut certificate = Der(take(&mut rest, SEQUENCE, "Certificate")?.value);
        if !rest.is_empty() {
            return Err(CertificateError::TrailingBytes);
        }
        let tbs = certificate.take(SEQUENCE, "tbsCertificate")?;
        let outer_algorithm = certificate.take(SEQUENCE, "signatureAlgorithm")?;
        let signature = bit_string(certificate.take(BIT_STRING, "signatureValue")?, "signatureValue")?;
        certificate.end("signatureValue")?;

        let mut fields = Der(tbs.value);
        let Some(version) = fields.take_if(0xa0, "version")? else { return Err(CertificateError::NotVersion3) };
        if version.value != [INTEGER, 1, 2] {
            return Err(CertificateError::NotVersion3);
        }
        let serial = fields.take(INTEGER, "serialNumber")?.value;
        let shortest = !matches!(serial, [] | [0, 0..=0x7f, ..] | [0xff, 0x80..=0xff, ..]);
        if !shortest || serial.len() > MAX_SERIAL_LEN {
            return Err(CertificateError::Malformed("serialNumber"));
        }
        if fields.take(SEQUENCE, "signature")?.raw != outer_algorithm.raw {
            return Err(CertificateError::AlgorithmMismatch);
        }
        let mut algorithm = Der(outer_algorithm.value);
        let signature_algorithm = algorithm.take(OID, "signatureAlgorithm")?.value;
        let signature_parameters =
            if algorithm.0.is_empty() { None } else { Some(algorithm.any("signatureAlgorithm")?) };
        algorithm.end("signatureAlgorithm")?;
        let issuer = fields.take(SEQUENCE, "issuer")?.raw;
        let mut validity = Der(fields.take(SEQUENCE, "validity")?.value);
        let not_before = time(validity.any("notBefore")?).ok_or(CertificateError::Malformed("notBefore"))?;
        let not_after = time(validity.any("notAfter")?).ok_or(CertificateError::Malformed("notAfter"))?;
        validity.end("validity")?;
        let subject = fields.take(SEQUENCE, "subject")?.raw;
        let spki = fields.take(SEQUENCE, "subjectPublicKeyInfo")?;
        let key = Key::parse(spki.value)?;
        fields.take_if(0x81, "issuerUniqueID")?;
        fields.take_if(0x82, "subjectUniqueID")?;
        let extensions = fields.take_if(0xa3, "extensions")?;
        fields.end("tbsCertificate")?;
        let mut parsed = Self {
            tbs: tbs.raw,
            signature_algorithm,
            signature_parameters,
            signature,
            serial,
            issuer,
            subject,
            not_before,
            not_after,
            spki: spki.raw,
            key,
            basic_constraints: None,
            key_usage: None,
            is_ek_usage: None,
            alternative_name: None,
            has_disordered_set: has_disordered_set(tbs.value, MAX_DEPTH),
            subject_key_id: None,
            authority_key_id: None,
            unknown_critical: None,
        };
        if let Some(extensions) = extensions {
            parsed.extensions(extensions.value)?;
        }
        Ok(parsed)
    }

    fn extensions(&mut self, bytes: &'a [u8]) -> Result<(), CertificateError> {
        let mut outer = Der(bytes);
        let mut list = Der(outer.take(SEQUENCE, "extensions")?.value);
        outer.end("extensions")?;
        let mut seen: Vec<&[u8]> = Vec::new();
        while !list.0.is_empty() {
            let mut extension = Der(list.take(SEQUENCE, "extension")?.value);
            let id = extension.take(OID, "extnID")?.value;
            let critical = match extension.take_if(BOOLEAN, "critical")?.map(|critical| critical.value) {
                None | Some([0]) => false,
                Some([_]) => true,
                Some(_) => return Err(CertificateError::Malformed("critical")),
            };
            let value = extension.take(OCTET_STRING, "extnValue")?.value;
            extension.end("extension")?;
            if seen.contains(&id) {
                return Err(CertificateError::DoubledExtension);
            }
            seen.push(id);
            let known = match id.strip_prefix(ID_CE) {
                Some([19]) => {
                    self.basic_constraints = Some(basic_constraints(value)?);
                    true
                }
                Some([15]) => {
                    let mut value = Der(value);
                    let bits = bit_string_bits(value.take(BIT_STRING, "keyUsage")?, "keyUsage")?;
                    value.end("keyUsage")?;
                    self.key_usage = Some(bits.first().copied().unwrap_or(0));
                    true
                }
                Some([37]) => {
                    self.is_ek_usage = Some(has_ek_usage(value)?);
                    true
                }
                Some([14]) => {
                    self.subject_key_id = Some(Der(value).take(OCTET_STRING, "subjectKeyIdentifier")?.value);
                    true
                }
                Some([35]) => {
                    let mut ids = Der(Der(value).take(SEQUENCE, "authorityKeyIdentifier")?.value);
                    self.authority_key_id = ids.take_if(0x80, "authorityKeyIdentifier")?.map(|id| id.value);
                    true
                }
                Some([17]) => {
                    self.alternative_name = Some((critical, directory_name(value)?));
                    self.has_disordered_set |= has_disordered_set(value, MAX_DEPTH);
                    true
                }
                Some([9]) => {
                    self.has_disordered_set |= has_disordered_set(value, MAX_DEPTH);
                    true
                }
                // certificatePolicies and subjectDirectoryAttributes say how the TPM was certified; they restrict nothing
                // that is relied on here.
                Some([32]) => true,
                _ => false,
            };
            if critical && !known && self.unknown_critical.is_none() {
                self.unknown_critical = Some(id);
            }
        }
        Ok(())
    }

    /// Whether issuer and subject are the same name.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Whether `issuer` may have signed this, by names and key identifiers alone.
    pub(crate) fn names_issuer(&self, issuer: &Certificate<'_>) -> bool {
        let other_key = self.authority_key_id.zip(issuer.subject_key_id).is_some_and(|(of, id)| of != id);
        self.issuer == issuer.subject && !other_key
    }

    /// Whether the key is an RSA key.
    pub(crate) fn is_rsa(&self) -> bool {
        matches!(self.key.algorithm, RSA_ENCRYPTION | RSAES_OAEP)
    }

    /// Whether the key is the one of this SubjectPublicKeyInfo, which is canonical. Certificates may write an RSA
    /// encryption key as id-RSAES-OAEP.
    pub(crate) fn has_key(&self, spki: &[u8]) -> bool {
        if self.spki == spki {
            return true;
        }
        let mut rest = spki;
        let canonical = take(&mut rest, SEQUENCE, "subjectPublicKeyInfo").and_then(|spki| Key::parse(spki.value));
        self.key.algorithm == RSAES_OAEP
            && canonical.is_ok_and(|key| key.algorithm == RSA_ENCRYPTION && key.bits == self.key.bits)
    }

    /// The key as a SubjectPublicKeyInfo of the form that a node id is made of.
    pub(crate) fn canonical_spki(&self) -> Vec<u8> {
        if self.key.algorithm != RSAES_OAEP {
            return self.spki.to_vec();
        }
        let algorithm = encode(SEQUENCE, &[&encode(OID, &[RSA_ENCRYPTION]), &[5, 0]]);
        encode(SEQUENCE, &[&algorithm, &encode(BIT_STRING, &[&[0], self.key.bits])])
    }

    /// Verifies the signature with the issuer's key, over the bytes as they are.
    pub(crate) fn verify_signature(&self, issuer: &Certificate<'_>) -> Result<(), SignatureFailure> {
        let key = issuer.key;
        if self.signature_algorithm == ECDSA_SHA1 || self.signature_algorithm.strip_prefix(PKCS1) == Some(&[5]) {
            return Err(SignatureFailure::Sha1);
        }
        let with_ring = |algorithm: &'static dyn signature::VerificationAlgorithm| {
            signature::UnparsedPublicKey::new(algorithm, key.bits)
                .verify(self.tbs, self.signature)
                .map_err(|_| SignatureFailure::Bad)
        };
        if self.signature_algorithm == RSASSA_PSS {
            // A key that is for PSS alone may narrow the parameters further; none of ours to follow.
            let plain = key.algorithm == RSA_ENCRYPTION || (key.algorithm == RSASSA_PSS && key.parameters.is_none());
            let hash = self.signature_parameters.filter(|_| plain).and_then(pss_hash);
            return match hash {
                Some(1) => with_ring(&signature::RSA_PSS_2048_8192_SHA256),
                Some(2) => with_ring(&signature::RSA_PSS_2048_8192_SHA384),
                Some(3) => with_ring(&signature::RSA_PSS_2048_8192_SHA512),
                _ => Err(SignatureFailure::Unsupported),
            };
        }
        if let Some([arc]) = self.signature_algorithm.strip_prefix(PKCS1) {
            if key.algorithm != RSA_ENCRYPTION {
                return Err(SignatureFailure::Unsupported);
            }
            return match arc {
                11 => with_ring(&signature::RSA_PKCS1_2048_8192_SHA256),
                12 => with_ring(&signature::RSA_PKCS1_2048_8192_SHA384),
                13 => with_ring(&signature::RSA_PKCS1_2048_8192_SHA512),
                _ => Err(SignatureFailure::Unsupported),
            };
        }
        let Some([arc]) = self.signature_algorithm.strip_prefix(ECDSA_SHA2) else {
            return Err(SignatureFailure::Unsupported);
        };
        let hash = match arc {
            2 => &digest::SHA256,
            3 => &digest::SHA384,
            4 => &digest::SHA512,
            _ => return Err(SignatureFailure::Unsupported),
        };
        let curve = key.parameters.filter(|curve| key.algorithm == EC_PUBLIC_KEY && curve.tag == OID);
        match (curve.map(|curve| curve.value), arc) {
            (Some(P256), 2) => with_ring(&signature::ECDSA_P256_SHA256_ASN1),
            (Some(P256), 3) => with_ring(&signature::ECDSA_P256_SHA384_ASN1),
            (Some(P384), 2) => with_ring(&signature::ECDSA_P384_SHA256_ASN1),
            (Some(P384), 3) => with_ring(&signature::ECDSA_P384_SHA384_ASN1),
            // ring has neither P-521, nor SHA-512 for the other curves.
            (Some(P256), 4) => {
                let digest = digest::digest(hash, self.tbs);
                let signature = p256::ecdsa::Signature::from_der(self.signature).map_err(|_| SignatureFailure::Bad)?;
                p256::ecdsa::VerifyingKey::from_sec1_bytes(key.bits)
                    .and_then(|key| key.verify_prehash(digest.as_ref(), &signature))
                    .map_err(|_| SignatureFailure::Bad)
            }
            (Some(P384), 4) => {
                let digest = digest::digest(hash, self.tbs);
                let signature = p384::ecdsa::Signature::from_der(self.signature).map_err(|_| SignatureFailure::Bad)?;
                p384::ecdsa::VerifyingKey::from_sec1_bytes(key.bits)
                    .and_then(|key| key.verify_prehash(digest.as_ref(), &signature))
                    .map_err(|_| SignatureFailure::Bad)
            }
            (Some(P521), _) => {
                // A hash shorter than half the curve's order is refused: as a number it stays the same with zeros before it.
                let digest = digest::digest(hash, self.tbs);
                let hash = [&[0; 66][digest.as_ref().len()..], digest.as_ref()].concat();
                let signature = p521::ecdsa::DerSignature::from_bytes(self.signature)
                    .ok()
                    .and_then(|signature| p521::ecdsa::Signature::try_from(signature).ok())
                    .ok_or(SignatureFailure::Bad)?;
                p521::ecdsa::VerifyingKey::from_sec1_bytes(key.bits)
                    .and_then(|key| key.verify_prehash(&hash, &signature))
                    .map_err(|_| SignatureFailure::Bad)
            }
            _ => Err(SignatureFailure::Unsupported),
        }
    }

    /// The signature algorithm, in dotted decimal.
    pub(crate) fn signature_algorithm(&self) -> String {
        oid_text(self.signature_algorithm)
    }

    /// The key's kind for a person: `RSA 2048`, `P-256`; else its algorithm in dotted decimal.
    pub(crate) fn key_kind(&self) -> String {
        if self.is_rsa() || self.key.algorithm == RSASSA_PSS {
            let modulus = Der(self.key.bits)
                .take(SEQUENCE, "subjectPublicKey")
                .and_then(|key| Der(key.value).take(INTEGER, "subjectPublicKey"));
            let bytes = modulus.map_or(&[][..], |modulus| modulus.value.strip_prefix(&[0]).unwrap_or(modulus.value));
            let unused = bytes.first().map_or(0, |first| first.leading_zeros() as usize);
            return format!("RSA {}", (8 * bytes.len()).saturating_sub(unused));
        }
        let curve = self.key.parameters.filter(|curve| self.key.algorithm == EC_PUBLIC_KEY && curve.tag == OID);
        match curve.map(|curve| curve.value) {
            Some(P256) => "P-256".into(),
            Some(P384) => "P-384".into(),
            Some(P521) => "P-521".into(),
            Some(other) => format!("curve {}", oid_text(other)),
            None => oid_text(self.key.algorithm),
        }
    }

    /// Manufacturer, model and version of the TPM, as far as subjectAltName names them.
    pub(crate) fn tpm_attributes(&self) -> [Option<String>; 3] {
        let mut attributes = [None, None, None];
        let Some((_, Some(mut name))) = self.alternative_name else { return attributes };
        let Ok(name) = take(&mut name, SEQUENCE, "name") else { return attributes };
        let mut sets = Der(name.value);
        while let Ok(set) = sets.take(SET, "name") {
            let mut members = Der(set.value);
            while let Ok(attribute) = members.take(SEQUENCE, "name") {
                let mut fields = Der(attribute.value);
                let (Ok(id), Ok(value)) = (fields.take(OID, "name"), fields.any("name")) else { continue };
                let slot = match id.value.strip_prefix(TCG_ATTRIBUTE) {
                    Some([1]) => &mut attributes[0],
                    Some([2]) => &mut attributes[1],
                    Some([3]) => &mut attributes[2],
                    _ => continue,
                };
                let text = String::from_utf8_lossy(value.value);
                let plain = text.chars().take(MAX_ATTRIBUTE_CHARS);
                *slot = Some(plain.map(|c| if is_obeyed(c) { '?' } else { c }).collect());
            }
        }
        attributes
    }
}

/// The hash of RSASSA-PSS parameters, by the last arc of its identifier: SHA-2, MGF1 with the same, salt of its length,
/// and nothing left to defaults, which are SHA-1's (RFC 4055 §3.1).
fn pss_hash(parameters: Tlv<'_>) -> Option<u8> {
    const WHAT: &str = "RSASSA-PSS-params";
    let sha2 = |bytes: &[u8]| -> Option<u8> {
        let mut algorithm = Der(bytes);
        let id = algorithm.take(OID, WHAT).ok()?.value;
        let plain = algorithm.0.is_empty() || algorithm.0 == [5, 0];
        match id.strip_prefix(SHA2) {
            Some([arc @ 1..=3]) if plain => Some(*arc),
            _ => None,
        }
    };
    if parameters.tag != SEQUENCE {
        return None;
    }
    let mut fields = Der(parameters.value);
    let hash = sha2(Der(fields.take(0xa0, WHAT).ok()?.value).take(SEQUENCE, WHAT).ok()?.value)?;
    let mut mask = Der(Der(fields.take(0xa1, WHAT).ok()?.value).take(SEQUENCE, WHAT).ok()?.value);
    if mask.take(OID, WHAT).ok()?.value != MGF1 || sha2(mask.take(SEQUENCE, WHAT).ok()?.value)? != hash {
        return None;
    }
    let salt_len = Der(fields.take(0xa2, WHAT).ok()?.value).take(INTEGER, WHAT).ok()?.value;
    // The trailer, if said, is the only one there is.
    let trailer = fields.take_if(0xa3, WHAT).ok()?;
    let usual = trailer.is_none_or(|trailer| trailer.value == [INTEGER, 1, 1]) && fields.0.is_empty();
    let wanted = match hash {
        1 => 32,
        2 => 48,
        _ => 64,
    };
    (usual && salt_len == [wanted]).then_some(hash)
}

/// The first directoryName of a subjectAltName, with its header.
fn directory_name(value: &[u8]) -> Result<Option<&[u8]>, CertificateError> {
    const WHAT: &str = "subjectAltName";
    let mut outer = Der(value);
    let mut names = Der(outer.take(SEQUENCE, WHAT)?.value);
    outer.end(WHAT)?;
    let mut found = None;
    while !names.0.is_empty() {
        let name = names.any(WHAT)?;
        // [4] is explicit: Name is a CHOICE.
        if name.tag == 0xa4 {
            let mut inner = Der(name.value);
            let directory = inner.take(SEQUENCE, WHAT)?.raw;
            inner.end(WHAT)?;
            found = found.or(Some(directory));
        }
    }
    Ok(found)
}

/// Whether a SET OF, here or in what is constructed of this, is not sorted by its elements' bytes (X.690 §11.6).
fn has_disordered_set(bytes: &[u8], depth: usize) -> bool {
    let mut list = bytes;
    while let Some(element) = next(&mut list) {
        if element.tag == SET {
            let mut members = element.value;
            let mut last: Option<&[u8]> = None;
            while let Some(member) = next(&mut members) {
                if last.is_some_and(|last| last > member.raw) {
                    return true;
                }
                last = Some(member.raw);
            }
        }
        let constructed = element.tag & 0x20 != 0;
        if constructed && depth > 0 && has_disordered_set(element.value, depth - 1) {
            return true;
        }
    }
    false
}

impl<'a> Key<'a> {
    fn parse(spki: &'a [u8]) -> Result<Self, CertificateError> {
        let mut fields = Der(spki);
        let mut algorithm = Der(fields.take(SEQUENCE, "subjectPublicKeyInfo")?.value);
        let id = algorithm.take(OID, "subjectPublicKeyInfo")?.value;
        let parameters = if algorithm.0.is_empty() { None } else { Some(algorithm.any("subjectPublicKeyInfo")?) };
        algorithm.end("subjectPublicKeyInfo")?;
        let bits = bit_string(fields.take(BIT_STRING, "subjectPublicKey")?, "subjectPublicKey")?;
        fields.end("subjectPublicKeyInfo")?;
        Ok(Self { algorithm: id, parameters, bits })
    }
}

/// cA and pathLenConstraint.
fn basic_constraints(value: &[u8]) -> Result<(bool, Option<u32>), CertificateError> {
    const WHAT: &str = "basicConstraints";
    let mut outer = Der(value);
    let mut fields = Der(outer.take(SEQUENCE, WHAT)?.value);
    outer.end(WHAT)?;
    let ca = match fields.take_if(BOOLEAN, WHAT)?.map(|ca| ca.value) {
        None | Some([0]) => false,
        Some([_]) => true,
        Some(_) => return Err(CertificateError::Malformed(WHAT)),
    };
    let path_len = match fields.take_if(INTEGER, WHAT)?.map(|len| len.value) {
        None => None,
        // No real path is longer than 127.
        Some([len @ 0..=0x7f]) => Some(u32::from(*len)),
        Some(_) => return Err(CertificateError::Malformed(WHAT)),
    };
    fields.end(WHAT)?;
    Ok((ca, path_len))
}

fn has_ek_usage(value: &[u8]) -> Result<bool, CertificateError> {
    let mut outer = Der(value);
    let mut usages = Der(outer.take(SEQUENCE, "extKeyUsage")?.value);
    outer.end("extKeyUsage")?;
    let mut found = false;
    while !usages.0.is_empty() {
        found |= usages.take(OID, "extKeyUsage")?.value == TCG_KP_EK_CERTIFICATE;
    }
    Ok(found)
}

/// A distinguished name for a person: `CN=…, O=…`; at most 200 characters, nothing that a terminal would obey.
pub(crate) fn name_text(name: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = name;
    let Ok(name) = take(&mut rest, SEQUENCE, "name") else { return "an unreadable name".to_owned() };
    let mut sets = Der(name.value);
    while let Ok(set) = sets.take(SET, "name") {
        let mut attributes = Der(set.value);
        while let Ok(attribute) = attributes.take(SEQUENCE, "name") {
            let mut fields = Der(attribute.value);
            let (Ok(id), Ok(value)) = (fields.take(OID, "name"), fields.any("name")) else { continue };
            let label = match id.value {
                [0x55, 4, 3] => "CN".to_owned(),
                [0x55, 4, 6] => "C".to_owned(),
                [0x55, 4, 7] => "L".to_owned(),
                [0x55, 4, 8] => "ST".to_owned(),
                [0x55, 4, 10] => "O".to_owned(),
                [0x55, 4, 11] => "OU".to_owned(),
                other => oid_text(other),
            };
            let value = if value.tag == BMP_STRING {
                let (units, _) = value.value.as_chunks::<2>();
                String::from_utf16_lossy(&units.iter().map(|unit| u16::from_be_bytes(*unit)).collect::<Vec<_>>())
            } else {
                String::from_utf8_lossy(value.value).into_owned()
            };
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(&label);
            text.push('=');
            text.extend(value.chars().map(|c| if is_obeyed(c) { '?' } else { c }));
        }
    }
    if text.is_empty() {
        return "an empty name".to_owned();
    }
    if text.chars().count() > 200 {
        text = text.chars().take(199).chain(['…']).collect();
    }
    text
}

/// Whether a terminal acts on it: controls, and what turns the direction of writing (Unicode UAX #9 §2).
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An object identifier in dotted decimal.
pub(crate) fn oid_text(oid: &[u8]) -> String {
    let mut arcs: Vec<String> = Vec::new();
    let mut arc = 0u64;
    for byte in oid {
        arc = arc.wrapping_shl(7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            if arcs.is_empty() {
                let first = (arc / 40).min(2);
                arcs.push(first.to_string());
                arcs.push((arc - 40 * first).to_string());
            } else {
                arcs.push(arc.to_string());
            }
            arc = 0;
        }
    }
    arcs.join(".")
}

/// UTCTime or GeneralizedTime as RFC 5280 §4.1.2.5 has them, in seconds since 1970.
fn time(time: Tlv<'_>) -> Option<i64> {
    let digits = time.value.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0i32, |sum, digit| sum * 10 + i32::from(*digit - b'0'));
    let (year, rest) = match (time.tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year), rest)
        }
        _ => return None,
    };
    let (pairs, _) = rest.as_chunks::<2>();
    let [month, day, hour, minute, second] = pairs else { return None };
    let pair = |digits: &[u8; 2]| u8::try_from(number(digits)).ok();
    let month = time::Month::try_from(pair(month)?).ok()?;
    let date = time::Date::from_calendar_date(year, month, pair(day)?).ok()?;
    let time = date.with_hms(pair(hour)?, pair(minute)?, pair(second)?).ok()?;
    Some(time.assume_utc().unix_timestamp())
}

/// One element: tag, contents, and all of it.
#[derive(Clone, Copy, Debug)]
struct Tlv<'a> {
    tag: u8,
    value: &'a [u8],
    raw: &'a [u8],
}

/// The elements of a constructed value, one after the other.
#[derive(Clone, Copy, Debug)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn take(&mut self, tag: u8, what: &'static str) -> Result<Tlv<'a>, CertificateError> {
        take(&mut self.0, tag, what)
    }

    fn take_if(&mut self, tag: u8, what: &'static str) -> Result<Option<Tlv<'a>>, CertificateError> {
        if self.0.first() == Some(&tag) { self.take(tag, what).map(Some) } else { Ok(None) }
    }

    fn any(&mut self, what: &'static str) -> Result<Tlv<'a>, CertificateError> {
        next(&mut self.0).ok_or(CertificateError::Malformed(what))
    }

    fn end(&self, what: &'static str) -> Result<(), CertificateError> {
        if self.0.is_empty() { Ok(()) } else { Err(CertificateError::Malformed(what)) }
    }
}

fn take<'a>(rest: &mut &'a [u8], tag: u8, what: &'static str) -> Result<Tlv<'a>, CertificateError> {
    next(rest).filter(|tlv| tlv.tag == tag).ok_or(CertificateError::Malformed(what))
}

/// The next element: a tag of one byte, a definite length of at most three bytes in its shortest form.
fn next<'a>(rest: &mut &'a [u8]) -> Option<Tlv<'a>> {
    let all = *rest;
    let (tag, after) = all.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (first, after) = after.split_first()?;
    let (len, after) = match first {
        0..=0x7f => (usize::from(*first), after),
        0x81..=0x83 => {
            let (bytes, after) = after.split_at_checked(usize::from(first & 0x7f))?;
            let len = bytes.iter().fold(0usize, |len, byte| len << 8 | usize::from(*byte));
            let shortest = bytes.first() != Some(&0) && len > 0x7f;
            (shortest.then_some(len)?, after)
        }
        _ => return None,
    };
    let (value, after) = after.split_at_checked(len)?;
    let raw = all.get(..all.len() - after.len())?;
    *rest = after;
    Some(Tlv { tag: *tag, value, raw })
}

/// The bytes of a BIT STRING without unused bits.
fn bit_string<'a>(tlv: Tlv<'a>, what: &'static str) -> Result<&'a [u8], CertificateError> {
    match tlv.value {
        [0, bytes @ ..] => Ok(bytes),
        _ => Err(CertificateError::Malformed(what)),
    }
}

/// The bytes of a BIT STRING; unused bits are whatever they are.
fn bit_string_bits<'a>(tlv: Tlv<'a>, what: &'static str) -> Result<&'a [u8], CertificateError> {
    match tlv.value {
        [0..=7, bytes @ ..] => Ok(bytes),
        _ => Err(CertificateError::Malformed(what)),
    }
}

/// An element from its parts, at most 65,535 bytes of them.
fn encode(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut out = vec![tag];
    match len {
        [0, len @ 0..=0x7f] => out.push(len),
        [0, len] => out.extend_from_slice(&[0x81, len]),
        [high, low] => out.extend_from_slice(&[0x82, high, low]),
    }
    out.extend_from_slice(&value);
    out
}
