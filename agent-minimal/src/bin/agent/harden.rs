//! What the processes give up. The worker opens what it needs, and before it hears the first byte from the network it drops
//! its privileges, puts itself under Landlock ([`rules`]) and filters its system calls ([`filter`]). What takes privileges
//! or another program later is the parent's, which hears nothing from the network.
//!
//! A kernel that lacks one of these is no reason not to attest: one line says so, and `--check` shows it.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod filter;
pub(crate) mod rules;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt},
    path::Path,
};

use protocol::message::enrol::Wants;

use crate::{
    config::{Settings, Tcti},
    drive, log, sys,
    x509::ServerName,
};
use rules::{KEEP, READ, READ_WRITE, Rules, Watched};

/// What a worker's address space may grow by, in kB. One with glibc maps the libraries that its resolver loads.
const GROWTH_KB: u64 = if cfg!(target_env = "gnu") { 65_536 } else { 4096 };
/// The domain name system over TCP, for answers that do not fit a datagram.
const DNS_PORT: u16 = 53;
/// The TSS loads libraries that do as they like.
const HAS_PROFILE: bool = !cfg!(feature = "tss-esapi");

/// What both processes do first: no core file will hold what is in memory, and no process of the same user reads it.
///
/// # Errors
/// The system's.
pub(crate) fn hide_memory() -> io::Result<()> {
    sys::forbid_core_files()?;
    sys::hide_memory()
}

/// What the worker does before it holds a secret: its memory is never swapped out, if the system allows it that.
pub(crate) fn lock_memory() {
    // Where there is a limit and no /proc to compare it with, it is ours to stay below: only an emulator is larger.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let room = address_space_kb(&status).unwrap_or(0).saturating_add(GROWTH_KB).saturating_mul(1024);
    if let Err(why) = sys::lock_memory(room) {
        log::warn!("memory cannot be locked and may be swapped out: {why} (LimitMEMLOCK=, or run as root)");
    }
}

