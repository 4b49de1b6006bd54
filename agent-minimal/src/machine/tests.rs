//! The machine against a control plane's end that is played here, in memory and on a simulated clock.

extern crate std;

use std::{format, vec};

use proptest::prelude::*;
use protocol::{
    bytes::Bytes,
    coap::{block::slice_for, frame::Message},
    crypto::{
        bind,
        container::{File, write_container},
        manifest::TenantSigningKey,
        role_key::{RolePrivateKey, TenantHolding, open_v_at_rest},
        seal::{SealKeys, SealOptions, Sealing, seal},
        share::{self, SealedShare},
    },
    id::Subject,
    message::{
        attest::{BankSelection, Evidence, PcrValue, Purpose, values_base},
        enrol::{Activate, Enrol, EnrolAnswer, Hello, HelloAnswer},
        provision::{Confirm, Share, SignedManifest},
    },
};
use rand_core::OsRng;
use sha2::{Digest as _, Sha256};

use super::*;

const NODE: NodeId = NodeId([0x11; 32]);
const CERTIFICATE: [u8; 32] = [0x22; 32];
const ATTESTED: &[u8] = b"what the TPM signed";

fn facts(signing: &TenantSigningKey) -> Facts {
    Facts {
        node_id: NODE,
        ek_public: vec![1; 10],
        ek_chain: vec![vec![2; 20]],
        ak_public: vec![3; 10],
        ak_name: [4; 34],
        server_certificate: CERTIFICATE,
        join: None,
        tenant_keys: vec![signing.public()],
        autorun: false,
        wants: Wants::Payload,
        has_boot_log: false,
        has_ima_log: false,
        unconfirmed: None,
    }
}

/// The control plane's end of the connection.
struct Peer<'f> {
    machine: Machine<'f>,
    exchange: Exchange<Role>,
    now_ms: u64,
    requests: Vec<(Token, Route, Vec<u8>, Option<Block>)>,
    answers: Vec<(Role, Code, Vec<u8>)>,
    outputs: Vec<Output>,
}

impl<'f> Peer<'f> {
    fn new(facts: &'f Facts) -> Self {
        let machine = Machine::new(facts, 0).unwrap();
        let exchange = Exchange::new(limits::MAX_MESSAGE_LEN);
        let mut peer =
            Self { machine, exchange, now_ms: 0, requests: Vec::new(), answers: Vec::new(), outputs: Vec::new() };
        peer.pump();
        peer
    }

    /// A node that is known, with its NK made.
    fn known(facts: &'f Facts) -> Self {
        let mut peer = Self::new(facts);
        peer.answer_hello(HelloAnswer::Known);
        if facts.wants == Wants::Payload {
            peer.input(Input::Nk(Nk::from_seeds(&[7; 32], &[8; 32])));
        }
        peer.outputs.clear();
        peer
    }

    /// Moves bytes both ways until both ends are silent.
    fn pump(&mut self) {
        loop {
            let up = self.machine.outgoing().to_vec();
            self.machine.sent(up.len());
            let down = self.exchange.take_outgoing();
            while let Some(output) = self.machine.poll_output(self.now_ms) {
                if !matches!(output, Output::Note(_)) {
                    self.outputs.push(output);
                }
            }
            if up.is_empty() && down.is_empty() {
                return;
            }
            self.machine.handle_input(self.now_ms, Some(1_000), Input::Bytes(&down)).unwrap();
            let mut rest = up.as_slice();
            loop {
                let used = self.exchange.feed(rest);
                rest = &rest[used..];
                while let Some(event) = self.exchange.next_event(self.now_ms).unwrap() {
                    match event {
                        Event::Request { token, message } => {
                            let route = route_of(&message);
                            let block = message.options.block2().unwrap();
                            self.requests.push((token, route, message.payload.to_vec(), block));
                        }
                        Event::Response { context, message } => {
                            self.answers.push((context, message.code, message.payload.to_vec()));
                        }
                        _ => {}
                    }
                }
                if rest.is_empty() {
                    break;
                }
            }
        }
    }

