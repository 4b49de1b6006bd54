//! Machines under QEMU: firmware (OVMF), a TPM (swtpm) and a real kernel that measures. All is emulated, none of it is
//! simulated: the guest's firmware and kernel extend the PCRs, write the boot log and the IMA list.
//!
//! A [`Machine`] is what stands in the rack: a TPM and the firmware's variables, which outlive boots. Each
//! [`Machine::power_on`] gives a [`Vm`], a machine that runs, with any kernel, initramfs, command line and disks; dropping
//! it pulls the plug. [`kernel`] fetches a kernel, [`appliance`] makes the initramfs that most scenarios boot.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use hil_tests::swtpm::{EkKind, Swtpm};
//! use hil_tests::vm::{Appliance, Boot, Kernel, Machine};
//! let (machine, kernel) = (Machine::new(Swtpm::start(EkKind::P256)?)?, Kernel::debian()?);
//! let initrd = machine.dir().join("initrd");
//! Appliance::new(&kernel)?.write(&initrd)?;
//! let vm = machine.power_on(&Boot::new(&kernel.image, &initrd))?;
//! vm.wait_ready()?; // the appliance's command channel; of any other guest: vm.wait_for("login:", Duration::from_secs(300))
//! assert_eq!(vm.run("uname -r")?.trim(), kernel.version);
//! vm.power_off()?;
//! # Ok(()) }
//! ```
//!
//! The guest reaches 127.0.0.1:PORT of this machine as 10.0.2.2:PORT, by QEMU's user network, and nothing else by
//! design of the scenarios. KVM is never used: on some hosts it opens and the guest then hangs.

pub mod appliance;
pub mod kernel;
mod port;
pub mod uki;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

pub use self::appliance::Appliance;
pub use self::kernel::Kernel;
use self::port::{Port, Waiting};
use crate::apt::Tool;
use crate::scratch::Scratch;
use crate::spawn::{Launch, Program};
use crate::swtpm::Swtpm;

/// Longer than a boot takes, also where the emulator shares its core with others.
pub const BOOT_TIME: Duration = Duration::from_secs(300);
/// Longer than anything takes that a guest is asked for.
const ANSWER_TIME: Duration = Duration::from_secs(120);
/// How the guest calls the machine it runs on.
pub const HOST: &str = "10.0.2.2";
/// What a machine under QEMU takes.
pub const TOOLS: [Tool; 6] = [Tool::Swtpm, Tool::Tpm2Tools, Tool::Openssl, Tool::Qemu, Tool::Ovmf, Tool::Busybox];
/// The kernel's command line of a machine whose every file is measured.
pub const MEASURED: &str =
    "console=ttyS0 panic=-1 quiet rootfstype=ramfs ima_policy=tcb ima_hash=sha256 ima_template=ima-ng";

/// The firmware's variables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Firmware {
    /// Empty: Secure Boot is off.
    Plain,
    /// Secure Boot is on, and trusts the key that [`kernel::sign`] uses.
    SecureBoot,
}

/// What is started, and on what.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// Its first root file system; empty where the kernel's image brings its own.
    pub initrd: PathBuf,
    /// Its command line.
    pub command_line: String,
    /// The firmware's variables: each kind is kept from boot to boot.
    pub firmware: Firmware,
    /// The firmware starts what it finds on the first disk: it is given neither kernel nor initramfs nor command line.
    pub from_disk: bool,
    /// Raw images, seen as `/dev/vda`, `/dev/vdb`, ….
    pub disks: Vec<PathBuf>,
    /// Memory, MiB.
    pub memory_mib: u32,
}

impl Boot {
    /// A boot with everything measured, without Secure Boot and disks.
    pub fn new(kernel: &Path, initrd: &Path) -> Self {
        Self {
            kernel: kernel.to_owned(),
            initrd: initrd.to_owned(),
            command_line: MEASURED.to_owned(),
            firmware: Firmware::Plain,
            from_disk: false,
            disks: Vec::new(),
            memory_mib: 512,
        }
    }
}

/// A machine that may be off: its TPM and its firmware's variables.
#[derive(Debug)]
pub struct Machine {
    tpm: Swtpm,
    scratch: Scratch,
}

