//! The payload's directory: unpacked in memory, under a hidden name, and put in place by one rename.
//!
//! Decrypting and judging a payload is the core's business: here plaintext comes in, and files come out. Beside the
//! directory lies a record of what is in it, with the `confirm` that may still have to be sent.

mod keys;

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use protocol::{
    codec::{CodecError, Reader},
    crypto::container::{ContainerError, ContainerReader, Sink, UnpackError},
    id::SealingId,
    limits,
    message::provision::ReportKind,
};
use zeroize::Zeroizing;

use crate::{
    log,
    sys::{self, Directory, FileSystem},
};

/// Memory that has to stay free beside a payload that cannot be swapped out.
const MEMORY_MARGIN: u64 = 8 * 1024 * 1024;
const RECORD_MAGIC: &[u8; 16] = b"trefoil-placed-1";
const RECORD_LEN: usize = 16 + 16 + 8 + 1 + 32;

/// Why a payload was not put in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PayloadError {
    /// What came is no payload.
    #[error("{0}")]
    Refused(#[from] ContainerError),
    /// A path of it cannot be made as it is written.
    #[error("the payload holds a path that runs through a file, or comes twice")]
    Path,
    /// More came than was announced.
    #[error("the payload is longer than it was announced")]
    TooLong,
    /// Not in memory.
    #[error("{0} is not on a tmpfs or ramfs: plaintext is kept in memory only; mount one there, or set payload-dir")]
    NotInMemory(String),
    /// No room.
    #[error("there is no room: the payload has {needed} bytes, {free} are free where it goes")]
    NoRoom {
        /// Bytes of plaintext.
        needed: u64,
        /// Bytes that may be used.
        free: u64,
    },
    /// The file system filled up.
    #[error("the payload's file system is full")]
    Full,
    /// Anything else.
    #[error("{what}: {why}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What came of it.
        why: io::Error,
    },
}

impl PayloadError {
    /// Whose fault it is, as the operator is told.
    pub(crate) const fn kind(&self) -> ReportKind {
        match self {
            Self::Refused(_) | Self::Path | Self::TooLong => ReportKind::PayloadRefused,
            _ => ReportKind::PayloadNotStored,
        }
    }

    fn io(what: &'static str, why: io::Error) -> Self {
        match why.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io { what, why },
        }
    }
}

/// What is in place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Placed {
    /// Its sealing.
    pub(crate) sealing_id: SealingId,
    /// The proof of `confirm`, while that waits for its answer.
    pub(crate) proof: Option<[u8; 32]>,
    /// The manifest asks for autorun, which starts once `confirm` is answered.
    pub(crate) autorun: bool,
}

/// The directory payloads go to, its hidden siblings, the record beside it, and the links to its disk keys.
#[derive(Clone, Debug)]
pub(crate) struct PayloadDir {
    target: PathBuf,
    keys_dir: PathBuf,
    parent: PathBuf,
    /// `.NAME.`, which the names of everything beside it begin with.
    prefix: OsString,
}

impl PayloadDir {
    /// Names the directory, and the one of links to disk keys; nothing is made yet. Both are absolute.
    pub(crate) fn new(target: &Path, keys_dir: &Path) -> Self {
        let parent = target.parent().unwrap_or(Path::new("/")).to_owned();
        let mut prefix = OsString::from(".");
        prefix.push(target.file_name().unwrap_or(OsStr::new("payload")));
        prefix.push(".");
        Self { target: target.to_owned(), keys_dir: keys_dir.to_owned(), parent, prefix }
    }

