//! What the control plane must never hold, looked for everywhere it could be: in the files and tables that it keeps, in
//! its memory, in what it and the agents print at the loudest level, and in what the API says.
//!
//! The test plays no part in the nodes' bootstraps: operator, server and agents are the programs. It knows their secrets
//! afterwards, because it may use the private keys of both roles at once, which nobody else may.

mod fleet;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, io};

use anyhow::{Context, Result, ensure};
use fleet::{Fleet, Node, SOON};
use hil_tests::apt::postgres_bin_dir;
use hil_tests::rig::{NodeAdd, Options};
use hil_tests::spawn;
use hil_tests::swtpm::EkKind;
use protocol::crypto::role_key::open_v_at_rest;
use protocol::crypto::share::SealedShare;
use protocol::crypto::{JoinToken, RolePrivateKey, TenantHolding};
use protocol::id::{NodeId, SealingId, Subject};
use rand_core::{OsRng, RngCore};
use sqlx::{Connection, Row};

#[test]
fn no_key_share_or_plaintext_is_in_the_control_planes_files_memory_logs_or_answers() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::new(Options { log: "json:trace".into(), ..Options::default() })?;
    if let Err(why) = fleet.rig.memory() {
        println!("skipped: {why:#}");
        return Ok(());
    }
    let mut known = Known::default();
    let mut nodes = Vec::new();
    for name in ["by-id", "by-join", "rebooted"] {
        let (node, subject, node_id) = bootstrap(&fleet, name, name == "by-join", &mut known)?;
        nodes.push((node, subject, node_id));
    }
    // A second boot releases the same shares again, under another NK.
    if let Some((node, ..)) = nodes.iter_mut().find(|(node, ..)| node.name == "rebooted") {
        let before = fleet.delivered_ms(&node.name)?;
        node.reboot(&fleet)?;
        fleet.delivered_after(&node.name, before)?;
        ensure!(fleet.releases(&node.name)?.len() == 4, "two boots are four shares");
    }
    for (node, subject, node_id) in &nodes {
        known.sealing(&fleet, &node.name, *subject)?;
        known.public.push(Needle::new(format!("node id of {}", node.name), &node_id.0));
    }
    known.operator(&fleet)?;
    let search = Search::new(&known);

    // Each of these searches also has to find something, the node ids: one that finds nothing proves nothing.
    let mut kept = search.files(&fleet.rig.data_dir())?;
    if let Some(url) = database(&fleet)? {
        kept.extend(search.dump(&url)?);
    }
    if let Some(postgres) = fleet.rig.postgres() {
        kept.extend(search.files(&postgres.data_dir())?);
    }
    is_clean("what is kept", &kept, &known, nodes.len())?;

    let mut printed = Vec::new();
    for log in fs::read_dir(fleet.rig.dir())? {
        let log = log?.path();
        if log.extension().is_some_and(|extension| extension == "log") {
            printed.extend(search.bytes(&log.display().to_string(), &fs::read(&log)?));
        }
    }
    printed.extend(search.bytes("the server's lines", fleet.rig.server()?.lines().join("\n").as_bytes()));
    for (node, ..) in &nodes {
        let lines = node.agent()?.lines().join("\n");
        ensure!(!lines.is_empty(), "the agent of {} prints nothing", node.name);
        printed.extend(search.bytes(&format!("the lines of {}'s agent", node.name), lines.as_bytes()));
    }
    is_clean("what is printed", &printed, &known, nodes.len())?;

    let mut answered = Vec::new();
    for path in ["/nodes?limit=500", "/events?limit=500", "/verdicts?limit=500", "/joins", "/policies", "/tokens"] {
        answered.extend(search.bytes(path, fleet.rig.api_get(path)?.to_string().as_bytes()));
    }
    for (node, ..) in &nodes {
        let sealing = fleet.rig.node(&node.name)?["sealing_id"].as_str().context("no sealing")?.to_owned();
        let of_node = ["", "/events", "/verdicts", "/releases", "/evidence"];
        let of_node = of_node.iter().map(|rest| format!("/nodes/{}{rest}", node.name));
        for path in of_node.chain([format!("/sealings/{sealing}")]) {
            answered.extend(search.bytes(&path, fleet.rig.api_get(&path)?.to_string().as_bytes()));
        }
    }
    is_clean("what the API answers", &answered, &known, nodes.len())?;

    // Rounds go on, but no share is on its way any more: what is in memory now stays there.
    for (node, ..) in &nodes {
        fleet.judged_anew(&node.name, "good")?;
    }
    let pid = fleet.rig.server()?.pid();
    match search.memory(pid) {
        Ok(found) => is_clean("the server's memory", &found, &known, nodes.len())?,
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(is_denied) => {
            println!("the server's memory was not searched: {error:#}");
        }
        Err(error) => return Err(error),
    }
    // Nobody was disturbed by it.
    for (node, ..) in &nodes {
        let files = node.agent()?.payload()?;
        ensure!(files == *known.payloads.get(&node.name).context("no payload")?, "{}: another payload", node.name);
    }
    Ok(())
}

