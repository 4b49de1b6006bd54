//! The roles' own HPKE keys, and what is sealed to them: shares and join keys at rest.
//!
//! A role's private key comes from a file or a credential, never from a database; the operator pins the public ones.
//! `info` names role and subject, so that a row copied to another node's place does not open.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::P256_PUBLIC_LEN;
use super::hpke_box::{KeyPair, is_public_key};
use super::join::JoinKey;
use super::labels;
use super::secret::{ConfirmKey, KeyTag, Secret, ShareU, ShareV};
use super::share::{SealedShare, ShareError};
use crate::id::{JoinId, Role, SealingId, Subject, hex_array};

/// A role's public key: a point of P-256 that was checked to lie on the curve.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RolePublicKey([u8; P256_PUBLIC_LEN]);

impl RolePublicKey {
    /// From SEC1 uncompressed bytes; `None` if they are no point of P-256.
    pub fn from_sec1(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.try_into().ok()?;
        is_public_key(&bytes).then_some(Self(bytes))
    }

    /// From the hex text that [`Display`](fmt::Display) writes; white space around it is ignored.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::from_sec1(&hex_array::<P256_PUBLIC_LEN>(text.trim())?)
    }

    /// SEC1 uncompressed bytes.
    pub const fn as_sec1(&self) -> &[u8; P256_PUBLIC_LEN] {
        &self.0
    }
}

impl fmt::Display for RolePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RolePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RolePublicKey({self})")
    }
}

/// A role's private key. Wiped on drop.
pub struct RolePrivateKey(KeyPair);

impl RolePrivateKey {
    /// A new random key.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(KeyPair::derive(&Secret::generate(rng)))
    }

    /// From the private scalar; `None` if it is zero or not below the group's order.
    pub fn from_secret(scalar: &Secret<32>) -> Option<Self> {
        KeyPair::from_private(scalar).map(Self)
    }

    /// From the hex text that [`to_text`](Self::to_text) gives; white space around it is ignored. The caller wipes
    /// `text`.
    pub fn from_text(text: &str) -> Option<Self> {
        let scalar = Zeroizing::new(hex_array::<32>(text.trim())?);
        Self::from_secret(&Secret::from_slice(&*scalar)?)
    }

    /// The private scalar as 64 hex digits, for the role's key file.
    pub fn to_text(&self) -> Zeroizing<String> {
        secret_hex(&self.0.private())
    }

    /// Its public key.
    pub const fn public(&self) -> RolePublicKey {
        RolePublicKey(*self.0.public())
    }
}

impl fmt::Debug for RolePrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RolePrivateKey")
    }
}

/// Seals V to the verifier role.
///
/// # Errors
/// [`ShareError::BadPublicKey`], which a [`RolePublicKey`] excludes.
pub fn seal_v_at_rest(
    verifier: &RolePublicKey,
    subject: Subject,
    sealing_id: SealingId,
    v: &ShareV,
    rng: &mut impl CryptoRngCore,
) -> Result<SealedShare, ShareError> {
    SealedShare::seal(&verifier.0, &share_info(Role::Verifier, subject, sealing_id), &[v.expose()], rng)
}

/// Opens V as the verifier role.
///
/// # Errors
/// [`ShareError::DoesNotOpen`] under another key, or for another subject or sealing than it was sealed for.
pub fn open_v_at_rest(
    verifier: &RolePrivateKey,
    subject: Subject,
    sealing_id: SealingId,
    sealed: &SealedShare,
) -> Result<ShareV, ShareError> {
    let plaintext = sealed.open::<32>(&verifier.0, &share_info(Role::Verifier, subject, sealing_id))?;
    ShareV::from_slice(&plaintext).ok_or(ShareError::BadLength)
}

/// What the tenant role holds of one sealing.
#[derive(Debug, Eq, PartialEq)]
pub struct TenantHolding {
    /// The tenant's share.
    pub u: ShareU,
    /// Under which the node confirms.
    pub confirm_key: ConfirmKey,
    /// The tag of the sealing's K_b.
    pub key_tag: KeyTag,
    /// SHA-256 of the manifest's bytes, which the node gets together with U.
    pub manifest_digest: [u8; 32],
}

