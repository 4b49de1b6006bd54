//! What the hostile scenarios stand on: a control plane, a rightful node with a real agent on it, and TPMs for attackers.
//!
//! One [`Bench`] serves all tests of a file that run at the same time, and ends with the last of them: a static would
//! never be dropped and would leave its directories behind. What is expected in which history is the scenarios' business.
#![allow(dead_code, reason = "each file of scenarios uses a part of this")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use hil_tests::rig::{Agent, NodeAdd, Options, Rig, policy_text};
use hil_tests::rogue::Refused;
use hil_tests::rogue::client::{Bootstrap, EvidenceHacks, RogueAgent};
use hil_tests::rogue::tpm::{Identity, KeySpec, RogueTpm};
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use protocol::coap::route::Route;
use protocol::crypto::{JoinToken, sha256};
use protocol::id::{NodeId, Role};
use protocol::message::attest::Challenge;
use protocol::message::enrol::Wants;
use protocol::tpm::template::{AkKind, EkTemplate};
use serde_json::Value;
use sqlx::Connection;

/// Longer than anything takes that is going to happen.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long something is watched for that must not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(600);
/// The PCR that the policies name.
pub(crate) const JUDGED_PCR: u32 = 7;

const PAYLOAD: [(&str, &[u8]); 2] = [("app.toml", b"answer = 42\n"), ("keys/disk.key", b"for rightful nodes only\n")];

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

/// A control plane that trusts one CA's endorsement keys, with policies and a payload to add nodes by.
pub(crate) struct Bench {
    // First: agents end before the server does.
    rightful: Mutex<Option<Arc<Rightful>>>,
    rogue: Mutex<Option<Arc<RogueNode>>>,
    pub(crate) rig: Rig,
    pub(crate) ca: Arc<SwtpmCa>,
    /// Releases under PCR 13.
    pub(crate) capped: PathBuf,
    /// Releases without a phase PCR: what rogue agents are judged by, which measure no pins.
    pub(crate) uncapped: PathBuf,
    pub(crate) payload: PathBuf,
}

impl Bench {
    /// A bench of one's own: for scenarios that stop the server.
    pub(crate) fn new() -> Result<Self> {
        let ca = SwtpmCa::new()?;
        let rig = Rig::new(Options { ca: Some(Arc::clone(&ca)), ..Options::default() })?;
        let values = [(JUDGED_PCR, played_value(JUDGED_PCR))];
        let write = |name: &str, rules: &str| -> Result<PathBuf> {
            let path = rig.dir().join(format!("{name}.toml"));
            fs::write(&path, policy_text(name, &values, rules))?;
            Ok(path)
        };
        let capped = write("capped", "[release]\nphase_pcr = 13\n")?;
        let uncapped = write("uncapped", "[release]\nuncapped = true\n")?;
        let payload = rig.payload("edge", &PAYLOAD)?;
        Ok(Self { rightful: Mutex::default(), rogue: Mutex::default(), rig, ca, capped, uncapped, payload })
    }

