//! The two small certificate authorities: the server's, which signs servers and nothing else, and the tenant's, which
//! the operator keeps and which issues what a node finds in its payload.
//!
//! All keys are P-256 and all signatures ECDSA with SHA-256. Who trusts which CA is decided elsewhere.

use std::net::IpAddr;

use const_oid::db::rfc4519::COMMON_NAME;
use der::{Decode, DecodePem};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_cert::Certificate;
use zeroize::Zeroizing;

/// How long a certificate authority lives.
pub const CA_LIFETIME: Duration = Duration::days(3650);
/// How long a server's or a node's certificate lives unless something ends it earlier.
pub const CERTIFICATE_LIFETIME: Duration = Duration::days(398);
/// Names in one server certificate; the whole must fit one TLS record of the agent.
pub const MAX_NAMES: usize = 16;

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum PkiError {
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("not a PEM certificate of ours: {0}")]
    Parse(#[from] der::Error),
    #[error("the CA certificate has no common name")]
    NoName,
    #[error("the CA key is not the key of the CA certificate")]
    WrongKey,
    #[error("`{0}` is neither a DNS name nor an IP address")]
    BadName(String),
    #[error("a server certificate carries 1 to {MAX_NAMES} names")]
    NameCount,
}

/// A certificate and its private key.
pub struct Issued {
    /// PEM.
    pub certificate: String,
    /// PKCS #8, PEM.
    pub key: Zeroizing<String>,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issued")
    }
}

/// Makes a certificate authority.
///
/// # Errors
/// [`PkiError::Make`].
pub fn new_ca(common_name: &str) -> Result<Issued, PkiError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = ca_params(common_name);
    set_lifetime(&mut params, CA_LIFETIME);
    params.serial_number = Some(serial(&key));
    let certificate = params.self_signed(&key)?.pem();
    Ok(Issued { certificate, key: Zeroizing::new(key.serialize_pem()) })
}

/// A certificate authority, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// From a certificate that [`new_ca`] made, and its key.
    ///
    /// # Errors
    /// [`PkiError::Parse`], [`PkiError::NoName`], [`PkiError::WrongKey`].
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let certificate = Certificate::from_pem(certificate_pem)?;
        let key = KeyPair::from_pem(key_pem)?;
        let public = &certificate.tbs_certificate.subject_public_key_info.subject_public_key;
        if public.as_bytes() != Some(rcgen::PublicKeyData::der_bytes(&key)) {
            return Err(PkiError::WrongKey);
        }
        let name = common_name(&certificate).ok_or(PkiError::NoName)?;
        Ok(Self { issuer: Issuer::new(ca_params(&name), key) })
    }

    /// Issues a server certificate for `names` (DNS names and IP addresses); with `key_pem` for that key, else for a new
    /// one.
    ///
    /// # Errors
    /// [`PkiError::BadName`], [`PkiError::NameCount`], [`PkiError::Make`].
    pub fn issue_server(&self, names: &[String], key_pem: Option<&str>) -> Result<Issued, PkiError> {
        if names.is_empty() || names.len() > MAX_NAMES {
            return Err(PkiError::NameCount);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name("Trefoil control plane");
        params.subject_alt_names = names.iter().map(|name| subject_alt_name(name)).collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_lifetime(&mut params, CERTIFICATE_LIFETIME);
        self.issue(params, key_pem)
    }

    /// Issues a node's certificate and a fresh key, for TLS as client and server; it ends at `not_after` if that comes
    /// before its usual end.
    ///
    /// # Errors
    /// [`PkiError::BadName`], [`PkiError::Make`].
    pub fn issue_node(&self, name: &str, not_after: Option<OffsetDateTime>) -> Result<Issued, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(name);
        params.subject_alt_names = vec![subject_alt_name(name)?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        set_lifetime(&mut params, CERTIFICATE_LIFETIME);
        if let Some(end) = not_after {
            params.not_after = params.not_after.min(end);
        }
        self.issue(params, None)
    }

    fn issue(&self, mut params: CertificateParams, key_pem: Option<&str>) -> Result<Issued, PkiError> {
        let key = match key_pem {
            Some(pem) => KeyPair::from_pem(pem)?,
            None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
        };
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial(&key));
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: Zeroizing::new(key.serialize_pem()) })
    }
}

/// When a PEM certificate ends, seconds since 1970.
///
/// # Errors
/// [`PkiError::Parse`].
pub fn not_after(certificate_pem: &str) -> Result<u64, PkiError> {
    let certificate = Certificate::from_pem(certificate_pem)?;
    Ok(certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs())
}

/// The SubjectPublicKeyInfo of an EK in DER, from a file that holds a certificate or a public key, in PEM or DER; `None` if
/// it is neither.
pub fn ek_spki(bytes: &[u8]) -> Option<Vec<u8>> {
    use der::Encode;
    use x509_cert::spki::{ObjectIdentifier, SubjectPublicKeyInfoOwned};
    /// RSA keys that may be used for OAEP only: the key is the same, and node ids are made from the plain form.
    const RSA_OAEP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");
    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

    let mut spki = Certificate::from_pem(bytes)
        .or_else(|_| Certificate::from_der(bytes))
        .map(|certificate| certificate.tbs_certificate.subject_public_key_info)
        .or_else(|_| SubjectPublicKeyInfoOwned::from_pem(bytes))
        .or_else(|_| SubjectPublicKeyInfoOwned::from_der(bytes))
        .ok()?;
    if spki.algorithm.oid == RSA_OAEP {
        spki.algorithm.oid = RSA;
        spki.algorithm.parameters = Some(der::Any::null());
    }
    spki.to_der().ok()
}

