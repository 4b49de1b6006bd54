//! `trefoil node`: the fleet.

use std::path::Path;

use anyhow::{Context as _, bail};
use control_plane::http::model::{
    Event, Events, Hardware, NewJoin, NewNode, Node, NodeChange, Nodes, TrustName, phase_name,
};
use control_plane::http::quarantine::{Approval, QuarantineList, Rejection};
use control_plane::operator::Operator;
use control_plane::{files, pki};
use protocol::crypto::JoinToken;
use protocol::crypto::role_key::seal_join_key;
use protocol::id::{NodeId, Role, Subject};
use rand_core::OsRng;

use super::client::{Client, Refused};
use super::output::{self, Style};
use super::payload::{pins, reseal};
use super::seal::{PayloadArguments, seal_payload, upload};
use super::watch::{self, Frame};
use super::{Context, NodeName, Span, component, policy};

/// How long a join token may be used unless it is said otherwise: a day.
const DEFAULT_JOIN_LIFETIME_MS: i64 = 86_400_000;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Add a node: admit it, seal its payload here, name its policy
    #[command(after_help = "Examples:\n  \
        trefoil node add edge-1 --join --payload ./payload --policy policy.toml\n  \
        trefoil node add edge-2 --id 5f0c9a12…(64 digits; trefoil-agent --check prints it) --payload ./payload --issue-cert\n  \
        trefoil node add edge-3 --id ek.crt --policy edge\n\n\
        With --join it prints a join token, alone on standard output; `trefoil agent-config` puts it into the agent's\n\
        settings. It is good for one node, once. Without --policy the node is attested, its trust stays `none`, and no\n\
        share leaves: `trefoil policy learn` writes a policy from what it then looks like.")]
    Add(Box<Add>),
    /// List nodes
    List {
        /// Those that nobody has admitted, and that wait for approval
        #[arg(long)]
        quarantined: bool,
        /// Ask again every second
        #[arg(long)]
        watch: bool,
    },
    /// Show a node's state
    #[command(after_help = "Examples:\n  trefoil node show edge-1\n  trefoil node show 5f0c9a12 --watch")]
    Show {
        /// Name, node id, or unambiguous prefix of it
        node: String,
        /// Ask again every second
        #[arg(long)]
        watch: bool,
    },
    /// Change a node's policy, payload or interval
    #[command(after_help = "Examples:\n  \
        trefoil node set edge-1 --policy policy.toml\n  \
        trefoil node set edge-1 --policy tenants.toml --verifier-policy verifiers.toml\n  \
        trefoil node set edge-1 --interval 30s\n  \
        trefoil node set edge-1 --payload ./payload --issue-cert")]
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args(["policy", "verifier_policy", "one_policy", "interval", "payload", "issue_cert"]))]
    Set {
        /// Name, node id, or unambiguous prefix of it
        node: String,
        /// Another policy: a file, or a policy's id or name
        #[arg(long, value_name = "FILE|ID|NAME")]
        policy: Option<String>,
        /// Another policy for the verifier alone: a file, or a policy's id or name
        #[arg(long, value_name = "FILE|ID|NAME")]
        verifier_policy: Option<String>,
        /// Let verifier and tenant judge by one policy again
        #[arg(long, conflicts_with = "verifier_policy")]
        one_policy: bool,
        /// How often it is attested
        #[arg(long, value_name = "SPAN")]
        interval: Option<Span>,
        #[command(flatten)]
        payload: PayloadArguments,
    },
    /// Stop a node: no rounds, no share
    Stop {
        /// Name, node id, or unambiguous prefix of it
        node: String,
    },
    /// Let a stopped node go on, or a failed one become good again by its next good verdict
    Resume {
        /// Name, node id, or unambiguous prefix of it
        node: String,
    },
    /// Approve a node in quarantine: admit its node id under a name
    #[command(after_help = "Example:\n  \
        trefoil node approve 5f0c9a12 --name edge-7 --reason 'serial number read out by the depot' --policy edge\n\n\
        Compare the id with what trefoil-agent --check prints on the machine itself. The node enrols with its next attempt;\n\
        its payload comes with: trefoil payload seal NAME --payload DIR")]
    Approve {
        /// Node id, or unambiguous prefix of it
        node: String,
        /// 1 to 63 of a-z, 0-9, dot and hyphen
        #[arg(long)]
        name: NodeName,
        /// Why it is ours; stands in its history
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Its policy: a file, or a policy's id or name
        #[arg(long, value_name = "FILE|ID|NAME")]
        policy: Option<String>,
        /// Another policy for the verifier alone: a file, or a policy's id or name [default: --policy]
        #[arg(long, value_name = "FILE|ID|NAME", requires = "policy")]
        verifier_policy: Option<String>,
        /// How often it is attested [default: 10s]
        #[arg(long, value_name = "SPAN")]
        interval: Option<Span>,
        /// Its agent was set up to run `autorun` of its payload
        #[arg(long)]
        autorun: bool,
    },
    /// Take a node off the quarantine's list; it is listed again if it comes again
    Reject {
        /// Node id, or unambiguous prefix of it
        node: String,
        /// Why; stands in the history
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Remove a node, its payload and its admission; its events stay
    Remove {
        /// Name, node id, or unambiguous prefix of it
        node: String,
    },
    /// Show what happened to a node
    Events {
        /// Name, node id, or unambiguous prefix of it
        node: String,
        /// At most so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Go on with what happens next
        #[arg(long)]
        watch: bool,
    },
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("whose").required(true).args(["id", "join"]))]
pub(crate) struct Add {
    /// 1 to 63 of a-z, 0-9, dot and hyphen
    name: NodeName,
    /// The node's id, or a file with its EK certificate or public key
    #[arg(long, value_name = "ID|FILE")]
    id: Option<String>,
    /// Make a join token for it
    #[arg(long)]
    join: bool,
    /// How long the join token may be used [default: 24h]
    #[arg(long, value_name = "SPAN", conflicts_with = "id")]
    expires: Option<Span>,
    /// Its policy: a file, or a policy's id or name
    #[arg(long, value_name = "FILE|ID|NAME")]
    policy: Option<String>,
    /// Another policy for the verifier alone: a file, or a policy's id or name [default: --policy]
    #[arg(long, value_name = "FILE|ID|NAME", requires = "policy")]
    verifier_policy: Option<String>,
    /// How often it is attested [default: 10s]
    #[arg(long, value_name = "SPAN")]
    interval: Option<Span>,
    #[command(flatten)]
    payload: PayloadArguments,
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    let client = context.client()?;
    let path = |node: &str| -> anyhow::Result<String> { Ok(format!("/api/v1/nodes/{}", component(node)?)) };
    match command {
        Command::Add(arguments) => add(context, &client, arguments),
        Command::List { quarantined: false, watch } => watch::show(*watch, || list(context, &client, *watch)),
        Command::List { quarantined: true, watch } => watch::show(*watch, || waiting(context, &client, *watch)),
        Command::Show { node, watch } => {
            let path = path(node)?;
            watch::show(*watch, || show(context, client.get(&path)?, *watch))
        }
        Command::Set { node, policy, verifier_policy, one_policy, interval, payload } => {
            let node: Node = client.get(&path(node)?)?;
            let mut change = NodeChange::default();
            if let Some(wanted) = policy {
                change.policy = Some(policy::resolve(&client, wanted)?);
            }
            if let Some(wanted) = verifier_policy {
                change.verifier_policy = Some(policy::resolve(&client, wanted)?);
            } else if *one_policy {
                change.verifier_policy = Some(String::new());
            }
            change.interval_ms = interval.map(Span::as_ms);
            if payload.is_given() {
                change.sealing_id = reseal(context, &client, &node, payload)?.sealing_id;
            }
            let node: Node = client.patch(&path(&node.name)?, &change)?;
            answer(context, node)
        }
        Command::Stop { node } => answer(context, client.post_empty(&format!("{}/stop", path(node)?))?),
        Command::Resume { node } => answer(context, client.post_empty(&format!("{}/resume", path(node)?))?),
        Command::Approve { node, name, reason, policy, verifier_policy, interval, autorun } => {
            let resolve =
                |wanted: &Option<String>| wanted.as_deref().map(|wanted| policy::resolve(&client, wanted)).transpose();
            let approval = Approval {
                name: name.0.clone(),
                reason: reason.clone(),
                policy: resolve(policy)?,
                verifier_policy: resolve(verifier_policy)?,
                interval_ms: interval.map(Span::as_ms),
                pins: pins(&context.operator()?.signing_key()?, *autorun),
            };
            let node: Node = client.post(&format!("/api/v1/quarantine/{}/approve", component(node)?), &approval)?;
            output::note(&format!("{} is admitted; it enrols with its next attempt.", node.name));
            answer(context, node)
        }
        Command::Reject { node, reason } => {
            let rejection = Rejection { reason: reason.clone() };
            client.post_quietly(&format!("/api/v1/quarantine/{}/reject", component(node)?), &rejection)?;
            output::note("It is off the list.");
            Ok(())
        }
        Command::Remove { node } => {
            let found: Node = client.get(&path(node)?)?;
            client.delete(&path(&found.name)?)?;
            if let Ok(operator) = context.operator() {
                operator.forget_join(&found.name);
            }
            output::note(&format!("{} is removed.", found.name));
            Ok(())
        }
        Command::Events { node, limit, watch } => events(context, &client, &path(node)?, *limit, *watch),
    }
}

