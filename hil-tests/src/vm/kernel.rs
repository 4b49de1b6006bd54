//! Debian's kernel, fetched as a package and unpacked beside the build: nothing is installed on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use anyhow::{Context, Result, anyhow, bail};

use crate::{rig, spawn, sys};

/// A kernel with its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What `uname -r` will say.
    pub version: String,
    /// Its image, an EFI program.
    pub image: PathBuf,
    /// The package's files: `lib/modules/VERSION` and the rest.
    pub root: PathBuf,
}

impl Kernel {
    /// The kernel that Debian's `linux-image-amd64` stands for, downloaded by apt once per version and kept in
    /// `TARGET/vm`. Without a network the newest that is there serves.
    ///
    /// # Errors
    /// When there is none and apt cannot bring it.
    pub fn debian() -> Result<Self> {
        let root = unpacked_newest("linux-image-", kernel_package)?;
        let modules = only_entry(&root.join("lib/modules"))?;
        let version = modules.file_name().and_then(|name| name.to_str()).context("no kernel version")?.to_owned();
        let image = root.join(format!("boot/vmlinuz-{version}"));
        if !image.is_file() {
            bail!("{} is not there; remove {} to have it fetched again", image.display(), root.display());
        }
        Ok(Self { version, image, root })
    }

    /// The named modules and those they need, in the order in which they load, decompressed.
    ///
    /// # Errors
    /// When the kernel has no such module.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = BTreeMap::new();
        find_modules(&self.root.join("lib/modules").join(&self.version).join("kernel"), &mut files)?;
        let mut loaded = Vec::new();
        for name in names {
            load(&files, name, 0, &mut loaded)?;
        }
        Ok(loaded)
    }
}

/// A copy of an EFI program at `to`, signed with the key that OVMF's "snakeoil" variables trust. Its private half is
/// public: it proves what Secure Boot measures, nothing else.
///
/// # Errors
/// When a tool is missing or fails.
pub fn sign(program: &Path, to: &Path) -> Result<()> {
    let key = to.with_extension("key");
    let decrypt = ["pkey", "-in", "/usr/share/ovmf/PkKek-1-snakeoil.key", "-passin", "pass:snakeoil", "-out"];
    spawn::run(Command::new("openssl").args(decrypt).arg(&key))?;
    let mut sign = Command::new("sbsign");
    sign.args(["--cert", "/usr/share/ovmf/PkKek-1-snakeoil.pem", "--key"]).arg(&key);
    spawn::run(sign.arg("--output").arg(to).arg(program)).map(drop)
}

/// The files of a Debian package, downloaded by apt once per version, never installed, and kept in `TARGET/vm`. Without a
/// network those that are there serve.
///
/// # Errors
/// When there is none and apt cannot bring it.
pub(super) fn unpacked(package: &str) -> Result<PathBuf> {
    unpacked_newest(&format!("{package}_"), || Ok(package.to_owned()))
}

/// As [`unpacked`], of a package whose name `wanted` finds out; what is there already begins with `prefix`.
fn unpacked_newest(prefix: &str, wanted: impl Fn() -> Result<String>) -> Result<PathBuf> {
    // Two scenarios that start at once do not download it twice.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = rig::target_dir().join("vm");
    fs::create_dir_all(&dir)?;
    let find = || -> Result<PathBuf> {
        let package = wanted().and_then(|package| with_version(&package))?;
        let root = dir.join(&package);
        if !root.is_dir() {
            fetch(&dir, &package).with_context(|| format!("fetching the package {package}"))?;
        }
        Ok(root)
    };
    let mut found = find();
    // Lists that were never fetched, or that name a version which is gone, perhaps.
    if found.is_err() && sys::is_root() && spawn::run(Command::new("apt-get").args(["-q", "update"])).is_ok() {
        found = find();
    }
    match found {
        Ok(root) => Ok(root),
        Err(error) => {
            let root = newest(&dir, prefix)?.ok_or_else(|| anyhow!("{error:#}"))?;
            eprintln!("{error:#}; {} serves", root.display());
            Ok(root)
        }
    }
}

/// The kernel's package: the one that `linux-image-amd64` depends on.
fn kernel_package() -> Result<String> {
    let listed = spawn::run(Command::new("apt-cache").args(["depends", "--important", "linux-image-amd64"]))
        .context("apt knows no linux-image-amd64 (it is Debian's)")?;
    let package = listed.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim);
    let package = package.filter(|name| name.starts_with("linux-image-"));
    package.map(str::to_owned).context("linux-image-amd64 names no kernel")
}

