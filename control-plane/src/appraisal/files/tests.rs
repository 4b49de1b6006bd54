use protocol::tpm::{
    pcr::PcrSelection,
    public::KeyPublic,
    template::{AkKind, ak_qualified_name},
};

use super::*;
use crate::appraisal::{
    quote::tests::{AK, QUALIFYING_DATA, SoftAk, selection, values},
    test_vectors,
};

/// What a good machine shows, as files; a test breaks one of them.
struct World {
    attest: TpmsAttest,
    area: TpmtPublic,
    pcrs: PcrValues,
    quote: Option<Vec<u8>>,
    signature: Option<Vec<u8>>,
    ak: Option<Vec<u8>>,
    pcr_file: Option<Vec<u8>>,
    qualifying_data: Vec<u8>,
    policy: Option<Vec<u8>>,
    policy_keys: Option<Vec<u8>>,
    previous: Option<Vec<u8>>,
    boot_log: Option<Vec<u8>>,
    ima: Option<Vec<u8>>,
    node_rules: bool,
}

fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn json_of(values: &PcrValues) -> Vec<u8> {
    let mut banks = serde_json::Map::new();
    for (bank, index, digest) in values.iter() {
        let bank = banks.entry(bank.name()).or_insert_with(|| serde_json::json!({}));
        bank[index.to_string()] = digest.to_string().into();
    }
    serde_json::to_vec(&banks).unwrap()
}

impl World {
    fn good() -> Self {
        let selection = selection(0x81);
        let pcrs = values(&selection);
        Self {
            attest: AK.attest(&QUALIFYING_DATA, &selection, &pcrs),
            area: AK.public.clone(),
            pcrs,
            quote: None,
            signature: None,
            ak: None,
            pcr_file: None,
            qualifying_data: QUALIFYING_DATA.to_vec(),
            policy: None,
            policy_keys: None,
            previous: None,
            boot_log: None,
            ima: None,
            node_rules: true,
        }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut world = Self::good();
        change(&mut world);
        world
    }

    fn judge(&self) -> Result<FilesVerdict, InputError> {
        let quote = self.quote.clone().unwrap_or_else(|| self.attest.encode());
        let signature = self.signature.clone().unwrap_or_else(|| AK.sign(&quote));
        let ak = self.ak.clone().unwrap_or_else(|| tpm2b(&self.area.encode()));
        let pcrs = self.pcr_file.clone().unwrap_or_else(|| json_of(&self.pcrs));
        appraise_files(&Files {
            quote: Some(&quote),
            signature: Some(&signature),
            ak: Some(&ak),
            pcrs: Some(&pcrs),
            qualifying_data: Some(&self.qualifying_data),
            policy: self.policy.as_deref(),
            policy_keys: self.policy_keys.as_deref(),
            previous: self.previous.as_deref(),
            boot_log: self.boot_log.as_deref(),
            ima: self.ima.as_deref(),
            node_rules: self.node_rules,
            ..Files::default()
        })
    }

    /// Check and reason of each failure.
    fn failures(&self) -> Vec<(Check, &'static str)> {
        let verdict = self.judge().unwrap();
        assert_eq!(verdict.is_pass(), verdict.reason().is_none());
        let failed = verdict.checks().iter().filter(|row| row.result == Outcome::Fail);
        failed.map(|row| (row.check, row.reason)).collect()
    }
}

fn one(change: impl FnOnce(&mut World)) -> (Check, &'static str) {
    let failures = World::with(change).failures();
    assert_eq!(failures.len(), 1, "{failures:?}");
    failures[0]
}

fn error(change: impl FnOnce(&mut World)) -> (&'static str, &'static str, usize) {
    let InputError { input, reason, offset, .. } = World::with(change).judge().unwrap_err();
    (input, reason, offset)
}

