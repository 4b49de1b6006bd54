//! The TPM's two key derivation functions, and AES in CFB mode, which is all that their keys are used for besides HMAC.

use aes::{Aes128, Aes256};
use cfb_mode::cipher::{AsyncStreamCipher, KeyIvInit};
use zeroize::Zeroizing;

use super::alg::HashAlg;

/// KDFa: NIST SP 800-108 in counter mode with HMAC. Fills `out`, whose length in bits is part of the derivation;
/// `label` is given without its closing zero.
///
/// TPM 2.0 Part 1, "KDFa()". No key here is longer than 64 bytes; a counter of 32 bits never wraps.
pub fn kdfa(hash: HashAlg, key: &[u8], label: &[u8], context_u: &[u8], context_v: &[u8], out: &mut [u8]) {
    let bits = u32::try_from(out.len()).unwrap_or(u32::MAX).saturating_mul(8).to_be_bytes();
    for (counter, chunk) in (1u32..).zip(out.chunks_mut(hash.digest_len())) {
        let mut block = hash.hmac(key, &[&counter.to_be_bytes(), label, &[0], context_u, context_v, &bits]);
        fill(chunk, &block);
        block.wipe();
    }
}

/// KDFe: NIST SP 800-56A over an ECDH result. `z`, `party_u` and `party_v` are x coordinates, padded to the field.
///
/// TPM 2.0 Part 1, "KDFe for ECDH". Fills `out`.
pub fn kdfe(hash: HashAlg, z: &[u8], label: &[u8], party_u: &[u8], party_v: &[u8], out: &mut [u8]) {
    for (counter, chunk) in (1u32..).zip(out.chunks_mut(hash.digest_len())) {
        let mut block = hash.digest(&[&counter.to_be_bytes(), z, label, &[0], party_u, party_v]);
        fill(chunk, &block);
        block.wipe();
    }
}

fn fill(chunk: &mut [u8], block: &[u8]) {
    chunk.iter_mut().zip(block).for_each(|(to, from)| *to = *from);
}

/// What [`aes_cfb`] does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    Encrypt,
    Decrypt,
}

/// AES-CFB with a key of 16 or 32 bytes, in place. A key of any other length leaves `data` as it is and gives false.
#[must_use]
pub(crate) fn aes_cfb(direction: Direction, key: &[u8], iv: &[u8; 16], data: &mut [u8]) -> bool {
    macro_rules! run {
        ($cipher:ty, $key:expr) => {
            match direction {
                Direction::Encrypt => cfb_mode::Encryptor::<$cipher>::new($key.into(), iv.into()).encrypt(data),
                Direction::Decrypt => cfb_mode::Decryptor::<$cipher>::new($key.into(), iv.into()).decrypt(data),
            }
        };
    }
    if let Ok(key) = <[u8; 16]>::try_from(key).map(Zeroizing::new) {
        run!(Aes128, &*key);
        true
    } else if let Ok(key) = <[u8; 32]>::try_from(key).map(Zeroizing::new) {
        run!(Aes256, &*key);
        true
    } else {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_asked_for_is_part_of_kdfa_but_not_of_kdfe() {
        let (mut short, mut long) = ([0; 16], [0; 40]);
        kdfa(HashAlg::Sha256, b"key", b"LABEL", b"u", b"v", &mut short);
        kdfa(HashAlg::Sha256, b"key", b"LABEL", b"u", b"v", &mut long);
        assert_ne!(short, long[..16]);
        let first = HashAlg::Sha256.hmac(b"key", &[&[0, 0, 0, 1], b"LABEL\0uv", &[0, 0, 1, 64]]);
        let second = HashAlg::Sha256.hmac(b"key", &[&[0, 0, 0, 2], b"LABEL\0uv", &[0, 0, 1, 64]]);
        assert_eq!((&long[..32], &long[32..]), (&*first, &second[..8]));
        kdfe(HashAlg::Sha256, b"z", b"LABEL", b"u", b"v", &mut short);
        kdfe(HashAlg::Sha256, b"z", b"LABEL", b"u", b"v", &mut long);
        assert_eq!(short, long[..16]);
    }

    #[test]
    fn cfb_matches_the_published_vector() {
        // NIST SP 800-38A, F.3.13, first block.
        let key = [0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6, 0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c];
        let iv: [u8; 16] = core::array::from_fn(|i| i as u8);
        let plain = [0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d, 0x7e, 0x11, 0x73, 0x93, 0x17, 0x2a];
        let mut data = plain;
        assert!(aes_cfb(Direction::Encrypt, &key, &iv, &mut data));
        assert_eq!(
            data,
            [0x3b, 0x3f, 0xd9, 0x2e, 0xb7, 0x2d, 0xad, 0x20, 0x33, 0x34, 0x49, 0xf8, 0xe8, 0x3c, 0xfb, 0x4a]
        );
        assert!(aes_cfb(Direction::Decrypt, &key, &iv, &mut data));
        assert_eq!(data, plain);
        assert!(!aes_cfb(Direction::Encrypt, &key[..15], &iv, &mut data));
    }
}
