//! POST /api/v1/nodes/{node}/stop and …/resume.

use axum::Json;
use axum::extract::State;

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::extract::{InPath, find_node};
use crate::http::model::Node;
use crate::store::tenant::NodeChange;

/// Stop a node
///
/// No rounds and no share until it is resumed.
#[utoipa::path(
    post,
    path = "/api/v1/nodes/{node}/stop",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it")),
    responses(
        (status = 200, description = "The node as it is now", body = Node),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn stop_node(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
) -> Result<Json<Node>, ApiError> {
    let node = find_node(&**state.app.tenant.store(), &wanted).await?;
    let change = NodeChange { stopped: Some(true), ..NodeChange::default() };
    let node = state.app.tenant.change_node(&node.name, change).await?;
    Ok(Json(super::view(&state, &node).await?))
}

/// Resume a node
///
/// One that was stopped goes on; one that failed, or whose counters went back, may be good again with its next good
/// verdict.
#[utoipa::path(
    post,
    path = "/api/v1/nodes/{node}/resume",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it")),
    responses(
        (status = 200, description = "The node as it is now", body = Node),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn resume_node(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
) -> Result<Json<Node>, ApiError> {
    let store = state.app.tenant.store();
    let node = find_node(&**store, &wanted).await?;
    let node = state.app.resume(&node).await?;
    Ok(Json(super::view(&state, &node).await?))
}
