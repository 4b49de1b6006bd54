//! The REST API: HTTP/1.1 over TLS, every route on the page [`router`], one file per endpoint or small family.
//!
//! Handlers translate between JSON and the roles; what a change means is the roles' business. The command line is this
//! API's first client and shares the bodies in [`model`].

pub mod auth;
pub mod ek;
pub mod events;
pub mod extract;
pub mod health;
pub mod joins;
pub mod model;
pub mod nodes;
pub mod policies;
pub mod policies_try;
pub mod quarantine;
pub mod router;
pub mod sealings;
pub mod serve;
pub mod tokens;
pub mod verdicts;

#[cfg(test)]
mod tests;

pub use router::{openapi, router};
pub use serve::serve;

use std::sync::Arc;

use crate::app::App;

/// What every handler gets.
#[derive(Clone)]
pub(crate) struct ApiState {
    pub(crate) app: Arc<App>,
    pub(crate) gate: Arc<auth::Gate>,
}
