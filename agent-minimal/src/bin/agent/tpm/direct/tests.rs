//! Against a software TPM, where one is installed.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command as Process, Stdio},
};

use protocol::tpm::{
    alg::HashAlg,
    credential::make_credential,
    pcr::{self, PcrSelection},
    public::Name,
    template::{TPM_RH_ENDORSEMENT, check_ak},
};

use super::*;
use crate::entropy::Kernel;

pub(crate) struct Swtpm {
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

fn tool(name: &str, args: &[&str]) -> bool {
    Process::new(name)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A fresh TPM with certificates from a CA of its own for its RSA-2048 and P-384 EKs.
pub(crate) fn swtpm(certificates: bool) -> Option<Swtpm> {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().to_str().unwrap().to_owned();
    let path = |name: &str| format!("{dir}/{name}");
    let localca = format!(
        "statedir = {dir}/ca\nsigningkey = {dir}/ca/key.pem\nissuercert = {dir}/ca/issuer.pem\n\
         certserial = {dir}/ca/serial\n"
    );
    fs::create_dir(path("ca")).unwrap();
    fs::write(path("localca.conf"), localca).unwrap();
    fs::write(path("localca.options"), "--platform-manufacturer Test\n").unwrap();
    let setup = format!(
        "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {dir}/localca.conf\n\
         create_certs_tool_options = {dir}/localca.options\n"
    );
    fs::write(path("setup.conf"), setup).unwrap();
    let config = path("setup.conf");
    let mut args = vec!["--tpm2", "--tpmstate", &dir, "--config", &config, "--pcr-banks", "sha1,sha256", "--overwrite"];
    if certificates {
        args.extend(["--create-ek-cert", "--lock-nvram"]);
    }
    if !tool("swtpm_setup", &args) {
        eprintln!("skipped: swtpm_setup is not installed or does not work here");
        return None;
    }
    for _ in 0..10 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut process = Process::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &format!("dir={dir}")])
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if process.try_wait().unwrap().is_some() {
                break;
            }
            // A connection that is closed again is a client that has ended.
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

pub(crate) fn direct(swtpm: &Swtpm) -> Direct {
    let rng = Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap();
    Direct::new(Tcti::Swtpm { host: "127.0.0.1".into(), port: swtpm.port }, rng)
}

fn selection(indices: &[u8]) -> PcrSelectionList {
    let mut list = PcrSelectionList::new();
    for bank in [HashAlg::Sha256, HashAlg::Sha1] {
        list.push(PcrSelection::from_indices(bank, indices.iter().copied()).unwrap()).unwrap();
    }
    list
}

/// All of it with one kind of EK.
fn exercise(tpm: &mut Direct, ek: Option<EkTemplate>, expected: EkTemplate, certificates: usize) {
    let identity = tpm.identity(ek).unwrap();
    assert_eq!((identity.ek, identity.ek_chain.len()), (expected, certificates));
    let ek_public = TpmtPublic::decode(&identity.ek_public).unwrap();
    let ak_public = TpmtPublic::decode(&identity.ak_public).unwrap();
    assert_eq!(check_ak(&ak_public), Ok(AkKind::P256));
    assert_eq!(identity.node_id, bind::node_id(&ek_public.spki_der().unwrap()));
    assert_eq!(ak_public.name()[..], identity.ak_name);
    // The same keys at each start.
    assert_eq!(tpm.identity(ek).unwrap().ak_name, identity.ak_name);

    let name = Name::decode(&identity.ak_name).unwrap();
    let mut rng = Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap();
    let credential = make_credential(&ek_public, &name, &[7; 32], &mut rng).unwrap();
    let secret = tpm.activate(&credential.id_object, &credential.encrypted_secret).unwrap();
    assert_eq!(secret.expose(), &[7; 32]);
    let mut other_name = identity.ak_name;
    other_name[33] ^= 1;
    let other = make_credential(&ek_public, &Name::decode(&other_name).unwrap(), &[7; 32], &mut rng).unwrap();
    let refused = tpm.activate(&other.id_object, &other.encrypted_secret);
    assert!(matches!(refused, Err(TpmError::NotForUs)), "{refused:?}");

    assert_ne!(*tpm.random().unwrap(), *tpm.random().unwrap());

    // More than one answer holds.
    let selection = selection(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 13]);
    let quote = tpm.quote(&selection, &[3; 32]).unwrap();
    let attest = TpmsAttest::decode(&quote.attested).unwrap();
    assert_eq!(&attest.extra_data[..], &[3; 32]);
    assert_eq!(quote.values.len(), 20);
    let qualified = protocol::tpm::public::qualified_name(TPM_RH_ENDORSEMENT, &name).unwrap();
    assert_eq!(attest.qualified_signer, qualified);

