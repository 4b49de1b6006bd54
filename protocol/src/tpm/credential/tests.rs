//! Credentials against a published vector, and opened again by a software TPM for each kind of EK.

use alloc::{boxed::Box, string::String};
extern crate std;

use std::{eprintln, path::PathBuf};

use p256::elliptic_curve::{
    AffinePoint, CurveArithmetic, FieldBytesSize, PublicKey, SecretKey,
    bigint::{
        Encoding, U2048,
        modular::runtime_mod::{DynResidue, DynResidueParams},
    },
    ecdh::diffie_hellman,
    sec1::{FromEncodedPoint, ModulusSize, ToEncodedPoint},
};

use super::*;
use crate::{
    codec::Reader,
    tpm::{
        alg::{EccCurve, HashAlg},
        kdf::kdfe,
        public::{KeyPublic, ObjectAttributes},
        rsa_oaep,
        seed::{Ephemeral, share_with},
        template::EkTemplate,
        testutil::{RSA_TEST_KEY, TestRng, recorded},
    },
};

/// A software TPM's private half of an EK.
#[expect(clippy::large_enum_variant, reason = "one at a time")]
enum Private {
    P256(SecretKey<p256::NistP256>),
    P384(SecretKey<p384::NistP384>),
    Rsa { modulus: U2048, exponent: U2048 },
}

fn ecc<C>(rng: &mut TestRng) -> (SecretKey<C>, [heapless::Vec<u8, 48>; 2])
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromEncodedPoint<C> + ToEncodedPoint<C>,
{
    let key = SecretKey::<C>::random(rng);
    let point = key.public_key().to_encoded_point(false);
    let coordinates = [point.x().unwrap(), point.y().unwrap()].map(|n| heapless::Vec::from_slice(n).unwrap());
    (key, coordinates)
}

fn ek(template: EkTemplate, rng: &mut TestRng) -> (TpmtPublic, Private) {
    let mut public = template.public();
    let (private, coordinates) = match template {
        EkTemplate::P256 => {
            let (key, coordinates) = ecc(rng);
            (Private::P256(key), Some(coordinates))
        }
        EkTemplate::P384 => {
            let (key, coordinates) = ecc(rng);
            (Private::P384(key), Some(coordinates))
        }
        EkTemplate::Rsa2048 => {
            let number = |name| U2048::from_be_slice(&recorded(RSA_TEST_KEY, name));
            (Private::Rsa { modulus: number("n"), exponent: number("d") }, None)
        }
    };
    match &mut public.key {
        KeyPublic::Ecc { x, y, .. } => [*x, *y] = coordinates.unwrap(),
        KeyPublic::Rsa { modulus, .. } => {
            *modulus = heapless::Vec::from_slice(&recorded(RSA_TEST_KEY, "n")).unwrap();
        }
    }
    (public, private)
}

fn agree<C>(key: &SecretKey<C>, hash: HashAlg, encrypted: &[u8]) -> Vec<u8>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromEncodedPoint<C> + ToEncodedPoint<C>,
{
    let mut reader = Reader::new(encrypted);
    let (x, y) = (reader.tpm2b(48).unwrap(), reader.tpm2b(48).unwrap());
    reader.finish().unwrap();
    let peer = PublicKey::<C>::from_sec1_bytes(&[&[4], x, y].concat()).unwrap();
    let z = diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
    let own = key.public_key().to_encoded_point(false);
    let mut seed = alloc::vec![0; hash.digest_len()];
    kdfe(hash, z.raw_secret_bytes(), b"IDENTITY", x, own.x().unwrap(), &mut seed);
    seed
}

fn unpad(modulus: &U2048, exponent: &U2048, hash: HashAlg, encrypted: &[u8]) -> Option<Vec<u8>> {
    let number = DynResidue::new(&U2048::from_be_slice(encrypted), DynResidueParams::new(modulus));
    let mut encoded = number.pow(exponent).retrieve().to_be_bytes().to_vec();
    let (first, rest) = encoded.split_at_mut(1);
    let (seed, db) = rest.split_at_mut(hash.digest_len());
    rsa_oaep::mask(hash, db, seed);
    rsa_oaep::mask(hash, seed, db);
    let (label, padded) = db.split_at(hash.digest_len());
    let message_at = padded.iter().position(|byte| *byte != 0)?;
    let good = first == [0] && label == &*hash.digest(&[b"IDENTITY\0"]) && padded[message_at] == 1;
    good.then(|| padded[message_at + 1..].to_vec())
}

