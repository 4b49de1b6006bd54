//! `trefoil verdict list`.

use control_plane::http::model::{Verdict, Verdicts};

use super::watch::{self, Frame};
use super::{Context, component, output};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List verdicts of both appraisers, newest first
    #[command(after_help = "Examples:\n  trefoil verdict list\n  trefoil verdict list --node edge-1 --watch")]
    List {
        /// Only of this node: name, id or unambiguous prefix
        #[arg(long)]
        node: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Ask again every second
        #[arg(long)]
        watch: bool,
    },
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    let client = context.client()?;
    let Command::List { node, limit, watch } = command;
    let path = match node {
        Some(node) => format!("/api/v1/nodes/{}/verdicts?limit={limit}", component(node)?),
        None => format!("/api/v1/verdicts?limit={limit}"),
    };
    watch::show(*watch, || {
        let verdicts: Verdicts = client.get(&path)?;
        let key: Vec<_> = verdicts.verdicts.iter().map(|v| (&v.role, &v.node_id, v.at_ms, v.outcome.name())).collect();
        let key = format!("{key:?}");
        let text = if context.json() {
            let text = if *watch { serde_json::to_string(&verdicts) } else { serde_json::to_string_pretty(&verdicts) };
            format!("{}\n", text?)
        } else {
            table(verdicts.verdicts)
        };
        Ok(Frame { key, text })
    })
}

fn table(verdicts: Vec<Verdict>) -> String {
    let style = output::Style::stdout();
    let rows: Vec<Vec<String>> = verdicts
        .into_iter()
        .map(|verdict| {
            vec![
                output::time(verdict.at_ms),
                output::short(&verdict.node_id),
                output::clean(&verdict.role),
                output::clean(&verdict.purpose),
                style.state(verdict.outcome.name()),
                output::clean(&verdict.reason),
            ]
        })
        .collect();
    output::table(style, &["AT", "NODE", "BY", "PURPOSE", "OUTCOME", "REASON"], &rows)
}
