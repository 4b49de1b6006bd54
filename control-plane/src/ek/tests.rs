use std::{collections::HashSet, fs, path::Path};

use der::{Decode as _, Encode as _};
use proptest::prelude::*;
use protocol::tpm::{
    public::{KeyPublic, TpmtPublic},
    template::EkTemplate,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SignatureAlgorithm,
    date_time_ymd,
};

use super::{
    certificate::{SignatureFailure, name_text, oid_text},
    path::{EkSource, check_issuer},
    *,
};
use crate::appraisal::test_vectors;

/// 2026-01-01.
const NOW: i64 = 1_767_225_600;

/// A name, a key, and what a certificate for them says.
struct Party {
    params: CertificateParams,
    key: KeyPair,
}

impl Party {
    fn new(name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        Self { params, key: KeyPair::generate_for(algorithm).unwrap() }
    }

    fn ca(name: &str) -> Self {
        let mut ca = Self::new(name, &PKCS_ECDSA_P384_SHA384);
        ca.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        ca
    }

    fn ek() -> Self {
        let mut ek = Self::new("ek", &PKCS_ECDSA_P256_SHA256);
        ek.params.is_ca = IsCa::ExplicitNoCa;
        ek.params.use_authority_key_identifier_extension = true;
        ek.params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        ek.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        ek.params.not_after = date_time_ymd(9999, 12, 31);
        ek
    }

    fn change(mut self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        change(&mut self.params);
        self
    }

    fn self_signed(&self) -> Vec<u8> {
        self.params.self_signed(&self.key).unwrap().der().to_vec()
    }

    fn signed_by(&self, issuer: &Self) -> Vec<u8> {
        let issuer = Issuer::from_params(&issuer.params, &issuer.key);
        self.params.signed_by(&self.key, &issuer).unwrap().der().to_vec()
    }

    /// The key as a TPM shows it.
    fn ek_public(&self) -> TpmtPublic {
        let mut public = EkTemplate::P256.public();
        let KeyPublic::Ecc { x, y, .. } = &mut public.key else { panic!("not ECC") };
        let (px, py) = self.key.public_key_raw()[1..].split_at(32);
        *x = heapless::Vec::from_slice(px).unwrap();
        *y = heapless::Vec::from_slice(py).unwrap();
        public
    }
}

/// A root of this name, in PEM.
pub(super) fn root_pem(name: &str) -> String {
    let root = Party::ca(name);
    root.params.self_signed(&root.key).unwrap().pem()
}

fn roots(certificates: &[Vec<u8>]) -> EkRoots {
    let mut roots = EkRoots::empty();
    certificates.iter().for_each(|certificate| roots.add(certificate.clone()).unwrap());
    roots
}

/// Root, two intermediates and an EK below them; validated after each was changed.
fn path(
    root: impl FnOnce(Party) -> Party,
    upper: impl FnOnce(Party) -> Party,
    lower: impl FnOnce(Party) -> Party,
    ek: impl FnOnce(Party) -> Party,
) -> Result<EkPath, EkError> {
    let (root, upper, lower, ek) =
        (root(Party::ca("root")), upper(Party::ca("upper")), lower(Party::ca("lower")), ek(Party::ek()));
    let chain = [ek.signed_by(&lower), lower.signed_by(&upper), upper.signed_by(&root)];
    roots(&[root.self_signed()]).validate(&chain, &ek.ek_public(), NOW)
}

fn same(party: Party) -> Party {
    party
}

fn of(name: &str) -> String {
    format!("CN={name}")
}

fn critical(oid: &[u64]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, vec![0x30, 0]);
    extension.set_criticality(true);
    extension
}

#[test]
fn a_path_over_intermediates_in_any_order_is_found() {
    let endorsement = path(same, same, same, same).unwrap();
    assert_eq!(endorsement.issuer(), "CN=lower");
    let (root, upper, lower, ek) = (Party::ca("root"), Party::ca("upper"), Party::ca("lower"), Party::ek());
    let (a, b) = (lower.signed_by(&upper), upper.signed_by(&root));
    let chain = [ek.signed_by(&lower), b.clone(), a.clone()];
    assert!(roots(&[root.self_signed()]).validate(&chain, &ek.ek_public(), NOW).is_ok());
    // The root beside them does no harm, and an intermediate may be the trusted one.
    let chain = [ek.signed_by(&lower), root.self_signed(), b, a];
    assert!(roots(&[root.self_signed()]).validate(&chain, &ek.ek_public(), NOW).is_ok());
    let trusted = roots(&[lower.signed_by(&upper)]);
    assert!(trusted.validate(&chain[..1], &ek.ek_public(), NOW).is_ok());
    // The wire's type is taken as it is.
    let bytes = protocol::bytes::Bytes::<2048>::new(&chain[0]).unwrap();
    assert!(trusted.validate(&[bytes], &ek.ek_public(), NOW).is_ok());
}