impl TenantHolding {
    /// Seals U ‖ confirm key ‖ key tag ‖ SHA-256 of the manifest to the tenant role.
    ///
    /// # Errors
    /// [`ShareError::BadPublicKey`], which a [`RolePublicKey`] excludes.
    pub fn seal(
        &self,
        tenant: &RolePublicKey,
        subject: Subject,
        sealing_id: SealingId,
        rng: &mut impl CryptoRngCore,
    ) -> Result<SealedShare, ShareError> {
        let parts: [&[u8]; 4] = [self.u.expose(), self.confirm_key.expose(), &self.key_tag.0, &self.manifest_digest];
        SealedShare::seal(&tenant.0, &share_info(Role::Tenant, subject, sealing_id), &parts, rng)
    }

    /// Opens it as the tenant role.
    ///
    /// # Errors
    /// [`ShareError::DoesNotOpen`] under another key, or for another subject or sealing than it was sealed for.
    pub fn open(
        tenant: &RolePrivateKey,
        subject: Subject,
        sealing_id: SealingId,
        sealed: &SealedShare,
    ) -> Result<Self, ShareError> {
        let plaintext = sealed.open::<128>(&tenant.0, &share_info(Role::Tenant, subject, sealing_id))?;
        let ([u, confirm_key, key_tag, manifest_digest], []) = plaintext.as_chunks::<32>() else {
            return Err(ShareError::BadLength);
        };
        Ok(Self {
            u: ShareU::from_slice(u).ok_or(ShareError::BadLength)?,
            confirm_key: ConfirmKey::from_slice(confirm_key).ok_or(ShareError::BadLength)?,
            key_tag: KeyTag(*key_tag),
            manifest_digest: *manifest_digest,
        })
    }
}

/// Seals a join token's HMAC key to the role that it is for.
///
/// # Errors
/// [`ShareError::BadPublicKey`], which a [`RolePublicKey`] excludes.
pub fn seal_join_key(
    public: &RolePublicKey,
    role: Role,
    join_id: JoinId,
    key: &JoinKey,
    rng: &mut impl CryptoRngCore,
) -> Result<SealedShare, ShareError> {
    SealedShare::seal(&public.0, &join_info(role, join_id), &[key.expose()], rng)
}

/// Opens a join token's HMAC key.
///
/// # Errors
/// [`ShareError::DoesNotOpen`] under another key, or for another role or join token than it was sealed for.
pub fn open_join_key(
    private: &RolePrivateKey,
    role: Role,
    join_id: JoinId,
    sealed: &SealedShare,
) -> Result<JoinKey, ShareError> {
    let plaintext = sealed.open::<32>(&private.0, &join_info(role, join_id))?;
    JoinKey::from_slice(&plaintext).ok_or(ShareError::BadLength)
}

