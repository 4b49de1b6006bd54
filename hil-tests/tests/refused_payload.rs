//! Whatever a control plane sends: nothing becomes a payload but what both roles released, under this boot's NK, and the
//! pinned tenant signed for this node.
//!
//! The gateway is a test's own and knows every key but the TPM's; one thing is changed at a time. The real agent names
//! what is wrong, and neither a file nor a `confirm` nor "delivered" in the phase PCR comes of it. Where the connection
//! or the next one allows it, the honest payload follows and is taken: what was refused was the change, nothing else.

mod misled;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use hil_tests::rogue::server::{
    Answered, Canned, ChallengeSpec, Resealed, RogueSealing, RogueSession, Target, junk_share,
};
use hil_tests::scratch::{MemoryFs, Scratch};
use hil_tests::sys;
use misled::{A_WHILE, Conf, FILES, SOON, Scene, Stage, challenged, fetched_nothing, refused};
use protocol::coap::frame::Code;
use protocol::coap::route::{Route, RouteName};
use protocol::crypto::payload::SEALED_CHUNK_LEN;
use protocol::crypto::{Nk, TenantSigningKey};
use protocol::id::{NodeId, Role, Subject};
use protocol::message::attest::Purpose;
use protocol::message::enrol::Wants;
use protocol::message::provision::ReportKind;
use rand_core::OsRng;

const DOES_NOT_OPEN: &str = "does not open under this boot's NK for this node, sealing and quote";

/// Bytes of every request that the agent makes on a connection, for a search.
fn overhear(session: &mut RogueSession) -> Arc<Mutex<Vec<u8>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    session.desk.intercept = Some(Box::new(move |request| {
        ear.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&request.payload);
        None
    }));
    heard
}

/// Neither the agent's requests nor its log hold this secret, as bytes or as hex digits.
fn never_said(scene: &Scene, heard: &Mutex<Vec<u8>>, secret: &[u8; 32]) -> Result<()> {
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let log = scene.agent()?.lines().join("\n").to_lowercase();
    let text = hex::encode(secret);
    ensure!(!heard.windows(32).any(|window| window == secret), "a secret went over the wire");
    ensure!(!log.contains(&text) && !String::from_utf8_lossy(&heard).contains(&text), "a secret was written in hex");
    Ok(())
}

/// One half leads nowhere; with the other one the same bootstrap completes.
fn half_is_not_enough(
    name: &str,
    first: fn(&mut RogueSession, &RogueSealing, &[Answered; 2]) -> Result<()>,
    second: fn(&mut RogueSession, &RogueSealing, &[Answered; 2]) -> Result<()>,
) -> Result<()> {
    let mut scene = Scene::new(name)?;
    let (mut session, sealing) = scene.ready()?;
    let heard = overhear(&mut session);
    let answered = challenged(&mut session)?;
    first(&mut session, &sealing, &answered)?;
    session.serve_for(A_WHILE)?;
    fetched_nothing(&session)?;
    scene.nothing_came()?;
    second(&mut session, &sealing, &answered)?;
    scene.takes(&mut session, &FILES)?;
    let (u, v) = (sealing.u(), sealing.v());
    let mut kb = *u;
    kb.iter_mut().zip(v).for_each(|(byte, other)| *byte ^= other);
    for secret in [u, v, &kb] {
        never_said(&scene, &heard, secret)?;
    }
    Ok(())
}

fn send_u(session: &mut RogueSession, sealing: &RogueSealing, [_, tenant]: &[Answered; 2]) -> Result<()> {
    session.send_u(sealing, tenant)?.accepted().map(drop)
}

fn send_v(session: &mut RogueSession, sealing: &RogueSealing, [verifier, _]: &[Answered; 2]) -> Result<()> {
    session.send_v(sealing, verifier)?.accepted().map(drop)
}

#[test]
fn u_without_v_fetches_nothing_and_says_nothing() -> Result<()> {
    need_stage!();
    half_is_not_enough("u-only", send_u, send_v)
}

