use proptest::prelude::*;

use super::*;
use crate::appraisal::policy::Policy;

fn set(bytes: &[u8], len: usize) -> DigestSet {
    bytes.iter().map(|byte| vec![*byte; len]).collect()
}

/// A text with something in every section.
fn full() -> PolicyText {
    let mut text = PolicyText { name: "edge \"1\"".into(), header: vec!["a\nb".into()], ..PolicyText::default() };
    text.accept.extend([Exception::Sha1, Exception::NoFirmwareMeasurements]);
    text.pcrs.entry(HashAlg::Sha256).or_default().insert(7, set(&[1, 2], 32));
    text.pcrs.entry(HashAlg::Sha1).or_default().insert(0, set(&[1], 20));
    text.release = Some(ReleaseRule::PhasePcr(13));
    let mut boot = BootText { secure_boot: Some(true), ..BootText::default() };
    boot.pcrs.extend([0, 4, 7]);
    boot.command_line_patterns.insert("root=* \"quiet\"".into());
    boot.keys.insert("pk".into(), KeyText { only: Some(set(&[5], 32)), require: DigestSet::new() });
    boot.keys.insert("dbx".into(), KeyText { only: None, require: set(&[6, 7], 32) });
    boot.events.push(EventText { name: "firmware".into(), pcr: 0, digests: set(&[8], 32), required: true });
    boot.chains.push(ChainText {
        name: "6.1".into(),
        images: vec![vec![9; 32], vec![10; 32]],
        files: set(&[11], 32),
        command_line: Some(CommandLineText::Exact("ro quiet".into())),
    });
    text.boot = Some(boot);
    let mut ima = ImaText { learn_keys: true, boot_aggregate: Some(BootAggregateText::Log), ..ImaText::default() };
    ima.exclude.insert("/tmp/**".into());
    ima.any_path = set(&[12], 32);
    ima.files.insert("/usr/bin/odd \"name\"\n\u{1}\\".into(), set(&[1, 2, 3], 32));
    ima.files.insert("boot_aggregate".into(), set(&[4], 20));
    ima.keyrings.insert(".ima".into(), set(&[5], 32));
    ima.buffers.insert("dm_table_load".into(), None);
    ima.buffers.insert("kexec-cmdline".into(), Some(set(&[6], 32)));
    text.ima = Some(ima);
    text
}

fn tree(text: &str) -> serde_json::Value {
    if text.starts_with('{') { serde_json::from_str(text).unwrap() } else { toml::from_str(text).unwrap() }
}

#[test]
fn toml_and_json_say_the_same() {
    let text = full();
    assert_eq!(tree(&text.to_toml()), tree(&text.to_json()));
    let value = tree(&text.to_json());
    assert_eq!(value["accept"], serde_json::json!(["no-firmware-measurements", "sha1"]));
    assert_eq!(value["boot"]["keys"]["dbx"]["require"][1], "07".repeat(32));
    assert_eq!(value["boot"]["chain"][0]["images"][0], "09".repeat(32));
    assert_eq!(value["ima"]["files"]["/usr/bin/odd \"name\"\n\u{1}\\"][2], "03".repeat(32));
    assert_eq!(value["ima"]["buffers"]["dm_table_load"], serde_json::json!(["any"]));
    assert_eq!(text.counts(), Counts { files: 2, digests: 7 });
}

#[test]
fn what_is_written_parses_as_a_policy() {
    for format in [Format::Toml, Format::Json] {
        let text = full().render(format);
        let policy = Policy::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(policy.name(), "edge \"1\"");
        assert_eq!(policy.release(), Some(ReleaseRule::PhasePcr(13)));
        assert!(policy.boot().is_some() && policy.ima().is_some());
    }
}

#[test]
fn the_same_content_is_the_same_bytes_and_long_lists_break() {
    assert_eq!(full().to_toml(), full().to_toml());
    assert!(full().to_toml().starts_with("# a b\nversion = 1\n"));
    assert!(full().to_toml().lines().all(|line| line.len() <= 200));
}

#[test]
fn an_empty_ima_section_is_still_a_section() {
    let text = PolicyText { name: "x".into(), ima: Some(ImaText::default()), ..PolicyText::default() };
    assert!(tree(&text.to_toml())["ima"].is_object());
    assert!(tree(&text.to_json())["ima"].is_object());
}

proptest! {
    #[test]
    fn no_path_or_name_breaks_the_text(path in any::<String>(), name in any::<String>()) {
        let mut ima = ImaText::default();
        ima.files.insert(path.clone(), set(&[1], 32));
        ima.exclude.insert(name.clone());
        let text = PolicyText { name, header: vec![path.clone()], ima: Some(ima), ..PolicyText::default() };
        let value = tree(&text.to_toml());
        prop_assert_eq!(&value, &tree(&text.to_json()));
        prop_assert_eq!(&value["ima"]["files"][&path][0], &"01".repeat(32));
    }
}
