//! The few calls into the system that the standard library has no name for. All `unsafe` of the program is here.
#![expect(unsafe_code, reason = "system calls without a wrapper in the standard library")]

use std::{
    ffi::CString,
    fs::File,
    io,
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
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
    control(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
}

/// Keeps this process's memory out of core dumps and away from other processes of the same user.
pub(crate) fn hide_memory() -> io::Result<()> {
    control(libc::PR_SET_DUMPABLE, 0)
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

/// A descriptor that is readable while one of the signals that are held back waits for [`wait_signal`].
pub(crate) fn signals() -> io::Result<File> {
    let set = awaited();
    // SAFETY: the set is initialised, and -1 asks for a new descriptor.
    owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
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
    poll_in(&mut [poll_entry(fd)], timeout)
}

/// As [`wait_readable`], for any of those there are of three.
pub(crate) fn wait_readable_any(fds: [Option<BorrowedFd<'_>>; 3], timeout: Option<Duration>) -> io::Result<bool> {
    // The kernel passes over those that are negative.
    let none = libc::pollfd { fd: -1, events: 0, revents: 0 };
    poll_in(&mut fds.map(|fd| fd.as_ref().map_or(none, poll_entry)), timeout)
}

fn poll_entry(fd: &impl AsFd) -> libc::pollfd {
    libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

fn poll_in(entries: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let count = entries.len() as libc::nfds_t; // a few
    loop {
        let left = deadline.map_or(-1, |deadline| {
            // Rounded up: a wait that ends early would spin.
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        // SAFETY: pointer and count are those of one exclusive slice; its descriptors are open for the call.
        match unsafe { libc::poll(entries.as_mut_ptr(), count, left) } {
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

    /// Opens a directory in this one that is there.
    pub(crate) fn existing(&self, name: &str) -> io::Result<Self> {
        Self::open_at(self.0.as_raw_fd(), &c_component(name)?)
    }

    /// Opens a plain file in this directory for reading.
    pub(crate) fn read(&self, name: &str) -> io::Result<File> {
        let name = c_component(name)?;
        // Not blocking: whoever named a pipe like this would have us wait for its other end.
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        // SAFETY: the descriptor is open, and the name is a NUL-terminated string; both live through the call.
        let file = owned(unsafe { libc::openat(self.0.as_raw_fd(), name.as_ptr(), flags) })?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
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

/// Begins a TCP connection without waiting for it: [`wait_any`] says when it can be written to, or has failed, and
/// `take_error` which of the two. `segment` is the longest segment, in bytes, that either end is to send.
pub(crate) fn connect_start(address: &SocketAddr, segment: u16) -> io::Result<TcpStream> {
    let (family, storage, len) = socket_address(address);
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes three integers.
    let stream = TcpStream::from(OwnedFd::from(owned(unsafe { libc::socket(family, kind, 0) })?));
    set_tcp(&stream, libc::TCP_MAXSEG, segment.into())?;
    // SAFETY: the pointer and the length are those of one initialised address, which lives through the call; the
    // descriptor is open.
    let result = check(unsafe { libc::connect(stream.as_raw_fd(), (&raw const storage).cast(), len) });
    match result {
        Err(why) if why.raw_os_error() != Some(libc::EINPROGRESS) => Err(why),
        _ => Ok(stream),
    }
}

/// For a connection of few packets on a network that loses them: sends again at an even pace, not at half the pace each
/// time, and gives up when the peer has not acknowledged for so long. The kernel's own patience is a quarter of an hour.
pub(crate) fn set_perseverance(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    set_tcp(stream, libc::TCP_THIN_LINEAR_TIMEOUTS, 1)?;
    set_tcp(stream, libc::TCP_USER_TIMEOUT, libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX))
}

fn set_tcp(stream: &TcpStream, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer and the length are those of one integer that lives through the call; the descriptor is open.
    check(unsafe { libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), len) })
}

/// Waits until one of the connections that were begun is made or has failed, and gives its place; `None` after
/// `timeout`, and where there are none. Looks at the first [`MAX_WAITED`].
pub(crate) fn wait_any<'s>(
    streams: impl Iterator<Item = &'s TcpStream>,
    timeout: Duration,
) -> io::Result<Option<usize>> {
    let mut polls = [libc::pollfd { fd: -1, events: libc::POLLOUT, revents: 0 }; MAX_WAITED];
    for (poll, stream) in polls.iter_mut().zip(streams) {
        poll.fd = stream.as_raw_fd();
    }
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: the pointer and the count are those of one exclusive array; the descriptors are open for the call, and
        // the kernel passes over those that are negative.
        match unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, left) } {
            0 => return Ok(None),
            1.. => return Ok(polls.iter().position(|poll| poll.revents != 0)),
            _ => {
                let why = io::Error::last_os_error();
                if why.kind() != io::ErrorKind::Interrupted {
                    return Err(why);
                }
            }
        }
    }
}

/// Connections that [`wait_any`] can wait for together.
pub(crate) const MAX_WAITED: usize = 8;

/// An address as the kernel takes it: family, bytes, and how many of them count.
fn socket_address(address: &SocketAddr) -> (libc::c_int, libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: a socket address is plain integers, for which zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let (family, len) = match address {
        SocketAddr::V4(v4) => {
            let at = (&raw mut storage).cast::<libc::sockaddr_in>();
            // SAFETY: the storage is large enough and aligned for an address of any family, and exclusive.
            let at = unsafe { &mut *at };
            at.sin_family = libc::AF_INET as libc::sa_family_t;
            at.sin_port = v4.port().to_be();
            at.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            (libc::AF_INET, size_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(v6) => {
            let at = (&raw mut storage).cast::<libc::sockaddr_in6>();
            // SAFETY: as above.
            let at = unsafe { &mut *at };
            at.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            at.sin6_port = v6.port().to_be();
            at.sin6_addr.s6_addr = v6.ip().octets();
            at.sin6_flowinfo = v6.flowinfo();
            at.sin6_scope_id = v6.scope_id();
            (libc::AF_INET6, size_of::<libc::sockaddr_in6>())
        }
    };
    (family, storage, len as libc::socklen_t)
}

/// Takes away, for this process and all it starts, every way to gain privileges by running a program.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    control(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// A prctl whose arguments are integers, all but the first zero.
fn control(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: the options that are passed here take integers and touch no memory of ours.
    check(unsafe { libc::prctl(option, argument, none, none, none) })
}

/// What this process and all it starts may leave in core files: nothing.
pub(crate) fn forbid_core_files() -> io::Result<()> {
    limit(libc::RLIMIT_CORE, 0)
}

/// The type of a limit's number differs between C libraries.
#[cfg(target_env = "gnu")]
type Limit = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Limit = libc::c_int;

fn limit(what: Limit, most: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the limit is initialised and lives through the call.
    check(unsafe { libc::setrlimit(what, &raw const limit) })
}

/// Keeps what this process has in memory, and will have, from being written to a swap device: each page from its first
/// use on. `room` is what its address space may come to altogether, in bytes: behind a lower limit memory would later be
/// refused, and the process die of it.
///
/// # Errors
/// The system's; `OutOfMemory` where it allows less than `room`, for memory could then not be had later.
pub(crate) fn lock_memory(room: u64) -> io::Result<()> {
    if limit(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY).is_err() {
        let mut allowed = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to one exclusive limit.
        check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut allowed) })?;
        if allowed.rlim_max < room {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        limit(libc::RLIMIT_MEMLOCK, allowed.rlim_max)?;
    }
    // SAFETY: takes one integer; it changes what the kernel does with our pages, not what is in them.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })
}

/// CAP_DAC_OVERRIDE, as a set.
pub(crate) const CAP_DAC_OVERRIDE: u64 = 1 << 1;
/// CAP_SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_BOOT, MAC_OVERRIDE, MAC_ADMIN, PERFMON and BPF: what changes the kernel, or
/// looks into other processes.
const KERNEL_CAPABILITIES: u64 = 1 << 16 | 1 << 17 | 1 << 19 | 1 << 22 | 1 << 32 | 1 << 33 | 1 << 38 | 1 << 39;
/// More than any kernel has.
const CAPABILITIES: u32 = 63;
/// NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, KEEP_CAPS off, and all four locked.
const SECURE_BITS: libc::c_ulong = 0b1110_1111;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all capabilities but those of `keep`, in every set, and root's right to gain them by running a program.
/// The user stays who it is.
pub(crate) fn drop_capabilities(keep: u64) -> io::Result<()> {
    bound_capabilities(!keep)?;
    // The ambient set needs no clearing: it holds nothing that is not in the permitted set. Without CAP_SETPCAP the bits
    // are refused, and then there is no root whose rights they would end.
    _ = control(libc::PR_SET_SECUREBITS, SECURE_BITS);
    let mut header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let mut sets = [CapabilitySets { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: header and two sets, as version 3 has them, are exclusive and live through the call.
    check_long(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    for (set, keep) in sets.iter_mut().zip([keep as u32, (keep >> 32) as u32]) {
        let left = set.permitted & keep;
        *set = CapabilitySets { effective: left, permitted: left, inheritable: 0 };
    }
    // SAFETY: as above; the kernel only reads.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) })
}

/// Takes capabilities out of the set that bounds what a program may be given. Allocates nothing.
fn bound_capabilities(gone: u64) -> io::Result<()> {
    for capability in (0..CAPABILITIES).filter(|capability| gone >> capability & 1 == 1) {
        match control(libc::PR_CAPBSET_DROP, capability.into()) {
            // Behind the last that this kernel has.
            Err(why) if why.raw_os_error() == Some(libc::EINVAL) => break,
            // Without CAP_SETPCAP: nobody to be bounded.
            Err(why) if why.raw_os_error() == Some(libc::EPERM) => break,
            _ => {}
        }
    }
    Ok(())
}

/// Whether this process acts as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The effective group.
pub(crate) fn group() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getegid() }
}

/// Makes `group` the only group of this process beside its own.
pub(crate) fn only_group(group: u32) -> io::Result<()> {
    // SAFETY: the count and the pointer are those of one integer that lives through the call.
    check(unsafe { libc::setgroups(1, &raw const group) })
}

/// Has the kernel run this program over every system call of this thread from now on.
pub(crate) fn filter_system_calls(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program is one initialised array that lives through the call, in which the kernel copies it; it only
    // reads.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// Whether the kernel can filter system calls, and end a process that makes a forbidden one.
pub(crate) fn has_system_call_filter() -> io::Result<()> {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one integer that lives through the call.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) })
}

/// Which version of Landlock the kernel has in force.
///
/// # Errors
/// `ENOSYS` where it has none, `EOPNOTSUPP` where it is turned off.
pub(crate) fn landlock_version() -> io::Result<u32> {
    // SAFETY: a null attribute of size zero with the flag VERSION asks for the version only.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, 1_u32) };
    check_long(version)?;
    Ok(u32::try_from(version).unwrap_or(0))
}

/// Rules of Landlock: what is named as handled is forbidden but where a rule allows it.
#[derive(Debug)]
pub(crate) struct Ruleset(File);

#[repr(C)]
struct RulesetAttributes {
    files: u64,
    net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathRule {
    allowed: u64,
    parent: RawFd,
}

#[repr(C)]
struct PortRule {
    allowed: u64,
    port: u64,
}

impl Ruleset {
    /// Without any rule yet. The masks hold only what the kernel's version of Landlock knows.
    pub(crate) fn new(files: u64, net: u64, scoped: u64) -> io::Result<Self> {
        let attributes = RulesetAttributes { files, net, scoped };
        // SAFETY: pointer and size are those of one initialised structure that lives through the call. A kernel that knows
        // a shorter one takes it as long as the rest is zero.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attributes,
                size_of::<RulesetAttributes>(),
                0_u32,
            )
        };
        check_long(fd)?;
        owned(RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?).map(Self)
    }

    /// Allows what `allowed` names for this file, or below this directory.
    pub(crate) fn allow_path(&self, file: &File, allowed: u64) -> io::Result<()> {
        let rule = PathRule { allowed, parent: file.as_raw_fd() };
        self.add(1, (&raw const rule).cast())
    }

    /// Allows what `allowed` names for this TCP port.
    pub(crate) fn allow_port(&self, port: u16, allowed: u64) -> io::Result<()> {
        let rule = PortRule { allowed, port: port.into() };
        self.add(2, (&raw const rule).cast())
    }

    fn add(&self, kind: u32, rule: *const libc::c_void) -> io::Result<()> {
        // SAFETY: the descriptor is that of a ruleset; the rule is an initialised structure of this kind that lives through
        // the call.
        check_long(unsafe { libc::syscall(libc::SYS_landlock_add_rule, self.0.as_raw_fd(), kind, rule, 0_u32) })
    }

    /// Puts this thread, and all it starts, under the rules for good. Needs [`no_new_privileges`] first. Allocates nothing.
    pub(crate) fn restrict(&self) -> io::Result<()> {
        // SAFETY: takes two integers.
        check_long(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0_u32) })
    }
}

