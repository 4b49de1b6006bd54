//! The fleet by name, join tokens, API tokens.

use control_plane::store::{
    Conflict, UnixMs,
    tenant::{ApiRole, ApiTokenRow, NewAdmission, NewJoin, NewNode, NodeChange},
    verifier::Pins,
};

use super::{
    sealing,
    stores::{Stores, assert_not_found, conflict, join, loser, node, policy, sealing_id},
};

/// A node to be recognised by its id.
pub(crate) fn by_id(name: &str, number: u8) -> NewNode {
    NewNode {
        name: name.into(),
        admission: NewAdmission::Node(node(number)),
        policy: Some(policy(number)),
        verifier_policy: None,
        interval_ms: 10_000,
        pins: Pins { tenant_keys: vec!["04aa".into(), "04bb".into()], autorun: false },
        sealing_id: None,
    }
}

/// A node to be recognised by a join token that does not expire soon.
pub(crate) fn by_join(name: &str, token: u8) -> NewNode {
    expiring(name, token, i64::MAX)
}

fn expiring(name: &str, token: u8, expires_ms: UnixMs) -> NewNode {
    let join =
        NewJoin { join_id: join(token), tenant_key: vec![token; 113], registrar_key: vec![token + 1; 113], expires_ms };
    NewNode { admission: NewAdmission::Join(join), ..by_id(name, token) }
}

async fn names(stores: &Stores, after: Option<&str>, limit: u32) -> Vec<String> {
    stores.tenant.nodes(after, limit).await.unwrap().into_iter().map(|node| node.name).collect()
}

pub(crate) async fn a_node_by_id_comes_back_whole(stores: &Stores) {
    let store = &stores.tenant;
    assert_eq!(store.node_by_name("edge-1").await.unwrap(), None);
    sealing::complete(stores, 1).await;
    let new = NewNode { sealing_id: Some(sealing_id(1)), verifier_policy: Some(policy(4)), ..by_id("edge-1", 1) };
    store.add_node(&new).await.unwrap();
    let stored = store.node_by_name("edge-1").await.unwrap().unwrap();
    assert_eq!((stored.verifier_policy, stored.policy_of_verifier()), (Some(policy(4)), Some(policy(4))));
    assert_eq!((stored.name.as_str(), stored.node_id, stored.join_id), ("edge-1", Some(node(1)), None));
    assert_eq!((stored.policy, stored.interval_ms, &stored.pins), (new.policy, 10_000, &new.pins));
    assert_eq!((stored.sealing_id, stored.stopped), (Some(sealing_id(1)), false));
    assert!(stored.created_ms > 0 && stored.synced < stored.revision);
    assert_eq!(store.node_by_id(node(1)).await.unwrap(), Some(stored));
    assert_eq!(store.node_by_id(node(2)).await.unwrap(), None);
}

pub(crate) async fn a_node_by_join_token_comes_back_whole(stores: &Stores) {
    let store = &stores.tenant;
    let new = NewNode { policy: None, ..by_join("edge-1", 5) };
    store.add_node(&new).await.unwrap();
    let stored = store.node_by_name("edge-1").await.unwrap().unwrap();
    assert_eq!((stored.node_id, stored.join_id, stored.policy), (None, Some(join(5)), None));
    let token = store.join(join(5)).await.unwrap().unwrap();
    assert_eq!((token.name.as_str(), token.used_by, token.revoked), ("edge-1", None, false));
    assert_eq!(NewAdmission::Join(token.join), new.admission);
    assert_eq!(store.join(join(6)).await.unwrap(), None);
}

pub(crate) async fn a_name_is_taken_once(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_id("edge-1", 1)).await.unwrap();
    assert_eq!(conflict(store.add_node(&by_id("edge-1", 2)).await), Conflict::NameTaken);
    assert_eq!(conflict(store.add_node(&by_join("edge-1", 2)).await), Conflict::NameTaken);
    assert_eq!(store.node_by_name("edge-1").await.unwrap().unwrap().node_id, Some(node(1)));
}

pub(crate) async fn a_node_id_is_taken_once(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_id("edge-1", 1)).await.unwrap();
    assert_eq!(conflict(store.add_node(&by_id("edge-2", 1)).await), Conflict::NodeIdTaken);
    assert_eq!(store.node_by_name("edge-2").await.unwrap(), None);
}

