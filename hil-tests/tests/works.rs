//! An honest node gets its payload and keeps its good name: by every kind of endorsement key, in whatever order node,
//! agent and operator come, over lines that break, boot after boot; and what changes on the way is noticed.

mod fleet;

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use fleet::{Fleet, JUDGED_PCR, Line, PAYLOAD, PHASE_PCR, SOON, has_files, played_value, policy_for};
use hil_tests::rig::{self, Agent, NodeAdd, Options, Rig, Store};
use hil_tests::rogue::server::RogueSealing;
use hil_tests::spawn::{self, Step};
use hil_tests::swtpm::{EkKind, Swtpm};
use hil_tests::sys;
use protocol::id::{NodeId, Subject};
use serde_json::Value;

const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// How often an agent has been let in.
fn hellos(steps: &[Step]) -> usize {
    steps.iter().filter(|step| step.step == "hello" && step.text("phase") == "end").count()
}

/// The verifier's third challenge has been answered: two rounds lie behind.
fn third_quote() -> impl Fn(&Step) -> bool {
    let seen = std::cell::Cell::new(0);
    move |step| {
        let answered = step.step == "challenge" && step.text("phase") == "end" && step.text("from") == "verifier";
        seen.set(seen.get() + usize::from(answered));
        seen.get() == 3
    }
}

/// How often the verifier's share has left: without it there is no payload.
fn shares_of_v(fleet: &Fleet, name: &str) -> Result<usize> {
    Ok(fleet.releases(name)?.iter().filter(|release| release["role"] == "verifier").count())
}

/// Whether the agent, in this run, has had its payload confirmed.
fn said_delivered(agent: &Agent) -> bool {
    agent.steps().iter().any(|step| step.step == "delivered")
}

/// The settings of an agent that nobody has added, or that comes over a line of its own.
fn settings(rig: &Rig, name: &str, server: &str) -> Result<std::path::PathBuf> {
    let operator = rig.operator_dir();
    let path = rig.dir().join(format!("{name}.conf"));
    let (ca, key) = (operator.join("server-ca.pem"), operator.join("tenant-key.pem"));
    fs::write(&path, format!("server = {server}\nca = {}\ntenant-key = {}\n", ca.display(), key.display()))?;
    Ok(path)
}

#[test]
fn every_kind_of_certified_endorsement_key_brings_its_node_to_the_payload() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let bootstrap = |(name, kind, ek): (&str, EkKind, &str)| -> Result<()> {
        let tpm = fleet.tpm(kind)?;
        // Its id depends on the key, so the token is what it comes by.
        fleet.add(name, NodeAdd::join())?;
        let agent = fleet.rig.agent(&tpm, name, &["--ek", ek])?;
        let node = fleet.rig.wait_phase(name, "delivered", SOON)?;
        ensure!(node["hardware"]["kind"] == "certified", "{name}: {}", node["hardware"]);
        has_files(&agent, &PAYLOAD)?;
        fleet.rig.wait_trust(name, "good", SOON).map(drop)
    };
    thread::scope(|scope| {
        let kinds = [
            ("ek-p384", EkKind::P384AndRsa, "p384"),
            ("ek-rsa", EkKind::P384AndRsa, "rsa2048"),
            ("ek-p256", EkKind::P256, "p256"),
        ];
        let running: Vec<_> = kinds.map(|kind| scope.spawn(move || bootstrap(kind))).into();
        running.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))))
    })
}

#[test]
fn an_agent_that_comes_before_its_node_is_added_is_told_how_and_gets_in_once_it_is() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let tpm = fleet.tpm(EkKind::P256)?;
    let node_id = fleet.rig.node_id(&tpm)?;
    let config = settings(&fleet.rig, "early", &fleet.rig.gateway().to_string())?;
    let agent = fleet.rig.agent_with(&tpm, "early", &config, &[])?;
    let told = agent.wait_for_line(SOON, |line| line.contains("quarantined"))?;
    ensure!(told.contains(&format!("trefoil node approve {node_id} --name NAME")), "{told}");
    let events = fleet.rig.all_events()?;
    ensure!(
        events.iter().any(|event| event.kind == "quarantined" && event.detail.contains(&node_id)),
        "no quarantined about {node_id}: {events:#?}"
    );
    ensure!(agent.payload()?.is_empty(), "a payload came");
    fleet.add("early", NodeAdd::id(node_id))?;
    fleet.rig.wait_phase("early", "delivered", SOON)?;
    fleet.rig.wait_trust("early", "good", SOON)?;
    has_files(&agent, &PAYLOAD)
}

