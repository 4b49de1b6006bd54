//! Evidence that is not what it has to be: a node that does not measure right, quotes by other keys, for other
//! challenges, over other PCRs, for another NK, and a registrar that lies about whose AK it is.
//!
//! In most of these the attacker is root on a node that is admitted, bound and measures right: an honest answer would
//! get both shares, and the one thing that is changed is what keeps them back. Verifier and tenant are lied to one by
//! one, and each has to find out by itself.

mod hostile;

use anyhow::{Context, Result, ensure};
use hil_tests::rogue::client::{Bootstrap, EvidenceHacks, selection_list};
use hil_tests::rogue::tpm::{Identity, KeySpec, RogueTpm};
use hil_tests::swtpm::EkKind;
use hostile::{A_WHILE, Bench, JUDGED_PCR, RogueNode, SOON, booted, identity, patiently};
use protocol::bytes::{Array, Bytes};
use protocol::coap::route::Route;
use protocol::crypto::Nk;
use protocol::id::Role;
use protocol::message::attest::{Challenge, Evidence, PcrValueList, Purpose};
use protocol::message::enrol::{HelloAnswer, Wants};
use protocol::tpm::alg::HashAlg;
use protocol::tpm::pcr::PcrSelectionList;
use protocol::tpm::template::AkKind;

const BOTH: [Role; 2] = [Role::Verifier, Role::Tenant];

/// Both roles refuse this evidence, for this reason, and nothing leaves.
fn is_refused<'a>(kind: &str, hacks: impl Fn(&Bench, &RogueNode) -> EvidenceHacks<'a>) -> Result<()> {
    let bench = Bench::shared()?;
    let (rightful, rogue) = (bench.rightful()?, bench.rogue_node()?);
    let _turn = rogue.turn();
    let before = bench.mark()?;
    for role in BOTH {
        let mark = bench.mark()?;
        let words = rogue.offer(&bench, role, hacks(&bench, &rogue))?;
        ensure!(words.contains(&format!("{kind}: ")), "not refused for `{kind}`: {words}");
        bench.expect(&mark, rogue.node_id(), role.name(), kind)?;
    }
    bench.nothing_left(&rogue.name)?;
    let node = bench.rig.node(&rogue.name)?;
    ensure!(node["trust"] == "none" && node["phase"] == "bound", "a quote that proved nothing changed {node}");
    rightful.is_unharmed(&bench, &before)
}

/// The same for a change of the finished message.
fn edited_is_refused(kind: &str, edit: impl Fn(&mut Evidence) + Clone + 'static) -> Result<()> {
    is_refused(kind, |_, _| EvidenceHacks { edit: Some(Box::new(edit.clone())), ..Default::default() })
}

#[test]
fn a_node_that_does_not_measure_right_gets_no_share_from_either_role() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let tpm = bench.tpm(EkKind::P256)?;
    tpm.pcr_extend(JUDGED_PCR, &"bd".repeat(32))?;
    let node_id = identity(&tpm)?.node_id;
    bench.add_by_id("tampered", node_id, &bench.capped)?;
    let mark = bench.mark()?;
    let agent = bench.rig.agent(&tpm, "tampered", &[])?;
    for role in BOTH {
        let told = bench.expect(&mark, node_id, role.name(), "pcr_mismatch")?;
        ensure!(told.detail.contains("sha256:7"), "{told:?}");
    }
    let node = bench.rig.wait_trust("tampered", "failed", SOON)?;
    let findings = &node["last_verdict"]["explanation"]["findings"];
    ensure!(findings[0]["code"] == "pcr_mismatch" && findings.as_array().is_some_and(|all| all.len() == 1), "{node}");
    // It is asked again and again; nothing comes of it.
    let rounds = bench.rig.wait_node("tampered", "another verdict", SOON, |later| {
        later["last_verdict"]["at_ms"].as_i64() > node["last_verdict"]["at_ms"].as_i64()
    })?;
    ensure!(rounds["phase"] == "bound", "{rounds}");
    bench.nothing_left("tampered")?;
    ensure!(agent.payload()?.is_empty() && agent.is_running());
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn a_quote_by_another_ak_of_the_same_tpm_is_refused() -> Result<()> {
    need_tpm!();
    let signer = KeySpec::ak(AkKind::P256).unique(b"another")?;
    is_refused("bad_signature", |_, _| EvidenceHacks { signer: Some(signer.clone()), ..Default::default() })
}

