//! The harness itself keeps its promises: what the scenarios stand on is tested before they are.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hil_tests::apt::Tool;
use hil_tests::postgres::Postgres;
use hil_tests::spawn;
use hil_tests::swtpm::{EkKind, PowerCycle, Swtpm, SwtpmCa};

/// Where a tool is missing the test says so on one line and passes: `cargo xtask test` installs them first.
macro_rules! need {
    ($($tool:expr),+) => {
        for tool in [$($tool),+] {
            if !tool.is_present() {
                println!("skipped: {tool:?} is not installed (cargo xtask test installs it)");
                return;
            }
        }
    };
}

#[test]
fn a_tpm_is_reset_extended_restarted_and_cleared() {
    need!(Tool::Swtpm, Tool::Tpm2Tools);
    let tpm = Swtpm::start(EkKind::P384AndRsa).unwrap();
    assert_eq!(tpm.roots_dir().read_dir().unwrap().count(), 2);
    let zero = "0".repeat(64);
    assert_eq!(tpm.pcr(7).unwrap(), zero);
    tpm.pcr_extend(7, &"a5".repeat(32)).unwrap();
    let extended = tpm.pcr(7).unwrap();
    assert_ne!(extended, zero);

    let (resets, restarts) = tpm.counters().unwrap();
    tpm.reset().unwrap();
    assert_eq!(tpm.pcr(7).unwrap(), zero);
    assert_eq!(tpm.counters().unwrap(), (resets + 1, 0));
    assert_eq!(restarts, 0);
    tpm.power_cycle(PowerCycle::Restart).unwrap();
    assert_eq!(tpm.counters().unwrap(), (resets + 1, 1));
    tpm.power_cycle(PowerCycle::PulledPlug).unwrap();
    assert_eq!(tpm.counters().unwrap(), (resets + 2, 0));
    let address = tpm.address();
    tpm.restart_process().unwrap();
    assert_eq!((tpm.address(), tpm.counters().unwrap()), (address, (resets + 3, 0)));

    tpm.play_firmware().unwrap();
    assert_ne!(tpm.pcr(0).unwrap(), zero);
    tpm.clear().unwrap();
    assert_eq!(tpm.counters().unwrap().0, 0);
}

#[test]
fn a_tpm_of_each_kind_has_the_certificates_it_should_have() {
    need!(Tool::Swtpm, Tool::Tpm2Tools, Tool::Openssl);
    let ca = SwtpmCa::new().unwrap();
    for (kind, index) in [
        (EkKind::P384AndRsa, Some("0x1c00016")),
        (EkKind::P384AndRsa, Some("0x1c00002")),
        (EkKind::P256, Some("0x1c0000a")),
        (EkKind::NoCertificate, None),
    ] {
        let tpm = Swtpm::start_with(kind, &ca).unwrap();
        let indices = tpm.tpm2("tpm2_getcap", &["handles-nv-index"]).unwrap().to_lowercase();
        let Some(index) = index else {
            assert!(!indices.contains("0x1c000"), "{indices}");
            continue;
        };
        tpm.tpm2("tpm2_nvread", &[index, "-C", index, "-o", "certificate.der"]).unwrap();
        let mut verify = Command::new("openssl");
        verify.current_dir(tpm.dir()).args(["x509", "-inform", "DER", "-in", "certificate.der", "-noout", "-issuer"]);
        assert!(spawn::run(&mut verify).unwrap().contains("swtpm-localca"), "{kind:?}");
        let issuer = ca.roots_dir().join("issuer.pem");
        let mut chain = Command::new("sh");
        chain.current_dir(tpm.dir()).args([
            "-c",
            "openssl x509 -inform DER -in certificate.der -out certificate.pem && \
             openssl verify -partial_chain -ignore_critical -trusted \"$1\" certificate.pem",
            "sh",
        ]);
        assert!(spawn::run(chain.arg(issuer)).unwrap().contains("OK"), "{kind:?}");
    }
}

#[test]
fn ten_tpms_start_at_once_and_end_when_dropped() {
    need!(Tool::Swtpm, Tool::Tpm2Tools);
    let ca = SwtpmCa::new().unwrap();
    let begun = Instant::now();
    let tpms = Swtpm::start_many(EkKind::P384AndRsa, 10, &ca).unwrap();
    println!("ten TPMs in {:?}", begun.elapsed());
    let mut addresses: Vec<_> = tpms.iter().map(Swtpm::address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 10);
    let dirs: Vec<_> = tpms.iter().map(|tpm| tpm.dir().to_owned()).collect();
    drop(tpms);
    for (address, dir) in addresses.iter().zip(&dirs) {
        assert!(std::net::TcpStream::connect_timeout(address, Duration::from_millis(100)).is_err());
        assert!(!dir.exists());
    }
}

#[test]
fn a_postgres_serves_its_databases_and_is_gone_when_dropped() {
    need!(Tool::Postgres);
    let postgres = Postgres::start().unwrap();
    let (first, second) = (postgres.create_database().unwrap(), postgres.create_database().unwrap());
    assert_ne!(first, second);
    let name = first.rsplit('/').next().unwrap();
    assert_eq!(postgres.sql(name, "SELECT 40 + 2").unwrap(), "42");
    assert_eq!(postgres.sql(name, "SHOW fsync").unwrap(), "on");
    let (pid, data) = (postgres.server().pid(), postgres.data_dir());
    drop(postgres);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!data.exists());
}
