//! The kernel's IMA list: parsing its binary form and replaying it to PCR 10, piece by piece as it is fetched.
//!
//! What counts is the prefix that replays to the quoted PCR 10: entries behind it were measured after the quote, or
//! invented, and are not looked at. Whether the files are good is a policy's business, not this module's.
//!
//! An entry is, little-endian: PCR u32, SHA-1 of the template data 20 bytes, length u32 and template name, length u32 and
//! template data. Template data is a row of fields, each with a length u32 before it; only the oldest template, `ima`,
//! has neither that length around its data nor the one before its digest. (Linux, Documentation/security/IMA-templates
//! and ima_measurements_show.)

mod sha256;

use protocol::{
    limits,
    tpm::alg::{Digest, HashAlg},
};

use super::{IMA_PCR, continuity::Epoch};
use crate::store::Checkpoint;

/// A template's name: the kernel's own limit.
const MAX_TEMPLATE_NAME_LEN: usize = 255;
/// What the `ima` template pads a file's name to before it hashes (IMA_EVENT_NAME_LEN_MAX + 1).
const LEGACY_NAME_LEN: usize = 256;
/// PCR, template hash and the length of the name: the part of an entry that always is there.
const HEADER_LEN: usize = 28;

/// The most entries that a replay shows at a time.
pub const BATCH_LEN: usize = 16;

/// Why an IMA list was refused. Entries are counted from 0, from the beginning of the list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ImaError {
    #[error("entry {entry} of the IMA list is malformed")]
    Malformed { entry: u64 },
    #[error("entry {entry} of the IMA list is longer than {max} bytes", max = limits::MAX_IMA_ENTRY_LEN)]
    EntryTooLong { entry: u64 },
    #[error("the IMA list is longer than {max} bytes", max = limits::MAX_IMA_LOG_LEN)]
    TooLong,
    #[error("the template hash of entry {entry} of the IMA list is not the SHA-1 of its data")]
    WrongTemplateHash { entry: u64 },
    #[error("PCR 10 was not quoted, so nothing says where the IMA list has to end")]
    NotQuoted,
    #[error("no part of the IMA list, read up to entry {entries}, replays to the quoted PCR 10")]
    NoSuchPrefix { entries: u64 },
}

impl ImaError {
    /// The short name that stands in a verdict.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } | Self::EntryTooLong { .. } | Self::TooLong => "ima_unreadable",
            Self::WrongTemplateHash { .. } | Self::NoSuchPrefix { .. } => "ima_mismatch",
            Self::NotQuoted => "pcr_not_quoted",
        }
    }
}

/// One entry of the list.
#[derive(Clone, Copy, Debug)]
pub struct ImaEntry<'a> {
    /// Its place in the list, from 0.
    pub number: u64,
    /// The PCR it was extended into; nothing proves an entry of another one than 10.
    pub pcr: u32,
    /// Template hash: SHA-1; all zero for a violation.
    pub template_hash: &'a [u8; 20],
    /// Template name, or its format, such as `ima-ng` or `d-ng|n-ng`.
    pub template: &'a [u8],
    /// Template data as it stands in the list.
    pub data: &'a [u8],
}

/// One field of an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImaField<'a> {
    /// Its identifier, such as `d-ng`.
    pub id: &'static str,
    /// Its bytes.
    pub value: &'a [u8],
}

impl<'a> ImaEntry<'a> {
    /// A violation (a file open for writing while it was measured): PCRs are extended with ones instead of a hash, so
    /// nothing proves the entry's data.
    pub fn is_violation(&self) -> bool {
        *self.template_hash == [0; 20]
    }

