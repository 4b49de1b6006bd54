//! Learning a policy: from what one node showed in a quote that verified, a policy that this evidence fulfils, for a
//! person to read and narrow. It says what the node looked like, not that this was good.
//!
//! Only what the quote proves is learned: an IMA list up to the quoted PCR 10, a boot log's events (that it replays is
//! checked by who appraised it), PCR values.

mod boot;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use protocol::tpm::alg::{Digest, HashAlg};

use super::{
    Exception, Policy, PolicyError, RESETTABLE, ReleaseRule,
    digests::MAX_PATH_LEN,
    ima::MAX_GLOBS,
    write::{BootAggregateText, DigestSet, Format, ImaText, PolicyText},
};
use crate::appraisal::{
    FIRMWARE_PCRS, IMA_PCR,
    boot_log::{BootLog, BootLogError, ReplayedBootLog},
    glob::{Glob, is_canonical},
    ima_log::{ImaEntry, ImaError, ImaReplay, ImaStart, Measurement},
    ima_rules::boot_aggregates,
};

/// Notes of one kind that are told in full.
const MAX_NOTES: usize = 20;
/// Where a list's first entry stands: the digest over the boot's PCRs.
const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// What a policy is learned from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence<'a> {
    /// PCR values: (TPM_ALG_ID, index, digest).
    pub pcrs: &'a [(u16, u8, Vec<u8>)],
    /// The boot log, as the kernel shows it.
    pub boot_log: Option<&'a [u8]>,
    /// What the node says its kernel's command line is, without a newline.
    pub command_line: Option<&'a [u8]>,
    /// The IMA list in the kernel's binary form, from its first entry.
    pub ima_list: Option<&'a [u8]>,
}

/// How a learned policy is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct LearnOptions<'a> {
    /// Its name.
    pub name: &'a str,
    /// The PCR that the agent extends with its pins.
    pub phase_pcr: Option<u8>,
    /// TOML or JSON; by the number of files if nothing is said.
    pub format: Option<Format>,
}

/// A learned policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Learned {
    /// Its text; it parses.
    pub text: String,
    /// What a person has to know of it, a sentence each.
    pub notes: Vec<String>,
    /// How many files it lists.
    pub files: usize,
}

