//! Shares on their way to a node: U and V, HPKE-sealed to an NK.
//!
//! Whether a share may leave at all is the roles' decision. What a share is sealed with says which release it is for:
//! role, node, sealing and the quote that it rests on. Base mode names no sender, so a share that opens is still a
//! claim, until the key tag fits.

use alloc::vec::Vec;
use core::fmt;

use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::P256_PUBLIC_LEN;
use super::hpke_box::{BoxError, KeyPair, TAG_LEN, seal_in_place};
use super::labels;
use super::nk::Nk;
use super::secret::{ShareU, ShareV};
use crate::id::{NodeId, Role, SealingId};

/// The longest ciphertext: what the tenant role holds at rest (four fields of 32 bytes) and its tag.
pub const MAX_CIPHERTEXT_LEN: usize = 144;

/// Something short that was HPKE-sealed: a share, or what a role holds at rest.
#[derive(Clone, Eq, PartialEq)]
pub struct SealedShare {
    /// The encapsulated key, SEC1 uncompressed.
    pub enc: [u8; P256_PUBLIC_LEN],
    /// The ciphertext and its tag.
    pub ciphertext: heapless::Vec<u8, MAX_CIPHERTEXT_LEN>,
}

/// What a share is released for; part of the `info` it is sealed under.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Release {
    /// The node that gets the share.
    pub node_id: NodeId,
    /// The sealing it belongs to.
    pub sealing_id: SealingId,
    /// SHA-256 of the TPMS_ATTEST bytes as they were sent: the quote that the release rests on.
    pub attest_digest: [u8; 32],
}

/// Why a share was not sealed, or not opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ShareError {
    #[error("the recipient's public key is not an uncompressed point of P-256")]
    BadPublicKey,
    #[error("a sealed share of this kind has another length")]
    BadLength,
    #[error("the share was sealed to another key, for something else, or was altered")]
    DoesNotOpen,
}

impl From<BoxError> for ShareError {
    fn from(error: BoxError) -> Self {
        match error {
            BoxError::BadPublicKey => Self::BadPublicKey,
            BoxError::DoesNotOpen => Self::DoesNotOpen,
        }
    }
}

impl SealedShare {
    /// From the two fields as a message carries them.
    ///
    /// # Errors
    /// [`ShareError::BadLength`] if the ciphertext has no room for a tag, or more than [`MAX_CIPHERTEXT_LEN`] bytes.
    pub fn new(enc: [u8; P256_PUBLIC_LEN], ciphertext: &[u8]) -> Result<Self, ShareError> {
        if ciphertext.len() < TAG_LEN {
            return Err(ShareError::BadLength);
        }
        let ciphertext = heapless::Vec::from_slice(ciphertext).map_err(|_| ShareError::BadLength)?;
        Ok(Self { enc, ciphertext })
    }

    /// The encapsulated key, then the ciphertext.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.enc.as_slice(), &self.ciphertext].concat()
    }

    /// The reverse of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// [`ShareError::BadLength`] if the key is cut short, and as [`new`](Self::new) has it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ShareError> {
        let (enc, ciphertext) = bytes.split_first_chunk().ok_or(ShareError::BadLength)?;
        Self::new(*enc, ciphertext)
    }

    /// Seals the concatenation of `parts`.
    pub(crate) fn seal(
        public: &[u8; P256_PUBLIC_LEN],
        info: &[u8],
        parts: &[&[u8]],
        rng: &mut impl CryptoRngCore,
    ) -> Result<Self, ShareError> {
        // Sealed in place and reserved at once: no byte of plaintext is left behind by growing or moving.
        let mut buffer = Zeroizing::new(Vec::with_capacity(MAX_CIPHERTEXT_LEN));
        for part in parts {
            buffer.extend_from_slice(part);
        }
        let (enc, tag) = seal_in_place(public, info, &[], &mut buffer, rng)?;
        buffer.extend_from_slice(&tag);
        let ciphertext = heapless::Vec::from_slice(&buffer).map_err(|_| ShareError::BadLength)?;
        Ok(Self { enc, ciphertext })
    }

    /// Opens what [`seal`](Self::seal) made of `PLAINTEXT_LEN` bytes.
    pub(crate) fn open<const PLAINTEXT_LEN: usize>(
        &self,
        key_pair: &KeyPair,
        info: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ShareError> {
        let (ciphertext, tag) = self.ciphertext.split_last_chunk::<TAG_LEN>().ok_or(ShareError::BadLength)?;
        if ciphertext.len() != PLAINTEXT_LEN {
            return Err(ShareError::BadLength);
        }
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        key_pair.open_in_place(&self.enc, info, &[], &mut buffer, tag)?;
        Ok(buffer)
    }
}

