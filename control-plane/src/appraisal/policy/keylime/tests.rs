use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::appraisal::policy::write::{BootAggregateText, BootText, ChainText, CommandLineText, Counts};
use crate::appraisal::test_vectors;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const SHORT: &str = "cccccccccccccccccccccccccccccccccccccccc";

/// The text without [`Importer::finish`]'s judgement, and the codes of the notes.
fn add(files: &[&str]) -> Result<(PolicyText, Vec<Note>), ImportError> {
    let mut importer = Importer::new("imported", Vec::new());
    for (number, file) in files.iter().enumerate() {
        importer.add(&format!("file {number}"), file.as_bytes())?;
    }
    Ok((importer.text, importer.notes.list))
}

fn codes(notes: &[Note]) -> Vec<&'static str> {
    notes.iter().map(|note| note.code).collect()
}

fn hex_set(digests: &[&str]) -> DigestSet {
    digests.iter().map(|text| hex::decode(text).unwrap()).collect()
}

fn runtime_policy() -> Value {
    json!({
        "meta": {"version": 1, "generator": 3},
        "release": 0,
        "digests": {
            "boot_aggregate": [format!("sha256:{A}")],
            "/usr/bin/bash": [A, SHORT, B.to_uppercase()],
            "/odd \"name\"\n": [B],
        },
        "excludes": ["/tmp/.*", "/var/log"],
        "keyrings": {".ima": [A]},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha256", "dm_policy": null},
        "ima-buf": {"kexec-cmdline": [B]},
        "verification-keys": "",
    })
}

fn changed(change: impl FnOnce(&mut Value)) -> String {
    let mut policy = runtime_policy();
    change(&mut policy);
    policy.to_string()
}

#[test]
fn a_runtime_policy_carries_over_digest_by_digest() {
    let (text, notes) = add(&[&runtime_policy().to_string()]).unwrap();
    let ima = text.ima.as_ref().unwrap();
    assert_eq!(ima.files["boot_aggregate"], hex_set(&[A]));
    assert_eq!(ima.files["/usr/bin/bash"], hex_set(&[A, SHORT, B]));
    assert_eq!(ima.files["/odd \"name\"\n"], hex_set(&[B]));
    assert_eq!(ima.keyrings[".ima"], hex_set(&[A]));
    assert_eq!(ima.buffers["kexec-cmdline"], Some(hex_set(&[B])));
    assert_eq!(ima.exclude.iter().map(String::as_str).collect::<Vec<_>>(), ["/tmp/**", "/var/log", "/var/log/**"]);
    assert!(!ima.learn_keys && ima.boot_aggregate != Some(BootAggregateText::Any));
    assert_eq!(codes(&notes), ["exclude_narrowed", "learned_keys"]);
    assert_eq!((notes[0].place.as_str(), notes[0].file.as_str()), ("excludes.1", "file 0"));
    let counts = text.counts();
    assert_eq!((counts.files, counts.digests), (3, 7));
}

#[test]
fn what_does_not_carry_over_is_named_one_by_one() {
    for (change, code, place) in [
        ((|p| p["extra"] = json!(1)) as fn(&mut Value), "unknown_field", "extra"),
        (|p| p["ima"]["new"] = json!(1), "unknown_field", "ima.new"),
        (|p| p["ima"]["ignored_keyrings"] = json!(["*"]), "ignored_keyring", "ima.ignored_keyrings.0"),
        (|p| p["ima"]["dm_policy"] = json!({"version": 1}), "dm_policy", "ima.dm_policy"),
        (|p| p["digests"]["/x"] = json!(["md5:00"]), "digest_unreadable", "digests./x.0"),
        (|p| p["digests"]["/x"] = json!([format!("sha256:{SHORT}")]), "digest_unreadable", "digests./x.0"),
        (|p| p["digests"]["/x\u{0}"] = json!([A]), "path_unusable", "digests./x "),
        (|p| p["excludes"][0] = json!("boot_aggregate"), "exclude_left_out", "excludes.0"),
        (|p| p["verification-keys"] = json!("AAAA"), "key_unreadable", "verification-keys"),
    ] {
        let (text, notes) = add(&[&changed(change)]).unwrap();
        let note = notes.iter().find(|note| note.code == code).unwrap_or_else(|| panic!("{code}: {notes:?}"));
        assert_eq!(note.place, place);
        assert!(!text.ima.unwrap().files.contains_key("/x"));
    }
}