#[test]
fn a_quote_by_an_ak_of_another_algorithm_is_refused() -> Result<()> {
    need_tpm!();
    is_refused("bad_signature", |_, _| EvidenceHacks { signer: Some(KeySpec::ak(AkKind::P384)), ..Default::default() })
}

#[test]
fn a_quote_by_another_tpm_is_refused_and_the_node_it_claims_stays_connected() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let (rightful, rogue) = (bench.rightful()?, bench.rogue_node()?);
    let _turn = rogue.turn();
    let mark = bench.mark()?;
    // The rightful node's names, this TPM's quotes.
    let claimed = rightful.identity.clone();
    let mut agent = patiently(|| {
        let mut agent = bench.connect()?;
        ensure!(agent.hello(&claimed, Wants::Payload)? == HelloAnswer::Known);
        Ok(agent)
    })?;
    let bootstrap = Bootstrap::new(claimed.node_id);
    let (request, challenge) = agent.next_challenge(Role::Verifier, SOON)?;
    let evidence = agent.honest_evidence(&rogue.tpm, &claimed, &challenge, bootstrap.nk())?;
    agent.answer_challenge(&request, &evidence)?;
    bench.expect(&mark, claimed.node_id, "verifier", "bad_signature")?;
    ensure!(agent.wait_closed(SOON)?.is_some_and(|why| why.contains("bad_signature")), "{:?}", agent.closed());
    ensure!(bench.releases(&rightful.name)?.len() == 2, "something left besides the rightful node's own two shares");
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn a_flipped_signature_is_refused() -> Result<()> {
    need_tpm!();
    is_refused("bad_signature", |_, _| EvidenceHacks { flip_signature: true, ..Default::default() })
}

#[test]
fn bytes_that_are_no_signature_are_refused() -> Result<()> {
    need_tpm!();
    edited_is_refused("bad_signature", |evidence| evidence.signature = Bytes::default())
}

#[test]
fn text_that_the_ak_signed_is_not_taken_for_a_quote() -> Result<()> {
    need_tpm!();
    is_refused("not_a_quote", |_, rogue| {
        let tpm = rogue.tpm;
        EvidenceHacks {
            edit: Some(Box::new(move |evidence| {
                let signed = || -> Result<(Vec<u8>, Vec<u8>)> {
                    let mut batch = tpm.open()?;
                    let key = batch.create(&KeySpec::ak(AkKind::P256))?;
                    // A quote in all but the four bytes that only a TPM may begin with.
                    let text = [b"\xfeTCG", evidence.attested.get(4..).context("no quote")?].concat();
                    let signature = batch.hash_and_sign(&key, &text)?;
                    batch.flush(key.handle)?;
                    Ok((text, signature))
                };
                let (text, signature) = signed().expect("the AK signs text");
                evidence.attested = Bytes::new(&text).expect("as long as before");
                evidence.signature = Bytes::new(&signature).expect("as long as before");
            })),
            ..Default::default()
        }
    })
}

