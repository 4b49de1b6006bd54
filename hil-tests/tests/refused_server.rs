//! Whoever answers at the gateway's address: the agent says nothing to a server that has not proven itself, survives one
//! that has and misbehaves, and goes on to the next.
//!
//! The servers here are a test's own; the honest ones among them are there to show that the same agent, with the same
//! settings, is served by who deserves it. A server that leaves out Certificate or CertificateVerify, or sends them in
//! another order, takes a TLS stack that can lie: recorded and made-up flights are played to the same code by the
//! agent's own tests (`tls::tests` in agent-minimal: `server_without_certificate_and_proof_is_refused`,
//! `certificate_without_proof_is_refused`, `proof_without_certificate_is_refused` and their neighbours).

mod misled;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hil_tests::rogue::Refused;
use hil_tests::rogue::server::{
    Answered, Canned, Certificate, ChallengeSpec, RogueCa, RogueGateway, RogueSession, junk_share,
};
use misled::{A_WHILE, Conf, FILES, SOON, Scene, Stage, fetched_nothing, refused};
use protocol::bytes::{Array, Bytes};
use protocol::coap::frame::Code;
use protocol::coap::route::RouteName;
use protocol::id::{EnrolmentId, Role};
use protocol::message;
use protocol::message::attest::Purpose;
use protocol::message::enrol::{Credential, EnrolAnswer, HelloAnswer};
use protocol::tpm::alg::HashAlg;

/// The agent finds this server first, an honest one second: the first is refused for this reason before a word of ours
/// was said to it, and the second one serves.
fn certificate_is_refused(name: &str, issuer: &RogueCa, certificate: &Certificate, words: &str) -> Result<()> {
    let stage = Stage::shared()?;
    let bad = RogueGateway::start(issuer, certificate)?;
    let good = stage.gateway()?;
    let servers = [bad.address()?, good.address()?];
    let mut scene = Scene::with(name, &Conf { servers: &servers, ..Conf::default() })?;
    scene.start()?;
    ensure!(bad.accept(SOON).is_err(), "the agent finished a handshake with it");
    scene.says(&format!("{}: the server's certificate {words}", servers[0]))?;
    ensure!(scene.agent()?.steps().iter().all(|step| step.step != "hello"), "it said hello\n{}", scene.tail());
    still_serves(&scene, &good)
}

/// The agent comes to this honest gateway and takes its payload.
fn still_serves(scene: &Scene, gateway: &RogueGateway) -> Result<()> {
    let mut session = scene.session_at(gateway)?;
    let sealing = scene.stage.sealing(session.node_id()?)?;
    session.deliver(&sealing).with_context(|| scene.tail())?;
    scene.takes(&mut session, &FILES)
}

#[test]
fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    need_stage!();
    // The same name as the pinned one: names prove nothing.
    let other = RogueCa::new("pinned CA")?;
    certificate_is_refused("other-ca", &other, &Certificate::default(), "has a signature that does not verify")
}

#[test]
fn a_certificate_of_an_authority_of_another_name_is_refused() -> Result<()> {
    need_stage!();
    let other = RogueCa::new("another CA")?;
    let words = "was not issued directly by a pinned certificate authority";
    certificate_is_refused("unknown-ca", &other, &Certificate::default(), words)
}

#[test]
fn a_certificate_that_another_server_issued_is_refused() -> Result<()> {
    need_stage!();
    let server = Stage::shared()?.ca.subordinate("a server that plays an authority", false)?;
    let words = "was not issued directly by a pinned certificate authority";
    certificate_is_refused("issued-by-leaf", &server, &Certificate::default(), words)
}

#[test]
fn a_certificate_for_another_name_is_refused() -> Result<()> {
    need_stage!();
    // The common name is the right one, and no one looks at it.
    let certificate = Certificate {
        names: vec!["192.0.2.1".into(), "gateway.example".into()],
        common_name: "127.0.0.1".into(),
        ..Certificate::default()
    };
    certificate_is_refused("other-name", &Stage::shared()?.ca, &certificate, "is for another name")
}