/// SubjectPublicKeyInfo of a P-256 point (SEC1, uncompressed) as PEM: the form in which an agent pins a tenant key.
pub fn p256_spki_pem(point: &[u8; 65]) -> String {
    use base64::Engine;
    /// SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING } up to the point.
    const PREFIX: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let der = [PREFIX.as_slice(), point].concat();
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END PUBLIC KEY-----\n");
    pem
}

fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn common_name(certificate: &Certificate) -> Option<String> {
    let attributes = certificate.tbs_certificate.subject.0.iter().flat_map(|rdn| rdn.0.iter());
    let attribute = attributes.into_iter().find(|attribute| attribute.oid == COMMON_NAME)?;
    std::str::from_utf8(attribute.value.value()).ok().map(str::to_owned)
}

/// From an hour ago, so that a peer whose clock is a little slow takes it.
fn set_lifetime(params: &mut CertificateParams, lifetime: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + lifetime;
}

/// 16 random bytes, positive. rcgen's own choice follows from the key, which a renewal keeps.
fn serial(key: &KeyPair) -> SerialNumber {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 16];
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        // Unique all the same: by key and time. A serial number has no secret to keep.
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos().to_be_bytes();
        let digest =
            ring::digest::digest(&ring::digest::SHA256, &[rcgen::PublicKeyData::der_bytes(key), &now].concat());
        bytes.iter_mut().zip(digest.as_ref()).for_each(|(byte, from)| *byte = *from);
    }
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn subject_alt_name(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.len() > 253 || !name.split('.').all(label_ok) {
        return Err(PkiError::BadName(name.to_owned()));
    }
    name.try_into().map(SanType::DnsName).map_err(|_| PkiError::BadName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (Issued, Authority) {
        let ca = new_ca("Test CA").unwrap();
        let authority = Authority::load(&ca.certificate, &ca.key).unwrap();
        (ca, authority)
    }

    #[test]
    fn what_is_issued_names_its_issuer_exactly() {
        let (ca, authority) = authority();
        let issued = authority.issue_server(&["localhost".into(), "127.0.0.1".into(), "::1".into()], None).unwrap();
        let ca = Certificate::from_pem(&ca.certificate).unwrap();
        let leaf = Certificate::from_pem(&issued.certificate).unwrap();
        assert_eq!(leaf.tbs_certificate.issuer, ca.tbs_certificate.subject);
    }

    #[test]
    fn rustls_accepts_the_server_certificate_under_its_ca_only() {
        use rustls::client::danger::ServerCertVerifier;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
        let (ca, authority) = authority();
        let issued = authority.issue_server(&["localhost".into(), "127.0.0.1".into()], None).unwrap();
        let leaf = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
        let check = |ca: &str, name: &str| {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .unwrap()
                .verify_server_cert(&leaf, &[], &ServerName::try_from(name).unwrap(), &[], UnixTime::now())
                .is_ok()
        };
        assert!(check(&ca.certificate, "localhost"));
        assert!(check(&ca.certificate, "127.0.0.1"));
        assert!(!check(&ca.certificate, "example.org"));
        assert!(!check(&new_ca("Test CA").unwrap().certificate, "localhost"));
    }

    #[test]
    fn a_renewed_certificate_keeps_the_key_and_changes_the_serial_number() {
        let (_, authority) = authority();
        let names = ["localhost".to_owned()];
        let first = authority.issue_server(&names, None).unwrap();
        let second = authority.issue_server(&names, Some(&first.key)).unwrap();
        let parse = |pem: &str| Certificate::from_pem(pem).unwrap().tbs_certificate;
        let (a, b) = (parse(&first.certificate), parse(&second.certificate));
        assert_eq!(a.subject_public_key_info, b.subject_public_key_info);
        assert_ne!(a.serial_number, b.serial_number);
    }

    #[test]
    fn another_cas_key_is_refused() {
        let (a, b) = (new_ca("Test CA").unwrap(), new_ca("Test CA").unwrap());
        assert!(matches!(Authority::load(&a.certificate, &b.key), Err(PkiError::WrongKey)));
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        let (_, authority) = authority();
        for name in ["", "a..b", "-a", "a b", "ä", "*"] {
            assert!(matches!(authority.issue_server(&[name.into()], None), Err(PkiError::BadName(_))), "{name:?}");
        }
        assert!(matches!(authority.issue_server(&[], None), Err(PkiError::NameCount)));
    }

    #[test]
    fn an_eks_key_is_found_in_certificate_and_public_key_alike() {
        let (_, authority) = authority();
        let issued = authority.issue_node("edge-1", None).unwrap();
        let certificate = Certificate::from_pem(&issued.certificate).unwrap();
        let spki = &certificate.tbs_certificate.subject_public_key_info;
        let point: [u8; 65] = spki.subject_public_key.as_bytes().unwrap().try_into().unwrap();
        let from_certificate = ek_spki(issued.certificate.as_bytes()).unwrap();
        assert_eq!(ek_spki(p256_spki_pem(&point).as_bytes()), Some(from_certificate.clone()));
        assert_eq!(ek_spki(&from_certificate), Some(from_certificate));
        assert_eq!(ek_spki(b"neither"), None);
    }

    #[test]
    fn debug_shows_no_key() {
        let (ca, authority) = authority();
        assert_eq!(format!("{ca:?} {authority:?}"), "Issued Authority");
    }
}
