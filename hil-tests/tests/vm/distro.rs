//! What the makers of images do with what we ship: what goes in, what is refused; and the machine of
//! [`disk`](crate::disk) with an image that dracut makes, systemd in it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hil_tests::uki;
use hil_tests::vm::{self, Boot, Kernel, MEASURED};

use crate::debian::{self, Debian};
use crate::disk::{Encrypted, MODULES, UUID, opened_by_itself};
use crate::site::Site;

/// Leaves a test early, with a word, where no Debian root file system can be made.
macro_rules! need_debian {
    () => {
        crate::need_vm!();
        if let Some(why) = debian::missing() {
            println!("{why}");
            return Ok(());
        }
    };
}

/// systemd asks for the passphrase at once, and takes the question back when the payload brings the key.
#[test]
fn an_image_by_dracut_opens_the_encrypted_root_with_the_delivered_key() -> Result<()> {
    need_debian!();
    let site = Site::shared()?;
    let machine = Encrypted::new(&site, "edge-dracut")?;
    let initrd = machine.node.machine.dir().join("dracut");
    machine.debian.dracut(&MODULES, &initrd).context("dracut")?;
    let vm = machine.boot_with(&initrd, &format!(" rd.luks.name={UUID}=root"))?;
    machine.node.learn()?;
    opened_by_itself(&machine.node, &vm)?;
    ensure!(vm.console_text().contains("passphrase"), "systemd did not ask while the payload was on its way");
    Ok(())
}

/// Makes an image in `debian` and lists it, verbosely.
fn image(debian: &Debian) -> Result<String> {
    let path = debian.root().join("tmp/listed");
    debian.initramfs_tools(&["virtio_net"], &path)?;
    debian.run(
        "unmkinitramfs /tmp/listed /tmp/unpacked; cd /tmp/unpacked; find . -printf '%m %P\\n'; rm -r /tmp/unpacked",
    )
}

#[test]
fn the_hook_puts_in_what_the_settings_name_and_refuses_an_image_that_lacks_it() -> Result<()> {
    need_debian!();
    let debian = Debian::new(&Kernel::debian()?)?;
    let holds = |listed: &str, line: &str| listed.lines().any(|other| other == line);

    let listed = image(&debian)?;
    ensure!(!listed.contains("trefoil-agent"), "the agent is in an image without settings:\n{listed}");

    debian.file(
        "etc/trefoil/agent.conf",
        0o600,
        b"# key\nserver = gw\n  ca=/etc/trefoil/ca.pem\ntenant-key = \"/srv/key\"\n",
    )?;
    debian.file("etc/trefoil/ca.pem", 0o644, b"CERTIFICATE")?;
    let refused = image(&debian).map(drop).unwrap_err();
    ensure!(format!("{refused:#}").contains("says 'tenant-key = /srv/key', and there is no such file"), "{refused:#}");

    debian.file("srv/key", 0o644, b"PUBLIC KEY")?;
    debian.file("etc/trefoil/other.pem", 0o644, b"CERTIFICATE")?;
    debian.file("etc/trefoil/secret.pem", 0o600, b"-----BEGIN PRIVATE KEY-----")?;
    let listed = image(&debian)?;
    for line in [
        "600 etc/trefoil/agent.conf",
        "644 etc/trefoil/ca.pem",
        "644 etc/trefoil/other.pem",
        "644 srv/key",
        "755 usr/bin/trefoil-agent",
        "755 scripts/init-premount/trefoil",
        "644 usr/lib/trefoil/early-boot.sh",
    ] {
        ensure!(holds(&listed, line), "no {line} in:\n{listed}");
    }
    ensure!(!listed.contains("secret.pem"), "a private key is in the image");
    // The image may hold a join token.
    let mode = debian.run("stat -c %a /tmp/initrd")?;
    ensure!(mode.trim() == "600", "the image has mode {mode}");
    Ok(())
}

#[test]
fn dracut_refuses_an_image_that_lacks_what_the_settings_name() -> Result<()> {
    need_debian!();
    let debian = Debian::new(&Kernel::debian()?)?;
    debian.file("etc/trefoil/agent.conf", 0o600, b"server = gw\nca = /etc/trefoil/ca.pem\n")?;
    let refused = debian.dracut(&["virtio_net"], &debian.root().join("tmp/never")).unwrap_err();
    ensure!(
        format!("{refused:#}").contains("says 'ca = /etc/trefoil/ca.pem', and there is no such file"),
        "{refused:#}"
    );
    Ok(())
}

#[test]
fn the_key_script_prints_the_delivered_key_once_and_then_asks() -> Result<()> {
    need_debian!();
    let debian = Debian::new(&Kernel::debian()?)?;
    // What a person would type, and what was asked.
    debian.file("usr/lib/cryptsetup/askpass", 0o755, b"#!/bin/sh\nprintf 'typed (%s)' \"$1\"\n")?;
    let script = |tried: &str| -> Result<String> {
        debian.run(&format!(
            "mount -t tmpfs run /run; mkdir -p /run/trefoil/payload/cryptsetup; cd /run/trefoil/payload/cryptsetup; \
             printf 'k\\ney' > root.key; export CRYPTTAB_NAME=system {tried}; /usr/lib/trefoil/trefoil-key $key"
        ))
    };
    let printed = script("CRYPTTAB_TRIED=0 key=root")?;
    ensure!(printed == "k\ney", "{printed:?}");
    let again = script("CRYPTTAB_TRIED=1 key=root")?;
    ensure!(again == "typed (Disk system: that did not open it. Passphrase: )", "{again:?}");
    let none = script("CRYPTTAB_TRIED=0 key=other")?;
    ensure!(none == "typed (Disk system: no key was delivered. Passphrase: )", "{none:?}");
    for outside in ["../../../../etc/passwd", "/etc/passwd"] {
        let printed = script(&format!("CRYPTTAB_TRIED=0 key={outside}"))?;
        ensure!(printed.starts_with("typed ("), "{outside}: {printed:?}");
    }
    Ok(())
}

/// Kernel, command line and initramfs in one file: the stub measures its parts into PCR 11, as was computed before, and the
/// node is good by that.
#[test]
fn a_unified_kernel_image_shows_in_pcr_11_what_was_computed_when_it_was_made() -> Result<()> {
    crate::need_vm!();
    let site = Site::shared()?;
    let node = site.machine("edge-uki")?;
    let good = node.boot()?;
    let (kernel, initrd) = (fs::read(&good.kernel)?, fs::read(&good.initrd)?);
    let sections = uki::sections(&kernel, MEASURED, &initrd);
    let path = node.machine.dir().join("uki.efi");
    vm::uki::write(&site.kernel, &good.initrd, MEASURED, &path)?;
    let boot = Boot { kernel: path, initrd: PathBuf::new(), command_line: String::new(), ..good };
    let vm = node.first_boot(&boot)?;
    let command_line = vm.run("cat /proc/cmdline")?;
    ensure!(command_line.trim() == MEASURED, "{command_line}");
    let shown = vm.run("cat /sys/class/tpm/tpm0/pcr-sha256/11")?;
    ensure!(shown.trim().to_lowercase() == hex::encode(uki::pcr_11(&sections)), "PCR 11 is {shown}");
    vm.power_off()
}