    fn input(&mut self, input: Input<'_>) {
        self.machine.handle_input(self.now_ms, Some(1_000), input).unwrap();
        self.pump();
    }

    fn request(&mut self) -> (Token, Route, Vec<u8>, Option<Block>) {
        assert!(!self.requests.is_empty(), "the agent asks for nothing; it wants {:?}", self.outputs);
        self.requests.remove(0)
    }

    fn respond<T: serde::Serialize>(&mut self, token: Token, body: &T) {
        let payload = message::to_vec(body).unwrap();
        self.exchange.respond(token, &OutMessage::new(Code::CONTENT).payload(&payload)).unwrap();
        self.pump();
    }

    fn answer_hello(&mut self, answer: HelloAnswer) -> Hello {
        let (token, route, body, _) = self.request();
        assert_eq!(route, Route::Hello);
        self.respond(token, &answer);
        message::decode(&body).unwrap()
    }

    fn post<T: serde::Serialize>(&mut self, role: Role, route: Route, body: &T) {
        let payload = message::to_vec(body).unwrap();
        let (_, path, _) = route.to_parts();
        let mut message = OutMessage::new(Code::POST).payload(&payload);
        for segment in &path {
            message = message.segment(segment);
        }
        self.exchange.request(&message, role, self.now_ms + 1_000).unwrap();
        self.pump();
    }

    fn challenge(&mut self, role: Role, purpose: Purpose) {
        self.post(role, Route::Challenge, &challenge(role, purpose));
    }

    /// Both roles' bootstrap challenges, and the one quote that answers them.
    fn bootstrap_quote(&mut self) -> [Evidence; 2] {
        self.challenge(Role::Verifier, Purpose::Bootstrap);
        self.challenge(Role::Tenant, Purpose::Bootstrap);
        let order = self.quote_order();
        assert!(self.outputs.is_empty(), "more than one quote: {:?}", self.outputs);
        self.input(Input::Quoted(Box::new(quoted(&order, 1))));
        let [(_, Code::CONTENT, first), (_, Code::CONTENT, second)] = &self.answers[..] else {
            panic!("not two answers: {:?}", self.answers)
        };
        let both = [message::decode(first).unwrap(), message::decode(second).unwrap()];
        self.answers.clear();
        both
    }

    fn quote_order(&mut self) -> QuoteOrder {
        match self.outputs.pop() {
            Some(Output::Quote(order)) => order,
            other => panic!("no quote is wanted but {other:?}"),
        }
    }

    fn send_share(&mut self, share: &Share) -> Code {
        self.post(share.role, Route::Share, share);
        let (_, code, _) = self.answers.pop().unwrap();
        code
    }

    fn nk_public(&self) -> [u8; 65] {
        *Nk::from_seeds(&[7; 32], &[8; 32]).public()
    }
}

fn route_of(message: &Message<'_>) -> Route {
    use protocol::coap::CoapOption::{UriPath, UriQuery};
    Route::parse(message.code.to_byte(), message.options.all(UriPath), message.options.all(UriQuery)).unwrap()
}

fn challenge(role: Role, purpose: Purpose) -> Challenge {
    Challenge {
        role,
        purpose,
        nonce: Array([role as u8; 32]),
        selection: heapless::Vec::from_slice(&[BankSelection { bank: 0xb, mask: 0x80 }]).unwrap(),
        pcr_base: None,
        boot_log: None,
        ima_from: 0,
        credential: None,
    }
}

fn quoted(order: &QuoteOrder, value: u8) -> Quoted {
    let pcr = |index, byte| PcrValue { bank: 0xb, index, digest: Bytes::new(&[byte; 32]).unwrap() };
    Quoted {
        attested: ATTESTED.to_vec(),
        signature: vec![9; 72],
        pcrs: heapless::Vec::from_slice(&[pcr(7, value), pcr(13, 13)]).unwrap(),
        boot_log: None,
        ima: order.ima_from.iter().map(|_| None).collect(),
        credential_secret: None,
    }
}

