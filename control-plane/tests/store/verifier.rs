//! The nodes that the tenant added, and what it agreed to.

use control_plane::store::{
    Conflict,
    verifier::{Pins, VerifierNode},
};
use protocol::id::Subject;

use super::stores::{Stores, ak, assert_not_found, conflict, join, node, policy, sealing_id};

/// A node with its id and a sealing of the same number.
pub(crate) fn verifier_node(name: &str, number: u8) -> VerifierNode {
    VerifierNode {
        subject: Subject::Node(node(number)),
        node_id: Some(node(number)),
        name: name.into(),
        policy: Some(policy(number)),
        interval_ms: 10_000,
        pins: Pins { tenant_keys: vec!["04aa".into()], autorun: true },
        sealing: Some((sealing_id(number), vec![number; 113])),
        sealing_subject: Some(Subject::Join(join(number))),
        stopped: false,
        agreed: None,
    }
}

pub(crate) async fn a_node_comes_back_whole(stores: &Stores) {
    let store = &stores.verifier;
    assert_eq!(store.node(node(1)).await.unwrap(), None);
    let full = verifier_node("edge-1", 1);
    let bare = VerifierNode {
        subject: Subject::Join(join(2)),
        node_id: None,
        policy: None,
        sealing: None,
        sealing_subject: None,
        stopped: true,
        pins: Pins::default(),
        ..verifier_node("edge-2", 2)
    };
    store.put_node(&full).await.unwrap();
    store.put_node(&bare).await.unwrap();
    assert_eq!(store.node(node(1)).await.unwrap(), Some(full.clone()));
    assert_eq!(store.node_by_name("edge-1").await.unwrap(), Some(full));
    assert_eq!(store.node_by_name("edge-2").await.unwrap(), Some(bare));
}

pub(crate) async fn putting_a_node_again_replaces_it(stores: &Stores) {
    let store = &stores.verifier;
    store.put_node(&verifier_node("edge-1", 1)).await.unwrap();
    let changed = VerifierNode { stopped: true, policy: None, interval_ms: 2_000, ..verifier_node("edge-1", 2) };
    store.put_node(&changed).await.unwrap();
    assert_eq!(store.node_by_name("edge-1").await.unwrap(), Some(changed));
    assert_eq!(store.node(node(1)).await.unwrap(), None);
}

pub(crate) async fn a_node_id_belongs_to_one_name(stores: &Stores) {
    let store = &stores.verifier;
    store.put_node(&verifier_node("edge-1", 1)).await.unwrap();
    assert_eq!(conflict(store.put_node(&verifier_node("edge-2", 1)).await), Conflict::NodeIdTaken);
    assert_eq!(store.node_by_name("edge-2").await.unwrap(), None);
    for number in 10..20 {
        let (one, two) = (verifier_node(&format!("a-{number}"), number), verifier_node(&format!("b-{number}"), number));
        let (first, second) = tokio::join!(store.put_node(&one), store.put_node(&two));
        assert_eq!(super::stores::loser(first, second), Conflict::NodeIdTaken);
    }
}

pub(crate) async fn agreeing_about_an_unknown_node_is_refused(stores: &Stores) {
    assert_not_found(stores.verifier.agree(node(1), ak(1), sealing_id(1)).await);
}

pub(crate) async fn an_agreement_lasts_as_long_as_the_sealing(stores: &Stores) {
    let store = &stores.verifier;
    let node_row = verifier_node("edge-1", 1);
    store.put_node(&node_row).await.unwrap();
    store.agree(node(1), ak(1), sealing_id(1)).await.unwrap();
    store.put_node(&VerifierNode { stopped: true, agreed: None, ..node_row.clone() }).await.unwrap();
    assert_eq!(store.node(node(1)).await.unwrap().unwrap().agreed, Some((ak(1), sealing_id(1))));
    store.put_node(&VerifierNode { sealing: Some((sealing_id(2), vec![2])), ..node_row.clone() }).await.unwrap();
    assert_eq!(store.node(node(1)).await.unwrap().unwrap().agreed, None);
    // The caller cannot agree for the tenant.
    store.put_node(&VerifierNode { agreed: Some((ak(1), sealing_id(1))), ..node_row }).await.unwrap();
    assert_eq!(store.node(node(1)).await.unwrap().unwrap().agreed, None);
}

pub(crate) async fn an_agreement_may_come_before_its_sealing(stores: &Stores) {
    let store = &stores.verifier;
    let node_row = verifier_node("edge-1", 1);
    store.put_node(&node_row).await.unwrap();
    store.agree(node(1), ak(1), sealing_id(2)).await.unwrap();
    store.put_node(&VerifierNode { sealing: Some((sealing_id(2), vec![2])), ..node_row }).await.unwrap();
    assert_eq!(store.node(node(1)).await.unwrap().unwrap().agreed, Some((ak(1), sealing_id(2))));
}

pub(crate) async fn an_agreement_ends_with_the_node_id(stores: &Stores) {
    let store = &stores.verifier;
    let node_row = verifier_node("edge-1", 1);
    store.put_node(&node_row).await.unwrap();
    store.agree(node(1), ak(1), sealing_id(1)).await.unwrap();
    store.put_node(&VerifierNode { node_id: Some(node(2)), ..node_row }).await.unwrap();
    assert_eq!(store.node(node(2)).await.unwrap().unwrap().agreed, None);
}

pub(crate) async fn removing_a_node_twice_is_no_error(stores: &Stores) {
    let store = &stores.verifier;
    store.put_node(&verifier_node("edge-1", 1)).await.unwrap();
    store.remove_node("edge-1").await.unwrap();
    store.remove_node("edge-1").await.unwrap();
    assert_eq!(store.node_by_name("edge-1").await.unwrap(), None);
}
