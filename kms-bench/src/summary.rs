//! The summary: the names that the project's bars are stated in, and the conditions they were measured under.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use kms_cli::bench::Op;
use kms_server::assembly::serving_threads;
use serde::{Deserialize, Serialize};

use crate::error::{Error, io};
use crate::processes::{Allocator, Peer, bare_token, binary};
use crate::rounds::{Round, echo, load, median, median_of, server};
use crate::{disk, sealing};

/// What is measured, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Alternating rounds of each measurement.
    pub rounds: usize,
    /// How long each one counts.
    pub duration: Duration,
    /// How much is sealed a round, in MiB.
    pub seal_mib: usize,
}

/// The result of a run. The first twelve names are the project's; the others say under which conditions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Single Wraps a second with durable audit, over the echo's, at concurrency 256.
    pub wrap_vs_echo_c256: f64,
    /// The same with the audit log on tmpfs, at concurrency 64.
    pub wrap_vs_echo_mem_c64: f64,
    /// The same with the audit log on tmpfs, at concurrency 256.
    pub wrap_vs_echo_mem_c256: f64,
    /// Items a second in batches of 100 at concurrency 16, over the bare token's.
    pub batch_items_vs_token: f64,
    /// Unwraps a second over Wraps, at concurrency 256.
    pub unwrap_vs_wrap: f64,
    /// CPU time of the server a Wrap, in microseconds, at concurrency 256.
    pub server_cpu_us_per_wrap: f64,
    /// What durable audit adds to the median latency of one Wrap at a time, over the median fdatasync of the same round.
    pub audit_wait_p50_vs_fsync: f64,
    /// Throughput of seal over the age crate's own Encryptor.
    pub seal_vs_age: f64,
    /// Resident memory of the server before its first request, in MiB.
    pub idle_rss_mib: f64,
    /// From the start of the process to ready on an existing directory, without the token's login, in milliseconds.
    pub restart_ready_ms: f64,
    /// Single Wraps a second with durable audit, over the echo's, at concurrency 64.
    pub wrap_vs_echo_c64: f64,
    /// As `wrap_vs_echo_c256`, over an echo that has a serving thread on every core.
    pub wrap_vs_wide_echo_c256: f64,
    /// As `wrap_vs_echo_mem_c256`, over that echo.
    pub wrap_vs_wide_echo_mem_c256: f64,
    /// As `wrap_vs_echo_mem_c64`, over that echo.
    pub wrap_vs_wide_echo_mem_c64: f64,
    /// Median of append and fdatasync, in microseconds.
    pub fdatasync_p50_us: f64,
    /// Echoes a second at concurrency 256.
    pub echo_c256_per_second: f64,
    /// Wraps a second at concurrency 256, durable audit.
    pub wrap_c256_per_second: f64,
    /// Median latency of them, in microseconds.
    pub wrap_c256_p50_us: f64,
    /// 99th percentile of them, in microseconds.
    pub wrap_c256_p99_us: f64,
    /// CPU time of the echo a call, in microseconds, at concurrency 256.
    pub echo_cpu_us: f64,
    /// Items a second of the bare token on one lane.
    pub token_items_per_second: f64,
    /// The same where the server's allocator serves the module.
    pub token_server_allocator_items_per_second: f64,
    /// Seal's throughput in MiB a second.
    pub seal_mib_per_second: f64,
    /// Cores of the machine.
    pub cores: usize,
    /// Rounds of each measurement.
    pub rounds: usize,
    /// Seconds of each round.
    pub round_seconds: f64,
}

