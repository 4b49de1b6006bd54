//! The cases, family by family.

mod boot;
mod ek;
mod ima;
mod key;
mod pcrs;
mod policy;
mod quote;
mod signature;

use anyhow::Result;

use super::Corpus;
use super::machine::Keys;

type Family = fn(&mut Corpus, &Keys) -> Result<()>;

/// In the order of the corpus.
pub(super) const FAMILIES: [(&str, Family); 10] = [
    ("quote", quote::structure),
    ("binding", quote::binding),
    ("continuity", quote::continuity),
    ("pcrs", pcrs::add),
    ("signature", signature::add),
    ("ak", key::add),
    ("boot-log", boot::add),
    ("ima", ima::add),
    ("ek", ek::add),
    ("policy", policy::add),
];
