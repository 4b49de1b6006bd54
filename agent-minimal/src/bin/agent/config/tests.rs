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
            "30s",
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

type IsSet = fn(&Settings) -> bool;

/// Every documented setting, a value that is not the default, and what has come of it.
const EACH: [(&str, &str, IsSet); 13] = [
    ("server", "gw2:7", |all| all.servers.iter().any(|server| server.to_string() == "gw2:7")),
    ("ca", "/other-ca.pem", |all| all.ca.as_deref() == Some(Path::new("/other-ca.pem"))),
    ("tenant-key", "/other.pem", |all| all.tenant_keys == [Path::new("/other.pem")]),
    ("join", "", |all| all.join.is_some()),
    ("wants", "attest", |all| all.wants == Wants::Attest),
    ("payload-dir", "/mnt/p", |all| all.payload_dir == Path::new("/mnt/p")),
    ("autorun", "on", |all| all.autorun),
    ("once", "on", |all| all.once),
    ("timeout", "90", |all| all.timeout == Some(Duration::from_secs(90))),
    ("tcti", "device:/dev/tpm0", |all| all.tcti == Tcti::Device("/dev/tpm0".into())),
    ("ek", "rsa2048", |all| all.ek == Some(EkTemplate::Rsa2048)),
    ("phase-pcr", "9", |all| all.phase_pcr == 9),
    ("log", "json:trace", |all| all.log == log::Settings { level: log::Level::Trace, json: true }),
];

#[test]
fn every_setting_is_taken_from_every_source_but_the_token_from_the_kernel() {
    let token = JoinToken::generate(&mut rand_core::OsRng).to_text();
    for (name, value, is_set) in EACH {
        let value = if name == "join" { token.as_str() } else { value };
        // A time limit alone says nothing; a needed setting is given once, by the source that is looked at.
        let base = [("server", "gw"), ("ca", "/ca.pem"), ("tenant-key", "/tenant.pem")];
        let mut said: Vec<(&str, &str)> = base.into_iter().filter(|(other, _)| *other != name).collect();
        said.push((name, value));
        if name == "timeout" {
            said.push(("once", "on"));
        }
        let all = |text: &dyn Fn(&str, &str) -> String| said.iter().map(|(name, value)| text(name, value)).collect();
        let flags: Vec<String> = all(&|name, value| format!("--{name}={value}"));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let file: Vec<String> = all(&|name, value| format!("{name} = {value}\n"));
        let kernel: Vec<String> = all(&|name, value| format!("trefoil.{name}={value} "));
        let run = |args: &[&str], kernel: &str, file: Option<&str>| match parse_all(args, kernel, file).unwrap() {
            Command::Run(settings) => settings,
            other => panic!("{name}: {other:?}"),
        };
        assert!(is_set(&run(&flags, "", None)), "--{name}");
        assert!(is_set(&run(&[], "", Some(&file.concat()))), "{name} in the file");
        if name == "join" {
            parse_all(&[], &kernel.concat(), None).unwrap_err();
        } else {
            assert!(is_set(&run(&[], &format!("ro quiet {}splash", kernel.concat()), None)), "trefoil.{name}");
        }
        assert!(!is_set(&settings(&[], "", None)), "{name} is set by default");
    }
}

