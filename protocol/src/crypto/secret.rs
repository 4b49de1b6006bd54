//! Secrets as types: wiped when dropped, named but never shown by `Debug`, compared in constant time, not serialisable.
//!
//! The bytes live on the heap, so that moving a secret moves a pointer and leaves no copy behind. Who needs the bytes
//! asks with [`Secret::expose`], which is easy to search for. K_b, its shares and the keys that follow from it are here;
//! NK and the role keys are in [`nk`](super::nk) and [`role_key`](super::role_key).

use alloc::boxed::Box;
use core::fmt;

use rand_core::CryptoRngCore;
use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::hash::hkdf_into;
use super::labels;
use crate::id::{SealingId, Subject};

/// `N` secret bytes, wiped on drop.
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Copies the bytes from a buffer that the caller wipes. `None` if there are not exactly `N`.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == N).then(|| Self::build(|secret| secret.copy_from_slice(bytes)))
    }

    /// Random bytes.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self::build(|secret| rng.fill_bytes(secret))
    }

    /// The bytes, for the shortest possible time.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// Fills the bytes in the place where they will stay.
    pub(crate) fn build(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut secret = Self(Box::new([0; N]));
        fill(&mut secret.0);
        secret
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<const N: usize> ZeroizeOnDrop for Secret<N> {}

impl<const N: usize> ConstantTimeEq for Secret<N> {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.as_slice().ct_eq(other.0.as_slice())
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl<const N: usize> Eq for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Eq, PartialEq)]
        pub struct $name(pub(crate) Secret<32>);

        impl $name {
            /// Copies the bytes from a buffer that the caller wipes. `None` if there are not exactly 32.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Secret::from_slice(bytes).map(Self)
            }

            /// The bytes, for the shortest possible time.
            pub fn expose(&self) -> &[u8; 32] {
                self.0.expose()
            }
        }

        impl zeroize::ZeroizeOnDrop for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}
pub(crate) use secret;

secret! {
    /// The boot key K_b, 32 bytes: `K_b = U xor V`. Lives where the operator is and, for a moment, on the node.
    Kb
}
secret! {
    /// U, the tenant's share of K_b.
    ShareU
}
secret! {
    /// V, the verifier's share of K_b.
    ShareV
}
secret! {
    /// The AES-256-GCM key of one payload.
    PayloadKey
}
secret! {
    /// The HMAC key under which a node confirms its payload to the tenant.
    ConfirmKey
}
secret! {
    /// What TPM2_MakeCredential wraps, and only the right TPM unwraps.
    CredentialSecret
}

/// Tells whether two shares fit each other before anything is decrypted; reveals nothing of K_b. Not a secret, but
/// compared in constant time.
#[derive(Clone, Copy, Debug, Eq)]
pub struct KeyTag(pub [u8; 32]);

impl PartialEq for KeyTag {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// The two shares do not belong together, or not to this sealing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the shares do not give the key of this sealing")]
pub struct WrongShares;

/// What a node needs once K_b has proven to be the right one.
#[derive(Debug)]
pub struct PayloadKeys {
    /// Opens the payload.
    pub payload_key: PayloadKey,
    /// Confirms its delivery.
    pub confirm_key: ConfirmKey,
}

impl Kb {
    /// A new random boot key.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(Secret::generate(rng))
    }

    /// Splits the key: U is random, `V = K_b xor U`, so that each alone is independent of the key.
    pub fn split(&self, rng: &mut impl CryptoRngCore) -> (ShareU, ShareV) {
        let u = ShareU(Secret::generate(rng));
        let v = ShareV(Secret::build(|v| xor_into(v, self.expose(), u.expose())));
        (u, v)
    }

    /// The payload's key for this subject and sealing.
    pub fn payload_key(&self, subject: Subject, sealing_id: SealingId) -> PayloadKey {
        PayloadKey(self.derive(labels::PAYLOAD_KEY, subject, sealing_id))
    }

    /// The confirm key for this subject and sealing.
    pub fn confirm_key(&self, subject: Subject, sealing_id: SealingId) -> ConfirmKey {
        ConfirmKey(self.derive(labels::CONFIRM_KEY, subject, sealing_id))
    }

    /// The key tag for this subject and sealing.
    pub fn key_tag(&self, subject: Subject, sealing_id: SealingId) -> KeyTag {
        KeyTag(*self.derive(labels::KEY_TAG, subject, sealing_id).expose())
    }

