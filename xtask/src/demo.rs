//! `cargo xtask demo`: three-part key derivation as it happens, then a tampered node losing its trust.
//!
//! Everything shown is what the real programs say: their step lines, the API's answers, the files on the node. The
//! operator's commands are printed as a person would type them.

mod figures;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hil_tests::apt::{self, Tool};
use hil_tests::rig::{Agent, NodeAdd, Options, Rig, Store, policy_text};
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use serde_json::Value;

use crate::dist;
use figures::Figures;
use table::Table;

/// From a fresh machine to a delivered payload on an emulated TPM, each step shown; then a tampered node losing its trust.
///
/// Starts a control plane and a TPM with a certified endorsement key, adds a node with a payload, starts its agent, and
/// prints the three-part key derivation as it happens: the message, who -> whom, milliseconds, bytes. Then it attests a
/// few rounds, changes the node behind the agent's back, and shows the verifier withdrawing trust, and why.
///
/// Nothing outside a scratch directory is touched, and nothing is left behind: Ctrl-C is safe at any time.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Keeps state in a private Postgres instead of SQLite
    #[arg(long)]
    postgres: bool,
    /// Bootstraps this many nodes, each with a TPM of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    nodes: u16,
    /// Leaves everything running at the end and prints addresses and tokens; Ctrl-C ends it
    #[arg(long)]
    keep: bool,
}

/// Time between two attestations of a node, seconds: short, so that nobody waits.
const INTERVAL_S: u32 = 1;
/// Rounds that are watched before the node is tampered with.
const ROUNDS: usize = 4;
/// PCRs that the policy names: firmware, its drivers, boot loader, Secure Boot state.
const PCRS: [u32; 4] = [0, 2, 4, 7];
/// The one that is tampered with.
const TAMPERED_PCR: u32 = 7;
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(60);

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut tools = vec![Tool::CCompiler, Tool::Swtpm, Tool::Tpm2Tools, Tool::Openssl];
    if arguments.postgres {
        tools.push(Tool::Postgres);
    }
    apt::ensure(&tools)?;
    say("building the agent (static) and the control plane; the first time takes some minutes");
    let agent_len = dist::agent().context("building the agent")?.len;
    dist::control_plane().context("building the control plane")?;

    let (steps, incoming) = mpsc::channel();
    let table = Table::start(incoming, usize::from(arguments.nodes));
    let result = Demo::set_up(arguments, steps, &table).and_then(|demo| demo.play(&table, agent_len));
    if result.is_err()
        && let Some(step) = table.last_step()
    {
        eprintln!("\nThe last step that was seen is `{step}`.");
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// What has been started. Fields end in this order: agents first, so that nobody complains of a lost server.
struct Demo<'a> {
    arguments: &'a Arguments,
    agents: Vec<Agent>,
    rig: Rig,
    tpms: Vec<Swtpm>,
    started: Vec<Instant>,
}

impl<'a> Demo<'a> {
    /// TPMs, control plane, nodes added, agents started.
    fn set_up(arguments: &'a Arguments, steps: mpsc::Sender<hil_tests::spawn::Step>, table: &Table) -> Result<Self> {
        let count = usize::from(arguments.nodes);
        say(&format!("starting {} with a certified endorsement key each, by swtpm", plural(count, "TPM")));
        let ca = SwtpmCa::new()?;
        let tpms = Swtpm::start_many(EkKind::P384AndRsa, count, &ca).context("starting the TPMs")?;
        for tpm in &tpms {
            // An emulated TPM has no firmware that measures a boot: played here, the same on each node.
            tpm.play_firmware().context("playing a measured boot")?;
        }
        let (store, called) =
            if arguments.postgres { (Store::Postgres, "Postgres") } else { (Store::Sqlite, "SQLite") };
        say(&format!("starting the control plane on {called} (trefoil init, trefoil serve)"));
        let options = Options {
            store,
            ca: Some(Arc::clone(&ca)),
            steps: Some(steps),
            bin_dir: Some(dist::dir()),
            ..Options::default()
        };
        let rig = Rig::new(options).context("starting the control plane")?;
        table.line(&format!("  agents connect to {}, the API is {}/api/v1", rig.gateway(), rig.api_url()));
        let policy = policy_file(&rig, tpms.first().ok_or_else(|| anyhow!("no TPM"))?)?;
        let mut demo = Self { arguments, agents: Vec::new(), rig, tpms, started: Vec::new() };
        demo.add_nodes(&policy, table)?;
        demo.start_agents(table)?;
        Ok(demo)
    }