impl Machine {
    /// A machine with this TPM, which from now on is reached only by its firmware and its system.
    ///
    /// # Errors
    /// When OVMF is not installed.
    pub fn new(tpm: Swtpm) -> Result<Self> {
        let scratch = Scratch::new("vm")?;
        for (firmware, variables) in
            [(Firmware::Plain, "OVMF_VARS_4M.fd"), (Firmware::SecureBoot, "OVMF_VARS_4M.snakeoil.fd")]
        {
            let from = Path::new(OVMF).join(variables);
            let to = scratch.path().join(variables_of(firmware));
            fs::copy(&from, to).with_context(|| format!("copying {}", from.display()))?;
        }
        Ok(Self { tpm, scratch })
    }

    /// A directory of its own, which goes with it.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Gives it power. One guest at a time: the machine before has to be off or dropped.
    ///
    /// # Errors
    /// When QEMU or the TPM do not start.
    pub fn power_on(&self, boot: &Boot) -> Result<Vm> {
        let socket = |name: &str| self.scratch.path().join(name);
        let (tpm, console, channel, monitor) = (socket("tpm"), socket("console"), socket("channel"), socket("monitor"));
        self.tpm.serve_machine(&tpm)?;
        let waiting = [
            Waiting::bind("console", &console)?,
            Waiting::bind("command channel", &channel)?,
            Waiting::bind("monitor", &monitor)?,
        ];
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-machine", "q35", "-smp", "1", "-nodefaults", "-display", "none"]);
        qemu.args(["-m", &boot.memory_mib.to_string()]);
        // Sleep states: S3 is one of the things that are tried.
        qemu.args(["-global", "ICH9-LPC.disable_s3=0"]);
        let flash = |unit: u8, path: &Path, more: &str| {
            format!("if=pflash,format=raw,unit={unit},file={}{more}", path.display())
        };
        qemu.args(["-drive", &flash(0, &Path::new(OVMF).join("OVMF_CODE_4M.fd"), ",readonly=on")]);
        qemu.args(["-drive", &flash(1, &socket(variables_of(boot.firmware)), "")]);
        for (name, path) in [("tpm", &tpm), ("console", &console), ("channel", &channel), ("monitor", &monitor)] {
            let log = if name == "console" { format!(",logfile={}.log", path.display()) } else { String::new() };
            qemu.args(["-chardev", &format!("socket,id={name},path={}{log}", path.display())]);
        }
        qemu.args(["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]);
        qemu.args(["-serial", "chardev:console", "-serial", "chardev:channel", "-mon", "chardev=monitor,mode=control"]);
        qemu.args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]);
        for (number, disk) in boot.disks.iter().enumerate() {
            let drive = format!("if=none,id=d{number},format=raw,cache=unsafe,file={}", disk.display());
            let first = if boot.from_disk { format!(",bootindex={number}") } else { String::new() };
            qemu.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=d{number}{first}")]);
        }
        if !boot.from_disk {
            qemu.arg("-kernel").arg(&boot.kernel);
            if !boot.initrd.as_os_str().is_empty() {
                qemu.arg("-initrd").arg(&boot.initrd);
            }
            qemu.args(["-append", &boot.command_line]);
        }
        let log = self.scratch.path().join("qemu.log");
        let mut launch = Launch::new("qemu", qemu);
        launch.log = Some(&log);
        let qemu = Program::start(launch)?;
        let [console, channel, monitor] = waiting;
        let connect = |waiting: Waiting| {
            let connected = waiting.accept(Duration::from_secs(60), || qemu.is_running());
            connected.with_context(|| qemu.tail(5))
        };
        let (console, channel, monitor) = (connect(console)?, connect(channel)?, connect(monitor)?);
        let vm = Vm {
            console,
            channel,
            monitor,
            qemu,
            console_read: Mutex::new(0),
            channel_read: Mutex::new(0),
            number: AtomicU64::new(1),
        };
        vm.monitor("qmp_capabilities", &json!({}))?;
        Ok(vm)
    }
}

