//! Policies, logs, trust, verdicts and releases: the same for verifier and tenant, and tested on both.

use control_plane::store::{
    AppraiserStore, Checkpoint, Conflict, EventFilter, EvidenceRow, ImaList, NewEvent, Outcome, Release, Trust, UnixMs,
    VerdictRow, Written,
};
use protocol::limits;

use super::stores::{Stores, ak, conflict, loser, node, policy, sealing_id};

/// How long the verdicts here are valid.
const VALID_MS: i64 = 30_000;

/// A verdict about node `number`, valid for [`VALID_MS`] from `nonce_ms`.
pub(crate) fn verdict(number: u8, outcome: Outcome, (fence, counter): (i64, i64), nonce_ms: UnixMs) -> VerdictRow {
    VerdictRow {
        id: 0,
        node_id: node(number),
        nonce_ms,
        valid_ms: if matches!(outcome, Outcome::Good | Outcome::Unjudged) { VALID_MS } else { 0 },
        outcome,
        purpose: "attest".into(),
        policy: (outcome != Outcome::Unjudged).then(|| policy(1)),
        explanation: serde_json::json!({ "findings": [format!("{fence}/{counter}")], "nul": "\0" }),
        fence,
        counter,
    }
}

pub(crate) fn checkpoint(number: u8) -> Checkpoint {
    Checkpoint {
        reset_count: 7,
        restart_count: 1,
        clock: u64::MAX,
        firmware_version: 0x0123_4567_89ab_cdef,
        pcrs: vec![(11, 0, vec![number; 32]), (11, 7, vec![number; 32])],
        boot_log: Some([number; 32]),
        ima_entries: number.into(),
        ima_pcrs: vec![(11, vec![number; 32])],
        ima_keys: vec![vec![number; 91]],
        policy: Some([number; 32]),
    }
}

pub(crate) fn release(number: u8, sealing: u8, reset_count: u32) -> Release {
    Release {
        id: 0,
        node_id: node(number),
        sealing_id: sealing_id(sealing),
        nk_digest: [1; 32],
        quote_digest: [2; 32],
        nonce: [3; 32],
        reset_count,
        restart_count: u32::MAX,
        at_ms: 0,
        confirmed_ms: None,
    }
}

async fn write(store: &dyn AppraiserStore, outcome: Outcome, order: (i64, i64)) -> Written {
    let now_ms = store.now_ms().await.unwrap();
    let number = order.1 as u8;
    store.write_verdict(&verdict(1, outcome, order, now_ms), Some(&checkpoint(number))).await.unwrap()
}

async fn trust(store: &dyn AppraiserStore) -> Trust {
    store.attestation(node(1)).await.unwrap().unwrap().trust
}

async fn history(store: &dyn AppraiserStore) -> Vec<(Outcome, i64)> {
    let verdicts = store.verdicts(Some(node(1)), 1000).await.unwrap();
    assert!(verdicts.is_sorted_by(|a, b| a.id > b.id));
    verdicts.into_iter().map(|verdict| (verdict.outcome, verdict.counter)).collect()
}

pub(crate) async fn a_policy_is_stored_once_and_found(stores: &Stores) {
    for store in stores.appraisers() {
        assert_eq!(store.policy(policy(2)).await.unwrap(), None);
        store.put_policy(policy(2), "base", b"one").await.unwrap();
        store.put_policy(policy(1), "base", b"two").await.unwrap();
        store.put_policy(policy(2), "renamed", b"one").await.unwrap();
        let stored = store.policy(policy(2)).await.unwrap().unwrap();
        assert_eq!((stored.id, stored.name.as_str(), stored.body.as_slice()), (policy(2), "base", b"one".as_slice()));
        let all = store.policies().await.unwrap();
        assert!(all.iter().all(|row| row.body.is_empty()), "a list of policies does not hold their texts");
        let all: Vec<_> = all.into_iter().map(|row| row.id).collect();
        assert_eq!(all, [policy(2), policy(1)]);
    }
}

