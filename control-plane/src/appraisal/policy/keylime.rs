//! Keylime's policies as ours: runtime policies (signed or not), the older allow-lists, lists of excluded paths,
//! measured-boot reference states and `tpm_policy`.
//!
//! Nothing is widened, and nothing is left out silently: each thing that does not carry over, or only in part, is a
//! [`Note`]. What is written is [`PolicyText`]; that it is a policy is checked in [`Importer::finish`].
//!
//! Formats: Keylime's documentation, "Runtime Integrity Monitoring", "Measured Boot", and its `example` policy.

mod flat;
mod keys;
mod refstate;
pub mod regex;
mod runtime;
mod tpm_policy;

use std::collections::BTreeSet;

use protocol::tpm::alg::HashAlg;
use serde::Serialize;
use serde_json::{Map, Value};

use super::digests::MAX_PATH_LEN;
use super::dsse::{self, DsseError, P256Key};
use super::ima::MAX_GLOBS;
use super::write::{DigestSet, Format, ImaText, PolicyText};
use super::{Policy, PolicyError};

/// What Keylime signs runtime policies as.
pub const PAYLOAD_TYPE: &str = "application/vnd.keylime+json";
/// Bytes of one file that is imported: runtime policies of whole distributions stay below.
pub const MAX_IMPORT_LEN: usize = 64 * 1024 * 1024;
/// Notes that are kept; what comes after is counted ([`Imported::notes_left_out`]).
pub const MAX_NOTES: usize = 10_000;

/// Characters of somebody else's text in a note.
const MAX_SHOWN: usize = 120;

/// Why a file could not be imported.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum ImportError {
    #[error("the file is longer than {MAX_IMPORT_LEN} bytes")]
    TooLong,
    #[error("the file is not UTF-8 text")]
    NotText,
    #[error("the file is not JSON: {0}")]
    NotJson(String),
    #[error(
        "this is none of Keylime's formats: no runtime policy, allow-list, exclude list, measured-boot reference state \
         or tpm_policy"
    )]
    UnknownFormat,
    #[error("`meta.version` {0} is not known here: version 1 is read")]
    Version(String),
    #[error("`{place}` is not {expected}")]
    Shape { place: String, expected: &'static str },
    #[error("the signature does not hold")]
    Signature(#[from] DsseError),
    #[error("it is not signed, though a key was given to verify it with")]
    Unsigned,
    #[error("what is left of it is no policy")]
    NoPolicy(#[from] PolicyError),
}

/// What a file was recognised as.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A runtime policy, or the JSON allow-list before it.
    RuntimePolicy,
    /// A runtime policy in a DSSE envelope.
    SignedRuntimePolicy,
    /// `digest  path`, a line each.
    AllowList,
    /// Regular expressions, one a line.
    ExcludeList,
    /// A measured-boot reference state.
    ReferenceState,
    /// PCR values by index.
    TpmPolicy,
}

impl Kind {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RuntimePolicy => "runtime policy",
            Self::SignedRuntimePolicy => "signed runtime policy",
            Self::AllowList => "allow-list",
            Self::ExcludeList => "exclude list",
            Self::ReferenceState => "measured-boot reference state",
            Self::TpmPolicy => "tpm_policy",
        }
    }
}

/// Something that did not carry over, or only in part.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Note {
    /// The file it stood in, as the caller named it.
    pub file: String,
    /// A short stable name of the kind of thing.
    pub code: &'static str,
    /// Where it stood, as in `excludes.3`.
    pub place: String,
    /// What was done about it, for a person.
    pub message: String,
}

/// What became of all files.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// What it says.
    pub text: PolicyText,
    /// Its text in the wanted form; it parses.
    pub policy: String,
    /// What each file was, in the order they were added.
    pub kinds: Vec<(String, Kind)>,
    /// What did not carry over.
    pub notes: Vec<Note>,
    /// Notes beyond [`MAX_NOTES`].
    pub notes_left_out: usize,
}

/// Takes files one by one and makes one policy of them: what any of them allows is allowed.
#[derive(Clone, Debug)]
pub struct Importer {
    text: PolicyText,
    kinds: Vec<(String, Kind)>,
    notes: Notes,
    keys: Vec<P256Key>,
}

/// Notes of one file, bounded.
#[derive(Clone, Debug, Default)]
struct Notes {
    file: String,
    list: Vec<Note>,
    left_out: usize,
}

impl Notes {
    fn add(&mut self, code: &'static str, place: impl Into<String>, message: impl Into<String>) {
        if self.list.len() >= MAX_NOTES {
            self.left_out += 1;
            return;
        }
        let (place, message) = (shown(&place.into()), message.into());
        self.list.push(Note { file: self.file.clone(), code, place, message });
    }

