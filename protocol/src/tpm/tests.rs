//! The modules together, on answers recorded from a TPM; `testdata/README.md` says how.

use alloc::{string::ToString, vec, vec::Vec};

use proptest::prelude::*;

use super::{
    alg::{Digest, EccCurve, HashAlg, TpmRc},
    attest::{AttestError, TpmsAttest},
    command::*,
    credential::make_credential,
    pcr::{PcrError, PcrSelection, PcrSelectionList, digest_over, event_digest, extend},
    public::{KeyPublic, Name, ObjectAttributes, PublicError, Scheme, Symmetric, TpmtPublic},
    session::{Protect, Session, SessionError, StartingSession},
    signature::TpmtSignature,
    template::{AK_ATTRIBUTES, AkKind, AkTemplateError, EkAuth, EkTemplate, ak_qualified_name, check_ak},
    testutil::{COMMON, P256, P384, RSA2048, TestRng, recorded, with_len},
};
use crate::codec::{CodecError, Reader};

const RECORDINGS: [(AkKind, EkTemplate, &str); 3] = [
    (AkKind::P256, EkTemplate::P256, P256),
    (AkKind::P384, EkTemplate::P384, P384),
    (AkKind::Rsa2048, EkTemplate::Rsa2048, RSA2048),
];

fn ak(file: &str) -> TpmtPublic {
    CreatedPrimary::parse(&recorded(file, "ak_created")).unwrap().public
}

fn selection() -> PcrSelectionList {
    let mut selection = PcrSelectionList::single(HashAlg::Sha256, 0x2481).unwrap();
    selection.push(PcrSelection::new(HashAlg::Sha1, 0x2000).unwrap()).unwrap();
    selection
}

// Keys and templates.

#[test]
fn keys_made_from_the_templates_are_accepted_and_named_like_the_tpm_does() {
    for (kind, template, file) in RECORDINGS {
        let created = CreatedPrimary::parse(&recorded(file, "ak_created")).unwrap();
        assert_eq!(check_ak(&created.public), Ok(kind));
        let read = ObjectPublic::parse(&recorded(file, "ak_read_public")).unwrap();
        assert_eq!((&read.public, read.name), (&created.public, created.name));
        assert_eq!(Some(read.qualified_name), ak_qualified_name(&created.name));

        let ek = CreatedPrimary::parse(&recorded(file, "ek_created")).unwrap().public;
        let mut expected = template.public();
        match (&mut expected.key, &ek.key) {
            (KeyPublic::Rsa { modulus: to, .. }, KeyPublic::Rsa { modulus, .. }) => *to = modulus.clone(),
            (KeyPublic::Ecc { x: to_x, y: to_y, .. }, KeyPublic::Ecc { x, y, .. }) => {
                (*to_x, *to_y) = (x.clone(), y.clone());
            }
            _ => panic!("another type of key"),
        }
        assert_eq!(ek, expected);
        assert_eq!(EkTemplate::auth_of(&ek), template.auth());
        assert!(ek.is_storage_key() && !created.public.is_storage_key());
    }
}

#[test]
fn public_areas_encode_to_what_they_were_decoded_from() {
    for (kind, template, file) in RECORDINGS {
        for public in [ak(file), kind.template(), template.public()] {
            let mut bytes = public.encode();
            assert_eq!(TpmtPublic::decode(&bytes), Ok(public));
            for len in 0..bytes.len() {
                assert_eq!(TpmtPublic::decode(&bytes[..len]), Err(CodecError::Truncated.into()));
            }
            bytes.push(0);
            assert_eq!(TpmtPublic::decode(&bytes), Err(CodecError::TrailingBytes.into()));
        }
    }
}

