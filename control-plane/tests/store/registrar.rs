//! Admissions, join tokens, bindings.

use control_plane::store::{
    Conflict, UnixMs,
    registrar::{Binding, Hardware, JoinAdmission, JoinEvidence, Quarantined},
};

use super::stores::{Stores, ak, assert_not_found, conflict, join, loser, node};

/// Node `node_number` with AK `ak_number`.
pub(crate) fn binding(node_number: u8, ak_number: u8) -> Binding {
    Binding {
        node_id: node(node_number),
        ek_public: vec![node_number; 100],
        ek_chain: vec![vec![node_number; 1500], vec![0; 900]],
        ak_public: vec![ak_number; 90],
        ak_name: ak(ak_number),
        hardware: Hardware::Certified { issuer: "CN=root".into() },
        join: None,
        bound_ms: 0,
    }
}

fn by_token(node_number: u8, ak_number: u8, token: u8) -> Binding {
    let evidence = JoinEvidence { join_id: join(token), tenant_proof: [3; 32], server_certificate: [4; 32] };
    Binding { join: Some(evidence), hardware: Hardware::Unproven, ..binding(node_number, ak_number) }
}

fn admission(token: u8, name: &str, expires_ms: UnixMs) -> JoinAdmission {
    JoinAdmission {
        join_id: join(token),
        name: name.into(),
        sealed_key: vec![token; 113],
        expires_ms,
        used_by: None,
        revoked: false,
    }
}

pub(crate) async fn a_node_is_admitted_once_and_for_one_name(stores: &Stores) {
    let store = &stores.registrar;
    assert_eq!(store.admitted_name(node(1)).await.unwrap(), None);
    store.admit_node(node(1), "edge-1").await.unwrap();
    store.admit_node(node(1), "edge-1").await.unwrap();
    assert_eq!(store.admitted_name(node(1)).await.unwrap().as_deref(), Some("edge-1"));
    assert_eq!(conflict(store.admit_node(node(1), "edge-2").await), Conflict::NodeIdTaken);
    assert_eq!(conflict(store.admit_node(node(2), "edge-1").await), Conflict::NameTaken);
    assert_eq!(store.admitted_name(node(1)).await.unwrap().as_deref(), Some("edge-1"));
    assert_eq!(store.admitted_name(node(2)).await.unwrap(), None);
}

pub(crate) async fn a_binding_comes_back_whole(stores: &Stores) {
    let store = &stores.registrar;
    assert_eq!(store.binding(node(1)).await.unwrap(), None);
    let now_ms = store.now_ms().await.unwrap();
    store.admit_join(&admission(9, "edge-2", now_ms + 60_000)).await.unwrap();
    let mut empty_chain = Binding { ek_chain: vec![], hardware: Hardware::AllowListed, ..binding(3, 3) };
    for expected in [&mut binding(1, 1), &mut by_token(2, 2, 9), &mut empty_chain] {
        store.bind(expected).await.unwrap();
        let stored = store.binding(expected.node_id).await.unwrap().unwrap();
        assert!(stored.bound_ms >= now_ms);
        expected.bound_ms = stored.bound_ms;
        assert_eq!(stored, *expected);
    }
}

pub(crate) async fn the_same_pair_again_is_accepted_by_whatever_admission(stores: &Stores) {
    let store = &stores.registrar;
    store.bind(&binding(1, 1)).await.unwrap();
    let first = store.binding(node(1)).await.unwrap();
    store.bind(&binding(1, 1)).await.unwrap();
    // A token that does not exist is not even looked at: the pair was proven.
    store.bind(&by_token(1, 1, 9)).await.unwrap();
    assert_eq!(store.binding(node(1)).await.unwrap(), first);
}

pub(crate) async fn a_second_ak_for_a_node_is_refused(stores: &Stores) {
    let store = &stores.registrar;
    store.bind(&binding(1, 1)).await.unwrap();
    let first = store.binding(node(1)).await.unwrap();
    assert_eq!(conflict(store.bind(&binding(1, 2)).await), Conflict::NodeBoundToOtherAk);
    assert_eq!(store.binding(node(1)).await.unwrap(), first);
    store.bind(&binding(2, 2)).await.unwrap();
}

pub(crate) async fn a_second_node_for_an_ak_is_refused(stores: &Stores) {
    let store = &stores.registrar;
    store.bind(&binding(1, 1)).await.unwrap();
    assert_eq!(conflict(store.bind(&binding(2, 1)).await), Conflict::AkBoundToOtherNode);
    assert_eq!(store.binding(node(2)).await.unwrap(), None);
}

