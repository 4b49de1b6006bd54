//! The agent's settings: one name each, as flag, as line of a file, as kernel argument, in this order of precedence.
//!
//! Only text is judged here; the files that settings name are read by whoever uses them.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    time::Duration,
};

use protocol::{crypto::join::JoinToken, limits, message::enrol::Wants, tpm::template::EkTemplate};

use crate::{autorun::AUTORUN_LIMIT, log, payload::PayloadDir, x509::ServerName};

/// Read when it is there and no other is named.
const DEFAULT_FILE: &str = "/etc/trefoil/agent.conf";
/// A settings file is a few lines; a larger one is not ours.
const MAX_FILE_LEN: u64 = 64 * 1024;
/// CoAP over TLS over TCP (RFC 8323 §8.2, and the port the gateway listens on by default).
const DEFAULT_PORT: u16 = 5684;
/// systemd extends 11, 12 and 15 by itself.
const DEFAULT_PHASE_PCR: u8 = 13;
/// Gateways that are tried in turn.
const MAX_SERVERS: usize = 8;

/// What the program was asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Print the help and exit 0.
    Help,
    /// Print the version and exit 0.
    Version,
    /// Say what is missing before the first boot.
    Check {
        /// The settings to check with.
        settings: Settings,
        /// One JSON object instead of lines.
        json: bool,
    },
    /// Write one file of the payload in place to standard output.
    Print {
        /// Where the payload is.
        home: PayloadDir,
        /// The file's path within it.
        file: String,
    },
    /// Attest; the process that supervises.
    Run(Settings),
    /// Attest; the worker that such a process started.
    Worker {
        /// The settings.
        settings: Settings,
        /// The supervising process.
        parent: u32,
    },
}

/// Where the TPM is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Tcti {
    /// A character device; one that ends in `rm0` has the kernel's resource manager before it.
    Device(PathBuf),
    /// A software TPM's command port.
    Swtpm {
        /// Name or address.
        host: String,
        /// TCP port of commands.
        port: u16,
    },
    /// Anything else that the system's TSS can load.
    #[cfg(feature = "tss-esapi")]
    Other(String),
}

/// One gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ServerAddress {
    /// What its certificate has to name.
    pub(crate) name: ServerName,
    /// TCP port.
    pub(crate) port: u16,
}

impl ServerAddress {
    /// Its socket addresses, as the resolver gives them. Asks it only for a name.
    ///
    /// # Errors
    /// The resolver's.
    pub(crate) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.name {
            ServerName::Ip(ip) => Ok(vec![SocketAddr::new(*ip, self.port)]),
            ServerName::Dns(name) => Ok((name.as_str(), self.port).to_socket_addrs()?.collect()),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            ServerName::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
            ServerName::Dns(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Everything that can be set.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Gateways, in the order in which they are tried.
    pub(crate) servers: Vec<ServerAddress>,
    /// PEM file of the authorities that may vouch for them.
    pub(crate) ca: Option<PathBuf>,
    /// PEM files with the keys that payloads have to be signed with.
    pub(crate) tenant_keys: Vec<PathBuf>,
    /// Join token.
    pub(crate) join: Option<JoinToken>,
    /// Where the TPM is.
    pub(crate) tcti: Tcti,
    /// The EK to use; else the first that has a certificate.
    pub(crate) ek: Option<EkTemplate>,
    /// The PCR that takes the phases of a boot, 8 to 15.
    pub(crate) phase_pcr: u8,
    /// Where the payload goes.
    pub(crate) payload_dir: PathBuf,
    /// Where disk keys are linked.
    pub(crate) keys_dir: PathBuf,
    /// How long a payload's `autorun` may take.
    pub(crate) autorun_limit: Duration,
    /// Whether a payload's `autorun` may run.
    pub(crate) autorun: bool,
    /// End after the payload is in place.
    pub(crate) once: bool,
    /// How long that may take altogether.
    pub(crate) timeout: Option<Duration>,
    /// What the node comes for.
    pub(crate) wants: Wants,
    /// How much is said.
    pub(crate) log: log::Settings,
    /// The firmware's log.
    pub(crate) boot_log: PathBuf,
    /// The kernel's measurement list, in binary form.
    pub(crate) ima_log: PathBuf,
    /// The kernel's command line.
    pub(crate) command_line: PathBuf,
    /// What userspace measured.
    pub(crate) userspace_log: PathBuf,
    /// Where some of this was said.
    pub(crate) origins: Origins,
}

/// Where a setting was said, the weakest first.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Source {
    /// Nowhere.
    #[default]
    Default,
    /// On the kernel's command line.
    Kernel,
    /// In the settings file.
    File,
    /// As a flag.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "by default",
            Self::Kernel => "from the kernel's command line",
            Self::File => "from the settings file",
            Self::Flag => "from a flag",
        })
    }
}

