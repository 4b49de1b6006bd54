//! What `serve` says: lines for a person, or one flat JSON object a line for programs.
//!
//! A JSON line has `at_ms` (milliseconds since 1970), `level`, `target`, and the event's fields beside them, `step` among
//! them where a protocol step is told.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How much is said, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    level: Level,
    json: bool,
}

impl FromStr for Settings {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (json, level) = text.strip_prefix("json:").map_or((false, text), |level| (true, level));
        let level = match level {
            "error" => Level::ERROR,
            "warn" => Level::WARN,
            "info" => Level::INFO,
            "debug" => Level::DEBUG,
            "trace" => Level::TRACE,
            _ => return Err("error, warn, info, debug or trace, with or without json: before it"),
        };
        Ok(Self { level, json })
    }
}

/// Starts logging to standard error; once in a process.
pub(crate) fn start(settings: &Settings) {
    // Libraries talk about their insides: only with `trace`.
    let level = settings.level;
    let others = if level == Level::TRACE { Level::TRACE } else { Level::WARN.min(level) };
    let filter = EnvFilter::new(format!("{others},control_plane={level},trefoil={level},protocol={level}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if settings.json {
        builder.event_format(FlatJson).init();
    } else {
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        builder.with_ansi(colours).with_target(false).init();
    }
}

/// One flat JSON object a line.
struct FlatJson;

impl<S, N> FormatEvent<S, N> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let Fields(mut line) = fields;
        let metadata = event.metadata();
        line.insert("at_ms".into(), u64::try_from(at_ms).unwrap_or(u64::MAX).into());
        line.insert("level".into(), metadata.level().as_str().to_ascii_lowercase().into());
        line.insert("target".into(), metadata.target().into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().into(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_step_is_one_flat_json_object() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_writer(move || writer.clone())
            .event_format(FlatJson)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(step = "challenge", from = "verifier", ms = 1.5, up = 12_u64, "said\n\"so\"");
        });
        let bytes = lines.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["step"], "challenge");
        assert_eq!(line["level"], "debug");
        assert_eq!(line["ms"], 1.5);
        assert_eq!(line["up"], 12);
        assert_eq!(line["message"], "said\n\"so\"");
        assert!(line["at_ms"].as_u64().unwrap() > 1_700_000_000_000);
    }

    #[test]
    fn levels_are_the_known_ones() {
        assert_eq!("json:debug".parse(), Ok(Settings { level: Level::DEBUG, json: true }));
        assert_eq!("info".parse(), Ok(Settings { level: Level::INFO, json: false }));
        assert!("json".parse::<Settings>().is_err());
        assert!("INFO".parse::<Settings>().is_err());
    }
}
