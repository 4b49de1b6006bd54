//! What each role remembers: one trait per role over plain types, one implementation on Postgres and one on SQLite.
//!
//! Stores keep facts and enforce what must be atomic or unique; what a fact means is the roles' business. Times are
//! milliseconds since the Unix epoch by the *database's* clock. Shares and join keys arrive here only as HPKE ciphertext.

mod compact;
mod postgres;
pub mod registrar;
mod sql;
mod sqlite;
pub mod tenant;
pub mod verifier;

use std::sync::Arc;

use async_trait::async_trait;
use protocol::id::{NodeId, Role, SealingId};
use serde::{Deserialize, Serialize};

pub use registrar::RegistrarStore;
pub use tenant::TenantStore;
pub use verifier::VerifierStore;

/// Opens the registrar's store; `url` begins with `sqlite:` (a file's path follows) or `postgres:`. Tables are not made:
/// see [`EventStore::migrate`].
///
/// # Errors
/// [`StoreError::Scheme`], [`StoreError::Database`].
pub async fn open_registrar(url: &str) -> Result<Arc<dyn RegistrarStore>, StoreError> {
    Ok(Arc::new(sql::Registrar(open(Role::Registrar, url).await?)))
}

/// Opens the verifier's store; see [`open_registrar`].
pub async fn open_verifier(url: &str) -> Result<Arc<dyn VerifierStore>, StoreError> {
    Ok(Arc::new(sql::Verifier(open(Role::Verifier, url).await?)))
}

/// Opens the tenant's store; see [`open_registrar`].
pub async fn open_tenant(url: &str) -> Result<Arc<dyn TenantStore>, StoreError> {
    Ok(Arc::new(sql::Tenant(open(Role::Tenant, url).await?)))
}

async fn open(role: Role, url: &str) -> Result<sql::Db, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", _)) => sqlite::open(role, url).await,
        Some(("postgres" | "postgresql", _)) => postgres::open(role, url).await,
        _ => Err(StoreError::Scheme),
    }
}

/// Milliseconds since the Unix epoch.
pub type UnixMs = i64;
/// Content address of a policy: SHA-256 of its bytes as uploaded.
pub type PolicyId = protocol::bytes::Array<32>;
/// Name of an AK: 000b and a SHA-256.
pub type AkName = protocol::bytes::Array<34>;

/// Why a store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum StoreError {
    #[error("the database does not answer or refused the statement")]
    Database(#[from] sqlx::Error),
    #[error("the database's schema could not be migrated")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("a store's URL begins with sqlite: or postgres:")]
    Scheme,
    #[error("the database holds a value this program does not understand: {0}")]
    Corrupt(&'static str),
    #[error("{0}")]
    Conflict(Conflict),
    #[error("there is no such {0}")]
    NotFound(&'static str),
    #[error("{needed} bytes are needed where the database is, {free} are free")]
    NoRoom { needed: u64, free: u64 },
}

impl StoreError {
    /// Whether the database has no room left for what was to be written.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            // SQLITE_FULL (sqlite.org/rescode.html); 53100 disk_full (PostgreSQL, Appendix A).
            Self::Database(sqlx::Error::Database(error)) => matches!(error.code().as_deref(), Some("13" | "53100")),
            _ => false,
        }
    }
}

/// A rule of uniqueness or order that a write would have broken. Nothing was changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum Conflict {
    #[error("a node of this name exists")]
    NameTaken,
    #[error("this node id belongs to another node")]
    NodeIdTaken,
    #[error("this node is bound to another AK")]
    NodeBoundToOtherAk,
    #[error("this AK is bound to another node")]
    AkBoundToOtherNode,
    #[error("this join token was used")]
    JoinUsed,
    #[error("this join token has expired or was revoked")]
    JoinEnded,
    #[error("this sealing exists already")]
    SealingExists,
    #[error("this sealing's payload is complete and is not changed any more")]
    SealingComplete,
    #[error("this sealing's chunks are not what its manifest says")]
    SealingIncomplete,
    #[error("this policy is in use by a node")]
    PolicyInUse,
    #[error("this node already confirmed its payload in this boot")]
    AlreadyDelivered,
}

impl Conflict {
    /// The short name that stands in histories and problems.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NameTaken => "name_taken",
            Self::NodeIdTaken => "node_id_taken",
            Self::NodeBoundToOtherAk => "node_bound_to_other_ak",
            Self::AkBoundToOtherNode => "ak_bound_to_other_node",
            Self::JoinUsed => "join_used",
            Self::JoinEnded => "join_ended",
            Self::SealingExists => "sealing_exists",
            Self::SealingComplete => "sealing_complete",
            Self::SealingIncomplete => "sealing_incomplete",
            Self::PolicyInUse => "policy_in_use",
            Self::AlreadyDelivered => "already_delivered",
        }
    }
}

