//! The API's bodies, as JSON: what the server writes the command line reads, and the other way round.
//!
//! Ids, digests and other bytes are lower-case hex; times are milliseconds since 1970 by the database's clock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::app::Phase;
use crate::store::tenant::ApiRole;
use crate::store::{Outcome, Trust};

/// The most entries of one page.
pub const MAX_LIMIT: u32 = 500;
/// Entries of one page unless told otherwise.
pub const DEFAULT_LIMIT: u32 = 100;
/// A node's round interval unless told otherwise, milliseconds.
pub const DEFAULT_INTERVAL_MS: i64 = 10_000;
/// The shortest interval, milliseconds: below it a TPM does nothing else.
pub const MIN_INTERVAL_MS: i64 = 100;
/// The longest interval, milliseconds: a day.
pub const MAX_INTERVAL_MS: i64 = 86_400_000;
/// The longest life of a join token, milliseconds: a year.
pub const MAX_JOIN_LIFETIME_MS: i64 = 365 * 86_400_000;

/// A page of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, Serialize)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// `next` of the page before.
    pub after: Option<String>,
    /// At most this many entries, 1 to 500; 100 unless told otherwise.
    pub limit: Option<u32>,
}

/// A phase as in JSON.
pub const fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Expected => "expected",
        Phase::Bound => "bound",
        Phase::Delivering => "delivering",
        Phase::Delivered => "delivered",
        Phase::Stopped => "stopped",
        Phase::Quarantined => "quarantined",
    }
}

/// TPM_ALG_ID and the name of its bank (TCG Algorithm Registry).
const BANKS: [(u16, &str); 4] = [(0x0004, "sha1"), (0x000b, "sha256"), (0x000c, "sha384"), (0x000d, "sha512")];

/// The name of a PCR bank, from its TPM_ALG_ID.
pub fn bank_name(alg: u16) -> Option<&'static str> {
    BANKS.iter().find(|(id, _)| *id == alg).map(|(_, name)| *name)
}

/// The TPM_ALG_ID of a PCR bank, from its name.
pub fn bank_alg(name: &str) -> Option<u16> {
    BANKS.iter().find(|(_, bank)| *bank == name).map(|(id, _)| *id)
}

/// What the verifier makes of a node, computed when it is read.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the glossary's")]
pub enum TrustName {
    None,
    Good,
    Failed,
    Stale,
    RolledBack,
}

impl TrustName {
    /// As in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Good => "good",
            Self::Failed => "failed",
            Self::Stale => "stale",
            Self::RolledBack => "rolled_back",
        }
    }
}

impl From<Trust> for TrustName {
    fn from(trust: Trust) -> Self {
        match trust {
            Trust::None => Self::None,
            Trust::Good => Self::Good,
            Trust::Failed => Self::Failed,
            Trust::Stale => Self::Stale,
            Trust::RolledBack => Self::RolledBack,
        }
    }
}

/// The result of one appraisal.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the glossary's")]
pub enum OutcomeName {
    Good,
    Failed,
    RolledBack,
    Unjudged,
}

impl OutcomeName {
    /// As in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
            Self::Unjudged => "unjudged",
        }
    }
}

impl From<Outcome> for OutcomeName {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Good => Self::Good,
            Outcome::Failed => Self::Failed,
            Outcome::RolledBack => Self::RolledBack,
            Outcome::Unjudged => Self::Unjudged,
        }
    }
}

/// What a token may do; each includes the one before.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoleName {
    /// Read.
    Viewer,
    /// Nodes, policies, sealings, join tokens.
    Operator,
    /// API tokens too.
    Admin,
}

impl RoleName {
    /// As in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl From<ApiRole> for RoleName {
    fn from(role: ApiRole) -> Self {
        match role {
            ApiRole::Viewer => Self::Viewer,
            ApiRole::Operator => Self::Operator,
            ApiRole::Admin => Self::Admin,
        }
    }
}

impl From<RoleName> for ApiRole {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Viewer => Self::Viewer,
            RoleName::Operator => Self::Operator,
            RoleName::Admin => Self::Admin,
        }
    }
}

