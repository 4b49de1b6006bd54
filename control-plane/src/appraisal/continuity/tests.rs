use super::{
    super::quote::tests::{quote_of, selection, values, wire},
    *,
};

/// What is remembered of the software AK's quotes: reset 5, restart 2, clock 1000.
fn previous() -> Checkpoint {
    Checkpoint {
        reset_count: 5,
        restart_count: 2,
        clock: 1000,
        firmware_version: 0x2019_1023_0016_3636,
        ..Checkpoint::default()
    }
}

fn follows(reset: u32, restart: u32, clock: u64) -> Result<Epoch, Discontinuity> {
    let selection = selection(1);
    let quote = quote_of(&values(&selection), &selection, |attest| {
        attest.clock_info.reset_count = reset;
        attest.clock_info.restart_count = restart;
        attest.clock_info.clock = clock;
    });
    continuity(Some(&previous()), &quote)
}

#[test]
fn a_boot_is_recognised_by_its_counters() {
    let selection = selection(1);
    assert_eq!(continuity(None, &quote_of(&values(&selection), &selection, |_| {})), Ok(Epoch::First));
    assert_eq!(follows(5, 2, 1000), Ok(Epoch::Same));
    assert_eq!(follows(5, 2, 5000), Ok(Epoch::Same));
    assert_eq!(follows(5, 3, 1000), Ok(Epoch::NewBoot));
    assert_eq!(follows(6, 0, 0), Ok(Epoch::NewBoot));
}

#[test]
fn counters_that_go_back_are_told() {
    let rolled_back = |what, was, is| Err(Discontinuity::RolledBack { what, was, is });
    assert_eq!(follows(4, 9, 5000), rolled_back("resetCount", 5, 4));
    // As small, but the clock went on: no TPM2_Clear does that.
    assert_eq!(follows(0, 0, 5000), rolled_back("resetCount", 5, 0));
    // All went back, but not to where TPM2_Clear sets them: an older state.
    assert_eq!(follows(3, 0, 500), rolled_back("resetCount", 5, 3));
    assert_eq!(follows(5, 1, 5000), rolled_back("restartCount", 2, 1));
    assert_eq!(follows(5, 2, 999), rolled_back("clock", 1000, 999));
}

#[test]
fn a_cleared_tpm_is_told_from_one_that_was_set_back() {
    for (reset, restart, clock) in [(0, 0, 0), (0, 0, 999), (2, 0, 700), (1, 3, 700)] {
        let cleared = Discontinuity::Cleared { was: 5, is: reset };
        assert_eq!(follows(reset, restart, clock), Err(cleared));
        assert_eq!((cleared.code(), cleared.is_rollback()), ("tpm_cleared", true));
    }
    // In its first boot, after a restart.
    let selection = selection(1);
    let quote = quote_of(&values(&selection), &selection, |attest| {
        attest.clock_info = ClockInfo { clock: 5, reset_count: 0, restart_count: 0, safe: true };
    });
    let first = Checkpoint { reset_count: 0, restart_count: 1, ..previous() };
    assert_eq!(continuity(Some(&first), &quote), Err(Discontinuity::Cleared { was: 0, is: 0 }));
}

#[test]
fn each_discontinuity_has_its_own_reason_and_way_out() {
    let rolled_back = |what| Discontinuity::RolledBack { what, was: 5, is: 4 };
    let all = [
        (rolled_back("resetCount"), "rolled_back", true),
        (rolled_back("clock"), "clock_rolled_back", true),
        (Discontinuity::Cleared { was: 5, is: 0 }, "tpm_cleared", true),
        (Discontinuity::FirmwareChanged { was: 5, is: 4 }, "firmware_changed", false),
    ];
    for (at, (discontinuity, code, rollback)) in all.iter().enumerate() {
        assert_eq!((discontinuity.code(), discontinuity.is_rollback()), (*code, *rollback));
        assert!(all.iter().skip(at + 1).all(|(other, ..)| other.way_out() != discontinuity.way_out()));
        let (what, expected, found) = discontinuity.parts();
        assert!(!what.is_empty() && expected != found && found.len() < 200);
    }
}

fn notes(change: impl FnOnce(&mut protocol::tpm::attest::TpmsAttest), kept: bool) -> Vec<String> {
    let selection = selection(1);
    let values = values(&selection);
    let pcrs = QuotedPcrs::complete(&quote_of(&values, &selection, change), None, &wire(&values), false).unwrap();
    let mut previous = previous();
    if kept {
        previous.pcrs = pcrs.to_checkpoint();
    }
    boot_notes(Some(&previous), &pcrs)
}

#[test]
fn a_resume_is_told_from_a_restart_by_the_pcrs() {
    let restart = |attest: &mut protocol::tpm::attest::TpmsAttest| attest.clock_info.restart_count = 3;
    assert!(notes(restart, true)[0].contains("resumed"));
    assert!(notes(restart, false)[0].contains("restarted without a reset"));
    assert_eq!(notes(|_| {}, true), Vec::<String>::new());
    assert!(notes(|attest| attest.clock_info.safe = false, true)[0].contains("safe = NO"));
}

#[test]
fn another_firmware_version_after_a_reboot_is_reported() {
    let notes = notes(
        |attest| {
            attest.clock_info.reset_count = 7;
            attest.firmware_version = 7;
        },
        false,
    );
    assert!(notes[0].contains("2 since"), "{notes:?}");
    assert!(notes[1].contains("0x2019102300163636 to 0x0000000000000007"), "{notes:?}");
}

#[test]
fn an_unsafe_clock_is_no_failure() {
    let selection = selection(1);
    let quote = quote_of(&values(&selection), &selection, |attest| attest.clock_info.safe = false);
    assert_eq!(continuity(Some(&previous()), &quote), Ok(Epoch::Same));
}

#[test]
fn firmware_changes_between_boots_only() {
    let selection = selection(1);
    let quote = |reset| {
        quote_of(&values(&selection), &selection, |attest| {
            attest.firmware_version = 7;
            attest.clock_info.reset_count = reset;
        })
    };
    let changed = Discontinuity::FirmwareChanged { was: 0x2019_1023_0016_3636, is: 7 };
    assert_eq!(continuity(Some(&previous()), &quote(5)), Err(changed));
    assert_eq!(continuity(Some(&previous()), &quote(6)), Ok(Epoch::NewBoot));
}
