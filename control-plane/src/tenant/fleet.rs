//! The operator's side of the tenant role: nodes added, changed and removed, and the other roles told of it.

use protocol::id::{NodeId, Role, Subject};

use super::Tenant;
use crate::{
    link::LinkError,
    store::{
        StoreError,
        registrar::JoinAdmission,
        tenant::{NewAdmission, NewNode, NodeChange, TenantNode},
        verifier::VerifierNode,
    },
};

impl Tenant {
    /// Adds a node and tells the other roles. A crash in between loses nothing: whoever is behind is told later.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_node(&self, node: NewNode) -> Result<TenantNode, StoreError> {
        let node_id = match &node.admission {
            NewAdmission::Node(node_id) => Some(*node_id),
            NewAdmission::Join(_) => None,
        };
        self.store.add_node(&node).await?;
        self.appraiser.event(node_id, Some(&node.name), "added", "the node was added").await;
        self.told(&node.name).await
    }

    /// Changes a node and tells the other roles.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn change_node(&self, name: &str, change: NodeChange) -> Result<TenantNode, StoreError> {
        let node = self.store.change_node(name, &change).await?;
        let mut changes = Vec::new();
        if let Some(policy) = &change.policy {
            changes.push(format!("policy {policy:?}"));
        }
        match &change.verifier_policy {
            Some(Some(policy)) => changes.push(format!("policy {policy:?} for the verifier")),
            Some(None) => changes.push("one policy for verifier and tenant".into()),
            None => {}
        }
        if let Some(interval_ms) = change.interval_ms {
            changes.push(format!("interval {interval_ms} ms"));
        }
        if let Some(sealing_id) = change.sealing_id {
            changes.push(format!("sealing {sealing_id}, delivered at the next boot"));
        }
        if let Some(stopped) = change.stopped {
            changes.push(if stopped { "stopped" } else { "started" }.into());
        }
        if change.pins.is_some() {
            changes.push("pins".into());
        }
        self.appraiser.event(node.node_id, Some(name), "changed", &changes.join(", ")).await;
        self.told(name).await
    }

    /// Lets a failed or rolled-back node end that by its next good verdict (the tenant's own half of it).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resume(&self, node_id: NodeId, name: &str) -> Result<(), StoreError> {
        self.store.resume(node_id).await?;
        self.appraiser.event(Some(node_id), Some(name), "resumed", "the next good verdict ends the failure").await;
        self.wake(node_id);
        Ok(())
    }

    /// Removes a node everywhere; its history stays.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_node(&self, name: &str) -> Result<(), StoreError> {
        let node = self.store.node_by_name(name).await?.ok_or(StoreError::NotFound("node"))?;
        // Trust goes first: whatever fails after this, no share leaves any more.
        self.verifier.remove(name).await.map_err(store_error)?;
        self.registrar.forget(node.node_id, name).await.map_err(store_error)?;
        if let Some(node_id) = node.node_id {
            self.store.forget_node(node_id).await?;
        }
        self.store.remove_node(name).await?;
        self.appraiser.event(node.node_id, Some(name), "removed", "the node was removed").await;
        if let Some(node_id) = node.node_id {
            for agent in self.registry.all(node_id) {
                agent.close("the node was removed").await;
            }
        }
        Ok(())
    }

    /// Tells the other roles of every node they do not know the newest of; at start.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sync_all(&self) -> Result<(), StoreError> {
        for node in self.store.unsynced_nodes().await? {
            self.sync(&node).await?;
        }
        Ok(())
    }

    async fn told(&self, name: &str) -> Result<TenantNode, StoreError> {
        let node = self.store.node_by_name(name).await?.ok_or(StoreError::NotFound("node"))?;
        self.sync(&node).await?;
        if let Some(node_id) = node.node_id {
            self.wake(node_id);
        }
        Ok(node)
    }

    /// Tells registrar and verifier of a node; again changes nothing there.
    pub(super) async fn sync(&self, node: &TenantNode) -> Result<(), StoreError> {
        match (node.join_id, node.node_id) {
            (Some(join_id), _) => {
                let row = self.store.join(join_id).await?.ok_or(StoreError::Corrupt("join token"))?;
                let admission = JoinAdmission {
                    join_id,
                    name: node.name.clone(),
                    sealed_key: row.join.registrar_key,
                    expires_ms: row.join.expires_ms,
                    used_by: None,
                    revoked: row.revoked,
                };
                self.registrar.admit_join(&admission).await.map_err(store_error)?;
            }
            (None, Some(node_id)) => self.registrar.admit_node(node_id, &node.name).await.map_err(store_error)?,
            (None, None) => return Err(StoreError::Corrupt("node without admission")),
        }
        let policy = node.policy_of_verifier();
        if let Some(policy) = policy {
            let row = self.store.policy(policy).await?.ok_or(StoreError::NotFound("policy"))?;
            self.verifier.policy(&row.name, &row.body).await.map_err(store_error)?;
        }
        let sealing = match node.sealing_id {
            Some(sealing_id) => self.store.sealing(sealing_id).await?,
            None => None,
        };
        let subject = match (node.node_id, node.join_id) {
            (Some(node_id), _) => Subject::Node(node_id),
            (None, Some(join_id)) => Subject::Join(join_id),
            (None, None) => return Err(StoreError::Corrupt("node without admission")),
        };
        let record = VerifierNode {
            subject,
            node_id: node.node_id,
            name: node.name.clone(),
            policy,
            interval_ms: node.interval_ms,
            pins: node.pins.clone(),
            sealing_subject: sealing.as_ref().map(|sealing| sealing.subject),
            sealing: sealing.map(|sealing| (sealing.sealing_id, sealing.v_sealed)),
            stopped: node.stopped,
            agreed: None,
        };
        self.verifier.add(&record).await.map_err(store_error)?;
        self.store.mark_synced(&node.name, node.revision).await
    }

    fn wake(&self, node_id: NodeId) {
        for agent in self.registry.all(node_id) {
            agent.wake(Role::Tenant);
        }
    }
}

fn store_error(LinkError::Store(error): LinkError) -> StoreError {
    error
}
