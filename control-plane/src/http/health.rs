//! GET /healthz: whether the three stores answer. No token is needed, and nothing else is told.

use axum::Json;
use axum::extract::State;

use super::ApiState;
use super::model::Health;
use crate::error::{ApiError, Problem};

/// Whether the server is well
///
/// Asks the database of every role for its clock.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "server",
    security(()),
    responses(
        (status = 200, description = "All is well", body = Health),
        (status = 503, description = "`store_unavailable`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn health(State(state): State<ApiState>) -> Result<Json<Health>, ApiError> {
    state.app.registrar.store().now_ms().await?;
    state.app.verifier.store().now_ms().await?;
    state.app.tenant.store().now_ms().await?;
    Ok(Json(Health { status: "ok".into(), version: env!("CARGO_PKG_VERSION").into() }))
}
