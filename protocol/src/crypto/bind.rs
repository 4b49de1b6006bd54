//! What binds a statement to its circumstances: the qualifying data of quotes, and the MACs of enrolment and delivery.
//!
//! Every layout here is fixed and is hashed as it stands; nothing is read back. Who holds which key, and when a MAC
//! is asked for, is the roles' business. Verification of the quotes themselves is the control plane's.

use super::P256_PUBLIC_LEN;
use super::hash::{mac, mac_fits, sha256};
use super::labels;
use super::secret::{ConfirmKey, CredentialSecret};
use crate::id::{EnrolmentId, NodeId, Role, SealingId};
use crate::limits::MAX_NONCES;

/// Purpose of a challenge: shares may rest on its quote, which binds NK.
pub const PURPOSE_BOOTSTRAP: u8 = 1;
/// Purpose of a challenge: attestation alone; the quote binds no NK.
pub const PURPOSE_ATTEST: u8 = 2;

/// Why a binding was not made, or a proof refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum BindError {
    #[error("a quote has purpose 1 with an NK, or purpose 2 without")]
    BadPurpose,
    #[error("a quote answers one or two nonces, at most one of each role, roles ascending")]
    BadNonces,
    #[error("the proof was made with another secret, or for something else")]
    WrongMac,
}

/// The id of a node: SHA-256("trefoil-v1-node" ‖ SubjectPublicKeyInfo DER of its EK).
pub fn node_id(ek_spki_der: &[u8]) -> NodeId {
    NodeId(sha256(&[labels::NODE, ek_spki_der]))
}

/// The qualifying data of a quote.
///
/// SHA-256("trefoil-v1-quote" ‖ purpose u8 ‖ node id 32 ‖ NK public 65, zeros for purpose 2 ‖ SHA-256 of the server
/// certificate 32 ‖ count u8 ‖ per nonce, roles ascending: role u8 ‖ nonce 32).
///
/// # Errors
/// [`BindError::BadPurpose`] unless purpose and `nk_public` belong together; [`BindError::BadNonces`] for none, more
/// than [`MAX_NONCES`], or roles that do not ascend.
pub fn qualifying_data(
    purpose: u8,
    node_id: NodeId,
    nk_public: Option<&[u8; P256_PUBLIC_LEN]>,
    server_cert_digest: &[u8; 32],
    nonces: &[(Role, [u8; 32])],
) -> Result<[u8; 32], BindError> {
    let nk_public = match (purpose, nk_public) {
        (PURPOSE_BOOTSTRAP, Some(nk_public)) => nk_public,
        (PURPOSE_ATTEST, None) => &[0; P256_PUBLIC_LEN],
        _ => return Err(BindError::BadPurpose),
    };
    let count = match u8::try_from(nonces.len()) {
        Ok(count) if (1..=MAX_NONCES).contains(&nonces.len()) && nonces.is_sorted_by(|a, b| a.0 < b.0) => count,
        _ => return Err(BindError::BadNonces),
    };
    // Role ‖ nonce of each, in one buffer of fixed size.
    let mut answered = [0; MAX_NONCES * 33];
    let (records, _) = answered.as_chunks_mut::<33>();
    for (record, (role, nonce)) in records.iter_mut().zip(nonces) {
        let [first, rest @ ..] = record;
        *first = *role as u8;
        rest.copy_from_slice(nonce);
    }
    let used = nonces.len().saturating_mul(33);
    let answered = answered.get(..used).ok_or(BindError::BadNonces)?;
    Ok(sha256(&[labels::QUOTE, &[purpose], node_id.as_bytes(), nk_public, server_cert_digest, &[count], answered]))
}

/// The proof of a credential's activation: HMAC-SHA256 under the credential's secret over "trefoil-v1-activate" ‖
/// enrolment id ‖ node id ‖ server certificate digest ‖ AK Name.
pub fn activate_proof(
    secret: &CredentialSecret,
    enrolment_id: EnrolmentId,
    node_id: NodeId,
    server_cert_digest: &[u8; 32],
    ak_name: &[u8],
) -> [u8; 32] {
    let parts = activate_parts(&enrolment_id, &node_id, server_cert_digest, ak_name);
    mac(secret.expose(), &parts)
}

/// Verifies [`activate_proof`] in constant time: the registrar's step.
///
/// # Errors
/// [`BindError::WrongMac`].
pub fn verify_activate_proof(
    secret: &CredentialSecret,
    enrolment_id: EnrolmentId,
    node_id: NodeId,
    server_cert_digest: &[u8; 32],
    ak_name: &[u8],
    proof: &[u8; 32],
) -> Result<(), BindError> {
    let parts = activate_parts(&enrolment_id, &node_id, server_cert_digest, ak_name);
    fits(mac_fits(secret.expose(), &parts, proof))
}

