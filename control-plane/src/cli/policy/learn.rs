//! `trefoil policy learn`: a policy from what a node last showed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control_plane::appraisal::policy::learn::{self, LearnOptions};
use control_plane::http::model::{Evidence, EvidenceLogs, bank_alg};

use super::TextFormat;
use crate::cli::{Context, component, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    trefoil policy learn edge-1 --out policy.toml\n  \
    trefoil policy try policy.toml edge-1 edge-2\n  \
    trefoil node set edge-1 --policy policy.toml\n\n\
    Read it before you use it: it says what the node looked like, not that this was good.")]
pub(crate) struct Arguments {
    /// Name, node id, or unambiguous prefix of it
    node: String,
    /// Where to write it; a file that is there is left alone [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The policy's name [default: the node's]
    #[arg(long)]
    name: Option<String>,
    /// The PCR that the agent extends with its pins
    #[arg(long, value_name = "PCR", default_value_t = 13, value_parser = clap::value_parser!(u8).range(8..=15))]
    phase_pcr: u8,
    /// List PCR values alone: no rules on the boot log's events, none on files
    #[arg(long)]
    pcrs_only: bool,
    /// No rules on files
    #[arg(long)]
    no_ima: bool,
    /// TOML or JSON [default: JSON for more than 2,000 files]
    #[arg(long, value_name = "FORMAT")]
    format: Option<TextFormat>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let node = &arguments.node;
    let wanted = if arguments.pcrs_only { "" } else { "?logs=true" };
    let evidence: Evidence = context.client()?.get(&format!("/api/v1/nodes/{}/evidence{wanted}", component(node)?))?;
    let pcrs = values(&evidence.pcrs);
    let logs = evidence.logs.unwrap_or_default();
    let Logs { boot_log, command_line, ima_list } = Logs::decode(&logs)?;
    let learned = learn::learn(
        &learn::Evidence {
            pcrs: &pcrs,
            boot_log: boot_log.as_deref().filter(|_| !arguments.pcrs_only),
            command_line: command_line.as_deref(),
            ima_list: ima_list.as_deref().filter(|_| !arguments.pcrs_only && !arguments.no_ima),
        },
        &LearnOptions {
            name: arguments.name.as_deref().unwrap_or(node),
            phase_pcr: Some(arguments.phase_pcr),
            format: arguments.format.map(Into::into),
        },
    )
    .context("the node's evidence makes no policy")?;
    if !arguments.pcrs_only {
        if boot_log.is_none() {
            output::note("The node showed no boot log, or it was not kept: no rules on its events.");
        }
        if ima_list.is_none() && !arguments.no_ima {
            output::note("The node showed no IMA list, or it was not kept: no rules on files.");
        }
    }
    for note in &learned.notes {
        output::note(&format!("Note: {}", output::clean(note)));
    }
    if learned.files > 0 {
        output::note(&format!("{} files are listed.", learned.files));
    }
    super::write(arguments.out.as_deref(), learned.text.as_bytes())?;
    if let Some(path) = &arguments.out {
        let path = path.display();
        output::note(&format!("{path}: read it, then: trefoil node set {node} --policy {path}"));
    }
    Ok(())
}

struct Logs {
    boot_log: Option<Vec<u8>>,
    command_line: Option<Vec<u8>>,
    ima_list: Option<Vec<u8>>,
}

impl Logs {
    fn decode(logs: &EvidenceLogs) -> anyhow::Result<Self> {
        let decode = |text: &Option<String>, what: &'static str| {
            text.as_ref()
                .map(|text| STANDARD.decode(text).with_context(|| format!("the answer's {what} is not base64")))
                .transpose()
        };
        Ok(Self {
            boot_log: decode(&logs.boot_log, "boot_log")?,
            command_line: decode(&logs.command_line, "command_line")?,
            ima_list: decode(&logs.ima_list, "ima_list")?,
        })
    }
}

fn values(pcrs: &BTreeMap<String, BTreeMap<u8, String>>) -> Vec<(u16, u8, Vec<u8>)> {
    let mut values = Vec::new();
    for (bank, entries) in pcrs {
        let Some(alg) = bank_alg(bank) else { continue };
        for (index, text) in entries {
            if let Ok(value) = hex::decode(text) {
                values.push((alg, *index, value));
            }
        }
    }
    values
}