#[test]
fn the_ak_template_never_changes() {
    // Another byte here is another AK on every machine.
    let unique = HashAlg::Sha256.digest(&[b"trefoil AK v1"]).to_string();
    let hex = |kind: AkKind| hex::encode(kind.in_public());
    let ecdsa = "0023000b00050472000000100018";
    assert_eq!(hex(AkKind::P256), [ecdsa, "000b000300100020", &unique, "0000"].concat());
    assert_eq!(hex(AkKind::P384), [ecdsa, "000c000400100020", &unique, "0000"].concat());
    assert_eq!(hex(AkKind::Rsa2048), ["0001000b00050472000000100014000b0800000000000020", &unique].concat());
    assert_eq!(unique, "238ccd4342534bb29730956ff6400b4706ac1f6397c3eb469407d94b27f7ac7c");
}

#[test]
fn an_ak_that_differs_anywhere_is_refused_by_what_differs() {
    let good = ak(P256);
    let broken = |change: &dyn Fn(&mut TpmtPublic)| {
        let mut public = good.clone();
        change(&mut public);
        check_ak(&public).unwrap_err()
    };
    for bit in 0..32 {
        let found = AK_ATTRIBUTES.0 ^ (1 << bit);
        assert_eq!(broken(&|p| p.attributes = ObjectAttributes(found)), AkTemplateError::Attributes { found });
    }
    assert_eq!(broken(&|p| p.name_alg = HashAlg::Sha384), AkTemplateError::NameAlg { found: HashAlg::Sha384 });
    assert_eq!(broken(&|p| p.auth_policy = Digest::zero(HashAlg::Sha256)), AkTemplateError::AuthPolicy);
    let ecc = |change: &dyn Fn(&mut Symmetric, &mut Scheme, &mut EccCurve)| {
        broken(&|public| {
            if let KeyPublic::Ecc { symmetric, scheme, curve, .. } = &mut public.key {
                change(symmetric, scheme, curve);
            }
        })
    };
    assert_eq!(ecc(&|symmetric, _, _| *symmetric = Symmetric::Aes128Cfb), AkTemplateError::Symmetric);
    assert_eq!(ecc(&|_, scheme, _| *scheme = Scheme::Null), AkTemplateError::Scheme);
    assert_eq!(ecc(&|_, scheme, _| *scheme = Scheme::Ecdsa(HashAlg::Sha384)), AkTemplateError::Scheme);
    assert_eq!(ecc(&|_, scheme, _| *scheme = Scheme::Ecdsa(HashAlg::Sha1)), AkTemplateError::Scheme);
    assert_eq!(ecc(&|_, _, curve| *curve = EccCurve::P384), AkTemplateError::Scheme);
    assert_eq!(check_ak(&AkKind::P256.template()), Err(AkTemplateError::Unique));
}

#[test]
fn an_rsa_ak_that_differs_anywhere_is_refused_by_what_differs() {
    type Change<'a> = &'a dyn Fn(&mut Scheme, &mut u16, &mut u32, &mut heapless::Vec<u8, 384>);
    let rsa = |change: Change<'_>| {
        let mut public = ak(RSA2048);
        if let KeyPublic::Rsa { scheme, key_bits, exponent, modulus, .. } = &mut public.key {
            change(scheme, key_bits, exponent, modulus);
        }
        check_ak(&public).unwrap_err()
    };
    assert_eq!(rsa(&|scheme, _, _, _| *scheme = Scheme::Rsapss(HashAlg::Sha256)), AkTemplateError::Scheme);
    assert_eq!(rsa(&|_, bits, _, _| *bits = 3072), AkTemplateError::KeyBits { found: 3072 });
    assert_eq!(rsa(&|_, _, e, _| *e = 65537), AkTemplateError::Exponent { found: 65537 });
    assert_eq!(rsa(&|_, _, _, n| n[0] = 0x7f), AkTemplateError::Unique);
    assert_eq!(rsa(&|_, _, _, n| n.truncate(255)), AkTemplateError::Unique);
}

