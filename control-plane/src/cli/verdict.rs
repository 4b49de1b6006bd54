//! `trefoil verdict`: what the appraisers found, and why.

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
    /// Explain a node's newest verdicts: each finding with its place, what was checked and what was not
    #[command(after_help = "Example:\n  trefoil verdict explain edge-1")]
    Explain {
        /// Name, node id, or unambiguous prefix of it
        node: String,
        /// At most so many, newest first
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    let client = context.client()?;
    let (node, limit, watch) = match command {
        Command::List { node, limit, watch } => (node, limit, watch),
        Command::Explain { node, limit } => {
            let verdicts: Verdicts =
                client.get(&format!("/api/v1/nodes/{}/verdicts?limit={limit}", component(node)?))?;
            if context.json() {
                return output::print_json(&verdicts);
            }
            if verdicts.verdicts.is_empty() {
                output::note(&format!("{node}: no verdict yet"));
            }
            let style = output::Style::stdout();
            let texts: Vec<String> = verdicts.verdicts.iter().map(|verdict| explain(style, verdict)).collect();
            return output::print(&texts.join("\n"));
        }
    };
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

/// A verdict in full. Every text in it may come from the node.
fn explain(style: output::Style, verdict: &Verdict) -> String {
    let Verdict { role, purpose, outcome, at_ms, reason, explanation, .. } = verdict;
    let text = |value: &serde_json::Value, key: &str| match value.get(key) {
        Some(serde_json::Value::String(text)) => output::clean(text),
        Some(serde_json::Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let mut lines = vec![format!(
        "{} by the {}, {}, {}: {}",
        style.state(outcome.name()),
        output::clean(role),
        output::clean(purpose),
        output::time(*at_ms),
        output::clean(reason)
    )];
    let list = |key: &str| explanation.get(key).and_then(|list| list.as_array()).into_iter().flatten();
    for finding in list("findings") {
        lines.push(format!("  {} {}: {}", style.bold("found"), text(finding, "check"), text(finding, "code")));
        for (label, key) in [("at", "what"), ("expected", "expected"), ("found", "found")] {
            lines.push(format!("    {label:<9} {}", text(finding, key)));
        }
    }
    if let Some(more) = explanation.get("more_findings") {
        lines.push(format!("  and {more} more"));
    }
    for (label, key) in [("checked", "checked"), ("not checked", "not_checked"), ("accepted", "accepted")] {
        for line in list(key).filter_map(|line| line.as_str()) {
            lines.push(format!("  {} {}", style.bold(label), output::clean(line)));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use control_plane::http::model::OutcomeName;

    use super::*;

    #[test]
    fn an_explanation_names_the_check_the_place_and_both_values() {
        let verdict = Verdict {
            role: "verifier".into(),
            node_id: "ab".repeat(32),
            outcome: OutcomeName::Failed,
            purpose: "attest".into(),
            at_ms: 0,
            age_ms: 0,
            valid_ms: 0,
            policy: None,
            reason: "an unlisted file".into(),
            explanation: serde_json::json!({
                "findings": [{"check": "ima_policy", "code": "ima_file_unknown", "what": "IMA entry 5 (/x\u{1b}[2J)",
                    "entry": 5, "expected": "a listed file", "found": "sha256:00"}],
                "more_findings": 3,
                "not_checked": ["firmware"],
            }),
        };
        let text = explain(output::Style::plain(), &verdict);
        for part in ["ima_policy: ima_file_unknown", "IMA entry 5 (/x [2J)", "a listed file", "and 3 more", "firmware"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}'));
    }
}