#[test]
fn a_node_that_was_added_by_a_token_is_expected_then_bound_to_its_name_and_the_token_is_used() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let said = fleet.add("joined", NodeAdd::join())?;
    let token = said.lines().next_back().context("no token was printed")?.to_owned();
    let node = fleet.rig.node("joined")?;
    ensure!(node["phase"] == "expected" && node["node_id"].is_null() && node["trust"] == "none", "{node}");
    let tpm = fleet.tpm(EkKind::P256)?;
    let agent = fleet.rig.agent(&tpm, "joined", &[])?;
    let node = fleet.rig.wait_phase("joined", "delivered", SOON)?;
    ensure!(node["node_id"] == fleet.rig.node_id(&tpm)?.as_str(), "{node}");
    has_files(&agent, &PAYLOAD)?;
    let kinds = fleet.kinds("joined")?;
    for kind in ["bound", "joined", "trusted", "delivered"] {
        ensure!(kinds.iter().any(|told| told == kind), "no {kind} in {kinds:?}");
    }
    let joins = fleet.rig.api_get("/joins")?;
    let join = joins["joins"].as_array().and_then(|joins| joins.iter().find(|join| join["name"] == "joined"));
    ensure!(join.is_some_and(|join| join["state"] == "used"), "{join:?}");
    let server = fleet.rig.server()?.lines().join("\n");
    ensure!(!server.contains(&token), "the token travelled to the server");
    Ok(())
}

#[test]
fn two_challenges_that_come_together_are_answered_by_one_quote() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let line = Line::lay(fleet.rig.gateway())?;
    line.slow_down(Duration::from_millis(250));
    let node = fleet.expected("one-quote", EkKind::P256)?;
    let config = settings(&fleet.rig, "one-quote", &line.address().to_string())?;
    let agent = fleet.rig.agent_with(&node.tpm, "one-quote", &config, &[])?;
    fleet.rig.wait_phase("one-quote", "delivered", SOON)?;
    has_files(&agent, &PAYLOAD)?;
    let releases = fleet.releases("one-quote")?;
    let [one, other] = releases.as_slice() else { anyhow::bail!("not two releases: {releases:#?}") };
    ensure!(one["role"] != other["role"] && one["nk_digest"] == other["nk_digest"], "{releases:#?}");
    ensure!(one["quote_digest"] == other["quote_digest"], "two quotes were made: {releases:#?}");
    Ok(())
}

#[test]
fn ten_nodes_bootstrap_at_once() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let tpms = Swtpm::start_many(EkKind::NoCertificate, 10, &fleet.ca)?;
    let mut names = Vec::new();
    for (number, tpm) in tpms.iter().enumerate() {
        tpm.play_firmware()?;
        let name = format!("ten-{number}");
        fleet.add(&name, NodeAdd::id(fleet.rig.node_id(tpm)?))?;
        names.push((name.clone(), fleet.rig.agent_config(&name)?));
    }
    let agents = names
        .iter()
        .zip(&tpms)
        .map(|((name, config), tpm)| fleet.rig.agent_with(tpm, name, config, &[]))
        .collect::<Result<Vec<_>>>()?;
    let mut node_ids = Vec::new();
    for ((name, _), agent) in names.iter().zip(&agents) {
        let node = fleet.rig.wait_phase(name, "delivered", SOON)?;
        ensure!(node["hardware"]["kind"] == "allow_listed", "{node}");
        fleet.rig.wait_trust(name, "good", SOON)?;
        has_files(agent, &PAYLOAD)?;
        ensure!(fleet.releases(name)?.len() == 2, "{name}: {:#?}", fleet.releases(name)?);
        node_ids.push(node["node_id"].to_string());
    }
    node_ids.sort_unstable();
    node_ids.dedup();
    ensure!(node_ids.len() == 10, "{node_ids:?}");
    Ok(())
}

