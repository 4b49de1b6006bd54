//! The wire pinned: these bytes are version 1. A test that breaks here means a new version, not new bytes.

extern crate std;
use std::{format, string::String, vec};

use super::{attest::*, enrol::*, provision::*, *};
use crate::{
    bytes::{Array, Bytes},
    id::{EnrolmentId, JoinId, NodeId, Role, SealingId},
};

fn pinned<T>(message: &T, hex: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + core::fmt::Debug,
{
    let bytes = to_vec(message).unwrap();
    assert_eq!(hex::encode(&bytes), hex);
    assert_eq!(decode::<T>(&bytes).unwrap(), *message);
    for len in 0..bytes.len() {
        assert!(decode::<T>(&bytes[..len]).is_err(), "a prefix of {len} bytes decodes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(decode::<T>(&longer), Err(CodecError::TrailingBytes));
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        node_id: NodeId([0x11; 32]),
        ak_name: Array([0x22; 34]),
        wants: Wants::Payload,
        has_boot_log: true,
        has_ima_log: false,
    }
}

#[test]
fn enrolment_is_pinned() {
    let mut hex = String::from("01");
    hex += &"11".repeat(32);
    hex += &"22".repeat(34);
    hex += "000100";
    pinned(&hello(), &hex);
    pinned(&HelloAnswer::Known, "00");
    pinned(&HelloAnswer::Enrol, "01");

    let enrol = Enrol {
        ek_public: Bytes::new(&[1, 2]).unwrap(),
        ek_chain: heapless::Vec::from_slice(&[Bytes::new(&[3]).unwrap()]).unwrap(),
        ak_public: Bytes::new(&[4]).unwrap(),
        join: Some(JoinProof { join_id: JoinId([5; 32]), registrar: Array([6; 32]), tenant: Array([7; 32]) }),
    };
    let hex = format!("020102010103010401{}{}{}", "05".repeat(32), "06".repeat(32), "07".repeat(32));
    pinned(&enrol, &hex);
    let credential = Credential { id_object: Bytes::new(&[8]).unwrap(), encrypted_secret: Bytes::new(&[9]).unwrap() };
    let answer = EnrolAnswer { enrolment_id: EnrolmentId([0xa; 16]), credential };
    pinned(&answer, &format!("{}01080109", "0a".repeat(16)));
    let activate = Activate { enrolment_id: EnrolmentId([0xa; 16]), proof: Array([0xb; 32]) };
    pinned(&activate, &format!("{}{}", "0a".repeat(16), "0b".repeat(32)));
}

#[test]
fn attestation_is_pinned() {
    let challenge = Challenge {
        role: Role::Verifier,
        purpose: Purpose::Attest,
        nonce: Array([1; 32]),
        selection: heapless::Vec::from_slice(&[BankSelection { bank: 0x000b, mask: 0x80 }]).unwrap(),
        pcr_base: Some(Array([2; 8])),
        boot_log: None,
        ima_from: 300,
        credential: None,
    };
    // Enums by their place: verifier is the second role, attest the second purpose.
    let hex = format!("0101{}010b800101{}00ac0200", "01".repeat(32), "02".repeat(8));
    pinned(&challenge, &hex);
    let evidence = Evidence {
        attested: Bytes::new(&[1]).unwrap(),
        signature: Bytes::new(&[2]).unwrap(),
        nk_public: None,
        other_nonce: None,
        pcrs_from_base: true,
        pcrs: heapless::Vec::from_slice(&[PcrValue { bank: 0xb, index: 7, digest: Bytes::new(&[3; 32]).unwrap() }])
            .unwrap(),
        boot_log: Some(BootLogState { digest: Array([4; 32]), len: 5 }),
        ima: Some(ImaPart { total: 6, entries: Bytes::new(&[7]).unwrap() }),
        credential_answer: None,
    };
    let hex = format!("0101010200000101 0b0720{}01{}05010601070 0", "03".repeat(32), "04".repeat(32)).replace(' ', "");
    pinned(&evidence, &hex);
}

#[test]
fn provisioning_is_pinned() {
    let share = Share {
        role: Role::Tenant,
        sealing_id: SealingId([1; 16]),
        enc: Array([2; 65]),
        ciphertext: Bytes::new(&[3; 2]).unwrap(),
    };
    pinned(&share, &format!("02{}{}020303", "01".repeat(16), "02".repeat(65)));
    let confirm = Confirm { sealing_id: SealingId([1; 16]), proof: Array([2; 32]) };
    pinned(&confirm, &format!("{}{}", "01".repeat(16), "02".repeat(32)));
    let signed = SignedManifest { manifest: Bytes::new(&[1]).unwrap(), signature: Array([2; 64]) };
    pinned(&signed, &format!("0101{}", "02".repeat(64)));
    let report = Report {
        sealing_id: SealingId([1; 16]),
        kind: ReportKind::Autorun,
        code: -1,
        text: Bytes::new(b"no").unwrap(),
    };
    pinned(&report, &format!("{}0501026e6f", "01".repeat(16)));
}

#[test]
fn over_long_varints_are_refused() {
    let bytes = to_vec(&hello()).unwrap();
    assert!(decode::<Hello>(&bytes).is_ok());
    // The length of a byte string as 0x81 0x00 instead of 0x01: the same number, other bytes.
    let confirm = SignedManifest { manifest: Bytes::new(&[1]).unwrap(), signature: Array([2; 64]) };
    let mut bytes = to_vec(&confirm).unwrap();
    bytes.splice(0..1, [0x81, 0x00]);
    assert_eq!(decode::<SignedManifest>(&bytes), Err(CodecError::BadValue));
}

#[test]
fn fields_over_their_limit_are_refused() {
    let mut bytes = vec![0x80, 0x04]; // 512 bytes of TPMS_ATTEST
    bytes.resize(600, 0);
    assert_eq!(decode::<Evidence>(&bytes), Err(CodecError::BadValue));
    let mut buf = [0; 8];
    assert_eq!(encode(&hello(), &mut buf), Err(CodecError::NoSpace));
}

#[test]
fn the_name_of_a_set_of_values_depends_on_each() {
    let values = [(0xb, 7, &[1; 32][..]), (0xb, 8, &[2; 32][..])];
    let base = values_base(values.into_iter());
    for changed in [(0x4, 7, &[1; 32][..]), (0xb, 6, &[1; 32][..]), (0xb, 7, &[9; 32][..])] {
        assert_ne!(values_base([changed, values[1]].into_iter()), base);
    }
    assert_ne!(values_base(values.into_iter().take(1)), base);
}
