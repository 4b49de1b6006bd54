//! `share`, `confirm`, `report`: the halves of the key going out, and word coming back.

use serde::{Deserialize, Serialize};

use crate::{
    bytes::{Array, Bytes},
    id::{Role, SealingId},
    limits,
};

/// Role → agent, POST /v1/share: HPKE to NK. A claim until the key tag fits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Share {
    /// Whose share: verifier (V) or tenant (U and the manifest's digest).
    pub role: Role,
    /// Which sealing.
    pub sealing_id: SealingId,
    /// HPKE encapsulated key, SEC1 uncompressed.
    pub enc: Array<65>,
    /// Ciphertext and tag.
    pub ciphertext: Bytes<{ limits::MAX_SHARE_LEN }>,
}

/// Agent → tenant, POST /v1/confirm: the payload is in place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Confirm {
    /// Which sealing.
    pub sealing_id: SealingId,
    /// HMAC-SHA256 under the confirm key.
    pub proof: Array<32>,
}

/// The answer to GET /v1/manifest/ID.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SignedManifest {
    /// The manifest's bytes.
    pub manifest: Bytes<{ limits::MAX_MANIFEST_LEN }>,
    /// ECDSA P-256 over them, r ‖ s.
    pub signature: Array<64>,
}

/// What went wrong, or what came of it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ReportKind {
    /// The two shares do not make the key this sealing's tag belongs to. A new NK is made; both roles are told.
    TagMismatch,
    /// A share did not open under the NK it was sent for.
    ShareRefused,
    /// The manifest is not the tenant's, not for this node, too old, or not the one announced.
    ManifestRefused,
    /// The payload's bytes are not what the manifest says, or hold a path that may not be.
    PayloadRefused,
    /// The payload could not be put in place: no room, no tmpfs, no right to write.
    PayloadNotStored,
    /// Autorun ended; the code is its exit status.
    Autorun,
}

/// Agent → tenant, POST /v1/report. Told, not proven: it is shown, and decides nothing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Report {
    /// Which sealing.
    pub sealing_id: SealingId,
    /// What it is about.
    pub kind: ReportKind,
    /// An exit status for autorun, else 0.
    pub code: i32,
    /// UTF-8, bounded: a reason, or the end of autorun's output.
    pub text: Bytes<{ limits::MAX_REPORT_LEN }>,
}
