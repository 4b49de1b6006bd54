//! Others' software: libcoap and aiocoap as peers of the gateway, tpm2-tools as judge of our quotes and credentials.
//!
//! What both of our own ends get wrong in the same way, only somebody else's code can tell.

mod hostile;
mod misled;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use hil_tests::apt::find_program;
use hil_tests::rig;
use hil_tests::rogue::client::{selection_list, value_list};
use hil_tests::rogue::server::{ChallengeSpec, RogueCa, selection};
use hil_tests::rogue::tpm::{KeySpec, RogueTpm};
use hil_tests::spawn;
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use hostile::{Bench, booted};
use misled::Scene;
use protocol::bytes::{Array, Bytes};
use protocol::crypto::bind;
use protocol::id::Role;
use protocol::message;
use protocol::message::VERSION;
use protocol::message::attest::{Challenge, PcrValueList, Purpose};
use protocol::message::enrol::{Credential, Hello, HelloAnswer, Wants};
use protocol::tpm::alg::HashAlg;
use protocol::tpm::credential::make_credential;
use protocol::tpm::public::{Name, TpmtPublic};
use protocol::tpm::template::{AkKind, EkTemplate};
use rand_core::{OsRng, RngCore};

/// What the gateway says it offers, whoever asks: RFC 6690.
const LINKS: &str = "</v1/hello>,</v1/enrol>,</v1/activate>,</v1/manifest>,</v1/payload>,</v1/confirm>,</v1/report>";

fn libcoap_reads_the_links(name: &str) -> Result<()> {
    need_tpm!();
    let Some(client) = find_program(name) else {
        println!("skipped: not installed: libcoap3-bin ({name})");
        return Ok(());
    };
    let bench = Bench::shared()?;
    let url = format!("coaps+tcp://localhost:{}/.well-known/core", bench.rig.gateway().port());
    let ask = |ca: &Path| spawn::run(Command::new(&client).args(["-B", "20", "-m", "get", "-R"]).arg(ca).arg(&url));
    let said = ask(&bench.rig.operator_dir().join("server-ca.pem"))?;
    ensure!(said.trim() == LINKS, "{} got {said:?}", client.display());
    // What it trusts is what it was told: by another authority it gets nothing.
    let other = RogueCa::new("another CA")?.write_pem(&fresh_dir(bench.rig.dir(), name)?)?;
    ensure!(!ask(&other).unwrap_or_default().contains("/v1/"), "the client does not look at the certificate");
    Ok(())
}

#[test]
fn libcoap_on_openssl_reads_the_gateways_links() -> Result<()> {
    libcoap_reads_the_links("coap-client-openssl")
}

#[test]
fn libcoap_on_gnutls_reads_the_gateways_links() -> Result<()> {
    libcoap_reads_the_links("coap-client-gnutls")
}

#[test]
fn aiocoap_reads_the_gateways_links() -> Result<()> {
    need_tpm!();
    let Some(python) = aiocoap() else { return Ok(()) };
    let bench = Bench::shared()?;
    let said = peer(python, &bench, None)?;
    ensure!(said == [format!("answer 2.05 {}", hex::encode(LINKS))], "{said:?}");
    Ok(())
}