#[test]
fn keys_of_other_kinds_are_refused_by_what_they_are() {
    let change = |at: usize, value: u16| {
        let mut bytes = ak(P256).encode();
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        TpmtPublic::decode(&bytes).unwrap_err()
    };
    assert_eq!(change(0, 0x08), PublicError::UnknownType(0x08));
    assert_eq!(change(2, 0x12), PublicError::UnknownAlgorithm(0x12));
    assert_eq!(change(10, 0x13), PublicError::UnknownAlgorithm(0x13));
    assert_eq!(change(12, 0x1a), PublicError::UnknownAlgorithm(0x1a));
    assert_eq!(change(16, 5), PublicError::UnsupportedCurve(5));
    assert_eq!(change(18, 0x20), PublicError::UnknownAlgorithm(0x20));
    assert_eq!(change(20, 49), CodecError::TooLong.into());
    // An authPolicy that is neither empty nor a digest of nameAlg.
    assert_eq!(change(8, 20), CodecError::BadValue.into());
    let mut rsa = ak(RSA2048).encode();
    rsa[16..18].copy_from_slice(&1024u16.to_be_bytes());
    assert_eq!(TpmtPublic::decode(&rsa), Err(PublicError::UnsupportedKeyBits(1024)));
    assert_eq!(TpmtPublic::decode(&[0; 513]), Err(CodecError::TooLong.into()));
}

#[test]
fn subject_public_key_info_is_the_one_der_form() {
    for (_, template, file) in RECORDINGS {
        let ek = CreatedPrimary::parse(&recorded(file, "ek_created")).unwrap().public;
        let der = ek.spki_der().unwrap();
        match &ek.key {
            KeyPublic::Ecc { curve: EccCurve::P256, x, y, .. } => {
                let head = "3059301306072a8648ce3d020106082a8648ce3d03010703420004";
                assert_eq!(der, [&hex::decode(head).unwrap()[..], x, y].concat());
            }
            KeyPublic::Ecc { curve: EccCurve::P384, x, y, .. } => {
                let head = "3076301006072a8648ce3d020106052b8104002203620004";
                assert_eq!(der, [&hex::decode(head).unwrap()[..], x, y].concat());
            }
            KeyPublic::Rsa { modulus, .. } => {
                let head = "30820122300d06092a864886f70d01010105000382010f003082010a0282010100";
                let tail = [2, 3, 1, 0, 1];
                assert_eq!(der, [&hex::decode(head).unwrap()[..], modulus, &tail].concat());
            }
        }
        // A template whose `unique` is zeros is no key.
        assert_eq!(template.public().spki_der(), Err(PublicError::NotAKey));
    }
}

#[test]
fn short_coordinates_give_the_same_key() {
    let mut padded = ak(P256);
    let KeyPublic::Ecc { x, .. } = &mut padded.key else { unreachable!() };
    x[0] = 0;
    let mut short = padded.clone();
    let KeyPublic::Ecc { x, .. } = &mut short.key else { unreachable!() };
    x.remove(0);
    assert_eq!(padded.spki_der(), short.spki_der());
    let mut long = padded;
    let KeyPublic::Ecc { x, .. } = &mut long.key else { unreachable!() };
    x[0] = 1;
    x.insert(0, 1).unwrap();
    assert_eq!(long.spki_der(), Err(PublicError::NotAKey));
}

#[test]
fn names_are_an_algorithm_and_its_digest() {
    let name = ak(P256).name();
    assert_eq!((name.len(), name.alg()), (34, Some(HashAlg::Sha256)));
    assert_eq!(Name::decode(&name), Ok(name));
    assert_eq!(Name::decode(&name[..33]), Err(CodecError::BadValue));
    assert_eq!(Name::decode(&[0x40, 0, 0, 7]), Err(CodecError::BadValue));
    assert_eq!(Name::decode(&[]), Err(CodecError::Truncated));
}

// Quotes.

#[test]
fn a_quote_holds_what_was_asked_and_its_pcrs() {
    for (kind, _, file) in RECORDINGS {
        let response = recorded(file, "quoted");
        let quoted = Quoted::parse(&response).unwrap();
        let attest = TpmsAttest::decode(quoted.attested).unwrap();
        assert_eq!(attest.encode(), quoted.attested);
        assert_eq!(Some(attest.qualified_signer), ak_qualified_name(&ak(file).name()));
        assert_eq!(attest.extra_data, b"qualifying data");
        assert!(attest.pcr_select.same_as(&selection()));
        assert!(attest.clock_info.safe);

        let read = PcrRead::parse(&recorded(file, "pcr_read")).unwrap();
        assert_eq!(read.selection, selection());
        let digest = digest_over(&attest.pcr_select, &read.values, kind.signature_hash()).unwrap();
        assert_eq!(digest, attest.pcr_digest);

        let signature = TpmtSignature::decode(quoted.signature).unwrap();
        assert_eq!(signature.encode(), quoted.signature);
        assert_eq!(signature.hash(), kind.signature_hash());
    }
}

