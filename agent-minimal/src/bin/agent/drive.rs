//! The loop: connection, TPM, payload directory and clock on one side, the [`Machine`] on the other. It decides nothing
//! about the protocol; it does what the machine asks for, in order, and comes back.

use std::{
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use agent_minimal::machine::{
    CloseReason, Facts, Input, Log, Machine, Note, Output, PayloadWork, QuoteOrder, Quoted, Step, Unconfirmed,
};
use protocol::{
    bytes::Bytes,
    coap::{block::Slice, frame::Token, route::RouteName},
    crypto::join::JoinToken,
    limits,
    message::{
        attest::{ImaPart, PcrValue, PcrValueList},
        enrol::Wants,
        provision::ReportKind,
    },
    tpm::{
        alg::HashAlg,
        pcr::{PcrSelection, PcrSelectionList},
    },
};

use crate::{
    autorun::Outcome,
    boot::{BootError, Booted},
    config::{self, Settings, Tcti},
    harden,
    keepalive::{Action, Patience, Silence},
    line::{self, News},
    log::{self, Field},
    logs::{LogPaths, Logs},
    payload::{Incoming, Placed},
    supervise::{Backoff, RENEW_STATUS},
    tls::{self, Connection, Connector, Read},
};

/// Reads of 2 KiB that are taken before the machine's outputs are: two of the longest messages.
const MAX_READS_TOGETHER: usize = 8;
/// How often a running autorun is looked at.
const AUTORUN_POLL: Duration = Duration::from_millis(100);
/// Fetches of logs that grow that may go on side by side: one a role and log, and those that were begun anew.
const MAX_FETCHES: usize = 6;
/// A connection that held so long was good: the next failure waits as short as the first.
const HEALTHY: Duration = Duration::from_secs(60);

/// Runs until the payload is in place (`once`), or for ever.
pub(crate) fn run(settings: Settings, started: Instant) -> ExitCode {
    let mut backoff = Backoff::default();
    let mut booted = loop {
        match Booted::up(&settings) {
            Ok(booted) => break booted,
            Err(why @ (BootError::Tpm(_) | BootError::Entropy(_))) => {
                let why = why.to_string();
                line::tell(News::Fault, &why);
                rest(&mut backoff, &why);
            }
            Err(why) => {
                log::error!("{why}");
                return ExitCode::FAILURE;
            }
        }
    };
    line::tell(News::Ready, "");
    if let Some(placed) = booted.placed.filter(|_| booted.measured.says_delivered()) {
        line::tell(News::Delivered, "");
        if settings.once && placed.proof.is_none() {
            log::info!("this boot's payload is in place already, and the tenant knows it");
            return ExitCode::SUCCESS;
        }
    }
    let connector = match &settings.ca {
        Some(ca) => Connector::new(ca, booted.rng.fork()),
        None => return ExitCode::FAILURE, // settings were checked for it
    };
    let mut connector = match connector {
        Ok(connector) => connector,
        Err(why) => {
            log::error!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let logs = Logs::new(&log_paths(&settings));
    // Everything from the network is heard behind this line.
    let confined = match harden::confine_worker(&settings) {
        Ok(confined) => confined,
        Err(why) => {
            log::error!("privileges cannot be dropped: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut drive = Drive {
        settings,
        booted,
        logs,
        started,
        settled: false,
        delivered: false,
        faulty: false,
        autorun: false,
        patience: Patience::default(),
        fetched: Vec::new(),
    };
    backoff.reset();
    // A server is stayed with until it fails; then the next one is tried at once, and only a whole turn waits.
    let mut failed = 0;
    for server in drive.settings.servers.clone().iter().cycle() {
        // The connection that delivered may have broken while autorun ran; another has no use for what came of it.
        if drive.settings.once {
            _ = drive.autorun_ended();
        }
        if drive.is_done() {
            return ExitCode::SUCCESS;
        }
        if confined.is_outdated() {
            log::info!("a file that this process may read has been replaced; another process begins anew");
            return ExitCode::from(RENEW_STATUS);
        }
        let began = Instant::now();
        let why = match connector.connect(server) {
            Ok(connection) => match drive.session(connection) {
                Ok(End::Done) => return ExitCode::SUCCESS,
                Ok(End::Again(why)) | Err(why) => why,
            },
            Err(why) => why.to_string(),
        };
        if began.elapsed() >= HEALTHY {
            backoff.reset();
            failed = 0;
        }
        let why = format!("{server}: {why}");
        line::tell(News::Unreached, &why);
        failed += 1;
        if failed < drive.settings.servers.len() {
            log::warn!("{why}; trying the next server");
        } else {
            failed = 0;
            rest(&mut backoff, &why);
        }
    }
    ExitCode::FAILURE // there is at least one server: settings were checked for it
}

/// The logs that belong to the TPM in use.
pub(crate) fn log_paths(settings: &Settings) -> LogPaths<'_> {
    let own = |log| own_log(&settings.tcti, log);
    LogPaths {
        boot: own(&settings.boot_log),
        ima: own(&settings.ima_log),
        command_line: own(&settings.command_line),
        userspace: own(&settings.userspace_log),
    }
}

/// The system's logs are about the machine's own TPM: beside a software TPM only logs from elsewhere belong to it.
fn own_log<'l>(tcti: &Tcti, log: &'l Path) -> &'l Path {
    let own = [config::COMMAND_LINE, config::USERSPACE_LOG];
    let of_the_machine = log.starts_with("/sys/kernel/security") || own.iter().any(|own| log == Path::new(own));
    if matches!(tcti, Tcti::Swtpm { .. }) && of_the_machine { Path::new("") } else { log }
}

fn rest(backoff: &mut Backoff, why: &str) {
    let delay = backoff.next();
    log::warn!("{why}; trying again in {} ms", delay.as_millis());
    thread::sleep(delay);
}

enum End {
    /// `once`, and all is in place.
    Done,
    /// Connect again.
    Again(String),
}

/// What outlives a connection.
struct Drive {
    settings: Settings,
    booted: Booted,
    logs: Logs,
    started: Instant,
    /// The payload is in place, and nothing more will come of its confirmation: what `once` waits for.
    settled: bool,
    /// A summary of the bootstrap was written.
    delivered: bool,
    /// The TPM did not do what it was asked for last; the parent was told.
    faulty: bool,
    /// The parent was asked to run autorun, and has not said yet what came of it.
    autorun: bool,
    patience: Patience,
    /// IMA list and userspace log grow: a fetch keeps the length it began with. Log and bytes of the newest fetches.
    fetched: Vec<(Log, u64)>,
}

/// What belongs to one connection.
struct Session<'c, 'p> {
    connection: Connection<'c>,
    began: Instant,
    silence: Silence,
    incoming: Option<Incoming<'p>>,
    /// Steps under way, for their duration.
    steps: Vec<(RouteName, &'static str, Instant)>,
    bytes: (u64, u64),
    tpm_before: Duration,
    closing: Option<String>,
    /// What kept the payload from being put in place was this machine's.
    not_stored: bool,
}

impl Drive {
    #[inline(never)]
    fn session(&mut self, connection: Connection<'_>) -> Result<End, String> {
        log::debug!("the gateway has proven itself");
        if self.booted.placed.is_some_and(|placed| placed.proof.is_some()) {
            // An earlier session may have ended between the placing and the phase PCR: confirmed is only what it says.
            self.booted.enter_phase(&self.settings).map_err(|why| self.fault(&why))?;
        }
        let facts = self.facts(*connection.server().certificate_digest());
        let home = self.booted.home.clone();
        let now = Instant::now();
        let mut session = Session {
            connection,
            began: now,
            silence: Silence::new(now),
            incoming: None,
            steps: Vec::new(),
            bytes: (0, 0),
            tpm_before: self.booted.tpm.spent(),
            closing: None,
            not_stored: false,
        };
        let mut machine = Machine::new(&facts, 0).map_err(|why| why.to_string())?;
        let mut buf = vec![0; 2048];
        loop {
            session.flush(&mut machine)?;
            while let Some(output) = machine.poll_output(session.now_ms()) {
                self.work(&mut session, &home, &mut machine, output)?;
                session.flush(&mut machine)?;
            }
            if let Some(why) = session.closing.take() {
                session.connection.close();
                return Ok(End::Again(why));
            }
            if self.is_done() {
                session.connection.close();
                return Ok(End::Done);
            }
            self.poll_autorun(&mut session, &mut machine)?;
            match session.connection.read(&mut buf, Some(session.timeout(&machine, &self.patience, self.autorun))) {
                Ok(Read::Bytes(len)) => {
                    session.silence.heard(Instant::now(), &mut self.patience);
                    let bytes = buf.get(..len).unwrap_or_default();
                    session.input(&mut machine, Input::Bytes(bytes))?;
                    // What came together is taken together: two challenges may share one quote. Only so much, for what it
                    // asks for is queued meanwhile.
                    for _ in 0..MAX_READS_TOGETHER {
                        if !session.connection.readable_now() {
                            break;
                        }
                        match session.connection.read(&mut buf, Some(Duration::ZERO)) {
                            Ok(Read::Bytes(len)) => {
                                let bytes = buf.get(..len).unwrap_or_default();
                                session.input(&mut machine, Input::Bytes(bytes))?;
                            }
                            // What was said before an end is acted upon first: it may be a Release.
                            Ok(Read::TimedOut | Read::Closed) => break,
                            Err(why) => return Err(why.to_string()),
                        }
                    }
                }
                Ok(Read::TimedOut) => session.tick(&mut machine, &mut self.patience)?,
                Ok(Read::Closed) => return Err("the gateway closed the connection".into()),
                Err(why) => {
                    session.silence.broke(Instant::now(), &mut self.patience);
                    return Err(why.to_string());
                }
            }
        }
    }

    /// The TPM keeps it from going on: tells the parent, and gives the words.
    fn fault(&mut self, why: &dyn std::fmt::Display) -> String {
        self.faulty = true;
        let why = why.to_string();
        line::tell(News::Fault, &why);
        why
    }

    fn facts(&self, server_certificate: [u8; 32]) -> Facts {
        let Booted { identity, tenant_keys, placed, .. } = &self.booted;
        Facts {
            node_id: identity.node_id,
            ek_public: identity.ek_public.clone(),
            ek_chain: identity.ek_chain.clone(),
            ak_public: identity.ak_public.clone(),
            ak_name: identity.ak_name,
            server_certificate,
            join: self.settings.join.as_ref().and_then(|token| JoinToken::from_slice(token.expose())),
            tenant_keys: tenant_keys.clone(),
            autorun: self.settings.autorun,
            wants: if placed.is_some() { Wants::Attest } else { self.settings.wants },
            has_boot_log: self.logs.has_boot_log(),
            has_ima_log: self.logs.has_ima_log(),
            unconfirmed: placed.and_then(|Placed { sealing_id, proof, autorun }| {
                Some(Unconfirmed { sealing_id, proof: proof?, autorun })
            }),
        }
    }

    fn work<'p>(
        &mut self,
        session: &mut Session<'_, 'p>,
        home: &'p crate::payload::PayloadDir,
        machine: &mut Machine<'_>,
        output: Output,
    ) -> Result<(), String> {
        match output {
            Output::Note(note) => session.note(&note),
            Output::Seed => {
                let nk = self.booted.new_nk().map_err(|why| self.fault(&why))?;
                session.input(machine, Input::Nk(nk))?;
            }
            Output::Activate(credential) => {
                let secret = self
                    .booted
                    .tpm
                    .activate(&credential.id_object, &credential.encrypted_secret)
                    .map_err(|why| self.fault(&why))?;
                session.input(machine, Input::Activated(secret))?;
            }
            Output::Quote(order) => match self.quote(&order) {
                Ok(quoted) => {
                    if std::mem::take(&mut self.faulty) {
                        line::tell(News::Ready, "");
                    }
                    session.input(machine, Input::Quoted(Box::new(quoted)))?;
                }
                Err(why) => {
                    log::warn!("{}", self.fault(&format_args!("no quote: {why}")));
                    session.input(machine, Input::QuoteFailed(&why))?;
                }
            },
            Output::ReadLog { token, log, block } => match self.read_log(machine, log, block) {
                Ok((slice, bytes)) => session.input(machine, Input::Log { token, slice, bytes: &bytes })?,
                Err(why) => session.no_log(machine, token, &why)?,
            },
            Output::Payload(work) => self.payload(session, home, machine, work)?,
            Output::Autorun => self.start_autorun(session, machine)?,
            Output::Confirmed(sealing_id) => {
                if let Err(why) = self.booted.home.confirmed(sealing_id) {
                    log::warn!("{why}");
                }
                if let Some(placed) = &mut self.booted.placed {
                    placed.proof = None;
                }
                self.tell_delivered(session);
            }
            Output::ConfirmRefused(sealing_id) => {
                log::warn!("the tenant does not know the release of sealing {sealing_id}; the payload stays in place");
                if let Some(placed) = &mut self.booted.placed {
                    placed.proof = None;
                }
                self.settled = true;
            }
            Output::Close(reason) => {
                session.closing.get_or_insert_with(|| close_words(reason));
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn quote(&mut self, order: &QuoteOrder) -> Result<Quoted, String> {
        let words = |why: &dyn std::fmt::Display| why.to_string();
        let mut selection = PcrSelectionList::new();
        for bank in &order.selection {
            let alg = HashAlg::from_id(bank.bank).ok_or("a bank of an unknown algorithm is asked for")?;
            let bank = PcrSelection::new(alg, bank.mask).ok_or("a PCR above 23 is asked for")?;
            selection.push(bank).map_err(|why| words(&why))?;
        }
        let credential_secret = match &order.credential {
            None => None,
            Some(credential) => {
                let secret = self.booted.tpm.activate(&credential.id_object, &credential.encrypted_secret);
                Some(secret.map_err(|why| words(&why))?)
            }
        };
        let quote = self.booted.tpm.quote(&selection, &order.qualifying_data).map_err(|why| words(&why))?;
        let mut pcrs = PcrValueList::new();
        for (bank, index, digest) in quote.values.iter() {
            let digest = Bytes::new(digest.as_bytes()).map_err(|why| words(&why))?;
            pcrs.push(PcrValue { bank: bank.id(), index, digest }).map_err(|_| "more PCRs are asked for than fit")?;
        }
        let boot_log = self.logs.boot_state().map_err(|why| words(&why))?;
        let mut ima = heapless::Vec::new();
        for from in &order.ima_from {
            let part = self.logs.ima_part(*from, limits::MAX_INLINE_IMA_LEN).map_err(|why| words(&why))?;
            let part = match part {
                Some((total, entries)) if total > *from => {
                    Some(ImaPart { total, entries: Bytes::new(&entries).map_err(|why| words(&why))? })
                }
                _ => None,
            };
            _ = ima.push(part); // as many places as the order has
        }
        let protocol_quote =
            Quoted { attested: quote.attested, signature: quote.signature, pcrs, boot_log, ima, credential_secret };
        Ok(protocol_quote)
    }

    #[inline(never)]
    fn read_log(
        &mut self,
        machine: &Machine<'_>,
        log: Log,
        block: Option<protocol::coap::block::Block>,
    ) -> Result<(Slice, Vec<u8>), String> {
        let len = match log {
            Log::Boot => self.logs.boot_state().map_err(|why| why.to_string())?.map(|state| u64::from(state.len)),
            Log::CommandLine => self.logs.command_line().map_err(|why| why.to_string())?.map(|line| line.len() as u64),
            Log::Ima { .. } | Log::Userspace if block.is_none_or(|block| block.num() == 0) => {
                let len = match log {
                    Log::Ima { from } => self.logs.ima_len(from),
                    _ => self.logs.userspace_len(),
                };
                let len = len.map_err(|why| why.to_string())?;
                self.fetched.retain(|(of, _)| *of != log);
                if let Some(len) = len {
                    self.fetched.truncate(MAX_FETCHES - 1);
                    self.fetched.insert(0, (log, len));
                }
                len
            }
            Log::Ima { .. } | Log::Userspace => self.fetched.iter().find(|(of, _)| *of == log).map(|(_, len)| *len),
        };
        let len = len.ok_or("there is no such log")?;
        let len = usize::try_from(len).map_err(|_| "the log is too long")?;
        let slice = machine.slice(block, len).ok_or("there is no such block")?;
        let mut bytes = vec![0; slice.len];
        let read = match log {
            Log::Boot => self.logs.read_boot_log(slice.offset as u64, &mut bytes),
            Log::Ima { from } => self.logs.ima_from(from, slice.offset as u64, &mut bytes),
            Log::CommandLine => self.logs.read_command_line(slice.offset, &mut bytes),
            Log::Userspace => self.logs.read_userspace(slice.offset as u64, &mut bytes),
        };
        let read = read.map_err(|why| why.to_string())?;
        if read != slice.len {
            return Err("the log became shorter".into());
        }
        Ok((slice, bytes))
    }

    #[inline(never)]
    fn payload<'p>(
        &mut self,
        session: &mut Session<'_, 'p>,
        home: &'p crate::payload::PayloadDir,
        machine: &mut Machine<'_>,
        work: PayloadWork,
    ) -> Result<(), String> {
        let result = match work {
            PayloadWork::Begin { sealing_id, plaintext_len } => {
                session.incoming = None; // an earlier one is removed first
                home.begin(sealing_id, plaintext_len).map(|incoming| {
                    session.incoming = Some(incoming);
                    None
                })
            }
            PayloadWork::Write(plaintext) => match &mut session.incoming {
                Some(incoming) => incoming.write(&plaintext).map(|()| None),
                None => return Ok(()), // it failed before, and was reported
            },
            PayloadWork::Place(unconfirmed) => match session.incoming.take() {
                Some(incoming) => incoming.place(&unconfirmed.proof, unconfirmed.autorun).map(|()| {
                    self.booted.placed = self.booted.home.existing();
                    log::info!("the payload is in place at {}", home.path().display());
                    Some(Input::Placed)
                }),
                None => return Ok(()),
            },
            PayloadWork::ExtendDelivered => {
                if !self.booted.tenant_keys.is_empty() {
                    self.booted.extend_delivered(&self.settings).map_err(|why| self.fault(&why))?;
                }
                line::tell(News::Delivered, "");
                Ok(Some(Input::DeliveredExtended))
            }
            PayloadWork::Abandon => {
                session.incoming = None;
                return Ok(());
            }
        };
        match result {
            Ok(None) => Ok(()),
            Ok(Some(done)) => session.input(machine, done),
            Err(why) => {
                session.not_stored = why.kind() == ReportKind::PayloadNotStored;
                session.incoming = None;
                session.input(machine, Input::PayloadFailed { kind: why.kind(), why: &why.to_string() })
            }
        }
    }

    /// The tenant has the confirmation; a summary of the bootstrap, and for `once` the end.
    fn tell_delivered(&mut self, session: &mut Session<'_, '_>) {
        self.settled = true;
        if std::mem::replace(&mut self.delivered, true) {
            return;
        }
        let millis = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        log::step(
            "delivered",
            &[
                ("phase", Field::Text("end")),
                ("from", Field::Text("agent")),
                ("to", Field::Text("agent")),
                ("ms", Field::Micros(millis(self.started.elapsed()))),
                ("connected_ms", Field::Micros(millis(session.began.elapsed()))),
                ("tpm_ms", Field::Micros(millis(self.booted.tpm.spent()))),
                ("tpm_session_ms", Field::Micros(millis(self.booted.tpm.spent().saturating_sub(session.tpm_before)))),
                ("up", Field::Number(session.connection.bytes_up())),
                ("down", Field::Number(session.connection.bytes_down())),
            ],
        );
        log::info!("the tenant knows that the payload is in place");
    }

    fn start_autorun(&mut self, session: &mut Session<'_, '_>, machine: &mut Machine<'_>) -> Result<(), String> {
        if !self.settings.autorun {
            return Ok(());
        }
        match line::ask_autorun() {
            Ok(()) => {
                self.autorun = true;
                Ok(())
            }
            Err(why) => {
                log::error!("autorun cannot be asked for: {why}");
                session.input(machine, Input::AutorunEnded { code: 126, text: why.to_string().as_bytes() })
            }
        }
    }

    fn poll_autorun(&mut self, session: &mut Session<'_, '_>, machine: &mut Machine<'_>) -> Result<(), String> {
        match self.autorun_ended() {
            Some((code, tail)) => {
                session.input(machine, Input::AutorunEnded { code, text: &tail })?;
                session.flush(machine)
            }
            None => Ok(()),
        }
    }

    /// Status and end of the output of an autorun that has ended since it was asked last.
    fn autorun_ended(&mut self) -> Option<(i32, Vec<u8>)> {
        if !self.autorun {
            return None;
        }
        let outcome = line::autorun_outcome();
        self.autorun = matches!(outcome, Ok(None));
        let (code, tail) = match outcome {
            Ok(None | Some(Outcome::None)) => return None,
            Ok(Some(Outcome::Ended { code, tail })) => (code, tail),
            Err(why) => (125, why.to_string().into_bytes()),
        };
        log::info!("autorun has ended with status {code}");
        Some((code, tail))
    }

    /// `once`, and there is nothing left to wait for.
    fn is_done(&self) -> bool {
        self.settings.once && self.settled && !self.autorun
    }
}

impl Session<'_, '_> {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn input(&mut self, machine: &mut Machine<'_>, input: Input<'_>) -> Result<(), String> {
        let result = machine.handle_input(self.now_ms(), tls::clock().now, input);
        result.map_err(|why| {
            // The Abort with its reason, if the peer still takes it.
            _ = self.flush(machine);
            why.to_string()
        })
    }

    fn flush(&mut self, machine: &mut Machine<'_>) -> Result<(), String> {
        while !machine.outgoing().is_empty() {
            let len = machine.outgoing().len();
            self.connection.write_all(machine.outgoing()).map_err(|why| why.to_string())?;
            machine.sent(len);
        }
        Ok(())
    }

    fn timeout(&self, machine: &Machine<'_>, patience: &Patience, autorun: bool) -> Duration {
        let now = self.now_ms();
        let machine = machine.poll_timeout().map(|at| Duration::from_millis(at.saturating_sub(now)));
        let silence = match self.silence.action(Instant::now(), patience) {
            Action::Wait(left) => left,
            Action::Ask | Action::GiveUp => Duration::ZERO,
        };
        let autorun = autorun.then_some(AUTORUN_POLL);
        [machine, autorun].into_iter().flatten().fold(silence, Duration::min)
    }

    fn tick(&mut self, machine: &mut Machine<'_>, patience: &mut Patience) -> Result<(), String> {
        let now = Instant::now();
        match self.silence.action(now, patience) {
            Action::Wait(_) => self.input(machine, Input::Tick),
            Action::Ask => {
                log::debug!("the gateway has gone quiet; it is asked for a sign of life");
                self.silence.asked(now, patience);
                self.input(machine, Input::Silence)
            }
            Action::GiveUp => {
                self.silence.broke(now, patience);
                Err("the gateway gives no sign of life".into())
            }
        }
    }

    fn no_log(&mut self, machine: &mut Machine<'_>, token: Token, why: &str) -> Result<(), String> {
        self.input(machine, Input::NoLog { token, why })
    }

    fn note(&mut self, note: &Note) {
        match note {
            Note::Step(step) => {
                if step.name == RouteName::Hello && !step.begins {
                    line::tell(News::Answered, "");
                }
                self.step(*step);
            }
            Note::Refused { route, code, text } => {
                let why = format!("{} was refused: {code} {text}", route.name());
                if *route != RouteName::Report {
                    line::tell(News::Refused, &why);
                }
                log::warn!("{why}");
            }
            Note::ShareRefused { role, why } => {
                let why = format!("the {role}'s share is refused: {why}");
                line::tell(News::Refused, &why);
                log::warn!("{why}");
            }
            Note::TagMismatch => {
                let why = "the two shares do not fit each other";
                line::tell(News::Refused, why);
                log::warn!("{why}; a new NK is made");
            }
            Note::PayloadRefused { why } => {
                line::tell(if self.not_stored { News::Fault } else { News::Refused }, why);
                log::error!("{why}");
            }
        }
    }

    fn step(&mut self, step: Step) {
        let Step { name, peer, outbound, begins } = step;
        let same = |(of, with, _): &(RouteName, &str, Instant)| *of == name && *with == peer;
        let ms = if begins {
            self.steps.retain(|entry| !same(entry));
            self.steps.push((name, peer, Instant::now()));
            0
        } else {
            let began = self.steps.iter().position(same).map(|at| self.steps.swap_remove(at).2);
            began.map_or(0, |began| u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX))
        };
        let bytes = (self.connection.bytes_up(), self.connection.bytes_down());
        let (up, down) = (bytes.0.saturating_sub(self.bytes.0), bytes.1.saturating_sub(self.bytes.1));
        if !begins {
            self.bytes = bytes;
        }
        let (from, to) = if outbound { ("agent", peer) } else { (peer, "agent") };
        log::step(
            name.name(),
            &[
                ("phase", Field::Text(if begins { "begin" } else { "end" })),
                ("from", Field::Text(from)),
                ("to", Field::Text(to)),
                ("ms", Field::Micros(ms)),
                ("up", Field::Number(up)),
                ("down", Field::Number(down)),
            ],
        );
    }
}

fn close_words(reason: CloseReason) -> String {
    match reason {
        CloseReason::Refused(route) => format!("the control plane refused {}", route.name()),
        CloseReason::NoAnswer(route) => format!("{} was not answered in time", route.name()),
        CloseReason::Released => "the gateway is about to end".into(),
        CloseReason::PayloadFailed => "the payload could not be had on this connection".into(),
    }
}
