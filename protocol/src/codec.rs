//! Reading and writing big-endian structures in byte slices: the base of every decoder here.
//!
//! [`Reader`] never reads past its slice and never panics; [`Writer`] never writes past its buffer.

/// Why bytes could not be decoded, or did not fit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum CodecError {
    #[error("the bytes end before the structure does")]
    Truncated,
    #[error("bytes are left over after the structure")]
    TrailingBytes,
    #[error("a length is larger than its limit")]
    TooLong,
    #[error("a field holds a value that is not allowed there")]
    BadValue,
    #[error("the output buffer is too small")]
    NoSpace,
}

/// A cursor over bytes that came from somewhere else.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes not read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// How many bytes are not read yet.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes, big-endian.
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes, big-endian.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A TPM2B: a length of two bytes, then that many bytes, at most `max`.
    pub fn tpm2b(&mut self, max: usize) -> Result<&'a [u8], CodecError> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(CodecError::TooLong);
        }
        self.take(len)
    }

    /// Ends the reading: nothing may be left.
    pub const fn finish(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::TrailingBytes) }
    }
}

/// A cursor that fills a buffer the caller owns.
#[derive(Debug)]
pub struct Writer<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// Starts at the first byte of `buf`.
    pub const fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, len: 0 }
    }

    /// Appends `bytes`.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        let end = self.len.checked_add(bytes.len()).ok_or(CodecError::NoSpace)?;
        self.buf.get_mut(self.len..end).ok_or(CodecError::NoSpace)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> Result<(), CodecError> {
        self.put(&[value])
    }

    /// Appends two bytes, big-endian.
    pub fn u16(&mut self, value: u16) -> Result<(), CodecError> {
        self.put(&value.to_be_bytes())
    }

    /// Appends four bytes, big-endian.
    pub fn u32(&mut self, value: u32) -> Result<(), CodecError> {
        self.put(&value.to_be_bytes())
    }

    /// Appends eight bytes, big-endian.
    pub fn u64(&mut self, value: u64) -> Result<(), CodecError> {
        self.put(&value.to_be_bytes())
    }

    /// Appends a TPM2B: a length of two bytes, then `bytes`.
    pub fn tpm2b(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        self.u16(u16::try_from(bytes.len()).map_err(|_| CodecError::TooLong)?)?;
        self.put(bytes)
    }

    /// How many bytes were written.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites two bytes at `at`, which were written before (a length known only later).
    pub fn patch_u16(&mut self, at: usize, value: u16) -> Result<(), CodecError> {
        self.patch(at, &value.to_be_bytes())
    }

    /// Overwrites four bytes at `at`, which were written before.
    pub fn patch_u32(&mut self, at: usize, value: u32) -> Result<(), CodecError> {
        self.patch(at, &value.to_be_bytes())
    }

    /// What was written.
    pub fn finish(self) -> &'a mut [u8] {
        let Self { buf, len } = self;
        buf.get_mut(..len).unwrap_or_default()
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) -> Result<(), CodecError> {
        let end = at.checked_add(bytes.len()).filter(|end| *end <= self.len).ok_or(CodecError::NoSpace)?;
        self.buf.get_mut(at..end).ok_or(CodecError::NoSpace)?.copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_refuses_what_is_not_there() {
        let mut reader = Reader::new(&[0, 2, 7]);
        assert_eq!(reader.tpm2b(8), Err(CodecError::Truncated));
        let mut reader = Reader::new(&[0, 9, 7]);
        assert_eq!(reader.tpm2b(8), Err(CodecError::TooLong));
        assert_eq!(Reader::new(&[1]).finish(), Err(CodecError::TrailingBytes));
    }

    #[test]
    fn writer_refuses_what_does_not_fit() {
        let mut buf = [0; 3];
        let mut writer = Writer::new(&mut buf);
        writer.tpm2b(&[7]).unwrap();
        assert_eq!(writer.u8(1), Err(CodecError::NoSpace));
        assert_eq!(writer.patch_u16(2, 1), Err(CodecError::NoSpace));
        writer.patch_u16(0, 9).unwrap();
        assert_eq!(writer.finish(), &[0, 9, 7]);
    }
}
