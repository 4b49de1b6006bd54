//! The API from outside: real roles over SQLite stores in a scratch directory, requests through the router.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::crypto::container::{File, write_container};
use protocol::crypto::role_key::seal_join_key;
use protocol::crypto::seal::{SealKeys, SealOptions, Sealing, seal};
use protocol::crypto::{JoinToken, TenantSigningKey};
use protocol::id::{NodeId, Role, Subject};
use rand_core::OsRng;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{openapi, router};
use crate::app::App;
use crate::appraisal;
use crate::appraisal::policy::{PAYLOAD_TYPE, dsse};
use crate::config::Config;
use crate::init;
use crate::operator::Operator;
use crate::server::{self, ServeOptions};
use crate::token::ApiToken;

const POLICY: &str = "version = 1\nname = \"edge\"\n[pcrs.sha256]\n7 = [\"0000000000000000000000000000000000000000000000000000000000000001\"]\n[release]\nphase_pcr = 13\n";

struct Api {
    _dir: tempfile::TempDir,
    app: Arc<App>,
    router: Router,
    operator: Operator,
    admin: ApiToken,
}

impl Api {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(settings: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let names = vec!["localhost".into()];
        init::run(&init::Options { data_dir: at("data"), operator_dir: at("operator"), names }).unwrap();
        let mut config = Config::load(&at("data")).unwrap();
        settings(&mut config);
        let app = server::open(&config, &ServeOptions::default()).await.unwrap();
        init::import_first_token(Path::new(&config.data_dir), &**app.tenant.store()).await.unwrap();
        let operator = Operator::load(&at("operator")).unwrap();
        let admin = operator.token().unwrap();
        Self { _dir: dir, router: router(app.clone()), app, operator, admin }
    }

    async fn send(&self, token: Option<&str>, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Some(self.admin.expose()), Method::GET, path, Vec::new()).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Some(self.admin.expose()), Method::POST, path, serde_json::to_vec(&body).unwrap()).await
    }

    async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.send(Some(self.admin.expose()), Method::DELETE, path, Vec::new()).await
    }

    fn signing(&self) -> TenantSigningKey {
        self.operator.signing_key().unwrap()
    }

    fn node(&self, name: &str, id: NodeId) -> Value {
        let key = hex::encode(self.signing().public().as_sec1());
        json!({"name": name, "node_id": id.to_string(), "pins": {"tenant_keys": [key], "autorun": false}})
    }

    fn seal(&self, subject: Subject, signing: &TenantSigningKey, len: usize) -> (Sealing, Vec<Vec<u8>>) {
        let file = vec![7; len];
        let plaintext = write_container(&[File { path: "a", executable: false, bytes: &file }]).unwrap();
        let options = SealOptions { subject, payload_id: [1; 16], version: 1, autorun: false, not_after: None };
        let roles = self.operator.roles();
        let keys = SealKeys { signing, tenant: &roles.tenant, verifier: &roles.verifier };
        let mut chunks = Vec::new();
        let sealing = seal(&options, &plaintext, &keys, &mut OsRng, |chunk| {
            chunks.push(chunk.to_vec());
            Ok::<_, Infallible>(())
        });
        (sealing.unwrap(), chunks)
    }

    async fn upload(&self, sealing: &Sealing, chunks: &[Vec<u8>]) -> (StatusCode, Value) {
        let id = sealing.sealing_id;
        let (status, body) = self.post("/api/v1/sealings", begun(sealing)).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        assert_eq!(body["chunk_count"], chunks.len());
        for (index, chunk) in chunks.iter().enumerate() {
            let path = format!("/api/v1/sealings/{id}/chunks/{index}");
            let (status, body) = self.send(Some(self.admin.expose()), Method::PUT, &path, chunk.clone()).await;
            assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
        }
        self.post(&format!("/api/v1/sealings/{id}/finish"), Value::Null).await
    }
}

fn begun(sealing: &Sealing) -> Value {
    json!({
        "manifest": hex::encode(sealing.manifest),
        "signature": hex::encode(sealing.signature),
        "u_sealed": hex::encode(sealing.u_sealed.to_bytes()),
        "v_sealed": hex::encode(sealing.v_sealed.to_bytes()),
    })
}

