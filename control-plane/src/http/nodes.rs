//! Nodes: the fleet, and what is known of each.
//!
//! How a node's state is read from the three stores is here; each endpoint is in its file.

pub(crate) mod add;
pub(crate) mod change;
pub(crate) mod evidence;
pub(crate) mod get;
pub(crate) mod history;
pub(crate) mod list;
pub(crate) mod remove;
pub(crate) mod steer;

use std::num::NonZeroU64;

use axum::http::StatusCode;
use protocol::crypto::{TenantPublicKey, VerifiedManifest};
use protocol::id::{SealingId, Subject};
use protocol::limits::MAX_TENANT_KEYS;

use super::ApiState;
use super::extract::{hex_field, policy_hex};
use super::model::{self, Delivered, Hardware, MAX_INTERVAL_MS, MIN_INTERVAL_MS, Node, NodePins, TrustName};
use crate::appraisal::policy::{Policy, PolicyTrust};
use crate::error::ApiError;
use crate::store::tenant::TenantNode;
use crate::store::verifier::Pins;
use crate::store::{PolicyId, StoreError, TenantStore, VerdictRow, registrar};

/// Releases that are looked through for the newest confirmed one.
const RELEASES_SEEN: u32 = 50;

/// Reads a node's state as it is now.
pub(crate) async fn view(state: &ApiState, node: &TenantNode) -> Result<Node, ApiError> {
    let app = &state.app;
    let phase = app.phase(node).await?;
    let (mut attestation, mut binding, mut delivered) = (None, None, None);
    if let Some(node_id) = node.node_id {
        attestation = app.verifier.store().attestation(node_id).await?;
        binding = app.registrar.store().binding(node_id).await?;
        delivered = app
            .tenant
            .store()
            .releases(node_id, RELEASES_SEEN)
            .await?
            .into_iter()
            .filter_map(|release| {
                Some(Delivered { sealing_id: release.sealing_id.to_string(), at_ms: release.confirmed_ms? })
            })
            .max_by_key(|delivered| delivered.at_ms);
    }
    let now_ms = match &attestation {
        Some(attestation) => attestation.now_ms,
        None => app.verifier.store().now_ms().await?,
    };
    let trust = attestation.as_ref().map_or(TrustName::None, |attestation| attestation.trust.into());
    let ak_name =
        attestation.as_ref().and_then(|attestation| attestation.ak.as_ref()).map(|(name, _)| hex::encode(name.0));
    let row = attestation.and_then(|attestation| attestation.verdict);
    let deadline_ms = row.as_ref().filter(|row| row.valid_ms > 0).map(|row| row.nonce_ms.saturating_add(row.valid_ms));
    Ok(Node {
        name: node.name.clone(),
        node_id: node.node_id.map(|id| id.to_string()),
        join_id: node.join_id.map(|id| id.to_string()),
        phase,
        trust,
        policy: node.policy.map(policy_hex),
        verifier_policy: node.verifier_policy.map(policy_hex),
        interval_ms: node.interval_ms,
        sealing_id: node.sealing_id.map(|id| id.to_string()),
        pins: NodePins { tenant_keys: node.pins.tenant_keys.clone(), autorun: node.pins.autorun },
        ak_name,
        hardware: binding.map(|binding| match binding.hardware {
            registrar::Hardware::Certified { issuer } => Hardware::Certified { issuer },
            registrar::Hardware::AllowListed => Hardware::AllowListed,
            registrar::Hardware::Unproven => Hardware::Unproven,
        }),
        last_verdict: row.map(|row| verdict("verifier", row, now_ms)),
        deadline_ms,
        delivered,
        created_ms: node.created_ms,
        now_ms,
    })
}

/// A verdict as JSON tells it.
pub(crate) fn verdict(role: &str, row: VerdictRow, now_ms: i64) -> model::Verdict {
    model::Verdict {
        role: role.into(),
        node_id: row.node_id.to_string(),
        outcome: row.outcome.into(),
        purpose: row.purpose,
        at_ms: row.nonce_ms,
        age_ms: now_ms.saturating_sub(row.nonce_ms),
        valid_ms: row.valid_ms,
        policy: row.policy.map(policy_hex),
        reason: reason(&row.explanation),
        explanation: row.explanation,
    }
}