#[test]
fn a_good_quote_passes_and_says_what_was_not_checked() {
    let verdict = World::good().judge().unwrap();
    assert!(verdict.is_pass(), "{verdict:#?}");
    for check in Check::ALL {
        assert!(verdict.checks().iter().any(|row| row.check == check), "{check:?}");
    }
    let result = |check| verdict.checks().iter().find(|row| row.check == check).map(|row| (row.result, row.reason));
    let passed = Some((Outcome::Pass, "ok"));
    for check in [Check::Ak, Check::Signature, Check::Quote, Check::QualifyingData, Check::PcrDigest] {
        assert_eq!(result(check), passed, "{check:?}");
    }
    assert_eq!(result(Check::BootLog), Some((Outcome::NotChecked, "no_boot_log")));
    assert_eq!(result(Check::Continuity), Some((Outcome::NotChecked, "no_previous")));
}

#[test]
fn nothing_given_is_a_pass_in_which_nothing_was_checked() {
    let verdict = appraise_files(&Files::default()).unwrap();
    assert!(verdict.is_pass() && verdict.checks().iter().all(|row| row.result == Outcome::NotChecked));
    let json = serde_json::to_value(&verdict).unwrap();
    assert_eq!((&json["verdict"], &json["replayed"]), (&"pass".into(), &serde_json::json!({})));
    for row in json["checks"].as_array().unwrap() {
        let keys: Vec<_> = row.as_object().unwrap().keys().cloned().collect();
        let mut wanted = ["check", "result", "reason", "where", "expected", "found"];
        wanted.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, wanted);
        assert_eq!(row["result"], "not checked");
    }
}

#[test]
fn a_quote_with_one_wrong_field_fails_with_its_own_reason() {
    let quote = |change: fn(&mut TpmsAttest)| one(|world| change(&mut world.attest));
    let name = AK.public.name();
    let owner = protocol::tpm::public::qualified_name(0x4000_0001, &name).unwrap();
    assert_eq!(one(|world| world.attest.qualified_signer = owner), (Check::Quote, "wrong_signer"));
    assert_eq!(quote(|attest| attest.extra_data[31] ^= 1), (Check::QualifyingData, "wrong_binding"));
    assert_eq!(quote(|attest| attest.extra_data.truncate(31)), (Check::QualifyingData, "wrong_binding"));
    assert_eq!(quote(|attest| attest.extra_data.push(0).unwrap()), (Check::QualifyingData, "wrong_binding"));
    assert_eq!(quote(|attest| attest.extra_data.clear()), (Check::QualifyingData, "wrong_binding"));
    assert_eq!(quote(|attest| attest.pcr_select = selection(0x80)), (Check::PcrSelection, "wrong_selection"));
    assert_eq!(quote(|attest| attest.pcr_select = selection(0x83)), (Check::PcrSelection, "wrong_selection"));
    assert_eq!(
        quote(|attest| attest.pcr_select = PcrSelectionList::single(HashAlg::Sha384, 0x81).unwrap()),
        (Check::PcrSelection, "wrong_selection")
    );
    assert_eq!(
        quote(|attest| attest.pcr_digest = HashAlg::Sha256.digest(&[b"other"])),
        (Check::PcrDigest, "wrong_pcr_digest")
    );
    let bytes = |at: usize, to: u8| {
        one(|world| {
            let mut bytes = world.attest.encode();
            bytes[at] = to;
            world.quote = Some(bytes);
        })
    };
    assert_eq!(bytes(0, 0), (Check::Quote, "wrong_magic"));
    assert_eq!(bytes(5, 0x17), (Check::Quote, "not_a_quote"));
}

#[test]
fn values_that_were_not_quoted_are_refused() {
    let other = HashAlg::Sha256.digest(&[b"other"]);
    assert_eq!(
        one(|world| {
            world.pcrs.set(HashAlg::Sha256, 7, other).unwrap();
        }),
        (Check::PcrDigest, "wrong_pcr_digest")
    );
    assert_eq!(
        one(|world| {
            world.pcrs.set(HashAlg::Sha256, 8, other).unwrap();
        }),
        (Check::PcrSelection, "wrong_selection")
    );
    assert_eq!(one(|world| world.pcrs = values(&selection(1))), (Check::PcrSelection, "wrong_selection"));
}

