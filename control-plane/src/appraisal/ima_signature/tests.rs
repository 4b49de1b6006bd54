use super::*;
use crate::appraisal::{ima_ascii, ima_log::ImaReplay, ima_log::ImaStart, test_vectors};

/// A P-256 key as policies name it, and what it signs with.
pub(crate) struct Signer {
    pair: p256::ecdsa::SigningKey,
    point: Vec<u8>,
    pub(crate) key: SignatureKey,
}

impl rcgen::PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Self::sign(self, &HashAlg::Sha256.digest(&[message])))
    }
}

impl Signer {
    pub(crate) fn new(seed: u8) -> Self {
        let pair = p256::ecdsa::SigningKey::from_bytes(&[seed; 32].into()).unwrap();
        let point = pair.verifying_key().to_encoded_point(false).as_bytes().to_vec();
        Self { key: SignatureKey::from_spki(&p256_spki(&pair)).unwrap(), point, pair }
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        p256_spki(&self.pair)
    }

    pub(crate) fn pem(&self) -> String {
        pem("PUBLIC KEY", &self.spki())
    }

    /// The attribute that signs this SHA-256 digest.
    pub(crate) fn attribute(&self, digest: &[u8]) -> Vec<u8> {
        attribute((3, 2), 4, self.key.id(), &self.sign(digest))
    }

    fn sign(&self, digest: &[u8]) -> Vec<u8> {
        use p256::ecdsa::signature::hazmat::PrehashSigner;
        let signature: p256::ecdsa::Signature = self.pair.sign_prehash(digest).unwrap();
        signature.to_der().as_bytes().to_vec()
    }

    /// A certificate of the key in DER.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        let mut parameters = rcgen::CertificateParams::new(vec!["kernel module signer".to_owned()]).unwrap();
        parameters.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.self_signed(self).unwrap().der().to_vec()
    }
}

fn p256_spki(pair: &p256::ecdsa::SigningKey) -> Vec<u8> {
    let mut der = vec![
        0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7,
        3, 0x42, 0,
    ];
    der.extend_from_slice(pair.verifying_key().to_encoded_point(false).as_bytes());
    der
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub(crate) fn attribute((kind, version): (u8, u8), hash: u8, id: u32, signature: &[u8]) -> Vec<u8> {
    let len = u16::try_from(signature.len()).unwrap();
    [&[kind, version, hash][..], &id.to_be_bytes(), &len.to_be_bytes(), signature].concat()
}

fn digest(hash: HashAlg) -> Vec<u8> {
    hash.digest(&[b"a file"]).to_vec()
}

#[test]
fn a_signature_by_a_given_key_is_good() {
    let signer = Signer::new(7);
    let digest = digest(HashAlg::Sha256);
    assert_eq!(verify([&signer.key], &signer.attribute(&digest), false, HashAlg::Sha256, &digest), Ok(()));
    // Key ids are four bytes: another key may have the same.
    let mut twin = Signer::new(8).key;
    twin.id = signer.key.id();
    assert_eq!(verify([&twin, &signer.key], &signer.attribute(&digest), false, HashAlg::Sha256, &digest), Ok(()));
    let again = SignatureKey::from_bytes(&signer.key.to_bytes()).unwrap();
    assert_eq!((&again, SignatureKey::from_pem(&signer.pem()).as_ref()), (&signer.key, Ok(&signer.key)));
}

#[test]
fn a_signature_on_p384_is_good_with_any_hash() {
    use p384::ecdsa::signature::hazmat::PrehashSigner;
    let pair = p384::ecdsa::SigningKey::from_bytes(&[5; 48].into()).unwrap();
    let mut spki = vec![
        0x30, 0x76, 0x30, 0x10, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x22, 3, 0x62, 0,
    ];
    spki.extend_from_slice(pair.verifying_key().to_encoded_point(false).as_bytes());
    let key = SignatureKey::from_spki(&spki).unwrap();
    for hash in HashAlg::ALL {
        let digest = digest(hash);
        let signature: p384::ecdsa::Signature = pair.sign_prehash(&prehash(&digest, 48)).unwrap();
        let bytes = attribute((3, 2), kernel_number(hash), key.id(), signature.to_der().as_bytes());
        assert_eq!(verify([&key], &bytes, false, hash, &digest), Ok(()), "{hash}");
    }
}

#[test]
fn an_rsa_signature_is_its_one_encoding() {
    use base64::Engine;
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text.replace('\n', "")).unwrap();
    // openssl genrsa 2048; openssl pkeyutl -sign -pkeyopt digest:sha256 of SHA-256("a file").
    let spki = decode(include_str!("rsa_spki.b64"));
    let signature = decode(include_str!("rsa_signature.b64"));
    let key = SignatureKey::from_spki(&spki).unwrap();
    let file = digest(HashAlg::Sha256);
    let bytes = attribute((3, 2), 4, key.id(), &signature);
    assert_eq!(verify([&key], &bytes, false, HashAlg::Sha256, &file), Ok(()));
    let other = HashAlg::Sha256.digest(&[b"another file"]);
    assert_eq!(verify([&key], &bytes, false, HashAlg::Sha256, &other), Err(SignatureError::Bad(key.id())));
    for at in [9, 100, bytes.len() - 1] {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1;
        assert_eq!(verify([&key], &wrong, false, HashAlg::Sha256, &file), Err(SignatureError::Bad(key.id())));
    }
}