#[test]
fn v_without_u_fetches_nothing_and_says_nothing() -> Result<()> {
    need_stage!();
    half_is_not_enough("v-only", send_v, send_u)
}

#[test]
fn a_junk_share_before_the_good_one_does_not_spoil_the_bootstrap() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("junk")?;
    let (mut session, sealing) = scene.ready()?;
    let answered = challenged(&mut session)?;
    for role in [Role::Verifier, Role::Tenant] {
        let junk = session.send_share(&junk_share(role, sealing.sealing_id)?)?;
        refused(&junk, Code::UNPROCESSABLE_ENTITY, DOES_NOT_OPEN)?;
        scene.says(&format!("the {}'s share is refused", role.name()))?;
    }
    send_v(&mut session, &sealing, &answered)?;
    // After the good one too: it stays the candidate.
    let junk = session.send_share(&junk_share(Role::Verifier, sealing.sealing_id)?)?;
    refused(&junk, Code::UNPROCESSABLE_ENTITY, DOES_NOT_OPEN)?;
    fetched_nothing(&session)?;
    scene.nothing_came()?;
    send_u(&mut session, &sealing, &answered)?;
    scene.takes(&mut session, &FILES)
}

#[test]
fn shares_of_two_sealings_are_reported_and_the_right_ones_still_count() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("two-sealings")?;
    let (mut session, sealing) = scene.ready()?;
    let other = scene.stage.sealing(session.node_id()?)?;
    let answered = challenged(&mut session)?;
    send_v(&mut session, &other, &answered)?;
    send_u(&mut session, &sealing, &answered)?;
    scene.reports(&mut session, &sealing, ReportKind::ShareRefused, "shares of two different sealings")?;
    session.serve_for(A_WHILE)?;
    fetched_nothing(&session)?;
    scene.nothing_came()?;
    send_v(&mut session, &sealing, &answered)?;
    scene.takes(&mut session, &FILES)
}

/// The shares of one sealing to two targets, both refused as not opening; then the honest ones.
fn target_is_refused(name: &str, change: impl Fn(&mut Target)) -> Result<()> {
    let mut scene = Scene::new(name)?;
    let (mut session, sealing) = scene.ready()?;
    let answered = challenged(&mut session)?;
    let [mut verifier, mut tenant] = answered.each_ref().map(|answered| answered.target);
    change(&mut verifier);
    change(&mut tenant);
    for share in [sealing.share_v(&verifier)?, sealing.share_u(&tenant)?] {
        let reply = session.send_share(&share)?;
        refused(&reply, Code::UNPROCESSABLE_ENTITY, DOES_NOT_OPEN)?;
    }
    session.serve_for(A_WHILE)?;
    fetched_nothing(&session)?;
    scene.nothing_came()?;
    send_v(&mut session, &sealing, &answered)?;
    send_u(&mut session, &sealing, &answered)?;
    scene.takes(&mut session, &FILES)
}

#[test]
fn a_share_sealed_for_another_node_is_refused() -> Result<()> {
    need_stage!();
    target_is_refused("other-node", |target| target.node_id = NodeId([7; 32]))
}

#[test]
fn a_share_that_another_node_was_sent_is_refused_when_replayed() -> Result<()> {
    need_stage!();
    let replayed = Target {
        node_id: NodeId([7; 32]),
        attest_digest: [8; 32],
        nk_public: *Nk::from_seeds(&[1; 32], &[2; 32]).public(),
    };
    target_is_refused("replayed", |target| *target = replayed)
}

#[test]
fn a_share_bound_to_another_quote_is_refused() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("other-quote")?;
    let (mut session, sealing) = scene.ready()?;
    let earlier = challenged(&mut session)?;
    let answered = challenged(&mut session)?;
    ensure!(earlier[0].target.nk_public == answered[0].target.nk_public, "one NK for one bootstrap");
    ensure!(earlier[0].target.attest_digest != answered[0].target.attest_digest);
    for share in [sealing.share_v(&earlier[0].target)?, sealing.share_u(&earlier[1].target)?] {
        let reply = session.send_share(&share)?;
        refused(&reply, Code::UNPROCESSABLE_ENTITY, DOES_NOT_OPEN)?;
    }
    session.serve_for(A_WHILE)?;
    fetched_nothing(&session)?;
    scene.nothing_came()?;
    send_v(&mut session, &sealing, &answered)?;
    send_u(&mut session, &sealing, &answered)?;
    scene.takes(&mut session, &FILES)
}

