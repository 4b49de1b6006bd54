//! Challenges: gathered, answered by as few quotes as possible, each with what its role has not seen yet.

use alloc::{boxed::Box, string::String, vec::Vec};

use protocol::{
    bytes::{Array, Bytes},
    coap::{
        frame::{Code, OutMessage, Token, format},
        route::RouteName,
    },
    crypto::bind,
    id::Role,
    limits,
    message::{
        self,
        attest::{Challenge, Evidence, PcrValue, PcrValueList, Purpose, values_base},
    },
};
use sha2::{Digest as _, Sha256};

use super::{Error, Link, NkPublic, Nonces, Output, QuoteOrder, Quoted, provision::Provision};

/// How long the first bootstrap challenge waits for the other role's, so that one quote answers both: a real TPM takes
/// longer than this for a second quote, and verifier and tenant ask at the same time.
const GATHER_MS: u64 = 5;

/// Challenges of this connection.
#[derive(Debug, Default)]
pub(super) struct Attestation {
    /// At most one a role; the peer's token with each.
    waiting: heapless::Vec<(Token, Box<Challenge>), { limits::MAX_NONCES }>,
    gather_until: Option<u64>,
    /// Those the TPM is quoting for, and what for.
    quoting: Option<Quoting>,
    /// What each role was sent last.
    sent: [Option<Vec<PcrValue>>; 2],
}

#[derive(Debug)]
struct Quoting {
    challenges: heapless::Vec<(Token, Box<Challenge>), { limits::MAX_NONCES }>,
    qualifying_data: [u8; 32],
    nk_public: Option<NkPublic>,
}

impl Attestation {
    #[inline(never)]
    pub(super) fn challenged(
        &mut self,
        link: &mut Link<'_>,
        provision: &Provision,
        token: Token,
        challenge: Box<Challenge>,
    ) -> Result<(), Error> {
        let refusal = match (challenge.role, challenge.purpose) {
            (Role::Registrar, _) => Some((Code::BAD_REQUEST, "the registrar does not challenge")),
            (_, Purpose::Bootstrap) if !provision.takes_shares() => {
                Some((Code::CONFLICT, "this boot's payload is in place or on its way; no NK to bind"))
            }
            _ if challenge.selection.is_empty() => Some((Code::BAD_REQUEST, "no PCR is selected")),
            _ if self.waiting.iter().any(|(_, waiting)| waiting.role == challenge.role) => {
                Some((Code::TOO_MANY_REQUESTS, "this role's last challenge is not answered yet"))
            }
            _ => None,
        };
        if let Some((code, why)) = refusal {
            return Ok(link.exchange.respond(token, &OutMessage::diagnostic(code, why))?);
        }
        link.begins(RouteName::Challenge, challenge.role.name(), false);
        if challenge.purpose == Purpose::Bootstrap {
            self.gather_until.get_or_insert(link.now_ms.saturating_add(GATHER_MS));
        }
        // Two roles, one place each: it fits.
        _ = self.waiting.push((token, challenge));
        Ok(())
    }

    /// Orders a quote when the TPM is free and no other challenge need be waited for.
    #[inline(never)]
    pub(super) fn poll(&mut self, link: &mut Link<'_>, provision: &Provision) {
        if self.quoting.is_some() || self.waiting.is_empty() {
            return;
        }
        let gathered = self.waiting.is_full() || self.gather_until.is_none_or(|until| until <= link.now_ms);
        if !gathered {
            return;
        }
        // NK may not be there yet: its seed is asked for, and the challenge waits.
        let nk_public = match self.waiting.first() {
            Some((_, first)) if first.purpose == Purpose::Bootstrap => match provision.nk_public() {
                Some(public) => Some(Array(public)),
                None => return,
            },
            _ => None,
        };
        self.gather_until = None;
        let mut challenges = heapless::Vec::new();
        let (token, first) = self.waiting.remove(0);
        let combine = self.waiting.first().is_some_and(|(_, other)| {
            other.purpose == first.purpose && other.selection == first.selection && other.role != first.role
        });
        _ = challenges.push((token, first)); // empty before
        if combine {
            _ = challenges.push(self.waiting.remove(0)); // room for two
            challenges.sort_unstable_by_key(|(_, challenge): &(Token, Box<Challenge>)| challenge.role);
        }
        let nonces: Nonces = challenges.iter().map(|(_, challenge)| (challenge.role, challenge.nonce.0)).collect();
        let Some((_, leading)) = challenges.first() else { return };
        let facts = link.facts;
        // Roles ascend and NK fits the purpose by what was checked on arrival.
        let Ok(qualifying_data) = bind::qualifying_data(
            leading.purpose as u8,
            facts.node_id,
            nk_public.as_ref().map(|public| &public.0),
            &facts.server_certificate,
            &nonces,
        ) else {
            return;
        };
        let order = QuoteOrder {
            selection: leading.selection.clone(),
            qualifying_data,
            credential: challenges.iter().find_map(|(_, challenge)| challenge.credential.clone()),
            ima_from: challenges.iter().map(|(_, challenge)| challenge.ima_from).collect(),
        };
        self.quoting = Some(Quoting { challenges, qualifying_data, nk_public });
        link.outputs.push_back(Output::Quote(order));
    }