    /// Compares the key tag, and only if it fits derives the node's keys. K_b is wiped in either case.
    ///
    /// # Errors
    /// [`WrongShares`] if K_b is not the key of this sealing.
    pub fn into_keys(self, subject: Subject, sealing_id: SealingId, tag: &KeyTag) -> Result<PayloadKeys, WrongShares> {
        if self.key_tag(subject, sealing_id) != *tag {
            return Err(WrongShares);
        }
        Ok(PayloadKeys {
            payload_key: self.payload_key(subject, sealing_id),
            confirm_key: self.confirm_key(subject, sealing_id),
        })
    }

    fn derive(&self, label: &[u8], subject: Subject, sealing_id: SealingId) -> Secret<32> {
        let info: [&[u8]; 3] = [label, &subject.to_bytes(), sealing_id.as_bytes()];
        Secret::build(|key| hkdf_into(self.expose(), &info, key))
    }
}

impl ShareU {
    /// `K_b = U xor V`. Any two shares give some key: [`Kb::into_keys`] tells whether it is the right one.
    pub fn combine(&self, v: &ShareV) -> Kb {
        Kb(Secret::build(|kb| xor_into(kb, self.expose(), v.expose())))
    }
}

impl CredentialSecret {
    /// A new random secret.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(Secret::generate(rng))
    }
}

fn xor_into(out: &mut [u8; 32], a: &[u8; 32], b: &[u8; 32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a ^ b;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use rand_core::OsRng;

    use super::*;
    use crate::id::{JoinId, NodeId};

    const NODE: Subject = Subject::Node(NodeId([0x11; 32]));
    const SEALING: SealingId = SealingId([0x22; 16]);

    fn kb(byte: u8) -> Kb {
        Kb::from_slice(&[byte; 32]).unwrap()
    }

    #[test]
    fn shares_give_back_the_key_they_were_split_from() {
        let kb = Kb::generate(&mut OsRng);
        let (u, v) = kb.split(&mut OsRng);
        assert_eq!(u.combine(&v), kb);
        assert_ne!(u.expose(), kb.expose());
        assert_ne!(v.expose(), kb.expose());
        let (other_u, _) = kb.split(&mut OsRng);
        assert_ne!(other_u, u);
    }

    #[test]
    fn derived_keys_are_pinned_and_apart() {
        let kb = kb(0x33);
        let keys = [
            *kb.payload_key(NODE, SEALING).expose(),
            *kb.confirm_key(NODE, SEALING).expose(),
            kb.key_tag(NODE, SEALING).0,
        ];
        assert_eq!(keys.map(hex::encode), [PAYLOAD_KEY, CONFIRM_KEY, KEY_TAG]);
    }

    #[test]
    fn derived_keys_depend_on_subject_and_sealing() {
        let kb = kb(0x33);
        let tag = kb.key_tag(NODE, SEALING);
        assert_ne!(tag, kb.key_tag(Subject::Join(JoinId([0x11; 32])), SEALING));
        assert_ne!(tag, kb.key_tag(Subject::Node(NodeId([0x12; 32])), SEALING));
        assert_ne!(tag, kb.key_tag(NODE, SealingId([0x23; 16])));
    }

    #[test]
    fn shares_of_two_sealings_are_refused_before_a_key_exists() {
        let (first, second) = (Kb::generate(&mut OsRng), Kb::generate(&mut OsRng));
        let tag = first.key_tag(NODE, SEALING);
        let (u, v) = first.split(&mut OsRng);
        let (_, other_v) = second.split(&mut OsRng);
        assert_eq!(u.combine(&other_v).into_keys(NODE, SEALING, &tag).unwrap_err(), WrongShares);
        assert!(u.combine(&v).into_keys(NODE, SEALING, &tag).is_ok());
    }

    #[test]
    fn debug_shows_the_name_and_nothing_else() {
        let (u, v) = kb(0x44).split(&mut OsRng);
        assert_eq!(format!("{:?} {u:?} {v:?}", kb(0x44)), "Kb ShareU ShareV");
        assert_eq!(format!("{:?}", Secret::<5>::from_slice(b"hello").unwrap()), "Secret");
    }

    #[test]
    fn a_secret_of_another_length_is_refused() {
        assert!(ShareU::from_slice(&[0; 31]).is_none());
        assert!(ShareU::from_slice(&[0; 33]).is_none());
    }

    const PAYLOAD_KEY: &str = "1fe652c6227b154b37bb0697cf93f0884909b0abd9237083e4d52a5a5e972a05";
    const CONFIRM_KEY: &str = "ab36c40d7061bd59f1a3797ef4e32d39b9ddc29338a68df64f44976362850453";
    const KEY_TAG: &str = "3e7339530f2c07628f4d37d9026055a54f17c8d15ea32eb10436a051fc45ca6f";
}
