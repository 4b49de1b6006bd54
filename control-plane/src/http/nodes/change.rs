//! PATCH /api/v1/nodes/{node}.

use axum::Json;
use axum::extract::State;
use protocol::id::Subject;

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::extract::{Body, InPath, find_node, policy_hex};
use crate::http::model::{Node, NodeChange};
use crate::store::tenant;

/// Change a node
///
/// What is left out stays. Another payload takes effect at the node's next boot.
#[utoipa::path(
    patch,
    path = "/api/v1/nodes/{node}",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it")),
    request_body = NodeChange,
    responses(
        (status = 200, description = "The node as it is now", body = Node),
        (status = 404, description = "`unknown_node`, `unknown_policy`, `unknown_sealing`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`ambiguous`, `sealing_incomplete`, `sealing_for_another`, `sealing_invalid`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`policy_unsigned`, `policy_signature_bad`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change_node(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
    Body(change): Body<NodeChange>,
) -> Result<Json<Node>, ApiError> {
    let store = state.app.tenant.store();
    let node = find_node(&**store, &wanted).await?;
    let pins = change.pins.map(super::pins).transpose()?;
    let policy = match &change.policy {
        Some(wanted) => Some(super::policy_for(&state, wanted, false).await?),
        None => None,
    };
    let verifier_policy = match change.verifier_policy.as_deref() {
        Some("") => Some(None),
        Some(wanted) => Some(Some(super::policy_for(&state, wanted, true).await?)),
        None => None,
    };
    // What both are judged by has to do for both.
    if matches!((verifier_policy, node.verifier_policy), (Some(None), _) | (None, None))
        && (change.policy.is_some() || verifier_policy.is_some())
        && let Some(shared) = policy.or(node.policy)
    {
        super::policy_for(&state, &policy_hex(shared), true).await?;
    }
    let sealing_id = match &change.sealing_id {
        Some(given) => {
            let subjects: Vec<Subject> =
                node.node_id.map(Subject::Node).into_iter().chain(node.join_id.map(Subject::Join)).collect();
            Some(super::sealing_for(&**store, given, &subjects, pins.as_ref().unwrap_or(&node.pins)).await?)
        }
        None => None,
    };
    let interval_ms = change.interval_ms.map(super::interval).transpose()?;
    let change = tenant::NodeChange { policy, verifier_policy, interval_ms, sealing_id, stopped: None, pins };
    let node = if change == tenant::NodeChange::default() {
        node
    } else {
        state.app.tenant.change_node(&node.name, change).await?
    };
    Ok(Json(super::view(&state, &node).await?))
}
