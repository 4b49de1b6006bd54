//! Everything together: a control plane in a scratch directory, its operator, and agents on TPMs of their own.
//!
//! The rig uses the programs as a person would: `trefoil init`, `serve`, `node add`, `agent-config`, and the REST API.
//! It knows their flags and the shape of a node's JSON, nothing of what is inside them. A scenario says what has to
//! happen; the rig says what happened instead: its errors carry the node's state, its history and the programs' last
//! lines.
//!
//! | variable | chooses |
//! |---|---|
//! | `TREFOIL_BIN_DIR` | where `trefoil` and `trefoil-agent` are, else `CARGO_TARGET_DIR`/debug, else the debug directory of this build |
//! | `TREFOIL_AGENT` | another agent binary, for example one built with the feature `tss-esapi` |
//! | `TREFOIL_STORE` | `sqlite` (the default) or `postgres`, for rigs that do not say |
//! | `TREFOIL_TEST_POSTGRES` | a running server to make databases on, instead of a private one for each rig |

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use anyhow::{Context, Result, anyhow, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::apt;
use crate::events::{self, Event};
use crate::postgres::Postgres;
use crate::scratch::{MemoryFs, Scratch};
use crate::spawn::{self, Launch, Program, Step};
use crate::swtpm::{Swtpm, SwtpmCa};
use crate::sys;

/// Where the control plane keeps its state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Store {
    /// One file per role in the data directory.
    Sqlite,
    /// A private Postgres.
    Postgres,
}

impl Store {
    /// What `TREFOIL_STORE` says, or SQLite.
    pub fn from_env() -> Self {
        match env::var("TREFOIL_STORE").as_deref() {
            Ok("postgres") => Self::Postgres,
            _ => Self::Sqlite,
        }
    }
}

/// How a rig is built. `Options::default()` is what most scenarios want.
#[derive(Debug)]
pub struct Options {
    /// Where state is kept.
    pub store: Store,
    /// Whose endorsement keys the control plane trusts (`--ek-roots`); `None` trusts no certificate.
    pub ca: Option<Arc<SwtpmCa>>,
    /// Gets the control plane's and all agents' steps as they happen.
    pub steps: Option<Sender<Step>>,
    /// The `--log` of both programs.
    pub log: String,
    /// Puts the data directory on a memory file system of so many bytes.
    pub data_limit: Option<u64>,
    /// More arguments of `trefoil init`.
    pub init: Vec<String>,
    /// More arguments of `trefoil serve`.
    pub serve: Vec<String>,
    /// Where the programs are, before all variables of the table above.
    pub bin_dir: Option<PathBuf>,
    /// Where the gateway listens, else on a free port of 127.0.0.1.
    pub gateway: Option<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store: Store::from_env(),
            ca: None,
            steps: None,
            log: "json:debug".into(),
            data_limit: None,
            init: Vec::new(),
            serve: Vec::new(),
            bin_dir: None,
            gateway: None,
        }
    }
}

impl Options {
    /// Where one of our programs is.
    fn binary(&self, name: &str) -> Result<PathBuf> {
        match &self.bin_dir {
            Some(dir) => binary_in(dir, name),
            None if name == AGENT => agent_binary(),
            None => binary(name),
        }
    }
}

/// How a node is admitted.
#[derive(Clone, Debug)]
pub enum Admit {
    /// By a join token.
    Join,
    /// By a node id, or a file that `node add --id` takes.
    Id(String),
}

/// A node to be added.
#[derive(Clone, Debug)]
pub struct NodeAdd {
    /// How it gets in.
    pub admit: Admit,
    /// The payload's directory.
    pub payload: Option<PathBuf>,
    /// A policy file, or the id or name of one that was uploaded.
    pub policy: Option<String>,
    /// More arguments of `trefoil node add`.
    pub extra: Vec<String>,
}

impl NodeAdd {
    /// A node with a join token, and nothing else yet.
    pub fn join() -> Self {
        Self { admit: Admit::Join, payload: None, policy: None, extra: Vec::new() }
    }

    /// A node of a known id, and nothing else yet.
    pub fn id(id: impl Into<String>) -> Self {
        Self { admit: Admit::Id(id.into()), ..Self::join() }
    }

