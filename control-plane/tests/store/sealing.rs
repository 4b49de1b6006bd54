//! Sealings and their chunks.

use control_plane::store::{Conflict, tenant::SealingRow};
use protocol::id::Subject;
use sha2::{Digest, Sha256};

use super::{
    stores::{Stores, assert_not_found, conflict, join, node, sealing_id},
    tenant::{by_id, by_join},
};

/// Bytes of a chunk that is not the last.
pub(crate) const CHUNK_LEN: u64 = 64 * 1024 + 16;

/// Chunk `index` of every ciphertext here, but for the last one's length.
pub(crate) fn chunk(index: u32) -> Vec<u8> {
    vec![index as u8 + 1; CHUNK_LEN as usize]
}

fn chunks(len: u64) -> Vec<Vec<u8>> {
    let mut left = len;
    let mut chunks = Vec::new();
    for index in 0.. {
        if left == 0 {
            break;
        }
        let mut chunk = chunk(index);
        chunk.truncate(left.min(CHUNK_LEN) as usize);
        left -= chunk.len() as u64;
        chunks.push(chunk);
    }
    chunks
}

/// Sealing `number` for node `number`, of `len` bytes.
pub(crate) fn sealing(number: u8, len: u64) -> SealingRow {
    let digest = chunks(len).iter().fold(Sha256::new(), |hash, chunk| hash.chain_update(chunk)).finalize();
    SealingRow {
        sealing_id: sealing_id(number),
        subject: Subject::Node(node(number)),
        manifest: vec![number; 200],
        signature: [number; 64],
        u_sealed: vec![number; 161],
        v_sealed: vec![number; 113],
        ciphertext_len: len,
        ciphertext_digest: digest.into(),
        complete: false,
        created_ms: 0,
    }
}

/// Uploads sealing `number` for node `number` and completes it.
pub(crate) async fn complete(stores: &Stores, number: u8) {
    upload(stores, &sealing(number, CHUNK_LEN + 100)).await;
}

async fn upload(stores: &Stores, sealing: &SealingRow) {
    stores.tenant.begin_sealing(sealing).await.unwrap();
    for (index, chunk) in (0..).zip(chunks(sealing.ciphertext_len)) {
        stores.tenant.put_chunk(sealing.sealing_id, index, &chunk).await.unwrap();
    }
    stores.tenant.finish_sealing(sealing.sealing_id).await.unwrap();
}

pub(crate) async fn a_sealing_is_complete_only_with_all_its_chunks(stores: &Stores) {
    let store = &stores.tenant;
    // More chunks than are hashed at once, uploaded backwards.
    let mut sealing = sealing(1, 20 * CHUNK_LEN + 17);
    store.begin_sealing(&sealing).await.unwrap();
    let chunks = chunks(sealing.ciphertext_len);
    for (index, chunk) in (0..21).zip(&chunks).rev() {
        assert_eq!(conflict(store.finish_sealing(sealing.sealing_id).await), Conflict::SealingIncomplete);
        store.put_chunk(sealing.sealing_id, index, chunk).await.unwrap();
    }
    store.finish_sealing(sealing.sealing_id).await.unwrap();
    store.finish_sealing(sealing.sealing_id).await.unwrap();
    let stored = store.sealing(sealing.sealing_id).await.unwrap().unwrap();
    assert!(stored.created_ms > 0);
    sealing.created_ms = stored.created_ms;
    sealing.complete = true;
    assert_eq!(stored, sealing);
    for (index, chunk) in (0..).zip(chunks) {
        assert_eq!(store.chunk(sealing.sealing_id, index).await.unwrap(), Some(chunk));
    }
    assert_eq!(store.chunk(sealing.sealing_id, 21).await.unwrap(), None);
    assert_eq!(store.chunk(sealing_id(2), 0).await.unwrap(), None);
}

