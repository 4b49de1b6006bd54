//! `trefoil policy try`: what a policy would make of nodes, judged on what they showed last.

use std::path::Path;
use std::process::ExitCode;

use control_plane::appraisal::policy::Policy as Parsed;
use control_plane::http::model::{Tried, TriedNode, TriedOutcome, TryRequest};

use crate::cli::Context;
use crate::cli::output::{self, Style};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    trefoil policy try new.toml\n  \
    trefoil policy try new.toml edge-1 edge-2 --json\n\n\
    Nothing is changed by it, and the policy is not stored. Exit 0 if no node would fail, 1 if one would, or if for one\n\
    it cannot be told.")]
pub(crate) struct Arguments {
    /// The policy: a file, or an uploaded policy's id or name
    policy: String,
    /// Nodes by name, node id, or unambiguous prefix of it [default: all]
    nodes: Vec<String>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let path = Path::new(&arguments.policy);
    let policy = if path.is_file() {
        let bytes = super::read(path)?;
        // Judged here first: the message is about a file that is here.
        Parsed::parse(&bytes).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        String::from_utf8(bytes)?
    } else {
        arguments.policy.clone()
    };
    let request = TryRequest { policy, nodes: arguments.nodes.clone() };
    let tried: Tried = context.client()?.post("/api/v1/policies/try", &request)?;
    if context.json() {
        output::print_json(&tried)?;
    } else {
        output::print(&describe(Style::stdout(), &tried.nodes))?;
    }
    let is_open = |node: &TriedNode| matches!(node.outcome, TriedOutcome::Failed | TriedOutcome::CannotTell);
    Ok(if tried.nodes.iter().any(is_open) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A table of the nodes, then each finding of those that would fail. Every text in it may come from a node.
fn describe(style: Style, nodes: &[TriedNode]) -> String {
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            vec![
                output::clean(&node.name),
                style.state(node.outcome.name()),
                output::or_dash(node.evidence_at_ms.map(output::time)),
                output::clean(&node.summary),
            ]
        })
        .collect();
    let mut text = output::table(style, &["NODE", "WOULD BE", "EVIDENCE OF", "BECAUSE"], &rows);
    for node in nodes {
        if node.findings.is_empty() && (node.outcome != TriedOutcome::CannotTell || node.not_checked.is_empty()) {
            continue;
        }
        text.push_str(&format!("\n{}\n", style.bold(&output::clean(&node.name))));
        for finding in &node.findings {
            let part = |key: &str| output::clean(finding.get(key).and_then(|value| value.as_str()).unwrap_or_default());
            text.push_str(&format!("  {} {}: {}\n", style.bold("found"), part("check"), part("code")));
            for (label, key) in [("at", "what"), ("expected", "expected"), ("found", "found")] {
                text.push_str(&format!("    {label:<9} {}\n", part(key)));
            }
        }
        for line in &node.not_checked {
            text.push_str(&format!("  {} {}\n", style.bold("not checked"), output::clean(line)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_would_fail_is_told_with_the_entry() {
        let node = |name: &str, outcome, findings| TriedNode {
            name: name.into(),
            node_id: None,
            outcome,
            summary: "a file\u{1b}[2J".into(),
            findings,
            not_checked: vec![],
            evidence_at_ms: Some(0),
        };
        let finding = serde_json::json!({"check": "ima_policy", "code": "ima_file_unknown", "what": "IMA entry 5 (/x)",
            "expected": "a listed file", "found": "sha256:00"});
        let nodes = [node("a", TriedOutcome::Good, vec![]), node("b", TriedOutcome::Failed, vec![finding])];
        let text = describe(Style::plain(), &nodes);
        for part in ["a     good", "b     failed", "IMA entry 5 (/x)", "ima_policy: ima_file_unknown", "a listed file"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains("\na\n"), "{text}");
    }
}
