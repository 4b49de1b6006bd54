//! NK, the agent's ephemeral key pair: made at boot, in memory only, for one bootstrap.
//!
//! When an NK is replaced or wiped is the agent's business; that it is bound into a quote is
//! [`qualifying_data`](super::bind::qualifying_data)'s.

use core::fmt;

use zeroize::Zeroizing;

use super::P256_PUBLIC_LEN;
use super::hash::{hkdf_into, sha256};
use super::hpke_box::KeyPair;
use super::labels;
use super::secret::Secret;

/// The key pair that shares are sealed to: P-256, an HPKE KEM key. Wiped on drop.
pub struct Nk(pub(crate) KeyPair);

impl Nk {
    /// Derives NK from 32 random bytes of the operating system and 32 of the TPM: two clones of one image, whose
    /// system random may be equal, do not make the same NK. The caller wipes its copies.
    ///
    /// HKDF-SHA256 over both, then DeriveKeyPair (RFC 9180 §7.1.3).
    pub fn from_seeds(system: &[u8; 32], tpm: &[u8; 32]) -> Self {
        let mut both = Zeroizing::new([0; 64]);
        for (to, from) in both.iter_mut().zip(system.iter().chain(tpm)) {
            *to = *from;
        }
        Self(KeyPair::derive(&Secret::build(|seed| hkdf_into(&*both, &[labels::NK_SEED], seed))))
    }

    /// The public key, SEC1 uncompressed.
    pub const fn public(&self) -> &[u8; P256_PUBLIC_LEN] {
        self.0.public()
    }

    /// SHA-256 of the public key.
    pub fn digest(&self) -> [u8; 32] {
        nk_digest(self.public())
    }
}

impl fmt::Debug for Nk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nk")
    }
}

/// SHA-256 of an NK's public key, by which both ends name it.
pub fn nk_digest(nk_public: &[u8; P256_PUBLIC_LEN]) -> [u8; 32] {
    sha256(&[nk_public])
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use super::*;

    #[test]
    fn nk_follows_from_both_seeds() {
        let nk = Nk::from_seeds(&[1; 32], &[2; 32]);
        assert_eq!(nk.public(), Nk::from_seeds(&[1; 32], &[2; 32]).public());
        assert_ne!(nk.public(), Nk::from_seeds(&[1; 32], &[3; 32]).public());
        assert_ne!(nk.public(), Nk::from_seeds(&[3; 32], &[2; 32]).public());
        assert_ne!(nk.public(), Nk::from_seeds(&[2; 32], &[1; 32]).public());
        assert_eq!(nk.public()[0], 4);
        assert_eq!(nk.digest(), sha256(&[nk.public()]));
    }

    #[test]
    fn debug_shows_the_name_and_nothing_else() {
        assert_eq!(format!("{:?}", Nk::from_seeds(&[1; 32], &[2; 32])), "Nk");
    }
}