    pub(super) const fn gather_deadline(&self) -> Option<u64> {
        match self.quoting {
            Some(_) => None,
            None => self.gather_until,
        }
    }

    #[inline(never)]
    pub(super) fn quoted(
        &mut self,
        link: &mut Link<'_>,
        provision: &mut Provision,
        mut quoted: Box<Quoted>,
    ) -> Result<(), Error> {
        let Some(Quoting { challenges, qualifying_data, nk_public }) = self.quoting.take() else {
            return Err(Error::OutOfOrder { state: "Attestation" });
        };
        let attest_digest: [u8; 32] = Sha256::digest(&quoted.attested).into();
        let credential_answer =
            quoted.credential_secret.as_ref().map(|secret| Array(bind::credential_answer(secret, &qualifying_data)));
        let nonces: Nonces = challenges.iter().map(|(_, challenge)| (challenge.role, challenge.nonce.0)).collect();
        let mut ima = quoted.ima.iter_mut();
        for (token, challenge) in challenges {
            let (pcrs_from_base, pcrs) = self.differences(&challenge, &quoted.pcrs);
            let evidence = Evidence {
                attested: Bytes::new(&quoted.attested)?,
                signature: Bytes::new(&quoted.signature)?,
                nk_public,
                other_nonce: nonces.iter().find(|(role, _)| *role != challenge.role).map(|(_, nonce)| Array(*nonce)),
                pcrs_from_base,
                pcrs,
                boot_log: quoted.boot_log.filter(|state| challenge.boot_log != Some(state.digest)),
                ima: ima.next().and_then(Option::take),
                credential_answer: if challenge.credential.is_some() { credential_answer } else { None },
            };
            if challenge.purpose == Purpose::Bootstrap {
                provision.quoted(challenge.role, attest_digest, challenge.nonce.0);
            }
            if let Some(sent) = self.sent.get_mut(slot(challenge.role)) {
                *sent = Some(quoted.pcrs.iter().cloned().collect());
            }
            let payload = message::to_vec(&evidence)?;
            let answer = OutMessage::new(Code::CONTENT).content_format(format::OCTET_STREAM).payload(&payload);
            link.exchange.respond(token, &answer)?;
            link.note(super::Note::Step(super::Step {
                name: RouteName::Challenge,
                peer: challenge.role.name(),
                outbound: false,
                begins: false,
            }));
        }
        provision.challenge_answered(link)
    }

    pub(super) fn failed(&mut self, link: &mut Link<'_>, why: &str) -> Result<(), Error> {
        let Some(quoting) = self.quoting.take() else { return Err(Error::OutOfOrder { state: "Attestation" }) };
        let mut text = String::from("the TPM did not quote: ");
        text.push_str(why);
        for (token, _) in quoting.challenges {
            link.exchange.respond(token, &OutMessage::diagnostic(Code::SERVICE_UNAVAILABLE, &text))?;
        }
        Ok(())
    }

    /// The values a role has to be sent: what differs from the base it named, where we hold that base.
    fn differences(&self, challenge: &Challenge, values: &PcrValueList) -> (bool, PcrValueList) {
        let base = self.sent.get(slot(challenge.role)).and_then(Option::as_ref);
        match (base, challenge.pcr_base) {
            (Some(base), Some(wanted)) if values_base(base.iter().map(parts)) == wanted => {
                (true, values.iter().filter(|value| !base.contains(value)).cloned().collect())
            }
            _ => (false, values.clone()),
        }
    }
}

fn parts(value: &PcrValue) -> (u16, u8, &[u8]) {
    (value.bank, value.index, &value.digest)
}

const fn slot(role: Role) -> usize {
    match role {
        Role::Verifier => 0,
        _ => 1,
    }
}
