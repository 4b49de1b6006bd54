//! A machine in good order, and what it shows of itself. A case changes one thing: of the machine, which then quotes it
//! truthfully, or of the files after they were made.

use std::collections::BTreeMap;

use anyhow::Result;
use protocol::crypto::bind::{PURPOSE_ATTEST, qualifying_data};
use protocol::id::{NodeId, Role};
use protocol::tpm::alg::{Digest, HashAlg};
use serde_json::{Map, Value, json};

use super::boot::{BootLog, COMMAND_LINE, Firmware};
use super::ima::{self, Entry};
use super::tpm::{Area, Attest, ENDORSEMENT, Key, Scheme, Signature};
use super::x509::{self, Certificate};

/// When certificates are judged.
pub(super) const AT: &str = "2026-06-01T00:00:00Z";
/// SHA-256 of the server certificate, and the nonce, that the qualifying data is made of.
pub(super) const SERVER: [u8; 32] = [0x5e; 32];
pub(super) const NONCE: [u8; 32] = [0x4e; 32];
pub(super) const NODE: NodeId = NodeId([0x1d; 32]);

/// The keys of a corpus, made once.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) p256: Key,
    pub(super) p384: Key,
    pub(super) rsa2048: Key,
    pub(super) rsa3072: Key,
    pub(super) rsa4096: Key,
    pub(super) other: Key,
    pub(super) root: Key,
    pub(super) issuing: Key,
    pub(super) ek: Key,
    pub(super) files: Key,
    pub(super) policy: Key,
    pub(super) firmware: Firmware,
}

impl Keys {
    pub(super) fn make() -> Result<Self> {
        let platform = Key::p256();
        let firmware_ca = |name: &str, key: &Key| Certificate::ca(name, name, key, None).sign(key);
        let firmware = Firmware {
            pk: firmware_ca("corpus PK", &platform)?,
            kek: firmware_ca("corpus KEK", &platform)?,
            db: firmware_ca("corpus UEFI CA", &platform)?,
            revoked: ["bootkit", "old shim"].map(|name| sha256(name.as_bytes())).to_vec(),
        };
        Ok(Self {
            p256: Key::p256(),
            p384: Key::p384(),
            rsa2048: Key::rsa(2048)?,
            rsa3072: Key::rsa(3072)?,
            rsa4096: Key::rsa(4096)?,
            other: Key::p256(),
            root: Key::p256(),
            issuing: Key::p256(),
            ek: Key::p256(),
            files: Key::p256(),
            policy: Key::p256(),
            firmware,
        })
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Vec<u8> {
    HashAlg::Sha256.digest(&[bytes]).to_vec()
}

pub(super) fn hex_sha256(bytes: &[u8]) -> String {
    hex::encode(sha256(bytes))
}

/// The qualifying data that a node's quote carries in answer to `nonce`.
pub(super) fn qualifying(nonce: [u8; 32]) -> Result<Vec<u8>> {
    Ok(qualifying_data(PURPOSE_ATTEST, NODE, None, &SERVER, &[(Role::Verifier, nonce)])?.to_vec())
}

/// A machine.
#[derive(Clone, Debug)]
pub(super) struct Machine<'k> {
    pub(super) key: &'k Key,
    pub(super) scheme: Scheme,
    pub(super) area: Area,
    /// What was asked for.
    pub(super) qualifying: Vec<u8>,
    /// Banks and PCRs that are quoted, in this order.
    pub(super) selection: Vec<(HashAlg, Vec<u8>)>,
    /// What its PCRs hold.
    pub(super) pcrs: BTreeMap<(HashAlg, u8), Digest>,
    pub(super) boot: Option<BootLog>,
    pub(super) ima: Option<Vec<Entry>>,
    pub(super) policy: Option<Value>,
    pub(super) previous: Option<Value>,
    pub(super) node_rules: bool,
    /// resetCount, restartCount, clock, firmware version, safe.
    pub(super) clock: (u32, u32, u64, u64, u8),
}

impl<'k> Machine<'k> {
    /// A machine without logs: PCRs 0 to 7 in SHA-256, two of which the policy lists.
    pub(super) fn plain(key: &'k Key, scheme: Scheme) -> Result<Self> {
        let bank = HashAlg::Sha256;
        let pcrs: BTreeMap<_, _> = (0..8u8).map(|pcr| ((bank, pcr), bank.digest(&[b"pcr", &[pcr]]))).collect();
        let listed = |pcr: u8| json!([pcrs.get(&(bank, pcr)).map(ToString::to_string).unwrap_or_default()]);
        let policy = json!({
            "version": 1, "name": "corpus", "pcrs": {"sha256": {"0": listed(0), "7": listed(7)}},
        });
        Ok(Self {
            key,
            scheme,
            area: key.area(scheme),
            qualifying: qualifying(NONCE)?,
            selection: vec![(bank, (0..8).collect())],
            pcrs,
            boot: None,
            ima: None,
            policy: Some(policy),
            previous: None,
            node_rules: true,
            clock: (7, 2, 123_456_789, 0x0001_0002_0003_0004, 1),
        })
    }