#[test]
fn banks_count_in_the_order_of_the_quote() {
    let world = |banks: [HashAlg; 2], digest_of: [HashAlg; 2]| {
        World::with(|world| {
            let list = |banks: [HashAlg; 2]| {
                let mut list = PcrSelectionList::new();
                for bank in banks {
                    list.push(PcrSelection::new(bank, 0x81).unwrap()).unwrap();
                }
                list
            };
            world.pcrs = values(&list(banks));
            world.attest.pcr_select = list(banks);
            world.attest.pcr_digest = digest_over(&list(digest_of), &world.pcrs, HashAlg::Sha256).unwrap();
        })
    };
    let (one, two) = ([HashAlg::Sha256, HashAlg::Sha384], [HashAlg::Sha384, HashAlg::Sha256]);
    assert_eq!(world(one, one).failures(), []);
    assert_eq!(world(two, two).failures(), []);
    assert_eq!(world(one, two).failures(), [(Check::PcrDigest, "wrong_pcr_digest")]);
    let sha1 = [HashAlg::Sha256, HashAlg::Sha1];
    assert_eq!(world(sha1, sha1).failures(), [(Check::PcrSelection, "sha1_bank")]);
}

#[test]
fn a_bank_that_is_quoted_twice_is_refused() {
    let failures = World::with(|world| {
        let mut bytes = world.attest.encode();
        // The count of banks stands before algorithm, length and three bytes of select; the digest follows them.
        let at = bytes.len() - 34 - 6 - 4;
        bytes[at + 3] = 2;
        let bank = bytes[at + 4..at + 10].to_vec();
        bytes.splice(at + 10..at + 10, bank);
        world.quote = Some(bytes);
    });
    assert_eq!(failures.failures(), [(Check::PcrSelection, "selection_bank_twice")]);
}

#[test]
fn each_attribute_of_the_ak_has_its_own_reason() {
    let without = |bit: u32| {
        one(|world| {
            world.area.attributes.0 &= !bit;
            world.attest.qualified_signer = ak_qualified_name(&world.area.name()).unwrap();
        })
    };
    for (bit, code) in [
        (ObjectAttributes::FIXED_TPM, "ak_not_fixed_tpm"),
        (ObjectAttributes::FIXED_PARENT, "ak_not_fixed_parent"),
        (ObjectAttributes::SENSITIVE_DATA_ORIGIN, "ak_not_sensitive_data_origin"),
        (ObjectAttributes::USER_WITH_AUTH, "ak_not_user_with_auth"),
        (ObjectAttributes::NO_DA, "ak_not_no_da"),
        (ObjectAttributes::RESTRICTED, "ak_not_restricted"),
        (ObjectAttributes::SIGN, "ak_not_sign"),
    ] {
        assert_eq!(without(bit), (Check::Ak, code));
    }
    let with = |change: fn(&mut TpmtPublic)| {
        one(|world| {
            change(&mut world.area);
            world.attest.qualified_signer = ak_qualified_name(&world.area.name()).unwrap();
        })
    };
    assert_eq!(with(|area| area.attributes.0 |= ObjectAttributes::DECRYPT), (Check::Ak, "ak_decrypt"));
    assert_eq!(with(|area| area.attributes.0 |= 1 << 7), (Check::Ak, "ak_other_attributes"));
    assert_eq!(with(|area| area.auth_policy = HashAlg::Sha256.digest(&[])), (Check::Ak, "ak_auth_policy"));
    assert_eq!(with(|area| area.name_alg = HashAlg::Sha384), (Check::Ak, "ak_wrong_name_alg"));
    let scheme = with(|area| {
        let KeyPublic::Ecc { scheme, .. } = &mut area.key else { panic!("not ECC") };
        *scheme = protocol::tpm::public::Scheme::Null;
    });
    assert_eq!(scheme, (Check::Ak, "ak_wrong_scheme"));
    // Without the rules for our own nodes all of that is nobody's business.
    let foreign = World::with(|world| {
        world.area.attributes.0 = 0x0006_0072;
        world.node_rules = false;
    });
    assert_eq!(foreign.failures(), []);
}