pub(crate) async fn a_missing_or_altered_chunk_completes_nothing(stores: &Stores) {
    let store = &stores.tenant;
    let sealing = sealing(1, 3 * CHUNK_LEN);
    let id = sealing.sealing_id;
    store.begin_sealing(&sealing).await.unwrap();
    store.put_chunk(id, 0, &chunk(0)).await.unwrap();
    store.put_chunk(id, 2, &chunk(2)).await.unwrap();
    assert_eq!(conflict(store.finish_sealing(id).await), Conflict::SealingIncomplete);
    store.put_chunk(id, 1, &chunk(7)).await.unwrap();
    assert_eq!(conflict(store.finish_sealing(id).await), Conflict::SealingIncomplete);
    assert!(!store.sealing(id).await.unwrap().unwrap().complete);
    store.put_chunk(id, 1, &chunk(1)).await.unwrap();
    store.finish_sealing(id).await.unwrap();
}

pub(crate) async fn a_chunk_of_another_length_or_beyond_the_end_is_refused(stores: &Stores) {
    let store = &stores.tenant;
    let sealing = sealing(1, CHUNK_LEN + 100);
    let id = sealing.sealing_id;
    store.begin_sealing(&sealing).await.unwrap();
    for (index, len) in
        [(0, CHUNK_LEN - 1), (0, CHUNK_LEN + 1), (0, 0), (1, 99), (1, CHUNK_LEN), (2, 0), (2, 1), (u32::MAX, 5)]
    {
        let result = store.put_chunk(id, index, &vec![1; len as usize]).await;
        assert_eq!(conflict(result), Conflict::SealingIncomplete, "{index} {len}");
        assert_eq!(store.chunk(id, index).await.unwrap(), None);
    }
}

pub(crate) async fn an_interrupted_sealing_is_taken_up_again(stores: &Stores) {
    let sealing = sealing(1, 2 * CHUNK_LEN + 100);
    stores.tenant.begin_sealing(&sealing).await.unwrap();
    stores.tenant.put_chunk(sealing.sealing_id, 0, &chunk(0)).await.unwrap();
    // The process dies and another one goes on.
    let again = Stores::open(&stores.urls).await;
    upload(&again, &sealing).await;
    again.close().await;
    assert!(stores.tenant.sealing(sealing.sealing_id).await.unwrap().unwrap().complete);
}

pub(crate) async fn another_sealing_of_the_same_id_is_refused(stores: &Stores) {
    let store = &stores.tenant;
    let sealing = sealing(1, 100);
    store.begin_sealing(&sealing).await.unwrap();
    let others = [
        SealingRow { subject: Subject::Join(join(1)), ..sealing.clone() },
        SealingRow { manifest: vec![9], ..sealing.clone() },
        SealingRow { signature: [9; 64], ..sealing.clone() },
        SealingRow { u_sealed: vec![9], ..sealing.clone() },
        SealingRow { v_sealed: vec![9], ..sealing.clone() },
        SealingRow { ciphertext_len: 99, ..sealing.clone() },
        SealingRow { ciphertext_digest: [9; 32], ..sealing.clone() },
    ];
    for other in others {
        assert_eq!(conflict(store.begin_sealing(&other).await), Conflict::SealingExists);
    }
    store.begin_sealing(&sealing).await.unwrap();
    let endless = SealingRow { ciphertext_len: u64::MAX, ..super::sealing::sealing(2, 1) };
    assert_eq!(conflict(store.begin_sealing(&endless).await), Conflict::SealingIncomplete);
}

pub(crate) async fn a_complete_sealing_is_not_changed_any_more(stores: &Stores) {
    let store = &stores.tenant;
    complete(stores, 1).await;
    let id = sealing_id(1);
    assert_eq!(conflict(store.begin_sealing(&sealing(1, CHUNK_LEN + 100)).await), Conflict::SealingExists);
    assert_eq!(conflict(store.put_chunk(id, 0, &chunk(5)).await), Conflict::SealingComplete);
    assert_eq!(store.chunk(id, 0).await.unwrap(), Some(chunk(0)));
}

pub(crate) async fn an_unknown_sealing_takes_no_chunks(stores: &Stores) {
    assert_not_found(stores.tenant.put_chunk(sealing_id(1), 0, &chunk(0)).await);
    assert_not_found(stores.tenant.finish_sealing(sealing_id(1)).await);
    assert_eq!(stores.tenant.sealing(sealing_id(1)).await.unwrap(), None);
}

