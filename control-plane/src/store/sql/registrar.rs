//! The registrar's statements: admissions, join tokens, bindings, quarantine.

use std::{cmp::Reverse, collections::HashMap, net::IpAddr};

use async_trait::async_trait;
use protocol::{
    bytes::Array,
    id::{JoinId, NodeId},
};

use super::{Db, Durability, Registrar, Row, Tx, codec, retry_races, values};
use crate::store::{
    Conflict, RegistrarStore, StoreError,
    registrar::{Binding, Hardware, JoinAdmission, JoinEvidence, Quarantined},
};

#[async_trait]
impl RegistrarStore for Registrar {
    async fn admit_node(&self, node_id: NodeId, name: &str) -> Result<(), StoreError> {
        retry_races!(try_admit_node(&self.0, node_id, name).await)
    }

    async fn admitted_name(&self, node_id: NodeId) -> Result<Option<String>, StoreError> {
        let row = self.0.row("SELECT name FROM admitted_node WHERE node_id = $1", values![&node_id.0]).await?;
        row.map(|row| row.get(0)).transpose()
    }

    async fn admit_join(&self, join: &JoinAdmission) -> Result<(), StoreError> {
        let sql = "INSERT INTO join_admission (join_id, name, sealed_key, expires_ms, used_by, revoked)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (join_id) DO NOTHING";
        let used_by = join.used_by.as_ref().map(NodeId::as_bytes);
        let values = values![&join.join_id.0, &join.name, &join.sealed_key, join.expires_ms, used_by, join.revoked];
        self.0.write(Durability::Now, sql, values).await?;
        Ok(())
    }

    async fn join(&self, join_id: JoinId) -> Result<Option<JoinAdmission>, StoreError> {
        let sql =
            "SELECT join_id, name, sealed_key, expires_ms, used_by, revoked FROM join_admission WHERE join_id = $1";
        let Some(row) = self.0.row(sql, values![&join_id.0]).await? else {
            return Ok(None);
        };
        Ok(Some(JoinAdmission {
            join_id: JoinId(row.array(0)?),
            name: row.get(1)?,
            sealed_key: row.get(2)?,
            expires_ms: row.get(3)?,
            used_by: row.opt_array(4)?.map(NodeId),
            revoked: row.get(5)?,
        }))
    }

    async fn revoke_join(&self, join_id: JoinId) -> Result<(), StoreError> {
        let sql = "UPDATE join_admission SET revoked = TRUE WHERE join_id = $1";
        match self.0.write(Durability::Now, sql, values![&join_id.0]).await? {
            0 => Err(StoreError::NotFound("join token")),
            _ => Ok(()),
        }
    }

    async fn binding(&self, node_id: NodeId) -> Result<Option<Binding>, StoreError> {
        let sql = "SELECT node_id, ek_public, ek_chain, ak_public, ak_name, hardware, bound_ms, join_id, tenant_proof,
                server_certificate
            FROM binding WHERE node_id = $1";
        self.0.row(sql, values![&node_id.0]).await?.as_ref().map(binding_row).transpose()
    }

    async fn bound_nodes(&self, prefix: &str, limit: u32) -> Result<Vec<NodeId>, StoreError> {
        let Some((low, high)) = codec::hex_range(prefix) else {
            return Ok(Vec::new());
        };
        let sql = "SELECT node_id FROM binding WHERE node_id >= $1 AND node_id <= $2 ORDER BY node_id LIMIT $3";
        let rows = self.0.rows(sql, values![&low, &high, limit]).await?;
        rows.iter().map(|row| row.array(0).map(NodeId)).collect()
    }

    async fn bindings(&self, after: Option<NodeId>, limit: u32) -> Result<Vec<Binding>, StoreError> {
        let sql = "SELECT node_id, ek_public, ek_chain, ak_public, ak_name, hardware, bound_ms, join_id, tenant_proof,
                server_certificate
            FROM binding WHERE node_id > $1 ORDER BY node_id LIMIT $2";
        // The empty one comes before all.
        let after: &[u8] = after.as_ref().map_or(&[], |after| &after.0);
        let rows = self.0.rows(sql, values![after, limit]).await?;
        rows.iter().map(binding_row).collect()
    }

