//! Policies: what a good node looks like. TOML for what people write, JSON for long lists; parsed once, shared by all
//! nodes that use it. Judging by one is [`verdict`](super::verdict)'s.
//!
//! ```toml
//! version = 1
//! name = "edge"
//! accept = ["hardware-unproven"]   # exceptions, each repeated by every verdict
//! [pcrs.sha256]
//! 7 = ["65ca…"]                    # any of the values is good
//! [release]
//! phase_pcr = 13                   # or: uncapped = true
//! ```

pub mod boot;
pub mod ima;

use std::{collections::BTreeMap, fmt, fmt::Write as _, sync::Arc};

use protocol::{
    limits,
    tpm::{
        alg::{Digest, HashAlg},
        pcr::{PcrSelection, PcrSelectionList},
    },
};
use ring::digest;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use self::{boot::BootRules, ima::ImaRules};
use super::{FIRMWARE_PCRS, IMA_PCR};

/// A policy's bytes as uploaded: room for thousands of reference values.
pub const MAX_POLICY_LEN: usize = 1024 * 1024;
/// A policy's own name, in characters.
pub const MAX_NAME_LEN: usize = 63;
/// PCRs that may cap a release: those that neither firmware nor DRTM owns. PCR 10 is IMA's.
pub const PHASE_PCRS: std::ops::RangeInclusive<u8> = 8..=15;

/// PCRs that any local process can reset: 16 (debug) and 23 (application).
const RESETTABLE: [u8; 2] = [16, 23];
/// What is asked of a node that no policy judges yet: all that boot software extends, but PCR 10.
const UNJUDGED_MASK: u32 = 0xffff & !(1 << IMA_PCR);

/// Why bytes are no policy. `place` names the entry, as in `pcrs.sha256.7`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum PolicyError {
    #[error("the policy is longer than {MAX_POLICY_LEN} bytes")]
    TooLong,
    #[error("the policy is not UTF-8 text")]
    NotText,
    #[error("the policy does not parse: {0}")]
    Syntax(String),
    #[error("`version = {0}` is not known here: this program reads version 1")]
    Version(u64),
    #[error("`name` has to be 1 to {MAX_NAME_LEN} printable characters, no space at either end")]
    Name,
    #[error("`{place}`: there is no such PCR bank (sha1, sha256, sha384, sha512)")]
    UnknownBank { place: String },
    #[error("`{place}`: PCRs are numbered 0 to 23, without leading zeros")]
    NoSuchPcr { place: String },
    #[error("`{place}`: PCR 16 and 23 can be reset by any process on the node, so they prove nothing")]
    ResettablePcr { place: String },
    #[error("`{place}`: a PCR needs at least one value")]
    NoValues { place: String },
    #[error("`{place}`: value {number} is not {digits} hex digits")]
    BadValue { place: String, number: usize, digits: usize },
    #[error("`{place}`: the sha1 bank is judged only with `accept = [\"sha1\"]`")]
    Sha1NotAccepted { place: String },
    #[error("`accept`: unknown exception `{0}` (known: hardware-unproven, no-firmware-measurements, sha1)")]
    UnknownException(String),
    #[error("`accept` names `{0}` twice")]
    DuplicateException(String),
    #[error("`release.phase_pcr = {0}`: it has to be one of 8 to 15, and not 10, which is IMA's")]
    PhasePcr(u8),
    #[error("`release` has both `phase_pcr` and `uncapped = true`: choose one")]
    BothReleaseRules,
    #[error("`{place}` is the phase PCR: its values follow from the node's pins and cannot be listed")]
    PhasePcrListed { place: String },
    #[error("the policy names no PCR, so it would judge nothing")]
    JudgesNothing,
    #[error("the policy needs {0} PCRs quoted, more than the {max} that one evidence can carry", max = limits::MAX_PCR_VALUES)]
    TooManyPcrs(usize),
}

/// A named exception; every verdict under the policy repeats it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Exception {
    /// The TPM has neither a vendor's certificate nor a place on the allow-list.
    HardwareUnproven,
    /// A bank may be judged though no firmware measured into it.
    NoFirmwareMeasurements,
    /// The SHA-1 bank may be judged.
    Sha1,
}

impl Exception {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::HardwareUnproven, Self::NoFirmwareMeasurements, Self::Sha1];

    /// Its name in policies and verdicts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HardwareUnproven => "hardware-unproven",
            Self::NoFirmwareMeasurements => "no-firmware-measurements",
            Self::Sha1 => "sha1",
        }
    }
}

