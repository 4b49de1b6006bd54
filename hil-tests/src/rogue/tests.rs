//! The rogue peers against each other: without a TPM for the plumbing, with swtpm for the whole bootstrap.

use std::thread;
use std::time::Duration;

use protocol::bytes::{Array, Bytes};
use protocol::coap::frame::Code;
use protocol::coap::route::{Route, RouteName};
use protocol::crypto::{Nk, TenantSigningKey};
use protocol::id::{Role, SealingId, Subject};
use protocol::message::attest::{Challenge, Evidence, PcrValueList, Purpose};
use protocol::message::enrol::{Activate, HelloAnswer, Wants};
use protocol::message::provision::{Confirm, ReportKind};
use protocol::tpm::alg::HashAlg;
use protocol::tpm::command::TPM_RH_OWNER;
use protocol::tpm::pcr::{PcrSelectionList, digest_over};
use protocol::tpm::public::ObjectAttributes;
use protocol::tpm::signature::TpmtSignature;
use protocol::tpm::template::{AkKind, EkTemplate, check_ak};
use rand_core::OsRng;

use super::client::{Bootstrap, EvidenceHacks, RogueAgent};
use super::server::{Canned, Certificate, ChallengeSpec, Resealed, RogueCa, RogueGateway, RogueSealing, junk_share};
use super::tpm::{Identity, KeySpec, RogueTpm};
use super::{Peer, Refused};
use crate::apt::Tool;
use crate::rig::missing;
use crate::swtpm::{EkKind, Swtpm};

const SOON: Duration = Duration::from_secs(20);

macro_rules! need {
    ($($tool:expr),+) => {
        if let Some(why) = missing(&[$($tool),+]) {
            eprintln!("{why}");
            return;
        }
    };
}

fn gateway() -> (RogueCa, RogueGateway) {
    let ca = RogueCa::new("rogue CA").unwrap();
    let gateway = RogueGateway::start(&ca, &Certificate::default()).unwrap();
    (ca, gateway)
}

/// Says nothing that a TPM would have said.
fn fake_evidence(nk: &Nk) -> Evidence {
    Evidence {
        attested: Bytes::new(b"no quote").unwrap(),
        signature: Bytes::new(b"no signature").unwrap(),
        nk_public: Some(Array(*nk.public())),
        other_nonce: None,
        pcrs_from_base: false,
        pcrs: PcrValueList::new(),
        boot_log: None,
        ima: None,
        credential_answer: None,
    }
}

