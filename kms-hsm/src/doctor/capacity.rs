//! Sessions, latencies, parallel lanes: how many workers a token bears.

use std::time::{Duration, Instant};

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::{Limit, Slot};
use kms_core::clock::Clock;

use crate::doctor::connect::Opened;
use crate::doctor::crypto::{decrypt, encrypt, gcm_key};
use crate::doctor::probe::{Finding, Probe, Seen, Throwaway, Trial};
use crate::doctor::report::{Lane, Latency, Need};
use crate::doctor::wrap::{unwrapped_key, wrappable_key, wrapping_key};

/// How many sessions are tried at most: more than the server ever has workers.
const TRIED_SESSIONS: u64 = 66;
/// The keeper has one session, a worker another.
const LEAST_SESSIONS: u64 = 2;
/// How many operations of a kind are measured at most, and for how long.
const SAMPLES: usize = 64;
const SAMPLE_TIME: Duration = Duration::from_millis(250);
/// Which numbers of lanes are tried, and for how long each.
const LANES: [usize; 3] = [1, 2, 4];
const LANE_TIME: Duration = Duration::from_millis(150);
/// More lanes must bring a tenth more to be worth their sessions.
const WORTH: (u64, u64) = (11, 10);

/// Tries how many sessions may be open, and what they share. Returns the bound, if one was met.
pub(super) fn sessions(probe: &mut Probe<'_>, opened: &Opened, slot: Slot) -> Option<u64> {
    let said = opened.token_info(slot).ok().and_then(|info| match info.max_session_count() {
        Limit::Max(most) => Some(most),
        Limit::Infinite | Limit::Unavailable => None,
    });
    // One is open already: the doctor's own.
    let mut open = vec![];
    let mut refusal = None;
    while (open.len() as u64) + 1 < said.unwrap_or(TRIED_SESSIONS).min(TRIED_SESSIONS) {
        match opened.session(slot) {
            Ok(session) => open.push(session),
            Err(error) => {
                refusal = Some(error);
                break;
            }
        }
    }
    let had = open.len() as u64 + 1;
    let bound = if refusal.is_some() { Some(had) } else { said };
    let trial = Trial {
        what: "sessions",
        need: Need::Needed,
        good: "one for the keeper, one for each worker",
        bad: "the keeper and one worker need two",
    };
    let text = match bound {
        Some(bound) => format!("at most {bound}"),
        None => format!("{had} opened, no bound met"),
    };
    let seen = if had < LEAST_SESSIONS { Err(Finding::Wrong(text)) } else { Ok(text) };
    probe.record(trial, seen);
    let (Some(worker), Some(other)) = (open.pop(), open.pop()) else { return bound };
    shared(probe, &worker, other);
    bound
}

/// Tries what workers rely upon: one login, and keys of the keeper's session, for every session.
fn shared(probe: &mut Probe<'_>, worker: &Session, other: Session) {
    let trial = Trial {
        what: "login shared by sessions",
        need: Need::Needed,
        good: "the keeper logs in once for all workers",
        bad: "each worker would have to log in",
    };
    let logged_in = worker.get_session_info().map(|info| info.session_state());
    let seen: Seen = match logged_in {
        Ok(SessionState::RwUser) => Ok("a new session is logged in".into()),
        Ok(_) => Err(Finding::wrong("a new session is not logged in")),
        Err(error) => Err(error.into()),
    };
    probe.record(trial, seen);
    let trial = Trial {
        what: "session objects shared by sessions",
        need: Need::Needed,
        good: "workers use the keys that the keeper loaded",
        bad: "workers cannot use the keys that the keeper loaded",
    };
    probe.attempt(trial, |keeper| {
        let key = Throwaway::aes(keeper, &gcm_key())?;
        let sealed = encrypt(worker, key.handle, &mut [2; 12])?;
        other.close()?;
        decrypt(worker, key.handle, &mut [2; 12], &sealed)?;
        Ok("used from another session, and after a third one closed".into())
    });
}

/// Measures single operations.
pub(super) fn latencies(probe: &mut Probe<'_>) -> Vec<Latency> {
    let (session, clock) = (probe.session, probe.clock);
    let mut measured = Vec::new();
    let mut keep = |operation, outcome: Result<(Duration, usize), Error>| {
        // What cannot be done has a row of its own already.
        if let Ok((median, samples)) = outcome {
            measured.push(Latency { operation, median, samples });
        }
    };
    keep("random, 32 bytes", median(clock, || session.generate_random_vec(32).map(drop)));
    if let Ok(key) = Throwaway::aes(session, &gcm_key()) {
        let mut iv = [4; 12];
        keep(
            "AES-GCM encrypt, 32 bytes",
            median(clock, || encrypt(session, key.handle, &mut iv).map(drop)),
        );
        if let Ok(sealed) = encrypt(session, key.handle, &mut iv) {
            keep(
                "AES-GCM decrypt, 32 bytes",
                median(clock, || decrypt(session, key.handle, &mut iv, &sealed).map(drop)),
            );
        }
    }
    keep("load a wrapped key", load_time(session, clock));
    keep("C_FindObjects, all", median(clock, || session.find_objects(&[]).map(drop)));
    measured
}

