//! Trying a policy that is not in force: the evidence of a node's newest quote is checked and judged again, as if the node
//! had shown it now. Pure; nothing is remembered of it.
//!
//! Counters are not compared with earlier ones, and a nonce that expired long ago is no objection: the question is what
//! the policy makes of this state, not whether the node is in it still.

use protocol::{
    message::attest::{PcrValueList, Purpose},
    tpm::{alg::HashAlg, attest::TpmsAttest},
};

use super::hardware_from_name;
use crate::{
    appraisal::{
        AkPublic, ImaReplay, Policy, QuoteError, QuotedPcrs, VerifiedQuote,
        finding::{Check, Finding},
        ima_log::{ImaError, ImaStart, ReplayedIma},
        ima_rules::{ImaJudge, ImaJudgement},
        verdict::{BootLogEvidence, ImaEvidence, Input, PhaseEvents, ReadBootLog, Verdict, appraise},
    },
    store::{EvidenceRow, ImaList},
};

/// PCRs named in a summary; a policy may ask for many that were not quoted.
const MAX_NAMED_PCRS: usize = 8;

/// What is kept of a node.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// What it showed.
    pub evidence: &'a EvidenceRow,
    /// The TPMT_PUBLIC of the AK that is pinned to it.
    pub ak_public: &'a [u8],
    /// The boot log of that digest, if it is kept still.
    pub boot_log: Option<&'a [u8]>,
    /// The IMA list, as far as it is kept.
    pub ima: Option<&'a ImaList>,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TrialOutcome {
    /// The node would be trusted.
    Good,
    /// It would not.
    Failed,
    /// Nothing is wrong with what is stored, and the policy asks for more.
    CannotTell,
}

/// What a policy would make of a node.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The result.
    pub outcome: TrialOutcome,
    /// In one sentence.
    pub summary: String,
    /// What is wrong; empty unless it failed.
    pub findings: Vec<Finding>,
    /// How many findings there are beyond those written down.
    pub more_findings: u64,
    /// What the stored evidence does not speak of.
    pub not_checked: Vec<String>,
}

/// Judges stored evidence by a policy; `phase` comes from what the operator pinned for the node.
///
/// # Errors
/// [`QuoteError`] if the stored quote does not verify under the pinned AK, or its values do not belong to it: the store was
/// altered, or another AK is pinned by now.
pub fn try_policy(policy: &Policy, stored: &Stored<'_>, phase: Option<&PhaseEvents>) -> Result<Trial, QuoteError> {
    let row = stored.evidence;
    let ak = AkPublic::from_tpmt(stored.ak_public)?;
    if ak.name().as_bytes() != row.ak_name.0 {
        return Err(QuoteError::WrongSigner);
    }
    // What was asked for then was compared then; what has to be covered is what this policy asks for, below.
    let selection = TpmsAttest::decode(&row.attested)?.pcr_select;
    let quote = VerifiedQuote::verify(&ak, &row.attested, &row.signature, &row.qualifying_data, &selection)?;
    let pcrs = QuotedPcrs::complete(&quote, Some(&row.pcrs), &PcrValueList::new(), true)?;

    let mut lacks = Lacks::default();
    lacks.pcrs.extend(policy.selection(true).pcrs().filter(|(bank, index)| pcrs.value(*bank, *index).is_none()));
    let read = match (row.boot_log, stored.boot_log) {
        (None, _) => None,
        (Some(_), None) => {
            lacks.boot_log = true;
            None
        }
        (Some(_), Some(log)) => Some(ReadBootLog::read(log, row.command_line.as_deref(), row.userspace.as_deref())),
    };
    let ima = if row.has_ima { replay(policy, stored, &pcrs, &mut lacks) } else { None };
    let verdict = appraise(&Input {
        purpose: if row.purpose == "bootstrap" { Purpose::Bootstrap } else { Purpose::Attest },
        policy: Some(policy),
        pcrs: &pcrs,
        previous: None,
        hardware: hardware_from_name(&row.hardware),
        boot_log: match &read {
            None => BootLogEvidence::None,
            Some(Ok(read)) => BootLogEvidence::Replayed(read),
            Some(Err(error)) => BootLogEvidence::Unreadable(*error),
        },
        ima: match &ima {
            None => ImaEvidence::None,
            Some(Ok((list, judged))) => ImaEvidence::Replayed(list, judged.as_ref()),
            Some(Err(error)) => ImaEvidence::Unreadable(*error),
        },
        phase,
    });
    Ok(lacks.weigh(&verdict))
}

