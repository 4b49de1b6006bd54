//! Payloads unpacked on a tmpfs. Where there is none at hand, the tests say so and pass.

use std::os::unix::fs::symlink;

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
    let home = PayloadDir::new(&scratch.path().join("run/payload"));
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
fn later_payload_replaces_the_whole_earlier_one() {
    let Some(scratch) = scratch() else { return };
    let home = PayloadDir::new(&scratch.path().join("payload"));
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
    let home = PayloadDir::new(&scratch.path().join("payload"));
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
    let home = PayloadDir::new(&scratch.path().join("payload"));
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
    let home = PayloadDir::new(&scratch.path().join("payload"));
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
    let home = PayloadDir::new(Path::new("/proc/trefoil/payload"));
    assert!(matches!(home.begin(ID, 10), Err(PayloadError::NotInMemory(_))));
    assert_eq!(home.begin(ID, 10).err().unwrap().kind(), ReportKind::PayloadNotStored);
}

#[test]
fn more_than_there_is_room_for_is_refused_at_once() {
    let Some(scratch) = scratch() else { return };
    let home = PayloadDir::new(&scratch.path().join("payload"));
    assert!(matches!(home.begin(ID, limits::MAX_PAYLOAD_LEN + 1), Err(PayloadError::NoRoom { .. })));
    assert_eq!(names(scratch.path()), [""; 0]);
}

#[test]
fn more_than_was_announced_is_refused() {
    let Some(scratch) = scratch() else { return };
    let home = PayloadDir::new(&scratch.path().join("payload"));
    let plaintext = container(&[("new", false, b"2")]);
    let mut incoming = home.begin(ID, plaintext.len() as u64 - 1).unwrap();
    let why = incoming.write(&plaintext).unwrap_err();
    assert!(matches!(why, PayloadError::TooLong));
    assert_eq!(why.kind(), ReportKind::PayloadRefused);
}

#[test]
fn path_through_a_link_or_a_file_is_refused() {
    let Some(scratch) = scratch() else { return };
    let home = PayloadDir::new(&scratch.path().join("payload"));
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

fn run(script: &str, limit: Duration) -> Ended {
    let scratch = tempfile::tempdir().unwrap();
    let program = scratch.path().join("autorun");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    // A file that was just written may be busy for a moment, when another test forks meanwhile.
    let mut autorun = loop {
        match Autorun::start(scratch.path(), limit) {
            Err(why) if why.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            started => break started.unwrap().unwrap(),
        }
    };
    loop {
        if let Some(ended) = autorun.poll().unwrap() {
            return ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn autorun_gives_its_status_and_the_end_of_its_output() {
    let ended = run(
        "#!/bin/sh\ni=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo last >&2; exit 3\n",
        AUTORUN_LIMIT,
    );
    assert_eq!(ended.code, 3);
    assert_eq!(ended.tail.len(), limits::MAX_REPORT_LEN);
    assert!(ended.tail.ends_with(b"line 1999\nlast\n"));
}

#[test]
fn autorun_that_takes_too_long_is_stopped_with_its_children() {
    let start = Instant::now();
    let ended = run("#!/bin/sh\necho begun; sleep 100\n", Duration::from_millis(300));
    assert_eq!(ended.code, 128 + libc::SIGKILL);
    assert!(String::from_utf8(ended.tail).unwrap().starts_with("begun\n\n(stopped"));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn payload_without_autorun_starts_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    assert!(Autorun::start(scratch.path(), AUTORUN_LIMIT).unwrap().is_none());
    fs::write(scratch.path().join("autorun"), "").unwrap();
    assert!(Autorun::start(scratch.path(), AUTORUN_LIMIT).is_err());
}
