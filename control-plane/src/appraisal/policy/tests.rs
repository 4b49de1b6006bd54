use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn policy(text: &str) -> Policy {
    Policy::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(text: &str) -> PolicyError {
    Policy::parse(text.as_bytes()).unwrap_err()
}

/// A policy with these lines behind `version` and `name`.
fn with(rest: &str) -> String {
    format!("version = 1\nname = \"p\"\n{rest}")
}

fn pcrs(rest: &str) -> PolicyError {
    refused(&with(&format!("[pcrs.sha256]\n{rest}")))
}

fn place(place: &str) -> String {
    format!("pcrs.{place}")
}

#[test]
fn toml_and_json_say_the_same() {
    let toml = policy(&with(&format!(
        "accept = [\"sha1\", \"hardware-unproven\"]\n[pcrs.sha256]\n7 = [\"{A}\", \"{}\"]\n[release]\nphase_pcr = 13\n",
        A.to_uppercase()
    )));
    let json = policy(&format!(
        " \n{{\"version\":1,\"name\":\"p\",\"accept\":[\"hardware-unproven\",\"sha1\"],\
         \"pcrs\":{{\"sha256\":{{\"7\":[\"{A}\",\"{A}\"]}}}},\"release\":{{\"phase_pcr\":13}}}}"
    ));
    assert_eq!(toml.pcrs().collect::<Vec<_>>(), json.pcrs().collect::<Vec<_>>());
    assert_eq!((toml.release(), json.release()), (Some(ReleaseRule::PhasePcr(13)), Some(ReleaseRule::PhasePcr(13))));
    assert_eq!(toml.accepted().collect::<Vec<_>>(), [Exception::HardwareUnproven, Exception::Sha1]);
    assert!(json.accepts(Exception::Sha1) && !json.accepts(Exception::NoFirmwareMeasurements));
    assert_eq!(toml.name(), "p");
    assert_ne!(toml.id(), json.id());
}

#[test]
fn the_id_is_the_digest_of_the_bytes_as_uploaded() {
    let text = with("[release]\nphase_pcr = 8");
    assert_eq!(policy(&text).id(), HashAlg::Sha256.digest(&[text.as_bytes()]).as_bytes());
    assert_ne!(policy(&text).id(), policy(&format!("{text}\n")).id());
}

#[test]
fn named_phase_and_ima_pcrs_are_selected_in_every_named_bank() {
    let masks = |policy: &Policy, has_ima| {
        policy.selection(has_ima).iter().map(|bank| (bank.bank, bank.mask())).collect::<Vec<_>>()
    };
    let two = policy(&with(&format!(
        "[pcrs.sha256]\n7 = [\"{A}\"]\n[pcrs.sha384]\n0 = [\"{A}{}\"]\n[release]\nphase_pcr = 13\n",
        &A[..32]
    )));
    assert_eq!(masks(&two, false), [(HashAlg::Sha256, 0x2080), (HashAlg::Sha384, 0x2001)]);
    assert_eq!(masks(&two, true), [(HashAlg::Sha256, 0x2480), (HashAlg::Sha384, 0x2401)]);
    assert_eq!(two.banks().collect::<Vec<_>>(), [HashAlg::Sha256, HashAlg::Sha384]);
    let accepting = "accept = [\"no-firmware-measurements\"]\n";
    let only_phase = policy(&with(&format!("{accepting}[release]\nphase_pcr = 13")));
    assert_eq!(masks(&only_phase, false), [(HashAlg::Sha256, 0x2000)]);
    assert_eq!(masks(&only_phase, true), [(HashAlg::Sha256, 0x2400)]);
}

#[test]
fn a_bank_without_a_named_firmware_pcr_is_asked_for_pcr_0_too() {
    let mask = |text: &str| policy(&with(text)).selection(false).mask(HashAlg::Sha256);
    assert_eq!(mask(&format!("[pcrs.sha256]\n11 = [\"{A}\"]")), 0x801);
    assert_eq!(mask(&format!("[pcrs.sha256]\n7 = [\"{A}\"]")), 0x80);
    assert_eq!(mask(&format!("accept = [\"no-firmware-measurements\"]\n[pcrs.sha256]\n11 = [\"{A}\"]")), 0x800);
}

fn signing_key(byte: u8) -> (p256::ecdsa::SigningKey, P256Key) {
    let key = p256::ecdsa::SigningKey::from_slice(&[byte; 32]).unwrap();
    let public = P256Key::from_sec1(key.verifying_key().to_encoded_point(false).as_bytes()).unwrap();
    (key, public)
}

#[test]
fn a_signed_policy_is_the_same_policy_under_the_envelopes_address() {
    let (key, public) = signing_key(1);
    let text = with("[release]\nphase_pcr = 8");
    let envelope = dsse::sign(text.as_bytes(), PAYLOAD_TYPE, &key);
    let opened = Policy::open(&envelope, &PolicyTrust::Signed(vec![public])).unwrap();
    assert_eq!((opened.name(), opened.release()), ("p", Some(ReleaseRule::PhasePcr(8))));
    assert_eq!(opened.signer(), Signer::Key(public));
    assert_eq!(opened.id(), HashAlg::Sha256.digest(&[&envelope]).as_bytes());
    // Who has no key takes it too, and says that nobody looked.
    assert_eq!(Policy::parse(&envelope).unwrap().signer(), Signer::Unchecked);
    assert_eq!(policy(&text).signer(), Signer::None);
}

#[test]
fn where_signatures_are_wanted_only_the_right_ones_do() {
    let ((key, public), (other, _)) = (signing_key(1), signing_key(2));
    let trust = PolicyTrust::Signed(vec![public]);
    let text = with("[release]\nphase_pcr = 8");
    let unsigned = Policy::open(text.as_bytes(), &trust).unwrap_err();
    assert_eq!((&unsigned, unsigned.code()), (&PolicyError::Unsigned, "policy_unsigned"));
    let wrong = Policy::open(&dsse::sign(text.as_bytes(), PAYLOAD_TYPE, &other), &trust).unwrap_err();
    assert!(matches!(wrong, PolicyError::Signature(dsse::DsseError::BadSignature(_))));
    assert_eq!(wrong.code(), "policy_signature_bad");
    // What was signed for another use is no policy, whoever is asked.
    for trust in [trust.clone(), PolicyTrust::Any] {
        let foreign = Policy::open(&dsse::sign(text.as_bytes(), "application/json", &key), &trust).unwrap_err();
        assert!(matches!(foreign, PolicyError::Signature(dsse::DsseError::OtherType { .. })), "{foreign:?}");
    }
    // A good signature over text that is no policy, or over a second envelope, makes none of it.
    let inside = dsse::sign(text.as_bytes(), PAYLOAD_TYPE, &key);
    for payload in [b"version = 2".as_slice(), &inside] {
        let error = Policy::open(&dsse::sign(payload, PAYLOAD_TYPE, &key), &trust).unwrap_err();
        assert_eq!(error.code(), "policy_invalid");
    }
    assert_eq!(PolicyTrust::from_keys(vec![]), PolicyTrust::Any);
}

#[test]
fn what_is_not_known_is_refused() {
    assert!(refused("name = \"p\"").to_string().contains("version"));
    assert_eq!(refused("version = 2\nname = \"p\""), PolicyError::Version(2));
    for text in ["colour = 1", "[release]\nphase_pcrs = 13", "[pcrs]\nsha256 = 3", "accept = \"sha1\""] {
        assert!(matches!(refused(&with(text)), PolicyError::Syntax(_)), "{text}");
    }
    assert!(refused(&with("colour = 1")).to_string().contains("colour"));
    assert_eq!(refused(&with("[pcrs.sm3]")), PolicyError::UnknownBank { place: place("sm3") });
    assert_eq!(refused(&with("accept = [\"SHA1\"]")), PolicyError::UnknownException("SHA1".into()));
    let twice = "accept = [\"sha1\", \"sha1\"]";
    assert_eq!(refused(&with(twice)), PolicyError::DuplicateException("sha1".into()));
    assert_eq!(Policy::parse(&[0xff]).unwrap_err(), PolicyError::NotText);
    // One long line is not said again.
    assert!(refused(&format!("x{}", "y".repeat(100_000))).to_string().len() < 2_000);
    assert_eq!(Policy::parse(&vec![b' '; MAX_POLICY_LEN + 1]).unwrap_err(), PolicyError::TooLong);
}

#[test]
fn a_field_or_pcr_given_twice_is_refused() {
    let entry = format!("\"7\":[\"{A}\"]");
    let json = |pcrs: &str| format!("{{\"version\":1,\"name\":\"p\",\"pcrs\":{{\"sha256\":{{{pcrs}}}}}}}");
    assert!(Policy::parse(json(&entry).as_bytes()).is_ok());
    assert!(refused(&json(&format!("{entry},{entry}"))).to_string().contains("`7` is given twice"));
    assert!(matches!(pcrs(&format!("7 = [\"{A}\"]\n7 = [\"{A}\"]")), PolicyError::Syntax(_)));
    assert!(matches!(refused("{\"version\":1,\"version\":1,\"name\":\"p\"}"), PolicyError::Syntax(_)));
    assert!(matches!(refused("{\"version\":1,\"name\":\"p\"} x"), PolicyError::Syntax(_)));
}

#[test]
fn pcrs_that_prove_nothing_or_do_not_exist_are_refused() {
    let entry = |pcr: &str| pcrs(&format!("{pcr} = [\"{A}\"]"));
    assert_eq!(entry("16"), PolicyError::ResettablePcr { place: place("sha256.16") });
    assert_eq!(entry("23"), PolicyError::ResettablePcr { place: place("sha256.23") });
    for pcr in ["24", "07", "256", "seven", "\"+7\"", "\"\""] {
        let shown = pcr.trim_matches('"');
        assert_eq!(entry(pcr), PolicyError::NoSuchPcr { place: place(&format!("sha256.{shown}")) });
    }
    assert_eq!(pcrs("7 = []"), PolicyError::NoValues { place: place("sha256.7") });
}

#[test]
fn values_have_the_banks_length() {
    let bad = |number| PolicyError::BadValue { place: place("sha256.7"), number, digits: 64 };
    assert_eq!(pcrs(&format!("7 = [\"{}\"]", &A[2..])), bad(1));
    assert_eq!(pcrs(&format!("7 = [\"{A}\", \"0x{A}\"]")), bad(2));
    assert_eq!(pcrs("7 = [\"\"]"), bad(1));
    assert_eq!(bad(2).to_string(), "`pcrs.sha256.7`: value 2 is not 64 hex digits");
}

#[test]
fn the_sha1_bank_needs_its_exception() {
    let bank = format!("[pcrs.sha1]\n7 = [\"{}\"]", &A[..40]);
    assert_eq!(refused(&with(&bank)), PolicyError::Sha1NotAccepted { place: place("sha1") });
    policy(&with(&format!("accept = [\"sha1\"]\n{bank}")));
}

#[test]
fn there_is_at_most_one_release_rule_and_it_can_hold() {
    let named = format!("[pcrs.sha256]\n7 = [\"{A}\"]\n");
    let release = |rule: &str| Policy::parse(with(&format!("{named}[release]\n{rule}")).as_bytes());
    assert_eq!(release("uncapped = true").unwrap().release(), Some(ReleaseRule::Uncapped));
    assert_eq!(release("uncapped = false").unwrap().release(), None);
    assert_eq!(release("").unwrap().release(), None);
    assert_eq!(policy(&with(&named)).release(), None);
    assert_eq!(release("phase_pcr = 13\nuncapped = true").unwrap_err(), PolicyError::BothReleaseRules);
    for index in [0, 7, 10, 16, 23] {
        assert_eq!(release(&format!("phase_pcr = {index}")).unwrap_err(), PolicyError::PhasePcr(index));
    }
    let listed = with(&format!("[pcrs.sha256]\n13 = [\"{A}\"]\n[release]\nphase_pcr = 13"));
    assert_eq!(refused(&listed), PolicyError::PhasePcrListed { place: place("sha256.13") });
}

#[test]
fn rules_on_the_boot_log_keep_off_the_phase_pcr() {
    let rules = |phase: u8, boot: &str| {
        Policy::parse(with(&format!("[release]\nphase_pcr = {phase}\n[boot]\n{boot}")).as_bytes())
    };
    for (phase, boot) in [
        (13, "pcrs = [0, 13]".to_owned()),
        (12, "command_line = [\"quiet\"]".to_owned()),
        (14, format!("[[boot.event]]\nname = \"x\"\npcr = 14\ndigests = [\"{A}\"]")),
    ] {
        let error = rules(phase, &boot).unwrap_err();
        assert!(matches!(&error, PolicyError::Rule { place, .. } if place == "boot"), "{boot}: {error}");
        assert!(error.to_string().contains(&format!("PCR {phase}")), "{error}");
        rules(15, &boot).unwrap();
    }
}

#[test]
fn what_rules_on_the_boot_log_are_about_is_quoted() {
    let policy = policy(&with("[boot]\npcrs = [0, 4]\nsecure_boot = \"on\""));
    assert_eq!(policy.selection(false).mask(HashAlg::Sha256), 0x91);
    let with_value = format!("[pcrs.sha384]\n1 = [\"{A}{}\"]\n[boot]\npcrs = [0]", &A[..32]);
    assert_eq!(super::tests::policy(&with(&with_value)).selection(true).mask(HashAlg::Sha384), 0x403);
}

#[test]
fn a_policy_that_judges_nothing_or_too_much_is_refused() {
    assert_eq!(refused(&with("")), PolicyError::JudgesNothing);
    assert_eq!(refused(&with("[release]\nuncapped = true")), PolicyError::JudgesNothing);
    let mut text = with("accept = [\"sha1\"]\n");
    for (bank, digits) in [("sha1", 40), ("sha256", 64), ("sha384", 96)] {
        let _ = writeln!(text, "[pcrs.{bank}]");
        for pcr in (0..24).filter(|pcr| ![16, 23].contains(pcr)) {
            let _ = writeln!(text, "{pcr} = [\"{}\"]", "a".repeat(digits));
        }
    }
    assert_eq!(refused(&text), PolicyError::TooManyPcrs(66));
}

#[test]
fn names_are_short_and_printable() {
    let named =
        |name: &str| format!("{{\"version\":1,\"name\":{},\"release\":{{\"phase_pcr\":8}}}}", serde_json::json!(name));
    for name in ["", " x", "x ", "a\nb", "\u{1b}[31m", &"x".repeat(64)] {
        assert_eq!(refused(&named(name)), PolicyError::Name, "{name:?}");
    }
    assert_eq!(policy(&named("Rechenzentrum Süd 2")).name(), "Rechenzentrum Süd 2");
}

fn learned(values: &[(HashAlg, u8, u8)], phase_pcr: Option<u8>) -> String {
    let pcrs: Vec<_> =
        values.iter().map(|(bank, index, byte)| (bank.id(), *index, vec![*byte; bank.digest_len()])).collect();
    Policy::learn(&pcrs, "from \"edge-1\"", phase_pcr)
}

#[test]
fn a_learned_policy_parses_and_leaves_out_what_cannot_be_listed() {
    let all: Vec<_> = (0..24).map(|index| (HashAlg::Sha256, index, index + 1)).collect();
    let text = learned(&all, Some(13));
    let learned_policy = policy(&text);
    let indices: Vec<_> = learned_policy.pcrs().map(|(_, index, _)| index).collect();
    let expected: Vec<_> = (0..24).filter(|index| ![10, 13, 16, 23].contains(index)).collect();
    assert_eq!(indices, expected);
    assert_eq!(learned_policy.name(), "from \"edge-1\"");
    assert_eq!(learned_policy.release(), Some(ReleaseRule::PhasePcr(13)));
    assert_eq!(learned_policy.accepted().count(), 0);
    assert!(text.contains("# Secure Boot state"), "{text}");
    assert_eq!(policy(&learned(&all, None)).release(), None);
}

#[test]
fn learning_writes_the_exceptions_that_the_values_need_and_no_others() {
    let accepted = |values: &[_]| policy(&learned(values, Some(13))).accepted().collect::<Vec<_>>();
    assert_eq!(accepted(&[(HashAlg::Sha256, 7, 0), (HashAlg::Sha256, 8, 1)]), [Exception::NoFirmwareMeasurements]);
    assert_eq!(accepted(&[(HashAlg::Sha256, 7, 1)]), []);
    assert_eq!(accepted(&[]), [Exception::NoFirmwareMeasurements]);
    assert_eq!(accepted(&[(HashAlg::Sha1, 7, 1)]), [Exception::Sha1]);
    // A value of another length than its bank's is no value.
    assert!(policy(&Policy::learn(&[(0xb, 7, vec![1; 20])], "x", Some(13))).pcrs().next().is_none());
}

#[test]
fn a_node_without_a_policy_is_asked_for_what_boots_extend() {
    assert_eq!(unjudged_selection(false), PcrSelectionList::single(HashAlg::Sha256, 0xfbff).unwrap());
    assert_eq!(unjudged_selection(true), PcrSelectionList::single(HashAlg::Sha256, 0xffff).unwrap());
}

proptest! {
    #[test]
    fn any_text_is_a_policy_or_an_error(text in "\\PC{0,200}", json: bool) {
        let text = if json { format!("{{{text}") } else { text };
        let _ = Policy::parse(text.as_bytes());
    }

    #[test]
    fn learned_names_never_break_the_text(name in "\\PC{1,40}") {
        let text = Policy::learn(&[], &name, Some(8));
        prop_assert!(!matches!(Policy::parse(text.as_bytes()), Err(PolicyError::Syntax(_))));
    }
}
