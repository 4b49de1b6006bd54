//! What the owner of a real TPM survives: enrolment, activation, quotes and attestation, without one PCR extended, one byte
//! of NV written, one object made to stay. `cargo xtask hil --tcti device:/dev/tpmrm0` runs it on this machine's; without
//! that, on an emulated one, whose PCRs are compared in the same way.
//!
//! The agent attests and asks for no payload: without pinned keys there are no pins to measure. An extended PCR could keep
//! the owner's disk locked until the next boot.

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use hil_tests::{
    apt::Tool,
    rig::{self, NodeAdd, Options, Rig},
    rogue::tpm::Batch,
    swtpm::{EkKind, Swtpm},
    tpm_report::{Fingerprint, Report, ima_measures},
};
use protocol::tpm::{
    alg::HashAlg,
    command::{self, Auth},
};

/// Real TPMs take their time.
const SOON: Duration = Duration::from_secs(120);

/// The TPM that is meant: the given one, or an emulated one that is alive as long as this.
struct Meant {
    tcti: String,
    emulated: Option<Swtpm>,
}

impl Meant {
    /// `None`, and a line, where there is none.
    fn find() -> Result<Option<Self>> {
        if let Ok(tcti) = env::var("TREFOIL_TCTI") {
            return Ok(Some(Self { tcti, emulated: None }));
        }
        if let Some(why) = rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools]) {
            println!("{why}");
            return Ok(None);
        }
        let tpm = Swtpm::start(EkKind::P384AndRsa)?;
        tpm.play_firmware()?;
        Ok(Some(Self { tcti: tpm.tcti(), emulated: Some(tpm) }))
    }

    /// Fails if anything in the TPM is not as it was. An emulated one has no kernel that would measure into it.
    fn is_unchanged_since(&self, before: &Fingerprint) -> Result<()> {
        let changes = before.changes(&Fingerprint::of(&self.tcti)?, self.emulated.is_none() && ima_measures());
        ensure!(changes.is_empty(), "the TPM was changed: {changes:#?}");
        Ok(())
    }
}

/// The node's settings as the control plane gives them, but for attestation alone: no key is pinned.
fn attest_only(rig: &Rig, name: &str) -> Result<PathBuf> {
    let path = rig.agent_config(name)?;
    let text = fs::read_to_string(&path)?;
    let lines = text.lines().filter(|line| !line.starts_with("tenant-key"));
    let settings = lines.chain(["wants = attest"]).fold(String::new(), |all, line| all + line + "\n");
    fs::write(&path, settings)?;
    Ok(path)
}

#[test]
fn a_node_enrols_and_attests_across_restarts_without_a_trace_in_its_tpm() -> Result<()> {
    let Some(meant) = Meant::find()? else { return Ok(()) };
    let before = Fingerprint::of(&meant.tcti)?;
    let rig = Rig::new(Options::default())?;
    rig.node_add("real", &NodeAdd::id(rig.node_id_at(&meant.tcti)?).arg("--interval").arg("1s"))?;
    let config = attest_only(&rig, "real")?;
    let home = rig.memory()?.join("real").join("payload");
    let agent = rig.agent_at(&meant.tcti, "real", &config, home.clone(), &[])?;

    // Without a policy it is looked at, and trusted with nothing.
    rig.wait_event("real", "no_policy", SOON)?;
    ensure!(rig.node("real")?["trust"] == "none", "{}", rig.node("real")?);

    let learned = rig.dir().join("learned.toml");
    rig.trefoil(&["policy", "learn", "real", "--out", &learned.to_string_lossy()])?;
    let text = fs::read_to_string(&learned)?;
    ensure!(text.contains("phase_pcr = 13"), "{text}");
    fs::write(&learned, text.replace("phase_pcr = 13", "uncapped = true"))?;
    rig.trefoil(&["node", "set", "real", "--policy", &learned.to_string_lossy()])?;
    rig.wait_trust("real", "good", SOON)?;

    // A known node comes back without being enrolled again.
    agent.kill()?;
    drop(agent);
    rig.wait_trust("real", "stale", SOON)?;
    let agent = rig.agent_at(&meant.tcti, "real", &config, home, &[])?;
    rig.wait_trust("real", "good", SOON)?;
    ensure!(agent.steps().iter().all(|step| step.step != "enrol"), "the node was enrolled twice");
    agent.kill()?;
    drop(agent);

    ensure!(rig.api_get("/nodes/real/releases")?.to_string().matches("nk_digest").count() == 0, "a share left");
    meant.is_unchanged_since(&before)
}

#[test]
fn the_report_tells_what_the_tpm_is_and_leaves_no_trace_either() -> Result<()> {
    let Some(meant) = Meant::find()? else { return Ok(()) };
    let before = Fingerprint::of(&meant.tcti)?;
    let report = Report::of(&meant.tcti, 3)?;
    meant.is_unchanged_since(&before)?;
    let text = report.to_string();
    ensure!(!report.manufacturer.is_empty() && report.algorithms.iter().any(|name| name == "sha256"), "{text}");
    ensure!(report.timings.len() >= 7 && report.timings.iter().all(|timing| timing.times.len() == 3), "{text}");
    if let Some(tpm) = &meant.emulated {
        // The other program's word for the same.
        let fixed = tpm.tpm2("tpm2_getcap", &["properties-fixed"])?;
        ensure!(fixed.contains(&format!("value: \"{}\"", report.manufacturer)), "{fixed}{text}");
        let revision = report.specification.split_whitespace().skip_while(|word| *word != "revision").nth(1);
        let revision = revision.context("no revision")?.trim_end_matches(',');
        ensure!(fixed.contains(&format!("value: {revision}")), "{fixed}{text}");
        let found: Vec<_> = report.eks.iter().map(|ek| matches!(ek.certificate, Some((_, _, true)))).collect();
        ensure!(found == [false, true, true], "certificates of P-384 and RSA: {text}");
        ensure!(text.contains("swtpm-localca"), "the issuer is not named: {text}");
    }
    Ok(())
}

#[test]
fn what_would_leave_a_trace_is_refused_before_it_is_sent() -> Result<()> {
    let Some(meant) = Meant::find()? else { return Ok(()) };
    let before = Fingerprint::of(&meant.tcti)?;
    let mut batch = Batch::harmless(&meant.tcti)?;
    // Not the phase PCR either, and no PCR that could be reset.
    ensure!(batch.pcr_event(13, b"x").is_err() && batch.pcr_event(16, b"x").is_err(), "PCR_Event went out");
    let digest = HashAlg::Sha256.digest(&[b"x"]);
    ensure!(batch.pcr_extend(16, HashAlg::Sha256, &digest).is_err(), "PCR_Extend went out");
    let evict = command::evict_control(0x8000_0000, 0x8101_7f00).authorized(&[Auth::EmptyPassword]);
    ensure!(batch.raw(&evict).is_err(), "EvictControl went out");
    ensure!(batch.raw(&command::startup().plain()).is_err(), "Startup went out");
    drop(batch);
    ensure!(Batch::harmless("device:/dev/tpm0").is_err(), "a device without resource manager was taken");
    ensure!(Batch::harmless("tabrmd:").is_err(), "what is not known was taken");
    meant.is_unchanged_since(&before)
}
