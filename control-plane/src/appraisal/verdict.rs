//! The verdict: proven evidence judged by a policy; and the right to release a share that may follow from it.
//!
//! Who keeps verdicts, and whether a newer one stands, is the roles' business.

use protocol::{
    crypto::manifest::{DELIVERED_EVENT, ManifestError, TenantPublicKey, pins_event},
    limits,
    message::attest::Purpose,
    tpm::{
        alg::{Digest, HashAlg},
        pcr::{event_digest, extend},
    },
};
use serde::Serialize;
use std::collections::BTreeMap;

use super::{
    FIRMWARE_PCRS, IMA_PCR,
    boot_log::{BootLog, BootLogError, ReplayedBootLog, is_boot_time_pcr},
    boot_rules::{self, BootInput},
    continuity::{Discontinuity, Epoch, boot_notes, continuity},
    finding::{Check, Finding, Place, Report},
    ima_log::{ImaError, ReplayedIma},
    ima_rules::{ImaJudgement, boot_aggregates},
    pcrs::QuotedPcrs,
    policy::{Exception, Policy, ReleaseRule, Signer, boot::BootRules},
    userspace_log::{UserspaceLog, UserspaceLogError},
};
use crate::store::{Checkpoint, Outcome, verifier::Pins};

/// Expected values written into one finding; a list may hold thousands.
const MAX_EXPECTED: usize = 4;

/// What is known of the TPM itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hardware {
    /// A vendor's certificate was validated for its EK.
    Certified,
    /// Its node id is on the operator's allow-list.
    AllowListed,
    /// Neither: it may be a piece of software.
    Unproven,
}

/// A boot log with what belongs to it.
#[derive(Clone, Debug)]
pub struct ReadBootLog<'a> {
    /// Its events.
    pub log: BootLog<'a>,
    /// Its values.
    pub replayed: ReplayedBootLog,
    /// What the node says its kernel's command line is; without the closing newline.
    pub command_line: Option<&'a [u8]>,
    /// What userspace measured after the log ended, where the node sent it.
    pub userspace: Option<Result<UserspaceLog, UserspaceLogError>>,
}

impl<'a> ReadBootLog<'a> {
    /// Reads and replays a boot log.
    ///
    /// # Errors
    /// Those of [`BootLog::parse`]. A userspace log that cannot be read is a finding, not an error.
    pub fn read(log: &'a [u8], command_line: Option<&'a [u8]>, userspace: Option<&[u8]>) -> Result<Self, BootLogError> {
        let log = BootLog::parse(log)?;
        let replayed = ReplayedBootLog::of(&log);
        Ok(Self { log, replayed, command_line, userspace: userspace.map(UserspaceLog::parse) })
    }

    /// What a PCR holds after the log and what userspace measured; `None` for a bank without digests, or if one of
    /// userspace's measurements has none.
    pub fn value(&self, bank: HashAlg, index: u8) -> Option<Digest> {
        let value = *self.replayed.value(bank, index)?;
        match &self.userspace {
            Some(Ok(userspace)) => userspace.replay(bank, index, value),
            _ => Some(value),
        }
    }

    /// Whether a PCR holds `target` after the log and some of what userspace measured: its log was read after the quote.
    fn reaches(&self, bank: HashAlg, index: u8, target: &Digest) -> bool {
        let Some(Ok(userspace)) = &self.userspace else { return false };
        self.replayed.value(bank, index).is_some_and(|value| userspace.reaches(bank, index, *value, target))
    }

    fn touches(&self, index: u8) -> bool {
        self.replayed.touches(index) || matches!(&self.userspace, Some(Ok(userspace)) if userspace.touches(index))
    }
}

/// What the node showed of its boot log.
#[derive(Clone, Copy, Debug)]
pub enum BootLogEvidence<'a> {
    /// It has none. A positive verdict says that firmware was judged by PCR values alone.
    None,
    /// It was read and replayed.
    Replayed(&'a ReadBootLog<'a>),
    /// It was judged by an earlier verdict on this boot, and [`boot_log_is_judged`] said so.
    JudgedBefore,
    /// It cannot be read.
    Unreadable(BootLogError),
}

/// What the node showed of its IMA list.
#[derive(Clone, Copy, Debug)]
pub enum ImaEvidence<'a> {
    /// It has none.
    None,
    /// It was read up to the quoted PCR 10, and its entries were judged where the policy has rules for them.
    Replayed(&'a ReplayedIma, Option<&'a ImaJudgement>),
    /// It cannot be read, or no part of it replays to the quoted PCR 10.
    Unreadable(ImaError),
}

/// Why pins cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum PinsError {
    #[error("tenant key {0} is not an uncompressed P-256 point in hex")]
    BadKey(usize),
    #[error("there is no tenant key, or there are more than four")]
    WrongCount(#[from] ManifestError),
}

