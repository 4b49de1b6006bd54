//! Whether the same sources give the same agent wherever they lie: builds it from a copy in another directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use hil_tests::scratch::Scratch;
use sha2::{Digest, Sha256};

use super::build::{ARCHES, Target, Tree};
use crate::tools::Counts;

/// Builds each agent here and in a copy of the sources, and compares the files.
///
/// # Errors
/// When one does not compile; a difference is in the counts.
pub(crate) fn check() -> Result<Counts> {
    let here = Tree::here();
    let scratch = Scratch::new("another-place-with-a-longer-name")?;
    let root = scratch.path().join("sources/of/the/workspace");
    let files = copy_sources(&here.root, &root)?;
    let there = Tree { target_dir: scratch.path().join("built"), root: root.clone(), symbols: false };
    let mut counts = Counts::default();
    for arch in ARCHES {
        let Some(target) = Target::find(arch) else {
            println!("skipped: two builds of the agent for {arch}: its Rust target cannot be added");
            counts += Counts::SKIPPED;
            continue;
        };
        let [ours, theirs] = [here.agent(&target)?, there.agent(&target)?].map(|path| digest(&path));
        let (ours, theirs) = (ours?, theirs?);
        counts += if ours == theirs {
            println!("reproducible: {} has sha256 {ours} in both directories", target.triple);
            Counts::PASSED
        } else if let Some(file) = files.iter().find(|file| !same(&here.root.join(file), &root.join(file))) {
            bail!("{} was changed while the agent was built; run this again", file.display());
        } else {
            println!("NOT reproducible: {} has sha256 {ours} here and {theirs} elsewhere", target.triple);
            Counts::FAILED
        };
    }
    Ok(counts)
}

fn digest(path: &Path) -> Result<String> {
    let file = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(hex::encode(Sha256::digest(file)))
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).ok().zip(fs::read(other).ok()).is_some_and(|(one, other)| one == other)
}

/// Copies the workspace's sources: what git knows or would add, and without git all but hidden and built files. Gives the
/// copied files.
fn copy_sources(from: &Path, to: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(from)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let mut files: Vec<PathBuf> = match listed {
        Ok(output) if output.status.success() => {
            let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
            names.split_terminator('\0').map(PathBuf::from).collect()
        }
        _ => {
            let mut files = Vec::new();
            walk(from, Path::new(""), &mut files)?;
            files
        }
    };
    ensure!(files.iter().any(|file| file == Path::new("Cargo.lock")), "there is no Cargo.lock among the sources");
    // What git still lists may be gone, or be a link to something else.
    files.retain(|file| from.join(file).symlink_metadata().is_ok_and(|found| found.is_file()));
    for file in &files {
        let source = from.join(file);
        let copy = to.join(file);
        fs::create_dir_all(copy.parent().unwrap_or(to))?;
        fs::copy(&source, &copy).with_context(|| format!("copying {}", file.display()))?;
    }
    Ok(files)
}

fn walk(root: &Path, under: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(under))? {
        let entry = entry?;
        let path = under.join(entry.file_name());
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if entry.file_type()?.is_dir() {
            // Cargo marks what it builds into.
            if !hidden && !entry.path().join("CACHEDIR.TAG").exists() {
                walk(root, &path, files)?;
            }
        } else if !hidden {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_copied_and_built_files_are_not() {
        let scratch = Scratch::new("sources").unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        for dir in ["src", "target/debug", ".hidden"] {
            fs::create_dir_all(from.join(dir)).unwrap();
        }
        assert!(copy_sources(&from, &to).is_err(), "no Cargo.lock");
        for file in ["Cargo.lock", "src/main.rs", "target/CACHEDIR.TAG", "target/debug/x", ".hidden/x"] {
            fs::write(from.join(file), file).unwrap();
        }
        let mut copied = copy_sources(&from, &to).unwrap();
        copied.sort();
        assert_eq!(copied, ["Cargo.lock", "src/main.rs"].map(PathBuf::from));
        assert!(same(&from.join("src/main.rs"), &to.join("src/main.rs")) && !same(&from, &to));
        assert_eq!(fs::read_to_string(to.join("src/main.rs")).unwrap(), "src/main.rs");
        assert!(to.join("Cargo.lock").is_file() && !to.join("target").exists() && !to.join(".hidden").exists());
    }
}