#[test]
fn a_bootstrap_without_a_tpm_goes_through_every_route_of_both_ends() {
    let (ca, gateway) = gateway();
    let (address, certificate) = (gateway.address().unwrap(), gateway.server_certificate());
    let identity = Identity::without_tpm().unwrap();
    let node_id = identity.node_id;
    gateway.bind(&identity).unwrap();
    let signing = TenantSigningKey::generate(&mut OsRng);
    let pins = [signing.public()];
    // Over 64 KiB: two chunks, many blocks.
    let big = vec![7; 100_000];
    let files: [(&str, &[u8]); 2] = [("hello.txt", b"hello"), ("big.bin", &big)];
    let sealing = RogueSealing::new(Subject::Node(node_id), &signing, &files).unwrap();
    let sealing_id = sealing.sealing_id;

    let server = thread::spawn(move || {
        let mut session = gateway.accept(SOON).unwrap();
        assert_eq!(session.wait_bound(SOON).unwrap(), node_id);
        session.desk.sealings.insert(sealing.sealing_id, sealing.clone());
        let spec = |role| ChallengeSpec::new(role, Purpose::Bootstrap);
        let [verifier, tenant] = session.challenge_both(&spec(Role::Verifier), &spec(Role::Tenant)).unwrap();
        assert!(!verifier.binds && verifier.attest.is_none());
        let junk = session.send_share(&junk_share(Role::Verifier, sealing.sealing_id).unwrap()).unwrap();
        assert_eq!(junk.code, Code::UNPROCESSABLE_ENTITY);
        session.send_v(&sealing, &verifier).unwrap().accepted().unwrap();
        session.send_u(&sealing, &tenant).unwrap().accepted().unwrap();
        assert!(session.wait_confirm(SOON).unwrap().is_right);
        let report = session.wait_report(SOON).unwrap();
        assert_eq!((report.kind, report.code, &report.text[..]), (ReportKind::Autorun, 3, &b"done"[..]));
        assert!(session.record.count(RouteName::Payload) > 10);
        session.release().unwrap();
        session.wait_closed(SOON).unwrap();
    });

    let mut agent = RogueAgent::connect(address, ca.pem().as_bytes()).unwrap();
    assert_eq!(agent.server_certificate(), certificate);
    assert_eq!(agent.hello(&identity, Wants::Payload).unwrap(), HelloAnswer::Known);
    let mut bootstrap = Bootstrap::new(node_id);
    while !(bootstrap.has_u() && bootstrap.has_v()) {
        let request = agent.next_request(SOON).unwrap().unwrap();
        if request.is(Route::Challenge) {
            let challenge: Challenge = request.message().unwrap();
            let evidence = fake_evidence(bootstrap.nk());
            bootstrap.quoted(&challenge, &evidence);
            agent.answer_challenge(&request, &evidence).unwrap();
        } else {
            let share = request.message().unwrap();
            let code = if bootstrap.take(&share).is_ok() { Code::CHANGED } else { Code::UNPROCESSABLE_ENTITY };
            agent.respond(request.token, code, &[]).unwrap();
        }
    }
    assert_eq!(bootstrap.shares.len(), 3);
    let opened = bootstrap.open().unwrap();
    let signed = agent.manifest(sealing_id).unwrap();
    let (manifest, keys) = opened.keys(&signed, &pins).unwrap();
    let container = opened.decrypt(&keys, &manifest, &agent.ciphertext(sealing_id).unwrap()).unwrap();
    assert!(container.windows(5).any(|window| window == b"hello"));
    agent.confirm(&opened.confirmation(&keys)).unwrap();
    agent.report(sealing_id, ReportKind::Autorun, 3, "done").unwrap();
    agent.pump(Duration::from_millis(200)).unwrap();
    assert!(agent.is_released());
    drop(agent);
    server.join().unwrap();
}

#[test]
fn an_activation_that_proves_nothing_is_refused_with_its_reason() {
    let (_, gateway) = gateway();
    let address = gateway.address().unwrap();
    let server = thread::spawn(move || {
        let mut session = gateway.accept(SOON).unwrap();
        session.serve_until(SOON, |record| !record.activations.is_empty()).unwrap();
        assert!(!session.record.activations[0].1 && !session.record.is_bound);
        session.wait_closed(SOON).unwrap();
    });
    let identity = Identity::without_tpm().unwrap();
    let mut agent = RogueAgent::connect_trusting_anything(address).unwrap();
    assert_eq!(agent.hello(&identity, Wants::Payload).unwrap(), HelloAnswer::Enrol);
    let answer = agent.enrol(&identity, None).unwrap();
    let forged = Activate { enrolment_id: answer.enrolment_id, proof: Array([0; 32]) };
    let refused = agent.activate_with(&forged).unwrap_err().downcast::<Refused>().unwrap();
    assert_eq!((refused.code, &*refused.text), (Code::FORBIDDEN, "the activation proves nothing"));
    drop(agent);
    server.join().unwrap();
}