pub(crate) async fn of_two_racing_bindings_of_one_node_one_wins(stores: &Stores) {
    for number in 0..10 {
        let (one, two) = (binding(number, 100 + number), binding(number, 200 + number));
        let (first, second) = tokio::join!(stores.registrar.bind(&one), stores.registrar.bind(&two));
        assert_eq!(loser(first, second), Conflict::NodeBoundToOtherAk);
    }
}

pub(crate) async fn of_two_nodes_racing_for_one_ak_one_wins(stores: &Stores) {
    for number in 0..10 {
        let (one, two) = (binding(100 + number, number), binding(200 + number, number));
        let (first, second) = tokio::join!(stores.registrar.bind(&one), stores.registrar.bind(&two));
        assert_eq!(loser(first, second), Conflict::AkBoundToOtherNode);
    }
}

pub(crate) async fn the_same_binding_raced_succeeds_every_time(stores: &Stores) {
    for number in 0..10 {
        let binding = binding(number, number);
        let store = &stores.registrar;
        let results = tokio::join!(store.bind(&binding), store.bind(&binding), store.bind(&binding));
        results.0.unwrap();
        results.1.unwrap();
        results.2.unwrap();
    }
}

pub(crate) async fn a_join_token_binds_one_node(stores: &Stores) {
    let store = &stores.registrar;
    let mut token = admission(9, "edge-1", store.now_ms().await.unwrap() + 60_000);
    store.admit_join(&token).await.unwrap();
    store.admit_join(&admission(9, "another", 0)).await.unwrap();
    assert_eq!(store.join(join(9)).await.unwrap(), Some(token.clone()));
    assert_eq!(store.join(join(8)).await.unwrap(), None);
    store.bind(&by_token(1, 1, 9)).await.unwrap();
    store.bind(&by_token(1, 1, 9)).await.unwrap();
    assert_eq!(conflict(store.bind(&by_token(2, 2, 9)).await), Conflict::JoinUsed);
    assert_eq!(store.binding(node(2)).await.unwrap(), None);
    token.used_by = Some(node(1));
    assert_eq!(store.join(join(9)).await.unwrap(), Some(token));
}

pub(crate) async fn of_two_nodes_racing_with_one_join_token_one_wins(stores: &Stores) {
    let store = &stores.registrar;
    let expires_ms = store.now_ms().await.unwrap() + 60_000;
    for number in 0..10 {
        store.admit_join(&admission(number, &format!("edge-{number}"), expires_ms)).await.unwrap();
        let (one, two) = (by_token(100 + number, 100 + number, number), by_token(200 + number, 200 + number, number));
        let (first, second) = tokio::join!(store.bind(&one), store.bind(&two));
        assert_eq!(loser(first, second), Conflict::JoinUsed);
    }
}

pub(crate) async fn an_expired_or_revoked_or_unknown_join_token_binds_nothing(stores: &Stores) {
    let store = &stores.registrar;
    let now_ms = store.now_ms().await.unwrap();
    store.admit_join(&admission(1, "expired", now_ms)).await.unwrap();
    store.admit_join(&admission(2, "revoked", now_ms + 60_000)).await.unwrap();
    store.revoke_join(join(2)).await.unwrap();
    assert!(store.join(join(2)).await.unwrap().unwrap().revoked);
    assert_not_found(store.revoke_join(join(3)).await);
    for token in [1, 2, 3] {
        assert_eq!(conflict(store.bind(&by_token(1, 1, token)).await), Conflict::JoinEnded);
    }
    assert_eq!(store.binding(node(1)).await.unwrap(), None);
}

pub(crate) async fn a_refused_binding_uses_up_no_join_token(stores: &Stores) {
    let store = &stores.registrar;
    store.admit_join(&admission(9, "edge-1", store.now_ms().await.unwrap() + 60_000)).await.unwrap();
    store.bind(&binding(1, 1)).await.unwrap();
    assert_eq!(conflict(store.bind(&by_token(2, 1, 9)).await), Conflict::AkBoundToOtherNode);
    assert_eq!(conflict(store.bind(&by_token(1, 2, 9)).await), Conflict::NodeBoundToOtherAk);
    assert_eq!(store.join(join(9)).await.unwrap().unwrap().used_by, None);
    store.bind(&by_token(2, 2, 9)).await.unwrap();
}

