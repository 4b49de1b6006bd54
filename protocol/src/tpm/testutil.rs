//! What several test modules share: the recorded answers, a random source without randomness, malformed variants.

use alloc::vec::Vec;

use rand_core::{CryptoRng, RngCore};

use super::alg::HashAlg;

pub(crate) const COMMON: &str = include_str!("testdata/common.txt");
pub(crate) const P256: &str = include_str!("testdata/p256.txt");
pub(crate) const P384: &str = include_str!("testdata/p384.txt");
pub(crate) const RSA2048: &str = include_str!("testdata/rsa2048.txt");
pub(crate) const RSA_TEST_KEY: &str = include_str!("testdata/rsa_test_key.txt");

/// The value recorded under `name`.
pub(crate) fn recorded(file: &str, name: &str) -> Vec<u8> {
    let line = file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    hex::decode(line.unwrap_or_else(|| panic!("{name} was not recorded"))).unwrap()
}

/// SHA-256 of a counter: the same bytes in every run.
pub(crate) struct TestRng(pub(crate) u64);

impl RngCore for TestRng {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        for chunk in dest.chunks_mut(32) {
            chunk.copy_from_slice(&HashAlg::Sha256.digest(&[&self.0.to_be_bytes()])[..chunk.len()]);
            self.0 += 1;
        }
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for TestRng {}

/// A whole response with its length made right again after a change.
pub(crate) fn with_len(mut response: Vec<u8>) -> Vec<u8> {
    let len = response.len() as u32;
    response[2..6].copy_from_slice(&len.to_be_bytes());
    response
}
