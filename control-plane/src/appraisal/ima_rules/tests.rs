use super::*;
use crate::appraisal::{
    ima_log::{ImaReplay, ImaStart},
    ima_signature::tests::Signer,
    test_vectors,
};

const SHA256: HashAlg = HashAlg::Sha256;

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

fn policy(section: &str) -> Policy {
    Policy::parse(format!("version = 1\nname = \"t\"\n[ima]\n{section}").as_bytes()).unwrap()
}

/// What is measured: its template, path, digest field and what follows.
struct Made {
    pcr: u32,
    hash: [u8; 20],
    template: &'static str,
    data: Vec<u8>,
}

impl Made {
    fn of_fields(template: &'static str, fields: &[&[u8]]) -> Self {
        let data: Vec<u8> = fields.iter().flat_map(|field| sized(field)).collect();
        Self { pcr: 10, hash: [1; 20], template, data }
    }

    /// A file whose content is its own path.
    fn file(path: &str) -> Self {
        Self::of_fields("ima-ng", &[&field(&digest(path)), &name(path)])
    }

    fn signed(path: &str, attribute: &[u8]) -> Self {
        Self::of_fields("ima-sig", &[&field(&digest(path)), &name(path), attribute])
    }

    fn buffer(path: &str, buffer: &[u8]) -> Self {
        Self::of_fields("ima-buf", &[&field(&SHA256.digest(&[buffer])), &name(path), buffer])
    }
}

fn digest(text: &str) -> Digest {
    SHA256.digest(&[text.as_bytes()])
}

fn field(digest: &[u8]) -> Vec<u8> {
    [b"sha256:\0", digest].concat()
}

fn name(path: &str) -> Vec<u8> {
    [path.as_bytes(), &[0]].concat()
}

fn judge_from(policy: &Policy, first: u64, keys: &[Vec<u8>], list: &[Made]) -> ImaJudgement {
    let mut judge = ImaJudge::new(policy, first, keys).unwrap();
    for (number, made) in (first..).zip(list) {
        judge.entry(&ImaEntry {
            number,
            pcr: made.pcr,
            template_hash: &made.hash,
            template: made.template.as_bytes(),
            data: &made.data,
        });
    }
    judge.finish()
}

fn judge(policy: &Policy, list: &[Made]) -> ImaJudgement {
    judge_from(policy, 1, &[], list)
}

fn codes(judgement: &ImaJudgement) -> Vec<&'static str> {
    judgement.report.findings().iter().map(|finding| finding.code).collect()
}

/// The code of the one thing that is wrong with the one entry; empty if it is good.
fn code(policy: &Policy, made: Made) -> &'static str {
    let judgement = judge(policy, &[made]);
    let found = codes(&judgement);
    assert!(found.len() < 2, "{found:?}");
    for finding in judgement.report.findings() {
        assert!(finding.expected.chars().count() <= 200 && finding.found.chars().count() <= 200);
        assert_eq!((finding.check, finding.place.entry, finding.place.pcr), (Check::ImaPolicy, Some(1), Some(10)));
    }
    found.first().copied().unwrap_or_default()
}

fn with_bash() -> Policy {
    policy(&format!("[ima.files]\n\"/bin/bash\" = [\"{}\"]", digest("/bin/bash")))
}

#[test]
fn a_listed_file_is_good_and_another_is_named() {
    let policy = with_bash();
    let judgement = judge(&policy, &[Made::file("/bin/bash")]);
    assert!(judgement.report.is_clean());
    assert_eq!((judgement.entries, judgement.policy), (2, policy.id()));
    assert_eq!(code(&policy, Made::file("/bin/dash")), "ima_file_unknown");
    let wrong = Made::of_fields("ima-ng", &[&field(&digest("evil")), &name("/bin/bash")]);
    let judgement = judge(&policy, &[wrong]);
    let [finding] = judgement.report.findings() else { panic!() };
    assert_eq!(finding.code, "ima_digest_mismatch");
    assert_eq!(finding.place.path.as_deref(), Some("/bin/bash"));
    assert_eq!(finding.expected, format!("sha256:{}", digest("/bin/bash")));
    assert_eq!(finding.found, format!("sha256:{}", digest("evil")));
}

