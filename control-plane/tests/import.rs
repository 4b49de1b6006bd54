//! `trefoil policy import` and `trefoil policy from-rootfs` as programs: what they answer, what they write, and that
//! they write it whole or not at all.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use control_plane::appraisal::Policy;
use protocol::tpm::alg::HashAlg;
use serde_json::Value;

fn trefoil(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trefoil"))
        .arg("policy")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("trefoil can be run")
}

/// What a command that has to succeed wrote: the answer, and what was said about the way to it.
fn done(arguments: &[&str]) -> (String, String) {
    let output = trefoil(arguments);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{arguments:?}: {said}");
    (String::from_utf8(output.stdout).expect("text"), said)
}

fn refused(arguments: &[&str]) -> String {
    let output = trefoil(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths here are text")
}

fn answer(arguments: &[&str]) -> Value {
    serde_json::from_str(&done(arguments).0).expect("JSON")
}

/// A folder of the outside vectors; `None`, said on one line, where there are none.
fn vectors(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TREFOIL_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"), PathBuf::from);
    let folder = root.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no outside vectors `{name}` (TREFOIL_VECTORS)");
    None
}

#[test]
fn every_keylime_policy_imports_but_the_one_whose_signature_is_bad() {
    let Some(folder) = vectors("policies") else { return };
    let dir = tempfile::tempdir().unwrap();
    let key = folder.join("runtime-policy-pubkey.pub");
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".json") {
            continue;
        }
        count += 1;
        let out = dir.path().join(&name);
        let mut arguments = vec!["import", text(&path), "--out", text(&out)];
        if name.contains("signed") {
            arguments.extend(["--key", text(&key)]);
        }
        if name.contains("signed-bad") {
            let said = refused(&arguments);
            assert!(said.contains("the signature does not hold"), "{said}");
            assert!(!out.exists());
            continue;
        }
        let (_, said) = done(&arguments);
        let policy = Policy::parse(&fs::read(&out).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(policy.name(), name.trim_end_matches(".json"));
        let counted = said.lines().any(|line| line.ends_with(" digests") && line.contains(" files, "));
        assert!(counted, "{name}: {said}");
    }
    assert_eq!(count, 5);
    // Without the key it is said that nobody looked at the signature.
    let signed = folder.join("runtime-policy-test-signed.json");
    let answer = answer(&["import", text(&signed), "--json"]);
    assert_eq!(answer["notes"][0]["code"], "signature_not_checked");
    assert_eq!((answer["files"].as_u64(), answer["digests"].as_u64()), (Some(21), Some(22)));
    // The test policy's one keyring is the only thing that does not carry over whole.
    assert_eq!(answer["notes"].as_array().unwrap().len(), 2);
}

#[test]
fn what_does_not_carry_over_is_a_line_each_and_a_list_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("allow list.txt");
    let excludes = dir.path().join("excludes.txt");
    fs::write(&list, format!("{}  /usr/bin/bash\n{}  /md5\n", "a".repeat(64), "b".repeat(32))).unwrap();
    fs::write(&excludes, "/tmp\n/var/(?!log)\n").unwrap();
    let (policy, said) = done(&["import", text(&list), text(&excludes), "--name", "edge"]);
    assert_eq!(Policy::parse(policy.as_bytes()).unwrap().name(), "edge");
    for wanted in [
        "allow list.txt: allow-list",
        "allow list.txt: line 2: `bbbb",
        "excludes.txt: line 1: `/tmp` excludes less now: it matched every path that only begins so",
        "(exclude_narrowed)",
        "excludes.txt: line 2: `/var/(?!log)` is left out, so these files are judged",
        "1 files, 1 digests",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let answer = answer(&["import", text(&list), text(&excludes), "--json", "--format", "json"]);
    let codes: Vec<&str> = answer["notes"].as_array().unwrap().iter().filter_map(|n| n["code"].as_str()).collect();
    assert_eq!(codes, ["digest_unreadable", "exclude_narrowed", "exclude_left_out"]);
    assert_eq!(answer["sources"][1]["kind"], "exclude_list");
    let policy: Value = serde_json::from_str(answer["policy"].as_str().unwrap()).unwrap();
    assert_eq!(policy["name"], "allow list");
    assert_eq!(policy["ima"]["exclude"], serde_json::json!(["/tmp", "/tmp/**"]));
}

