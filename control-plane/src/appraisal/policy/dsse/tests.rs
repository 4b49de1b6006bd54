use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE as BASE64_URL};
use p256::ecdsa::{Signature, SigningKey, signature::Signer};
use serde_json::json;

use super::*;
use crate::appraisal::test_vectors;

const TYPE: &str = "application/vnd.example";

fn key(byte: u8) -> (SigningKey, P256Key) {
    let key = SigningKey::from_slice(&[byte; 32]).unwrap();
    let public = P256Key::from_sec1(key.verifying_key().to_encoded_point(false).as_bytes()).unwrap();
    (key, public)
}

fn envelope(payload: &str, sig: &str) -> serde_json::Value {
    json!({"payload": payload, "payloadType": TYPE, "signatures": [{"keyid": "k", "sig": sig}]})
}

#[test]
fn what_is_signed_opens_under_its_key_alone() {
    let ((signing, public), (_, other)) = (key(1), key(2));
    let bytes = sign(b"body", TYPE, &signing);
    assert!(is_envelope(&bytes));
    assert_eq!(open(&bytes, TYPE, &[other, public]).unwrap(), b"body");
    assert_eq!(open_by(&bytes, TYPE, &[other, public]).unwrap().1, public);
    assert_eq!(open(&bytes, TYPE, &[other]).unwrap_err(), DsseError::BadSignature(public.id()));
    assert_eq!(open(&bytes, TYPE, &[]).unwrap_err(), DsseError::NoKey);
    assert_eq!(open_unverified(&bytes, TYPE).unwrap(), b"body");
    assert_eq!(sign(b"body", TYPE, &signing), bytes);
}

