//! SHA-256, HMAC-SHA256 and HKDF-SHA256 over parts, without a way to fail.

use alloc::boxed::Box;

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// SHA-256's block, to which HMAC fills its key up with zeros (RFC 2104 §2).
const BLOCK_LEN: usize = 64;

/// SHA-256 over the parts, one after the other. Fixed lengths or a length in front keep them apart: the caller's duty.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// HMAC-SHA256 over the parts (RFC 2104).
pub(crate) fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    keyed(key, parts).finalize().into_bytes().into()
}

/// Whether `claimed` is the HMAC-SHA256 of the parts, in a time that does not depend on where it differs.
pub(crate) fn mac_fits(key: &[u8; 32], parts: &[&[u8]], claimed: &[u8; 32]) -> bool {
    mac(key, parts).ct_eq(claimed).into()
}

/// HKDF-SHA256 without salt, one block of output, written into `out` (RFC 5869; `L` = 32, so that expansion is
/// `T(1)` alone).
pub(crate) fn hkdf_into(key_material: &[u8], info: &[&[u8]], out: &mut [u8; 32]) {
    let mut pseudorandom_key = Box::new(Zeroizing::new(mac(&[0; 32], &[key_material])));
    let mut expansion = keyed(&pseudorandom_key, info);
    pseudorandom_key.zeroize();
    expansion.update(&[1]);
    let mut block = expansion.finalize().into_bytes();
    out.copy_from_slice(&block);
    block.as_mut_slice().zeroize();
}

fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    // On the heap, so that no copy of the key stays on the stack.
    let mut block = Box::new(Zeroizing::new([0; BLOCK_LEN]));
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = <Hmac<Sha256> as KeyInit>::new((&**block).into());
    for part in parts {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hkdf_is_the_one_of_rfc_5869() {
        let mut ours = [0; 32];
        hkdf_into(&[0x0b; 22], &[b"one", b"two"], &mut ours);
        let mut theirs = [0; 32];
        hkdf::Hkdf::<Sha256>::new(None, &[0x0b; 22]).expand(b"onetwo", &mut theirs).unwrap();
        assert_eq!(ours, theirs);

        // RFC 5869 A.3, the first 32 bytes: no salt, no info.
        hkdf_into(&[0x0b; 22], &[], &mut ours);
        assert_eq!(hex::encode(ours), "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d");
    }

    #[test]
    fn mac_is_the_one_of_rfc_4231() {
        let key = [0xaa; 32];
        let mut theirs = <Hmac<Sha256> as Mac>::new_from_slice(&key).unwrap();
        theirs.update(b"Hi There");
        let theirs: [u8; 32] = theirs.finalize().into_bytes().into();
        assert_eq!(mac(&key, &[b"Hi ", b"There"]), theirs);
        assert!(mac_fits(&key, &[b"Hi There"], &theirs));
        assert!(!mac_fits(&key, &[b"Hi There!"], &theirs));
    }
}