pub(crate) async fn a_boot_log_is_stored_once_and_found(stores: &Stores) {
    for store in stores.appraisers() {
        let log = vec![5; 500_000];
        assert_eq!(store.boot_log([1; 32]).await.unwrap(), None);
        store.put_boot_log([1; 32], &log).await.unwrap();
        store.put_boot_log([1; 32], &log).await.unwrap();
        store.put_boot_log([2; 32], b"").await.unwrap();
        assert_eq!(store.boot_log([1; 32]).await.unwrap(), Some(log));
        assert_eq!(store.boot_log([2; 32]).await.unwrap(), Some(vec![]));
    }
}

pub(crate) async fn a_node_never_seen_has_no_attestation(stores: &Stores) {
    for store in stores.appraisers() {
        assert_eq!(store.attestation(node(1)).await.unwrap(), None);
        store.take_fence(node(1)).await.unwrap();
        let seen = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((seen.trust, seen.verdict, seen.checkpoint, seen.ak), (Trust::None, None, None, None));
        assert_eq!(store.attestation(node(2)).await.unwrap(), None);
    }
}

pub(crate) async fn an_ak_is_pinned_once_both_ways(stores: &Stores) {
    for store in stores.appraisers() {
        store.pin_ak(node(1), ak(1), b"public").await.unwrap();
        store.pin_ak(node(1), ak(1), b"public").await.unwrap();
        assert_eq!(conflict(store.pin_ak(node(1), ak(2), b"other").await), Conflict::NodeBoundToOtherAk);
        assert_eq!(conflict(store.pin_ak(node(2), ak(1), b"public").await), Conflict::AkBoundToOtherNode);
        let stored = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!(stored.ak, Some((ak(1), b"public".to_vec())));
        assert_eq!(store.attestation(node(2)).await.unwrap(), None);
        // A row that was there before, without an AK.
        store.take_fence(node(3)).await.unwrap();
        store.pin_ak(node(3), ak(3), b"public").await.unwrap();
        assert!(store.attestation(node(3)).await.unwrap().unwrap().ak.is_some());
    }
}

pub(crate) async fn of_two_racing_pins_one_wins(stores: &Stores) {
    for store in stores.appraisers() {
        for number in 0..10 {
            let (first, second) = tokio::join!(
                store.pin_ak(node(number), ak(100 + number), b"a"),
                store.pin_ak(node(number), ak(200 + number), b"b")
            );
            assert_eq!(loser(first, second), Conflict::NodeBoundToOtherAk);
            let (first, second) = tokio::join!(
                store.pin_ak(node(100 + number), ak(number), b"a"),
                store.pin_ak(node(200 + number), ak(number), b"b")
            );
            assert_eq!(loser(first, second), Conflict::AkBoundToOtherNode);
        }
    }
}

pub(crate) async fn fences_ascend_and_never_start_again(stores: &Stores) {
    for store in stores.appraisers() {
        let first = store.take_fence(node(1)).await.unwrap();
        let (a, b, c) = tokio::join!(store.take_fence(node(1)), store.take_fence(node(1)), store.take_fence(node(1)));
        let mut taken = [a.unwrap(), b.unwrap(), c.unwrap()];
        taken.sort_unstable();
        assert!(first < taken[0] && taken[0] < taken[1] && taken[1] < taken[2]);
        store.forget_node(node(1)).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        assert!(store.take_fence(node(1)).await.unwrap() > taken[2]);
    }
}

pub(crate) async fn a_good_verdict_gives_trust_and_its_checkpoint(stores: &Stores) {
    for store in stores.appraisers() {
        let mut first = verdict(1, Outcome::Good, (5, 1), store.now_ms().await.unwrap());
        assert_eq!(store.write_verdict(&first, Some(&checkpoint(1))).await.unwrap(), Written::Applied);
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.resumed), (Trust::Good, false));
        assert_eq!(state.checkpoint, Some(checkpoint(1)));
        assert!(state.now_ms >= first.nonce_ms);
        first.id = state.verdict.as_ref().unwrap().id;
        assert_eq!(state.verdict, Some(first.clone()));
        assert_eq!(store.verdicts(None, 10).await.unwrap(), [first.clone()]);
        // A renewal without a checkpoint keeps the one that is there.
        let renewed = VerdictRow { counter: 2, policy: None, ..first };
        assert_eq!(store.write_verdict(&renewed, None).await.unwrap(), Written::Applied);
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.verdict, state.checkpoint), (Some(renewed.clone()), Some(checkpoint(1))));
        assert_eq!(store.verdicts(None, 10).await.unwrap(), [renewed]);
    }
}

