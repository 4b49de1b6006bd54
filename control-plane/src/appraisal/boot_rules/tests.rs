use super::{super::test_vectors, *};
use crate::appraisal::{
    boot_log::EV_NO_ACTION,
    policy::{
        Policy,
        learn::{Evidence, LearnOptions, learn},
    },
};

const SHA256: HashAlg = HashAlg::Sha256;
const EV_IPL: u32 = 0xd;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const EV_EFI_ACTION: u32 = 0x8000_0007;

/// An event to be logged: PCR, type, what is hashed, data.
type Made = (u32, u32, Vec<u8>, Vec<u8>);

fn log_of(events: &[Made]) -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x0b\0\x20\0\0".to_vec();
    let mut log = [&[0; 4][..], &EV_NO_ACTION.to_le_bytes(), &[0; 20]].concat();
    log.extend_from_slice(&u32::try_from(spec.len()).unwrap().to_le_bytes());
    log.append(&mut spec);
    for (pcr, kind, hashed, data) in events {
        log.extend_from_slice(&[&pcr.to_le_bytes()[..], &kind.to_le_bytes(), &1u32.to_le_bytes(), &[0xb, 0]].concat());
        log.extend_from_slice(&SHA256.digest(&[hashed]));
        log.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        log.extend_from_slice(data);
    }
    log
}

fn hashed(pcr: u32, kind: u32, data: &[u8]) -> Made {
    (pcr, kind, data.to_vec(), data.to_vec())
}

fn separator(pcr: u32) -> Made {
    hashed(pcr, EV_SEPARATOR, &[0; 4])
}

