//! What the scenarios of hostile control planes stand on: the real agent on a TPM of its own, and nobody but a
//! [`RogueGateway`] to talk to.
//!
//! One [`Stage`] serves all tests of a file that run at the same time, and ends with the last of them: a static would
//! never be dropped and would leave its directories behind. A [`Scene`] is one test's part of it. What a gateway does
//! wrong, and what the agent has to say about it, is the scenarios' business.
#![allow(dead_code, reason = "each file of scenarios uses a part of this")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hil_tests::rig::{Agent, Options, Rig};
use hil_tests::rogue::Reply;
use hil_tests::rogue::server::{
    Answered, Certificate, ChallengeSpec, RogueCa, RogueGateway, RogueSealing, RogueSession,
};
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use protocol::coap::frame::Code;
use protocol::coap::route::RouteName;
use protocol::crypto::manifest::{DELIVERED_EVENT, pins_event};
use protocol::crypto::{TenantPublicKey, TenantSigningKey};
use protocol::id::{NodeId, Role, Subject};
use protocol::message::attest::Purpose;
use protocol::message::provision::ReportKind;
use protocol::tpm::alg::{Digest, HashAlg};
use protocol::tpm::pcr::{event_digest, extend};
use rand_core::OsRng;

/// Longer than anything takes that is going to happen.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long something is watched for that must not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(500);
/// The agent's phase PCR, by default.
const PHASE_PCR: u32 = 13;
/// What honest payloads hold here.
pub(crate) const FILES: [(&str, &[u8]); 2] = [("app.toml", b"answer = 42\n"), ("keys/disk.key", b"for this node\n")];

/// Leaves a test early, with a word, where the machine has no TPM emulator or no memory file system can be had.
#[macro_export]
macro_rules! need_stage {
    () => {
        use hil_tests::apt::Tool;
        if let Some(why) = hil_tests::rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools]) {
            println!("{why}");
            return Ok(());
        }
        // Held to the end of the test: another stage would have another authority.
        let held = misled::Stage::shared()?;
        if let Err(why) = held.rig.memory() {
            println!("skipped: {why:#}");
            return Ok(());
        }
    };
}

/// What all scenes have in common. The rig's own control plane is never spoken to: its directories and its way of
/// starting agents are what it is here for.
pub(crate) struct Stage {
    /// The certificate authority that agents pin.
    pub(crate) ca: RogueCa,
    /// The tenant's key that agents pin.
    pub(crate) signing: TenantSigningKey,
    ca_file: PathBuf,
    key_file: PathBuf,
    vendor: Arc<SwtpmCa>,
    /// Those that no scene uses now.
    tpms: Mutex<Vec<Swtpm>>,
    pub(crate) rig: Rig,
}

impl Stage {
    /// The stage that the tests of this file share.
    pub(crate) fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Stage>> = Mutex::new(Weak::new());
        let mut slot = lock(&SHARED);
        if let Some(there) = slot.upgrade() {
            return Ok(there);
        }
        let made = Arc::new(Self::new()?);
        *slot = Arc::downgrade(&made);
        Ok(made)
    }

    fn new() -> Result<Self> {
        let rig = Rig::new(Options::default())?;
        let ca = RogueCa::new("pinned CA")?;
        let ca_file = ca.write_pem(rig.dir())?;
        let signing = TenantSigningKey::generate(&mut OsRng);
        let key_file = rig.dir().join("tenant-key.pem");
        fs::write(&key_file, spki_pem(&signing.public()))?;
        Ok(Self { ca, signing, ca_file, key_file, vendor: SwtpmCa::new()?, tpms: Mutex::default(), rig })
    }

    /// A TPM after a reset, used by nobody else.
    fn tpm(&self) -> Result<Swtpm> {
        let free = lock(&self.tpms).pop();
        match free {
            Some(tpm) => {
                tpm.reset()?;
                Ok(tpm)
            }
            None => Swtpm::start_with(EkKind::NoCertificate, &self.vendor),
        }
    }

    /// An honest gateway of the pinned authority.
    pub(crate) fn gateway(&self) -> Result<RogueGateway> {
        RogueGateway::start(&self.ca, &Certificate::default())
    }

    /// The honest payload, sealed for a node by the pinned tenant.
    pub(crate) fn sealing(&self, node: NodeId) -> Result<RogueSealing> {
        RogueSealing::new(Subject::Node(node), &self.signing, &FILES)
    }

    /// What the phase PCR holds after these events of ours, as tpm2-tools print it.
    fn phase(&self, autorun: bool, delivered: bool) -> Result<String> {
        let pins = pins_event(&[self.signing.public()], autorun)?;
        let mut value = Digest::zero(HashAlg::Sha256);
        for event in [pins.as_slice(), DELIVERED_EVENT].into_iter().take(1 + usize::from(delivered)) {
            value = extend(HashAlg::Sha256, &value, &event_digest(HashAlg::Sha256, event))?;
        }
        Ok(hex::encode(value.as_bytes()))
    }
}

