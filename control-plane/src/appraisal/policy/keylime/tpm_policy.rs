//! `tpm_policy`: PCR values by index, and a mask of what is quoted.

use protocol::tpm::alg::HashAlg;
use serde_json::{Map, Value};

use super::{ImportError, Notes, digest, shown, texts};
use crate::appraisal::policy::Exception;
use crate::appraisal::policy::write::PolicyText;

const PCR_COUNT: u8 = 24;
const IMA_PCR: u8 = 10;

fn index(key: &str) -> Option<u8> {
    key.parse().ok().filter(|index: &u8| *index < PCR_COUNT && index.to_string() == key)
}

/// Whether an object has nothing but PCR indices and a mask.
pub(super) fn is_one(object: &Map<String, Value>) -> bool {
    !object.is_empty() && object.keys().all(|key| key == "mask" || index(key).is_some())
}

/// Adds the values, each to the bank that its length says.
pub(super) fn add(object: &Map<String, Value>, text: &mut PolicyText, notes: &mut Notes) -> Result<(), ImportError> {
    let mut listed = 0_u32;
    let mut sha1 = false;
    for (key, value) in object {
        let Some(index) = index(key) else { continue };
        listed |= 1 << index;
        if let Some(why) = unjudgeable(index) {
            notes.add("pcr_left_out", key.as_str(), why);
            continue;
        }
        for (at, value) in texts(value, key)?.into_iter().enumerate() {
            let bank = digest(value).and_then(|digest| {
                let bank = HashAlg::ALL.into_iter().find(|bank| bank.digest_len() == digest.len())?;
                Some((bank, digest))
            });
            match bank {
                Some((bank, digest)) => {
                    sha1 |= bank == HashAlg::Sha1;
                    text.pcrs.entry(bank).or_default().entry(index).or_default().insert(digest);
                }
                None => notes.add(
                    "digest_unreadable",
                    format!("{key}.{at}"),
                    format!("`{}` is no value of a PCR, left out", shown(value)),
                ),
            }
        }
    }
    if sha1 {
        text.accept.insert(Exception::Sha1);
        notes.add(
            "sha1",
            "",
            "values of the SHA-1 bank are judged under `accept = [\"sha1\"]`, which every verdict repeats; SHA-1 \
             collides",
        );
    }
    let Some(mask) = object.get("mask") else { return Ok(()) };
    let wrong = || ImportError::Shape { place: "mask".into(), expected: "a number such as 0x408000" };
    let mask = match mask {
        Value::String(text) => {
            let text = text.trim();
            match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
                Some(digits) => u64::from_str_radix(digits, 16).map_err(|_| wrong())?,
                None => text.parse().map_err(|_| wrong())?,
            }
        }
        Value::Number(number) => number.as_u64().ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    let unlisted: Vec<String> = (0..64_u32)
        .filter(|index| mask >> index & 1 == 1 && (*index >= u32::from(PCR_COUNT) || listed >> index & 1 == 0))
        .map(|index| index.to_string())
        .collect();
    if !unlisted.is_empty() {
        notes.add(
            "mask",
            "mask",
            format!(
                "PCR {} had no value, so it was quoted but not judged: what is quoted follows from the rules here",
                unlisted.join(", ")
            ),
        );
    }
    Ok(())
}

/// Why a PCR's value cannot be listed in a policy.
const fn unjudgeable(index: u8) -> Option<&'static str> {
    match index {
        16 | 23 => Some("any process can reset PCR 16 and 23, so they prove nothing; left out"),
        IMA_PCR => Some("PCR 10 changes with every file: it is judged through the IMA list; left out"),
        _ => None,
    }
}
