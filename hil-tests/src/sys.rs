//! The few system calls that the standard library does not offer, each in one safe function. Nothing else in this
//! crate is unsafe.
#![expect(
    unsafe_code,
    reason = "signals, the parent-death signal, statfs, namespaces and tun devices exist only as system calls"
)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Ends a process politely.
pub const SIGTERM: i32 = libc::SIGTERM;
/// Ends a process at once, with no chance to tidy up.
pub const SIGKILL: i32 = libc::SIGKILL;
/// Ctrl-C.
pub const SIGINT: i32 = libc::SIGINT;
/// Postgres calls this an immediate shutdown.
pub const SIGQUIT: i32 = libc::SIGQUIT;
/// Holds a process where it is, until [`SIGCONT`].
pub const SIGSTOP: i32 = libc::SIGSTOP;
/// Lets a held process go on.
pub const SIGCONT: i32 = libc::SIGCONT;

/// Sends `signal` to one process.
///
/// # Errors
/// `InvalidInput` for a pid that cannot be one process (0, or over `i32::MAX`), otherwise what kill(2) says.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    kill(checked_pid(pid)?, signal)
}

/// Sends `signal` to every member of the process group that `pid` leads.
///
/// # Errors
/// As [`signal`]; also when the group has no member left.
pub fn signal_group(pid: u32, signal: i32) -> io::Result<()> {
    kill(-checked_pid(pid)?, signal)
}

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, cannot fail and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

/// Length of one tick of `/proc/PID/stat`, as ticks per second.
pub fn clock_ticks() -> u64 {
    // SAFETY: sysconf with a constant name only returns a number.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|&ticks| ticks > 0).unwrap_or(100)
}

/// Whether `path` lies on a file system that only lives in memory (tmpfs or ramfs, by statfs(2)).
///
/// # Errors
/// What statfs(2) says.
pub fn is_memory_fs(path: &Path) -> io::Result<bool> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statfs` is plain old data, for which all zeros is a value.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated, and `found` is a writable statfs for the length of the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The field's width differs between C libraries; compared as 32 bits, as the kernel defines the constants.
    let kind = i64::from(found.f_type as u32);
    Ok(kind == TMPFS_MAGIC || kind == RAMFS_MAGIC)
}

/// Makes the command's process die with `signal` as soon as the *thread* that starts it ends, and start with no signal
/// blocked.
///
/// The kernel watches the thread, not the process: only `spawn` calls this, from a thread that lives as long as the
/// process.
pub(crate) fn die_with_parent(command: &mut Command, signal: i32) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made (sigemptyset, sigprocmask, prctl, getppid),
    // nothing allocates, and the closure owns all it uses.
    unsafe {
        command.pre_exec(move || {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above took effect.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Calls `tidy` once, on a thread of its own, when the process gets SIGINT, SIGTERM or SIGHUP; then exits with
/// 128 + the signal's number.
///
/// # Errors
/// What pipe(2), sigaction(2) or starting the thread say.
pub(crate) fn on_interrupt(tidy: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut ends = [0i32; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [read_end, write_end] = ends;
    INTERRUPT_PIPE.store(write_end, Ordering::SeqCst);
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        let mut number = 0u8;
        loop {
            // SAFETY: reads one byte into a byte that outlives the call; the descriptor is never closed.
            let got = unsafe { libc::read(read_end, (&raw mut number).cast(), 1) };
            if got == 1 {
                break;
            }
        }
        tidy();
        std::process::exit(128 + i32::from(number));
    })?;
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: `sigaction` is plain old data; the handler only calls write(2), which is async-signal-safe.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(libc::c_int) = note_interrupt;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(number, &raw const action, std::ptr::null_mut())
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn note_interrupt(number: libc::c_int) {
    let byte = number as u8;
    // SAFETY: write(2) of one byte from the stack to a pipe that is never closed.
    unsafe {
        libc::write(INTERRUPT_PIPE.load(Ordering::SeqCst), (&raw const byte).cast(), 1);
    }
}

fn checked_pid(pid: u32) -> io::Result<i32> {
    i32::try_from(pid).ok().filter(|&pid| pid > 1).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A new network namespace. It lives as long as the file, a thread or a process in it.
///
/// # Errors
/// What unshare(2) says: it takes root.
pub(crate) fn new_network() -> io::Result<File> {
    let maker = std::thread::spawn(|| {
        // SAFETY: unshare of the network moves this thread alone, and touches no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        own_network()
    });
    maker.join().map_err(|_| io::Error::other("the thread that made a network namespace panicked"))?
}

/// The network namespace that the calling thread is in.
///
/// # Errors
/// When /proc is not there.
pub(crate) fn own_network() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Moves the calling thread, and no other, into a network namespace.
///
/// # Errors
/// What setns(2) says.
pub(crate) fn enter_network(network: &File) -> io::Result<()> {
    // SAFETY: setns takes two integers; the descriptor is open for the call.
    if unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has the child begin in the calling thread's network namespace, whichever thread starts it. Does nothing in the
/// namespace that this program began in.
///
/// # Errors
/// When /proc is not there.
pub(crate) fn keep_network(command: &mut Command) -> io::Result<()> {
    let network = own_network()?;
    if network.metadata()?.ino() == std::fs::metadata("/proc/self/ns/net")?.ino() {
        return Ok(());
    }
    // SAFETY: between fork and exec only setns is called, which is a system call and allocates nothing; the closure owns
    // the descriptor it uses.
    unsafe {
        command.pre_exec(move || enter_network(&network));
    }
    Ok(())
}

/// Opens a tun device of this name (made if it is not there, gone with the file) in the calling thread's network
/// namespace: each read and write is one IP packet, with nothing before it.
///
/// # Errors
/// What open(2) and ioctl(2) say: it takes root and the kernel's tun driver.
pub(crate) fn open_tun(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: `ifreq` is plain old data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call; the descriptor is open.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits until there is something to read; `false` after `timeout`, rounded up to a millisecond.
///
/// # Errors
/// What poll(2) says.
pub(crate) fn wait_readable(file: &File, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: the pointer is to one exclusive pollfd, and its count is 1; the descriptor is open for the call.
    match unsafe { libc::poll(&raw mut poll, 1, timeout) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => {
            let why = io::Error::last_os_error();
            if why.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(why) }
        }
    }
}

static INTERRUPT_PIPE: AtomicI32 = AtomicI32::new(-1);
