//! From two shares to the payload in place: a struct per state, each owning only what is legal in it.
//!
//! NK lives in [`AwaitShares`] and [`AwaitManifest`] and nowhere else; K_b exists inside one function. Everything that a
//! peer can get wrong ends in a report and a fresh start, never in a consumed secret.

use alloc::{
    boxed::Box,
    string::{String, ToString as _},
};
use core::{convert::Infallible, mem};

use protocol::{
    bytes::Array,
    coap::{
        block::Fetch,
        frame::{Code, OutMessage, Token},
        route::{Route, RouteName},
    },
    crypto::{
        bind,
        manifest::{Manifest, VerifiedManifest, manifest_digest},
        nk::Nk,
        payload::{PayloadReceiver, ReceiveError},
        secret::{ConfirmKey, ShareU, ShareV},
        share::{self, SealedShare},
    },
    id::{Role, SealingId},
    limits,
    message::{
        enrol::Wants,
        provision::{Confirm, ReportKind, Share, SignedManifest},
    },
};

use super::{CloseReason, Error, Link, Note, Output, PayloadWork, Unconfirmed, role_name};

/// Where the payload stands.
#[derive(Debug)]
pub(super) enum Provision {
    /// Nothing to do: this boot's payload is in place, or was not asked for.
    Idle,
    /// A payload placed earlier in this boot; its confirmation goes out once the connection is proven.
    Unconfirmed(Unconfirmed),
    /// NK's seed was asked for.
    AwaitSeed,
    /// NK is made; shares may come.
    AwaitShares(Box<AwaitShares>),
    /// Both shares are here; the manifest was asked for.
    AwaitManifest(Box<AwaitManifest>),
    /// The key fits; the payload comes block by block.
    AwaitPayload(Box<AwaitPayload>),
    /// All is proven; the driver puts it in place.
    AwaitPlaced(Unconfirmed),
    /// In place; the driver extends "delivered".
    AwaitExtended(Unconfirmed),
    /// `confirm` was sent.
    AwaitConfirmed(Unconfirmed),
    /// Confirmed; autorun may be running.
    Delivered(SealingId),
}

/// NK, the quotes it was bound by, and the newest candidate share of each role.
#[derive(Debug)]
pub(super) struct AwaitShares {
    nk: Nk,
    verifier_quote: Option<BoundQuote>,
    tenant_quote: Option<BoundQuote>,
    v: Option<(SealingId, ShareV)>,
    u: Option<(SealingId, TenantShare)>,
}

/// A quote that bound NK for one role.
#[derive(Clone, Copy, Debug)]
struct BoundQuote {
    attest_digest: [u8; 32],
    nonce: [u8; 32],
}

/// What the tenant's share brings.
#[derive(Debug)]
struct TenantShare {
    u: ShareU,
    manifest_digest: [u8; 32],
    nonce: [u8; 32],
}

#[derive(Debug)]
pub(super) struct AwaitManifest {
    nk: Nk,
    sealing_id: SealingId,
    v: ShareV,
    u: TenantShare,
}

pub(super) struct AwaitPayload {
    manifest: Manifest,
    receiver: PayloadReceiver,
    confirm_key: ConfirmKey,
    nk_digest: [u8; 32],
    nonce: [u8; 32],
    fetch: Fetch,
}

impl core::fmt::Debug for AwaitPayload {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "AwaitPayload({} of {} bytes)", self.fetch.received(), self.manifest.ciphertext_len)
    }
}

impl Provision {
    pub(super) fn begin(link: &mut Link<'_>) -> Self {
        match (link.facts.wants, link.facts.unconfirmed) {
            (_, Some(unconfirmed)) => Self::Unconfirmed(unconfirmed),
            (Wants::Attest, None) => Self::Idle,
            (Wants::Payload, None) => {
                link.outputs.push_back(Output::Seed);
                Self::AwaitSeed
            }
        }
    }