#[test]
fn the_signed_bytes_are_the_published_pre_authentication_encoding() {
    // The example of the DSSE specification.
    assert_eq!(
        pae("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
}

#[test]
fn a_payload_of_another_type_is_refused_though_its_signature_is_good() {
    let (signing, public) = key(1);
    let bytes = sign(b"body", "application/other", &signing);
    let error = DsseError::OtherType { expected: TYPE.into(), found: "application/other".into() };
    assert_eq!(open(&bytes, TYPE, &[public]).unwrap_err(), error);
    // The type is signed too: renaming it does not help.
    let renamed = String::from_utf8(bytes).unwrap().replace("application/other", TYPE);
    assert!(matches!(open(renamed.as_bytes(), TYPE, &[public]), Err(DsseError::BadSignature(_))));
}

#[test]
fn der_and_fixed_signatures_in_either_alphabet_are_taken() {
    let (signing, public) = key(1);
    // Bytes whose base64 has a character of which the alphabets differ.
    let body = b"\xfb\xff\xfe";
    let signature: Signature = signing.sign(&pae(TYPE, body));
    for sig in [signature.to_der().as_bytes().to_vec(), signature.to_bytes().to_vec()] {
        for engine in [&BASE64, &BASE64_URL] {
            let text = envelope(&engine.encode(body), &engine.encode(&sig)).to_string();
            assert_eq!(open(text.as_bytes(), TYPE, &[public]).unwrap(), body, "{text}");
        }
    }
}

#[test]
fn one_good_signature_among_others_suffices_and_they_are_bounded() {
    let (signing, public) = key(1);
    let good = BASE64.encode(Signer::<Signature>::sign(&signing, &pae(TYPE, b"x")).to_der().as_bytes());
    let with = |count: usize| {
        let mut signatures = vec![json!({"keyid": "", "sig": "AAAA"}); count.saturating_sub(1)];
        if count > 0 {
            signatures.push(json!({"sig": good}));
        }
        json!({"payload": "eA==", "payloadType": TYPE, "signatures": signatures}).to_string()
    };
    for count in [1, 2, MAX_SIGNATURES] {
        assert_eq!(open(with(count).as_bytes(), TYPE, &[public]).unwrap(), b"x");
    }
    for count in [0, MAX_SIGNATURES + 1] {
        assert_eq!(open(with(count).as_bytes(), TYPE, &[public]).unwrap_err(), DsseError::SignatureCount(count));
    }
}

#[test]
fn exactly_the_known_fields_are_an_envelope() {
    let (signing, public) = key(1);
    let bytes = sign(b"body", TYPE, &signing);
    let text = String::from_utf8(bytes.clone()).unwrap();
    let syntax = |text: &str| matches!(open(text.as_bytes(), TYPE, &[public]), Err(DsseError::Syntax(_)));
    assert!(syntax(&text.replacen('{', "{\"more\": 1,", 1)), "an unknown field");
    assert!(syntax(&text.replacen('{', &format!("{{\"payloadType\": \"{TYPE}\","), 1)), "a field twice");
    assert!(syntax(&text.replace("\"keyid\"", "\"key_id\"")), "an unknown field of a signature");
    assert!(syntax(&format!("{text} x")), "trailing bytes");
    for len in 0..bytes.len() - 1 {
        assert!(open(&bytes[..len], TYPE, &[public]).is_err(), "{len} bytes");
    }
    assert_eq!(open(&vec![b' '; MAX_ENVELOPE_LEN + 1], TYPE, &[public]).unwrap_err(), DsseError::TooLong);
}

#[test]
fn base64_is_padded_and_in_one_spelling() {
    let (signing, public) = key(1);
    let sig = BASE64.encode(Signer::<Signature>::sign(&signing, &pae(TYPE, b"x")).to_der().as_bytes());
    assert!(open(envelope("eA==", &sig).to_string().as_bytes(), TYPE, &[public]).is_ok());
    for payload in ["eA", "eA=", "eB==", "e A==", "eA==\n"] {
        let error = open(envelope(payload, &sig).to_string().as_bytes(), TYPE, &[public]).unwrap_err();
        assert_eq!(error, DsseError::NotBase64 { place: "payload".into() }, "{payload:?}");
    }
    let error = open(envelope("eA==", "*").to_string().as_bytes(), TYPE, &[public]).unwrap_err();
    assert_eq!(error, DsseError::NotBase64 { place: "signatures.0.sig".into() });
}

#[test]
fn every_changed_bit_of_a_signature_or_body_is_noticed() {
    let (signing, public) = key(1);
    let signature: Signature = signing.sign(&pae(TYPE, b"body"));
    let der = signature.to_der();
    for bit in 0..der.as_bytes().len() * 8 {
        let mut changed = der.as_bytes().to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        let text = envelope(&BASE64.encode(b"body"), &BASE64.encode(&changed)).to_string();
        assert!(matches!(open(text.as_bytes(), TYPE, &[public]), Err(DsseError::BadSignature(_))), "bit {bit}");
    }
    let text = envelope(&BASE64.encode(b"bodz"), &BASE64.encode(der.as_bytes())).to_string();
    assert!(matches!(open(text.as_bytes(), TYPE, &[public]), Err(DsseError::BadSignature(_))));
}

#[test]
fn only_p256_points_are_keys() {
    let (_, public) = key(1);
    assert_eq!(P256Key::from_spki(&public.to_spki()), Some(public));
    let pem = crate::pki::p256_spki_pem(public.as_sec1());
    assert_eq!(P256Key::from_pem(pem.as_bytes()), Some(vec![public]));
    assert_eq!(P256Key::from_pem(pem.repeat(2).as_bytes()).unwrap().len(), 2);
    assert_eq!(P256Key::from_pem(b""), None);
    // A certificate is not what was asked for, and neither is a private key.
    for other in ["CERTIFICATE", "PRIVATE KEY"] {
        let beside = format!("{pem}-----BEGIN {other}-----\nAAAA\n-----END {other}-----\n");
        assert_eq!(P256Key::from_pem(beside.as_bytes()), None, "{other}");
    }
    let mut off_curve = *public.as_sec1();
    off_curve[64] ^= 1;
    assert_eq!(P256Key::from_sec1(&off_curve), None);
    for len in 0..public.to_spki().len() {
        assert_eq!(P256Key::from_spki(&public.to_spki()[..len]), None);
    }
}

#[test]
fn a_policy_is_no_envelope() {
    for text in ["", "{", "version = 1", "{\"version\": 1}", "{\"payloads\": 1}", "[\"payload\"]", "\"payload\""] {
        assert!(!is_envelope(text.as_bytes()), "{text}");
    }
    assert!(is_envelope(b" {\n \"signatures\" : []"));
}

#[test]
fn keylimes_signed_policy_verifies_and_the_spoilt_one_does_not() {
    let Some(folder) = test_vectors::folder("policies") else { return };
    let keys = P256Key::from_pem(&test_vectors::read(&folder, "runtime-policy-pubkey.pub")).unwrap();
    let expected = "application/vnd.keylime+json";
    let good = test_vectors::read(&folder, "runtime-policy-test-signed.json");
    let payload = open(&good, expected, &keys).unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&payload).unwrap().get("digests").is_some());
    assert!(matches!(open(&good, expected, &[key(1).1]), Err(DsseError::BadSignature(_))));
    let bad = test_vectors::read(&folder, "runtime-policy-test-signed-bad.json");
    assert_eq!(open(&bad, expected, &keys).unwrap_err(), DsseError::NotBase64 { place: "signatures.0.sig".into() });
}
