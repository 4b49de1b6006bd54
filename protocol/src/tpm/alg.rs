//! Algorithm identifiers, hashes and the digests they make, and response codes.
//!
//! Which algorithms a structure may name is that structure's business; this module only knows them.

use core::fmt;

use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use crate::codec::CodecError;

/// TPM_ALG_RSA (this and the rest: TPM 2.0 Part 2, TPM_ALG_ID).
pub const TPM_ALG_RSA: u16 = 0x0001;
/// TPM_ALG_SHA1.
pub const TPM_ALG_SHA1: u16 = 0x0004;
/// TPM_ALG_HMAC.
pub const TPM_ALG_HMAC: u16 = 0x0005;
/// TPM_ALG_AES.
pub const TPM_ALG_AES: u16 = 0x0006;
/// TPM_ALG_SHA256.
pub const TPM_ALG_SHA256: u16 = 0x000b;
/// TPM_ALG_SHA384.
pub const TPM_ALG_SHA384: u16 = 0x000c;
/// TPM_ALG_SHA512.
pub const TPM_ALG_SHA512: u16 = 0x000d;
/// TPM_ALG_NULL.
pub const TPM_ALG_NULL: u16 = 0x0010;
/// TPM_ALG_RSASSA.
pub const TPM_ALG_RSASSA: u16 = 0x0014;
/// TPM_ALG_RSAES.
pub const TPM_ALG_RSAES: u16 = 0x0015;
/// TPM_ALG_RSAPSS.
pub const TPM_ALG_RSAPSS: u16 = 0x0016;
/// TPM_ALG_OAEP.
pub const TPM_ALG_OAEP: u16 = 0x0017;
/// TPM_ALG_ECDSA.
pub const TPM_ALG_ECDSA: u16 = 0x0018;
/// TPM_ALG_ECDH.
pub const TPM_ALG_ECDH: u16 = 0x0019;
/// TPM_ALG_ECC.
pub const TPM_ALG_ECC: u16 = 0x0023;
/// TPM_ALG_CFB.
pub const TPM_ALG_CFB: u16 = 0x0043;

/// A byte string of bounded length that is copied, compared and printed (in hex) as a value.
macro_rules! short_bytes {
    ($(#[$doc:meta])* $name:ident, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name {
            // Unused bytes stay zero: the derived order and equality are then those of the slices.
            bytes: [u8; $max],
            len: u8,
        }

        impl $name {
            /// The longest it can be, in bytes.
            pub const MAX_LEN: usize = $max;

            /// Copies without judging the content; for callers that have checked it.
            pub(crate) fn from_slice(slice: &[u8]) -> Result<Self, crate::codec::CodecError> {
                let mut bytes = [0; $max];
                bytes.get_mut(..slice.len()).ok_or(crate::codec::CodecError::TooLong)?.copy_from_slice(slice);
                let len = u8::try_from(slice.len()).map_err(|_| crate::codec::CodecError::TooLong)?;
                Ok(Self { bytes, len })
            }

            /// Overwrites a value that was secret.
            #[allow(dead_code, reason = "not every byte string is ever secret")]
            pub(crate) fn wipe(&mut self) {
                zeroize::Zeroize::zeroize(&mut self.bytes);
                self.len = 0;
            }

            /// Its bytes.
            pub fn as_bytes(&self) -> &[u8] {
                self.bytes.get(..usize::from(self.len)).unwrap_or_default()
            }
        }

        impl core::ops::Deref for $name {
            type Target = [u8];

            fn deref(&self) -> &[u8] {
                self.as_bytes()
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }
    };
}
pub(crate) use short_bytes;

short_bytes! {
    /// A hash value, 20 to 64 bytes; or, where the structure allows it (an absent policy), none at all.
    Digest, 64
}

impl Digest {
    /// No bytes: an absent policy.
    pub const EMPTY: Self = Self { bytes: [0; 64], len: 0 };

    /// Copies `bytes`; [`CodecError::TooLong`] above 64.
    pub fn new(bytes: &[u8]) -> Result<Self, CodecError> {
        Self::from_slice(bytes)
    }

    /// `alg.digest_len()` zero bytes: a PCR after a reset.
    pub const fn zero(alg: HashAlg) -> Self {
        Self { bytes: [0; 64], len: alg.len_u8() }
    }

    fn from_array<const N: usize>(array: impl Into<[u8; N]>) -> Self {
        let array: [u8; N] = array.into();
        // Every hash here is at most 64 bytes.
        Self::from_slice(&array).unwrap_or(Self::EMPTY)
    }
}

/// A hash algorithm: of a PCR bank, a Name, or a signature. Ordered by TPM_ALG_ID.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum HashAlg {
    /// TPM_ALG_SHA1; in old PCR banks only.
    Sha1,
    /// TPM_ALG_SHA256.
    Sha256,
    /// TPM_ALG_SHA384.
    Sha384,
    /// TPM_ALG_SHA512.
    Sha512,
}

