//! Whatever dies in the middle of a step, the bootstrap completes and nothing is lost: the agent's worker, the whole
//! agent, the control plane.
//!
//! Each is killed with SIGKILL the moment it has written the step's line, step after step, in one node's boots. What has
//! to come of it is always the same: the payload is in place, its delivery confirmed once in that boot, `delivered` once
//! in the phase PCR, the node's trust good.

mod fleet;

use std::collections::BTreeSet;
use std::time::Instant;
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use fleet::{Fleet, Node, PHASE_PCR, SOON};
use hil_tests::events;
use hil_tests::rig::{NodeAdd, Options};
use hil_tests::spawn::{Kill, Program, Step};
use hil_tests::swtpm::EkKind;
use protocol::crypto::manifest::{DELIVERED_EVENT, TenantPublicKey, pins_event};
use protocol::tpm::alg::{Digest, HashAlg};
use protocol::tpm::pcr::{event_digest, extend};

/// A line at which something dies: the step and its phase.
type Line = (&'static str, &'static str);

/// Steps that only a node takes which is not bound yet.
const FIRST_BOOT: [Line; 4] = [("enrol", "begin"), ("enrol", "end"), ("activate", "begin"), ("activate", "end")];

/// The other steps as the agent writes them. The phase PCR is extended between the end of `payload` and the beginning of
/// `confirm`.
const AGENT: [Line; 12] = [
    ("hello", "begin"),
    ("hello", "end"),
    ("challenge", "begin"),
    ("challenge", "end"),
    ("share", "begin"),
    ("share", "end"),
    ("manifest", "begin"),
    ("manifest", "end"),
    ("payload", "begin"),
    ("payload", "end"),
    ("confirm", "begin"),
    ("confirm", "end"),
];

/// The other steps as the control plane writes them: those between its roles too.
const SERVER: [Line; 14] = [
    ("hello", "begin"),
    ("hello", "end"),
    ("challenge", "begin"),
    ("challenge", "end"),
    ("agree", "end"),
    ("share", "begin"),
    ("share", "end"),
    ("manifest", "begin"),
    ("manifest", "end"),
    ("payload", "begin"),
    ("payload", "end"),
    ("confirm", "begin"),
    ("delivered", "end"),
    ("confirm", "end"),
];

/// Accepts the line.
fn at((step, phase): Line) -> impl FnMut(&Step) -> bool + Send + 'static {
    move |line| line.step == step && line.text("phase") == phase
}

/// Waits until the trap has closed.
fn killed(program: &Program, (step, phase): Line) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while program.trap_is_set() {
        if Instant::now() >= deadline {
            bail!("{} never came to {step} {phase}\n{}", program.name(), program.tail(20));
        }
        thread::sleep(std::time::Duration::from_millis(2));
    }
    Ok(())
}

/// The machine goes off, and on so far that an agent can be started. A node that has to enrol is one that was removed and
/// added again.
fn off_and_on(fleet: &Fleet, node: &mut Node, line: Line) -> Result<()> {
    node.agent = None;
    if FIRST_BOOT.contains(&line) {
        fleet.rig.trefoil(&["node", "remove", &node.name])?;
        fleet.add(&node.name, NodeAdd::id(fleet.rig.node_id(&node.tpm)?))?;
    }
    node.tpm.reset()?;
    node.tpm.play_firmware()
}

/// The phase PCR of a machine that measured its pins and then, once, that its payload was delivered.
fn delivered_once(fleet: &Fleet) -> Result<String> {
    let node = fleet.rig.api_get("/nodes")?;
    let keys = node["nodes"][0]["pins"]["tenant_keys"].as_array().context("no pins")?;
    let keys: Vec<TenantPublicKey> =
        keys.iter().filter_map(|key| TenantPublicKey::from_sec1(&hex::decode(key.as_str()?).ok()?)).collect();
    ensure!(keys.len() == 1, "{} pinned keys", keys.len());
    let bank = HashAlg::Sha256;
    let after = |old: &Digest, event: &[u8]| extend(bank, old, &event_digest(bank, event));
    let pinned = after(&Digest::zero(bank), &pins_event(&keys, false)?)?;
    Ok(hex::encode(after(&pinned, DELIVERED_EVENT)?.as_bytes()))
}

/// What was known of deliveries when a boot began.
struct Before {
    delivered_ms: i64,
    deliveries: usize,
}

impl Before {
    fn of(fleet: &Fleet, name: &str) -> Result<Self> {
        Ok(Self { delivered_ms: fleet.delivered_ms(name)?, deliveries: deliveries(fleet, name)? })
    }
}

/// How often the history tells of a delivery.
fn deliveries(fleet: &Fleet, name: &str) -> Result<usize> {
    let answer = fleet.rig.api_get(&format!("/nodes/{name}/events?limit=500"))?;
    Ok(events::list(&answer).iter().filter(|event| event.kind == "delivered").count())
}