#[test]
fn the_search_finds_every_form_of_a_secret_wherever_it_lies() -> Result<()> {
    let secret: [u8; 32] = std::array::from_fn(|index| index as u8 * 7 + 3);
    let known = Known { secret: vec![Needle::new("secret", &secret)], ..Known::default() };
    let search = Search::new(&known);
    let url_safe = |text: &str| text.replace('+', "-").replace('/', "_");
    // As other software writes it: `printf … | base64`.
    let in_base64 = "AwoRGB8mLTQ7QklQV15lbHN6gYiPlp2kq7K5wMfO1dw=";
    let written = [
        secret.to_vec(),
        secret[..16].to_vec(),
        secret[16..].to_vec(),
        hex::encode(secret).into_bytes(),
        hex::encode_upper(secret).into_bytes(),
        in_base64.as_bytes().to_vec(),
        url_safe(in_base64).into_bytes(),
        format!("{secret:?}").into_bytes(),
        serde_json::to_vec(&secret)?,
    ];
    for written in &written {
        for (before, after) in [("", ""), ("some text ", ""), ("", " more"), ("two ", " ends")] {
            let text = [before.as_bytes(), written, after.as_bytes()].concat();
            let found = search.bytes("text", &text);
            ensure!(!found.is_empty(), "not found: {}", String::from_utf8_lossy(&text));
        }
    }
    ensure!(search.bytes("text", &secret[1..16]).is_empty(), "less than half is found where it is not");
    Ok(())
}

/// Takes one node from its first day to its payload, which nobody else has. Its name says how it comes.
fn bootstrap(fleet: &Fleet, name: &str, by_join: bool, known: &mut Known) -> Result<(Node, Subject, NodeId)> {
    let mut files = [[0; 32]; 2];
    files.iter_mut().for_each(|file| OsRng.fill_bytes(file));
    let [first, second] = &files;
    let payload = fleet.rig.payload(name, &[("disk.key", first), ("etc/app.key", second)])?;
    let tpm = fleet.tpm(EkKind::P256)?;
    let node_id = fleet.rig.node_id(&tpm)?;
    let admit = if by_join { NodeAdd::join() } else { NodeAdd::id(&node_id) };
    let said = fleet.add(name, admit.payload(payload))?;
    let node_id = NodeId(hex::decode(&node_id)?.try_into().ok().context("no node id")?);
    let mut subject = Subject::Node(node_id);
    if by_join {
        let text = said.lines().next_back().unwrap_or_default();
        let token = JoinToken::from_text(text).context("`node add --join` printed no token")?;
        subject = Subject::Join(token.id());
        known.secret.push(Needle::new(format!("join token of {name}"), token.expose()));
    }
    let agent = fleet.rig.agent(&tpm, name, &[])?;
    fleet.rig.wait_phase(name, "delivered", SOON)?;
    fleet.rig.wait_trust(name, "good", SOON)?;
    let found = agent.payload()?;
    let [disk, app] = [("disk.key", first), ("etc/app.key", second)].map(|(path, bytes)| (path.into(), bytes.to_vec()));
    ensure!(found == BTreeMap::from([disk, app]), "{name}: another payload");
    known.payloads.insert(name.into(), found);
    for (bytes, which) in files.iter().zip(["first", "second"]) {
        known.secret.push(Needle::new(format!("{which} file of {name}"), bytes));
    }
    Ok((Node { name: name.into(), agent: Some(agent), tpm }, subject, node_id))
}