#[test]
fn canned_answers_replace_honest_ones_and_are_recorded() {
    let (ca, gateway) = gateway();
    let address = gateway.address().unwrap();
    let server = thread::spawn(move || {
        let mut session = gateway.accept(SOON).unwrap();
        session.desk.intercept = Some(Box::new(|request| match request.route {
            Ok(Route::Manifest(_)) => Some(Canned::Answer(Code::SERVICE_UNAVAILABLE, b"later".to_vec())),
            Ok(Route::Payload(_)) => Some(Canned::Body(vec![9; 20_000])),
            Ok(Route::Confirm) => Some(Canned::Cut),
            _ => None,
        }));
        session.serve_for(SOON).unwrap();
        assert_eq!(session.record.asked.last(), Some(&RouteName::Confirm));
        assert!(!session.record.confirms[0].is_right, "nothing was released");
        assert_eq!(session.closed(), Some("cut here"));
    });
    let mut agent = RogueAgent::connect(address, ca.pem().as_bytes()).unwrap();
    let id = SealingId([1; 16]);
    let refused = agent.manifest(id).unwrap_err().downcast::<Refused>().unwrap();
    assert_eq!((refused.code, &*refused.text), (Code::SERVICE_UNAVAILABLE, "later"));
    assert_eq!(agent.ciphertext(id).unwrap(), vec![9; 20_000]);
    let confirm = Confirm { sealing_id: id, proof: Array([0; 32]) };
    assert!(agent.confirm(&confirm).is_err());
    assert!(agent.closed().is_some());
    server.join().unwrap();
}

#[test]
fn bytes_that_are_no_message_end_the_connection_with_an_abort() {
    let (ca, gateway) = gateway();
    let address = gateway.address().unwrap();
    let server = thread::spawn(move || {
        let mut session = gateway.accept(SOON).unwrap();
        session.serve_for(SOON).unwrap();
        session.closed().unwrap().to_owned()
    });
    let mut agent = RogueAgent::connect(address, ca.pem().as_bytes()).unwrap();
    agent.send_bytes(&[0xff; 100]).unwrap();
    let why = agent.wait_closed(SOON).unwrap().unwrap();
    assert!(why.starts_with("aborted: "), "{why}");
    assert!(!server.join().unwrap().is_empty());
}

#[test]
fn a_certificate_of_another_ca_or_for_another_name_is_not_accepted() {
    let (ca, other) = (RogueCa::new("one").unwrap(), RogueCa::new("two").unwrap());
    let leaf = ca.subordinate("a leaf that issues", false).unwrap();
    let elsewhere = Certificate { names: vec!["192.0.2.1".into()], ..Certificate::default() };
    let expired = Certificate { not_after: (2021, 1, 1), ..Certificate::default() };
    let client = Certificate { server_auth: false, ..Certificate::default() };
    let chained = Certificate { with_issuer: true, ..Certificate::default() };
    let honest = Certificate::default();
    for (issuer, certificate, accepted) in [
        (&ca, &honest, true),
        (&other, &honest, false),
        (&leaf, &chained, false),
        (&ca, &elsewhere, false),
        (&ca, &expired, false),
        (&ca, &client, false),
    ] {
        let gateway = RogueGateway::start(issuer, certificate).unwrap();
        let address = gateway.address().unwrap();
        let server = thread::spawn(move || gateway.accept(SOON).is_ok());
        assert_eq!(RogueAgent::connect(address, ca.pem().as_bytes()).is_ok(), accepted, "{certificate:?}");
        assert_eq!(server.join().unwrap(), accepted, "{certificate:?}");
    }
}

