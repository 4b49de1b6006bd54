//! What the control plane judges by: logs, policies, endorsements.

use std::sync::{LazyLock, OnceLock};

use base64::Engine as _;
use control_plane::{
    appraisal::{
        BootLog, ImaReplay, Policy, ReplayedBootLog, glob::Glob, ima_ascii, ima_log::ImaStart, ima_rules::ImaJudge,
    },
    ek::{EkRoots, certificate_spki},
};
use protocol::{
    crypto::bind,
    limits,
    tpm::{
        alg::{Digest, HashAlg},
        pcr::extend,
        public::{KeyPublic, TpmtPublic},
        template::EkTemplate,
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, date_time_ymd,
};

use crate::{
    script::{Script, long, pieces},
    vectors,
};

/// A boot log that parses can be replayed in each of its banks, and the digested form says the same as the whole.
pub fn boot_log(data: &[u8]) {
    let parsed = BootLog::parse(data);
    assert_eq!(ReplayedBootLog::replay(data).is_ok(), parsed.is_ok());
    let Ok(log) = parsed else { return };
    let replayed = ReplayedBootLog::of(&log);
    assert_eq!(replayed.event_count(), log.events().len());
    for event in log.events() {
        assert!(!event.is_extended() || (event.pcr as usize) < limits::PCR_COUNT);
    }
    for bank in HashAlg::ALL {
        assert_eq!(log.replay(bank).is_some(), log.banks().contains(&bank));
        assert_eq!(replayed.has_bank(bank), log.banks().contains(&bank));
        for (index, value) in (0..).zip(log.replay(bank).iter().flatten()) {
            assert_eq!(replayed.value(bank, index), Some(value));
        }
    }
    // Without its last byte it is another log, or none.
    let _ = BootLog::parse(&data[..data.len() - 1]);
}

/// TCG_PCClientPCREvent.
fn sha1_event(pcr: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("short");
    [&pcr.to_le_bytes()[..], &kind.to_le_bytes(), &[0x11; 20], &len.to_le_bytes(), data].concat()
}

/// TCG_PCR_EVENT2 with a digest of each bank.
fn agile_event(pcr: u32, kind: u32, banks: &[HashAlg], data: &[u8]) -> Vec<u8> {
    let count = u32::try_from(banks.len()).expect("short");
    let mut bytes = [pcr, kind, count].map(u32::to_le_bytes).concat();
    for bank in banks {
        bytes.extend_from_slice(&bank.id().to_le_bytes());
        bytes.extend_from_slice(&bank.digest(&[data]));
    }
    bytes.extend_from_slice(&u32::try_from(data.len()).expect("short").to_le_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn agile_log(banks: &[HashAlg]) -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
    spec.extend_from_slice(&u32::try_from(banks.len()).expect("short").to_le_bytes());
    for bank in banks {
        spec.extend_from_slice(&bank.id().to_le_bytes());
        spec.extend_from_slice(&u16::try_from(bank.digest_len()).expect("short").to_le_bytes());
    }
    spec.push(0);
    let mut log = sha1_event(0, 3, &spec);
    log.extend(agile_event(0, 3, banks, b"StartupLocality\0\x03"));
    for pcr in [0, 1, 4, 7, 14] {
        log.extend(agile_event(pcr, 0x8000_0001, banks, b"something measured"));
        log.extend(agile_event(pcr, 4, banks, &[0; 4]));
    }
    log
}

pub(crate) fn boot_log_seeds() -> Vec<Vec<u8>> {
    let old = [sha1_event(0, 8, b"version"), sha1_event(4, 4, &[0; 4]), sha1_event(17, 3, &[])].concat();
    let mut seeds = vec![
        old,
        agile_log(&[HashAlg::Sha256]),
        agile_log(&[HashAlg::Sha1, HashAlg::Sha256]),
        agile_log(&HashAlg::ALL),
    ];
    seeds.extend(vectors::files("boot-logs", ".bin"));
    seeds.extend(vectors::files("vm-ovmf", "binary_bios_measurements"));
    seeds
}

/// How far an IMA list is replayed does not depend on how it was cut; and a quoted value that some prefix of it has is
/// found there, or before.
///
/// Input: how to cut, after which entry it was quoted (one byte each), the list.
pub fn ima_log(data: &[u8]) {
    let mut script = Script::new(data);
    let (how, quoted_at) = (script.byte(), u64::from(script.byte()));
    let list = script.rest();
    let never = Digest::new(&[0xee; 32]).expect("32 bytes");
    // What PCR 10 holds after the chosen entry, computed here once more; the old template hashes a padded name.
    let (mut value, mut quoted, mut computable) = (Digest::zero(HashAlg::Sha256), None, true);
    let whole = replay(list, 0, never, |entry| {
        let digest = match entry.is_violation() {
            true => Digest::new(&[0xff; 32]).expect("32 bytes"),
            false => HashAlg::Sha256.digest(&[entry.data]),
        };
        computable &= entry.template != b"ima";
        if entry.pcr == 10 {
            value = extend(HashAlg::Sha256, &value, &digest).expect("lengths fit");
        }
        if computable && entry.number <= quoted_at {
            quoted = Some((value, entry.number + 1));
        }
        let fields = entry.fields();
        assert!(fields.is_some() || (entry.path().is_none() && entry.file_digest().is_none()));
        let _ = (entry.field("sig"), entry.field("buf"));
    });
    assert_eq!(whole, replay(list, how, never, |_| {}), "cut by {how}");
    if let Some((value, entries)) = quoted {
        let (replayed, error) = replay(list, how, value, |_| {});
        assert!(replayed <= entries && error.is_empty(), "{replayed} of {entries}: {error}");
    }
}

/// Entries replayed, and why it ended if the target was not reached.
fn replay(
    list: &[u8],
    how: u8,
    target: Digest,
    mut seen: impl FnMut(&control_plane::appraisal::ima_log::ImaEntry<'_>),
) -> (u64, String) {
    let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha256, target)]);
    for piece in pieces(list, how) {
        if let Err(error) = replay.push_with(piece, &mut seen) {
            assert_eq!(replay.push(&[]), Err(error), "an error does not stay");
            break;
        }
    }
    let entries = replay.entries();
    (entries, replay.finish().err().map(|error| format!("{error:?}")).unwrap_or_default())
}