/// The answer to the tenant's own credential: HMAC-SHA256 under its secret over "trefoil-v1-credential" ‖ qualifying
/// data of the quote that it comes with.
pub fn credential_answer(secret: &CredentialSecret, qualifying_data: &[u8; 32]) -> [u8; 32] {
    mac(secret.expose(), &[labels::CREDENTIAL, qualifying_data])
}

/// Verifies [`credential_answer`] in constant time: the tenant's step.
///
/// # Errors
/// [`BindError::WrongMac`].
pub fn verify_credential_answer(
    secret: &CredentialSecret,
    qualifying_data: &[u8; 32],
    answer: &[u8; 32],
) -> Result<(), BindError> {
    fits(mac_fits(secret.expose(), &[labels::CREDENTIAL, qualifying_data], answer))
}

/// The node's word that its payload is in place: HMAC-SHA256 under the confirm key over "trefoil-v1-confirm" ‖ node id
/// ‖ sealing id ‖ SHA-256 of NK public ‖ the tenant's nonce of the challenge that U was released on.
pub fn confirm_mac(
    confirm_key: &ConfirmKey,
    node_id: NodeId,
    sealing_id: SealingId,
    nk_digest: &[u8; 32],
    tenant_nonce: &[u8; 32],
) -> [u8; 32] {
    mac(confirm_key.expose(), &confirm_parts(&node_id, &sealing_id, nk_digest, tenant_nonce))
}

/// Verifies [`confirm_mac`] in constant time: the tenant's step.
///
/// # Errors
/// [`BindError::WrongMac`].
pub fn verify_confirm_mac(
    confirm_key: &ConfirmKey,
    node_id: NodeId,
    sealing_id: SealingId,
    nk_digest: &[u8; 32],
    tenant_nonce: &[u8; 32],
    confirm: &[u8; 32],
) -> Result<(), BindError> {
    let parts = confirm_parts(&node_id, &sealing_id, nk_digest, tenant_nonce);
    fits(mac_fits(confirm_key.expose(), &parts, confirm))
}

/// The one variable length, the AK Name's, comes last.
fn activate_parts<'a>(
    enrolment_id: &'a EnrolmentId,
    node_id: &'a NodeId,
    server_cert_digest: &'a [u8; 32],
    ak_name: &'a [u8],
) -> [&'a [u8]; 5] {
    [labels::ACTIVATE, enrolment_id.as_bytes(), node_id.as_bytes(), server_cert_digest, ak_name]
}

fn confirm_parts<'a>(
    node_id: &'a NodeId,
    sealing_id: &'a SealingId,
    nk_digest: &'a [u8; 32],
    tenant_nonce: &'a [u8; 32],
) -> [&'a [u8]; 5] {
    [labels::CONFIRM, node_id.as_bytes(), sealing_id.as_bytes(), nk_digest, tenant_nonce]
}