/// A package's name with its version: `linux-image-6.1.0-28-amd64_6.1.119-1`.
fn with_version(package: &str) -> Result<String> {
    let shown = spawn::run(Command::new("apt-cache").args(["show", "--no-all-versions", package]))?;
    let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
    let version = version.with_context(|| format!("apt names no version of {package}"))?;
    // An epoch's colon does not go into names.
    Ok(format!("{package}_{}", version.trim().replace(':', "%3a")))
}

/// Downloads and unpacks it under a name of this process's own first: another may be doing the same.
fn fetch(dir: &Path, package: &str) -> Result<()> {
    let work = dir.join(format!("part-{}", std::process::id()));
    let unpacked = work.join("root");
    fs::create_dir_all(&unpacked)?;
    let name = package.split('_').next().unwrap_or(package);
    eprintln!("downloading {name} …");
    let mut get = Command::new("apt-get");
    // As this user: apt's own may not enter every build directory.
    get.args(["-q", "-o", "APT::Sandbox::User=root", "download", name]).current_dir(&work);
    let done = spawn::run(&mut get).and_then(|_| {
        let is_package = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "deb");
        let file = fs::read_dir(&work)?.flatten().map(|entry| entry.path()).find(is_package);
        let file = file.context("apt-get download left no package")?;
        spawn::run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&unpacked))?;
        match fs::rename(&unpacked, dir.join(package)) {
            Err(error) if !dir.join(package).is_dir() => Err(error.into()),
            _ => Ok(()),
        }
    });
    let _ = fs::remove_dir_all(&work);
    done
}

/// What was unpacked last.
fn newest(dir: &Path, prefix: &str) -> io::Result<Option<PathBuf>> {
    let mut found: Vec<_> = fs::read_dir(dir)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    Ok(found.pop().map(|(_, path)| path))
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?.flatten().next();
    entry.map(|entry| entry.path()).ok_or_else(|| anyhow!("{} is empty", dir.display()))
}

fn find_modules(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// Puts a module behind those it needs.
fn load(files: &BTreeMap<String, PathBuf>, name: &str, depth: u32, loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let name = name.replace('-', "_");
    if loaded.iter().any(|(other, _)| *other == name) {
        return Ok(());
    }
    if depth > 20 {
        bail!("the module {name} needs itself");
    }
    let path = files.get(&name).ok_or_else(|| anyhow!("this kernel has no module {name}"))?;
    let bytes = match path.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => decompress("xz", path)?,
        Some("zst") => decompress("zstd", path)?,
        _ => fs::read(path)?,
    };
    for needed in dependencies(&bytes) {
        load(files, &needed, depth + 1, loaded)?;
    }
    loaded.push((name, bytes));
    Ok(())
}

fn decompress(program: &str, path: &Path) -> Result<Vec<u8>> {
    let output = Command::new(program).arg("-dc").arg(path).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program} -dc {}: {}", path.display(), output.status);
    }
    Ok(output.stdout)
}

/// What a module's own `.modinfo` section says it needs: `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|part| part == FIELD) else { return Vec::new() };
    let value = module.get(at + FIELD.len()..).unwrap_or_default().split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_all_it_needs_and_once() {
        let scratch = crate::scratch::Scratch::new("modules").unwrap();
        let write = |name: &str, info: &str| {
            let path = scratch.path().join("kernel/net");
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(name), format!("ELF\0license=GPL\0{info}\0name=x\0")).unwrap();
        };
        write("net-device.ko", "depends=ring,failover");
        write("ring.ko", "depends=");
        write("failover.ko", "depends=ring");
        let mut files = BTreeMap::new();
        find_modules(&scratch.path().join("kernel"), &mut files).unwrap();
        let mut loaded = Vec::new();
        load(&files, "net_device", 0, &mut loaded).unwrap();
        let names: Vec<&str> = loaded.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ring", "failover", "net_device"]);
        let error = load(&files, "none", 0, &mut loaded).unwrap_err().to_string();
        assert_eq!(error, "this kernel has no module none");
    }

    #[test]
    fn modules_that_need_each_other_are_an_error() {
        let scratch = crate::scratch::Scratch::new("modules").unwrap();
        fs::write(scratch.path().join("a.ko"), b"\0depends=a2\0").unwrap();
        fs::write(scratch.path().join("a2.ko"), b"\0depends=a\0").unwrap();
        let mut files = BTreeMap::new();
        find_modules(scratch.path(), &mut files).unwrap();
        assert!(load(&files, "a", 0, &mut Vec::new()).is_err());
    }
}
