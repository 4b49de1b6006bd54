//! IMA lists: their form, whether they are those of PCR 10, and their entries under a policy.

use anyhow::Result;
use protocol::tpm::alg::HashAlg;
use serde_json::json;

use super::super::Corpus;
use super::super::ima::{self, Entry, digest_field};
use super::super::machine::{Input, Keys, Machine, boot_aggregate, hex_sha256, sha256};

pub(super) fn add(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    form(corpus, keys)?;
    replay(corpus, keys)?;
    files(corpus, keys)?;
    templates(corpus, keys)?;
    signatures(corpus, keys)
}

fn list(machine: &Machine<'_>) -> Vec<Entry> {
    machine.ima.clone().unwrap_or_default()
}

/// The same machine, with another list in the file.
fn shown(machine: &Machine<'_>, bytes: &[u8]) -> Result<Input> {
    let mut input = machine.input()?;
    input.file("--ima", "ima.bin", bytes);
    Ok(input)
}

/// A machine that measured something more, and says so.
fn measured<'k>(keys: &'k Keys, change: impl FnOnce(&mut Machine<'k>)) -> Result<Input> {
    let mut machine = Machine::measured(keys)?;
    change(&mut machine);
    machine.truthful();
    machine.input()
}

fn form(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::measured(keys)?;
    let entries = list(&machine);
    corpus.pass("good", "a list that is PCR 10's, and files that the policy lists", machine.input()?);
    let Some((last, before)) = entries.split_last() else { return Ok(()) };
    let before = ima::encode(before);
    for (at, (field, bytes)) in super::super::tpm::cuts(&last.parts()).into_iter().enumerate() {
        let what = format!("the list ends within an entry's {field}");
        corpus.error(
            &format!("cut-{at}-{}", field.replace(' ', "-")),
            &what,
            shown(&machine, &[before.as_slice(), &bytes].concat())?,
            "ima_unreadable",
        );
    }
    let long = |field: &'static str, value: u32| {
        let entry = last.with(&[(field, value.to_le_bytes().to_vec())]);
        shown(&machine, &[before.as_slice(), &entry].concat())
    };
    corpus.error(
        "template-name-empty",
        "a template's name of no length",
        long("template name length", 0)?,
        "ima_unreadable",
    );
    corpus.error(
        "template-name-256",
        "a template's name of 256 bytes",
        long("template name length", 256)?,
        "ima_unreadable",
    );
    corpus.error(
        "template-name-huge",
        "a template's name of 4 GiB",
        long("template name length", u32::MAX)?,
        "ima_unreadable",
    );
    corpus.error("data-huge", "template data of 4 GiB", long("template data length", u32::MAX)?, "ima_unreadable");
    corpus.error(
        "data-larger",
        "template data a byte longer than there is",
        long("template data length", last.data.len() as u32 + 1)?,
        "ima_unreadable",
    );
    corpus.error(
        "zeros-behind",
        "zeros behind the last entry",
        shown(&machine, &[before.as_slice(), &last.with(&[]), &[0; 64]].concat())?,
        "ima_unreadable",
    );
    let pcr = last.with(&[("pcr", 24u32.to_le_bytes().to_vec())]);
    corpus.error(
        "pcr-24",
        "an entry of PCR 24, which does not exist",
        shown(&machine, &[before.as_slice(), &pcr].concat())?,
        "ima_no_such_pcr",
    );
    Ok(())
}

