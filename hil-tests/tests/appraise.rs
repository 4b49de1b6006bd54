//! Anybody's quotes: what tpm2-tools take on a TPM, `trefoil appraise` and `tpm2_checkquote` judge alike.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hil_tests::apt::Tool;
use hil_tests::rig;
use hil_tests::swtpm::{EkKind, Swtpm, SwtpmCa};
use serde_json::Value;

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

const NONCE: &str = "00112233445566778899aabbccddeeff";
const SELECTION: &str = "sha1:0,7+sha256:0,7,13";

/// A key of `tpm2_createak`, and how it signs.
struct Ak {
    name: &'static str,
    algorithm: &'static str,
    scheme: &'static str,
    hash: &'static str,
}

const AKS: [Ak; 5] = [
    Ak { name: "p256", algorithm: "ecc", scheme: "ecdsa", hash: "sha256" },
    Ak { name: "p384", algorithm: "ecc384", scheme: "ecdsa", hash: "sha384" },
    Ak { name: "rsassa", algorithm: "rsa", scheme: "rsassa", hash: "sha256" },
    Ak { name: "rsapss", algorithm: "rsa", scheme: "rsapss", hash: "sha256" },
    Ak { name: "rsa3072", algorithm: "rsa3072", scheme: "rsassa", hash: "sha384" },
];

/// Makes the key and one quote by it, in files called after it.
fn quote(tpm: &Swtpm, ak: &Ak, format: &str) {
    let Ak { name, algorithm, scheme, hash } = ak;
    let file = |ending: &str| format!("{name}.{ending}");
    let flush = || tpm.tpm2("tpm2_flushcontext", &["-t"]).expect("the tool succeeds");
    if !tpm.dir().join(file("ctx")).exists() {
        let (context, public) = (file("ctx"), file("pub"));
        let made = ["-C", "ek.ctx", "-c", &context, "-G", algorithm, "-s", scheme, "-g", hash, "-u", &public];
        tpm.tpm2("tpm2_createak", &[&made[..], &["-f", "tss", "-n", &file("name")]].concat())
            .expect("the tool succeeds");
        flush();
        tpm.tpm2("tpm2_readpublic", &["-c", &context, "-f", "pem", "-o", &file("pem")]).expect("the tool succeeds");
        flush();
    }
    let (context, msg, sig, pcrs) = (file("ctx"), file("msg"), file("sig"), file("pcrs"));
    let what = ["-c", &context, "-l", SELECTION, "-q", NONCE, "-g", hash, "--scheme", scheme];
    tpm.tpm2("tpm2_quote", &[&what[..], &["-m", &msg, "-s", &sig, "-o", &pcrs, "-F", format]].concat())
        .expect("the tool succeeds");
    flush();
}