    /// Whether a bootstrap challenge makes sense.
    pub(super) const fn takes_shares(&self) -> bool {
        matches!(self, Self::AwaitSeed | Self::AwaitShares(_))
    }

    pub(super) fn nk_public(&self) -> Option<[u8; 65]> {
        match self {
            Self::AwaitShares(state) => Some(*state.nk.public()),
            _ => None,
        }
    }

    pub(super) fn fetch_mut(&mut self) -> Option<&mut Fetch> {
        match self {
            Self::AwaitPayload(state) => Some(&mut state.fetch),
            _ => None,
        }
    }

    pub(super) fn nk_made(&mut self, nk: Nk) -> Result<(), Error> {
        let Self::AwaitSeed = self else { return Err(self.out_of_order()) };
        *self =
            Self::AwaitShares(Box::new(AwaitShares { nk, verifier_quote: None, tenant_quote: None, v: None, u: None }));
        Ok(())
    }

    /// A bootstrap quote was made for `role`; a share may rest on it.
    pub(super) fn quoted(&mut self, role: Role, attest_digest: [u8; 32], nonce: [u8; 32]) {
        if let Self::AwaitShares(state) = self {
            let quote = Some(BoundQuote { attest_digest, nonce });
            match role {
                Role::Verifier => state.verifier_quote = quote,
                _ => state.tenant_quote = quote,
            }
        }
    }

    /// A challenge was answered: the connection is proven as far as we can do it.
    pub(super) fn challenge_answered(&mut self, link: &mut Link<'_>) -> Result<(), Error> {
        if let Self::Unconfirmed(unconfirmed) = *self {
            *self = send_confirm(link, unconfirmed)?;
        }
        Ok(())
    }

    #[inline(never)]
    pub(super) fn share(&mut self, link: &mut Link<'_>, token: Token, share: &Share) -> Result<(), Error> {
        let Self::AwaitShares(state) = self else {
            let message = OutMessage::diagnostic(Code::CONFLICT, "no share is wanted now");
            return Ok(link.exchange.respond(token, &message)?);
        };
        if let Err(why) = state.take(link, share) {
            link.note(Note::ShareRefused { role: share.role, why });
            return Ok(link.exchange.respond(token, &OutMessage::diagnostic(Code::UNPROCESSABLE_ENTITY, why))?);
        }
        link.exchange.respond(token, &OutMessage::new(Code::CHANGED))?;
        link.note(Note::Step(super::Step {
            name: RouteName::Share,
            peer: role_name(share.role),
            outbound: false,
            begins: false,
        }));
        match (&state.v, &state.u) {
            (Some((v, _)), Some((u, _))) if v != u => {
                let why = "verifier and tenant sent shares of two different sealings";
                link.note(Note::ShareRefused { role: share.role, why });
                link.report(share.sealing_id, ReportKind::ShareRefused, 0, why.as_bytes())
            }
            (Some(_), Some(_)) => {
                *self = match mem::replace(self, Self::Idle) {
                    Self::AwaitShares(state) => state.ask_manifest(link)?,
                    other => other,
                };
                Ok(())
            }
            _ => Ok(()),
        }
    }

    #[inline(never)]
    pub(super) fn manifest(&mut self, link: &mut Link<'_>, signed: &SignedManifest) -> Result<(), Error> {
        let Self::AwaitManifest(_) = self else { return Err(self.out_of_order()) };
        if let Self::AwaitManifest(state) = mem::replace(self, Self::Idle) {
            *self = state.judge(link, signed)?;
        }
        Ok(())
    }

