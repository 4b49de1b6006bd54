//! The one writer of policies: what import, learning and reading a file system fill in, as TOML for people or JSON for
//! long lists. Whether the text is a policy that judges anything is [`Policy::parse`](super::Policy::parse)'s business.
//!
//! Both forms come from one tree, so they say the same; everything is in a fixed order, so the same content is the same
//! bytes, and with them the same content address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use protocol::tpm::alg::HashAlg;

use super::{Exception, ReleaseRule};

/// Digests as bytes; their length says the algorithm.
pub type DigestSet = BTreeSet<Vec<u8>>;

/// Up to this many files a policy is easily read as TOML; above, JSON parses faster ([`PolicyText::suggested_format`]).
pub const MAX_TOML_FILES: usize = 2_000;

/// Characters that a line of the text has at most before a list is written one value a line.
const MAX_LINE_LEN: usize = 120;

/// The two forms of a policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// For people: with comments.
    Toml,
    /// For long lists and for programs: without comments.
    Json,
}

/// What a policy says, before it is text.
///
/// What is empty or `None` is left out of the text, and so has the format's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyText {
    /// Comment lines at the top, without `#` (TOML only).
    pub header: Vec<String>,
    /// The policy's own name, 1 to [`MAX_NAME_LEN`](super::MAX_NAME_LEN) characters.
    pub name: String,
    /// Exceptions.
    pub accept: BTreeSet<Exception>,
    /// Good PCR values, by bank and index.
    pub pcrs: BTreeMap<HashAlg, BTreeMap<u8, DigestSet>>,
    /// Under what shares may leave.
    pub release: Option<ReleaseRule>,
    /// Rules on the boot log.
    pub boot: Option<BootText>,
    /// Rules on the IMA list.
    pub ima: Option<ImaText>,
}

/// The rules of `[boot]`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BootText {
    /// PCRs in which every event has to be allowed.
    pub pcrs: BTreeSet<u8>,
    /// Whether Secure Boot has to be on or off.
    pub secure_boot: Option<bool>,
    /// Command lines, any of which is good.
    pub command_line: BTreeSet<String>,
    /// Patterns of command lines.
    pub command_line_patterns: BTreeSet<String>,
    /// Least SBAT generations, such as `shim,4`.
    pub sbat: BTreeSet<String>,
    /// Contents of key variables: `pk`, `kek`, `db`, `dbx`, `authorities`.
    pub keys: BTreeMap<String, KeyText>,
    /// Allowed events.
    pub events: Vec<EventText>,
    /// Alternatives that belong together.
    pub chains: Vec<ChainText>,
}

/// The rule on one key variable.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyText {
    /// Nothing but these may be in it; `None` leaves that open, while an empty set allows nothing.
    pub only: Option<DigestSet>,
    /// All of these have to be in it.
    pub require: DigestSet,
}

/// One `[[boot.event]]`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EventText {
    /// Repeated by findings.
    pub name: String,
    /// Where it is measured.
    pub pcr: u8,
    /// Its digests, any of which is good.
    pub digests: DigestSet,
    /// Whether it has to occur.
    pub required: bool,
}

/// One `[[boot.chain]]`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChainText {
    /// Repeated by findings.
    pub name: String,
    /// Images started, in their order.
    pub images: Vec<Vec<u8>>,
    /// Digests that have to occur in PCR 9.
    pub files: DigestSet,
    /// The command line, exactly or as a pattern.
    pub command_line: Option<CommandLineText>,
}

/// A command line of a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CommandLineText {
    /// This text and no other.
    Exact(String),
    /// Text in which `*` stands for anything.
    Pattern(String),
}

/// What `ima.boot_aggregate` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BootAggregateText {
    /// It has to be what the boot log gives.
    Log,
    /// It has to be listed under the files.
    Listed,
    /// It is not judged.
    Any,
}

