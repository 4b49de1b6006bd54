use super::*;
use crate::appraisal::{
    boot_rules::{self, BootInput},
    finding::Report,
    ima_rules::{ImaJudge, ImaJudgement},
    test_vectors,
};

/// The kernel's form of an entry: PCR, SHA-1 of the data, template, data of fields with their lengths.
fn entry(pcr: u32, template: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for field in fields {
        data.extend((field.len() as u32).to_le_bytes());
        data.extend_from_slice(field);
    }
    let hash = HashAlg::Sha1.digest(&[&data]);
    let len = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
    let template = template.as_bytes();
    [&pcr.to_le_bytes(), hash.as_bytes(), &len(template), template, &len(&data), &data].concat()
}

fn digest_field(alg: HashAlg, digest: &[u8]) -> Vec<u8> {
    [format!("{alg}:").as_bytes(), b"\0", digest].concat()
}

fn file(path: &[u8], byte: u8) -> Vec<u8> {
    entry(10, "ima-ng", &[&digest_field(HashAlg::Sha256, &[byte; 32]), &[path, b"\0"].concat()])
}

fn buffer(name: &str, content: &[u8]) -> Vec<u8> {
    let digest = HashAlg::Sha256.digest(&[content]);
    entry(
        10,
        "ima-buf",
        &[&digest_field(HashAlg::Sha256, digest.as_bytes()), &[name.as_bytes(), b"\0"].concat(), content],
    )
}

fn violation(path: &[u8]) -> Vec<u8> {
    let mut bytes = file(path, 0);
    bytes[4..24].fill(0);
    bytes
}

/// PCR values: TPM_ALG_ID, index, digest.
type Values = Vec<(u16, u8, Vec<u8>)>;

/// The list, with the SHA-256 PCR 10 that it gives.
fn list(entries: &[Vec<u8>]) -> (Vec<u8>, Values) {
    let mut value = Digest::zero(HashAlg::Sha256);
    for bytes in entries {
        if bytes[0] != 10 {
            continue;
        }
        let name_len = u32::from_le_bytes(bytes[24..28].try_into().unwrap()) as usize;
        let data = &bytes[28 + name_len + 4..];
        let is_violation = bytes[4..24] == [0; 20];
        let hash = HashAlg::Sha256.digest(&[data]);
        let extended: &[u8] = if is_violation { &[0xff; 32] } else { hash.as_bytes() };
        value = HashAlg::Sha256.digest(&[value.as_bytes(), extended]);
    }
    (entries.concat(), vec![(HashAlg::Sha256.id(), 10, value.to_vec()), (HashAlg::Sha256.id(), 7, vec![7; 32])])
}

fn options(name: &str) -> LearnOptions<'_> {
    LearnOptions { name, phase_pcr: Some(13), format: None }
}

/// What the learned policy makes of the list that it was learned from.
fn judged(text: &str, ima_list: &[u8], pcrs: &[(u16, u8, Vec<u8>)]) -> ImaJudgement {
    let policy = Policy::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let targets = pcrs.iter().filter(|(_, index, _)| *index == 10).map(|(bank, _, value)| {
        let bank = HashAlg::from_id(*bank).unwrap();
        (bank, bank.read_digest(value).unwrap())
    });
    let mut replay = ImaReplay::new(&ImaStart::beginning(), targets);
    let mut judge = ImaJudge::new(&policy, 0, &[]).unwrap();
    replay.push_with(ima_list, |entry| judge.entry(entry)).unwrap();
    replay.finish().unwrap();
    judge.finish()
}