    /// The next part of the payload, as the fetch accepted it.
    #[inline(never)]
    pub(super) fn part(&mut self, link: &mut Link<'_>, bytes: &[u8], last: bool) -> Result<(), Error> {
        let Self::AwaitPayload(state) = self else { return Err(self.out_of_order()) };
        if let Err(why) = state.take(link, bytes) {
            return self.part_refused(link, &why);
        }
        if !last {
            return state.ask(link);
        }
        let state = match mem::replace(self, Self::Idle) {
            Self::AwaitPayload(state) => *state,
            _ => return Err(Error::OutOfOrder { state: "AwaitPayload" }),
        };
        let unconfirmed = state.unconfirmed(link);
        if let Err(error) = state.receiver.finish() {
            return self.give_up(link, unconfirmed.sealing_id, ReportKind::PayloadRefused, &error.to_string());
        }
        link.outputs.push_back(Output::Payload(PayloadWork::Place(unconfirmed)));
        *self = Self::AwaitPlaced(unconfirmed);
        Ok(())
    }

    pub(super) fn part_refused(&mut self, link: &mut Link<'_>, why: &str) -> Result<(), Error> {
        let Self::AwaitPayload(state) = self else { return Err(self.out_of_order()) };
        let sealing_id = state.manifest.sealing_id;
        self.give_up(link, sealing_id, ReportKind::PayloadRefused, why)
    }

    /// The payload is in place: only now does the phase PCR say so.
    pub(super) fn placed(&mut self, link: &mut Link<'_>) -> Result<(), Error> {
        let Self::AwaitPlaced(unconfirmed) = *self else { return Err(self.out_of_order()) };
        link.finished(RouteName::Payload, true);
        link.outputs.push_back(Output::Payload(PayloadWork::ExtendDelivered));
        *self = Self::AwaitExtended(unconfirmed);
        Ok(())
    }

    /// The phase PCR says that the payload is in place: only now does the tenant hear of it.
    pub(super) fn extended(&mut self, link: &mut Link<'_>) -> Result<(), Error> {
        let Self::AwaitExtended(unconfirmed) = *self else { return Err(self.out_of_order()) };
        *self = send_confirm(link, unconfirmed)?;
        Ok(())
    }

    pub(super) fn payload_failed(&mut self, link: &mut Link<'_>, kind: ReportKind, why: &str) -> Result<(), Error> {
        let sealing_id = match self {
            Self::AwaitPayload(state) => state.manifest.sealing_id,
            Self::AwaitPlaced(unconfirmed) | Self::AwaitExtended(unconfirmed) => unconfirmed.sealing_id,
            // The work of a payload that was given up meanwhile.
            _ => return Ok(()),
        };
        self.give_up(link, sealing_id, kind, why)
    }

    pub(super) fn confirmed(&mut self, link: &mut Link<'_>) -> Result<(), Error> {
        let Self::AwaitConfirmed(unconfirmed) = *self else { return Err(self.out_of_order()) };
        link.outputs.push_back(Output::Confirmed(unconfirmed.sealing_id));
        if unconfirmed.autorun {
            link.outputs.push_back(Output::Autorun);
        }
        *self = Self::Delivered(unconfirmed.sealing_id);
        Ok(())
    }

    pub(super) fn autorun_ended(&mut self, link: &mut Link<'_>, code: i32, text: &[u8]) -> Result<(), Error> {
        match *self {
            Self::Delivered(sealing_id) => link.report(sealing_id, ReportKind::Autorun, code, text),
            _ => Ok(()),
        }
    }

    /// The control plane said no to one of our requests.
    pub(super) fn refused(&mut self, link: &mut Link<'_>, route: RouteName) -> Result<(), Error> {
        match (route, &*self) {
            (RouteName::Confirm, Self::AwaitConfirmed(unconfirmed)) => {
                link.outputs.push_back(Output::ConfirmRefused(unconfirmed.sealing_id));
                *self = Self::Idle;
            }
            (RouteName::Manifest, _) | (RouteName::Payload, _) => {
                link.outputs.push_back(Output::Payload(PayloadWork::Abandon));
                link.outputs.push_back(Output::Close(CloseReason::Refused(route)));
                *self = Self::Idle;
            }
            _ => {} // a report was not wanted: nothing rests on it
        }
        Ok(())
    }

