//! One round of attestation: a challenge, its evidence, the checks, the verdict. Verifier and tenant each run their own,
//! with their own nonce, policy and memory; nothing here writes anything down.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use protocol::{
    bytes::Array,
    coap::route::Route,
    crypto::{bind, secret::CredentialSecret},
    id::Role,
    limits,
    message::{
        attest::{Challenge, Evidence, Purpose, values_base},
        enrol::Credential,
    },
    tpm::pcr::PcrSelectionList,
};
use rand_core::{OsRng, RngCore};
use sha2::{Digest as _, Sha256};

use crate::{
    appraisal::{
        boot_log::BootLogError,
        continuity::{Epoch, continuity},
        ima_log::{ImaError, ImaReplay, ImaStart, ReplayedIma},
        ima_rules::{ImaJudge, ImaJudgement},
        pcrs::{QuotedPcrs, selection_to_wire},
        policy::{Policy, PolicyError, unjudged_selection},
        quote::{AkPublic, QuoteError, VerifiedQuote},
        verdict::{
            BootLogEvidence, Hardware, ImaEvidence, Input, PhaseEvents, ReadBootLog, Verdict, appraise,
            boot_log_is_judged,
        },
    },
    evidence::{Shown, ShownBootLog, ShownIma},
    gateway::{Agent, AgentError},
    store::{AppraiserStore, Checkpoint, StoreError},
};

/// Everything a round is made with.
pub struct Round<'a> {
    /// Who asks.
    pub role: Role,
    /// What for.
    pub purpose: Purpose,
    /// The AK that has to have signed.
    pub ak: &'a AkPublic,
    /// The policy in force.
    pub policy: Option<&'a Policy>,
    /// What is known of the TPM.
    pub hardware: Hardware,
    /// What the operator pinned for the node.
    pub phase: Option<&'a PhaseEvents>,
    /// What the role remembers of the node.
    pub checkpoint: Option<&'a Checkpoint>,
    /// Whether command line and userspace log are wanted with a boot log even if the policy has no rules for them: to be
    /// kept, so that another policy can be tried.
    pub texts_wanted: bool,
    /// The role's own proof of AK to EK, if it still has to make it.
    pub credential: Option<(Credential, &'a CredentialSecret)>,
}

/// What came of a round whose quote verified.
pub struct Outcome {
    /// The verdict on it.
    pub verdict: Verdict,
    /// NK's public point, in a quote for bootstrap.
    pub nk_public: Option<[u8; 65]>,
    /// SHA-256 of the TPMS_ATTEST.
    pub quote_digest: [u8; 32],
    /// The role's nonce.
    pub nonce: [u8; 32],
    /// When the nonce was made.
    pub made: Instant,
    /// What the verdict rests on.
    pub shown: Shown,
}

/// Why a round came to no verdict: nothing was proven by it, so nothing changes.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum RoundError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the evidence is refused: {0}")]
    Quote(#[from] QuoteError),
    #[error("the quote was made for purpose {expected:?} and names {found}")]
    WrongPurpose { expected: Purpose, found: &'static str },
    #[error("the challenge was answered after {} s, its nonce has expired", limits::NONCE_LIFETIME_MS / 1000)]
    NonceExpired,
    #[error("the TPM of this AK is not the TPM of this EK: its credential was not activated")]
    CredentialNotActivated,
    #[error("the boot log sent is not the one announced")]
    WrongBootLog,
    #[error("there is no verdict: {0}")]
    Policy(PolicyError),
    #[error("the role's store failed")]
    Store(#[from] StoreError),
}

impl RoundError {
    /// The short name that stands in a node's history.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Agent(AgentError::Malformed) => "bad_evidence",
            Self::Agent(AgentError::Refused { .. }) => "agent_refused",
            Self::Agent(_) => "agent_silent",
            Self::Quote(error) => error.code(),
            Self::WrongPurpose { .. } => "wrong_purpose",
            Self::NonceExpired => "nonce_expired",
            Self::CredentialNotActivated => "bad_credential_answer",
            Self::WrongBootLog => "wrong_boot_log",
            Self::Policy(error) => error.code(),
            Self::Store(_) => "internal",
        }
    }

    /// Whether the peer showed something that does not hold: its connection is of no use.
    pub const fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::Policy(_)
                | Self::Store(_)
                | Self::Agent(AgentError::Gone | AgentError::NoAnswer | AgentError::Refused { .. })
        )
    }
}