    fn add_nodes(&self, policy: &Path, table: &Table) -> Result<()> {
        let payload = payload_dir(&self.rig)?;
        for name in self.names() {
            if name == "edge-1" {
                table.line(&format!(
                    "\n$ trefoil node add {name} --join --payload payload --policy policy.toml --issue-cert --interval {INTERVAL_S}s"
                ));
            }
            let node = NodeAdd::join()
                .payload(&payload)
                .policy(policy)
                .arg("--issue-cert")
                .arg("--interval")
                .arg(format!("{INTERVAL_S}s"));
            self.rig.node_add(&name, &node).with_context(|| format!("adding {name}"))?;
        }
        table.line(
            "  K_b was made, the payload encrypted and signed, K_b split into U and V, each sealed to its role: all here,\n  \
             where the operator is. The control plane has ciphertext, and a share for each of two roles.",
        );
        Ok(())
    }

    fn start_agents(&mut self, table: &Table) -> Result<()> {
        let configs: Vec<PathBuf> = self
            .names()
            .map(|name| self.rig.agent_config(&name))
            .collect::<Result<_>>()
            .context("trefoil agent-config")?;
        table.settle();
        table.line("\n$ trefoil agent-config edge-1 > agent.conf");
        table.line("$ trefoil-agent --config agent.conf\n");
        table.header();
        let names: Vec<String> = self.names().collect();
        for ((name, tpm), config) in names.iter().zip(&self.tpms).zip(&configs) {
            table.started(name);
            self.started.push(Instant::now());
            self.agents.push(self.rig.agent_with(tpm, name, config, &[]).context("starting the agent")?);
        }
        Ok(())
    }

    /// From the first `hello` to the withdrawn trust.
    fn play(mut self, table: &Table, agent_len: u64) -> Result<()> {
        let mut figures = Figures::new(agent_len);
        for name in self.names() {
            self.rig.wait_phase(&name, "delivered", BOOTSTRAP_TIMEOUT).context("the bootstrap")?;
        }
        table.settle();
        self.show_payload(table)?;
        figures.bootstrap(table, &self.names().collect::<Vec<_>>());

        self.second_boot(table, &mut figures).context("the second boot")?;

        table.line(&format!("\nAttesting every {INTERVAL_S} s:\n"));
        self.attest(table, &mut figures).context("continuous attestation")?;
        self.tamper(table, &mut figures).context("withdrawing trust")?;
        table.settle();
        if let Some(agent) = self.agents.first() {
            figures.agent_peak_kb = agent.worker_peak_kb().ok();
        }
        figures.server_peak_kb = self.rig.server()?.peak_kb().ok();
        table.line(&format!("\n{figures}"));
        if self.arguments.keep {
            self.keep(table)?;
        }
        Ok(())
    }

    fn show_payload(&self, table: &Table) -> Result<()> {
        let agent = self.agents.first().ok_or_else(|| anyhow!("no agent"))?;
        let files = agent.payload().context("reading the delivered payload")?;
        if !files.contains_key("app.toml") {
            bail!("the node counts as delivered, but app.toml is not in {}", agent.payload_dir().display());
        }
        table.line(&format!("\nOn the node edge-1, in memory only, below {}:", agent.payload_dir().display()));
        for (name, bytes) in &files {
            table.line(&format!("  {:>7} bytes  {name}", bytes.len()));
        }
        table.line("The tenant has the confirmation: the node is `delivered`.");
        Ok(())
    }

