//! What two policies say differently, section by section. Both have to be policies; spelling (TOML or JSON, upper or lower
//! case, order where order means nothing, defaults written out) is no difference. What a difference is worth is the
//! reader's business.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{PAYLOAD_TYPE, Policy, PolicyError, dsse};

/// What is as good as left out: a place and the value it has by default.
const DEFAULTS: [(&str, &str); 5] = [
    ("release.uncapped", "false"),
    ("ima.violations", "fail"),
    ("ima.learn_keys", "false"),
    ("ima.boot_aggregate", "log"),
    ("boot.event.*.required", "false"),
];

/// How an item differs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Only the second policy has it.
    Added,
    /// Only the first policy has it.
    Removed,
    /// Both have it, with different values.
    Changed,
}

/// One difference.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Change {
    /// Where: `pcrs.sha256`, `boot.event`, `ima.files`, or `policy` for what stands outside of sections.
    pub section: String,
    /// What in it: a PCR, a file's path, a rule's name.
    pub item: String,
    /// How.
    pub kind: Kind,
    /// What only the first policy says of it; digests in full.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// What only the second policy says of it; digests in full.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
}

/// What `to` says differently from `from`, by section, then item. Signatures are not compared.
///
/// # Errors
/// [`PolicyError`] of the first of them that is no policy.
pub fn diff(from: &[u8], to: &[u8]) -> Result<Vec<Change>, PolicyError> {
    let (from, to) = (statements(from)?, statements(to)?);
    let mut changes = Vec::new();
    let places: BTreeSet<&(String, String)> = from.keys().chain(to.keys()).collect();
    for place in places {
        let (before, after) = (from.get(place), to.get(place));
        if before == after {
            continue;
        }
        let only = |these: Option<&BTreeSet<String>>, others: Option<&BTreeSet<String>>| -> Vec<String> {
            let is_new = |value: &&String| others.is_none_or(|others| !others.contains(*value));
            these.into_iter().flatten().filter(is_new).cloned().collect()
        };
        let kind = match (before, after) {
            (None, _) => Kind::Added,
            (_, None) => Kind::Removed,
            _ => Kind::Changed,
        };
        let (section, item) = place.clone();
        changes.push(Change { section, item, kind, removed: only(before, after), added: only(after, before) });
    }
    Ok(changes)
}

/// A policy as a set of statements: section and item, and what is said of it.
type Statements = BTreeMap<(String, String), BTreeSet<String>>;

fn statements(bytes: &[u8]) -> Result<Statements, PolicyError> {
    // Whatever is no policy is told by who knows best.
    Policy::parse(bytes)?;
    let opened;
    let bytes = if dsse::is_envelope(bytes) {
        opened = dsse::open_unverified(bytes, PAYLOAD_TYPE).map_err(PolicyError::Signature)?;
        &opened
    } else {
        bytes
    };
    let text = std::str::from_utf8(bytes).map_err(|_| PolicyError::NotText)?;
    let syntax = |error: String| PolicyError::Syntax(error);
    let root: Map<String, Value> = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| syntax(error.to_string()))?
    } else {
        toml::from_str(text).map_err(|error| syntax(error.to_string()))?
    };
    let mut statements = Statements::new();
    for (key, value) in &root {
        match value {
            Value::Object(section) => table(&mut statements, key, section),
            _ => say(&mut statements, "policy", key, value),
        }
    }
    Ok(statements)
}

/// A table: its tables are sections of their own, its lists of tables are named after their `name`.
fn table(statements: &mut Statements, section: &str, entries: &Map<String, Value>) {
    for (key, value) in entries {
        let inner = || format!("{section}.{key}");
        match value {
            Value::Object(table_of) => table(statements, &inner(), table_of),
            Value::Array(list) if list.iter().any(Value::is_object) => rules(statements, &inner(), list),
            _ => say(statements, section, key, value),
        }
    }
}

/// `[[boot.event]]`, `[[boot.chain]]`: told apart by name and PCR, and by their place if both are the same.
fn rules(statements: &mut Statements, section: &str, list: &[Value]) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for rule in list.iter().filter_map(Value::as_object) {
        let mut title = rule.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(pcr) = rule.get("pcr") {
            title.push_str(&format!(" (PCR {pcr})"));
        }
        let count = seen.entry(title.clone()).or_default();
        *count += 1;
        if *count > 1 {
            title.push_str(&format!(" #{count}"));
        }
        let item = (section.to_owned(), title);
        let says = statements.entry(item).or_default();
        for (key, value) in rule {
            if key == "name" || key == "pcr" || is_default(&format!("{section}.*.{key}"), value) {
                continue;
            }
            match value {
                // The order of images is what a chain is about.
                Value::Array(list) if key == "images" => {
                    let images: Vec<String> = list.iter().map(said).collect();
                    says.insert(format!("images: {}", images.join(" -> ")));
                }
                Value::Array(list) => says.extend(list.iter().map(|value| format!("{key}: {}", said(value)))),
                _ => {
                    says.insert(format!("{key}: {}", said(value)));
                }
            }
        }
    }
}

/// One entry; a list is a set of alternatives. An empty one says nothing, but for those that allow nothing by it.
fn say(statements: &mut Statements, section: &str, key: &str, value: &Value) {
    if is_default(&format!("{section}.{key}"), value) {
        return;
    }
    let values: BTreeSet<String> = match value {
        Value::Array(list) if list.is_empty() && key != "only" => return,
        Value::Array(list) => list.iter().map(said).collect(),
        _ => BTreeSet::from([said(value)]),
    };
    statements.insert((section.to_owned(), key.to_owned()), values);
}

fn is_default(place: &str, value: &Value) -> bool {
    DEFAULTS.iter().any(|(default, text)| *default == place && said(value) == *text)
}

/// A value as text; digests in the one spelling that tells them apart.
fn said(value: &Value) -> String {
    let Value::String(text) = value else { return value.to_string() };
    digest_of(text).unwrap_or_else(|| text.clone())
}

/// `sha256:AB…` or `AB…` as `ab…`: the length says the algorithm.
fn digest_of(text: &str) -> Option<String> {
    let hex = text.split_once(':').map_or(text, |(_, hex)| hex);
    let is_digest = [40, 64, 96, 128].contains(&hex.len()) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| hex.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
