//! What verifier and tenant remember of the nodes they appraise: policies, logs, trust, verdicts, releases.

use async_trait::async_trait;
use protocol::{
    bytes::Array,
    id::{NodeId, SealingId},
    limits,
};

use super::{Appraises, Db, Durability, Row, Tx, codec, event::insert_event, retry_races, values};
use crate::{
    evidence::entries_len,
    store::{
        AkName, AppraiserStore, Attestation, Checkpoint, Conflict, EvidenceRow, ImaList, NewEvent, Outcome, PolicyId,
        PolicyRow, Release, StoreError, Trust, UnixMs, VerdictRow, Written,
    },
};

#[async_trait]
impl<T: Appraises> AppraiserStore for T {
    async fn put_policy(&self, id: PolicyId, name: &str, body: &[u8]) -> Result<(), StoreError> {
        let sql = "INSERT INTO policy (policy_id, name, body, created_ms)
            VALUES ($1, $2, $3, (SELECT now_ms FROM clock)) ON CONFLICT (policy_id) DO NOTHING";
        self.db().write(Durability::Now, sql, values![&id.0, name, body]).await?;
        Ok(())
    }

    async fn policy(&self, id: PolicyId) -> Result<Option<PolicyRow>, StoreError> {
        let sql = "SELECT policy_id, name, body, created_ms FROM policy WHERE policy_id = $1";
        self.db().row(sql, values![&id.0]).await?.as_ref().map(policy_row).transpose()
    }

    async fn policies(&self) -> Result<Vec<PolicyRow>, StoreError> {
        let sql = "SELECT policy_id, name, created_ms FROM policy ORDER BY seq";
        let row = |row: &Row| {
            Ok(PolicyRow { id: Array(row.array(0)?), name: row.get(1)?, body: Vec::new(), created_ms: row.get(2)? })
        };
        self.db().rows(sql, &[]).await?.iter().map(row).collect()
    }