/// The stored list up to the quoted PCR 10, judged; `None` if it is not kept.
fn replay(
    policy: &Policy,
    stored: &Stored<'_>,
    pcrs: &QuotedPcrs,
    lacks: &mut Lacks,
) -> Option<Result<(ReplayedIma, Option<ImaJudgement>), ImaError>> {
    let row = stored.evidence;
    let Some(entries) = row.ima_entries else {
        lacks.ima =
            Some("the IMA list: no part of it replayed to the quoted PCR 10 when it was shown, so none was kept");
        return None;
    };
    let epoch = (row.reset_count, row.restart_count);
    let list = stored.ima.filter(|list| list.epoch == epoch && list.entries >= entries);
    // A list without entries leaves nothing to keep.
    let bytes = match list {
        Some(list) => list.bytes.as_slice(),
        None if entries == 0 => &[],
        None => {
            lacks.ima = Some("the IMA list: it was not kept up to the stored quote");
            return None;
        }
    };
    let mut replay = ImaReplay::new(&ImaStart::beginning(), pcrs.ima_targets());
    let mut judge = ImaJudge::new(policy, 0, &[]);
    let pushed = match &mut judge {
        Some(judge) => replay.push_with_batches(bytes, |entries| judge.entries(entries)),
        None => replay.push(bytes),
    };
    Some(pushed.and_then(|()| replay.finish()).map(|list| (list, judge.map(ImaJudge::finish))))
}

/// What the policy asks for and the store does not have.
#[derive(Default)]
struct Lacks {
    pcrs: Vec<(HashAlg, u8)>,
    boot_log: bool,
    ima: Option<&'static str>,
}

impl Lacks {
    /// Whether a finding, or a sentence on what was not checked, only says that something is not stored.
    fn explains(&self, finding: &Finding) -> bool {
        match finding.check {
            Check::BootLog | Check::BootPolicy if self.boot_log => true,
            Check::Ima | Check::ImaPolicy if self.ima.is_some() => true,
            _ => finding.code == "pcr_not_quoted" || self.names(finding),
        }
    }

    /// Whether a finding is about a PCR that the stored quote does not cover.
    fn names(&self, finding: &Finding) -> bool {
        finding.place.bank.zip(finding.place.pcr).is_some_and(|pcr| self.pcrs.contains(&pcr))
    }

    fn sentences(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        if !self.pcrs.is_empty() {
            let named = self.pcrs.iter().take(MAX_NAMED_PCRS).map(|(bank, index)| format!("{bank}:{index}"));
            let mut text =
                format!("PCRs that the stored quote does not cover: {}", named.collect::<Vec<_>>().join(", "));
            if let Some(more) = self.pcrs.len().checked_sub(MAX_NAMED_PCRS).filter(|more| *more > 0) {
                text.push_str(&format!(" and {more} more"));
            }
            sentences.push(text);
        }
        if self.boot_log {
            sentences.push("the boot log: it is not kept any more".to_owned());
        }
        sentences.extend(self.ima.map(str::to_owned));
        sentences
    }

    fn weigh(self, verdict: &Verdict) -> Trial {
        let explanation = verdict.explanation();
        let lacking = self.sentences();
        // What the verdict says of logs that it was not given is true of the store, not of the node.
        let mut not_checked: Vec<String> = explanation
            .not_checked
            .iter()
            .filter(|text| !(self.boot_log && text.starts_with("boot log: the node has none")))
            .filter(|text| !(self.ima.is_some() && text.starts_with("IMA: the node has no list")))
            .cloned()
            .collect();
        not_checked.extend(lacking.iter().cloned());
        let findings: Vec<Finding> =
            explanation.findings.iter().filter(|finding| !self.explains(finding)).cloned().collect();
        let more_findings = explanation.more_findings;
        let (outcome, summary) = match (findings.split_first(), verdict) {
            (None, Verdict::Good(_)) if lacking.is_empty() => (TrialOutcome::Good, verdict.summary().to_owned()),
            (None, _) if more_findings > 0 => (TrialOutcome::Failed, verdict.summary().to_owned()),
            (None, _) if lacking.is_empty() => (TrialOutcome::CannotTell, verdict.summary().to_owned()),
            (None, _) => (TrialOutcome::CannotTell, format!("not stored: {}", lacking.join("; "))),
            (Some((first, rest)), _) => {
                let more = rest.len() as u64 + more_findings;
                let sentence = first.sentence();
                let summary = if more == 0 { sentence } else { format!("{sentence} (and {more} more)") };
                (TrialOutcome::Failed, summary)
            }
        };
        Trial { outcome, summary, findings, more_findings, not_checked }
    }
}
