//! Which PCRs were quoted, and the values behind the digest.

use anyhow::Result;
use protocol::tpm::alg::HashAlg;
use serde_json::json;

use super::super::Corpus;
use super::super::machine::{Keys, Machine, pretty};

pub(super) fn add(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    selection(corpus, keys)?;
    digest(corpus, keys)?;
    values(corpus, keys)
}

/// PCRs 0 to 7 of SHA-256 and PCR 0 to 3 of SHA-384.
fn two_banks(keys: &Keys) -> Result<Machine<'_>> {
    let mut machine = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let bank = HashAlg::Sha384;
    machine.pcrs.extend((0..4u8).map(|pcr| ((bank, pcr), bank.digest(&[b"pcr", &[pcr]]))));
    machine.selection.push((bank, (0..4).collect()));
    Ok(machine)
}

fn selection(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let plain = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let two = two_banks(keys)?;
    corpus.pass("good-two-banks", "two banks, quoted as asked", two.input()?);
    let mut permuted = two.clone();
    permuted.selection.reverse();
    let mut input = permuted.input()?;
    input.file("--pcrs", "pcrs.json", &pretty(&two.pcrs_json()));
    corpus.pass("good-permuted", "the banks quoted in another order than asked, and digested in the quoted one", input);
    let mut empty_bank = plain.attest();
    empty_bank.selection.push((HashAlg::Sha384.id(), vec![0, 0, 0]));
    corpus.pass(
        "good-empty-bank",
        "a bank without PCRs beside the one that was asked for",
        plain.input_of(&empty_bank)?,
    );
    let mut wide = plain.attest();
    for (_, bits) in &mut wide.selection {
        bits.push(0);
    }
    corpus.pass("good-four-select-bytes", "sizeofSelect is 4, and no PCR above 23 is selected", plain.input_of(&wide)?);

    // Each quotes truthfully what was not asked for; the file of values says what was.
    let asked = pretty(&plain.pcrs_json());
    let other = |change: &dyn Fn(&mut Machine<'_>)| -> Result<_> {
        let mut machine = two.clone();
        machine.selection.truncate(1);
        change(&mut machine);
        let mut input = machine.input()?;
        input.file("--pcrs", "pcrs.json", &asked);
        Ok(input)
    };
    type Change = fn(&mut Machine<'_>);
    let cases: [(&str, &str, Change); 6] = [
        ("selection-subset", "PCR 7 was asked for and is not quoted", |machine| {
            machine.selection[0].1.retain(|pcr| *pcr != 7)
        }),
        ("selection-superset", "PCR 8 is quoted and was not asked for", |machine| {
            let value = HashAlg::Sha256.digest(&[b"more"]);
            machine.pcrs.insert((HashAlg::Sha256, 8), value);
            machine.selection[0].1.push(8);
        }),
        ("selection-other-pcr", "PCR 16, which anybody can reset, stands in for PCR 7", |machine| {
            let value = machine.pcrs.get(&(HashAlg::Sha256, 7)).copied();
            machine.pcrs.extend(value.map(|value| ((HashAlg::Sha256, 16), value)));
            machine.selection[0].1.retain(|pcr| *pcr != 7);
            machine.selection[0].1.push(16);
        }),
        ("selection-other-bank", "SHA-384 is quoted where SHA-256 was asked for", |machine| {
            machine.selection = vec![(HashAlg::Sha384, (0..4).collect())];
        }),
        ("selection-extra-bank", "a bank is quoted that was not asked for", |machine| {
            machine.selection.push((HashAlg::Sha384, (0..4).collect()));
        }),
        ("selection-empty", "no PCR is quoted", |machine| machine.selection[0].1.clear()),
    ];
    for (name, what, change) in cases {
        corpus.fail(name, what, other(&change)?, "pcr_selection", "wrong_selection");
    }
    let mut none = plain.clone();
    none.selection.clear();
    let mut input = none.input()?;
    input.file("--pcrs", "pcrs.json", &asked);
    corpus.fail("selection-no-bank", "the selection has no bank at all", input, "pcr_selection", "wrong_selection");
    let mut twice = plain.attest();
    let doubled = twice.selection.first().cloned();
    twice.selection.extend(doubled);
    corpus.fail(
        "selection-bank-twice",
        "the bank is selected twice",
        plain.input_of(&twice)?,
        "pcr_selection",
        "selection_bank_twice",
    );
    let mut sha1 = plain.clone();
    sha1.pcrs.insert((HashAlg::Sha1, 0), HashAlg::Sha1.digest(&[b"pcr"]));
    sha1.selection.push((HashAlg::Sha1, vec![0]));
    corpus.fail(
        "selection-sha1",
        "the SHA-1 bank is quoted, and the policy does not accept it",
        sha1.input()?,
        "pcr_selection",
        "sha1_bank",
    );
    let policy = sha1.policy.get_or_insert_with(|| json!({}));
    policy["accept"] = json!(["sha1"]);
    corpus.pass("good-sha1-accepted", "the SHA-1 bank is quoted, and the policy accepts it by name", sha1.input()?);
    let bank = |id: u16, bits: &[u8]| -> Result<_> {
        let mut attest = plain.attest();
        attest.selection = vec![(id, bits.to_vec())];
        plain.input_of(&attest)
    };
    let sha256 = HashAlg::Sha256.id();
    corpus.error(
        "selection-unknown-bank",
        "the bank's algorithm is SM3, which is not judged here",
        bank(0x0012, &[0xff, 0, 0])?,
        "quote_malformed",
    );
    corpus.error(
        "selection-pcr-24",
        "PCR 24 is selected, which does not exist",
        bank(sha256, &[0xff, 0, 0, 1])?,
        "quote_malformed",
    );
    corpus.error("selection-long-select", "sizeofSelect is 5", bank(sha256, &[0xff, 0, 0, 0, 0])?, "quote_too_long");
    let mut many = plain.attest();
    many.selection = HashAlg::ALL.iter().chain([&HashAlg::Sha256]).map(|bank| (bank.id(), vec![0; 3])).collect();
    corpus.error("selection-five-banks", "more banks than there are", plain.input_of(&many)?, "quote_too_long");
    Ok(())
}

fn digest(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let plain = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let two = two_banks(keys)?;
    let wrong = |corpus: &mut Corpus, name: &str, what: &str, machine: &Machine<'_>, digest: Vec<u8>| -> Result<()> {
        let mut attest = machine.attest();
        attest.digest = digest;
        corpus.fail(name, what, machine.input_of(&attest)?, "pcr_digest", "wrong_pcr_digest");
        Ok(())
    };
    let mut reversed = two.clone();
    reversed.selection.reverse();
    wrong(
        corpus,
        "digest-order-of-banks",
        "the digest is over the banks in another order than quoted",
        &two,
        reversed.pcr_digest(),
    )?;
    let mut backwards = plain.clone();
    for (_, pcrs) in &mut backwards.selection {
        pcrs.reverse();
    }
    wrong(
        corpus,
        "digest-order-of-pcrs",
        "the digest is over the PCRs in falling order",
        &plain,
        backwards.pcr_digest(),
    )?;
    let mut other = plain.clone();
    other.pcrs.insert((HashAlg::Sha256, 3), HashAlg::Sha256.digest(&[b"other"]));
    wrong(corpus, "digest-of-other-values", "the digest is of another value of PCR 3", &plain, other.pcr_digest())?;
    let fewer: Vec<u8> = plain.pcr_values().iter().copied().take(7 * 32).collect();
    wrong(
        corpus,
        "digest-of-fewer",
        "the digest leaves out the last PCR",
        &plain,
        super::super::machine::sha256(&fewer),
    )?;
    wrong(
        corpus,
        "digest-by-sha512",
        "the digest is by SHA-512, and the signature by SHA-256",
        &plain,
        HashAlg::Sha512.digest(&[&plain.pcr_values()]).to_vec(),
    )?;
    wrong(corpus, "digest-zero", "the digest is zero", &plain, vec![0; 32])?;
    Ok(())
}

