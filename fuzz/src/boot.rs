//! What follows a boot log: rules on its events, learned ones too, and what userspace measured later.

use std::sync::LazyLock;

use control_plane::appraisal::{
    BootLog, Policy,
    boot_rules::{BootInput, judge},
    finding::Report,
    policy::learn::{Evidence, LearnOptions, learn},
    userspace_log::UserspaceLog,
};
use protocol::tpm::{alg::HashAlg, pcr::extend};

use crate::{
    appraisal::boot_log_seeds,
    script::{Script, long},
    vectors,
};

/// What firmware and loaders do against every rule: no policy can allow it.
const NEVER_ALLOWED: [&str; 4] = ["separator_missing", "separator_twice", "error_separator", "debug_mode"];

/// Rules of every kind are total over any log and say of each finding, in bounded words, what it is; rules that were
/// learned from a log allow it, but for what no rule can allow.
///
/// Input: the command line and the userspace log, each behind its length; the boot log.
pub fn boot_rules(data: &[u8]) {
    static POLICY: LazyLock<Policy> = LazyLock::new(|| {
        let digest = "07".repeat(32);
        let text = format!(
            "version = 1\nname = \"f\"\n[boot]\npcrs = [0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 14]\nsecure_boot = \"on\"\n\
             command_line = [\"quiet\"]\ncommand_line_patterns = [\"root=* *quiet\"]\nsbat = [\"shim,4\"]\n\
             [boot.keys]\npk = {{ only = [] }}\ndb = {{ only = [\"{digest}\"] }}\ndbx = {{ require = [\"{digest}\"] }}\n\
             authorities = {{ only = [\"{digest}\"], require = [\"{digest}\"] }}\n\
             [[boot.event]]\nname = \"e\"\npcr = 0\ndigests = [\"{digest}\"]\nrequired = true\n\
             [[boot.chain]]\nname = \"c\"\nimages = [\"{digest}\"]\nfiles = [\"{digest}\"]\ncommand_line = \"quiet\"\n"
        );
        Policy::parse(text.as_bytes()).expect("a policy")
    });
    let mut script = Script::new(data);
    let (line, userspace) = (script.long(), script.long());
    let bytes = script.rest();
    let Ok(log) = BootLog::parse(bytes) else { return };
    let userspace = UserspaceLog::parse(userspace).ok();
    let banks = log.banks();
    let judged = |policy: &Policy, userspace| {
        let mut report = Report::default();
        let input = BootInput { log: &log, banks, command_line: Some(line), userspace };
        judge(policy.boot().expect("rules"), &input, &mut report);
        for finding in report.findings() {
            assert!(!finding.expected.is_empty() && finding.expected.chars().count() <= 200, "{finding:?}");
            assert!(!finding.found.is_empty() && finding.found.chars().count() <= 200, "{finding:?}");
            assert!(finding.place.event.is_none_or(|event| userspace.is_some() || event < log.events().len()));
        }
        report
    };
    // Its keys, event and chain have to be there, and nothing hashes to them.
    assert!(!judged(&POLICY, userspace.as_ref()).is_clean());
    let pcrs: Vec<_> = banks.iter().map(|bank| (bank.id(), 0, vec![7; bank.digest_len()])).collect();
    let evidence = Evidence { pcrs: &pcrs, boot_log: Some(bytes), command_line: Some(line), ima_list: None };
    let Ok(learned) = learn(&evidence, &LearnOptions { name: "learned", ..LearnOptions::default() }) else { return };
    let policy = Policy::parse(learned.text.as_bytes()).expect("what is learned parses");
    if policy.boot().is_some() && !banks.is_empty() {
        let report = judged(&policy, None);
        for finding in report.findings() {
            assert!(NEVER_ALLOWED.contains(&finding.code), "{finding:?} by\n{}", learned.text);
        }
    }
}

pub(crate) fn boot_rules_seeds() -> Vec<Vec<u8>> {
    let seed = |line: &[u8], log: &[u8]| {
        let userspace = userspace_log_seeds().swap_remove(0);
        [&long(line)[..], &long(&userspace), log].concat()
    };
    let mut seeds: Vec<_> = boot_log_seeds().iter().map(|log| seed(b"quiet", log)).collect();
    let lines = vectors::files("vm-ovmf", "cmdline.txt");
    for (line, log) in lines.iter().zip(vectors::files("vm-ovmf", "binary_bios_measurements")) {
        seeds.push(seed(line.trim_ascii_end(), &log));
    }
    seeds
}

/// A userspace log that is read replays step by step to what it replays to as a whole; a text counts only where it
/// hashes to the digest of every bank that is asked for.
pub fn userspace_log(data: &[u8]) {
    let Ok(log) = UserspaceLog::parse(data) else { return };
    for bank in HashAlg::ALL {
        for pcr in 0..24 {
            let start = protocol::tpm::alg::Digest::zero(bank);
            let mut value = Some(start);
            for event in log.events().iter().filter(|event| event.pcr == pcr) {
                value = value.zip(event.digest(bank)).and_then(|(old, digest)| extend(bank, &old, digest).ok());
            }
            assert_eq!(log.replay(bank, pcr, start), value);
            assert_eq!(log.touches(pcr), log.events().iter().any(|event| event.pcr == pcr));
            assert!(value.is_none_or(|value| log.reaches(bank, pcr, start, &value)));
        }
        for event in log.events() {
            assert!(matches!(event.pcr, 9 | 11..=15));
            let text = event.proven_text(&[bank]);
            assert!(text.is_none_or(|text| event.digest(bank) == Some(&bank.digest(&[text.as_bytes()]))));
            assert_eq!(event.proven_text(&[]), None);
        }
    }
}

pub(crate) fn userspace_log_seeds() -> Vec<Vec<u8>> {
    let record = |pcr: u8, word: &str| {
        let digests: Vec<String> = [HashAlg::Sha1, HashAlg::Sha256]
            .map(|bank| {
                let digest = bank.digest(&[word.as_bytes()]);
                format!("{{\"hashAlg\":\"{bank}\",\"digest\":\"{digest}\"}}")
            })
            .into();
        format!(
            "\u{1e}{{\"pcr\":{pcr},\"digests\":[{}],\"content_type\":\"systemd\",\"content\":{{\"eventType\":\"phase\",\
             \"string\":\"{word}\",\"bootId\":\"0\"}}}}\n",
            digests.join(",")
        )
    };
    let phases: Vec<String> =
        ["enter-initrd", "leave-initrd", "sysinit", "ready"].iter().map(|word| record(11, word)).collect();
    vec![
        phases.concat().into_bytes(),
        (record(15, "machine-id:0") + &record(9, "x")).into_bytes(),
        b"\x1e{}\n".to_vec(),
    ]
}