#[test]
fn a_signature_of_a_verity_file_is_over_its_kind_too() {
    let signer = Signer::new(7);
    let digest = digest(HashAlg::Sha256);
    let id = HashAlg::Sha256.digest(&[&[6, 4], &digest]);
    let good = attribute((6, 3), 4, signer.key.id(), &signer.sign(&id));
    let check = |bytes: &[u8], is_verity| verify([&signer.key], bytes, is_verity, HashAlg::Sha256, &digest);
    assert_eq!(check(&good, true), Ok(()));
    assert_eq!(check(&good, false), Err(SignatureError::Type(6)));
    assert_eq!(check(&signer.attribute(&digest), true), Err(SignatureError::Type(3)));
    let of_digest = attribute((6, 3), 4, signer.key.id(), &signer.sign(&digest));
    assert_eq!(check(&of_digest, true), Err(SignatureError::Bad(signer.key.id())));
}

#[test]
fn an_attribute_with_one_thing_wrong_is_refused_for_that() {
    let signer = Signer::new(7);
    let file = digest(HashAlg::Sha256);
    let (good, id) = (signer.attribute(&file), signer.key.id());
    let check = |bytes: &[u8]| verify([&signer.key], bytes, false, HashAlg::Sha256, &file);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let unknown = u32::from_be_bytes([!good[3], good[4], good[5], good[6]]);
    for (bytes, expected) in [
        (with(0, 1), SignatureError::Type(1)),
        (with(1, 1), SignatureError::Version(1)),
        (with(1, 3), SignatureError::Version(3)),
        (with(2, 0), SignatureError::UnknownHash(0)),
        (with(2, 5), SignatureError::OtherHash { signature: HashAlg::Sha384, digest: HashAlg::Sha256 }),
        (with(3, !good[3]), SignatureError::UnknownKey(unknown)),
        (with(8, good[8] + 1), SignatureError::Malformed),
        (with(9, 0x31), SignatureError::Bad(id)),
        (with(good.len() - 1, !good[good.len() - 1]), SignatureError::Bad(id)),
        ([&good[..], &[0]].concat(), SignatureError::Malformed),
    ] {
        assert_eq!(check(&bytes), Err(expected));
    }
    for end in 0..good.len() {
        assert_eq!(check(&good[..end]), Err(SignatureError::Malformed), "{end}");
    }
    assert_eq!(verify([], &good, false, HashAlg::Sha256, &file), Err(SignatureError::UnknownKey(id)));
}

#[test]
fn a_certificate_names_its_key_as_the_kernel_does() {
    let signer = Signer::new(7);
    let der = signer.certificate();
    let key = SignatureKey::from_certificate(&der).unwrap();
    assert_eq!(key.id(), 0x0302_0100);
    assert_eq!(SignatureKey::from_pem(&pem("CERTIFICATE", &der)), Ok(key.clone()));
    assert_eq!(SignatureKey::from_bytes(&key.to_bytes()), Ok(key));
    for end in 0..der.len() {
        assert_eq!(SignatureKey::from_certificate(&der[..end]), Err(KeyError::BadCertificate), "{end}");
    }
    assert_eq!(SignatureKey::from_certificate(&[&der[..], &[0]].concat()), Err(KeyError::BadCertificate));
}

#[test]
fn what_is_no_usable_key_is_refused() {
    let spki = Signer::new(7).spki();
    for end in 0..spki.len() {
        assert_eq!(SignatureKey::from_spki(&spki[..end]), Err(KeyError::BadSpki), "{end}");
    }
    assert_eq!(SignatureKey::from_spki(&[&spki[..], &[0]].concat()), Err(KeyError::BadSpki));
    let mut off_curve = spki.clone();
    off_curve[40] ^= 1;
    assert_eq!(SignatureKey::from_spki(&off_curve), Err(KeyError::BadSpki));
    let two = [Signer::new(7).pem(), Signer::new(8).pem()].concat();
    for text in ["", "x", &two, &pem("PRIVATE KEY", &spki)] {
        assert_eq!(SignatureKey::from_pem(text), Err(KeyError::BadPem), "{text}");
    }
    assert_eq!(SignatureKey::from_pem(&"x".repeat(MAX_KEY_LEN + 1)), Err(KeyError::TooLong));
    assert_eq!(SignatureKey::from_bytes(&[1, 2, 3]), Err(KeyError::BadSpki));
}

#[test]
fn the_signatures_of_an_outside_list_are_read_and_their_key_named() {
    let Some(folder) = test_vectors::folder("ima") else { return };
    let list = ima_ascii::to_binary(&test_vectors::read(&folder, "ima-sig-4.ascii")).unwrap();
    let empty = protocol::tpm::alg::Digest::EMPTY;
    let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha256, empty)]);
    let mut ids = Vec::new();
    replay
        .push_with(&list, |entry| {
            let measured = entry.measurement().unwrap();
            if let Some(signature) = measured.signature {
                let error = verify([], signature, false, measured.alg.unwrap(), measured.digest).unwrap_err();
                ids.push(error);
            }
        })
        .unwrap();
    assert_eq!(ids, [SignatureError::UnknownKey(0xd332_0449); 3]);
}