/// Opens a path to name it in a rule: nothing can be read or written through it. A link is opened itself.
pub(crate) fn open_path(path: &Path, follow: bool) -> io::Result<File> {
    let path = c_path(path)?;
    let flags = libc::O_PATH | libc::O_CLOEXEC | if follow { 0 } else { libc::O_NOFOLLOW };
    // SAFETY: the path is a NUL-terminated string that lives through the call.
    owned(unsafe { libc::open(path.as_ptr(), flags) })
}

/// Makes this process the parent of what its descendants leave behind.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    control(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// Takes the status of one child that has ended and is not among `known`: an adopted one. `false` if there is none, or one
/// of those known has ended and its status has to be taken first.
pub(crate) fn bury_orphan(known: &[u32]) -> bool {
    // SAFETY: a siginfo is plain integers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to one exclusive siginfo.
    if check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) }).is_err() {
        return false;
    }
    // SAFETY: waitid has filled in the part about a child, or left zero where none has ended.
    let pid = unsafe { info.si_pid() };
    if pid == 0 || u32::try_from(pid).is_ok_and(|pid| known.contains(&pid)) {
        return false;
    }
    // SAFETY: the status is not asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) == pid }
}

/// What [`confine`] leaves a program.
#[derive(Debug)]
pub(crate) struct Confinement {
    /// The rules of Landlock, where the kernel has it.
    pub(crate) rules: Option<Ruleset>,
    /// The largest file it may make, in bytes.
    pub(crate) file_len: u64,
    /// Open files, each process.
    pub(crate) files: u64,
    /// Processes of its user. The kernel does not hold root to it.
    pub(crate) processes: u64,
}

