//! The verifier's statements beyond attestation: the nodes that the tenant added.

use async_trait::async_trait;
use protocol::{
    bytes::Array,
    id::{NodeId, SealingId},
};

use super::{Db, Durability, Row, Verifier, codec, retry_races, values};
use crate::store::{
    AkName, Conflict, StoreError, VerifierStore,
    verifier::{Pins, VerifierNode},
};

#[async_trait]
impl VerifierStore for Verifier {
    async fn put_node(&self, node: &VerifierNode) -> Result<(), StoreError> {
        retry_races!(try_put_node(&self.0, node).await)
    }

    async fn node(&self, node_id: NodeId) -> Result<Option<VerifierNode>, StoreError> {
        let sql = format!("{SELECT_NODE} WHERE node_id = $1");
        self.0.row(&sql, values![&node_id.0]).await?.as_ref().map(node_row).transpose()
    }

    async fn node_by_name(&self, name: &str) -> Result<Option<VerifierNode>, StoreError> {
        let sql = format!("{SELECT_NODE} WHERE name = $1");
        self.0.row(&sql, values![name]).await?.as_ref().map(node_row).transpose()
    }

    async fn agree(&self, node_id: NodeId, ak_name: AkName, sealing_id: SealingId) -> Result<(), StoreError> {
        let sql = "UPDATE node SET agreed_ak = $2, agreed_sealing = $3 WHERE node_id = $1";
        match self.0.write(Durability::Now, sql, values![&node_id.0, &ak_name.0, &sealing_id.0]).await? {
            0 => Err(StoreError::NotFound("node")),
            _ => Ok(()),
        }
    }

    async fn remove_node(&self, name: &str) -> Result<(), StoreError> {
        self.0.write(Durability::Now, "DELETE FROM node WHERE name = $1", values![name]).await?;
        Ok(())
    }
}

async fn try_put_node(db: &Db, node: &VerifierNode) -> Result<(), StoreError> {
    let node_id = node.node_id.as_ref().map(NodeId::as_bytes);
    let mut tx = db.begin(Durability::Now).await?;
    let taken = "SELECT 1 FROM node WHERE node_id = $1 AND name <> $2";
    if tx.row(taken, values![node_id, &node.name]).await?.is_some() {
        return Err(StoreError::Conflict(Conflict::NodeIdTaken));
    }
    // An agreement is about one node id and one sealing; it may have come before the sealing that it is about.
    let keeps = "node.node_id IS NOT DISTINCT FROM excluded.node_id AND (
            node.sealing_id IS NOT DISTINCT FROM excluded.sealing_id OR node.agreed_sealing = excluded.sealing_id)";
    let sql = format!(
        "INSERT INTO node (name, node_id, subject, policy, interval_ms, pins, sealing_id, v_sealed, sealing_subject,
            stopped)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        ON CONFLICT (name) DO UPDATE SET node_id = excluded.node_id, subject = excluded.subject,
            policy = excluded.policy, interval_ms = excluded.interval_ms, pins = excluded.pins,
            sealing_id = excluded.sealing_id, v_sealed = excluded.v_sealed,
            sealing_subject = excluded.sealing_subject, stopped = excluded.stopped,
            agreed_ak = CASE WHEN {keeps} THEN node.agreed_ak END,
            agreed_sealing = CASE WHEN {keeps} THEN node.agreed_sealing END"
    );
    let (subject, pins) = (node.subject.to_bytes(), codec::to_json(&node.pins)?);
    let sealing_subject = node.sealing_subject.map(|subject| subject.to_bytes());
    let values = values![
        &node.name,
        node_id,
        &subject,
        node.policy.as_ref().map(|policy| &policy.0),
        node.interval_ms,
        &pins,
        node.sealing.as_ref().map(|(sealing_id, _)| sealing_id.as_bytes()),
        node.sealing.as_ref().map(|(_, v_sealed)| v_sealed.as_slice()),
        sealing_subject.as_ref(),
        node.stopped,
    ];
    tx.write(&sql, values).await?;
    tx.commit().await
}

const SELECT_NODE: &str = "SELECT subject, node_id, name, policy, interval_ms, pins, sealing_id, v_sealed,
    sealing_subject, stopped, agreed_ak, agreed_sealing FROM node";

fn node_row(row: &Row) -> Result<VerifierNode, StoreError> {
    let sealing = match (row.opt_array(6)?, row.get::<Option<Vec<u8>>>(7)?) {
        (Some(sealing_id), Some(v_sealed)) => Some((SealingId(sealing_id), v_sealed)),
        (None, None) => None,
        _ => return Err(StoreError::Corrupt("half a sealing")),
    };
    let agreed = match (row.opt_array(10)?, row.opt_array(11)?) {
        (Some(ak_name), Some(sealing_id)) => Some((Array(ak_name), SealingId(sealing_id))),
        (None, None) => None,
        _ => return Err(StoreError::Corrupt("half an agreement")),
    };
    Ok(VerifierNode {
        subject: codec::subject(&row.array(0)?)?,
        node_id: row.opt_array(1)?.map(NodeId),
        name: row.get(2)?,
        policy: row.opt_array(3)?.map(Array),
        interval_ms: row.get(4)?,
        pins: codec::from_json::<Pins>(&row.get::<String>(5)?, "pins")?,
        sealing,
        sealing_subject: row.opt_array(8)?.map(|bytes| codec::subject(&bytes)).transpose()?,
        stopped: row.get(9)?,
        agreed,
    })
}
