//! The few calls into the system that the standard library has no name for. All `unsafe` of the program is here.
#![expect(unsafe_code, reason = "system calls without a wrapper in the standard library")]

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::{Duration, Instant},
};

/// What kind of file system a path is on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FileSystem {
    /// In memory, may be swapped out unless mounted with `noswap`.
    Tmpfs,
    /// In memory, never swapped out, and without a size limit.
    Ramfs,
    /// Anything else, by its magic number.
    Other(u64),
}

/// A file system's kind, and its free space in bytes (meaningless for ramfs, which has no limit).
pub(crate) fn file_system(path: &Path) -> io::Result<(FileSystem, u64)> {
    let path = c_path(path)?;
    // SAFETY: `statfs` is plain integers, for which zero is a value; it is a buffer to be filled.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a NUL-terminated string and the buffer is one `statfs`; both live through the call.
    check(unsafe { libc::statfs(path.as_ptr(), &raw mut stat) })?;
    let (magic, free) = (stat.f_type as u64, (stat.f_bavail as u64).saturating_mul(stat.f_bsize as u64));
    let kind = match magic {
        0x0102_1994 => FileSystem::Tmpfs,
        0x8584_58f6 => FileSystem::Ramfs,
        other => FileSystem::Other(other),
    };
    Ok((kind, free))
}

/// Where the kernel's random bytes come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RandomFlags {
    /// The pool, and `WouldBlock` while it is not initialised.
    NonBlocking,
    /// Whatever the pool holds, initialised or not: for jitter and as one input of several. Linux 5.6.
    Insecure,
}

/// Fills `buf`, at most 256 bytes, which the kernel delivers whole or not at all.
pub(crate) fn random(buf: &mut [u8], flags: RandomFlags) -> io::Result<()> {
    let flags = match flags {
        RandomFlags::NonBlocking => libc::GRND_NONBLOCK,
        RandomFlags::Insecure => 0x0004,
    };
    // SAFETY: the pointer and the length are those of one exclusive slice.
    let got = unsafe { libc::getrandom(buf.as_mut_ptr().cast(), buf.len(), flags) };
    match usize::try_from(got) {
        Ok(got) if got == buf.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel end this process when its parent is gone.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })
}

/// Keeps this process's memory out of core dumps and away from other processes of the same user.
pub(crate) fn hide_memory() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one integer and touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// Signals that a supervising process waits for.
const AWAITED: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];

/// Holds these signals back until [`wait_signal`] takes them. Children inherit that.
pub(crate) fn hold_signals() -> io::Result<()> {
    mask_signals(libc::SIG_BLOCK)
}

/// Lets these signals through again, also those that came meanwhile.
pub(crate) fn release_signals() -> io::Result<()> {
    mask_signals(libc::SIG_UNBLOCK)
}

fn mask_signals(how: libc::c_int) -> io::Result<()> {
    let set = awaited();
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The next signal that was held back; `None` after `timeout`.
pub(crate) fn wait_signal(timeout: Option<Duration>) -> io::Result<Option<i32>> {
    let set = awaited();
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        let left = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set is initialised; information about the sender is not asked for; the time is null or points at
        // a timespec that lives through the call.
        let signal = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), left) };
        if signal > 0 {
            return Ok(Some(signal));
        }
        let why = io::Error::last_os_error();
        match why.raw_os_error() {
            Some(libc::EAGAIN) => return Ok(None),
            Some(libc::EINTR) => {}
            _ => return Err(why),
        }
    }
}

fn awaited() -> libc::sigset_t {
    // SAFETY: a signal set is plain integers, for which zero is a value, and sigemptyset initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to one exclusive set.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in AWAITED {
        // SAFETY: the set is initialised, and the numbers are those of signals.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

fn timespec(duration: Duration) -> libc::timespec {
    // SAFETY: a timespec is plain integers (with padding on some C libraries), for which zero is a value.
    let mut spec: libc::timespec = unsafe { std::mem::zeroed() };
    // No wait here is longer than a day; the fields' types differ between C libraries.
    spec.tv_sec = u32::try_from(duration.as_secs()).map_or(86_400, Into::into);
    spec.tv_nsec = duration.subsec_nanos().into();
    spec
}

/// Sends a signal to a child of ours.
pub(crate) fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: takes two integers.
    check(unsafe { libc::kill(pid, signal) })
}

/// Sends a signal to a child's process group, of which the child is the leader.
pub(crate) fn signal_group(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: takes two integers.
    check(unsafe { libc::kill(-pid, signal) })
}

/// Waits until there is something to read, or the end of it; `false` after `timeout`. `None` waits for ever.
pub(crate) fn wait_readable(fd: &impl AsFd, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        let left = deadline.map_or(-1, |deadline| {
            // Rounded up: a wait that ends early would spin.
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        // SAFETY: the pointer is to one exclusive pollfd, and its count is 1; the descriptor is open for the call.
        match unsafe { libc::poll(&raw mut poll, 1, left) } {
            0 => return Ok(false),
            1.. => return Ok(true),
            _ => {
                let why = io::Error::last_os_error();
                if why.kind() != io::ErrorKind::Interrupted {
                    return Err(why);
                }
            }
        }
    }
}

/// Swaps two names of one file system in one step.
pub(crate) fn rename_exchange(one: &Path, other: &Path) -> io::Result<()> {
    rename2(one, other, libc::RENAME_EXCHANGE)
}

/// Renames; `AlreadyExists` if the new name is taken.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    rename2(from, to, libc::RENAME_NOREPLACE)
}

