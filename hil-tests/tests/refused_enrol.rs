//! Who is not bound, and who is bound and gets nothing all the same: keys that are not the template's, keys of two TPMs,
//! TPMs that nobody vouches for or nobody admitted, join tokens that are not theirs.
//!
//! Each case is an attacker against the real control plane. It is refused for its own reason, which stands in the
//! history, and the rightful node goes on with what it had.

mod hostile;

use anyhow::{Result, ensure};
use hil_tests::rogue::client::{Bootstrap, EvidenceHacks, RogueAgent};
use hil_tests::rogue::tpm::{Identity, KeySpec, RogueTpm};
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use hostile::{A_WHILE, Bench, Rightful, RogueNode, SOON, booted, identity, patiently, refused_for};
use protocol::bytes::Array;
use protocol::coap::route::Route;
use protocol::crypto::JoinToken;
use protocol::id::Role;
use protocol::message::VERSION;
use protocol::message::enrol::{Activate, EnrolAnswer, Hello, HelloAnswer, JoinProof, Wants};
use protocol::tpm::command::TPM_RH_OWNER;
use protocol::tpm::public::{ObjectAttributes, TpmtPublic};
use protocol::tpm::template::{AK_ATTRIBUTES, AkKind, EkTemplate};
use rand_core::OsRng;

/// `hello` and `enrol` as this identity; a node id that has too many claims on it is waited for.
fn enrol(bench: &Bench, who: &Identity, join: Option<&JoinToken>) -> Result<(RogueAgent, Result<EnrolAnswer>)> {
    patiently(|| {
        let mut agent = bench.connect()?;
        agent.hello(who, Wants::Payload)?;
        let proof = join.map(|token| agent.join_proof(token, who));
        let answer = agent.enrol(who, proof);
        Ok((agent, answer))
    })
}

/// A proof that whoever could not open the credential makes up.
fn made_up(answer: &EnrolAnswer) -> Activate {
    Activate { enrolment_id: answer.enrolment_id, proof: Array([0x5a; 32]) }
}

/// An attacker's TPM of the trusted vendor, which nobody admitted.
fn genuine(bench: &Bench) -> Result<Swtpm> {
    bench.tpm(EkKind::P256)
}

/// An AK of this template is refused before its TPM is asked for anything, though everything else is in order.
fn template_is_refused(name: &str, spec: &KeySpec) -> Result<()> {
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let token = bench.add_by_join(name, &[])?;
    let tpm = genuine(&bench)?;
    let attacker = RogueTpm::of(&tpm).identity(EkTemplate::P256, spec)?;
    let mark = bench.mark()?;
    let (_agent, answer) = enrol(&bench, &attacker, Some(&token))?;
    refused_for(answer, "wrong_ak_template")?;
    bench.expect(&mark, attacker.node_id, "registrar", "wrong_ak_template")?;
    ensure!(bench.join_state(name)? == "open");
    ensure!(bench.rig.node(name)?["phase"] == "expected");
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn an_unrestricted_ak_is_refused() -> Result<()> {
    need_tpm!();
    template_is_refused("unrestricted", &KeySpec::ak(AkKind::P256).without(ObjectAttributes::RESTRICTED))
}

#[test]
fn an_ak_that_can_leave_its_tpm_is_refused() -> Result<()> {
    need_tpm!();
    let fixed = ObjectAttributes::FIXED_TPM | ObjectAttributes::FIXED_PARENT;
    template_is_refused("movable", &KeySpec::ak(AkKind::P256).without(fixed))
}

#[test]
fn an_unrestricted_ak_that_is_shown_as_the_template_is_not_activated() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let token = bench.add_by_join("disguised", &[])?;
    let swtpm = genuine(&bench)?;
    let tpm = RogueTpm::of(&swtpm);
    let loose = KeySpec::ak(AkKind::P256).without(ObjectAttributes::RESTRICTED);
    let mut attacker = tpm.identity(EkTemplate::P256, &loose)?;
    let mut public = TpmtPublic::decode(&attacker.ak_public)?;
    public.attributes = AK_ATTRIBUTES;
    attacker.ak_public = public.encode();
    attacker.ak_name = (*public.name()).try_into()?;
    let mark = bench.mark()?;
    let (mut agent, answer) = enrol(&bench, &attacker, Some(&token))?;
    let answer = answer?;
    ensure!(tpm.activate(&attacker, &answer.credential).is_err(), "the TPM opened a credential for another Name");
    refused_for(agent.activate_with(&made_up(&answer)), "bad_activation")?;
    bench.expect(&mark, attacker.node_id, "registrar", "bad_activation")?;
    ensure!(bench.join_state("disguised")? == "open");
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn an_ak_of_the_owner_hierarchy_is_refused_at_its_first_quote() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let swtpm = genuine(&bench)?;
    let tpm = RogueTpm::of(&swtpm);
    let attacker = tpm.identity(EkTemplate::P256, &KeySpec::ak(AkKind::P256).in_hierarchy(TPM_RH_OWNER))?;
    bench.add_by_id("owner-hierarchy", attacker.node_id, &bench.uncapped)?;
    let before = bench.mark()?;
    for role in [Role::Verifier, Role::Tenant] {
        let mark = bench.mark()?;
        let mut agent = patiently(|| {
            let mut agent = bench.connect()?;
            agent.bind(&tpm, &attacker, Wants::Payload, None)?;
            Ok(agent)
        })?;
        let bootstrap = Bootstrap::new(attacker.node_id);
        let (request, challenge) = agent.next_challenge(role, SOON)?;
        let evidence = agent.honest_evidence(&tpm, &attacker, &challenge, bootstrap.nk())?;
        agent.answer_challenge(&request, &evidence)?;
        bench.expect(&mark, attacker.node_id, role.name(), "wrong_signer")?;
        ensure!(agent.wait_closed(SOON)?.is_some_and(|why| why.contains("wrong_signer")), "{:?}", agent.closed());
    }
    bench.nothing_left("owner-hierarchy")?;
    ensure!(bench.rig.node("owner-hierarchy")?["trust"] == "none");
    rightful.is_unharmed(&bench, &before)
}