/// What a scene's settings file says besides the pinned authority.
#[derive(Clone, Debug)]
pub(crate) struct Conf<'a> {
    /// Gateways, in the order in which they are tried; the scene's own if there is none.
    pub(crate) servers: &'a [SocketAddr],
    /// Pins the tenant's key.
    pub(crate) pinned: bool,
    /// More lines.
    pub(crate) lines: &'a str,
}

impl Default for Conf<'_> {
    fn default() -> Self {
        Self { servers: &[], pinned: true, lines: "" }
    }
}

/// One agent on one TPM, with a payload directory of its own and a gateway that it will find.
pub(crate) struct Scene {
    /// Before the TPM: it ends first.
    agent: Option<Agent>,
    pub(crate) gateway: RogueGateway,
    name: String,
    config: PathBuf,
    payload_dir: PathBuf,
    autorun: bool,
    tpm: Option<Swtpm>,
    pub(crate) stage: Arc<Stage>,
}

impl Scene {
    /// A scene with everything in order; no agent runs yet.
    pub(crate) fn new(name: &str) -> Result<Self> {
        Self::with(name, &Conf::default())
    }

    /// As [`Scene::new`], with settings of one's own.
    pub(crate) fn with(name: &str, conf: &Conf<'_>) -> Result<Self> {
        let stage = Stage::shared()?;
        let payload_dir = stage.rig.memory()?.join(name).join("payload");
        let config = stage.rig.dir().join(format!("{name}.conf"));
        let gateway = stage.gateway()?;
        let mut text = format!("ca = {}\n{}\n", stage.ca_file.display(), conf.lines);
        if conf.servers.is_empty() {
            writeln!(text, "server = {}", gateway.address()?)?;
        }
        for server in conf.servers {
            writeln!(text, "server = {server}")?;
        }
        if conf.pinned {
            writeln!(text, "tenant-key = {}", stage.key_file.display())?;
        }
        fs::write(&config, text)?;
        let autorun = conf.lines.contains("autorun = on");
        Ok(Self {
            agent: None,
            gateway,
            name: name.into(),
            config,
            payload_dir,
            autorun,
            tpm: Some(stage.tpm()?),
            stage,
        })
    }

    /// The same with its payload directory somewhere else.
    #[must_use]
    pub(crate) fn payload_at(mut self, dir: PathBuf) -> Self {
        self.payload_dir = dir;
        self
    }

    /// Starts the agent, after ending the one that runs: what is in memory is lost, the TPM and the payload stay.
    pub(crate) fn start(&mut self) -> Result<&Agent> {
        self.start_with(&[])
    }

    /// As [`Scene::start`], with more arguments.
    pub(crate) fn start_with(&mut self, extra: &[&str]) -> Result<&Agent> {
        self.agent = None;
        let tcti = self.tpm()?.tcti();
        let agent = self.stage.rig.agent_at(&tcti, &self.name, &self.config, self.payload_dir.clone(), extra)?;
        Ok(self.agent.insert(agent))
    }

