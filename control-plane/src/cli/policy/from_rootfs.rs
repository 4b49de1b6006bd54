//! `trefoil policy from-rootfs`: a policy from a directory tree or an initrd.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use control_plane::appraisal::Policy;
use control_plane::appraisal::glob::Glob;
use control_plane::appraisal::policy::write::{DigestSet, ImaText, PolicyText};
use control_plane::rootfs::{self, Found, Note, Options, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use protocol::tpm::alg::HashAlg;
use serde::Serialize;

use super::TextFormat;
use crate::cli::{Context, output};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "An initrd may be plain or compressed (gzip, zstd, xz, LZ4), and several archives in a row, as the\n\
    kernel unpacks it. Links are not followed; devices, sockets and pipes are left out.\n\n\
    Examples:\n  \
    trefoil policy from-rootfs /mnt/image --out policy.json\n  \
    trefoil policy from-rootfs / --one-file-system --executable-only --exclude '/home/**' --out policy.json\n  \
    trefoil policy from-rootfs /boot/initrd.img-6.1.0-28-amd64 --name initrd --format toml\n\n\
    The policy has rules on files alone. Before shares can leave under it, add what the machine boots with, as\n\
    `trefoil policy learn NODE` writes it, and:\n  \
    [release]\n  \
    phase_pcr = 13"
)]
pub(crate) struct Arguments {
    /// A directory as the node sees it from `/` on, or an initrd
    #[arg(value_name = "DIR|INITRD")]
    root: PathBuf,
    /// The policy's name [default: that of the directory or file]
    #[arg(long)]
    name: Option<String>,
    /// Files that are neither listed nor judged, such as '/var/cache/**' (repeatable)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// The algorithm that the nodes' IMA lists use (ima_hash=)
    #[arg(long, value_name = "ALGORITHM", default_value = "sha256", value_parser = ["sha1", "sha256", "sha384", "sha512"])]
    hash: String,
    /// Only what is executed or loaded: files with an execute bit, ELF files, kernel modules
    #[arg(long)]
    executable_only: bool,
    /// Leave out directories that other file systems are mounted on
    #[arg(long)]
    one_file_system: bool,
    /// Where to write it; a file that is there is left alone [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// TOML or JSON [default: JSON for more than 2,000 files]
    #[arg(long, value_name = "FORMAT")]
    format: Option<TextFormat>,
}

/// The answer as data.
#[derive(Serialize)]
struct Answer<'a> {
    name: &'a str,
    root: &'a Path,
    kind: &'static str,
    hash: &'a str,
    files: usize,
    bytes: u64,
    excluded: u64,
    not_executable: u64,
    other_file_systems: u64,
    notes: &'a [Note],
    notes_left_out: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<&'a Path>,
    /// The policy's text, where it was not written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { root, out, .. } = arguments;
    // Said before minutes are spent, and again by the one that writes.
    super::refuse_existing(out.as_deref())?;
    let alg = HashAlg::from_name(&arguments.hash).context("--hash: no such algorithm")?;
    let globs = arguments
        .exclude
        .iter()
        .map(|text| Glob::new(text).with_context(|| format!("--exclude {text}")))
        .collect::<Result<Vec<_>, _>>()?;
    let bar = Bar::new();
    let options = Options {
        alg,
        executable_only: arguments.executable_only,
        one_file_system: arguments.one_file_system,
        is_excluded: &|path| globs.iter().any(|glob| glob.matches(path)),
        progress: &bar,
    };
    let is_dir = std::fs::metadata(root).with_context(|| root.display().to_string())?.is_dir();
    let found = if is_dir {
        rootfs::tree::read(root, &options)
    } else {
        let mut start = Vec::new();
        let file = File::open(root).with_context(|| root.display().to_string())?;
        file.take(8).read_to_end(&mut start).with_context(|| root.display().to_string())?;
        if !rootfs::initrd::is_initrd(&start) {
            bail!("{}: neither a directory nor an initrd (cpio, or compressed)", root.display());
        }
        rootfs::initrd::read(root, &options)
    };
    bar.bar.finish_and_clear();
    let mut found = found.with_context(|| root.display().to_string())?;

    let name = super::policy_name(arguments.name.as_deref(), root, "rootfs");
    let text = policy_text(&name, arguments, &mut found);
    let format = arguments.format.map_or_else(|| text.suggested_format(), Into::into);
    let policy = text.render(format);
    // What is written has to be of use.
    Policy::parse(policy.as_bytes()).context("what is there makes no policy")?;
    let files = text.counts().files;
    if !context.json() {
        say(&found, files, is_dir);
    }
    if out.is_some() || !context.json() {
        super::write(out.as_deref(), policy.as_bytes())?;
    }
    if context.json() {
        return output::print_json(&Answer {
            name: &name,
            root,
            kind: if is_dir { "tree" } else { "initrd" },
            hash: alg.name(),
            files,
            bytes: found.bytes,
            excluded: found.excluded,
            not_executable: found.not_executable,
            other_file_systems: found.other_file_systems,
            notes: &found.notes,
            notes_left_out: found.notes_left_out,
            out: out.as_deref(),
            policy: out.is_none().then_some(policy.as_str()),
        });
    }
    Ok(())
}

