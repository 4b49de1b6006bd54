//! Debian's own makers of initramfs images, run where they are at home: in a Debian root file system, which is made once
//! and kept beside the build. What `image/` ships is installed into a copy of it as the package would.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use hil_tests::apt::{self, Tool};
use hil_tests::scratch::Scratch;
use hil_tests::vm::Kernel;
use hil_tests::vm::appliance::static_agent;
use hil_tests::{rig, spawn};

/// The release; its kernel is what the scenarios boot.
const RELEASE: &str = "bookworm";
/// What is in it. `dracut-core` stands beside initramfs-tools, `dracut` would replace it.
const PACKAGES: &str = "initramfs-tools,cryptsetup-initramfs,busybox,kmod,udev,e2fsprogs,zstd,systemd-sysv,dbus,\
                        procps,dracut-core,dracut-network,isc-dhcp-client";
/// What is shipped for images, where the package puts it, and with which mode.
const SHIPPED: [(&str, &str, u32); 8] = [
    ("early-boot.sh", "usr/lib/trefoil/early-boot.sh", 0o644),
    ("initramfs-tools/trefoil-key", "usr/lib/trefoil/trefoil-key", 0o755),
    ("initramfs-tools/hooks/trefoil", "usr/share/initramfs-tools/hooks/trefoil", 0o755),
    ("initramfs-tools/conf-hooks.d/trefoil", "usr/share/initramfs-tools/conf-hooks.d/trefoil", 0o644),
    ("initramfs-tools/scripts/init-premount/trefoil", "usr/share/initramfs-tools/scripts/init-premount/trefoil", 0o755),
    ("dracut/90trefoil/module-setup.sh", "usr/lib/dracut/modules.d/90trefoil/module-setup.sh", 0o755),
    ("dracut/90trefoil/trefoil.sh", "usr/lib/dracut/modules.d/90trefoil/trefoil.sh", 0o755),
    ("dracut/90trefoil/trefoil-finished.sh", "usr/lib/dracut/modules.d/90trefoil/trefoil-finished.sh", 0o755),
];

/// A Debian root file system with the agent installed.
pub(crate) struct Debian {
    scratch: Scratch,
    kernel: Kernel,
}

/// Why there can be none here.
pub(crate) fn missing() -> Option<String> {
    if !rig::is_root() {
        return Some("skipped: making a Debian root file system takes root".into());
    }
    if let Some(why) = rig::missing(&[Tool::Mmdebstrap]) {
        return Some(why);
    }
    match kept() {
        // Without a network nothing of this is to be had; with one, the scenario itself fails and says why.
        Err(why) if !apt::has_mirror() => Some(format!(
            "skipped: no package mirror can be reached, and no Debian root file system was made before ({})",
            format!("{why:#}").lines().next().unwrap_or_default()
        )),
        _ => None,
    }
}

