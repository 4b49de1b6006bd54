//! `[boot]` of a policy: what a good boot log looks like. Judging by it is [`boot_rules`](crate::appraisal::boot_rules)'s.

use serde::Deserialize;

use super::PolicyError;

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBoot {
    #[serde(default)]
    pcrs: Vec<u8>,
}

/// Rules on the events of a boot log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BootRules {
    pub(crate) pcrs: u32,
}

impl BootRules {
    pub(super) fn from_raw(raw: RawBoot) -> Result<Self, PolicyError> {
        Ok(Self { pcrs: raw.pcrs.iter().fold(0, |mask, index| mask | 1u32.checked_shl((*index).into()).unwrap_or(0)) })
    }

    /// Bits of the PCRs in which every event has to be allowed.
    pub const fn pcr_mask(&self) -> u32 {
        self.pcrs
    }
}
