//! `cargo xtask corpus`: evidence with one thing wrong each, and the verdict that is expected of it; for this verifier and
//! for others. Keys are made on the spot, by software: no TPM is asked.

mod boot;
mod cases;
mod ima;
mod machine;
mod tpm;
mod x509;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use self::machine::{Input, Keys, hex_sha256, pretty};
use crate::tools::{self, Counts};

/// The corpus's own format; a reader that knows another stops.
const FORMAT: u32 = 1;

const README: &str = include_str!("corpus/README.md");

/// Writes the negative corpus: quotes, keys, certificates, logs and policies with one thing wrong each.
///
/// Each case is a directory of files and a case.json that says what is wrong and which verdict is expected; index.json
/// lists them, README.md explains them to other verifiers. Keys are new in every run, the rest is the same.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Where to write it: a directory that is not there yet, is empty, or holds an older corpus, which is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Runs `trefoil appraise` over every case and compares verdict and reasons; exit 1 if one differs
    #[arg(long)]
    check: bool,
    /// The program to check, instead of the one that is built from here
    #[arg(long, value_name = "PATH", requires = "check")]
    trefoil: Option<PathBuf>,
}

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cases = generate()?;
    write(&cases, &arguments.out)?;
    println!("{} cases in {}", cases.len(), arguments.out.display());
    if !arguments.check {
        return Ok(ExitCode::SUCCESS);
    }
    let trefoil = match &arguments.trefoil {
        Some(trefoil) => trefoil.clone(),
        None => build()?,
    };
    let counts = check(&cases, &arguments.out, &trefoil)?;
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Generates and checks in a directory of its own: a step of `cargo xtask test`.
pub(crate) fn test(dir: &Path) -> Result<Counts> {
    let cases = generate()?;
    write(&cases, dir)?;
    check(&cases, dir, &build()?)
}

fn build() -> Result<PathBuf> {
    tools::run(&mut tools::cargo(&["build", "--package", "control-plane", "--bin", "trefoil"]))?;
    Ok(tools::target_dir().join("debug/trefoil"))
}

/// The verdict that a case has to get.
#[derive(Clone, Debug)]
enum Expected {
    Pass,
    /// Check and reason of each check that fails, in the order in which they are reported; one, where only one thing can
    /// be told from what is wrong.
    Fail(Vec<(&'static str, &'static str)>),
    /// The reason why an input cannot be read.
    Error(&'static str),
}

impl Expected {
    fn to_json(&self) -> Value {
        match self {
            Self::Pass => json!({"verdict": "pass"}),
            Self::Error(reason) => json!({"verdict": "error", "reason": reason}),
            Self::Fail(reasons) => {
                let mut reasons = reasons.iter();
                let mut expected = json!({"verdict": "fail"});
                if let Some((check, reason)) = reasons.next() {
                    expected["check"] = json!(check);
                    expected["reason"] = json!(reason);
                }
                let also: Vec<_> = reasons.map(|(check, reason)| json!({"check": check, "reason": reason})).collect();
                if !also.is_empty() {
                    expected["also"] = also.into();
                }
                expected
            }
        }
    }

    /// What of a verdict is compared, as [`to_json`](Self::to_json) has it.
    fn of_verdict(verdict: &Value) -> Value {
        match verdict["verdict"].as_str() {
            Some("error") => json!({"verdict": "error", "reason": verdict["reason"]}),
            Some("fail") => {
                let rows = verdict["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
                let failed = rows.iter().filter(|row| row["result"] == "fail");
                let mut failed = failed.map(|row| json!({"check": row["check"], "reason": row["reason"]}));
                let mut found = failed.next().unwrap_or_else(|| json!({}));
                found["verdict"] = json!("fail");
                let also: Vec<_> = failed.collect();
                if !also.is_empty() {
                    found["also"] = also.into();
                }
                found
            }
            _ => json!({"verdict": verdict["verdict"]}),
        }
    }
}

/// One case.
#[derive(Clone, Debug)]
struct Case {
    family: &'static str,
    name: String,
    title: String,
    what_is_wrong: String,
    input: Input,
    expected: Expected,
}

impl Case {
    fn directory(&self, number: usize) -> String {
        format!("{number:03}-{}-{}", self.family, self.name)
    }

