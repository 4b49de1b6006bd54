//! Keys for file signatures: PEM, or Keylime's JSON of base64 DER with key ids beside it.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::{Decode as _, Encode as _};
use ring::digest;
use serde_json::Value;
use x509_cert::Certificate;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::{ImportError, Notes, shown};
use crate::appraisal::ima_signature::SignatureKey;
use crate::appraisal::policy::ima::MAX_KEYS;

/// Levels of JSON within JSON strings.
const MAX_NESTING: usize = 4;
/// Characters of a line of PEM (RFC 7468 §2).
const PEM_LINE: usize = 64;

/// Adds keys; what is none is named.
pub(super) fn add(
    value: &Value,
    place: &str,
    keys: &mut BTreeSet<String>,
    notes: &mut Notes,
) -> Result<(), ImportError> {
    nested(value, place, keys, notes, MAX_NESTING)
}

fn nested(
    value: &Value,
    place: &str,
    keys: &mut BTreeSet<String>,
    notes: &mut Notes,
    levels: usize,
) -> Result<(), ImportError> {
    let wrong = || ImportError::Shape { place: shown(place), expected: "keys" };
    let levels = levels.checked_sub(1).ok_or_else(wrong)?;
    match value {
        Value::Null => Ok(()),
        Value::String(text) if text.trim().is_empty() => Ok(()),
        Value::String(text) if text.contains("-----BEGIN ") => {
            pem(text, place, keys, notes);
            Ok(())
        }
        Value::String(text) if text.trim_start().starts_with(['{', '[', '"']) => {
            let inner: Value = serde_json::from_str(text).map_err(|_| wrong())?;
            nested(&inner, place, keys, notes, levels)
        }
        Value::String(text) => {
            encoded(text, place, None, keys, notes);
            Ok(())
        }
        Value::Array(values) => {
            for (at, value) in values.iter().enumerate() {
                nested(value, &format!("{place}.{at}"), keys, notes, levels)?;
            }
            Ok(())
        }
        Value::Object(object) => {
            notes.unknown_fields(object, place, &["meta", "pubkeys", "keyids"]);
            let ids = super::list(object.get("keyids"), &format!("{place}.keyids"))?;
            for (at, key) in super::list(object.get("pubkeys"), &format!("{place}.pubkeys"))?.iter().enumerate() {
                let place = format!("{place}.pubkeys.{at}");
                let key =
                    key.as_str().ok_or_else(|| ImportError::Shape { place: shown(&place), expected: "a text" })?;
                encoded(key, &place, ids.get(at).and_then(Value::as_u64), keys, notes);
            }
            Ok(())
        }
        _ => Err(wrong()),
    }
}

fn pem(text: &str, place: &str, keys: &mut BTreeSet<String>, notes: &mut Notes) {
    let mut found = 0;
    let mut rest = text;
    while let Some((label, body, after)) = next_block(rest) {
        rest = after;
        let der = STANDARD.decode(body.split_whitespace().collect::<String>()).ok();
        let key = match label {
            "PUBLIC KEY" | "CERTIFICATE" => der.and_then(|der| key(&der)),
            _ => None,
        };
        match key {
            Some((key, _)) => {
                found += 1;
                insert(key, place, keys, notes);
            }
            None => notes.add(
                "key_unreadable",
                place,
                format!("a `{}` is no public key or certificate that can be read, left out", shown(label)),
            ),
        }
    }
    if found == 0 {
        notes.add("key_unreadable", place, "there is no public key or certificate in this PEM, left out");
    }
}

/// Label, body and what follows the next block of a PEM text.
fn next_block(text: &str) -> Option<(&str, &str, &str)> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, rest) = rest.split_once("-----END ")?;
    Some((label, body, rest.split_once("-----").map_or("", |(_, rest)| rest)))
}

/// Adds a key, if file signatures can be verified with its kind.
fn insert(pem: String, place: &str, keys: &mut BTreeSet<String>, notes: &mut Notes) -> bool {
    if let Err(error) = SignatureKey::from_pem(&pem) {
        notes.add("key_left_out", place, format!("{error}; left out"));
        return false;
    }
    if keys.len() >= MAX_KEYS && !keys.contains(&pem) {
        notes.add("key_left_out", place, format!("a policy has at most {MAX_KEYS} keys; left out"));
        return false;
    }
    keys.insert(pem);
    true
}

fn encoded(text: &str, place: &str, id: Option<u64>, keys: &mut BTreeSet<String>, notes: &mut Notes) {
    let der = STANDARD.decode(text.split_whitespace().collect::<String>()).ok();
    match der.and_then(|der| key(&der)) {
        Some((pem, own_id)) => {
            if !insert(pem, place, keys, notes) {
                return;
            }
            // Signatures name a key by the end of its identifier; a certificate may choose another one than the key's.
            if id.is_some_and(|id| id != u64::from(own_id)) {
                notes.add(
                    "key_id",
                    place,
                    format!(
                        "its key id ({:08x}) comes from a certificate and not from the key ({own_id:08x}): signatures \
                         that name it need that certificate under ima.keys",
                        id.unwrap_or_default()
                    ),
                );
            }
        }
        None => notes.add("key_unreadable", place, "this is neither PEM nor a base64 DER key, left out"),
    }
}

/// A key or certificate as PEM, with the id that signatures name it by (the last four bytes of SHA-1 over the key).
fn key(der: &[u8]) -> Option<(String, u32)> {
    let (label, spki) = match Certificate::from_der(der) {
        Ok(certificate) => ("CERTIFICATE", certificate.tbs_certificate.subject_public_key_info.to_der().ok()?),
        Err(_) => ("PUBLIC KEY", der.to_vec()),
    };
    let bits = SubjectPublicKeyInfoRef::from_der(&spki).ok()?.subject_public_key.as_bytes()?.to_vec();
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &bits);
    let id = u32::from_be_bytes(*hash.as_ref().last_chunk()?);
    let body = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(PEM_LINE) {
        pem.push_str(std::str::from_utf8(line).ok()?);
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    Some((pem, id))
}
