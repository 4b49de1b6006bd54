//! Judging the events of a boot log by a policy's `[boot]`.

use protocol::tpm::alg::HashAlg;

use super::{
    boot_log::BootLog,
    finding::Report,
    policy::boot::BootRules,
    userspace_log::UserspaceLog,
};

/// What the rules are applied to.
#[derive(Clone, Copy, Debug)]
pub struct BootInput<'a> {
    /// The log; that it replays to the quoted PCRs is checked by others.
    pub log: &'a BootLog<'a>,
    /// The banks in which digests are compared: quoted ones that the log has.
    pub banks: &'a [HashAlg],
    /// What the node says its kernel's command line is, without a newline: it counts only where an event's digest
    /// proves it.
    pub command_line: Option<&'a [u8]>,
    /// What userspace measured after the log ended, where the node sent it.
    pub userspace: Option<&'a UserspaceLog>,
}

/// Applies the rules; what is wrong, what was checked and what was not goes to `report`.
pub fn judge(_rules: &BootRules, _input: &BootInput<'_>, _report: &mut Report) {}
