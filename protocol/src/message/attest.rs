//! `challenge` and the evidence that answers it; both ways a role looks at a node.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::enrol::Credential;
use crate::{
    bytes::{Array, Bytes},
    id::Role,
    limits,
};

/// What a quote may be used for; part of what the TPM signs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[repr(u8)]
pub enum Purpose {
    /// Shares may rest on it: it names an NK.
    Bootstrap = 1,
    /// Attestation only; names no NK.
    Attest = 2,
}

/// PCRs of one bank: bit `i` of `mask` selects PCR `i`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BankSelection {
    /// TPM_ALG_ID of the bank's hash.
    pub bank: u16,
    /// Bits 0 to 23.
    pub mask: u32,
}

/// The selection of a challenge: at most one entry per bank.
pub type Selection = heapless::Vec<BankSelection, { limits::MAX_PCR_BANKS }>;

/// Control plane → agent, POST /v1/challenge.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Challenge {
    /// Who asks: verifier or tenant.
    pub role: Role,
    /// What for.
    pub purpose: Purpose,
    /// 32 random bytes, answered once, within 60 s of their making.
    pub nonce: Array<32>,
    /// The PCRs to quote.
    pub selection: Selection,
    /// First 8 bytes of [`values_base`] over the values this role accepted last in this epoch: where the agent holds
    /// the same, it sends differences only.
    pub pcr_base: Option<Array<8>>,
    /// SHA-256 of the boot log this role holds.
    pub boot_log: Option<Array<32>>,
    /// The first IMA entry this role has not judged yet.
    pub ima_from: u64,
    /// The tenant's own proof of AK to EK, once per AK.
    pub credential: Option<Credential>,
}

/// One PCR's value.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PcrValue {
    /// TPM_ALG_ID of the bank.
    pub bank: u16,
    /// 0 to 23.
    pub index: u8,
    /// The bank's digest length of bytes.
    pub digest: Bytes<64>,
}

/// The values of an evidence, ascending by bank, then index.
pub type PcrValueList = heapless::Vec<PcrValue, { limits::MAX_PCR_VALUES }>;

/// What the agent holds of a log it did not send.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BootLogState {
    /// SHA-256 of the log's bytes.
    pub digest: Array<32>,
    /// Its length in bytes.
    pub len: u32,
}

/// New entries of the IMA list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ImaPart {
    /// How many entries the list had when it was read.
    pub total: u64,
    /// Whole entries in the kernel's binary form, from the challenge's `ima_from` on; what did not fit is pulled.
    pub entries: Bytes<{ limits::MAX_INLINE_IMA_LEN }>,
}

/// The answer to [`Challenge`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Evidence {
    /// TPMS_ATTEST exactly as the TPM signed it.
    pub attested: Bytes<{ limits::MAX_ATTEST_LEN }>,
    /// TPMT_SIGNATURE.
    pub signature: Bytes<{ limits::MAX_SIGNATURE_LEN }>,
    /// NK's public point, SEC1 uncompressed; present exactly for purpose bootstrap.
    pub nk_public: Option<Array<65>>,
    /// The other role's nonce, when one quote answers two challenges.
    pub other_nonce: Option<Array<32>>,
    /// `pcrs` holds only what differs from the challenge's base.
    pub pcrs_from_base: bool,
    /// PCR values.
    pub pcrs: PcrValueList,
    /// Present unless the challenge named this very log, or there is none.
    pub boot_log: Option<BootLogState>,
    /// Present when the kernel keeps a list and it has entries from `ima_from` on.
    pub ima: Option<ImaPart>,
    /// HMAC-SHA256(activated secret, label ‖ qualifying data).
    pub credential_answer: Option<Array<32>>,
}

/// First 8 bytes of SHA-256 over values in order (bank ‖ index ‖ digest): a name for a set both ends may hold. Nothing
/// rests on it; the quote's digest decides.
pub fn values_base<'a>(values: impl Iterator<Item = (u16, u8, &'a [u8])>) -> Array<8> {
    let mut hash = Sha256::new();
    for (bank, index, digest) in values {
        hash.update(bank.to_be_bytes());
        hash.update([index]);
        hash.update(digest);
    }
    let digest: [u8; 32] = hash.finalize().into();
    Array(digest.first_chunk::<8>().copied().unwrap_or_default())
}