/// A machine that runs. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Vm {
    console: Port,
    channel: Port,
    monitor: Port,
    qemu: Program,
    /// How far into the console's text [`Vm::wait_for`] has come.
    console_read: Mutex<usize>,
    /// How far into the channel's answers [`Vm::wait_ready`] and [`Vm::run`] have come.
    channel_read: Mutex<usize>,
    number: AtomicU64,
}

impl Vm {
    /// Waits until the console says `text`, after what the last call found: a prompt, for example.
    ///
    /// # Errors
    /// When it does not within `timeout`, or the machine went off; the console's last lines are in the message.
    pub fn wait_for(&self, text: &str, timeout: Duration) -> Result<()> {
        self.wait_console(text, timeout, |heard, at| Some((at + text.len(), heard.get(at..at + text.len())?))).map(drop)
    }

    /// Waits until the console has said a line with `text` in it, after what the last call found, and gives the line.
    ///
    /// # Errors
    /// As [`Vm::wait_for`].
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> Result<String> {
        self.wait_console(text, timeout, |heard, at| {
            let end = at + heard.get(at..)?.iter().position(|&byte| byte == b'\n')?;
            let begin = heard.get(..at)?.iter().rposition(|&byte| byte == b'\n').map_or(0, |before| before + 1);
            Some((end + 1, heard.get(begin..end)?))
        })
    }

    /// Waits for `text` and what `cut` makes of what was heard and where `text` stands in it: where to go on next time,
    /// and what to return.
    fn wait_console(
        &self,
        text: &str,
        timeout: Duration,
        cut: impl for<'h> Fn(&'h [u8], usize) -> Option<(usize, &'h [u8])>,
    ) -> Result<String> {
        let mut read = self.console_read.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = *read;
        let wanted = text.as_bytes();
        let (end, found) = self.console.wait(begin, timeout, &format!("{text:?}"), |heard| {
            let at = heard.windows(wanted.len().max(1)).position(|part| part == wanted)?;
            let (end, found) = cut(heard, at)?;
            Some((end, String::from_utf8_lossy(found).trim_end().to_owned()))
        })?;
        *read = begin + end;
        Ok(found)
    }

