use proptest::prelude::*;

use super::*;
use crate::appraisal::test_vectors;

const SHA256: HashAlg = HashAlg::Sha256;

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

fn raw_entry(pcr: u32, hash: [u8; 20], template: &[u8], data: &[u8]) -> Vec<u8> {
    [&pcr.to_le_bytes()[..], &hash, &sized(template), &sized(data)].concat()
}

fn sha1(data: &[u8]) -> [u8; 20] {
    HashAlg::Sha1.digest(&[data]).as_bytes().try_into().unwrap()
}

/// An `ima-ng` entry and its template data.
fn ng(path: &str) -> (Vec<u8>, Vec<u8>) {
    let digest = [&b"sha256:\0"[..], &SHA256.digest(&[path.as_bytes()])].concat();
    let data = [sized(&digest), sized(&[path.as_bytes(), &[0]].concat())].concat();
    (raw_entry(10, sha1(&data), b"ima-ng", &data), data)
}

fn extended(bank: HashAlg, old: &Digest, data: &[u8]) -> Digest {
    bank.digest(&[old, &bank.digest(&[data])])
}

/// A list of `count` entries, and PCR 10 of `bank` after each of them (from none).
fn list(count: usize, bank: HashAlg) -> (Vec<Vec<u8>>, Vec<Digest>) {
    let mut pcrs = vec![Digest::zero(bank)];
    let mut entries = Vec::new();
    for number in 0..count {
        let (entry, data) = ng(&format!("/bin/{number}"));
        pcrs.push(extended(bank, pcrs.last().unwrap(), &data));
        entries.push(entry);
    }
    (entries, pcrs)
}

fn from_zero(target: Digest) -> ImaReplay {
    ImaReplay::new(&ImaStart::beginning(), [(SHA256, target)])
}

#[test]
fn the_captured_vm_list_replays_to_its_tpm_in_both_banks() {
    let Some(folder) = test_vectors::folder("vm-ovmf") else { return };
    let list = test_vectors::read(&folder, "ima_binary_runtime_measurements");
    let ascii = String::from_utf8(test_vectors::read(&folder, "ima_ascii_runtime_measurements")).unwrap();
    let pcrs = String::from_utf8(test_vectors::read(&folder, "pcrs.txt")).unwrap();
    let target = |bank: HashAlg| {
        let line = pcrs.lines().find(|line| line.starts_with(&format!("{bank} 10 "))).unwrap();
        let value = hex::decode(line.split_whitespace().nth(2).unwrap()).unwrap();
        (bank, bank.read_digest(&value).unwrap())
    };
    let targets = [target(HashAlg::Sha1), target(SHA256)];
    let mut replay = ImaReplay::new(&ImaStart::beginning(), targets);
    let mut lines = ascii.lines();
    replay
        .push_with(&list, |entry| {
            let fields: Vec<_> = lines.next().unwrap().split(' ').collect();
            assert_eq!(hex::encode(entry.template_hash), fields[1]);
            assert_eq!(entry.template, fields[2].as_bytes());
            let (algorithm, digest) = entry.file_digest().unwrap();
            assert_eq!(format!("{}:{}", String::from_utf8_lossy(algorithm), hex::encode(digest)), fields[3]);
            assert_eq!(String::from_utf8_lossy(entry.path().unwrap()), fields[4]);
        })
        .unwrap();
    let replayed = replay.finish().unwrap();
    assert_eq!(replayed.entries(), u64::try_from(ascii.lines().count()).unwrap());
    // Two files were open for writing while they were measured.
    assert_eq!((replayed.violations(), replayed.other_pcr_entries()), (2, 0));
    assert_eq!(replayed.value(SHA256), Some(&targets[1].1));
}

/// An entry of an ASCII list in the binary form. Fields that print as hex are `sig` and `buf`.
fn from_ascii(line: &str) -> Vec<u8> {
    let fields: Vec<_> = line.split(' ').collect();
    let (algorithm, digest) = fields[3].split_once(':').unwrap();
    let digest = [algorithm.as_bytes(), b":\0", &hex::decode(digest).unwrap()].concat();
    let mut data = [sized(&digest), sized(&[fields[4].as_bytes(), &[0]].concat())].concat();
    if fields[2] != "ima-ng" {
        data.extend(sized(&hex::decode(fields.get(5).copied().unwrap_or_default()).unwrap()));
    }
    let hash = hex::decode(fields[1]).unwrap().try_into().unwrap();
    raw_entry(fields[0].parse().unwrap(), hash, fields[2].as_bytes(), &data)
}