fn ima_entry(template: &str, fields: &[&[u8]]) -> Vec<u8> {
    let data: Vec<u8> = fields
        .iter()
        .flat_map(|field| [&u32::try_from(field.len()).expect("short").to_le_bytes()[..], field].concat())
        .collect();
    let hash = HashAlg::Sha1.digest(&[&data]);
    let len = |len: usize| u32::try_from(len).expect("short").to_le_bytes();
    [&10_u32.to_le_bytes()[..], &hash, &len(template.len()), template.as_bytes(), &len(data.len()), &data].concat()
}

pub(crate) fn ima_log_seeds() -> Vec<Vec<u8>> {
    let digest = [&b"sha256:\0"[..], &[7; 32]].concat();
    let boot = ima_entry("ima-ng", &[&digest, b"boot_aggregate\0"]);
    let file = ima_entry("ima-sig", &[&digest, b"/usr/bin/true\0", &[3; 20]]);
    let buffer = ima_entry("ima-buf", &[&digest, b"dm_table_load\0", &[4; 60]]);
    let format = ima_entry("d-ng|n-ng", &[&digest, b"/etc/fstab\0"]);
    let mut violation = ima_entry("ima-ng", &[&digest, b"/var/log/messages\0"]);
    violation[4..24].fill(0);
    // The old template: a digest, and a name behind its length, without a length of the whole.
    let legacy =
        [&10_u32.to_le_bytes()[..], &[1; 20], &[3, 0, 0, 0], b"ima", &[5; 20], &[5, 0, 0, 0], b"/init"].concat();
    let list = [boot, file, violation, buffer, format].concat();
    let mut seeds = vec![[&[0, 9][..], &list].concat(), [&[7, 2][..], &list].concat(), [&[3, 0][..], &legacy].concat()];
    for list in vectors::files("vm-ovmf", "ima_binary_runtime_measurements") {
        seeds.push([&[9, 40][..], &list[..list.len().min(20_000)]].concat());
    }
    seeds
}

/// An ASCII list that is read gives a binary one with an entry a line, each of which is read; an error names the line.
pub fn ima_ascii(data: &[u8]) {
    match ima_ascii::to_binary(data) {
        Ok(list) => {
            let lines =
                data.split(|byte| *byte == b'\n').count() - usize::from(data.is_empty() || data.ends_with(b"\n"));
            let never = Digest::new(&[0xee; 32]).expect("32 bytes");
            let mut readable = 0;
            let (entries, _) = replay(&list, 0, never, |entry| readable += usize::from(entry.fields().is_some()));
            assert_eq!((entries, readable), (lines as u64, lines));
        }
        Err(error) => {
            assert!(error.offset <= data.len());
            assert!(error.offset == 0 || data[error.offset - 1] == b'\n');
        }
    }
}

