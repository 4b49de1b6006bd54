//! A private Postgres cluster: own directory, own port, own socket; gone when dropped. It runs with fsync on, as a real
//! one does: what the stores promise about a `kill -9` of our program is tested against the real thing.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::apt;
use crate::scratch::Scratch;
use crate::spawn::{self, Launch, Program};
use crate::sys;

/// A running cluster. Dropping it is an immediate shutdown, and removes it.
#[derive(Debug)]
pub struct Postgres {
    /// Before the scratch directory, so that the server ends first.
    server: Program,
    port: u16,
    bin: PathBuf,
    databases: AtomicU32,
    scratch: Scratch,
}

impl Postgres {
    /// Initialises and starts a cluster (two to three seconds). As root it runs as the system user `postgres`, since
    /// Postgres refuses to be root.
    ///
    /// # Errors
    /// When no server is installed, or it does not start: its log is in the message.
    pub fn start() -> Result<Self> {
        let bin = apt::postgres_bin_dir().ok_or_else(|| {
            anyhow!(
                "no Postgres server is installed; on Debian: sudo apt-get install --no-install-recommends postgresql"
            )
        })?;
        let scratch = Scratch::new("postgres")?;
        let user = if sys::is_root() { Some(postgres_user()?) } else { None };
        let dir = scratch.path();
        let (data, sockets) = (dir.join("data"), dir.join("s"));
        for path in [&data, &sockets] {
            fs::create_dir(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
            if let Some((uid, gid)) = user {
                chown(path, Some(uid), Some(gid))?;
            }
        }
        let program = |name: &str| {
            let mut command = Command::new(bin.join(name));
            command.current_dir(&data).env("LC_ALL", "C.UTF-8");
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        spawn::run(
            program("initdb")
                .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
                .arg(&data),
        )
        .context("initdb failed")?;
        for _ in 0..20 {
            let port = free_port()?;
            let mut command = program("postgres");
            command
                .arg("-D")
                .arg(&data)
                .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c"])
                .arg(format!("unix_socket_directories={}", sockets.display()))
                .args(["-c", "max_connections=200", "-c", "log_min_messages=warning"]);
            let launch = Launch { end_signal: sys::SIGQUIT, ..Launch::new("postgres", command) };
            let server = Program::start(launch)?;
            if wait_ready(&server, &bin, port)? {
                return Ok(Self { server, port, bin, databases: AtomicU32::new(0), scratch });
            }
        }
        bail!("Postgres found no free port")
    }

    /// Where a client of this machine finds `database`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a new empty database and gives its URL.
    ///
    /// # Errors
    /// When the server refuses, or has ended.
    pub fn create_database(&self) -> Result<String> {
        let name = format!("t{}_{}", std::process::id(), self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(self.url(&name))
    }

    /// Runs one statement by psql and gives its rows, unaligned.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres"]);
        psql.args(["-p", &self.port.to_string(), "-d", database, "-c", statement]);
        Ok(spawn::run(&mut psql)?.trim_end().to_owned())
    }

    /// Where the cluster's files are, for a search through what a stolen disk would hold.
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The server itself.
    pub fn server(&self) -> &Program {
        &self.server
    }
}

/// `false` when the server ended because somebody was faster at the port.
fn wait_ready(server: &Program, bin: &std::path::Path, port: u16) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if !server.is_running() {
            let said = server.tail(10);
            if said.contains("could not create any TCP/IP sockets") || said.contains("Address already in use") {
                return Ok(false);
            }
            bail!("Postgres ended at once\n{said}");
        }
        let mut ready = Command::new(bin.join("pg_isready"));
        ready.args(["-q", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p", &port.to_string()]);
        if spawn::run(&mut ready).is_ok() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("Postgres is not ready after 30 s\n{}", server.tail(10))
}

/// User and group id of the system user that Debian's package makes.
fn postgres_user() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let entry = passwd.lines().find(|line| line.starts_with("postgres:"));
    let mut ids = entry.into_iter().flat_map(|line| line.split(':').skip(2)).map_while(|id| id.parse::<u32>().ok());
    match (ids.next(), ids.next()) {
        (Some(uid), Some(gid)) if uid != 0 => Ok((uid, gid)),
        _ => bail!("there is no user called postgres, and Postgres refuses to run as root"),
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr())?.port())
}