fn add(context: &Context, client: &Client, arguments: &Add) -> anyhow::Result<()> {
    let name = &arguments.name.0;
    let payload = &arguments.payload;
    if payload.autorun && payload.payload.is_none() {
        bail!("--autorun needs --payload with an executable file `autorun` in it");
    }
    // What can be refused is refused before anything is uploaded.
    let taken: anyhow::Result<Node> = client.get(&format!("/api/v1/nodes/{}", component(name)?));
    match taken {
        Ok(node) if node.name == *name => bail!("a node called {name} is there already"),
        Ok(_) => {}
        Err(error)
            if error.downcast_ref::<Refused>().is_some_and(|Refused(problem)| problem.kind == "unknown_node") => {}
        // A name that is also the beginning of other nodes' ids.
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|Refused(problem)| problem.kind == "ambiguous") => {}
        Err(error) => return Err(error),
    }
    let operator = context.operator()?;
    let signing = operator.signing_key()?;
    let (subject, token) = match &arguments.id {
        Some(id) => (Subject::Node(node_id(id)?), None),
        None => {
            let token = JoinToken::generate(&mut OsRng);
            (Subject::Join(token.id()), Some(token))
        }
    };
    let join = token.as_ref().map(|token| new_join(&operator, token, arguments.expires)).transpose()?;
    let sealed =
        if payload.is_given() { Some(seal_payload(&operator, &signing, name, subject, payload)?) } else { None };
    let resolve = |wanted: &Option<String>| wanted.as_deref().map(|wanted| policy::resolve(client, wanted)).transpose();
    let (policy, verifier_policy) = (resolve(&arguments.policy)?, resolve(&arguments.verifier_policy)?);
    if let Some(sealed) = &sealed {
        upload(client, sealed)?;
    }
    let new = NewNode {
        name: name.clone(),
        node_id: match subject {
            Subject::Node(id) => Some(id.to_string()),
            Subject::Join(_) => None,
        },
        join,
        policy,
        verifier_policy,
        interval_ms: arguments.interval.map(Span::as_ms),
        pins: pins(&signing, payload.autorun),
        sealing_id: sealed.as_ref().map(|sealed| sealed.id()),
    };
    // Kept before the node is there: a node whose token is lost cannot come.
    let text = token.as_ref().map(JoinToken::to_text);
    if let Some(text) = &text {
        operator.keep_join(name, text)?;
    }
    let node: Node = match client.post("/api/v1/nodes", &new) {
        Ok(node) => node,
        Err(error) => {
            // Only if it was refused: after a broken connection the node may be there.
            if error.is::<Refused>() {
                operator.forget_join(name);
            }
            return Err(error);
        }
    };
    output::note(&format!("{name} is added."));
    if node.policy.is_none() {
        output::note(&format!(
            "It has no policy, so no share leaves. Start its agent, then: trefoil policy learn {name} --out policy.toml"
        ));
    }
    if context.json() {
        let mut value = serde_json::to_value(&node)?;
        if let (Some(text), Some(object)) = (&text, value.as_object_mut()) {
            object.insert("join_token".into(), text.as_str().into());
        }
        return output::print_json(&value);
    }
    output::note(&format!("Next: trefoil agent-config {name} > agent.conf"));
    match &text {
        Some(text) => {
            output::note("Its join token, for its agent alone, good for one node, once:");
            output::print(&format!("{}\n", text.as_str()))
        }
        None => Ok(()),
    }
}