    let before = *tpm.pcr_read(&selection).unwrap().get(HashAlg::Sha256, 13).unwrap();
    tpm.pcr_event(13, b"an event").unwrap();
    let expected = pcr::extend(HashAlg::Sha256, &before, &pcr::event_digest(HashAlg::Sha256, b"an event")).unwrap();
    assert_eq!(tpm.pcr_read(&selection).unwrap().get(HashAlg::Sha256, 13), Some(&expected));
}

#[test]
fn certified_eks_are_found_and_work() {
    let Some(swtpm) = swtpm(true) else { return };
    let mut tpm = direct(&swtpm);
    exercise(&mut tpm, None, EkTemplate::P384, 1);
    exercise(&mut tpm, Some(EkTemplate::Rsa2048), EkTemplate::Rsa2048, 1);
    exercise(&mut tpm, Some(EkTemplate::P256), EkTemplate::P256, 0);
    assert!(tpm.spent() > Duration::ZERO);
}

#[test]
fn without_certificates_it_is_the_p256_ek_and_others_where_asked() {
    let Some(swtpm) = swtpm(false) else { return };
    let mut tpm = direct(&swtpm);
    exercise(&mut tpm, None, EkTemplate::P256, 0);
    exercise(&mut tpm, Some(EkTemplate::P384), EkTemplate::P384, 0);
    exercise(&mut tpm, Some(EkTemplate::Rsa2048), EkTemplate::Rsa2048, 0);
    let about = tpm.about().unwrap();
    assert_eq!(about.manufacturer_name(), "IBM");
    assert_eq!(about.banks.mask(HashAlg::Sha256), 0x00ff_ffff);
}

#[test]
fn slots_that_another_program_left_taken_are_freed() {
    let Some(swtpm) = swtpm(false) else { return };
    let mut tpm = direct(&swtpm);
    let ak = AkKind::P256.template();
    let fill = || {
        let mut link = Link::connect(&Tcti::Swtpm { host: "127.0.0.1".into(), port: swtpm.port }).unwrap();
        let create = command::create_primary(TPM_RH_ENDORSEMENT, &ak).authorized(&[Auth::EmptyPassword]);
        while CreatedPrimary::parse(&link.transmit(&create).unwrap()).is_ok() {}
    };
    fill();
    tpm.identity(None).unwrap();
    fill();
    tpm.random().unwrap();
}

#[test]
fn each_use_lets_go_of_the_tpm() {
    let Some(swtpm) = swtpm(false) else { return };
    let (mut one, mut other) = (direct(&swtpm), direct(&swtpm));
    one.identity(None).unwrap();
    other.identity(None).unwrap();
    one.quote(&selection(&[0]), &[1; 32]).unwrap();
    other.pcr_event(13, b"behind its back").unwrap();
    one.quote(&selection(&[13]), &[1; 32]).unwrap();
}

#[test]
fn absent_tpms_are_named() {
    let rng = || Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap();
    let mut device = Direct::new(Tcti::Device(PathBuf::from("/nonexistent/tpmrm0")), rng());
    assert!(matches!(device.identity(None), Err(TpmError::Missing(_))));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut socket = Direct::new(Tcti::Swtpm { host: "127.0.0.1".into(), port }, rng());
    assert!(matches!(socket.pcr_event(13, b""), Err(TpmError::Unreachable(..))));
}

#[test]
fn keys_are_needed_first() {
    let rng = Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap();
    let mut tpm = Direct::new(Tcti::Device("/nonexistent".into()), rng);
    assert!(matches!(tpm.quote(&PcrSelectionList::new(), &[0; 32]), Err(TpmError::NoIdentity)));
    assert!(matches!(tpm.activate(&[], &[]), Err(TpmError::NoIdentity)));
}

#[test]
fn answers_that_are_none_are_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers: [&[u8]; 4] = [&[0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0], &[0x80, 1, 0xff, 0, 0, 0, 0, 0, 0, 0], &[1; 5], &[]];
    let server = thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buf = [0; 4096];
            let _ = stream.read(&mut buf).unwrap();
            stream.write_all(answer).unwrap();
        }
    });
    for _ in answers {
        let rng = Rng::new(&Kernel::gather(Duration::ZERO), None).unwrap();
        let mut tpm = Direct::new(Tcti::Swtpm { host: "127.0.0.1".into(), port }, rng);
        assert!(matches!(tpm.identity(None), Err(TpmError::Answer { .. } | TpmError::Broken(_))));
    }
    server.join().unwrap();
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