/// The phase PCR's events, computed from what the operator pinned; never taken from the node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PhaseEvents {
    pins: Vec<u8>,
}

impl PhaseEvents {
    /// From tenant keys in SEC1, uncompressed; their order does not matter.
    ///
    /// # Errors
    /// [`PinsError`].
    pub fn new(tenant_keys: &[[u8; 65]], autorun: bool) -> Result<Self, PinsError> {
        Self::from_keys(tenant_keys.iter().map(|key| TenantPublicKey::from_sec1(key)), autorun)
    }

    /// From pins as they are stored.
    ///
    /// # Errors
    /// [`PinsError`].
    pub fn from_pins(pins: &Pins) -> Result<Self, PinsError> {
        Self::from_keys(pins.tenant_keys.iter().map(|key| TenantPublicKey::from_text(key)), pins.autorun)
    }

    fn from_keys(keys: impl Iterator<Item = Option<TenantPublicKey>>, autorun: bool) -> Result<Self, PinsError> {
        let keys = keys
            .enumerate()
            .map(|(at, key)| key.ok_or(PinsError::BadKey(at + 1)))
            .collect::<Result<Vec<_>, PinsError>>()?;
        Ok(Self { pins: pins_event(&keys, autorun)? })
    }

    /// The phase PCR of `bank` after the first event, and after both.
    pub fn values(&self, bank: HashAlg) -> (Digest, Digest) {
        // Digests of the bank extend it: neither can fail, and the empty digest would equal no PCR.
        let after = |old: &Digest, data: &[u8]| extend(bank, old, &event_digest(bank, data)).unwrap_or(Digest::EMPTY);
        let pins = after(&Digest::zero(bank), &self.pins);
        (pins, after(&pins, DELIVERED_EVENT))
    }
}

/// How far a node's bootstrap has come, as its phase PCR says.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseState {
    /// The policy names no phase PCR.
    NotJudged,
    /// The pins were measured, and nothing else.
    Pins,
    /// The payload was delivered too.
    Delivered,
}

/// Everything a verdict rests on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What the quote was for; its qualifying data was checked with this.
    pub purpose: Purpose,
    /// The policy in force.
    pub policy: Option<&'a Policy>,
    /// PCR values that hash to a verified quote's digest.
    pub pcrs: &'a QuotedPcrs,
    /// What the newest positive verdict remembers.
    pub previous: Option<&'a Checkpoint>,
    /// What is known of the TPM.
    pub hardware: Hardware,
    /// The boot log.
    pub boot_log: BootLogEvidence<'a>,
    /// The IMA list.
    pub ima: ImaEvidence<'a>,
    /// The phase PCR's events, from what the operator pinned for this node.
    pub phase: Option<&'a PhaseEvents>,
}

/// A verdict's reasons; what is kept and shown of it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Explanation {
    /// One sentence for a person.
    pub summary: String,
    /// What is wrong; empty in a good verdict.
    pub findings: Vec<Finding>,
    /// How many findings there are beyond those written down.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_findings: u64,
    /// What was checked, where that does not follow from the policy's PCR values.
    pub checked: Vec<String>,
    /// What the verdict does not speak of.
    pub not_checked: Vec<String>,
    /// The exceptions that the policy makes.
    pub accepted: Vec<&'static str>,
    /// What is known of the TPM.
    pub hardware: Option<Hardware>,
    /// How far the bootstrap has come.
    pub phase: Option<PhaseState>,
    /// The boot, compared with the one before.
    pub epoch: Option<Epoch>,
    /// The policy's name.
    pub policy: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde wants")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Every check that the policy asks for was done and passed. Only [`appraise`] makes one.
#[derive(Clone, Debug)]
pub struct GoodVerdict {
    explanation: Explanation,
    checkpoint: Checkpoint,
    policy: [u8; 32],
    release: Option<ReleaseRule>,
    phase: PhaseState,
    purpose: Purpose,
    quote_digest: [u8; 32],
}

impl GoodVerdict {
    /// Its reasons.
    pub const fn explanation(&self) -> &Explanation {
        &self.explanation
    }

    /// What to remember of the node; written in one transaction with the verdict.
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// How far the bootstrap has come.
    pub const fn phase(&self) -> PhaseState {
        self.phase
    }

    /// The policy it was judged by.
    pub const fn policy(&self) -> [u8; 32] {
        self.policy
    }

    /// SHA-256 of the TPMS_ATTEST it rests on.
    pub const fn quote_digest(&self) -> [u8; 32] {
        self.quote_digest
    }
}

/// A check failed.
#[derive(Clone, Debug)]
pub struct BadVerdict {
    explanation: Explanation,
    outcome: Outcome,
}

impl BadVerdict {
    /// Its reasons.
    pub const fn explanation(&self) -> &Explanation {
        &self.explanation
    }

