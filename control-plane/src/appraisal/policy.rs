//! Policies: what a good node looks like. TOML for what people write, JSON for long lists, in a DSSE envelope if signed;
//! parsed once, shared by all nodes that use it. docs/policy.md is the reference of the format.
//!
//! ```toml
//! version = 1
//! name = "edge"
//! accept = ["hardware-unproven"]   # exceptions, each repeated by every verdict
//! [pcrs.sha256]
//! 7 = ["65ca…"]                    # any of the values is good
//! [release]
//! phase_pcr = 13                   # or: uncapped = true
//! [boot]                           # rules on the boot log's events
//! [ima]                            # rules on the IMA list's entries
//! ```
//!
//! Here: the frame, PCR values and release. Sections of their own: [`boot`], [`ima`]. Signatures: [`dsse`]. Making
//! policies: [`mod@learn`], [`keylime`], [`write`]; comparing them: [`mod@diff`]. Judging by one is
//! [`verdict`](super::verdict)'s, [`boot_rules`](super::boot_rules)' and [`ima_rules`](super::ima_rules)'.

pub mod boot;
pub mod diff;
pub mod digests;
pub mod dsse;
pub mod ima;
pub mod keylime;
pub mod learn;
pub mod write;

use std::{collections::BTreeMap, fmt, sync::Arc};

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

use self::{boot::BootRules, dsse::P256Key, ima::ImaRules};
use super::{FIRMWARE_PCRS, IMA_PCR};

/// A policy's bytes as uploaded: room for the files of a large system, some 200,000 digests.
pub const MAX_POLICY_LEN: usize = 32 * 1024 * 1024;
/// Characters of a parser's complaint that are shown.
const MAX_SYNTAX_LEN: usize = 1024;
/// A policy's own name, in characters.
pub const MAX_NAME_LEN: usize = 63;
/// PCRs that may cap a release: those that neither firmware nor DRTM owns. PCR 10 is IMA's.
pub const PHASE_PCRS: std::ops::RangeInclusive<u8> = 8..=15;

/// What a signed policy's envelope says that it holds.
pub const PAYLOAD_TYPE: &str = "application/vnd.trefoil.policy";

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
    #[error("`{place}`: {problem}")]
    Rule { place: String, problem: String },
    #[error("the policy has no `[pcrs]`, `[boot]`, `[ima]` or `release.phase_pcr`, so it would judge nothing")]
    JudgesNothing,
    #[error("the policy needs {0} PCRs quoted, more than the {max} that one evidence can carry", max = limits::MAX_PCR_VALUES)]
    TooManyPcrs(usize),
    #[error("the policy is not signed, and only signed policies are used here (trefoil policy sign)")]
    Unsigned,
    #[error("the policy's signature does not hold: {0}")]
    Signature(dsse::DsseError),
}

impl PolicyError {
    /// The short name that stands in refusals and in a node's history.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unsigned => "policy_unsigned",
            Self::Signature(_) => "policy_signature_bad",
            _ => "policy_invalid",
        }
    }
}

/// Whose policies are used.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum PolicyTrust {
    /// Anybody's, signed or not; a signature is not looked at then, and [`Policy::signer`] says so.
    #[default]
    Any,
    /// Only those in a DSSE envelope with a signature by one of these keys.
    Signed(Vec<P256Key>),
}

impl PolicyTrust {
    /// Signed policies only if there are keys.
    pub fn from_keys(keys: Vec<P256Key>) -> Self {
        if keys.is_empty() { Self::Any } else { Self::Signed(keys) }
    }
}

/// Who stands behind a policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signer {
    /// Nobody: its text is not in an envelope.
    None,
    /// It has a signature that nobody looked at: no key says whose it should be.
    Unchecked,
    /// This trusted key.
    Key(P256Key),
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

/// A parsed policy; a clone shares what it holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy(Arc<Inner>);

#[derive(Debug, Eq, PartialEq)]
struct Inner {
    id: [u8; 32],
    signer: Signer,
    name: String,
    pcrs: BTreeMap<(HashAlg, u8), Vec<Digest>>,
    release: Option<ReleaseRule>,
    accept: Vec<Exception>,
    boot: Option<BootRules>,
    ima: Option<ImaRules>,
    selection: PcrSelectionList,
    selection_with_ima: PcrSelectionList,
}