#[test]
fn nothing_is_trusted_that_no_root_vouches_for() {
    let (root, stranger, ek) = (Party::ca("root"), Party::ca("stranger"), Party::ek());
    let validate = |trusted: &[Vec<u8>], chain: &[Vec<u8>]| roots(trusted).validate(chain, &ek.ek_public(), NOW);
    let trusted = [root.self_signed()];
    let untrusted = EkError::UntrustedIssuer { name: of("ek"), issuer: of("stranger") };
    assert_eq!(validate(&trusted, &[ek.signed_by(&stranger)]), Err(untrusted.clone()));
    assert_eq!(untrusted.code(), "ek_untrusted");
    // The stranger's own root beside it makes it no better.
    let chain = [ek.signed_by(&stranger), stranger.self_signed()];
    assert_eq!(
        validate(&trusted, &chain),
        Err(EkError::UntrustedIssuer { name: of("stranger"), issuer: of("stranger") })
    );
    assert_eq!(validate(&[], &[ek.signed_by(&root)]).unwrap_err().code(), "ek_untrusted");
    assert_eq!(validate(&trusted, &[]), Err(EkError::NoCertificate));
    let own = [ek.self_signed()];
    assert_eq!(validate(&own, &own), Err(EkError::NotACa { name: of("ek") }));
}

#[test]
fn an_issuer_of_the_right_name_and_another_key_is_refused() {
    let (root, double) = (Party::ca("root"), Party::ca("root"));
    let ek = Party::ek().change(|params| params.use_authority_key_identifier_extension = false);
    let chain = [ek.signed_by(&double)];
    let error = EkError::BadSignature { name: of("ek"), issuer: of("root") };
    assert_eq!(roots(&[root.self_signed()]).validate(&chain, &ek.ek_public(), NOW), Err(error));
    // With both of that name trusted, the right one is found.
    let both = roots(&[root.self_signed(), double.self_signed()]);
    assert!(both.validate(&chain, &ek.ek_public(), NOW).is_ok());
    // Where key identifiers say that it is another key, its signature is not even tried.
    let ek = Party::ek();
    let error = roots(&[root.self_signed()]).validate(&[ek.signed_by(&double)], &ek.ek_public(), NOW).unwrap_err();
    assert_eq!(error.code(), "ek_untrusted");
}

#[test]
fn the_certificate_has_to_be_for_the_nodes_own_ek() {
    let (root, ek) = (Party::ca("root"), Party::ek());
    let error =
        roots(&[root.self_signed()]).validate(&[ek.signed_by(&root)], &Party::ek().ek_public(), NOW).unwrap_err();
    assert_eq!((error.clone(), error.code()), (EkError::OtherKey, "ek_certificate_of_other_key"));
    let template = EkTemplate::P256.public();
    let error = roots(&[root.self_signed()]).validate(&[ek.signed_by(&root)], &template, NOW).unwrap_err();
    assert!(matches!(error, EkError::OtherKey | EkError::NotAKey));
}

#[test]
fn every_certificate_of_the_path_has_to_be_valid_now() {
    let ended = |party: Party| party.change(|params| params.not_after = date_time_ymd(2025, 12, 31));
    let later = |party: Party| party.change(|params| params.not_before = date_time_ymd(2026, 1, 2));
    assert_eq!(path(same, same, same, ended), Err(EkError::Expired { name: of("ek") }));
    assert_eq!(path(same, same, ended, same), Err(EkError::Expired { name: of("lower") }));
    assert_eq!(path(ended, same, same, same), Err(EkError::Expired { name: of("root") }));
    assert_eq!(path(same, same, same, later), Err(EkError::NotYetValid { name: of("ek") }));
    assert_eq!(path(same, later, same, same), Err(EkError::NotYetValid { name: of("upper") }));
}