    /// [`Outcome::Failed`] or [`Outcome::RolledBack`].
    pub const fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The short name of its first finding, for a node's history.
    pub fn code(&self) -> &'static str {
        self.explanation.findings.first().map_or("failed", |finding| finding.code)
    }
}

/// The evidence is genuine and no policy says what good is.
#[derive(Clone, Debug)]
pub struct UnjudgedVerdict {
    explanation: Explanation,
    checkpoint: Checkpoint,
}

impl UnjudgedVerdict {
    /// What stands out all the same.
    pub const fn explanation(&self) -> &Explanation {
        &self.explanation
    }

    /// The evidence to keep: a policy can be learned from it.
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// What appraisal makes of evidence.
#[derive(Clone, Debug)]
#[must_use]
pub enum Verdict {
    /// Trust.
    Good(GoodVerdict),
    /// No trust.
    Bad(BadVerdict),
    /// No policy, no trust, no failure.
    Unjudged(UnjudgedVerdict),
}

impl Verdict {
    /// What it makes of the node's trust.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Good(_) => Outcome::Good,
            Self::Bad(bad) => bad.outcome,
            Self::Unjudged(_) => Outcome::Unjudged,
        }
    }

    /// Its reasons.
    pub const fn explanation(&self) -> &Explanation {
        match self {
            Self::Good(good) => &good.explanation,
            Self::Bad(bad) => &bad.explanation,
            Self::Unjudged(unjudged) => &unjudged.explanation,
        }
    }

    /// Its reasons as they are stored.
    pub fn to_json(&self) -> serde_json::Value {
        // Strings, lists and names only: this cannot fail.
        serde_json::to_value(self.explanation()).unwrap_or_default()
    }

    /// One plain sentence.
    pub fn summary(&self) -> &str {
        &self.explanation().summary
    }

    /// What to remember of the node, if anything.
    pub const fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::Good(good) => Some(&good.checkpoint),
            Self::Unjudged(unjudged) => Some(&unjudged.checkpoint),
            Self::Bad(_) => None,
        }
    }
}

/// Whether an earlier verdict on this boot, by the same policy, replayed and judged the boot log for every quoted PCR that
/// it accounts for: then it need not be read again, and [`BootLogEvidence::JudgedBefore`] stands for it.
pub fn boot_log_is_judged(
    previous: Option<&Checkpoint>,
    epoch: Epoch,
    policy: Option<&Policy>,
    pcrs: &QuotedPcrs,
) -> bool {
    let same = |previous: &&Checkpoint| {
        epoch == Epoch::Same && previous.boot_log.is_some() && previous.policy == policy.map(Policy::id)
    };
    let Some(previous) = previous.filter(same) else { return false };
    pcrs.iter().all(|(bank, index, value)| match log_accounts(policy, index) {
        Accounts::Always => remembered(previous, bank, index).is_some(),
        // Userspace went on measuring: its log is wanted again.
        Accounts::WithUserspace => remembered(previous, bank, index) == Some(value.as_bytes()),
        Accounts::Partly => true,
    })
}

/// How far the logs have to account for a PCR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Accounts {
    /// For all of it, whatever the policy: nothing else extends it but what the logs show.
    Always,
    /// For all of it, since the policy has rules for its events; userspace goes on measuring into it.
    WithUserspace,
    /// Others go on after the logs have ended.
    Partly,
}

fn log_accounts(policy: Option<&Policy>, index: u8) -> Accounts {
    let is_phase = policy.and_then(Policy::release) == Some(ReleaseRule::PhasePcr(index));
    let is_judged = policy.and_then(Policy::boot).is_some_and(|rules| judges(rules, index));
    match index {
        IMA_PCR => Accounts::Partly,
        _ if is_phase => Accounts::Partly,
        _ if is_boot_time_pcr(index) => Accounts::Always,
        _ if is_judged => Accounts::WithUserspace,
        _ => Accounts::Partly,
    }
}

fn judges(rules: &BootRules, index: u8) -> bool {
    1u32.checked_shl(index.into()).is_some_and(|bit| rules.pcr_mask() & bit != 0)
}

