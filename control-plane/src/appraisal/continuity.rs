//! Whether a quote can follow the one that was accepted last: the TPM's counters, clock and firmware.
//!
//! What a TPM does to them, and so what each may mean:
//!
//! | what happened | resetCount | restartCount | clock | PCRs |
//! |---|---|---|---|---|
//! | reboot (TPM Reset), also after a suspend | goes up | zero | goes on | cleared |
//! | TPM Restart (a resume that lost the PCRs) | stays | goes up | goes on | cleared |
//! | TPM Resume (a suspend) | stays | goes up | goes on | kept |
//! | TPM2_Clear | zero | zero | zero | stay |
//! | an old quote, an old TPM state, another TPM | goes back, or | goes back, or | goes back | any |
//!
//! TPM2_Clear leaves the endorsement hierarchy, and with it the AK. Whoever may give it may do so at any time, so that
//! what follows is no rollback of anything by itself; but no history connects it with what was accepted, and only a
//! person can say that this was meant.
//!
//! TPM 2.0 Part 1, "Timing Components"; Part 2, TPMS_CLOCK_INFO; Part 3, TPM2_Clear, TPM2_Startup.

use protocol::tpm::attest::{ClockInfo, TpmsAttest};

use super::{pcrs::QuotedPcrs, quote::VerifiedQuote};
use crate::store::Checkpoint;

/// Resets after TPM2_Clear that still show it: firmware that clears the TPM from its menu reboots once or twice.
const RESETS_AFTER_CLEAR: u32 = 2;

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
    #[error("the TPM was cleared (TPM2_Clear): resetCount went from {was} to {is}, restartCount and clock began anew")]
    Cleared { was: u32, is: u32 },
    #[error("the TPM's firmware version changed within a boot, from 0x{was:016x} to 0x{is:016x}")]
    FirmwareChanged { was: u64, is: u64 },
}

impl Discontinuity {
    /// Its short name.
    pub fn code(self) -> &'static str {
        match self {
            Self::RolledBack { what: CLOCK, .. } => "clock_rolled_back",
            Self::RolledBack { .. } => "rolled_back",
            Self::Cleared { .. } => "tpm_cleared",
            Self::FirmwareChanged { .. } => "firmware_changed",
        }
    }

    /// Whether the counters or the clock went back: a state that an operator has to end.
    pub const fn is_rollback(self) -> bool {
        matches!(self, Self::RolledBack { .. } | Self::Cleared { .. })
    }

    /// For a finding: what it is about, what it had to be, what it is.
    pub fn parts(self) -> (&'static str, String, String) {
        match self {
            Self::RolledBack { what, was, is } => (what, format!("at least {was}"), is.to_string()),
            Self::Cleared { was, is } => {
                let found = format!("{is}, with restartCount and clock begun anew, as TPM2_Clear leaves them");
                (RESET_COUNT, format!("at least {was}"), found)
            }
            Self::FirmwareChanged { was, is } => {
                ("TPM firmware within one boot", format!("0x{was:016x}"), format!("0x{is:016x}"))
            }
        }
    }

    /// How a person ends it, in one sentence.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::Cleared { .. } => {
                "if the TPM was cleared on purpose, resume the node: it starts over with its next good verdict; what was \
                 sealed to the TPM's storage hierarchy is lost"
            }
            Self::RolledBack { what: CLOCK, .. } => {
                "if the TPM was cleared, or a virtual TPM restored from an older state, resume the node; otherwise another \
                 TPM answers for it"
            }
            Self::RolledBack { .. } => {
                "if a virtual TPM was restored from an older state, resume the node; otherwise another TPM answers for it, \
                 or old quotes are replayed"
            }
            Self::FirmwareChanged { .. } => {
                "a TPM cannot change its firmware without a reset: find out what stands between the node and its TPM, then \
                 reboot and resume the node"
            }
        }
    }
}

const RESET_COUNT: &str = "resetCount";
const RESTART_COUNT: &str = "restartCount";
const CLOCK: &str = "clock";