pub(crate) async fn a_refused_node_leaves_no_join_token(stores: &Stores) {
    let store = &stores.tenant;
    let unsealed = NewNode { sealing_id: Some(sealing_id(9)), ..by_join("edge-1", 5) };
    assert_not_found(store.add_node(&unsealed).await);
    assert_eq!(store.join(join(5)).await.unwrap(), None);
    assert_eq!(store.node_by_name("edge-1").await.unwrap(), None);
}

pub(crate) async fn a_join_token_names_one_node_only(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_join("edge-1", 5)).await.unwrap();
    assert_eq!(conflict(store.add_node(&by_join("edge-2", 5)).await), Conflict::JoinUsed);
    assert_eq!(store.join(join(5)).await.unwrap().unwrap().name, "edge-1");
    assert_eq!(store.node_by_name("edge-2").await.unwrap(), None);
}

pub(crate) async fn of_two_racing_adds_of_one_name_one_wins(stores: &Stores) {
    for number in 0..10 {
        let name = format!("edge-{number}");
        let (one, two) = (by_id(&name, 100 + number), by_join(&name, 200 + number));
        let (first, second) = tokio::join!(stores.tenant.add_node(&one), stores.tenant.add_node(&two));
        assert_eq!(loser(first, second), Conflict::NameTaken);
        let (one, two) = (by_id(&format!("{name}-a"), number), by_id(&format!("{name}-b"), number));
        let (first, second) = tokio::join!(stores.tenant.add_node(&one), stores.tenant.add_node(&two));
        assert_eq!(loser(first, second), Conflict::NodeIdTaken);
    }
}

pub(crate) async fn nodes_are_listed_by_name_in_pages(stores: &Stores) {
    // Bytes decide, not a language's idea of order.
    for (number, name) in (1..).zip(["b", "a.b", "a-b", "ab", "a"]) {
        stores.tenant.add_node(&by_id(name, number)).await.unwrap();
    }
    assert_eq!(names(stores, None, 10).await, ["a", "a-b", "a.b", "ab", "b"]);
    assert_eq!(names(stores, None, 2).await, ["a", "a-b"]);
    assert_eq!(names(stores, Some("a-b"), 2).await, ["a.b", "ab"]);
    assert!(names(stores, Some("b"), 2).await.is_empty());
}

pub(crate) async fn nodes_are_found_by_prefix(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_id("edge-1", 0xab)).await.unwrap();
    store.add_node(&by_id("edge-2", 0xac)).await.unwrap();
    store.add_node(&by_join("edge-3", 1)).await.unwrap();
    let found = |prefix: &'static str, limit| async move {
        let nodes = store.nodes_by_prefix(prefix, limit).await.unwrap();
        nodes.into_iter().map(|node| node.name).collect::<Vec<_>>()
    };
    assert_eq!(found("a", 10).await, ["edge-1", "edge-2"]);
    assert_eq!(found("a", 1).await, ["edge-1"]);
    assert_eq!(found("acac", 10).await, ["edge-2"]);
    assert_eq!(found("AC", 10).await, [""; 0]);
}

pub(crate) async fn a_change_touches_only_what_it_names_and_raises_the_revision(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_id("edge-1", 1)).await.unwrap();
    let mut expected = store.node_by_name("edge-1").await.unwrap().unwrap();
    let pins = Pins { tenant_keys: vec![], autorun: true };
    let changes = [
        NodeChange { policy: Some(policy(9)), ..NodeChange::default() },
        NodeChange { interval_ms: Some(2_000), ..NodeChange::default() },
        NodeChange { stopped: Some(true), ..NodeChange::default() },
        NodeChange { pins: Some(pins.clone()), ..NodeChange::default() },
        NodeChange { stopped: Some(false), ..NodeChange::default() },
        NodeChange { verifier_policy: Some(Some(policy(8))), ..NodeChange::default() },
        NodeChange { policy: Some(policy(7)), ..NodeChange::default() },
        NodeChange { verifier_policy: Some(None), ..NodeChange::default() },
        NodeChange::default(),
    ];
    for (index, change) in changes.iter().enumerate() {
        match index {
            0 => expected.policy = Some(policy(9)),
            1 => expected.interval_ms = 2_000,
            2 => expected.stopped = true,
            3 => expected.pins = pins.clone(),
            4 => expected.stopped = false,
            5 => expected.verifier_policy = Some(policy(8)),
            6 => expected.policy = Some(policy(7)),
            7 => expected.verifier_policy = None,
            _ => {}
        }
        expected.revision += 1;
        assert_eq!(store.change_node("edge-1", change).await.unwrap(), expected);
        assert_eq!(store.node_by_name("edge-1").await.unwrap().as_ref(), Some(&expected));
    }
}