/// Under what a share may leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReleaseRule {
    /// The phase PCR has to hold the node's pins and nothing else.
    PhasePcr(u8),
    /// Any good verdict of a bootstrap suffices, as often as it is asked for.
    Uncapped,
}

/// A parsed policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    id: [u8; 32],
    name: String,
    pcrs: BTreeMap<(HashAlg, u8), Vec<Digest>>,
    release: Option<ReleaseRule>,
    accept: Vec<Exception>,
    boot: Option<BootRules>,
    ima: Option<Arc<ImaRules>>,
    selection: PcrSelectionList,
    selection_with_ima: PcrSelectionList,
}

impl Policy {
    /// Parses TOML, or JSON if the first character that is no space is `{`.
    ///
    /// Unknown and doubled fields are errors, and so is everything that cannot mean anything: a policy that parses can
    /// be judged by.
    ///
    /// # Errors
    /// [`PolicyError`], naming the place.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > MAX_POLICY_LEN {
            return Err(PolicyError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| PolicyError::NotText)?;
        let raw: RawPolicy = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| PolicyError::Syntax(error.to_string()))?
        } else {
            toml::from_str(text).map_err(|error| PolicyError::Syntax(error.to_string().trim_end().to_owned()))?
        };
        let mut id = [0; 32];
        id.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Self::from_raw(raw, id)
    }

    fn from_raw(raw: RawPolicy, id: [u8; 32]) -> Result<Self, PolicyError> {
        if raw.version != 1 {
            return Err(PolicyError::Version(raw.version));
        }
        if !is_name(&raw.name) {
            return Err(PolicyError::Name);
        }
        let accept = parse_accept(raw.accept)?;
        let release = raw.release.map_or(Ok(None), parse_release)?;
        let pcrs = parse_pcrs(raw.pcrs, &accept, release)?;
        let boot = raw.boot.map(BootRules::from_raw).transpose()?;
        let ima = raw.ima.map(ImaRules::from_raw).transpose()?.map(Arc::new);
        let has_rules = boot.is_some() || ima.is_some();
        if pcrs.is_empty() && !has_rules && !matches!(release, Some(ReleaseRule::PhasePcr(_))) {
            return Err(PolicyError::JudgesNothing);
        }
        let boot_mask = boot.as_ref().map_or(0, BootRules::pcr_mask);
        let selection = |has_ima| select(&pcrs, release, &accept, boot_mask, has_ima);
        let (selection, selection_with_ima) = (selection(false), selection(true));
        let count = selection_with_ima.count();
        if count > limits::MAX_PCR_VALUES {
            return Err(PolicyError::TooManyPcrs(count));
        }
        Ok(Self { id, name: raw.name, pcrs, release, accept, boot, ima, selection, selection_with_ima })
    }

    /// Its content address: SHA-256 of the bytes as uploaded.
    pub const fn id(&self) -> [u8; 32] {
        self.id
    }

    /// Its own name; not unique.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to ask of a node: the named PCRs; the phase PCR and, if the node has an IMA list, PCR 10, in every named
    /// bank (SHA-256 if none is named).
    ///
    /// A bank of which no firmware PCR is named gets PCR 0 too, unless the policy accepts `no-firmware-measurements`:
    /// whether firmware measured into a bank at all can only be seen on one, and into a bank that it leaves alone
    /// anybody may measure anything.
    pub fn selection(&self, has_ima: bool) -> &PcrSelectionList {
        if has_ima { &self.selection_with_ima } else { &self.selection }
    }

    /// The named PCRs and their good values, ascending by bank, then index.
    pub fn pcrs(&self) -> impl Iterator<Item = (HashAlg, u8, &[Digest])> {
        self.pcrs.iter().map(|((bank, index), values)| (*bank, *index, values.as_slice()))
    }

    /// The banks it judges in, ascending.
    pub fn banks(&self) -> impl Iterator<Item = HashAlg> {
        self.selection.iter().map(|selection| selection.bank)
    }

    /// Under what a share may leave; without a rule none does.
    pub const fn release(&self) -> Option<ReleaseRule> {
        self.release
    }

    /// Its rules on the boot log's events.
    pub const fn boot(&self) -> Option<&BootRules> {
        self.boot.as_ref()
    }

    /// Its rules on the IMA list's entries.
    pub fn ima(&self) -> Option<&ImaRules> {
        self.ima.as_deref()
    }

    /// Whether it makes this exception.
    pub fn accepts(&self, exception: Exception) -> bool {
        self.accept.contains(&exception)
    }

    /// The exceptions it makes, ascending.
    pub fn accepted(&self) -> impl Iterator<Item = Exception> {
        self.accept.iter().copied()
    }

    /// Writes a policy that the node these values came from fulfils, as TOML for a person to read and narrow.
    ///
    /// `pcrs` are (TPM_ALG_ID, index, digest). Left out: the phase PCR (its value follows from the pins), PCR 10 (it
    /// changes with every file), 16 and 23 (anybody can reset them), banks of unknown algorithms. Exceptions are
    /// written only where the values could not be judged without.
    pub fn learn(pcrs: &[(u16, u8, Vec<u8>)], name: &str, phase_pcr: Option<u8>) -> String {
        let mut banks: BTreeMap<HashAlg, BTreeMap<u8, &[u8]>> = BTreeMap::new();
        let mut with_firmware = Vec::new();
        for (bank, index, value) in pcrs {
            let Some(bank) = HashAlg::from_id(*bank).filter(|bank| bank.digest_len() == value.len()) else { continue };
            if FIRMWARE_PCRS.contains(index) && value.iter().any(|byte| *byte != 0) {
                with_firmware.push(bank);
            }
            let left_out = *index > 23 || RESETTABLE.contains(index) || *index == IMA_PCR || Some(*index) == phase_pcr;
            if !left_out {
                banks.entry(bank).or_default().insert(*index, value);
            }
        }
        let mut text = String::from(
            "# Learned from one node: it says what that node looked like, not that this was good.\n\
             # Delete PCRs that differ between good nodes, or add their other values to the lists.\n\
             version = 1\n",
        );
        // Writing to a String does not fail.
        let _ = writeln!(text, "name = {}", toml::Value::String(name.to_owned()));
        let no_firmware = banks.keys().any(|bank| !with_firmware.contains(bank)) || banks.is_empty();
        let mut accept = Vec::new();
        if no_firmware {
            text.push_str(
                "\n# No firmware measured anything on this node (a software TPM by itself). Every verdict repeats it.\n",
            );
            accept.push("\"no-firmware-measurements\"");
        }
        if banks.contains_key(&HashAlg::Sha1) {
            text.push_str("\n# SHA-1 collides; prefer a node with a SHA-256 bank. Every verdict repeats it.\n");
            accept.push("\"sha1\"");
        }
        if !accept.is_empty() {
            let _ = writeln!(text, "accept = [{}]", accept.join(", "));
        }
        for (bank, values) in &banks {
            let _ = writeln!(text, "\n[pcrs.{bank}]");
            for (index, value) in values {
                let _ = writeln!(text, "# {}", pcr_meaning(*index));
                let _ = writeln!(text, "{index} = [\"{}\"]", hex::encode(value));
            }
        }
        match phase_pcr {
            Some(index) => {
                let _ = writeln!(
                    text,
                    "\n# Shares leave once a boot: PCR {index} has to hold the agent's pins and nothing else.\n\
                     [release]\nphase_pcr = {index}"
                );
            }
            None => text.push_str(
                "\n# No share leaves under this policy. Name the agent's phase PCR to change that, or allow any number\n\
                 # of shares a boot, also to other software of the node, with `uncapped = true`.\n\
                 # [release]\n# phase_pcr = 13\n",
            ),
        }
        text
    }
}

