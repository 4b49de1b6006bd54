//! HPKE base mode, single shot, in place: the one suite that is used here, and the only file that names the library.
//!
//! RFC 9180: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. Base mode names no sender: whoever knows the public
//! key can seal to it.

use alloc::boxed::Box;

use hpke::aead::{AeadTag, AesGcm256};
use hpke::kdf::HkdfSha256;
use hpke::kem::{DhP256HkdfSha256, Kem};
use hpke::{
    Deserializable, OpModeR, OpModeS, Serializable, single_shot_open_in_place_detached,
    single_shot_seal_in_place_detached,
};
use rand_core::CryptoRngCore;

use super::P256_PUBLIC_LEN;
use super::secret::Secret;

type PrivateKey = <DhP256HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <DhP256HkdfSha256 as Kem>::PublicKey;
type EncappedKey = <DhP256HkdfSha256 as Kem>::EncappedKey;

/// Bytes that AES-256-GCM adds to what it seals.
pub(crate) const TAG_LEN: usize = 16;

/// Why nothing was sealed or opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BoxError {
    /// The recipient's public key is not an uncompressed point of P-256.
    BadPublicKey,
    /// Another key, another `info`, or altered bytes.
    DoesNotOpen,
}

/// A recipient's key pair. On the heap, so that moving it leaves no copy; wiped on drop by the curve's library.
pub(crate) struct KeyPair {
    private: Box<PrivateKey>,
    public: [u8; P256_PUBLIC_LEN],
}

impl KeyPair {
    /// RFC 9180 §7.1.3, DeriveKeyPair.
    pub(crate) fn derive(key_material: &Secret<32>) -> Self {
        let (private, public) = DhP256HkdfSha256::derive_keypair(key_material.expose());
        Self { private: Box::new(private), public: encode(&public) }
    }

    /// From the private scalar; `None` if it is zero or not below the group's order.
    pub(crate) fn from_private(scalar: &Secret<32>) -> Option<Self> {
        let private = Box::new(PrivateKey::from_bytes(scalar.expose()).ok()?);
        let public = encode(&DhP256HkdfSha256::sk_to_pk(&private));
        Some(Self { private, public })
    }

    /// The private scalar.
    pub(crate) fn private(&self) -> Secret<32> {
        Secret::build(|scalar| self.private.write_exact(scalar))
    }

    /// The public key, SEC1 uncompressed.
    pub(crate) const fn public(&self) -> &[u8; P256_PUBLIC_LEN] {
        &self.public
    }

    /// Opens `ciphertext` in place; its tag comes apart. The buffer's content is undefined after an error.
    pub(crate) fn open_in_place(
        &self,
        enc: &[u8; P256_PUBLIC_LEN],
        info: &[u8],
        aad: &[u8],
        ciphertext: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), BoxError> {
        let enc = EncappedKey::from_bytes(enc).map_err(|_| BoxError::DoesNotOpen)?;
        let tag = AeadTag::<AesGcm256>::from_bytes(tag).map_err(|_| BoxError::DoesNotOpen)?;
        single_shot_open_in_place_detached::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &enc,
            info,
            ciphertext,
            aad,
            &tag,
        )
        .map_err(|_| BoxError::DoesNotOpen)
    }
}

/// Seals `plaintext` in place, returning the encapsulated key and the tag.
pub(crate) fn seal_in_place(
    public: &[u8; P256_PUBLIC_LEN],
    info: &[u8],
    aad: &[u8],
    plaintext: &mut [u8],
    rng: &mut impl CryptoRngCore,
) -> Result<([u8; P256_PUBLIC_LEN], [u8; TAG_LEN]), BoxError> {
    let public = PublicKey::from_bytes(public).map_err(|_| BoxError::BadPublicKey)?;
    let (enc, tag) = single_shot_seal_in_place_detached::<AesGcm256, HkdfSha256, DhP256HkdfSha256, _>(
        &OpModeS::Base,
        &public,
        info,
        plaintext,
        aad,
        rng,
    )
    .map_err(|_| BoxError::BadPublicKey)?;
    let mut tag_bytes = [0; TAG_LEN];
    tag.write_exact(&mut tag_bytes);
    let mut enc_bytes = [0; P256_PUBLIC_LEN];
    enc.write_exact(&mut enc_bytes);
    Ok((enc_bytes, tag_bytes))
}

