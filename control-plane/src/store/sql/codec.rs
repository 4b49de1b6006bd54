//! How values without a column type of their own are kept: JSON texts, words, and lists of byte strings.

use protocol::id::Subject;
use serde::{Serialize, de::DeserializeOwned};

use crate::store::{Outcome, StoreError};

/// A value of ours as JSON text.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Corrupt("a value that JSON cannot hold"))
}

/// The reverse of [`to_json`]; `what` names the column.
pub(super) fn from_json<T: DeserializeOwned>(text: &str, what: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Corrupt(what))
}

/// An outcome's word: the same as in JSON.
pub(super) const fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Good => "good",
        Outcome::Failed => "failed",
        Outcome::RolledBack => "rolled_back",
        Outcome::Unjudged => "unjudged",
    }
}

/// The reverse of [`outcome_name`].
pub(super) fn outcome(name: &str) -> Result<Outcome, StoreError> {
    match name {
        "good" => Ok(Outcome::Good),
        "failed" => Ok(Outcome::Failed),
        "rolled_back" => Ok(Outcome::RolledBack),
        "unjudged" => Ok(Outcome::Unjudged),
        _ => Err(StoreError::Corrupt("an unknown outcome")),
    }
}

/// A subject from its 33 bytes.
pub(super) fn subject(bytes: &[u8; 33]) -> Result<Subject, StoreError> {
    Subject::from_bytes(bytes).ok_or(StoreError::Corrupt("an unknown kind of subject"))
}

/// Byte strings in one: each after its length (u32, most significant byte first).
pub(super) fn join_bytes(list: &[Vec<u8>]) -> Result<Vec<u8>, StoreError> {
    let mut joined = Vec::new();
    for bytes in list {
        let len = u32::try_from(bytes.len()).map_err(|_| StoreError::Corrupt("a certificate of more than 4 GiB"))?;
        joined.extend_from_slice(&len.to_be_bytes());
        joined.extend_from_slice(bytes);
    }
    Ok(joined)
}

/// The reverse of [`join_bytes`].
pub(super) fn split_bytes(mut joined: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut list = Vec::new();
    while !joined.is_empty() {
        let (len, rest) = joined.split_first_chunk().ok_or(TRUNCATED)?;
        let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| TRUNCATED)?;
        let (bytes, rest) = rest.split_at_checked(len).ok_or(TRUNCATED)?;
        list.push(bytes.to_vec());
        joined = rest;
    }
    Ok(list)
}

/// The smallest and the largest 32-byte id whose lower-case hex begins with `prefix`; `None` if no id's does.
pub(super) fn hex_range(prefix: &str) -> Option<([u8; 32], [u8; 32])> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !prefix.bytes().all(is_digit) {
        return None;
    }
    // A prefix of more than 64 digits fills nothing and has no ids.
    let low = protocol::id::hex_array(&format!("{prefix:0<64}"))?;
    let high = protocol::id::hex_array(&format!("{prefix:f<64}"))?;
    Some((low, high))
}

const TRUNCATED: StoreError = StoreError::Corrupt("a list that ends too early");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_bytes_come_back_and_truncated_ones_are_refused() {
        let list = vec![vec![], vec![1, 2, 3], vec![4; 300]];
        let joined = join_bytes(&list).unwrap();
        assert_eq!(split_bytes(&joined).unwrap(), list);
        for len in (0..joined.len()).filter(|len| ![4, 11].contains(len)) {
            let result = split_bytes(&joined[..len]);
            assert!(len == 0 || matches!(result, Err(StoreError::Corrupt(_))), "{len}");
        }
    }

    #[test]
    fn a_prefix_spans_the_ids_that_begin_with_it() {
        let (low, high) = hex_range("abc").unwrap();
        assert_eq!((low[0], low[1], low[31]), (0xab, 0xc0, 0));
        assert_eq!((high[0], high[1], high[31]), (0xab, 0xcf, 0xff));
        assert_eq!(hex_range("").unwrap(), ([0; 32], [0xff; 32]));
        assert_eq!(hex_range("AB"), None);
        assert_eq!(hex_range(&"a".repeat(65)), None);
    }
}
