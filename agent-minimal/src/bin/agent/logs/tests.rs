//! Logs as files that grow, shrink, and lie.

use std::{fs::OpenOptions, io::Write as _};

use super::*;

fn entry(number: u32, data_len: usize) -> Vec<u8> {
    let mut entry = 10_u32.to_le_bytes().to_vec();
    entry.extend_from_slice(&[number as u8; 20]);
    entry.extend_from_slice(&6_u32.to_le_bytes());
    entry.extend_from_slice(b"ima-ng");
    entry.extend_from_slice(&(data_len as u32).to_le_bytes());
    entry.resize(entry.len() + data_len, number as u8);
    entry
}

fn oldest_entry(path: &[u8]) -> Vec<u8> {
    let mut entry = 10_u32.to_le_bytes().to_vec();
    entry.extend_from_slice(&[1; 20]);
    entry.extend_from_slice(&3_u32.to_le_bytes());
    entry.extend_from_slice(b"ima");
    entry.extend_from_slice(&[2; 20]);
    entry.extend_from_slice(&(path.len() as u32).to_le_bytes());
    entry.extend_from_slice(path);
    entry
}

struct Rig {
    _scratch: tempfile::TempDir,
    boot: PathBuf,
    ima: PathBuf,
    command_line: PathBuf,
    userspace: PathBuf,
    logs: Logs,
}

impl Rig {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let (boot, ima) = (scratch.path().join("boot"), scratch.path().join("ima"));
        let (command_line, userspace) = (scratch.path().join("command-line"), scratch.path().join("userspace"));
        let paths = LogPaths { boot: &boot, ima: &ima, command_line: &command_line, userspace: &userspace };
        let logs = Logs::new(&paths);
        Self { _scratch: scratch, boot, ima, command_line, userspace, logs }
    }

    fn append(&self, bytes: &[u8]) {
        OpenOptions::new().append(true).create(true).open(&self.ima).unwrap().write_all(bytes).unwrap();
    }
}

#[test]
fn missing_logs_are_none() {
    let mut rig = Rig::new();
    assert!(!rig.logs.has_boot_log() && !rig.logs.has_ima_log());
    assert_eq!(rig.logs.boot_state().unwrap(), None);
    assert_eq!(rig.logs.read_boot_log(0, &mut [0; 8]).unwrap(), 0);
    assert_eq!(rig.logs.ima_part(0, 4096).unwrap(), None);
    assert_eq!(rig.logs.ima_len(0).unwrap(), None);
    assert_eq!(rig.logs.command_line().unwrap(), None);
    assert_eq!(rig.logs.read_command_line(0, &mut [0; 8]).unwrap(), 0);
    assert_eq!(rig.logs.userspace_len().unwrap(), None);
    assert_eq!(rig.logs.read_userspace(0, &mut [0; 8]).unwrap(), 0);
}

#[test]
fn command_line_comes_without_its_newline_and_in_parts() {
    let rig = Rig::new();
    fs::write(&rig.command_line, "root=/dev/vda1 ro quiet\n").unwrap();
    assert_eq!(rig.logs.command_line().unwrap().unwrap(), b"root=/dev/vda1 ro quiet");
    let mut part = [0; 8];
    assert_eq!(rig.logs.read_command_line(18, &mut part).unwrap(), 5);
    assert_eq!(&part[..5], b"quiet");
    assert_eq!(rig.logs.read_command_line(23, &mut part).unwrap(), 0);
    assert_eq!(rig.logs.read_command_line(24, &mut part).unwrap(), 0);
    fs::write(&rig.command_line, "").unwrap();
    assert_eq!(rig.logs.command_line().unwrap().unwrap(), b"");
}

#[test]
fn command_line_above_its_limit_is_refused() {
    let rig = Rig::new();
    let mut line = vec![b'a'; limits::MAX_COMMAND_LINE_LEN];
    line.push(b'\n');
    fs::write(&rig.command_line, &line).unwrap();
    assert_eq!(rig.logs.command_line().unwrap().unwrap().len(), limits::MAX_COMMAND_LINE_LEN);
    for longer in [[line.as_slice(), b"\n"].concat(), vec![b'a'; 3 * limits::MAX_COMMAND_LINE_LEN]] {
        fs::write(&rig.command_line, longer).unwrap();
        assert!(matches!(rig.logs.command_line(), Err(LogError::CommandLineTooLong)));
    }
}

#[test]
fn userspace_log_is_read_in_parts_up_to_its_limit() {
    let rig = Rig::new();
    let log: Vec<u8> = (0..10_000_u32).map(|i| i as u8).collect();
    fs::write(&rig.userspace, &log).unwrap();
    assert_eq!(rig.logs.userspace_len().unwrap(), Some(10_000));
    let mut part = [0; 4096];
    assert_eq!(rig.logs.read_userspace(8000, &mut part).unwrap(), 2000);
    assert_eq!(part[..2000], log[8000..]);
    fs::write(&rig.userspace, vec![0; limits::MAX_USERSPACE_LOG_LEN + 1]).unwrap();
    assert!(matches!(rig.logs.userspace_len(), Err(LogError::UserspaceTooLong)));
}

