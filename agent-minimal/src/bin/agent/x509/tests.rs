//! Certificates made by another library, one thing wrong with each.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, SanType, date_time_ymd,
};

use super::*;

pub(crate) const CLOCK: Clock = Clock { not_before: 1_767_225_600, now: Some(1_800_000_000) };

pub(crate) fn dns(name: &str) -> ServerName {
    ServerName::Dns(name.into())
}

pub(crate) fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "Trefoil server CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn server_params() -> CertificateParams {
    let mut params =
        CertificateParams::new(vec!["gw.example.org".into(), "192.0.2.1".into(), "2001:db8::1".into()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "gateway");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

pub(crate) struct Ca {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    pub(crate) pem: String,
}

pub(crate) fn ca(params: CertificateParams) -> Ca {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Ca { der: certificate.der().to_vec(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
}

pub(crate) fn issue(ca: &Ca, params: CertificateParams) -> Vec<u8> {
    params.signed_by(&KeyPair::generate().unwrap(), &ca.issuer).unwrap().der().to_vec()
}

fn verify_with(change: impl FnOnce(&mut CertificateParams)) -> Result<(), CertificateError> {
    let ca = ca(authority_params());
    let mut params = server_params();
    change(&mut params);
    let authorities = Authority::all_from_pem(&ca.pem).unwrap();
    verify_server(&issue(&ca, params), &authorities, &dns("gw.example.org"), CLOCK).map(|_| ())
}

#[test]
fn server_certificate_is_accepted_under_each_of_its_names() {
    let ca = ca(authority_params());
    let authorities = Authority::all_from_pem(&ca.pem).unwrap();
    let der = issue(&ca, server_params());
    for name in ["gw.example.org", "GW.Example.ORG"] {
        verify_server(&der, &authorities, &dns(name), CLOCK).unwrap();
    }
    for ip in ["192.0.2.1", "2001:db8::1"] {
        verify_server(&der, &authorities, &ServerName::Ip(ip.parse().unwrap()), CLOCK).unwrap();
    }
    for other in [dns("gw.example.com"), dns("192.0.2.1"), dns("gateway"), ServerName::Ip("192.0.2.2".parse().unwrap())]
    {
        assert_eq!(verify_server(&der, &authorities, &other, CLOCK), Err(CertificateError::OtherName), "{other:?}");
    }
}

#[test]
fn common_name_and_wildcard_are_no_names() {
    let wrong = verify_with(|params| {
        params.subject_alt_names = vec![SanType::DnsName("other".try_into().unwrap())];
        params.distinguished_name.push(DnType::CommonName, "gw.example.org");
    });
    assert_eq!(wrong, Err(CertificateError::OtherName));
    assert_eq!(verify_with(|params| params.subject_alt_names.clear()), Err(CertificateError::OtherName));
    let wildcard =
        verify_with(|params| params.subject_alt_names = vec![SanType::DnsName("*.example.org".try_into().unwrap())]);
    assert_eq!(wildcard, Err(CertificateError::OtherName));
}

#[test]
fn purpose_and_constraints_are_judged() {
    let purposes = |purposes| verify_with(|params| params.extended_key_usages = purposes);
    assert_eq!(purposes(vec![]), Err(CertificateError::NotForServers));
    assert_eq!(purposes(vec![ExtendedKeyUsagePurpose::ClientAuth]), Err(CertificateError::NotForServers));
    assert_eq!(purposes(vec![ExtendedKeyUsagePurpose::Any]), Err(CertificateError::NotForServers));
    assert_eq!(purposes(vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]), Ok(()));
    assert_eq!(
        verify_with(|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
        Err(CertificateError::KeyUsage)
    );
    assert_eq!(verify_with(|params| params.key_usages.clear()), Ok(()));
    assert_eq!(verify_with(|params| params.is_ca = IsCa::ExplicitNoCa), Ok(()));
    assert_eq!(
        verify_with(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        Err(CertificateError::IsAuthority)
    );
}

#[test]
fn unknown_extension_is_refused_where_it_is_critical() {
    let extension = |critical| {
        verify_with(|params| {
            let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
            extension.set_criticality(critical);
            params.custom_extensions = vec![extension];
        })
    };
    assert_eq!(extension(false), Ok(()));
    assert_eq!(extension(true), Err(CertificateError::UnknownCritical));
}

#[test]
fn extension_that_comes_twice_is_refused() {
    let twice = verify_with(|params| {
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80])];
    });
    assert_eq!(twice, Err(CertificateError::DuplicateExtension));
}

#[test]
fn validity_counts_where_the_clock_can_be_believed() {
    let ca = ca(authority_params());
    let authorities = Authority::all_from_pem(&ca.pem).unwrap();
    let mut params = server_params();
    params.not_before = date_time_ymd(2026, 6, 1);
    params.not_after = date_time_ymd(2026, 6, 30);
    let der = issue(&ca, params);
    let verify = |now| {
        verify_server(&der, &authorities, &dns("gw.example.org"), Clock { not_before: 1_767_225_600, now }).map(|_| ())
    };
    // 2026-06-01 00:00:00 and 2026-06-30 00:00:00.
    assert_eq!(verify(Some(1_780_272_000)), Ok(()));
    assert_eq!(verify(Some(1_780_271_999)), Err(CertificateError::NotYetValid));
    assert_eq!(verify(Some(1_782_777_600)), Ok(()));
    assert_eq!(verify(Some(1_782_777_601)), Err(CertificateError::Expired));
    assert_eq!(verify(None), Ok(()));
    // What had expired when the program was made has expired, whatever the clock shows.
    let late = Clock { not_before: 1_782_777_601, now: None };
    assert_eq!(verify_server(&der, &authorities, &dns("gw.example.org"), late), Err(CertificateError::Expired));
}

#[test]
fn only_a_pinned_authority_issues_and_only_directly() {
    let (pinned, other) = (ca(authority_params()), ca(authority_params()));
    let authorities = Authority::all_from_pem(&pinned.pem).unwrap();
    let name = dns("gw.example.org");
    // The same name, another key.
    let der = issue(&other, server_params());
    assert_eq!(verify_server(&der, &authorities, &name, CLOCK), Err(CertificateError::BadSignature));
    let mut params = authority_params();
    params.distinguished_name.push(DnType::CommonName, "Another CA");
    let der = issue(&ca(params), server_params());
    assert_eq!(verify_server(&der, &authorities, &name, CLOCK), Err(CertificateError::UnknownIssuer));
    // A leaf of the pinned authority issues one more.
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = server_params();
    leaf.signed_by(&leaf_key, &pinned.issuer).unwrap();
    let by_leaf = server_params().signed_by(&KeyPair::generate().unwrap(), &Issuer::new(leaf, leaf_key)).unwrap();
    assert_eq!(verify_server(by_leaf.der(), &authorities, &name, CLOCK), Err(CertificateError::UnknownIssuer));
    // Both pinned: each vouches for its own, though they share a name.
    let both = Authority::all_from_pem(&format!("{}{}", pinned.pem, other.pem)).unwrap();
    for issuer in [&pinned, &other] {
        verify_server(&issue(issuer, server_params()), &both, &name, CLOCK).unwrap();
    }
}

#[test]
fn leaf_cannot_be_pinned_nor_an_authority_that_may_not_sign() {
    let ca_ = ca(authority_params());
    assert_eq!(Authority::from_der(&issue(&ca_, server_params())).err(), Some(CertificateError::NotAnAuthority));
    let mut params = authority_params();
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    assert_eq!(Authority::from_der(&ca(params).der).err(), Some(CertificateError::NotAnAuthority));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let other = authority_params().self_signed(&p384).unwrap();
    assert_eq!(Authority::from_der(other.der()).err(), Some(CertificateError::Algorithm));
}

#[test]
fn server_key_has_to_be_p256() {
    let ca = ca(authority_params());
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let der = server_params().signed_by(&p384, &ca.issuer).unwrap();
    let authorities = Authority::all_from_pem(&ca.pem).unwrap();
    assert_eq!(verify_server(der.der(), &authorities, &dns("gw.example.org"), CLOCK), Err(CertificateError::KeyType));
}

#[test]
fn every_prefix_every_flipped_byte_and_every_rest_is_refused() {
    let ca = ca(authority_params());
    let authorities = Authority::all_from_pem(&ca.pem).unwrap();
    let der = issue(&ca, server_params());
    let verify = |der: &[u8]| verify_server(der, &authorities, &dns("gw.example.org"), CLOCK).map(|_| ());
    for len in 0..der.len() {
        assert!(verify(&der[..len]).is_err());
    }
    for at in 0..der.len() {
        for bit in [0x01, 0x80] {
            let mut bad = der.clone();
            bad[at] ^= bit;
            assert!(verify(&bad).is_err(), "{at}");
        }
    }
    assert_eq!(verify(&[&der[..], &[0]].concat()), Err(CertificateError::TrailingBytes));
    assert_eq!(verify(&vec![0x30; MAX_CERTIFICATE_LEN + 1]), Err(CertificateError::TooLong));
}

#[test]
fn walk_over_junk_ends() {
    // A cheap generator: the same junk at each run.
    let mut state = 1_u32;
    for round in 0..20_000 {
        let junk: Vec<u8> = (0..round % 90)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Tags and small lengths often, so that it gets somewhere.
                [0x30, 0x02, 0x01, 0x82, 0xa0, 0x06, (state >> 24) as u8, (state >> 16) as u8]
                    [(state >> 13) as usize % 8]
            })
            .collect();
        assert!(Certificate::parse(&junk).is_err());
    }
}