/// The keys of a join token, sealed to their roles: the token itself stays here.
fn new_join(operator: &Operator, token: &JoinToken, expires: Option<Span>) -> anyhow::Result<NewJoin> {
    let roles = operator.roles();
    let id = token.id();
    let seal = |public, role| -> anyhow::Result<String> {
        Ok(hex::encode(seal_join_key(public, role, id, &token.key(role), &mut OsRng)?.to_bytes()))
    };
    Ok(NewJoin {
        join_id: id.to_string(),
        tenant_key: seal(&roles.tenant, Role::Tenant)?,
        registrar_key: seal(&roles.registrar, Role::Registrar)?,
        expires_in_ms: expires.map_or(DEFAULT_JOIN_LIFETIME_MS, Span::as_ms),
    })
}

/// A node id, from its text or from a file with the EK's certificate or public key.
fn node_id(wanted: &str) -> anyhow::Result<NodeId> {
    if let Some(id) = NodeId::from_hex(wanted) {
        return Ok(id);
    }
    let path = Path::new(wanted);
    if !path.is_file() {
        bail!("--id: `{wanted}` is neither 64 hex digits nor a file (trefoil-agent --check prints a node's id)");
    }
    let bytes = files::read(path)?;
    let spki = pki::ek_spki(&bytes)
        .with_context(|| format!("{wanted} holds neither a certificate nor a public key, in PEM or DER"))?;
    Ok(protocol::crypto::node_id(&spki))
}

