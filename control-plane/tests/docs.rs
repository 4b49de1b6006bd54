//! The documentation says what the code does: names in diagrams and tables exist, commands parse, links lead somewhere.
//!
//! Whether a sentence is true is for reviewers; here is what a machine can compare.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use control_plane::appraisal::Policy;
use control_plane::http;
use control_plane::link::LinkMethod;
use protocol::coap::route::{RouteName, Side};

const OVERVIEW: &str = "docs/three-part-key-derivation.md";
/// Routes that the derivation does without: discovery, and a message that agents do not take yet.
const OTHER_ROUTES: [RouteName; 2] = [RouteName::WellKnownCore, RouteName::Revocation];
/// Link methods that end what the derivation began.
const OTHER_METHODS: [LinkMethod; 2] = [LinkMethod::Remove, LinkMethod::Forget];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The bodies of all fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(name), None) => open = Some((name.trim() == language, String::new())),
            (Some(_), Some(_)) => {
                if let Some((true, body)) = open.take() {
                    blocks.push(body);
                }
            }
            (None, Some((_, body))) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    blocks
}

/// An arrow of a diagram.
#[derive(Debug, Eq, PartialEq)]
struct Arrow {
    from: String,
    to: String,
    /// An answer (dotted), else a request or a step.
    answer: bool,
    label: String,
}

impl Arrow {
    /// What the label begins with: the message's name, `api` or `local`.
    fn name(&self) -> &str {
        self.label.split_once(':').map_or(self.label.as_str(), |(name, _)| name).trim()
    }

    /// The agent's side of a sequence diagram.
    fn touches_agent(&self) -> bool {
        self.from == "A" || self.to == "A"
    }
}

/// `A->>B: label` and `A-->>B: label`.
fn sequence_arrows(diagram: &str) -> Vec<Arrow> {
    let arrow = |line: &str| {
        let (answer, (from, rest)) = match line.split_once("-->>") {
            Some(parts) => (true, parts),
            None => (false, line.split_once("->>")?),
        };
        let (to, label) = rest.split_once(':').unwrap_or_else(|| panic!("an arrow without a label: {line}"));
        let [from, to, label] = [from, to, label].map(|part| part.trim().to_owned());
        Some(Arrow { from, to, answer, label })
    };
    diagram.lines().filter_map(|line| arrow(line.trim())).collect()
}

/// `a -->|"label"| b`.
fn flow_arrows(diagram: &str) -> Vec<Arrow> {
    let arrow = |line: &str| {
        let (from, rest) = line.split_once("--")?;
        let rest = rest.strip_prefix(">|\"").unwrap_or_else(|| panic!("an arrow without a label: {line}"));
        let (label, to) = rest.split_once("\"|").unwrap_or_else(|| panic!("an arrow without a label: {line}"));
        let [from, to, label] = [from, to, label].map(|part| part.trim().to_owned());
        Some(Arrow { from, to, answer: false, label })
    };
    diagram.lines().filter_map(|line| arrow(line.trim())).collect()
}

fn diagrams() -> (Vec<Arrow>, Vec<Arrow>) {
    let blocks = blocks(&read(OVERVIEW), "mermaid");
    let of = |kind: &str| {
        let block = blocks.iter().find(|block| block.starts_with(kind));
        block.unwrap_or_else(|| panic!("{OVERVIEW} has no {kind}")).clone()
    };
    (sequence_arrows(&of("sequenceDiagram")), flow_arrows(&of("flowchart")))
}

fn route(name: &str) -> Option<RouteName> {
    RouteName::ALL.into_iter().find(|route| route.name() == name)
}

fn method(name: &str) -> Option<LinkMethod> {
    LinkMethod::ALL.into_iter().find(|method| method.name() == name)
}

#[test]
fn every_arrow_carries_the_name_of_a_route_or_a_link_method() {
    let (sequence, flow) = diagrams();
    assert!(sequence.len() > 30 && flow.len() > 20, "{} and {}", sequence.len(), flow.len());
    for arrow in sequence.iter().chain(&flow) {
        let name = arrow.name();
        let known = matches!(name, "local" | "api") || route(name).is_some() || method(name).is_some();
        assert!(known, "`{name}` is no route, link method, `api` or `local`: {arrow:?}");
    }
}