impl HashAlg {
    /// Every algorithm, ascending.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// Its TPM_ALG_ID.
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha1 => TPM_ALG_SHA1,
            Self::Sha256 => TPM_ALG_SHA256,
            Self::Sha384 => TPM_ALG_SHA384,
            Self::Sha512 => TPM_ALG_SHA512,
        }
    }

    /// The algorithm with this TPM_ALG_ID, if it is one of ours.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            TPM_ALG_SHA1 => Some(Self::Sha1),
            TPM_ALG_SHA256 => Some(Self::Sha256),
            TPM_ALG_SHA384 => Some(Self::Sha384),
            TPM_ALG_SHA512 => Some(Self::Sha512),
            _ => None,
        }
    }

    const fn len_u8(self) -> u8 {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Length of its digests in bytes.
    pub const fn digest_len(self) -> usize {
        self.len_u8() as usize
    }

    /// Its name in policies and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The algorithm with this name; lower case only.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.name() == name)
    }

    /// The digest over all `parts`, one after the other.
    pub fn digest(self, parts: &[&[u8]]) -> Digest {
        fn over<H: sha2::Digest>(parts: &[&[u8]]) -> sha2::digest::Output<H> {
            let mut hasher = H::new();
            parts.iter().for_each(|part| hasher.update(part));
            hasher.finalize()
        }
        match self {
            Self::Sha1 => Digest::from_array::<20>(over::<Sha1>(parts)),
            Self::Sha256 => Digest::from_array::<32>(over::<Sha256>(parts)),
            Self::Sha384 => Digest::from_array::<48>(over::<Sha384>(parts)),
            Self::Sha512 => Digest::from_array::<64>(over::<Sha512>(parts)),
        }
    }

    /// HMAC over all `parts` with a key of any length.
    pub fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Digest {
        // `new_from_slice` takes every length; the empty digest in its place would fit nothing.
        macro_rules! over {
            ($hash:ty, $len:literal) => {
                <Hmac<$hash> as Mac>::new_from_slice(key).map_or(Digest::EMPTY, |mut mac| {
                    parts.iter().for_each(|part| mac.update(part));
                    Digest::from_array::<$len>(mac.finalize().into_bytes())
                })
            };
        }
        match self {
            Self::Sha1 => over!(Sha1, 20),
            Self::Sha256 => over!(Sha256, 32),
            Self::Sha384 => over!(Sha384, 48),
            Self::Sha512 => over!(Sha512, 64),
        }
    }

    /// A digest of this algorithm from outside: its length must fit.
    pub fn read_digest(self, bytes: &[u8]) -> Result<Digest, CodecError> {
        if bytes.len() == self.digest_len() { Digest::from_slice(bytes) } else { Err(CodecError::BadValue) }
    }

    pub(crate) fn decode(reader: &mut crate::codec::Reader<'_>) -> Result<Self, CodecError> {
        Self::from_id(reader.u16()?).ok_or(CodecError::BadValue)
    }
}

impl fmt::Display for HashAlg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A curve of a key this project accepts.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EccCurve {
    /// TPM_ECC_NIST_P256.
    P256,
    /// TPM_ECC_NIST_P384.
    P384,
}

impl EccCurve {
    /// Its TPM_ECC_CURVE (TPM 2.0 Part 2).
    pub const fn id(self) -> u16 {
        match self {
            Self::P256 => 0x0003,
            Self::P384 => 0x0004,
        }
    }