    /// The same machine starts again: another NK, the same payload, and no enrolment.
    fn second_boot(&mut self, table: &Table, figures: &mut Figures) -> Result<()> {
        let tpm = self.tpms.first().ok_or_else(|| anyhow!("no TPM"))?;
        table.line("\nThe machine edge-1 boots again: its TPM is reset, the payload in memory is gone.\n");
        drop(self.agents.remove(0));
        tpm.reset().context("resetting the TPM")?;
        tpm.play_firmware().context("playing a measured boot")?;
        let config = self.rig.agent_config("edge-1")?;
        table.settle();
        table.started("edge-1");
        self.agents.insert(0, self.rig.agent_with(tpm, "edge-1", &config, &[]).context("starting the agent")?);
        let begun = Instant::now();
        while table.agent_step_after_start("edge-1", "delivered").is_none() {
            if begun.elapsed() > BOOTSTRAP_TIMEOUT {
                bail!("the payload was not delivered again within {} s", BOOTSTRAP_TIMEOUT.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
        table.settle();
        figures.second_boot_ms = table.agent_step_after_start("edge-1", "confirm");
        Ok(())
    }

    fn attest(&self, table: &Table, figures: &mut Figures) -> Result<()> {
        for name in self.names() {
            self.rig.wait_trust(&name, "good", Duration::from_secs(30))?;
        }
        let server = self.rig.server()?.pid();
        let mark = table.mark();
        let (cpu, begun) = (hil_tests::spawn::threads_cpu_time(server)?, Instant::now());
        let wanted = ROUNDS * self.agents.len();
        while table.attestations_since(mark).len() < wanted {
            if begun.elapsed() > Duration::from_secs(30) + Duration::from_secs(u64::from(INTERVAL_S)) * ROUNDS as u32 {
                bail!(
                    "only {} of {wanted} attestations in {:?}",
                    table.attestations_since(mark).len(),
                    begun.elapsed()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        let spent = hil_tests::spawn::threads_cpu_time(server)?.saturating_sub(cpu);
        figures.steady(&table.attestations_since(mark), &table.answers_since(mark, "edge-1"), spent);
        for name in self.names() {
            self.rig.wait_trust(&name, "good", Duration::from_secs(10))?;
        }
        table.settle();
        table.line("  every verdict good; trust: good");
        Ok(())
    }

    fn tamper(&self, table: &Table, figures: &mut Figures) -> Result<()> {
        let tpm = self.tpms.first().ok_or_else(|| anyhow!("no TPM"))?;
        let digest = "ba".repeat(32);
        table.line(&format!(
            "\nNow something else than the agent changes the node: PCR {TAMPERED_PCR} is in the policy.\n\n\
             $ tpm2_pcrextend {TAMPERED_PCR}:sha256={}…\n",
            &digest[..16]
        ));
        tpm.pcr_extend(TAMPERED_PCR, &digest)?;
        let begun = Instant::now();
        let node = self.rig.wait_trust("edge-1", "failed", Duration::from_secs(30))?;
        let withdrawn = begun.elapsed();
        figures.withdrawn = Some(withdrawn);
        table.settle();
        table.line(&format!("\ntrust withdrawn after {:.2} s: edge-1 is `failed`. Why:", withdrawn.as_secs_f64()));
        for line in reasons(&self.rig, &node) {
            table.line(&format!("  {line}"));
        }
        for name in self.names().skip(1) {
            let node = self.rig.node(&name)?;
            if node["trust"] != "good" {
                bail!("{name} was not touched, but its trust is {}", node["trust"]);
            }
        }
        if self.agents.len() > 1 {
            table.line(&format!("  the other {} not touched, and still good", plural(self.agents.len() - 1, "node")));
        }
        Ok(())
    }

    fn keep(&self, table: &Table) -> Result<()> {
        table.line(&format!(
            "Everything is left running; Ctrl-C ends it and removes it.\n\n\
             export TREFOIL_URL={}\nexport TREFOIL_CA={}\nexport TREFOIL_TOKEN={}\n\n\
             {} node list --operator-dir {}\n\
             curl --cacert \"$TREFOIL_CA\" -H \"Authorization: Bearer $TREFOIL_TOKEN\" \"$TREFOIL_URL/api/v1/nodes\"\n\n\
             agents connect to {}; logs are in {}",
            self.rig.api_url(),
            self.rig.operator_dir().join("server-ca.pem").display(),
            self.rig.token()?,
            dist::dir().join("trefoil").display(),
            self.rig.operator_dir().display(),
            self.rig.gateway(),
            self.rig.dir().display(),
        ));
        table.quiet();
        let server = self.rig.server()?;
        while server.is_running() {
            thread::sleep(Duration::from_millis(500));
        }
        bail!("the control plane ended by itself\n{}", server.tail(10))
    }

    fn names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.arguments.nodes).map(|number| format!("edge-{number}"))
    }
}

/// The values that PCRs have on a good node: those that the first TPM has now, after the played boot.
fn policy_file(rig: &Rig, tpm: &Swtpm) -> Result<PathBuf> {
    let values: Vec<(u32, String)> = PCRS.iter().map(|&index| Ok((index, tpm.pcr(index)?))).collect::<Result<_>>()?;
    let path = rig.dir().join("policy.toml");
    fs::write(&path, policy_text("demo", &values, "\n[release]\nphase_pcr = 13\n"))?;
    Ok(path)
}

fn payload_dir(rig: &Rig) -> Result<PathBuf> {
    rig.payload(
        "demo",
        &[
            (
                "app.toml",
                b"# What only a machine in a known state gets to see.\n[uplink]\nurl = \"https://hub.example/\"\n"
                    .as_slice(),
            ),
            ("keys/disk.key", b"correct horse battery staple, but random\n".as_slice()),
        ],
    )
}

/// Why a node's trust is what it is, in the API's own words.
fn reasons(rig: &Rig, node: &Value) -> Vec<String> {
    let verdict = &node["last_verdict"];
    let mut lines = Vec::new();
    for text in [&verdict["reason"], &verdict["summary"], &verdict["explanation"]["summary"]] {
        if let Some(text) = text.as_str()
            && !lines.iter().any(|line| line == text)
        {
            lines.push(text.to_owned());
        }
    }
    let findings = verdict["findings"].as_array().or_else(|| verdict["explanation"]["findings"].as_array());
    for finding in findings.into_iter().flatten() {
        let text = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        lines.push(format!(
            "{} {}: expected {}, found {}",
            text("code"),
            text("what"),
            text("expected"),
            text("found")
        ));
    }
    if let Ok(events) = rig.events("edge-1")
        && let Some(event) = events.iter().rev().find(|event| event.role == "verifier")
    {
        let line = format!("history: {event}");
        if !lines.contains(&event.detail) {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        lines.push(verdict.to_string());
    }
    lines
}

fn say(text: &str) {
    println!("· {text}");
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
