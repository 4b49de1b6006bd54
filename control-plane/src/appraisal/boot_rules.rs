//! Judging the events of a boot log by a policy's `[boot]`.
//!
//! PCRs protect digests and their order within one PCR, nothing else: an event's type and data are the words of whoever
//! wrote the log. So data is believed only where it hashes to the event's digest in every judged bank; types choose at most
//! how a refusal is worded; and in a PCR that is judged every event has to be allowed by its digest, so that nothing can be
//! hidden by calling it something else. What has to be there has to be there exactly once and, for Secure Boot's variables,
//! before the firmware's separator: only firmware runs before it.

use std::collections::{HashMap, HashSet};

use protocol::tpm::alg::{Digest, HashAlg};

use super::{
    boot_log::{BootLog, Event, event_type_name},
    finding::{Check, Finding, Place, Report},
    policy::boot::{BootRules, Chain, CommandLine, EventDigest, KeyRule},
    uefi::{GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, Signature, Variable, sha256, signature_lists, to_utf16, utf16},
    userspace_log::UserspaceLog,
};

const EV_SEPARATOR: u32 = 0x0000_0004;
const EV_EFI_VARIABLE_AUTHORITY: u32 = 0x8000_00e0;
/// Types whose digest is that of their data.
const HASHED_TYPES: [u32; 5] = [EV_SEPARATOR, 0x0000_0005, 0x8000_0001, EV_EFI_VARIABLE_AUTHORITY, 0x8000_0007];
/// EV_SEPARATOR's data where the firmware met no error (PC Client Platform Firmware Profile, "Event Types").
const SEPARATORS: [[u8; 4]; 2] = [[0; 4], [0xff; 4]];
const ERROR_SEPARATOR: [u8; 4] = [1, 0, 0, 0];
/// EV_EFI_ACTION of an ordinary boot, in PCR 4 or 5: firmware differs in which (PC Client Platform Firmware Profile,
/// "EV_EFI_ACTION Event Types").
const ACTIONS: [&str; 4] = [
    "Calling EFI Application from Boot Option",
    "Returning from EFI Application from Boot Option",
    "Exit Boot Services Invocation",
    "Exit Boot Services Returned with Success",
];
/// Said in PCR 7 where Secure Boot may be circumvented.
const DEBUG_ACTIONS: [&str; 2] = ["UEFI Debug Mode", "DMA Protection Disabled"];
/// What GRUB puts before the text that it hashes.
const GRUB_KERNEL: &str = "kernel_cmdline: ";
/// systemd-pcrphase's words, in the order of a boot.
const PHASES: [&str; 6] = ["enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final"];
const PHASE_PCR: u8 = 11;
/// Shim's variable of revocation levels.
const SBAT_LEVEL: &str = "SbatLevel";
/// What of a text or list goes into a finding, in characters.
const MAX_SHOWN: usize = 160;
/// What is expected or found, in characters.
const MAX_FINDING_LEN: usize = 200;

/// What the rules are applied to.
#[derive(Clone, Copy, Debug)]
pub struct BootInput<'a> {
    /// The log; that it replays to the quoted PCRs is checked by others.
    pub log: &'a BootLog<'a>,
    /// The banks in which digests are compared: quoted ones that the log has.
    pub banks: &'a [HashAlg],
    /// What the node says its kernel's command line is, without a newline: it counts only where an event's digest
    /// proves it.
    pub command_line: Option<&'a [u8]>,
    /// What userspace measured after the log ended, where the node sent it.
    pub userspace: Option<&'a UserspaceLog>,
}

/// Applies the rules; what is wrong, what was checked and what was not goes to `report`.
pub fn judge(rules: &BootRules, input: &BootInput<'_>, report: &mut Report) {
    // A log without events lacks no digests.
    let is_empty = input.log.extended_mask() == 0;
    let has = |bank: &HashAlg| is_empty || input.log.banks().contains(bank);
    let banks: Vec<HashAlg> = input.banks.iter().copied().filter(has).collect();
    if banks.is_empty() {
        let expected = "digests of a bank that is judged";
        report.find(Finding::about(Check::BootPolicy, "boot_log_bank_missing", "boot log", expected, "none"));
        return;
    }
    let command_line = input.command_line.and_then(|text| std::str::from_utf8(text).ok());
    let mut judge = Judge {
        rules,
        banks: &banks,
        command_line,
        wide_texts: wide_texts(rules, banks.first().copied(), command_line),
        report,
        separators: [0; 8],
        variables: [0; VARIABLES.len()],
        used: vec![false; rules.events.len()],
        command_lines: Vec::new(),
        images: Vec::new(),
        chain_image: None,
        files: Vec::new(),
        file_digests: HashSet::new(),
        authorities: HashSet::new(),
        sbat_seen: false,
        allowed: 0,
        unknown: 0,
    };
    for event in input.log.events().filter(|event| event.is_extended()) {
        judge.event(event);
    }
    if let Some(userspace) = input.userspace {
        judge.userspace(userspace);
    }
    judge.finish();
}

