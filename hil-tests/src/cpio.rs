//! Writes cpio archives as the Linux kernel unpacks them into its first root file system ("newc", see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Everything belongs to root and has the time 0: the same content is the same archive, and measures the same. Nothing is
//! compressed; the kernel takes it so.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    dirs: BTreeSet<String>,
}

impl Archive {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory, with those above it; one that is there already stays as it is.
    pub fn dir(&mut self, path: &str, mode: u32) {
        let path = path.trim_matches('/');
        self.parents(path);
        if !path.is_empty() && self.dirs.insert(path.to_owned()) {
            self.entry(path, DIRECTORY | mode, (0, 0), &[]);
        }
    }

    /// A file, with the directories above it (0755).
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, FILE | mode, (0, 0), content);
    }

    /// A symbolic link, with the directories above it.
    pub fn link(&mut self, path: &str, target: &str) {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// A character device, with the directories above it. The kernel opens `dev/console` before anything is mounted.
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE | mode, (major, minor), &[]);
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.record("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            if let Some(parent) = path.get(..at).filter(|parent| !self.dirs.contains(*parent)).map(str::to_owned) {
                self.entry(&parent, DIRECTORY | 0o755, (0, 0), &[]);
                self.dirs.insert(parent);
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        self.record(path, mode, device, content);
    }

    fn record(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        let links = if mode & DIRECTORY_BITS == DIRECTORY { 2 } else { 1 };
        // Inode, mode, uid, gid, links, time, size, device (2), device of a special file (2), length of the name, sum.
        let fields =
            [self.inode, mode, 0, 0, links, 0, content.len() as u32, 0, 0, major, minor, path.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for field in fields {
            // Writing to a String cannot fail.
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// `S_IFMT` and three of its values (stat(2)).
const DIRECTORY_BITS: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::apt;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.file("etc/a/b", 0o640, b"content");
        archive.dir("etc", 0o700);
        archive.dir("/run/", 0o711);
        archive.link("bin/sh", "busybox");
        archive.device("dev/console", 0o600, 5, 1);
        archive.finish()
    }

    #[test]
    fn the_same_content_is_the_same_archive_and_ends_with_its_trailer() {
        let archive = sample();
        assert_eq!(archive, sample());
        assert!(archive.starts_with(b"070701") && archive.len().is_multiple_of(4));
        assert!(archive.windows(11).any(|part| part == b"TRAILER!!!\0"));
    }

    #[test]
    fn gnu_cpio_lists_what_was_put_in() {
        if apt::find_program("cpio").is_none() {
            println!("skipped: cpio is not installed");
            return;
        }
        let mut cpio = Command::new("cpio");
        cpio.args(["-t", "-v", "-n", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut cpio = cpio.spawn().unwrap();
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let listed = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<(&str, &str)> = listed
            .lines()
            .map(|line| (line.split(' ').next().unwrap(), line.rsplit("1970 ").next().unwrap()))
            .collect();
        let expected = [
            ("drwxr-xr-x", "etc"),
            ("drwxr-xr-x", "etc/a"),
            ("-rw-r-----", "etc/a/b"),
            ("drwx--x--x", "run"),
            ("drwxr-xr-x", "bin"),
            ("lrwxrwxrwx", "bin/sh -> busybox"),
            ("drwxr-xr-x", "dev"),
            ("crw-------", "dev/console"),
        ];
        assert_eq!(lines, expected, "{listed}");
    }
}