/// Another AK of the rightful node's own TPM: proven, recorded, and left to the operator.
fn second_ak_is_refused(spec: &KeySpec) -> Result<()> {
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let tpm = RogueTpm::of(&rightful.tpm);
    let second = tpm.identity(EkTemplate::P256, spec)?;
    ensure!(second.node_id == rightful.node_id() && second.ak_name != rightful.identity.ak_name);
    let mark = bench.mark()?;
    let (mut agent, answer) = enrol(&bench, &second, None)?;
    refused_for(agent.activate(&tpm, &second, &answer?), "node_bound_to_other_ak")?;
    bench.expect(&mark, second.node_id, "registrar", "node_bound_to_other_ak")?;
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn an_ak_of_the_default_unique_does_not_replace_the_bound_one() -> Result<()> {
    need_tpm!();
    second_ak_is_refused(&KeySpec::ak(AkKind::P256).unique(&[])?)
}

#[test]
fn a_second_ak_of_another_template_does_not_replace_the_bound_one() -> Result<()> {
    need_tpm!();
    second_ak_is_refused(&KeySpec::ak(AkKind::P384))
}

#[test]
fn a_second_ek_for_a_bound_ak_is_refused() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let token = bench.add_by_join("second-ek", &[])?;
    let tpm = RogueTpm::of(&rightful.tpm);
    let second = tpm.identity(EkTemplate::Rsa2048, &KeySpec::ak(AkKind::P256))?;
    ensure!(second.ak_name == rightful.identity.ak_name && second.node_id != rightful.node_id());
    let mark = bench.mark()?;
    let (mut agent, answer) = enrol(&bench, &second, Some(&token))?;
    refused_for(agent.activate(&tpm, &second, &answer?), "ak_bound_to_other_node")?;
    bench.expect(&mark, second.node_id, "registrar", "ak_bound_to_other_node")?;
    ensure!(bench.join_state("second-ek")? == "open");
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn an_ak_of_another_tpm_is_not_activated() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let token = bench.add_by_join("borrowed-ak", &[])?;
    let swtpm = genuine(&bench)?;
    let attacker = Identity {
        ak: rightful.identity.ak.clone(),
        ak_public: rightful.identity.ak_public.clone(),
        ak_name: rightful.identity.ak_name,
        ..identity(&swtpm)?
    };
    let mark = bench.mark()?;
    let (mut agent, answer) = enrol(&bench, &attacker, Some(&token))?;
    let answer = answer?;
    ensure!(RogueTpm::of(&swtpm).activate(&attacker, &answer.credential).is_err(), "the EK's TPM has no such AK");
    ensure!(
        RogueTpm::of(&rightful.tpm).activate(&attacker, &answer.credential).is_err(),
        "the AK's TPM has no such EK"
    );
    refused_for(agent.activate_with(&made_up(&answer)), "bad_activation")?;
    bench.expect(&mark, attacker.node_id, "registrar", "bad_activation")?;
    ensure!(bench.join_state("borrowed-ak")? == "open");
    rightful.is_unharmed(&bench, &mark)
}

