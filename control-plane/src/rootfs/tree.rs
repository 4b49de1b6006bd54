//! A directory tree, walked without following a link: every step is relative to a directory that is open already, so
//! that nothing which changes meanwhile leads out of the tree.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};

use super::{Found, Hasher, MAX_FILES, Options, RootfsError, is_executable, pool};

/// Directories within directories: as many as paths have room for.
const MAX_DEPTH: usize = 256;
/// Bytes of a path that the kernel reports (PATH_MAX).
const MAX_PATH_LEN: usize = 4096;

/// A file to hash.
struct Job {
    path: Vec<u8>,
    file: File,
    mode: u32,
}

/// What became of it.
enum Answer {
    Hashed { path: Vec<u8>, digest: Vec<u8>, len: u64 },
    NotExecutable,
    Unreadable { path: Vec<u8>, error: io::Error },
}

/// Hashes every regular file below a directory.
///
/// Links, devices, sockets and pipes are not files. A file that cannot be read is named in the notes: a policy without
/// it refuses nodes that run it, so nothing is let through by it.
///
/// # Errors
/// [`RootfsError`] if the directory itself cannot be read.
pub fn read(root: &Path, options: &Options<'_>) -> Result<Found, RootfsError> {
    let at = |source: io::Error| RootfsError::Io { path: root.into(), source };
    let open = || fs::open(root, DIR_FLAGS, Mode::empty()).map_err(|error| at(error.into()));
    if options.progress.is_watched() {
        let (mut found, mut bytes) = (Found::default(), 0);
        let mut count = |_: &[u8], _: BorrowedFd<'_>, _: &CStr, size: u64| {
            bytes += size;
            Ok(1)
        };
        let files = Walk { options, found: &mut found, visit: &mut count, files: 0 }
            .start(&open()?)
            .map_err(|error| error.at(root))?;
        options.progress.expect(bytes, Some(files as u64));
    }
    let mut found = Found::default();
    let answers = pool::run(
        |job: Job, buffer| hash(job, buffer, options),
        |jobs: &SyncSender<Job>| {
            let mut unreadable = Vec::new();
            let mut visit = |path: &[u8], dir: BorrowedFd<'_>, name: &CStr, _: u64| {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let opened = fs::openat(dir, name, flags, Mode::empty()).and_then(|file| Ok((fs::fstat(&file)?, file)));
                match opened {
                    // It may be another one by now.
                    Ok((stat, file)) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                        pool::send(jobs, Job { path: path.to_vec(), file: File::from(file), mode: stat.st_mode })?;
                        Ok(1)
                    }
                    Ok(_) => Ok(0),
                    Err(error) => {
                        unreadable.push((path.to_vec(), io::Error::from(error)));
                        Ok(0)
                    }
                }
            };
            let walked = Walk { options, found: &mut found, visit: &mut visit, files: 0 }.start(&open()?);
            walked.map_err(|error| error.at(root))?;
            for (path, error) in unreadable {
                found.note("file_unreadable", &path, format!("{error}; left out"));
            }
            Ok(())
        },
    )?;
    for answer in answers {
        match answer {
            Answer::Hashed { path, digest, len } => {
                found.bytes += len;
                found.add(&path, digest);
            }
            Answer::NotExecutable => found.not_executable += 1,
            Answer::Unreadable { path, error } => {
                found.note("file_unreadable", &path, format!("{error}; left out"));
            }
        }
    }
    found.notes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn hash(job: Job, buffer: &mut [u8], options: &Options<'_>) -> Answer {
    let Job { path, mut file, mode } = job;
    let hashed = (|| {
        let mut hasher = Hasher::new(options.alg);
        let mut len = 0;
        if options.executable_only {
            let start = io::Read::read(&mut file, buffer)?;
            let start = buffer.get(..start).unwrap_or_default();
            if !is_executable(mode, &path, start) {
                return Ok(None);
            }
            hasher.update(start);
            len = start.len() as u64;
            options.progress.bytes(len);
        }
        len += hasher.read(&mut file, buffer, options.progress)?;
        Ok(Some((hasher.finish(), len)))
    })();
    options.progress.file();
    match hashed {
        Ok(Some((digest, len))) => Answer::Hashed { path, digest, len },
        Ok(None) => Answer::NotExecutable,
        Err(error) => Answer::Unreadable { path, error },
    }
}

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

