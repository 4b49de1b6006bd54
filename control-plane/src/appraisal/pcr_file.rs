//! PCR values as files hold them: what tpm2-tools write beside a quote (`tpm2_quote -o`, both of its formats), and JSON.
//! Nothing signs such a file; whether a quote covers its values is judged elsewhere.
//!
//! `serialized` is a dump of C structures as a little-endian machine has them in memory (seen on tpm2-tools 5.4):
//! TPML_PCR_SELECTION of 132 bytes (a count, then 16 slots of hash, sizeofSelect, four select bytes and one of padding),
//! a count of lists, and that many TPML_DIGEST of 532 bytes (a count, then eight slots of size and 64 bytes). `values` is
//! the digests one after the other: it says nothing of which PCRs they are, so it can only be read with the quote.

use std::fmt;

use protocol::{
    codec::{CodecError, Reader},
    limits,
    tpm::{
        alg::HashAlg,
        pcr::{PcrError, PcrSelection, PcrSelectionList, PcrValues},
    },
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

/// The longest file: four banks in JSON with much white space.
const MAX_LEN: usize = 256 * 1024;
/// Slots of TPML_PCR_SELECTION.
const SELECTION_SLOTS: usize = 16;
/// Slots of TPML_DIGEST.
const DIGEST_SLOTS: u32 = 8;
/// Bytes in a digest slot, behind its size.
const DIGEST_SLOT_LEN: usize = 64;
/// Lists that a file can have: four whole banks of one digest each.
const MAX_LISTS: u32 = (limits::MAX_PCR_BANKS * limits::PCR_COUNT) as u32;

/// Why a file of PCR values was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each message says it")]
pub enum PcrFileError {
    #[error("the file is empty")]
    Empty,
    #[error("the file is longer than {MAX_LEN} bytes")]
    TooLong,
    #[error("the file ends before its structure does")]
    Truncated,
    #[error("bytes are left over after the last digest")]
    TrailingBytes,
    #[error("a count or size that the structure cannot have: {0}")]
    BadCount(u32),
    #[error("bank 0x{0:04x} is none of SHA-1, SHA-256, SHA-384, SHA-512")]
    UnknownBank(u16),
    #[error("a bank is selected twice, or a PCR above 23 is")]
    BadSelection(#[from] PcrError),
    #[error("{found} digests for {selected} selected PCRs")]
    WrongCount { selected: usize, found: usize },
    #[error("a digest of {found} bytes for PCR {index} of bank {bank}")]
    WrongDigestLength { bank: HashAlg, index: u8, found: usize },
    #[error("bare values say nothing of which PCRs they are: they can only be read with the quote")]
    NeedsQuote,
    #[error("{found} bytes of values, and the quoted PCRs have {expected}")]
    WrongLength { expected: usize, found: usize },
    #[error("malformed JSON: {0}")]
    Json(String),
    #[error("{0:?} is no bank")]
    UnknownBankName(String),
    #[error("{0:?} is no PCR number from 0 to 23")]
    NotAPcr(String),
    #[error("PCR {index} of bank {bank} is not given as {len} bytes of hex", len = bank.digest_len())]
    NotADigest { bank: HashAlg, index: u8 },
    #[error("{0} stands there twice")]
    Twice(String),
}

impl PcrFileError {
    /// Its short name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Empty => "pcrs_empty",
            Self::TooLong => "pcrs_too_long",
            Self::Truncated => "pcrs_truncated",
            Self::TrailingBytes => "pcrs_trailing_bytes",
            Self::BadCount(_) => "pcrs_bad_count",
            Self::UnknownBank(_) | Self::UnknownBankName(_) => "pcrs_unknown_bank",
            Self::BadSelection(_) => "pcrs_bad_selection",
            Self::WrongCount { .. } => "pcrs_wrong_count",
            Self::WrongDigestLength { .. } | Self::NotADigest { .. } => "pcrs_bad_digest",
            Self::NeedsQuote => "pcrs_need_quote",
            Self::WrongLength { .. } => "pcrs_wrong_length",
            Self::Json(_) => "pcrs_bad_json",
            Self::NotAPcr(_) => "pcrs_no_such_pcr",
            Self::Twice(_) => "pcrs_twice",
        }
    }
}