#[test]
fn evidence_for_an_earlier_challenge_is_refused() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let (rightful, rogue) = (bench.rightful()?, bench.rogue_node()?);
    let _turn = rogue.turn();
    let mark = bench.mark()?;
    for role in BOTH {
        // Honest, and never sent: what somebody on the wire has kept.
        let bootstrap = Bootstrap::new(rogue.node_id());
        let mut agent = rogue.bound(&bench, Wants::Payload)?;
        let (_, challenge) = agent.next_challenge(role, SOON)?;
        let kept = agent.honest_evidence(&rogue.tpm, &rogue.identity, &challenge, bootstrap.nk())?;
        agent.cut();

        let mut agent = rogue.bound(&bench, Wants::Payload)?;
        let (request, _) = agent.next_challenge(role, SOON)?;
        agent.answer_challenge(&request, &kept)?;
        ensure!(agent.wait_closed(SOON)?.is_some_and(|why| why.contains("wrong_binding")), "{:?}", agent.closed());
        bench.expect(&mark, rogue.node_id(), role.name(), "wrong_binding")?;
    }
    bench.nothing_left(&rogue.name)?;
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn a_nonce_that_was_answered_is_not_answered_again() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let node = RogueNode::new(&bench, "replayed", EkKind::NoCertificate)?;
    let mark = bench.mark()?;
    let mut agent = node.bound(&bench, Wants::Attest)?;
    let nk = Bootstrap::new(node.node_id());
    let (request, challenge) = agent.next_challenge(Role::Verifier, SOON)?;
    ensure!(challenge.purpose == Purpose::Attest);
    let evidence = agent.honest_evidence(&node.tpm, &node.identity, &challenge, nk.nk())?;
    agent.answer_challenge(&request, &evidence)?;
    bench.expect(&mark, node.node_id(), "verifier", "trusted")?;
    let first = bench.rig.node(&node.name)?["last_verdict"]["at_ms"].clone();
    // The next round: the same words again, and then the old nonce under a new quote.
    let (request, _) = agent.next_challenge(Role::Verifier, SOON)?;
    agent.answer_challenge(&request, &evidence)?;
    ensure!(agent.wait_closed(SOON)?.is_some_and(|why| why.contains("wrong_binding")), "{:?}", agent.closed());
    bench.expect(&mark, node.node_id(), "verifier", "wrong_binding")?;

    let mut agent = node.bound(&bench, Wants::Attest)?;
    let (request, again) = agent.next_challenge(Role::Verifier, SOON)?;
    let hacks = EvidenceHacks { nonce: Some(challenge.nonce.0), ..Default::default() };
    let evidence = agent.evidence(&node.tpm, &node.identity, &again, nk.nk(), hacks)?;
    agent.answer_challenge(&request, &evidence)?;
    ensure!(agent.wait_closed(SOON)?.is_some_and(|why| why.contains("wrong_binding")), "{:?}", agent.closed());
    ensure!(bench.rig.node(&node.name)?["last_verdict"]["at_ms"] == first, "a replay renewed the verdict");
    bench.nothing_left(&node.name)?;
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn an_invented_nonce_is_refused() -> Result<()> {
    need_tpm!();
    is_refused("wrong_binding", |_, _| EvidenceHacks { nonce: Some([9; 32]), ..Default::default() })
}

#[test]
fn qualifying_data_that_binds_nothing_is_refused() -> Result<()> {
    need_tpm!();
    is_refused("wrong_binding", |_, _| EvidenceHacks { qualifying_data: Some([0; 32]), ..Default::default() })
}

#[test]
fn a_quote_for_another_node_is_refused() -> Result<()> {
    need_tpm!();
    let other = Bench::shared()?.rightful()?.node_id();
    is_refused("wrong_binding", |_, _| EvidenceHacks { node_id: Some(other), ..Default::default() })
}

#[test]
fn a_quote_through_somebody_in_between_is_refused() -> Result<()> {
    need_tpm!();
    is_refused("wrong_binding", |_, _| EvidenceHacks { server_certificate: Some([7; 32]), ..Default::default() })
}

#[test]
fn a_nonce_of_the_other_role_does_not_stand_for_ones_own() -> Result<()> {
    need_tpm!();
    edited_is_refused("wrong_binding", |evidence| evidence.other_nonce = Some(Array([3; 32])))
}

#[test]
fn a_quote_over_other_pcrs_than_asked_is_refused() -> Result<()> {
    need_tpm!();
    // All that are asked for, and one more; and one that is zero on every machine in place of them.
    for mask in [1 << JUDGED_PCR | 1 << 23, 1 << 23] {
        is_refused("wrong_selection", |_, _| EvidenceHacks {
            selection: PcrSelectionList::single(HashAlg::Sha256, mask),
            ..Default::default()
        })?;
    }
    Ok(())
}

#[test]
fn a_quote_over_no_pcr_is_refused() -> Result<()> {
    need_tpm!();
    is_refused("wrong_selection", |_, _| EvidenceHacks {
        selection: Some(PcrSelectionList::new()),
        edit: Some(Box::new(|evidence| evidence.pcrs = PcrValueList::new())),
        ..Default::default()
    })
}

#[test]
fn a_quote_over_another_bank_is_refused() -> Result<()> {
    need_tpm!();
    is_refused("wrong_selection", |_, _| EvidenceHacks {
        selection: PcrSelectionList::single(HashAlg::Sha1, 1 << JUDGED_PCR),
        ..Default::default()
    })
}

#[test]
fn a_quote_that_says_another_purpose_gets_no_share() -> Result<()> {
    need_tpm!();
    is_refused("wrong_purpose", |_, _| EvidenceHacks { purpose: Some(Purpose::Attest), ..Default::default() })
}

