//! cpio archives of the "newc" kind (070701, and 070702 with a checksum), as Linux reads them from an initramfs
//! (kernel documentation, "initramfs buffer format"). Streaming: content is handed on as it is read.
//!
//! What the entries mean to a file system is [`initrd`](super::initrd)'s business.

use std::io::{self, Read};

/// Bytes of a header: a magic number and thirteen numbers of eight hex digits.
pub const HEADER_LEN: usize = 110;
/// Bytes of a name with its NUL (the kernel's PATH_MAX).
pub const MAX_NAME_LEN: usize = 4096;
/// The name that ends an archive.
pub const TRAILER: &[u8] = b"TRAILER!!!";

/// Why bytes are no archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum CpioError {
    #[error("the archive ends within {0}")]
    Truncated(&'static str),
    #[error("no entry begins here (070701 or 070702 expected)")]
    BadMagic,
    #[error("`{0}` of the entry is not eight hex digits")]
    BadNumber(&'static str),
    #[error("the entry's name is {0} bytes long; 2 to {MAX_NAME_LEN} with its NUL are read")]
    NameLength(u32),
    #[error("the entry's name does not end with its only NUL")]
    BadName,
    #[error("the content of `{0}` does not have the checksum that its header says")]
    BadChecksum(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a header says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// The path as it is written, without its NUL.
    pub name: Vec<u8>,
    /// Inode number.
    pub ino: u32,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Names that the file has.
    pub nlink: u32,
    /// Bytes of content.
    pub size: u32,
    /// Device of the inode.
    pub dev: (u32, u32),
}

impl Header {
    /// Whether it is a regular file.
    pub const fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }

    /// Whether it is a symbolic link, whose content is where it leads.
    pub const fn is_symlink(&self) -> bool {
        self.mode & 0o170_000 == 0o120_000
    }
}

/// The content of an entry: reads no further.
#[derive(Debug)]
pub struct Content<'a, R> {
    reader: &'a mut R,
    left: u32,
    sum: u32,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let Some(buf) = buf.get_mut(..most).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        let read = self.reader.read(buf)?.min(most);
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for byte in buf.iter().take(read) {
            self.sum = self.sum.wrapping_add((*byte).into());
        }
        // Not more than what was left.
        self.left = self.left.saturating_sub(u32::try_from(read).unwrap_or(u32::MAX));
        Ok(read)
    }
}