    fn give_up(
        &mut self,
        link: &mut Link<'_>,
        sealing_id: SealingId,
        kind: ReportKind,
        why: &str,
    ) -> Result<(), Error> {
        *self = Self::Idle;
        link.note(Note::PayloadRefused { why: why.into() });
        link.outputs.push_back(Output::Payload(PayloadWork::Abandon));
        link.report(sealing_id, kind, 0, why.as_bytes())?;
        link.outputs.push_back(Output::Close(CloseReason::PayloadFailed));
        Ok(())
    }

    const fn out_of_order(&self) -> Error {
        let state = match self {
            Self::Idle => "Idle",
            Self::Unconfirmed(_) => "Unconfirmed",
            Self::AwaitSeed => "AwaitSeed",
            Self::AwaitShares(_) => "AwaitShares",
            Self::AwaitManifest(_) => "AwaitManifest",
            Self::AwaitPayload(_) => "AwaitPayload",
            Self::AwaitPlaced(_) => "AwaitPlaced",
            Self::AwaitExtended(_) => "AwaitExtended",
            Self::AwaitConfirmed(_) => "AwaitConfirmed",
            Self::Delivered(_) => "Delivered",
        };
        Error::OutOfOrder { state }
    }
}

impl AwaitShares {
    /// Opens a share and makes it its role's candidate; a share that does not open leaves everything as it was.
    #[inline(never)]
    fn take(&mut self, link: &Link<'_>, share: &Share) -> Result<(), &'static str> {
        let quote = match share.role {
            Role::Verifier => self.verifier_quote,
            Role::Tenant => self.tenant_quote,
            Role::Registrar => return Err("the registrar has no share"),
        };
        let quote = quote.ok_or("no quote was made for this role on this connection")?;
        let release = share::Release {
            node_id: link.facts.node_id,
            sealing_id: share.sealing_id,
            attest_digest: quote.attest_digest,
        };
        let ciphertext = heapless::Vec::from_slice(&share.ciphertext).map_err(|_| "the share is too long")?;
        let sealed = SealedShare { enc: share.enc.0, ciphertext };
        let refused = "the share does not open under this boot's NK for this node, sealing and quote";
        match share.role {
            Role::Verifier => {
                let v = share::open_v(&release, &self.nk, &sealed).map_err(|_| refused)?;
                self.v = Some((share.sealing_id, v));
            }
            _ => {
                let (u, manifest_digest) = share::open_u(&release, &self.nk, &sealed).map_err(|_| refused)?;
                self.u = Some((share.sealing_id, TenantShare { u, manifest_digest, nonce: quote.nonce }));
            }
        }
        Ok(())
    }

    fn ask_manifest(self, link: &mut Link<'_>) -> Result<Provision, Error> {
        let Self { nk, v: Some((sealing_id, v)), u: Some((_, u)), .. } = self else {
            return Err(Error::OutOfOrder { state: "AwaitShares" });
        };
        link.ask(Route::Manifest(sealing_id), None, &[])?;
        Ok(Provision::AwaitManifest(Box::new(AwaitManifest { nk, sealing_id, v, u })))
    }
}

impl AwaitManifest {
    /// Everything that can be known before a byte of the payload is decrypted. NK and K_b end here, whatever comes of it.
    fn judge(self, link: &mut Link<'_>, signed: &SignedManifest) -> Result<Provision, Error> {
        let verified = match self.check(link, signed) {
            Ok(verified) => verified,
            Err(why) => {
                link.note(Note::PayloadRefused { why: why.into() });
                link.report(self.sealing_id, ReportKind::ManifestRefused, 0, why.as_bytes())?;
                link.outputs.push_back(Output::Close(CloseReason::PayloadFailed));
                return Ok(Provision::Idle);
            }
        };
        let Self { nk, sealing_id, v, u } = self;
        let manifest = verified.manifest().clone();
        let Ok(keys) = u.u.combine(&v).into_keys(manifest.subject, sealing_id, &manifest.key_tag) else {
            link.note(Note::TagMismatch);
            let why = "the two shares do not make the key that this sealing's tag belongs to";
            link.report(sealing_id, ReportKind::TagMismatch, 0, why.as_bytes())?;
            link.outputs.push_back(Output::Seed);
            return Ok(Provision::AwaitSeed);
        };
        link.outputs
            .push_back(Output::Payload(PayloadWork::Begin { sealing_id, plaintext_len: manifest.plaintext_len }));
        let szx = link.exchange.fetch_room().szx().map_err(|_| Error::OutOfOrder { state: "AwaitManifest" })?;
        let limit = usize::try_from(manifest.ciphertext_len).unwrap_or(usize::MAX);
        let mut state = Box::new(AwaitPayload {
            receiver: PayloadReceiver::new(&keys.payload_key, &verified),
            confirm_key: keys.confirm_key,
            nk_digest: nk.digest(),
            nonce: u.nonce,
            fetch: Fetch::new(limit, szx),
            manifest,
        });
        state.ask(link)?;
        Ok(Provision::AwaitPayload(state))
    }