    /// Where the payload is, once it is.
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }

    /// Removes what an earlier run left half-written.
    pub(crate) fn clean(&self) {
        let Ok(entries) = fs::read_dir(&self.parent) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            if name.starts_with(self.prefix.as_encoded_bytes()) && (name.ends_with(b".new") || name.ends_with(b".old"))
            {
                log::info!("removing {}, which was left half-written", entry.path().display());
                if let Err(why) = remove(&entry.path()) {
                    log::warn!("{} cannot be removed: {why}", entry.path().display());
                }
            }
        }
    }

    /// What was put in place in this boot: the record, if it is about the directory that is there.
    pub(crate) fn existing(&self) -> Option<Placed> {
        let directory = fs::symlink_metadata(&self.target).ok().filter(fs::Metadata::is_dir)?;
        let mut record = Vec::with_capacity(RECORD_LEN + 1);
        let file = File::open(self.beside("confirm")).ok()?;
        file.take(RECORD_LEN as u64 + 1).read_to_end(&mut record).ok()?;
        let (placed, inode) = decode_record(&record).ok()?;
        (inode == directory.ino()).then_some(placed)
    }

    /// Marks the payload of this sealing as confirmed: the proof is not needed any more.
    ///
    /// # Errors
    /// [`PayloadError::Io`]; the proof is then sent once more after a restart, which does no harm.
    pub(crate) fn confirmed(&self, sealing_id: SealingId) -> Result<(), PayloadError> {
        match self.existing() {
            Some(placed) if placed.sealing_id == sealing_id => {
                let inode =
                    fs::symlink_metadata(&self.target).map_err(|why| PayloadError::io("reading payload-dir", why))?;
                self.write_record(Placed { sealing_id, proof: None, autorun: false }, inode.ino())
            }
            _ => Ok(()),
        }
    }

    /// Forgets what is recorded of the directory, so that its payload counts as none; the files stay until another one
    /// takes their place.
    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(self.beside("confirm"));
        if let Err(why) = keys::unlink(&self.target, &self.keys_dir, |_| false) {
            log::warn!("links to disk keys in {} cannot be removed: {why}", self.keys_dir.display());
        }
    }

    /// Links the disk keys of what is in place. A link that cannot be made keeps nothing else from being used.
    pub(crate) fn link_disk_keys(&self) {
        if let Err(why) = keys::link(&self.target, &self.keys_dir) {
            log::error!("disk keys cannot be linked in {}: {why}", self.keys_dir.display());
        }
    }

    /// Writes one file of the payload in place to `to`. `file` is relative, and nothing on the way to it may be a link.
    ///
    /// # Errors
    /// The system's: `NotFound` if there is no such file, `InvalidInput` if it cannot be one of a payload's.
    pub(crate) fn print(&self, file: &str, to: &mut impl io::Write) -> io::Result<()> {
        let mut directory = Directory::open(&self.target)?;
        let (directories, name) = file.rsplit_once('/').map_or((None, file), |(path, name)| (Some(path), name));
        for component in directories.into_iter().flat_map(|path| path.split('/')) {
            directory = directory.existing(component)?;
        }
        let mut file = directory.read(name)?;
        let mut buf = Zeroizing::new([0; 4096]);
        loop {
            match file.read(&mut *buf)? {
                0 => return Ok(()),
                len => to.write_all(buf.get(..len).unwrap_or_default())?,
            }
        }
    }

    /// Whether a payload may go here, and how many bytes of one.
    ///
    /// # Errors
    /// [`PayloadError::NotInMemory`], or [`PayloadError::Io`] where nothing can be said.
    pub(crate) fn room(&self) -> Result<u64, PayloadError> {
        // The nearest directory that is there decides: the rest would be made in it.
        let there = self.parent.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let (kind, free) =
            sys::file_system(there).map_err(|why| PayloadError::io("asking for the file system", why))?;
        let stays_in_memory = kind == FileSystem::Ramfs || is_noswap(there).unwrap_or(false);
        let memory = if stays_in_memory { available_memory() } else { None };
        usable(kind, stays_in_memory, free, memory)
            .ok_or_else(|| PayloadError::NotInMemory(there.display().to_string()))
    }

    /// Whether plaintext here could be written to a swap device.
    pub(crate) fn may_be_swapped(&self) -> bool {
        let swap = fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
        let is_tmpfs = sys::file_system(&self.parent).is_ok_and(|(kind, _)| kind == FileSystem::Tmpfs);
        swap && is_tmpfs && !is_noswap(&self.parent).unwrap_or(false)
    }

    /// Makes a hidden directory for a payload of `plaintext_len` bytes.
    ///
    /// # Errors
    /// [`PayloadError`]; nothing is left then.
    pub(crate) fn begin(&self, sealing_id: SealingId, plaintext_len: u64) -> Result<Incoming<'_>, PayloadError> {
        let free = self.room()?;
        if plaintext_len > free.min(limits::MAX_PAYLOAD_LEN) {
            return Err(PayloadError::NoRoom { needed: plaintext_len, free: free.min(limits::MAX_PAYLOAD_LEN) });
        }
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700).recursive(true);
        builder.create(&self.parent).map_err(|why| PayloadError::io("making the directory above payload-dir", why))?;
        if self.may_be_swapped() {
            log::warn!("{} may be swapped out: mount it with noswap, or turn swap off", self.parent.display());
        }
        let hidden = self.beside(format!("{sealing_id}.new"));
        let _ = remove(&hidden);
        builder.recursive(false);
        builder.create(&hidden).map_err(|why| PayloadError::io("making a hidden directory", why))?;
        let root = Directory::open(&hidden);
        let mut incoming = Incoming {
            home: self,
            hidden,
            sealing_id,
            left: plaintext_len,
            reader: ContainerReader::new(),
            files: None,
            placed: false,
        };
        // From here on the directory goes when `incoming` does.
        incoming.files = Some(Files {
            root: root.map_err(|why| PayloadError::io("opening the hidden directory", why))?,
            open: None,
        });
        Ok(incoming)
    }

    fn beside(&self, suffix: impl AsRef<OsStr>) -> PathBuf {
        let mut name = self.prefix.clone();
        name.push(suffix);
        self.parent.join(name)
    }

    /// Writes the record under another name first, so that it is there whole or not at all.
    fn write_record(&self, placed: Placed, inode: u64) -> Result<(), PayloadError> {
        let new = self.beside("confirm.new");
        let _ = remove(&new);
        let result = File::options().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
            file.write_all(&encode_record(placed, inode))?;
            fs::rename(&new, self.beside("confirm"))
        });
        result.map_err(|why| {
            let _ = remove(&new);
            PayloadError::io("recording what is in place", why)
        })
    }
}

