//! Boot logs: their form, whether they are those of the PCRs, and their events under a policy.

use anyhow::Result;
use protocol::tpm::alg::{Digest, HashAlg};
use serde_json::json;

use super::super::Corpus;
use super::super::boot::COMMAND_LINE;
use super::super::boot::{self, BootLog, EV_EFI_ACTION, EV_NO_ACTION, EV_POST_CODE, Event};
use super::super::machine::{Input, Keys, Machine, hex_sha256};
use super::super::tpm::{self, Parts, join};
use super::super::x509::Certificate;

pub(super) fn add(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    form(corpus, keys)?;
    spec_id(corpus, keys)?;
    locality(corpus, keys)?;
    replay(corpus, keys)?;
    old_form(corpus, keys)?;
    events(corpus, keys)?;
    contents(corpus, keys)?;
    userspace(corpus, keys)
}

/// The same machine, with another log in the file.
fn shown(machine: &Machine<'_>, bytes: &[u8]) -> Result<Input> {
    let mut input = machine.input()?;
    input.file("--boot-log", "boot-log.bin", bytes);
    Ok(input)
}

fn log(machine: &Machine<'_>) -> Result<BootLog> {
    machine.boot.clone().ok_or_else(|| anyhow::anyhow!("the machine has a boot log"))
}