    #[inline(never)]
    fn check(&self, link: &Link<'_>, signed: &SignedManifest) -> Result<VerifiedManifest, &'static str> {
        let facts = link.facts;
        if manifest_digest(&signed.manifest) != self.u.manifest_digest {
            return Err("the manifest is not the one the tenant announced with its share");
        }
        if facts.tenant_keys.is_empty() {
            return Err("no tenant key is pinned on this node, so no payload is taken");
        }
        let verified = VerifiedManifest::verify(&signed.manifest, &signed.signature.0, &facts.tenant_keys)
            .map_err(|_| "the manifest is not signed by a tenant key pinned on this node")?;
        if !verified.is_for(facts.node_id, facts.join.as_ref().map(|token| token.id())) {
            return Err("the manifest is for another node");
        }
        let manifest = verified.manifest();
        if manifest.sealing_id != self.sealing_id {
            return Err("the manifest is of another sealing than the shares");
        }
        if manifest.plaintext_len > limits::MAX_PAYLOAD_LEN {
            return Err("the payload is larger than 64 MiB");
        }
        if link.unix_s.is_some_and(|now| verified.is_expired(now)) {
            return Err("the manifest's not_after has passed");
        }
        Ok(verified)
    }
}

impl AwaitPayload {
    fn ask(&mut self, link: &mut Link<'_>) -> Result<(), Error> {
        let block = self.fetch.ask().map_err(|_| Error::OutOfOrder { state: "AwaitPayload" })?;
        link.ask(Route::Payload(self.manifest.sealing_id), Some(block), &[])
    }

    /// Decrypts what is complete; the digest is checked with the last part, before anything is put in place.
    fn take(&mut self, link: &mut Link<'_>, bytes: &[u8]) -> Result<(), String> {
        let outputs = &mut link.outputs;
        self.receiver
            .push(bytes, |plaintext| {
                outputs.push_back(Output::Payload(PayloadWork::Write(mem::take(plaintext))));
                Ok::<_, Infallible>(())
            })
            .map_err(|error| match error {
                ReceiveError::Payload(why) => why.to_string(),
                ReceiveError::Sink(never) => match never {},
            })
    }

    fn unconfirmed(&self, link: &Link<'_>) -> Unconfirmed {
        let Manifest { sealing_id, autorun, .. } = self.manifest;
        let proof = bind::confirm_mac(&self.confirm_key, link.facts.node_id, sealing_id, &self.nk_digest, &self.nonce);
        Unconfirmed { sealing_id, proof, autorun }
    }
}

fn send_confirm(link: &mut Link<'_>, unconfirmed: Unconfirmed) -> Result<Provision, Error> {
    let Unconfirmed { sealing_id, proof, .. } = unconfirmed;
    link.post(Route::Confirm, &Confirm { sealing_id, proof: Array(proof) })?;
    Ok(Provision::AwaitConfirmed(unconfirmed))
}
