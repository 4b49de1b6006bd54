//! Random bytes: from the kernel once its pool is ready, else from kernel and TPM together, else not at all.
//!
//! Early in a boot the kernel's pool may not be ready. That holds nothing up for ever, and never makes a weak key: the
//! TPM's generator then has to contribute.

use std::{
    thread,
    time::{Duration, Instant},
};

use hmac::{
    Hmac, Mac as _,
    digest::{KeyInit, generic_array::GenericArray},
};
use rand_core::{CryptoRng, RngCore};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::sys::{self, RandomFlags};

/// How long the kernel's pool is waited for before the TPM has to step in.
pub(crate) const KERNEL_WAIT: Duration = Duration::from_secs(30);
/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(100);

/// What the kernel gave.
pub(crate) struct Kernel {
    bytes: Zeroizing<[u8; 32]>,
    ready: bool,
}

impl Kernel {
    /// Asks the kernel, and waits at most `limit` for its pool to be ready. After that the bytes are whatever it has.
    pub(crate) fn gather(limit: Duration) -> Self {
        let start = Instant::now();
        let mut bytes = Zeroizing::new([0; 32]);
        loop {
            if sys::random(&mut *bytes, RandomFlags::NonBlocking).is_ok() {
                return Self { bytes, ready: true };
            }
            if start.elapsed() >= limit {
                let _ = sys::random(&mut *bytes, RandomFlags::Insecure);
                return Self { bytes, ready: false };
            }
            thread::sleep(POLL);
        }
    }

    /// Whether the kernel vouches for them.
    pub(crate) const fn is_ready(&self) -> bool {
        self.ready
    }
}

/// No source of randomness that can be relied on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the kernel's random pool is not ready, and the TPM gave no random bytes: no key is made without either")]
pub(crate) struct NoEntropy;

/// A generator for keys: its state is renewed from the kernel with each call, and never leads back.
pub(crate) struct Rng {
    state: Zeroizing<[u8; 32]>,
}

impl Rng {
    /// Seeds from the kernel's bytes and, where they were read, the TPM's.
    ///
    /// # Errors
    /// [`NoEntropy`] if the kernel was not ready and there are no bytes from the TPM.
    pub(crate) fn new(kernel: &Kernel, tpm: Option<&[u8; 32]>) -> Result<Self, NoEntropy> {
        if !kernel.ready && tpm.is_none() {
            return Err(NoEntropy);
        }
        Ok(Self::seeded(kernel, tpm))
    }

    /// Seeds from the kernel's bytes, ready or not: only for the session that reads random bytes from the TPM.
    pub(crate) fn provisional(kernel: &Kernel) -> Self {
        Self::seeded(kernel, None)
    }

    /// A generator of its own for somebody else.
    pub(crate) fn fork(&mut self) -> Self {
        let mut state = Zeroizing::new([0; 32]);
        self.fill_bytes(&mut *state);
        Self { state }
    }

    fn seeded(kernel: &Kernel, tpm: Option<&[u8; 32]>) -> Self {
        Self { state: prf(&kernel.bytes, &[b"trefoil-agent rng", tpm.map_or(&[], |bytes| bytes.as_slice())]) }
    }
}

impl RngCore for Rng {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        // Where this fails, on a kernel without the flag, the state alone is as good as its seed.
        let mut fresh = Zeroizing::new([0; 32]);
        if sys::random(&mut *fresh, RandomFlags::Insecure).is_err() {
            let _ = sys::random(&mut *fresh, RandomFlags::NonBlocking);
        }
        for (index, block) in dest.chunks_mut(32).enumerate() {
            let out = prf(&self.state, &[b"out", &*fresh, &index.to_be_bytes()]);
            for (to, from) in block.iter_mut().zip(out.iter()) {
                *to = *from;
            }
        }
        self.state = prf(&self.state, &[b"next", &*fresh]);
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for Rng {}

fn prf(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    // A key shorter than a block is padded with zeros (RFC 2104): padded here, no length is left to be wrong.
    let mut block = Zeroizing::new([0; 64]);
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = <Hmac<Sha256> as KeyInit>::new(GenericArray::from_slice(&*block));
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(ready: bool) -> Kernel {
        Kernel { bytes: Zeroizing::new([7; 32]), ready }
    }

    #[test]
    fn unready_pool_without_tpm_makes_no_keys() {
        assert_eq!(Rng::new(&kernel(false), None).map(|_| ()), Err(NoEntropy));
        assert!(Rng::new(&kernel(false), Some(&[1; 32])).is_ok());
        assert!(Rng::new(&kernel(true), None).is_ok());
    }

    #[test]
    fn equal_kernel_bytes_diverge_by_the_tpm() {
        let state = |tpm| Rng::new(&kernel(false), Some(&tpm)).unwrap().state;
        assert_ne!(*state([1; 32]), *state([2; 32]));
    }

    #[test]
    fn successive_outputs_differ() {
        let mut rng = Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap();
        let (mut one, mut other) = ([0; 100], [0; 100]);
        rng.fill_bytes(&mut one);
        rng.fill_bytes(&mut other);
        assert_ne!(one, other);
        assert_ne!(one[..32], one[32..64]);
    }
}