/// Bound by its join token, and judged for what it is: no share.
fn unproven_hardware_gets_nothing(name: &str, swtpm: &Swtpm, doubt: &str) -> Result<()> {
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let token = bench.add_by_join(name, &[])?;
    let tpm = RogueTpm::of(swtpm);
    let attacker = identity(swtpm)?;
    let mark = bench.mark()?;
    let mut agent = bench.connect()?;
    agent.bind(&tpm, &attacker, Wants::Payload, Some(&token))?;
    let bound = bench.expect(&mark, attacker.node_id, "registrar", "bound")?;
    ensure!(bound.detail.contains("the hardware is not proven") && bound.detail.contains(doubt), "{bound:?}");
    let mut bootstrap = Bootstrap::new(attacker.node_id);
    for role in [Role::Verifier, Role::Tenant] {
        let (request, _) = agent.next_challenge(role, SOON)?;
        bootstrap.answer(&mut agent, &tpm, &attacker, &request, |_| EvidenceHacks::default())?;
        bench.expect(&mark, attacker.node_id, role.name(), "hardware_unproven")?;
    }
    let node = bench.rig.wait_trust(name, "failed", SOON)?;
    ensure!(node["hardware"]["kind"] == "unproven", "{node}");
    ensure!(node["last_verdict"]["explanation"]["findings"].as_array().is_some_and(|all| all.len() == 1), "{node}");
    bench.nothing_left(name)?;
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn an_ek_of_an_untrusted_vendor_is_bound_by_its_token_and_gets_nothing() -> Result<()> {
    need_tpm!();
    unproven_hardware_gets_nothing("other-vendor", &booted(EkKind::P256, &SwtpmCa::new()?)?, "no trusted certificate")
}

#[test]
fn a_software_tpm_without_certificate_is_bound_by_its_token_and_gets_nothing() -> Result<()> {
    need_tpm!();
    let tpm = Bench::shared()?.tpm(EkKind::NoCertificate)?;
    unproven_hardware_gets_nothing("software", &tpm, "no EK certificate")
}

#[test]
fn an_ek_with_the_certificate_of_another_ek_is_not_taken_for_certified() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let token = bench.add_by_join("borrowed-certificate", &[])?;
    let swtpm = bench.tpm(EkKind::NoCertificate)?;
    let attacker = Identity { ek_chain: rightful.identity.ek_chain.clone(), ..identity(&swtpm)? };
    let mark = bench.mark()?;
    let mut agent = bench.connect()?;
    agent.bind(&RogueTpm::of(&swtpm), &attacker, Wants::Payload, Some(&token))?;
    let bound = bench.expect(&mark, attacker.node_id, "registrar", "bound")?;
    ensure!(bound.detail.contains("is for another key than the node's EK"), "{bound:?}");
    bench.nothing_left("borrowed-certificate")?;
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn a_genuine_tpm_that_nobody_admitted_waits_in_quarantine_and_gets_nothing() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let tpm = genuine(&bench)?;
    let attacker = identity(&tpm)?;
    ensure!(attacker.ek_chain.len() == 1, "it has its vendor's certificate");
    let mark = bench.mark()?;
    let (mut agent, answer) = enrol(&bench, &attacker, None)?;
    refused_for(agent.activate(&RogueTpm::of(&tpm), &attacker, &answer?), "quarantined")?;
    let told = bench.expect(&mark, attacker.node_id, "registrar", "quarantined")?;
    ensure!(told.detail.contains(&format!("trefoil node approve {}", attacker.node_id)), "{told:?}");
    ensure!(agent.next_request(A_WHILE)?.is_none(), "a node that is not bound was asked for something");
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn forged_activations_repeated_against_an_active_node_change_nothing() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    // All that is public about the node, and an AK of the attacker's own.
    let own = Identity::without_tpm()?;
    let attacker = Identity { ak: own.ak, ak_public: own.ak_public, ak_name: own.ak_name, ..rightful.identity.clone() };
    let before = bench.mark()?;
    for who in [&attacker, &rightful.identity] {
        for _ in 0..5 {
            let mark = bench.mark()?;
            let (mut agent, answer) = enrol(&bench, who, None)?;
            let answer = answer?;
            refused_for(agent.activate_with(&made_up(&answer)), "bad_activation")?;
            bench.expect(&mark, who.node_id, "registrar", "bad_activation")?;
            // One try each.
            refused_for(agent.activate_with(&made_up(&answer)), "no_enrolment")?;
            bench.expect(&mark, who.node_id, "registrar", "no_enrolment")?;
        }
    }
    rightful.is_unharmed(&bench, &before)
}

