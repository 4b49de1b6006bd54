//! Shares that stay where they are: before the tenant agrees, twice in one boot, moved to another row, for nodes that
//! were stopped or removed; and connections that are of no use, whatever bytes they carry.
//!
//! That a verdict older than 30 s releases nothing is a matter of two numbers and tested beside the rule
//! (`control_plane::appraisal::verdict`); nobody here waits for it.

mod hostile;

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hil_tests::rig::policy_text;
use hil_tests::rogue::client::{Bootstrap, EvidenceHacks, RogueAgent};
use hil_tests::rogue::tpm::{Identity, RogueTpm};
use hil_tests::rogue::{Refused, Request};
use hil_tests::swtpm::EkKind;
use hostile::{A_WHILE, Bench, JUDGED_PCR, Rightful, RogueNode, SOON, patiently, refusal, refused_for};
use protocol::bytes::{Array, Bytes};
use protocol::coap::frame::Code;
use protocol::coap::route::Route;
use protocol::crypto::TenantPublicKey;
use protocol::id::{NodeId, Role};
use protocol::message;
use protocol::message::attest::{Challenge, Evidence, PcrValueList, Purpose};
use protocol::message::enrol::{HelloAnswer, Wants};

const BOTH: [Role; 2] = [Role::Verifier, Role::Tenant];

fn honestly(_: &Challenge) -> EvidenceHacks<'static> {
    EvidenceHacks::default()
}

/// Answers whatever comes, honestly, for a while.
fn serve_for_a_while(agent: &mut RogueAgent, node: &RogueNode, bootstrap: &mut Bootstrap) -> Result<()> {
    while let Some(request) = agent.next_request(A_WHILE)? {
        // A challenge to attest comes every second, for ever.
        let is_steady = request.is(Route::Challenge) && request.message::<Challenge>()?.purpose == Purpose::Attest;
        bootstrap.answer(agent, &node.tpm, &node.identity, &request, honestly)?;
        if is_steady {
            break;
        }
    }
    Ok(())
}

#[test]
fn v_does_not_leave_before_the_tenant_agrees() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let node = RogueNode::new(&bench, "eager", EkKind::P256)?;
    let mark = bench.mark()?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    let mut bootstrap = Bootstrap::new(node.node_id());
    let (request, _) = agent.next_challenge(Role::Verifier, SOON)?;
    bootstrap.answer(&mut agent, &node.tpm, &node.identity, &request, honestly)?;
    bench.expect(&mark, node.node_id(), "verifier", "trusted")?;
    // Good in the verifier's eyes; the tenant's challenge is not answered yet.
    let (tenants, _) = agent.next_challenge(Role::Tenant, SOON)?;
    ensure!(agent.next_request(A_WHILE)?.is_none(), "something came before the tenant agreed");
    bench.nothing_left(&node.name)?;

    bootstrap.answer(&mut agent, &node.tpm, &node.identity, &tenants, honestly)?;
    bootstrap.run(&mut agent, &node.tpm, &node.identity, SOON, honestly)?;
    bootstrap.open()?;
    let steps = bench.rig.server()?.steps();
    let about = |step: &hil_tests::spawn::Step| step.text("node") == node.node_id().to_string();
    let agreed = steps.iter().position(|step| step.step == "agree" && about(step)).context("no `agree`")?;
    let v_left = steps.iter().position(|step| step.step == "share" && step.text("from") == "verifier" && about(step));
    ensure!(v_left.is_some_and(|left| left > agreed), "V left at step {v_left:?}, `agree` came at {agreed}");
    Ok(())
}

