//! The agent's two TPM backends on one TPM: whatever one of them finds, makes or proves, the other does too.
//!
//! One binary is the ordinary agent, the other is `TREFOIL_AGENT`, built with the feature `tss-esapi`
//! (`cargo xtask hil --backend tss-esapi` and `cargo xtask test` set it). They have the protocol in common and nothing
//! of the way to the TPM, so each is the other's oracle.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, anyhow, ensure};
use hil_tests::apt::Tool;
use hil_tests::rig;
use hil_tests::rogue::server::{Answered, Certificate, ChallengeSpec, RogueCa, RogueGateway};
use hil_tests::scratch::Scratch;
use hil_tests::spawn::{Launch, Program};
use hil_tests::swtpm::{EkKind, Swtpm};
use protocol::id::{NodeId, Role};
use protocol::message::attest::Purpose;
use protocol::message::enrol::Enrol;
use protocol::tpm::alg::HashAlg;
use protocol::tpm::attest::TpmsAttest;
use serde_json::Value;

/// Longer than anything takes that is going to happen.
const SOON: Duration = Duration::from_secs(30);
/// Not in ascending order of banks, and more PCRs than a TPM reads at a time.
const SELECTION: [(HashAlg, u32); 2] = [(HashAlg::Sha256, 0x00ff_ffff), (HashAlg::Sha1, 0x0000_20ff)];

/// Both agents: the ordinary one, and the one with `tss-esapi`. Leaves a test early, with a word, where there is only
/// one or no TPM emulator.
macro_rules! need_both {
    () => {{
        if let Some(why) = rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools, Tool::Openssl]) {
            println!("{why}");
            return Ok(());
        }
        let Some(esapi) = env::var_os("TREFOIL_AGENT") else {
            println!("skipped: TREFOIL_AGENT names no second agent (cargo xtask hil --backend tss-esapi does)");
            return Ok(());
        };
        [rig::binary("trefoil-agent")?, PathBuf::from(esapi)]
    }};
}

/// A TPM, a directory for settings, and a gateway that is honest as far as this goes.
struct Bench {
    tpm: Swtpm,
    gateway: RogueGateway,
    scratch: Scratch,
    config: PathBuf,
}

impl Bench {
    fn new(kind: EkKind) -> Result<Self> {
        let scratch = Scratch::new("backends")?;
        let ca = RogueCa::new("pinned CA")?;
        let gateway = RogueGateway::start(&ca, &Certificate::default())?;
        let config = scratch.path().join("agent.conf");
        let text = format!(
            "ca = {}\nserver = {}\nwants = attest\n",
            ca.write_pem(scratch.path())?.display(),
            gateway.address()?
        );
        fs::write(&config, text)?;
        let tpm = Swtpm::start(kind)?;
        tpm.play_firmware()?;
        Ok(Self { tpm, gateway, scratch, config })
    }

    fn command(&self, agent: &Path, config: &Path, extra: &[&str]) -> Command {
        let mut command = Command::new(agent);
        command.arg("--config").arg(config).args(["--tcti", &self.tpm.tcti()]).args(extra);
        command
    }

    /// What `--check` says of the TPM: each check's name and what was found. It is told no server: the gateway answers
    /// when a test waits for an agent, and at no other time.
    fn check(&self, agent: &Path, extra: &[&str]) -> Result<Vec<(String, Value)>> {
        let config = self.scratch.path().join("check.conf");
        fs::write(&config, "wants = attest\n")?;
        let output = self.command(agent, &config, extra).args(["--check", "--json"]).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&said).with_context(|| format!("--check said: {said}"))?;
        let checks = report["checks"].as_array().context("no checks")?;
        let of_the_tpm = |name: &str| ["tpm", "ek certificate", "node id", "ak name", "phase-pcr 13"].contains(&name);
        let named = checks.iter().filter_map(|check| Some((check["name"].as_str()?.to_owned(), check.clone())));
        Ok(named.filter(|(name, _)| of_the_tpm(name)).collect())
    }

    /// One agent from `hello` to two answered challenges, seen from the gateway, which knows nobody before.
    fn attested(&self, agent: &Path, extra: &[&str]) -> Result<Attested> {
        self.gateway.forget_nodes();
        let log = self.scratch.path().join("agent.log");
        let mut launch = Launch::new("agent", self.command(agent, &self.config, extra));
        launch.log = Some(&log);
        let program = Program::start(launch)?;
        let attested = || -> Result<Attested> {
            let mut session = self.gateway.accept(SOON)?;
            let node_id = session.wait_bound(SOON)?;
            ensure!(
                session.record.activations.last().is_some_and(|(_, is_right)| *is_right),
                "activation proves nothing"
            );
            let enrol = session.record.enrols.last().cloned().ok_or_else(|| anyhow!("no enrol"))?;
            let spec = |role| ChallengeSpec::new(role, Purpose::Attest).over(&SELECTION);
            let verifier = session.challenge(&spec(Role::Verifier))?;
            let tenant = session.challenge(&spec(Role::Tenant).with_credential())?;
            Ok(Attested { node_id, enrol, verifier, tenant })
        };
        attested().with_context(|| program.tail(20))
    }

    /// Whether both agents are the same node, with this many certificates, and prove the same.
    fn agree(&self, agents: &[PathBuf; 2], extra: &[&str], certificates: usize) -> Result<()> {
        let [direct, esapi] = agents;
        let (one, other) = (self.check(direct, extra)?, self.check(esapi, extra)?);
        ensure!(one.iter().any(|(name, _)| name == "ak name"), "--check does not name the AK: {one:?}");
        ensure!(one == other, "--check differs:\n{one:?}\n{other:?}");

        let (one, other) = (self.attested(direct, extra)?, self.attested(esapi, extra)?);
        ensure!(one.node_id == other.node_id, "two node ids: {} and {}", one.node_id, other.node_id);
        ensure!(one.enrol == other.enrol, "two enrolments:\n{:?}\n{:?}", one.enrol, other.enrol);
        ensure!(one.enrol.ek_chain.len() == certificates, "{} certificates", one.enrol.ek_chain.len());
        for (one, other) in [(&one.verifier, &other.verifier), (&one.tenant, &other.tenant)] {
            same_proof(one, other)?;
        }
        ensure!(
            one.tenant.credential_fits == Some(true) && other.tenant.credential_fits == Some(true),
            "no credential"
        );
        Ok(())
    }
}