#[test]
fn a_signature_that_is_not_good_fails_with_its_own_reason() {
    let (check, failed) = (Check::Signature, |change: fn(&mut World)| one(change));
    assert_eq!(
        failed(|world| world.signature = Some(SoftAk::new(AkKind::P256).sign(&world.attest.encode()))),
        (check, "bad_signature")
    );
    let fixed = |at: usize, to: u8| {
        one(|world| {
            let mut signature = AK.sign(&world.attest.encode());
            signature[at] = to;
            world.signature = Some(signature);
        })
    };
    assert_eq!(fixed(3, 0xc), (check, "signature_scheme_mismatch"));
    assert_eq!(fixed(3, 4), (check, "signature_scheme_mismatch"));
    assert_eq!(
        failed(|world| world.signature = Some([&[0, 0x18, 0, 0xb][..], &tpm2b(&[0]), &tpm2b(&[5])].concat())),
        (check, "signature_out_of_range")
    );
    assert_eq!(
        failed(|world| world.signature = Some([&[0, 0x16, 0, 0xb][..], &tpm2b(&[5; 256])].concat())),
        (check, "signature_key_type")
    );
}

#[test]
fn files_that_cannot_be_read_are_named_with_an_offset() {
    let quote = |cut: fn(Vec<u8>) -> Vec<u8>| error(|world| world.quote = Some(cut(world.attest.encode())));
    let len = World::good().attest.encode().len();
    assert_eq!(quote(|bytes| [&bytes[..], &[0]].concat()), ("quote", "quote_trailing_bytes", len));
    assert_eq!(quote(|bytes| bytes[..7].to_vec()), ("quote", "quote_truncated", 6));
    for cut in 0..len {
        let (input, reason, offset) = error(|world| {
            let bytes = world.attest.encode();
            world.quote = Some(bytes[..cut].to_vec());
        });
        assert_eq!((input, reason), ("quote", "quote_truncated"), "{cut}");
        assert!(offset <= cut);
    }
    assert_eq!(
        error(|world| world.signature = Some(vec![0, 0x18, 0, 0xb, 0])),
        ("signature", "signature_truncated", 4)
    );
    assert_eq!(error(|world| world.ak = Some(b"-----BEGIN X-----".to_vec())), ("ak", "ak_bad_pem", 0));
    assert_eq!(error(|world| world.pcr_file = Some(b"{".to_vec())), ("pcrs", "pcrs_bad_json", 0));
    assert_eq!(error(|world| world.policy = Some(b"version = 2".to_vec())), ("policy", "policy_invalid", 0));
    assert_eq!(error(|world| world.previous = Some(b"{\"clock\": -1}".to_vec())).1, "previous_unreadable");
    assert_eq!(error(|world| world.boot_log = Some(vec![0; 3])).0, "boot-log");
    assert_eq!(error(|world| world.ima = Some(vec![10, 0, 0, 0, 1])), ("ima", "ima_unreadable", 0));
    assert_eq!(error(|world| world.policy_keys = Some(b"none".to_vec())).1, "policy_key_unreadable");
    let json = World::with(|world| world.ak = Some(vec![0])).judge().unwrap_err().to_json();
    assert_eq!(json, serde_json::json!({"verdict": "error", "reason": "ak_truncated", "input": "ak", "offset": 0}));
}