#[test]
fn a_policy_of_another_shape_is_refused_and_the_place_named() {
    let shape = |place: &str, expected| ImportError::Shape { place: place.into(), expected };
    for (change, expected) in [
        ((|p| p["digests"] = json!([])) as fn(&mut Value), shape("digests", "an object")),
        (|p| p["digests"]["/x"] = json!({}), shape("digests./x", "a list of texts")),
        (|p| p["digests"]["/x"] = json!([1]), shape("digests./x", "a list of texts")),
        (|p| p["excludes"] = json!(7), shape("excludes", "a list of texts")),
        (|p| p["keyrings"] = json!("x"), shape("keyrings", "an object")),
        (|p| p["ima"] = json!(1), shape("ima", "an object")),
        (|p| p["verification-keys"] = json!(1), shape("verification-keys", "keys")),
        (|p| p["meta"]["version"] = json!(2), ImportError::Version("2".into())),
    ] {
        assert_eq!(add(&[&changed(change)]).unwrap_err(), expected);
    }
    for text in ["", "x", "[]", "{}", "{\"a\":1}", "# only a comment\n", "\"x\"", "no list\nof anything"] {
        let error = add(&[text]).unwrap_err();
        assert!(matches!(error, ImportError::UnknownFormat | ImportError::NotJson(_)), "{text:?}: {error}");
    }
    assert_eq!(Importer::new("x", Vec::new()).add("x", &[0xff]), Err(ImportError::NotText));
    assert_eq!(Importer::new("x", Vec::new()).add("x", &vec![b' '; MAX_IMPORT_LEN + 1]), Err(ImportError::TooLong));
}

#[test]
fn every_truncated_policy_is_refused() {
    let text = runtime_policy().to_string();
    for len in 0..text.len() {
        if let Some(prefix) = text.get(..len) {
            assert!(add(&[prefix]).is_err(), "{len}");
        }
    }
    assert!(add(&[&format!("{text}x")]).is_err());
}

#[test]
fn keys_come_as_pem_whatever_they_came_as() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let pem = pair.public_key_pem().replace("\r\n", "\n");
    let der = pem.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    let keyring = json!({"pubkeys": [der], "keyids": [1]});
    for keys in [
        json!(pem),
        json!([pem]),
        json!(der),
        keyring.clone(),
        json!(keyring.to_string()),
        json!(json!(keyring.to_string()).to_string()),
    ] {
        let (text, notes) = add(&[&changed(|p| p["verification-keys"] = keys.clone())]).unwrap();
        assert!(text.ima.unwrap().keys.iter().eq([&pem]), "{keys}");
        // An id that is not the key's own is told.
        assert_eq!(codes(&notes).contains(&"key_id"), keys.to_string().contains("keyids"));
    }
    let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
    let (text, _) = add(&[&changed(|p| p["verification-keys"] = json!(certificate.pem()))]).unwrap();
    assert!(text.ima.unwrap().keys.iter().all(|key| key.starts_with("-----BEGIN CERTIFICATE-----")));
    let private = pair.serialize_pem();
    let (text, notes) = add(&[&changed(|p| p["verification-keys"] = json!(private))]).unwrap();
    assert!(text.ima.unwrap().keys.is_empty() && codes(&notes).contains(&"key_unreadable"));
    assert!(notes.iter().all(|note| !note.message.contains(private.lines().nth(1).unwrap())));
}

#[test]
fn flat_lists_are_read_as_sha256sum_writes_them() {
    let list = format!(
        "# a comment\n\n{A}  /usr/bin/with space\n{SHORT} */usr/bin/binary\n\\{B}  /odd\\nname\\\\x\n{A}  \
         %keyring:.ima\nsha256:{B}\t/tab\n{A}\nnot hex\n{}  /md5\n",
        &A[..32]
    );
    let (text, notes) = add(&[&list]).unwrap();
    let ima = text.ima.unwrap();
    let paths: Vec<&str> = ima.files.keys().map(String::as_str).collect();
    assert_eq!(paths, ["/odd\nname\\x", "/tab", "/usr/bin/binary", "/usr/bin/with space"]);
    assert_eq!(ima.keyrings[".ima"], hex_set(&[A]));
    assert_eq!(codes(&notes), ["line_unreadable", "line_unreadable", "digest_unreadable"]);
    assert_eq!(notes[0].place, "line 8");

    let (text, notes) = add(&["# paths\n/tmp/.*\n^/var/log/\n/run/\\d\n"]).unwrap();
    assert_eq!(text.ima.unwrap().exclude.into_iter().collect::<Vec<_>>(), ["/tmp/**", "/var/log/**"]);
    assert_eq!(codes(&notes), ["exclude_left_out"]);
}

