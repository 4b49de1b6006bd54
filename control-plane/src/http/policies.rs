//! /api/v1/policies: what a good node looks like, as uploaded.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::ApiState;
use super::extract::{InPath, RawBody, find_policy, policy_hex};
use super::model::{Policies, Policy};
use crate::error::{ApiError, Problem};
use crate::store::{PolicyRow, StoreError};

/// Upload a policy
///
/// TOML or JSON, in a DSSE envelope or not, stored as it is; its id is the SHA-256 of its bytes. The same bytes again change
/// nothing. Where a role has `policy_keys`, one of them has to have signed it.
#[utoipa::path(
    post,
    path = "/api/v1/policies",
    tag = "policies",
    request_body(content = String, content_type = "application/toml", description = "The policy's text"),
    responses(
        (status = 201, description = "It is stored with both appraisers", body = Policy),
        (status = 422, description = "`policy_invalid`, `policy_unsigned`, `policy_signature_bad`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn add_policy(
    State(state): State<ApiState>,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<Policy>), ApiError> {
    let app = state.app.clone();
    // A long one takes its time, which is not the executor's.
    let read = tokio::task::spawn_blocking(move || app.read_policy(&body).map(|policy| (policy, body))).await;
    let (policy, body) = read
        .map_err(|_| StoreError::Corrupt("policy"))?
        .map_err(|error| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error.code(), format!("{error}.")))?;
    let id = state.app.put_policy(&policy, &body).await?;
    let row = find_policy(&**state.app.tenant.store(), &policy_hex(id)).await?;
    Ok((StatusCode::CREATED, Json(view(row, false))))
}

/// List policies
///
/// Newest first, without their texts.
#[utoipa::path(
    get,
    path = "/api/v1/policies",
    tag = "policies",
    responses(
        (status = 200, description = "All of them", body = Policies),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_policies(State(state): State<ApiState>) -> Result<Json<Policies>, ApiError> {
    let rows = state.app.tenant.store().policies().await?;
    Ok(Json(Policies { policies: rows.into_iter().rev().map(|row| view(row, false)).collect() }))
}

/// Show a policy
///
/// By id, unambiguous prefix of it, or name: of several with one name the newest.
#[utoipa::path(
    get,
    path = "/api/v1/policies/{policy}",
    tag = "policies",
    params(("policy" = String, Path, description = "Id, unambiguous prefix of it, or name")),
    responses(
        (status = 200, description = "With its text", body = Policy),
        (status = 404, description = "`unknown_policy`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_policy(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
) -> Result<Json<Policy>, ApiError> {
    let row = find_policy(&**state.app.tenant.store(), &wanted).await?;
    Ok(Json(view(row, true)))
}

fn view(row: PolicyRow, with_body: bool) -> Policy {
    // What was accepted is TOML or JSON, so it is UTF-8.
    let body = with_body.then(|| String::from_utf8_lossy(&row.body).into_owned());
    Policy { id: policy_hex(row.id), name: row.name, created_ms: row.created_ms, body }
}
