//! TPMs by swtpm: set up with an endorsement key and a certificate from a local CA, reachable on loopback, and treated
//! as badly as a machine's life treats a TPM: power cycles, extended PCRs, cleared hierarchies.
//!
//! Several TPMs share one [`SwtpmCa`], as machines of one vendor do. What the agent does with them is not known here.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, bail};

use crate::scratch::Scratch;
use crate::spawn::{self, Launch, Program};

/// Which endorsement keys the TPM has certificates for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EkKind {
    /// What swtpm certifies by itself: P-384 (NV 0x01c00016) and RSA-2048 (NV 0x01c00002), both persistent too.
    P384AndRsa,
    /// Only P-256 (NV 0x01c0000a), certified by the same local CA; nothing persistent.
    P256,
    /// None: the TPM of a machine whose vendor left it out.
    NoCertificate,
}

/// How a TPM loses its power.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PowerCycle {
    /// TPM2_Shutdown(CLEAR), power off, TPM2_Startup(CLEAR): a reboot. resetCount goes up, PCRs are zero.
    Reset,
    /// As [`PowerCycle::Reset`] without the shutdown: somebody pulled the plug. `clockInfo.safe` becomes NO for a while.
    PulledPlug,
    /// TPM2_Shutdown(STATE), power off, TPM2_Startup(CLEAR), a TPM Restart: restartCount goes up, PCRs are zero,
    /// resetCount stays.
    Restart,
}

/// A local CA, a root and an issuing one, that certifies endorsement keys.
#[derive(Debug)]
pub struct SwtpmCa {
    scratch: Scratch,
}