fn values(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let plain = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let with = |bytes: &[u8]| -> Result<_> {
        let mut input = plain.input()?;
        input.file("--pcrs", "pcrs.json", bytes);
        Ok(input)
    };
    let dump = |change: &dyn Fn(&mut Vec<u8>)| -> Result<_> {
        let mut input = plain.input()?;
        let mut bytes = plain.pcr_dump();
        change(&mut bytes);
        input.files.remove("--pcrs");
        input.file("--pcrs", "pcrs.bin", &bytes);
        Ok(input)
    };
    let bare = |bytes: &[u8]| -> Result<_> {
        let mut input = plain.input()?;
        input.file("--pcrs", "pcrs.bin", bytes);
        Ok(input)
    };
    corpus.pass("good-dump", "the values as tpm2-tools dump them", dump(&|_| {})?);
    corpus.pass("good-bare-values", "the values one after the other", bare(&plain.pcr_values())?);
    let text = String::from_utf8(pretty(&plain.pcrs_json()))?;
    let mut machine = plain.clone();
    machine.pcrs.insert((HashAlg::Sha256, 3), HashAlg::Sha256.digest(&[b"other"]));
    corpus.fail(
        "value-other",
        "a value of PCR 3 that was not quoted",
        with(&pretty(&machine.pcrs_json()))?,
        "pcr_digest",
        "wrong_pcr_digest",
    );
    machine.pcrs = plain.pcrs.clone();
    let (two, three) = (plain.pcrs.get(&(HashAlg::Sha256, 2)), plain.pcrs.get(&(HashAlg::Sha256, 3)));
    if let (Some(two), Some(three)) = (two, three) {
        machine.pcrs.extend([((HashAlg::Sha256, 2), *three), ((HashAlg::Sha256, 3), *two)]);
    }
    corpus.fail(
        "values-swapped",
        "the values of PCR 2 and 3 are swapped",
        with(&pretty(&machine.pcrs_json()))?,
        "pcr_digest",
        "wrong_pcr_digest",
    );
    machine.pcrs = plain.pcrs.clone();
    machine.pcrs.insert((HashAlg::Sha256, 8), HashAlg::Sha256.digest(&[b"more"]));
    machine.selection[0].1.push(8);
    corpus.fail(
        "value-extra",
        "a value of PCR 8, which was not quoted",
        with(&pretty(&machine.pcrs_json()))?,
        "pcr_selection",
        "wrong_selection",
    );
    machine.selection[0].1.retain(|pcr| *pcr != 8 && *pcr != 3);
    corpus.fail(
        "value-missing",
        "no value of PCR 3, which was quoted",
        with(&pretty(&machine.pcrs_json()))?,
        "pcr_selection",
        "wrong_selection",
    );
    let doubled = text.replacen("\"3\": ", "\"2\": ", 1);
    corpus.error("value-twice", "two values of PCR 2", with(doubled.as_bytes())?, "pcrs_twice");
    corpus.error(
        "value-of-pcr-24",
        "a value of PCR 24, which does not exist",
        with(text.replacen("\"3\"", "\"24\"", 1).as_bytes())?,
        "pcrs_no_such_pcr",
    );
    corpus.error(
        "value-of-unknown-bank",
        "values of a bank that there is not",
        with(text.replacen("sha256", "md5", 1).as_bytes())?,
        "pcrs_unknown_bank",
    );
    let short: String = text.replacen("\"0\": \"", "\"0\": \"00", 1);
    corpus.error("value-of-wrong-length", "a value of 33 bytes in SHA-256", with(short.as_bytes())?, "pcrs_bad_digest");
    corpus.error("values-cut", "the JSON of values is cut", with(&text.as_bytes()[..text.len() / 2])?, "pcrs_bad_json");
    corpus.error("values-empty", "the file of values is empty", with(b"")?, "pcrs_empty");
    corpus.error(
        "bare-values-cut",
        "the bare values end within the last",
        bare(&plain.pcr_values()[1..])?,
        "pcrs_wrong_length",
    );
    corpus.error("dump-cut", "the dump is cut", dump(&|bytes| bytes.truncate(600))?, "pcrs_truncated");
    corpus.error("dump-trailing", "a byte after the dump", dump(&|bytes| bytes.push(0))?, "pcrs_trailing_bytes");
    corpus.error(
        "dump-count",
        "a list of the dump says that it has 9 digests",
        dump(&|bytes| bytes[136] = 9)?,
        "pcrs_bad_count",
    );
    corpus.error(
        "dump-fewer",
        "the dump selects a PCR more than it has digests",
        dump(&|bytes| bytes[8] = 1)?,
        "pcrs_wrong_count",
    );
    Ok(())
}
