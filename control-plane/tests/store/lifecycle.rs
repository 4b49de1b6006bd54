//! Opening, migrating, restarting.

use control_plane::store::{EventFilter, NewEvent, Outcome, StoreError};

use super::{
    appraiser::{checkpoint, release, verdict},
    registrar::binding,
    sealing,
    stores::{Stores, ak, join, node, policy, sealing_id},
    tenant::{by_id, by_join},
    verifier::verifier_node,
};

pub(crate) async fn migrations_again_change_nothing(stores: &Stores) {
    stores.registrar.bind(&binding(1, 1)).await.unwrap();
    stores.verifier.put_node(&verifier_node("edge-1", 1)).await.unwrap();
    stores.tenant.add_node(&by_id("edge-1", 1)).await.unwrap();
    stores.migrate().await.unwrap();
    let again = Stores::open(&stores.urls).await;
    again.migrate().await.unwrap();
    assert!(again.registrar.binding(node(1)).await.unwrap().is_some());
    assert!(again.verifier.node(node(1)).await.unwrap().is_some());
    assert!(again.tenant.node_by_id(node(1)).await.unwrap().is_some());
    again.close().await;
}

pub(crate) async fn two_processes_may_migrate_at_once(stores: &Stores) {
    let urls = stores.without_tables().await;
    let first = Stores::open(&urls).await;
    let second = Stores::open(&urls).await;
    let (one, two) = tokio::join!(first.migrate(), second.migrate());
    one.unwrap();
    two.unwrap();
    first.registrar.bind(&binding(1, 1)).await.unwrap();
    assert!(second.registrar.binding(node(1)).await.unwrap().is_some());
    first.close().await;
    second.close().await;
}

pub(crate) async fn nothing_works_before_the_tables_are_made(stores: &Stores) {
    let urls = stores.without_tables().await;
    let fresh = Stores::open(&urls).await;
    assert!(matches!(fresh.registrar.ping().await, Err(StoreError::Database(_))));
    assert!(matches!(fresh.registrar.bind(&binding(1, 1)).await, Err(StoreError::Database(_))));
    fresh.registrar.migrate().await.unwrap();
    fresh.registrar.ping().await.unwrap();
    fresh.close().await;
}

pub(crate) async fn everything_is_there_after_a_restart(stores: &Stores) {
    let Stores { registrar, verifier, tenant, .. } = stores;
    registrar.admit_node(node(1), "edge-1").await.unwrap();
    registrar.bind(&binding(1, 1)).await.unwrap();
    verifier.put_policy(policy(1), "base", b"version = 1").await.unwrap();
    verifier.put_boot_log([1; 32], b"log").await.unwrap();
    verifier.put_node(&verifier_node("edge-1", 1)).await.unwrap();
    verifier.agree(node(1), ak(1), sealing_id(1)).await.unwrap();
    verifier.pin_ak(node(1), ak(1), b"public").await.unwrap();
    let fence = verifier.take_fence(node(1)).await.unwrap();
    let now_ms = verifier.now_ms().await.unwrap();
    verifier.write_verdict(&verdict(1, Outcome::Good, (fence, 1), now_ms), Some(&checkpoint(1))).await.unwrap();
    verifier.write_verdict(&verdict(1, Outcome::Good, (fence, 2), now_ms), Some(&checkpoint(2))).await.unwrap();
    verifier.add_release(&release(1, 1, 7)).await.unwrap();
    tenant.add_node(&by_join("edge-1", 5)).await.unwrap();
    tenant.join_node(join(5), node(1)).await.unwrap();
    sealing::complete(stores, 1).await;
    let event = NewEvent { node_id: Some(node(1)), name: Some("edge-1".into()), kind: "bound", detail: "yes".into() };
    tenant.add_event(&event).await.unwrap();

    stores.close().await;
    let Stores { registrar, verifier, tenant, .. } = Stores::open(&stores.urls).await;
    assert_eq!(registrar.admitted_name(node(1)).await.unwrap().as_deref(), Some("edge-1"));
    assert_eq!(registrar.binding(node(1)).await.unwrap().unwrap().ak_name, ak(1));
    assert_eq!(verifier.policy(policy(1)).await.unwrap().unwrap().body, b"version = 1");
    assert_eq!(verifier.boot_log([1; 32]).await.unwrap().unwrap(), b"log");
    let kept = verifier.node(node(1)).await.unwrap().unwrap();
    assert_eq!(kept.agreed, Some((ak(1), sealing_id(1))));
    let attestation = verifier.attestation(node(1)).await.unwrap().unwrap();
    assert_eq!(attestation.ak, Some((ak(1), b"public".to_vec())));
    assert_eq!(attestation.checkpoint, Some(checkpoint(2)));
    assert_eq!(attestation.verdict.unwrap().counter, 2);
    assert!(verifier.take_fence(node(1)).await.unwrap() > fence);
    assert_eq!(verifier.releases(node(1), 10).await.unwrap().len(), 1);
    assert_eq!(tenant.node_by_id(node(1)).await.unwrap().unwrap().name, "edge-1");
    assert_eq!(tenant.join(join(5)).await.unwrap().unwrap().used_by, Some(node(1)));
    assert!(tenant.sealing(sealing_id(1)).await.unwrap().unwrap().complete);
    assert_eq!(tenant.chunk(sealing_id(1), 0).await.unwrap(), Some(sealing::chunk(0)));
    let events = tenant.events(&EventFilter { limit: 10, ..EventFilter::default() }).await.unwrap();
    assert_eq!(events.last().unwrap().detail, "yes");
    registrar.close().await;
    verifier.close().await;
    tenant.close().await;
}

pub(crate) async fn the_clock_is_the_present_and_does_not_stand_still(stores: &Stores) {
    let here =
        i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let now_ms = stores.registrar.now_ms().await.unwrap();
    assert!((now_ms - here).abs() < 60_000, "{now_ms} against {here}");
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert!(stores.registrar.now_ms().await.unwrap() > now_ms);
    assert!(stores.verifier.now_ms().await.unwrap() > now_ms);
    assert!(stores.tenant.now_ms().await.unwrap() > now_ms);
}