#[test]
fn issuers_are_cas_that_may_sign_certificates() {
    let no_ca = |party: Party| party.change(|params| params.is_ca = IsCa::ExplicitNoCa);
    let silent = |party: Party| party.change(|params| params.is_ca = IsCa::NoCa);
    let no_sign = |party: Party| party.change(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let unsaid = |party: Party| party.change(|params| params.key_usages = Vec::new());
    assert_eq!(path(same, same, no_ca, same), Err(EkError::NotACa { name: of("lower") }));
    assert_eq!(path(same, same, silent, same), Err(EkError::NotACa { name: of("lower") }));
    assert_eq!(path(no_ca, same, same, same), Err(EkError::NotACa { name: of("root") }));
    assert_eq!(path(same, no_sign, same, same), Err(EkError::NoCertSign { name: of("upper") }));
    assert_eq!(path(no_sign, same, same, same), Err(EkError::NoCertSign { name: of("root") }));
    assert!(path(same, unsaid, same, same).is_ok());
}

#[test]
fn path_len_constraints_hold() {
    let at_most =
        |len| move |party: Party| party.change(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(len)));
    assert!(path(at_most(2), at_most(1), at_most(0), same).is_ok());
    assert_eq!(path(at_most(1), same, same, same), Err(EkError::PathTooLong { name: of("root") }));
    assert_eq!(path(same, at_most(0), same, same), Err(EkError::PathTooLong { name: of("upper") }));
}

#[test]
fn a_critical_extension_that_is_not_understood_is_refused_anywhere() {
    let with =
        |oid: &'static [u64]| move |party: Party| party.change(|params| params.custom_extensions.push(critical(oid)));
    let unknown =
        |name: &str, oid: &str| Err(EkError::UnknownCriticalExtension { name: of(name), oid: oid.to_owned() });
    assert_eq!(path(same, same, same, with(&[1, 2, 3, 4])), unknown("ek", "1.2.3.4"));
    assert_eq!(path(same, with(&[2, 999, 3]), same, same), unknown("upper", "2.999.3"));
    // Name and policy constraints are not processed, so they are not understood.
    assert_eq!(path(same, same, with(&[2, 5, 29, 30]), same), unknown("lower", "2.5.29.30"));
    assert_eq!(path(with(&[2, 5, 29, 36]), same, same, same), unknown("root", "2.5.29.36"));
    assert!(path(same, with(&[2, 5, 29, 32]), same, with(&[2, 5, 29, 9])).is_ok());
    let not_critical = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    assert!(path(same, same, same, |ek| ek.change(|params| params.custom_extensions.push(not_critical))).is_ok());
}

