//! What a real TPM survives: nothing here resets, clears or provisions one. `cargo xtask hil --tcti device:/dev/tpmrm0`
//! runs it on this machine's; without that, on an emulated one.
//!
//! The phase PCR is extended, once for each run until the machine boots again: the policy here is `uncapped`, so that it
//! need not start from zero.

use std::{env, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use hil_tests::{
    apt::Tool,
    rig::{self, NodeAdd, Options, Rig},
    swtpm::{EkKind, Swtpm},
};

/// Real TPMs take their time.
const SOON: Duration = Duration::from_secs(120);

#[test]
fn a_policy_learned_from_a_node_lets_that_node_have_its_payload_and_stay_good() -> Result<()> {
    let given = env::var("TREFOIL_TCTI").ok();
    let emulated = match given {
        Some(_) => None,
        None => {
            if let Some(why) = rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools]) {
                println!("skipped: {why}");
                return Ok(());
            }
            let tpm = Swtpm::start(EkKind::P384AndRsa)?;
            tpm.play_firmware()?;
            Some(tpm)
        }
    };
    let tcti = given.or_else(|| emulated.as_ref().map(Swtpm::tcti)).context("no TPM")?;
    let rig = Rig::new(Options::default())?;
    let payload = rig.payload("real", &[("app.toml", b"answer = 42\n".as_slice())])?;
    let node = NodeAdd::id(rig.node_id_at(&tcti)?).payload(&payload).arg("--interval").arg("1s");
    rig.node_add("real", &node)?;
    let config = rig.agent_config("real")?;
    let agent = rig.agent_at(&tcti, "real", &config, rig.memory()?.join("real").join("payload"), &[])?;

    // Without a policy it is looked at, and trusted with nothing.
    rig.wait_event("real", "no_policy", SOON)?;
    ensure!(rig.node("real")?["trust"] == "none", "{}", rig.node("real")?);
    ensure!(rig.api_get("/nodes/real/releases")?.to_string().matches("nk_digest").count() == 0, "a share left");

    let learned = rig.dir().join("learned.toml");
    rig.trefoil(&["policy", "learn", "real", "--out", &learned.to_string_lossy()])?;
    let text = fs::read_to_string(&learned)?;
    ensure!(text.contains("phase_pcr = 13"), "{text}");
    fs::write(&learned, text.replace("phase_pcr = 13", "uncapped = true"))?;
    rig.trefoil(&["node", "set", "real", "--policy", &learned.to_string_lossy()])?;
    rig.wait_phase("real", "delivered", SOON)?;
    rig.wait_trust("real", "good", SOON)?;
    let files = agent.payload()?;
    ensure!(files.get("app.toml").is_some_and(|bytes| bytes == b"answer = 42\n"), "{:?}", files.keys());
    Ok(())
}
