//! The agent's machine, driven by a script of inputs in any order, against a control plane's end that is driven too.

use std::{collections::VecDeque, mem};

use agent_minimal::machine::{Error, Facts, Input, Log, Machine, Output, PayloadWork, QuoteOrder, Quoted, Unconfirmed};
use protocol::{
    bytes::{Array, Bytes},
    coap::{
        CoapOption,
        block::{Block, slice_for},
        exchange::{Event, Exchange},
        frame::{Code, OutMessage, Token},
        route::Route,
    },
    crypto::{bind, join::JoinToken, nk::Nk, secret::CredentialSecret},
    id::{EnrolmentId, Role, SealingId},
    limits,
    message::{
        self,
        attest::{BankSelection, BootLogState, Challenge, ImaPart, PcrValue, Purpose},
        enrol::{Credential, EnrolAnswer, HelloAnswer, Wants},
        provision::{ReportKind, Share, SignedManifest},
    },
};

use crate::{
    coap::check_frames,
    crypto::{ATTESTED, Fixture, NODE, Sealed, fixture},
    script::{Script, XorShift},
};

/// The tenant's nonce of every challenge here.
const TENANT_NONCE: [u8; 32] = [Role::Tenant as u8; 32];

/// Whatever comes in, in whatever order, the machine goes on or is closed for ever; it sends whole frames, asks for no
/// endless work; and what it puts in place is a whole payload that the tenant sealed, with the confirmation that the
/// tenant expects.
///
/// Input: what the node is (one byte), then a script: an operation (one byte) with what it takes.
pub fn agent_machine(data: &[u8]) {
    let _ = play(data);
}

/// How far a script got.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Reached {
    bound: bool,
    quotes: u8,
    placed: bool,
    confirmed: bool,
    autorun: bool,
    closed: bool,
}

fn play(data: &[u8]) -> Reached {
    let mut script = Script::new(data);
    let fixture = fixture();
    let facts = facts(fixture, script.byte());
    let Ok(machine) = Machine::new(&facts, 0) else { panic!("a machine begins") };
    let mut world = World {
        fixture,
        machine,
        peer: Some(Exchange::new(limits::MAX_MESSAGE_LEN)),
        now_ms: 0,
        closed: false,
        requests: VecDeque::new(),
        outputs: VecDeque::new(),
        written: Vec::new(),
        begun: None,
        reached: Reached::default(),
    };
    world.pump();
    for _ in 0..200 {
        if script.is_done() || world.closed {
            break;
        }
        let operation = script.byte();
        world.step(operation, &mut script);
        world.pump();
    }
    if world.closed {
        assert_eq!(world.machine.handle_input(world.now_ms, None, Input::Tick), Err(Error::Closed));
    }
    Reached { bound: world.machine.is_bound(), closed: world.closed, ..world.reached }
}

fn facts(fixture: &Fixture, kind: u8) -> Facts {
    let bit = |bit: u8| kind & (1 << bit) != 0;
    Facts {
        node_id: NODE,
        ek_public: vec![1; 314],
        ek_chain: if bit(0) { vec![vec![2; 900]; 2] } else { Vec::new() },
        ak_public: vec![3; 88],
        ak_name: [4; 34],
        server_certificate: [0x22; 32],
        join: bit(1).then(|| JoinToken::from_slice(&[6; 32]).expect("32 bytes")),
        tenant_keys: if bit(2) { Vec::new() } else { vec![fixture.signing.public()] },
        autorun: bit(3),
        wants: if bit(4) { Wants::Attest } else { Wants::Payload },
        has_boot_log: bit(5),
        has_ima_log: bit(6),
        unconfirmed: bit(7).then_some(Unconfirmed { sealing_id: SealingId([5; 16]), proof: [6; 32], autorun: true }),
    }
}

struct World<'f> {
    fixture: &'static Fixture,
    machine: Machine<'f>,
    /// The control plane's end, until it has had enough.
    peer: Option<Exchange<()>>,
    now_ms: u64,
    closed: bool,
    requests: VecDeque<(Token, Option<Route>, Option<Block>)>,
    outputs: VecDeque<Output>,
    /// Plaintext since the last `Begin`, and of which sealing.
    written: Vec<u8>,
    begun: Option<SealingId>,
    reached: Reached,
}

