//! What the agent says: lines in plain words, or one JSON object a line, on standard error.
//!
//! There is one log per process. Nothing secret is ever handed to it: secrets have no `Display`.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    sync::atomic::{AtomicU8, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// How much a line matters.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub(crate) enum Level {
    /// Something that a person has to put right.
    Error = 1,
    /// Something that went wrong and was survived.
    Warn = 2,
    /// What the agent is doing.
    Info = 3,
    /// One line for each step of the protocol.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

impl Level {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How much is said, and in which form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    /// Lines that matter less are left out.
    pub(crate) level: Level,
    /// JSON objects instead of words.
    pub(crate) json: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: Level::Info, json: false }
    }
}

impl Settings {
    /// Reads `LEVEL` or `json:LEVEL`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (json, name) = match text.strip_prefix("json:") {
            Some(name) => (true, name),
            None => (false, text),
        };
        Level::ALL.into_iter().find(|level| level.name() == name).map(|level| Self { level, json })
    }
}

/// One value of a step's line.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field<'a> {
    /// Words.
    Text(&'a str),
    /// A count, or bytes.
    Number(u64),
    /// A time in microseconds, written as milliseconds.
    Micros(u64),
}

/// Level in the low bits, bit 7 for JSON.
static SETTINGS: AtomicU8 = AtomicU8::new(Level::Info as u8);
const JSON: u8 = 0x80;

/// Sets how much is said from here on.
pub(crate) fn init(settings: Settings) {
    SETTINGS.store(settings.level as u8 | if settings.json { JSON } else { 0 }, Ordering::Relaxed);
}

/// Whether lines of this level are written.
pub(crate) fn enabled(level: Level) -> bool {
    level as u8 <= SETTINGS.load(Ordering::Relaxed) & !JSON
}

/// Writes one line of text.
pub(crate) fn write(level: Level, text: fmt::Arguments<'_>) {
    if enabled(level) {
        emit(&line(SETTINGS.load(Ordering::Relaxed) & JSON != 0, now_ms(), level, text));
    }
}

/// Writes one protocol step, at level debug: its name, and values in the order given.
pub(crate) fn step(name: &str, fields: &[(&str, Field<'_>)]) {
    if enabled(Level::Debug) {
        emit(&step_line(SETTINGS.load(Ordering::Relaxed) & JSON != 0, now_ms(), name, fields));
    }
}

macro_rules! error_ {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($arg)*)) };
}
macro_rules! warn_ {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Warn, format_args!($($arg)*)) };
}
macro_rules! info_ {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($arg)*)) };
}
macro_rules! debug_ {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Debug, format_args!($($arg)*)) };
}
pub(crate) use {debug_ as debug, error_ as error, info_ as info, warn_ as warn};

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// One write for one line, so that lines of two processes do not mix. A closed standard error is nobody's business.
fn emit(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn line(json: bool, at_ms: u64, level: Level, text: fmt::Arguments<'_>) -> String {
    let mut line = String::with_capacity(160);
    // Writing to a string does not fail.
    let _ = if json {
        write!(line, "{{\"at_ms\":{at_ms},\"level\":\"{}\",\"text\":\"", level.name())
            .and_then(|()| write!(Escaped(&mut line), "{text}"))
            .and_then(|()| line.write_str("\"}\n"))
    } else {
        let mark = match level {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        write!(line, "trefoil-agent: {mark}")
            .and_then(|()| write!(Escaped(&mut line), "{text}"))
            .and_then(|()| line.write_char('\n'))
    };
    line
}

fn step_line(json: bool, at_ms: u64, name: &str, fields: &[(&str, Field<'_>)]) -> String {
    let mut line = String::with_capacity(200);
    let _ = if json {
        write!(line, "{{\"at_ms\":{at_ms},\"step\":\"{name}\"")
    } else {
        write!(line, "trefoil-agent: step {name}:")
    };
    for (key, value) in fields {
        let _ = if json { write!(line, ",\"{key}\":") } else { write!(line, " {key} ") };
        let _ = match value {
            Field::Text(text) if json => line
                .write_char('"')
                .and_then(|()| Escaped(&mut line).write_str(text))
                .and_then(|()| line.write_char('"')),
            Field::Text(text) => Escaped(&mut line).write_str(text),
            Field::Number(number) => write!(line, "{number}"),
            Field::Micros(us) => write!(line, "{}.{:03}", us / 1000, us % 1000),
        };
    }
    line.push_str(if json { "}\n" } else { "\n" });
    line
}

/// Escapes as JSON strings do: quotes, backslashes and control characters, which a terminal would obey.
pub(crate) struct Escaped<'a>(pub(crate) &'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                '\n' => self.0.push_str("\\n"),
                c if c.is_control() => write!(self.0, "\\u{:04x}", u32::from(c))?,
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_line_escapes_what_would_end_it() {
        let text = line(true, 7, Level::Warn, format_args!("a \"b\" \\ c\n\u{1b}[2J\u{9b}"));
        assert_eq!(text, "{\"at_ms\":7,\"level\":\"warn\",\"text\":\"a \\\"b\\\" \\\\ c\\n\\u001b[2J\\u009b\"}\n");
    }

    #[test]
    fn plain_line_cannot_forge_a_second_one() {
        let text = line(false, 7, Level::Error, format_args!("gone\ntrefoil-agent: all is well"));
        assert_eq!(text, "trefoil-agent: error: gone\\ntrefoil-agent: all is well\n");
    }

    #[test]
    fn step_names_its_fields_in_order() {
        let fields = [("from", Field::Text("agent")), ("ms", Field::Micros(1_230)), ("up", Field::Number(99))];
        assert_eq!(
            step_line(true, 5, "hello", &fields),
            "{\"at_ms\":5,\"step\":\"hello\",\"from\":\"agent\",\"ms\":1.230,\"up\":99}\n"
        );
        assert_eq!(step_line(false, 5, "hello", &fields), "trefoil-agent: step hello: from agent ms 1.230 up 99\n");
    }

    #[test]
    fn settings_name_form_and_level() {
        assert_eq!(Settings::parse("json:debug"), Some(Settings { level: Level::Debug, json: true }));
        assert_eq!(Settings::parse("warn"), Some(Settings { level: Level::Warn, json: false }));
        assert_eq!(Settings::parse("json"), None);
        assert_eq!(Settings::parse("loud"), None);
    }
}
