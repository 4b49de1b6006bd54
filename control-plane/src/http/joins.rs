//! /api/v1/joins: join tokens on record. They are made only together with a node, by whoever seals its payload.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use protocol::id::JoinId;

use super::ApiState;
use super::extract::{InPath, hex_field};
use super::model::{Join, Joins};
use crate::error::{ApiError, Problem};
use crate::store::StoreError;

/// List join tokens
///
/// Newest first. The tokens themselves are not known here.
#[utoipa::path(
    get,
    path = "/api/v1/joins",
    tag = "joins",
    responses(
        (status = 200, description = "All of them", body = Joins),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_joins(State(state): State<ApiState>) -> Result<Json<Joins>, ApiError> {
    let store = state.app.tenant.store();
    let now_ms = store.now_ms().await?;
    let joins = store.joins().await?.into_iter().map(|row| Join {
        state: match (row.used_by, row.revoked) {
            (Some(_), _) => "used",
            (None, true) => "revoked",
            (None, false) if row.join.expires_ms <= now_ms => "expired",
            (None, false) => "open",
        }
        .into(),
        join_id: row.join.join_id.to_string(),
        name: row.name,
        expires_ms: row.join.expires_ms,
        used_by: row.used_by.map(|id| id.to_string()),
    });
    Ok(Json(Joins { joins: joins.collect() }))
}

/// Revoke a join token
///
/// It admits nobody any more. A node that used it stays.
#[utoipa::path(
    delete,
    path = "/api/v1/joins/{join}",
    tag = "joins",
    params(("join" = String, Path, description = "Join id, 64 hex digits")),
    responses(
        (status = 204, description = "It is revoked"),
        (status = 404, description = "`unknown_join`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn revoke_join(
    State(state): State<ApiState>,
    InPath(join): InPath<String>,
) -> Result<StatusCode, ApiError> {
    let join_id = JoinId(hex_field("join", &join)?);
    let tenant = state.app.tenant.store();
    if tenant.join(join_id).await?.is_none() {
        return Err(ApiError::unknown("unknown_join", format!("No join token has the id {join_id}.")));
    }
    // The tenant first: without its consent a binding that the registrar may still make leads nowhere.
    tenant.revoke_join(join_id).await?;
    match state.app.registrar.store().revoke_join(join_id).await {
        // It was never told of the token, and the tenant admits nobody by it.
        Ok(()) | Err(StoreError::NotFound(_)) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(error.into()),
    }
}
