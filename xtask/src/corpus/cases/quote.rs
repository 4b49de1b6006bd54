//! What was signed: its form, what it is bound to, and the counters in it.

use anyhow::Result;
use protocol::crypto::bind::{PURPOSE_ATTEST, PURPOSE_BOOTSTRAP, qualifying_data};
use protocol::id::{NodeId, Role};
use protocol::tpm::alg::HashAlg;
use serde_json::{Value, json};

use super::super::Corpus;
use super::super::machine::{Keys, Machine, NODE, NONCE, SERVER, qualifying};
use super::super::tpm::{self, Attest, ENDORSEMENT};

pub(super) fn structure(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let of = |change: &dyn Fn(&mut Attest)| {
        let mut attest = machine.attest();
        change(&mut attest);
        machine.input_of(&attest)
    };
    corpus.pass("good", "a quote of a P-256 key", machine.input()?);
    for (name, key) in [("p384", &keys.p384), ("rsa2048", &keys.rsa2048)] {
        let machine = Machine::plain(key, key.scheme())?;
        corpus.pass(&format!("good-{name}"), &format!("a quote of our {name} template"), machine.input()?);
    }
    for (name, magic) in [("zero", 0), ("swapped", 0x4743_54ff), ("by-one", 0xff54_4348u32)] {
        let what = "magic is not TPM_GENERATED_VALUE: a key that is not restricted can sign that";
        corpus.fail(&format!("magic-{name}"), what, of(&|attest| attest.magic = magic)?, "quote", "wrong_magic");
    }
    for (name, kind) in [
        ("certify", 0x8017),
        ("creation", 0x801a),
        ("nv", 0x8014),
        ("time", 0x8019),
        ("session-audit", 0x8016),
        ("command-audit", 0x8015),
        ("nv-digest", 0x801c),
    ] {
        let what = format!("the attestation is of type {name}, not a quote");
        corpus.fail(&format!("type-{name}"), &what, of(&|attest| attest.kind = kind)?, "quote", "not_a_quote");
    }
    let area = &machine.area;
    for (name, what, signer) in [
        ("of-other-key", "the qualified signer is another key", {
            let other = keys.other.area(keys.other.scheme());
            other.qualified_name(ENDORSEMENT)
        }),
        ("in-owner-hierarchy", "the qualified signer is the key in the owner hierarchy", {
            area.qualified_name(0x4000_0001)
        }),
        ("is-the-name", "the qualified signer is the key's Name, not its Qualified Name", area.name()),
        ("by-other-hash", "the qualified signer is made with SHA-384 instead of SHA-256", {
            tpm::name_over(HashAlg::Sha384.id(), &[&ENDORSEMENT.to_be_bytes(), &area.name()])
        }),
    ] {
        let input = of(&|attest| attest.signer.clone_from(&signer))?;
        corpus.fail(&format!("signer-{name}"), what, input, "quote", "wrong_signer");
    }
    for (name, what, signer) in [
        ("empty", "the qualified signer is empty", Vec::new()),
        ("handle", "the qualified signer is a handle", vec![0x81, 0, 0, 1]),
        ("short", "the qualified signer's digest is a byte short", {
            let mut name = area.qualified_name(ENDORSEMENT);
            name.pop();
            name
        }),
        ("unknown-hash", "the qualified signer names an unknown hash algorithm", {
            [&[0, 0x7f][..], &[1; 32]].concat()
        }),
    ] {
        let input = of(&|attest| attest.signer.clone_from(&signer))?;
        let reason = match name {
            "empty" => "quote_truncated",
            _ => "quote_malformed",
        };
        corpus.error(&format!("signer-{name}"), what, input, reason);
    }
    let safe = of(&|attest| attest.safe = 2)?;
    corpus.error("safe-of-two", "safe is neither YES nor NO", safe, "quote_malformed");
    let digest = of(&|attest| {
        attest.digest.pop();
    })?;
    corpus.error("digest-short", "the PCR digest has a length that no hash has", digest, "quote_malformed");
    corpus.error("digest-empty", "the PCR digest is empty", of(&|attest| attest.digest.clear())?, "quote_malformed");
    let extra = of(&|attest| attest.extra = vec![7; 67])?;
    corpus.error("extra-data-too-long", "extraData is longer than a TPM2B_DATA can be", extra, "quote_too_long");
    let trailing = [machine.attest().encode(), vec![0]].concat();
    corpus.error(
        "trailing-byte",
        "a byte after the TPMS_ATTEST, signed with it",
        machine.input_of_bytes(&trailing)?,
        "quote_trailing_bytes",
    );
    corpus.error("empty", "the quote is empty", machine.input_of_bytes(&[])?, "quote_truncated");
    for (at, (field, bytes)) in tpm::cuts(&machine.attest().parts()).into_iter().enumerate() {
        let what = format!("the TPMS_ATTEST ends within {field}");
        corpus.error(&format!("cut-{at:02}-{field}"), &what, machine.input_of_bytes(&bytes)?, "quote_truncated");
    }
    Ok(())
}