#[test]
fn public_lists_have_the_template_hashes_they_say() {
    let Some(folder) = test_vectors::folder("ima") else { return };
    for (name, field) in
        [("ubuntu1604-ima-ng-sha1.ascii", None), ("ima-sig-4.ascii", Some("sig")), ("ima-buf-11.ascii", Some("buf"))]
    {
        let text = String::from_utf8(test_vectors::read(&folder, name)).unwrap();
        let entries: Vec<_> = text.lines().map(from_ascii).collect();
        let zero = Digest::zero(HashAlg::Sha1);
        let target = entries.iter().fold(zero, |old, bytes| {
            let (entry, _) = parse_entry(bytes, 0).unwrap().unwrap();
            HashAlg::Sha1.digest(&[&old, if entry.is_violation() { &[0xff; 20] } else { entry.template_hash }])
        });
        let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha1, target)]);
        replay
            .push_with(&entries.concat(), |entry| {
                assert!(entry.file_digest().is_some() && entry.path().is_some());
                assert!(field.is_none_or(|field| entry.field(field).is_some()));
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(replay.finish().unwrap().entries(), u64::try_from(entries.len()).unwrap());
    }
}

#[test]
fn entries_behind_the_quoted_value_count_for_nothing() {
    let (entries, pcrs) = list(5, SHA256);
    let mut replay = from_zero(pcrs[3]);
    let mut seen = 0;
    replay.push_with(&entries.concat(), |_| seen += 1).unwrap();
    replay.push(b"and nothing behind is even parsed").unwrap();
    assert!(replay.is_matched());
    assert_eq!((replay.finish().unwrap().entries(), seen), (3, 3));
}

#[test]
fn a_list_that_is_split_anywhere_replays_the_same() {
    let (entries, pcrs) = list(3, SHA256);
    let bytes = entries.concat();
    for at in 0..=bytes.len() {
        let mut replay = from_zero(pcrs[3]);
        replay.push(&bytes[..at]).unwrap();
        replay.push(&bytes[at..]).unwrap();
        assert_eq!(replay.finish().unwrap().entries(), 3);
    }
    let mut replay = from_zero(pcrs[3]);
    bytes.iter().for_each(|byte| replay.push(&[*byte]).unwrap());
    assert_eq!(replay.finish().unwrap().entries(), 3);
}

#[test]
fn a_list_without_the_quoted_value_is_refused() {
    let (entries, pcrs) = list(3, SHA256);
    let finish = |target, bytes: &[u8]| {
        let mut replay = from_zero(target);
        replay.push(bytes).unwrap();
        replay.finish()
    };
    assert_eq!(finish(SHA256.digest(&[b"other"]), &entries.concat()), Err(ImaError::NoSuchPrefix { entries: 3 }));
    assert_eq!(finish(pcrs[3], &entries[..2].concat()), Err(ImaError::NoSuchPrefix { entries: 2 }));
    let swapped = [entries[1].clone(), entries[0].clone(), entries[2].clone()].concat();
    assert_eq!(finish(pcrs[3], &swapped), Err(ImaError::NoSuchPrefix { entries: 3 }));
    let all = entries.concat();
    assert_eq!(finish(pcrs[3], &all[..all.len() - 1]), Err(ImaError::NoSuchPrefix { entries: 2 }));
    assert_eq!(ImaReplay::new(&ImaStart::beginning(), []).finish(), Err(ImaError::NotQuoted));
}

#[test]
fn banks_have_to_fit_at_the_same_entry() {
    let (entries, sha256) = list(3, SHA256);
    let (_, sha1) = list(3, HashAlg::Sha1);
    let replay = |sha1: Digest, sha256: Digest| {
        let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha1, sha1), (SHA256, sha256)]);
        replay.push(&entries.concat()).unwrap();
        replay.finish().map(|replayed| replayed.entries())
    };
    assert_eq!(replay(sha1[2], sha256[2]), Ok(2));
    assert_eq!(replay(sha1[2], sha256[3]), Err(ImaError::NoSuchPrefix { entries: 3 }));
}