/// The variables that firmware measures before its separator.
const VARIABLES: [(&str, [u8; 16]); 5] = [
    ("SecureBoot", GLOBAL_VARIABLE),
    ("PK", GLOBAL_VARIABLE),
    ("KEK", GLOBAL_VARIABLE),
    ("db", IMAGE_SECURITY_DATABASE),
    ("dbx", IMAGE_SECURITY_DATABASE),
];

struct Judge<'r, 'a> {
    rules: &'r BootRules,
    banks: &'r [HashAlg],
    command_line: Option<&'a str>,
    /// See [`wide_texts`].
    wide_texts: HashMap<Digest, &'r str>,
    report: &'r mut Report,
    separators: [u32; 8],
    /// How often each of [`VARIABLES`] was measured.
    variables: [u32; VARIABLES.len()],
    /// Which of the rules on events were met.
    used: Vec<bool>,
    /// Command lines that a digest proves, with the place of the event.
    command_lines: Vec<(Place, String)>,
    /// What is started, as far as no other rule speaks of it: PCR 4, in order.
    images: Vec<&'r Event<'a>>,
    /// The first event that is an image of a chain.
    chain_image: Option<&'r Event<'a>>,
    /// What may be a chain's file: PCR 9. The same again is left out.
    files: Vec<&'r Event<'a>>,
    file_digests: HashSet<EventDigest>,
    /// Names of what images were verified with.
    authorities: HashSet<[u8; 32]>,
    sbat_seen: bool,
    allowed: u64,
    /// Bits of the PCRs with events that no rule speaks of.
    unknown: u32,
}

/// The command lines that a digest may turn out to be of, by that digest in a bank: what the node says; where it says
/// nothing, what the policy has word by word. As UTF-16, with and without the closing NUL.
fn wide_texts<'r>(rules: &'r BootRules, bank: Option<HashAlg>, said: Option<&'r str>) -> HashMap<Digest, &'r str> {
    let mut texts = HashMap::new();
    let Some(bank) = bank.filter(|_| rules.has_command_line()) else { return texts };
    let of_chains = rules.chains.iter().filter_map(|chain| chain.command_line.as_ref());
    let exact = rules.command_lines.iter().chain(of_chains).filter_map(|line| match line {
        CommandLine::Exact(text) => Some(text.as_str()),
        CommandLine::Pattern(_) => None,
    });
    for text in said.into_iter().chain(exact.filter(|_| said.is_none())) {
        let wide = to_utf16(text);
        for end in [&[][..], &[0, 0]] {
            texts.entry(bank.digest(&[&wide, end])).or_insert(text);
        }
    }
    texts
}

/// Whether an event's digest is that of `bytes` in every bank.
fn hashes_to(event: &Event<'_>, banks: &[HashAlg], bytes: &[u8]) -> bool {
    banks.iter().all(|bank| event.digest(*bank) == Some(bank.digest(&[bytes]).as_bytes()))
}

/// Whether an event's digest in the bank of `digest`, if that is judged, is this one.
fn is_digest(event: &Event<'_>, banks: &[HashAlg], digest: &EventDigest) -> bool {
    banks.contains(&digest.bank) && event.digest(digest.bank) == Some(digest.digest.as_bytes())
}

/// An event's digests in the banks that are judged.
fn digests(event: &Event<'_>, banks: &[HashAlg]) -> impl Iterator<Item = EventDigest> {
    banks.iter().filter_map(|bank| {
        let digest = bank.read_digest(event.digest(*bank)?).ok()?;
        Some(EventDigest { bank: *bank, digest })
    })
}

fn place(event: &Event<'_>) -> Place {
    Place::event(event.number, event.pcr, event_type_name(event.event_type))
}

fn shown(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MAX_SHOWN).collect();
    format!("`{clean}`")
}

