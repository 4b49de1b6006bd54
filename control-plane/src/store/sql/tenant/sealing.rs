//! Sealings and their chunks. Never more than [`CHUNKS_AT_ONCE`] chunks are in memory.

use protocol::id::{SealingId, Subject};
use sha2::{Digest, Sha256};

use super::super::{Db, Durability, Row, Tx, codec, values};
use crate::store::{Conflict, StoreError, tenant::SealingRow};

const SELECT: &str = "SELECT sealing_id, subject, manifest, signature, u_sealed, v_sealed, ciphertext_len,
    ciphertext_digest, complete, created_ms, seq, chunk_writes FROM sealing";

/// Begins a sealing, or takes up the same one again.
pub(super) async fn begin(db: &Db, sealing: &SealingRow) -> Result<(), StoreError> {
    // A length that is no i64 is none that chunks could ever add up to.
    let len = i64::try_from(sealing.ciphertext_len).map_err(|_| StoreError::Conflict(Conflict::SealingIncomplete))?;
    db.has_room(sealing.ciphertext_len)?;
    let mut tx = db.begin(Durability::Now).await?;
    let insert = "INSERT INTO sealing (sealing_id, subject, manifest, signature, u_sealed, v_sealed, ciphertext_len,
            ciphertext_digest, created_ms)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, (SELECT now_ms FROM clock)) ON CONFLICT (sealing_id) DO NOTHING";
    let subject = sealing.subject.to_bytes();
    let values = values![
        &sealing.sealing_id.0,
        &subject,
        &sealing.manifest,
        &sealing.signature,
        &sealing.u_sealed,
        &sealing.v_sealed,
        len,
        &sealing.ciphertext_digest,
    ];
    if tx.write(insert, values).await? == 0 {
        let row = tx.row(&format!("{SELECT} WHERE sealing_id = $1"), values![&sealing.sealing_id.0]).await?;
        let stored = sealing_row(&row.ok_or(StoreError::Conflict(Conflict::SealingExists))?)?;
        let same = SealingRow { complete: false, created_ms: stored.created_ms, ..sealing.clone() };
        if stored != same {
            return Err(StoreError::Conflict(Conflict::SealingExists));
        }
    }
    tx.commit().await
}

/// Stores one chunk, of the one length that its place allows: so an upload is never larger than what was announced.
pub(super) async fn put_chunk(db: &Db, sealing_id: SealingId, index: u32, chunk: &[u8]) -> Result<(), StoreError> {
    let mut tx = db.begin(Durability::Now).await?;
    // Counted first: the count's row lock orders this against other chunks and against the completion.
    let count = "UPDATE sealing SET chunk_writes = chunk_writes + 1
        WHERE sealing_id = $1 AND NOT complete RETURNING ciphertext_len";
    let Some(row) = tx.row(count, values![&sealing_id.0]).await? else {
        return Err(not_open(&mut tx, sealing_id).await?);
    };
    let expected_len = chunk_len(row.get(0)?, index);
    if expected_len.is_none() || expected_len != i64::try_from(chunk.len()).ok() {
        return Err(StoreError::Conflict(Conflict::SealingIncomplete));
    }
    let sql = "INSERT INTO chunk (sealing_id, number, ciphertext) VALUES ($1, $2, $3)
        ON CONFLICT (sealing_id, number) DO UPDATE SET ciphertext = excluded.ciphertext";
    tx.write(sql, values![&sealing_id.0, index, chunk]).await?;
    tx.commit().await
}

async fn not_open(tx: &mut Tx, sealing_id: SealingId) -> Result<StoreError, StoreError> {
    let row = tx.row("SELECT 1 FROM sealing WHERE sealing_id = $1", values![&sealing_id.0]).await?;
    Ok(match row {
        Some(_) => StoreError::Conflict(Conflict::SealingComplete),
        None => StoreError::NotFound("sealing"),
    })
}

/// Bytes of the chunk at a place in a ciphertext of `len` bytes; `None` beyond its end.
fn chunk_len(len: i64, index: u32) -> Option<i64> {
    let left = len - i64::from(index) * CHUNK_LEN;
    (left > 0).then_some(left.min(CHUNK_LEN))
}

