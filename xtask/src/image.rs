//! `cargo xtask image`: the static agent, its settings and its pins as a piece of initramfs, alone or behind one that is
//! there already; and what of it will be measured where.
//!
//! Making an initramfs is left to initramfs-tools and dracut, which have modules of ours in `image/`; this is for images
//! that are built without them, and for putting one tenant's settings behind a common base.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use hil_tests::cpio::Archive;
use hil_tests::{spawn, uki};
use protocol::crypto::manifest::{TenantPublicKey, pins_event};
use protocol::tpm::alg::{Digest, HashAlg};
use protocol::tpm::pcr::{event_digest, extend};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::dist;

/// Bakes agent, settings and pins into an initramfs segment, and says what will be measured.
///
/// The settings name files by their paths in the image (`ca = /etc/trefoil/server-ca.pem`); they are taken from beside
/// the settings file, or from that path on this machine. Both the CA and the tenant's keys have to be in the image: they
/// decide whom the node believes.
///
///   trefoil agent-config edge-1 --server gw.example.org:5684 --dir ./edge-1 --at /etc/trefoil
///   cargo xtask image --config ./edge-1/agent.conf --base initrd.img --out initrd-trefoil.img
///
/// The same input gives the same bytes. Without --base the segment stands alone: boot loaders that take several
/// initramfs files load it as the last.
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The agent's settings
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// An initramfs that it goes behind; what both have is taken from here
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Where it is written [default: TARGET/dist/trefoil-initrd.img]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also a unified kernel image with it: one file that firmware measures, not signed yet
    #[arg(long, value_name = "FILE", requires_all = ["kernel", "cmdline", "base"])]
    uki: Option<PathBuf>,
    /// The kernel in it
    #[arg(long, value_name = "FILE", requires = "uki")]
    kernel: Option<PathBuf>,
    /// Its command line
    #[arg(long, value_name = "TEXT", requires = "uki")]
    cmdline: Option<String>,
    /// What starts it: the EFI stub of Debian's systemd-boot-efi
    #[arg(long, value_name = "FILE", requires = "uki", default_value = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub")]
    stub: PathBuf,
    /// Another agent than the one that `cargo xtask dist` builds
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// Where the agent is in the image.
const AGENT: &str = "usr/bin/trefoil-agent";
/// Where it looks for its settings.
const CONFIG: &str = "etc/trefoil/agent.conf";
/// A settings file is a few lines; the agent takes no larger one.
const MAX_CONFIG_LEN: u64 = 64 * 1024;
/// A PEM file of a few certificates; one that is larger is something else.
const MAX_PEM_LEN: u64 = 256 * 1024;

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = read_bounded(&arguments.config, MAX_CONFIG_LEN)?;
    let settings = Settings::parse(&config)?;
    let pins = Pins::find(&settings, arguments.config.parent().unwrap_or(Path::new(".")))?;
    let agent = match &arguments.agent {
        Some(path) => path.clone(),
        None => dist::agent()?.path,
    };
    ask_agent(&agent, &arguments.config, &pins)?;
    let keys = pins.tenant_keys()?;

    let program = fs::read(&agent).with_context(|| format!("reading {}", agent.display()))?;
    let segment = segment(&program, &config, &pins);
    let mut image = match &arguments.base {
        Some(base) => fs::read(base).with_context(|| format!("reading {}", base.display()))?,
        None => Vec::new(),
    };
    append(&mut image, &segment);
    let out = arguments.out.clone().unwrap_or_else(|| dist::dir().join("trefoil-initrd.img"));
    write(&out, &image, settings.join)?;
    print!("{}", report(&out, &image, arguments.base.is_some(), &settings, &pins, &keys)?);
    if let Some(uki) = &arguments.uki {
        unify(uki, arguments, &image, settings.join)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the unified kernel image, and says what it will measure.
fn unify(out: &Path, arguments: &Arguments, initrd: &[u8], secret: bool) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let kernel = read(arguments.kernel.as_deref().unwrap_or(Path::new("")))?;
    let stub = read(&arguments.stub).context("the stub comes with Debian's package systemd-boot-efi")?;
    let sections = uki::sections(&kernel, arguments.cmdline.as_deref().unwrap_or_default(), initrd);
    let image = uki::build(&stub, &sections).with_context(|| format!("{}", arguments.stub.display()))?;
    write(out, &image, secret)?;
    println!("\n{}: {} bytes, to be signed with sbsign", out.display(), image.len());
    println!("PCR 11   {} after systemd-stub, before systemd's own phases", hex::encode(uki::pcr_11(&sections)));
    println!("PCR 4    extended by firmware with the Authenticode digest of the whole file, and of the kernel in it");
    Ok(())
}