#[test]
fn a_digest_counts_under_its_own_algorithm_and_template_only() {
    let policy = with_bash();
    let good = digest("/bin/bash");
    for (made, expected) in [
        (Made::of_fields("ima-ngv2", &[&[b"ima:sha256:\0", &good[..]].concat(), &name("/bin/bash")]), ""),
        (Made::of_fields("d-ng|n-ng", &[&field(&good), &name("/bin/bash")]), ""),
        (Made::of_fields("d-ng|n-ng|imode", &[&field(&good), &name("/bin/bash"), &[0, 0]]), ""),
        (
            Made::of_fields("ima-ng", &[&[b"ima:sha256:\0", &good[..]].concat(), &name("/bin/bash")]),
            "ima_digest_algorithm",
        ),
        (
            Made::of_fields("ima-ng", &[&[b"sm3-256:\0", &good[..]].concat(), &name("/bin/bash")]),
            "ima_digest_algorithm",
        ),
        (Made::of_fields("ima-ngv2", &[&field(&good), &name("/bin/bash")]), "ima_entry_malformed"),
        (Made::of_fields("ima-ng", &[&[b"sha512:\0", &good[..]].concat(), &name("/bin/bash")]), "ima_entry_malformed"),
        (Made::of_fields("ima-ng", &[&good, &name("/bin/bash")]), "ima_entry_malformed"),
        (Made::of_fields("ima-ng", &[&field(&good), &name("/bin/bash\0x")]), "ima_entry_malformed"),
        (Made::of_fields("ima-ng", &[&field(&good), &[0]]), "ima_entry_malformed"),
        (Made::of_fields("ima-ng", &[&field(&good), &name("/bin/bash"), &[]]), "ima_entry_malformed"),
        (Made::of_fields("ima-sig", &[&field(&good), &name("/bin/bash")]), "ima_entry_malformed"),
        (Made::of_fields("ima-xx", &[&field(&good), &name("/bin/bash")]), "ima_template_unknown"),
    ] {
        let template = made.template;
        assert_eq!(code(&policy, made), expected, "{template}");
    }
    let data = [&HashAlg::Sha1.digest(&[b"x"])[..], &sized(b"/x")].concat();
    let sha1 = super::super::policy::Policy::parse(
        format!("version = 1\nname = \"t\"\n[ima.files]\n\"/x\" = [\"{}\"]", HashAlg::Sha1.digest(&[b"x"])).as_bytes(),
    )
    .unwrap();
    assert_eq!(code(&sha1, Made { pcr: 10, hash: [1; 20], template: "ima", data }), "");
}

#[test]
fn a_field_that_the_files_owner_fills_never_stands_for_digest_or_name() {
    let policy = with_bash();
    let (good, evil) = (field(&digest("/bin/bash")), field(&digest("evil")));
    // The template's name is not proven: whoever sends the list may call it anything.
    for template in ["d-modsig|n-ng|d-ng", "evmsig|n-ng|d-ng", "d-ng|n-ng|d-ng", "n-ng|d-ng", "d-ng", "d-ng|sig|n-ng"] {
        let made = Made::of_fields(template, &[&evil, &name("/bin/bash"), &good]);
        assert_eq!(code(&policy, made), "ima_template_unknown", "{template}");
    }
    // A file's entry called a buffer stays a file, and its signature is no buffer of that digest.
    let policy = self::policy("[ima.buffers]\ndm_table_load = [\"any\"]\n\"/bin/evil\" = [\"any\"]");
    let made = Made::of_fields("ima-buf", &[&evil, &name("/bin/evil"), b"evil"]);
    assert_eq!(code(&policy, made), "ima_file_unknown");
    let made = Made::of_fields("ima-buf", &[&evil, &name("dm_table_load"), &[3, 2, 4]]);
    assert_eq!(code(&policy, made), "ima_buffer_mismatch");
}

#[test]
fn a_digest_of_zeros_is_no_files() {
    let zero = "00".repeat(32);
    let policy = policy(&format!("any_path = [\"{zero}\"]\n[ima.files]\n\"/x\" = [\"{zero}\"]"));
    assert_eq!(code(&policy, Made::of_fields("ima-ng", &[&field(&[0; 32]), &name("/x")])), "ima_digest_mismatch");
    assert_eq!(code(&policy, Made::of_fields("ima-ng", &[&field(&[0; 32]), &name("/y")])), "ima_file_unknown");
}

