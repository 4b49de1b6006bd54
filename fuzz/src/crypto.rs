//! What is sealed, signed and unpacked.

use std::{convert::Infallible, sync::OnceLock};

use protocol::{
    crypto::{
        container::{ContainerError, ContainerReader, File, Sink, is_path, write_container},
        join::JoinToken,
        manifest::{Manifest, TenantPublicKey, TenantSigningKey, VerifiedManifest, pins_event},
        nk::Nk,
        payload::{PayloadOpener, PayloadReceiver},
        role_key::{RolePrivateKey, RolePublicKey, TenantHolding, open_join_key, open_v_at_rest, seal_join_key},
        seal::{SealKeys, SealOptions, Sealing, seal},
        secret::{PayloadKey, Secret, ShareV},
        share::{Release, SealedShare, open_u, open_v, seal_u, seal_v},
    },
    id::{NodeId, Role, Subject},
    limits,
};

use crate::script::{Script, XorShift, long, pieces};

pub(crate) const NODE: NodeId = NodeId([0x11; 32]);
pub(crate) const SUBJECT: Subject = Subject::Node(NODE);
/// What a quote is played by: only its digest counts here.
pub(crate) const ATTESTED: &[u8] = b"what the TPM signed";

/// A sealing and all keys to it.
pub(crate) struct Sealed {
    pub(crate) sealing: Sealing,
    pub(crate) plaintext: Vec<u8>,
    pub(crate) ciphertext: Vec<u8>,
    pub(crate) holding: TenantHolding,
    pub(crate) v: ShareV,
    pub(crate) payload_key: PayloadKey,
    pub(crate) autorun: bool,
}

/// The same in every run: two sealings, one in a single chunk, one in two.
pub(crate) struct Fixture {
    pub(crate) signing: TenantSigningKey,
    pub(crate) nk: Nk,
    pub(crate) small: Sealed,
    pub(crate) large: Sealed,
    tenant: RolePrivateKey,
    verifier: RolePrivateKey,
}

pub(crate) fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let mut rng = XorShift::new(3);
        let scalar = |byte| Secret::from_slice(&[byte; 32]).expect("32 bytes");
        let signing = TenantSigningKey::from_secret(&scalar(1)).expect("in range");
        let tenant = RolePrivateKey::from_secret(&scalar(2)).expect("in range");
        let verifier = RolePrivateKey::from_secret(&scalar(3)).expect("in range");
        let mut sealed = |autorun, files: &[File<'_>]| {
            let keys = SealKeys { signing: &signing, tenant: &tenant.public(), verifier: &verifier.public() };
            let options = SealOptions { subject: SUBJECT, payload_id: [1; 16], version: 1, autorun, not_after: None };
            let plaintext = write_container(files).expect("good paths").to_vec();
            let mut ciphertext = Vec::new();
            let sealing = seal(&options, &plaintext, &keys, &mut rng, |chunk| {
                ciphertext.extend_from_slice(chunk);
                Ok::<_, Infallible>(())
            });
            let sealing = sealing.expect("it fits");
            let id = sealing.sealing_id;
            let holding = TenantHolding::open(&tenant, SUBJECT, id, &sealing.u_sealed).expect("ours");
            let v = open_v_at_rest(&verifier, SUBJECT, id, &sealing.v_sealed).expect("ours");
            let keys = holding.u.combine(&v).into_keys(SUBJECT, id, &holding.key_tag).expect("they fit");
            Sealed { sealing, plaintext, ciphertext, holding, v, payload_key: keys.payload_key, autorun }
        };
        let small = sealed(
            true,
            &[
                File { path: "autorun", executable: true, bytes: b"#!/bin/sh\n" },
                File { path: "etc/node.conf", executable: false, bytes: &[7; 300] },
            ],
        );
        let large = sealed(false, &[File { path: "a", executable: false, bytes: &[5; 66_000] }]);
        Fixture { nk: Nk::from_seeds(&[7; 32], &[8; 32]), small, large, signing, tenant, verifier }
    })
}