#[test]
fn quotes_verify_under_the_ak() {
    use p256::ecdsa::signature::Verifier as _;
    let parts = |file, curve| {
        let response = recorded(file, "quoted");
        let quoted = Quoted::parse(&response).unwrap();
        let fixed = TpmtSignature::decode(quoted.signature).unwrap().ecdsa_fixed(curve).unwrap();
        (ak(file).sec1_point().unwrap(), quoted.attested.to_vec(), fixed)
    };
    let (point, attested, fixed) = parts(P256, EccCurve::P256);
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&point).unwrap();
    key.verify(&attested, &p256::ecdsa::Signature::from_slice(&fixed).unwrap()).unwrap();
    let (point, attested, fixed) = parts(P384, EccCurve::P384);
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(&point).unwrap();
    key.verify(&attested, &p384::ecdsa::Signature::from_slice(&fixed).unwrap()).unwrap();
}

#[test]
fn what_no_tpm_made_and_what_is_no_quote_are_told_apart() {
    let response = recorded(P256, "quoted");
    let good = Quoted::parse(&response).unwrap().attested;
    let change = |at: usize, value: &[u8]| {
        let mut bytes = good.to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        TpmsAttest::decode(&bytes).unwrap_err()
    };
    assert_eq!(change(0, &[0xfe]), AttestError::NotMadeByTpm(0xfe54_4347));
    assert_eq!(change(4, &[0x80, 0x17]), AttestError::NotAQuote(0x8017));
    // Neither yes nor no: `safe` is behind magic, type, name, extra data and the counters.
    assert_eq!(change(6 + 36 + 17 + 16, &[2]), CodecError::BadValue.into());
    for len in 0..good.len() {
        assert_eq!(TpmsAttest::decode(&good[..len]), Err(CodecError::Truncated.into()));
    }
    assert_eq!(TpmsAttest::decode(&[good, &[0]].concat()), Err(CodecError::TrailingBytes.into()));
    let short_digest = [&good[..good.len() - 34], &[0, 1, 7]].concat();
    assert_eq!(TpmsAttest::decode(&short_digest), Err(CodecError::BadValue.into()));
}

#[test]
fn pcr_event_extends_every_bank_by_its_own_hash() {
    // PCR 13 was extended once more by the same event before each of the recordings.
    let before = PcrRead::parse(&recorded(P256, "pcr_read")).unwrap().values;
    let after = PcrRead::parse(&recorded(P384, "pcr_read")).unwrap().values;
    for bank in [HashAlg::Sha1, HashAlg::Sha256] {
        let expected = extend(bank, before.get(bank, 13).unwrap(), &event_digest(bank, b"an event"));
        assert_eq!(Ok(*after.get(bank, 13).unwrap()), expected);
    }
}

#[test]
fn pcr_values_that_do_not_fit_their_selection_are_refused() {
    let good = recorded(P256, "pcr_read");
    // header 10, counter 4, selection 4 + 6 + 6, count 4.
    let count = good.len() - 30 - 4;
    assert!(count > 0 && good[30..34] == [0, 0, 0, 5]);
    let mut fewer = good.clone();
    fewer[33] = 4;
    fewer.truncate(good.len() - 22);
    assert_eq!(PcrRead::parse(&with_len(fewer)), Err(PcrError::Missing { bank: HashAlg::Sha1, index: 13 }.into()));
    let mut more = good.clone();
    more[33] = 6;
    more.extend_from_slice(&good[good.len() - 22..]);
    assert_eq!(PcrRead::parse(&with_len(more)), Err(CodecError::BadValue.into()));
    let mut wrong_bank = good;
    wrong_bank[19] = 0x0c;
    assert_eq!(PcrRead::parse(&wrong_bank), Err(PcrError::WrongLength { bank: HashAlg::Sha384 }.into()));
}

