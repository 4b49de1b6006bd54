//! POST /api/v1/nodes.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use protocol::id::{JoinId, NodeId, Subject};

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::extract::{Body, hex_bytes, hex_field};
use crate::http::model::{DEFAULT_INTERVAL_MS, MAX_JOIN_LIFETIME_MS, NewNode, Node};
use crate::store::tenant::{self, NewAdmission, NewJoin};

/// Bytes of a sealed join key: an HPKE share is far shorter.
const MAX_SEALED_KEY_LEN: usize = 512;

/// Add a node
///
/// Admits a node id or a join token for a name, and says what its payload and policy are. The sealing has to be uploaded
/// and finished before.
#[utoipa::path(
    post,
    path = "/api/v1/nodes",
    tag = "nodes",
    request_body = NewNode,
    responses(
        (status = 201, description = "It is added", body = Node),
        (status = 409, description = "`name_taken`, `node_id_taken`, `sealing_incomplete`, `sealing_for_another`, `sealing_invalid`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`policy_unsigned`, `policy_signature_bad`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn add_node(
    State(state): State<ApiState>,
    Body(new): Body<NewNode>,
) -> Result<(StatusCode, HeaderMap, Json<Node>), ApiError> {
    if !is_name(&new.name) {
        return Err(ApiError::bad_request(
            "name: 1 to 63 of a-z, 0-9, dot and hyphen, beginning with a letter or digit.",
        ));
    }
    let store = state.app.tenant.store();
    let admission = match (new.node_id, new.join) {
        (Some(id), None) => NewAdmission::Node(NodeId(hex_field("node_id", &id)?)),
        (None, Some(join)) => {
            if !(1..=MAX_JOIN_LIFETIME_MS).contains(&join.expires_in_ms) {
                return Err(ApiError::bad_request(format!("join.expires_in_ms: 1 to {MAX_JOIN_LIFETIME_MS}.")));
            }
            NewAdmission::Join(NewJoin {
                join_id: JoinId(hex_field("join.join_id", &join.join_id)?),
                tenant_key: hex_bytes("join.tenant_key", &join.tenant_key, MAX_SEALED_KEY_LEN)?,
                registrar_key: hex_bytes("join.registrar_key", &join.registrar_key, MAX_SEALED_KEY_LEN)?,
                expires_ms: store.now_ms().await?.saturating_add(join.expires_in_ms),
            })
        }
        _ => return Err(ApiError::bad_request("Exactly one of node_id and join says whose the node is.")),
    };
    let subject = match &admission {
        NewAdmission::Node(id) => Subject::Node(*id),
        NewAdmission::Join(join) => Subject::Join(join.join_id),
    };
    let policy = match &new.policy {
        Some(wanted) => Some(super::policy_for(&state, wanted, false).await?),
        None => None,
    };
    let verifier_policy = match &new.verifier_policy {
        Some(wanted) => Some(super::policy_for(&state, wanted, true).await?),
        None => None,
    };
    if let (Some(wanted), None) = (&new.policy, verifier_policy) {
        super::policy_for(&state, wanted, true).await?;
    }
    let interval_ms = super::interval(new.interval_ms.unwrap_or(DEFAULT_INTERVAL_MS))?;
    let pins = super::pins(new.pins)?;
    let sealing_id = match &new.sealing_id {
        Some(given) => Some(super::sealing_for(&**store, given, &[subject], &pins).await?),
        None => None,
    };
    let node = tenant::NewNode { name: new.name, admission, policy, verifier_policy, interval_ms, pins, sealing_id };
    let node = state.app.tenant.add_node(node).await?;

    let mut headers = HeaderMap::new();
    if let Ok(location) = HeaderValue::try_from(format!("/api/v1/nodes/{}", node.name)) {
        headers.insert(header::LOCATION, location);
    }
    Ok((StatusCode::CREATED, headers, Json(super::view(&state, &node).await?)))
}

/// `[a-z0-9][a-z0-9.-]{0,62}`
pub(crate) fn is_name(text: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.as_bytes().first().is_some_and(plain)
        && text.bytes().all(|byte| plain(&byte) || byte == b'.' || byte == b'-')
}
