//! /api/v1/tokens: who may call this API. A token is shown once, when it is made; its hash is kept.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rand_core::OsRng;

use super::ApiState;
use super::extract::{Body, InPath, shown};
use super::model::{MadeToken, NewToken, Token, Tokens};
use crate::error::{ApiError, Problem};
use crate::store::tenant::{ApiRole, ApiTokenRow};
use crate::token::ApiToken;

/// The longest life of a token that has an end, milliseconds: ten years.
const MAX_LIFETIME_MS: i64 = 3653 * 86_400_000;

/// Make an API token
///
/// The answer is the only time that it is shown.
#[utoipa::path(
    post,
    path = "/api/v1/tokens",
    tag = "tokens",
    request_body = NewToken,
    responses(
        (status = 201, description = "The token", body = MadeToken),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn add_token(
    State(state): State<ApiState>,
    Body(new): Body<NewToken>,
) -> Result<(StatusCode, Json<MadeToken>), ApiError> {
    if new.expires_in_ms.is_some_and(|lifetime| !(1..=MAX_LIFETIME_MS).contains(&lifetime)) {
        return Err(ApiError::bad_request(format!("expires_in_ms: 1 to {MAX_LIFETIME_MS}.")));
    }
    let store = state.app.tenant.store();
    let created_ms = store.now_ms().await?;
    let token = ApiToken::generate(&mut OsRng);
    let row = ApiTokenRow {
        hash: token.hash(),
        label: token.label().into(),
        role: new.role.into(),
        created_ms,
        expires_ms: new.expires_in_ms.map(|lifetime| created_ms.saturating_add(lifetime)),
    };
    store.add_token(&row).await?;
    let made = MadeToken { token: token.expose().into(), label: row.label, role: new.role, expires_ms: row.expires_ms };
    Ok((StatusCode::CREATED, Json(made)))
}

/// List API tokens
///
/// Newest first, without the tokens themselves.
#[utoipa::path(
    get,
    path = "/api/v1/tokens",
    tag = "tokens",
    responses(
        (status = 200, description = "All of them", body = Tokens),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_tokens(State(state): State<ApiState>) -> Result<Json<Tokens>, ApiError> {
    let tokens = state.app.tenant.store().tokens().await?.into_iter().map(|row| Token {
        label: row.label,
        role: row.role.into(),
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
    });
    Ok(Json(Tokens { tokens: tokens.collect() }))
}

/// End an API token
///
/// The last admin token that does not expire stays: without it nobody could make another.
#[utoipa::path(
    delete,
    path = "/api/v1/tokens/{label}",
    tag = "tokens",
    params(("label" = String, Path, description = "The token's label")),
    responses(
        (status = 204, description = "It is ended"),
        (status = 404, description = "`unknown_token`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`last_admin`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn revoke_token(
    State(state): State<ApiState>,
    InPath(label): InPath<String>,
) -> Result<StatusCode, ApiError> {
    let store = state.app.tenant.store();
    let tokens = store.tokens().await?;
    if !tokens.iter().any(|row| row.label == label) {
        return Err(ApiError::unknown("unknown_token", format!("No API token has the label `{}`.", shown(&label))));
    }
    let lasting = |row: &&ApiTokenRow| row.role == ApiRole::Admin && row.expires_ms.is_none();
    if tokens.iter().any(|row| lasting(&row)) && !tokens.iter().filter(lasting).any(|row| row.label != label) {
        return Err(ApiError::conflict(
            "last_admin",
            "This is the last admin token that does not expire; make another first.",
        ));
    }
    store.revoke_token(&label).await?;
    Ok(StatusCode::NO_CONTENT)
}
