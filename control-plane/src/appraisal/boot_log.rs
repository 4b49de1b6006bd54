//! TCG event logs of PC Client firmware: parsing and replay. Only digests of events are protected, by the PCRs they
//! replay to; what types and data mean is left to a policy, and nothing here judges them.
//!
//! Read are the crypto-agile log (it begins with a Spec ID event of version 03) and the SHA-1-only log before it. A log
//! is taken whole or refused whole: bytes that are no event, also zeros or ones behind the last one, are an error. What
//! Linux shows in securityfs ends with the last event.
//!
//! TCG PC Client Platform Firmware Profile Specification 1.06, "Event Logging".

use std::{borrow::Cow, collections::BTreeMap};

use protocol::{
    codec::{CodecError, Reader},
    limits,
    tpm::{
        alg::{Digest, HashAlg},
        pcr::extend,
    },
};
use ring::digest;

/// EV_NO_ACTION: logged, never extended.
pub const EV_NO_ACTION: u32 = 0x0000_0003;

/// EV_SEPARATOR: ends what firmware measures into a PCR.
pub const EV_SEPARATOR: u32 = 0x0000_0004;

/// TCG_EfiSpecIDEvent.signature of a crypto-agile log.
const SPEC_ID_03: &[u8; 16] = b"Spec ID Event03\0";
/// TCG_EfiSpecIDEventStruct.signature of a SHA-1-only log.
const SPEC_ID_00: &[u8; 16] = b"Spec ID Event00\0";
/// TCG_EfiStartupLocalityEvent.signature.
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
/// Algorithms in a Spec ID event: as many banks as a TPM can have (TPM 2.0 Part 2, TPML_PCR_SELECTION of 16).
const MAX_ALGORITHMS: usize = 16;
/// One event's data: no more than the whole log.
const MAX_EVENT_LEN: usize = limits::MAX_BOOT_LOG_LEN;

/// Why a boot log was refused. Events are counted from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum BootLogError {
    #[error("the boot log is empty")]
    Empty,
    #[error("the boot log is longer than {max} bytes", max = limits::MAX_BOOT_LOG_LEN)]
    TooLong,
    #[error("event {event} is cut short, or no event")]
    Truncated { event: usize },
    #[error("the Spec ID event is malformed")]
    BadSpecId,
    #[error("event {event} names PCR {pcr}, which does not exist")]
    NoSuchPcr { event: usize, pcr: u32 },
    #[error("event {event} has other digests than the first event, or than the Spec ID event announces")]
    WrongDigests { event: usize },
    #[error("event {event} reports a startup locality that is unknown, late, or reported before")]
    BadStartupLocality { event: usize },
}

/// An event type by its name in the specification; one that is unknown as `0x` and eight digits.
///
/// TCG PC Client Platform Firmware Profile 1.06, "Event Types".
pub fn event_type_name(event_type: u32) -> Cow<'static, str> {
    Cow::Borrowed(match event_type {
        0x0000_0000 => "EV_PREBOOT_CERT",
        0x0000_0001 => "EV_POST_CODE",
        0x0000_0002 => "EV_UNUSED",
        EV_NO_ACTION => "EV_NO_ACTION",
        EV_SEPARATOR => "EV_SEPARATOR",
        0x0000_0005 => "EV_ACTION",
        0x0000_0006 => "EV_EVENT_TAG",
        0x0000_0007 => "EV_S_CRTM_CONTENTS",
        0x0000_0008 => "EV_S_CRTM_VERSION",
        0x0000_0009 => "EV_CPU_MICROCODE",
        0x0000_000a => "EV_PLATFORM_CONFIG_FLAGS",
        0x0000_000b => "EV_TABLE_OF_DEVICES",
        0x0000_000c => "EV_COMPACT_HASH",
        0x0000_000d => "EV_IPL",
        0x0000_000e => "EV_IPL_PARTITION_DATA",
        0x0000_000f => "EV_NONHOST_CODE",
        0x0000_0010 => "EV_NONHOST_CONFIG",
        0x0000_0011 => "EV_NONHOST_INFO",
        0x0000_0012 => "EV_OMIT_BOOT_DEVICE_EVENTS",
        0x0000_0013 => "EV_POST_CODE2",
        0x8000_0001 => "EV_EFI_VARIABLE_DRIVER_CONFIG",
        0x8000_0002 => "EV_EFI_VARIABLE_BOOT",
        0x8000_0003 => "EV_EFI_BOOT_SERVICES_APPLICATION",
        0x8000_0004 => "EV_EFI_BOOT_SERVICES_DRIVER",
        0x8000_0005 => "EV_EFI_RUNTIME_SERVICES_DRIVER",
        0x8000_0006 => "EV_EFI_GPT_EVENT",
        0x8000_0007 => "EV_EFI_ACTION",
        0x8000_0008 => "EV_EFI_PLATFORM_FIRMWARE_BLOB",
        0x8000_0009 => "EV_EFI_HANDOFF_TABLES",
        0x8000_000a => "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
        0x8000_000b => "EV_EFI_HANDOFF_TABLES2",
        0x8000_000c => "EV_EFI_VARIABLE_BOOT2",
        0x8000_000d => "EV_EFI_GPT_EVENT2",
        0x8000_0010 => "EV_EFI_HCRTM_EVENT",
        0x8000_00e0 => "EV_EFI_VARIABLE_AUTHORITY",
        0x8000_00e1 => "EV_EFI_SPDM_FIRMWARE_BLOB",
        0x8000_00e2 => "EV_EFI_SPDM_FIRMWARE_CONFIG",
        0x8000_00e3 => "EV_EFI_SPDM_DEVICE_POLICY",
        0x8000_00e4 => "EV_EFI_SPDM_DEVICE_AUTHORITY",
        other => return Cow::Owned(format!("{other:#010x}")),
    })
}

