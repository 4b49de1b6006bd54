//! The cryptography of three-part key derivation: NK, K_b and its shares, HPKE, the payload, the manifest, the proofs.
//!
//! Everything here works on bytes and keys that the caller hands over. Randomness is an argument, times are numbers
//! that somebody else read from a clock, and nothing is stored. Signatures of TPM quotes and of certificates are not
//! verified here.

pub mod bind;
pub mod container;
pub mod join;
pub mod labels;
pub mod manifest;
pub mod nk;
pub mod payload;
pub mod role_key;
pub mod seal;
pub mod secret;
pub mod share;

mod hash;
mod hpke_box;

#[cfg(test)]
mod tests;

pub use bind::{
    BindError, PURPOSE_ATTEST, PURPOSE_BOOTSTRAP, activate_proof, confirm_mac, credential_answer, node_id,
    qualifying_data, verify_activate_proof, verify_confirm_mac, verify_credential_answer,
};
pub use hash::sha256;
pub use join::{JoinKey, JoinToken};
pub use manifest::{
    DELIVERED_EVENT, MANIFEST_LEN, Manifest, ManifestError, SIGNATURE_LEN, TenantPublicKey, TenantSigningKey,
    VerifiedManifest, pins_event,
};
pub use nk::Nk;
pub use role_key::{RolePrivateKey, RolePublicKey, TenantHolding};
pub use secret::{ConfirmKey, CredentialSecret, Kb, KeyTag, PayloadKey, Secret, ShareU, ShareV, WrongShares};
pub use share::{Release, SealedShare, ShareError};

/// Bytes of a P-256 public key as every structure here carries it: SEC1, uncompressed.
pub const P256_PUBLIC_LEN: usize = 65;
