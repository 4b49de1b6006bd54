//! Landlock: which files and TCP ports are left to the worker, and to autorun. What no rule names is forbidden, also to
//! root.
//!
//! A rule holds for the file that has the name now. Where another takes its place later, the worker notices
//! ([`Watched::has_moved`]) and has itself replaced by one with new rules.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::sys::{self, Ruleset};

/// Reading files.
pub(super) const READ: u64 = 1 << 2;
/// Writing to what is there: a device.
pub(super) const READ_WRITE: u64 = READ | 1 << 1;
/// Reading, and running programs.
#[cfg(target_env = "gnu")]
pub(super) const READ_EXECUTE: u64 = READ | 1;
/// Making, filling, renaming and removing files, links and directories, and listing those.
pub(super) const KEEP: u64 = READ_WRITE | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 14;
/// What can be done to a file that is no directory: run, write, read, cut, control a device.
const ON_FILES: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;
/// What can be done in a directory, apart from its files.
const IN_DIRECTORIES: u64 = !ON_FILES;
const BIND: u64 = 1;
const CONNECT: u64 = 1 << 1;

/// All that a version of Landlock knows: rights on files, on TCP ports, and the domains of signals and abstract sockets.
const fn known(version: u32) -> (u64, u64, u64) {
    let files = match version {
        0 => 0,
        1 => 0x1fff,
        2 => 0x3fff,     // and moving between directories
        3 | 4 => 0x7fff, // and cutting
        _ => 0xffff,     // and controlling devices
    };
    (files, if version >= 4 { BIND | CONNECT } else { 0 }, if version >= 6 { 3 } else { 0 })
}

/// A path that a rule was made for, or could not be, since nothing was there.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    file: Option<Identity>,
}

impl Watched {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: identity(path) }
    }

    /// Whether something else has this name by now, or the same is somebody else's: the TPM's device gets its group from udev,
    /// and what a worker may open was settled when it gave up its privileges.
    pub(super) fn has_moved(&self) -> bool {
        identity(&self.path) != self.file
    }
}

/// Device and inode; owner, group and mode.
type Identity = (u64, u64, u32, u32, u32);

fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.uid(), metadata.gid(), metadata.mode()))
}

/// Rules while they are put together.
#[derive(Debug)]
pub(super) struct Rules {
    set: Ruleset,
    files: u64,
    net: u64,
    watched: Vec<Watched>,
}

impl Rules {
    /// Nothing is allowed yet of all that the kernel's version of Landlock can forbid.
    ///
    /// # Errors
    /// The system's: above all that it has none.
    pub(super) fn new() -> io::Result<Self> {
        let (files, net, scoped) = known(sys::landlock_version()?);
        Ok(Self { set: Ruleset::new(files, net, scoped)?, files, net, watched: Vec::new() })
    }

    /// Allows `rights` on a file, or on all below a directory. What is not there, or not for this user, is not allowed; it is
    /// watched for, as is what is.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn path(&mut self, path: &Path, rights: u64) -> io::Result<()> {
        self.watched.push(Watched::new(path));
        match self.allow(path, rights, true) {
            Err(why)
                if matches!(
                    why.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Allows connections to a TCP port, whatever the address.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn connect(&self, port: u16) -> io::Result<()> {
        if self.net & CONNECT == 0 { Ok(()) } else { self.set.allow_port(port, CONNECT) }
    }

    /// Puts this process under the rules; gives what has to be watched.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn restrict(self) -> io::Result<Vec<Watched>> {
        self.set.restrict()?;
        Ok(self.watched)
    }

    fn allow(&self, path: &Path, rights: u64, follow: bool) -> io::Result<()> {
        let file = sys::open_path(path, follow)?;
        let metadata = file.metadata()?;
        if metadata.is_symlink() {
            return Ok(()); // where it leads has rules of its own
        }
        let rights = rights & self.files & if metadata.is_dir() { !0 } else { ON_FILES };
        if rights == 0 { Ok(()) } else { self.set.allow_path(&file, rights) }
    }
}

/// Making devices: another name for the TPM, or for all memory.
const MAKE_DEVICES: u64 = 1 << 6 | 1 << 11;

/// Everything but the ways to the TPM and to all memory, and making such. Files that are made in `/` and in `/dev` later are out of reach.
///
/// # Errors
/// The system's: above all that it has no Landlock.
pub(crate) fn for_autorun() -> io::Result<Ruleset> {
    let version = sys::landlock_version()?;
    // Its network, and whom it signals, are its own business.
    let (files, ..) = known(version);
    let rules = Rules { set: Ruleset::new(files, 0, 0)?, files, net: 0, watched: Vec::new() };
    rules.allow(Path::new("/"), IN_DIRECTORIES & !MAKE_DEVICES, true)?;
    for directory in ["/", "/dev"] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if is_withheld(directory, name.as_encoded_bytes()) {
                continue;
            }
            match rules.allow(&entry.path(), !MAKE_DEVICES, false) {
                // Gone meanwhile, or of a kind that no rule is made for.
                Err(why) if matches!(why.raw_os_error(), Some(libc::ENOENT | libc::EBADFD)) => {}
                other => other?,
            }
        }
    }
    Ok(rules.set)
}

