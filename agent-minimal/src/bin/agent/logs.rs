//! The logs of a boot: the firmware's, the kernel's measurement list (IMA) in its binary form, its command line, and what
//! userspace measured.
//!
//! They are read where they are, in small pieces. Nothing is judged here: an entry of the list is only measured, to
//! know where the next begins.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use protocol::{bytes::Array, limits, message::attest::BootLogState};
use sha2::{Digest as _, Sha256};

/// Read at a time.
const PIECE: usize = 4096;
/// PCR, SHA-1 of the template, length of the template's name.
const ENTRY_HEAD: usize = 4 + 20 + 4;
/// Template names are a few letters (`ima-ng`), or a format of fields.
const MAX_TEMPLATE_NAME: usize = 128;
/// Starts of entries that are remembered: those that the roles ask for next lie near the end of the list.
const MARKS: usize = 8;

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The system's word.
    #[error("the log cannot be read: {0}")]
    Io(#[from] io::Error),
    /// More than a boot log may have.
    #[error("the boot log is longer than 1 MiB")]
    TooLong,
    /// More than a command line may have.
    #[error("the kernel's command line is longer than 4 KiB")]
    CommandLineTooLong,
    /// More than a userspace log may have.
    #[error("the userspace log is longer than 1 MiB")]
    UserspaceTooLong,
    /// Not a list.
    #[error("the measurement list is malformed at entry {0}")]
    Malformed(u64),
    /// No such entry.
    #[error("the measurement list has only {total} entries")]
    NoSuchEntry {
        /// How many there are.
        total: u64,
    },
}

/// Where the logs are; an empty path is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogPaths<'p> {
    /// The firmware's log.
    pub(crate) boot: &'p Path,
    /// The kernel's measurement list.
    pub(crate) ima: &'p Path,
    /// The kernel's command line.
    pub(crate) command_line: &'p Path,
    /// What userspace measured.
    pub(crate) userspace: &'p Path,
}

/// The logs, and where in them things were found before.
#[derive(Debug)]
pub(crate) struct Logs {
    boot: PathBuf,
    boot_seen: Option<(Identity, BootLogState)>,
    ima: PathBuf,
    list: Option<List>,
    command_line: PathBuf,
    userspace: PathBuf,
}

/// What an unchanged file keeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Identity {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Where an entry begins.
#[derive(Clone, Copy, Debug)]
struct Mark {
    entry: u64,
    offset: u64,
}

/// The kernel's list, kept open: a file that stays open goes on where it was, one that is opened anew is made from its
/// first entry again.
#[derive(Debug)]
struct List {
    file: File,
    device: u64,
    inode: u64,
    /// Ascending; the last is the end of the list as it was seen last.
    marks: Vec<Mark>,
}

impl Logs {
    /// Names the logs; nothing is read yet.
    pub(crate) fn new(paths: &LogPaths<'_>) -> Self {
        Self {
            boot: paths.boot.to_owned(),
            boot_seen: None,
            ima: paths.ima.to_owned(),
            list: None,
            command_line: paths.command_line.to_owned(),
            userspace: paths.userspace.to_owned(),
        }
    }

    /// Whether the firmware left a log.
    pub(crate) fn has_boot_log(&self) -> bool {
        self.boot.exists()
    }

    /// Whether the kernel keeps a list.
    pub(crate) fn has_ima_log(&self) -> bool {
        self.ima.exists()
    }

    /// The boot log's digest and length; `None` if there is none. It does not change in a boot, and is hashed once.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::TooLong`].
    pub(crate) fn boot_state(&mut self) -> Result<Option<BootLogState>, LogError> {
        let Some(file) = open(&self.boot)? else { return Ok(None) };
        let identity = Identity::from(&file.metadata()?);
        if let Some((seen, state)) = self.boot_seen
            && seen == identity
        {
            return Ok(Some(state));
        }
        let (mut hash, mut len, mut piece) = (Sha256::new(), 0_u32, [0; PIECE]);
        loop {
            let got = file.read_at(&mut piece, len.into())?;
            let Some(bytes) = piece.get(..got).filter(|bytes| !bytes.is_empty()) else { break };
            hash.update(bytes);
            len = len.saturating_add(u32::try_from(got).unwrap_or(u32::MAX));
            if len as usize > limits::MAX_BOOT_LOG_LEN {
                return Err(LogError::TooLong);
            }
        }
        let state = BootLogState { digest: Array(hash.finalize().into()), len };
        self.boot_seen = Some((identity, state));
        Ok(Some(state))
    }