    async fn put_boot_log(&self, digest: [u8; 32], log: &[u8]) -> Result<(), StoreError> {
        let log_len = i64::try_from(log.len()).map_err(|_| StoreError::Corrupt("a boot log without end"))?;
        let mut tx = self.db().begin(Durability::Soon).await?;
        let insert = "INSERT INTO boot_log (digest, log_len, log) VALUES ($1, $2, $3) ON CONFLICT (digest) DO NOTHING";
        if tx.write(insert, values![&digest, log_len, log]).await? > 0 {
            // A node that reboots for ever with ever new logs fills no disk.
            let prune = "DELETE FROM boot_log WHERE seq IN (SELECT seq FROM (
                    SELECT seq, SUM(log_len) OVER (ORDER BY seq DESC) AS total FROM boot_log) AS logs WHERE total > $1)";
            tx.write(prune, values![MAX_BOOT_LOG_TOTAL]).await?;
        }
        tx.commit().await
    }

    async fn boot_log(&self, digest: [u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.db().row("SELECT log FROM boot_log WHERE digest = $1", values![&digest]).await?;
        row.map(|row| row.get(0)).transpose()
    }

    async fn attestation(&self, node_id: NodeId) -> Result<Option<Attestation>, StoreError> {
        let sql = "SELECT verdict_id, node_id, nonce_ms, valid_ms, outcome, purpose, policy, explanation,
                verdict_fence, verdict_counter, state, ak_name, ak_public, checkpoint, resumed, now_ms
            FROM attestation CROSS JOIN clock WHERE node_id = $1";
        let Some(row) = self.db().row(sql, values![&node_id.0]).await? else {
            return Ok(None);
        };
        let verdict = if row.get::<Option<i64>>(0)?.is_some() { Some(verdict_row(&row)?) } else { None };
        let state: String = row.get(10)?;
        let ak = match (row.opt_array(11)?, row.get::<Option<Vec<u8>>>(12)?) {
            (Some(name), Some(public)) => Some((Array(name), public)),
            (None, None) => None,
            _ => return Err(StoreError::Corrupt("half an AK")),
        };
        let checkpoint: Option<String> = row.get(13)?;
        let now_ms = row.get(15)?;
        Ok(Some(Attestation {
            ak,
            trust: trust(&state, verdict.as_ref(), now_ms)?,
            verdict,
            checkpoint: checkpoint.map(|text| codec::from_json(&text, "a checkpoint")).transpose()?,
            resumed: row.get(14)?,
            now_ms,
        }))
    }

    async fn pin_ak(&self, node_id: NodeId, ak_name: AkName, ak_public: &[u8]) -> Result<(), StoreError> {
        retry_races!(try_pin_ak(self.db(), node_id, ak_name, ak_public).await)
    }

    async fn take_fence(&self, node_id: NodeId) -> Result<i64, StoreError> {
        // A new row starts at the clock, not at 1: a forgotten node's old connections must not outrank its new ones.
        let sql = "INSERT INTO attestation (node_id, fence) VALUES ($1, (SELECT now_ms FROM clock))
            ON CONFLICT (node_id) DO UPDATE SET fence = attestation.fence + 1 RETURNING fence";
        let mut tx = self.db().begin(Durability::Now).await?;
        let fence = tx.returning(sql, values![&node_id.0]).await?.get(0)?;
        tx.commit().await?;
        Ok(fence)
    }

    async fn write_verdict(
        &self,
        verdict: &VerdictRow,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Written, StoreError> {
        let record = Record::new(verdict, checkpoint)?;
        if verdict.outcome == Outcome::Good && renew(self.db(), &record).await? {
            return Ok(Written::Applied);
        }
        retry_races!(try_write_verdict(self.db(), &record).await)
    }

    async fn verdicts(&self, node_id: Option<NodeId>, limit: u32) -> Result<Vec<VerdictRow>, StoreError> {
        // The newest one as it was renewed, which only the attestation row knows.
        let selection = "SELECT v.id, v.node_id, COALESCE(a.nonce_ms, v.nonce_ms), COALESCE(a.valid_ms, v.valid_ms),
                v.outcome, COALESCE(a.purpose, v.purpose),
                CASE WHEN a.node_id IS NULL THEN v.policy ELSE a.policy END,
                COALESCE(a.explanation, v.explanation), COALESCE(a.verdict_fence, v.verdict_fence),
                COALESCE(a.verdict_counter, v.verdict_counter)
            FROM verdict AS v LEFT JOIN attestation AS a ON a.node_id = v.node_id AND a.verdict_id = v.id";
        let rows = match node_id {
            Some(node_id) => {
                let sql = format!("{selection} WHERE v.node_id = $1 ORDER BY v.id DESC LIMIT $2");
                self.db().rows(&sql, values![&node_id.0, limit]).await?
            }
            None => {
                let sql = format!("{selection} ORDER BY v.id DESC LIMIT $1");
                self.db().rows(&sql, values![limit]).await?
            }
        };
        rows.iter().map(verdict_row).collect()
    }

    async fn resume(&self, node_id: NodeId) -> Result<(), StoreError> {
        let mut tx = self.db().begin(Durability::Now).await?;
        let row = tx.lock("SELECT state FROM attestation WHERE node_id = $1", values![&node_id.0]).await?;
        let state: String = row.map(|row| row.get(0)).transpose()?.unwrap_or_default();
        match state.as_str() {
            "failed" => {
                let sql = "UPDATE attestation SET resumed = TRUE WHERE node_id = $1";
                tx.write(sql, values![&node_id.0]).await?;
            }
            "rolled_back" => {
                let sql = "UPDATE attestation SET resumed = TRUE, checkpoint = NULL WHERE node_id = $1";
                tx.write(sql, values![&node_id.0]).await?;
                // The TPM counts from zero again: its reset count will meet old numbers that mean other boots.
                let sql = "UPDATE share_release SET ended = TRUE WHERE node_id = $1";
                tx.write(sql, values![&node_id.0]).await?;
            }
            _ => {}
        }
        tx.commit().await
    }

    async fn add_release(&self, release: &Release) -> Result<i64, StoreError> {
        let mut tx = self.db().begin(Durability::Now).await?;
        let delivered = "SELECT 1 FROM share_release
            WHERE node_id = $1 AND reset_count = $2 AND confirmed_ms IS NOT NULL AND NOT ended LIMIT 1";
        if tx.row(delivered, values![&release.node_id.0, release.reset_count]).await?.is_some() {
            return Err(StoreError::Conflict(Conflict::AlreadyDelivered));
        }
        let insert = "INSERT INTO share_release (node_id, sealing_id, nk_digest, quote_digest, nonce, reset_count,
                restart_count, at_ms)
            VALUES ($1, $2, $3, $4, $5, $6, $7, (SELECT now_ms FROM clock)) RETURNING id";
        let values = values![
            &release.node_id.0,
            &release.sealing_id.0,
            &release.nk_digest,
            &release.quote_digest,
            &release.nonce,
            release.reset_count,
            release.restart_count,
        ];
        let id = tx.returning(insert, values).await?.get(0)?;
        // Confirmed ones stay, one a boot: they are what refuses the next.
        let prune = "DELETE FROM share_release WHERE node_id = $1 AND confirmed_ms IS NULL AND id <= (
                SELECT id FROM share_release WHERE node_id = $1 AND confirmed_ms IS NULL
                ORDER BY id DESC LIMIT 1 OFFSET $2)";
        tx.write(prune, values![&release.node_id.0, MAX_NODE_ROWS]).await?;
        tx.commit().await?;
        Ok(id)
    }

    async fn releases(&self, node_id: NodeId, limit: u32) -> Result<Vec<Release>, StoreError> {
        let sql = "SELECT id, node_id, sealing_id, nk_digest, quote_digest, nonce, reset_count, restart_count, at_ms,
                confirmed_ms
            FROM share_release WHERE node_id = $1 ORDER BY id DESC LIMIT $2";
        self.db().rows(sql, values![&node_id.0, limit]).await?.iter().map(release_row).collect()
    }

    async fn confirm_release(
        &self,
        node_id: NodeId,
        sealing_id: SealingId,
        reset_count: u32,
    ) -> Result<(), StoreError> {
        self.db().write(Durability::Now, CONFIRM, values![&node_id.0, &sealing_id.0, reset_count]).await?;
        Ok(())
    }

    async fn confirm_delivery(
        &self,
        node_id: NodeId,
        sealing_id: SealingId,
        reset_count: u32,
        event: &NewEvent,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db().begin(Durability::Now).await?;
        let is_first = tx.write(CONFIRM, values![&node_id.0, &sealing_id.0, reset_count]).await? > 0;
        if is_first {
            insert_event(&mut tx, event).await?;
        }
        tx.commit().await?;
        Ok(is_first)
    }

    async fn put_evidence(&self, evidence: &EvidenceRow) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO evidence (node_id, at_ms, purpose, attested, signature, qualifying_data, ak_name, hardware,
                pcrs, reset_count, restart_count, boot_log, command_line, userspace, has_ima, ima_entries)
            VALUES ($1, (SELECT now_ms FROM clock), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
            ON CONFLICT (node_id) DO UPDATE SET at_ms = excluded.at_ms, purpose = excluded.purpose,
                attested = excluded.attested, signature = excluded.signature,
                qualifying_data = excluded.qualifying_data, ak_name = excluded.ak_name, hardware = excluded.hardware,
                pcrs = excluded.pcrs, reset_count = excluded.reset_count, restart_count = excluded.restart_count,
                boot_log = excluded.boot_log, command_line = excluded.command_line, userspace = excluded.userspace,
                has_ima = excluded.has_ima, ima_entries = excluded.ima_entries";
        let pcrs = codec::to_json(&evidence.pcrs)?;
        let values = values![
            &evidence.node_id.0,
            &evidence.purpose,
            &evidence.attested,
            &evidence.signature,
            &evidence.qualifying_data,
            &evidence.ak_name.0,
            &evidence.hardware,
            &pcrs,
            evidence.reset_count,
            evidence.restart_count,
            evidence.boot_log.as_ref(),
            evidence.command_line.as_deref(),
            evidence.userspace.as_deref(),
            evidence.has_ima,
            evidence.ima_entries.map(entry_number).transpose()?,
        ];
        self.db().write(Durability::Soon, sql, values).await?;
        Ok(())
    }

    async fn evidence(&self, node_id: NodeId) -> Result<Option<EvidenceRow>, StoreError> {
        let sql = "SELECT node_id, at_ms, purpose, attested, signature, qualifying_data, ak_name, hardware, pcrs,
                reset_count, restart_count, boot_log, command_line, userspace, has_ima, ima_entries
            FROM evidence WHERE node_id = $1";
        self.db().row(sql, values![&node_id.0]).await?.as_ref().map(evidence_row).transpose()
    }

    async fn put_ima_part(
        &self,
        node_id: NodeId,
        first: u64,
        entries: u64,
        bytes: &[u8],
        epoch: (u32, u32),
    ) -> Result<(), StoreError> {
        let part = Part { node_id, first, entries, bytes, epoch };
        self.db().has_room(bytes.len() as u64)?;
        retry_races!(try_put_ima_part(self.db(), &part).await)
    }

    async fn ima_list(&self, node_id: NodeId) -> Result<Option<ImaList>, StoreError> {
        let sql = "SELECT first_entry, entries, reset_count, restart_count, part FROM ima_part
            WHERE node_id = $1 ORDER BY first_entry";
        let mut list: Option<ImaList> = None;
        for row in self.db().rows(sql, values![&node_id.0]).await? {
            let (first, entries) = (entries_of(&row, 0)?, entries_of(&row, 1)?);
            let epoch = (row.u32(2)?, row.u32(3)?);
            let list = list.get_or_insert(ImaList { epoch, entries: 0, bytes: Vec::new() });
            // They are written without gaps, within one transaction each.
            if first != list.entries || epoch != list.epoch {
                return Err(StoreError::Corrupt("an IMA list with a gap"));
            }
            list.entries = list.entries.saturating_add(entries);
            list.bytes.extend_from_slice(&row.get::<Vec<u8>>(4)?);
        }
        Ok(list)
    }

    async fn forget_node(&self, node_id: NodeId) -> Result<(), StoreError> {
        let mut tx = self.db().begin(Durability::Now).await?;
        for sql in [
            "DELETE FROM attestation WHERE node_id = $1",
            "DELETE FROM verdict WHERE node_id = $1",
            "DELETE FROM share_release WHERE node_id = $1",
            "DELETE FROM evidence WHERE node_id = $1",
            "DELETE FROM ima_part WHERE node_id = $1",
        ] {
            tx.write(sql, values![&node_id.0]).await?;
        }
        tx.commit().await
    }
}

