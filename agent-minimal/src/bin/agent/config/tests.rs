//! Settings from every source, and what each refuses.

use super::*;

const BASE: [&str; 6] = ["--server", "gw.example.org", "--ca", "/ca.pem", "--tenant-key", "/tenant.pem"];

fn parse_all(args: &[&str], kernel: &str, file: Option<&str>) -> Result<Command, ConfigError> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("agent.conf");
    if let Some(text) = file {
        fs::write(&path, text).unwrap();
    }
    parse(args.iter().map(|arg| (*arg).to_owned()), kernel, &path)
        .map_err(|why| ConfigError { place: why.place.replace(path.to_str().unwrap(), "agent.conf"), what: why.what })
}

fn settings(args: &[&str], kernel: &str, file: Option<&str>) -> Settings {
    match parse_all(&[&BASE, args].concat(), kernel, file).unwrap() {
        Command::Run(settings) => settings,
        other => panic!("{other:?}"),
    }
}

fn refusal(args: &[&str], kernel: &str, file: Option<&str>) -> String {
    parse_all(&[&BASE, args].concat(), kernel, file).unwrap_err().to_string()
}

fn address(text: &str) -> String {
    server_address(text).map_or_else(|why| why, |address| address.to_string())
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let settings = settings(&[], "quiet splash", None);
    assert_eq!(settings.tcti, Tcti::Device("/dev/tpmrm0".into()));
    assert_eq!(
        (settings.phase_pcr, settings.wants, settings.autorun, settings.once),
        (13, Wants::Payload, false, false)
    );
    assert_eq!(settings.payload_dir, Path::new("/run/trefoil/payload"));
    assert_eq!(settings.log, log::Settings { level: log::Level::Info, json: false });
    assert_eq!(settings.servers[0].to_string(), "gw.example.org:5684");
    assert!(settings.join.is_none() && settings.ek.is_none() && settings.timeout.is_none());
}

#[test]
fn flag_wins_over_file_and_file_over_kernel() {
    let kernel = "ro trefoil.phase-pcr=8 trefoil.ek=p384 trefoil.log=\"json:debug\" trefoil.once trefoil.server=k";
    let file = "# comment\n\nphase-pcr = 9\nlog = \"warn\"\nserver = f1\nserver=[::1]:1\n";
    let Command::Run(all) = parse_all(
        &[
            "--phase-pcr=10",
            "--ca",
            "/ca.pem",
            "--tenant-key",
            "/one.pem",
            "--tenant-key",
            "/two.pem",
            "--timeout",
            "30",
        ],
        kernel,
        Some(file),
    )
    .unwrap() else {
        panic!()
    };
    assert_eq!((all.phase_pcr, all.ek, all.once), (10, Some(EkTemplate::P384), true));
    assert_eq!(all.log.level, log::Level::Warn);
    let servers: Vec<_> = all.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["f1:5684", "[::1]:1"]);
    assert_eq!(all.tenant_keys, [Path::new("/one.pem"), Path::new("/two.pem")]);
    assert_eq!(all.timeout, Some(Duration::from_secs(30)));
    assert_eq!(settings(&[], kernel, None).log, log::Settings { level: log::Level::Debug, json: true });
}

#[test]
fn error_names_source_line_and_what_is_wrong() {
    assert_eq!(
        refusal(&[], "", Some("log = info\n\nserverr = x\n")),
        "agent.conf line 3: there is no setting `serverr`; see --help"
    );
    assert_eq!(refusal(&[], "", Some("once\n")), "agent.conf line 1: `once` is not of the form `name = value`");
    assert_eq!(refusal(&[], "", Some("ek = p256\nek = p384")), "agent.conf line 2: ek is set twice");
    assert_eq!(
        refusal(&[], "trefoil.phasepcr=9", None),
        "kernel argument trefoil.phasepcr: there is no setting `phasepcr`; see --help"
    );
    assert_eq!(refusal(&["--phase-pcr", "16"], "", None), "argument --phase-pcr: phase-pcr is a number from 8 to 15");
    assert_eq!(refusal(&["--ek"], "", None), "argument --ek: needs a value; see --help");
    assert_eq!(refusal(&["start"], "", None), "argument start: is not a flag; see --help");
    assert!(refusal(&["--payload-dir", "here"], "", None).contains("absolute path"));
    assert_eq!(refusal(&["--wants", "all"], "", None), "argument --wants: wants is payload or attest");
    assert!(refusal(&["--config", "/nonexistent/agent.conf"], "", None).starts_with("/nonexistent/agent.conf: cannot"));
}

