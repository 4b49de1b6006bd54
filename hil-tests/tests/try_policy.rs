//! A policy can be tried before it is enforced: it is judged on what the node showed last, says on which event and on which
//! file the node would fail, and changes nothing. Enforced, it fails there.
//!
//! The node has the logs of a machine that started an image, measured its command line and ran a file that the next policy
//! does not know.

mod fleet;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleet::{Fleet, JUDGED_PCR, Node, PHASE_PCR, SOON, played_value};
use hil_tests::swtpm::EkKind;
use protocol::tpm::alg::HashAlg;
use serde_json::{Value, json};

const COMMAND_LINE: &str = "root=/dev/vda1 ro quiet";
const EV_SEPARATOR: u32 = 0x04;
const EV_S_CRTM_VERSION: u32 = 0x08;
const EV_IPL: u32 = 0x0d;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;

/// A digest of either bank that the TPM has.
struct Pair {
    sha1: Vec<u8>,
    sha256: Vec<u8>,
}

impl Pair {
    /// Of these bytes.
    fn of(bytes: &[u8]) -> Self {
        let digest = |alg: HashAlg| alg.digest(&[bytes]).as_bytes().to_vec();
        Self { sha1: digest(HashAlg::Sha1), sha256: digest(HashAlg::Sha256) }
    }

    fn hex(&self) -> String {
        hex::encode(&self.sha256)
    }

    fn extend(&self, node: &Node, pcr: u32) -> Result<()> {
        let spec = format!("{pcr}:sha1={},sha256={}", hex::encode(&self.sha1), self.hex());
        node.tpm.tpm2("tpm2_pcrextend", &[&spec]).map(drop)
    }
}

/// A boot log in the crypto-agile format (TCG PC Client Platform Firmware Profile).
struct BootLog(Vec<u8>);

impl BootLog {
    fn new() -> Self {
        let mut spec_id = b"Spec ID Event03\0".to_vec();
        spec_id.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2]);
        spec_id.extend_from_slice(&2_u32.to_le_bytes());
        for (alg, len) in [(4_u16, 20_u16), (11, 32)] {
            spec_id.extend_from_slice(&alg.to_le_bytes());
            spec_id.extend_from_slice(&len.to_le_bytes());
        }
        spec_id.push(0);
        let mut log = 0_u32.to_le_bytes().to_vec();
        log.extend_from_slice(&3_u32.to_le_bytes());
        log.extend_from_slice(&[0; 20]);
        log.extend_from_slice(&(spec_id.len() as u32).to_le_bytes());
        log.extend_from_slice(&spec_id);
        Self(log)
    }

    fn event(&mut self, pcr: u32, event_type: u32, digest: &Pair, data: &[u8]) {
        let log = &mut self.0;
        for number in [pcr, event_type, 2] {
            log.extend_from_slice(&number.to_le_bytes());
        }
        for (alg, digest) in [(4_u16, &digest.sha1), (11, &digest.sha256)] {
            log.extend_from_slice(&alg.to_le_bytes());
            log.extend_from_slice(digest);
        }
        log.extend_from_slice(&(data.len() as u32).to_le_bytes());
        log.extend_from_slice(data);
    }
}

/// An entry of the ima-ng template, and what it extends PCR 10 with.
fn ima_entry(path: &str, file_digest: &[u8]) -> (Vec<u8>, Pair) {
    let mut data = Vec::new();
    let digest = [b"sha256:\0", file_digest].concat();
    for field in [digest.as_slice(), &[path.as_bytes(), b"\0"].concat()] {
        data.extend_from_slice(&(field.len() as u32).to_le_bytes());
        data.extend_from_slice(field);
    }
    let template = Pair::of(&data);
    let mut entry = 10_u32.to_le_bytes().to_vec();
    entry.extend_from_slice(&template.sha1);
    entry.extend_from_slice(b"\x06\0\0\0ima-ng");
    entry.extend_from_slice(&(data.len() as u32).to_le_bytes());
    entry.extend_from_slice(&data);
    (entry, template)
}

/// A machine that booted, with its logs on disk.
struct Booted {
    node: Node,
    image: Pair,
    boot_log: PathBuf,
    ima_log: PathBuf,
    command_line: PathBuf,
}

const FILES: [(&str, &[u8]); 2] = [("/usr/bin/known", b"known"), ("/usr/bin/tool", b"tool")];

