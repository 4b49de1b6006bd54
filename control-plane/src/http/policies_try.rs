//! POST /api/v1/policies/try: what a policy would make of nodes, judged on what they showed last. Nothing is written.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::sync::Semaphore;

use super::ApiState;
use super::extract::{Body, find_node, find_policy};
use super::model::{Tried, TriedNode, TriedOutcome, TryRequest};
use crate::appraisal::finding::Finding;
use crate::appraisal::policy::Policy;
use crate::appraisal::verdict::PhaseEvents;
use crate::error::{ApiError, Problem};
use crate::evidence::trial::{Stored, Trial, TrialOutcome, try_policy};
use crate::store::tenant::TenantNode;
use crate::store::{AppraiserStore, StoreError};

/// Trials at a time, in all requests together: each holds one node's IMA list in memory, up to 64 MiB as it is stored and
/// once more as it is put together.
static TRIALS: Semaphore = Semaphore::const_new(2);
/// Nodes in one request: their lists are read and replayed while the caller waits.
const MAX_NODES: usize = 500;
/// The longest text that may be the id or the name of a stored policy.
const MAX_REFERENCE_LEN: usize = 256;

/// Try a policy
///
/// Appraises what each node last showed to the verifier by a policy that is not in force, and says what would come of
/// it: which node would fail, on which event or file. Nothing is changed. At most 500 nodes.
#[utoipa::path(
    post,
    path = "/api/v1/policies/try",
    tag = "policies",
    request_body = TryRequest,
    responses(
        (status = 200, description = "One result a node", body = Tried),
        (status = 404, description = "`unknown_policy`, `unknown_node`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`policy_invalid`, `too_many_nodes`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn try_policy_on_nodes(
    State(state): State<ApiState>,
    Body(request): Body<TryRequest>,
) -> Result<Json<Tried>, ApiError> {
    let policy = Arc::new(policy(&state, &request.policy).await?);
    let mut nodes = Vec::new();
    for node in nodes_wanted(&state, &request.nodes).await? {
        nodes.push(on_node(&state, &policy, &node).await?);
    }
    Ok(Json(Tried { policy: hex::encode(policy.id()), nodes }))
}

/// The policy of the request: a text, or one that is stored.
async fn policy(state: &ApiState, text: &str) -> Result<Policy, ApiError> {
    let invalid = |error| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "policy_invalid", format!("{error}."));
    // No policy fits one short line without a sign of TOML or JSON.
    let is_reference = text.len() <= MAX_REFERENCE_LEN && !text.contains(['\n', '=', '{']);
    if is_reference {
        let row = find_policy(&**state.app.tenant.store(), text.trim()).await?;
        return parse(row.body).await?.map_err(invalid);
    }
    parse(text.as_bytes().to_vec()).await?.map_err(invalid)
}

/// Parses away from the executor: a policy may be long.
async fn parse(body: Vec<u8>) -> Result<Result<Policy, crate::appraisal::policy::PolicyError>, ApiError> {
    blocking(move || Policy::parse(&body)).await
}

async fn nodes_wanted(state: &ApiState, wanted: &[String]) -> Result<Vec<TenantNode>, ApiError> {
    let store = &**state.app.tenant.store();
    let too_many = || {
        let detail = format!("At most {MAX_NODES} nodes are tried at once; name those that matter.");
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "too_many_nodes", detail)
    };
    if wanted.len() > MAX_NODES {
        return Err(too_many());
    }
    let mut nodes = Vec::new();
    if wanted.is_empty() {
        let limit = u32::try_from(MAX_NODES + 1).unwrap_or(u32::MAX);
        nodes = store.nodes(None, limit).await?;
        if nodes.len() > MAX_NODES {
            return Err(too_many());
        }
    }
    for name in wanted {
        nodes.push(find_node(store, name).await?);
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes.dedup_by(|a, b| a.name == b.name);
    Ok(nodes)
}

async fn on_node(state: &ApiState, policy: &Arc<Policy>, node: &TenantNode) -> Result<TriedNode, ApiError> {
    let tried = |outcome, summary: String| TriedNode {
        name: node.name.clone(),
        node_id: node.node_id.map(|id| id.to_string()),
        outcome,
        summary,
        findings: Vec::new(),
        not_checked: Vec::new(),
        evidence_at_ms: None,
    };
    let none = || tried(TriedOutcome::NoEvidence, "no quote of this node is stored yet".to_owned());
    let Some(node_id) = node.node_id else { return Ok(none()) };
    let store: &dyn AppraiserStore = &**state.app.verifier.store();
    let Some(row) = store.evidence(node_id).await? else { return Ok(none()) };
    let pinned = store.attestation(node_id).await?.and_then(|attestation| attestation.ak);
    let Some((_, ak_public)) = pinned else { return Ok(none()) };
    // Never closed. Whoever hangs up does not free it before the work is done.
    let permit = TRIALS.acquire().await.ok();
    let boot_log = match row.boot_log {
        Some(digest) => store.boot_log(digest).await?,
        None => None,
    };
    let ima = if row.has_ima { store.ima_list(node_id).await? } else { None };
    let phase = PhaseEvents::from_pins(&node.pins).ok();
    let at_ms = row.at_ms;
    let policy = policy.clone();
    let trial = blocking(move || {
        let _permit = permit;
        let stored = Stored { evidence: &row, ak_public: &ak_public, boot_log: boot_log.as_deref(), ima: ima.as_ref() };
        try_policy(&policy, &stored, phase.as_ref())
    });
    Ok(match trial.await? {
        Ok(trial) => TriedNode { evidence_at_ms: Some(at_ms), ..view(trial, tried) },
        Err(error) => {
            let summary = format!("the stored evidence cannot be used: {error}");
            TriedNode { evidence_at_ms: Some(at_ms), ..tried(TriedOutcome::CannotTell, summary) }
        }
    })
}

fn view(trial: Trial, tried: impl FnOnce(TriedOutcome, String) -> TriedNode) -> TriedNode {
    let outcome = match trial.outcome {
        TrialOutcome::Good => TriedOutcome::Good,
        TrialOutcome::Failed => TriedOutcome::Failed,
        TrialOutcome::CannotTell => TriedOutcome::CannotTell,
    };
    // Strings, numbers and names only: this cannot fail.
    let json = |finding: &Finding| serde_json::to_value(finding).unwrap_or_default();
    TriedNode {
        findings: trial.findings.iter().map(json).collect(),
        not_checked: trial.not_checked,
        ..tried(outcome, trial.summary)
    }
}

/// Runs what takes long on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| StoreError::Corrupt("evidence that could not be judged").into())
}