#[test]
fn altered_sealings_are_refused_for_what_was_altered() {
    let identity = Identity::without_tpm().unwrap();
    let (signing, other) = (TenantSigningKey::generate(&mut OsRng), TenantSigningKey::generate(&mut OsRng));
    let subject = Subject::Node(identity.node_id);
    let honest = RogueSealing::new(subject, &signing, &[("a", b"1")]).unwrap();
    let open = |sealing: &RogueSealing| -> anyhow::Result<Vec<u8>> {
        let mut bootstrap = Bootstrap::new(identity.node_id);
        let evidence = fake_evidence(bootstrap.nk());
        let target = super::server::Target {
            node_id: identity.node_id,
            attest_digest: protocol::crypto::sha256(&[b"no quote"]),
            nk_public: *bootstrap.nk().public(),
        };
        for role in [Role::Verifier, Role::Tenant] {
            let challenge = Challenge {
                role,
                purpose: Purpose::Bootstrap,
                nonce: Array([1; 32]),
                selection: super::server::selection(&[(HashAlg::Sha256, 1)]),
                pcr_base: None,
                boot_log: None,
                ima_from: 0,
                credential: None,
            };
            bootstrap.quoted(&challenge, &evidence);
        }
        bootstrap.take(&sealing.share_u(&target)?)?;
        bootstrap.take(&sealing.share_v(&target)?)?;
        let opened = bootstrap.open()?;
        let (manifest, keys) = opened.keys(&sealing.signed_manifest()?, &[signing.public()])?;
        opened.decrypt(&keys, &manifest, &sealing.ciphertext)
    };
    assert!(open(&honest).is_ok());
    let changed = |change: &dyn Fn(&mut RogueSealing)| {
        let mut sealing = honest.clone();
        change(&mut sealing);
        open(&sealing).map_err(|error| format!("{error:#}"))
    };
    assert!(changed(&|sealing| sealing.flip_ciphertext(0).unwrap()).is_err());
    let altered = changed(&|sealing| sealing.alter_manifest(|manifest| manifest.version = 2).unwrap());
    assert!(altered.unwrap_err().contains("announced"));
    let files: [(&str, &[u8]); 1] = [("a", b"2")];
    assert!(changed(&|sealing| sealing.reencrypt(&files, Resealed::ManifestKept).unwrap()).is_err());
    let unsigned = changed(&|sealing| sealing.reencrypt(&files, Resealed::SignatureKept).unwrap());
    assert!(unsigned.unwrap_err().contains("signed"));
    let by_other = changed(&|sealing| sealing.reencrypt(&files, Resealed::SignedBy(&other)).unwrap());
    assert!(by_other.unwrap_err().contains("signed"));
    assert!(changed(&|sealing| sealing.reencrypt(&files, Resealed::SignedBy(&signing)).unwrap()).is_ok());
}

/// The whole honest bootstrap with a real TPM at each end's service.
fn bootstrap_on(tpm: RogueTpm, ek: EkTemplate, ak: AkKind) {
    let (ca, gateway) = gateway();
    let address = gateway.address().unwrap();
    let identity = tpm.identity(ek, &KeySpec::ak(ak)).unwrap();
    assert_eq!(identity.ek_chain.len(), 1, "{ek:?}");
    let signing = TenantSigningKey::generate(&mut OsRng);
    let sealing = RogueSealing::new(Subject::Node(identity.node_id), &signing, &[("a", b"1")]).unwrap();
    let pins = [signing.public()];
    let server = thread::spawn(move || {
        let mut session = gateway.accept(SOON).unwrap();
        session.wait_bound(SOON).unwrap();
        session.deliver(&sealing).unwrap();
        assert!(session.wait_confirm(SOON).unwrap().is_right);
        assert_eq!(session.record.activations.len(), 1);
    });
    let mut agent = RogueAgent::connect(address, ca.pem().as_bytes()).unwrap();
    let opened = agent.bootstrap(&tpm, &identity, None, SOON).unwrap();
    let signed = agent.manifest(opened.sealing_id).unwrap();
    let (manifest, keys) = opened.keys(&signed, &pins).unwrap();
    let ciphertext = agent.ciphertext(opened.sealing_id).unwrap();
    opened.decrypt(&keys, &manifest, &ciphertext).unwrap();
    agent.confirm(&opened.confirmation(&keys)).unwrap();
    server.join().unwrap();
}

#[test]
fn a_bootstrap_with_each_endorsement_key_delivers() {
    need!(Tool::Swtpm, Tool::Tpm2Tools, Tool::Openssl);
    let tpm = Swtpm::start(EkKind::P384AndRsa).unwrap();
    bootstrap_on(RogueTpm::of(&tpm), EkTemplate::P384, AkKind::P256);
    bootstrap_on(RogueTpm::of(&tpm), EkTemplate::Rsa2048, AkKind::Rsa2048);
    bootstrap_on(RogueTpm::of(&tpm), EkTemplate::Rsa2048, AkKind::P384);
    let tpm = Swtpm::start_with(EkKind::P256, tpm.ca()).unwrap();
    bootstrap_on(RogueTpm::of(&tpm), EkTemplate::P256, AkKind::P256);
}