    /// Ends the agent and takes the TPM's power: the machine boots anew.
    pub(crate) fn reboot(&mut self) -> Result<()> {
        self.agent = None;
        self.tpm()?.reset()
    }

    /// Waits for the agent at the scene's gateway, and for the node to be bound there.
    pub(crate) fn session(&self) -> Result<RogueSession> {
        self.session_at(&self.gateway)
    }

    /// As [`Scene::session`], at another gateway.
    pub(crate) fn session_at(&self, gateway: &RogueGateway) -> Result<RogueSession> {
        let deadline = Instant::now() + SOON;
        loop {
            let session = gateway.accept(SOON).and_then(|mut session| session.wait_bound(SOON).map(|_| session));
            if session.is_ok() || Instant::now() >= deadline {
                return session.with_context(|| self.tail());
            }
            // One that an agent began which was ended meanwhile: the next is the living one's.
        }
    }

    /// Waits for the agent at the scene's gateway, and answers nothing yet.
    pub(crate) fn connection(&self) -> Result<RogueSession> {
        let deadline = Instant::now() + SOON;
        loop {
            let session = self.gateway.accept(SOON);
            if session.is_ok() || Instant::now() >= deadline {
                return session.with_context(|| self.tail());
            }
            // As above.
        }
    }

    /// Starts the agent, waits until the node is bound, and seals its payload: the desk serves it.
    pub(crate) fn ready(&mut self) -> Result<(RogueSession, RogueSealing)> {
        self.start()?;
        let mut session = self.session()?;
        let sealing = self.stage.sealing(session.node_id()?)?;
        session.desk.sealings.insert(sealing.sealing_id, sealing.clone());
        Ok((session, sealing))
    }

    /// The running agent.
    pub(crate) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// Its TPM.
    pub(crate) fn tpm(&self) -> Result<&Swtpm> {
        self.tpm.as_ref().context("the TPM was given back")
    }

    /// Where the payload goes.
    pub(crate) fn payload_dir(&self) -> &Path {
        &self.payload_dir
    }

    /// Waits for the agent to say this.
    pub(crate) fn says(&self, words: &str) -> Result<String> {
        self.agent()?
            .wait_for_line(SOON, |line| line.contains(words))
            .with_context(|| format!("the agent does not say `{words}`"))
    }

    /// The agent's last lines.
    pub(crate) fn tail(&self) -> String {
        self.agent.as_ref().map_or_else(String::new, |agent| agent.tail(20))
    }

    /// Nothing came of what the gateway did: no file, no half of one, no `confirm`, no "delivered" in the phase PCR.
    pub(crate) fn nothing_came(&self) -> Result<()> {
        ensure!(self.files()?.is_empty(), "files are in place: {:?}", self.files()?.keys());
        self.nothing_new()
    }

    /// As [`Scene::nothing_came`], where an earlier payload is in place.
    pub(crate) fn nothing_new(&self) -> Result<()> {
        if let Some(parent) = self.payload_dir.parent().filter(|parent| parent.exists()) {
            for entry in fs::read_dir(parent)? {
                let name = entry?.file_name();
                ensure!(
                    Some(name.as_os_str()) == self.payload_dir.file_name() || name == "filler",
                    "{} was left beside the payload directory",
                    name.display()
                );
            }
        }
        let steps = self.agent()?.steps();
        let late = steps.iter().find(|step| ["confirm", "delivered"].contains(&step.step.as_str()));
        ensure!(late.is_none(), "the agent went on to {late:?}\n{}", self.tail());
        ensure!(self.phase()? == self.stage.phase(self.autorun, false)?, "the phase PCR is not that of the pins alone");
        Ok(())
    }

    /// Waits for a right `confirm`; then these files, and no others, are in place, and the phase PCR says so.
    pub(crate) fn takes(&self, session: &mut RogueSession, files: &[(&str, &[u8])]) -> Result<()> {
        let confirmed = session.wait_confirm(SOON).with_context(|| self.tail())?;
        ensure!(confirmed.is_right, "the confirm proves nothing");
        let wanted: BTreeMap<_, _> = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
        ensure!(self.files()? == wanted, "in place are {:?}", self.files()?.keys());
        ensure!(
            self.phase()? == self.stage.phase(self.autorun, true)?,
            "the phase PCR does not say that it was delivered"
        );
        Ok(())
    }