/// TPM2_ActivateCredential, as Part 3 has it.
fn activate(ek: &TpmtPublic, private: &Private, name: &Name, credential: &Credential) -> Option<Vec<u8>> {
    let encrypted = &credential.encrypted_secret;
    let seed = match private {
        Private::P256(key) => agree(key, ek.name_alg, encrypted),
        Private::P384(key) => agree(key, ek.name_alg, encrypted),
        Private::Rsa { modulus, exponent } => unpad(modulus, exponent, ek.name_alg, encrypted)?,
    };
    let keys = BlobKeys::derive(ek, name, &seed).ok()?;
    let mut reader = Reader::new(&credential.id_object);
    let integrity = reader.tpm2b(64).ok()?;
    let mut identity = reader.rest().to_vec();
    if integrity != ek.name_alg.hmac(keys.hmac(), &[&identity, name]).as_bytes() {
        return None;
    }
    assert!(aes_cfb(Direction::Decrypt, keys.symmetric(), &[0; 16], &mut identity));
    let mut reader = Reader::new(&identity);
    let secret = reader.tpm2b(64).ok()?.to_vec();
    reader.finish().ok()?;
    Some(secret)
}

fn name() -> Name {
    Name::over(HashAlg::Sha256, &[b"an attestation key"])
}

#[test]
fn every_kind_of_ek_opens_its_credential_for_its_object_only() {
    let mut rng = TestRng(7);
    for template in EkTemplate::TRIED {
        let (ek_public, private) = ek(template, &mut rng);
        let secret = [0x5a; 32];
        let credential = make_credential(&ek_public, &name(), &secret, &mut rng).unwrap();
        assert_eq!(activate(&ek_public, &private, &name(), &credential).as_deref(), Some(&secret[..]));
        let other = Name::over(HashAlg::Sha256, &[b"another key"]);
        assert_eq!(activate(&ek_public, &private, &other, &credential), None);
        for at in 2..credential.id_object.len() {
            let mut damaged = credential.clone();
            damaged.id_object[at] ^= 1;
            assert_eq!(activate(&ek_public, &private, &name(), &damaged), None);
        }
        assert_ne!(make_credential(&ek_public, &name(), &secret, &mut rng), Ok(credential));
    }
}

#[test]
fn a_secret_up_to_the_digests_length_fits() {
    let mut rng = TestRng(8);
    for template in EkTemplate::TRIED {
        let (ek_public, private) = ek(template, &mut rng);
        let longest = alloc::vec![1; ek_public.name_alg.digest_len()];
        let credential = make_credential(&ek_public, &name(), &longest, &mut rng).unwrap();
        assert_eq!(activate(&ek_public, &private, &name(), &credential).as_ref(), Some(&longest));
        assert!(credential.id_object.len() <= crate::limits::MAX_ID_OBJECT_LEN);
        assert!(credential.encrypted_secret.len() <= crate::limits::MAX_ENCRYPTED_SECRET_LEN);
        let too_long = [&longest[..], &[1]].concat();
        assert_eq!(make_credential(&ek_public, &name(), &too_long, &mut rng), Err(CredentialError::SecretTooLong));
    }
}

