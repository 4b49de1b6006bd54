//! One suite for both databases: every test of `store/` runs on SQLite, and on Postgres where `TREFOIL_TEST_POSTGRES` names
//! a server (`postgres://user@host:port/database`, a user who may create databases). What only one of them has is tested
//! at the end.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod store {
    pub(crate) mod appraiser;
    pub(crate) mod event;
    pub(crate) mod lifecycle;
    pub(crate) mod registrar;
    pub(crate) mod sealing;
    pub(crate) mod stores;
    pub(crate) mod tenant;
    pub(crate) mod verifier;
}

use store::stores;

macro_rules! suite {
    ($($module:ident: $($name:ident)*;)*) => {
        mod on_postgres {
            $(mod $module {
                $(
                    #[test]
                    fn $name() {
                        crate::stores::on_postgres(|stores| Box::pin(crate::store::$module::$name(stores)));
                    }
                )*
            })*
        }
        mod on_sqlite {
            $(mod $module {
                $(
                    #[test]
                    fn $name() {
                        crate::stores::on_sqlite(|stores| Box::pin(crate::store::$module::$name(stores)));
                    }
                )*
            })*
        }
    };
}

suite! {
    lifecycle:
        migrations_again_change_nothing
        two_processes_may_migrate_at_once
        nothing_works_before_the_tables_are_made
        everything_is_there_after_a_restart
        the_clock_is_the_present_and_does_not_stand_still;
    event:
        events_come_back_by_node_or_name_ascending
        events_after_an_id_are_the_first_after_it
        a_long_detail_is_cut_and_a_nul_replaced
        a_stranger_pushes_out_only_his_own_events
        at_most_ten_thousand_events_are_kept_and_strangers_go_first;
    registrar:
        a_node_is_admitted_once_and_for_one_name
        a_binding_comes_back_whole
        the_same_pair_again_is_accepted_by_whatever_admission
        a_second_ak_for_a_node_is_refused
        a_second_node_for_an_ak_is_refused
        of_two_racing_bindings_of_one_node_one_wins
        of_two_nodes_racing_for_one_ak_one_wins
        the_same_binding_raced_succeeds_every_time
        a_join_token_binds_one_node
        of_two_nodes_racing_with_one_join_token_one_wins
        an_expired_or_revoked_or_unknown_join_token_binds_nothing
        a_refused_binding_uses_up_no_join_token
        bound_nodes_are_found_by_prefix
        a_forgotten_node_may_be_bound_anew
        bindings_come_in_pages_and_their_hardware_may_change
        a_node_in_quarantine_comes_back_whole_and_keeps_its_first_time
        quarantine_is_bounded_and_unproven_hardware_goes_first
        whoever_floods_the_quarantine_displaces_his_own
        admission_and_binding_end_quarantine;
    appraiser:
        a_policy_is_stored_once_and_found
        a_boot_log_is_stored_once_and_found
        a_node_never_seen_has_no_attestation
        an_ak_is_pinned_once_both_ways
        of_two_racing_pins_one_wins
        fences_ascend_and_never_start_again
        a_good_verdict_gives_trust_and_its_checkpoint
        trust_turns_stale_by_the_clock_alone
        a_nonce_from_the_future_is_stale
        an_older_positive_verdict_is_superseded
        a_negative_verdict_counts_however_old_it_is
        a_failed_node_becomes_good_only_after_resume
        a_negative_verdict_clears_a_pending_resume
        an_unjudged_verdict_gives_no_trust_and_ends_no_failure
        counters_that_went_back_stay_visible_until_resumed
        resuming_a_good_or_unknown_node_changes_nothing
        a_negative_verdict_keeps_the_checkpoint
        renewals_replace_the_newest_verdict_in_the_history
        at_most_two_hundred_verdicts_of_a_node_are_kept
        racing_verdicts_leave_the_newest
        releases_are_on_record_and_confirmed_once
        a_delivery_is_confirmed_and_told_once
        a_second_release_after_the_confirmation_is_refused
        a_rolled_back_node_may_be_delivered_again_under_an_old_reset_count
        at_most_two_hundred_unconfirmed_releases_of_a_node_are_kept
        evidence_comes_back_whole_and_only_the_last_is_kept
        an_ima_list_grows_part_by_part
        entries_shown_again_replace_those_kept_from_there_on
        a_part_that_leaves_a_gap_is_not_kept
        another_boot_begins_the_list_anew
        a_list_above_its_limit_is_not_kept
        racing_parts_leave_a_list_without_gaps
        a_forgotten_node_leaves_only_events;
    verifier:
        a_node_comes_back_whole
        putting_a_node_again_replaces_it
        a_node_id_belongs_to_one_name
        agreeing_about_an_unknown_node_is_refused
        an_agreement_lasts_as_long_as_the_sealing
        an_agreement_may_come_before_its_sealing
        an_agreement_ends_with_the_node_id
        removing_a_node_twice_is_no_error;
    tenant:
        a_node_by_id_comes_back_whole
        a_node_by_join_token_comes_back_whole
        a_name_is_taken_once
        a_node_id_is_taken_once
        a_refused_node_leaves_no_join_token
        a_join_token_names_one_node_only
        of_two_racing_adds_of_one_name_one_wins
        nodes_are_listed_by_name_in_pages
        nodes_are_found_by_prefix
        a_change_touches_only_what_it_names_and_raises_the_revision
        changing_an_unknown_node_is_refused
        every_role_is_told_of_every_revision
        a_proven_join_token_gives_the_node_its_id
        a_used_join_token_is_refused_to_another_node
        an_ended_join_token_is_refused
        a_node_id_that_another_node_has_uses_up_no_join_token
        of_two_nodes_racing_with_one_join_token_one_wins
        join_tokens_are_listed_newest_first
        a_removed_node_takes_its_tokens_and_sealings_along
        an_api_token_ends_by_expiry_and_by_revocation;
    sealing:
        a_sealing_is_complete_only_with_all_its_chunks
        a_missing_or_altered_chunk_completes_nothing
        a_chunk_of_another_length_or_beyond_the_end_is_refused
        an_interrupted_sealing_is_taken_up_again
        another_sealing_of_the_same_id_is_refused
        a_complete_sealing_is_not_changed_any_more
        an_unknown_sealing_takes_no_chunks
        chunks_and_completion_race_without_harm
        sealings_are_listed_newest_first_by_subject
        a_node_takes_only_a_complete_sealing_of_its_own;
}