const CONFIRM: &str = "UPDATE share_release SET confirmed_ms = (SELECT now_ms FROM clock)
    WHERE node_id = $1 AND sealing_id = $2 AND reset_count = $3 AND confirmed_ms IS NULL AND NOT ended";

/// Trust as it is now: a positive verdict counts from the making of its nonce, and not after a clock was set back.
fn trust(state: &str, verdict: Option<&VerdictRow>, now_ms: UnixMs) -> Result<Trust, StoreError> {
    match (state, verdict) {
        // Unjudged: verified, but nobody said what good is.
        ("none", _) | ("unjudged", _) => Ok(Trust::None),
        ("failed", _) => Ok(Trust::Failed),
        ("rolled_back", _) => Ok(Trust::RolledBack),
        ("good", Some(verdict)) => {
            let passed = now_ms > verdict.nonce_ms.saturating_add(verdict.valid_ms);
            let too_far_ahead = verdict.nonce_ms > now_ms.saturating_add(CLOCK_SLACK_MS);
            Ok(if passed || too_far_ahead { Trust::Stale } else { Trust::Good })
        }
        _ => Err(StoreError::Corrupt("an unknown state of trust")),
    }
}

async fn try_pin_ak(db: &Db, node_id: NodeId, ak_name: AkName, ak_public: &[u8]) -> Result<(), StoreError> {
    let mut tx = db.begin(Durability::Now).await?;
    let pinned = tx.lock("SELECT ak_name FROM attestation WHERE node_id = $1", values![&node_id.0]).await?;
    match pinned.map(|row| row.opt_array(0)).transpose()?.flatten() {
        Some(pinned) if pinned == ak_name.0 => return Ok(()),
        Some(_) => return Err(StoreError::Conflict(Conflict::NodeBoundToOtherAk)),
        None => {}
    }
    let taken = "SELECT 1 FROM attestation WHERE ak_name = $1 AND node_id <> $2";
    if tx.row(taken, values![&ak_name.0, &node_id.0]).await?.is_some() {
        return Err(StoreError::Conflict(Conflict::AkBoundToOtherNode));
    }
    // The condition decides a race for a row that was not there to be locked.
    let sql = "INSERT INTO attestation (node_id, ak_name, ak_public) VALUES ($1, $2, $3)
        ON CONFLICT (node_id) DO UPDATE SET ak_name = excluded.ak_name, ak_public = excluded.ak_public
        WHERE attestation.ak_name IS NULL OR attestation.ak_name = excluded.ak_name";
    if tx.write(sql, values![&node_id.0, &ak_name.0, ak_public]).await? == 0 {
        return Err(StoreError::Conflict(Conflict::NodeBoundToOtherAk));
    }
    tx.commit().await
}