/// The sentence of an explanation: its own summary, or its first finding spelled out.
fn reason(explanation: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value, key: &str| value.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    if let Some(summary) = text(explanation, "summary") {
        return summary;
    }
    let Some(finding) = explanation.get("findings").and_then(|findings| findings.get(0)) else {
        return String::new();
    };
    let part = |key| text(finding, key).unwrap_or_default();
    format!("{} at {}: expected {}, found {}", part("code"), part("what"), part("expected"), part("found"))
}

/// Checks pins as the API takes them.
pub(crate) fn pins(given: NodePins) -> Result<Pins, ApiError> {
    if given.tenant_keys.is_empty() || given.tenant_keys.len() > MAX_TENANT_KEYS {
        return Err(ApiError::bad_request(format!("pins.tenant_keys: 1 to {MAX_TENANT_KEYS} keys are needed.")));
    }
    let keys = tenant_keys(&given.tenant_keys)?;
    Ok(Pins { tenant_keys: keys.iter().map(|key| hex::encode(key.as_sec1())).collect(), autorun: given.autorun })
}

fn tenant_keys(texts: &[String]) -> Result<Vec<TenantPublicKey>, ApiError> {
    texts
        .iter()
        .map(|text| {
            hex::decode(text).ok().and_then(|bytes| TenantPublicKey::from_sec1(&bytes)).ok_or_else(|| {
                ApiError::bad_request("pins.tenant_keys: P-256 public keys, SEC1 uncompressed in hex, are needed.")
            })
        })
        .collect()
}

/// Finds a policy that a node is to be judged by, and that the role (`for_verifier`, else the tenant) would use.
pub(crate) async fn policy_for(state: &ApiState, wanted: &str, for_verifier: bool) -> Result<PolicyId, ApiError> {
    let row = super::extract::find_policy(&**state.app.tenant.store(), wanted).await?;
    let trust = if for_verifier { state.app.verifier.policy_trust() } else { state.app.tenant.policy_trust() };
    if *trust != PolicyTrust::Any {
        let (body, trust) = (row.body, trust.clone());
        let opened = tokio::task::spawn_blocking(move || Policy::open(&body, &trust).map(|_| ())).await;
        opened
            .map_err(|_| StoreError::Corrupt("policy"))?
            .map_err(|error| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error.code(), format!("{error}.")))?;
    }
    Ok(row.id)
}

/// Checks a round interval.
pub(crate) fn interval(given: i64) -> Result<i64, ApiError> {
    if (MIN_INTERVAL_MS..=MAX_INTERVAL_MS).contains(&given) {
        Ok(given)
    } else {
        Err(ApiError::bad_request(format!("interval_ms: {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}.")))
    }
}

/// Finds a complete sealing that is for one of `subjects`, that one of the pinned keys signed and that has not ended: one
/// that the node would accept.
pub(crate) async fn sealing_for(
    store: &dyn TenantStore,
    given: &str,
    subjects: &[Subject],
    pins: &Pins,
) -> Result<SealingId, ApiError> {
    let id = SealingId(hex_field("sealing_id", given)?);
    let row = store
        .sealing(id)
        .await?
        .ok_or_else(|| ApiError::unknown("unknown_sealing", format!("No sealing {id} was uploaded.")))?;
    if !row.complete {
        return Err(ApiError::conflict(
            "sealing_incomplete",
            format!("Upload all chunks of {id} and finish it first."),
        ));
    }
    if !subjects.contains(&row.subject) {
        let detail =
            format!("It was sealed for {}, which is not this node. Seal the payload again, for it.", row.subject);
        return Err(ApiError::conflict("sealing_for_another", detail));
    }
    let keys = tenant_keys(&pins.tenant_keys)?;
    let invalid = |detail: String| ApiError::conflict("sealing_invalid", detail);
    let manifest = VerifiedManifest::verify(&row.manifest, &row.signature, &keys)
        .map_err(|error| invalid(format!("The node would refuse it: {error}.")))?;
    let now_s = u64::try_from(store.now_ms().await? / 1000).unwrap_or(0);
    match manifest.manifest().not_after.map(NonZeroU64::get) {
        Some(end) if end < now_s => Err(invalid("The node would refuse it: its `not_after` has passed.".into())),
        _ => Ok(id),
    }
}
