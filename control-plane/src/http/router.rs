//! Every route on one page, grouped by who may call it, and the OpenAPI document that is made from the same lines.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use protocol::crypto::payload::SEALED_CHUNK_LEN;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, SecurityRequirement};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use super::{
    ApiState, auth, ek, events, health, joins, nodes, policies, policies_try, quarantine, sealings, tokens, verdicts,
};
use crate::app::App;
use crate::error::ApiError;
use crate::store::tenant::ApiRole;

/// JSON bodies: the largest is a node with four keys and a join token.
const MAX_JSON_LEN: usize = 32 * 1024;
/// A policy's text.
const MAX_POLICY_LEN: usize = 32 * 1024 * 1024;
/// A policy's text as a JSON string, which escapes line ends and quotes, and the names of nodes.
const MAX_TRY_LEN: usize = 2 * MAX_POLICY_LEN + MAX_JSON_LEN;
/// How long one request may take, from its headers to its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

fn anybody() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(health::health))
}

fn viewers() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(nodes::list::list_nodes))
        .routes(routes!(nodes::get::get_node))
        .routes(routes!(nodes::history::node_events))
        .routes(routes!(nodes::history::node_verdicts))
        .routes(routes!(nodes::history::node_releases))
        .routes(routes!(nodes::evidence::get_evidence))
        .routes(routes!(ek::explain_ek))
        .routes(routes!(quarantine::list_quarantine))
        .routes(routes!(policies::list_policies))
        .routes(routes!(policies::get_policy))
        .routes(routes!(sealings::get_sealing))
        .routes(routes!(joins::list_joins))
        .routes(routes!(events::list_events))
        .routes(routes!(verdicts::list_verdicts))
}

fn operators() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(nodes::add::add_node))
        .routes(routes!(nodes::change::change_node))
        .routes(routes!(nodes::remove::remove_node))
        .routes(routes!(nodes::steer::stop_node))
        .routes(routes!(nodes::steer::resume_node))
        .routes(routes!(quarantine::approve_node))
        .routes(routes!(quarantine::reject_node))
        .routes(routes!(policies::add_policy).layer(DefaultBodyLimit::max(MAX_POLICY_LEN)))
        .routes(routes!(policies_try::try_policy_on_nodes).layer(DefaultBodyLimit::max(MAX_TRY_LEN)))
        .routes(routes!(sealings::begin_sealing))
        .routes(routes!(sealings::put_chunk).layer(DefaultBodyLimit::max(SEALED_CHUNK_LEN)))
        .routes(routes!(sealings::finish_sealing))
        .routes(routes!(joins::revoke_join))
}

fn admins() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(tokens::add_token))
        .routes(routes!(tokens::list_tokens))
        .routes(routes!(tokens::revoke_token))
}

/// The API over these roles.
pub fn router(app: Arc<App>) -> axum::Router {
    let state = ApiState { app, gate: Arc::default() };
    let only = |router: OpenApiRouter<ApiState>, role: ApiRole| {
        router.route_layer(middleware::from_fn_with_state((state.clone(), role), auth::require))
    };
    let (router, _) = OpenApiRouter::new()
        .merge(anybody())
        .merge(only(viewers(), ApiRole::Viewer))
        .merge(only(operators(), ApiRole::Operator))
        .merge(only(admins(), ApiRole::Admin))
        .split_for_parts();
    router
        .fallback(async || {
            ApiError::unknown("not_found", "See the OpenAPI document (trefoil openapi) for what there is.")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Another method is used on this path.")
        })
        .layer(DefaultBodyLimit::max(MAX_JSON_LEN))
        .layer(middleware::from_fn(bounded))
        .with_state(state)
}

/// The OpenAPI 3.1 document of [`router`].
pub fn openapi() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Trefoil")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Three-part key derivation and TPM 2.0 attestation: the control plane's API. Shares pass it only as HPKE \
             ciphertext, payloads only encrypted. Errors are application/problem+json with a short name as `type`.",
        ))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let mut components = Components::new();
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let base = OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new("token", Vec::<String>::new())]))
        .build();
    let (_, api) = OpenApiRouter::<ApiState>::with_openapi(base)
        .merge(anybody())
        .merge(viewers())
        .merge(operators())
        .merge(admins())
        .split_for_parts();
    api
}

/// What holds for every answer: it comes in time, and nobody keeps or reinterprets it.
async fn bounded(request: Request, next: Next) -> Response {
    let mut response = match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "Send the whole request, or try again later.")
            .into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
