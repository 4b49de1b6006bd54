//! An encrypted root file system, in an initramfs that Debian's initramfs-tools and cryptsetup make with what we ship: the
//! payload's key opens it in a good boot and in no other; a person with the passphrase always can.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hil_tests::apt;
use hil_tests::cpio::Archive;
use hil_tests::vm::appliance::static_agent;
use hil_tests::vm::{self, BOOT_TIME, Boot, Machine, Vm};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::debian::{self, Debian};
use crate::site::{Node, ROLES, SOON, Site};

/// The LUKS header's.
pub(crate) const UUID: &str = "7e31a6a2-6fb7-4a41-8f0c-0c4f6f1f5b11";
/// What a person knows.
const PASSPHRASE: &str = "correct horse";
/// What is asked where there is no key.
const PROMPT: &str = "Disk root: no key was delivered. Passphrase: ";
/// What the root file system's first program says.
const ROOT_IS_UP: &str = "ROOT IS UP";
/// What an image for these machines needs.
pub(crate) const MODULES: [&str; 9] = [
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "ext4",
    "crc32c_generic",
    "dm_crypt",
    "xts",
    "aesni_intel",
    "algif_skcipher",
];
/// Nothing is measured by IMA here: what runs in the root file system is another scenario's subject.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet root=/dev/mapper/root ro ip=dhcp";

/// A key as a machine makes it: bytes that no keyboard types, a line's end among them.
fn key() -> Vec<u8> {
    (0u8..64).map(|n| n.wrapping_mul(37) ^ 0x0a).collect()
}

/// Makes the disk, in the guest: this machine's kernel may have no dm-crypt.
const FORMAT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DM_DISABLE_UDEV=1
mkdir -p /dev /proc /sys /run/cryptsetup
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in virtio_pci virtio_blk dm_crypt xts algif_skcipher; do modprobe $module; done
fast="--batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000"
cryptsetup luksFormat $fast --type luks2 --uuid UUID --key-file /format/key /dev/vda &&
cryptsetup luksAddKey $fast --key-file /format/key /dev/vda /format/passphrase &&
cryptsetup open --key-file /format/key /dev/vda root &&
dd if=/dev/vdb of=/dev/mapper/root bs=1M &&
cryptsetup close root &&
echo "DISK IS MADE"
sync
echo o > /proc/sysrq-trigger
sleep 60
"#;

/// The root file system's first program.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/usr/bin
echo "ROOT IS UP"
echo "payload: $(ls /run/trefoil/payload/cryptsetup 2>/dev/null)."
echo "linked: $(readlink /run/cryptsetup-keys.d/root.key)."
trefoil-agent --wants attest
echo "the agent ended with $?"
while true; do sleep 60; done
"#;

/// The machine with its disk and its image.
pub(crate) struct Encrypted {
    pub(crate) node: Node,
    /// Debian with everything installed, for other images of this machine.
    pub(crate) debian: Debian,
    /// What initramfs-tools made.
    pub(crate) initrd: PathBuf,
    disk: PathBuf,
}

impl Encrypted {
    /// Makes it, under this name.
    pub(crate) fn new(site: &Arc<Site>, name: &str) -> Result<Self> {
        let node = site.machine(name)?;
        let payload = site.rig.payload(name, &[("cryptsetup/root.key", key().as_slice())])?;
        let payload = payload.to_str().context("a path that is not text")?;
        site.rig.trefoil(&["payload", "seal", &node.name, "--payload", payload])?;
        let settings = settings(&node)?;

        let debian = Debian::new(&site.kernel)?;
        debian.settings(&settings)?;
        let crypttab = format!("root UUID={UUID} root luks,initramfs,tries=5,keyscript=/usr/lib/trefoil/trefoil-key\n");
        debian.file("etc/crypttab", 0o600, crypttab.as_bytes())?;
        let dir = node.machine.dir();
        let (initrd, disk) = (dir.join("initrd"), dir.join("disk"));
        debian.initramfs_tools(&MODULES, &initrd)?;
        let root = root_image(&debian, &settings)?;
        fs::File::create(&disk)?.set_len(96 << 20)?;
        format(&node.machine, &site.kernel.image, &initrd, &disk, &root)?;
        Ok(Self { node, debian, initrd, disk })
    }