/// A step worth telling a person, in a node's history.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Event {
    /// Ascending within one store.
    pub id: i64,
    /// When.
    pub at_ms: UnixMs,
    /// Which role says it.
    pub role: String,
    /// The node it is about, where one is known (strangers' claims included).
    pub node_id: Option<NodeId>,
    /// The node's name, where it has one.
    pub name: Option<String>,
    /// Short name, the same as in problem+json `type`: `bound`, `not_admitted`, `pcr_mismatch`, ….
    pub kind: String,
    /// One sentence for a person.
    pub detail: String,
}

/// An event to be written; at most 1,024 bytes of detail are kept, and 10,000 events a role.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// See [`Event`].
    pub node_id: Option<NodeId>,
    /// See [`Event`].
    pub name: Option<String>,
    /// See [`Event`].
    pub kind: &'static str,
    /// See [`Event`].
    pub detail: String,
}

/// Which events are wanted; newest last, at most `limit`.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only about this node (by id or by name: either matching suffices).
    pub node_id: Option<NodeId>,
    /// See `node_id`.
    pub name: Option<String>,
    /// Only with a larger id.
    pub after_id: Option<i64>,
    /// At most this many: the newest ones (with `after_id`: the first after it).
    pub limit: u32,
}

/// What every role's store has.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// Brings the schema up to what this program knows; done before, it changes nothing.
    async fn migrate(&self) -> Result<(), StoreError>;
    /// Asks the database for a sign of life; needs the schema.
    async fn ping(&self) -> Result<(), StoreError>;
    /// Ends all connections, after what they are doing; nothing works afterwards.
    async fn close(&self);
    /// The database's clock.
    async fn now_ms(&self) -> Result<UnixMs, StoreError>;
    /// Appends an event.
    async fn add_event(&self, event: &NewEvent) -> Result<(), StoreError>;
    /// Reads events, ascending by id.
    async fn events(&self, filter: &EventFilter) -> Result<Vec<Event>, StoreError>;
}

/// A stored policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyRow {
    /// Content address.
    pub id: PolicyId,
    /// The policy's own name; not unique, the newest of a name wins when it is looked up.
    pub name: String,
    /// As uploaded.
    pub body: Vec<u8>,
    /// When it was first uploaded.
    pub created_ms: UnixMs,
}

/// What a role remembers of a node between rounds; written only by a positive verdict, in its transaction.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Checkpoint {
    /// Boot epoch: TPM resets.
    pub reset_count: u32,
    /// Boot epoch: TPM restarts since the reset.
    pub restart_count: u32,
    /// TPM clock of the last accepted quote, milliseconds.
    pub clock: u64,
    /// TPM firmware version.
    pub firmware_version: u64,
    /// The PCR values accepted: (TPM_ALG_ID, index, digest), ascending.
    #[serde(with = "compact::pcrs")]
    pub pcrs: Vec<(u16, u8, Vec<u8>)>,
    /// SHA-256 of the boot log judged in this epoch.
    #[serde(default, with = "compact::digest")]
    pub boot_log: Option<[u8; 32]>,
    /// IMA entries judged in this epoch.
    pub ima_entries: u64,
    /// PCR 10 after those entries: (TPM_ALG_ID, digest).
    #[serde(with = "compact::banks")]
    pub ima_pcrs: Vec<(u16, Vec<u8>)>,
    /// Signature keys that those entries made known, where the policy learns them: DER SubjectPublicKeyInfo.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "compact::list")]
    pub ima_keys: Vec<Vec<u8>>,
    /// The policy they were judged by.
    #[serde(default, with = "compact::digest")]
    pub policy: Option<[u8; 32]>,
}

/// What a verdict makes of a node's trust.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every check that the policy asks for was done and passed.
    Good,
    /// A check failed.
    Failed,
    /// The TPM's counters went back.
    RolledBack,
    /// Verified, but no policy says what good is.
    Unjudged,
}

/// Stored trust; `stale` is not stored, it is computed when state is read.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// No verdict yet.
    None,
    /// The newest verdict is positive and in time.
    Good,
    /// A verdict was negative; ends by resume and a good verdict.
    Failed,
    /// No verdict in time.
    Stale,
    /// The TPM's counters went back; an operator resolves it.
    RolledBack,
}