/// The values of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PcrFile {
    /// The values.
    pub values: PcrValues,
    /// The PCRs that the file says were asked for, in its order; `None` for bare values.
    pub selection: Option<PcrSelectionList>,
}

impl PcrFile {
    /// Reads a file of any of the three forms; `quoted` is the quote's selection, if there is a quote.
    ///
    /// # Errors
    /// [`PcrFileError`], and the offset in bytes at which the reading stopped.
    pub fn parse(bytes: &[u8], quoted: Option<&PcrSelectionList>) -> Result<Self, (PcrFileError, usize)> {
        if bytes.len() > MAX_LEN {
            return Err((PcrFileError::TooLong, MAX_LEN));
        }
        let Some(start) = bytes.iter().position(|byte| !byte.is_ascii_whitespace()) else {
            return Err((PcrFileError::Empty, 0));
        };
        // A digest may begin with any byte: JSON has to be text too.
        if bytes.get(start) == Some(&b'{') && std::str::from_utf8(bytes).is_ok() {
            return json(bytes);
        }
        if is_dump(bytes) {
            let mut reader = Reader::new(bytes);
            return dump(&mut reader).map_err(|error| (error, bytes.len().saturating_sub(reader.remaining())));
        }
        bare(bytes, quoted.ok_or((PcrFileError::NeedsQuote, 0))?)
    }
}

/// Whether it begins like a TPML_PCR_SELECTION: a count of slots, a hash, a size of select. A digest hardly ever does.
fn is_dump(bytes: &[u8]) -> bool {
    let Some((head, _)) = bytes.split_first_chunk::<7>() else { return false };
    let [c0, c1, c2, c3, h0, h1, size] = *head;
    let (count, hash) = (u32::from_le_bytes([c0, c1, c2, c3]), u16::from_le_bytes([h0, h1]));
    // TPM_ALG_SM3_256 is 0x0012, SHA-3 0x0027 to 0x0029.
    let is_hash = HashAlg::from_id(hash).is_some() || matches!(hash, 0x0012 | 0x0027..=0x0029);
    (1..=SELECTION_SLOTS as u32).contains(&count) && is_hash && (1..=4).contains(&size)
}

fn dump(reader: &mut Reader<'_>) -> Result<PcrFile, PcrFileError> {
    let count = u32_le(reader)?;
    if !usize::try_from(count).is_ok_and(|count| (1..=SELECTION_SLOTS).contains(&count)) {
        return Err(PcrFileError::BadCount(count));
    }
    let mut selection = PcrSelectionList::new();
    for slot in 0..SELECTION_SLOTS as u32 {
        let [h0, h1, size, select @ .., _] = array::<8>(reader)?;
        // What a slot beyond the count holds is no matter of anybody's.
        if slot >= count {
            continue;
        }
        let mut mask = u32::from_le_bytes(select);
        match size {
            0..=3 => mask &= 1u32.checked_shl(u32::from(size).saturating_mul(8)).unwrap_or(0).saturating_sub(1),
            4 => {}
            _ => return Err(PcrFileError::BadCount(size.into())),
        }
        let id = u16::from_le_bytes([h0, h1]);
        match HashAlg::from_id(id) {
            Some(bank) => selection.push(PcrSelection::from_indices(bank, bits(mask))?)?,
            None if mask == 0 => {}
            None => return Err(PcrFileError::UnknownBank(id)),
        }
    }
    let mut values = PcrValues::new();
    let wanted: Vec<_> = selection.pcrs().collect();
    let (selected, mut found) = (wanted.len(), 0usize);
    let mut wanted = wanted.into_iter();
    let lists = u32_le(reader)?;
    if lists > MAX_LISTS {
        return Err(PcrFileError::BadCount(lists));
    }
    for _ in 0..lists {
        let count = u32_le(reader)?;
        if count > DIGEST_SLOTS {
            return Err(PcrFileError::BadCount(count));
        }
        for slot in 0..DIGEST_SLOTS {
            let size = usize::from(u16::from_le_bytes(array::<2>(reader)?));
            let buffer = reader.take(DIGEST_SLOT_LEN).map_err(|_| PcrFileError::Truncated)?;
            if slot >= count {
                continue;
            }
            found = found.saturating_add(1);
            let Some((bank, index)) = wanted.next() else { return Err(PcrFileError::WrongCount { selected, found }) };
            let wrong = |_: CodecError| PcrFileError::WrongDigestLength { bank, index, found: size };
            let digest = bank.read_digest(buffer.get(..size).unwrap_or_default()).map_err(wrong)?;
            values.set(bank, index, digest)?;
        }
    }
    if found != selected {
        return Err(PcrFileError::WrongCount { selected, found });
    }
    if reader.remaining() > 0 {
        return Err(PcrFileError::TrailingBytes);
    }
    Ok(PcrFile { values, selection: Some(selection) })
}

