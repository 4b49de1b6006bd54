//! K_b, the plaintext and the signing key never enter the control plane, and a share is nowhere in it but under HPKE:
//! not in its databases, not in its memory, not in what it logs at `trace`.
//!
//! The test seals by itself and therefore knows every secret; it looks for them as bytes, in hex, in Base64 and as Rust
//! prints bytes, after complete bootstraps. That the search finds what is there is part of the test.

mod fleet;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fleet::{Fleet, Node, SOON, has_files, kb_of};
use hil_tests::rig::{Options, Store};
use hil_tests::rogue::server::RogueSealing;
use hil_tests::swtpm::EkKind;
use hil_tests::{apt, spawn, sys};
use protocol::id::{NodeId, Subject};
use rand_core::{OsRng, RngCore};
use serde_json::json;

/// What is looked for: names, and the forms in which it could appear.
#[derive(Default)]
struct Needles {
    /// Form and name, by their first two bytes.
    by_start: BTreeMap<[u8; 2], Vec<(Vec<u8>, String)>>,
    /// Whether a form begins with these two bytes.
    starts: Vec<bool>,
}

impl Needles {
    /// Looks for this value too, however it is written.
    fn add(&mut self, name: &str, value: &[u8]) {
        let lower = hex::encode(value);
        // As `{:?}` prints an array; the first few say enough.
        let listed: Vec<String> = value.iter().take(12).map(u8::to_string).collect();
        let mut forms = vec![
            (value.to_vec(), "bytes"),
            (lower.to_uppercase().into_bytes(), "upper-case hex"),
            (lower.into_bytes(), "hex"),
            (listed.join(", ").into_bytes(), "a list of numbers"),
        ];
        // Within a longer text a value begins at one of three places of a Base64 group.
        for skipped in 0..3 {
            if let Some(whole) = value.get(skipped..) {
                let text = base64(whole.get(..whole.len() / 3 * 3).unwrap_or_default());
                forms.push((text.replace('+', "-").replace('/', "_").into_bytes(), "Base64 for URLs"));
                forms.push((text.into_bytes(), "Base64"));
            }
        }
        self.starts.resize(1 << 16, false);
        for (form, called) in forms {
            let Some(&start) = form.first_chunk::<2>() else { continue };
            self.starts[usize::from(u16::from_be_bytes(start))] = true;
            self.by_start.entry(start).or_default().push((form, format!("{name} as {called}")));
        }
    }

    /// What of it is in `hay`.
    fn found_in(&self, hay: &[u8]) -> Vec<&str> {
        let mut found = Vec::new();
        for (at, pair) in hay.array_windows::<2>().enumerate() {
            if !self.starts[usize::from(u16::from_be_bytes(*pair))] {
                continue;
            }
            let forms = self.by_start.get(pair).map(Vec::as_slice).unwrap_or_default();
            found.extend(forms.iter().filter(|(form, _)| hay[at..].starts_with(form)).map(|(_, name)| name.as_str()));
        }
        found
    }

    /// What of it is in a process's readable memory, and where.
    fn found_in_memory(&self, pid: u32) -> Result<Vec<String>> {
        const PIECE: u64 = 4 << 20;
        // Longer than any form.
        const OVERLAP: u64 = 4096;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mut found = Vec::new();
        let mut buf = vec![0; PIECE as usize];
        let mut searched = 0;
        for line in maps.lines() {
            let (range, rest) = line.split_once(' ').context("a line of maps")?;
            if !rest.starts_with('r') {
                continue;
            }
            let (from, to) = range.split_once('-').context("a range of maps")?;
            let (mut from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
            while from < to {
                let len = (to - from).min(PIECE);
                // [vvar] and the like are in the list and cannot be read.
                let Ok(()) = memory.read_exact_at(&mut buf[..len as usize], from) else { break };
                searched += len;
                let there = self.found_in(&buf[..len as usize]);
                found.extend(there.into_iter().map(|name| format!("{name}, in {line}")));
                if from + len == to {
                    break;
                }
                from += len - OVERLAP;
            }
        }
        ensure!(searched > 8 << 20, "only {searched} bytes of process {pid} could be read");
        Ok(found)
    }

    /// What of it is in the files below a directory, and in which.
    fn found_in_files(&self, dir: &Path) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut pending = vec![dir.to_owned()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    pending.push(path);
                    continue;
                }
                // A database removes files of its own while it runs; sockets cannot be read.
                let Ok(bytes) = fs::read(&path) else { continue };
                found.extend(self.found_in(&bytes).into_iter().map(|name| format!("{name}, in {}", path.display())));
            }
        }
        Ok(found)
    }
}

/// The standard alphabet, without padding: whole groups only.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.as_chunks::<3>().0.iter();
    groups
        .flat_map(|&[a, b, c]| {
            let bits = u32::from_be_bytes([0, a, b, c]);
            [18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift & 63) as usize]))
        })
        .collect()
}