/// VmSize of /proc/PID/status.
fn address_space_kb(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmSize:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// A worker that has given up what it does not need.
#[derive(Debug)]
pub(crate) struct Confined(Vec<Watched>);

impl Confined {
    /// Whether a file that the rules name is another by now: only a new worker can have rules for it.
    pub(crate) fn is_outdated(&self) -> bool {
        self.0.iter().any(Watched::has_moved)
    }
}

/// Gives up everything that the worker does not need from here on, and says so.
///
/// # Errors
/// As [`confine`].
pub(crate) fn confine_worker(settings: &Settings) -> io::Result<Confined> {
    // What could not be made any more later. What keeps it from being made is said where it is missed.
    if settings.wants == Wants::Payload && settings.payload_home().room().is_ok() {
        for directory in [above(&settings.payload_dir), &settings.keys_dir] {
            _ = fs::DirBuilder::new().mode(0o700).recursive(true).create(directory);
        }
    }
    let (confined, words) = confine(settings)?;
    log::info!("{words}");
    Ok(confined)
}

/// Drops privileges, and limits this process to the files, ports and system calls that a worker needs. Nothing is made and
/// nothing is said.
///
/// # Errors
/// The system's, if privileges cannot be dropped. A kernel without Landlock or without filters is no error, but in the
/// words that come back.
pub(crate) fn confine(settings: &Settings) -> io::Result<(Confined, String)> {
    let rules = if HAS_PROFILE { worker_rules(settings).map(Some) } else { Ok(None) };
    sys::drop_capabilities(keep_the_tpm(settings))?;
    sys::no_new_privileges()?;
    let confined = rules.and_then(|rules| rules.map_or_else(|| Ok(Vec::new()), Rules::restrict));
    let filtered = if HAS_PROFILE { filter_system_calls() } else { Ok(()) };
    let said = |result: Option<&io::Error>, done: &str| match result {
        _ if !HAS_PROFILE => "not confined, for the TSS loads libraries".to_owned(),
        None => done.to_owned(),
        Some(why) => format!("not confined by this kernel ({why})"),
    };
    let words = format!(
        "privileges are dropped; files and ports are {}, system calls {}",
        said(confined.as_ref().err(), "those of the settings"),
        said(filtered.as_ref().err(), "those of a list"),
    );
    Ok((Confined(confined.unwrap_or_default()), words))
}

/// What of this the kernel offers, for `--check`.
pub(crate) fn offered() -> String {
    let landlock = sys::landlock_version().map_or_else(|why| format!("none ({why})"), |version| version.to_string());
    let filter = sys::has_system_call_filter().map_or_else(|why| format!("none ({why})"), |()| "yes".into());
    let profile = if HAS_PROFILE { "" } else { "; not used, for the TSS loads libraries" };
    format!("Landlock {landlock}, system call filter {filter}{profile}")
}

/// Has the TPM's group, so that its device can be opened without privileges. Where that is not enough, gives the one
/// privilege that has to be kept.
fn keep_the_tpm(settings: &Settings) -> u64 {
    let device = match &settings.tcti {
        Tcti::Device(path) => fs::metadata(path).ok(),
        _ => None,
    };
    if !sys::is_root() {
        return 0;
    }
    let group = device.as_ref().map_or_else(sys::group, MetadataExt::gid);
    let in_group = sys::only_group(group).is_ok() || group == sys::group();
    match &device {
        Some(device) if !may_open(device.mode(), device.uid() == 0, in_group) => {
            log::warn!("the TPM's device is neither root's nor open to its group: CAP_DAC_OVERRIDE is kept for it");
            sys::CAP_DAC_OVERRIDE
        }
        _ => 0,
    }
}

/// Whether mode bits let their owner, their group or others read and write.
const fn may_open(mode: u32, is_owner: bool, in_group: bool) -> bool {
    let bits = match (is_owner, in_group) {
        (true, _) => mode >> 6,
        (false, true) => mode >> 3,
        (false, false) => mode,
    };
    bits & 0o6 == 0o6
}

fn worker_rules(settings: &Settings) -> io::Result<Rules> {
    let mut rules = Rules::new()?;
    // Other processes' memory is not in reach there: Landlock keeps it apart.
    rules.path(Path::new("/proc"), READ)?;
    let paths = drive::log_paths(settings);
    for log in [paths.boot, paths.ima, paths.command_line, paths.userspace] {
        if log.as_os_str().is_empty() {
            continue;
        }
        rules.path(log, READ)?;
        // A log that is not there yet is read where it will be.
        if let (false, Some(directory)) = (log.exists(), log.parent()) {
            rules.path(directory, READ)?;
        }
    }
    let mut asks_for_names = false;
    for server in &settings.servers {
        rules.connect(server.port)?;
        asks_for_names |= matches!(server.name, ServerName::Dns(_));
    }
    match &settings.tcti {
        Tcti::Device(path) => rules.path(path, READ_WRITE)?,
        Tcti::Swtpm { host, port } => {
            rules.connect(*port)?;
            asks_for_names |= host.parse::<std::net::IpAddr>().is_err();
        }
        #[cfg(feature = "tss-esapi")]
        Tcti::Other(_) => {}
    }
    if asks_for_names {
        rules.connect(DNS_PORT)?;
        for path in ["/etc/resolv.conf", "/etc/hosts"] {
            rules.path(Path::new(path), READ)?;
        }
        // The resolver's settings, and the libraries it loads.
        #[cfg(target_env = "gnu")]
        for path in ["/etc", "/lib", "/lib64", "/usr/lib"] {
            rules.path(Path::new(path), rules::READ_EXECUTE)?;
        }
    }
    rules.path(above(&settings.payload_dir), KEEP)?;
    rules.path(&settings.keys_dir, KEEP)?;
    Ok(rules)
}

/// Where payloads are unpacked and renamed.
fn above(payload_dir: &Path) -> &Path {
    payload_dir.parent().unwrap_or(Path::new("/"))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn filter_system_calls() -> io::Result<()> {
    sys::filter_system_calls(filter::program())
}

/// The list is made for the architectures that are shipped.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn filter_system_calls() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_device_is_opened_as_its_owner_or_by_its_group_or_not_at_all() {
        assert!(may_open(0o600, true, false));
        assert!(may_open(0o660, false, true));
        assert!(may_open(0o666, false, false));
        // The owner's bits count for the owner, whatever the group has.
        assert!(!may_open(0o060, true, true));
        assert!(!may_open(0o600, false, true));
        assert!(!may_open(0o660, false, false));
        assert!(!may_open(0o440, true, true));
    }

    #[test]
    fn privileges_are_gone_from_every_set() {
        // They are a thread's own.
        let dropped = || {
            sys::drop_capabilities(0).unwrap();
            sys::no_new_privileges().unwrap();
            fs::read_to_string("/proc/thread-self/status").unwrap()
        };
        let status = thread::spawn(dropped).join().unwrap();
        let bounded = if sys::is_root() { 5 } else { 4 };
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"].into_iter().take(bounded) {
            assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{set}: {status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    }

    #[test]
    fn the_address_space_is_read_or_unknown() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(address_space_kb(&status).is_some_and(|kb| kb > 100), "{status}");
        assert_eq!(address_space_kb("VmPeak:\t  9 kB\nVmSize:\t    1116 kB\n"), Some(1116));
        assert_eq!(address_space_kb("VmSize:\t many kB"), None);
        assert_eq!(address_space_kb(""), None);
    }

    #[test]
    fn what_the_kernel_offers_is_said() {
        let offered = offered();
        assert!(offered.starts_with("Landlock ") && offered.contains("system call filter "), "{offered}");
    }
}