fn bits(mask: u32) -> impl Iterator<Item = u8> {
    (0u8..32).filter(move |index| mask.checked_shr(u32::from(*index)).is_some_and(|rest| rest & 1 == 1))
}

fn bare(bytes: &[u8], quoted: &PcrSelectionList) -> Result<PcrFile, (PcrFileError, usize)> {
    let expected = quoted.pcrs().map(|(bank, _)| bank.digest_len()).sum();
    let wrong = PcrFileError::WrongLength { expected, found: bytes.len() };
    if bytes.len() != expected {
        return Err((wrong, expected.min(bytes.len())));
    }
    let mut reader = Reader::new(bytes);
    let mut values = PcrValues::new();
    for (bank, index) in quoted.pcrs() {
        let at = bytes.len().saturating_sub(reader.remaining());
        let digest = reader.take(bank.digest_len()).and_then(|digest| bank.read_digest(digest));
        let digest = digest.map_err(|_| (wrong.clone(), at))?;
        if values.set(bank, index, digest).map_err(|error| (error.into(), at))?.is_some() {
            return Err((PcrError::DuplicateBank { bank }.into(), at));
        }
    }
    Ok(PcrFile { values, selection: None })
}

/// An object's members in their order, twice named ones too.
struct Members<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Members<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for OfMap<V> {
            type Value = Members<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(OfMap(std::marker::PhantomData))
    }
}

/// `{"sha256": {"0": "hex", …}, …}`.
fn json(bytes: &[u8]) -> Result<PcrFile, (PcrFileError, usize)> {
    let members: Members<Members<String>> = serde_json::from_slice(bytes)
        .map_err(|error| (PcrFileError::Json(error.to_string()), json_offset(bytes, &error)))?;
    let at = |text: &str| {
        let quoted = format!("\"{text}\"");
        bytes.windows(quoted.len()).position(|window| window == quoted.as_bytes()).unwrap_or(0)
    };
    let mut values = PcrValues::new();
    let mut selection = PcrSelectionList::new();
    for (name, pcrs) in members.0 {
        let place = at(&name);
        let bank = HashAlg::from_name(&name).ok_or_else(|| (PcrFileError::UnknownBankName(name.clone()), place))?;
        if selection.iter().any(|selection| selection.bank == bank) {
            return Err((PcrFileError::Twice(name), place));
        }
        let mut indices = Vec::new();
        for (number, digest) in pcrs.0 {
            let place = at(&number);
            // "07" and "+7" are numbers of another kind.
            let index = number.parse::<u8>().ok().filter(|index| index.to_string() == number);
            let index = index.filter(|index| usize::from(*index) < limits::PCR_COUNT);
            let index = index.ok_or_else(|| (PcrFileError::NotAPcr(number.clone()), place))?;
            let place = at(&digest);
            let text = digest.strip_prefix("0x").unwrap_or(&digest);
            let value = hex::decode(text).ok().and_then(|value| bank.read_digest(&value).ok());
            let value = value.ok_or((PcrFileError::NotADigest { bank, index }, place))?;
            if values.set(bank, index, value).map_err(|error| (error.into(), place))?.is_some() {
                return Err((PcrFileError::Twice(format!("PCR {index} of bank {bank}")), place));
            }
            indices.push(index);
        }
        let bank = PcrSelection::from_indices(bank, indices).map_err(|error| (error.into(), place))?;
        selection.push(bank).map_err(|error| (error.into(), place))?;
    }
    Ok(PcrFile { values, selection: Some(selection) })
}

