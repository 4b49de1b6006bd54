//! `trefoil ek`: which TPM manufacturers are trusted, and why a node's TPM is.

use std::path::PathBuf;

use anyhow::Context as _;
use control_plane::ek::{BundleCertificate, EkPathCertificate, EkRoots, EkSource, Provenance};
use control_plane::http::ek::{EkJudgement, EkReport};
use control_plane::http::model::Hardware;

use super::{Context, component, output};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check a bundle of manufacturers' certificates and show what is in it
    #[command(after_help = "Example:\n  trefoil ek bundle /etc/trefoil/ek-roots\n\n\
        A bundle is a directory of PEM or DER files, as `ek_roots` names it, with provenance.toml beside them if you like;\n\
        or one such file. No server is asked.")]
    Bundle {
        /// Directory or file
        path: PathBuf,
    },
    /// Explain why a node's TPM is taken for a real one, or why not and what to do
    #[command(after_help = "Examples:\n  trefoil ek explain edge-1\n  trefoil ek explain 5f0c9a12 --json")]
    Explain {
        /// Name, node id, or unambiguous prefix of it; of a node in quarantine its id
        node: String,
    },
}

pub(crate) fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Bundle { path } => {
            let roots = EkRoots::load(path).with_context(|| format!("the bundle {}", path.display()))?;
            let certificates = roots.certificates();
            if context.json() {
                return output::print_json(&certificates);
            }
            output::print(&bundle(&certificates))?;
            let refused = certificates.iter().filter(|certificate| certificate.refused.is_some()).count();
            let unsaid = certificates.iter().filter(|row| provenance(&row.certificate).is_none()).count();
            output::note(&format!("{} certificates, {unsaid} of them without provenance.", certificates.len()));
            if refused > 0 {
                output::note(&format!(
                    "{refused} are not DER (a SET is out of order) and are not used, unless provenance.toml names them \
                     with exceptions = [\"set-order\"]."
                ));
            }
            Ok(())
        }
        Command::Explain { node } => {
            let report: EkReport = context.client()?.get(&format!("/api/v1/nodes/{}/ek", component(node)?))?;
            if context.json() {
                return output::print_json(&report);
            }
            output::print(&explain(output::Style::stdout(), &report))
        }
    }
}

fn provenance(certificate: &EkPathCertificate) -> Option<&Provenance> {
    match &certificate.source {
        EkSource::Bundle { provenance, .. } => provenance.as_ref(),
        EkSource::Node { .. } => None,
    }
}

/// Seconds since 1970 as a date; vendors write years that milliseconds do not reach.
fn date(seconds: i64) -> String {
    output::time(seconds.saturating_mul(1000)).chars().take(10).collect()
}

fn bundle(certificates: &[BundleCertificate]) -> String {
    let row = |BundleCertificate { certificate, refused }: &BundleCertificate| {
        let from = provenance(certificate).map(|said| {
            let parts = [&said.vendor, &said.source, &said.retrieved];
            parts.into_iter().flatten().map(|part| output::clean(part)).collect::<Vec<_>>().join(", ")
        });
        let excepted = provenance(certificate).is_some_and(|said| !said.exceptions.is_empty());
        let use_ = match (refused, excepted) {
            (Some(_), _) => "not used: set-order",
            (None, true) => "by exception: set-order",
            (None, false) => "trusted",
        };
        let file = match &certificate.source {
            EkSource::Bundle { file, .. } => output::clean(file),
            EkSource::Node { .. } => String::new(),
        };
        vec![
            output::clean(&certificate.subject),
            output::short(&certificate.sha256),
            output::clean(&certificate.key),
            format!("{} to {}", date(certificate.not_before), date(certificate.not_after)),
            use_.to_owned(),
            file,
            output::or_dash(from.filter(|from| !from.is_empty())),
        ]
    };
    let heading = ["SUBJECT", "SHA-256", "KEY", "VALID", "USE", "FILE", "PROVENANCE"];
    output::table(output::Style::stdout(), &heading, &certificates.iter().map(row).collect::<Vec<_>>())
}

fn hardware(hardware: &Hardware) -> String {
    match hardware {
        Hardware::Certified { issuer } => format!("certified by {}", output::clean(issuer)),
        Hardware::AllowListed => "named by the operator".into(),
        Hardware::Unproven => "unproven".into(),
    }
}

fn explain(style: output::Style, report: &EkReport) -> String {
    let mut lines = vec![
        ("node id".to_owned(), report.node_id.clone()),
        ("name".to_owned(), report.name.as_deref().map_or("none: it waits in quarantine".into(), output::clean)),
        ("on record".to_owned(), hardware(&report.hardware)),
    ];
    let tpm = &report.tpm;
    let said = [
        (
            "manufacturer",
            tpm.manufacturer.as_ref().map(|text| match &report.vendor {
                Some(vendor) => format!("{text} ({vendor})"),
                None => text.clone(),
            }),
        ),
        ("model", tpm.model.clone()),
        ("version", tpm.version.clone()),
    ];
    for (what, text) in said {
        lines.push((what.to_owned(), text.map_or("the certificate does not say".into(), |text| output::clean(&text))));
    }
    let mut text: String = lines.into_iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect();
    if report.certificates.is_empty() {
        text.push_str("The node sent no certificate.\n");
    }
    for judgement in &report.judgements {
        text.push_str(&judged(style, judgement));
    }
    if report.judgements.iter().all(|judgement| judgement.path.is_none()) && !report.certificates.is_empty() {
        text.push_str("\nThe node sent:\n");
        text.extend(report.certificates.iter().map(certificate));
    }
    text
}

fn judged(style: output::Style, judgement: &EkJudgement) -> String {
    let mut text = format!(
        "\n{}, with {} trusted certificates: {}\n",
        style.bold(&output::clean(&judgement.role)),
        judgement.root_count,
        hardware(&judgement.hardware)
    );
    if let Some(path) = &judgement.path {
        text.extend(path.certificates.iter().map(certificate));
        text.push_str(&format!("  not checked: {}\n", output::clean(&path.not_checked.join(", "))));
    }
    if let (Some(code), Some(reason)) = (&judgement.code, &judgement.reason) {
        text.push_str(&format!("  {}: {}\n", output::clean(code), output::clean(reason)));
    }
    if let Some(advice) = &judgement.advice {
        text.push_str(&format!("  {}\n", output::clean(advice)));
    }
    text
}

fn certificate(certificate: &EkPathCertificate) -> String {
    let from = match &certificate.source {
        EkSource::Node { number } => format!("sent by the node, {number}"),
        EkSource::Bundle { file, provenance } => {
            let mut from = format!("trusted: {}", output::clean(file));
            if let Some(said) = provenance {
                for (what, part) in [
                    ("vendor", &said.vendor),
                    ("from", &said.source),
                    ("retrieved", &said.retrieved),
                    ("note", &said.note),
                ] {
                    if let Some(part) = part {
                        from.push_str(&format!("; {what} {}", output::clean(part)));
                    }
                }
                if !said.exceptions.is_empty() {
                    from.push_str(&format!("; by exception: {}", output::clean(&said.exceptions.join(", "))));
                }
            }
            from
        }
    };
    format!(
        "  {}\n    issued by {}\n    {}, serial {}, {} to {}\n    sha256 {}\n    {from}\n",
        output::clean(&certificate.subject),
        output::clean(&certificate.issuer),
        output::clean(&certificate.key),
        output::clean(&certificate.serial),
        date(certificate.not_before),
        date(certificate.not_after),
        output::clean(&certificate.sha256),
    )
}