    /// Its fields in order; `None` for an unknown template, or data that is not of its template's form.
    pub fn fields(&self) -> Option<Vec<ImaField<'a>>> {
        if self.template == b"ima" {
            let (digest, name) = legacy_fields(self.data)?;
            return Some(vec![ImaField { id: "d", value: digest }, ImaField { id: "n", value: name }]);
        }
        let mut rest = self.data;
        let mut fields = Vec::new();
        for id in template_fields(self.template)? {
            let value = take_sized(&mut rest)?;
            fields.push(ImaField { id, value });
        }
        rest.is_empty().then_some(fields)
    }

    /// The file's digest: its algorithm's name and the bytes. From `d`, `d-ng` (`sha256:`) or `d-ngv2` (`ima:sha256:`,
    /// `verity:sha256:`).
    pub fn file_digest(&self) -> Option<(&'a [u8], &'a [u8])> {
        let field = self.fields()?.into_iter().find(|field| matches!(field.id, "d" | "d-ng" | "d-ngv2"))?;
        if field.id == "d" {
            return Some((b"sha1", field.value));
        }
        let end = field.value.windows(2).position(|pair| pair == b":\0")?;
        let (algorithm, digest) = (field.value.get(..end)?, field.value.get(end + 2..)?);
        Some((algorithm, digest))
    }

    /// The file's path, or what was measured in its place; without the closing NUL, in no particular encoding.
    pub fn path(&self) -> Option<&'a [u8]> {
        let field = self.fields()?.into_iter().find(|field| matches!(field.id, "n" | "n-ng"))?;
        Some(field.value.strip_suffix(&[0]).unwrap_or(field.value))
    }

    /// The field with this identifier: `sig`, `buf`, `modsig`, ….
    pub fn field(&self, id: &str) -> Option<&'a [u8]> {
        self.fields()?.into_iter().find(|field| field.id == id).map(|field| field.value)
    }

    /// The template hash of a bank: what the kernel extends it with, but for a violation.
    #[inline]
    fn hash(&self, bank: HashAlg) -> Option<Digest> {
        if self.template == b"ima" {
            let (digest, name) = legacy_fields(self.data)?;
            let mut padded = [0; LEGACY_NAME_LEN];
            padded.get_mut(..name.len())?.copy_from_slice(name);
            return Some(bank.digest(&[digest, &padded]));
        }
        Some(bank.digest(&[self.data]))
    }
}

/// The form of a file's digest field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum DigestForm {
    /// `d-ng`: `sha256:`, a zero byte, and the digest.
    Ng,
    /// `d-ngv2`: the same after `ima:` or `verity:`.
    NgV2,
}

/// What may follow digest and name; the rest is passed over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tail {
    Sig,
    Buf,
    Other,
}

/// An entry as rules judge it: what was measured, where, and what stands beside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Measurement<'a> {
    /// The digest's algorithm, `None` if it is none of ours.
    pub alg: Option<HashAlg>,
    /// Its name in the entry.
    pub alg_name: &'a [u8],
    /// The digest; of an algorithm of ours it has the right length.
    pub digest: &'a [u8],
    /// Whether the digest is of fs-verity's tree and not of the content.
    pub is_verity: bool,
    /// The path, or the name of what was measured; not empty, without zero bytes, in no particular encoding.
    pub path: &'a [u8],
    /// The signature attribute, if the template has one and it is not empty.
    pub signature: Option<&'a [u8]>,
    /// The buffer, if the template has one.
    pub buffer: Option<&'a [u8]>,
}

/// Why an entry cannot be judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum MeasurementError {
    #[error("the template is neither known nor described by known fields, a digest and a name first")]
    UnknownTemplate,
    #[error("the template data is not of the template's form")]
    Malformed,
}

