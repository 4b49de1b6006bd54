//! /api/v1/sealings: encrypted payloads, uploaded in chunks.
//!
//! Only ciphertext passes here. What describes a sealing is read from its manifest, never taken on trust; whether the
//! manifest is the tenant's is checked when a node is to use it, against the keys that the node pins. A sealing that no
//! node uses is garbage and harms nobody.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use protocol::crypto::Manifest;
use protocol::crypto::payload::SEALED_CHUNK_LEN;
use protocol::crypto::share::SealedShare;
use protocol::id::SealingId;
use protocol::limits::MAX_MANIFEST_LEN;

use super::ApiState;
use super::extract::{Body, InPath, RawBody, hex_bytes, hex_field};
use super::model::{NewSealing, Sealing};
use crate::error::{ApiError, Problem};
use crate::store::StoreError;
use crate::store::tenant::SealingRow;

/// Bytes of a sealed share: `enc` and ciphertext are far shorter.
const MAX_SEALED_SHARE_LEN: usize = 512;

/// Begin a sealing
///
/// The same one again takes up an upload that broke off.
#[utoipa::path(
    post,
    path = "/api/v1/sealings",
    tag = "sealings",
    request_body = NewSealing,
    responses(
        (status = 201, description = "Its chunks may come", body = Sealing),
        (status = 409, description = "`sealing_exists`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`sealing_invalid`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn begin_sealing(
    State(state): State<ApiState>,
    Body(new): Body<NewSealing>,
) -> Result<(StatusCode, Json<Sealing>), ApiError> {
    let invalid = |detail: String| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "sealing_invalid", detail);
    let bytes = hex_bytes("manifest", &new.manifest, MAX_MANIFEST_LEN)?;
    let manifest = Manifest::decode(&bytes).map_err(|error| invalid(format!("manifest: {error}.")))?;
    let share = |field: &str, text: &str| -> Result<Vec<u8>, ApiError> {
        let bytes = hex_bytes(field, text, MAX_SEALED_SHARE_LEN)?;
        SealedShare::from_bytes(&bytes).map_err(|error| invalid(format!("{field}: {error}.")))?;
        Ok(bytes)
    };
    let row = SealingRow {
        sealing_id: manifest.sealing_id,
        subject: manifest.subject,
        signature: hex_field("signature", &new.signature)?,
        u_sealed: share("u_sealed", &new.u_sealed)?,
        v_sealed: share("v_sealed", &new.v_sealed)?,
        ciphertext_len: manifest.ciphertext_len,
        ciphertext_digest: manifest.ciphertext_digest,
        manifest: bytes,
        complete: false,
        created_ms: 0,
    };
    let store = state.app.tenant.store();
    store.begin_sealing(&row).await?;
    let row = store.sealing(row.sealing_id).await?.ok_or(StoreError::NotFound("sealing"))?;
    Ok((StatusCode::CREATED, Json(view(&row)?)))
}

/// Upload a chunk
///
/// 65,552 bytes but for the last. The same index again replaces it until the sealing is finished.
#[utoipa::path(
    put,
    path = "/api/v1/sealings/{sealing}/chunks/{index}",
    tag = "sealings",
    params(("sealing" = String, Path, description = "Sealing id"), ("index" = u32, Path, description = "From 0")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "Ciphertext"),
    responses(
        (status = 204, description = "It is stored"),
        (status = 409, description = "`sealing_complete`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn put_chunk(
    State(state): State<ApiState>,
    InPath((sealing, index)): InPath<(String, u32)>,
    RawBody(body): RawBody,
) -> Result<StatusCode, ApiError> {
    let row = find(&state, &sealing).await?;
    // No more is kept than the manifest announces.
    let from = u64::from(index).saturating_mul(SEALED_CHUNK_LEN as u64);
    let expected = row.ciphertext_len.saturating_sub(from).min(SEALED_CHUNK_LEN as u64);
    if expected == 0 || body.len() as u64 != expected {
        return Err(ApiError::bad_request(format!(
            "Chunk {index} of this sealing has {expected} bytes, {} came.",
            body.len()
        )));
    }
    state.app.tenant.store().put_chunk(row.sealing_id, index, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Finish a sealing
///
/// Its chunks are compared with the manifest's length and digest. Only then can a node use it.
#[utoipa::path(
    post,
    path = "/api/v1/sealings/{sealing}/finish",
    tag = "sealings",
    params(("sealing" = String, Path, description = "Sealing id")),
    responses(
        (status = 200, description = "It is complete", body = Sealing),
        (status = 409, description = "`sealing_incomplete`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn finish_sealing(
    State(state): State<ApiState>,
    InPath(sealing): InPath<String>,
) -> Result<Json<Sealing>, ApiError> {
    let row = find(&state, &sealing).await?;
    state.app.tenant.store().finish_sealing(row.sealing_id).await?;
    get_sealing(State(state), InPath(sealing)).await
}

/// Show a sealing
///
/// What its manifest says; never its shares.
#[utoipa::path(
    get,
    path = "/api/v1/sealings/{sealing}",
    tag = "sealings",
    params(("sealing" = String, Path, description = "Sealing id")),
    responses(
        (status = 200, description = "The sealing", body = Sealing),
        (status = 404, description = "`unknown_sealing`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_sealing(
    State(state): State<ApiState>,
    InPath(sealing): InPath<String>,
) -> Result<Json<Sealing>, ApiError> {
    Ok(Json(view(&find(&state, &sealing).await?)?))
}

async fn find(state: &ApiState, id: &str) -> Result<SealingRow, ApiError> {
    let id = SealingId(hex_field("sealing", id)?);
    let row = state.app.tenant.store().sealing(id).await?;
    row.ok_or_else(|| ApiError::unknown("unknown_sealing", format!("No sealing {id} was begun.")))
}

fn view(row: &SealingRow) -> Result<Sealing, ApiError> {
    let manifest = Manifest::decode(&row.manifest).map_err(|_| StoreError::Corrupt("manifest"))?;
    Ok(Sealing {
        sealing_id: row.sealing_id.to_string(),
        subject: row.subject.to_string(),
        version: manifest.version,
        autorun: manifest.autorun,
        not_after: manifest.not_after.map(std::num::NonZeroU64::get),
        ciphertext_len: row.ciphertext_len,
        chunk_count: row.ciphertext_len.div_ceil(SEALED_CHUNK_LEN as u64),
        complete: row.complete,
        created_ms: row.created_ms,
    })
}
