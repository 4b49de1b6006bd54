//! Signed policies: where the roles want the operator's signature, a policy without it is neither taken nor used, whatever
//! is in the database.

mod fleet;

use std::fs;

use anyhow::{Result, ensure};
use fleet::{Fleet, SOON};
use hil_tests::rig::{Options, Rig};
use hil_tests::swtpm::EkKind;

/// Has both roles insist on the operator's signature.
fn insist(rig: &Rig) -> Result<()> {
    fs::write(rig.data_dir().join("policy-key.pem"), rig.trefoil(&["policy", "key"])?)?;
    let settings = rig.data_dir().join("trefoil.toml");
    let text = fs::read_to_string(&settings)?;
    let keys = "policy_keys = [\"policy-key.pem\"]";
    let text = ["[verifier]", "[tenant]"]
        .iter()
        .fold(text, |text, section| text.replacen(&format!("{section}\n"), &format!("{section}\n{keys}\n"), 1));
    ensure!(text.matches(keys).count() >= 2, "the settings lack a section");
    Ok(fs::write(settings, text)?)
}

#[test]
fn a_stored_policy_without_the_wanted_signature_is_not_used_and_a_signed_one_is() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::new(Options::default())?;
    let rig = &fleet.rig;
    let node = fleet.node("edge-1")?;

    rig.stop_server()?;
    insist(rig)?;
    rig.start_server()?;
    let told = rig.wait_event(&node.name, "policy_unsigned", SOON)?;
    ensure!(told.detail.contains("not signed"), "{told:?}");
    // No verdict any more: what it had runs out.
    rig.wait_trust(&node.name, "stale", SOON)?;

    let plain = fleet.policy.to_string_lossy().into_owned();
    let refused = rig.trefoil(&["policy", "add", &plain]).expect_err("an unsigned policy is refused");
    ensure!(format!("{refused:#}").contains("only signed policies"), "{refused:#}");

    let signed = rig.dir().join("edge.signed.json").to_string_lossy().into_owned();
    rig.trefoil(&["policy", "sign", &plain, "--out", &signed])?;
    rig.trefoil(&["node", "set", &node.name, "--policy", &signed])?;
    let state = rig.wait_trust(&node.name, "good", SOON)?;
    ensure!(state["last_verdict"]["policy"] == state["policy"], "{state}");
    // The same rules under another address: nothing differs.
    rig.trefoil(&["policy", "diff", &plain, &signed])?;
    Ok(())
}

#[test]
fn a_key_file_that_is_not_there_keeps_the_server_from_starting() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::new(Options::default())?;
    fleet.rig.stop_server()?;
    insist(&fleet.rig)?;
    fs::remove_file(fleet.rig.data_dir().join("policy-key.pem"))?;
    let error = fleet.rig.start_server().expect_err("it must not start");
    ensure!(format!("{error:#}").contains("policy-key.pem"), "{error:#}");
    Ok(())
}

#[test]
fn verifier_and_tenant_judge_by_their_own_policies() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::new(Options::default())?;
    let rig = &fleet.rig;
    let node = fleet.expected("split", EkKind::P256)?;
    let strict = rig.dir().join("strict.toml");
    fs::write(&strict, fleet::policy_for("strict", &"ee".repeat(32)))?;
    let (strict, good) = (strict.to_string_lossy().into_owned(), fleet.policy.to_string_lossy().into_owned());
    rig.trefoil(&["node", "set", "split", "--policy", &strict, "--verifier-policy", &good])?;
    let _agent = rig.agent(&node.tpm, "split", &[])?;
    // The verifier is content, the tenant is not, so no share of its own leaves.
    rig.wait_trust("split", "good", SOON)?;
    let told = rig.wait_event("split", "pcr_mismatch", SOON)?;
    ensure!(told.role == "tenant", "{told:?}");
    ensure!(fleet.releases("split")?.iter().all(|release| release["role"] != "tenant"));
    Ok(())
}
