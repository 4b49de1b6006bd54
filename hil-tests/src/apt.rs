//! What a machine has to have installed, and how it comes there: Debian and Ubuntu by apt, as root or with a sudo that
//! asks nothing. Elsewhere, and without the right to install, the packages and the command are named.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Something the demo, the tests or the build need that is not a Rust crate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tool {
    /// The TPM emulator, its set-up tool and its local CA.
    Swtpm,
    /// tpm2-tools: what happens behind the agent's back, and the independent oracle.
    Tpm2Tools,
    /// A Postgres server (its programs; each run starts a private cluster).
    Postgres,
    /// The system's TSS with its headers, for the agent's second TPM backend.
    TssDevelopment,
    /// libcoap's clients, which speak coaps+tcp.
    Libcoap,
    /// The openssl program: certifies the endorsement keys that swtpm does not.
    Openssl,
    /// `ip`: addresses and routes in network namespaces.
    Iproute2,
    /// `nft`: address translation in network namespaces.
    Nftables,
    /// `strace`: which system calls the agent makes.
    Strace,
    /// Runs programs of another processor: the agent for aarch64 on x86-64, or the reverse.
    QemuUser,
    /// `systemd-analyze`: what it makes of our units.
    Systemd,
    /// A C compiler: the embedded SQLite and ring are built from source.
    CCompiler,
    /// The machine emulator, for guests of this machine's own kind (x86-64).
    Qemu,
    /// UEFI firmware for its guests, with the keys of a Secure Boot that is for tests.
    Ovmf,
    /// Signs kernels for Secure Boot.
    Sbsign,
    /// Writes FAT file systems into files.
    Mtools,
    /// A static busybox: what a guest has besides our agent.
    Busybox,
    /// Makes Debian root file systems, in which Debian's own tools make images.
    Mmdebstrap,
}

impl Tool {
    /// Everything that `cargo xtask test` needs.
    pub const ALL: [Self; 18] = [
        Self::CCompiler,
        Self::Swtpm,
        Self::Tpm2Tools,
        Self::Openssl,
        Self::Postgres,
        Self::TssDevelopment,
        Self::Libcoap,
        Self::Iproute2,
        Self::Nftables,
        Self::Strace,
        Self::Systemd,
        Self::QemuUser,
        Self::Qemu,
        Self::Ovmf,
        Self::Sbsign,
        Self::Mtools,
        Self::Busybox,
        Self::Mmdebstrap,
    ];

    /// The Debian packages that bring it.
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Swtpm => &["swtpm", "swtpm-tools"],
            Self::Tpm2Tools => &["tpm2-tools", "libtss2-tcti-swtpm0"],
            Self::Postgres => &["postgresql"],
            Self::TssDevelopment => &["libtss2-dev", "pkg-config"],
            Self::Libcoap => &["libcoap3-bin"],
            Self::Openssl => &["openssl"],
            Self::Iproute2 => &["iproute2"],
            Self::Nftables => &["nftables"],
            Self::Strace => &["strace"],
            Self::Systemd => &["systemd"],
            Self::CCompiler => &["build-essential"],
            Self::QemuUser => &["qemu-user-static"],
            Self::Qemu => &["qemu-system-x86"],
            Self::Ovmf => &["ovmf"],
            Self::Sbsign => &["sbsigntool"],
            Self::Mtools => &["mtools"],
            Self::Busybox => &["busybox-static"],
            Self::Mmdebstrap => &["mmdebstrap"],
        }
    }

    /// Whether it is there.
    pub fn is_present(self) -> bool {
        let program = |name: &str| find_program(name).is_some();
        match self {
            Self::Swtpm => program("swtpm") && program("swtpm_setup") && program("swtpm_localca"),
            Self::Tpm2Tools => program("tpm2_pcrextend") && library("libtss2-tcti-swtpm.so.0"),
            Self::Postgres => postgres_bin_dir().is_some(),
            Self::TssDevelopment => {
                program("pkg-config")
                    && Command::new("pkg-config")
                        .args(["--exists", "tss2-esys", "tss2-tctildr", "tss2-mu"])
                        .stderr(Stdio::null())
                        .status()
                        .is_ok_and(|status| status.success())
            }
            Self::Libcoap => program("coap-client-openssl") || program("coap-client-gnutls"),
            Self::Openssl => program("openssl"),
            Self::Iproute2 => program("ip"),
            Self::Nftables => program("nft"),
            Self::Strace => program("strace"),
            Self::Systemd => program("systemd-analyze"),
            Self::CCompiler => program("cc"),
            Self::QemuUser => program("qemu-aarch64-static") || program("qemu-aarch64"),
            Self::Qemu => program("qemu-system-x86_64"),
            Self::Ovmf => Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").is_file(),
            Self::Sbsign => program("sbsign"),
            Self::Mtools => program("mformat"),
            Self::Mmdebstrap => program("mmdebstrap"),
            // The package `busybox` has the same program with a dynamic loader.
            Self::Busybox => find_program("busybox").and_then(|path| fs::read(path).ok()).is_some_and(|file| {
                const LOADER: &[u8] = b"/ld-linux";
                !file.windows(LOADER.len()).any(|part| part == LOADER)
            }),
        }
    }
}