impl fmt::Debug for SealedShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedShare({} bytes)", self.ciphertext.len())
    }
}

/// Seals V to an NK: the verifier's step.
///
/// # Errors
/// [`ShareError::BadPublicKey`] if `nk_public` is no point of P-256.
pub fn seal_v(
    release: &Release,
    nk_public: &[u8; P256_PUBLIC_LEN],
    v: &ShareV,
    rng: &mut impl CryptoRngCore,
) -> Result<SealedShare, ShareError> {
    SealedShare::seal(nk_public, &release.info(Role::Verifier), &[v.expose()], rng)
}

/// Seals U and the SHA-256 of the manifest to an NK: the tenant's step.
///
/// # Errors
/// [`ShareError::BadPublicKey`] if `nk_public` is no point of P-256.
pub fn seal_u(
    release: &Release,
    nk_public: &[u8; P256_PUBLIC_LEN],
    u: &ShareU,
    manifest_digest: &[u8; 32],
    rng: &mut impl CryptoRngCore,
) -> Result<SealedShare, ShareError> {
    SealedShare::seal(nk_public, &release.info(Role::Tenant), &[u.expose(), manifest_digest], rng)
}

/// Opens the verifier's share.
///
/// # Errors
/// [`ShareError::BadLength`] and [`ShareError::DoesNotOpen`]; nothing is consumed by either.
pub fn open_v(release: &Release, nk: &Nk, sealed: &SealedShare) -> Result<ShareV, ShareError> {
    let plaintext = sealed.open::<32>(&nk.0, &release.info(Role::Verifier))?;
    ShareV::from_slice(&plaintext).ok_or(ShareError::BadLength)
}

/// Opens the tenant's share, which brings the SHA-256 of the manifest with it.
///
/// # Errors
/// [`ShareError::BadLength`] and [`ShareError::DoesNotOpen`]; nothing is consumed by either.
pub fn open_u(release: &Release, nk: &Nk, sealed: &SealedShare) -> Result<(ShareU, [u8; 32]), ShareError> {
    let plaintext = sealed.open::<64>(&nk.0, &release.info(Role::Tenant))?;
    let (u, manifest_digest) = plaintext.split_last_chunk().ok_or(ShareError::BadLength)?;
    Ok((ShareU::from_slice(u).ok_or(ShareError::BadLength)?, *manifest_digest))
}

