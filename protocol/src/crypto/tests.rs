//! The whole derivation in memory: sealed by the operator, held by two roles, released to an NK, opened by a node.

extern crate std;

use std::convert::Infallible;
use std::num::NonZeroU64;
use std::vec::Vec;

use rand_core::OsRng;

use super::container::{ContainerReader, File, Sink, write_container};
use super::payload::{CHUNK_LEN, PayloadError, PayloadReceiver, SEALED_CHUNK_LEN};
use super::role_key::open_v_at_rest;
use super::seal::{SealError, SealKeys, SealOptions, Sealing, seal};
use super::share::{open_u, open_v, seal_u, seal_v};
use super::*;
use crate::id::{JoinId, NodeId, SealingId, Subject};
use crate::limits::MAX_PAYLOAD_LEN;

const NODE: NodeId = NodeId([1; 32]);

struct Operator {
    signing: TenantSigningKey,
    tenant: RolePrivateKey,
    verifier: RolePrivateKey,
}

impl Operator {
    fn new() -> Self {
        Self {
            signing: TenantSigningKey::generate(&mut OsRng),
            tenant: RolePrivateKey::generate(&mut OsRng),
            verifier: RolePrivateKey::generate(&mut OsRng),
        }
    }

    fn seal(&self, subject: Subject, plaintext: &[u8]) -> (Sealing, Vec<Vec<u8>>) {
        let mut chunks = Vec::new();
        let sealing = seal(
            &options(subject),
            plaintext,
            &SealKeys { signing: &self.signing, tenant: &self.tenant.public(), verifier: &self.verifier.public() },
            &mut OsRng,
            |chunk| {
                chunks.push(chunk.to_vec());
                Ok::<(), Infallible>(())
            },
        );
        (sealing.unwrap(), chunks)
    }
}

fn options(subject: Subject) -> SealOptions {
    SealOptions { subject, payload_id: [9; 16], version: 3, autorun: true, not_after: NonZeroU64::new(99) }
}

#[derive(Default)]
struct Collect(Vec<u8>);

