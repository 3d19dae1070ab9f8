//! The result: the names that the project's bars are stated in, and what they were measured with.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Plan;
use super::foreground::CONCURRENCY;
use super::root::Root;
use super::size::Size;
use super::storm::Storm;
use super::stream::Stream;
use crate::error::Error;

/// The result of a run. The names say 1e6 and 1e3; `keys` and `few` say what it was in this run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Scale {
    /// From the start of the process to ready, without the token's login: many keys over few.
    pub ready_1e6_vs_1e3: f64,
    /// Time of a DescribeKey, over keys that are evenly spread.
    pub describe_1e6_vs_1e3: f64,
    /// Time of a Wrap under a key that is loaded.
    pub wrap_1e6_vs_1e3: f64,
    /// Time of a page of 100 keys, over places that are evenly spread.
    pub list_1e6_vs_1e3: f64,
    /// Resident memory of the server of many keys more than that of few, after the same calls, in MiB; may be below 0.
    pub rss_growth_mib: f64,
    /// Wrapped keys that are opened for the first Wrap under a key.
    pub cold_wrap_hsm_unwraps: f64,
    /// Keys a second of a root rollover that nobody disturbs, over those of the bare token with one row a key.
    pub root_rollover_vs_token: f64,
    /// The same over the bare token with as many calls a key as the server makes.
    pub root_rollover_vs_same_calls: f64,
    /// Rows that were sealed anew a key.
    pub root_rollover_rows_per_key: f64,
    /// p99 of Wraps during a root rollover, over that of an idle server.
    pub root_rollover_p99_vs_idle: f64,
    /// Items a second of RewrapStream, over those of batches of Unwrap and Wrap.
    pub rewrap_stream_vs_batch: f64,
    /// p99 of Wraps while keys that are due at once are rotated, over that of an idle server.
    pub rotation_storm_p99_vs_idle: f64,
    /// The worst window's of the same.
    pub rotation_storm_worst_p99_vs_idle: f64,
    /// From the first rotation of the storm to the last, in seconds.
    pub rotation_storm_seconds: f64,
    /// p99 of the idle server of the storm, in microseconds.
    pub rotation_storm_idle_p99_us: f64,
    /// Start to ready of many keys, in milliseconds.
    pub ready_1e6_ms: f64,
    /// Resident memory of the server of many keys, in MiB.
    pub rss_1e6_mib: f64,
    /// Median of the first Wrap under a key, in microseconds.
    pub cold_wrap_p50_us: f64,
    /// Keys a second of a root rollover that nobody disturbs.
    pub root_rollover_keys_per_second: f64,
    /// Keys a second of the bare token.
    pub token_rewraps_per_second: f64,
    /// Keys a second of a root rollover beside the foreground calls.
    pub root_rollover_busy_keys_per_second: f64,
    /// p99 of the idle server of the rollover, in microseconds.
    pub root_rollover_idle_p99_us: f64,
    /// Items a second of RewrapStream.
    pub rewrap_stream_items_per_second: f64,
    /// Resident memory more than after the first tenth of the stream or so, in MiB; may be below 0.
    pub rewrap_stream_rss_growth_mib: f64,
    /// Keys of the large tenant.
    pub keys: u32,
    /// Keys of the small tenant.
    pub few: u32,
    /// Keys that were due at once.
    pub due: u32,
    /// Keys whose root was rolled over.
    pub rolled: u32,
    /// Items that were streamed.
    pub items: u64,
    /// Foreground calls in flight.
    pub foreground_concurrency: usize,
    /// Rounds, and windows of a p99.
    pub windows: usize,
    /// Seconds of each.
    pub window_seconds: f64,
}

/// The bars that must hold.
const BARS: [(&str, &str); 10] = [
    ("ready_1e6_vs_1e3", "<= 1.2"),
    ("describe_1e6_vs_1e3", "<= 1.2"),
    ("wrap_1e6_vs_1e3", "<= 1.2"),
    ("list_1e6_vs_1e3", "<= 1.2"),
    ("rss_growth_mib", "<= 64"),
    ("cold_wrap_hsm_unwraps", "<= 1"),
    ("root_rollover_vs_token", ">= 0.7"),
    ("root_rollover_p99_vs_idle", "<= 2"),
    ("rewrap_stream_vs_batch", ">= 0.8"),
    ("rotation_storm_p99_vs_idle", "<= 2"),
];
/// Figures that may be nothing, or below: growth.
const GROWTH: [&str; 2] = ["rss_growth_mib", "rewrap_stream_rss_growth_mib"];

