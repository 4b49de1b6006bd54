//! `trefoil policy`: what a good node looks like.

mod diff;
mod dry_run;
mod from_rootfs;
mod import;
mod learn;
mod sign;

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use control_plane::appraisal::policy::write::Format;
use control_plane::appraisal::policy::{self, Policy as Parsed, PolicyError};
use control_plane::http::model::{Policies, Policy};

use super::client::Client;
use super::{Context, component, output};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Upload a policy: TOML, or JSON; signed or not
    #[command(after_help = "A policy:\n  \
        version = 1\n  \
        name = \"edge\"\n  \
        [pcrs.sha256]\n  \
        7 = [\"64 hex digits\", \"another good value\"]\n  \
        [release]\n  \
        phase_pcr = 13\n\n\
        Rules on boot events and files: docs/policy.md.\n\n\
        Example:\n  trefoil policy add policy.toml")]
    Add {
        /// The policy's file
        file: PathBuf,
    },
    /// List policies, newest first
    List,
    /// Print a policy as it was uploaded
    Show {
        /// Id, unambiguous prefix of it, or name (the newest of that name)
        policy: String,
    },
    /// Write a policy from what a node looks like now
    Learn(learn::Arguments),
    /// Write a policy from Keylime's policies
    Import(import::Arguments),
    /// Write a policy from a directory tree or an initrd
    FromRootfs(from_rootfs::Arguments),
    /// Say what two policies say differently
    Diff(diff::Arguments),
    /// Say what a policy would make of nodes, without enforcing it
    Try(dry_run::Arguments),
    /// Sign a policy: put it into a DSSE envelope
    Sign(sign::Sign),
    /// Print the public key that `policy_keys` has to name
    Key(sign::Key),
}

/// The two forms of a policy, in arguments.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum TextFormat {
    /// For people
    Toml,
    /// For long lists
    Json,
}

impl From<TextFormat> for Format {
    fn from(format: TextFormat) -> Self {
        match format {
            TextFormat::Toml => Self::Toml,
            TextFormat::Json => Self::Json,
        }
    }
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Add { file } => {
            let policy = add(&context.client()?, file)?;
            if context.json() {
                output::print_json(&policy)?;
            } else {
                output::note(&format!("policy {}:", output::clean(&policy.name)));
                output::print(&format!("{}\n", policy.id))?;
            }
        }
        Command::List => list(context)?,
        Command::Show { policy } => {
            let policy: Policy = context.client()?.get(&format!("/api/v1/policies/{}", component(policy)?))?;
            if context.json() {
                output::print_json(&policy)?;
            } else {
                output::print(&policy.body.unwrap_or_default())?;
            }
        }
        Command::Learn(arguments) => learn::run(context, arguments)?,
        Command::Import(arguments) => import::run(context, arguments)?,
        Command::FromRootfs(arguments) => from_rootfs::run(context, arguments)?,
        Command::Diff(arguments) => return diff::run(context, arguments),
        Command::Try(arguments) => return dry_run::run(context, arguments),
        Command::Sign(arguments) => sign::sign(context, arguments)?,
        Command::Key(arguments) => sign::key(context, arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(context: &Context) -> anyhow::Result<()> {
    let policies: Policies = context.client()?.get("/api/v1/policies")?;
    if context.json() {
        return output::print_json(&policies);
    }
    let rows: Vec<Vec<String>> = policies
        .policies
        .into_iter()
        .map(|policy| vec![output::short(&policy.id), output::clean(&policy.name), output::time(policy.created_ms)])
        .collect();
    output::print(&output::table(output::Style::stdout(), &["POLICY", "NAME", "UPLOADED"], &rows))
}

/// The id of the policy that an argument means: a file, which is uploaded, or what the server knows by this id or name.
pub(crate) fn resolve(client: &Client, wanted: &str) -> anyhow::Result<String> {
    let path = Path::new(wanted);
    if path.is_file() {
        return Ok(add(client, path)?.id);
    }
    let policy: Policy = client
        .get(&format!("/api/v1/policies/{}", component(wanted)?))
        .with_context(|| format!("--policy {wanted}: no such file here"))?;
    Ok(policy.id)
}

fn add(client: &Client, path: &Path) -> anyhow::Result<Policy> {
    let bytes = read(path)?;
    // Judged here first: the message is about a file that is here.
    Parsed::parse(&bytes).with_context(|| path.display().to_string())?;
    client.post_bytes("/api/v1/policies", "application/toml", &bytes)
}

/// Reads a policy's file; one that is too long to be a policy is not read whole.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = || path.display().to_string();
    let file = std::fs::File::open(path).with_context(shown)?;
    let mut bytes = Vec::new();
    file.take(policy::MAX_POLICY_LEN as u64 + 1).read_to_end(&mut bytes).with_context(shown)?;
    if bytes.len() > policy::MAX_POLICY_LEN {
        return Err(PolicyError::TooLong).with_context(shown);
    }
    Ok(bytes)
}

/// Writes a result to a new file, whole or not at all, or to standard output.
fn write(out: Option<&Path>, bytes: &[u8]) -> anyhow::Result<()> {
    let Some(path) = out else {
        let mut out = std::io::stdout().lock();
        return out.write_all(bytes).and_then(|()| out.flush()).context("standard output");
    };
    let shown = || path.display().to_string();
    let name = path.file_name().with_context(|| format!("{}: no file's name", path.display()))?;
    let temporary = path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary).with_context(shown)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| place(&temporary, path));
    // It is gone already if all went well.
    let _ = std::fs::remove_file(&temporary);
    written.with_context(shown)
}

/// Gives a file its name, unless something has that name already.
fn place(temporary: &Path, path: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE) {
        // Some file systems know no such rename; a link does not replace anything either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => std::fs::hard_link(temporary, path),
        done => Ok(done?),
    }
}

/// Refuses an `--out` that is there already, before work is done for it.
fn refuse_existing(out: Option<&Path>) -> anyhow::Result<()> {
    match out {
        Some(path) if path.symlink_metadata().is_ok() => {
            anyhow::bail!("{}: a file that is there is left alone", path.display())
        }
        _ => Ok(()),
    }
}

/// A policy's name: the one that was given, else the file's without its ending, made fit to be one.
fn policy_name(given: Option<&str>, path: &Path, fallback: &str) -> String {
    if let Some(name) = given {
        return name.to_owned();
    }
    let stem = path.file_stem().map(|stem| output::clean(&stem.to_string_lossy())).unwrap_or_default();
    let name: String = stem.trim().chars().take(policy::MAX_NAME_LEN).collect();
    let name = name.trim();
    if name.is_empty() { fallback.to_owned() } else { name.to_owned() }
}