#[test]
fn a_file_that_is_there_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    let out = dir.path().join("policy.toml");
    fs::write(&list, format!("{}  /x\n", "a".repeat(64))).unwrap();
    fs::write(&out, "mine").unwrap();
    assert!(refused(&["import", text(&list), "--out", text(&out)]).contains("is left alone"));
    assert!(refused(&["from-rootfs", text(dir.path()), "--out", text(&out)]).contains("is left alone"));
    assert_eq!(fs::read(&out).unwrap(), b"mine");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    // What is no policy is not written either.
    fs::write(&list, "{\"mask\": \"0x1\"}").unwrap();
    let new = dir.path().join("new.toml");
    assert!(refused(&["import", text(&list), "--out", text(&new)]).contains("is no policy"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("there is room");
    fs::create_dir_all(dir.path().join("usr/bin")).expect("there is room");
    fs::create_dir_all(dir.path().join("var/cache")).expect("there is room");
    fs::write(dir.path().join("usr/bin/bash"), b"bash").expect("there is room");
    fs::write(dir.path().join("var/cache/x"), b"x").expect("there is room");
    symlink("usr/bin", dir.path().join("bin")).expect("there is room");
    dir
}

#[test]
fn a_tree_becomes_a_policy_of_its_files() {
    let dir = tree();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("policy.json");
    let arguments = ["from-rootfs", text(dir.path()), "--name", "image", "--exclude", "/var/cache/**"];
    let (_, said) = done(&[&arguments[..], &["--out", text(&out), "--format", "json", "--hash", "sha512"]].concat());
    assert!(said.contains("1 files excluded") && said.contains("1 files, 4 B hashed from the tree"), "{said}");
    let bytes = fs::read(&out).unwrap();
    let policy = Policy::parse(&bytes).unwrap();
    assert_eq!(policy.name(), "image");
    assert!(policy.ima().is_some());
    let policy: Value = serde_json::from_slice(&bytes).unwrap();
    let digest = hex::encode(HashAlg::Sha512.digest(&[b"bash"]).as_bytes());
    assert_eq!(policy["ima"]["files"], serde_json::json!({"/usr/bin/bash": [digest]}));
    assert_eq!(policy["ima"]["exclude"], serde_json::json!(["/var/cache/**"]));
    let answer = answer(&[&arguments[..], &["--json"]].concat());
    assert_eq!((answer["kind"].as_str(), answer["files"].as_u64()), (Some("tree"), Some(1)));
    assert!(Policy::parse(answer["policy"].as_str().unwrap().as_bytes()).is_ok());
}

/// A newc archive of one file.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, mode, content) in [(name, 0o100_755, content), ("TRAILER!!!", 0, &b""[..])] {
        bytes.extend(b"070701");
        for value in [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            bytes.extend(format!("{value:08x}").bytes());
        }
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[test]
fn an_initrd_becomes_a_policy_of_what_it_unpacks_to() {
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd.img");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&archive("usr/bin/init", b"init")).unwrap();
    fs::write(&initrd, [archive("early", b"microcode"), packed.finish().unwrap()].concat()).unwrap();
    let answer = answer(&["from-rootfs", text(&initrd), "--json"]);
    assert_eq!((answer["kind"].as_str(), answer["files"].as_u64()), (Some("initrd"), Some(2)));
    let policy = answer["policy"].as_str().unwrap();
    assert!(policy.contains("\"/usr/bin/init\"") && policy.contains("name = \"initrd\""), "{policy}");
    // Cut short, it is refused by the place.
    let bytes = fs::read(&initrd).unwrap();
    fs::write(&initrd, &bytes[..bytes.len() - 20]).unwrap();
    assert!(refused(&["from-rootfs", text(&initrd)]).contains("at byte"), "the place is named");
    fs::write(&initrd, b"#!/bin/sh\n").unwrap();
    assert!(refused(&["from-rootfs", text(&initrd)]).contains("neither a directory nor an initrd"));
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    // Longer to hash than this test takes, and no room on the disk.
    fs::File::create(dir.path().join("long")).unwrap().set_len(1 << 42).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_trefoil"))
        .args(["policy", "from-rootfs", text(dir.path()), "--out", text(&out.path().join("policy.toml"))])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it is at work");
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert!(!child.wait().unwrap().success());
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}