impl Scale {
    pub(super) fn new(plan: &Plan, size: Size, root: Root, storm: Storm, stream: Stream) -> Self {
        Self {
            ready_1e6_vs_1e3: size.ready,
            describe_1e6_vs_1e3: size.describe,
            wrap_1e6_vs_1e3: size.wrap,
            list_1e6_vs_1e3: size.list,
            rss_growth_mib: size.rss_growth_mib,
            cold_wrap_hsm_unwraps: size.cold_unwraps,
            root_rollover_vs_token: root.vs_token,
            root_rollover_vs_same_calls: root.vs_same_calls,
            root_rollover_rows_per_key: root.rows_per_key,
            root_rollover_p99_vs_idle: root.p99_vs_idle,
            rewrap_stream_vs_batch: stream.vs_batch,
            rotation_storm_p99_vs_idle: storm.p99_vs_idle,
            rotation_storm_worst_p99_vs_idle: storm.worst_p99_vs_idle,
            rotation_storm_seconds: storm.seconds,
            rotation_storm_idle_p99_us: storm.idle_p99_us,
            ready_1e6_ms: size.ready_ms,
            rss_1e6_mib: size.rss_mib,
            cold_wrap_p50_us: size.cold_wrap_p50_us,
            root_rollover_keys_per_second: root.keys_per_second,
            token_rewraps_per_second: root.token_keys_per_second,
            root_rollover_busy_keys_per_second: root.busy_keys_per_second,
            root_rollover_idle_p99_us: root.idle_p99_us,
            rewrap_stream_items_per_second: stream.items_per_second,
            rewrap_stream_rss_growth_mib: stream.rss_growth_mib,
            keys: plan.keys,
            few: plan.few,
            due: plan.due,
            rolled: plan.rolled,
            items: plan.items,
            foreground_concurrency: CONCURRENCY,
            windows: plan.windows,
            window_seconds: plan.window().as_secs_f64(),
        }
    }

    /// Refuses a figure that was not measured: it must not pass for a good one.
    pub(super) fn check(&self) -> Result<(), Error> {
        let value = serde_json::to_value(self).map_err(|_| Error::Bug("no JSON form"))?;
        for (name, value) in value.as_object().into_iter().flatten() {
            // JSON has no NaN: it comes as null.
            let value = value.as_f64().unwrap_or(f64::NAN);
            let may_be_nothing = GROWTH.contains(&name.as_str());
            if !(value.is_finite() && (value > 0.0 || may_be_nothing)) {
                return Err(Error::Figure { name: name.clone(), value });
            }
        }
        Ok(())
    }

    /// Writes the table, one name a line with its bar where there is one.
    pub fn table(&self) -> Result<String, Error> {
        let value = serde_json::to_value(self).map_err(|_| Error::Bug("no JSON form"))?;
        let mut text = String::new();
        for (name, value) in value.as_object().into_iter().flatten() {
            let bar = BARS.iter().find(|(of, _)| of == name).map_or("", |(_, bar)| *bar);
            let number = value.as_f64().unwrap_or_default();
            let _ = writeln!(text, "{name:<34} {number:>12.3}  {bar}");
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Scale {
        let mut value = serde_json::to_value(Scale::default()).unwrap();
        value.as_object_mut().unwrap().values_mut().for_each(|value| {
            *value = if value.is_u64() { 1.into() } else { 1.5.into() };
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_figure_that_was_not_measured_is_no_pass_and_memory_may_shrink() {
        let error = Scale::default().check().unwrap_err();
        assert!(matches!(error, Error::Figure { value: 0.0, .. }), "{error}");
        let error = Scale { root_rollover_vs_token: f64::NAN, ..whole() }.check().unwrap_err();
        assert!(matches!(error, Error::Figure { name, .. } if name == "root_rollover_vs_token"));
        let error = Scale { rss_growth_mib: f64::NAN, ..whole() }.check().unwrap_err();
        assert!(matches!(error, Error::Figure { name, .. } if name == "rss_growth_mib"));
        Scale { rss_growth_mib: -3.0, ..whole() }.check().unwrap();
    }

    #[test]
    fn every_bar_names_a_figure_and_the_table_shows_it() {
        let table = whole().table().unwrap();
        for (name, bar) in BARS {
            let line = table.lines().find(|line| line.starts_with(&format!("{name} ")));
            assert!(line.is_some_and(|line| line.ends_with(bar)), "{name}");
        }
        let value = serde_json::to_value(whole()).unwrap();
        assert!(GROWTH.iter().all(|name| value.get(name).is_some()));
    }
}
