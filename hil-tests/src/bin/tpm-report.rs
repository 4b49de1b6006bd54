//! `tpm-report [TCTI]`: what a TPM is and how fast it is, and that looking changed nothing: for machines that have no
//! cargo, and for guests. `cargo xtask hil --tcti …` prints the same before its scenarios.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use hil_tests::tpm_report::{Fingerprint, ROUNDS, Report, ima_measures};

fn main() -> ExitCode {
    let tcti = std::env::args().nth(1).unwrap_or_else(|| "device:/dev/tpmrm0".into());
    match look(&tcti) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tpm-report: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing changed meanwhile.
fn look(tcti: &str) -> Result<bool> {
    let before = Fingerprint::of(tcti).with_context(|| format!("the TPM at {tcti}"))?;
    print!("{}", Report::of(tcti, ROUNDS)?);
    let ima = ima_measures();
    let changes = before.changes(&Fingerprint::of(tcti)?, ima);
    for line in &changes {
        println!("changed: {line}");
    }
    if changes.is_empty() {
        let kernel = if ima { " (PCR 10 is the kernel's: IMA measures)" } else { "" };
        println!("unchanged: {} PCRs, NV indices, persistent objects, lockout counter{kernel}", before.pcrs.len());
    }
    Ok(changes.is_empty())
}