// Commands and answers.

#[test]
fn answers_are_split_as_they_say() {
    let (handles, more) = parse_handles(&recorded(COMMON, "persistent_handles")).unwrap();
    assert_eq!((&handles[..], more), (&[0x8101_0001, 0x8101_0016][..], false));
    let banks = parse_pcr_banks(&recorded(COMMON, "pcr_banks")).unwrap();
    let all = |bank| PcrSelection::new(bank, 0x00ff_ffff).unwrap();
    assert_eq!(banks, [all(HashAlg::Sha1), all(HashAlg::Sha256)]);
    let properties = parse_properties(&recorded(COMMON, "properties")).unwrap();
    assert_eq!(properties[0], (TPM_PT_MANUFACTURER, u32::from_be_bytes(*b"IBM\0")));
    assert_eq!(parse_secret(&recorded(COMMON, "random")).unwrap().expose().len(), 16);
    assert!(TimeInfo::parse(&recorded(COMMON, "clock")).unwrap().clock_info.safe);
    let nv = NvPublic::parse(&recorded(COMMON, "nv_public")).unwrap();
    assert_eq!(nv.index, EkTemplate::P384.certificate_index());
    let readable = NvPublic::WRITTEN | NvPublic::AUTH_READ;
    assert_eq!(nv.attributes & readable, readable);
    let data = recorded(COMMON, "nv_read");
    let data = parse_nv_data(&data).unwrap();
    assert_eq!((data.len(), &data[..2]), (512, &[0x30, 0x82][..]));
    let absent = NvPublic::parse(&recorded(COMMON, "nv_absent")).unwrap_err();
    let ResponseError::Tpm(code) = absent else { panic!("{absent}") };
    assert_eq!(code.base(), TpmRc::HANDLE);
}

#[test]
fn an_answer_cut_or_lengthened_anywhere_is_refused() {
    type Parse = fn(&[u8]) -> Result<(), ResponseError>;
    let parsers: [(&str, &str, Parse); 12] = [
        (COMMON, "persistent_handles", |r| parse_handles(r).map(|_| ())),
        (COMMON, "pcr_banks", |r| parse_pcr_banks(r).map(|_| ())),
        (COMMON, "properties", |r| parse_properties(r).map(|_| ())),
        (COMMON, "clock", |r| TimeInfo::parse(r).map(|_| ())),
        (COMMON, "random", |r| parse_secret(r).map(|_| ())),
        (COMMON, "nv_public", |r| NvPublic::parse(r).map(|_| ())),
        (COMMON, "nv_read", |r| parse_nv_data(r).map(|_| ())),
        (P256, "ak_created", |r| CreatedPrimary::parse(r).map(|_| ())),
        (P256, "ak_read_public", |r| ObjectPublic::parse(r).map(|_| ())),
        (P256, "policy_started", |r| parse_started_session(r).map(|_| ())),
        (P256, "policy_done", parse_done),
        (P256, "pcr_read", |r| PcrRead::parse(r).map(|_| ())),
    ];
    for (file, name, parse) in parsers {
        let good = recorded(file, name);
        assert_eq!(parse(&good), Ok(()), "{name}");
        for len in 0..good.len() {
            assert_eq!(parse(&good[..len]), Err(CodecError::Truncated.into()), "{name}");
        }
        assert_eq!(parse(&[&good[..], &[0]].concat()), Err(CodecError::TrailingBytes.into()), "{name}");
        // The same with lengths that agree: what is inside notices, or it is the auth area, which nobody reads here.
        if good[1] == 1 {
            assert_eq!(parse(&with_len(good[..good.len() - 1].to_vec())), Err(CodecError::Truncated.into()), "{name}");
            assert_eq!(parse(&with_len([&good[..], &[0]].concat())), Err(CodecError::TrailingBytes.into()), "{name}");
        }
    }
}

