//! What the API tells about a node, as far as scenarios ask for it: its history and its verdicts.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// One entry of a node's history.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Role and number, unique: `verifier-12`.
    #[serde(default)]
    pub id: String,
    /// When, milliseconds since 1970.
    #[serde(default)]
    pub at_ms: i64,
    /// Which role says it.
    #[serde(default)]
    pub role: String,
    /// Short name: `bound`, `not_admitted`, `pcr_mismatch`, ….
    pub kind: String,
    /// One sentence for a person.
    #[serde(default)]
    pub detail: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.kind, self.role, self.detail)
    }
}

/// Reads a list of the API: a JSON array, or an object that holds exactly one array beside its paging fields.
/// Entries that are not events are passed over.
pub fn list(answer: &Value) -> Vec<Event> {
    items(answer).iter().filter_map(|item| Event::deserialize(item).ok()).collect()
}

/// The entries of a list answer, whatever its envelope is called.
pub fn items(answer: &Value) -> &[Value] {
    match answer {
        Value::Array(items) => items,
        Value::Object(fields) => fields.values().find_map(Value::as_array).map_or(&[], Vec::as_slice),
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_is_read_with_and_without_its_envelope() {
        let event =
            json!({"id": "registrar-3", "at_ms": 5, "role": "registrar", "kind": "bound", "detail": "AK bound"});
        for answer in [json!([event]), json!({"next": 4, "events": [event]})] {
            let events = list(&answer);
            assert_eq!((events.len(), events[0].kind.as_str(), events[0].at_ms), (1, "bound", 5));
        }
        assert!(list(&json!("nothing")).is_empty());
    }
}