impl Summary {
    /// Measures everything; `disk` stands on a real file system, `tmpfs` in memory.
    pub fn measure(plan: Plan, disk_root: &Path, tmpfs: &Path) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(io("start a runtime"))?;
        let server_binary = binary("kms-server")?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let echo_peer = Peer::echo(&disk_root.join("echo"), serving_threads(0))?;
        let wide_peer = Peer::echo(&disk_root.join("echo-wide"), cores)?;
        let durable_dir = disk_root.join("durable");
        let restart_ready_ms = restarts(&server_binary, &durable_dir)?;
        let (durable, _) = Peer::server(&server_binary, &durable_dir)?;
        let idle_rss_mib = durable.rss_mib()?;
        let (memory, _) = Peer::server(&server_binary, &tmpfs.join("memory"))?;
        let wraps = |peer, concurrency| {
            let load = load(concurrency, plan.duration);
            let runtime = &runtime;
            move || server(runtime, peer, Op::Wrap, &load)
        };
        let echoes = |peer, concurrency| {
            let load = load(concurrency, plan.duration);
            let runtime = &runtime;
            move || echo(runtime, peer, &load)
        };
        let unwrap_load = load(256, plan.duration);
        let batch_load = load(16, plan.duration);
        let mut turns: [Turn<'_>; 11] = [
            Turn::new(echoes(&echo_peer, 256)),
            Turn::new(echoes(&wide_peer, 256)),
            Turn::new(wraps(&durable, 256)),
            Turn::new(wraps(&memory, 256)),
            Turn::new(|| server(&runtime, &durable, Op::Unwrap, &unwrap_load)),
            Turn::new(echoes(&echo_peer, 64)),
            Turn::new(echoes(&wide_peer, 64)),
            Turn::new(wraps(&durable, 64)),
            Turn::new(wraps(&memory, 64)),
            Turn::new(wraps(&durable, 1)),
            Turn::new(wraps(&memory, 1)),
        ];
        // The last two turns are the pair that an fdatasync is compared with, so it is sampled right after them.
        let mut fsync = alternate(plan.rounds, &mut turns, disk_root)?;
        let [
            echo_256,
            wide_256,
            wrap_256,
            memory_256,
            unwrap_256,
            echo_64,
            wide_64,
            wrap_64,
            memory_64,
            one,
            one_memory,
        ] = turns.map(|turn| turn.done);
        let (batches, mut token, mut token_server_allocator) =
            batches_and_token(plan, disk_root, || {
                server(&runtime, &durable, Op::Batch, &batch_load)
            })?;
        let speed = |rounds: &[Round]| median_of(rounds, |round| round.report.requests_per_second);
        let p50 = |rounds: &[Round]| median_of(rounds, |round| micros(round.report.latency_us.p50));
        let audit_wait_p50_vs_fsync = audit_wait(&one, &one_memory, &fsync);
        let (token, fsync) = (median(&mut token), median(&mut fsync));
        let (seal_vs_age, seal_mib_per_second) = sealing::seal_vs_age(tmpfs, plan.seal_mib)?;
        let summary = Self {
            wrap_vs_echo_c256: speed(&wrap_256) / speed(&echo_256),
            wrap_vs_echo_mem_c64: speed(&memory_64) / speed(&echo_64),
            wrap_vs_echo_mem_c256: speed(&memory_256) / speed(&echo_256),
            batch_items_vs_token: median_of(&batches, |round| round.report.items_per_second)
                / token,
            unwrap_vs_wrap: speed(&unwrap_256) / speed(&wrap_256),
            server_cpu_us_per_wrap: median_of(&wrap_256, |round| round.server_cpu_us),
            audit_wait_p50_vs_fsync,
            seal_vs_age,
            idle_rss_mib,
            restart_ready_ms,
            wrap_vs_echo_c64: speed(&wrap_64) / speed(&echo_64),
            wrap_vs_wide_echo_c256: speed(&wrap_256) / speed(&wide_256),
            wrap_vs_wide_echo_mem_c256: speed(&memory_256) / speed(&wide_256),
            wrap_vs_wide_echo_mem_c64: speed(&memory_64) / speed(&wide_64),
            fdatasync_p50_us: fsync,
            echo_c256_per_second: speed(&echo_256),
            wrap_c256_per_second: speed(&wrap_256),
            wrap_c256_p50_us: p50(&wrap_256),
            wrap_c256_p99_us: median_of(&wrap_256, |round| micros(round.report.latency_us.p99)),
            echo_cpu_us: median_of(&echo_256, |round| round.server_cpu_us),
            token_items_per_second: token,
            token_server_allocator_items_per_second: median(&mut token_server_allocator),
            seal_mib_per_second,
            cores,
            rounds: plan.rounds,
            round_seconds: plan.duration.as_secs_f64(),
        };
        summary.check()?;
        Ok(summary)
    }

    /// Refuses a figure that is no positive number: what was not measured must not pass for a good one.
    fn check(&self) -> Result<(), Error> {
        let value = serde_json::to_value(self).map_err(|_| Error::Bug("no JSON form"))?;
        for (name, value) in value.as_object().into_iter().flatten() {
            // JSON has no NaN: it comes as null.
            let value = value.as_f64().unwrap_or(f64::NAN);
            if !(value.is_finite() && value > 0.0) {
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
            let _ = writeln!(text, "{name:<26} {number:>12.3}  {bar}");
        }
        Ok(text)
    }
}

/// The bars that must hold.
const BARS: [(&str, &str); 10] = [
    ("wrap_vs_echo_c256", ">= 0.55"),
    ("wrap_vs_echo_mem_c64", ">= 0.55"),
    ("wrap_vs_echo_mem_c256", ">= 0.55"),
    ("batch_items_vs_token", ">= 0.8"),
    ("unwrap_vs_wrap", "0.9 to 1.1"),
    ("server_cpu_us_per_wrap", "<= 50"),
    ("audit_wait_p50_vs_fsync", "<= 2.2"),
    ("seal_vs_age", ">= 0.9"),
    ("idle_rss_mib", "<= 40"),
    ("restart_ready_ms", "<= 300"),
];

/// One measurement that takes its turn in every round.
struct Turn<'a> {
    measure: Box<dyn FnMut() -> Result<Round, Error> + 'a>,
    done: Vec<Round>,
}