/// A sealing whose shares the test can release.
struct Sealed {
    sealing: Sealing,
    chunks: Vec<u8>,
    holding: TenantHolding,
    v: protocol::crypto::secret::ShareV,
}

fn sealed(signing: &TenantSigningKey, subject: Subject) -> Sealed {
    let (tenant, verifier) = (RolePrivateKey::generate(&mut OsRng), RolePrivateKey::generate(&mut OsRng));
    let plaintext = write_container(&[File { path: "a", executable: false, bytes: &[5; 100_000] }]).unwrap();
    let options = SealOptions { subject, payload_id: [1; 16], version: 1, autorun: true, not_after: None };
    let keys = SealKeys { signing, tenant: &tenant.public(), verifier: &verifier.public() };
    let mut chunks = Vec::new();
    let sealing = seal(&options, &plaintext, &keys, &mut OsRng, |chunk| {
        chunks.extend_from_slice(chunk);
        Ok::<_, core::convert::Infallible>(())
    })
    .unwrap();
    let holding = TenantHolding::open(&tenant, subject, sealing.sealing_id, &sealing.u_sealed).unwrap();
    let v = open_v_at_rest(&verifier, subject, sealing.sealing_id, &sealing.v_sealed).unwrap();
    Sealed { sealing, chunks, holding, v }
}

impl Sealed {
    fn share(&self, role: Role, nk_public: &[u8; 65]) -> Share {
        let release = share::Release {
            node_id: NODE,
            sealing_id: self.sealing.sealing_id,
            attest_digest: Sha256::digest(ATTESTED).into(),
        };
        let sealed: SealedShare = match role {
            Role::Verifier => share::seal_v(&release, nk_public, &self.v, &mut OsRng).unwrap(),
            _ => {
                share::seal_u(&release, nk_public, &self.holding.u, &self.holding.manifest_digest, &mut OsRng).unwrap()
            }
        };
        Share {
            role,
            sealing_id: self.sealing.sealing_id,
            enc: Array(sealed.enc),
            ciphertext: Bytes::new(&sealed.ciphertext).unwrap(),
        }
    }

    fn manifest(&self) -> SignedManifest {
        SignedManifest {
            manifest: Bytes::new(&self.sealing.manifest).unwrap(),
            signature: Array(self.sealing.signature),
        }
    }
}

#[test]
fn an_unknown_node_enrols_and_proves_the_credential() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let mut peer = Peer::new(&facts);
    let hello = peer.answer_hello(HelloAnswer::Enrol);
    assert_eq!((hello.node_id, hello.ak_name), (NODE, Array([4; 34])));
    let (token, route, body, _) = peer.request();
    assert_eq!(route, Route::Enrol);
    let enrol: Enrol = message::decode(&body).unwrap();
    assert_eq!(&enrol.ek_public[..], &facts.ek_public[..]);
    let enrolment_id = protocol::id::EnrolmentId([6; 16]);
    let credential = Credential { id_object: Bytes::new(&[1]).unwrap(), encrypted_secret: Bytes::new(&[2]).unwrap() };
    peer.respond(token, &EnrolAnswer { enrolment_id, credential: credential.clone() });
    assert!(peer.outputs.iter().any(|output| matches!(output, Output::Activate(wanted) if *wanted == credential)));
    let secret = || CredentialSecret::from_slice(&[9; 32]).unwrap();
    peer.input(Input::Activated(secret()));
    let (token, route, body, _) = peer.request();
    assert_eq!(route, Route::Activate);
    let activate: Activate = message::decode(&body).unwrap();
    bind::verify_activate_proof(&secret(), enrolment_id, NODE, &CERTIFICATE, &facts.ak_name, &activate.proof.0)
        .unwrap();
    assert!(!peer.machine.is_bound());
    peer.exchange.respond(token, &OutMessage::new(Code::CHANGED)).unwrap();
    peer.pump();
    assert!(peer.machine.is_bound());
}

