//! How a role calls another: one trait per role called, and every method by name.
//!
//! In one process the roles themselves implement the traits; a remote role will implement them over the REST API. A link
//! carries no secret in clear: V goes through here only as ciphertext to the verifier.

use async_trait::async_trait;
use protocol::id::{NodeId, SealingId};

use crate::store::{
    AkName, StoreError,
    registrar::{Binding, JoinAdmission},
    verifier::VerifierNode,
};

/// Every method of the links: what diagrams and logs name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "documented at the methods")]
pub enum LinkMethod {
    Binding,
    AdmitNode,
    AdmitJoin,
    Forget,
    Add,
    Remove,
    Agree,
    Delivered,
    Policy,
}

impl LinkMethod {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Binding,
        Self::AdmitNode,
        Self::AdmitJoin,
        Self::Forget,
        Self::Add,
        Self::Remove,
        Self::Agree,
        Self::Delivered,
        Self::Policy,
    ];

    /// The method's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binding => "binding",
            Self::AdmitNode => "admit_node",
            Self::AdmitJoin => "admit_join",
            Self::Forget => "forget",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Agree => "agree",
            Self::Delivered => "delivered",
            Self::Policy => "policy",
        }
    }
}

/// A call over a link failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum LinkError {
    #[error("the other role's store failed")]
    Store(#[from] StoreError),
}

/// What verifier and tenant ask of the registrar.
#[async_trait]
pub trait RegistrarLink: Send + Sync {
    /// Which AK is bound to a node, and by what. The tenant does not take its word for it.
    async fn binding(&self, node_id: NodeId) -> Result<Option<Binding>, LinkError>;
    /// This node id is ours, under this name.
    async fn admit_node(&self, node_id: NodeId, name: &str) -> Result<(), LinkError>;
    /// Whoever proves this join token is ours.
    async fn admit_join(&self, join: &JoinAdmission) -> Result<(), LinkError>;
    /// The node of this name is not ours any more.
    async fn forget(&self, node_id: Option<NodeId>, name: &str) -> Result<(), LinkError>;
}

/// What the tenant asks of the verifier.
#[async_trait]
pub trait VerifierLink: Send + Sync {
    /// Step 3: attest this node; its sealed V comes along. Again replaces what was set before.
    async fn add(&self, node: &VerifierNode) -> Result<(), LinkError>;
    /// Attest it no more.
    async fn remove(&self, name: &str) -> Result<(), LinkError>;
    /// Step 4c: the tenant has proven this AK itself and releases U of this sealing.
    async fn agree(&self, node_id: NodeId, ak_name: AkName, sealing_id: SealingId) -> Result<(), LinkError>;
    /// Step 7: the node has confirmed; no second release under this resetCount.
    async fn delivered(&self, node_id: NodeId, sealing_id: SealingId, reset_count: u32) -> Result<(), LinkError>;
    /// A policy that nodes may be set to.
    async fn policy(&self, name: &str, body: &[u8]) -> Result<(), LinkError>;
}

/// Writes the line of a call: who → whom.
pub(crate) fn step(method: LinkMethod, from: &'static str, to: &'static str, node_id: Option<NodeId>) {
    let node = node_id.map(|node_id| node_id.to_string());
    tracing::debug!(step = method.name(), phase = "end", from, to, node, up = 0, down = 0, ms = 0.0);
}
