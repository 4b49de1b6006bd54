//! What systemd measured after the firmware's log ended: its log in the canonical event log's JSON form, one record after
//! each 0x1E (RFC 7464), such as `{"pcr":11,"digests":[{"hashAlg":"sha256","digest":"…"}],"content_type":"systemd",
//! "content":{"eventType":"phase","string":"enter-initrd"}}`.
//!
//! A record is a claim like an event of the boot log: its digests count by what they replay to, its text where it hashes
//! to them.

use std::collections::BTreeMap;

use protocol::{
    limits,
    tpm::{
        alg::{Digest, HashAlg},
        pcr::extend,
    },
};
use serde::Deserialize;

/// Records in one log: systemd writes a few dozen a boot.
pub const MAX_RECORDS: usize = 4096;
/// A record's text that is kept, in bytes; nothing longer is ever believed.
const MAX_TEXT_LEN: usize = 8 * 1024;
/// What begins a record.
const RECORD_SEPARATOR: u8 = 0x1e;

/// Why a userspace log was refused. Records are counted from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum UserspaceLogError {
    #[error("record {record} of the userspace log is no measurement in JSON")]
    Malformed { record: usize },
    #[error("record {record} of the userspace log names PCR {pcr}, which userspace does not measure into")]
    WrongPcr { record: usize, pcr: u8 },
    #[error("record {record} of the userspace log has a digest that is not of its algorithm, or two of one")]
    WrongDigest { record: usize },
    #[error("the userspace log is longer than {max} bytes or has more than {MAX_RECORDS} records", max = limits::MAX_USERSPACE_LOG_LEN)]
    TooLong,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct UserspaceEvent {
    /// Its place in the log, from 0.
    pub number: usize,
    /// The PCR: 9, or 11 to 15.
    pub pcr: u8,
    /// What it says it is: systemd's event type, or the content type.
    pub kind: String,
    /// The text it says was measured.
    pub text: Option<String>,
    digests: Vec<(HashAlg, Digest)>,
}

impl UserspaceEvent {
    /// Its digest for a bank.
    pub fn digest(&self, bank: HashAlg) -> Option<&Digest> {
        self.digests.iter().find(|(of, _)| *of == bank).map(|(_, digest)| digest)
    }

    /// Its text, if that hashes to the digest of every bank in `banks`.
    pub fn proven_text(&self, banks: &[HashAlg]) -> Option<&str> {
        let text = self.text.as_deref()?;
        let hashes = |bank: &HashAlg| self.digest(*bank) == Some(&bank.digest(&[text.as_bytes()]));
        (!banks.is_empty() && banks.iter().all(hashes)).then_some(text)
    }
}

/// A parsed userspace log.
#[derive(Clone, Debug, Default)]
pub struct UserspaceLog {
    events: Vec<UserspaceEvent>,
}

impl UserspaceLog {
    /// Parses a whole log. A last record without its newline is being written and left out; so are measurements into NV
    /// indices.
    ///
    /// # Errors
    /// [`UserspaceLogError`], naming the record. There is no partial result.
    pub fn parse(bytes: &[u8]) -> Result<Self, UserspaceLogError> {
        if bytes.len() > limits::MAX_USERSPACE_LOG_LEN {
            return Err(UserspaceLogError::TooLong);
        }
        let mut records = bytes.split(|byte| *byte == RECORD_SEPARATOR);
        if records.next().is_some_and(|before| !before.is_empty()) {
            return Err(UserspaceLogError::Malformed { record: 0 });
        }
        let mut events = Vec::new();
        let mut records = records.enumerate().peekable();
        while let Some((record, text)) = records.next() {
            if record >= MAX_RECORDS {
                return Err(UserspaceLogError::TooLong);
            }
            if records.peek().is_none() && !text.ends_with(b"\n") {
                break;
            }
            events.extend(read_record(text, record)?);
        }
        Ok(Self { events })
    }

    /// Its measurements in order.
    pub fn events(&self) -> &[UserspaceEvent] {
        &self.events
    }

    /// Whether it has a measurement into this PCR.
    pub fn touches(&self, index: u8) -> bool {
        self.events.iter().any(|event| event.pcr == index)
    }