/// The bytes as lower-case hex, in a string that never grows.
pub(crate) fn secret_hex(secret: &Secret<32>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(64));
    for byte in secret.expose() {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn share_info(role: Role, subject: Subject, sealing_id: SealingId) -> Vec<u8> {
    [labels::ROLE_SHARE, &[role as u8], &subject.to_bytes(), sealing_id.as_bytes()].concat()
}

fn join_info(role: Role, join_id: JoinId) -> Vec<u8> {
    [labels::JOIN_KEY, &[role as u8], join_id.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::ToString;

    use rand_core::OsRng;

    use super::*;
    use crate::crypto::join::JoinToken;
    use crate::id::NodeId;

    const SUBJECT: Subject = Subject::Node(NodeId([1; 32]));
    const SEALING: SealingId = SealingId([2; 16]);

    fn v() -> ShareV {
        ShareV::from_slice(&[3; 32]).unwrap()
    }

    #[test]
    fn infos_are_pinned() {
        let expected = [b"trefoil-v1-role-share\x03\x01".as_slice(), &[1; 32], &[2; 16]].concat();
        assert_eq!(share_info(Role::Tenant, SUBJECT, SEALING), expected);
        let expected = [b"trefoil-v1-join-key\x01".as_slice(), &[4; 32]].concat();
        assert_eq!(join_info(Role::Registrar, JoinId([4; 32])), expected);
    }

    #[test]
    fn a_row_moved_to_another_place_does_not_open() {
        let key = RolePrivateKey::generate(&mut OsRng);
        let sealed = seal_v_at_rest(&key.public(), SUBJECT, SEALING, &v(), &mut OsRng).unwrap();
        assert_eq!(open_v_at_rest(&key, SUBJECT, SEALING, &sealed), Ok(v()));

        let refused = Err(ShareError::DoesNotOpen);
        let other_node = Subject::Node(NodeId([9; 32]));
        let other_kind = Subject::Join(JoinId([1; 32]));
        assert_eq!(open_v_at_rest(&key, other_node, SEALING, &sealed), refused);
        assert_eq!(open_v_at_rest(&key, other_kind, SEALING, &sealed), refused);
        assert_eq!(open_v_at_rest(&key, SUBJECT, SealingId([9; 16]), &sealed), refused);
        assert_eq!(open_v_at_rest(&RolePrivateKey::generate(&mut OsRng), SUBJECT, SEALING, &sealed), refused);
    }

    #[test]
    fn the_tenants_holding_opens_whole() {
        let holding = || TenantHolding {
            u: ShareU::from_slice(&[5; 32]).unwrap(),
            confirm_key: ConfirmKey::from_slice(&[6; 32]).unwrap(),
            key_tag: KeyTag([7; 32]),
            manifest_digest: [8; 32],
        };
        let key = RolePrivateKey::generate(&mut OsRng);
        let sealed = holding().seal(&key.public(), SUBJECT, SEALING, &mut OsRng).unwrap();
        assert_eq!(sealed.ciphertext.len(), super::super::share::MAX_CIPHERTEXT_LEN);
        assert_eq!(TenantHolding::open(&key, SUBJECT, SEALING, &sealed), Ok(holding()));
        // The same key in the verifier's place opens nothing.
        assert_eq!(open_v_at_rest(&key, SUBJECT, SEALING, &sealed), Err(ShareError::BadLength));
    }

    #[test]
    fn a_join_key_opens_for_its_role_and_token_only() {
        let token = JoinToken::generate(&mut OsRng);
        let key = RolePrivateKey::generate(&mut OsRng);
        let join_key = token.key(Role::Registrar);
        let sealed = seal_join_key(&key.public(), Role::Registrar, token.id(), &join_key, &mut OsRng).unwrap();
        assert_eq!(open_join_key(&key, Role::Registrar, token.id(), &sealed), Ok(join_key));
        assert_eq!(open_join_key(&key, Role::Tenant, token.id(), &sealed), Err(ShareError::DoesNotOpen));
        assert_eq!(open_join_key(&key, Role::Registrar, JoinId([0; 32]), &sealed), Err(ShareError::DoesNotOpen));
    }

    #[test]
    fn keys_round_trip_as_text() {
        let key = RolePrivateKey::generate(&mut OsRng);
        let again = RolePrivateKey::from_text(&format!(" {}\n", *key.to_text())).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(RolePublicKey::from_text(&format!("{}\n", key.public())), Some(key.public()));
        assert_eq!(format!("{key:?}"), "RolePrivateKey");
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        let public = RolePrivateKey::generate(&mut OsRng).public().to_string();
        assert!(RolePublicKey::from_text(&public[2..]).is_none());
        assert!(RolePublicKey::from_text(&"0".repeat(130)).is_none());
        assert!(RolePrivateKey::from_text(&"0".repeat(64)).is_none());
        assert!(RolePrivateKey::from_text(&"f".repeat(64)).is_none());
        assert!(RolePrivateKey::from_text("").is_none());
    }
}