#[test]
fn what_is_remembered_of_a_tpm_is_compared() {
    let previous = |reset: u32, restart: u32, clock: u64, firmware: u64| {
        let json = serde_json::json!({
            "reset_count": reset, "restart_count": restart, "clock": clock, "firmware_version": firmware,
        });
        World::with(|world| world.previous = Some(serde_json::to_vec(&json).unwrap())).failures()
    };
    let firmware = World::good().attest.firmware_version;
    assert_eq!(previous(5, 2, 1000, firmware), []);
    assert_eq!(previous(4, 9, 9000, 7), []);
    assert_eq!(previous(6, 0, 0, firmware), [(Check::Continuity, "rolled_back")]);
    assert_eq!(previous(5, 3, 0, firmware), [(Check::Continuity, "rolled_back")]);
    assert_eq!(previous(5, 2, 1001, firmware), [(Check::Continuity, "clock_rolled_back")]);
    assert_eq!(previous(5, 2, 0, 7), [(Check::Continuity, "firmware_changed")]);
}

fn policy(value: &Digest) -> Vec<u8> {
    format!("version = 1\nname = \"p\"\n[pcrs.sha256]\n7 = [\"{value}\"]\n").into_bytes()
}

#[test]
fn values_are_judged_by_the_policy() {
    let good = World::good().pcrs.get(HashAlg::Sha256, 7).copied().unwrap();
    assert_eq!(World::with(|world| world.policy = Some(policy(&good))).failures(), []);
    let zero = Digest::zero(HashAlg::Sha256);
    assert_eq!(one(|world| world.policy = Some(policy(&zero))), (Check::PcrPolicy, "pcr_mismatch"));
    let text = String::from_utf8(policy(&good)).unwrap().replace("\n7 =", "\n8 =");
    assert_eq!(one(|world| world.policy = Some(text.into_bytes())), (Check::PcrPolicy, "pcr_not_quoted"));
    let zeros = one(|world| {
        world.attest.pcr_select.pcrs().for_each(|(bank, index)| {
            world.pcrs.set(bank, index, Digest::zero(bank)).unwrap();
        });
        world.attest.pcr_digest = digest_over(&world.attest.pcr_select, &world.pcrs, HashAlg::Sha256).unwrap();
    });
    assert_eq!(zeros, (Check::PcrPolicy, "no_firmware_measurements"));
}

#[test]
fn a_policy_that_nobody_trusted_signed_is_a_finding() {
    let zero = Digest::zero(HashAlg::Sha256);
    let pem = test_key_pem();
    let failures = World::with(|world| {
        world.policy = Some(policy(&zero));
        world.policy_keys = Some(pem);
    });
    assert_eq!(failures.failures(), [(Check::Policy, "policy_unsigned")]);
}

#[test]
fn a_signed_policy_is_judged_by_and_one_of_another_key_is_not() {
    use base64::Engine as _;

    let signed = |value: &Digest, signer: u8, trusted: u8| {
        let key = |byte: u8| p256::ecdsa::SigningKey::from_slice(&[byte; 32]).unwrap();
        let point = key(trusted).verifying_key().to_encoded_point(false);
        let spki = P256Key::from_sec1(point.as_bytes()).unwrap().to_spki();
        let text = base64::engine::general_purpose::STANDARD.encode(spki);
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
        let kind = crate::appraisal::policy::PAYLOAD_TYPE;
        let envelope = crate::appraisal::policy::dsse::sign(&policy(value), kind, &key(signer));
        World::with(|world| {
            world.policy = Some(envelope);
            world.policy_keys = Some(pem.into_bytes());
        })
    };
    let good = World::good().pcrs.get(HashAlg::Sha256, 7).copied().unwrap();
    assert_eq!(signed(&good, 1, 1).failures(), []);
    let zero = Digest::zero(HashAlg::Sha256);
    assert_eq!(signed(&zero, 1, 1).failures(), [(Check::PcrPolicy, "pcr_mismatch")]);
    assert_eq!(signed(&zero, 1, 2).failures(), [(Check::Policy, "policy_signature_bad")]);
}