/// Adds a node with a sealing that the test made, and starts its agent.
fn node_with(fleet: &Fleet, name: &str, sealed: &RogueSealing, node: &mut Node) -> Result<()> {
    let (status, answer) = fleet.begin_sealing(sealed)?;
    ensure!(status == 201, "{status} {answer}");
    for index in 0..answer["chunk_count"].as_u64().context("no count")? {
        let (status, answer) = fleet.put_chunk(sealed, usize::try_from(index)?)?;
        ensure!(status == 204, "chunk {index}: {status} {answer}");
    }
    let (status, answer) = fleet.finish_sealing(sealed)?;
    ensure!(status == 200, "{status} {answer}");
    let policy = fleet.rig.trefoil(&["policy", "add", &fleet.policy.to_string_lossy()])?;
    let Subject::Node(node_id) = sealed.subject else { anyhow::bail!("sealed for a token") };
    let new = json!({
        "name": name,
        "node_id": node_id.to_string(),
        "policy": policy.trim(),
        "interval_ms": 500,
        "pins": { "tenant_keys": [hex::encode(fleet.signing_key()?.public().as_sec1())], "autorun": false },
        "sealing_id": sealed.sealing_id.to_string(),
    });
    let (status, answer) = fleet.rig.api("POST", "/nodes", Some(&new))?;
    ensure!(status == 201, "{status} {answer}");
    node.agent = Some(fleet.rig.agent(&node.tpm, name, &[])?);
    Ok(())
}

/// What the database's own program says is in it; nothing on SQLite, whose files are all there is.
fn dumped(fleet: &Fleet) -> Result<Option<Vec<u8>>> {
    let settings = fs::read_to_string(fleet.rig.data_dir().join("trefoil.toml"))?;
    let Some(url) = settings.lines().find_map(|line| line.strip_prefix("db = \"postgres")?.strip_suffix('"')) else {
        return Ok(None);
    };
    let program = apt::postgres_bin_dir().unwrap_or_default().join("pg_dump");
    spawn::run(Command::new(program).arg(format!("postgres{url}"))).map(|text| Some(text.into_bytes()))
}

#[test]
fn no_secret_is_in_the_control_planes_database_memory_or_log() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::new(Options { log: "json:trace".into(), ..Options::default() })?;
    let signing = fleet.signing_key()?;
    let (mut secret, mut public) = (Needles::default(), Needles::default());
    secret.add("the payload-signing key", &hex::decode(signing.to_text().trim())?);
    let mut own = Needles::default();

    let mut nodes = Vec::new();
    for name in ["one", "two", "three"] {
        let tpm = fleet.tpm(EkKind::P256)?;
        let node_id = NodeId::from_hex(&fleet.rig.node_id(&tpm)?).context("no node id")?;
        let mut marker = [0; 32];
        OsRng.fill_bytes(&mut marker);
        // Over several chunks, the marker in each of them.
        let file = marker.repeat(6_000);
        let files: [(&str, &[u8]); 1] = [("marked.bin", &file)];
        let sealing = RogueSealing::new(Subject::Node(node_id), &signing, &files)?;
        let kb = kb_of(&sealing)?;
        secret.add("K_b", kb.expose());
        secret.add("the payload key", kb.payload_key(sealing.subject, sealing.sealing_id).expose());
        secret.add("U", sealing.u());
        secret.add("V", sealing.v());
        secret.add("the plaintext", &marker);
        own.add("U", sealing.u());
        public.add("the sealing id", &sealing.sealing_id.0);
        let mut node = Node { name: name.into(), agent: None, tpm };
        node_with(&fleet, name, &sealing, &mut node)?;
        fleet.rig.wait_phase(name, "delivered", SOON)?;
        has_files(node.agent()?, &files)?;
        // A second boot: each share is opened and sealed once more.
        let delivered_ms = fleet.delivered_ms(name)?;
        node.reboot(&fleet)?;
        fleet.delivered_after(name, delivered_ms)?;
        has_files(node.agent()?, &files)?;
        ensure!(fleet.releases(name)?.len() == 4, "{:#?}", fleet.releases(name)?);
        nodes.push((node, files[0].1.len()));
    }
    for (node, _) in &nodes {
        fleet.judged_anew(&node.name, "good")?;
    }

    // The search finds what is there: the id of a sealing, which is no secret, wherever it may be looked for, and a
    // secret in the memory of this very test, which made it.
    let server = fleet.rig.server()?;
    let data = fleet.rig.data_dir();
    let log = fs::read(fleet.rig.dir().join("control-plane.log"))?;
    let dump = dumped(&fleet)?;
    sys::signal(server.pid(), sys::SIGSTOP)?;
    let in_memory = (public.found_in_memory(server.pid()), secret.found_in_memory(server.pid()));
    sys::signal(server.pid(), sys::SIGCONT)?;
    let as_bytes = |found: &[String]| found.iter().any(|name| name.starts_with("the sealing id as bytes"));
    ensure!(as_bytes(&in_memory.0?), "the search of the memory finds nothing");
    ensure!(own.found_in_memory(std::process::id())?.iter().any(|name| name.starts_with("U as bytes")), "nor here");
    ensure!(public.found_in(&log).contains(&"the sealing id as hex"), "the search of the log finds nothing");
    match &dump {
        Some(dump) => ensure!(public.found_in(dump).contains(&"the sealing id as hex"), "the dump holds nothing"),
        None => ensure!(as_bytes(&public.found_in_files(&data)?), "the search of the files finds nothing"),
    }
    ensure!(log.windows(7).any(|words| words == b"\"trace\""), "nothing was logged at trace");

    let nothing = |where_: &str, found: Vec<String>| -> Result<()> {
        ensure!(
            found.is_empty(),
            "{} places in {where_}: {:#?}",
            found.len(),
            found.iter().take(20).collect::<Vec<_>>()
        );
        Ok(())
    };
    nothing("the data directory", secret.found_in_files(&data)?)?;
    if let Some(postgres) = fleet.rig.postgres() {
        nothing("the database's files", secret.found_in_files(&postgres.data_dir())?)?;
    }
    let owned = |found: Vec<&str>| found.into_iter().map(str::to_owned).collect();
    nothing("the database", owned(secret.found_in(&dump.unwrap_or_default())))?;
    nothing("the control plane's log", owned(secret.found_in(&log)))?;
    nothing("the control plane's memory", in_memory.1?)?;
    // Nor does an agent log what it was given.
    for (node, _) in &nodes {
        let log = fs::read(fleet.rig.dir().join(format!("agent-{}.log", node.name)))?;
        nothing("an agent's log", owned(secret.found_in(&log)))?;
    }
    Ok(())
}

