//! `cargo xtask hil`: the hardware-in-loop scenarios of `hil-tests`, on a choice of TPM backend and store.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use hil_tests::apt::{self, Tool};
use hil_tests::tpm_report::{self, Fingerprint, Report};

use crate::tools::{self, Counts};

/// Hardware-in-loop scenarios: the real agent and control plane, each scenario with TPMs of its own.
///
/// Examples:
///   cargo xtask hil --list                         what there is
///   cargo xtask hil                                all of it, on SQLite, with the agent's own TPM code
///   cargo xtask hil --scenario wrong_pcrs          those whose name contains this
///   cargo xtask hil --store postgres --backend tss-esapi
///   cargo xtask hil --tcti device:/dev/tpmrm0      those that leave no trace in a TPM, on this machine's
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Only scenarios whose name contains NAME
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// A real TPM instead of emulated ones, as the agent's `tcti` setting names it: says what it is and how fast, and runs
    /// the scenarios that leave no trace in it, no PCR extended
    #[arg(long, value_name = "TCTI")]
    tcti: Option<String>,
    /// How the agent reaches the TPM
    #[arg(long, value_enum, default_value_t = Backend::Direct)]
    backend: Backend,
    /// Where the control plane keeps its state
    #[arg(long, value_enum, default_value_t = Store::Sqlite)]
    store: Store,
    /// Prints the scenarios' names and runs none
    #[arg(long)]
    list: bool,
}

/// The agent's TPM backends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Backend {
    /// Its own codec, on a device or swtpm's socket
    Direct,
    /// The system's TSS (needs libtss2-dev)
    TssEsapi,
}

/// The control plane's stores.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Store {
    /// One file per role
    Sqlite,
    /// A private server for each scenario
    Postgres,
}

impl Store {
    const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        return list();
    }
    let mut tools = vec![Tool::CCompiler];
    if arguments.tcti.is_none() {
        tools.extend([Tool::Swtpm, Tool::Tpm2Tools, Tool::Openssl, Tool::Libcoap]);
    }
    if arguments.store == Store::Postgres {
        tools.push(Tool::Postgres);
    }
    if arguments.backend == Backend::TssEsapi {
        tools.push(Tool::TssDevelopment);
    }
    apt::ensure(&tools)?;
    let agent = match arguments.backend {
        Backend::Direct => None,
        Backend::TssEsapi => Some(build_esapi_agent()?),
    };
    build_programs()?;
    let before = arguments.tcti.as_deref().map(report).transpose()?;
    let files: Vec<String> = if arguments.tcti.is_some() { vec![REAL_TPM.into()] } else { files()? };
    let mut suite = Suite { files, store: arguments.store, agent, ..Suite::default() };
    suite.filter.clone_from(&arguments.scenario);
    if let Some(tcti) = &arguments.tcti {
        suite.environment.insert("TREFOIL_TCTI", tcti.into());
    }
    let mut counts = suite.run()?;
    if let (Some(before), Some(tcti)) = (before, &arguments.tcti) {
        counts += unchanged(&before, tcti)?;
    }
    println!("{counts}");
    if counts.passed + counts.failed + counts.skipped == 0 {
        bail!("no scenario has that in its name; cargo xtask hil --list prints them");
    }
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what the TPM is; gives what has to be the same afterwards.
fn report(tcti: &str) -> Result<Fingerprint> {
    let before = Fingerprint::of(tcti).with_context(|| format!("the TPM at {tcti}"))?;
    println!("{}", Report::of(tcti, tpm_report::ROUNDS)?);
    Ok(before)
}

/// Says whether the TPM is as it was.
fn unchanged(before: &Fingerprint, tcti: &str) -> Result<Counts> {
    let ima = tpm_report::ima_measures();
    let changes = before.changes(&Fingerprint::of(tcti)?, ima);
    if !changes.is_empty() {
        println!("the TPM was changed:\n  {}", changes.join("\n  "));
        return Ok(Counts::FAILED);
    }
    let kernel = if ima { "; PCR 10 is the kernel's, where IMA measures" } else { "" };
    println!("the TPM is as it was: {} PCRs, NV, persistent objects, lockout counter{kernel}", before.pcrs.len());
    Ok(Counts::PASSED)
}

/// Some scenarios, on one backend and one store.
#[derive(Clone, Debug)]
pub(crate) struct Suite {
    /// The files in `hil-tests/tests`, without `.rs`.
    pub(crate) files: Vec<String>,
    /// Only tests whose name contains this.
    pub(crate) filter: Option<String>,
    /// Where state is kept.
    pub(crate) store: Store,
    /// Another agent than the one just built.
    pub(crate) agent: Option<PathBuf>,
    /// More variables.
    pub(crate) environment: BTreeMap<&'static str, OsString>,
}