#[test]
fn old_json_allow_lists_are_read_too() {
    let old = json!({"meta": {"version": 5}, "release": 0, "hashes": {"/a": [A]}, "exclude": ["/tmp/"],
        "keyrings": {}, "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1"}});
    let (text, notes) = add(&[&old.to_string()]).unwrap();
    assert_eq!(text.ima.unwrap().files["/a"], hex_set(&[A]));
    assert_eq!(codes(&notes), [""; 0]);
}

#[test]
fn pcr_values_go_to_the_bank_of_their_length() {
    let policy = json!({"7": [A, B], "22": SHORT, "10": [A], "16": [A], "23": [A], "0": ["zz"], "mask": "0x408005"});
    let (text, notes) = add(&[&policy.to_string()]).unwrap();
    assert_eq!(text.pcrs[&HashAlg::Sha256].keys().copied().collect::<Vec<_>>(), [7]);
    assert_eq!(text.pcrs[&HashAlg::Sha256][&7], hex_set(&[A, B]));
    assert_eq!(text.pcrs[&HashAlg::Sha1][&22], hex_set(&[SHORT]));
    let mut found = codes(&notes);
    found.sort_unstable();
    assert_eq!(found, ["digest_unreadable", "mask", "pcr_left_out", "pcr_left_out", "pcr_left_out", "sha1"]);
    let mask = notes.iter().find(|note| note.code == "mask").unwrap();
    assert!(mask.message.starts_with("PCR 2, 15 had no value"), "{}", mask.message);
    let mut importer = Importer::new("x", Vec::new());
    importer.add("f", policy.to_string().as_bytes()).unwrap();
    let imported = importer.finish(None).unwrap();
    assert_eq!(imported.kinds, [("f".to_owned(), Kind::TpmPolicy)]);
    // A mask alone judges nothing.
    let mut importer = Importer::new("x", Vec::new());
    importer.add("f", b"{\"mask\":\"0x1\"}").unwrap();
    assert_eq!(importer.finish(None).unwrap_err(), ImportError::NoPolicy(PolicyError::JudgesNothing));
    for mask in ["\"0xzz\"", "[]", "-1"] {
        let error = add(&[&format!("{{\"mask\":{mask}}}")]).unwrap_err();
        assert_eq!(error, ImportError::Shape { place: "mask".into(), expected: "a number such as 0x408000" });
    }
}

fn reference_state() -> Value {
    let hex = |digits: &str| format!("0x{digits}");
    json!({
        "scrtm_and_bios": [{"scrtm": {"sha256": hex(A), "sha1": hex(SHORT)}, "platform_firmware": [{"sha256": hex(B)}]}],
        "pk": [{"SignatureOwner": "x", "SignatureData": hex(A)}],
        "kek": [], "db": [{"SignatureOwner": "x", "SignatureData": hex(B)}],
        "dbx": [{"SignatureOwner": "x", "SignatureData": hex(A)}],
        "mokdig": [{"sha256": hex(A)}], "mokxdig": [{"sha256": hex(B)}],
        "kernels": [{
            "shim_authcode_sha256": hex(A), "grub_authcode_sha256": hex(B), "kernel_authcode_sha256": hex(A),
            "initrd_plain_sha256": hex(B), "kernel_cmdline": "/vmlinuz root=.* ro",
        }],
    })
}

fn boot(state: &Value) -> (BootText, Vec<Note>) {
    let (text, notes) = add(&[&state.to_string()]).unwrap();
    (text.boot.expect("rules"), notes)
}

