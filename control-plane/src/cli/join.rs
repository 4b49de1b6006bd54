//! `trefoil join`: join tokens on record. They are made by `trefoil node add NAME --join`.

use anyhow::bail;
use control_plane::http::model::{Join, Joins};

use super::{Context, output};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List join tokens, by their ids
    List,
    /// Revoke a join token: it admits nobody any more
    #[command(after_help = "Examples:\n  trefoil join revoke edge-1\n  trefoil join revoke 5f0c9a12")]
    Revoke {
        /// Join id, an unambiguous prefix of it of 8 digits or more, or the node's name
        join: String,
    },
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    let client = context.client()?;
    let Joins { joins } = client.get("/api/v1/joins")?;
    match command {
        Command::List if context.json() => output::print_json(&Joins { joins }),
        Command::List => {
            let style = output::Style::stdout();
            let rows: Vec<Vec<String>> = joins
                .into_iter()
                .map(|join| {
                    vec![
                        output::short(&join.join_id),
                        output::clean(&join.name),
                        style.state(&join.state),
                        output::time(join.expires_ms),
                        output::or_dash(join.used_by.as_deref().map(output::short)),
                    ]
                })
                .collect();
            output::print(&output::table(style, &["JOIN", "NODE", "STATE", "EXPIRES", "USED BY"], &rows))
        }
        Command::Revoke { join: wanted } => {
            let id = find(&joins, wanted)?;
            client.delete(&format!("/api/v1/joins/{id}"))?;
            output::note(&format!("Join token {} is revoked.", output::short(id)));
            Ok(())
        }
    }
}

fn find<'a>(joins: &'a [Join], wanted: &str) -> anyhow::Result<&'a str> {
    let prefix = wanted.to_ascii_lowercase();
    let fits = |join: &&Join| {
        join.join_id == prefix || join.name == wanted || (prefix.len() >= 8 && join.join_id.starts_with(&prefix))
    };
    let mut found = joins.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(join), None) => Ok(&join.join_id),
        (None, _) => bail!("no join token has this id or is for a node of this name: {wanted}"),
        (Some(_), Some(_)) => bail!("{wanted} fits several join tokens; give more of the id"),
    }
}