mod sqlite_alone {
    use std::os::unix::fs::PermissionsExt;

    use control_plane::store::{NewEvent, StoreError, open_registrar, open_tenant};

    use crate::store::{sealing, stores::runtime};

    #[test]
    fn files_are_for_their_owner_only() {
        runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("registrar.db");
            let store = open_registrar(&format!("sqlite:{}", path.display())).await.unwrap();
            store.migrate().await.unwrap();
            let mut count = 0;
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                let mode = entry.unwrap().metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
                count += 1;
            }
            assert_eq!(count, 3, "the file, its log and its index");
        });
    }

    #[test]
    fn closing_empties_the_log_into_the_file() {
        runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = open_registrar(&format!("sqlite:{}", dir.path().join("r.db").display())).await.unwrap();
            store.migrate().await.unwrap();
            store.close().await;
            assert!(matches!(store.ping().await, Err(StoreError::Database(_))));
            let names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["r.db"]);
        });
    }

    #[test]
    fn what_is_no_file_is_refused() {
        runtime().block_on(async {
            for url in ["sqlite::memory:", "sqlite:", "sqlite:/nowhere/at/all.db"] {
                assert!(matches!(open_registrar(url).await, Err(StoreError::Database(_))), "{url}");
            }
            for url in ["", "/var/lib/x.db", "mysql://localhost/x", "sqlite3:x.db"] {
                assert!(matches!(open_registrar(url).await, Err(StoreError::Scheme)), "{url}");
            }
        });
    }

    #[test]
    fn a_full_disk_is_an_error_and_loses_nothing() {
        runtime().block_on(async {
            let Some(disk) = crate::store::stores::SmallDisk::mount() else {
                return;
            };
            let store = open_tenant(&format!("sqlite:{}", disk.path().join("tenant.db").display())).await.unwrap();
            store.migrate().await.unwrap();
            // What cannot have room is not begun: the other roles write to the same disk.
            let error = store.begin_sealing(&sealing::sealing(1, 60 * sealing::CHUNK_LEN)).await.unwrap_err();
            assert!(matches!(error, StoreError::NoRoom { .. }) && error.is_full(), "{error}");
            let sealing = sealing::sealing(2, 3 * sealing::CHUNK_LEN);
            store.begin_sealing(&sealing).await.unwrap();
            store.put_chunk(sealing.sealing_id, 0, &sealing::chunk(0)).await.unwrap();
            // Somebody else takes what was left.
            let mut other = std::fs::File::create(disk.path().join("other")).unwrap();
            while std::io::Write::write_all(&mut other, &[0; 4096]).is_ok() {}
            let stored = 1;
            let error = store.put_chunk(sealing.sealing_id, stored, &sealing::chunk(stored)).await.unwrap_err();
            assert!(matches!(error, StoreError::Database(_)) && error.is_full(), "{error}");
            assert_eq!(store.chunk(sealing.sealing_id, 0).await.unwrap(), Some(sealing::chunk(0)));
            assert_eq!(store.chunk(sealing.sealing_id, stored).await.unwrap(), None);
            // Still answering, and writing again once there is room.
            store.ping().await.unwrap();
            disk.grow();
            store.put_chunk(sealing.sealing_id, stored, &sealing::chunk(stored)).await.unwrap();
            let event = NewEvent { node_id: None, name: None, kind: "full", detail: String::new() };
            store.add_event(&event).await.unwrap();
        });
    }
}
