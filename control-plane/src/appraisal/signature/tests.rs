use protocol::tpm::{
    public::{KeyPublic, Scheme as FixedScheme, TpmtPublic},
    template::AkKind,
};
use x509_cert::der::{
    Decode,
    asn1::{AnyRef, UintRef},
};

use super::*;
use crate::appraisal::quote::tests::{AK, SoftAk};

/// A file that OpenSSL made: `tests/data/signatures/README.md` says how.
fn data(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn key(name: &str) -> AttestationKey {
    AttestationKey::from_bytes(&data(&format!("{name}.pem"))).unwrap()
}

fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// TPMT_SIGNATURE of these numbers.
fn tpmt(scheme: u16, hash: HashAlg, numbers: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [scheme, hash.id()].map(u16::to_be_bytes).concat();
    numbers.iter().for_each(|number| bytes.extend(tpm2b(number)));
    bytes
}

fn numbers(der: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let any = AnyRef::from_der(der).unwrap();
    any.sequence(|reader| {
        Ok((UintRef::decode(reader)?.as_bytes().to_vec(), UintRef::decode(reader)?.as_bytes().to_vec()))
    })
    .unwrap()
}

fn verify(key: &AttestationKey, signature: &[u8]) -> Result<(), VerifyError> {
    key.verify(&data("message"), &TpmSignature::decode(signature).unwrap(), false)
}

fn ecdsa_of(key: &str, hash: HashAlg) -> Vec<u8> {
    let (r, s) = numbers(&data(&format!("{key}.ecdsa.{hash}")));
    tpmt(alg::TPM_ALG_ECDSA, hash, &[&r, &s])
}

const SHA2: [HashAlg; 3] = [HashAlg::Sha256, HashAlg::Sha384, HashAlg::Sha512];

#[test]
fn ecdsa_of_every_curve_and_hash_verifies() {
    for curve in ["p256", "p384", "p521"] {
        for hash in SHA2 {
            let signature = ecdsa_of(curve, hash);
            assert_eq!(verify(&key(curve), &signature), Ok(()), "{curve} {hash}");
            let mut broken = signature.clone();
            *broken.last_mut().unwrap() ^= 1;
            assert_eq!(verify(&key(curve), &broken), Err(VerifyError::Bad), "{curve} {hash}");
            let signature = TpmSignature::decode(&signature).unwrap();
            assert_eq!(key(curve).verify(b"something else", &signature, false), Err(VerifyError::Bad));
        }
    }
}

#[test]
fn rsassa_and_rsapss_of_every_size_hash_and_salt_verify() {
    for bits in [2048, 3072, 4096] {
        let name = format!("rsa{bits}");
        let of = key(&name);
        for hash in SHA2 {
            for (scheme, file) in [(0x14, "rsassa"), (0x16, "rsapss-max"), (0x16, "rsapss-digest")] {
                let number = data(&format!("{name}.{file}.{hash}"));
                assert_eq!(verify(&of, &tpmt(scheme, hash, &[&number])), Ok(()), "{name} {file} {hash}");
                let mut broken = number.clone();
                broken[100] ^= 1;
                assert_eq!(verify(&of, &tpmt(scheme, hash, &[&broken])), Err(VerifyError::Bad));
                // The same number under the other scheme.
                assert_eq!(verify(&of, &tpmt(scheme ^ 2, hash, &[&number])), Err(VerifyError::Bad));
            }
        }
    }
    let of = key("rsa2048");
    let number = data("rsa2048.rsapss-none.sha256");
    assert_eq!(verify(&of, &tpmt(0x16, HashAlg::Sha256, &[&number])), Ok(()));
    let number = data("rsa2048.rsapss-othermgf.sha256");
    assert_eq!(verify(&of, &tpmt(0x16, HashAlg::Sha256, &[&number])), Err(VerifyError::Bad));
}

#[test]
fn an_rsa_number_of_another_length_or_above_the_modulus_is_refused() {
    let of = key("rsa2048");
    let number = data("rsa2048.rsassa.sha256");
    for cut in [&number[1..], &[&[0], &number[..]].concat()[..]] {
        let refused = VerifyError::Length { modulus: 256, found: cut.len() };
        assert_eq!(verify(&of, &tpmt(0x14, HashAlg::Sha256, &[cut])), Err(refused));
    }
    for scheme in [0x14, 0x16] {
        assert_eq!(verify(&of, &tpmt(scheme, HashAlg::Sha256, &[&[0xff; 256]])), Err(VerifyError::Bad));
        assert_eq!(verify(&of, &tpmt(scheme, HashAlg::Sha256, &[&[0; 256]])), Err(VerifyError::Bad));
    }
}

#[test]
fn sha1_counts_only_where_it_is_allowed() {
    for name in ["p256", "p384", "p521", "rsa2048"] {
        let signature = if name == "rsa2048" {
            tpmt(0x14, HashAlg::Sha1, &[&data("rsa2048.rsassa.sha1")])
        } else {
            ecdsa_of(name, HashAlg::Sha1)
        };
        let signature = TpmSignature::decode(&signature).unwrap();
        let of = key(name);
        assert_eq!(of.verify(&data("message"), &signature, false), Err(VerifyError::Sha1), "{name}");
        assert_eq!(of.verify(&data("message"), &signature, true), Ok(()), "{name}");
    }
}

/// The order of P-256.
const N: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7,
    0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

#[test]
fn numbers_of_zero_and_from_the_order_on_are_out_of_range() {
    let (r, s) = numbers(&data("p256.ecdsa.sha256"));
    let mut above = N;
    above[31] += 1;
    let long = [&[1][..], &[0; 32]].concat();
    for bad in [&[][..], &[0], &[0; 32], &N, &above, &[0xff; 32], &long] {
        for pair in [[&r[..], bad], [bad, &s[..]]] {
            let signature = tpmt(0x18, HashAlg::Sha256, &pair);
            assert_eq!(verify(&key("p256"), &signature), Err(VerifyError::OutOfRange), "{}", hex::encode(bad));
        }
    }
}

/// n - s.
fn twin(s: &[u8]) -> Vec<u8> {
    let mut padded = vec![0; 32 - s.len()];
    padded.extend_from_slice(s);
    let mut borrow = 0i16;
    let mut twin = vec![0; 32];
    for at in (0..32).rev() {
        let digit = i16::from(N[at]) - i16::from(padded[at]) - borrow;
        borrow = i16::from(digit < 0);
        twin[at] = u8::try_from(digit.rem_euclid(256)).unwrap();
    }
    twin
}

#[test]
fn a_large_s_is_as_good_as_a_small_one_and_leading_zeros_do_not_count() {
    for hash in SHA2 {
        let (r, s) = numbers(&data(&format!("p256.ecdsa.{hash}")));
        assert_eq!(verify(&key("p256"), &tpmt(0x18, hash, &[&r, &twin(&s)])), Ok(()));
        let zeros = [&[0; 7][..], &r].concat();
        assert_eq!(verify(&key("p256"), &tpmt(0x18, hash, &[&zeros, &s])), Ok(()));
    }
}

#[test]
fn a_key_of_another_type_or_fixed_to_another_scheme_is_refused() {
    let ecdsa = ecdsa_of("p256", HashAlg::Sha256);
    assert_eq!(verify(&key("rsa2048"), &ecdsa), Err(VerifyError::KeyType(Scheme::Ecdsa)));
    let rsassa = tpmt(0x14, HashAlg::Sha256, &[&data("rsa2048.rsassa.sha256")]);
    assert_eq!(verify(&key("p256"), &rsassa), Err(VerifyError::KeyType(Scheme::Rsassa)));
    assert_eq!(verify(&key("p384"), &ecdsa), Err(VerifyError::Bad));

    // The same key in a TPM's public area that fixes ECDSA with SHA-256.
    let message = data("message");
    let of = AttestationKey::from_bytes(&tpm2b(&AK.public.encode())).unwrap();
    let signature = AK.sign(&message);
    assert_eq!(of.verify(&message, &TpmSignature::decode(&signature).unwrap(), false), Ok(()));
    let mut other = signature.clone();
    other[3] = 0xc;
    let refused =
        VerifyError::OtherScheme { fixed: (Scheme::Ecdsa, HashAlg::Sha256), found: (Scheme::Ecdsa, HashAlg::Sha384) };
    assert_eq!(of.verify(&message, &TpmSignature::decode(&other).unwrap(), false), Err(refused));
    assert_eq!(refused.code(), "signature_scheme_mismatch");
}

#[test]
fn a_signature_that_is_cut_or_too_long_is_refused_at_its_offset() {
    for bytes in [ecdsa_of("p256", HashAlg::Sha256), tpmt(0x16, HashAlg::Sha512, &[&[7; 512]])] {
        assert!(TpmSignature::decode(&bytes).is_ok());
        for len in 0..bytes.len() {
            let (error, offset) = TpmSignature::decode(&bytes[..len]).unwrap_err();
            assert_eq!(error, FormError::Malformed(CodecError::Truncated));
            assert!(offset <= len, "{offset} of {len}");
        }
        let trailing = [&bytes[..], &[0]].concat();
        let (error, offset) = TpmSignature::decode(&trailing).unwrap_err();
        assert_eq!((error, offset), (FormError::Malformed(CodecError::TrailingBytes), bytes.len()));
    }
    let long = tpmt(0x14, HashAlg::Sha256, &[&[7; 513]]);
    assert_eq!(TpmSignature::decode(&long), Err((FormError::Malformed(CodecError::TooLong), 4)));
    assert_eq!(TpmSignature::decode(&[0, 0x1a, 0, 0xb]), Err((FormError::UnknownAlgorithm(0x1a), 0)));
    assert_eq!(TpmSignature::decode(&[0, 0x18, 0, 0x12]), Err((FormError::UnknownHash(0x12), 2)));
}

#[test]
fn keys_are_read_from_pem_der_certificate_and_both_tpm_forms() {
    let pem = data("p256.pem");
    let of = AttestationKey::from_bytes(&pem).unwrap();
    let der = rustls_pemfile::read_one_from_slice(&pem).unwrap().unwrap().0;
    let rustls_pemfile::Item::SubjectPublicKeyInfo(der) = der else { panic!("{der:?}") };
    assert_eq!(AttestationKey::from_bytes(&der), Ok(of.clone()));
    assert_eq!(AttestationKey::from_bytes(&data("p256.crt")), Ok(of.clone()));
    assert_eq!((of.area(), of.kind()), (None, "ECC P-256".to_owned()));
    let tpmt = AK.public.encode();
    let of = AttestationKey::from_bytes(&tpmt).unwrap();
    assert_eq!(AttestationKey::from_bytes(&tpm2b(&tpmt)), Ok(of.clone()));
    let area = of.area().unwrap();
    assert_eq!((area.name(), area.bytes()), (AK.public.name(), &tpmt[..]));
    assert_eq!(area.scheme(), Some((Scheme::Ecdsa, HashAlg::Sha256)));
    let spki = AttestationKey::from_spki(&AK.public.spki_der().unwrap()).unwrap();
    assert_eq!(spki.key(), of.key());
}

/// TPMT_PUBLIC of an unrestricted signing key with this type, parameters and unique.
fn area(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &[0, 0xb, 0, 4, 0, 0x72, 0, 0, 0, 0x10], &parts.concat()].concat()
}

