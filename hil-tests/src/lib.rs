//! The hardware-in-loop harness: real programs of this repository, TPMs by swtpm, a private Postgres, nothing simulated
//! in between. The scenarios are in `tests/`; `xtask` uses the same harness for the demo and the test run.
//!
//! Reading order: [`rig`] puts everything together; [`swtpm`] and [`postgres`] are the services it stands on; [`spawn`]
//! runs our own programs and reads their step lines; [`events`] reads what the API answers; [`apt`] says what a machine
//! has to have installed; [`netns`] makes bad networks; [`tpm_report`] looks at a TPM and
//! leaves no trace; [`vectors`] finds outside test data; [`scratch`]
//! leaves nothing behind.
//!
//! **Invariant**: whatever the harness starts, mounts or writes ends with it: on return, on panic, on Ctrl-C (through
//! [`scratch`]) and, for processes, even when the harness itself is killed (each child dies with its parent).

pub mod apt;
pub mod cpio;
pub mod events;
pub mod netns;
pub mod postgres;
pub mod rig;
pub mod rogue;
pub mod scratch;
pub mod spawn;
pub mod swtpm;
pub mod sys;
pub mod tpm_report;
pub mod uki;
pub mod vectors;
pub mod vm;
