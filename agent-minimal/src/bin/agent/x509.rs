//! The certificates and keys the agent reads: a bounded walk over DER for exactly the profile it accepts.
//!
//! A server's certificate is P-256, signed directly by a pinned authority with ECDSA and SHA-256. Nothing else is
//! understood, and what is not understood is refused. Who pins what, and when a certificate is asked for, is the
//! business of [`tls`](crate::tls).

use std::{fs, io, net::IpAddr, path::PathBuf};

use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};
use protocol::crypto::manifest::TenantPublicKey;

/// One certificate, authority's or server's, in DER. Ours are under 700 bytes; larger ones need not be read.
pub(crate) const MAX_CERTIFICATE_LEN: usize = 4096;
/// Authorities that one file may pin: enough to rotate two of them.
pub(crate) const MAX_AUTHORITIES: usize = 4;

/// What about a certificate, or a key, is not acceptable.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("is not well-formed DER of an X.509 version 3 certificate")]
    Malformed,
    #[error("has bytes left over after its end")]
    TrailingBytes,
    #[error("is larger than 4096 bytes")]
    TooLong,
    #[error("is not signed with ECDSA and SHA-256")]
    Algorithm,
    #[error("has a key that is not P-256")]
    KeyType,
    #[error("carries a critical extension that is not understood")]
    UnknownCritical,
    #[error("carries the same extension twice")]
    DuplicateExtension,
    #[error("does not say that it is a certificate authority that may sign certificates")]
    NotAnAuthority,
    #[error("was not issued directly by a pinned certificate authority")]
    UnknownIssuer,
    #[error("has a signature that does not verify under its issuer's key")]
    BadSignature,
    #[error("is a certificate authority's, not a server's")]
    IsAuthority,
    #[error("is not for authenticating a server (extended key usage serverAuth)")]
    NotForServers,
    #[error("has a key that may not sign (key usage digitalSignature)")]
    KeyUsage,
    #[error("is for another name (subject alternative name)")]
    OtherName,
    #[error("is not valid yet")]
    NotYetValid,
    #[error("has expired")]
    Expired,
}

/// The name a server has to prove: what was configured, literally.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum ServerName {
    /// A DNS name; compared without regard to ASCII case, no wildcards.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// What is known about the time, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// It is certainly not earlier than this.
    pub(crate) not_before: u64,
    /// The clock, where it can be believed.
    pub(crate) now: Option<u64>,
}

/// A pinned certificate authority.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    subject: Vec<u8>,
    key: VerifyingKey,
}

impl Authority {
    /// Reads an authority's certificate: CA:TRUE, allowed to sign certificates, P-256. Being pinned, its own signature
    /// and validity are not asked for.
    ///
    /// # Errors
    /// [`CertificateError`], by the first thing that is not as it has to be.
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = Certificate::parse(der)?;
        if certificate.unknown_critical {
            return Err(CertificateError::UnknownCritical);
        }
        if certificate.is_authority != Some(true)
            || certificate.key_usage.is_some_and(|usage| usage & KEY_CERT_SIGN == 0)
        {
            return Err(CertificateError::NotAnAuthority);
        }
        Ok(Self { subject: certificate.subject.to_vec(), key: certificate.key()? })
    }

    /// Reads the 1 to 4 certificates of a PEM file.
    ///
    /// # Errors
    /// [`PemError`].
    pub(crate) fn all_from_pem(pem: &str) -> Result<Vec<Self>, PemError> {
        let blocks = pem_blocks(pem, "CERTIFICATE")?;
        if blocks.is_empty() || blocks.len() > MAX_AUTHORITIES {
            return Err(PemError::Count { label: "CERTIFICATE", max: MAX_AUTHORITIES });
        }
        blocks.iter().map(|der| Self::from_der(der).map_err(PemError::Certificate)).collect()
    }
}