fn is_withheld(directory: &str, name: &[u8]) -> bool {
    match directory {
        "/" => name == b"dev",
        _ => name.starts_with(b"tpm") || matches!(name, b"mem" | b"kmem" | b"port"),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::TcpStream, thread};

    use super::*;

    #[test]
    fn rights_grow_with_the_version_and_are_among_the_known() {
        let all = (0..12).map(known).collect::<Vec<_>>();
        for pair in all.windows(2) {
            assert_eq!(pair[0].0 & pair[1].0, pair[0].0);
            assert_eq!(pair[0].1 & pair[1].1, pair[0].1);
        }
        assert_eq!((all[0], all[1].0), ((0, 0, 0), 0x1fff));
        // Cutting came with version 3, ports with 4, devices with 5, domains with 6.
        assert_eq!((all[2].0 & 1 << 14, all[3].1, all[4].0 & 1 << 15, all[5].2), (0, 0, 0, 0));
        assert_eq!(all[11], (0xffff, 3, 3));
    }

    #[test]
    fn the_tpm_and_all_memory_are_withheld_by_any_name_they_have() {
        for name in ["tpm0", "tpmrm0", "tpm1", "mem", "kmem", "port"] {
            assert!(is_withheld("/dev", name.as_bytes()), "{name}");
        }
        for (directory, name) in [("/dev", "null"), ("/dev", "memory"), ("/", "etc"), ("/", "tpm0")] {
            assert!(!is_withheld(directory, name.as_bytes()), "{name}");
        }
        assert!(is_withheld("/", b"dev"));
    }

    #[test]
    fn what_is_renamed_into_place_has_moved() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("resolv.conf");
        let (missing, later) = (Watched::new(&path), scratch.path().join("later"));
        assert!(!missing.has_moved());
        fs::write(&path, "1").unwrap();
        assert!(missing.has_moved());
        let there = Watched::new(&path);
        fs::write(&path, "2").unwrap();
        assert!(!there.has_moved());
        fs::write(&later, "3").unwrap();
        fs::rename(&later, &path).unwrap();
        assert!(there.has_moved());
    }

    #[test]
    fn what_was_given_another_mode_or_group_has_moved() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("tpmrm0");
        fs::write(&path, "").unwrap();
        let there = Watched::new(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        assert!(there.has_moved());
        let there = Watched::new(&path);
        if sys::is_root() {
            std::os::unix::fs::chown(&path, None, Some(1)).unwrap();
            assert!(there.has_moved());
        }
    }

    #[test]
    fn only_what_a_rule_names_can_be_reached() {
        if let Err(why) = sys::landlock_version() {
            eprintln!("skipped: the kernel has no Landlock: {why}");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        for name in ["read", "kept", "other"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
            fs::write(scratch.path().join(name).join("file"), "text").unwrap();
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ports = sys::landlock_version().unwrap() >= 4;
        let path = scratch.path().to_owned();
        // Rules are for one thread and what it starts.
        let restricted = move || {
            let denied =
                |result: io::Result<()>| result.is_err_and(|why| why.kind() == io::ErrorKind::PermissionDenied);
            let mut rules = Rules::new().unwrap();
            rules.path(&path.join("read"), READ).unwrap();
            rules.path(&path.join("kept"), KEEP).unwrap();
            rules.path(&path.join("missing"), READ).unwrap();
            rules.connect(port).unwrap();
            sys::no_new_privileges().unwrap();
            assert_eq!(rules.restrict().unwrap().len(), 3);
            assert_eq!(fs::read(path.join("read/file")).unwrap(), b"text");
            assert!(denied(fs::write(path.join("read/file"), "x")));
            assert!(denied(File::open(path.join("other/file")).map(drop)));
            fs::write(path.join("kept/new"), "x").unwrap();
            fs::create_dir(path.join("kept/dir")).unwrap();
            fs::rename(path.join("kept/new"), path.join("kept/newer")).unwrap();
            fs::remove_file(path.join("kept/newer")).unwrap();
            std::os::unix::fs::symlink("x", path.join("kept/link")).unwrap();
            assert!(denied(fs::create_dir(path.join("other/dir"))));
            TcpStream::connect(("127.0.0.1", port)).unwrap();
            if ports {
                assert!(denied(TcpStream::connect(("127.0.0.1", other)).map(drop)));
            }
        };
        thread::spawn(restricted).join().unwrap();
    }

    #[test]
    fn what_this_user_cannot_reach_costs_none_of_the_other_rules() {
        if let Err(why) = sys::landlock_version() {
            eprintln!("skipped: the kernel has no Landlock: {why}");
            return;
        }
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let hidden = scratch.path().join("hidden");
        fs::create_dir(&hidden).unwrap();
        fs::write(hidden.join("log"), "text").unwrap();
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o000)).unwrap();
        // Without privileges, which are a thread's own, mode bits count also for root.
        let restricted = move || {
            sys::drop_capabilities(0).unwrap();
            let mut rules = Rules::new().unwrap();
            rules.path(&hidden.join("log"), READ).unwrap();
            sys::no_new_privileges().unwrap();
            rules.restrict().unwrap();
        };
        thread::spawn(restricted).join().unwrap();
        fs::set_permissions(scratch.path().join("hidden"), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn autorun_reaches_everything_but_what_is_withheld() {
        let rules = match for_autorun() {
            Ok(rules) => rules,
            Err(why) => {
                eprintln!("skipped: the kernel has no Landlock: {why}");
                return;
            }
        };
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        let restricted = move || {
            sys::no_new_privileges().unwrap();
            rules.restrict().unwrap();
            fs::write(&path, "text").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"text");
            fs::write("/dev/null", "text").unwrap();
            assert!(fs::read_to_string("/proc/self/status").is_ok());
            for withheld in ["/dev/mem", "/dev/tpm0", "/dev/tpmrm0", "/dev/port"] {
                assert!(File::open(withheld).is_err(), "{withheld}");
            }
        };
        thread::spawn(restricted).join().unwrap();
    }
}