/// A node and its state.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Node {
    /// Unique, never changed.
    #[schema(example = "edge-1")]
    pub name: String,
    /// 64 hex digits, once it is known.
    pub node_id: Option<String>,
    /// The join token made for it.
    pub join_id: Option<String>,
    /// Where it is on its way to its payload.
    pub phase: Phase,
    /// What the verifier makes of it now.
    pub trust: TrustName,
    /// The policy in force.
    pub policy: Option<String>,
    /// What the verifier judges by instead; absent if it is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier_policy: Option<String>,
    /// Round interval, milliseconds.
    pub interval_ms: i64,
    /// The sealing in force.
    pub sealing_id: Option<String>,
    /// What its agent pins.
    pub pins: NodePins,
    /// Name of the AK pinned by the verifier.
    pub ak_name: Option<String>,
    /// Why its TPM is taken for a real one, once it is bound.
    pub hardware: Option<Hardware>,
    /// The verifier's newest verdict.
    pub last_verdict: Option<Verdict>,
    /// When trust runs out unless a new verdict comes.
    pub deadline_ms: Option<i64>,
    /// The newest confirmed delivery.
    pub delivered: Option<Delivered>,
    /// When it was added.
    pub created_ms: i64,
    /// The database's clock when this was read.
    pub now_ms: i64,
}

/// What decides whose code runs on a node.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodePins {
    /// One to four tenant public keys, SEC1 uncompressed, hex.
    pub tenant_keys: Vec<String>,
    /// Whether the agent may run `autorun`.
    pub autorun: bool,
}

/// Why a TPM is taken for a real one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Hardware {
    /// A certificate of a trusted manufacturer.
    Certified {
        /// Who issued it.
        issuer: String,
    },
    /// The operator named this node id.
    AllowListed,
    /// Neither: admitted by a join token only.
    Unproven,
}

/// A payload that is in place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Delivered {
    /// Of which sealing.
    pub sealing_id: String,
    /// When the node's confirmation was proven.
    pub at_ms: i64,
}

/// A verdict.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Verdict {
    /// Which role gave it.
    pub role: String,
    /// On which node.
    pub node_id: String,
    /// The result.
    pub outcome: OutcomeName,
    /// `bootstrap` or `attest`.
    pub purpose: String,
    /// When its nonce was made.
    pub at_ms: i64,
    /// How old it was when this was read, milliseconds.
    pub age_ms: i64,
    /// How long it is valid from `at_ms`; 0 for a negative one.
    pub valid_ms: i64,
    /// By which policy.
    pub policy: Option<String>,
    /// In one sentence.
    pub reason: String,
    /// Findings, what was not checked, exceptions used.
    #[schema(value_type = Object)]
    pub explanation: serde_json::Value,
}

/// Verdicts, newest first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Verdicts {
    /// At most the limit.
    pub verdicts: Vec<Verdict>,
}

/// Nodes by name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Nodes {
    /// At most the limit.
    pub nodes: Vec<Node>,
    /// `after` of the next page, if there may be one.
    pub next: Option<String>,
}

/// A node to be added.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNode {
    /// `[a-z0-9][a-z0-9.-]{0,62}`
    #[schema(example = "edge-1")]
    pub name: String,
    /// Its node id; this or `join`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// The join token it will prove; this or `node_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<NewJoin>,
    /// The policy: id, unambiguous prefix or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Another policy for the verifier alone: id, unambiguous prefix or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier_policy: Option<String>,
    /// Round interval, milliseconds; 10,000 unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<i64>,
    /// What its agent pins.
    pub pins: NodePins,
    /// A complete sealing for this node id or join token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_id: Option<String>,
}

/// A join token as its maker made it: the server never sees the token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoin {
    /// Digest of the token.
    pub join_id: String,
    /// The tenant's HMAC key, HPKE ciphertext to the tenant role, hex.
    pub tenant_key: String,
    /// The registrar's HMAC key, HPKE ciphertext to the registrar role, hex.
    pub registrar_key: String,
    /// How long it may be used, milliseconds from now.
    pub expires_in_ms: i64,
}

