//! X.509 certificates with every part open: DER written by hand, so that what no library would write can be.
//!
//! RFC 5280 §4; TCG EK Credential Profile.

use anyhow::Result;
use base64::Engine as _;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use protocol::tpm::alg::HashAlg;

use super::tpm::{Key, RSASSA, Scheme};

/// Tag, length, value.
pub(super) fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match value.len() {
        len @ 0..0x80 => out.push(len as u8),
        len @ 0x80..0x100 => out.extend_from_slice(&[0x81, len as u8]),
        len => {
            out.push(0x82);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
    out
}

pub(super) fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

pub(super) fn bit_string(bytes: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[0], bytes].concat())
}

/// INTEGER of an unsigned number.
pub(super) fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len().saturating_sub(1));
    let number = bytes.get(start..).unwrap_or_default();
    let pad: &[u8] = if number.first().is_some_and(|first| first & 0x80 != 0) { &[0] } else { &[] };
    tlv(0x02, &[pad, number].concat())
}

/// OBJECT IDENTIFIER.
pub(super) fn oid(arcs: &[u32]) -> Vec<u8> {
    let [first, second, rest @ ..] = arcs else { return tlv(0x06, &[]) };
    let mut body = Vec::new();
    for arc in [first * 40 + second].iter().chain(rest) {
        let mut groups = vec![(arc & 0x7f) as u8];
        let mut left = arc >> 7;
        while left > 0 {
            groups.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        body.extend(groups.iter().rev());
    }
    tlv(0x06, &body)
}

/// A Name with a common name; empty for "".
pub(super) fn name(common: &str) -> Vec<u8> {
    if common.is_empty() {
        return sequence(&[]);
    }
    let attribute = sequence(&[oid(&[2, 5, 4, 3]), tlv(0x0c, common.as_bytes())]);
    sequence(&[tlv(0x31, &attribute)])
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// What a certificate is signed with, by name in the certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sign {
    EcdsaSha256,
    EcdsaSha1,
    RsaSha256,
}

impl Sign {
    fn algorithm(self) -> Vec<u8> {
        match self {
            Self::EcdsaSha256 => sequence(&[oid(&[1, 2, 840, 10045, 4, 3, 2])]),
            Self::EcdsaSha1 => sequence(&[oid(&[1, 2, 840, 10045, 4, 1])]),
            Self::RsaSha256 => sequence(&[oid(&[1, 2, 840, 113_549, 1, 1, 11]), tlv(0x05, &[])]),
        }
    }

    fn make(self, key: &Key, message: &[u8]) -> Result<Vec<u8>> {
        match (self, key) {
            (Self::EcdsaSha256, Key::P256(key)) => {
                let signature: p256::ecdsa::Signature = key.sign_prehash(&HashAlg::Sha256.digest(&[message]))?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
            (Self::EcdsaSha1, Key::P256(key)) => {
                let digest = HashAlg::Sha1.digest(&[message]);
                let prehash = [&[0; 12], &digest[..]].concat();
                let signature: p256::ecdsa::Signature = key.sign_prehash(&prehash)?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
            (Self::RsaSha256, key @ Key::Rsa(_)) => {
                let signature = key.sign(message, Scheme::new(RSASSA, HashAlg::Sha256))?;
                Ok(signature.numbers.into_iter().flat_map(|(_, bytes)| bytes).collect())
            }
            _ => anyhow::bail!("the key does not sign like that"),
        }
    }
}

/// A certificate to be.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// Version 3 is 2.
    pub(super) version: u8,
    pub(super) serial: u32,
    pub(super) sign: Sign,
    pub(super) issuer: Vec<u8>,
    /// Years, as they stand in a GeneralizedTime of 1 January.
    pub(super) not_before: u16,
    pub(super) not_after: u16,
    pub(super) subject: Vec<u8>,
    pub(super) spki: Vec<u8>,
    /// Identifier, critical, value.
    pub(super) extensions: Vec<(Vec<u8>, bool, Vec<u8>)>,
}

const BASIC_CONSTRAINTS: [u32; 4] = [2, 5, 29, 19];
const KEY_USAGE: [u32; 4] = [2, 5, 29, 15];
const EXTENDED_KEY_USAGE: [u32; 4] = [2, 5, 29, 37];
const ALTERNATIVE_NAME: [u32; 4] = [2, 5, 29, 17];

/// tcg-kp-EKCertificate.
const EK_USAGE: [u32; 5] = [2, 23, 133, 8, 1];

impl Certificate {
    /// A CA: `subject` signed as `issuer`.
    pub(super) fn ca(subject: &str, issuer: &str, key: &Key, path_len: Option<u8>) -> Self {
        let sign = Sign::EcdsaSha256;
        let (subject, issuer) = (name(subject), name(issuer));
        let mut certificate = Self {
            version: 2,
            serial: 1,
            sign,
            issuer,
            not_before: 2020,
            not_after: 2040,
            subject,
            spki: key.spki(),
            extensions: Vec::new(),
        };
        certificate.set(&BASIC_CONSTRAINTS, true, basic_constraints(true, path_len));
        certificate.set_key_usage(&[0x01, 0x06]);
        certificate
    }

    /// An EK certificate as the TCG profile has it: empty subject, critical subjectAltName that names the TPM.
    pub(super) fn ek(issuer: &str, key: &Key) -> Self {
        let mut certificate = Self {
            version: 2,
            serial: 7,
            sign: Sign::EcdsaSha256,
            issuer: name(issuer),
            not_before: 2022,
            not_after: 2038,
            subject: name(""),
            spki: key.spki(),
            extensions: Vec::new(),
        };
        certificate.set_alternative_name(true, Some(false));
        certificate.set(&BASIC_CONSTRAINTS, true, basic_constraints(false, None));
        // keyAgreement for an ECC key, keyEncipherment for an RSA key.
        let usage: &[u8] = if matches!(key, Key::Rsa(_)) { &[0x05, 0x20] } else { &[0x03, 0x08] };
        certificate.set_key_usage(usage);
        certificate.set_extended_key_usage(&EK_USAGE);
        certificate
    }

    /// Adds an extension, or replaces it.
    pub(super) fn set(&mut self, id: &[u32], critical: bool, value: Vec<u8>) {
        self.remove(id);
        self.extensions.push((oid(id), critical, value));
    }

    pub(super) fn remove(&mut self, id: &[u32]) {
        let id = oid(id);
        self.extensions.retain(|(of, ..)| *of != id);
    }

    pub(super) fn remove_basic_constraints(&mut self) {
        self.remove(&BASIC_CONSTRAINTS);
    }

    pub(super) fn set_basic_constraints(&mut self, ca: bool, path_len: Option<u8>) {
        self.set(&BASIC_CONSTRAINTS, true, basic_constraints(ca, path_len));
    }

    /// Unused bits, and the bits.
    pub(super) fn set_key_usage(&mut self, bits: &[u8]) {
        self.set(&KEY_USAGE, true, tlv(0x03, bits));
    }

    pub(super) fn set_extended_key_usage(&mut self, usage: &[u32]) {
        self.set(&EXTENDED_KEY_USAGE, false, sequence(&[oid(usage)]));
    }

    /// subjectAltName with the TPM's manufacturer, model and version as one SET in a directoryName: in the order of DER or
    /// not; `None` for a DNS name in its place.
    pub(super) fn set_alternative_name(&mut self, critical: bool, directory: Option<bool>) {
        let attribute = |arc: u32, text: &str| sequence(&[oid(&[2, 23, 133, 2, arc]), tlv(0x0c, text.as_bytes())]);
        let mut attributes = [attribute(1, "id:54524546"), attribute(2, "soft"), attribute(3, "id:00010000")];
        attributes.sort();
        let value = match directory {
            None => sequence(&[tlv(0x82, b"tpm.invalid")]),
            Some(disordered) => {
                if disordered {
                    attributes.reverse();
                }
                sequence(&[tlv(0xa4, &sequence(&[tlv(0x31, &attributes.concat())]))])
            }
        };
        self.set(&ALTERNATIVE_NAME, critical, value);
    }

    pub(super) fn remove_alternative_name(&mut self) {
        self.remove(&ALTERNATIVE_NAME);
    }

    fn tbs(&self) -> Vec<u8> {
        let time = |year: u16| tlv(0x18, format!("{year:04}0101000000Z").as_bytes());
        let extension = |(id, critical, value): &(Vec<u8>, bool, Vec<u8>)| {
            let critical = if *critical { tlv(0x01, &[0xff]) } else { Vec::new() };
            sequence(&[id.clone(), critical, tlv(0x04, value)])
        };
        let extensions: Vec<_> = self.extensions.iter().map(extension).collect();
        let mut parts = vec![
            tlv(0xa0, &tlv(0x02, &[self.version])),
            unsigned(&self.serial.to_be_bytes()),
            self.sign.algorithm(),
            self.issuer.clone(),
            // The profile's certificates end before 2050; GeneralizedTime is read all the same.
            sequence(&[time(self.not_before), time(self.not_after)]),
            self.subject.clone(),
            self.spki.clone(),
        ];
        if !extensions.is_empty() {
            parts.push(tlv(0xa3, &sequence(&extensions)));
        }
        sequence(&parts)
    }

    /// Signs it; DER.
    pub(super) fn sign(&self, key: &Key) -> Result<Vec<u8>> {
        let tbs = self.tbs();
        let signature = self.sign.make(key, &tbs)?;
        Ok(sequence(&[tbs, self.sign.algorithm(), bit_string(&signature)]))
    }

    /// Signs it and names another algorithm outside than inside.
    pub(super) fn sign_named(&self, key: &Key, outside: Sign) -> Result<Vec<u8>> {
        let tbs = self.tbs();
        let signature = self.sign.make(key, &tbs)?;
        Ok(sequence(&[tbs, outside.algorithm(), bit_string(&signature)]))
    }
}

fn basic_constraints(ca: bool, path_len: Option<u8>) -> Vec<u8> {
    let ca = if ca { tlv(0x01, &[0xff]) } else { Vec::new() };
    sequence(&[ca, path_len.map(|len| tlv(0x02, &[len])).unwrap_or_default()])
}