pub(crate) async fn changing_an_unknown_node_is_refused(stores: &Stores) {
    assert_not_found(stores.tenant.change_node("edge-1", &NodeChange::default()).await);
}

pub(crate) async fn every_role_is_told_of_every_revision(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_id("edge-2", 2)).await.unwrap();
    store.add_node(&by_id("edge-1", 1)).await.unwrap();
    let unsynced = store.unsynced_nodes().await.unwrap();
    assert_eq!(unsynced.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["edge-1", "edge-2"]);
    let told = unsynced[0].revision;
    let changed = store.change_node("edge-1", &NodeChange::default()).await.unwrap();
    // What was told is older than what is now; what was never set is not believed.
    store.mark_synced("edge-1", told).await.unwrap();
    store.mark_synced("edge-1", changed.revision + 5).await.unwrap();
    assert_eq!(store.unsynced_nodes().await.unwrap().len(), 2);
    store.mark_synced("edge-1", changed.revision).await.unwrap();
    store.mark_synced("edge-1", told).await.unwrap();
    let unsynced = store.unsynced_nodes().await.unwrap();
    assert_eq!(unsynced.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["edge-2"]);
    store.mark_synced("nobody", 1).await.unwrap();
}

pub(crate) async fn a_proven_join_token_gives_the_node_its_id(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_join("edge-1", 5)).await.unwrap();
    let added = store.node_by_name("edge-1").await.unwrap().unwrap();
    let joined = store.join_node(join(5), node(1)).await.unwrap();
    assert_eq!((joined.name.as_str(), joined.node_id), ("edge-1", Some(node(1))));
    assert_eq!(joined.revision, added.revision + 1);
    assert_eq!(store.join(join(5)).await.unwrap().unwrap().used_by, Some(node(1)));
    // Again, also after the token ended: nothing changes.
    store.revoke_join(join(5)).await.unwrap();
    assert_eq!(store.join_node(join(5), node(1)).await.unwrap(), joined);
    assert_eq!(store.node_by_id(node(1)).await.unwrap(), Some(joined));
}

pub(crate) async fn a_used_join_token_is_refused_to_another_node(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_join("edge-1", 5)).await.unwrap();
    store.join_node(join(5), node(1)).await.unwrap();
    assert_eq!(conflict(store.join_node(join(5), node(2)).await), Conflict::JoinUsed);
    assert_eq!(store.node_by_name("edge-1").await.unwrap().unwrap().node_id, Some(node(1)));
}

pub(crate) async fn an_ended_join_token_is_refused(stores: &Stores) {
    let store = &stores.tenant;
    let now_ms = store.now_ms().await.unwrap();
    store.add_node(&expiring("edge-1", 5, now_ms)).await.unwrap();
    store.add_node(&by_join("edge-2", 6)).await.unwrap();
    store.revoke_join(join(6)).await.unwrap();
    for token in [5, 6] {
        assert_eq!(conflict(store.join_node(join(token), node(token)).await), Conflict::JoinEnded);
        assert_eq!(store.join(join(token)).await.unwrap().unwrap().used_by, None);
    }
    assert_not_found(store.join_node(join(7), node(7)).await);
    assert_not_found(store.revoke_join(join(7)).await);
}

pub(crate) async fn a_node_id_that_another_node_has_uses_up_no_join_token(stores: &Stores) {
    let store = &stores.tenant;
    store.add_node(&by_id("edge-1", 1)).await.unwrap();
    store.add_node(&by_join("edge-2", 5)).await.unwrap();
    assert_eq!(conflict(store.join_node(join(5), node(1)).await), Conflict::NodeIdTaken);
    assert_eq!(store.join(join(5)).await.unwrap().unwrap().used_by, None);
    store.join_node(join(5), node(2)).await.unwrap();
}

