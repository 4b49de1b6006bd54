//! `trefoil`: the control plane and its command line.
//!
//! The commands' arguments and what `serve`, `migrate` and `openapi` do are here; all other commands are clients of the
//! REST API, in [`cli`].

mod cli;
mod log;
mod man;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use control_plane::config::{self, Config};
use control_plane::server::{self, ServeOptions};
use control_plane::{http, init, store};
use tokio::sync::watch;

/// What an axum handler or a database driver leaves in freed memory may have been a share: it is wiped.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> = zeroizing_alloc::ZeroAlloc(std::alloc::System);

/// Three-part key derivation and TPM 2.0 attestation: the control plane and its command line.
#[derive(Debug, Parser)]
#[command(
    name = "trefoil",
    version,
    max_term_width = 100,
    after_help = "A first node, from nothing:\n  \
        trefoil init\n  \
        trefoil serve &\n  \
        trefoil node add edge-1 --join --payload ./payload --policy policy.toml\n  \
        trefoil agent-config edge-1 > agent.conf\n  \
        trefoil node show edge-1 --watch\n\n\
        The API is found by --url, --ca and --token; else by TREFOIL_URL, TREFOIL_CA and TREFOIL_TOKEN; else in the\n\
        operator's directory. Exit status: 0 done, 1 refused or failed, 2 wrong usage."
)]
struct Arguments {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the server's and the operator's directories, once
    Init(cli::init::Arguments),
    /// Run registrar, verifier, tenant, the gateway for agents and the REST API
    Serve(Serve),
    /// Bring the databases up to this program's schema
    ///
    /// `serve` does it too; this is for those who want it done before.
    Migrate(DataDir),
    /// Print the REST API's OpenAPI document
    Openapi,
    /// Make, list and end API tokens
    #[command(subcommand)]
    Token(cli::token::Command),
    /// List and revoke join tokens
    #[command(subcommand)]
    Join(cli::join::Command),
    /// Print the settings of a node's agent
    AgentConfig(cli::agent_config::Arguments),
    /// Check trusted TPM manufacturers, explain why a TPM is trusted
    #[command(subcommand)]
    Ek(cli::ek::Command),
    /// Add, show and steer nodes
    #[command(subcommand)]
    Node(cli::node::Command),
    /// Add, show and learn policies
    #[command(subcommand)]
    Policy(cli::policy::Command),
    /// Seal payloads
    #[command(subcommand)]
    Payload(cli::payload::Command),
    /// Judge quotes, logs, certificates and policies that are in files, without a server
    Appraise(Box<cli::appraise::Arguments>),
    /// List and explain verdicts
    #[command(subcommand)]
    Verdict(cli::verdict::Command),
    /// Write the manual pages of this program's commands into a directory, for packages
    #[command(hide = true)]
    Man {
        /// Made if it is not there
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The release's date
        #[arg(long, value_name = "YYYY-MM-DD")]
        date: String,
    },
}

#[derive(Debug, clap::Args)]
struct DataDir {
    /// The server's directory
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    trefoil serve\n  \
    trefoil serve --data-dir ./data --gateway 0.0.0.0:5684 --ek-roots /etc/trefoil/ek-roots --log json:info\n\n\
    Settings: DATA-DIR/trefoil.toml, every key of which docs/config.md explains. It ends at SIGTERM or SIGINT.")]
struct Serve {
    #[command(flatten)]
    data_dir: DataDir,
    /// Where agents are listened for; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    gateway: Option<SocketAddr>,
    /// Where the REST API listens; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    api: Option<SocketAddr>,
    /// Directory of TPM manufacturers' CA certificates, for registrar and tenant
    #[arg(long, value_name = "DIR")]
    ek_roots: Option<PathBuf>,
    /// error, warn, info, debug or trace; with `json:` before it one JSON object a line
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: log::Settings,
}

fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    let context = cli::Context::new(global);
    let done = match command {
        Command::Appraise(arguments) => match cli::appraise::run(&context, &arguments) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Init(arguments) => cli::init::run(&context, &arguments),
        Command::Serve(arguments) => serve(&arguments),
        Command::Migrate(arguments) => migrate(&arguments),
        Command::Openapi => openapi(),
        Command::Token(command) => cli::token::run(&context, &command),
        Command::Join(command) => cli::join::run(&context, &command),
        Command::AgentConfig(arguments) => cli::agent_config::run(&context, &arguments),
        Command::Ek(command) => cli::ek::run(&context, &command),
        Command::Node(command) => cli::node::run(&context, &command),
        Command::Policy(command) => match cli::policy::run(&context, &command) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Payload(command) => cli::payload::run(&context, &command),
        Command::Verdict(command) => cli::verdict::run(&context, &command),
        Command::Man { dir, date } => man::write(<Arguments as clap::CommandFactory>::command(), &date, &dir),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has enough of it (`| head`).
        Err(error) if cli::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trefoil: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Serve) -> anyhow::Result<()> {
    log::start(&arguments.log);
    let config = Config::load(&arguments.data_dir.data_dir)?;
    runtime()?.block_on(async {
        let tenant = store::open_tenant(config.tenant.db.expose()).await.context("the tenant's database")?;
        tenant.migrate().await.context("the tenant's database")?;
        init::import_first_token(&config.data_dir, &*tenant).await.context("the first API token")?;
        tenant.close().await;
        drop(tenant);

        let options =
            ServeOptions { gateway: arguments.gateway, api: arguments.api, ek_roots: arguments.ek_roots.clone() };
        let (stop, stopped) = watch::channel(false);
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let signals = tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            // Gone already means that the server ended by itself.
            let _ = stop.send(true);
            // The sender stays: its end would mean the same.
            std::future::pending::<()>().await;
        });
        let ended = server::run(&config, options, stopped).await;
        signals.abort();
        ended
    })
}

