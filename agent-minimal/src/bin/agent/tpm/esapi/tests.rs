//! Against a software TPM, where one is installed, and against the other backend.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command as Process, Stdio},
};

use protocol::tpm::{
    credential::make_credential,
    public::{Name, qualified_name},
    template::{TPM_RH_ENDORSEMENT, check_ak},
};

use super::{super::direct::Direct, *};
use crate::entropy::{Kernel, Rng};

struct Swtpm {
    process: Child,
    port: u16,
    _state: tempfile::TempDir,
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Swtpm {
    fn tcti(&self) -> Tcti {
        Tcti::Swtpm { host: "127.0.0.1".into(), port: self.port }
    }

    fn esapi(&self) -> Esapi {
        Esapi::new(self.tcti())
    }

    fn direct(&self) -> Direct {
        Direct::new(self.tcti(), rng())
    }
}

fn rng() -> Rng {
    Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap()
}

/// A fresh TPM, if asked for with certificates for its RSA-2048 and P-384 EKs from a CA of its own.
fn swtpm(certificates: bool) -> Option<Swtpm> {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().to_str().unwrap().to_owned();
    fs::create_dir(format!("{dir}/ca")).unwrap();
    let localca = format!(
        "statedir = {dir}/ca\nsigningkey = {dir}/ca/key.pem\nissuercert = {dir}/ca/issuer.pem\n\
         certserial = {dir}/ca/serial\n"
    );
    let setup = format!(
        "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {dir}/localca.conf\n\
         create_certs_tool_options = {dir}/localca.options\n"
    );
    let config = format!("{dir}/setup.conf");
    fs::write(format!("{dir}/localca.conf"), localca).unwrap();
    fs::write(format!("{dir}/localca.options"), "--platform-manufacturer Test\n").unwrap();
    fs::write(&config, setup).unwrap();
    let mut made = Process::new("swtpm_setup");
    made.args(["--tpm2", "--tpmstate", &dir, "--config", &config, "--pcr-banks", "sha1,sha256", "--overwrite"]);
    if certificates {
        made.args(["--create-ek-cert", "--lock-nvram"]);
    }
    if !made.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: swtpm_setup is not installed or does not work here");
        return None;
    }
    for _ in 0..10 {
        // The TSS reaches the control channel at the next port.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let Some(control) = port.checked_add(1) else { continue };
        let mut process = Process::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &format!("dir={dir}")])
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            .args(["--ctrl", &format!("type=tcp,port={control},bindaddr=127.0.0.1")])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if process.try_wait().unwrap().is_some() {
                break;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(Swtpm { process, port, _state: state });
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = process.kill();
        let _ = process.wait();
    }
    panic!("swtpm does not start");
}

fn selection(indices: &[u8]) -> PcrSelectionList {
    let mut list = PcrSelectionList::new();
    // Not ascending: a digest covers the banks in the order asked for.
    for bank in [HashAlg::Sha256, HashAlg::Sha1] {
        list.push(PcrSelection::from_indices(bank, indices.iter().copied()).unwrap()).unwrap();
    }
    list
}

