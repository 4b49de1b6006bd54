//! Every label that keeps one use of a hash, a MAC or a key apart from all others.
//!
//! A label is the first thing that is hashed, and what follows it has a fixed layout, so that no input made for one
//! purpose can be read as an input made for another. Labels never change: another meaning takes another version.

/// Hashed with an EK's SubjectPublicKeyInfo: a node id.
pub const NODE: &[u8] = b"trefoil-v1-node";
/// Hashed into the qualifying data of a quote.
pub const QUOTE: &[u8] = b"trefoil-v1-quote";
/// Expanded from the two random seeds: the key material of NK.
pub const NK_SEED: &[u8] = b"trefoil-v1-nk";

/// HPKE `info` of a share on its way to NK.
pub const SHARE: &[u8] = b"trefoil-v1-share";
/// HPKE `info` of a share at rest, sealed to its role.
pub const ROLE_SHARE: &[u8] = b"trefoil-v1-role-share";
/// HPKE `info` of a join token's HMAC key at rest, sealed to its role.
pub const JOIN_KEY: &[u8] = b"trefoil-v1-join-key";

/// Expanded from K_b: the payload key.
pub const PAYLOAD_KEY: &[u8] = b"trefoil-v1-payload-key";
/// Expanded from K_b: the confirm key.
pub const CONFIRM_KEY: &[u8] = b"trefoil-v1-confirm-key";
/// Expanded from K_b: the key tag.
pub const KEY_TAG: &[u8] = b"trefoil-v1-key-tag";
/// Associated data of every payload chunk.
pub const PAYLOAD: &[u8] = b"trefoil-v1-payload";

/// Signed before the manifest's bytes.
pub const MANIFEST: &[u8] = b"trefoil-v1-manifest";
/// The first of the two events of the phase PCR, followed by the pins.
pub const PINS: &[u8] = b"trefoil-v1-pins";
/// The second of the two events of the phase PCR, complete.
pub const DELIVERED: &[u8] = b"trefoil-v1-delivered";

/// MAC: a credential was activated for this enrolment.
pub const ACTIVATE: &[u8] = b"trefoil-v1-activate";
/// MAC: the tenant's credential was activated by the TPM that made this quote.
pub const CREDENTIAL: &[u8] = b"trefoil-v1-credential";
/// MAC: the payload is in place.
pub const CONFIRM: &[u8] = b"trefoil-v1-confirm";

/// Hashed with a join token: its public id.
pub const JOIN_ID: &[u8] = b"trefoil-v1-join-id";
/// Expanded from a join token: the HMAC key of one role.
pub const JOIN_HMAC: &[u8] = b"trefoil-v1-join-hmac";
/// MAC: this node and AK hold the join token.
pub const JOIN: &[u8] = b"trefoil-v1-join";