/// Whether the bytes are an uncompressed point of P-256 that HPKE can seal to.
pub(crate) fn is_public_key(bytes: &[u8; P256_PUBLIC_LEN]) -> bool {
    PublicKey::from_bytes(bytes).is_ok()
}

fn encode(public: &PublicKey) -> [u8; P256_PUBLIC_LEN] {
    let mut bytes = [0; P256_PUBLIC_LEN];
    public.write_exact(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::path::PathBuf;
    use std::vec::Vec;
    use std::{env, fs, println};

    use rand_core::{CryptoRng, Error, RngCore};
    use serde_json::Value;

    use super::*;

    /// Gives out exactly the bytes it was made with: the sender's key material of a vector.
    struct Fixed(Vec<u8>);

    impl RngCore for Fixed {
        fn next_u32(&mut self) -> u32 {
            unreachable!("key material is asked for as bytes")
        }
        fn next_u64(&mut self) -> u64 {
            unreachable!("key material is asked for as bytes")
        }
        fn fill_bytes(&mut self, dest: &mut [u8]) {
            dest.copy_from_slice(&self.0);
        }
        fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
            self.fill_bytes(dest);
            Ok(())
        }
    }
    impl CryptoRng for Fixed {}

    #[test]
    fn rfc_9180_vectors_of_base_mode_seal_and_open() {
        let root = env::var_os("TREFOIL_VECTORS")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"), PathBuf::from);
        let file = root.join("hpke/dhkem-p256-hkdf-sha256-aes256gcm.json");
        let Ok(text) = fs::read_to_string(&file) else {
            println!("skipped: no RFC 9180 vectors at {}", file.display());
            return;
        };
        let vectors: Vec<Value> = serde_json::from_str(&text).unwrap();
        let mut checked = 0;
        for vector in vectors.iter().filter(|vector| vector["mode"] == 0) {
            let bytes = |field: &Value| hex::decode(field.as_str().unwrap()).unwrap();
            let secret = |field: &Value| Secret::from_slice(&bytes(field)).unwrap();
            let recipient = KeyPair::derive(&secret(&vector["ikmR"]));
            assert_eq!(recipient.private(), secret(&vector["skRm"]));
            assert_eq!(recipient.public().as_slice(), bytes(&vector["pkRm"]));
            assert_eq!(KeyPair::from_private(&secret(&vector["skRm"])).unwrap().public(), recipient.public());

            // Single shot is the first message of a context.
            let first = &vector["encryptions"][0];
            let (info, aad, plaintext) = (bytes(&vector["info"]), bytes(&first["aad"]), bytes(&first["pt"]));
            let mut buffer = plaintext.clone();
            let mut sender = Fixed(bytes(&vector["ikmE"]));
            let (enc, tag) = seal_in_place(recipient.public(), &info, &aad, &mut buffer, &mut sender).unwrap();
            assert_eq!(enc.as_slice(), bytes(&vector["enc"]));
            assert_eq!([buffer.as_slice(), &tag].concat(), bytes(&first["ct"]));

            recipient.open_in_place(&enc, &info, &aad, &mut buffer, &tag).unwrap();
            assert_eq!(buffer, plaintext);
            checked += 1;
        }
        assert!(checked > 0);
    }

    #[test]
    fn a_point_off_the_curve_is_refused() {
        let mut public = *KeyPair::derive(&Secret::from_slice(&[7; 32]).unwrap()).public();
        assert!(is_public_key(&public));
        public[64] ^= 1;
        assert!(!is_public_key(&public));
        let sealed = seal_in_place(&public, b"", b"", &mut [0; 4], &mut Fixed([1; 32].to_vec()));
        assert_eq!(sealed, Err(BoxError::BadPublicKey));
    }
}