#[test]
fn a_reference_state_becomes_events_keys_and_chains() {
    let (rules, notes) = boot(&reference_state());
    assert_eq!(rules.secure_boot, Some(true));
    assert_eq!(rules.keys["pk"].only, Some(hex_set(&[A])));
    assert_eq!(rules.keys["kek"].only, Some(DigestSet::new()));
    assert_eq!((&rules.keys["dbx"].only, &rules.keys["dbx"].require), (&None, &hex_set(&[A])));
    // One firmware: every event of it has to occur, and the SHA-1 digest beside the SHA-256 one is not needed.
    let firmware: Vec<_> =
        rules.events.iter().filter(|e| e.pcr == 0).map(|e| (e.digests.clone(), e.required)).collect();
    assert_eq!(firmware, [(hex_set(&[A]), true), (hex_set(&[B]), true)]);
    let mok: Vec<&str> = rules.events.iter().filter(|e| e.pcr == 14).map(|e| e.name.as_str()).collect();
    assert_eq!(mok, ["MokList", "MokListX", "MokListTrusted"]);
    let images = |text: &[&str]| text.iter().map(|text| hex::decode(text).unwrap()).collect::<Vec<_>>();
    let line = Some(CommandLineText::Pattern("/vmlinuz root=* ro".into()));
    let files = hex_set(&[B]);
    assert_eq!(
        rules.chains,
        [
            ChainText {
                name: "kernel 1".into(),
                images: images(&[A, B, A]),
                files: files.clone(),
                command_line: line.clone()
            },
            ChainText {
                name: "kernel 1, measured twice".into(),
                images: images(&[A, B, A, A]),
                files,
                command_line: line
            },
        ]
    );
    assert_eq!(codes(&notes), ["authorities", "signature_owner", "events_by_type"]);
}

#[test]
fn without_secure_boot_the_kernel_is_a_file_and_empty_keys_are_not_judged() {
    let mut state = reference_state();
    state["has_secureboot"] = json!(false);
    state["kernels"][0]["vmlinuz_plain_sha256"] = json!(format!("0x{A}"));
    let (rules, _) = boot(&state);
    assert_eq!(rules.secure_boot, Some(false));
    assert!(!rules.keys.contains_key("kek") && rules.keys.contains_key("pk"));
    assert_eq!(rules.chains.len(), 1);
    assert_eq!(rules.chains[0].images.len(), 2);
    assert_eq!(rules.chains[0].files, hex_set(&[A, B]));
}

#[test]
fn what_a_reference_state_cannot_say_here_is_named() {
    for (change, code) in [
        ((|s| s["kernels"][0]["kernel_cmdline"] = json!("root=\\S+")) as fn(&mut Value), "command_line_left_out"),
        (|s| s["kernels"][0]["kernel_cmdline"] = json!("a.b"), "command_line_narrowed"),
        (|s| s["kernels"][0]["vmlinuz_plain_sha256"] = json!(A), "kernel_file"),
        (|s| s["kernels"][0]["more"] = json!(1), "unknown_field"),
        (|s| s["pk"][0]["SignatureData"] = json!("0x00"), "key_unreadable"),
        (|s| s["mokdig"][0]["sha256"] = json!("0x00"), "digest_unreadable"),
        (
            |s| {
                let one = s["scrtm_and_bios"][0].clone();
                s["scrtm_and_bios"].as_array_mut().unwrap().push(one);
            },
            "firmware_sets",
        ),
    ] {
        let mut state = reference_state();
        change(&mut state);
        let (rules, notes) = boot(&state);
        assert!(codes(&notes).contains(&code), "{code}: {notes:?}");
        assert_eq!(rules.events.iter().any(|event| event.required), code != "firmware_sets");
    }
    for (change, place) in [
        (
            (|s| s["kernels"][0]["grub_authcode_sha256"] = json!("0x00")) as fn(&mut Value),
            "kernels.0.grub_authcode_sha256",
        ),
        (|s| s["kernels"][0] = json!({}), "kernels.0"),
        (|s| s["kernels"] = json!({}), "kernels"),
        (|s| s["pk"] = json!([1]), "pk.0"),
        (|s| s["has_secureboot"] = json!("yes"), "has_secureboot"),
        (|s| s["scrtm_and_bios"] = json!([[]]), "scrtm_and_bios.0"),
    ] {
        let mut state = reference_state();
        change(&mut state);
        let error = add(&[&state.to_string()]).unwrap_err();
        assert!(matches!(&error, ImportError::Shape { place: found, .. } if found == place), "{place}: {error}");
    }
}