impl Fixture {
    pub(crate) fn release(&self, sealed: &Sealed) -> Release {
        let attest_digest = <sha2::Sha256 as sha2::Digest>::digest(ATTESTED).into();
        Release { node_id: NODE, sealing_id: sealed.sealing.sealing_id, attest_digest }
    }

    /// A share of `sealed` for this NK.
    pub(crate) fn share(&self, sealed: &Sealed, role: Role) -> SealedShare {
        let (release, mut rng) = (self.release(sealed), XorShift::new(4));
        match role {
            Role::Verifier => seal_v(&release, self.nk.public(), &sealed.v, &mut rng),
            _ => {
                let TenantHolding { u, manifest_digest, .. } = &sealed.holding;
                seal_u(&release, self.nk.public(), u, manifest_digest, &mut rng)
            }
        }
        .expect("NK is a point")
    }
}

/// A manifest that decodes encodes to the same bytes. One that verifies is one that was signed: a sealing's.
///
/// Input: the manifest behind its length, then the signature.
pub fn manifest(data: &[u8]) {
    let mut script = Script::new(data);
    let bytes = script.long();
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode().expect("it was decoded"), bytes);
    }
    if let Ok(signature) = script.rest().try_into() {
        let fixture = fixture();
        let pins = [fixture.signing.public()];
        if VerifiedManifest::verify(bytes, signature, &pins).is_ok() {
            let signed = [&fixture.small, &fixture.large].map(|sealed| sealed.sealing.manifest);
            assert!(signed.iter().any(|signed| signed == bytes), "nobody signed this");
        }
    }
    if let Ok(text) = str::from_utf8(data)
        && let Some(key) = TenantPublicKey::from_text(text)
    {
        assert_eq!(TenantPublicKey::from_text(&key.to_string()), Some(key));
        pins_event(&[key], true).expect("one key");
    }
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let fixture = fixture();
    let seed = |sealed: &Sealed| [&long(&sealed.sealing.manifest)[..], &sealed.sealing.signature].concat();
    vec![seed(&fixture.small), seed(&fixture.large), fixture.signing.public().to_string().into_bytes()]
}

/// What comes out of a container does not depend on how its bytes were cut; files have checked paths and as many bytes
/// as was said; and a container that is complete is the one its files are written to.
///
/// Input: how to cut (one byte), the container.
pub fn container(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let (files, result) = unpack(bytes, 0);
    assert_eq!((&files, &result), (&unpack(bytes, *how).0, &unpack(bytes, *how).1), "cut by {how}");
    if result == "Ok(())" {
        let files: Vec<_> = files
            .iter()
            .map(|Unpacked { path, executable, bytes, .. }| File { path, executable: *executable, bytes })
            .collect();
        match write_container(&files) {
            Ok(again) => assert!(*again == bytes, "another container of the same files"),
            // The one thing that is left to whoever makes the files.
            Err(error) => assert_eq!(error, ContainerError::FileAsDirectory),
        }
    }
}

#[derive(Debug, Default, Eq, PartialEq)]
struct Unpacked {
    path: String,
    executable: bool,
    len: u64,
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Files(Vec<Unpacked>);

impl Sink for Files {
    type Error = Infallible;

    fn file(&mut self, path: &str, executable: bool, len: u64) -> Result<(), Infallible> {
        assert!(is_path(path), "{path:?}");
        assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".." || part.is_empty()), "{path:?}");
        assert!(self.0.last().is_none_or(|last| last.ended && last.path.as_str() < path), "out of order");
        self.0.push(Unpacked { path: path.to_owned(), executable, len, ..Unpacked::default() });
        assert!(self.0.len() <= limits::MAX_PAYLOAD_FILES);
        assert!(self.0.iter().map(|file| file.len).sum::<u64>() <= limits::MAX_PAYLOAD_LEN);
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        let file = self.0.last_mut().expect("data belongs to a file");
        assert!(!file.ended && !bytes.is_empty());
        file.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), Infallible> {
        let file = self.0.last_mut().expect("an end belongs to a file");
        assert_eq!(file.bytes.len() as u64, file.len);
        assert!(!std::mem::replace(&mut file.ended, true));
        Ok(())
    }
}