pub(super) fn binding(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let asked = machine.qualifying.clone();
    let nk = [4; 65];
    let nonces = [(Role::Verifier, NONCE)];
    let other_node = NodeId([0x1e; 32]);
    let mut flipped = asked.clone();
    if let Some(last) = flipped.last_mut() {
        *last ^= 1;
    }
    let mut cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("bit", "extraData differs in one bit", flipped),
        ("shorter", "extraData is a byte shorter than the qualifying data", asked.iter().copied().take(31).collect()),
        ("longer", "extraData is the qualifying data and a byte more", [asked.as_slice(), &[1]].concat()),
        ("padded", "extraData is the qualifying data, padded with zeros", [asked.as_slice(), &[0; 32]].concat()),
        ("padded-before", "extraData is the qualifying data behind a zero", [&[0][..], &asked].concat()),
        ("empty", "extraData is empty", Vec::new()),
        ("hashed", "extraData is the hash of the qualifying data", super::super::machine::sha256(&asked)),
        ("nonce-alone", "extraData is the nonce alone, bound to nothing", NONCE.to_vec()),
        ("replay", "a replay: an older quote, which answers another nonce", qualifying([0x0d; 32])?),
    ];
    let bind = |purpose, node, nk: Option<&[u8; 65]>, server: &[u8; 32], nonces: &[(Role, [u8; 32])]| {
        qualifying_data(purpose, node, nk, server, nonces).map(|data| data.to_vec())
    };
    cases.push((
        "purpose",
        "a quote for purpose 1 (bootstrap) where purpose 2 was asked for",
        bind(PURPOSE_BOOTSTRAP, NODE, Some(&nk), &SERVER, &nonces)?,
    ));
    cases.push((
        "other-node",
        "a quote bound to another node",
        bind(PURPOSE_ATTEST, other_node, None, &SERVER, &nonces)?,
    ));
    cases.push((
        "other-server",
        "a quote bound to another server certificate",
        bind(PURPOSE_ATTEST, NODE, None, &[0x5f; 32], &nonces)?,
    ));
    cases.push((
        "other-role",
        "a quote that answers the nonce as another role's",
        bind(PURPOSE_ATTEST, NODE, None, &SERVER, &[(Role::Tenant, NONCE)])?,
    ));
    cases.push((
        "one-nonce-more",
        "a quote that answers one nonce more",
        bind(PURPOSE_ATTEST, NODE, None, &SERVER, &[(Role::Verifier, NONCE), (Role::Tenant, [9; 32])])?,
    ));
    for (name, what, extra) in cases {
        let mut attest = machine.attest();
        attest.extra = extra;
        corpus.fail(name, what, machine.input_of(&attest)?, "qualifying_data", "wrong_binding");
    }
    // The other way round: purpose 1 was asked for.
    let mut machine = machine;
    machine.qualifying = bind(PURPOSE_BOOTSTRAP, NODE, Some(&nk), &SERVER, &nonces)?;
    corpus.pass("good-bootstrap", "a quote bound to a node's bootstrap key", machine.input()?);
    let mut attest = machine.attest();
    attest.extra = bind(PURPOSE_BOOTSTRAP, NODE, Some(&[5; 65]), &SERVER, &nonces)?;
    corpus.fail(
        "other-nk",
        "a quote bound to another bootstrap key",
        machine.input_of(&attest)?,
        "qualifying_data",
        "wrong_binding",
    );
    let mut attest = machine.attest();
    attest.extra = asked;
    corpus.fail(
        "purpose-attest",
        "a quote for purpose 2 (attestation) where purpose 1 was asked for",
        machine.input_of(&attest)?,
        "qualifying_data",
        "wrong_binding",
    );
    Ok(())
}

