//! `[boot]` rules that a boot log fulfils. Events are named by what they call themselves: the words of whoever wrote the
//! log, which help a person to read the policy; nothing is judged by them.

use std::collections::{BTreeMap, BTreeSet};

use protocol::tpm::alg::HashAlg;

use crate::appraisal::{
    boot_log::{BootLog, Event},
    boot_rules::{is_builtin, proven_command_line},
    policy::write::{BootText, EventText, KeyText},
    uefi::{GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, Signature, Variable, sha256, signature_lists, utf16},
};

/// PCRs whose events are listed where the log has some: code, Secure Boot, boot loader, kernel and what belongs to them.
/// Firmware's settings (1, 3, 5, 6) say less event by event than as a value.
const PCRS: [u8; 11] = [0, 2, 4, 7, 8, 9, 11, 12, 13, 14, 15];
/// PCRs in which a command line is looked for.
const COMMAND_LINE_PCRS: u32 = 1 << 8 | 1 << 9 | 1 << 12;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const EV_EFI_RUNTIME_SERVICES_DRIVER: u32 = 0x8000_0005;
const EV_EFI_VARIABLE_AUTHORITY: u32 = 0x8000_00e0;
/// Shim's variable of revocation levels.
const SBAT_LEVEL: &str = "SbatLevel";
/// An event's name, in characters.
const MAX_NAME_LEN: usize = 100;
/// What firmware measures at the end of its own events in a PCR.
const SEPARATORS: [[u8; 4]; 2] = [[0; 4], [0xff; 4]];

/// The rules that this log fulfils, in `banks` (of which it has to have one) and with what the node says its command line
/// is.
///
/// PCRs in `skip` (bits) get no rules; nor does a firmware PCR that has not its one separator, whose events nothing sets
/// apart.
pub(super) fn learn(log: &BootLog<'_>, banks: &[HashAlg], command_line: Option<&[u8]>, skip: u32) -> BootText {
    let banks: Vec<HashAlg> = banks.iter().copied().filter(|bank| log.banks().contains(bank)).collect();
    let mut rules = BootText::default();
    if banks.is_empty() {
        return rules;
    }
    let is_separator = |event: &Event<'_>| SEPARATORS.iter().any(|data| hashes_to(event, &banks, data));
    let extended: Vec<&Event<'_>> = log.events().filter(|event| event.is_extended()).collect();
    let has_separator = |pcr: u8| {
        pcr > 7 || extended.iter().filter(|event| event.pcr == u32::from(pcr) && is_separator(event)).count() == 1
    };
    let touched = log.extended_mask() & !skip;
    rules.pcrs = PCRS.into_iter().filter(|pcr| touched & (1 << pcr) != 0 && has_separator(*pcr)).collect();
    let is_judged = |event: &Event<'_>| u8::try_from(event.pcr).is_ok_and(|pcr| rules.pcrs.contains(&pcr));
    let events: Vec<&Event<'_>> = extended.into_iter().filter(|event| is_judged(event)).collect();
    let separator = events.iter().find(|event| event.pcr == 7 && is_separator(event)).map(|event| event.number);

    let mut ruled = BTreeSet::new();
    // Its rule has these PCRs quoted, which a PCR that is to be skipped must not be.
    if skip & COMMAND_LINE_PCRS == 0 {
        let said = command_line.and_then(|text| std::str::from_utf8(text).ok());
        let proven = |event: &&Event<'_>| Some((event.number, proven_command_line(event, &banks, said)?));
        let lines: Vec<(usize, String)> = events.iter().filter_map(proven).collect();
        let is_rule = |(_, line): &(usize, String)| {
            line.len() <= protocol::limits::MAX_COMMAND_LINE_LEN && !line.chars().any(char::is_control)
        };
        // A rule has to hold for all of them.
        if lines.iter().all(is_rule) {
            ruled.extend(lines.iter().map(|(number, _)| *number));
            rules.command_line = lines.into_iter().map(|(_, line)| line).collect();
        }
    }
    secure_boot(&events, &banks, separator, &mut rules, &mut ruled);
    let mut listed = BTreeSet::new();
    for event in events.iter().filter(|event| !is_builtin(event, &banks) && !ruled.contains(&event.number)) {
        let digests: BTreeSet<Vec<u8>> =
            banks.iter().filter_map(|bank| event.digest(*bank)).map(<[u8]>::to_vec).collect();
        let Ok(pcr) = u8::try_from(event.pcr) else { continue };
        if !digests.is_empty() && listed.insert((pcr, digests.clone())) {
            // Boot loaders leave out commands and files as they go; firmware's code and keys are there in every boot.
            let required = matches!(pcr, 0 | 2 | 4 | 7);
            rules.events.push(EventText { name: name(event), pcr, digests, required });
        }
    }
    rules
}

fn hashes_to(event: &Event<'_>, banks: &[HashAlg], bytes: &[u8]) -> bool {
    banks.iter().all(|bank| event.digest(*bank) == Some(bank.digest(&[bytes]).as_bytes()))
}