#[test]
fn aiocoap_is_challenged_on_the_connection_it_made_and_its_nonsense_is_refused() -> Result<()> {
    need_tpm!();
    let Some(python) = aiocoap() else { return Ok(()) };
    let bench = Bench::shared()?;
    let rightful = bench.rightful()?;
    let mark = bench.mark()?;
    // A stranger may say hello in anybody's name: it is the answer to the challenge that proves something.
    let hello = Hello {
        version: VERSION,
        node_id: rightful.node_id(),
        ak_name: Array(rightful.identity.ak_name),
        wants: Wants::Attest,
        has_boot_log: false,
        has_ima_log: false,
    };
    let said = peer(python, &bench, Some(&hex::encode(message::to_vec(&hello)?)))?;
    // The answer and the challenge cross on the way, in either order.
    let known = format!("answer 2.05 {}", hex::encode(message::to_vec(&HelloAnswer::Known)?));
    ensure!(said.contains(&known), "{said:?}");
    let challenge = said.iter().find_map(|line| line.strip_prefix("challenge ")).context("it was not challenged")?;
    let challenge: Challenge = message::decode(&hex::decode(challenge)?)?;
    ensure!(challenge.role == Role::Verifier && challenge.purpose == Purpose::Attest, "{challenge:?}");
    ensure!(said.last().is_some_and(|line| line == "over"), "its connection was not ended: {said:?}");
    bench.expect(&mark, rightful.node_id(), "verifier", "bad_evidence")?;
    ensure!(bench.releases(&rightful.name)?.len() == 2, "something left besides the rightful node's own two shares");
    rightful.is_unharmed(&bench, &mark)
}

#[test]
fn tpm2_checkquote_accepts_the_agents_quotes_and_none_that_was_altered() -> Result<()> {
    need_stage!();
    let mut scene = Scene::new("checkquote")?;
    scene.start()?;
    let mut session = scene.session()?;
    let enrol = session.record.enrols.first().context("the agent enrolled nothing")?;
    let ak = TpmtPublic::decode(&enrol.ak_public)?;
    let tpm = booted(EkKind::NoCertificate, &SwtpmCa::new()?)?;
    for (role, purpose) in
        [(Role::Verifier, Purpose::Bootstrap), (Role::Tenant, Purpose::Bootstrap), (Role::Verifier, Purpose::Attest)]
    {
        let spec = ChallengeSpec::new(role, purpose).over(&[(HashAlg::Sha256, 0x20ff)]);
        let answered = session.challenge(&spec)?;
        let evidence = &answered.evidence;
        ensure!(!evidence.pcrs_from_base && evidence.pcrs.len() == 9, "{:?}", evidence.pcrs);
        let nk = evidence.nk_public.as_ref().map(|nk| &nk.0);
        let nonces = [(role, answered.challenge.nonce.0)];
        let certificate = scene.gateway.server_certificate();
        let bound = bind::qualifying_data(purpose as u8, session.node_id()?, nk, &certificate, &nonces)?;
        let quote = CheckQuote {
            oracle: &tpm,
            ak: &ak,
            attested: &evidence.attested,
            signature: &evidence.signature,
            pcrs: &evidence.pcrs,
            qualifying_data: &bound,
            hash: "sha256",
        };
        quote.is_accepted().with_context(|| format!("{role:?} {purpose:?}"))?;
        quote.is_the_only_one_accepted()?;
    }
    Ok(())
}

#[test]
fn tpm2_checkquote_accepts_quotes_by_every_kind_of_ak() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let tpm = bench.tpm(EkKind::NoCertificate)?;
    let rogue = RogueTpm::of(&tpm);
    let selection = selection_list(&selection(&[(HashAlg::Sha256, 0x00ff)]))?;
    for (kind, hash) in [(AkKind::P256, "sha256"), (AkKind::P384, "sha384"), (AkKind::Rsa2048, "sha256")] {
        let spec = KeySpec::ak(kind);
        let mut batch = rogue.open()?;
        let ak = batch.create(&spec)?;
        batch.flush(ak.handle)?;
        drop(batch);
        let mut nonce = [0; 32];
        OsRng.fill_bytes(&mut nonce);
        let (quote, values) = rogue.quote(&spec, &nonce, &selection)?;
        let quote = CheckQuote {
            oracle: &tpm,
            ak: &ak.public,
            attested: &quote.attested,
            signature: &quote.signature,
            pcrs: &value_list(&values)?,
            qualifying_data: &nonce,
            hash,
        };
        quote.is_accepted().with_context(|| format!("{kind:?}"))?;
        quote.is_the_only_one_accepted()?;
    }
    Ok(())
}