/// Entries of an IMA list to be kept.
#[derive(Clone, Copy)]
struct Part<'a> {
    node_id: NodeId,
    first: u64,
    entries: u64,
    bytes: &'a [u8],
    epoch: (u32, u32),
}

impl Part<'_> {
    /// What of a list from its beginning is not kept already: a node that failed shows all of it with every round.
    async fn beyond_kept(mut self, tx: &mut Tx) -> Result<Self, StoreError> {
        if self.first != 0 {
            return Ok(self);
        }
        let kept = "SELECT first_entry, entries, part_len FROM ima_part
            WHERE node_id = $1 AND reset_count = $2 AND restart_count = $3 ORDER BY first_entry";
        for row in tx.rows(kept, values![&self.node_id.0, self.epoch.0, self.epoch.1]).await? {
            let (first, entries) = (entries_of(&row, 0)?, entries_of(&row, 1)?);
            let len = usize::try_from(row.get::<i64>(2)?).map_err(|_| StoreError::Corrupt("a number out of range"))?;
            let Some((same, rest)) = self.bytes.split_at_checked(len) else { break };
            if first != self.first || entries > self.entries {
                break;
            }
            let equal = "SELECT 1 FROM ima_part WHERE node_id = $1 AND first_entry = $2 AND part = $3";
            if tx.row(equal, values![&self.node_id.0, entry_number(first)?, same]).await?.is_none() {
                break;
            }
            (self.first, self.entries, self.bytes) = (first.saturating_add(entries), self.entries - entries, rest);
        }
        Ok(self)
    }

    async fn insert(&self, tx: &mut Tx, first: u64, entries: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let sql = "INSERT INTO ima_part (node_id, first_entry, entries, reset_count, restart_count, part_len, part)
            VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let values = values![
            &self.node_id.0,
            entry_number(first)?,
            entry_number(entries)?,
            self.epoch.0,
            self.epoch.1,
            part_len(bytes)?,
            bytes,
        ];
        tx.write(sql, values).await?;
        Ok(())
    }
}

