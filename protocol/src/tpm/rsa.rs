//! The RSA public operation, for what a general library's verifier cannot judge: PSS with any salt, and signatures over
//! a digest that was made elsewhere.
//!
//! Everything here is public, so nothing is protected from timing. Encodings (PKCS #1 v1.5, PSS) are their callers'.

use alloc::vec::Vec;

use p256::elliptic_curve::bigint::{
    Encoding, U2048, U3072, U4096, Uint,
    modular::runtime_mod::{DynResidue, DynResidueParams},
};

/// RSAVP1 (RFC 8017 §5.2.2): `signature` to the power of `exponent` modulo `modulus`, as long as the modulus.
///
/// `None` unless the modulus is odd, has 2048, 3072 or 4096 bits, all of them used, and no leading zero byte; the
/// exponent is odd and at least 3; and the signature is as long as the modulus and smaller.
pub fn public_operation(modulus: &[u8], exponent: u32, signature: &[u8]) -> Option<Vec<u8>> {
    let (first, last) = (modulus.first()?, modulus.last()?);
    // Numbers of one length, big-endian, compare as their bytes do.
    if first & 0x80 == 0 || last & 1 == 0 || signature.len() != modulus.len() || signature >= modulus {
        return None;
    }
    if exponent < 3 || exponent & 1 == 0 {
        return None;
    }
    match modulus.len() {
        256 => Some(power(&U2048::from_be_slice(modulus), exponent, &U2048::from_be_slice(signature))),
        384 => Some(power(&U3072::from_be_slice(modulus), exponent, &U3072::from_be_slice(signature))),
        512 => Some(power(&U4096::from_be_slice(modulus), exponent, &U4096::from_be_slice(signature))),
        _ => None,
    }
}

fn power<const LIMBS: usize>(modulus: &Uint<LIMBS>, exponent: u32, base: &Uint<LIMBS>) -> Vec<u8>
where
    Uint<LIMBS>: Encoding,
{
    // At most 32 bits: the count of the used ones cannot be zero, since the exponent is odd.
    let bits = usize::try_from(32_u32.saturating_sub(exponent.leading_zeros())).unwrap_or(32);
    let base = DynResidue::new(base, DynResidueParams::new(modulus));
    base.pow_bounded_exp(&Uint::<LIMBS>::from_u32(exponent), bits).retrieve().to_be_bytes().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(len: usize, low: u8) -> Vec<u8> {
        let mut bytes = alloc::vec![0; len];
        bytes[len - 1] = low;
        bytes
    }

    #[test]
    fn small_numbers_are_raised_to_the_exponent() {
        for len in [256, 384, 512] {
            let mut modulus = alloc::vec![0xff; len];
            modulus[len - 1] = 0xfd;
            assert_eq!(public_operation(&modulus, 3, &number(len, 5)), Some(number(len, 125)));
            assert_eq!(public_operation(&modulus, 65537, &number(len, 1)), Some(number(len, 1)));
            // -1 to an odd power is itself.
            let mut minus_one = modulus.clone();
            minus_one[len - 1] -= 1;
            assert_eq!(public_operation(&modulus, u32::MAX, &minus_one), Some(minus_one));
        }
    }

    #[test]
    fn keys_and_signatures_of_another_form_are_refused() {
        let mut modulus = alloc::vec![0xff; 256];
        assert_eq!(public_operation(&modulus, 3, &modulus), None);
        assert_eq!(public_operation(&modulus, 3, &number(255, 5)), None);
        assert_eq!(public_operation(&modulus, 1, &number(256, 5)), None);
        assert_eq!(public_operation(&modulus, 4, &number(256, 5)), None);
        assert_eq!(public_operation(&[], 3, &[]), None);
        modulus[255] = 0xfe;
        assert_eq!(public_operation(&modulus, 3, &number(256, 5)), None);
        modulus[255] = 0xff;
        modulus[0] = 0x7f;
        assert_eq!(public_operation(&modulus, 3, &number(256, 5)), None);
        assert_eq!(public_operation(&[0xff; 128], 3, &number(128, 5)), None);
    }
}
