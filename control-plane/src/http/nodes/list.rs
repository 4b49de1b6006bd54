//! GET /api/v1/nodes.

use axum::Json;
use axum::extract::State;

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::extract::{InQuery, limit};
use crate::http::model::{Nodes, Page};

/// List nodes
///
/// By name; `next` of one page is `after` of the next.
#[utoipa::path(
    get,
    path = "/api/v1/nodes",
    tag = "nodes",
    params(Page),
    responses(
        (status = 200, description = "A page of the fleet", body = Nodes),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_nodes(
    State(state): State<ApiState>,
    InQuery(page): InQuery<Page>,
) -> Result<Json<Nodes>, ApiError> {
    let limit = limit(page.limit)?;
    let rows = state.app.tenant.store().nodes(page.after.as_deref(), limit).await?;
    let next = rows.last().filter(|_| rows.len() as u64 >= u64::from(limit)).map(|node| node.name.clone());
    let mut nodes = Vec::with_capacity(rows.len());
    for row in &rows {
        nodes.push(super::view(&state, row).await?);
    }
    Ok(Json(Nodes { nodes, next }))
}