/// The rules of `[ima]`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ImaText {
    /// Globs of files that are not judged.
    pub exclude: BTreeSet<String>,
    /// Whether violations are only reported.
    pub report_violations: bool,
    /// Globs of files whose violations are only reported.
    pub violation_paths: BTreeSet<String>,
    /// Keys for file signatures, PEM.
    pub keys: BTreeSet<String>,
    /// Whether keys from allowed keyring entries count as well.
    pub learn_keys: bool,
    /// How the boot aggregate is judged.
    pub boot_aggregate: Option<BootAggregateText>,
    /// Digests that are good at any path.
    pub any_path: DigestSet,
    /// Good digests, by path.
    pub files: BTreeMap<String, DigestSet>,
    /// Digests of keys, by keyring.
    pub keyrings: BTreeMap<String, DigestSet>,
    /// Other buffers, by name; `None` accepts any content.
    pub buffers: BTreeMap<String, Option<DigestSet>>,
}

/// How much a policy lists.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Paths in `ima.files`.
    pub files: usize,
    /// Digests there, under keyrings and buffers, and for any path.
    pub digests: usize,
}

impl PolicyText {
    /// How many files and digests of files it lists.
    pub fn counts(&self) -> Counts {
        let Some(ima) = &self.ima else { return Counts::default() };
        let listed = |map: &BTreeMap<String, DigestSet>| map.values().map(BTreeSet::len).sum::<usize>();
        let buffers: usize = ima.buffers.values().flatten().map(BTreeSet::len).sum();
        Counts {
            files: ima.files.len(),
            digests: listed(&ima.files) + listed(&ima.keyrings) + buffers + ima.any_path.len(),
        }
    }

    /// TOML for what a person can read, JSON for long lists.
    pub fn suggested_format(&self) -> Format {
        if self.counts().files > MAX_TOML_FILES { Format::Json } else { Format::Toml }
    }

    /// The text in this form, ending in a newline.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Toml => self.to_toml(),
            Format::Json => self.to_json(),
        }
    }

    /// TOML, with comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for line in &self.header {
            push_comment(&mut text, line);
        }
        toml_table(&mut text, "", &self.tree());
        text
    }

    /// JSON: one line per file, so that two policies can be compared line by line.
    pub fn to_json(&self) -> String {
        let mut text = String::new();
        json_table(&mut text, &self.tree(), 0);
        text.push('\n');
        text
    }

    fn tree(&self) -> Table {
        let mut root = Table::default();
        root.value("version", Value::Int(1));
        root.value("name", Value::text(&self.name));
        root.list("accept", self.accept.iter().map(|exception| Value::text(exception.name())));
        let mut pcrs = Table::default();
        for (bank, entries) in &self.pcrs {
            let mut table = Table::default();
            for (index, values) in entries {
                table.value(&index.to_string(), Value::digests(values));
            }
            pcrs.table(bank.name(), table);
        }
        root.table("pcrs", pcrs);
        match self.release {
            Some(ReleaseRule::PhasePcr(index)) => {
                root.table("release", Table::of("phase_pcr", Value::Int(index.into())));
            }
            Some(ReleaseRule::Uncapped) => root.table("release", Table::of("uncapped", Value::Bool(true))),
            None => {}
        }
        if let Some(boot) = &self.boot {
            root.entries.push(("boot".into(), Item::Table(boot.tree())));
        }
        if let Some(ima) = &self.ima {
            root.entries.push(("ima".into(), Item::Table(ima.tree())));
        }
        root
    }
}

impl BootText {
    fn tree(&self) -> Table {
        let mut boot = Table::default();
        boot.list("pcrs", self.pcrs.iter().map(|index| Value::Int((*index).into())));
        if let Some(on) = self.secure_boot {
            boot.value("secure_boot", Value::text(if on { "on" } else { "off" }));
        }
        boot.list("command_line", self.command_line.iter().map(|line| Value::text(line)));
        boot.list("command_line_patterns", self.command_line_patterns.iter().map(|line| Value::text(line)));
        boot.list("sbat", self.sbat.iter().map(|line| Value::text(line)));
        let mut keys = Table::default();
        for (name, rule) in &self.keys {
            let mut inline = Vec::new();
            if let Some(only) = &rule.only {
                inline.push(("only".to_owned(), Value::digests(only)));
            }
            if !rule.require.is_empty() {
                inline.push(("require".to_owned(), Value::digests(&rule.require)));
            }
            if !inline.is_empty() {
                keys.value(name, Value::Inline(inline));
            }
        }
        boot.table("keys", keys);
        let events = self.events.iter().map(|event| {
            let mut table = Table::of("name", Value::text(&event.name));
            table.value("pcr", Value::Int(event.pcr.into()));
            table.value("digests", Value::digests(&event.digests));
            if event.required {
                table.value("required", Value::Bool(true));
            }
            table
        });
        boot.tables("event", events.collect());
        let chains = self.chains.iter().map(|chain| {
            let mut table = Table::of("name", Value::text(&chain.name));
            table.list("images", chain.images.iter().map(|digest| Value::Text(hex::encode(digest))));
            table.list("files", chain.files.iter().map(|digest| Value::Text(hex::encode(digest))));
            match &chain.command_line {
                Some(CommandLineText::Exact(line)) => table.value("command_line", Value::text(line)),
                Some(CommandLineText::Pattern(line)) => table.value("command_line_pattern", Value::text(line)),
                None => {}
            }
            table
        });
        boot.tables("chain", chains.collect());
        boot
    }
}