#[test]
fn a_node_that_the_tenant_refuses_gets_no_v_though_the_verifier_finds_it_good() -> Result<()> {
    need_tpm!();
    let bench = Bench::new()?;
    let node = RogueNode::new(&bench, "divided", EkKind::P256)?;
    let strict = bench.rig.dir().join("strict.toml");
    let text = policy_text("strict", &[(JUDGED_PCR, "ee".repeat(32))], "[release]\nuncapped = true\n");
    std::fs::write(&strict, &text)?;
    bench.rig.trefoil(&["policy", "add", &strict.to_string_lossy()])?;
    bench.rig.stop_server()?;
    let id = protocol::crypto::sha256(&[text.as_bytes()]);
    bench.change(Role::Tenant, |bytes| format!("UPDATE node SET policy = {} WHERE name = 'divided'", bytes(&id)))?;
    bench.rig.start_server()?;
    let mark = bench.mark()?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    let mut bootstrap = Bootstrap::new(node.node_id());
    for role in BOTH {
        let (request, _) = agent.next_challenge(role, SOON)?;
        bootstrap.answer(&mut agent, &node.tpm, &node.identity, &request, honestly)?;
    }
    bench.expect(&mark, node.node_id(), "verifier", "trusted")?;
    bench.expect(&mark, node.node_id(), "tenant", "pcr_mismatch")?;
    serve_for_a_while(&mut agent, &node, &mut bootstrap)?;
    ensure!(bootstrap.shares.is_empty(), "a share came");
    bench.nothing_left("divided")
}

#[test]
fn a_share_asked_for_after_delivery_in_the_same_boot_is_refused_by_both_roles() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let mut node = Rightful::new(&bench, "delivered")?;
    ensure!(bench.releases("delivered")?.len() == 2);
    // Whoever has the TPM after autorun is the node as far as the protocol can tell; its phase PCR says what time it is.
    node.agent.stop(SOON)?;
    let tpm = RogueTpm::of(&node.tpm);
    let mark = bench.mark()?;
    let mut agent = patiently(|| {
        let mut agent = bench.connect()?;
        ensure!(agent.hello(&node.identity, Wants::Payload)? == HelloAnswer::Known);
        Ok(agent)
    })?;
    let mut bootstrap = Bootstrap::new(node.node_id());
    for role in BOTH {
        let (request, _) = agent.next_challenge(role, SOON)?;
        bootstrap.answer(&mut agent, &tpm, &node.identity, &request, honestly)?;
        bench.expect(&mark, node.node_id(), role.name(), "phase_delivered")?;
    }
    ensure!(bootstrap.shares.is_empty() && bench.releases("delivered")?.len() == 2, "a share left a second time");
    drop(agent);
    node.agent = bench.rig.agent(&node.tpm, "delivered", &[])?;
    node.is_good(&bench)
}

#[test]
fn without_a_phase_pcr_a_second_release_after_confirm_is_refused_by_both_roles_until_the_next_boot() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let node = RogueNode::new(&bench, "confirmed", EkKind::P256)?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    let opened = node.bootstrap(&bench, &mut agent)?.open()?;
    let shown = bench.rig.node("confirmed")?;
    let pin = shown["pins"]["tenant_keys"][0].as_str().and_then(TenantPublicKey::from_text).context("no pin")?;
    let (_, keys) = opened.keys(&agent.manifest(opened.sealing_id)?, &[pin])?;
    agent.confirm(&opened.confirmation(&keys))?;
    bench.rig.wait_phase("confirmed", "delivered", SOON)?;
    drop(agent);

    let mark = bench.mark()?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    let mut bootstrap = Bootstrap::new(node.node_id());
    for role in BOTH {
        let (request, _) = agent.next_challenge(role, SOON)?;
        bootstrap.answer(&mut agent, &node.tpm, &node.identity, &request, honestly)?;
        bench.expect(&mark, node.node_id(), role.name(), "already_delivered")?;
    }
    ensure!(bootstrap.shares.is_empty() && bench.releases("confirmed")?.len() == 2, "a share left a second time");
    drop(agent);

    node.swtpm.reset()?;
    node.swtpm.play_firmware()?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    let again = node.bootstrap(&bench, &mut agent)?.open()?;
    ensure!(again.sealing_id == opened.sealing_id && again.nk.public() != opened.nk.public());
    Ok(())
}