/// What an [`EV_NO_ACTION`] event tells; like everything in it a claim.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoAction<'a> {
    /// TCG_EfiSpecIDEvent, of either version: what kind of log this is.
    SpecId,
    /// TCG_EfiStartupLocalityEvent: where TPM2_Startup came from.
    StartupLocality(u8),
    /// TCG_Sp800-155-PlatformId_Event, of any version: who vouches for the platform's firmware (NIST SP 800-155).
    PlatformId {
        /// Its version, from the signature.
        version: u8,
        /// What follows the signature.
        body: &'a [u8],
    },
    /// None of these.
    Other,
}

/// One event. Type and data are claims of whoever wrote the log.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Its place in the log, from 0.
    pub number: usize,
    /// pcrIndex: below 24 unless the type is [`EV_NO_ACTION`].
    pub pcr: u32,
    /// eventType.
    pub event_type: u32,
    digests: [Option<&'a [u8]>; HashAlg::ALL.len()],
    /// Its data.
    pub data: &'a [u8],
}

impl<'a> Event<'a> {
    /// Its digest for a bank, of the bank's length; the same banks for every event but the Spec ID event.
    pub fn digest(&self, bank: HashAlg) -> Option<&'a [u8]> {
        self.digests.iter().zip(HashAlg::ALL).find(|(_, alg)| *alg == bank).and_then(|(digest, _)| *digest)
    }

    /// Its type's name.
    pub fn type_name(&self) -> Cow<'static, str> {
        event_type_name(self.event_type)
    }

    /// What it tells, if it was not extended.
    pub fn no_action(&self) -> Option<NoAction<'a>> {
        if self.is_extended() {
            return None;
        }
        let Some((signature, body)) = self.data.split_first_chunk::<16>() else { return Some(NoAction::Other) };
        Some(match (signature, body) {
            (SPEC_ID_03 | SPEC_ID_00, _) => NoAction::SpecId,
            (STARTUP_LOCALITY, [locality]) => NoAction::StartupLocality(*locality),
            (b"SP800-155 Event\0", _) => NoAction::PlatformId { version: 1, body },
            (b"SP800-155 Event2", _) => NoAction::PlatformId { version: 2, body },
            (b"SP800-155 Event3", _) => NoAction::PlatformId { version: 3, body },
            _ => NoAction::Other,
        })
    }

    /// Whether it was extended into its PCR.
    pub const fn is_extended(&self) -> bool {
        self.event_type != EV_NO_ACTION
    }
}

/// A parsed boot log.
#[derive(Clone, Debug)]
pub struct BootLog<'a> {
    bytes: &'a [u8],
    banks: Vec<HashAlg>,
    events: Vec<Event<'a>>,
    startup_locality: u8,
}

