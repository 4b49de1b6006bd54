//! /api/v1/quarantine: nodes that proved a TPM and that nobody has admitted; an operator approves or rejects them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use protocol::id::NodeId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Caller;
use super::extract::{Body, InPath, ambiguous, is_prefix, shown};
use super::model::{DEFAULT_INTERVAL_MS, Hardware, Node, NodePins};
use super::{ApiState, nodes};
use crate::error::{ApiError, Problem};
use crate::registrar::MAX_QUARANTINED;
use crate::store::registrar::{self, Quarantined};
use crate::store::tenant::{self, NewAdmission};

/// Characters of a reason.
const MAX_REASON_LEN: usize = 500;

/// A node in quarantine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct QuarantinedNode {
    /// Digest of its EK.
    pub node_id: String,
    /// Name of the AK that it came with last.
    pub ak_name: String,
    /// What is known of its TPM: `certified` or `unproven`.
    pub hardware: Hardware,
    /// Where it came from last.
    pub peer: String,
    /// When it came first.
    pub first_ms: i64,
    /// When it came last.
    pub last_ms: i64,
}

/// All nodes in quarantine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct QuarantineList {
    /// The one seen last first.
    pub nodes: Vec<QuarantinedNode>,
    /// How many are kept at most; unproven ones that came long ago make room.
    pub max: u32,
}

/// An operator's word that a node is ours.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The node's name from now on.
    pub name: String,
    /// Why; stands in the node's history. 1 to 500 characters.
    pub reason: String,
    /// Policy: id, or name (the newest of that name).
    pub policy: Option<String>,
    /// Another one for the verifier alone.
    pub verifier_policy: Option<String>,
    /// Time between rounds; 10,000 if left out.
    pub interval_ms: Option<i64>,
    /// As when a node is added.
    pub pins: NodePins,
}

/// An operator's word that a node is not ours.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    /// Why; stands in the history. 1 to 500 characters.
    pub reason: String,
}