/// Both backends on one TPM, with one kind of EK: whatever one finds, makes or reads, the other does too.
fn agree(tpm: &Swtpm, ek: Option<EkTemplate>, expected: EkTemplate, certificates: usize) {
    let (mut esapi, mut direct) = (tpm.esapi(), tpm.direct());
    let (one, other) = (esapi.identity(ek).unwrap(), direct.identity(ek).unwrap());
    assert_eq!((one.ek, one.ek_chain.len()), (expected, certificates));
    assert_eq!((one.ek, one.node_id, &one.ek_chain), (other.ek, other.node_id, &other.ek_chain));
    assert_eq!((&one.ek_public, &one.ak_public), (&other.ek_public, &other.ak_public));
    assert_eq!(one.ak_name, other.ak_name);
    let ek_public = TpmtPublic::decode(&one.ek_public).unwrap();
    let ak_public = TpmtPublic::decode(&one.ak_public).unwrap();
    assert_eq!(check_ak(&ak_public), Ok(AkKind::P256));
    assert_eq!(ak_public.name()[..], one.ak_name);
    let name = Name::decode(&one.ak_name).unwrap();

    let credential = make_credential(&ek_public, &name, &[7; 32], &mut rng()).unwrap();
    let backends: [&mut dyn Tpm; 2] = [&mut esapi, &mut direct];
    for backend in backends {
        let secret = backend.activate(&credential.id_object, &credential.encrypted_secret).unwrap();
        assert_eq!(secret.expose(), &[7; 32]);
    }
    let mut other_name = one.ak_name;
    other_name[33] ^= 1;
    let foreign = make_credential(&ek_public, &Name::decode(&other_name).unwrap(), &[7; 32], &mut rng()).unwrap();
    let refused = esapi.activate(&foreign.id_object, &foreign.encrypted_secret);
    assert!(matches!(refused, Err(TpmError::NotForUs)), "{refused:?}");
    let garbage = esapi.activate(&[0; 40], &[0; 40]);
    assert!(matches!(garbage, Err(TpmError::NotForUs)), "{garbage:?}");
    assert!(matches!(esapi.activate(&[0; 5000], &[]), Err(TpmError::TooLong(_))));

    assert_ne!(*esapi.random().unwrap(), *esapi.random().unwrap());

    // More than one answer holds.
    let selection = selection(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 13]);
    let (one, other) = (esapi.quote(&selection, &[3; 32]).unwrap(), direct.quote(&selection, &[3; 32]).unwrap());
    assert_eq!((one.values.len(), &one.values), (20, &other.values));
    let (attest, other_attest) =
        (TpmsAttest::decode(&one.attested).unwrap(), TpmsAttest::decode(&other.attested).unwrap());
    assert_eq!(attest.qualified_signer, qualified_name(TPM_RH_ENDORSEMENT, &name).unwrap());
    assert_eq!(&attest.extra_data[..], &[3; 32]);
    assert_eq!((&attest.pcr_select, &attest.pcr_digest), (&selection, &other_attest.pcr_digest));
    // All but the clock is equal, byte for byte.
    let same_clock = TpmsAttest { clock_info: attest.clock_info, ..other_attest };
    assert_eq!(same_clock.encode(), one.attested);
    assert!(signature_is_good(&ak_public, &one) && signature_is_good(&ak_public, &other));

    let read = |tpm: &mut dyn Tpm| tpm.pcr_read(&selection).unwrap();
    let before = read(&mut esapi);
    esapi.pcr_event(13, b"an event").unwrap();
    let between = read(&mut direct);
    direct.pcr_event(13, b"an event").unwrap();
    let after = read(&mut esapi);
    for bank in [HashAlg::Sha1, HashAlg::Sha256] {
        let event = pcr::event_digest(bank, b"an event");
        for (old, new) in [(&before, &between), (&between, &after)] {
            let expected = pcr::extend(bank, old.get(bank, 13).unwrap(), &event).unwrap();
            assert_eq!(new.get(bank, 13), Some(&expected));
        }
    }
    let (one, other) = (esapi.about().unwrap(), direct.about().unwrap());
    assert_eq!((one.manufacturer_name(), one.firmware_version), (other.manufacturer_name(), other.firmware_version));
    assert_eq!(one.banks, other.banks);
}

/// Whether the bytes that a quote was given as are those that the AK signed.
fn signature_is_good(ak: &TpmtPublic, quote: &Quote) -> bool {
    use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};
    use protocol::tpm::{alg::EccCurve, signature::TpmtSignature};
    let key = VerifyingKey::from_sec1_bytes(&ak.sec1_point().unwrap()).unwrap();
    let fixed = TpmtSignature::decode(&quote.signature).unwrap().ecdsa_fixed(EccCurve::P256).unwrap();
    key.verify(&quote.attested, &Signature::from_slice(&fixed).unwrap()).is_ok()
}

#[test]
fn both_backends_agree_on_certified_eks() {
    let Some(swtpm) = swtpm(true) else { return };
    agree(&swtpm, None, EkTemplate::P384, 1);
    agree(&swtpm, Some(EkTemplate::Rsa2048), EkTemplate::Rsa2048, 1);
    agree(&swtpm, Some(EkTemplate::P256), EkTemplate::P256, 0);
}

#[test]
fn both_backends_agree_where_there_is_no_certificate() {
    let Some(swtpm) = swtpm(false) else { return };
    agree(&swtpm, None, EkTemplate::P256, 0);
    agree(&swtpm, Some(EkTemplate::P384), EkTemplate::P384, 0);
    agree(&swtpm, Some(EkTemplate::Rsa2048), EkTemplate::Rsa2048, 0);
}

#[test]
fn slots_that_another_program_left_taken_are_freed() {
    let Some(swtpm) = swtpm(false) else { return };
    let mut tpm = swtpm.esapi();
    // Objects, and sessions that authorise and that are policies: what a killed agent leaves.
    let fill = || {
        let mut stream = TcpStream::connect(("127.0.0.1", swtpm.port)).unwrap();
        let create = command::create_primary(TPM_RH_ENDORSEMENT, &AkKind::P256.template());
        let create = create.authorized(&[command::Auth::EmptyPassword]);
        let session = command::start_policy_session(&[1; 32]).plain();
        for command in [create, session] {
            while transmit(&mut stream, &command) {}
        }
    };
    fill();
    tpm.identity(Some(EkTemplate::P256)).unwrap();
    fill();
    tpm.random().unwrap();
    fill();
    assert!(matches!(tpm.activate(&[0; 40], &[0; 40]), Err(TpmError::NotForUs)));
}

