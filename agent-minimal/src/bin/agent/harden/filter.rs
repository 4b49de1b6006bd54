//! The filter over system calls: a list of those that the worker makes once it talks to the network, as a program for the
//! kernel's seccomp, put together when this program is compiled.
//!
//! What is not on the list is refused with EPERM, so that a C library that tries something new goes on without it. Calls
//! that only somebody who has taken the worker over would make end the process: the parent says so and starts another.

use libc::{c_long, sock_filter};

/// Fails with EPERM.
const REFUSE: u32 = 0x0005_0000 | libc::EPERM as u32;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const ALLOW: u32 = 0x7fff_0000;

/// The only way that system calls come: with the numbers of this architecture (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// Numbers from here on are those of x32 beside x86_64, other doors into the same rooms. Elsewhere there are none.
const X32: u32 = 0x4000_0000;

/// Other programs, other processes' memory.
const DEADLY: [c_long; 5] =
    [libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev];

/// Harmless, or kept in bounds by Landlock and the file's owner.
#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    // The descriptors it has.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_close,
    libc::SYS_lseek, libc::SYS_fstat, libc::SYS_dup, libc::SYS_ppoll,
    // Files.
    libc::SYS_openat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_getdents64,
    libc::SYS_readlinkat, libc::SYS_faccessat, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_symlinkat,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_getcwd,
    // The network. Which kinds of socket there may be, and that sending does not connect, are rules of their own.
    libc::SYS_connect, libc::SYS_bind, libc::SYS_recvfrom, libc::SYS_recvmsg,
    libc::SYS_shutdown, libc::SYS_setsockopt, libc::SYS_getsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    // Memory. Making it executable is a rule of its own.
    libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk,
    // Time, chance, and its own end.
    libc::SYS_clock_gettime, libc::SYS_gettimeofday, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
    libc::SYS_getrandom, libc::SYS_futex, libc::SYS_sched_yield, libc::SYS_restart_syscall, libc::SYS_getpid,
    libc::SYS_gettid, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    libc::SYS_exit, libc::SYS_exit_group,
];

/// The same by other names, which only the older architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_poll, libc::SYS_access, libc::SYS_readlink,
    libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_symlink, libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// What glibc's resolver does beside: it loads libraries, and asks a local service and the kernel's routing.
#[cfg(target_env = "gnu")]
const FAMILIES: &[u32] = &[libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_UNIX as u32, libc::AF_NETLINK as u32];
#[cfg(not(target_env = "gnu"))]
const FAMILIES: &[u32] = &[libc::AF_INET as u32, libc::AF_INET6 as u32];
#[cfg(target_env = "gnu")]
#[rustfmt::skip]
const LIBRARY: &[c_long] = &[
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_recvmmsg, libc::SYS_uname, libc::SYS_sysinfo,
    libc::SYS_geteuid, libc::SYS_getuid, libc::SYS_prlimit64, libc::SYS_rseq, libc::SYS_set_robust_list,
];
#[cfg(not(target_env = "gnu"))]
const LIBRARY: &[c_long] = &[];

/// What protocol a socket may be made for: its kind's own, TCP, UDP. Landlock's rules for ports hold for none that can do
/// TCP's work beside it (MPTCP, SCTP, SMC).
const PROTOCOLS: &[u32] = &[0, libc::IPPROTO_TCP as u32, libc::IPPROTO_UDP as u32];

const MAX_LEN: usize = 320;

/// A program while it is put together.
struct Program {
    code: [sock_filter; MAX_LEN],
    len: usize,
}

// Classic BPF (linux/bpf_common.h): load a word of the data, compare it with a constant, return.
const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Where the data has the call's number, the architecture, and the lower half of an argument.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

impl Program {
    const fn push(mut self, code: u16, k: u32, jt: u8, jf: u8) -> Self {
        // An array that is too small does not compile.
        self.code[self.len] = sock_filter { code, jt, jf, k };
        self.len += 1;
        self
    }

    /// If the comparison holds, that is the end.
    const fn end_if(self, compare: u16, k: u32, verdict: u32) -> Self {
        self.push(compare, k, 0, 1).push(RETURN, verdict, 0, 0)
    }

    const fn end_if_any(mut self, numbers: &[c_long], verdict: u32) -> Self {
        let mut at = 0;
        while at < numbers.len() {
            self = self.end_if(EQUAL, numbers[at] as u32, verdict);
            at += 1;
        }
        self
    }

    /// One call, allowed where an argument has one of these values.
    const fn only_with(mut self, number: c_long, index: u32, values: &[u32]) -> Self {
        self = self.push(EQUAL, number as u32, 0, (2 + 2 * values.len()) as u8).push(LOAD, argument(index), 0, 0);
        let mut at = 0;
        while at < values.len() {
            self = self.end_if(EQUAL, values[at], ALLOW);
            at += 1;
        }
        self.push(RETURN, REFUSE, 0, 0)
    }

