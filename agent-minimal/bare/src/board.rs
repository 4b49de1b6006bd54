//! The board, as the compiler sees it: bytes come out of it and go into it, and it cannot know which.

use core::hint::black_box;

use agent_minimal::machine::{Facts, PayloadWork, QuoteOrder, Quoted, Unconfirmed};
use alloc::vec;
use alloc::vec::Vec;
use protocol::bytes::{Array, Bytes};
use protocol::crypto::join::JoinToken;
use protocol::crypto::manifest::TenantPublicKey;
use protocol::crypto::nk::Nk;
use protocol::crypto::secret::CredentialSecret;
use protocol::id::{NodeId, SealingId};
use protocol::message::attest::{BootLogState, ImaPart, PcrValue, PcrValueList};
use protocol::message::enrol::{Credential, Wants};
use protocol::message::provision::ReportKind;

fn given<T>(value: T) -> T {
    black_box(value)
}

fn bytes() -> &'static [u8] {
    given(&[])
}

/// What the agent is configured with.
pub(crate) fn facts() -> Facts {
    let unconfirmed =
        Unconfirmed { sealing_id: SealingId(given([0; 16])), proof: given([0; 32]), autorun: given(false) };
    Facts {
        node_id: NodeId(given([0; 32])),
        ek_public: bytes().to_vec(),
        ek_chain: vec![bytes().to_vec()],
        ak_public: bytes().to_vec(),
        ak_name: given([0; 34]),
        server_certificate: given([0; 32]),
        join: JoinToken::from_text(given("")),
        tenant_keys: TenantPublicKey::from_text(given("")).into_iter().collect(),
        autorun: given(false),
        wants: given(Wants::Payload),
        has_boot_log: given(true),
        has_ima_log: given(true),
        unconfirmed: given(None).or(Some(unconfirmed)).filter(|_| given(false)),
    }
}

/// Any clock that does not go back.
pub(crate) fn now_ms() -> u64 {
    given(0)
}

/// The wall clock, where there is one.
pub(crate) fn unix_s() -> Option<u64> {
    given(None)
}

/// Sends through TLS; how much was taken.
pub(crate) fn send(bytes: &[u8]) -> usize {
    given(bytes).len()
}

/// What came through TLS until then.
pub(crate) fn receive(until_ms: Option<u64>) -> Vec<u8> {
    given(until_ms);
    bytes().to_vec()
}

/// A key pair from the random sources of the board and the TPM.
pub(crate) fn nk() -> Nk {
    Nk::from_seeds(&given([0; 32]), &given([0; 32]))
}

/// TPM2_ActivateCredential.
pub(crate) fn activate(credential: &Credential) -> Option<CredentialSecret> {
    given(credential);
    CredentialSecret::from_slice(bytes())
}

/// TPM2_Quote, and the values that it is about.
pub(crate) fn quote(order: &QuoteOrder) -> Option<Quoted> {
    given(order);
    let mut pcrs = PcrValueList::new();
    let value = PcrValue { bank: given(11), index: given(0), digest: Bytes::new(bytes()).ok()? };
    pcrs.push(value).ok()?;
    let mut ima = heapless::Vec::new();
    ima.push(Some(ImaPart { total: given(0), entries: Bytes::new(bytes()).ok()? })).ok()?;
    Some(Quoted {
        attested: bytes().to_vec(),
        signature: bytes().to_vec(),
        pcrs,
        boot_log: Some(BootLogState { digest: Array(given([0; 32])), len: given(0) }),
        ima,
        credential_secret: CredentialSecret::from_slice(bytes()),
    })
}

/// The boot log.
pub(crate) fn log() -> &'static [u8] {
    bytes()
}

/// Work on the payload.
pub(crate) fn store(work: &PayloadWork) -> Result<(), ReportKind> {
    given(work);
    given(Ok(()))
}

/// How what was started has ended.
pub(crate) fn code() -> i32 {
    given(0)
}
