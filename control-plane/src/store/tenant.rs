//! What the tenant role remembers: the fleet by name, sealings and their chunks, join tokens, and the API's tokens.

use async_trait::async_trait;
use protocol::id::{JoinId, NodeId, SealingId, Subject};
use serde::{Deserialize, Serialize};

use super::{AppraiserStore, PolicyId, StoreError, UnixMs, verifier::Pins};

/// A node of the fleet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TenantNode {
    /// Unique, never changed.
    pub name: String,
    /// Given by the operator, or learned by a proven join token.
    pub node_id: Option<NodeId>,
    /// The join token made for it.
    pub join_id: Option<JoinId>,
    /// The policy in force.
    pub policy: Option<PolicyId>,
    /// What the verifier judges by instead.
    pub verifier_policy: Option<PolicyId>,
    /// Round interval.
    pub interval_ms: i64,
    /// What its agent pins.
    pub pins: Pins,
    /// The sealing in force.
    pub sealing_id: Option<SealingId>,
    /// The operator stopped it.
    pub stopped: bool,
    /// Raised by every change; the roles that were told are at `synced`.
    pub revision: i64,
    /// See `revision`.
    pub synced: i64,
    /// When it was added.
    pub created_ms: UnixMs,
}

impl TenantNode {
    /// What the verifier judges by: its own policy if it has one, else the tenant's.
    pub fn policy_of_verifier(&self) -> Option<PolicyId> {
        self.verifier_policy.or(self.policy)
    }
}

/// How a new node will be recognised.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NewAdmission {
    /// By its EK.
    Node(NodeId),
    /// By a join token.
    Join(NewJoin),
}

/// A join token as the operator made it: its keys are sealed to the roles.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewJoin {
    /// Which token.
    pub join_id: JoinId,
    /// HMAC key of the tenant, HPKE ciphertext to the tenant.
    pub tenant_key: Vec<u8>,
    /// HMAC key of the registrar, HPKE ciphertext to the registrar; passed on.
    pub registrar_key: Vec<u8>,
    /// When it ends.
    pub expires_ms: UnixMs,
}

/// A join token on record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinRow {
    /// The token.
    pub join: NewJoin,
    /// For which node.
    pub name: String,
    /// Who used it.
    pub used_by: Option<NodeId>,
    /// An operator ended it.
    pub revoked: bool,
}

/// A node to be added.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewNode {
    /// Unique.
    pub name: String,
    /// How it will be recognised.
    pub admission: NewAdmission,
    /// The policy in force.
    pub policy: Option<PolicyId>,
    /// What the verifier judges by instead.
    pub verifier_policy: Option<PolicyId>,
    /// Round interval.
    pub interval_ms: i64,
    /// What its agent pins.
    pub pins: Pins,
    /// A complete sealing for this subject.
    pub sealing_id: Option<SealingId>,
}

/// What of a node is changed; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeChange {
    /// Another policy.
    pub policy: Option<PolicyId>,
    /// Another policy for the verifier; `Some(None)` has it judge by the tenant's again.
    pub verifier_policy: Option<Option<PolicyId>>,
    /// Another interval.
    pub interval_ms: Option<i64>,
    /// Another payload: takes effect at the node's next boot.
    pub sealing_id: Option<SealingId>,
    /// Stop, or resume.
    pub stopped: Option<bool>,
    /// Other pins.
    pub pins: Option<Pins>,
}

/// A sealing without its chunks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SealingRow {
    /// Which.
    pub sealing_id: SealingId,
    /// For whom.
    pub subject: Subject,
    /// Manifest in its fixed layout.
    pub manifest: Vec<u8>,
    /// ECDSA over it.
    pub signature: [u8; 64],
    /// U, confirm key, key tag and manifest digest: HPKE ciphertext to the tenant (`enc ‖ ciphertext`).
    pub u_sealed: Vec<u8>,
    /// V: HPKE ciphertext to the verifier; kept only to be passed on.
    pub v_sealed: Vec<u8>,
    /// Bytes of ciphertext the manifest announces.
    pub ciphertext_len: u64,
    /// SHA-256 of the ciphertext the manifest announces.
    pub ciphertext_digest: [u8; 32],
    /// All chunks are there and hash to the digest.
    pub complete: bool,
    /// When it was begun.
    pub created_ms: UnixMs,
}

/// What an API token may do; each includes the next.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiRole {
    /// Read.
    Viewer,
    /// Nodes, policies, sealings.
    Operator,
    /// Tokens too.
    Admin,
}

