//! What systemd measured after the firmware's log ended: its log in the canonical event log's JSON form, one record after
//! each 0x1E.

use protocol::tpm::alg::{Digest, HashAlg};

/// Why a userspace log was refused. Records are counted from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum UserspaceLogError {
    #[error("record {record} of the userspace log is malformed")]
    Malformed { record: usize },
    #[error("the userspace log is too long")]
    TooLong,
}

/// A parsed userspace log.
#[derive(Clone, Debug, Default)]
pub struct UserspaceLog {}

impl UserspaceLog {
    /// Parses a whole log.
    ///
    /// # Errors
    /// [`UserspaceLogError`], naming the record.
    pub fn parse(_bytes: &[u8]) -> Result<Self, UserspaceLogError> {
        Ok(Self {})
    }

    /// Whether it has an event for this PCR.
    pub fn touches(&self, _index: u8) -> bool {
        false
    }

    /// What a PCR holds after its events, when it held `start` before them; `None` if one of its events has no digest for the
    /// bank.
    pub fn replay(&self, _bank: HashAlg, _index: u8, start: Digest) -> Option<Digest> {
        Some(start)
    }
}