/// Whether the TPM did it.
fn transmit(stream: &mut TcpStream, command: &[u8]) -> bool {
    use std::io::{Read as _, Write as _};
    stream.write_all(command).unwrap();
    let mut header = [0; 10];
    stream.read_exact(&mut header).unwrap();
    let mut rest = vec![0; command::response_len(&header).unwrap() - header.len()];
    stream.read_exact(&mut rest).unwrap();
    header[6..] == [0; 4]
}

#[test]
fn each_use_lets_go_of_the_tpm() {
    let Some(swtpm) = swtpm(false) else { return };
    let (mut one, mut other) = (swtpm.esapi(), swtpm.direct());
    one.identity(None).unwrap();
    other.identity(None).unwrap();
    one.quote(&selection(&[0]), &[1; 32]).unwrap();
    other.pcr_event(13, b"behind its back").unwrap();
    one.quote(&selection(&[13]), &[1; 32]).unwrap();
    assert!(one.spent() > Duration::ZERO);
    // More often than a TPM has slots.
    for _ in 0..20 {
        one.random().unwrap();
    }
}

#[test]
fn absent_tpms_are_named() {
    let mut device = Esapi::new(Tcti::Device(PathBuf::from("/nonexistent/tpmrm0")));
    assert!(matches!(device.identity(None), Err(TpmError::Missing(_))));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut socket = Esapi::new(Tcti::Swtpm { host: "127.0.0.1".into(), port });
    assert!(matches!(socket.pcr_event(13, b""), Err(TpmError::Unreachable(..))));
    let mut other = Esapi::new(Tcti::Other("smoke-signals".into()));
    assert!(matches!(other.about(), Err(TpmError::UnknownTcti(_))));
}

#[test]
fn keys_are_needed_first() {
    let mut tpm = Esapi::new(Tcti::Device("/nonexistent".into()));
    assert!(matches!(tpm.quote(&PcrSelectionList::new(), &[0; 32]), Err(TpmError::NoIdentity)));
    assert!(matches!(tpm.activate(&[], &[]), Err(TpmError::NoIdentity)));
    assert!(matches!(tpm.random(), Err(TpmError::NoIdentity)));
}

#[test]
fn events_longer_than_a_tpm_takes_and_pcrs_that_there_are_not_are_refused() {
    let mut tpm = Esapi::new(Tcti::Device("/nonexistent".into()));
    assert!(matches!(tpm.pcr_event(13, &[0; command::MAX_EVENT_LEN + 1]), Err(TpmError::TooLong(_))));
    assert!(matches!(tpm.pcr_event(32, b""), Err(TpmError::Wrapper { .. })));
}

#[test]
fn codes_keep_their_number_and_their_layer() {
    let failed = |code: u32| failed("test", Error::Tss2Error(code.into()));
    assert!(matches!(failed(0x100), TpmError::NotStarted));
    assert!(matches!(failed(0x921), TpmError::LockedOut));
    assert!(matches!(failed(0x902).rc(), Some(TpmRc::OBJECT_MEMORY)));
    assert!(matches!(failed(0x2df).rc(), Some(TpmRc(0x2df))));
    assert!(matches!(failed(0x000b_0902).rc(), Some(TpmRc::OBJECT_MEMORY)));
    // A TPM's numbers in another layer mean something else.
    assert!(matches!(failed(0x000a_0902), TpmError::Stack { code: 0x000a_0902, .. }));
    assert!(matches!(failed(0x0007_000b), TpmError::Stack { code: 0x0007_000b, .. }));
}

#[test]
fn selections_keep_their_order_both_ways() {
    let list = selection(&[0, 9, 23]);
    let there = selection_to_tss("test", &list).unwrap();
    let back: Result<Vec<_>, _> = selection_from_tss(there).collect();
    assert_eq!(back.unwrap(), list.iter().copied().collect::<Vec<_>>());
}

#[test]
fn der_is_cut_to_its_own_length() {
    assert_eq!(der_len(&[0x30, 2, 1, 2, 0, 0]), Some(4));
    assert_eq!(der_len(&[0x30, 0x81, 1, 1, 0]), Some(4));
    assert_eq!(der_len(&[0x30, 0x82, 0, 1, 9, 0]), Some(5));
    for bad in [&[][..], &[0x30], &[0x30, 3, 1], &[0x31, 0], &[0x30, 0x80, 0], &[0x30, 0x83, 0, 0, 1, 0], &[0xff; 9]] {
        assert_eq!(der_len(bad), None);
    }
}
