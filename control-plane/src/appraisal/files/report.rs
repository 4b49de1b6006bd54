//! What an appraisal of files says, in the form that the `appraise` command prints as JSON.

use std::{collections::BTreeMap, fmt};

use protocol::tpm::alg::{Digest, HashAlg};
use serde::Serialize;

use super::super::finding::{Check, Finding, Place};

/// A file that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InputError {
    /// Which input: the flag's name.
    pub input: &'static str,
    /// A stable short name of why.
    pub reason: &'static str,
    /// The offset in bytes at which the reading stopped.
    pub offset: usize,
    /// The same for a person.
    pub detail: String,
}

impl InputError {
    /// An error of one input.
    pub fn new(input: &'static str, reason: &'static str, offset: usize, detail: impl Into<String>) -> Self {
        Self { input, reason, offset, detail: detail.into() }
    }

    /// `{"verdict": "error", "reason", "input", "offset"}`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "verdict": "error", "reason": self.reason, "input": self.input, "offset": self.offset,
        })
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{} cannot be read ({}, at byte {}): {}", self.input, self.reason, self.offset, self.detail)
    }
}

impl std::error::Error for InputError {}

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum Outcome {
    /// In order.
    #[serde(rename = "pass")]
    Pass,
    /// Not in order.
    #[serde(rename = "fail")]
    Fail,
    /// What it needs was not given, or is not judged.
    #[serde(rename = "not checked")]
    NotChecked,
}

impl Outcome {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotChecked => "not checked",
        }
    }
}

/// Where something was found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Where {
    /// For a person: `sha256:7`, `PCR 7 event 12 (EV_SEPARATOR)`.
    pub what: String,
    /// The same as data.
    #[serde(flatten)]
    pub place: Place,
}

impl Where {
    /// Something that is no PCR, event or entry.
    pub fn about(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: Place::default() }
    }
}

/// One line of the result; a check that found several things has several.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Row {
    /// The check.
    pub check: Check,
    /// How it ended.
    pub result: Outcome,
    /// A stable short name: what is wrong, or which input was missing; `ok`.
    pub reason: &'static str,
    /// Where, if it is about one place.
    #[serde(rename = "where")]
    pub place: Option<Where>,
    /// What it had to be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl Row {
    pub(super) fn pass(check: Check, found: impl Into<String>) -> Self {
        let expected = String::new();
        Self { check, result: Outcome::Pass, reason: "ok", place: None, expected, found: found.into() }
    }

    pub(super) fn fail(
        check: Check,
        reason: &'static str,
        place: Option<Where>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self { check, result: Outcome::Fail, reason, place, expected: expected.into(), found: found.into() }
    }

    pub(super) fn not_checked(check: Check, reason: &'static str, found: impl Into<String>) -> Self {
        Self { check, result: Outcome::NotChecked, reason, place: None, expected: String::new(), found: found.into() }
    }

    pub(super) fn of_finding(finding: &Finding) -> Self {
        let Finding { check, code, what, place, expected, found } = finding;
        let place = Where { what: what.clone(), place: place.clone() };
        Self::fail(*check, code, Some(place), expected.clone(), found.clone())
    }
}

/// PCRs that logs replay to: bank by bank, only those that an event extended.
pub(super) type Replayed = BTreeMap<HashAlg, BTreeMap<u8, Digest>>;

/// What an appraisal of files makes of them.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[must_use]
pub struct FilesVerdict {
    verdict: Outcome,
    checks: Vec<Row>,
    replayed: BTreeMap<&'static str, BTreeMap<u8, String>>,
}

impl FilesVerdict {
    /// No failed check is a pass.
    pub(super) fn new(checks: Vec<Row>, replayed: &Replayed) -> Self {
        let failed = checks.iter().any(|row| row.result == Outcome::Fail);
        let bank = |(bank, pcrs): (&HashAlg, &BTreeMap<u8, Digest>)| {
            (bank.name(), pcrs.iter().map(|(index, value)| (*index, value.to_string())).collect())
        };
        let replayed = replayed.iter().filter(|(_, pcrs)| !pcrs.is_empty()).map(bank).collect();
        Self { verdict: if failed { Outcome::Fail } else { Outcome::Pass }, checks, replayed }
    }

    /// Whether no check failed.
    pub fn is_pass(&self) -> bool {
        self.verdict == Outcome::Pass
    }

    /// Every check, in order; each at least once.
    pub fn checks(&self) -> &[Row] {
        &self.checks
    }

    /// The reason of the first check that failed.
    pub fn reason(&self) -> Option<&'static str> {
        self.checks.iter().find(|row| row.result == Outcome::Fail).map(|row| row.reason)
    }

    /// What boot log, IMA list and userspace log replay to: bank, PCR, hex.
    pub const fn replayed(&self) -> &BTreeMap<&'static str, BTreeMap<u8, String>> {
        &self.replayed
    }
}
