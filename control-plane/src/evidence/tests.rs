//! What is kept of rounds, on a store, and policies tried against it.

use protocol::tpm::{
    alg::{Digest, HashAlg},
    attest::TpmsAttest,
    pcr::{PcrSelection, PcrSelectionList, PcrValues, extend},
};

use super::{
    trial::{Stored, Trial, TrialOutcome, try_policy},
    *,
};
use crate::{
    appraisal::{
        Policy, QuoteError, VerifiedQuote,
        finding::Check,
        quote::tests::{AK, QUALIFYING_DATA, SoftAk, wire},
        verdict::PhaseEvents,
    },
    store::{ImaList, VerifierStore, open_verifier},
};

const SHA256_BANK: HashAlg = HashAlg::Sha256;

/// A node with a software TPM, as one role's round sees it.
#[derive(Clone)]
struct Node {
    values: PcrValues,
    reset_count: u32,
    boot_log: ShownBootLog,
    /// First entry shown, and the list from there on.
    ima: Option<(u64, Vec<Vec<u8>>)>,
    proven: u64,
}

impl Node {
    fn new() -> Self {
        let mut values = PcrValues::new();
        for index in [0, 7, 10] {
            values.set(SHA256_BANK, index, if index == 10 { Digest::zero(SHA256_BANK) } else { value(index) }).unwrap();
        }
        Self { values, reset_count: 5, boot_log: ShownBootLog::None, ima: None, proven: 0 }
    }

    fn set(mut self, index: u8, value: Digest) -> Self {
        self.values.set(SHA256_BANK, index, value).unwrap();
        self
    }

    /// Shows entries from `first` on; PCR 10 accounts for all of them and those before.
    fn ima(self, first: u32, end: u32) -> Self {
        let pcr = (0..end).fold(Digest::zero(SHA256_BANK), |pcr, number| {
            extend(SHA256_BANK, &pcr, &SHA256_BANK.digest(&[&data(number)])).unwrap()
        });
        let mut node = self.set(10, pcr);
        node.ima = Some((first.into(), (first..end).map(entry).collect()));
        node.proven = end.into();
        node
    }

    fn shown(&self) -> Shown {
        let indices = self.values.iter().map(|(_, index, _)| index);
        let mut selection = PcrSelectionList::new();
        selection.push(PcrSelection::from_indices(SHA256_BANK, indices).unwrap()).unwrap();
        let mut attest: TpmsAttest = AK.attest(&QUALIFYING_DATA, &selection, &self.values);
        attest.clock_info.reset_count = self.reset_count;
        let attested = attest.encode();
        let signature = AK.sign(&attested);
        let quote = VerifiedQuote::verify(&AK.ak(), &attested, &signature, &QUALIFYING_DATA, &selection).unwrap();
        Shown {
            attested,
            signature,
            qualifying_data: QUALIFYING_DATA,
            pcrs: QuotedPcrs::complete(&quote, None, &wire(&self.values), false).unwrap(),
            boot_log: self.boot_log.clone(),
            has_ima: self.ima.is_some(),
            ima: self.ima.as_ref().map(|(first, entries)| ShownIma {
                first: *first,
                entries: self.proven,
                bytes: entries.concat(),
            }),
        }
    }
}

fn value(index: u8) -> Digest {
    SHA256_BANK.digest(&[b"value", &[index]])
}

/// Template data of an ima-ng entry.
fn data(number: u32) -> Vec<u8> {
    let mut data = Vec::new();
    let digest = [b"sha256:\0".as_slice(), &[number as u8; 32]].concat();
    let path = format!("/usr/bin/{number}\0");
    for field in [digest.as_slice(), path.as_bytes()] {
        data.extend_from_slice(&(field.len() as u32).to_le_bytes());
        data.extend_from_slice(field);
    }
    data
}

fn entry(number: u32) -> Vec<u8> {
    let data = data(number);
    let mut entry = 10_u32.to_le_bytes().to_vec();
    entry.extend_from_slice(HashAlg::Sha1.digest(&[&data]).as_bytes());
    entry.extend_from_slice(b"\x06\0\0\0ima-ng");
    entry.extend_from_slice(&(data.len() as u32).to_le_bytes());
    entry.extend_from_slice(&data);
    entry
}

fn whose() -> Whose {
    let mut name = [0; 34];
    name.copy_from_slice(AK.public.name().as_bytes());
    Whose {
        node_id: NodeId([1; 32]),
        ak_name: protocol::bytes::Array(name),
        purpose: Purpose::Attest,
        hardware: Hardware::Certified,
    }
}

