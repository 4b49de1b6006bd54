//! What the registrar remembers: whom it may bind, and which AK is bound to which EK.

use async_trait::async_trait;
use protocol::id::{JoinId, NodeId};
use serde::{Deserialize, Serialize};

use super::{AkName, EventStore, StoreError, UnixMs};

/// Why the registrar takes an EK for a real TPM's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hardware {
    /// A certificate of a trusted manufacturer; who issued it.
    Certified {
        /// The issuer's name, RFC 4514.
        issuer: String,
    },
    /// The operator named this very node id.
    AllowListed,
    /// Neither: admitted by a join token only.
    Unproven,
}

/// A join token as the registrar knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinAdmission {
    /// Which token.
    pub join_id: JoinId,
    /// For which name.
    pub name: String,
    /// The registrar's HMAC key, HPKE ciphertext to the registrar (`enc ‖ ciphertext`).
    pub sealed_key: Vec<u8>,
    /// When it ends.
    pub expires_ms: UnixMs,
    /// Who used it.
    pub used_by: Option<NodeId>,
    /// An operator ended it.
    pub revoked: bool,
}

/// The node's side of a join, kept for the tenant, who checks its half itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct JoinEvidence {
    /// Which token.
    pub join_id: JoinId,
    /// The HMAC under the tenant's key.
    pub tenant_proof: [u8; 32],
    /// Digest of the server certificate that the HMAC covers.
    pub server_certificate: [u8; 32],
}

/// A proven pair: this AK and this EK live in one TPM.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Binding {
    /// Digest of the EK.
    pub node_id: NodeId,
    /// TPMT_PUBLIC.
    pub ek_public: Vec<u8>,
    /// DER certificates, leaf first; may be empty.
    pub ek_chain: Vec<Vec<u8>>,
    /// TPMT_PUBLIC.
    pub ak_public: Vec<u8>,
    /// Name of the AK.
    pub ak_name: AkName,
    /// Why it is taken for a real TPM.
    pub hardware: Hardware,
    /// How it was admitted, when by token.
    pub join: Option<JoinEvidence>,
    /// When it was bound.
    pub bound_ms: UnixMs,
}

/// A node that proved one TPM to hold its keys, and that nobody has admitted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Quarantined {
    /// Digest of the EK.
    pub node_id: NodeId,
    /// TPMT_PUBLIC.
    pub ek_public: Vec<u8>,
    /// DER certificates, leaf first; may be empty.
    pub ek_chain: Vec<Vec<u8>>,
    /// TPMT_PUBLIC.
    pub ak_public: Vec<u8>,
    /// Name of the AK that it came with last.
    pub ak_name: AkName,
    /// What is known of its TPM; never [`Hardware::AllowListed`].
    pub hardware: Hardware,
    /// Where it came from last.
    pub peer: String,
    /// When it came first.
    pub first_ms: UnixMs,
    /// When it came last.
    pub last_ms: UnixMs,
}

/// The registrar's store.
#[async_trait]
pub trait RegistrarStore: EventStore {
    /// Admits a node id for a name; again changes nothing.
    async fn admit_node(&self, node_id: NodeId, name: &str) -> Result<(), StoreError>;
    /// The name a node id was admitted for.
    async fn admitted_name(&self, node_id: NodeId) -> Result<Option<String>, StoreError>;
    /// Admits whoever proves a join token; the same token again changes nothing.
    async fn admit_join(&self, join: &JoinAdmission) -> Result<(), StoreError>;
    /// Reads a join token's record.
    async fn join(&self, join_id: JoinId) -> Result<Option<JoinAdmission>, StoreError>;
    /// Ends a join token.
    async fn revoke_join(&self, join_id: JoinId) -> Result<(), StoreError>;
    /// The AK bound to a node.
    async fn binding(&self, node_id: NodeId) -> Result<Option<Binding>, StoreError>;
    /// All bindings' node ids whose hex begins with `prefix` (lower case), at most `limit`.
    async fn bound_nodes(&self, prefix: &str, limit: u32) -> Result<Vec<NodeId>, StoreError>;
    /// Bindings by node id, ascending, after one of them, at most `limit`.
    async fn bindings(&self, after: Option<NodeId>, limit: u32) -> Result<Vec<Binding>, StoreError>;
    /// What is now known of the TPM of a bound node, or of one in quarantine; nothing changes where something else than
    /// `from` is on record by now.
    async fn set_hardware(&self, node_id: NodeId, from: &Hardware, to: &Hardware) -> Result<(), StoreError>;
    /// Puts a node into quarantine, or writes down that it came again, with what it showed then; nothing changes for one
    /// that is admitted by its node id. Of more than `max` those
    /// whose hardware is not proven go first, of them those of the network (an IPv4 address, an IPv6 /64) that the most
    /// come from, and of those the ones not seen for longest; `first_ms` and `last_ms` of `node` are not used.
    async fn quarantine(&self, node: &Quarantined, max: u32) -> Result<(), StoreError>;
    /// A node in quarantine.
    async fn quarantined_node(&self, node_id: NodeId) -> Result<Option<Quarantined>, StoreError>;
    /// All nodes in quarantine, the one seen last first, at most `limit`.
    async fn quarantined(&self, limit: u32) -> Result<Vec<Quarantined>, StoreError>;
    /// Takes a node out of quarantine; `false` if it was not there. Admission and binding do it too.
    async fn leave_quarantine(&self, node_id: NodeId) -> Result<bool, StoreError>;
    /// Binds in one transaction: uniqueness both ways, and uses up the join token if one was proven. The same pair again
    /// (by whatever admission) changes nothing and succeeds.
    ///
    /// # Errors
    /// [`Conflict`](super::Conflict): `NodeBoundToOtherAk`, `AkBoundToOtherNode`, `JoinUsed` (by another node),
    /// `JoinEnded`.
    async fn bind(&self, binding: &Binding) -> Result<(), StoreError>;
    /// Forgets admission and binding of a node, and the join tokens made for its name.
    async fn forget(&self, node_id: Option<NodeId>, name: &str) -> Result<(), StoreError>;
}
