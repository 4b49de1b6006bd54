//! `trefoil appraise`: the appraiser on files, without a server. Reading, and saying what came out; what is judged is in
//! [`files`](control_plane::appraisal::files).

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use control_plane::appraisal::files::{Files, FilesVerdict, InputError, Outcome, appraise_files};
use control_plane::ek::EkRoots;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Context, output};

/// No input is longer: an IMA list of half a million entries.
const MAX_FILE_LEN: u64 = 64 * 1024 * 1024;

/// An input that cannot be read; 1 is a failed check.
const UNREADABLE: u8 = 2;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpm2_quote -c ak.ctx -l sha256:0,7 -q 0011 -m quote.bin -s quote.sig -o quote.pcrs -f tss
  trefoil appraise --quote quote.bin --signature quote.sig --ak ak.pem --qualifying-data 0011 --pcrs quote.pcrs
  trefoil appraise --boot-log binary_bios_measurements --json
  trefoil appraise --quote q --signature s --ak ak.pub --pcrs p --boot-log log --ima list --policy policy.toml

Everything that is given is judged together, and what is missing is listed as not checked. Files may be anybody's, and
hostile. Exit status: 0 no check failed, 1 one did, 2 an input cannot be read.")]
pub(crate) struct Arguments {
    /// What the TPM signed: a TPMS_ATTEST
    #[arg(long, value_name = "FILE")]
    quote: Option<PathBuf>,
    /// Its signature: a TPMT_SIGNATURE
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// The attestation key: PEM, or TPM2B_PUBLIC
    #[arg(long, value_name = "FILE")]
    ak: Option<PathBuf>,
    /// The qualifying data (nonce) that was asked for
    #[arg(long, value_name = "HEX")]
    qualifying_data: Option<String>,
    /// PCR values: what `tpm2_quote -o` writes, as `serialized` or `values`; or JSON {"sha256": {"7": "hex"}}
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
    /// The firmware's event log (binary_bios_measurements)
    #[arg(long, value_name = "FILE")]
    boot_log: Option<PathBuf>,
    /// The kernel's IMA list, binary or ASCII
    #[arg(long, value_name = "FILE")]
    ima: Option<PathBuf>,
    /// systemd's measurement log (/run/log/systemd/tpm2-measure.log)
    #[arg(long, value_name = "FILE")]
    userspace_log: Option<PathBuf>,
    /// The kernel's command line (/proc/cmdline), which the boot log's events have to prove
    #[arg(long, value_name = "FILE")]
    command_line: Option<PathBuf>,
    /// The EK certificate, PEM or DER; intermediates may follow in the PEM
    #[arg(long, value_name = "FILE")]
    ek_cert: Option<PathBuf>,
    /// Trusted TPM manufacturers' certificates
    #[arg(long, value_name = "DIR|PEM")]
    ek_roots: Option<PathBuf>,
    /// When certificates have to be valid [default: now]
    #[arg(long, value_name = "RFC3339")]
    at: Option<Time>,
    /// What is good
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Public keys in PEM, one of which has to have signed the policy
    #[arg(long, value_name = "FILE", requires = "policy")]
    policy_key: Option<PathBuf>,
    /// JSON of an earlier quote's reset_count, restart_count, clock and firmware_version
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// Judge too what only our own nodes have to meet: exact AK template, qualified signer, firmware measurements
    #[arg(long)]
    node_rules: bool,
}

/// A time in RFC 3339.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time(OffsetDateTime);

impl std::str::FromStr for Time {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        OffsetDateTime::parse(text, &Rfc3339).map(Self).map_err(|_| "a time such as 2026-01-31T12:00:00Z")
    }
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let verdict = match judge(arguments) {
        Ok(verdict) => verdict,
        Err(error) => {
            if context.json() {
                output::print_json(&error.to_json())?;
            } else {
                output::note(&format!("trefoil: {}", output::clean(&error.to_string())));
            }
            return Ok(ExitCode::from(UNREADABLE));
        }
    };
    if context.json() {
        output::print_json(&verdict)?;
    } else {
        output::print(&text(output::Style::stdout(), &verdict))?;
    }
    Ok(if verdict.is_pass() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn judge(arguments: &Arguments) -> Result<FilesVerdict, InputError> {
    let file = |input, path: &Option<PathBuf>| path.as_deref().map(|path| read(input, path)).transpose();
    let quote = file("quote", &arguments.quote)?;
    let signature = file("signature", &arguments.signature)?;
    let ak = file("ak", &arguments.ak)?;
    let qualifying_data = arguments.qualifying_data.as_deref().map(unhex).transpose()?;
    let pcrs = file("pcrs", &arguments.pcrs)?;
    let boot_log = file("boot-log", &arguments.boot_log)?;
    let ima = file("ima", &arguments.ima)?;
    let userspace_log = file("userspace-log", &arguments.userspace_log)?;
    let command_line = file("command-line", &arguments.command_line)?;
    let ek_certificate = file("ek-cert", &arguments.ek_cert)?;
    let ek_roots = arguments.ek_roots.as_deref().map(roots).transpose()?;
    let policy = file("policy", &arguments.policy)?;
    let policy_keys = file("policy-key", &arguments.policy_key)?;
    let previous = file("previous", &arguments.previous)?;
    let now = arguments.at.map_or_else(OffsetDateTime::now_utc, |time| time.0).unix_timestamp();
    appraise_files(&Files {
        quote: quote.as_deref(),
        signature: signature.as_deref(),
        ak: ak.as_deref(),
        qualifying_data: qualifying_data.as_deref(),
        pcrs: pcrs.as_deref(),
        boot_log: boot_log.as_deref(),
        ima: ima.as_deref(),
        userspace_log: userspace_log.as_deref(),
        command_line: command_line.as_deref(),
        ek_certificate: ek_certificate.as_deref(),
        ek_roots: ek_roots.as_ref(),
        now,
        policy: policy.as_deref(),
        policy_keys: policy_keys.as_deref(),
        previous: previous.as_deref(),
        node_rules: arguments.node_rules,
    })
}

fn read(input: &'static str, path: &Path) -> Result<Vec<u8>, InputError> {
    let error = |error: std::io::Error| {
        let reason = if error.kind() == ErrorKind::NotFound { "no_such_file" } else { "file_unreadable" };
        InputError::new(input, reason, 0, format!("{}: {error}", path.display()))
    };
    let mut bytes = Vec::new();
    // Pseudo files tell no length: one byte more than is allowed shows that there is too much.
    File::open(path).and_then(|file| file.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes)).map_err(error)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        let detail = format!("{} is longer than {MAX_FILE_LEN} bytes", path.display());
        return Err(InputError::new(input, "file_too_long", bytes.len() - 1, detail));
    }
    Ok(bytes)
}