impl<'a> Turn<'a> {
    fn new(measure: impl FnMut() -> Result<Round, Error> + 'a) -> Self {
        Self { measure: Box::new(measure), done: Vec::new() }
    }
}

/// Lets every measurement take its turn in each round, and an fdatasync at its end; returns the latter, in microseconds.
fn alternate(rounds: usize, turns: &mut [Turn<'_>], disk_root: &Path) -> Result<Vec<f64>, Error> {
    let mut fsync = Vec::new();
    for _ in 0..rounds {
        for turn in &mut *turns {
            let round = (turn.measure)()?;
            turn.done.push(round);
        }
        fsync.push(disk::fdatasync_p50(disk_root)?.as_secs_f64() * 1e6);
    }
    Ok(fsync)
}

/// Returns the median of the rounds' ratios: disk and machine change their mood from round to round, seldom within one.
/// A round whose fdatasync took no time gives no ratio.
fn audit_wait(durable: &[Round], memory: &[Round], fsync_us: &[f64]) -> f64 {
    let p50 = |round: &Round| micros(round.report.latency_us.p50);
    let rounds = durable.iter().zip(memory).zip(fsync_us).filter(|(_, fsync)| **fsync > 0.0);
    let ratio =
        |((durable, memory), fsync): ((&Round, &Round), &f64)| (p50(durable) - p50(memory)) / fsync;
    median(&mut rounds.map(ratio).collect::<Vec<_>>())
}

/// How often the server is started again: a start takes so little that one would be chance.
const RESTARTS: usize = 5;

/// Makes a dev directory, and returns the median time of later starts on it, in milliseconds.
fn restarts(binary: &Path, directory: &Path) -> Result<f64, Error> {
    Peer::server(binary, directory)?.0.stop()?;
    let mut spans = Vec::with_capacity(RESTARTS);
    for _ in 0..RESTARTS {
        let (peer, ready) = Peer::server(binary, directory)?;
        spans.push(ready.without_login.as_secs_f64() * 1e3);
        peer.stop()?;
    }
    Ok(median(&mut spans))
}

type Batches = (Vec<Round>, Vec<f64>, Vec<f64>);

/// Batches on the server and the bare token in turn.
fn batches_and_token(
    plan: Plan,
    disk_root: &Path,
    mut batch: impl FnMut() -> Result<Round, Error>,
) -> Result<Batches, Error> {
    let (mut batches, mut bare, mut served) = (Vec::new(), Vec::new(), Vec::new());
    let token =
        |name: String, allocator| bare_token(&disk_root.join(name), plan.duration, allocator);
    for round in 0..plan.rounds {
        batches.push(batch()?);
        bare.push(token(format!("token-{round}"), Allocator::System)?);
        served.push(token(format!("token-{round}-served"), Allocator::Server)?);
    }
    Ok((batches, bare, served))
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52")]
fn micros(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_was_not_measured_is_no_pass() {
        let error = Summary::default().check().unwrap_err();
        assert!(matches!(error, Error::Figure { value: 0.0, .. }), "{error}");
        let error = Summary { seal_vs_age: f64::NAN, ..whole() }.check().unwrap_err();
        assert!(matches!(error, Error::Figure { name, .. } if name == "seal_vs_age"));
        whole().check().unwrap();
    }

    /// A summary in which everything was measured.
    fn whole() -> Summary {
        let mut value = serde_json::to_value(Summary::default()).unwrap();
        value.as_object_mut().unwrap().values_mut().for_each(|value| {
            *value = if value.is_u64() { 1.into() } else { 1.5.into() };
        });
        serde_json::from_value(value).unwrap()
    }

    fn round(p50: u64) -> Round {
        let report = serde_json::json!({
            "op": "wrap", "concurrency": 1, "connections": 1, "duration_seconds": 1.0,
            "requests": 1, "items": 1, "requests_per_second": 1.0, "items_per_second": 1.0,
            "latency_us": {"p50": p50, "p90": 0, "p99": 0, "p99_9": 0, "max": 0, "mean": 0.0},
            "errors": {}, "client_cpu_us_per_request": null,
        });
        Round { report: serde_json::from_value(report).unwrap(), server_cpu_us: 1.0 }
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "small whole numbers")]
    fn the_audit_wait_is_compared_within_rounds_and_never_with_nothing() {
        let durable = [300, 900, 500].map(round);
        let memory = [100, 100, 100].map(round);
        // Ratios 2, 8 and none.
        assert_eq!(audit_wait(&durable, &memory, &[100.0, 100.0, 0.0]), 8.0);
        assert_eq!(audit_wait(&durable, &memory, &[100.0, 400.0, 100.0]), 2.0);
    }

    #[test]
    fn every_bar_names_a_field_and_the_table_shows_it() {
        let table = Summary::default().table().unwrap();
        for (name, bar) in BARS {
            let line = table.lines().find(|line| line.starts_with(&format!("{name} ")));
            assert!(line.is_some_and(|line| line.ends_with(bar)), "{name}");
        }
    }
}