#[test]
fn several_files_make_one_policy() {
    let flat = format!("{B}  /usr/bin/bash\n");
    let pcrs = json!({"7": [A]}).to_string();
    let files = [("a", runtime_policy().to_string()), ("b", flat), ("c", pcrs), ("d", reference_state().to_string())];
    for format in [Format::Toml, Format::Json] {
        let mut importer = Importer::new("all of it", Vec::new());
        for (name, text) in &files {
            importer.add(name, text.as_bytes()).unwrap();
        }
        let imported = importer.finish(Some(format)).unwrap();
        let kinds: Vec<Kind> = imported.kinds.iter().map(|(_, kind)| *kind).collect();
        assert_eq!(kinds, [Kind::RuntimePolicy, Kind::AllowList, Kind::TpmPolicy, Kind::ReferenceState]);
        assert_eq!(imported.text.counts(), Counts { files: 3, digests: 7 });
        let policy = Policy::parse(imported.policy.as_bytes()).unwrap();
        assert_eq!(policy.name(), "all of it");
        assert!(policy.boot().is_some() && policy.ima().is_some());
    }
}

fn vector(name: &str) -> Option<Vec<u8>> {
    test_vectors::folder("policies").map(|folder| test_vectors::read(&folder, name))
}

fn test_key(pem: &[u8]) -> Vec<P256Key> {
    P256Key::from_pem(pem).expect("a P-256 key")
}

#[test]
fn keylimes_own_policies_import_and_parse() {
    for (name, kind, files, digests) in [
        ("keylime-base-policy.json", Kind::RuntimePolicy, 2, 2),
        ("runtime-policy-test.json", Kind::RuntimePolicy, 21, 22),
        ("runtime-policy-test-signed.json", Kind::SignedRuntimePolicy, 21, 22),
        ("keylime-mb-refstate.json", Kind::ReferenceState, 0, 0),
    ] {
        let Some(bytes) = vector(name) else { return };
        let mut importer = Importer::new("vectors", Vec::new());
        assert_eq!(importer.add(name, &bytes), Ok(kind), "{name}");
        let imported = importer.finish(None).unwrap_or_else(|error| panic!("{name}: {error}"));
        let counts = imported.text.counts();
        assert_eq!((counts.files, counts.digests), (files, digests), "{name}");
        assert_eq!(codes(&imported.notes).contains(&"signature_not_checked"), kind == Kind::SignedRuntimePolicy);
        assert!(imported.notes.iter().all(|note| note.code != "unknown_field"), "{:?}", imported.notes);
    }
}

#[test]
fn a_signed_policy_is_imported_under_its_key_and_a_bad_signature_is_refused() {
    let (Some(good), Some(bad), Some(plain), Some(pem)) = (
        vector("runtime-policy-test-signed.json"),
        vector("runtime-policy-test-signed-bad.json"),
        vector("runtime-policy-test.json"),
        vector("runtime-policy-pubkey.pub"),
    ) else {
        return;
    };
    let mut importer = Importer::new("signed", test_key(&pem));
    assert_eq!(importer.add("good", &good), Ok(Kind::SignedRuntimePolicy));
    assert!(!codes(&importer.finish(None).unwrap().notes).contains(&"signature_not_checked"));
    // Its signature is not even base64 any more, which shows without a key too.
    for keys in [test_key(&pem), Vec::new()] {
        let refused = Importer::new("signed", keys).add("bad", &bad).unwrap_err();
        assert!(matches!(refused, ImportError::Signature(_)), "{refused}");
    }
    assert_eq!(Importer::new("signed", test_key(&pem)).add("plain", &plain), Err(ImportError::Unsigned));
    let flat = format!("{A}  /x\n");
    assert_eq!(Importer::new("signed", test_key(&pem)).add("flat", flat.as_bytes()), Err(ImportError::Unsigned));
    // Another's key.
    let other = rcgen::KeyPair::generate().unwrap().public_key_pem();
    let refused = Importer::new("signed", test_key(other.as_bytes())).add("good", &good).unwrap_err();
    assert!(matches!(refused, ImportError::Signature(DsseError::BadSignature(_))), "{refused}");
}

proptest! {
    #[test]
    fn any_text_is_imported_or_refused(text in "\\PC{0,200}", json: bool) {
        let text = if json { format!("{{{text}") } else { text };
        let _ = add(&[&text]);
    }
}