/// Moves the files into a policy.
fn policy_text(name: &str, arguments: &Arguments, found: &mut Found) -> PolicyText {
    let files = std::mem::take(&mut found.files);
    let ima = ImaText {
        exclude: arguments.exclude.iter().cloned().collect(),
        files: files.into_iter().map(|(path, digest)| (path, DigestSet::from([digest]))).collect(),
        ..ImaText::default()
    };
    PolicyText {
        header: vec![
            format!("The files of {}: what is there, not that it is good.", arguments.root.display()),
            "No share leaves under this policy until it has a [release].".to_owned(),
        ],
        name: name.to_owned(),
        ima: Some(ima),
        ..PolicyText::default()
    }
}

fn say(found: &Found, files: usize, is_dir: bool) {
    for Note { code, path, message } in &found.notes {
        output::note(&format!("{path}: {message} ({code})"));
    }
    if found.notes_left_out > 0 {
        output::note(&format!("… and {} more of that kind", found.notes_left_out));
    }
    for (count, what) in [
        (found.excluded, "files excluded: they are not judged"),
        (found.not_executable, "files left out that nothing executes"),
        (found.other_file_systems, "directories left out: other file systems"),
    ] {
        if count > 0 {
            output::note(&format!("{count} {what}"));
        }
    }
    let bytes = indicatif::HumanBytes(found.bytes);
    output::note(&format!("{files} files, {bytes} hashed from {}", if is_dir { "the tree" } else { "the initrd" }));
}

/// A progress bar on standard error, if that is a terminal.
struct Bar {
    bar: ProgressBar,
    files: AtomicU64,
    expected: AtomicU64,
}

impl Bar {
    fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let style =
                ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} to go");
            let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar.set_message("looking around");
            bar
        } else {
            ProgressBar::hidden()
        };
        Self { bar, files: AtomicU64::new(0), expected: AtomicU64::new(0) }
    }
}

impl Progress for Bar {
    fn expect(&self, bytes: u64, files: Option<u64>) {
        self.bar.set_length(bytes);
        self.expected.store(files.unwrap_or(0), Ordering::Relaxed);
    }

    fn bytes(&self, count: u64) {
        self.bar.inc(count);
    }

    fn file(&self) {
        let done = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        if self.bar.is_hidden() || !done.is_multiple_of(32) {
            return;
        }
        match self.expected.load(Ordering::Relaxed) {
            0 => self.bar.set_message(format!("{done} files")),
            all => self.bar.set_message(format!("{done}/{all} files")),
        }
    }

    fn is_watched(&self) -> bool {
        !self.bar.is_hidden()
    }
}
