//! What a node showed in its newest quote, kept with the role it was shown to: a policy is learned from it, and tried
//! against it before it is enforced ([`trial`]). Verdicts do not rest on it.
//!
//! One row a node, written when what is shown changes and not with every steady round; the IMA list of the boot grows by
//! what each round fetched anyway. Both live in the role's store.

pub mod trial;

use protocol::{id::NodeId, message::attest::Purpose};
use ring::digest::{Context, SHA256};

use crate::{
    appraisal::{QuotedPcrs, verdict::Hardware},
    store::{AkName, AppraiserStore, EvidenceRow, StoreError},
};

/// What a round was shown, whatever came of it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The TPMS_ATTEST as the TPM signed it.
    pub attested: Vec<u8>,
    /// The TPMT_SIGNATURE over it.
    pub signature: Vec<u8>,
    /// What the quote had to be bound to.
    pub qualifying_data: [u8; 32],
    /// The quoted values, complete.
    pub pcrs: QuotedPcrs,
    /// The boot log.
    pub boot_log: ShownBootLog,
    /// Whether the node says that its kernel keeps an IMA list.
    pub has_ima: bool,
    /// The new part of the list; `None` if no part of it replays to the quoted PCR 10.
    pub ima: Option<ShownIma>,
}

/// What was shown of the boot log; the log itself is kept by its digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ShownBootLog {
    /// There is none, or it is too long.
    None,
    /// The log with this SHA-256 was judged before, and what belongs to it was not asked for again.
    Before([u8; 32]),
    /// The log and what belongs to it.
    Now {
        /// SHA-256.
        digest: [u8; 32],
        /// What the node says its kernel's command line is.
        command_line: Option<Vec<u8>>,
        /// What userspace measured after the log ended.
        userspace: Option<Vec<u8>>,
    },
}

/// A part of an IMA list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShownIma {
    /// The number of its first entry.
    pub first: u64,
    /// How many entries, from the beginning of the list, the quoted PCR 10 accounts for.
    pub entries: u64,
    /// The entries from `first` on; those that the quote does not account for may follow.
    pub bytes: Vec<u8>,
}

/// Whose evidence it is.
#[derive(Clone, Copy, Debug)]
pub struct Whose {
    /// The node.
    pub node_id: NodeId,
    /// The AK under which the quote verified.
    pub ak_name: AkName,
    /// What the quote was for.
    pub purpose: Purpose,
    /// What is known of the TPM.
    pub hardware: Hardware,
}

/// What is known to be in the store, so that a steady round need not look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kept {
    base: [u8; 32],
    texts: Option<[u8; 32]>,
}

/// Keeps what was shown, unless it is what is kept already; `true` if something was written. `kept` is the caller's, one
/// per connection, `None` at first. Without `keep_ima` the IMA list is not kept, and one that was is dropped.
///
/// # Errors
/// [`StoreError`]; what was kept before may then be partly replaced, and the next round tries again.
pub async fn keep(
    store: &dyn AppraiserStore,
    kept: &mut Option<Kept>,
    whose: &Whose,
    shown: &Shown,
    keep_ima: bool,
) -> Result<bool, StoreError> {
    let (base, texts) = (shown.base(whose), shown.texts());
    if let Some(kept) = kept
        && kept.base == base
        && (texts.is_none() || texts == kept.texts)
    {
        return Ok(false);
    }
    let stored = store.evidence(whose.node_id).await?;
    let row = shown.row(whose, stored.as_ref());
    let now = Kept { base, texts: Some(texts_digest(row.command_line.as_deref(), row.userspace.as_deref())) };
    if stored.is_some_and(|stored| same(&stored, &row)) {
        *kept = Some(now);
        return Ok(false);
    }
    let epoch = (row.reset_count, row.restart_count);
    match &shown.ima {
        Some(ima) if keep_ima => {
            let entries = ima.entries.saturating_sub(ima.first);
            // They were parsed when they were replayed.
            let len = entries_len(&ima.bytes, entries).ok_or(StoreError::Corrupt("an IMA list that is none"))?;
            let bytes = ima.bytes.get(..len).unwrap_or_default();
            store.put_ima_part(whose.node_id, ima.first, entries, bytes, epoch).await?;
        }
        // A list that does not fit its quote is not kept; what fitted before stays.
        None if keep_ima && shown.has_ima => {}
        _ => store.put_ima_part(whose.node_id, 0, 0, &[], epoch).await?,
    }
    store.put_evidence(&row).await?;
    *kept = Some(now);
    Ok(true)
}

impl Shown {
    fn epoch(&self) -> (u32, u32) {
        let clock = self.pcrs.quote().attest().clock_info;
        (clock.reset_count, clock.restart_count)
    }

    /// A digest of all that is new if it differs, without the texts that belong to the boot log.
    fn base(&self, whose: &Whose) -> [u8; 32] {
        let mut hash = Context::new(&SHA256);
        hash.update(&whose.ak_name.0);
        hash.update(hardware_name(whose.hardware).as_bytes());
        let (reset_count, restart_count) = self.epoch();
        hash.update(&reset_count.to_be_bytes());
        hash.update(&restart_count.to_be_bytes());
        match &self.boot_log {
            ShownBootLog::None => hash.update(&[0]),
            ShownBootLog::Before(digest) | ShownBootLog::Now { digest, .. } => {
                hash.update(&[1]);
                hash.update(digest);
            }
        }
        let entries = self.ima.as_ref().map_or(u64::MAX, |ima| ima.entries);
        hash.update(&[u8::from(self.has_ima)]);
        hash.update(&entries.to_be_bytes());
        for (bank, index, value) in self.pcrs.iter() {
            hash.update(&bank.id().to_be_bytes());
            hash.update(&[index]);
            hash.update(value.as_bytes());
        }
        finished(hash)
    }