#[test]
fn join_token_is_not_taken_from_the_kernel_nor_repeated_in_errors() {
    let refused = refusal(&[], "trefoil.join=trefoil-join-secret", None);
    assert!(refused.contains("every process can read it") && !refused.contains("secret"), "{refused}");
    let refused = refusal(&[], "", Some("join = trefoil-join-secret\n"));
    assert!(refused.starts_with("agent.conf line 1: ") && !refused.contains("secret"), "{refused}");
}

#[test]
fn join_token_is_read_from_the_file() {
    let mut rng = rand_core::OsRng;
    let token = JoinToken::generate(&mut rng);
    let all = settings(&[], "", Some(&format!("join = {}\n", token.to_text().as_str())));
    assert_eq!(all.join.unwrap().id(), token.id());
}

#[test]
fn what_cannot_be_done_without_is_said() {
    let refused = |args: &[&str]| parse_all(args, "", None).unwrap_err().to_string();
    assert!(refused(&[]).starts_with("server: is not set"));
    assert!(refused(&["--server", "x"]).starts_with("ca: is not set"));
    assert!(refused(&["--server", "x", "--ca", "/c"]).starts_with("tenant-key: is not set"));
    assert!(parse_all(&["--server", "x", "--ca", "/c", "--wants", "attest"], "", None).is_ok());
    assert!(refusal(&["--timeout", "5"], "", None).starts_with("timeout: is for once only"));
    assert!(refusal(&["--once", "--wants", "attest"], "", None).starts_with("once: "));
}

#[test]
fn check_help_and_version_need_nothing() {
    assert!(matches!(parse_all(&["--check"], "", None), Ok(Command::Check { json: false, .. })));
    assert!(matches!(parse_all(&["--check", "--json"], "", None), Ok(Command::Check { json: true, .. })));
    assert!(matches!(parse_all(&["--help"], "trefoil.bad=1", None), Ok(Command::Help)));
    assert!(matches!(parse_all(&["--version"], "", None), Ok(Command::Version)));
    assert!(refusal(&["--json"], "", None).contains("belongs to --check"));
    let worker = parse_all(&[&BASE[..], &["--worker=17"]].concat(), "", None);
    assert!(matches!(worker, Ok(Command::Worker { parent: 17, .. })));
}

#[test]
fn servers_are_names_or_addresses_with_a_port() {
    for (text, expected) in [
        ("gw", "gw:5684"),
        ("gw.example.org:1", "gw.example.org:1"),
        ("192.0.2.1", "192.0.2.1:5684"),
        ("192.0.2.1:99", "192.0.2.1:99"),
        ("2001:db8::1", "[2001:db8::1]:5684"),
        ("[2001:db8::1]", "[2001:db8::1]:5684"),
        ("[2001:db8::1]:7", "[2001:db8::1]:7"),
    ] {
        assert_eq!(address(text), expected);
    }
    for text in ["gw:0", "gw:65536", "gw:x", "[gw]:1", "[::1", "[::1]1", "a b", ":1", "coaps+tcp://gw"] {
        assert!(address(text).starts_with("server `"), "{text}");
    }
}

#[test]
fn tcti_is_a_device_or_a_software_tpm() {
    assert_eq!(tcti("device:/dev/tpm0"), Ok(Tcti::Device("/dev/tpm0".into())));
    assert_eq!(tcti("device"), Ok(Tcti::Device("/dev/tpmrm0".into())));
    assert_eq!(tcti("swtpm:host=h,port=5"), Ok(Tcti::Swtpm { host: "h".into(), port: 5 }));
    assert_eq!(tcti("swtpm"), Ok(Tcti::Swtpm { host: "127.0.0.1".into(), port: 2321 }));
    for bad in ["device:tpm0", "swtpm:port=x", "swtpm:path=/x"] {
        assert!(tcti(bad).is_err(), "{bad}");
    }
}

#[test]
fn repeated_settings_are_bounded() {
    let many = "server = a\n".repeat(MAX_SERVERS + 1);
    assert!(refusal(&[], "", Some(&many)).ends_with("line 9: more than 8 servers"));
    let many = "tenant-key = /k\n".repeat(5);
    assert!(refusal(&[], "", Some(&many)).ends_with("line 5: more than 4 tenant keys"));
}

#[test]
fn help_names_every_setting() {
    for name in [
        "server",
        "ca",
        "tenant-key",
        "join",
        "wants",
        "payload-dir",
        "autorun",
        "once",
        "timeout",
        "tcti",
        "ek",
        "phase-pcr",
        "log",
    ] {
        assert!(HELP.lines().any(|line| line.trim_start().split(' ').next() == Some(name)), "{name}");
    }
    assert!(HELP.lines().all(|line| line.len() <= 120));
}
