//! GET /api/v1/nodes/{node}/evidence: what a role was last shown, to learn a policy from.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::extract::{InPath, InQuery, find_node};
use crate::http::model::{Evidence, EvidenceLogs, EvidenceQuery, bank_name};
use crate::store::{AppraiserStore, EvidenceRow};

/// Show a node's evidence
///
/// What the node last showed in a quote that verified, whatever the verdict on it; with `logs=true` the logs too, as far as
/// they are kept.
#[utoipa::path(
    get,
    path = "/api/v1/nodes/{node}/evidence",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it"), EvidenceQuery),
    responses(
        (status = 200, description = "The values, and the logs if they were asked for", body = Evidence),
        (status = 404, description = "`unknown_node`, `no_evidence`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_evidence(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
    InQuery(query): InQuery<EvidenceQuery>,
) -> Result<Json<Evidence>, ApiError> {
    let node = find_node(&**state.app.tenant.store(), &wanted).await?;
    let none = || {
        let detail = format!("{} has not sent evidence that verified yet; start its agent first.", node.name);
        ApiError::unknown("no_evidence", detail)
    };
    let node_id = node.node_id.ok_or_else(none)?;
    let store: &dyn AppraiserStore = match query.role.as_deref() {
        None | Some("verifier") => &**state.app.verifier.store(),
        Some("tenant") => &**state.app.tenant.store(),
        Some(_) => return Err(ApiError::bad_request("role: verifier or tenant.")),
    };
    if let Some(row) = store.evidence(node_id).await? {
        let logs = if query.logs { Some(logs(store, &row).await?) } else { None };
        return Ok(Json(Evidence {
            node_id: node_id.to_string(),
            reset_count: row.reset_count,
            restart_count: row.restart_count,
            pcrs: by_bank(&row.pcrs),
            boot_log: row.boot_log.map(hex::encode),
            ima_entries: row.ima_entries.unwrap_or_default(),
            at_ms: Some(row.at_ms),
            logs,
        }));
    }
    // From before evidence was kept: what the role remembers between rounds.
    let attestation = store.attestation(node_id).await?;
    let checkpoint = attestation.and_then(|attestation| attestation.checkpoint).ok_or_else(none)?;
    Ok(Json(Evidence {
        node_id: node_id.to_string(),
        reset_count: checkpoint.reset_count,
        restart_count: checkpoint.restart_count,
        pcrs: by_bank(&checkpoint.pcrs),
        boot_log: checkpoint.boot_log.map(hex::encode),
        ima_entries: checkpoint.ima_entries,
        at_ms: None,
        logs: None,
    }))
}

fn by_bank(pcrs: &[(u16, u8, Vec<u8>)]) -> BTreeMap<String, BTreeMap<u8, String>> {
    let mut banks: BTreeMap<String, BTreeMap<u8, String>> = BTreeMap::new();
    for (alg, index, value) in pcrs {
        if let Some(bank) = bank_name(*alg) {
            banks.entry(bank.into()).or_default().insert(*index, hex::encode(value));
        }
    }
    banks
}

async fn logs(store: &dyn AppraiserStore, row: &EvidenceRow) -> Result<EvidenceLogs, ApiError> {
    let boot_log = match row.boot_log {
        Some(digest) => store.boot_log(digest).await?,
        None => None,
    };
    let list = match row.ima_entries {
        Some(wanted) => {
            let list = store.ima_list(row.node_id).await?;
            let of_the_quote = |list: &crate::store::ImaList| {
                list.epoch == (row.reset_count, row.restart_count) && list.entries >= wanted
            };
            list.filter(of_the_quote).and_then(|mut list| {
                // The list may have grown since the quote.
                list.bytes.truncate(crate::evidence::entries_len(&list.bytes, wanted)?);
                list.entries = wanted;
                Some(list)
            })
        }
        None => None,
    };
    Ok(EvidenceLogs {
        boot_log: boot_log.map(|log| STANDARD.encode(log)),
        command_line: row.command_line.as_ref().map(|line| STANDARD.encode(line)),
        userspace_log: row.userspace.as_ref().map(|log| STANDARD.encode(log)),
        ima_list_entries: list.as_ref().map_or(0, |list| list.entries),
        ima_list: list.map(|list| STANDARD.encode(list.bytes)),
    })
}
