//! Policies: what is none, and whose signature counts.

use anyhow::Result;
use base64::Engine as _;
use protocol::tpm::alg::HashAlg;
use serde_json::{Value, json};

use super::super::Corpus;
use super::super::machine::{Input, Keys, Machine, pretty};
use super::super::tpm::Key;

/// What an envelope says that it holds.
const PAYLOAD_TYPE: &str = "application/vnd.trefoil.policy";

pub(super) fn add(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let good = machine.policy.clone().unwrap_or_default();
    let with = |policy: &[u8]| -> Result<Input> {
        let mut input = machine.input()?;
        input.file("--policy", "policy.json", policy);
        Ok(input)
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut policy = good.clone();
        change(&mut policy);
        with(&pretty(&policy))
    };
    type Change = fn(&mut Value);
    let invalid: [(&str, &str, Change); 16] = [
        ("unknown-field", "a field that nobody knows", |policy| policy["pcr"] = json!({})),
        ("unknown-section-field", "a field of a section that nobody knows", |policy| {
            policy["boot"] = json!({"secureboot": "on"})
        }),
        ("version", "version 2", |policy| policy["version"] = json!(2)),
        ("no-name", "the name is empty", |policy| policy["name"] = json!("")),
        ("resettable", "PCR 16 is listed, which any process can reset", |policy| {
            policy["pcrs"]["sha256"]["16"] = json!(["00".repeat(32)])
        }),
        ("pcr-24", "PCR 24 is listed, which does not exist", |policy| {
            policy["pcrs"]["sha256"]["24"] = json!(["00".repeat(32)])
        }),
        ("leading-zero", "a PCR is listed as 07", |policy| policy["pcrs"]["sha256"]["07"] = json!(["00".repeat(32)])),
        ("no-values", "a PCR without values", |policy| policy["pcrs"]["sha256"]["7"] = json!([])),
        ("short-value", "a value of 31 bytes in SHA-256", |policy| {
            policy["pcrs"]["sha256"]["7"] = json!(["00".repeat(31)])
        }),
        ("unknown-bank", "a bank that there is not", |policy| policy["pcrs"]["md5"] = json!({"7": ["00".repeat(16)]})),
        ("sha1", "the SHA-1 bank, without the exception for it", |policy| {
            policy["pcrs"]["sha1"] = json!({"7": ["00".repeat(20)]})
        }),
        ("unknown-exception", "an exception that nobody knows", |policy| policy["accept"] = json!(["everything"])),
        ("judges-nothing", "nothing that it would judge", |policy| policy["pcrs"] = json!({})),
        ("phase-pcr", "PCR 10, which is IMA's, as phase PCR", |policy| policy["release"] = json!({"phase_pcr": 10})),
        ("ima-violations", "violations neither fail nor are reported", |policy| {
            policy["ima"] = json!({"violations": "ignore"})
        }),
        ("ima-digest", "a file's digest that is no hex", |policy| {
            policy["ima"] = json!({"files": {"/usr/bin/x": ["xyz"]}})
        }),
    ];
    for (name, what, change) in invalid {
        corpus.error(name, what, changed(&change)?, "policy_invalid");
    }
    corpus.error("empty", "the policy is empty", with(b"")?, "policy_invalid");
    let text = pretty(&good);
    corpus.error("cut", "the policy is cut", with(&text[..text.len() / 2])?, "policy_invalid");
    corpus.error(
        "not-text",
        "the policy is not UTF-8",
        with(&[b"version = 1\nname = \"".as_slice(), &[0xff, 0xfe], b"\"\n"].concat())?,
        "policy_invalid",
    );
    corpus.error(
        "doubled-pcr",
        "a PCR stands there twice",
        with(String::from_utf8(text.clone())?.replacen("\"7\":", "\"0\":", 1).as_bytes())?,
        "policy_invalid",
    );

    corpus.pass("good-toml", "the policy in TOML", with(toml(&good).as_bytes())?);
    // What it judges.
    let fail = |policy: Result<Input>, corpus: &mut Corpus, name: &str, what: &str, reason| -> Result<()> {
        corpus.fail(name, what, policy?, "pcr_policy", reason);
        Ok(())
    };
    let other = HashAlg::Sha256.digest(&[b"other"]).to_string();
    fail(
        changed(&|policy| policy["pcrs"]["sha256"]["7"] = json!([other.clone()])),
        corpus,
        "mismatch",
        "PCR 7 holds a value that the policy does not list",
        "pcr_mismatch",
    )?;
    fail(
        changed(&|policy| policy["pcrs"]["sha256"]["8"] = json!([other.clone()])),
        corpus,
        "not-quoted",
        "the policy lists PCR 8, which was not quoted",
        "pcr_not_quoted",
    )?;
    fail(
        changed(&|policy| policy["pcrs"]["sha384"] = json!({"7": ["00".repeat(48)]})),
        corpus,
        "bank-not-quoted",
        "the policy lists a bank that was not quoted",
        "pcr_not_quoted",
    )?;
    let listed = changed(&|policy| {
        if let Some(values) = policy["pcrs"]["sha256"]["7"].as_array_mut() {
            values.insert(0, json!(other.clone()));
        }
    })?;
    corpus.pass("good-one-of-two", "PCR 7 holds the second of the listed values", listed);
    let mut zeros = machine.clone();
    zeros.pcrs.iter_mut().for_each(|((bank, _), value)| *value = protocol::tpm::alg::Digest::zero(*bank));
    zeros.policy = Some(json!({"version": 1, "name": "zeros", "pcrs": {"sha256": {"0": ["00".repeat(32)]}}}));
    corpus.fail(
        "firmware-silent",
        "firmware measured nothing into the bank: anybody could measure anything",
        zeros.input()?,
        "pcr_policy",
        "no_firmware_measurements",
    );
    zeros.policy = Some(
        json!({"version": 1, "name": "zeros", "accept": ["no-firmware-measurements"], "pcrs": {"sha256": {"0": ["00".repeat(32)]}}}),
    );
    corpus.pass(
        "good-firmware-silent",
        "firmware measured nothing, and the policy accepts that by name",
        zeros.input()?,
    );
    signed(corpus, keys, &machine, &text)
}

