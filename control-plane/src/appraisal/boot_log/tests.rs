use proptest::prelude::*;

use super::*;
use crate::appraisal::test_vectors;

/// TCG_PCClientPCREvent.
fn old_event(pcr: u32, event_type: u32, digest: [u8; 20], data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_le_bytes();
    [&pcr.to_le_bytes()[..], &event_type.to_le_bytes(), &digest, &len, data].concat()
}

fn spec_id_event(algorithms: &[(u16, u16)]) -> Vec<u8> {
    let mut data = SPEC_ID_03.to_vec();
    data.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2]);
    data.extend_from_slice(&u32::try_from(algorithms.len()).unwrap().to_le_bytes());
    for (id, len) in algorithms {
        data.extend_from_slice(&id.to_le_bytes());
        data.extend_from_slice(&len.to_le_bytes());
    }
    data.push(0);
    old_event(0, EV_NO_ACTION, [0; 20], &data)
}

fn event(pcr: u32, event_type: u32, digests: &[(u16, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut bytes = [pcr.to_le_bytes(), event_type.to_le_bytes()].concat();
    bytes.extend_from_slice(&u32::try_from(digests.len()).unwrap().to_le_bytes());
    for (id, digest) in digests {
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(digest);
    }
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn locality(value: &[u8]) -> Vec<u8> {
    event(0, EV_NO_ACTION, &[(0xb, &[0; 32])], &[&STARTUP_LOCALITY[..], value].concat())
}

const SHA256_ONLY: &[(u16, u16)] = &[(0xb, 32)];

fn error(bytes: &[u8]) -> BootLogError {
    BootLog::parse(bytes).unwrap_err()
}

/// The `pcrs:` of a tpm2_eventlog YAML: (bank, index, value).
fn expected_pcrs(yaml: &str) -> Vec<(HashAlg, u8, String)> {
    let mut bank = None;
    let mut pcrs = Vec::new();
    for line in yaml.lines().skip_while(|line| !line.starts_with("pcrs:")).skip(1) {
        let (key, value) = line.trim().split_once(':').unwrap();
        match value.trim().strip_prefix("0x") {
            None => bank = HashAlg::from_name(key.trim()),
            Some(value) => pcrs.push((bank.unwrap(), key.trim().parse().unwrap(), value.to_owned())),
        }
    }
    assert!(!pcrs.is_empty());
    pcrs
}

#[test]
fn public_logs_replay_to_the_pcrs_that_tpm2_tools_computed() {
    let Some(folder) = test_vectors::folder("boot-logs") else { return };
    let mut compared = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(log_name) = name.strip_suffix(".expected.yaml") else { continue };
        let bytes = test_vectors::read(&folder, log_name);
        let log = ReplayedBootLog::replay(&bytes).unwrap_or_else(|error| panic!("{log_name}: {error}"));
        let yaml = String::from_utf8(test_vectors::read(&folder, &name)).unwrap();
        for (bank, index, value) in expected_pcrs(&yaml) {
            assert_eq!(log.value(bank, index).unwrap().to_string(), value, "{log_name} {bank}:{index}");
            compared += 1;
        }
    }
    assert!(compared > 70, "{compared}");
}

#[test]
fn every_public_log_is_read_to_its_end_and_the_bogus_one_is_refused() {
    let Some(folder) = test_vectors::folder("boot-logs") else { return };
    let count = |name: &str| BootLog::parse(&test_vectors::read(&folder, name)).map(|log| log.events().len());
    assert_eq!(count("short-no-action.bin"), Ok(1));
    assert_eq!(count("crypto-agile.bin"), Ok(27));
    assert_eq!(count("specid-vendordata.bin"), Ok(1));
    assert_eq!(count("event.bin"), Ok(2));
    for name in ["option-rom.bin", "rhel95-vm-secureboot.bin", "thinkpad-fedora41.bin", "event-uefi-sha1-log.bin"] {
        let count = count(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(count > 10, "{name}: {count}");
    }
    assert_eq!(count("bogus.bin"), Err(BootLogError::Truncated { event: 0 }));
    let short = test_vectors::read(&folder, "short-no-action.bin");
    let log = BootLog::parse(&short).unwrap();
    assert_eq!((log.startup_locality(), log.banks()), (3, &[HashAlg::Sha1][..]));
}

#[test]
fn the_captured_vm_log_replays_to_its_tpm() {
    let Some(folder) = test_vectors::folder("vm-ovmf") else { return };
    let log = ReplayedBootLog::replay(&test_vectors::read(&folder, "binary_bios_measurements")).unwrap();
    let pcrs = String::from_utf8(test_vectors::read(&folder, "pcrs.txt")).unwrap();
    let mut compared = 0;
    for line in pcrs.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (bank, index) = (HashAlg::from_name(fields[0]).unwrap(), fields[1].parse().unwrap());
        // IMA extended PCR 10 after the log had ended.
        if index != 10 {
            assert_eq!(log.value(bank, index).unwrap().to_string(), fields[2].to_lowercase(), "{bank}:{index}");
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 23);
}

#[test]
fn every_truncation_of_a_public_log_is_an_error_or_ends_between_events() {
    let Some(folder) = test_vectors::folder("vm-ovmf") else { return };
    let bytes = test_vectors::read(&folder, "binary_bios_measurements");
    let mut whole = 0;
    for len in 1..bytes.len() {
        whole += usize::from(BootLog::parse(&bytes[..len]).is_ok());
    }
    assert_eq!(whole, BootLog::parse(&bytes).unwrap().events().len() - 1);
}

#[test]
fn events_are_extended_in_order_and_no_action_is_not() {
    let (one, two) = ([1; 32], [2; 32]);
    let bytes = [
        spec_id_event(SHA256_ONLY),
        event(4, 0x8000_0003, &[(0xb, &one)], b"a"),
        event(u32::MAX, EV_NO_ACTION, &[(0xb, &[9; 32])], b"ignored"),
        event(4, 0x8000_0003, &[(0xb, &two)], b""),
    ]
    .concat();
    let log = BootLog::parse(&bytes).unwrap();
    assert_eq!(log.banks(), [HashAlg::Sha256]);
    let replayed = ReplayedBootLog::of(&log);
    let sha256 = HashAlg::Sha256;
    let expected = sha256.digest(&[&sha256.digest(&[&[0; 32], &one]), &two]);
    assert_eq!(replayed.value(sha256, 4), Some(&expected));
    assert_eq!(replayed.value(sha256, 5), Some(&Digest::zero(sha256)));
    assert_eq!(replayed.value(sha256, 17).unwrap().as_bytes(), [0xff; 32]);
    assert_eq!(replayed.value(HashAlg::Sha1, 4), None);
    assert!(replayed.touches(4) && !replayed.touches(5) && !replayed.touches(255));
    assert_eq!(replayed.event_count(), 4);
    assert_eq!(replayed.digest(), sha256.digest(&[&bytes]).as_bytes());
}

#[test]
fn startup_locality_is_pcr_0s_initial_value() {
    let crtm = event(0, 8, &[(0xb, &[7; 32])], b"");
    for (value, last) in [(None, 0), (Some(0), 0), (Some(3), 3), (Some(4), 4)] {
        let mut bytes = spec_id_event(SHA256_ONLY);
        if let Some(value) = value {
            bytes.extend_from_slice(&locality(&[value]));
        }
        bytes.extend_from_slice(&crtm);
        let mut initial = [0; 32];
        initial[31] = last;
        let log = ReplayedBootLog::replay(&bytes).unwrap();
        assert_eq!(log.value(HashAlg::Sha256, 0), Some(&HashAlg::Sha256.digest(&[&initial, &[7; 32]])));
    }
}

#[test]
fn startup_locality_comes_once_first_and_with_a_known_value() {
    let start = spec_id_event(SHA256_ONLY);
    let crtm = event(0, 8, &[(0xb, &[7; 32])], b"");
    let bad = |event| BootLogError::BadStartupLocality { event };
    assert_eq!(error(&[start.clone(), locality(&[1])].concat()), bad(1));
    assert_eq!(error(&[start.clone(), locality(&[])].concat()), bad(1));
    assert_eq!(error(&[start.clone(), locality(&[3, 0])].concat()), bad(1));
    assert_eq!(error(&[start.clone(), locality(&[3]), locality(&[3])].concat()), bad(2));
    assert_eq!(error(&[start, crtm, locality(&[3])].concat()), bad(2));
}

#[test]
fn an_event_with_other_digests_than_the_first_is_refused() {
    let start = spec_id_event(&[(4, 20), (0xb, 32)]);
    let both = event(1, 1, &[(4, &[0; 20]), (0xb, &[0; 32])], b"");
    let turned = event(1, 1, &[(0xb, &[0; 32]), (4, &[0; 20])], b"");
    let one = event(1, 1, &[(0xb, &[0; 32])], b"");
    assert!(BootLog::parse(&[start.clone(), both.clone(), turned].concat()).is_ok());
    let only_one = [start.clone(), one.clone(), one.clone()].concat();
    assert_eq!(BootLog::parse(&only_one).unwrap().banks(), [HashAlg::Sha256]);
    let wrong = BootLogError::WrongDigests { event: 2 };
    assert_eq!(error(&[start.clone(), both.clone(), one.clone()].concat()), wrong);
    assert_eq!(error(&[start, one, both].concat()), wrong);
}

#[test]
fn an_event_with_digests_that_were_not_announced_is_refused() {
    let start = spec_id_event(&[(4, 20), (0xb, 32)]);
    let with = |digests: &[(u16, &[u8])]| [start.clone(), event(1, 1, digests, b"")].concat();
    let wrong = BootLogError::WrongDigests { event: 1 };
    assert_eq!(error(&with(&[])), wrong);
    assert_eq!(error(&with(&[(4, &[0; 20]), (4, &[0; 20])])), wrong);
    assert_eq!(error(&with(&[(4, &[0; 20]), (0xc, &[0; 48])])), wrong);
    assert_eq!(error(&with(&[(4, &[0; 20]), (0xb, &[0; 32]), (0xc, &[0; 48])])), wrong);
}

#[test]
fn a_bank_of_an_unknown_algorithm_is_skipped_by_its_length() {
    let bytes =
        [spec_id_event(&[(0x12, 32), (0xb, 32)]), event(1, 1, &[(0x12, &[5; 32]), (0xb, &[6; 32])], b"x")].concat();
    let log = BootLog::parse(&bytes).unwrap();
    assert_eq!(log.banks(), [HashAlg::Sha256]);
    assert_eq!(log.events().nth(1).unwrap().digest(HashAlg::Sha256), Some(&[6; 32][..]));
}

#[test]
fn a_pcr_that_does_not_exist_is_refused() {
    let bytes = [spec_id_event(SHA256_ONLY), event(24, 1, &[(0xb, &[0; 32])], b"")].concat();
    assert_eq!(error(&bytes), BootLogError::NoSuchPcr { event: 1, pcr: 24 });
}

#[test]
fn padding_behind_the_last_event_is_an_error() {
    let bytes = [spec_id_event(SHA256_ONLY), event(1, 1, &[(0xb, &[0; 32])], b"")].concat();
    assert_eq!(error(&[bytes.clone(), vec![0; 40]].concat()), BootLogError::WrongDigests { event: 2 });
    assert_eq!(error(&[bytes.clone(), vec![0; 3]].concat()), BootLogError::Truncated { event: 2 });
    assert_eq!(error(&[bytes, vec![0xff; 40]].concat()), BootLogError::WrongDigests { event: 2 });
    assert_eq!(error(&[]), BootLogError::Empty);
    assert_eq!(error(&vec![0; limits::MAX_BOOT_LOG_LEN + 1]), BootLogError::TooLong);
}

#[test]
fn a_malformed_spec_id_event_is_refused() {
    assert_eq!(error(&spec_id_event(&[])), BootLogError::BadSpecId);
    assert_eq!(error(&spec_id_event(&[(0xb, 20)])), BootLogError::BadSpecId);
    assert_eq!(error(&spec_id_event(&[(0xb, 32), (0xb, 32)])), BootLogError::BadSpecId);
    assert_eq!(error(&spec_id_event(&[(0x12, 65)])), BootLogError::BadSpecId);
    let many: Vec<_> = (0x100..0x111).map(|id| (id, 32)).collect();
    assert_eq!(error(&spec_id_event(&many)), BootLogError::BadSpecId);
    let data = [&SPEC_ID_03[..], &[0; 8], &[0xff; 4]].concat();
    assert_eq!(error(&old_event(0, EV_NO_ACTION, [0; 20], &data)), BootLogError::BadSpecId);
}

#[test]
fn an_error_comes_with_the_offset_of_its_event() {
    let start = spec_id_event(SHA256_ONLY);
    let one = event(1, 1, &[(0xb, &[0; 32])], b"abc");
    let offset = start.len() + one.len();
    let bytes = [start.clone(), one.clone(), one.clone()].concat();
    for end in offset + 1..bytes.len() {
        let (error, at) = BootLog::parse_at(&bytes[..end]).unwrap_err();
        assert_eq!((error, at), (BootLogError::Truncated { event: 2 }, offset), "{end}");
    }
    let bad_pcr = event(24, 1, &[(0xb, &[0; 32])], b"");
    let at = |bytes: &[u8]| BootLog::parse_at(bytes).unwrap_err().1;
    assert_eq!(at(&[start.clone(), one.clone(), bad_pcr].concat()), offset);
    assert_eq!(at(&[start, one.clone(), event(1, 1, &[], b"")].concat()), offset);
    assert_eq!((at(&[]), at(&one[..5]), at(&vec![0; limits::MAX_BOOT_LOG_LEN + 1])), (0, 0, 0));
}

#[test]
fn only_pcrs_that_an_event_extended_are_told_as_replayed() {
    let bytes = [spec_id_event(SHA256_ONLY), locality(&[3]), event(4, 1, &[(0xb, &[1; 32])], b"")].concat();
    let log = BootLog::parse(&bytes).unwrap();
    let value = HashAlg::Sha256.digest(&[&[0; 32], &[1; 32]]);
    assert_eq!(log.replay_extended(HashAlg::Sha256), [(4, value)].into());
    assert!(log.replay_extended(HashAlg::Sha1).is_empty());
}

#[test]
fn types_have_their_names_and_no_action_tells_what_it_is() {
    assert_eq!(event_type_name(0x8000_00e0), "EV_EFI_VARIABLE_AUTHORITY");
    assert_eq!((event_type_name(0xd), event_type_name(0xbeef)), ("EV_IPL".into(), "0x0000beef".into()));
    let told = |data: &[u8]| {
        let bytes = event(0, EV_NO_ACTION, &[(0xb, &[0; 32])], data);
        let log = [spec_id_event(SHA256_ONLY), bytes].concat();
        let log = BootLog::parse(&log).unwrap();
        let event = *log.events().nth(1).unwrap();
        format!("{:?}", event.no_action())
    };
    assert_eq!(told(b"StartupLocality\0\x03"), "Some(StartupLocality(3))");
    assert_eq!(told(b"SP800-155 Event3\x01"), "Some(PlatformId { version: 3, body: [1] })");
    assert_eq!(told(b"Spec ID Event00\0"), "Some(SpecId)");
    assert_eq!((told(b""), told(&[7; 40])), ("Some(Other)".into(), "Some(Other)".into()));
    let crtm = [spec_id_event(SHA256_ONLY), event(0, 8, &[(0xb, &[0; 32])], b"StartupLocality\0\x03")].concat();
    assert_eq!(BootLog::parse(&crtm).unwrap().events().nth(1).unwrap().no_action(), None);
}

#[test]
fn sixteen_algorithms_are_read_and_seventeen_refused() {
    let announced: Vec<(u16, u16)> = (0x100..0x10f).map(|id| (id, 32)).chain([(0xb, 32)]).collect();
    let digests: Vec<(u16, &[u8])> = announced.iter().map(|(id, _)| (*id, &[6; 32][..])).collect();
    let bytes = [spec_id_event(&announced), event(1, 1, &digests, b"")].concat();
    assert_eq!(BootLog::parse(&bytes).unwrap().banks(), [HashAlg::Sha256]);
    let more = [&announced[..], &[(0xc, 48)]].concat();
    assert_eq!(error(&spec_id_event(&more)), BootLogError::BadSpecId);
}

#[test]
fn logs_without_an_expected_value_replay_to_what_tpm2_tools_computes() {
    let Some(folder) = test_vectors::folder("boot-logs") else { return };
    let mut compared = 0;
    for name in ["option-rom.bin", "crypto-agile.bin", "rhel95-vm-secureboot.bin", "thinkpad-fedora41.bin"] {
        let bytes = test_vectors::read(&folder, name);
        let log = ReplayedBootLog::replay(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let run = std::process::Command::new("tpm2_eventlog").arg(folder.join(name)).output();
        let Ok(output) = run.map_err(|error| println!("skipped: tpm2_eventlog does not run: {error}")) else { return };
        if !output.status.success() {
            println!("{name}: tpm2_eventlog has no opinion ({})", output.status);
            continue;
        }
        for (bank, index, value) in expected_pcrs(&String::from_utf8_lossy(&output.stdout)) {
            let ours = log.value(bank, index).unwrap();
            // Versions differ in whether they know of StartupLocality.
            if index == 0 && BootLog::parse(&bytes).unwrap().startup_locality() != 0 && ours.to_string() != value {
                println!("{name}: tpm2_eventlog does not begin PCR 0 at locality 3");
                continue;
            }
            assert_eq!(ours.to_string(), value, "{name} {bank}:{index}");
            compared += 1;
        }
    }
    println!("{compared} values compared with tpm2_eventlog");
}

proptest! {
    #[test]
    fn any_bytes_are_a_log_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400), agile: bool) {
        let bytes = if agile { [spec_id_event(SHA256_ONLY), bytes].concat() } else { bytes };
        if let Ok(log) = BootLog::parse(&bytes) {
            let _ = ReplayedBootLog::of(&log);
        }
    }

    #[test]
    fn a_damaged_log_never_panics(at in 0usize..200, byte: u8, more in 0u32..30) {
        let mut bytes = [spec_id_event(SHA256_ONLY), locality(&[3]), event(more, more, &[(0xb, &[1; 32])], b"abc")].concat();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(log) = BootLog::parse(&bytes) {
            let _ = ReplayedBootLog::of(&log);
        }
    }
}
