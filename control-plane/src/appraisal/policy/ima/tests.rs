use super::*;
use crate::appraisal::{Policy, ima_signature::tests::Signer};

fn parse(section: &str) -> Result<Policy, PolicyError> {
    Policy::parse(format!("version = 1\nname = \"t\"\n[ima]\n{section}").as_bytes())
}

#[test]
fn an_empty_section_allows_nothing() {
    let policy = parse("").unwrap();
    let rules = policy.ima().unwrap();
    assert!(rules.files().is_empty() && rules.keyrings().is_empty() && rules.buffers().is_empty());
    assert!(rules.wants_boot_aggregate_of_log() && !rules.learns_keys());
    assert!(!rules.tolerates_violation(Some(b"/a")) && !rules.excludes(b"/a"));
}

#[test]
fn toml_and_json_say_the_same() {
    let digest = "ab".repeat(32);
    let toml = parse(&format!(
        "exclude = [\"/tmp/**\"]\nviolations = \"report\"\nboot_aggregate = \"any\"\nlearn_keys = true\nany_path = \
         [\"{digest}\"]\n[ima.files]\n\"/a\" = [\"sha256:{digest}\"]\n[ima.buffers]\nx = [\"any\"]\n[ima.keyrings]\n\
         \".ima\" = [\"{digest}\"]"
    ));
    let json = format!(
        r#"{{"version": 1, "name": "t", "ima": {{"exclude": ["/tmp/**"], "violations": "report", "boot_aggregate": "any",
            "learn_keys": true, "any_path": ["{digest}"], "files": {{"/a": ["{digest}"]}}, "buffers": {{"x": ["any"]}},
            "keyrings": {{".ima": ["{digest}"]}}}}}}"#
    );
    assert_eq!(toml.unwrap().ima(), Policy::parse(json.as_bytes()).unwrap().ima());
}

#[test]
fn a_section_that_cannot_mean_anything_is_refused_by_its_place() {
    let pem = Signer::new(1).pem();
    for (section, expected) in [
        ("exclude = [\"tmp\"]", "`ima.exclude`: `tmp`: a glob of a path begins with `/`"),
        ("exclude = [\"/tmp**\"]", "`ima.exclude`: `/tmp**`: `**` has to be a whole component of the path"),
        ("violation_paths = [\"/a/../b\"]", "`ima.violation_paths`: `/a/../b`: the path of a glob has an empty"),
        ("keys = [\"x\"]", "`ima.keys`: key 1: no PUBLIC KEY and no CERTIFICATE in the PEM"),
    ] {
        let error = parse(section).unwrap_err();
        assert!(matches!(error, PolicyError::Rule { .. }), "{section}: {error:?}");
        assert!(error.to_string().starts_with(expected), "{section}: {error}");
    }
    for (section, expected) in [
        ("violations = \"ignore\"", "unknown variant `ignore`"),
        ("boot_aggregate = \"none\"", "unknown variant `none`"),
        ("excluded = []", "unknown field `excluded`"),
        ("[ima.files]\n\"/a\" = [\"12\"]", "`/a`: value 1 is not 40, 64, 96 or 128 hex digits"),
        ("[ima.files]\n\"/a\" = []", "`/a`: at least one digest is needed"),
        ("[ima.keyrings]\n\".ima\" = [\"any\"]", "`.ima`: value 1 is not"),
    ] {
        let error = parse(section).unwrap_err();
        assert!(matches!(&error, PolicyError::Syntax(text) if text.contains(expected)), "{section}: {error}");
    }
    let digest = "ab".repeat(32);
    let both = format!("[ima.keyrings]\n\".ima\" = [\"{digest}\"]\n[ima.buffers]\n\".ima\" = [\"any\"]");
    assert_eq!(
        parse(&both).unwrap_err(),
        PolicyError::Rule { place: "ima.buffers".into(), problem: "`.ima` is listed under ima.keyrings too".into() }
    );
    let keys = vec![format!("\"\"\"{pem}\"\"\""); MAX_KEYS + 1].join(", ");
    let error = parse(&format!("keys = [{keys}]")).unwrap_err();
    assert_eq!(error, PolicyError::Rule { place: "ima.keys".into(), problem: "more than 64 keys".into() });
}