    /// A boot with `more` on the kernel's command line.
    fn boot(&self, more: &str) -> Result<Vm> {
        self.boot_with(&self.initrd, more)
    }

    /// As [`Encrypted::boot`], with another image.
    pub(crate) fn boot_with(&self, initrd: &Path, more: &str) -> Result<Vm> {
        let mut boot = Boot::new(&self.node.site.kernel.image, initrd);
        boot.command_line = format!("{COMMAND_LINE}{more}");
        boot.disks = vec![self.disk.clone()];
        self.node.machine.power_on(&boot)
    }
}

fn settings(node: &Node) -> Result<PathBuf> {
    let dir = node.machine.dir().join("settings");
    let server = format!("{}:{}", vm::HOST, node.site.rig.gateway().port());
    let to = dir.to_str().context("a path that is not text")?;
    let at = ["--server", &server, "--dir", to, "--at", "/etc/trefoil"];
    node.site.rig.trefoil(&[["agent-config", &node.name].as_slice(), &at].concat())?;
    Ok(dir)
}

/// A small root file system: busybox, the agent with its settings, and [`INIT`].
fn root_image(debian: &Debian, settings: &Path) -> Result<PathBuf> {
    let busybox = apt::find_program("busybox").context("busybox is not installed")?;
    debian.file("srv/root/bin/busybox", 0o755, &fs::read(busybox)?)?;
    debian.file("srv/root/usr/bin/trefoil-agent", 0o755, &fs::read(static_agent()?)?)?;
    debian.file("srv/root/sbin/init", 0o755, INIT.as_bytes())?;
    for entry in fs::read_dir(settings)? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a name that is not text")?;
        debian.file(&format!("srv/root/etc/trefoil/{name}"), 0o600, &fs::read(entry.path())?)?;
    }
    debian.file("srv/root/etc/os-release", 0o644, b"ID=trefoil-vm\n")?; // systemd switches to nothing else
    debian.run(
        "cd /srv/root; mkdir proc sys dev run tmp; for name in sh ls readlink sleep; do ln -s busybox bin/$name; done; \
         mke2fs -q -t ext4 -d /srv/root /srv/root.ext4 32M",
    )?;
    Ok(debian.root().join("srv/root.ext4"))
}

/// Makes `disk` an encrypted copy of `root`, with the payload's key in one slot and the passphrase in another.
fn format(machine: &Machine, kernel: &Path, initrd: &Path, disk: &Path, root: &Path) -> Result<()> {
    let mut more = Archive::new();
    more.file("format/run", 0o755, FORMAT.replace("UUID", UUID).as_bytes());
    more.file("format/key", 0o600, &key());
    more.file("format/passphrase", 0o600, PASSPHRASE.as_bytes());
    let mut image = fs::read(initrd)?;
    image.resize(image.len().next_multiple_of(4), 0);
    image.extend(more.finish());
    let path = machine.dir().join("initrd-format");
    fs::write(&path, image)?;
    let mut boot = Boot::new(kernel, &path);
    boot.command_line = "console=ttyS0 panic=-1 quiet rdinit=/format/run".to_owned();
    boot.disks = vec![disk.to_owned(), root.to_owned()];
    let vm = machine.power_on(&boot)?;
    vm.wait_for("DISK IS MADE", BOOT_TIME).context("formatting the disk")?;
    vm.wait_off(SOON)
}

/// How often each share has left.
fn releases(node: &Node) -> Result<usize> {
    let answer = node.site.rig.api_get(&format!("/nodes/{}/releases", node.name))?;
    Ok(answer["releases"].as_array().context("no releases")?.len())
}