#[test]
fn two_challenges_are_answered_by_one_quote_bound_to_both_nonces_and_nk() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let mut peer = Peer::known(&facts);
    peer.challenge(Role::Tenant, Purpose::Bootstrap);
    assert!(peer.outputs.is_empty(), "the other role's challenge is waited for");
    peer.challenge(Role::Verifier, Purpose::Bootstrap);
    let order = peer.quote_order();
    let nonces = [(Role::Verifier, [2; 32]), (Role::Tenant, [3; 32])];
    let expected = bind::qualifying_data(1, NODE, Some(&peer.nk_public()), &CERTIFICATE, &nonces).unwrap();
    assert_eq!(order.qualifying_data, expected);
    peer.input(Input::Quoted(Box::new(quoted(&order, 1))));
    for (role, code, body) in &peer.answers {
        assert_eq!(*code, Code::CONTENT);
        let evidence: Evidence = message::decode(body).unwrap();
        let other = if *role == Role::Verifier { [3; 32] } else { [2; 32] };
        assert_eq!(evidence.other_nonce, Some(Array(other)));
    }
    assert_eq!(peer.answers.len(), 2);
}

#[test]
fn one_challenge_alone_is_answered_when_the_gathering_ends() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let mut peer = Peer::known(&facts);
    peer.challenge(Role::Tenant, Purpose::Bootstrap);
    assert!(peer.outputs.is_empty());
    peer.now_ms = peer.machine.poll_timeout().unwrap();
    peer.input(Input::Tick);
    assert_eq!(peer.quote_order().ima_from.len(), 1);
}

#[test]
fn evidence_carries_only_the_values_that_differ_from_the_named_base() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = Facts { wants: Wants::Attest, ..facts(&signing) };
    let mut peer = Peer::known(&facts);
    peer.challenge(Role::Verifier, Purpose::Attest);
    let order = peer.quote_order();
    peer.input(Input::Quoted(Box::new(quoted(&order, 1))));
    let (_, _, body) = peer.answers.pop().unwrap();
    let first: Evidence = message::decode(&body).unwrap();
    assert!(!first.pcrs_from_base);
    let base = values_base(first.pcrs.iter().map(|value| (value.bank, value.index, &value.digest[..])));

    let second = Challenge { pcr_base: Some(base), ..challenge(Role::Verifier, Purpose::Attest) };
    peer.post(Role::Verifier, Route::Challenge, &second);
    let order = peer.quote_order();
    peer.input(Input::Quoted(Box::new(quoted(&order, 99))));
    let (_, _, body) = peer.answers.pop().unwrap();
    let evidence: Evidence = message::decode(&body).unwrap();
    assert!(evidence.pcrs_from_base);
    assert_eq!(evidence.pcrs.iter().map(|value| value.index).collect::<Vec<_>>(), [7]);

    // A base that this end does not hold is not built upon.
    let third = Challenge { pcr_base: Some(Array([0; 8])), ..challenge(Role::Verifier, Purpose::Attest) };
    peer.post(Role::Verifier, Route::Challenge, &third);
    let order = peer.quote_order();
    peer.input(Input::Quoted(Box::new(quoted(&order, 99))));
    let (_, _, body) = peer.answers.pop().unwrap();
    let evidence: Evidence = message::decode(&body).unwrap();
    assert!(!evidence.pcrs_from_base && evidence.pcrs.len() == 2);
}

#[test]
fn challenges_that_make_no_sense_are_refused_and_the_connection_goes_on() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = Facts { wants: Wants::Attest, ..facts(&signing) };
    let mut peer = Peer::known(&facts);
    peer.challenge(Role::Verifier, Purpose::Bootstrap);
    peer.challenge(Role::Registrar, Purpose::Attest);
    let empty = Challenge { selection: heapless::Vec::new(), ..challenge(Role::Verifier, Purpose::Attest) };
    peer.post(Role::Verifier, Route::Challenge, &empty);
    let codes: Vec<_> = peer.answers.iter().map(|(_, code, _)| *code).collect();
    assert_eq!(codes, [Code::CONFLICT, Code::BAD_REQUEST, Code::BAD_REQUEST]);
    peer.challenge(Role::Verifier, Purpose::Attest);
    peer.quote_order();
}