/// Why evidence makes no policy.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum LearnError {
    #[error("the boot log cannot be read: {0}")]
    BootLog(#[from] BootLogError),
    #[error("the IMA list cannot be used: {0}")]
    Ima(#[from] ImaError),
    #[error("what was learned is no policy: {0}")]
    Policy(#[from] PolicyError),
}

/// Writes a policy that the evidence fulfils.
///
/// Left out of `[pcrs]`: the phase PCR (its value follows from the pins), PCR 10 (it changes with every file), 16 and 23
/// (anybody can reset them), banks of unknown algorithms, and PCRs whose events `[boot]` judges. Exceptions are written
/// only where the values could not be judged without.
///
/// # Errors
/// [`LearnError`].
pub fn learn(evidence: &Evidence<'_>, options: &LearnOptions<'_>) -> Result<Learned, LearnError> {
    let (mut policy, mut notes) = (pcr_rules(evidence.pcrs, options), Vec::new());
    let mut replayed = None;
    if let Some(bytes) = evidence.boot_log {
        let log = BootLog::parse(bytes)?;
        let quoted: BTreeSet<HashAlg> = evidence.pcrs.iter().filter_map(|(bank, ..)| HashAlg::from_id(*bank)).collect();
        let banks: Vec<HashAlg> = quoted.into_iter().collect();
        let skip = options.phase_pcr.map_or(0, |index| 1 << index);
        let rules = boot::learn(&log, &banks, evidence.command_line, skip);
        let mask = rules.pcrs.iter().fold(0, |mask, index| mask | 1u32 << index);
        for values in policy.pcrs.values_mut() {
            values.retain(|index, _| mask & (1 << index) == 0);
        }
        policy.pcrs.retain(|_, values| !values.is_empty());
        // A section without PCRs would be judged by the usual ones.
        policy.boot = (!rules.pcrs.is_empty()).then_some(rules);
        replayed = Some(ReplayedBootLog::of(&log));
    }
    if let Some(list) = evidence.ima_list {
        policy.ima = Some(ima_rules(list, evidence.pcrs, replayed.as_ref(), &mut notes)?);
    }
    let files = policy.counts().files;
    let text = match options.format.unwrap_or_else(|| policy.suggested_format()) {
        Format::Toml => toml(&policy),
        Format::Json => policy.to_json(),
    };
    // What is written has to be of use.
    Policy::parse(text.as_bytes())?;
    Ok(Learned { text, notes, files })
}

impl Policy {
    /// Writes a policy of PCR values alone that the node these came from fulfils; `pcrs` are (TPM_ALG_ID, index, digest).
    ///
    /// What is left out and which exceptions are written: see [`learn()`]. Values that make no policy give a text that
    /// does not parse.
    pub fn learn(pcrs: &[(u16, u8, Vec<u8>)], name: &str, phase_pcr: Option<u8>) -> String {
        toml(&pcr_rules(pcrs, &LearnOptions { name, phase_pcr, format: None }))
    }
}

fn pcr_rules(pcrs: &[(u16, u8, Vec<u8>)], options: &LearnOptions<'_>) -> PolicyText {
    let mut banks: BTreeMap<HashAlg, BTreeMap<u8, DigestSet>> = BTreeMap::new();
    let mut with_firmware = Vec::new();
    for (bank, index, value) in pcrs {
        let Some(bank) = HashAlg::from_id(*bank).filter(|bank| bank.digest_len() == value.len()) else { continue };
        if FIRMWARE_PCRS.contains(index) && value.iter().any(|byte| *byte != 0) {
            with_firmware.push(bank);
        }
        let is_phase = Some(*index) == options.phase_pcr;
        let left_out = *index > 23 || RESETTABLE.contains(index) || *index == IMA_PCR || is_phase;
        if !left_out {
            banks.entry(bank).or_default().insert(*index, BTreeSet::from([value.clone()]));
        }
    }
    let mut accept = BTreeSet::new();
    if banks.keys().any(|bank| !with_firmware.contains(bank)) || banks.is_empty() {
        accept.insert(Exception::NoFirmwareMeasurements);
    }
    if banks.contains_key(&HashAlg::Sha1) {
        accept.insert(Exception::Sha1);
    }
    PolicyText {
        header: vec![
            "Learned from one node: it says what that node looked like, not that this was good.".into(),
            "Delete what differs between good nodes, or add their other values to the lists.".into(),
        ],
        name: options.name.to_owned(),
        accept,
        pcrs: banks,
        release: options.phase_pcr.map(ReleaseRule::PhasePcr),
        boot: None,
        ima: None,
    }
}

/// The `[ima]` section that the proven part of this list fulfils.
fn ima_rules(
    list: &[u8],
    pcrs: &[(u16, u8, Vec<u8>)],
    boot: Option<&ReplayedBootLog>,
    notes: &mut Vec<String>,
) -> Result<ImaText, ImaError> {
    let targets: Vec<(HashAlg, Digest)> = pcrs
        .iter()
        .filter(|(_, index, _)| *index == IMA_PCR)
        .filter_map(|(bank, _, value)| {
            let bank = HashAlg::from_id(*bank)?;
            Some((bank, bank.read_digest(value).ok()?))
        })
        .collect();
    let mut replay = ImaReplay::new(&ImaStart::beginning(), targets);
    let mut learned = LearnedIma::default();
    replay.push_with(list, |entry| learned.entry(entry, boot))?;
    replay.finish()?;
    learned.tell(notes);
    Ok(learned.text)
}

#[derive(Default)]
struct LearnedIma {
    text: ImaText,
    /// The list's first boot_aggregate: algorithm's name and digest.
    boot_aggregate: Option<(Vec<u8>, Vec<u8>)>,
    /// What was seen and is worth a sentence: kind, how often, and the first of them.
    notable: BTreeMap<&'static str, (usize, Vec<String>)>,
}

impl LearnedIma {
    fn note(&mut self, kind: &'static str, which: impl Into<String>) {
        let (count, list) = self.notable.entry(kind).or_default();
        *count += 1;
        if list.len() < MAX_NOTES {
            list.push(which.into());
        }
    }

    fn entry(&mut self, entry: &ImaEntry<'_>, boot: Option<&ReplayedBootLog>) {
        if entry.pcr != u32::from(IMA_PCR) {
            return self
                .note("entries of another PCR than 10, which nothing proves", format!("entry {}", entry.number));
        }
        let measured = entry.measurement();
        if entry.is_violation() {
            return self.violation(measured.as_ref().ok().map(|measured| measured.path));
        }
        let Ok(measured) = measured else {
            let kind = "entries that cannot be read: no rule can allow them";
            return self.note(kind, format!("entry {}", entry.number));
        };
        let Measurement { path, digest, .. } = measured;
        let shown = || String::from_utf8_lossy(path).escape_debug().to_string();
        if path == BOOT_AGGREGATE && self.is_boot_aggregate(entry.number, &measured, boot) {
            return;
        }
        if measured.alg.is_none() || digest.iter().all(|byte| *byte == 0) {
            let kind = "digests of zeros or of an algorithm that no policy can list: no rule can allow them";
            return self.note(kind, shown());
        }
        let buffer = measured.buffer.filter(|_| path.first() != Some(&b'/'));
        let digest = digest.to_vec();
        match (std::str::from_utf8(path).ok().filter(|name| name.len() <= MAX_PATH_LEN), buffer) {
            (Some(name), Some(buffer)) => self.buffer(name, buffer, digest),
            (Some(name), None) => {
                self.text.files.entry(name.to_owned()).or_default().insert(digest);
            }
            (None, None) => {
                self.note("paths that no policy can list: their digests are good at any path", shown());
                self.text.any_path.insert(digest);
            }
            (None, Some(_)) => self.note("buffers whose names no policy can list: no rule can allow them", shown()),
        }
    }

    fn violation(&mut self, path: Option<&[u8]>) {
        let shown = path.map_or_else(|| "an unknown file".into(), |path| String::from_utf8_lossy(path).into_owned());
        let kind = "violations (files open for writing while they were measured), which the policy only reports";
        self.note(kind, shown.escape_debug().to_string());
        let glob = path.and_then(|path| exactly(path, self.text.violation_paths.len()));
        match glob {
            Some(glob) => {
                self.text.violation_paths.insert(glob);
            }
            None => self.text.report_violations = true,
        }
    }

    /// True if nothing more is to be said of this entry.
    fn is_boot_aggregate(&mut self, number: u64, measured: &Measurement<'_>, boot: Option<&ReplayedBootLog>) -> bool {
        let this = (measured.alg_name.to_vec(), measured.digest.to_vec());
        if number > 0 {
            return self.boot_aggregate.as_ref() == Some(&this);
        }
        self.boot_aggregate = Some(this);
        let candidates = match (measured.alg, boot) {
            (Some(alg), Some(boot)) => boot_aggregates(alg, |index| boot.value(alg, index).copied()),
            _ => Vec::new(),
        };
        let fits = candidates.is_empty() || candidates.iter().any(|candidate| candidate.as_bytes() == measured.digest);
        if !fits {
            let kind = "boot_aggregate that is not the boot log's: it is listed as it is";
            self.note(kind, hex::encode(measured.digest));
            self.text.boot_aggregate = Some(BootAggregateText::Listed);
        }
        // Listed, it is a file like any other.
        fits
    }

    fn buffer(&mut self, name: &str, buffer: &[u8], digest: Vec<u8>) {
        let (in_keyrings, in_buffers) = (self.text.keyrings.contains_key(name), self.text.buffers.contains_key(name));
        // A keyring's name begins like this; certificates are loaded into keyrings of any name.
        let seems_key = name.starts_with(['.', '_']) || buffer.starts_with(&[0x30, 0x82]);
        if in_keyrings || (seems_key && !in_buffers) {
            self.text.keyrings.entry(name.to_owned()).or_default().insert(digest);
        } else {
            let digests = self.text.buffers.entry(name.to_owned()).or_default();
            digests.get_or_insert_with(DigestSet::new).insert(digest);
        }
    }

    fn tell(&self, notes: &mut Vec<String>) {
        for (kind, (count, which)) in &self.notable {
            let more = count.saturating_sub(which.len());
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            notes.push(format!("{count} {kind}: {}{more}", which.join(", ")));
        }
    }
}

/// A glob that fits this path, and of others only those that differ where a `*` or `?` stands in it; `None` if no glob
/// does, or there are too many already.
fn exactly(path: &[u8], globs: usize) -> Option<String> {
    let text = std::str::from_utf8(path).ok()?.replace('*', "?");
    let fits = globs < MAX_GLOBS && is_canonical(path) && Glob::new(&text).is_ok_and(|glob| glob.matches(path));
    fits.then_some(text)
}

/// The policy with a comment to each PCR and to what a person decides.
fn toml(policy: &PolicyText) -> String {
    let mut text = String::new();
    for line in &policy.header {
        let _ = writeln!(text, "# {line}");
    }
    // Writing to a String does not fail.
    let _ = writeln!(text, "version = 1\nname = {}", toml::Value::String(policy.name.clone()));
    if policy.accept.contains(&Exception::NoFirmwareMeasurements) {
        text.push_str(
            "\n# No firmware measured anything on this node (a software TPM by itself). Every verdict repeats it.\n",
        );
    }
    if policy.accept.contains(&Exception::Sha1) {
        text.push_str("\n# SHA-1 collides; prefer a node with a SHA-256 bank. Every verdict repeats it.\n");
    }
    if !policy.accept.is_empty() {
        let names: Vec<String> = policy.accept.iter().map(|exception| format!("\"{}\"", exception.name())).collect();
        let _ = writeln!(text, "accept = [{}]", names.join(", "));
    }
    for (bank, values) in &policy.pcrs {
        let _ = writeln!(text, "\n[pcrs.{bank}]");
        for (index, values) in values {
            let values: Vec<String> = values.iter().map(|value| format!("\"{}\"", hex::encode(value))).collect();
            let _ = writeln!(text, "# {}\n{index} = [{}]", pcr_meaning(*index), values.join(", "));
        }
    }
    match policy.release {
        Some(ReleaseRule::PhasePcr(index)) => {
            let _ = writeln!(
                text,
                "\n# Shares leave once a boot: PCR {index} has to hold the agent's pins and nothing else.\n\
                 [release]\nphase_pcr = {index}"
            );
        }
        Some(ReleaseRule::Uncapped) => text.push_str("\n[release]\nuncapped = true\n"),
        None => text.push_str(
            "\n# No share leaves under this policy. Name the agent's phase PCR to change that, or allow any number\n\
             # of shares a boot, also to other software of the node, with `uncapped = true`.\n\
             # [release]\n# phase_pcr = 13\n",
        ),
    }
    // The rest of the policy as the common writer has it.
    let rest = PolicyText { boot: policy.boot.clone(), ima: policy.ima.clone(), ..PolicyText::default() }.to_toml();
    if let Some((_, sections)) = rest.split_once("\n\n") {
        text.push('\n');
        text.push_str(sections);
    }
    text
}

/// What is measured into a PCR (TCG PC Client Platform Firmware Profile, "PCR Usage"; above 7 the UAPI group's list).
const fn pcr_meaning(index: u8) -> &'static str {
    match index {
        0 => "firmware code",
        1 => "firmware configuration",
        2 => "option ROM code",
        3 => "option ROM configuration",
        4 => "boot loader code",
        5 => "boot loader configuration and partition table",
        6 => "manufacturer's own",
        7 => "Secure Boot state, keys and the certificates used",
        8 => "boot loader's commands and kernel command line (GRUB)",
        9 => "files read by the boot loader; initrd",
        11 => "unified kernel image and boot phases (systemd)",
        12 => "overridden command line, credentials (systemd)",
        13 => "system extensions (systemd)",
        14 => "shim's certificates and hashes (MOK)",
        15 => "machine id and volume keys (systemd)",
        17..=22 => "dynamic launch",
        _ => "free",
    }
}

#[cfg(test)]
mod tests;