    async fn set_hardware(&self, node_id: NodeId, from: &Hardware, to: &Hardware) -> Result<(), StoreError> {
        let (from, text, proven) = (codec::to_json(from)?, codec::to_json(to)?, is_proven(to));
        let mut tx = self.0.begin(Durability::Now).await?;
        // What was judged may have been bound, or have come again, meanwhile: that was judged anew.
        let bound = "UPDATE binding SET hardware = $2 WHERE node_id = $1 AND hardware = $3";
        tx.write(bound, values![&node_id.0, &text, &from]).await?;
        let waiting = "UPDATE quarantine SET hardware = $2, proven = $3 WHERE node_id = $1 AND hardware = $4";
        tx.write(waiting, values![&node_id.0, &text, proven, &from]).await?;
        tx.commit().await
    }

    async fn quarantine(&self, node: &Quarantined, max: u32) -> Result<(), StoreError> {
        retry_races!(try_quarantine(&self.0, node, max).await)
    }

    async fn quarantined_node(&self, node_id: NodeId) -> Result<Option<Quarantined>, StoreError> {
        let sql = "SELECT node_id, ek_public, ek_chain, ak_public, ak_name, hardware, peer, first_ms, last_ms
            FROM quarantine WHERE node_id = $1";
        self.0.row(sql, values![&node_id.0]).await?.as_ref().map(quarantined_row).transpose()
    }

    async fn quarantined(&self, limit: u32) -> Result<Vec<Quarantined>, StoreError> {
        let sql = "SELECT node_id, ek_public, ek_chain, ak_public, ak_name, hardware, peer, first_ms, last_ms
            FROM quarantine ORDER BY last_ms DESC, node_id LIMIT $1";
        self.0.rows(sql, values![limit]).await?.iter().map(quarantined_row).collect()
    }

    async fn leave_quarantine(&self, node_id: NodeId) -> Result<bool, StoreError> {
        let sql = "DELETE FROM quarantine WHERE node_id = $1";
        Ok(self.0.write(Durability::Now, sql, values![&node_id.0]).await? > 0)
    }

    async fn bind(&self, binding: &Binding) -> Result<(), StoreError> {
        retry_races!(try_bind(&self.0, binding).await)
    }

    async fn forget(&self, node_id: Option<NodeId>, name: &str) -> Result<(), StoreError> {
        let node_id = node_id.as_ref().map(NodeId::as_bytes);
        let mut tx = self.0.begin(Durability::Now).await?;
        // The name may have led to an id that the caller never learned.
        let bindings = "DELETE FROM binding WHERE node_id = $1
            OR node_id IN (SELECT node_id FROM admitted_node WHERE name = $2)
            OR node_id IN (SELECT used_by FROM join_admission WHERE name = $2 AND used_by IS NOT NULL)";
        tx.write(bindings, values![node_id, name]).await?;
        let admissions = "DELETE FROM admitted_node WHERE node_id = $1 OR name = $2";
        tx.write(admissions, values![node_id, name]).await?;
        tx.write("DELETE FROM join_admission WHERE name = $1", values![name]).await?;
        tx.commit().await
    }
}

async fn try_admit_node(db: &Db, node_id: NodeId, name: &str) -> Result<(), StoreError> {
    let mut tx = db.begin(Durability::Now).await?;
    if let Some(row) = tx.row("SELECT name FROM admitted_node WHERE node_id = $1", values![&node_id.0]).await? {
        return match row.get::<String>(0)? == name {
            true => Ok(()),
            false => Err(StoreError::Conflict(Conflict::NodeIdTaken)),
        };
    }
    // With <>: the same admission may just have been written by another.
    let taken = "SELECT 1 FROM admitted_node WHERE name = $1 AND node_id <> $2";
    if tx.row(taken, values![name, &node_id.0]).await?.is_some() {
        return Err(StoreError::Conflict(Conflict::NameTaken));
    }
    tx.write("INSERT INTO admitted_node (node_id, name) VALUES ($1, $2)", values![&node_id.0, name]).await?;
    tx.write("DELETE FROM quarantine WHERE node_id = $1", values![&node_id.0]).await?;
    tx.commit().await
}