#[test]
fn both_shares_lead_to_a_placed_and_confirmed_payload() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let sealed = sealed(&signing, Subject::Node(NODE));
    let mut peer = Peer::known(&facts);
    peer.bootstrap_quote();
    // Junk first: it consumes nothing.
    let nk_public = peer.nk_public();
    let mut junk = sealed.share(Role::Tenant, &nk_public);
    junk.enc = Array([4; 65]);
    assert_eq!(peer.send_share(&junk), Code::UNPROCESSABLE_ENTITY);
    assert_eq!(peer.send_share(&sealed.share(Role::Tenant, &nk_public)), Code::CHANGED);
    assert!(peer.requests.is_empty(), "one share alone asks for nothing");
    assert_eq!(peer.send_share(&sealed.share(Role::Verifier, &nk_public)), Code::CHANGED);
    let (token, route, ..) = peer.request();
    assert_eq!(route, Route::Manifest(sealed.sealing.sealing_id));
    peer.respond(token, &sealed.manifest());
    let mut plaintext = Vec::new();
    let mut place = None;
    while place.is_none() {
        for output in core::mem::take(&mut peer.outputs) {
            match output {
                Output::Payload(PayloadWork::Write(bytes)) => plaintext.extend_from_slice(&bytes),
                Output::Payload(PayloadWork::Place(unconfirmed)) => place = Some(unconfirmed),
                Output::Payload(PayloadWork::Begin { sealing_id, .. }) => {
                    assert_eq!(sealing_id, sealed.sealing.sealing_id);
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
        if place.is_none() {
            let (token, route, _, block) = peer.request();
            assert_eq!(route, Route::Payload(sealed.sealing.sealing_id));
            let room = peer.exchange.block_room().at_most(limits::MAX_BLOCK_PAYLOAD);
            let slice = slice_for(block, sealed.chunks.len(), room).unwrap();
            peer.exchange.respond(token, &slice.response(slice.of(&sealed.chunks))).unwrap();
            peer.pump();
        }
    }
    assert!(plaintext.windows(100).any(|window| window == [5; 100]));
    assert!(peer.outputs.is_empty() && peer.requests.is_empty(), "what was written is not yet in place");
    peer.input(Input::Placed);
    assert!(matches!(peer.outputs.pop(), Some(Output::Payload(PayloadWork::ExtendDelivered))));
    assert!(peer.requests.is_empty(), "nothing is confirmed before the phase is extended");
    peer.input(Input::DeliveredExtended);
    let (token, route, body, _) = peer.request();
    assert_eq!(route, Route::Confirm);
    let confirm: Confirm = message::decode(&body).unwrap();
    let nk_digest: [u8; 32] = Sha256::digest(nk_public).into();
    bind::verify_confirm_mac(
        &sealed.holding.confirm_key,
        NODE,
        confirm.sealing_id,
        &nk_digest,
        &[3; 32],
        &confirm.proof.0,
    )
    .unwrap();
    assert_eq!(place.unwrap().proof, confirm.proof.0);
    peer.exchange.respond(token, &OutMessage::new(Code::CHANGED)).unwrap();
    peer.pump();
    assert!(matches!(peer.outputs[..], [Output::Confirmed(_), Output::Autorun]));
}

/// What the agent says of a manifest that it was sent for these shares.
fn report_on(facts: &Facts, sealed: &Sealed, manifest: &SignedManifest) -> Report {
    let mut peer = Peer::known(facts);
    peer.bootstrap_quote();
    let nk_public = peer.nk_public();
    assert_eq!(peer.send_share(&sealed.share(Role::Tenant, &nk_public)), Code::CHANGED);
    assert_eq!(peer.send_share(&sealed.share(Role::Verifier, &nk_public)), Code::CHANGED);
    let (token, ..) = peer.request();
    peer.respond(token, manifest);
    let (_, route, body, _) = peer.request();
    assert_eq!(route, Route::Report);
    assert!(!peer.outputs.iter().any(|output| matches!(output, Output::Payload(PayloadWork::Write(_)))));
    message::decode(&body).unwrap()
}

#[test]
fn a_manifest_that_is_not_the_tenants_for_this_node_is_refused() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let good = facts(&signing);
    let ours = sealed(&signing, Subject::Node(NODE));
    let mut altered = ours.manifest();
    altered.signature.0[0] ^= 1;
    assert_eq!(report_on(&good, &ours, &altered).kind, ReportKind::ManifestRefused);
    let another = sealed(&signing, Subject::Node(NODE)).manifest();
    assert_eq!(report_on(&good, &ours, &another).kind, ReportKind::ManifestRefused);
    let stranger = facts(&TenantSigningKey::generate(&mut OsRng));
    assert_eq!(report_on(&stranger, &ours, &ours.manifest()).kind, ReportKind::ManifestRefused);
    let none = Facts { tenant_keys: Vec::new(), ..facts(&signing) };
    assert_eq!(report_on(&none, &ours, &ours.manifest()).kind, ReportKind::ManifestRefused);
    let elsewhere = sealed(&signing, Subject::Node(NodeId([0x99; 32])));
    let report = report_on(&good, &elsewhere, &elsewhere.manifest());
    assert_eq!(&report.text[..], b"the manifest is for another node");
}

#[test]
fn shares_of_two_sealings_are_reported_and_the_right_ones_still_count() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let (first, second) = (sealed(&signing, Subject::Node(NODE)), sealed(&signing, Subject::Node(NODE)));
    let mut peer = Peer::known(&facts);
    peer.bootstrap_quote();
    let nk_public = peer.nk_public();
    assert_eq!(peer.send_share(&first.share(Role::Tenant, &nk_public)), Code::CHANGED);
    assert_eq!(peer.send_share(&second.share(Role::Verifier, &nk_public)), Code::CHANGED);
    let (_, route, body, _) = peer.request();
    let report: Report = message::decode(&body).unwrap();
    assert_eq!((route, report.kind), (Route::Report, ReportKind::ShareRefused));
    assert_eq!(peer.send_share(&first.share(Role::Verifier, &nk_public)), Code::CHANGED);
    assert_eq!(peer.request().1, Route::Manifest(first.sealing.sealing_id));
}