#[test]
fn a_replay_goes_on_from_what_a_positive_verdict_remembers() {
    let (entries, pcrs) = list(5, SHA256);
    let policy = Some([1; 32]);
    let previous =
        Checkpoint { ima_entries: 2, ima_pcrs: vec![(SHA256.id(), pcrs[2].to_vec())], policy, ..Checkpoint::default() };
    let start = ImaStart::resume(Some(&previous), Epoch::Same, policy, [SHA256]);
    assert_eq!(start.entries(), 2);
    let mut replay = ImaReplay::new(&start, [(SHA256, pcrs[5])]);
    replay.push(&entries[2..].concat()).unwrap();
    let replayed = replay.finish().unwrap();
    assert_eq!((replayed.entries(), replayed.to_checkpoint()), (5, vec![(SHA256.id(), pcrs[5].to_vec())]));
    assert!(ImaReplay::new(&start, [(SHA256, pcrs[2])]).is_matched());

    let from = |epoch, policy, banks: &[HashAlg]| {
        ImaStart::resume(Some(&previous), epoch, policy, banks.iter().copied()).entries()
    };
    assert_eq!(from(Epoch::NewBoot, policy, &[SHA256]), 0);
    assert_eq!(from(Epoch::Same, Some([2; 32]), &[SHA256]), 0);
    assert_eq!(from(Epoch::Same, policy, &[SHA256, HashAlg::Sha1]), 0);
    assert_eq!(from(Epoch::Same, policy, &[]), 0);
    assert_eq!(ImaStart::resume(None, Epoch::First, policy, [SHA256]), ImaStart::beginning());
    // A target that the start does not know begins at zero, with the others.
    let replay = ImaReplay::new(&start, [(SHA256, pcrs[5]), (HashAlg::Sha1, Digest::zero(HashAlg::Sha1))]);
    assert_eq!(replay.entries(), 0);
}

#[test]
fn a_violation_extends_ones() {
    let (first, data) = ng("/a");
    let (mut violation, _) = ng("/open-for-writing");
    violation[4..24].fill(0);
    let after = extended(SHA256, &Digest::zero(SHA256), &data);
    let target = SHA256.digest(&[&after, &[0xff; 32]]);
    let mut replay = from_zero(target);
    let mut violations = Vec::new();
    replay.push_with(&[first, violation].concat(), |entry| violations.push(entry.is_violation())).unwrap();
    assert_eq!(violations, [false, true]);
    assert_eq!(replay.finish().unwrap().violations(), 1);
}

#[test]
fn the_oldest_template_pads_names_before_it_hashes() {
    let digest = [3; 20];
    let name = b"/sbin/init";
    let padded = [&digest[..], name, &[0; LEGACY_NAME_LEN - 10]].concat();
    let entry = [&10u32.to_le_bytes()[..], &sha1(&padded), &sized(b"ima"), &digest, &sized(name)].concat();
    let target = HashAlg::Sha1.digest(&[&[0; 20], &sha1(&padded)]);
    let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha1, target)]);
    replay
        .push_with(&entry, |entry| {
            assert_eq!(entry.file_digest(), Some((&b"sha1"[..], &digest[..])));
            assert_eq!(entry.path(), Some(&name[..]));
        })
        .unwrap();
    assert_eq!(replay.finish().unwrap().entries(), 1);
    let long = [&10u32.to_le_bytes()[..], &[1; 20], &sized(b"ima"), &digest, &sized(&[b'a'; 256])].concat();
    assert_eq!(from_zero(Digest::zero(HashAlg::Sha1)).push(&long), Err(ImaError::Malformed { entry: 0 }));
}

#[test]
fn an_unknown_template_replays_and_has_no_fields() {
    let data = b"anything at all";
    let entry = raw_entry(10, sha1(data), b"ima-of-tomorrow", data);
    let mut replay = from_zero(extended(SHA256, &Digest::zero(SHA256), data));
    replay.push_with(&entry, |entry| assert!(entry.fields().is_none() && entry.path().is_none())).unwrap();
    assert!(replay.finish().is_ok());
}

#[test]
fn a_template_given_as_its_format_is_read_like_its_name() {
    let signature = [3, 2, 4];
    let data = [sized(b"ima:sha256:\0\x07"), sized(b"/x\0"), sized(&signature)].concat();
    for template in [&b"ima-sigv2"[..], b"d-ngv2|n-ng|sig"] {
        let bytes = raw_entry(10, sha1(&data), template, &data);
        let (entry, len) = parse_entry(&bytes, 0).unwrap().unwrap();
        assert_eq!(len, bytes.len());
        assert_eq!(entry.field("sig"), Some(&signature[..]));
        assert_eq!(entry.file_digest(), Some((&b"ima:sha256"[..], &[7][..])));
    }
    let trailing = [&data[..], b"x"].concat();
    let bytes = raw_entry(10, sha1(&trailing), b"ima-sigv2", &trailing);
    assert!(parse_entry(&bytes, 0).unwrap().unwrap().0.fields().is_none());
}