impl ImaText {
    fn tree(&self) -> Table {
        let mut ima = Table::default();
        ima.list("exclude", self.exclude.iter().map(|glob| Value::text(glob)));
        if self.report_violations {
            ima.value("violations", Value::text("report"));
        }
        ima.list("violation_paths", self.violation_paths.iter().map(|glob| Value::text(glob)));
        ima.list("keys", self.keys.iter().map(|key| Value::text(key)));
        if self.learn_keys {
            ima.value("learn_keys", Value::Bool(true));
        }
        if let Some(rule) = self.boot_aggregate {
            let name = match rule {
                BootAggregateText::Log => "log",
                BootAggregateText::Listed => "listed",
                BootAggregateText::Any => "any",
            };
            ima.value("boot_aggregate", Value::text(name));
        }
        if !self.any_path.is_empty() {
            ima.value("any_path", Value::digests(&self.any_path));
        }
        ima.table("files", Table::of_digests(&self.files));
        ima.table("keyrings", Table::of_digests(&self.keyrings));
        let mut buffers = Table::default();
        for (name, digests) in &self.buffers {
            let any = || Value::List(vec![Value::text("any")]);
            buffers.value(name, digests.as_ref().map_or_else(any, Value::digests));
        }
        ima.table("buffers", buffers);
        ima
    }
}

/// What both forms are written from. Values come before tables, as TOML wants it.
#[derive(Default)]
struct Table {
    entries: Vec<(String, Item)>,
}

enum Item {
    Value(Value),
    Table(Table),
    Tables(Vec<Table>),
}

enum Value {
    Int(u64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
    Inline(Vec<(String, Value)>),
}

impl Value {
    fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn digests(digests: &DigestSet) -> Self {
        Self::List(digests.iter().map(|digest| Self::Text(hex::encode(digest))).collect())
    }
}

impl Table {
    fn of(key: &str, value: Value) -> Self {
        Self { entries: vec![(key.to_owned(), Item::Value(value))] }
    }

    fn of_digests(map: &BTreeMap<String, DigestSet>) -> Self {
        Self { entries: map.iter().map(|(key, set)| (key.clone(), Item::Value(Value::digests(set)))).collect() }
    }

    fn value(&mut self, key: &str, value: Value) {
        self.entries.push((key.to_owned(), Item::Value(value)));
    }

    /// A list; an empty one is left out.
    fn list(&mut self, key: &str, values: impl Iterator<Item = Value>) {
        let values: Vec<Value> = values.collect();
        if !values.is_empty() {
            self.value(key, Value::List(values));
        }
    }

    /// A table; an empty one is left out.
    fn table(&mut self, key: &str, table: Table) {
        if !table.entries.is_empty() {
            self.entries.push((key.to_owned(), Item::Table(table)));
        }
    }

