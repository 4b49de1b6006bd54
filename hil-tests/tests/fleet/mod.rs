//! What the scenarios of honest nodes stand on: a control plane, TPMs that booted, agents, and a line between them that
//! can be cut.
//!
//! One [`Fleet`] serves the tests of a file that run at the same time, and ends with the last of them: a static would
//! never be dropped and would leave its directories behind. What has to happen is the scenarios' business.
#![allow(dead_code, reason = "each file of scenarios uses a part of this")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use hil_tests::events;
use hil_tests::rig::{Agent, NodeAdd, Options, Rig, policy_text};
use hil_tests::rogue::server::RogueSealing;
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use protocol::crypto::payload::SEALED_CHUNK_LEN;
use protocol::crypto::role_key::{TenantHolding, seal_v_at_rest};
use protocol::crypto::{Kb, RolePublicKey, ShareU, ShareV, TenantSigningKey, sha256};
use protocol::id::Role;
use rand_core::OsRng;
use serde_json::{Value, json};

/// Longer than anything takes that is going to happen.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// The PCR that the policy names.
pub(crate) const JUDGED_PCR: u32 = 7;
/// The phase PCR, which the policy names too.
pub(crate) const PHASE_PCR: u32 = 13;
/// What the nodes are to get.
pub(crate) const PAYLOAD: [(&str, &[u8]); 2] = [("app.toml", b"answer = 42\n"), ("keys/disk.key", b"only for good\n")];

/// Leaves a test early, with a word, where the machine has no TPM emulator.
#[macro_export]
macro_rules! need_tpm {
    () => {
        use hil_tests::apt::Tool;
        if let Some(why) = hil_tests::rig::missing(&[Tool::Swtpm, Tool::Tpm2Tools, Tool::Openssl]) {
            println!("{why}");
            return Ok(());
        }
    };
}

/// A control plane that trusts one CA's endorsement keys, with a policy and a payload to add nodes by.
pub(crate) struct Fleet {
    pub(crate) rig: Rig,
    pub(crate) ca: Arc<SwtpmCa>,
    /// Names PCR 7 and releases under PCR 13.
    pub(crate) policy: PathBuf,
    pub(crate) payload: PathBuf,
}

impl Fleet {
    /// A fleet of one's own; `options.ca` is set here.
    pub(crate) fn new(options: Options) -> Result<Self> {
        let ca = SwtpmCa::new()?;
        let rig = Rig::new(Options { ca: Some(Arc::clone(&ca)), ..options })?;
        let policy = rig.dir().join("edge.toml");
        fs::write(&policy, policy_for("edge", &played_value(JUDGED_PCR)))?;
        let payload = rig.payload("edge", &PAYLOAD)?;
        Ok(Self { rig, ca, policy, payload })
    }

