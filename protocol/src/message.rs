//! The bodies of requests and answers, version 1: postcard, one file per exchange, every field bounded.
//!
//! postcard by itself ignores trailing bytes and accepts over-long varints; [`decode`] does not: what is left over, and
//! what does not encode back to the same bytes, is an error.

pub mod attest;
pub mod enrol;
pub mod provision;

use postcard::ser_flavors::{Flavor, Slice};
use serde::{Serialize, de::DeserializeOwned};

use crate::codec::CodecError;

/// The version of this message set; it stands in `hello` and, as `v1`, in every path.
pub const VERSION: u8 = 1;

/// Reads a message that fills `bytes` exactly.
///
/// # Errors
/// [`CodecError::TrailingBytes`] for a rest; [`CodecError::BadValue`] for anything malformed, over-long or not minimal.
pub fn decode<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, CodecError> {
    let (message, rest) = postcard::take_from_bytes::<T>(bytes).map_err(|_| CodecError::BadValue)?;
    if !rest.is_empty() {
        return Err(CodecError::TrailingBytes);
    }
    postcard::serialize_with_flavor::<T, Compare<'_>, ()>(&message, Compare { rest: bytes })
        .map_err(|_| CodecError::BadValue)?;
    Ok(message)
}

/// Writes a message at the front of `buf` and returns what was written.
///
/// # Errors
/// [`CodecError::NoSpace`]; every message fits [`limits::MAX_MESSAGE_LEN`](crate::limits::MAX_MESSAGE_LEN).
pub fn encode<'b, T: Serialize>(message: &T, buf: &'b mut [u8]) -> Result<&'b mut [u8], CodecError> {
    postcard::serialize_with_flavor::<T, Slice<'b>, &'b mut [u8]>(message, Slice::new(buf))
        .map_err(|_| CodecError::NoSpace)
}

/// Writes a message into bytes of its own.
///
/// # Errors
/// As [`encode`].
pub fn to_vec<T: Serialize>(message: &T) -> Result<alloc::vec::Vec<u8>, CodecError> {
    postcard::to_allocvec(message).map_err(|_| CodecError::NoSpace)
}

/// Writes nowhere: checks that the encoding equals the bytes it came from.
struct Compare<'a> {
    rest: &'a [u8],
}

impl Flavor for Compare<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.rest = self.rest.strip_prefix(bytes).ok_or(postcard::Error::DeserializeBadEncoding)?;
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(postcard::Error::DeserializeBadEncoding) }
    }
}

#[cfg(test)]
mod tests;