/// Evidence of four IMA entries, its AK's TPMT_PUBLIC, and a policy that is content with it.
pub(crate) fn sample(node_id: NodeId) -> (EvidenceRow, Vec<u8>, String) {
    let whose = Whose { node_id, ..whose() };
    let row = Node { boot_log: now("quiet"), ..Node::new().ima(0, 4) }.shown().row(&whose, None);
    (row, AK.public.encode(), policy_text(""))
}

/// The IMA list of [`sample`].
pub(crate) fn sample_list() -> Vec<u8> {
    (0..4).flat_map(entry).collect()
}

/// A store and what one connection knows of it.
struct Rig {
    _scratch: tempfile::TempDir,
    store: std::sync::Arc<dyn VerifierStore>,
    kept: Option<Kept>,
    keep_ima: bool,
}

impl Rig {
    async fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = open_verifier(&format!("sqlite:{}", scratch.path().join("v.db").display())).await.unwrap();
        store.migrate().await.unwrap();
        Self { _scratch: scratch, store, kept: None, keep_ima: true }
    }

    /// Whether it was news.
    async fn keep(&mut self, node: &Node) -> bool {
        keep(&*self.store, &mut self.kept, &whose(), &node.shown(), self.keep_ima).await.unwrap()
    }

    async fn row(&self) -> EvidenceRow {
        self.store.evidence(whose().node_id).await.unwrap().unwrap()
    }

    async fn list(&self) -> Option<ImaList> {
        self.store.ima_list(whose().node_id).await.unwrap()
    }
}

fn now(command_line: &str) -> ShownBootLog {
    ShownBootLog::Now { digest: [3; 32], command_line: Some(command_line.into()), userspace: None }
}

#[tokio::test]
async fn only_what_is_new_is_written() {
    let mut rig = Rig::new().await;
    let node = Node::new();
    assert!(rig.keep(&node).await);
    assert!(!rig.keep(&node).await);
    // Another connection, and another replica, know nothing of it yet.
    rig.kept = None;
    assert!(!rig.keep(&node).await);
    assert!(!rig.keep(&node).await);
    let changed = node.clone().set(7, value(70));
    assert!(rig.keep(&changed).await);
    assert!(rig.keep(&node).await);
    assert!(rig.keep(&Node { reset_count: 6, ..node.clone() }).await);
    assert!(rig.keep(&Node { boot_log: now("quiet"), ..node.clone() }).await);
    assert!(rig.keep(&Node { boot_log: now("quiet splash"), ..node.clone() }).await);
    assert!(!rig.keep(&Node { boot_log: now("quiet splash"), ..node.clone() }).await);
    let row = rig.row().await;
    assert_eq!((row.reset_count, row.purpose.as_str(), row.hardware.as_str()), (5, "attest", "certified"));
    assert_eq!(row.command_line.as_deref(), Some(b"quiet splash".as_slice()));
}

#[tokio::test]
async fn what_was_shown_with_the_boot_log_stays_for_that_boot() {
    let mut rig = Rig::new().await;
    let node = Node { boot_log: now("quiet"), ..Node::new() };
    assert!(rig.keep(&node).await);
    let later = Node { boot_log: ShownBootLog::Before([3; 32]), ..node.clone() };
    assert!(!rig.keep(&later).await);
    assert!(rig.keep(&later.clone().set(7, value(70))).await);
    assert_eq!(rig.row().await.command_line.as_deref(), Some(b"quiet".as_slice()));
    // A log that was held already does not bring back another boot's command line.
    assert!(rig.keep(&Node { reset_count: 6, ..later }).await);
    assert_eq!(rig.row().await.command_line, None);
    assert_eq!(rig.row().await.boot_log, Some([3; 32]));
}

