//! Why an agent was told no: a short name for history and scripts, a sentence for people, a CoAP code for the wire.

use protocol::coap::frame::Code;

use crate::store::StoreError;

/// A refusal of something an agent asked for or showed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The answer's code.
    pub code: Code,
    /// Short name; the same stands in the node's history.
    pub kind: &'static str,
    /// One sentence that a person can act on.
    pub detail: String,
}

impl Refusal {
    /// The peer may not have this (4.03).
    pub fn forbidden(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { code: Code::FORBIDDEN, kind, detail: detail.into() }
    }

    /// The request itself is wrong (4.00).
    pub fn bad_request(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { code: Code::BAD_REQUEST, kind, detail: detail.into() }
    }

    /// There is no such thing (4.04).
    pub fn not_found(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { code: Code::NOT_FOUND, kind, detail: detail.into() }
    }

    /// It contradicts what is on record (4.09).
    pub fn conflict(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { code: Code::CONFLICT, kind, detail: detail.into() }
    }

    /// Too many at once (4.29).
    pub fn too_many(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { code: Code::TOO_MANY_REQUESTS, kind, detail: detail.into() }
    }

    /// Our own fault, which is logged and not told (5.00).
    pub fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %chain(error), "a request of an agent failed here");
        Self {
            code: Code::INTERNAL_SERVER_ERROR,
            kind: "internal",
            detail: "the control plane failed; its log says why".into(),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(conflict) => Self::conflict(conflict.code(), conflict.to_string()),
            error => Self::internal(&error),
        }
    }
}

/// An error and its sources on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}
