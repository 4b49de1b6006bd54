use super::{
    super::quote::tests::{quote_of, selection, values},
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
    assert_eq!(follows(0, 0, 0), rolled_back("resetCount", 5, 0));
    assert_eq!(follows(5, 1, 5000), rolled_back("restartCount", 2, 1));
    assert_eq!(follows(5, 2, 999), rolled_back("clock", 1000, 999));
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
