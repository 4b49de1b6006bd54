//! TPMS_ATTEST of a quote: what a TPM signed. Parsing only; the signature is checked over the bytes as they came.

use alloc::vec::Vec;

use super::{
    alg::{Digest, HashAlg},
    pcr::PcrSelectionList,
    public::Name,
    wire::Out,
};
use crate::{
    codec::{CodecError, Reader},
    limits,
};

/// TPM_GENERATED_VALUE: what a restricted key signs begins with it if, and only if, a TPM made it.
pub const TPM_GENERATED_VALUE: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
pub const TPM_ST_ATTEST_QUOTE: u16 = 0x8018;
/// The longest qualifying data (TPM2B_DATA: a TPMT_HA), in bytes.
pub const MAX_EXTRA_DATA_LEN: usize = 66;

/// Why bytes are no quote.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum AttestError {
    #[error("magic 0x{0:08x} is not TPM_GENERATED_VALUE: no TPM made this structure")]
    NotMadeByTpm(u32),
    #[error("attestation of type 0x{0:04x}, not a quote")]
    NotAQuote(u16),
    #[error("malformed TPMS_ATTEST")]
    Malformed(#[from] CodecError),
}

/// TPMS_CLOCK_INFO.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClockInfo {
    /// Milliseconds for which the TPM was powered; may jump back if `safe` is false.
    pub clock: u64,
    /// TPM Resets since TPM2_Clear.
    pub reset_count: u32,
    /// TPM Restarts and Resumes since the last reset or TPM2_Clear.
    pub restart_count: u32,
    /// No larger value of `clock` was reported before; false for a while after an unclean stop.
    pub safe: bool,
}

impl ClockInfo {
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let (clock, reset_count, restart_count) = (reader.u64()?, reader.u32()?, reader.u32()?);
        let safe = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(CodecError::BadValue),
        };
        Ok(Self { clock, reset_count, restart_count, safe })
    }
}

/// TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE (TPM 2.0 Part 2, TPMS_ATTEST, TPMS_QUOTE_INFO).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TpmsAttest {
    /// Qualified Name of the key that signed.
    pub qualified_signer: Name,
    /// The qualifying data that TPM2_Quote was given.
    pub extra_data: heapless::Vec<u8, MAX_EXTRA_DATA_LEN>,
    /// Clock and counters; in clear only for keys of the endorsement and platform hierarchies.
    pub clock_info: ClockInfo,
    /// The TPM's firmware version.
    pub firmware_version: u64,
    /// The PCRs that were quoted.
    pub pcr_select: PcrSelectionList,
    /// Digest over their values.
    pub pcr_digest: Digest,
}

impl TpmsAttest {
    /// Decodes a whole TPMS_ATTEST; every byte must be used.
    ///
    /// # Errors
    /// [`AttestError::NotMadeByTpm`] and [`AttestError::NotAQuote`] come before anything else is looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, AttestError> {
        Self::decode_at(bytes).map_err(|(error, _)| error)
    }

    /// As [`decode`](Self::decode); an error comes with the offset in bytes at which the reading stopped.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_at(bytes: &[u8]) -> Result<Self, (AttestError, usize)> {
        if bytes.len() > limits::MAX_ATTEST_LEN {
            return Err((CodecError::TooLong.into(), limits::MAX_ATTEST_LEN));
        }
        let mut reader = Reader::new(bytes);
        Self::read(&mut reader).map_err(|error| (error, bytes.len().saturating_sub(reader.remaining())))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, AttestError> {
        match reader.u32()? {
            TPM_GENERATED_VALUE => {}
            other => return Err(AttestError::NotMadeByTpm(other)),
        }
        match reader.u16()? {
            TPM_ST_ATTEST_QUOTE => {}
            other => return Err(AttestError::NotAQuote(other)),
        }
        let qualified_signer = Name::decode(reader.tpm2b(Name::MAX_LEN)?)?;
        let extra_data =
            heapless::Vec::from_slice(reader.tpm2b(MAX_EXTRA_DATA_LEN)?).map_err(|_| CodecError::TooLong)?;
        let clock_info = ClockInfo::decode(reader)?;
        let firmware_version = reader.u64()?;
        let pcr_select = PcrSelectionList::decode(reader)?;
        let pcr_digest = Digest::new(reader.tpm2b(Digest::MAX_LEN)?)?;
        if !HashAlg::ALL.iter().any(|hash| hash.digest_len() == pcr_digest.len()) {
            return Err(CodecError::BadValue.into());
        }
        reader.finish()?;
        Ok(Self { qualified_signer, extra_data, clock_info, firmware_version, pcr_select, pcr_digest })
    }

    /// Its bytes, for simulated nodes and tests: a real quote is only ever handled as the bytes that were signed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out::new();
        out.u32(TPM_GENERATED_VALUE).u16(TPM_ST_ATTEST_QUOTE);
        out.tpm2b(&self.qualified_signer).tpm2b(&self.extra_data);
        let ClockInfo { clock, reset_count, restart_count, safe } = self.clock_info;
        out.u64(clock).u32(reset_count).u32(restart_count).u8(u8::from(safe)).u64(self.firmware_version);
        self.pcr_select.encode_to(&mut out);
        out.tpm2b(&self.pcr_digest);
        out.into_vec()
    }
}
