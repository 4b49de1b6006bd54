//! GET /api/v1/nodes/{node}.

use axum::Json;
use axum::extract::State;

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::extract::{InPath, find_node};
use crate::http::model::Node;

/// Show a node
///
/// By name, node id, or unambiguous prefix of the id of 8 digits or more.
#[utoipa::path(
    get,
    path = "/api/v1/nodes/{node}",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it")),
    responses(
        (status = 200, description = "The node as it is now", body = Node),
        (status = 404, description = "`unknown_node`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`ambiguous`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_node(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
) -> Result<Json<Node>, ApiError> {
    let node = find_node(&**state.app.tenant.store(), &wanted).await?;
    Ok(Json(super::view(&state, &node).await?))
}