    /// With a payload.
    pub fn payload(mut self, dir: impl Into<PathBuf>) -> Self {
        self.payload = Some(dir.into());
        self
    }

    /// With a policy: a file, an id or a name.
    pub fn policy(mut self, policy: impl AsRef<Path>) -> Self {
        self.policy = Some(policy.as_ref().to_string_lossy().into_owned());
        self
    }

    /// With one more argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.extra.push(argument.into());
        self
    }
}

/// A control plane with its operator. Dropping it ends everything it started.
#[derive(Debug)]
pub struct Rig {
    server: Mutex<Option<Arc<Program>>>,
    bound: Mutex<Option<(SocketAddr, SocketAddr)>>,
    client: ureq::Agent,
    memory: OnceLock<Result<MemoryFs, String>>,
    data_fs: Option<MemoryFs>,
    postgres: Option<Postgres>,
    options: Options,
    scratch: Scratch,
}

impl Rig {
    /// Makes a control plane with its operator and starts it.
    ///
    /// # Errors
    /// When a program is missing or fails, or what `options` asks for cannot be had here.
    pub fn new(options: Options) -> Result<Self> {
        let scratch = Scratch::new("rig")?;
        let data = scratch.path().join("data");
        let data_fs = options.data_limit.map(|limit| MemoryFs::mount(&data, Some(limit))).transpose()?;
        let mut init = Command::new(options.binary("trefoil")?);
        init.arg("init").arg("--data-dir").arg(&data).arg("--operator-dir").arg(scratch.path().join("operator"));
        init.args(["--name", "localhost", "--name", "127.0.0.1"]).args(&options.init);
        spawn::run(&mut init).context("trefoil init failed")?;
        let mut postgres = None;
        if options.store == Store::Postgres {
            let url = match env::var("TREFOIL_TEST_POSTGRES") {
                Ok(server) => database_on(&server)?,
                Err(_) => postgres.insert(Postgres::start()?).create_database()?,
            };
            use_database(&data.join("trefoil.toml"), &url).context("changing trefoil.toml")?;
        }
        let ca =
            fs::read(scratch.path().join("operator/server-ca.pem")).context("the operator has no server-ca.pem")?;
        let rig = Self {
            server: Mutex::new(None),
            bound: Mutex::new(None),
            client: http_client(&ca)?,
            memory: OnceLock::new(),
            data_fs,
            postgres,
            options,
            scratch,
        };
        rig.start_server()?;
        Ok(rig)
    }

    /// Starts `trefoil serve`; after the first time at the same addresses as before.
    ///
    /// # Errors
    /// When it does not listen within ten seconds; its last lines are in the message.
    pub fn start_server(&self) -> Result<()> {
        let bound = *lock(&self.bound);
        let address = |bound: Option<SocketAddr>| bound.map_or_else(|| "127.0.0.1:0".into(), |at| at.to_string());
        let mut serve = Command::new(self.options.binary("trefoil")?);
        serve.arg("serve").arg("--data-dir").arg(self.data_dir());
        serve.args(["--gateway", &address(bound.map(|(gateway, _)| gateway).or(self.options.gateway))]);
        serve.args(["--api", &address(bound.map(|(_, api)| api)), "--log", &self.options.log]);
        if let Some(ca) = &self.options.ca {
            serve.arg("--ek-roots").arg(ca.roots_dir());
        }
        serve.args(&self.options.serve);
        let log = self.scratch.path().join("control-plane.log");
        let mut launch = Launch::new("control plane", serve);
        launch.log = Some(&log);
        launch.steps.clone_from(&self.options.steps);
        let server = Program::start(launch)?;
        let listening = |what: &str| -> Result<SocketAddr> {
            let prefix = format!("{what} listening on ");
            let line = server.wait_for_line(Duration::from_secs(10), |line| line.contains(&prefix))?;
            let text = line.split(&prefix).nth(1).unwrap_or_default();
            let text = text.split(['"', ' ', '\\']).next().unwrap_or_default();
            text.parse().with_context(|| format!("no address in: {line}"))
        };
        let addresses = (listening("gateway")?, listening("api")?);
        *lock(&self.bound) = Some(addresses);
        *lock(&self.server) = Some(Arc::new(server));
        Ok(())
    }