/// What `trefoil appraise` makes of it: exit status and JSON.
fn appraise(dir: &Path, ak: &Ak, key: &str, nonce: &str) -> (i32, Value) {
    let name = ak.name;
    let mut command = Command::new(rig::binary("trefoil").expect("it is built"));
    command.current_dir(dir).args(["appraise", "--json", "--qualifying-data", nonce]);
    command.args(["--quote", &format!("{name}.msg"), "--signature", &format!("{name}.sig")]);
    command.args(["--pcrs", &format!("{name}.pcrs"), "--ak", &format!("{name}.{key}")]);
    let output = command.output().expect("the program runs");
    (output.status.code().expect("it exits"), serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Whether `tpm2_checkquote` accepts it.
fn checkquote(dir: &Path, ak: &Ak, nonce: &str) -> bool {
    let name = ak.name;
    let mut command = Command::new("tpm2_checkquote");
    command.current_dir(dir).args(["-u", &format!("{name}.pem"), "-m", &format!("{name}.msg"), "-q", nonce]);
    command.args(["-s", &format!("{name}.sig"), "-f", &format!("{name}.pcrs"), "-g", ak.hash]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("the tool runs").success()
}

#[test]
fn quotes_of_every_scheme_pass_and_agree_with_tpm2_checkquote() {
    need!(Tool::Swtpm, Tool::Tpm2Tools);
    let tpm = Swtpm::start(EkKind::P384AndRsa).unwrap();
    tpm.play_firmware().unwrap();
    tpm.tpm2("tpm2_createek", &["-c", "ek.ctx", "-G", "rsa", "-u", "ek.pub"]).unwrap();
    tpm.tpm2("tpm2_flushcontext", &["-t"]).unwrap();
    for ak in &AKS {
        for format in ["values", "serialized"] {
            quote(&tpm, ak, format);
            for key in ["pem", "pub"] {
                let (status, verdict) = appraise(tpm.dir(), ak, key, NONCE);
                assert_eq!((status, &verdict["verdict"]), (0, &"pass".into()), "{} {format}: {verdict:#}", ak.name);
            }
        }
        // tpm2_checkquote 5.4 verifies RSA signatures as PKCS #1 v1.5, whatever they are.
        let (good, _) = appraise(tpm.dir(), ak, "pem", NONCE);
        let accepted = checkquote(tpm.dir(), ak, NONCE);
        assert!(good == 0 && (accepted || ak.scheme == "rsapss"), "{}", ak.name);
        tampered(tpm.dir(), ak);
    }
}

/// Each file with a bit flipped in several places, and another nonce: neither accepts, and we say why.
fn tampered(dir: &Path, ak: &Ak) {
    let (status, verdict) = appraise(dir, ak, "pem", &NONCE.replace('f', "e"));
    assert_eq!((status, checkquote(dir, ak, &NONCE.replace('f', "e"))), (1, false), "{}: {verdict:#}", ak.name);
    for ending in ["msg", "sig", "pcrs"] {
        let path = dir.join(format!("{}.{ending}", ak.name));
        let good = fs::read(&path).expect("it is there");
        // Of the values a digest; of the rest the beginning, the middle and the end.
        let places = if ending == "pcrs" { vec![144] } else { vec![2, good.len() / 2, good.len() - 1] };
        for at in places {
            let mut broken = good.clone();
            broken[at] ^= 1;
            fs::write(&path, &broken).expect("it is written");
            let (status, verdict) = appraise(dir, ak, "pem", NONCE);
            let accepted = checkquote(dir, ak, NONCE);
            let what = format!("{} {ending} byte {at}", ak.name);
            assert!(matches!(status, 1 | 2) && !accepted, "{what}: {accepted} {verdict:#}");
            assert_ne!(verdict["verdict"], "pass", "{what}");
        }
        fs::write(&path, &good).expect("it is written");
    }
}

#[test]
fn the_ek_certificate_is_judged_by_the_roots_that_are_given() {
    need!(Tool::Swtpm, Tool::Tpm2Tools);
    let tpm = Swtpm::start(EkKind::P384AndRsa).unwrap();
    tpm.tpm2("tpm2_nvread", &["0x1c00016", "-o", "ek.der"]).unwrap();
    let judge = |roots: &Path| {
        let mut command = Command::new(rig::binary("trefoil").unwrap());
        command.current_dir(tpm.dir()).args(["appraise", "--json", "--ek-cert", "ek.der", "--ek-roots"]).arg(roots);
        let output = command.output().unwrap();
        let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = verdict["checks"].as_array().cloned().unwrap_or_default();
        let row = rows.into_iter().find(|row| row["check"] == "ek_certificate").unwrap_or_default();
        (output.status.code(), row["result"].clone(), row["reason"].clone())
    };
    assert_eq!(judge(&tpm.roots_dir()), (Some(0), "pass".into(), "ok".into()));
    let others = SwtpmCa::new().unwrap();
    let (status, result, reason) = judge(&others.roots_dir());
    assert_eq!((status, result), (Some(1), "fail".into()), "{reason}");
    assert!(matches!(reason.as_str(), Some("ek_untrusted" | "ek_bad_signature")), "{reason}");
    // One file instead of a directory: the root and the CA below it.
    let pems: Vec<_> =
        fs::read_dir(tpm.roots_dir()).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    let file = tpm.dir().join("roots.pem");
    fs::write(&file, pems.join(&b'\n')).unwrap();
    assert_eq!(judge(&file), (Some(0), "pass".into(), "ok".into()));
}