#[test]
fn an_agent_whose_line_is_cut_comes_back_to_be_attested_and_is_given_nothing_twice() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let line = Line::lay(fleet.rig.gateway())?;
    let node = fleet.expected("cut", EkKind::P256)?;
    let config = settings(&fleet.rig, "cut", &line.address().to_string())?;
    let agent = fleet.rig.agent_with(&node.tpm, "cut", &config, &[])?;
    fleet.rig.wait_phase("cut", "delivered", SOON)?;
    fleet.rig.wait_trust("cut", "good", SOON)?;
    let delivered_ms = fleet.delivered_ms("cut")?;
    for round in 1..=2 {
        let from = agent.step_count();
        ensure!(line.cut() == 1, "there was no connection to cut");
        agent.wait_for_step(from, SOON, |step| step.step == "hello" && step.text("phase") == "end")?;
        fleet.judged_anew("cut", "good")?;
        ensure!(hellos(&agent.steps()) == round + 1, "{}", agent.tail(30));
    }
    ensure!(fleet.releases("cut")?.len() == 2, "shares left again");
    ensure!(fleet.delivered_ms("cut")? == delivered_ms, "delivered again");
    has_files(&agent, &PAYLOAD)
}

#[test]
fn a_second_boot_gets_the_payload_again_under_a_new_nk() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let mut node = fleet.node("again")?;
    let first = fleet.releases("again")?;
    let delivered_ms = fleet.delivered_ms("again")?;
    let bound = fleet.kinds("again")?.iter().filter(|kind| *kind == "bound").count();
    node.reboot(&fleet)?;
    fleet.delivered_after("again", delivered_ms)?;
    fleet.is_delivered(&node)?;
    let all = fleet.releases("again")?;
    ensure!(first.len() == 2 && all.len() == 4, "{all:#?}");
    let (old, new) = (&first[0], &all[0]);
    ensure!(new["nk_digest"] != old["nk_digest"] && new["quote_digest"] != old["quote_digest"], "{all:#?}");
    ensure!(new["sealing_id"] == old["sealing_id"] && new["reset_count"] != old["reset_count"], "{all:#?}");
    // Known, so neither the registrar nor its credential is needed.
    let steps = node.agent()?.steps();
    ensure!(!steps.iter().any(|step| step.step == "enrol"), "a known node enrolled again");
    ensure!(fleet.kinds("again")?.iter().filter(|kind| *kind == "bound").count() == bound, "bound again");
    Ok(())
}

#[test]
fn a_payload_of_16_mib_arrives_byte_by_byte() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    // No two blocks alike, so that one in another's place would show.
    let mut state = 1u64;
    let big: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    })
    .take(2 << 20)
    .flatten()
    .collect();
    let files: [(&str, &[u8]); 2] = [("image.bin", &big), ("small", b"x")];
    let tpm = fleet.tpm(EkKind::P256)?;
    let payload = fleet.rig.payload("big", &files)?;
    fleet.add("big", NodeAdd::id(fleet.rig.node_id(&tpm)?).payload(payload))?;
    let agent = fleet.rig.agent(&tpm, "big", &[])?;
    fleet.rig.wait_phase("big", "delivered", 2 * SOON)?;
    has_files(&agent, &files)?;
    fleet.rig.wait_trust("big", "good", SOON).map(drop)
}

#[test]
fn a_living_nodes_policy_changes_at_once_and_its_payload_with_the_next_boot() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let mut node = fleet.node("changed")?;
    let before = fleet.rig.node("changed")?;
    // A policy that the node meets too, then one that it does not, then the first again.
    let other = fleet.rig.dir().join("other.toml");
    fs::write(&other, policy_for("other", &played_value(JUDGED_PCR)))?;
    fleet.rig.trefoil(&["node", "set", "changed", "--policy", &other.to_string_lossy()])?;
    let after = fleet.judged_anew("changed", "good")?;
    ensure!(after["policy"] != before["policy"], "{after}");
    ensure!(after["last_verdict"]["policy"] == after["policy"], "judged by the old policy: {after}");
    let strict = fleet.rig.dir().join("strict.toml");
    fs::write(&strict, policy_for("strict", &"ab".repeat(32)))?;
    fleet.rig.trefoil(&["node", "set", "changed", "--policy", &strict.to_string_lossy()])?;
    fleet.rig.wait_trust("changed", "failed", SOON)?;
    let told = fleet.rig.wait_event("changed", "pcr_mismatch", SOON)?;
    ensure!(told.detail.contains("PCR") && told.detail.contains('7'), "{told}");
    fleet.rig.trefoil(&["node", "set", "changed", "--policy", &other.to_string_lossy()])?;
    fleet.rig.trefoil(&["node", "resume", "changed"])?;
    fleet.judged_anew("changed", "good")?;

    let new: [(&str, &[u8]); 1] = [("app.toml", b"answer = 43\n")];
    let payload = fleet.rig.payload("changed", &new)?;
    fleet.rig.trefoil(&["node", "set", "changed", "--payload", &payload.to_string_lossy()])?;
    let changed = fleet.judged_anew("changed", "good")?;
    ensure!(changed["sealing_id"] != before["sealing_id"], "{changed}");
    ensure!(fleet.releases("changed")?.len() == 2, "the new payload was given in the same boot");
    has_files(node.agent()?, &PAYLOAD)?;
    let delivered_ms = fleet.delivered_ms("changed")?;
    node.reboot(&fleet)?;
    let delivered = fleet.delivered_after("changed", delivered_ms)?;
    ensure!(delivered["delivered"]["sealing_id"] == changed["sealing_id"], "{delivered}");
    has_files(node.agent()?, &new)
}

