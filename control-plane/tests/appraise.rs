//! `trefoil appraise` as a script uses it: exit status, JSON on standard output, and files that anybody may have written.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A file that tpm2-tools wrote: `tests/data/quotes/README.md` says how.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quotes").join(name)
}

fn appraise(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trefoil"));
    // No settings of whoever runs the tests are wanted: the command needs none.
    command.env_clear().arg("appraise").args(arguments);
    command.output().expect("the program runs")
}

/// Exit status and the JSON of standard output.
fn json_of(arguments: &[&str]) -> (i32, Value) {
    let output = appraise(&[arguments, &["--json"]].concat());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "with --json everything goes to standard output");
    let verdict = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code().expect("it exits"), verdict)
}

/// The flags for a stored quote, with one file of them replaced.
fn quote(name: &str, key: &str, other: &[(&str, &Path)]) -> Vec<String> {
    let mut arguments = vec!["--qualifying-data".to_owned(), "00112233".to_owned()];
    for (flag, file) in [
        ("--quote", format!("{name}.msg")),
        ("--signature", format!("{name}.sig")),
        ("--ak", key.to_owned()),
        ("--pcrs", format!("{name}.pcrs")),
    ] {
        let replaced = other.iter().find(|(of, _)| *of == flag).map(|(_, path)| path.to_path_buf());
        let path = replaced.unwrap_or_else(|| data(&file));
        arguments.extend([flag.to_owned(), path.to_string_lossy().into_owned()]);
    }
    arguments
}

fn judged(arguments: &[String]) -> (i32, Value) {
    json_of(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Reasons of the failed checks.
fn failures(verdict: &Value) -> Vec<&str> {
    let rows = verdict["checks"].as_array().expect("a list").iter();
    rows.filter(|row| row["result"] == "fail").filter_map(|row| row["reason"].as_str()).collect()
}

#[test]
fn quotes_that_tpm2_tools_took_pass_for_every_scheme_and_form_of_key() {
    for name in ["p256", "p384", "rsassa", "rsapss", "rsapss3072"] {
        for form in ["pub", "pem"] {
            let (status, verdict) = judged(&quote(name, &format!("{name}.{form}"), &[]));
            assert_eq!((status, &verdict["verdict"]), (0, &json!("pass")), "{name} {form}: {verdict:#}");
            let passed: Vec<_> =
                verdict["checks"].as_array().unwrap().iter().filter(|row| row["result"] == "pass").collect();
            let checks: Vec<_> = passed.iter().filter_map(|row| row["check"].as_str()).collect();
            assert_eq!(checks, ["signature", "quote", "qualifying_data", "pcr_selection", "pcr_digest"], "{name}");
        }
    }
    let (status, verdict) = judged(&quote("values", "p256.pub", &[]));
    assert_eq!(status, 0, "{verdict:#}");
}

#[test]
fn a_flipped_bit_anywhere_in_quote_or_signature_is_no_pass() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken");
    for name in ["p256", "rsapss"] {
        for (flag, file) in [("--quote", "msg"), ("--signature", "sig")] {
            let bytes = std::fs::read(data(&format!("{name}.{file}"))).unwrap();
            for at in (0..bytes.len()).step_by(if file == "msg" { 5 } else { 11 }) {
                let mut broken = bytes.clone();
                broken[at] ^= 0x10;
                std::fs::write(&path, &broken).unwrap();
                let (status, verdict) = judged(&quote(name, &format!("{name}.pub"), &[(flag, &path)]));
                assert!(matches!(status, 1 | 2), "{name} {flag} byte {at}: {verdict:#}");
                assert_ne!(verdict["verdict"], "pass");
            }
        }
    }
}

#[test]
fn the_result_has_the_documented_form() {
    let (status, verdict) = judged(&quote("p256", "rsassa.pub", &[]));
    assert_eq!((status, failures(&verdict)), (1, vec!["signature_key_type"]));
    let keys = |value: &Value| {
        let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys(&verdict), ["checks", "replayed", "verdict"]);
    for row in verdict["checks"].as_array().unwrap() {
        assert_eq!(keys(row), ["check", "expected", "found", "reason", "result", "where"]);
        assert!(matches!(row["result"].as_str(), Some("pass" | "fail" | "not checked")), "{row}");
    }
    let text = appraise(&["--quote", &data("p256.msg").to_string_lossy()]);
    assert!(text.status.success() && String::from_utf8_lossy(&text.stdout).contains("pass: no check failed"));
}

#[test]
fn rules_for_our_own_nodes_are_asked_for() {
    let mut arguments = quote("p256", "p256.pub", &[]);
    arguments.push("--node-rules".to_owned());
    let (status, verdict) = judged(&arguments);
    // tpm2_createak makes a child of the EK without noDA, and SHA-1 and firmware PCRs are as swtpm has them.
    let expected = ["ak_not_no_da", "wrong_signer", "sha1_bank", "no_firmware_measurements"];
    assert_eq!((status, failures(&verdict)), (1, expected.to_vec()), "{verdict:#}");
}

#[test]
fn an_input_that_cannot_be_read_ends_with_2_and_names_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut");
    std::fs::write(&path, &std::fs::read(data("p256.msg")).unwrap()[..50]).unwrap();
    let (status, verdict) = judged(&quote("p256", "p256.pub", &[("--quote", &path)]));
    let error = json!({"verdict": "error", "reason": "quote_truncated", "input": "quote", "offset": 48});
    assert_eq!((status, &verdict), (2, &error));
    let (status, verdict) = json_of(&["--boot-log", "/nonexistent/log"]);
    let error = json!({"verdict": "error", "reason": "no_such_file", "input": "boot-log", "offset": 0});
    assert_eq!((status, verdict), (2, error));
    let (status, verdict) = json_of(&["--qualifying-data", "0x0g"]);
    let error =
        json!({"verdict": "error", "reason": "qualifying_data_not_hex", "input": "qualifying-data", "offset": 3});
    assert_eq!((status, verdict), (2, error));
    let output = appraise(&["--ima", &path.to_string_lossy()]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--ima cannot be read"));
    assert_eq!(appraise(&["--at", "yesterday"]).status.code(), Some(2));
}

#[test]
fn nothing_given_is_listed_as_not_checked() {
    let (status, verdict) = json_of(&[]);
    assert_eq!((status, &verdict["verdict"], &verdict["replayed"]), (0, &json!("pass"), &json!({})));
    assert!(verdict["checks"].as_array().unwrap().iter().all(|row| row["result"] == "not checked"));
}