/// What is to be changed of a node; what is left out stays.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeChange {
    /// Another policy: id, unambiguous prefix or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Another policy for the verifier alone: id, unambiguous prefix or name; empty to have it judge by the node's policy
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier_policy: Option<String>,
    /// Another round interval, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<i64>,
    /// Another complete sealing for this node: takes effect at its next boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_id: Option<String>,
    /// Other pins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pins: Option<NodePins>,
}

/// What a role was last shown by a node in a quote that verified, whatever the verdict on it: what a policy can be learned
/// from and tried against.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Evidence {
    /// Whose.
    pub node_id: String,
    /// Boot epoch: TPM resets.
    pub reset_count: u32,
    /// Boot epoch: TPM restarts since the reset.
    pub restart_count: u32,
    /// PCR values, bank name to index to hex.
    pub pcrs: BTreeMap<String, BTreeMap<u8, String>>,
    /// SHA-256 of the boot log.
    pub boot_log: Option<String>,
    /// IMA entries that the quoted PCR 10 accounts for.
    pub ima_entries: u64,
    /// When the quote was made; absent if only what the role remembers between rounds is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    /// The logs themselves, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<EvidenceLogs>,
}

/// The logs behind a node's evidence. What is absent the node did not show, or was not kept.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct EvidenceLogs {
    /// The boot log, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_log: Option<String>,
    /// What the node says its kernel's command line is, base64 of the text without its newline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    /// What userspace measured after the boot log ended, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userspace_log: Option<String>,
    /// The IMA list of this boot in the kernel's binary form, from its first entry up to the quoted PCR 10, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima_list: Option<String>,
    /// How many entries `ima_list` has.
    #[serde(default)]
    pub ima_list_entries: u64,
}

/// Which evidence is wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, Serialize)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EvidenceQuery {
    /// With the logs.
    #[serde(default)]
    pub logs: bool,
    /// Shown to which role: `verifier` (unless told otherwise) or `tenant`.
    pub role: Option<String>,
}

/// A policy to be tried against stored evidence; nothing is changed by it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TryRequest {
    /// The policy's text (TOML or JSON), or the id, unambiguous prefix or name of an uploaded one.
    pub policy: String,
    /// Nodes by name, node id, or unambiguous prefix of it; all nodes if empty.
    #[serde(default)]
    pub nodes: Vec<String>,
}

/// What a policy would make of nodes, were it in force.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Tried {
    /// The policy's id.
    pub policy: String,
    /// One per node that was asked for, by name.
    pub nodes: Vec<TriedNode>,
}

/// What a policy would make of one node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TriedNode {
    /// Its name.
    pub name: String,
    /// Its node id, once it is known.
    pub node_id: Option<String>,
    /// What would come of it.
    pub outcome: TriedOutcome,
    /// In one sentence.
    pub summary: String,
    /// What is wrong; empty unless it would fail.
    #[schema(value_type = Vec<Object>)]
    pub findings: Vec<serde_json::Value>,
    /// What the stored evidence does not speak of.
    pub not_checked: Vec<String>,
    /// When the evidence was shown.
    pub evidence_at_ms: Option<i64>,
}

/// The result of trying a policy on one node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TriedOutcome {
    /// The node would be trusted.
    Good,
    /// It would not.
    Failed,
    /// The stored evidence lacks what the policy asks for.
    CannotTell,
    /// No quote of this node has verified yet.
    NoEvidence,
}

impl TriedOutcome {
    /// As in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Failed => "failed",
            Self::CannotTell => "cannot_tell",
            Self::NoEvidence => "no_evidence",
        }
    }
}

/// A share that left.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Release {
    /// Which role released it.
    pub role: String,
    /// Of which sealing.
    pub sealing_id: String,
    /// SHA-256 of the NK it was sealed to.
    pub nk_digest: String,
    /// SHA-256 of the quote it rests on.
    pub quote_digest: String,
    /// Boot epoch: TPM resets.
    pub reset_count: u32,
    /// Boot epoch: TPM restarts since the reset.
    pub restart_count: u32,
    /// When.
    pub at_ms: i64,
    /// When the node confirmed.
    pub confirmed_ms: Option<i64>,
}