#[test]
fn a_list_is_learned_so_that_its_policy_accepts_it() {
    let (bytes, pcrs) = list(&[
        file(b"boot_aggregate", 1),
        file(b"/usr/bin/b", 2),
        entry(11, "ima-ng", &[b"sha256:\0", b"/else\0"]),
        file(b"/usr/bin/a", 3),
        file(b"/usr/bin/a", 4),
        file(b"/tmp/not \xff text", 5),
        file(b"memfd:x", 6),
        buffer(".ima", b"\x30\x82 a key"),
        buffer("dm_table_load", b"a table"),
        buffer("kexec-cmdline", b"root=x"),
        violation(b"/var/log/odd*name"),
    ]);
    let evidence = Evidence { pcrs: &pcrs, ima_list: Some(&bytes), ..Evidence::default() };
    for format in [Format::Toml, Format::Json] {
        let learned = learn(&evidence, &LearnOptions { format: Some(format), ..options("edge") }).unwrap();
        assert_eq!(learned.files, 3, "{}", learned.text);
        let judgement = judged(&learned.text, &bytes, &pcrs);
        assert!(judgement.report.is_clean(), "{:?}\n{}", judgement.report.findings(), learned.text);
        let notes = learned.notes.join("\n");
        for part in ["1 violations", "/var/log/odd*name", "1 paths that no policy can list", "another PCR than 10"] {
            assert!(notes.contains(part), "{part}: {notes}");
        }
        assert!(
            learned.text.contains("/var/log/odd?name") && !learned.text.contains("boot_aggregate"),
            "{}",
            learned.text
        );
        assert!(learned.text.find("/usr/bin/a").unwrap() < learned.text.find("/usr/bin/b").unwrap());
        // And not everything: one more file is noticed.
        let (longer, more) = list(&[file(b"/usr/bin/b", 2), file(b"/usr/bin/evil", 2), violation(b"/etc/shadow")]);
        let codes: Vec<_> =
            judged(&learned.text, &longer, &more).report.findings().iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["ima_file_unknown", "ima_violation"]);
    }
}

#[test]
fn only_what_the_quote_proves_is_learned() {
    let (proven, pcrs) = list(&[file(b"/usr/bin/a", 3)]);
    let bytes = [proven, file(b"/usr/bin/later", 9)].concat();
    let evidence = Evidence { pcrs: &pcrs, ima_list: Some(&bytes), ..Evidence::default() };
    let learned = learn(&evidence, &options("edge")).unwrap();
    assert!(learned.text.contains("/usr/bin/a") && !learned.text.contains("later"), "{}", learned.text);
    // A list that does not lead to the quoted value is none.
    let (other, _) = list(&[file(b"/usr/bin/a", 4)]);
    let error = learn(&Evidence { ima_list: Some(&other), ..evidence }, &options("edge")).unwrap_err();
    assert!(matches!(error, LearnError::Ima(ImaError::NoSuchPrefix { entries: 1 })), "{error}");
    // Nor is one without a quoted PCR 10.
    let error = learn(&Evidence { pcrs: &pcrs[1..], ..evidence }, &options("edge")).unwrap_err();
    assert!(matches!(error, LearnError::Ima(ImaError::NotQuoted)), "{error}");
}

#[test]
fn what_no_rule_can_allow_is_told() {
    let (bytes, pcrs) = list(&[
        entry(
            10,
            "ima-ng",
            &[b"md5:\0\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01", b"/usr/bin/a\0"],
        ),
        entry(10, "strange", &[b"x"]),
        file(b"/usr/bin/zero", 0),
    ]);
    let learned =
        learn(&Evidence { pcrs: &pcrs, ima_list: Some(&bytes), ..Evidence::default() }, &options("edge")).unwrap();
    let notes = learned.notes.join("\n");
    for part in ["2 digests of zeros or of an algorithm", "/usr/bin/zero", "1 entries that cannot be read", "entry 1"] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    assert_eq!(judged(&learned.text, &bytes, &pcrs).report.count(), 3);
}

#[test]
fn a_violation_of_a_file_that_no_glob_can_name_loosens_the_rule_for_all_and_says_so() {
    for path in [b"bare name".as_slice(), b"/a/../b", b"/not \xff text"] {
        let (bytes, pcrs) = list(&[violation(path)]);
        let evidence = Evidence { pcrs: &pcrs, ima_list: Some(&bytes), ..Evidence::default() };
        let learned = learn(&evidence, &options("edge")).unwrap();
        assert!(learned.text.contains("violations = \"report\"") && !learned.notes.is_empty(), "{}", learned.text);
        assert!(judged(&learned.text, &bytes, &pcrs).report.is_clean());
    }
}