/// Secure Boot's state, what its variables hold, who signed what was started, shim's levels. What cannot be read is left
/// to be listed by its digest.
fn secure_boot(
    events: &[&Event<'_>],
    banks: &[HashAlg],
    separator: Option<usize>,
    rules: &mut BootText,
    ruled: &mut BTreeSet<usize>,
) {
    let variables: Vec<(&Event<'_>, Variable<'_>)> = events
        .iter()
        .filter(|event| event.pcr == 7 && hashes_to(event, banks, event.data))
        .filter_map(|event| Some((*event, Variable::decode(event.data).ok()?)))
        .collect();
    // Once, and before the separator: what a rule on it asks for.
    let once = |name: &str, vendor: [u8; 16]| {
        let mut found = variables.iter().filter(|(event, variable)| {
            event.event_type != EV_EFI_VARIABLE_AUTHORITY && variable.name == name && variable.vendor == vendor
        });
        let first = found.next().filter(|(event, _)| {
            event.event_type == EV_EFI_VARIABLE_DRIVER_CONFIG && separator.is_some_and(|at| event.number < at)
        });
        first.filter(|_| found.next().is_none())
    };
    if let Some((event, variable)) = once("SecureBoot", GLOBAL_VARIABLE)
        && let [value @ (0 | 1)] = variable.data
    {
        rules.secure_boot = Some(*value == 1);
        ruled.insert(event.number);
    }
    for (name, vendor) in [
        ("PK", GLOBAL_VARIABLE),
        ("KEK", GLOBAL_VARIABLE),
        ("db", IMAGE_SECURITY_DATABASE),
        ("dbx", IMAGE_SECURITY_DATABASE),
    ] {
        let Some((event, variable)) = once(name, vendor) else { continue };
        let Ok(signatures) = signature_lists(variable.data) else { continue };
        let ids: BTreeSet<Vec<u8>> = signatures.iter().map(Signature::id).map(|id| id.to_vec()).collect();
        // Revocations may grow; keys may not.
        let rule = if name == "dbx" && !ids.is_empty() {
            KeyText { only: None, require: ids }
        } else {
            KeyText { only: Some(ids), require: BTreeSet::new() }
        };
        rules.keys.insert(name.to_lowercase(), rule);
        ruled.insert(event.number);
    }
    // A rule has to hold for each of them, whatever type it has.
    let sbat: Vec<_> = variables.iter().filter(|(_, variable)| variable.name == SBAT_LEVEL).collect();
    let read: Vec<_> = sbat.iter().map(|(_, variable)| sbat_levels(variable.data)).collect();
    if let Some((first, others)) = read.split_first() {
        for (component, generation) in first {
            let least = others.iter().try_fold(*generation, |least, levels| Some(least.min(*levels.get(component)?)));
            rules.sbat.extend(least.map(|least| format!("{component},{least}")));
        }
        if !rules.sbat.is_empty() {
            ruled.extend(sbat.iter().map(|(event, _)| event.number));
        }
    }
    let mut authorities = BTreeSet::new();
    for (event, variable) in variables.iter().filter(|(event, _)| event.event_type == EV_EFI_VARIABLE_AUTHORITY) {
        let forms = [variable.data.get(16..).unwrap_or_default(), variable.data];
        let certificate = forms.into_iter().find(|der| crate::ek::certificate_subject(der).is_some());
        if let Some(certificate) = certificate.filter(|_| variable.name != SBAT_LEVEL) {
            authorities.insert(sha256(certificate).to_vec());
            ruled.insert(event.number);
        }
    }
    if !authorities.is_empty() {
        rules.keys.insert("authorities".to_owned(), KeyText { only: Some(authorities), require: BTreeSet::new() });
    }
}

/// Components and generations of SbatLevel, whose lines are such as `shim,4` or `sbat,1,2024010900`; of a component that
/// comes again the first.
fn sbat_levels(data: &[u8]) -> BTreeMap<String, u32> {
    let mut levels = BTreeMap::new();
    for line in String::from_utf8_lossy(data).lines() {
        let Some((component, rest)) = line.split_once(',') else { continue };
        let generation = rest.split(',').next().and_then(|text| text.trim_end_matches('\0').parse().ok());
        levels.entry(component.to_owned()).or_insert(generation);
    }
    let is_name = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic());
    levels.into_iter().filter(|(name, _)| is_name(name)).filter_map(|(name, level)| Some((name, level?))).collect()
}

/// What an event calls itself.
fn name(event: &Event<'_>) -> String {
    let text = match event.event_type {
        EV_EFI_BOOT_SERVICES_APPLICATION..=EV_EFI_RUNTIME_SERVICES_DRIVER => image_path(event.data),
        _ => Variable::decode(event.data).ok().map(|variable| variable.name).or_else(|| text(event.data)),
    };
    let text = text.map(|text| text.chars().filter(|c| !c.is_control()).take(MAX_NAME_LEN).collect::<String>());
    match text {
        Some(text) if !text.trim().is_empty() => text,
        _ => format!("{}, event {}", event.type_name(), event.number),
    }
}

