//! Fuzzed bytes read as a script, bytes cut into pieces, and a random source that repeats itself.

use rand_core::{CryptoRng, RngCore};

/// Reads a script from its front; at its end every byte is zero.
pub(crate) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(crate) const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(crate) const fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A length of one byte, and as many bytes as there are of it.
    pub(crate) fn short(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte());
        self.take(len)
    }

    /// A length of two bytes, big-endian, and as many bytes as there are of it.
    pub(crate) fn long(&mut self) -> &'a [u8] {
        let len = usize::from(u16::from_be_bytes([self.byte(), self.byte()]));
        self.take(len)
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }
}

/// Bytes as [`Script::long`] reads them.
pub(crate) fn long(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("seeds are short");
    [&len.to_be_bytes(), bytes].concat()
}

/// Cuts `bytes` into pieces whose lengths follow from `how`; zero leaves them whole.
pub(crate) fn pieces(bytes: &[u8], how: u8) -> Vec<&[u8]> {
    if how == 0 {
        return vec![bytes];
    }
    let mut rng = XorShift::new(u64::from(how));
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        // Mostly a few bytes; sometimes many, so that a long input does not become a hundred thousand pieces.
        let most = [3, 17, 300, 5000][rng.below(4)];
        let (head, tail) = rest.split_at((1 + rng.below(most)).min(rest.len()));
        pieces.push(head);
        rest = tail;
    }
    pieces
}

/// A random source that nobody may use for anything else: xorshift64*, from a fixed seed.
pub(crate) struct XorShift(u64);

impl XorShift {
    pub(crate) const fn new(seed: u64) -> Self {
        // Spread over all bits, and never zero.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }
}

impl RngCore for XorShift {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        for chunk in dest.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for XorShift {}