fn answer(context: &Context, node: Node) -> anyhow::Result<()> {
    output::print(&show(context, node, false)?.text)
}

fn list(context: &Context, client: &Client, watch: bool) -> anyhow::Result<Frame> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let path = match &after {
            Some(after) => format!("/api/v1/nodes?limit=500&after={}", component(after)?),
            None => "/api/v1/nodes?limit=500".into(),
        };
        let page: Nodes = client.get(&path)?;
        nodes.extend(page.nodes);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let key: Vec<_> =
        nodes.iter().map(|node| (&node.name, phase_name(node.phase), node.trust.name(), &node.sealing_id)).collect();
    let key = format!("{key:?}");
    if context.json() {
        let page = Nodes { nodes, next: None };
        let text = if watch { serde_json::to_string(&page) } else { serde_json::to_string_pretty(&page) };
        return Ok(Frame { key, text: format!("{}\n", text?) });
    }
    let style = Style::stdout();
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            vec![
                output::clean(&node.name),
                output::or_dash(node.node_id.as_deref().map(output::short)),
                style.state(phase_name(node.phase)),
                style.state(node.trust.name()),
                output::or_dash(node.last_verdict.as_ref().map(|verdict| output::span(verdict.age_ms))),
                output::or_dash(node.policy.as_deref().map(output::short)),
            ]
        })
        .collect();
    let text = output::table(style, &["NAME", "NODE ID", "PHASE", "TRUST", "VERDICT AGE", "POLICY"], &rows);
    Ok(Frame { key, text })
}

/// Nodes in quarantine.
fn waiting(context: &Context, client: &Client, watch: bool) -> anyhow::Result<Frame> {
    let list: QuarantineList = client.get("/api/v1/quarantine")?;
    let key: Vec<_> = list.nodes.iter().map(|node| (&node.node_id, &node.ak_name, &node.peer)).collect();
    let key = format!("{key:?}");
    if context.json() {
        let text = if watch { serde_json::to_string(&list) } else { serde_json::to_string_pretty(&list) };
        return Ok(Frame { key, text: format!("{}\n", text?) });
    }
    let style = Style::stdout();
    let rows: Vec<Vec<String>> = list
        .nodes
        .iter()
        .map(|node| {
            let hardware = match &node.hardware {
                Hardware::Certified { issuer } => format!("certified by {}", output::clean(issuer)),
                Hardware::AllowListed => "named by the operator".into(),
                Hardware::Unproven => "unproven".into(),
            };
            vec![
                output::clean(&node.node_id),
                hardware,
                output::clean(&node.peer),
                output::time(node.first_ms),
                output::time(node.last_ms),
            ]
        })
        .collect();
    let text = output::table(style, &["NODE ID", "HARDWARE", "FROM", "FIRST SEEN", "LAST SEEN"], &rows);
    Ok(Frame { key, text })
}

fn show(context: &Context, node: Node, watch: bool) -> anyhow::Result<Frame> {
    let verdict = node.last_verdict.as_ref();
    let key = format!(
        "{:?}",
        (
            &node.node_id,
            phase_name(node.phase),
            node.trust.name(),
            &node.policy,
            &node.sealing_id,
            verdict.map(|verdict| (verdict.outcome.name(), &verdict.reason)),
            node.delivered.as_ref().map(|delivered| (&delivered.sealing_id, delivered.at_ms)),
        )
    );
    let text = if context.json() {
        let text = if watch { serde_json::to_string(&node) } else { serde_json::to_string_pretty(&node) };
        format!("{}\n", text?)
    } else {
        describe(Style::stdout(), &node)
    };
    Ok(Frame { key, text })
}