impl<'a> ImaEntry<'a> {
    /// Takes the entry apart, without allocating.
    ///
    /// Nothing proves the *name* of a template: only its data is hashed. So the digest has to be the first field and the
    /// file's name the second, each of its form: a field that a file's owner fills cannot be made to stand for them.
    ///
    /// # Errors
    /// [`MeasurementError`].
    #[inline]
    pub fn measurement(&self) -> Result<Measurement<'a>, MeasurementError> {
        use Tail::{Buf, Other, Sig};
        let form: (DigestForm, &[Tail]) = match self.template {
            b"ima-ng" => (DigestForm::Ng, &[]),
            b"ima-sig" => (DigestForm::Ng, &[Sig]),
            b"ima-ngv2" => (DigestForm::NgV2, &[]),
            b"ima-sigv2" => (DigestForm::NgV2, &[Sig]),
            b"ima-buf" => (DigestForm::Ng, &[Buf]),
            b"ima-modsig" => (DigestForm::Ng, &[Sig, Other, Other]),
            b"ima" => {
                let (digest, name) = legacy_fields(self.data).ok_or(MeasurementError::Malformed)?;
                let alg = Some(HashAlg::Sha1);
                return measured(alg, b"sha1", digest, false, name).ok_or(MeasurementError::Malformed);
            }
            template => return self.described(template),
        };
        self.of_form(form.0, form.1)
    }

    fn described(&self, template: &[u8]) -> Result<Measurement<'a>, MeasurementError> {
        let fields = template_fields(template).ok_or(MeasurementError::UnknownTemplate)?;
        let mut fields = fields.into_iter();
        let form = match (fields.next(), fields.next()) {
            (Some("d-ng"), Some("n-ng")) => DigestForm::Ng,
            (Some("d-ngv2"), Some("n-ng")) => DigestForm::NgV2,
            _ => return Err(MeasurementError::UnknownTemplate),
        };
        let mut tail = Vec::new();
        for field in fields {
            tail.push(match field {
                "sig" if !tail.contains(&Tail::Sig) => Tail::Sig,
                "buf" if !tail.contains(&Tail::Buf) => Tail::Buf,
                "sig" | "buf" | "d-ng" | "d-ngv2" | "n-ng" => return Err(MeasurementError::UnknownTemplate),
                _ => Tail::Other,
            });
        }
        self.of_form(form, &tail)
    }

    #[inline]
    fn of_form(&self, form: DigestForm, tail: &[Tail]) -> Result<Measurement<'a>, MeasurementError> {
        let read = || {
            let mut rest = self.data;
            let (digest, name) = (take_sized(&mut rest)?, take_sized(&mut rest)?);
            let end = digest.iter().position(|byte| *byte == 0)?;
            let (prefix, digest) = (digest.get(..end)?.strip_suffix(b":")?, digest.get(end + 1..)?);
            let (alg_name, is_verity) = match form {
                DigestForm::Ng => (prefix, false),
                DigestForm::NgV2 => match prefix.strip_prefix(b"ima:") {
                    Some(name) => (name, false),
                    None => (prefix.strip_prefix(b"verity:")?, true),
                },
            };
            let mut measured = measured(alg_of(alg_name), alg_name, digest, is_verity, name)?;
            for field in tail {
                let value = take_sized(&mut rest)?;
                match field {
                    Tail::Sig => measured.signature = Some(value).filter(|value| !value.is_empty()),
                    Tail::Buf => measured.buffer = Some(value),
                    Tail::Other => {}
                }
            }
            rest.is_empty().then_some(measured)
        };
        read().ok_or(MeasurementError::Malformed)
    }
}

/// Digest and name, checked; the name still has its closing zero byte.
#[inline]
fn measured<'a>(
    alg: Option<HashAlg>,
    alg_name: &'a [u8],
    digest: &'a [u8],
    is_verity: bool,
    name: &'a [u8],
) -> Option<Measurement<'a>> {
    let path = name.strip_suffix(&[0]).unwrap_or(name);
    let fits = alg.is_none_or(|alg| alg.digest_len() == digest.len());
    (fits && !path.is_empty() && !path.contains(&0)).then_some(Measurement {
        alg,
        alg_name,
        digest,
        is_verity,
        path,
        signature: None,
        buffer: None,
    })
}

#[inline]
fn alg_of(name: &[u8]) -> Option<HashAlg> {
    match name {
        b"sha256" => Some(HashAlg::Sha256),
        b"sha1" => Some(HashAlg::Sha1),
        b"sha384" => Some(HashAlg::Sha384),
        b"sha512" => Some(HashAlg::Sha512),
        _ => None,
    }
}

/// The fields of a template: of a name, or of a format written out.
pub(super) fn template_fields(template: &[u8]) -> Option<Vec<&'static str>> {
    const KNOWN: &[(&str, &str)] = &[
        ("ima-ng", "d-ng|n-ng"),
        ("ima-ngv2", "d-ngv2|n-ng"),
        ("ima-sig", "d-ng|n-ng|sig"),
        ("ima-sigv2", "d-ngv2|n-ng|sig"),
        ("ima-buf", "d-ng|n-ng|buf"),
        ("ima-modsig", "d-ng|n-ng|sig|d-modsig|modsig"),
        ("evm-sig", "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode"),
    ];
    const FIELDS: &[&str] = &[
        "d-ng",
        "d-ngv2",
        "n-ng",
        "sig",
        "buf",
        "d-modsig",
        "modsig",
        "evmsig",
        "iuid",
        "igid",
        "imode",
        "xattrnames",
        "xattrlengths",
        "xattrvalues",
    ];
    let template = std::str::from_utf8(template).ok()?;
    let format = KNOWN.iter().find(|(name, _)| *name == template).map_or(template, |(_, format)| format);
    format.split('|').map(|id| FIELDS.iter().copied().find(|known| *known == id)).collect()
}

