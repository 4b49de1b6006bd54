//! Fuzz targets for everything that reads bytes from a peer, a TPM, a log or a certificate: one function each, whose
//! property is said at it, and the seeds that fuzzing begins with. A target panics if its property does not hold.
//!
//! `fuzz_targets/` hands each to cargo-fuzz; the tests here run each over its seeds and some thousand mutations of them
//! on the stable toolchain. Not reached from here is what lives in the agent's program (its X.509, configuration and
//! log readers): property tests beside that code do the same for it.
#![forbid(unsafe_code)]

mod appraisal;
mod boot;
mod coap;
mod crypto;
mod files;
mod machine;
mod message;
mod rootfs;
mod script;
#[cfg(test)]
mod smoke;
mod tpm;
mod vectors;

use std::{env, fs, path::Path, process::ExitCode};

pub use appraisal::{boot_log, ek_certificate, glob, ima_ascii, ima_log, ima_rules, policy};
pub use boot::{boot_rules, userspace_log};
pub use coap::{coap_exchange, coap_frame};
pub use crypto::{container, manifest, payload_opener, sealed_share};
pub use files::{appraise, pcr_file};
pub use machine::agent_machine;
pub use message::message_decode;
pub use rootfs::{cpio, initrd, keylime_import};
pub use tpm::{pcr_selection, tpm_attest, tpm_public, tpm_response, tpm_signature};

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its function and of its program.
    pub name: &'static str,
    /// Panics if the property does not hold for these bytes.
    pub run: fn(&[u8]),
    /// What fuzzing begins with: inputs that get far, made by the code under test, and outside vectors if there are any.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "agent_machine", run: agent_machine, seeds: machine::agent_machine_seeds },
    Target { name: "appraise", run: appraise, seeds: files::appraise_seeds },
    Target { name: "boot_log", run: boot_log, seeds: appraisal::boot_log_seeds },
    Target { name: "boot_rules", run: boot_rules, seeds: boot::boot_rules_seeds },
    Target { name: "coap_exchange", run: coap_exchange, seeds: coap::coap_exchange_seeds },
    Target { name: "coap_frame", run: coap_frame, seeds: coap::coap_frame_seeds },
    Target { name: "container", run: container, seeds: crypto::container_seeds },
    Target { name: "cpio", run: cpio, seeds: rootfs::cpio_seeds },
    Target { name: "ek_certificate", run: ek_certificate, seeds: appraisal::ek_certificate_seeds },
    Target { name: "glob", run: glob, seeds: appraisal::glob_seeds },
    Target { name: "ima_ascii", run: ima_ascii, seeds: appraisal::ima_ascii_seeds },
    Target { name: "ima_log", run: ima_log, seeds: appraisal::ima_log_seeds },
    Target { name: "ima_rules", run: ima_rules, seeds: appraisal::ima_rules_seeds },
    Target { name: "initrd", run: initrd, seeds: rootfs::initrd_seeds },
    Target { name: "keylime_import", run: keylime_import, seeds: rootfs::keylime_import_seeds },
    Target { name: "manifest", run: manifest, seeds: crypto::manifest_seeds },
    Target { name: "message_decode", run: message_decode, seeds: message::message_decode_seeds },
    Target { name: "payload_opener", run: payload_opener, seeds: crypto::payload_opener_seeds },
    Target { name: "pcr_file", run: pcr_file, seeds: files::pcr_file_seeds },
    Target { name: "pcr_selection", run: pcr_selection, seeds: tpm::pcr_selection_seeds },
    Target { name: "policy", run: policy, seeds: appraisal::policy_seeds },
    Target { name: "sealed_share", run: sealed_share, seeds: crypto::sealed_share_seeds },
    Target { name: "tpm_attest", run: tpm_attest, seeds: tpm::tpm_attest_seeds },
    Target { name: "tpm_public", run: tpm_public, seeds: tpm::tpm_public_seeds },
    Target { name: "tpm_response", run: tpm_response, seeds: tpm::tpm_response_seeds },
    Target { name: "tpm_signature", run: tpm_signature, seeds: tpm::tpm_signature_seeds },
    Target { name: "userspace_log", run: userspace_log, seeds: boot::userspace_log_seeds },
];

/// The program of a target: libFuzzer's under cargo-fuzz, else one that replays files.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$name(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::replay($crate::$name)
        }
    };
}

/// Runs a target over each file named on the command line, as when a finding is looked into without libFuzzer.
pub fn replay(run: fn(&[u8])) -> ExitCode {
    let mut files = env::args_os().skip(1).peekable();
    if files.peek().is_none() {
        eprintln!("usage: PROGRAM FILE… (inputs to run once each)");
        return ExitCode::from(2);
    }
    for file in files {
        let shown = Path::new(&file).display().to_string();
        match fs::read(&file) {
            Ok(bytes) => {
                run(&bytes);
                println!("{shown}: {} bytes, survived", bytes.len());
            }
            Err(error) => {
                eprintln!("{shown}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
