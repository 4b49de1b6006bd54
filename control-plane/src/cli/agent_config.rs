//! `trefoil agent-config`: the settings that a node's agent needs, ready to be baked into its image.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use control_plane::appraisal::policy::{Policy as Parsed, ReleaseRule};
use control_plane::files::{self, PUBLIC_MODE, SECRET_MODE};
use control_plane::http::model::{Node, Policy};
use control_plane::operator::{SERVER_CA, TENANT_KEY};
use zeroize::Zeroizing;

use super::{Context, component, output};

/// The port of the gateway unless it is said otherwise.
const GATEWAY_PORT: u16 = 5684;
/// The agent's own default.
const DEFAULT_PHASE_PCR: u8 = 13;
const FILE_NAME: &str = "agent.conf";

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    trefoil agent-config edge-1 > agent.conf\n  \
    trefoil agent-config edge-1 --server trefoil.example.org:5684 --dir ./image/etc/trefoil --at /etc/trefoil\n\n\
    It holds the join token, if the node was added with one: keep it as secret as the machine itself.")]
pub(crate) struct Arguments {
    /// The node's name
    node: String,
    /// A gateway that the agent dials, HOST:PORT; may repeat [default: the API's host, port 5684]
    #[arg(long = "server", value_name = "HOST:PORT")]
    servers: Vec<String>,
    /// Write agent.conf and the files it names into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where that directory will be on the node [default: where it is here]
    #[arg(long, value_name = "DIR", requires = "dir")]
    at: Option<PathBuf>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let operator = context.operator()?;
    let client = context.client()?;
    let node: Node = client.get(&format!("/api/v1/nodes/{}", component(&arguments.node)?))?;
    let servers = match arguments.servers.as_slice() {
        [] => vec![default_server(operator.url())?],
        servers => servers.to_vec(),
    };
    let phase_pcr = match &node.policy {
        Some(id) => {
            let policy: Policy = client.get(&format!("/api/v1/policies/{}", component(id)?))?;
            match Parsed::parse(policy.body.unwrap_or_default().as_bytes()).context("the node's policy")?.release() {
                Some(ReleaseRule::PhasePcr(index)) => index,
                _ => DEFAULT_PHASE_PCR,
            }
        }
        None => DEFAULT_PHASE_PCR,
    };
    let join = operator.join(&node.name)?;
    if join.is_none() && node.join_id.is_some() {
        output::note(&format!(
            "trefoil: {}'s join token is not kept in this operator's directory: add the line `join = …` yourself",
            node.name
        ));
    }
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
    let (ca, tenant_key) = match &arguments.dir {
        None => (absolute(&operator.server_ca())?, absolute(&operator.tenant_key())?),
        Some(dir) => {
            let at = arguments.at.clone().map_or_else(|| absolute(dir), Ok)?;
            (at.join(SERVER_CA), at.join(TENANT_KEY))
        }
    };
    let settings = Settings {
        node: &node.name,
        servers: &servers,
        ca: &ca,
        tenant_key: &tenant_key,
        join: join.as_ref().map(|text| text.trim()),
        phase_pcr,
        autorun: node.pins.autorun,
    };
    let text = settings.text()?;
    let Some(dir) = &arguments.dir else { return output::print(&text) };
    let server_ca = files::read(&operator.server_ca())?;
    let tenant_key = files::read(&operator.tenant_key())?;
    files::make_dir(dir)?;
    files::write_all(
        dir,
        &[
            (SERVER_CA, PUBLIC_MODE, &server_ca),
            (TENANT_KEY, PUBLIC_MODE, &tenant_key),
            (FILE_NAME, SECRET_MODE, text.as_bytes()),
        ],
    )?;
    output::note(&format!("{}: {FILE_NAME}, {SERVER_CA}, {TENANT_KEY}", dir.display()));
    Ok(())
}

struct Settings<'a> {
    node: &'a str,
    servers: &'a [String],
    ca: &'a Path,
    tenant_key: &'a Path,
    join: Option<&'a str>,
    phase_pcr: u8,
    autorun: bool,
}

impl Settings<'_> {
    fn text(&self) -> anyhow::Result<Zeroizing<String>> {
        // Room for all of it at once: growing would leave copies of the join token behind.
        let mut text = Zeroizing::new(String::with_capacity(4096));
        let path = |path: &Path| match path.to_str() {
            Some(text) if !text.contains(['\n', '\r']) => Ok(text.to_owned()),
            _ => bail!("{}: the path cannot stand in a settings file", path.display()),
        };
        writeln!(text, "# Settings of trefoil-agent on {}.", self.node)?;
        for server in self.servers {
            if server.is_empty() || server.chars().any(|c| c.is_whitespace() || c.is_control()) {
                bail!("--server: HOST:PORT is needed");
            }
            writeln!(text, "server = {server}")?;
        }
        writeln!(text, "ca = {}", path(self.ca)?)?;
        writeln!(text, "tenant-key = {}", path(self.tenant_key)?)?;
        if let Some(join) = self.join {
            writeln!(text, "join = {join}")?;
        }
        writeln!(text, "phase-pcr = {}", self.phase_pcr)?;
        writeln!(text, "autorun = {}", if self.autorun { "on" } else { "off" })?;
        Ok(text)
    }
}

fn default_server(url: &str) -> anyhow::Result<String> {
    let uri: ureq::http::Uri = url.parse().with_context(|| format!("the API's address {url}"))?;
    let host = uri.host().with_context(|| format!("the API's address {url} names no host"))?;
    Ok(format!("{host}:{GATEWAY_PORT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings<'a>(servers: &'a [String], join: Option<&'a str>) -> Settings<'a> {
        Settings {
            node: "edge-1",
            servers,
            ca: Path::new("/etc/trefoil/server-ca.pem"),
            tenant_key: Path::new("/etc/trefoil/tenant-key.pem"),
            join,
            phase_pcr: 13,
            autorun: false,
        }
    }

    #[test]
    fn every_setting_is_a_line() {
        let servers = ["a:5684".to_owned(), "[::1]:1".to_owned()];
        assert_eq!(
            *settings(&servers, Some("trefoil-join-x")).text().unwrap(),
            "# Settings of trefoil-agent on edge-1.\n\
             server = a:5684\n\
             server = [::1]:1\n\
             ca = /etc/trefoil/server-ca.pem\n\
             tenant-key = /etc/trefoil/tenant-key.pem\n\
             join = trefoil-join-x\n\
             phase-pcr = 13\n\
             autorun = off\n"
        );
    }

    #[test]
    fn nothing_can_add_a_line_of_its_own() {
        assert!(settings(&["a\nautorun = on".to_owned()], None).text().is_err());
        assert!(settings(&[String::new()], None).text().is_err());
    }

    #[test]
    fn the_gateway_is_where_the_api_is() {
        assert_eq!(default_server("https://localhost:8443").unwrap(), "localhost:5684");
        assert_eq!(default_server("https://[::1]:8443").unwrap(), "[::1]:5684");
    }
}
