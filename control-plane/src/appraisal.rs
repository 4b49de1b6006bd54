//! Appraisal: evidence, a policy and what is remembered of a node make a verdict. Pure functions without IO or clock,
//! shared by verifier and tenant.
//!
//! In the order of their use: [`quote`] (is it this TPM's answer to this challenge), [`pcrs`] (the values behind its
//! digest), [`mod@continuity`] (can it follow the last one), [`boot_log`] and [`ima_log`] (replay), [`policy`] (what
//! good is), [`verdict`]. A verdict is a value that only completed checks can build: nothing here takes a missing
//! failure for success. Judging the boot log's events and the files on the IMA list is not done here yet, and every
//! verdict says so.

pub mod boot_log;
pub mod boot_rules;
pub mod continuity;
pub mod files;
pub mod finding;
pub mod glob;
pub mod ima_ascii;
pub mod ima_log;
pub mod ima_rules;
pub mod ima_signature;
pub mod pcr_file;
pub mod pcrs;
pub mod policy;
pub mod quote;
pub mod signature;
pub mod uefi;
pub mod userspace_log;
pub mod verdict;

pub use boot_log::{BootLog, ReplayedBootLog};
pub use continuity::{Discontinuity, Epoch, continuity};
pub use ima_log::{ImaReplay, ReplayedIma};
pub use pcrs::QuotedPcrs;
pub use policy::Policy;
pub use quote::{AkPublic, QuoteError, VerifiedQuote};
pub use verdict::{GoodVerdict, Hardware, Input, PhaseEvents, ReleaseRight, Verdict, appraise, release_right};

#[cfg(test)]
pub(crate) mod test_vectors;

/// The PCR that IMA extends.
pub(crate) const IMA_PCR: u8 = 10;
/// The PCRs that firmware extends (TCG PC Client Platform Firmware Profile, "PCR Usage").
pub(crate) const FIRMWARE_PCRS: std::ops::RangeInclusive<u8> = 0..=7;