impl<'a> BootLog<'a> {
    /// Parses a whole log.
    ///
    /// # Errors
    /// [`BootLogError`], naming the event. There is no partial result.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BootLogError> {
        Self::parse_at(bytes).map_err(|(error, _)| error)
    }

    /// As [`parse`](Self::parse); an error comes with the offset, in bytes, of the event that it is about.
    ///
    /// # Errors
    /// [`BootLogError`] and the offset: 0 for a log that is refused as a whole.
    pub fn parse_at(bytes: &'a [u8]) -> Result<Self, (BootLogError, usize)> {
        if bytes.is_empty() {
            return Err((BootLogError::Empty, 0));
        }
        if bytes.len() > limits::MAX_BOOT_LOG_LEN {
            return Err((BootLogError::TooLong, 0));
        }
        let mut begin = 0;
        Self::read(bytes, &mut begin).map_err(|error| (error, begin))
    }

    /// Reads the events; `begin` is where the one being read begins.
    fn read(bytes: &'a [u8], begin: &mut usize) -> Result<Self, BootLogError> {
        let mut reader = Reader::new(bytes);
        let first = sha1_event(&mut reader, 0).map_err(|_| BootLogError::Truncated { event: 0 })?;
        let algorithms = match first.data.first_chunk::<16>() {
            Some(SPEC_ID_03) if first.event_type == EV_NO_ACTION => Some(spec_id(first.data, &mut reader)?),
            _ => None,
        };
        let mut log = Self { bytes, banks: vec![HashAlg::Sha1], events: Vec::new(), startup_locality: 0 };
        if algorithms.is_some() {
            log.banks.clear();
            // Its SHA-1 digest is a field of the old structure that stands there, not one of the log's banks.
            log.push(Event { digests: [None; HashAlg::ALL.len()], ..first })?;
        } else {
            log.push(first)?;
        }
        // Firmware announces all its algorithms and logs those of the active banks: the first event says which.
        let mut active = None;
        while reader.remaining() > 0 {
            let number = log.events.len();
            *begin = bytes.len().saturating_sub(reader.remaining());
            let event = match &algorithms {
                Some(algorithms) => {
                    let (event, present) = agile_event(&mut reader, number, algorithms)?;
                    if *active.get_or_insert(present) != present {
                        return Err(BootLogError::WrongDigests { event: number });
                    }
                    event
                }
                None => sha1_event(&mut reader, number).map_err(|_| BootLogError::Truncated { event: number })?,
            };
            if number == 1 && algorithms.is_some() {
                log.banks = HashAlg::ALL.into_iter().filter(|bank| event.digest(*bank).is_some()).collect();
            }
            log.push(event)?;
        }
        Ok(log)
    }

    fn push(&mut self, event: Event<'a>) -> Result<(), BootLogError> {
        let number = event.number;
        if event.is_extended() && usize::try_from(event.pcr).map_or(true, |pcr| pcr >= limits::PCR_COUNT) {
            return Err(BootLogError::NoSuchPcr { event: number, pcr: event.pcr });
        }
        if !event.is_extended()
            && let Some((signature, rest)) = event.data.split_first_chunk::<16>()
            && signature == STARTUP_LOCALITY
        {
            // Said once, before PCR 0 is first extended. 3: TPM2_Startup at locality 3; 4: an H-CRTM measured.
            let late = self.events.iter().any(|event| event.is_extended() && event.pcr == 0);
            let again =
                self.events.iter().any(|event| !event.is_extended() && event.data.starts_with(STARTUP_LOCALITY));
            match rest {
                [locality @ (0 | 3 | 4)] if !late && !again => self.startup_locality = *locality,
                _ => return Err(BootLogError::BadStartupLocality { event: number }),
            }
        }
        self.events.push(event);
        Ok(())
    }

    /// Its events in order, those that were not extended too.
    pub fn events(&self) -> impl ExactSizeIterator<Item = &Event<'a>> {
        self.events.iter()
    }

    /// The banks it has digests for, ascending.
    pub fn banks(&self) -> &[HashAlg] {
        &self.banks
    }

    /// Where TPM2_Startup came from, as the log says: 0, 3, or 4 after an H-CRTM. It is PCR 0's initial value, and so
    /// proven by replay.
    pub const fn startup_locality(&self) -> u8 {
        self.startup_locality
    }

    /// What the PCRs of a bank hold after every event of the log; `None` for a bank without digests.
    pub fn replay(&self, bank: HashAlg) -> Option<[Digest; limits::PCR_COUNT]> {
        if !self.banks.contains(&bank) {
            return None;
        }
        let mut pcrs = initial_values(bank, self.startup_locality);
        for event in self.events.iter().filter(|event| event.is_extended()) {
            // `parse` checked index, presence and length: a failure could only make the replay not fit.
            let pcr = usize::try_from(event.pcr).ok().and_then(|index| pcrs.get_mut(index))?;
            let digest = event.digest(bank).and_then(|digest| bank.read_digest(digest).ok())?;
            *pcr = extend(bank, pcr, &digest).ok()?;
        }
        Some(pcrs)
    }

    /// What a bank's PCRs hold after the log, of those alone that an event of it extended; none for a bank without
    /// digests.
    pub fn replay_extended(&self, bank: HashAlg) -> BTreeMap<u8, Digest> {
        let touched = self.extended_mask();
        let values = self.replay(bank).into_iter().flatten();
        (0..).zip(values).filter(|(index, _)| touched & (1 << index) != 0).collect()
    }

    /// Bits of the PCRs that its events extended.
    pub fn extended_mask(&self) -> u32 {
        let extended = self.events.iter().filter(|event| event.is_extended());
        extended.fold(0, |mask, event| mask | 1u32.checked_shl(event.pcr).unwrap_or(0))
    }
}

