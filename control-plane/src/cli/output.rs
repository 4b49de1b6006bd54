//! How answers look: tables, times, colours on a terminal, JSON.

use std::io::{IsTerminal, Write};

use anyhow::Context as _;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Writes to standard output; a reader that is gone is an error, not a panic.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}

/// Writes JSON that a person can read too.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Says something about the way to the answer.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Colours, where they are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// On a terminal and without NO_COLOR (no-color.org).
    pub(crate) fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colours: wanted && std::io::stdout().is_terminal() }
    }

    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self { colours: false }
    }

    /// A state in the colour that it calls for.
    pub(crate) fn state(self, text: &str) -> String {
        let code = match text {
            "good" | "delivered" | "open" => "32",
            "failed" | "rolled_back" | "quarantined" => "31",
            "stale" | "stopped" | "expired" | "revoked" => "33",
            _ => return text.to_owned(),
        };
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    pub(crate) fn bold(self, text: &str) -> String {
        if self.colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A table with a heading; columns as wide as they need to be, the last as it is.
pub(crate) fn table(style: Style, heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|text| text.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(visible_len(cell));
        }
    }
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (index, cell) in cells.iter().enumerate() {
            line.push_str(cell);
            if index + 1 < cells.len() {
                let width = widths.get(index).copied().unwrap_or(0);
                line.extend(std::iter::repeat_n(' ', width.saturating_sub(visible_len(cell)) + 2));
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let heading: Vec<String> = heading.iter().map(|text| (*text).to_owned()).collect();
    let mut text = style.bold(line(&heading).trim_end());
    text.push('\n');
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// Characters that take room on a terminal: all but our colour codes.
fn visible_len(text: &str) -> usize {
    let mut len = 0;
    let mut in_code = false;
    for character in text.chars() {
        match character {
            '\x1b' => in_code = true,
            'm' if in_code => in_code = false,
            _ if in_code => {}
            _ => len += 1,
        }
    }
    len
}

/// Text from the network, fit for a terminal: no control characters.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A time, in UTC, to the second.
pub(crate) fn time(ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000))
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{ms} ms"))
}

/// A span in the unit that fits: `350 ms`, `4.2 s`, `3 min`, `2 h`, `5 d`.
pub(crate) fn span(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        3_600_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// The first digits of an id: enough to tell it and to use it.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// What stands where there is nothing.
pub(crate) fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_their_colour() {
        let colours = Style { colours: true };
        let rows =
            [vec!["a".into(), colours.state("good"), "x".into()], vec!["longer".into(), "none".into(), "y".into()]];
        let text = table(Style::plain(), &["NAME", "TRUST", "LAST"], &rows);
        let at = |line: &str, what: char| visible_len(line.split(what).next().unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(at(lines[1], 'x'), at(lines[2], 'y'));
        assert_eq!(lines[0], "NAME    TRUST  LAST");
    }

    #[test]
    fn a_strangers_text_moves_no_cursor() {
        assert_eq!(clean("a\x1b[2Jb\nc"), "a [2Jb c");
    }

    #[test]
    fn times_and_spans_read_well() {
        assert_eq!(time(1_700_000_000_500), "2023-11-14T22:13:20Z");
        assert_eq!(time(i64::MAX), format!("{} ms", i64::MAX));
        assert_eq!((span(350), span(4_250), span(180_000)), ("350 ms".into(), "4.2 s".into(), "3 min".into()));
    }
}