/// Where the settings were said of which that matters: the pins, and those that contradict each other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Origins {
    pub(crate) tenant_keys: Source,
    pub(crate) autorun: Source,
    once: Source,
    timeout: Source,
    wants: Source,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            ca: None,
            tenant_keys: Vec::new(),
            join: None,
            tcti: Tcti::Device("/dev/tpmrm0".into()),
            ek: None,
            phase_pcr: DEFAULT_PHASE_PCR,
            payload_dir: "/run/trefoil/payload".into(),
            keys_dir: "/run/cryptsetup-keys.d".into(),
            autorun_limit: AUTORUN_LIMIT,
            autorun: false,
            once: false,
            timeout: None,
            wants: Wants::Payload,
            log: log::Settings::default(),
            boot_log: "/sys/kernel/security/tpm0/binary_bios_measurements".into(),
            ima_log: "/sys/kernel/security/ima/binary_runtime_measurements".into(),
            command_line: COMMAND_LINE.into(),
            userspace_log: USERSPACE_LOG.into(),
            origins: Origins::default(),
        }
    }
}

impl Settings {
    /// Where the payload goes.
    pub(crate) fn payload_home(&self) -> PayloadDir {
        PayloadDir::new(&self.payload_dir, &self.keys_dir)
    }
}

/// The running kernel's command line.
pub(crate) const COMMAND_LINE: &str = "/proc/cmdline";
/// Where systemd keeps what it measured, in the canonical event log's JSON form.
pub(crate) const USERSPACE_LOG: &str = "/run/log/systemd/tpm2-measure.log";

/// A setting that cannot be used, and where it stands.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{place}: {what}")]
pub(crate) struct ConfigError {
    place: String,
    what: String,
}

fn error<T>(place: impl fmt::Display, what: impl fmt::Display) -> Result<T, ConfigError> {
    Err(ConfigError { place: place.to_string(), what: what.to_string() })
}

/// The text of `--help`.
pub(crate) const HELP: &str = "\
trefoil-agent: proves with the TPM what this machine booted, and fetches its payload

Usage: trefoil-agent [--config FILE] [--SETTING VALUE]...
       trefoil-agent --check [--json]     say what is missing before the first boot, and what to do; changes nothing
       trefoil-agent --print FILE         write one file of the payload in place, for example cryptsetup/root.key
       trefoil-agent --help | --version