#[test]
fn a_confirmation_that_nobody_could_have_made_delivers_nothing() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let node = RogueNode::new(&bench, "boaster", EkKind::NoCertificate)?;
    let mark = bench.mark()?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    let opened = node.bootstrap(&bench, &mut agent)?.open()?;
    let forged = protocol::message::provision::Confirm { sealing_id: opened.sealing_id, proof: Array([1; 32]) };
    refused_for(agent.confirm(&forged), "bad_confirm")?;
    bench.expect(&mark, node.node_id(), "tenant", "bad_confirm")?;
    ensure!(bench.rig.node("boaster")?["phase"] == "delivering");
    Ok(())
}

/// A node, and another whose share is put into its row.
fn moved() -> Result<(Bench, RogueNode)> {
    let bench = Bench::new()?;
    let node = RogueNode::new(&bench, "thief", EkKind::P256)?;
    bench.add_by_id("robbed", NodeId([0x77; 32]), &bench.uncapped)?;
    bench.rig.stop_server()?;
    Ok((bench, node))
}

/// The shares that an honest answer to both roles brings, and that a role says why its own stays.
fn shares_with(bench: &Bench, node: &RogueNode, refuses: Role, kind: &str) -> Result<Bootstrap> {
    shares_after(bench, node, &BOTH, refuses, kind)
}

/// The same after an honest answer to these roles only.
fn shares_after(bench: &Bench, node: &RogueNode, answered: &[Role], refuses: Role, kind: &str) -> Result<Bootstrap> {
    bench.rig.start_server()?;
    let mark = bench.mark()?;
    let mut agent = node.bound(bench, Wants::Payload)?;
    let mut bootstrap = Bootstrap::new(node.node_id());
    for role in answered {
        let (request, _) = agent.next_challenge(*role, SOON)?;
        bootstrap.answer(&mut agent, &node.tpm, &node.identity, &request, honestly)?;
    }
    bench.expect(&mark, node.node_id(), refuses.name(), kind)?;
    serve_for_a_while(&mut agent, node, &mut bootstrap)?;
    ensure!(bench.releases_of("thief", refuses.name())? == 0);
    Ok(bootstrap)
}

#[test]
fn a_v_that_was_moved_to_another_row_does_not_leave() -> Result<()> {
    need_tpm!();
    let (bench, node) = moved()?;
    let other = "SELECT v_sealed FROM node WHERE name = 'robbed'";
    bench.change(Role::Verifier, |_| format!("UPDATE node SET v_sealed = ({other}) WHERE name = 'thief'"))?;
    let bootstrap = shares_with(&bench, &node, Role::Verifier, "stored_share_refused")?;
    ensure!(!bootstrap.has_v() && bootstrap.has_u() && bootstrap.open().is_err());
    Ok(())
}

#[test]
fn a_u_that_was_moved_to_another_row_does_not_leave_and_neither_does_v() -> Result<()> {
    need_tpm!();
    let (bench, node) = moved()?;
    let sealing = |name| format!("(SELECT sealing_id FROM node WHERE name = '{name}')");
    bench.change(Role::Tenant, |_| {
        let other = format!("(SELECT u_sealed FROM sealing WHERE sealing_id = {})", sealing("robbed"));
        format!("UPDATE sealing SET u_sealed = {other} WHERE sealing_id = {}", sealing("thief"))
    })?;
    let bootstrap = shares_with(&bench, &node, Role::Tenant, "stored_share_refused")?;
    ensure!(bootstrap.shares.is_empty(), "a share came");
    bench.nothing_left("thief")
}

#[test]
fn a_whole_sealing_that_was_moved_to_another_node_does_not_leave() -> Result<()> {
    need_tpm!();
    let (bench, node) = moved()?;
    // All that a writer in the tenant's database can do: name the other's sealing, and have the verifier told of it.
    bench.change(Role::Tenant, |_| {
        let other = "(SELECT sealing_id FROM node WHERE name = 'robbed')";
        format!("UPDATE node SET sealing_id = {other}, revision = revision + 1 WHERE name = 'thief'")
    })?;
    let bootstrap = shares_with(&bench, &node, Role::Tenant, "stored_share_refused")?;
    ensure!(bootstrap.shares.is_empty(), "a share came");
    bench.nothing_left("thief")
}