#[test]
fn exclusion_is_by_whole_canonical_paths() {
    let policy = policy("exclude = [\"/tmp\", \"/var/tmp/**\", \"/memfd:*\"]");
    for path in ["/tmp", "/var/tmp/x", "/var/tmp/a/b", "/memfd:runc_(deleted)"] {
        assert_eq!(code(&policy, Made::file(path)), "", "{path}");
    }
    for path in [
        "/tmp/x",
        "/tmpevil/x",
        "/var/tmpevil/x",
        "/var/tmp/../usr/bin/x",
        "/var/tmp//x",
        "/var/tmp/./x",
        "/var/tmp/",
        "/usr/bin/x/tmp",
        "/memfd:a/b",
        "var/tmp/x",
        "tmp",
    ] {
        assert_eq!(code(&policy, Made::file(path)), "ima_file_unknown", "{path}");
    }
    let judgement = judge(&policy, &[Made::file("/tmp")]);
    assert_eq!(judgement.report.what_was_not_checked(), ["IMA: 1 entries of files that the policy excludes"]);
}

#[test]
fn memfd_and_deleted_files_are_files_like_others() {
    let policy = policy(&format!("any_path = [\"{}\"]", digest("/memfd:x_(deleted)")));
    assert_eq!(code(&policy, Made::file("/memfd:x_(deleted)")), "");
    assert_eq!(code(&policy, Made::file("/memfd:y_(deleted)")), "ima_file_unknown");
    assert_eq!(code(&with_bash(), Made::file("/bin/bash_(deleted)")), "ima_file_unknown");
}

#[test]
fn a_violation_fails_but_where_the_policy_says_otherwise() {
    let violation = |path| Made { hash: [0; 20], ..Made::file(path) };
    assert_eq!(code(&with_bash(), violation("/bin/bash")), "ima_violation");
    assert_eq!(code(&policy("exclude = [\"/var/log/**\"]"), violation("/var/log/x")), "ima_violation");
    let paths = policy("violation_paths = [\"/var/log/**\"]");
    assert_eq!(code(&paths, violation("/var/log/x")), "");
    assert_eq!(code(&paths, violation("/var/logs/x")), "ima_violation");
    assert_eq!(code(&paths, violation("/var/log/../x")), "ima_violation");
    let report = policy("violations = \"report\"");
    let judgement = judge(&report, &[violation("/x"), violation("/y")]);
    assert!(judgement.report.is_clean());
    assert!(judgement.report.what_was_not_checked().iter().any(|text| text.starts_with("IMA: 2 violations")));
    // What cannot be read is a violation all the same.
    assert_eq!(code(&paths, Made { hash: [0; 20], ..Made::of_fields("ima-ng", &[]) }), "ima_violation");
}

#[test]
fn an_entry_of_another_pcr_is_not_judged_and_said_so() {
    let judgement = judge(&with_bash(), &[Made { pcr: 11, ..Made::file("/evil") }]);
    assert!(judgement.report.is_clean());
    assert!(judgement.report.what_was_not_checked().iter().any(|text| text.contains("1 entries of other PCRs")));
}

#[test]
fn a_signature_by_a_given_key_makes_a_file_good() {
    let (signer, other) = (Signer::new(1), Signer::new(2));
    let policy = policy(&format!("keys = [\"\"\"{}\"\"\"]", signer.pem()));
    let good = signer.attribute(&digest("/bin/x"));
    assert_eq!(code(&policy, Made::signed("/bin/x", &good)), "");
    assert_eq!(code(&policy, Made::signed("/bin/y", &good)), "ima_signature_bad");
    assert_eq!(code(&policy, Made::signed("/bin/x", &other.attribute(&digest("/bin/x")))), "ima_signature_unknown_key");
    assert_eq!(code(&policy, Made::signed("/bin/x", &[1; 21])), "ima_signature_bad");
    // No content has this digest: it stands for a file that could not be read, whoever signed it.
    let zero = Digest::zero(SHA256);
    let unread = Made::of_fields("ima-sig", &[&field(&zero), &name("/bin/x"), &signer.attribute(&zero)]);
    assert_eq!(code(&policy, unread), "ima_file_unknown");
    assert_eq!(code(&policy, Made::signed("/bin/x", &[])), "ima_file_unknown");
    assert_eq!(code(&with_bash(), Made::signed("/bin/x", &good)), "ima_file_unknown");
}