fn test_key_pem() -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures/p256.pem");
    std::fs::read(path).unwrap()
}

/// A SHA-1 log of one event in PCR 4.
fn boot_log() -> Vec<u8> {
    let mut log = [4u32, 0xd].map(u32::to_le_bytes).concat();
    log.extend_from_slice(&[7; 20]);
    log.extend_from_slice(&[1, 0, 0, 0, 0xaa]);
    log
}

/// An ima-ng entry of PCR 10.
fn entry(path: &str) -> Vec<u8> {
    let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
    let digest = [&b"sha256:\0"[..], &[7; 32]].concat();
    let data = [field(&digest), field(format!("{path}\0").as_bytes())].concat();
    let hash = HashAlg::Sha1.digest(&[&data]);
    [&10u32.to_le_bytes()[..], &hash, &field(b"ima-ng"), &field(&data)].concat()
}

fn logs_only(boot_log: Option<&[u8]>, ima: Option<&[u8]>, pcrs: Option<&[u8]>) -> FilesVerdict {
    appraise_files(&Files { boot_log, ima, pcrs, ..Files::default() }).unwrap()
}

#[test]
fn logs_are_replayed_bank_by_bank_and_only_the_pcrs_that_they_extend() {
    let (log, list) = (boot_log(), [entry("/a"), entry("/b")].concat());
    let verdict = logs_only(Some(&log), Some(&list), None);
    let replayed = verdict.replayed();
    assert_eq!(replayed.keys().copied().collect::<Vec<_>>(), ["sha1", "sha256"]);
    assert_eq!(replayed["sha1"].keys().copied().collect::<Vec<_>>(), [4, 10]);
    assert_eq!(replayed["sha256"].keys().copied().collect::<Vec<_>>(), [10]);
    let pcr4 = HashAlg::Sha1.digest(&[&[0; 20], &[7; 20]]).to_string();
    assert_eq!(replayed["sha1"][&4], pcr4);
    let json = serde_json::to_value(&verdict).unwrap();
    assert_eq!(json["replayed"]["sha1"]["4"], pcr4);
    let of = |bank: HashAlg| {
        [entry("/a"), entry("/b")]
            .iter()
            .fold(Digest::zero(bank), |pcr, entry| bank.digest(&[&pcr, &bank.digest(&[&entry[4 + 20 + 4 + 6 + 4..]])]))
    };
    for bank in [HashAlg::Sha1, HashAlg::Sha256] {
        assert_eq!(replayed[bank.name()][&10], of(bank).to_string());
    }
    // Given values that nothing signs.
    let text = format!("{{\"sha1\": {{\"4\": \"{pcr4}\", \"10\": \"{}\"}}}}", of(HashAlg::Sha1));
    let verdict = logs_only(Some(&log), Some(&list), Some(text.as_bytes()));
    let of = |check| verdict.checks().iter().find(|row| row.check == check).unwrap();
    assert_eq!((of(Check::BootLog).result, of(Check::Ima).result), (Outcome::Pass, Outcome::Pass));
    assert!(of(Check::BootLog).found.contains("no good quote"), "{verdict:?}");
    // The list goes on behind the value.
    let ahead = [&list[..], &entry("/c")].concat();
    let verdict = logs_only(Some(&log), Some(&ahead), Some(text.as_bytes()));
    let row = verdict.checks().iter().find(|row| row.check == Check::Ima).unwrap();
    assert!(row.result == Outcome::Pass && row.found.contains("1 entries behind"), "{row:?}");
    // Rewritten, reordered, and behind.
    for list in [[entry("/a"), entry("/x")].concat(), [entry("/b"), entry("/a")].concat(), entry("/a")] {
        let verdict = logs_only(Some(&log), Some(&list), Some(text.as_bytes()));
        assert_eq!(verdict.reason(), Some("ima_mismatch"));
    }
    let mut log = log;
    log[10] ^= 1;
    let verdict = logs_only(Some(&log), Some(&list), Some(text.as_bytes()));
    assert_eq!(verdict.reason(), Some("boot_log_mismatch"));
    let row = verdict.checks().iter().find(|row| row.check == Check::BootLog).unwrap();
    assert_eq!(row.place.as_ref().map(|place| place.what.as_str()), Some("sha1:4"));
}

