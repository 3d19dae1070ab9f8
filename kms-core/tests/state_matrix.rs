//! The state x operation matrix and the transitions, cell by cell, against the published tables.

use kms_core::clock::Timestamp;
use kms_core::lifecycle::{Destruction, Transition};
use kms_core::state::{Use, Verdict, VersionState};

/// Design section 3, read row by row: `-` no, `!` no with an alert, `y` yes, `p` primary or pinned, `w` with its own
/// permission, `m` metadata.
const MATRIX: [(Use, &str); 4] = [
    // PRE_ACTIVATION, ACTIVE, SUSPENDED, DEACTIVATED, COMPROMISED, DESTROY_SCHEDULED, DESTROYED
    (Use::Protect, "-p-----"),
    (Use::Process, "-y-yw!-"),
    (Use::RewrapFrom, "-y-yw--"),
    (Use::Describe, "yyyyyym"),
];

/// Rows: from; columns: to; in the order of `VersionState::ALL`.
const TRANSITIONS: [&str; 7] = [
    "-y--y-y", // PRE_ACTIVATION
    "--yyy--", // ACTIVE
    "-y-yy--", // SUSPENDED
    "----yy-", // DEACTIVATED
    "-----y-", // COMPROMISED
    "---yy-y", // DESTROY_SCHEDULED
    "-------", // DESTROYED
];

/// Where each move leads from each state, in the order of `VersionState::ALL`: `-` nowhere, else the first letter of the
/// state, `d` for DEACTIVATED, `s` for DESTROY_SCHEDULED, `x` for DESTROYED, `u` for SUSPENDED, `<` back.
const MOVES: [(Transition, &str); 9] = [
    (Transition::Activate, "a------"),
    (Transition::Discard, "x------"),
    (Transition::Suspend, "-u-----"),
    (Transition::Resume, "--a----"),
    (Transition::Deactivate, "-dd----"),
    (Transition::Compromise, "cccc---"),
    (Transition::ScheduleDestruction, "---ss--"),
    (Transition::CancelDestruction, "-----<-"),
    (Transition::Destroy, "-----x-"),
];

fn letter(verdict: Verdict) -> char {
    match verdict {
        Verdict::Yes => 'y',
        Verdict::PrimaryOrPinned => 'p',
        Verdict::WithPermission => 'w',
        Verdict::No => '-',
        Verdict::NoWithAlert => '!',
        Verdict::Metadata => 'm',
    }
}

#[test]
fn every_cell_of_the_operation_matrix_is_as_published() {
    for (operation, expected) in MATRIX {
        let row: String =
            VersionState::ALL.iter().map(|state| letter(state.permits(operation))).collect();
        assert_eq!(row, expected, "{operation:?}");
    }
}

#[test]
fn every_cell_of_the_transition_table_is_as_published() {
    for (from, expected) in VersionState::ALL.iter().zip(TRANSITIONS) {
        let row: String = VersionState::ALL
            .iter()
            .map(|to| if from.can_become(*to) { 'y' } else { '-' })
            .collect();
        assert_eq!(row, expected, "from {from}");
    }
}

#[test]
fn every_move_leads_where_the_table_says_and_only_where_a_state_may_go() {
    for (step, expected) in MOVES {
        let row: String = VersionState::ALL
            .iter()
            .map(|from| {
                let destruction = Destruction {
                    time: Timestamp::from_unix_ms(1),
                    returns_to: VersionState::Compromised,
                    despite_consumers: false,
                    despite_recent_use: false,
                };
                let planned = (*from == VersionState::DestroyScheduled).then_some(destruction);
                let Some(to) = step.leads(*from, planned) else { return '-' };
                assert!(from.can_become(to), "{step:?} from {from}");
                match to {
                    _ if step == Transition::CancelDestruction => {
                        assert_eq!(to, VersionState::Compromised, "where it came from");
                        '<'
                    }
                    VersionState::PreActivation => 'p',
                    VersionState::Active => 'a',
                    VersionState::Suspended => 'u',
                    VersionState::Deactivated => 'd',
                    VersionState::Compromised => 'c',
                    VersionState::DestroyScheduled => 's',
                    VersionState::Destroyed => 'x',
                }
            })
            .collect();
        assert_eq!(row, expected, "{step:?}");
    }
}

#[test]
fn a_version_of_a_key_that_is_destroyed_goes_to_its_end_in_steps_that_it_may_take() {
    for from in VersionState::ALL {
        let mut at = from;
        for next in from.to_destroyed() {
            assert!(at.can_become(*next), "{at} to {next}, from {from}");
            at = *next;
        }
        assert_eq!(at, VersionState::Destroyed, "from {from}");
    }
}

#[test]
fn a_destruction_that_was_not_planned_cannot_be_cancelled() {
    assert_eq!(Transition::CancelDestruction.leads(VersionState::DestroyScheduled, None), None);
}

#[test]
fn every_state_reads_back_from_its_name() {
    for state in VersionState::ALL {
        assert_eq!(VersionState::parse(state.as_str()), Some(state));
    }
    assert_eq!(VersionState::parse("active"), None);
}