/// What is looked for.
#[derive(Default)]
struct Known {
    /// Must not be found.
    secret: Vec<Needle>,
    /// Has to be found.
    public: Vec<Needle>,
    payloads: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

impl Known {
    /// Opens a node's sealing with the keys of both roles, and learns all that follows from it.
    fn sealing(&mut self, fleet: &Fleet, name: &str, subject: Subject) -> Result<()> {
        let key = |role: &str| -> Result<RolePrivateKey> {
            let text = fs::read_to_string(fleet.rig.data_dir().join(format!("{role}.key")))?;
            RolePrivateKey::from_text(&text).with_context(|| format!("{role}.key"))
        };
        let id = hex::decode(fleet.rig.node(name)?["sealing_id"].as_str().context("no sealing")?)?;
        let id = SealingId(id.try_into().ok().context("no sealing id")?);
        let [u_sealed, v_sealed] = sealed_shares(fleet, id)?;
        let holding = TenantHolding::open(&key("tenant")?, subject, id, &u_sealed)?;
        let v = open_v_at_rest(&key("verifier")?, subject, id, &v_sealed)?;
        let kb = holding.u.combine(&v);
        ensure!(kb.key_tag(subject, id) == holding.key_tag, "these are not the shares of {name}");
        for (what, bytes) in [
            ("K_b", kb.expose()),
            ("U", holding.u.expose()),
            ("V", v.expose()),
            ("payload key", kb.payload_key(subject, id).expose()),
            ("confirm key", holding.confirm_key.expose()),
        ] {
            self.secret.push(Needle::new(format!("{what} of {name}"), bytes));
        }
        Ok(())
    }

    /// The operator's own: what signs payloads and node certificates.
    fn operator(&mut self, fleet: &Fleet) -> Result<()> {
        let read = |name: &str| fs::read_to_string(fleet.rig.operator_dir().join(name)).context(name.to_owned());
        let signing = hex::decode(read("payload-signing.key")?.trim())?;
        self.secret.push(Needle::new("payload-signing key", &signing));
        // In the form of its file, which is how it would be carried off.
        let ca = read("tenant-ca.key")?;
        let line = ca.lines().filter(|line| !line.starts_with('-')).max_by_key(|line| line.len());
        self.secret.push(Needle::text("tenant CA's key", line.context("tenant-ca.key is empty")?));
        Ok(())
    }
}

/// U and V as they lie in the tenant's store, each sealed to its role.
fn sealed_shares(fleet: &Fleet, id: SealingId) -> Result<[SealedShare; 2]> {
    let query = "SELECT u_sealed, v_sealed FROM sealing WHERE sealing_id = $1";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (u, v): (Vec<u8>, Vec<u8>) = match database(fleet)? {
        Some(url) => runtime.block_on(async {
            let mut db = sqlx::PgConnection::connect(&url).await?;
            sqlx::query("SET search_path TO tenant").execute(&mut db).await?;
            let row = sqlx::query(query).bind(id.0.as_slice()).fetch_one(&mut db).await?;
            db.close().await?;
            anyhow::Ok((row.try_get(0)?, row.try_get(1)?))
        })?,
        None => runtime.block_on(async {
            let file = fleet.rig.data_dir().join("tenant.db");
            let mut db = sqlx::SqliteConnection::connect(&format!("sqlite:{}", file.display())).await?;
            let row = sqlx::query(query).bind(id.0.as_slice()).fetch_one(&mut db).await?;
            db.close().await?;
            anyhow::Ok((row.try_get(0)?, row.try_get(1)?))
        })?,
    };
    Ok([SealedShare::from_bytes(&u)?, SealedShare::from_bytes(&v)?])
}

/// Where the control plane's Postgres is, if it has one.
fn database(fleet: &Fleet) -> Result<Option<String>> {
    let settings = fs::read_to_string(fleet.rig.data_dir().join("trefoil.toml"))?;
    Ok(settings.lines().find_map(|line| line.strip_prefix("db = \"")?.strip_suffix('"').map(str::to_owned)))
}

/// Something to be looked for, in every form in which a program might write it down.
struct Needle {
    what: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Needle {
    /// Bytes, 32 of them or so: as they are, in halves, in hexadecimal, in base64, as a list of numbers. Halves, because
    /// a wiped rest does not make the other half less of a leak.
    fn new(what: impl Into<String>, bytes: &[u8]) -> Self {
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        let upper = |bytes: &[u8]| hex::encode_upper(bytes).into_bytes();
        let lower = |bytes: &[u8]| hex::encode(bytes).into_bytes();
        let numbers = head.iter().map(u8::to_string).collect::<Vec<_>>();
        let forms = vec![
            ("first half", head.to_vec()),
            ("second half", tail.to_vec()),
            ("first half, hex", lower(head)),
            ("second half, hex", lower(tail)),
            ("first half, HEX", upper(head)),
            ("second half, HEX", upper(tail)),
            ("base64", base64(head, b"+/")),
            ("base64url", base64(head, b"-_")),
            ("list of numbers", numbers.join(", ").into_bytes()),
            ("JSON list of numbers", numbers.join(",").into_bytes()),
        ];
        Self { what: what.into(), forms }
    }

    fn text(what: impl Into<String>, text: &str) -> Self {
        Self { what: what.into(), forms: vec![("text", text.as_bytes().to_vec())] }
    }
}

/// A place where something was found.
struct Found {
    what: String,
    form: &'static str,
    place: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n  {} ({}) at {}", self.what, self.form, self.place)
    }
}

/// Nothing secret was found there, and everything public was.
fn is_clean(where_: &str, found: &[Found], known: &Known, node_count: usize) -> Result<()> {
    let is_secret = |found: &&Found| known.secret.iter().any(|needle| needle.what == found.what);
    let leaks: String = found.iter().filter(is_secret).map(Found::to_string).collect();
    ensure!(leaks.is_empty(), "in {where_}:{leaks}");
    let seen = known.public.iter().filter(|needle| found.iter().any(|found| found.what == needle.what)).count();
    ensure!(seen == node_count, "in {where_} the search sees only {seen} of {node_count} node ids");
    Ok(())
}

/// A form of a needle: what it is, how it is written, the bytes.
type Wanted<'a> = (&'a str, &'static str, &'a [u8]);

