//! Disk keys: what a payload calls `cryptsetup/NAME.key` is linked to where systemd-cryptsetup looks for it.
//!
//! The key itself stays in the payload's directory. Only links into that directory are ever made, changed or removed.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, symlink},
    path::{Path, PathBuf},
};

use crate::log;

/// The payload's directory of disk keys.
const DIRECTORY: &str = "cryptsetup";
/// The longest name of a volume.
const MAX_NAME_LEN: usize = 64;

/// Makes the links of the payload at `payload` in `keys_dir`, and removes those of one before it.
///
/// # Errors
/// The system's; what is in the way of a link is no error, but said.
pub(super) fn link(payload: &Path, keys_dir: &Path) -> io::Result<()> {
    let source = payload.join(DIRECTORY);
    let names = names(&source)?;
    unlink(payload, keys_dir, |name| names.iter().any(|kept| kept == name))?;
    if names.is_empty() {
        return Ok(());
    }
    prepare(keys_dir)?;
    for name in names {
        let (link, file) = (keys_dir.join(&name), source.join(&name));
        match fs::read_link(&link) {
            Ok(to) if to == file => {}
            Err(why) if why.kind() == io::ErrorKind::NotFound => symlink(&file, &link)?,
            Ok(_) | Err(_) => log::warn!("{} is there already and is not ours: it is left as it is", link.display()),
        }
    }
    Ok(())
}

/// Removes the links to files of this payload, but for those whose names `keep` accepts.
///
/// # Errors
/// The system's.
pub(super) fn unlink(payload: &Path, keys_dir: &Path, keep: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    let source = payload.join(DIRECTORY);
    let entries = match fs::read_dir(keys_dir) {
        Ok(entries) => entries,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(why),
    };
    for entry in entries {
        let entry = entry?;
        // Not a link: not ours.
        let Ok(to) = fs::read_link(entry.path()) else { continue };
        if to.parent() == Some(&source) && !keep(&entry.file_name()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes the directory of links, for root alone.
///
/// # Errors
/// The system's; also when the name belongs to something else.
pub(super) fn prepare(keys_dir: &Path) -> io::Result<()> {
    let made = fs::DirBuilder::new().mode(0o700).create(keys_dir);
    match made {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(keys_dir)?.is_dir() {
            true => Ok(()),
            false => Err(io::ErrorKind::NotADirectory.into()),
        },
        other => other,
    }
}

/// The files that can be linked; what is called otherwise is said.
fn names(source: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    if !fs::symlink_metadata(source).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(names);
    }
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_file() && is_key_name(&name) {
            names.push(name.into());
        } else {
            log::warn!("the payload's {} is not linked: it is no file called NAME.key", entry.path().display());
        }
    }
    Ok(names)
}

/// `NAME.key`, with a name that systemd-cryptsetup and the shell take as it is.
fn is_key_name(name: &OsStr) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
    name.as_encoded_bytes().strip_suffix(b".key").is_some_and(|name| {
        (1..=MAX_NAME_LEN).contains(&name.len()) && !name.starts_with(b".") && name.iter().copied().all(allowed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_names_are_plain_words() {
        let longest = "n".repeat(MAX_NAME_LEN);
        for name in ["root.key", "a.b-c_D9.key", "-.key", &format!("{longest}.key")] {
            assert!(is_key_name(OsStr::new(name)), "{name}");
        }
        for name in ["root", ".key", "..key", ".x.key", "a b.key", "a\n.key", "ü.key", &format!("{longest}n.key")] {
            assert!(!is_key_name(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn links_follow_the_payload_and_leave_alone_what_is_not_theirs() {
        let scratch = tempfile::tempdir().unwrap();
        let (payload, keys) = (scratch.path().join("payload"), scratch.path().join("keys.d"));
        let source = payload.join(DIRECTORY);
        fs::create_dir_all(&source).unwrap();
        for name in ["root.key", "data.key", "there.key", "other.key", "notes.txt"] {
            fs::write(source.join(name), name).unwrap();
        }
        symlink("/etc/passwd", source.join("stolen.key")).unwrap();
        fs::create_dir(source.join("dir.key")).unwrap();
        fs::create_dir(&keys).unwrap();
        fs::write(keys.join("there.key"), "an operator's").unwrap();
        symlink("/elsewhere", keys.join("other.key")).unwrap();
        symlink(source.join("gone.key"), keys.join("gone.key")).unwrap();
        symlink("/elsewhere", keys.join("foreign.key")).unwrap();
        for _ in 0..2 {
            link(&payload, &keys).unwrap();
            let mut found: Vec<_> = fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            found.sort();
            assert_eq!(found, ["data.key", "foreign.key", "other.key", "root.key", "there.key"]);
            assert_eq!(fs::read_link(keys.join("root.key")).unwrap(), source.join("root.key"));
            assert_eq!(fs::read(keys.join("data.key")).unwrap(), b"data.key");
            assert_eq!(fs::read(keys.join("there.key")).unwrap(), b"an operator's");
            assert_eq!(fs::read_link(keys.join("other.key")).unwrap(), Path::new("/elsewhere"));
        }
        fs::remove_file(source.join("root.key")).unwrap();
        link(&payload, &keys).unwrap();
        assert!(fs::symlink_metadata(keys.join("root.key")).is_err());
        unlink(&payload, &keys, |_| false).unwrap();
        assert!(fs::symlink_metadata(keys.join("data.key")).is_err() && keys.join("there.key").exists());
        assert!(fs::symlink_metadata(keys.join("foreign.key")).is_ok());
    }

    #[test]
    fn directory_of_links_is_for_root_alone_and_is_made_only_for_keys() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let (payload, keys) = (scratch.path().join("payload"), scratch.path().join("keys.d"));
        fs::create_dir(&payload).unwrap();
        link(&payload, &keys).unwrap();
        assert!(!keys.exists());
        fs::create_dir(payload.join(DIRECTORY)).unwrap();
        fs::write(payload.join(DIRECTORY).join("root.key"), "k").unwrap();
        link(&payload, &keys).unwrap();
        assert_eq!(fs::metadata(&keys).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn link_in_the_place_of_a_directory_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let (payload, keys) = (scratch.path().join("payload"), scratch.path().join("keys.d"));
        let elsewhere = scratch.path().join("elsewhere");
        fs::create_dir_all(elsewhere.join(DIRECTORY)).unwrap();
        fs::create_dir(&payload).unwrap();
        fs::write(elsewhere.join(DIRECTORY).join("root.key"), "k").unwrap();
        symlink(elsewhere.join(DIRECTORY), payload.join(DIRECTORY)).unwrap();
        link(&payload, &keys).unwrap();
        assert!(!keys.exists());
        fs::remove_file(payload.join(DIRECTORY)).unwrap();
        fs::create_dir(payload.join(DIRECTORY)).unwrap();
        fs::write(payload.join(DIRECTORY).join("root.key"), "k").unwrap();
        symlink(&elsewhere, &keys).unwrap();
        assert_eq!(link(&payload, &keys).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        assert!(!elsewhere.join("root.key").exists());
    }
}