    /// A machine with both logs and a policy with rules for either.
    pub(super) fn full(keys: &'k Keys) -> Result<Self> {
        let mut machine = Self::plain(&keys.p256, keys.p256.scheme())?;
        let boot = BootLog::good(&keys.firmware);
        let aggregate = boot_aggregate(&boot);
        let files = [("/usr/bin/bash", "bash"), ("/usr/bin/ls", "ls"), ("/usr/lib/libc.so.6", "libc")];
        let mut entries = vec![Entry::file("boot_aggregate", &aggregate)];
        entries.extend(files.iter().map(|(path, content)| Entry::file(path, &sha256(content.as_bytes()))));
        let listed: Map<String, Value> =
            files.iter().map(|(path, content)| ((*path).into(), json!([hex_sha256(content.as_bytes())]))).collect();
        machine.selection = vec![(HashAlg::Sha256, (0..11).chain([14]).collect())];
        machine.policy = Some(json!({
            "version": 1,
            "name": "corpus",
            "boot": boot_rules(&keys.firmware),
            "ima": {"exclude": ["/tmp/**"], "files": listed},
        }));
        machine.boot = Some(boot);
        machine.ima = Some(entries);
        machine.truthful();
        Ok(machine)
    }

    /// A machine whose boot log alone is shown and judged.
    pub(super) fn booted(keys: &'k Keys) -> Result<Self> {
        let mut machine = Self::full(keys)?;
        machine.ima = None;
        machine.selection = vec![(HashAlg::Sha256, (0..10).chain([14]).collect())];
        machine.section_mut("ima", |policy| {
            policy.remove("ima");
        });
        machine.truthful();
        Ok(machine)
    }

    /// A machine whose IMA list alone is shown and judged; its boot_aggregate is left open.
    pub(super) fn measured(keys: &'k Keys) -> Result<Self> {
        let mut machine = Self::full(keys)?;
        machine.boot = None;
        machine.section_mut("boot", |policy| {
            policy.remove("boot");
        });
        machine.rules("ima").insert("boot_aggregate".into(), json!("any"));
        Ok(machine)
    }

    fn section_mut(&mut self, _name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        if let Some(policy) = self.policy.as_mut().and_then(Value::as_object_mut) {
            change(policy);
        }
    }

    /// A section of the policy, to change; empty if there was none.
    pub(super) fn rules(&mut self, section: &str) -> &mut Map<String, Value> {
        let policy = self.policy.get_or_insert_with(|| json!({"version": 1, "name": "corpus"}));
        if !policy.is_object() {
            *policy = json!({});
        }
        let entry = &mut policy[section];
        if !entry.is_object() {
            *entry = json!({});
        }
        entry.as_object_mut().expect("an object was put there")
    }

    /// The boot log, to change.
    pub(super) fn boot_mut(&mut self) -> &mut BootLog {
        self.boot.as_mut().expect("the machine has a boot log")
    }

    /// The IMA list, to change.
    pub(super) fn ima_mut(&mut self) -> &mut Vec<Entry> {
        self.ima.get_or_insert_with(Vec::new)
    }

    /// Lets the PCRs hold what the logs extended.
    pub(super) fn truthful(&mut self) {
        let banks: Vec<HashAlg> = self.selection.iter().map(|(bank, _)| *bank).collect();
        for bank in banks {
            if let Some(boot) = &self.boot {
                self.pcrs.extend(boot.replay(bank).into_iter().map(|(pcr, value)| ((bank, pcr), value)));
            }
            if let Some(entries) = &self.ima {
                self.pcrs.insert((bank, 10), ima::replay(entries, bank));
            }
        }
    }

    /// Selection as in a TPMS_ATTEST.
    pub(super) fn selection_bytes(&self) -> Vec<(u16, Vec<u8>)> {
        let bits = |pcrs: &[u8]| {
            let mask = pcrs.iter().fold(0u32, |mask, pcr| mask | 1 << pcr);
            mask.to_le_bytes().into_iter().take(3).collect()
        };
        self.selection.iter().map(|(bank, pcrs)| (bank.id(), bits(pcrs))).collect()
    }