/// Shares that were made on one connection are of no use on the next: it has another NK.
fn earlier_nk_is_refused(name: &str, interrupt: fn(&mut Scene, &mut RogueSession) -> Result<()>) -> Result<()> {
    let mut scene = Scene::new(name)?;
    let (mut session, sealing) = scene.ready()?;
    let earlier = challenged(&mut session)?;
    let old = [sealing.share_v(&earlier[0].target)?, sealing.share_u(&earlier[1].target)?];
    interrupt(&mut scene, &mut session)?;
    let mut session = scene.session()?;
    session.desk.sealings.insert(sealing.sealing_id, sealing.clone());
    for share in &old {
        let reply = session.send_share(share)?;
        refused(&reply, Code::UNPROCESSABLE_ENTITY, "no quote was made for this role on this connection")?;
    }
    let answered = challenged(&mut session)?;
    ensure!(answered[0].target.nk_public != earlier[0].target.nk_public, "the NK outlived its connection");
    for share in &old {
        let reply = session.send_share(share)?;
        refused(&reply, Code::UNPROCESSABLE_ENTITY, DOES_NOT_OPEN)?;
    }
    fetched_nothing(&session)?;
    scene.nothing_came()?;
    send_v(&mut session, &sealing, &answered)?;
    send_u(&mut session, &sealing, &answered)?;
    scene.takes(&mut session, &FILES)
}

#[test]
fn shares_for_the_nk_of_a_restarted_agent_are_refused() -> Result<()> {
    need_stage!();
    earlier_nk_is_refused("restarted", |scene, _| scene.start().map(drop))
}

#[test]
fn shares_for_the_nk_of_an_earlier_connection_are_refused() -> Result<()> {
    need_stage!();
    earlier_nk_is_refused("reconnected", |_, session| {
        session.cut();
        Ok(())
    })
}

#[test]
fn shares_that_make_another_key_are_reported_and_end_their_nk() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("tag")?;
    let (mut session, sealing) = scene.ready()?;
    for role in [Role::Verifier, Role::Tenant] {
        let answered = challenged(&mut session)?;
        let wrong = match role {
            Role::Verifier => {
                send_u(&mut session, &sealing, &answered)?;
                sealing.wrong_share(role, &answered[0].target)?
            }
            _ => {
                send_v(&mut session, &sealing, &answered)?;
                sealing.wrong_share(role, &answered[1].target)?
            }
        };
        session.send_share(&wrong)?.accepted()?;
        scene.reports(&mut session, &sealing, ReportKind::TagMismatch, "do not make the key")?;
        ensure!(session.record.count(RouteName::Payload) == 0, "a payload was fetched that no key fits");
        scene.nothing_came()?;
        let next = challenged(&mut session)?;
        ensure!(next[0].target.nk_public != answered[0].target.nk_public, "the NK was used again");
    }
    let answered = challenged(&mut session)?;
    send_v(&mut session, &sealing, &answered)?;
    send_u(&mut session, &sealing, &answered)?;
    scene.takes(&mut session, &FILES)
}

/// A sealing that was changed is released and given up for this reason; on the next connection the honest one is taken.
fn change_is_refused(
    name: &str,
    kind: ReportKind,
    words: &str,
    change: impl FnOnce(&Stage, &mut RogueSealing) -> Result<()>,
) -> Result<()> {
    let mut scene = Scene::new(name)?;
    let (mut session, honest) = scene.ready()?;
    let mut changed = honest.clone();
    change(&scene.stage, &mut changed)?;
    session.deliver(&changed)?;
    scene.gives_up(&mut session, &changed, kind, words)?;
    scene.nothing_came()?;
    if kind == ReportKind::ManifestRefused {
        ensure!(session.record.count(RouteName::Payload) == 0, "a payload was fetched that its manifest rules out");
    }
    let mut session = scene.session()?;
    session.deliver(&honest)?;
    scene.takes(&mut session, &FILES)
}