Every setting has one name everywhere: flag `--x VALUE`, line `x = VALUE` in the settings file, kernel argument
`trefoil.x=VALUE`. A flag wins over the file, the file over the kernel's command line.

  server HOST:PORT    gateway, by name or address; port 5684 unless given; may be repeated: tried in turn
  ca FILE             PEM file with the 1 to 4 authorities that vouch for gateways
  tenant-key FILE     PEM file with a P-256 public key that payloads must be signed with; may be repeated, up to 4
  join TOKEN          join token of a node not seen before (not from the kernel's command line, which everyone can read)
  wants WHAT          payload (default): the payload, then attestation; attest: attestation only
  payload-dir DIR     where the payload goes, on a tmpfs or ramfs (default /run/trefoil/payload)
  autorun on|off      run the payload's `autorun` once it is in place (default off)
  once                exit when the payload is in place and the tenant knows it
  timeout TIME        with once: give up after so long altogether, for example 60s, 2m or 90
  tcti WHERE          the TPM: device:/dev/tpmrm0 (default), or swtpm:host=HOST,port=PORT
  ek KIND             p256, p384 or rsa2048 (default: the first of these with a certificate); changes the node id
  phase-pcr N         PCR that records how far the boot got, 8 to 15 (default 13)
  log LEVEL           error, warn, info (default), debug or trace; json:LEVEL writes one JSON object a line

  --config FILE       settings file (default /etc/trefoil/agent.conf, if it is there)

Exit codes, once:     0 the payload is in place; 1 this machine is not ready (no TPM, a file that cannot be read);
                      2 wrong settings; 3 not reached: no gateway proved itself and answered; 4 refused: one did, and
                      gave no payload that is good. 3 and 4 need a timeout; without one it is tried again for ever.
Disk keys:            a payload's file cryptsetup/NAME.key is linked to /run/cryptsetup-keys.d/NAME.key.
Pins:                 tenant-key and autorun are measured into the phase PCR before the first connection, wherever they
                      are set; a control plane releases nothing under other pins than the operator's.

Examples:
  trefoil-agent --server gw.example.org --ca /etc/trefoil/ca.pem --tenant-key /etc/trefoil/tenant.pem
  trefoil-agent --once --timeout 60s     in an initramfs; when the root is up: trefoil-agent --wants attest
Start with: trefoil-agent --check
";

/// Reads the command line (without the program's name), the settings file and the kernel's command line.
///
/// # Errors
/// [`ConfigError`]: which source, which line, what is wrong.
pub(crate) fn from_system(args: impl Iterator<Item = String>) -> Result<Command, ConfigError> {
    let kernel = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    parse(args, &kernel, Path::new(DEFAULT_FILE))
}

fn parse(args: impl Iterator<Item = String>, kernel: &str, default_file: &Path) -> Result<Command, ConfigError> {
    let mut flags = Values::default();
    let (mut file, mut check, mut json, mut worker, mut print) = (None, false, false, None, None);
    let mut args = args;
    while let Some(arg) = args.next() {
        // Without its value, which may be a join token.
        let place = || format!("argument {}", arg.split_once('=').map_or(arg.as_str(), |(name, _)| name));
        let Some(name) = arg.strip_prefix("--") else {
            return error(place(), "is not a flag; see --help");
        };
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        match (name, inline) {
            ("help", None) => return Ok(Command::Help),
            ("version", None) => return Ok(Command::Version),
            ("check", None) => check = true,
            ("json", None) => json = true,
            // A switch takes a value only behind `=`, so that it can stand alone.
            ("once" | "autorun", inline) => {
                flags
                    .set(name, inline.as_deref().unwrap_or("on"), Source::Flag)
                    .or_else(|what| error(place(), what))?;
            }
            (_, inline) => {
                let Some(value) = inline.or_else(|| args.next()) else {
                    return error(place(), "needs a value; see --help");
                };
                match name {
                    "config" => file = Some(PathBuf::from(value)),
                    "print" => print = Some(value),
                    "worker" => match value.parse() {
                        Ok(parent) => worker = Some(parent),
                        Err(_) => return error(place(), "needs a process id"),
                    },
                    _ => flags.set(name, &value, Source::Flag).or_else(|what| error(place(), what))?,
                }
            }
        }
    }

    let mut settings = Settings::default();
    from_kernel(kernel)?.apply(&mut settings, Source::Kernel);
    let named = file.is_some();
    let file = file.unwrap_or_else(|| default_file.to_owned());
    match read_bounded(&file) {
        Ok(text) => from_file(&file, &text)?.apply(&mut settings, Source::File),
        Err(why) if named || why.kind() != io::ErrorKind::NotFound => {
            return error(file.display(), format_args!("cannot be read: {why}"));
        }
        Err(_) => {}
    }
    flags.apply(&mut settings, Source::Flag);

    if let Some(file) = print {
        return Ok(Command::Print { home: settings.payload_home(), file });
    }
    if check {
        return Ok(Command::Check { settings, json });
    }
    if json {
        return error("argument --json", "belongs to --check; for the log use --log json:info");
    }
    require(&mut settings)?;
    Ok(match worker {
        Some(parent) => Command::Worker { settings, parent },
        None => Command::Run(settings),
    })
}

/// What cannot be done without. An image says `once` and how long; what is started after it says what it wants instead,
/// and wins if it comes from a stronger source.
fn require(settings: &mut Settings) -> Result<(), ConfigError> {
    if settings.servers.is_empty() {
        return error("server", "is not set: say which gateway to attest to (--server HOST:PORT); see --help");
    }
    if settings.ca.is_none() {
        return error("ca", "is not set: a gateway is believed only with a pinned authority (--ca FILE)");
    }
    if settings.wants == Wants::Payload && settings.tenant_keys.is_empty() {
        return error("tenant-key", "is not set: without a pinned key no payload is accepted; or set wants to attest");
    }
    let Origins { once, timeout, wants, .. } = settings.origins;
    if settings.once && settings.wants == Wants::Attest {
        if once >= wants {
            return error("once", "ends with a payload, but wants is attest");
        }
        settings.once = false;
    }
    if settings.timeout.is_some() && !settings.once {
        if timeout == Source::Flag {
            return error("timeout", "is for once only");
        }
        settings.timeout = None;
    }
    Ok(())
}

fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE_LEN {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 64 KiB"));
    }
    fs::read_to_string(path)
}

