//! docs/openapi.json is what the handlers say.

#[test]
fn the_openapi_document_in_docs_is_the_apis() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    let made = format!("{}\n", control_plane::http::openapi().to_pretty_json().unwrap());
    assert!(
        stored == made,
        "docs/openapi.json is not what the handlers say now; look at the difference and keep it with:\n\
         cargo run -p control-plane --bin trefoil -- openapi > docs/openapi.json"
    );
}

#[test]
fn it_is_openapi_3_1_and_every_operation_says_what_it_is() {
    let document = serde_json::to_value(control_plane::http::openapi()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(operation["summary"].is_string(), "{method} {path}");
            assert!(operation["operationId"].is_string(), "{method} {path}");
        }
    }
}