impl Policy {
    /// Parses TOML, or JSON if the first character that is no space is `{`; in a DSSE envelope or not, whoever signed it.
    ///
    /// Unknown and doubled fields are errors, and so is everything that cannot mean anything: a policy that parses can
    /// be judged by.
    ///
    /// # Errors
    /// [`PolicyError`], naming the place.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        Self::open(bytes, &PolicyTrust::Any)
    }

    /// Parses a policy that `trust` allows to be used. Its id is the digest of `bytes`, the envelope if there is one.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); [`PolicyError::Unsigned`] and [`PolicyError::Signature`] if `trust` wants a signature.
    pub fn open(bytes: &[u8], trust: &PolicyTrust) -> Result<Self, PolicyError> {
        if bytes.len() > MAX_POLICY_LEN {
            return Err(PolicyError::TooLong);
        }
        let (payload, signer) = match (dsse::is_envelope(bytes), trust) {
            (false, PolicyTrust::Any) => (None, Signer::None),
            (false, PolicyTrust::Signed(_)) => return Err(PolicyError::Unsigned),
            (true, PolicyTrust::Any) => {
                let payload = dsse::open_unverified(bytes, PAYLOAD_TYPE).map_err(PolicyError::Signature)?;
                (Some(payload), Signer::Unchecked)
            }
            (true, PolicyTrust::Signed(keys)) => {
                let (payload, key) = dsse::open_by(bytes, PAYLOAD_TYPE, keys).map_err(PolicyError::Signature)?;
                (Some(payload), Signer::Key(key))
            }
        };
        let mut id = [0; 32];
        id.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Self::from_raw(read_raw(payload.as_deref().unwrap_or(bytes))?, id, signer)
    }

    fn from_raw(raw: RawPolicy, id: [u8; 32], signer: Signer) -> Result<Self, PolicyError> {
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
        let ima = raw.ima.map(ImaRules::from_raw).transpose()?;
        let has_rules = boot.is_some() || ima.is_some();
        if pcrs.is_empty() && !has_rules && !matches!(release, Some(ReleaseRule::PhasePcr(_))) {
            return Err(PolicyError::JudgesNothing);
        }
        let boot_mask = boot.as_ref().map_or(0, BootRules::pcr_mask);
        if let Some(ReleaseRule::PhasePcr(index)) = release
            && boot_mask & (1 << index) != 0
        {
            let problem = format!(
                "its rules are about PCR {index}, the phase PCR, whose value follows from the node's pins (a rule on the \
                 command line is about PCR 8, 9 and 12)"
            );
            return Err(PolicyError::Rule { place: "boot".into(), problem });
        }
        let selection = |has_ima| select(&pcrs, release, &accept, boot_mask, has_ima);
        let (selection, selection_with_ima) = (selection(false), selection(true));
        let count = selection_with_ima.count();
        if count > limits::MAX_PCR_VALUES {
            return Err(PolicyError::TooManyPcrs(count));
        }
        let inner =
            Inner { id, signer, name: raw.name, pcrs, release, accept, boot, ima, selection, selection_with_ima };
        Ok(Self(Arc::new(inner)))
    }

    /// Its content address: SHA-256 of the bytes as uploaded.
    pub fn id(&self) -> [u8; 32] {
        self.0.id
    }

    /// Whose signature it has.
    pub fn signer(&self) -> Signer {
        self.0.signer
    }

    /// Its own name; not unique.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What to ask of a node: the named PCRs; the phase PCR and, if the node has an IMA list, PCR 10, in every named
    /// bank (SHA-256 if none is named).
    ///
    /// A bank of which no firmware PCR is named gets PCR 0 too, unless the policy accepts `no-firmware-measurements`:
    /// whether firmware measured into a bank at all can only be seen on one, and into a bank that it leaves alone
    /// anybody may measure anything.
    pub fn selection(&self, has_ima: bool) -> &PcrSelectionList {
        if has_ima { &self.0.selection_with_ima } else { &self.0.selection }
    }

    /// The named PCRs and their good values, ascending by bank, then index.
    pub fn pcrs(&self) -> impl Iterator<Item = (HashAlg, u8, &[Digest])> {
        self.0.pcrs.iter().map(|((bank, index), values)| (*bank, *index, values.as_slice()))
    }

    /// The banks it judges in, ascending.
    pub fn banks(&self) -> impl Iterator<Item = HashAlg> {
        self.0.selection.iter().map(|selection| selection.bank)
    }

    /// Under what a share may leave; without a rule none does.
    pub fn release(&self) -> Option<ReleaseRule> {
        self.0.release
    }

    /// Its rules on the boot log's events.
    pub fn boot(&self) -> Option<&BootRules> {
        self.0.boot.as_ref()
    }

    /// Its rules on the IMA list's entries.
    pub fn ima(&self) -> Option<&ImaRules> {
        self.0.ima.as_ref()
    }

    /// Whether it makes this exception.
    pub fn accepts(&self, exception: Exception) -> bool {
        self.0.accept.contains(&exception)
    }

    /// The exceptions it makes, ascending.
    pub fn accepted(&self) -> impl Iterator<Item = Exception> {
        self.0.accept.iter().copied()
    }
}

/// What to ask of a node that no policy judges: SHA-256, PCRs 0 to 15, of which PCR 10 only if it has an IMA list.
pub fn unjudged_selection(has_ima: bool) -> PcrSelectionList {
    let mask = if has_ima { UNJUDGED_MASK | (1 << IMA_PCR) } else { UNJUDGED_MASK };
    PcrSelectionList::single(HashAlg::Sha256, mask).unwrap_or_default()
}

fn read_raw(bytes: &[u8]) -> Result<RawPolicy, PolicyError> {
    let text = std::str::from_utf8(bytes).map_err(|_| PolicyError::NotText)?;
    if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| syntax(&error.to_string()))
    } else {
        toml::from_str(text).map_err(|error| syntax(&error.to_string()))
    }
}

/// The parser's words, cut: it shows the whole line, and a policy may be one line.
fn syntax(words: &str) -> PolicyError {
    PolicyError::Syntax(words.trim_end().chars().take(MAX_SYNTAX_LEN).collect())
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
