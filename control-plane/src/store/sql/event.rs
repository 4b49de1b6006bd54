//! The history for people, and what else every role's store has.

use async_trait::async_trait;
use protocol::id::NodeId;

use super::{Durability, OnDb, Tx, values};
use crate::store::{Event, EventFilter, EventStore, NewEvent, StoreError, UnixMs};

#[async_trait]
impl<T: OnDb> EventStore for T {
    async fn migrate(&self) -> Result<(), StoreError> {
        self.db().migrate().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.db().now_ms().await.map(|_| ())
    }

    async fn close(&self) {
        self.db().close().await;
    }

    async fn now_ms(&self) -> Result<UnixMs, StoreError> {
        self.db().now_ms().await
    }

    async fn add_event(&self, event: &NewEvent) -> Result<(), StoreError> {
        let mut tx = self.db().begin(Durability::Soon).await?;
        insert_event(&mut tx, event).await?;
        tx.commit().await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Vec<Event>, StoreError> {
        let node_id = filter.node_id.as_ref().map(NodeId::as_bytes);
        let selection = "SELECT id, at_ms, node_id, name, kind, detail FROM event
            WHERE (($1 IS NULL AND $2 IS NULL) OR node_id = $1 OR name = $2) AND id > $3";
        // Newest first where the newest are wanted: they are turned around below.
        let order = if filter.after_id.is_some() { "ASC" } else { "DESC" };
        let sql = format!("{selection} ORDER BY id {order} LIMIT $4");
        let after = filter.after_id.unwrap_or(i64::MIN);
        let rows = self.db().rows(&sql, values![node_id, filter.name.as_deref(), after, filter.limit]).await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            events.push(Event {
                id: row.get(0)?,
                at_ms: row.get(1)?,
                role: self.db().role.name().to_owned(),
                node_id: row.opt_array(2)?.map(NodeId),
                name: row.get(3)?,
                kind: row.get(4)?,
                detail: row.get(5)?,
            });
        }
        if filter.after_id.is_none() {
            events.reverse();
        }
        Ok(events)
    }
}

/// Writes an event as part of a transaction.
pub(super) async fn insert_event(tx: &mut Tx, event: &NewEvent) -> Result<(), StoreError> {
    let node_id = event.node_id.as_ref().map(NodeId::as_bytes);
    let insert = "INSERT INTO event (at_ms, node_id, name, kind, detail)
        VALUES ((SELECT now_ms FROM clock), $1, $2, $3, $4) RETURNING id";
    let detail = kept_detail(&event.detail);
    let values = values![node_id, event.name.as_deref(), event.kind, &detail];
    let id: i64 = tx.returning(insert, values).await?.get(0)?;
    if event.name.is_none() {
        prune_stranger(tx, event.node_id).await?;
    }
    if id % PRUNE_EVERY == 0 {
        prune(tx).await?;
    }
    Ok(())
}

/// A detail as it is kept: no NUL, which Postgres refuses in texts, and cut between characters.
fn kept_detail(detail: &str) -> String {
    let mut kept = detail.replace('\0', "\u{fffd}");
    kept.truncate(kept.floor_char_boundary(MAX_DETAIL_LEN));
    kept
}

/// Somebody without a name who knocks for ever pushes out his own history, nobody else's.
async fn prune_stranger(tx: &mut Tx, node_id: Option<NodeId>) -> Result<(), StoreError> {
    let node_id = node_id.as_ref().map(NodeId::as_bytes);
    let sql = "DELETE FROM event WHERE name IS NULL AND node_id IS NOT DISTINCT FROM $1 AND id <= (
            SELECT id FROM event WHERE name IS NULL AND node_id IS NOT DISTINCT FROM $1
            ORDER BY id DESC LIMIT 1 OFFSET $2)";
    tx.write(sql, values![node_id, MAX_STRANGER_EVENTS]).await?;
    Ok(())
}

/// Makes room for the next [`PRUNE_EVERY`] events: strangers' go first, then the oldest.
async fn prune(tx: &mut Tx) -> Result<(), StoreError> {
    let count: i64 = tx.returning("SELECT COUNT(*) FROM event", &[]).await?.get(0)?;
    let excess = count - (MAX_EVENTS - PRUNE_EVERY);
    if excess > 0 {
        let sql = "DELETE FROM event WHERE id IN (
                SELECT id FROM event ORDER BY CASE WHEN name IS NULL THEN 0 ELSE 1 END, id LIMIT $1)";
        tx.write(sql, values![excess]).await?;
    }
    Ok(())
}

/// Events kept per role: weeks of a quiet fleet, and few megabytes.
const MAX_EVENTS: i64 = 10_000;
/// Counting ten thousand rows at every event would be dear.
const PRUNE_EVERY: i64 = 64;
/// Events kept per node id that has no name.
const MAX_STRANGER_EVENTS: i64 = 200;
/// Bytes of detail kept.
const MAX_DETAIL_LEN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_cut_between_characters_and_keeps_no_nul() {
        assert_eq!(kept_detail("a\0b"), "a\u{fffd}b");
        let long = format!("{}é", "x".repeat(MAX_DETAIL_LEN - 1));
        assert_eq!(kept_detail(&long), "x".repeat(MAX_DETAIL_LEN - 1));
    }
}