/// A payload on its way in. Unless it is placed, everything of it is removed at the end.
pub(crate) struct Incoming<'a> {
    home: &'a PayloadDir,
    hidden: PathBuf,
    sealing_id: SealingId,
    /// Plaintext bytes that may still come.
    left: u64,
    reader: ContainerReader,
    files: Option<Files>,
    placed: bool,
}

impl Incoming<'_> {
    /// Takes the next plaintext.
    ///
    /// # Errors
    /// [`PayloadError`]; nothing more can be written then.
    pub(crate) fn write(&mut self, plaintext: &[u8]) -> Result<(), PayloadError> {
        let files = self.files.as_mut().ok_or(ContainerError::Closed)?;
        self.left = self.left.checked_sub(plaintext.len() as u64).ok_or(PayloadError::TooLong)?;
        self.reader.push(plaintext, files).map_err(|why| match why {
            UnpackError::Container(why) => PayloadError::Refused(why),
            UnpackError::Sink(why) => why,
        })
    }

    /// Puts the complete payload in place of what was there, its record first.
    ///
    /// # Errors
    /// [`PayloadError`]; what was in place before is then still there.
    pub(crate) fn place(mut self, proof: &[u8; 32], autorun: bool) -> Result<(), PayloadError> {
        self.files = None;
        std::mem::replace(&mut self.reader, ContainerReader::new()).finish()?;
        let inode =
            fs::symlink_metadata(&self.hidden).map_err(|why| PayloadError::io("reading what was unpacked", why))?;
        let placed = Placed { sealing_id: self.sealing_id, proof: Some(*proof), autorun };
        self.home.write_record(placed, inode.ino())?;
        swap_in(&self.hidden, &self.home.target, &self.home.beside("old"))
            .map_err(|why| PayloadError::io("renaming the payload into place", why))?;
        // What is under the hidden name now is what was in place before, if anything.
        self.placed = true;
        self.home.link_disk_keys();
        if let Err(why) = remove(&self.hidden) {
            log::warn!("the payload before this one cannot be removed: {why}");
        }
        Ok(())
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        self.files = None;
        if !self.placed
            && let Err(why) = remove(&self.hidden)
        {
            log::warn!("{} cannot be removed: {why}", self.hidden.display());
        }
    }
}

