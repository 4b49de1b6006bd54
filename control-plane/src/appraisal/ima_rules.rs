//! Judging the entries of an IMA list by a policy's `[ima]`, one by one as they are replayed.

use protocol::tpm::alg::{Digest, HashAlg};

use super::{
    finding::Report,
    ima_log::ImaEntry,
    policy::{Policy, ima::ImaRules},
};

/// An appraisal of entries under way.
#[derive(Debug)]
pub struct ImaJudge<'p> {
    rules: &'p ImaRules,
    policy: [u8; 32],
    next: u64,
    keys: Vec<Vec<u8>>,
    report: Report,
}

impl<'p> ImaJudge<'p> {
    /// For the entries from `first` on; `keys` are those that earlier entries of this boot made known (DER
    /// SubjectPublicKeyInfo, from [`ImaJudgement::keys`]). `None` if the policy has no rules for IMA.
    pub fn new(policy: &'p Policy, first: u64, keys: &[Vec<u8>]) -> Option<Self> {
        let rules = policy.ima()?;
        Some(Self { rules, policy: policy.id(), next: first, keys: keys.to_vec(), report: Report::default() })
    }

    /// Judges the next entry.
    pub fn entry(&mut self, entry: &ImaEntry<'_>) {
        let _ = self.rules;
        self.next = entry.number.saturating_add(1);
    }

    /// Ends the appraisal.
    pub fn finish(self) -> ImaJudgement {
        ImaJudgement { policy: self.policy, entries: self.next, boot_aggregate: None, keys: self.keys, report: self.report }
    }
}

/// What came of it: it counts only together with the [`ReplayedIma`](super::ima_log::ReplayedIma) that proves the
/// entries.
#[derive(Clone, Debug)]
pub struct ImaJudgement {
    /// The policy's id.
    pub policy: [u8; 32],
    /// Where it stopped: entries from the beginning of the list.
    pub entries: u64,
    /// The list's boot_aggregate, if its entry was among those judged: entry number, hash algorithm's name, digest.
    pub boot_aggregate: Option<(u64, String, Vec<u8>)>,
    /// Signature keys that the list made known so far.
    pub keys: Vec<Vec<u8>>,
    /// Findings, and what was not checked.
    pub report: Report,
}

/// What boot_aggregate may be when the PCRs are as `pcr` says: a hash over PCRs 0 to 9, or 0 to 7 for SHA-1 and in kernels
/// before 5.8. Empty if `pcr` does not know one of them.
pub fn boot_aggregates(alg: HashAlg, pcr: impl Fn(u8) -> Option<Digest>) -> Vec<Digest> {
    let Some(values) = (0..=9).map(pcr).collect::<Option<Vec<_>>>() else { return Vec::new() };
    let over = |count: usize| {
        let parts: Vec<&[u8]> = values.iter().take(count).map(|value| value.as_bytes()).collect();
        alg.digest(&parts)
    };
    let all = (alg != HashAlg::Sha1).then(|| over(10));
    all.into_iter().chain([over(8)]).collect()
}
