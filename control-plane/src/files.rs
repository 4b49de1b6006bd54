//! Files of secrets and settings: read only when nobody else can, written whole or not at all.
//!
//! What the files mean is the business of [`config`](crate::config) and [`init`](crate::init).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Bytes of the largest key, certificate or settings file that is read: bundles of certificates stay far below.
pub const MAX_FILE_LEN: u64 = 256 * 1024;
/// Permissions of a secret: its owner's alone.
pub const SECRET_MODE: u32 = 0o600;
/// Permissions of what anybody may read.
pub const PUBLIC_MODE: u32 = 0o644;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum FileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} holds a secret and others may read it (mode {mode:04o}); run: chmod 600 {path}")]
    TooOpen { path: PathBuf, mode: u32 },
    #[error("{path} is longer than {MAX_FILE_LEN} bytes, which no such file is")]
    TooLong { path: PathBuf },
    #[error("{path} is not text (UTF-8)")]
    NotText { path: PathBuf },
}

impl FileError {
    /// Whether the file is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file of at most [`MAX_FILE_LEN`] bytes.
///
/// # Errors
/// [`FileError::Io`], [`FileError::TooLong`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(|source| at(path, source))?;
    read_open(path, file).map(|mut bytes| std::mem::take(&mut *bytes))
}

/// Reads a text file of at most [`MAX_FILE_LEN`] bytes.
///
/// # Errors
/// As [`read`], and [`FileError::NotText`].
pub fn read_text(path: &Path) -> Result<String, FileError> {
    String::from_utf8(read(path)?).map_err(|_| FileError::NotText { path: path.into() })
}

/// Reads a secret text file; refuses one that group or others can read, write or execute.
///
/// # Errors
/// As [`read_text`], and [`FileError::TooOpen`].
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let file = File::open(path).map_err(|source| at(path, source))?;
    // Of the file that is open, not of whatever the path names a moment later.
    let mode = file.metadata().map_err(|source| at(path, source))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::TooOpen { path: path.into(), mode });
    }
    let bytes = read_open(path, file)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::NotText { path: path.into() })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Makes a directory and its parents, for its owner alone; one that is there stays as it is.
///
/// # Errors
/// [`FileError::Io`].
pub fn make_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| at(path, source))
}

/// Writes files so that each is there whole or not at all: all under temporary names first, then renamed in order.
/// Nothing is renamed unless everything could be written. A file that exists is replaced.
///
/// # Errors
/// [`FileError::Io`]; the temporary files are gone then.
pub fn write_all(dir: &Path, files: &[(&str, u32, &[u8])]) -> Result<(), FileError> {
    let temporary = |name: &str| dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        for (name, mode, bytes) in files {
            let path = temporary(name);
            write_synced(&path, *mode, bytes).map_err(|source| at(&path, source))?;
        }
        for (name, ..) in files {
            let path = dir.join(name);
            fs::rename(temporary(name), &path).map_err(|source| at(&path, source))?;
        }
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| at(dir, source))
    })();
    if written.is_err() {
        for (name, ..) in files {
            // Some were never made or are renamed already: there is nothing to do about either.
            let _ = fs::remove_file(temporary(name));
        }
    }
    written
}

fn write_synced(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    // A left-over of a program that died under this process id; `create_new` must not follow it.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn read_open(path: &Path, file: File) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let len = file.metadata().map_err(|source| at(path, source))?.len();
    if len > MAX_FILE_LEN {
        return Err(FileError::TooLong { path: path.into() });
    }
    // Room for all of it at once: growing would leave copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(len).unwrap_or(0).saturating_add(1)));
    file.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes).map_err(|source| at(path, source))?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        return Err(FileError::TooLong { path: path.into() });
    }
    Ok(bytes)
}

fn at(path: &Path, source: io::Error) -> FileError {
    FileError::Io { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_that_others_may_read_is_refused_and_chmod_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), &[("key", PUBLIC_MODE, b"s3cret")]).unwrap();
        let path = dir.path().join("key");
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && error.contains("0644"), "{error}");
        assert!(!error.contains("s3cret"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*read_secret(&path).unwrap(), "s3cret");
    }

    #[test]
    fn when_one_file_cannot_be_written_none_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), &[("a", SECRET_MODE, b"before")]).unwrap();
        let error = write_all(dir.path(), &[("a", SECRET_MODE, b"after"), ("no/such/dir", SECRET_MODE, b"x")]);
        assert!(error.is_err());
        assert_eq!(read(&dir.path().join("a")).unwrap(), b"before");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        File::create(&path).unwrap().set_len(MAX_FILE_LEN + 1).unwrap();
        assert!(matches!(read(&path), Err(FileError::TooLong { .. })));
    }
}
