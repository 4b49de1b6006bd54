//! `trefoil init`.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use control_plane::config;
use control_plane::init::{self, Made, Options};

use super::{Context, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    trefoil init\n  \
    trefoil init --data-dir ./data --operator-dir ./operator --name trefoil.example.org --ip 192.0.2.7\n  \
    trefoil init --renew-certificate\n\n\
    It makes the server's CA, certificate and role keys, and on the operator's side the payload-signing key, the\n\
    tenant's CA, the pinned role keys and the first API token. What is there is never overwritten. The server\n\
    certificate lives 398 days: renew it in time and restart `trefoil serve`.")]
pub(crate) struct Arguments {
    /// The server's directory
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// A DNS name of the server, for its certificate; may repeat [default: this machine's names]
    #[arg(long = "name", visible_alias = "host", value_name = "HOST")]
    names: Vec<String>,
    /// An IP address of the server, for its certificate; may repeat
    #[arg(long = "ip", value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
    /// Issue the server's certificate anew, for the same key; with --name or --ip for other names
    #[arg(long)]
    renew_certificate: bool,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let names: Vec<String> =
        arguments.names.iter().cloned().chain(arguments.addresses.iter().map(IpAddr::to_string)).collect();
    if arguments.renew_certificate {
        let renewed = init::renew_certificate(&arguments.data_dir, &names)?;
        output::note(&format!("The server has a new certificate for {}; restart `trefoil serve`.", renewed.join(", ")));
        if !names.is_empty() {
            let settings = arguments.data_dir.join(config::FILE_NAME);
            output::note(&format!("Let `names` in {} say the same, for the next renewal.", settings.display()));
        }
        return Ok(());
    }
    let operator_dir = context.operator_dir()?;
    let options = Options { data_dir: absolute(&arguments.data_dir)?, operator_dir: absolute(&operator_dir)?, names };
    let report = init::run(&options)?;
    if context.json() {
        return output::print_json(&serde_json::json!({
            "data_dir": options.data_dir,
            "operator_dir": options.operator_dir,
            "made": [report.data == Made::New, report.operator == Made::New],
            "names": report.names,
        }));
    }
    let say = |made, what, dir: &std::path::Path| {
        let how = match made {
            Made::New => "made",
            Made::Kept => "was there already, complete; nothing was changed",
        };
        output::note(&format!("{what} {}: {how}", dir.display()));
    };
    say(report.data, "server's directory   ", &options.data_dir);
    say(report.operator, "operator's directory ", &options.operator_dir);
    if report.data == Made::New {
        output::note(&format!("The server's certificate is for {}.", report.names.join(", ")));
    }
    match (report.data, report.operator) {
        (Made::New, _) => output::note("Next: trefoil serve"),
        (Made::Kept, Made::New) => output::note("Restart `trefoil serve`, so that it knows the new API token."),
        (Made::Kept, Made::Kept) => {}
    }
    Ok(())
}

fn absolute(path: &std::path::Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}