    /// Types at the console; a line ends with `\n`.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.console.say(text)
    }

    /// Everything that the console said since the machine was given power.
    pub fn console_text(&self) -> String {
        self.console.text_from(0)
    }

    /// Waits until the appliance takes commands: once after each start of its kernel.
    ///
    /// # Errors
    /// When it does not come so far; the console's last lines are in the message.
    pub fn wait_ready(&self) -> Result<()> {
        let mut read = self.channel_read.lock().unwrap_or_else(PoisonError::into_inner);
        const READY: &[u8] = b"@ready\n";
        let found = self.channel.wait(*read, BOOT_TIME, "the appliance", |heard| {
            heard.windows(READY.len()).position(|part| part == READY).map(|at| at + READY.len())
        });
        *read +=
            found.with_context(|| format!("the guest did not come up; its console:\n{}", self.console.tail(40)))?;
        Ok(())
    }

    /// Runs one line of shell in the appliance and gives its exit status and what it printed.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn try_run(&self, script: &str) -> Result<(i32, String)> {
        self.run_within(script, ANSWER_TIME)
    }

    /// As [`Vm::try_run`], for what takes its time.
    ///
    /// # Errors
    /// When no answer comes within `timeout`.
    pub fn run_within(&self, script: &str, timeout: Duration) -> Result<(i32, String)> {
        if script.contains('\n') {
            bail!("the command channel takes one line at a time");
        }
        let mut read = self.channel_read.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let begin = *read;
        self.channel.say(&format!("{number} {script}\n"))?;
        let end_mark = format!("@{number} ");
        let answer = self.channel.wait(begin, timeout, script, |heard| {
            let at = heard.windows(end_mark.len()).rposition(|part| part == end_mark.as_bytes())?;
            let (output, status) = (heard.get(..at)?, heard.get(at + end_mark.len()..)?);
            let len = status.iter().position(|&byte| byte == b'\n')?;
            let status: i32 = std::str::from_utf8(status.get(..len)?).ok()?.parse().ok()?;
            Some((at + end_mark.len() + len + 1, status, String::from_utf8_lossy(output).into_owned()))
        });
        let (end, status, output) =
            answer.with_context(|| format!("the guest's console:\n{}", self.console.tail(20)))?;
        *read = begin + end;
        Ok((status, output))
    }

    /// As [`Vm::try_run`], for what has to succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn run(&self, script: &str) -> Result<String> {
        match self.try_run(script)? {
            (0, output) => Ok(output),
            (status, output) => bail!("in the guest: {script}: exit status {status}\n{output}"),
        }
    }

    /// Sends one line of shell to the appliance and waits for nothing, because the machine goes off by it, for example.
    /// Returns the line's number.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn send(&self, script: &str) -> Result<u64> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.channel.say(&format!("{number} {script}\n"))?;
        Ok(number)
    }

    /// Presses the reset button: the kernel has no chance to tell the TPM.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn reset(&self) -> Result<()> {
        self.monitor("system_reset", &json!({})).map(drop)
    }

    /// Puts the appliance to sleep (ACPI S3) and wakes it; on return it takes commands again.
    ///
    /// # Errors
    /// When it does not fall asleep, or does not wake.
    pub fn sleep_and_wake(&self) -> Result<()> {
        let slept = self.events("SUSPEND");
        let mut read = self.channel_read.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.send("echo mem > /sys/power/state")?;
        let asleep =
            self.monitor.wait(0, ANSWER_TIME, "sleep", |heard| (events(heard, "SUSPEND") > slept).then_some(()));
        asleep.with_context(|| format!("the console:\n{}", self.console.tail(20)))?;
        self.monitor("system_wakeup", &json!({}))?;
        // Nothing is said before it answers: its serial lines wake late.
        let end_mark = format!("@{number} 0\n");
        let end = self.channel.wait(*read, BOOT_TIME, "waking", |heard| {
            let at = heard.windows(end_mark.len()).position(|part| part == end_mark.as_bytes());
            at.map(|at| at + end_mark.len())
        });
        *read += end.with_context(|| format!("the console:\n{}", self.console.tail(20)))?;
        Ok(())
    }

    /// Ends the machine as `poweroff` does, with the TPM told, and waits until it is off.
    ///
    /// # Errors
    /// When it does not go off.
    pub fn power_off(self) -> Result<()> {
        self.send("poweroff -f")?;
        self.wait_off(ANSWER_TIME)
    }

    /// Waits until the machine has gone off by itself.
    ///
    /// # Errors
    /// When it does not within `timeout`; the console's last lines are in the message.
    pub fn wait_off(&self, timeout: Duration) -> Result<()> {
        let status =
            self.qemu.wait_exit(timeout).with_context(|| format!("the console:\n{}", self.console.tail(20)))?;
        if !status.success() {
            bail!("QEMU ended with {status}; {}", self.qemu.tail(5));
        }
        Ok(())
    }

    /// One command of QEMU's monitor (QMP) and what it returns.
    ///
    /// # Errors
    /// When QEMU refuses, or does not answer.
    pub fn monitor(&self, command: &str, arguments: &Value) -> Result<Value> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let from = self.monitor.position();
        self.monitor.say(&format!("{}\n", json!({"execute": command, "arguments": arguments, "id": number})))?;
        let answer =
            self.monitor.wait(from, ANSWER_TIME, command, |heard| lines(heard).find(|line| line["id"] == number))?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(anyhow!("QEMU refuses {command}: {}", answer["error"]["desc"])),
        }
    }

    /// How many events of this name QEMU's monitor has told of.
    fn events(&self, name: &str) -> usize {
        events(self.monitor.text_from(0).as_bytes(), name)
    }
}

fn events(heard: &[u8], name: &str) -> usize {
    lines(heard).filter(|line| line["event"] == name).count()
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The test's output, which is shown where it fails.
        println!("the console's last lines:\n{}", self.console.tail(30));
    }
}

/// The whole lines of a monitor's text that are JSON.
fn lines(heard: &[u8]) -> impl Iterator<Item = Value> {
    let whole = heard.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let lines = heard.get(..whole).unwrap_or_default().split(|&byte| byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok())
}

fn variables_of(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Plain => "variables.fd",
        Firmware::SecureBoot => "variables-secure-boot.fd",
    }
}

/// Where Debian's package puts the firmware.
const OVMF: &str = "/usr/share/OVMF";