#[test]
fn rules_on_events_are_told_which_pcrs_no_value_proves() {
    let log = boot_log();
    let pcr4 = HashAlg::Sha1.digest(&[&[0; 20], &[7; 20]]).to_string();
    let values = format!("{{\"sha1\": {{\"4\": \"{pcr4}\", \"14\": \"{}\"}}}}", "00".repeat(20));
    let policy = b"version = 1\nname = \"x\"\naccept = [\"sha1\"]\n[boot]\npcrs = [14, 15]\n";
    let files = |userspace_log, policy| Files {
        boot_log: Some(&log),
        pcrs: Some(values.as_bytes()),
        userspace_log,
        policy,
        ..Files::default()
    };
    let verdict = appraise_files(&files(None, Some(&policy[..]))).unwrap();
    assert!(verdict.is_pass(), "{verdict:?}");
    let unproven = verdict.checks().iter().find(|row| row.reason == "pcr_not_given").unwrap();
    assert_eq!((unproven.check, unproven.result), (Check::BootPolicy, Outcome::NotChecked));
    assert!(unproven.found.contains("sha1:15") && !unproven.found.contains("sha1:14"), "{unproven:?}");
    // A measurement without digest accounts for no value.
    let nothing = b"\x1e{\"pcr\":14,\"digests\":[]}\n";
    let verdict = appraise_files(&files(Some(&nothing[..]), None)).unwrap();
    assert_eq!(verdict.reason(), Some("boot_log_mismatch"));
}

#[test]
fn an_entry_whose_hash_is_not_that_of_its_data_is_found_without_a_quote() {
    let mut list = [entry("/a"), entry("/b")].concat();
    let last = list.len() - 2;
    list[last] = b'x';
    let verdict = logs_only(None, Some(&list), None);
    assert_eq!(verdict.reason(), Some("ima_mismatch"));
    let row = verdict.checks().iter().find(|row| row.check == Check::Ima).unwrap();
    assert_eq!(row.place.as_ref().and_then(|place| place.place.entry), Some(1));
}

#[test]
fn an_ima_list_that_is_cut_is_refused_at_the_entry() {
    let (first, second) = (entry("/a"), entry("/b"));
    let list = [&first[..], &second].concat();
    for len in 1..second.len() {
        let cut = &list[..first.len() + len];
        let error = appraise_files(&Files { ima: Some(cut), ..Files::default() }).unwrap_err();
        assert_eq!((error.reason, error.offset), ("ima_unreadable", first.len()), "{len}");
    }
    let mut far = first.clone();
    far[0] = 24;
    let error = appraise_files(&Files { ima: Some(&far), ..Files::default() }).unwrap_err();
    assert_eq!((error.reason, error.offset), ("ima_no_such_pcr", 0));
}

