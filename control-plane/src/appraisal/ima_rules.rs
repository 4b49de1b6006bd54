//! Judging the entries of an IMA list by a policy's `[ima]`, one by one as they are replayed.
//!
//! A file is good if its digest is listed for its path or for any path, or if its signature is good; it is not judged if
//! its path is excluded. Everything else is a finding, and so is an entry that cannot be read. What a judgement is worth
//! depends on the replay of the same entries, which is [`ima_log`](super::ima_log)'s.
//!
//! Neither an entry's template name nor a violation's data is proven by the PCR: a violation can be made to seem another
//! file's, but neither hidden nor invented. A path is as the measured process saw it, which in a mount namespace of its
//! own is what its maker wanted; digests are what counts.

use protocol::tpm::alg::{Digest, HashAlg};

use super::{
    IMA_PCR,
    finding::{Check, Finding, MAX_FINDINGS, Place, Report},
    ima_log::{BATCH_LEN, ImaEntry, Measurement, MeasurementError},
    ima_signature::{self, SignatureError, SignatureKey},
    policy::{
        Policy,
        digests::{Listed, Probe},
        ima::{BootAggregateRule, ImaRules},
    },
};

/// Keys that a list can make known; what comes after them is not learned.
pub const MAX_LEARNED_KEYS: usize = 8;
/// The name of the list's first entry.
const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";
/// The keyrings whose keys verify files.
const LEARNED_KEYRINGS: [&[u8]; 4] = [b".ima", b".evm", b"_ima", b"_evm"];
/// The longest list of expected digests in a finding, in characters.
const MAX_EXPECTED_LEN: usize = 190;

/// An appraisal of entries under way.
#[derive(Debug)]
pub struct ImaJudge<'p> {
    rules: &'p ImaRules,
    policy: [u8; 32],
    first: u64,
    next: u64,
    boot_aggregate: Option<(u64, String, Vec<u8>)>,
    learned: Vec<SignatureKey>,
    keys: Vec<Vec<u8>>,
    counts: Counts,
    report: Report,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    listed: u64,
    signed: u64,
    buffers: u64,
    excluded: u64,
    violations: u64,
    other_pcr: u64,
    keys_left_out: u64,
    unverified: u64,
}

impl<'p> ImaJudge<'p> {
    /// For the entries from `first` on; `keys` are those that earlier entries of this boot made known (from
    /// [`ImaJudgement::keys`]); they count only if the policy learns keys. `None` if the policy has no rules for IMA.
    pub fn new(policy: &'p Policy, first: u64, keys: &[Vec<u8>]) -> Option<Self> {
        let rules = policy.ima()?;
        let keys = if rules.learns_keys() { keys } else { &[] };
        let keys: Vec<_> = keys.iter().take(MAX_LEARNED_KEYS).cloned().collect();
        Some(Self {
            rules,
            policy: policy.id(),
            first,
            next: first,
            boot_aggregate: None,
            learned: keys.iter().filter_map(|key| SignatureKey::from_bytes(key).ok()).collect(),
            keys,
            counts: Counts::default(),
            report: Report::default(),
        })
    }

    /// Judges the next entry. Allocates nothing for a good one.
    pub fn entry(&mut self, entry: &ImaEntry<'_>) {
        self.entries(std::slice::from_ref(entry));
    }