pub(crate) async fn trust_turns_stale_by_the_clock_alone(stores: &Stores) {
    for store in stores.appraisers() {
        let now_ms = store.now_ms().await.unwrap();
        let brief = VerdictRow { valid_ms: 300, ..verdict(1, Outcome::Good, (1, 1), now_ms) };
        store.write_verdict(&brief, None).await.unwrap();
        assert_eq!(trust(store).await, Trust::Good);
        tokio::time::sleep(std::time::Duration::from_millis(350)).await;
        assert_eq!(trust(store).await, Trust::Stale);
        assert_eq!(write(store, Outcome::Good, (1, 2)).await, Written::Applied);
        assert_eq!(trust(store).await, Trust::Good);
        // The age counts from the nonce, not from the writing.
        store.write_verdict(&verdict(1, Outcome::Good, (1, 3), now_ms - VALID_MS - 1), None).await.unwrap();
        assert_eq!(trust(store).await, Trust::Stale);
    }
}

pub(crate) async fn a_nonce_from_the_future_is_stale(stores: &Stores) {
    for store in stores.appraisers() {
        let now_ms = store.now_ms().await.unwrap();
        store.write_verdict(&verdict(1, Outcome::Good, (1, 1), now_ms + 60_000), None).await.unwrap();
        assert_eq!(trust(store).await, Trust::Stale);
    }
}

pub(crate) async fn an_older_positive_verdict_is_superseded(stores: &Stores) {
    for store in stores.appraisers() {
        assert_eq!(write(store, Outcome::Good, (5, 3)).await, Written::Applied);
        for order in [(5, 3), (5, 2), (4, 9)] {
            for outcome in [Outcome::Good, Outcome::Unjudged] {
                assert_eq!(write(store, outcome, order).await, Written::Superseded);
            }
        }
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.checkpoint), (Trust::Good, Some(checkpoint(3))));
        assert_eq!(state.verdict.unwrap().counter, 3);
        assert_eq!(write(store, Outcome::Good, (5, 4)).await, Written::Applied);
        assert_eq!(write(store, Outcome::Good, (6, 1)).await, Written::Applied);
        assert_eq!(history(store).await, [(Outcome::Good, 1)]);
    }
}

pub(crate) async fn a_negative_verdict_counts_however_old_it_is(stores: &Stores) {
    for store in stores.appraisers() {
        write(store, Outcome::Good, (5, 3)).await;
        assert_eq!(write(store, Outcome::Failed, (4, 1)).await, Written::Applied);
        assert_eq!(trust(store).await, Trust::Failed);
        assert_eq!(history(store).await, [(Outcome::Failed, 1), (Outcome::Good, 3)]);
        // The order goes on from the newest number that was seen.
        store.resume(node(1)).await.unwrap();
        assert_eq!(write(store, Outcome::Good, (5, 2)).await, Written::Superseded);
        assert_eq!(write(store, Outcome::Good, (5, 4)).await, Written::Applied);
        assert_eq!(trust(store).await, Trust::Good);
    }
}

pub(crate) async fn a_failed_node_becomes_good_only_after_resume(stores: &Stores) {
    for store in stores.appraisers() {
        write(store, Outcome::Failed, (1, 1)).await;
        assert_eq!(write(store, Outcome::Good, (1, 2)).await, Written::Superseded);
        assert_eq!(write(store, Outcome::Good, (2, 1)).await, Written::Superseded);
        assert_eq!(trust(store).await, Trust::Failed);
        store.resume(node(1)).await.unwrap();
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.resumed), (Trust::Failed, true));
        assert_eq!(write(store, Outcome::Good, (2, 2)).await, Written::Applied);
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.resumed), (Trust::Good, false));
        assert_eq!(history(store).await, [(Outcome::Good, 2), (Outcome::Failed, 1)]);
    }
}