pub(crate) fn ima_ascii_seeds() -> Vec<Vec<u8>> {
    let (hash, digest) = ("01".repeat(20), "23".repeat(20));
    let line = |rest: &str| format!("10 {hash} {rest}\n");
    let all = [
        line(&format!("ima {digest} /init")),
        line(&format!("ima-ng sha1:{digest} boot_aggregate")),
        line(&format!("ima-sig sha1:{digest} /bin/sh 030204")),
        line(&format!("ima-sigv2 verity:sha1:{digest} /bin/sh ")),
        line(&format!("ima-buf sha1:{digest} dm_table_load 00")),
        line(&format!("ima-modsig sha1:{digest} /bin/sh   ")),
        line(&format!("d-ng|n-ng|imode sha1:{digest} /bin/sh 33261")),
    ];
    let mut seeds = vec![all.concat().into_bytes()];
    for (folder, end) in [("ima", ".ascii"), ("vm-ovmf", "ima_ascii_runtime_measurements")] {
        seeds.extend(vectors::files(folder, end).into_iter().map(|list| list[..list.len().min(20_000)].to_vec()));
    }
    seeds
}

/// What is found in a list by a policy does not depend on how the list was cut; a file whose digest is not the listed
/// one, whose path is not excluded and that nobody signed is always found.
///
/// Input: how to cut (one byte), the list.
pub fn ima_rules(data: &[u8]) {
    static POLICY: LazyLock<Policy> = LazyLock::new(|| {
        let digest = "07".repeat(32);
        let text = format!(
            "version = 1\nname = \"f\"\n[ima]\nexclude = [\"/tmp/**\"]\nviolation_paths = [\"/var/log/*\"]\nlearn_keys = \
             true\nboot_aggregate = \"any\"\n[ima.files]\n\"/usr/bin/true\" = [\"{digest}\"]\n[ima.keyrings]\n\".ima\" = \
             [\"{digest}\"]\n[ima.buffers]\ndm_table_load = [\"any\"]\n"
        );
        Policy::parse(text.as_bytes()).expect("a policy")
    });
    let mut script = Script::new(data);
    let how = script.byte();
    let list = script.rest();
    let never = Digest::new(&[0xee; 32]).expect("32 bytes");
    let mut bad = 0;
    let mut judged = |how, count: bool| {
        let mut judge = ImaJudge::new(&POLICY, 0, &[]).expect("rules");
        let (entries, _) = replay(list, how, never, |entry| {
            judge.entry(entry);
            let is_bad = entry.pcr == 10
                && !entry.is_violation()
                && entry.file_digest().is_none_or(|(_, digest)| digest != [7; 32])
                && entry.path().is_none_or(|path| path.starts_with(b"/usr/"));
            bad += u64::from(count && is_bad);
        });
        let judgement = judge.finish();
        assert_eq!(judgement.entries, entries);
        assert!(judgement.report.findings().iter().all(|it| it.expected.chars().count() <= 200));
        assert!(judgement.report.findings().iter().all(|it| it.found.chars().count() <= 200));
        judgement.report
    };
    let whole = judged(0, true);
    assert_eq!(whole, judged(how, false), "cut by {how}");
    assert!(whole.count() >= bad, "{bad} bad entries, {} findings", whole.count());
}

pub(crate) fn ima_rules_seeds() -> Vec<Vec<u8>> {
    ima_log_seeds().into_iter().map(|seed| seed[1..].to_vec()).collect()
}

/// A glob fits what trying everything fits.
///
/// Input: the glob, a zero byte, the path; the first 24 bytes of each.
pub fn glob(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (text, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (text, path) = (&text[..text.len().min(24)], &path[..path.len().min(24)]);
    let Some(glob) = std::str::from_utf8(text).ok().and_then(|text| Glob::new(text).ok()) else { return };
    assert_eq!(glob.matches(path), fits_slowly(text, path, false), "{:?} {path:?}", glob.as_str());
}

fn fits_slowly(glob: &[u8], path: &[u8], at_component: bool) -> bool {
    if at_component && glob == b"**" {
        return true;
    }
    if at_component && let Some(rest) = glob.strip_prefix(b"**/") {
        let end = path.iter().position(|byte| *byte == b'/');
        return fits_slowly(rest, path, true)
            || end.is_some_and(|end| end > 0 && fits_slowly(glob, &path[end + 1..], true));
    }
    match (glob.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), byte) => {
            fits_slowly(rest, path, false)
                || byte.is_some_and(|(byte, after)| *byte != b'/' && fits_slowly(glob, after, false))
        }
        (Some((b'?', rest)), Some((byte, after))) if *byte != b'/' => {
            // A character, however many bytes it has.
            let tail = after.iter().take_while(|byte| matches!(byte, 0x80..=0xbf)).count();
            (0..=tail).any(|len| fits_slowly(rest, &after[len..], false))
        }
        (Some((b'?', _)), _) => false,
        (Some((expected, rest)), Some((byte, after))) => expected == byte && fits_slowly(rest, after, *byte == b'/'),
        _ => false,
    }
}

