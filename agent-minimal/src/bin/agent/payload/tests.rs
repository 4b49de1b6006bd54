//! Payloads unpacked on a tmpfs. Where there is none at hand, the tests say so and pass.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use protocol::crypto::container::{self, write_container};

use super::*;

const ID: SealingId = SealingId([7; 16]);

/// A fresh directory on the tmpfs that Linux systems have for shared memory.
fn scratch() -> Option<tempfile::TempDir> {
    let shm = Path::new("/dev/shm");
    match sys::file_system(shm) {
        Ok((FileSystem::Tmpfs, _)) => tempfile::tempdir_in(shm).ok(),
        _ => {
            eprintln!("skipped: no tmpfs at /dev/shm");
            None
        }
    }
}

fn home_at(target: &Path) -> PayloadDir {
    PayloadDir::new(target, &target.with_file_name("cryptsetup-keys.d"))
}

fn container(files: &[(&str, bool, &[u8])]) -> Vec<u8> {
    let files: Vec<_> = files
        .iter()
        .map(|(path, executable, bytes)| container::File { path, executable: *executable, bytes })
        .collect();
    write_container(&files).unwrap().to_vec()
}

fn put(home: &PayloadDir, id: SealingId, plaintext: &[u8]) -> Result<(), PayloadError> {
    let mut incoming = home.begin(id, plaintext.len() as u64)?;
    for piece in plaintext.chunks(100) {
        incoming.write(piece)?;
    }
    incoming.place(&[9; 32], false)
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn payload_is_placed_with_its_modes_and_its_record() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("run/payload"));
    assert_eq!(home.existing(), None);
    put(&home, ID, &container(&[("a/b/c.txt", false, b"text"), ("autorun", true, b"#!/bin/sh\n")])).unwrap();
    assert_eq!(fs::read(home.path().join("a/b/c.txt")).unwrap(), b"text");
    let mode = |name: &str| fs::metadata(home.path().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("."), mode("a"), mode("a/b/c.txt"), mode("autorun")), (0o700, 0o700, 0o600, 0o700));
    assert_eq!(home.existing(), Some(Placed { sealing_id: ID, proof: Some([9; 32]), autorun: false }));
    assert_eq!(names(&scratch.path().join("run")), [".payload.confirm", "payload"]);
    home.confirmed(SealingId([8; 16])).unwrap();
    assert_eq!(home.existing(), Some(Placed { sealing_id: ID, proof: Some([9; 32]), autorun: false }));
    home.confirmed(ID).unwrap();
    assert_eq!(home.existing(), Some(Placed { sealing_id: ID, proof: None, autorun: false }));
    home.forget();
    assert_eq!(home.existing(), None);
}

#[test]
fn disk_keys_are_linked_with_the_payload_and_go_with_it() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    let keys = scratch.path().join("cryptsetup-keys.d");
    let files: [(&str, bool, &[u8]); 3] =
        [("app", false, b"1"), ("cryptsetup/data.key", false, b"d"), ("cryptsetup/root.key", false, b"\0k\n")];
    put(&home, ID, &container(&files)).unwrap();
    assert_eq!(names(&keys), ["data.key", "root.key"]);
    assert_eq!(fs::read_link(keys.join("root.key")).unwrap(), home.path().join("cryptsetup/root.key"));
    put(&home, SealingId([8; 16]), &container(&files[..2])).unwrap();
    assert_eq!(names(&keys), ["data.key"]);
    home.forget();
    assert_eq!(names(&keys), [""; 0]);
}

#[test]
fn one_file_is_printed_byte_by_byte_and_nothing_from_outside() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    let print = |file: &str| {
        let mut out = Vec::new();
        home.print(file, &mut out).map(|()| out).map_err(|why| why.kind())
    };
    assert_eq!(print("a"), Err(io::ErrorKind::NotFound));
    let long: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
    put(&home, ID, &container(&[("a", false, &long), ("d/e/f", true, b"\0\n"), ("g", false, b"")])).unwrap();
    assert_eq!((print("a").unwrap(), print("d/e/f").unwrap(), print("g").unwrap()), (long, b"\0\n".to_vec(), vec![]));
    fs::write(scratch.path().join("secret"), "s").unwrap();
    symlink("../secret", home.path().join("link")).unwrap();
    symlink("..", home.path().join("d/up")).unwrap();
    symlink(scratch.path(), home.path().join("d/out")).unwrap();
    for outside in ["../secret", "d/../../secret", "d/../a", "/etc/passwd", "", ".", "./a", "a/", "d//e", "nul\0"] {
        let why = print(outside).unwrap_err();
        assert!(matches!(why, io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory), "{outside}: {why}");
    }
    for linked in ["link", "d/up/a", "d/out/secret", "d"] {
        assert!(print(linked).is_err(), "{linked}");
    }
    assert_eq!(print("d/x"), Err(io::ErrorKind::NotFound));
    // A link in the payload's own place is not followed either.
    let other = home_at(&scratch.path().join("other"));
    symlink(home.path(), other.path()).unwrap();
    assert!(other.print("a", &mut Vec::new()).is_err());
}

#[test]
fn later_payload_replaces_the_whole_earlier_one() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    put(&home, ID, &container(&[("old", false, b"1")])).unwrap();
    let other = SealingId([8; 16]);
    put(&home, other, &container(&[("new", false, b"2")])).unwrap();
    assert_eq!(names(home.path()), ["new"]);
    assert_eq!(home.existing().unwrap().sealing_id, other);
    assert_eq!(names(scratch.path()), [".payload.confirm", "payload"]);
}