/// Judges the one certificate a server presented; its key is what the server has to prove next.
///
/// # Errors
/// [`CertificateError`], by the first requirement that is not met.
pub(crate) fn verify_server(
    der: &[u8],
    authorities: &[Authority],
    name: &ServerName,
    clock: Clock,
) -> Result<VerifyingKey, CertificateError> {
    let certificate = Certificate::parse(der)?;
    let mut issuers = authorities.iter().filter(|authority| authority.subject == certificate.issuer).peekable();
    if issuers.peek().is_none() {
        return Err(CertificateError::UnknownIssuer);
    }
    let signature = Signature::from_der(certificate.signature).map_err(|_| CertificateError::BadSignature)?;
    if !issuers.any(|authority| authority.key.verify(certificate.tbs, &signature).is_ok()) {
        return Err(CertificateError::BadSignature);
    }
    if certificate.unknown_critical {
        return Err(CertificateError::UnknownCritical);
    }
    if certificate.is_authority == Some(true) {
        return Err(CertificateError::IsAuthority);
    }
    if !certificate.server_auth {
        return Err(CertificateError::NotForServers);
    }
    if certificate.key_usage.is_some_and(|usage| usage & DIGITAL_SIGNATURE == 0) {
        return Err(CertificateError::KeyUsage);
    }
    if !certificate.names(name)? {
        return Err(CertificateError::OtherName);
    }
    if certificate.not_after < clock.now.unwrap_or(clock.not_before) {
        return Err(CertificateError::Expired);
    }
    if clock.now.is_some_and(|now| now < certificate.not_before) {
        return Err(CertificateError::NotYetValid);
    }
    certificate.key()
}

/// The P-256 key of a PEM file with one SubjectPublicKeyInfo ("PUBLIC KEY"), as its SEC1 uncompressed point.
///
/// # Errors
/// [`PemError`].
pub(crate) fn parse_spki_p256(pem: &str) -> Result<[u8; 65], PemError> {
    let blocks = pem_blocks(pem, "PUBLIC KEY")?;
    let [der] = blocks.as_slice() else {
        return Err(PemError::Count { label: "PUBLIC KEY", max: 1 });
    };
    let mut reader = Der(der);
    let point = spki(&mut reader).map_err(PemError::Certificate)?;
    if !reader.0.is_empty() {
        return Err(PemError::Certificate(CertificateError::TrailingBytes));
    }
    VerifyingKey::from_sec1_bytes(&point).map_err(|_| PemError::Certificate(CertificateError::KeyType))?;
    Ok(point)
}

/// A tenant key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TenantKeyError {
    /// The file.
    #[error("tenant-key {path}: cannot be read: {1}", path = .0.display())]
    Unreadable(PathBuf, io::Error),
    /// What is in it.
    #[error("tenant-key {path}: {1}", path = .0.display())]
    Unusable(PathBuf, PemError),
}

/// Reads the keys that payloads have to be signed with, one from each file.
///
/// # Errors
/// [`TenantKeyError`], for the first file that cannot be used.
pub(crate) fn tenant_keys(paths: &[PathBuf]) -> Result<Vec<TenantPublicKey>, TenantKeyError> {
    let read = |path: &PathBuf| {
        let pem = fs::read_to_string(path).map_err(|why| TenantKeyError::Unreadable(path.clone(), why))?;
        let key_type = PemError::Certificate(CertificateError::KeyType);
        let point = parse_spki_p256(&pem).map_err(|why| TenantKeyError::Unusable(path.clone(), why))?;
        TenantPublicKey::from_sec1(&point).ok_or_else(|| TenantKeyError::Unusable(path.clone(), key_type))
    };
    paths.iter().map(read).collect()
}

/// Bit 0 of keyUsage, counted from the left of its two bytes.
const DIGITAL_SIGNATURE: u16 = 0x8000;
/// Bit 5.
const KEY_CERT_SIGN: u16 = 0x0400;

