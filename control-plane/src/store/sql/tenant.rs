//! The tenant's statements: the fleet by name, join tokens and API tokens. Sealings are in [`sealing`].

mod sealing;

use async_trait::async_trait;
use protocol::{
    bytes::Array,
    id::{JoinId, NodeId, SealingId, Subject},
};

use super::{Db, Durability, Row, Tenant, Tx, codec, retry_races, values};
use crate::store::{
    Conflict, StoreError, TenantStore,
    tenant::{ApiRole, ApiTokenRow, JoinRow, NewAdmission, NewJoin, NewNode, NodeChange, SealingRow, TenantNode},
    verifier::Pins,
};

#[async_trait]
impl TenantStore for Tenant {
    async fn add_node(&self, node: &NewNode) -> Result<(), StoreError> {
        retry_races!(try_add_node(&self.0, node).await)
    }

    async fn node_by_name(&self, name: &str) -> Result<Option<TenantNode>, StoreError> {
        let sql = format!("{SELECT_NODE} WHERE name = $1");
        self.0.row(&sql, values![name]).await?.as_ref().map(node_row).transpose()
    }

    async fn node_by_id(&self, node_id: NodeId) -> Result<Option<TenantNode>, StoreError> {
        let sql = format!("{SELECT_NODE} WHERE node_id = $1");
        self.0.row(&sql, values![&node_id.0]).await?.as_ref().map(node_row).transpose()
    }

    async fn nodes(&self, after: Option<&str>, limit: u32) -> Result<Vec<TenantNode>, StoreError> {
        // No name is empty.
        let sql = format!("{SELECT_NODE} WHERE name > $1 ORDER BY name LIMIT $2");
        self.0.rows(&sql, values![after.unwrap_or(""), limit]).await?.iter().map(node_row).collect()
    }

    async fn nodes_by_prefix(&self, prefix: &str, limit: u32) -> Result<Vec<TenantNode>, StoreError> {
        let Some((low, high)) = codec::hex_range(prefix) else {
            return Ok(Vec::new());
        };
        let sql = format!("{SELECT_NODE} WHERE node_id >= $1 AND node_id <= $2 ORDER BY node_id LIMIT $3");
        self.0.rows(&sql, values![&low, &high, limit]).await?.iter().map(node_row).collect()
    }

    async fn unsynced_nodes(&self) -> Result<Vec<TenantNode>, StoreError> {
        let sql = format!("{SELECT_NODE} WHERE synced < revision ORDER BY name");
        self.0.rows(&sql, &[]).await?.iter().map(node_row).collect()
    }

    async fn mark_synced(&self, name: &str, revision: i64) -> Result<(), StoreError> {
        let sql = "UPDATE node SET synced = $2 WHERE name = $1 AND synced < $2 AND $2 <= revision";
        self.0.write(Durability::Now, sql, values![name, revision]).await?;
        Ok(())
    }

    async fn change_node(&self, name: &str, change: &NodeChange) -> Result<TenantNode, StoreError> {
        retry_races!(try_change_node(&self.0, name, change).await)
    }

    async fn join_node(&self, join_id: JoinId, node_id: NodeId) -> Result<TenantNode, StoreError> {
        retry_races!(try_join_node(&self.0, join_id, node_id).await)
    }

    async fn remove_node(&self, name: &str) -> Result<(), StoreError> {
        retry_races!(try_remove_node(&self.0, name).await)
    }

    async fn join(&self, join_id: JoinId) -> Result<Option<JoinRow>, StoreError> {
        let sql = format!("{SELECT_JOIN} WHERE join_id = $1");
        self.0.row(&sql, values![&join_id.0]).await?.as_ref().map(join_row).transpose()
    }

    async fn joins(&self) -> Result<Vec<JoinRow>, StoreError> {
        let sql = format!("{SELECT_JOIN} ORDER BY seq DESC");
        self.0.rows(&sql, &[]).await?.iter().map(join_row).collect()
    }

    async fn revoke_join(&self, join_id: JoinId) -> Result<(), StoreError> {
        let sql = "UPDATE join_token SET revoked = TRUE WHERE join_id = $1";
        match self.0.write(Durability::Now, sql, values![&join_id.0]).await? {
            0 => Err(StoreError::NotFound("join token")),
            _ => Ok(()),
        }
    }