#[test]
fn keys_larger_than_our_own_are_read_from_a_tpm_public_area() {
    let of = key("rsa4096");
    let Key::Rsa(rsa) = of.key() else { panic!("not RSA") };
    let bytes = area(1, &[&[0, 0x10, 0x10, 0, 0, 0, 0, 0], &tpm2b(&rsa.modulus)]);
    let of = AttestationKey::from_bytes(&tpm2b(&bytes)).unwrap();
    assert_eq!((of.kind(), of.key()), ("RSA 4096".to_owned(), &Key::Rsa(rsa.clone())));
    // No scheme is fixed: any of its type will do.
    let signature = tpmt(0x16, HashAlg::Sha512, &[&data("rsa4096.rsapss-max.sha512")]);
    assert_eq!(verify(&of, &signature), Ok(()));

    let of = key("p521");
    let Key::Ecc { point, .. } = of.key() else { panic!("not ECC") };
    let (x, y) = point[1..].split_at(66);
    let bytes = area(0x23, &[&[0, 0x18, 0, 0xd, 0, 5, 0, 0x10], &tpm2b(x), &tpm2b(y)]);
    let of = AttestationKey::from_bytes(&bytes).unwrap();
    assert_eq!(verify(&of, &ecdsa_of("p521", HashAlg::Sha512)), Ok(()));
}