#[test]
fn an_expired_certificate_is_refused() -> Result<()> {
    need_stage!();
    let certificate = Certificate { not_after: (2021, 1, 1), ..Certificate::default() };
    certificate_is_refused("expired-cert", &Stage::shared()?.ca, &certificate, "has expired")
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_refused() -> Result<()> {
    need_stage!();
    let certificate = Certificate { not_before: (2059, 1, 1), ..Certificate::default() };
    certificate_is_refused("early-cert", &Stage::shared()?.ca, &certificate, "is not valid yet")
}

#[test]
fn a_certificate_of_a_client_is_refused() -> Result<()> {
    need_stage!();
    let certificate = Certificate { server_auth: false, ..Certificate::default() };
    certificate_is_refused("client-cert", &Stage::shared()?.ca, &certificate, "is not for authenticating a server")
}

#[test]
fn a_certificate_of_an_authority_is_not_a_servers() -> Result<()> {
    need_stage!();
    let certificate = Certificate { is_ca: true, ..Certificate::default() };
    certificate_is_refused("ca-cert", &Stage::shared()?.ca, &certificate, "is a certificate authority's")
}

/// The next connection to a plain listener.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + SOON;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(SOON))?;
                return Ok(stream);
            }
            Err(why) if why.kind() != ErrorKind::WouldBlock => return Err(why.into()),
            Err(_) if Instant::now() >= deadline => bail!("no agent connected within {SOON:?}"),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

#[test]
fn servers_that_do_not_speak_tls_are_left_for_one_that_does() -> Result<()> {
    need_stage!();
    let no_place = "the server sent a record that has no place there";
    for (name, words, speech) in [
        ("http", no_place, b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice()),
        ("noise", no_place, &[0xff; 4096]),
        ("zeros", no_place, &[0; 4096]),
        ("huge-record", no_place, &[0x16, 0x03, 0x03, 0xff, 0xff, 0x02]),
        ("plain-data", no_place, &[0x17, 0x03, 0x03, 0x00, 0x20, 0x01, 0x02, 0x03]),
        ("alert", "TLS alert 40", &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28]),
        ("half-record", "the connection was closed", &[0x16, 0x03, 0x03, 0x00, 0x40, 0x02]),
        ("nothing", "the connection was closed", b""),
    ] {
        let bad = TcpListener::bind(("127.0.0.1", 0))?;
        let good = Stage::shared()?.gateway()?;
        let servers = [bad.local_addr()?, good.address()?];
        let mut scene = Scene::with(&format!("plain-{name}"), &Conf { servers: &servers, ..Conf::default() })?;
        scene.start()?;
        let mut stream = accept(&bad)?;
        // Its ClientHello, which is all that it says; then what it is answered.
        let mut first = [0; 1024];
        let len = stream.read(&mut first)?;
        ensure!(first.starts_with(&[0x16]) && len < first.len(), "{name}: {len} bytes");
        stream.write_all(speech)?;
        let mut rest = Vec::new();
        // The agent may have reset the connection by now: it no longer wants to hear this.
        _ = stream.shutdown(std::net::Shutdown::Write);
        _ = stream.read_to_end(&mut rest);
        ensure!(rest.len() < 64, "{name}: the agent went on with {} bytes", rest.len());
        scene.says(words).context(name)?;
        let session = scene.session_at(&good).context(name)?;
        ensure!(session.record.hellos.len() == 1);
        scene.nothing_came().context(name)?;
    }
    Ok(())
}

/// Bytes that no peer may send, and what the agent ends the connection with.
const GARBAGE: [(&str, &[u8], &str); 6] = [
    ("token of 15 bytes", &[0x0f, 0x45], "malformed message"),
    ("four gigabytes", &[0xf0, 0xff, 0xff, 0xff, 0xff, 0x02], "malformed message"),
    ("more than was agreed", &[0xe0, 0xff, 0xff, 0x02], "malformed message"),
    ("option of length 15", &[0x10, 0x02, 0x0f], "malformed message"),
    ("payload marker alone", &[0x10, 0x02, 0xff], "malformed message"),
    ("reserved code", &[0x00, 0x20], "reserved message code"),
];