impl World<'_> {
    fn input(&mut self, input: Input<'_>) {
        if self.machine.handle_input(self.now_ms, Some(1_000), input).is_err() {
            self.closed = true;
        }
    }

    /// Moves bytes both ways until both ends are silent.
    fn pump(&mut self) {
        for round in 0.. {
            assert!(round < 1_000, "no end of it");
            let up = self.machine.outgoing().to_vec();
            self.machine.sent(up.len());
            check_frames(&up);
            self.collect();
            let down = self.peer.as_mut().map(Exchange::take_outgoing).unwrap_or_default();
            if up.is_empty() && down.is_empty() {
                return;
            }
            if !down.is_empty() && !self.closed {
                self.input(Input::Bytes(&down));
            }
            self.receive(&up);
        }
    }

    fn receive(&mut self, mut bytes: &[u8]) {
        let Some(peer) = &mut self.peer else { return };
        loop {
            let used = peer.feed(bytes);
            bytes = &bytes[used..];
            loop {
                match peer.next_event(self.now_ms) {
                    Ok(Some(Event::Request { token, message })) => {
                        let options = |option| message.options.all(option);
                        let (path, query) = (options(CoapOption::UriPath), options(CoapOption::UriQuery));
                        let route = Route::parse(message.code.to_byte(), path, query).ok();
                        self.requests.push_back((token, route, message.options.block2().ok().flatten()));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        self.peer = None;
                        return;
                    }
                }
            }
            if bytes.is_empty() {
                return;
            }
        }
    }

    fn collect(&mut self) {
        for count in 0.. {
            assert!(count < 1_000, "no end of outputs");
            let Some(output) = self.machine.poll_output(self.now_ms) else { break };
            match &output {
                Output::Note(_) => continue,
                Output::Payload(PayloadWork::Begin { sealing_id, plaintext_len }) => {
                    assert!(*plaintext_len <= limits::MAX_PAYLOAD_LEN);
                    self.begun = Some(*sealing_id);
                    self.written.clear();
                }
                Output::Payload(PayloadWork::Write(bytes)) => self.written.extend_from_slice(bytes),
                Output::Payload(PayloadWork::Place(unconfirmed)) => {
                    self.check_placed(unconfirmed);
                    self.reached.placed = true;
                }
                Output::Quote(_) => self.reached.quotes = self.reached.quotes.saturating_add(1),
                Output::Confirmed(_) => self.reached.confirmed = true,
                Output::Autorun => self.reached.autorun = true,
                _ => {}
            }
            self.outputs.push_back(output);
        }
    }

    fn check_placed(&self, unconfirmed: &Unconfirmed) {
        assert_eq!(self.begun, Some(unconfirmed.sealing_id));
        let sealed = [&self.fixture.small, &self.fixture.large]
            .into_iter()
            .find(|sealed| sealed.sealing.sealing_id == unconfirmed.sealing_id)
            .expect("only what the tenant sealed is placed");
        assert!(self.written == sealed.plaintext, "not the payload that was sealed");
        assert_eq!(unconfirmed.autorun, sealed.autorun);
        bind::verify_confirm_mac(
            &sealed.holding.confirm_key,
            NODE,
            unconfirmed.sealing_id,
            &self.fixture.nk.digest(),
            &TENANT_NONCE,
            &unconfirmed.proof,
        )
        .expect("the confirmation that the tenant expects");
    }

    fn step(&mut self, operation: u8, script: &mut Script<'_>) {
        let text = [b'x'; 3_000];
        match operation % 24 {
            0 => self.input(Input::Bytes(script.short())),
            1 => {
                self.now_ms += u64::from(script.byte()) * 200;
                self.input(Input::Tick);
            }
            2 => self.input(Input::Silence),
            3 => self.input(Input::Nk(nk())),
            4 => self.input(Input::Activated(CredentialSecret::from_slice(&[9; 32]).expect("32 bytes"))),
            5 => {
                let answered = usize::from(script.byte()) % (limits::MAX_NONCES + 1);
                self.input(Input::Quoted(Box::new(quoted(script.byte(), answered))));
            }
            6 => self.input(Input::QuoteFailed(str::from_utf8(&text).expect("ASCII"))),
            7 => {
                let token = Token::new(&[script.byte()]).expect("short");
                let body = vec![1; usize::from(script.byte()) * 100];
                if let Some(slice) = self.machine.slice(None, body.len()) {
                    self.input(Input::Log { token, slice, bytes: slice.of(&body) });
                }
            }
            8 => self.input(Input::NoLog { token: Token::new(&[script.byte()]).expect("short"), why: "none" }),
            9 => self.input(if script.byte() & 1 == 0 { Input::Placed } else { Input::DeliveredExtended }),
            10 => self.input(Input::PayloadFailed { kind: ReportKind::PayloadNotStored, why: "no room" }),
            11 => {
                let len = usize::from(script.byte()) * 11;
                self.input(Input::AutorunEnded { code: -1, text: &text[..len] });
            }
            12 => self.answer_badly(script),
            13 => {
                let role = [Role::Registrar, Role::Verifier, Role::Tenant][usize::from(script.byte()) % 3];
                self.post(Route::Challenge, &challenge(role, script.byte()));
            }
            14 => self.share(script),
            15 => self.ask(script),
            16 => {
                if let Some(peer) = &mut self.peer {
                    match script.byte() % 3 {
                        0 => peer.ping().unwrap_or_default(),
                        1 => peer.release(None).unwrap_or_default(),
                        _ => peer.abort("enough"),
                    }
                }
            }
            17 => self.corrupt(script),
            // Mostly what is right, so that scripts get far.
            18..=20 => self.answer_well(),
            _ => self.work_well(),
        }
    }

    /// Does the first thing the machine wants done.
    fn work_well(&mut self) {
        let Some(output) = self.outputs.pop_front() else { return };
        match output {
            Output::Seed => self.input(Input::Nk(nk())),
            Output::Activate(_) => self.step(4, &mut Script::new(&[])),
            Output::Quote(QuoteOrder { ima_from, .. }) => {
                self.input(Input::Quoted(Box::new(quoted(0, ima_from.len()))));
            }
            Output::ReadLog { token, log, block } => {
                let body = vec![2; if log == Log::Boot { 20_000 } else { 300 }];
                match self.machine.slice(block, body.len()) {
                    Some(slice) => self.input(Input::Log { token, slice, bytes: slice.of(&body) }),
                    None => self.input(Input::NoLog { token, why: "no such part" }),
                }
            }
            Output::Payload(PayloadWork::Place(_)) => self.input(Input::Placed),
            Output::Payload(PayloadWork::ExtendDelivered) => self.input(Input::DeliveredExtended),
            Output::Autorun => self.input(Input::AutorunEnded { code: 0, text: b"done" }),
            Output::Note(_)
            | Output::Payload(_)
            | Output::Confirmed(_)
            | Output::ConfirmRefused(_)
            | Output::Close(_) => {}
        }
    }

    /// Answers the machine's oldest request as it should be.
    fn answer_well(&mut self) {
        let Some((token, route, block)) = self.requests.pop_front() else { return };
        let Some(peer) = &mut self.peer else { return };
        let credential = Credential {
            id_object: Bytes::new(&[1; 66]).expect("fits"),
            encrypted_secret: Bytes::new(&[2; 66]).expect("fits"),
        };
        let body = match route {
            // Known or not: by turns of the clock, which a script moves.
            Some(Route::Hello) if self.now_ms.is_multiple_of(400) => message::to_vec(&HelloAnswer::Known),
            Some(Route::Hello) => message::to_vec(&HelloAnswer::Enrol),
            Some(Route::Enrol) => message::to_vec(&EnrolAnswer { enrolment_id: EnrolmentId([8; 16]), credential }),
            Some(Route::Manifest(id)) => match sealed(self.fixture, id) {
                Some(Sealed { sealing, .. }) => message::to_vec(&SignedManifest {
                    manifest: Bytes::new(&sealing.manifest).expect("fits"),
                    signature: Array(sealing.signature),
                }),
                None => {
                    let _ = peer.respond(token, &OutMessage::new(Code::NOT_FOUND));
                    return;
                }
            },
            Some(Route::Payload(id)) => {
                let ciphertext =
                    sealed(self.fixture, id).map(|sealed| sealed.ciphertext.as_slice()).unwrap_or_default();
                let room = peer.block_room().at_most(limits::MAX_BLOCK_PAYLOAD);
                if let Ok(slice) = slice_for(block, ciphertext.len(), room) {
                    let _ = peer.respond(token, &slice.response(slice.of(ciphertext)));
                }
                return;
            }
            _ => {
                let _ = peer.respond(token, &OutMessage::new(Code::CHANGED));
                return;
            }
        };
        let body = body.expect("messages encode");
        let _ = peer.respond(token, &OutMessage::new(Code::CONTENT).payload(&body));
    }

    fn answer_badly(&mut self, script: &mut Script<'_>) {
        let (code, payload) = (Code::from_byte(script.byte()), script.short());
        let Some((token, ..)) = self.requests.pop_front() else { return };
        if let Some(peer) = &mut self.peer {
            let _ = peer.respond(token, &OutMessage::new(code).payload(payload));
        }
    }

    fn post(&mut self, route: Route, body: &impl serde::Serialize) {
        let Some(peer) = &mut self.peer else { return };
        let payload = message::to_vec(body).expect("messages encode");
        let (_, path, _) = route.to_parts();
        let message =
            path.iter().fold(OutMessage::new(Code::POST).payload(&payload), |message, part| message.segment(part));
        let _ = peer.request(&message, (), u64::MAX);
    }

    fn share(&mut self, script: &mut Script<'_>) {
        let kind = script.byte();
        let sealed = if kind & 1 == 0 { &self.fixture.small } else { &self.fixture.large };
        let role = if kind & 2 == 0 { Role::Verifier } else { Role::Tenant };
        let share = self.fixture.share(sealed, role);
        let mut ciphertext = share.ciphertext.to_vec();
        if kind & 0xc0 == 0xc0 {
            ciphertext[0] ^= 1;
        }
        let said = if kind & 0x30 == 0x30 { Role::Registrar } else { role };
        self.post(
            Route::Share,
            &Share {
                role: said,
                sealing_id: sealed.sealing.sealing_id,
                enc: Array(share.enc),
                ciphertext: Bytes::new(&ciphertext).expect("fits"),
            },
        );
    }

    fn ask(&mut self, script: &mut Script<'_>) {
        let (method, which, block) = (script.byte(), script.byte(), script.byte());
        let Some(peer) = &mut self.peer else { return };
        let path = [
            "v1/log/boot",
            "v1/log/ima",
            ".well-known/core",
            "v1/revocation",
            "v1/hello",
            "v1/challenge",
            "v1/share",
            "x",
        ];
        let mut message = OutMessage::new(Code::from_byte(method % 5)).path(path[usize::from(which & 7)]);
        if which & 8 != 0 {
            message = message.query("from=3");
        }
        if block != 0 {
            message = message.uint(CoapOption::Block2, u32::from(block));
        }
        let payload = script.short();
        let _ = peer.request(&message.payload(payload), (), u64::MAX);
    }

    /// What the peer says arrives changed.
    fn corrupt(&mut self, script: &mut Script<'_>) {
        let Some(peer) = &mut self.peer else { return };
        let _ = peer.ping();
        let mut bytes = peer.take_outgoing();
        let at = usize::from(script.byte()) % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= script.byte();
        }
        self.input(Input::Bytes(&mem::take(&mut bytes)));
    }
}