#[test]
fn a_public_area_with_one_wrong_field_is_refused() {
    let bytes = AK.public.encode();
    for len in 4..bytes.len() {
        let (error, offset) = AttestationKey::from_bytes(&bytes[..len]).unwrap_err();
        assert_eq!(error, KeyError::Malformed(CodecError::Truncated), "{len}");
        assert!(offset <= len);
    }
    let whole = tpm2b(&bytes);
    for len in 2..whole.len() {
        assert_eq!(AttestationKey::from_bytes(&whole[..len]).unwrap_err().0.code(), "ak_truncated", "{len}");
    }
    let refused = |bytes: &[u8]| AttestationKey::from_bytes(bytes).unwrap_err();
    assert_eq!(refused(&[&bytes[..], &[0]].concat()), (CodecError::TrailingBytes.into(), bytes.len()));
    assert_eq!(refused(&[&whole[..], &[0]].concat()), (CodecError::TrailingBytes.into(), whole.len()));
    assert_eq!(refused(&tpm2b(&[0, 8, 0, 0xb])).0, KeyError::UnknownType(8));
    let broken = |change: &dyn Fn(&mut TpmtPublic)| {
        let mut public = AK.public.clone();
        change(&mut public);
        refused(&public.encode()).0
    };
    let ecc = |change: fn(&mut heapless::Vec<u8, 48>)| {
        broken(&|public| {
            let KeyPublic::Ecc { x, .. } = &mut public.key else { panic!("not ECC") };
            change(x);
        })
    };
    assert_eq!(ecc(|x| x[5] ^= 1), KeyError::NotOnCurve);
    assert_eq!(ecc(heapless::Vec::clear), KeyError::NotAKey);
    assert_eq!(ecc(|x| x.insert(0, 1).unwrap()), KeyError::NotAKey);
    assert_eq!(refused(&AkKind::P256.template().encode()).0, KeyError::NotAKey);
    let scheme = broken(&|public| {
        let KeyPublic::Ecc { scheme, .. } = &mut public.key else { panic!("not ECC") };
        *scheme = FixedScheme::Rsassa(HashAlg::Sha256);
    });
    assert_eq!(scheme, KeyError::UnknownAlgorithm(0x14));
    assert_eq!(SoftAk::new(AkKind::P384).public.encode().len(), 120);
}

#[test]
fn pem_of_something_else_is_refused() {
    let refused = |text: &str| AttestationKey::from_bytes(text.as_bytes()).unwrap_err();
    assert_eq!(refused("x\n-----BEGIN NOTHING-----\n-----END NOTHING-----\n"), (KeyError::BadPem, 2));
    let pem = String::from_utf8(data("p256.pem")).unwrap();
    assert_eq!(refused(&pem[..90]).0, KeyError::BadPem);
    assert_eq!(refused("").0.code(), "ak_truncated");
    assert_eq!(AttestationKey::from_spki(&[0x30, 0]), Err(KeyError::BadSpki));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in proptest::collection::vec(0u8.., 0..300), at in 0usize..130, to in 0u8..,
    ) {
        let _ = AttestationKey::from_bytes(&bytes);
        if let Ok(signature) = TpmSignature::decode(&bytes) {
            proptest::prop_assert!(AttestationKey::from_bytes(&AK.public.encode()).unwrap()
                .verify(b"x", &signature, true).is_err());
        }
        let mut public = tpm2b(&AK.public.encode());
        if let Some(byte) = public.get_mut(at) {
            *byte = to;
        }
        let _ = AttestationKey::from_bytes(&public);
    }
}