#[test]
fn every_route_and_link_method_of_the_derivation_is_in_both_diagrams() {
    let (sequence, flow) = diagrams();
    for (kind, arrows) in [("sequence diagram", sequence), ("flow chart", flow)] {
        let names: BTreeSet<&str> = arrows.iter().map(Arrow::name).collect();
        for route in RouteName::ALL {
            let expected = !OTHER_ROUTES.contains(&route);
            assert_eq!(names.contains(route.name()), expected, "route {} in the {kind}", route.name());
        }
        for method in LinkMethod::ALL {
            let expected = !OTHER_METHODS.contains(&method);
            assert_eq!(names.contains(method.name()), expected, "link method {} in the {kind}", method.name());
        }
    }
}

#[test]
fn every_arrow_of_the_sequence_points_to_the_side_that_answers() {
    for arrow in diagrams().0 {
        // An answer goes back to who asked.
        let (asks, answers) = if arrow.answer { (&arrow.to, &arrow.from) } else { (&arrow.from, &arrow.to) };
        match (route(arrow.name()), method(arrow.name())) {
            (Some(route), _) => match route.parts().2 {
                Side::Agent => assert!(answers == "A" && asks != "A", "{arrow:?}"),
                Side::ControlPlane => assert!(asks == "A" && answers != "A", "{arrow:?}"),
                Side::Both => assert!(arrow.touches_agent(), "{arrow:?}"),
            },
            (None, Some(LinkMethod::Binding | LinkMethod::AdmitNode | LinkMethod::AdmitJoin | LinkMethod::Forget)) => {
                assert_eq!(answers, "R", "{arrow:?}");
            }
            (None, Some(_)) => assert!(asks == "T" && answers == "V", "{arrow:?}"),
            (None, None) if arrow.name() == "local" => assert_eq!(asks, answers, "{arrow:?}"),
            (None, None) => assert_eq!(asks, "O", "{arrow:?}"),
        }
    }
}

#[test]
fn every_api_endpoint_in_a_diagram_exists() {
    let api = serde_json::to_value(http::openapi()).expect("OpenAPI is JSON");
    let (sequence, flow) = diagrams();
    for arrow in sequence.iter().chain(&flow).filter(|arrow| arrow.name() == "api") {
        let endpoint = arrow.label.strip_prefix("api:").map(str::trim).and_then(|text| text.split_once(' '));
        let (method, path) = endpoint.unwrap_or_else(|| panic!("not `api: METHOD PATH`: {arrow:?}"));
        let found = &api["paths"][path][method.to_lowercase()];
        assert!(found.is_object(), "the API has no {method} {path}");
    }
}

/// Everything that the control plane is made of.
fn source() -> String {
    let mut source = String::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("the sources are there") {
            let path = entry.expect("the sources are there").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                source.push_str(&fs::read_to_string(path).expect("sources are text"));
            }
        }
    }
    source
}

#[test]
fn every_kind_in_the_failure_table_is_one_that_the_control_plane_writes() {
    let source = source();
    let text = read(OVERVIEW);
    let (_, table) = text.split_once("| at | kinds |").expect("the failure table is there");
    let mut count = 0;
    for row in table.lines().filter(|line| line.starts_with('|')) {
        let kinds = row.split('|').nth(2).unwrap_or_default();
        for kind in kinds.split('`').skip(1).step_by(2) {
            count += 1;
            assert!(source.contains(&format!("\"{kind}\"")), "no source file has the kind `{kind}`");
        }
    }
    assert!(count > 50, "only {count} kinds");
}

#[test]
fn the_answer_in_the_readme_is_a_node_of_this_version() {
    let blocks = blocks(&read("README.md"), "json");
    let node: http::model::Node = serde_json::from_str(&blocks[0]).expect("the README shows a node");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&blocks[0]).expect("it is JSON")["name"], node.name);
}