    /// One call, with this verdict where an argument has one of these bits, and else allowed.
    const fn but_with(self, number: c_long, index: u32, bits: u32, verdict: u32) -> Self {
        self.push(EQUAL, number as u32, 0, 4)
            .push(LOAD, argument(index), 0, 0)
            .end_if(ANY_BIT, bits, verdict)
            .push(RETURN, ALLOW, 0, 0)
    }

    /// One call, refused where an argument has none of these values; else what comes next decides.
    const fn refused_without(mut self, number: c_long, index: u32, values: &[u32]) -> Self {
        self = self.push(EQUAL, number as u32, 0, (3 + values.len()) as u8).push(LOAD, argument(index), 0, 0);
        let mut at = 0;
        while at < values.len() {
            self = self.push(EQUAL, values[at], (values.len() - at) as u8, 0);
            at += 1;
        }
        // What comes next compares the number again.
        self.push(RETURN, REFUSE, 0, 0).push(LOAD, NUMBER, 0, 0)
    }

    const fn build() -> Self {
        let empty = sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
        let mut program = Self { code: [empty; MAX_LEN], len: 0 };
        program = program.push(LOAD, ARCH, 0, 0).push(EQUAL, ARCHITECTURE, 1, 0).push(RETURN, KILL, 0, 0);
        program = program.push(LOAD, NUMBER, 0, 0);
        program = program.end_if(AT_LEAST, X32, KILL);
        program = program.end_if_any(&DEADLY, KILL).end_if_any(ALLOWED, ALLOW).end_if_any(OLDER, ALLOW);
        program = program.end_if_any(LIBRARY, ALLOW);
        let exec = libc::PROT_EXEC as u32;
        program = program.but_with(libc::SYS_mmap, 2, exec, KILL).but_with(libc::SYS_mprotect, 2, exec, KILL);
        program = program.refused_without(libc::SYS_socket, 2, PROTOCOLS).only_with(libc::SYS_socket, 0, FAMILIES);
        // Sending that connects passes by Landlock's rules for ports.
        let fast_open = libc::MSG_FASTOPEN as u32;
        program = program.but_with(libc::SYS_sendto, 3, fast_open, REFUSE);
        program = program.but_with(libc::SYS_sendmsg, 2, fast_open, REFUSE);
        if cfg!(target_env = "gnu") {
            program = program.but_with(libc::SYS_sendmmsg, 3, fast_open, REFUSE);
        }
        // Blocking or not, and nothing that devices understand.
        program = program.only_with(libc::SYS_ioctl, 1, &[libc::FIONBIO as u32]);
        let controls = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
        let mut numbers = [0; 5];
        let mut at = 0;
        while at < numbers.len() {
            numbers[at] = controls[at] as u32;
            at += 1;
        }
        program.only_with(libc::SYS_fcntl, 1, &numbers).push(RETURN, REFUSE, 0, 0)
    }
}

static PROGRAM: Program = Program::build();