/// A boot log's replayed values: all that a verdict needs of it, in a few KiB.
#[derive(Clone, Debug)]
pub struct ReplayedBootLog {
    digest: [u8; 32],
    banks: Vec<(HashAlg, [Digest; limits::PCR_COUNT])>,
    touched: u32,
    event_count: usize,
}

impl ReplayedBootLog {
    /// Parses a log and replays every bank in it.
    ///
    /// # Errors
    /// Those of [`BootLog::parse`].
    pub fn replay(bytes: &[u8]) -> Result<Self, BootLogError> {
        BootLog::parse(bytes).map(|log| Self::of(&log))
    }

    /// Replays every bank of a parsed log.
    pub fn of(log: &BootLog<'_>) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, log.bytes).as_ref());
        let banks = log.banks.iter().filter_map(|bank| Some((*bank, log.replay(*bank)?))).collect();
        Self { digest: hash, banks, touched: log.extended_mask(), event_count: log.events.len() }
    }

    /// SHA-256 of the log's bytes.
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// How many events it has.
    pub const fn event_count(&self) -> usize {
        self.event_count
    }

    /// Whether it has digests for a bank.
    pub fn has_bank(&self, bank: HashAlg) -> bool {
        self.banks.iter().any(|(of, _)| *of == bank)
    }

    /// Whether an event was extended into this PCR.
    pub fn touches(&self, index: u8) -> bool {
        1u32.checked_shl(index.into()).is_some_and(|bit| self.touched & bit != 0)
    }

    /// What a PCR holds after the log; `None` for a bank without digests.
    pub fn value(&self, bank: HashAlg, index: u8) -> Option<&Digest> {
        let (_, pcrs) = self.banks.iter().find(|(of, _)| *of == bank)?;
        pcrs.get(usize::from(index))
    }
}

/// Whether only what runs before the operating system's kernel extends a PCR: then the log has to account for all of
/// it. 0 to 7 are firmware's, 8 and 9 the boot loader's, 14 shim's; IMA (10) and systemd (11 to 13, 15) go on after the
/// log has ended.
pub(crate) const fn is_boot_time_pcr(index: u8) -> bool {
    matches!(index, 0..=9 | 14)
}

/// PCRs at TPM2_Startup(CLEAR): ones in those of the dynamic launch, PCR 0 ending in the startup locality, else zeros.
fn initial_values(bank: HashAlg, startup_locality: u8) -> [Digest; limits::PCR_COUNT] {
    let mut pcrs = [Digest::zero(bank); limits::PCR_COUNT];
    let filled = |byte: u8, last: u8| {
        let mut value = [byte; Digest::MAX_LEN];
        value.get_mut(..bank.digest_len()).map_or(Digest::EMPTY, |value| {
            if let Some(end) = value.last_mut() {
                *end = last;
            }
            Digest::new(value).unwrap_or(Digest::EMPTY)
        })
    };
    for (index, pcr) in pcrs.iter_mut().enumerate() {
        match index {
            0 => *pcr = filled(0, startup_locality),
            17..=22 => *pcr = filled(0xff, 0xff),
            _ => {}
        }
    }
    pcrs
}