#[test]
fn long_lists_are_json_unless_it_is_said_otherwise() {
    let files: Vec<_> = (0..2001).map(|n| file(format!("/usr/bin/{n}").as_bytes(), 1)).collect();
    let (bytes, pcrs) = list(&files);
    let evidence = Evidence { pcrs: &pcrs, ima_list: Some(&bytes), ..Evidence::default() };
    let learned = learn(&evidence, &options("edge")).unwrap();
    assert!(learned.text.starts_with('{') && learned.files == 2001);
    assert!(judged(&learned.text, &bytes, &pcrs).report.is_clean());
    let toml = learn(&evidence, &LearnOptions { format: Some(Format::Toml), ..options("edge") }).unwrap();
    assert!(toml.text.starts_with("# Learned from one node"));
}

#[test]
fn evidence_that_says_nothing_makes_a_policy_of_the_phase_pcr_alone_or_none() {
    let learned = learn(&Evidence::default(), &options("edge")).unwrap();
    let policy = Policy::parse(learned.text.as_bytes()).unwrap();
    assert_eq!((policy.pcrs().count(), policy.release()), (0, Some(ReleaseRule::PhasePcr(13))));
    let error = learn(&Evidence::default(), &LearnOptions { phase_pcr: None, ..options("edge") }).unwrap_err();
    assert!(matches!(error, LearnError::Policy(PolicyError::JudgesNothing)), "{error}");
    let error = learn(&Evidence { boot_log: Some(b"no log"), ..Evidence::default() }, &options("edge")).unwrap_err();
    assert!(matches!(error, LearnError::BootLog(_)), "{error}");
}

/// PCR values of a `pcrs.txt`: `sha256 7 HEX` a line.
fn pcr_file(text: &str, wanted: HashAlg) -> Values {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let bank = HashAlg::from_name(words.next()?).filter(|bank| *bank == wanted)?;
        let index = words.next()?.parse().ok()?;
        Some((bank.id(), index, hex::decode(words.next()?.to_lowercase()).ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn a_policy_learned_from_a_captured_boot_accepts_that_boot() {
    let Some(folder) = test_vectors::folder("vm-ovmf") else { return };
    let read = |name: &str| test_vectors::read(&folder, name);
    let (boot_log, ima_list) = (read("binary_bios_measurements"), read("ima_binary_runtime_measurements"));
    let command_line = read("cmdline.txt").trim_ascii_end().to_vec();
    let pcrs = pcr_file(&String::from_utf8(read("pcrs.txt")).unwrap(), HashAlg::Sha256);
    assert_eq!(pcrs.len(), 24);
    let evidence = Evidence {
        pcrs: &pcrs,
        boot_log: Some(&boot_log),
        command_line: Some(&command_line),
        ima_list: Some(&ima_list),
    };
    for format in [Format::Toml, Format::Json] {
        let learned = learn(&evidence, &LearnOptions { format: Some(format), ..options("vm") }).unwrap();
        let policy = Policy::parse(learned.text.as_bytes()).unwrap();
        // Values that are named are the captured ones, and no PCR is judged twice.
        let rules = policy.boot().expect("rules on its events");
        for (bank, index, values) in policy.pcrs() {
            let value = pcrs.iter().find(|(id, of, _)| *id == bank.id() && *of == index).unwrap();
            assert_eq!(values[0].as_bytes(), value.2);
            assert!(rules.judged_mask() & (1 << index) == 0 && ![10, 13, 16, 23].contains(&index), "PCR {index}");
        }
        let log = BootLog::parse(&boot_log).unwrap();
        let input =
            BootInput { log: &log, banks: &[HashAlg::Sha256], command_line: Some(&command_line), userspace: None };
        let mut report = Report::default();
        boot_rules::judge(rules, &input, &mut report);
        assert!(report.is_clean(), "{:?}\n{}", report.findings(), learned.text);
        let judgement = judged(&learned.text, &ima_list, &pcrs);
        assert!(judgement.report.is_clean(), "{:?}\n{}", judgement.report.findings(), learned.text);
        assert!(learned.files > 0 && learned.text.contains("/init"), "{}", learned.text);
    }
}