impl Debian {
    /// A copy of the kept one, with this kernel's modules and what we ship.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn new(kernel: &Kernel) -> Result<Self> {
        let base = kept()?;
        let scratch = Scratch::new("debian")?;
        let debian = Self { scratch, kernel: kernel.clone() };
        let root = debian.root();
        spawn::run(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(&base).arg(&root))?;
        let config = format!("boot/config-{}", kernel.version);
        fs::copy(kernel.root.join(&config), root.join(&config)).context("the kernel's configuration")?;
        fs::create_dir_all(root.join("lib/modules").join(&kernel.version))?;
        // The package's installation would have done so. Two scenarios that start at once do not do it twice.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if !kernel.root.join("lib/modules").join(&kernel.version).join("modules.dep").is_file() {
            debian.run(&format!("depmod {}", kernel.version))?;
        }
        drop(held);
        debian.file("usr/bin/trefoil-agent", 0o755, &fs::read(static_agent()?)?)?;
        for (from, to, mode) in SHIPPED {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image").join(from);
            debian.file(to, mode, &fs::read(&from).with_context(|| format!("reading {}", from.display()))?)?;
        }
        Ok(debian)
    }

    /// Where it is.
    pub(crate) fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    /// Writes a file, with the directories above it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn file(&self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
    }

    /// Puts the files of a directory that `trefoil agent-config --dir` wrote into `/etc/trefoil`.
    ///
    /// # Errors
    /// When one cannot be read or written.
    pub(crate) fn settings(&self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a name that is not text")?;
            self.file(&format!("etc/trefoil/{name}"), 0o600, &fs::read(entry.path())?)?;
        }
        Ok(())
    }

    /// Runs a shell script inside, as root, with the kernel's modules; what it mounts nobody else sees.
    ///
    /// # Errors
    /// When it fails; what it said is in the message.
    pub(crate) fn run(&self, script: &str) -> Result<String> {
        const INSIDE: &str = r#"
            mount --bind "$1" "$2/usr/$3"
            mount -t proc proc "$2/proc"
            mount --rbind /dev "$2/dev"
            exec chroot "$2" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C SOURCE_DATE_EPOCH=0 \
                sh -ec "$4"
        "#;
        let modules = format!("lib/modules/{}", self.kernel.version);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", INSIDE, "sh"]);
        command.arg(self.kernel.root.join(&modules)).arg(self.root()).args([modules.as_str(), script]);
        spawn::run(&mut command)
    }

    /// Has initramfs-tools make an image with these modules and what they need, and copies it to `to`.
    ///
    /// # Errors
    /// As [`Debian::run`].
    pub(crate) fn initramfs_tools(&self, modules: &[&str], to: &Path) -> Result<()> {
        let configuration = "MODULES=list\nBUSYBOX=y\nKEYMAP=n\nCOMPRESS=zstd\nDEVICE=\nFSTYPE=auto\nRUNSIZE=10%\n";
        self.file("etc/initramfs-tools/initramfs.conf", 0o644, configuration.as_bytes())?;
        self.file("etc/initramfs-tools/modules", 0o644, modules.join("\n").as_bytes())?;
        self.run(&format!("mkinitramfs -o /tmp/initrd {}", self.kernel.version))?;
        fs::copy(self.root().join("tmp/initrd"), to).context("the image")?;
        Ok(())
    }

    /// Has dracut make an image with systemd in it, of a kernel that has only these modules and what they need, and copies
    /// it to `to`.
    ///
    /// # Errors
    /// As [`Debian::run`].
    pub(crate) fn dracut(&self, modules: &[&str], to: &Path) -> Result<()> {
        let version = &self.kernel.version;
        let dir = format!("srv/kernel/lib/modules/{version}");
        for (name, bytes) in self.kernel.modules(modules)? {
            self.file(&format!("{dir}/kernel/{name}.ko"), 0o644, &bytes)?;
        }
        for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            self.file(
                &format!("{dir}/{list}"),
                0o644,
                &fs::read(self.kernel.root.join("lib/modules").join(version).join(list))?,
            )?;
        }
        self.run(&format!(
            "depmod -b /srv/kernel {version}; dracut --quiet --force --no-hostonly --no-hostonly-cmdline \
             --no-early-microcode --compress 'zstd -3 -q' --omit 'nvdimm lunmask ifcfg overlay-root resume' \
             --add-drivers '{}' --kmoddir /{dir} --kver {version} /tmp/dracut",
            modules.join(" ")
        ))?;
        fs::copy(self.root().join("tmp/dracut"), to).context("the image")?;
        Ok(())
    }
}

/// The one that is kept; made if it is not there.
fn kept() -> Result<PathBuf> {
    // Two scenarios that start at once do not make it twice.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let base = base();
    if !base.is_dir() {
        make(&base).context("making a Debian root file system")?;
    }
    Ok(base)
}

fn base() -> PathBuf {
    // Another list of packages is another file system.
    let number = PACKAGES.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    rig::target_dir().join(format!("vm/debian-{RELEASE}-{number:08x}"))
}

fn make(base: &Path) -> Result<()> {
    eprintln!("making a Debian root file system (a minute, once) …");
    let part = base.with_extension(format!("part-{}", std::process::id()));
    fs::create_dir_all(base.parent().unwrap_or(base))?;
    let mut command = Command::new(apt::find_program("mmdebstrap").context("mmdebstrap is not installed")?);
    command.args(["--quiet", "--variant=apt", "--mode=root", &format!("--include={PACKAGES}")]);
    for left_out in ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"] {
        command.arg(format!("--dpkgopt=path-exclude={left_out}"));
    }
    let made = spawn::run(command.arg(RELEASE).arg(&part));
    let done = made.and_then(|_| match fs::rename(&part, base) {
        Err(error) if !base.is_dir() => Err(error.into()),
        _ => Ok(()),
    });
    let _ = fs::remove_dir_all(&part);
    done
}