/// The policy as people write it.
fn toml(policy: &Value) -> String {
    let mut text = format!("version = 1\nname = {}\n\n[pcrs.sha256]\n", policy["name"]);
    for (pcr, values) in policy["pcrs"]["sha256"].as_object().into_iter().flatten() {
        text.push_str(&format!("{pcr} = {values}\n"));
    }
    text
}

/// A DSSE envelope: the payload's type as named, and as signed.
fn envelope(key: &Key, payload: &[u8], named: &str, signed: &str) -> Result<Value> {
    let Key::P256(key) = key else { anyhow::bail!("policies are signed with P-256") };
    let head = format!("DSSEv1 {} {signed} {} ", signed.len(), payload.len());
    use p256::ecdsa::signature::hazmat::PrehashSigner as _;
    let digest = HashAlg::Sha256.digest(&[head.as_bytes(), payload]);
    let signature: p256::ecdsa::Signature = key.sign_prehash(&digest)?;
    let engine = base64::engine::general_purpose::STANDARD;
    Ok(json!({
        "payload": engine.encode(payload),
        "payloadType": named,
        "signatures": [{"keyid": "", "sig": engine.encode(signature.to_der().as_bytes())}],
    }))
}

fn signed(corpus: &mut Corpus, keys: &Keys, machine: &Machine<'_>, text: &[u8]) -> Result<()> {
    let with = |policy: &[u8], key: &str| -> Result<Input> {
        let mut input = machine.input()?;
        input.file("--policy", "policy.json", policy);
        input.file("--policy-key", "policy-key.pem", key.as_bytes());
        Ok(input)
    };
    let pem = keys.policy.pem();
    let good = envelope(&keys.policy, text, PAYLOAD_TYPE, PAYLOAD_TYPE)?;
    corpus.pass("good-signed", "a policy signed by the given key", with(&pretty(&good), &pem)?);
    let both = format!("{}{pem}", keys.other.pem());
    corpus.pass(
        "good-signed-by-second",
        "a policy signed by the second of the given keys",
        with(&pretty(&good), &both)?,
    );
    corpus.fail(
        "unsigned",
        "the policy is not signed, and a signature is asked for",
        with(text, &pem)?,
        "policy",
        "policy_unsigned",
    );
    let bad = |corpus: &mut Corpus, name: &str, what: &str, envelope: Value| -> Result<()> {
        corpus.fail(name, what, with(&pretty(&envelope), &pem)?, "policy", "policy_signature_bad");
        Ok(())
    };
    bad(
        corpus,
        "signed-by-other",
        "another key signed the policy",
        envelope(&keys.other, text, PAYLOAD_TYPE, PAYLOAD_TYPE)?,
    )?;
    bad(
        corpus,
        "signed-as-other-type",
        "the signature is over another payload type",
        envelope(&keys.policy, text, PAYLOAD_TYPE, "application/json")?,
    )?;
    bad(
        corpus,
        "other-type",
        "the envelope is of another payload type",
        envelope(&keys.policy, text, "application/json", "application/json")?,
    )?;
    let mut other_text = good.clone();
    let changed = String::from_utf8(text.to_vec())?.replacen("corpus", "corpuz", 1);
    other_text["payload"] = json!(base64::engine::general_purpose::STANDARD.encode(changed));
    bad(corpus, "changed-after-signing", "the policy was changed after it was signed", other_text)?;
    let mut none = good.clone();
    none["signatures"] = json!([]);
    bad(corpus, "no-signatures", "the envelope has no signature", none)?;
    let mut input = with(&pretty(&good), &pem)?;
    input.file("--policy-key", "policy-key.pem", b"no key\n");
    corpus.error("key-unreadable", "the key to verify the policy with cannot be read", input, "policy_key_unreadable");
    Ok(())
}