#[test]
fn a_whole_row_that_was_moved_in_the_verifiers_database_with_an_agreement_does_not_leave() -> Result<()> {
    need_tpm!();
    let (bench, node) = moved()?;
    let of = |column: &str, from: &str| format!("{column} = (SELECT {from} FROM node WHERE name = 'robbed')");
    let moved = ["sealing_id", "v_sealed", "sealing_subject"].map(|column| of(column, column)).join(", ");
    bench.change(Role::Verifier, |bytes| {
        let agreed = format!("agreed_ak = {}, {}", bytes(&node.identity.ak_name), of("agreed_sealing", "sealing_id"));
        format!("UPDATE node SET {moved}, {agreed} WHERE name = 'thief'")
    })?;
    // The tenant is not answered: its own agreement would put the forged one right.
    let bootstrap = shares_after(&bench, &node, &[Role::Verifier], Role::Verifier, "stored_share_refused")?;
    ensure!(!bootstrap.has_v(), "another node's V came");
    Ok(())
}

#[test]
fn a_stranger_that_says_hello_as_a_connected_node_does_not_disturb_it() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let mark = bench.mark()?;
    for wants in [Wants::Payload, Wants::Attest] {
        let (mut agent, request) = challenged(&bench, &rightful, wants)?;
        agent.answer_challenge(&request, &nonsense(wants))?;
        ensure!(agent.wait_closed(SOON)?.is_some_and(|why| why.contains("bad_signature")), "{:?}", agent.closed());
    }
    bench.expect(&mark, rightful.node_id(), "verifier", "bad_signature")?;
    ensure!(bench.releases(&rightful.name)?.len() == 2, "something left besides the rightful node's own two shares");
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn a_stranger_proves_nothing_and_is_served_nothing_of_the_tenants() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let mark = bench.mark()?;
    let sealing = bench.rig.node(&rightful.name)?["sealing_id"].as_str().map(str::to_owned).context("no sealing")?;
    let sealing = protocol::id::SealingId::from_hex(&sealing).context("no sealing id")?;
    let (mut agent, request) = challenged(&bench, &rightful, Wants::Payload)?;
    let asked = [Route::Manifest(sealing), Route::Payload(sealing)].map(|route| agent.begin(route, None, &[]));
    ensure!(agent.next_request(A_WHILE)?.is_none_or(|request| request.is(Route::Challenge)));
    for ticket in asked {
        ensure!(agent.answer(ticket?).is_none(), "a connection that has proven nothing was answered");
    }
    agent.answer_challenge(&request, &nonsense(Wants::Payload))?;
    ensure!(agent.wait_closed(SOON)?.is_some(), "the connection was not ended");
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn of_three_strangers_that_claim_one_node_the_third_is_sent_away() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = Rightful::new(&bench, "claimed")?;
    let mark = bench.mark()?;
    let mut strangers = Vec::new();
    for _ in 0..2 {
        let mut stranger = bench.connect()?;
        ensure!(stranger.hello(&rightful.identity, Wants::Payload)? == HelloAnswer::Known);
        strangers.push(stranger);
    }
    let third = bench.connect()?.hello(&rightful.identity, Wants::Payload);
    ensure!(refusal(third)?.code == Code::TOO_MANY_REQUESTS);
    // They compete with each other, and with nobody else.
    rightful.is_unharmed(&bench, &mark)?;
    drop(strangers);
    patiently(|| bench.connect()?.hello(&rightful.identity, Wants::Payload).map(drop))
}