pub(crate) async fn a_negative_verdict_clears_a_pending_resume(stores: &Stores) {
    for store in stores.appraisers() {
        write(store, Outcome::Failed, (1, 1)).await;
        store.resume(node(1)).await.unwrap();
        write(store, Outcome::Failed, (1, 2)).await;
        assert!(!store.attestation(node(1)).await.unwrap().unwrap().resumed);
        assert_eq!(write(store, Outcome::Good, (1, 3)).await, Written::Superseded);
        assert_eq!(trust(store).await, Trust::Failed);
    }
}

pub(crate) async fn an_unjudged_verdict_gives_no_trust_and_ends_no_failure(stores: &Stores) {
    for store in stores.appraisers() {
        assert_eq!(write(store, Outcome::Unjudged, (1, 1)).await, Written::Applied);
        assert_eq!(write(store, Outcome::Unjudged, (1, 2)).await, Written::Applied);
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.checkpoint), (Trust::None, Some(checkpoint(2))));
        write(store, Outcome::Good, (1, 3)).await;
        assert_eq!(trust(store).await, Trust::Good);
        write(store, Outcome::Unjudged, (1, 4)).await;
        assert_eq!(trust(store).await, Trust::None);
        write(store, Outcome::Failed, (1, 5)).await;
        store.resume(node(1)).await.unwrap();
        assert_eq!(write(store, Outcome::Unjudged, (1, 6)).await, Written::Superseded);
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.resumed), (Trust::Failed, true));
        let outcomes = [(Outcome::Failed, 5), (Outcome::Unjudged, 4), (Outcome::Good, 3), (Outcome::Unjudged, 1)];
        assert_eq!(history(store).await, outcomes);
    }
}

pub(crate) async fn counters_that_went_back_stay_visible_until_resumed(stores: &Stores) {
    for store in stores.appraisers() {
        write(store, Outcome::Good, (1, 1)).await;
        write(store, Outcome::RolledBack, (1, 2)).await;
        write(store, Outcome::Failed, (1, 3)).await;
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.checkpoint), (Trust::RolledBack, Some(checkpoint(1))));
        assert_eq!(state.verdict.unwrap().outcome, Outcome::Failed);
        assert_eq!(write(store, Outcome::Good, (1, 4)).await, Written::Superseded);
        store.resume(node(1)).await.unwrap();
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.checkpoint, state.resumed), (Trust::RolledBack, None, true));
        assert_eq!(write(store, Outcome::Good, (1, 5)).await, Written::Applied);
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.checkpoint), (Trust::Good, Some(checkpoint(5))));
        // A failure after the operator looked is a failure.
        write(store, Outcome::RolledBack, (1, 6)).await;
        store.resume(node(1)).await.unwrap();
        write(store, Outcome::Failed, (1, 7)).await;
        assert_eq!(trust(store).await, Trust::Failed);
    }
}

pub(crate) async fn resuming_a_good_or_unknown_node_changes_nothing(stores: &Stores) {
    for store in stores.appraisers() {
        store.resume(node(1)).await.unwrap();
        assert_eq!(store.attestation(node(1)).await.unwrap(), None);
        write(store, Outcome::Good, (1, 1)).await;
        store.resume(node(1)).await.unwrap();
        let state = store.attestation(node(1)).await.unwrap().unwrap();
        assert_eq!((state.trust, state.resumed, state.checkpoint), (Trust::Good, false, Some(checkpoint(1))));
    }
}

pub(crate) async fn a_negative_verdict_keeps_the_checkpoint(stores: &Stores) {
    for store in stores.appraisers() {
        write(store, Outcome::Good, (1, 1)).await;
        write(store, Outcome::Failed, (1, 2)).await;
        assert_eq!(store.attestation(node(1)).await.unwrap().unwrap().checkpoint, Some(checkpoint(1)));
    }
}

pub(crate) async fn renewals_replace_the_newest_verdict_in_the_history(stores: &Stores) {
    for store in stores.appraisers() {
        write(store, Outcome::Good, (1, 1)).await;
        for counter in 2..50 {
            assert_eq!(write(store, Outcome::Good, (1, counter)).await, Written::Applied);
        }
        assert_eq!(history(store).await, [(Outcome::Good, 49)]);
        write(store, Outcome::Failed, (1, 50)).await;
        write(store, Outcome::Failed, (1, 51)).await;
        let outcomes = history(store).await;
        assert_eq!(outcomes[..2], [(Outcome::Failed, 51), (Outcome::Failed, 50)]);
        assert_eq!(outcomes.len(), 3);
        // Of all nodes, newest first.
        let other = verdict(2, Outcome::Failed, (1, 1), 0);
        store.write_verdict(&other, None).await.unwrap();
        let all = store.verdicts(None, 2).await.unwrap();
        assert_eq!([all[0].node_id, all[1].node_id], [node(2), node(1)]);
        assert_eq!(all.len(), 2);
    }
}

