//! Digests by path: a compact table for the long lists of a policy.
//!
//! One arena holds all paths and digests, each record in one piece; an open-addressing index of 8 bytes a slot points
//! into it. A look-up costs one hash of the path and, on average, less than two slots, however large the table is. The
//! paths that are looked up come from nodes: the hash is keyed at random in each process, and a hit is always compared.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
};

use protocol::tpm::alg::{Digest, HashAlg};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};

/// The longest path of a table, in bytes: the kernel's PATH_MAX.
pub const MAX_PATH_LEN: usize = 4096;
/// Length of the path (u16) and of the digests (u32), in this order, before them.
const HEADER_LEN: usize = 6;
/// Stands in the place of a digest and accepts every one.
const ANY: u8 = 0xff;

/// Why an entry cannot be listed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum TableError {
    #[error("`{0}` is longer than {MAX_PATH_LEN} bytes, or empty")]
    PathLen(String),
    #[error("`{0}` holds a zero byte, which no name has")]
    Nul(String),
    #[error("`{path}`: value {number} is not 40, 64, 96 or 128 hex digits, or not those of the algorithm before them")]
    BadDigest { path: String, number: usize },
    #[error("`{0}`: at least one digest is needed")]
    NoDigests(String),
    #[error("`{0}`: \"any\" stands alone")]
    NotAlone(String),
    #[error("`{0}` is given twice")]
    Twice(String),
    #[error("the digests are more than 4 GiB")]
    TooLarge,
}

/// Good digests by path.
#[derive(Clone, Default)]
pub struct DigestTable {
    arena: Vec<u8>,
    /// Upper half: that of the path's hash; lower half: the record's offset plus one. Zero: free.
    index: Vec<u64>,
    key: [u64; 2],
    paths: usize,
    digests: usize,
}

/// A look-up under way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probe {
    hash: u64,
    entry: u64,
}

/// What it says is the arena alone.
impl PartialEq for DigestTable {
    fn eq(&self, other: &Self) -> bool {
        self.arena == other.arena
    }
}

impl Eq for DigestTable {}

impl fmt::Debug for DigestTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigestTable({} paths, {} digests)", self.paths, self.digests)
    }
}

/// The good digests of a path.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'t>(&'t [u8]);

impl<'t> Listed<'t> {
    /// Whether this digest is one of them.
    #[inline]
    pub fn contains(self, alg: HashAlg, digest: &[u8]) -> bool {
        let mut rest = self.0;
        while let Some((code, after)) = rest.split_first() {
            if *code == ANY {
                return true;
            }
            let Some((listed, after)) = alg_of(*code).and_then(|of| after.split_at_checked(of.digest_len())) else {
                return false;
            };
            if *code == code_of(alg) && listed == digest {
                return true;
            }
            rest = after;
        }
        false
    }

    /// Whether every digest is good.
    pub fn is_any(self) -> bool {
        self.0.first() == Some(&ANY)
    }

    /// All of them, as they were listed.
    pub fn iter(self) -> impl Iterator<Item = (HashAlg, &'t [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (code, after) = rest.split_first()?;
            let alg = alg_of(*code)?;
            let (digest, after) = after.split_at_checked(alg.digest_len())?;
            rest = after;
            Some((alg, digest))
        })
    }
}