/// Judges proven evidence.
///
/// Everything is checked, also after the first finding, so that a verdict tells all. Without a policy the result is
/// never good.
pub fn appraise(input: &Input<'_>) -> Verdict {
    let mut judge = Judge { input, report: Report::default() };
    let epoch = continuity(input.previous, input.pcrs.quote());
    let outcome = match epoch {
        Ok(_) => Outcome::Failed,
        Err(discontinuity) => judge.discontinuity(discontinuity),
    };
    boot_notes(input.previous, input.pcrs).into_iter().for_each(|note| judge.report.checked(note));
    let boot_log = judge.boot_log(epoch.ok());
    let ima = judge.ima(epoch.ok());
    let phase = input.policy.map(|policy| judge.policy(policy));
    let (mut findings, more_findings, checked, not_checked) = judge.report.into_parts();

    let policy_name = input.policy.map(|policy| policy.name().to_owned());
    let accepted = input.policy.map(|policy| policy.accepted().map(Exception::name).collect()).unwrap_or_default();
    let explain = |summary, findings| Explanation {
        summary,
        findings,
        more_findings,
        checked,
        not_checked,
        accepted,
        hardware: Some(input.hardware),
        phase: phase.flatten(),
        epoch: epoch.ok(),
        policy: policy_name,
    };
    let attest = input.pcrs.quote().attest();
    let checkpoint = || Checkpoint {
        reset_count: attest.clock_info.reset_count,
        restart_count: attest.clock_info.restart_count,
        clock: attest.clock_info.clock,
        firmware_version: attest.firmware_version,
        pcrs: input.pcrs.to_checkpoint(),
        boot_log,
        ima_entries: ima.map_or(0, |(list, _)| list.entries()),
        ima_pcrs: ima.map(|(list, _)| list.to_checkpoint()).unwrap_or_default(),
        ima_keys: ima.and_then(|(_, judged)| judged).map(|judged| judged.keys.clone()).unwrap_or_default(),
        policy: input.policy.map(Policy::id),
    };
    let Some(policy) = input.policy else {
        // A rollback is one whatever the policy: it must not be remembered away by the next checkpoint.
        if epoch.is_err() {
            return Verdict::Bad(BadVerdict {
                explanation: explain(bad_summary(&findings, more_findings), findings),
                outcome,
            });
        }
        let summary = "no policy says what a good state of this node is".to_owned();
        return Verdict::Unjudged(UnjudgedVerdict {
            explanation: explain(summary, findings),
            checkpoint: checkpoint(),
        });
    };
    match phase.flatten() {
        Some(phase) if findings.is_empty() && more_findings == 0 => {
            let summary = good_summary(policy, input.pcrs, phase);
            Verdict::Good(GoodVerdict {
                checkpoint: checkpoint(),
                explanation: explain(summary, findings),
                policy: policy.id(),
                release: policy.release(),
                phase,
                purpose: input.purpose,
                quote_digest: input.pcrs.quote().digest(),
            })
        }
        _ => {
            // What the operator can change least comes last: a wrong PCR explains more than unproven hardware.
            findings.sort_by_key(|finding| finding.code == "hardware_unproven");
            Verdict::Bad(BadVerdict { explanation: explain(bad_summary(&findings, more_findings), findings), outcome })
        }
    }
}

/// An appraisal under way.
struct Judge<'i, 'a> {
    input: &'i Input<'a>,
    report: Report,
}