impl SwtpmCa {
    /// Makes a new CA by `swtpm_localca` (about a second: two RSA-3072 keys).
    ///
    /// # Errors
    /// When a tool is missing or fails.
    pub fn new() -> Result<Arc<Self>> {
        let scratch = Scratch::new("swtpm-ca")?;
        let dir = scratch.path();
        let state = dir.join("ca");
        fs::create_dir(&state)?;
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700))?;
        let state = state.display();
        let here = dir.display();
        fs::write(
            dir.join("localca.conf"),
            format!(
                "statedir = {state}\nsigningkey = {state}/signkey.pem\nissuercert = {state}/issuercert.pem\n\
                 certserial = {state}/certserial\n"
            ),
        )?;
        fs::write(
            dir.join("localca.options"),
            "--platform-manufacturer Trefoil\n--platform-version 1\n--platform-model scratch\n",
        )?;
        fs::write(
            dir.join("setup.conf"),
            format!(
                "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {here}/localca.conf\n\
                 create_certs_tool_options = {here}/localca.options\n"
            ),
        )?;
        // It makes its keys with its first certificate. That one is for nobody (the key is the generator of P-384, whose
        // private half is 1), and is thrown away: the CA has to be there before a server is told to trust it.
        let nobody = dir.join("nobody");
        fs::create_dir(&nobody)?;
        spawn::run(
            Command::new("swtpm_localca")
                .args(["--type", "ek", "--ek", P384_GENERATOR, "--vmid", "nobody", "--tpm2", "--dir"])
                .arg(&nobody)
                .args(["--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164"])
                .args(["--tpm-manufacturer", "id:00001014", "--tpm-model", "swtpm", "--tpm-version", "id:20191023"])
                .arg("--configfile")
                .arg(dir.join("localca.conf"))
                .arg("--optsfile")
                .arg(dir.join("localca.options")),
        )
        .context("swtpm_localca could not make its CA")?;
        let roots = dir.join("ek-roots");
        fs::create_dir(&roots)?;
        fs::copy(dir.join("ca/swtpm-localca-rootca-cert.pem"), roots.join("root.pem"))?;
        fs::copy(dir.join("ca/issuercert.pem"), roots.join("issuer.pem"))?;
        Ok(Arc::new(Self { scratch }))
    }

    /// A directory with the certificates of the root and the issuing CA, for `--ek-roots`.
    pub fn roots_dir(&self) -> PathBuf {
        self.scratch.path().join("ek-roots")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

/// A running TPM. Dropping it ends the process and removes its state.
#[derive(Debug)]
pub struct Swtpm {
    kind: EkKind,
    ca: Arc<SwtpmCa>,
    scratch: Scratch,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    /// `None` only between the end of one process and the start of the next.
    process: Option<Program>,
    port: u16,
}

impl Swtpm {
    /// Sets up and starts a TPM with a CA of its own.
    ///
    /// # Errors
    /// When a tool is missing or fails, or no port is free.
    pub fn start(kind: EkKind) -> Result<Self> {
        Self::start_with(kind, &SwtpmCa::new()?)
    }

    /// Sets up and starts a TPM whose endorsement keys `ca` certifies (under a second).
    ///
    /// # Errors
    /// As [`Swtpm::start`].
    pub fn start_with(kind: EkKind, ca: &Arc<SwtpmCa>) -> Result<Self> {
        let scratch = Scratch::new("swtpm")?;
        let state = scratch.path().join("state");
        fs::create_dir(&state)?;
        let mut setup = Command::new("swtpm_setup");
        setup.args(["--tpm2", "--pcr-banks", "sha1,sha256", "--overwrite", "--tpmstate"]).arg(&state);
        setup.arg("--config").arg(ca.file("setup.conf"));
        if kind == EkKind::P384AndRsa {
            setup.args(["--create-ek-cert", "--lock-nvram"]);
        }
        spawn::run(&mut setup).context("swtpm_setup failed")?;
        let (process, port) = start_process(scratch.path(), None)?;
        let tpm =
            Self { kind, ca: Arc::clone(ca), scratch, running: Mutex::new(Running { process: Some(process), port }) };
        if kind == EkKind::P256 {
            tpm.certify_p256().context("certifying a P-256 endorsement key")?;
        }
        Ok(tpm)
    }

    /// Sets up and starts `count` TPMs at once; most of the time is RSA key generation, so it pays on every core.
    ///
    /// # Errors
    /// The first error of any of them.
    pub fn start_many(kind: EkKind, count: usize, ca: &Arc<SwtpmCa>) -> Result<Vec<Self>> {
        thread::scope(|scope| {
            let starting: Vec<_> = (0..count).map(|_| scope.spawn(|| Self::start_with(kind, ca))).collect();
            starting
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|_| Err(anyhow!("setting up a TPM panicked"))))
                .collect()
        })
    }

    /// Which certificates it has.
    pub fn kind(&self) -> EkKind {
        self.kind
    }

    /// The CA that certified its endorsement keys.
    pub fn ca(&self) -> &Arc<SwtpmCa> {
        &self.ca
    }

    /// A directory with the CA's certificates, for `--ek-roots`.
    pub fn roots_dir(&self) -> PathBuf {
        self.ca.roots_dir()
    }

    /// Where the TPM answers: raw TPM commands over TCP, one client at a time.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.lock().port))
    }

    /// The agent's `tcti` setting for it; the same text serves the TSS.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.lock().port)
    }

    /// Runs one of the tpm2-tools (`tpm2_pcrread`, …) against it, in its scratch directory, and gives what it printed.
    ///
    /// # Errors
    /// When the tool is missing or fails; what it printed is in the message.
    pub fn tpm2(&self, tool: &str, arguments: &[&str]) -> Result<String> {
        spawn::run(
            Command::new(tool).args(arguments).current_dir(self.scratch.path()).env("TPM2TOOLS_TCTI", self.tcti()),
        )
    }

    /// A directory for files that [`Swtpm::tpm2`] reads and writes by plain names.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Sends one TPM command and gives the response, header included.
    ///
    /// # Errors
    /// When the connection fails, or nothing comes within ten seconds.
    pub fn command(&self, command: &[u8]) -> Result<Vec<u8>> {
        let mut stream = connect(self.lock().port)?;
        stream.write_all(command)?;
        let mut header = [0u8; 10];
        stream.read_exact(&mut header).context("no response from the TPM")?;
        let [_, _, a, b, c, d, ..] = header;
        let len = u32::from_be_bytes([a, b, c, d]);
        let rest = (len as usize).checked_sub(header.len()).filter(|&rest| rest <= 8192);
        let mut response = header.to_vec();
        response.resize(header.len() + rest.ok_or_else(|| anyhow!("TPM response of {len} bytes"))?, 0);
        stream.read_exact(response.get_mut(header.len()..).unwrap_or_default())?;
        Ok(response)
    }

    /// A reboot as the TPM sees it: [`PowerCycle::Reset`].
    ///
    /// # Errors
    /// As [`Swtpm::power_cycle`].
    pub fn reset(&self) -> Result<()> {
        self.power_cycle(PowerCycle::Reset)
    }

    /// Takes the TPM's power and gives it back; the process stays.
    ///
    /// # Errors
    /// When the TPM refuses to shut down or start, or its control channel does not answer.
    pub fn power_cycle(&self, how: PowerCycle) -> Result<()> {
        match how {
            PowerCycle::Reset => self.must(&SHUTDOWN_CLEAR, "TPM2_Shutdown(CLEAR)")?,
            PowerCycle::Restart => self.must(&SHUTDOWN_STATE, "TPM2_Shutdown(STATE)")?,
            PowerCycle::PulledPlug => {}
        }
        self.control(CMD_INIT, &[0; 4])?;
        self.must(&STARTUP_CLEAR, "TPM2_Startup(CLEAR)")
    }

    /// Ends the swtpm process properly and starts another on the same state and port: a reboot too.
    ///
    /// # Errors
    /// When it does not end, or does not come back.
    pub fn restart_process(&self) -> Result<()> {
        self.must(&SHUTDOWN_CLEAR, "TPM2_Shutdown(CLEAR)")?;
        self.control(CMD_SHUTDOWN, &[])?;
        let mut running = self.lock();
        if let Some(process) = running.process.take() {
            process.wait_exit(Duration::from_secs(5))?;
        }
        let (process, port) = start_process(self.scratch.path(), Some(running.port))?;
        running.process = Some(process);
        running.port = port;
        Ok(())
    }

    /// Becomes the TPM of an emulated machine: the process that answered on TCP ends, properly the first time, and another
    /// on the same state waits for QEMU at the UNIX socket `at`. What takes commands over TCP does not work from then on.
    ///
    /// # Errors
    /// When a process does not end or start.
    pub fn serve_machine(&self, at: &Path) -> Result<()> {
        if self.lock().port != 0 {
            self.must(&SHUTDOWN_CLEAR, "TPM2_Shutdown(CLEAR)")?;
            self.control(CMD_SHUTDOWN, &[])?;
        }
        let mut running = self.lock();
        if let Some(process) = running.process.take() {
            // One that served a machine has lost it, and waits for another.
            let end = if running.port == 0 {
                process.stop(Duration::from_secs(5))
            } else {
                process.wait_exit(Duration::from_secs(5))
            };
            end.context("the TPM's process does not end")?;
        }
        running.port = 0;
        let _ = fs::remove_file(at);
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", self.scratch.path().join("state").display()));
        command.arg("--ctrl").arg(format!("type=unixio,path={}", at.display()));
        let process = Program::start(Launch::new("swtpm", command))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !at.exists() {
            if Instant::now() >= deadline || !process.is_running() {
                bail!("swtpm does not listen at {}; {}", at.display(), process.tail(5));
            }
            thread::sleep(Duration::from_millis(5));
        }
        running.process = Some(process);
        Ok(())
    }

    /// Holds the TPM where it is: a TPM that does not answer. [`Swtpm::thaw`] ends it.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn freeze(&self) -> Result<()> {
        self.signal(crate::sys::SIGSTOP)
    }

    /// Ends [`Swtpm::freeze`].
    ///
    /// # Errors
    /// When the process has ended.
    pub fn thaw(&self) -> Result<()> {
        self.signal(crate::sys::SIGCONT)
    }

    /// Extends a PCR's SHA-256 bank with a digest of 64 hex digits (`tpm2_pcrextend`), as malware or firmware would.
    ///
    /// # Errors
    /// As [`Swtpm::tpm2`].
    pub fn pcr_extend(&self, index: u32, digest_hex: &str) -> Result<()> {
        self.tpm2("tpm2_pcrextend", &[&format!("{index}:sha256={digest_hex}")]).map(drop)
    }

    /// Extends PCRs 0 to 7 of both banks with made-up digests, since swtpm has no firmware that would: after it the
    /// node measures like a machine that booted. The same each time.
    ///
    /// # Errors
    /// As [`Swtpm::tpm2`].
    pub fn play_firmware(&self) -> Result<()> {
        let extends: Vec<String> = (0..8u8)
            .map(|index| {
                format!("{index}:sha1={},sha256={}", hex::encode([index + 1; 20]), hex::encode([index + 1; 32]))
            })
            .collect();
        let arguments: Vec<&str> = extends.iter().map(String::as_str).collect();
        self.tpm2("tpm2_pcrextend", &arguments).map(drop)
    }

    /// Reads a PCR of the SHA-256 bank as 64 lower-case hex digits.
    ///
    /// # Errors
    /// As [`Swtpm::tpm2`]; also when the tool's answer holds no such value.
    pub fn pcr(&self, index: u32) -> Result<String> {
        let text = self.tpm2("tpm2_pcrread", &[&format!("sha256:{index}")])?;
        let value = text.rsplit("0x").next().map(|value| value.trim().to_ascii_lowercase());
        value.filter(|value| value.len() == 64).ok_or_else(|| anyhow!("tpm2_pcrread said {text}"))
    }

    /// TPM2_Clear by platform authorization: counters go back to zero, the endorsement seed stays.
    ///
    /// # Errors
    /// As [`Swtpm::tpm2`].
    pub fn clear(&self) -> Result<()> {
        self.tpm2("tpm2_clear", &["-c", "p"]).map(drop)
    }

    /// TPM2_ChangeEPS: the endorsement seed is made anew, so the EK and the AK are others: a genuine TPM that is not
    /// the one that was admitted.
    ///
    /// # Errors
    /// As [`Swtpm::tpm2`].
    pub fn change_endorsement_seed(&self) -> Result<()> {
        self.tpm2("tpm2_changeeps", &[]).map(drop)
    }

    /// resetCount and restartCount.
    ///
    /// # Errors
    /// As [`Swtpm::tpm2`]; also when the tool's answer does not hold them.
    pub fn counters(&self) -> Result<(u32, u32)> {
        let text = self.tpm2("tpm2_readclock", &[])?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok()).ok_or_else(|| anyhow!("tpm2_readclock said {text}"))
        };
        Ok((field("reset_count:")?, field("restart_count:")?))
    }

    fn must(&self, command: &[u8], what: &str) -> Result<()> {
        let response = self.command(command).context(what.to_owned())?;
        match response.get(6..10) {
            Some([0, 0, 0, 0]) => Ok(()),
            code => bail!("{what}: response code {}", hex::encode(code.unwrap_or_default())),
        }
    }

    /// One command of swtpm's control channel; its answer begins with a result code.
    fn control(&self, command: u32, body: &[u8]) -> Result<()> {
        let port = self.lock().port;
        let mut stream = connect(port + 1)?;
        stream.write_all(&[&command.to_be_bytes(), body].concat())?;
        let mut result = [0u8; 4];
        stream.read_exact(&mut result).context("no answer from swtpm's control channel")?;
        if result != [0; 4] {
            bail!("swtpm's control channel answers {} to command {command}", hex::encode(result));
        }
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<()> {
        let running = self.lock();
        running.process.as_ref().ok_or_else(|| anyhow!("swtpm does not run"))?.signal(signal)
    }

    /// Creates the P-256 endorsement key of the TCG template, has the local CA certify it, and stores the certificate
    /// where TPM vendors do.
    fn certify_p256(&self) -> Result<()> {
        let dir = self.scratch.path();
        self.tpm2("tpm2_createek", &["-Q", "-G", "ecc", "-c", "ek.ctx", "-u", "ek.pem", "-f", "pem"])?;
        self.tpm2("tpm2_flushcontext", &["-t"])?;
        fs::write(dir.join("ek.cnf"), P256_EK_CERTIFICATE)?;
        let openssl = |arguments: &[&str]| spawn::run(Command::new("openssl").args(arguments).current_dir(dir));
        // The request is signed by a throw-away key: an endorsement key cannot sign. `-force_pubkey` puts it in.
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "request.key"])?;
        openssl(&["req", "-new", "-key", "request.key", "-subj", "/", "-config", "ek.cnf", "-out", "request.pem"])?;
        let (issuer, key) = (self.ca.file("ca/issuercert.pem"), self.ca.file("ca/signkey.pem"));
        let serial = format!("0x{}", hex::encode(unique_serial()));
        spawn::run(
            Command::new("openssl")
                .args(["x509", "-req", "-in", "request.pem", "-force_pubkey", "ek.pem", "-CA"])
                .arg(issuer)
                .arg("-CAkey")
                .arg(key)
                .args(["-set_serial", &serial, "-days", "3650", "-sha256", "-extfile", "ek.cnf"])
                .args(["-extensions", "ek", "-outform", "DER", "-out", "ek.der"])
                // Also the program's own configuration: from `-extfile` alone it does not learn the TCG's names.
                .env("OPENSSL_CONF", dir.join("ek.cnf"))
                .current_dir(dir),
        )?;
        let size = fs::metadata(dir.join("ek.der"))?.len().to_string();
        let attributes = "ppwrite|ppread|ownerread|authread|no_da|platformcreate|writedefine";
        self.tpm2("tpm2_nvdefine", &["0x1c0000a", "-Q", "-C", "p", "-s", &size, "-a", attributes])?;
        self.tpm2("tpm2_nvwrite", &["0x1c0000a", "-Q", "-C", "p", "-i", "ek.der"])?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the process on `wanted`, or on the first pair of free ports: the TSS expects the control channel one above.