impl Release {
    /// Label ‖ role u8 ‖ node id ‖ sealing id ‖ SHA-256 of the TPMS_ATTEST bytes.
    fn info(&self, role: Role) -> Vec<u8> {
        let Self { node_id, sealing_id, attest_digest } = self;
        [labels::SHARE, &[role as u8], node_id.as_bytes(), sealing_id.as_bytes(), attest_digest].concat()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use rand_core::OsRng;

    use super::*;

    const RELEASE: Release =
        Release { node_id: NodeId([1; 32]), sealing_id: SealingId([2; 16]), attest_digest: [3; 32] };

    fn nk() -> Nk {
        Nk::from_seeds(&[4; 32], &[5; 32])
    }

    fn sealed_v() -> SealedShare {
        seal_v(&RELEASE, nk().public(), &ShareV::from_slice(&[6; 32]).unwrap(), &mut OsRng).unwrap()
    }

    #[test]
    fn info_is_pinned() {
        let expected = [b"trefoil-v1-share\x02".as_slice(), &[1; 32], &[2; 16], &[3; 32]].concat();
        assert_eq!(RELEASE.info(Role::Verifier), expected);
    }

    #[test]
    fn shares_open_under_the_nk_they_were_sealed_to() {
        assert_eq!(open_v(&RELEASE, &nk(), &sealed_v()).unwrap().expose(), &[6; 32]);
        let u = ShareU::from_slice(&[7; 32]).unwrap();
        let sealed = seal_u(&RELEASE, nk().public(), &u, &[8; 32], &mut OsRng).unwrap();
        assert_eq!(sealed.ciphertext.len(), 80);
        let (opened, manifest_digest) = open_u(&RELEASE, &nk(), &sealed).unwrap();
        assert_eq!((opened, manifest_digest), (u, [8; 32]));
    }

    #[test]
    fn a_share_for_another_node_sealing_or_quote_does_not_open() {
        for release in [
            Release { node_id: NodeId([9; 32]), ..RELEASE },
            Release { sealing_id: SealingId([9; 16]), ..RELEASE },
            Release { attest_digest: [9; 32], ..RELEASE },
        ] {
            assert_eq!(open_v(&release, &nk(), &sealed_v()), Err(ShareError::DoesNotOpen));
        }
    }

    #[test]
    fn a_share_for_another_nk_does_not_open() {
        let other = Nk::from_seeds(&[4; 32], &[9; 32]);
        assert_eq!(open_v(&RELEASE, &other, &sealed_v()), Err(ShareError::DoesNotOpen));
    }

    #[test]
    fn one_roles_share_is_not_taken_for_the_others() {
        assert_eq!(open_u(&RELEASE, &nk(), &sealed_v()), Err(ShareError::BadLength));
        // Of the right length, but sealed as the other role's.
        let as_tenant = SealedShare::seal(nk().public(), &RELEASE.info(Role::Tenant), &[&[6; 32]], &mut OsRng).unwrap();
        assert_eq!(open_v(&RELEASE, &nk(), &as_tenant), Err(ShareError::DoesNotOpen));
    }

    #[test]
    fn an_altered_share_does_not_open() {
        let sealed = sealed_v();
        for position in 0..sealed.to_bytes().len() {
            let mut bytes = sealed.to_bytes();
            bytes[position] ^= 1;
            let altered = SealedShare::from_bytes(&bytes).unwrap();
            assert_eq!(open_v(&RELEASE, &nk(), &altered), Err(ShareError::DoesNotOpen), "byte {position}");
        }
    }

    #[test]
    fn sealing_to_a_point_off_the_curve_is_refused() {
        let mut public = *nk().public();
        public[33] ^= 1;
        let v = ShareV::from_slice(&[6; 32]).unwrap();
        assert_eq!(seal_v(&RELEASE, &public, &v, &mut OsRng), Err(ShareError::BadPublicKey));
        assert_eq!(seal_v(&RELEASE, &[0; 65], &v, &mut OsRng), Err(ShareError::BadPublicKey));
    }

    #[test]
    fn bytes_round_trip_and_other_lengths_are_refused() {
        let sealed = sealed_v();
        let bytes = sealed.to_bytes();
        assert_eq!(bytes.len(), 65 + 32 + 16);
        assert_eq!(SealedShare::from_bytes(&bytes), Ok(sealed));
        assert_eq!(SealedShare::from_bytes(&bytes[..80]), Err(ShareError::BadLength));
        assert_eq!(SealedShare::from_bytes(&[4; 65 + MAX_CIPHERTEXT_LEN + 1]), Err(ShareError::BadLength));
        for len in 81..bytes.len() {
            let cut = SealedShare::from_bytes(&bytes[..len]).unwrap();
            assert_eq!(open_v(&RELEASE, &nk(), &cut), Err(ShareError::BadLength));
        }
    }

    #[test]
    fn debug_shows_no_byte_of_a_share() {
        assert_eq!(format!("{:?}", sealed_v()), "SealedShare(48 bytes)");
    }
}
