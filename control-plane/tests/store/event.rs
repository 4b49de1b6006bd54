//! The history for people.

use control_plane::store::{EventFilter, NewEvent, RegistrarStore};
use protocol::id::NodeId;

use super::stores::{Stores, node};

async fn add(store: &dyn RegistrarStore, node_id: Option<NodeId>, name: Option<&str>, detail: &str) {
    let event = NewEvent { node_id, name: name.map(str::to_owned), kind: "test", detail: detail.to_owned() };
    store.add_event(&event).await.unwrap();
}

async fn details(store: &dyn RegistrarStore, filter: EventFilter) -> Vec<String> {
    let events = store.events(&filter).await.unwrap();
    assert!(events.is_sorted_by(|a, b| a.id < b.id));
    events.into_iter().map(|event| event.detail).collect()
}

pub(crate) async fn events_come_back_by_node_or_name_ascending(stores: &Stores) {
    let store = &*stores.registrar;
    add(store, Some(node(1)), Some("edge-1"), "both").await;
    add(store, Some(node(2)), Some("edge-2"), "another").await;
    add(store, None, Some("edge-1"), "name").await;
    add(store, Some(node(1)), None, "id").await;
    add(store, None, None, "nobody").await;
    let by_id = EventFilter { node_id: Some(node(1)), limit: 10, ..EventFilter::default() };
    assert_eq!(details(store, by_id.clone()).await, ["both", "id"]);
    let by_name = EventFilter { name: Some("edge-1".into()), limit: 10, ..EventFilter::default() };
    assert_eq!(details(store, by_name).await, ["both", "name"]);
    let by_both = EventFilter { name: Some("edge-1".into()), ..by_id };
    assert_eq!(details(store, by_both).await, ["both", "name", "id"]);
    let all = EventFilter { limit: 10, ..EventFilter::default() };
    assert_eq!(details(store, all.clone()).await, ["both", "another", "name", "id", "nobody"]);
    let newest = EventFilter { limit: 2, ..all };
    assert_eq!(details(store, newest.clone()).await, ["id", "nobody"]);

    let event = &store.events(&newest).await.unwrap()[0];
    assert_eq!((event.role.as_str(), event.kind.as_str()), ("registrar", "test"));
    assert_eq!((event.node_id, event.name.as_deref()), (Some(node(1)), None));
    assert!((store.now_ms().await.unwrap() - event.at_ms).abs() < 60_000);
}

pub(crate) async fn events_after_an_id_are_the_first_after_it(stores: &Stores) {
    let store = &*stores.registrar;
    for detail in ["1", "2", "3", "4"] {
        add(store, Some(node(1)), Some("edge-1"), detail).await;
    }
    let all = store.events(&EventFilter { limit: 10, ..EventFilter::default() }).await.unwrap();
    let after = EventFilter { after_id: Some(all[0].id), limit: 2, ..EventFilter::default() };
    assert_eq!(details(store, after).await, ["2", "3"]);
    let after = EventFilter { after_id: Some(all[3].id), limit: 2, ..EventFilter::default() };
    assert!(details(store, after).await.is_empty());
}

pub(crate) async fn a_long_detail_is_cut_and_a_nul_replaced(stores: &Stores) {
    let store = &*stores.registrar;
    add(store, None, None, &"é".repeat(1000)).await;
    add(store, None, None, "a\0b").await;
    let all = EventFilter { limit: 10, ..EventFilter::default() };
    assert_eq!(details(store, all).await, ["é".repeat(512), "a\u{fffd}b".to_owned()]);
}

pub(crate) async fn a_stranger_pushes_out_only_his_own_events(stores: &Stores) {
    let store = &*stores.registrar;
    add(store, Some(node(1)), Some("edge-1"), "known").await;
    add(store, Some(node(1)), None, "another stranger").await;
    for number in 0..230 {
        add(store, Some(node(9)), None, &number.to_string()).await;
        add(store, None, None, &number.to_string()).await;
    }
    let of_stranger = EventFilter { node_id: Some(node(9)), limit: 1000, ..EventFilter::default() };
    let kept = details(store, of_stranger).await;
    assert_eq!((kept.len(), kept[0].as_str(), kept[199].as_str()), (200, "30", "229"));
    let of_node = EventFilter { node_id: Some(node(1)), limit: 1000, ..EventFilter::default() };
    assert_eq!(details(store, of_node).await, ["known", "another stranger"]);
    let all = EventFilter { limit: 1000, ..EventFilter::default() };
    assert_eq!(details(store, all).await.len(), 402, "who gave no id is one stranger");
}

pub(crate) async fn at_most_ten_thousand_events_are_kept_and_strangers_go_first(stores: &Stores) {
    let store = &*stores.registrar;
    // A fleet's first event, ten thousand of strangers' past the store, then as many as it takes to notice.
    add(store, Some(node(1)), Some("edge-1"), "oldest").await;
    let strangers = "WITH RECURSIVE numbers (number) AS (
            SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 10100)
        INSERT INTO event (at_ms, kind, detail) SELECT 0, 'test', 'stranger' FROM numbers";
    stores.raw(strangers).await;
    for number in 0..64 {
        add(store, Some(node(100 + number)), None, "stranger").await;
    }
    add(store, Some(node(1)), Some("edge-1"), "newest").await;
    let all = EventFilter { limit: 20_000, ..EventFilter::default() };
    let kept = details(store, all).await;
    assert!((9_900..=10_000).contains(&kept.len()), "{}", kept.len());
    let named = EventFilter { name: Some("edge-1".into()), limit: 10, ..EventFilter::default() };
    assert_eq!(details(store, named).await, ["oldest", "newest"]);
}