#[test]
fn a_node_that_is_tampered_with_fails_and_is_good_again_only_after_boot_and_resume() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let mut node = fleet.node("tampered")?;
    fleet.judged_anew("tampered", "good")?;
    node.tpm.pcr_extend(JUDGED_PCR, &"5a".repeat(32))?;
    fleet.rig.wait_trust("tampered", "failed", SOON)?;
    let told = fleet.rig.wait_event("tampered", "pcr_mismatch", SOON)?;
    ensure!(told.role == "verifier", "{told}");
    let verdict = fleet.rig.node("tampered")?["last_verdict"].to_string();
    ensure!(verdict.contains(&node.tpm.pcr(JUDGED_PCR)?), "the verdict does not say what was found: {verdict}");
    // An operator's word does not make it good: the PCR still says otherwise.
    fleet.rig.trefoil(&["node", "resume", "tampered"])?;
    fleet.judged_anew("tampered", "failed")?;
    // Neither does a boot without the operator's word, and no share leaves.
    let releases = shares_of_v(&fleet, "tampered")?;
    node.reboot(&fleet)?;
    fleet.rig.wait_event("tampered", "verdict_superseded", SOON)?;
    node.agent()?.wait_for_step(0, SOON, third_quote())?;
    ensure!(fleet.rig.node("tampered")?["trust"] == "failed", "{}", fleet.rig.node("tampered")?);
    let said = fleet.rig.events("tampered")?;
    let withheld =
        |role: &str| said.iter().filter(|event| event.kind == "verdict_superseded" && event.role == role).count();
    ensure!(withheld("verifier") == 1 && withheld("tenant") <= 1, "not told once: {said:#?}");
    ensure!(shares_of_v(&fleet, "tampered")? == releases, "V left for a failed node");
    ensure!(!said_delivered(node.agent()?), "a failed node got its payload");
    let delivered_ms = fleet.delivered_ms("tampered")?;
    fleet.rig.trefoil(&["node", "resume", "tampered"])?;
    fleet.delivered_after("tampered", delivered_ms)?;
    fleet.is_delivered(&node).map(drop)
}

#[test]
fn a_node_that_falls_silent_is_stale_after_three_intervals_and_good_when_it_speaks_again() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let node = fleet.node("silent")?;
    let worker = node.agent()?.worker_pid().context("no worker")?;
    sys::signal(worker, sys::SIGSTOP)?;
    let last = fleet.rig.node("silent")?;
    let stale = fleet.rig.wait_trust("silent", "stale", SOON)?;
    let (now_ms, at_ms) = (stale["now_ms"].as_i64(), stale["last_verdict"]["at_ms"].as_i64());
    let age_ms = now_ms.zip(at_ms).map(|(now_ms, at_ms)| now_ms - at_ms).context("no times")?;
    ensure!((3_000..4_500).contains(&age_ms), "stale {age_ms} ms after the last nonce: {last} {stale}");
    ensure!(stale["phase"] == "delivered", "{stale}");
    sys::signal(worker, sys::SIGCONT)?;
    fleet.judged_anew("silent", "good")?;
    has_files(node.agent()?, &PAYLOAD)
}

#[test]
fn a_graceful_stop_tells_the_agents_and_exits_with_0_and_they_come_back() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::new(Options::default())?;
    let node = fleet.node("patient")?;
    let from = node.agent()?.line_count();
    fleet.rig.stop_server()?;
    node.agent()?.wait_for_line_from(from, SOON, |line| line.contains("the gateway is about to end"))?;
    let steps = node.agent()?.step_count();
    fleet.rig.start_server()?;
    node.agent()?.wait_for_step(steps, SOON, |step| step.step == "hello" && step.text("phase") == "end")?;
    fleet.judged_anew("patient", "good")?;
    ensure!(fleet.releases("patient")?.len() == 2, "shares left again");
    has_files(node.agent()?, &PAYLOAD)
}