fn load_time(session: &Session, clock: &dyn Clock) -> Result<(Duration, usize), Error> {
    let by = Throwaway::aes(session, &wrapping_key())?;
    let key = Throwaway::aes(session, &wrappable_key())?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, by.handle, key.handle)?;
    let template = unwrapped_key(false);
    median(clock, || {
        let mechanism = Mechanism::AesKeyWrapPad;
        let loaded = session.unwrap_key(&mechanism, by.handle, &wrapped, &template)?;
        drop(Throwaway::of(session, loaded));
        Ok(())
    })
}

/// Returns the median time of an operation and how often it was measured.
fn median(
    clock: &dyn Clock,
    mut operation: impl FnMut() -> Result<(), Error>,
) -> Result<(Duration, usize), Error> {
    let start = clock.monotonic();
    let mut times = Vec::with_capacity(SAMPLES);
    while times.len() < SAMPLES && (times.is_empty() || since(clock, start) < SAMPLE_TIME) {
        let before = clock.monotonic();
        operation()?;
        times.push(since(clock, before));
    }
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok((middle, times.len()))
}

/// Measures throughput on one, two and four sessions at once.
pub(super) fn lanes(
    probe: &mut Probe<'_>,
    opened: &Opened,
    slot: Slot,
    bound: Option<u64>,
) -> Vec<Lane> {
    let (session, clock) = (probe.session, probe.clock);
    let Ok(key) = Throwaway::aes(session, &gcm_key()) else { return vec![] };
    let spare = bound
        .map_or(usize::MAX, |bound| usize::try_from(bound.saturating_sub(1)).unwrap_or(usize::MAX));
    let mut measured = Vec::new();
    for count in LANES.into_iter().filter(|count| *count <= spare) {
        let open: Result<Vec<_>, _> = (0..count).map(|_| opened.session(slot)).collect();
        let Ok(open) = open else { break };
        let start = clock.monotonic();
        let done: u64 = std::thread::scope(|scope| {
            let work = |session: Session| lane(&session, key.handle, clock, start);
            let running: Vec<_> =
                open.into_iter().map(|session| scope.spawn(move || work(session))).collect();
            // A lane that panicked did nothing that counts.
            running.into_iter().map(|lane| lane.join().unwrap_or(0)).sum()
        });
        let elapsed_ms = u64::try_from(since(clock, start).as_millis()).unwrap_or(u64::MAX).max(1);
        let operations_per_second = done.saturating_mul(1000) / elapsed_ms;
        measured.push(Lane { lanes: count, operations_per_second });
    }
    measured
}

fn lane(
    session: &Session,
    key: cryptoki::object::ObjectHandle,
    clock: &dyn Clock,
    start: Instant,
) -> u64 {
    let mut done = 0;
    while since(clock, start) < LANE_TIME && encrypt(session, key, &mut [6; 12]).is_ok() {
        done += 1;
    }
    done
}

/// Returns the least number of lanes that more lanes do not beat by much, within the sessions there are.
pub(super) fn recommend(lanes: &[Lane], bound: Option<u64>) -> usize {
    let mut best = Lane { lanes: 1, operations_per_second: 0 };
    for lane in lanes {
        let (more, than) = WORTH;
        if lane.operations_per_second * than >= best.operations_per_second * more {
            best = *lane;
        }
    }
    let spare = bound.map_or(usize::MAX, |bound| usize::try_from(bound).unwrap_or(usize::MAX));
    best.lanes.min(spare.saturating_sub(1)).max(1)
}

fn since(clock: &dyn Clock, start: Instant) -> Duration {
    clock.monotonic().saturating_duration_since(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(figures: [u64; 3]) -> Vec<Lane> {
        let lane = |(lanes, operations_per_second)| Lane { lanes, operations_per_second };
        LANES.into_iter().zip(figures).map(lane).collect()
    }

    #[test]
    fn more_lanes_are_taken_when_they_bring_a_tenth_more() {
        assert_eq!(recommend(&lanes([1000, 1099, 1208]), None), 4);
        assert_eq!(recommend(&lanes([1000, 1099, 1099]), None), 1);
        assert_eq!(recommend(&lanes([1000, 1100, 1100]), None), 2);
        assert_eq!(recommend(&lanes([1000, 800, 500]), None), 1);
    }

    #[test]
    fn one_session_stays_for_the_keeper() {
        assert_eq!(recommend(&lanes([1000, 2000, 4000]), Some(5)), 4);
        assert_eq!(recommend(&lanes([1000, 2000, 4000]), Some(4)), 3);
        assert_eq!(recommend(&[], Some(2)), 1);
        assert_eq!(recommend(&[], None), 1);
    }
}