/// What an agent said and proved.
struct Attested {
    node_id: NodeId,
    enrol: Enrol,
    verifier: Answered,
    tenant: Answered,
}

/// Two quotes over the same PCRs by the same AK of the same boot: only nonce and clock may differ.
fn same_proof(one: &Answered, other: &Answered) -> Result<()> {
    ensure!(one.binds && other.binds, "a quote binds something else");
    ensure!(one.evidence.pcrs == other.evidence.pcrs, "other values");
    let (first, second) = (attest(one)?, attest(other)?);
    ensure!(first.pcr_digest == second.pcr_digest, "two PCR digests");
    ensure!(first.qualified_signer == second.qualified_signer, "two signers");
    let (reset, restart) = (first.clock_info.reset_count, first.clock_info.restart_count);
    ensure!((reset, restart) == (second.clock_info.reset_count, second.clock_info.restart_count), "two epochs");
    let same_moment =
        TpmsAttest { clock_info: first.clock_info, extra_data: first.extra_data.clone(), ..second.clone() };
    ensure!(same_moment.encode() == one.evidence.attested[..], "quotes of another form");
    Ok(())
}

fn attest(answered: &Answered) -> Result<&TpmsAttest> {
    answered.attest.as_ref().context("no quote")
}

#[test]
fn both_backends_are_the_same_node_with_a_p384_ek() -> Result<()> {
    let agents = need_both!();
    Bench::new(EkKind::P384AndRsa)?.agree(&agents, &[], 1)
}

#[test]
fn both_backends_are_the_same_node_with_an_rsa_ek() -> Result<()> {
    let agents = need_both!();
    Bench::new(EkKind::P384AndRsa)?.agree(&agents, &["--ek", "rsa2048"], 1)
}

#[test]
fn both_backends_are_the_same_node_with_a_p256_ek() -> Result<()> {
    let agents = need_both!();
    Bench::new(EkKind::P256)?.agree(&agents, &[], 1)
}

#[test]
fn both_backends_are_the_same_node_without_a_certificate() -> Result<()> {
    let agents = need_both!();
    Bench::new(EkKind::NoCertificate)?.agree(&agents, &[], 0)
}

#[test]
fn a_node_that_one_backend_bound_is_known_through_the_other() -> Result<()> {
    let agents = need_both!();
    let bench = Bench::new(EkKind::P384AndRsa)?;
    for (first, second) in [(&agents[0], &agents[1]), (&agents[1], &agents[0])] {
        bench.attested(first, &[])?;
        let program = Program::start(Launch::new("agent", bench.command(second, &bench.config, &[])))?;
        let known = || -> Result<()> {
            let mut session = bench.gateway.accept(SOON)?;
            session.wait_bound(SOON)?;
            ensure!(session.record.enrols.is_empty(), "it had to enrol again");
            let spec = ChallengeSpec::new(Role::Tenant, Purpose::Attest).over(&SELECTION).with_credential();
            let answered = session.challenge(&spec)?;
            ensure!(answered.binds && answered.credential_fits == Some(true), "it proves nothing");
            Ok(())
        };
        known().with_context(|| program.tail(20))?;
    }
    Ok(())
}