#[test]
fn entries_of_other_pcrs_extend_nothing_and_are_counted() {
    let (mut other, _) = ng("/elsewhere");
    other[0] = 11;
    let (entry, data) = ng("/here");
    let mut replay = from_zero(extended(SHA256, &Digest::zero(SHA256), &data));
    replay.push(&[other, entry].concat()).unwrap();
    let replayed = replay.finish().unwrap();
    assert_eq!((replayed.entries(), replayed.other_pcr_entries()), (2, 1));
}

#[test]
fn in_the_sha1_bank_the_data_has_to_fit_its_hash() {
    let (mut entry, _) = ng("/a");
    let last = entry.len() - 2;
    entry[last] = b'b';
    let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha1, Digest::zero(SHA256))]);
    let wrong = Err(ImaError::WrongTemplateHash { entry: 0 });
    assert_eq!(replay.push(&entry), wrong);
    assert_eq!(replay.push(&[]), wrong);
    assert_eq!(replay.finish().map(|_| ()), wrong);
}

#[test]
fn lengths_beyond_their_limits_are_refused_before_anything_is_kept() {
    let target = SHA256.digest(&[]);
    let push = |bytes: &[u8]| from_zero(target).push(bytes);
    let header = |name_len: u32| [&10u32.to_le_bytes()[..], &[1; 20], &name_len.to_le_bytes()].concat();
    assert_eq!(push(&header(0)), Err(ImaError::Malformed { entry: 0 }));
    assert_eq!(push(&header(256)), Err(ImaError::Malformed { entry: 0 }));
    assert_eq!(push(&header(u32::MAX)), Err(ImaError::Malformed { entry: 0 }));
    let entry = |data_len: u32| [&10u32.to_le_bytes()[..], &[1; 20], &sized(b"x"), &data_len.to_le_bytes()].concat();
    let limit = u32::try_from(limits::MAX_IMA_ENTRY_LEN).unwrap();
    assert_eq!(push(&entry(limit)), Ok(()));
    assert_eq!(push(&entry(limit + 1)), Err(ImaError::EntryTooLong { entry: 0 }));
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_are_a_list_or_an_error(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..8),
    ) {
        let mut replay = from_zero(SHA256.digest(&[]));
        for piece in &pieces {
            let _ = replay.push_with(piece, |entry| { let _ = (entry.fields(), entry.file_digest(), entry.path()); });
        }
        let _ = replay.finish();
    }

    #[test]
    fn a_damaged_list_never_fits(at in 0usize..1000, flip in 1u8..) {
        let (entries, pcrs) = list(3, SHA256);
        let mut bytes = entries.concat();
        let at = at % bytes.len();
        // A template hash is not what the SHA-256 bank is extended with: those bytes prove nothing there.
        let mut start = 0;
        let in_hash = entries.iter().any(|entry| { let here = at.wrapping_sub(start) ; start += entry.len(); (4..24).contains(&here) });
        // Nor are the lengths and letters of the template's name.
        let mut start = 0;
        let in_name = entries.iter().any(|entry| { let here = at.wrapping_sub(start); start += entry.len(); (28..34).contains(&here) });
        prop_assume!(!in_hash && !in_name);
        bytes[at] ^= flip;
        let mut replay = from_zero(pcrs[3]);
        let _ = replay.push_with(&bytes, |entry| { let _ = (entry.fields(), entry.file_digest()); });
        prop_assert!(replay.finish().is_err());
    }
}

/// Prints a figure on request: `cargo test --release -p control-plane ima_rate -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn ima_rate() {
    let (entries, pcrs) = list(200_000, SHA256);
    let bytes = entries.concat();
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let mut replay = from_zero(pcrs[200_000]);
        replay.push(&bytes).unwrap();
        let per_second = 200_000.0 / start.elapsed().as_secs_f64();
        assert!(replay.is_matched());
        println!("{per_second:.0} entries/s");
    }
}