#[test]
fn garbage_from_a_proven_server_ends_the_connection_with_its_reason() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("garbage")?;
    for (what, bytes, words) in GARBAGE {
        scene.start()?;
        let mut session = scene.session()?;
        session.send_bytes(bytes)?;
        let closed = session.wait_closed(SOON)?.with_context(|| format!("{what}: kept open\n{}", scene.tail()))?;
        ensure!(closed.starts_with("aborted: "), "{what}: {closed}");
        scene.says(words).context(what)?;
        // The same process, and soon.
        scene.session().context(what)?;
        ensure!(scene.agent()?.is_running());
        scene.nothing_came().context(what)?;
    }
    scene.start()?;
    still_serves(&scene, &scene.gateway)
}

/// The agent was led to ask for this; what answers is not an answer.
fn spoiled(scene: &mut Scene, at: RouteName, canned: &Canned) -> Result<RogueSession> {
    scene.reboot()?;
    scene.start()?;
    let mut session = scene.connection()?;
    let answer = canned.clone();
    session.desk.intercept =
        Some(Box::new(move |request| request.route.is_ok_and(|route| route.name() == at).then(|| answer.clone())));
    let is_late = ![RouteName::Hello, RouteName::Enrol, RouteName::Activate].contains(&at);
    if is_late {
        session.wait_bound(SOON)?;
        let sealing = scene.stage.sealing(session.node_id()?)?;
        session.deliver(&sealing)?;
    }
    session.serve_until(SOON, |record| record.count(at) > 0)?;
    ensure!(session.wait_closed(SOON)?.is_some(), "{}: kept open\n{}", at.name(), scene.tail());
    Ok(session)
}

#[test]
fn whatever_comes_instead_of_an_answer_at_any_step_ends_that_connection_only() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("spoiled")?;
    let malformed = Canned::Answer(Code::CONTENT, vec![0xff; 40]);
    let garbage = Canned::Bytes(vec![0xff; 100]);
    let server_error = Canned::Answer(Code::INTERNAL_SERVER_ERROR, b"not today".to_vec());
    for (at, canned, words) in [
        (RouteName::Hello, &malformed, "a message does not fit its own limits"),
        (RouteName::Hello, &garbage, "malformed message"),
        (RouteName::Hello, &server_error, "the control plane refused hello"),
        (RouteName::Enrol, &malformed, "a message does not fit its own limits"),
        (RouteName::Enrol, &garbage, "malformed message"),
        (RouteName::Enrol, &server_error, "the control plane refused enrol"),
        (RouteName::Activate, &garbage, "malformed message"),
        (RouteName::Activate, &server_error, "the control plane refused activate"),
        (RouteName::Manifest, &malformed, "a message does not fit its own limits"),
        (RouteName::Manifest, &garbage, "malformed message"),
        (RouteName::Manifest, &server_error, "the control plane refused manifest"),
        (RouteName::Payload, &garbage, "malformed message"),
        (RouteName::Payload, &server_error, "the control plane refused payload"),
    ] {
        // Enrolment is seen only by a gateway that does not know the node.
        scene.gateway.forget_nodes();
        let session = spoiled(&mut scene, at, canned).with_context(|| format!("{canned:?}"))?;
        scene.says(words).with_context(|| at.name())?;
        ensure!(session.record.confirms.is_empty());
        scene.nothing_came().with_context(|| format!("{} {canned:?}", at.name()))?;
        ensure!(scene.agent()?.is_running());
    }
    still_serves(&scene, &scene.gateway)
}

#[test]
fn garbage_instead_of_the_answer_to_confirm_leaves_the_payload_and_a_confirm_to_be_sent() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("confirm")?;
    scene.start()?;
    let mut session = scene.session()?;
    let sealing = scene.stage.sealing(session.node_id()?)?;
    session.desk.intercept = Some(Box::new(|request| {
        request.route.is_ok_and(|route| route.name() == RouteName::Confirm).then(|| Canned::Bytes(vec![0xff; 100]))
    }));
    session.deliver(&sealing)?;
    session.serve_until(SOON, |record| record.count(RouteName::Confirm) > 0)?;
    ensure!(session.wait_closed(SOON)?.is_some(), "kept open\n{}", scene.tail());
    let mut session = scene.session()?;
    session.challenge(&ChallengeSpec::new(Role::Tenant, Purpose::Attest))?;
    session.serve_until(SOON, |record| !record.confirms.is_empty())?;
    ensure!(session.record.confirms.iter().all(|confirmed| confirmed.confirm.sealing_id == sealing.sealing_id));
    ensure!(session.record.count(RouteName::Payload) == 0, "it fetched what it has");
    ensure!(scene.files()?.len() == FILES.len());
    Ok(())
}