fn replay(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::measured(keys)?;
    let entries = list(&machine);
    let mismatch = |corpus: &mut Corpus, name: &str, what: &str, bytes: &[u8]| -> Result<()> {
        corpus.fail(name, what, shown(&machine, bytes)?, "ima", "ima_mismatch");
        Ok(())
    };
    let mut swapped = entries.clone();
    swapped.swap(1, 2);
    mismatch(corpus, "reordered", "two entries are swapped", &ima::encode(&swapped))?;
    let mut dropped = entries.clone();
    dropped.remove(2);
    mismatch(corpus, "dropped", "an entry is left out", &ima::encode(&dropped))?;
    mismatch(
        corpus,
        "behind",
        "the list is behind: its last entry is missing",
        &ima::encode(&entries[..entries.len() - 1]),
    )?;
    mismatch(corpus, "empty", "the list is empty", &[])?;
    let mut inserted = entries.clone();
    inserted.insert(2, entries[1].clone());
    mismatch(corpus, "doubled", "an entry stands there twice", &ima::encode(&inserted))?;
    let mut rewritten = entries.clone();
    rewritten[2] = Entry::file("/usr/bin/ls", &sha256(b"bash"));
    mismatch(corpus, "rewritten", "an entry is rewritten, its template hash with it", &ima::encode(&rewritten))?;
    let mut renamed = entries.clone();
    renamed[2] = Entry::file("/tmp/ls", &sha256(b"ls"));
    mismatch(corpus, "renamed", "an entry's path is changed to an excluded one", &ima::encode(&renamed))?;
    let mut hidden = entries.clone();
    hidden[2].is_violation = true;
    mismatch(corpus, "as-violation", "an entry is made a violation, whose data nothing proves", &ima::encode(&hidden))?;
    let mut moved = entries.clone();
    moved[2].pcr = 11;
    mismatch(corpus, "as-pcr-11", "an entry is said to be PCR 11's", &ima::encode(&moved))?;
    let mut resplit = entries.clone();
    resplit[2].template = b"ima".to_vec();
    // The same bytes under the oldest template, which has no length before its data.
    let bytes: Vec<u8> = resplit.iter().flat_map(|entry| entry.with(&[])).collect();
    corpus.error(
        "as-old-template",
        "an entry is said to be of the template `ima`",
        shown(&machine, &bytes)?,
        "ima_unreadable",
    );
    // Ahead: what follows was measured after the quote, or invented.
    let mut ahead = entries.clone();
    ahead.push(Entry::file("/usr/bin/later", &sha256(b"later")));
    corpus.pass(
        "good-ahead",
        "the list is ahead of the quote: what follows is not judged",
        shown(&machine, &ima::encode(&ahead))?,
    );
    let mut other = machine.clone();
    other.policy = None;
    let mut input = other.input()?;
    let first = entries[1].with(&[("template hash", vec![0x55; 20])]);
    let bytes = [ima::encode(&entries[..1]), first, ima::encode(&entries[2..])].concat();
    input.file("--ima", "ima.bin", &bytes);
    for argument in ["--quote", "--signature", "--ak", "--pcrs"] {
        input.files.remove(argument);
    }
    input.texts.clear();
    input.flags.clear();
    corpus.fail(
        "template-hash",
        "without a quote: a template hash that is not that of its data",
        input,
        "ima",
        "ima_mismatch",
    );
    Ok(())
}