    fn to_json(&self) -> Value {
        let files: serde_json::Map<String, Value> =
            self.input.files.values().map(|(name, bytes)| ((*name).into(), json!(hex_sha256(bytes)))).collect();
        json!({
            "family": self.family,
            "name": self.name,
            "title": self.title,
            "what_is_wrong": self.what_is_wrong,
            "arguments": self.input.arguments(),
            "expected": self.expected.to_json(),
            "files": files,
        })
    }
}

/// The cases of one family as they are put together.
#[derive(Debug)]
struct Corpus {
    family: &'static str,
    cases: Vec<Case>,
}

impl Corpus {
    fn add(&mut self, name: &str, what: &str, input: Input, expected: Expected) {
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        let (title, what_is_wrong) = match &expected {
            Expected::Pass => (format!("good: {what}"), String::new()),
            _ => (what.to_owned(), what.to_owned()),
        };
        self.cases.push(Case { family: self.family, name, title, what_is_wrong, input, expected });
    }

    /// Evidence that is in order.
    fn pass(&mut self, name: &str, what: &str, input: Input) {
        self.add(name, what, input, Expected::Pass);
    }

    /// Evidence in which one check fails.
    fn fail(&mut self, name: &str, what: &str, input: Input, check: &'static str, reason: &'static str) {
        self.add(name, what, input, Expected::Fail(vec![(check, reason)]));
    }

    /// Evidence in which one thing is wrong that more than one check sees.
    fn fails(&mut self, name: &str, what: &str, input: Input, reasons: &[(&'static str, &'static str)]) {
        self.add(name, what, input, Expected::Fail(reasons.to_vec()));
    }

    /// An input that cannot be read.
    fn error(&mut self, name: &str, what: &str, input: Input, reason: &'static str) {
        self.add(name, what, input, Expected::Error(reason));
    }
}

fn generate() -> Result<Vec<Case>> {
    let keys = Keys::make()?;
    let mut corpus = Corpus { family: "", cases: Vec::new() };
    for (family, add) in cases::FAMILIES {
        corpus.family = family;
        add(&mut corpus, &keys).with_context(|| format!("cases of {family}"))?;
    }
    let mut names = BTreeSet::new();
    for case in &corpus.cases {
        if !names.insert((case.family, case.name.clone())) {
            bail!("two cases are named {}-{}", case.family, case.name);
        }
    }
    Ok(corpus.cases)
}

/// Empties a directory that is none yet, or a corpus; nothing else is touched.
fn prepare(dir: &Path) -> Result<()> {
    let is_corpus = dir.join("index.json").is_file();
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            if !is_corpus && entries.next().is_some() {
                bail!("{} is neither empty nor a corpus", dir.display());
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{}", dir.display())),
    }
    if is_corpus {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let is_case = path.join("case.json").is_file();
            if is_case {
                fs::remove_dir_all(&path).with_context(|| format!("{}", path.display()))?;
            }
        }
    }
    fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))
}

fn write(cases: &[Case], dir: &Path) -> Result<()> {
    prepare(dir)?;
    let mut index = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        let name = case.directory(at + 1);
        let directory = dir.join(&name);
        fs::create_dir(&directory).with_context(|| format!("{}", directory.display()))?;
        for (file, bytes) in case.input.files.values() {
            write_file(&directory.join(file), bytes)?;
        }
        let case = case.to_json();
        write_file(&directory.join("case.json"), &pretty(&case))?;
        let mut entry = json!({"directory": name});
        for field in ["family", "name", "title", "arguments", "expected"] {
            entry[field] = case[field].clone();
        }
        index.push(entry);
    }
    let index = json!({
        "format": FORMAT,
        "tool": format!("trefoil {}", env!("CARGO_PKG_VERSION")),
        "count": index.len(),
        "cases": index,
    });
    write_file(&dir.join("index.json"), &pretty(&index))?;
    write_file(&dir.join("README.md"), README.as_bytes())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("{}", path.display()))
}