#[test]
fn a_server_that_cuts_every_connection_is_tried_again_within_a_bound_that_doubles() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("backoff")?;
    scene.start()?;
    for _ in 0..4 {
        scene.session()?.cut();
    }
    let mut session = scene.session()?;
    session.challenge(&ChallengeSpec::new(Role::Verifier, Purpose::Attest))?;
    let delays: Vec<u64> = scene
        .agent()?
        .lines()
        .iter()
        .filter_map(|line| line.split("trying again in ").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    ensure!(delays.len() == 4, "{delays:?}\n{}", scene.tail());
    // Full jitter: each is drawn from zero to a bound that doubles.
    ensure!(delays.iter().zip([500, 1000, 2000, 4000]).all(|(delay, most)| *delay <= most), "{delays:?}");
    scene.nothing_came()
}

#[test]
fn a_credential_for_another_key_is_not_activated_and_nothing_is_proven() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("credential")?;
    scene.start()?;
    let mut session = scene.connection()?;
    let credential = Credential { id_object: Bytes::new(&[1; 68])?, encrypted_secret: Bytes::new(&[2; 70])? };
    let answer = message::to_vec(&EnrolAnswer { enrolment_id: EnrolmentId([3; 16]), credential })?;
    session.desk.intercept = Some(Box::new(move |request| {
        let is_enrol = request.route.is_ok_and(|route| route.name() == RouteName::Enrol);
        is_enrol.then(|| Canned::Answer(Code::CONTENT, answer.clone()))
    }));
    session.serve_until(SOON, |record| record.count(RouteName::Enrol) > 0)?;
    ensure!(session.wait_closed(SOON)?.is_some(), "kept open\n{}", scene.tail());
    session.serve_for(Duration::from_millis(1))?;
    ensure!(session.record.count(RouteName::Activate) == 0, "it proved something");
    scene.nothing_came()?;
    still_serves(&scene, &scene.gateway)
}

/// An honest round of attestation: the connection is as good as before.
fn still_attests(session: &mut RogueSession) -> Result<Answered> {
    let answered = session.challenge(&ChallengeSpec::new(Role::Verifier, Purpose::Attest))?;
    ensure!(answered.binds && answered.evidence.pcrs.len() == 8, "{:?}", answered.evidence);
    Ok(answered)
}

#[test]
fn an_agent_that_is_known_and_never_challenged_waits_and_asks_for_nothing() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("ignored")?;
    scene.start()?;
    let mut session = scene.connection()?;
    // The gateway has never seen it, and says that it has.
    session.desk.hello = Some(HelloAnswer::Known);
    session.wait_bound(SOON)?;
    session.serve_for(A_WHILE * 3)?;
    ensure!(session.record.asked == [RouteName::Hello], "{:?}", session.record.asked);
    ensure!(session.closed().is_none() && scene.agent()?.is_running());
    let junk = session.send_share(&junk_share(Role::Tenant, scene.stage.sealing(session.node_id()?)?.sealing_id)?)?;
    refused(&junk, Code::UNPROCESSABLE_ENTITY, "no quote was made for this role on this connection")?;
    still_attests(&mut session)?;
    scene.nothing_came()
}

/// A challenge is refused with these words, and the connection goes on.
fn challenge_is_refused(session: &mut RogueSession, spec: &ChallengeSpec, code: Code, words: &str) -> Result<()> {
    match session.challenge(spec) {
        Ok(answered) => bail!("it quoted {:?}", answered.challenge.selection),
        Err(why) => {
            let refused = why.downcast::<Refused>()?;
            ensure!(refused.code == code && refused.text.contains(words), "{refused}");
        }
    }
    ensure!(session.closed().is_none());
    still_attests(session).map(drop)
}

