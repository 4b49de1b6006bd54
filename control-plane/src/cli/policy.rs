//! `trefoil policy`: what a good node looks like.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use control_plane::appraisal::policy::{self, Policy as Parsed};
use control_plane::http::model::{Evidence, Policies, Policy, bank_alg};

use super::client::Client;
use super::{Context, component, output};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Upload a policy: TOML, or JSON
    #[command(after_help = "A policy:\n  \
        version = 1\n  \
        name = \"edge\"\n  \
        [pcrs.sha256]\n  \
        7 = [\"64 hex digits\", \"another good value\"]\n  \
        [release]\n  \
        phase_pcr = 13\n\n\
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
    #[command(after_help = "Examples:\n  \
        trefoil policy learn edge-1 --out policy.toml\n  \
        trefoil node set edge-1 --policy policy.toml\n\n\
        Read it before you use it: it says what the node looked like, not that this was good.")]
    Learn {
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
    },
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        Command::Add { file } => {
            let policy = add(&client, file)?;
            if context.json() {
                return output::print_json(&policy);
            }
            output::note(&format!("policy {}:", output::clean(&policy.name)));
            output::print(&format!("{}\n", policy.id))
        }
        Command::List => {
            let policies: Policies = client.get("/api/v1/policies")?;
            if context.json() {
                return output::print_json(&policies);
            }
            let rows: Vec<Vec<String>> = policies
                .policies
                .into_iter()
                .map(|policy| {
                    vec![output::short(&policy.id), output::clean(&policy.name), output::time(policy.created_ms)]
                })
                .collect();
            output::print(&output::table(output::Style::stdout(), &["POLICY", "NAME", "UPLOADED"], &rows))
        }
        Command::Show { policy } => {
            let policy: Policy = client.get(&format!("/api/v1/policies/{}", component(policy)?))?;
            if context.json() {
                return output::print_json(&policy);
            }
            output::print(&policy.body.unwrap_or_default())
        }
        Command::Learn { node, out, name, phase_pcr } => {
            let evidence: Evidence = client.get(&format!("/api/v1/nodes/{}/evidence", component(node)?))?;
            let text = Parsed::learn(&values(&evidence.pcrs), name.as_deref().unwrap_or(node), Some(*phase_pcr));
            // What is written has to be of use.
            Parsed::parse(text.as_bytes()).context("the node's evidence makes no policy")?;
            match out {
                None => output::print(&text),
                Some(path) => {
                    let mut file = OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .open(path)
                        .with_context(|| path.display().to_string())?;
                    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())?;
                    output::note(&format!("{}: read it, then: trefoil node set {node} --policy {0}", path.display()));
                    Ok(())
                }
            }
        }
    }
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
    let shown = || path.display().to_string();
    let len = std::fs::metadata(path).with_context(shown)?.len();
    if len > policy::MAX_POLICY_LEN as u64 {
        return Err(policy::PolicyError::TooLong).with_context(shown);
    }
    let bytes = std::fs::read(path).with_context(shown)?;
    // Judged here first: the message is about a file that is here.
    Parsed::parse(&bytes).with_context(shown)?;
    client.post_bytes("/api/v1/policies", "application/toml", &bytes)
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