pub(crate) async fn of_two_nodes_racing_with_one_join_token_one_wins(stores: &Stores) {
    let store = &stores.tenant;
    for number in 0..10 {
        store.add_node(&by_join(&format!("edge-{number}"), number)).await.unwrap();
        let (first, second) = tokio::join!(
            store.join_node(join(number), node(100 + number)),
            store.join_node(join(number), node(200 + number))
        );
        assert_eq!(loser(first, second), Conflict::JoinUsed);
    }
    // One node with two tokens is one node.
    store.add_node(&by_join("edge-a", 50)).await.unwrap();
    store.add_node(&by_join("edge-b", 51)).await.unwrap();
    let (first, second) = tokio::join!(store.join_node(join(50), node(50)), store.join_node(join(51), node(50)));
    assert_eq!(loser(first, second), Conflict::NodeIdTaken);
}

pub(crate) async fn join_tokens_are_listed_newest_first(stores: &Stores) {
    let store = &stores.tenant;
    for number in [3, 1, 2] {
        store.add_node(&by_join(&format!("edge-{number}"), number)).await.unwrap();
    }
    let joins: Vec<_> = store.joins().await.unwrap().into_iter().map(|row| row.join.join_id).collect();
    assert_eq!(joins, [join(2), join(1), join(3)]);
}

pub(crate) async fn a_removed_node_takes_its_tokens_and_sealings_along(stores: &Stores) {
    let store = &stores.tenant;
    sealing::complete(stores, 1).await;
    sealing::complete(stores, 2).await;
    store.add_node(&NewNode { sealing_id: Some(sealing_id(1)), ..by_id("edge-1", 1) }).await.unwrap();
    store.add_node(&NewNode { sealing_id: Some(sealing_id(2)), ..by_id("edge-2", 2) }).await.unwrap();
    store.add_node(&by_join("edge-3", 5)).await.unwrap();
    store.remove_node("edge-1").await.unwrap();
    store.remove_node("edge-3").await.unwrap();
    assert_eq!(names(stores, None, 10).await, ["edge-2"]);
    assert_eq!(store.sealing(sealing_id(1)).await.unwrap(), None);
    assert_eq!(store.chunk(sealing_id(1), 0).await.unwrap(), None);
    assert_eq!(store.join(join(5)).await.unwrap(), None);
    assert!(store.chunk(sealing_id(2), 0).await.unwrap().is_some());
    assert_not_found(store.remove_node("edge-1").await);
    store.add_node(&by_id("edge-1", 1)).await.unwrap();
}

pub(crate) async fn an_api_token_ends_by_expiry_and_by_revocation(stores: &Stores) {
    let store = &stores.tenant;
    let now_ms = store.now_ms().await.unwrap();
    let token = |number: u8, role, expires_ms| ApiTokenRow {
        hash: [number; 32],
        label: format!("tok-{number}"),
        role,
        created_ms: 0,
        expires_ms,
    };
    store.add_token(&token(1, ApiRole::Admin, None)).await.unwrap();
    store.add_token(&token(2, ApiRole::Operator, Some(now_ms + 60_000))).await.unwrap();
    store.add_token(&token(3, ApiRole::Viewer, Some(now_ms))).await.unwrap();
    let stored = store.token([1; 32]).await.unwrap().unwrap();
    assert!(stored.created_ms >= now_ms);
    assert_eq!(stored, ApiTokenRow { created_ms: stored.created_ms, ..token(1, ApiRole::Admin, None) });
    assert_eq!(store.token([2; 32]).await.unwrap().unwrap().role, ApiRole::Operator);
    assert_eq!(store.token([3; 32]).await.unwrap(), None);
    assert_eq!(store.token([4; 32]).await.unwrap(), None);
    let labels: Vec<_> = store.tokens().await.unwrap().into_iter().map(|token| token.label).collect();
    assert_eq!(labels, ["tok-3", "tok-2", "tok-1"]);
    store.revoke_token("tok-1").await.unwrap();
    assert_eq!(store.token([1; 32]).await.unwrap(), None);
    assert!(store.token([2; 32]).await.unwrap().is_some());
    assert_not_found(store.revoke_token("tok-1").await);
}