fn rename2(from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    // SAFETY: both paths are NUL-terminated strings that live through the call. The raw call, since not every C library
    // has a function for it.
    match unsafe {
        libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An open directory, below which names are looked up one component at a time and never through a link.
#[derive(Debug)]
pub(crate) struct Directory(File);

impl Directory {
    /// Opens a directory by path. The last component may not be a link.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_at(libc::AT_FDCWD, &c_path(path)?)
    }

    /// Opens a directory in this one, making it with mode 0700 where it is missing.
    pub(crate) fn enter(&self, name: &str) -> io::Result<Self> {
        let name = c_component(name)?;
        // SAFETY: the descriptor is open, and the name is a NUL-terminated string; both live through the call.
        match check(unsafe { libc::mkdirat(self.0.as_raw_fd(), name.as_ptr(), 0o700) }) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err(why),
            _ => Self::open_at(self.0.as_raw_fd(), &name),
        }
    }

    /// Makes a file in this directory that was not there before.
    pub(crate) fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        let name = c_component(name)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the descriptor is open, and the name is a NUL-terminated string; both live through the call.
        let fd = unsafe { libc::openat(self.0.as_raw_fd(), name.as_ptr(), flags, libc::c_uint::from(mode)) };
        owned(fd)
    }

    fn open_at(at: RawFd, name: &CString) -> io::Result<Self> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the name is a NUL-terminated string that lives through the call; `at` is open, or AT_FDCWD.
        owned(unsafe { libc::openat(at, name.as_ptr(), flags) }).map(Self)
    }
}

fn owned(fd: RawFd) -> io::Result<File> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else holds it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// A name that cannot lead anywhere but into its directory.
fn c_component(name: &str) -> io::Result<CString> {
    if matches!(name, "" | "." | "..") || name.contains('/') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    CString::new(name).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The image's program aborts on a panic and never unwinds. These stand in for the C library's unwinder, which the
/// standard library names for unwinding and to print a backtrace: with them neither that unwinder nor the reader of
/// debug information is linked, a quarter of the program.
#[cfg(all(target_env = "musl", any(target_arch = "x86_64", target_arch = "aarch64"), panic = "abort", not(test)))]
mod unwinder {
    use std::ffi::{c_int, c_void};

    /// _URC_END_OF_STACK.
    const END_OF_STACK: c_int = 5;

    /// Visits no frame: a backtrace is empty.
    // SAFETY: nobody else defines this name, since the unwinder's archive is only asked for names that are missing. The
    // callback is not called, and nothing is dereferenced.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Backtrace(_: *const c_void, _: *mut c_void) -> c_int {
        END_OF_STACK
    }

    macro_rules! never_called {
        ($($name:ident)+) => {
            $(
                // SAFETY: nobody else defines this name, as above. It is called while a frame is unwound, which does
                // not happen; were it called, the process would end here.
                #[unsafe(no_mangle)]
                extern "C" fn $name() -> ! {
                    std::process::abort()
                }
            )+
        };
    }

    never_called! {
        _Unwind_GetDataRelBase _Unwind_GetIP _Unwind_GetIPInfo _Unwind_GetLanguageSpecificData _Unwind_GetRegionStart
        _Unwind_GetTextRelBase _Unwind_Resume _Unwind_SetGR _Unwind_SetIP
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn proc_is_neither_tmpfs_nor_ramfs() {
        assert_eq!(file_system(Path::new("/proc")).unwrap().0, FileSystem::Other(0x9fa0));
    }

    #[test]
    fn random_bytes_are_not_zero() {
        for flags in [RandomFlags::NonBlocking, RandomFlags::Insecure] {
            let mut bytes = [0; 32];
            random(&mut bytes, flags).unwrap();
            assert_ne!(bytes, [0; 32]);
        }
    }

    #[test]
    fn directory_follows_no_link_and_climbs_nowhere() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("in")).unwrap();
        symlink(scratch.path(), scratch.path().join("in/link")).unwrap();
        symlink(scratch.path().join("stolen"), scratch.path().join("in/file")).unwrap();
        let directory = Directory::open(&scratch.path().join("in")).unwrap();
        assert!(directory.enter("link").is_err());
        assert_eq!(directory.create("file", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        for name in ["..", ".", "", "a/b", "nul\0"] {
            assert_eq!(directory.create(name, 0o600).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert!(!scratch.path().join("stolen").exists());
        directory.enter("sub").unwrap().create("file", 0o600).unwrap();
        assert!(scratch.path().join("in/sub/file").exists());
    }

    #[test]
    fn rename_new_keeps_what_is_there() {
        let scratch = tempfile::tempdir().unwrap();
        let (one, other) = (scratch.path().join("one"), scratch.path().join("other"));
        fs::write(&one, "1").unwrap();
        fs::write(&other, "2").unwrap();
        assert_eq!(rename_new(&one, &other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        rename_exchange(&one, &other).unwrap();
        assert_eq!((fs::read(&one).unwrap(), fs::read(&other).unwrap()), (b"2".to_vec(), b"1".to_vec()));
    }

    #[test]
    fn wait_readable_ends_at_its_timeout() {
        let (one, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!wait_readable(&one, Some(Duration::from_millis(5))).unwrap());
        io::Write::write_all(&mut other, b"x").unwrap();
        assert!(wait_readable(&one, None).unwrap());
    }
}
