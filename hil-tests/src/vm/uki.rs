//! Unified kernel images: kernel, initramfs and command line in one EFI program, which firmware starts by itself from a
//! disk, and which one signature covers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::kernel::{self, Kernel};
use crate::{spawn, uki};

/// Writes the image to `to`, around systemd's stub.
///
/// # Errors
/// As [`stub`]; when a file cannot be read or written.
pub fn write(kernel: &Kernel, initrd: &Path, command_line: &str, to: &Path) -> Result<()> {
    let (kernel, initrd) = (fs::read(&kernel.image)?, fs::read(initrd)?);
    let image = uki::build(&fs::read(stub()?)?, &uki::sections(&kernel, command_line, &initrd))?;
    fs::write(to, image).with_context(|| format!("writing {}", to.display()))
}

/// Writes a disk image with one FAT file system in which firmware finds `program` as what is to be started.
///
/// # Errors
/// When mtools are missing or fail.
pub fn disk(program: &Path, to: &Path) -> Result<()> {
    const SECTOR: u64 = 512;
    const DISK_LEN: u64 = 64 << 20;
    File::create(to)?.set_len(DISK_LEN)?;
    let sectors = (DISK_LEN / SECTOR).to_string();
    // One head and one track: the geometry means nothing, but has to fit.
    let run = |tool: &str, arguments: &[&str]| {
        let mut command = Command::new(tool);
        command.arg("-i").arg(to).args(arguments).env("MTOOLS_SKIP_CHECK", "1");
        command
    };
    spawn::run(&mut run("mformat", &["-T", &sectors, "-h", "1", "-s", "1", "-v", "BOOT", "::"]))?;
    spawn::run(&mut run("mmd", &["::/EFI", "::/EFI/BOOT"]))?;
    let program = program.to_str().context("a path that is not text")?;
    spawn::run(&mut run("mcopy", &[program, "::/EFI/BOOT/BOOTX64.EFI"])).map(drop)
}

/// systemd's EFI stub, fetched as the kernel is, from Debian's `systemd-boot-efi`.
///
/// # Errors
/// When it cannot be had.
pub fn stub() -> Result<PathBuf> {
    let path = kernel::unpacked("systemd-boot-efi")?.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub");
    path.is_file().then_some(path).context("the package systemd-boot-efi has no linuxx64.efi.stub")
}
