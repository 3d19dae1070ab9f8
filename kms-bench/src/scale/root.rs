//! The root rollover: how fast it is beside the bare token when nobody calls, and what callers notice of it.

use std::time::Duration;

use kms_core::clock::{Clock as _, SystemClock};
use kms_testkit::deadline::eventually;

use super::floor::Calls;
use super::foreground::{p99, warm_wraps};
use super::seed::Seeding;
use super::{Place, Plan, floor};
use crate::error::Error;
use crate::processes::Peer;
use crate::rounds::median;

/// Blobs that were wrapped under the newest root.
const REWRAPPED: &str = "holdfast_root_rollover_rewrapped_versions_total";
/// Rows that were sealed under it.
const ROWS: &str = "holdfast_root_rollover_rows_total";
/// How long all keys may take.
const LIMIT: Duration = Duration::from_hours(2);

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub(super) vs_token: f64,
    pub(super) vs_same_calls: f64,
    pub(super) rows_per_key: f64,
    pub(super) p99_vs_idle: f64,
    pub(super) keys_per_second: f64,
    pub(super) token_keys_per_second: f64,
    pub(super) busy_keys_per_second: f64,
    pub(super) idle_p99_us: f64,
}

pub(super) fn measure(plan: &Plan, place: &Place) -> Result<Root, Error> {
    let directory = place.seeded("rolled", Seeding { keys: plan.rolled, due: false })?;
    let peer = place.start(&directory)?;
    let what = warm_wraps(&peer.context.tenant_name()?)?;
    let mut idle = Vec::new();
    for _ in 0..plan.windows {
        idle.push(p99(&place.window(&peer, &what, plan.window())?));
    }
    peer.stop()?;
    place.stage_root(&directory)?;
    let peer = place.start(&directory)?;
    let (mut during, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..plan.windows {
        let (start, before) = (SystemClock.monotonic(), peer.metric(REWRAPPED)?);
        let window = p99(&place.window(&peer, &what, plan.window())?);
        let rate = rate(&peer, before, start)?;
        // A window that the rollover did not see says nothing of it.
        if rate > 0.0 {
            during.push(window);
            busy.push(rate);
        }
    }
    let keys_per_second = undisturbed(&peer, plan.rolled)?;
    let rows_per_key = peer.metric(ROWS)? / peer.metric(REWRAPPED)?;
    peer.stop()?;
    let (mut least, mut same) = (Vec::new(), Vec::new());
    for round in 0..plan.windows {
        let bare = |name: &str, calls: Calls| {
            let token = place.disk.join(format!("rolled-{name}-{round}"));
            floor::measure(&token, plan.window() / 5, calls)
        };
        least.push(bare("least", Calls::LEAST)?);
        same.push(bare("same", Calls::served(rows_per_key))?);
    }
    let (idle_p99_us, token) = (median(&mut idle), median(&mut least));
    Ok(Root {
        vs_token: keys_per_second / token,
        vs_same_calls: keys_per_second / median(&mut same),
        rows_per_key,
        p99_vs_idle: median(&mut during) / idle_p99_us,
        keys_per_second,
        token_keys_per_second: token,
        busy_keys_per_second: median(&mut busy),
        idle_p99_us,
    })
}

fn rate(peer: &Peer, before: f64, start: std::time::Instant) -> Result<f64, Error> {
    let done = peer.metric(REWRAPPED)? - before;
    Ok(done / SystemClock.monotonic().saturating_duration_since(start).as_secs_f64())
}

/// Awaits the end, while nobody calls; returns keys a second.
fn undisturbed(peer: &Peer, keys: u32) -> Result<f64, Error> {
    let (start, before) = (SystemClock.monotonic(), peer.metric(REWRAPPED)?);
    let (mut last, mut failed) = (before, None);
    let mut end = start;
    // The last ones are counted with the step that did them: the time of the last change is the end.
    eventually(LIMIT, "the end of the root rollover", || match peer.metric(REWRAPPED) {
        Ok(now) => {
            if now > last {
                (last, end) = (now, SystemClock.monotonic());
            }
            now >= f64::from(keys)
        }
        Err(error) => {
            failed = Some(error);
            true
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok((last - before) / end.saturating_duration_since(start).as_secs_f64()),
    }
}