fn files(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let file = |path: &str, content: &str| -> Result<Input> {
        measured(keys, |machine| machine.ima_mut().push(Entry::file(path, &sha256(content.as_bytes()))))
    };
    let fail = |corpus: &mut Corpus, name: &str, what: &str, input: Result<Input>, reason| -> Result<()> {
        corpus.fail(name, what, input?, "ima_policy", reason);
        Ok(())
    };
    corpus.pass("good-excluded", "a file that the policy excludes", file("/tmp/anything", "x")?);
    corpus.pass("good-excluded-deep", "a file far below an excluded directory", file("/tmp/a/b/c", "x")?);
    fail(
        corpus,
        "other-digest",
        "a listed file with another digest",
        file("/usr/bin/bash", "evil"),
        "ima_digest_mismatch",
    )?;
    fail(
        corpus,
        "digest-of-other-file",
        "a listed file with the digest of another listed file",
        file("/usr/bin/bash", "ls"),
        "ima_digest_mismatch",
    )?;
    for (name, what, path) in [
        ("unlisted", "a file that the policy does not list", "/usr/bin/evil"),
        ("unlisted-with-good-digest", "a listed file's digest at another path", "/usr/bin/bash2"),
        ("exclude-prefix", "a path that only begins like an excluded one", "/tmpevil"),
        ("exclude-dots", "a path that leaves the excluded directory by ..", "/tmp/../usr/bin/evil"),
        (
            "exclude-dots-deep",
            "a path that leaves the excluded directory by .., further down",
            "/tmp/a/b/../../../usr/bin/evil",
        ),
        ("exclude-two-slashes", "an excluded path with two slashes in front", "//tmp/evil"),
        ("exclude-inside", "an excluded path within another", "/usr/tmp/evil"),
        ("exclude-case", "an excluded path in capitals", "/TMP/evil"),
        ("exclude-relative", "an excluded path without its slash", "tmp/evil"),
        ("exclude-directory", "the excluded directory itself, as a file", "/tmp"),
        ("trailing-space", "a listed path with a space behind it", "/usr/bin/bash "),
        ("newline", "a path with a newline in it", "/usr/bin/x\n/tmp/y"),
    ] {
        fail(corpus, name, what, file(path, "bash"), "ima_file_unknown")?;
    }
    let entry = |entry: Entry| measured(keys, |machine| machine.ima_mut().push(entry));
    let name = |bytes: &[u8]| Entry::new("ima-ng", &[digest_field(&sha256(b"x")), bytes.to_vec()]);
    fail(
        corpus,
        "nul-in-path",
        "a zero byte within a path: what follows it would be unseen",
        entry(name(b"/tmp/x\0/usr/bin/evil\0")),
        "ima_entry_malformed",
    )?;
    fail(corpus, "empty-path", "an empty path", entry(name(b"\0")), "ima_entry_malformed")?;
    fail(
        corpus,
        "zero-digest",
        "a listed file without a digest",
        entry(Entry::file("/usr/bin/bash", &[0; 32])),
        "ima_digest_mismatch",
    )?;
    fail(
        corpus,
        "md5",
        "a digest by MD5",
        entry(Entry::new("ima-ng", &[[b"md5:\0".as_slice(), &[1; 16]].concat(), b"/usr/bin/bash\0".to_vec()])),
        "ima_digest_algorithm",
    )?;
    fail(
        corpus,
        "sha1-digest",
        "a listed file's SHA-1, where SHA-256 is listed",
        entry(Entry::file("/usr/bin/bash", &HashAlg::Sha1.digest(&[b"bash"]))),
        "ima_digest_mismatch",
    )?;
    fail(corpus, "violation", "a violation", entry(Entry::violation("/usr/bin/bash")), "ima_violation")?;
    let rules = |change: fn(&mut serde_json::Map<String, serde_json::Value>), entry: Entry| {
        measured(keys, move |machine| {
            change(machine.rules("ima"));
            machine.ima_mut().push(entry);
        })
    };
    corpus.pass(
        "good-violation-reported",
        "a violation where the policy only reports them",
        rules(
            |rules| {
                rules.insert("violations".into(), json!("report"));
            },
            Entry::violation("/usr/bin/bash"),
        )?,
    );
    let tolerated = |rules: &mut serde_json::Map<String, serde_json::Value>| {
        rules.insert("violation_paths".into(), json!(["/var/log/**"]));
    };
    corpus.pass(
        "good-violation-path",
        "a violation of a path that the policy names",
        rules(tolerated, Entry::violation("/var/log/journal"))?,
    );
    fail(
        corpus,
        "violation-elsewhere",
        "a violation of a path that only begins like a tolerated one",
        rules(tolerated, Entry::violation("/var/logs/journal")),
        "ima_violation",
    )?;
    corpus.pass(
        "good-any-path",
        "a digest that the policy accepts anywhere",
        rules(
            |rules| {
                rules.insert("any_path".into(), json!([hex_sha256(b"wanderer")]));
            },
            Entry::file("/home/x/wanderer", &sha256(b"wanderer")),
        )?,
    );
    let mut elsewhere = Entry::file("/usr/bin/evil", &sha256(b"evil"));
    elsewhere.pcr = 11;
    corpus.pass("good-other-pcr", "an entry of PCR 11, which is said not to be judged", entry(elsewhere)?);
    ascii(corpus, keys)?;
    aggregate(corpus, keys)
}