async fn try_bind(db: &Db, binding: &Binding) -> Result<(), StoreError> {
    let mut tx = db.begin(Durability::Now).await?;
    let bound = tx.row("SELECT ak_name FROM binding WHERE node_id = $1", values![&binding.node_id.0]).await?;
    if let Some(row) = bound {
        return match row.array(0)? == binding.ak_name.0 {
            true => Ok(()),
            false => Err(StoreError::Conflict(Conflict::NodeBoundToOtherAk)),
        };
    }
    // With <>: the same pair may just have been bound by another transaction.
    let taken = "SELECT 1 FROM binding WHERE ak_name = $1 AND node_id <> $2";
    if tx.row(taken, values![&binding.ak_name.0, &binding.node_id.0]).await?.is_some() {
        return Err(StoreError::Conflict(Conflict::AkBoundToOtherNode));
    }
    if let Some(join) = &binding.join {
        let sql = "SELECT used_by, revoked, expires_ms FROM join_admission WHERE join_id = $1";
        let row = tx.lock(sql, values![&join.join_id.0]).await?;
        let row = row.ok_or(StoreError::Conflict(Conflict::JoinEnded))?;
        match row.opt_array(0)?.map(NodeId) {
            Some(node_id) if node_id == binding.node_id => {}
            Some(_) => return Err(StoreError::Conflict(Conflict::JoinUsed)),
            None if row.get(1)? || row.get::<i64>(2)? <= tx.now_ms().await? => {
                return Err(StoreError::Conflict(Conflict::JoinEnded));
            }
            None => {
                let sql = "UPDATE join_admission SET used_by = $2 WHERE join_id = $1";
                tx.write(sql, values![&join.join_id.0, &binding.node_id.0]).await?;
            }
        }
    }
    let insert =
        "INSERT INTO binding (node_id, ak_name, ak_public, ek_public, ek_chain, hardware, join_id, tenant_proof,
            server_certificate, bound_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, (SELECT now_ms FROM clock))";
    let join = binding.join.as_ref();
    let (ek_chain, hardware) = (codec::join_bytes(&binding.ek_chain)?, codec::to_json(&binding.hardware)?);
    let values = values![
        &binding.node_id.0,
        &binding.ak_name.0,
        &binding.ak_public,
        &binding.ek_public,
        &ek_chain,
        &hardware,
        join.map(|join| &join.join_id.0),
        join.map(|join| &join.tenant_proof),
        join.map(|join| &join.server_certificate),
    ];
    tx.write(insert, values).await?;
    tx.write("DELETE FROM quarantine WHERE node_id = $1", values![&binding.node_id.0]).await?;
    tx.commit().await
}