#[test]
fn a_list_that_has_failed_for_long_costs_no_more_signatures() {
    let signer = Signer::new(1);
    let policy = policy(&format!("keys = [\"\"\"{}\"\"\"]", signer.pem()));
    let signed = || Made::signed("/bin/x", &signer.attribute(&digest("/bin/x")));
    let bad = |_| Made::signed("/bin/y", &signer.attribute(&digest("/bin/x")));
    let few: Vec<Made> = (1..MAX_FINDINGS).map(bad).chain([signed()]).collect();
    assert_eq!(judge(&policy, &few).report.count(), MAX_FINDINGS as u64 - 1);
    let many: Vec<Made> = (0..MAX_FINDINGS).map(bad).chain([signed()]).collect();
    let report = judge(&policy, &many).report;
    assert_eq!(report.count(), MAX_FINDINGS as u64 + 1);
    assert!(report.what_was_not_checked().iter().any(|line| line.contains("signatures of 1 entries")), "{report:?}");
}

#[test]
fn keys_are_learned_from_allowed_entries_only_and_only_if_the_policy_says_so() {
    let signer = Signer::new(1);
    let certificate = signer.certificate();
    let mut attribute = signer.attribute(&digest("/bin/x"));
    // The certificate names the key by its SubjectKeyIdentifier.
    attribute[3..7].copy_from_slice(&[3, 2, 1, 0]);
    let allowed = |learn: bool| {
        policy(&format!(
            "learn_keys = {learn}\n[ima.keyrings]\n\".ima\" = [\"{0}\"]\n\".other\" = [\"{0}\"]",
            SHA256.digest(&[&certificate])
        ))
    };
    let list = |keyring| [Made::buffer(keyring, &certificate), Made::signed("/bin/x", &attribute)];
    let judgement = judge(&allowed(true), &list(".ima"));
    assert_eq!(codes(&judgement), Vec::<&str>::new());
    assert_eq!(judgement.keys.len(), 1);
    assert_eq!(codes(&judge(&allowed(false), &list(".ima"))), ["ima_file_unknown"]);
    assert_eq!(codes(&judge(&allowed(true), &list(".other"))), ["ima_file_unknown"]);
    assert_eq!(codes(&judge(&policy("learn_keys = true"), &list(".ima"))), ["ima_key_unknown", "ima_file_unknown"]);
    // A later part of the list goes on with them.
    let rest = || [Made::signed("/bin/x", &attribute)];
    assert_eq!(codes(&judge_from(&allowed(true), 5, &judgement.keys, &rest())), Vec::<&str>::new());
    assert_eq!(codes(&judge_from(&allowed(false), 5, &judgement.keys, &rest())), ["ima_file_unknown"]);
    // A key that is loaded after the file was measured comes too late.
    let [key, file] = list(".ima");
    assert_eq!(codes(&judge(&allowed(true), &[file, key])), ["ima_file_unknown"]);
    let wrong = Made::buffer(".ima", &Signer::new(2).certificate());
    assert_eq!(code(&allowed(true), wrong), "ima_key_unknown");
    // An allowed digest over another buffer.
    let field = field(&SHA256.digest(&[&certificate]));
    let forged = Made::of_fields("ima-buf", &[&field, &name(".ima"), &Signer::new(2).certificate()]);
    assert_eq!(code(&allowed(true), forged), "ima_buffer_mismatch");
}

#[test]
fn no_more_keys_are_learned_than_are_remembered() {
    let signers: Vec<_> = (1..=MAX_LEARNED_KEYS + 1).map(|seed| Signer::new(u8::try_from(seed).unwrap())).collect();
    let certificates: Vec<_> = signers.iter().map(Signer::certificate).collect();
    let digests: Vec<_> = certificates.iter().map(|der| format!("\"{}\"", SHA256.digest(&[der]))).collect();
    let policy = policy(&format!("learn_keys = true\n[ima.keyrings]\n\".ima\" = [{}]", digests.join(", ")));
    let list: Vec<_> = certificates.iter().map(|der| Made::buffer(".ima", der)).collect();
    let judgement = judge(&policy, &list);
    assert!(judgement.report.is_clean());
    assert_eq!(judgement.keys.len(), MAX_LEARNED_KEYS);
    assert!(
        judgement
            .report
            .what_was_not_checked()
            .iter()
            .any(|text| text.contains("1 allowed keys that were not learned"))
    );
}

#[test]
fn buffers_are_good_by_name_and_digest() {
    let policy =
        policy(&format!("[ima.buffers]\ndm_table_load = [\"{}\"]\nkexec-cmdline = [\"any\"]", digest("the table")));
    for (path, buffer, expected) in [
        ("dm_table_load", "the table", ""),
        ("dm_table_load", "another", "ima_buffer_unknown"),
        ("kexec-cmdline", "anything", ""),
        ("selinux-state", "x", "ima_buffer_unknown"),
        (".ima", "x", "ima_key_unknown"),
        ("_ima", "x", "ima_key_unknown"),
    ] {
        assert_eq!(code(&policy, Made::buffer(path, buffer.as_bytes())), expected, "{path}");
    }
}