    /// The curve with this TPM_ECC_CURVE; P-521 and all others are not accepted.
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            0x0003 => Some(Self::P256),
            0x0004 => Some(Self::P384),
            _ => None,
        }
    }

    /// Length of a coordinate, and of a scalar, in bytes.
    pub const fn field_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

/// A response code (TPM 2.0 Part 2, TPM_RC): zero, or why the TPM refused.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct TpmRc(pub u32);

/// What a format-one response code is about; numbers count from 1, 0 where the TPM did not say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RcSubject {
    /// A parameter of the command.
    Parameter(u8),
    /// A handle of the command.
    Handle(u8),
    /// A session of the command.
    Session(u8),
}

impl TpmRc {
    /// TPM_RC_SUCCESS.
    pub const SUCCESS: Self = Self(0);
    /// TPM_RC_INITIALIZE: TPM2_Startup is missing, or was done already.
    pub const INITIALIZE: Self = Self(0x100);
    /// TPM_RC_OBJECT_MEMORY: no free slot for a transient object.
    pub const OBJECT_MEMORY: Self = Self(0x902);
    /// TPM_RC_SESSION_MEMORY: no free slot for a session.
    pub const SESSION_MEMORY: Self = Self(0x903);
    /// TPM_RC_SESSION_HANDLES: no free session handle.
    pub const SESSION_HANDLES: Self = Self(0x905);
    /// TPM_RC_LOCKOUT: the dictionary-attack protection is active.
    pub const LOCKOUT: Self = Self(0x921);
    /// TPM_RC_HANDLE, stripped of its position: the handle does not exist.
    pub const HANDLE: Self = Self(0x08b);
    /// TPM_RC_INTEGRITY, stripped of its position: a credential or a salt was not made for this key and object.
    pub const INTEGRITY: Self = Self(0x09f);

    /// The code without the number of the parameter, handle or session it is about.
    pub const fn base(self) -> Self {
        if self.is_format_one() { Self(self.0 & 0xbf) } else { self }
    }

    const fn is_format_one(self) -> bool {
        self.0 & 0x80 != 0 && self.0 & !0xfff == 0
    }

    /// What it is about; `None` for codes that do not say.
    pub const fn subject(self) -> Option<RcSubject> {
        if !self.is_format_one() {
            return None;
        }
        // Masked to four bits: it fits.
        let number = ((self.0 >> 8) & 0xf) as u8;
        Some(if self.0 & 0x40 != 0 {
            RcSubject::Parameter(number)
        } else if number & 0x8 != 0 {
            RcSubject::Session(number & 0x7)
        } else {
            RcSubject::Handle(number)
        })
    }

    /// The TPM was busy; the same command again may succeed (TPM_RC_YIELDED, TESTING, NV_RATE, RETRY).
    ///
    /// The first use after a start of a key that dictionary protection covers (an EK by its empty password) regularly
    /// gives TPM_RC_RETRY: the TPM has to note in NV that one is in use.
    pub const fn is_retry(self) -> bool {
        matches!(self.0, 0x908 | 0x90a | 0x920 | 0x922)
    }

