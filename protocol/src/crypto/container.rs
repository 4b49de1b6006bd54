//! The files inside a payload's plaintext: a minimal format that is written whole and read as it streams by.
//!
//! "trefoil-payload-1\n", then per file: path length u16 (1 to 255) ‖ path UTF-8 ‖ mode u8 (0 plain, 1 executable) ‖
//! length u64 ‖ bytes; then a path length of 0. Numbers are big-endian. Paths ascend by their bytes, so that none comes
//! twice and a set of files has one container. A path is relative, its components are parted by `/`, and none is empty,
//! `.` or `..`. Making the files is the reader's caller's business, and so is a path that runs through a file.

use alloc::vec::Vec;
use core::{fmt, mem, str};

use zeroize::{Zeroize, Zeroizing};

use crate::limits::{MAX_PAYLOAD_FILES, MAX_PAYLOAD_LEN};

/// The longest path, bytes: what every file system takes as a single name.
pub const MAX_PATH_LEN: usize = 255;

const MAGIC: &[u8; 18] = b"trefoil-payload-1\n";
/// Magic and end marker.
const MIN_LEN: u64 = 20;
/// What a file takes besides its path and bytes.
const FILE_HEADER_LEN: u64 = 11;
/// The longest run of bytes that is collected before it is looked at: a path.
const MAX_FIELD_LEN: usize = MAX_PATH_LEN;

/// Why a container was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ContainerError {
    #[error("the payload does not begin as a payload of files does")]
    BadMagic,
    #[error("a path is absolute, climbs, is too long, or holds characters that no path here may")]
    BadPath,
    #[error("a file's mode is neither plain nor executable")]
    BadMode,
    #[error("paths do not ascend, or one comes twice")]
    OutOfOrder,
    #[error("a path names a file inside what is itself a file")]
    FileAsDirectory,
    #[error("more than 1,024 files")]
    TooManyFiles,
    #[error("the files are longer than 64 MiB together")]
    TooLong,
    #[error("the payload ends before its files do")]
    Truncated,
    #[error("bytes are left over after the last file")]
    TrailingBytes,
    #[error("the container has failed before")]
    Closed,
}

/// Takes the files as they stream by.
pub trait Sink {
    /// Why a file could not be taken.
    type Error: core::error::Error + 'static;

    /// A file begins. `path` is checked; `len` bytes will follow.
    ///
    /// # Errors
    /// Whatever keeps the file from being made.
    fn file(&mut self, path: &str, executable: bool, len: u64) -> Result<(), Self::Error>;

    /// More of the file's bytes; never empty.
    ///
    /// # Errors
    /// Whatever keeps them from being written.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;

    /// The file is complete.
    ///
    /// # Errors
    /// Whatever keeps it from being closed.
    fn end_file(&mut self) -> Result<(), Self::Error>;
}