#[test]
fn a_tag_that_does_not_fit_ends_nk_and_asks_for_a_new_one() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let (mut ours, other) = (sealed(&signing, Subject::Node(NODE)), sealed(&signing, Subject::Node(NODE)));
    ours.v = other.v; // a verifier that lies: a well-formed V of another K_b
    let mut peer = Peer::known(&facts);
    peer.bootstrap_quote();
    let nk_public = peer.nk_public();
    peer.send_share(&ours.share(Role::Tenant, &nk_public));
    peer.send_share(&ours.share(Role::Verifier, &nk_public));
    let (token, ..) = peer.request();
    peer.respond(token, &ours.manifest());
    let (_, _, body, _) = peer.request();
    let report: Report = message::decode(&body).unwrap();
    assert_eq!(report.kind, ReportKind::TagMismatch);
    assert!(matches!(peer.outputs.pop(), Some(Output::Seed)));
    assert_eq!(peer.send_share(&ours.share(Role::Tenant, &nk_public)), Code::CONFLICT);
    peer.input(Input::Nk(Nk::from_seeds(&[1; 32], &[2; 32])));
    peer.challenge(Role::Verifier, Purpose::Bootstrap);
    peer.now_ms += 100;
    peer.input(Input::Tick);
    let order = peer.quote_order();
    peer.input(Input::Quoted(Box::new(quoted(&order, 1))));
    let (_, _, body) = peer.answers.pop().unwrap();
    let evidence: Evidence = message::decode(&body).unwrap();
    assert_ne!(evidence.nk_public, Some(Array(nk_public)));
}

