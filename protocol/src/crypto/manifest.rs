//! The manifest: what the tenant signs about a payload; the tenant's signing keys; the pins that a node measures.
//!
//! A manifest is a fixed layout of [`MANIFEST_LEN`] bytes, all numbers big-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | "TFMF" |
//! | 4 | 1 | format, 1 |
//! | 5 | 33 | subject: kind u8 (1 node, 2 join token) ‖ id |
//! | 38 | 16 | payload id |
//! | 54 | 8 | version |
//! | 62 | 16 | sealing id |
//! | 78 | 8 | ciphertext length |
//! | 86 | 32 | SHA-256 of the ciphertext |
//! | 118 | 8 | plaintext length |
//! | 126 | 32 | key tag |
//! | 158 | 1 | autorun, 0 or 1 |
//! | 159 | 8 | not after, seconds since 1970, 0 for none |
//!
//! The signature is ECDSA P-256 with SHA-256 over "trefoil-v1-manifest" and these bytes, as r ‖ s.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU64;

use p256::ecdsa::signature::{DigestSigner, DigestVerifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use rand_core::CryptoRngCore;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::P256_PUBLIC_LEN;
use super::hash::sha256;
use super::labels;
use super::payload::ciphertext_len;
use super::role_key::secret_hex;
use super::secret::{KeyTag, Secret};
use crate::codec::{CodecError, Reader, Writer};
use crate::id::{JoinId, NodeId, SealingId, Subject, hex_array};
use crate::limits::{MAX_PAYLOAD_LEN, MAX_TENANT_KEYS};

/// Bytes of an encoded manifest.
pub const MANIFEST_LEN: usize = 167;
/// Bytes of its signature: r ‖ s.
pub const SIGNATURE_LEN: usize = 64;
/// The second event of the phase PCR: the payload is in place.
pub const DELIVERED_EVENT: &[u8] = labels::DELIVERED;

const MAGIC: &[u8; 4] = b"TFMF";
const FORMAT: u8 = 1;

/// Why a manifest was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ManifestError {
    #[error("no tenant key is pinned, or more than four")]
    BadPins,
    #[error("the manifest is not signed by a pinned tenant key")]
    BadSignature,
    #[error("malformed manifest")]
    Malformed(#[from] CodecError),
    #[error("the manifest is of a format that is not known here")]
    UnknownFormat,
    #[error("the manifest's lengths do not belong together, or are over the limit")]
    BadLengths,
}

/// What a manifest says. As such it is a claim: [`VerifiedManifest`] is the checked one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Manifest {
    /// Whom the payload is for.
    pub subject: Subject,
    /// Which payload it is, across sealings and versions; chosen by the operator.
    pub payload_id: [u8; 16],
    /// Which version of it, ascending.
    pub version: u64,
    /// The sealing that this manifest belongs to.
    pub sealing_id: SealingId,
    /// Bytes of the ciphertext, all chunks with their tags.
    pub ciphertext_len: u64,
    /// SHA-256 of the ciphertext.
    pub ciphertext_digest: [u8; 32],
    /// Bytes of the plaintext.
    pub plaintext_len: u64,
    /// The tag of the sealing's K_b.
    pub key_tag: KeyTag,
    /// Whether the payload asks for its `autorun` to be run; the node's own pins have to allow it too.
    pub autorun: bool,
    /// After this second since 1970 the payload is not to be accepted; none for ever.
    pub not_after: Option<NonZeroU64>,
}

impl Manifest {
    /// The bytes that are signed.
    ///
    /// # Errors
    /// [`ManifestError::BadLengths`] if [`decode`](Self::decode) would refuse the lengths.
    pub fn encode(&self) -> Result<[u8; MANIFEST_LEN], ManifestError> {
        self.check_lengths()?;
        let mut bytes = [0; MANIFEST_LEN];
        let mut writer = Writer::new(&mut bytes);
        writer.put(MAGIC)?;
        writer.u8(FORMAT)?;
        writer.put(&self.subject.to_bytes())?;
        writer.put(&self.payload_id)?;
        writer.u64(self.version)?;
        writer.put(self.sealing_id.as_bytes())?;
        writer.u64(self.ciphertext_len)?;
        writer.put(&self.ciphertext_digest)?;
        writer.u64(self.plaintext_len)?;
        writer.put(&self.key_tag.0)?;
        writer.u8(self.autorun.into())?;
        writer.u64(self.not_after.map_or(0, NonZeroU64::get))?;
        Ok(bytes)
    }