async fn try_put_ima_part(db: &Db, part: &Part<'_>) -> Result<(), StoreError> {
    let mut tx = db.begin(Durability::Soon).await?;
    let part = part.beyond_kept(&mut tx).await?;
    let node_id = &part.node_id.0;
    let first = entry_number(part.first)?;
    let other_boots = "DELETE FROM ima_part WHERE node_id = $1 AND (reset_count <> $2 OR restart_count <> $3)";
    tx.write(other_boots, values![node_id, part.epoch.0, part.epoch.1]).await?;
    tx.write("DELETE FROM ima_part WHERE node_id = $1 AND first_entry >= $2", values![node_id, first]).await?;
    let sql = "SELECT first_entry, entries, part FROM ima_part WHERE node_id = $1 ORDER BY first_entry DESC LIMIT 1";
    let last = match tx.lock(sql, values![node_id]).await? {
        Some(row) => Some((entries_of(&row, 0)?, entries_of(&row, 1)?, row.get::<Vec<u8>>(2)?)),
        None => None,
    };
    let sql = "SELECT CAST(COALESCE(SUM(part_len), 0) AS BIGINT) FROM ima_part WHERE node_id = $1";
    let row = tx.row(sql, values![node_id]).await?.ok_or(StoreError::Corrupt("a sum of nothing"))?;
    let kept = row.get::<i64>(0)?;
    let too_long = kept.saturating_add(part_len(part.bytes)?) > part_len_limit();
    match last {
        _ if part.entries == 0 || too_long => {}
        None if part.first == 0 => part.insert(&mut tx, 0, part.entries, part.bytes).await?,
        None => {}
        Some((at, entries, _)) if at.saturating_add(entries) < part.first => {}
        Some((at, entries, mut bytes)) => {
            let before = part.first - at;
            let overlaps = before < entries;
            if overlaps {
                let len = entries_len(&bytes, before).ok_or(StoreError::Corrupt("an IMA list that is none"))?;
                bytes.truncate(len);
            }
            let joins = bytes.len() + part.bytes.len() <= MAX_PART_LEN;
            if joins || overlaps {
                let sql = "DELETE FROM ima_part WHERE node_id = $1 AND first_entry = $2";
                tx.write(sql, values![node_id, entry_number(at)?]).await?;
            }
            if joins {
                bytes.extend_from_slice(part.bytes);
                part.insert(&mut tx, at, before.saturating_add(part.entries), &bytes).await?;
            } else {
                if overlaps {
                    part.insert(&mut tx, at, before, &bytes).await?;
                }
                part.insert(&mut tx, part.first, part.entries, part.bytes).await?;
            }
        }
    }
    tx.commit().await
}

