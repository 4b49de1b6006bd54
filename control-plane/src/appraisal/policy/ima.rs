//! `[ima]` of a policy: which files a good node may run. Judging by it is [`ima_rules`](crate::appraisal::ima_rules)'s.

use serde::Deserialize;

use super::PolicyError;

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIma {}

/// Rules on the entries of an IMA list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImaRules {}

impl ImaRules {
    pub(super) fn from_raw(_raw: RawIma) -> Result<Self, PolicyError> {
        Ok(Self {})
    }

    /// Whether boot_aggregate has to be that of the boot log, where there is one.
    pub const fn wants_boot_aggregate_of_log(&self) -> bool {
        true
    }
}