#[test]
fn a_quote_of_purpose_attest_offered_with_an_nk_gets_no_share() -> Result<()> {
    need_tpm!();
    is_refused("wrong_binding", |_, _| EvidenceHacks {
        purpose: Some(Purpose::Attest),
        sent_nk: Some(*Bootstrap::new(protocol::id::NodeId([0; 32])).nk().public()),
        ..Default::default()
    })
}

#[test]
fn an_nk_swapped_after_the_quote_is_refused() -> Result<()> {
    need_tpm!();
    let stranger = Nk::from_seeds(&[1; 32], &[2; 32]);
    is_refused("wrong_binding", |_, _| EvidenceHacks { sent_nk: Some(*stranger.public()), ..Default::default() })
}

/// Values are judged only if they are the quoted ones. The quote is the node's own here, so it may prove the connection;
/// a node of its own keeps the others' quotes unproven.
#[test]
fn values_that_do_not_hash_to_the_quote_are_refused() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let swtpm_values = PcrSelectionList::single(HashAlg::Sha256, 1 << JUDGED_PCR).context("a selection")?;
    let node = RogueNode::new(&bench, "liar", EkKind::NoCertificate)?;
    // It measures wrong, and says what a good node would say.
    let good = node.tpm.open()?.pcr_read(&swtpm_values)?;
    let good = *good.get(HashAlg::Sha256, JUDGED_PCR as u8).context("no value")?;
    node.swtpm.pcr_extend(JUDGED_PCR, &"bd".repeat(32))?;
    type Edit = Box<dyn Fn(&mut Evidence)>;
    let edits: [(&str, Edit); 4] = [
        ("wrong_pcr_digest", Box::new(move |evidence| evidence.pcrs[0].digest = Bytes::new(&good).expect("a digest"))),
        ("wrong_pcrs", Box::new(|evidence| evidence.pcrs.clear())),
        (
            "wrong_pcrs",
            Box::new(|evidence| {
                let mut more = evidence.pcrs[0].clone();
                more.index = 23;
                evidence.pcrs.push(more).expect("room for one more");
            }),
        ),
        ("no_pcr_base", Box::new(|evidence| evidence.pcrs_from_base = true)),
    ];
    let before = bench.mark()?;
    for (kind, edit) in &edits {
        for role in BOTH {
            let mark = bench.mark()?;
            let hacks = EvidenceHacks { edit: Some(Box::new(edit)), ..Default::default() };
            let words = node.offer(&bench, role, hacks)?;
            ensure!(words.contains(&format!("{kind}: ")), "not refused for `{kind}`: {words}");
            bench.expect(&mark, node.node_id(), role.name(), kind)?;
        }
    }
    bench.nothing_left(&node.name)?;
    ensure!(bench.rig.node(&node.name)?["trust"] == "none");
    rightful.is_unharmed(&bench, &before)
}

#[test]
fn a_credential_of_the_tenant_that_was_not_opened_ends_its_round() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let (rightful, rogue) = (bench.rightful()?, bench.rogue_node()?);
    let _turn = rogue.turn();
    let before = bench.mark()?;
    for answer in [None, Some(Array([0x11; 32]))] {
        let mark = bench.mark()?;
        let edit = move |evidence: &mut Evidence| evidence.credential_answer = answer;
        let hacks = EvidenceHacks { edit: Some(Box::new(edit)), ..Default::default() };
        let words = rogue.offer(&bench, Role::Tenant, hacks)?;
        ensure!(words.contains("bad_credential_answer: "), "{words}");
        bench.expect(&mark, rogue.node_id(), "tenant", "bad_credential_answer")?;
    }
    bench.nothing_left(&rogue.name)?;
    rightful.is_unharmed(&bench, &before)
}

/// Puts another TPM's AK into the registrar's record of a node, as a registrar that lies would.
fn lie(bench: &Bench, about: &Identity, ak: &Identity) -> Result<()> {
    bench.change(Role::Registrar, |bytes| {
        format!(
            "UPDATE binding SET ak_name = {}, ak_public = {} WHERE node_id = {}",
            bytes(&ak.ak_name),
            bytes(&ak.ak_public),
            bytes(about.node_id.as_bytes()),
        )
    })
}