    /// Reads the boot log from `offset` on; fewer bytes than `buf` holds at its end, none behind it or without a log.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub(crate) fn read_boot_log(&self, offset: u64, buf: &mut [u8]) -> Result<usize, LogError> {
        match open(&self.boot)? {
            Some(file) if offset < limits::MAX_BOOT_LOG_LEN as u64 => Ok(read_full(&file, offset, buf)?),
            _ => Ok(0),
        }
    }

    /// How many entries the list has, and the whole entries from number `from` on that fit `max_len` bytes. `None` if
    /// there is no list; no entries if there are none from `from` on.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Malformed`].
    pub(crate) fn ima_part(&mut self, from: u64, max_len: usize) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let Some(list) = self.list()? else { return Ok(None) };
        let end = list.catch_up()?;
        if from >= end.entry {
            return Ok(Some((end.entry, Vec::new())));
        }
        let start = list.find(from)?;
        let last = list.walk(start, |mark| mark.offset - start.offset > max_len as u64)?;
        let mut entries = vec![0; usize::try_from(last.offset - start.offset).unwrap_or(0)];
        let got = read_full(&list.file, start.offset, &mut entries)?;
        if got != entries.len() {
            return Err(LogError::Malformed(last.entry));
        }
        list.remember(last);
        Ok(Some((end.entry, entries)))
    }

    /// How many bytes of the list there are from entry `from` on. `None` if there is no list.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) fn ima_len(&mut self, from: u64) -> Result<Option<u64>, LogError> {
        let Some(list) = self.list()? else { return Ok(None) };
        let end = list.catch_up()?;
        let start = list.find(from)?;
        Ok(Some((end.offset - start.offset).min(limits::MAX_IMA_LOG_LEN as u64)))
    }

    /// Reads the list, as it was when it was last measured, from `offset` bytes behind the start of entry `from` on.
    /// Fewer bytes than `buf` holds at its end.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) fn ima_from(&mut self, from: u64, offset: u64, buf: &mut [u8]) -> Result<usize, LogError> {
        let Some(list) = self.list()? else { return Ok(0) };
        if list.marks.is_empty() {
            list.catch_up()?;
        }
        let start = list.find(from)?;
        let left = list.end().offset.saturating_sub(start.offset).min(limits::MAX_IMA_LOG_LEN as u64);
        let most = usize::try_from(left.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        Ok(read_full(&list.file, start.offset.saturating_add(offset), buf.get_mut(..most).unwrap_or_default())?)
    }

    /// The kernel's command line without its newline; `None` if there is none.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::CommandLineTooLong`].
    pub(crate) fn command_line(&self) -> Result<Option<Vec<u8>>, LogError> {
        let Some(file) = open(&self.command_line)? else { return Ok(None) };
        // The newline, and one more to see that it is longer.
        let mut line = vec![0; limits::MAX_COMMAND_LINE_LEN + 2];
        let len = read_full(&file, 0, &mut line)?;
        line.truncate(len);
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > limits::MAX_COMMAND_LINE_LEN {
            return Err(LogError::CommandLineTooLong);
        }
        Ok(Some(line))
    }

    /// Reads the command line from `offset` on, as [`command_line`](Self::command_line) gives it.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) fn read_command_line(&self, offset: usize, buf: &mut [u8]) -> Result<usize, LogError> {
        let line = self.command_line()?.unwrap_or_default();
        let rest = line.get(offset..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    /// The length of the userspace log in bytes, which only grows; `None` if there is none.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::UserspaceTooLong`].
    pub(crate) fn userspace_len(&self) -> Result<Option<u64>, LogError> {
        let Some(file) = open(&self.userspace)? else { return Ok(None) };
        let len = file.metadata()?.len();
        if len > limits::MAX_USERSPACE_LOG_LEN as u64 { Err(LogError::UserspaceTooLong) } else { Ok(Some(len)) }
    }

    /// Reads the userspace log from `offset` on; fewer bytes than `buf` holds at its end, none without a log.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub(crate) fn read_userspace(&self, offset: u64, buf: &mut [u8]) -> Result<usize, LogError> {
        match open(&self.userspace)? {
            Some(file) if offset < limits::MAX_USERSPACE_LOG_LEN as u64 => Ok(read_full(&file, offset, buf)?),
            _ => Ok(0),
        }
    }

    /// The list; opened anew if another file has its name by now, or the file has shrunk.
    fn list(&mut self) -> Result<Option<&mut List>, LogError> {
        let metadata = match fs::metadata(&self.ima) {
            Ok(metadata) => metadata,
            Err(why) if is_missing(&why) => {
                self.list = None;
                return Ok(None);
            }
            Err(why) => return Err(why.into()),
        };
        let same = |list: &List| {
            // The kernel's file has no length of its own.
            let shrunk = metadata.len() != 0 && metadata.len() < list.end().offset;
            list.device == metadata.dev() && list.inode == metadata.ino() && !shrunk
        };
        if !self.list.as_ref().is_some_and(same) {
            let file = File::open(&self.ima)?;
            self.list = Some(List { file, device: metadata.dev(), inode: metadata.ino(), marks: Vec::new() });
        }
        Ok(self.list.as_mut())
    }
}

