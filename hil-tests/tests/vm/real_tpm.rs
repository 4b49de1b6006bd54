//! The scenarios for real TPMs, on the TPM that a real kernel drives: nothing in it is changed, the kernel's own PCR apart.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hil_tests::spawn;
use hil_tests::vm::{self, Appliance, Boot, Vm};

use crate::need_vm;
use crate::site::{SOON, Site};

/// Every PCR of every bank but the one that IMA extends, as the kernel tells them.
fn pcrs(vm: &Vm) -> Result<String> {
    let script =
        "cd /sys/class/tpm/tpm0; for pcr in pcr-*/*; do case $pcr in */10) ;; *) echo $pcr $(cat $pcr);; esac; done";
    let said = vm.run(script)?;
    ensure!(said.contains("pcr-sha256/13 0000000000"), "no PCRs, or the phase PCR was extended: {said}");
    Ok(said)
}

/// The files that a dynamic program takes: itself at `to`, stripped, and its libraries where they are here.
fn with_program(mut appliance: Appliance, program: &Path, to: &str, dir: &Path) -> Result<Appliance> {
    let stripped = dir.join("stripped");
    spawn::run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    for line in spawn::run(Command::new("ldd").arg(program))?.lines() {
        // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)`; the kernel's own has no path.
        let path = line.split("=> ").last().unwrap_or(line).split_whitespace().next();
        if let Some(path) = path.filter(|path| path.starts_with('/')) {
            appliance = appliance.file(path.trim_start_matches('/'), 0o755, &fs::read(path)?);
        }
    }
    Ok(appliance.file(to, 0o755, &fs::read(stripped)?))
}

#[test]
fn the_tpm_of_a_running_kernel_is_reported_and_attested_without_a_trace() -> Result<()> {
    need_vm!();
    let site = Site::shared()?;
    let node = site.machine("edge-real")?;
    let settings = node.machine.dir().join("settings");
    let dir = settings.to_str().context("the scratch path is not text")?;
    let server = format!("{}:{}", vm::HOST, site.rig.gateway().port());
    site.rig.trefoil(&["agent-config", "edge-real", "--server", &server, "--dir", dir, "--at", "/etc/trefoil"])?;
    // Attestation alone: no key is pinned, so that there are no pins to measure.
    let conf = settings.join("agent.conf");
    let text = fs::read_to_string(&conf)?;
    let lines = text.lines().filter(|line| !line.starts_with("tenant-key")).chain(["wants = attest"]);
    fs::write(&conf, lines.map(|line| format!("{line}\n")).collect::<String>())?;
    let appliance = Appliance::new(&site.kernel)?.settings(&settings)?;
    let program = Path::new(env!("CARGO_BIN_EXE_tpm-report"));
    let initrd = node.machine.dir().join("initrd");
    with_program(appliance, program, "bin/tpm-report", node.machine.dir())?.write(&initrd)?;

    let vm = node.machine.power_on(&Boot::new(&site.kernel.image, &initrd))?;
    vm.wait_ready()?;
    let before = pcrs(&vm)?;
    let (status, report) = vm.run_within("tpm-report 2>&1", SOON)?;
    println!("{report}");
    ensure!(status == 0 && report.contains("unchanged: ") && report.contains("IMA measures"), "{status}\n{report}");
    for line in ["TPM at device:/dev/tpmrm0", "made by       IBM", "TPM2_Quote (0 to 7, sha256)"] {
        ensure!(report.contains(line), "no `{line}` in:\n{report}");
    }
    let ek = report.lines().find(|line| line.contains("EK p256")).context("no EK")?;
    ensure!(ek.contains("certificate of ") && ek.ends_with("the agent takes this one"), "{ek}");

    // What was run until here is in the list that the policy is learned from.
    let rig = &site.rig;
    rig.wait_event("edge-real", "no_policy", SOON)?;
    let learned = rig.trefoil(&["policy", "learn", "edge-real"])?;
    let policy = node.machine.dir().join("learned.toml");
    fs::write(&policy, learned.replace("phase_pcr = 13", "uncapped = true"))?;
    rig.trefoil(&["node", "set", "edge-real", "--policy", policy.to_str().context("a path that is not text")?])?;
    rig.wait_trust("edge-real", "good", SOON)?;

    let check = vm.try_run("trefoil-agent --check")?.1;
    ensure!(check.contains("ok       tpm: made by IBM") && check.contains("ok       node id: "), "{check}");
    let after = pcrs(&vm)?;
    ensure!(before == after, "PCRs were\n{before}and are\n{after}");
    vm.power_off()
}