fn from_file(path: &Path, text: &str) -> Result<Values, ConfigError> {
    let mut values = Values::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = || format!("{} line {}", path.display(), number + 1);
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name.trim_end(), value.trim()),
            // Not repeated: it may hold a join token.
            None => return error(place(), "is not of the form `name = value`"),
        };
        let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
        values.set(name, value, Source::File).or_else(|what| error(place(), what))?;
    }
    Ok(values)
}

fn from_kernel(text: &str) -> Result<Values, ConfigError> {
    let mut values = Values::default();
    for argument in KernelArguments(text) {
        let Some(setting) = argument.strip_prefix("trefoil.") else {
            continue;
        };
        let (name, value) = setting.split_once('=').unwrap_or((setting, "on"));
        let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
        // A join token is named without its value: the message may be shown on a console.
        let place = format!("kernel argument trefoil.{name}");
        values.set(name, value, Source::Kernel).or_else(|what| error(&place, what))?;
    }
    Ok(values)
}

/// Splits at blanks outside of double quotes, as the kernel does.
struct KernelArguments<'a>(&'a str);

impl<'a> Iterator for KernelArguments<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        if text.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = text
            .find(|c: char| {
                quoted ^= c == '"';
                c.is_whitespace() && !quoted
            })
            .unwrap_or(text.len());
        let (argument, rest) = text.split_at(end);
        self.0 = rest;
        Some(argument)
    }
}

/// What one source sets; what is repeated in it adds up, and replaces what a weaker source said.
#[derive(Default)]
struct Values {
    servers: Vec<ServerAddress>,
    ca: Option<PathBuf>,
    tenant_keys: Vec<PathBuf>,
    join: Option<JoinToken>,
    tcti: Option<Tcti>,
    ek: Option<EkTemplate>,
    phase_pcr: Option<u8>,
    payload_dir: Option<PathBuf>,
    keys_dir: Option<PathBuf>,
    autorun_limit: Option<Duration>,
    autorun: Option<bool>,
    once: Option<bool>,
    timeout: Option<Duration>,
    wants: Option<Wants>,
    log: Option<log::Settings>,
    boot_log: Option<PathBuf>,
    ima_log: Option<PathBuf>,
    command_line: Option<PathBuf>,
    userspace_log: Option<PathBuf>,
}

