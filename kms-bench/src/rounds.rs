//! Rounds: one load on one peer, and medians over alternating rounds.

use std::time::Duration;

use kms_cli::bench::{Config, Load, Op, Report, engine, run};
use kms_cli::client::channel;
use kms_core::name::TenantName;
use tokio::runtime::Runtime;

use crate::echo::EchoCall;
use crate::error::Error;
use crate::processes::Peer;

/// Connections of every load.
pub const CONNECTIONS: usize = 8;
/// How long calls are made before they count.
pub const WARMUP: Duration = Duration::from_secs(1);
/// Items of a batch.
pub const BATCH_SIZE: usize = 100;

/// One round's numbers.
#[derive(Clone, Debug)]
pub struct Round {
    /// What the client saw.
    pub report: Report,
    /// CPU time of the peer a call, in microseconds, warm-up's share taken off by its length.
    pub server_cpu_us: f64,
}

/// Makes a load of the usual length.
pub const fn load(concurrency: usize, duration: Duration) -> Load {
    Load { concurrency, warmup: WARMUP, duration, call_timeout: Duration::from_secs(30) }
}

/// One round on the echo.
pub fn echo(runtime: &Runtime, peer: &Peer, load: &Load) -> Result<Round, Error> {
    measured(peer, load, || {
        runtime.block_on(async {
            let mut calls = Vec::with_capacity(CONNECTIONS);
            for _ in 0..CONNECTIONS {
                calls.push(EchoCall::new(channel(&peer.context).await?));
            }
            let measured = engine::run(load, calls).await;
            let measured = measured.ok_or(Error::Bug("latencies cannot be recorded"))?;
            Ok(Report::new("echo", load, CONNECTIONS, &measured))
        })
    })
}

/// One round of an operation on the server.
pub fn server(runtime: &Runtime, peer: &Peer, op: Op, load: &Load) -> Result<Round, Error> {
    let tenant: TenantName = peer.context.tenant_name()?;
    let config = Config {
        context: peer.context.clone(),
        op,
        load: *load,
        connections: CONNECTIONS,
        key_count: 1,
        key_prefix: "bench".into(),
        size_bytes: crate::echo::REQUEST_BYTES,
        batch_size: BATCH_SIZE,
    };
    measured(peer, load, || runtime.block_on(async { Ok(run(&config, &tenant).await?) }))
}

fn measured(
    peer: &Peer,
    load: &Load,
    round: impl FnOnce() -> Result<Report, Error>,
) -> Result<Round, Error> {
    let before = peer.cpu()?;
    let report = round()?;
    let used = peer.cpu()?.saturating_sub(before);
    if report.failed() > 0 || report.requests == 0 {
        let reasons = report.errors.iter().map(|(reason, count)| format!("{reason}={count}"));
        let reasons = reasons.collect::<Vec<_>>().join(" ");
        return Err(Error::Failed { what: report.op.clone(), failed: report.failed(), reasons });
    }
    // The warm-up's calls are not counted, but its CPU is; the rates of both are alike.
    let share = report.duration_seconds / (report.duration_seconds + load.warmup.as_secs_f64());
    let calls = report.requests_per_second * report.duration_seconds;
    Ok(Round { server_cpu_us: used.as_secs_f64() * 1e6 * share / calls, report })
}

/// Returns the median; 0 of nothing.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Returns the median of what `pick` picks from rounds.
pub fn median_of(rounds: &[Round], pick: impl Fn(&Round) -> f64) -> f64 {
    median(&mut rounds.iter().map(pick).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are passed through")]
    fn the_median_is_the_middle_one_and_of_nothing_0() {
        assert_eq!(median(&mut [5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&mut []), 0.0);
    }
}