#[tokio::test]
async fn the_list_grows_by_what_each_round_shows_up_to_the_quote() {
    let mut rig = Rig::new().await;
    assert!(rig.keep(&Node::new().ima(0, 3)).await);
    let mut node = Node::new().ima(3, 5);
    // Entries from after the quote are not kept.
    node.ima.as_mut().unwrap().1.push(entry(99));
    assert!(rig.keep(&node).await);
    let list = rig.list().await.unwrap();
    assert_eq!((list.entries, list.epoch), (5, (5, 2)));
    assert!(list.bytes == (0..5).flat_map(entry).collect::<Vec<_>>());
    assert_eq!(rig.row().await.ima_entries, Some(5));
    // A list that fits nothing takes nothing away.
    let mut misfit = Node::new().ima(5, 6).shown();
    misfit.ima = None;
    assert!(keep(&*rig.store, &mut rig.kept, &whose(), &misfit, true).await.unwrap());
    assert_eq!(rig.row().await.ima_entries, None);
    assert_eq!(rig.list().await.unwrap().entries, 5);
    assert!(rig.keep(&Node { reset_count: 6, ..Node::new().ima(0, 1) }).await);
    assert_eq!(rig.list().await.unwrap().entries, 1);
}

#[tokio::test]
async fn lists_are_not_kept_where_the_settings_say_so() {
    let mut rig = Rig::new().await;
    assert!(rig.keep(&Node::new().ima(0, 3)).await);
    rig.keep_ima = false;
    assert!(rig.keep(&Node::new().ima(3, 4)).await);
    assert_eq!(rig.list().await, None);
    assert_eq!(rig.row().await.ima_entries, Some(4));
}

#[test]
fn entries_are_measured_whole_or_not_at_all() {
    let mut legacy = entry(0)[..24].to_vec();
    legacy.extend_from_slice(b"\x03\0\0\0ima");
    legacy.extend_from_slice(&[7; 20]);
    legacy.extend_from_slice(b"\x02\0\0\0/x");
    let list = [entry(0), legacy.clone(), entry(300)].concat();
    let ends = [0, entry(0).len(), entry(0).len() + legacy.len(), list.len()];
    for (count, end) in ends.into_iter().enumerate() {
        assert_eq!(entries_len(&list, count as u64), Some(end));
        for cut in 0..end {
            assert_eq!(entries_len(&list[..cut], count as u64), None, "{count} entries in {cut} bytes");
        }
    }
    assert_eq!(entries_len(&list, 4), None);
    assert_eq!(entries_len(&[0xff; 64], 1), None);
    assert_eq!(entries_len(&[], u64::MAX), None);
}

/// A policy that wants PCRs 0 and 7 as they are in [`Node::new`], with more text behind.
fn policy(more: &str) -> Policy {
    Policy::parse(policy_text(more).as_bytes()).unwrap()
}

fn policy_text(more: &str) -> String {
    format!(
        "version = 1\nname = \"next\"\n[release]\nuncapped = true\n[pcrs.sha256]\n0 = [\"{}\"]\n7 = [\"{}\"]\n{more}",
        value(0),
        value(7)
    )
}

async fn evidence_of(node: &Node) -> EvidenceRow {
    let mut rig = Rig::new().await;
    assert!(rig.keep(node).await);
    rig.row().await
}

fn tried(policy: &Policy, row: &EvidenceRow, boot_log: Option<&[u8]>, ima: Option<&ImaList>) -> Trial {
    let ak_public = AK.public.encode();
    try_policy(policy, &Stored { evidence: row, ak_public: &ak_public, boot_log, ima }, None).unwrap()
}

#[track_caller]
fn assert_lacks(trial: &Trial, what: &str) {
    assert_eq!(trial.outcome, TrialOutcome::CannotTell, "{trial:?}");
    assert!(trial.summary.contains(what), "{}", trial.summary);
    assert!(trial.findings.is_empty(), "{trial:?}");
    assert!(trial.not_checked.iter().any(|text| text.contains(what)), "{trial:?}");
    // What is not stored is not said to be missing on the node.
    let untrue = match what {
        "the boot log" => "boot log: the node has none",
        "the IMA list" => "IMA: the node has no list",
        _ => return,
    };
    assert!(!trial.not_checked.iter().any(|text| text.contains(untrue)), "{trial:?}");
}

#[tokio::test]
async fn a_trial_says_what_would_come_of_the_policy() {
    let row = evidence_of(&Node::new()).await;
    let trial = tried(&policy(""), &row, None, None);
    assert_eq!(trial.outcome, TrialOutcome::Good, "{trial:?}");
    assert!(trial.findings.is_empty() && !trial.not_checked.is_empty());
    let row = evidence_of(&Node::new().set(7, value(70))).await;
    let trial = tried(&policy(""), &row, None, None);
    assert_eq!(trial.outcome, TrialOutcome::Failed);
    let [finding] = trial.findings.as_slice() else { panic!("{trial:?}") };
    assert_eq!((finding.check, finding.code, finding.what.as_str()), (Check::PcrPolicy, "pcr_mismatch", "sha256:7"));
    assert_eq!(trial.summary, finding.sentence());
}