#[test]
fn a_stopped_node_gets_nothing_until_it_is_resumed() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let node = RogueNode::new(&bench, "stopped", EkKind::NoCertificate)?;
    bench.rig.trefoil(&["node", "stop", "stopped"])?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    ensure!(agent.next_request(A_WHILE)?.is_none(), "a stopped node was asked for something");
    bench.nothing_left("stopped")?;
    ensure!(bench.rig.node("stopped")?["phase"] == "stopped");
    bench.rig.trefoil(&["node", "resume", "stopped"])?;
    node.bootstrap(&bench, &mut agent)?.open()?;
    Ok(())
}

#[test]
fn a_node_that_is_stopped_between_verdict_and_share_gets_none() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let node = RogueNode::new(&bench, "stopped-late", EkKind::NoCertificate)?;
    let mark = bench.mark()?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    let mut bootstrap = Bootstrap::new(node.node_id());
    let (request, _) = agent.next_challenge(Role::Verifier, SOON)?;
    bootstrap.answer(&mut agent, &node.tpm, &node.identity, &request, honestly)?;
    bench.expect(&mark, node.node_id(), "verifier", "trusted")?;
    let (request, _) = agent.next_challenge(Role::Tenant, SOON)?;
    bench.rig.trefoil(&["node", "stop", "stopped-late"])?;
    bootstrap.answer(&mut agent, &node.tpm, &node.identity, &request, honestly)?;
    bench.expect(&mark, node.node_id(), "tenant", "node_stopped")?;
    serve_for_a_while(&mut agent, &node, &mut bootstrap)?;
    ensure!(bootstrap.shares.is_empty(), "a share came");
    bench.nothing_left("stopped-late")
}

#[test]
fn a_removed_node_loses_its_connection_and_is_a_stranger_again() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let node = RogueNode::new(&bench, "removed", EkKind::NoCertificate)?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    let (request, _) = agent.next_challenge(Role::Tenant, SOON)?;
    bench.rig.trefoil(&["node", "remove", "removed"])?;
    let words = agent.wait_closed(SOON)?.context("the connection was not ended")?;
    ensure!(words.contains("the node was removed"), "{words}");
    ensure!(agent.respond(request.token, Code::CONTENT, &[]).is_err() || agent.closed().is_some());
    let mark = bench.mark()?;
    let mut agent = patiently(|| {
        let mut agent = bench.connect()?;
        ensure!(agent.hello(&node.identity, Wants::Payload)? == HelloAnswer::Enrol, "it is still known");
        Ok(agent)
    })?;
    let answer = agent.enrol(&node.identity, None)?;
    refused_for(agent.activate(&node.tpm, &node.identity, &answer), "quarantined")?;
    bench.expect(&mark, node.node_id(), "registrar", "quarantined")?;
    ensure!(agent.next_request(A_WHILE)?.is_none());
    Ok(())
}

/// Evidence that no TPM has made.
fn nonsense(wants: Wants) -> Evidence {
    Evidence {
        attested: Bytes::new(b"nonsense").unwrap_or_default(),
        signature: Bytes::new(&[0; 72]).unwrap_or_default(),
        nk_public: (wants == Wants::Payload).then_some(Array([4; 65])),
        other_nonce: None,
        pcrs_from_base: false,
        pcrs: PcrValueList::new(),
        boot_log: None,
        ima: None,
        credential_answer: None,
    }
}

/// A stranger who said hello as the rightful node, and its first challenge.
fn challenged(bench: &Bench, rightful: &Rightful, wants: Wants) -> Result<(RogueAgent, Request)> {
    let mut agent = patiently(|| {
        let mut agent = bench.connect()?;
        ensure!(agent.hello(&rightful.identity, wants)? == HelloAnswer::Known);
        Ok(agent)
    })?;
    let (request, _) = agent.next_challenge(Role::Verifier, SOON)?;
    Ok((agent, request))
}

/// How far a connection has come when it is sent bytes that are none of CoAP's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum At {
    Ready,
    Hello,
    Enrolment,
    Challenge,
}

