//! Scratch directories and memory file systems that do not outlive their owner, and the list of what has to be undone
//! when somebody presses Ctrl-C.
//!
//! What a killed harness left behind (it had no chance to tidy up) is removed by the next one: a scratch directory
//! carries its owner's process id in its name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use anyhow::{Context, Result, bail};

use crate::sys;

const PREFIX: &str = "trefoil-scratch-";

/// A directory that is removed with its owner, or, where `TREFOIL_KEEP` is set, by the next harness.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    undo: u64,
    keep: AtomicBool,
}

impl Scratch {
    /// Makes a new, empty directory under `TMPDIR` (or `/tmp`). It may be entered by every user (Postgres runs as one
    /// of its own) but read only by its owner.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(label: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let parent = std::env::temp_dir();
        let path = parent.join(format!("{PREFIX}{}-{}-{label}", std::process::id(), next()));
        fs::create_dir(&path).with_context(|| format!("cannot make the scratch directory {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        Ok(Self { undo: remember(Undo::Directory(path.clone())), path, keep: AtomicBool::new(false) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory where it is, for a person to look at. The next harness removes it.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
        forget(self.undo);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        forget(self.undo);
        if !self.keep.load(Ordering::SeqCst) && std::env::var_os("TREFOIL_KEEP").is_none() {
            remove_tree(&self.path);
        }
    }
}

/// A file system in memory, unmounted with its owner.
#[derive(Debug)]
pub struct MemoryFs {
    path: PathBuf,
    /// What has to be undone: a mount, or a directory under a tmpfs that was there already.
    kind: MemoryKind,
    undo: u64,
}

#[derive(Debug)]
enum MemoryKind {
    Mounted,
    Borrowed,
}

impl MemoryFs {
    /// Mounts a tmpfs at `path` (made if missing), of at most `size_bytes` if given; where tmpfs cannot be mounted, a
    /// ramfs (only without a size: it has none); where nothing can be mounted, a directory in `/dev/shm` if that is a
    /// memory file system.
    ///
    /// # Errors
    /// When none of this is permitted here. Scenarios that need it print `skipped: …` then.
    pub fn mount(path: &Path, size_bytes: Option<u64>) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let options = size_bytes.map_or_else(|| "mode=0700".to_owned(), |size| format!("mode=0700,size={size}"));
        let mut mounted = mount("tmpfs", &options, path);
        if !mounted && size_bytes.is_none() {
            mounted = mount("ramfs", "mode=0700", path);
        }
        if mounted {
            let undo = remember(Undo::Mount(path.to_owned()));
            return Ok(Self { path: path.to_owned(), kind: MemoryKind::Mounted, undo });
        }
        let shared = Path::new("/dev/shm");
        if size_bytes.is_none() && sys::is_memory_fs(shared).unwrap_or(false) {
            let path = shared.join(format!("{PREFIX}{}-{}", std::process::id(), next()));
            if fs::create_dir(&path).is_ok() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
                let undo = remember(Undo::Directory(path.clone()));
                return Ok(Self { path, kind: MemoryKind::Borrowed, undo });
            }
        }
        bail!("no memory file system can be mounted at {} (that takes root)", path.display())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for MemoryFs {
    fn drop(&mut self) {
        forget(self.undo);
        match self.kind {
            MemoryKind::Mounted => unmount(&self.path),
            MemoryKind::Borrowed => remove_tree(&self.path),
        }
    }
}

/// What has to be undone if the harness is interrupted.
pub(crate) enum Undo {
    /// A process group.
    Group { pid: u32, signal: i32 },
    /// A mount.
    Mount(PathBuf),
    /// A directory with all that is in it.
    Directory(PathBuf),
}

/// Puts something on the list; the number takes it off again.
pub(crate) fn remember(undo: Undo) -> u64 {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // Without the handler everything still works; only Ctrl-C leaves directories to the next sweep.
        if let Err(error) = sys::on_interrupt(undo_all) {
            eprintln!("Ctrl-C will leave scratch directories behind: {error}");
        }
    });
    let number = next();
    list().push((number, undo));
    number
}

/// Takes something off the list.
pub(crate) fn forget(number: u64) {
    list().retain(|&(other, _)| other != number);
}

/// Ends every process, takes back every mount and removes every directory on the list, the newest first.
fn undo_all() {
    let mut entries = std::mem::take(&mut *list());
    entries.reverse();
    for (_, undo) in &entries {
        if let Undo::Group { pid, signal } = undo {
            let _ = sys::signal_group(*pid, *signal);
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(150));
    for (_, undo) in &entries {
        match undo {
            Undo::Group { pid, .. } => {
                let _ = sys::signal_group(*pid, sys::SIGKILL);
            }
            Undo::Mount(path) => unmount(path),
            Undo::Directory(path) => remove_tree(path),
        }
    }
}

fn list() -> MutexGuard<'static, Vec<(u64, Undo)>> {
    static LIST: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Removes what harnesses left that are no longer alive.
fn sweep() {
    for parent in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        let Ok(entries) = fs::read_dir(&parent) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            let owner = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                remove_tree(&entry.path());
            }
        }
    }
}

/// Removes a tree, after taking back what is mounted inside it.
fn remove_tree(path: &Path) {
    if let Ok(mounts) = fs::read_to_string("/proc/self/mounts") {
        let inside =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(path));
        // The innermost come last in the list.
        for at in inside.collect::<Vec<_>>().into_iter().rev() {
            unmount(Path::new(at));
        }
    }
    // A process that is just dying may still be writing.
    for _ in 0..5 {
        match fs::remove_dir_all(path) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
}

fn mount(kind: &str, options: &str, path: &Path) -> bool {
    quiet(Command::new("mount").args(["-t", kind, "-o", options, "none"]).arg(path))
}

fn unmount(path: &Path) {
    quiet(Command::new("umount").arg("-l").arg(path));
}

fn quiet(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_goes_with_its_owner() {
        let scratch = Scratch::new("gone").unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), b"x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn a_memory_file_system_is_one_and_has_its_size() {
        let scratch = Scratch::new("memory").unwrap();
        let Ok(memory) = MemoryFs::mount(&scratch.path().join("m"), Some(1 << 20)) else {
            println!("skipped: nothing can be mounted here");
            return;
        };
        assert!(sys::is_memory_fs(memory.path()).unwrap());
        assert!(!sys::is_memory_fs(scratch.path()).unwrap() || sys::is_memory_fs(&std::env::temp_dir()).unwrap());
        assert!(fs::write(memory.path().join("big"), vec![0u8; 2 << 20]).is_err());
        let at = memory.path().to_owned();
        drop(memory);
        assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(at.to_str().unwrap()));
    }
}