#[test]
fn no_api_answer_shows_a_share() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::new(Options { store: Store::from_env(), ..Options::default() })?;
    let mut node = Node { name: "shown".into(), agent: None, tpm: fleet.tpm(EkKind::P256)? };
    let node_id = NodeId::from_hex(&fleet.rig.node_id(&node.tpm)?).context("no node id")?;
    let files: [(&str, &[u8]); 1] = [("marked.bin", b"a plaintext that is nobody else's")];
    let sealing = RogueSealing::new(Subject::Node(node_id), &fleet.signing_key()?, &files)?;
    node_with(&fleet, "shown", &sealing, &mut node)?;
    fleet.rig.wait_phase("shown", "delivered", SOON)?;
    fleet.judged_anew("shown", "good")?;
    let (mut secret, mut public) = (Needles::default(), Needles::default());
    secret.add("U", sealing.u());
    secret.add("V", sealing.v());
    secret.add("K_b", kb_of(&sealing)?.expose());
    secret.add("the plaintext", files[0].1);
    public.add("the sealing id", &sealing.sealing_id.0);
    let id = sealing.sealing_id.to_string();
    let paths = [
        "/nodes".into(),
        "/nodes/shown".into(),
        "/nodes/shown/events".into(),
        "/nodes/shown/verdicts".into(),
        "/nodes/shown/releases".into(),
        "/nodes/shown/evidence".into(),
        "/events?limit=500".into(),
        "/verdicts".into(),
        "/policies".into(),
        format!("/sealings/{id}"),
    ];
    let mut all = String::new();
    for path in paths {
        all.push_str(&fleet.rig.api_get(&path).with_context(|| format!("GET {path}"))?.to_string());
    }
    ensure!(public.found_in(all.as_bytes()).contains(&"the sealing id as hex"), "the answers hold nothing");
    let found = secret.found_in(all.as_bytes());
    ensure!(found.is_empty(), "{found:?}");
    // The shares as they are stored are shown to nobody either: one key less to steal.
    ensure!(!all.contains("u_sealed") && !all.contains("v_sealed"), "a stored share is shown");
    Ok(())
}

#[test]
fn the_search_finds_a_value_in_every_form_and_at_every_place() {
    let value: Vec<u8> = (0..32u8).map(|i| i.wrapping_mul(37) ^ 0xa5).collect();
    let mut needles = Needles::default();
    needles.add("it", &value);
    let encode = |text: &[u8]| base64(text.get(..text.len() / 3 * 3).unwrap_or_default());
    for before in 0..3 {
        let mut text = vec![b'x'; before];
        text.extend_from_slice(&value);
        text.extend_from_slice(b"yyy");
        assert!(needles.found_in(&text).contains(&"it as bytes"));
        assert!(needles.found_in(encode(&text).as_bytes()).contains(&"it as Base64"), "{before}");
    }
    assert!(needles.found_in(format!("u={}!", hex::encode(&value)).as_bytes()).contains(&"it as hex"));
    assert!(needles.found_in(hex::encode_upper(&value).as_bytes()).contains(&"it as upper-case hex"));
    assert!(needles.found_in(format!("{value:?}").as_bytes()).contains(&"it as a list of numbers"));
    let mut other = value;
    other[20] ^= 1;
    assert!(needles.found_in(&other).is_empty());
}