const fn fits(fits: bool) -> Result<(), BindError> {
    if fits { Ok(()) } else { Err(BindError::WrongMac) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([0x11; 32]);
    const ENROLMENT: EnrolmentId = EnrolmentId([0x22; 16]);
    const SEALING: SealingId = SealingId([0x33; 16]);
    const CERT: [u8; 32] = [0x44; 32];
    const NK: [u8; 65] = [0x55; 65];
    const NAME: [u8; 34] = [0x66; 34];
    const WRONG: Result<(), BindError> = Err(BindError::WrongMac);

    fn secret(byte: u8) -> CredentialSecret {
        CredentialSecret::from_slice(&[byte; 32]).unwrap()
    }

    fn confirm_key(byte: u8) -> ConfirmKey {
        ConfirmKey::from_slice(&[byte; 32]).unwrap()
    }

    #[test]
    fn bytes_are_pinned() {
        assert_eq!(hex::encode(node_id(b"spki").0), "e8e0067fcbd3dc4c1ddb522dd20a9eb9f12a321e3c1ff037974bf3520127d263");
        let nonces = [(Role::Verifier, [1; 32]), (Role::Tenant, [2; 32])];
        let bootstrap = qualifying_data(PURPOSE_BOOTSTRAP, NODE, Some(&NK), &CERT, &nonces).unwrap();
        assert_eq!(hex::encode(bootstrap), "95de577be19da9cb4cc4755e6998bec5868220fd87a32993cb897d70f0c143db");
        let attest = qualifying_data(PURPOSE_ATTEST, NODE, None, &CERT, &nonces[..1]).unwrap();
        assert_eq!(hex::encode(attest), "4c9b049d7dfe198f2825dd98bacef0a7fcf60def1f9625081ab02b072adc5f41");
        assert_eq!(
            hex::encode(activate_proof(&secret(7), ENROLMENT, NODE, &CERT, &NAME)),
            "83e856413d0f494fbd940b16e4a55ac7112bb628088948ac5246bbe76b638144"
        );
        assert_eq!(
            hex::encode(credential_answer(&secret(7), &bootstrap)),
            "11e7a3068ef66ec0e04db7dad6df3d5235b11456e42d53b964e9b15e75c49371"
        );
        assert_eq!(
            hex::encode(confirm_mac(&confirm_key(7), NODE, SEALING, &[8; 32], &[9; 32])),
            "32f0d32258de6bdc896d03977082ce76474b2591e983578e6db96b231835a596"
        );
    }

    #[test]
    fn purpose_and_nk_belong_together() {
        let nonces = [(Role::Verifier, [1; 32])];
        for (purpose, nk) in [(PURPOSE_BOOTSTRAP, None), (PURPOSE_ATTEST, Some(&NK)), (0, None), (3, Some(&NK))] {
            assert_eq!(qualifying_data(purpose, NODE, nk, &CERT, &nonces), Err(BindError::BadPurpose));
        }
    }

    #[test]
    fn nonces_are_one_per_role_ascending() {
        let (verifier, tenant) = ((Role::Verifier, [1; 32]), (Role::Tenant, [2; 32]));
        let over = [(Role::Registrar, [0; 32]), verifier, tenant];
        for nonces in [&[][..], &[tenant, verifier], &[tenant, tenant], &over] {
            assert_eq!(qualifying_data(PURPOSE_ATTEST, NODE, None, &CERT, nonces), Err(BindError::BadNonces));
        }
        assert!(qualifying_data(PURPOSE_ATTEST, NODE, None, &CERT, &[verifier, tenant]).is_ok());
    }

    #[test]
    fn every_field_of_the_qualifying_data_counts() {
        let nonce = [(Role::Verifier, [1; 32])];
        let of = |node, nk: &[u8; 65], cert: &[u8; 32], nonces: &[(Role, [u8; 32])]| {
            qualifying_data(PURPOSE_BOOTSTRAP, node, Some(nk), cert, nonces).unwrap()
        };
        let all = [
            of(NODE, &NK, &CERT, &nonce),
            of(NodeId([0; 32]), &NK, &CERT, &nonce),
            of(NODE, &[0; 65], &CERT, &nonce),
            of(NODE, &NK, &[0; 32], &nonce),
            of(NODE, &NK, &CERT, &[(Role::Tenant, [1; 32])]),
            of(NODE, &NK, &CERT, &[(Role::Verifier, [2; 32])]),
            of(NODE, &NK, &CERT, &[nonce[0], (Role::Tenant, [1; 32])]),
            qualifying_data(PURPOSE_ATTEST, NODE, None, &CERT, &nonce).unwrap(),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one));
        }
    }

    #[test]
    fn an_activation_for_another_enrolment_node_server_or_ak_is_refused() {
        let proof = activate_proof(&secret(7), ENROLMENT, NODE, &CERT, &NAME);
        let verify = |key, enrolment, node, cert: &[u8; 32], name: &[u8]| {
            verify_activate_proof(&secret(key), enrolment, node, cert, name, &proof)
        };
        assert_eq!(verify(7, ENROLMENT, NODE, &CERT, &NAME), Ok(()));
        assert_eq!(verify(8, ENROLMENT, NODE, &CERT, &NAME), WRONG);
        assert_eq!(verify(7, EnrolmentId([0; 16]), NODE, &CERT, &NAME), WRONG);
        assert_eq!(verify(7, ENROLMENT, NodeId([0; 32]), &CERT, &NAME), WRONG);
        assert_eq!(verify(7, ENROLMENT, NODE, &[0; 32], &NAME), WRONG);
        assert_eq!(verify(7, ENROLMENT, NODE, &CERT, &NAME[1..]), WRONG);
    }

    #[test]
    fn a_credential_answer_for_another_quote_or_secret_is_refused() {
        let answer = credential_answer(&secret(7), &[1; 32]);
        assert_eq!(verify_credential_answer(&secret(7), &[1; 32], &answer), Ok(()));
        assert_eq!(verify_credential_answer(&secret(8), &[1; 32], &answer), WRONG);
        assert_eq!(verify_credential_answer(&secret(7), &[2; 32], &answer), WRONG);
    }

    #[test]
    fn a_confirmation_for_another_node_sealing_nk_or_nonce_is_refused() {
        let confirm = confirm_mac(&confirm_key(7), NODE, SEALING, &[8; 32], &[9; 32]);
        let verify = |key, node, sealing, nk: u8, nonce: u8| {
            verify_confirm_mac(&confirm_key(key), node, sealing, &[nk; 32], &[nonce; 32], &confirm)
        };
        assert_eq!(verify(7, NODE, SEALING, 8, 9), Ok(()));
        assert_eq!(verify(6, NODE, SEALING, 8, 9), WRONG);
        assert_eq!(verify(7, NodeId([0; 32]), SEALING, 8, 9), WRONG);
        assert_eq!(verify(7, NODE, SealingId([0; 16]), 8, 9), WRONG);
        assert_eq!(verify(7, NODE, SEALING, 7, 9), WRONG);
        assert_eq!(verify(7, NODE, SEALING, 8, 8), WRONG);
    }
}