impl<'a> Judge<'_, 'a> {
    fn find(
        &mut self,
        check: Check,
        code: &'static str,
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.report.find(Finding::about(check, code, what, expected, found));
    }

    fn find_at(
        &mut self,
        check: Check,
        code: &'static str,
        place: Place,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.report.find(Finding::at(check, code, place, expected, found));
    }

    fn discontinuity(&mut self, discontinuity: Discontinuity) -> Outcome {
        let (what, expected, found) = discontinuity.parts();
        self.find(Check::Continuity, discontinuity.code(), what, expected, found);
        if discontinuity.is_rollback() { Outcome::RolledBack } else { Outcome::Failed }
    }

    /// Compares the boot log with the quoted PCRs and judges its events; returns its digest if it accounts for all PCRs
    /// that it has to.
    fn boot_log(&mut self, epoch: Option<Epoch>) -> Option<[u8; 32]> {
        let before = self.report.count();
        let rules = self.input.policy.and_then(Policy::boot);
        let (digest, complete) = match self.input.boot_log {
            BootLogEvidence::None => {
                if rules.is_some() {
                    let expected = "a boot log, which the policy has rules for";
                    self.find(Check::BootLog, "boot_log_missing", "boot log", expected, "none");
                } else {
                    self.report.not_checked("boot log: the node has none; firmware was judged by PCR values alone");
                }
                return None;
            }
            BootLogEvidence::Unreadable(error) => {
                let found = error.to_string();
                self.find(Check::BootLog, "boot_log_unreadable", "boot log", "a TCG event log", found);
                return None;
            }
            BootLogEvidence::Replayed(boot) => {
                let complete = self.replayed_boot_log(boot);
                if self.report.count() == before {
                    self.boot_events(boot, rules);
                } else if rules.is_some() {
                    self.report.not_checked("boot log: its events, because it does not replay to the quoted PCRs");
                }
                (boot.replayed.digest(), complete)
            }
            BootLogEvidence::JudgedBefore => {
                let policy = self.input.policy.map(Policy::id);
                let same = |previous: &&Checkpoint| epoch == Some(Epoch::Same) && previous.policy == policy;
                let previous = self.input.previous.filter(same);
                let Some((previous, digest)) = previous.and_then(|previous| Some((previous, previous.boot_log?)))
                else {
                    self.find(Check::BootLog, "boot_log_missing", "boot log", "the log of this boot", "none");
                    return None;
                };
                for (bank, index, value) in self.input.pcrs.iter() {
                    let was = remembered(previous, bank, index);
                    let is_accounted = log_accounts(self.input.policy, index) != Accounts::Partly;
                    if is_accounted && was != Some(value.as_bytes()) {
                        let expected = was.map_or_else(|| "a judged value".to_owned(), hex::encode);
                        let place = Place::pcr(bank, index);
                        self.find_at(Check::BootLog, "boot_log_mismatch", place, expected, value.to_string());
                    }
                }
                match rules {
                    Some(_) => self.report.checked("boot log: judged earlier in this boot, its PCRs are the same"),
                    None => self.boot_events_unjudged(),
                }
                (digest, true)
            }
        };
        (complete && self.report.count() == before).then_some(digest)
    }

    /// Compares the values that the logs give with the quoted ones; false if a bank cannot be compared.
    fn replayed_boot_log(&mut self, boot: &ReadBootLog<'_>) -> bool {
        let pcrs = self.input.pcrs;
        let mut complete = true;
        if let Some(Err(error)) = &boot.userspace {
            let found = error.to_string();
            self.find(Check::BootLog, "userspace_log_unreadable", "userspace log", "systemd's measurement log", found);
        }
        for (bank, index, value) in pcrs.iter() {
            // A bank without digests in the log is named once below.
            if !boot.replayed.has_bank(bank) {
                continue;
            }
            // None for a measurement of userspace without a digest for the bank: then nothing accounts for the value.
            let replayed = boot.value(bank, index);
            if replayed.as_ref() == Some(value) || boot.reaches(bank, index, value) {
                continue;
            }
            match log_accounts(self.input.policy, index) {
                Accounts::Always | Accounts::WithUserspace => {
                    let expected = match replayed {
                        Some(replayed) => format!("{replayed} (the log's)"),
                        None => format!("a {bank} digest of each measurement of userspace"),
                    };
                    let place = Place::pcr(bank, index);
                    self.find_at(Check::BootLog, "boot_log_mismatch", place, expected, value.to_string());
                }
                Accounts::Partly if boot.touches(index) => self.report.not_checked(format!(
                    "boot log: PCR {bank}:{index} was extended after the log ended, so the log is not proven for it"
                )),
                Accounts::Partly => {}
            }
        }
        for bank in pcrs.banks().filter(|bank| !boot.replayed.has_bank(*bank)) {
            complete = false;
            if self.input.policy.is_some_and(|policy| policy.boot().is_some()) {
                let what = format!("boot log, bank {bank}");
                self.find(Check::BootLog, "boot_log_missing", what, format!("{bank} digests"), "none");
            } else {
                self.report.not_checked(format!("boot log: it holds no {bank} digests, so it could not be replayed"));
            }
        }
        complete
    }

    fn boot_events(&mut self, boot: &'a ReadBootLog<'a>, rules: Option<&BootRules>) {
        let Some(rules) = rules else { return self.boot_events_unjudged() };
        let banks: Vec<_> = self.input.pcrs.banks().collect();
        let userspace = self.proven_userspace(boot, rules);
        let input =
            BootInput { log: &boot.log, banks: &banks, command_line: boot.command_line, userspace: userspace.as_ref() };
        boot_rules::judge(rules, &input, &mut self.report);
    }

    /// What userspace measured up to the quote, in the PCRs that the rules speak of: what was measured later, or only said
    /// to be, meets no rule. In every bank it is the same measurements.
    fn proven_userspace(&mut self, boot: &ReadBootLog<'_>, rules: &BootRules) -> Option<UserspaceLog> {
        let Some(Ok(userspace)) = &boot.userspace else { return None };
        let pcrs = self.input.pcrs;
        let mut counts = BTreeMap::new();
        for index in (0..16).filter(|index| judges(rules, *index) && userspace.touches(*index)) {
            let target = |bank| Some((bank, *boot.replayed.value(bank, index)?, *pcrs.value(bank, index)?));
            // That a bank is not quoted, or not in the log, is a finding of its own.
            let targets: Vec<_> = pcrs.banks().filter_map(target).collect();
            match userspace.proven_count(index, &targets) {
                Some(count) => _ = counts.insert(index, count),
                None if targets.is_empty() => {}
                None => {
                    let place = Place { pcr: Some(index), ..Place::default() };
                    let (expected, found) =
                        ("the same measurements in every bank", "more of them in one than in another");
                    self.find_at(Check::BootLog, "boot_log_mismatch", place, expected, found);
                }
            }
        }
        Some(userspace.first(counts))
    }

    fn boot_events_unjudged(&mut self) {
        self.report.not_checked("boot log: its events were not judged, only replayed: the policy has no [boot]");
    }

    /// Compares the IMA list with the quoted PCR 10 and takes over what its judge found; returns it if it is proven.
    fn ima(&mut self, epoch: Option<Epoch>) -> Option<(&'a ReplayedIma, Option<&'a ImaJudgement>)> {
        let targets: Vec<_> = self.input.pcrs.ima_targets().collect();
        let rules = self.input.policy.and_then(Policy::ima);
        match self.input.ima {
            ImaEvidence::None => {
                let measured = targets.iter().find(|(_, value)| value.iter().any(|byte| *byte != 0));
                let had_entries =
                    epoch == Some(Epoch::Same) && self.input.previous.is_some_and(|previous| previous.ima_entries > 0);
                if let Some((bank, value)) = measured {
                    let place = Place::pcr(*bank, IMA_PCR);
                    self.find_at(Check::Ima, "ima_list_missing", place, "the IMA list behind it", value.to_string());
                } else if had_entries {
                    let expected = "the IMA list of this boot, judged before";
                    self.find(Check::Ima, "ima_list_missing", "10", expected, "none");
                } else if rules.is_some() {
                    let expected = "an IMA list, which the policy has rules for";
                    self.find(Check::Ima, "ima_list_missing", "10", expected, "none");
                } else {
                    self.report.not_checked("IMA: the node has no list; what it runs after boot is not known");
                }
                None
            }
            ImaEvidence::Unreadable(error) => {
                self.find(Check::Ima, error.code(), "IMA list", "a list that replays to PCR 10", error.to_string());
                None
            }
            ImaEvidence::Replayed(ima, judged) => {
                if targets.is_empty() {
                    let expected = "PCR 10, which the IMA list replays to";
                    self.find(Check::Ima, "pcr_not_quoted", "10", expected, "not quoted");
                    return None;
                }
                for (bank, value) in &targets {
                    let replayed = ima.value(*bank);
                    if replayed != Some(value) {
                        let expected = replayed.map_or_else(|| "a replayed value".to_owned(), ToString::to_string);
                        let place = Place::pcr(*bank, IMA_PCR);
                        self.find_at(Check::Ima, "ima_mismatch", place, expected, value.to_string());
                    }
                }
                if ima.other_pcr_entries() > 0 {
                    self.report.not_checked(format!(
                        "IMA: {} entries were measured into another PCR than 10 and are not proven",
                        ima.other_pcr_entries()
                    ));
                }
                self.ima_files(ima, judged);
                Some((ima, judged))
            }
        }
    }

    /// A judgement counts if it is by this policy and of exactly the entries that the replay proved.
    fn ima_files(&mut self, ima: &ReplayedIma, judged: Option<&ImaJudgement>) {
        let Some((policy, rules)) = self.input.policy.and_then(|policy| Some((policy, policy.ima()?))) else {
            return self.report.not_checked(format!(
                "IMA: the files of {} entries were not judged, only replayed to PCR 10: the policy has no [ima]",
                ima.entries()
            ));
        };
        let judged = judged.filter(|judged| judged.policy == policy.id() && judged.entries == ima.entries());
        let Some(judged) = judged else {
            let expected = format!("{} entries judged by this policy", ima.entries());
            return self.find(Check::ImaPolicy, "ima_not_judged", "IMA list", expected, "another judgement, or none");
        };
        self.report.append(&judged.report);
        if rules.wants_boot_aggregate_of_log()
            && let Some((entry, algorithm, found)) = &judged.boot_aggregate
        {
            self.boot_aggregate(*entry, algorithm, found);
        }
    }

    /// The list's first entry names the boot it belongs to: a hash of the PCRs that the boot log accounts for.
    fn boot_aggregate(&mut self, entry: u64, algorithm: &str, found: &[u8]) {
        let BootLogEvidence::Replayed(boot) = self.input.boot_log else {
            return self.report.not_checked("IMA: boot_aggregate, because there is no boot log to compute it from");
        };
        let candidates = HashAlg::from_name(algorithm)
            .map(|alg| boot_aggregates(alg, |index| boot.replayed.value(alg, index).copied()))
            .unwrap_or_default();
        if candidates.is_empty() {
            return self
                .report
                .not_checked(format!("IMA: boot_aggregate, because the boot log has no {algorithm} digests"));
        }
        if candidates.iter().all(|candidate| candidate.as_bytes() != found) {
            let expected = candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            let place = Place::entry(entry, Some(b"boot_aggregate"));
            let code = "ima_boot_aggregate_mismatch";
            self.find_at(Check::ImaPolicy, code, place, expected, hex::encode(found));
        } else {
            self.report.checked("IMA: boot_aggregate is that of the boot log");
        }
    }

    /// Judges by the policy; `None` if the phase PCR is not as it has to be, which then is a finding.
    fn policy(&mut self, policy: &Policy) -> Option<PhaseState> {
        match policy.signer() {
            Signer::None => {}
            Signer::Unchecked => self.report.not_checked("the policy's signature: no key says whose it should be"),
            Signer::Key(key) => self.report.checked(format!("the policy is signed by the key {}", key.id())),
        }
        let pcrs = self.input.pcrs;
        for (bank, index, good) in policy.pcrs() {
            let place = Place::pcr(bank, index);
            match pcrs.value(bank, index) {
                None => self.find_at(Check::PcrPolicy, "pcr_not_quoted", place, list(good), "not quoted"),
                Some(value) if good.contains(value) => {}
                Some(value) => self.find_at(Check::PcrPolicy, "pcr_mismatch", place, list(good), value.to_string()),
            }
        }
        if let Some(rules) = policy.boot() {
            let wanted = policy.selection(false).pcrs().filter(|(_, index)| judges(rules, *index));
            for (bank, index) in wanted.filter(|(bank, index)| pcrs.value(*bank, *index).is_none()) {
                let expected = "a value, since [boot] has rules for its events";
                self.find_at(Check::BootPolicy, "pcr_not_quoted", Place::pcr(bank, index), expected, "not quoted");
            }
        }
        let phase = self.phase(policy);
        if !policy.accepts(Exception::NoFirmwareMeasurements) {
            for bank in policy.banks() {
                let measured = FIRMWARE_PCRS
                    .filter_map(|index| pcrs.value(bank, index))
                    .any(|value| value.iter().any(|byte| *byte != 0));
                if !measured {
                    let expected = "a firmware PCR (0 to 7) that is not zero";
                    let code = "no_firmware_measurements";
                    self.find(Check::PcrPolicy, code, bank.name(), expected, "all quoted ones are zero");
                }
            }
        }
        if self.input.hardware == Hardware::Unproven && !policy.accepts(Exception::HardwareUnproven) {
            let expected = "a trusted EK certificate, or the node id on the allow-list";
            self.find(Check::Hardware, "hardware_unproven", "TPM", expected, "neither");
        }
        if !policy.pcrs().any(|(_, index, _)| FIRMWARE_PCRS.contains(&index)) && policy.boot().is_none() {
            self.report.not_checked("firmware: the policy names no PCR of 0 to 7");
        }
        if policy.release().is_none() {
            self.report.not_checked("phase: the policy has no release rule, so no share leaves under it");
        }
        phase
    }

    fn phase(&mut self, policy: &Policy) -> Option<PhaseState> {
        let Some(ReleaseRule::PhasePcr(index)) = policy.release() else { return Some(PhaseState::NotJudged) };
        let Some(events) = self.input.phase else {
            self.find(Check::Phase, "no_pins", "pins", "at least one tenant key", "none");
            return None;
        };
        let mut state = None;
        let mut agree = true;
        for bank in policy.banks() {
            let (pins, delivered) = events.values(bank);
            let place = Place::pcr(bank, index);
            let here = match self.input.pcrs.value(bank, index) {
                Some(value) if *value == pins => PhaseState::Pins,
                Some(value) if *value == delivered => PhaseState::Delivered,
                found => {
                    let found = found.map_or_else(|| "not quoted".to_owned(), ToString::to_string);
                    let expected = format!("{pins} (pins) or {delivered} (delivered)");
                    self.find_at(Check::Phase, "phase_pcr_mismatch", place, expected, found);
                    agree = false;
                    continue;
                }
            };
            if state.is_some_and(|state| state != here) {
                let (expected, found) = ("the same phase in every bank", "another than in the bank before");
                self.find_at(Check::Phase, "phase_pcr_mismatch", place, expected, found);
                agree = false;
            }
            state = Some(here);
        }
        state.filter(|_| agree)
    }
}