#[test]
fn an_altered_payload_is_refused() -> Result<()> {
    need_stage!();
    let words = "a chunk does not open";
    change_is_refused("altered", ReportKind::PayloadRefused, words, |_, sealing| sealing.flip_ciphertext(0))
}

#[test]
fn an_alteration_in_the_last_chunk_takes_the_first_ones_with_it() -> Result<()> {
    need_stage!();
    let words = "a chunk does not open";
    change_is_refused("altered-late", ReportKind::PayloadRefused, words, |stage, sealing| {
        let big = vec![7; 150_000];
        *sealing = RogueSealing::new(sealing.subject, &stage.signing, &[("a", b"first"), ("b", &big)])?;
        sealing.flip_ciphertext(sealing.ciphertext.len() - 1)
    })
}

#[test]
fn a_truncated_payload_is_refused() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("truncated")?;
    let big = vec![7; 150_000];
    // In the middle of a chunk, and behind one.
    for len in [100_000, SEALED_CHUNK_LEN] {
        scene.start()?;
        let mut session = scene.session()?;
        let subject = Subject::Node(session.node_id()?);
        let sealing = RogueSealing::new(subject, &scene.stage.signing, &[("a", b"first"), ("b", &big)])?;
        let short = sealing.ciphertext.get(..len).context("the payload is too short")?.to_vec();
        session.desk.intercept = Some(Box::new(move |request| {
            matches!(request.route, Ok(Route::Payload(_))).then(|| Canned::Body(short.clone()))
        }));
        session.deliver(&sealing)?;
        scene.gives_up(&mut session, &sealing, ReportKind::PayloadRefused, "ends before its last chunk does")?;
        scene.nothing_came()?;
    }
    Ok(())
}

#[test]
fn a_payload_longer_than_its_manifest_says_is_refused() -> Result<()> {
    need_stage!();
    let words = "longer than its limit";
    change_is_refused("longer", ReportKind::PayloadRefused, words, |_, sealing| {
        sealing.ciphertext.push(0);
        Ok(())
    })
}

#[test]
fn a_manifest_that_was_not_announced_with_the_share_is_refused() -> Result<()> {
    need_stage!();
    let words = "not the one the tenant announced with its share";
    change_is_refused("manifest", ReportKind::ManifestRefused, words, |_, sealing| {
        sealing.alter_manifest(|manifest| manifest.version = 2)
    })
}

#[test]
fn a_manifest_that_is_announced_and_not_signed_is_refused() -> Result<()> {
    need_stage!();
    let words = "not signed by a tenant key pinned on this node";
    change_is_refused("unsigned", ReportKind::ManifestRefused, words, |_, sealing| {
        sealing.alter_manifest(|manifest| manifest.version = 2)?;
        sealing.announce();
        Ok(())
    })
}

#[test]
fn a_payload_encrypted_anew_under_the_right_key_is_refused_by_its_digest() -> Result<()> {
    need_stage!();
    let words = "digest is not the manifest's";
    change_is_refused("reencrypted", ReportKind::PayloadRefused, words, |_, sealing| {
        // As long as the honest one: only the digest tells.
        let [(first, _), second] = FILES;
        sealing.reencrypt(&[(first, b"answer = 13\n"), second], Resealed::ManifestKept)
    })
}

#[test]
fn a_payload_encrypted_anew_with_a_fitting_manifest_is_refused_by_its_signature() -> Result<()> {
    need_stage!();
    let words = "not signed by a tenant key pinned on this node";
    change_is_refused("remade", ReportKind::ManifestRefused, words, |_, sealing| {
        sealing.reencrypt(&[("app.toml", b"answer = 13\n")], Resealed::SignatureKept)
    })
}