    /// What a PCR holds after all its measurements, when it held `start` before them; `None` if one of them has no digest
    /// for the bank.
    pub fn replay(&self, bank: HashAlg, index: u8, start: Digest) -> Option<Digest> {
        self.values(bank, index, start).last()?
    }

    /// Whether a PCR that held `start` holds `target` after some number of its measurements: the log may have grown since
    /// the quote.
    pub fn reaches(&self, bank: HashAlg, index: u8, start: Digest, target: &Digest) -> bool {
        self.values(bank, index, start).any(|value| value.as_ref() == Some(target))
    }

    /// How many of a PCR's measurements the banks prove together: the largest number after which each of `targets` (bank,
    /// what the PCR held before, what it holds) is met; `None` if there is none.
    pub fn proven_count(&self, index: u8, targets: &[(HashAlg, Digest, Digest)]) -> Option<usize> {
        let mut banks: Vec<_> =
            targets.iter().map(|(bank, start, target)| (self.values(*bank, index, *start), target)).collect();
        let mut proven = None;
        for count in 0..=self.events.len() {
            let mut is_met = !banks.is_empty();
            for (values, target) in &mut banks {
                let Some(Some(value)) = values.next() else { return proven };
                is_met &= value == **target;
            }
            if is_met {
                proven = Some(count);
            }
        }
        proven
    }

    /// The first measurements of each PCR alone, as many as `counts` has for it.
    pub fn first(&self, mut counts: BTreeMap<u8, usize>) -> Self {
        let mut is_counted = |event: &&UserspaceEvent| {
            let left = counts.get_mut(&event.pcr).filter(|left| **left > 0);
            left.map(|left| *left -= 1).is_some()
        };
        Self { events: self.events.iter().filter(|event| is_counted(event)).cloned().collect() }
    }

    /// `start` and what follows from it, measurement by measurement; ends with the first that has no digest for the bank.
    fn values(&self, bank: HashAlg, index: u8, start: Digest) -> impl Iterator<Item = Option<Digest>> {
        let mut value = Some(start);
        let of_pcr = self.events.iter().filter(move |event| event.pcr == index);
        std::iter::once(value).chain(of_pcr.map_while(move |event| {
            let old = value?;
            value = event.digest(bank).and_then(|digest| extend(bank, &old, digest).ok());
            Some(value)
        }))
    }
}