fn entry_number(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Corrupt("an IMA list without end"))
}

fn part_len(bytes: &[u8]) -> Result<i64, StoreError> {
    i64::try_from(bytes.len()).map_err(|_| StoreError::Corrupt("an IMA list without end"))
}

fn part_len_limit() -> i64 {
    i64::try_from(limits::MAX_IMA_LOG_LEN).unwrap_or(i64::MAX)
}

fn entries_of(row: &Row, column: usize) -> Result<u64, StoreError> {
    u64::try_from(row.get::<i64>(column)?).map_err(|_| StoreError::Corrupt("a number out of range"))
}

/// A verdict and its checkpoint as columns.
struct Record<'a> {
    verdict: &'a VerdictRow,
    explanation: String,
    checkpoint: Option<String>,
}

impl<'a> Record<'a> {
    fn new(verdict: &'a VerdictRow, checkpoint: Option<&Checkpoint>) -> Result<Self, StoreError> {
        let explanation = codec::to_json(&verdict.explanation)?;
        // Only what was accepted may be built upon.
        let keeps = matches!(verdict.outcome, Outcome::Good | Outcome::Unjudged);
        let checkpoint = checkpoint.filter(|_| keeps).map(codec::to_json).transpose()?;
        Ok(Self { verdict, explanation, checkpoint })
    }

    fn policy(&self) -> Option<&'a [u8; 32]> {
        self.verdict.policy.as_ref().map(|policy| &policy.0)
    }
}

/// The steady round: a good node stays good. One statement, and a power failure may lose it, which ends trust sooner.
/// `false` if this is anything else.
async fn renew(db: &Db, record: &Record<'_>) -> Result<bool, StoreError> {
    let sql = "UPDATE attestation SET nonce_ms = $2, valid_ms = $3, purpose = $4, policy = $5, explanation = $6,
            verdict_fence = $7, verdict_counter = $8, newest_fence = $7, newest_counter = $8,
            checkpoint = COALESCE($9, checkpoint)
        WHERE node_id = $1 AND state = 'good'
            AND (newest_fence < $7 OR (newest_fence = $7 AND newest_counter < $8))";
    let verdict = record.verdict;
    let values = values![
        &verdict.node_id.0,
        verdict.nonce_ms,
        verdict.valid_ms,
        &verdict.purpose,
        record.policy(),
        &record.explanation,
        verdict.fence,
        verdict.counter,
        record.checkpoint.as_deref(),
    ];
    Ok(db.write(Durability::Soon, sql, values).await? > 0)
}

