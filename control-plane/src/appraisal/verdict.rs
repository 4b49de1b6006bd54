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

use super::{
    FIRMWARE_PCRS, IMA_PCR,
    boot_log::{BootLogError, ReplayedBootLog, is_boot_time_pcr},
    continuity::{Discontinuity, Epoch, continuity},
    ima_log::{ImaError, ReplayedIma},
    pcrs::QuotedPcrs,
    policy::{Exception, Policy, ReleaseRule},
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

/// What the node showed of its boot log.
#[derive(Clone, Copy, Debug)]
pub enum BootLogEvidence<'a> {
    /// It has none. A positive verdict says that firmware was judged by PCR values alone.
    None,
    /// It was read and replayed.
    Replayed(&'a ReplayedBootLog),
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
    /// It was read up to the quoted PCR 10.
    Replayed(&'a ReplayedIma),
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

/// One thing that is not as it has to be.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// Short name, such as `pcr_mismatch`.
    pub code: &'static str,
    /// What it is about: `sha256:7` for a PCR.
    pub what: String,
    /// What it had to be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl Finding {
    /// The finding in one clause for a person.
    pub fn sentence(&self) -> String {
        let Self { what, expected, found, .. } = self;
        match self.code {
            "pcr_mismatch" => format!("PCR {what} holds a value that the policy does not list"),
            "pcr_not_quoted" => format!("PCR {what} was not quoted"),
            "phase_pcr_mismatch" => {
                format!("the phase PCR {what} does not hold the pins that the operator set for this node")
            }
            "no_pins" => "the operator pinned no tenant key for this node".to_owned(),
            "no_firmware_measurements" => format!("firmware measured nothing into bank {what}"),
            "hardware_unproven" => {
                "the TPM has neither a trusted EK certificate nor a place on the allow-list".to_owned()
            }
            "boot_log_mismatch" => format!("the boot log does not replay to PCR {what}"),
            "ima_mismatch" => format!("the IMA list does not replay to PCR {what}"),
            "ima_list_missing" => format!("PCR {what} holds measurements and the node shows no IMA list"),
            _ => format!("{what}: expected {expected}, found {found}"),
        }
    }
}

/// A verdict's reasons; what is kept and shown of it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Explanation {
    /// One sentence for a person.
    pub summary: String,
    /// What is wrong; empty in a good verdict.
    pub findings: Vec<Finding>,
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
    /// A verdict on evidence that never came to an appraisal: it is bound to the node's TPM and cannot be used.
    pub fn unusable(code: &'static str, what: &str, expected: &str, found: &str) -> Self {
        let finding = Finding { code, what: what.into(), expected: expected.into(), found: found.into() };
        let explanation = Explanation {
            summary: bad_summary(std::slice::from_ref(&finding)),
            findings: vec![finding],
            not_checked: Vec::new(),
            accepted: Vec::new(),
            hardware: None,
            phase: None,
            epoch: None,
            policy: None,
        };
        Self { explanation, outcome: Outcome::Failed }
    }

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

/// Whether an earlier verdict on this boot replayed the boot log to every quoted PCR that it accounts for: then it need
/// not be fetched again, and [`BootLogEvidence::JudgedBefore`] stands for it.
pub fn boot_log_is_judged(previous: Option<&Checkpoint>, epoch: Epoch, pcrs: &QuotedPcrs) -> bool {
    let Some(previous) = previous.filter(|previous| epoch == Epoch::Same && previous.boot_log.is_some()) else {
        return false;
    };
    pcrs.iter().all(|(bank, index, _)| !is_boot_time_pcr(index) || remembered(previous, bank, index).is_some())
}

/// Judges proven evidence.
///
/// Everything is checked, also after the first finding, so that a verdict tells all. Without a policy the result is
/// never good.
pub fn appraise(input: &Input<'_>) -> Verdict {
    let mut judge = Judge { input, findings: Vec::new(), not_checked: Vec::new() };
    let epoch = continuity(input.previous, input.pcrs.quote());
    let outcome = match epoch {
        Ok(_) => Outcome::Failed,
        Err(discontinuity) => judge.discontinuity(discontinuity),
    };
    let boot_log = judge.boot_log(epoch.ok());
    let ima = judge.ima(epoch.ok());
    let phase = input.policy.map(|policy| judge.policy(policy));
    let Judge { mut findings, not_checked, .. } = judge;

    let policy_name = input.policy.map(|policy| policy.name().to_owned());
    let accepted = input.policy.map(|policy| policy.accepted().map(Exception::name).collect()).unwrap_or_default();
    let explain = |summary, findings| Explanation {
        summary,
        findings,
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
        ima_entries: ima.as_ref().map_or(0, |(entries, _)| *entries),
        ima_pcrs: ima.as_ref().map(|(_, pcrs)| pcrs.clone()).unwrap_or_default(),
        policy: input.policy.map(Policy::id),
    };
    let Some(policy) = input.policy else {
        // A rollback is one whatever the policy: it must not be remembered away by the next checkpoint.
        if epoch.is_err() {
            return Verdict::Bad(BadVerdict { explanation: explain(bad_summary(&findings), findings), outcome });
        }
        let summary = "no policy says what a good state of this node is".to_owned();
        return Verdict::Unjudged(UnjudgedVerdict {
            explanation: explain(summary, findings),
            checkpoint: checkpoint(),
        });
    };
    match phase.flatten() {
        Some(phase) if findings.is_empty() => {
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
            Verdict::Bad(BadVerdict { explanation: explain(bad_summary(&findings), findings), outcome })
        }
    }
}

/// An appraisal under way.
struct Judge<'i, 'a> {
    input: &'i Input<'a>,
    findings: Vec<Finding>,
    not_checked: Vec<String>,
}

impl Judge<'_, '_> {
    fn find(
        &mut self,
        code: &'static str,
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.findings.push(Finding { code, what: what.into(), expected: expected.into(), found: found.into() });
    }

    fn discontinuity(&mut self, discontinuity: Discontinuity) -> Outcome {
        match discontinuity {
            Discontinuity::RolledBack { what, was, is } => {
                self.find("rolled_back", what, format!("at least {was}"), is.to_string());
                Outcome::RolledBack
            }
            Discontinuity::FirmwareChanged { was, is } => {
                let hex = |version| format!("0x{version:016x}");
                self.find("firmware_changed", "TPM firmware within one boot", hex(was), hex(is));
                Outcome::Failed
            }
        }
    }

    /// Compares the boot log with the quoted PCRs; returns its digest if it accounts for all of them that it has to.
    fn boot_log(&mut self, epoch: Option<Epoch>) -> Option<[u8; 32]> {
        let before = self.findings.len();
        let pcrs = self.input.pcrs;
        let mut complete = true;
        let digest = match self.input.boot_log {
            BootLogEvidence::None => {
                self.not_checked
                    .push("boot log: the node has none; firmware was judged by PCR values alone".to_owned());
                return None;
            }
            BootLogEvidence::Unreadable(error) => {
                self.find("boot_log_unreadable", "boot log", "a TCG event log", error.to_string());
                return None;
            }
            BootLogEvidence::Replayed(log) => {
                for (bank, index, value) in pcrs.iter() {
                    let Some(replayed) = log.value(bank, index) else {
                        // The bank has no digests in the log; said once per bank below.
                        continue;
                    };
                    if is_boot_time_pcr(index) {
                        if replayed != value {
                            let (expected, found) = (format!("{replayed} (the log's)"), value.to_string());
                            self.find("boot_log_mismatch", pcr_name(bank, index), expected, found);
                        }
                    } else if log.touches(index) && replayed != value {
                        self.not_checked.push(format!(
                            "boot log: PCR {bank}:{index} was extended after the log ended, so the log is not proven for it"
                        ));
                    }
                }
                for bank in pcrs.banks().filter(|bank| !log.has_bank(*bank)) {
                    complete = false;
                    self.not_checked.push(format!("boot log: it holds no {bank} digests, so it could not be replayed"));
                }
                log.digest()
            }
            BootLogEvidence::JudgedBefore => {
                let previous = self.input.previous.filter(|_| epoch == Some(Epoch::Same));
                let Some((previous, digest)) = previous.and_then(|previous| Some((previous, previous.boot_log?)))
                else {
                    self.find("boot_log_missing", "boot log", "the log of this boot", "none");
                    return None;
                };
                for (bank, index, value) in pcrs.iter().filter(|(_, index, _)| is_boot_time_pcr(*index)) {
                    let was = remembered(previous, bank, index);
                    if was != Some(value.as_bytes()) {
                        let expected = was.map_or_else(|| "a judged value".to_owned(), hex::encode);
                        self.find("boot_log_mismatch", pcr_name(bank, index), expected, value.to_string());
                    }
                }
                digest
            }
        };
        self.not_checked.push("boot log: its events were not judged, only replayed".to_owned());
        (complete && self.findings.len() == before).then_some(digest)
    }

    /// Compares the IMA list with the quoted PCR 10; returns what to remember of it.
    #[expect(clippy::type_complexity, reason = "two fields of a checkpoint, used once")]
    fn ima(&mut self, epoch: Option<Epoch>) -> Option<(u64, Vec<(u16, Vec<u8>)>)> {
        let targets: Vec<_> = self.input.pcrs.ima_targets().collect();
        match self.input.ima {
            ImaEvidence::None => {
                let measured = targets.iter().find(|(_, value)| value.iter().any(|byte| *byte != 0));
                let had_entries =
                    epoch == Some(Epoch::Same) && self.input.previous.is_some_and(|previous| previous.ima_entries > 0);
                if let Some((bank, value)) = measured {
                    self.find(
                        "ima_list_missing",
                        pcr_name(*bank, IMA_PCR),
                        "the IMA list behind it",
                        value.to_string(),
                    );
                } else if had_entries {
                    self.find("ima_list_missing", "10", "the IMA list of this boot, judged before", "none");
                } else {
                    self.not_checked.push("IMA: the node has no list; what it runs after boot is not known".to_owned());
                }
                None
            }
            ImaEvidence::Unreadable(error) => {
                self.find(error.code(), "IMA list", "a list that replays to PCR 10", error.to_string());
                None
            }
            ImaEvidence::Replayed(ima) => {
                if targets.is_empty() {
                    self.find("pcr_not_quoted", "10", "PCR 10, which the IMA list replays to", "not quoted");
                    return None;
                }
                for (bank, value) in &targets {
                    let replayed = ima.value(*bank);
                    if replayed != Some(value) {
                        let expected = replayed.map_or_else(|| "a replayed value".to_owned(), ToString::to_string);
                        self.find("ima_mismatch", pcr_name(*bank, IMA_PCR), expected, value.to_string());
                    }
                }
                self.not_checked.push(format!(
                    "IMA: the files of {} entries were not judged, only replayed to PCR 10",
                    ima.entries()
                ));
                if ima.other_pcr_entries() > 0 {
                    self.not_checked.push(format!(
                        "IMA: {} entries were measured into another PCR than 10 and are not proven",
                        ima.other_pcr_entries()
                    ));
                }
                Some((ima.entries(), ima.to_checkpoint()))
            }
        }
    }

    /// Judges by the policy; `None` if the phase PCR is not as it has to be, which then is a finding.
    fn policy(&mut self, policy: &Policy) -> Option<PhaseState> {
        let pcrs = self.input.pcrs;
        for (bank, index, good) in policy.pcrs() {
            let what = pcr_name(bank, index);
            match pcrs.value(bank, index) {
                None => self.find("pcr_not_quoted", what, list(good), "not quoted"),
                Some(value) if good.contains(value) => {}
                Some(value) => self.find("pcr_mismatch", what, list(good), value.to_string()),
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
                    self.find("no_firmware_measurements", bank.name(), expected, "all quoted ones are zero");
                }
            }
        }
        if self.input.hardware == Hardware::Unproven && !policy.accepts(Exception::HardwareUnproven) {
            let expected = "a trusted EK certificate, or the node id on the allow-list";
            self.find("hardware_unproven", "TPM", expected, "neither");
        }
        if !policy.pcrs().any(|(_, index, _)| FIRMWARE_PCRS.contains(&index)) {
            self.not_checked.push("firmware: the policy names no PCR of 0 to 7".to_owned());
        }
        if policy.release().is_none() {
            self.not_checked.push("phase: the policy has no release rule, so no share leaves under it".to_owned());
        }
        phase
    }

    fn phase(&mut self, policy: &Policy) -> Option<PhaseState> {
        let Some(ReleaseRule::PhasePcr(index)) = policy.release() else { return Some(PhaseState::NotJudged) };
        let Some(events) = self.input.phase else {
            self.find("no_pins", "pins", "at least one tenant key", "none");
            return None;
        };
        let mut state = None;
        let mut agree = true;
        for bank in policy.banks() {
            let (pins, delivered) = events.values(bank);
            let what = pcr_name(bank, index);
            let here = match self.input.pcrs.value(bank, index) {
                Some(value) if *value == pins => PhaseState::Pins,
                Some(value) if *value == delivered => PhaseState::Delivered,
                found => {
                    let found = found.map_or_else(|| "not quoted".to_owned(), ToString::to_string);
                    self.find("phase_pcr_mismatch", what, format!("{pins} (pins) or {delivered} (delivered)"), found);
                    agree = false;
                    continue;
                }
            };
            if state.is_some_and(|state| state != here) {
                self.find(
                    "phase_pcr_mismatch",
                    what,
                    "the same phase in every bank",
                    "another than in the bank before",
                );
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

fn pcr_name(bank: HashAlg, index: u8) -> String {
    format!("{bank}:{index}")
}

fn list(good: &[Digest]) -> String {
    let mut text = good.iter().take(MAX_EXPECTED).map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    if let Some(more) = good.len().checked_sub(MAX_EXPECTED).filter(|more| *more > 0) {
        text.push_str(&format!(" or one of {more} more"));
    }
    text
}

fn bad_summary(findings: &[Finding]) -> String {
    match findings {
        [] => "a check was not completed".to_owned(),
        [only] => only.sentence(),
        [first, rest @ ..] => format!("{} (and {} more)", first.sentence(), rest.len()),
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