#[derive(Deserialize)]
struct RawRecord {
    pcr: Option<u8>,
    #[serde(default)]
    digests: Vec<RawDigest>,
    #[serde(default)]
    content_type: String,
    #[serde(default)]
    content: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDigest {
    hash_alg: String,
    digest: String,
}

fn read_record(text: &[u8], record: usize) -> Result<Option<UserspaceEvent>, UserspaceLogError> {
    let raw: RawRecord = serde_json::from_slice(text).map_err(|_| UserspaceLogError::Malformed { record })?;
    let Some(pcr) = raw.pcr else { return Ok(None) };
    if !matches!(pcr, 9 | 11..=15) {
        return Err(UserspaceLogError::WrongPcr { record, pcr });
    }
    let wrong_digest = UserspaceLogError::WrongDigest { record };
    let mut digests: Vec<(HashAlg, Digest)> = Vec::new();
    for digest in &raw.digests {
        // An algorithm that is unknown here is no bank that is judged.
        let Some(alg) = HashAlg::from_name(&digest.hash_alg) else { continue };
        let value = hex::decode(&digest.digest).ok().and_then(|bytes| alg.read_digest(&bytes).ok());
        let value = value.ok_or(wrong_digest)?;
        if digests.iter().any(|(of, _)| *of == alg) {
            return Err(wrong_digest);
        }
        digests.push((alg, value));
    }
    let word = |key: &str| raw.content.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let kind = word("eventType").unwrap_or(raw.content_type);
    let text = word("string").filter(|text| text.len() <= MAX_TEXT_LEN);
    Ok(Some(UserspaceEvent { number: record, pcr, kind: kind.chars().take(64).collect(), text, digests }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pcr: &str, text: &str, digest: &str) -> String {
        format!(
            "\u{1e}{{\"pcr\":{pcr},\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{digest}\"}},\
             {{\"hashAlg\":\"sm3\",\"digest\":\"00\"}}],\"content_type\":\"systemd\",\
             \"content\":{{\"eventType\":\"phase\",\"string\":\"{text}\",\"bootId\":\"0\"}}}}\n"
        )
    }

    fn phase(text: &str) -> String {
        record("11", text, &HashAlg::Sha256.digest(&[text.as_bytes()]).to_string())
    }

    #[test]
    fn phases_replay_and_their_words_are_believed_where_they_hash_to_the_digest() {
        let lie = record("11", "ready", &HashAlg::Sha256.digest(&[b"other"]).to_string());
        let log = UserspaceLog::parse((phase("enter-initrd") + &phase("leave-initrd") + &lie).as_bytes()).unwrap();
        let banks = [HashAlg::Sha256];
        let texts: Vec<_> = log.events().iter().map(|event| event.proven_text(&banks)).collect();
        assert_eq!(texts, [Some("enter-initrd"), Some("leave-initrd"), None]);
        assert_eq!(log.events()[0].proven_text(&[HashAlg::Sha256, HashAlg::Sha1]), None);
        let zero = Digest::zero(HashAlg::Sha256);
        let first = extend(HashAlg::Sha256, &zero, &HashAlg::Sha256.digest(&[b"enter-initrd"])).unwrap();
        assert!(log.reaches(HashAlg::Sha256, 11, zero, &first) && log.reaches(HashAlg::Sha256, 11, zero, &zero));
        assert_ne!(log.replay(HashAlg::Sha256, 11, zero), Some(first));
        assert_eq!(log.replay(HashAlg::Sha256, 12, zero), Some(zero));
        assert_eq!(log.replay(HashAlg::Sha1, 11, Digest::zero(HashAlg::Sha1)), None);
        assert!(log.touches(11) && !log.touches(12));
        // The same number in every bank, and the largest.
        let sha256 = (HashAlg::Sha256, zero, first);
        assert_eq!(log.proven_count(11, &[sha256]), Some(1));
        assert_eq!(log.proven_count(11, &[(HashAlg::Sha256, zero, zero)]), Some(0));
        assert_eq!(log.proven_count(11, &[sha256, (HashAlg::Sha256, zero, zero)]), None);
        let sha1 = Digest::zero(HashAlg::Sha1);
        assert_eq!(log.proven_count(11, &[sha256, (HashAlg::Sha1, sha1, sha1)]), None);
        assert_eq!(
            (log.proven_count(11, &[]), log.proven_count(12, &[(HashAlg::Sha256, zero, zero)])),
            (None, Some(0))
        );
        assert_eq!(log.first([(11, 2), (12, 1)].into()).events().len(), 2);
        assert!(log.first(BTreeMap::new()).events().is_empty());
    }

    #[test]
    fn a_record_that_is_being_written_is_left_out_and_any_other_is_read_or_refused() {
        let text = phase("enter-initrd") + phase("ready").trim_end();
        assert_eq!(UserspaceLog::parse(text.as_bytes()).unwrap().events().len(), 1);
        assert!(UserspaceLog::parse(b"").unwrap().events().is_empty());
        let whole = phase("enter-initrd") + &phase("ready");
        for end in 0..whole.len() {
            // Cut within the last record it is one record less; never a panic, never a record more.
            let count = UserspaceLog::parse(&whole.as_bytes()[..end]).map(|log| log.events().len());
            assert!(matches!(count, Ok(0 | 1)), "{end}: {count:?}");
        }
        let parse = |text: &str| UserspaceLog::parse(text.as_bytes()).unwrap_err();
        assert_eq!(parse("x"), UserspaceLogError::Malformed { record: 0 });
        assert_eq!(parse(&(phase("ready") + "\u{1e}{\n")), UserspaceLogError::Malformed { record: 1 });
        assert_eq!(parse(&record("10", "x", "00")), UserspaceLogError::WrongPcr { record: 0, pcr: 10 });
        assert_eq!(parse(&record("11", "x", "00")), UserspaceLogError::WrongDigest { record: 0 });
        assert_eq!(parse(&record("300", "x", "00")), UserspaceLogError::Malformed { record: 0 });
        let many = "\u{1e}{}\n".repeat(MAX_RECORDS + 1);
        assert_eq!(parse(&many), UserspaceLogError::TooLong);
    }
}