    /// Waits for the report of a payload that was given up, and the end of the connection. Nothing may have come of it.
    pub(crate) fn gives_up(
        &self,
        session: &mut RogueSession,
        sealing: &RogueSealing,
        kind: ReportKind,
        words: &str,
    ) -> Result<()> {
        self.reports(session, sealing, kind, words)?;
        let closed = session.wait_closed(SOON)?;
        ensure!(closed.is_some(), "the agent keeps the connection\n{}", self.tail());
        ensure!(session.record.confirms.is_empty() && session.record.reports.is_empty(), "{:?}", session.record);
        self.says(words)?;
        self.nothing_new()
    }

    /// Waits for a report about this sealing, and takes it off the record.
    pub(crate) fn reports(
        &self,
        session: &mut RogueSession,
        sealing: &RogueSealing,
        kind: ReportKind,
        words: &str,
    ) -> Result<()> {
        // It may have come together with an answer that was waited for: the first that was not looked at yet.
        session.serve_until(SOON, |record| !record.reports.is_empty()).with_context(|| self.tail())?;
        let report = session.record.reports.remove(0);
        let text = String::from_utf8_lossy(&report.text);
        ensure!(report.kind == kind && text.contains(words), "it reports {:?}: {text}", report.kind);
        ensure!(report.sealing_id == sealing.sealing_id && report.code == 0, "it reports another sealing: {report:?}");
        Ok(())
    }

    /// What is in place.
    pub(crate) fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        self.agent()?.payload()
    }

    /// The phase PCR's value.
    pub(crate) fn phase(&self) -> Result<String> {
        self.tpm()?.pcr(PHASE_PCR)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.agent = None;
        if let Some(tpm) = self.tpm.take() {
            lock(&self.stage.tpms).push(tpm);
        }
    }
}

/// Both roles' bootstrap challenges at once, answered: verifier's first.
pub(crate) fn challenged(session: &mut RogueSession) -> Result<[Answered; 2]> {
    let spec = |role| ChallengeSpec::new(role, Purpose::Bootstrap);
    let both = session.challenge_both(&spec(Role::Verifier), &spec(Role::Tenant))?;
    ensure!(both.iter().all(|answered| answered.binds), "a quote does not bind what it should");
    Ok(both)
}

/// The agent refused, with this code and these words.
pub(crate) fn refused(reply: &Reply, code: Code, words: &str) -> Result<()> {
    ensure!(reply.code == code && reply.text().contains(words), "it answered {}: {}", reply.code, reply.text());
    Ok(())
}

/// The agent asked for neither manifest nor payload on this connection, and confirmed nothing.
pub(crate) fn fetched_nothing(session: &RogueSession) -> Result<()> {
    for route in [RouteName::Manifest, RouteName::Payload, RouteName::Confirm] {
        ensure!(session.record.count(route) == 0, "the agent asked: {:?}", session.record.asked);
    }
    Ok(())
}

/// What an agent is given as `tenant-key`: SubjectPublicKeyInfo (RFC 5480 §2) in PEM.
fn spki_pem(key: &TenantPublicKey) -> String {
    // Everything before the point is the same for every uncompressed P-256 key.
    const PREFIX: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
    let mut der = hex::decode(PREFIX).unwrap_or_default();
    der.extend_from_slice(key.as_sec1());
    let mut text = String::from("-----BEGIN PUBLIC KEY-----\n");
    for line in der.chunks(48) {
        text.push_str(&base64(line));
        text.push('\n');
    }
    text + "-----END PUBLIC KEY-----\n"
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_usize, |bits, at| bits << 8 | usize::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = ALPHABET.get(bits >> (18 - 6 * at) & 63).copied().unwrap_or(b'=');
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
