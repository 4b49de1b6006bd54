//! What the verifier remembers beyond attestation itself: which nodes it was given, V, and what the tenant agreed to.

use async_trait::async_trait;
use protocol::id::{NodeId, SealingId, Subject};

use super::{AkName, AppraiserStore, PolicyId, StoreError};

/// What decides whose code runs on a node; the phase PCR is computed from it.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Pins {
    /// Tenant public keys, SEC1 uncompressed, as hex in JSON.
    pub tenant_keys: Vec<String>,
    /// Whether the agent may run `autorun`.
    pub autorun: bool,
}

/// A node as the tenant added it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifierNode {
    /// Whom its payload was sealed for.
    pub subject: Subject,
    /// Known from the start, or once a join token was proven.
    pub node_id: Option<NodeId>,
    /// Its name.
    pub name: String,
    /// Judged by this; without one its trust is `none`.
    pub policy: Option<PolicyId>,
    /// Round interval.
    pub interval_ms: i64,
    /// What its agent pins.
    pub pins: Pins,
    /// The sealing whose V is held, and V: HPKE ciphertext to the verifier (`enc ‖ ciphertext`).
    pub sealing: Option<(SealingId, Vec<u8>)>,
    /// The subject `sealing` was made for (it may be older than the node id).
    pub sealing_subject: Option<Subject>,
    /// No rounds, no share.
    pub stopped: bool,
    /// What the tenant agreed to: the AK it proved itself, and the sealing.
    pub agreed: Option<(AkName, SealingId)>,
}

/// The verifier's store.
#[async_trait]
pub trait VerifierStore: AppraiserStore {
    /// Adds a node, or replaces what the tenant set of it before (found by name); `agreed` is kept only while the
    /// sealing stays the same.
    async fn put_node(&self, node: &VerifierNode) -> Result<(), StoreError>;
    /// Finds a node by its id.
    async fn node(&self, node_id: NodeId) -> Result<Option<VerifierNode>, StoreError>;
    /// Finds a node by its name.
    async fn node_by_name(&self, name: &str) -> Result<Option<VerifierNode>, StoreError>;
    /// Records what the tenant agrees to.
    async fn agree(&self, node_id: NodeId, ak_name: AkName, sealing_id: SealingId) -> Result<(), StoreError>;
    /// Removes a node by name.
    async fn remove_node(&self, name: &str) -> Result<(), StoreError>;
}
