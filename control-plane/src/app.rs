//! Handles that the API works with: the three roles, and what takes more than one of them to say.

use std::sync::Arc;

use protocol::{bytes::Array, id::Role};
use serde::{Deserialize, Serialize};

use crate::{
    appraisal::policy::{Policy, PolicyError},
    gateway::Registry,
    link::{LinkError, VerifierLink as _},
    registrar::Registrar,
    store::{PolicyId, StoreError, tenant::NodeChange, tenant::TenantNode},
    tenant::Tenant,
    verifier::Verifier,
};

/// The roles of this process.
pub struct App {
    /// Who is who.
    pub registrar: Arc<Registrar>,
    /// Who is good.
    pub verifier: Arc<Verifier>,
    /// Who is ours.
    pub tenant: Arc<Tenant>,
    /// Who is connected.
    pub registry: Arc<Registry>,
}

/// How far a node has come.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Added, and not seen yet.
    Expected,
    /// Its AK is bound to its EK.
    Bound,
    /// A share of the sealing in force has left in this boot.
    Delivering,
    /// It confirmed the payload of its newest boot.
    Delivered,
    /// The operator stopped it.
    Stopped,
    /// It waits for an operator's approval.
    Quarantined,
}

impl App {
    /// Reads a policy that is to be stored: either role has to be able to use it.
    ///
    /// # Errors
    /// [`PolicyError`]; also if a role uses signed policies only and this one has none of its keys' signatures.
    pub fn read_policy(&self, body: &[u8]) -> Result<Policy, PolicyError> {
        let (verifier, tenant) = (self.verifier.policy_trust(), self.tenant.policy_trust());
        if verifier != tenant {
            Policy::open(body, verifier)?;
        }
        Policy::open(body, tenant)
    }

    /// Stores a policy with both appraising roles.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_policy(&self, policy: &Policy, body: &[u8]) -> Result<PolicyId, StoreError> {
        let id = Array(policy.id());
        self.tenant.store().put_policy(id, policy.name(), body).await?;
        self.verifier.policy(policy.name(), body).await.map_err(|LinkError::Store(error)| error)?;
        Ok(id)
    }

    /// How far a node has come, by what is on record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn phase(&self, node: &TenantNode) -> Result<Phase, StoreError> {
        if node.stopped {
            return Ok(Phase::Stopped);
        }
        let Some(node_id) = node.node_id else { return Ok(Phase::Expected) };
        if self.registrar.store().binding(node_id).await?.is_none() {
            return Ok(Phase::Expected);
        }
        // The newest release of the newest boot: a confirmed one of that boot is the delivery.
        let releases = self.tenant.store().releases(node_id, 16).await?;
        let Some(newest) = releases.first() else { return Ok(Phase::Bound) };
        let delivered =
            releases.iter().any(|release| release.reset_count == newest.reset_count && release.confirmed_ms.is_some());
        Ok(if delivered { Phase::Delivered } else { Phase::Delivering })
    }

    /// Judges all hardware by the roots as they are now, and has whoever is concerned looked at again at once: nodes of
    /// which the registrar thinks otherwise than before, and by the tenant, who judges EKs himself, all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn judge_hardware_anew(&self) -> Result<(), StoreError> {
        let changed = self.registrar.judge_hardware_anew().await?;
        for agent in self.registry.everyone() {
            if changed.contains(&agent.node_id()) {
                agent.wake(Role::Verifier);
            }
            agent.wake(Role::Tenant);
        }
        Ok(())
    }

    /// Starts a stopped node again, and lets a failed one recover by its next good verdict.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resume(&self, node: &TenantNode) -> Result<TenantNode, StoreError> {
        if let Some(node_id) = node.node_id {
            self.verifier.resume(node_id).await?;
            self.tenant.resume(node_id, &node.name).await?;
        }
        if node.stopped {
            let change = NodeChange { stopped: Some(false), ..NodeChange::default() };
            return self.tenant.change_node(&node.name, change).await;
        }
        Ok(node.clone())
    }
}