#[test]
fn challenges_that_cannot_be_answered_are_refused_and_the_connection_goes_on() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("challenges")?;
    let (mut session, _) = scene.ready()?;
    let spec = |role| ChallengeSpec::new(role, Purpose::Attest);
    let mut unknown = spec(Role::Verifier);
    unknown.selection.iter_mut().for_each(|bank| bank.bank = 0x7777);
    let quoted = "the TPM did not quote: ";
    challenge_is_refused(&mut session, &unknown, Code::SERVICE_UNAVAILABLE, &format!("{quoted}a bank of an unknown"))?;
    let above = spec(Role::Tenant).over(&[(HashAlg::Sha256, 1 << 24)]);
    challenge_is_refused(&mut session, &above, Code::SERVICE_UNAVAILABLE, &format!("{quoted}a PCR above 23"))?;
    // A bank that the protocol knows and this TPM has not.
    let absent = spec(Role::Verifier).over(&[(HashAlg::Sha512, 0xff)]);
    challenge_is_refused(&mut session, &absent, Code::SERVICE_UNAVAILABLE, quoted)?;
    let empty = spec(Role::Verifier).over(&[]);
    challenge_is_refused(&mut session, &empty, Code::BAD_REQUEST, "no PCR is selected")?;
    challenge_is_refused(&mut session, &spec(Role::Registrar), Code::BAD_REQUEST, "the registrar does not challenge")?;
    // The same for a share's sake: no better.
    let mut unknown = ChallengeSpec::new(Role::Verifier, Purpose::Bootstrap);
    unknown.selection.iter_mut().for_each(|bank| bank.bank = 0x7777);
    challenge_is_refused(&mut session, &unknown, Code::SERVICE_UNAVAILABLE, &format!("{quoted}a bank of an unknown"))?;
    fetched_nothing(&session)?;
    scene.nothing_came()
}

#[test]
fn a_bootstrap_challenge_after_delivery_is_refused_and_the_connection_goes_on() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("delivered")?;
    let (mut session, sealing) = scene.ready()?;
    session.deliver(&sealing)?;
    scene.takes(&mut session, &FILES)?;
    for role in [Role::Verifier, Role::Tenant] {
        let spec = ChallengeSpec::new(role, Purpose::Bootstrap);
        let words = "this boot's payload is in place or on its way; no NK to bind";
        challenge_is_refused(&mut session, &spec, Code::CONFLICT, words)?;
        let share = session.send_share(&junk_share(role, sealing.sealing_id)?)?;
        refused(&share, Code::CONFLICT, "no share is wanted now")?;
    }
    // Nor on another connection of the same boot.
    session.cut();
    let mut session = scene.session()?;
    let spec = ChallengeSpec::new(Role::Verifier, Purpose::Bootstrap);
    challenge_is_refused(&mut session, &spec, Code::CONFLICT, "no NK to bind")?;
    ensure!(scene.files()?.len() == FILES.len());
    Ok(())
}

#[test]
fn routes_that_are_not_the_agents_are_refused_and_the_connection_goes_on() -> Result<()> {
    need_stage!();
    use protocol::coap::route::Route;
    let mut scene = Scene::new("routes")?;
    let (mut session, _) = scene.ready()?;
    for (route, code) in [
        (Route::Hello, Code::NOT_FOUND),
        (Route::Confirm, Code::NOT_FOUND),
        (Route::Revocation, Code::NOT_IMPLEMENTED),
        (Route::Challenge, Code::BAD_REQUEST),
        (Route::Share, Code::BAD_REQUEST),
    ] {
        let reply = session.request(route, &[0xff; 40])?;
        ensure!(reply.code == code, "{route:?}: {} {}", reply.code, reply.text());
    }
    ensure!(session.post(Route::Challenge, &Array([0_u8; 32]))?.code == Code::BAD_REQUEST);
    still_attests(&mut session)?;
    scene.nothing_came()
}