fn unpack(bytes: &[u8], how: u8) -> (Vec<Unpacked>, String) {
    let (mut reader, mut files) = (ContainerReader::new(), Files::default());
    for piece in pieces(bytes, how) {
        if let Err(error) = reader.push(piece, &mut files) {
            assert!(reader.push(&[0], &mut files).is_err(), "an error does not stay");
            return (files.0, format!("{error:?}"));
        }
    }
    let result = format!("{:?}", reader.finish());
    (files.0, result)
}

pub(crate) fn container_seeds() -> Vec<Vec<u8>> {
    let seed = |how: u8, files: &[File<'_>]| [&[how][..], &write_container(files).expect("good paths")].concat();
    let file = |path, bytes| File { path, executable: false, bytes };
    let mut climbing = seed(2, &[file("aa/aa", b"x")]);
    let at = climbing.windows(5).position(|window| window == b"aa/aa").expect("the path is there");
    climbing[at..at + 5].copy_from_slice(b"../aa");
    vec![
        seed(0, &[]),
        seed(1, &[file("a", b""), file("b/c", b"hello"), File { path: "run", executable: true, bytes: &[1; 100] }]),
        [&[3][..], &fixture().small.plaintext].concat(),
        climbing,
    ]
}

/// A payload that is received to its end is the one that was sealed, however its ciphertext is cut; and whatever chunk
/// opens is the next chunk of it.
///
/// Input: which sealing and what way, how to cut (one byte each), the ciphertext.
pub fn payload_opener(data: &[u8]) {
    let _ = open(data);
}

/// Whether it was opened to its end.
fn open(data: &[u8]) -> bool {
    let mut script = Script::new(data);
    let (flags, how) = (script.byte(), script.byte());
    let fixture = fixture();
    let sealed = if flags & 1 == 0 { &fixture.small } else { &fixture.large };
    let bytes = script.rest();
    if flags & 2 != 0 {
        return open_chunks(sealed, bytes, how);
    }
    let Sealing { manifest, signature, .. } = &sealed.sealing;
    let manifest = VerifiedManifest::verify(manifest, signature, &[fixture.signing.public()]).expect("it is ours");
    let mut receiver = PayloadReceiver::new(&sealed.payload_key, &manifest);
    let mut plaintext = Vec::new();
    for piece in pieces(bytes, how) {
        let result = receiver.push(piece, |chunk| {
            plaintext.extend_from_slice(chunk);
            Ok::<_, Infallible>(())
        });
        if result.is_err() {
            break;
        }
    }
    assert!(sealed.plaintext.starts_with(&plaintext), "what was never sealed came out");
    let finished = receiver.finish().is_ok();
    if finished {
        assert!(plaintext == sealed.plaintext && bytes == sealed.ciphertext);
    }
    finished
}

fn open_chunks(sealed: &Sealed, bytes: &[u8], how: u8) -> bool {
    let mut opener = PayloadOpener::new(&sealed.payload_key, SUBJECT, sealed.sealing.sealing_id);
    let mut plaintext = Vec::new();
    for piece in pieces(bytes, how) {
        let mut chunk = piece.to_vec();
        if opener.open_chunk(&mut chunk, how & 1 == 0).is_err() {
            assert!(opener.open_chunk(&mut piece.to_vec(), true).is_err(), "an error does not stay");
            break;
        }
        plaintext.extend_from_slice(&chunk);
    }
    assert!(sealed.plaintext.starts_with(&plaintext), "what was never sealed came out");
    opener.is_finished()
}

pub(crate) fn payload_opener_seeds() -> Vec<Vec<u8>> {
    let Fixture { small, large, .. } = fixture();
    vec![
        [&[0, 0][..], &small.ciphertext].concat(),
        [&[0, 5][..], &small.ciphertext].concat(),
        [&[1, 9][..], &large.ciphertext].concat(),
        [&[2, 0][..], &small.ciphertext].concat(),
    ]
}

/// A sealed share encodes to the bytes it was read from, and opens only if it is the one that was sealed.
///
/// Input: what it is opened as (one byte), its bytes.
pub fn sealed_share(data: &[u8]) {
    let _ = open_share(data);
}

/// Whether it opens.
fn open_share(data: &[u8]) -> bool {
    let Some((kind, bytes)) = data.split_first() else { return false };
    let _ = RolePublicKey::from_sec1(bytes);
    if let Ok(text) = str::from_utf8(bytes) {
        let _ = (RolePublicKey::from_text(text), RolePrivateKey::from_text(text), JoinToken::from_text(text));
    }
    let Ok(sealed) = SealedShare::from_bytes(bytes) else { return false };
    assert_eq!(sealed.to_bytes(), bytes);
    let fixture = fixture();
    let small = &fixture.small;
    let (release, id) = (fixture.release(small), small.sealing.sealing_id);
    let kind = kind % 5;
    let opens = match kind {
        0 => open_v(&release, &fixture.nk, &sealed).is_ok(),
        1 => open_u(&release, &fixture.nk, &sealed).is_ok(),
        2 => open_v_at_rest(&fixture.verifier, SUBJECT, id, &sealed).is_ok(),
        3 => TenantHolding::open(&fixture.tenant, SUBJECT, id, &sealed).is_ok(),
        _ => open_join_key(&fixture.tenant, Role::Tenant, join_token().id(), &sealed).is_ok(),
    };
    if opens {
        assert!(shares()[usize::from(kind)] == sealed, "nobody sealed this");
    }
    opens
}

fn join_token() -> JoinToken {
    JoinToken::from_slice(&[6; 32]).expect("32 bytes")
}

/// In the order in which [`sealed_share`] opens them.
fn shares() -> &'static [SealedShare; 5] {
    static SHARES: OnceLock<[SealedShare; 5]> = OnceLock::new();
    SHARES.get_or_init(|| {
        let fixture = fixture();
        let Sealed { sealing, .. } = &fixture.small;
        let token = join_token();
        let (public, key) = (fixture.tenant.public(), token.key(Role::Tenant));
        let join = seal_join_key(&public, Role::Tenant, token.id(), &key, &mut XorShift::new(5)).expect("a point");
        [
            fixture.share(&fixture.small, Role::Verifier),
            fixture.share(&fixture.small, Role::Tenant),
            sealing.v_sealed.clone(),
            sealing.u_sealed.clone(),
            join,
        ]
    })
}

pub(crate) fn sealed_share_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        (0..).zip(shares()).map(|(kind, share)| [&[kind][..], &share.to_bytes()].concat()).collect();
    let fixture = fixture();
    seeds.push([&[0][..], fixture.tenant.public().to_string().as_bytes()].concat());
    seeds.push([&[0][..], join_token().to_text().as_bytes()].concat());
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_open_verify_and_unpack() {
        assert_eq!(payload_opener_seeds().iter().map(|seed| open(seed)).collect::<Vec<_>>(), [true; 4]);
        assert_eq!(sealed_share_seeds().iter().filter(|seed| open_share(seed)).count(), 5);
        let unpacked: Vec<_> = container_seeds().iter().map(|seed| unpack(&seed[1..], 0).1).collect();
        assert_eq!(unpacked[..3], ["Ok(())"; 3]);
        assert!(unpacked[3].contains("BadPath"), "{unpacked:?}");
        for seed in &manifest_seeds()[..2] {
            let mut script = Script::new(seed);
            let (bytes, signature) = (script.long(), script.rest().try_into().unwrap());
            assert!(VerifiedManifest::verify(bytes, signature, &[fixture().signing.public()]).is_ok());
        }
    }
}
