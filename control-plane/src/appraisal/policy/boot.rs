//! `[boot]` of a policy: what a good boot log looks like. Judging by it is [`boot_rules`](crate::appraisal::boot_rules)'s.

use std::collections::{HashMap, HashSet};

use protocol::tpm::alg::{Digest, HashAlg};
use serde::Deserialize;

use super::PolicyError;
use crate::appraisal::IMA_PCR;

/// The PCRs in which every event has to be allowed unless `pcrs` says otherwise: code and Secure Boot; those of the rules
/// come to them.
const DEFAULT_PCRS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 7;
/// Entries in one list of the section.
const MAX_LIST: usize = 4096;
/// A command line or a pattern of one, in bytes: the kernel's own limit on most machines.
const MAX_COMMAND_LINE_LEN: usize = protocol::limits::MAX_COMMAND_LINE_LEN;
/// An event's or chain's name, in characters.
const MAX_NAME_LEN: usize = 120;

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBoot {
    pcrs: Option<Vec<u8>>,
    secure_boot: Option<RawSecureBoot>,
    #[serde(default)]
    command_line: Vec<String>,
    #[serde(default)]
    command_line_patterns: Vec<String>,
    #[serde(default)]
    sbat: Vec<String>,
    #[serde(default)]
    keys: RawKeys,
    #[serde(default)]
    event: Vec<RawEvent>,
    #[serde(default)]
    chain: Vec<RawChain>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum RawSecureBoot {
    On,
    Off,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKeys {
    pk: Option<RawKey>,
    kek: Option<RawKey>,
    db: Option<RawKey>,
    dbx: Option<RawKey>,
    authorities: Option<RawKey>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    only: Option<Vec<String>>,
    #[serde(default)]
    require: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvent {
    name: String,
    pcr: u8,
    digests: Vec<String>,
    #[serde(default)]
    required: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChain {
    name: String,
    #[serde(default)]
    images: Vec<String>,
    #[serde(default)]
    files: Vec<String>,
    command_line: Option<String>,
    command_line_pattern: Option<String>,
}

/// A digest of an event in one bank.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct EventDigest {
    pub(crate) bank: HashAlg,
    pub(crate) digest: Digest,
}

/// Text in which `*` stands for any text, the empty one too; everything else stands for itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum CommandLine {
    Exact(String),
    Pattern(String),
}

impl CommandLine {
    /// Whether the whole of `text` is as the rule says. Time is linear in the text: a star never gives back what it took
    /// for an earlier star.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let pattern = match self {
            Self::Exact(exact) => return exact == text,
            Self::Pattern(pattern) => pattern,
        };
        let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        for part in middle.split('*') {
            let Some(at) = text.find(part) else { return false };
            text = text.get(at + part.len()..).unwrap_or_default();
        }
        text.ends_with(last)
    }

    pub(crate) fn text(&self) -> &str {
        let (Self::Exact(text) | Self::Pattern(text)) = self;
        text
    }
}

/// What a key variable may and has to hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct KeyRule {
    /// Nothing but these, if it is there; ascending.
    pub(crate) only: Option<Vec<[u8; 32]>>,
    /// All of these.
    pub(crate) require: Vec<[u8; 32]>,
}

/// One allowed event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EventRule {
    pub(crate) name: String,
    pub(crate) pcr: u8,
    pub(crate) digests: Vec<EventDigest>,
    pub(crate) required: bool,
}

/// Images, files and a command line that belong together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) images: Vec<EventDigest>,
    pub(crate) files: Vec<EventDigest>,
    pub(crate) command_line: Option<CommandLine>,
}

/// Rules on the events of a boot log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BootRules {
    judged: u32,
    spoken_of: u32,
    quoted: u32,
    pub(crate) secure_boot: Option<bool>,
    pub(crate) command_lines: Vec<CommandLine>,
    pub(crate) sbat: Vec<(String, u32)>,
    /// `PK`, `KEK`, `db`, `dbx`.
    pub(crate) variables: Vec<(&'static str, KeyRule)>,
    pub(crate) authorities: Option<KeyRule>,
    pub(crate) events: Vec<EventRule>,
    pub(crate) chains: Vec<Chain>,
    /// Which of `events` a digest in a PCR meets: a log may have many events, and a policy many digests.
    pub(crate) by_digest: HashMap<(u8, EventDigest), Vec<usize>>,
    /// All digests of the chains' images, and of their files.
    pub(crate) chain_images: HashSet<EventDigest>,
    pub(crate) chain_files: HashSet<EventDigest>,
}

