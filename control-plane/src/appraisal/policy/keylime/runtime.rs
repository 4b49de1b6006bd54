//! Runtime policies, version 1, and the JSON allow-lists before them, whose digests were called hashes.

use serde_json::{Map, Value};

use super::{ImportError, NO_NAME, Notes, add_file, digests, excludes, is_name, keys, object, shown, texts};
use crate::appraisal::policy::write::{DigestSet, ImaText};

const KNOWN: [&str; 10] =
    ["meta", "release", "digests", "hashes", "excludes", "exclude", "keyrings", "ima", "ima-buf", "verification-keys"];

/// Adds a runtime policy to the rules.
pub(super) fn add(policy: &Map<String, Value>, ima: &mut ImaText, notes: &mut Notes) -> Result<(), ImportError> {
    let empty = Map::new();
    let meta = object(policy.get("meta"), "meta", &empty)?;
    let is_runtime_policy = policy.contains_key("digests");
    match meta.get("version") {
        None => {}
        // Allow-lists before runtime policies counted up to 5 without a change of what is read here.
        Some(Value::Number(version)) if version.as_u64().is_some_and(|version| version == 1 || !is_runtime_policy) => {}
        Some(other) => return Err(ImportError::Version(shown(&other.to_string()))),
    }
    notes.unknown_fields(policy, "", &KNOWN);

    for field in ["digests", "hashes"] {
        for (path, values) in object(policy.get(field), field, &empty)? {
            let place = format!("{field}.{path}");
            let mut set = DigestSet::new();
            digests(values, &place, &mut set, notes)?;
            if is_name(path) {
                add_file(ima, path, set);
            } else {
                notes.add("path_unusable", place, NO_NAME);
            }
        }
    }
    for field in ["excludes", "exclude"] {
        let expressions = policy.get(field).map_or(Ok(Vec::new()), |value| texts(value, field))?;
        let expressions = expressions.into_iter().enumerate().map(|(at, text)| (format!("{field}.{at}"), text));
        excludes(expressions, &mut ima.exclude, notes);
    }
    for (name, values) in object(policy.get("keyrings"), "keyrings", &empty)? {
        if !is_name(name) {
            notes.add("path_unusable", format!("keyrings.{name}"), NO_NAME);
            continue;
        }
        let set = ima.keyrings.entry(name.clone()).or_default();
        digests(values, &format!("keyrings.{name}"), set, notes)?;
    }
    ima.keyrings.retain(|_, set| !set.is_empty());
    for (name, values) in object(policy.get("ima-buf"), "ima-buf", &empty)? {
        if !is_name(name) {
            notes.add("path_unusable", format!("ima-buf.{name}"), NO_NAME);
            continue;
        }
        // A name that another file accepts with any content stays so.
        if let Some(set) = ima.buffers.entry(name.clone()).or_insert_with(|| Some(DigestSet::new())) {
            digests(values, &format!("ima-buf.{name}"), set, notes)?;
        }
    }
    ima.buffers.retain(|_, set| set.as_ref().is_none_or(|set| !set.is_empty()));
    if let Some(value) = policy.get("verification-keys") {
        keys::add(value, "verification-keys", &mut ima.keys, notes)?;
    }
    if !ima.keyrings.is_empty() && !ima.learn_keys {
        notes.add(
            "learned_keys",
            "keyrings",
            "keys that the listed entries load do not verify file signatures here by themselves; `ima.learn_keys = \
             true` says that they do, as they did in Keylime",
        );
    }
    rules(object(policy.get("ima"), "ima", &empty)?, notes)
}

/// `ima`: how Keylime was to judge what is not a file.
fn rules(ima: &Map<String, Value>, notes: &mut Notes) -> Result<(), ImportError> {
    // Which algorithm the list is hashed with is seen on the list itself.
    notes.unknown_fields(ima, "ima", &["ignored_keyrings", "log_hash_alg", "dm_policy"]);
    let ignored = ima.get("ignored_keyrings").map_or(Ok(Vec::new()), |value| texts(value, "ima.ignored_keyrings"))?;
    for (at, name) in ignored.into_iter().enumerate() {
        let which = if name == "*" { "every keyring".to_owned() } else { format!("keyring `{}`", shown(name)) };
        notes.add(
            "ignored_keyring",
            format!("ima.ignored_keyrings.{at}"),
            format!("keys loaded into {which} are not ignored here: list their digests under [ima.keyrings]"),
        );
    }
    if ima.get("dm_policy").is_some_and(|policy| !policy.is_null()) {
        notes.add(
            "dm_policy",
            "ima.dm_policy",
            "rules on device-mapper tables are left out: list the digests of good tables under [ima.buffers]",
        );
    }
    Ok(())
}
