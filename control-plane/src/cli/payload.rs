//! `trefoil payload`: new payloads for nodes that are there.

use anyhow::{Context as _, bail};
use control_plane::http::model::{Node, NodeChange, NodePins};
use protocol::id::{JoinId, NodeId, Subject};

use super::client::Client;
use super::seal::{PayloadArguments, seal_payload, upload};
use super::{Context, component, output};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Seal a new payload for a node and put it in force; the node gets it at its next boot
    #[command(after_help = "Examples:\n  \
        trefoil payload seal edge-1 --payload ./payload\n  \
        trefoil payload seal edge-1 --payload ./payload --issue-cert --not-after 30d")]
    Seal {
        /// Name, node id, or unambiguous prefix of it
        node: String,
        #[command(flatten)]
        payload: PayloadArguments,
    },
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    let Command::Seal { node, payload } = command;
    if !payload.is_given() {
        bail!("give --payload DIR, --issue-cert or both");
    }
    let client = context.client()?;
    let node: Node = client.get(&format!("/api/v1/nodes/{}", component(node)?))?;
    let change = reseal(context, &client, &node, payload)?;
    let node: Node = client.patch(&format!("/api/v1/nodes/{}", component(&node.name)?), &change)?;
    if context.json() {
        return output::print_json(&node);
    }
    output::note(&format!("{}: the new payload takes effect at its next boot.", node.name));
    Ok(())
}

/// Seals a payload for a node that is there and uploads it; gives the change that puts it in force.
pub(crate) fn reseal(
    context: &Context,
    client: &Client,
    node: &Node,
    payload: &PayloadArguments,
) -> anyhow::Result<NodeChange> {
    if payload.autorun && !node.pins.autorun {
        bail!(
            "{}'s agent was set up not to run `autorun`; that is measured and cannot be changed from here",
            node.name
        );
    }
    let operator = context.operator()?;
    let signing = operator.signing_key()?;
    let key = hex::encode(signing.public().as_sec1());
    if !node.pins.tenant_keys.contains(&key) {
        bail!("{}'s agent does not pin the payload-signing key of this operator's directory", node.name);
    }
    let sealed = seal_payload(&operator, &signing, &node.name, subject(node)?, payload)?;
    upload(client, &sealed)?;
    Ok(NodeChange { sealing_id: Some(sealed.id()), ..NodeChange::default() })
}

/// Whom to seal for: the node's id when it is known, else its join token.
fn subject(node: &Node) -> anyhow::Result<Subject> {
    let known = node.node_id.as_deref().and_then(NodeId::from_hex).map(Subject::Node);
    known
        .or_else(|| node.join_id.as_deref().and_then(JoinId::from_hex).map(Subject::Join))
        .with_context(|| format!("{} has neither a node id nor a join token", node.name))
}

/// The pins of nodes that this operator adds.
pub(crate) fn pins(signing: &protocol::crypto::TenantSigningKey, autorun: bool) -> NodePins {
    NodePins { tenant_keys: vec![hex::encode(signing.public().as_sec1())], autorun }
}