    /// A digest of the texts that belong to the boot log; `None` if they were not asked for.
    fn texts(&self) -> Option<[u8; 32]> {
        match &self.boot_log {
            ShownBootLog::None => Some(texts_digest(None, None)),
            ShownBootLog::Before(_) => None,
            ShownBootLog::Now { command_line, userspace, .. } => {
                Some(texts_digest(command_line.as_deref(), userspace.as_deref()))
            }
        }
    }

    /// As a row; what was not asked for again is taken from the one that is stored, if it is of the same boot.
    fn row(&self, whose: &Whose, stored: Option<&EvidenceRow>) -> EvidenceRow {
        let (reset_count, restart_count) = self.epoch();
        let same_boot = |stored: &&EvidenceRow| {
            stored.ak_name == whose.ak_name && (stored.reset_count, stored.restart_count) == self.epoch()
        };
        let (boot_log, command_line, userspace) = match &self.boot_log {
            ShownBootLog::None => (None, None, None),
            ShownBootLog::Before(digest) => {
                let of_this_log = |stored: &&EvidenceRow| stored.boot_log == Some(*digest);
                let (command_line, userspace) = stored
                    .filter(same_boot)
                    .filter(of_this_log)
                    .map(|stored| (stored.command_line.clone(), stored.userspace.clone()))
                    .unwrap_or_default();
                (Some(*digest), command_line, userspace)
            }
            ShownBootLog::Now { digest, command_line, userspace } => {
                (Some(*digest), command_line.clone(), userspace.clone())
            }
        };
        EvidenceRow {
            node_id: whose.node_id,
            at_ms: 0,
            purpose: purpose_name(whose.purpose).to_owned(),
            attested: self.attested.clone(),
            signature: self.signature.clone(),
            qualifying_data: self.qualifying_data,
            ak_name: whose.ak_name,
            hardware: hardware_name(whose.hardware).to_owned(),
            pcrs: self.pcrs.to_checkpoint(),
            reset_count,
            restart_count,
            boot_log,
            command_line,
            userspace,
            has_ima: self.has_ima,
            ima_entries: self.ima.as_ref().map(|ima| ima.entries),
        }
    }
}

/// Whether two rows show the same: another quote over the same is no news.
fn same(stored: &EvidenceRow, row: &EvidenceRow) -> bool {
    let of = |row: &EvidenceRow| EvidenceRow {
        at_ms: 0,
        purpose: String::new(),
        attested: Vec::new(),
        signature: Vec::new(),
        qualifying_data: [0; 32],
        ..row.clone()
    };
    of(stored) == of(row)
}

/// The purpose's word in stores and in the API.
pub(crate) const fn purpose_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Bootstrap => "bootstrap",
        Purpose::Attest => "attest",
    }
}

/// The word for what is known of a TPM, the same as in explanations.
pub(crate) const fn hardware_name(hardware: Hardware) -> &'static str {
    match hardware {
        Hardware::Certified => "certified",
        Hardware::AllowListed => "allow_listed",
        Hardware::Unproven => "unproven",
    }
}

/// The reverse of [`hardware_name`]; whatever is no word of ours proves nothing.
pub(crate) fn hardware_from_name(name: &str) -> Hardware {
    [Hardware::Certified, Hardware::AllowListed]
        .into_iter()
        .find(|hardware| hardware_name(*hardware) == name)
        .unwrap_or(Hardware::Unproven)
}

fn texts_digest(command_line: Option<&[u8]>, userspace: Option<&[u8]>) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    for text in [command_line, userspace] {
        let len = text.map_or(u64::MAX, |text| text.len() as u64);
        hash.update(&len.to_be_bytes());
        hash.update(text.unwrap_or_default());
    }
    finished(hash)
}

fn finished(hash: Context) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    digest
}

/// How many bytes the first `count` entries of an IMA list in the kernel's binary form (little-endian) take; `None` if there
/// are not so many.
///
/// Linux, Documentation/security/IMA-templates and ima_measurements_show.
pub(crate) fn entries_len(list: &[u8], count: u64) -> Option<usize> {
    let mut rest = list;
    for _ in 0..count {
        // PCR and SHA-1 of the template data, then the template's name.
        let name = take_sized(rest.get(24..)?)?;
        let behind = rest.get(28 + name.len()..)?;
        // The oldest template has no length of its own: a digest, and a path.
        let fixed = if name == b"ima" { 20 } else { 0 };
        let data = take_sized(behind.get(fixed..)?)?;
        rest = behind.get(fixed + 4 + data.len()..)?;
    }
    Some(list.len() - rest.len())
}

fn take_sized(bytes: &[u8]) -> Option<&[u8]> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)
}

#[cfg(test)]
pub(crate) mod tests;