    /// The fleet that the tests of this file share: no test stops its server.
    pub(crate) fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Fleet>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fleet) = shared.upgrade() {
            return Ok(fleet);
        }
        let fleet = Arc::new(Self::new(Options::default())?);
        *shared = Arc::downgrade(&fleet);
        Ok(fleet)
    }

    /// A TPM after a boot; with a certificate, our CA's.
    pub(crate) fn tpm(&self, kind: EkKind) -> Result<Swtpm> {
        let tpm = Swtpm::start_with(kind, &self.ca)?;
        tpm.play_firmware()?;
        Ok(tpm)
    }

    /// Adds a node with the usual payload and policy and a round each second.
    pub(crate) fn add(&self, name: &str, node: NodeAdd) -> Result<String> {
        let mut node = node.policy(&self.policy).arg("--interval").arg("1s");
        node.payload.get_or_insert_with(|| self.payload.clone());
        self.rig.node_add(name, &node)
    }

    /// A TPM and a node that is admitted by its id; its agent has not been started.
    pub(crate) fn expected(&self, name: &str, kind: EkKind) -> Result<Node> {
        let tpm = self.tpm(kind)?;
        self.add(name, NodeAdd::id(self.rig.node_id(&tpm)?))?;
        Ok(Node { name: name.into(), agent: None, tpm })
    }

    /// A node that has its payload and its good name.
    pub(crate) fn node(&self, name: &str) -> Result<Node> {
        let mut node = self.expected(name, EkKind::P256)?;
        node.agent = Some(self.rig.agent(&node.tpm, name, &[])?);
        self.is_delivered(&node)?;
        Ok(node)
    }

    /// Waits until the node has its payload: so says the tenant, so says the verifier of its trust, and so do its files.
    pub(crate) fn is_delivered(&self, node: &Node) -> Result<Value> {
        self.rig.wait_phase(&node.name, "delivered", SOON)?;
        let state = self.rig.wait_trust(&node.name, "good", SOON)?;
        has_files(node.agent()?, &PAYLOAD)?;
        Ok(state)
    }

    /// Waits for a verdict that was asked for after now, with this trust, and gives the node's JSON.
    pub(crate) fn judged_anew(&self, name: &str, trust: &str) -> Result<Value> {
        let now_ms = self.rig.node(name)?["now_ms"].as_i64().context("no clock")?;
        self.rig.wait_node(name, &format!("trust {trust} by a new verdict"), SOON, |node| {
            node["trust"] == trust && node["last_verdict"]["at_ms"].as_i64().is_some_and(|at_ms| at_ms >= now_ms)
        })
    }

    /// The newest confirmed delivery, milliseconds since 1970; 0 before the first.
    pub(crate) fn delivered_ms(&self, name: &str) -> Result<i64> {
        Ok(self.rig.node(name)?["delivered"]["at_ms"].as_i64().unwrap_or_default())
    }

    /// Waits for a delivery after the given one.
    pub(crate) fn delivered_after(&self, name: &str, before_ms: i64) -> Result<Value> {
        self.rig.wait_node(name, "another delivery", SOON, |node| {
            node["delivered"]["at_ms"].as_i64().is_some_and(|at_ms| at_ms > before_ms)
        })
    }

    /// The shares on record as having left for a node, newest first.
    pub(crate) fn releases(&self, name: &str) -> Result<Vec<Value>> {
        let answer = self.rig.api_get(&format!("/nodes/{name}/releases"))?;
        Ok(answer["releases"].as_array().context("no releases")?.clone())
    }

    /// The key that signs this operator's payloads.
    pub(crate) fn signing_key(&self) -> Result<TenantSigningKey> {
        let text = fs::read_to_string(self.rig.operator_dir().join("payload-signing.key"))?;
        TenantSigningKey::from_text(&text).context("the operator's payload-signing.key")
    }

    /// Begins to upload a sealing of which the test knows every secret: what the operator's program sends, no more.
    pub(crate) fn begin_sealing(&self, sealing: &RogueSealing) -> Result<(u16, Value)> {
        let (subject, id) = (sealing.subject, sealing.sealing_id);
        let v = ShareV::from_slice(sealing.v()).context("V")?;
        let kb = kb_of(sealing)?;
        let holding = TenantHolding {
            u: ShareU::from_slice(sealing.u()).context("U")?,
            confirm_key: kb.confirm_key(subject, id),
            key_tag: kb.key_tag(subject, id),
            manifest_digest: sha256(&[&sealing.manifest]),
        };
        let u_sealed = holding.seal(&self.role_key(Role::Tenant)?, subject, id, &mut OsRng)?;
        let v_sealed = seal_v_at_rest(&self.role_key(Role::Verifier)?, subject, id, &v, &mut OsRng)?;
        let body = json!({
            "manifest": hex::encode(&sealing.manifest),
            "signature": hex::encode(sealing.signature),
            "u_sealed": hex::encode(u_sealed.to_bytes()),
            "v_sealed": hex::encode(v_sealed.to_bytes()),
        });
        self.rig.api("POST", "/sealings", Some(&body))
    }

    /// Uploads one chunk of it.
    pub(crate) fn put_chunk(&self, sealing: &RogueSealing, index: usize) -> Result<(u16, Value)> {
        let chunk = sealing.ciphertext.chunks(SEALED_CHUNK_LEN).nth(index).context("no such chunk")?;
        let root = ureq::tls::Certificate::from_pem(&self.rig.server_ca()?)?;
        let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::new_with_certs(&[root])).build();
        let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false).proxy(None).build();
        let request = ureq::http::Request::builder()
            .method("PUT")
            .uri(format!("{}/api/v1/sealings/{}/chunks/{index}", self.rig.api_url(), sealing.sealing_id))
            .header("authorization", format!("Bearer {}", self.rig.token()?))
            .header("content-type", "application/octet-stream")
            .body(chunk.to_vec())?;
        let mut response = ureq::Agent::new_with_config(config).run(request)?;
        let text = response.body_mut().read_to_string()?;
        Ok((response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Says that all of it is there.
    pub(crate) fn finish_sealing(&self, sealing: &RogueSealing) -> Result<(u16, Value)> {
        self.rig.api("POST", &format!("/sealings/{}/finish", sealing.sealing_id), None)
    }

    fn role_key(&self, role: Role) -> Result<RolePublicKey> {
        let text = fs::read_to_string(self.rig.operator_dir().join("operator.toml"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(role.name())?.trim().strip_prefix('='));
        let key = line.and_then(|value| RolePublicKey::from_text(value.trim().trim_matches('"')));
        key.with_context(|| format!("operator.toml pins no key of the {}", role.name()))
    }

    /// The node's history as short names, oldest first.
    pub(crate) fn kinds(&self, name: &str) -> Result<Vec<String>> {
        let answer = self.rig.api_get(&format!("/nodes/{name}/events?limit=500"))?;
        Ok(events::list(&answer).into_iter().map(|event| event.kind).collect())
    }
}

/// One machine: its TPM and, while it is up, its agent.
pub(crate) struct Node {
    pub(crate) name: String,
    /// First: the agent ends before its TPM does.
    pub(crate) agent: Option<Agent>,
    pub(crate) tpm: Swtpm,
}

impl Node {
    pub(crate) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent does not run")
    }

    /// Turns the machine off and on: another agent, PCRs of a machine that booted the same.
    pub(crate) fn reboot(&mut self, fleet: &Fleet) -> Result<()> {
        self.agent = None;
        self.tpm.reset()?;
        self.tpm.play_firmware()?;
        self.agent = Some(fleet.rig.agent(&self.tpm, &self.name, &[])?);
        Ok(())
    }
}

/// The key that only the operator and the node ever hold.
pub(crate) fn kb_of(sealing: &RogueSealing) -> Result<Kb> {
    let v = ShareV::from_slice(sealing.v()).context("V")?;
    Ok(ShareU::from_slice(sealing.u()).context("U")?.combine(&v))
}

/// These files, and no others, are in place, with these contents.
pub(crate) fn has_files(agent: &Agent, files: &[(&str, &[u8])]) -> Result<()> {
    let expected: BTreeMap<String, Vec<u8>> =
        files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    let found = agent.payload()?;
    ensure!(found == expected, "the payload has the files {:?}, or other contents", found.keys());
    Ok(())
}

/// A policy that names PCR 7.
pub(crate) fn policy_for(name: &str, value: &str) -> String {
    policy_text(name, &[(JUDGED_PCR, value.to_owned())], &format!("[release]\nphase_pcr = {PHASE_PCR}\n"))
}

/// What a PCR of the SHA-256 bank holds after [`Swtpm::play_firmware`].
pub(crate) fn played_value(index: u32) -> String {
    let digest = [index as u8 + 1; 32];
    hex::encode(sha256(&[&[0; 32], &digest]))
}

/// A line to the gateway: bytes in, bytes out, until it is cut.
pub(crate) struct Line {
    address: SocketAddr,
    state: Arc<LineState>,
}

struct LineState {
    to: SocketAddr,
    open: Mutex<Option<Vec<TcpStream>>>,
    /// How long bytes for the agent are collected before they go on, milliseconds.
    delay_ms: AtomicU64,
}

impl Line {
    /// Lays a line to `to`; an agent dials [`Line::address`] instead.
    pub(crate) fn lay(to: SocketAddr) -> Result<Self> {
        Self::lay_from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), to)
    }

    /// As [`Line::lay`], with its near end at this address; port 0 is any.
    pub(crate) fn lay_from(near: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(near)?;
        let address = listener.local_addr()?;
        let state = Arc::new(LineState { to, open: Mutex::new(Some(Vec::new())), delay_ms: AtomicU64::new(0) });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { break };
                if shared.lock().is_none() {
                    break;
                }
                // A connection that cannot be made, or ends, is the agent's to make again.
                _ = connect(&shared, near);
            }
        });
        Ok(Self { address, state })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on bytes for the agent arrive as if the network were so slow, all that came meanwhile at once.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Cuts every connection, as a lost route does; new ones can be made. How many there were.
    pub(crate) fn cut(&self) -> usize {
        let cut = self.state.lock().as_mut().map(std::mem::take).unwrap_or_default();
        cut.iter().for_each(hang_up);
        cut.len() / 2
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let ends = self.state.lock().take().unwrap_or_default();
        ends.iter().for_each(hang_up);
        // The accepting thread sees the end with the next connection.
        _ = TcpStream::connect(self.address);
    }
}