    /// The TCG's name, for the codes that an operator may meet.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.base().0 {
            0x000 => "TPM_RC_SUCCESS",
            0x01e => "TPM_RC_BAD_TAG",
            0x081 => "TPM_RC_ASYMMETRIC",
            0x082 => "TPM_RC_ATTRIBUTES",
            0x083 => "TPM_RC_HASH",
            0x084 => "TPM_RC_VALUE",
            0x085 => "TPM_RC_HIERARCHY",
            0x087 => "TPM_RC_KEY_SIZE",
            0x089 => "TPM_RC_MODE",
            0x08a => "TPM_RC_TYPE",
            0x08b => "TPM_RC_HANDLE",
            0x08e => "TPM_RC_AUTH_FAIL",
            0x08f => "TPM_RC_NONCE",
            0x092 => "TPM_RC_SCHEME",
            0x095 => "TPM_RC_SIZE",
            0x096 => "TPM_RC_SYMMETRIC",
            0x09a => "TPM_RC_INSUFFICIENT",
            0x09d => "TPM_RC_POLICY_FAIL",
            0x09f => "TPM_RC_INTEGRITY",
            0x0a2 => "TPM_RC_BAD_AUTH",
            0x0a6 => "TPM_RC_CURVE",
            0x0a7 => "TPM_RC_ECC_POINT",
            0x100 => "TPM_RC_INITIALIZE",
            0x101 => "TPM_RC_FAILURE",
            0x120 => "TPM_RC_DISABLED",
            0x124 => "TPM_RC_AUTH_TYPE",
            0x125 => "TPM_RC_AUTH_MISSING",
            0x12f => "TPM_RC_AUTH_UNAVAILABLE",
            0x143 => "TPM_RC_COMMAND_CODE",
            0x148 => "TPM_RC_NV_LOCKED",
            0x149 => "TPM_RC_NV_AUTHORIZATION",
            0x14a => "TPM_RC_NV_UNINITIALIZED",
            0x14c => "TPM_RC_NV_DEFINED",
            0x902 => "TPM_RC_OBJECT_MEMORY",
            0x903 => "TPM_RC_SESSION_MEMORY",
            0x904 => "TPM_RC_MEMORY",
            0x905 => "TPM_RC_SESSION_HANDLES",
            0x907 => "TPM_RC_LOCALITY",
            0x908 => "TPM_RC_YIELDED",
            0x90a => "TPM_RC_TESTING",
            0x910 => "TPM_RC_REFERENCE_H0",
            0x918 => "TPM_RC_REFERENCE_S0",
            0x920 => "TPM_RC_NV_RATE",
            0x921 => "TPM_RC_LOCKOUT",
            0x922 => "TPM_RC_RETRY",
            _ => return None,
        })
    }
}

impl fmt::Display for TpmRc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:03x}", self.0)?;
        if let Some(name) = self.name() {
            write!(f, " {name}")?;
        }
        match self.subject() {
            Some(RcSubject::Parameter(number)) => write!(f, " (parameter {number})"),
            Some(RcSubject::Handle(number)) => write!(f, " (handle {number})"),
            Some(RcSubject::Session(number)) => write!(f, " (session {number})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for TpmRc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes of a number without its leading zeros.
pub(crate) fn trim_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn digests_are_those_of_the_published_test_vectors() {
        assert_eq!(HashAlg::Sha1.digest(&[b"a", b"bc"]).to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            HashAlg::Sha256.digest(&[b"abc"]).to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // RFC 4231, test case 2.
        assert_eq!(
            HashAlg::Sha256.hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"]).to_string(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        for alg in HashAlg::ALL {
            assert_eq!(alg.digest(&[]).len(), alg.digest_len());
            assert_eq!(alg.hmac(&[], &[]).len(), alg.digest_len());
            assert_eq!(HashAlg::from_id(alg.id()), Some(alg));
            assert_eq!(HashAlg::from_name(alg.name()), Some(alg));
        }
        assert_eq!(HashAlg::from_name("SHA256"), None);
    }

    #[test]
    fn digests_are_ordered_like_their_bytes() {
        let values: [&[u8]; 5] = [b"", b"\0", b"\0\0", b"\0\x01", b"\x01"];
        for pair in values.windows(2) {
            assert!(Digest::new(pair[0]).unwrap() < Digest::new(pair[1]).unwrap());
        }
        assert_eq!(Digest::new(&[0; 65]), Err(CodecError::TooLong));
    }

    #[test]
    fn response_codes_say_what_they_are_about() {
        assert_eq!(TpmRc(0x9a2).to_string(), "0x9a2 TPM_RC_BAD_AUTH (session 1)");
        assert_eq!(TpmRc(0x1df).to_string(), "0x1df TPM_RC_INTEGRITY (parameter 1)");
        assert_eq!(TpmRc(0x18b).to_string(), "0x18b TPM_RC_HANDLE (handle 1)");
        assert_eq!(TpmRc(0x921).to_string(), "0x921 TPM_RC_LOCKOUT");
        assert_eq!(TpmRc(0x1df).base(), TpmRc::INTEGRITY);
        assert!(TpmRc(0x922).is_retry() && !TpmRc(0x921).is_retry());
        // A resource manager's own codes carry bits above the TPM's twelve.
        assert_eq!(TpmRc(0x000b_008b).subject(), None);
    }
}