    /// The reverse of [`encode`](Self::encode). Says nothing about who signed it.
    ///
    /// # Errors
    /// [`ManifestError::UnknownFormat`] for another format, [`ManifestError::Malformed`] for another length or a field
    /// out of its values, [`ManifestError::BadLengths`] if the two lengths do not belong together.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(ManifestError::Malformed(CodecError::BadValue));
        }
        if reader.u8()? != FORMAT {
            return Err(ManifestError::UnknownFormat);
        }
        let manifest = Self {
            subject: Subject::from_bytes(&reader.array()?).ok_or(CodecError::BadValue)?,
            payload_id: reader.array()?,
            version: reader.u64()?,
            sealing_id: SealingId(reader.array()?),
            ciphertext_len: reader.u64()?,
            ciphertext_digest: reader.array()?,
            plaintext_len: reader.u64()?,
            key_tag: KeyTag(reader.array()?),
            autorun: match reader.u8()? {
                0 => false,
                1 => true,
                _ => return Err(ManifestError::Malformed(CodecError::BadValue)),
            },
            not_after: NonZeroU64::new(reader.u64()?),
        };
        reader.finish()?;
        manifest.check_lengths()?;
        Ok(manifest)
    }

    fn check_lengths(&self) -> Result<(), ManifestError> {
        let fits = self.plaintext_len <= MAX_PAYLOAD_LEN && self.ciphertext_len == ciphertext_len(self.plaintext_len);
        if fits { Ok(()) } else { Err(ManifestError::BadLengths) }
    }
}

/// A manifest that was signed by a pinned tenant key. Only [`verify`](Self::verify) makes one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedManifest(Manifest);

impl VerifiedManifest {
    /// Signature first, over the bytes as received; then parse.
    ///
    /// # Errors
    /// [`ManifestError::BadPins`] if `pins` is empty or longer than [`MAX_TENANT_KEYS`]: nothing is ever trusted on first use;
    /// [`ManifestError::BadSignature`] if none of them signed; then those of [`Manifest::decode`].
    pub fn verify(
        manifest: &[u8],
        signature: &[u8; SIGNATURE_LEN],
        pins: &[TenantPublicKey],
    ) -> Result<Self, ManifestError> {
        if !(1..=MAX_TENANT_KEYS).contains(&pins.len()) {
            return Err(ManifestError::BadPins);
        }
        let signature = Signature::from_slice(signature).map_err(|_| ManifestError::BadSignature)?;
        let signed_by = |pin: &TenantPublicKey| pin.key.verify_digest(signed_digest(manifest), &signature).is_ok();
        if !pins.iter().any(signed_by) {
            return Err(ManifestError::BadSignature);
        }
        Manifest::decode(manifest).map(Self)
    }

    /// What it says.
    pub const fn manifest(&self) -> &Manifest {
        &self.0
    }

    /// Whether its subject is this node, by its node id or by the join token it was given.
    pub fn is_for(&self, node_id: NodeId, join_id: Option<JoinId>) -> bool {
        match self.0.subject {
            Subject::Node(subject) => subject == node_id,
            Subject::Join(subject) => Some(subject) == join_id,
        }
    }

    /// Whether it is too late for it, `now` in seconds since 1970.
    pub fn is_expired(&self, now: u64) -> bool {
        self.0.not_after.is_some_and(|not_after| now > not_after.get())
    }
}

/// SHA-256 of a manifest's bytes, which reaches the node together with U.
pub fn manifest_digest(manifest: &[u8]) -> [u8; 32] {
    sha256(&[manifest])
}

/// A key that signs payloads. Stays with the operator; wiped on drop.
pub struct TenantSigningKey(Box<SigningKey>);