fn nk() -> Nk {
    Nk::from_seeds(&[7; 32], &[8; 32])
}

fn sealed(fixture: &'static Fixture, id: SealingId) -> Option<&'static Sealed> {
    [&fixture.small, &fixture.large].into_iter().find(|sealed| sealed.sealing.sealing_id == id)
}

fn challenge(role: Role, kind: u8) -> Challenge {
    let bit = |bit: u8| kind & (1 << bit) != 0;
    let banks = [BankSelection { bank: 0xb, mask: 0x2080 }, BankSelection { bank: 4, mask: u32::MAX }];
    let selection = if bit(1) {
        &banks[..]
    } else if bit(2) {
        &[]
    } else {
        &banks[..1]
    };
    let credential = || Credential {
        id_object: Bytes::new(&[1; 66]).expect("fits"),
        encrypted_secret: Bytes::new(&[2; 66]).expect("fits"),
    };
    Challenge {
        role,
        purpose: if bit(0) { Purpose::Attest } else { Purpose::Bootstrap },
        nonce: Array([role as u8; 32]),
        selection: heapless::Vec::from_slice(selection).expect("fits"),
        pcr_base: bit(3).then_some(Array([1; 8])),
        boot_log: bit(4).then_some(Array([7; 32])),
        ima_from: if bit(5) { u64::MAX } else { 0 },
        credential: bit(6).then(credential),
    }
}

/// A quote as the driver hands it over; a kind other than zero is one that no TPM gives.
fn quoted(kind: u8, answered: usize) -> Quoted {
    let bit = |bit: u8| kind & (1 << bit) != 0;
    let values = if bit(0) { limits::MAX_PCR_VALUES } else { 2 };
    let mut rng = XorShift::new(u64::from(kind));
    let value = |index| PcrValue { bank: 0xb, index, digest: Bytes::new(&[index; 32]).expect("fits") };
    let part = |len: usize| ImaPart { total: u64::MAX, entries: Bytes::new(&vec![3; len]).expect("fits") };
    let ima_len = if bit(1) { limits::MAX_INLINE_IMA_LEN } else { 100 };
    Quoted {
        attested: if bit(2) { vec![1; rng.below(1_000)] } else { ATTESTED.to_vec() },
        signature: if bit(3) { vec![2; rng.below(1_000)] } else { vec![9; 72] },
        pcrs: (0..values).map(|index| value(index as u8)).collect(),
        boot_log: Some(BootLogState { digest: Array([7; 32]), len: 20_000 }),
        ima: (0..answered).map(|_| Some(part(ima_len))).collect(),
        credential_secret: (!bit(4)).then(|| CredentialSecret::from_slice(&[9; 32]).expect("32 bytes")),
    }
}

pub(crate) fn agent_machine_seeds() -> Vec<Vec<u8>> {
    const WELL: u8 = 18;
    const WORK: u8 = 21;
    // Hello; NK; both challenges and the quote; both shares; the manifest; then as long as it takes.
    let bootstrap = |kind: u8, share: u8| {
        let mut script = vec![kind, WELL, WORK, 13, 1, 0, 13, 2, 0, WORK, WORK, 14, share, 14, share | 2, WELL];
        script.extend([WELL, WORK, WORK, WELL, WORK].repeat(if share & 1 == 0 { 4 } else { 16 }));
        script
    };
    let mut enrol = vec![0x63, 1, 1, WELL, WELL, WORK, WORK, WORK, WELL, WORK, WORK, 13, 1, 0x41, WORK, WORK];
    enrol.extend([15, 1, 0, 7, 0, 15, 1, 1, 0, 0, WORK, WORK, 15, 1, 2, 0, 0, 16, 0]);
    vec![
        bootstrap(0, 0),
        bootstrap(9, 0),
        bootstrap(0, 1),
        // A junk share first, then the good ones.
        vec![0, WELL, WORK, 13, 1, 0, 13, 2, 0, WORK, WORK, 14, 0xc0, 14, 0, 14, 2, WELL, WELL, WORK, WORK],
        // Shares of two sealings.
        vec![0, WELL, WORK, 13, 1, 0, 13, 2, 0, WORK, WORK, 14, 0, 14, 3, WELL, 14, 2, WELL, WELL],
        // No pins.
        bootstrap(4, 0),
        enrol,
        // A payload in place already; attestation for ever.
        vec![0xf0, WELL, 13, 1, 1, WORK, WORK, WELL, 13, 1, 0x19, WORK, 13, 2, 0x41, WORK, 16, 0, 2, 1, 200, 16, 1],
        vec![0x10, WELL, 5, 1, 0],
        vec![0, WELL, 3, 3],
        vec![0, 0, 6, 1, 2, 3, 4, 5, 6, 17, 1, 0x80],
        vec![0, 12, 0x84, 3, 1, 2, 3],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_get_as_far_as_they_are_meant_to() {
        let reached: Vec<_> = agent_machine_seeds().iter().map(|seed| play(seed)).collect();
        let delivered = Reached { bound: true, quotes: 1, placed: true, confirmed: true, autorun: true, closed: false };
        assert_eq!(reached[0], delivered);
        assert_eq!(reached[1], delivered);
        assert_eq!(reached[2], Reached { autorun: false, ..delivered });
        assert!(reached[3].quotes == 1 && !reached[3].closed, "{reached:?}");
        assert!(reached[5].bound && !reached[5].placed, "no pin, no payload: {reached:?}");
        assert!(reached[6].bound && reached[6].quotes == 1, "{reached:?}");
        assert!(reached[7].quotes == 2 && reached[7].confirmed, "{reached:?}");
        assert!(reached[8].closed && reached[9].closed, "out of order: {reached:?}");
    }
}