#[test]
fn an_ek_certificate_is_no_ca_and_says_what_an_ek_is_for() {
    let ca = |party: Party| party.change(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(path(same, same, same, ca), Err(EkError::LeafIsCa));
    let signing = |party: Party| party.change(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert_eq!(path(same, same, same, signing), Err(EkError::LeafKeyUsage("keyAgreement")));
    let server =
        |party: Party| party.change(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(path(same, same, same, server), Err(EkError::LeafExtendedKeyUsage));
    let silent = |party: Party| {
        party.change(|params| {
            params.is_ca = IsCa::NoCa;
            params.key_usages = Vec::new();
            params.extended_key_usages = Vec::new();
        })
    };
    assert!(path(same, same, same, silent).is_ok());
}

#[test]
fn five_certificates_are_too_many() {
    let (root, ek) = (Party::ca("root"), Party::ek());
    let chain = vec![ek.signed_by(&root); 5];
    let roots = roots(&[root.self_signed()]);
    assert_eq!(roots.validate(&chain, &ek.ek_public(), NOW), Err(EkError::TooManyCertificates(5)));
    // Four that are each other's issuers in a circle end too.
    let (a, b) = (Party::ca("a"), Party::ca("b"));
    let circle = [ek.signed_by(&a), a.signed_by(&b), b.signed_by(&a), a.self_signed()];
    assert_eq!(roots.validate(&circle, &ek.ek_public(), NOW).unwrap_err().code(), "ek_untrusted");
}

#[test]
fn strangers_cannot_make_us_verify_more_than_a_handful_of_signatures() {
    let ek = Party::ek().change(|params| params.use_authority_key_identifier_extension = false);
    let doubles: Vec<_> = (0..9).map(|_| Party::ca("root").self_signed()).collect();
    let chain = [ek.signed_by(&Party::ca("root"))];
    assert_eq!(roots(&doubles).validate(&chain, &ek.ek_public(), NOW), Err(EkError::TooManySignatures));
}

#[test]
fn a_damaged_certificate_is_refused_by_its_number() {
    let (root, ek) = (Party::ca("root"), Party::ek());
    let good = ek.signed_by(&root);
    let validate =
        |second: &[u8]| roots(&[root.self_signed()]).validate(&[&good[..], second], &ek.ek_public(), NOW).unwrap_err();
    let trailing = [&good[..], &[0]].concat();
    assert_eq!(validate(&trailing), EkError::BadCertificate { number: 2, source: CertificateError::TrailingBytes });
    assert!(matches!(validate(&good[..40]), EkError::BadCertificate { number: 2, .. }));
    for len in 0..good.len() {
        assert!(Certificate::parse(&good[..len]).is_err());
    }
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let (root, ek) = (Party::ca("root"), Party::ek());
    let good = ek.signed_by(&root);
    let roots = roots(&[root.self_signed()]);
    assert!(roots.validate(std::slice::from_ref(&good), &ek.ek_public(), NOW).is_ok());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(roots.validate(&[bad], &ek.ek_public(), NOW).is_err(), "byte {at}");
    }
}

#[test]
fn the_operators_directory_is_loaded_whole_or_its_bad_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    assert_eq!(EkRoots::load_dir(directory.path()).unwrap().count(), 0);
    let (one, two) = (Party::ca("one"), Party::ca("two"));
    let pem = |party: &Party| party.params.self_signed(&party.key).unwrap().pem();
    let three = Party::ca("three").self_signed();
    file("a.pem", format!("a comment\n{}{}", pem(&one), pem(&two)).as_bytes());
    file("b.der", &three);
    file("again.cer", &three);
    file(".hidden", b"not read");
    fs::create_dir(directory.path().join("folder")).unwrap();
    let loaded = EkRoots::load_dir(directory.path()).unwrap();
    assert_eq!(loaded.count(), 3);
    let ek = Party::ek();
    let chain = [ek.signed_by(&two)];
    // ECDSA keys make another certificate each time; the trusted one is known by name and key.
    assert!(loaded.validate(&chain, &ek.ek_public(), NOW).is_ok());

    file("c.txt", b"hello");
    let error = EkRoots::load_dir(directory.path()).unwrap_err();
    assert!(matches!(&error, EkRootsError::BadCertificate { number: 1, .. }));
    assert!(error.to_string().contains("c.txt"), "{error}");
    assert!(std::error::Error::source(&error).is_none(), "what is wrong stands in the message, and only there");
    file("c.txt", b"-----BEGIN NOTHING-----\nAAAA\n-----END NOTHING-----\n");
    assert!(matches!(EkRoots::load_dir(directory.path()), Err(EkRootsError::NoCertificate { .. })));
    file("c.txt", b"-----BEGIN CERTIFICATE-----\n\xff\n");
    assert!(EkRoots::load_dir(directory.path()).is_err());
    let missing = directory.path().join("missing");
    assert!(matches!(EkRoots::load_dir(&missing), Err(EkRootsError::Io { .. })));
}

#[test]
fn a_node_id_follows_from_the_certificate_as_from_the_ek() {
    let (root, ek) = (Party::ca("root"), Party::ek());
    assert_eq!(certificate_spki(&ek.signed_by(&root)).unwrap(), ek.ek_public().spki_der().unwrap());
    assert!(certificate_spki(b"x").is_err());
}

/// The certificates of a bundle.
fn bundle(folder: &Path, name: &str) -> Vec<Vec<u8>> {
    let pem = test_vectors::read(folder, name);
    rustls_pemfile::certs(&mut pem.as_slice()).map(|certificate| certificate.unwrap().to_vec()).collect()
}

#[test]
fn every_vendor_certificate_parses_and_roots_verify_their_own_signature() {
    let Some(folder) = test_vectors::folder("ek-certs") else { return };
    let vendor_roots = bundle(&folder, "vendor-roots.pem");
    assert_eq!(vendor_roots.len(), 26);
    let mut algorithms = HashSet::new();
    let mut self_signed = 0;
    for der in &vendor_roots {
        let root = Certificate::parse(der).unwrap();
        if root.is_self_issued() {
            assert_eq!(root.verify_signature(&root), Ok(()), "{}", name_text(root.subject));
            self_signed += 1;
            algorithms.insert(root.signature_algorithm());
        }
        assert_eq!(root.unknown_critical, None, "{}", name_text(root.subject));
        assert_eq!(check_issuer(&root, 0), Ok(()));
    }
    assert!(self_signed >= 20, "{self_signed}");
    // ECDSA with SHA-256, SHA-384 and SHA-512 (P-521), RSA with SHA-256 and SHA-384.
    assert_eq!(algorithms.len(), 5, "{algorithms:?}");
}

#[test]
fn vendor_intermediates_verify_under_their_issuers() {
    let Some(folder) = test_vectors::folder("ek-certs") else { return };
    let intermediates = bundle(&folder, "vendor-intermediates.pem");
    assert_eq!(intermediates.len(), 143);
    let all: Vec<_> = [bundle(&folder, "vendor-roots.pem"), intermediates.clone()].concat();
    let all: Vec<_> = all.iter().map(|der| Certificate::parse(der).unwrap()).collect();
    let mut verified = 0;
    for der in &intermediates {
        let certificate = Certificate::parse(der).unwrap();
        let mut issuers = all.iter().filter(|issuer| certificate.names_issuer(issuer)).peekable();
        if issuers.peek().is_some() {
            let good = issuers.any(|issuer| certificate.verify_signature(issuer).is_ok());
            assert!(good, "{} by {}", name_text(certificate.subject), name_text(certificate.issuer));
            verified += 1;
        }
        assert_eq!(certificate.unknown_critical, None, "{}", name_text(certificate.subject));
        assert_eq!(check_issuer(&certificate, 0), Ok(()));
    }
    assert!(verified > 100, "{verified}");
    println!("{verified} of {} intermediates have their issuer in the bundle", intermediates.len());
}

#[test]
fn certificates_that_strict_decoders_refuse_are_read() {
    let Some(folder) = test_vectors::folder("ek-certs") else { return };
    let nuvoton = test_vectors::read(&folder, "nuvoton-root-2110-non-der.cer");
    let root = Certificate::parse(&nuvoton).unwrap();
    assert_eq!(root.verify_signature(&root), Ok(()));
    assert!(name_text(root.subject).contains("CN=Nuvoton TPM Root CA 2110"), "{}", name_text(root.subject));
    let st = test_vectors::read(&folder, "st-ecc-ek.cer");
    let ek = Certificate::parse(&st).unwrap();
    assert_eq!(name_text(ek.subject), "an empty name");
    assert_eq!(ek.is_ek_usage, Some(true));
    assert_eq!(
        (ek.unknown_critical, ek.basic_constraints, ek.key_usage),
        (None, Some((false, None)), Some(KEY_AGREEMENT))
    );

    // A whole path of a real vendor, as far as the bundle reaches: the issuer is in it, or the error says whose is not.
    let mut public = EkTemplate::P256.public();
    let KeyPublic::Ecc { x, y, .. } = &mut public.key else { panic!("not ECC") };
    let (px, py) = ek.spki[ek.spki.len() - 64..].split_at(32);
    *x = heapless::Vec::from_slice(px).unwrap();
    *y = heapless::Vec::from_slice(py).unwrap();
    let trusted = [bundle(&folder, "vendor-roots.pem"), bundle(&folder, "vendor-intermediates.pem")].concat();
    match roots(&trusted).validate(std::slice::from_ref(&st), &public, NOW) {
        Ok(endorsement) => assert!(endorsement.issuer().contains("STM TPM ECC Intermediate CA 01")),
        Err(error) => assert!(matches!(error, EkError::UntrustedIssuer { .. }), "{error}"),
    }
    let after = 1_848_182_401; // 2028-07-26, its last day, and a second of the next
    let error = roots(&trusted).validate(&[st], &public, after).unwrap_err();
    assert!(matches!(error, EkError::Expired { .. } | EkError::UntrustedIssuer { .. }), "{error}");
}

#[test]
fn an_rsa_ek_written_as_rsaes_oaep_is_the_same_key() {
    let Some(folder) = test_vectors::folder("ek-certs") else { return };
    let certificates = bundle(&folder, "vendor-roots.pem");
    let rsa = certificates.iter().find(|der| Certificate::parse(der).unwrap().is_rsa()).unwrap();
    // rsaEncryption and id-RSAES-OAEP differ in the last arc only.
    let id = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let at = rsa.windows(id.len()).position(|window| window == id).unwrap();
    let mut oaep = rsa.clone();
    oaep[at + 8] = 7;
    let spki = certificate_spki(rsa).unwrap();
    let certificate = Certificate::parse(&oaep).unwrap();
    assert_ne!(certificate.spki, spki);
    assert!(certificate.is_rsa() && certificate.has_key(&spki));
    assert_eq!(certificate_spki(&oaep).unwrap(), spki);
    let other = certificates.iter().rfind(|der| Certificate::parse(der).unwrap().is_rsa()).unwrap();
    assert!(!certificate.has_key(&certificate_spki(other).unwrap()));
}

/// A constructed or primitive element of less than 128 bytes.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    [&[tag, u8::try_from(value.len()).ok().filter(|len| *len < 0x80).unwrap()][..], &value].concat()
}