/// Releases of both roles, newest first.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Releases {
    /// At most the limit.
    pub releases: Vec<Release>,
}

/// A step in a node's history.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// Role and number, unique.
    #[schema(example = "verifier-12")]
    pub id: String,
    /// When.
    pub at_ms: i64,
    /// Which role says it.
    pub role: String,
    /// About which node id, strangers' claims included.
    pub node_id: Option<String>,
    /// The node's name.
    pub name: Option<String>,
    /// Short name.
    #[schema(example = "pcr_mismatch")]
    pub kind: String,
    /// One sentence.
    pub detail: String,
}

/// Events in the order of their times.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Events {
    /// At most the limit.
    pub events: Vec<Event>,
    /// `after` of the next call: what happened since.
    pub next: String,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams, Serialize)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// `next` of an earlier call; without it the newest.
    pub after: Option<String>,
    /// At most this many, 1 to 500; 100 unless told otherwise.
    pub limit: Option<u32>,
    /// Only about this node: name, id or unambiguous prefix.
    pub node: Option<String>,
}

/// A stored policy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Policy {
    /// SHA-256 of its bytes.
    pub id: String,
    /// Its own name; not unique.
    pub name: String,
    /// When it was first uploaded.
    pub created_ms: i64,
    /// Its text as uploaded; left out in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// Policies, newest first.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Policies {
    /// All of them, without their texts.
    pub policies: Vec<Policy>,
}

/// A sealing to be uploaded; its chunks follow.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSealing {
    /// The manifest's bytes, hex; id, subject, length and digest are read from it.
    pub manifest: String,
    /// The tenant's signature over them, hex.
    pub signature: String,
    /// U, confirm key, key tag and manifest digest: HPKE ciphertext to the tenant role, hex.
    pub u_sealed: String,
    /// V: HPKE ciphertext to the verifier role, hex.
    pub v_sealed: String,
}

/// A sealing, without its shares.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Sealing {
    /// Which.
    pub sealing_id: String,
    /// For whom: `node:` or `join:` and an id.
    pub subject: String,
    /// Version of the payload.
    pub version: u64,
    /// Whether its `autorun` is to be run.
    pub autorun: bool,
    /// Not to be accepted after this second since 1970.
    pub not_after: Option<u64>,
    /// Bytes of ciphertext.
    pub ciphertext_len: u64,
    /// Chunks they come in.
    pub chunk_count: u64,
    /// All chunks are there and are what the manifest says.
    pub complete: bool,
    /// When it was begun.
    pub created_ms: i64,
}

/// A join token; the token itself is not known here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Join {
    /// Digest of the token.
    pub join_id: String,
    /// For which node.
    pub name: String,
    /// `open`, `used`, `expired` or `revoked`.
    pub state: String,
    /// When it ends.
    pub expires_ms: i64,
    /// Which node used it.
    pub used_by: Option<String>,
}

/// Join tokens, newest first.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Joins {
    /// All of them.
    pub joins: Vec<Join>,
}

/// An API token to be made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it may do.
    pub role: RoleName,
    /// How long, milliseconds from now; for ever if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<i64>,
}

/// A new API token. This is the only time that it is shown.
#[derive(Deserialize, Serialize, ToSchema)]
pub struct MadeToken {
    /// The token itself.
    pub token: String,
    /// To recognise it by.
    pub label: String,
    /// What it may do.
    pub role: RoleName,
    /// When it ends.
    pub expires_ms: Option<i64>,
}

impl Drop for MadeToken {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.token);
    }
}

/// An API token, without the token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Token {
    /// To recognise it by.
    pub label: String,
    /// What it may do.
    pub role: RoleName,
    /// When it was made.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: Option<i64>,
}

/// API tokens, newest first.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Tokens {
    /// All of them.
    pub tokens: Vec<Token>,
}

/// The server is well.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The program's version.
    pub version: String,
}