    /// The bench that the tests of this file share.
    pub(crate) fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Bench>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bench) = shared.upgrade() {
            return Ok(bench);
        }
        let bench = Arc::new(Self::new()?);
        *shared = Arc::downgrade(&bench);
        Ok(bench)
    }

    /// A TPM that measures like a machine which booted; with a certificate, our CA's.
    pub(crate) fn tpm(&self, kind: EkKind) -> Result<Swtpm> {
        booted(kind, &self.ca)
    }

    /// What a node is added with: payload, policy, a round each second.
    pub(crate) fn with_payload(&self, node: NodeAdd, policy: &PathBuf) -> NodeAdd {
        node.payload(&self.payload).policy(policy).arg("--interval").arg("1s")
    }

    /// Adds a node by its id.
    pub(crate) fn add_by_id(&self, name: &str, node_id: NodeId, policy: &PathBuf) -> Result<()> {
        let node = self.with_payload(NodeAdd::id(node_id.to_string()), policy);
        self.rig.node_add(name, &node).map(drop)
    }

    /// Adds a node with a join token, and gives the token.
    pub(crate) fn add_by_join(&self, name: &str, extra: &[&str]) -> Result<JoinToken> {
        let node = self.with_payload(NodeAdd::join(), &self.uncapped);
        let said = self.rig.node_add(name, &extra.iter().fold(node, |node, argument| node.arg(*argument)))?;
        JoinToken::from_text(said.lines().next_back().unwrap_or_default()).context("`node add --join` printed no token")
    }

    /// The node whose owner did nothing wrong: a real agent on a certified TPM, admitted by id, its payload delivered.
    pub(crate) fn rightful(&self) -> Result<Arc<Rightful>> {
        once(&self.rightful, || Rightful::new(self, "rightful"))
    }

    /// A node that was admitted and bound, and is in an attacker's hands: certified TPM, right measurements. It never
    /// gets a share, so long as everybody who uses it lies. One at a time: two connections are all that it may have.
    pub(crate) fn rogue_node(&self) -> Result<Arc<RogueNode>> {
        once(&self.rogue, || RogueNode::new(self, "rogue", EkKind::P256))
    }

    /// A connection that has said nothing yet.
    pub(crate) fn connect(&self) -> Result<RogueAgent> {
        RogueAgent::connect(self.rig.gateway(), &self.rig.server_ca()?)
    }

    /// Where all histories stand now.
    pub(crate) fn mark(&self) -> Result<Mark> {
        let answer = self.rig.api_get("/events?limit=1")?;
        Ok(Mark(answer["next"].as_str().context("no `next`")?.to_owned()))
    }

    /// What was written about a node id since the mark.
    pub(crate) fn told(&self, mark: &Mark, node_id: NodeId) -> Result<Vec<Told>> {
        let answer = self.rig.api_get(&format!("/events?limit=500&after={}", mark.0))?;
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let events = answer["events"].as_array().context("no events")?;
        Ok(events
            .iter()
            .filter(|event| event["node_id"] == node_id.to_string())
            .map(|event| Told { role: text(event, "role"), kind: text(event, "kind"), detail: text(event, "detail") })
            .collect())
    }

    /// Waits for a role to write this reason about a node id.
    pub(crate) fn expect(&self, mark: &Mark, node_id: NodeId, role: &str, kind: &str) -> Result<Told> {
        let deadline = Instant::now() + SOON;
        loop {
            let told = self.told(mark, node_id)?;
            if let Some(found) = told.iter().find(|told| told.role == role && told.kind == kind) {
                return Ok(found.clone());
            }
            if Instant::now() >= deadline {
                let server = self.rig.server()?;
                bail!("the {role} wrote no `{kind}` about {node_id}, only {told:#?}\n{}", server.tail(15));
            }
            thread::sleep(Duration::from_millis(15));
        }
    }

    /// The shares on record as having left for a node.
    pub(crate) fn releases(&self, name: &str) -> Result<Vec<Value>> {
        let answer = self.rig.api_get(&format!("/nodes/{name}/releases"))?;
        Ok(answer["releases"].as_array().context("no releases")?.clone())
    }

    /// Of a role's shares.
    pub(crate) fn releases_of(&self, name: &str, role: &str) -> Result<usize> {
        Ok(self.releases(name)?.iter().filter(|release| release["role"] == role).count())
    }

    /// No share has left for the node, from either role.
    pub(crate) fn nothing_left(&self, name: &str) -> Result<()> {
        let releases = self.releases(name)?;
        ensure!(releases.is_empty(), "shares left for {name}: {releases:#?}");
        Ok(())
    }

    /// The join token of a node that was added by one: `open`, `used`, `expired` or `revoked`.
    pub(crate) fn join_state(&self, name: &str) -> Result<String> {
        let answer = self.rig.api_get("/joins")?;
        let joins = answer["joins"].as_array().context("no joins")?;
        let join = joins.iter().find(|join| join["name"] == name).with_context(|| format!("no token for {name}"))?;
        Ok(join["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Changes a role's database while no server runs. `sql` is given how the store writes bytes.
    pub(crate) fn change(&self, role: Role, sql: impl FnOnce(&dyn Fn(&[u8]) -> String) -> String) -> Result<()> {
        ensure!(self.rig.server().is_err(), "the server runs");
        let settings = fs::read_to_string(self.rig.data_dir().join("trefoil.toml"))?;
        let url = settings.lines().find_map(|line| line.strip_prefix("db = \"")?.strip_suffix('"'));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let rows = runtime.block_on(async {
            match url {
                Some(url) => {
                    let mut db = sqlx::PgConnection::connect(url).await?;
                    sqlx::query(&format!("SET search_path TO {}", role.name())).execute(&mut db).await?;
                    let sql = sql(&|bytes| format!("'\\x{}'::bytea", hex::encode(bytes)));
                    let rows = sqlx::query(&sql).execute(&mut db).await?.rows_affected();
                    db.close().await?;
                    anyhow::Ok(rows)
                }
                None => {
                    let file = self.rig.data_dir().join(format!("{}.db", role.name()));
                    let mut db = sqlx::SqliteConnection::connect(&format!("sqlite:{}", file.display())).await?;
                    let sql = sql(&|bytes| format!("X'{}'", hex::encode(bytes)));
                    let rows = sqlx::query(&sql).execute(&mut db).await?.rows_affected();
                    db.close().await?;
                    Ok(rows)
                }
            }
        })?;
        ensure!(rows > 0, "the statement changed nothing");
        Ok(())
    }
}

/// A place in the merged history.
#[derive(Clone, Debug)]
pub(crate) struct Mark(String);

/// What a history says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Told {
    pub(crate) role: String,
    pub(crate) kind: String,
    pub(crate) detail: String,
}

/// A node with a real agent.
pub(crate) struct Rightful {
    pub(crate) name: String,
    pub(crate) agent: Agent,
    pub(crate) identity: Identity,
    /// As the API showed it when its payload had been delivered.
    before: Value,
    payload: BTreeMap<String, Vec<u8>>,
    /// Last: the agent ends before its TPM does.
    pub(crate) tpm: Swtpm,
}

impl Rightful {
    /// Adds it, starts its agent, and waits for its payload and its good name.
    pub(crate) fn new(bench: &Bench, name: &str) -> Result<Self> {
        let tpm = bench.tpm(EkKind::P256)?;
        let identity = identity(&tpm)?;
        bench.add_by_id(name, identity.node_id, &bench.capped)?;
        let agent = bench.rig.agent(&tpm, name, &[])?;
        bench.rig.wait_phase(name, "delivered", SOON)?;
        let before = bench.rig.wait_trust(name, "good", SOON)?;
        let payload = agent.payload()?;
        ensure!(payload.get("app.toml").is_some_and(|file| file == PAYLOAD[0].1), "no payload: {payload:?}");
        Ok(Self { name: name.into(), agent, identity, before, payload, tpm })
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// Nothing of what went on since the mark has touched this node: still delivered and, in a verdict from after now,
    /// good; its keys as they were; its payload in place; its one connection never lost.
    pub(crate) fn is_unharmed(&self, bench: &Bench, mark: &Mark) -> Result<()> {
        self.is_good(bench)?;
        for lost in ["connection_taken_over", "bound", "removed", "trusted"] {
            let told = bench.told(mark, self.node_id())?;
            ensure!(!told.iter().any(|told| told.kind == lost), "`{lost}` in the rightful node's history: {told:#?}");
        }
        let hellos =
            self.agent.steps().iter().filter(|step| step.step == "hello" && step.text("phase") == "end").count();
        ensure!(hellos == 1, "the rightful agent had to connect {hellos} times\n{}", self.agent.tail(20));
        Ok(())
    }

    /// As [`Rightful::is_unharmed`], for a node that had to connect again.
    pub(crate) fn is_good(&self, bench: &Bench) -> Result<()> {
        let now_ms = bench.rig.node(&self.name)?["now_ms"].as_i64().context("no clock")?;
        let node = bench.rig.wait_node(&self.name, "a good verdict from after the attack", SOON, |node| {
            node["trust"] == "good" && node["last_verdict"]["at_ms"].as_i64().is_some_and(|at_ms| at_ms >= now_ms)
        })?;
        for field in ["name", "node_id", "phase", "policy", "sealing_id", "ak_name", "hardware", "delivered", "pins"] {
            ensure!(node[field] == self.before[field], "`{field}` was {}, is {}", self.before[field], node[field]);
        }
        ensure!(self.agent.payload()? == self.payload, "the payload is not what it was");
        Ok(())
    }
}

/// An admitted node in an attacker's hands.
pub(crate) struct RogueNode {
    pub(crate) name: String,
    pub(crate) tpm: RogueTpm,
    pub(crate) identity: Identity,
    turn: Mutex<()>,
    pub(crate) swtpm: Swtpm,
}

impl RogueNode {
    /// Adds it by its id, under the policy without a phase PCR.
    pub(crate) fn new(bench: &Bench, name: &str, kind: EkKind) -> Result<Self> {
        let swtpm = bench.tpm(kind)?;
        let identity = identity(&swtpm)?;
        bench.add_by_id(name, identity.node_id, &bench.uncapped)?;
        Ok(Self { name: name.into(), tpm: RogueTpm::of(&swtpm), identity, turn: Mutex::new(()), swtpm })
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// Keeps other tests of the file from it.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection on which the node is bound, and which has not answered a challenge.
    pub(crate) fn bound(&self, bench: &Bench, wants: Wants) -> Result<RogueAgent> {
        patiently(|| {
            let mut agent = bench.connect()?;
            agent.bind(&self.tpm, &self.identity, wants, None)?;
            Ok(agent)
        })
    }

    /// Answers one challenge of this role with evidence that has something wrong, and gives the server's last words. The
    /// other role's challenge stays unanswered.
    pub(crate) fn offer(&self, bench: &Bench, role: Role, hacks: EvidenceHacks<'_>) -> Result<String> {
        let mut agent = self.bound(bench, Wants::Payload)?;
        let mut bootstrap = Bootstrap::new(self.node_id());
        let (request, challenge) = agent.next_challenge(role, SOON)?;
        let evidence = agent.evidence(&self.tpm, &self.identity, &challenge, bootstrap.nk(), hacks)?;
        bootstrap.quoted(&challenge, &evidence);
        agent.answer_challenge(&request, &evidence)?;
        let words = agent.wait_closed(SOON)?.context("the connection was not ended")?;
        while let Some(request) = agent.next_request(Duration::ZERO)? {
            ensure!(!request.is(Route::Share), "a share came");
        }
        Ok(words)
    }

    /// Plays an honest agent until both shares are here.
    pub(crate) fn bootstrap(&self, bench: &Bench, agent: &mut RogueAgent) -> Result<Bootstrap> {
        let mut bootstrap = Bootstrap::new(self.node_id());
        bootstrap
            .run(agent, &self.tpm, &self.identity, SOON, |_: &Challenge| EvidenceHacks::default())
            .with_context(|| bench.rig.server().map(|server| server.tail(20)).unwrap_or_default())?;
        Ok(bootstrap)
    }
}

/// The identity of an honest agent on this TPM.
pub(crate) fn identity(tpm: &Swtpm) -> Result<Identity> {
    RogueTpm::of(tpm).identity(EkTemplate::P256, &KeySpec::ak(AkKind::P256))
}

/// A TPM after a boot.
pub(crate) fn booted(kind: EkKind, ca: &Arc<SwtpmCa>) -> Result<Swtpm> {
    let tpm = Swtpm::start_with(kind, ca)?;
    tpm.play_firmware()?;
    Ok(tpm)
}

/// What a PCR of the SHA-256 bank holds after [`Swtpm::play_firmware`].
pub(crate) fn played_value(index: u32) -> String {
    let digest = [index as u8 + 1; 32];
    hex::encode(sha256(&[&[0; 32], &digest]))
}

/// The refusal in a result that has to be one.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T>) -> Result<Refused> {
    match result {
        Ok(value) => bail!("not refused: {value:?}"),
        Err(error) => error.downcast::<Refused>().context("ended, and was not refused"),
    }
}

/// That a request was refused for this reason, which stands first in the answer.
pub(crate) fn refused_for<T: std::fmt::Debug>(result: Result<T>, kind: &str) -> Result<()> {
    let refused = refusal(result)?;
    ensure!(refused.text.starts_with(&format!("{kind}: ")), "refused, but not for `{kind}`: {refused}");
    Ok(())
}

/// Tries again while earlier connections of the same node are not gone yet: the server notices an end a moment later.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        match attempt() {
            Err(error)
                if Instant::now() < deadline
                    && error
                        .downcast_ref::<Refused>()
                        .is_some_and(|refused| refused.text.starts_with("too_many_unproven")) =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn once<T>(slot: &Mutex<Option<Arc<T>>>, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = &*slot {
        return Ok(Arc::clone(there));
    }
    Ok(Arc::clone(slot.insert(Arc::new(make()?))))
}