pub(crate) async fn at_most_two_hundred_verdicts_of_a_node_are_kept(stores: &Stores) {
    let store = &*stores.verifier;
    store.write_verdict(&verdict(2, Outcome::Failed, (1, 1), 0), None).await.unwrap();
    for counter in 1..=210 {
        store.write_verdict(&verdict(1, Outcome::Failed, (1, counter), 0), None).await.unwrap();
    }
    let kept = history(store).await;
    assert_eq!((kept.len(), kept[0].1, kept[199].1), (200, 210, 11));
    assert_eq!(store.verdicts(Some(node(2)), 10).await.unwrap().len(), 1);
}

pub(crate) async fn racing_verdicts_leave_the_newest(stores: &Stores) {
    for store in stores.appraisers() {
        let now_ms = store.now_ms().await.unwrap();
        for round in 1..10 {
            let verdicts: Vec<_> = (0..4).map(|order| verdict(1, Outcome::Good, (round, order), now_ms)).collect();
            let checkpoints: Vec<_> = (0..4).map(|order| checkpoint(10 * round as u8 + order)).collect();
            let write = |order: usize| store.write_verdict(&verdicts[order], Some(&checkpoints[order]));
            let (a, b, c, d) = tokio::join!(write(2), write(0), write(3), write(1));
            for result in [a, b, c, d] {
                result.unwrap();
            }
            let state = store.attestation(node(1)).await.unwrap().unwrap();
            assert_eq!(state.verdict.unwrap().counter, 3);
            assert_eq!(state.checkpoint.as_ref(), Some(&checkpoints[3]));
        }
        // A negative one among them is never lost.
        let (good, failed) = (verdict(1, Outcome::Good, (99, 9), now_ms), verdict(1, Outcome::Failed, (99, 1), now_ms));
        let (a, b) = tokio::join!(store.write_verdict(&good, None), store.write_verdict(&failed, None));
        a.unwrap();
        b.unwrap();
        assert_eq!(trust(store).await, Trust::Failed);
    }
}

pub(crate) async fn releases_are_on_record_and_confirmed_once(stores: &Stores) {
    for store in stores.appraisers() {
        let first = store.add_release(&release(1, 1, 7)).await.unwrap();
        let second = store.add_release(&release(1, 1, 7)).await.unwrap();
        let other = store.add_release(&release(1, 2, 7)).await.unwrap();
        assert!(first < second && second < other);
        let stored = store.releases(node(1), 10).await.unwrap();
        assert_eq!(stored.iter().map(|release| release.id).collect::<Vec<_>>(), [other, second, first]);
        assert!(stored.iter().all(|release| release.at_ms > 0 && release.confirmed_ms.is_none()));
        assert_eq!(stored[2], Release { id: first, at_ms: stored[2].at_ms, ..release(1, 1, 7) });

        store.confirm_release(node(1), sealing_id(1), 6).await.unwrap();
        store.confirm_release(node(2), sealing_id(1), 7).await.unwrap();
        assert!(store.releases(node(1), 10).await.unwrap().iter().all(|release| release.confirmed_ms.is_none()));
        store.confirm_release(node(1), sealing_id(1), 7).await.unwrap();
        let confirmed = store.releases(node(1), 10).await.unwrap();
        let marks: Vec<_> = confirmed.iter().map(|release| release.confirmed_ms.is_some()).collect();
        assert_eq!(marks, [false, true, true]);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        store.confirm_release(node(1), sealing_id(1), 7).await.unwrap();
        assert_eq!(store.releases(node(1), 10).await.unwrap(), confirmed);
        assert_eq!(store.releases(node(1), 1).await.unwrap().len(), 1);
    }
}