#[test]
fn tpm2_activatecredential_opens_our_credentials_for_every_kind_of_ek() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let tpm = bench.tpm(EkKind::NoCertificate)?;
    let rogue = RogueTpm::of(&tpm);
    for kind in EkTemplate::TRIED {
        let identity = rogue.identity(kind, &KeySpec::ak(AkKind::P256))?;
        let ek = TpmtPublic::decode(&identity.ek_public)?;
        let mut secret = [0; 32];
        OsRng.fill_bytes(&mut secret);
        let ours = make_credential(&ek, &Name::decode(&identity.ak_name)?, &secret, &mut OsRng)?;
        fs::write(tpm.dir().join("credential.blob"), credential_file(&ours.id_object, &ours.encrypted_secret))?;
        let opened = activate_by_tools(&tpm, &identity.ek, &identity.ak).with_context(|| format!("{kind:?}"))?;
        ensure!(opened == secret, "{kind:?}: another secret came out");
        // For another Name than the one it was made for it stays shut.
        let other = KeySpec::ak(AkKind::P256).unique(b"another")?;
        ensure!(activate_by_tools(&tpm, &identity.ek, &other).is_err(), "{kind:?}: it opens for any object");
    }
    Ok(())
}

#[test]
fn our_tpm_commands_open_what_tpm2_makecredential_made_for_every_kind_of_ek() -> Result<()> {
    need_tpm!();
    let bench = Bench::shared()?;
    let tpm = bench.tpm(EkKind::NoCertificate)?;
    let rogue = RogueTpm::of(&tpm);
    for kind in EkTemplate::TRIED {
        let identity = rogue.identity(kind, &KeySpec::ak(AkKind::P256))?;
        let mut secret = [0; 32];
        OsRng.fill_bytes(&mut secret);
        // A TPM2B_PUBLIC, as its tools exchange keys.
        fs::write(tpm.dir().join("ek.pub"), sized(&identity.ek_public))?;
        fs::write(tpm.dir().join("secret"), secret)?;
        let name = hex::encode(identity.ak_name);
        let arguments = ["-Q", "-e", "ek.pub", "-s", "secret", "-n", &name, "-o", "made.blob"];
        tpm.tpm2("tpm2_makecredential", &arguments).with_context(|| format!("{kind:?}"))?;
        let theirs = read_credential_file(&fs::read(tpm.dir().join("made.blob"))?)?;
        let opened = rogue.activate(&identity, &theirs).with_context(|| format!("{kind:?}"))?;
        ensure!(*opened.expose() == secret, "{kind:?}: another secret came out");
    }
    Ok(())
}

/// A quote, and all that `tpm2_checkquote` wants to know about it.
#[derive(Clone, Copy)]
struct CheckQuote<'a> {
    /// Where the tool may leave its files; its TPM is not asked.
    oracle: &'a Swtpm,
    ak: &'a TpmtPublic,
    attested: &'a [u8],
    signature: &'a [u8],
    pcrs: &'a PcrValueList,
    qualifying_data: &'a [u8],
    /// Of the AK's scheme.
    hash: &'a str,
}