/// What a settings file says, as far as an image depends on it; whether it is right is for the agent to say.
#[derive(Debug, Default, Eq, PartialEq)]
struct Settings {
    servers: Vec<String>,
    ca: Option<String>,
    tenant_keys: Vec<String>,
    phase_pcr: Option<u8>,
    autorun: bool,
    attest_only: bool,
    join: bool,
}

impl Settings {
    fn parse(text: &str) -> Result<Self> {
        let mut settings = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value).to_owned();
            match name.trim_end() {
                "server" => settings.servers.push(value),
                "ca" => settings.ca = Some(value),
                "tenant-key" => settings.tenant_keys.push(value),
                "phase-pcr" => settings.phase_pcr = value.parse().ok(),
                "autorun" => settings.autorun = ["on", "yes", "true", "1"].contains(&value.as_str()),
                "wants" => settings.attest_only = value == "attest",
                "join" => settings.join = true,
                _ => {}
            }
        }
        if settings.ca.is_none() {
            bail!("the settings have no `ca`: the image has to say whom it believes");
        }
        if settings.tenant_keys.is_empty() && !settings.attest_only {
            bail!(
                "the settings have no `tenant-key`: without a pinned key no payload is accepted (or set `wants = attest`)"
            );
        }
        Ok(settings)
    }
}

/// The files that the settings name: path in the image, path here, content.
#[derive(Debug)]
struct Pins {
    ca: PinnedFile,
    tenant_keys: Vec<PinnedFile>,
}

#[derive(Debug)]
struct PinnedFile {
    inside: String,
    here: PathBuf,
    text: String,
}

impl Pins {
    fn find(settings: &Settings, beside: &Path) -> Result<Self> {
        let ca = settings.ca.as_deref().unwrap_or_default();
        let tenant_keys = settings.tenant_keys.iter().map(|path| PinnedFile::find("tenant-key", path, beside));
        Ok(Self { ca: PinnedFile::find("ca", ca, beside)?, tenant_keys: tenant_keys.collect::<Result<_>>()? })
    }

    /// All files, each once, in the order of their paths.
    fn files(&self) -> Vec<&PinnedFile> {
        let mut files: Vec<&PinnedFile> = self.tenant_keys.iter().chain([&self.ca]).collect();
        files.sort_by(|a, b| a.inside.cmp(&b.inside));
        files.dedup_by(|a, b| a.inside == b.inside);
        files
    }

    fn tenant_keys(&self) -> Result<Vec<TenantPublicKey>> {
        self.tenant_keys.iter().map(PinnedFile::tenant_key).collect()
    }
}

impl PinnedFile {
    fn find(setting: &str, inside: &str, beside: &Path) -> Result<Self> {
        if !inside.starts_with('/') || inside.split('/').any(|part| part == "..") {
            bail!("{setting} = {inside}: an absolute path in the image is needed");
        }
        let near = beside.join(Path::new(inside).file_name().unwrap_or_default());
        let here = if near.is_file() { near } else { PathBuf::from(inside) };
        let text = read_bounded(&here, MAX_PEM_LEN)
            .with_context(|| format!("{setting} = {inside}: not beside the settings file, nor at that path here"))?;
        if text.contains("PRIVATE KEY") {
            bail!("{setting} = {inside}: {} holds a private key, which has no business in an image", here.display());
        }
        Ok(Self { inside: inside.to_owned(), here, text })
    }

