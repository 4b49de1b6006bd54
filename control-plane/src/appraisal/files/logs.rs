//! The logs among the files: what they replay to, whether that fits the PCR values, and what the policy's rules make of
//! their events and entries.

use std::borrow::Cow;

use protocol::{
    limits,
    tpm::{
        alg::{Digest, HashAlg},
        pcr::{PcrSelectionList, PcrValues},
    },
};

use super::{
    super::{
        IMA_PCR,
        boot_log::{BootLog, BootLogError, is_boot_time_pcr},
        boot_rules::{self, BootInput},
        finding::{Check, Place},
        ima_ascii::{ImaAsciiError, is_ascii_list, to_binary},
        ima_log::{ImaEntry, ImaError, ImaReplay, ImaStart},
        ima_rules::{ImaJudge, boot_aggregates},
        policy::Policy,
        userspace_log::UserspaceLog,
    },
    Appraisal, Files, InputError,
    report::Replayed,
};

/// What the `ima` template pads a name to before it is hashed.
const LEGACY_NAME_LEN: usize = 256;
/// PCRs that TPM2_Startup sets to ones: those of a dynamic launch.
const DYNAMIC_PCRS: std::ops::RangeInclusive<u8> = 17..=22;

/// The logs, read and replayed.
pub(super) struct Logs<'a> {
    boot: Option<BootLog<'a>>,
    /// Binary, whatever it came as.
    ima: Option<Cow<'a, [u8]>>,
    ima_entries: u64,
    /// The first entry whose template hash is not that of its data.
    wrong_template_hash: Option<u64>,
    userspace: Option<UserspaceLog>,
    command_line: Option<&'a [u8]>,
    /// What all of them replay to.
    pub(super) replayed: Replayed,
    /// The same without the IMA list: what its first entry and the policy's rules on the boot log rest on.
    before_ima: Replayed,
}

impl<'a> Logs<'a> {
    pub(super) fn read(files: &Files<'a>) -> Result<Self, InputError> {
        let boot = match files.boot_log.map(BootLog::parse_at).transpose() {
            Ok(boot) => boot,
            Err((error, at)) => {
                return Err(InputError::new("boot-log", boot_log_code(&error), at, error.to_string()));
            }
        };
        let userspace = match files.userspace_log.map(UserspaceLog::parse).transpose() {
            Ok(userspace) => userspace,
            Err(error) => {
                return Err(InputError::new("userspace-log", "userspace_log_unreadable", 0, error.to_string()));
            }
        };
        let ima = files.ima.map(read_ima).transpose()?;
        let mut logs = Self {
            boot,
            ima,
            ima_entries: 0,
            wrong_template_hash: None,
            userspace,
            command_line: files.command_line.map(without_newline),
            replayed: Replayed::new(),
            before_ima: Replayed::new(),
        };
        logs.replay()?;
        Ok(logs)
    }

    /// Boot log, then the IMA list on top, then what userspace measured.
    fn replay(&mut self) -> Result<(), InputError> {
        if let Some(boot) = &self.boot {
            for bank in boot.banks() {
                let all = boot.replay(*bank);
                let extended = boot.events().filter(|event| event.is_extended());
                let indices = extended.filter_map(|event| u8::try_from(event.pcr).ok());
                let value = |index: u8| Some((index, *all.as_ref()?.get(usize::from(index))?));
                self.before_ima.insert(*bank, indices.filter_map(value).collect());
            }
        }
        self.replayed = self.before_ima.clone();
        if let Some(list) = self.ima.take() {
            // Kernels hash the template for each bank with its own algorithm; without a boot log SHA-1 and SHA-256 are
            // the banks that there may be.
            for bank in [HashAlg::Sha1, HashAlg::Sha256] {
                self.replayed.entry(bank).or_default();
            }
            let walked = self.walk(&list);
            self.ima = Some(list);
            walked?;
        }
        if let Some(userspace) = &self.userspace {
            for (bank, pcrs) in &mut self.replayed {
                for index in (0..24).filter(|index| userspace.touches(*index)) {
                    let start = pcrs.get(&index).copied().unwrap_or_else(|| initial(*bank, index));
                    if let Some(value) = userspace.replay(*bank, index, start) {
                        pcrs.insert(index, value);
                    }
                }
            }
        }
        Ok(())
    }

