//! Which connections there are: at most two unproven ones a node id, and one proven one, the newest.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use protocol::id::NodeId;

use super::Agent;

/// Unproven connections that may claim one node id at a time: the node's own, and one that is about to replace it.
const MAX_UNPROVEN_PER_NODE: usize = 2;

/// All connections of this process by node id.
#[derive(Default)]
pub struct Registry {
    nodes: Mutex<HashMap<NodeId, Entry>>,
}

#[derive(Default)]
struct Entry {
    unproven: Vec<Weak<Agent>>,
    proven: Option<Arc<Agent>>,
}

impl Registry {
    /// Takes a connection that claims a node id; `false` if too many unproven ones claim it already.
    pub fn claim(&self, agent: &Arc<Agent>) -> bool {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = nodes.entry(agent.node_id()).or_default();
        entry.unproven.retain(|agent| agent.upgrade().is_some_and(|agent| !agent.is_gone()));
        if entry.unproven.len() >= MAX_UNPROVEN_PER_NODE {
            return false;
        }
        entry.unproven.push(Arc::downgrade(agent));
        true
    }

    /// A quote verified under the node's AK: the connection is the node's from now on. Gives the one it replaces.
    pub fn prove(&self, agent: &Arc<Agent>) -> Option<Arc<Agent>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = nodes.entry(agent.node_id()).or_default();
        entry.unproven.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(agent)));
        // Two connections may prove themselves in either order; the newer one stays.
        if entry.proven.as_ref().is_some_and(|proven| proven.connection > agent.connection && !proven.is_gone()) {
            return Some(agent.clone());
        }
        _ = agent.proven.send_replace(true);
        entry.proven.replace(agent.clone()).filter(|old| !Arc::ptr_eq(old, agent))
    }

    /// The connection has ended.
    pub fn leave(&self, agent: &Arc<Agent>) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = nodes.get_mut(&agent.node_id()) {
            entry.unproven.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(agent)));
            entry.proven.take_if(|proven| Arc::ptr_eq(proven, agent));
            if entry.unproven.is_empty() && entry.proven.is_none() {
                nodes.remove(&agent.node_id());
            }
        }
    }

    /// The proven connection of a node.
    pub fn proven(&self, node_id: NodeId) -> Option<Arc<Agent>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&node_id)?.proven.clone()
    }

    /// Every connection that is or claims to be a node's.
    pub fn all(&self, node_id: NodeId) -> Vec<Arc<Agent>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = nodes.get(&node_id) else { return Vec::new() };
        entry.unproven.iter().filter_map(Weak::upgrade).chain(entry.proven.clone()).collect()
    }

    /// Every connection.
    pub fn everyone(&self) -> Vec<Arc<Agent>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |entry: &Entry| entry.unproven.iter().filter_map(Weak::upgrade).chain(entry.proven.clone()).collect();
        nodes.values().flat_map(|entry| -> Vec<_> { of(entry) }).collect()
    }

    /// How many nodes have a connection.
    pub fn len(&self) -> usize {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no node has a connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