/// A field of a structure replaced.
fn with(parts: &Parts, field: &str, bytes: &[u8]) -> Vec<u8> {
    let value = |(name, was): &(&'static str, Vec<u8>)| if *name == field { bytes.to_vec() } else { was.clone() };
    parts.iter().flat_map(value).collect()
}

fn form(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::booted(keys)?;
    let log = log(&machine)?;
    corpus.pass("good", "a log that is the PCRs', and events that the policy allows", machine.input()?);
    let mut big = machine.clone();
    for _ in 0..400 {
        big.boot_mut().events.push(Event::plain("filler", 1, EV_POST_CODE, &[0x20; 1000]));
    }
    big.truthful();
    corpus.pass("good-400-kib", "a log of 400 KiB", big.input()?);
    let mut wide = machine.clone();
    wide.boot_mut().banks = HashAlg::ALL.to_vec();
    corpus.pass("good-four-banks", "a log with digests of four algorithms", wide.input()?);
    let before = log.encode_until("kernel");
    let kernel = log.events[log.position("kernel")].parts(&log.banks);
    for (at, (field, bytes)) in tpm::cuts(&kernel).into_iter().enumerate() {
        let what = format!("the log ends within an event's {field}");
        corpus.error(
            &format!("cut-{at:02}-{field}"),
            &what,
            shown(&machine, &[before.as_slice(), &bytes].concat())?,
            "boot_log_truncated",
        );
    }
    corpus.error("empty", "the log is empty", shown(&machine, &[])?, "boot_log_unreadable");
    corpus.error(
        "zeros-behind",
        "zeros behind the last event",
        shown(&machine, &[log.encode(), vec![0; 4096]].concat())?,
        "boot_log_wrong_digests",
    );
    corpus.error(
        "ones-behind",
        "ones behind the last event",
        shown(&machine, &[log.encode(), vec![0xff; 64]].concat())?,
        "boot_log_wrong_digests",
    );
    let replaced =
        |field: &str, bytes: &[u8]| shown(&machine, &log.encode_replacing("kernel", &with(&kernel, field, bytes)));
    corpus.error(
        "event-size-beyond-end",
        "an event's size reaches beyond the log's end",
        replaced("eventSize", &4096u32.to_le_bytes())?,
        "boot_log_truncated",
    );
    corpus.error(
        "event-size-huge",
        "an event of 4 GiB",
        replaced("eventSize", &u32::MAX.to_le_bytes())?,
        "boot_log_truncated",
    );
    for (name, pcr) in [("24", 24u32), ("ones", u32::MAX)] {
        corpus.error(
            &format!("pcr-{name}"),
            "an event of a PCR that does not exist",
            replaced("pcrIndex", &pcr.to_le_bytes())?,
            "boot_log_no_such_pcr",
        );
    }
    corpus.error(
        "no-digests",
        "an event without digests",
        replaced("digests.count", &0u32.to_le_bytes())?,
        "boot_log_wrong_digests",
    );
    corpus.error(
        "digests-too-many",
        "an event with more digests than there are algorithms",
        replaced("digests.count", &3u32.to_le_bytes())?,
        "boot_log_wrong_digests",
    );
    corpus.error(
        "digests-huge",
        "an event with 4 billion digests",
        replaced("digests.count", &u32::MAX.to_le_bytes())?,
        "boot_log_wrong_digests",
    );
    corpus.error(
        "digest-alg-unknown",
        "a digest by an algorithm that the log does not announce",
        replaced("digests.hashAlg", &0x0012u16.to_le_bytes())?,
        "boot_log_wrong_digests",
    );
    corpus.error(
        "digest-alg-twice",
        "two digests by one algorithm",
        replaced("digests.hashAlg", &0x0004u16.to_le_bytes())?,
        "boot_log_wrong_digests",
    );
    let event = &log.events[log.position("kernel")];
    let fewer = join(&event.parts(&[HashAlg::Sha1]));
    corpus.error(
        "bank-missing-in-event",
        "an event without the digest of a bank that the others have",
        shown(&machine, &log.encode_replacing("kernel", &fewer))?,
        "boot_log_wrong_digests",
    );
    Ok(())
}

fn spec_id(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::booted(keys)?;
    let log = log(&machine)?;
    let parts = log.spec_id();
    let bad = |corpus: &mut Corpus, name: &str, what: &str, data: &[u8]| -> Result<()> {
        corpus.error(name, what, shown(&machine, &log.encode_with(data))?, "boot_log_bad_spec_id");
        Ok(())
    };
    for (at, (field, bytes)) in tpm::cuts(&parts).into_iter().enumerate().skip(1) {
        bad(corpus, &format!("spec-id-cut-{at}-{field}"), &format!("the Spec ID event ends within {field}"), &bytes)?;
    }
    bad(
        corpus,
        "spec-id-no-algorithms",
        "the Spec ID event announces no algorithm",
        &with(&parts, "numberOfAlgorithms", &[0; 4]),
    )?;
    bad(
        corpus,
        "spec-id-many-algorithms",
        "the Spec ID event announces 4 billion algorithms",
        &with(&parts, "numberOfAlgorithms", &[0xff; 4]),
    )?;
    bad(
        corpus,
        "spec-id-algorithm-twice",
        "the Spec ID event announces an algorithm twice",
        &with(&parts, "algorithmId", &[4, 0]),
    )?;
    bad(
        corpus,
        "spec-id-wrong-size",
        "the Spec ID event gives SHA-1 and SHA-256 one size",
        &with(&parts, "digestSize", &[32, 0]),
    )?;
    bad(
        corpus,
        "spec-id-trailing",
        "bytes behind the Spec ID event's vendor information",
        &[join(&parts), vec![0, 0]].concat(),
    )?;
    let without: Vec<u8> = {
        let whole = log.encode();
        let len = 32 + join(&parts).len();
        whole.get(len..).unwrap_or_default().to_vec()
    };
    corpus.error(
        "spec-id-missing",
        "the log has no Spec ID event, and is not of the old form",
        shown(&machine, &without)?,
        "boot_log_no_such_pcr",
    );
    Ok(())
}

fn locality(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::booted(keys)?;
    let good = log(&machine)?;
    let bad = |corpus: &mut Corpus, name: &str, what: &str, change: &dyn Fn(&mut BootLog)| -> Result<()> {
        let mut log = good.clone();
        change(&mut log);
        corpus.error(name, what, shown(&machine, &log.encode())?, "boot_log_bad_startup_locality");
        Ok(())
    };
    bad(corpus, "locality-twice", "StartupLocality is reported twice", &|log| {
        let again = log.events[0].clone();
        log.events.insert(1, again);
    })?;
    bad(corpus, "locality-late", "StartupLocality is reported after PCR 0 was extended", &|log| {
        let late = log.events.remove(0);
        log.events.insert(3, late);
    })?;
    bad(corpus, "locality-one", "StartupLocality is 1, which no startup has", &|log| {
        log.event("locality").data[16] = 1
    })?;
    bad(corpus, "locality-empty", "StartupLocality has no value", &|log| log.event("locality").data.truncate(16))?;
    bad(corpus, "locality-long", "StartupLocality has two values", &|log| log.event("locality").data.push(3))?;
    // A value that can be, and is not this machine's.
    for (name, value) in [("zero", 0), ("four", 4)] {
        let mut log = good.clone();
        log.event("locality").data[16] = value;
        let what = format!("StartupLocality is {value}, and was 3: PCR 0 began with another value");
        corpus.fail(
            &format!("locality-other-{name}"),
            &what,
            shown(&machine, &log.encode())?,
            "boot_log",
            "boot_log_mismatch",
        );
    }
    let mut log = good.clone();
    log.events.remove(0);
    corpus.fail(
        "locality-missing",
        "StartupLocality is left out",
        shown(&machine, &log.encode())?,
        "boot_log",
        "boot_log_mismatch",
    );
    Ok(())
}

fn replay(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::booted(keys)?;
    let good = log(&machine)?;
    let mismatch = |corpus: &mut Corpus, name: &str, what: &str, change: &dyn Fn(&mut BootLog)| -> Result<()> {
        let mut log = good.clone();
        change(&mut log);
        corpus.fail(name, what, shown(&machine, &log.encode())?, "boot_log", "boot_log_mismatch");
        Ok(())
    };
    mismatch(corpus, "hidden", "an event is relabelled EV_NO_ACTION, so that it was never extended", &|log| {
        log.event("grub").kind = EV_NO_ACTION
    })?;
    mismatch(corpus, "dropped", "an event is left out", &|log| {
        let at = log.position("grub");
        log.events.remove(at);
    })?;
    mismatch(corpus, "reordered", "two events of one PCR are swapped", &|log| {
        let (shim, grub) = (log.position("shim"), log.position("grub"));
        log.events.swap(shim, grub);
    })?;
    mismatch(corpus, "inserted", "an event is inserted that was not extended", &|log| {
        let again = log.events[log.position("grub")].clone();
        log.events.push(again);
    })?;
    mismatch(corpus, "digest", "an event's digests are another image's", &|log| {
        log.event("kernel").preimage = b"kernel 6.2".to_vec()
    })?;
    mismatch(corpus, "cut-after-event", "the log ends early, after a whole event", &|log| {
        log.events.pop();
    })?;
    corpus.fails(
        "other-pcr",
        "an event is said to be another PCR's",
        {
            let mut log = good.clone();
            log.event("grub").pcr = 5;
            shown(&machine, &log.encode())?
        },
        &[("boot_log", "boot_log_mismatch"), ("boot_log", "boot_log_mismatch")],
    );
    // One digest of two is forged: the bank that is quoted decides.
    let kernel = good.events[good.position("kernel")].parts(&good.banks);
    let mut sha1_only = kernel.clone();
    if let Some((_, digest)) = sha1_only.iter_mut().find(|(name, _)| *name == "digests.digest") {
        digest[0] ^= 1;
    }
    corpus.pass(
        "good-unquoted-bank",
        "a digest of a bank that was not quoted is another: nothing rests on it",
        shown(&machine, &good.encode_replacing("kernel", &join(&sha1_only)))?,
    );
    let mut sha256_only = kernel;
    if let Some((_, digest)) = sha256_only.iter_mut().rfind(|(name, _)| *name == "digests.digest") {
        digest[0] ^= 1;
    }
    corpus.fail(
        "one-bank",
        "a digest of the quoted bank is another, that of the other bank is right",
        shown(&machine, &good.encode_replacing("kernel", &join(&sha256_only)))?,
        "boot_log",
        "boot_log_mismatch",
    );
    Ok(())
}

/// A machine that booted otherwise, and says so.
fn booted<'k>(keys: &'k Keys, change: impl FnOnce(&mut Machine<'k>)) -> Result<Input> {
    let mut machine = Machine::booted(keys)?;
    change(&mut machine);
    machine.truthful();
    machine.input()
}

fn events(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let fail = |corpus: &mut Corpus, name: &str, what: &str, input: Result<Input>, reason| -> Result<()> {
        corpus.fail(name, what, input?, "boot_policy", reason);
        Ok(())
    };
    let push = |event: Event| booted(keys, |machine| machine.boot_mut().events.push(event));
    fail(
        corpus,
        "unknown-event",
        "a firmware blob that no rule allows",
        push(Event::of("blob", 0, 0x8000_0008, &[0; 16], b"other firmware")),
        "unknown_event",
    )?;
    fail(
        corpus,
        "option-rom",
        "an option ROM's driver that no rule allows",
        push(Event::of("rom", 2, 0x8000_0004, &[0; 32], b"option ROM")),
        "unknown_event",
    )?;
    fail(
        corpus,
        "unknown-as-action",
        "an image that calls itself an EV_EFI_ACTION",
        push(Event::of("rootkit", 2, EV_EFI_ACTION, b"Calling EFI Application from Boot Option", b"rootkit")),
        "event_data_mismatch",
    )?;
    fail(
        corpus,
        "unknown-as-separator",
        "an image that calls itself a separator",
        push(Event::of("rootkit", 2, boot::EV_SEPARATOR, &[0; 4], b"rootkit")),
        "event_data_mismatch",
    )?;
    corpus.fails(
        "image-more",
        "an image is started that is of no chain",
        push(Event::image("rootkit", "rootkit"))?,
        &[("boot_policy", "unknown_event"), ("boot_policy", "chain_mismatch")],
    );
    corpus.pass(
        "good-separator-ones",
        "a separator of ones, which is no error",
        booted(keys, |machine| {
            let events = &mut machine.boot_mut().events;
            if let Some(event) = events.iter_mut().find(|event| event.label == "separator" && event.pcr == 2) {
                *event = Event::separator(2, u32::MAX);
            }
        })?,
    );
    fail(corpus, "separator-twice", "a second separator", push(Event::separator(4, 0)), "separator_twice")?;
    let at = |machine: &mut Machine<'_>, pcr: u32| {
        machine.boot_mut().events.iter().position(|event| event.label == "separator" && event.pcr == pcr).unwrap_or(0)
    };
    fail(
        corpus,
        "separator-missing",
        "no separator in PCR 2",
        booted(keys, |machine| {
            let at = at(machine, 2);
            machine.boot_mut().events.remove(at);
        }),
        "separator_missing",
    )?;
    corpus.fails(
        "separator-error",
        "the separator of an error stands in place of the other",
        booted(keys, |machine| {
            let at = at(machine, 2);
            machine.boot_mut().events[at] = Event::separator(2, 1);
        })?,
        &[("boot_policy", "error_separator"), ("boot_policy", "separator_missing")],
    );
    fail(
        corpus,
        "required-missing",
        "a required event is missing",
        booted(keys, |machine| {
            let at = machine.boot_mut().position("moklist");
            machine.boot_mut().events.remove(at);
        }),
        "event_missing",
    )?;
    fail(
        corpus,
        "moklist-other",
        "another MokList",
        booted(keys, |machine| {
            machine.rules("boot")["event"][1]["required"] = json!(false);
            machine.boot_mut().event("moklist").preimage = b"contents of another MokList".to_vec();
        }),
        "unknown_event",
    )?;
    // Chains: alternatives that belong together.
    let second = json!({
        "name": "6.2",
        "images": [hex_sha256(b"shim 15.8"), hex_sha256(b"grub 2.12"), hex_sha256(b"kernel 6.2")],
        "files": [hex_sha256(b"initrd 6.2")],
    });
    let with_second = |machine: &mut Machine<'_>| {
        if let Some(chains) = machine.rules("boot")["chain"].as_array_mut() {
            chains.push(second.clone());
        }
    };
    corpus.pass(
        "good-second-chain",
        "the other of two allowed kernels, with its initrd",
        booted(keys, |machine| {
            with_second(machine);
            machine.boot_mut().event("kernel").preimage = b"kernel 6.2".to_vec();
            machine.boot_mut().event("initrd").preimage = b"initrd 6.2".to_vec();
        })?,
    );
    let chain = |corpus: &mut Corpus, name: &str, what: &str, change: &dyn Fn(&mut Machine<'_>)| -> Result<()> {
        fail(
            corpus,
            name,
            what,
            booted(keys, |machine| {
                with_second(machine);
                change(machine);
            }),
            "chain_mismatch",
        )
    };
    chain(corpus, "chain-mixed", "the kernel of one alternative with the initrd of the other", &|machine| {
        machine.boot_mut().event("kernel").preimage = b"kernel 6.2".to_vec();
    })?;
    chain(corpus, "chain-order", "the images of a chain in another order", &|machine| {
        let (shim, grub) = (machine.boot_mut().position("shim"), machine.boot_mut().position("grub"));
        machine.boot_mut().events.swap(shim, grub);
    })?;
    chain(corpus, "chain-shorter", "an image of the chain is missing", &|machine| {
        let at = machine.boot_mut().position("grub");
        machine.boot_mut().events.remove(at);
    })?;
    Ok(())
}