fn remembered(checkpoint: &Checkpoint, bank: HashAlg, index: u8) -> Option<&[u8]> {
    let entry = checkpoint.pcrs.iter().find(|(id, at, _)| *id == bank.id() && *at == index);
    entry.map(|(_, _, value)| value.as_slice())
}

fn list(good: &[Digest]) -> String {
    let mut text = good.iter().take(MAX_EXPECTED).map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    if let Some(more) = good.len().checked_sub(MAX_EXPECTED).filter(|more| *more > 0) {
        text.push_str(&format!(" or one of {more} more"));
    }
    text
}

fn bad_summary(findings: &[Finding], more: u64) -> String {
    match findings {
        [] => "a check was not completed".to_owned(),
        [only] if more == 0 => only.sentence(),
        [first, rest @ ..] => format!("{} (and {} more)", first.sentence(), rest.len() as u64 + more),
    }
}

fn good_summary(policy: &Policy, pcrs: &QuotedPcrs, phase: PhaseState) -> String {
    let mut text = format!("{} PCRs are as policy `{}` wants them", pcrs.iter().count(), policy.name());
    match phase {
        PhaseState::NotJudged => {}
        PhaseState::Pins => text.push_str("; pins measured"),
        PhaseState::Delivered => text.push_str("; payload delivered"),
    }
    let accepted: Vec<_> = policy.accepted().map(Exception::name).collect();
    if !accepted.is_empty() {
        text.push_str(&format!("; accepted: {}", accepted.join(", ")));
    }
    text
}