    /// The P-256 key in it: a SubjectPublicKeyInfo (RFC 5480) ends with the point.
    fn tenant_key(&self) -> Result<TenantPublicKey> {
        let body: String = self.text.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        let der = BASE64_STANDARD.decode(body).with_context(|| format!("{} is not PEM", self.here.display()))?;
        let point = der.len().checked_sub(POINT_LEN).and_then(|at| der.get(at..));
        point
            .and_then(TenantPublicKey::from_sec1)
            .with_context(|| format!("{} is not one P-256 public key", self.here.display()))
    }
}

/// A P-256 point in SEC1's uncompressed form, bytes.
const POINT_LEN: usize = 65;

/// Has the agent itself judge settings and keys: it connects to nothing and asks no TPM.
fn ask_agent(agent: &Path, config: &Path, pins: &Pins) -> Result<()> {
    // The agent takes absolute paths only, and a program's name without a slash would be looked for elsewhere.
    let absolute = |path: &Path| fs::canonicalize(path).with_context(|| format!("looking for {}", path.display()));
    let mut command = Command::new(absolute(agent)?);
    command.arg("--config").arg(absolute(config)?).args(["--check", "--json"]).stdin(Stdio::null());
    // A TPM and a gateway that are certainly not there: what the settings name is for the node.
    command.args(["--tcti", "swtpm:host=127.0.0.1,port=1", "--server", "127.0.0.1:1"]);
    command.arg("--ca").arg(absolute(&pins.ca.here)?);
    for key in &pins.tenant_keys {
        command.arg("--tenant-key").arg(absolute(&key.here)?);
    }
    let shown = spawn::show(&command);
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    if output.status.code() == Some(2) {
        bail!("the agent refuses the settings: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{shown} gives no report"))?;
    let items = report["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut wanted = vec!["ca"];
    if !pins.tenant_keys.is_empty() {
        wanted.push("tenant-key");
    }
    for name in wanted {
        match items.iter().find(|item| item["name"] == name) {
            Some(item) if item["ok"] == true => {}
            Some(item) => bail!("the agent refuses {name}: {}", item["found"].as_str().unwrap_or_default()),
            // With `wants = attest` it looks at no tenant key.
            None if name == "tenant-key" => {}
            None => bail!("{shown} says nothing about {name}"),
        }
    }
    Ok(())
}

/// The segment: sorted, everything root's, settings that only root reads.
fn segment(agent: &[u8], config: &str, pins: &Pins) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.file(CONFIG, 0o600, config.as_bytes());
    for file in pins.files() {
        archive.file(&file.inside, 0o644, file.text.as_bytes());
    }
    archive.file(AGENT, 0o755, agent);
    archive.finish()
}

/// Puts a segment behind what is there. The kernel wants an uncompressed archive to begin at a multiple of four bytes.
fn append(image: &mut Vec<u8>, segment: &[u8]) {
    image.resize(image.len().next_multiple_of(4), 0);
    image.extend_from_slice(segment);
}

fn write(out: &Path, image: &[u8], secret: bool) -> Result<()> {
    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir)?;
    }
    let _ = fs::remove_file(out);
    let mode = if secret { 0o600 } else { 0o644 };
    let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(out)?;
    std::io::Write::write_all(&mut file, image).with_context(|| format!("writing {}", out.display()))
}

fn read_bounded(path: &Path, limit: u64) -> Result<String> {
    let reading = || format!("reading {}", path.display());
    if fs::metadata(path).with_context(reading)?.len() > limit {
        bail!("{} is larger than {limit} bytes", path.display());
    }
    fs::read_to_string(path).with_context(reading)
}

