//! GET /api/v1/nodes/{node}/evidence: what the verifier last accepted, to learn a policy from.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::extract::{InPath, find_node};
use crate::http::model::{Evidence, bank_name};

/// Show a node's evidence
///
/// The PCR values of the last quote that the verifier accepted, or kept because no policy says what good is.
#[utoipa::path(
    get,
    path = "/api/v1/nodes/{node}/evidence",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it")),
    responses(
        (status = 200, description = "The values", body = Evidence),
        (status = 404, description = "`unknown_node`, `no_evidence`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_evidence(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
) -> Result<Json<Evidence>, ApiError> {
    let node = find_node(&**state.app.tenant.store(), &wanted).await?;
    let none = || {
        let detail = format!("{} has not sent evidence that verified yet; start its agent first.", node.name);
        ApiError::unknown("no_evidence", detail)
    };
    let node_id = node.node_id.ok_or_else(none)?;
    let attestation = state.app.verifier.store().attestation(node_id).await?;
    let checkpoint = attestation.and_then(|attestation| attestation.checkpoint).ok_or_else(none)?;
    let mut pcrs: BTreeMap<String, BTreeMap<u8, String>> = BTreeMap::new();
    for (alg, index, value) in &checkpoint.pcrs {
        if let Some(bank) = bank_name(*alg) {
            pcrs.entry(bank.into()).or_default().insert(*index, hex::encode(value));
        }
    }
    Ok(Json(Evidence {
        node_id: node_id.to_string(),
        reset_count: checkpoint.reset_count,
        restart_count: checkpoint.restart_count,
        pcrs,
        boot_log: checkpoint.boot_log.map(hex::encode),
        ima_entries: checkpoint.ima_entries,
    }))
}
