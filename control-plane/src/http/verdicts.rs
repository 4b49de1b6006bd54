//! GET /api/v1/verdicts: what the appraisers decided, over the whole fleet.

use axum::Json;
use axum::extract::State;
use protocol::id::NodeId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiState;
use super::extract::{InQuery, limit};
use super::model::Verdicts;
use super::nodes::verdict;
use crate::error::{ApiError, Problem};

/// How many entries are wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VerdictQuery {
    /// At most this many, 1 to 500; 100 unless told otherwise.
    pub limit: Option<u32>,
}

/// List verdicts
///
/// Of both appraisers over all nodes, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/verdicts",
    tag = "history",
    params(VerdictQuery),
    responses(
        (status = 200, description = "Newest first", body = Verdicts),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_verdicts(
    State(state): State<ApiState>,
    InQuery(query): InQuery<VerdictQuery>,
) -> Result<Json<Verdicts>, ApiError> {
    read(&state, None, limit(query.limit)?).await.map(Json)
}

/// Reads the verdicts of both appraisers, newest first.
pub(crate) async fn read(state: &ApiState, node_id: Option<NodeId>, limit: u32) -> Result<Verdicts, ApiError> {
    let (verifier, tenant) = (state.app.verifier.store(), state.app.tenant.store());
    let now_ms = verifier.now_ms().await?;
    let mut verdicts = Vec::new();
    verdicts.extend(verifier.verdicts(node_id, limit).await?.into_iter().map(|row| verdict("verifier", row, now_ms)));
    verdicts.extend(tenant.verdicts(node_id, limit).await?.into_iter().map(|row| verdict("tenant", row, now_ms)));
    verdicts.sort_by_key(|verdict| std::cmp::Reverse(verdict.at_ms));
    verdicts.truncate(limit as usize);
    Ok(Verdicts { verdicts })
}
