//! `trefoil policy import`: Keylime's policies as one of ours.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use control_plane::appraisal::policy::dsse::P256Key;
use control_plane::appraisal::policy::keylime::{Imported, Importer, Kind, MAX_IMPORT_LEN, Note};
use serde::Serialize;

use super::TextFormat;
use crate::cli::{Context, output};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Reads runtime policies (signed or not), allow-lists (JSON or `digest  path`), exclude lists,\n\
    measured-boot reference states and tpm_policy; which it is, is seen in the file. Several files become one policy.\n\
    What does not carry over is said, a line each; nothing is widened.\n\n\
    Examples:\n  \
    trefoil policy import runtime-policy.json --out policy.toml\n  \
    trefoil policy import signed-policy.json --key policy-key.pub --name edge --out policy.json\n  \
    trefoil policy import allowlist.txt excludes.txt mb-refstate.json tpm_policy.json --out policy.toml\n  \
    trefoil policy import runtime-policy.json --json | jq .notes\n\n\
    Then try it against what nodes showed before you enforce it:\n  \
    trefoil policy try policy.toml"
)]
pub(crate) struct Arguments {
    /// Keylime's files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The policy's name [default: the first file's, without its ending]
    #[arg(long)]
    name: Option<String>,
    /// Public keys (PEM, P-256) that runtime policies have to be signed by; without it no signature is checked
    #[arg(long, value_name = "PEM")]
    key: Option<PathBuf>,
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
    sources: Vec<Source<'a>>,
    files: usize,
    digests: usize,
    /// What did not carry over.
    notes: &'a [Note],
    notes_left_out: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<&'a Path>,
    /// The policy's text, where it was not written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
}

#[derive(Serialize)]
struct Source<'a> {
    file: &'a str,
    kind: Kind,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    super::refuse_existing(arguments.out.as_deref())?;
    let keys = match &arguments.key {
        None => Vec::new(),
        Some(path) => keys(path)?,
    };
    let first = arguments.files.first().context("no file is named")?;
    let name = super::policy_name(arguments.name.as_deref(), first, "imported");
    let mut importer = Importer::new(&name, keys);
    for path in &arguments.files {
        let shown = path.display().to_string();
        let bytes = read(path)?;
        importer.add(&shown, &bytes).with_context(|| shown.clone())?;
    }
    let imported = importer.finish(arguments.format.map(Into::into))?;
    let counts = imported.text.counts();
    if !context.json() {
        say(&imported);
    }
    let out = arguments.out.as_deref();
    if out.is_some() || !context.json() {
        super::write(out, imported.policy.as_bytes())?;
    }
    if context.json() {
        return output::print_json(&Answer {
            name: &name,
            sources: imported.kinds.iter().map(|(file, kind)| Source { file, kind: *kind }).collect(),
            files: counts.files,
            digests: counts.digests,
            notes: &imported.notes,
            notes_left_out: imported.notes_left_out,
            out,
            policy: out.is_none().then_some(imported.policy.as_str()),
        });
    }
    if let Some(path) = out {
        let path = path.display();
        output::note(&format!("{path}: read it, then: trefoil policy try {path}"));
    }
    Ok(())
}

/// A line for each file, and for each thing that did not carry over.
fn say(imported: &Imported) {
    for (file, kind) in &imported.kinds {
        output::note(&format!("{}: {}", output::clean(file), kind.name()));
    }
    for Note { file, code, place, message } in &imported.notes {
        let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
        output::note(&output::clean(&format!("{file}: {place}{message} ({code})")));
    }
    if imported.notes_left_out > 0 {
        output::note(&format!("… and {} more of that kind", imported.notes_left_out));
    }
    let counts = imported.text.counts();
    output::note(&format!("{} files, {} digests", counts.files, counts.digests));
}

fn keys(path: &Path) -> anyhow::Result<Vec<P256Key>> {
    let pem = control_plane::files::read(path)?;
    match P256Key::from_pem(&pem) {
        Some(keys) => Ok(keys),
        None => bail!("{}: no P-256 public key in PEM (BEGIN PUBLIC KEY)", path.display()),
    }
}

/// Reads a file, but no more of it than is imported.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = || path.display().to_string();
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(shown)?;
    file.take(MAX_IMPORT_LEN as u64 + 1).read_to_end(&mut bytes).with_context(shown)?;
    Ok(bytes)
}