/// subjectAltName with the TPM's three attributes in one RDN, in this order.
fn tpm_name(order: [u8; 3], is_critical: bool) -> CustomExtension {
    let texts = ["id:49465800", "SLB 9672", "id:0F10"];
    let attribute = |arc: u8| {
        let text = texts[usize::from(arc) - 1].as_bytes();
        tlv(0x30, &[&tlv(6, &[&[0x67, 0x81, 5, 2, arc]]), &tlv(12, &[text])])
    };
    let [a, b, c] = order.map(attribute);
    let name = tlv(0x30, &[&tlv(0x31, &[&a, &b, &c])]);
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], tlv(0x30, &[&tlv(0xa4, &[&name])]));
    extension.set_criticality(is_critical);
    extension
}

/// In the order of DER: by length first, since that comes first.
const IN_ORDER: [u8; 3] = [3, 2, 1];

fn with_extension(party: Party, extension: CustomExtension) -> Party {
    party.change(|params| params.custom_extensions.push(extension))
}

fn nameless(party: Party) -> Party {
    party.change(|params| params.distinguished_name = DistinguishedName::new())
}

#[test]
fn the_path_that_was_found_is_told_with_its_tpm() {
    let found = path(same, same, same, |ek| with_extension(nameless(ek), tpm_name(IN_ORDER, true))).unwrap();
    let subjects: Vec<_> = found.certificates.iter().map(|certificate| certificate.subject.as_str()).collect();
    assert_eq!(subjects, ["an empty name", "CN=lower", "CN=upper", "CN=root"]);
    let sources: Vec<_> = found.certificates.iter().map(|certificate| certificate.source.clone()).collect();
    let root = EkSource::Bundle { file: "given".into(), provenance: None };
    let node = |number| EkSource::Node { number };
    assert_eq!(sources, [node(1), node(2), node(3), root]);
    assert_eq!((found.certificates[0].key.as_str(), found.certificates[3].key.as_str()), ("P-256", "P-384"));
    assert_eq!(found.tpm.manufacturer.as_deref(), Some("id:49465800"));
    assert_eq!((found.tpm.model.as_deref(), found.tpm.version.as_deref()), (Some("SLB 9672"), Some("id:0F10")));
    assert_eq!(found.tpm.vendor().as_deref(), Some("IFX"));
    assert_eq!(found.not_checked, ["revocation"]);
    assert_eq!(path(same, same, same, same).unwrap().not_checked, ["revocation", "tpm_identity"]);
}

