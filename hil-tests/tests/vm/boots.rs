//! What a machine booted decides: its payload comes after a good boot, each time, and after no other; and a verdict says
//! which event of the boot log it is about.

use anyhow::{Context, Result, ensure};
use hil_tests::apt::Tool;
use hil_tests::rig;
use hil_tests::vm::{self, Boot, Firmware, kernel, uki};
use serde_json::Value;

use crate::need_vm;
use crate::site::{Node, ROLES, SOON, Site};

/// Waits until both roles have refused a boot that began after `after_ms`, and gives each one's findings.
fn refused(node: &Node, after_ms: i64) -> Result<Vec<Vec<Value>>> {
    let of = |role: &&str| Ok(Node::findings(&node.verdict(role, after_ms, failed)?)?.to_vec());
    ROLES.iter().map(of).collect()
}

fn failed(verdict: &Value) -> bool {
    verdict["outcome"] == "failed"
}

/// The one finding with this code; there have to be no others unless `among_others`.
fn find<'f>(findings: &'f [Value], code: &str, among_others: bool) -> Result<&'f Value> {
    ensure!(among_others || findings.len() == 1, "more than one finding: {findings:#?}");
    findings.iter().find(|finding| finding["code"] == code).with_context(|| format!("no {code} in {findings:#?}"))
}

#[test]
fn evidence_of_a_good_boot_becomes_the_policy_that_delivers_the_payload_in_it_and_again_after_a_reboot() -> Result<()> {
    need_vm!();
    let node = Site::shared()?.machine("edge-boot")?;
    let vm = node.machine.power_on(&node.boot()?)?;
    vm.wait_ready()?;
    let policy = node.learn()?;
    for part in ["[boot]", "command_line = ", "[ima.files]", "\"/bin/trefoil-agent\" = ", "phase_pcr = 13"] {
        ensure!(policy.contains(part), "the policy lacks {part}:\n{policy}");
    }
    node.is_delivered(&vm, 0)?;
    let (delivered_ms, releases) = (node.delivered_ms()?, node.releases()?);
    let before = node.counters(&vm)?;
    let rebooted_ms = node.now_ms()?;
    vm.send("reboot -f")?;
    vm.wait_ready()?;
    node.is_delivered(&vm, delivered_ms)?;
    let after = node.counters(&vm)?;
    ensure!(after.0 > before.0, "counters before the reboot {before:?}, after it {after:?}");
    ensure!(node.releases()? > releases, "no share left in the second boot");
    for role in ROLES {
        node.judged_anew(role, rebooted_ms)?;
    }
    vm.power_off()
}

#[test]
fn another_command_line_and_another_initramfs_are_refused_and_the_good_ones_are_taken_again() -> Result<()> {
    need_vm!();
    let node = Site::shared()?.machine("edge-tampered")?;
    let good = node.boot()?;
    node.first_boot(&good)?.power_off()?;
    let delivered_ms = node.delivered_ms()?;

    let mut boot = good.clone();
    boot.command_line.push_str(" nokaslr");
    let begun_ms = node.now_ms()?;
    let vm = node.machine.power_on(&boot)?;
    for findings in refused(&node, begun_ms)? {
        let finding = find(&findings, "command_line_mismatch", false)?;
        ensure!(finding["pcr"] == 9 && finding["event"].is_u64(), "{finding:#}");
        let found = finding["found"].as_str().context("nothing found")?;
        ensure!(found.contains(" nokaslr"), "{finding:#}");
    }
    vm.wait_ready()?;
    node.gets_nothing(&vm)?;
    vm.power_off()?;

    let boot = Boot { initrd: node.initrd("evil")?, ..good.clone() };
    let begun_ms = node.now_ms()?;
    let vm = node.machine.power_on(&boot)?;
    for findings in refused(&node, begun_ms)? {
        let finding = find(&findings, "unknown_event", false)?;
        ensure!(finding["pcr"] == 9 && finding["event_type"] == "EV_EVENT_TAG", "{finding:#}");
        ensure!(finding["event"].is_u64(), "{finding:#}");
    }
    drop(vm);
    ensure!(node.delivered_ms()? == delivered_ms, "something was delivered");

    node.site.rig.trefoil(&["node", "resume", &node.name])?;
    let vm = node.machine.power_on(&good)?;
    vm.wait_ready()?;
    node.is_delivered(&vm, delivered_ms)?;
    vm.power_off()
}

#[test]
fn secure_boot_off_is_refused_where_the_policy_wants_it_on() -> Result<()> {
    need_vm!();
    if let Some(why) = rig::missing(&[Tool::Sbsign, Tool::Mtools]) {
        println!("{why}");
        return Ok(());
    }
    let node = Site::shared()?.machine("edge-secure")?;
    let mut boot = node.boot()?;
    let in_dir = |name: &str| node.machine.dir().join(name);
    uki::write(&node.site.kernel, &boot.initrd, vm::MEASURED, &in_dir("unsigned.efi"))?;
    kernel::sign(&in_dir("unsigned.efi"), &in_dir("signed.efi"))?;
    uki::disk(&in_dir("signed.efi"), &in_dir("disk"))?;
    boot.from_disk = true;
    boot.disks.push(in_dir("disk"));
    boot.firmware = Firmware::SecureBoot;
    let vm = node.machine.power_on(&boot)?;
    vm.wait_ready()?;
    let policy = node.learn()?;
    for part in ["secure_boot = \"on\"", "authorities = { only = ["] {
        ensure!(policy.contains(part), "the policy lacks {part}:\n{policy}");
    }
    node.is_delivered(&vm, 0)?;
    ensure!(vm.run("dmesg")?.contains("secureboot: Secure boot enabled"), "the kernel knows nothing of it");
    vm.power_off()?;

    boot.firmware = Firmware::Plain;
    let begun_ms = node.now_ms()?;
    let vm = node.machine.power_on(&boot)?;
    for findings in refused(&node, begun_ms)? {
        let finding = find(&findings, "secure_boot_off", true)?;
        ensure!(finding["pcr"] == 7 && finding["event"].is_u64(), "{finding:#}");
    }
    vm.wait_ready()?;
    node.gets_nothing(&vm)?;
    drop(vm);
    node.site.rig.wait_trust(&node.name, "failed", SOON)?;
    Ok(())
}