fn a_challenge(purpose: Purpose) -> Challenge {
    Challenge {
        role: Role::Verifier,
        purpose,
        nonce: Array([5; 32]),
        selection: super::server::selection(&[(HashAlg::Sha256, 0xff)]),
        pcr_base: None,
        boot_log: None,
        ima_from: 0,
        credential: None,
    }
}

#[test]
fn each_hack_changes_what_it_names() {
    need!(Tool::Swtpm, Tool::Tpm2Tools);
    let swtpm = Swtpm::start(EkKind::NoCertificate).unwrap();
    let tpm = RogueTpm::of(&swtpm);
    let (ca, gateway) = gateway();
    let address = gateway.address().unwrap();
    let server = thread::spawn(move || gateway.accept(SOON).unwrap());
    let agent = RogueAgent::connect(address, ca.pem().as_bytes()).unwrap();
    let _session = server.join().unwrap();
    let identity = tpm.identity(EkTemplate::P256, &KeySpec::ak(AkKind::P256)).unwrap();
    assert!(identity.ek_chain.is_empty());
    let nk = Nk::from_seeds(&[1; 32], &[2; 32]);
    let challenge = a_challenge(Purpose::Bootstrap);
    let evidence = |hacks| agent.evidence(&tpm, &identity, &challenge, &nk, hacks).unwrap();
    let attest = |evidence: &Evidence| protocol::tpm::attest::TpmsAttest::decode(&evidence.attested).unwrap();

    let honest = evidence(EvidenceHacks::default());
    assert_eq!(honest.pcrs.len(), 8);
    assert!(TpmtSignature::decode(&honest.signature).is_ok());
    let quoted = attest(&honest);
    let of = |hacks| attest(&evidence(hacks));
    assert_eq!(of(EvidenceHacks::default()).extra_data, quoted.extra_data);
    for hacks in [
        EvidenceHacks { nonce: Some([6; 32]), ..Default::default() },
        EvidenceHacks { purpose: Some(Purpose::Attest), ..Default::default() },
        EvidenceHacks { node_id: Some(protocol::id::NodeId([0; 32])), ..Default::default() },
        EvidenceHacks { server_certificate: Some([0; 32]), ..Default::default() },
        EvidenceHacks { qualifying_data: Some([0; 32]), ..Default::default() },
    ] {
        let hacked = of(hacks);
        assert_ne!(hacked.extra_data, quoted.extra_data);
        assert_eq!(hacked.qualified_signer, quoted.qualified_signer);
    }
    let sha1 = PcrSelectionList::single(HashAlg::Sha1, 0b111).unwrap();
    let other_bank = of(EvidenceHacks { selection: Some(sha1.clone()), ..Default::default() });
    assert!(other_bank.pcr_select.same_as(&sha1));
    let swapped = evidence(EvidenceHacks { sent_nk: Some([4; 65]), ..Default::default() });
    assert_eq!((swapped.nk_public, &attest(&swapped).extra_data), (Some(Array([4; 65])), &quoted.extra_data));
    let owner = KeySpec::ak(AkKind::P256).in_hierarchy(TPM_RH_OWNER);
    let by_owner = of(EvidenceHacks { signer: Some(owner), ..Default::default() });
    assert_ne!(by_owner.qualified_signer, quoted.qualified_signer);
    let flipped = evidence(EvidenceHacks { flip_signature: true, ..Default::default() });
    assert_eq!(flipped.signature.len(), honest.signature.len());
    let unrestricted = KeySpec::ak(AkKind::P256).without(ObjectAttributes::RESTRICTED);
    let forged = of(EvidenceHacks {
        signer: Some(unrestricted),
        forge: Some(Box::new(|attest| attest.clock_info.reset_count = 1234)),
        ..Default::default()
    });
    assert_eq!(forged.clock_info.reset_count, 1234);
    let edited =
        evidence(EvidenceHacks { edit: Some(Box::new(|evidence| evidence.pcrs.clear())), ..Default::default() });
    assert!(edited.pcrs.is_empty());
    let elsewhere = Swtpm::start(EkKind::NoCertificate).unwrap();
    let elsewhere = RogueTpm::of(&elsewhere);
    let other_tpm = of(EvidenceHacks { tpm: Some(&elsewhere), ..Default::default() });
    assert_ne!(other_tpm.qualified_signer, quoted.qualified_signer);
}

