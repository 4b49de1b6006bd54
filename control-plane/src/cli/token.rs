//! `trefoil token`: who may call the API.

use control_plane::http::model::{MadeToken, NewToken, RoleName, Tokens};

use super::{Context, Span, component, output};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an API token; it is shown this once
    #[command(after_help = "Examples:\n  \
        trefoil token new --role viewer --expires 30d\n  \
        TREFOIL_TOKEN=$(trefoil token new --role operator) trefoil node list")]
    New {
        /// admin may do everything; operator all but API tokens; viewer reads
        #[arg(long, value_enum)]
        role: Role,
        /// How long it is valid, such as 30d [default: for ever]
        #[arg(long, value_name = "SPAN")]
        expires: Option<Span>,
    },
    /// List API tokens
    List,
    /// End an API token
    Revoke {
        /// Its label
        label: String,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Role {
    Admin,
    Operator,
    Viewer,
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        Command::New { role, expires } => {
            let role = match role {
                Role::Admin => RoleName::Admin,
                Role::Operator => RoleName::Operator,
                Role::Viewer => RoleName::Viewer,
            };
            let made: MadeToken =
                client.post("/api/v1/tokens", &NewToken { role, expires_in_ms: expires.map(Span::as_ms) })?;
            if context.json() {
                return output::print_json(&made);
            }
            let end = made.expires_ms.map_or_else(|| "for ever".into(), |ms| format!("until {}", output::time(ms)));
            output::note(&format!("{} token {}, valid {end}. It is not shown again:", made.role.name(), made.label));
            output::print(&format!("{}\n", made.token))
        }
        Command::List => {
            let tokens: Tokens = client.get("/api/v1/tokens")?;
            if context.json() {
                return output::print_json(&tokens);
            }
            let rows: Vec<Vec<String>> = tokens
                .tokens
                .into_iter()
                .map(|token| {
                    vec![
                        output::clean(&token.label),
                        token.role.name().into(),
                        output::time(token.created_ms),
                        token.expires_ms.map_or_else(|| "never".into(), output::time),
                    ]
                })
                .collect();
            output::print(&output::table(output::Style::stdout(), &["LABEL", "ROLE", "MADE", "EXPIRES"], &rows))
        }
        Command::Revoke { label } => {
            client.delete(&format!("/api/v1/tokens/{}", component(label)?))?;
            output::note(&format!("API token {label} is ended."));
            Ok(())
        }
    }
}