/// What has to have come of a boot in which something died.
fn all_is_well(fleet: &Fleet, node: &Node, before: Before) -> Result<()> {
    fleet.delivered_after(&node.name, before.delivered_ms)?;
    fleet.is_delivered(node)?;
    let state = fleet.judged_anew(&node.name, "good")?;
    let phase = &state["last_verdict"]["explanation"]["phase"];
    ensure!(phase == "delivered", "the verifier finds the phase {phase}");
    let found = node.tpm.pcr(PHASE_PCR)?;
    ensure!(
        found == delivered_once(fleet)?,
        "the phase PCR was extended otherwise than by pins and delivered: {found}"
    );
    let (reset_count, _) = node.tpm.counters()?;
    let releases = fleet.releases(&node.name)?;
    for role in ["verifier", "tenant"] {
        // Shares that left before something died are on record too; the boot is confirmed as a whole, at one moment.
        let of_boot =
            releases.iter().filter(|release| release["role"] == role && release["reset_count"] == reset_count);
        let moments: BTreeSet<Option<i64>> = of_boot.map(|release| release["confirmed_ms"].as_i64()).collect();
        ensure!(moments.len() == 1 && !moments.contains(&None), "the {role}'s releases in this boot: {releases:#?}");
    }
    let told = deliveries(fleet, &node.name)?;
    ensure!(told == before.deliveries + 1, "`delivered` is {told} times in the history, not {}", before.deliveries + 1);
    // Nothing half-written is left beside the payload.
    let parent = node.agent()?.payload_dir().parent().context("no parent")?.to_owned();
    let left: Vec<String> = fs::read_dir(parent)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    ensure!(!left.iter().any(|name| name.ends_with(".new") || name.ends_with(".old")), "left behind: {left:?}");
    Ok(())
}

/// Kills the agent at each of these lines, each in a boot of its own.
fn agent_dies(name: &str, what: Kill, lines: &[Line]) -> Result<()> {
    let fleet = Fleet::shared()?;
    let mut node = fleet.expected(name, EkKind::P256)?;
    for &line in lines {
        let (step, phase) = line;
        off_and_on(&fleet, &mut node, line)?;
        let before = Before::of(&fleet, name)?;
        let agent = fleet.rig.agent(&node.tpm, name, &[])?;
        agent.kill_on(what, at(line));
        killed(&agent, line)?;
        node.agent = Some(match what {
            Kill::Worker => agent,
            Kill::Everything => {
                agent.wait_exit(SOON)?;
                drop(agent);
                fleet.rig.agent(&node.tpm, name, &[])?
            }
        });
        all_is_well(&fleet, &node, before)
            .with_context(|| format!("after {what:?} of the agent was killed at {step} {phase}"))?;
    }
    Ok(())
}

/// Kills the control plane at each of these lines, each in a boot of its own.
fn server_dies(name: &str, lines: &[Line]) -> Result<()> {
    let fleet = Fleet::new(Options::default())?;
    let mut node = fleet.expected(name, EkKind::P256)?;
    for &line in lines {
        let (step, phase) = line;
        off_and_on(&fleet, &mut node, line)?;
        let before = fleet.rig.node(name)?;
        let deliveries = Before::of(&fleet, name)?;
        let kinds = fleet.kinds(name)?;
        let server = fleet.rig.server()?;
        server.kill_on(Kill::Everything, at(line));
        node.agent = Some(fleet.rig.agent(&node.tpm, name, &[])?);
        killed(&server, line)?;
        server.wait_exit(SOON)?;
        drop(server);
        fleet.rig.kill_server()?;
        fleet.rig.start_server()?;
        let case = || format!("after the control plane was killed at {step} {phase}");
        all_is_well(&fleet, &node, deliveries).with_context(case)?;
        let after = fleet.rig.node(name)?;
        for field in ["name", "node_id", "policy", "sealing_id", "pins", "interval_ms", "created_ms"] {
            ensure!(after[field] == before[field], "{}: `{field}` is {}", case(), after[field]);
        }
        let history = fleet.kinds(name)?;
        ensure!(history.starts_with(&kinds), "{}: the history was {kinds:?}, is {history:?}", case());
    }
    Ok(())
}

#[test]
fn an_agent_whose_worker_dies_in_the_middle_of_any_step_of_a_first_boot_gets_its_payload() -> Result<()> {
    need_tpm!();
    agent_dies("worker-first", Kill::Worker, &FIRST_BOOT)
}

#[test]
fn an_agent_whose_worker_dies_in_the_middle_of_any_step_gets_its_payload() -> Result<()> {
    need_tpm!();
    agent_dies("worker", Kill::Worker, &AGENT)
}

#[test]
fn an_agent_that_dies_in_the_middle_of_any_step_of_a_first_boot_gets_its_payload_when_started_again() -> Result<()> {
    need_tpm!();
    agent_dies("agent-first", Kill::Everything, &FIRST_BOOT)
}

#[test]
fn an_agent_that_dies_in_the_middle_of_any_step_gets_its_payload_when_started_again() -> Result<()> {
    need_tpm!();
    agent_dies("agent", Kill::Everything, &AGENT)
}

#[test]
fn a_control_plane_that_dies_in_the_middle_of_any_step_of_a_first_boot_loses_nothing() -> Result<()> {
    need_tpm!();
    server_dies("first", &FIRST_BOOT)
}

#[test]
fn a_control_plane_that_dies_in_the_middle_of_any_step_loses_nothing() -> Result<()> {
    need_tpm!();
    server_dies("known", &SERVER)
}