impl TenantSigningKey {
    /// A new random key.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(Box::new(SigningKey::random(rng)))
    }

    /// From the private scalar; `None` if it is zero or not below the group's order.
    pub fn from_secret(scalar: &Secret<32>) -> Option<Self> {
        SigningKey::from_slice(scalar.expose()).ok().map(|key| Self(Box::new(key)))
    }

    /// From the hex text that [`to_text`](Self::to_text) gives; white space around it is ignored. The caller wipes
    /// `text`.
    pub fn from_text(text: &str) -> Option<Self> {
        let scalar = Zeroizing::new(hex_array::<32>(text.trim())?);
        Self::from_secret(&Secret::from_slice(&*scalar)?)
    }

    /// The private scalar as 64 hex digits, for the operator's key file.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut scalar = self.0.to_bytes();
        let secret = Secret::build(|secret| secret.copy_from_slice(&scalar));
        scalar.as_mut_slice().zeroize();
        secret_hex(&secret)
    }

    /// Its public key.
    pub fn public(&self) -> TenantPublicKey {
        TenantPublicKey::new(*self.0.verifying_key())
    }

    /// Signs a manifest's bytes; the same bytes always get the same signature (RFC 6979).
    pub fn sign(&self, manifest: &[u8]) -> [u8; SIGNATURE_LEN] {
        let signature: Signature = self.0.sign_digest(signed_digest(manifest));
        signature.to_bytes().into()
    }
}

impl fmt::Debug for TenantSigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantSigningKey")
    }
}

/// The public half of a [`TenantSigningKey`]: what a node pins. Ordered by its SEC1 bytes.
#[derive(Clone, Copy)]
pub struct TenantPublicKey {
    sec1: [u8; P256_PUBLIC_LEN],
    key: VerifyingKey,
}

impl TenantPublicKey {
    /// From SEC1 uncompressed bytes; `None` if they are no point of P-256.
    pub fn from_sec1(bytes: &[u8]) -> Option<Self> {
        // A compressed point is the same key in another spelling, which the pins' digest must not have.
        let sec1: [u8; P256_PUBLIC_LEN] = bytes.try_into().ok()?;
        VerifyingKey::from_sec1_bytes(&sec1).ok().map(|key| Self { sec1, key })
    }

    /// From the hex text that [`Display`](fmt::Display) writes; white space around it is ignored.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::from_sec1(&hex_array::<P256_PUBLIC_LEN>(text.trim())?)
    }

    /// SEC1 uncompressed bytes.
    pub const fn as_sec1(&self) -> &[u8; P256_PUBLIC_LEN] {
        &self.sec1
    }

    fn new(key: VerifyingKey) -> Self {
        let point = key.to_encoded_point(false);
        let mut sec1 = [0; P256_PUBLIC_LEN];
        for (to, from) in sec1.iter_mut().zip(point.as_bytes()) {
            *to = *from;
        }
        Self { sec1, key }
    }
}

impl PartialEq for TenantPublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.sec1 == other.sec1
    }
}

impl Eq for TenantPublicKey {}

impl PartialOrd for TenantPublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TenantPublicKey {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.sec1.cmp(&other.sec1)
    }
}

impl fmt::Display for TenantPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sec1.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TenantPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantPublicKey({self})")
    }
}

/// The first event of the phase PCR: "trefoil-v1-pins" ‖ count u8 ‖ tenant public keys SEC1 uncompressed, ascending ‖
/// autorun u8. A key that is named twice counts once, and the order of `keys` does not matter.
///
/// # Errors
/// [`ManifestError::BadPins`] for no key, or more than [`MAX_TENANT_KEYS`].
pub fn pins_event(keys: &[TenantPublicKey], autorun: bool) -> Result<Vec<u8>, ManifestError> {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    keys.dedup();
    let count = match u8::try_from(keys.len()) {
        Ok(count) if (1..=MAX_TENANT_KEYS).contains(&keys.len()) => count,
        _ => return Err(ManifestError::BadPins),
    };
    let mut event = labels::PINS.to_vec();
    event.push(count);
    for key in &keys {
        event.extend_from_slice(&key.sec1);
    }
    event.push(autorun.into());
    Ok(event)
}