impl CheckQuote<'_> {
    /// Signature, qualifying data and PCR values hold together.
    fn is_accepted(&self) -> Result<()> {
        let dir = self.oracle.dir();
        fs::write(dir.join("ak.der"), self.ak.spki_der()?)?;
        let der = ["pkey", "-pubin", "-inform", "DER", "-in", "ak.der", "-out", "ak.pem"];
        spawn::run(Command::new("openssl").args(der).current_dir(dir))?;
        fs::write(dir.join("quote.msg"), self.attested)?;
        fs::write(dir.join("quote.sig"), self.signature)?;
        fs::write(dir.join("quote.pcrs"), values_file(self.pcrs)?)?;
        let nonce = hex::encode(self.qualifying_data);
        let arguments = ["-u", "ak.pem", "-m", "quote.msg", "-s", "quote.sig", "-f", "quote.pcrs"];
        let arguments = [arguments.as_slice(), &["-g", self.hash, "-q", &nonce]].concat();
        self.oracle.tpm2("tpm2_checkquote", &arguments).map(drop)
    }

    /// The tool does look: one byte changed anywhere, and it refuses.
    fn is_the_only_one_accepted(&self) -> Result<()> {
        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            bytes
        };
        let mut pcrs = self.pcrs.clone();
        let first = pcrs.first_mut().context("no PCR")?;
        first.digest = Bytes::new(&flipped(&first.digest))?;
        let (attested, signature, nonce) =
            (flipped(self.attested), flipped(self.signature), flipped(self.qualifying_data));
        for (what, altered) in [
            ("attested", CheckQuote { attested: &attested, ..*self }),
            ("signature", CheckQuote { signature: &signature, ..*self }),
            ("qualifying data", CheckQuote { qualifying_data: &nonce, ..*self }),
            ("PCR value", CheckQuote { pcrs: &pcrs, ..*self }),
        ] {
            ensure!(altered.is_accepted().is_err(), "tpm2_checkquote accepts a quote with another {what}");
        }
        Ok(())
    }
}

/// PCR values of the SHA-256 bank as `tpm2_quote -o` leaves them: a TPML_PCR_SELECTION and TPML_DIGESTs of eight, as they
/// lie in the memory of a little-endian machine.
fn values_file(pcrs: &PcrValueList) -> Result<Vec<u8>> {
    const BANKS: usize = 16;
    const DIGESTS: usize = 8;
    const DIGEST_LEN: usize = 2 + 64;
    let mut mask = 0u32;
    for value in pcrs {
        ensure!(value.bank == HashAlg::Sha256.id(), "a value of another bank");
        mask |= 1 << value.index;
    }
    let mut file = 1u32.to_le_bytes().to_vec();
    file.extend_from_slice(&HashAlg::Sha256.id().to_le_bytes());
    file.push(3);
    file.extend_from_slice(&mask.to_le_bytes());
    file.resize(4 + BANKS * 8, 0);
    let lists = pcrs.chunks(DIGESTS);
    file.extend_from_slice(&u32::try_from(lists.len())?.to_le_bytes());
    for list in lists {
        let end = file.len() + 4 + DIGESTS * DIGEST_LEN;
        file.extend_from_slice(&u32::try_from(list.len())?.to_le_bytes());
        for value in list {
            let next = file.len() + DIGEST_LEN;
            file.extend_from_slice(&u16::try_from(value.digest.len())?.to_le_bytes());
            file.extend_from_slice(&value.digest);
            file.resize(next, 0);
        }
        file.resize(end, 0);
    }
    Ok(file)
}

/// Opens `credential.blob` by the tools, with these two keys. They stay loaded between one client and the next.
fn activate_by_tools(tpm: &Swtpm, ek: &KeySpec, ak: &KeySpec) -> Result<Vec<u8>> {
    let mut batch = RogueTpm::of(tpm).open()?;
    let (ek, ak) = (batch.create(ek)?, batch.create(ak)?);
    drop(batch);
    let (ek_handle, ak_handle) = (format!("0x{:x}", ek.handle), format!("0x{:x}", ak.handle));
    // The EK's policy: whoever may use the endorsement hierarchy may use the key.
    tpm.tpm2("tpm2_startauthsession", &["-Q", "--policy-session", "-S", "policy.ctx"])?;
    tpm.tpm2("tpm2_policysecret", &["-Q", "-S", "policy.ctx", "-c", "e"])?;
    let arguments = ["-Q", "-c", &ak_handle, "-C", &ek_handle, "-i", "credential.blob", "-o", "opened"];
    let by_password = ek.public.attributes.0 & USER_WITH_AUTH != 0;
    let arguments = [arguments.as_slice(), if by_password { &[] } else { &["-P", "session:policy.ctx"] }].concat();
    tpm.tpm2("tpm2_activatecredential", &arguments)?;
    Ok(fs::read(tpm.dir().join("opened"))?)
}