/// What went wrong while a container was pushed through.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum UnpackError<E: core::error::Error + 'static> {
    #[error("the container was refused")]
    Container(#[from] ContainerError),
    #[error("a file was not taken")]
    Sink(#[source] E),
}

/// Reads a container as it streams by, in pieces of any length. Holds one path, never a file.
pub struct ContainerReader {
    state: State,
    /// The field that is being collected.
    field: Zeroizing<Vec<u8>>,
    /// The path of the file before, which the next has to follow.
    previous: Vec<u8>,
    path: Vec<u8>,
    files: usize,
    /// Bytes of all files so far.
    total: u64,
}

enum State {
    Magic,
    PathLen,
    Path { len: usize },
    Mode,
    Len { executable: bool },
    Data { rest: u64 },
    End,
    Closed,
}

impl ContainerReader {
    /// Starts with the first byte.
    pub fn new() -> Self {
        Self {
            state: State::Magic,
            field: Zeroizing::new(Vec::with_capacity(MAX_FIELD_LEN)),
            previous: Vec::new(),
            path: Vec::new(),
            files: 0,
            total: 0,
        }
    }

    /// Takes the next piece; `sink` gets the files, their bytes and their ends as they become known.
    ///
    /// # Errors
    /// What is wrong with the container, or what `sink` returned. After either the reader is closed.
    pub fn push<S: Sink>(&mut self, mut piece: &[u8], sink: &mut S) -> Result<(), UnpackError<S::Error>> {
        while !piece.is_empty() {
            // Closed unless the step below says what comes next.
            self.state = match mem::replace(&mut self.state, State::Closed) {
                State::Data { rest } => {
                    let take = usize::try_from(rest).unwrap_or(usize::MAX);
                    let (head, tail) = piece.split_at_checked(take).unwrap_or((piece, &[]));
                    piece = tail;
                    sink.data(head).map_err(UnpackError::Sink)?;
                    Self::after_data(rest.saturating_sub(head.len() as u64), sink)?
                }
                State::End => return Err(ContainerError::TrailingBytes.into()),
                State::Closed => return Err(ContainerError::Closed.into()),
                state => {
                    let missing = state.field_len().saturating_sub(self.field.len());
                    let (head, tail) = piece.split_at_checked(missing).unwrap_or((piece, &[]));
                    piece = tail;
                    self.field.extend_from_slice(head);
                    if head.len() == missing { self.field_complete(state, sink)? } else { state }
                }
            };
        }
        Ok(())
    }

    /// Ends the container: the end marker was the last that came.
    ///
    /// # Errors
    /// [`ContainerError::Truncated`], or [`ContainerError::Closed`] after an earlier error.
    pub fn finish(self) -> Result<(), ContainerError> {
        match self.state {
            State::End => Ok(()),
            State::Closed => Err(ContainerError::Closed),
            _ => Err(ContainerError::Truncated),
        }
    }

    fn field_complete<S: Sink>(&mut self, state: State, sink: &mut S) -> Result<State, UnpackError<S::Error>> {
        let next = match (state, self.field.as_slice()) {
            (State::Magic, magic) if magic == MAGIC => State::PathLen,
            (State::Magic, _) => return Err(ContainerError::BadMagic.into()),
            (State::PathLen, [0, 0]) => State::End,
            (State::PathLen, &[high, low]) => {
                let len = usize::from(u16::from_be_bytes([high, low]));
                if len > MAX_PATH_LEN {
                    return Err(ContainerError::BadPath.into());
                }
                self.files = self.files.saturating_add(1);
                if self.files > MAX_PAYLOAD_FILES {
                    return Err(ContainerError::TooManyFiles.into());
                }
                State::Path { len }
            }
            (State::Path { .. }, path) => {
                if !str::from_utf8(path).is_ok_and(is_path) {
                    return Err(ContainerError::BadPath.into());
                }
                if path <= self.previous.as_slice() {
                    return Err(ContainerError::OutOfOrder.into());
                }
                self.path.clear();
                self.path.extend_from_slice(path);
                self.previous.clone_from(&self.path);
                State::Mode
            }
            (State::Mode, [0]) => State::Len { executable: false },
            (State::Mode, [1]) => State::Len { executable: true },
            (State::Len { executable }, bytes) => {
                let len = bytes.iter().fold(0_u64, |len, byte| len.wrapping_shl(8) | u64::from(*byte));
                self.total = self.total.saturating_add(len);
                if self.total > MAX_PAYLOAD_LEN {
                    return Err(ContainerError::TooLong.into());
                }
                let path = str::from_utf8(&self.path).map_err(|_| ContainerError::BadPath)?;
                sink.file(path, executable, len).map_err(UnpackError::Sink)?;
                Self::after_data(len, sink)?
            }
            _ => return Err(ContainerError::BadMode.into()),
        };
        self.field.zeroize();
        Ok(next)
    }

    fn after_data<S: Sink>(rest: u64, sink: &mut S) -> Result<State, UnpackError<S::Error>> {
        if rest > 0 {
            return Ok(State::Data { rest });
        }
        sink.end_file().map_err(UnpackError::Sink)?;
        Ok(State::PathLen)
    }
}

impl Default for ContainerReader {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ContainerReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContainerReader({} files)", self.files)
    }
}

impl State {
    /// How many bytes the state collects before it looks at them.
    const fn field_len(&self) -> usize {
        match self {
            Self::Magic => MAGIC.len(),
            Self::PathLen => 2,
            Self::Path { len } => *len,
            Self::Mode => 1,
            Self::Len { .. } => 8,
            Self::Data { .. } | Self::End | Self::Closed => 0,
        }
    }
}

/// One file of a payload that is to be written.
#[derive(Clone, Copy)]
pub struct File<'a> {
    /// Where it goes, relative to the payload's directory.
    pub path: &'a str,
    /// Whether it may be executed: mode 0700 instead of 0600.
    pub executable: bool,
    /// What is in it.
    pub bytes: &'a [u8],
}

impl fmt::Debug for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({:?}, {} bytes)", self.path, self.bytes.len())
    }
}