fn contents(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let fail = |corpus: &mut Corpus, name: &str, what: &str, input: Result<Input>, reason| -> Result<()> {
        corpus.fail(name, what, input?, "boot_policy", reason);
        Ok(())
    };
    let variable = |label: &'static str, data: &[u8]| {
        let event = Event::variable(label, data);
        booted(keys, |machine| *machine.boot_mut().event(label) = event)
    };
    let again = |label: &'static str, data: &[u8]| {
        let event = Event::variable(label, data);
        booted(keys, |machine| {
            let at = machine.boot_mut().position(label);
            machine.boot_mut().events.insert(at + 1, event);
        })
    };
    let remove = |label: &'static str| {
        booted(keys, |machine| {
            let at = machine.boot_mut().position(label);
            machine.boot_mut().events.remove(at);
        })
    };
    fail(corpus, "secure-boot-off", "Secure Boot is off", variable("SecureBoot", &[0]), "secure_boot_off")?;
    fail(
        corpus,
        "secure-boot-twice",
        "SecureBoot is measured twice: off, then on",
        again("SecureBoot", &[1]),
        "variable_twice",
    )?;
    fail(corpus, "secure-boot-missing", "SecureBoot is not measured", remove("SecureBoot"), "secure_boot_missing")?;
    corpus.fails(
        "secure-boot-claimed",
        "the log says that Secure Boot is on, and the digest that it is off",
        booted(keys, |machine| {
            let off = Event::variable("SecureBoot", &[0]).preimage;
            machine.boot_mut().event("SecureBoot").preimage = off;
        })?,
        &[("boot_policy", "event_data_mismatch"), ("boot_policy", "secure_boot_missing")],
    );
    fail(
        corpus,
        "secure-boot-late",
        "SecureBoot is measured again behind the separator, where anybody can",
        booted(keys, |machine| {
            let on = machine.boot_mut().event("SecureBoot").clone();
            machine.boot_mut().events.push(on);
        }),
        "event_after_separator",
    )?;
    fail(
        corpus,
        "secure-boot-on",
        "Secure Boot is on where the policy wants it off",
        booted(keys, |machine| {
            machine.rules("boot").insert("secure_boot".into(), json!("off"));
        }),
        "secure_boot_on",
    )?;
    fail(
        corpus,
        "secure-boot-two-bytes",
        "SecureBoot is 1 and a byte more",
        variable("SecureBoot", &[1, 0]),
        "secure_boot_off",
    )?;
    fail(corpus, "pk-missing", "no platform key is measured", remove("PK"), "key_missing")?;
    fail(corpus, "dbx-missing", "dbx is not measured", remove("dbx"), "revocation_missing")?;
    fail(corpus, "db-malformed", "db is no list of signatures", variable("db", b"no list"), "key_list_malformed")?;
    fail(
        corpus,
        "db-lacks-key",
        "db lacks a certificate that it has to have",
        booted(keys, |machine| {
            machine.rules("boot")["keys"]["db"] = json!({"require": ["11".repeat(32)]});
        }),
        "key_missing",
    )?;
    let stranger = Certificate::ca("corpus stranger", "corpus stranger", &keys.other, None).sign(&keys.other)?;
    let more = |known: &[u8]| [boot::certificate_list(known), boot::certificate_list(&stranger)].concat();
    let firmware = &keys.firmware;
    fail(
        corpus,
        "pk-other",
        "another platform key",
        variable("PK", &boot::certificate_list(&stranger)),
        "key_not_allowed",
    )?;
    fail(
        corpus,
        "kek-more",
        "a key-exchange key more than allowed",
        variable("KEK", &more(&firmware.kek)),
        "key_not_allowed",
    )?;
    fail(
        corpus,
        "db-more",
        "db has a certificate that the policy does not know",
        variable("db", &more(&firmware.db)),
        "key_not_allowed",
    )?;
    let hash = [boot::certificate_list(&firmware.db), boot::hash_list(&[vec![0x77; 32]])].concat();
    fail(corpus, "db-hash", "db allows an image by its hash", variable("db", &hash), "key_not_allowed")?;
    let only_first: Vec<Vec<u8>> = firmware.revoked.iter().take(1).cloned().collect();
    fail(
        corpus,
        "dbx-lacks-hash",
        "dbx lacks a hash that has to be revoked",
        variable("dbx", &boot::hash_list(&only_first)),
        "revocation_missing",
    )?;
    fail(corpus, "dbx-empty", "dbx is empty", variable("dbx", &[]), "revocation_missing")?;
    corpus.pass(
        "good-dbx-more",
        "dbx revokes more than is asked for",
        variable("dbx", &boot::hash_list(&[firmware.revoked.clone(), vec![vec![3; 32]]].concat()))?,
    );
    let authority = Event::authority(&stranger);
    fail(
        corpus,
        "authority-other",
        "an image was verified with a certificate that is not allowed",
        booted(keys, |machine| {
            *machine.boot_mut().event("authority") = authority;
        }),
        "authority_not_allowed",
    )?;
    fail(
        corpus,
        "sbat-old",
        "shim's revocation level is older than asked for",
        booted(keys, |machine| {
            *machine.boot_mut().event("sbat") = Event::sbat("sbat,1,2021030218\nshim,1\ngrub,3\n");
        }),
        "sbat_too_old",
    )?;
    fail(corpus, "sbat-missing", "shim measured no revocation level", remove("sbat"), "sbat_missing")?;
    fail(
        corpus,
        "debug-mode",
        "firmware is in debug mode",
        booted(keys, |machine| {
            let at = machine.boot_mut().position("SecureBoot");
            machine.boot_mut().events.insert(at, Event::plain("debug", 7, EV_EFI_ACTION, b"UEFI Debug Mode"));
        }),
        "debug_mode",
    )?;
    let mut other = Machine::booted(keys)?;
    other.boot_mut().events.retain(|event| event.label != "command line");
    let text = "root=/dev/vda1 ro quiet init=/bin/sh";
    other.boot_mut().events.push(Event::command_line(text));
    other.rules("boot").remove("chain");
    for image in ["shim 15.8", "grub 2.12", "kernel 6.1"] {
        if let Some(events) = other.rules("boot")["event"].as_array_mut() {
            events.push(json!({"name": image, "pcr": 4, "digests": [hex_sha256(image.as_bytes())]}));
        }
    }
    if let Some(events) = other.rules("boot")["event"].as_array_mut() {
        events.push(json!({"name": "initrd", "pcr": 9, "digests": [hex_sha256(b"initrd 6.1")]}));
    }
    other.truthful();
    let mut input = other.input()?;
    input.file("--command-line", "cmdline", format!("{text}\n").as_bytes());
    corpus.fail("command-line", "the kernel's command line is another", input, "boot_policy", "command_line_mismatch");
    let mut missing = other.clone();
    missing.boot_mut().events.retain(|event| event.label != "command line");
    missing.truthful();
    let mut input = missing.input()?;
    input.files.remove("--command-line");
    corpus.fail("command-line-missing", "no command line was measured", input, "boot_policy", "command_line_missing");
    let unproven = missing.input()?;
    let what = "the node says a good command line, and no event's digest is of it";
    corpus.fail("command-line-unproven", what, unproven, "boot_policy", "command_line_unproven");
    let what = "GRUB's event says a good command line, and its digest is of another";
    let mut lying = other.clone();
    *lying.boot_mut().event("command line") = Event::command_line(COMMAND_LINE);
    lying.boot_mut().event("command line").preimage = text.as_bytes().to_vec();
    lying.truthful();
    let reasons = [("boot_policy", "unknown_event"), ("boot_policy", "command_line_unproven")];
    corpus.fails("command-line-claimed", what, lying.input()?, &reasons);
    let mut stub = missing.clone();
    let utf16: Vec<u8> = COMMAND_LINE.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    stub.boot_mut().events.push(Event::of("command line", 9, 0x0000_0006, b"Linux command line", &utf16));
    stub.truthful();
    corpus.pass("good-command-line-stub", "the EFI stub's event of the command line, in PCR 9", stub.input()?);
    Ok(())
}