pub(crate) async fn a_delivery_is_confirmed_and_told_once(stores: &Stores) {
    for store in stores.appraisers() {
        store.add_release(&release(1, 1, 7)).await.unwrap();
        let event = NewEvent { node_id: Some(node(1)), name: None, kind: "delivered", detail: "in place".into() };
        let told = EventFilter { node_id: Some(node(1)), limit: 10, ..EventFilter::default() };
        // Of another boot: nothing is confirmed, so nothing is told.
        assert!(!store.confirm_delivery(node(1), sealing_id(1), 6, &event).await.unwrap());
        assert!(store.events(&told).await.unwrap().is_empty());
        assert!(store.confirm_delivery(node(1), sealing_id(1), 7, &event).await.unwrap());
        assert!(!store.confirm_delivery(node(1), sealing_id(1), 7, &event).await.unwrap());
        let events = store.events(&told).await.unwrap();
        assert_eq!(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), ["delivered"]);
        assert!(store.releases(node(1), 10).await.unwrap()[0].confirmed_ms.is_some());
    }
}

pub(crate) async fn a_second_release_after_the_confirmation_is_refused(stores: &Stores) {
    for store in stores.appraisers() {
        store.add_release(&release(1, 1, 7)).await.unwrap();
        store.confirm_release(node(1), sealing_id(1), 7).await.unwrap();
        for sealing in [1, 2] {
            let result = store.add_release(&release(1, sealing, 7)).await;
            assert_eq!(conflict(result), Conflict::AlreadyDelivered);
        }
        assert_eq!(store.releases(node(1), 10).await.unwrap().len(), 1);
        // The next boot, and another node.
        store.add_release(&release(1, 1, 8)).await.unwrap();
        store.add_release(&release(2, 1, 7)).await.unwrap();
    }
}

pub(crate) async fn a_rolled_back_node_may_be_delivered_again_under_an_old_reset_count(stores: &Stores) {
    for store in stores.appraisers() {
        store.add_release(&release(1, 1, 7)).await.unwrap();
        store.confirm_release(node(1), sealing_id(1), 7).await.unwrap();
        write(store, Outcome::RolledBack, (1, 1)).await;
        assert_eq!(conflict(store.add_release(&release(1, 1, 7)).await), Conflict::AlreadyDelivered);
        store.resume(node(1)).await.unwrap();
        store.add_release(&release(1, 1, 7)).await.unwrap();
        store.confirm_release(node(1), sealing_id(1), 7).await.unwrap();
        assert_eq!(conflict(store.add_release(&release(1, 1, 7)).await), Conflict::AlreadyDelivered);
    }
}

pub(crate) async fn at_most_two_hundred_unconfirmed_releases_of_a_node_are_kept(stores: &Stores) {
    let store = &*stores.tenant;
    store.add_release(&release(1, 1, 6)).await.unwrap();
    store.confirm_release(node(1), sealing_id(1), 6).await.unwrap();
    for _ in 0..210 {
        store.add_release(&release(1, 1, 7)).await.unwrap();
    }
    let kept = store.releases(node(1), 1000).await.unwrap();
    assert_eq!(kept.len(), 201);
    assert!(kept[200].confirmed_ms.is_some());
    assert_eq!(conflict(store.add_release(&release(1, 1, 6)).await), Conflict::AlreadyDelivered);
}

/// The boot that the lists here are of.
const BOOT: (u32, u32) = (7, u32::MAX);

fn evidence(number: u8) -> EvidenceRow {
    EvidenceRow {
        node_id: node(number),
        at_ms: 0,
        purpose: "attest".into(),
        attested: vec![number; 145],
        signature: vec![1; 72],
        qualifying_data: [number; 32],
        ak_name: ak(number),
        hardware: "certified".into(),
        pcrs: vec![(4, 0, vec![1; 20]), (11, 23, vec![number; 32])],
        reset_count: 7,
        restart_count: u32::MAX,
        boot_log: Some([3; 32]),
        command_line: Some(b"quiet \xff".to_vec()),
        userspace: Some(Vec::new()),
        has_ima: true,
        ima_entries: Some(12),
    }
}