#[test]
fn a_data_directory_that_fills_up_refuses_the_payload_clearly_and_loses_nothing() -> Result<()> {
    need_tpm!();
    if !rig::is_root() {
        println!("skipped: a small file system takes root to mount");
        return Ok(());
    }
    let fleet = Fleet::new(Options { store: Store::Sqlite, data_limit: Some(5 << 18), ..Options::default() })?;
    let mut node = fleet.node("frugal")?;
    let before = fleet.rig.node("frugal")?;
    let unharmed = || -> Result<()> {
        let after = fleet.judged_anew("frugal", "good")?;
        for field in ["name", "node_id", "phase", "policy", "sealing_id", "ak_name", "hardware", "delivered"] {
            ensure!(after[field] == before[field], "`{field}` was {}, is {}", before[field], after[field]);
        }
        Ok(())
    };
    // More than there is room for: nothing of it is taken, so all else goes on.
    let big: Vec<u8> = (0..1_500_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let payload = fleet.rig.payload("too-big", &[("image.bin", &big)])?;
    let refused = fleet.rig.trefoil(&["node", "set", "frugal", "--payload", &payload.to_string_lossy()]);
    let said = format!("{:#}", refused.err().context("a payload of 1.5 MB fitted into 1.25 MiB")?);
    ensure!(said.contains("no room left") && said.contains("bytes are needed"), "not told what is wrong: {said}");
    unharmed()?;

    // Somebody else fills it up in the middle of an upload: the next chunk is refused, and taken once there is room.
    let node_id = NodeId::from_hex(before["node_id"].as_str().unwrap_or_default()).context("no node id")?;
    let files: [(&str, &[u8]); 1] = [("small", big.get(..2000).context("too short")?)];
    let sealing = RogueSealing::new(Subject::Node(node_id), &fleet.signing_key()?, &files)?;
    let (status, begun) = fleet.begin_sealing(&sealing)?;
    ensure!(status == 201 && begun["chunk_count"] == 1, "{status} {begun}");
    let filler = fleet.rig.data_dir().join("somebody-elses");
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[0x55; 4096]).is_ok() {}
    drop(file);
    let (status, refused) = fleet.put_chunk(&sealing, 0)?;
    ensure!(status == 507 && refused["type"] == "storage_full", "{status} {refused}");
    ensure!(fleet.rig.server()?.is_running(), "the server has ended");
    fs::remove_file(&filler)?;
    unharmed()?;
    let (status, answer) = fleet.put_chunk(&sealing, 0)?;
    ensure!(status == 204, "{status} {answer}");
    let (status, finished) = fleet.finish_sealing(&sealing)?;
    ensure!(status == 200 && finished["complete"] == true, "{status} {finished}");

    // The old payload is what the node gets until it is told otherwise, also after the server died.
    fleet.rig.kill_server()?;
    fleet.rig.start_server()?;
    let delivered_ms = fleet.delivered_ms("frugal")?;
    node.reboot(&fleet)?;
    fleet.delivered_after("frugal", delivered_ms)?;
    fleet.is_delivered(&node).map(drop)
}

#[test]
fn a_certificate_issued_with_the_payload_verifies_against_the_tenants_ca() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let tpm = fleet.tpm(EkKind::P256)?;
    fleet.add("certified", NodeAdd::id(fleet.rig.node_id(&tpm)?).arg("--issue-cert"))?;
    let agent = fleet.rig.agent(&tpm, "certified", &[])?;
    fleet.rig.wait_phase("certified", "delivered", SOON)?;
    let files = agent.payload()?;
    ensure!(files.get("app.toml").is_some_and(|file| file == PAYLOAD[0].1), "{:?}", files.keys());
    let openssl =
        |arguments: &[&str]| spawn::run(Command::new("openssl").args(arguments).current_dir(agent.payload_dir()));
    ensure!(openssl(&["verify", "-CAfile", "ca.crt", "node.crt"])?.contains("OK"), "not verified");
    let public = openssl(&["x509", "-in", "node.crt", "-noout", "-pubkey"])?;
    ensure!(openssl(&["pkey", "-in", "node.key", "-pubout"])? == public, "the key is not the certificate's");
    let subject = openssl(&["x509", "-in", "node.crt", "-noout", "-subject"])?;
    ensure!(subject.contains("certified"), "{subject}");
    // Another control plane's CA did not sign it: the check above can fail.
    let other = fleet.rig.operator_dir().join("server-ca.pem");
    ensure!(openssl(&["verify", "-CAfile", &other.to_string_lossy(), "node.crt"]).is_err(), "any CA verifies it");
    Ok(())
}