#[tokio::test]
async fn what_the_stored_quote_does_not_cover_is_named_and_is_no_failure() {
    let row = evidence_of(&Node::new()).await;
    let more = format!("4 = [\"{0}\"]\n9 = [\"{0}\"]\n", value(4));
    assert_lacks(&tried(&policy(&more), &row, None, None), "sha256:4, sha256:9");
    // What is wrong is wrong all the same.
    let row = evidence_of(&Node::new().set(7, value(70))).await;
    let trial = tried(&policy(&more), &row, None, None);
    assert_eq!(trial.outcome, TrialOutcome::Failed);
    assert!(trial.findings.iter().all(|finding| finding.what == "sha256:7"), "{trial:?}");
    // The phase PCR is judged by a rule of its own, and lacks in the same way.
    let row = evidence_of(&Node::new()).await;
    let text = policy_text("").replace("uncapped = true", "phase_pcr = 15");
    let key = protocol::crypto::manifest::TenantSigningKey::from_text(&"07".repeat(32)).unwrap();
    let phase = PhaseEvents::new(&[*key.public().as_sec1()], false).unwrap();
    let stored = Stored { evidence: &row, ak_public: &AK.public.encode(), boot_log: None, ima: None };
    let trial = try_policy(&Policy::parse(text.as_bytes()).unwrap(), &stored, Some(&phase)).unwrap();
    assert_lacks(&trial, "sha256:15");
}

#[tokio::test]
async fn a_log_that_is_not_kept_any_more_is_named_and_is_no_failure() {
    let row = evidence_of(&Node { boot_log: now("quiet"), ..Node::new() }).await;
    assert_lacks(&tried(&policy(""), &row, None, None), "the boot log");
    let trial = tried(&policy(""), &row, Some(b"no log"), None);
    assert_eq!(trial.outcome, TrialOutcome::Failed);
    assert_eq!(trial.findings[0].code, "boot_log_unreadable");
}

#[tokio::test]
async fn a_trial_replays_the_list_up_to_the_stored_quote() {
    let row = evidence_of(&Node::new().ima(0, 4)).await;
    let list = |entries: u32| ImaList {
        epoch: (5, 2),
        entries: entries.into(),
        bytes: (0..entries).flat_map(entry).collect(),
    };
    // Kept up to the quote, and beyond it.
    for entries in [4, 6] {
        let trial = tried(&policy(""), &row, None, Some(&list(entries)));
        assert_eq!(trial.outcome, TrialOutcome::Good, "{trial:?}");
    }
    assert_lacks(&tried(&policy(""), &row, None, Some(&list(3))), "the IMA list");
    assert_lacks(&tried(&policy(""), &row, None, None), "the IMA list");
    let of_another_boot = ImaList { epoch: (4, 2), ..list(4) };
    assert_lacks(&tried(&policy(""), &row, None, Some(&of_another_boot)), "the IMA list");
    let altered = ImaList { bytes: (1..5).flat_map(entry).collect(), ..list(4) };
    let trial = tried(&policy(""), &row, None, Some(&altered));
    assert_eq!(trial.outcome, TrialOutcome::Failed);
    assert_eq!(trial.findings[0].code, "ima_mismatch");
    let unproven = EvidenceRow { ima_entries: None, ..row };
    assert_lacks(&tried(&policy(""), &unproven, None, Some(&list(4))), "the IMA list");
}

#[tokio::test]
async fn altered_evidence_is_refused() {
    let row = evidence_of(&Node::new()).await;
    let ak_public = AK.public.encode();
    let refused = |row: &EvidenceRow, ak_public: &[u8]| {
        try_policy(&policy(""), &Stored { evidence: row, ak_public, boot_log: None, ima: None }, None).unwrap_err()
    };
    let mut altered = row.clone();
    *altered.attested.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&altered, &ak_public), QuoteError::BadSignature);
    let mut altered = row.clone();
    altered.qualifying_data[0] ^= 1;
    assert_eq!(refused(&altered, &ak_public), QuoteError::WrongBinding);
    let mut altered = row.clone();
    altered.pcrs[0].2[0] ^= 1;
    assert_eq!(refused(&altered, &ak_public), QuoteError::WrongPcrDigest);
    let other = SoftAk::new(AK.kind).public.encode();
    assert_eq!(refused(&row, &other), QuoteError::WrongSigner);
}