/// What was made, and what will be measured where.
fn report(
    out: &Path,
    image: &[u8],
    has_base: bool,
    settings: &Settings,
    pins: &Pins,
    keys: &[TenantPublicKey],
) -> Result<String> {
    let mut text = format!("{}: {} bytes\n\nin it\n  /{AGENT}\n  /{CONFIG}\n", out.display(), image.len());
    for file in pins.files() {
        writeln!(text, "  {} (from {})", file.inside, file.here.display())?;
    }
    if settings.join {
        text.push_str("  a join token: for one machine, and as secret as that machine\n");
    }
    writeln!(text, "\nSHA-256  {}", hex::encode(Sha256::digest(image)))?;
    text.push_str(if has_base {
        "PCR 9    extended with that by the kernel's EFI stub, if the boot loader hands over this file alone\n"
    } else {
        "PCR 9    extended by the kernel's EFI stub with the digest of all initramfs files together\n"
    });
    text.push_str(
        "PCR 11   in a unified kernel image systemd-stub extends it with the same digest, after the section's name\n",
    );
    if !keys.is_empty() {
        let index = settings.phase_pcr.unwrap_or(13);
        let bank = HashAlg::Sha256;
        let event = pins_event(keys, settings.autorun).context("the pins")?;
        let pinned = extend(bank, &Digest::zero(bank), &event_digest(bank, &event)).context("the pins")?;
        writeln!(
            text,
            "PCR {index:<5}{} before the first connection: {} key(s), autorun {}",
            hex::encode(pinned.as_bytes()),
            keys.len(),
            if settings.autorun { "on" } else { "off" }
        )?;
    }
    if settings.servers.is_empty() {
        text.push_str("\nno server in the settings: give trefoil.server=HOST:PORT on the kernel's command line\n");
    }
    if !has_base {
        text.push_str("\nno --base: something in the initramfs has to start trefoil-agent\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use hil_tests::apt;
    use hil_tests::scratch::Scratch;
    use p256::ecdsa::SigningKey;
    use rand_core::OsRng;

    use super::*;
    use crate::tools;

    /// SubjectPublicKeyInfo of id-ecPublicKey on P-256, up to the point (RFC 5480).
    const SPKI_HEAD: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];

    fn key_pem() -> (TenantPublicKey, String) {
        let point = SigningKey::random(&mut OsRng).verifying_key().to_encoded_point(false);
        let der = [SPKI_HEAD.as_slice(), point.as_bytes()].concat();
        let key = TenantPublicKey::from_sec1(point.as_bytes()).unwrap();
        (key, format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(der)))
    }

    const CONFIG_TEXT: &str = "# pins\nserver = gw:1\nca = /etc/trefoil/ca.pem\ntenant-key = \"/etc/trefoil/b.pem\"\n\
                               tenant-key = /etc/trefoil/a.pem\nautorun = on\nphase-pcr = 14\n";

    fn pins(scratch: &Scratch) -> (Settings, Pins, Vec<TenantPublicKey>) {
        let (a, b) = (key_pem(), key_pem());
        for (name, text) in [("ca.pem", "CA"), ("a.pem", a.1.as_str()), ("b.pem", b.1.as_str())] {
            fs::write(scratch.path().join(name), text).unwrap();
        }
        let settings = Settings::parse(CONFIG_TEXT).unwrap();
        let pins = Pins::find(&settings, scratch.path()).unwrap();
        (settings, pins, vec![b.0, a.0])
    }

    #[test]
    fn the_segment_holds_agent_settings_and_pins_and_is_the_same_each_time() {
        let scratch = Scratch::new("image").unwrap();
        let (_, pins, keys) = pins(&scratch);
        assert_eq!(pins.tenant_keys().unwrap(), keys);
        let made = segment(b"program", CONFIG_TEXT, &pins);
        assert_eq!(made, segment(b"program", CONFIG_TEXT, &pins));
        let at = |text: &str| made.windows(text.len()).position(|part| part == text.as_bytes()).unwrap();
        let names = ["etc/trefoil/agent.conf\0", "etc/trefoil/a.pem\0", "etc/trefoil/b.pem\0", "etc/trefoil/ca.pem\0"];
        let places: Vec<usize> = names.iter().chain(&["usr/bin/trefoil-agent\0"]).map(|name| at(name)).collect();
        assert!(places.is_sorted(), "{places:?}");
        at(CONFIG_TEXT);
        at("program");
    }

    #[test]
    fn a_segment_begins_at_a_multiple_of_four_behind_an_unchanged_base() {
        for len in 0..9 {
            let base: Vec<u8> = (1..=len).collect();
            let mut image = base.clone();
            append(&mut image, b"070701");
            assert!(image.starts_with(&base) && image.ends_with(b"070701") && (image.len() - 6).is_multiple_of(4));
        }
    }

    #[test]
    fn settings_without_pins_make_no_image() {
        assert!(Settings::parse("server = gw\ntenant-key = /k\n").unwrap_err().to_string().contains("no `ca`"));
        let error = Settings::parse("server = gw\nca = /c\n#tenant-key = /k\n").unwrap_err().to_string();
        assert!(error.contains("no `tenant-key`"), "{error}");
        assert!(Settings::parse("server = gw\nca = /c\nwants = attest\n").unwrap().attest_only);
    }

    #[test]
    fn a_file_that_is_not_there_or_not_public_is_named() {
        let scratch = Scratch::new("image").unwrap();
        let find = |text: &str| {
            let settings = Settings::parse(text).unwrap();
            Pins::find(&settings, scratch.path()).map(drop).unwrap_err().to_string()
        };
        let missing = find("ca = /nonexistent/ca.pem\ntenant-key = /nonexistent/key.pem\n");
        assert!(missing.contains("ca = /nonexistent/ca.pem: not beside the settings file"), "{missing}");
        fs::write(scratch.path().join("ca.pem"), "-----BEGIN EC PRIVATE KEY-----").unwrap();
        let private = find("ca = /etc/trefoil/ca.pem\ntenant-key = /nonexistent/key.pem\n");
        assert!(private.contains("holds a private key"), "{private}");
        for path in ["ca.pem", "/etc/../ca.pem"] {
            let outside = find(&format!("ca = {path}\ntenant-key = /k\n"));
            assert!(outside.contains("an absolute path in the image is needed"), "{outside}");
        }
    }

    #[test]
    fn a_certificate_is_not_taken_for_a_tenant_key() {
        let scratch = Scratch::new("image").unwrap();
        let (_, mut pins, _) = pins(&scratch);
        for text in ["-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "no base64 at all", ""] {
            pins.tenant_keys[0].text = text.to_owned();
            assert!(pins.tenant_keys().is_err(), "{text}");
        }
    }

    #[test]
    fn the_report_says_what_the_pins_and_the_file_measure() {
        let scratch = Scratch::new("image").unwrap();
        let (settings, pins, keys) = pins(&scratch);
        let said = report(Path::new("x.img"), b"image", true, &settings, &pins, &keys).unwrap();
        assert!(said.contains(&hex::encode(Sha256::digest(b"image"))), "{said}");
        let event = Sha256::digest(pins_event(&keys, true).unwrap());
        let value = hex::encode(Sha256::digest([[0; 32].as_slice(), &event].concat()));
        assert!(
            said.contains(&format!("PCR 14   {value} before the first connection: 2 key(s), autorun on")),
            "{said}"
        );
    }

    /// Every shell file that is shipped in `image/`.
    fn shell_files() -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut dirs = vec![tools::root().join("image")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let is_shell = |path: &Path| {
                    let text = fs::read_to_string(path).unwrap_or_default();
                    text.starts_with("#!/bin/sh") || text.starts_with("#!/bin/bash") || text.starts_with("# shellcheck")
                };
                if path.is_dir() {
                    dirs.push(path);
                } else if is_shell(&path) {
                    files.push(path);
                }
            }
        }
        files
    }

    #[test]
    fn shipped_scripts_are_shell_and_shellcheck_has_nothing_to_say() {
        let files = shell_files();
        assert!(files.len() >= 7, "{files:?}");
        for file in &files {
            let bash = fs::read_to_string(file).unwrap().starts_with("#!/bin/bash");
            spawn::run(Command::new(if bash { "bash" } else { "sh" }).arg("-n").arg(file)).unwrap();
        }
        if apt::find_program("shellcheck").is_none() {
            println!("skipped: shellcheck is not installed");
            return;
        }
        spawn::run(Command::new("shellcheck").args(["-S", "warning", "-x"]).args(&files)).unwrap();
    }
}