#[test]
fn repeated_kernel_arguments_add_up_and_a_switch_needs_no_value() {
    let kernel = "trefoil.server=a trefoil.server=[2001:db8::1]:7 trefoil.ca=/etc/trefoil/ca.pem \
                  trefoil.tenant-key=/etc/trefoil/a.pem trefoil.tenant-key=\"/etc/trefoil/b c.pem\" trefoil.autorun";
    let Command::Run(all) = parse_all(&[], kernel, None).unwrap() else { panic!() };
    assert_eq!(all.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:5684", "[2001:db8::1]:7"]);
    assert_eq!(all.tenant_keys, [Path::new("/etc/trefoil/a.pem"), Path::new("/etc/trefoil/b c.pem")]);
    assert!(all.autorun);
}

#[test]
fn where_the_pins_come_from_is_known() {
    let origins = |args: &[&str], kernel: &str, file: Option<&str>| {
        let origins = settings(args, kernel, file).origins;
        (origins.tenant_keys, origins.autorun)
    };
    assert_eq!(origins(&[], "", None), (Source::Flag, Source::Default));
    assert_eq!(origins(&[], "trefoil.autorun", None), (Source::Flag, Source::Kernel));
    assert_eq!(origins(&["--autorun=off"], "trefoil.autorun", None), (Source::Flag, Source::Flag));
    let Command::Run(all) = parse_all(
        &["--server", "s"],
        "trefoil.ca=/ca.pem trefoil.tenant-key=/k.pem",
        Some("tenant-key = /f.pem\nautorun = on\n"),
    )
    .unwrap() else {
        panic!()
    };
    assert_eq!((all.origins.tenant_keys, all.origins.autorun), (Source::File, Source::File));
    assert_eq!(all.tenant_keys, [Path::new("/f.pem")]);
    assert_eq!(Source::Kernel.to_string(), "from the kernel's command line");
}

#[test]
fn phase_pcr_cannot_be_turned_off() {
    for value in ["off", "none", "0", "7", "16", "23", "-1"] {
        assert!(refusal(&[&format!("--phase-pcr={value}")], "", None).ends_with("phase-pcr is a number from 8 to 15"));
        assert!(refusal(&[], &format!("trefoil.phase-pcr={value}"), None).ends_with("from 8 to 15"));
    }
}

#[test]
fn times_are_seconds_minutes_or_hours_up_to_a_day() {
    for (text, seconds) in [("1", 1), ("90", 90), ("60s", 60), ("2m", 120), ("24h", 86_400), ("86400s", 86_400)] {
        assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
    }
    for text in [
        "",
        "s",
        "0",
        "0s",
        "-1",
        "+5",
        "1.5m",
        "1d",
        "6 s",
        "25h",
        "86401",
        "1m30s",
        "99999999999999999999",
        "9m\u{e9}",
    ] {
        assert_eq!(duration(text), None, "{text}");
    }
}

#[test]
fn what_an_image_says_about_once_yields_to_a_service_that_only_attests() {
    // The initramfs: once, by a flag or on the kernel's command line. The service on the root: wants.
    let kernel = "trefoil.once trefoil.timeout=60s";
    let first = settings(&[], kernel, None);
    assert!(first.once && first.timeout == Some(Duration::from_secs(60)) && first.wants == Wants::Payload);
    for (args, file) in [(&["--wants", "attest"][..], None), (&[], Some("wants = attest\n"))] {
        let second = settings(args, kernel, file);
        assert!(!second.once && second.timeout.is_none() && second.wants == Wants::Attest);
    }
    let second = settings(&["--wants", "attest"], "", Some("once = on\ntimeout = 2m\n"));
    assert!(!second.once && second.timeout.is_none());
    // A time limit of an image alone waits for its `once`.
    assert_eq!(settings(&[], "trefoil.timeout=60s", None).timeout, None);
    assert!(settings(&["--once"], "trefoil.timeout=60s", None).timeout.is_some());
    // Both at one place, or the stronger one for once: nobody can tell what is meant.
    assert!(refusal(&["--once"], "", Some("wants = attest\n")).starts_with("once: "));
    assert!(refusal(&[], "trefoil.once trefoil.wants=attest", None).starts_with("once: "));
}

#[test]
fn print_needs_no_gateway_and_takes_the_payload_dir_from_where_the_agent_does() {
    let print = |args: &[&str], kernel: &str| match parse_all(args, kernel, None) {
        Ok(Command::Print { home, file }) => (home.path().to_owned(), file),
        other => panic!("{other:?}"),
    };
    assert_eq!(print(&["--print", "a/b"], ""), ("/run/trefoil/payload".into(), "a/b".into()));
    assert_eq!(print(&["--print=x"], "trefoil.payload-dir=/p"), ("/p".into(), "x".into()));
    assert!(parse_all(&["--print"], "", None).unwrap_err().to_string().contains("needs a value"));
}

#[test]
fn settings_page_has_every_setting() {
    let page = include_str!("../../../../../docs/config.md");
    for (name, ..) in EACH {
        assert!(page.lines().any(|line| line.starts_with(&format!("| `{name}` |"))), "{name}");
    }
}

#[test]
fn error_names_source_line_and_what_is_wrong() {
    assert_eq!(
        refusal(&[], "", Some("log = info\n\nserverr = x\n")),
        "agent.conf line 3: there is no setting `serverr`; see --help"
    );
    assert_eq!(refusal(&[], "", Some("once\n")), "agent.conf line 1: is not of the form `name = value`");
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
    assert_eq!(refusal(&["--wants=all"], "", None), "argument --wants: wants is payload or attest");
    assert!(refusal(&["--config", "/nonexistent/agent.conf"], "", None).starts_with("/nonexistent/agent.conf: cannot"));
}

#[test]
fn join_token_is_not_taken_from_the_kernel_nor_repeated_in_errors() {
    let refused = refusal(&[], "trefoil.join=trefoil-join-secret", None);
    assert!(refused.contains("every process can read it") && !refused.contains("secret"), "{refused}");
    let refused = refusal(&[], "", Some("join = trefoil-join-secret\n"));
    assert!(refused.starts_with("agent.conf line 1: ") && !refused.contains("secret"), "{refused}");
    for refused in [
        refusal(&[], "", Some("join trefoil-join-secret\n")),
        refusal(&["--join=trefoil-join-secret"], "", None),
        refusal(&["--join", "trefoil-join-secret"], "", None),
    ] {
        assert!(!refused.contains("secret"), "{refused}");
    }
}

#[test]
fn what_only_tests_may_set_is_no_setting_of_an_image() {
    for setting in [
        "autorun-limit = 5",
        "cryptsetup-keys-dir = /x",
        "boot-log = /x",
        "ima-log = /x",
        "command-line = /x",
        "userspace-log = /x",
    ] {
        let (name, value) = setting.split_once(" = ").unwrap();
        assert!(refusal(&[], "", Some(setting)).contains("there is no setting"), "{setting}");
        assert!(refusal(&[], &format!("trefoil.{name}={value}"), None).contains("there is no setting"), "{setting}");
    }
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
    for (name, ..) in EACH {
        assert!(HELP.lines().any(|line| line.trim_start().split(' ').next() == Some(name)), "{name}");
    }
    assert!(HELP.lines().all(|line| line.len() <= 120));
}