#[test]
fn refusals_tags_and_lengths_of_answers_are_judged_first() {
    let refused = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x22];
    assert_eq!(parse_done(&refused), Err(ResponseError::Tpm(TpmRc(0x922))));
    assert_eq!(parse_done(&[0x80, 0x03, 0, 0, 0, 10, 0, 0, 0, 0]), Err(ResponseError::BadTag(0x8003)));
    assert_eq!(parse_done(&vec![0; MAX_RESPONSE_LEN + 1]), Err(CodecError::TooLong.into()));
    assert_eq!(response_len(&refused), Ok(10));
    assert_eq!(response_len(&[0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0]), Err(CodecError::BadValue));
    assert_eq!(response_len(&[0x80, 1, 0, 0, 0x10, 1, 0, 0, 0, 0]), Err(CodecError::TooLong));
}

#[test]
fn a_name_that_is_not_the_keys_is_refused() {
    let mut response = recorded(P256, "ak_read_public");
    // The last byte of the public area: the Name no longer fits it.
    response[10 + 2 + 0x57] ^= 1;
    assert_eq!(ObjectPublic::parse(&response), Err(ResponseError::WrongName));
    let mut response = recorded(COMMON, "nv_public");
    response[20] ^= 1;
    assert_eq!(NvPublic::parse(&response), Err(ResponseError::WrongName));
}

#[test]
fn command_bytes_are_the_tpms() {
    let hex = |bytes: Vec<u8>| hex::encode(bytes);
    assert_eq!(hex(startup().plain()), "80010000000c000001440000");
    assert_eq!(hex(get_random(99).plain()), "80010000000c0000017b0020");
    assert_eq!(hex(flush_context(0x8000_0001).plain()), "80010000000e0000016580000001");
    assert_eq!(hex(handles(FIRST_PERSISTENT).plain()), "8001000000160000017a000000018100000000000040");
    assert_eq!(hex(read_clock().plain()), "80010000000a00000181");
    let password = "00000009400000090000010000";
    assert_eq!(hex(clear().authorized(&[Auth::EmptyPassword])), ["80020000001b000001264000000a", password].concat());
    assert_eq!(
        hex(pcr_event(13, b"ab").unwrap().authorized(&[Auth::EmptyPassword])),
        ["80020000001f0000013c0000000d", password, "00026162"].concat()
    );
    assert_eq!(
        hex(pcr_extend(16, HashAlg::Sha1, &Digest::zero(HashAlg::Sha1)).unwrap().authorized(&[Auth::EmptyPassword])),
        ["800200000035000001820000001000000009400000090000010000000000010004", &"00".repeat(20)].concat()
    );
    assert_eq!(
        hex(quote(Entity::handle(0x8000_0000), &[7], &PcrSelectionList::single(HashAlg::Sha256, 1).unwrap())
            .unwrap()
            .authorized(&[Auth::EmptyPassword])),
        ["80020000002a0000015880000000", password, "000107001000000001000b03010000"].concat()
    );
    assert_eq!(
        hex(nv_read(Entity::handle(0x01c0_000a), 3, 9999).authorized(&[Auth::EmptyPassword])),
        ["8002000000230000014e01c0000a01c0000a", password, "02000003"].concat()
    );
    assert_eq!(
        hex(policy_secret_endorsement(0x0300_0000).authorized(&[Auth::EmptyPassword])),
        ["800200000029000001514000000b03000000", password, "00000000000000000000"].concat()
    );
    assert_eq!(
        hex(evict_control(0x8000_0000, 0x8101_0001).authorized(&[Auth::EmptyPassword])),
        ["800200000023000001204000000180000000", password, "81010001"].concat()
    );
}

