//! Lists of text: allow-lists (`digest  path`, as sha256sum prints it) and exclude lists (an expression a line).

use super::{ImportError, Kind, NO_NAME, Notes, add_file, digest, excludes, is_name, shown};
use crate::appraisal::policy::write::{DigestSet, ImaText};

/// What keyring entries begin with, in place of a path.
const KEYRING: &str = "%keyring:";

/// Adds a list to the rules, and says which it is.
pub(super) fn add(text: &str, ima: &mut ImaText, notes: &mut Notes) -> Result<Kind, ImportError> {
    let mut lines = (1..).zip(text.lines()).map(|(number, line)| (number, line.trim_end_matches('\r')));
    let mut lines: Vec<(usize, &str)> =
        lines.by_ref().filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#')).collect();
    let first = lines.first().map(|(_, line)| *line).ok_or(ImportError::UnknownFormat)?;
    if entry(first).is_some() {
        for (number, line) in lines {
            add_entry(number, line, ima, notes);
        }
        return Ok(Kind::AllowList);
    }
    // Expressions of paths look like paths; a text that only begins like one is none of Keylime's.
    let is_expression = |line: &str| line.trim().starts_with(['/', '^', '(', '.']) && !line.contains('\0');
    if !lines.iter().all(|(_, line)| is_expression(line)) {
        return Err(ImportError::UnknownFormat);
    }
    let expressions = lines.drain(..).map(|(number, line)| (format!("line {number}"), line.trim()));
    excludes(expressions, &mut ima.exclude, notes);
    Ok(Kind::ExcludeList)
}

/// Splits a line; `None` if it does not begin with hex digits, as many as a digest has.
fn entry(line: &str) -> Option<(&str, &str)> {
    // sha256sum begins a line with a backslash if it had to escape the name.
    let line = line.trim_start();
    let (hex, path) = line.split_once(char::is_whitespace)?;
    let digits = hex.trim_start_matches('\\');
    let digits = digits.split_once(':').map_or(digits, |(_, digits)| digits);
    let is_digest =
        digits.len() >= 32 && digits.len().is_multiple_of(2) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then_some((hex, path.trim_start()))
}

fn add_entry(number: usize, line: &str, ima: &mut ImaText, notes: &mut Notes) {
    let place = || format!("line {number}");
    let Some((hex, path)) = entry(line) else {
        notes.add("line_unreadable", place(), format!("`{}` is not `digest  path`, left out", shown(line)));
        return;
    };
    let (hex, path) = match hex.strip_prefix('\\') {
        Some(hex) => (hex, unescape(path)),
        None => (hex, path.to_owned()),
    };
    let Some(found) = digest(hex) else {
        let message = format!("`{}` is no SHA-1, SHA-256, SHA-384 or SHA-512 digest, left out", shown(hex));
        notes.add("digest_unreadable", place(), message);
        return;
    };
    // `*` before the name says that it was read as binary.
    let path = path.strip_prefix('*').filter(|rest| rest.starts_with('/')).unwrap_or(&path);
    let name = path.strip_prefix(KEYRING).unwrap_or(path);
    if !is_name(name) {
        notes.add("path_unusable", place(), NO_NAME);
        return;
    }
    match path.strip_prefix(KEYRING) {
        Some(name) => {
            ima.keyrings.entry(name.to_owned()).or_default().insert(found);
        }
        None => add_file(ima, path, DigestSet::from([found])),
    }
}

/// `\\` and `\n` of sha256sum's escaped names.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => plain.push('\n'),
                Some('r') => plain.push('\r'),
                Some(c) => plain.push(c),
                None => plain.push('\\'),
            },
            c => plain.push(c),
        }
    }
    plain
}