    async fn begin_sealing(&self, row: &SealingRow) -> Result<(), StoreError> {
        sealing::begin(&self.0, row).await
    }

    async fn put_chunk(&self, sealing_id: SealingId, index: u32, chunk: &[u8]) -> Result<(), StoreError> {
        sealing::put_chunk(&self.0, sealing_id, index, chunk).await
    }

    async fn finish_sealing(&self, sealing_id: SealingId) -> Result<(), StoreError> {
        sealing::finish(&self.0, sealing_id).await
    }

    async fn sealing(&self, sealing_id: SealingId) -> Result<Option<SealingRow>, StoreError> {
        sealing::one(&self.0, sealing_id).await
    }

    async fn sealings(&self, subjects: &[Subject]) -> Result<Vec<SealingRow>, StoreError> {
        sealing::of_subjects(&self.0, subjects).await
    }

    async fn chunk(&self, sealing_id: SealingId, index: u32) -> Result<Option<Vec<u8>>, StoreError> {
        sealing::chunk(&self.0, sealing_id, index).await
    }

    async fn add_token(&self, token: &ApiTokenRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO api_token (hash, label, role, created_ms, expires_ms)
            VALUES ($1, $2, $3, (SELECT now_ms FROM clock), $4) ON CONFLICT (hash) DO NOTHING";
        let values = values![&token.hash, &token.label, role_name(token.role), token.expires_ms];
        self.0.write(Durability::Now, sql, values).await?;
        Ok(())
    }

    async fn token(&self, hash: [u8; 32]) -> Result<Option<ApiTokenRow>, StoreError> {
        let sql = "SELECT hash, label, role, created_ms, expires_ms FROM api_token CROSS JOIN clock
            WHERE hash = $1 AND (expires_ms IS NULL OR expires_ms > now_ms)";
        self.0.row(sql, values![&hash]).await?.as_ref().map(token_row).transpose()
    }

    async fn tokens(&self) -> Result<Vec<ApiTokenRow>, StoreError> {
        let sql = "SELECT hash, label, role, created_ms, expires_ms FROM api_token ORDER BY seq DESC";
        self.0.rows(sql, &[]).await?.iter().map(token_row).collect()
    }

    async fn revoke_token(&self, label: &str) -> Result<(), StoreError> {
        match self.0.write(Durability::Now, "DELETE FROM api_token WHERE label = $1", values![label]).await? {
            0 => Err(StoreError::NotFound("token")),
            _ => Ok(()),
        }
    }
}

async fn try_add_node(db: &Db, node: &NewNode) -> Result<(), StoreError> {
    let (node_id, join) = match &node.admission {
        NewAdmission::Node(node_id) => (Some(node_id), None),
        NewAdmission::Join(join) => (None, Some(join)),
    };
    let join_id = join.map(|join| &join.join_id);
    let mut tx = db.begin(Durability::Now).await?;
    if tx.row("SELECT 1 FROM node WHERE name = $1", values![&node.name]).await?.is_some() {
        return Err(StoreError::Conflict(Conflict::NameTaken));
    }
    if let Some(node_id) = node_id
        && tx.row("SELECT 1 FROM node WHERE node_id = $1", values![&node_id.0]).await?.is_some()
    {
        return Err(StoreError::Conflict(Conflict::NodeIdTaken));
    }
    if let Some(sealing_id) = node.sealing_id {
        require_sealing(&mut tx, sealing_id, node_id, join_id).await?;
    }
    if let Some(join) = join {
        if tx.row("SELECT 1 FROM join_token WHERE join_id = $1", values![&join.join_id.0]).await?.is_some() {
            return Err(StoreError::Conflict(Conflict::JoinUsed));
        }
        let sql = "INSERT INTO join_token (join_id, name, tenant_key, registrar_key, expires_ms)
            VALUES ($1, $2, $3, $4, $5)";
        let values = values![&join.join_id.0, &node.name, &join.tenant_key, &join.registrar_key, join.expires_ms];
        tx.write(sql, values).await?;
    }
    let sql =
        "INSERT INTO node (name, node_id, join_id, policy, interval_ms, pins, sealing_id, verifier_policy, created_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, (SELECT now_ms FROM clock))";
    let pins = codec::to_json(&node.pins)?;
    let values = values![
        &node.name,
        node_id.map(|id| &id.0),
        join_id.map(|id| &id.0),
        node.policy.as_ref().map(|policy| &policy.0),
        node.interval_ms,
        &pins,
        node.sealing_id.as_ref().map(SealingId::as_bytes),
        node.verifier_policy.as_ref().map(|policy| &policy.0),
    ];
    tx.write(sql, values).await?;
    tx.commit().await
}