fn migrate(arguments: &DataDir) -> anyhow::Result<()> {
    let config = Config::load(&arguments.data_dir)?;
    runtime()?.block_on(async {
        store::open_registrar(config.registrar.db.expose())
            .await?
            .migrate()
            .await
            .context("the registrar's database")?;
        store::open_verifier(config.verifier.db.expose()).await?.migrate().await.context("the verifier's database")?;
        store::open_tenant(config.tenant.db.expose()).await?.migrate().await.context("the tenant's database")?;
        Ok(())
    })
}

fn openapi() -> anyhow::Result<()> {
    cli::output::print(&format!("{}\n", http::openapi().to_pretty_json()?))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_design_is_there() {
        let command = Arguments::command();
        let commands: &[(&str, &[&str])] = &[
            ("init", &[]),
            ("serve", &[]),
            ("migrate", &[]),
            ("openapi", &[]),
            ("token", &["new", "list", "revoke"]),
            ("join", &["list", "revoke"]),
            ("agent-config", &[]),
            ("node", &["add", "list", "show", "set", "stop", "resume", "approve", "reject", "remove", "events"]),
            ("ek", &["bundle", "explain"]),
            ("policy", &["add", "list", "show", "learn", "import", "from-rootfs", "diff", "try", "sign", "key"]),
            ("payload", &["seal"]),
            ("verdict", &["list", "explain"]),
            ("appraise", &[]),
        ];
        for (name, subcommands) in commands {
            let found = command.find_subcommand(name).unwrap_or_else(|| panic!("{name}"));
            for subcommand in *subcommands {
                assert!(found.find_subcommand(subcommand).is_some(), "{name} {subcommand}");
            }
        }
    }

    fn parses(line: &str) -> bool {
        Arguments::try_parse_from(line.split(' ')).is_ok()
    }

    #[test]
    fn wrong_usage_is_told_apart() {
        assert!(parses("trefoil node add edge-1 --join --payload d --policy p.toml --issue-cert"));
        assert!(parses("trefoil node add edge-1 --join --expires 24h --interval 500ms"));
        assert!(parses("trefoil node add edge-1 --id abcdef01 --autorun --not-after 30d"));
        assert!(!parses("trefoil node add edge-1"));
        assert!(!parses("trefoil node add edge-1 --join --id abcdef01"));
        assert!(!parses("trefoil node add edge-1 --id abcdef01 --expires 24h"));
        assert!(!parses("trefoil node add Edge-1 --join"));
        assert!(!parses("trefoil node set edge-1"));
        assert!(parses(
            "trefoil serve --data-dir d --gateway 127.0.0.1:0 --api 127.0.0.1:0 --ek-roots r --log json:debug"
        ));
        assert!(!parses("trefoil serve --log loud"));
        assert!(parses("trefoil node list --json --watch"));
        assert!(parses("trefoil node list --quarantined"));
        assert!(parses("trefoil node approve abcdef01 --name edge-1 --reason ours --policy edge"));
        assert!(!parses("trefoil node approve abcdef01 --name edge-1"));
        assert!(!parses("trefoil node reject abcdef01"));
        assert!(!parses("trefoil token new --role root"));
    }

    #[test]
    fn a_token_on_the_command_line_is_not_printed() {
        let token = format!("trefoil-api-{}", "ab".repeat(32));
        let arguments = Arguments::try_parse_from(["trefoil", "--token", &token, "openapi"]).unwrap();
        assert!(!format!("{arguments:?}").contains("abab"));
    }
}
