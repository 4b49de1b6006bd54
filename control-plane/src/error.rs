//! What the API answers when it does not do what was asked: problem+json (RFC 9457), mapped in one place.
//!
//! `type` is a short name that programs compare; title and detail are for people. A 5xx says a fixed sentence, its cause
//! goes to the log.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::StoreError;

/// The body of an error (RFC 9457 §3).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// Short name of the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "unknown_node")]
    pub kind: String,
    /// One sentence that fits every problem of this kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong this time, and what to do.
    pub detail: String,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct ApiError {
    kind: &'static str,
    status: StatusCode,
    detail: String,
    retry_after_s: Option<u32>,
    #[source]
    source: Option<StoreError>,
}

impl ApiError {
    /// A refusal that is the caller's to mend. `detail` is shown.
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, status, detail: detail.into(), retry_after_s: None, source: None }
    }

    /// 400 `bad_request`.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    /// 404, with what kind of thing is unknown.
    pub fn unknown(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, kind, detail)
    }

    /// 409.
    pub fn conflict(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, kind, detail)
    }

    /// 401: no token, or one that is not known.
    pub(crate) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "Send an API token that is known and has not expired: Authorization: Bearer trefoil-api-…",
        )
    }

    /// 429: come back after so many seconds.
    pub(crate) fn too_many_failures(seconds: u32) -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_failures",
            format!("Too many unknown tokens came from this address; wait {seconds} seconds."),
        );
        error.retry_after_s = Some(seconds);
        error
    }

    /// The short name.
    pub const fn kind(&self) -> &'static str {
        self.kind
    }

    /// The HTTP status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The body.
    pub fn problem(&self) -> Problem {
        Problem {
            kind: self.kind.into(),
            title: title(self.kind, self.status).into(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(conflict) => {
                Self::conflict(conflict.code(), format!("Nothing was changed: {conflict}."))
            }
            StoreError::NotFound(what) => {
                let kind = match what {
                    "node" => "unknown_node",
                    "policy" => "unknown_policy",
                    "sealing" => "unknown_sealing",
                    "token" | "API token" => "unknown_token",
                    "join" | "join token" => "unknown_join",
                    _ => "not_found",
                };
                Self::unknown(kind, format!("There is no such {what}."))
            }
            source if source.is_full() => Self {
                kind: "storage_full",
                status: StatusCode::INSUFFICIENT_STORAGE,
                detail: match &source {
                    StoreError::NoRoom { needed, free } => format!(
                        "The file system of the database is too full: {needed} bytes are needed, {free} are free. Nothing \
                         was changed; make room there, then try again."
                    ),
                    _ => {
                        "The file system of the database is full. Nothing was changed; make room there, then try again."
                            .into()
                    }
                },
                retry_after_s: None,
                source: Some(source),
            },
            source => Self {
                kind: "store_unavailable",
                status: StatusCode::SERVICE_UNAVAILABLE,
                detail: "The database did not do what was asked. Nothing was changed; the server's log says why."
                    .into(),
                retry_after_s: Some(1),
                source: Some(source),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            let cause = self.source.as_ref().map(|source| {
                let cause = std::error::Error::source(source).map(|cause| format!(": {cause}")).unwrap_or_default();
                format!("{source}{cause}")
            });
            tracing::error!(kind = self.kind, cause = cause.unwrap_or_default(), "a request failed");
        }
        let mut response = (self.status, Json(self.problem())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn title(kind: &'static str, status: StatusCode) -> &'static str {
    match kind {
        "unknown_node" => "No node has this name or id",
        "unknown_policy" => "No policy has this name or id",
        "unknown_sealing" => "No sealing has this id",
        "unknown_token" => "No API token has this label",
        "unknown_join" => "No join token has this id",
        "no_evidence" => "There is no evidence of this node yet",
        "ambiguous" => "More than one fits",
        "name_taken" => "The name is taken",
        "node_id_taken" => "The node id is taken",
        "unauthorized" => "An API token is needed",
        "forbidden" => "The API token's role does not reach that far",
        "too_many_failures" => "Too many failed attempts",
        "policy_invalid" => "The policy cannot be used",
        "policy_unsigned" => "Only signed policies are used here",
        "policy_signature_bad" => "The policy's signature does not hold",
        "sealing_invalid" => "The sealing cannot be used",
        "sealing_for_another" => "The sealing is for another subject",
        "sealing_incomplete" => "The sealing's payload is not complete",
        "nothing_to_approve" => "Nothing waits for approval",
        "too_many_nodes" => "Too many nodes for one request",
        "last_admin" => "The last admin token stays",
        "store_unavailable" => "The database is not available",
        "storage_full" => "The database has no room left",
        _ => match status {
            StatusCode::BAD_REQUEST => "The request cannot be understood",
            StatusCode::NOT_FOUND => "There is nothing here",
            StatusCode::METHOD_NOT_ALLOWED => "This is not done here",
            StatusCode::REQUEST_TIMEOUT => "The request took too long",
            StatusCode::CONFLICT => "What is there already stands against it",
            StatusCode::PAYLOAD_TOO_LARGE => "The request is too large",
            _ => "The request was refused",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_error_says_nothing_of_its_cause() {
        let error = ApiError::from(StoreError::Database(sqlx_error("s3cret")));
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(!serde_json::to_string(&error.problem()).unwrap().contains("s3cret"));
    }

    #[test]
    fn a_conflict_names_itself() {
        let error = ApiError::from(StoreError::Conflict(crate::store::Conflict::NameTaken));
        assert_eq!((error.kind(), error.status()), ("name_taken", StatusCode::CONFLICT));
    }

    fn sqlx_error(text: &str) -> sqlx::Error {
        sqlx::Error::Protocol(text.into())
    }
}