#[test]
fn keys_that_cannot_keep_a_secret_are_refused_by_what_is_wrong() {
    type Change = Box<dyn Fn(&mut TpmtPublic)>;
    let refuse = |template, change: Change| {
        let (mut public, _) = ek(template, &mut TestRng(9));
        change(&mut public);
        match make_credential(&public, &name(), &[1; 32], &mut TestRng(10)) {
            Err(CredentialError::Key(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let without = |bit: u32| -> Change { Box::new(move |p| p.attributes = ObjectAttributes(p.attributes.0 & !bit)) };
    for bit in [ObjectAttributes::RESTRICTED, ObjectAttributes::DECRYPT] {
        assert_eq!(refuse(EkTemplate::P256, without(bit)), SeedError::NotAStorageKey);
    }
    assert_eq!(
        refuse(
            EkTemplate::P256,
            Box::new(|p| p.attributes = ObjectAttributes(p.attributes.0 | ObjectAttributes::SIGN))
        ),
        SeedError::NotAStorageKey
    );
    let off_curve: Change = Box::new(|p| {
        if let KeyPublic::Ecc { x, .. } = &mut p.key {
            x[5] ^= 1;
        }
    });
    assert_eq!(refuse(EkTemplate::P256, off_curve), SeedError::NotOnCurve);
    for template in [EkTemplate::P256, EkTemplate::P384] {
        assert_eq!(refuse(template, Box::new(move |p| *p = template.public())), SeedError::NotOnCurve);
    }
    let rsa = |change: fn(&mut u32, &mut heapless::Vec<u8, 384>)| {
        refuse(
            EkTemplate::Rsa2048,
            Box::new(move |p| {
                if let KeyPublic::Rsa { exponent, modulus, .. } = &mut p.key {
                    change(exponent, modulus);
                }
            }),
        )
    };
    assert_eq!(rsa(|e, _| *e = 3), SeedError::UnsupportedRsaKey);
    assert_eq!(rsa(|_, n| n[255] &= !1), SeedError::UnsupportedRsaKey);
    assert_eq!(rsa(|_, n| n[0] = 0), SeedError::UnsupportedRsaKey);
    assert_eq!(rsa(|_, n| n.truncate(255)), SeedError::UnsupportedRsaKey);
    assert_eq!(rsa(|_, n| n.resize(384, 1).unwrap()), SeedError::UnsupportedRsaKey);
    let says_3072: Change = Box::new(|p| {
        if let KeyPublic::Rsa { key_bits, .. } = &mut p.key {
            *key_bits = 3072;
        }
    });
    assert_eq!(refuse(EkTemplate::Rsa2048, says_3072), SeedError::UnsupportedRsaKey);
}

#[test]
fn the_published_vector_is_made_byte_for_byte() {
    let root = std::env::var_os("TREFOIL_VECTORS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors")), PathBuf::from);
    let Ok(text) = std::fs::read_to_string(root.join("credential/make-credential-ecc.json")) else {
        eprintln!("skipped: no credential/make-credential-ecc.json in {}", root.display());
        return;
    };
    let vector: serde_json::Value = serde_json::from_str(&text).unwrap();
    let field = |value: &serde_json::Value, name: &str| hex::decode(value[name].as_str().unwrap()).unwrap();
    let object_name = Name::decode(&[&[0, 0x0b], &field(&vector, "object_digest_hex")[..]].concat()).unwrap();
    let secret = field(&vector, "secret_hex");
    let cases = vector["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let spki = pem(case["ek_public_pem"].as_str().unwrap());
        let (x, y) = spki[27..].split_at(32);
        let mut public = EkTemplate::P256.public();
        let KeyPublic::Ecc { curve: EccCurve::P256, x: to_x, y: to_y, .. } = &mut public.key else { unreachable!() };
        (*to_x, *to_y) = (heapless::Vec::from_slice(x).unwrap(), heapless::Vec::from_slice(y).unwrap());
        assert_eq!(public.spki_der().unwrap(), spki);
        // The generator of the vector was given zeros for randomness; its library flips these bits of the scalar.
        let mut scalar = alloc::vec![0; 32];
        scalar[1] = 0x42;
        let seed = share_with(&public, Purpose::Identity, &Ephemeral::Scalar(Zeroizing::new(scalar))).unwrap();
        let credential = wrap(&public, &object_name, &secret, seed).unwrap();
        let mut made = Out::new();
        made.tpm2b(&credential.id_object).tpm2b(&credential.encrypted_secret);
        assert_eq!(made.as_slice(), field(case, "id_object_then_encrypted_secret_hex"));
    }
}

fn pem(text: &str) -> Vec<u8> {
    let base64: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let mut bits = 0u32;
    let mut have = 0;
    let mut out = Vec::new();
    for c in base64.bytes().filter(|c| *c != b'=') {
        let digit = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|d| *d == c);
        bits = bits << 6 | digit.unwrap() as u32;
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    out
}