    /// The running `trefoil serve`.
    ///
    /// # Errors
    /// Between its end and the next [`Rig::start_server`].
    pub fn server(&self) -> Result<Arc<Program>> {
        lock(&self.server).clone().ok_or_else(|| anyhow!("the control plane does not run"))
    }

    /// Ends `trefoil serve` with SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_server(&self) -> Result<()> {
        let server = self.server()?;
        *lock(&self.server) = None;
        server.kill()
    }

    /// Asks `trefoil serve` to stop, and waits for it.
    ///
    /// # Errors
    /// When it does not run, does not stop within ten seconds, or exits with an error.
    pub fn stop_server(&self) -> Result<()> {
        let server = self.server()?;
        *lock(&self.server) = None;
        let status = server.stop(Duration::from_secs(10))?;
        if !status.success() {
            bail!("trefoil serve ended with {status}\n{}", server.tail(20));
        }
        Ok(())
    }

    /// Where agents connect. Unspecified before the first start, which [`Rig::new`] makes.
    pub fn gateway(&self) -> SocketAddr {
        lock(&self.bound).map_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)), |(gateway, _)| gateway)
    }

    /// The API's address, as `https://…`.
    pub fn api_url(&self) -> String {
        let at = lock(&self.bound).map_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)), |(_, api)| api);
        format!("https://{at}")
    }

    /// The server's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The operator's directory.
    pub fn operator_dir(&self) -> PathBuf {
        self.scratch.path().join("operator")
    }

    /// A directory for a scenario's own files, with everything else of the rig.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The private Postgres, if this rig has one.
    pub fn postgres(&self) -> Option<&Postgres> {
        self.postgres.as_ref()
    }

    /// The file system of the data directory, if it has one of its own.
    pub fn data_fs(&self) -> Option<&MemoryFs> {
        self.data_fs.as_ref()
    }

    /// The server CA's certificate, PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn server_ca(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.operator_dir().join("server-ca.pem"))?)
    }

    /// The operator's API token.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn token(&self) -> Result<String> {
        Ok(fs::read_to_string(self.operator_dir().join("token"))?.trim().to_owned())
    }

    /// The operator's command line, ready to be run: `trefoil ARGUMENTS`.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn trefoil_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.options.binary("trefoil")?);
        command.args(arguments).arg("--operator-dir").arg(self.operator_dir());
        command.env("TREFOIL_URL", self.api_url()).env_remove("TREFOIL_CA").env_remove("TREFOIL_TOKEN");
        command.env("NO_COLOR", "1");
        Ok(command)
    }

    /// Runs the operator's command line and gives its standard output.
    ///
    /// # Errors
    /// When it does not exit with 0; what it printed is in the message.
    pub fn trefoil(&self, arguments: &[&str]) -> Result<String> {
        spawn::run(&mut self.trefoil_command(arguments)?)
    }

    /// Adds a node, and gives what `node add` printed: with [`Admit::Join`] that ends with the join token.
    ///
    /// # Errors
    /// As [`Rig::trefoil`].
    pub fn node_add(&self, name: &str, node: &NodeAdd) -> Result<String> {
        let mut arguments = vec!["node", "add", name];
        match &node.admit {
            Admit::Join => arguments.push("--join"),
            Admit::Id(id) => arguments.extend(["--id", id]),
        }
        let payload = node.payload.as_ref().map(|path| path.to_string_lossy());
        if let Some(payload) = &payload {
            arguments.extend(["--payload", payload]);
        }
        if let Some(policy) = &node.policy {
            arguments.extend(["--policy", policy]);
        }
        arguments.extend(node.extra.iter().map(String::as_str));
        self.trefoil(&arguments)
    }

    /// Writes a policy file that names PCRs of the SHA-256 bank with the values the TPM has now.
    ///
    /// `rules` is what stands before the PCRs besides version and name, for example `[release]` and `accept` lines.
    ///
    /// # Errors
    /// When the TPM cannot be read or the file not written.
    pub fn policy(&self, name: &str, tpm: &Swtpm, pcrs: &[u32], rules: &str) -> Result<PathBuf> {
        let values: Vec<(u32, String)> =
            pcrs.iter().map(|&index| Ok((index, tpm.pcr(index)?))).collect::<Result<_>>()?;
        let path = self.scratch.path().join(format!("{name}.toml"));
        fs::write(&path, policy_text(name, &values, rules))?;
        Ok(path)
    }

    /// Writes a payload directory with these files and gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn payload(&self, name: &str, files: &[(&str, &[u8])]) -> Result<PathBuf> {
        let dir = self.scratch.path().join(format!("payload-{name}"));
        for (file, bytes) in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap_or(&dir))?;
            fs::write(path, bytes)?;
        }
        Ok(dir)
    }

    /// Starts an agent for the node `name` on `tpm`, configured by `trefoil agent-config`, its payload directory on a
    /// memory file system. The same name again is the same node: directory, payload and all.
    ///
    /// # Errors
    /// When a program fails, or no memory file system can be had.
    pub fn agent(&self, tpm: &Swtpm, name: &str, extra: &[&str]) -> Result<Agent> {
        let config = self.agent_config(name)?;
        self.agent_with(tpm, name, &config, extra)
    }

    /// As [`Rig::agent`], with a settings file of the scenario's own.
    ///
    /// # Errors
    /// As [`Rig::agent`].
    pub fn agent_with(&self, tpm: &Swtpm, name: &str, config: &Path, extra: &[&str]) -> Result<Agent> {
        let payload_dir = self.memory()?.join(name).join("payload");
        self.agent_at(&tpm.tcti(), name, config, payload_dir, extra)
    }

    /// As [`Rig::agent_with`], with its payload directory where the scenario wants it, on any TPM: `tcti` is the agent's
    /// setting.
    ///
    /// # Errors
    /// As [`Rig::agent`].
    pub fn agent_at(
        &self,
        tcti: &str,
        name: &str,
        config: &Path,
        payload_dir: PathBuf,
        extra: &[&str],
    ) -> Result<Agent> {
        let parent = payload_dir.parent().ok_or_else(|| anyhow!("the payload directory has no parent"))?;
        fs::create_dir_all(parent)?;
        fs::set_permissions(parent, fs::Permissions::from_mode(0o700))?;
        let mut command = self.agent_command(tcti, config)?;
        command.arg("--payload-dir").arg(&payload_dir).args(["--log", &self.options.log]).args(extra);
        if !extra.iter().any(|argument| argument.starts_with("--cryptsetup-keys-dir")) {
            // Not this machine's own.
            command.arg("--cryptsetup-keys-dir").arg(self.scratch.path().join(format!("disk-keys-{name}")));
        }
        let program_name = format!("agent {name}");
        let log = self.scratch.path().join(format!("agent-{name}.log"));
        let mut launch = Launch::new(&program_name, command);
        launch.log = Some(&log);
        launch.steps.clone_from(&self.options.steps);
        Ok(Agent { program: Program::start(launch)?, payload_dir })
    }

    /// `trefoil-agent` with the settings file and the TPM (its `tcti` setting), to which a scenario adds the rest.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn agent_command(&self, tcti: &str, config: &Path) -> Result<Command> {
        let mut command = Command::new(self.options.binary(AGENT)?);
        command.arg("--config").arg(config).args(["--tcti", tcti]);
        Ok(command)
    }

    /// Writes the node's `agent.conf` as `trefoil agent-config` gives it and returns its path.
    ///
    /// # Errors
    /// As [`Rig::trefoil`].
    pub fn agent_config(&self, name: &str) -> Result<PathBuf> {
        let text = self.trefoil(&["agent-config", name, "--server", &self.gateway().to_string()])?;
        let path = self.scratch.path().join(format!("agent-{name}.conf"));
        write_secret(&path, text.as_bytes())?;
        Ok(path)
    }

    /// The node id of a TPM, as `trefoil-agent --check` prints it.
    ///
    /// # Errors
    /// When it prints none.
    pub fn node_id(&self, tpm: &Swtpm) -> Result<String> {
        self.node_id_at(&tpm.tcti())
    }

    /// As [`Rig::node_id`], of any TPM: `tcti` is the agent's setting.
    ///
    /// # Errors
    /// As [`Rig::node_id`].
    pub fn node_id_at(&self, tcti: &str) -> Result<String> {
        let config = self.scratch.path().join("check.conf");
        let operator = self.operator_dir();
        let text = format!(
            "server = {}\nca = {}\ntenant-key = {}\n",
            self.gateway(),
            operator.join("server-ca.pem").display(),
            operator.join("tenant-key.pem").display()
        );
        write_secret(&config, text.as_bytes())?;
        let output = self.agent_command(tcti, &config)?.arg("--check").output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let about_id = said.lines().filter(|line| line.contains("node id") || line.contains("node_id"));
        let mut words = about_id.flat_map(|line| line.split(|c: char| !c.is_ascii_hexdigit()));
        let id = words.find(|word| word.len() == 64).map(str::to_owned);
        id.ok_or_else(|| anyhow!("trefoil-agent --check prints no node id:\n{said}"))
    }

    /// GETs a path below `/api/v1`, for example `/nodes/edge-1`.
    ///
    /// # Errors
    /// When the API cannot be reached or does not answer 200 with JSON; its problem is in the message.
    pub fn api_get(&self, path: &str) -> Result<Value> {
        let (status, body) = self.api("GET", path, None)?;
        if status != 200 {
            bail!("GET {path}: {status} {body}");
        }
        Ok(body)
    }

    /// One request below `/api/v1`, as the operator: status and JSON body (null where it is not JSON).
    ///
    /// # Errors
    /// When the API cannot be reached.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}/api/v1{path}", self.api_url()))
            .header("authorization", format!("Bearer {}", self.token()?));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let mut response = self.client.run(request.body(bytes)?).with_context(|| format!("{method} {path}"))?;
        let text = response.body_mut().with_config().limit(64 * 1024 * 1024).read_to_string()?;
        Ok((response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// The node's JSON.
    ///
    /// # Errors
    /// As [`Rig::api_get`].
    pub fn node(&self, name: &str) -> Result<Value> {
        self.api_get(&format!("/nodes/{name}"))
    }

    /// The node's history, as the API gives it.
    ///
    /// # Errors
    /// As [`Rig::api_get`].
    pub fn events(&self, name: &str) -> Result<Vec<Event>> {
        Ok(events::list(&self.api_get(&format!("/nodes/{name}/events"))?))
    }

    /// Every event of every role, strangers' included.
    ///
    /// # Errors
    /// As [`Rig::api_get`].
    pub fn all_events(&self) -> Result<Vec<Event>> {
        Ok(events::list(&self.api_get("/events?limit=500")?))
    }

    /// Waits until the node's phase is `phase` and gives its JSON.
    ///
    /// # Errors
    /// When the time is over: the message holds the node's state, its history and the control plane's last lines.
    pub fn wait_phase(&self, name: &str, phase: &str, timeout: Duration) -> Result<Value> {
        self.wait_node(name, &format!("phase {phase}"), timeout, |node| node["phase"] == phase)
    }

    /// Waits until the node's trust is `trust` and gives its JSON.
    ///
    /// # Errors
    /// As [`Rig::wait_phase`].
    pub fn wait_trust(&self, name: &str, trust: &str, timeout: Duration) -> Result<Value> {
        self.wait_node(name, &format!("trust {trust}"), timeout, |node| node["trust"] == trust)
    }

    /// Waits until `wanted` accepts the node's JSON; `what` is for the message.
    ///
    /// # Errors
    /// As [`Rig::wait_phase`].
    pub fn wait_node(
        &self,
        name: &str,
        what: &str,
        timeout: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        self.wait_for(name, what, timeout, || Ok(self.node(name).ok().filter(|node| wanted(node))))
    }

    /// Waits until the node's history, or a stranger's, holds an event of this kind, and gives it.
    ///
    /// # Errors
    /// As [`Rig::wait_phase`].
    pub fn wait_event(&self, name: &str, kind: &str, timeout: Duration) -> Result<Event> {
        self.wait_for(name, &format!("an event `{kind}`"), timeout, || {
            let mut all = self.events(name).unwrap_or_default();
            all.extend(self.all_events().unwrap_or_default());
            Ok(all.into_iter().find(|event| event.kind == kind))
        })
    }

    /// A TLS connection to the gateway, as a hostile or foreign peer makes it: CA checked, ALPN `coap`, nothing said.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn connect_gateway(&self) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.server_ca()?) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"coap".to_vec()];
        let name = ServerName::from(self.gateway().ip());
        let mut connection = ClientConnection::new(Arc::new(config), name)?;
        let mut stream = TcpStream::connect(self.gateway())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(StreamOwned::new(connection, stream))
    }

    /// A directory on a memory file system, for payload directories: `/run` is not always one.
    ///
    /// # Errors
    /// When none can be had here.
    pub fn memory(&self) -> Result<&Path> {
        let mount = || MemoryFs::mount(&self.scratch.path().join("memory"), None).map_err(|error| format!("{error:#}"));
        self.memory.get_or_init(mount).as_ref().map(MemoryFs::path).map_err(|error| anyhow!("{error}"))
    }

    /// Leaves the scratch directory for a person to look at and says where it is.
    pub fn keep_files(&self) -> &Path {
        self.scratch.keep();
        self.scratch.path()
    }

    fn wait_for<T>(
        &self,
        name: &str,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                bail!("{name} did not reach {what} within {timeout:?}\n{}", self.describe(name));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is known about a node, for messages.
    fn describe(&self, name: &str) -> String {
        let node = self.node(name).map_or_else(|error| format!("{error:#}"), |node| node.to_string());
        let mut text = format!("node: {node}\nhistory:");
        match self.events(name) {
            Ok(events) => {
                for event in events.iter().rev().take(15).rev() {
                    text.push_str(&format!("\n  {event}"));
                }
            }
            Err(error) => text.push_str(&format!(" {error:#}")),
        }
        if let Ok(server) = self.server() {
            text.push('\n');
            text.push_str(&server.tail(12));
        }
        let log = self.scratch.path().join(format!("agent-{name}.log"));
        if let Ok(log) = fs::read_to_string(log) {
            text.push_str("\nlast lines of the agent:");
            for line in log.lines().rev().take(12).collect::<Vec<_>>().into_iter().rev() {
                text.push_str(&format!("\n  {line}"));
            }
        }
        text
    }
}

/// A running agent; what [`Program`] offers, it offers too.
#[derive(Debug)]
pub struct Agent {
    program: Program,
    payload_dir: PathBuf,
}

impl Agent {
    /// Where its payload goes.
    pub fn payload_dir(&self) -> &Path {
        &self.payload_dir
    }

    /// The files that are in place, by relative path; empty before the payload is delivered.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn payload(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        read_tree(&self.payload_dir)
    }

    /// Peak resident memory of the process that does the work, kB.
    ///
    /// # Errors
    /// When none runs.
    pub fn worker_peak_kb(&self) -> Result<u64> {
        spawn::peak_kb(self.program.worker_pid().unwrap_or(self.program.pid()))
    }

    /// CPU time of the process that does the work, to the kernel's tick.
    ///
    /// # Errors
    /// When none runs.
    pub fn worker_cpu_time(&self) -> Result<Duration> {
        spawn::cpu_time(self.program.worker_pid().unwrap_or(self.program.pid()))
    }
}