#[test]
fn pem_with_too_many_too_few_or_broken_blocks_is_refused() {
    let ca = ca(authority_params());
    let count = PemError::Count { label: "CERTIFICATE", max: 4 };
    let read = |pem: &str| Authority::all_from_pem(pem).map(|all| all.len());
    assert_eq!(read(""), Err(count));
    assert_eq!(read(&ca.pem.repeat(4)), Ok(4));
    assert_eq!(read(&ca.pem.repeat(5)), Err(count));
    assert_eq!(read(&ca.pem.replace("-----END", "----END")), Err(PemError::Base64));
    assert_eq!(read(&ca.pem.replacen("MII", "M!I", 1)), Err(PemError::Base64));
    assert_eq!(read(&format!("text before\n{}\r\ntext after", ca.pem.replace('\n', "\r\n"))), Ok(1));
}

#[test]
fn tenant_key_is_one_p256_key() {
    let key = KeyPair::generate().unwrap();
    let pem = key.public_key_pem();
    let point = parse_spki_p256(&pem).unwrap();
    assert_eq!(point, key.public_key_raw());
    let one = PemError::Count { label: "PUBLIC KEY", max: 1 };
    assert_eq!(parse_spki_p256(&pem.repeat(2)), Err(one));
    assert_eq!(parse_spki_p256(&key.serialize_pem()), Err(one));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().public_key_pem();
    assert_eq!(parse_spki_p256(&p384), Err(PemError::Certificate(CertificateError::KeyType)));

    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("tenant.pem");
    std::fs::write(&path, &pem).unwrap();
    assert_eq!(tenant_keys(std::slice::from_ref(&path)).unwrap()[0].as_sec1(), &point);
    assert!(matches!(tenant_keys(&["/nonexistent".into()]), Err(TenantKeyError::Unreadable(..))));
}