/// The sealing is complete and made for this node.
async fn require_sealing(
    tx: &mut Tx,
    sealing_id: SealingId,
    node_id: Option<&NodeId>,
    join_id: Option<&JoinId>,
) -> Result<(), StoreError> {
    let row = tx.row("SELECT subject, complete FROM sealing WHERE sealing_id = $1", values![&sealing_id.0]).await?;
    let row = row.ok_or(StoreError::NotFound("sealing"))?;
    let matches = match codec::subject(&row.array(0)?)? {
        Subject::Node(subject) => node_id == Some(&subject),
        Subject::Join(subject) => join_id == Some(&subject),
    };
    if !matches {
        return Err(StoreError::NotFound("sealing for this node"));
    }
    if !row.get::<bool>(1)? {
        return Err(StoreError::Conflict(Conflict::SealingIncomplete));
    }
    Ok(())
}

async fn try_change_node(db: &Db, name: &str, change: &NodeChange) -> Result<TenantNode, StoreError> {
    let mut tx = db.begin(Durability::Now).await?;
    let row = tx.lock(&format!("{SELECT_NODE} WHERE name = $1"), values![name]).await?;
    let node = node_row(&row.ok_or(StoreError::NotFound("node"))?)?;
    if let Some(sealing_id) = change.sealing_id {
        require_sealing(&mut tx, sealing_id, node.node_id.as_ref(), node.join_id.as_ref()).await?;
    }
    let sql = "UPDATE node SET policy = COALESCE($2, policy), interval_ms = COALESCE($3, interval_ms),
            sealing_id = COALESCE($4, sealing_id), stopped = COALESCE($5, stopped), pins = COALESCE($6, pins),
            verifier_policy = CASE WHEN $7 THEN $8 ELSE verifier_policy END,
            revision = revision + 1
        WHERE name = $1";
    let pins = change.pins.as_ref().map(codec::to_json).transpose()?;
    let values = values![
        name,
        change.policy.as_ref().map(|policy| &policy.0),
        change.interval_ms,
        change.sealing_id.as_ref().map(SealingId::as_bytes),
        change.stopped,
        pins.as_deref(),
        change.verifier_policy.is_some(),
        change.verifier_policy.as_ref().and_then(|policy| policy.as_ref()).map(|policy| &policy.0),
    ];
    tx.write(sql, values).await?;
    let node = read_back(&mut tx, name).await?;
    tx.commit().await?;
    Ok(node)
}

async fn try_join_node(db: &Db, join_id: JoinId, node_id: NodeId) -> Result<TenantNode, StoreError> {
    let mut tx = db.begin(Durability::Now).await?;
    let sql = "SELECT name, used_by, revoked, expires_ms FROM join_token WHERE join_id = $1";
    let row = tx.lock(sql, values![&join_id.0]).await?.ok_or(StoreError::NotFound("join token"))?;
    let name: String = row.get(0)?;
    match row.opt_array(1)?.map(NodeId) {
        Some(used_by) if used_by == node_id => return read_back(&mut tx, &name).await,
        Some(_) => return Err(StoreError::Conflict(Conflict::JoinUsed)),
        None if row.get(2)? || row.get::<i64>(3)? <= tx.now_ms().await? => {
            return Err(StoreError::Conflict(Conflict::JoinEnded));
        }
        None => {}
    }
    if tx.row("SELECT 1 FROM node WHERE node_id = $1 AND name <> $2", values![&node_id.0, &name]).await?.is_some() {
        return Err(StoreError::Conflict(Conflict::NodeIdTaken));
    }
    tx.write("UPDATE join_token SET used_by = $2 WHERE join_id = $1", values![&join_id.0, &node_id.0]).await?;
    // The name keeps an id that it has: a token names a node, it does not replace one.
    let sql = "UPDATE node SET node_id = $2, revision = revision + 1
        WHERE name = $1 AND (node_id IS NULL OR node_id = $2)";
    if tx.write(sql, values![&name, &node_id.0]).await? == 0 {
        return Err(StoreError::Conflict(Conflict::JoinUsed));
    }
    let node = read_back(&mut tx, &name).await?;
    tx.commit().await?;
    Ok(node)
}