impl Booted {
    /// Event 10 is the image's in PCR 4, event 11 the command line's in PCR 8; entry 2 of the list is `/usr/bin/tool`.
    fn new(fleet: &Fleet, name: &str) -> Result<Self> {
        // The usual firmware's measurements stand at the front of the log.
        let node = fleet.expected(name, EkKind::P256)?;
        let mut log = BootLog::new();
        for pcr in 0..8_u8 {
            let digest = Pair { sha1: vec![pcr + 1; 20], sha256: vec![pcr + 1; 32] };
            log.event(pcr.into(), EV_S_CRTM_VERSION, &digest, b"played");
        }
        let separator = Pair::of(&[0; 4]);
        separator.extend(&node, 4)?;
        log.event(4, EV_SEPARATOR, &separator, &[0; 4]);
        let image = Pair::of(b"an image");
        image.extend(&node, 4)?;
        log.event(4, EV_EFI_BOOT_SERVICES_APPLICATION, &image, b"where it lies");
        // As GRUB does: the text itself.
        let text = Pair::of(COMMAND_LINE.as_bytes());
        text.extend(&node, 8)?;
        log.event(8, EV_IPL, &text, format!("kernel_cmdline: {COMMAND_LINE}").as_bytes());

        let mut values = Vec::new();
        for pcr in 0..10 {
            values.extend(hex::decode(node.tpm.pcr(pcr)?)?);
        }
        let aggregate = Pair::of(&values).sha256;
        let mut list = Vec::new();
        let files = FILES.map(|(path, contents)| (path, Pair::of(contents).sha256));
        for (path, digest) in [("boot_aggregate", aggregate)].into_iter().chain(files) {
            let (entry, template) = ima_entry(path, &digest);
            template.extend(&node, 10)?;
            list.extend(entry);
        }
        let file = |what: &str| fleet.rig.dir().join(format!("{name}-{what}"));
        let (boot_log, ima_log, command_line) = (file("boot.log"), file("ima.log"), file("cmdline"));
        fs::write(&boot_log, log.0)?;
        fs::write(&ima_log, list)?;
        fs::write(&command_line, format!("{COMMAND_LINE}\n"))?;
        Ok(Self { node, image, boot_log, ima_log, command_line })
    }

    fn start(&mut self, fleet: &Fleet) -> Result<()> {
        let paths = [&self.boot_log, &self.ima_log, &self.command_line].map(|path| path.to_string_lossy().into_owned());
        let [boot_log, ima_log, command_line] = &paths;
        let logs = ["--boot-log", boot_log, "--ima-log", ima_log, "--command-line", command_line];
        self.node.agent = Some(fleet.rig.agent(&self.node.tpm, &self.node.name, &logs)?);
        Ok(())
    }
}

/// A policy with rules on events of PCRs 4 and 8 and on files.
fn policy(name: &str, images: &[String], command_line: &str, files: &[(&str, &[u8])]) -> String {
    let listed =
        |digests: &[String]| digests.iter().map(|digest| format!("\"{digest}\"")).collect::<Vec<_>>().join(", ");
    let firmware = hex::encode([5; 32]);
    let images = listed(&[&[firmware], images].concat());
    let mut text = format!(
        "version = 1\nname = \"{name}\"\n[release]\nphase_pcr = {PHASE_PCR}\n[pcrs.sha256]\n{JUDGED_PCR} = [\"{}\"]\n\
         [boot]\npcrs = [4, 8]\ncommand_line = [\"{command_line}\"]\n\
         [[boot.event]]\nname = \"images\"\npcr = 4\ndigests = [{images}]\n\
         [ima]\n[ima.files]\n",
        played_value(JUDGED_PCR)
    );
    for (path, contents) in files {
        text.push_str(&format!("\"{path}\" = [\"sha256:{}\"]\n", Pair::of(contents).hex()));
    }
    text
}

/// What the policy would make of the node, by the API.
fn tried(fleet: &Fleet, text: &str, name: &str) -> Result<Value> {
    let (status, body) = fleet.rig.api("POST", "/policies/try", Some(&json!({ "policy": text, "nodes": [name] })))?;
    ensure!(status == 200, "{status} {body}");
    let nodes = body["nodes"].as_array().context("no nodes")?;
    ensure!(nodes.len() == 1 && nodes[0]["name"] == name, "not one result for the node: {body}");
    Ok(nodes[0].clone())
}