impl DigestTable {
    /// The good digests of a path, if it is listed.
    #[inline]
    pub fn get(&self, path: &[u8]) -> Option<Listed<'_>> {
        let mut probe = self.probe(path);
        self.look(&mut probe);
        self.find(path, probe)
    }

    /// Begins a look-up: hashes the path. Several look-ups that take each of their steps ([`probe`](Self::probe),
    /// [`look`](Self::look), [`warm`](Self::warm), [`find`](Self::find)) one after the other wait for memory together.
    #[inline]
    pub fn probe(&self, path: &[u8]) -> Probe {
        Probe { hash: hash(self.key, path), entry: 0 }
    }

    /// Reads the index once.
    #[inline]
    pub fn look(&self, probe: &mut Probe) {
        let slot = probe.hash as usize & self.index.len().saturating_sub(1);
        probe.entry = self.index.get(slot).copied().unwrap_or_default();
    }

    /// Reads a little of the record that a look-up will compare with; what comes back says nothing.
    #[inline]
    pub fn warm(&self, probe: Probe) -> u8 {
        let offset = (probe.entry as u32 as usize).saturating_sub(1);
        let byte = |at: usize| self.arena.get(offset + at).copied().unwrap_or_default();
        byte(0) ^ byte(64) ^ byte(128)
    }

    /// Ends a look-up of the same path in the same table.
    #[inline]
    pub fn find(&self, path: &[u8], probe: Probe) -> Option<Listed<'_>> {
        let mask = self.index.len().checked_sub(1)?;
        let Probe { hash, mut entry } = probe;
        let mut slot = hash as usize & mask;
        // Some slots are free: the loop ends at one of them.
        while entry != 0 {
            if entry >> 32 == hash >> 32 {
                let (listed, digests) = self.record((entry as u32 - 1) as usize)?;
                if listed == path {
                    return Some(Listed(digests));
                }
            }
            slot = (slot + 1) & mask;
            entry = *self.index.get(slot)?;
        }
        None
    }

    /// Path and digests of the record at an offset.
    #[inline]
    fn record(&self, offset: usize) -> Option<(&[u8], &[u8])> {
        let record = self.arena.get(offset..)?;
        let (header, rest) = record.split_first_chunk::<HEADER_LEN>()?;
        let [a, b, c, d, e, f] = *header;
        let (path, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([a, b])))?;
        Some((path, rest.get(..u32::from_le_bytes([c, d, e, f]) as usize)?))
    }

    /// Everything listed, in the order in which it was.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Listed<'_>)> {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let (path, digests) = self.record(offset)?;
            offset += HEADER_LEN + path.len() + digests.len();
            Some((path, Listed(digests)))
        })
    }

    /// How many paths are listed.
    pub const fn len(&self) -> usize {
        self.paths
    }

    /// Whether none is.
    pub const fn is_empty(&self) -> bool {
        self.paths == 0
    }

    /// How many digests are listed, over all paths.
    pub const fn digests(&self) -> usize {
        self.digests
    }

    /// The memory it holds, in bytes.
    pub fn heap_len(&self) -> usize {
        self.arena.capacity() + self.index.capacity() * size_of::<u64>()
    }
}

/// A set of digests, of any path.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DigestSet(DigestTable);

impl DigestSet {
    /// Whether this digest is one of them.
    #[inline]
    pub fn contains(&self, alg: HashAlg, digest: &[u8]) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let mut name = [0; Digest::MAX_LEN + 1];
        let Some((code, place)) = name.split_first_mut() else { return false };
        let Some(place) = place.get_mut(..digest.len()) else { return false };
        *code = code_of(alg);
        place.copy_from_slice(digest);
        name.get(..digest.len() + 1).is_some_and(|name| self.0.get(name).is_some())
    }

    /// How many digests are listed.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The memory it holds, in bytes.
    pub fn heap_len(&self) -> usize {
        self.0.heap_len()
    }
}

const fn code_of(alg: HashAlg) -> u8 {
    match alg {
        HashAlg::Sha1 => 1,
        HashAlg::Sha256 => 2,
        HashAlg::Sha384 => 3,
        HashAlg::Sha512 => 4,
    }
}

const fn alg_of(code: u8) -> Option<HashAlg> {
    match code {
        1 => Some(HashAlg::Sha1),
        2 => Some(HashAlg::Sha256),
        3 => Some(HashAlg::Sha384),
        4 => Some(HashAlg::Sha512),
        _ => None,
    }
}

/// A keyed hash: 16 bytes a step, multiplied to 128 bits and folded.
#[inline]
fn hash(key: [u64; 2], bytes: &[u8]) -> u64 {
    let [first, second] = key;
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let (chunks, tail) = bytes.as_chunks::<16>();
    let mut last = [0; 16];
    if let Some(place) = last.get_mut(..tail.len()) {
        place.copy_from_slice(tail);
    }
    let mut state = first ^ bytes.len() as u64;
    for chunk in chunks.iter().chain([&last]) {
        let chunk = u128::from_le_bytes(*chunk);
        state = fold(chunk as u64 ^ state, (chunk >> 64) as u64 ^ second);
    }
    fold(state ^ second, first | 1)
}

/// Values of hex digits; everything else is above 15.
const HEX_DIGITS: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        let (lower, upper) = (b"0123456789abcdef"[digit], b"0123456789ABCDEF"[digit]);
        values[lower as usize] = digit as u8;
        values[upper as usize] = digit as u8;
        digit += 1;
    }
    values
};