/// Renames `new` to `target`; what was there is then called `new`, or is gone.
fn swap_in(new: &Path, target: &Path, aside: &Path) -> io::Result<()> {
    let is_there = fs::symlink_metadata(target).is_ok();
    let result = if is_there { sys::rename_exchange(new, target) } else { sys::rename_new(new, target) };
    match result {
        // Not every file system, on every kernel, can do it in one step.
        Err(why) if why.kind() == io::ErrorKind::InvalidInput => {
            if is_there {
                let _ = remove(aside);
                fs::rename(target, aside)?;
            }
            fs::rename(new, target).inspect_err(|_| {
                let _ = fs::rename(aside, target);
            })?;
            remove(aside)
        }
        other => other,
    }
}

/// Removes whatever has this name, without following a link. Nothing there is no error.
fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(why) => Err(why),
    };
    match result {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

/// Makes the files of a container below a directory, none through a link, none that was there before.
struct Files {
    root: Directory,
    open: Option<File>,
}

impl Sink for Files {
    type Error = PayloadError;

    fn file(&mut self, path: &str, executable: bool, _: u64) -> Result<(), PayloadError> {
        let (directories, name) = match path.rsplit_once('/') {
            Some((directories, name)) => (Some(directories), name),
            None => (None, path),
        };
        let mode = if executable { 0o700 } else { 0o600 };
        let make = || {
            let mut entered: Option<Directory> = None;
            for component in directories.into_iter().flat_map(|path| path.split('/')) {
                entered = Some(entered.as_ref().unwrap_or(&self.root).enter(component)?);
            }
            entered.as_ref().unwrap_or(&self.root).create(name, mode)
        };
        match make() {
            Ok(file) => {
                self.open = Some(file);
                Ok(())
            }
            Err(why) if matches!(why.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
                Err(PayloadError::Path)
            }
            Err(why) => Err(PayloadError::io("making a file of the payload", why)),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), PayloadError> {
        let file = self.open.as_mut().ok_or(ContainerError::Closed)?;
        file.write_all(bytes).map_err(|why| PayloadError::io("writing a file of the payload", why))
    }

    fn end_file(&mut self) -> Result<(), PayloadError> {
        self.open = None;
        Ok(())
    }
}

fn encode_record(placed: Placed, inode: u64) -> Vec<u8> {
    let mut record = Vec::with_capacity(RECORD_LEN);
    record.extend_from_slice(RECORD_MAGIC);
    record.extend_from_slice(placed.sealing_id.as_bytes());
    record.extend_from_slice(&inode.to_be_bytes());
    // Autorun has no meaning but with a proof.
    record.push(match placed.proof {
        None => 0,
        Some(_) if placed.autorun => 2,
        Some(_) => 1,
    });
    record.extend_from_slice(&placed.proof.unwrap_or_default());
    record
}

fn decode_record(bytes: &[u8]) -> Result<(Placed, u64), CodecError> {
    let mut reader = Reader::new(bytes);
    if reader.array()? != *RECORD_MAGIC {
        return Err(CodecError::BadValue);
    }
    let sealing_id = SealingId(reader.array()?);
    let inode = reader.u64()?;
    let (proof, autorun) = match (reader.u8()?, reader.array()?) {
        (0, _) => (None, false),
        (state @ (1 | 2), proof) => (Some(proof), state == 2),
        _ => return Err(CodecError::BadValue),
    };
    reader.finish()?;
    Ok((Placed { sealing_id, proof, autorun }, inode))
}

/// How many bytes of plaintext a file system can take; `None` if it is not one in memory. What is kept from swap has to
/// fit the memory that is available, whatever limit its file system has.
fn usable(kind: FileSystem, stays_in_memory: bool, free: u64, memory: Option<u64>) -> Option<u64> {
    let memory = memory.map(|memory| memory.saturating_sub(MEMORY_MARGIN));
    match kind {
        FileSystem::Tmpfs if stays_in_memory => Some(memory.map_or(free, |memory| memory.min(free))),
        FileSystem::Tmpfs => Some(free),
        FileSystem::Ramfs => Some(memory.unwrap_or(0)),
        FileSystem::Other(_) => None,
    }
}

/// Memory that can be had without swapping, in bytes.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether the mount that holds `path` has the option `noswap`.
fn is_noswap(path: &Path) -> Option<bool> {
    let path = fs::canonicalize(path).ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    // Device, mount point, type, options; the last mount on the longest point is the one that counts.
    let mut best = (0, false);
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(_), Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if path.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), options.split(',').any(|option| option == "noswap"));
        }
    }
    Some(best.1)
}

#[cfg(test)]
mod tests;