/// Digest and name of the `ima` template.
fn legacy_fields(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (digest, mut rest) = data.split_at_checked(20)?;
    let name = take_sized(&mut rest)?;
    (rest.is_empty() && name.len() < LEGACY_NAME_LEN).then_some((digest, name))
}

fn take_sized<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, after) = rest.split_first_chunk::<4>()?;
    let (value, after) = after.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    *rest = after;
    Some(value)
}

/// Reads an entry from the front of `bytes`, with its length; `None` if it is not complete.
#[inline]
fn parse_entry(bytes: &[u8], number: u64) -> Result<Option<(ImaEntry<'_>, usize)>, ImaError> {
    let malformed = ImaError::Malformed { entry: number };
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let (Some((pcr, tail)), Some((_, name_len))) = (header.split_first_chunk::<4>(), header.split_last_chunk::<4>())
    else {
        return Err(malformed);
    };
    let Some((template_hash, _)) = tail.split_first_chunk::<20>() else { return Err(malformed) };
    let len = |bytes: &[u8; 4]| usize::try_from(u32::from_le_bytes(*bytes)).unwrap_or(usize::MAX);
    let name_len = len(name_len);
    if name_len == 0 || name_len > MAX_TEMPLATE_NAME_LEN {
        return Err(malformed);
    }
    let Some((template, rest)) = rest.split_at_checked(name_len) else { return Ok(None) };
    let (data, prefix_len) = if template == b"ima" {
        let Some((name_len, _)) = rest.get(20..).and_then(<[u8]>::split_first_chunk::<4>) else { return Ok(None) };
        let name_len = len(name_len);
        if name_len >= LEGACY_NAME_LEN {
            return Err(malformed);
        }
        (rest.get(..24 + name_len), 0)
    } else {
        let Some((data_len, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let data_len = len(data_len);
        if data_len > limits::MAX_IMA_ENTRY_LEN {
            return Err(ImaError::EntryTooLong { entry: number });
        }
        (rest.get(..data_len), 4)
    };
    let Some(data) = data else { return Ok(None) };
    let entry = ImaEntry { number, pcr: u32::from_le_bytes(*pcr), template_hash, template, data };
    Ok(Some((entry, HEADER_LEN + name_len + prefix_len + data.len())))
}

/// Where a replay begins.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ImaStart {
    entries: u64,
    pcrs: Vec<(HashAlg, Digest)>,
}

impl ImaStart {
    /// The first entry of the list.
    pub fn beginning() -> Self {
        Self::default()
    }

    /// Behind the entries that a positive verdict judged in this boot by this policy; otherwise the beginning. `banks`
    /// are those in which PCR 10 is quoted: one that is not remembered needs the whole list.
    pub fn resume(
        previous: Option<&Checkpoint>,
        epoch: Epoch,
        policy: Option<[u8; 32]>,
        banks: impl IntoIterator<Item = HashAlg>,
    ) -> Self {
        let previous = previous.filter(|previous| epoch == Epoch::Same && previous.policy == policy);
        let Some(previous) = previous else { return Self::beginning() };
        let remembered = |bank: HashAlg| {
            let (_, value) = previous.ima_pcrs.iter().find(|(id, _)| *id == bank.id())?;
            Some((bank, bank.read_digest(value).ok()?))
        };
        match banks.into_iter().map(remembered).collect::<Option<Vec<_>>>() {
            Some(pcrs) if !pcrs.is_empty() => Self { entries: previous.ima_entries, pcrs },
            _ => Self::beginning(),
        }
    }

    /// The first entry that is wanted: a challenge's `ima_from`.
    pub const fn entries(&self) -> u64 {
        self.entries
    }
}

/// One bank's PCR 10 under replay.
#[derive(Clone, Debug)]
struct Bank {
    bank: HashAlg,
    value: Digest,
    target: Digest,
}

impl Bank {
    #[inline]
    fn extend(&mut self, entry: &ImaEntry<'_>) -> Result<(), ImaError> {
        if entry.is_violation() {
            let ones = [0xff; Digest::MAX_LEN];
            let ones = ones.get(..self.bank.digest_len()).unwrap_or_default();
            self.value = self.bank.digest(&[&self.value, ones]);
            return Ok(());
        }
        if self.bank == HashAlg::Sha256
            && entry.template != b"ima"
            && let Some(value) = self.value.first_chunk::<32>()
            && let Ok(extended) = Digest::new(&sha256::digest_of_two(value, &sha256::digest(entry.data)))
        {
            self.value = extended;
            return Ok(());
        }
        let hash = entry.hash(self.bank).ok_or(ImaError::Malformed { entry: entry.number })?;
        if self.bank == HashAlg::Sha1 && hash.as_bytes() != entry.template_hash {
            return Err(ImaError::WrongTemplateHash { entry: entry.number });
        }
        self.value = self.bank.digest(&[&self.value, &hash]);
        Ok(())
    }

    fn fits(&self) -> bool {
        self.value == self.target
    }
}

/// A replay under way: takes the list in pieces of any length, and knows when the quoted value is reached.
#[derive(Clone, Debug)]
pub struct ImaReplay {
    banks: Vec<Bank>,
    entries: u64,
    violations: u64,
    other_pcr: u64,
    /// An entry whose end is not there yet.
    partial: Vec<u8>,
    taken: usize,
    failed: Option<ImaError>,
}

impl ImaReplay {
    /// Begins at `start`; `targets` are the quoted values of PCR 10 ([`QuotedPcrs::ima_targets`]).
    ///
    /// A target whose bank `start` does not know begins at zero, and so does the list then.
    ///
    /// [`QuotedPcrs::ima_targets`]: super::pcrs::QuotedPcrs::ima_targets
    pub fn new(start: &ImaStart, targets: impl IntoIterator<Item = (HashAlg, Digest)>) -> Self {
        let mut banks = Vec::new();
        let mut all_known = true;
        for (bank, target) in targets {
            let known = start.pcrs.iter().find(|(of, _)| *of == bank);
            all_known &= known.is_some();
            let value = known.map_or_else(|| Digest::zero(bank), |(_, digest)| *digest);
            banks.push(Bank { bank, value, target });
        }
        let mut entries = start.entries;
        if !all_known {
            entries = 0;
            banks.iter_mut().for_each(|bank| bank.value = Digest::zero(bank.bank));
        }
        Self { banks, entries, violations: 0, other_pcr: 0, partial: Vec::new(), taken: 0, failed: None }
    }

    /// How many entries of the list are replayed: the first one that is still wanted.
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether the quoted value is reached: what follows in the list counts for nothing and need not be fetched.
    pub fn is_matched(&self) -> bool {
        self.failed.is_none() && !self.banks.is_empty() && self.banks.iter().all(Bank::fits)
    }

    /// Takes the next bytes of the list; they may end anywhere.
    ///
    /// # Errors
    /// [`ImaError`]; every later call gives the same. After the quoted value is reached nothing is read any more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ImaError> {
        self.push_with(bytes, |_| {})
    }

    /// As [`push`](Self::push), and shows each entry of the prefix as it is replayed. They are proven only once
    /// [`finish`](Self::finish) succeeds, and then only those of PCR 10 that are no violation.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_with(&mut self, bytes: &[u8], mut seen: impl FnMut(&ImaEntry<'_>)) -> Result<(), ImaError> {
        self.push_with_batches(bytes, |batch| batch.iter().for_each(&mut seen))
    }

    /// As [`push_with`](Self::push_with), with up to [`BATCH_LEN`] entries at a time: whoever looks them up somewhere can
    /// wait for memory once.
    ///
    /// # Errors
    /// As [`push`](Self::push); entries before the error have been shown.
    pub fn push_with_batches(&mut self, bytes: &[u8], mut seen: impl FnMut(&[ImaEntry<'_>])) -> Result<(), ImaError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.take(bytes, &mut seen);
        if let Err(error) = result {
            self.failed = Some(error);
            self.partial = Vec::new();
        }
        result
    }

    fn take(&mut self, bytes: &[u8], seen: &mut impl FnMut(&[ImaEntry<'_>])) -> Result<(), ImaError> {
        self.taken = self.taken.saturating_add(bytes.len());
        if self.taken > limits::MAX_IMA_LOG_LEN {
            return Err(ImaError::TooLong);
        }
        if self.partial.is_empty() {
            let rest = self.replay(bytes, seen)?;
            self.partial.extend_from_slice(rest);
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.partial);
        joined.extend_from_slice(bytes);
        let used = joined.len() - self.replay(&joined, seen)?.len();
        joined.drain(..used);
        self.partial = joined;
        Ok(())
    }

    /// Replays whole entries and returns what is left; nothing is left once the target is reached.
    fn replay<'b>(
        &mut self,
        mut bytes: &'b [u8],
        seen: &mut impl FnMut(&[ImaEntry<'_>]),
    ) -> Result<&'b [u8], ImaError> {
        const NONE: ImaEntry<'_> = ImaEntry { number: 0, pcr: 0, template_hash: &[0; 20], template: &[], data: &[] };
        let mut batch = [NONE; BATCH_LEN];
        loop {
            let mut count = 0;
            let mut end = None;
            for place in &mut batch {
                match self.step(bytes) {
                    Ok(Some((entry, len))) => {
                        *place = entry;
                        count += 1;
                        bytes = bytes.get(len..).unwrap_or_default();
                    }
                    ended => {
                        end = Some(ended.map(|_| ()));
                        break;
                    }
                }
            }
            if let Some(entries) = batch.get(..count).filter(|entries| !entries.is_empty()) {
                seen(entries);
            }
            if let Some(end) = end {
                return end.map(|()| if self.is_matched() { &[][..] } else { bytes });
            }
        }
    }

    /// Replays one entry and returns it with its length; `None` if the target is reached, or the entry is not complete.
    #[inline]
    fn step<'b>(&mut self, bytes: &'b [u8]) -> Result<Option<(ImaEntry<'b>, usize)>, ImaError> {
        if self.is_matched() {
            return Ok(None);
        }
        let Some((entry, len)) = parse_entry(bytes, self.entries)? else { return Ok(None) };
        if entry.pcr == u32::from(IMA_PCR) {
            for bank in &mut self.banks {
                bank.extend(&entry)?;
            }
            self.violations += u64::from(entry.is_violation());
        } else {
            self.other_pcr += 1;
        }
        self.entries = self.entries.saturating_add(1);
        Ok(Some((entry, len)))
    }

    /// Ends the replay.
    ///
    /// # Errors
    /// [`ImaError::NoSuchPrefix`] if the quoted value was never reached, [`ImaError::NotQuoted`] if there is none, or
    /// the error that [`push`](Self::push) gave.
    pub fn finish(self) -> Result<ReplayedIma, ImaError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.banks.is_empty() {
            return Err(ImaError::NotQuoted);
        }
        if !self.is_matched() {
            return Err(ImaError::NoSuchPrefix { entries: self.entries });
        }
        Ok(ReplayedIma {
            entries: self.entries,
            violations: self.violations,
            other_pcr: self.other_pcr,
            pcrs: self.banks.into_iter().map(|bank| (bank.bank, bank.target)).collect(),
        })
    }
}

/// An IMA list whose prefix replays to the quoted PCR 10. Only [`ImaReplay::finish`] makes one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReplayedIma {
    entries: u64,
    violations: u64,
    other_pcr: u64,
    pcrs: Vec<(HashAlg, Digest)>,
}

impl ReplayedIma {
    /// How long the proven prefix is, from the beginning of the list.
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// Violations among the entries replayed now.
    pub const fn violations(&self) -> u64 {
        self.violations
    }

    /// Entries replayed now that name another PCR than 10, which nothing proves.
    pub const fn other_pcr_entries(&self) -> u64 {
        self.other_pcr
    }

    /// PCR 10 of a bank after the prefix.
    pub fn value(&self, bank: HashAlg) -> Option<&Digest> {
        self.pcrs.iter().find(|(of, _)| *of == bank).map(|(_, value)| value)
    }

    /// PCR 10 as it is remembered: (TPM_ALG_ID, digest).
    pub fn to_checkpoint(&self) -> Vec<(u16, Vec<u8>)> {
        self.pcrs.iter().map(|(bank, value)| (bank.id(), value.to_vec())).collect()
    }
}

#[cfg(test)]
mod tests;