/// Has a program start in a session of its own, without signals held back, new privileges, core files and the capabilities
/// that change the kernel, with files that only their owner can read, within limits and under rules; it ends when its
/// parent does.
pub(crate) fn confine(command: &mut std::process::Command, confinement: Confinement) {
    let parent = std::process::id();
    let child = move || {
        // SAFETY: takes nothing and touches no memory of ours.
        check(unsafe { libc::setsid() })?;
        die_with_parent()?;
        // It may have died before the kernel was asked.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        release_signals()?;
        // SAFETY: takes one integer.
        unsafe { libc::umask(0o077) };
        forbid_core_files()?;
        limit(libc::RLIMIT_FSIZE, confinement.file_len)?;
        // What is allowed already may be less.
        for (what, most) in [(libc::RLIMIT_NOFILE, confinement.files), (libc::RLIMIT_NPROC, confinement.processes)] {
            _ = limit(what, most);
        }
        bound_capabilities(KERNEL_CAPABILITIES)?;
        no_new_privileges()?;
        confinement.rules.as_ref().map_or(Ok(()), Ruleset::restrict)
    };
    // SAFETY: between fork and exec the closure makes system calls only, allocates nothing (an error of the system is a
    // number), and owns all it uses.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, child) };
}

fn check_long(result: libc::c_long) -> io::Result<()> {
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
pub(crate) mod tests {
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
    fn directory_reads_plain_files_and_waits_for_nobody() {
        let scratch = tempfile::tempdir().unwrap();
        let pipe = c_path(&scratch.path().join("pipe")).unwrap();
        // SAFETY: the path is a NUL-terminated string that lives through the call.
        check(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }).unwrap();
        fs::create_dir(scratch.path().join("sub")).unwrap();
        fs::write(scratch.path().join("file"), "text").unwrap();
        let directory = Directory::open(scratch.path()).unwrap();
        assert!(directory.read("file").is_ok());
        for other in ["pipe", "sub"] {
            assert_eq!(directory.read(other).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{other}");
        }
    }

    #[test]
    fn root_gains_nothing_back_by_its_number() {
        if !is_root() {
            println!("skipped: only root has such rights to lose");
            return;
        }
        // They are a thread's own.
        let bits = std::thread::spawn(|| {
            drop_capabilities(0).unwrap();
            // SAFETY: takes integers and touches no memory of ours.
            unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) }
        });
        assert_eq!(libc::c_ulong::try_from(bits.join().unwrap()).unwrap(), SECURE_BITS);
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

    /// Leaves room for one connection that is not accepted yet.
    pub(crate) fn shorten_backlog(listener: &std::net::TcpListener) {
        // SAFETY: takes two integers; the descriptor is open.
        check(unsafe { libc::listen(listener.as_raw_fd(), 0) }).unwrap();
    }

    /// The longest segment that a connection may send now, in bytes.
    pub(crate) fn segment(stream: &TcpStream) -> i32 {
        let (mut value, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the pointers are to one integer and its length, exclusive; the descriptor is open.
        check(unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_MAXSEG,
                (&raw mut value).cast(),
                &raw mut len,
            )
        })
        .unwrap();
        value
    }

    #[test]
    fn wait_readable_ends_at_its_timeout() {
        let (one, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!wait_readable(&one, Some(Duration::from_millis(5))).unwrap());
        io::Write::write_all(&mut other, b"x").unwrap();
        assert!(wait_readable(&one, None).unwrap());
    }
}