const OID_ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const OID_EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
/// id-ce, 2.5.29: the arc of the extensions below, each by its last number.
const OID_CE: &[u8] = &[0x55, 0x1d];
const SUBJECT_KEY_ID: u8 = 14;
const KEY_USAGE: u8 = 15;
const SUBJECT_ALT_NAME: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const AUTHORITY_KEY_ID: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// What is used of a certificate (RFC 5280 §4.1), borrowed from its bytes.
struct Certificate<'a> {
    /// tbsCertificate, header and all: what was signed.
    tbs: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    not_before: u64,
    not_after: u64,
    point: [u8; 65],
    signature: &'a [u8],
    /// cA of basicConstraints, where there is such an extension.
    is_authority: Option<bool>,
    key_usage: Option<u16>,
    server_auth: bool,
    alt_names: &'a [u8],
    unknown_critical: bool,
}

impl<'a> Certificate<'a> {
    fn parse(der: &'a [u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_LEN {
            return Err(CertificateError::TooLong);
        }
        let mut outer = Der(der);
        let mut certificate = Der(outer.value(SEQUENCE)?);
        if !outer.0.is_empty() {
            return Err(CertificateError::TrailingBytes);
        }
        let (tbs_value, tbs) = certificate.element(SEQUENCE)?;
        signature_algorithm(&mut certificate)?;
        let signature = certificate.bit_string()?;
        certificate.end()?;

        let mut fields = Der(tbs_value);
        if Der(fields.value(VERSION)?).value(INTEGER)? != [2] {
            return Err(CertificateError::Malformed);
        }
        let _serial = fields.value(INTEGER)?;
        signature_algorithm(&mut fields)?;
        let (_, issuer) = fields.element(SEQUENCE)?;
        let mut validity = Der(fields.value(SEQUENCE)?);
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        validity.end()?;
        let (_, subject) = fields.element(SEQUENCE)?;
        let point = spki(&mut fields)?;
        let mut parsed = Self {
            tbs,
            issuer,
            subject,
            not_before,
            not_after,
            point,
            signature,
            is_authority: None,
            key_usage: None,
            server_auth: false,
            alt_names: &[],
            unknown_critical: false,
        };
        if !fields.0.is_empty() {
            let mut wrapped = Der(fields.value(EXTENSIONS)?);
            fields.end()?;
            let mut extensions = Der(wrapped.value(SEQUENCE)?);
            wrapped.end()?;
            // One bit for each extension of id-ce that was seen; their numbers end at 63 in every profile.
            let mut seen = 0_u64;
            while !extensions.0.is_empty() {
                parsed.extension(Der(extensions.value(SEQUENCE)?), &mut seen)?;
            }
        }
        Ok(parsed)
    }

    fn extension(&mut self, mut extension: Der<'a>, seen: &mut u64) -> Result<(), CertificateError> {
        let oid = extension.value(OID)?;
        let critical = match extension.peek() {
            Some(BOOLEAN) => extension.boolean()?,
            _ => false,
        };
        let mut value = Der(extension.value(OCTET_STRING)?);
        extension.end()?;
        let Some([number @ 0..64]) = oid.strip_prefix(OID_CE) else {
            self.unknown_critical |= critical;
            return Ok(());
        };
        let bit = 1_u64 << number;
        if *seen & bit != 0 {
            return Err(CertificateError::DuplicateExtension);
        }
        *seen |= bit;
        match *number {
            BASIC_CONSTRAINTS => {
                let mut fields = Der(value.value(SEQUENCE)?);
                let is_authority = fields.peek() == Some(BOOLEAN) && fields.boolean()?;
                if fields.peek() == Some(INTEGER) {
                    let _path_len = fields.value(INTEGER)?;
                }
                fields.end()?;
                self.is_authority = Some(is_authority);
            }
            KEY_USAGE => {
                let bits = match value.value(BIT_STRING)? {
                    [0..=7, high] => u16::from_be_bytes([*high, 0]),
                    [0..=7, high, low] => u16::from_be_bytes([*high, *low]),
                    _ => return Err(CertificateError::Malformed),
                };
                self.key_usage = Some(bits);
            }
            EXTENDED_KEY_USAGE => {
                let mut purposes = Der(value.value(SEQUENCE)?);
                while !purposes.0.is_empty() {
                    self.server_auth |= purposes.value(OID)? == OID_SERVER_AUTH;
                }
            }
            SUBJECT_ALT_NAME => self.alt_names = value.value(SEQUENCE)?,
            SUBJECT_KEY_ID | AUTHORITY_KEY_ID => return Ok(()),
            _ => {
                self.unknown_critical |= critical;
                return Ok(());
            }
        }
        value.end()
    }

    fn names(&self, name: &ServerName) -> Result<bool, CertificateError> {
        let mut names = Der(self.alt_names);
        let mut found = false;
        while let Some(tag) = names.peek() {
            let value = names.value(tag)?;
            found |= match name {
                ServerName::Dns(dns) => tag == DNS_NAME && value.eq_ignore_ascii_case(dns.as_bytes()),
                ServerName::Ip(IpAddr::V4(ip)) => tag == IP_ADDRESS && value == ip.octets(),
                ServerName::Ip(IpAddr::V6(ip)) => tag == IP_ADDRESS && value == ip.octets(),
            };
        }
        Ok(found)
    }

    fn key(&self) -> Result<VerifyingKey, CertificateError> {
        VerifyingKey::from_sec1_bytes(&self.point).map_err(|_| CertificateError::KeyType)
    }
}