pub(crate) async fn bound_nodes_are_found_by_prefix(stores: &Stores) {
    let store = &stores.registrar;
    for number in [0xab, 0xac, 0xb0] {
        store.bind(&binding(number, number)).await.unwrap();
    }
    assert_eq!(store.bound_nodes("a", 10).await.unwrap(), [node(0xab), node(0xac)]);
    assert_eq!(store.bound_nodes("abab", 10).await.unwrap(), [node(0xab)]);
    assert_eq!(store.bound_nodes("", 2).await.unwrap(), [node(0xab), node(0xac)]);
    assert_eq!(store.bound_nodes(&"ab".repeat(32), 10).await.unwrap(), [node(0xab)]);
    for prefix in ["c", "AB", "xyz", "%", &"ab".repeat(33)] {
        assert!(store.bound_nodes(prefix, 10).await.unwrap().is_empty(), "{prefix}");
    }
}

pub(crate) async fn a_forgotten_node_may_be_bound_anew(stores: &Stores) {
    let store = &stores.registrar;
    let expires_ms = store.now_ms().await.unwrap() + 60_000;
    store.admit_node(node(1), "edge-1").await.unwrap();
    store.bind(&binding(1, 1)).await.unwrap();
    store.admit_join(&admission(9, "edge-2", expires_ms)).await.unwrap();
    store.bind(&by_token(2, 2, 9)).await.unwrap();
    store.bind(&binding(3, 3)).await.unwrap();

    store.forget(Some(node(1)), "edge-1").await.unwrap();
    assert_eq!(store.admitted_name(node(1)).await.unwrap(), None);
    assert_eq!(store.binding(node(1)).await.unwrap(), None);
    assert!(store.binding(node(2)).await.unwrap().is_some());
    // By the name alone: the token leads to the node.
    store.forget(None, "edge-2").await.unwrap();
    assert_eq!(store.binding(node(2)).await.unwrap(), None);
    assert_eq!(store.join(join(9)).await.unwrap(), None);
    assert!(store.binding(node(3)).await.unwrap().is_some());
    store.forget(None, "nobody").await.unwrap();
    store.bind(&binding(1, 2)).await.unwrap();
}

pub(crate) async fn bindings_come_in_pages_and_their_hardware_may_change(stores: &Stores) {
    let store = &stores.registrar;
    assert!(store.bindings(None, 10).await.unwrap().is_empty());
    for number in [0, 7, 0xff] {
        store.bind(&binding(number, number)).await.unwrap();
    }
    let ids = |page: Vec<Binding>| page.into_iter().map(|binding| binding.node_id).collect::<Vec<_>>();
    assert_eq!(ids(store.bindings(None, 2).await.unwrap()), [node(0), node(7)]);
    assert_eq!(ids(store.bindings(Some(node(7)), 2).await.unwrap()), [node(0xff)]);
    assert!(store.bindings(Some(node(0xff)), 2).await.unwrap().is_empty());

    let before = store.binding(node(7)).await.unwrap().unwrap();
    let hardware = before.hardware.clone();
    // Judged as something that it is not any more.
    store.set_hardware(node(7), &Hardware::AllowListed, &Hardware::Unproven).await.unwrap();
    assert_eq!(store.binding(node(7)).await.unwrap().unwrap().hardware, hardware);
    store.set_hardware(node(7), &hardware, &Hardware::Unproven).await.unwrap();
    let after = store.binding(node(7)).await.unwrap().unwrap();
    assert_eq!(after, Binding { hardware: Hardware::Unproven, ..before });
    assert_eq!(store.binding(node(0)).await.unwrap().unwrap().hardware, binding(0, 0).hardware);
    store.set_hardware(node(9), &hardware, &Hardware::Unproven).await.unwrap();
    assert_eq!(store.binding(node(9)).await.unwrap(), None);
}

fn stranger(number: u8, hardware: Hardware) -> Quarantined {
    Quarantined {
        node_id: node(number),
        ek_public: vec![number; 100],
        ek_chain: vec![vec![number; 1500], vec![0; 900]],
        ak_public: vec![number; 90],
        ak_name: ak(number),
        hardware,
        peer: "2001:db8::1".into(),
        first_ms: 0,
        last_ms: 0,
    }
}

fn certified() -> Hardware {
    Hardware::Certified { issuer: "CN=root".into() }
}