impl LineState {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<TcpStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(state: &Arc<LineState>, near: TcpStream) -> Result<()> {
    let far = TcpStream::connect(state.to)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_again, far_again) = (near.try_clone()?, far.try_clone()?);
    if let Some(open) = state.lock().as_mut() {
        open.extend([near.try_clone()?, far.try_clone()?]);
    }
    thread::spawn(move || pass_on(near, far_again, || Duration::ZERO));
    let state = Arc::clone(state);
    thread::spawn(move || pass_on(far, near_again, || Duration::from_millis(state.delay_ms.load(Ordering::SeqCst))));
    Ok(())
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, delay: impl Fn() -> Duration) {
    let mut buf = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buf) {
        let mut len = len;
        let delay = delay();
        if !delay.is_zero() {
            thread::sleep(delay);
            if from.set_nonblocking(true).is_ok() {
                // Nothing more is no error here: an end shows at the next read.
                while let Some(rest) = buf.get_mut(len..)
                    && let Ok(more @ 1..) = from.read(rest)
                {
                    len += more;
                }
            }
            if from.set_nonblocking(false).is_err() {
                break;
            }
        }
        if buf.get(..len).is_none_or(|bytes| to.write_all(bytes).is_err()) {
            break;
        }
    }
    hang_up(&from);
    hang_up(&to);
}

fn hang_up(end: &TcpStream) {
    // It may have ended already.
    _ = end.shutdown(Shutdown::Both);
}
