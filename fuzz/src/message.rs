//! Messages: the bodies of requests and answers.

use protocol::{
    bytes::{Array, Bytes},
    codec::CodecError,
    id::{EnrolmentId, JoinId, NodeId, Role, SealingId},
    message::{
        self,
        attest::{BankSelection, BootLogState, Challenge, Evidence, ImaPart, PcrValue, Purpose},
        enrol::{Activate, Credential, Enrol, EnrolAnswer, Hello, HelloAnswer, JoinProof, Wants},
        provision::{Confirm, Report, ReportKind, Share, SignedManifest},
    },
};

type Decode = fn(&[u8]) -> Result<Vec<u8>, CodecError>;

/// Decodes a message and encodes it again.
macro_rules! kinds {
    ($($message:ty),*) => {
        [$(|bytes| message::decode::<$message>(bytes).and_then(|message| message::to_vec(&message))),*]
    };
}

const KINDS: [Decode; 11] = kinds![
    Hello,
    HelloAnswer,
    Enrol,
    EnrolAnswer,
    Activate,
    Challenge,
    Evidence,
    Share,
    Confirm,
    SignedManifest,
    Report
];

/// A message that decodes encodes to the same bytes; every truncated prefix and every appended byte is an error.
///
/// Input: which message (one byte), its bytes.
pub fn message_decode(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let decode = KINDS[usize::from(*kind) % KINDS.len()];
    let Ok(again) = decode(bytes) else { return };
    assert_eq!(again, bytes, "what decodes does not encode to itself");
    // At both ends of long ones: each prefix is decoded again.
    for len in (0..bytes.len()).filter(|len| *len < 100 || bytes.len() - len < 100) {
        assert!(decode(&bytes[..len]).is_err(), "a prefix of {len} bytes is a message too");
    }
    assert_eq!(decode(&[bytes, &[0]].concat()), Err(CodecError::TrailingBytes));
}

pub(crate) fn message_decode_seeds() -> Vec<Vec<u8>> {
    fn seed(kind: u8, message: &impl serde::Serialize) -> Vec<u8> {
        [&[kind], message::to_vec(message).expect("messages encode").as_slice()].concat()
    }
    let bytes = |len| vec![7; len];
    let credential = Credential {
        id_object: Bytes::new(&bytes(66)).expect("fits"),
        encrypted_secret: Bytes::new(&bytes(256)).expect("fits"),
    };
    let challenge = Challenge {
        role: Role::Tenant,
        purpose: Purpose::Bootstrap,
        nonce: Array([1; 32]),
        selection: heapless::Vec::from_slice(&[
            BankSelection { bank: 0xb, mask: 0x00ff_ffff },
            BankSelection { bank: 4, mask: 1 },
        ])
        .expect("fits"),
        pcr_base: Some(Array([2; 8])),
        boot_log: Some(Array([3; 32])),
        ima_from: u64::MAX,
        credential: Some(credential.clone()),
    };
    let evidence = Evidence {
        attested: Bytes::new(&bytes(145)).expect("fits"),
        signature: Bytes::new(&bytes(72)).expect("fits"),
        nk_public: Some(Array([4; 65])),
        other_nonce: Some(Array([5; 32])),
        pcrs_from_base: true,
        pcrs: (0..3).map(|index| PcrValue { bank: 0xb, index, digest: Bytes::new(&[6; 32]).expect("fits") }).collect(),
        boot_log: Some(BootLogState { digest: Array([7; 32]), len: 70_000 }),
        ima: Some(ImaPart { total: 300, entries: Bytes::new(&bytes(200)).expect("fits") }),
        credential_answer: Some(Array([8; 32])),
    };
    let enrol = Enrol {
        ek_public: Bytes::new(&bytes(314)).expect("fits"),
        ek_chain: (0..2).map(|_| Bytes::new(&bytes(700)).expect("fits")).collect(),
        ak_public: Bytes::new(&bytes(88)).expect("fits"),
        join: Some(JoinProof { join_id: JoinId([1; 32]), registrar: Array([2; 32]), tenant: Array([3; 32]) }),
    };
    let hello = Hello {
        version: 1,
        node_id: NodeId([1; 32]),
        ak_name: Array([2; 34]),
        wants: Wants::Attest,
        has_boot_log: true,
        has_ima_log: false,
    };
    let (sealing_id, enrolment_id) = (SealingId([9; 16]), EnrolmentId([8; 16]));
    let ciphertext = Bytes::new(&bytes(80)).expect("fits");
    let text = Bytes::new(b"no room").expect("fits");
    vec![
        seed(0, &hello),
        seed(1, &HelloAnswer::Known),
        seed(1, &HelloAnswer::Enrol),
        seed(2, &enrol),
        seed(3, &EnrolAnswer { enrolment_id, credential }),
        seed(4, &Activate { enrolment_id, proof: Array([1; 32]) }),
        seed(5, &challenge),
        seed(5, &Challenge { pcr_base: None, boot_log: None, credential: None, ima_from: 0, ..challenge }),
        seed(6, &evidence),
        seed(6, &Evidence { nk_public: None, other_nonce: None, boot_log: None, ima: None, ..evidence }),
        seed(7, &Share { role: Role::Verifier, sealing_id, enc: Array([4; 65]), ciphertext }),
        seed(8, &Confirm { sealing_id, proof: Array([1; 32]) }),
        seed(9, &SignedManifest { manifest: Bytes::new(&bytes(180)).expect("fits"), signature: Array([2; 64]) }),
        seed(10, &Report { sealing_id, kind: ReportKind::Autorun, code: -1, text }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_a_message_and_every_message_has_one() {
        let seeds = message_decode_seeds();
        assert!(seeds.iter().all(|seed| KINDS[usize::from(seed[0])](&seed[1..]).is_ok()));
        assert!((0..KINDS.len()).all(|kind| seeds.iter().any(|seed| usize::from(seed[0]) == kind)));
    }
}