    /// The digest of the selected PCRs' values, in order.
    pub(super) fn pcr_digest(&self) -> Vec<u8> {
        let selected = self.selection.iter().flat_map(|(bank, pcrs)| pcrs.iter().map(move |pcr| (*bank, *pcr)));
        let values: Vec<u8> = selected.filter_map(|key| self.pcrs.get(&key)).flat_map(|value| value.to_vec()).collect();
        self.scheme.hash.digest(&[&values]).to_vec()
    }

    /// What its TPM would sign.
    pub(super) fn attest(&self) -> Attest {
        let (reset_count, restart_count, clock, firmware, safe) = self.clock;
        Attest {
            magic: 0xff54_4347,
            kind: 0x8018,
            signer: self.area.qualified_name(ENDORSEMENT),
            extra: self.qualifying.clone(),
            clock,
            reset_count,
            restart_count,
            safe,
            firmware,
            selection: self.selection_bytes(),
            digest: self.pcr_digest(),
        }
    }

    /// Everything it shows.
    pub(super) fn input(&self) -> Result<Input> {
        self.input_of(&self.attest())
    }

    /// Everything it shows, with this signed.
    pub(super) fn input_of(&self, attest: &Attest) -> Result<Input> {
        self.input_of_bytes(&attest.encode())
    }

    /// Everything it shows, with these bytes signed.
    pub(super) fn input_of_bytes(&self, attest: &[u8]) -> Result<Input> {
        let signature = self.key.sign(attest, self.scheme)?;
        Ok(self.input_signed(attest, &signature))
    }

    /// Everything it shows, with this signature.
    pub(super) fn input_signed(&self, attest: &[u8], signature: &Signature) -> Input {
        let mut input = Input::default();
        input.file("--quote", "quote.bin", attest);
        input.file("--signature", "signature.bin", &signature.encode());
        input.file("--ak", "ak.tpm2b", &self.area.tpm2b());
        input.text("--qualifying-data", &hex::encode(&self.qualifying));
        input.file("--pcrs", "pcrs.json", &pretty(&self.pcrs_json()));
        if let Some(boot) = &self.boot {
            input.file("--boot-log", "boot-log.bin", &boot.encode());
            input.file("--command-line", "cmdline", format!("{COMMAND_LINE}\n").as_bytes());
        }
        if let Some(entries) = &self.ima {
            input.file("--ima", "ima.bin", &ima::encode(entries));
        }
        if let Some(policy) = &self.policy {
            input.file("--policy", "policy.json", &pretty(policy));
        }
        if let Some(previous) = &self.previous {
            input.file("--previous", "previous.json", &pretty(previous));
        }
        if self.node_rules {
            input.flags.push("--node-rules".into());
        }
        input
    }

    /// The selected PCRs' values in JSON.
    pub(super) fn pcrs_json(&self) -> Value {
        let mut banks = Map::new();
        for (bank, pcrs) in &self.selection {
            let values: Map<String, Value> = pcrs
                .iter()
                .filter_map(|pcr| Some((pcr.to_string(), json!(self.pcrs.get(&(*bank, *pcr))?.to_string()))))
                .collect();
            banks.insert(bank.name().into(), values.into());
        }
        banks.into()
    }

    /// The selected PCRs' values one after the other.
    pub(super) fn pcr_values(&self) -> Vec<u8> {
        let selected = self.selection.iter().flat_map(|(bank, pcrs)| pcrs.iter().map(move |pcr| (*bank, *pcr)));
        selected.filter_map(|key| self.pcrs.get(&key)).flat_map(|value| value.to_vec()).collect()
    }