impl At {
    /// A stranger's connection in this state, as the rightful node where it says who it is.
    fn reach(self, bench: &Bench, rightful: &Rightful) -> Result<RogueAgent> {
        patiently(|| {
            let mut agent = bench.connect()?;
            match self {
                Self::Ready => {
                    agent.request(Route::WellKnownCore, &[])?.accepted()?;
                }
                Self::Hello => {
                    agent.hello(&Identity { ak_name: [0; 34], ..rightful.identity.clone() }, Wants::Payload)?;
                }
                Self::Enrolment => {
                    let own = Identity::without_tpm()?;
                    let ak = Identity { ak_public: own.ak_public, ak_name: own.ak_name, ..rightful.identity.clone() };
                    agent.hello(&ak, Wants::Payload)?;
                    agent.enrol(&ak, None)?;
                }
                Self::Challenge => {
                    agent.hello(&rightful.identity, Wants::Payload)?;
                    agent.next_challenge(Role::Verifier, SOON)?;
                }
            }
            Ok(agent)
        })
    }
}

/// Bytes after which no message can begin.
fn broken() -> [(&'static str, Vec<u8>); 6] {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let noise = (0..4096).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    [
        ("a length of four GiB", vec![0xf0, 0xff, 0xff, 0xff, 0xff, 0x02]),
        ("a length just above the limit", [&[0xe0][..], &(8193_u16 - 269).to_be_bytes(), &[0x02]].concat()),
        ("a token of fifteen bytes", [vec![0x0f, 0x02], vec![0; 15]].concat()),
        ("ones", vec![0xff; 20_000]),
        // Length and token length of the first byte make it broken whatever follows.
        ("noise", [vec![0x9d], noise.collect()].concat()),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
    ]
}

fn broken_frames_are_survived(at: At) -> Result<()> {
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let before = bench.mark()?;
    for (what, bytes) in broken() {
        let mark = bench.mark()?;
        let mut agent = at.reach(&bench, &rightful)?;
        // The server may have closed before all of it was written.
        _ = agent.send_bytes(&bytes);
        let why = agent.wait_closed(SOON)?.with_context(|| format!("{at:?}: {what} did not end the connection"))?;
        if at != At::Ready {
            bench
                .expect(&mark, rightful.node_id(), "registrar", "bad_frame")
                .with_context(|| format!("{what}: {why}"))?;
        }
    }
    // Half a message, and half a record, and then nothing more.
    for below_tls in [false, true] {
        let mut agent = at.reach(&bench, &rightful)?;
        if below_tls {
            agent.send_below_tls(&[0x17, 3, 3, 0x40, 0, 1, 2, 3])?;
        } else {
            agent.send_bytes(&[0xd4, 200, 0x02, 1, 2, 3, 4, 0xb2, b'v'])?;
        }
        agent.cut();
    }
    // What is no record of this connection.
    let mut agent = at.reach(&bench, &rightful)?;
    agent.send_below_tls(&[0x55; 64])?;
    ensure!(agent.wait_closed(SOON)?.is_some(), "{at:?}: bytes below TLS did not end the connection");
    ensure!(bench.releases(&rightful.name)?.len() == 2);
    rightful.is_unharmed(&bench, &before)
}

#[test]
fn broken_frames_before_hello_end_their_connection_only() -> Result<()> {
    need_tpm!();
    broken_frames_are_survived(At::Ready)
}

#[test]
fn broken_frames_after_hello_end_their_connection_only() -> Result<()> {
    need_tpm!();
    broken_frames_are_survived(At::Hello)
}

#[test]
fn broken_frames_during_enrolment_end_their_connection_only() -> Result<()> {
    need_tpm!();
    broken_frames_are_survived(At::Enrolment)
}

#[test]
fn broken_frames_while_a_challenge_waits_end_their_connection_only() -> Result<()> {
    need_tpm!();
    broken_frames_are_survived(At::Challenge)
}