#[test]
fn boot_log_is_hashed_whole_and_read_in_parts() {
    let mut rig = Rig::new();
    let log: Vec<u8> = (0..10_000_u32).map(|i| i as u8).collect();
    fs::write(&rig.boot, &log).unwrap();
    let state = rig.logs.boot_state().unwrap().unwrap();
    assert_eq!((state.len, state.digest.0), (10_000, Sha256::digest(&log).into()));
    assert_eq!(rig.logs.boot_state().unwrap(), Some(state));
    let mut part = [0; 4096];
    assert_eq!(rig.logs.read_boot_log(8000, &mut part).unwrap(), 2000);
    assert_eq!(part[..2000], log[8000..]);
    assert_eq!(rig.logs.read_boot_log(10_000, &mut part).unwrap(), 0);
}

#[test]
fn boot_log_above_its_limit_is_refused() {
    let mut rig = Rig::new();
    fs::write(&rig.boot, vec![0; limits::MAX_BOOT_LOG_LEN + 1]).unwrap();
    assert!(matches!(rig.logs.boot_state(), Err(LogError::TooLong)));
}

#[test]
fn list_is_cut_at_whole_entries() {
    let mut rig = Rig::new();
    let entries: Vec<Vec<u8>> = (0..100).map(|i| entry(i, 40 + i as usize)).collect();
    rig.append(&entries.concat());
    let (total, part) = rig.logs.ima_part(0, 4096).unwrap().unwrap();
    assert_eq!(total, 100);
    assert!(part.len() <= 4096 && part.len() + 200 > 4096);
    assert!(entries.concat().starts_with(&part));
    let (_, part) = rig.logs.ima_part(98, 4096).unwrap().unwrap();
    assert_eq!(part, entries[98..].concat());
    assert_eq!(rig.logs.ima_part(100, 4096).unwrap().unwrap(), (100, vec![]));
    assert_eq!(rig.logs.ima_part(101, 4096).unwrap().unwrap(), (100, vec![]));
    // One that fits nowhere is left to be pulled.
    assert_eq!(rig.logs.ima_part(0, 10).unwrap().unwrap(), (100, vec![]));
}

#[test]
fn growing_list_is_followed_and_read_from_any_entry() {
    let mut rig = Rig::new();
    let mut all = Vec::new();
    let mut starts = Vec::new();
    for i in 0..500 {
        starts.push(all.len());
        let next = if i % 7 == 0 { oldest_entry(b"/bin/sh") } else { entry(i, i as usize * 13 % 9000) };
        all.extend_from_slice(&next);
        rig.append(&next);
        if i % 50 == 0 {
            assert_eq!(rig.logs.ima_part(u64::from(i) + 1, 4096).unwrap().unwrap().0, u64::from(i) + 1);
        }
    }
    for from in [0, 1, 250, 499, 3, 500] {
        let len = rig.logs.ima_len(from).unwrap().unwrap();
        let start = starts.get(from as usize).copied().unwrap_or(all.len());
        assert_eq!(len as usize, all.len() - start, "{from}");
        let (mut read, mut buf) = (Vec::new(), [0; 7168]);
        loop {
            match rig.logs.ima_from(from, read.len() as u64, &mut buf).unwrap() {
                0 => break,
                got => read.extend_from_slice(&buf[..got]),
            }
        }
        assert!(read == all[start..], "{from}");
    }
    assert!(matches!(rig.logs.ima_len(501), Err(LogError::NoSuchEntry { total: 500 })));
}

#[test]
fn unfinished_entry_is_none_yet() {
    let mut rig = Rig::new();
    let (one, two) = (entry(1, 40), entry(2, 300));
    rig.append(&one);
    for cut in 1..two.len() {
        rig.append(&two[cut - 1..cut]);
        assert_eq!(rig.logs.ima_part(0, 4096).unwrap().unwrap(), (1, one.clone()));
    }
    rig.append(&two[two.len() - 1..]);
    assert_eq!(rig.logs.ima_part(0, 4096).unwrap().unwrap(), (2, [one, two].concat()));
}

#[test]
fn list_that_is_another_file_is_begun_anew() {
    let mut rig = Rig::new();
    rig.append(&[entry(1, 40), entry(2, 40)].concat());
    assert_eq!(rig.logs.ima_part(2, 4096).unwrap().unwrap().0, 2);
    fs::remove_file(&rig.ima).unwrap();
    rig.append(&entry(3, 44));
    assert_eq!(rig.logs.ima_part(0, 4096).unwrap().unwrap(), (1, entry(3, 44)));
}

#[test]
fn absurd_lengths_are_malformed() {
    for at in [24, 34] {
        let mut rig = Rig::new();
        let mut bad = entry(2, 40);
        bad[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        rig.append(&[entry(1, 40), bad, vec![0; 100_000]].concat());
        assert!(matches!(rig.logs.ima_part(0, 4096), Err(LogError::Malformed(1))));
    }
}