/// What to ask of a node that no policy judges: SHA-256, PCRs 0 to 15, of which PCR 10 only if it has an IMA list.
pub fn unjudged_selection(has_ima: bool) -> PcrSelectionList {
    let mask = if has_ima { UNJUDGED_MASK | (1 << IMA_PCR) } else { UNJUDGED_MASK };
    PcrSelectionList::single(HashAlg::Sha256, mask).unwrap_or_default()
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

/// The shape of the text; what it means is checked afterwards.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    version: u64,
    name: String,
    #[serde(default)]
    accept: Vec<String>,
    #[serde(default)]
    pcrs: UniqueMap<UniqueMap<Vec<String>>>,
    #[serde(default)]
    release: Option<RawRelease>,
    #[serde(default)]
    boot: Option<boot::RawBoot>,
    #[serde(default)]
    ima: Option<ima::RawIma>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRelease {
    phase_pcr: Option<u8>,
    #[serde(default)]
    uncapped: bool,
}

/// A map that refuses a key given twice, which JSON itself would allow.
struct UniqueMap<V>(BTreeMap<String, V>);

impl<V> Default for UniqueMap<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for MapVisitor<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<V>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("`{key}` is given twice")));
                    }
                    let value = map.next_value()?;
                    entries.insert(key, value);
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(MapVisitor(std::marker::PhantomData))
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.chars().count())
        && name.trim() == name
        && !name.chars().any(|c| c.is_control() || c == '\u{feff}')
}