    /// Names the fields of an object that nothing reads.
    fn unknown_fields(&mut self, object: &Map<String, Value>, place: &str, known: &[&str]) {
        for field in object.keys().filter(|field| !known.contains(&field.as_str())) {
            let place = if place.is_empty() { field.clone() } else { format!("{place}.{field}") };
            self.add("unknown_field", place, "unknown field, left out");
        }
    }
}

impl Importer {
    /// Begins a policy of this name. `keys`, if there are any, are whom runtime policies have to be signed by.
    pub fn new(name: &str, keys: Vec<P256Key>) -> Self {
        let text = PolicyText { name: name.to_owned(), ..PolicyText::default() };
        Self { text, kinds: Vec::new(), notes: Notes::default(), keys }
    }

    /// Reads one file; `file` is its name in notes.
    ///
    /// # Errors
    /// [`ImportError`]; nothing of the file counts then, and the importer is of no further use.
    pub fn add(&mut self, file: &str, bytes: &[u8]) -> Result<Kind, ImportError> {
        if bytes.len() > MAX_IMPORT_LEN {
            return Err(ImportError::TooLong);
        }
        file.clone_into(&mut self.notes.file);
        let text = std::str::from_utf8(bytes).map_err(|_| ImportError::NotText)?;
        let kind = if text.trim_start().starts_with(['{', '[', '"']) {
            let value: Value = serde_json::from_str(text).map_err(|error| ImportError::NotJson(error.to_string()))?;
            // Databases and REST bodies of Keylime hold policies as JSON within a JSON string.
            let inner = match &value {
                Value::String(inner) => Some(
                    serde_json::from_str::<Value>(inner).map_err(|error| ImportError::NotJson(error.to_string()))?,
                ),
                _ => None,
            };
            self.add_json(inner.as_ref().unwrap_or(&value), bytes)?
        } else {
            let kind = flat::add(text, self.text.ima.get_or_insert_default(), &mut self.notes)?;
            if kind == Kind::AllowList && !self.keys.is_empty() {
                return Err(ImportError::Unsigned);
            }
            kind
        };
        self.kinds.push((file.to_owned(), kind));
        Ok(kind)
    }

    fn add_json(&mut self, value: &Value, bytes: &[u8]) -> Result<Kind, ImportError> {
        let Value::Object(object) = value else { return Err(ImportError::UnknownFormat) };
        let has = |field: &str| object.contains_key(field);
        if has("payloadType") || has("payload") {
            let payload = if self.keys.is_empty() {
                self.notes.add(
                    "signature_not_checked",
                    "signatures",
                    "the signature was not checked: no key was given to verify it with (--key)",
                );
                dsse::open_unverified(bytes, PAYLOAD_TYPE)?
            } else {
                dsse::open(bytes, PAYLOAD_TYPE, &self.keys)?
            };
            let value: Value =
                serde_json::from_slice(&payload).map_err(|error| ImportError::NotJson(error.to_string()))?;
            let Value::Object(object) = &value else { return Err(ImportError::UnknownFormat) };
            runtime::add(object, self.text.ima.get_or_insert_default(), &mut self.notes)?;
            return Ok(Kind::SignedRuntimePolicy);
        }
        if has("digests") || has("hashes") {
            if !self.keys.is_empty() {
                return Err(ImportError::Unsigned);
            }
            runtime::add(object, self.text.ima.get_or_insert_default(), &mut self.notes)?;
            return Ok(Kind::RuntimePolicy);
        }
        if has("kernels") || has("scrtm_and_bios") {
            refstate::add(object, self.text.boot.get_or_insert_default(), &mut self.notes)?;
            return Ok(Kind::ReferenceState);
        }
        if tpm_policy::is_one(object) {
            tpm_policy::add(object, &mut self.text, &mut self.notes)?;
            return Ok(Kind::TpmPolicy);
        }
        Err(ImportError::UnknownFormat)
    }

    /// A name is a keyring's or another buffer's: in Keylime the content decided.
    fn disentangle(&mut self) {
        let Some(ima) = &mut self.text.ima else { return };
        let (keyrings, notes) = (&ima.keyrings, &mut self.notes);
        ima.buffers.retain(|name, _| {
            let is_keyring = keyrings.contains_key(name);
            if is_keyring {
                let message = "listed under keyrings too: only the digests there count; left out";
                notes.add("buffer_left_out", format!("ima-buf.{name}"), message);
            }
            !is_keyring
        });
    }