#[test]
fn broken_frames_before_the_csm_end_their_connection_only() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let mark = bench.mark()?;
    // A request is one too: the first message has to be a CSM (RFC 8323 §5.3).
    for (what, bytes) in broken().into_iter().chain([("a request", vec![0x00, 0x01]), ("a pong", vec![0x00, 0xe3])]) {
        let mut stream = bench.rig.connect_gateway()?;
        // The server may have closed before all of it was written.
        _ = stream.write_all(&bytes).and_then(|()| stream.flush());
        let mut buf = [0; 4096];
        loop {
            match stream.read(&mut buf) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!("{what} before the CSM did not end the connection");
                }
                Err(_) => break,
            }
        }
    }
    for half in [&[][..], &[0xd4], &[0xf0, 0xff]] {
        let mut stream = bench.rig.connect_gateway()?;
        stream.write_all(half)?;
        stream.flush()?;
    }
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn a_body_that_is_no_message_is_refused_and_costs_nothing_else() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let mark = bench.mark()?;
    let own = Identity::without_tpm()?;
    let ak = Identity { ak_public: own.ak_public, ak_name: own.ak_name, ..rightful.identity.clone() };
    let mut agent = bench.connect()?;
    let bodies: [&[u8]; 4] = [&[], &[0xff; 5000], b"\x01", &[0; 200]];
    let is_malformed = |reply: hil_tests::rogue::Reply| -> Result<()> {
        let refused = reply.accepted().err().context("not refused")?.downcast::<Refused>()?;
        ensure!(refused.code == Code::BAD_REQUEST && refused.text.starts_with("malformed: "), "{refused}");
        Ok(())
    };
    // Until hello no route is open but hello, and nothing but a hello passes there.
    for route in [Route::Enrol, Route::Activate, Route::Confirm, Route::Report] {
        refused_for(agent.request(route, &[0; 16])?.accepted(), "no_hello")?;
    }
    for body in bodies {
        is_malformed(agent.request(Route::Hello, body)?)?;
    }
    patiently(|| {
        agent = bench.connect()?;
        agent.hello(&ak, Wants::Payload).map(drop)
    })?;
    refused_for(agent.hello(&ak, Wants::Payload), "second_hello")?;
    for body in bodies {
        is_malformed(agent.request(Route::Enrol, body)?)?;
    }
    // A message with one byte after its end is no message.
    let answer = agent.enrol(&ak, None)?;
    let activate = protocol::message::enrol::Activate { enrolment_id: answer.enrolment_id, proof: Array([0; 32]) };
    let mut body = message::to_vec(&activate)?;
    body.push(0);
    is_malformed(agent.request(Route::Activate, &body)?)?;
    for route in [Route::Challenge, Route::Share, Route::LogBoot] {
        refused_for(agent.request(route, &[])?.accepted(), "wrong_side")?;
    }
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn a_challenge_answered_by_no_evidence_ends_the_strangers_connection() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let before = bench.mark()?;
    for body in [&[][..], &[0xff; 5000], &[0; 3]] {
        let mark = bench.mark()?;
        let (mut agent, request) = challenged(&bench, &rightful, Wants::Attest)?;
        agent.respond(request.token, Code::CONTENT, body)?;
        ensure!(agent.wait_closed(SOON)?.is_some_and(|why| why.contains("bad_evidence")), "{:?}", agent.closed());
        bench.expect(&mark, rightful.node_id(), "verifier", "bad_evidence")?;
    }
    rightful.is_unharmed(&bench, &before)
}

#[test]
fn a_connection_that_proves_nothing_ends_after_a_minute() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let mark = bench.mark()?;
    let began = std::time::Instant::now();
    let mut silent = bench.connect()?;
    silent.request(Route::WellKnownCore, &[])?.accepted()?;
    let why = silent.wait_closed(Duration::from_secs(70))?.context("it was let be")?;
    ensure!(why.contains("60 s") && began.elapsed() >= Duration::from_secs(59), "{why} after {:?}", began.elapsed());
    rightful.is_unharmed(&bench, &mark)
}