    fn walk(&mut self, list: &[u8]) -> Result<(), InputError> {
        let mut bad_pcr = None;
        let (replayed, wrong) = (&mut self.replayed, &mut self.wrong_template_hash);
        let entries = walk_ima(list, |entry, at| {
            let Some(index) = u8::try_from(entry.pcr).ok().filter(|index| usize::from(*index) < limits::PCR_COUNT)
            else {
                bad_pcr.get_or_insert((entry.number, entry.pcr, at));
                return;
            };
            let sha1 = entry_hash(entry, HashAlg::Sha1);
            if !entry.is_violation() && sha1.as_ref().map(Digest::as_bytes) != Some(entry.template_hash) {
                wrong.get_or_insert(entry.number);
            }
            for (bank, pcrs) in replayed.iter_mut() {
                if let Some(hash) = entry_hash(entry, *bank) {
                    let pcr = pcrs.entry(index).or_insert_with(|| initial(*bank, index));
                    *pcr = bank.digest(&[pcr, &hash]);
                }
            }
        });
        let error = |(error, at): (ImaError, usize)| InputError::new("ima", "ima_unreadable", at, error.to_string());
        self.ima_entries = entries.map_err(error)?;
        match bad_pcr {
            Some((number, pcr, at)) => {
                let detail = format!("entry {number} names PCR {pcr}, which does not exist");
                Err(InputError::new("ima", "ima_no_such_pcr", at, detail))
            }
            None => Ok(()),
        }
    }

    /// The values of these PCRs if the logs are all that extended them; `None` if there is no log of one of the banks.
    pub(super) fn values_of(&self, selection: &PcrSelectionList) -> Option<PcrValues> {
        if self.boot.is_none() && self.ima.is_none() {
            return None;
        }
        let mut values = PcrValues::new();
        for (bank, index) in selection.pcrs() {
            let value = self.replayed.get(&bank)?.get(&index).copied().unwrap_or_else(|| initial(bank, index));
            values.set(bank, index, value).ok()?;
        }
        Some(values)
    }

    /// What a PCR of a bank holds after boot and userspace log; `None` without digests for the bank.
    fn boot_value(&self, bank: HashAlg, index: u8) -> Option<Digest> {
        let (all, touched) = (self.boot.as_ref()?.replay(bank)?, self.before_ima.get(&bank)?);
        let value = touched.get(&index).or_else(|| all.get(usize::from(index)))?;
        match &self.userspace {
            Some(userspace) if userspace.touches(index) => userspace.replay(bank, index, *value),
            _ => Some(*value),
        }
    }

    fn touches(&self, index: u8) -> bool {
        self.before_ima.values().any(|pcrs| pcrs.contains_key(&index))
            || self.userspace.as_ref().is_some_and(|userspace| userspace.touches(index))
    }
}

/// A PCR after TPM2_Startup(CLEAR).
fn initial(bank: HashAlg, index: u8) -> Digest {
    if !DYNAMIC_PCRS.contains(&index) {
        return Digest::zero(bank);
    }
    let ones = [0xff; Digest::MAX_LEN];
    bank.read_digest(ones.get(..bank.digest_len()).unwrap_or_default()).unwrap_or_else(|_| Digest::zero(bank))
}

fn without_newline(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

/// The list in its binary form.
fn read_ima(bytes: &[u8]) -> Result<Cow<'_, [u8]>, InputError> {
    if !is_ascii_list(bytes) {
        return Ok(Cow::Borrowed(bytes));
    }
    let error = |error: ImaAsciiError| InputError::new("ima", "ima_unreadable", error.offset, error.to_string());
    to_binary(bytes).map(Cow::Owned).map_err(error)
}