fn parse_accept(names: Vec<String>) -> Result<Vec<Exception>, PolicyError> {
    let mut accept = Vec::new();
    for name in names {
        let Some(exception) = Exception::ALL.into_iter().find(|exception| exception.name() == name) else {
            return Err(PolicyError::UnknownException(name));
        };
        if accept.contains(&exception) {
            return Err(PolicyError::DuplicateException(name));
        }
        accept.push(exception);
    }
    accept.sort_unstable();
    Ok(accept)
}

fn parse_release(raw: RawRelease) -> Result<Option<ReleaseRule>, PolicyError> {
    match (raw.phase_pcr, raw.uncapped) {
        (Some(_), true) => Err(PolicyError::BothReleaseRules),
        (Some(index), false) if PHASE_PCRS.contains(&index) && index != IMA_PCR => {
            Ok(Some(ReleaseRule::PhasePcr(index)))
        }
        (Some(index), false) => Err(PolicyError::PhasePcr(index)),
        (None, true) => Ok(Some(ReleaseRule::Uncapped)),
        (None, false) => Ok(None),
    }
}

fn parse_pcrs(
    raw: UniqueMap<UniqueMap<Vec<String>>>,
    accept: &[Exception],
    release: Option<ReleaseRule>,
) -> Result<BTreeMap<(HashAlg, u8), Vec<Digest>>, PolicyError> {
    let mut pcrs = BTreeMap::new();
    for (bank_name, entries) in raw.0 {
        let place = format!("pcrs.{bank_name}");
        let Some(bank) = HashAlg::from_name(&bank_name) else { return Err(PolicyError::UnknownBank { place }) };
        if bank == HashAlg::Sha1 && !accept.contains(&Exception::Sha1) {
            return Err(PolicyError::Sha1NotAccepted { place });
        }
        for (key, values) in entries.0 {
            let place = format!("{place}.{key}");
            let index = match key.parse::<u8>() {
                Ok(index) if index < 24 && index.to_string() == key => index,
                _ => return Err(PolicyError::NoSuchPcr { place }),
            };
            if RESETTABLE.contains(&index) {
                return Err(PolicyError::ResettablePcr { place });
            }
            if release == Some(ReleaseRule::PhasePcr(index)) {
                return Err(PolicyError::PhasePcrListed { place });
            }
            if values.is_empty() {
                return Err(PolicyError::NoValues { place });
            }
            let mut digests = Vec::with_capacity(values.len());
            for (at, value) in values.iter().enumerate() {
                let digest = hex::decode(value).ok().and_then(|bytes| bank.read_digest(&bytes).ok());
                let Some(digest) = digest else {
                    return Err(PolicyError::BadValue { place, number: at + 1, digits: 2 * bank.digest_len() });
                };
                digests.push(digest);
            }
            pcrs.insert((bank, index), digests);
        }
    }
    Ok(pcrs)
}

fn select(
    pcrs: &BTreeMap<(HashAlg, u8), Vec<Digest>>,
    release: Option<ReleaseRule>,
    accept: &[Exception],
    boot_mask: u32,
    has_ima: bool,
) -> PcrSelectionList {
    let mut masks: BTreeMap<HashAlg, u32> = BTreeMap::new();
    for (bank, index) in pcrs.keys() {
        *masks.entry(*bank).or_default() |= 1 << index;
    }
    if masks.is_empty() {
        masks.insert(HashAlg::Sha256, 0);
    }
    let firmware_mask = FIRMWARE_PCRS.fold(0, |mask, index| mask | (1 << index));
    let mut list = PcrSelectionList::new();
    for (bank, mut mask) in masks {
        mask |= boot_mask;
        if let Some(ReleaseRule::PhasePcr(index)) = release {
            mask |= 1 << index;
        }
        if has_ima {
            mask |= 1 << IMA_PCR;
        }
        if mask & firmware_mask == 0 && !accept.contains(&Exception::NoFirmwareMeasurements) {
            mask |= 1;
        }
        // Indices are below 24 and every bank occurs once: neither can fail.
        if let Some(selection) = PcrSelection::new(bank, mask) {
            let _ = list.push(selection);
        }
    }
    list
}

#[cfg(test)]
mod tests;
