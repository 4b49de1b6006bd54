//! GET /api/v1/nodes/{node}/events, …/verdicts and …/releases: what happened to one node.

use axum::Json;
use axum::extract::State;

use crate::error::{ApiError, Problem};
use crate::http::ApiState;
use crate::http::events::{Of, read};
use crate::http::extract::{InPath, InQuery, find_node, limit};
use crate::http::model::{Events, Page, Release, Releases, Verdicts};
use crate::http::verdicts;

/// Show a node's events
///
/// The newest, or what happened after the `next` of an earlier call.
#[utoipa::path(
    get,
    path = "/api/v1/nodes/{node}/events",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it"), Page),
    responses(
        (status = 200, description = "In the order of their times", body = Events),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn node_events(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
    InQuery(page): InQuery<Page>,
) -> Result<Json<Events>, ApiError> {
    let node = find_node(&**state.app.tenant.store(), &wanted).await?;
    let of = Of { node_id: node.node_id, name: Some(node.name) };
    read(&state, page.after.as_deref(), limit(page.limit)?, of).await.map(Json)
}

/// Show a node's verdicts
///
/// Both appraisers', newest first: every change of outcome and every negative one.
#[utoipa::path(
    get,
    path = "/api/v1/nodes/{node}/verdicts",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it"), verdicts::VerdictQuery),
    responses(
        (status = 200, description = "Newest first", body = Verdicts),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn node_verdicts(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
    InQuery(query): InQuery<verdicts::VerdictQuery>,
) -> Result<Json<Verdicts>, ApiError> {
    let node = find_node(&**state.app.tenant.store(), &wanted).await?;
    let limit = limit(query.limit)?;
    match node.node_id {
        Some(node_id) => verdicts::read(&state, Some(node_id), limit).await.map(Json),
        None => Ok(Json(Verdicts { verdicts: Vec::new() })),
    }
}

/// Show the shares that left for a node
///
/// Of both roles, newest first: each is on record before it leaves.
#[utoipa::path(
    get,
    path = "/api/v1/nodes/{node}/releases",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it"), verdicts::VerdictQuery),
    responses(
        (status = 200, description = "Newest first", body = Releases),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn node_releases(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
    InQuery(query): InQuery<verdicts::VerdictQuery>,
) -> Result<Json<Releases>, ApiError> {
    let node = find_node(&**state.app.tenant.store(), &wanted).await?;
    let limit = limit(query.limit)?;
    let mut releases = Vec::new();
    if let Some(node_id) = node.node_id {
        let of_role = |role: &'static str| {
            move |row: crate::store::Release| Release {
                role: role.into(),
                sealing_id: row.sealing_id.to_string(),
                nk_digest: hex::encode(row.nk_digest),
                quote_digest: hex::encode(row.quote_digest),
                reset_count: row.reset_count,
                restart_count: row.restart_count,
                at_ms: row.at_ms,
                confirmed_ms: row.confirmed_ms,
            }
        };
        let verifier = state.app.verifier.store().releases(node_id, limit).await?;
        let tenant = state.app.tenant.store().releases(node_id, limit).await?;
        releases.extend(verifier.into_iter().map(of_role("verifier")));
        releases.extend(tenant.into_iter().map(of_role("tenant")));
        releases.sort_by_key(|release| std::cmp::Reverse(release.at_ms));
        releases.truncate(limit as usize);
    }
    Ok(Json(Releases { releases }))
}