/// Shows every entry of a list with its offset, and says how many there are.
///
/// # Errors
/// [`ImaError`], and the offset of the entry that cannot be read.
fn walk_ima(list: &[u8], mut seen: impl FnMut(&ImaEntry<'_>, usize)) -> Result<u64, (ImaError, usize)> {
    // No list replays to an empty digest: it is read to its end.
    let mut replay = ImaReplay::new(&ImaStart::beginning(), [(HashAlg::Sha256, Digest::EMPTY)]);
    let mut offset = 0usize;
    let read = replay.push_with(list, |entry| {
        seen(entry, offset);
        let prefix = if entry.template == b"ima" { 0 } else { 4 };
        // PCR, template hash, length of the name.
        offset = offset.saturating_add(28 + prefix + entry.template.len() + entry.data.len());
    });
    read.map_err(|error| (error, offset))?;
    if offset < list.len() {
        return Err((ImaError::Malformed { entry: replay.entries() }, offset));
    }
    Ok(replay.entries())
}

/// What an entry extends a bank with; `None` for an old template's data that is not of its form.
fn entry_hash(entry: &ImaEntry<'_>, bank: HashAlg) -> Option<Digest> {
    if entry.is_violation() {
        let ones = [0xff; Digest::MAX_LEN];
        return bank.read_digest(ones.get(..bank.digest_len())?).ok();
    }
    if entry.template != b"ima" {
        return Some(bank.digest(&[entry.data]));
    }
    let fields = entry.fields()?;
    let [digest, name] = fields.as_slice() else { return None };
    let mut padded = [0; LEGACY_NAME_LEN];
    padded.get_mut(..name.value.len())?.copy_from_slice(name.value);
    Some(bank.digest(&[digest.value, &padded]))
}

impl Appraisal<'_, '_> {
    /// Compares the logs with the PCR values and applies the policy's rules; `proven` says whether a quote stands behind
    /// the values.
    pub(super) fn logs(&mut self, proven: bool) {
        let replays = self.boot_log(proven);
        self.boot_policy(replays);
        let prefix = self.ima(proven);
        self.ima_policy(prefix);
    }

    /// The values to compare with: those given, or, where a quote proved what the logs replay to, these.
    fn compared(&self) -> Option<Cow<'_, PcrValues>> {
        if let Some(values) = self.inputs.values() {
            return Some(Cow::Borrowed(values));
        }
        let selection = &self.inputs.attest()?.pcr_select;
        let digest = self.rows.iter().any(|row| row.check == Check::PcrDigest && row.result == super::Outcome::Pass);
        self.inputs.logs.values_of(selection).filter(|_| digest).map(Cow::Owned)
    }

    /// Whether the boot log replays to the values, as far as there are any.
    fn boot_log(&mut self, proven: bool) -> bool {
        let check = Check::BootLog;
        let logs = &self.inputs.logs;
        let Some(boot) = &logs.boot else {
            self.not_checked(check, "no_boot_log", "");
            return true;
        };
        let Some(values) = self.compared().map(Cow::into_owned) else {
            self.not_checked(check, "no_pcrs", format!("{} events, replayed", boot.events().len()));
            return true;
        };
        let (mut compared, mut wrong) = (0u32, Vec::new());
        let mut later = Vec::new();
        for (bank, index, value) in values.iter() {
            if !boot.banks().contains(&bank) {
                continue;
            }
            // None for a measurement of userspace without a digest for the bank: then nothing accounts for the value.
            let replayed = logs.boot_value(bank, index);
            if replayed.as_ref() == Some(value) {
                compared += u32::from(is_boot_time_pcr(index) || logs.touches(index));
            } else if is_boot_time_pcr(index) || (index != IMA_PCR && self.is_accounted(index)) {
                let replayed = replayed.map_or_else(|| "no value".to_owned(), |replayed| replayed.to_string());
                wrong.push((Place::pcr(bank, index), value.to_string(), replayed));
            } else if logs.touches(index) {
                later.push(format!("{bank}:{index}"));
            }
        }
        let missing: Vec<_> = HashAlg::ALL
            .into_iter()
            .filter(|bank| values.iter().any(|(of, ..)| of == *bank) && !boot.banks().contains(bank))
            .collect();
        let replays = wrong.is_empty();
        for (place, value, replayed) in wrong {
            self.fail_at(
                check,
                "boot_log_mismatch",
                place,
                format!("{value} (the PCR's)"),
                format!("{replayed} (the log's)"),
            );
        }
        if replays && compared > 0 {
            let of = if proven { "the quoted PCRs" } else { "the given PCRs, which no good quote stands behind" };
            self.pass(check, format!("{} events replay to {compared} of {of}", boot.events().len()));
        } else if replays {
            self.not_checked(check, "no_common_pcrs", "none of its PCRs is among the values");
        }
        if !later.is_empty() {
            self.not_checked(check, "extended_later", format!("{} went on after the log ended", later.join(", ")));
        }
        for bank in missing {
            self.not_checked(check, "bank_not_in_log", format!("the log has no {bank} digests"));
        }
        replays
    }

    /// Whether boot and userspace log together have to account for a PCR: the policy judges its events.
    fn is_accounted(&self, index: u8) -> bool {
        let mask = self.inputs.policy().and_then(Policy::boot).map_or(0, |rules| rules.pcr_mask());
        1u32.checked_shl(index.into()).is_some_and(|bit| mask & bit != 0)
    }

    fn boot_policy(&mut self, replays: bool) {
        let check = Check::BootPolicy;
        let Some(policy) = self.inputs.policy() else { return self.not_checked(check, "no_policy", "") };
        let Some(rules) = policy.boot() else { return self.not_checked(check, "no_boot_rules", "") };
        let logs = &self.inputs.logs;
        let Some(log) = &logs.boot else { return self.not_checked(check, "no_boot_log", "") };
        if !replays {
            return self.not_checked(check, "boot_log_mismatch", "the log is not that of these PCRs");
        }
        let values = self.compared().map(Cow::into_owned);
        let given = |bank: &HashAlg| values.as_ref().is_none_or(|values| values.iter().any(|(of, ..)| of == *bank));
        let banks: Vec<_> = log.banks().iter().copied().filter(given).collect();
        let banks = if banks.is_empty() { log.banks().to_vec() } else { banks };
        let input =
            BootInput { log, banks: &banks, command_line: logs.command_line, userspace: logs.userspace.as_ref() };
        let mut report = super::Report::default();
        boot_rules::judge(rules, &input, &mut report);
        self.report(check, &report);
        let Some(values) = values else { return };
        let ruled = || (0..16u8).filter(|index| self.is_accounted(*index));
        let pcrs = banks.iter().flat_map(|bank| ruled().map(move |index| (*bank, index)));
        let unproven: Vec<_> = pcrs.filter(|(bank, index)| values.get(*bank, *index).is_none()).collect();
        if !unproven.is_empty() {
            let named: Vec<_> = unproven.iter().take(8).map(|(bank, index)| format!("{bank}:{index}")).collect();
            let more = if unproven.len() > named.len() { " and others" } else { "" };
            let found = format!("no value proves the events of {}{more}", named.join(", "));
            self.not_checked(check, "pcr_not_given", found);
        }
    }

    /// How many entries replay to the quoted PCR 10; `None` if they do not. Without a value to compare with all count.
    fn ima(&mut self, proven: bool) -> Option<u64> {
        let check = Check::Ima;
        let logs = &self.inputs.logs;
        let Some(list) = &logs.ima else {
            self.not_checked(check, "no_ima", "");
            return None;
        };
        let all = logs.ima_entries;
        let wrong_hash = |this: &mut Self, entry: u64| {
            let found = "another: the entry was changed after it was measured";
            let place = Place::entry(entry, None);
            this.fail_at(check, "ima_mismatch", place, "the SHA-1 of its data as template hash", found);
        };
        let values = self.compared().map(Cow::into_owned);
        let targets: Vec<_> = values
            .iter()
            .flat_map(|values| values.iter())
            .filter(|(_, index, _)| *index == IMA_PCR)
            .map(|(bank, _, value)| (bank, *value))
            .collect();
        if targets.is_empty() {
            if let Some(entry) = logs.wrong_template_hash {
                wrong_hash(self, entry);
                return None;
            }
            let reason = if values.is_some() { "pcr_10_not_given" } else { "no_pcrs" };
            self.not_checked(check, reason, format!("{all} entries, replayed"));
            return Some(all);
        }
        let mut replay = ImaReplay::new(&ImaStart::beginning(), targets.iter().copied());
        let pushed = replay.push(list);
        match pushed.and_then(|()| replay.finish()) {
            Ok(replayed) => {
                let of =
                    if proven { "the quoted PCR 10" } else { "the given PCR 10, which no good quote stands behind" };
                let ahead = match all.saturating_sub(replayed.entries()) {
                    0 => String::new(),
                    more => format!("; {more} entries behind them are not proven and count for nothing"),
                };
                self.pass(check, format!("{} entries replay to {of}{ahead}", replayed.entries()));
                Some(replayed.entries())
            }
            Err(ImaError::WrongTemplateHash { entry }) => {
                wrong_hash(self, entry);
                None
            }
            Err(error) => {
                let (bank, value) = targets.first().copied().unwrap_or((HashAlg::Sha256, Digest::EMPTY));
                self.fail_at(check, error.code(), Place::pcr(bank, IMA_PCR), value.to_string(), error.to_string());
                None
            }
        }
    }

    fn ima_policy(&mut self, prefix: Option<u64>) {
        let check = Check::ImaPolicy;
        let logs = &self.inputs.logs;
        let policy = self.inputs.policy();
        let (Some(list), Some(prefix)) = (&logs.ima, prefix) else {
            let reason = if logs.ima.is_none() { "no_ima" } else { "ima_mismatch" };
            return self.not_checked(check, reason, "");
        };
        let Some(mut judge) = policy.and_then(|policy| ImaJudge::new(policy, 0, &[])) else {
            let reason = if policy.is_some() { "no_ima_rules" } else { "no_policy" };
            return self.not_checked(check, reason, "");
        };
        // It was walked when it was read.
        let _ = walk_ima(list, |entry, _| {
            if entry.number < prefix {
                judge.entry(entry);
            }
        });
        let judgement = judge.finish();
        self.report(check, &judgement.report);
        let wanted = policy.and_then(Policy::ima).is_some_and(|rules| rules.wants_boot_aggregate_of_log());
        let Some((entry, algorithm, found)) = judgement.boot_aggregate.filter(|_| wanted) else { return };
        if logs.boot.is_none() {
            return self.not_checked(check, "no_boot_log", "boot_aggregate is not compared");
        }
        // IMA computes it before userspace runs: of the firmware's log alone.
        let of_log = |alg: HashAlg| {
            let pcrs = logs.boot.as_ref().and_then(|boot| boot.replay(alg));
            boot_aggregates(alg, |index| pcrs.as_ref().and_then(|pcrs| pcrs.get(usize::from(index))).copied())
        };
        let candidates = HashAlg::from_name(&algorithm).map(of_log).unwrap_or_default();
        if candidates.is_empty() {
            return self.not_checked(check, "bank_not_in_log", format!("boot_aggregate: no {algorithm} digests"));
        }
        if candidates.iter().any(|candidate| candidate.as_bytes() == found) {
            return self.pass(check, "boot_aggregate is that of the boot log");
        }
        let expected = super::list(&candidates);
        let place = Place::entry(entry, Some(b"boot_aggregate"));
        self.fail_at(check, "ima_boot_aggregate_mismatch", place, expected, super::bounded_hex(&found));
    }
}

/// The short name of why a boot log cannot be read.
fn boot_log_code(error: &BootLogError) -> &'static str {
    match error {
        BootLogError::TooLong => "boot_log_too_long",
        BootLogError::Truncated { .. } => "boot_log_truncated",
        BootLogError::BadSpecId => "boot_log_bad_spec_id",
        BootLogError::NoSuchPcr { .. } => "boot_log_no_such_pcr",
        BootLogError::WrongDigests { .. } => "boot_log_wrong_digests",
        BootLogError::BadStartupLocality { .. } => "boot_log_bad_startup_locality",
        _ => "boot_log_unreadable",
    }
}