impl List {
    fn end(&self) -> Mark {
        self.marks.last().copied().unwrap_or(Mark { entry: 0, offset: 0 })
    }

    /// Measures what is new, and returns the end.
    fn catch_up(&mut self) -> Result<Mark, LogError> {
        let end = self.walk(self.end(), |_| false)?;
        self.remember(end);
        Ok(end)
    }

    /// The start of an entry, or the end of the list.
    fn find(&mut self, entry: u64) -> Result<Mark, LogError> {
        let nearest = self.marks.iter().rev().find(|mark| mark.entry <= entry).copied();
        let start = nearest.unwrap_or(Mark { entry: 0, offset: 0 });
        if start.entry == entry {
            return Ok(start);
        }
        let found = self.walk(start, |mark| mark.entry > entry)?;
        if found.entry != entry {
            return Err(LogError::NoSuchEntry { total: found.entry });
        }
        self.remember(found);
        Ok(found)
    }

    fn remember(&mut self, mark: Mark) {
        let at = self.marks.partition_point(|known| known.entry < mark.entry);
        if self.marks.get(at).is_some_and(|known| known.entry == mark.entry) {
            return;
        }
        self.marks.insert(at, mark);
        if self.marks.len() > MARKS {
            self.marks.remove(0);
        }
    }

    /// Goes from entry to entry as long as the next mark is not `beyond`, and there is a whole entry; returns the mark
    /// it came to.
    fn walk(&self, mut at: Mark, beyond: impl Fn(Mark) -> bool) -> Result<Mark, LogError> {
        let mut window = Window { file: &self.file, offset: at.offset, len: 0, bytes: [0; PIECE] };
        while let Some(len) = entry_len(&mut window, at)? {
            let next = Mark { entry: at.entry + 1, offset: at.offset + len };
            if beyond(next) {
                break;
            }
            at = next;
        }
        Ok(at)
    }
}

/// The length of the entry at a mark in bytes; `None` where the list ends there or in it.
fn entry_len(window: &mut Window<'_>, at: Mark) -> Result<Option<u64>, LogError> {
    let malformed = LogError::Malformed(at.entry);
    let Some(head) = window.at(at.offset, ENTRY_HEAD)? else { return Ok(None) };
    let Some(name_len) = number(head, 24).filter(|len| *len <= MAX_TEMPLATE_NAME) else { return Err(malformed) };
    let Some(name) = window.at(at.offset + ENTRY_HEAD as u64, name_len)? else { return Ok(None) };
    // The oldest template has no length of its own: a digest, and the length of a path.
    let fixed = if name == b"ima" { 20 } else { 0 };
    let data = at.offset + (ENTRY_HEAD + name_len + fixed) as u64;
    let Some(data_len) = window.at(data, 4)?.and_then(|bytes| number(bytes, 0)) else { return Ok(None) };
    let len = ENTRY_HEAD + name_len + fixed + 4 + data_len.min(limits::MAX_IMA_ENTRY_LEN);
    if data_len > limits::MAX_IMA_ENTRY_LEN || len > limits::MAX_IMA_ENTRY_LEN {
        return Err(malformed);
    }
    // The last byte has to be there: an entry that is still being written is no entry yet.
    let last = at.offset + len as u64 - 1;
    Ok(window.at(last, 1)?.map(|_| len as u64))
}

/// Four bytes, little-endian, as the kernels write them that run on little-endian machines.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

/// A piece of a file, moved forward as it is asked for. It reads strictly in sequence, however far a jump goes: the
/// kernel's list can only be continued cheaply, any other place is reached by making it again from its first entry.
struct Window<'a> {
    file: &'a File,
    offset: u64,
    len: usize,
    bytes: [u8; PIECE],
}

impl Window<'_> {
    /// `len` bytes (at most a piece) at `offset`, which never goes back; `None` if the file ends before them.
    fn at(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        while offset + len as u64 > self.offset + self.len as u64 {
            let passed = usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(usize::MAX).min(self.len);
            self.bytes.copy_within(passed..self.len, 0);
            self.offset += passed as u64;
            self.len -= passed;
            let room = self.bytes.get_mut(self.len..).unwrap_or_default();
            match self.file.read_at(room, self.offset + self.len as u64) {
                Ok(0) => return Ok(None),
                Ok(got) => self.len += got,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        let start = usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        Ok(self.bytes.get(start..).and_then(|bytes| bytes.get(..len)))
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(why) if is_missing(&why) => Ok(None),
        Err(why) => Err(why),
    }
}

fn is_missing(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Reads until `buf` is full or the file ends.
fn read_full(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buf.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + len as u64) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests;