/// A record of systemd's log, its digest of another text or of its own.
fn record(pcr: u8, text: &str, of: &str) -> String {
    let record = json!({
        "pcr": pcr,
        "digests": [{"hashAlg": "sha256", "digest": hex_sha256(of.as_bytes())}],
        "content_type": "systemd",
        "content": {"eventType": "phase", "string": text},
    });
    format!("\u{1e}{record}\n")
}

/// What userspace measured after the log ended, in systemd's form.
fn userspace(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let bank = HashAlg::Sha256;
    let mut machine = Machine::booted(keys)?;
    machine.selection = vec![(bank, (0..10).chain([11, 14]).collect())];
    machine.rules("boot").insert("pcrs".into(), json!([0, 2, 4, 7, 8, 9, 11, 14]));
    machine.truthful();
    // Texts of records, and what was measured.
    let shown = |records: &[(&str, &str)]| -> Result<Input> {
        let mut machine = machine.clone();
        let pcr = records
            .iter()
            .fold(Digest::zero(bank), |pcr, (_, of)| bank.digest(&[&pcr, &bank.digest(&[of.as_bytes()])]));
        machine.pcrs.insert((bank, 11), pcr);
        let log: String = records.iter().map(|(text, of)| record(11, text, of)).collect();
        let mut input = machine.input()?;
        input.file("--userspace-log", "userspace-log.json", log.as_bytes());
        Ok(input)
    };
    let phases = [("enter-initrd", "enter-initrd"), ("leave-initrd", "leave-initrd"), ("sysinit", "sysinit")];
    corpus.pass("good-userspace", "systemd's log of the phases of a boot", shown(&phases)?);
    let mut fail = |name: &str, what: &str, input: Input, check, reason| corpus.fail(name, what, input, check, reason);
    let unknown = "unknown_userspace_event";
    let other = [phases[0], ("machine-id", "machine-id")];
    fail("userspace-unknown", "userspace measured what no rule allows", shown(&other)?, "boot_policy", unknown);
    let back = [phases[1], phases[0]];
    fail("userspace-order", "the phases of a boot in another order", shown(&back)?, "boot_policy", unknown);
    let lie = [phases[0], ("leave-initrd", "evil")];
    fail("userspace-claimed", "a record's text is not what was measured", shown(&lie)?, "boot_policy", unknown);
    let with = |log: &str| -> Result<Input> {
        let mut input = shown(&phases)?;
        input.file("--userspace-log", "userspace-log.json", log.as_bytes());
        Ok(input)
    };
    let short = record(11, "enter-initrd", "enter-initrd");
    fail("userspace-behind", "records of systemd's log are left out", with(&short)?, "boot_log", "boot_log_mismatch");
    let firmware = record(7, "x", "x");
    let unreadable = "userspace_log_unreadable";
    corpus.error("userspace-pcr-7", "a record of PCR 7, which is firmware's", with(&firmware)?, unreadable);
    corpus.error("userspace-no-json", "a record that is no JSON", with("\u{1e}{pcr: 11}\n")?, unreadable);
    let short_digest = short.replacen("\"digest\":\"", "\"digest\":\"00", 1);
    corpus.error("userspace-digest", "a record's digest of 33 bytes", with(&short_digest)?, unreadable);
    Ok(())
}