/// One entry of an IMA list; its bytes tell its number, and lengths differ.
fn entry(number: u32) -> Vec<u8> {
    let mut entry = 10_u32.to_le_bytes().to_vec();
    entry.extend_from_slice(&[number as u8; 20]);
    if number.is_multiple_of(3) {
        entry.extend_from_slice(b"\x03\0\0\0ima");
        entry.extend_from_slice(&[2; 20]);
    } else {
        entry.extend_from_slice(b"\x06\0\0\0ima-ng");
    }
    let data = vec![number as u8; 20 + number as usize % 7];
    entry.extend_from_slice(&(data.len() as u32).to_le_bytes());
    entry.extend_from_slice(&data);
    entry
}

fn entries(numbers: std::ops::Range<u32>) -> Vec<u8> {
    numbers.flat_map(entry).collect()
}

#[track_caller]
fn assert_list(list: Option<ImaList>, numbers: std::ops::Range<u32>) {
    let expected = ImaList { epoch: BOOT, entries: numbers.end.into(), bytes: entries(numbers) };
    assert!(list.as_ref() == Some(&expected), "{:?} entries", list.map(|list| list.entries));
}

pub(crate) async fn evidence_comes_back_whole_and_only_the_last_is_kept(stores: &Stores) {
    for store in stores.appraisers() {
        assert_eq!(store.evidence(node(1)).await.unwrap(), None);
        let before = store.now_ms().await.unwrap();
        store.put_evidence(&evidence(1)).await.unwrap();
        store.put_evidence(&evidence(2)).await.unwrap();
        let stored = store.evidence(node(1)).await.unwrap().unwrap();
        assert!(stored.at_ms >= before);
        assert_eq!(stored, EvidenceRow { at_ms: stored.at_ms, ..evidence(1) });
        let bare = EvidenceRow {
            purpose: "bootstrap".into(),
            boot_log: None,
            command_line: None,
            userspace: None,
            has_ima: false,
            ima_entries: None,
            ..evidence(1)
        };
        store.put_evidence(&bare).await.unwrap();
        let stored = store.evidence(node(1)).await.unwrap().unwrap();
        assert_eq!(stored, EvidenceRow { at_ms: stored.at_ms, ..bare });
        assert_eq!(store.evidence(node(2)).await.unwrap().unwrap().ima_entries, Some(12));
    }
}

pub(crate) async fn an_ima_list_grows_part_by_part(stores: &Stores) {
    for store in stores.appraisers() {
        assert_eq!(store.ima_list(node(1)).await.unwrap(), None);
        let mut end = 0;
        // Small ones, none, and one that stands alone.
        for count in [1, 5, 0, 40, 3_000, 1, 2, 900] {
            let part = entries(end..end + count);
            store.put_ima_part(node(1), end.into(), count.into(), &part, BOOT).await.unwrap();
            end += count;
            assert_list(store.ima_list(node(1)).await.unwrap(), 0..end);
        }
        assert_eq!(store.ima_list(node(2)).await.unwrap(), None);
    }
}

pub(crate) async fn entries_shown_again_replace_those_kept_from_there_on(stores: &Stores) {
    for store in stores.appraisers() {
        store.put_ima_part(node(1), 0, 2_000, &entries(0..2_000), BOOT).await.unwrap();
        store.put_ima_part(node(1), 2_000, 3, &entries(2_000..2_003), BOOT).await.unwrap();
        // Fewer than before, from within the last part, from within the first, and from the beginning.
        for (first, end) in [(2_000, 2_001), (2_000, 2_004), (2_002, 2_003), (1_000, 1_500), (0, 4), (2, 3), (0, 0)] {
            store.put_ima_part(node(1), first.into(), (end - first).into(), &entries(first..end), BOOT).await.unwrap();
            match end {
                0 => assert_eq!(store.ima_list(node(1)).await.unwrap(), None),
                end => assert_list(store.ima_list(node(1)).await.unwrap(), 0..end),
            }
        }
    }
}

pub(crate) async fn a_part_that_leaves_a_gap_is_not_kept(stores: &Stores) {
    for store in stores.appraisers() {
        store.put_ima_part(node(1), 3, 1, &entries(3..4), BOOT).await.unwrap();
        assert_eq!(store.ima_list(node(1)).await.unwrap(), None);
        store.put_ima_part(node(1), 0, 2, &entries(0..2), BOOT).await.unwrap();
        store.put_ima_part(node(1), 3, 1, &entries(3..4), BOOT).await.unwrap();
        assert_list(store.ima_list(node(1)).await.unwrap(), 0..2);
    }
}