#[test]
fn boot_aggregate_is_the_first_entry_and_no_other() {
    let aggregate = || Made::of_fields("ima-ng", &[&field(&digest("pcrs")), &name("boot_aggregate")]);
    let judged = |policy: &Policy, list: &[Made]| judge_from(policy, 0, &[], list);
    let log = with_bash();
    let judgement = judged(&log, &[aggregate(), aggregate()]);
    assert!(judgement.report.is_clean());
    assert_eq!(judgement.boot_aggregate, Some((0, "sha256".to_owned(), digest("pcrs").to_vec())));
    // A file under that name, with whatever it likes to be.
    let other = || Made::of_fields("ima-ng", &[&field(&digest("evil")), &name("boot_aggregate")]);
    assert_eq!(codes(&judged(&log, &[aggregate(), other()])), ["ima_file_unknown"]);
    assert_eq!(codes(&judged(&policy("boot_aggregate = \"any\""), &[aggregate(), other()])), ["ima_file_unknown"]);
    assert_eq!(codes(&judge_from(&log, 7, &[], &[other()])), ["ima_file_unknown"]);
    let listed =
        policy(&format!("boot_aggregate = \"listed\"\n[ima.files]\nboot_aggregate = [\"{}\"]", digest("pcrs")));
    assert!(judged(&listed, &[aggregate(), aggregate()]).report.is_clean());
    assert_eq!(codes(&judged(&listed, &[other()])), ["ima_boot_aggregate_mismatch"]);
    assert_eq!(codes(&judged(&listed, &[aggregate(), other()])), ["ima_digest_mismatch"]);
    assert_eq!(codes(&judged(&policy("boot_aggregate = \"listed\""), &[aggregate()])), ["ima_boot_aggregate_mismatch"]);
}

#[test]
fn findings_stay_bounded_however_many_files_are_wrong() {
    let list: Vec<_> = (0..1000).map(|number| Made::file(&format!("/evil/{number}"))).collect();
    let report = judge(&with_bash(), &list).report;
    assert_eq!((report.findings().len(), report.count()), (super::super::finding::MAX_FINDINGS, 1000));
    let many: Vec<_> = (0..9).map(|number| format!("\"{}\"", digest(&number.to_string()))).collect();
    let policy = policy(&format!("[ima.files]\n\"/x\" = [{}]", many.join(", ")));
    assert_eq!(code(&policy, Made::file("/x")), "ima_digest_mismatch");
}

#[test]
fn the_captured_vm_list_fits_a_policy_of_its_digests_and_of_no_fewer() {
    let Some(folder) = test_vectors::folder("vm-ovmf") else { return };
    let list = test_vectors::read(&folder, "ima_binary_runtime_measurements");
    let walk = |seen: &mut dyn FnMut(&ImaEntry<'_>)| {
        let mut replay = ImaReplay::new(&ImaStart::beginning(), [(SHA256, Digest::EMPTY)]);
        replay.push_with(&list, |entry| seen(entry)).unwrap();
    };
    let mut files = std::collections::BTreeMap::<String, std::collections::BTreeSet<String>>::new();
    walk(&mut |entry| {
        let measured = entry.measurement().unwrap();
        let path = String::from_utf8(measured.path.to_vec()).unwrap();
        if !entry.is_violation() && path != "boot_aggregate" {
            files.entry(path).or_default().insert(hex::encode(measured.digest));
        }
    });
    let judged = |files: &std::collections::BTreeMap<String, std::collections::BTreeSet<String>>| {
        let ima = serde_json::json!({"violations": "report", "files": files});
        let policy = serde_json::json!({"version": 1, "name": "vm", "ima": ima}).to_string();
        let policy = Policy::parse(policy.as_bytes()).unwrap();
        let mut judge = ImaJudge::new(&policy, 0, &[]).unwrap();
        walk(&mut |entry| judge.entry(entry));
        judge.finish()
    };
    let judgement = judged(&files);
    assert!(judgement.report.is_clean(), "{:?}", judgement.report);
    assert_eq!(judgement.entries, 24);
    assert_eq!(judgement.boot_aggregate.unwrap().0, 0);
    files.remove("/bin/busybox");
    assert_eq!(codes(&judged(&files)), ["ima_file_unknown"]);
}