/// A verdict as it is kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VerdictRow {
    /// Ascending within one store; 0 when not stored yet.
    pub id: i64,
    /// Whose.
    pub node_id: NodeId,
    /// When the nonce was made: the verdict's age counts from here.
    pub nonce_ms: UnixMs,
    /// How long it is valid, from `nonce_ms`; 0 for a negative one.
    pub valid_ms: i64,
    /// The result.
    pub outcome: Outcome,
    /// `bootstrap` or `attest`.
    pub purpose: String,
    /// The policy it was judged by.
    pub policy: Option<PolicyId>,
    /// Explanation: findings, what was not checked, exceptions used; JSON.
    pub explanation: serde_json::Value,
    /// Order: the connection it came by.
    pub fence: i64,
    /// Order: its number on that connection.
    pub counter: i64,
}

/// What became of a verdict.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// It is the node's newest.
    Applied,
    /// Positive, but a newer one stands, or the node has failed and nobody resumed it: nothing was changed.
    Superseded,
}

/// The attestation state of a node, as read at `now_ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attestation {
    /// The pinned AK, once a quote verified under it: Name and TPMT_PUBLIC.
    pub ak: Option<(AkName, Vec<u8>)>,
    /// Trust with staleness computed: a deadline passed, or further ahead than its full length, is stale.
    pub trust: Trust,
    /// The newest applied verdict.
    pub verdict: Option<VerdictRow>,
    /// Written by the newest positive verdict (or kept as evidence under no policy).
    pub checkpoint: Option<Checkpoint>,
    /// An operator resumed the node: the next good verdict ends `failed` and `rolled_back`.
    pub resumed: bool,
    /// The database's clock at the reading.
    pub now_ms: UnixMs,
}

/// A share about to leave; on record before it does.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Release {
    /// Ascending within one store; 0 when not stored yet.
    pub id: i64,
    /// To whom.
    pub node_id: NodeId,
    /// Of which sealing.
    pub sealing_id: SealingId,
    /// SHA-256 of NK's public point.
    pub nk_digest: [u8; 32],
    /// SHA-256 of the TPMS_ATTEST it rests on.
    pub quote_digest: [u8; 32],
    /// The role's nonce in that quote.
    pub nonce: [u8; 32],
    /// Boot epoch.
    pub reset_count: u32,
    /// Boot epoch.
    pub restart_count: u32,
    /// When.
    pub at_ms: UnixMs,
    /// When the node's confirmation was proven (tenant), or the tenant told of it (verifier).
    pub confirmed_ms: Option<UnixMs>,
}

/// What a node showed in a quote that verified: enough to check and judge it again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EvidenceRow {
    /// Whose.
    pub node_id: NodeId,
    /// When it was shown; the store sets it to now when it is written.
    pub at_ms: UnixMs,
    /// `bootstrap` or `attest`.
    pub purpose: String,
    /// The TPMS_ATTEST as the TPM signed it.
    pub attested: Vec<u8>,
    /// The TPMT_SIGNATURE over it.
    pub signature: Vec<u8>,
    /// What the quote is bound to, as it was computed when the quote was checked.
    pub qualifying_data: [u8; 32],
    /// The AK that signed.
    pub ak_name: AkName,
    /// What was known of the TPM: `certified`, `allow_listed`, `unproven`.
    pub hardware: String,
    /// Every quoted PCR value: (TPM_ALG_ID, index, digest), ascending.
    pub pcrs: Vec<(u16, u8, Vec<u8>)>,
    /// Boot epoch: TPM resets.
    pub reset_count: u32,
    /// Boot epoch: TPM restarts since the reset.
    pub restart_count: u32,
    /// SHA-256 of the boot log; the log is found by it as long as it is kept.
    pub boot_log: Option<[u8; 32]>,
    /// What the node says its kernel's command line is.
    pub command_line: Option<Vec<u8>>,
    /// What userspace measured after the boot log ended.
    pub userspace: Option<Vec<u8>>,
    /// Whether the node says that its kernel keeps an IMA list.
    pub has_ima: bool,
    /// IMA entries that the quoted PCR 10 accounts for; `None` if no part of the list did.
    pub ima_entries: Option<u64>,
}

/// The kept part of a node's IMA list: from its first entry on, without gaps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImaList {
    /// The boot it is of: (resetCount, restartCount).
    pub epoch: (u32, u32),
    /// How many entries.
    pub entries: u64,
    /// Their bytes, as the kernel writes them.
    pub bytes: Vec<u8>,
}