/// Compares a quote with what is remembered.
///
/// Counters that went back, or a clock that went back within one boot, mean a cleared TPM, an older state of it, or
/// another one behind the same AK. A restart may be a TPM Restart or a TPM Resume: either begins a boot that is judged
/// from its beginning, by the PCRs as they now are. `safe` = NO is no failure: a TPM that lost power without a shutdown
/// reports it for a while.
///
/// # Errors
/// [`Discontinuity`]: rolled back, cleared, or other firmware within one boot.
pub fn continuity(previous: Option<&Checkpoint>, quote: &VerifiedQuote) -> Result<Epoch, Discontinuity> {
    attest_continuity(previous, quote.attest())
}

/// As [`continuity`], for what was signed, whether or not that is proven.
pub(crate) fn attest_continuity(previous: Option<&Checkpoint>, attest: &TpmsAttest) -> Result<Epoch, Discontinuity> {
    let Some(previous) = previous else { return Ok(Epoch::First) };
    let now = attest.clock_info;
    let rolled_back = |what, was, is| Err(Discontinuity::RolledBack { what, was, is });
    if looks_cleared(previous, &now) {
        return Err(Discontinuity::Cleared { was: previous.reset_count, is: now.reset_count });
    }
    if now.reset_count < previous.reset_count {
        return rolled_back(RESET_COUNT, previous.reset_count.into(), now.reset_count.into());
    }
    if now.reset_count > previous.reset_count {
        return Ok(Epoch::NewBoot);
    }
    if now.restart_count < previous.restart_count {
        return rolled_back(RESTART_COUNT, previous.restart_count.into(), now.restart_count.into());
    }
    if now.clock < previous.clock {
        return rolled_back(CLOCK, previous.clock, now.clock);
    }
    // A restart without a reset cannot bring other firmware either: a field upgrade ends in a reset.
    if attest.firmware_version != previous.firmware_version {
        return Err(Discontinuity::FirmwareChanged { was: previous.firmware_version, is: attest.firmware_version });
    }
    Ok(if now.restart_count > previous.restart_count { Epoch::NewBoot } else { Epoch::Same })
}

/// All three went back, and the counters to where TPM2_Clear sets them.
fn looks_cleared(previous: &Checkpoint, now: &ClockInfo) -> bool {
    let was = (previous.reset_count, previous.restart_count);
    let fewer_resets = now.reset_count < previous.reset_count && now.reset_count <= RESETS_AFTER_CLEAR;
    // A TPM that was cleared in its first boot has nothing to count back but restarts.
    let begun_anew = (now.reset_count, now.restart_count) == (0, 0) && was.0 == 0 && was.1 > 0;
    (fewer_resets || begun_anew) && now.clock < previous.clock
}

/// What a verdict says of the node's boot beside its judgement, a sentence each: how the boot began, where that shows;
/// another firmware version; a clock that may jump.
pub fn boot_notes(previous: Option<&Checkpoint>, pcrs: &QuotedPcrs) -> Vec<String> {
    let attest = pcrs.quote().attest();
    let now = attest.clock_info;
    let mut notes = Vec::new();
    if let Some(previous) = previous {
        if now.reset_count > previous.reset_count {
            let boots = now.reset_count.saturating_sub(previous.reset_count);
            notes.push(format!("boot: {boots} since the last accepted quote"));
        } else if now.reset_count == previous.reset_count && now.restart_count > previous.restart_count {
            notes.push(match has_kept_pcrs(previous, pcrs) {
                true => "boot: the TPM was suspended and resumed; its PCRs were kept".to_owned(),
                false => "boot: the TPM was restarted without a reset, which cleared its PCRs".to_owned(),
            });
        }
        if now.reset_count > previous.reset_count && attest.firmware_version != previous.firmware_version {
            notes.push(format!(
                "TPM firmware: the version changed between boots, from 0x{:016x} to 0x{:016x} (firmware_version_changed)",
                previous.firmware_version, attest.firmware_version
            ));
        }
    }
    if !now.safe {
        notes.push("TPM clock: not safe since the TPM lost power without a shutdown (safe = NO)".to_owned());
    }
    notes
}

/// Whether a static PCR that was not zero still holds what it held.
fn has_kept_pcrs(previous: &Checkpoint, pcrs: &QuotedPcrs) -> bool {
    pcrs.iter().any(|(bank, index, value)| {
        let same = |(of, at, was): &(u16, u8, Vec<u8>)| *of == bank.id() && *at == index && was == value.as_bytes();
        index < 16 && value.iter().any(|byte| *byte != 0) && previous.pcrs.iter().any(same)
    })
}

#[cfg(test)]
mod tests;
