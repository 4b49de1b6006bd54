//! `trefoil policy diff`: what two policies say differently.

use std::process::ExitCode;

use anyhow::Context as _;
use control_plane::appraisal::policy::diff::{self, Change, Kind};

use crate::cli::output::{self, Style};
use crate::cli::{Context, component};

/// Values of one item that are shown; `--json` has all.
const MAX_SHOWN: usize = 8;
/// Hex digits of a digest that are shown.
const SHOWN_DIGITS: usize = 16;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    trefoil policy diff old.toml new.toml\n  \
    trefoil policy diff edge new.toml --json\n\n\
    Spelling, order and signatures are no difference. Exit 0 if both say the same, 1 if not.")]
pub(crate) struct Arguments {
    /// A file, or a policy's id or name
    from: String,
    /// A file, or a policy's id or name
    to: String,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let text = |wanted: &str| -> anyhow::Result<Vec<u8>> {
        if std::path::Path::new(wanted).is_file() {
            return super::read(wanted.as_ref());
        }
        let client = context.client().with_context(|| format!("{wanted}: no such file here"))?;
        let policy: control_plane::http::model::Policy = client
            .get(&format!("/api/v1/policies/{}", component(wanted)?))
            .with_context(|| format!("{wanted}: no such file here"))?;
        Ok(policy.body.unwrap_or_default().into_bytes())
    };
    let (from, to) = (text(&arguments.from)?, text(&arguments.to)?);
    let changes = diff::diff(&from, &to)?;
    if context.json() {
        output::print_json(&changes)?;
    } else if changes.is_empty() {
        output::note("Both say the same.");
    } else {
        output::print(&describe(Style::stdout(), &changes))?;
    }
    Ok(if changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(style: Style, changes: &[Change]) -> String {
    let mut text = String::new();
    let mut section = None;
    for change in changes {
        if section != Some(&change.section) {
            text.push_str(&format!("{}\n", style.bold(&format!("[{}]", output::clean(&change.section)))));
            section = Some(&change.section);
        }
        let sign = match change.kind {
            Kind::Added => '+',
            Kind::Removed => '-',
            Kind::Changed => '~',
        };
        text.push_str(&format!("{sign} {}\n", output::clean(&change.item)));
        for (sign, values) in [('-', &change.removed), ('+', &change.added)] {
            for value in values.iter().take(MAX_SHOWN) {
                text.push_str(&format!("    {sign} {}\n", output::clean(&shortened(value))));
            }
            if let Some(more) = values.len().checked_sub(MAX_SHOWN + 1) {
                text.push_str(&format!("    {sign} and {} more\n", more + 1));
            }
        }
    }
    text
}

/// The text with the digests in it cut to their first digits.
fn shortened(text: &str) -> String {
    let cut = |word: &str| {
        let is_digest = word.len() >= 40 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_digest { format!("{}…", word.get(..SHOWN_DIGITS).unwrap_or(word)) } else { word.to_owned() }
    };
    text.split(' ').map(cut).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_shown_by_section_with_short_digests() {
        let change = |section: &str, item: &str, kind, removed: &[String], added: &[String]| Change {
            section: section.into(),
            item: item.into(),
            kind,
            removed: removed.to_vec(),
            added: added.to_vec(),
        };
        let many: Vec<String> = (0..10).map(|n| format!("{n}").repeat(64)).collect();
        let changes = [
            change("ima.files", "/usr/bin/x\u{1b}", Kind::Changed, &many[..1], &many),
            change("ima.files", "/usr/bin/y", Kind::Removed, &many[1..2], &[]),
            change("release", "phase_pcr", Kind::Added, &[], &["13".into()]),
        ];
        let text = describe(Style::plain(), &changes);
        let expected = "[ima.files]\n~ /usr/bin/x \n    - 0000000000000000…\n    + 0000000000000000…\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(
            text.contains(
                "    + and 2 more\n- /usr/bin/y\n    - 1111111111111111…\n[release]\n+ phase_pcr\n    + 13\n"
            )
        );
        assert_eq!(
            shortened(&format!("images: {0} -> {0}", "ab".repeat(32))),
            "images: abababababababab… -> abababababababab…"
        );
    }
}
