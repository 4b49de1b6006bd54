//! Join tokens: 32 random bytes, made by the tenant for one name, that answer "is it ours" for a node not seen yet.
//!
//! A token never travels. The agent keeps it in its configuration and sends two proofs, under two keys derived from it:
//! one for the registrar, one for the tenant. Expiry and single use are the roles' to keep.

use alloc::string::String;
use core::fmt;

use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::bind::BindError;
use super::hash::{hkdf_into, mac, mac_fits, sha256};
use super::labels;
use super::role_key::secret_hex;
use super::secret::{Secret, secret};
use crate::id::{JoinId, NodeId, Role, hex_array};

/// What every token begins with in text, so that people and secret scanners recognise it.
const PREFIX: &str = "trefoil-join-";

secret! {
    /// A join token.
    JoinToken
}
secret! {
    /// The HMAC key that one role holds for one join token.
    JoinKey
}

impl JoinToken {
    /// A new random token.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(Secret::generate(rng))
    }

    /// From the text that [`to_text`](Self::to_text) gives; white space around it is ignored. The caller wipes `text`.
    pub fn from_text(text: &str) -> Option<Self> {
        let token = Zeroizing::new(hex_array::<32>(text.trim().strip_prefix(PREFIX)?)?);
        Self::from_slice(&*token)
    }

    /// `trefoil-join-` and 64 hex digits.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Reserved at once: growing would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len().saturating_add(64)));
        text.push_str(PREFIX);
        text.push_str(&secret_hex(&self.0));
        text
    }

    /// The token's public id: SHA-256("trefoil-v1-join-id" ‖ token).
    pub fn id(&self) -> JoinId {
        JoinId(sha256(&[labels::JOIN_ID, self.expose()]))
    }

    /// The HMAC key for one role, from which neither the token nor another role's key follows.
    pub fn key(&self, role: Role) -> JoinKey {
        JoinKey(Secret::build(|key| hkdf_into(self.expose(), &[labels::JOIN_HMAC, &[role as u8]], key)))
    }
}

impl JoinKey {
    /// The proof that this node, with this AK, behind this server certificate, holds the token: HMAC-SHA256 over
    /// "trefoil-v1-join" ‖ node id ‖ AK Name ‖ SHA-256 of the server certificate.
    pub fn proof(&self, node_id: NodeId, ak_name: &[u8], server_cert_digest: &[u8; 32]) -> [u8; 32] {
        mac(self.expose(), &[labels::JOIN, node_id.as_bytes(), ak_name, server_cert_digest])
    }

    /// Verifies a [`proof`](Self::proof) in constant time.
    ///
    /// # Errors
    /// [`BindError::WrongMac`].
    pub fn verify(
        &self,
        node_id: NodeId,
        ak_name: &[u8],
        server_cert_digest: &[u8; 32],
        proof: &[u8; 32],
    ) -> Result<(), BindError> {
        let parts: [&[u8]; 4] = [labels::JOIN, node_id.as_bytes(), ak_name, server_cert_digest];
        if mac_fits(self.expose(), &parts, proof) { Ok(()) } else { Err(BindError::WrongMac) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use rand_core::OsRng;

    use super::*;

    fn token() -> JoinToken {
        JoinToken::from_slice(&[0x77; 32]).unwrap()
    }

    #[test]
    fn id_keys_and_proof_are_pinned() {
        assert_eq!(hex::encode(token().id().0), "87ea492ad6bac5728a08af814c85f4ec2f2a1f6eaa6fc311dd90f670a4affd05");
        assert_eq!(
            hex::encode(token().key(Role::Registrar).expose()),
            "ac099ac93e755d6bf734adb7695c8cb592783b3867d56efaba410b46e72271fd"
        );
        assert_eq!(
            hex::encode(token().key(Role::Tenant).expose()),
            "6b277538c9c270da37145e1d3a3ab6eff49ed764861d5a638115e0bac4c7f7fa"
        );
        let proof = token().key(Role::Tenant).proof(NodeId([0x11; 32]), &[0x66; 34], &[0x44; 32]);
        assert_eq!(hex::encode(proof), "27963339f650e72ef2018b7545ecab640f1d906a605bcfd99e5c20ae08ec1527");
    }

    #[test]
    fn text_round_trips_whatever_space_is_around_it() {
        let token = JoinToken::generate(&mut OsRng);
        let text = token.to_text();
        assert_eq!(text.len(), 77);
        assert_eq!(JoinToken::from_text(&format!("\t{}\r\n", *text)), Some(token));
    }

    #[test]
    fn text_that_is_no_token_is_refused() {
        let text = token().to_text();
        assert!(JoinToken::from_text(&text[1..]).is_none());
        assert!(JoinToken::from_text(&text[..76]).is_none());
        assert!(JoinToken::from_text(&format!("{}0", *text)).is_none());
        assert!(JoinToken::from_text(&text.replace('7', "g")).is_none());
        assert!(JoinToken::from_text("").is_none());
    }

    #[test]
    fn a_proof_for_another_role_node_ak_or_server_is_refused() {
        let (node, name, cert) = (NodeId([1; 32]), [2; 34], [3; 32]);
        let key = token().key(Role::Registrar);
        let proof = key.proof(node, &name, &cert);
        assert_eq!(key.verify(node, &name, &cert, &proof), Ok(()));
        let wrong = Err(BindError::WrongMac);
        assert_eq!(token().key(Role::Tenant).verify(node, &name, &cert, &proof), wrong);
        assert_eq!(key.verify(NodeId([9; 32]), &name, &cert, &proof), wrong);
        assert_eq!(key.verify(node, &[9; 34], &cert, &proof), wrong);
        assert_eq!(key.verify(node, &name, &[9; 32], &proof), wrong);
    }
}