#[test]
fn autorun_runs_where_it_is_allowed_and_its_end_is_in_the_history() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let script = b"#!/bin/sh\ncat app.toml > ran\necho the disk is open\nexit 3\n";
    let payload = fleet.rig.payload("autorun", &[("app.toml", b"answer = 42\n"), ("autorun", script)])?;
    make_executable(&payload.join("autorun"))?;
    let tpm = fleet.tpm(EkKind::P256)?;
    fleet.add("runs", NodeAdd::id(fleet.rig.node_id(&tpm)?).payload(&payload).arg("--autorun"))?;
    let agent = fleet.rig.agent(&tpm, "runs", &[])?;
    let told = fleet.rig.wait_event("runs", "autorun", SOON)?;
    ensure!(told.detail.contains("status 3") && told.detail.contains("the disk is open"), "{told}");
    ensure!(agent.payload()?.get("ran").is_some_and(|file| file == b"answer = 42\n"), "it ran elsewhere");
    fleet.rig.wait_phase("runs", "delivered", SOON)?;
    fleet.rig.wait_trust("runs", "good", SOON)?;

    // The same payload where the image does not allow it: files only.
    let tpm = fleet.tpm(EkKind::P256)?;
    fleet.add("stands", NodeAdd::id(fleet.rig.node_id(&tpm)?).payload(&payload))?;
    let agent = fleet.rig.agent(&tpm, "stands", &[])?;
    fleet.rig.wait_phase("stands", "delivered", SOON)?;
    fleet.judged_anew("stands", "good")?;
    ensure!(!agent.payload()?.contains_key("ran"), "autorun ran where it was not allowed");
    ensure!(!fleet.kinds("stands")?.iter().any(|kind| kind == "autorun"), "{:?}", fleet.kinds("stands")?);
    Ok(())
}

#[test]
fn check_names_what_is_there_and_what_is_missing_and_changes_nothing() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let tpm = fleet.tpm(EkKind::P256)?;
    let node_id = fleet.rig.node_id(&tpm)?;
    let config = settings(&fleet.rig, "checked", &fleet.rig.gateway().to_string())?;
    let payload_dir = fleet.rig.memory()?.join("checked/payload");
    let check = |extra: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = fleet.rig.agent_command(&tpm.tcti(), &config)?;
        command.arg("--payload-dir").arg(&payload_dir).args(extra).arg("--check");
        let output = command.output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let (_, said) = check(&[])?;
    for found in
        ["tpm: made by", "ek certificate: p256", "ak name: 000b", "server 127.0.0.1", "phase-pcr 13: untouched"]
    {
        ensure!(said.lines().any(|line| line.starts_with("ok ") && line.contains(found)), "no `{found}` in\n{said}");
    }
    ensure!(said.contains(&node_id), "{said}");
    let (code, said) = check(&["--server", "127.0.0.1:1"])?;
    ensure!(code == Some(1), "{code:?}\n{said}");
    let lines: Vec<&str> = said.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("missing  server 127.0.0.1:1")).context(said.clone())?;
    ensure!(lines.get(at + 1).is_some_and(|advice| advice.contains("->") && advice.contains("firewall")), "{said}");
    // The TPM that answers nobody.
    let (code, said) = {
        let mut command = fleet.rig.agent_command("swtpm:host=127.0.0.1,port=1", &config)?;
        let output = command.arg("--payload-dir").arg(&payload_dir).arg("--check").output()?;
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ensure!(code == Some(1) && said.lines().any(|line| line.starts_with("missing  tpm: ")), "{code:?}\n{said}");
    ensure!(tpm.pcr(PHASE_PCR)? == ZERO, "the check extended the phase PCR");
    ensure!(!payload_dir.exists(), "the check made the payload's directory");
    let about_it = |event: &Value| event["node_id"] == node_id.as_str();
    let events = fleet.rig.api_get("/events?limit=500")?;
    ensure!(!events["events"].as_array().context("no events")?.iter().any(about_it), "the check said hello");
    Ok(())
}

fn make_executable(path: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// The shared fleet is one: tests that run at the same time meet on one control plane.
#[test]
fn the_fleet_is_shared_while_it_is_used() -> Result<()> {
    need_tpm!();
    let (one, other) = (Fleet::shared()?, Fleet::shared()?);
    ensure!(Arc::ptr_eq(&one, &other), "two control planes");
    Ok(())
}