impl Values {
    fn set(&mut self, name: &str, value: &str, source: Source) -> Result<(), String> {
        if value.is_empty() {
            return Err(format!("{name} has no value"));
        }
        match name {
            "server" if self.servers.len() >= MAX_SERVERS => return Err(format!("more than {MAX_SERVERS} servers")),
            "server" => self.servers.push(server_address(value)?),
            "tenant-key" if self.tenant_keys.len() >= limits::MAX_TENANT_KEYS => {
                return Err(format!("more than {} tenant keys", limits::MAX_TENANT_KEYS));
            }
            "tenant-key" => self.tenant_keys.push(absolute(name, value)?),
            "ca" => put(&mut self.ca, name, absolute(name, value)?)?,
            "join" if source == Source::Kernel => {
                return Err(
                    "a join token is not taken from the kernel's command line: every process can read it".into()
                );
            }
            "join" => {
                let token =
                    JoinToken::from_text(value).ok_or("this is not a join token as `node add --join` prints it")?;
                put(&mut self.join, name, token)?;
            }
            "tcti" => put(&mut self.tcti, name, tcti(value)?)?,
            "ek" => {
                let ek = EkTemplate::from_name(value).ok_or("ek is p256, p384 or rsa2048")?;
                put(&mut self.ek, name, ek)?;
            }
            "phase-pcr" => {
                let pcr = value.parse().ok().filter(|pcr| (8..=15).contains(pcr));
                put(&mut self.phase_pcr, name, pcr.ok_or("phase-pcr is a number from 8 to 15")?)?;
            }
            "payload-dir" => put(&mut self.payload_dir, name, absolute(name, value)?)?,
            "autorun" => put(&mut self.autorun, name, switch(name, value)?)?,
            "once" => put(&mut self.once, name, switch(name, value)?)?,
            "timeout" => {
                let time = duration(value).ok_or("timeout is a time from 1s to 24h, for example 60s, 2m or 90")?;
                put(&mut self.timeout, name, time)?;
            }
            "wants" => {
                let wants = match value {
                    "payload" => Wants::Payload,
                    "attest" => Wants::Attest,
                    _ => return Err("wants is payload or attest".into()),
                };
                put(&mut self.wants, name, wants)?;
            }
            "log" => {
                let log = log::Settings::parse(value);
                put(
                    &mut self.log,
                    name,
                    log.ok_or("log is error, warn, info, debug or trace, with or without json:")?,
                )?;
            }
            // For tests and trials: places that are not the running system's, and less patience.
            "autorun-limit" if source == Source::Flag => {
                let seconds = value.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
                let seconds = seconds.ok_or("autorun-limit is a number of seconds, 1 to 3600")?;
                put(&mut self.autorun_limit, name, Duration::from_secs(seconds))?;
            }
            "cryptsetup-keys-dir" if source == Source::Flag => put(&mut self.keys_dir, name, absolute(name, value)?)?,
            "boot-log" if source == Source::Flag => put(&mut self.boot_log, name, value.into())?,
            "ima-log" if source == Source::Flag => put(&mut self.ima_log, name, value.into())?,
            "command-line" if source == Source::Flag => put(&mut self.command_line, name, value.into())?,
            "userspace-log" if source == Source::Flag => put(&mut self.userspace_log, name, value.into())?,
            _ => return Err(format!("there is no setting `{name}`; see --help")),
        }
        Ok(())
    }

