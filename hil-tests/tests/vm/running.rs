//! What a machine does after its good boot: what it runs costs it its trust, and what it asks for once more it does not
//! get.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::need_vm;
use crate::site::{Node, SOON, Site};

#[test]
fn an_executable_that_the_policy_does_not_list_costs_the_node_its_trust_with_the_next_verdict() -> Result<()> {
    need_vm!();
    let node = Site::shared()?.machine("edge-ima")?;
    let vm = node.first_boot(&node.boot()?)?;
    vm.run("cp /bin/busybox /run/true && /run/true")?;
    let ran_ms = node.now_ms()?;
    // A verdict that was asked for after it ran, and is good, would have missed it.
    let mut missed = None;
    let state = node.site.rig.wait_node(&node.name, "trust failed", SOON, |state| {
        let verdict = &state["last_verdict"];
        if verdict["outcome"] == "good" && verdict["at_ms"].as_i64().is_some_and(|at_ms| at_ms > ran_ms) {
            missed = Some(verdict.clone());
        }
        state["trust"] == "failed"
    })?;
    ensure!(missed.is_none(), "a good verdict after it ran: {missed:#?}");
    let verdict = &state["last_verdict"];
    let took_ms = verdict["at_ms"].as_i64().map(|at_ms| at_ms - ran_ms);
    println!("the nonce of the verdict was made {took_ms:?} ms after the program had run (interval 1,000 ms)");
    let [finding] = Node::findings(verdict)? else { anyhow::bail!("not one finding: {verdict:#}") };
    let told = (&finding["code"], &finding["path"], &finding["pcr"]);
    let expected: (Value, Value, Value) = ("ima_file_unknown".into(), "/run/true".into(), 10.into());
    ensure!(told == (&expected.0, &expected.1, &expected.2) && finding["entry"].is_u64(), "{finding:#}");
    vm.power_off()
}

#[test]
fn whoever_opens_the_tpm_after_delivery_and_asks_as_the_agent_would_is_refused() -> Result<()> {
    need_vm!();
    let node = Site::shared()?.machine("edge-twice")?;
    let vm = node.first_boot(&node.boot()?)?;
    let (delivered_ms, releases) = (node.delivered_ms()?, node.releases()?);
    let agent = "trefoil-agent --once --timeout 20 --payload-dir /run/other/payload 2>&1";
    let (status, said) = vm.run_within(agent, SOON)?;
    ensure!(status == 4, "the second agent ended with {status}\n{said}");
    ensure!(vm.run("find /run/other -type f")?.is_empty(), "it has files");
    let event = node.event("phase_delivered")?;
    ensure!(event.detail.contains("phase PCR"), "{event}");
    println!("{event}");
    ensure!((node.delivered_ms()?, node.releases()?) == (delivered_ms, releases), "a share left");
    // The node itself is as good as before.
    let now_ms = node.now_ms()?;
    node.site.rig.wait_node(&node.name, "a good verdict after it", SOON, |state| {
        state["trust"] == "good" && state["last_verdict"]["at_ms"].as_i64().is_some_and(|at_ms| at_ms > now_ms)
    })?;
    vm.power_off()
}