#[test]
fn the_tpm_makes_keys_of_any_template_and_signs_only_what_it_may() {
    need!(Tool::Swtpm, Tool::Tpm2Tools);
    let swtpm = Swtpm::start(EkKind::NoCertificate).unwrap();
    let mut batch = RogueTpm::of(&swtpm).open().unwrap();
    let honest = batch.create(&KeySpec::ak(AkKind::P256)).unwrap();
    assert_eq!(check_ak(&honest.public), Ok(AkKind::P256));
    assert!(batch.sign(&honest, b"forged").is_err(), "a restricted key signs no foreign digest");
    assert!(batch.hash_and_sign(&honest, b"text").is_ok());
    assert!(batch.hash_and_sign(&honest, b"\xff\x54\x43\x47 looks like a quote").is_err());
    batch.flush(honest.handle).unwrap();

    let loose = KeySpec::ak(AkKind::P256).without(ObjectAttributes::RESTRICTED);
    for spec in [
        loose.clone(),
        KeySpec::ak(AkKind::P256).without(ObjectAttributes::FIXED_TPM | ObjectAttributes::FIXED_PARENT),
        KeySpec::ak(AkKind::P256).without(ObjectAttributes::NO_DA),
    ] {
        let key = batch.create(&spec).unwrap();
        assert!(check_ak(&key.public).is_err(), "{spec:?}");
        batch.flush(key.handle).unwrap();
    }
    let key = batch.create(&loose).unwrap();
    let signature = batch.sign(&key, b"\xff\x54\x43\x47 looks like a quote").unwrap();
    assert!(TpmtSignature::decode(&signature).is_ok());
    batch.flush(key.handle).unwrap();
    let default_unique = batch.create(&KeySpec::ak(AkKind::P256).unique(&[]).unwrap()).unwrap();
    assert_ne!(default_unique.name, honest.name);
    batch.flush(default_unique.handle).unwrap();

    let selection = PcrSelectionList::single(HashAlg::Sha256, 0x00ff_ffff).unwrap();
    let before = batch.pcr_read(&selection).unwrap();
    assert_eq!(before.len(), 24);
    batch.pcr_event(13, b"event").unwrap();
    batch.pcr_extend(14, HashAlg::Sha256, &HashAlg::Sha256.digest(&[b"x"])).unwrap();
    let after = batch.pcr_read(&selection).unwrap();
    let changed: Vec<u8> =
        (0..24).filter(|index| before.get(HashAlg::Sha256, *index) != after.get(HashAlg::Sha256, *index)).collect();
    assert_eq!(changed, [13, 14]);
    let ak = batch.create(&KeySpec::ak(AkKind::Rsa2048)).unwrap();
    let quote = batch.quote(&ak, b"anything", &selection).unwrap();
    let attest = protocol::tpm::attest::TpmsAttest::decode(&quote.attested).unwrap();
    assert_eq!(attest.extra_data, b"anything");
    assert_eq!(digest_over(&selection, &after, HashAlg::Sha256), Ok(attest.pcr_digest));
    // Left behind on purpose: the next client flushes it.
    drop(batch);
    assert!(RogueTpm::of(&swtpm).open().is_ok());
}

#[test]
fn a_peer_can_be_moved_to_a_thread() {
    fn assert_send<T: Send>() {}
    assert_send::<Peer>();
    assert_send::<RogueAgent>();
    assert_send::<super::server::RogueSession>();
}