pub(crate) async fn a_node_in_quarantine_comes_back_whole_and_keeps_its_first_time(stores: &Stores) {
    let store = &stores.registrar;
    assert_eq!(store.quarantined_node(node(1)).await.unwrap(), None);
    let now_ms = store.now_ms().await.unwrap();
    store.quarantine(&stranger(1, Hardware::Unproven), 10).await.unwrap();
    let first = store.quarantined_node(node(1)).await.unwrap().unwrap();
    assert!(first.first_ms >= now_ms && first.first_ms == first.last_ms);
    let (first_ms, last_ms) = (first.first_ms, first.last_ms);
    assert_eq!(first, Quarantined { first_ms, last_ms, ..stranger(1, Hardware::Unproven) });

    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let again = Quarantined { peer: "192.0.2.1".into(), ak_name: ak(9), ..stranger(1, certified()) };
    store.quarantine(&again, 10).await.unwrap();
    let list = store.quarantined(10).await.unwrap();
    assert!(list[0].last_ms > last_ms);
    assert_eq!(list, [Quarantined { first_ms, last_ms: list[0].last_ms, ..again }]);
    // Nothing else is thought of it.
    assert_eq!(store.admitted_name(node(1)).await.unwrap(), None);
    assert_eq!(store.binding(node(1)).await.unwrap(), None);
    store.set_hardware(node(1), &certified(), &Hardware::Unproven).await.unwrap();
    assert_eq!(store.quarantined_node(node(1)).await.unwrap().unwrap().hardware, Hardware::Unproven);
    assert!(store.leave_quarantine(node(1)).await.unwrap());
    assert!(!store.leave_quarantine(node(1)).await.unwrap());
    // Who was admitted meanwhile does not wait any more, though an enrolment that began before ends after it.
    store.admit_node(node(1), "edge-1").await.unwrap();
    store.quarantine(&stranger(1, certified()), 10).await.unwrap();
    assert_eq!(store.quarantined(10).await.unwrap(), []);
}

pub(crate) async fn quarantine_is_bounded_and_unproven_hardware_goes_first(stores: &Stores) {
    let store = &stores.registrar;
    let pause = || tokio::time::sleep(std::time::Duration::from_millis(3));
    for (number, hardware) in
        [(1, certified()), (2, Hardware::Unproven), (3, Hardware::Unproven), (4, certified()), (5, Hardware::Unproven)]
    {
        store.quarantine(&stranger(number, hardware), 4).await.unwrap();
        pause().await;
    }
    let ids = async || store.quarantined(10).await.unwrap().iter().map(|row| row.node_id).collect::<Vec<_>>();
    // The unproven one that was not seen for longest made room, though a certified one came before it.
    assert_eq!(ids().await, [node(5), node(4), node(3), node(1)]);
    store.quarantine(&stranger(3, Hardware::Unproven), 4).await.unwrap();
    pause().await;
    store.quarantine(&stranger(6, certified()), 4).await.unwrap();
    assert_eq!(ids().await, [node(6), node(3), node(4), node(1)]);
    pause().await;
    store.quarantine(&stranger(7, certified()), 4).await.unwrap();
    // An unproven one does not push out those that a manufacturer vouches for.
    store.quarantine(&stranger(8, Hardware::Unproven), 4).await.unwrap();
    assert_eq!(ids().await, [node(7), node(6), node(4), node(1)]);
    pause().await;
    store.quarantine(&stranger(9, certified()), 4).await.unwrap();
    assert_eq!(ids().await, [node(9), node(7), node(6), node(4)]);
    assert_eq!(store.quarantined(1).await.unwrap().len(), 1);
}

pub(crate) async fn whoever_floods_the_quarantine_displaces_his_own(stores: &Stores) {
    let store = &stores.registrar;
    let from = |number: u8, peer: &str| Quarantined { peer: peer.into(), ..stranger(number, Hardware::Unproven) };
    store.quarantine(&from(1, "192.0.2.1"), 4).await.unwrap();
    store.quarantine(&from(2, "2001:db8:0:1::1"), 4).await.unwrap();
    for number in 10..20 {
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        // Addresses of one /64 are one subscriber's.
        store.quarantine(&from(number, &format!("2001:db8::{number:x}")), 4).await.unwrap();
    }
    let ids: Vec<_> = store.quarantined(10).await.unwrap().iter().map(|row| row.node_id).collect();
    assert_eq!(ids[..2], [node(19), node(18)]);
    assert!(ids.len() == 4 && ids.contains(&node(1)) && ids.contains(&node(2)), "{ids:?}");
}

pub(crate) async fn admission_and_binding_end_quarantine(stores: &Stores) {
    let store = &stores.registrar;
    for number in [1, 2, 3] {
        store.quarantine(&stranger(number, certified()), 10).await.unwrap();
    }
    store.admit_node(node(1), "edge-1").await.unwrap();
    store.bind(&binding(2, 2)).await.unwrap();
    let left = store.quarantined(10).await.unwrap();
    assert_eq!(left.iter().map(|row| row.node_id).collect::<Vec<_>>(), [node(3)]);
}