/// An AlgorithmIdentifier that has to be ecdsa-with-SHA256, without parameters (RFC 5758 §3.2).
fn signature_algorithm(reader: &mut Der<'_>) -> Result<(), CertificateError> {
    let mut algorithm = Der(reader.value(SEQUENCE)?);
    if algorithm.value(OID)? != OID_ECDSA_SHA256 || !algorithm.0.is_empty() {
        return Err(CertificateError::Algorithm);
    }
    Ok(())
}

/// A SubjectPublicKeyInfo that has to hold an uncompressed point of P-256 (RFC 5480 §2).
fn spki(reader: &mut Der<'_>) -> Result<[u8; 65], CertificateError> {
    let mut info = Der(reader.value(SEQUENCE)?);
    let mut algorithm = Der(info.value(SEQUENCE)?);
    if algorithm.value(OID)? != OID_EC_PUBLIC_KEY {
        return Err(CertificateError::KeyType);
    }
    if algorithm.value(OID).map_err(|_| CertificateError::KeyType)? != OID_P256 {
        return Err(CertificateError::KeyType);
    }
    algorithm.end()?;
    let point = info.bit_string()?;
    info.end()?;
    point.try_into().map_err(|_| CertificateError::KeyType)
}

/// A Time (RFC 5280 §4.1.2.5) in seconds since 1970; earlier ones are 0.
fn time(reader: &mut Der<'_>) -> Result<u64, CertificateError> {
    let tag = reader.peek().ok_or(CertificateError::Malformed)?;
    let text = reader.value(tag)?;
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 13) => {
            let year = digits(text, 0)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..))
        }
        (GENERALIZED_TIME, 15) => (digits(text, 0)? * 100 + digits(text, 2)?, text.get(4..)),
        _ => return Err(CertificateError::Malformed),
    };
    let rest = rest.ok_or(CertificateError::Malformed)?;
    let (month, day) = (digits(rest, 0)?, digits(rest, 2)?);
    let (hour, minute, second) = (digits(rest, 4)?, digits(rest, 6)?, digits(rest, 8)?);
    if rest.last() != Some(&b'Z')
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return Err(CertificateError::Malformed);
    }
    if year < 1970 {
        return Ok(0);
    }
    // Years that begin in March put the leap day last; 719,468 days lie between the first of them and 1970.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Ok(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// The two decimal digits at `at`.
fn digits(text: &[u8], at: usize) -> Result<u64, CertificateError> {
    match text.get(at..at + 2) {
        Some([high @ b'0'..=b'9', low @ b'0'..=b'9']) => Ok(u64::from(high - b'0') * 10 + u64::from(low - b'0')),
        _ => Err(CertificateError::Malformed),
    }
}

