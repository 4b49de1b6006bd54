//! `[ima]` of a policy: which files a good node may run. Judging by it is [`ima_rules`](crate::appraisal::ima_rules)'s.
//!
//! ```toml
//! [ima]
//! exclude = ["/tmp/**"]            # not judged; globs, anchored
//! violations = "fail"              # or "report"
//! violation_paths = ["/var/log/**"]
//! keys = ["-----BEGIN PUBLIC KEY-----…"]
//! learn_keys = false               # keys of allowed keyring entries count too
//! boot_aggregate = "log"           # or "listed", "any"
//! any_path = ["hex"]
//! [ima.files]
//! "/usr/bin/bash" = ["sha256:hex"]
//! [ima.keyrings]
//! ".ima" = ["hex"]
//! [ima.buffers]
//! "kexec-cmdline" = ["any"]
//! ```

use serde::Deserialize;

use super::{
    PolicyError,
    digests::{DigestSet, DigestTable, RawSet, RawTable},
};
use crate::appraisal::{
    glob::{Glob, is_canonical},
    ima_signature::SignatureKey,
};

/// Globs of a list.
pub const MAX_GLOBS: usize = 4096;
/// Signature keys of a policy.
pub const MAX_KEYS: usize = 64;

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIma {
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    violations: RawViolations,
    #[serde(default)]
    violation_paths: Vec<String>,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    learn_keys: bool,
    #[serde(default)]
    boot_aggregate: BootAggregateRule,
    #[serde(default)]
    any_path: RawSet,
    #[serde(default)]
    files: RawTable<false>,
    #[serde(default)]
    keyrings: RawTable<false>,
    #[serde(default)]
    buffers: RawTable<true>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawViolations {
    #[default]
    Fail,
    Report,
}

/// What boot_aggregate, the list's first entry, has to be.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum BootAggregateRule {
    /// What the boot log gives, where there is one.
    #[default]
    Log,
    /// A digest listed under the files, as `boot_aggregate`.
    Listed,
    /// Anything.
    Any,
}

/// Rules on the entries of an IMA list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImaRules {
    exclude: Vec<Glob>,
    violations_fail: bool,
    violation_paths: Vec<Glob>,
    keys: Vec<SignatureKey>,
    learn_keys: bool,
    boot_aggregate: BootAggregateRule,
    any_path: DigestSet,
    files: DigestTable,
    keyrings: DigestTable,
    buffers: DigestTable,
}

impl ImaRules {
    pub(super) fn from_raw(raw: RawIma) -> Result<Self, PolicyError> {
        if raw.keys.len() > MAX_KEYS {
            return Err(bad("ima.keys", format!("more than {MAX_KEYS} keys")));
        }
        let key = |(at, pem): (usize, &String)| {
            SignatureKey::from_pem(pem).map_err(|error| bad("ima.keys", format!("key {}: {error}", at + 1)))
        };
        if let Some((name, _)) = raw.keyrings.0.iter().find(|(name, _)| raw.buffers.0.get(name).is_some()) {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(bad("ima.buffers", format!("`{name}` is listed under ima.keyrings too")));
        }
        Ok(Self {
            exclude: globs("ima.exclude", &raw.exclude)?,
            violations_fail: matches!(raw.violations, RawViolations::Fail),
            violation_paths: globs("ima.violation_paths", &raw.violation_paths)?,
            keys: raw.keys.iter().enumerate().map(key).collect::<Result<_, _>>()?,
            learn_keys: raw.learn_keys,
            boot_aggregate: raw.boot_aggregate,
            any_path: raw.any_path.0,
            files: raw.files.0,
            keyrings: raw.keyrings.0,
            buffers: raw.buffers.0,
        })
    }

    /// Whether boot_aggregate has to be that of the boot log, where there is one.
    pub const fn wants_boot_aggregate_of_log(&self) -> bool {
        matches!(self.boot_aggregate, BootAggregateRule::Log)
    }

    /// What boot_aggregate has to be.
    pub const fn boot_aggregate(&self) -> BootAggregateRule {
        self.boot_aggregate
    }

    /// Good digests by path.
    pub const fn files(&self) -> &DigestTable {
        &self.files
    }

    /// Digests that are good at any path.
    pub const fn any_path(&self) -> &DigestSet {
        &self.any_path
    }

    /// Digests of the buffers that may be loaded into a keyring, by its name.
    pub const fn keyrings(&self) -> &DigestTable {
        &self.keyrings
    }

    /// Digests of other buffers, by name.
    pub const fn buffers(&self) -> &DigestTable {
        &self.buffers
    }

    /// Keys whose file signatures are good.
    pub fn keys(&self) -> &[SignatureKey] {
        &self.keys
    }

    /// Whether keys count that the list loads into IMA's and EVM's keyrings by entries that are allowed.
    pub const fn learns_keys(&self) -> bool {
        self.learn_keys
    }

    /// Whether a file is not judged. A path that is not canonical never is excluded.
    pub fn excludes(&self, path: &[u8]) -> bool {
        is_one_of(&self.exclude, path)
    }

    /// Whether a violation of this path is only reported.
    pub fn tolerates_violation(&self, path: Option<&[u8]>) -> bool {
        !self.violations_fail || path.is_some_and(|path| is_one_of(&self.violation_paths, path))
    }

    /// The memory that its lists hold, in bytes.
    pub fn heap_len(&self) -> usize {
        [&self.files, &self.keyrings, &self.buffers].map(DigestTable::heap_len).iter().sum::<usize>()
            + self.any_path.heap_len()
    }
}

fn is_one_of(globs: &[Glob], path: &[u8]) -> bool {
    !globs.is_empty() && is_canonical(path) && globs.iter().any(|glob| glob.matches(path))
}

fn globs(place: &str, texts: &[String]) -> Result<Vec<Glob>, PolicyError> {
    if texts.len() > MAX_GLOBS {
        return Err(bad(place, format!("more than {MAX_GLOBS} globs")));
    }
    let read = |text: &String| {
        Glob::new(text).map_err(|error| {
            let text: String = text.chars().take(120).collect();
            bad(place, format!("`{text}`: {error}"))
        })
    };
    texts.iter().map(read).collect()
}

fn bad(place: &str, problem: String) -> PolicyError {
    PolicyError::Rule { place: place.to_owned(), problem }
}

#[cfg(test)]
mod tests;
