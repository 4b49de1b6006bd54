//! A TPM that went on without a reset: after sleep (TPM Resume) with its PCRs, after a start that follows
//! TPM2_Shutdown(STATE), as after hibernation (TPM Restart), without them.

use anyhow::{Result, ensure};
use hil_tests::vm::Vm;

use crate::need_vm;
use crate::site::{Node, ROLES, SOON, Site, tpm_command};

/// TPM2_Shutdown(TPM_SU_STATE), TPM 2.0 part 3.
const SHUTDOWN_STATE: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 1];

/// Only restartCount has moved.
fn restarted(node: &Node, vm: &Vm, before: (u32, u32)) -> Result<()> {
    let after = node.counters(vm)?;
    ensure!(after == (before.0, before.1 + 1), "counters before {before:?}, after {after:?}");
    Ok(())
}

#[test]
fn a_machine_that_slept_keeps_its_pcrs_and_its_good_name() -> Result<()> {
    need_vm!();
    let node = Site::shared()?.machine("edge-sleeper")?;
    let vm = node.first_boot(&node.boot()?)?;
    let before = node.counters(&vm)?;
    let releases = node.releases()?;
    let slept_ms = node.now_ms()?;
    vm.sleep_and_wake()?;
    restarted(&node, &vm, before)?;
    let now_ms = node.now_ms()?;
    let state = node.site.rig.wait_node(&node.name, "a good verdict after the sleep", SOON, |state| {
        state["trust"] == "good" && state["last_verdict"]["at_ms"].as_i64().is_some_and(|at_ms| at_ms > now_ms)
    })?;
    ensure!(state["last_verdict"]["explanation"]["phase"] == "delivered", "{state:#}");
    node.judged_anew("verifier", slept_ms)?;
    ensure!(state["phase"] == "delivered" && node.releases()? == releases, "it was delivered to again: {state:#}");
    vm.power_off()
}

#[test]
fn a_tpm_restart_is_judged_from_the_beginning_and_releases_nothing_a_second_time() -> Result<()> {
    need_vm!();
    let node = Site::shared()?.machine("edge-restarted")?;
    let vm = node.first_boot(&node.boot()?)?;
    let before = node.counters(&vm)?;
    let (delivered_ms, releases) = (node.delivered_ms()?, node.releases()?);
    let begun_ms = node.now_ms()?;
    // From here on nobody else uses the TPM: what is sent to it would undo the shutdown.
    vm.run("touch /run/quiet; killall trefoil-agent; sleep 2")?;
    tpm_command(&vm, "/dev/tpm0", &SHUTDOWN_STATE)?;
    vm.reset()?;
    vm.wait_ready()?;
    restarted(&node, &vm, before)?;
    for role in ROLES {
        node.judged_anew(role, begun_ms)?;
    }
    println!("{}", node.event("already_delivered")?);
    node.gets_nothing(&vm)?;
    ensure!((node.delivered_ms()?, node.releases()?) == (delivered_ms, releases), "a share left");
    vm.power_off()
}