impl BootRules {
    pub(super) fn from_raw(raw: RawBoot) -> Result<Self, PolicyError> {
        let command_lines = command_lines(&raw)?;
        let sbat = raw.sbat.iter().map(|text| sbat_level(text)).collect::<Result<Vec<_>, _>>()?;
        let RawKeys { pk, kek, db, dbx, authorities } = raw.keys;
        let mut variables = Vec::new();
        for (name, rule) in [("PK", pk), ("KEK", kek), ("db", db), ("dbx", dbx)] {
            if let Some(rule) = rule {
                variables.push((name, key_rule(&format!("boot.keys.{}", name.to_lowercase()), rule)?));
            }
        }
        let authorities = authorities.map(|rule| key_rule("boot.keys.authorities", rule)).transpose()?;
        bounded("boot.event", raw.event.len())?;
        bounded("boot.chain", raw.chain.len())?;
        let events = raw.event.into_iter().enumerate().map(event_rule).collect::<Result<Vec<_>, _>>()?;
        let chains = raw.chain.into_iter().enumerate().map(chain_rule).collect::<Result<Vec<_>, _>>()?;

        let has_command_line = !command_lines.is_empty() || chains.iter().any(|chain| chain.command_line.is_some());
        let when = |wanted: bool, mask: u32| if wanted { mask } else { 0 };
        let has_keys = !variables.is_empty() || authorities.is_some() || !sbat.is_empty();
        let used = events.iter().fold(0, |mask, event| mask | 1u32 << event.pcr)
            | when(chains.iter().any(|chain| !chain.images.is_empty()), 1 << 4)
            | when(chains.iter().any(|chain| !chain.files.is_empty()), 1 << 9)
            | when(raw.secure_boot.is_some() || has_keys, 1 << 7);
        let judged = match raw.pcrs {
            Some(pcrs) => judged_pcrs(&pcrs)?,
            None => DEFAULT_PCRS | used,
        };
        let spoken_of = used;
        // Where a command line is measured depends on who starts the kernel.
        let used = used | when(has_command_line, 1 << 8 | 1 << 9 | 1 << 12);
        let quoted = judged | used;
        let mut by_digest: HashMap<_, Vec<usize>> = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            for digest in &event.digests {
                by_digest.entry((event.pcr, *digest)).or_default().push(at);
            }
        }
        let chain_images = chains.iter().flat_map(|chain| &chain.images).copied().collect();
        let chain_files = chains.iter().flat_map(|chain| &chain.files).copied().collect();
        Ok(Self {
            judged,
            spoken_of,
            quoted,
            secure_boot: raw.secure_boot.map(|wanted| wanted == RawSecureBoot::On),
            command_lines,
            sbat,
            variables,
            authorities,
            events,
            chains,
            by_digest,
            chain_images,
            chain_files,
        })
    }

    /// Bits of the PCRs that its rules speak of: they are quoted, and the logs have to account for them.
    pub const fn pcr_mask(&self) -> u32 {
        self.quoted
    }

    /// Bits of the PCRs in which every event has to be allowed.
    pub const fn judged_mask(&self) -> u32 {
        self.judged
    }

    /// Bits of the PCRs that its rules on events, files and keys speak of, in which not every event has to be allowed.
    pub(crate) const fn loose_mask(&self) -> u32 {
        self.spoken_of & !self.judged
    }

    /// Whether every event of a PCR has to be allowed.
    pub fn judges(&self, index: u8) -> bool {
        1u32.checked_shl(index.into()).is_some_and(|bit| self.judged & bit != 0)
    }

    pub(crate) fn has_command_line(&self) -> bool {
        !self.command_lines.is_empty() || self.chains.iter().any(|chain| chain.command_line.is_some())
    }
}

fn bad(place: impl Into<String>, problem: impl Into<String>) -> PolicyError {
    PolicyError::Rule { place: place.into(), problem: problem.into() }
}

fn bounded(place: &str, len: usize) -> Result<(), PolicyError> {
    if len > MAX_LIST { Err(bad(place, format!("more than {MAX_LIST} entries"))) } else { Ok(()) }
}

fn judged_pcrs(pcrs: &[u8]) -> Result<u32, PolicyError> {
    let mut mask = 0;
    for index in pcrs {
        if *index == IMA_PCR {
            return Err(bad("boot.pcrs", "PCR 10 is IMA's: its entries are judged by [ima]"));
        }
        if *index > 15 {
            return Err(bad("boot.pcrs", format!("PCR {index}: the boot log speaks of 0 to 9 and 11 to 15")));
        }
        if mask & (1 << index) != 0 {
            return Err(bad("boot.pcrs", format!("PCR {index} is named twice")));
        }
        mask |= 1 << index;
    }
    Ok(mask)
}