/// All needles at once.
struct Search<'a> {
    /// Each form by its first two bytes.
    by_start: BTreeMap<[u8; 2], Vec<Wanted<'a>>>,
    /// Whether any form starts so; most places are passed over by it.
    starts: Vec<bool>,
}

impl<'a> Search<'a> {
    fn new(known: &'a Known) -> Self {
        let mut search = Self { by_start: BTreeMap::new(), starts: vec![false; 1 << 16] };
        for needle in known.secret.iter().chain(&known.public) {
            for (form, bytes) in &needle.forms {
                let Some(start) = bytes.first_chunk::<2>() else { continue };
                search.by_start.entry(*start).or_default().push((&needle.what, form, bytes));
                search.starts[usize::from(u16::from_be_bytes(*start))] = true;
            }
        }
        search
    }

    fn bytes(&self, place: &str, bytes: &[u8]) -> Vec<Found> {
        let mut all = Vec::new();
        let mut start = 0u16;
        for (end, &byte) in bytes.iter().enumerate() {
            start = start << 8 | u16::from(byte);
            if !self.starts[usize::from(start)] || end == 0 {
                continue;
            }
            for (what, form, wanted) in self.by_start.get(&start.to_be_bytes()).into_iter().flatten() {
                if bytes.get(end - 1..).is_some_and(|rest| rest.starts_with(wanted)) {
                    let place = format!("{place} + 0x{:x}", end - 1);
                    all.push(Found { what: (*what).into(), form, place });
                }
            }
        }
        all
    }

    /// Every file below a directory.
    fn files(&self, dir: &Path) -> Result<Vec<Found>> {
        let mut all = Vec::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                match fs::read(&path) {
                    Ok(bytes) => all.extend(self.bytes(&path.display().to_string(), &bytes)),
                    // A database that is in use comes and goes with its files, and has sockets.
                    Err(error) if path.is_file() => return Err(error).context(path.display().to_string()),
                    Err(_) => {}
                }
            }
        }
        Ok(all)
    }

    /// A Postgres database as its backup would be.
    fn dump(&self, url: &str) -> Result<Vec<Found>> {
        let program = postgres_bin_dir().context("no Postgres programs")?.join("pg_dump");
        let dump = spawn::run(Command::new(program).args(["--dbname", url]))?;
        Ok(self.bytes("pg_dump", dump.as_bytes()))
    }

    /// All that a process may write to: heap, stacks, and what it maps.
    fn memory(&self, pid: u32) -> Result<Vec<Found>> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let maps = fs::read_to_string(proc.join("maps"))?;
        let memory = File::open(proc.join("mem"))?;
        let mut all = Vec::new();
        let mut searched = 0;
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            if !rights.starts_with("rw") {
                continue;
            }
            let (from, to) = range.split_once('-').context("no address range")?;
            let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
            let mut region = vec![0; usize::try_from(to - from)?];
            match memory.read_exact_at(&mut region, from) {
                Ok(()) => {}
                // It was unmapped, or is a device's.
                Err(error) if !is_denied(&error) => continue,
                Err(error) => return Err(error.into()),
            }
            searched += region.len();
            all.extend(self.bytes(line, &region));
        }
        ensure!(searched > 1 << 20, "only {searched} bytes of the server could be read");
        Ok(all)
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Base64 of as many bytes as need no padding; `last` are its two letters that differ.
fn base64(bytes: &[u8], last: &[u8; 2]) -> Vec<u8> {
    let letters: Vec<u8> = (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').chain(*last).collect();
    let group = |group: &[u8; 3]| {
        let [a, b, c] = group.map(usize::from);
        [a >> 2, (a & 3) << 4 | b >> 4, (b & 15) << 2 | c >> 6, c & 63].map(|index| letters[index])
    };
    bytes.as_chunks::<3>().0.iter().flat_map(group).collect()
}