    /// The policy of all files, in a form or in the one that suits its length.
    ///
    /// # Errors
    /// [`ImportError::NoPolicy`] if what carried over is none, as when nothing is left to judge by.
    pub fn finish(mut self, format: Option<Format>) -> Result<Imported, ImportError> {
        self.disentangle();
        let names: Vec<String> =
            self.kinds.iter().map(|(file, kind)| format!("{} ({})", shown(file), kind.name())).collect();
        self.text.header = vec![format!("Imported from Keylime: {}.", names.join(", "))];
        if !self.notes.list.is_empty() {
            self.text.header.push("Not all of it carried over; `trefoil policy import` said what.".into());
        }
        let policy = self.text.render(format.unwrap_or_else(|| self.text.suggested_format()));
        Policy::parse(policy.as_bytes())?;
        let Notes { list, left_out, .. } = self.notes;
        Ok(Imported { text: self.text, policy, kinds: self.kinds, notes: list, notes_left_out: left_out })
    }
}

/// Somebody else's text, fit for a line: no control characters, and bounded.
fn shown(text: &str) -> String {
    let mut line: String = text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        line.push('…');
    }
    line
}

/// A digest as Keylime writes it: hex, behind `sha256:` (and so on) or `0x` or nothing.
///
/// `None` if it is no digest of an algorithm that we judge by.
fn digest(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    let (bank, digits) = match text.split_once(':') {
        Some((name, digits)) => (Some(HashAlg::from_name(&name.to_ascii_lowercase())?), digits),
        None => (None, text.strip_prefix("0x").unwrap_or(text)),
    };
    let bytes = hex::decode(digits).ok()?;
    let found = HashAlg::ALL.into_iter().find(|alg| alg.digest_len() == bytes.len())?;
    (bank.is_none() || bank == Some(found)).then_some(bytes)
}

/// Reads a list of digests, or one alone, into a set; what is none is named.
fn digests(value: &Value, place: &str, set: &mut DigestSet, notes: &mut Notes) -> Result<(), ImportError> {
    for (at, text) in texts(value, place)?.into_iter().enumerate() {
        match digest(text) {
            Some(digest) => {
                set.insert(digest);
            }
            None => notes.add(
                "digest_unreadable",
                format!("{place}.{at}"),
                format!("`{}` is no SHA-1, SHA-256, SHA-384 or SHA-512 digest, left out", shown(text)),
            ),
        }
    }
    Ok(())
}

/// A list of texts; one text alone is a list of one, and null is none.
fn texts<'a>(value: &'a Value, place: &str) -> Result<Vec<&'a str>, ImportError> {
    let wrong = || ImportError::Shape { place: shown(place), expected: "a list of texts" };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![text]),
        Value::Array(values) => values.iter().map(|value| value.as_str().ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

/// An object; null and a missing field are an empty one.
fn object<'a>(
    value: Option<&'a Value>,
    place: &str,
    empty: &'a Map<String, Value>,
) -> Result<&'a Map<String, Value>, ImportError> {
    match value {
        None | Some(Value::Null) => Ok(empty),
        Some(Value::Object(object)) => Ok(object),
        Some(_) => Err(ImportError::Shape { place: shown(place), expected: "an object" }),
    }
}

/// A list; null and a missing field are an empty one.
fn list<'a>(value: Option<&'a Value>, place: &str) -> Result<&'a [Value], ImportError> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(values)) => Ok(values),
        Some(_) => Err(ImportError::Shape { place: shown(place), expected: "a list" }),
    }
}

/// Excluded paths: expressions matched at the beginning of a path.
fn excludes<'a>(expressions: impl Iterator<Item = (String, &'a str)>, globs: &mut BTreeSet<String>, notes: &mut Notes) {
    for (place, expression) in expressions {
        match regex::exclude_globs(expression) {
            Ok(found) if globs.len() + found.globs.len() > MAX_GLOBS => notes.add(
                "exclude_left_out",
                place,
                format!("`{}` is left out: a policy has at most {MAX_GLOBS} globs", shown(expression)),
            ),
            Ok(found) => {
                if let Some(narrowed) = found.narrowed {
                    notes.add(
                        "exclude_narrowed",
                        place,
                        format!(
                            "`{}` excludes less now: {narrowed} ({})",
                            shown(expression),
                            shown(&found.globs.join(", "))
                        ),
                    );
                }
                globs.extend(found.globs);
            }
            Err(error) => notes.add(
                "exclude_left_out",
                place,
                format!("`{}` is left out, so these files are judged: {error}", shown(expression)),
            ),
        }
    }
}

/// Said of what [`is_name`] refuses.
const NO_NAME: &str = "no name of a file: it is empty, holds a NUL or is longer than 4096 bytes; left out";

/// Whether something can be listed under this name.
fn is_name(name: &str) -> bool {
    (1..=MAX_PATH_LEN).contains(&name.len()) && !name.contains('\0')
}

/// Adds a file, if there is a digest left of it.
fn add_file(ima: &mut ImaText, path: &str, digests: DigestSet) {
    if !digests.is_empty() {
        ima.files.entry(path.to_owned()).or_default().extend(digests);
    }
}

#[cfg(test)]
mod tests;