/// What verifier and tenant have in common: both appraise, each by its own policies and memory.
#[async_trait]
pub trait AppraiserStore: EventStore {
    /// Stores a policy; the same bytes again change nothing.
    async fn put_policy(&self, id: PolicyId, name: &str, body: &[u8]) -> Result<(), StoreError>;
    /// Reads a policy by its content address.
    async fn policy(&self, id: PolicyId) -> Result<Option<PolicyRow>, StoreError>;
    /// All policies, oldest first, their `body` left empty: all of them together may be long.
    async fn policies(&self) -> Result<Vec<PolicyRow>, StoreError>;
    /// Keeps a boot log by its SHA-256; the same again changes nothing.
    async fn put_boot_log(&self, digest: [u8; 32], log: &[u8]) -> Result<(), StoreError>;
    /// Reads a boot log.
    async fn boot_log(&self, digest: [u8; 32]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Reads a node's attestation state and the database's clock in one go; `None` if the role never saw the node.
    async fn attestation(&self, node_id: NodeId) -> Result<Option<Attestation>, StoreError>;
    /// Pins an AK to a node after a quote verified under it; the same pair again changes nothing.
    ///
    /// # Errors
    /// [`Conflict::NodeBoundToOtherAk`], [`Conflict::AkBoundToOtherNode`].
    async fn pin_ak(&self, node_id: NodeId, ak_name: AkName, ak_public: &[u8]) -> Result<(), StoreError>;
    /// A new connection becomes the node's: a number larger than any before, which orders its verdicts.
    async fn take_fence(&self, node_id: NodeId) -> Result<i64, StoreError>;
    /// Writes verdict and, when it is positive or unjudged, checkpoint in one transaction.
    ///
    /// A positive verdict is applied only if its (fence, counter) is newer than the stored one, and the node has not
    /// failed or was resumed (which it then ends). A negative one always counts; it clears a pending resume. The history
    /// keeps every negative verdict and every change of outcome; a positive renewal replaces its predecessor. At most
    /// 200 a node are kept.
    async fn write_verdict(&self, verdict: &VerdictRow, checkpoint: Option<&Checkpoint>)
    -> Result<Written, StoreError>;
    /// The history, newest first; of one node or of all.
    async fn verdicts(&self, node_id: Option<NodeId>, limit: u32) -> Result<Vec<VerdictRow>, StoreError>;
    /// Allows the next good verdict to end `failed` or `rolled_back`; forgets the checkpoint of a rolled-back node.
    async fn resume(&self, node_id: NodeId) -> Result<(), StoreError>;
    /// Puts a release on record, durably, and gives its id.
    ///
    /// # Errors
    /// [`Conflict::AlreadyDelivered`] if a release to this node under the same `reset_count` was confirmed.
    async fn add_release(&self, release: &Release) -> Result<i64, StoreError>;
    /// Releases to a node, newest first, at most `limit`.
    async fn releases(&self, node_id: NodeId, limit: u32) -> Result<Vec<Release>, StoreError>;
    /// Marks the releases of one sealing to a node under one `reset_count` as confirmed; again changes nothing.
    async fn confirm_release(&self, node_id: NodeId, sealing_id: SealingId, reset_count: u32)
    -> Result<(), StoreError>;
    /// As [`AppraiserStore::confirm_release`], and with the first time the event: both or neither. Whether it was the first.
    async fn confirm_delivery(
        &self,
        node_id: NodeId,
        sealing_id: SealingId,
        reset_count: u32,
        event: &NewEvent,
    ) -> Result<bool, StoreError>;
    /// Keeps what a node showed in place of what it showed before.
    async fn put_evidence(&self, evidence: &EvidenceRow) -> Result<(), StoreError>;
    /// What a node showed last.
    async fn evidence(&self, node_id: NodeId) -> Result<Option<EvidenceRow>, StoreError>;
    /// Keeps `entries` whole entries of a node's IMA list, `first` being the number of the first of them, in place of
    /// those that were kept from there on; those of another boot than `epoch` (resetCount, restartCount) are dropped.
    ///
    /// A part that would leave a gap, or make the list longer than [`limits::MAX_IMA_LOG_LEN`](protocol::limits::MAX_IMA_LOG_LEN)
    /// bytes, is not kept.
    async fn put_ima_part(
        &self,
        node_id: NodeId,
        first: u64,
        entries: u64,
        bytes: &[u8],
        epoch: (u32, u32),
    ) -> Result<(), StoreError>;
    /// The kept part of a node's IMA list; `None` if nothing is.
    async fn ima_list(&self, node_id: NodeId) -> Result<Option<ImaList>, StoreError>;
    /// Forgets a node: attestation, verdicts, releases, evidence. Events stay.
    async fn forget_node(&self, node_id: NodeId) -> Result<(), StoreError>;
}