fn check(cases: &[Case], dir: &Path, trefoil: &Path) -> Result<Counts> {
    let mut counts = Counts::default();
    let trefoil = fs::canonicalize(trefoil).with_context(|| format!("{}", trefoil.display()))?;
    for (at, case) in cases.iter().enumerate() {
        let name = case.directory(at + 1);
        let output = Command::new(&trefoil)
            .args(["--json", "appraise"])
            .args(case.input.arguments())
            .current_dir(dir.join(&name))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{}", trefoil.display()))?;
        let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let (expected, found) = (case.expected.to_json(), Expected::of_verdict(&verdict));
        let status = match case.expected {
            Expected::Pass => 0,
            Expected::Fail(_) => 1,
            Expected::Error(_) => 2,
        };
        if expected == found && output.status.code() == Some(status) {
            counts.passed += 1;
            continue;
        }
        counts.failed += 1;
        println!("failed: {name}: {}", case.title);
        println!("  expected {expected}");
        println!("  found    {found}, {}", output.status);
        let stderr = String::from_utf8_lossy(&output.stderr);
        for line in stderr.lines().take(3) {
            println!("  {line}");
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_compared_by_every_failed_check() {
        let verdict = json!({"verdict": "fail", "checks": [
            {"check": "ak", "result": "pass", "reason": "ok"},
            {"check": "quote", "result": "fail", "reason": "wrong_signer"},
            {"check": "ima", "result": "fail", "reason": "ima_mismatch"},
        ]});
        let one = Expected::Fail(vec![("quote", "wrong_signer")]);
        let both = Expected::Fail(vec![("quote", "wrong_signer"), ("ima", "ima_mismatch")]);
        assert_ne!(one.to_json(), Expected::of_verdict(&verdict));
        assert_eq!(both.to_json(), Expected::of_verdict(&verdict));
        let error = json!({"verdict": "error", "reason": "ak_truncated", "input": "ak", "offset": 3});
        assert_eq!(Expected::Error("ak_truncated").to_json(), Expected::of_verdict(&error));
        assert_ne!(Expected::Pass.to_json(), Expected::of_verdict(&Value::Null));
    }

    #[test]
    fn the_corpus_is_large_and_every_family_has_good_evidence_and_bad() {
        let cases = generate().unwrap();
        assert!(cases.iter().filter(|case| !matches!(case.expected, Expected::Pass)).count() >= 120);
        for (family, _) in cases::FAMILIES {
            let of = || cases.iter().filter(|case| case.family == family);
            assert!(of().any(|case| matches!(case.expected, Expected::Pass)), "{family}");
            assert!(of().any(|case| !matches!(case.expected, Expected::Pass)), "{family}");
        }
        for case in &cases {
            let json = case.to_json();
            let arguments: Vec<_> = json["arguments"].as_array().unwrap().iter().collect();
            // Relative, flat names: a case can be moved.
            assert!(arguments.iter().all(|argument| !argument.as_str().unwrap().contains('/')), "{}", case.name);
        }
    }

    #[test]
    fn only_a_corpus_is_replaced() {
        let dir = std::env::temp_dir().join(format!("corpus-{}", std::process::id()));
        fs::create_dir_all(dir.join("mine")).unwrap();
        assert!(prepare(&dir).is_err());
        fs::write(dir.join("index.json"), "{}").unwrap();
        fs::create_dir_all(dir.join("001-old")).unwrap();
        fs::write(dir.join("001-old/case.json"), "{}").unwrap();
        prepare(&dir).unwrap();
        assert!(dir.join("mine").is_dir() && !dir.join("001-old").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
