//! What a check found: which check, where, what was expected and what was there. Verdicts and the `appraise` command are
//! made of these.

use std::fmt;

use protocol::tpm::alg::HashAlg;
use serde::{Serialize, Serializer};

/// Findings written down in full; the rest is counted. A rewritten system has one a file.
pub const MAX_FINDINGS: usize = 64;

/// A check, in the order in which evidence passes them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The AK's public area.
    Ak,
    /// The signature over the quote.
    Signature,
    /// What was signed is a TPM's quote, by the right signer.
    Quote,
    /// What the quote is bound to.
    QualifyingData,
    /// Which PCRs it covers.
    PcrSelection,
    /// The values behind its digest.
    PcrDigest,
    /// The EK certificate and its path.
    EkCertificate,
    /// Whether the TPM is known to be one.
    Hardware,
    /// Counters, clock and firmware version against what is remembered.
    Continuity,
    /// PCR values against the policy.
    PcrPolicy,
    /// The phase PCR against the pins.
    Phase,
    /// The boot log against the PCRs.
    BootLog,
    /// The boot log's events against the policy.
    BootPolicy,
    /// The IMA list against PCR 10.
    Ima,
    /// The IMA list's entries against the policy.
    ImaPolicy,
    /// The policy itself: its form and signature.
    Policy,
}

impl Check {
    /// All of them, in order.
    pub const ALL: [Self; 16] = [
        Self::Ak,
        Self::Signature,
        Self::Quote,
        Self::QualifyingData,
        Self::PcrSelection,
        Self::PcrDigest,
        Self::EkCertificate,
        Self::Hardware,
        Self::Continuity,
        Self::PcrPolicy,
        Self::Phase,
        Self::BootLog,
        Self::BootPolicy,
        Self::Ima,
        Self::ImaPolicy,
        Self::Policy,
    ];
}

/// Where something was found; what does not apply is left out.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Place {
    /// The PCR bank.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "bank_name")]
    pub bank: Option<HashAlg>,
    /// The PCR.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcr: Option<u8>,
    /// The event's number in the boot log, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<usize>,
    /// The event's type, by its name in the specification: a claim of whoever wrote the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// The entry's number in the IMA list, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<u64>,
    /// The file's path, or what was measured in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[expect(clippy::ref_option, reason = "the form that serde wants")]
fn bank_name<S: Serializer>(bank: &Option<HashAlg>, serializer: S) -> Result<S::Ok, S::Error> {
    match bank {
        Some(bank) => serializer.serialize_str(bank.name()),
        None => serializer.serialize_none(),
    }
}

impl Place {
    /// A PCR of a bank.
    pub fn pcr(bank: HashAlg, pcr: u8) -> Self {
        Self { bank: Some(bank), pcr: Some(pcr), ..Self::default() }
    }

    /// An event of the boot log.
    pub fn event(number: usize, pcr: u32, event_type: impl Into<String>) -> Self {
        Self {
            pcr: u8::try_from(pcr).ok(),
            event: Some(number),
            event_type: Some(event_type.into()),
            ..Self::default()
        }
    }

    /// An entry of the IMA list; `path` may hold anything and is shown escaped.
    pub fn entry(number: u64, path: Option<&[u8]>) -> Self {
        let path = path.map(|path| String::from_utf8_lossy(path).chars().take(512).collect());
        Self { pcr: Some(super::IMA_PCR), entry: Some(number), path, ..Self::default() }
    }
}

/// For people: `sha256:7`, `PCR 7 event 12 (EV_SEPARATOR)`, `IMA entry 5 (/usr/bin/x)`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(entry) = self.entry {
            write!(f, "IMA entry {entry}")?;
            return self.path.as_ref().map_or(Ok(()), |path| write!(f, " ({})", path.escape_debug()));
        }
        match (self.bank, self.pcr) {
            (Some(bank), Some(pcr)) => write!(f, "{bank}:{pcr}")?,
            (None, Some(pcr)) => write!(f, "PCR {pcr}")?,
            (Some(bank), None) => write!(f, "{bank}")?,
            (None, None) => {}
        }
        if let Some(event) = self.event {
            let gap = if self.bank.is_some() || self.pcr.is_some() { " " } else { "" };
            write!(f, "{gap}event {event}")?;
        }
        self.event_type.as_ref().map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

/// One thing that is not as it has to be.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// Short name, such as `pcr_mismatch`.
    pub code: &'static str,
    /// What it is about, for a person: `sha256:7` for a PCR.
    pub what: String,
    /// The same as data.
    #[serde(flatten)]
    pub place: Place,
    /// What it had to be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl Finding {
    /// A finding about a place.
    pub fn at(
        check: Check,
        code: &'static str,
        place: Place,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self { check, code, what: place.to_string(), place, expected: expected.into(), found: found.into() }
    }

    /// A finding about something that is no PCR, event or entry.
    pub fn about(
        check: Check,
        code: &'static str,
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        let place = Place::default();
        Self { check, code, what: what.into(), place, expected: expected.into(), found: found.into() }
    }

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

/// The findings of an appraisal under way, bounded, and what it did not look at.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    findings: Vec<Finding>,
    more: u64,
    checked: Vec<String>,
    not_checked: Vec<String>,
}

impl Report {
    /// Adds a finding; beyond [`MAX_FINDINGS`] it is counted only.
    pub fn find(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS { self.findings.push(finding) } else { self.more += 1 }
    }

    /// Adds one sentence on what was checked.
    pub fn checked(&mut self, what: impl Into<String>) {
        self.checked.push(what.into());
    }

    /// Adds one sentence on what was not checked.
    pub fn not_checked(&mut self, what: impl Into<String>) {
        self.not_checked.push(what.into());
    }

    /// Adds what another part of the appraisal reports.
    pub fn append(&mut self, other: &Self) {
        for finding in &other.findings {
            self.find(finding.clone());
        }
        self.more += other.more;
        self.checked.extend_from_slice(&other.checked);
        self.not_checked.extend_from_slice(&other.not_checked);
    }

    /// How many findings there are, those too that are counted only.
    pub fn count(&self) -> u64 {
        self.more + self.findings.len() as u64
    }

    /// Whether nothing was found.
    pub const fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.more == 0
    }

    /// The findings that are written down, in the order in which they were made.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many are counted only.
    pub const fn more(&self) -> u64 {
        self.more
    }

    /// What was checked, a sentence each.
    pub fn what_was_checked(&self) -> &[String] {
        &self.checked
    }

    /// What was not checked, a sentence each.
    pub fn what_was_not_checked(&self) -> &[String] {
        &self.not_checked
    }

    /// Takes it apart: findings, how many more, checked, not checked.
    pub fn into_parts(self) -> (Vec<Finding>, u64, Vec<String>, Vec<String>) {
        (self.findings, self.more, self.checked, self.not_checked)
    }
}