/// Hashes the chunks outside of any transaction, and completes the sealing only if none was written meanwhile.
pub(super) async fn finish(db: &Db, sealing_id: SealingId) -> Result<(), StoreError> {
    let row = db.row(&format!("{SELECT} WHERE sealing_id = $1"), values![&sealing_id.0]).await?;
    let row = row.ok_or(StoreError::NotFound("sealing"))?;
    let (sealing, chunk_writes) = (sealing_row(&row)?, row.get::<i64>(11)?);
    if sealing.complete {
        return Ok(());
    }
    let incomplete = StoreError::Conflict(Conflict::SealingIncomplete);
    let (len, digest) = match hash_chunks(db, sealing_id).await? {
        Some(found) => found,
        None => return Err(incomplete),
    };
    if len != sealing.ciphertext_len || digest != sealing.ciphertext_digest {
        return Err(incomplete);
    }
    let sql = "UPDATE sealing SET complete = TRUE WHERE sealing_id = $1 AND chunk_writes = $2";
    match db.write(Durability::Now, sql, values![&sealing_id.0, chunk_writes]).await? {
        0 => Err(incomplete),
        _ => Ok(()),
    }
}

/// Length and SHA-256 of the chunks in order; `None` if one is missing between two.
async fn hash_chunks(db: &Db, sealing_id: SealingId) -> Result<Option<(u64, [u8; 32])>, StoreError> {
    let sql = "SELECT number, ciphertext FROM chunk WHERE sealing_id = $1 AND number >= $2 ORDER BY number LIMIT $3";
    let (mut hash, mut len, mut next) = (Sha256::new(), 0, 0_i64);
    loop {
        let rows = db.rows(sql, values![&sealing_id.0, next, CHUNKS_AT_ONCE]).await?;
        if rows.is_empty() {
            return Ok(Some((len, hash.finalize().into())));
        }
        for row in rows {
            if row.get::<i64>(0)? != next {
                return Ok(None);
            }
            let chunk: Vec<u8> = row.get(1)?;
            hash.update(&chunk);
            len += chunk.len() as u64;
            next += 1;
        }
    }
}

/// Reads a sealing.
pub(super) async fn one(db: &Db, sealing_id: SealingId) -> Result<Option<SealingRow>, StoreError> {
    let row = db.row(&format!("{SELECT} WHERE sealing_id = $1"), values![&sealing_id.0]).await?;
    row.as_ref().map(sealing_row).transpose()
}

/// Reads the sealings for some subjects, newest first.
pub(super) async fn of_subjects(db: &Db, subjects: &[Subject]) -> Result<Vec<SealingRow>, StoreError> {
    let mut found: Vec<(i64, SealingRow)> = Vec::new();
    for subject in subjects {
        let rows = db.rows(&format!("{SELECT} WHERE subject = $1"), values![&subject.to_bytes()]).await?;
        for row in rows {
            found.push((row.get(10)?, sealing_row(&row)?));
        }
    }
    found.sort_unstable_by_key(|(seq, _)| std::cmp::Reverse(*seq));
    // The same subject may have been named twice.
    found.dedup_by_key(|(seq, _)| *seq);
    Ok(found.into_iter().map(|(_, sealing)| sealing).collect())
}

/// Reads one chunk.
pub(super) async fn chunk(db: &Db, sealing_id: SealingId, index: u32) -> Result<Option<Vec<u8>>, StoreError> {
    let sql = "SELECT ciphertext FROM chunk WHERE sealing_id = $1 AND number = $2";
    db.row(sql, values![&sealing_id.0, index]).await?.map(|row| row.get(0)).transpose()
}

fn sealing_row(row: &Row) -> Result<SealingRow, StoreError> {
    Ok(SealingRow {
        sealing_id: SealingId(row.array(0)?),
        subject: codec::subject(&row.array(1)?)?,
        manifest: row.get(2)?,
        signature: row.array(3)?,
        u_sealed: row.get(4)?,
        v_sealed: row.get(5)?,
        ciphertext_len: u64::try_from(row.get::<i64>(6)?).map_err(|_| StoreError::Corrupt("a negative length"))?,
        ciphertext_digest: row.array(7)?,
        complete: row.get(8)?,
        created_ms: row.get(9)?,
    })
}

/// A chunk of plaintext and its tag; only the last may be shorter.
const CHUNK_LEN: i64 = 64 * 1024 + 16;
/// Chunks read at once while hashing: half a megabyte.
const CHUNKS_AT_ONCE: i64 = 8;
