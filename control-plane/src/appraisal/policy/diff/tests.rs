use super::*;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn text(rest: &str) -> String {
    format!("version = 1\nname = \"p\"\n{rest}\n")
}

fn changes(from: &str, to: &str) -> Vec<Change> {
    diff(from.as_bytes(), to.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn change(section: &str, item: &str, kind: Kind, removed: &[&str], added: &[&str]) -> Change {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    Change { section: section.into(), item: item.into(), kind, removed: owned(removed), added: owned(added) }
}

#[test]
fn spelling_is_no_difference() {
    let toml = text(&format!("[pcrs.sha256]\n7 = [\"{A}\", \"{B}\"]\n[release]\nphase_pcr = 13\nuncapped = false"));
    let json = format!(
        "{{\"name\":\"p\",\"release\":{{\"phase_pcr\":13}},\"version\":1,\"accept\":[],\
         \"pcrs\":{{\"sha256\":{{\"7\":[\"{}\",\"{A}\"]}}}}}}",
        B.to_uppercase()
    );
    assert_eq!(changes(&toml, &json), []);
    let key = p256::ecdsa::SigningKey::from_slice(&[1; 32]).unwrap();
    let signed = String::from_utf8(dsse::sign(toml.as_bytes(), PAYLOAD_TYPE, &key)).unwrap();
    assert_eq!(changes(&signed, &json), []);
}

#[test]
fn differences_are_told_by_section_and_item() {
    let from = text(&format!("[pcrs.sha256]\n0 = [\"{A}\"]\n7 = [\"{A}\"]\n8 = [\"{A}\"]"));
    let to = text(&format!(
        "accept = [\"hardware-unproven\"]\n[pcrs.sha256]\n0 = [\"{A}\"]\n7 = [\"{B}\"]\n9 = [\"{A}\"]\n[release]\nphase_pcr = 13"
    ));
    assert_eq!(
        changes(&from, &to),
        [
            change("pcrs.sha256", "7", Kind::Changed, &[A], &[B]),
            change("pcrs.sha256", "8", Kind::Removed, &[A], &[]),
            change("pcrs.sha256", "9", Kind::Added, &[], &[A]),
            change("policy", "accept", Kind::Added, &[], &["hardware-unproven"]),
            change("release", "phase_pcr", Kind::Added, &[], &["13"]),
        ]
    );
}

#[test]
fn rules_are_told_apart_by_their_names_and_images_by_their_order() {
    let rule = |value: &str| serde_json::from_str::<Value>(value).unwrap();
    let mut before = Statements::new();
    let list = [
        rule(&format!("{{\"name\":\"x\",\"pcr\":4,\"digests\":[\"{A}\"],\"required\":false}}")),
        rule(&format!("{{\"name\":\"x\",\"pcr\":4,\"digests\":[\"sha256:{B}\"]}}")),
        rule(&format!("{{\"name\":\"c\",\"images\":[\"{B}\",\"{A}\"]}}")),
    ];
    rules(&mut before, "boot.event", &list);
    let said = |item: &str| before.get(&("boot.event".to_owned(), item.to_owned())).unwrap().clone();
    assert_eq!(said("x (PCR 4)"), BTreeSet::from([format!("digests: {A}")]));
    assert_eq!(said("x (PCR 4) #2"), BTreeSet::from([format!("digests: {B}")]));
    assert_eq!(said("c"), BTreeSet::from([format!("images: {B} -> {A}")]));
}

#[test]
fn an_empty_list_matters_only_where_it_allows_nothing() {
    let mut statements = Statements::new();
    say(&mut statements, "boot.keys.db", "only", &Value::Array(vec![]));
    say(&mut statements, "boot.keys.db", "require", &Value::Array(vec![]));
    assert_eq!(statements.into_keys().collect::<Vec<_>>(), [("boot.keys.db".to_owned(), "only".to_owned())]);
}

#[test]
fn what_is_no_policy_is_not_compared() {
    let good = text("[release]\nphase_pcr = 8");
    assert_eq!(diff(b"version = 2\nname = \"p\"", good.as_bytes()).unwrap_err(), PolicyError::Version(2));
    assert_eq!(diff(good.as_bytes(), b"\xff").unwrap_err(), PolicyError::NotText);
}
