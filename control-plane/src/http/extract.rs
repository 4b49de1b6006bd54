//! Reading requests: axum's extractors with our errors, and the small parsers that handlers share.

use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use protocol::id::hex_array;
use serde::de::DeserializeOwned;

use super::model::{DEFAULT_LIMIT, MAX_LIMIT};
use crate::error::ApiError;
use crate::store::tenant::TenantNode;
use crate::store::{PolicyId, TenantStore};

/// Shortest prefix of an id that is looked up.
const MIN_PREFIX_LEN: usize = 8;
/// Candidates that an error names.
const MAX_CANDIDATES: u32 = 8;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Json(value) = Json::from_request(request, state)
            .await
            .map_err(|rejection: JsonRejection| refused(rejection.status(), rejection.body_text()))?;
        Ok(Self(value))
    }
}

/// A body of plain bytes.
pub(crate) struct RawBody(pub(crate) axum::body::Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|rejection: BytesRejection| refused(rejection.status(), rejection.body_text()))?;
        Ok(Self(bytes))
    }
}

/// Parameters of the path.
pub(crate) struct InPath<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(value) = Path::from_request_parts(parts, state)
            .await
            .map_err(|rejection: PathRejection| refused(rejection.status(), rejection.body_text()))?;
        Ok(Self(value))
    }
}

/// Parameters after the question mark.
pub(crate) struct InQuery<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for InQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(value) = Query::from_request_parts(parts, state)
            .await
            .map_err(|rejection: QueryRejection| refused(rejection.status(), rejection.body_text()))?;
        Ok(Self(value))
    }
}

fn refused(status: StatusCode, text: String) -> ApiError {
    let kind = if status == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "bad_request" };
    ApiError::new(status, kind, text)
}

/// A page's length.
pub(crate) fn limit(given: Option<u32>) -> Result<u32, ApiError> {
    match given {
        None => Ok(DEFAULT_LIMIT),
        Some(limit @ 1..=MAX_LIMIT) => Ok(limit),
        Some(_) => Err(ApiError::bad_request(format!("limit: 1 to {MAX_LIMIT}."))),
    }
}

/// Hex of exactly `N` bytes, in the field called `field`.
pub(crate) fn hex_field<const N: usize>(field: &str, text: &str) -> Result<[u8; N], ApiError> {
    hex_array(text).ok_or_else(|| ApiError::bad_request(format!("{field}: {} hex digits are needed.", 2 * N)))
}

/// Hex of at most `max` bytes, in the field called `field`.
pub(crate) fn hex_bytes(field: &str, text: &str, max: usize) -> Result<Vec<u8>, ApiError> {
    hex::decode(text)
        .ok()
        .filter(|bytes| bytes.len() <= max)
        .ok_or_else(|| ApiError::bad_request(format!("{field}: hex of at most {max} bytes is needed.")))
}

/// Whether a text is a prefix of an id's hex that is long enough to be looked up.
pub(crate) fn is_prefix(text: &str) -> bool {
    (MIN_PREFIX_LEN..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Finds a node by name, id, or unambiguous prefix of its id.
pub(crate) async fn find_node(store: &dyn TenantStore, wanted: &str) -> Result<TenantNode, ApiError> {
    if wanted.len() <= 63
        && let Some(node) = store.node_by_name(wanted).await?
    {
        return Ok(node);
    }
    let mut found = Vec::new();
    if is_prefix(wanted) {
        found = store.nodes_by_prefix(&wanted.to_ascii_lowercase(), MAX_CANDIDATES).await?;
    }
    match found.len() {
        0 => Err(ApiError::unknown(
            "unknown_node",
            format!("No node is called `{}`, and no node id begins so (8 hex digits or more).", shown(wanted)),
        )),
        1 => found.pop().ok_or_else(|| ApiError::unknown("unknown_node", "")),
        _ => Err(ambiguous(wanted, found.iter().map(|node| node.name.clone()))),
    }
}

/// Finds a policy by id, unambiguous prefix of its id, or name (the newest of that name).
pub(crate) async fn find_policy(store: &dyn TenantStore, wanted: &str) -> Result<crate::store::PolicyRow, ApiError> {
    if let Some(id) = hex_array::<32>(wanted)
        && let Some(row) = store.policy(protocol::bytes::Array(id)).await?
    {
        return Ok(row);
    }
    let rows = store.policies().await?;
    let gone = || ApiError::unknown("unknown_policy", "The policy was there a moment ago.");
    // Oldest first: the last of a name is the newest.
    if let Some(row) = rows.iter().rfind(|row| row.name == wanted) {
        return store.policy(row.id).await?.ok_or_else(gone);
    }
    let prefix = wanted.to_ascii_lowercase();
    let found: Vec<_> =
        rows.iter().filter(|row| is_prefix(&prefix) && policy_hex(row.id).starts_with(&prefix)).collect();
    match found.as_slice() {
        [row] => store.policy(row.id).await?.ok_or_else(gone),
        [] => Err(ApiError::unknown(
            "unknown_policy",
            format!("No policy is called `{}`, and no policy id begins so (8 hex digits or more).", shown(wanted)),
        )),
        _ => Err(ambiguous(wanted, found.iter().map(|row| policy_hex(row.id)))),
    }
}

/// A policy id as JSON carries it.
pub(crate) fn policy_hex(id: PolicyId) -> String {
    hex::encode(id.0)
}

pub(crate) fn ambiguous(wanted: &str, candidates: impl Iterator<Item = String>) -> ApiError {
    let names = candidates.take(MAX_CANDIDATES as usize).collect::<Vec<_>>().join(", ");
    ApiError::conflict("ambiguous", format!("`{}` fits several: {names}.", shown(wanted)))
}

/// A text of the caller's, cut so that an error stays readable.
pub(crate) fn shown(text: &str) -> String {
    if text.chars().count() <= 64 { text.into() } else { text.chars().take(64).chain(['…']).collect() }
}