fn signed_digest(manifest: &[u8]) -> Sha256 {
    Sha256::new_with_prefix(labels::MANIFEST).chain_update(manifest)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::ToString;

    use proptest::prelude::*;
    use rand_core::OsRng;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            subject: Subject::Node(NodeId([0x11; 32])),
            payload_id: [0x22; 16],
            version: 0x0102_0304_0506_0708,
            sealing_id: SealingId([0x33; 16]),
            ciphertext_len: 70_032,
            ciphertext_digest: [0x44; 32],
            plaintext_len: 70_000,
            key_tag: KeyTag([0x55; 32]),
            autorun: true,
            not_after: NonZeroU64::new(0x0a0b_0c0d),
        }
    }

    fn key(byte: u8) -> TenantSigningKey {
        TenantSigningKey::from_secret(&Secret::from_slice(&[byte; 32]).unwrap()).unwrap()
    }

    #[test]
    fn bytes_are_pinned() {
        let expected = [
            b"TFMF\x01\x01".as_slice(),
            &[0x11; 32],
            &[0x22; 16],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0x33; 16],
            &[0, 0, 0, 0, 0, 1, 0x11, 0x90],
            &[0x44; 32],
            &[0, 0, 0, 0, 0, 1, 0x11, 0x70],
            &[0x55; 32],
            &[1, 0, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0x0d],
        ]
        .concat();
        assert_eq!(manifest().encode().unwrap().as_slice(), expected);
        assert_eq!(Manifest::decode(&expected), Ok(manifest()));
    }

    #[test]
    fn a_field_out_of_its_values_is_refused() {
        let bytes = manifest().encode().unwrap();
        let with = |position: usize, value: u8| {
            let mut bytes = bytes;
            bytes[position] = value;
            Manifest::decode(&bytes)
        };
        let malformed = Err(ManifestError::Malformed(CodecError::BadValue));
        assert_eq!(with(0, b'X'), malformed);
        assert_eq!(with(4, 2), Err(ManifestError::UnknownFormat));
        assert_eq!(with(5, 0), malformed);
        assert_eq!(with(5, 3), malformed);
        assert_eq!(with(158, 2), malformed);
        assert_eq!(with(85, 0x91), Err(ManifestError::BadLengths));
        assert_eq!(with(118, 1), Err(ManifestError::BadLengths));
    }

    #[test]
    fn lengths_over_the_limit_are_refused_both_ways() {
        let plaintext_len = MAX_PAYLOAD_LEN + 1;
        let long = Manifest { plaintext_len, ciphertext_len: ciphertext_len(plaintext_len), ..manifest() };
        assert_eq!(long.encode(), Err(ManifestError::BadLengths));
        let plaintext_len = MAX_PAYLOAD_LEN;
        let longest = Manifest { plaintext_len, ciphertext_len: ciphertext_len(plaintext_len), ..manifest() };
        assert!(longest.encode().is_ok());
    }

    #[test]
    fn every_truncation_and_a_trailing_byte_are_refused() {
        let bytes = manifest().encode().unwrap();
        for len in 0..bytes.len() {
            let refused = Err(ManifestError::Malformed(CodecError::Truncated));
            assert_eq!(Manifest::decode(&bytes[..len]), refused, "{len} bytes");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(Manifest::decode(&longer), Err(ManifestError::Malformed(CodecError::TrailingBytes)));
    }

    #[test]
    fn a_manifest_signed_by_any_pinned_key_verifies() {
        let bytes = manifest().encode().unwrap();
        let signature = key(2).sign(&bytes);
        let verified = VerifiedManifest::verify(&bytes, &signature, &[key(1).public(), key(2).public()]).unwrap();
        assert_eq!(verified.manifest(), &manifest());
    }

    #[test]
    fn a_manifest_of_another_tenant_is_refused() {
        let bytes = manifest().encode().unwrap();
        let signature = key(3).sign(&bytes);
        let refused = VerifiedManifest::verify(&bytes, &signature, &[key(1).public(), key(2).public()]);
        assert_eq!(refused, Err(ManifestError::BadSignature));
    }

    #[test]
    fn without_a_pin_nothing_is_trusted() {
        let bytes = manifest().encode().unwrap();
        let signature = key(1).sign(&bytes);
        assert_eq!(VerifiedManifest::verify(&bytes, &signature, &[]), Err(ManifestError::BadPins));
        let too_many = [key(1).public(); MAX_TENANT_KEYS + 1];
        assert_eq!(VerifiedManifest::verify(&bytes, &signature, &too_many), Err(ManifestError::BadPins));
    }

    #[test]
    fn an_altered_byte_of_manifest_or_signature_is_refused() {
        let pins = [key(1).public()];
        let bytes = manifest().encode().unwrap();
        let signature = key(1).sign(&bytes);
        for position in (0..MANIFEST_LEN).step_by(13) {
            let mut altered = bytes;
            altered[position] ^= 0x80;
            let refused = VerifiedManifest::verify(&altered, &signature, &pins);
            assert_eq!(refused, Err(ManifestError::BadSignature), "byte {position}");
        }
        for position in (0..SIGNATURE_LEN).step_by(7) {
            let mut altered = signature;
            altered[position] ^= 1;
            let refused = VerifiedManifest::verify(&bytes, &altered, &pins);
            assert_eq!(refused, Err(ManifestError::BadSignature), "byte {position}");
        }
        assert_eq!(VerifiedManifest::verify(&bytes, &[0; 64], &pins), Err(ManifestError::BadSignature));
        assert_eq!(VerifiedManifest::verify(&bytes, &[0xff; 64], &pins), Err(ManifestError::BadSignature));
    }

    #[test]
    fn a_signature_over_the_bare_manifest_is_refused() {
        use p256::ecdsa::signature::Signer;
        let bytes = manifest().encode().unwrap();
        let signature: Signature = key(1).0.sign(&bytes);
        let refused = VerifiedManifest::verify(&bytes, &signature.to_bytes().into(), &[key(1).public()]);
        assert_eq!(refused, Err(ManifestError::BadSignature));
    }

    #[test]
    fn a_signed_manifest_that_is_malformed_is_refused() {
        let signature = key(1).sign(b"TFMF");
        let refused = VerifiedManifest::verify(b"TFMF", &signature, &[key(1).public()]);
        assert_eq!(refused, Err(ManifestError::Malformed(CodecError::Truncated)));
    }

    #[test]
    fn subject_and_expiry_are_judged() {
        let verified = VerifiedManifest(manifest());
        assert!(verified.is_for(NodeId([0x11; 32]), None));
        assert!(!verified.is_for(NodeId([0x12; 32]), Some(JoinId([0x11; 32]))));
        assert!(!verified.is_expired(0x0a0b_0c0d));
        assert!(verified.is_expired(0x0a0b_0c0e));

        let joined = Manifest { subject: Subject::Join(JoinId([1; 32])), not_after: None, ..manifest() };
        let joined = VerifiedManifest(joined);
        assert!(joined.is_for(NodeId([9; 32]), Some(JoinId([1; 32]))));
        assert!(!joined.is_for(NodeId([1; 32]), Some(JoinId([2; 32]))));
        assert!(!joined.is_for(NodeId([1; 32]), None));
        assert!(!joined.is_expired(u64::MAX));
    }

    #[test]
    fn pins_event_is_pinned_and_does_not_depend_on_order() {
        let (a, b) = (key(1).public(), key(2).public());
        let (low, high) = if a < b { (a, b) } else { (b, a) };
        let expected = [b"trefoil-v1-pins\x02".as_slice(), low.as_sec1(), high.as_sec1(), &[1]].concat();
        assert_eq!(pins_event(&[a, b], true).unwrap(), expected);
        assert_eq!(pins_event(&[b, a, b], true).unwrap(), expected);
        assert_ne!(pins_event(&[a, b], false).unwrap(), expected);
        assert_eq!(pins_event(&[], true), Err(ManifestError::BadPins));
        let five = [1, 2, 3, 4, 5].map(|byte| key(byte).public());
        assert_eq!(pins_event(&five, true), Err(ManifestError::BadPins));
        assert_eq!(DELIVERED_EVENT, b"trefoil-v1-delivered");
    }

    #[test]
    fn keys_round_trip_as_text_and_others_are_refused() {
        let key = TenantSigningKey::generate(&mut OsRng);
        let public = key.public().to_string();
        assert_eq!(TenantSigningKey::from_text(&format!("{}\n", *key.to_text())).unwrap().public(), key.public());
        assert_eq!(TenantPublicKey::from_text(&public), Some(key.public()));
        assert_eq!(format!("{key:?}"), "TenantSigningKey");
        assert!(TenantSigningKey::from_text(&"f".repeat(64)).is_none());
        assert!(TenantPublicKey::from_text(&"0".repeat(130)).is_none());
        let compressed = key.0.verifying_key().to_encoded_point(true);
        assert!(TenantPublicKey::from_sec1(compressed.as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn decode_is_total_and_what_it_accepts_encodes_to_itself(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            shaped in any::<bool>(),
        ) {
            if shaped && bytes.len() >= MANIFEST_LEN {
                bytes.truncate(MANIFEST_LEN);
                bytes[..5].copy_from_slice(b"TFMF\x01");
                bytes[5] = 1 + bytes[5] % 2;
                bytes[78..86].copy_from_slice(&70_032_u64.to_be_bytes());
                bytes[118..126].copy_from_slice(&70_000_u64.to_be_bytes());
                bytes[158] %= 2;
                prop_assert!(Manifest::decode(&bytes).is_ok());
            }
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(manifest.encode().unwrap().to_vec(), bytes);
            }
        }
    }
}
