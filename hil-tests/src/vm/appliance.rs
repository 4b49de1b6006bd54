//! The smallest machine our agent lives in: an initramfs that is also the whole system. A static busybox, the network's
//! modules, the static agent with its settings, and an `/init` that does what an image would: mount, bring the network
//! up, fetch the payload once, then attest for as long as the machine runs.
//!
//! It is a ramfs (with `rootfstype=ramfs` on the command line), so that IMA measures what is run and read in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use crate::cpio::Archive;
use crate::{apt, rig, spawn};

/// An initramfs in the making.
#[derive(Debug)]
pub struct Appliance {
    archive: Archive,
}

impl Appliance {
    /// Everything but settings.
    ///
    /// # Errors
    /// When busybox or the static agent are not there, or the kernel lacks a module.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        let mut archive = Archive::new();
        for (path, mode) in [("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777), ("run", 0o755), ("root", 0o700)] {
            archive.dir(path, mode);
        }
        archive.device("dev/console", 0o600, 5, 1);
        let busybox = apt::find_program("busybox").context("busybox is not installed")?;
        archive.file("bin/busybox", 0o755, &fs::read(&busybox)?);
        for applet in spawn::run(Command::new(&busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
        archive.file("bin/trefoil-agent", 0o755, &fs::read(static_agent()?)?);
        let mut order = String::new();
        for (name, bytes) in kernel.modules(&MODULES)? {
            archive.file(&format!("lib/modules/{name}.ko"), 0o644, &bytes);
            order.push_str(&format!("{name}\n"));
        }
        archive.file("lib/modules/order", 0o644, order.as_bytes());
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("etc/vm/channel", 0o755, CHANNEL.as_bytes());
        Ok(Self { archive })
    }

    /// With the files of a directory that `trefoil agent-config --dir` wrote, in `/etc/trefoil`.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn settings(mut self, dir: &Path) -> Result<Self> {
        let mut files: Vec<PathBuf> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
        // The same files are the same archive.
        files.sort();
        for path in files {
            let name = path.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
            self.archive.file(&format!("etc/trefoil/{name}"), 0o600, &fs::read(&path)?);
        }
        Ok(self)
    }

    /// With one more file.
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.archive.file(path, mode, content);
        self
    }

    /// Writes it to `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(self, path: &Path) -> Result<()> {
        fs::write(path, self.archive.finish()).with_context(|| format!("writing {}", path.display()))
    }
}

/// The agent as it goes into images: `TREFOIL_AGENT_STATIC`, else what `cargo xtask dist` built.
///
/// # Errors
/// When it is not there.
pub fn static_agent() -> Result<PathBuf> {
    let path = match env::var_os("TREFOIL_AGENT_STATIC") {
        Some(path) => PathBuf::from(path),
        None => rig::target_dir().join("dist/trefoil-agent"),
    };
    if !path.is_file() {
        bail!("{} is not there; build it with: cargo xtask dist --agent-only", path.display());
    }
    Ok(path)
}

/// What a guest needs to reach the network and its disks.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "virtio_blk"];

/// What the kernel runs first. Its lines on the console begin with `vm: `.
///
/// Where `/run/quiet` is, no agent is started any more: a scenario starts its own, or wants the TPM to itself.
///
/// `/run/trefoil` is a tmpfs: there is no swap, and IMA's tcb policy does not measure what is in one, so that no digest
/// of a payload's file gets into the list.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
mount -t devtmpfs dev /dev
mkdir -p /run/trefoil /run/other
mount -t tmpfs -o mode=0700 trefoil /run/trefoil
mount -t tmpfs -o mode=0700 other /run/other
while read -r module; do insmod "/lib/modules/$module.ko"; done < /lib/modules/order
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
/etc/vm/channel &
echo "vm: up"
trefoil-agent --once --timeout 900
echo "vm: agent ended with $?"
while true; do
  [ -e /run/quiet ] || trefoil-agent --wants attest
  sleep 1
done
"#;

/// Runs what the harness asks for, one line at a time, in a shell of its own, and says how each ended.
const CHANNEL: &str = r#"#!/bin/sh
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
stty raw -echo
echo "@ready"
while read -r number script; do
  ( eval "$script" ) < /dev/null
  echo "@$number $?"
done
"#;