impl Round<'_> {
    /// Asks, checks and judges. `proven` is called once the quote has verified, before any log is fetched.
    ///
    /// # Errors
    /// [`RoundError`].
    pub async fn run(
        &self,
        agent: &Agent,
        store: &Arc<dyn AppraiserStore>,
        proven: impl AsyncFnOnce() -> Result<(), StoreError>,
    ) -> Result<Outcome, RoundError> {
        // PCR 10 always: whether there is an IMA list behind it is the node's claim, its value is the TPM's word.
        let unjudged;
        let selection: &PcrSelectionList = match self.policy {
            Some(policy) => policy.selection(true),
            None => {
                unjudged = unjudged_selection(true);
                &unjudged
            }
        };
        // Another policy may ask for other PCRs: the base has to hold all of them, or it is none.
        let base = self.checkpoint.map(|checkpoint| checkpoint.pcrs.as_slice());
        let same_policy = self.checkpoint.is_some_and(|checkpoint| checkpoint.policy == self.policy.map(Policy::id));
        let mut nonce = [0; 32];
        OsRng.fill_bytes(&mut nonce);
        let made = Instant::now();
        let challenge = Challenge {
            role: self.role,
            purpose: self.purpose,
            nonce: Array(nonce),
            selection: selection_to_wire(selection),
            pcr_base: base
                .filter(|_| same_policy)
                .map(|base| values_base(base.iter().map(|(bank, index, digest)| (*bank, *index, digest.as_slice())))),
            boot_log: self.checkpoint.and_then(|checkpoint| checkpoint.boot_log).map(Array),
            ima_from: self.checkpoint.filter(|_| same_policy).map_or(0, |checkpoint| checkpoint.ima_entries),
            credential: self.credential.as_ref().map(|(credential, _)| credential.clone()),
        };
        let evidence: Evidence = agent.ask(self.role, Route::Challenge, &challenge).await?;
        in_time(made.elapsed())?;
        let (quote, qualifying_data) = self.verify(agent, &evidence, nonce, selection)?;
        proven().await?;
        let pcrs = QuotedPcrs::complete(&quote, base, &evidence.pcrs, evidence.pcrs_from_base)?;
        let epoch = continuity(self.checkpoint, &quote).ok();
        let boot_log = self.boot_log(agent, store, &evidence, epoch, &pcrs).await?;
        let read = boot_log.read();
        let ima = self.ima(agent, &evidence, &challenge, epoch, &pcrs).await?;
        let verdict = appraise(&Input {
            purpose: self.purpose,
            policy: self.policy,
            pcrs: &pcrs,
            previous: self.checkpoint,
            hardware: self.hardware,
            boot_log: match (&boot_log, &read) {
                (BootLog::JudgedBefore, _) => BootLogEvidence::JudgedBefore,
                (BootLog::TooLong, _) => BootLogEvidence::Unreadable(BootLogError::TooLong),
                (_, None) => BootLogEvidence::None,
                (_, Some(Ok(read))) => BootLogEvidence::Replayed(read),
                (_, Some(Err(error))) => BootLogEvidence::Unreadable(*error),
            },
            ima: match ima.as_ref().map(|ima| &ima.result) {
                None => ImaEvidence::None,
                Some(Ok((ima, judged))) => ImaEvidence::Replayed(ima, judged.as_ref()),
                Some(Err(error)) => ImaEvidence::Unreadable(*error),
            },
            phase: self.phase,
        });
        let nk_public = evidence.nk_public.map(|public| public.0);
        let shown = Shown {
            attested: evidence.attested.to_vec(),
            signature: evidence.signature.to_vec(),
            qualifying_data,
            pcrs,
            boot_log: boot_log.shown(self.checkpoint),
            has_ima: ima.is_some(),
            ima: ima.and_then(Ima::shown),
        };
        Ok(Outcome { verdict, nk_public, quote_digest: quote.digest(), nonce, made, shown })
    }

    /// The cryptographic facts: purpose and NK are as asked, the AK signed this challenge, and, where it was asked for,
    /// the AK's TPM opened a credential made to the EK. With the quote, what it had to be bound to.
    fn verify(
        &self,
        agent: &Agent,
        evidence: &Evidence,
        nonce: [u8; 32],
        selection: &PcrSelectionList,
    ) -> Result<(VerifiedQuote, [u8; 32]), RoundError> {
        let nk_public = match (self.purpose, &evidence.nk_public) {
            (Purpose::Bootstrap, Some(public)) => Some(&public.0),
            (Purpose::Attest, None) => None,
            (expected, found) => {
                let found = if found.is_some() { "an NK" } else { "no NK" };
                return Err(RoundError::WrongPurpose { expected, found });
            }
        };
        let mut nonces: heapless::Vec<(Role, [u8; 32]), { limits::MAX_NONCES }> = heapless::Vec::new();
        // Two entries at most, so both pushes succeed.
        _ = nonces.push((self.role, nonce));
        if let Some(other) = evidence.other_nonce {
            let role = if self.role == Role::Verifier { Role::Tenant } else { Role::Verifier };
            _ = nonces.push((role, other.0));
        }
        nonces.sort_unstable();
        let qualifying_data =
            bind::qualifying_data(self.purpose as u8, agent.node_id(), nk_public, &agent.server_certificate, &nonces)
                .map_err(|_| QuoteError::WrongBinding)?;
        let quote =
            VerifiedQuote::verify(self.ak, &evidence.attested, &evidence.signature, &qualifying_data, selection)?;
        if let Some((_, secret)) = &self.credential {
            let answer = evidence.credential_answer.ok_or(RoundError::CredentialNotActivated)?;
            bind::verify_credential_answer(secret, &qualifying_data, &answer.0)
                .map_err(|_| RoundError::CredentialNotActivated)?;
        }
        Ok((quote, qualifying_data))
    }

    /// The boot log of this boot, and what belongs to it: judged before, held here, or fetched.
    async fn boot_log(
        &self,
        agent: &Agent,
        store: &Arc<dyn AppraiserStore>,
        evidence: &Evidence,
        epoch: Option<Epoch>,
        pcrs: &QuotedPcrs,
    ) -> Result<BootLog, RoundError> {
        let held = self.checkpoint.and_then(|checkpoint| checkpoint.boot_log);
        let (digest, len) = match (evidence.boot_log, held) {
            (None, None) => return Ok(BootLog::None),
            (None, Some(_)) if !agent.hello.has_boot_log => return Ok(BootLog::None),
            (None, Some(_))
                if epoch.is_some_and(|epoch| boot_log_is_judged(self.checkpoint, epoch, self.policy, pcrs)) =>
            {
                return Ok(BootLog::JudgedBefore);
            }
            (None, Some(held)) => (held, 0),
            (Some(state), _) => (state.digest.0, state.len as usize),
        };
        let log = match store.boot_log(digest).await? {
            Some(log) => log,
            None if len > limits::MAX_BOOT_LOG_LEN => return Ok(BootLog::TooLong),
            None => {
                let log = agent.fetch(self.role, Route::LogBoot, limits::MAX_BOOT_LOG_LEN).await?;
                if <[u8; 32]>::from(Sha256::digest(&log)) != digest {
                    return Err(RoundError::WrongBootLog);
                }
                store.put_boot_log(digest, &log).await?;
                log
            }
        };
        // Both count only where a digest proves them, so nothing is lost by asking late; a policy without rules on
        // events has no use for them.
        if !self.texts_wanted && self.policy.is_some_and(|policy| policy.boot().is_none()) {
            return Ok(BootLog::Shown { digest, log, texts: None });
        }
        let (role, max) = (self.role, limits::MAX_COMMAND_LINE_LEN);
        let command_line = agent.fetch_if_any(role, Route::LogCommandLine, max).await?;
        let userspace = agent.fetch_if_any(role, Route::LogUserspace, limits::MAX_USERSPACE_LOG_LEN).await?;
        Ok(BootLog::Shown { digest, log, texts: Some(Texts { command_line, userspace }) })
    }

    /// The IMA list from where this role stopped, up to the quoted PCR 10.
    async fn ima(
        &self,
        agent: &Agent,
        evidence: &Evidence,
        challenge: &Challenge,
        epoch: Option<Epoch>,
        pcrs: &QuotedPcrs,
    ) -> Result<Option<Ima>, RoundError> {
        if !agent.hello.has_ima_log {
            return Ok(None);
        }
        // A checkpoint counts within its boot and under its policy; everything else begins at entry 0.
        let start = match epoch {
            Some(epoch) => ImaStart::resume(self.checkpoint, epoch, self.policy.map(Policy::id), pcrs.banks()),
            None => ImaStart::beginning(),
        };
        let mut replay = ImaReplay::new(&start, pcrs.ima_targets());
        let keys = self.checkpoint.filter(|_| replay.entries() > 0).map_or(&[][..], |checkpoint| &checkpoint.ima_keys);
        let mut judge = self.policy.and_then(|policy| ImaJudge::new(policy, replay.entries(), keys));
        let mut push = |replay: &mut ImaReplay, bytes: &[u8]| match &mut judge {
            Some(judge) => replay.push_with_batches(bytes, |entries| judge.entries(entries)),
            None => replay.push(bytes),
        };
        let first = replay.entries();
        let mut bytes = Vec::new();
        let unreadable = |error| Ok(Some(Ima { result: Err(error), first, bytes: Vec::new() }));
        let part = evidence.ima.as_ref().filter(|_| first == challenge.ima_from);
        if let Some(part) = part {
            if let Err(error) = push(&mut replay, &part.entries) {
                return unreadable(error);
            }
            bytes.extend_from_slice(&part.entries);
        }
        if !replay.is_matched() && part.is_none_or(|part| replay.entries() < part.total) {
            let route = Route::LogIma { from: replay.entries() };
            let rest = agent.fetch(self.role, route, limits::MAX_IMA_LOG_LEN).await?;
            if let Err(error) = push(&mut replay, &rest) {
                return unreadable(error);
            }
            if bytes.is_empty() { bytes = rest } else { bytes.extend_from_slice(&rest) }
        }
        let result = replay.finish().map(|list| (list, judge.map(ImaJudge::finish)));
        Ok(Some(Ima { result, first, bytes }))
    }
}