/// Writes a container of these files, in whatever order they come.
///
/// # Errors
/// [`ContainerError::BadPath`], [`ContainerError::TooManyFiles`], [`ContainerError::TooLong`] as the reader has them;
/// [`ContainerError::OutOfOrder`] for a path that comes twice; [`ContainerError::FileAsDirectory`] if one file's path
/// runs through another file.
pub fn write_container(files: &[File<'_>]) -> Result<Zeroizing<Vec<u8>>, ContainerError> {
    if files.len() > MAX_PAYLOAD_FILES {
        return Err(ContainerError::TooManyFiles);
    }
    let mut files = files.to_vec();
    files.sort_unstable_by_key(|file| file.path);
    if !files.is_sorted_by(|a, b| a.path < b.path) {
        return Err(ContainerError::OutOfOrder);
    }
    let mut total = MIN_LEN;
    for file in &files {
        if !is_path(file.path) {
            return Err(ContainerError::BadPath);
        }
        let is_file = |path: &str| files.binary_search_by_key(&path, |file| file.path).is_ok();
        let mut ancestors = file.path.match_indices('/').filter_map(|(at, _)| file.path.get(..at));
        if ancestors.any(is_file) {
            return Err(ContainerError::FileAsDirectory);
        }
        let len = (file.path.len() as u64).saturating_add(file.bytes.len() as u64);
        total = total.saturating_add(len).saturating_add(FILE_HEADER_LEN);
    }
    let capacity = usize::try_from(total).map_err(|_| ContainerError::TooLong)?;
    if total > MAX_PAYLOAD_LEN {
        return Err(ContainerError::TooLong);
    }
    // Reserved once: growing would leave plaintext behind.
    let mut container = Zeroizing::new(Vec::with_capacity(capacity));
    container.extend_from_slice(MAGIC);
    for file in &files {
        let path_len = u16::try_from(file.path.len()).map_err(|_| ContainerError::BadPath)?;
        container.extend_from_slice(&path_len.to_be_bytes());
        container.extend_from_slice(file.path.as_bytes());
        container.push(file.executable.into());
        container.extend_from_slice(&(file.bytes.len() as u64).to_be_bytes());
        container.extend_from_slice(file.bytes);
    }
    container.extend_from_slice(&[0, 0]);
    Ok(container)
}

/// Whether a path may be in a payload: 1 to [`MAX_PATH_LEN`] bytes; relative; no empty, `.` or `..` component; no
/// control character and no backslash, which would be something else on a terminal or another system.
pub fn is_path(path: &str) -> bool {
    let is_component = |component: &str| !matches!(component, "" | "." | "..");
    let is_character = |character: char| !character.is_control() && character != '\\';
    path.len() <= MAX_PATH_LEN && path.split('/').all(is_component) && path.chars().all(is_character)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::convert::Infallible;
    use std::string::{String, ToString};
    use std::vec;
    use std::{format, iter};

    use proptest::prelude::*;

    use super::*;

    /// Path, executable, bytes.
    type Unpacked = (String, bool, Vec<u8>);

    #[derive(Debug, Default, Eq, PartialEq)]
    struct Files {
        files: Vec<Unpacked>,
        awaited: Option<u64>,
    }

    impl Sink for Files {
        type Error = Infallible;
        fn file(&mut self, path: &str, executable: bool, len: u64) -> Result<(), Infallible> {
            assert_eq!(self.awaited.replace(len), None);
            self.files.push((path.to_string(), executable, Vec::new()));
            Ok(())
        }
        fn data(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
            assert!(!bytes.is_empty());
            let awaited = self.awaited.as_mut().unwrap();
            *awaited -= bytes.len() as u64;
            self.files.last_mut().unwrap().2.extend_from_slice(bytes);
            Ok(())
        }
        fn end_file(&mut self) -> Result<(), Infallible> {
            assert_eq!(self.awaited.take(), Some(0));
            Ok(())
        }
    }

    fn read(pieces: &[&[u8]]) -> Result<Vec<Unpacked>, UnpackError<Infallible>> {
        let mut reader = ContainerReader::new();
        let mut files = Files::default();
        for piece in pieces {
            reader.push(piece, &mut files)?;
        }
        reader.finish()?;
        Ok(files.files)
    }

    fn file<'a>(path: &'a str, bytes: &'a [u8]) -> File<'a> {
        File { path, executable: false, bytes }
    }

    fn example() -> Vec<u8> {
        let run = File { path: "bin/autorun", executable: true, bytes: b"#!/bin/sh\n" };
        write_container(&[file("empty", b""), run, file("bin.conf", b"x=1")]).unwrap().to_vec()
    }

    /// One file's bytes, made by hand.
    fn raw(path: &[u8], mode: u8, len: u64, bytes: &[u8]) -> Vec<u8> {
        let path_len = u16::try_from(path.len()).unwrap().to_be_bytes();
        [&path_len, path, &[mode], &len.to_be_bytes(), bytes].concat()
    }

    fn raw_container(files: &[Vec<u8>]) -> Vec<u8> {
        [MAGIC.as_slice(), &files.concat(), &[0, 0]].concat()
    }

    fn refusal(container: &[u8]) -> ContainerError {
        match read(&[container]) {
            Err(UnpackError::Container(error)) => error,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn bytes_are_pinned() {
        let expected = [
            b"trefoil-payload-1\n".as_slice(),
            b"\x00\x08bin.conf\x00\x00\x00\x00\x00\x00\x00\x00\x03x=1",
            b"\x00\x0bbin/autorun\x01\x00\x00\x00\x00\x00\x00\x00\x0a#!/bin/sh\n",
            b"\x00\x05empty\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x00\x00",
        ]
        .concat();
        assert_eq!(example(), expected);
    }

    #[test]
    fn files_arrive_wherever_the_container_is_split() {
        let container = example();
        let expected = vec![
            ("bin.conf".to_string(), false, b"x=1".to_vec()),
            ("bin/autorun".to_string(), true, b"#!/bin/sh\n".to_vec()),
            ("empty".to_string(), false, vec![]),
        ];
        for at in 0..=container.len() {
            let (head, tail) = container.split_at(at);
            assert_eq!(read(&[head, tail]).as_ref(), Ok(&expected), "split at {at}");
        }
        let bytes: Vec<_> = container.chunks(1).collect();
        assert_eq!(read(&bytes), Ok(expected));
    }

    #[test]
    fn a_payload_without_files_is_one() {
        assert_eq!(read(&[&write_container(&[]).unwrap()]), Ok(vec![]));
    }

    #[test]
    fn every_truncation_and_a_trailing_byte_are_refused() {
        let container = example();
        for len in 0..container.len() {
            assert_eq!(refusal(&container[..len]), ContainerError::Truncated, "{len} bytes");
        }
        assert_eq!(refusal(&[container.as_slice(), &[0]].concat()), ContainerError::TrailingBytes);
    }

    #[test]
    fn a_reader_that_failed_stays_closed() {
        let mut reader = ContainerReader::new();
        let mut files = Files::default();
        assert_eq!(reader.push(&[b'x'; 18], &mut files), Err(ContainerError::BadMagic.into()));
        assert_eq!(reader.push(&example(), &mut files), Err(ContainerError::Closed.into()));
        assert_eq!(reader.finish(), Err(ContainerError::Closed));
    }

    #[test]
    fn paths_that_climb_or_mislead_are_refused_both_ways() {
        let bad = ["/etc/x", "..", "../x", "a/../x", "a/..", ".", "./a", "a/./b", "a//b", "a/", "a\\b", "a\0b", "a\nb"];
        for path in bad {
            assert_eq!(
                refusal(&raw_container(&[raw(path.as_bytes(), 0, 0, b"")])),
                ContainerError::BadPath,
                "{path:?}"
            );
            assert_eq!(write_container(&[file(path, b"")]).unwrap_err(), ContainerError::BadPath, "{path:?}");
        }
        assert_eq!(write_container(&[file("", b"")]).unwrap_err(), ContainerError::BadPath);
        assert_eq!(refusal(&raw_container(&[raw(b"\xff", 0, 0, b"")])), ContainerError::BadPath);
        for path in ["a", "...", "a/.b", "..a", "ä/ö", "a b"] {
            assert!(read(&[&write_container(&[file(path, b"")]).unwrap()]).is_ok(), "{path:?}");
        }
    }

    #[test]
    fn a_path_over_its_limit_is_refused_both_ways() {
        let (longest, over) = ("a".repeat(MAX_PATH_LEN), "a".repeat(MAX_PATH_LEN + 1));
        assert!(read(&[&write_container(&[file(&longest, b"")]).unwrap()]).is_ok());
        assert_eq!(write_container(&[file(&over, b"")]).unwrap_err(), ContainerError::BadPath);
        assert_eq!(refusal(&raw_container(&[raw(over.as_bytes(), 0, 0, b"")])), ContainerError::BadPath);
    }

    #[test]
    fn an_unknown_mode_is_refused() {
        assert_eq!(refusal(&raw_container(&[raw(b"a", 2, 0, b"")])), ContainerError::BadMode);
    }

    #[test]
    fn a_path_that_comes_twice_or_out_of_order_is_refused() {
        let of = |first: &[u8], second: &[u8]| raw_container(&[raw(first, 0, 0, b""), raw(second, 0, 0, b"")]);
        assert!(read(&[&of(b"a", b"b")]).is_ok());
        assert_eq!(refusal(&of(b"a", b"a")), ContainerError::OutOfOrder);
        assert_eq!(refusal(&of(b"b", b"a")), ContainerError::OutOfOrder);
        let twice = write_container(&[file("a", b""), file("b", b""), file("a", b"")]);
        assert_eq!(twice.unwrap_err(), ContainerError::OutOfOrder);
    }

    #[test]
    fn a_file_inside_a_file_is_not_written() {
        let files = [file("a", b""), file("a-b", b""), file("a/b/c", b"")];
        assert_eq!(write_container(&files).unwrap_err(), ContainerError::FileAsDirectory);
        assert!(write_container(&files[1..]).is_ok());
    }

    #[test]
    fn more_than_the_limits_is_refused_both_ways() {
        let paths: Vec<_> = (0..=MAX_PAYLOAD_FILES).map(|index| format!("{index:04}")).collect();
        let files: Vec<_> = paths.iter().map(|path| file(path, b"")).collect();
        assert_eq!(read(&[&write_container(&files[1..]).unwrap()]).unwrap().len(), MAX_PAYLOAD_FILES);
        assert_eq!(write_container(&files).unwrap_err(), ContainerError::TooManyFiles);
        let raws: Vec<_> = paths.iter().map(|path| raw(path.as_bytes(), 0, 0, b"")).collect();
        assert_eq!(refusal(&raw_container(&raws)), ContainerError::TooManyFiles);

        let limit = usize::try_from(MAX_PAYLOAD_LEN).unwrap();
        let bytes = vec![0; limit - 20 - 11];
        assert_eq!(write_container(&[file("a", &bytes)]).unwrap_err(), ContainerError::TooLong);
        assert_eq!(write_container(&[file("a", &bytes[1..])]).unwrap().len(), limit);
        for len in [MAX_PAYLOAD_LEN + 1, u64::MAX] {
            assert_eq!(refusal(&raw_container(&[raw(b"a", 0, len, b"")])), ContainerError::TooLong);
        }
        let two = [raw(b"a", 0, 1, b"x"), raw(b"b", 0, u64::MAX, b"")];
        assert_eq!(refusal(&raw_container(&two)), ContainerError::TooLong);
    }

    #[test]
    fn a_sink_that_refuses_closes_the_reader() {
        struct Full;
        impl Sink for Full {
            type Error = ContainerError;
            fn file(&mut self, _: &str, _: bool, _: u64) -> Result<(), ContainerError> {
                Ok(())
            }
            fn data(&mut self, _: &[u8]) -> Result<(), ContainerError> {
                Err(ContainerError::TooLong)
            }
            fn end_file(&mut self) -> Result<(), ContainerError> {
                Ok(())
            }
        }
        let mut reader = ContainerReader::new();
        assert_eq!(reader.push(&example(), &mut Full), Err(UnpackError::Sink(ContainerError::TooLong)));
        assert_eq!(reader.push(b"x", &mut Full), Err(ContainerError::Closed.into()));
    }

    proptest! {
        #[test]
        fn reading_is_total_and_does_not_depend_on_pieces(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            whole in any::<bool>(),
            flip in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            // Either noise behind the magic, or a good container with one byte changed.
            let mut container = example();
            if whole {
                let at = flip.index(container.len());
                container[at] ^= bytes.first().copied().unwrap_or(1);
            } else {
                container.truncate(MAGIC.len());
                container.extend(bytes);
            }
            let (head, tail) = container.split_at(cut.index(container.len() + 1));
            let single: Vec<_> = iter::once(head).chain(tail.chunks(1)).collect();
            prop_assert_eq!(read(&[&container]), read(&single));
        }

        #[test]
        fn what_is_written_is_read(
            files in proptest::collection::btree_map("[a-z]{1,3}", (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        ) {
            let written: Vec<_> =
                files.iter().map(|(path, (executable, bytes))| File { path, executable: *executable, bytes }).collect();
            let expected: Vec<_> =
                files.iter().map(|(path, (executable, bytes))| (path.clone(), *executable, bytes.clone())).collect();
            prop_assert_eq!(read(&[&write_container(&written).unwrap()]), Ok(expected));
        }
    }
}
