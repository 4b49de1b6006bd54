//! What a root file system holds, file by file: a directory tree or an initrd, hashed for a policy.
//!
//! Everything read here may have been made by an attacker: names, sizes and compressed streams are bounded, links lead
//! nowhere outside. Whether what is found is good is for whoever names the tree.

pub mod cpio;
pub mod initrd;
mod pool;
pub mod tree;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;

use protocol::tpm::alg::HashAlg;
use ring::digest;
use serde::Serialize;

/// Files that are hashed at most; beyond that it is no root file system.
pub const MAX_FILES: usize = 2_000_000;
/// Notes that are kept; what comes after is only counted.
pub const MAX_NOTES: usize = 10_000;
/// Bytes read at once.
const CHUNK_LEN: usize = 1024 * 1024;

/// Why a tree or an initrd could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum RootfsError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("there are more than {MAX_FILES} files in it")]
    TooManyFiles,
    #[error("at byte {offset}: {problem}")]
    Initrd { offset: u64, problem: String },
}

/// What is wanted of a root file system.
pub struct Options<'a> {
    /// The algorithm: the one that the nodes' IMA lists use.
    pub alg: HashAlg,
    /// Only what can be executed or loaded: files with an execute bit, ELF files and kernel modules.
    pub executable_only: bool,
    /// Do not descend into other file systems.
    pub one_file_system: bool,
    /// Whether a path, from `/` on, is left out.
    pub is_excluded: &'a (dyn Fn(&[u8]) -> bool + Sync),
    /// Is told how far it is.
    pub progress: &'a dyn Progress,
}

/// Is told how far reading is.
pub trait Progress: Sync {
    /// How much there will be; files only where that is known.
    fn expect(&self, bytes: u64, files: Option<u64>);
    /// So many bytes more are done.
    fn bytes(&self, count: u64);
    /// One file more is done.
    fn file(&self);
    /// Whether anybody looks: if not, nothing is counted beforehand.
    fn is_watched(&self) -> bool;
}

/// Nobody looks.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn expect(&self, _: u64, _: Option<u64>) {}
    fn bytes(&self, _: u64) {}
    fn file(&self) {}
    fn is_watched(&self) -> bool {
        false
    }
}

/// Something that is not in the policy and perhaps should be.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Note {
    /// A short stable name of the kind of thing.
    pub code: &'static str,
    /// The path; bytes that are no UTF-8 or move a cursor are escaped.
    pub path: String,
    /// For a person.
    pub message: String,
}

/// What was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// Digests by path, from `/` on.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Bytes hashed.
    pub bytes: u64,
    /// Files left out because they were excluded.
    pub excluded: u64,
    /// Files left out because nothing executes them.
    pub not_executable: u64,
    /// Directories left out because they are another file system's.
    pub other_file_systems: u64,
    /// What could not be carried over.
    pub notes: Vec<Note>,
    /// Notes beyond [`MAX_NOTES`].
    pub notes_left_out: usize,
}

impl Found {
    fn note(&mut self, code: &'static str, path: &[u8], message: impl Into<String>) {
        if self.notes.len() >= MAX_NOTES {
            self.notes_left_out += 1;
            return;
        }
        self.notes.push(Note { code, path: shown(path), message: message.into() });
    }

    /// Adds a file, unless its path cannot stand in a policy.
    fn add(&mut self, path: &[u8], digest: Vec<u8>) {
        match std::str::from_utf8(path) {
            Ok(path) => {
                self.files.insert(path.to_owned(), digest);
            }
            Err(_) => {
                self.note("path_not_text", path, "the name is not UTF-8, which policies are written in; left out")
            }
        }
    }
}

/// A path fit for a line.
fn shown(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        text.extend(chunk.valid().chars().flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        }));
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// Whether something executes or loads such a file: it has an execute bit, is ELF, or is named like a kernel module.
fn is_executable(mode: u32, path: &[u8], start: &[u8]) -> bool {
    let ends = |suffix: &&[u8]| path.ends_with(suffix);
    mode & 0o111 != 0
        || start.starts_with(b"\x7fELF")
        || [b".ko".as_slice(), b".ko.xz", b".ko.zst", b".ko.gz"].iter().any(ends)
}

/// Hashing of one file.
struct Hasher(digest::Context);

impl Hasher {
    fn new(alg: HashAlg) -> Self {
        Self(digest::Context::new(match alg {
            HashAlg::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            HashAlg::Sha256 => &digest::SHA256,
            HashAlg::Sha384 => &digest::SHA384,
            HashAlg::Sha512 => &digest::SHA512,
        }))
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Everything that a reader has.
    fn read(&mut self, reader: &mut impl Read, buffer: &mut [u8], progress: &dyn Progress) -> io::Result<u64> {
        let mut len = 0;
        loop {
            let read = match reader.read(buffer) {
                Ok(0) => return Ok(len),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.update(buffer.get(..read).unwrap_or_default());
            len += read as u64;
            progress.bytes(read as u64);
        }
    }

    fn finish(self) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}