/// The log of firmware from before the crypto-agile form, and events that firmware logs without extending them.
fn old_form(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let bank = HashAlg::Sha1;
    let mut machine = Machine::booted(keys)?;
    let log = log(&machine)?;
    machine.selection = vec![(bank, (0..10).chain([14]).collect())];
    machine.truthful();
    let value = machine.pcrs.get(&(bank, 7)).map(ToString::to_string).unwrap_or_default();
    let policy = json!({"version": 1, "name": "old", "accept": ["sha1"], "pcrs": {"sha1": {"7": [value]}}});
    machine.policy = Some(policy);
    let old = log.encode_sha1();
    corpus.pass(
        "good-sha1-form",
        "a log in the form of SHA-1 alone, where the policy accepts that bank",
        shown(&machine, &old)?,
    );
    let cut = &old[..old.len() - 2];
    corpus.error(
        "sha1-form-cut",
        "a log in the form of SHA-1 that ends within an event",
        shown(&machine, cut)?,
        "boot_log_truncated",
    );
    let mut flipped = old.clone();
    // PCR, type: the digest of the second event.
    let at = 32 + log.events.first().map_or(0, |event| event.data.len()) + 8;
    flipped[at] ^= 1;
    corpus.fail(
        "sha1-form-digest",
        "a digest in a log in the form of SHA-1 is another",
        shown(&machine, &flipped)?,
        "boot_log",
        "boot_log_mismatch",
    );
    // Logged, never extended.
    let machine = Machine::booted(keys)?;
    let with = |data: &[u8]| {
        let mut log = log.clone();
        log.events.insert(1, Event::plain("reference", 0, EV_NO_ACTION, data));
        shown(&machine, &log.encode())
    };
    corpus.pass(
        "good-sp800-155",
        "an SP800-155 event, which is logged and not extended",
        with(&[b"SP800-155 Event\0".as_slice(), &[0; 20]].concat())?,
    );
    let again = join(&log.spec_id());
    corpus.pass(
        "good-spec-id-again",
        "a second Spec ID event: it was not extended, and changes nothing",
        with(&again)?,
    );
    Ok(())
}