    /// What tpm2-tools dump: TPML_PCR_SELECTION and TPML_DIGESTs as C has them in memory, little-endian.
    pub(super) fn pcr_dump(&self) -> Vec<u8> {
        let mut dump = (self.selection.len() as u32).to_le_bytes().to_vec();
        for (bank, bits) in self.selection_bytes() {
            dump.extend_from_slice(&bank.to_le_bytes());
            dump.push(3);
            dump.extend_from_slice(&bits);
            dump.extend_from_slice(&[0, 0]);
        }
        dump.resize(132, 0);
        let selected = self.selection.iter().flat_map(|(bank, pcrs)| pcrs.iter().map(move |pcr| (*bank, *pcr)));
        let values: Vec<&Digest> = selected.filter_map(|key| self.pcrs.get(&key)).collect();
        dump.extend_from_slice(&(values.len().div_ceil(8) as u32).to_le_bytes());
        for list in values.chunks(8) {
            dump.extend_from_slice(&(list.len() as u32).to_le_bytes());
            for slot in 0..8 {
                let value = list.get(slot).map_or(&[][..], |value| value.as_bytes());
                dump.extend_from_slice(&(value.len() as u16).to_le_bytes());
                let end = dump.len() + 64;
                dump.extend_from_slice(value);
                dump.resize(end, 0);
            }
        }
        dump
    }
}

/// What the kernel calls the boot by: SHA-256 over PCRs 0 to 9.
pub(super) fn boot_aggregate(boot: &BootLog) -> Vec<u8> {
    let pcrs = boot.replay(HashAlg::Sha256);
    let values: Vec<u8> = (0..10).filter_map(|pcr| pcrs.get(&pcr)).flat_map(|value| value.to_vec()).collect();
    sha256(&values)
}

/// `[boot]` of a policy that the good log fulfils, and little else does.
fn boot_rules(firmware: &Firmware) -> Value {
    let of = |content: &str| hex_sha256(content.as_bytes());
    let utf16: Vec<u8> = "1.42\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    json!({
        "pcrs": [0, 2, 4, 7, 8, 9, 14],
        "secure_boot": "on",
        "command_line": [COMMAND_LINE],
        "sbat": ["shim,4", "grub,3"],
        "keys": {
            "pk": {"only": [hex_sha256(&firmware.pk)]},
            "kek": {"only": [hex_sha256(&firmware.kek)]},
            "db": {"only": [hex_sha256(&firmware.db)]},
            "dbx": {"require": firmware.revoked.iter().map(hex::encode).collect::<Vec<_>>()},
            "authorities": {"only": [hex_sha256(&firmware.db)]},
        },
        "event": [
            {"name": "firmware 1.42", "pcr": 0, "digests": [hex_sha256(&utf16), of("ACPI DATA")]},
            {"name": "MokList", "pcr": 14, "digests": [of("contents of MokList")], "required": true},
        ],
        "chain": [{
            "name": "6.1",
            "images": [of("shim 15.8"), of("grub 2.12"), of("kernel 6.1")],
            "files": [of("initrd 6.1")],
            "command_line": COMMAND_LINE,
        }],
    })
}

/// JSON as a file.
pub(super) fn pretty(value: &Value) -> Vec<u8> {
    let mut bytes = format!("{value:#}").into_bytes();
    bytes.push(b'\n');
    bytes
}

/// The files and arguments of a case.
#[derive(Clone, Debug, Default)]
pub(super) struct Input {
    /// By argument: the file's name and bytes.
    pub(super) files: BTreeMap<&'static str, (&'static str, Vec<u8>)>,
    /// By argument: its value.
    pub(super) texts: BTreeMap<&'static str, String>,
    /// Arguments without a value.
    pub(super) flags: Vec<String>,
}

impl Input {
    /// Gives a file, in place of one that was there.
    pub(super) fn file(&mut self, argument: &'static str, name: &'static str, bytes: &[u8]) {
        self.files.insert(argument, (name, bytes.to_vec()));
    }

    /// Gives a value.
    pub(super) fn text(&mut self, argument: &'static str, value: &str) {
        self.texts.insert(argument, value.into());
    }

    /// The arguments as `trefoil appraise` takes them.
    pub(super) fn arguments(&self) -> Vec<String> {
        let files = self.files.iter().flat_map(|(argument, (name, _))| [(*argument).to_owned(), (*name).to_owned()]);
        let texts = self.texts.iter().flat_map(|(argument, value)| [(*argument).to_owned(), value.clone()]);
        files.chain(texts).chain(self.flags.iter().cloned()).collect()
    }
}

/// An EK certificate with its issuing CA, and the root that is trusted.
pub(super) fn ek_input(chain: &[Vec<u8>], roots: &[Vec<u8>]) -> Input {
    let mut input = Input::default();
    let pem =
        |certificates: &[Vec<u8>]| -> String { certificates.iter().map(|der| x509::pem("CERTIFICATE", der)).collect() };
    input.file("--ek-cert", "ek.pem", pem(chain).as_bytes());
    input.file("--ek-roots", "ek-roots.pem", pem(roots).as_bytes());
    input.text("--at", AT);
    input
}