#[test]
fn an_empty_subject_needs_a_critical_name_of_the_tpm() {
    let leaf = |ek: Party| path(same, same, same, |_| ek);
    assert_eq!(leaf(nameless(Party::ek())), Err(EkError::NoSubject));
    assert_eq!(leaf(with_extension(nameless(Party::ek()), tpm_name(IN_ORDER, false))), Err(EkError::NoSubject));
    assert!(leaf(with_extension(Party::ek(), tpm_name(IN_ORDER, false))).is_ok());
    let mut dns = CustomExtension::from_oid_content(&[2, 5, 29, 17], tlv(0x30, &[&tlv(0x82, &[b"tpm"])]));
    dns.set_criticality(true);
    assert_eq!(leaf(with_extension(Party::ek(), dns)), Err(EkError::NoDirectoryName));
    let mut broken = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 2, 0xa4, 0x30]);
    broken.set_criticality(true);
    let error = leaf(with_extension(Party::ek(), broken)).unwrap_err();
    let source = CertificateError::Malformed("subjectAltName");
    assert_eq!((error.code(), error), ("ek_malformed", EkError::BadCertificate { number: 1, source }));
}

#[test]
fn an_issuer_without_a_name_is_refused() {
    let error = path(same, same, nameless, same).unwrap_err();
    assert_eq!(error, EkError::NoIssuerName { name: of("ek") });
}

#[test]
fn a_set_out_of_order_is_refused_but_for_a_named_exception() {
    let disordered = |party| with_extension(party, tpm_name([1, 2, 3], true));
    assert_eq!(path(same, same, same, disordered).unwrap_err().code(), "ek_not_der");
    let (root, ca, ek) = (Party::ca("root"), disordered(Party::ca("ca")), Party::ek());
    let (leaf, ca_der) = (ek.signed_by(&ca), ca.signed_by(&root));
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&ca_der));
    let refused = EkError::NotDer { name: of("ca"), sha256: sha256.clone() };
    assert_eq!(
        roots(&[root.self_signed()]).validate_certificate(&[leaf.clone(), ca_der.clone()], NOW),
        Err(refused.clone())
    );

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ca.der"), &ca_der).unwrap();
    let bundle = EkRoots::load(dir.path()).unwrap();
    assert_eq!(bundle.validate_certificate(std::slice::from_ref(&leaf), NOW), Err(refused));
    assert_eq!(bundle.certificates()[0].refused.as_deref(), Some("set-order"));
    let said = format!("[[certificate]]\nsha256 = \"{sha256}\"\nvendor = \"Example\"\nexceptions = [\"set-order\"]\n");
    fs::write(dir.path().join("provenance.toml"), said).unwrap();
    let bundle = EkRoots::load(dir.path()).unwrap();
    assert_eq!(bundle.certificates()[0].refused, None);
    let found = bundle.validate_certificate(&[leaf], NOW).unwrap();
    let EkSource::Bundle { file, provenance: Some(provenance) } = &found.certificates[1].source else { panic!() };
    assert_eq!((file.as_str(), provenance.vendor.as_deref()), ("ca.der", Some("Example")));
    assert_eq!(provenance.exceptions, ["set-order"]);
}