#[test]
fn what_would_make_a_command_too_long_is_refused() {
    assert_eq!(pcr_event(13, &[0; MAX_EVENT_LEN + 1]).unwrap_err(), CodecError::TooLong);
    let longest = pcr_event(13, &[0; MAX_EVENT_LEN]).unwrap().authorized(&[Auth::EmptyPassword]);
    assert!(longest.len() <= MAX_COMMAND_LEN);
    let ak = Entity::handle(0x8000_0000);
    assert_eq!(quote(ak, &[0; 67], &PcrSelectionList::new()).unwrap_err(), CodecError::TooLong);
    assert_eq!(activate_credential(ak, ak, &[0; 133], &[]).unwrap_err(), CodecError::TooLong);
    assert_eq!(activate_credential(ak, ak, &[], &[0; 385]).unwrap_err(), CodecError::TooLong);
    let sha1 = Digest::zero(HashAlg::Sha1);
    assert_eq!(pcr_extend(13, HashAlg::Sha256, &sha1).unwrap_err(), CodecError::BadValue);
}

// Sessions.

/// The session of a recording, with what was recorded of its first command.
struct Replay {
    session: Session,
    rng: TestRng,
    secret: [u8; 32],
    command: Vec<u8>,
}

fn replay(file: &str) -> Replay {
    use rand_core::RngCore as _;
    let mut rng = TestRng(0);
    let ak = CreatedPrimary::parse(&recorded(file, "ak_created")).unwrap();
    let ek = CreatedPrimary::parse(&recorded(file, "ek_created")).unwrap();
    let mut secret = [0; 32];
    rng.fill_bytes(&mut secret);
    let credential = make_credential(&ek.public, &ak.name, &secret, &mut rng).unwrap();
    let (start, _) = StartingSession::new(&ek.public, ek.handle, &mut rng).unwrap();
    let mut session = start.finish(&recorded(file, "session_started")).unwrap();
    let ek_auth = match EkTemplate::auth_of(&ek.public) {
        EkAuth::EmptyPassword => Auth::EmptyPassword,
        EkAuth::PolicySecret => Auth::Policy(parse_started_session(&recorded(file, "policy_started")).unwrap().0),
    };
    let (ak, ek) = (Entity::named(ak.handle, ak.name), Entity::named(ek.handle, ek.name));
    let activate = activate_credential(ak, ek, &credential.id_object, &credential.encrypted_secret).unwrap();
    let protect = Protect { command: true, response: true, keep: true };
    let command = session.protect(&activate, &[Auth::EmptyPassword, ek_auth], protect, &mut rng).unwrap();
    Replay { session, rng, secret, command }
}

#[test]
fn a_tpm_opens_our_credential_and_we_open_its_encrypted_answer() {
    for (_, _, file) in RECORDINGS {
        let mut replay = replay(file);
        assert_eq!(replay.command, recorded(file, "activate_command"));
        let response = recorded(file, "activated");
        assert!(!response.windows(32).any(|window| window == replay.secret));
        let opened = replay.session.open(&response).unwrap();
        assert_eq!(secret_parameter(&opened).unwrap().expose(), replay.secret);
        // The nonces roll: a second command in the same session.
        replay.session.protect(&get_random(32), &[], Protect::RESPONSE, &mut replay.rng).unwrap();
        let opened = replay.session.open(&recorded(file, "session_random")).unwrap();
        assert_eq!(secret_parameter(&opened).unwrap().expose().len(), 32);
    }
}

#[test]
fn an_answer_changed_on_its_way_is_refused() {
    let good = recorded(P256, "activated");
    // Header, parameter size and secret; then the password's authorisation and the policy session's, which no HMAC of
    // ours covers and nobody looks into; then our session's.
    let foreign = 10 + 4 + 34..good.len() - (2 + 32 + 1 + 2 + 32);
    for at in (0..good.len()).filter(|at| !foreign.contains(at)) {
        let mut response = good.clone();
        response[at] ^= 1;
        let error = replay(P256).session.open(&response).unwrap_err();
        assert!(matches!(error, SessionError::BadHmac | SessionError::Response(_)), "byte {at}: {error:?}");
    }
}

#[test]
fn an_answer_is_taken_once_and_only_after_its_command() {
    let mut replay = replay(P256);
    let response = recorded(P256, "activated");
    replay.session.open(&response).unwrap();
    assert_eq!(replay.session.open(&response).unwrap_err(), SessionError::OutOfOrder);
    replay.session.protect(&get_random(32), &[], Protect::RESPONSE, &mut replay.rng).unwrap();
    assert!(replay.session.open(&response).is_err());
}