#[test]
fn the_policy_in_the_readme_is_one() {
    let blocks = blocks(&read("README.md"), "toml");
    let policy = Policy::parse(blocks[0].as_bytes()).expect("the README shows a policy");
    assert!(policy.release().is_some(), "a share may leave under it");
}

#[test]
fn the_policies_in_the_reference_are_ones() {
    let policies = blocks(&read("docs/policy.md"), "toml");
    assert!(!policies.is_empty());
    for text in policies {
        let policy = Policy::parse(text.as_bytes()).unwrap_or_else(|error| panic!("docs/policy.md: {error}"));
        assert!(policy.boot().is_some() && policy.ima().is_some());
    }
}

#[test]
fn every_reason_in_the_reference_is_one_that_the_control_plane_gives() {
    let (source, text) = (source(), read("docs/policy.md"));
    let (_, reasons) = text.split_once("\n## Reasons\n").expect("the reasons are there");
    let mut count = 0;
    for row in reasons.lines().filter(|line| line.starts_with("| `")) {
        for reason in row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2) {
            count += 1;
            assert!(source.contains(&format!("\"{reason}\"")), "no source file has the reason `{reason}`");
        }
    }
    assert!(count > 40, "only {count} reasons");
}

/// Every line in a shell block that begins with one of our programs, without what a shell would take away.
fn commands(name: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for block in blocks(&read(name), "sh") {
        for line in block.replace("\\\n", " ").lines() {
            let line = line.trim().trim_start_matches("sudo ");
            let line = line.split(" #").next().unwrap_or_default();
            let words = shell_words(line);
            let ends = |word: &&String| !matches!(word.as_str(), ">" | ">>" | "|" | "&" | "&&");
            let words: Vec<String> = words.iter().take_while(ends).cloned().collect();
            if words.first().is_some_and(|word| word == "trefoil" || word == "cargo") {
                commands.push(words);
            }
        }
    }
    commands
}

/// Splits at spaces outside of quotes, and takes the quotes away.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in line.chars() {
        match character {
            '"' | '\'' if quote == Some(character) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(character),
            ' ' if quote.is_none() => words.push(String::new()),
            _ => words.last_mut().expect("there is one").push(character),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// All documents of the repository.
fn documents() -> Vec<String> {
    let mut names: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned).to_vec();
    for dir in ["docs", "docs/adr", "docs/howto"] {
        for entry in fs::read_dir(root().join(dir)).expect("docs are there") {
            let file = entry.expect("docs are there").file_name().into_string().expect("names are text");
            if file.ends_with(".md") {
                names.push(format!("{dir}/{file}"));
            }
        }
    }
    names
}

#[test]
fn every_trefoil_command_in_the_documents_parses() {
    let mut count = 0;
    for document in documents() {
        for words in commands(&document).iter().filter(|words| words[0] == "trefoil") {
            // With --help at the end, clap reads every argument before it and then runs nothing.
            let output = Command::new(env!("CARGO_BIN_EXE_trefoil"))
                .args(&words[1..])
                .arg("--help")
                .output()
                .expect("trefoil can be run");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{document}: `{}`: {said}", words.join(" "));
            count += 1;
        }
    }
    assert!(count > 10, "only {count} commands");
}

#[test]
fn every_xtask_command_in_the_documents_exists() {
    for document in documents() {
        for words in commands(&document).iter().filter(|words| words.get(1).is_some_and(|word| word == "xtask")) {
            let command = words.get(2).map_or("", String::as_str);
            let file = root().join(format!("xtask/src/{command}.rs"));
            assert!(file.is_file(), "{document}: there is no `cargo xtask {command}`");
        }
    }
}

#[test]
fn every_relative_link_in_the_documents_leads_to_a_file() {
    for document in documents() {
        let text = read(&document);
        let base = root().join(&document).parent().expect("a document is in a directory").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") {
                assert!(base.join(path).exists(), "{document}: {link}");
            }
        }
    }
}