/// A nonce lives 60 s from its making: an answer that a slow connection held back longer proves nothing of now.
fn in_time(age: Duration) -> Result<(), RoundError> {
    if age > Duration::from_millis(limits::NONCE_LIFETIME_MS) { Err(RoundError::NonceExpired) } else { Ok(()) }
}

/// What of the boot log there is to judge.
enum BootLog {
    None,
    JudgedBefore,
    TooLong,
    Shown {
        digest: [u8; 32],
        log: Vec<u8>,
        /// `None` if they were not asked for.
        texts: Option<Texts>,
    },
}

/// What belongs to a boot log.
#[derive(Default)]
struct Texts {
    command_line: Option<Vec<u8>>,
    userspace: Option<Vec<u8>>,
}

impl BootLog {
    fn read(&self) -> Option<Result<ReadBootLog<'_>, BootLogError>> {
        let Self::Shown { log, texts, .. } = self else { return None };
        let (command_line, userspace) = match texts {
            Some(Texts { command_line, userspace }) => (command_line.as_deref(), userspace.as_deref()),
            None => (None, None),
        };
        Some(ReadBootLog::read(log, command_line, userspace))
    }

    /// What of it is kept; the log itself is, by its digest.
    fn shown(self, checkpoint: Option<&Checkpoint>) -> ShownBootLog {
        match self {
            Self::None | Self::TooLong => ShownBootLog::None,
            Self::JudgedBefore => {
                let digest = checkpoint.and_then(|checkpoint| checkpoint.boot_log);
                digest.map_or(ShownBootLog::None, ShownBootLog::Before)
            }
            Self::Shown { digest, texts: None, .. } => ShownBootLog::Before(digest),
            Self::Shown { digest, texts: Some(Texts { command_line, userspace }), .. } => {
                ShownBootLog::Now { digest, command_line, userspace }
            }
        }
    }
}

/// What was read of the IMA list.
struct Ima {
    result: Result<(ReplayedIma, Option<ImaJudgement>), ImaError>,
    /// The first entry of `bytes`.
    first: u64,
    bytes: Vec<u8>,
}

impl Ima {
    /// What of it is kept.
    fn shown(self) -> Option<ShownIma> {
        let (list, _) = self.result.ok()?;
        Some(ShownIma { first: self.first, entries: list.entries(), bytes: self.bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_after_the_nonces_life_is_refused() {
        let life = Duration::from_millis(limits::NONCE_LIFETIME_MS);
        assert!(in_time(life).is_ok());
        assert!(matches!(in_time(life + Duration::from_millis(1)), Err(RoundError::NonceExpired)));
    }
}