pub(crate) async fn another_boot_begins_the_list_anew(stores: &Stores) {
    for store in stores.appraisers() {
        store.put_ima_part(node(1), 0, 9, &entries(0..9), (7, 0)).await.unwrap();
        store.put_ima_part(node(1), 9, 1, &entries(9..10), BOOT).await.unwrap();
        assert_eq!(store.ima_list(node(1)).await.unwrap(), None);
        store.put_ima_part(node(1), 0, 9, &entries(0..9), (6, u32::MAX)).await.unwrap();
        store.put_ima_part(node(1), 0, 2, &entries(0..2), BOOT).await.unwrap();
        assert_list(store.ima_list(node(1)).await.unwrap(), 0..2);
    }
}

pub(crate) async fn a_list_above_its_limit_is_not_kept(stores: &Stores) {
    let store = &*stores.tenant;
    let mut long = entry(1);
    let len = limits::MAX_IMA_LOG_LEN - long.len() - 3;
    long.resize(long.len() + len, 1);
    // The length of the data of an ima-ng entry.
    long[34..38].copy_from_slice(&((20 + 1 + len) as u32).to_le_bytes());
    store.put_ima_part(node(1), 0, 1, &long, BOOT).await.unwrap();
    store.put_ima_part(node(1), 1, 1, &entry(1), BOOT).await.unwrap();
    let list = store.ima_list(node(1)).await.unwrap().unwrap();
    assert_eq!((list.entries, list.bytes.len()), (1, limits::MAX_IMA_LOG_LEN - 3));
}

pub(crate) async fn racing_parts_leave_a_list_without_gaps(stores: &Stores) {
    for store in stores.appraisers() {
        for _ in 0..10 {
            let (one, two) = (entries(0..5), entries(0..9));
            let (a, b) = tokio::join!(
                store.put_ima_part(node(1), 0, 5, &one, BOOT),
                store.put_ima_part(node(1), 0, 9, &two, BOOT)
            );
            a.unwrap();
            b.unwrap();
            let end = store.ima_list(node(1)).await.unwrap().unwrap().entries;
            assert!(end == 5 || end == 9, "{end}");
        }
    }
}

pub(crate) async fn a_forgotten_node_leaves_only_events(stores: &Stores) {
    for store in stores.appraisers() {
        for number in [1, 2] {
            store.pin_ak(node(number), ak(number), b"public").await.unwrap();
            store.write_verdict(&verdict(number, Outcome::Failed, (1, 1), 0), None).await.unwrap();
            store.add_release(&release(number, 1, 7)).await.unwrap();
            store.put_evidence(&evidence(number)).await.unwrap();
            store.put_ima_part(node(number), 0, 1, &entries(0..1), BOOT).await.unwrap();
        }
        let event = NewEvent { node_id: Some(node(1)), name: None, kind: "bound", detail: String::new() };
        store.add_event(&event).await.unwrap();
        store.forget_node(node(1)).await.unwrap();
        assert_eq!(store.attestation(node(1)).await.unwrap(), None);
        assert!(store.verdicts(Some(node(1)), 10).await.unwrap().is_empty());
        assert!(store.releases(node(1), 10).await.unwrap().is_empty());
        assert_eq!(store.evidence(node(1)).await.unwrap(), None);
        assert_eq!(store.ima_list(node(1)).await.unwrap(), None);
        assert!(store.evidence(node(2)).await.unwrap().is_some());
        assert!(store.ima_list(node(2)).await.unwrap().is_some());
        assert!(store.attestation(node(2)).await.unwrap().is_some());
        assert_eq!(store.verdicts(None, 10).await.unwrap().len(), 1);
        assert_eq!(store.releases(node(2), 10).await.unwrap().len(), 1);
        let filter = control_plane::store::EventFilter { limit: 10, ..Default::default() };
        assert_eq!(store.events(&filter).await.unwrap().len(), 1);
        // Its AK is free again.
        store.pin_ak(node(3), ak(1), b"public").await.unwrap();
    }
}