/// The list in its other form.
fn ascii(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let files: Vec<(String, Vec<u8>)> = [("boot_aggregate", "boot"), ("/usr/bin/bash", "bash"), ("/usr/bin/ls", "ls")]
        .map(|(path, content)| (path.to_owned(), sha256(content.as_bytes())))
        .to_vec();
    let mut machine = Machine::measured(keys)?;
    *machine.ima_mut() = files.iter().map(|(path, digest)| Entry::file(path, digest)).collect();
    machine.truthful();
    let text = ima::ascii(&files);
    corpus.pass("good-ascii", "the list as text", shown(&machine, text.as_bytes())?);
    let renamed = text.replacen("/usr/bin/ls", "/tmp/ls", 1);
    corpus.fail(
        "ascii-renamed",
        "a path in the list as text is another",
        shown(&machine, renamed.as_bytes())?,
        "ima",
        "ima_mismatch",
    );
    let cut = text.len() - "/usr/bin/ls\n".len();
    let cut = text.get(..cut).unwrap_or_default().trim_end();
    corpus.error(
        "ascii-cut",
        "the list as text ends before a path",
        shown(&machine, cut.as_bytes())?,
        "ima_unreadable",
    );
    let short = text.replacen("sha256:", "sha256:0", 1);
    corpus.error(
        "ascii-digest",
        "an odd number of hex digits in the list as text",
        shown(&machine, short.as_bytes())?,
        "ima_unreadable",
    );
    Ok(())
}

fn aggregate(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::full(keys)?;
    corpus.pass("good-with-boot-log", "both logs, and a boot_aggregate that is the boot log's", machine.input()?);
    let of = |digest: Vec<u8>| -> Result<Input> {
        let mut machine = machine.clone();
        machine.ima_mut()[0] = Entry::file("boot_aggregate", &digest);
        machine.truthful();
        machine.input()
    };
    corpus.fail(
        "aggregate-other",
        "boot_aggregate is another boot's",
        of(sha256(b"other boot"))?,
        "ima_policy",
        "ima_boot_aggregate_mismatch",
    );
    corpus.fail(
        "aggregate-zero",
        "boot_aggregate is zero, as where the kernel finds no TPM",
        of(vec![0; 32])?,
        "ima_policy",
        "ima_boot_aggregate_mismatch",
    );
    let mut twice = Machine::measured(keys)?;
    twice.ima_mut().push(Entry::file("boot_aggregate", &sha256(b"other boot")));
    twice.truthful();
    corpus.fail(
        "aggregate-twice",
        "a second boot_aggregate, of another boot",
        twice.input()?,
        "ima_policy",
        "ima_file_unknown",
    );
    let mut listed = Machine::measured(keys)?;
    listed.rules("ima").insert("boot_aggregate".into(), json!("listed"));
    corpus.fail(
        "aggregate-unlisted",
        "boot_aggregate has to be listed, and is not",
        listed.input()?,
        "ima_policy",
        "ima_boot_aggregate_mismatch",
    );
    let digest = machine.boot.as_ref().map(boot_aggregate).unwrap_or_default();
    listed.rules("ima")["files"]["boot_aggregate"] = json!([hex::encode(digest)]);
    corpus.pass("good-aggregate-listed", "boot_aggregate has to be listed, and is", listed.input()?);
    Ok(())
}

