use super::*;

fn table(json: &str) -> Result<DigestTable, String> {
    serde_json::from_str::<RawTable<false>>(json).map(|raw| raw.0).map_err(|error| error.to_string())
}

fn buffers(json: &str) -> Result<DigestTable, String> {
    serde_json::from_str::<RawTable<true>>(json).map(|raw| raw.0).map_err(|error| error.to_string())
}

fn digest(text: &str) -> Digest {
    HashAlg::Sha256.digest(&[text.as_bytes()])
}

#[test]
fn a_table_finds_what_it_lists_and_nothing_else() {
    let (one, two) = (digest("1"), HashAlg::Sha1.digest(&[b"2"]));
    let found =
        table(&format!(r#"{{"/a": ["sha256:{one}", "{two}"], "/b\u00e9": ["{}"]}}"#, one.to_string().to_uppercase()));
    let found = found.unwrap();
    assert_eq!((found.len(), found.digests()), (2, 3));
    let listed = found.get(b"/a").unwrap();
    assert!(listed.contains(HashAlg::Sha256, &one) && listed.contains(HashAlg::Sha1, &two) && !listed.is_any());
    assert!(!listed.contains(HashAlg::Sha256, &digest("2")) && !listed.contains(HashAlg::Sha512, &one));
    assert!(!listed.contains(HashAlg::Sha256, &[]));
    assert_eq!(listed.iter().collect::<Vec<_>>(), [(HashAlg::Sha256, &one[..]), (HashAlg::Sha1, &two[..])]);
    assert!(found.get("/bé".as_bytes()).is_some());
    for path in ["", "/", "/a\0", "/A", "/aa", "/c"] {
        assert!(found.get(path.as_bytes()).is_none(), "{path}");
    }
    assert_eq!(found.iter().map(|(path, _)| path.to_vec()).collect::<Vec<_>>(), [b"/a".to_vec(), "/bé".into()]);
    assert!(table("{}").unwrap().get(b"/a").is_none());
}

#[test]
fn what_is_no_table_of_digests_is_refused_by_name() {
    let good = digest("1");
    for (json, expected) in [
        (r#"{"/a": []}"#.to_owned(), "`/a`: at least one digest is needed"),
        (
            format!(r#"{{"/a": ["{good}", "{}"]}}"#, &good.to_string()[1..]),
            "`/a`: value 2 is not 40, 64, 96 or 128 hex",
        ),
        (format!(r#"{{"/a": ["sha1:{good}"]}}"#), "`/a`: value 1 is not"),
        (format!(r#"{{"/a": ["md5:{good}"]}}"#), "`/a`: value 1 is not"),
        (r#"{"/a": ["any"]}"#.to_owned(), "`/a`: value 1 is not"),
        (format!(r#"{{"/a": ["{good}"], "/b": ["{good}"], "/a": ["{good}"]}}"#), "`/a` is given twice"),
        (format!(r#"{{"": ["{good}"]}}"#), "`` is longer than 4096 bytes, or empty"),
        (format!(r#"{{"/{}": ["{good}"]}}"#, "a".repeat(MAX_PATH_LEN)), "…` is longer than 4096 bytes, or empty"),
        (format!(r#"{{"/a\u0000": ["{good}"]}}"#), "holds a zero byte"),
        (r#"{"/a": "x"}"#.to_owned(), "expected a list of digests"),
        (r#"{"/a": [1]}"#.to_owned(), "expected a digest"),
    ] {
        let error = table(&json).unwrap_err();
        assert!(error.contains(expected), "{json}: {error}");
    }
    assert!(buffers(r#"{"x": ["any"]}"#).unwrap().get(b"x").unwrap().contains(HashAlg::Sha1, &[0; 20]));
    for json in [format!(r#"{{"x": ["any", "{good}"]}}"#), format!(r#"{{"x": ["{good}", "any"]}}"#)] {
        assert!(buffers(&json).unwrap_err().contains("\"any\" stands alone"));
    }
}

#[test]
fn a_set_holds_digests_whatever_their_length() {
    let (one, two) = (digest("1"), HashAlg::Sha512.digest(&[b"2"]));
    let set = serde_json::from_str::<RawSet>(&format!(r#"["{one}", "sha512:{two}"]"#)).unwrap().0;
    assert!(set.contains(HashAlg::Sha256, &one) && set.contains(HashAlg::Sha512, &two) && set.len() == 2);
    assert!(
        !set.contains(HashAlg::Sha512, &one)
            && !set.contains(HashAlg::Sha1, &[])
            && !set.contains(HashAlg::Sha1, &[0; 99])
    );
    let twice = serde_json::from_str::<RawSet>(&format!(r#"["{one}", "{one}"]"#)).unwrap_err().to_string();
    assert!(twice.contains(&format!("`{one}` is given twice")), "{twice}");
    let bad = serde_json::from_str::<RawSet>(&format!(r#"["{one}", "x"]"#)).unwrap_err().to_string();
    assert!(bad.contains("value 2 is not"), "{bad}");
}

#[test]
fn a_large_table_finds_every_one_of_its_paths() {
    let mut json = String::from("{");
    for number in 0..20_000 {
        json.push_str(&format!("\"/usr/lib/{number}\": [\"{}\"],", digest(&number.to_string())));
    }
    json.pop();
    json.push('}');
    let found = table(&json).unwrap();
    for number in 0..20_000 {
        let text = number.to_string();
        assert!(found.get(format!("/usr/lib/{text}").as_bytes()).unwrap().contains(HashAlg::Sha256, &digest(&text)));
        assert!(found.get(format!("/usr/lib64/{text}").as_bytes()).is_none());
    }
    assert!(found.heap_len() < 20_000 * 90);
}