/// A TPM2B.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// A credential as tpm2-tools keep it in a file: magic, version, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET.
fn credential_file(id_object: &[u8], encrypted_secret: &[u8]) -> Vec<u8> {
    [CREDENTIAL_MAGIC.as_slice(), &sized(id_object), &sized(encrypted_secret)].concat()
}

fn read_credential_file(bytes: &[u8]) -> Result<Credential> {
    fn take(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
        let (len, rest) = bytes.split_first_chunk().context("no length")?;
        rest.split_at_checked(u16::from_be_bytes(*len).into()).context("half a TPM2B")
    }
    let (id_object, rest) = take(bytes.strip_prefix(&CREDENTIAL_MAGIC).context("no credential file")?)?;
    let (encrypted_secret, rest) = take(rest)?;
    ensure!(rest.is_empty(), "{} bytes behind the credential", rest.len());
    Ok(Credential { id_object: Bytes::new(id_object)?, encrypted_secret: Bytes::new(encrypted_secret)? })
}

/// Runs the Python peer against the bench's gateway and gives the lines that it printed.
fn peer(python: &Path, bench: &Bench, hello: Option<&str>) -> Result<Vec<String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peer.py");
    let mut command = Command::new(python);
    command.arg(script).arg(format!("coaps+tcp://localhost:{}", bench.rig.gateway().port()));
    command.arg(bench.rig.operator_dir().join("server-ca.pem")).args(hello);
    let said =
        spawn::run(&mut command).with_context(|| bench.rig.server().map(|at| at.tail(15)).unwrap_or_default())?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// A Python that has aiocoap: an environment of its own in the target directory, made at the first use. `None`, with a
/// word, where it cannot be had.
fn aiocoap() -> Option<&'static Path> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PYTHON.get_or_init(|| make_environment().map_err(|error| format!("{error:#}"))) {
        Ok(python) => Some(python),
        Err(why) => {
            println!("skipped: no aiocoap: {}", why.lines().next().unwrap_or_default());
            None
        }
    }
}

fn make_environment() -> Result<PathBuf> {
    let dir = rig::target_dir().join("interop-python");
    let python = dir.join("bin/python");
    let works = || {
        let version = "import aiocoap.meta; print(aiocoap.meta.version)";
        spawn::run(Command::new(&python).args(["-c", version])).is_ok_and(|said| said.trim() == AIOCOAP)
    };
    if works() {
        return Ok(python);
    }
    let system = find_program("python3").context("python3 is not installed")?;
    spawn::run(Command::new(system).args(["-m", "venv", "--clear"]).arg(&dir))?;
    let wanted = format!("aiocoap=={AIOCOAP}");
    let quick = ["--quiet", "--disable-pip-version-check", "--no-deps", "--retries", "1", "--timeout", "10"];
    spawn::run(Command::new(&python).args(["-m", "pip", "install"]).args(quick).arg(wanted))?;
    if !works() {
        bail!("installed, but does not work");
    }
    Ok(python)
}

fn fresh_dir(within: &Path, name: &str) -> Result<PathBuf> {
    let dir = within.join(name);
    fs::create_dir(&dir)?;
    Ok(dir)
}

/// The version that the peer script is written for.
const AIOCOAP: &str = "0.4.17";

/// TPMA_OBJECT userWithAuth, TPM 2.0 part 2.
const USER_WITH_AUTH: u32 = 1 << 6;

/// How tpm2-tools begin a credential file: 0xBADCC0DE, version 1.
const CREDENTIAL_MAGIC: [u8; 8] = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];