impl<'r, 'a: 'r> Judge<'r, 'a> {
    fn find(&mut self, code: &'static str, place: Place, expected: impl Into<String>, found: impl Into<String>) {
        self.report.find(Finding::at(Check::BootPolicy, code, place, bounded(expected), bounded(found)));
    }

    fn about(&mut self, code: &'static str, what: &str, expected: impl Into<String>, found: impl Into<String>) {
        self.report.find(Finding::about(Check::BootPolicy, code, what, bounded(expected), bounded(found)));
    }

    fn event(&mut self, event: &'r Event<'a>) {
        // All of them look at it: that a digest is listed does not say what else has to hold.
        let listed = self.listed(event);
        let mut is_known = self.separator(event) | self.action(event) | listed;
        is_known |= event.pcr == 7 && self.variable(event, listed);
        is_known |= self.measured_command_line(event);
        is_known |= self.of_a_chain(event, is_known);
        if is_known {
            self.allowed += 1;
            return;
        }
        self.unknown |= 1u32.checked_shl(event.pcr).unwrap_or(0);
        if u8::try_from(event.pcr).is_ok_and(|pcr| self.rules.judges(pcr)) {
            self.unknown(event);
        }
    }

    /// No rule speaks of this event.
    fn unknown(&mut self, event: &Event<'_>) {
        let digest = self.banks.iter().rev().find_map(|bank| Some((bank, event.digest(*bank)?)));
        let mut found = digest.map_or_else(String::new, |(bank, digest)| format!("{bank}:{}", hex::encode(digest)));
        // Words of the log: for a person who looks for the cause, and nobody else.
        let text = std::str::from_utf8(event.data).ok().map(|text| text.trim_end_matches('\0').to_owned());
        let text = text.or_else(|| Variable::decode(event.data).ok().map(|variable| variable.name));
        if let Some(text) = text.filter(|text| !text.is_empty() && !text.chars().any(char::is_control)) {
            found.push_str(&format!(", which calls itself {}", shown(&text)));
        }
        if HASHED_TYPES.contains(&event.event_type) && !hashes_to(event, self.banks, event.data) {
            self.find("event_data_mismatch", place(event), "data that hashes to the event's digest", found);
        } else {
            self.find("unknown_event", place(event), "an event that the policy allows", found);
        }
    }

    fn separator(&mut self, event: &Event<'_>) -> bool {
        // No file and no variable is four such bytes.
        if hashes_to(event, self.banks, &ERROR_SEPARATOR) && event.pcr <= 7 {
            self.find("error_separator", place(event), "a separator without an error", "the firmware met an error");
            return true;
        }
        if !SEPARATORS.iter().any(|data| hashes_to(event, self.banks, data)) {
            return false;
        }
        let seen = usize::try_from(event.pcr).ok().and_then(|pcr| self.separators.get_mut(pcr));
        let Some(seen) = seen else { return true };
        *seen += 1;
        if *seen == 2 {
            self.find("separator_twice", place(event), "one separator a PCR", "another");
        }
        true
    }

    /// Whether firmware has handed over: everybody else measures behind it.
    fn is_behind_separator(&self) -> bool {
        self.separators[7] > 0
    }

    fn listed(&mut self, event: &Event<'_>) -> bool {
        u8::try_from(event.pcr).is_ok_and(|pcr| self.is_listed(pcr, digests(event, self.banks)))
    }

    /// Whether a rule on events has one of these digests; those that have are met.
    fn is_listed(&mut self, pcr: u8, digests: impl Iterator<Item = EventDigest>) -> bool {
        let mut found = false;
        for digest in digests {
            for rule in self.rules.by_digest.get(&(pcr, digest)).into_iter().flatten() {
                if let Some(used) = self.used.get_mut(*rule) {
                    *used = true;
                }
                found = true;
            }
        }
        found
    }

    fn action(&mut self, event: &Event<'_>) -> bool {
        if event.pcr == 7
            && self.rules.secure_boot == Some(true)
            && let Some(text) = DEBUG_ACTIONS.iter().find(|text| {
                // Found by its digest, whatever the log says it is; by its data where the case of letters differs.
                let is_said = event.data.eq_ignore_ascii_case(text.as_bytes());
                hashes_to(event, self.banks, text.as_bytes()) || is_said && hashes_to(event, self.banks, event.data)
            })
        {
            self.find("debug_mode", place(event), "Secure Boot that nothing circumvents", shown(text));
            return true;
        }
        is_ordinary_action(event, self.banks)
    }

    /// A variable in PCR 7 that a rule speaks of.
    fn variable(&mut self, event: &Event<'_>, listed: bool) -> bool {
        if !hashes_to(event, self.banks, event.data) {
            return false;
        }
        let Ok(variable) = Variable::decode(event.data) else { return false };
        let known = VARIABLES.iter().position(|(name, vendor)| *name == variable.name && *vendor == variable.vendor);
        // A signer has the name of the variable it was found in; who calls a variable a signer makes the variable missing.
        let is_signer = event.event_type == EV_EFI_VARIABLE_AUTHORITY || known.is_none();
        match known {
            Some(which) if !is_signer => self.key_variable(event, which, &variable),
            _ if variable.name == SBAT_LEVEL && !self.rules.sbat.is_empty() => {
                self.sbat(event, variable.data);
                true
            }
            _ => self.authority(event, &variable, listed),
        }
    }

    fn key_variable(&mut self, event: &Event<'_>, which: usize, variable: &Variable<'_>) -> bool {
        let Some((name, _)) = VARIABLES.get(which) else { return false };
        let rules = self.rules;
        let rule = rules.variables.iter().find(|(of, _)| of == name).map(|(_, rule)| rule);
        if rule.is_none() && (*name != "SecureBoot" || rules.secure_boot.is_none()) {
            return false;
        }
        if self.is_behind_separator() {
            self.find("event_after_separator", place(event), "before the separator of PCR 7", "behind it");
            return true;
        }
        let Some(count) = self.variables.get_mut(which) else { return false };
        *count += 1;
        if *count > 1 {
            self.find("variable_twice", place(event), format!("{name} measured once"), "a second time");
        }
        if *name == "SecureBoot" {
            let is_on = matches!(variable.data, [1]);
            let (code, expected) = match rules.secure_boot {
                Some(true) if !is_on => ("secure_boot_off", "Secure Boot on"),
                Some(false) if is_on => ("secure_boot_on", "Secure Boot off"),
                _ => return true,
            };
            self.find(code, place(event), expected, format!("SecureBoot = {}", hex::encode(short(variable.data))));
            return true;
        }
        let Some(rule) = rule else { return true };
        let Ok(signatures) = signature_lists(variable.data) else {
            self.find("key_list_malformed", place(event), format!("{name} as signature lists"), "other bytes");
            return true;
        };
        self.key_list(event, name, rule, &signatures);
        true
    }

    fn key_list(&mut self, event: &Event<'_>, name: &str, rule: &KeyRule, signatures: &[Signature<'_>]) {
        let ids: Vec<[u8; 32]> = signatures.iter().map(Signature::id).collect();
        if let Some(only) = &rule.only {
            for (id, signature) in ids.iter().zip(signatures).filter(|(id, _)| only.binary_search(id).is_err()) {
                let subject = signature.certificate().and_then(crate::ek::certificate_subject);
                let mut found = hex::encode(id);
                if let Some(subject) = subject {
                    found.push_str(&format!(", {}", shown(&subject)));
                }
                self.find("key_not_allowed", place(event), format!("nothing in {name} but what is listed"), found);
            }
        }
        let there: HashSet<_> = ids.iter().collect();
        let missing: Vec<_> = rule.require.iter().filter(|id| !there.contains(id)).collect();
        if let Some(first) = missing.first() {
            let code = if name == "dbx" { "revocation_missing" } else { "key_missing" };
            let expected = format!("{} in {name}", hex::encode(first));
            self.find(
                code,
                place(event),
                expected,
                format!("{} of {} are not there", missing.len(), rule.require.len()),
            );
        }
    }

    fn sbat(&mut self, event: &Event<'_>, level: &[u8]) {
        self.sbat_seen = true;
        let text = String::from_utf8_lossy(level);
        let rules = self.rules;
        for (component, least) in &rules.sbat {
            let generation = text
                .lines()
                .filter_map(|line| line.split_once(','))
                .find(|(name, _)| name == component)
                .and_then(|(_, rest)| rest.split(',').next()?.trim_end_matches('\0').parse::<u32>().ok());
            if generation.is_none_or(|generation| generation < *least) {
                let found = generation.map_or_else(|| "no level for it".to_owned(), |is| format!("{component},{is}"));
                self.find("sbat_too_old", place(event), format!("{component},{least} or newer"), found);
            }
        }
    }

    /// What a started image was verified with: a certificate behind its owner or alone, or a hash behind its owner.
    fn authority(&mut self, event: &Event<'_>, variable: &Variable<'_>, listed: bool) -> bool {
        let Some(rule) = &self.rules.authorities else { return false };
        if variable.name == SBAT_LEVEL {
            return false;
        }
        let certificate = variable.data.get(16..).unwrap_or_default();
        let hash = certificate.try_into().unwrap_or_else(|_| sha256(event.data));
        let ids = [sha256(certificate), sha256(variable.data), sha256(event.data), hash];
        self.authorities.extend(ids);
        if !listed && rule.only.as_ref().is_some_and(|only| !ids.iter().any(|id| only.binary_search(id).is_ok())) {
            let mut found = hex::encode(sha256(certificate));
            if let Some(subject) = crate::ek::certificate_subject(certificate) {
                found.push_str(&format!(", {}", shown(&subject)));
            }
            found.push_str(&format!(", from {}", shown(&variable.name)));
            self.find("authority_not_allowed", place(event), "a certificate that the policy lists", found);
        }
        true
    }

    /// The kernel's command line, where a rule speaks of it: GRUB's text in PCR 8, the EFI stub's UTF-16 with its NUL in
    /// PCR 9, systemd-stub's UTF-16 in PCR 12.
    fn measured_command_line(&mut self, event: &Event<'_>) -> bool {
        if !self.rules.has_command_line() {
            return false;
        }
        let bank = self.banks.first();
        let digest = bank.and_then(|bank| event.digest(*bank).and_then(|digest| bank.read_digest(digest).ok()));
        let wide = digest.and_then(|digest| self.wide_texts.get(&digest)).copied();
        let Some(text) = proven_command_line(event, self.banks, wide) else { return false };
        self.command_lines.push((place(event), text));
        true
    }

    /// What a chain speaks of. In PCR 4 that is all that nothing else allows.
    fn of_a_chain(&mut self, event: &'r Event<'a>, is_known: bool) -> bool {
        let rules = self.rules;
        match event.pcr {
            4 if !rules.chain_images.is_empty() => {
                let is_image = digests(event, self.banks).any(|digest| rules.chain_images.contains(&digest));
                if is_image || !is_known {
                    self.images.push(event);
                }
                if is_image {
                    self.chain_image.get_or_insert(event);
                }
                is_image
            }
            9 if digests(event, self.banks).any(|digest| rules.chain_files.contains(&digest)) => {
                let known = self.file_digests.len();
                self.file_digests.extend(digests(event, self.banks));
                if self.file_digests.len() > known {
                    self.files.push(event);
                }
                true
            }
            _ => false,
        }
    }

    fn userspace(&mut self, log: &UserspaceLog) {
        let mut next_phase = 0;
        for event in log.events() {
            let banks = self.banks;
            let digest = |bank: &HashAlg| Some(EventDigest { bank: *bank, digest: *event.digest(*bank)? });
            let listed = self.is_listed(event.pcr, banks.iter().filter_map(digest));
            let text = event.proven_text(self.banks);
            let phase = text.filter(|_| event.pcr == PHASE_PCR).and_then(|text| {
                let at = PHASES.iter().position(|phase| *phase == text)?;
                (at >= next_phase).then_some(at)
            });
            if let Some(phase) = phase {
                next_phase = phase + 1;
            }
            if listed || phase.is_some() {
                self.allowed += 1;
                continue;
            }
            self.unknown |= 1u32.checked_shl(event.pcr.into()).unwrap_or(0);
            if self.rules.judges(event.pcr) {
                let kind = format!("userspace {}", shown(&event.kind));
                let place = Place::event(event.number, event.pcr.into(), kind);
                let found = match (text, &event.text) {
                    (Some(text), _) => shown(text),
                    (None, Some(text)) => format!("{}, which does not hash to its digest", shown(text)),
                    (None, None) => "a measurement without text".to_owned(),
                };
                self.find("unknown_userspace_event", place, "a measurement that the policy allows", found);
            }
        }
    }

    fn finish(mut self) {
        self.separators_seen();
        self.variables_seen();
        self.required_events();
        let lines = self.command_line_rules();
        self.chain_rules(&lines);
        self.tell();
    }

    fn separators_seen(&mut self) {
        for (pcr, count) in (0u8..).zip(self.separators) {
            // Without it nothing says that the variables were measured by the firmware.
            let of_variables = pcr == 7 && (self.rules.secure_boot.is_some() || !self.rules.variables.is_empty());
            if count == 0 && (self.rules.judges(pcr) || of_variables) {
                let place = Place { pcr: Some(pcr), ..Place::default() };
                self.find("separator_missing", place, "a separator behind the firmware's events", "none");
            }
        }
    }

    fn variables_seen(&mut self) {
        let rules = self.rules;
        let pcr = || Place { pcr: Some(7), ..Place::default() };
        for ((name, _), count) in VARIABLES.iter().zip(self.variables) {
            let rule = rules.variables.iter().find(|(of, _)| of == name);
            if count > 0 {
                continue;
            }
            if *name == "SecureBoot" && rules.secure_boot.is_some() {
                self.find("secure_boot_missing", pcr(), "SecureBoot measured before the separator", "not there");
            } else if let Some((_, rule)) = rule {
                let code =
                    if *name == "dbx" && !rule.require.is_empty() { "revocation_missing" } else { "key_missing" };
                self.find(code, pcr(), format!("{name} measured before the separator"), "not there");
            }
        }
        let required = rules.authorities.iter().flat_map(|rule| &rule.require);
        let missing: Vec<_> = required.filter(|id| !self.authorities.contains(*id)).collect();
        for id in missing {
            self.find("key_missing", pcr(), format!("an image verified with {}", hex::encode(id)), "none");
        }
        if !rules.sbat.is_empty() && !self.sbat_seen {
            self.find("sbat_missing", pcr(), "shim's SbatLevel", "not measured");
        }
    }

    fn required_events(&mut self) {
        let rules = self.rules;
        let missing: Vec<_> =
            rules.events.iter().zip(&self.used).filter(|(rule, used)| rule.required && !**used).collect();
        let missing: Vec<_> = missing.into_iter().map(|(rule, _)| rule).collect();
        for rule in missing {
            let place = Place { pcr: Some(rule.pcr), ..Place::default() };
            self.find("event_missing", place, shown(&rule.name), "no event with its digest");
        }
    }

    /// The proven command lines, each with its forms: as it is, and without the kernel's path that GRUB puts first.
    fn command_line_rules(&mut self) -> Vec<(Place, Vec<String>)> {
        let lines: Vec<(Place, Vec<String>)> =
            std::mem::take(&mut self.command_lines).into_iter().map(|(place, text)| (place, forms(text))).collect();
        if !self.rules.has_command_line() {
            return lines;
        }
        if lines.is_empty() {
            match self.command_line {
                Some(text) => self.about(
                    "command_line_unproven",
                    "kernel command line",
                    "an event in PCR 8, 9 or 12 whose digest is that of what the node says",
                    shown(text),
                ),
                None => {
                    let expected = "a command line that an event in PCR 8, 9 or 12 proves";
                    self.about("command_line_missing", "kernel command line", expected, "none");
                }
            }
            return lines;
        }
        for pcr in [8, 9, 12].into_iter().filter(|pcr| !self.rules.judges(*pcr)) {
            if lines.iter().any(|(place, _)| place.pcr == Some(pcr)) {
                self.report.not_checked(format!(
                    "boot log: whether the command line in PCR {pcr} is the only one there, since `boot.pcrs` does not \
                     name it"
                ));
            } else if self.unknown & 1 << pcr != 0 {
                self.report.not_checked(format!(
                    "boot log: whether there is another command line in PCR {pcr}, since `boot.pcrs` does not name it"
                ));
            }
        }
        let rules = &self.rules.command_lines;
        if !rules.is_empty() {
            for (place, forms) in &lines {
                if !forms.iter().any(|form| rules.iter().any(|rule| rule.matches(form))) {
                    let expected = rules.iter().take(3).map(|rule| shown(rule.text())).collect::<Vec<_>>().join(" or ");
                    let found = forms.first().map(|form| shown(form)).unwrap_or_default();
                    self.find("command_line_mismatch", place.clone(), expected, found);
                }
            }
        }
        lines
    }

    /// One of the chains has to fit as a whole.
    fn chain_rules(&mut self, lines: &[(Place, Vec<String>)]) {
        let misfits: Vec<_> = self.rules.chains.iter().map(|chain| self.misfit(chain, lines)).collect();
        if misfits.is_empty() || misfits.iter().any(Option::is_none) {
            return;
        }
        // The nearest: the one of which most fits, the first of several.
        let nearest = misfits.into_iter().flatten().rev().max_by_key(|misfit| misfit.fits);
        if let Some(Misfit { finding, .. }) = nearest {
            self.report.find(*finding);
        }
    }

    /// How a chain does not fit, by its first difference. Texts are made for that one only: both a log and a policy may
    /// be long.
    fn misfit(&self, chain: &Chain, lines: &[(Place, Vec<String>)]) -> Option<Misfit> {
        let is_image = |(wanted, event): &(&EventDigest, &&Event<'_>)| is_digest(event, self.banks, wanted);
        let files: usize = chain.files.iter().filter(|wanted| self.file_digests.contains(wanted)).count();
        let fitting = |(_, forms): &&(Place, Vec<String>)| {
            chain.command_line.as_ref().is_none_or(|rule| forms.iter().any(|form| rule.matches(form)))
        };
        let other_line = lines.iter().find(|line| !fitting(line));
        let has_line = chain.command_line.is_some() && !lines.is_empty() && other_line.is_none();
        let fits = chain.images.iter().zip(&self.images).filter(is_image).count() + files + usize::from(has_line);

        let (place, expected, found) = self
            .image_misfit(chain)
            .or_else(|| self.file_misfit(chain))
            .or_else(|| Self::line_misfit(chain, lines, other_line))?;
        let finding = Finding::at(Check::BootPolicy, "chain_mismatch", place, bounded(expected), bounded(found));
        Some(Misfit { fits, finding: Box::new(finding) })
    }

    fn image_misfit(&self, chain: &Chain) -> Option<(Place, String, String)> {
        let name = shown(&chain.name);
        let bank = self.banks.last().copied().unwrap_or(HashAlg::Sha256);
        if chain.images.is_empty() {
            // Nor does an alternative that names no image cover those of another one.
            let event = self.chain_image?;
            let expected = format!("no image of another alternative than {name}");
            return Some((place(event), expected, found_digest(event, bank)));
        }
        let same = |(wanted, event): (&EventDigest, &&Event<'_>)| is_digest(event, self.banks, wanted);
        let at = chain.images.iter().zip(&self.images).take_while(|pair| same(*pair)).count();
        match (chain.images.get(at), self.images.get(at)) {
            (Some(wanted), event) => {
                let expected = format!("image {} of {name}, {}", at + 1, wanted.digest);
                let none = || (Place { pcr: Some(4), ..Place::default() }, "none".to_owned());
                let (place, found) = event.map_or_else(none, |event| (place(event), found_digest(event, wanted.bank)));
                Some((place, expected, found))
            }
            (None, Some(event)) => {
                Some((place(event), format!("no image behind those of {name}"), found_digest(event, bank)))
            }
            (None, None) => None,
        }
    }

    fn file_misfit(&self, chain: &Chain) -> Option<(Place, String, String)> {
        let name = || shown(&chain.name);
        if let Some(wanted) = chain.files.iter().find(|wanted| !self.file_digests.contains(wanted)) {
            let place = Place { pcr: Some(9), ..Place::default() };
            return Some((place, format!("file {} of {}", wanted.digest, name()), "not measured".to_owned()));
        }
        // Those of another alternative were loaded too, or in place of this one's, whose digest was measured afterwards.
        let is_ours = |event: &Event<'_>| chain.files.iter().any(|wanted| is_digest(event, self.banks, wanted));
        let event = self.files.iter().find(|event| !is_ours(event))?;
        let bank = self.banks.last().copied().unwrap_or(HashAlg::Sha256);
        Some((place(event), format!("no file but those of {}", name()), found_digest(event, bank)))
    }

    fn line_misfit(
        chain: &Chain,
        lines: &[(Place, Vec<String>)],
        other: Option<&(Place, Vec<String>)>,
    ) -> Option<(Place, String, String)> {
        let rule = chain.command_line.as_ref()?;
        let name = shown(&chain.name);
        if let Some((place, forms)) = other {
            let found = forms.first().map(|form| shown(form)).unwrap_or_default();
            return Some((place.clone(), format!("the command line of {name}: {}", shown(rule.text())), found));
        }
        // That there is none is a finding of its own.
        lines.is_empty().then(|| (Place::default(), format!("the command line of {name}"), "none".to_owned()))
    }

    fn tell(&mut self) {
        let rules = self.rules;
        let pcrs: Vec<_> = (0..16u8).filter(|pcr| rules.judges(*pcr)).map(|pcr| pcr.to_string()).collect();
        if !pcrs.is_empty() {
            let (events, pcrs) = (self.allowed, pcrs.join(", "));
            self.report
                .checked(format!("boot log: every event of PCR {pcrs}; {events} events are as the policy has them"));
        }
        let others: Vec<_> =
            (0..16u8).filter(|pcr| *pcr != super::IMA_PCR && !rules.judges(*pcr)).map(|pcr| pcr.to_string()).collect();
        if !others.is_empty() {
            self.report.not_checked(format!("boot log: events of PCR {} are only replayed", others.join(", ")));
        }
        let loose: Vec<_> =
            (0..16u8).filter(|pcr| rules.loose_mask() & 1 << pcr != 0).map(|pcr| pcr.to_string()).collect();
        if !loose.is_empty() {
            self.report.not_checked(format!(
                "boot log: what else there is in PCR {} than its rules ask for, since `boot.pcrs` does not name it",
                loose.join(", ")
            ));
        }
        match rules.secure_boot {
            Some(on) => self.report.checked(format!("boot log: Secure Boot {}", if on { "on" } else { "off" })),
            None => self.report.not_checked("boot log: the policy does not say whether Secure Boot has to be on"),
        }
        if rules.has_command_line() {
            self.report.checked("boot log: the kernel's command line");
        } else {
            self.report.not_checked("boot log: the policy has no rule for the kernel's command line");
        }
    }
}

fn bounded(text: impl Into<String>) -> String {
    let text = text.into();
    match text.char_indices().nth(MAX_FINDING_LEN) {
        Some((at, _)) => text.get(..at).unwrap_or_default().to_owned(),
        None => text,
    }
}

struct Misfit {
    fits: usize,
    finding: Box<Finding>,
}

fn found_digest(event: &Event<'_>, bank: HashAlg) -> String {
    event.digest(bank).map_or_else(|| "no digest".to_owned(), hex::encode)
}

fn short(bytes: &[u8]) -> &[u8] {
    bytes.get(..MAX_SHOWN / 4).unwrap_or(bytes)
}

/// Whether an event needs no rule of its own: a separator without error, or an action of an ordinary boot.
pub(super) fn is_builtin(event: &Event<'_>, banks: &[HashAlg]) -> bool {
    SEPARATORS.iter().any(|data| hashes_to(event, banks, data)) || is_ordinary_action(event, banks)
}

fn is_ordinary_action(event: &Event<'_>, banks: &[HashAlg]) -> bool {
    matches!(event.pcr, 4 | 5)
        && ACTIONS.iter().any(|text| event.data == text.as_bytes())
        && hashes_to(event, banks, event.data)
}

/// The command line that an event's digest proves, from the event's data or from what the node says.
pub(super) fn proven_command_line(event: &Event<'_>, banks: &[HashAlg], said: Option<&str>) -> Option<String> {
    match event.pcr {
        8 => {
            let text = std::str::from_utf8(event.data).ok()?;
            let text = text.trim_end_matches('\0').strip_prefix(GRUB_KERNEL)?;
            is_text(event, banks, text.as_bytes()).then(|| text.to_owned())
        }
        9 => {
            let said = said?;
            let mut bytes = to_utf16(said);
            bytes.extend_from_slice(&[0, 0]);
            hashes_to(event, banks, &bytes).then(|| said.to_owned())
        }
        12 => {
            let told = utf16(event.data).map(|text| text.trim_end_matches('\0').to_owned());
            let is_it = |text: &&str| {
                let bytes = to_utf16(text);
                hashes_to(event, banks, &bytes) || hashes_to(event, banks, &[&bytes[..], &[0, 0]].concat())
            };
            told.as_deref().filter(is_it).or_else(|| said.filter(is_it)).map(str::to_owned)
        }
        _ => None,
    }
}

/// GRUB hashes the text without its NUL; some versions with it.
fn is_text(event: &Event<'_>, banks: &[HashAlg], text: &[u8]) -> bool {
    hashes_to(event, banks, text) || hashes_to(event, banks, &[text, &[0]].concat())
}

/// GRUB's text begins with the kernel's path, which is no part of what the kernel is told.
fn forms(text: String) -> Vec<String> {
    let rest = text.split_once(' ').filter(|(first, _)| first.starts_with(['/', '('])).map(|(_, rest)| rest.to_owned());
    std::iter::once(text).chain(rest).collect()
}

#[cfg(test)]
mod tests;