/// TCG_PCClientPCREvent.
fn sha1_event<'a>(reader: &mut Reader<'a>, number: usize) -> Result<Event<'a>, CodecError> {
    let pcr = u32_le(reader)?;
    let event_type = u32_le(reader)?;
    let mut digests = [None; HashAlg::ALL.len()];
    let sha1 = reader.take(HashAlg::Sha1.digest_len())?;
    set_digest(&mut digests, HashAlg::Sha1, sha1);
    let data = event_data(reader)?;
    Ok(Event { number, pcr, event_type, digests, data })
}

/// TCG_PCR_EVENT2, with at most one digest of each of `algorithms` (TPM_ALG_ID, length), in any order; and which of them
/// it has.
fn agile_event<'a>(
    reader: &mut Reader<'a>,
    number: usize,
    algorithms: &[(u16, usize)],
) -> Result<(Event<'a>, [bool; MAX_ALGORITHMS]), BootLogError> {
    let truncated = |_: CodecError| BootLogError::Truncated { event: number };
    let wrong_digests = BootLogError::WrongDigests { event: number };
    let pcr = u32_le(reader).map_err(truncated)?;
    let event_type = u32_le(reader).map_err(truncated)?;
    let count = u32_le(reader).map_err(truncated)?;
    if count == 0 || usize::try_from(count).map_or(true, |count| count > algorithms.len()) {
        return Err(wrong_digests);
    }
    let mut digests = [None; HashAlg::ALL.len()];
    let mut seen = [false; MAX_ALGORITHMS];
    for _ in 0..count {
        let id = reader.array().map(u16::from_le_bytes).map_err(truncated)?;
        let found = algorithms.iter().zip(&mut seen).find(|((of, _), _)| *of == id).ok_or(wrong_digests)?;
        let ((_, len), seen) = found;
        if std::mem::replace(seen, true) {
            return Err(wrong_digests);
        }
        let digest = reader.take(*len).map_err(truncated)?;
        if let Some(bank) = HashAlg::from_id(id) {
            set_digest(&mut digests, bank, digest);
        }
    }
    let data = event_data(reader).map_err(truncated)?;
    Ok((Event { number, pcr, event_type, digests, data }, seen))
}

fn set_digest<'a>(digests: &mut [Option<&'a [u8]>; HashAlg::ALL.len()], bank: HashAlg, digest: &'a [u8]) {
    for (entry, of) in digests.iter_mut().zip(HashAlg::ALL) {
        if of == bank {
            *entry = Some(digest);
        }
    }
}

/// TCG_EfiSpecIDEvent of version 03: the algorithms of the log's digests and their lengths.
///
/// vendorInfo belongs to the event. Firmware is known that leaves it out of the event's length; it then stands at the
/// front of `behind`.
fn spec_id(data: &[u8], behind: &mut Reader<'_>) -> Result<Vec<(u16, usize)>, BootLogError> {
    parse_spec_id(data, behind).ok().filter(|algorithms| !algorithms.is_empty()).ok_or(BootLogError::BadSpecId)
}

fn parse_spec_id(data: &[u8], behind: &mut Reader<'_>) -> Result<Vec<(u16, usize)>, CodecError> {
    let mut reader = Reader::new(data);
    reader.take(SPEC_ID_03.len())?;
    // platformClass u32, specVersionMinor, specVersionMajor, specErrata, uintnSize.
    reader.take(8)?;
    let count = usize::try_from(u32_le(&mut reader)?).map_err(|_| CodecError::TooLong)?;
    if count > MAX_ALGORITHMS {
        return Err(CodecError::TooLong);
    }
    let mut algorithms: Vec<(u16, usize)> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = reader.array().map(u16::from_le_bytes)?;
        let len = usize::from(reader.array().map(u16::from_le_bytes)?);
        let wrong_len = HashAlg::from_id(id).is_some_and(|bank| bank.digest_len() != len) || len > Digest::MAX_LEN;
        if wrong_len || algorithms.iter().any(|(of, _)| *of == id) {
            return Err(CodecError::BadValue);
        }
        algorithms.push((id, len));
    }
    let vendor_len = usize::from(reader.u8()?);
    if reader.remaining() == 0 {
        behind.take(vendor_len)?;
    } else {
        reader.take(vendor_len)?;
        reader.finish()?;
    }
    Ok(algorithms)
}

fn event_data<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], CodecError> {
    let len = usize::try_from(u32_le(reader)?).map_err(|_| CodecError::TooLong)?;
    if len > MAX_EVENT_LEN {
        return Err(CodecError::TooLong);
    }
    reader.take(len)
}

fn u32_le(reader: &mut Reader<'_>) -> Result<u32, CodecError> {
    reader.array().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