/// An API token, stored as a hash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiTokenRow {
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// First characters, to recognise it by; not secret.
    pub label: String,
    /// What it may do.
    pub role: ApiRole,
    /// When it was made.
    pub created_ms: UnixMs,
    /// When it ends.
    pub expires_ms: Option<UnixMs>,
}

/// The tenant role's store.
#[async_trait]
pub trait TenantStore: AppraiserStore {
    /// Adds a node and its join token in one transaction.
    ///
    /// # Errors
    /// [`Conflict`](super::Conflict): `NameTaken`, `NodeIdTaken`, `SealingIncomplete`.
    async fn add_node(&self, node: &NewNode) -> Result<(), StoreError>;
    /// Finds a node by name.
    async fn node_by_name(&self, name: &str) -> Result<Option<TenantNode>, StoreError>;
    /// Finds a node by id.
    async fn node_by_id(&self, node_id: NodeId) -> Result<Option<TenantNode>, StoreError>;
    /// Nodes by name ascending, after `after`, at most `limit`.
    async fn nodes(&self, after: Option<&str>, limit: u32) -> Result<Vec<TenantNode>, StoreError>;
    /// Nodes whose id's hex begins with `prefix` (lower case), at most `limit`.
    async fn nodes_by_prefix(&self, prefix: &str, limit: u32) -> Result<Vec<TenantNode>, StoreError>;
    /// Nodes of which not every role was told the newest revision.
    async fn unsynced_nodes(&self) -> Result<Vec<TenantNode>, StoreError>;
    /// Every role was told `revision` of a node.
    async fn mark_synced(&self, name: &str, revision: i64) -> Result<(), StoreError>;
    /// Changes a node and raises its revision; gives the node as it is now.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`Conflict::SealingIncomplete`](super::Conflict).
    async fn change_node(&self, name: &str, change: &NodeChange) -> Result<TenantNode, StoreError>;
    /// A join token was proven: uses it up and gives its node the id, in one transaction; again by the same node changes
    /// nothing.
    ///
    /// # Errors
    /// [`Conflict`](super::Conflict): `JoinUsed`, `JoinEnded`, `NodeIdTaken`.
    async fn join_node(&self, join_id: JoinId, node_id: NodeId) -> Result<TenantNode, StoreError>;
    /// Removes a node, its join tokens and its sealings.
    async fn remove_node(&self, name: &str) -> Result<(), StoreError>;

    /// Reads a join token.
    async fn join(&self, join_id: JoinId) -> Result<Option<JoinRow>, StoreError>;
    /// All join tokens, newest first.
    async fn joins(&self) -> Result<Vec<JoinRow>, StoreError>;
    /// Ends a join token.
    async fn revoke_join(&self, join_id: JoinId) -> Result<(), StoreError>;

    /// Begins a sealing; `complete` and `created_ms` are set by the store.
    ///
    /// # Errors
    /// [`Conflict::SealingExists`](super::Conflict) unless it is the same one, not complete yet (an upload taken up
    /// again).
    async fn begin_sealing(&self, sealing: &SealingRow) -> Result<(), StoreError>;
    /// Stores one chunk (64 KiB and 16 bytes but for the last); the same index again replaces it while incomplete.
    async fn put_chunk(&self, sealing_id: SealingId, index: u32, chunk: &[u8]) -> Result<(), StoreError>;
    /// Completes a sealing if its chunks are the announced length and digest.
    ///
    /// # Errors
    /// [`Conflict::SealingIncomplete`](super::Conflict); nothing is changed then.
    async fn finish_sealing(&self, sealing_id: SealingId) -> Result<(), StoreError>;
    /// Reads a sealing.
    async fn sealing(&self, sealing_id: SealingId) -> Result<Option<SealingRow>, StoreError>;
    /// Sealings for a node's subjects, newest first.
    async fn sealings(&self, subjects: &[Subject]) -> Result<Vec<SealingRow>, StoreError>;
    /// Reads one chunk.
    async fn chunk(&self, sealing_id: SealingId, index: u32) -> Result<Option<Vec<u8>>, StoreError>;

    /// Stores an API token.
    async fn add_token(&self, token: &ApiTokenRow) -> Result<(), StoreError>;
    /// Finds a token by hash, unless it has expired by the database's clock.
    async fn token(&self, hash: [u8; 32]) -> Result<Option<ApiTokenRow>, StoreError>;
    /// All tokens, newest first.
    async fn tokens(&self) -> Result<Vec<ApiTokenRow>, StoreError>;
    /// Ends a token by label.
    async fn revoke_token(&self, label: &str) -> Result<(), StoreError>;
}
