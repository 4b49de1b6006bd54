//! DSSE envelopes (github.com/secure-systems-lab/dsse, v1): JSON with a payload, its type and signatures over both.
//!
//! A payload is handed out only under the type that the caller expects. Signatures are ECDSA P-256 over SHA-256, in DER or
//! as r ‖ s in 64 bytes. `keyid` is a hint that nothing rests on: every given key is tried. What the payload means is the
//! caller's business.

use std::fmt;

use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{GeneralPurpose, general_purpose::PAD},
};
use protocol::crypto::sha256;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// An envelope's bytes: as many as a policy's. The payload in it is a quarter shorter, for base64.
pub const MAX_ENVELOPE_LEN: usize = super::MAX_POLICY_LEN;
/// Signatures of one envelope.
pub const MAX_SIGNATURES: usize = 16;
/// Keys that are tried on each of them.
pub const MAX_KEYS: usize = 16;

/// SubjectPublicKeyInfo of a P-256 key, uncompressed, up to its point (RFC 5480 §2).
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why an envelope was not opened.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum DsseError {
    #[error("the envelope is longer than {MAX_ENVELOPE_LEN} bytes")]
    TooLong,
    #[error("no DSSE envelope: {0}")]
    Syntax(String),
    #[error("`{place}` of the envelope is not base64")]
    NotBase64 { place: String },
    #[error("the envelope holds `{found}`, not `{expected}`")]
    OtherType { expected: String, found: String },
    #[error("the envelope has {0} signatures; 1 to {MAX_SIGNATURES} are allowed")]
    SignatureCount(usize),
    #[error("there is no key to verify the signature with")]
    NoKey,
    #[error("none of the envelope's signatures verifies under a trusted key (key ids: {0})")]
    BadSignature(String),
}

/// A P-256 key that signatures are verified with.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct P256Key([u8; 65]);

impl P256Key {
    /// From SEC1 uncompressed bytes; `None` if they are no point of P-256.
    pub fn from_sec1(point: &[u8]) -> Option<Self> {
        let point: [u8; 65] = point.try_into().ok()?;
        p256::ecdsa::VerifyingKey::from_sec1_bytes(&point).ok().map(|_| Self(point))
    }