impl Deref for Agent {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

/// Where one of our programs is; see the module's table.
///
/// # Errors
/// When it is not there: the message says how it is built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let dir = match env::var_os("TREFOIL_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => target_dir().join("debug"),
    };
    binary_in(&dir, name)
}

fn binary_in(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    if path.is_file() {
        return Ok(path);
    }
    bail!("{} is not there; build it with: cargo build -p control-plane -p agent-minimal", path.display())
}

/// Where the agent is.
///
/// # Errors
/// As [`binary`].
pub fn agent_binary() -> Result<PathBuf> {
    match env::var_os("TREFOIL_AGENT") {
        Some(path) => Ok(PathBuf::from(path)),
        None => binary(AGENT),
    }
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, else the one this program was built into, else the workspace's.
pub fn target_dir() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR") {
        return workspace.join(dir);
    }
    let built_into = env::current_exe()
        .ok()
        .and_then(|exe| exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).map(Path::to_owned));
    built_into.unwrap_or_else(|| workspace.join("target"))
}

/// A policy's text with these values in the SHA-256 bank; `rules` are its other lines.
pub fn policy_text(name: &str, values: &[(u32, String)], rules: &str) -> String {
    let mut text = format!("version = 1\nname = \"{name}\"\n{rules}\n[pcrs.sha256]\n");
    for (index, value) in values {
        text.push_str(&format!("{index} = [\"{value}\"]\n"));
    }
    text
}