/// Check, short name and place of each finding.
fn places(findings: &Value) -> Result<Vec<Value>> {
    let findings = findings.as_array().context("no findings")?;
    Ok(findings.iter().map(|f| json!([f["check"], f["code"], f["pcr"], f["event"], f["entry"], f["path"]])).collect())
}

fn enforce(fleet: &Fleet, name: &str, text: &str) -> Result<()> {
    let path = fleet.rig.dir().join(format!("{name}-enforced.toml"));
    fs::write(&path, text)?;
    fleet.rig.trefoil(&["node", "set", name, "--policy", &path.to_string_lossy()]).map(drop)
}

#[test]
fn a_tried_policy_names_the_event_and_the_file_on_which_the_enforced_one_fails() -> Result<()> {
    need_tpm!();
    let fleet = Fleet::shared()?;
    let name = "tried";
    let mut booted = Booted::new(&fleet, name)?;
    let image = booted.image.hex();
    let before = policy("before", &[], COMMAND_LINE, &[]);
    let none = tried(&fleet, &before, name)?;
    ensure!(none["outcome"] == "no_evidence", "a node that was never there: {none}");
    booted.start(&fleet)?;
    fleet.is_delivered(&booted.node)?;

    // The quote covers what the policy in force names, and no more.
    let good = policy("good", &[image], COMMAND_LINE, &FILES);
    let result = tried(&fleet, &good, name)?;
    ensure!(result["outcome"] == "cannot_tell", "{result:#}");
    ensure!(result["summary"].as_str().is_some_and(|text| text.contains("sha256:4, sha256:8")), "{result:#}");

    enforce(&fleet, name, &good)?;
    fleet.rig.wait_node(name, "a good verdict by the new policy", SOON, |node| {
        node["trust"] == "good" && node["last_verdict"]["explanation"]["policy"] == "good"
    })?;
    let result = tried(&fleet, &good, name)?;
    ensure!(result["outcome"] == "good" && result["evidence_at_ms"].is_i64(), "{result:#}");
    // By name too, and on the whole fleet.
    let (status, body) = fleet.rig.api("POST", "/policies/try", Some(&json!({ "policy": "good" })))?;
    ensure!(status == 200 && body["nodes"].as_array().is_some_and(|nodes| !nodes.is_empty()), "{status} {body}");

    // The stored evidence is what was shown.
    let evidence = fleet.rig.api_get(&format!("/nodes/{name}/evidence?logs=true"))?;
    for (field, file) in [("boot_log", &booted.boot_log), ("ima_list", &booted.ima_log)] {
        let kept = STANDARD.decode(evidence["logs"][field].as_str().context(field)?)?;
        ensure!(kept == fs::read(file)?, "{field} is another than the node's");
    }
    ensure!(evidence["logs"]["command_line"] == STANDARD.encode(COMMAND_LINE), "{}", evidence["logs"]["command_line"]);
    ensure!(evidence["logs"]["ima_list_entries"] == 3 && evidence["ima_entries"] == 3, "{evidence:#}");

    // A policy that knows neither the image nor the tool.
    let next = policy("next", &[hex::encode([0x77; 32])], COMMAND_LINE, &FILES[..1]);
    let result = tried(&fleet, &next, name)?;
    ensure!(result["outcome"] == "failed", "{result:#}");
    let expected = places(&result["findings"])?;
    let at = |event: i64, entry: i64| {
        expected.iter().any(|f| f[3] == event && f[2] == 4)
            && expected.iter().any(|f| f[4] == entry && f[5] == FILES[1].0)
    };
    ensure!(expected.len() == 2 && at(10, 2), "{result:#}");
    // Another command line, which an event's digest rules out.
    let other = policy("other", &[booted.image.hex()], "root=/dev/vda1 ro", &FILES);
    let result = tried(&fleet, &other, name)?;
    ensure!(result["outcome"] == "failed" && !places(&result["findings"])?.is_empty(), "{result:#}");

    // None of it changed anything.
    let node = fleet.judged_anew(name, "good")?;
    ensure!(node["last_verdict"]["explanation"]["policy"] == "good", "{node:#}");
    let policies = fleet.rig.api_get("/policies")?;
    ensure!(!policies.to_string().contains("\"next\""), "a tried policy was stored: {policies}");

    enforce(&fleet, name, &next)?;
    let node = fleet.rig.wait_trust(name, "failed", SOON)?;
    let found = places(&node["last_verdict"]["explanation"]["findings"])?;
    ensure!(found == expected, "tried: {expected:?}\nenforced: {found:?}");
    Ok(())
}
