//! SHA-256 of short, whole messages, block by block: a list has two for each of its entries, most of them of two or three
//! blocks, where what a hasher does around them is felt.

use sha2::{compress256, digest::generic_array::GenericArray};

/// FIPS 180-4 §5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const BLOCK_LEN: usize = 64;
/// Where the length stands in the last block.
const LEN_AT: usize = BLOCK_LEN - 8;

/// SHA-256 of `data`.
#[inline]
pub(super) fn digest(data: &[u8]) -> [u8; 32] {
    let mut state = INITIAL;
    let (blocks, tail) = data.as_chunks::<BLOCK_LEN>();
    for block in blocks {
        compress256(&mut state, std::slice::from_ref(GenericArray::from_slice(block)));
    }
    // FIPS 180-4 §5.1.1: a one bit, zeros, the length in bits.
    let mut last = [0; BLOCK_LEN];
    if let Some(place) = last.get_mut(..=tail.len())
        && let Some((one, place)) = place.split_last_mut()
    {
        place.copy_from_slice(tail);
        *one = 0x80;
    }
    if tail.len() >= LEN_AT {
        compress256(&mut state, std::slice::from_ref(GenericArray::from_slice(&last)));
        last = [0; BLOCK_LEN];
    }
    finish(state, last, data.len())
}

/// SHA-256 of two digests: what extends a PCR.
#[inline]
pub(super) fn digest_of_two(first: &[u8; 32], second: &[u8; 32]) -> [u8; 32] {
    let mut state = INITIAL;
    let mut block = [0; BLOCK_LEN];
    let (front, back) = block.split_at_mut(32);
    front.copy_from_slice(first);
    back.copy_from_slice(second);
    compress256(&mut state, std::slice::from_ref(GenericArray::from_slice(&block)));
    let mut last = [0; BLOCK_LEN];
    last[0] = 0x80;
    finish(state, last, BLOCK_LEN)
}

#[inline]
fn finish(mut state: [u32; 8], mut last: [u8; BLOCK_LEN], len: usize) -> [u8; 32] {
    if let Some(place) = last.last_chunk_mut::<8>() {
        // A message is a part of a list, which is far shorter than 2^61 bytes.
        *place = (len as u64 * 8).to_be_bytes();
    }
    compress256(&mut state, std::slice::from_ref(GenericArray::from_slice(&last)));
    let mut digest = [0; 32];
    for (place, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *place = word.to_be_bytes();
    }
    digest
}

#[cfg(test)]
mod tests {
    use protocol::tpm::alg::HashAlg;

    #[test]
    fn every_length_hashes_as_a_hasher_does() {
        let data: Vec<u8> = (0..400u32).map(|number| (number * 7) as u8).collect();
        for len in 0..data.len() {
            let data = &data[..len];
            assert_eq!(super::digest(data), HashAlg::Sha256.digest(&[data]).as_bytes(), "{len}");
        }
        let (one, two) = ([1; 32], [2; 32]);
        assert_eq!(super::digest_of_two(&one, &two), HashAlg::Sha256.digest(&[&one, &two]).as_bytes());
    }
}