/// Where in `bytes` serde_json stopped: it counts lines and columns from 1.
pub(crate) fn json_offset(bytes: &[u8], error: &serde_json::Error) -> usize {
    let before = bytes.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    let start: usize = before.map(<[u8]>::len).sum();
    start.saturating_add(error.column().saturating_sub(1)).min(bytes.len())
}

fn array<const N: usize>(reader: &mut Reader<'_>) -> Result<[u8; N], PcrFileError> {
    reader.array().map_err(|_| PcrFileError::Truncated)
}

fn u32_le(reader: &mut Reader<'_>) -> Result<u32, PcrFileError> {
    array(reader).map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(banks: &[(HashAlg, u32)]) -> PcrSelectionList {
        let mut list = PcrSelectionList::new();
        for (bank, mask) in banks {
            list.push(PcrSelection::new(*bank, *mask).unwrap()).unwrap();
        }
        list
    }

    fn values(list: &PcrSelectionList) -> PcrValues {
        let mut values = PcrValues::new();
        for (bank, index) in list.pcrs() {
            values.set(bank, index, bank.digest(&[&[index]])).unwrap();
        }
        values
    }

    /// The dump of a selection and its values, as tpm2_quote writes it.
    fn dump_of(list: &PcrSelectionList) -> Vec<u8> {
        let mut bytes = u32::try_from(list.iter().count()).unwrap().to_le_bytes().to_vec();
        for bank in list.iter() {
            bytes.extend_from_slice(&bank.bank.id().to_le_bytes());
            bytes.push(3);
            bytes.extend_from_slice(&bank.mask().to_le_bytes());
            bytes.push(0);
        }
        bytes.resize(132, 0);
        let digests: Vec<_> = list.pcrs().map(|(bank, index)| bank.digest(&[&[index]])).collect();
        bytes.extend_from_slice(&u32::try_from(digests.len().div_ceil(8)).unwrap().to_le_bytes());
        for chunk in digests.chunks(8) {
            bytes.extend_from_slice(&u32::try_from(chunk.len()).unwrap().to_le_bytes());
            for slot in 0..8 {
                let digest = chunk.get(slot).map_or(&[][..], |digest| digest.as_bytes());
                bytes.extend_from_slice(&u16::try_from(digest.len()).unwrap().to_le_bytes());
                let end = bytes.len() + 64;
                bytes.extend_from_slice(digest);
                bytes.resize(end, 0);
            }
        }
        bytes
    }

    fn error(bytes: &[u8], quoted: Option<&PcrSelectionList>) -> PcrFileError {
        PcrFile::parse(bytes, quoted).unwrap_err().0
    }

    #[test]
    fn a_dump_of_tpm2_tools_is_read() {
        for list in [
            list(&[(HashAlg::Sha1, 3), (HashAlg::Sha256, 0x0001_0180)]),
            list(&[(HashAlg::Sha256, 0x00ff_ffff), (HashAlg::Sha1, 0x00ff_ffff)]),
            list(&[(HashAlg::Sha256, 1 << 7)]),
        ] {
            let file = PcrFile::parse(&dump_of(&list), None).unwrap();
            assert_eq!((file.values, file.selection), (values(&list), Some(list)));
        }
    }

    #[test]
    fn a_dump_that_is_cut_or_too_long_is_refused() {
        let bytes = dump_of(&list(&[(HashAlg::Sha256, 0x0f81)]));
        for len in 7..bytes.len() {
            assert_eq!(PcrFile::parse(&bytes[..len], None).unwrap_err().0, PcrFileError::Truncated, "{len}");
        }
        let trailing = [&bytes[..], &[0]].concat();
        assert_eq!(PcrFile::parse(&trailing, None), Err((PcrFileError::TrailingBytes, bytes.len())));
    }

    #[test]
    fn a_dump_with_one_wrong_field_is_refused() {
        let bytes = dump_of(&list(&[(HashAlg::Sha256, 0x81)]));
        let broken = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            error(&bytes, None)
        };
        assert_eq!(broken(4, 0x12), PcrFileError::UnknownBank(0x12));
        let mut far = bytes.clone();
        (far[6], far[10]) = (4, 1);
        assert_eq!(error(&far, None), PcrError::NoSuchPcr { index: 24 }.into());
        assert_eq!(broken(7, 0x83), PcrFileError::WrongCount { selected: 3, found: 2 });
        assert_eq!(broken(7, 0x80), PcrFileError::WrongCount { selected: 1, found: 2 });
        assert_eq!(broken(132, 200), PcrFileError::BadCount(200));
        assert_eq!(broken(136, 9), PcrFileError::BadCount(9));
        let bank = HashAlg::Sha256;
        assert_eq!(broken(140, 31), PcrFileError::WrongDigestLength { bank, index: 0, found: 31 });
        let mut twice = dump_of(&list(&[(bank, 1), (HashAlg::Sha1, 2)]));
        twice[12] = 0xb;
        assert_eq!(error(&twice, None), PcrError::DuplicateBank { bank }.into());
    }

    #[test]
    fn bare_values_are_read_as_the_quote_selects_them() {
        let list = list(&[(HashAlg::Sha256, 0x81), (HashAlg::Sha1, 1)]);
        let bytes: Vec<u8> = list.pcrs().flat_map(|(bank, index)| bank.digest(&[&[index]]).to_vec()).collect();
        let file = PcrFile::parse(&bytes, Some(&list)).unwrap();
        assert_eq!((file.values, file.selection), (values(&list), None));
        assert_eq!(error(&bytes, None), PcrFileError::NeedsQuote);
        assert_eq!(error(&bytes[1..], Some(&list)), PcrFileError::WrongLength { expected: 84, found: 83 });
        assert_eq!(
            PcrFile::parse(&[&bytes[..], &[0]].concat(), Some(&list)),
            Err((PcrFileError::WrongLength { expected: 84, found: 85 }, 84))
        );
    }

    #[test]
    fn json_is_read_and_what_is_wrong_in_it_is_named() {
        let a = "ab".repeat(32);
        let text = format!(" {{\"sha256\": {{\"0\": \"{a}\", \"23\": \"0x{a}\"}}, \"sha1\": {{}}}}");
        let file = PcrFile::parse(text.as_bytes(), None).unwrap();
        assert_eq!(file.values.len(), 2);
        assert!(file.selection.unwrap().same_as(&list(&[(HashAlg::Sha256, 0x0080_0001)])));
        let at = |text: &str| PcrFile::parse(text.as_bytes(), None).unwrap_err();
        assert_eq!(at("{\"md5\": {}}"), (PcrFileError::UnknownBankName("md5".into()), 1));
        assert_eq!(at("{\"sha1\": {\"24\": \"\"}}"), (PcrFileError::NotAPcr("24".into()), 10));
        assert_eq!(at("{\"sha1\": {\"07\": \"\"}}").0, PcrFileError::NotAPcr("07".into()));
        assert_eq!(at("{\"sha1\": {\"7\": \"00\"}}"), (PcrFileError::NotADigest { bank: HashAlg::Sha1, index: 7 }, 15));
        assert_eq!(at("{\"sha1\": {}, \"sha1\": {}}").0, PcrFileError::Twice("sha1".into()));
        let twice = format!("{{\"sha256\": {{\"1\": \"{a}\", \"1\": \"{a}\"}}}}");
        assert_eq!(at(&twice).0, PcrFileError::Twice("PCR 1 of bank sha256".into()));
        let (error, offset) = at("{\"sha1\":\n {\"7\": 5}}");
        assert!(matches!(error, PcrFileError::Json(_)) && (9..20).contains(&offset), "{offset}");
        for len in 1..text.len() {
            assert!(PcrFile::parse(&text.as_bytes()[..len], None).is_err(), "{len}");
        }
        assert_eq!(at("  ").0, PcrFileError::Empty);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(0u8.., 0..1500), at in 0usize..700, to in 0u8..) {
            let quoted = list(&[(HashAlg::Sha256, 0x81)]);
            let _ = PcrFile::parse(&bytes, Some(&quoted));
            let mut dump = dump_of(&quoted);
            if let Some(byte) = dump.get_mut(at) {
                *byte = to;
            }
            let _ = PcrFile::parse(&dump, Some(&quoted));
        }
    }
}