/// Two digits a byte; a list has millions of them.
fn decode_hex(digits: &[u8], bytes: &mut [u8]) -> Option<()> {
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    if pairs.len() != bytes.len() {
        return None;
    }
    let mut all = 0;
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let value = |digit: &u8| HEX_DIGITS.get(usize::from(*digit)).copied().unwrap_or(0xff);
        let (high, low) = (value(high), value(low));
        all |= high | low;
        *byte = (high << 4) | low;
    }
    (all < 16).then_some(())
}

/// Reads a digest as policies write it, and appends its code and bytes.
fn push_digest(arena: &mut Vec<u8>, text: &str) -> Option<()> {
    let (named, digits) = match text.split_once(':') {
        Some((name, digits)) => (Some(HashAlg::from_name(name)?), digits),
        None => (None, text),
    };
    let alg = HashAlg::ALL.into_iter().find(|alg| alg.digest_len() * 2 == digits.len())?;
    if named.is_some_and(|named| named != alg) {
        return None;
    }
    let mut bytes = [0; Digest::MAX_LEN];
    let bytes = bytes.get_mut(..alg.digest_len())?;
    decode_hex(digits.as_bytes(), bytes)?;
    arena.push(code_of(alg));
    arena.extend_from_slice(bytes);
    Some(())
}

/// A table in the making; fed by the deserialiser as it reads, so that a list is never held as text.
#[derive(Default)]
struct Builder {
    arena: Vec<u8>,
    /// Where the record under way begins.
    record: usize,
    paths: usize,
    digests: usize,
    in_record: usize,
    has_any: bool,
    members: usize,
}

impl Builder {
    fn begin(&mut self, path: &[u8]) -> Result<(), TableError> {
        let len = u16::try_from(path.len()).ok().filter(|_| (1..=MAX_PATH_LEN).contains(&path.len()));
        let len = len.ok_or_else(|| TableError::PathLen(shown(path)))?;
        if path.contains(&0) {
            return Err(TableError::Nul(shown(path)));
        }
        self.push_header(len, path);
        Ok(())
    }

    fn push_header(&mut self, len: u16, path: &[u8]) {
        self.record = self.arena.len();
        self.in_record = 0;
        self.has_any = false;
        self.arena.extend_from_slice(&len.to_le_bytes());
        self.arena.extend_from_slice(&[0; 4]);
        self.arena.extend_from_slice(path);
    }

    fn path(&self) -> String {
        let path = self.arena.get(self.record..).and_then(|record| {
            let (len, rest) = record.split_first_chunk::<2>()?;
            rest.get(4..4 + usize::from(u16::from_le_bytes(*len)))
        });
        shown(path.unwrap_or_default())
    }