/// The program.
pub(crate) fn program() -> &'static [sock_filter] {
    PROGRAM.code.get(..PROGRAM.len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{self, Write as _},
        net::{TcpListener, TcpStream},
        os::unix::net::UnixDatagram,
        process::Command,
        thread,
    };

    use super::*;
    use crate::sys;

    /// What the kernel makes of a call: the program run as the kernel runs it.
    fn verdict(architecture: u32, number: c_long, arguments: [u32; 6]) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&(number as u32).to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        for (place, argument) in data[16..].chunks_exact_mut(8).zip(arguments) {
            // Garbage in the upper half: the kernel does not look at it where it takes an int.
            place[..4].copy_from_slice(&argument.to_ne_bytes());
            place[4..].fill(0xee);
        }
        let (program, mut at, mut word) = (program(), 0, 0);
        loop {
            let step = program[at];
            let jump = |holds: bool| at + 1 + usize::from(if holds { step.jt } else { step.jf });
            at = match step.code {
                LOAD => {
                    let from = step.k as usize;
                    word = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                    at + 1
                }
                EQUAL => jump(word == step.k),
                AT_LEAST => jump(word >= step.k),
                ANY_BIT => jump(word & step.k != 0),
                RETURN => return step.k,
                other => panic!("instruction {other:#x}"),
            };
        }
    }

    fn call(number: c_long, index: usize, value: i64) -> u32 {
        let mut arguments = [0; 6];
        arguments[index] = value as u32;
        verdict(ARCHITECTURE, number, arguments)
    }

    #[test]
    fn every_call_of_the_list_is_allowed_and_the_deadly_ones_end_the_process() {
        for number in ALLOWED.iter().chain(OLDER).chain(LIBRARY) {
            assert_eq!(call(*number, 0, 0), ALLOW, "{number}");
        }
        for number in DEADLY {
            assert_eq!(call(number, 0, 0), KILL, "{number}");
        }
    }

    #[test]
    fn every_other_number_is_refused() {
        let special = [
            libc::SYS_mmap,
            libc::SYS_mprotect,
            libc::SYS_socket,
            libc::SYS_ioctl,
            libc::SYS_fcntl,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
        ];
        for number in 0..1024 {
            let known = [ALLOWED, OLDER, LIBRARY, &DEADLY, &special].iter().any(|list| list.contains(&number));
            if !known {
                assert_eq!(call(number, 0, 0), REFUSE, "{number}");
            }
        }
        for number in
            [libc::SYS_clone, libc::SYS_kill, libc::SYS_mount, libc::SYS_bpf, libc::SYS_setuid, libc::SYS_prctl]
        {
            assert_eq!(call(number, 0, 0), REFUSE, "{number}");
        }
    }

    #[test]
    fn another_architectures_calls_end_the_process() {
        // i386, x86_64, arm, aarch64.
        for architecture in [0x4000_0003, 0xc000_003e, 0x4000_0028, 0xc000_00b7] {
            let expected = if architecture == ARCHITECTURE { ALLOW } else { KILL };
            assert_eq!(verdict(architecture, libc::SYS_read, [0; 6]), expected, "{architecture:#x}");
        }
        assert_eq!(call(libc::SYS_read + c_long::from(X32), 0, 0), KILL);
    }

    #[test]
    fn arguments_decide_where_they_matter() {
        for (family, expected) in [
            (libc::AF_INET, ALLOW),
            (libc::AF_INET6, ALLOW),
            (libc::AF_PACKET, REFUSE),
            (libc::AF_VSOCK, REFUSE),
            (libc::AF_ALG, REFUSE),
        ] {
            assert_eq!(call(libc::SYS_socket, 0, family.into()), expected, "{family}");
        }
        for (protocol, expected) in [
            (0, ALLOW),
            (libc::IPPROTO_TCP, ALLOW),
            (libc::IPPROTO_UDP, ALLOW),
            (libc::IPPROTO_MPTCP, REFUSE),
            (libc::IPPROTO_SCTP, REFUSE),
            (libc::IPPROTO_ICMP, REFUSE),
        ] {
            for family in [libc::AF_INET, libc::AF_INET6] {
                let arguments = [family as u32, libc::SOCK_STREAM as u32, protocol as u32, 0, 0, 0];
                assert_eq!(verdict(ARCHITECTURE, libc::SYS_socket, arguments), expected, "{protocol}");
            }
            let arguments = [libc::AF_PACKET as u32, libc::SOCK_STREAM as u32, protocol as u32, 0, 0, 0];
            assert_eq!(verdict(ARCHITECTURE, libc::SYS_socket, arguments), REFUSE, "{protocol}");
        }
        for (number, index) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2)] {
            assert_eq!(call(number, index, libc::MSG_NOSIGNAL.into()), ALLOW);
            assert_eq!(call(number, index, (libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL).into()), REFUSE);
        }
        let many = call(libc::SYS_sendmmsg, 3, libc::MSG_NOSIGNAL.into());
        assert_eq!(many, if cfg!(target_env = "gnu") { ALLOW } else { REFUSE });
        assert_eq!(call(libc::SYS_sendmmsg, 3, libc::MSG_FASTOPEN.into()), REFUSE);
        assert_eq!(call(libc::SYS_ioctl, 1, libc::FIONBIO as i64), ALLOW);
        assert_eq!(call(libc::SYS_ioctl, 1, libc::TIOCSTI as i64), REFUSE);
        assert_eq!(call(libc::SYS_fcntl, 1, libc::F_GETFL.into()), ALLOW);
        assert_eq!(call(libc::SYS_fcntl, 1, libc::F_SETOWN.into()), REFUSE);
        let (data, code) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
        for number in [libc::SYS_mmap, libc::SYS_mprotect] {
            assert_eq!(call(number, 2, data.into()), ALLOW);
            let expected = if cfg!(target_env = "gnu") { ALLOW } else { KILL };
            assert_eq!(call(number, 2, code.into()), expected);
        }
    }

    #[test]
    fn the_kernel_refuses_what_the_filter_forbids_and_nothing_else() {
        if let Err(why) = sys::has_system_call_filter() {
            eprintln!("skipped: the kernel filters no system calls: {why}");
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // A filter is for one thread and what it starts.
        let filtered = move || -> io::Result<()> {
            sys::no_new_privileges()?;
            sys::filter_system_calls(program())?;
            assert!(File::open("/proc/self/status").is_ok());
            assert!(TcpListener::bind("127.0.0.1:0").is_err_and(|why| why.raw_os_error() == Some(libc::EPERM)));
            assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
            let stream = TcpStream::connect(address)?;
            assert_eq!((&stream).write(b"x")?, 1);
            assert!(UnixDatagram::pair().is_err());
            let started = Command::new("/bin/true").spawn();
            assert!(started.is_err_and(|why| why.raw_os_error() == Some(libc::EPERM)));
            Ok(())
        };
        thread::spawn(filtered).join().unwrap().unwrap();
    }
}