fn describe(style: Style, node: &Node) -> String {
    let mut lines: Vec<(&str, String)> = vec![("name", style.bold(&output::clean(&node.name)))];
    lines.push(("node id", node.node_id.clone().unwrap_or_else(|| "not known yet".into())));
    if let Some(join) = &node.join_id {
        lines.push(("join token", output::short(join)));
    }
    lines.push(("phase", style.state(phase_name(node.phase))));
    let until = match node.trust {
        TrustName::Good => {
            node.deadline_ms.map(|deadline| format!(" for another {}", output::span((deadline - node.now_ms).max(0))))
        }
        TrustName::Failed | TrustName::RolledBack => Some("; ends by: trefoil node resume, and a good verdict".into()),
        TrustName::None | TrustName::Stale => None,
    };
    lines.push(("trust", format!("{}{}", style.state(node.trust.name()), until.unwrap_or_default())));
    if let Some(verdict) = &node.last_verdict {
        let (outcome, age) = (style.state(verdict.outcome.name()), output::span(verdict.age_ms));
        lines.push(("last verdict", format!("{outcome} ({}), {age} ago", output::clean(&verdict.purpose))));
        if !verdict.reason.is_empty() {
            lines.push(("because", output::clean(&verdict.reason)));
        }
    }
    if let Some(hardware) = &node.hardware {
        let text = match hardware {
            Hardware::Certified { issuer } => format!("certified by {}", output::clean(issuer)),
            Hardware::AllowListed => "named by the operator".into(),
            Hardware::Unproven => "unproven".into(),
        };
        lines.push(("hardware", text));
    }
    if let Some(name) = &node.ak_name {
        lines.push(("AK", name.clone()));
    }
    lines.push(("policy", node.policy.clone().unwrap_or_else(|| "none: no share leaves".into())));
    if let Some(policy) = &node.verifier_policy {
        lines.push(("verifier's", format!("{policy} (its policy; the one above is the tenant's)")));
    }
    lines.push(("interval", output::span(node.interval_ms)));
    lines.push(("sealing", node.sealing_id.clone().unwrap_or_else(|| "none".into())));
    if let Some(delivered) = &node.delivered {
        let which = if Some(&delivered.sealing_id) == node.sealing_id.as_ref() { "" } else { ", an earlier sealing" };
        lines.push(("delivered", format!("{}{which}", output::time(delivered.at_ms))));
    }
    lines.push(("added", output::time(node.created_ms)));
    lines.into_iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

fn events(context: &Context, client: &Client, path: &str, limit: u32, watch: bool) -> anyhow::Result<()> {
    let style = Style::stdout();
    let json = context.json();
    let first: Events = client.get(&format!("{path}/events?limit={limit}"))?;
    if !watch {
        return if json {
            output::print_json(&first)
        } else {
            output::print(&event_lines(style, &first.events, false)?)
        };
    }
    output::print(&event_lines(style, &first.events, json)?)?;
    let mut after = first.next;
    watch::follow(|| {
        let more: Events = client.get(&format!("{path}/events?limit=500&after={}", component(&after)?))?;
        after = more.next;
        event_lines(style, &more.events, json)
    })
}

fn event_lines(style: Style, events: &[Event], json: bool) -> anyhow::Result<String> {
    let mut text = String::new();
    for event in events {
        if json {
            text.push_str(&serde_json::to_string(event)?);
        } else {
            let at = output::time(event.at_ms);
            let kind = style.bold(&output::clean(&event.kind));
            text.push_str(&format!(
                "{at}  {:<9}  {kind}: {}",
                output::clean(&event.role),
                output::clean(&event.detail)
            ));
        }
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_neither_is_told_what_it_could_be() {
        let error = node_id("no-such-file").unwrap_err().to_string();
        assert!(error.contains("trefoil-agent --check"), "{error}");
    }

    #[test]
    fn a_node_id_comes_from_an_eks_certificate() {
        let ca = pki::new_ca("EK CA").unwrap();
        let authority = pki::Authority::load(&ca.certificate, &ca.key).unwrap();
        let issued = authority.issue_node("ek", None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ek.crt");
        std::fs::write(&path, &issued.certificate).unwrap();
        let spki = pki::ek_spki(issued.certificate.as_bytes()).unwrap();
        assert_eq!(node_id(path.to_str().unwrap()).unwrap(), protocol::crypto::node_id(&spki));
    }
}