    fn tables(&mut self, key: &str, tables: Vec<Table>) {
        if !tables.is_empty() {
            self.entries.push((key.to_owned(), Item::Tables(tables)));
        }
    }
}

/// A comment line; what would end it early is shown as a space.
fn push_comment(text: &mut String, line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.push_str(format!("# {line}").trim_end());
    text.push('\n');
}

fn toml_table(text: &mut String, path: &str, table: &Table) {
    for (key, item) in &table.entries {
        if let Item::Value(value) = item {
            let mut line = toml_key(key);
            line.push_str(" = ");
            toml_value(&mut line, value, true);
            text.push_str(&line);
            text.push('\n');
        }
    }
    for (key, item) in &table.entries {
        let path = if path.is_empty() { toml_key(key) } else { format!("{path}.{}", toml_key(key)) };
        match item {
            Item::Value(_) => {}
            Item::Table(inner) => {
                // A table of nothing but tables needs no line of its own.
                let has_values = inner.entries.iter().any(|(_, item)| matches!(item, Item::Value(_)));
                if has_values || inner.entries.is_empty() {
                    // Writing to a String does not fail.
                    let _ = writeln!(text, "\n[{path}]");
                }
                toml_table(text, &path, inner);
            }
            Item::Tables(tables) => {
                for inner in tables {
                    let _ = writeln!(text, "\n[[{path}]]");
                    toml_table(text, &path, inner);
                }
            }
        }
    }
}

/// Writes a value behind what is in `line` already; long lists outside inline tables go over several lines.
fn toml_value(line: &mut String, value: &Value, may_break: bool) {
    match value {
        Value::Int(number) => {
            let _ = write!(line, "{number}");
        }
        Value::Bool(value) => {
            let _ = write!(line, "{value}");
        }
        Value::Text(value) => toml_string(line, value),
        Value::List(values) => {
            let start = line.len();
            line.push('[');
            for (at, value) in values.iter().enumerate() {
                line.push_str(if at == 0 { "" } else { ", " });
                toml_value(line, value, false);
            }
            line.push(']');
            if may_break && values.len() > 1 && line.len() > MAX_LINE_LEN {
                line.truncate(start);
                line.push_str("[\n");
                for value in values {
                    line.push_str("    ");
                    toml_value(line, value, false);
                    line.push_str(",\n");
                }
                line.push(']');
            }
        }
        Value::Inline(entries) => {
            line.push_str("{ ");
            for (at, (key, value)) in entries.iter().enumerate() {
                line.push_str(if at == 0 { "" } else { ", " });
                line.push_str(&toml_key(key));
                line.push_str(" = ");
                toml_value(line, value, false);
            }
            line.push_str(" }");
        }
    }
}

fn toml_key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !key.is_empty() && key.bytes().all(is_bare) {
        return key.to_owned();
    }
    let mut quoted = String::with_capacity(key.len() + 2);
    toml_string(&mut quoted, key);
    quoted
}

/// A basic string (TOML 1.0): whatever the text holds, it stays on its line.
fn toml_string(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            '\r' => line.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(line, "\\u{:04X}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

fn json_table(text: &mut String, table: &Table, depth: usize) {
    let indent = "  ".repeat(depth + 1);
    text.push('{');
    for (at, (key, item)) in table.entries.iter().enumerate() {
        text.push_str(if at == 0 { "\n" } else { ",\n" });
        text.push_str(&indent);
        json_string(text, key);
        text.push_str(": ");
        match item {
            Item::Value(value) => json_value(text, value),
            Item::Table(inner) => json_table(text, inner, depth + 1),
            Item::Tables(tables) => {
                text.push('[');
                for (at, inner) in tables.iter().enumerate() {
                    text.push_str(if at == 0 { "" } else { ", " });
                    json_table(text, inner, depth + 1);
                }
                text.push(']');
            }
        }
    }
    if !table.entries.is_empty() {
        text.push('\n');
        text.push_str(&"  ".repeat(depth));
    }
    text.push('}');
}

fn json_value(text: &mut String, value: &Value) {
    match value {
        Value::Int(number) => {
            let _ = write!(text, "{number}");
        }
        Value::Bool(value) => {
            let _ = write!(text, "{value}");
        }
        Value::Text(value) => json_string(text, value),
        Value::List(values) => {
            text.push('[');
            for (at, value) in values.iter().enumerate() {
                text.push_str(if at == 0 { "" } else { ", " });
                json_value(text, value);
            }
            text.push(']');
        }
        Value::Inline(entries) => {
            text.push('{');
            for (at, (key, value)) in entries.iter().enumerate() {
                text.push_str(if at == 0 { "" } else { ", " });
                json_string(text, key);
                text.push_str(": ");
                json_value(text, value);
            }
            text.push('}');
        }
    }
}

fn json_string(text: &mut String, value: &str) {
    text.push_str(&serde_json::Value::from(value).to_string());
}

#[cfg(test)]
mod tests;