async fn try_remove_node(db: &Db, name: &str) -> Result<(), StoreError> {
    let mut tx = db.begin(Durability::Now).await?;
    let row = tx.lock(&format!("{SELECT_NODE} WHERE name = $1"), values![name]).await?;
    let node = node_row(&row.ok_or(StoreError::NotFound("node"))?)?;
    let mut subjects: Vec<_> = node.node_id.map(Subject::Node).into_iter().collect();
    for row in tx.rows("SELECT join_id FROM join_token WHERE name = $1", values![name]).await? {
        subjects.push(Subject::Join(JoinId(row.array(0)?)));
    }
    tx.write("DELETE FROM node WHERE name = $1", values![name]).await?;
    tx.write("DELETE FROM join_token WHERE name = $1", values![name]).await?;
    for subject in subjects {
        // Their chunks go with them.
        tx.write("DELETE FROM sealing WHERE subject = $1", values![&subject.to_bytes()]).await?;
    }
    tx.commit().await
}

async fn read_back(tx: &mut Tx, name: &str) -> Result<TenantNode, StoreError> {
    let row = tx.row(&format!("{SELECT_NODE} WHERE name = $1"), values![name]).await?;
    node_row(&row.ok_or(StoreError::NotFound("node"))?)
}

const SELECT_NODE: &str = "SELECT name, node_id, join_id, policy, interval_ms, pins, sealing_id, stopped, revision,
    synced, created_ms, verifier_policy FROM node";

fn node_row(row: &Row) -> Result<TenantNode, StoreError> {
    Ok(TenantNode {
        name: row.get(0)?,
        node_id: row.opt_array(1)?.map(NodeId),
        join_id: row.opt_array(2)?.map(JoinId),
        policy: row.opt_array(3)?.map(Array),
        interval_ms: row.get(4)?,
        pins: codec::from_json::<Pins>(&row.get::<String>(5)?, "pins")?,
        sealing_id: row.opt_array(6)?.map(SealingId),
        stopped: row.get(7)?,
        revision: row.get(8)?,
        synced: row.get(9)?,
        created_ms: row.get(10)?,
        verifier_policy: row.opt_array(11)?.map(Array),
    })
}

const SELECT_JOIN: &str =
    "SELECT join_id, name, tenant_key, registrar_key, expires_ms, used_by, revoked FROM join_token";

fn join_row(row: &Row) -> Result<JoinRow, StoreError> {
    Ok(JoinRow {
        join: NewJoin {
            join_id: JoinId(row.array(0)?),
            tenant_key: row.get(2)?,
            registrar_key: row.get(3)?,
            expires_ms: row.get(4)?,
        },
        name: row.get(1)?,
        used_by: row.opt_array(5)?.map(NodeId),
        revoked: row.get(6)?,
    })
}

const fn role_name(role: ApiRole) -> &'static str {
    match role {
        ApiRole::Viewer => "viewer",
        ApiRole::Operator => "operator",
        ApiRole::Admin => "admin",
    }
}

fn token_row(row: &Row) -> Result<ApiTokenRow, StoreError> {
    let role = match row.get::<String>(2)?.as_str() {
        "viewer" => ApiRole::Viewer,
        "operator" => ApiRole::Operator,
        "admin" => ApiRole::Admin,
        _ => return Err(StoreError::Corrupt("an unknown role of a token")),
    };
    Ok(ApiTokenRow { hash: row.array(0)?, label: row.get(1)?, role, created_ms: row.get(3)?, expires_ms: row.get(4)? })
}