#[test]
fn a_boot_log_that_is_cut_is_refused_at_the_event() {
    let refused = |log: &[u8]| {
        let error = appraise_files(&Files { boot_log: Some(log), ..Files::default() }).unwrap_err();
        (error.reason, error.offset)
    };
    let (one, log) = (boot_log().len(), [boot_log(), boot_log(), boot_log()].concat());
    for len in 2 * one + 1..log.len() {
        assert_eq!(refused(&log[..len]), ("boot_log_truncated", 2 * one), "{len}");
    }
    let mut far = log.clone();
    far[one] = 24;
    assert_eq!(refused(&far), ("boot_log_no_such_pcr", one));
    let Some(folder) = test_vectors::folder("boot-logs") else { return };
    for name in ["crypto-agile.bin", "rhel95-vm-secureboot.bin", "event-postcode.bin"] {
        let log = test_vectors::read(&folder, name);
        let (reason, offset) = refused(&log[..log.len() - 1]);
        assert_eq!(reason, "boot_log_truncated", "{name}");
        // What stands before the offset is a whole log.
        let whole = appraise_files(&Files { boot_log: Some(&log[..offset]), ..Files::default() });
        assert!(offset > 0 && whole.is_ok(), "{name} {offset}");
    }
}

#[test]
fn a_quote_over_what_the_logs_replay_to_proves_them() {
    let log = boot_log();
    let mut pcrs = PcrValues::new();
    let bank = HashAlg::Sha1;
    pcrs.set(bank, 4, bank.digest(&[&[0; 20], &[7; 20]])).unwrap();
    pcrs.set(bank, 7, Digest::zero(bank)).unwrap();
    let selection = PcrSelectionList::single(bank, 0x90).unwrap();
    let quote = AK.attest(&QUALIFYING_DATA, &selection, &pcrs).encode();
    let (signature, ak) = (AK.sign(&quote), AK.public.encode());
    let judge = |log: &[u8]| {
        appraise_files(&Files {
            quote: Some(&quote),
            signature: Some(&signature),
            ak: Some(&ak),
            boot_log: Some(log),
            ..Files::default()
        })
        .unwrap()
    };
    let verdict = judge(&log);
    let row = verdict.checks().iter().find(|row| row.check == Check::BootLog).unwrap();
    assert!(verdict.is_pass() && row.result == Outcome::Pass && row.found.contains("quoted"), "{verdict:#?}");
    let mut other = log;
    other[10] ^= 1;
    assert_eq!(judge(&other).reason(), Some("wrong_pcr_digest"));
}

#[test]
fn the_captured_machine_agrees_with_itself() {
    let Some(folder) = test_vectors::folder("vm-ovmf") else { return };
    let log = test_vectors::read(&folder, "binary_bios_measurements");
    let list = test_vectors::read(&folder, "ima_binary_runtime_measurements");
    let text = String::from_utf8(test_vectors::read(&folder, "pcrs.txt")).unwrap();
    let mut pcrs = PcrValues::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(bank), Some(index), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
        let (Some(bank), Ok(index)) = (HashAlg::from_name(bank), index.parse::<u8>()) else { continue };
        pcrs.set(bank, index, bank.read_digest(&hex::decode(value).unwrap()).unwrap()).unwrap();
    }
    assert!(pcrs.len() > 20);
    let ascii = test_vectors::read(&folder, "ima_ascii_runtime_measurements");
    assert_eq!(logs_only(None, Some(&ascii), None).replayed(), logs_only(None, Some(&list), None).replayed());
    let verdict = logs_only(Some(&log), Some(&list), Some(&json_of(&pcrs)));
    assert!(verdict.is_pass(), "{verdict:#?}");
    for check in [Check::BootLog, Check::Ima] {
        assert!(verdict.checks().iter().any(|row| row.check == check && row.result == Outcome::Pass), "{verdict:#?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_files_are_judged_or_refused(
        one in proptest::collection::vec(0u8.., 0..200), two in proptest::collection::vec(0u8.., 0..200), which in 0u8..8,
    ) {
        let given = |bit: u8, bytes: &'_ [u8]| (which & bit != 0).then(|| bytes.to_vec());
        let (quote, ima, pcrs) = (given(1, &one), given(2, &two), given(4, &one));
        let _ = appraise_files(&Files {
            quote: quote.as_deref(),
            ima: ima.as_deref(),
            pcrs: pcrs.as_deref(),
            node_rules: true,
            ..Files::default()
        });
    }
}