async fn try_write_verdict(db: &Db, record: &Record<'_>) -> Result<Written, StoreError> {
    let verdict = record.verdict;
    let node_id = &verdict.node_id.0;
    let mut tx = db.begin(Durability::Now).await?;
    let insert = "INSERT INTO attestation (node_id) VALUES ($1) ON CONFLICT (node_id) DO NOTHING";
    tx.write(insert, values![node_id]).await?;
    let sql = "SELECT state, resumed, newest_fence, newest_counter FROM attestation WHERE node_id = $1";
    let row = tx.lock(sql, values![node_id]).await?.ok_or(StoreError::Corrupt("a row that vanished"))?;
    let (state, resumed): (String, bool) = (row.get(0)?, row.get(1)?);
    let stored: Option<(i64, i64)> = row.get::<Option<i64>>(2)?.zip(row.get(3)?);
    let order = (verdict.fence, verdict.counter);

    let withdrawn = matches!(state.as_str(), "failed" | "rolled_back");
    let (new_state, new_order) = match verdict.outcome {
        Outcome::Good | Outcome::Unjudged => {
            // What nobody judged ends no failure, resumed or not.
            let ends = !withdrawn || (resumed && verdict.outcome == Outcome::Good);
            if !ends || stored.is_some_and(|stored| order <= stored) {
                return Ok(Written::Superseded);
            }
            (codec::outcome_name(verdict.outcome), order)
        }
        // An operator has to see that counters went back; a later failure does not cover it up.
        Outcome::Failed if state == "rolled_back" && !resumed => {
            ("rolled_back", stored.map_or(order, |s| s.max(order)))
        }
        Outcome::Failed | Outcome::RolledBack => {
            (codec::outcome_name(verdict.outcome), stored.map_or(order, |stored| stored.max(order)))
        }
    };

    let negative = matches!(verdict.outcome, Outcome::Failed | Outcome::RolledBack);
    let verdict_id = if negative || new_state != state { Some(insert_history(&mut tx, record).await?) } else { None };
    let update = "UPDATE attestation SET state = $2, resumed = FALSE, checkpoint = COALESCE($3, checkpoint),
            verdict_id = COALESCE($4, verdict_id), nonce_ms = $5, valid_ms = $6, outcome = $7, purpose = $8, policy = $9,
            explanation = $10, verdict_fence = $11, verdict_counter = $12, newest_fence = $13,
            newest_counter = $14
        WHERE node_id = $1";
    let values = values![
        node_id,
        new_state,
        record.checkpoint.as_deref(),
        verdict_id,
        verdict.nonce_ms,
        verdict.valid_ms,
        codec::outcome_name(verdict.outcome),
        &verdict.purpose,
        record.policy(),
        &record.explanation,
        verdict.fence,
        verdict.counter,
        new_order.0,
        new_order.1,
    ];
    tx.write(update, values).await?;
    tx.commit().await?;
    Ok(Written::Applied)
}

async fn insert_history(tx: &mut Tx, record: &Record<'_>) -> Result<i64, StoreError> {
    let verdict = record.verdict;
    let insert =
        "INSERT INTO verdict (node_id, nonce_ms, valid_ms, outcome, purpose, policy, explanation, verdict_fence,
            verdict_counter)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id";
    let values = values![
        &verdict.node_id.0,
        verdict.nonce_ms,
        verdict.valid_ms,
        codec::outcome_name(verdict.outcome),
        &verdict.purpose,
        record.policy(),
        &record.explanation,
        verdict.fence,
        verdict.counter,
    ];
    let id = tx.returning(insert, values).await?.get(0)?;
    let prune = "DELETE FROM verdict WHERE node_id = $1 AND id <= (
            SELECT id FROM verdict WHERE node_id = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)";
    tx.write(prune, values![&verdict.node_id.0, MAX_NODE_ROWS]).await?;
    Ok(id)
}

fn policy_row(row: &Row) -> Result<PolicyRow, StoreError> {
    Ok(PolicyRow { id: Array(row.array(0)?), name: row.get(1)?, body: row.get(2)?, created_ms: row.get(3)? })
}

/// From id, node_id, nonce_ms, valid_ms, outcome, purpose, policy, explanation, fence, counter.
fn verdict_row(row: &Row) -> Result<VerdictRow, StoreError> {
    Ok(VerdictRow {
        id: row.get(0)?,
        node_id: NodeId(row.array(1)?),
        nonce_ms: row.get(2)?,
        valid_ms: row.get(3)?,
        outcome: codec::outcome(&row.get::<String>(4)?)?,
        purpose: row.get(5)?,
        policy: row.opt_array(6)?.map(Array),
        explanation: codec::from_json(&row.get::<String>(7)?, "an explanation")?,
        fence: row.get(8)?,
        counter: row.get(9)?,
    })
}

fn release_row(row: &Row) -> Result<Release, StoreError> {
    Ok(Release {
        id: row.get(0)?,
        node_id: NodeId(row.array(1)?),
        sealing_id: SealingId(row.array(2)?),
        nk_digest: row.array(3)?,
        quote_digest: row.array(4)?,
        nonce: row.array(5)?,
        reset_count: row.u32(6)?,
        restart_count: row.u32(7)?,
        at_ms: row.get(8)?,
        confirmed_ms: row.get(9)?,
    })
}