/// What is remembered: resetCount, restartCount, clock, firmware version.
fn remembered(reset: u32, restart: u32, clock: u64, firmware: u64) -> Value {
    json!({"reset_count": reset, "restart_count": restart, "clock": clock, "firmware_version": firmware})
}

pub(super) fn continuity(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    const FIRMWARE: u64 = 0x0001_0002_0003_0004;
    let mut machine = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let mut of = |previous: Value, now: (u32, u32, u64, u64, u8)| {
        machine.previous = Some(previous);
        machine.clock = now;
        machine.input()
    };
    for (name, what, previous, now) in [
        (
            "good-same-boot",
            "a quote later in the same boot",
            remembered(7, 2, 1000, FIRMWARE),
            (7, 2, 2000, FIRMWARE, 1),
        ),
        ("good-reboot", "a quote after a reboot", remembered(7, 2, 1000, FIRMWARE), (8, 0, 2000, FIRMWARE, 1)),
        ("good-resume", "a quote after a suspend", remembered(7, 2, 1000, FIRMWARE), (7, 3, 2000, FIRMWARE, 1)),
        (
            "good-not-safe",
            "safe is NO: the TPM lost power without a shutdown",
            remembered(7, 2, 1000, FIRMWARE),
            (8, 0, 900, FIRMWARE, 0),
        ),
        (
            "good-upgrade",
            "other TPM firmware after a reboot",
            remembered(7, 2, 1000, FIRMWARE),
            (8, 0, 2000, FIRMWARE + 1, 1),
        ),
    ] {
        corpus.pass(name, what, of(previous, now)?);
    }
    for (name, what, previous, now, reason) in [
        (
            "reset-count",
            "resetCount went back",
            remembered(7, 2, 1000, FIRMWARE),
            (6, 2, 2000, FIRMWARE, 1),
            "rolled_back",
        ),
        (
            "restart-count",
            "restartCount went back within a boot",
            remembered(7, 2, 1000, FIRMWARE),
            (7, 1, 2000, FIRMWARE, 1),
            "rolled_back",
        ),
        (
            "clock",
            "the clock went back within a boot",
            remembered(7, 2, 1000, FIRMWARE),
            (7, 2, 999, FIRMWARE, 1),
            "clock_rolled_back",
        ),
        (
            "cleared",
            "resetCount, restartCount and clock began anew: TPM2_Clear",
            remembered(70, 2, 1_000_000, FIRMWARE),
            (0, 0, 50, FIRMWARE, 1),
            "tpm_cleared",
        ),
        (
            "firmware",
            "other TPM firmware within a boot",
            remembered(7, 2, 1000, FIRMWARE),
            (7, 2, 2000, FIRMWARE + 1, 1),
            "firmware_changed",
        ),
    ] {
        corpus.fail(name, what, of(previous, now)?, "continuity", reason);
    }
    Ok(())
}