#[test]
fn a_payload_signed_by_another_tenant_is_refused() -> Result<()> {
    need_stage!();
    let words = "not signed by a tenant key pinned on this node";
    change_is_refused("other-tenant", ReportKind::ManifestRefused, words, |_, sealing| {
        sealing.sign_by(&TenantSigningKey::generate(&mut OsRng));
        Ok(())
    })
}

#[test]
fn a_payload_for_another_node_is_refused() -> Result<()> {
    need_stage!();
    let words = "the manifest is for another node";
    change_is_refused("elsewhere", ReportKind::ManifestRefused, words, |stage, sealing| {
        *sealing = RogueSealing::new(Subject::Node(NodeId([7; 32])), &stage.signing, &FILES)?;
        Ok(())
    })
}

#[test]
fn a_payload_of_another_sealing_than_its_shares_is_refused() -> Result<()> {
    need_stage!();
    let words = "the manifest is of another sealing than the shares";
    change_is_refused("other-sealing", ReportKind::ManifestRefused, words, |stage, sealing| {
        sealing.alter_manifest(|manifest| manifest.sealing_id.0[0] ^= 1)?;
        sealing.sign_by(&stage.signing);
        Ok(())
    })
}

#[test]
fn a_payload_past_its_end_is_refused() -> Result<()> {
    need_stage!();
    let words = "not_after has passed";
    change_is_refused("expired", ReportKind::ManifestRefused, words, |stage, sealing| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        *sealing = RogueSealing::with(sealing.subject, &stage.signing, &FILES, false, NonZeroU64::new(now - 60))?;
        Ok(())
    })
}

#[test]
fn without_a_pinned_tenant_key_the_agent_does_not_start() -> Result<()> {
    need_stage!();
    let mut scene = Scene::with("unpinned", &Conf { pinned: false, ..Conf::default() })?;
    let status = scene.start()?.wait_exit(SOON)?;
    ensure!(status.code() == Some(2), "it ended with {status}\n{}", scene.tail());
    scene.says("tenant-key: is not set")?;
    ensure!(scene.gateway.accept(A_WHILE).is_err(), "it connected all the same");
    Ok(())
}

#[test]
fn an_agent_that_only_attests_takes_no_payload() -> Result<()> {
    need_stage!();
    let mut scene = Scene::with("attest", &Conf { pinned: false, lines: "wants = attest", ..Conf::default() })?;
    let (mut session, sealing) = scene.ready()?;
    ensure!(session.record.hellos.iter().all(|hello| hello.wants == Wants::Attest));
    for role in [Role::Verifier, Role::Tenant] {
        let refusal = session.challenge(&ChallengeSpec::new(role, Purpose::Bootstrap)).unwrap_err();
        let words = "4.09 this boot's payload is in place or on its way; no NK to bind";
        ensure!(format!("{refusal:#}").contains(words), "{refusal:#}");
    }
    let attest = session.challenge(&ChallengeSpec::new(Role::Verifier, Purpose::Attest))?;
    ensure!(attest.binds && attest.evidence.nk_public.is_none());
    let target = Target { nk_public: *Nk::from_seeds(&[1; 32], &[2; 32]).public(), ..attest.target };
    for share in [sealing.share_v(&target)?, sealing.share_u(&target)?] {
        let reply = session.send_share(&share)?;
        refused(&reply, Code::CONFLICT, "no share is wanted now")?;
    }
    session.serve_for(A_WHILE)?;
    fetched_nothing(&session)?;
    ensure!(scene.files()?.is_empty());
    ensure!(scene.phase()? == "0".repeat(64), "an agent without pins has nothing to say in the phase PCR");
    Ok(())
}