/// From node_id, at_ms, purpose, attested, signature, qualifying_data, ak_name, hardware, pcrs, reset_count,
/// restart_count, boot_log, command_line, userspace, has_ima, ima_entries.
fn evidence_row(row: &Row) -> Result<EvidenceRow, StoreError> {
    let ima_entries = row.get::<Option<i64>>(15)?;
    Ok(EvidenceRow {
        node_id: NodeId(row.array(0)?),
        at_ms: row.get(1)?,
        purpose: row.get(2)?,
        attested: row.get(3)?,
        signature: row.get(4)?,
        qualifying_data: row.array(5)?,
        ak_name: Array(row.array(6)?),
        hardware: row.get(7)?,
        pcrs: codec::from_json(&row.get::<String>(8)?, "PCR values")?,
        reset_count: row.u32(9)?,
        restart_count: row.u32(10)?,
        boot_log: row.opt_array(11)?,
        command_line: row.get(12)?,
        userspace: row.get(13)?,
        has_ima: row.get(14)?,
        ima_entries: match ima_entries {
            Some(entries) => Some(u64::try_from(entries).map_err(|_| StoreError::Corrupt("a number out of range"))?),
            None => None,
        },
    })
}

/// A part of an IMA list takes what follows it until it is this long: a row a round would be many.
const MAX_PART_LEN: usize = 64 * 1024;
/// Verdicts, and releases that were never confirmed, kept of one node.
const MAX_NODE_ROWS: i64 = 200;
/// Bytes of boot logs kept: 50 KiB each for twenty thousand nodes. A log that was dropped is asked for again.
const MAX_BOOT_LOG_TOTAL: i64 = 1024 * 1024 * 1024;
/// How far a nonce may seem to lie in the future before the clock counts as set back: slewing moves it by less.
const CLOCK_SLACK_MS: i64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_that_is_shown_whole_again_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/v.db", dir.path().display());
        let store = super::super::Verifier(crate::store::open(protocol::id::Role::Verifier, &url).await.unwrap());
        crate::store::EventStore::migrate(&store).await.unwrap();
        let entry = |byte: u8, len: usize| {
            let mut entry = vec![byte; 24];
            for field in [b"ima-ng".to_vec(), vec![byte; len]] {
                entry.extend_from_slice(&u32::try_from(field.len()).unwrap().to_le_bytes());
                entry.extend_from_slice(&field);
            }
            entry
        };
        let node_id = NodeId([1; 32]);
        let put =
            async |entries: u64, list: &[u8]| store.put_ima_part(node_id, 0, entries, list, (1, 0)).await.unwrap();
        let parts = async || {
            let row = store.0.row("SELECT COUNT(*) FROM ima_part", &[]).await.unwrap().unwrap();
            (row.get::<i64>(0).unwrap(), store.ima_list(node_id).await.unwrap().unwrap().bytes)
        };
        let long = entry(1, MAX_PART_LEN);
        put(1, &long).await;
        let grown = [long.as_slice(), &entry(2, 9)].concat();
        put(2, &grown).await;
        assert_eq!(parts().await, (2, grown.clone()), "the long part stays as it is");
        let grown = [grown, entry(3, 9)].concat();
        put(3, &grown).await;
        put(3, &grown).await;
        assert_eq!(parts().await, (2, grown));
        // Another list is kept in place of the one before, and a shorter one ends where it ends.
        let other = [entry(4, MAX_PART_LEN), entry(3, 9)].concat();
        put(2, &other).await;
        assert_eq!(parts().await, (1, other.clone()));
        put(1, &other[..other.len() - entry(3, 9).len()]).await;
        assert_eq!(parts().await, (1, entry(4, MAX_PART_LEN)));
    }

    #[test]
    fn trust_ends_after_its_length_and_when_the_clock_was_set_back() {
        let verdict = VerdictRow {
            id: 1,
            node_id: NodeId([1; 32]),
            nonce_ms: 100_000,
            valid_ms: 30_000,
            outcome: Outcome::Good,
            purpose: "attest".into(),
            policy: None,
            explanation: serde_json::Value::Null,
            fence: 1,
            counter: 1,
        };
        let at = |now_ms| trust("good", Some(&verdict), now_ms).unwrap();
        assert_eq!(at(100_000), Trust::Good);
        assert_eq!(at(130_000), Trust::Good);
        assert_eq!(at(130_001), Trust::Stale);
        assert_eq!(at(99_000), Trust::Good);
        assert_eq!(at(98_999), Trust::Stale);
        assert_eq!(at(i64::MAX), Trust::Stale);
        assert_eq!(at(i64::MIN), Trust::Stale);
        assert_eq!(trust("failed", Some(&verdict), 100_000).unwrap(), Trust::Failed);
        assert!(matches!(trust("good", None, 0), Err(StoreError::Corrupt(_))));
    }
}