fn variable(vendor: [u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    let name = to_utf16(name);
    let len = |len: usize| u64::try_from(len).unwrap().to_le_bytes();
    [&vendor[..], &len(name.len() / 2), &len(data.len()), &name, data].concat()
}

fn config(vendor: [u8; 16], name: &str, data: &[u8]) -> Made {
    hashed(7, EV_EFI_VARIABLE_DRIVER_CONFIG, &variable(vendor, name, data))
}

/// An EFI_SIGNATURE_LIST of SHA-256 hashes.
fn hashes(entries: &[[u8; 32]]) -> Vec<u8> {
    let kind = [0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28];
    let len = |len: usize| u32::try_from(len).unwrap().to_le_bytes();
    let mut list = [&kind[..], &len(28 + entries.len() * 48), &len(0), &len(48)].concat();
    entries.iter().for_each(|entry| list.extend([&[7; 16][..], entry].concat()));
    list
}

fn digest(data: &[u8]) -> String {
    SHA256.digest(&[data]).to_string()
}

/// A boot with Secure Boot, a loader, a kernel and its command line.
fn boot() -> Vec<Made> {
    let image = |name: &[u8]| (4, EV_EFI_BOOT_SERVICES_APPLICATION, name.to_vec(), b"a device path".to_vec());
    let line = [&to_utf16("ro quiet")[..], &[0, 0]].concat();
    vec![
        (0, 8, b"firmware".to_vec(), b"blob".to_vec()),
        config(GLOBAL_VARIABLE, "SecureBoot", &[1]),
        config(IMAGE_SECURITY_DATABASE, "dbx", &hashes(&[[1; 32], [2; 32]])),
        separator(0),
        separator(2),
        separator(4),
        separator(7),
        hashed(4, EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
        image(b"loader"),
        image(b"kernel"),
        (9, 6, b"initrd".to_vec(), b"x".to_vec()),
        (9, 6, line, Vec::new()),
    ]
}

fn policy_text() -> String {
    format!(
        "version = 1\nname = \"x\"\n[boot]\nsecure_boot = \"on\"\ncommand_line = [\"ro quiet\"]\n\
         [boot.keys]\ndbx = {{ require = [\"{}\"] }}\n\
         [[boot.event]]\nname = \"firmware 1.2\"\npcr = 0\ndigests = [\"{}\"]\nrequired = true\n\
         [[boot.chain]]\nname = \"new\"\nimages = [\"{}\", \"{}\"]\nfiles = [\"{}\"]\n\
         [[boot.chain]]\nname = \"old\"\nimages = [\"{}\", \"{}\"]\nfiles = [\"{}\"]\n",
        "02".repeat(32),
        digest(b"firmware"),
        digest(b"loader"),
        digest(b"kernel"),
        digest(b"initrd"),
        digest(b"loader"),
        digest(b"old kernel"),
        digest(b"old initrd"),
    )
}

fn report_on(text: &str, log: &[u8], said: Option<&str>, userspace: Option<&UserspaceLog>) -> Report {
    let policy = Policy::parse(text.as_bytes()).unwrap();
    let log = BootLog::parse(log).unwrap();
    let input = BootInput { log: &log, banks: &[SHA256], command_line: said.map(str::as_bytes), userspace };
    let mut report = Report::default();
    judge(policy.boot().unwrap(), &input, &mut report);
    report
}

/// The findings: code and event.
fn found(events: &[Made]) -> Vec<(&'static str, Option<usize>)> {
    let report = report_on(&policy_text(), &log_of(events), Some("ro quiet"), None);
    report.findings().iter().map(|finding| (finding.code, finding.place.event)).collect()
}

/// The findings after one change. Event numbers in the log are one more than in the list: the Spec ID event comes first.
fn changed(change: impl FnOnce(&mut Vec<Made>)) -> Vec<(&'static str, Option<usize>)> {
    let mut events = boot();
    change(&mut events);
    found(&events)
}

#[test]
fn a_boot_as_the_policy_has_it_is_clean_and_says_what_was_checked() {
    let report = report_on(&policy_text(), &log_of(&boot()), Some("ro quiet"), None);
    assert!(report.is_clean(), "{:?}", report.findings());
    let checked = report.what_was_checked().join("\n");
    assert!(checked.contains("PCR 0, 2, 4, 7, 9") && checked.contains("Secure Boot on"), "{checked}");
    assert!(report.what_was_not_checked().iter().any(|line| line.contains("PCR 1, 3, 5, 6, 8")));
}

#[test]
fn each_thing_that_is_wrong_has_its_reason_and_event() {
    let off = config(GLOBAL_VARIABLE, "SecureBoot", &[0]);
    assert_eq!(changed(|events| events[1] = off.clone()), [("secure_boot_off", Some(2))]);
    assert_eq!(changed(|events| drop(events.remove(1))), [("secure_boot_missing", None)]);
    assert_eq!(changed(|events| events.insert(2, boot()[1].clone())), [("variable_twice", Some(3))]);
    // An attacker's own measurement, made when the firmware had long handed over.
    assert_eq!(changed(|events| events.push(boot()[1].clone())), [("event_after_separator", Some(13))]);
    let dbx = config(IMAGE_SECURITY_DATABASE, "dbx", &hashes(&[[1; 32]]));
    assert_eq!(changed(|events| events[2] = dbx), [("revocation_missing", Some(3))]);
    assert_eq!(changed(|events| drop(events.remove(2))), [("revocation_missing", None)]);
    assert_eq!(changed(|events| drop(events.remove(3))), [("separator_missing", None)]);
    assert_eq!(changed(|events| events.insert(4, separator(0))), [("separator_twice", Some(5))]);
    assert_eq!(
        changed(|events| events[3] = hashed(0, EV_SEPARATOR, &[1, 0, 0, 0])),
        [("error_separator", Some(4)), ("separator_missing", None)]
    );
    assert_eq!(
        changed(|events| events[0].2 = b"rootkit".to_vec()),
        [("unknown_event", Some(1)), ("event_missing", None)]
    );
    assert_eq!(changed(|events| drop(events.remove(0))), [("event_missing", None)]);
    let debug = hashed(7, EV_EFI_ACTION, b"UEFI Debug Mode");
    assert_eq!(changed(|events| events.insert(1, debug)), [("debug_mode", Some(2))]);
    assert_eq!(
        changed(|events| events[11].2 = [&to_utf16("ro quiet init=/bin/sh")[..], &[0, 0]].concat()),
        [("unknown_event", Some(12)), ("command_line_unproven", None)]
    );
}

#[test]
fn an_event_cannot_be_hidden_by_its_type_or_data() {
    // The variable that says "off", called something else: its digest is no rule's, and the variable is missing.
    let off = variable(GLOBAL_VARIABLE, "SecureBoot", &[0]);
    let hidden = (7, EV_IPL, off.clone(), b"MokList".to_vec());
    assert_eq!(changed(|events| events[1] = hidden), [("unknown_event", Some(2)), ("secure_boot_missing", None)]);
    // Data that was never measured.
    let on = variable(GLOBAL_VARIABLE, "SecureBoot", &[1]);
    let lie = (7, EV_EFI_VARIABLE_DRIVER_CONFIG, off, on);
    assert_eq!(changed(|events| events[1] = lie), [("event_data_mismatch", Some(2)), ("secure_boot_missing", None)]);
    // An image that calls itself an ordinary action.
    let action = b"Calling EFI Application from Boot Option".to_vec();
    let image = (4, EV_EFI_ACTION, b"evil".to_vec(), action);
    assert_eq!(
        changed(|events| events.insert(8, image)),
        [("event_data_mismatch", Some(9)), ("chain_mismatch", Some(9))]
    );
}

#[test]
fn alternatives_are_not_mixed() {
    assert!(
        changed(|events| {
            events[9].2 = b"old kernel".to_vec();
            events[10].2 = b"old initrd".to_vec();
        })
        .is_empty()
    );
    let mixed = changed(|events| events[9].2 = b"old kernel".to_vec());
    assert_eq!(mixed, [("chain_mismatch", Some(10))]);
    let swapped = changed(|events| events.swap(8, 9));
    assert_eq!(swapped, [("chain_mismatch", Some(9))]);
    assert_eq!(changed(|events| drop(events.remove(9))), [("chain_mismatch", None)]);
    let mut events = boot();
    events[9].2 = b"old kernel".to_vec();
    let report = report_on(&policy_text(), &log_of(&events), Some("ro quiet"), None);
    let [finding] = report.findings() else { panic!() };
    assert!(finding.expected.contains("`new`") && finding.found == digest(b"old kernel"), "{finding:?}");
}

#[test]
fn key_variables_hold_what_is_listed_and_revocation_levels_are_at_least_as_new() {
    let id = |byte: u8| format!("{byte:02x}").repeat(32);
    let text = format!(
        "version = 1\nname = \"x\"\n[boot]\npcrs = [7]\nsecure_boot = \"off\"\nsbat = [\"shim,4\", \"grub,3\"]\n\
         [boot.keys]\ndb = {{ only = [\"{}\", \"{}\"], require = [\"{}\"] }}\n",
        id(2),
        id(1),
        id(1)
    );
    let codes = |secure_boot: u8, db: &[u8], level: Option<&[u8]>| -> Vec<&'static str> {
        let mut events = vec![
            config(GLOBAL_VARIABLE, "SecureBoot", &[secure_boot]),
            config(IMAGE_SECURITY_DATABASE, "db", db),
            separator(7),
        ];
        if let Some(level) = level {
            events.push(hashed(7, EV_EFI_VARIABLE_AUTHORITY, &variable([9; 16], SBAT_LEVEL, level)));
        }
        let report = report_on(&text, &log_of(&events), None, None);
        report.findings().iter().map(|finding| finding.code).collect()
    };
    let (db, level) = (hashes(&[[1; 32], [2; 32]]), b"sbat,1,2024010900\nshim,4\ngrub,5\n");
    assert!(codes(0, &db, Some(level)).is_empty());
    assert_eq!(codes(1, &db, Some(level)), ["secure_boot_on"]);
    assert_eq!(codes(0, &hashes(&[[1; 32], [3; 32]]), Some(level)), ["key_not_allowed"]);
    assert_eq!(codes(0, &hashes(&[[2; 32]]), Some(level)), ["key_missing"]);
    assert_eq!(codes(0, &db[1..], Some(level)), ["key_list_malformed"]);
    assert_eq!(codes(0, &db, None), ["sbat_missing"]);
    for old in [&b"shim,3\ngrub,3\n"[..], b"shim,4\n", b"shim,4\ngrub,x\n", b""] {
        assert_eq!(
            codes(0, &db, Some(old)),
            if old.is_empty() { vec!["sbat_too_old"; 2] } else { vec!["sbat_too_old"] }
        );
    }
}

#[test]
fn the_same_file_measured_again_and_again_is_one_file() {
    let initrd = boot()[10].clone();
    assert!(changed(|events| (0..100).for_each(|_| events.push(initrd.clone()))).is_empty());
    // Of two alternatives with the same images the one that fits is found, whichever comes first.
    let text = policy_text().replace("[[boot.chain]]\nname = \"new\"", "[[boot.chain]]\nname = \"also\"");
    assert!(report_on(&text, &log_of(&boot()), Some("ro quiet"), None).is_clean());
}

#[test]
fn a_command_line_is_read_where_each_loader_measures_it() {
    let policy = "version = 1\nname = \"x\"\n[boot]\npcrs = []\ncommand_line_patterns = [\"root=* quiet\"]\n";
    let codes = |events: &[Made], said: Option<&str>| -> Vec<_> {
        let report = report_on(policy, &log_of(events), said, None);
        report.findings().iter().map(|finding| finding.code).collect()
    };
    let good = "/vmlinuz root=/dev/vda quiet";
    let grub =
        |text: &str| (8, EV_IPL, text.as_bytes().to_vec(), [b"kernel_cmdline: ", text.as_bytes(), &[0]].concat());
    assert!(codes(&[grub(good)], None).is_empty());
    assert_eq!(codes(&[grub("/vmlinuz root=/dev/vda quiet init=/bin/sh")], Some(good)), ["command_line_mismatch"]);
    // What the log says counts only if it was measured.
    let mut lie = grub("/vmlinuz init=/bin/sh");
    lie.3 = grub(good).3;
    assert_eq!(codes(&[lie], Some(good)), ["command_line_unproven"]);
    let stub = to_utf16("root=/dev/vda quiet");
    assert!(codes(&[hashed(12, EV_IPL, &stub)], None).is_empty());
    assert!(codes(&[(9, 6, [&stub[..], &[0, 0]].concat(), Vec::new())], Some("root=/dev/vda quiet")).is_empty());
    assert_eq!(codes(&[separator(0)], None), ["command_line_missing"]);
}

#[test]
fn userspace_measures_its_phases_in_their_order_and_nothing_else() {
    let policy = "version = 1\nname = \"x\"\n[boot]\npcrs = [11]\n";
    let record = |text: &str, hashed: &str| {
        format!(
            "\u{1e}{{\"pcr\":11,\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{}\"}}],\"content_type\":\"systemd\",\
             \"content\":{{\"eventType\":\"phase\",\"string\":\"{text}\"}}}}\n",
            digest(hashed.as_bytes())
        )
    };
    let codes = |records: &[String]| -> Vec<_> {
        let userspace = UserspaceLog::parse(records.concat().as_bytes()).unwrap();
        let report = report_on(policy, &log_of(&[separator(0)]), None, Some(&userspace));
        report.findings().iter().map(|finding| (finding.code, finding.place.event)).collect()
    };
    let phase = |text: &str| record(text, text);
    assert!(codes(&[phase("enter-initrd"), phase("leave-initrd"), phase("ready")]).is_empty());
    assert_eq!(codes(&[phase("ready"), phase("enter-initrd")]), [("unknown_userspace_event", Some(1))]);
    assert_eq!(codes(&[record("ready", "evil")]), [("unknown_userspace_event", Some(0))]);
}

#[test]
fn a_file_of_another_alternative_is_not_covered_by_measuring_the_right_one_too() {
    let initrd = |name: &[u8]| (9, 6, name.to_vec(), b"x".to_vec());
    assert_eq!(changed(|events| events.insert(10, initrd(b"old initrd"))), [("chain_mismatch", Some(11))]);
}

#[test]
fn an_alternative_without_images_does_not_cover_those_of_another() {
    let text = format!(
        "version = 1\nname = \"x\"\n[boot]\n\
         [[boot.chain]]\nname = \"a\"\nimages = [\"{}\"]\nfiles = [\"{}\"]\n\
         [[boot.chain]]\nname = \"b\"\nfiles = [\"{}\"]\n",
        digest(b"old kernel"),
        digest(b"old initrd"),
        digest(b"initrd"),
    );
    let boot = |image: Option<&[u8]>| {
        let mut events: Vec<_> = [0, 2, 4, 7].map(separator).into();
        events.push((9, 6, b"initrd".to_vec(), Vec::new()));
        events.extend(image.map(|image| (4, EV_EFI_BOOT_SERVICES_APPLICATION, image.to_vec(), Vec::new())));
        let report = report_on(&text, &log_of(&events), None, None);
        report.findings().iter().map(|finding| finding.code).collect::<Vec<_>>()
    };
    assert_eq!(boot(None), [""; 0]);
    assert_eq!(boot(Some(b"old kernel")), ["chain_mismatch"]);
}

#[test]
fn rules_on_a_pcr_that_is_not_judged_whole_say_what_they_leave_open() {
    let report = |rules: &str, events: &[Made]| {
        let text = format!("version = 1\nname = \"x\"\n[boot]\n{rules}\n");
        let report = report_on(&text, &log_of(events), None, None);
        let codes: Vec<_> = report.findings().iter().map(|finding| finding.code).collect();
        (codes, report.what_was_not_checked().join("\n"))
    };
    let secure_boot = "pcrs = []\nsecure_boot = \"on\"";
    let on = config(GLOBAL_VARIABLE, "SecureBoot", &[1]);
    let (codes, told) = report(secure_boot, &[on.clone(), separator(7)]);
    assert!(codes.is_empty() && told.contains("what else there is in PCR 7"), "{codes:?}: {told}");
    // Without the separator nothing says that firmware measured it.
    assert_eq!(report(secure_boot, std::slice::from_ref(&on)).0, ["separator_missing"]);
    // Called something else, it is still what was measured.
    let debug = (7, EV_EFI_ACTION, b"UEFI Debug Mode".to_vec(), b"x".to_vec());
    assert_eq!(report(secure_boot, &[on, debug, separator(7)]).0, ["debug_mode"]);
    // GRUB's own line, hidden, and a good one measured afterwards where systemd-stub would.
    let evil = (8, EV_IPL, b"/vmlinuz init=/bin/sh".to_vec(), b"x".to_vec());
    let good = hashed(12, EV_IPL, &to_utf16("ro quiet"));
    let (codes, told) = report("pcrs = [12]\ncommand_line = [\"ro quiet\"]", &[evil, good]);
    assert!(codes.is_empty() && told.contains("another command line in PCR 8"), "{codes:?}: {told}");
}

#[test]
fn a_listed_digest_does_not_stand_for_the_other_rules() {
    let listed = |pcr: u32, data: &[u8]| {
        format!("[[boot.event]]\nname = \"listed\"\npcr = {pcr}\ndigests = [\"{}\"]\n", digest(data))
    };
    let codes = |text: &str, events: &[Made]| -> Vec<_> {
        let report = report_on(text, &log_of(events), Some("ro quiet"), None);
        report.findings().iter().map(|finding| finding.code).collect()
    };
    // Secure Boot's own variable, the kernel, the command line: listed by digest, and still what their rules say.
    let [on, off] = [1, 0].map(|value| variable(GLOBAL_VARIABLE, "SecureBoot", &[value]));
    let line = [&to_utf16("ro quiet")[..], &[0, 0]].concat();
    let lists = [listed(7, &on), listed(7, &off), listed(4, b"kernel"), listed(9, &line)].concat();
    let text = policy_text() + &lists;
    assert_eq!(codes(&text, &boot()), [""; 0]);
    let mut events = boot();
    events[1] = hashed(7, EV_EFI_VARIABLE_DRIVER_CONFIG, &off);
    assert_eq!(codes(&text, &events), ["secure_boot_off"]);
    // A listed image may come between those of a chain, which is judged as before.
    let text = policy_text() + &listed(4, b"a driver");
    let mut events = boot();
    events.insert(8, (4, 0x8000_0004, b"a driver".to_vec(), Vec::new()));
    assert_eq!(codes(&text, &events), [""; 0]);
}

#[test]
fn who_signed_the_images_is_held_against_the_list() {
    let signer = |data: &[u8]| hashed(7, EV_EFI_VARIABLE_AUTHORITY, &variable(IMAGE_SECURITY_DATABASE, "db", data));
    let owned = |data: &[u8]| [&[7; 16][..], data].concat();
    let policy =
        |rule: &str| format!("version = 1\nname = \"x\"\n[boot]\npcrs = [7]\n[boot.keys]\nauthorities = {rule}\n");
    let codes = |rule: &str, data: &[u8]| -> Vec<_> {
        let report = report_on(&policy(rule), &log_of(&[separator(7), signer(data)]), None, None);
        report.findings().iter().map(|finding| finding.code).collect()
    };
    let (good, hash) = (digest(b"certificate"), "05".repeat(32));
    let only = format!("{{ only = [\"{good}\", \"{hash}\"] }}");
    for data in [owned(b"certificate"), b"certificate".to_vec(), owned(&[5; 32])] {
        assert_eq!(codes(&only, &data), [""; 0]);
    }
    assert_eq!(codes(&only, &owned(b"another")), ["authority_not_allowed"]);
    let require = format!("{{ require = [\"{good}\"] }}");
    assert_eq!(codes(&require, &owned(b"certificate")), [""; 0]);
    assert_eq!(codes(&require, &owned(b"another")), ["key_missing"]);
}

#[test]
fn a_command_line_that_the_policy_has_word_by_word_needs_nobody_to_say_it() {
    let report = report_on(&policy_text(), &log_of(&boot()), None, None);
    assert!(report.is_clean(), "{:?}", report.findings());
    let policy = "version = 1\nname = \"x\"\n[boot]\npcrs = []\ncommand_line = [\"ro quiet\"]\n";
    let report = report_on(policy, &log_of(&boot()), None, None);
    assert!(report.is_clean(), "{:?}", report.findings());
    let told = report.what_was_not_checked().join("\n");
    assert!(told.contains("the command line in PCR 9 is the only one"), "{told}");
}

/// Learns rules from a log, and judges the log by them.
fn learned(log: &[u8], said: Option<&[u8]>) -> (String, Vec<HashAlg>) {
    let parsed = BootLog::parse(log).unwrap();
    let banks: Vec<HashAlg> = parsed.banks().to_vec();
    let pcrs: Vec<(u16, u8, Vec<u8>)> = banks.iter().map(|bank| (bank.id(), 0, vec![1; bank.digest_len()])).collect();
    let evidence = Evidence { pcrs: &pcrs, boot_log: Some(log), command_line: said, ima_list: None };
    let text = learn(&evidence, &LearnOptions { name: "learned", ..LearnOptions::default() }).unwrap().text;
    (text, banks)
}

#[test]
fn rules_learned_from_a_log_allow_it_and_no_other() {
    let logs = [
        ("vm-ovmf", "binary_bios_measurements"),
        ("boot-logs", "rhel95-vm-secureboot.bin"),
        ("boot-logs", "thinkpad-fedora41.bin"),
        ("boot-logs", "event-sd-boot-fedora37.bin"),
        ("boot-logs", "option-rom.bin"),
        ("boot-logs", "crypto-agile.bin"),
        ("boot-logs", "event-postcode.bin"),
        ("boot-logs", "event-moklisttrusted.bin"),
        ("boot-logs", "event-bootorder.bin"),
    ];
    for (folder, name) in logs {
        let Some(folder) = test_vectors::folder(folder) else { continue };
        let bytes = test_vectors::read(&folder, name);
        let (text, banks) = learned(&bytes, None);
        let policy = Policy::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        let rules = policy.boot().unwrap();
        let findings = |bytes: &[u8]| {
            let log = BootLog::parse(bytes).unwrap();
            let mut report = Report::default();
            let input = BootInput { log: &log, banks: &banks, command_line: None, userspace: None };
            judge(rules, &input, &mut report);
            report.findings().to_vec()
        };
        // What firmware itself did against the rules is no rule's to allow: it is told.
        let before = findings(&bytes);
        let only_firmwares = ["separator_missing", "separator_twice", "error_separator"];
        assert!(before.iter().all(|finding| only_firmwares.contains(&finding.code)), "{name}: {before:#?}\n{text}");
        // Each judged event, with another digest, is found where it stands.
        let log = BootLog::parse(&bytes).unwrap();
        for event in log.events().filter(|event| event.is_extended()) {
            if !u8::try_from(event.pcr).is_ok_and(|pcr| rules.judges(pcr)) {
                continue;
            }
            let mut other = bytes.clone();
            for bank in &banks {
                let digest = event.digest(*bank).unwrap();
                let at = digest.as_ptr() as usize - bytes.as_ptr() as usize;
                other[at] ^= 1;
            }
            let after = findings(&other);
            assert!(
                after.iter().any(|finding| finding.place.event == Some(event.number)),
                "{name}, event {}: {after:#?}",
                event.number
            );
        }
    }
}

#[test]
fn the_capture_of_a_virtual_machine_is_explained_down_to_its_command_line() {
    let Some(folder) = test_vectors::folder("vm-ovmf") else { return };
    let bytes = test_vectors::read(&folder, "binary_bios_measurements");
    let line = test_vectors::read(&folder, "cmdline.txt");
    let (text, _) = learned(&bytes, Some(line.trim_ascii_end()));
    assert!(text.contains("command_line = [") && text.contains("ima_policy=tcb"), "{text}");
    let said = std::str::from_utf8(line.trim_ascii_end()).unwrap();
    assert!(report_on(&text, &bytes, Some(said), None).is_clean());
    let other = format!("{said} init=/bin/sh");
    let codes: Vec<_> =
        report_on(&text, &bytes, Some(&other), None).findings().iter().map(|finding| finding.code).collect();
    assert!(codes.contains(&"command_line_unproven"), "{codes:?}");
}