pub(crate) fn glob_seeds() -> Vec<Vec<u8>> {
    [&b"/tmp/**\0/tmp/a/b"[..], b"/var/log/*.log\0/var/log/a.log", b"/a/**/c\0/a/b/b/c", b"/a?*b\0/a\xc3\xa9b"]
        .map(<[u8]>::to_vec)
        .to_vec()
}

/// A policy that parses asks for no more PCRs than evidence can carry, every named one among them, and for the same each
/// time; one that was learned from values parses.
pub fn policy(data: &[u8]) {
    if let Ok(policy) = Policy::parse(data) {
        assert_eq!(Policy::parse(data).as_ref(), Ok(&policy));
        for has_ima in [false, true] {
            let selection = policy.selection(has_ima);
            assert!((1..=limits::MAX_PCR_VALUES).contains(&selection.count()));
            for (bank, index, values) in policy.pcrs() {
                assert!(selection.contains(bank, index));
                assert!(values.iter().all(|value| value.len() == bank.digest_len()));
            }
        }
        let _ = (policy.release(), policy.accepted().count(), policy.banks().count(), policy.name().len());
    }
    // One bank's values, from the bytes.
    let mut script = Script::new(data);
    let phase = Some(script.byte()).filter(|phase| (8..16).contains(phase) && *phase != 10);
    let pcrs: Vec<_> = script.rest().chunks_exact(33).take(48).map(|it| (0xb, it[0], it[1..].to_vec())).collect();
    let learned = Policy::learn(&pcrs, "learned", phase);
    if phase.is_some() {
        let again = Policy::parse(learned.as_bytes());
        assert!(again.is_ok(), "{again:?} of\n{learned}");
    }
}

pub(crate) fn policy_seeds() -> Vec<Vec<u8>> {
    let digest = "ab".repeat(32);
    let mut seeds: Vec<Vec<u8>> = [
        format!("version = 1\nname = \"p\"\naccept = [\"sha1\", \"hardware-unproven\"]\n[pcrs.sha256]\n7 = [\"{digest}\"]\n[release]\nphase_pcr = 13\n"),
        format!(" {{\"version\":1,\"name\":\"p\",\"pcrs\":{{\"sha256\":{{\"0\":[\"{digest}\"],\"4\":[\"{digest}\",\"{digest}\"]}}}},\"release\":{{\"uncapped\":true}}}}"),
        "version = 1\nname = \"q\"\n[release]\nphase_pcr = 8".to_owned(),
    ]
    .map(String::into_bytes)
    .into();
    let values: Vec<u8> = (0..24).flat_map(|index| [&[index][..], &[index * 3; 32]].concat()).collect();
    seeds.push([&[13][..], &values].concat());
    seeds.extend(vectors::files("policies", ".json"));
    seeds
}

/// 2026-01-01, the time at which certificates are judged.
const NOW: i64 = 1_767_225_600;

/// No certificate or chain of them makes the validation panic; one that is endorsed is the one for this key, and its
/// node id is the key's.
///
/// Input: the TPMT_PUBLIC of the EK, a root, then up to five certificates of the chain, each behind its length.
pub fn ek_certificate(data: &[u8]) {
    let _ = is_endorsed(data);
}

