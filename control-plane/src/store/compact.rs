//! Digests in stored JSON as base64, a third of what a list of numbers takes: a checkpoint is kept for every node. Lists
//! of numbers are read too.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bytes as they are written.
struct Text<'a>(&'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD_NO_PAD.encode(self.0))
    }
}

/// Bytes as they are read.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Numbers(Vec<u8>),
        }
        match Form::deserialize(deserializer)? {
            Form::Text(text) => STANDARD_NO_PAD.decode(text).map(Self).map_err(D::Error::custom),
            Form::Numbers(bytes) => Ok(Self(bytes)),
        }
    }
}

/// For `Option<[u8; 32]>`.
pub(super) mod digest {
    use super::{Bytes, Deserialize, Deserializer, Serialize, Serializer, Text};
    use serde::de::Error as _;

    #[expect(clippy::ref_option, reason = "the form that serde wants")]
    pub(crate) fn serialize<S: Serializer>(digest: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
        digest.as_ref().map(|digest| Text(digest)).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 32]>, D::Error> {
        let digest = |bytes: Bytes| bytes.0.try_into().map_err(|_| D::Error::custom("a digest has 32 bytes"));
        Option::<Bytes>::deserialize(deserializer)?.map(digest).transpose()
    }
}

/// For PCR values: (TPM_ALG_ID, index, digest).
pub(super) mod pcrs {
    use super::{Bytes, Deserialize, Deserializer, Serializer, Text};

    type Pcr = (u16, u8, Vec<u8>);

    pub(crate) fn serialize<S: Serializer>(pcrs: &[Pcr], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(pcrs.iter().map(|(bank, index, digest)| (bank, index, Text(digest))))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Pcr>, D::Error> {
        let pcrs = Vec::<(u16, u8, Bytes)>::deserialize(deserializer)?;
        Ok(pcrs.into_iter().map(|(bank, index, digest)| (bank, index, digest.0)).collect())
    }
}

/// For the values of one PCR: (TPM_ALG_ID, digest).
pub(super) mod banks {
    use super::{Bytes, Deserialize, Deserializer, Serializer, Text};

    pub(crate) fn serialize<S: Serializer>(banks: &[(u16, Vec<u8>)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(banks.iter().map(|(bank, digest)| (bank, Text(digest))))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(u16, Vec<u8>)>, D::Error> {
        let banks = Vec::<(u16, Bytes)>::deserialize(deserializer)?;
        Ok(banks.into_iter().map(|(bank, digest)| (bank, digest.0)).collect())
    }
}

/// For a list of byte strings.
pub(super) mod list {
    use super::{Bytes, Deserialize, Deserializer, Serializer, Text};

    pub(crate) fn serialize<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|bytes| Text(bytes)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        Ok(Vec::<Bytes>::deserialize(deserializer)?.into_iter().map(|bytes| bytes.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::store::Checkpoint;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            reset_count: 1,
            restart_count: 2,
            clock: 3,
            firmware_version: 4,
            pcrs: (0..11).map(|index| (0xb, index, vec![0xff; 32])).collect(),
            boot_log: Some([6; 32]),
            ima_entries: 7,
            ima_pcrs: vec![(0xb, vec![8; 32])],
            ima_keys: vec![vec![9; 5]],
            policy: Some([10; 32]),
        }
    }

    #[test]
    fn a_checkpoint_is_read_as_it_was_written_and_takes_less_than_a_kibibyte() {
        let text = serde_json::to_string(&checkpoint()).unwrap();
        assert!(text.len() < 1024, "{}", text.len());
        assert_eq!(serde_json::from_str::<Checkpoint>(&text).unwrap(), checkpoint());
    }

    #[test]
    fn lists_of_numbers_are_read_too_and_anything_else_is_refused() {
        let numbers = |digest: &str| {
            format!(
                r#"{{"reset_count":1,"restart_count":2,"clock":3,"firmware_version":4,"pcrs":[[11,0,[1,2]]],
                "boot_log":null,"ima_entries":0,"ima_pcrs":[[11,[3]]],"policy":{digest}}}"#
            )
        };
        let policy = serde_json::to_string(&[5u8; 32]).unwrap();
        let read = serde_json::from_str::<Checkpoint>(&numbers(&policy)).unwrap();
        assert_eq!((read.pcrs, read.ima_pcrs), (vec![(11, 0, vec![1, 2])], vec![(11, vec![3])]));
        assert_eq!((read.policy, read.boot_log), (Some([5; 32]), None));
        for digest in ["[1]", "\"AA\"", "\"!\"", "7"] {
            assert!(serde_json::from_str::<Checkpoint>(&numbers(digest)).is_err(), "{digest}");
        }
    }
}