/// Makes sure that all `tools` are there; installs what is missing, saying so.
///
/// # Errors
/// When something is missing and may not, or cannot, be installed here: the message names the packages and the command.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<Tool> = tools.iter().copied().filter(|tool| !tool.is_present()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().flat_map(|tool| tool.packages()).copied().collect();
    let by_hand = format!("sudo apt-get install --no-install-recommends {}", packages.join(" "));
    if find_program("apt-get").is_none() {
        bail!(
            "this machine lacks {missing:?}, and has no apt-get.\nOn Debian or Ubuntu they come with:\n  {by_hand}\n\
             Install what your system calls these packages, then run this again."
        );
    }
    let sudo = if sys::is_root() {
        None
    } else if quiet(Command::new("sudo").args(["-n", "true"])) {
        Some("sudo")
    } else {
        bail!("packages are missing, and this user may not install them. Run this, then try again:\n  {by_hand}");
    };
    eprintln!("installing {} …", packages.join(" "));
    if missing.contains(&Tool::Postgres) {
        no_main_cluster(sudo).context("writing /etc/postgresql-common/createcluster.conf")?;
    }
    let update = apt(sudo, &["update"]).context("apt-get update")?;
    let install = ["install", "--yes", "--no-install-recommends"].iter().chain(&packages).copied().collect::<Vec<_>>();
    if !apt(sudo, &install)? {
        let why = if update { "" } else { " (apt-get update failed already: no network, or no package mirror?)" };
        bail!("apt-get could not install the packages{why}. By hand:\n  {by_hand}");
    }
    if let Some(tool) = missing.iter().find(|tool| !tool.is_present()) {
        bail!("{tool:?} is still missing after installing {}", tool.packages().join(" "));
    }
    Ok(())
}

/// Whether the machine's package mirrors can be reached, all of them.
pub fn has_mirror() -> bool {
    // By itself apt is content with old lists.
    sys::is_root() && quiet(Command::new("apt-get").args(["-q", "update", "--error-on=any"]))
}

/// Where a program is: along `PATH`, then in the directories that a plain user's `PATH` may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// The directory of the newest installed Postgres server's programs.
pub fn postgres_bin_dir() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse::<u32>().ok()?;
            let bin = entry.path().join("bin");
            bin.join("initdb").is_file().then_some((version, bin))
        })
        .max();
    if let Some((_, bin)) = newest {
        return Some(bin);
    }
    let initdb = find_program("initdb").and_then(|path| fs::canonicalize(path).ok())?;
    initdb.parent().filter(|bin| bin.join("postgres").is_file()).map(Path::to_owned)
}

/// Debian's package starts a cluster on port 5432 when it is installed, unless this file says otherwise; a machine that
/// only wanted a test run should not end up serving a database.
fn no_main_cluster(sudo: Option<&str>) -> Result<()> {
    let file = Path::new("/etc/postgresql-common/createcluster.conf");
    if file.exists() {
        return Ok(());
    }
    let script = format!("mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' > {}", file.display());
    let mut command = match sudo {
        Some(sudo) => {
            let mut command = Command::new(sudo);
            command.args(["-n", "sh"]);
            command
        }
        None => Command::new("sh"),
    };
    if !command.args(["-c", &script]).stdin(Stdio::null()).status()?.success() {
        bail!("could not write it");
    }
    Ok(())
}

/// Runs apt-get, its output where the person sees it, and says whether it succeeded.
fn apt(sudo: Option<&str>, arguments: &[&str]) -> Result<bool> {
    let mut command = match sudo {
        Some(sudo) => {
            let mut command = Command::new(sudo);
            // sudo does not pass the environment on.
            command.args(["-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            command
        }
        None => Command::new("apt-get"),
    };
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "Dpkg::Use-Pty=0"]).args(arguments);
    let status = command.stdin(Stdio::null()).status().context("cannot run apt-get")?;
    Ok(status.success())
}

fn library(name: &str) -> bool {
    let dirs = ["/usr/lib", "/usr/lib64", "/lib", "/usr/local/lib"].map(PathBuf::from);
    let multiarch = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    dirs.into_iter().chain(multiarch).any(|dir| dir.join(name).exists())
}

fn quiet(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