    fn apply(self, to: &mut Settings, source: Source) {
        let from = &mut to.origins;
        for (said, origin) in [
            (!self.tenant_keys.is_empty(), &mut from.tenant_keys),
            (self.autorun.is_some(), &mut from.autorun),
            (self.once.is_some(), &mut from.once),
            (self.timeout.is_some(), &mut from.timeout),
            (self.wants.is_some(), &mut from.wants),
        ] {
            if said {
                *origin = source;
            }
        }
        if !self.servers.is_empty() {
            to.servers = self.servers;
        }
        if !self.tenant_keys.is_empty() {
            to.tenant_keys = self.tenant_keys;
        }
        to.ca = self.ca.or(to.ca.take());
        to.join = self.join.or(to.join.take());
        to.ek = self.ek.or(to.ek);
        to.timeout = self.timeout.or(to.timeout);
        replace(&mut to.tcti, self.tcti);
        replace(&mut to.phase_pcr, self.phase_pcr);
        replace(&mut to.payload_dir, self.payload_dir);
        replace(&mut to.keys_dir, self.keys_dir);
        replace(&mut to.autorun_limit, self.autorun_limit);
        replace(&mut to.autorun, self.autorun);
        replace(&mut to.once, self.once);
        replace(&mut to.wants, self.wants);
        replace(&mut to.log, self.log);
        replace(&mut to.boot_log, self.boot_log);
        replace(&mut to.ima_log, self.ima_log);
        replace(&mut to.command_line, self.command_line);
        replace(&mut to.userspace_log, self.userspace_log);
    }
}

fn replace<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

fn put<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    match slot {
        Some(_) => Err(format!("{name} is set twice")),
        None => {
            *slot = Some(value);
            Ok(())
        }
    }
}

fn switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "1" => Ok(true),
        "off" | "no" | "false" | "0" => Ok(false),
        _ => Err(format!("{name} is on or off")),
    }
}

/// A time from a second to a day: `90`, `90s`, `2m`, `1h`.
fn duration(value: &str) -> Option<Duration> {
    let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match value.get(digits.len()..)? {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let number = Some(digits).filter(|digits| digits.bytes().all(|c| c.is_ascii_digit()))?;
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (1..=86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// Paths are absolute: an agent started by init has no directory of its own.
fn absolute(name: &str, value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err(format!("{name} needs an absolute path, not `{value}`")) }
}

fn tcti(value: &str) -> Result<Tcti, String> {
    let (kind, rest) = value.split_once(':').unwrap_or((value, ""));
    match kind {
        "device" if rest.is_empty() => Ok(Tcti::Device("/dev/tpmrm0".into())),
        "device" => Ok(Tcti::Device(absolute("tcti device:", rest)?)),
        "swtpm" => {
            let (mut host, mut port) = ("127.0.0.1".to_owned(), 2321);
            for part in rest.split(',').filter(|part| !part.is_empty()) {
                match part.split_once('=') {
                    Some(("host", value)) if !value.is_empty() => host = value.to_owned(),
                    Some(("port", value)) => port = value.parse().map_err(|_| format!("tcti: `{value}` is no port"))?,
                    _ => return Err(format!("tcti: `{part}` is not host=… or port=…")),
                }
            }
            Ok(Tcti::Swtpm { host, port })
        }
        #[cfg(feature = "tss-esapi")]
        _ => Ok(Tcti::Other(value.to_owned())),
        #[cfg(not(feature = "tss-esapi"))]
        _ => Err("tcti is device:/dev/tpmrm0 or swtpm:host=HOST,port=PORT".into()),
    }
}

fn server_address(value: &str) -> Result<ServerAddress, String> {
    let wrong = |what: &str| format!("server `{value}`: {what}");
    if let Ok(ip) = value.parse::<IpAddr>() {
        return Ok(ServerAddress { name: ServerName::Ip(ip), port: DEFAULT_PORT });
    }
    let (host, port) = if let Some(rest) = value.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(|| wrong("`[` without `]`"))?;
        (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or_else(|| wrong("expected `:PORT`"))?)
    } else {
        value.split_once(':').unwrap_or((value, ""))
    };
    let port = match port {
        "" => DEFAULT_PORT,
        port => {
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("the port is a number from 1 to 65535"))?
        }
    };
    let name = match host.parse() {
        Ok(ip) => ServerName::Ip(ip),
        Err(_) => {
            let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
            if host.is_empty() || host.len() > 253 || value.starts_with('[') || !host.bytes().all(allowed) {
                return Err(wrong("is neither a name nor an address"));
            }
            ServerName::Dns(host.to_owned())
        }
    };
    Ok(ServerAddress { name, port })
}

#[cfg(test)]
mod tests;