#[tokio::test]
async fn without_a_known_token_only_health_answers() {
    let api = Api::start().await;
    let (status, body) = api.send(None, Method::GET, "/healthz", Vec::new()).await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("ok")));
    let unknown = ApiToken::generate(&mut OsRng);
    let document = serde_json::to_value(openapi()).unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        if path == "/healthz" {
            continue;
        }
        let path = path.replace(['{', '}'], "");
        for method in methods.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let method: Method = method.to_uppercase().parse().unwrap();
            for token in [None, Some(unknown.expose()), Some("nonsense")] {
                let (status, body) = api.send(token, method.clone(), &path, Vec::new()).await;
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
                assert_eq!(body["type"], "unauthorized");
            }
        }
    }
}

#[tokio::test]
async fn a_token_reaches_as_far_as_its_role() {
    let api = Api::start().await;
    let mut tokens = Vec::new();
    for role in ["viewer", "operator"] {
        let (status, body) = api.post("/api/v1/tokens", json!({"role": role})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        tokens.push(body["token"].as_str().unwrap().to_owned());
    }
    let (viewer, operator) = (Some(tokens[0].as_str()), Some(tokens[1].as_str()));
    assert_eq!(api.send(viewer, Method::GET, "/api/v1/nodes", Vec::new()).await.0, StatusCode::OK);
    let (status, body) = api.send(viewer, Method::POST, "/api/v1/policies", POLICY.into()).await;
    assert_eq!((status, &body["type"]), (StatusCode::FORBIDDEN, &json!("forbidden")));
    assert_eq!(api.send(operator, Method::POST, "/api/v1/policies", POLICY.into()).await.0, StatusCode::CREATED);
    assert_eq!(api.send(operator, Method::GET, "/api/v1/tokens", Vec::new()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(api.send(viewer, Method::DELETE, "/api/v1/nodes/x", Vec::new()).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn tokens_are_listed_without_themselves_and_the_last_admin_stays() {
    let api = Api::start().await;
    let (_, made) = api.post("/api/v1/tokens", json!({"role": "viewer", "expires_in_ms": 60_000})).await;
    let (_, listed) = api.get("/api/v1/tokens").await;
    assert_eq!(listed["tokens"].as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains(made["token"].as_str().unwrap()));

    let (status, body) = api.delete(&format!("/api/v1/tokens/{}", api.admin.label())).await;
    assert_eq!((status, &body["type"]), (StatusCode::CONFLICT, &json!("last_admin")));
    let viewer = made["label"].as_str().unwrap();
    assert_eq!(api.delete(&format!("/api/v1/tokens/{viewer}")).await.0, StatusCode::NO_CONTENT);
    assert_eq!(api.delete(&format!("/api/v1/tokens/{viewer}")).await.1["type"], "unknown_token");
    let token = made["token"].as_str();
    assert_eq!(api.send(token, Method::GET, "/api/v1/nodes", Vec::new()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(
        api.post("/api/v1/tokens", json!({"role": "viewer", "expires_in_ms": 0})).await.1["type"],
        "bad_request"
    );
}

#[tokio::test]
async fn a_node_is_added_found_changed_stopped_and_removed() {
    let api = Api::start().await;
    let id = NodeId([0xab; 32]);
    let (status, node) = api.post("/api/v1/nodes", api.node("edge-1", id)).await;
    assert_eq!(status, StatusCode::CREATED, "{node}");
    assert_eq!(
        (&node["phase"], &node["trust"], &node["interval_ms"]),
        (&json!("expected"), &json!("none"), &json!(10_000))
    );
    for wanted in ["edge-1", &id.to_string(), "abababab", "ABABABAB"] {
        assert_eq!(api.get(&format!("/api/v1/nodes/{wanted}")).await.1["name"], "edge-1", "{wanted}");
    }
    for wanted in ["edge", "abababa", "abababac", "%2e%2e", &"a".repeat(300)] {
        assert_eq!(api.get(&format!("/api/v1/nodes/{wanted}")).await.1["type"], "unknown_node", "{wanted}");
    }
    let patch = |body: Value| {
        api.send(Some(api.admin.expose()), Method::PATCH, "/api/v1/nodes/edge-1", body.to_string().into_bytes())
    };
    let (status, node) = patch(json!({"interval_ms": 2_000})).await;
    assert_eq!((status, &node["interval_ms"]), (StatusCode::OK, &json!(2_000)), "{node}");
    assert_eq!(patch(json!({"interval_ms": 1})).await.1["type"], "bad_request");
    assert_eq!(patch(json!({"policy": "none-such"})).await.1["type"], "unknown_policy");
    assert_eq!(patch(json!({"nonsense": 1})).await.0, StatusCode::UNPROCESSABLE_ENTITY);

    assert_eq!(api.post("/api/v1/nodes/edge-1/stop", Value::Null).await.1["phase"], "stopped");
    assert_eq!(api.post("/api/v1/nodes/edge-1/resume", Value::Null).await.1["phase"], "expected");
    assert_eq!(api.get("/api/v1/nodes/edge-1/ek").await.1["type"], "not_bound");
    assert_eq!(api.get("/api/v1/nodes/edge-1/evidence").await.1["type"], "no_evidence");
    for history in ["verdicts", "releases"] {
        assert_eq!(api.get(&format!("/api/v1/nodes/edge-1/{history}")).await.1[history], json!([]));
    }
    let events = api.get("/api/v1/nodes/edge-1/events").await.1;
    assert!(events["events"].as_array().unwrap().iter().any(|event| event["kind"] == "added"), "{events}");

    assert_eq!(api.delete("/api/v1/nodes/edge-1").await.0, StatusCode::NO_CONTENT);
    assert_eq!(api.get("/api/v1/nodes/edge-1").await.0, StatusCode::NOT_FOUND);
    let events = api.get("/api/v1/events?limit=500").await.1;
    assert!(events["events"].as_array().unwrap().iter().any(|event| event["name"] == "edge-1"), "{events}");
}

#[tokio::test]
async fn a_second_node_of_a_name_or_id_is_refused_and_the_first_stays() {
    let api = Api::start().await;
    let (a, b) = (NodeId([1; 32]), NodeId([2; 32]));
    assert_eq!(api.post("/api/v1/nodes", api.node("edge-1", a)).await.0, StatusCode::CREATED);
    assert_eq!(api.post("/api/v1/nodes", api.node("edge-1", b)).await.1["type"], "name_taken");
    assert_eq!(api.post("/api/v1/nodes", api.node("edge-2", a)).await.1["type"], "node_id_taken");
    assert_eq!(api.get("/api/v1/nodes/edge-1").await.1["node_id"], a.to_string());
    assert_eq!(api.get("/api/v1/nodes").await.1["nodes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_ambiguous_prefix_names_the_candidates() {
    let api = Api::start().await;
    let mut other = [0xcd; 32];
    other[31] = 0;
    for (name, id) in [("edge-1", [0xcd; 32]), ("edge-2", other)] {
        assert_eq!(api.post("/api/v1/nodes", api.node(name, NodeId(id))).await.0, StatusCode::CREATED);
    }
    let (status, body) = api.get("/api/v1/nodes/cdcdcdcd").await;
    assert_eq!((status, &body["type"]), (StatusCode::CONFLICT, &json!("ambiguous")));
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains("edge-1") && detail.contains("edge-2"), "{detail}");
}

#[tokio::test]
async fn a_node_that_cannot_be_is_refused_by_field() {
    let api = Api::start().await;
    let good = api.node("edge-1", NodeId([1; 32]));
    let with = |field: &str, value: Value| {
        let mut node = good.clone();
        node[field] = value;
        node
    };
    let key = &good["pins"]["tenant_keys"][0];
    for (node, named) in [
        (with("name", json!("Edge")), "name"),
        (with("name", json!("a".repeat(64))), "name"),
        (with("node_id", json!("ab")), "node_id"),
        (with("node_id", Value::Null), "node_id"),
        (with("interval_ms", json!(0)), "interval_ms"),
        (with("pins", json!({"tenant_keys": [], "autorun": false})), "tenant_keys"),
        (with("pins", json!({"tenant_keys": [key, key, key, key, key], "autorun": false})), "tenant_keys"),
        (with("pins", json!({"tenant_keys": ["04".repeat(65)], "autorun": false})), "tenant_keys"),
        (with("sealing_id", json!("ab")), "sealing_id"),
    ] {
        let (status, body) = api.post("/api/v1/nodes", node).await;
        assert_eq!((status, &body["type"]), (StatusCode::BAD_REQUEST, &json!("bad_request")), "{named}: {body}");
        assert!(body["detail"].as_str().unwrap().contains(named), "{named}: {body}");
    }
    assert_eq!(api.get("/api/v1/nodes").await.1["nodes"], json!([]));
}

#[tokio::test]
async fn where_a_role_wants_signatures_nothing_else_is_stored_or_set() {
    let api = Api::start_with(|config| {
        let (own, key) = (config.data_dir.join("policy.pem"), policy_key(1));
        std::fs::write(&own, crate::pki::p256_spki_pem(&key.1)).unwrap();
        config.verifier.policy_keys = vec![own];
    })
    .await;
    let admin = Some(api.admin.expose());
    let refused = async |body: Vec<u8>| {
        let (status, problem) = api.send(admin, Method::POST, "/api/v1/policies", body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        problem["type"].as_str().unwrap().to_owned()
    };
    let sign = |byte| dsse::sign(POLICY.as_bytes(), PAYLOAD_TYPE, &policy_key(byte).0);
    assert_eq!(refused(POLICY.into()).await, "policy_unsigned");
    assert_eq!(refused(sign(2)).await, "policy_signature_bad");
    let (status, signed) = api.send(admin, Method::POST, "/api/v1/policies", sign(1)).await;
    assert_eq!((status, &signed["name"]), (StatusCode::CREATED, &json!("edge")), "{signed}");

    // One that was stored before signatures were wanted is set for no node that the verifier would judge by it.
    let unsigned = api.app.put_policy(&appraisal::Policy::parse(POLICY.as_bytes()).unwrap(), POLICY.as_bytes()).await;
    let (unsigned, signed) = (hex::encode(unsigned.unwrap().0), signed["id"].as_str().unwrap());
    let mut node = api.node("edge-1", NodeId([5; 32]));
    node["policy"] = json!(unsigned);
    assert_eq!(api.post("/api/v1/nodes", node.clone()).await.1["type"], "policy_unsigned");
    node["verifier_policy"] = json!(signed);
    let (status, added) = api.post("/api/v1/nodes", node).await;
    assert_eq!(status, StatusCode::CREATED, "{added}");
    assert_eq!((&added["policy"], &added["verifier_policy"]), (&json!(unsigned), &json!(signed)));
    let patch = async |body: Value| {
        api.send(admin, Method::PATCH, "/api/v1/nodes/edge-1", serde_json::to_vec(&body).unwrap()).await
    };
    assert_eq!(patch(json!({"verifier_policy": unsigned})).await.1["type"], "policy_unsigned");
    // Back to one for both: the tenant's would not do for the verifier.
    assert_eq!(patch(json!({"policy": unsigned, "verifier_policy": ""})).await.1["type"], "policy_unsigned");
    let (status, changed) = patch(json!({"policy": signed, "verifier_policy": ""})).await;
    assert_eq!(status, StatusCode::OK, "{changed}");
    assert_eq!((&changed["policy"], changed.get("verifier_policy")), (&json!(signed), None));
}

#[tokio::test]
async fn verifier_and_tenant_may_judge_by_different_policies() {
    let api = Api::start().await;
    let admin = Some(api.admin.expose());
    let (_, first) = api.send(admin, Method::POST, "/api/v1/policies", POLICY.into()).await;
    let second = POLICY.replace("edge", "edge-verifier");
    let (_, second) = api.send(admin, Method::POST, "/api/v1/policies", second.into()).await;
    let (id, mut node) = (NodeId([5; 32]), api.node("edge-1", NodeId([5; 32])));
    node["policy"] = first["id"].clone();
    api.post("/api/v1/nodes", node).await;
    let verifiers =
        async || api.app.verifier.store().node(id).await.unwrap().unwrap().policy.map(|id| hex::encode(id.0));
    assert_eq!(verifiers().await.as_deref(), first["id"].as_str());
    let patch = async |body: Value| {
        api.send(admin, Method::PATCH, "/api/v1/nodes/edge-1", serde_json::to_vec(&body).unwrap()).await
    };
    let (status, changed) = patch(json!({"verifier_policy": "edge-verifier"})).await;
    assert_eq!((status, &changed["verifier_policy"]), (StatusCode::OK, &second["id"]), "{changed}");
    assert_eq!(changed["policy"], first["id"]);
    assert_eq!(verifiers().await.as_deref(), second["id"].as_str());
    assert_eq!(
        api.app.tenant.store().node_by_id(id).await.unwrap().unwrap().policy.map(|id| hex::encode(id.0)).as_deref(),
        first["id"].as_str()
    );
    patch(json!({"verifier_policy": ""})).await;
    assert_eq!(verifiers().await.as_deref(), first["id"].as_str());
}

fn policy_key(byte: u8) -> (p256::ecdsa::SigningKey, [u8; 65]) {
    let key = p256::ecdsa::SigningKey::from_slice(&[byte; 32]).unwrap();
    let point = key.verifying_key().to_encoded_point(false).as_bytes().try_into().unwrap();
    (key, point)
}

#[tokio::test]
async fn a_policy_is_stored_as_it_came_and_found_by_id_and_name() {
    let api = Api::start().await;
    let admin = Some(api.admin.expose());
    let (status, policy) = api.send(admin, Method::POST, "/api/v1/policies", POLICY.into()).await;
    assert_eq!(status, StatusCode::CREATED, "{policy}");
    let id = policy["id"].as_str().unwrap();
    for wanted in [id, &id[..8], "edge"] {
        let (status, found) = api.get(&format!("/api/v1/policies/{wanted}")).await;
        assert_eq!((status, &found["body"]), (StatusCode::OK, &json!(POLICY)), "{wanted}");
    }
    assert_eq!(api.send(admin, Method::POST, "/api/v1/policies", POLICY.into()).await.1["id"], id);
    assert_eq!(api.get("/api/v1/policies").await.1["policies"].as_array().unwrap().len(), 1);

    let (status, body) = api
        .send(
            admin,
            Method::POST,
            "/api/v1/policies",
            b"version = 1\nname = \"x\"\n[pcrs.sha256]\n16 = [\"00\"]".to_vec(),
        )
        .await;
    assert_eq!((status, &body["type"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("policy_invalid")));
    let (status, body) = api.send(admin, Method::POST, "/api/v1/policies", vec![b' '; (32 << 20) + 1]).await;
    assert_eq!((status, &body["type"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("too_large")));
}

#[tokio::test]
async fn a_sealing_is_used_only_complete_and_for_its_own_node() {
    let api = Api::start().await;
    let (mine, other) = (NodeId([1; 32]), NodeId([2; 32]));
    let (sealing, chunks) = api.seal(Subject::Node(mine), &api.signing(), 150_000);
    assert_eq!(chunks.len(), 3);
    let id = sealing.sealing_id.to_string();
    let with = |node: NodeId| {
        let mut body = api.node("edge-1", node);
        body["sealing_id"] = json!(id);
        body
    };
    assert_eq!(api.post("/api/v1/nodes", with(mine)).await.1["type"], "unknown_sealing");
    assert_eq!(api.post("/api/v1/sealings", begun(&sealing)).await.0, StatusCode::CREATED);
    assert_eq!(api.post("/api/v1/nodes", with(mine)).await.1["type"], "sealing_incomplete");
    assert_eq!(api.post(&format!("/api/v1/sealings/{id}/finish"), Value::Null).await.1["type"], "sealing_incomplete");

    // An upload that broke off is taken up again.
    let (status, body) = api.upload(&sealing, &chunks).await;
    assert_eq!((status, &body["complete"]), (StatusCode::OK, &json!(true)), "{body}");
    assert_eq!(api.post("/api/v1/nodes", with(other)).await.1["type"], "sealing_for_another");
    let (status, node) = api.post("/api/v1/nodes", with(mine)).await;
    assert_eq!((status, &node["sealing_id"]), (StatusCode::CREATED, &json!(id)), "{node}");

    // What is shown of a sealing holds no share.
    let (_, shown) = api.get(&format!("/api/v1/sealings/{id}")).await;
    for share in [&sealing.u_sealed, &sealing.v_sealed] {
        assert!(!shown.to_string().contains(&hex::encode(share.to_bytes())));
    }
}

#[tokio::test]
async fn a_sealing_of_another_signer_is_refused() {
    let api = Api::start().await;
    let mine = NodeId([1; 32]);
    let (sealing, chunks) = api.seal(Subject::Node(mine), &TenantSigningKey::generate(&mut OsRng), 10);
    assert_eq!(api.upload(&sealing, &chunks).await.0, StatusCode::OK);
    let mut body = api.node("edge-1", mine);
    body["sealing_id"] = json!(sealing.sealing_id.to_string());
    let (status, body) = api.post("/api/v1/nodes", body).await;
    assert_eq!((status, &body["type"]), (StatusCode::CONFLICT, &json!("sealing_invalid")));
}

#[tokio::test]
async fn no_more_is_kept_of_a_payload_than_its_manifest_announces() {
    let api = Api::start().await;
    let (sealing, chunks) = api.seal(Subject::Node(NodeId([1; 32])), &api.signing(), 100);
    let id = sealing.sealing_id;
    assert_eq!(api.post("/api/v1/sealings", begun(&sealing)).await.0, StatusCode::CREATED);
    let put = |index: u32, bytes: Vec<u8>| {
        let path = format!("/api/v1/sealings/{id}/chunks/{index}");
        let (api, admin) = (&api, api.admin.expose());
        async move { api.send(Some(admin), Method::PUT, &path, bytes).await.0 }
    };
    assert_eq!(put(1, chunks[0].clone()).await, StatusCode::BAD_REQUEST);
    assert_eq!(put(u32::MAX, vec![1]).await, StatusCode::BAD_REQUEST);
    assert_eq!(put(0, vec![0; chunks[0].len() + 1]).await, StatusCode::BAD_REQUEST);
    assert_eq!(put(0, vec![0; 70_000]).await, StatusCode::PAYLOAD_TOO_LARGE);
    // Of the right length, but another ciphertext.
    assert_eq!(put(0, vec![0; chunks[0].len()]).await, StatusCode::NO_CONTENT);
    let finish = format!("/api/v1/sealings/{id}/finish");
    assert_eq!(api.post(&finish, Value::Null).await.1["type"], "sealing_incomplete");
    assert_eq!(put(0, chunks[0].clone()).await, StatusCode::NO_CONTENT);
    assert_eq!(api.post(&finish, Value::Null).await.0, StatusCode::OK);
    assert_eq!(put(0, chunks[0].clone()).await, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_manifest_or_share_that_is_none_is_refused() {
    let api = Api::start().await;
    let (sealing, _) = api.seal(Subject::Node(NodeId([1; 32])), &api.signing(), 100);
    for field in ["manifest", "u_sealed", "v_sealed", "signature"] {
        let mut body = begun(&sealing);
        body[field] = json!("00");
        let (status, answer) = api.post("/api/v1/sealings", body).await;
        assert!(status.is_client_error(), "{field}: {status}");
        assert!(answer["detail"].as_str().unwrap().contains(field), "{field}: {answer}");
    }
}

#[tokio::test]
async fn a_join_token_is_listed_and_revoked_with_both_roles() {
    let api = Api::start().await;
    let token = JoinToken::generate(&mut OsRng);
    let roles = api.operator.roles();
    let sealed = |public, role| {
        hex::encode(seal_join_key(public, role, token.id(), &token.key(role), &mut OsRng).unwrap().to_bytes())
    };
    let mut node = api.node("edge-1", NodeId([1; 32]));
    node["node_id"] = Value::Null;
    node["join"] = json!({
        "join_id": token.id().to_string(),
        "tenant_key": sealed(&roles.tenant, Role::Tenant),
        "registrar_key": sealed(&roles.registrar, Role::Registrar),
        "expires_in_ms": 60_000,
    });
    let (status, body) = api.post("/api/v1/nodes", node).await;
    assert_eq!((status, &body["phase"]), (StatusCode::CREATED, &json!("expected")), "{body}");
    let (_, joins) = api.get("/api/v1/joins").await;
    assert_eq!((&joins["joins"][0]["name"], &joins["joins"][0]["state"]), (&json!("edge-1"), &json!("open")));
    let path = format!("/api/v1/joins/{}", token.id());
    assert_eq!(api.delete(&path).await.0, StatusCode::NO_CONTENT);
    assert_eq!(api.get("/api/v1/joins").await.1["joins"][0]["state"], "revoked");
    let with_registrar = api.app.registrar.store().join(token.id()).await.unwrap();
    assert!(with_registrar.is_none_or(|join| join.revoked));
    assert_eq!(api.delete(&format!("/api/v1/joins/{}", "0".repeat(64))).await.1["type"], "unknown_join");
}

#[tokio::test]
async fn pages_hang_together() {
    let api = Api::start().await;
    for n in 0..5_u8 {
        let (status, body) = api.post("/api/v1/nodes", api.node(&format!("edge-{n}"), NodeId([n; 32]))).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = api.get(&format!("/api/v1/nodes?limit=2{after}")).await;
        names.extend(page["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(names, ["edge-0", "edge-1", "edge-2", "edge-3", "edge-4"]);
    for query in ["limit=0", "limit=501", "limit=x", "nonsense=1"] {
        assert_eq!(api.get(&format!("/api/v1/nodes?{query}")).await.1["type"], "bad_request", "{query}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_too() {
    let api = Api::start().await;
    let (status, body) = api.get("/api/v2/nodes").await;
    assert_eq!((status, &body["type"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    let (status, body) = api.send(Some(api.admin.expose()), Method::PUT, "/api/v1/nodes", Vec::new()).await;
    assert_eq!((status, &body["type"]), (StatusCode::METHOD_NOT_ALLOWED, &json!("method_not_allowed")));
    let (status, body) = api.send(Some(api.admin.expose()), Method::POST, "/api/v1/nodes", vec![b' '; 40_000]).await;
    assert_eq!((status, &body["type"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("too_large")));
}

#[tokio::test]
async fn the_first_token_is_taken_over_once() {
    let api = Api::start().await;
    let data_dir = api._dir.path().join("data");
    assert!(!data_dir.join(init::FIRST_TOKEN).exists());
    init::import_first_token(&data_dir, &**api.app.tenant.store()).await.unwrap();
    assert_eq!(api.get("/api/v1/tokens").await.1["tokens"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn evidence_is_given_with_its_logs_where_they_are_asked_for() {
    let api = Api::start().await;
    let id = NodeId([1; 32]);
    api.post("/api/v1/nodes", api.node("edge-1", id)).await;
    let path = "/api/v1/nodes/edge-1/evidence";
    assert_eq!(api.get(path).await.1["type"], "no_evidence");
    let (row, _, _) = crate::evidence::tests::sample(id);
    let list = crate::evidence::tests::sample_list();
    let store = api.app.verifier.store();
    store.put_evidence(&row).await.unwrap();
    store.put_ima_part(id, 0, 4, &list, (row.reset_count, row.restart_count)).await.unwrap();
    store.put_boot_log(row.boot_log.unwrap(), b"a boot log").await.unwrap();
    let (status, body) = api.get(path).await;
    assert_eq!((status, &body["logs"], &body["ima_entries"]), (StatusCode::OK, &Value::Null, &json!(4)), "{body}");
    assert_eq!(body["pcrs"]["sha256"]["7"], hex::encode(&row.pcrs[1].2));
    assert!(body["at_ms"].as_i64().is_some_and(|at_ms| at_ms > 0));
    let logs = api.get(&format!("{path}?logs=true")).await.1["logs"].clone();
    let decoded = |field: &str| STANDARD.decode(logs[field].as_str().unwrap()).unwrap();
    assert_eq!((decoded("boot_log"), decoded("command_line")), (b"a boot log".to_vec(), b"quiet".to_vec()));
    assert_eq!((decoded("ima_list"), &logs["ima_list_entries"]), (list, &json!(4)));
    assert_eq!(logs["userspace_log"], Value::Null);
    assert_eq!(api.get(&format!("{path}?role=tenant")).await.1["type"], "no_evidence");
    assert_eq!(api.get(&format!("{path}?role=registrar")).await.1["type"], "bad_request");
}

#[tokio::test]
async fn a_policy_is_tried_on_what_nodes_showed_and_is_not_stored() {
    let api = Api::start().await;
    let id = NodeId([1; 32]);
    api.post("/api/v1/nodes", api.node("edge-1", id)).await;
    api.post("/api/v1/nodes", api.node("edge-2", NodeId([2; 32]))).await;
    let (row, ak_public, policy) = crate::evidence::tests::sample(id);
    let store = api.app.verifier.store();
    store.pin_ak(id, row.ak_name, &ak_public).await.unwrap();
    store.put_evidence(&row).await.unwrap();
    let list = crate::evidence::tests::sample_list();
    store.put_ima_part(id, 0, 4, &list, (row.reset_count, row.restart_count)).await.unwrap();

    let path = "/api/v1/policies/try";
    let (status, body) = api.post(path, json!({"policy": policy})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let outcomes = [&body["nodes"][0]["outcome"], &body["nodes"][1]["outcome"]];
    // The boot log's digest is stored, the log is not.
    assert_eq!(outcomes, ["cannot_tell", "no_evidence"], "{body}");
    assert!(body["nodes"][0]["evidence_at_ms"].is_i64());
    assert_eq!(body["nodes"][1]["evidence_at_ms"], Value::Null);
    let (_, body) = api.post(path, json!({"policy": POLICY, "nodes": ["edge-1", "edge-1"]})).await;
    let [node] = body["nodes"].as_array().unwrap().as_slice() else { panic!("{body}") };
    assert_eq!((&node["outcome"], &node["findings"][0]["code"]), (&json!("failed"), &json!("pcr_mismatch")), "{body}");
    assert!(api.get("/api/v1/policies").await.1["policies"].as_array().unwrap().is_empty());

    // One that is stored, by its name.
    api.send(Some(api.admin.expose()), Method::POST, "/api/v1/policies", POLICY.into()).await;
    let (_, by_name) = api.post(path, json!({"policy": "edge", "nodes": ["edge-1"]})).await;
    assert_eq!(by_name["policy"], body["policy"]);
    for (request, kind) in [
        (json!({"policy": "version = 2"}), "policy_invalid"),
        (json!({"policy": "nowhere"}), "unknown_policy"),
        (json!({"policy": POLICY, "nodes": ["edge-3"]}), "unknown_node"),
        (json!({"policy": POLICY, "nodes": vec!["edge-1"; 501]}), "too_many_nodes"),
        (json!({"policy": POLICY, "else": 1}), "bad_request"),
    ] {
        let (_, body) = api.post(path, request).await;
        assert_eq!(body["type"], kind, "{body}");
    }
    let (_, made) = api.post("/api/v1/tokens", json!({"role": "viewer", "expires_in_ms": 60_000})).await;
    let body = serde_json::to_vec(&json!({"policy": POLICY})).unwrap();
    let (status, _) = api.send(made["token"].as_str(), Method::POST, path, body).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_node_in_quarantine_is_listed_explained_and_admitted_only_with_a_reason() {
    use crate::store::registrar::{Hardware, Quarantined};

    let api = Api::start().await;
    let id = NodeId([0xab; 32]);
    let waiting = |id| Quarantined {
        node_id: id,
        ek_public: vec![1; 60],
        ek_chain: Vec::new(),
        ak_public: vec![2; 60],
        ak_name: protocol::bytes::Array([3; 34]),
        hardware: Hardware::Unproven,
        peer: "192.0.2.7".into(),
        first_ms: 0,
        last_ms: 0,
    };
    let store = api.app.registrar.store();
    assert_eq!(api.get("/api/v1/quarantine").await.1["nodes"], json!([]));
    store.quarantine(&waiting(id), 10).await.unwrap();
    store.quarantine(&waiting(NodeId([0xcd; 32])), 10).await.unwrap();
    let (status, list) = api.get("/api/v1/quarantine").await;
    assert_eq!((status, list["nodes"].as_array().unwrap().len()), (StatusCode::OK, 2), "{list}");
    let (_, report) = api.get(&format!("/api/v1/nodes/{id}/ek")).await;
    assert_eq!(report["judgements"][0]["code"], "ek_not_a_key", "{report}");
    // It is no node of ours yet.
    assert_eq!(api.get(&format!("/api/v1/nodes/{id}")).await.1["type"], "unknown_node");

    let approve = format!("/api/v1/quarantine/{}/approve", &id.to_string()[..10]);
    let pins = api.node("x", id)["pins"].clone();
    let approval = |name: &str, reason: &str| json!({"name": name, "reason": reason, "pins": pins});
    for (name, reason) in [("edge-7", " "), ("edge-7", "two\nlines"), ("Edge", "ours")] {
        assert_eq!(api.post(&approve, approval(name, reason)).await.1["type"], "bad_request", "{name} {reason:?}");
    }
    assert_eq!(store.admitted_name(id).await.unwrap(), None);
    let (status, node) = api.post(&approve, approval("edge-7", "read from its label")).await;
    assert_eq!((status, &node["node_id"]), (StatusCode::CREATED, &json!(id.to_string())), "{node}");
    assert_eq!(store.admitted_name(id).await.unwrap().as_deref(), Some("edge-7"));
    assert_eq!(api.post(&approve, approval("edge-8", "again")).await.1["type"], "nothing_to_approve");
    let events = api.get("/api/v1/nodes/edge-7/events").await.1;
    let approved = |event: &Value| {
        let detail = event["detail"].as_str().unwrap_or_default();
        event["kind"] == "approved"
            && detail.contains("read from its label")
            && detail.contains("no trusted manufacturer")
    };
    assert!(events["events"].as_array().unwrap().iter().any(approved), "{events}");

    let reject = format!("/api/v1/quarantine/{}/reject", NodeId([0xcd; 32]));
    assert_eq!(api.post(&reject, json!({"reason": ""})).await.1["type"], "bad_request");
    assert_eq!(api.post(&reject, json!({"reason": "not ours"})).await.0, StatusCode::NO_CONTENT);
    assert_eq!(api.post(&reject, json!({"reason": "not ours"})).await.1["type"], "nothing_to_approve");
    assert_eq!(api.get("/api/v1/quarantine").await.1["nodes"], json!([]));
}