fn unhex(text: &str) -> Result<Vec<u8>, InputError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    hex::decode(digits).map_err(|error| {
        let at = match error {
            hex::FromHexError::InvalidHexCharacter { index, .. } => index,
            _ => digits.len(),
        };
        let offset = at + (text.len() - digits.len());
        InputError::new("qualifying-data", "qualifying_data_not_hex", offset, error.to_string())
    })
}

/// A directory of certificates, or one file.
fn roots(path: &Path) -> Result<EkRoots, InputError> {
    EkRoots::load(path).map_err(|error| {
        let detail = format!("{:#}", anyhow::Error::from(error));
        InputError::new("ek-roots", "ek_roots_unreadable", 0, detail)
    })
}

/// For a person: a line for each check, then what the logs replay to. Anything in it may come from a hostile file.
fn text(style: output::Style, verdict: &FilesVerdict) -> String {
    let name = |outcome: Outcome| match outcome {
        Outcome::Pass => style.state("good").replace("good", "pass"),
        Outcome::Fail => style.state("failed").replace("failed", "FAIL"),
        Outcome::NotChecked => "not checked".to_owned(),
    };
    let mut rows = Vec::new();
    for row in verdict.checks() {
        let check = serde_json::to_value(row.check).ok().and_then(|name| name.as_str().map(str::to_owned));
        let place = row.place.as_ref().map(|place| format!("{}: ", place.what)).unwrap_or_default();
        let said = match (row.result, row.expected.as_str()) {
            (Outcome::Fail, _) => format!("{place}expected {}, found {}", row.expected, row.found),
            _ => format!("{place}{}", row.found),
        };
        let reason = if row.result == Outcome::Pass { String::new() } else { row.reason.to_owned() };
        rows.push(vec![check.unwrap_or_default(), name(row.result), reason, output::clean(&said)]);
    }
    let mut text = output::table(style, &["CHECK", "RESULT", "REASON", ""], &rows);
    for (bank, pcrs) in verdict.replayed() {
        text.push_str(&format!("\n{}\n", style.bold(&format!("replayed, {bank}"))));
        for (index, value) in pcrs {
            text.push_str(&format!("  {index:>2}  {value}\n"));
        }
    }
    text.push_str(&format!("\n{}\n", if verdict.is_pass() { "pass: no check failed" } else { "fail" }));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_that_is_none_is_named_by_its_offset() {
        assert_eq!(unhex("0x00ff"), Ok(vec![0, 0xff]));
        assert_eq!(unhex("00fg").unwrap_err().offset, 3);
        assert_eq!(unhex("0x0").unwrap_err().reason, "qualifying_data_not_hex");
        assert_eq!(unhex(""), Ok(Vec::new()));
    }

    #[test]
    fn times_are_read_with_their_zone() {
        assert_eq!("2026-01-01T01:00:00+01:00".parse::<Time>().unwrap().0.unix_timestamp(), 1_767_225_600);
        assert!("2026-01-01".parse::<Time>().is_err());
    }

    #[test]
    fn what_a_person_reads_has_every_check_and_no_control_characters() {
        let ima = b"\x0a\0\0\0".to_vec();
        let error = appraise_files(&Files { ima: Some(&ima), ..Files::default() }).unwrap_err();
        assert_eq!((error.input, error.offset), ("ima", 0));
        let verdict = appraise_files(&Files::default()).unwrap();
        let text = text(output::Style::plain(), &verdict);
        for part in ["signature", "no_quote", "pass: no check failed"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