#[test]
fn an_activation_is_good_for_its_own_connection_only() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let token = bench.add_by_join("two-connections", &[])?;
    let swtpm = genuine(&bench)?;
    let attacker = identity(&swtpm)?;
    let mark = bench.mark()?;
    let (_one, answer) = enrol(&bench, &attacker, Some(&token))?;
    let (mut other, _) = enrol(&bench, &attacker, Some(&token))?;
    let activated = other.activate(&RogueTpm::of(&swtpm), &attacker, &answer?);
    refused_for(activated, "no_enrolment")?;
    bench.expect(&mark, attacker.node_id, "registrar", "no_enrolment")?;
    ensure!(bench.join_state("two-connections")? == "open");
    rightful.is_unharmed(&bench, &mark)
}

/// A token whose holder proves it for something else than this node, this AK and this server.
fn join_proof_is_refused(
    name: &str,
    role: Role,
    forge: impl FnOnce(&JoinToken, &RogueAgent, &Identity, &Rightful) -> [u8; 32],
) -> Result<()> {
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let token = bench.add_by_join(name, &[])?;
    let swtpm = genuine(&bench)?;
    let attacker = identity(&swtpm)?;
    let mark = bench.mark()?;
    let mut agent = bench.connect()?;
    ensure!(agent.hello(&attacker, Wants::Payload)? == HelloAnswer::Enrol);
    let forged = Array(forge(&token, &agent, &attacker, &rightful));
    let honest = agent.join_proof(&token, &attacker);
    let proof = match role {
        Role::Registrar => JoinProof { registrar: forged, ..honest },
        _ => JoinProof { tenant: forged, ..honest },
    };
    let answer = agent.enrol(&attacker, Some(proof));
    if role == Role::Registrar {
        refused_for(answer, "bad_join_proof")?;
        ensure!(bench.join_state(name)? == "open");
    } else {
        agent.activate(&RogueTpm::of(&swtpm), &attacker, &answer?)?;
        ensure!(agent.next_request(A_WHILE)?.is_none(), "a node that the tenant did not admit was asked for something");
    }
    bench.expect(&mark, attacker.node_id, role.name(), "bad_join_proof")?;
    let node = bench.rig.node(name)?;
    ensure!(node["phase"] == "expected" && node["node_id"].is_null(), "{node}");
    bench.nothing_left(name)?;
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn a_join_proof_for_another_ak_is_refused() -> Result<()> {
    need_tpm!();
    join_proof_is_refused("proof-other-ak", Role::Registrar, |token, agent, attacker, rightful| {
        let certificate = agent.server_certificate();
        token.key(Role::Registrar).proof(attacker.node_id, &rightful.identity.ak_name, &certificate)
    })
}

#[test]
fn a_join_proof_for_another_node_is_refused() -> Result<()> {
    need_tpm!();
    join_proof_is_refused("proof-other-node", Role::Registrar, |token, agent, attacker, rightful| {
        let certificate = agent.server_certificate();
        token.key(Role::Registrar).proof(rightful.node_id(), &attacker.ak_name, &certificate)
    })
}

#[test]
fn a_join_proof_that_was_made_for_another_server_is_refused() -> Result<()> {
    need_tpm!();
    join_proof_is_refused("proof-other-server", Role::Registrar, |token, _, attacker, _| {
        token.key(Role::Registrar).proof(attacker.node_id, &attacker.ak_name, &[0x33; 32])
    })
}

#[test]
fn the_registrars_half_of_a_join_proof_does_not_admit_to_the_tenant() -> Result<()> {
    need_tpm!();
    join_proof_is_refused("proof-one-half", Role::Tenant, |token, agent, attacker, _| {
        // What a registrar could make: it holds its own key of the token, and not the tenant's.
        let certificate = agent.server_certificate();
        token.key(Role::Registrar).proof(attacker.node_id, &attacker.ak_name, &certificate)
    })
}

/// A token that admits nobody, or nobody else.
fn token_is_refused(bench: &Bench, token: &JoinToken, kind: &str) -> Result<()> {
    let rightful = bench.rightful()?;
    let attacker = identity(&genuine(bench)?)?;
    let mark = bench.mark()?;
    let (_agent, answer) = enrol(bench, &attacker, Some(token))?;
    refused_for(answer, kind)?;
    bench.expect(&mark, attacker.node_id, "registrar", kind)?;
    rightful.is_unharmed(bench, &mark)
}

#[test]
fn a_join_token_that_another_node_used_is_refused() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let token = bench.add_by_join("used", &[])?;
    let swtpm = bench.tpm(EkKind::P256)?;
    let first = identity(&swtpm)?;
    let mark = bench.mark()?;
    let mut agent = bench.connect()?;
    agent.bind(&RogueTpm::of(&swtpm), &first, Wants::Payload, Some(&token))?;
    bench.expect(&mark, first.node_id, "tenant", "joined")?;
    ensure!(bench.join_state("used")? == "used");
    token_is_refused(&bench, &token, "join_used")?;
    ensure!(bench.rig.node("used")?["node_id"] == first.node_id.to_string());
    Ok(())
}

