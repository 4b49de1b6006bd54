//! Who comes without having been admitted waits in quarantine, if one TPM holds its keys: an operator sees it, and lets it
//! in or not. Nothing comes of waiting, and whoever proves nothing does not even wait. And trust in a TPM's manufacturer
//! is taken back and given at once, without a restart.

mod hostile;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hil_tests::rig::{NodeAdd, Rig};
use hil_tests::rogue::tpm::RogueTpm;
use hil_tests::swtpm::EkKind;
use hostile::{A_WHILE, Bench, SOON, identity, patiently, refused_for};
use protocol::bytes::Array;
use protocol::message::enrol::{Activate, Wants};
use serde_json::Value;

/// The settings of an agent that nobody has added.
fn settings(rig: &Rig, name: &str) -> Result<PathBuf> {
    let operator = rig.operator_dir();
    let path = rig.dir().join(format!("{name}.conf"));
    let (ca, key) = (operator.join("server-ca.pem"), operator.join("tenant-key.pem"));
    let server = rig.gateway();
    fs::write(&path, format!("server = {server}\nca = {}\ntenant-key = {}\n", ca.display(), key.display()))?;
    Ok(path)
}

/// The node ids in quarantine.
fn waiting(rig: &Rig) -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&rig.trefoil(&["node", "list", "--quarantined", "--json"])?)?;
    Ok(list["nodes"].as_array().context("no nodes")?.clone())
}

fn is_waiting(rig: &Rig, node_id: &str) -> Result<bool> {
    Ok(waiting(rig)?.iter().any(|node| node["node_id"] == node_id))
}

#[test]
fn an_unknown_agent_is_listed_and_bound_and_attested_once_it_is_approved() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rig = &bench.rig;
    let tpm = bench.tpm(EkKind::P256)?;
    let node_id = rig.node_id(&tpm)?;
    let agent = rig.agent_with(&tpm, "unknown", &settings(rig, "unknown")?, &[])?;
    agent.wait_for_line(SOON, |line| line.contains("quarantined"))?;
    let list = waiting(rig)?;
    let listed = list.iter().find(|node| node["node_id"] == node_id.as_str()).context("it is not listed")?;
    ensure!(listed["hardware"].to_string().contains("certified"), "{listed}");
    ensure!(agent.payload()?.is_empty(), "a payload came");
    let told = rig.trefoil(&["ek", "explain", &node_id])?;
    ensure!(told.contains("it waits in quarantine") && told.contains("certified by"), "{told}");

    let policy = bench.capped.to_str().context("path")?;
    let approve =
        ["node", "approve", &node_id, "--name", "approved", "--reason", "seen at the depot", "--policy", policy];
    rig.trefoil(&approve)?;
    ensure!(!is_waiting(rig, &node_id)?, "it still waits");
    rig.wait_phase("approved", "bound", SOON)?;
    rig.wait_trust("approved", "good", SOON)?;
    let approved = rig.wait_event("approved", "approved", SOON)?;
    ensure!(approved.detail.contains("seen at the depot"), "{approved:?}");
    Ok(())
}

#[test]
fn a_stranger_without_a_valid_activation_is_not_listed() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let tpm = bench.tpm(EkKind::P256)?;
    let stranger = identity(&tpm)?;
    let mark = bench.mark()?;
    let mut agent = bench.connect()?;
    agent.hello(&stranger, Wants::Payload)?;
    let answer = agent.enrol(&stranger, None)?;
    let made_up = Activate { enrolment_id: answer.enrolment_id, proof: Array([0x5a; 32]) };
    refused_for(agent.activate_with(&made_up), "bad_activation")?;
    bench.expect(&mark, stranger.node_id, "registrar", "bad_activation")?;
    ensure!(!is_waiting(&bench.rig, &stranger.node_id.to_string())?, "it is listed without a proof");
    // With one it is listed; rejected, it is off the list; and nobody asks it for anything.
    let mut agent = patiently(|| {
        let mut agent = bench.connect()?;
        agent.hello(&stranger, Wants::Payload)?;
        Ok(agent)
    })?;
    let answer = agent.enrol(&stranger, None)?;
    refused_for(agent.activate(&RogueTpm::of(&tpm), &stranger, &answer), "quarantined")?;
    let node_id = stranger.node_id.to_string();
    ensure!(is_waiting(&bench.rig, &node_id)?, "it is not listed with its proof");
    bench.rig.trefoil(&["node", "reject", &node_id, "--reason", "not ours"])?;
    ensure!(!is_waiting(&bench.rig, &node_id)?, "it is listed still");
    bench.expect(&mark, stranger.node_id, "registrar", "rejected")?;
    ensure!(agent.next_request(A_WHILE)?.is_none(), "a node in quarantine was asked for something");
    Ok(())
}

/// Takes every certificate out of the bundle, and gives them.
fn take_roots(bench: &Bench) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(bench.ca.roots_dir())? {
        let path = entry?.path();
        kept.push((path.clone(), fs::read(&path)?));
        fs::remove_file(path)?;
    }
    Ok(kept)
}

#[test]
fn a_good_node_fails_long_before_its_next_round_when_its_manufacturer_is_trusted_no_more() -> Result<()> {
    need_tpm!();
    let bench = Bench::new()?;
    let rig = &bench.rig;
    let node = NodeAdd::join().payload(&bench.payload).policy(&bench.capped).arg("--interval").arg("10m");
    rig.node_add("running", &node)?;
    let tpm = bench.tpm(EkKind::P256)?;
    let _agent = rig.agent(&tpm, "running", &[])?;
    rig.wait_phase("running", "delivered", SOON)?;
    rig.wait_trust("running", "good", SOON)?;
    take_roots(&bench)?;
    let node = rig.wait_trust("running", "failed", SOON)?;
    ensure!(node["last_verdict"].to_string().contains("hardware_unproven"), "{node}");
    Ok(())
}

#[test]
fn a_manufacturer_that_is_trusted_no_more_is_noticed_at_once_and_without_a_restart() -> Result<()> {
    need_tpm!();
    let bench = Bench::new()?;
    let rig = &bench.rig;
    let token = bench.add_by_join("joined", &[])?;
    let tpm = bench.tpm(EkKind::P256)?;
    let who = identity(&tpm)?;
    let mut agent = bench.connect()?;
    agent.bind(&RogueTpm::of(&tpm), &who, Wants::Attest, Some(&token))?;
    let hardware = || -> Result<String> { Ok(rig.node("joined")?["hardware"].to_string()) };
    let wait_hardware = |wanted: &str| -> Result<()> {
        let deadline = Instant::now() + SOON;
        while !hardware()?.contains(wanted) {
            ensure!(Instant::now() < deadline, "hardware is {}, not {wanted}", hardware()?);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    wait_hardware("certified")?;
    let mark = bench.mark()?;
    let kept = take_roots(&bench)?;
    wait_hardware("unproven")?;
    let told = bench.expect(&mark, who.node_id, "registrar", "hardware_unproven")?;
    ensure!(told.detail.contains("ek_untrusted"), "{told:?}");
    let mark = bench.mark()?;
    for (path, bytes) in kept {
        fs::write(path, bytes)?;
    }
    wait_hardware("certified")?;
    bench.expect(&mark, who.node_id, "registrar", "hardware_proven")?;
    Ok(())
}