    /// From DER SubjectPublicKeyInfo with an uncompressed point.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        Self::from_sec1(der.strip_prefix(&P256_SPKI)?)
    }

    /// Every public key (`BEGIN PUBLIC KEY`) of a PEM text; `None` if there is none, one that is no P-256 key, or something
    /// else beside them.
    pub fn from_pem(pem: &[u8]) -> Option<Vec<Self>> {
        use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
        let keys = SubjectPublicKeyInfoDer::pem_slice_iter(pem)
            .map(|der| der.ok().and_then(|der| Self::from_spki(&der)))
            .collect::<Option<Vec<_>>>()?;
        let sections = pem.windows(11).filter(|window| window == b"-----BEGIN ").count();
        (!keys.is_empty() && keys.len() == sections).then_some(keys)
    }

    /// SEC1 uncompressed bytes.
    pub const fn as_sec1(&self) -> &[u8; 65] {
        &self.0
    }

    /// DER SubjectPublicKeyInfo.
    pub fn to_spki(&self) -> Vec<u8> {
        [P256_SPKI.as_slice(), &self.0].concat()
    }

    /// How it is named in envelopes and messages: SHA-256 of its SubjectPublicKeyInfo, hex.
    pub fn id(&self) -> String {
        hex::encode(sha256(&[&P256_SPKI, &self.0]))
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn ring::signature::VerificationAlgorithm =
            if signature.len() == 64 { &ECDSA_P256_SHA256_FIXED } else { &ECDSA_P256_SHA256_ASN1 };
        UnparsedPublicKey::new(algorithm, self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Debug for P256Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "P256Key({})", self.id())
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawEnvelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<RawSignature>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawSignature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// An envelope taken apart; nothing about it is verified.
struct Envelope {
    payload: Vec<u8>,
    payload_type: String,
    /// Key id and signature.
    signatures: Vec<(String, Vec<u8>)>,
}

impl Envelope {
    fn parse(bytes: &[u8], expected_type: &str) -> Result<Self, DsseError> {
        if bytes.len() > MAX_ENVELOPE_LEN {
            return Err(DsseError::TooLong);
        }
        let raw: RawEnvelope =
            serde_json::from_slice(bytes).map_err(|error| DsseError::Syntax(bounded(&error.to_string())))?;
        if raw.payload_type != expected_type {
            return Err(DsseError::OtherType { expected: expected_type.to_owned(), found: bounded(&raw.payload_type) });
        }
        if raw.signatures.is_empty() || raw.signatures.len() > MAX_SIGNATURES {
            return Err(DsseError::SignatureCount(raw.signatures.len()));
        }
        let payload = decode(&raw.payload).ok_or_else(|| DsseError::NotBase64 { place: "payload".into() })?;
        let mut signatures = Vec::with_capacity(raw.signatures.len());
        for (at, RawSignature { keyid, sig }) in raw.signatures.into_iter().enumerate() {
            let place = || format!("signatures.{at}.sig");
            signatures.push((keyid, decode(&sig).ok_or_else(|| DsseError::NotBase64 { place: place() })?));
        }
        Ok(Self { payload, payload_type: raw.payload_type, signatures })
    }
}

/// Whether the bytes begin as an envelope's JSON does: an object whose first field is one of an envelope's.
pub fn is_envelope(bytes: &[u8]) -> bool {
    let blank = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let Some(rest) = bytes.get(blank(bytes)..).and_then(|rest| rest.strip_prefix(b"{")) else { return false };
    let rest = rest.get(blank(rest)..).unwrap_or_default();
    [b"\"payload\"".as_slice(), b"\"payloadType\"", b"\"signatures\""].iter().any(|name| rest.starts_with(name))
}

/// Opens an envelope: its payload, and the key that a signature of it verifies under.
///
/// # Errors
/// [`DsseError`]; [`DsseError::NoKey`] without a key, whatever the envelope is.
pub fn open_by(bytes: &[u8], expected_type: &str, keys: &[P256Key]) -> Result<(Vec<u8>, P256Key), DsseError> {
    let envelope = Envelope::parse(bytes, expected_type)?;
    if keys.is_empty() {
        return Err(DsseError::NoKey);
    }
    let message = pae(&envelope.payload_type, &envelope.payload);
    let signer = envelope
        .signatures
        .iter()
        .find_map(|(_, signature)| keys.iter().take(MAX_KEYS).find(|key| key.verifies(&message, signature)));
    match signer {
        Some(key) => Ok((envelope.payload, *key)),
        None => {
            let ids: Vec<String> = envelope.signatures.iter().map(|(id, _)| bounded(id)).collect();
            Err(DsseError::BadSignature(bounded(&ids.join(", "))))
        }
    }
}

/// Opens an envelope of which at least one signature verifies under one of `keys`.
///
/// # Errors
/// [`DsseError`]; [`DsseError::NoKey`] without a key.
pub fn open(bytes: &[u8], expected_type: &str, keys: &[P256Key]) -> Result<Vec<u8>, DsseError> {
    open_by(bytes, expected_type, keys).map(|(payload, _)| payload)
}

/// Opens an envelope without looking at its signatures, for who has no key and says so.
///
/// # Errors
/// [`DsseError`], but no [`DsseError::BadSignature`].
pub fn open_unverified(bytes: &[u8], expected_type: &str) -> Result<Vec<u8>, DsseError> {
    Envelope::parse(bytes, expected_type).map(|envelope| envelope.payload)
}

/// Makes an envelope: one signature, in DER, that the same key makes the same way again (RFC 6979).
pub fn sign(payload: &[u8], payload_type: &str, key: &p256::ecdsa::SigningKey) -> Vec<u8> {
    use p256::ecdsa::signature::Signer;
    let signature: p256::ecdsa::Signature = key.sign(&pae(payload_type, payload));
    let point = key.verifying_key().to_encoded_point(false);
    let engine = base64::engine::general_purpose::STANDARD;
    let envelope = RawEnvelope {
        payload: engine.encode(payload),
        payload_type: payload_type.to_owned(),
        signatures: vec![RawSignature {
            keyid: hex::encode(sha256(&[&P256_SPKI, point.as_bytes()])),
            sig: engine.encode(signature.to_der().as_bytes()),
        }],
    };
    // Strings alone: that cannot fail.
    let mut bytes = serde_json::to_vec_pretty(&envelope).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// What is signed: the Pre-Authentication Encoding, `DSSEv1 len(type) type len(body) body`.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Either alphabet, as DSSE has it; padded, and in the one spelling that encoding gives.
fn decode(text: &str) -> Option<Vec<u8>> {
    let url_safe = text.bytes().any(|byte| byte == b'-' || byte == b'_');
    let engine = GeneralPurpose::new(if url_safe { &URL_SAFE } else { &STANDARD }, PAD);
    engine.decode(text).ok()
}

/// A text from outside, as long as a message bears.
fn bounded(text: &str) -> String {
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests;