pub(crate) async fn chunks_and_completion_race_without_harm(stores: &Stores) {
    let store = &stores.tenant;
    for number in 1..10 {
        let sealing = sealing(number, CHUNK_LEN);
        let id = sealing.sealing_id;
        store.begin_sealing(&sealing).await.unwrap();
        store.put_chunk(id, 0, &chunk(0)).await.unwrap();
        let other = chunk(9);
        let (written, finished) = tokio::join!(store.put_chunk(id, 0, &other), store.finish_sealing(id));
        let stored = store.chunk(id, 0).await.unwrap();
        let complete = store.sealing(id).await.unwrap().unwrap().complete;
        match finished {
            Ok(()) => {
                assert!(complete && stored == Some(chunk(0)));
                assert_eq!(conflict(written), Conflict::SealingComplete);
            }
            Err(_) => {
                assert!(!complete && stored == Some(other));
                written.unwrap();
            }
        }
    }
}

pub(crate) async fn sealings_are_listed_newest_first_by_subject(stores: &Stores) {
    let store = &stores.tenant;
    for number in [1, 2, 3] {
        store.begin_sealing(&SealingRow { subject: Subject::Node(node(1)), ..sealing(number, 100) }).await.unwrap();
    }
    store.begin_sealing(&SealingRow { subject: Subject::Join(join(1)), ..sealing(4, 100) }).await.unwrap();
    store.begin_sealing(&sealing(5, 100)).await.unwrap();
    let subjects = [Subject::Join(join(1)), Subject::Node(node(1)), Subject::Join(join(1))];
    let found: Vec<_> = store.sealings(&subjects).await.unwrap().iter().map(|row| row.sealing_id).collect();
    assert_eq!(found, [4, 3, 2, 1].map(sealing_id));
    assert!(store.sealings(&[]).await.unwrap().is_empty());
}

pub(crate) async fn a_node_takes_only_a_complete_sealing_of_its_own(stores: &Stores) {
    let store = &stores.tenant;
    let sealed = |name, number, sealing| {
        let mut node = by_id(name, number);
        node.sealing_id = Some(sealing_id(sealing));
        node
    };
    assert_not_found(store.add_node(&sealed("edge-1", 1, 1)).await);
    store.begin_sealing(&sealing(1, CHUNK_LEN + 100)).await.unwrap();
    assert_eq!(conflict(store.add_node(&sealed("edge-1", 1, 1)).await), Conflict::SealingIncomplete);
    complete(stores, 1).await;
    assert_not_found(store.add_node(&sealed("edge-2", 2, 1)).await);
    store.add_node(&sealed("edge-1", 1, 1)).await.unwrap();

    let change = |sealing| control_plane::store::tenant::NodeChange {
        sealing_id: Some(sealing_id(sealing)),
        ..Default::default()
    };
    store.begin_sealing(&SealingRow { subject: Subject::Node(node(1)), ..sealing(2, 100) }).await.unwrap();
    assert_eq!(conflict(store.change_node("edge-1", &change(2)).await), Conflict::SealingIncomplete);
    assert_eq!(store.node_by_name("edge-1").await.unwrap().unwrap().revision, 1);

    // A sealing for the join token serves the node before and after it has its id.
    upload(stores, &SealingRow { subject: Subject::Join(join(7)), ..sealing(7, 100) }).await;
    let mut joining = by_join("edge-7", 7);
    joining.sealing_id = Some(sealing_id(7));
    store.add_node(&joining).await.unwrap();
    let joined = store.join_node(join(7), node(7)).await.unwrap();
    assert_eq!(joined.sealing_id, Some(sealing_id(7)));
    upload(stores, &sealing(8, 100)).await;
    assert_not_found(store.change_node("edge-7", &change(8)).await);
    upload(stores, &SealingRow { subject: Subject::Node(node(7)), ..sealing(9, 100) }).await;
    assert_eq!(store.change_node("edge-7", &change(9)).await.unwrap().sealing_id, Some(sealing_id(9)));
    store.change_node("edge-7", &change(7)).await.unwrap();
}