async fn try_quarantine(db: &Db, node: &Quarantined, max: u32) -> Result<(), StoreError> {
    let (ek_chain, hardware) = (codec::join_bytes(&node.ek_chain)?, codec::to_json(&node.hardware)?);
    let mut tx = db.begin(Durability::Now).await?;
    // Admitted while it proved itself: it is let in when it comes again, and waits no more.
    if tx.row("SELECT 1 FROM admitted_node WHERE node_id = $1", values![&node.node_id.0]).await?.is_some() {
        return Ok(());
    }
    let now_ms = tx.now_ms().await?;
    let sql =
        "INSERT INTO quarantine (node_id, ek_public, ek_chain, ak_public, ak_name, hardware, proven, peer, first_ms,
            last_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
        ON CONFLICT (node_id) DO UPDATE SET ek_public = excluded.ek_public, ek_chain = excluded.ek_chain,
            ak_public = excluded.ak_public, ak_name = excluded.ak_name, hardware = excluded.hardware,
            proven = excluded.proven, peer = excluded.peer, last_ms = excluded.last_ms";
    let proven = is_proven(&node.hardware);
    let values = values![
        &node.node_id.0,
        &node.ek_public,
        &ek_chain,
        &node.ak_public,
        &node.ak_name.0,
        &hardware,
        proven,
        &node.peer,
        now_ms,
    ];
    tx.write(sql, values).await?;
    let count = tx.row("SELECT COUNT(*) FROM quarantine", values![]).await?;
    let count: i64 = count.ok_or(StoreError::Corrupt("a count"))?.get(0)?;
    if let Ok(surplus @ 1..) = usize::try_from(count - i64::from(max)) {
        make_room(&mut tx, surplus).await?;
    }
    tx.commit().await
}

/// Takes `surplus` nodes off the list. Anybody can make up TPMs: whoever comes with many displaces his own.
async fn make_room(tx: &mut Tx, surplus: usize) -> Result<(), StoreError> {
    let mut of_network: HashMap<(bool, String), usize> = HashMap::new();
    let mut waiting = Vec::new();
    for row in tx.rows("SELECT node_id, proven, peer, last_ms FROM quarantine", &[]).await? {
        let of = (row.get::<bool>(1)?, network(&row.get::<String>(2)?));
        *of_network.entry(of.clone()).or_default() += 1;
        waiting.push((of, row.get::<i64>(3)?, row.array::<32>(0)?));
    }
    waiting.sort_by_key(|(of, last_ms, node_id)| {
        (of.0, Reverse(of_network.get(of).copied().unwrap_or_default()), *last_ms, *node_id)
    });
    for (_, _, node_id) in waiting.iter().take(surplus) {
        tx.write("DELETE FROM quarantine WHERE node_id = $1", values![node_id]).await?;
    }
    Ok(())
}

/// Whom an address belongs to: itself, but an IPv6 subscriber has a /64.
fn network(peer: &str) -> String {
    match peer.parse() {
        Ok(IpAddr::V6(address)) => format!("{:x}", address.to_bits() >> 64),
        _ => peer.to_owned(),
    }
}

/// Whether a trusted manufacturer vouches for it.
const fn is_proven(hardware: &Hardware) -> bool {
    matches!(hardware, Hardware::Certified { .. })
}

fn quarantined_row(row: &Row) -> Result<Quarantined, StoreError> {
    Ok(Quarantined {
        node_id: NodeId(row.array(0)?),
        ek_public: row.get(1)?,
        ek_chain: codec::split_bytes(&row.get::<Vec<u8>>(2)?)?,
        ak_public: row.get(3)?,
        ak_name: Array(row.array(4)?),
        hardware: codec::from_json(&row.get::<String>(5)?, "a kind of hardware")?,
        peer: row.get(6)?,
        first_ms: row.get(7)?,
        last_ms: row.get(8)?,
    })
}

fn binding_row(row: &Row) -> Result<Binding, StoreError> {
    let join = match (row.opt_array(7)?, row.opt_array(8)?, row.opt_array(9)?) {
        (Some(join_id), Some(tenant_proof), Some(server_certificate)) => {
            Some(JoinEvidence { join_id: JoinId(join_id), tenant_proof, server_certificate })
        }
        (None, None, None) => None,
        _ => return Err(StoreError::Corrupt("half a join")),
    };
    Ok(Binding {
        node_id: NodeId(row.array(0)?),
        ek_public: row.get(1)?,
        ek_chain: codec::split_bytes(&row.get::<Vec<u8>>(2)?)?,
        ak_public: row.get(3)?,
        ak_name: Array(row.array(4)?),
        hardware: codec::from_json(&row.get::<String>(5)?, "a kind of hardware")?,
        join,
        bound_ms: row.get(6)?,
    })
}