fn command_lines(raw: &RawBoot) -> Result<Vec<CommandLine>, PolicyError> {
    bounded("boot.command_line", raw.command_line.len())?;
    bounded("boot.command_line_patterns", raw.command_line_patterns.len())?;
    let exact = raw.command_line.iter().map(|text| {
        command_line_text("boot.command_line", text)?;
        Ok(CommandLine::Exact(text.clone()))
    });
    let patterns = raw.command_line_patterns.iter().map(|text| {
        command_line_text("boot.command_line_patterns", text)?;
        Ok(CommandLine::Pattern(text.clone()))
    });
    exact.chain(patterns).collect()
}

fn command_line_text(place: &str, text: &str) -> Result<(), PolicyError> {
    if text.len() > MAX_COMMAND_LINE_LEN {
        return Err(bad(place, format!("longer than {MAX_COMMAND_LINE_LEN} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(bad(place, "a command line has no control characters"));
    }
    Ok(())
}

/// `shim,4`: component and least generation.
fn sbat_level(text: &str) -> Result<(String, u32), PolicyError> {
    let wrong = || bad("boot.sbat", format!("`{}`: a component and its least generation, as in `shim,4`", short(text)));
    let (component, generation) = text.split_once(',').ok_or_else(wrong)?;
    let is_name = !component.is_empty() && component.chars().all(|c| c.is_ascii_graphic() && c != ',');
    if !is_name {
        return Err(wrong());
    }
    Ok((component.to_owned(), generation.trim().parse().map_err(|_| wrong())?))
}

fn key_rule(place: &str, raw: RawKey) -> Result<KeyRule, PolicyError> {
    let ids = |texts: &[String]| -> Result<Vec<[u8; 32]>, PolicyError> {
        bounded(place, texts.len())?;
        let id = |text: &String| match event_digest(text) {
            Some(EventDigest { bank: HashAlg::Sha256, digest }) => digest.as_bytes().try_into().ok(),
            _ => None,
        };
        let wrong = |text: &String| bad(place, format!("`{}` is no SHA-256 in hex", short(text)));
        texts.iter().map(|text| id(text).ok_or_else(|| wrong(text))).collect()
    };
    if raw.only.is_none() && raw.require.is_empty() {
        return Err(bad(place, "neither `only` nor `require`: it would judge nothing"));
    }
    let mut only = raw.only.as_deref().map(ids).transpose()?;
    only.iter_mut().for_each(|only| only.sort_unstable());
    Ok(KeyRule { only, require: ids(&raw.require)? })
}

fn event_rule((at, raw): (usize, RawEvent)) -> Result<EventRule, PolicyError> {
    let place = format!("boot.event {}", at + 1);
    let name = rule_name(&place, raw.name)?;
    if raw.pcr > 15 || raw.pcr == IMA_PCR {
        return Err(bad(place, format!("PCR {}: the boot log speaks of 0 to 9 and 11 to 15", raw.pcr)));
    }
    if raw.digests.is_empty() {
        return Err(bad(place, "an event needs at least one digest"));
    }
    Ok(EventRule { name, pcr: raw.pcr, digests: digests(&place, &raw.digests)?, required: raw.required })
}

fn chain_rule((at, raw): (usize, RawChain)) -> Result<Chain, PolicyError> {
    let place = format!("boot.chain {}", at + 1);
    let name = rule_name(&place, raw.name)?;
    let command_line = match (raw.command_line, raw.command_line_pattern) {
        (Some(_), Some(_)) => return Err(bad(place, "both `command_line` and `command_line_pattern`: choose one")),
        (Some(text), None) => Some(CommandLine::Exact(text)),
        (None, Some(text)) => Some(CommandLine::Pattern(text)),
        (None, None) => None,
    };
    if let Some(line) = &command_line {
        command_line_text(&place, line.text())?;
    }
    if raw.images.is_empty() && raw.files.is_empty() && command_line.is_none() {
        return Err(bad(place, "a chain without images, files and command line fits everything"));
    }
    Ok(Chain { name, images: digests(&place, &raw.images)?, files: digests(&place, &raw.files)?, command_line })
}

fn rule_name(place: &str, name: String) -> Result<String, PolicyError> {
    let is_good = (1..=MAX_NAME_LEN).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    if is_good { Ok(name) } else { Err(bad(place, format!("`name` has to be 1 to {MAX_NAME_LEN} characters"))) }
}

fn digests(place: &str, texts: &[String]) -> Result<Vec<EventDigest>, PolicyError> {
    bounded(place, texts.len())?;
    let wrong =
        |text: &String| bad(place, format!("`{}` is no digest: hex, with or without `sha256:` before it", short(text)));
    texts.iter().map(|text| event_digest(text).ok_or_else(|| wrong(text))).collect()
}

/// `sha256:HEX`, or hex whose length says the algorithm.
fn event_digest(text: &str) -> Option<EventDigest> {
    let (alg, text) = match text.split_once(':') {
        Some((name, text)) => (Some(HashAlg::from_name(name)?), text),
        None => (None, text),
    };
    let bytes = hex::decode(text).ok()?;
    let bank = alg.or_else(|| HashAlg::ALL.into_iter().find(|alg| alg.digest_len() == bytes.len()))?;
    Some(EventDigest { bank, digest: bank.read_digest(&bytes).ok()? })
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BootRules, PolicyError> {
        BootRules::from_raw(toml::from_str(text).unwrap_or_else(|error| panic!("{error}")))
    }

    fn problem(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn rules_speak_of_the_pcrs_they_need() {
        let hash = "ab".repeat(32);
        let rules = parse("").unwrap();
        assert_eq!((rules.judged_mask(), rules.pcr_mask()), (0x95, 0x95));
        let rules = parse("pcrs = [0]\ncommand_line = [\"quiet\"]\nsecure_boot = \"on\"").unwrap();
        assert_eq!((rules.judged_mask(), rules.pcr_mask()), (1, 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 12));
        let rules = parse(&format!("[[event]]\nname = \"x\"\npcr = 14\ndigests = [\"{hash}\"]")).unwrap();
        assert!(rules.judges(14) && !rules.judges(10));
    }

    #[test]
    fn what_cannot_mean_anything_is_refused_by_its_place() {
        let hash = "ab".repeat(32);
        for (text, place, part) in [
            ("pcrs = [10]".to_owned(), "boot.pcrs", "IMA"),
            ("pcrs = [16]".into(), "boot.pcrs", "PCR 16"),
            ("pcrs = [7, 7]".into(), "boot.pcrs", "twice"),
            ("command_line = [\"a\\nb\"]".into(), "boot.command_line", "control"),
            ("sbat = [\"shim\"]".into(), "boot.sbat", "`shim`"),
            ("sbat = [\"shim,x\"]".into(), "boot.sbat", "`shim,x`"),
            ("[keys.db]".into(), "boot.keys.db", "judge nothing"),
            (format!("[keys.dbx]\nrequire = [\"{hash}00\"]"), "boot.keys.dbx", "no SHA-256"),
            (format!("[keys.pk]\nonly = [\"sha1:{}\"]", "ab".repeat(20)), "boot.keys.pk", "no SHA-256"),
            ("[[event]]\nname = \"x\"\npcr = 4\ndigests = []".into(), "boot.event 1", "at least one"),
            ("[[event]]\nname = \"x\"\npcr = 4\ndigests = [\"zz\"]".into(), "boot.event 1", "no digest"),
            (format!("[[event]]\nname = \"x\"\npcr = 10\ndigests = [\"{hash}\"]"), "boot.event 1", "PCR 10"),
            (format!("[[event]]\nname = \"\"\npcr = 1\ndigests = [\"{hash}\"]"), "boot.event 1", "`name`"),
            ("[[chain]]\nname = \"x\"".into(), "boot.chain 1", "fits everything"),
            (
                "[[chain]]\nname = \"x\"\ncommand_line = \"a\"\ncommand_line_pattern = \"b\"".into(),
                "boot.chain 1",
                "choose one",
            ),
        ] {
            let problem = problem(&text);
            assert!(problem.contains(place) && problem.contains(part), "{text}: {problem}");
        }
        for text in ["unknown = 1", "secure_boot = \"maybe\"", "[keys]\ndbt = {}", "[[event]]\nname = \"x\""] {
            assert!(toml::from_str::<RawBoot>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_hold_the_whole_text() {
        let fits = |pattern: &str, text: &str| CommandLine::Pattern(pattern.into()).matches(text);
        assert!(fits("root=* ro quiet", "root=/dev/sda1 ro quiet") && fits("*", "") && fits("a*", "a"));
        assert!(fits("*a*b*", "xxaxxbxx") && fits("a**b", "ab"));
        for (pattern, text) in [
            ("root=* ro quiet", "root=/dev/sda1 ro quiet init=/bin/sh"),
            ("root=* ro", "evil root=x ro"),
            ("a*a", "a"),
            ("*ab*b", "ab"),
            ("ab", "abc"),
        ] {
            assert!(!fits(pattern, text), "{pattern}: {text}");
        }
        let long = "a".repeat(4096);
        assert!(!fits(&"*a".repeat(2000), &(long + "b")));
    }

    #[test]
    fn a_digest_names_its_algorithm_or_has_its_length() {
        assert_eq!(event_digest(&"ab".repeat(48)).unwrap().bank, HashAlg::Sha384);
        assert_eq!(event_digest(&format!("sha1:{}", "AB".repeat(20))).unwrap().bank, HashAlg::Sha1);
        assert_eq!(event_digest(&format!("sha1:{}", "ab".repeat(32))), None);
        assert_eq!(event_digest(&format!("md5:{}", "ab".repeat(16))), None);
    }
}