#[test]
fn an_expired_join_token_is_refused() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let token = bench.add_by_join("expired", &["--expires", "100ms"])?;
    while bench.join_state("expired")? != "expired" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    token_is_refused(&bench, &token, "unknown_join")
}

#[test]
fn a_revoked_join_token_is_refused() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let token = bench.add_by_join("revoked", &[])?;
    bench.rig.trefoil(&["join", "revoke", "revoked"])?;
    ensure!(bench.join_state("revoked")? == "revoked");
    token_is_refused(&bench, &token, "unknown_join")
}

#[test]
fn a_join_token_that_nobody_made_is_refused() -> Result<()> {
    need_tpm!();
    token_is_refused(&*Bench::shared()?, &JoinToken::generate(&mut OsRng), "unknown_join")
}

#[test]
fn a_node_id_that_is_not_the_eks_is_refused() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let attacker = Identity { node_id: rightful.node_id(), ..identity(&genuine(&bench)?)? };
    let mark = bench.mark()?;
    let (_agent, answer) = enrol(&bench, &attacker, None)?;
    refused_for(answer, "wrong_node_id")?;
    bench.expect(&mark, rightful.node_id(), "registrar", "wrong_node_id")?;
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn an_ak_that_hello_did_not_name_is_refused() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let other = Identity::without_tpm()?;
    let mark = bench.mark()?;
    let answer = patiently(|| {
        let mut agent = bench.connect()?;
        agent.hello_with(&Hello {
            version: VERSION,
            node_id: rightful.node_id(),
            ak_name: Array(rightful.identity.ak_name),
            wants: Wants::Payload,
            has_boot_log: false,
            has_ima_log: false,
        })?;
        let shown = Identity { ak_public: other.ak_public.clone(), ..rightful.identity.clone() };
        Ok(agent.enrol(&shown, None))
    })?;
    refused_for(answer, "wrong_ak_name")?;
    bench.expect(&mark, rightful.node_id(), "registrar", "wrong_ak_name")?;
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn what_the_refused_lack_is_all_that_they_lack() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let token = bench.add_by_join("honest", &[])?;
    let swtpm = genuine(&bench)?;
    let honest = identity(&swtpm)?;
    let opened = bench.connect()?.bootstrap(&RogueTpm::of(&swtpm), &honest, Some(&token), SOON)?;
    ensure!(opened.node_id == honest.node_id && bench.releases("honest")?.len() == 2);
    let node = RogueNode::new(&bench, "honest-by-id", EkKind::NoCertificate)?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    node.bootstrap(&bench, &mut agent)?.open()?;
    ensure!(agent.next_request(A_WHILE)?.is_none_or(|request| request.is(Route::Challenge)));
    Ok(())
}