#[test]
fn an_unconfirmed_payload_is_confirmed_after_the_first_answered_challenge() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let unconfirmed = Unconfirmed { sealing_id: SealingId([5; 16]), proof: [6; 32], autorun: false };
    let facts = Facts { wants: Wants::Attest, unconfirmed: Some(unconfirmed), ..facts(&signing) };
    let mut peer = Peer::new(&facts);
    peer.answer_hello(HelloAnswer::Known);
    assert!(peer.requests.is_empty());
    peer.challenge(Role::Verifier, Purpose::Attest);
    let order = peer.quote_order();
    peer.input(Input::Quoted(Box::new(quoted(&order, 1))));
    let (token, route, body, _) = peer.request();
    let confirm: Confirm = message::decode(&body).unwrap();
    assert_eq!((route, confirm.sealing_id, confirm.proof.0), (Route::Confirm, SealingId([5; 16]), [6; 32]));
    peer.outputs.clear();
    peer.exchange.respond(token, &OutMessage::new(Code::CHANGED)).unwrap();
    peer.pump();
    assert!(matches!(peer.outputs[..], [Output::Confirmed(_)]), "autorun was not asked for: {:?}", peer.outputs);
}

#[test]
fn a_tpm_that_does_not_quote_is_said_and_the_connection_goes_on() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = Facts { wants: Wants::Attest, ..facts(&signing) };
    let mut peer = Peer::known(&facts);
    peer.challenge(Role::Verifier, Purpose::Attest);
    peer.quote_order();
    peer.input(Input::QuoteFailed("it is locked out"));
    assert!(matches!(&peer.answers[..], [(_, Code::SERVICE_UNAVAILABLE, _)]));
    peer.answers.clear();
    peer.challenge(Role::Verifier, Purpose::Attest);
    peer.quote_order();
}

#[test]
fn after_garbage_the_machine_is_closed_and_stays_closed() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let mut machine = Machine::new(&facts, 0).unwrap();
    assert!(machine.handle_input(0, None, Input::Bytes(&[0xff; 64])).is_err());
    assert!(!machine.outgoing().is_empty(), "an Abort says why");
    assert_eq!(machine.handle_input(0, None, Input::Tick), Err(Error::Closed));
}

#[test]
fn inputs_out_of_order_close_the_machine() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let mut machine = Machine::new(&facts, 0).unwrap();
    let secret = CredentialSecret::from_slice(&[9; 32]).unwrap();
    let error = machine.handle_input(0, None, Input::Activated(secret)).unwrap_err();
    assert_eq!(error, Error::OutOfOrder { state: "AwaitHello" });
}

#[test]
fn well_known_core_tells_what_the_agent_answers() {
    let signing = TenantSigningKey::generate(&mut OsRng);
    let facts = facts(&signing);
    let mut peer = Peer::known(&facts);
    let message = OutMessage::new(Code::GET).path(".well-known/core");
    peer.exchange.request(&message, Role::Tenant, 1_000).unwrap();
    peer.pump();
    let (_, code, body) = peer.answers.pop().unwrap();
    let text = String::from_utf8(body).unwrap();
    assert_eq!(code, Code::CONTENT);
    assert!(text.contains("</v1/challenge>") && !text.contains("hello"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a peer sends, and in whatever pieces, the machine ends or goes on; it does not panic or grow.
    #[test]
    fn any_bytes_are_survived(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..32), csm: bool) {
        let signing = TenantSigningKey::generate(&mut OsRng);
        let facts = facts(&signing);
        let mut machine = Machine::new(&facts, 0).unwrap();
        if csm {
            let opening = Exchange::<()>::new(limits::MAX_MESSAGE_LEN).take_outgoing();
            machine.handle_input(0, None, Input::Bytes(&opening)).unwrap();
        }
        for piece in pieces {
            let closed = machine.handle_input(0, None, Input::Bytes(&piece)).is_err();
            while machine.poll_output(0).is_some() {}
            if closed {
                prop_assert_eq!(machine.handle_input(0, None, Input::Tick), Err(Error::Closed));
            }
        }
        let size = format!("{machine:?}").len();
        prop_assert!(size < 100_000, "{}", size);
    }
}