#[test]
fn a_provenance_file_that_says_something_wrong_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let root = Party::ca("root").self_signed();
    fs::write(dir.path().join("root.der"), &root).unwrap();
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&root));
    let load = |text: &str| {
        fs::write(dir.path().join("provenance.toml"), text).unwrap();
        EkRoots::load(dir.path())
    };
    let entry = |rest: &str| format!("[[certificate]]\nsha256 = \"{sha256}\"\n{rest}\n");
    let all = "vendor = \"V\"\nsource = \"https://v.example/root\"\nretrieved = \"2026-02-28\"\nnote = \"n\"";
    assert_eq!(load(&entry(all)).unwrap().count(), 1);
    assert_eq!(load("").unwrap().count(), 1);
    let unknown = "ab".repeat(32);
    for (text, told) in [
        (format!("[[certificate]]\nsha256 = \"{unknown}\"\n"), unknown.as_str()),
        (entry("vendors = \"V\""), "vendors"),
        (entry("retrieved = \"2026-02-30\""), "retrieved"),
        (entry("retrieved = \"yesterday\""), "retrieved"),
        (entry("exceptions = [\"sha1\"]"), "sha1"),
        (entry("note = \"a\\u0007b\""), "control characters"),
        ([entry(""), entry("")].concat(), "twice"),
        ("[[certificate]]\nsha256 = \"short\"\n".to_owned(), "64 hex digits"),
        ("[[certificate]]\nvendor = \"V\"\n".to_owned(), "sha256"),
        ("version = 1\n".to_owned(), "version"),
    ] {
        let error = load(&text).unwrap_err();
        assert!(matches!(&error, EkRootsError::BadProvenance { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(told) && error.contains("provenance.toml"), "{error}");
    }
}

#[test]
fn a_way_that_ends_is_left_for_another() {
    let (root, ca, ek) = (Party::ca("root"), Party::ca("ca"), Party::ek());
    let leaf = ek.signed_by(&ca);
    // The same CA twice: once it had expired, and was certified again.
    let ended = ca.change(|params| params.not_after = date_time_ymd(2025, 1, 1));
    let old = ended.signed_by(&root);
    let new = ended.change(|params| params.not_after = date_time_ymd(2040, 1, 1)).signed_by(&root);
    let trusted = roots(&[root.self_signed()]);
    for chain in [[leaf.clone(), old.clone(), new.clone()], [leaf.clone(), new, old.clone()]] {
        assert_eq!(trusted.validate_certificate(&chain, NOW).unwrap().certificates.len(), 3);
    }
    assert_eq!(trusted.validate_certificate(&[leaf, old], NOW), Err(EkError::Expired { name: of("ca") }));
}

#[test]
fn every_way_of_signing_is_verified_or_refused_by_name() {
    macro_rules! files {
        ($($name:literal)*) => { [$(($name, &include_bytes!(concat!("../../tests/data/ek/", $name, ".der"))[..])),*] };
    }
    for (name, der) in files!("rsa-sha384" "rsa-sha512" "rsa-pss-sha256" "rsa-pss-sha384" "rsa-pss-sha512"
        "p256-sha512" "p384-sha256" "p384-sha512" "p521-sha256" "p521-sha512")
    {
        let root = Certificate::parse(der).unwrap();
        assert_eq!(root.verify_signature(&root), Ok(()), "{name}");
        let mut bad = der.to_vec();
        let last = bad.len() - 1;
        bad[last] ^= 1;
        let bad = Certificate::parse(&bad).unwrap();
        assert_eq!(bad.verify_signature(&root), Err(SignatureFailure::Bad), "{name}");
        // Another key of whatever kind.
        let other = Party::ca("other").self_signed();
        assert!(root.verify_signature(&Certificate::parse(&other).unwrap()).is_err(), "{name}");
    }
    for (name, der) in files!("rsa-pss-salt20" "rsa-pss-sha1-mgf") {
        let root = Certificate::parse(der).unwrap();
        assert_eq!(root.verify_signature(&root), Err(SignatureFailure::Unsupported), "{name}");
    }
    let [(name, der)] = files!("rsa-sha1");
    let root = Certificate::parse(der).unwrap();
    assert_eq!(root.verify_signature(&root), Err(SignatureFailure::Sha1), "{name}");
}

#[test]
fn each_error_has_its_own_code() {
    let name = String::new;
    let malformed = |source| EkError::BadCertificate { number: 1, source };
    let errors = [
        EkError::NoCertificate,
        EkError::TooManyCertificates(5),
        malformed(CertificateError::Malformed("")),
        malformed(CertificateError::NotVersion3),
        malformed(CertificateError::AlgorithmMismatch),
        malformed(CertificateError::DoubledExtension),
        malformed(CertificateError::TooLong),
        malformed(CertificateError::TrailingBytes),
        EkError::NotAKey,
        EkError::OtherKey,
        EkError::LeafIsCa,
        EkError::LeafKeyUsage(""),
        EkError::LeafExtendedKeyUsage,
        EkError::NotYetValid { name: name() },
        EkError::Expired { name: name() },
        EkError::UnknownCriticalExtension { name: name(), oid: name() },
        EkError::UntrustedIssuer { name: name(), issuer: name() },
        EkError::BadSignature { name: name(), issuer: name() },
        EkError::Sha1Signature { name: name() },
        EkError::UnsupportedSignature { name: name(), algorithm: name() },
        EkError::NotACa { name: name() },
        EkError::NoCertSign { name: name() },
        EkError::PathTooLong { name: name() },
        EkError::TooManySignatures,
        EkError::NotDer { name: name(), sha256: name() },
        EkError::NoIssuerName { name: name() },
        EkError::NoSubject,
        EkError::NoDirectoryName,
    ];
    let codes: HashSet<_> = errors.iter().map(EkError::code).collect();
    assert_eq!(codes.len(), errors.len());
    assert!(errors.iter().all(|error| !error.advice().is_empty()));
}

#[test]
fn our_reader_agrees_with_x509_cert_on_every_vendor_certificate() {
    let Some(folder) = test_vectors::folder("ek-certs") else { return };
    let all = [bundle(&folder, "vendor-roots.pem"), bundle(&folder, "vendor-intermediates.pem")].concat();
    assert_eq!(all.len(), 169);
    let (mut unread, mut disordered) = (0, 0);
    for der in &all {
        let ours = Certificate::parse(der).unwrap();
        disordered += usize::from(ours.has_disordered_set);
        let Ok(theirs) = x509_cert::Certificate::from_der(der) else {
            unread += 1;
            assert!(ours.has_disordered_set, "{}", name_text(ours.subject));
            continue;
        };
        let tbs = &theirs.tbs_certificate;
        let seconds = |time: x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap();
        assert_eq!(ours.serial, tbs.serial_number.as_bytes());
        assert_eq!(
            (ours.not_before, ours.not_after),
            (seconds(tbs.validity.not_before), seconds(tbs.validity.not_after))
        );
        assert_eq!(ours.spki, tbs.subject_public_key_info.to_der().unwrap());
        // It sorts what it decodes, and so does not give a disordered name back.
        if !ours.has_disordered_set {
            assert_eq!(ours.subject, tbs.subject.to_der().unwrap());
            assert_eq!(ours.issuer, tbs.issuer.to_der().unwrap());
        }
    }
    assert_eq!(disordered, 4);
    println!("x509-cert reads {} of 169, ours all", all.len() - unread);
}

proptest! {
    #[test]
    fn any_bytes_are_a_certificate_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Certificate::parse(&bytes);
        let _ = (name_text(&bytes), oid_text(&bytes));
    }

    #[test]
    fn a_damaged_certificate_never_panics(at in 0usize..2000, byte: u8, cut in 0usize..2000) {
        static CERTIFICATE: std::sync::LazyLock<Vec<u8>> =
            std::sync::LazyLock::new(|| Party::ek().signed_by(&Party::ca("root")));
        let mut bytes = CERTIFICATE.clone();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut.max(1));
        if let Ok(certificate) = Certificate::parse(&bytes) {
            let _ = (name_text(certificate.subject), certificate.verify_signature(&certificate));
        }
    }
}

#[test]
fn a_name_holds_nothing_that_a_terminal_would_obey() {
    let name = [&[0x30, 16, 0x31, 14, 0x30, 12, 6, 3, 0x55, 4, 3, 12, 5][..], "a\u{202e}b".as_bytes()].concat();
    assert_eq!(super::certificate::name_text(&name), "CN=a?b");
}
