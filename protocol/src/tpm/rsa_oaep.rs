//! RSA-2048 encryption with OAEP (RFC 8017 §7.1.1), with a public key only: what a TPM's RSA endorsement key takes.
//!
//! There is no private operation here, so nothing to protect from timing but the message, and the arithmetic below is
//! constant in it.

use alloc::vec::Vec;

use p256::elliptic_curve::bigint::{
    Encoding, U2048,
    modular::runtime_mod::{DynResidue, DynResidueParams},
};
use zeroize::{Zeroize, Zeroizing};

use super::alg::HashAlg;

/// Length of modulus and ciphertext in bytes.
pub(crate) const MODULUS_LEN: usize = 256;
/// 65537 has 17 bits.
const EXPONENT: u32 = 65537;
const EXPONENT_BITS: usize = 17;

/// Encrypts `message` to the key (`modulus`, 65537). `label` is hashed as it is: a TPM's labels end with a zero byte.
/// `seed` is random and as long as the hash.
///
/// `None` if the modulus has not exactly 2048 bits or is even, if the seed has the wrong length, or if the message is
/// longer than OAEP allows.
pub(crate) fn encrypt(modulus: &[u8], hash: HashAlg, label: &[u8], seed: &[u8], message: &[u8]) -> Option<Vec<u8>> {
    let modulus: &[u8; MODULUS_LEN] = modulus.try_into().ok()?;
    let (first, last) = (modulus.first()?, modulus.last()?);
    if first & 0x80 == 0 || last & 1 == 0 || seed.len() != hash.digest_len() {
        return None;
    }
    // EM = 00 ‖ masked seed ‖ masked DB, DB = H(label) ‖ 00… ‖ 01 ‖ message.
    let mut encoded = Zeroizing::new([0u8; MODULUS_LEN]);
    {
        let (_, rest) = encoded.split_at_mut(1);
        let (masked_seed, db) = rest.split_at_mut_checked(hash.digest_len())?;
        masked_seed.copy_from_slice(seed);
        let label_hash = hash.digest(&[label]);
        let message_at = db.len().checked_sub(message.len())?;
        let one_at = message_at.checked_sub(1).filter(|at| *at >= label_hash.len())?;
        db.get_mut(..label_hash.len())?.copy_from_slice(&label_hash);
        *db.get_mut(one_at)? = 1;
        db.get_mut(message_at..)?.copy_from_slice(message);
        mask(hash, seed, db);
        mask(hash, db, masked_seed);
    }
    // EM begins with a zero byte and the modulus does not: EM is smaller.
    let mut number = U2048::from_be_slice(&*encoded);
    let mut base = DynResidue::new(&number, DynResidueParams::new(&U2048::from_be_slice(modulus)));
    let power = base.pow_bounded_exp(&U2048::from_u32(EXPONENT), EXPONENT_BITS).retrieve();
    number.zeroize();
    base.zeroize();
    Some(power.to_be_bytes().to_vec())
}

/// XORs MGF1(`seed`) over `data` (RFC 8017 §B.2.1).
pub(crate) fn mask(hash: HashAlg, seed: &[u8], data: &mut [u8]) {
    for (counter, chunk) in (0u32..).zip(data.chunks_mut(hash.digest_len())) {
        let mut block = hash.digest(&[seed, &counter.to_be_bytes()]);
        chunk.iter_mut().zip(block.iter()).for_each(|(byte, mask)| *byte ^= mask);
        block.wipe();
    }
}
