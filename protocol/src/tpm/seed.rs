//! A secret that only the holder of a storage key learns: the seed of a credential, the salt of a session.
//!
//! TPM 2.0 Part 1, "Secret Sharing": RSA keys take OAEP, ECC keys one-pass Diffie-Hellman and KDFe. Both uses differ
//! in nothing but a label.

use alloc::vec::Vec;

use p256::{
    NistP256,
    elliptic_curve::{
        AffinePoint, CurveArithmetic, FieldBytesSize, PublicKey, SecretKey, ecdh,
        sec1::{FromEncodedPoint, ModulusSize, ToEncodedPoint},
    },
};
use p384::NistP384;
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::{
    alg::{Digest, EccCurve},
    kdf::kdfe,
    public::{DEFAULT_EXPONENT, KeyPublic, TpmtPublic},
    rsa_oaep,
    wire::Out,
};

/// Why nothing can be kept secret with a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum SeedError {
    #[error("not a storage key: it must be restricted, decrypt, not sign, and have a symmetric cipher")]
    NotAStorageKey,
    #[error("the point of the key is not on its curve")]
    NotOnCurve,
    #[error("unsupported RSA key: only 2048 bits with the default exponent and an odd modulus are accepted")]
    UnsupportedRsaKey,
    #[error("the random source gave nothing usable")]
    BadRandomness,
}

/// What the secret is for; the label is part of its derivation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    Identity,
    SessionSalt,
}

impl Purpose {
    /// With the closing zero that OAEP hashes too.
    const fn label_with_zero(self) -> &'static [u8] {
        match self {
            Self::Identity => b"IDENTITY\0",
            Self::SessionSalt => b"SECRET\0",
        }
    }

    fn label(self) -> &'static [u8] {
        self.label_with_zero().split_last().map_or(&[], |(_, label)| label)
    }
}

/// A secret as long as the key's nameAlg, and the contents of the TPM2B_ENCRYPTED_SECRET that carries it.
pub(crate) struct SharedSeed {
    buf: Zeroizing<[u8; Digest::MAX_LEN]>,
    len: usize,
    pub(crate) encrypted: Vec<u8>,
}

impl SharedSeed {
    pub(crate) fn expose(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }
}

/// The randomness of one sharing, apart so that tests can fix it.
pub(crate) enum Ephemeral {
    /// A private scalar of the key's curve, big-endian.
    Scalar(Zeroizing<Vec<u8>>),
    /// The secret itself and OAEP's seed, both as long as nameAlg's digests.
    Oaep { secret: Zeroizing<Vec<u8>>, seed: Zeroizing<Vec<u8>> },
}

impl Ephemeral {
    fn generate(key: &TpmtPublic, rng: &mut impl CryptoRngCore) -> Self {
        match &key.key {
            KeyPublic::Ecc { curve: EccCurve::P256, .. } => Self::scalar::<NistP256>(rng),
            KeyPublic::Ecc { curve: EccCurve::P384, .. } => Self::scalar::<NistP384>(rng),
            KeyPublic::Rsa { .. } => {
                let mut random = || {
                    let mut bytes = Zeroizing::new(alloc::vec![0; key.name_alg.digest_len()]);
                    rng.fill_bytes(&mut bytes);
                    bytes
                };
                Self::Oaep { secret: random(), seed: random() }
            }
        }
    }

    fn scalar<C: CurveArithmetic>(rng: &mut impl CryptoRngCore) -> Self {
        Self::Scalar(Zeroizing::new(Zeroizing::new(SecretKey::<C>::random(rng).to_bytes()).to_vec()))
    }
}

/// Makes a secret for the holder of `key`.
pub(crate) fn share(key: &TpmtPublic, purpose: Purpose, rng: &mut impl CryptoRngCore) -> Result<SharedSeed, SeedError> {
    share_with(key, purpose, &Ephemeral::generate(key, rng))
}

/// The same from given randomness.
pub(crate) fn share_with(key: &TpmtPublic, purpose: Purpose, ephemeral: &Ephemeral) -> Result<SharedSeed, SeedError> {
    if !key.is_storage_key() {
        return Err(SeedError::NotAStorageKey);
    }
    let hash = key.name_alg;
    let mut shared =
        SharedSeed { buf: Zeroizing::new([0; Digest::MAX_LEN]), len: hash.digest_len(), encrypted: Vec::new() };
    let seed = shared.buf.get_mut(..hash.digest_len()).unwrap_or_default();
    shared.encrypted = match (&key.key, ephemeral) {
        (KeyPublic::Ecc { curve, .. }, Ephemeral::Scalar(scalar)) => {
            let peer = key.sec1_point().map_err(|_| SeedError::NotOnCurve)?;
            let exchange = match curve {
                EccCurve::P256 => exchange::<NistP256>(&peer, scalar),
                EccCurve::P384 => exchange::<NistP384>(&peer, scalar),
            }?;
            kdfe(hash, &exchange.z, purpose.label(), &exchange.x, &exchange.peer_x, seed);
            let mut point = Out::new();
            point.tpm2b(&exchange.x).tpm2b(&exchange.y);
            point.into_vec()
        }
        (
            KeyPublic::Rsa { key_bits: 2048, exponent: 0 | DEFAULT_EXPONENT, modulus, .. },
            Ephemeral::Oaep { secret, seed: oaep_seed },
        ) if secret.len() == seed.len() => {
            seed.copy_from_slice(secret);
            rsa_oaep::encrypt(modulus, hash, purpose.label_with_zero(), oaep_seed, secret)
                .ok_or(SeedError::UnsupportedRsaKey)?
        }
        (KeyPublic::Rsa { .. }, Ephemeral::Oaep { .. }) => return Err(SeedError::UnsupportedRsaKey),
        _ => return Err(SeedError::BadRandomness),
    };
    Ok(shared)
}

/// One Diffie-Hellman: our point, the peer's x, and the result, all as long as the field.
struct Exchange {
    x: Vec<u8>,
    y: Vec<u8>,
    peer_x: Vec<u8>,
    z: Zeroizing<Vec<u8>>,
}

fn exchange<C>(peer: &[u8], scalar: &[u8]) -> Result<Exchange, SeedError>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromEncodedPoint<C> + ToEncodedPoint<C>,
{
    let peer = PublicKey::<C>::from_sec1_bytes(peer).map_err(|_| SeedError::NotOnCurve)?;
    let secret = SecretKey::<C>::from_slice(scalar).map_err(|_| SeedError::BadRandomness)?;
    let z = ecdh::diffie_hellman(secret.to_nonzero_scalar(), peer.as_affine());
    let coordinates = |key: &PublicKey<C>| {
        let point = key.to_encoded_point(false);
        // Never the identity, never compressed: both coordinates are there.
        (point.x().map(|x| x.to_vec()).unwrap_or_default(), point.y().map(|y| y.to_vec()).unwrap_or_default())
    };
    let (x, y) = coordinates(&secret.public_key());
    Ok(Exchange { x, y, peer_x: coordinates(&peer).0, z: Zeroizing::new(z.raw_secret_bytes().to_vec()) })
}