#[test]
fn a_refused_command_leaves_the_session_usable() {
    let mut replay = replay(P256);
    let retry = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x22];
    assert_eq!(replay.session.open(&retry).unwrap_err(), SessionError::Response(ResponseError::Tpm(TpmRc(0x922))));
    assert!(replay.session.protect(&get_random(32), &[], Protect::RESPONSE, &mut replay.rng).is_ok());
}

#[test]
fn a_session_refuses_what_it_cannot_protect() {
    let Replay { mut session, mut rng, .. } = replay(P256);
    let nameless = quote(Entity::handle(0x8000_0000), &[], &selection()).unwrap();
    let error = session.protect(&nameless, &[Auth::EmptyPassword], Protect::RESPONSE, &mut rng).unwrap_err();
    assert_eq!(error, SessionError::NameUnknown);
    let encrypt = Protect { command: true, response: false, keep: true };
    // TPM2_ReadClock has no parameters at all.
    assert_eq!(session.protect(&read_clock(), &[], encrypt, &mut rng).unwrap_err(), SessionError::NotEncryptable);
    let three = [Auth::EmptyPassword; 3];
    assert_eq!(
        session.protect(&read_clock(), &three, Protect::RESPONSE, &mut rng).unwrap_err(),
        SessionError::TooManyAuths
    );
}

#[test]
fn secrets_are_not_printed() {
    let secret = parse_secret(&recorded(COMMON, "random")).unwrap();
    assert_eq!(alloc::format!("{secret:?}"), "TpmSecret");
}

// Totality.

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic_or_accept_what_it_would_not_write(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(public) = TpmtPublic::decode(&bytes) {
            prop_assert_eq!(public.encode(), bytes.clone());
        }
        if let Ok(signature) = TpmtSignature::decode(&bytes) {
            prop_assert_eq!(signature.encode(), bytes.clone());
        }
        let _ = TpmsAttest::decode(&bytes);
        let _ = PcrSelectionList::decode(&mut Reader::new(&bytes));
        let _ = Name::decode(&bytes);
        let _ = secret_parameter(&bytes);
    }

    #[test]
    fn no_damaged_structure_makes_a_decoder_panic(at in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>()) {
        for (_, _, file) in RECORDINGS {
            let mut public = ak(file).encode();
            let index = at.index(public.len());
            public[index] = value;
            if let Ok(decoded) = TpmtPublic::decode(&public) {
                prop_assert_eq!(decoded.encode(), public);
                let _ = (check_ak(&decoded), decoded.spki_der(), make_credential(&decoded, &decoded.name(), &[1; 32], &mut TestRng(1)));
            }
            for name in ["quoted", "pcr_read", "ak_created", "ek_created", "ak_read_public", "activated", "session_started"] {
                let mut response = recorded(file, name);
                let index = at.index(response.len());
                response[index] = value;
                response.truncate(cut.index(response.len()) + 1);
                let response = if response.len() >= 10 { with_len(response) } else { response };
                if let Ok(quoted) = Quoted::parse(&response) {
                    let _ = (TpmsAttest::decode(quoted.attested), TpmtSignature::decode(quoted.signature));
                }
                let _ = (PcrRead::parse(&response), CreatedPrimary::parse(&response), ObjectPublic::parse(&response));
                let _ = (NvPublic::parse(&response), TimeInfo::parse(&response), parse_nv_data(&response));
                let _ = (parse_handles(&response), parse_pcr_banks(&response), parse_properties(&response));
            }
        }
    }

    #[test]
    fn no_answer_makes_a_session_panic(at in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>()) {
        let mut response = recorded(P256, "activated");
        let index = at.index(response.len());
        response[index] = value;
        response.truncate(cut.index(response.len()) + 1);
        let response = if response.len() >= 10 { with_len(response) } else { response };
        let _ = replay(P256).session.open(&response);
    }
}