/// What else decides over a release, as it is now. Both times are by one clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReleaseConditions {
    /// When the verdict's nonce was made, milliseconds.
    pub nonce_ms: i64,
    /// Now, milliseconds.
    pub now_ms: i64,
    /// The policy in force now.
    pub policy: Option<[u8; 32]>,
    /// The operator stopped the node, or revoked or did not approve it.
    pub stopped: bool,
    /// The verdict was written and stands: no negative one came after it, and the node has not failed.
    pub stands: bool,
}

/// Why no share leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ReleaseRefused {
    #[error("the quote was not made for a bootstrap")]
    NotBootstrap,
    #[error("the policy has no release rule: it names neither a phase PCR nor `uncapped`")]
    NoReleaseRule,
    #[error("the node's phase PCR says that its payload was delivered in this boot")]
    PhaseDelivered,
    #[error("the verdict is {age_ms} ms old, more than {max} ms, or from the future", max = limits::RELEASE_VERDICT_MAX_AGE_MS)]
    VerdictTooOld { age_ms: i64 },
    #[error("the policy was changed after the verdict")]
    PolicyChanged,
    #[error("the node is stopped")]
    NodeStopped,
    #[error("the node has failed, or a worse verdict came after this one")]
    VerdictSuperseded,
}

impl ReleaseRefused {
    /// The short name that stands in a node's history.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotBootstrap => "not_bootstrap",
            Self::NoReleaseRule => "no_release_rule",
            Self::PhaseDelivered => "phase_delivered",
            Self::VerdictTooOld { .. } => "verdict_too_old",
            Self::PolicyChanged => "policy_changed",
            Self::NodeStopped => "node_stopped",
            Self::VerdictSuperseded => "verdict_superseded",
        }
    }
}