/// A container as its format has it, of paths, modes and bytes that [`RogueSealing::new`] would not take.
fn container(files: &[(&str, u8, &[u8])]) -> Vec<u8> {
    let mut bytes = b"trefoil-payload-1\n".to_vec();
    for (path, mode, data) in files {
        bytes.extend_from_slice(&u16::try_from(path.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend_from_slice(path.as_bytes());
        bytes.push(*mode);
        bytes.extend_from_slice(&u64::try_from(data.len()).unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend_from_slice(data);
    }
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

#[test]
fn containers_that_climb_link_or_repeat_are_refused_and_write_nothing_anywhere() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("paths")?;
    let outside = scene.payload_dir().with_file_name("outside");
    let absolute = outside.to_string_lossy().into_owned();
    let honest = container(&[("a", 0, b"1"), ("b/c", 0, b"2")]);
    let cut = honest.get(..honest.len() - 3).context("too short")?.to_vec();
    const BAD_PATH: &str = "a path is absolute, climbs";
    for (what, plaintext, words) in [
        ("climbs", container(&[("a", 0, b"1"), ("../outside", 0, b"2")]), BAD_PATH),
        ("climbs on its way", container(&[("a", 0, b"1"), ("b/../../outside", 0, b"2")]), BAD_PATH),
        ("absolute", container(&[(&absolute, 0, b"2")]), BAD_PATH),
        ("no name", container(&[("", 0, b"2")]), "bytes are left over"),
        ("itself", container(&[(".", 0, b"2")]), BAD_PATH),
        (
            "a link's mode",
            container(&[("a", 0, b"1"), ("link", 2, absolute.as_bytes())]),
            "neither plain nor executable",
        ),
        ("twice", container(&[("a", 0, b"1"), ("a", 0, b"2")]), "paths do not ascend"),
        ("through a file", container(&[("a", 0, b"1"), ("a/b", 0, b"2")]), "runs through a file"),
        ("trailing", [honest.as_slice(), b"more"].concat(), "bytes are left over"),
        ("cut", cut, "the payload ends before its files do"),
        ("no container", b"#!/bin/sh\nexit 0\n----".to_vec(), "does not begin as a payload"),
    ] {
        scene.start()?;
        let mut session = scene.session()?;
        let subject = Subject::Node(session.node_id()?);
        let sealing = RogueSealing::of_container(subject, &scene.stage.signing, &plaintext, false, None)?;
        session.deliver(&sealing)?;
        scene.gives_up(&mut session, &sealing, ReportKind::PayloadRefused, words).context(what)?;
        scene.nothing_came().context(what)?;
        ensure!(!outside.exists(), "{what}: a file was written outside");
    }
    scene.start()?;
    let mut session = scene.session()?;
    let subject = Subject::Node(session.node_id()?);
    session.deliver(&RogueSealing::of_container(subject, &scene.stage.signing, &honest, false, None)?)?;
    scene.takes(&mut session, &[("a", b"1"), ("b/c", b"2")])
}

/// 1 MiB of memory file system under the rig, or a word on why not.
fn small(stage: &Stage, name: &str) -> Option<MemoryFs> {
    MemoryFs::mount(&stage.rig.dir().join(name), Some(1 << 20)).inspect_err(|why| println!("skipped: {why:#}")).ok()
}

#[test]
fn a_payload_directory_that_fills_up_keeps_the_payload_it_had() -> Result<()> {
    need_stage!();
    let stage = Stage::shared()?;
    let Some(memory) = small(&stage, "filling") else { return Ok(()) };
    let mut scene = Scene::new("filling")?.payload_at(memory.path().join("payload"));
    let (mut session, first) = scene.ready()?;
    session.deliver(&first)?;
    scene.takes(&mut session, &FILES)?;
    scene.reboot()?;
    scene.start()?;
    let mut session = scene.session()?;
    let big = vec![7; 700_000];
    let files: [(&str, &[u8]); 2] = [("a", b"new"), ("b", &big)];
    let sealing = RogueSealing::new(Subject::Node(session.node_id()?), &scene.stage.signing, &files)?;
    // It fits when it begins; then somebody else takes the room.
    let filler = memory.path().join("filler");
    let mut blocks = 0;
    let at = filler.clone();
    session.desk.intercept = Some(Box::new(move |request| {
        if matches!(request.route, Ok(Route::Payload(_))) {
            blocks += 1;
            if blocks == 2 {
                // Fails, when all is full: that is the point.
                _ = fs::write(&at, vec![1; 2 << 20]);
            }
        }
        None
    }));
    session.deliver(&sealing)?;
    scene.gives_up(&mut session, &sealing, ReportKind::PayloadNotStored, "file system is full")?;
    let kept = scene.files()?;
    ensure!(FILES.iter().all(|(path, bytes)| kept.get(*path).is_some_and(|kept| kept == bytes)), "{:?}", kept.keys());
    ensure!(kept.len() == FILES.len());
    fs::remove_file(&filler)?;
    let mut session = scene.session()?;
    session.deliver(&sealing)?;
    scene.takes(&mut session, &files)
}

#[test]
fn a_payload_that_has_no_room_is_not_begun() -> Result<()> {
    need_stage!();
    let stage = Stage::shared()?;
    let Some(memory) = small(&stage, "small") else { return Ok(()) };
    let mut scene = Scene::new("small")?.payload_at(memory.path().join("payload"));
    scene.start()?;
    let mut session = scene.session()?;
    let big = vec![7; 2 << 20];
    let sealing = RogueSealing::new(Subject::Node(session.node_id()?), &scene.stage.signing, &[("b", &big)])?;
    session.deliver(&sealing)?;
    scene.gives_up(&mut session, &sealing, ReportKind::PayloadNotStored, "there is no room: the payload has")?;
    ensure!(session.record.count(RouteName::Payload) <= 1, "it went on fetching: {:?}", session.record.asked);
    scene.nothing_came()
}

/// A directory that is not in memory, if this machine has one to write to.
fn on_disk() -> Option<(Scratch, PathBuf)> {
    let scratch = Scratch::new("disk").ok()?;
    let is_disk = |path: &PathBuf| !sys::is_memory_fs(path).unwrap_or(true);
    let place = Some(scratch.path().to_owned()).filter(is_disk)?;
    Some((scratch, place))
}

#[test]
fn a_payload_directory_on_a_disk_gets_nothing() -> Result<()> {
    need_stage!();
    let Some((_scratch, disk)) = on_disk() else {
        println!("skipped: {} is in memory; no disk to write to", env::temp_dir().display());
        return Ok(());
    };
    let mut scene = Scene::new("disk")?.payload_at(disk.join("payload"));
    let (mut session, sealing) = scene.ready()?;
    session.deliver(&sealing)?;
    let words = "is not on a tmpfs or ramfs: plaintext is kept in memory only";
    scene.gives_up(&mut session, &sealing, ReportKind::PayloadNotStored, words)?;
    scene.nothing_came()
}

#[test]
fn autorun_runs_only_where_settings_and_manifest_allow_it() -> Result<()> {
    need_stage!();
    let script: &[u8] = b"#!/bin/sh\necho it ran | tee ran\nexit 7\n";
    let files: [(&str, &[u8]); 1] = [("autorun", script)];
    for (name, lines, asked, runs) in [
        ("autorun-off", "autorun = off", true, false),
        ("autorun-unset", "", true, false),
        ("autorun-unasked", "autorun = on", false, false),
        ("autorun-on", "autorun = on", true, true),
    ] {
        let mut scene = Scene::with(name, &Conf { lines, ..Conf::default() })?;
        scene.start()?;
        let mut session = scene.session()?;
        let subject = Subject::Node(session.node_id()?);
        session.deliver(&RogueSealing::with(subject, &scene.stage.signing, &files, asked, None)?)?;
        if runs {
            ensure!(session.wait_confirm(SOON)?.is_right);
            let report = session.wait_report(SOON)?;
            ensure!((report.kind, report.code) == (ReportKind::Autorun, 7), "{name}: {report:?}");
            ensure!(report.text.starts_with(b"it ran"), "{name}: {report:?}");
            ensure!(scene.files()?.contains_key("ran"), "{name}: it did not run in the payload's directory");
        } else {
            scene.takes(&mut session, &files).context(name)?;
            session.serve_for(A_WHILE)?;
            ensure!(session.record.reports.is_empty() && !scene.files()?.contains_key("ran"), "{name}: it ran");
        }
    }
    Ok(())
}