#[test]
fn a_registrar_that_lies_about_the_ak_gets_no_share_out_of_either_role() -> Result<()> {
    need_tpm!();
    let bench = Bench::new()?;
    let victim = RogueNode::new(&bench, "victim", EkKind::P256)?;
    // Bound, and looked at by nobody yet.
    let mut agent = victim.bound(&bench, Wants::Payload)?;
    agent.cut();
    let swtpm = booted(EkKind::P256, &bench.ca)?;
    let (tpm, own) = (RogueTpm::of(&swtpm), identity(&swtpm)?);
    bench.rig.stop_server()?;
    lie(&bench, &victim.identity, &own)?;
    bench.rig.start_server()?;

    let mark = bench.mark()?;
    let attacker = Identity { node_id: victim.node_id(), ..own };
    let mut agent = bench.connect()?;
    ensure!(agent.hello(&attacker, Wants::Payload)? == HelloAnswer::Known, "the registrar stands by its lie");
    let mut bootstrap = Bootstrap::new(victim.node_id());
    // The verifier has nobody else to ask, and finds the attacker's machine good.
    let (request, _) = agent.next_challenge(Role::Verifier, SOON)?;
    bootstrap.answer(&mut agent, &tpm, &attacker, &request, |_: &Challenge| EvidenceHacks::default())?;
    bench.expect(&mark, victim.node_id(), "verifier", "trusted")?;
    // The tenant asks the EK.
    let (request, challenge) = agent.next_challenge(Role::Tenant, SOON)?;
    let credential = challenge.credential.as_ref().context("the tenant took the registrar's word")?;
    ensure!(tpm.activate(&attacker, credential).is_err() && victim.tpm.activate(&victim.identity, credential).is_err());
    let selection = selection_list(&challenge.selection)?;
    let without = Challenge { credential: None, ..challenge };
    let hacks = EvidenceHacks {
        selection: Some(selection),
        edit: Some(Box::new(|evidence| evidence.credential_answer = Some(Array([0x42; 32])))),
        ..Default::default()
    };
    let evidence = agent.evidence(&tpm, &attacker, &without, bootstrap.nk(), hacks)?;
    agent.answer_challenge(&request, &evidence)?;
    bench.expect(&mark, victim.node_id(), "tenant", "bad_credential_answer")?;
    ensure!(agent.wait_closed(SOON)?.is_some(), "the connection was not ended");
    while let Some(request) = agent.next_request(std::time::Duration::ZERO)? {
        ensure!(!request.is(Route::Share), "a share came");
    }
    bench.nothing_left("victim")
}

#[test]
fn a_registrar_that_lies_about_a_known_node_is_not_asked() -> Result<()> {
    need_tpm!();
    let bench = Bench::new()?;
    let victim = RogueNode::new(&bench, "victim", EkKind::P256)?;
    let mut agent = victim.bound(&bench, Wants::Payload)?;
    victim.bootstrap(&bench, &mut agent)?.open()?;
    drop(agent);
    ensure!(bench.releases("victim")?.len() == 2);
    let ak_name = bench.rig.node("victim")?["ak_name"].clone();
    let swtpm = booted(EkKind::P256, &bench.ca)?;
    let own = identity(&swtpm)?;
    bench.rig.stop_server()?;
    lie(&bench, &victim.identity, &own)?;
    bench.rig.start_server()?;

    let mark = bench.mark()?;
    let attacker = Identity { node_id: victim.node_id(), ..own };
    let mut agent = bench.connect()?;
    // The verifier has pinned the node's AK: what the registrar says of another is not even asked for.
    ensure!(agent.hello(&attacker, Wants::Payload)? == HelloAnswer::Enrol, "the registrar's lie counts");
    ensure!(agent.next_request(A_WHILE)?.is_none(), "an AK that nobody pinned is challenged");
    let told = bench.told(&mark, victim.node_id())?;
    ensure!(told.is_empty(), "{told:#?}");
    ensure!(bench.releases("victim")?.len() == 2, "a share left for the AK that the registrar invented");
    ensure!(bench.rig.node("victim")?["ak_name"] == ak_name, "the pinned AK was changed");
    Ok(())
}

#[test]
fn without_the_one_lie_both_shares_come() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let node = RogueNode::new(&bench, "honest", EkKind::P256)?;
    let mut agent = node.bound(&bench, Wants::Payload)?;
    node.bootstrap(&bench, &mut agent)?.open()?;
    for role in BOTH {
        ensure!(bench.releases_of("honest", role.name())? == 1);
    }
    Ok(())
}
