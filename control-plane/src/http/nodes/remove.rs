//! DELETE /api/v1/nodes/{node}.

use axum::extract::State;
use axum::http::StatusCode;

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::extract::{InPath, find_node};

/// Remove a node
///
/// Its admission, binding, sealings, verdicts and releases are forgotten by every role; its events stay.
#[utoipa::path(
    delete,
    path = "/api/v1/nodes/{node}",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "`unknown_node`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn remove_node(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
) -> Result<StatusCode, ApiError> {
    let node = find_node(&**state.app.tenant.store(), &wanted).await?;
    state.app.tenant.remove_node(&node.name).await?;
    Ok(StatusCode::NO_CONTENT)
}