/// A cursor over DER: definite lengths of at most two bytes, encoded minimally.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element, which has to have this tag: its value, and header and value together.
    fn element(&mut self, tag: u8) -> Result<(&'a [u8], &'a [u8]), CertificateError> {
        let (header, len) = match self.0 {
            [found, len @ 0..=0x7f, ..] if *found == tag => (2, usize::from(*len)),
            [found, 0x81, len @ 0x80..=0xff, ..] if *found == tag => (3, usize::from(*len)),
            [found, 0x82, high @ 1..=0xff, low, ..] if *found == tag => {
                (4, usize::from(u16::from_be_bytes([*high, *low])))
            }
            _ => return Err(CertificateError::Malformed),
        };
        let (whole, rest) = self.0.split_at_checked(header + len).ok_or(CertificateError::Malformed)?;
        self.0 = rest;
        Ok((whole.get(header..).unwrap_or_default(), whole))
    }

    fn value(&mut self, tag: u8) -> Result<&'a [u8], CertificateError> {
        self.element(tag).map(|(value, _)| value)
    }

    fn boolean(&mut self) -> Result<bool, CertificateError> {
        match self.value(BOOLEAN)? {
            [0xff] => Ok(true),
            [0x00] => Ok(false),
            _ => Err(CertificateError::Malformed),
        }
    }

    /// A BIT STRING of whole bytes.
    fn bit_string(&mut self) -> Result<&'a [u8], CertificateError> {
        self.value(BIT_STRING)?.strip_prefix(&[0]).ok_or(CertificateError::Malformed)
    }

    const fn end(&self) -> Result<(), CertificateError> {
        if self.0.is_empty() { Ok(()) } else { Err(CertificateError::Malformed) }
    }
}

/// Why a PEM file could not be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum PemError {
    #[error("needs 1 to {max} blocks of {label} in PEM form")]
    Count {
        /// What stands between the dashes.
        label: &'static str,
        /// At most so many.
        max: usize,
    },
    #[error("holds a block that is not base64, or does not end")]
    Base64,
    #[error("holds an entry that {0}")]
    Certificate(CertificateError),
}

/// The contents of all blocks with `label` (RFC 7468 §2), other blocks and text between them skipped; one more than
/// may be used are read at most.
fn pem_blocks(text: &str, label: &'static str) -> Result<Vec<Vec<u8>>, PemError> {
    let mut blocks = Vec::new();
    let mut body: Option<String> = None;
    for line in text.lines().map(str::trim) {
        let boundary = |kind: &str| {
            line.strip_prefix("-----")
                .and_then(|rest| rest.strip_prefix(kind))
                .and_then(|rest| rest.strip_suffix("-----"))
        };
        if boundary("BEGIN ") == Some(label) {
            body = Some(String::new());
        } else if boundary("END ") == Some(label) {
            blocks.push(base64(&body.take().ok_or(PemError::Base64)?).ok_or(PemError::Base64)?);
            if blocks.len() > MAX_AUTHORITIES {
                return Ok(blocks);
            }
        } else if let Some(body) = &mut body {
            if body.len() + line.len() > MAX_CERTIFICATE_LEN * 2 {
                return Err(PemError::Base64);
            }
            body.push_str(line);
        }
    }
    if body.is_some() { Err(PemError::Base64) } else { Ok(blocks) }
}

/// Standard base64 with padding (RFC 4648 §4), nothing else.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (groups, []) = text.as_bytes().as_chunks::<4>() else { return None };
    let mut out = Vec::with_capacity(groups.len() * 3);
    for (index, group) in groups.iter().enumerate() {
        let padding = group.iter().rev().take_while(|c| **c == b'=').count();
        if padding > 2 || (padding > 0 && index + 1 != groups.len()) {
            return None;
        }
        let mut bits = 0_u32;
        for c in group.get(..4 - padding)? {
            let value = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * padding;
        let [_, bytes @ ..] = bits.to_be_bytes();
        let (kept, dropped) = bytes.split_at_checked(3 - padding)?;
        if dropped.iter().any(|byte| *byte != 0) {
            return None;
        }
        out.extend_from_slice(kept);
    }
    Some(out)
}

#[cfg(test)]
pub(crate) mod tests;