fn text(data: &[u8]) -> Option<String> {
    let is_text = |text: &str| text.len() > 1 && !text.chars().any(char::is_control);
    let plain = std::str::from_utf8(data).ok().map(|text| text.trim_end_matches('\0').to_owned());
    let wide = || utf16(data).map(|text| text.trim_end_matches('\0').to_owned()).filter(|text| text.is_ascii());
    plain.filter(|text| is_text(text)).or_else(|| wide().filter(|text| is_text(text)))
}

/// The file's path in the device path of a UEFI_IMAGE_LOAD_EVENT, if it has one.
fn image_path(data: &[u8]) -> Option<String> {
    // ImageLocationInMemory, ImageLengthInMemory, ImageLinkTimeAddress, LengthOfDevicePath: u64 each.
    let mut rest = data.get(32..)?;
    let mut path = String::new();
    // EFI_DEVICE_PATH_PROTOCOL: type, subtype, length of the whole node.
    while let [kind, subtype, low, high, ..] = rest {
        let (node, behind) = rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
        let body = node.get(4..)?;
        if (*kind, *subtype) == (4, 4) {
            path.push_str(utf16(body)?.trim_end_matches('\0'));
        }
        rest = behind;
    }
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appraisal::{
        boot_rules::{BootInput, judge},
        finding::Report,
        policy::{Policy, write::PolicyText},
        test_vectors,
    };

    fn policy(rules: BootText) -> Policy {
        let text = PolicyText {
            name: "learned".into(),
            accept: crate::appraisal::policy::Exception::ALL.into(),
            boot: Some(rules),
            ..PolicyText::default()
        };
        let text = text.to_toml();
        Policy::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn judged(policy: &Policy, log: &BootLog<'_>, banks: &[HashAlg], command_line: Option<&[u8]>) -> Report {
        let mut report = Report::default();
        judge(policy.boot().unwrap(), &BootInput { log, banks, command_line, userspace: None }, &mut report);
        report
    }

    /// Public logs, with the command line where it is known.
    fn logs() -> Vec<(String, Vec<u8>, Option<Vec<u8>>)> {
        let mut logs = Vec::new();
        if let Some(folder) = test_vectors::folder("boot-logs") {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if name.ends_with(".bin") && name != "bogus.bin" {
                    logs.push((name.clone(), test_vectors::read(&folder, &name), None));
                }
            }
        }
        if let Some(folder) = test_vectors::folder("vm-ovmf") {
            let line = test_vectors::read(&folder, "cmdline.txt").trim_ascii_end().to_vec();
            logs.push(("vm-ovmf".into(), test_vectors::read(&folder, "binary_bios_measurements"), Some(line)));
        }
        logs
    }

    #[test]
    fn a_learned_policy_accepts_its_log_and_no_other_digest_in_it() {
        for (name, bytes, line) in logs() {
            let log = BootLog::parse(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            let Some(bank) = log.banks().last().copied() else { continue };
            let rules = learn(&log, &[bank], line.as_deref(), 0);
            let judged_pcrs = rules.pcrs.clone();
            if judged_pcrs.is_empty() {
                continue;
            }
            let policy = policy(rules);
            let report = judged(&policy, &log, &[bank], line.as_deref());
            assert!(report.is_clean(), "{name}: {:?}", report.findings());
            // One bit of one digest, event by event.
            let events: Vec<_> =
                log.events().filter(|event| judged_pcrs.iter().any(|pcr| u32::from(*pcr) == event.pcr)).collect();
            for event in events.into_iter().filter(|event| event.is_extended()) {
                let digest = event.digest(bank).unwrap();
                let at = digest.as_ptr() as usize - bytes.as_ptr() as usize;
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                let log = BootLog::parse(&changed).unwrap();
                let report = judged(&policy, &log, &[bank], line.as_deref());
                let at_event =
                    |finding: &&crate::appraisal::finding::Finding| finding.place.event == Some(event.number);
                assert!(report.findings().iter().any(|it| at_event(&it)), "{name}: {}", event.number);
            }
        }
    }

    #[test]
    fn images_are_named_by_their_path() {
        let mut data = vec![0; 32];
        data.extend([4, 1, 8, 0, 1, 2, 3, 4]);
        let path: Vec<u8> = "\\EFI\\x.efi\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        data.extend([4, 4, u8::try_from(4 + path.len()).unwrap(), 0]);
        data.extend(&path);
        data.extend([0x7f, 0xff, 4, 0]);
        assert_eq!(image_path(&data).as_deref(), Some("\\EFI\\x.efi"));
        // A node that is shorter than its own head, and one that ends behind the data.
        for len in [0, 3, 200] {
            let mut broken = data.clone();
            broken[34] = len;
            assert_eq!(image_path(&broken), None, "{len}");
        }
        for end in 0..data.len() {
            let _ = image_path(&data[..end]);
        }
    }
}