/// Reads one archive, up to and with its trailer, and hands each entry before that on.
///
/// `visit` need not read the content; an error of its own ends the reading.
///
/// # Errors
/// [`CpioError`]. What was visited before counts for nothing then.
pub fn read_archive<R: Read, E: From<CpioError>>(
    reader: &mut R,
    mut visit: impl FnMut(&Header, &mut Content<'_, R>) -> Result<(), E>,
) -> Result<(), E> {
    loop {
        let (header, check) = read_header(reader)?;
        let mut content = Content { reader, left: header.size, sum: 0 };
        let is_trailer = header.name == TRAILER;
        if !is_trailer {
            visit(&header, &mut content)?;
        }
        io::copy(&mut content, &mut io::sink()).map_err(|error| truncated(error, "the content of an entry"))?;
        let sum = content.sum;
        if let Some(check) = check.filter(|_| header.is_file() && !is_trailer)
            && check != sum
        {
            return Err(CpioError::BadChecksum(String::from_utf8_lossy(&header.name).into_owned()).into());
        }
        skip_padding(reader, u64::from(header.size), "the content of an entry")?;
        if is_trailer {
            return Ok(());
        }
    }
}

/// A header with its name, and its checksum if the kind has one.
fn read_header<R: Read>(reader: &mut R) -> Result<(Header, Option<u32>), CpioError> {
    const FIELDS: [&str; 13] = [
        "ino",
        "mode",
        "uid",
        "gid",
        "nlink",
        "mtime",
        "filesize",
        "devmajor",
        "devminor",
        "rdevmajor",
        "rdevminor",
        "namesize",
        "check",
    ];
    let mut bytes = [0; HEADER_LEN];
    fill(reader, &mut bytes, "a header")?;
    let (magic, numbers) = bytes.split_at(6);
    let has_checksum = match magic {
        b"070701" => false,
        b"070702" => true,
        _ => return Err(CpioError::BadMagic),
    };
    let mut values = [0_u32; FIELDS.len()];
    for ((value, digits), field) in values.iter_mut().zip(numbers.chunks_exact(8)).zip(FIELDS) {
        *value = number(digits).ok_or(CpioError::BadNumber(field))?;
    }
    let [ino, mode, _, _, nlink, _, size, major, minor, _, _, name_len, check] = values;
    let len = usize::try_from(name_len).ok().filter(|len| (2..=MAX_NAME_LEN).contains(len));
    let mut name = vec![0; len.ok_or(CpioError::NameLength(name_len))?];
    fill(reader, &mut name, "a name")?;
    skip_padding(reader, (HEADER_LEN + name.len()) as u64, "a name")?;
    if name.iter().position(|byte| *byte == 0) != Some(name.len() - 1) {
        return Err(CpioError::BadName);
    }
    name.pop();
    let header = Header { name, ino, mode, nlink, size, dev: (major, minor) };
    Ok((header, has_checksum.then_some(check)))
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

fn fill<R: Read>(reader: &mut R, bytes: &mut [u8], what: &'static str) -> Result<(), CpioError> {
    reader.read_exact(bytes).map_err(|error| truncated(error, what))
}

fn truncated(error: io::Error, what: &'static str) -> CpioError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CpioError::Truncated(what),
        _ => CpioError::Io(error),
    }
}

/// Names and contents are padded to four bytes.
fn skip_padding<R: Read>(reader: &mut R, len: u64, what: &'static str) -> Result<(), CpioError> {
    let mut padding = [0; 3];
    let count = usize::try_from(len.wrapping_neg() % 4).unwrap_or(0);
    padding.get_mut(..count).map_or(Ok(()), |padding| fill(reader, padding, what))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One entry as bytes.
    pub(crate) fn entry(name: &str, mode: u32, ino: u32, nlink: u32, content: &[u8]) -> Vec<u8> {
        entry_of("070701", name, mode, ino, nlink, content, 0)
    }

    fn entry_of(magic: &str, name: &str, mode: u32, ino: u32, nlink: u32, content: &[u8], check: u32) -> Vec<u8> {
        let size = content.len() as u32;
        let mut bytes = magic.as_bytes().to_vec();
        for value in [ino, mode, 0, 0, nlink, 0, size, 8, 1, 0, 0, name.len() as u32 + 1, check] {
            bytes.extend(format!("{value:08X}").bytes());
        }
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    pub(crate) fn trailer() -> Vec<u8> {
        entry("TRAILER!!!", 0, 0, 1, b"")
    }

    fn read(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, CpioError> {
        let mut found = Vec::new();
        let mut reader = bytes;
        read_archive(&mut reader, |header, content| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            found.push((String::from_utf8_lossy(&header.name).into_owned(), bytes));
            Ok::<_, CpioError>(())
        })?;
        assert!(reader.is_empty(), "trailing bytes are the caller's");
        Ok(found)
    }

    fn archive() -> Vec<u8> {
        [entry("a", 0o100_644, 1, 1, b"one"), entry("dir/bc", 0o100_755, 2, 1, b"twelve bytes"), trailer()].concat()
    }

    #[test]
    fn entries_are_handed_on_in_their_order() {
        let found = read(&archive()).unwrap();
        assert_eq!(found, [("a".into(), b"one".to_vec()), ("dir/bc".into(), b"twelve bytes".to_vec())]);
    }

    #[test]
    fn unread_content_is_skipped() {
        let mut names = Vec::new();
        read_archive(&mut archive().as_slice(), |header, _| {
            names.push(header.name.clone());
            Ok::<_, CpioError>(())
        })
        .unwrap();
        assert_eq!(names, [b"a".to_vec(), b"dir/bc".to_vec()]);
    }

    #[test]
    fn every_truncated_prefix_is_refused() {
        let whole = archive();
        for len in 0..whole.len() {
            let error = read(&whole[..len]).unwrap_err();
            let is_named = matches!(error, CpioError::Truncated(_))
                || matches!(&error, CpioError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof);
            assert!(is_named, "{len}: {error}");
        }
    }

    #[test]
    fn each_broken_field_has_its_error() {
        let broken = |at: usize, with: &[u8]| {
            let mut bytes = archive();
            bytes[at..at + with.len()].copy_from_slice(with);
            read(&bytes).unwrap_err().to_string()
        };
        assert_eq!(broken(0, b"070707"), CpioError::BadMagic.to_string());
        for (number, field) in (0..13).zip(["ino", "mode", "uid", "gid", "nlink", "mtime", "filesize", "devmajor"]) {
            assert_eq!(broken(6 + 8 * number, b"0000000x"), CpioError::BadNumber(field).to_string());
            assert_eq!(broken(6 + 8 * number, b"+0000000"), CpioError::BadNumber(field).to_string());
        }
        assert_eq!(broken(94, b"00000001"), CpioError::NameLength(1).to_string());
        assert_eq!(broken(94, b"00001001"), CpioError::NameLength(4097).to_string());
        assert_eq!(broken(111, b"x"), CpioError::BadName.to_string());
        assert_eq!(broken(110, b"\0"), CpioError::BadName.to_string());
    }

    #[test]
    fn a_checksum_is_checked_where_there_is_one() {
        let with = |check| [entry_of("070702", "a", 0o100_644, 1, 1, b"ab", check), trailer()].concat();
        assert!(read(&with(u32::from(b'a') + u32::from(b'b'))).is_ok());
        assert!(matches!(read(&with(7)), Err(CpioError::BadChecksum(name)) if name == "a"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_archive_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..200_usize) {
            let _ = read_archive(&mut bytes.as_slice(), |_, _| Ok::<_, CpioError>(()));
            let mut near = archive();
            for (to, from) in near.iter_mut().skip(at).zip(bytes.iter().take(8)) {
                *to = *from;
            }
            let _ = read_archive(&mut near.as_slice(), |_, _| Ok::<_, CpioError>(()));
        }
    }
}