/// List nodes in quarantine
///
/// Nodes that proved one TPM to hold their keys, and that nobody has admitted. Nothing is given to them.
#[utoipa::path(
    get,
    path = "/api/v1/quarantine",
    tag = "nodes",
    responses(
        (status = 200, description = "All of them", body = QuarantineList),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_quarantine(State(state): State<ApiState>) -> Result<Json<QuarantineList>, ApiError> {
    let rows = state.app.registrar.store().quarantined(MAX_QUARANTINED).await?;
    let nodes = rows
        .into_iter()
        .map(|row| QuarantinedNode {
            node_id: row.node_id.to_string(),
            ak_name: hex::encode(row.ak_name.0),
            hardware: hardware(row.hardware),
            peer: row.peer,
            first_ms: row.first_ms,
            last_ms: row.last_ms,
        })
        .collect();
    Ok(Json(QuarantineList { nodes, max: MAX_QUARANTINED }))
}

/// Approve a node in quarantine
///
/// Admits its node id under a name; the node enrols with its next attempt. Who approved it, and why, is in its history.
#[utoipa::path(
    post,
    path = "/api/v1/quarantine/{node_id}/approve",
    tag = "nodes",
    params(("node_id" = String, Path, description = "Node id, or unambiguous prefix of it")),
    request_body = Approval,
    responses(
        (status = 201, description = "It is admitted", body = Node),
        (status = 404, description = "`nothing_to_approve`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`name_taken`, `node_id_taken`, `ambiguous`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`policy_unsigned`, `policy_signature_bad`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn approve_node(
    State(state): State<ApiState>,
    Extension(Caller(caller)): Extension<Caller>,
    InPath(wanted): InPath<String>,
    Body(approval): Body<Approval>,
) -> Result<(StatusCode, Json<Node>), ApiError> {
    let waiting = find(&state, &wanted).await?;
    if !nodes::add::is_name(&approval.name) {
        return Err(ApiError::bad_request(
            "name: 1 to 63 of a-z, 0-9, dot and hyphen, beginning with a letter or digit.",
        ));
    }
    let reason = reason(&approval.reason)?;
    let policy = match &approval.policy {
        Some(wanted) => Some(nodes::policy_for(&state, wanted, false).await?),
        None => None,
    };
    let verifier_policy = match &approval.verifier_policy {
        Some(wanted) => Some(nodes::policy_for(&state, wanted, true).await?),
        None => None,
    };
    if let (Some(wanted), None) = (&approval.policy, verifier_policy) {
        nodes::policy_for(&state, wanted, true).await?;
    }
    let new = tenant::NewNode {
        name: approval.name,
        admission: NewAdmission::Node(waiting.node_id),
        policy,
        verifier_policy,
        interval_ms: nodes::interval(approval.interval_ms.unwrap_or(DEFAULT_INTERVAL_MS))?,
        pins: nodes::pins(approval.pins)?,
        sealing_id: None,
    };
    let node = state.app.tenant.add_node(new).await?;
    let doubt = match waiting.hardware {
        registrar::Hardware::Certified { .. } => "",
        _ => "; no trusted manufacturer vouches for its TPM, the operator does",
    };
    let detail = format!("{caller} approved it as {}: {reason}{doubt}", node.name);
    state.app.registrar.record(Some(waiting.node_id), "approved", detail).await;
    Ok((StatusCode::CREATED, Json(nodes::view(&state, &node).await?)))
}

/// Reject a node in quarantine
///
/// Takes it off the list. It is listed again if it comes again.
#[utoipa::path(
    post,
    path = "/api/v1/quarantine/{node_id}/reject",
    tag = "nodes",
    params(("node_id" = String, Path, description = "Node id, or unambiguous prefix of it")),
    request_body = Rejection,
    responses(
        (status = 204, description = "It is off the list"),
        (status = 404, description = "`nothing_to_approve`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn reject_node(
    State(state): State<ApiState>,
    Extension(Caller(caller)): Extension<Caller>,
    InPath(wanted): InPath<String>,
    Body(rejection): Body<Rejection>,
) -> Result<StatusCode, ApiError> {
    let waiting = find(&state, &wanted).await?;
    let reason = reason(&rejection.reason)?;
    if !state.app.registrar.store().leave_quarantine(waiting.node_id).await? {
        return Err(nothing(&wanted));
    }
    let detail = format!("{caller} rejected it: {reason}");
    state.app.registrar.record(Some(waiting.node_id), "rejected", detail).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Finds a node in quarantine by its id or an unambiguous prefix of it.
pub(crate) async fn find(state: &ApiState, wanted: &str) -> Result<Quarantined, ApiError> {
    let store = state.app.registrar.store();
    if let Some(node_id) = NodeId::from_hex(wanted) {
        return store.quarantined_node(node_id).await?.ok_or_else(|| nothing(wanted));
    }
    let prefix = wanted.to_ascii_lowercase();
    if !is_prefix(&prefix) {
        return Err(nothing(wanted));
    }
    let mut found = store.quarantined(MAX_QUARANTINED).await?;
    found.retain(|row| row.node_id.to_string().starts_with(&prefix));
    if found.len() > 1 {
        return Err(ambiguous(wanted, found.iter().map(|row| row.node_id.to_string())));
    }
    found.pop().ok_or_else(|| nothing(wanted))
}

fn nothing(wanted: &str) -> ApiError {
    ApiError::unknown(
        "nothing_to_approve",
        format!(
            "No node in quarantine has the id `{}`, or one that begins so (8 hex digits or more). GET /api/v1/quarantine \
             lists those who wait; a node that was added needs no approval.",
            shown(wanted)
        ),
    )
}

fn reason(given: &str) -> Result<String, ApiError> {
    let reason = given.trim();
    if reason.is_empty() || reason.chars().count() > MAX_REASON_LEN || reason.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!(
            "reason: 1 to {MAX_REASON_LEN} characters on one line, for whoever reads the history."
        )));
    }
    Ok(reason.to_owned())
}

/// Hardware as JSON tells it.
pub(crate) fn hardware(hardware: registrar::Hardware) -> Hardware {
    match hardware {
        registrar::Hardware::Certified { issuer } => Hardware::Certified { issuer },
        registrar::Hardware::AllowListed => Hardware::AllowListed,
        registrar::Hardware::Unproven => Hardware::Unproven,
    }
}