#[test]
fn unfinished_payload_leaves_nothing_and_keeps_what_was_there() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    put(&home, ID, &container(&[("old", false, b"1")])).unwrap();
    let next = container(&[("new", false, b"2")]);
    let mut incoming = home.begin(SealingId([8; 16]), next.len() as u64).unwrap();
    incoming.write(&next[..next.len() - 1]).unwrap();
    assert!(matches!(incoming.place(&[0; 32], false), Err(PayloadError::Refused(ContainerError::Truncated))));
    assert_eq!(names(scratch.path()), [".payload.confirm", "payload"]);
    assert_eq!(home.existing(), Some(Placed { sealing_id: ID, proof: Some([9; 32]), autorun: false }));
}

#[test]
fn record_about_another_directory_counts_for_nothing() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    put(&home, ID, &container(&[("old", false, b"1")])).unwrap();
    fs::rename(home.path(), scratch.path().join("elsewhere")).unwrap();
    assert_eq!(home.existing(), None);
    fs::create_dir(home.path()).unwrap();
    assert_eq!(home.existing(), None);
    fs::remove_dir(home.path()).unwrap();
    symlink(scratch.path().join("elsewhere"), home.path()).unwrap();
    assert_eq!(home.existing(), None);
}

#[test]
fn leftovers_of_a_killed_run_are_cleaned_and_nothing_else() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    put(&home, ID, &container(&[("old", false, b"1")])).unwrap();
    let mut incoming = home.begin(SealingId([8; 16]), 1000).unwrap();
    incoming.write(&container(&[("new", false, b"2")])).unwrap();
    std::mem::forget(incoming);
    fs::create_dir(scratch.path().join(".other.new")).unwrap();
    assert_eq!(names(scratch.path()).len(), 4);
    home.clean();
    assert_eq!(names(scratch.path()), [".other.new", ".payload.confirm", "payload"]);
    assert!(home.existing().is_some());
}

#[test]
fn record_with_any_byte_cut_or_added_is_none() {
    let placed = Placed { sealing_id: ID, proof: Some([1; 32]), autorun: true };
    let record = encode_record(placed, 5);
    assert_eq!(record.len(), RECORD_LEN);
    assert_eq!(decode_record(&record), Ok((placed, 5)));
    for len in 0..record.len() {
        assert_eq!(decode_record(&record[..len]), Err(CodecError::Truncated));
    }
    assert_eq!(decode_record(&[&record[..], &[0]].concat()), Err(CodecError::TrailingBytes));
    let mut bad = record;
    bad[40] = 3;
    assert_eq!(decode_record(&bad), Err(CodecError::BadValue));
}

#[test]
fn disk_takes_no_plaintext() {
    let home = home_at(Path::new("/proc/trefoil/payload"));
    assert!(matches!(home.begin(ID, 10), Err(PayloadError::NotInMemory(_))));
    assert_eq!(home.begin(ID, 10).err().unwrap().kind(), ReportKind::PayloadNotStored);
}

#[test]
fn more_than_there_is_room_for_is_refused_at_once() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    assert!(matches!(home.begin(ID, limits::MAX_PAYLOAD_LEN + 1), Err(PayloadError::NoRoom { .. })));
    assert_eq!(names(scratch.path()), [""; 0]);
}

#[test]
fn what_is_kept_from_swap_has_to_fit_memory() {
    let (free, memory) = (1 << 30, MEMORY_MARGIN + 1000);
    assert_eq!(usable(FileSystem::Tmpfs, false, free, None), Some(free));
    assert_eq!(usable(FileSystem::Tmpfs, true, free, Some(memory)), Some(1000));
    assert_eq!(usable(FileSystem::Tmpfs, true, 10, Some(memory)), Some(10));
    assert_eq!(usable(FileSystem::Ramfs, true, 0, Some(memory)), Some(1000));
    for (memory, expected) in [(None, 0), (Some(1), 0)] {
        assert_eq!(usable(FileSystem::Ramfs, true, free, memory), Some(expected));
    }
    assert_eq!(usable(FileSystem::Other(1), true, free, Some(memory)), None);
}

#[test]
fn more_than_was_announced_is_refused() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    let plaintext = container(&[("new", false, b"2")]);
    let mut incoming = home.begin(ID, plaintext.len() as u64 - 1).unwrap();
    let why = incoming.write(&plaintext).unwrap_err();
    assert!(matches!(why, PayloadError::TooLong));
    assert_eq!(why.kind(), ReportKind::PayloadRefused);
}

#[test]
fn path_through_a_link_or_a_file_is_refused() {
    let Some(scratch) = scratch() else { return };
    let home = home_at(&scratch.path().join("payload"));
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let plaintext = container(&[("dir/file", false, b"2")]);
    let mut incoming = home.begin(ID, plaintext.len() as u64).unwrap();
    symlink(&outside, scratch.path().join(format!(".payload.{ID}.new/dir"))).unwrap();
    assert!(matches!(incoming.write(&plaintext), Err(PayloadError::Path | PayloadError::Io { .. })));
    drop(incoming);
    assert_eq!(names(&outside), [""; 0]);
    assert!(outside.exists());
}