#[test]
fn base64_has_one_spelling() {
    assert_eq!(base64("TWFu"), Some(b"Man".to_vec()));
    assert_eq!(base64("TWE="), Some(b"Ma".to_vec()));
    assert_eq!(base64("TQ=="), Some(b"M".to_vec()));
    for bad in ["TWF", "TQ=", "T===", "TR==", "TW=u", "TQ==TQ==", "TW-u"] {
        assert_eq!(base64(bad), None, "{bad}");
    }
}

#[test]
fn times_are_those_of_the_calendar() {
    let time_of = |tag: u8, text: &[u8]| time(&mut Der(&[&[tag, text.len() as u8], text].concat()));
    assert_eq!(time_of(UTC_TIME, b"700101000000Z"), Ok(0));
    assert_eq!(time_of(UTC_TIME, b"491231235959Z"), Ok(2_524_607_999));
    assert_eq!(time_of(UTC_TIME, b"500101000000Z"), Ok(0));
    assert_eq!(time_of(GENERALIZED_TIME, b"20240229120000Z"), Ok(1_709_208_000));
    assert_eq!(time_of(GENERALIZED_TIME, b"99991231235959Z"), Ok(253_402_300_799));
    for bad in [
        &b"20241301000000Z"[..],
        b"20240001000000Z",
        b"20240100000000Z",
        b"20240101240000Z",
        b"20240101000000+",
        b"2024010100000Z",
    ] {
        assert_eq!(time_of(GENERALIZED_TIME, bad), Err(CertificateError::Malformed));
    }
}