/// The proof that one share may leave now. Only [`release_right`] makes one, and it is used up by the release.
#[derive(Debug)]
#[must_use]
pub struct ReleaseRight {
    quote_digest: [u8; 32],
    reset_count: u32,
    restart_count: u32,
}

impl ReleaseRight {
    /// SHA-256 of the TPMS_ATTEST that the share is bound to.
    pub const fn quote_digest(&self) -> [u8; 32] {
        self.quote_digest
    }

    /// The boot it is for: (resetCount, restartCount).
    pub const fn epoch(&self) -> (u32, u32) {
        (self.reset_count, self.restart_count)
    }
}

/// Decides whether a share may leave on a good verdict.
///
/// # Errors
/// [`ReleaseRefused`], by the first condition that does not hold.
pub fn release_right(verdict: &GoodVerdict, now: &ReleaseConditions) -> Result<ReleaseRight, ReleaseRefused> {
    if now.stopped {
        return Err(ReleaseRefused::NodeStopped);
    }
    if !now.stands {
        return Err(ReleaseRefused::VerdictSuperseded);
    }
    if now.policy != Some(verdict.policy) {
        return Err(ReleaseRefused::PolicyChanged);
    }
    if verdict.purpose != Purpose::Bootstrap {
        return Err(ReleaseRefused::NotBootstrap);
    }
    match (verdict.release, verdict.phase) {
        (Some(ReleaseRule::Uncapped), _) | (Some(ReleaseRule::PhasePcr(_)), PhaseState::Pins) => {}
        (Some(ReleaseRule::PhasePcr(_)), PhaseState::Delivered) => return Err(ReleaseRefused::PhaseDelivered),
        (Some(ReleaseRule::PhasePcr(_)), PhaseState::NotJudged) | (None, _) => {
            return Err(ReleaseRefused::NoReleaseRule);
        }
    }
    let age_ms = now.now_ms.saturating_sub(now.nonce_ms);
    if !u64::try_from(age_ms).is_ok_and(|age| age <= limits::RELEASE_VERDICT_MAX_AGE_MS) {
        return Err(ReleaseRefused::VerdictTooOld { age_ms });
    }
    let Checkpoint { reset_count, restart_count, .. } = verdict.checkpoint;
    Ok(ReleaseRight { quote_digest: verdict.quote_digest, reset_count, restart_count })
}

#[cfg(test)]
mod tests;