    fn digest(&mut self, text: &str, may_be_any: bool) -> Result<(), TableError> {
        self.in_record += 1;
        let is_any = may_be_any && text == "any";
        if is_any {
            self.has_any = true;
            self.arena.push(ANY);
        } else if push_digest(&mut self.arena, text).is_none() {
            return Err(TableError::BadDigest { path: self.path(), number: self.in_record });
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), TableError> {
        if self.in_record == 0 {
            return Err(TableError::NoDigests(self.path()));
        }
        if self.has_any && self.in_record > 1 {
            return Err(TableError::NotAlone(self.path()));
        }
        let Some((header, rest)) =
            self.arena.get_mut(self.record..).and_then(<[u8]>::split_first_chunk_mut::<HEADER_LEN>)
        else {
            return Err(TableError::TooLarge);
        };
        let [a, b, len @ ..] = header;
        let path_len = usize::from(u16::from_le_bytes([*a, *b]));
        let digests_len = rest.len().saturating_sub(path_len);
        *len = u32::try_from(digests_len).map_err(|_| TableError::TooLarge)?.to_le_bytes();
        self.paths += 1;
        self.digests += self.in_record;
        Ok(())
    }

    /// A digest that is a name itself, with nothing behind it.
    fn member(&mut self, text: &str) -> Result<(), TableError> {
        self.members += 1;
        let mut name = Vec::with_capacity(Digest::MAX_LEN + 1);
        let bad = TableError::BadDigest { path: "list".to_owned(), number: self.members };
        push_digest(&mut name, text).ok_or(bad)?;
        self.push_header(u16::try_from(name.len()).map_err(|_| TableError::TooLarge)?, &name);
        self.paths += 1;
        self.digests += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<DigestTable, TableError> {
        if u32::try_from(self.arena.len()).is_err() {
            return Err(TableError::TooLarge);
        }
        self.arena.shrink_to_fit();
        let random = RandomState::new();
        let key = [random.hash_one(1u8), random.hash_one(2u8)];
        // At most two thirds are taken.
        let slots = if self.paths == 0 { 0 } else { (self.paths + self.paths / 2 + 1).next_power_of_two() };
        let mut table =
            DigestTable { arena: self.arena, index: vec![0; slots], key, paths: self.paths, digests: self.digests };
        let mut offset = 0;
        while let Some((path, digests)) = table.record(offset) {
            if table.get(path).is_some() {
                let name = if self.members == 0 { shown(path) } else { hex::encode(path.get(1..).unwrap_or_default()) };
                return Err(TableError::Twice(name));
            }
            let hash = hash(key, path);
            let len = HEADER_LEN + path.len() + digests.len();
            let mask = slots.saturating_sub(1);
            let mut slot = hash as usize & mask;
            while table.index.get(slot).is_some_and(|entry| *entry != 0) {
                slot = (slot + 1) & mask;
            }
            if let Some(entry) = table.index.get_mut(slot) {
                *entry = (hash >> 32 << 32) | (offset as u64 + 1);
            }
            offset += len;
        }
        Ok(table)
    }
}

/// A name in a message, bounded.
fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.chars().count() <= 120 { text.into_owned() } else { text.chars().take(120).chain(['…']).collect() }
}

/// A table as it is written: names, each with a list of digests. With `ANY`, `["any"]` accepts every digest.
pub(super) struct RawTable<const ANY: bool>(pub(super) DigestTable);

impl<const ANY: bool> Default for RawTable<ANY> {
    fn default() -> Self {
        Self(DigestTable::default())
    }
}

impl<const ANY: bool> fmt::Debug for RawTable<ANY> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, const ANY: bool> Deserialize<'de> for RawTable<ANY> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TableVisitor<const ANY: bool>;
        impl<'de, const ANY: bool> Visitor<'de> for TableVisitor<ANY> {
            type Value = RawTable<ANY>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of lists of digests")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut builder = Builder::default();
                while map.next_key_seed(Part::Path(&mut builder))?.is_some() {
                    map.next_value_seed(Part::Digests(&mut builder, ANY))?;
                    builder.end().map_err(A::Error::custom)?;
                }
                builder.finish().map(RawTable).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_map(TableVisitor)
    }
}

/// A list of digests as it is written.
#[derive(Debug, Default)]
pub(super) struct RawSet(pub(super) DigestSet);

impl<'de> Deserialize<'de> for RawSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut builder = Builder::default();
        Part::Set(&mut builder).deserialize(deserializer)?;
        builder.finish().map(DigestSet).map(Self).map_err(D::Error::custom)
    }
}

/// What goes into a builder next.
enum Part<'b> {
    /// A path.
    Path(&'b mut Builder),
    /// The digests of the path before; whether "any" may stand there.
    Digests(&'b mut Builder, bool),
    /// One of these.
    Digest(&'b mut Builder, bool),
    /// Digests that are names themselves.
    Set(&'b mut Builder),
    /// One of these.
    Member(&'b mut Builder),
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self {
            Self::Path(_) | Self::Digest(..) | Self::Member(_) => deserializer.deserialize_str(self),
            Self::Digests(..) | Self::Set(_) => deserializer.deserialize_seq(self),
        }
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Path(_) => "a name",
            Self::Digest(..) | Self::Member(_) => "a digest",
            Self::Digests(..) | Self::Set(_) => "a list of digests",
        })
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        match self {
            Self::Path(builder) => builder.begin(text.as_bytes()),
            Self::Digest(builder, may_be_any) => builder.digest(text, may_be_any),
            Self::Member(builder) => builder.member(text),
            Self::Digests(..) | Self::Set(_) => return Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
        }
        .map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        match self {
            Self::Digests(builder, may_be_any) => {
                while list.next_element_seed(Part::Digest(builder, may_be_any))?.is_some() {}
                Ok(())
            }
            Self::Set(builder) => {
                while list.next_element_seed(Part::Member(builder))?.is_some() {}
                Ok(())
            }
            _ => Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &self)),
        }
    }
}

#[cfg(test)]
mod tests;