enum WalkError {
    Io(PathBuf, io::Error),
    TooManyFiles,
}

impl WalkError {
    fn at(self, root: &Path) -> RootfsError {
        match self {
            Self::Io(path, source) => RootfsError::Io { path: root.join(path), source },
            Self::TooManyFiles => RootfsError::TooManyFiles,
        }
    }
}

impl From<RootfsError> for WalkError {
    fn from(error: RootfsError) -> Self {
        match error {
            RootfsError::Io { path, source } => Self::Io(path, source),
            _ => Self::TooManyFiles,
        }
    }
}

/// Says how many files it took; its argument are path, directory, name and size.
type Visit<'v> = dyn FnMut(&[u8], BorrowedFd<'_>, &CStr, u64) -> io::Result<usize> + 'v;

struct Walk<'w, 'o, 'v> {
    options: &'w Options<'o>,
    found: &'w mut Found,
    visit: &'w mut Visit<'v>,
    files: usize,
}

impl Walk<'_, '_, '_> {
    fn start(mut self, root: &OwnedFd) -> Result<usize, WalkError> {
        let device = fs::fstat(root).map_err(|error| WalkError::Io(PathBuf::new(), error.into()))?.st_dev;
        self.directory(root.as_fd(), b"/", device, 0)?;
        Ok(self.files)
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, path: &[u8], device: u64, depth: usize) -> Result<(), WalkError> {
        let error = |error: io::Error| {
            WalkError::Io(
                Path::new(std::ffi::OsStr::from_bytes(path)).strip_prefix("/").unwrap_or(Path::new("")).into(),
                error,
            )
        };
        let mut inner = Vec::new();
        for entry in Dir::read_from(dir).map_err(|e| error(e.into()))? {
            let entry = entry.map_err(|e| error(e.into()))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = [path, name.to_bytes()].concat();
            if path.len() > MAX_PATH_LEN {
                self.found.note("path_too_long", &path, "longer than paths that nodes report; left out");
                continue;
            }
            // Not its target: a link is neither a file nor a directory.
            let stat = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(error) => {
                    self.found.note("file_unreadable", &path, format!("{}; left out", io::Error::from(error)));
                    continue;
                }
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if self.options.one_file_system && stat.st_dev != device => {
                    self.found.other_file_systems += 1;
                }
                FileType::Directory => inner.push((name.to_owned(), path)),
                // Of files, not of directories: as the globs of a policy are judged by.
                FileType::RegularFile if (self.options.is_excluded)(&path) => self.found.excluded += 1,
                FileType::RegularFile => {
                    let size = u64::try_from(stat.st_size).unwrap_or(0);
                    self.files += (self.visit)(&path, dir, name, size).map_err(error)?;
                    if self.files > MAX_FILES {
                        return Err(WalkError::TooManyFiles);
                    }
                }
                _ => {}
            }
        }
        inner.sort();
        for (name, mut path) in inner {
            if depth >= MAX_DEPTH {
                self.found.note("too_deep", &path, "more directories within directories than are read; left out");
                continue;
            }
            path.push(b'/');
            // A directory that may not be read, or is something else by now, is named and the rest goes on.
            match fs::openat(dir, &name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(inner) => {
                    if let Err(WalkError::Io(_, error)) = self.directory(inner.as_fd(), &path, device, depth + 1) {
                        if error.kind() == io::ErrorKind::BrokenPipe {
                            return Err(WalkError::Io(PathBuf::new(), error));
                        }
                        self.found.note("file_unreadable", &path, format!("{error}; left out"));
                    }
                    if self.files > MAX_FILES {
                        return Err(WalkError::TooManyFiles);
                    }
                }
                Err(error) => {
                    self.found.note("file_unreadable", &path, format!("{}; left out", io::Error::from(error)));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicU64, Ordering};

    use protocol::tpm::alg::HashAlg;

    use super::super::{Progress, Unwatched};
    use super::*;

    fn options<'a>(is_excluded: &'a (dyn Fn(&[u8]) -> bool + Sync), progress: &'a dyn Progress) -> Options<'a> {
        Options { alg: HashAlg::Sha256, executable_only: false, one_file_system: false, is_excluded, progress }
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("usr/bin")).unwrap();
        std::fs::create_dir_all(path("usr/lib")).unwrap();
        std::fs::create_dir_all(path("etc")).unwrap();
        std::fs::write(path("usr/bin/sh"), b"#!").unwrap();
        std::fs::set_permissions(path("usr/bin/sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(path("usr/lib/libc.so"), b"\x7fELF and more").unwrap();
        std::fs::write(path("usr/lib/loop.ko.zst"), b"module").unwrap();
        std::fs::write(path("etc/pass\nwd"), b"text").unwrap();
        std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"etc/\xff")), b"x").unwrap();
        symlink("usr/bin", path("bin")).unwrap();
        symlink("/etc/passwd", path("etc/link")).unwrap();
        symlink("/", path("root")).unwrap();
        dir
    }

    #[test]
    fn regular_files_are_hashed_and_links_are_not_followed() {
        let dir = tree();
        let found = read(dir.path(), &options(&|_| false, &Unwatched)).unwrap();
        let paths: Vec<&str> = found.files.keys().map(String::as_str).collect();
        assert_eq!(paths, ["/etc/pass\nwd", "/usr/bin/sh", "/usr/lib/libc.so", "/usr/lib/loop.ko.zst"]);
        assert_eq!(found.files["/usr/bin/sh"], HashAlg::Sha256.digest(&[b"#!"]).as_bytes());
        let notes: Vec<_> = found.notes.iter().map(|note| (note.code, note.path.as_str())).collect();
        assert_eq!(notes, [("path_not_text", "/etc/\\xff")]);
        assert_eq!(found.bytes, 2 + 13 + 6 + 4 + 1);
    }

    #[test]
    fn what_nothing_executes_is_left_out_where_only_executables_are_wanted() {
        let dir = tree();
        let options = Options { executable_only: true, alg: HashAlg::Sha512, ..options(&|_| false, &Unwatched) };
        let found = read(dir.path(), &options).unwrap();
        let paths: Vec<&str> = found.files.keys().map(String::as_str).collect();
        assert_eq!(paths, ["/usr/bin/sh", "/usr/lib/libc.so", "/usr/lib/loop.ko.zst"]);
        assert_eq!(found.files["/usr/lib/libc.so"], HashAlg::Sha512.digest(&[b"\x7fELF and more"]).as_bytes());
        assert_eq!(found.not_executable, 2);
    }

    #[test]
    fn excluded_files_are_left_out_and_counted() {
        let dir = tree();
        let found = read(dir.path(), &options(&|path| path.starts_with(b"/usr/"), &Unwatched)).unwrap();
        assert_eq!(found.files.keys().map(String::as_str).collect::<Vec<_>>(), ["/etc/pass\nwd"]);
        assert_eq!(found.excluded, 3);
        // The root is a file system of its own here: nothing else is left out.
        let one = Options { one_file_system: true, ..options(&|_| false, &Unwatched) };
        let found = read(dir.path(), &one).unwrap();
        assert_eq!((found.files.len(), found.other_file_systems), (4, 0));
    }

    #[derive(Default)]
    struct Counting {
        expected: AtomicU64,
        bytes: AtomicU64,
        files: AtomicU64,
    }

    impl Progress for Counting {
        fn expect(&self, bytes: u64, files: Option<u64>) {
            self.expected.store(bytes * 100 + files.unwrap_or(0), Ordering::Relaxed);
        }
        fn bytes(&self, count: u64) {
            self.bytes.fetch_add(count, Ordering::Relaxed);
        }
        fn file(&self) {
            self.files.fetch_add(1, Ordering::Relaxed);
        }
        fn is_watched(&self) -> bool {
            true
        }
    }

    #[test]
    fn progress_reaches_what_was_expected() {
        let dir = tree();
        let counting = Counting::default();
        read(dir.path(), &options(&|_| false, &counting)).unwrap();
        let (bytes, files) = (counting.bytes.load(Ordering::Relaxed), counting.files.load(Ordering::Relaxed));
        assert_eq!((bytes, files), (26, 5));
        assert_eq!(counting.expected.load(Ordering::Relaxed), bytes * 100 + files);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = read(Path::new("/no/such/tree"), &options(&|_| false, &Unwatched)).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/tree: "), "{error}");
    }
}