impl Default for Suite {
    fn default() -> Self {
        Self { files: Vec::new(), filter: None, store: Store::Sqlite, agent: None, environment: BTreeMap::new() }
    }
}

impl Suite {
    /// Runs them.
    ///
    /// # Errors
    /// When cargo cannot be run; failures are in the counts.
    pub(crate) fn run(&self) -> Result<Counts> {
        let (waiting, working): (Vec<&str>, Vec<&str>) =
            self.files.iter().map(String::as_str).partition(|file| WAITING.contains(file));
        thread::scope(|scope| {
            // Beside the others, for they take next to no processor; what they say comes after what the others say.
            let aside = scope.spawn(|| {
                let mut said = String::new();
                let counts = self.run_files(&waiting, WAITING_THREADS, |line| said.extend([line, "\n"]));
                (counts, said)
            });
            let working = self.run_files(&working, THREADS, |line| println!("{line}"));
            let (waiting, said) = aside.join().map_err(|_| anyhow!("the thread that runs {WAITING:?} panicked"))?;
            print!("{said}");
            let mut counts = working?;
            counts += waiting?;
            Ok(counts)
        })
    }

    fn run_files(&self, files: &[&str], threads: &str, show: impl FnMut(&str)) -> Result<Counts> {
        if files.is_empty() {
            return Ok(Counts::default());
        }
        let mut command = tools::cargo(&["test", "--package", "hil-tests", "--no-fail-fast"]);
        for file in files {
            command.args(["--test", file]);
        }
        command.arg("--").args(self.filter.as_deref()).args(["--show-output", "--test-threads", threads]);
        command.env("TREFOIL_STORE", self.store.name()).envs(&self.environment);
        if env::var_os("TREFOIL_BIN_DIR").is_none() {
            command.env("TREFOIL_BIN_DIR", tools::target_dir().join("debug"));
        }
        if let Some(agent) = &self.agent {
            command.env("TREFOIL_AGENT", agent);
        }
        tools::count_tests(&mut command, show)
    }
}

/// Builds both programs as scenarios use them.
///
/// # Errors
/// When they do not compile.
pub(crate) fn build_programs() -> Result<()> {
    tools::run(&mut tools::cargo(&["build", "--package", "control-plane", "--package", "agent-minimal", "--bins"]))
}

/// Builds the agent with its second TPM backend and puts it beside the ordinary one, which this replaces for a moment:
/// [`build_programs`] comes after it.
///
/// # Errors
/// When it does not compile.
pub(crate) fn build_esapi_agent() -> Result<PathBuf> {
    tools::run(&mut tools::cargo(&["build", "--package", "agent-minimal", "--features", "tss-esapi", "--bins"]))?;
    let dir = tools::target_dir().join("tss-esapi");
    fs::create_dir_all(&dir)?;
    let to = dir.join("trefoil-agent");
    // Not over the old one: it may be running.
    let _ = fs::remove_file(&to);
    fs::copy(tools::target_dir().join("debug/trefoil-agent"), &to).context("keeping the agent with tss-esapi")?;
    Ok(to)
}

/// The scenario files: all in `hil-tests/tests` but those of [`OTHER_STEPS`].
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn files() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(tools::root().join("hil-tests/tests"))? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".rs")) {
            names.push(name.to_owned());
        }
    }
    names.retain(|name| !OTHER_STEPS.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

/// The harness's test of itself.
pub(crate) const HARNESS: &str = "rig";
/// Files that commands and steps of their own run: the test of the harness, guests, packages.
const OTHER_STEPS: [&str; 3] = [HARNESS, crate::vm::FILE, crate::package::SCENARIOS];
/// Scenarios of a file that run side by side: they wait for each other's programs more than they work.
const THREADS: &str = "4";
/// Files whose scenarios wait for the network or for a time-out nearly always: all run at once, on however few cores.
const WAITING: [&str; 2] = ["networks", "once"];
const WAITING_THREADS: &str = "16";
/// Scenarios that a real TPM survives.
const REAL_TPM: &str = "real_tpm";

fn list() -> Result<ExitCode> {
    for file in files()? {
        let mut command: Command = tools::cargo(&["test", "--quiet", "--package", "hil-tests", "--test", &file]);
        command.args(["--", "--list"]).stderr(Stdio::inherit());
        let output = command.output()?;
        if !output.status.success() {
            bail!("hil-tests/tests/{file}.rs does not compile");
        }
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if let Some(name) = line.strip_suffix(": test") {
                println!("{file}::{name}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