/// The line that programs in a scenario print when the machine cannot do what it needs.
pub fn missing(tools: &[apt::Tool]) -> Option<String> {
    let missing: Vec<String> = tools
        .iter()
        .filter(|tool| !tool.is_present())
        .flat_map(|tool| tool.packages())
        .map(|&p| p.to_owned())
        .collect();
    (!missing.is_empty()).then(|| format!("skipped: not installed: {}", missing.join(" ")))
}

/// Makes a database with a name of its own on a server that is there already.
fn database_on(server: &str) -> Result<String> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("rig{}_{number}", std::process::id());
    let bin = apt::postgres_bin_dir().unwrap_or_default();
    spawn::run(Command::new(bin.join("psql")).args([
        "-X",
        "-q",
        "-d",
        server,
        "-c",
        &format!("CREATE DATABASE {name}"),
    ]))?;
    let (base, _) = server.rsplit_once('/').ok_or_else(|| anyhow!("TREFOIL_TEST_POSTGRES names no database"))?;
    Ok(format!("{base}/{name}"))
}

/// Puts a database address into the section of each role.
fn use_database(settings: &Path, url: &str) -> Result<()> {
    let text = fs::read_to_string(settings)?;
    let mut changed = String::with_capacity(text.len() + 256);
    let mut sections = 0;
    for line in text.lines() {
        changed.push_str(line);
        changed.push('\n');
        if ["[registrar]", "[verifier]", "[tenant]"].contains(&line.trim()) {
            changed.push_str(&format!("db = \"{url}\"\n"));
            sections += 1;
        }
    }
    if sections != 3 {
        bail!("it has {sections} of the three roles' sections");
    }
    write_secret(settings, changed.as_bytes())?;
    Ok(())
}

fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, bytes)
}

fn http_client(ca: &[u8]) -> Result<ureq::Agent> {
    let root = ureq::tls::Certificate::from_pem(ca)?;
    let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::new_with_certs(&[root])).build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(20)))
        // A connection that a killed server left behind must not be the next request's.
        .max_idle_connections(0)
        .build();
    Ok(ureq::Agent::new_with_config(config))
}

fn read_tree(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        let entries = match fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("reading {}", next.display())),
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(dir)?.to_string_lossy().into_owned();
                files.insert(name, fs::read(&path)?);
            }
        }
    }
    Ok(files)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const AGENT: &str = "trefoil-agent";

/// Whether scenarios that mount something or change users can run.
pub fn is_root() -> bool {
    sys::is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_goes_into_each_roles_section() {
        let scratch = Scratch::new("toml").unwrap();
        let path = scratch.path().join("trefoil.toml");
        fs::write(&path, "[api]\nlisten = \"x\"\n[registrar]\n[verifier]\n# db = \"sqlite:x\"\n[tenant]\n").unwrap();
        use_database(&path, "postgres://h/d").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("\ndb = \"postgres://h/d\"\n").count(), 3, "{text}");
        fs::write(&path, "[registrar]\n").unwrap();
        assert!(use_database(&path, "postgres://h/d").is_err());
    }

    #[test]
    fn a_tree_is_read_with_relative_names() {
        let scratch = Scratch::new("tree").unwrap();
        fs::create_dir(scratch.path().join("a")).unwrap();
        fs::write(scratch.path().join("a/b"), b"c").unwrap();
        assert_eq!(read_tree(scratch.path()).unwrap().get("a/b").map(Vec::as_slice), Some(b"c".as_slice()));
        assert!(read_tree(&scratch.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn a_program_that_is_not_built_is_named_with_the_way_to_build_it() {
        let error = binary("no-such-program").unwrap_err().to_string();
        assert!(error.contains("cargo build -p control-plane -p agent-minimal"), "{error}");
    }
}