fn is_endorsed(data: &[u8]) -> bool {
    let mut script = Script::new(data);
    let (public, root) = (script.long(), script.long());
    let mut chain = Vec::new();
    while !script.is_done() && chain.len() <= limits::MAX_EK_CHAIN {
        chain.push(script.long());
    }
    let mut roots = EkRoots::empty();
    let loaded = roots.add(root.to_vec());
    assert_eq!(loaded.is_ok(), certificate_spki(root).is_ok());
    assert_eq!(roots.count(), usize::from(loaded.is_ok()));
    let spkis: Vec<_> = chain.iter().map(|certificate| certificate_spki(certificate)).collect();
    let Ok(public) = TpmtPublic::decode(public) else { return false };
    let result = roots.validate(&chain, &public, NOW);
    if let Ok(endorsement) = &result {
        assert!(!endorsement.issuer().chars().any(char::is_control));
        let of_key = public.spki_der().map(|spki| bind::node_id(&spki));
        let of_certificate = spkis[0].as_ref().map(|spki| bind::node_id(spki));
        assert_eq!(of_key.ok(), of_certificate.ok());
    }
    result.map_err(|error| (error.code(), error.to_string())).is_ok()
}

/// A root, an intermediate and an EK's certificate, and the EK.
struct Chain {
    public: Vec<u8>,
    root: Vec<u8>,
    intermediate: Vec<u8>,
    leaf: Vec<u8>,
}

fn chain() -> &'static Chain {
    static CHAIN: OnceLock<Chain> = OnceLock::new();
    CHAIN.get_or_init(|| {
        let party = |name: &str, algorithm| {
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2040, 1, 1);
            (params, KeyPair::generate_for(algorithm).expect("an algorithm of ring's"))
        };
        let ca = |name| {
            let (mut params, key) = party(name, &PKCS_ECDSA_P384_SHA384);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            (params, key)
        };
        let (root, root_key) = ca("root");
        let (intermediate, intermediate_key) = ca("intermediate");
        let (mut ek, ek_key) = party("ek", &PKCS_ECDSA_P256_SHA256);
        ek.is_ca = IsCa::ExplicitNoCa;
        ek.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        ek.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        let mut public = EkTemplate::P256.public();
        if let KeyPublic::Ecc { x, y, .. } = &mut public.key {
            let point = ek_key.public_key_raw();
            *x = heapless::Vec::from_slice(&point[1..33]).expect("fits");
            *y = heapless::Vec::from_slice(&point[33..]).expect("fits");
        }
        let by_root = Issuer::from_params(&root, &root_key);
        let by_intermediate = Issuer::from_params(&intermediate, &intermediate_key);
        let signed = "fresh keys sign";
        Chain {
            public: public.encode(),
            root: root.self_signed(&root_key).expect(signed).der().to_vec(),
            intermediate: intermediate.signed_by(&intermediate_key, &by_root).expect(signed).der().to_vec(),
            leaf: ek.signed_by(&ek_key, &by_intermediate).expect(signed).der().to_vec(),
        }
    })
}

pub(crate) fn ek_certificate_seeds() -> Vec<Vec<u8>> {
    let Chain { public, root, intermediate, leaf } = chain();
    let parts = |parts: &[&[u8]]| parts.iter().flat_map(|part| long(part)).collect::<Vec<u8>>();
    let mut seeds = vec![
        parts(&[public, root, leaf, intermediate]),
        parts(&[public, intermediate, leaf]),
        parts(&[public, root, leaf]),
        parts(&[public, root, leaf, root, intermediate, leaf, leaf]),
    ];
    seeds.extend(vectors::files("ek-certs", ".cer").iter().map(|der| parts(&[public, root, der])));
    for pem in vectors::files("ek-certs", ".pem") {
        seeds.extend(certificates(&pem).iter().map(|der| parts(&[public, der, leaf])));
    }
    seeds
}

/// The certificates of a PEM file.
fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(pem);
    let body = |part: &str| part.split("-----END").next().unwrap_or_default().split_whitespace().collect::<String>();
    let parts = text.split("-----BEGIN CERTIFICATE-----").skip(1).map(body);
    parts.filter_map(|part| base64::engine::general_purpose::STANDARD.decode(part).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_parse_and_are_endorsed() {
        assert!(boot_log_seeds()[..4].iter().all(|seed| BootLog::parse(seed).is_ok()));
        assert!(policy_seeds()[..3].iter().all(|seed| Policy::parse(seed).is_ok()));
        let endorsed: Vec<_> = ek_certificate_seeds()[..3].iter().map(|seed| is_endorsed(seed)).collect();
        assert_eq!(endorsed, [true, true, false]);
        let never = Digest::new(&[0xee; 32]).unwrap();
        let replayed: Vec<_> = ima_log_seeds()[..3].iter().map(|seed| replay(&seed[2..], 0, never, |_| {}).0).collect();
        assert_eq!(replayed, [5, 5, 1]);
    }
}