fn start_process(dir: &Path, wanted: Option<u16>) -> Result<(Program, u16)> {
    let mut last_error = anyhow!("no free port");
    for _ in 0..40 {
        let port = match wanted {
            Some(port) => port,
            None => free_pair()?,
        };
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", dir.join("state").display()))
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)]);
        let process = Program::start(Launch::new("swtpm", command))?;
        match wait_ready(&process, port) {
            Ok(()) => return Ok((process, port)),
            // Somebody was faster at the port: another one. At a wanted port the last owner may be just leaving.
            Err(error) => last_error = error,
        }
        thread::sleep(Duration::from_millis(if wanted.is_some() { 50 } else { 0 }));
    }
    Err(last_error.context("swtpm does not start"))
}

/// Waits until both ports answer; the last thing swtpm does before it serves is to listen.
fn wait_ready(process: &Program, port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if !process.is_running() {
            bail!("swtpm ended at once; {}", process.tail(5));
        }
        if connect(port + 1).is_ok() && connect(port).is_ok() && process.is_running() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
    bail!("swtpm does not listen on port {port}; {}", process.tail(5))
}

/// Two neighbouring ports that nobody listens on, below the range from which the kernel takes outgoing ones.
fn free_pair() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes begin at different places, so that they rarely meet.
    let begin = std::process::id() as u16;
    for _ in 0..2000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + begin.wrapping_mul(61).wrapping_add(step) % 6_000 * 2;
        let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free(port) && free(port + 1) {
            return Ok(port);
        }
    }
    bail!("no two neighbouring loopback ports are free between 20000 and 32000")
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Serial numbers only have to differ within one CA, which lives as long as this process or shorter.
fn unique_serial() -> [u8; 8] {
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    // Positive, and never 0.
    (nanos & 0x7fff_ffff_ffff_ffff | 1).to_be_bytes()
}