    /// Judges the next entries, in order; faster than one by one, since their look-ups wait for memory together.
    pub fn entries(&mut self, entries: &[ImaEntry<'_>]) {
        for batch in entries.chunks(BATCH_LEN) {
            let files = self.rules.files();
            let mut probes = [Probe::default(); BATCH_LEN];
            let mut measurements = [Err(MeasurementError::Malformed); BATCH_LEN];
            for ((entry, measured), probe) in batch.iter().zip(&mut measurements).zip(&mut probes) {
                *measured = entry.measurement();
                *probe = measured.map_or_else(|_| Probe::default(), |measured| files.probe(measured.path));
            }
            probes.iter_mut().take(batch.len()).for_each(|probe| files.look(probe));
            let warm = probes.iter().take(batch.len()).fold(0, |all, probe| all ^ files.warm(*probe));
            // What was read must not be optimised away.
            std::hint::black_box(warm);
            for ((entry, measured), probe) in batch.iter().zip(&measurements).zip(&probes) {
                self.next = entry.number.saturating_add(1);
                self.judge(entry, measured, *probe);
            }
        }
    }

    #[inline]
    fn judge(&mut self, entry: &ImaEntry<'_>, measured: &Result<Measurement<'_>, MeasurementError>, probe: Probe) {
        if entry.pcr != u32::from(IMA_PCR) {
            self.counts.other_pcr += 1;
            return;
        }
        if entry.is_violation() {
            return self.violation(entry);
        }
        match measured {
            Ok(measured) => self.measured(entry.number, measured, probe),
            Err(error) => self.unreadable(entry, *error),
        }
    }

    fn violation(&mut self, entry: &ImaEntry<'_>) {
        let path = entry.measurement().ok().map(|measured| measured.path);
        if self.rules.tolerates_violation(path) {
            self.counts.violations += 1;
            return;
        }
        let expected = "no violation: nothing opened for writing while it is measured, or the reverse";
        let found = "a violation (time of measure, time of use; or open writers: the list does not tell them apart)";
        self.find("ima_violation", Place::entry(entry.number, path), expected, found);
    }

    fn unreadable(&mut self, entry: &ImaEntry<'_>, error: MeasurementError) {
        let template: String = String::from_utf8_lossy(entry.template).chars().take(80).collect();
        let (code, expected) = match error {
            MeasurementError::UnknownTemplate => {
                ("ima_template_unknown", "a template of known fields, a digest and a name first")
            }
            MeasurementError::Malformed => ("ima_entry_malformed", "data of the template's form"),
        };
        let found = format!("template `{}`, {} bytes of data", template.escape_debug(), entry.data.len());
        self.find(code, Place::entry(entry.number, None), expected, found);
    }

    #[inline]
    fn measured(&mut self, number: u64, measured: &Measurement<'_>, probe: Probe) {
        // A file's path is absolute; no buffer's name is.
        let is_file = measured.path.first() == Some(&b'/');
        if !is_file {
            if measured.path == BOOT_AGGREGATE && self.boot_aggregate(number, measured) {
                return;
            }
            if let Some(buffer) = measured.buffer {
                return self.buffer(number, measured, buffer);
            }
        }
        if let Some(alg) = measured.alg
            && (self
                .rules
                .files()
                .find(measured.path, probe)
                .is_some_and(|listed| listed.contains(alg, measured.digest))
                || self.rules.any_path().contains(alg, measured.digest))
            && !is_zero(measured.digest)
        {
            self.counts.listed += 1;
            return;
        }
        self.unlisted(number, measured);
    }

    /// A file whose digest is not listed.
    #[cold]
    fn unlisted(&mut self, number: u64, measured: &Measurement<'_>) {
        let mut signature = measured.signature.filter(|_| !self.rules.keys().is_empty() || !self.learned.is_empty());
        // A list may be full of signatures that are none. It has failed by now, and each costs as much as a good one.
        if signature.is_some() && self.report.count() >= MAX_FINDINGS as u64 {
            self.counts.unverified += 1;
            signature = None;
        }
        let verified = signature.zip(measured.alg).map(|(signature, alg)| {
            let keys = self.rules.keys().iter().chain(&self.learned);
            ima_signature::verify(keys, signature, measured.is_verity, alg, measured.digest)
        });
        if verified == Some(Ok(())) && !is_zero(measured.digest) {
            self.counts.signed += 1;
            return;
        }
        if self.rules.excludes(measured.path) {
            self.counts.excluded += 1;
            return;
        }
        let place = Place::entry(number, Some(measured.path));
        let Some(alg) = measured.alg else {
            let name: String = String::from_utf8_lossy(measured.alg_name).chars().take(40).collect();
            let expected = "a digest by sha1, sha256, sha384 or sha512";
            return self.find("ima_digest_algorithm", place, expected, format!("one by `{}`", name.escape_debug()));
        };
        let found = format!("{alg}:{}", hex::encode(measured.digest));
        if let Some(listed) = self.rules.files().get(measured.path) {
            return self.find("ima_digest_mismatch", place, &list(listed), found);
        }
        match verified {
            Some(Err(error @ SignatureError::UnknownKey(_))) => {
                let expected = "a signature by one of the policy's keys, or a listed digest";
                self.find("ima_signature_unknown_key", place, expected, format!("{found}; {error}"));
            }
            Some(Err(error)) => {
                let expected = "a signature that verifies, or a listed digest";
                self.find("ima_signature_bad", place, expected, format!("{found}; {error}"));
            }
            _ => self.find("ima_file_unknown", place, "a path or digest that the policy lists", found),
        }
    }

    /// The entry that names the boot. Whether it is that of the boot log is compared by whoever has one. True if nothing
    /// more is to be said of this entry.
    ///
    /// Only the list's first entry is known to be the kernel's: a file whose path it cannot tell is measured under its
    /// bare name, which may be this one. A later entry (a list that was carried over a kexec has some) has to say the
    /// same as the first, or be listed.
    #[cold]
    fn boot_aggregate(&mut self, number: u64, measured: &Measurement<'_>) -> bool {
        let is_first = number == 0;
        if is_first {
            let name = String::from_utf8_lossy(measured.alg_name).into_owned();
            self.boot_aggregate = Some((number, name, measured.digest.to_vec()));
        }
        match self.rules.boot_aggregate() {
            BootAggregateRule::Listed => {
                let listed = self.rules.files().get(BOOT_AGGREGATE);
                let is_good =
                    listed.zip(measured.alg).is_some_and(|(listed, alg)| listed.contains(alg, measured.digest));
                if is_first && !is_good {
                    let place = Place::entry(number, Some(measured.path));
                    let expected = listed.map_or_else(|| "a digest listed as boot_aggregate".to_owned(), list);
                    let name = String::from_utf8_lossy(measured.alg_name);
                    let found = format!("{name}:{}", hex::encode(measured.digest));
                    self.find("ima_boot_aggregate_mismatch", place, &expected, found);
                }
                is_first || is_good
            }
            BootAggregateRule::Any | BootAggregateRule::Log => {
                let same = |(_, name, digest): &(u64, String, Vec<u8>)| {
                    name.as_bytes() == measured.alg_name && digest == measured.digest
                };
                is_first || self.boot_aggregate.as_ref().is_some_and(same)
            }
        }
    }

    /// A buffer: a key for a keyring, a table of the device mapper, a command line.
    #[cold]
    fn buffer(&mut self, number: u64, measured: &Measurement<'_>, buffer: &[u8]) {
        let place = Place::entry(number, Some(measured.path));
        let Some(alg) = measured.alg else {
            let name: String = String::from_utf8_lossy(measured.alg_name).chars().take(40).collect();
            let expected = "a digest by sha1, sha256, sha384 or sha512";
            return self.find("ima_digest_algorithm", place, expected, format!("one by `{}`", name.escape_debug()));
        };
        // What stands in the buffer's place of a file's entry is not what the digest is of.
        if alg.digest(&[buffer]).as_bytes() != measured.digest {
            let found = format!("{alg}:{}, and {} bytes that have another", hex::encode(measured.digest), buffer.len());
            return self.find("ima_buffer_mismatch", place, "the digest of the buffer", found);
        }
        let found = format!("{alg}:{}", hex::encode(measured.digest));
        if let Some(listed) = self.rules.keyrings().get(measured.path) {
            if !listed.contains(alg, measured.digest) {
                return self.find("ima_key_unknown", place, &list(listed), found);
            }
            self.counts.buffers += 1;
            return self.learn(measured.path, buffer);
        }
        if let Some(listed) = self.rules.buffers().get(measured.path) {
            if !listed.contains(alg, measured.digest) {
                return self.find("ima_buffer_unknown", place, &list(listed), found);
            }
            self.counts.buffers += 1;
            return;
        }
        // A keyring's name begins like this; certificates are loaded into keyrings of any name.
        let is_key = matches!(measured.path, [b'.' | b'_', ..]) || matches!(buffer, [0x30, 0x82, ..]);
        let (code, expected) = if is_key {
            ("ima_key_unknown", "a keyring that the policy lists")
        } else {
            ("ima_buffer_unknown", "a buffer that the policy lists")
        };
        self.find(code, place, expected, found);
    }

    /// Takes over a key that an allowed entry loaded, where the policy says so.
    fn learn(&mut self, keyring: &[u8], certificate: &[u8]) {
        if !self.rules.learns_keys() || !LEARNED_KEYRINGS.contains(&keyring) {
            return;
        }
        // Not every key that a keyring takes verifies files.
        let Ok(key) = SignatureKey::from_certificate(certificate) else {
            self.counts.keys_left_out += 1;
            return;
        };
        if self.learned.contains(&key) {
            return;
        }
        if self.keys.len() >= MAX_LEARNED_KEYS {
            self.counts.keys_left_out += 1;
            return;
        }
        self.keys.push(key.to_bytes());
        self.learned.push(key);
    }

    fn find(&mut self, code: &'static str, place: Place, expected: &str, found: impl Into<String>) {
        self.report.find(Finding::at(Check::ImaPolicy, code, place, expected, bounded(found.into())));
    }

    /// Ends the appraisal.
    pub fn finish(mut self) -> ImaJudgement {
        let Counts { listed, signed, buffers, excluded, violations, other_pcr, keys_left_out, unverified } =
            self.counts;
        let entries = self.next.saturating_sub(self.first);
        self.report.checked(format!(
            "IMA: {entries} entries judged by the policy: {listed} listed, {signed} signed, {buffers} allowed buffers"
        ));
        if self.first > 0 {
            self.report
                .checked(format!("IMA: the {} entries before them were judged earlier in this boot", self.first));
        }
        if unverified > 0 {
            self.report.not_checked(format!(
                "IMA: signatures of {unverified} entries, because the list had failed {MAX_FINDINGS} times before them"
            ));
        }
        if excluded > 0 {
            self.report.not_checked(format!("IMA: {excluded} entries of files that the policy excludes"));
        }
        if violations > 0 {
            self.report.not_checked(format!(
                "IMA: {violations} violations, which the policy only reports; of their files nothing is known"
            ));
        }
        if other_pcr > 0 {
            self.report
                .not_checked(format!("IMA: {other_pcr} entries of other PCRs than {IMA_PCR}, which were not judged"));
        }
        if keys_left_out > 0 {
            self.report.not_checked(format!("IMA: {keys_left_out} allowed keys that were not learned: not of a known form, or more than {MAX_LEARNED_KEYS}"));
        }
        if self.boot_aggregate.is_some() && self.rules.boot_aggregate() == BootAggregateRule::Any {
            self.report.not_checked("IMA: boot_aggregate, which the policy leaves open");
        }
        ImaJudgement {
            policy: self.policy,
            entries: self.next,
            boot_aggregate: self.boot_aggregate,
            keys: self.keys,
            report: self.report,
        }
    }
}

fn is_zero(digest: &[u8]) -> bool {
    digest.iter().all(|byte| *byte == 0)
}

/// As many of the digests as a finding has room for.
fn list(listed: Listed<'_>) -> String {
    let mut text = String::new();
    let mut left_out = 0;
    for (alg, digest) in listed.iter() {
        let digest = format!("{alg}:{}", hex::encode(digest));
        let gap = if text.is_empty() { "" } else { ", " };
        if left_out > 0 || text.len() + gap.len() + digest.len() > MAX_EXPECTED_LEN - 20 {
            left_out += 1;
        } else {
            text.push_str(gap);
            text.push_str(&digest);
        }
    }
    if left_out > 0 { format!("{text} or {left_out} more") } else { text }
}

fn bounded(text: String) -> String {
    if text.chars().count() <= 200 { text } else { text.chars().take(199).chain(['…']).collect() }
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
    /// Signature keys that the list made known so far, each as [`SignatureKey::to_bytes`] has it.
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

#[cfg(test)]
mod tests;