/// The boot went the way it is meant to: the key came, the root is up, and the agent in it attests the same node.
pub(crate) fn opened_by_itself(node: &Node, vm: &Vm) -> Result<()> {
    let rig = &node.site.rig;
    vm.wait_for("trefoil: delivered", BOOT_TIME)?;
    vm.wait_for(ROOT_IS_UP, SOON)?;
    vm.wait_for("payload: root.key.", SOON)?;
    vm.wait_for("linked: /run/trefoil/payload/cryptsetup/root.key.", SOON)?;
    let (name, released) = (node.name.as_str(), releases(node)?);
    let before = rig.node(name)?["last_verdict"].clone();
    let after = rig.wait_node(name, "good verdicts from the root file system", SOON, |now| {
        now["trust"] == "good" && now["phase"] == "delivered" && now["last_verdict"] != before
    })?;
    ensure!(releases(node)? == released, "a second payload was given: {after}");
    let bound = rig.events(name)?.iter().filter(|event| event.kind == "bound").count();
    ensure!(bound == 1, "{bound} attestation keys were bound");
    Ok(())
}

/// The boot gave no payload, and a passphrase opens the disk all the same.
fn opened_by_a_person(vm: &Vm) -> Result<()> {
    vm.wait_for(PROMPT, SOON)?;
    ensure!(!vm.console_text().contains(ROOT_IS_UP), "the disk was opened before anybody typed");
    vm.type_text(&format!("{PASSPHRASE}\n"))?;
    vm.wait_for(ROOT_IS_UP, SOON)?;
    vm.wait_for("payload: .", SOON)?;
    vm.wait_for("linked: .", SOON).map(drop)
}

#[test]
fn a_good_boot_opens_the_encrypted_root_and_in_any_other_a_person_is_asked() -> Result<()> {
    crate::need_vm!();
    if let Some(why) = debian::missing() {
        println!("{why}");
        return Ok(());
    }
    let site = Site::shared()?;
    let machine = Encrypted::new(&site, "edge-disk")?;
    let (node, rig) = (&machine.node, &site.rig);

    // The first boot waits until there is a policy.
    let vm = machine.boot("")?;
    let policy = node.learn()?;
    let digest = hex::encode(Sha256::digest(fs::read(&machine.initrd)?));
    ensure!(policy.contains(&digest), "the image's SHA-256 is not what the kernel measured:\n{policy}");
    opened_by_itself(node, &vm).context("the first boot")?;
    ensure!(!vm.console_text().contains("Passphrase"), "a passphrase was asked for");
    drop(vm);

    // Another command line: refused, and the event is named.
    let before_ms = node.now_ms()?;
    let vm = machine.boot(" trefoil.timeout=20s")?;
    for role in ROLES {
        let verdict = node.verdict(role, before_ms, |verdict| verdict["outcome"] == "failed")?;
        let findings = verdict["explanation"]["findings"].as_array().context("no findings")?;
        ensure!(findings.iter().any(|finding| finding["pcr"] == 9), "{role}: {verdict:#}");
    }
    vm.wait_for("trefoil: refused", BOOT_TIME)?;
    opened_by_a_person(&vm).context("the boot with another command line")?;
    drop(vm);

    // As it was: good again, once somebody has looked at it.
    rig.trefoil(&["node", "resume", &node.name])?;
    let vm = machine.boot("")?;
    opened_by_itself(node, &vm).context("the boot after that")?;
    drop(vm);

    // The control plane cannot be reached: nobody can open the disk but a person.
    let vm = machine.boot(" trefoil.timeout=5s")?;
    vm.monitor("set_link", &json!({"name": "n0", "up": false}))?;
    vm.wait_for("trefoil: not reached", BOOT_TIME)?;
    opened_by_a_person(&vm).context("the boot without a control plane")
}
