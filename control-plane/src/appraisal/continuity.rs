//! Whether a quote can follow the one that was accepted last: the TPM's counters, clock and firmware.

use super::quote::VerifiedQuote;
use crate::store::Checkpoint;

/// A node's boot, as the TPM counts it: (resetCount, restartCount).
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Epoch {
    /// Nothing is remembered of the node.
    First,
    /// The boot that was judged before.
    Same,
    /// Another boot: boot log and IMA list are judged from the beginning.
    NewBoot,
}

impl Epoch {
    /// Its name in explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Same => "same",
            Self::NewBoot => "new_boot",
        }
    }
}

/// Why a quote cannot follow what is remembered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum Discontinuity {
    #[error("the TPM's {what} went back from {was} to {is}")]
    RolledBack { what: &'static str, was: u64, is: u64 },
    #[error("the TPM's firmware version changed within a boot, from 0x{was:016x} to 0x{is:016x}")]
    FirmwareChanged { was: u64, is: u64 },
}

/// Compares a quote with what is remembered.
///
/// Counters that went back mean a cleared or another TPM behind the same AK (TPM2_Clear zeroes them and leaves the
/// endorsement hierarchy); a clock that went back within one boot means the same. `safe` = NO is no failure: a TPM that
/// lost power without a shutdown reports it for a while.
///
/// # Errors
/// [`Discontinuity`]: rolled back, or other firmware within one boot.
///
/// TPM 2.0 Part 1, "Timing Components"; Part 2, TPMS_CLOCK_INFO.
pub fn continuity(previous: Option<&Checkpoint>, quote: &VerifiedQuote) -> Result<Epoch, Discontinuity> {
    let Some(previous) = previous else { return Ok(Epoch::First) };
    let attest = quote.attest();
    let now = attest.clock_info;
    let rolled_back = |what, was, is| Err(Discontinuity::RolledBack { what, was, is });
    if now.reset_count < previous.reset_count {
        return rolled_back("resetCount", previous.reset_count.into(), now.reset_count.into());
    }
    if now.reset_count > previous.reset_count {
        return Ok(Epoch::NewBoot);
    }
    if now.restart_count < previous.restart_count {
        return rolled_back("restartCount", previous.restart_count.into(), now.restart_count.into());
    }
    if now.clock < previous.clock {
        return rolled_back("clock", previous.clock, now.clock);
    }
    // A restart without a reset cannot bring other firmware either: a field upgrade ends in a reset.
    if attest.firmware_version != previous.firmware_version {
        return Err(Discontinuity::FirmwareChanged { was: previous.firmware_version, is: attest.firmware_version });
    }
    Ok(if now.restart_count > previous.restart_count { Epoch::NewBoot } else { Epoch::Same })
}

#[cfg(test)]
mod tests;