/// The base point of P-384, as `swtpm_localca --ek` takes a public key.
const P384_GENERATOR: &str = "x=aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7,\
     y=3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f,id=secp384r1";

/// What a P-256 EK certificate says besides its key: TCG EK Credential Profile, sections on SAN, key usage and EKU.
/// The subject is empty and the SAN critical, as in real ones.
const P256_EK_CERTIFICATE: &str = "\
openssl_conf = names
[names]
oid_section = tcg
[tcg]
tcg_tpm_manufacturer = 2.23.133.2.1
tcg_tpm_model = 2.23.133.2.2
tcg_tpm_version = 2.23.133.2.3
[req]
distinguished_name = empty
[empty]
[ek]
basicConstraints = critical,CA:FALSE
keyUsage = critical,keyAgreement
extendedKeyUsage = 2.23.133.8.1
subjectAltName = critical,dirName:tpm
authorityKeyIdentifier = keyid
[tpm]
tcg_tpm_manufacturer = id:00001014
tcg_tpm_model = swtpm
tcg_tpm_version = id:20191023
";

/// swtpm's control channel (swtpm_ioctl(8)): the TPM is powered on anew.
const CMD_INIT: u32 = 2;
/// The process ends.
const CMD_SHUTDOWN: u32 = 3;

/// TPM2_Startup(TPM_SU_CLEAR), TPM 2.0 part 3.
const STARTUP_CLEAR: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];
/// TPM2_Shutdown(TPM_SU_CLEAR).
const SHUTDOWN_CLEAR: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 0];
/// TPM2_Shutdown(TPM_SU_STATE).
const SHUTDOWN_STATE: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 1];
