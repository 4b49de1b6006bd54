//! `cargo xtask bench`: how fast appraisal is, each figure beside its limit.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value};

use crate::tools;

/// Performance figures, measured single-threaded in one run; ratios compare things measured in turn.
///
/// Examples:
///   cargo xtask bench                  a table with the limit beside each figure
///   cargo xtask bench --json out.json  the figures as one JSON object as well
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Writes the figures to FILE as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a figure has to keep to.
#[derive(Clone, Copy, Debug)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
    /// It is told, and has no limit.
    None,
}

/// A figure: its name in the program's output, what it is, and its limit.
struct Figure {
    name: &'static str,
    what: &'static str,
    limit: Limit,
    in_json: bool,
}

const fn figure(name: &'static str, what: &'static str, limit: Limit) -> Figure {
    Figure { name, what, limit, in_json: true }
}

const FIGURES: &[Figure] = &[
    figure("appraise_quote_per_s", "quotes appraised a second (P-256, PCR policy)", Limit::None),
    figure("p256_verify_per_s", "P-256 signatures verified a second (ring)", Limit::None),
    figure("appraise_over_raw", "the first over the second", Limit::AtLeast(0.85)),
    figure(
        "ima_entries_per_s",
        "IMA entries judged a second (ima-ng, 100,000, policy of as many)",
        Limit::AtLeast(2e6),
    ),
    figure("ima_over_hash", "the same over hashing alone", Limit::AtLeast(0.6)),
    figure("policy_load_ms", "ms to load a policy of 150,000 digests (JSON)", Limit::AtMost(150.0)),
    figure("policy_bytes", "bytes that it takes in memory", Limit::AtMost(25e6)),
    figure("boot_log_ms", "ms to appraise a boot log of 73 KB", Limit::AtMost(1.0)),
    figure("verifier_state_bytes", "bytes that the verifier keeps of a node", Limit::AtMost(1024.0)),
    Figure { in_json: false, ..figure("lookup_ns_1000", "ns for a path in a policy of 1,000", Limit::None) },
    Figure { in_json: false, ..figure("lookup_ns_150000", "ns for a path in a policy of 150,000", Limit::None) },
];
/// Whether the processor hashes by itself; the limits on IMA suppose it.
const SHA_NI: &str = "sha_ni";

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = tools::cargo(&["bench", "--quiet", "-p", "control-plane", "--bench", "appraisal"]);
    let shown = hil_tests::spawn::show(&command);
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}", output.status);
    }
    let text = String::from_utf8(output.stdout).context("the bench's output is not text")?;
    let line = text.lines().rev().find(|line| line.starts_with('{')).context("the bench printed no figures")?;
    let figures: Map<String, Value> = serde_json::from_str(line).context("the bench's figures do not parse")?;
    let mut missed = 0;
    for figure in FIGURES {
        let number = number(&figures, figure.name)?;
        let verdict = judge(figure.limit, number);
        missed += usize::from(verdict == Some(false));
        println!("{}", row(figure, number, verdict));
    }
    let sha_ni = figures.get(SHA_NI).and_then(Value::as_bool).context("sha_ni is missing")?;
    if !sha_ni {
        println!("This processor has no SHA extensions (SHA-NI), which the limits on IMA suppose.");
    }
    if let Some(file) = &arguments.json {
        let mut kept = Map::new();
        for figure in FIGURES.iter().filter(|figure| figure.in_json) {
            kept.insert(figure.name.to_owned(), figures.get(figure.name).cloned().unwrap_or_default());
        }
        kept.insert(SHA_NI.to_owned(), Value::Bool(sha_ni));
        let text = serde_json::to_string_pretty(&Value::Object(kept))?;
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    if missed > 0 {
        println!("{missed} limits missed");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn number(figures: &Map<String, Value>, name: &str) -> Result<f64> {
    figures.get(name).and_then(Value::as_f64).with_context(|| format!("{name} is missing"))
}

/// Whether a limit is kept; `None` if there is none.
fn judge(limit: Limit, number: f64) -> Option<bool> {
    match limit {
        Limit::AtLeast(least) => Some(number >= least),
        Limit::AtMost(most) => Some(number <= most),
        Limit::None => None,
    }
}

fn row(figure: &Figure, number: f64, verdict: Option<bool>) -> String {
    let limit = match figure.limit {
        Limit::AtLeast(least) => format!(">= {}", readable(least)),
        Limit::AtMost(most) => format!("<= {}", readable(most)),
        Limit::None => String::new(),
    };
    let word = match verdict {
        Some(true) => "ok",
        Some(false) => "MISSED",
        None => "",
    };
    let Figure { name, what, .. } = figure;
    format!("{name:<21} {:>12}  {limit:<13} {word:<6} {what}", readable(number)).trim_end().to_owned()
}

/// Digits in groups of three, and a fraction where the number is small.
fn readable(number: f64) -> String {
    if number < 1000.0 && number.fract() != 0.0 {
        return format!("{number:.3}");
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_beside_its_limit_and_says_if_it_is_kept() {
        let [at_least, at_most] = [2, 5].map(|at| &FIGURES[at]);
        assert!(row(at_least, 0.9, judge(at_least.limit, 0.9)).contains("0.900  >= 0.850      ok"));
        assert!(row(at_least, 0.8, judge(at_least.limit, 0.8)).contains("0.800  >= 0.850      MISSED"));
        assert!(row(at_most, 150.0, judge(at_most.limit, 150.0)).contains("150  <= 150        ok"));
        assert!(row(at_most, 1234567.0, judge(at_most.limit, 1234567.0)).contains("1,234,567  <= 150        MISSED"));
        assert_eq!(judge(Limit::None, 1.0), None);
    }
}