fn templates(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let entry = |entry: Entry| measured(keys, |machine| machine.ima_mut().push(entry));
    let fail = |corpus: &mut Corpus, name: &str, what: &str, new: Entry, reason| -> Result<()> {
        corpus.fail(name, what, entry(new)?, "ima_policy", reason);
        Ok(())
    };
    let digest = digest_field(&sha256(b"bash"));
    let path = b"/usr/bin/bash\0".to_vec();
    let v2 = |kind: &str| [kind.as_bytes(), b":", &digest].concat();
    corpus.pass("good-ngv2", "an entry of ima-ngv2", entry(Entry::new("ima-ngv2", &[v2("ima"), path.clone()]))?);
    corpus.pass(
        "good-described",
        "an entry of a template by its fields",
        entry(Entry::new("d-ng|n-ng|sig", &[digest.clone(), path.clone(), Vec::new()]))?,
    );
    fail(
        corpus,
        "template-unknown",
        "an entry of a template that nobody knows",
        Entry::new("ima-xyz", &[digest.clone(), path.clone()]),
        "ima_template_unknown",
    )?;
    fail(
        corpus,
        "template-name-first",
        "a template that puts the name before the digest",
        Entry::new("n-ng|d-ng", &[path.clone(), digest.clone()]),
        "ima_template_unknown",
    )?;
    fail(
        corpus,
        "template-two-digests",
        "a template with two digests",
        Entry::new("d-ng|n-ng|d-ng", &[digest.clone(), path.clone(), digest.clone()]),
        "ima_template_unknown",
    )?;
    fail(
        corpus,
        "field-missing",
        "an entry of ima-ng without a name",
        Entry::new("ima-ng", std::slice::from_ref(&digest)),
        "ima_entry_malformed",
    )?;
    fail(
        corpus,
        "field-more",
        "an entry of ima-ng with a field more",
        Entry::new("ima-ng", &[digest.clone(), path.clone(), path.clone()]),
        "ima_entry_malformed",
    )?;
    let mut huge = Entry::file("/usr/bin/bash", &sha256(b"bash"));
    huge.data[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    fail(corpus, "field-huge", "a field of 4 GiB in an entry that is shorter", huge, "ima_entry_malformed")?;
    let mut trailing = Entry::file("/usr/bin/bash", &sha256(b"bash"));
    trailing.data.push(0);
    fail(corpus, "field-trailing", "a byte after the last field", trailing, "ima_entry_malformed")?;
    fail(
        corpus,
        "digest-short",
        "a SHA-256 of 31 bytes",
        Entry::new("ima-ng", &[[b"sha256:\0".as_slice(), &[1; 31]].concat(), path.clone()]),
        "ima_entry_malformed",
    )?;
    fail(
        corpus,
        "digest-unnamed",
        "a digest without its algorithm's name",
        Entry::new("ima-ng", &[sha256(b"bash"), path.clone()]),
        "ima_entry_malformed",
    )?;
    fail(
        corpus,
        "ngv2-unknown-kind",
        "an ima-ngv2 digest that is neither ima's nor verity's",
        Entry::new("ima-ngv2", &[v2("ext"), path]),
        "ima_entry_malformed",
    )
}

fn signatures(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let digest = sha256(b"vendor tool");
    let good = ima::attribute(&keys.files, &digest)?;
    let with = |trusted: bool, entries: Vec<Entry>| {
        measured(keys, |machine| {
            if trusted {
                machine.rules("ima").insert("keys".into(), json!([keys.files.pem()]));
            }
            machine.ima_mut().extend(entries);
        })
    };
    let file = |attribute: &[u8]| Entry::signed("/usr/bin/tool", &digest, attribute);
    let fail = |corpus: &mut Corpus, name: &str, what: &str, input: Result<Input>, reason| -> Result<()> {
        corpus.fail(name, what, input?, "ima_policy", reason);
        Ok(())
    };
    corpus.pass("good-signed", "an unlisted file with a signature by the policy's key", with(true, vec![file(&good)])?);
    fail(
        corpus,
        "signed-without-key",
        "a signature where the policy has no key",
        with(false, vec![file(&good)]),
        "ima_file_unknown",
    )?;
    fail(
        corpus,
        "signed-by-unknown",
        "a signature by a key that is not the policy's",
        with(true, vec![file(&ima::attribute(&keys.other, &digest)?)]),
        "ima_signature_unknown_key",
    )?;
    fail(
        corpus,
        "signature-of-other-file",
        "a signature over another file's digest",
        with(true, vec![file(&ima::attribute(&keys.files, &sha256(b"other"))?)]),
        "ima_signature_bad",
    )?;
    let mut renamed = ima::attribute(&keys.other, &digest)?;
    renamed[3..7].copy_from_slice(&good[3..7]);
    fail(
        corpus,
        "signature-key-id",
        "another key's signature under the id of the policy's key",
        with(true, vec![file(&renamed)]),
        "ima_signature_bad",
    )?;
    let changed = |at: usize, to: u8| {
        let mut attribute = good.clone();
        attribute[at] = to;
        file(&attribute)
    };
    for (name, what, entry) in [
        ("signature-type", "a signature attribute that is a plain hash", changed(0, 1)),
        ("signature-verity", "a signature over a verity digest, on a file's digest", changed(0, 6)),
        ("signature-version", "a signature attribute of version 1", changed(1, 1)),
        ("signature-hash", "a signature attribute that names SHA-512", changed(2, 6)),
        ("signature-cut", "a signature attribute that is cut", file(&good[..good.len() - 2])),
        (
            "signature-trailing",
            "a byte after the signature attribute's signature",
            file(&[good.as_slice(), &[0]].concat()),
        ),
    ] {
        fail(corpus, name, what, with(true, vec![entry]), "ima_signature_bad")?;
    }
    // Keys that the kernel loaded.
    let certificate = ima::certificate("corpus file signer", &keys.files)?;
    let loaded = Entry::buffer(".ima", &certificate);
    let learning = |learn: bool, listed: bool, key_entry: Entry| {
        let certificate = certificate.clone();
        let good = good.clone();
        let digest = digest.clone();
        measured(keys, move |machine| {
            let rules = machine.rules("ima");
            rules.insert("keys".into(), json!([keys.other.pem()]));
            rules.insert("learn_keys".into(), json!(learn));
            let digests = if listed { vec![hex_sha256(&certificate)] } else { vec!["11".repeat(32)] };
            rules.insert("keyrings".into(), json!({".ima": digests}));
            machine.ima_mut().push(key_entry);
            machine.ima_mut().push(Entry::signed("/usr/bin/tool", &digest, &good));
        })
    };
    corpus.pass(
        "good-learned-key",
        "a file signed by a key that the policy lets be learned",
        learning(true, true, loaded.clone())?,
    );
    fail(
        corpus,
        "key-not-learned",
        "a key that is allowed, and may not be learned",
        learning(false, true, loaded.clone()),
        "ima_signature_unknown_key",
    )?;
    let reasons = [("ima_policy", "ima_key_unknown"), ("ima_policy", "ima_signature_unknown_key")];
    corpus.fails(
        "key-unlisted",
        "a key learned from an entry that the policy does not allow",
        learning(true, false, loaded.clone())?,
        &reasons,
    );
    let other_ring = Entry::buffer(".builtin_trusted_keys", &certificate);
    corpus.fails(
        "key-of-other-keyring",
        "a key learned from another keyring",
        learning(true, true, other_ring)?,
        &reasons,
    );
    let lying =
        Entry::new("ima-buf", &[digest_field(&sha256(b"another buffer")), b".ima\0".to_vec(), certificate.clone()]);
    let reasons = [("ima_policy", "ima_buffer_mismatch"), ("ima_policy", "ima_signature_unknown_key")];
    corpus.fails(
        "key-beside-digest",
        "a key in an entry whose digest is of something else",
        learning(true, true, lying)?,
        &reasons,
    );
    let as_file =
        Entry::new("ima-buf", &[digest_field(&sha256(&certificate)), b"/usr/.ima\0".to_vec(), certificate.clone()]);
    let reasons = [("ima_policy", "ima_file_unknown"), ("ima_policy", "ima_signature_unknown_key")];
    corpus.fails(
        "key-of-file",
        "a key learned from a file that is named like a keyring",
        learning(true, true, as_file)?,
        &reasons,
    );
    // Other buffers.
    let table = Entry::buffer("dm_table_load", b"name=root,table=...");
    let buffers = |listed: &'static [u8]| {
        let table = table.clone();
        measured(keys, move |machine| {
            machine.rules("ima").insert("buffers".into(), json!({"dm_table_load": [hex_sha256(listed)]}));
            machine.ima_mut().push(table);
        })
    };
    corpus.pass("good-buffer", "a device-mapper table that the policy lists", buffers(b"name=root,table=...")?);
    fail(
        corpus,
        "buffer-other",
        "a device-mapper table that the policy does not list",
        buffers(b"another"),
        "ima_buffer_unknown",
    )?;
    fail(
        corpus,
        "buffer-unlisted",
        "a buffer of a name that the policy does not list",
        with(false, vec![Entry::buffer("kexec-cmdline", b"init=/bin/sh")]),
        "ima_buffer_unknown",
    )
}