impl Sink for Collect {
    type Error = Infallible;
    fn file(&mut self, path: &str, _: bool, _: u64) -> Result<(), Infallible> {
        assert_eq!(path, "app.conf");
        Ok(())
    }
    fn data(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
    fn end_file(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

#[test]
fn a_payload_travels_from_the_operator_to_the_node() {
    let operator = Operator::new();
    let subject = Subject::Join(JoinId([2; 32]));
    let contents: Vec<u8> = (0..200_000_u32).map(|index| index.to_le_bytes()[0]).collect();
    let file = File { path: "app.conf", executable: false, bytes: &contents };
    let (sealing, chunks) = operator.seal(subject, &write_container(&[file]).unwrap());
    assert_eq!(chunks.iter().map(Vec::len).max(), Some(SEALED_CHUNK_LEN));

    // The roles, each with its own share.
    let nk = Nk::from_seeds(&[3; 32], &[4; 32]);
    let release = Release { node_id: NODE, sealing_id: sealing.sealing_id, attest_digest: [5; 32] };
    let v = open_v_at_rest(&operator.verifier, subject, sealing.sealing_id, &sealing.v_sealed).unwrap();
    let v_sent = seal_v(&release, nk.public(), &v, &mut OsRng).unwrap();
    let holding = TenantHolding::open(&operator.tenant, subject, sealing.sealing_id, &sealing.u_sealed).unwrap();
    let u_sent = seal_u(&release, nk.public(), &holding.u, &holding.manifest_digest, &mut OsRng).unwrap();

    // The node.
    let (u, manifest_digest) = open_u(&release, &nk, &u_sent).unwrap();
    let v = open_v(&release, &nk, &v_sent).unwrap();
    assert_eq!(manifest_digest, sha256(&[&sealing.manifest]));
    let verified =
        VerifiedManifest::verify(&sealing.manifest, &sealing.signature, &[operator.signing.public()]).unwrap();
    assert!(verified.is_for(NODE, Some(JoinId([2; 32]))));
    assert_eq!(verified.manifest().sealing_id, sealing.sealing_id);
    let key_tag = verified.manifest().key_tag;
    let keys = u.combine(&v).into_keys(subject, sealing.sealing_id, &key_tag).unwrap();

    let mut receiver = PayloadReceiver::new(&keys.payload_key, &verified);
    let (mut reader, mut collected) = (ContainerReader::new(), Collect::default());
    for piece in chunks.concat().chunks(3000) {
        receiver.push(piece, |plaintext| reader.push(plaintext, &mut collected)).unwrap();
    }
    receiver.finish().unwrap();
    reader.finish().unwrap();
    assert_eq!(collected.0, contents);

    let confirm = confirm_mac(&keys.confirm_key, NODE, sealing.sealing_id, &nk.digest(), &[6; 32]);
    let tenant_key = &holding.confirm_key;
    verify_confirm_mac(tenant_key, NODE, sealing.sealing_id, &nk.digest(), &[6; 32], &confirm).unwrap();
}

#[test]
fn every_sealing_is_its_own() {
    let operator = Operator::new();
    let (first, first_chunks) = operator.seal(Subject::Node(NODE), b"same");
    let (second, second_chunks) = operator.seal(Subject::Node(NODE), b"same");
    assert_ne!(first.sealing_id, second.sealing_id);
    assert_ne!(first_chunks, second_chunks);
    assert_ne!(first.manifest, second.manifest);
}

#[test]
fn what_is_uploaded_holds_no_plaintext() {
    let marker = b"a planted marker of some length";
    let plaintext = marker.repeat(CHUNK_LEN / marker.len() + 2);
    let (sealing, chunks) = Operator::new().seal(Subject::Node(NODE), &plaintext);
    let uploaded =
        [chunks.concat(), sealing.manifest.to_vec(), sealing.u_sealed.to_bytes(), sealing.v_sealed.to_bytes()].concat();
    assert!(!uploaded.windows(8).any(|window| window == &marker[..8]));
}

#[test]
fn a_payload_over_the_limit_is_refused_before_anything_is_done() {
    let operator = Operator::new();
    let plaintext = std::vec![0; usize::try_from(MAX_PAYLOAD_LEN).unwrap() + 1];
    let refused = seal(
        &options(Subject::Node(NODE)),
        &plaintext,
        &SealKeys {
            signing: &operator.signing,
            tenant: &operator.tenant.public(),
            verifier: &operator.verifier.public(),
        },
        &mut OsRng,
        |_| -> Result<(), Infallible> { unreachable!("nothing is sealed") },
    );
    assert_eq!(refused, Err(SealError::Payload(PayloadError::TooLong)));
}

#[test]
fn a_sink_that_fails_ends_the_sealing() {
    let operator = Operator::new();
    let refused = seal(
        &options(Subject::Node(NODE)),
        b"x",
        &SealKeys {
            signing: &operator.signing,
            tenant: &operator.tenant.public(),
            verifier: &operator.verifier.public(),
        },
        &mut OsRng,
        |_| Err(ShareError::BadLength),
    );
    assert_eq!(refused, Err(SealError::Sink(ShareError::BadLength)));
}

#[test]
fn shares_of_two_sealings_do_not_fit() {
    let operator = Operator::new();
    let subject = Subject::Node(NODE);
    let (first, _) = operator.seal(subject, b"same");
    let (second, _) = operator.seal(subject, b"same");
    let holding = TenantHolding::open(&operator.tenant, subject, first.sealing_id, &first.u_sealed).unwrap();
    let v = open_v_at_rest(&operator.verifier, subject, second.sealing_id, &second.v_sealed).unwrap();
    let refused = holding.u.combine(&v).into_keys(subject, first.sealing_id, &holding.key_tag);
    assert_eq!(refused.unwrap_err(), WrongShares);
    // Nor does a stored share open in the other sealing's place.
    let moved: SealingId = second.sealing_id;
    let refused = TenantHolding::open(&operator.tenant, subject, moved, &first.u_sealed);
    assert_eq!(refused, Err(ShareError::DoesNotOpen));
}
